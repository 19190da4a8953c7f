//! Binary floating point with a mantissa of 64 bits, which is how OPA computes with fractions: Go's `big.Float` at its
//! default precision, rounded to the nearest even.

use num_bigint::{BigInt, BigUint, Sign};
use num_integer::Integer;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::Number;

/// Bits of the mantissa.
const PRECISION: u64 = 64;

/// `mantissa × 2^exponent`; the mantissa has at most `PRECISION` bits, or as many as an integer needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Float {
    negative: bool,
    mantissa: BigUint,
    exponent: i64,
    precision: u64,
}

impl Float {
    pub fn zero() -> Self {
        Self { negative: false, mantissa: BigUint::zero(), exponent: 0, precision: PRECISION }
    }

    pub fn from_bigint(int: &BigInt) -> Self {
        Self::rounded(int.is_negative(), int.magnitude().clone(), 0, false, PRECISION)
    }

    /// An integer that keeps all its bits, as Go's `SetInt` does.
    fn whole(int: &BigInt) -> Self {
        let precision = int.magnitude().bits().max(PRECISION);
        Self::rounded(int.is_negative(), int.magnitude().clone(), 0, false, precision)
    }

    pub fn from_f64(it: f64) -> Option<Self> {
        let bits = it.to_bits();
        let raw = i64::try_from(bits >> 52 & 0x7ff).unwrap_or(0);
        let fraction = bits & ((1 << 52) - 1);
        if raw == 0x7ff {
            return None;
        }
        let (mantissa, exponent) = if raw == 0 { (fraction, -1074) } else { (fraction | 1 << 52, raw - 1075) };
        let mut float = Self::rounded(it.is_sign_negative(), BigUint::from(mantissa), exponent, false, 53);
        float.precision = 53;
        Some(float)
    }

    /// `numerator / denominator`, rounded once.
    pub fn from_ratio(numerator: &BigInt, denominator: &BigInt) -> Self {
        Self::ratio(numerator, denominator, PRECISION)
    }

    fn ratio(numerator: &BigInt, denominator: &BigInt, precision: u64) -> Self {
        let negative = numerator.is_negative() != denominator.is_negative();
        let (numerator, denominator) = (numerator.magnitude(), denominator.magnitude());
        if numerator.is_zero() || denominator.is_zero() {
            return Self::zero();
        }
        // Enough bits that the quotient has at least the precision, and a sticky bit for the rest.
        let shift = (precision + 2 + denominator.bits()).saturating_sub(numerator.bits());
        let (quotient, rest) = (numerator << shift).div_rem(denominator);
        let exponent = i64::try_from(shift).unwrap_or(0).saturating_neg();
        Self::rounded(negative, quotient, exponent, !rest.is_zero(), precision)
    }

    /// Rounds to the nearest even; `sticky` says that bits below the mantissa were lost.
    fn rounded(negative: bool, mantissa: BigUint, exponent: i64, sticky: bool, precision: u64) -> Self {
        let bits = mantissa.bits();
        let (mut mantissa, mut exponent) = if bits <= precision {
            (mantissa, exponent)
        } else {
            let drop = bits - precision;
            let half = mantissa.bit(drop - 1);
            let below = sticky || mantissa.trailing_zeros().unwrap_or(0) < drop - 1;
            let mut kept = mantissa >> drop;
            if half && (below || kept.is_odd()) {
                kept += 1u32;
            }
            (kept, exponent.saturating_add(i64::try_from(drop).unwrap_or(i64::MAX)))
        };
        if mantissa.is_zero() {
            return Self { negative, mantissa, exponent: 0, precision };
        }
        let zeros = mantissa.trailing_zeros().unwrap_or(0);
        mantissa >>= zeros;
        exponent = exponent.saturating_add(i64::try_from(zeros).unwrap_or(0));
        Self { negative, mantissa, exponent, precision }
    }

    fn signed(&self) -> BigInt {
        BigInt::from_biguint(if self.negative { Sign::Minus } else { Sign::Plus }, self.mantissa.clone())
    }

    pub fn is_negative(&self) -> bool {
        self.negative
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa.is_zero()
    }

    pub fn is_whole(&self) -> bool {
        self.exponent >= 0 || self.mantissa.is_zero()
    }

