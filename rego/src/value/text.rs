//! Values and bytes as text.

use std::fmt::{self, Write as _};

use super::Value;

/// Decodes `bytes`, replacing each invalid byte by one U+FFFD, as Go does.
///
/// `String::from_utf8_lossy` merges a cut multi-byte sequence into one replacement; policies see the difference in
/// `count` and in comparisons.
pub fn lossy(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// The text in pieces of about `bytes` bytes, so that work on a long one can be counted and ended.
pub fn chunks(text: &str, bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (chunk, after) = rest.split_at(rest.ceil_char_boundary(bytes.max(1)));
        rest = after;
        Some(chunk)
    })
}

/// As OPA prints terms: JSON with spaces after commas and colons, sets in braces.
///
/// Mirrors: the `String` methods of OPA `v1/ast/term.go`, v1.19.0.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(it) => it.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::String(text) => f.write_str(&quoted(text)),
            Self::Array(items) => {
                f.write_char('[')?;
                write_list(f, items.iter())?;
                f.write_char(']')
            }
            Self::Set(set) if set.is_empty() => f.write_str("set()"),
            Self::Set(set) => {
                f.write_char('{')?;
                write_list(f, set.iter())?;
                f.write_char('}')
            }
            Self::Object(object) => {
                f.write_char('{')?;
                for (at, (key, value)) in object.iter().enumerate() {
                    let comma = if at > 0 { ", " } else { "" };
                    write!(f, "{comma}{key}: {value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn write_list<'a>(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = &'a Value>) -> fmt::Result {
    for (at, item) in items.enumerate() {
        let comma = if at > 0 { ", " } else { "" };
        write!(f, "{comma}{item}")?;
    }
    Ok(())
}

/// The text in double quotes, escaped as Go's `strconv.Quote` does.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len().saturating_add(2));
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' | '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(char))),
            '\u{80}'..='\u{a0}' | '\u{ad}' | '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(char)));
            }
            char => out.push(char),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::lossy;

    #[test]
    fn every_invalid_byte_is_replaced_alone() {
        assert_eq!(lossy(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(lossy(b"\xe2\x82"), "\u{fffd}\u{fffd}");
        assert_eq!(lossy("grün €".as_bytes()), "grün €");
    }
}
