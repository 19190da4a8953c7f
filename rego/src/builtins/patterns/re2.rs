//! Go's regular expressions in the words of the crate `regex`, which differs in what classes mean and in a few spellings.
//!
//! Mirrors: Go `regexp/syntax`: `\d`, `\w`, `\s` and `\b` are ASCII; `&&`, `--` and `~~` mean nothing in a class;
//! repetitions go up to 1,000.

use std::iter::Peekable;
use std::str::Chars;

const MAX_REPEAT: u32 = 1_000;
/// Characters between braces that can be the bounds of a repetition.
const MAX_COUNT_CHARS: usize = 16;

/// Says why where Go would refuse the pattern too.
pub(super) fn translate(pattern: &str) -> Result<String, String> {
    let mut translator =
        Translator { rest: pattern.chars().peekable(), out: String::new(), repeated: Repeated::Nothing };
    translator.run()?;
    Ok(translator.out)
}

#[derive(Clone, Copy, PartialEq)]
enum Repeated {
    /// Nothing that could be repeated stands before.
    Nothing,
    Atom,
    /// A repetition; `?` may follow to make it lazy.
    Greedy,
    Lazy,
}

struct Translator<'p> {
    rest: Peekable<Chars<'p>>,
    out: String,
    repeated: Repeated,
}

