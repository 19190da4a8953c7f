//! Amounts with units, versions, UUIDs and what the running program says of itself.
//!
//! Mirrors: OPA `v1/topdown/{parse_units,parse_bytes,semver,uuid,runtime}.go` and `internal/{semver,uuid}`, v1.19.0.

use std::cmp::Ordering;

use num_bigint::BigInt;
use num_integer::Integer;
use num_traits::{Signed, Zero, pow};

use super::arithmetic::conversion;
use super::{Builtin, BuiltinError, Context, Outcome, changing, excerpt, failed, function, operand, text};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, ITEM_BYTES, Meter as _};
use crate::value::{Float, Number, Value};

pub(super) const TABLE: &[Builtin] = &[
    function("units.parse", 1, parse_units),
    function("units.parse_bytes", 1, parse_bytes),
    function("semver.compare", 2, |context, args| {
        for position in [1, 2] {
            version_work(context, text(args, position)?)?;
        }
        let version = |position: usize| {
            let given = text(args, position)?;
            Version::parse(given).ok_or_else(|| {
                failed(format!(
                    "operand {position}: string {} is not a valid SemVer",
                    crate::value::quoted(excerpt(given))
                ))
            })
        };
        Ok(Value::from(match version(1)?.compare(&version(2)?) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }))
    }),
    function("semver.is_valid", 1, |context, args| {
        let Some(given) = operand(args, 1)?.as_str() else { return Ok(Value::Bool(false)) };
        version_work(context, given)?;
        Ok(Value::Bool(Version::parse(given).is_some()))
    }),
    changing("uuid.rfc4122", 1, random_uuid),
    function("uuid.parse", 1, parse_uuid),
    changing("opa.runtime", 0, |context, _| Ok(context.host.runtime())),
    function("trace", 1, |context, args| {
        let note = text(args, 1)?;
        if let Some(tracer) = context.host.tracer() {
            tracer.note(note);
        }
        Ok(Value::Bool(true))
    }),
    super::waiting("net.lookup_ip_addr", 1, |context, args| {
        let name = text(args, 1)?;
        let disabled = || Err("net.lookup_ip_addr is not enabled".to_owned());
        let found = context.host.http_client().map_or_else(disabled, |client| client.lookup_ip_addr(name));
        let addresses = found.map_err(failed)?;
        let mut items = Vec::new();
        for address in addresses {
            let address = context.text(&address)?;
            context.push(&mut items, address)?;
        }
        context.set(items)
    }),
];

/// Digits of an exponent.
const MAX_EXPONENT_DIGITS: usize = 6;
/// Powers of ten that are computed.
const MAX_POWER: i64 = 30_000;

/// The number at the start of the text, and the unit after it.
fn amount(text: &str) -> Result<(&str, &str), BuiltinError> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut at = 0usize;
    while let Some(&byte) = bytes.get(at) {
        let next = at.saturating_add(1);
        match byte {
            b'0'..=b'9' | b'.' | b'+' | b'-' => {}
            b'e' | b'E' if digit(next) || matches!(bytes.get(next), Some(b'+' | b'-')) => {
                let start = if digit(next) { next } else { next.saturating_add(1) };
                let digits = bytes.get(start..).unwrap_or_default().iter().take_while(|it| it.is_ascii_digit());
                if digits.count() > MAX_EXPONENT_DIGITS {
                    return Err(failed("exponent too large"));
                }
                at = start.saturating_sub(1);
            }
            _ => break,
        }
        at = at.saturating_add(1);
    }
    text.split_at_checked(at).ok_or_else(|| failed("could not parse amount to a number"))
}

/// A decimal as Go's `big.Rat` reads it: mantissa and power of ten.
fn decimal(text: &str) -> Option<(BigInt, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent: i64 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if !digits.bytes().any(|byte| byte.is_ascii_digit()) || fraction.contains(['+', '-', '.']) {
        return None;
    }
    let scale = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?;
    Some((BigInt::parse_bytes(digits.as_bytes(), 10)?, scale)).filter(|_| scale.abs() <= MAX_POWER)
}

/// The longest amount with its unit.
const MAX_AMOUNT_BYTES: usize = 20_000;

