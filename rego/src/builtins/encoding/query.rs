//! Query strings as Go's `net/url` reads and writes them.

use std::collections::BTreeMap;

use super::super::{BuiltinError, Context, Outcome, failed, items, object, text};
use crate::value::{Value, lossy, quoted};

pub fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

pub fn unescape(text: &str) -> Result<String, BuiltinError> {
    percent_decode(text, true)
}

pub fn percent_decode(text: &str, plus_is_space: bool) -> Result<String, BuiltinError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let code = digits
                    .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok());
                let Some(code) = code else {
                    let shown: String = std::iter::once('%').chain(lossy(after).chars().take(2)).collect();
                    return Err(failed(format!("invalid URL escape {}", quoted(&shown))));
                };
                bytes.push(code);
                rest = after.get(2..).unwrap_or_default();
            }
            b'+' if plus_is_space => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    Ok(lossy(&bytes))
}

pub fn encode_object(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let refused = || BuiltinError::Operand("operand 1 values must be string, array[string], or set[string]".to_owned());
    let mut parts = Vec::new();
    for (key, value) in object(args, 1)?.iter() {
        let key = key.as_str().map_or_else(|| key.to_json(), str::to_owned);
        let values: Vec<&Value> = match value {
            Value::String(_) => vec![value],
            other => items(other).ok_or_else(refused)?.collect(),
        };
        for value in values {
            let value = value.as_str().ok_or_else(refused)?;
            parts.push(format!("{}={}", escape(&key), escape(value)));
        }
    }
    Ok(Value::from(parts.join("&")))
}

pub fn decode_object(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for pair in text(args, 1)?.split('&').filter(|pair| !pair.is_empty()) {
        if pair.contains(';') {
            return Err(failed("invalid semicolon separator in query"));
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        found.entry(unescape(key)?).or_default().push(Value::from(unescape(value)?));
    }
    Ok(Value::object(found.into_iter().map(|(key, values)| (Value::from(key), Value::array(values))).collect()))
}