impl Translator<'_> {
    fn run(&mut self) -> Result<(), String> {
        while let Some(char) = self.rest.next() {
            match char {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '*' | '+' | '?' => self.repetition(char)?,
                '{' => self.counted()?,
                '(' => {
                    self.out.push('(');
                    self.repeated = Repeated::Nothing;
                    if self.rest.next_if_eq(&'?').is_some() {
                        self.out.push('?');
                        self.group()?;
                    }
                }
                '|' => {
                    self.out.push('|');
                    self.repeated = Repeated::Nothing;
                }
                '#' | '&' | '~' | '-' | ' ' => self.literal(char),
                _ => {
                    self.out.push(char);
                    self.repeated = Repeated::Atom;
                }
            }
        }
        Ok(())
    }

    /// The syntax after `(?`.
    fn group(&mut self) -> Result<(), String> {
        while let Some(&char) = self.rest.peek() {
            match char {
                'i' | 'm' | 's' | 'U' | '-' => {
                    self.out.push(char);
                    self.rest.next();
                }
                ':' | ')' => {
                    self.out.push(char);
                    self.rest.next();
                    // `(?i)` is no atom.
                    return Ok(());
                }
                'P' | '<' => return self.name(),
                _ => return Err("invalid or unsupported Perl syntax".to_owned()),
            }
        }
        Err("missing closing )".to_owned())
    }

    fn name(&mut self) -> Result<(), String> {
        for char in self.rest.by_ref() {
            self.out.push(char);
            if char == '>' {
                return Ok(());
            }
        }
        Err("invalid named capture".to_owned())
    }

    fn literal(&mut self, char: char) {
        self.out.push_str(&regex::escape(char.encode_utf8(&mut [0; 4])));
        self.repeated = Repeated::Atom;
    }

    fn repetition(&mut self, char: char) -> Result<(), String> {
        match (self.repeated, char) {
            (Repeated::Greedy, '?') => self.repeated = Repeated::Lazy,
            (Repeated::Greedy | Repeated::Lazy, _) => return Err("invalid nested repetition operator".to_owned()),
            (Repeated::Nothing, _) => return Err(format!("missing argument to repetition operator: `{char}`")),
            _ => self.repeated = Repeated::Greedy,
        }
        self.out.push(char);
        Ok(())
    }

    /// `{2,5}`; any other brace is a brace.
    fn counted(&mut self) -> Result<(), String> {
        let ahead: String = self.rest.clone().take(MAX_COUNT_CHARS).take_while(|char| *char != '}').collect();
        let closed = self.rest.clone().nth(ahead.chars().count()) == Some('}');
        let number = |text: &str| {
            (!text.is_empty() && text.len() <= 6 && text.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| text.parse::<u32>().ok())
                .flatten()
        };
        let bounds = match ahead.split_once(',') {
            None => number(&ahead).map(|count| (count, Some(count))),
            Some((least, "")) => number(least).map(|least| (least, None)),
            Some((least, most)) => number(least).zip(number(most)).map(|(least, most)| (least, Some(most))),
        };
        let Some((least, most)) = bounds.filter(|_| closed) else {
            self.literal('{');
            return Ok(());
        };
        if least > MAX_REPEAT || most.is_some_and(|most| most > MAX_REPEAT || most < least) {
            return Err(format!("invalid repeat count: `{{{ahead}}}`"));
        }
        match self.repeated {
            Repeated::Atom => {}
            Repeated::Nothing => return Err(format!("missing argument to repetition operator: `{{{ahead}}}`")),
            _ => return Err("invalid nested repetition operator".to_owned()),
        }
        for _ in 0..=ahead.chars().count() {
            self.rest.next();
        }
        self.out.push_str(&format!("{{{ahead}}}"));
        self.repeated = Repeated::Greedy;
        Ok(())
    }

    fn escape(&mut self) -> Result<(), String> {
        let Some(char) = self.rest.next() else { return Err("trailing backslash at end of expression".to_owned()) };
        let text = match char {
            'd' => "[0-9]".to_owned(),
            'D' => "[^0-9]".to_owned(),
            'w' => "[0-9A-Za-z_]".to_owned(),
            'W' => "[^0-9A-Za-z_]".to_owned(),
            's' => r"[\t\n\f\r ]".to_owned(),
            'S' => r"[^\t\n\f\r ]".to_owned(),
            'b' | 'B' => format!(r"(?-u:\{char})"),
            'A' | 'z' => format!(r"\{char}"),
            'p' | 'P' => self.unicode_class(char)?,
            'Q' => {
                self.quoted();
                return Ok(());
            }
            other => {
                let char = self.escaped_char(other)?;
                self.literal(char);
                return Ok(());
            }
        };
        self.out.push_str(&text);
        self.repeated = Repeated::Atom;
        Ok(())
    }

    fn quoted(&mut self) {
        while let Some(char) = self.rest.next() {
            if char == '\\' && self.rest.peek() == Some(&'E') {
                self.rest.next();
                return;
            }
            self.literal(char);
        }
    }

    fn unicode_class(&mut self, kind: char) -> Result<String, String> {
        let mut name = String::new();
        match self.rest.next() {
            Some('{') => {
                for char in self.rest.by_ref() {
                    if char == '}' {
                        return Ok(format!(r"\{kind}{{{name}}}"));
                    }
                    name.push(char);
                }
                Err("invalid character class range".to_owned())
            }
            Some(one) => Ok(format!(r"\{kind}{{{one}}}")),
            None => Err("invalid character class range".to_owned()),
        }
    }

    /// The one character that an escape stands for.
    fn escaped_char(&mut self, char: char) -> Result<char, String> {
        let invalid = || Err(format!(r"invalid escape sequence: `\{char}`"));
        match char {
            'a' => Ok('\u{7}'),
            'f' => Ok('\u{c}'),
            't' => Ok('\t'),
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            'v' => Ok('\u{b}'),
            'x' => self.hex_char(),
            '0'..='7' => {
                let mut code = char.to_digit(8).unwrap_or(0);
                let mut count = 1;
                while count < 3
                    && let Some(digit) = self.rest.peek().and_then(|char| char.to_digit(8))
                {
                    code = code * 8 + digit;
                    self.rest.next();
                    count += 1;
                }
                // `\1` alone would be a back reference.
                if char != '0' && count == 1 {
                    return invalid();
                }
                char::from_u32(code).map_or_else(invalid, Ok)
            }
            char if char.is_ascii_punctuation() => Ok(char),
            char if !char.is_ascii() => invalid(),
            _ => invalid(),
        }
    }

    fn hex_char(&mut self) -> Result<char, String> {
        let mut digits = String::new();
        if self.rest.next_if_eq(&'{').is_some() {
            for char in self.rest.by_ref() {
                if char == '}' {
                    break;
                }
                digits.push(char);
            }
        } else {
            digits.extend(self.rest.by_ref().take(2));
        }
        let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
        code.ok_or_else(|| format!(r"invalid escape sequence: `\x{digits}`"))
    }

    fn class(&mut self) -> Result<(), String> {
        let rest: String = self.rest.clone().collect();
        let missing = || format!("missing closing ]: `[{rest}`");
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let Some(char) = self.rest.next() else { return Err(missing()) };
            match char {
                ']' if !first => break,
                '[' if self.rest.peek() == Some(&':') => self.posix_class()?,
                '\\' if matches!(self.rest.peek(), Some('d' | 'D' | 'w' | 'W' | 's' | 'S' | 'p' | 'P')) => {
                    // Classes nest.
                    self.escape()?;
                }
                char => {
                    let low = self.class_char(char)?;
                    self.class_literal(low);
                    let mut ahead = self.rest.clone();
                    if ahead.next() == Some('-') && !matches!(ahead.peek(), Some(']') | None) {
                        self.rest.next();
                        let Some(next) = self.rest.next() else { return Err(missing()) };
                        let high = self.class_char(next)?;
                        if high < low {
                            return Err(format!("invalid character class range: `{low}-{high}`"));
                        }
                        self.out.push('-');
                        self.class_literal(high);
                    }
                }
            }
            first = false;
        }
        self.out.push(']');
        self.repeated = Repeated::Atom;
        Ok(())
    }

    fn class_char(&mut self, char: char) -> Result<char, String> {
        if char != '\\' {
            return Ok(char);
        }
        let Some(escaped) = self.rest.next() else { return Err("missing closing ]".to_owned()) };
        self.escaped_char(escaped)
    }

    fn class_literal(&mut self, char: char) {
        self.out.push_str(&format!(r"\u{{{:x}}}", u32::from(char)));
    }

    fn posix_class(&mut self) -> Result<(), String> {
        let mut name = "[".to_owned();
        for char in self.rest.by_ref() {
            name.push(char);
            if char == ']' {
                self.out.push_str(&name);
                return Ok(());
            }
        }
        Err("invalid character class range".to_owned())
    }
}
