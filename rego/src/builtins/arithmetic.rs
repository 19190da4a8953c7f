//! Comparisons, arithmetic, bits and ranges.
//!
//! Mirrors: OPA `v1/topdown/{arithmetic,comparison,bits,numbers,binary}.go`, v1.19.0.

use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive, Zero};

use super::{Builtin, BuiltinError, Context, Outcome, changing, failed, function, number, operand, text, wrong_type};
use crate::eval::EvalError;
use crate::value::{Float, Number, Value};

pub const TABLE: &[Builtin] = &[
    function("eq", 2, |_, args| compared(args, |a, b| a == b)),
    function("equal", 2, |_, args| compared(args, |a, b| a == b)),
    function("neq", 2, |_, args| compared(args, |a, b| a != b)),
    function("lt", 2, |_, args| compared(args, |a, b| a < b)),
    function("lte", 2, |_, args| compared(args, |a, b| a <= b)),
    function("gt", 2, |_, args| compared(args, |a, b| a > b)),
    function("gte", 2, |_, args| compared(args, |a, b| a >= b)),
    function("plus", 2, |context, args| calculated(context, args, i64::checked_add, |a, b| a + b, Float::add)),
    function("mul", 2, |context, args| calculated(context, args, i64::checked_mul, |a, b| a * b, Float::mul)),
    function("minus", 2, minus),
    function("div", 2, div),
    function("rem", 2, rem),
    function("abs", 1, |_, args| rounded(args, Float::abs)),
    function("round", 1, |_, args| rounded(args, |it| it.round())),
    function("ceil", 1, |_, args| rounded(args, |it| it.ceil())),
    function("floor", 1, |_, args| rounded(args, |it| it.floor())),
    function("bits.or", 2, |_, args| bits(args, |a, b| Ok(a | b))),
    function("bits.and", 2, |_, args| bits(args, |a, b| Ok(a & b))),
    function("bits.xor", 2, |_, args| bits(args, |a, b| Ok(a ^ b))),
    function("bits.negate", 1, |_, args| Ok(Value::Number(Number::from(!whole(args, 1)?)))),
    function("bits.lsh", 2, |_, args| bits(args, |a, b| Ok(a << shift(&b)?))),
    function("bits.rsh", 2, |_, args| bits(args, |a, b| Ok(a >> shift(&b)?))),
    function("numbers.range", 2, |context, args| range(context, args, None)),
    function("numbers.range_step", 3, |context, args| {
        let step = whole_number(args, 3)?;
        if !step.is_positive() {
            return Err(failed("step must be a positive integer"));
        }
        range(context, args, Some(step))
    }),
    changing("rand.intn", 2, rand_intn),
];

/// The longest sum or product of integers.
const MAX_BITS: u64 = 200_000;
/// The widest shift.
const MAX_SHIFT: u64 = 100_000;

fn compared(args: &[&Value], compare: fn(&Value, &Value) -> bool) -> Outcome {
    Ok(Value::Bool(compare(operand(args, 1)?, operand(args, 2)?)))
}

fn calculated(
    context: &mut Context<'_>,
    args: &[&Value],
    small: fn(i64, i64) -> Option<i64>,
    big: fn(BigInt, BigInt) -> BigInt,
    float: fn(&Float, &Float) -> Float,
) -> Outcome {
    let (a, b) = (number(args, 1)?, number(args, 2)?);
    Ok(Value::Number(calculate(context, a, b, small, big, float)?))
}

