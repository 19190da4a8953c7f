//! Comparisons, arithmetic, bits and ranges.
//!
//! Mirrors: OPA `v1/topdown/{arithmetic,comparison,bits,numbers,binary}.go`, v1.19.0.

use std::cmp::Ordering;

use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive, Zero};

use super::{Builtin, BuiltinError, Context, Outcome, changing, failed, function, number, operand, text, wrong_type};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, Meter as _};
use crate::value::{Float, Number, Value, metered};

pub(super) const TABLE: &[Builtin] = &[
    function("eq", 2, equal),
    function("equal", 2, equal),
    function("neq", 2, |context, args| Ok(Value::Bool(!equal(context, args)?.is_true()))),
    function("lt", 2, |context, args| compared(context, args, Ordering::is_lt)),
    function("lte", 2, |context, args| compared(context, args, Ordering::is_le)),
    function("gt", 2, |context, args| compared(context, args, Ordering::is_gt)),
    function("gte", 2, |context, args| compared(context, args, Ordering::is_ge)),
    function("plus", 2, |context, args| calculated(context, args, &ADD)),
    function("mul", 2, |context, args| calculated(context, args, &MULTIPLY)),
    function("minus", 2, minus),
    function("div", 2, div),
    function("rem", 2, rem),
    function("abs", 1, |context, args| rounded(context, args, Float::abs)),
    function("round", 1, |context, args| rounded(context, args, |it| it.round())),
    function("ceil", 1, |context, args| rounded(context, args, |it| it.ceil())),
    function("floor", 1, |context, args| rounded(context, args, |it| it.floor())),
    function("bits.or", 2, |context, args| bits(context, args, |a, b| Ok(a | b))),
    function("bits.and", 2, |context, args| bits(context, args, |a, b| Ok(a & b))),
    function("bits.xor", 2, |context, args| bits(context, args, |a, b| Ok(a ^ b))),
    function("bits.negate", 1, |context, args| {
        let negated = !whole(context, args, 1)?;
        spelled(context, negated)
    }),
    function("bits.lsh", 2, |context, args| bits(context, args, |a, b| Ok(a << shift(&b)?))),
    function("bits.rsh", 2, |context, args| bits(context, args, |a, b| Ok(a >> shift(&b)?))),
    function("numbers.range", 2, |context, args| range(context, args, None)),
    function("numbers.range_step", 3, |context, args| {
        let step = whole(context, args, 3)?;
        if !step.is_positive() {
            return Err(failed("step must be a positive integer"));
        }
        range(context, args, Some(step))
    }),
    changing("rand.intn", 2, rand_intn),
];

/// The longest integer that is computed: that of the largest exponent which numbers may have, and a few digits more.
const MAX_BITS: u64 = 110_000;
/// The widest shift.
const MAX_SHIFT: u64 = 100_000;

fn equal(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    Ok(Value::Bool(metered::equal(context, operand(args, 1)?, operand(args, 2)?)?))
}

fn compared(context: &mut Context<'_>, args: &[&Value], holds: fn(Ordering) -> bool) -> Outcome {
    Ok(Value::Bool(holds(metered::compare(context, operand(args, 1)?, operand(args, 2)?)?)))
}

/// Counts the conversion of a number of so many decimal digits between text and binary, which takes the square of their number; long ones are
/// refused once there is no time for that.
pub(super) fn conversion(context: &mut Context<'_>, digits: usize) -> Result<(), EvalError> {
    context.work(digits.saturating_mul(digits) / 4_096)
}

/// The spelling of an integer.
pub(super) fn spelled(context: &mut Context<'_>, int: BigInt) -> Outcome {
    if i64::try_from(&int).is_err() {
        let digits = usize::try_from(int.bits() / 3).unwrap_or(usize::MAX).saturating_add(2);
        conversion(context, digits)?;
        context.allocate(digits.saturating_mul(4).saturating_add(HEADER_BYTES))?;
    }
    Ok(Value::Number(Number::from(int)))
}

/// The number as binary floating point.
fn float(context: &mut Context<'_>, number: &Number) -> Result<Float, EvalError> {
    conversion(context, number.digits())?;
    Ok(number.to_float())
}

