//! A JSON reader that answers as Go's `encoding/json` with `UseNumber` does, since that is what policies were written for.
//!
//! Own code, because the differences are visible to a policy: a lone surrogate or bad UTF-8 becomes U+FFFD instead of
//! an error, the last of two equal keys wins (or both are refused, for tokens), and numbers outside f64 are kept.
//! Depth and number length are bounded, so that a hostile body costs no more than its bytes.

use ahash::AHashMap;

use super::{Number, Object, Text, Value, chunks, lossy, metered};
use crate::meter::{HEADER_BYTES, ITEM_BYTES, MEMBER_BYTES, Meter, Unmetered};

/// The longest spelling of one number. Turning digits into a big integer is quadratic, so the length is bounded.
pub const MAX_NUMBER_BYTES: usize = 1_024;
/// Bytes of a string that are read or written at once.
const MAX_RUN_BYTES: usize = 64 << 10;
/// Strings up to this length are kept once for a whole document.
const MAX_SHARED_BYTES: usize = 64;
/// Distinct strings that are remembered for that.
const MAX_SHARED: usize = 100_000;
/// The memory of one member: its key, its value, and the table while it grows.
const SHARED_BYTES: usize = 256;

/// The treatment of two members of one object with the same name.
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

/// Why a text was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonReadError<E> {
    /// The text is no acceptable document.
    Json(JsonError),
    /// The meter refused to go on.
    Limit(E),
}

impl<E> From<JsonError> for JsonReadError<E> {
    fn from(error: JsonError) -> Self {
        Self::Json(error)
    }
}

/// Reads one JSON document, with white space around it.
///
/// # Errors
/// The text is no acceptable document.
pub fn parse_json(text: &[u8], limits: JsonLimits) -> Result<Value, JsonError> {
    parse_json_metered(text, limits, &mut Unmetered).map_err(|error| match error {
        JsonReadError::Json(error) => error,
        JsonReadError::Limit(never) => match never {},
    })
}

/// Reads one JSON document; its values are charged to `meter`.
///
/// # Errors
/// The text is no acceptable document, or the meter refused to go on.
pub fn parse_json_metered<M: Meter>(
    text: &[u8],
    limits: JsonLimits,
    meter: &mut M,
) -> Result<Value, JsonReadError<M::Error>> {
    let mut reader = Reader { text, at: 0, limits, shared: AHashMap::new(), meter };
    reader.skip_space();
    let value = reader.value(0)?;
    reader.skip_space();
    let held = reader.shared.len().saturating_mul(SHARED_BYTES);
    reader.meter.release(held);
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(JsonError::Trailing(reader.at).into()),
    }
}

struct Reader<'a, M> {
    text: &'a [u8],
    at: usize,
    limits: JsonLimits,
    shared: AHashMap<String, Text>,
    meter: &'a mut M,
}

type Read<T, M> = Result<T, JsonReadError<<M as Meter>::Error>>;

