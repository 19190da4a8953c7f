//! A JSON reader that answers as Go's `encoding/json` with `UseNumber` does, since that is what policies were written for.
//!
//! Own code, because the differences are visible to a policy: a lone surrogate or bad UTF-8 becomes U+FFFD instead of
//! an error, the last of two equal keys wins (or both are refused, for tokens), and numbers outside f64 are kept.
//! Depth and number length are bounded, so that a hostile body costs no more than its bytes.

use std::collections::BTreeMap;

use super::{Value, lossy};

/// The longest spelling of one number. Turning digits into a big integer is quadratic, so the length is bounded.
pub const MAX_NUMBER_BYTES: usize = 1_024;
/// The largest decimal exponent that is kept exactly; beyond it a number is refused.
const MAX_EXPONENT: i64 = 1_000;
/// Numbers of one document that may be too large for a machine word: each costs many times its bytes.
const MAX_BIG_NUMBERS: u32 = 1_000;

/// What to do about two members of one object with the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DuplicateKeys {
    LastWins,
    Refuse,
}

/// The bounds of one document.
#[derive(Clone, Copy, Debug)]
pub struct JsonLimits {
    pub depth: usize,
    pub duplicates: DuplicateKeys,
}

/// Why a text is not an acceptable JSON document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    #[error("unexpected end of JSON input")]
    End,
    #[error("invalid character at byte {0}")]
    Character(usize),
    #[error("invalid number at byte {0}")]
    Number(usize),
    #[error("number at byte {0} is too large to keep")]
    NumberTooLarge(usize),
    #[error("more than one JSON value, the second at byte {0}")]
    Trailing(usize),
    #[error("nested deeper than {0} levels")]
    Depth(usize),
    #[error("an object has the same member twice, the second at byte {0}")]
    Duplicate(usize),
}

/// Reads one JSON document, with white space around it.
pub fn parse_json(text: &[u8], limits: JsonLimits) -> Result<Value, JsonError> {
    let mut reader = Reader { text, at: 0, limits, big_numbers: 0 };
    reader.skip_space();
    let value = reader.value(0)?;
    reader.skip_space();
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(JsonError::Trailing(reader.at)),
    }
}

