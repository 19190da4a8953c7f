//! JSON, YAML, base64, hex and URLs as text.
//!
//! Mirrors: OPA `v1/topdown/encoding.go` and `uri.go`, v1.19.0.

mod query;
pub(super) mod uri;
mod yaml;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::{Builtin, BuiltinError, Context, Outcome, boolean, failed, function, object, operand, text, wrong_type};
use crate::value::{DuplicateKeys, JsonLimits, Value, lossy, parse_json, write_json};

/// The first document of some YAML.
pub fn parse_yaml(text: &str) -> Result<Value, String> {
    yaml::parse(text).map_err(|error| error.to_string())
}

pub const TABLE: &[Builtin] = &[
    function("json.marshal", 1, |context, args| {
        let value = operand(args, 1)?;
        context.work(value.weight())?;
        Ok(Value::from(value.to_json()))
    }),
    function("json.marshal_with_options", 2, marshal_with_options),
    function("json.unmarshal", 1, |context, args| unmarshal(context, text(args, 1)?)),
    function("json.is_valid", 1, |context, args| match operand(args, 1)?.as_str() {
        Some(text) => Ok(Value::Bool(unmarshal(context, text).is_ok())),
        None => Ok(Value::Bool(false)),
    }),
    function("yaml.marshal", 1, |_, args| Ok(Value::from(yaml::marshal(operand(args, 1)?)))),
    function("yaml.unmarshal", 1, |context, args| yaml::unmarshal(context, text(args, 1)?)),
    function("yaml.is_valid", 1, |context, args| match operand(args, 1)?.as_str() {
        Some(text) => Ok(Value::Bool(yaml::unmarshal(context, text).is_ok())),
        None => Ok(Value::Bool(false)),
    }),
    function("base64.encode", 1, |_, args| Ok(Value::from(STANDARD.encode(text(args, 1)?)))),
    function("base64.decode", 1, |_, args| decoded(&STANDARD, text(args, 1)?)),
    function("base64.is_valid", 1, |_, args| match operand(args, 1)?.as_str() {
        Some(text) => Ok(Value::Bool(decoded(&STANDARD, text).is_ok())),
        None => Ok(Value::Bool(false)),
    }),
    function("base64url.encode", 1, |_, args| Ok(Value::from(URL.encode(text(args, 1)?)))),
    function("base64url.encode_no_pad", 1, |_, args| Ok(Value::from(URL_NO_PAD.encode(text(args, 1)?)))),
    function("base64url.decode", 1, base64url_decode),
    function("hex.encode", 1, |_, args| Ok(Value::from(hex(text(args, 1)?.as_bytes())))),
    function("hex.decode", 1, |_, args| {
        let given = text(args, 1)?;
        let bytes = unhex(given).ok_or_else(|| match given.chars().find(|char| !char.is_ascii_hexdigit()) {
            Some(char) => failed(format!("encoding/hex: invalid byte: U+{:04X} '{char}'", u32::from(char))),
            None => failed("encoding/hex: odd length hex string"),
        })?;
        Ok(Value::from(lossy(&bytes)))
    }),
    function("urlquery.encode", 1, |_, args| Ok(Value::from(query::escape(text(args, 1)?)))),
    function("urlquery.decode", 1, |_, args| Ok(Value::from(query::unescape(text(args, 1)?)?))),
    function("urlquery.encode_object", 1, query::encode_object),
    function("urlquery.decode_object", 1, query::decode_object),
    function("uri.parse", 1, |_, args| uri::parse(text(args, 1)?)),
    function("uri.is_valid", 1, |_, args| match operand(args, 1)?.as_str() {
        Some(text) => Ok(Value::Bool(!text.is_empty() && uri::parse(text).is_ok())),
        None => Ok(Value::Bool(false)),
    }),
];

/// Go does not mind bits that are left over.
const CONFIG: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_allow_trailing_bits(true)
    .with_decode_padding_mode(DecodePaddingMode::RequireCanonical);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
const URL: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG);
const URL_NO_PAD: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, CONFIG.with_encode_padding(false));
/// Documents that policies decode may nest this deep.
const MAX_DEPTH: usize = 1_000;

pub(super) fn unmarshal(context: &mut Context<'_>, text: &str) -> Outcome {
    context.work(text.len() / 16)?;
    let limits = JsonLimits { depth: MAX_DEPTH, duplicates: DuplicateKeys::LastWins };
    parse_json(text.as_bytes(), limits).map_err(|error| failed(error.to_string()))
}