impl<M: Meter> Reader<'_, M> {
    /// Charges `bytes` and counts the step that needs them.
    fn charge(&mut self, bytes: usize) -> Read<(), M> {
        self.meter.work(1).map_err(JsonReadError::Limit)?;
        self.meter.allocate(bytes).map_err(JsonReadError::Limit)
    }

    /// The text, shared with equal ones of this document. Small documents are not worth the looking up.
    fn share(&mut self, text: String, charged: usize) -> Read<Text, M> {
        if self.text.len() < 64 << 10 || text.len() > MAX_SHARED_BYTES {
            let made = Text::from(text);
            self.meter.release(charged.saturating_sub(made.len()));
            return Ok(made);
        }
        self.meter.release(charged);
        if let Some(known) = self.shared.get(&text) {
            self.meter.release(HEADER_BYTES);
            return Ok(known.clone());
        }
        let made = Text::from(text.as_str());
        if self.shared.len() < MAX_SHARED {
            self.meter.allocate(SHARED_BYTES).map_err(JsonReadError::Limit)?;
            self.shared.insert(text, made.clone());
        }
        Ok(made)
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

    fn unexpected<T>(&self) -> Read<T, M> {
        match self.peek() {
            None => Err(JsonError::End.into()),
            Some(_) => Err(JsonError::Character(self.at).into()),
        }
    }

    fn expect(&mut self, byte: u8) -> Read<(), M> {
        if self.peek() == Some(byte) {
            self.step();
            return Ok(());
        }
        self.unexpected()
    }

    fn value(&mut self, depth: usize) -> Read<Value, M> {
        match self.peek() {
            Some(b'{' | b'[') if depth >= self.limits.depth => Err(JsonError::Depth(self.limits.depth).into()),
            Some(b'{') => self.object(depth.saturating_add(1)),
            Some(b'[') => self.array(depth.saturating_add(1)),
            Some(b'"') => {
                let (text, charged) = self.string()?;
                Ok(Value::String(self.share(text, charged)?))
            }
            Some(b't') => self.word(b"true", Value::Bool(true)),
            Some(b'f') => self.word(b"false", Value::Bool(false)),
            Some(b'n') => self.word(b"null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.unexpected(),
        }
    }

    fn word(&mut self, word: &[u8], value: Value) -> Read<Value, M> {
        for &byte in word {
            self.expect(byte)?;
        }
        Ok(value)
    }

    fn object(&mut self, depth: usize) -> Read<Value, M> {
        self.charge(HEADER_BYTES)?;
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
            let (key, charged) = self.string()?;
            let key = Value::String(self.share(key, charged)?);
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            let value = self.value(depth)?;
            self.charge(MEMBER_BYTES)?;
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

    fn finish(&mut self, members: Vec<(Value, Value)>) -> Read<Value, M> {
        let count = members.len();
        let made = metered::object(self.meter, members).map_err(JsonReadError::Limit)?;
        self.meter.release(count.saturating_mul(MEMBER_BYTES - 2 * size_of::<Value>()));
        if made.as_object().map_or(0, Object::len) < count && self.limits.duplicates == DuplicateKeys::Refuse {
            return Err(JsonError::Duplicate(self.at).into());
        }
        Ok(made)
    }

    fn array(&mut self, depth: usize) -> Read<Value, M> {
        self.charge(HEADER_BYTES)?;
        let mut items = Vec::new();
        self.step();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.step();
            return Ok(Value::array(items));
        }
        loop {
            self.skip_space();
            let item = self.value(depth)?;
            self.charge(ITEM_BYTES)?;
            items.push(item);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.step(),
                Some(b']') => {
                    self.step();
                    items.shrink_to_fit();
                    self.meter.release(items.len().saturating_mul(ITEM_BYTES - size_of::<Value>()));
                    return Ok(Value::array(items));
                }
                _ => return self.unexpected(),
            }
        }
    }

    fn number(&mut self) -> Read<Value, M> {
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
        let Some(short) = spelling.filter(|spelling| spelling.len() <= MAX_NUMBER_BYTES) else {
            return Err(JsonError::NumberTooLarge(start).into());
        };
        let number = Number::parse(short).ok_or(JsonError::NumberTooLarge(start))?;
        if number.as_i64().is_none() {
            let len = short.len();
            self.meter.work(len / 8).map_err(JsonReadError::Limit)?;
            self.charge(len.saturating_add(HEADER_BYTES))?;
        }
        Ok(Value::Number(number))
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.step();
        }
    }

    fn some_digits(&mut self) -> Read<(), M> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return self.unexpected();
        }
        self.digits();
        Ok(())
    }

    /// The text, and how many bytes were charged for it besides its header.
    fn string(&mut self) -> Read<(String, usize), M> {
        self.charge(HEADER_BYTES)?;
        self.step();
        let mut out = String::new();
        let mut charged = 0usize;
        loop {
            let start = self.at;
            let end = start.saturating_add(MAX_RUN_BYTES);
            while self.at < end && !matches!(self.peek(), None | Some(b'"' | b'\\' | 0x00..=0x1f)) {
                self.step();
            }
            let run = self.text.get(start..self.at).unwrap_or_default();
            let text = match std::str::from_utf8(run) {
                Ok(text) => Some(text),
                // A run may end within a character: the rest of it belongs to the next one.
                Err(error) if self.at == end && error.error_len().is_none() => {
                    self.at = start.saturating_add(error.valid_up_to());
                    run.get(..error.valid_up_to()).and_then(|run| std::str::from_utf8(run).ok())
                }
                Err(_) => None,
            };
            // The string grows by doubling, and is copied once it is complete; a byte that is no UTF-8 becomes three.
            let needed = text.map_or(run.len().saturating_mul(9), |text| text.len().saturating_mul(3));
            self.meter.work(run.len() / 64).map_err(JsonReadError::Limit)?;
            self.charge(needed)?;
            charged = charged.saturating_add(needed);
            match text {
                Some(text) => out.push_str(text),
                None => out.push_str(&lossy(run)),
            }
            match self.peek() {
                Some(b'"') => {
                    self.step();
                    return Ok((out, charged));
                }
                Some(b'\\') => {
                    self.step();
                    self.charge(12)?;
                    charged = charged.saturating_add(12);
                    out.push(self.escape()?);
                }
                Some(0x20..) if self.at > start => {}
                _ => return self.unexpected(),
            }
        }
    }

    fn escape(&mut self) -> Read<char, M> {
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

    fn unicode_escape(&mut self) -> Read<char, M> {
        let first = self.hex4()?;
        if let Some(plain) = char::from_u32(first) {
            return Ok(plain);
        }
        // A high surrogate pairs only with a low one that follows at once; any other becomes U+FFFD.
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

    fn hex4(&mut self) -> Read<u32, M> {
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
    let Ok(()) = write_value(value, out, &mut Unmetered);
}

/// Appends the JSON text of `value` to `out`, which is charged already; the work is counted.
pub(crate) fn write_value<M: Meter>(value: &Value, out: &mut String, meter: &mut M) -> Result<(), M::Error> {
    meter.work(1)?;
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(it) => out.push_str(if *it { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => write_string(text, out, meter)?,
        Value::Array(items) => write_items(items.iter(), out, meter)?,
        Value::Set(set) => write_items(set.iter(), out, meter)?,
        Value::Object(object) => {
            out.push('{');
            for (at, (key, value)) in object.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                match key {
                    Value::String(text) => write_string(text, out, meter)?,
                    other => {
                        let mut key = String::new();
                        write_value(other, &mut key, meter)?;
                        write_string(&key, out, meter)?;
                    }
                }
                out.push(':');
                write_value(value, out, meter)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn write_items<'a, M: Meter>(
    items: impl Iterator<Item = &'a Value>,
    out: &mut String,
    meter: &mut M,
) -> Result<(), M::Error> {
    out.push('[');
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_value(item, out, meter)?;
    }
    out.push(']');
    Ok(())
}

/// JSON escapes this byte; U+2028 and U+2029 begin with 0xe2.
fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || matches!(byte, b'"' | b'\\' | b'<' | b'>' | b'&' | 0xe2)
}

fn write_string<M: Meter>(text: &str, out: &mut String, meter: &mut M) -> Result<(), M::Error> {
    out.push('"');
    for chunk in chunks(text, MAX_RUN_BYTES) {
        meter.work(chunk.len() / 64)?;
        let mut rest = chunk;
        // Most text needs no escape, and is copied as it is.
        while let Some(at) = rest.bytes().position(is_escaped) {
            let (plain, tail) = rest.split_at(at);
            out.push_str(plain);
            let mut chars = tail.chars();
            if let Some(char) = chars.next() {
                write_escaped(char, out);
            }
            rest = chars.as_str();
        }
        out.push_str(rest);
    }
    out.push('"');
    Ok(())
}

/// At least as many bytes as the JSON text of `value` has, and while it is written.
pub fn json_bytes<M: Meter>(value: &Value, meter: &mut M) -> Result<usize, M::Error> {
    meter.work(1)?;
    Ok(match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(number) => number.text_bytes(),
        Value::String(text) => {
            let mut bytes = 2usize;
            for chunk in chunks(text, MAX_RUN_BYTES) {
                meter.work(chunk.len() / 64)?;
                let escaped = chunk.bytes().filter(|&byte| is_escaped(byte)).count();
                bytes = bytes.saturating_add(chunk.len()).saturating_add(escaped.saturating_mul(5));
            }
            bytes
        }
        Value::Array(items) => list_bytes(items.iter(), meter)?,
        Value::Set(set) => list_bytes(set.iter(), meter)?,
        Value::Object(object) => {
            let mut bytes = 2usize;
            for (key, value) in object.iter() {
                let key_bytes = json_bytes(key, meter)?;
                // A key that is no string is written for itself, and then as a string.
                let key_bytes = if key.as_str().is_some() { key_bytes } else { key_bytes.saturating_mul(8) };
                bytes = bytes.saturating_add(key_bytes).saturating_add(json_bytes(value, meter)?).saturating_add(2);
            }
            bytes
        }
    })
}

fn list_bytes<'a, M: Meter>(items: impl Iterator<Item = &'a Value>, meter: &mut M) -> Result<usize, M::Error> {
    let mut bytes = 2usize;
    for item in items {
        bytes = bytes.saturating_add(json_bytes(item, meter)?).saturating_add(1);
    }
    Ok(bytes)
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
mod tests;
