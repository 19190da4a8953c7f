//! Numbers that keep their spelling, as OPA's do: `1.0` prints as `1.0` and equals `1`.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use num_bigint::BigInt;
use num_traits::{One, Zero};

use super::{Float, Text, spell_general};

/// The largest decimal exponent at which a number is turned into digits.
const MAX_DIGITS: i64 = 30_000;

/// A number: a small integer, or the text of anything else.
#[derive(Clone)]
pub struct Number(Repr);

#[derive(Clone)]
enum Repr {
    Int(i64),
    /// A valid JSON number that is not the plain spelling of an `i64`.
    Text(Text),
}

impl Number {
    /// The number spelled `text`, if that is how JSON spells numbers and its exponent is not beyond reason.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(int) = plain_int(text) {
            return Some(Self(Repr::Int(int)));
        }
        let decimal = Decimal::parse(text)?;
        (decimal.exponent.abs() <= MAX_DIGITS).then(|| Self(Repr::Text(text.into())))
    }

    /// As Go prints the shortest text of a float.
    pub fn from_f64(it: f64) -> Self {
        if it.fract() == 0.0 && it.abs() < 1e15 {
            // Exact: a whole number below 2^53.
            #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
            return Self(Repr::Int(it as i64));
        }
        Float::from_f64(it).map_or(Self(Repr::Int(0)), |float| float.to_number())
    }

    /// As Go's `%g` spells a float: `1e+06`, `-0`.
    pub fn spelled_general(it: f64) -> Self {
        let sign = if it.is_sign_negative() { "-" } else { "" };
        let text = match Float::from_f64(it.abs()) {
            Some(float) if !float.is_zero() => {
                let (digits, point) = float.shortest();
                spell_general(&digits, point)
            }
            _ => "0".to_owned(),
        };
        Self::parse(&format!("{sign}{text}")).unwrap_or(Self(Repr::Int(0)))
    }

    /// See [`Value::weight`](super::Value::weight).
    pub fn weight(&self) -> usize {
        match &self.0 {
            Repr::Int(_) => 1,
            // Comparing takes these apart digit by digit.
            Repr::Text(text) => text.len().saturating_add(16),
        }
    }

    /// At least as many bytes as the spelling has.
    pub fn text_bytes(&self) -> usize {
        match &self.0 {
            Repr::Int(_) => 20,
            Repr::Text(text) => text.len(),
        }
    }

    /// Roughly the digits that computing with this number takes: those that are written, and those that its exponent stands for.
    pub fn digits(&self) -> usize {
        match &self.0 {
            Repr::Int(_) => 19,
            Repr::Text(text) => {
                let exponent = text.rsplit_once(['e', 'E']).and_then(|(_, exponent)| exponent.parse::<i64>().ok());
                let exponent = usize::try_from(exponent.unwrap_or(0).unsigned_abs()).unwrap_or(usize::MAX);
                text.len().saturating_add(exponent)
            }
        }
    }

    pub fn as_i64(&self) -> Option<i64> {
        match &self.0 {
            Repr::Int(int) => Some(*int),
            Repr::Text(_) => None,
        }
    }

    /// The value as an integer that fits, whatever the spelling (`1.0`, `1e2`).
    pub fn as_whole(&self) -> Option<i64> {
        match &self.0 {
            Repr::Int(int) => Some(*int),
            Repr::Text(_) => i64::try_from(self.to_bigint()?).ok(),
        }
    }

    /// The index of an array that this number names; only plainly spelled integers name one.
    pub fn as_index(&self) -> Option<usize> {
        usize::try_from(self.as_i64()?).ok()
    }

    pub fn as_f64(&self) -> f64 {
        match &self.0 {
            #[expect(clippy::cast_precision_loss, reason = "the nearest float is what is asked for")]
            Repr::Int(int) => *int as f64,
            Repr::Text(text) => text.parse().unwrap_or(f64::NAN),
        }
    }

    /// The exact integer, if the number is whole.
    pub fn to_bigint(&self) -> Option<BigInt> {
        match &self.0 {
            Repr::Int(int) => Some(BigInt::from(*int)),
            Repr::Text(text) => Decimal::parse(text)?.to_bigint(),
        }
    }

    /// With OPA's 64 bits of mantissa.
    pub fn to_float(&self) -> Float {
        match &self.0 {
            Repr::Int(int) => Float::from_bigint(&BigInt::from(*int)),
            Repr::Text(text) => Decimal::parse(text).map_or_else(Float::zero, |it| it.to_float()),
        }
    }

    /// The spelling is that of an integer.
    pub fn is_spelled_int(&self) -> bool {
        match &self.0 {
            Repr::Int(_) => true,
            Repr::Text(text) => !text.contains(['.', 'e', 'E']),
        }
    }
}