/// The text of an amount, charged for what becomes of it.
fn amount_text<'v>(context: &mut Context<'_>, args: &[&'v Value]) -> Result<&'v str, BuiltinError> {
    let given = text(args, 1)?;
    if given.len() > MAX_AMOUNT_BYTES {
        return Err(EvalError::budget("the text of an amount is too long").into());
    }
    context.work(given.len() / 16)?;
    context.allocate(given.len().saturating_mul(8).saturating_add(HEADER_BYTES))?;
    Ok(given)
}

/// A decimal, charged for computing with it.
fn scaled(context: &mut Context<'_>, number: &str) -> Result<Option<(BigInt, i64)>, BuiltinError> {
    let Some((mantissa, scale)) = decimal(number) else { return Ok(None) };
    let digits = number.len().saturating_add(usize::try_from(scale.unsigned_abs()).unwrap_or(usize::MAX));
    conversion(context, digits)?;
    context.allocate(digits.saturating_mul(8))?;
    Ok(Some((mantissa, scale)))
}

fn parse_units(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let wrong = |what: &str| failed(format!("units.parse: {what}"));
    let given = amount_text(context, args)?.replace('"', "");
    if given.contains(' ') {
        return Err(wrong("spaces not allowed in resource strings"));
    }
    let (number, unit) = amount(&given).map_err(|_| wrong("exponent too large"))?;
    if number.is_empty() {
        return Err(wrong("no amount provided"));
    }
    let mut chars = unit.chars();
    let first = chars.next().map(String::from).unwrap_or_default();
    let unit = format!("{first}{}", chars.as_str().to_lowercase());
    let step = |base: i64, power: usize| pow(BigInt::from(base), power);
    let factor = match unit.as_str() {
        "" | "m" => BigInt::from(1),
        "k" | "K" => step(1_000, 1),
        "ki" | "Ki" => step(1_024, 1),
        "M" => step(1_000, 2),
        "mi" | "Mi" => step(1_024, 2),
        "g" | "G" => step(1_000, 3),
        "gi" | "Gi" => step(1_024, 3),
        "t" | "T" => step(1_000, 4),
        "ti" | "Ti" => step(1_024, 4),
        "p" | "P" => step(1_000, 5),
        "pi" | "Pi" => step(1_024, 5),
        "e" | "E" => step(1_000, 6),
        "ei" | "Ei" => step(1_024, 6),
        _ => return Err(wrong(&format!("unit {unit} not recognized"))),
    };
    let (mantissa, scale) = scaled(context, number)?.ok_or_else(|| wrong("could not parse amount to a number"))?;
    let scale = if unit == "m" { scale.saturating_sub(3) } else { scale };
    let value = mantissa * factor;
    let power = pow(BigInt::from(10), usize::try_from(scale.unsigned_abs()).unwrap_or(0));
    if scale >= 0 {
        let whole = value * power;
        // A thousandth is no exact binary fraction: Go's ratio is then no integer.
        let tail = if unit == "m" && !whole.is_zero() { ".0000000000" } else { "" };
        return number_of(&format!("{whole}{tail}"));
    }
    if value.is_multiple_of(&power) && (unit != "m" || value.is_zero()) {
        return Ok(Value::Number(Number::from(value / power)));
    }
    // Ten digits after the point, halves away from zero.
    let shifted = value.abs() * pow(BigInt::from(10), 10);
    let (quotient, rest) = shifted.div_rem(&power);
    let rounded = if rest * 2 >= power { quotient + 1 } else { quotient };
    let digits = format!("{rounded:0>11}");
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(10));
    let sign = if value.is_negative() { "-" } else { "" };
    number_of(&format!("{sign}{whole}.{fraction}"))
}

fn number_of(text: &str) -> Outcome {
    Number::parse(text).map(Value::Number).ok_or_else(|| failed("could not parse amount to a number"))
}

fn parse_bytes(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let wrong = |what: &str| failed(format!("units.parse_bytes: {what}"));
    let given = amount_text(context, args)?.to_lowercase().replace('"', "");
    if given.contains(' ') {
        return Err(wrong("spaces not allowed in resource strings"));
    }
    let (number, unit) = amount(&given).map_err(|_| wrong("exponent too large"))?;
    if number.is_empty() {
        return Err(wrong("no byte amount provided"));
    }
    let (base, power): (i64, usize) = match unit {
        "" => (1, 1),
        "kb" | "k" => (1_000, 1),
        "kib" | "ki" => (1_024, 1),
        "mb" | "m" => (1_000, 2),
        "mib" | "mi" => (1_024, 2),
        "gb" | "g" => (1_000, 3),
        "gib" | "gi" => (1_024, 3),
        "tb" | "t" => (1_000, 4),
        "tib" | "ti" => (1_024, 4),
        "pb" | "p" => (1_000, 5),
        "pib" | "pi" => (1_024, 5),
        "eb" | "e" => (1_000, 6),
        "eib" | "ei" => (1_024, 6),
        _ => return Err(wrong(&format!("byte unit {unit} not recognized"))),
    };
    let (mantissa, scale) = scaled(context, number)?.ok_or_else(|| wrong("could not parse byte amount to a number"))?;
    let ten = pow(BigInt::from(10), usize::try_from(scale.unsigned_abs()).unwrap_or(0));
    let float = if scale >= 0 { Float::from_bigint(&(mantissa * ten)) } else { Float::from_ratio(&mantissa, &ten) };
    let factor = Float::from_bigint(&pow(BigInt::from(base), power));
    Ok(Value::Number(Number::from(float.mul(&factor).truncated())))
}

