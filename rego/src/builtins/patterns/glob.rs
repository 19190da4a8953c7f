//! Globs as the library `gobwas/glob` reads them, in the words of regular expressions.
//!
//! `*` stops at delimiters, `**` does not, `?` is one character that is no delimiter, `[a-c]` and `[!a-c]` are sets,
//! `{a,b}` is a choice, `\` takes the next character as it is.

/// Levels of `{…}` and characters of the pattern.
const MAX_DEPTH: usize = 20;

use regex::Regex;

/// A compiled glob.
#[derive(Debug)]
pub enum Matcher {
    /// Pieces between delimiters, each with one star at most: the usual shape of paths.
    Pieces {
        delimiter: char,
        pieces: Vec<Piece>,
    },
    Regex(Regex),
}

/// What stands between two delimiters.
#[derive(Debug)]
pub struct Piece {
    before: String,
    /// What follows the star, if there is one.
    after: Option<String>,
}

impl Matcher {
    pub fn new(pattern: &str, delimiters: &[char]) -> Result<Self, String> {
        if let [delimiter] = delimiters
            && !pattern.contains(['?', '[', '{', '\\'])
            && !pattern.contains("**")
        {
            let pieces: Vec<Piece> = pattern
                .split(*delimiter)
                .map(|piece| match piece.split_once('*') {
                    Some((before, after)) => Piece { before: before.to_owned(), after: Some(after.to_owned()) },
                    None => Piece { before: piece.to_owned(), after: None },
                })
                .collect();
            if pieces.iter().all(|piece| piece.after.as_ref().is_none_or(|after| !after.contains('*'))) {
                return Ok(Self::Pieces { delimiter: *delimiter, pieces });
            }
        }
        Ok(Self::Regex(super::compile(&translate(pattern, delimiters)?)?))
    }

    pub fn is_match(&self, subject: &str) -> bool {
        match self {
            Self::Regex(regex) => regex.is_match(subject),
            Self::Pieces { delimiter, pieces } => {
                let mut found = subject.split(*delimiter);
                pieces.iter().all(|piece| found.next().is_some_and(|text| piece.is_match(text)))
                    && found.next().is_none()
            }
        }
    }
}

impl Piece {
    fn is_match(&self, text: &str) -> bool {
        match &self.after {
            None => text == self.before,
            Some(after) => text.strip_prefix(self.before.as_str()).is_some_and(|rest| rest.ends_with(after.as_str())),
        }
    }
}

/// The text that everything that the glob matches begins with.
pub fn literal_prefix(pattern: &str) -> &str {
    let end = pattern.find(['*', '?', '[', ']', '{', '}', ',', '\\']).unwrap_or(pattern.len());
    pattern.get(..end).unwrap_or("")
}

pub fn translate(pattern: &str, delimiters: &[char]) -> Result<String, String> {
    let one = if delimiters.is_empty() {
        "(?s:.)".to_owned()
    } else {
        let set: String = delimiters.iter().map(|char| format!(r"\u{{{:x}}}", u32::from(*char))).collect();
        format!("[^{set}]")
    };
    let mut out = r"\A(?:".to_owned();
    let mut depth = 0usize;
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '*' => {
                let mut stars = 1;
                while chars.next_if_eq(&'*').is_some() {
                    stars += 1;
                }
                out.push_str(if stars > 1 { "(?s:.)" } else { &one });
                out.push('*');
            }
            '?' => out.push_str(&one),
            '\\' => match chars.next() {
                Some(next) => out.push_str(&regex::escape(&next.to_string())),
                None => return Err("unexpected end of input".to_owned()),
            },
            '[' => out.push_str(&class(&mut chars)?),
            '{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err("alternatives are nested too deeply".to_owned());
                }
                out.push_str("(?:");
            }
            '}' if depth > 0 => {
                depth -= 1;
                out.push(')');
            }
            ',' if depth > 0 => out.push('|'),
            other => out.push_str(&regex::escape(&other.to_string())),
        }
    }
    if depth > 0 {
        return Err("unexpected end of input".to_owned());
    }
    Ok(format!(r"{out})\z"))
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, String> {
    let literal = |char: char| format!(r"\u{{{:x}}}", u32::from(char));
    let end = || "unexpected end of input".to_owned();
    let not = if chars.next_if_eq(&'!').is_some() { "^" } else { "" };
    let first = *chars.peek().ok_or_else(end)?;
    let mut after = chars.clone();
    after.next();
    if after.next() == Some('-') {
        // One range and nothing else: the library refuses `[a-z0-9]`.
        *chars = after;
        let last = chars.next().ok_or_else(end)?;
        if chars.next() != Some(']') {
            return Err("expected close range character".to_owned());
        }
        if last < first {
            return Err(format!("hi character {last:?} should be greater than lo {first:?}"));
        }
        return Ok(format!("[{not}{}-{}]", literal(first), literal(last)));
    }
    let mut members = String::new();
    loop {
        match chars.next().ok_or_else(end)? {
            ']' if members.is_empty() => return Err("could not parse range".to_owned()),
            ']' => return Ok(format!("[{not}{members}]")),
            '\\' => members.push_str(&literal(chars.next().ok_or_else(end)?)),
            char => members.push_str(&literal(char)),
        }
    }
}

pub fn quote(text: &str) -> String {
    let mut out = String::new();
    for char in text.chars() {
        if "*?\\[]{}".contains(char) {
            out.push('\\');
        }
        out.push(char);
    }
    out
}