fn plain_int(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = match digits.as_bytes() {
        [b'0'] => text == "0",
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if plain { text.parse().ok() } else { None }
}

impl From<i64> for Number {
    fn from(int: i64) -> Self {
        Self(Repr::Int(int))
    }
}

impl From<u64> for Number {
    fn from(int: u64) -> Self {
        match i64::try_from(int) {
            Ok(int) => Self(Repr::Int(int)),
            Err(_) => Self(Repr::Text(int.to_string().into())),
        }
    }
}

impl From<BigInt> for Number {
    fn from(int: BigInt) -> Self {
        match i64::try_from(&int) {
            Ok(int) => Self(Repr::Int(int)),
            Err(_) => Self(Repr::Text(int.to_string().into())),
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Int(int) => int.fmt(f),
            Repr::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Number {}

impl Ord for Number {
    /// By value, exactly.
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Repr::Int(a), Repr::Int(b)) => a.cmp(b),
            (Repr::Text(a), Repr::Text(b)) if a == b => Ordering::Equal,
            _ => {
                let (a, b) = (self.to_string(), other.to_string());
                match (Decimal::parse(&a), Decimal::parse(&b)) {
                    (Some(a), Some(b)) => a.cmp(&b),
                    _ => a.cmp(&b),
                }
            }
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Number {
    /// By the nearest float, which is the same for equal numbers.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let float = self.as_f64();
        state.write_u64(if float == 0.0 { 0 } else { float.to_bits() });
    }
}

/// A decimal number taken apart: `0.digits × 10^point`, digits without zeros at either end.
#[derive(Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    point: i64,
    /// The exponent as written.
    exponent: i64,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => {
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                    return None;
                }
                (mantissa, exponent.parse::<i64>().ok()?)
            }
            None => (rest, 0),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((_, "")) => return None,
            Some(parts) => parts,
            None => (mantissa, ""),
        };
        let valid = match whole.as_bytes() {
            [] => false,
            [b'0', _, ..] => false,
            bytes => bytes.iter().all(u8::is_ascii_digit),
        };
        if !valid || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let all: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        let lead = all.iter().take_while(|&&digit| digit == b'0').count();
        let last = all.iter().rposition(|&digit| digit != b'0').map_or(lead, |at| at.saturating_add(1));
        let digits = all.get(lead..last).unwrap_or_default().to_vec();
        let point = if digits.is_empty() {
            0
        } else {
            let whole = i64::try_from(whole.len()).ok()?;
            whole.saturating_sub(i64::try_from(lead).ok()?).saturating_add(exponent)
        };
        Some(Self { negative: negative && !digits.is_empty(), digits, point, exponent })
    }

    fn mantissa(&self) -> BigInt {
        let int = BigInt::parse_bytes(&self.digits, 10).unwrap_or_default();
        if self.negative { -int } else { int }
    }

    /// The power of ten that the digits, read as an integer, are multiplied by.
    fn scale(&self) -> i64 {
        self.point.saturating_sub(i64::try_from(self.digits.len()).unwrap_or(i64::MAX))
    }

    fn to_bigint(&self) -> Option<BigInt> {
        if self.digits.is_empty() {
            return Some(BigInt::zero());
        }
        let scale = u32::try_from(self.scale()).ok()?;
        (i64::from(scale) <= MAX_DIGITS).then(|| self.mantissa() * num_traits::pow(BigInt::from(10), scale as usize))
    }

    fn to_float(&self) -> Float {
        let scale = self.scale().clamp(-MAX_DIGITS - 2_000, MAX_DIGITS);
        let power = num_traits::pow(BigInt::from(10), usize::try_from(scale.unsigned_abs()).unwrap_or(0));
        if scale >= 0 {
            Float::from_ratio(&(self.mantissa() * power), &BigInt::one())
        } else {
            Float::from_ratio(&self.mantissa(), &power)
        }
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |it: &Self| {
            if it.digits.is_empty() {
                0
            } else if it.negative {
                -1
            } else {
                1
            }
        };
        let (a, b) = (sign(self), sign(other));
        if a != b || a == 0 {
            return a.cmp(&b);
        }
        let magnitude = self.point.cmp(&other.point).then_with(|| self.digits.cmp(&other.digits));
        if self.negative { magnitude.reverse() } else { magnitude }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
