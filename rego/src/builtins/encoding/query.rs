//! Query strings as Go's `net/url` reads and writes them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::super::{BuiltinError, CHUNK_BYTES, Context, Outcome, TextBuilder, failed, items, object, text};
use super::passing;
use crate::meter::{HEADER_BYTES, Meter as _};
use crate::value::{Value, chunks, lossy, quoted};

pub(super) fn escape(text: &str) -> String {
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

pub(super) fn unescape(context: &mut Context<'_>, text: &str) -> Result<String, BuiltinError> {
    percent_decode(context, text, true)
}

/// The first escape that is none, or that stands for a byte which is not as wanted.
pub(super) fn invalid_escape(text: &str, is_good: impl Fn(u8) -> bool) -> Option<String> {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        let escape = rest.get(at..at.saturating_add(3)).unwrap_or_else(|| rest.get(at..).unwrap_or_default());
        if !escape_code(escape).is_some_and(&is_good) {
            return Some(lossy(escape));
        }
        rest = rest.get(at.saturating_add(3)..).unwrap_or_default();
    }
    None
}

/// The byte that an escape such as `%2f` stands for.
fn escape_code(escape: &[u8]) -> Option<u8> {
    let [b'%', high, low] = escape else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

/// The decoded text, which is let go again soon: nothing stays charged for it.
pub(super) fn percent_decode(
    context: &mut Context<'_>,
    text: &str,
    plus_is_space: bool,
) -> Result<String, BuiltinError> {
    passing(context, text.len().saturating_mul(4), text.len() / 16)?;
    if let Some(escape) = invalid_escape(text, |_| true) {
        return Err(failed(format!("invalid URL escape {}", quoted(&escape))));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = rest.get(..3).and_then(escape_code);
        rest = if code.is_some() { after.get(2..).unwrap_or_default() } else { after };
        bytes.push(match byte {
            b'+' if plus_is_space => b' ',
            byte => code.unwrap_or(byte),
        });
    }
    Ok(lossy(&bytes))
}

pub(super) fn encode_object(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let refused = || BuiltinError::Operand("operand 1 values must be string, array[string], or set[string]".to_owned());
    let mut out = TextBuilder::new(context)?;
    let mut is_first = true;
    for (key, value) in object(args, 1)?.iter() {
        let key = match key {
            Value::String(text) => Cow::Borrowed(&**text),
            other => Cow::Owned(context.passing_json(other)?),
        };
        let values: Box<dyn Iterator<Item = &Value>> = match value {
            Value::String(_) => Box::new(std::iter::once(value)),
            other => items(other).ok_or_else(refused)?,
        };
        for value in values {
            let value = value.as_str().ok_or_else(refused)?;
            out.push(context, if is_first { "" } else { "&" })?;
            is_first = false;
            for (part, after) in [(&*key, "="), (value, "")] {
                for chunk in chunks(part, CHUNK_BYTES) {
                    out.reserve(context, chunk.len().saturating_mul(3))?;
                    out.text().push_str(&escape(chunk));
                }
                out.push(context, after)?;
            }
        }
    }
    out.finish(context)
}

pub(super) fn decode_object(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for pair in text(args, 1)?.split('&').filter(|pair| !pair.is_empty()) {
        if pair.contains(';') {
            return Err(failed("invalid semicolon separator in query"));
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = unescape(context, key)?;
        let value = unescape(context, value)?;
        let value = context.text(&value)?;
        context.allocate(key.len().saturating_add(2 * HEADER_BYTES))?;
        context.push(found.entry(key).or_default(), value)?;
    }
    let mut members = Vec::new();
    for (key, values) in found {
        let member = (context.text(&key)?, context.array(values)?);
        context.push_member(&mut members, member)?;
    }
    context.object(members)
}
