//! JSON, YAML, base64, hex and URLs as text.
//!
//! Mirrors: OPA `v1/topdown/encoding.go` and `uri.go`, v1.19.0.

mod query;
pub(super) mod uri;
mod yaml;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::{
    Builtin, BuiltinError, CHUNK_BYTES, Context, Outcome, TextBuilder, boolean, excerpt, failed, function, object,
    operand, text, wrong_type,
};
use crate::meter::Meter as _;
use crate::value::{
    DuplicateKeys, JsonLimits, JsonReadError, Value, chunks, json_bytes, lossy, parse_json_metered, write_value,
};

pub(super) use self::yaml::unmarshal as unmarshal_yaml;
pub use self::yaml::{DuplicateKey, parse_yaml, parse_yaml_configuration};

pub(super) const TABLE: &[Builtin] = &[
    function("json.marshal", 1, |context, args| {
        let value = operand(args, 1)?;
        let mut out = TextBuilder::new(context)?;
        let bytes = json_bytes(value, context)?;
        out.reserve(context, bytes)?;
        write_value(value, out.text(), context)?;
        out.finish(context)
    }),
    function("json.marshal_with_options", 2, marshal_with_options),
    function("json.unmarshal", 1, |context, args| unmarshal(context, text(args, 1)?)),
    function("json.is_valid", 1, |context, args| is_valid(context, args, unmarshal)),
    function("yaml.marshal", 1, |context, args| yaml::marshal(context, operand(args, 1)?)),
    function("yaml.unmarshal", 1, |context, args| yaml::unmarshal(context, text(args, 1)?)),
    function("yaml.is_valid", 1, |context, args| is_valid(context, args, yaml::unmarshal)),
    function("base64.encode", 1, |context, args| encoded(context, &STANDARD, text(args, 1)?)),
    function("base64.decode", 1, |context, args| decoded(context, &STANDARD, text(args, 1)?)),
    function("base64.is_valid", 1, |context, args| {
        is_valid(context, args, |context, text| decoded(context, &STANDARD, text))
    }),
    function("base64url.encode", 1, |context, args| encoded(context, &URL, text(args, 1)?)),
    function("base64url.encode_no_pad", 1, |context, args| encoded(context, &URL_NO_PAD, text(args, 1)?)),
    function("base64url.decode", 1, base64url_decode),
    function("hex.encode", 1, |context, args| {
        context.mapped_text(std::iter::once(text(args, 1)?), 2, |out, part| push_hex(out, part.as_bytes()))
    }),
    function("hex.decode", 1, |context, args| {
        let given = text(args, 1)?;
        passing(context, given.len().saturating_mul(2), given.len() / 16)?;
        let bytes = unhex(given).ok_or_else(|| match given.chars().find(|char| !char.is_ascii_hexdigit()) {
            Some(char) => failed(format!("encoding/hex: invalid byte: U+{:04X} '{char}'", u32::from(char))),
            None => failed("encoding/hex: odd length hex string"),
        })?;
        lossy_text(context, &bytes)
    }),
    function("urlquery.encode", 1, |context, args| {
        context.mapped_text(std::iter::once(text(args, 1)?), 3, |out, part| out.push_str(&query::escape(part)))
    }),
    function("urlquery.decode", 1, |context, args| {
        let decoded = query::unescape(context, text(args, 1)?)?;
        context.text(&decoded)
    }),
    function("urlquery.encode_object", 1, query::encode_object),
    function("urlquery.decode_object", 1, query::decode_object),
    function("uri.parse", 1, |context, args| uri::parse(context, text(args, 1)?)),
    function("uri.is_valid", 1, |context, args| {
        is_valid(context, args, |context, text| match text {
            "" => Err(failed("the text is empty")),
            text => uri::parse(context, text),
        })
    }),
];

/// A text is valid. A lack of memory to parse it is an error.
fn is_valid(context: &mut Context<'_>, args: &[&Value], read: fn(&mut Context<'_>, &str) -> Outcome) -> Outcome {
    let Some(text) = operand(args, 1)?.as_str() else { return Ok(Value::Bool(false)) };
    let before = context.held_bytes();
    let read = read(context, text);
    let made = context.held_bytes().saturating_sub(before);
    context.release(made);
    match read {
        Err(BuiltinError::Halt(error)) => Err(error.into()),
        read => Ok(Value::Bool(read.is_ok())),
    }
}

/// Checks that there is room for `bytes` that are free again soon, and counts `steps`.
pub(super) fn passing(context: &mut Context<'_>, bytes: usize, steps: usize) -> Result<(), BuiltinError> {
    context.work(steps)?;
    context.allocate(bytes)?;
    context.release(bytes);
    Ok(())
}