/// A number from its JSON spelling, or nothing when it cannot be held.
pub(super) fn number(spelling: &str) -> Option<Value> {
    if let Ok(small) = spelling.parse::<i64>()
        && spelling != "-0"
    {
        return Some(Value::from(small));
    }
    if spelling.len() > MAX_NUMBER_BYTES {
        return None;
    }
    if spelling.contains(['.', 'e', 'E']) {
        match spelling.parse::<f64>() {
            Ok(float) if float.is_finite() => return Some(Value::from(float)),
            _ => {}
        }
        let exponent = spelling.split(['e', 'E']).nth(1)?.parse::<i64>().ok()?;
        if exponent > MAX_EXPONENT {
            return None;
        }
    }
    Value::from_numeric_string(spelling).ok()
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    limits: JsonLimits,
    big_numbers: u32,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn step(&mut self) {
        self.at = self.at.saturating_add(1);
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.step();
        }
    }

    fn unexpected<T>(&self) -> Result<T, JsonError> {
        match self.peek() {
            None => Err(JsonError::End),
            Some(_) => Err(JsonError::Character(self.at)),
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.peek() == Some(byte) {
            self.step();
            return Ok(());
        }
        self.unexpected()
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        match self.peek() {
            Some(b'{' | b'[') if depth >= self.limits.depth => Err(JsonError::Depth(self.limits.depth)),
            Some(b'{') => self.object(depth.saturating_add(1)),
            Some(b'[') => self.array(depth.saturating_add(1)),
            Some(b'"') => Ok(Value::from(self.string()?)),
            Some(b't') => self.word(b"true", Value::Bool(true)),
            Some(b'f') => self.word(b"false", Value::Bool(false)),
            Some(b'n') => self.word(b"null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.unexpected(),
        }
    }

    fn word(&mut self, word: &[u8], value: Value) -> Result<Value, JsonError> {
        for &byte in word {
            self.expect(byte)?;
        }
        Ok(value)
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut members = BTreeMap::new();
        self.step();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.step();
            return Ok(Value::from(members));
        }
        loop {
            self.skip_space();
            let start = self.at;
            if self.peek() != Some(b'"') {
                return self.unexpected();
            }
            let key = Value::from(self.string()?);
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            let value = self.value(depth)?;
            if members.insert(key, value).is_some() && self.limits.duplicates == DuplicateKeys::Refuse {
                return Err(JsonError::Duplicate(start));
            }
            self.skip_space();
            match self.peek() {
                Some(b',') => self.step(),
                Some(b'}') => {
                    self.step();
                    return Ok(Value::from(members));
                }
                _ => return self.unexpected(),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        self.step();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.step();
            return Ok(Value::from(items));
        }
        loop {
            self.skip_space();
            items.push(self.value(depth)?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.step(),
                Some(b']') => {
                    self.step();
                    return Ok(Value::from(items));
                }
                _ => return self.unexpected(),
            }
        }
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.step();
        }
        match self.peek() {
            Some(b'0') => self.step(),
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.unexpected(),
        }
        if self.peek() == Some(b'.') {
            self.step();
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.step();
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.step();
            }
            self.some_digits()?;
        }
        let spelling = self.text.get(start..self.at).and_then(|bytes| std::str::from_utf8(bytes).ok());
        let value = spelling.and_then(number).ok_or(JsonError::NumberTooLarge(start))?;
        if matches!(&value, Value::Number(number) if number.as_i64().is_none() && number.as_f64().is_none()) {
            self.big_numbers = self.big_numbers.saturating_add(1);
            if self.big_numbers > MAX_BIG_NUMBERS {
                return Err(JsonError::NumberTooLarge(start));
            }
        }
        Ok(value)
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.step();
        }
    }

    fn some_digits(&mut self) -> Result<(), JsonError> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return self.unexpected();
        }
        self.digits();
        Ok(())
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.step();
        let mut out = String::new();
        loop {
            let start = self.at;
            while !matches!(self.peek(), None | Some(b'"' | b'\\' | 0x00..=0x1f)) {
                self.step();
            }
            let run = self.text.get(start..self.at).unwrap_or_default();
            match std::str::from_utf8(run) {
                Ok(text) => out.push_str(text),
                Err(_) => out.push_str(&lossy(run)),
            }
            match self.peek() {
                Some(b'"') => {
                    self.step();
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.step();
                    out.push(self.escape()?);
                }
                _ => return self.unexpected(),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let plain = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.step();
                return self.unicode_escape();
            }
            _ => return self.unexpected(),
        };
        self.step();
        Ok(plain)
    }

    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let first = self.hex4()?;
        if let Some(plain) = char::from_u32(first) {
            return Ok(plain);
        }
        // A high surrogate pairs only with a low one that follows at once; anything else stands alone as U+FFFD.
        let here = self.at;
        if (0xd800..0xdc00).contains(&first) && self.text.get(here..).is_some_and(|rest| rest.starts_with(b"\\u")) {
            self.at = here.saturating_add(2);
            let second = self.hex4()?;
            if (0xdc00..0xe000).contains(&second) {
                let joined = 0x10000 + ((first & 0x3ff) << 10) + (second & 0x3ff);
                return Ok(char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = here;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            match digit {
                Some(digit) => code = (code << 4) | digit,
                None => return self.unexpected(),
            }
            self.step();
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::json_text;

    const LIMITS: JsonLimits = JsonLimits { depth: 100, duplicates: DuplicateKeys::LastWins };

    fn read(text: &[u8]) -> Result<String, JsonError> {
        parse_json(text, LIMITS).map(|value| json_text(&value))
    }

    #[test]
    fn documents_read_as_go_reads_them() {
        for (name, text, want) in [
            ("object", &b" {\"a\": [1, true, null, \"x\"]} \n"[..], r#"{"a":[1,true,null,"x"]}"#),
            ("scalar", b"42", "42"),
            ("last key wins", br#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            ("big integer", b"123456789012345678901234567890", "1.2345678901234568e+29"),
            ("escapes", br#""\u00e9\n\/\\""#, "\"\u{e9}\\n/\\\\\""),
            ("surrogate pair", br#""\ud83d\ude00""#, "\"\u{1f600}\""),
            ("lone high surrogate", br#""\ud83dx""#, "\"\u{fffd}x\""),
            ("high surrogate, then a letter", br#""\ud83d\u0041""#, "\"\u{fffd}A\""),
            ("invalid UTF-8", b"\"\xe2\x82\"", "\"\u{fffd}\u{fffd}\""),
        ] {
            assert_eq!(read(text).as_deref(), Ok(want), "{name}");
        }
    }

    #[test]
    fn malformed_documents_are_refused() {
        for (name, text) in [
            ("nothing", &b""[..]),
            ("only space", b"  "),
            ("cut object", b"{\"a\":"),
            ("two documents", b"{} {}"),
            ("leading zero", b"01"),
            ("trailing comma", b"[1,]"),
            ("control character", b"\"\x01\""),
            ("byte order mark", b"\xef\xbb\xbf{}"),
            ("bare word", b"nul"),
            ("single quotes", b"'a'"),
            ("lone minus", b"-"),
            ("dot without digits", b"1."),
            ("endless exponent", b"1e999999999999"),
            ("exponent too large to keep", b"1e1000000000"),
        ] {
            assert!(read(text).is_err(), "{name}");
        }
    }

    #[test]
    fn depth_and_number_length_are_bounded() {
        let deep = [b"[".repeat(101), b"]".repeat(101)].concat();
        assert_eq!(read(&deep), Err(JsonError::Depth(100)));
        let at_the_bound = [b"[".repeat(100), b"]".repeat(100)].concat();
        assert!(read(&at_the_bound).is_ok());
        assert_eq!(read(&b"9".repeat(MAX_NUMBER_BYTES + 1)), Err(JsonError::NumberTooLarge(0)));
    }

    #[test]
    fn duplicates_are_refused_when_asked() {
        let strict = JsonLimits { duplicates: DuplicateKeys::Refuse, ..LIMITS };
        assert_eq!(parse_json(br#"{"a":1,"a":1}"#, strict), Err(JsonError::Duplicate(7)));
    }
}