// Versions

struct Version {
    numbers: [i64; 3],
    pre_release: String,
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let (text, metadata) = text.split_once('+').unwrap_or((text, ""));
        let (core, pre_release) = text.split_once('-').unwrap_or((text, ""));
        let identifiers = |text: &str| {
            text.is_empty()
                || text.split('.').all(|part| {
                    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                })
        };
        if !identifiers(metadata) || !identifiers(pre_release) {
            return None;
        }
        let numbers: Vec<i64> = core.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        Some(Self { numbers: numbers.try_into().ok()?, pre_release: pre_release.to_owned() })
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre_release.as_str(), other.pre_release.as_str()) {
            ("", "") => Ordering::Equal,
            ("", _) => Ordering::Greater,
            (_, "") => Ordering::Less,
            (a, b) => pre_releases(a, b),
        })
    }
}

/// Charges the parts of a version.
fn version_work(context: &mut Context<'_>, text: &str) -> Result<(), EvalError> {
    context.work(text.len() / 8)?;
    let bytes = text.len().saturating_mul(ITEM_BYTES);
    context.allocate(bytes)?;
    context.release(bytes);
    Ok(())
}

fn pre_releases(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        let order = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(a), Some(b)) => match (a.parse::<i64>(), b.parse::<i64>()) {
                (Ok(a), Ok(b)) => a.cmp(&b),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                (Err(_), Err(_)) => a.cmp(b),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

// UUIDs

fn random_uuid(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let key = ("uuid.rfc4122", operand(args, 1)?.clone());
    if let Some(known) = context.remembered(&key) {
        return Ok(known);
    }
    let mut bytes = [0u8; 16];
    context.host.random(&mut bytes);
    let [.., version, _, variant, _, _, _, _, _, _, _] = &mut bytes;
    *version = *version & 0x0f | 0x40;
    *variant = *variant & 0x3f | 0x80;
    let hex = super::encoding::hex(&bytes);
    let mut rest = hex.as_str();
    let mut parts = Vec::new();
    for len in [8, 4, 4, 4, 12] {
        let (part, after) = rest.split_at(len);
        parts.push(part);
        rest = after;
    }
    let value = Value::from(parts.join("-"));
    context.remember(key, value.clone())?;
    Ok(value)
}

fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let text = match text.len() {
        36 => text,
        45 => text.get(..9).filter(|prefix| prefix.eq_ignore_ascii_case("urn:uuid:")).and_then(|_| text.get(9..))?,
        38 => text.get(1..37)?,
        32 => return super::encoding::unhex(text)?.try_into().ok(),
        _ => return None,
    };
    let dashes = text.char_indices().filter(|(_, char)| *char == '-').map(|(at, _)| at);
    if !dashes.eq([8, 13, 18, 23]) {
        return None;
    }
    super::encoding::unhex(&text.replace('-', ""))?.try_into().ok()
}

fn parse_uuid(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    context.allocate(16 * HEADER_BYTES)?;
    let bytes = uuid_bytes(text(args, 1)?).ok_or(BuiltinError::Undefined)?;
    let [a, b, c, d, e, f, g, h, variant, clock, node @ ..] = bytes;
    let version = g >> 4;
    let name = match variant >> 5 {
        0..=3 => "NCS",
        4 | 5 => "RFC4122",
        6 => "Microsoft",
        _ => "Future",
    };
    // Google's library calls the first kind reserved.
    let name = if name == "NCS" { "Reserved" } else { name };
    let mut members = vec![("version", Value::from(i64::from(version))), ("variant", Value::from(name))];
    if version == 1 || version == 2 {
        let low = u32::from_be_bytes([a, b, c, d]);
        let middle = u16::from_be_bytes([e, f]);
        let high = u16::from_be_bytes([g & 0x0f, h]);
        let ticks = i64::from(high) << 48 | i64::from(middle) << 32 | i64::from(low);
        // 100 ns since 1582-10-15.
        let time = (ticks - 0x01b2_1dd2_1381_4000).wrapping_mul(100);
        let [first, ..] = node;
        let kind = match first & 3 {
            3 => "local:multicast",
            1 => "global:multicast",
            2 => "local:unicast",
            _ => "global:unicast",
        };
        members.push(("time", Value::from(time)));
        members
            .push(("nodeid", Value::from(node.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join("-"))));
        members.push(("macvariables", Value::from(kind)));
        members.push(("clocksequence", Value::from(i64::from(variant & 0x3f) << 8 | i64::from(clock))));
        if version == 2 {
            members.push(("id", Value::from(i64::from(low))));
            members.push((
                "domain",
                Value::from(match clock {
                    0 => "Person".to_owned(),
                    1 => "Group".to_owned(),
                    2 => "Org".to_owned(),
                    other => format!("Domain{other}"),
                }),
            ));
        }
    }
    Ok(members.into_iter().collect())
}
