//! Scalars as `yaml.v2` resolves them: by their spelling, or by the tag before them.

use base64::Engine as _;
use saphyr_parser::Tag;

use super::super::STANDARD;
use crate::builtins::excerpt;
use crate::value::{Number, Value, lossy};

/// The value of a scalar without quotes.
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Number(Number),
    /// Infinities and what is no number, which JSON cannot express.
    NotFinite,
    /// A date: read as text, but no plain one.
    Timestamp,
    Text,
}

impl Scalar {
    pub(super) fn value(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Null => Ok(Value::Null),
            Self::Bool(it) => Ok(Value::Bool(it)),
            Self::Number(number) => Ok(Value::Number(number)),
            Self::NotFinite => Err(format!("json: unsupported value: {text}")),
            Self::Timestamp | Self::Text => Ok(Value::from(text)),
        }
    }
}

/// A scalar whose kind is written before it.
pub(super) fn tagged(text: &str, tag: &Tag) -> Result<Value, String> {
    let name = format!("{}{}", tag.handle, tag.suffix);
    let kind = name.strip_prefix("tag:yaml.org,2002:").or_else(|| name.strip_prefix("!!")).unwrap_or("");
    let wrong = || Err(format!("cannot decode `{}` as a !!{kind}", excerpt(text)));
    match (kind, plain_scalar(text)) {
        ("int", Scalar::Number(number)) if number.is_spelled_int() => Ok(Value::Number(number)),
        ("float", scalar @ (Scalar::Number(_) | Scalar::NotFinite))
        | ("bool", scalar @ Scalar::Bool(_))
        | ("null", scalar @ Scalar::Null) => scalar.value(text),
        ("timestamp", Scalar::Timestamp) => Ok(Value::from(text)),
        ("int" | "float" | "bool" | "null" | "timestamp", _) => wrong(),
        ("binary", _) => {
            let plain: String = text.chars().filter(|char| !char.is_ascii_whitespace()).collect();
            let bytes = STANDARD.decode(plain).map_err(|_| "!!binary value contains invalid base64 data".to_owned())?;
            Ok(Value::from(lossy(&bytes)))
        }
        _ => Ok(Value::from(text)),
    }
}

pub(super) fn plain_scalar(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Scalar::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Scalar::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => Scalar::NotFinite,
        text if is_timestamp(text) => Scalar::Timestamp,
        text => number(text).map_or(Scalar::Text, Scalar::Number),
    }
}

/// The longest text that can be a number: one as long as a 64-bit integer in binary, or a fraction with many digits.
const MAX_NUMBER_BYTES: usize = 1_024;

fn number(text: &str) -> Option<Number> {
    let first = text.bytes().next()?;
    if text.len() > MAX_NUMBER_BYTES || (!first.is_ascii_digit() && !matches!(first, b'+' | b'-' | b'.')) {
        return None;
    }
    let plain: String = text.chars().filter(|char| *char != '_').collect();
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", plain.strip_prefix('+').unwrap_or(&plain)),
    };
    if let Some(int) = integer(sign, digits) {
        return Some(int);
    }
    // `08` is no octal number, but a fraction without one.
    let (mantissa, exponent) = digits.split_once(['e', 'E']).map_or((digits, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent_is_good = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && are_digits(digits)
    });
    if !are_digits(whole) || !are_digits(fraction) || (whole.is_empty() && fraction.is_empty()) || !exponent_is_good {
        return None;
    }
    let float: f64 = digits.parse().ok()?;
    float.is_finite().then(|| Number::from_f64(if sign == "-" { -float } else { float }))
}

/// An integer of 64 bits, in the spellings of Go: with a prefix for its base, where a leading zero alone means octal.
fn integer(sign: &str, digits: &str) -> Option<Number> {
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, rest) = match lower.as_deref() {
        Some("0x") => (16, digits.get(2..)?),
        Some("0b") => (2, digits.get(2..)?),
        Some("0o") => (8, digits.get(2..)?),
        Some(two) if two.starts_with('0') => (8, digits.get(1..)?),
        _ => (10, digits),
    };
    if rest.starts_with(['+', '-']) {
        return None;
    }
    let value = u64::from_str_radix(rest, radix).ok()?;
    if sign == "-" && value > 1 << 63 {
        return None;
    }
    Number::parse(&format!("{}{value}", if value == 0 { "" } else { sign }))
}

/// `2006-1-2`, perhaps with a time of day and a zone.
fn is_timestamp(text: &str) -> bool {
    let digits = |text: &str, min: usize, max: usize| {
        (min..=max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let (date, time) = text.split_at(text.find(['T', 't', ' ']).unwrap_or(text.len()));
    let mut parts = date.split('-');
    let (Some(year), Some(month), Some(day), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let is_date = digits(year, 4, 4)
        && digits(month, 1, 2)
        && digits(day, 1, 2)
        && month
            .parse::<u32>()
            .ok()
            .zip(day.parse().ok())
            .zip(year.parse().ok())
            .is_some_and(|((month, day), year)| chrono::NaiveDate::from_ymd_opt(year, month, day).is_some());
    if !is_date || time.is_empty() {
        return is_date;
    }
    let (clock, zone) = match time.strip_prefix(' ') {
        Some(clock) => (clock, None),
        None => {
            let rest = time.get(1..).unwrap_or_default();
            let (clock, zone) = rest.split_at(rest.find(['Z', '+', '-']).unwrap_or(rest.len()));
            (clock, Some(zone))
        }
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let below = |text: &str, limit: u32| digits(text, 1, 2) && text.parse().is_ok_and(|it: u32| it < limit);
    let limits = [24, 60, 60];
    let is_clock =
        clock.split(':').count() == 3 && clock.split(':').zip(limits).all(|(part, limit)| below(part, limit));
    let is_zone = zone.is_none_or(|zone| {
        zone == "Z"
            || zone.get(1..).and_then(|rest| rest.split_once(':')).is_some_and(|(hours, minutes)| {
                hours.len() == 2 && minutes.len() == 2 && below(hours, 25) && below(minutes, 61)
            })
    });
    is_clock && is_zone && !fraction.is_empty() && digits(fraction, 1, 64)
}

// Writing