fn decoded(engine: &GeneralPurpose, text: &str) -> Outcome {
    bytes_of(engine, text).map(|bytes| Value::from(lossy(&bytes)))
}

/// Go's decoder passes over line ends.
fn bytes_of(engine: &GeneralPurpose, text: &str) -> Result<Vec<u8>, BuiltinError> {
    let plain: String = text.chars().filter(|char| !matches!(char, '\r' | '\n')).collect();
    engine.decode(plain).map_err(|error| failed(base64_error(&error)))
}

pub(super) fn decode_base64(text: &str) -> Result<Vec<u8>, BuiltinError> {
    bytes_of(&STANDARD, text)
}

fn base64url_decode(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let given = text(args, 1)?;
    decode_base64url(given).map(|bytes| Value::from(lossy(&bytes)))
}

/// With or without padding (RFC 7515 appendix C).
pub(super) fn decode_base64url(given: &str) -> Result<Vec<u8>, BuiltinError> {
    let padding = match (given.ends_with('='), given.len() % 4) {
        (true, _) | (_, 0) => "",
        (_, 2) => "==",
        (_, 3) => "=",
        _ => return Err(failed(format!("illegal base64url string: {given}"))),
    };
    URL.decode(format!("{given}{padding}")).map_err(|error| failed(base64_error(&error)))
}

/// Two small digits for each byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digits: Option<Vec<u8>> =
        text.chars().map(|char| char.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    Some(digits?.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

fn marshal_with_options(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let value = operand(args, 1)?;
    let (mut prefix, mut indent) = (String::new(), "\t".to_owned());
    let (mut implied, mut wanted) = (false, None);
    for (key, option) in object(args, 2)?.iter() {
        let text = |option: &Value| {
            option.as_str().map(str::to_owned).ok_or_else(|| {
                BuiltinError::Operand(format!("operand 2 key {} failed cast to string", key.as_str().unwrap_or("")))
            })
        };
        match key.as_str() {
            Some("prefix") => {
                prefix = text(option)?;
                implied = true;
            }
            Some("indent") => {
                indent = text(option)?;
                implied = true;
            }
            Some("pretty") => {
                wanted = Some(
                    boolean(&[option], 1)
                        .map_err(|_| BuiltinError::Operand("operand 2 key pretty failed cast to bool".to_owned()))?,
                );
            }
            Some(other) => {
                return Err(BuiltinError::Operand(format!(
                    "operand 2 object contained unknown key {}",
                    crate::value::quoted(other)
                )));
            }
            None => return Err(wrong_type(2, key, &["string"])),
        }
    }
    let mut out = String::new();
    if wanted.unwrap_or(implied) {
        out.push_str(&prefix);
        pretty(value, &prefix, &indent, 0, &mut out);
    } else {
        write_json(value, &mut out);
    }
    Ok(Value::from(out))
}

fn pretty(value: &Value, prefix: &str, indent: &str, depth: usize, out: &mut String) {
    let line = |depth: usize| format!("\n{prefix}{}", indent.repeat(depth));
    let inner = depth.saturating_add(1);
    let items: Vec<&Value> = match value {
        Value::Array(items) if !items.is_empty() => items.iter().collect(),
        Value::Set(set) if !set.is_empty() => set.iter().collect(),
        Value::Object(object) if !object.is_empty() => {
            out.push('{');
            for (at, (key, value)) in object.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                out.push_str(&line(inner));
                let key = if key.as_str().is_some() { key.clone() } else { Value::from(key.to_json()) };
                write_json(&key, out);
                out.push_str(": ");
                pretty(value, prefix, indent, inner, out);
            }
            out.push_str(&line(depth));
            out.push('}');
            return;
        }
        scalar => return write_json(scalar, out),
    };
    out.push('[');
    for (at, item) in items.into_iter().enumerate() {
        out.push_str(if at > 0 { "," } else { "" });
        out.push_str(&line(inner));
        pretty(item, prefix, indent, inner, out);
    }
    out.push_str(&line(depth));
    out.push(']');
}

/// Go's words for text that is no base64.
fn base64_error(error: &base64::DecodeError) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        base64::DecodeError::InvalidLength(len) => *len,
        base64::DecodeError::InvalidPadding => 0,
    };
    format!("illegal base64 data at input byte {at}")
}