/// Exact for integers, with 64 bits of mantissa for others.
pub(super) fn calculate(
    context: &mut Context<'_>,
    a: &Number,
    b: &Number,
    small: fn(i64, i64) -> Option<i64>,
    big: fn(BigInt, BigInt) -> BigInt,
    float: fn(&Float, &Float) -> Float,
) -> Result<Number, BuiltinError> {
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64())
        && let Some(result) = small(a, b)
    {
        return Ok(Number::from(result));
    }
    match (a.to_bigint(), b.to_bigint()) {
        (Some(a), Some(b)) => {
            let bits = a.bits().saturating_add(b.bits());
            if bits > MAX_BITS {
                return Err(EvalError::budget("a number grew too long").into());
            }
            // Numbers are kept as text, which takes the square of their length to write.
            let words = usize::try_from(bits / 64).unwrap_or(usize::MAX);
            context.work(words.saturating_mul(words))?;
            Ok(Number::from(big(a, b)))
        }
        _ => Ok(float(&a.to_float(), &b.to_float()).to_number()),
    }
}

fn minus(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    match (operand(args, 1)?, operand(args, 2)?) {
        (Value::Number(_), Value::Number(_)) => calculated(context, args, i64::checked_sub, |a, b| a - b, Float::sub),
        (Value::Set(a), Value::Set(b)) => Ok(Value::set(a.iter().filter(|item| !b.contains(item)).cloned().collect())),
        (Value::Number(_), other) => Err(wrong_type(2, other, &["number"])),
        (Value::Set(_), other) => Err(wrong_type(2, other, &["set"])),
        (other, _) => Err(wrong_type(1, other, &["number", "set"])),
    }
}

fn div(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (a, b) = (number(args, 1)?.to_float(), number(args, 2)?.to_float());
    a.div(&b).map(|it| Value::Number(it.to_number())).ok_or_else(|| failed("divide by zero"))
}

fn rem(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (a, b) = (number(args, 1)?, number(args, 2)?);
    let (Some(a), Some(b)) = (a.to_bigint(), b.to_bigint()) else {
        return Err(failed("modulo on floating-point number"));
    };
    if b.is_zero() {
        return Err(failed("modulo by zero"));
    }
    Ok(Value::Number(Number::from(a % b)))
}

fn rounded(args: &[&Value], round: fn(Float) -> Float) -> Outcome {
    let operand = number(args, 1)?;
    Ok(Value::Number(round(operand.to_float()).to_number()))
}

fn whole(args: &[&Value], position: usize) -> Result<BigInt, BuiltinError> {
    number(args, position)?.to_bigint().ok_or_else(|| {
        BuiltinError::Operand(format!("operand {position} must be integer number but got floating-point number"))
    })
}

fn whole_number(args: &[&Value], position: usize) -> Result<BigInt, BuiltinError> {
    whole(args, position)
}

fn bits(args: &[&Value], operate: fn(BigInt, BigInt) -> Result<BigInt, BuiltinError>) -> Outcome {
    Ok(Value::Number(Number::from(operate(whole(args, 1)?, whole(args, 2)?)?)))
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
    let (mut from, to) = (whole(args, 1)?, whole(args, 2)?);
    let step = step.unwrap_or_else(|| BigInt::from(1));
    let count = ((&to - &from).abs() / &step).to_usize().unwrap_or(usize::MAX);
    context.work(count.saturating_mul(4))?;
    let mut items = Vec::with_capacity(count.saturating_add(1).min(1 << 20));
    let down = from > to;
    for done in 0..=count {
        if done % 1_024 == 1_023 {
            context.work(1_024)?;
        }
        items.push(Value::Number(Number::from(from.clone())));
        if down {
            from -= &step;
        } else {
            from += &step;
        }
    }
    Ok(Value::array(items))
}

fn rand_intn(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    text(args, 1)?;
    let bound = whole(args, 2)?.abs();
    let key = ("rand.intn", Value::array(args.iter().map(|arg| (*arg).clone()).collect()));
    if let Some(known) = context.remembered.get(&key) {
        return Ok(known.clone());
    }
    let mut bytes = [0u8; 16];
    context.host.random(&mut bytes);
    let random = BigInt::from(u128::from_le_bytes(bytes));
    let value = Value::Number(Number::from(if bound.is_zero() { BigInt::zero() } else { random % bound }));
    context.remembered.insert(key, value.clone());
    Ok(value)
}
