//! The parts of a glob.
//!
//! Mirrors: `syntax/lexer` and `syntax/ast` of `gobwas/glob`, v0.2.3, with what they take without a word: a `\` at the end,
//! and choices that nothing closes.

use std::iter::Peekable;
use std::str::Chars;

/// Levels of `{…}`.
const MAX_DEPTH: usize = 20;
/// Parts of one pattern, all levels together.
const MAX_PARTS: usize = 10_000;

/// One part of a glob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternPart {
    /// `*`.
    Any,
    /// `**`.
    Super,
    /// `?`.
    Single,
    Text(String),
    /// `[abc]`.
    List {
        chars: Vec<char>,
        not: bool,
    },
    /// `[a-c]`.
    Range {
        low: char,
        high: char,
        not: bool,
    },
    /// `{a,b}`: the parts of each alternative.
    Choice(Vec<Vec<PatternPart>>),
    /// An alternative that its neighbours' common parts have used up.
    Nothing,
}

pub(super) fn parse(pattern: &str) -> Result<Vec<PatternPart>, String> {
    let mut parser = Parser { chars: pattern.chars().peekable(), parts: 0 };
    parser.parts(0)
}

struct Parser<'a> {
    chars: Peekable<Chars<'a>>,
    parts: usize,
}

impl Parser<'_> {
    /// Parts until the end of the alternative or of the pattern.
    fn parts(&mut self, depth: usize) -> Result<Vec<PatternPart>, String> {
        let mut parts = Vec::new();
        while let Some(&next) = self.chars.peek() {
            if depth > 0 && matches!(next, ',' | '}') {
                break;
            }
            self.parts += 1;
            if self.parts > MAX_PARTS {
                return Err("the pattern has too many parts".to_owned());
            }
            parts.push(match next {
                '*' => {
                    self.chars.next();
                    if self.chars.next_if_eq(&'*').is_some() { PatternPart::Super } else { PatternPart::Any }
                }
                '?' => {
                    self.chars.next();
                    PatternPart::Single
                }
                '[' => {
                    self.chars.next();
                    self.set()?
                }
                '{' => {
                    self.chars.next();
                    self.choice(depth.saturating_add(1))?
                }
                _ => match self.text(if depth > 0 { "?*[{}," } else { "?*[{" }) {
                    text if text.is_empty() => continue,
                    text => PatternPart::Text(text),
                },
            });
        }
        Ok(parts)
    }

    fn choice(&mut self, depth: usize) -> Result<PatternPart, String> {
        if depth > MAX_DEPTH {
            return Err("alternatives are nested too deeply".to_owned());
        }
        let mut alternatives = vec![self.parts(depth)?];
        while self.chars.next() == Some(',') {
            alternatives.push(self.parts(depth)?);
        }
        Ok(PatternPart::Choice(alternatives))
    }

    /// Text until one of `ends` that no `\` stands before.
    fn text(&mut self, ends: &str) -> String {
        let mut text = String::new();
        while let Some(char) = self.chars.next_if(|char| !ends.contains(*char)) {
            match char {
                '\\' => text.extend(self.chars.next()),
                char => text.push(char),
            }
        }
        text
    }

    fn set(&mut self) -> Result<PatternPart, String> {
        let end = || "unexpected end of input".to_owned();
        let not = self.chars.next_if_eq(&'!').is_some();
        let low = *self.chars.peek().ok_or_else(end)?;
        let mut after = self.chars.clone();
        after.next();
        if after.next_if_eq(&'-').is_some() {
            // One range and nothing else: `[a-z0-9]` is refused.
            self.chars = after;
            let high = self.chars.next().ok_or_else(end)?;
            self.close()?;
            if high < low {
                return Err(format!("hi character '{high}' should be greater than lo '{low}'"));
            }
            return Ok(PatternPart::Range { low, high, not });
        }
        let chars: Vec<char> = self.text("]").chars().collect();
        self.close()?;
        if chars.is_empty() { Err("could not parse range".to_owned()) } else { Ok(PatternPart::List { chars, not }) }
    }

    fn close(&mut self) -> Result<(), String> {
        match self.chars.next() {
            Some(']') => Ok(()),
            Some(_) => Err("expected close range character".to_owned()),
            None => Err("unexpected end of input".to_owned()),
        }
    }
}