    /// Bits of the mantissa, and those that the exponent stands for.
    pub fn bits(&self) -> u64 {
        self.mantissa.bits().saturating_add(self.exponent.unsigned_abs())
    }

    /// Roughly the digits before or behind the point.
    pub fn decimal_digits(&self) -> u64 {
        // A binary digit is 0.301 decimal ones.
        self.bits().saturating_mul(302) / 1_000
    }

    /// The integer part, towards zero.
    pub fn truncated(&self) -> BigInt {
        let shift = self.exponent.unsigned_abs();
        let magnitude =
            if self.exponent >= 0 { self.mantissa.clone() << shift } else { self.mantissa.clone() >> shift };
        BigInt::from_biguint(if self.negative { Sign::Minus } else { Sign::Plus }, magnitude)
    }

    pub fn abs(mut self) -> Self {
        self.negative = false;
        self
    }

    fn negated(mut self) -> Self {
        self.negative = !self.negative;
        self
    }

    pub fn add(&self, other: &Self) -> Self {
        let exponent = self.exponent.min(other.exponent);
        let aligned = |it: &Self| it.signed() << (it.exponent.saturating_sub(exponent)).unsigned_abs();
        let sum = aligned(self) + aligned(other);
        let precision = self.precision.max(other.precision);
        Self::rounded(sum.is_negative(), sum.magnitude().clone(), exponent, false, precision)
    }

    pub fn sub(&self, other: &Self) -> Self {
        self.add(&other.clone().negated())
    }

    pub fn mul(&self, other: &Self) -> Self {
        let exponent = self.exponent.saturating_add(other.exponent);
        let precision = self.precision.max(other.precision);
        Self::rounded(self.negative != other.negative, &self.mantissa * &other.mantissa, exponent, false, precision)
    }

    /// Nothing when `other` is zero.
    pub fn div(&self, other: &Self) -> Option<Self> {
        if other.is_zero() {
            return None;
        }
        let mut quotient = Self::ratio(&self.signed(), &other.signed(), self.precision.max(other.precision));
        quotient.exponent = quotient.exponent.saturating_add(self.exponent).saturating_sub(other.exponent);
        Some(quotient)
    }

    /// To the nearest integer, halves away from zero.
    pub fn round(&self) -> Self {
        let half = Self { negative: self.negative, mantissa: BigUint::one(), exponent: -1, precision: 53 };
        Self::whole(&self.add(&half).truncated())
    }

    pub fn ceil(&self) -> Self {
        let whole = Self::whole(&self.truncated());
        if self.negative || self.is_whole() { whole } else { whole.add(&Self::whole(&BigInt::one())) }
    }

    pub fn floor(&self) -> Self {
        let whole = Self::whole(&self.truncated());
        if !self.negative || self.is_whole() { whole } else { whole.sub(&Self::whole(&BigInt::one())) }
    }

    pub fn to_f64(&self) -> f64 {
        let float = Self::rounded(self.negative, self.mantissa.clone(), self.exponent, false, 53);
        let mantissa = float.mantissa.to_f64().unwrap_or(f64::INFINITY);
        let exponent = i32::try_from(float.exponent).unwrap_or(i32::MAX);
        let magnitude = mantissa * 2f64.powi(exponent);
        if self.negative { -magnitude } else { magnitude }
    }

    /// As Go's `FloatToNumber` spells it: whole numbers in full, others with the fewest digits that are exact.
    ///
    /// Mirrors: OPA `v1/topdown/builtins/builtins.go`, v1.19.0; Go `math/big/ftoa.go`.
    pub fn to_number(&self) -> Number {
        if self.mantissa.is_zero() {
            return Number::from(0i64);
        }
        let (digits, point) = self.shortest();
        let text = if self.is_whole() { spell_plain(&digits, point) } else { spell_general(&digits, point) };
        let sign = if self.negative { "-" } else { "" };
        Number::parse(&format!("{sign}{text}")).unwrap_or_else(|| Number::from(0i64))
    }