/// The spelling of binary floating point.
fn spelled_float(context: &mut Context<'_>, float: &Float) -> Outcome {
    let digits = usize::try_from(float.decimal_digits()).unwrap_or(usize::MAX);
    if digits > MAX_FLOAT_DIGITS {
        return Err(EvalError::budget("a number grew too long").into());
    }
    conversion(context, digits)?;
    context.allocate(digits.saturating_mul(4).saturating_add(HEADER_BYTES))?;
    Ok(Value::Number(float.to_number()))
}

/// Digits before or behind the point of a fraction that is computed.
const MAX_FLOAT_DIGITS: usize = 30_000;

/// The common part of sums and products.
pub(super) struct Operation {
    small: fn(i64, i64) -> Option<i64>,
    big: fn(BigInt, BigInt) -> BigInt,
    /// Bits of the result for operands of so many bits.
    bits: fn(u64, u64) -> u64,
    float: fn(&Float, &Float) -> Float,
}

pub(super) const ADD: Operation = Operation {
    small: i64::checked_add,
    big: |a, b| a + b,
    bits: |a, b| if a > b { a.saturating_add(1) } else { b.saturating_add(1) },
    float: Float::add,
};

pub(super) const MULTIPLY: Operation =
    Operation { small: i64::checked_mul, big: |a, b| a * b, bits: u64::saturating_add, float: Float::mul };

const SUBTRACT: Operation = Operation { small: i64::checked_sub, big: |a, b| a - b, float: Float::sub, ..ADD };

/// A number on the way to a result: it is spelled only in the end, because that takes longer than computing with it.
pub(super) enum Total {
    Small(i64),
    Big(BigInt),
    Fraction(Float),
}

impl From<i64> for Total {
    fn from(start: i64) -> Self {
        Self::Small(start)
    }
}

impl Total {
    fn of(context: &mut Context<'_>, number: &Number) -> Result<Self, EvalError> {
        if let Some(small) = number.as_i64() {
            return Ok(Self::Small(small));
        }
        conversion(context, number.digits())?;
        Ok(number.to_bigint().map_or_else(|| Self::Fraction(number.to_float()), Self::Big))
    }

    fn to_bigint(&self) -> Option<BigInt> {
        match self {
            Self::Small(int) => Some(BigInt::from(*int)),
            Self::Big(int) => Some(int.clone()),
            Self::Fraction(float) => float.is_whole().then(|| float.truncated()),
        }
    }

    fn to_float(&self) -> Float {
        match self {
            Self::Small(int) => Float::from_bigint(&BigInt::from(*int)),
            Self::Big(int) => Float::from_bigint(int),
            Self::Fraction(float) => float.clone(),
        }
    }

    fn bits(&self) -> u64 {
        match self {
            Self::Small(_) => 64,
            Self::Big(int) => int.bits(),
            Self::Fraction(float) => float.bits(),
        }
    }

    /// Exact for integers, with 64 bits of mantissa for others.
    pub(super) fn with(
        self,
        context: &mut Context<'_>,
        number: &Number,
        operation: &Operation,
    ) -> Result<Self, BuiltinError> {
        let other = Self::of(context, number)?;
        if let (Self::Small(a), Self::Small(b)) = (&self, &other)
            && let Some(result) = (operation.small)(*a, *b)
        {
            return Ok(Self::Small(result));
        }
        let bits = (operation.bits)(self.bits(), other.bits());
        if bits > MAX_BITS {
            return Err(EvalError::budget("a number grew too long").into());
        }
        let words = usize::try_from(bits / 64).unwrap_or(usize::MAX);
        context.work(words.saturating_mul(words) / 64 + 4)?;
        Ok(match (self.to_bigint(), other.to_bigint()) {
            (Some(a), Some(b)) => {
                let result = (operation.big)(a, b);
                i64::try_from(&result).map_or(Self::Big(result), Self::Small)
            }
            _ => Self::Fraction((operation.float)(&self.to_float(), &other.to_float())),
        })
    }

    pub(super) fn finish(self, context: &mut Context<'_>) -> Outcome {
        match self {
            Self::Small(int) => Ok(Value::from(int)),
            Self::Big(int) => spelled(context, int),
            Self::Fraction(float) => spelled_float(context, &float),
        }
    }
}

