//! A JSON reader that answers as Go's `encoding/json` with `UseNumber` does, since that is what policies were written for.
//!
//! Own code, because the differences are visible to a policy: a lone surrogate or bad UTF-8 becomes U+FFFD instead of
//! an error, the last of two equal keys wins (or both are refused, for tokens), and numbers outside f64 are kept.
//! Depth and number length are bounded, so that a hostile body costs no more than its bytes.

use ahash::AHashMap;

use super::{Number, Object, Text, Value, lossy};

/// The longest spelling of one number. Turning digits into a big integer is quadratic, so the length is bounded.
pub const MAX_NUMBER_BYTES: usize = 1_024;
/// Strings up to this length are kept once for a whole document.
const MAX_SHARED_BYTES: usize = 64;
/// Distinct strings that are remembered for that.
const MAX_SHARED: usize = 100_000;

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
    let mut reader = Reader { text, at: 0, limits, shared: AHashMap::new() };
    reader.skip_space();
    let value = reader.value(0)?;
    reader.skip_space();
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(JsonError::Trailing(reader.at)),
    }
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    limits: JsonLimits,
    shared: AHashMap<String, Text>,
}

impl Reader<'_> {
    /// The text, shared with equal ones of this document. Small documents are not worth the looking up.
    fn share(&mut self, text: String) -> Text {
        if self.text.len() < 64 << 10 || text.len() > MAX_SHARED_BYTES {
            return Text::from(text);
        }
        if let Some(known) = self.shared.get(&text) {
            return known.clone();
        }
        let made = Text::from(text.as_str());
        if self.shared.len() < MAX_SHARED {
            self.shared.insert(text, made.clone());
        }
        made
    }

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
            Some(b'"') => {
                let text = self.string()?;
                Ok(Value::String(self.share(text)))
            }
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
        let mut members = Vec::new();
        self.step();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.step();
            return self.finish(members);
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return self.unexpected();
            }
            let key = self.string()?;
            let key = Value::String(self.share(key));
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            let value = self.value(depth)?;
            members.push((key, value));
            self.skip_space();
            match self.peek() {
                Some(b',') => self.step(),
                Some(b'}') => {
                    self.step();
                    return self.finish(members);
                }
                _ => return self.unexpected(),
            }
        }
    }

    fn finish(&self, members: Vec<(Value, Value)>) -> Result<Value, JsonError> {
        let count = members.len();
        let object = Object::new(members);
        if object.len() < count && self.limits.duplicates == DuplicateKeys::Refuse {
            return Err(JsonError::Duplicate(self.at));
        }
        Ok(Value::Object(object.into()))
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        self.step();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.step();
            return Ok(Value::array(items));
        }
        loop {
            self.skip_space();
            items.push(self.value(depth)?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.step(),
                Some(b']') => {
                    self.step();
                    items.shrink_to_fit();
                    return Ok(Value::array(items));
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
        let short = spelling.filter(|spelling| spelling.len() <= MAX_NUMBER_BYTES);
        short.and_then(Number::parse).map(Value::Number).ok_or(JsonError::NumberTooLarge(start))
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

impl Value {
    /// The JSON text as Go's `encoding/json` writes it: no white space, `<`, `>`, `&` and the line separators escaped.
    /// Sets become arrays, and keys that are no strings become their JSON text.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        write_json(self, &mut out);
        out
    }
}

/// Appends the JSON text of `value` to `out`.
pub fn write_json(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(it) => out.push_str(if *it { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => write_items(items.iter(), out),
        Value::Set(set) => write_items(set.iter(), out),
        Value::Object(object) => {
            out.push('{');
            for (at, (key, value)) in object.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                match key {
                    Value::String(text) => write_string(text, out),
                    other => write_string(&other.to_json(), out),
                }
                out.push(':');
                write_json(value, out);
            }
            out.push('}');
        }
    }
}

fn write_items<'a>(items: impl Iterator<Item = &'a Value>, out: &mut String) {
    out.push('[');
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_json(item, out);
    }
    out.push(']');
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut rest = text;
    // Most text needs no escape, and is copied as it is; U+2028 and U+2029 begin with the byte 0xe2.
    while let Some(at) =
        rest.bytes().position(|byte| byte < 0x20 || matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&' | 0xe2))
    {
        let (plain, tail) = rest.split_at(at);
        out.push_str(plain);
        let mut chars = tail.chars();
        if let Some(char) = chars.next() {
            write_escaped(char, out);
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

fn write_escaped(char: char, out: &mut String) {
    match char {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
            out.push_str(&format!("\\u{:04x}", u32::from(char)));
        }
        char => out.push(char),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: JsonLimits = JsonLimits { depth: 100, duplicates: DuplicateKeys::LastWins };

    fn read(text: &[u8]) -> Result<String, JsonError> {
        parse_json(text, LIMITS).map(|value| value.to_json())
    }

    #[test]
    fn documents_read_as_go_reads_them() {
        for (name, text, want) in [
            ("object", &b" {\"a\": [1, true, null, \"x\"]} \n"[..], r#"{"a":[1,true,null,"x"]}"#),
            ("scalar", b"42", "42"),
            ("last key wins", br#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            ("big integer", b"123456789012345678901234567890", "123456789012345678901234567890"),
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
        assert_eq!(parse_json(br#"{"a":1,"a":1}"#, strict), Err(JsonError::Duplicate(13)));
    }
}