    /// The fewest digits that lie nearer to this number than to any neighbour: `0.digits × 10^point`.
    pub fn shortest(&self) -> (String, i64) {
        let bits = self.mantissa.bits();
        // Stretched to the full precision, and doubled so that the middle to each neighbour is a whole number.
        let stretch = self.precision.saturating_sub(bits);
        let mantissa = self.mantissa.clone() << (stretch + 1);
        let exponent = self.exponent.saturating_sub(i64::try_from(stretch + 1).unwrap_or(0));
        let power_of_two = self.mantissa.is_one();
        let (mantissa, exponent, below, above) = if power_of_two {
            (mantissa << 1u32, exponent - 1, BigUint::from(1u32), BigUint::from(2u32))
        } else {
            (mantissa, exponent, BigUint::from(1u32), BigUint::from(1u32))
        };
        let inclusive = stretch > 0 || self.mantissa.is_even();
        let scale = DecimalScale::of(&mantissa, exponent);
        let decimal = |int: BigUint| -> (Vec<u8>, i64) {
            if let Some(scale) = &scale {
                return scale.digits(int, exponent);
            }
            let (int, shift) = if exponent >= 0 {
                (int << exponent.unsigned_abs(), 0)
            } else {
                let power = usize::try_from(exponent.unsigned_abs()).unwrap_or(usize::MAX);
                (int * num_traits::pow(BigUint::from(5u32), power), exponent)
            };
            let digits = int.to_string().into_bytes();
            let point = i64::try_from(digits.len()).unwrap_or(0).saturating_add(shift);
            (digits, point)
        };
        let (exact, point) = decimal(mantissa.clone());
        let (lower, lower_point) = decimal(&mantissa - &below);
        let (upper, upper_point) = decimal(&mantissa + &above);
        round_shortest(&exact, point, (&lower, lower_point), (&upper, upper_point), inclusive)
    }
}

/// Binary exponents up to this are turned into all their digits.
const MAX_PLAIN_EXPONENT: u64 = 2_000;
/// Digits of a number with a larger exponent, which are more than any shortest spelling has.
const SCALED_DIGITS: i64 = 40;

/// The power of ten that leaves [`SCALED_DIGITS`] digits of a number with a large exponent: writing all of them takes the square of their number.
struct DecimalScale {
    /// The decimal exponent of the last digit that is left.
    exponent: i64,
    power: BigUint,
}

impl DecimalScale {
    /// For numbers near `mantissa × 2^exponent`; nothing where all their digits are few enough.
    fn of(mantissa: &BigUint, exponent: i64) -> Option<Self> {
        if exponent.unsigned_abs() <= MAX_PLAIN_EXPONENT {
            return None;
        }
        let bits = i64::try_from(mantissa.bits()).unwrap_or(i64::MAX).saturating_add(exponent);
        let exponent = (bits.saturating_mul(30_103) / 100_000).saturating_sub(SCALED_DIGITS);
        let power = num_traits::pow(BigUint::from(10u32), usize::try_from(exponent.unsigned_abs()).unwrap_or(0));
        Some(Self { exponent, power })
    }

    /// The first digits of `int × 2^exponent`, with a 1 behind them that stands for all further ones.
    fn digits(&self, int: BigUint, exponent: i64) -> (Vec<u8>, i64) {
        let shift = exponent.unsigned_abs();
        let (numerator, denominator) = match (exponent >= 0, self.exponent >= 0) {
            (true, true) => (int << shift, self.power.clone()),
            (true, false) => ((int << shift) * &self.power, BigUint::one()),
            (false, true) => (int, &self.power << shift),
            (false, false) => (int * &self.power, BigUint::one() << shift),
        };
        let (quotient, rest) = numerator.div_rem(&denominator);
        let mut digits = quotient.to_string().into_bytes();
        let point = i64::try_from(digits.len()).unwrap_or(0).saturating_add(self.exponent);
        if !rest.is_zero() {
            digits.push(b'1');
        }
        (digits, point)
    }
}