fn calculated(context: &mut Context<'_>, args: &[&Value], operation: &Operation) -> Outcome {
    let (a, b) = (number(args, 1)?, number(args, 2)?);
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64())
        && let Some(result) = (operation.small)(a, b)
    {
        return Ok(Value::from(result));
    }
    Total::of(context, a)?.with(context, b, operation)?.finish(context)
}

fn minus(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    match (operand(args, 1)?, operand(args, 2)?) {
        (Value::Number(_), Value::Number(_)) => calculated(context, args, &SUBTRACT),
        (Value::Set(a), Value::Set(b)) => super::collections::difference(context, a, b),
        (Value::Number(_), other) => Err(wrong_type(2, other, &["number"])),
        (Value::Set(_), other) => Err(wrong_type(2, other, &["set"])),
        (other, _) => Err(wrong_type(1, other, &["number", "set"])),
    }
}

fn div(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (a, b) = (float(context, number(args, 1)?)?, float(context, number(args, 2)?)?);
    let quotient = a.div(&b).ok_or_else(|| failed("divide by zero"))?;
    spelled_float(context, &quotient)
}

fn rem(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (a, b) = (number(args, 1)?, number(args, 2)?);
    conversion(context, a.digits().saturating_add(b.digits()))?;
    let (Some(a), Some(b)) = (a.to_bigint(), b.to_bigint()) else {
        return Err(failed("modulo on floating-point number"));
    };
    if b.is_zero() {
        return Err(failed("modulo by zero"));
    }
    spelled(context, a % b)
}

fn rounded(context: &mut Context<'_>, args: &[&Value], round: fn(Float) -> Float) -> Outcome {
    let operand = float(context, number(args, 1)?)?;
    spelled_float(context, &round(operand))
}

fn whole(context: &mut Context<'_>, args: &[&Value], position: usize) -> Result<BigInt, BuiltinError> {
    let number = number(args, position)?;
    conversion(context, number.digits())?;
    number.to_bigint().ok_or_else(|| {
        BuiltinError::Operand(format!("operand {position} must be integer number but got floating-point number"))
    })
}

fn bits(
    context: &mut Context<'_>,
    args: &[&Value],
    operate: fn(BigInt, BigInt) -> Result<BigInt, BuiltinError>,
) -> Outcome {
    let result = operate(whole(context, args, 1)?, whole(context, args, 2)?)?;
    if result.bits() > MAX_BITS.saturating_mul(2) {
        return Err(EvalError::budget("a number grew too long").into());
    }
    spelled(context, result)
}

fn shift(by: &BigInt) -> Result<u64, BuiltinError> {
    if by.is_negative() {
        return Err(BuiltinError::Operand(
            "operand 2 must be an unsigned integer number but got a negative integer".to_owned(),
        ));
    }
    by.to_u64().filter(|by| *by <= MAX_SHIFT).ok_or_else(|| failed("shift is too wide"))
}

fn range(context: &mut Context<'_>, args: &[&Value], step: Option<BigInt>) -> Outcome {
    let (mut from, to) = (whole(context, args, 1)?, whole(context, args, 2)?);
    let step = step.unwrap_or_else(|| BigInt::from(1));
    let words = usize::try_from(from.bits().max(to.bits()) / 64).unwrap_or(usize::MAX);
    let count = ((&to - &from).abs() / &step).to_usize().unwrap_or(usize::MAX);
    let mut items = Vec::new();
    let down = from > to;
    for _ in 0..=count {
        context.work(words.saturating_add(2))?;
        let item = spelled(context, from.clone())?;
        context.push(&mut items, item)?;
        if down {
            from -= &step;
        } else {
            from += &step;
        }
    }
    context.array(items)
}

fn rand_intn(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    text(args, 1)?;
    let bound = whole(context, args, 2)?.abs();
    let key = ("rand.intn", Value::array(args.iter().map(|arg| (*arg).clone()).collect()));
    if let Some(known) = context.remembered(&key) {
        return Ok(known);
    }
    let mut bytes = [0u8; 16];
    context.host.random(&mut bytes);
    let random = BigInt::from(u128::from_le_bytes(bytes));
    let value = Value::Number(Number::from(if bound.is_zero() { BigInt::zero() } else { random % bound }));
    context.remember(key, value.clone())?;
    Ok(value)
}
