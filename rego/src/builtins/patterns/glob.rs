//! Globs as the library `gobwas/glob` reads them.
//!
//! `*` stops at delimiters, `**` does not, `?` is one character that is no delimiter, `[a-c]` and `[!a-c]` are sets,
//! `{a,b}` is a choice, `\` takes the next character as it is. What these mean together is the library's to say: see [`gobwas`].

mod gobwas;
mod parse;

use self::gobwas::Gobwas;
pub(crate) use self::gobwas::MAX_BREADTH;
use self::parse::PatternPart;
use super::pattern::Pattern;

/// A compiled glob.
#[derive(Debug)]
pub enum Matcher {
    /// Pieces between delimiters, each with one star at most: the usual shape of paths.
    Pieces {
        delimiter: char,
        pieces: Vec<Segment>,
    },
    Gobwas(Gobwas),
    /// Patterns of very many parts.
    Regex(Pattern),
}

/// The steps of one match went over [`gobwas::MAX_STEPS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManySteps;

/// The text between two delimiters.
#[derive(Debug)]
pub struct Segment {
    before: String,
    /// The pattern after the star, if there is one.
    after: Option<String>,
}

impl Matcher {
    pub fn new(pattern: &str, delimiters: &[char]) -> Result<Self, String> {
        if let [delimiter] = delimiters
            && !pattern.contains(['?', '[', '{', '\\'])
            && !pattern.contains("**")
        {
            let pieces: Vec<Segment> = pattern
                .split(*delimiter)
                .map(|piece| match piece.split_once('*') {
                    Some((before, after)) => Segment { before: before.to_owned(), after: Some(after.to_owned()) },
                    None => Segment { before: piece.to_owned(), after: None },
                })
                .collect();
            if pieces.iter().all(|piece| piece.after.as_ref().is_none_or(|after| !after.contains('*'))) {
                return Ok(Self::Pieces { delimiter: *delimiter, pieces });
            }
        }
        let parts = parse::parse(pattern)?;
        if gobwas::breadth(&parts) <= gobwas::MAX_BREADTH {
            return Ok(Self::Gobwas(Gobwas::new(&parts, delimiters)));
        }
        if parts.iter().any(|part| matches!(part, PatternPart::Choice(_))) {
            return Err("the pattern has too many parts".to_owned());
        }
        Ok(Self::Regex(Pattern::untrusted(&translated(&parts, delimiters))?))
    }

    /// Matches the subject, and counts the steps beside those for looking at it once. Patterns of the kind `Regex` are matched
    /// by their own bounds.
    pub fn is_match(&self, subject: &str) -> (Result<bool, TooManySteps>, usize) {
        match self {
            Self::Regex(_) => (Err(TooManySteps), 0),
            Self::Gobwas(glob) => glob.is_match(subject),
            Self::Pieces { delimiter, pieces } => {
                let mut found = subject.split(*delimiter);
                let fits = pieces.iter().all(|piece| found.next().is_some_and(|text| piece.is_match(text)));
                (Ok(fits && found.next().is_none()), 0)
            }
        }
    }
}

impl Segment {
    fn is_match(&self, text: &str) -> bool {
        match &self.after {
            None => text == self.before,
            Some(after) => text.strip_prefix(self.before.as_str()).is_some_and(|rest| rest.ends_with(after.as_str())),
        }
    }
}

/// The text that everything that the glob matches begins with.
pub(crate) fn literal_prefix(pattern: &str) -> &str {
    let end = pattern.find(['*', '?', '[', ']', '{', '}', ',', '\\']).unwrap_or(pattern.len());
    pattern.get(..end).unwrap_or("")
}

/// The regular expression for a pattern without choices.
fn translated(parts: &[PatternPart], delimiters: &[char]) -> String {
    let literal = |char: &char| format!(r"\u{{{:x}}}", u32::from(*char));
    let one = if delimiters.is_empty() {
        "(?s:.)".to_owned()
    } else {
        format!("[^{}]", delimiters.iter().map(literal).collect::<String>())
    };
    let mut out = r"\A(?:".to_owned();
    for part in parts {
        match part {
            PatternPart::Any => out.push_str(&format!("{one}*")),
            PatternPart::Super => out.push_str("(?s:.)*"),
            PatternPart::Single => out.push_str(&one),
            PatternPart::Text(text) => out.push_str(&regex::escape(text)),
            PatternPart::List { chars, not } => {
                let not = if *not { "^" } else { "" };
                out.push_str(&format!("[{not}{}]", chars.iter().map(literal).collect::<String>()));
            }
            PatternPart::Range { low, high, not } => {
                let not = if *not { "^" } else { "" };
                out.push_str(&format!("[{not}{}-{}]", literal(low), literal(high)));
            }
            PatternPart::Choice(_) | PatternPart::Nothing => {}
        }
    }
    out + r")\z"
}

pub(super) fn quote(text: &str) -> String {
    let mut out = String::new();
    for char in text.chars() {
        if "*?\\[]{}".contains(char) {
            out.push('\\');
        }
        out.push(char);
    }
    out
}