/// Cuts `exact` where it can no longer be mistaken for a neighbour.
fn round_shortest(
    exact: &[u8],
    point: i64,
    (lower, lower_point): (&[u8], i64),
    (upper, upper_point): (&[u8], i64),
    inclusive: bool,
) -> (String, i64) {
    let value = |digits: &[u8], point: i64| Decimal { digits: digits.to_vec(), point }.trimmed();
    let (low, high, it) = (value(lower, lower_point), value(upper, upper_point), value(exact, point));
    for len in 1..=it.digits.len() {
        let down = Decimal { digits: it.digits.get(..len).unwrap_or_default().to_vec(), point: it.point };
        let up = down.incremented();
        let fits = |candidate: &Decimal| {
            let (above, below) = (low.compare(candidate), candidate.compare(&high));
            (above.is_lt() || (inclusive && above.is_eq())) && (below.is_lt() || (inclusive && below.is_eq()))
        };
        let (down, up) = (down.trimmed(), up.trimmed());
        let chosen = match (fits(&down), fits(&up)) {
            (true, true) => {
                let half = it.digits.get(len).copied().unwrap_or(b'0');
                let rest_is_zero =
                    it.digits.get(len.saturating_add(1)..).unwrap_or_default().iter().all(|&d| d == b'0');
                let odd = it.digits.get(len.saturating_sub(1)).is_some_and(|digit| digit % 2 == 1);
                if half > b'5' || (half == b'5' && (!rest_is_zero || odd)) { up } else { down }
            }
            (true, false) => down,
            (false, true) => up,
            (false, false) => continue,
        };
        return (String::from_utf8_lossy(&chosen.digits).into_owned(), chosen.point);
    }
    (String::from_utf8_lossy(&it.digits).into_owned(), it.point)
}

struct Decimal {
    digits: Vec<u8>,
    point: i64,
}

impl Decimal {
    fn trimmed(mut self) -> Self {
        while self.digits.last() == Some(&b'0') {
            self.digits.pop();
        }
        self
    }

    fn incremented(&self) -> Self {
        let mut digits = self.digits.clone();
        for digit in digits.iter_mut().rev() {
            if *digit == b'9' {
                *digit = b'0';
            } else {
                *digit += 1;
                return Self { digits, point: self.point };
            }
        }
        digits.insert(0, b'1');
        Self { digits, point: self.point.saturating_add(1) }
    }

    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        self.point.cmp(&other.point).then_with(|| self.digits.cmp(&other.digits))
    }
}

/// Go's `%f` of the given digits.
pub fn spell_plain(digits: &str, point: i64) -> String {
    let len = i64::try_from(digits.len()).unwrap_or(0);
    if point <= 0 {
        return format!("0.{}{digits}", "0".repeat(usize::try_from(point.saturating_neg()).unwrap_or(0)));
    }
    if point >= len {
        return format!("{digits}{}", "0".repeat(usize::try_from(point.saturating_sub(len)).unwrap_or(0)));
    }
    let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
    format!("{whole}.{fraction}")
}

/// Go's `%e` of the given digits.
pub fn spell_scientific(digits: &str, point: i64) -> String {
    let exponent = point.saturating_sub(1);
    let (first, rest) = digits.split_at(digits.len().min(1));
    let dot = if rest.is_empty() { "" } else { "." };
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{first}{dot}{rest}e{sign}{:02}", exponent.abs())
}

/// Go's `%g` of the fewest digits.
pub fn spell_general(digits: &str, point: i64) -> String {
    let exponent = point.saturating_sub(1);
    if (-4..6).contains(&exponent) { spell_plain(digits, point) } else { spell_scientific(digits, point) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_large_exponents_are_spelled_as_all_their_digits_say() {
        for (text, want) in [("1e2999", "1e+2999"), ("123456789e-2999", "1.23456789e-2991"), ("-1e-700", "-1e-700")] {
            let number = Number::parse(text).expect("a number");
            let float = number.to_float();
            let (digits, point) = float.shortest();
            let sign = if float.is_negative() { "-" } else { "" };
            assert_eq!(format!("{sign}{}", spell_general(&digits, point)), want);
        }
        let exact = Float::from_bigint(&num_traits::pow(BigInt::from(2), 3_000));
        let all = num_traits::pow(BigInt::from(2), 3_000).to_string();
        let (digits, point) = exact.shortest();
        assert_eq!(usize::try_from(point), Ok(all.len()));
        assert!(all.starts_with(digits.get(..18).expect("digits")), "{digits} {all}");
    }
}
