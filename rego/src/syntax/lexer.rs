//! Text to tokens. Keywords are names here: which names are keywords depends on the imports.
//!
//! Mirrors: OPA `v1/ast/internal/scanner`, v1.19.0.

use std::sync::Arc;

use super::tree::Comment;

/// The largest module, in bytes.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// A position in a file: row and column, both counted from 1; columns count characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    pub row: u32,
    pub col: u32,
}

/// A module that cannot be parsed; OPA's `rego_parse_error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}: rego_parse_error: {message}", at.row, at.col)]
pub(crate) struct SyntaxError {
    pub at: Location,
    pub message: String,
}

impl SyntaxError {
    pub(crate) fn new(at: Location, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Lexeme {
    Name(Arc<str>),
    Number(Arc<str>),
    String(Arc<str>),
    /// The text of a template up to an expression, or to the end of the template.
    Template {
        text: Arc<str>,
        ends: bool,
    },
    /// Brackets, operators and punctuation.
    Sign(&'static str),
    End,
}

#[derive(Clone, Debug)]
pub(super) struct Token {
    pub at: Location,
    pub lexeme: Lexeme,
    /// White space or a comment precedes it.
    pub spaced: bool,
    /// A line ends before it.
    pub on_new_line: bool,
}

/// Longer signs first.
const SIGNS: [&str; 24] = [
    ":=", "==", "!=", "<=", ">=", "[", "]", "{", "}", "(", ")", ",", ":", "+", "-", "*", "/", "%", "&", "|", "=", "<",
    ">", ";",
];

/// Where a template goes on: the number of braces that are open inside its expression.
struct OpenTemplate {
    raw: bool,
    braces: u32,
}

pub(super) struct Lexer<'a> {
    rest: &'a str,
    here: Location,
    templates: Vec<OpenTemplate>,
    tokens: Vec<Token>,
    comments: Vec<Comment>,
}

/// All tokens, `End` last, and all comments.
pub(super) fn tokens(text: &str) -> Result<(Vec<Token>, Vec<Comment>), SyntaxError> {
    let start = Location { row: 1, col: 1 };
    if text.len() > MAX_BYTES {
        return Err(SyntaxError::new(start, format!("the module is larger than {MAX_BYTES} bytes")));
    }
    let rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lexer = Lexer { rest, here: start, templates: Vec::new(), tokens: Vec::new(), comments: Vec::new() };
    lexer.run()?;
    Ok((lexer.tokens, lexer.comments))
}

impl Lexer<'_> {
    fn run(&mut self) -> Result<(), SyntaxError> {
        loop {
            let (spaced, on_new_line) = self.skip_space();
            let at = self.here;
            let lexeme = self.lexeme()?;
            let ended = lexeme == Lexeme::End;
            self.tokens.push(Token { at, lexeme, spaced, on_new_line });
            if ended {
                return Ok(());
            }
        }
    }

    fn advance(&mut self, char: char) {
        self.rest = self.rest.get(char.len_utf8()..).unwrap_or("");
        if char == '\n' {
            self.here = Location { row: self.here.row.saturating_add(1), col: 1 };
        } else {
            self.here.col = self.here.col.saturating_add(1);
        }
    }

    fn next(&mut self) -> Option<char> {
        let char = self.rest.chars().next()?;
        self.advance(char);
        Some(char)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Takes characters as long as `wanted` likes them.
    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let len = self.rest.find(|char| !wanted(char)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        let added = u32::try_from(taken.chars().count()).unwrap_or(u32::MAX);
        self.here.col = self.here.col.saturating_add(added);
        taken
    }

    fn skip_space(&mut self) -> (bool, bool) {
        let (mut spaced, mut on_new_line) = (false, false);
        while let Some(char) = self.peek() {
            match char {
                ' ' | '\t' | '\r' => self.advance(char),
                '\n' => {
                    on_new_line = true;
                    self.advance(char);
                }
                '#' => {
                    let at = self.here;
                    let text = self.take_while(|char| char != '\n').trim_end_matches('\r').into();
                    self.comments.push(Comment { at, text });
                }
                _ => break,
            }
            spaced = true;
        }
        (spaced, on_new_line)
    }

    fn lexeme(&mut self) -> Result<Lexeme, SyntaxError> {
        let at = self.here;
        let Some(char) = self.peek() else { return Ok(Lexeme::End) };
        if is_name_start(char) {
            return Ok(Lexeme::Name(self.take_while(|char| is_name_start(char) || char.is_ascii_digit()).into()));
        }
        if char.is_ascii_digit() {
            return self.number();
        }
        match char {
            '"' => {
                self.advance(char);
                let (text, _) = self.quoted(at, false)?;
                return unescape(&text).map(Lexeme::String).ok_or_else(|| illegal_string(at));
            }
            '`' => {
                self.advance(char);
                let len = self.rest.find('`').ok_or_else(|| SyntaxError::new(at, "non-terminated string"))?;
                let text: Arc<str> = self.rest.get(..len).unwrap_or("").into();
                text.chars().for_each(|char| self.advance(char));
                self.advance('`');
                return Ok(Lexeme::String(text));
            }
            '$' => {
                self.advance(char);
                let raw = match self.next() {
                    Some('"') => false,
                    Some('`') => true,
                    _ => return Err(SyntaxError::new(at, "illegal $ character")),
                };
                return self.template(at, raw);
            }
            '.' => {
                self.advance(char);
                return Ok(Lexeme::Sign("."));
            }
            _ => {}
        }
        let Some(sign) = SIGNS.into_iter().find(|sign| self.rest.starts_with(sign)) else {
            return Err(SyntaxError::new(at, format!("illegal {char} character")));
        };
        sign.chars().for_each(|char| self.advance(char));
        if let Some(open) = self.templates.last_mut() {
            match sign {
                "{" => open.braces = open.braces.saturating_add(1),
                "}" if open.braces == 0 => {
                    let raw = open.raw;
                    self.templates.pop();
                    // The brace that ends the expression is a token of its own, so that the parser sees the end.
                    self.tokens.push(Token { at, lexeme: Lexeme::Sign("}"), spaced: false, on_new_line: false });
                    return self.template(at, raw);
                }
                "}" => open.braces = open.braces.saturating_sub(1),
                _ => {}
            }
        }
        Ok(Lexeme::Sign(sign))
    }

    fn number(&mut self) -> Result<Lexeme, SyntaxError> {
        let at = self.here;
        let digits = |lexer: &mut Self| lexer.take_while(|char| char.is_ascii_digit()).to_owned();
        let mut text = digits(self);
        let whole = text.len();
        if self.peek() == Some('.') {
            self.advance('.');
            let fraction = digits(self);
            if fraction.is_empty() {
                return Err(SyntaxError::new(at, "expected fraction"));
            }
            text.push('.');
            text.push_str(&fraction);
        }
        if let Some(mark @ ('e' | 'E')) = self.peek() {
            self.advance(mark);
            text.push(mark);
            if let Some(sign @ ('+' | '-')) = self.peek() {
                self.advance(sign);
                text.push(sign);
            }
            let exponent = digits(self);
            if exponent.is_empty() {
                return Err(SyntaxError::new(at, "expected exponent"));
            }
            text.push_str(&exponent);
        }
        if self.peek().is_some_and(is_name_start) {
            return Err(SyntaxError::new(at, "illegal number format"));
        }
        let after_point = matches!(self.tokens.last(), Some(Token { lexeme: Lexeme::Sign("."), .. }));
        if whole > 1 && text.starts_with('0') && !after_point {
            return Err(SyntaxError::new(at, "expected number without leading zero"));
        }
        Ok(Lexeme::Number(text.into()))
    }

    /// The raw text up to the closing quote, or to the brace that begins an expression of a template.
    fn quoted(&mut self, at: Location, template: bool) -> Result<(String, bool), SyntaxError> {
        let mut text = String::new();
        loop {
            match self.next() {
                None | Some('\n') => return Err(SyntaxError::new(at, "non-terminated string")),
                Some('"') => return Ok((text, true)),
                Some('{') if template => return Ok((text, false)),
                Some('\\') => match self.next() {
                    Some('{') if template => text.push('{'),
                    Some(char @ ('\\' | '"' | '/' | 'b' | 'f' | 'n' | 'r' | 't' | 'u')) => {
                        text.push('\\');
                        text.push(char);
                    }
                    _ => return Err(SyntaxError::new(at, "illegal escape sequence")),
                },
                Some(char) => text.push(char),
            }
        }
    }

    fn template(&mut self, at: Location, raw: bool) -> Result<Lexeme, SyntaxError> {
        let (text, ends) = if raw {
            let mut text = String::new();
            loop {
                match self.next() {
                    None => return Err(SyntaxError::new(at, "non-terminated string")),
                    Some('`') => break (text.into(), true),
                    Some('{') => break (text.into(), false),
                    Some('\\') if self.peek() == Some('{') => {
                        self.advance('{');
                        text.push('{');
                    }
                    Some(char) => text.push(char),
                }
            }
        } else {
            let (text, ends) = self.quoted(at, true)?;
            (unescape(&text).ok_or_else(|| illegal_string(at))?, ends)
        };
        if !ends {
            self.templates.push(OpenTemplate { raw, braces: 0 });
        }
        Ok(Lexeme::Template { text, ends })
    }
}

fn is_name_start(char: char) -> bool {
    char.is_ascii_alphabetic() || char == '_'
}

fn illegal_string(at: Location) -> SyntaxError {
    SyntaxError::new(at, "illegal string literal")
}

/// Resolves JSON's escapes. Half of a surrogate pair becomes U+FFFD, as in Go.
fn unescape(text: &str) -> Option<Arc<str>> {
    if !text.contains('\\') && !text.contains(|char: char| char < ' ') {
        return Some(text.into());
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char < ' ' {
            return None;
        }
        if char != '\\' {
            out.push(char);
            continue;
        }
        out.push(match chars.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let unit = hex4(&mut chars)?;
                let mut ahead = chars.clone();
                let low = (ahead.next() == Some('\\') && ahead.next() == Some('u')).then(|| hex4(&mut ahead)).flatten();
                match (unit, low) {
                    (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) => {
                        chars = ahead;
                        let high = (unit - 0xd800) << 10;
                        char::from_u32(0x1_0000 + high + (low - 0xdc00)).unwrap_or('\u{fffd}')
                    }
                    _ => char::from_u32(unit).unwrap_or('\u{fffd}'),
                }
            }
            other => other,
        });
    }
    Some(out.into())
}

fn hex4(chars: &mut std::str::Chars<'_>) -> Option<u32> {
    (0..4).try_fold(0, |value: u32, _| Some(value << 4 | chars.next()?.to_digit(16)?))
}