/// Bytes as text; what is no UTF-8 becomes three bytes for each.
pub(super) fn lossy_text(context: &mut Context<'_>, bytes: &[u8]) -> Outcome {
    match std::str::from_utf8(bytes) {
        Ok(text) => context.text(text),
        Err(_) => context.made_text(bytes.len().saturating_mul(3), || lossy(bytes)),
    }
}

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
    let limits = JsonLimits { depth: MAX_DEPTH, duplicates: DuplicateKeys::LastWins };
    parse_json_metered(text.as_bytes(), limits, context).map_err(|error| match error {
        JsonReadError::Json(error) => failed(error.to_string()),
        JsonReadError::Limit(error) => error.into(),
    })
}

fn encoded(context: &mut Context<'_>, engine: &GeneralPurpose, text: &str) -> Outcome {
    let bytes = text.len().div_ceil(3).saturating_mul(4);
    context.made_text(bytes, || engine.encode(text))
}

fn decoded(context: &mut Context<'_>, engine: &GeneralPurpose, text: &str) -> Outcome {
    let bytes = bytes_of(context, engine, text)?;
    lossy_text(context, &bytes)
}

/// Go's decoder passes over line ends.
fn bytes_of(context: &mut Context<'_>, engine: &GeneralPurpose, text: &str) -> Result<Vec<u8>, BuiltinError> {
    passing(context, text.len().saturating_mul(3), 1)?;
    let mut plain = Vec::with_capacity(text.len());
    for chunk in chunks(text, CHUNK_BYTES) {
        context.work(chunk.len() / 16)?;
        plain.extend(chunk.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')));
    }
    context.work(plain.len() / 32)?;
    engine.decode(plain).map_err(|error| failed(base64_error(&error)))
}

pub(super) fn decode_base64(context: &mut Context<'_>, text: &str) -> Result<Vec<u8>, BuiltinError> {
    bytes_of(context, &STANDARD, text)
}

fn base64url_decode(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let given = text(args, 1)?;
    passing(context, given.len().saturating_mul(3), given.len() / 64)?;
    let bytes = decode_base64url(given)?;
    lossy_text(context, &bytes)
}

/// With or without padding (RFC 7515 appendix C).
pub(super) fn decode_base64url(given: &str) -> Result<Vec<u8>, BuiltinError> {
    let padding = match (given.ends_with('='), given.len() % 4) {
        (true, _) | (_, 0) => "",
        (_, 2) => "==",
        (_, 3) => "=",
        _ => return Err(failed(format!("illegal base64url string: {}", excerpt(given)))),
    };
    URL.decode(format!("{given}{padding}")).map_err(|error| failed(base64_error(&error)))
}

/// Two small digits for each byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().saturating_mul(2));
    push_hex(&mut out, bytes);
    out
}

fn push_hex(out: &mut String, bytes: &[u8]) {
    let digits = |byte: u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0'));
    out.extend(bytes.iter().copied().flat_map(digits));
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digits: Option<Vec<u8>> =
        text.chars().map(|char| char.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    Some(digits?.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

fn marshal_with_options(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
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
    let mut out = TextBuilder::new(context)?;
    if wanted.unwrap_or(implied) {
        out.push(context, &prefix)?;
        pretty(context, value, &prefix, &indent, 0, &mut out)?;
    } else {
        push_json(context, value, &mut out)?;
    }
    out.finish(context)
}

fn push_json(context: &mut Context<'_>, value: &Value, out: &mut TextBuilder) -> Result<(), BuiltinError> {
    let bytes = json_bytes(value, context)?;
    out.reserve(context, bytes)?;
    Ok(write_value(value, out.text(), context)?)
}

fn pretty(
    context: &mut Context<'_>,
    value: &Value,
    prefix: &str,
    indent: &str,
    depth: usize,
    out: &mut TextBuilder,
) -> Result<(), BuiltinError> {
    let inner = depth.saturating_add(1);
    let line = |context: &mut Context<'_>, out: &mut TextBuilder, depth: usize| {
        out.push(context, "\n")?;
        out.push(context, prefix)?;
        out.push_repeated(context, indent, depth)
    };
    let items: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(items) if !items.is_empty() => Box::new(items.iter()),
        Value::Set(set) if !set.is_empty() => Box::new(set.iter()),
        Value::Object(object) if !object.is_empty() => {
            out.push(context, "{")?;
            for (at, (key, value)) in object.iter().enumerate() {
                out.push(context, if at > 0 { "," } else { "" })?;
                line(context, out, inner)?;
                match key {
                    Value::String(_) => push_json(context, key, out)?,
                    key => {
                        let key = Value::from(context.passing_json(key)?);
                        push_json(context, &key, out)?;
                    }
                }
                out.push(context, ": ")?;
                pretty(context, value, prefix, indent, inner, out)?;
            }
            line(context, out, depth)?;
            return Ok(out.push(context, "}")?);
        }
        scalar => return push_json(context, scalar, out),
    };
    out.push(context, "[")?;
    for (at, item) in items.enumerate() {
        out.push(context, if at > 0 { "," } else { "" })?;
        line(context, out, inner)?;
        pretty(context, item, prefix, indent, inner, out)?;
    }
    line(context, out, depth)?;
    Ok(out.push(context, "]")?)
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
