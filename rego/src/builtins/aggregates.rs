//! Counts, sums, extremes, membership, types and conversions.
//!
//! Mirrors: OPA `v1/topdown/{aggregates,casts,type,type_name}.go`, v1.19.0.

use super::arithmetic::calculate;
use super::{Builtin, BuiltinError, Context, Outcome, function, items, operand, wrong_item, wrong_type};
use crate::value::{Float, Number, Value};

pub const TABLE: &[Builtin] = &[
    function("count", 1, count),
    function("sum", 1, |context, args| fold(context, args, 0, i64::checked_add, |a, b| a + b, Float::add)),
    function("product", 1, |context, args| fold(context, args, 1, i64::checked_mul, |a, b| a * b, Float::mul)),
    function("max", 1, |_, args| extreme(args, |it| it.max())),
    function("min", 1, |_, args| extreme(args, |it| it.min())),
    function("sort", 1, sort),
    function("all", 1, |_, args| truths(args, |mut it| it.all(Value::is_true))),
    function("any", 1, |_, args| truths(args, |mut it| it.any(Value::is_true))),
    function("internal.member_2", 2, member),
    function("internal.member_3", 3, member_with_key),
    function("type_name", 1, |_, args| Ok(Value::from(operand(args, 1)?.kind()))),
    function("is_null", 1, |_, args| is(args, "null")),
    function("is_boolean", 1, |_, args| is(args, "boolean")),
    function("is_number", 1, |_, args| is(args, "number")),
    function("is_string", 1, |_, args| is(args, "string")),
    function("is_array", 1, |_, args| is(args, "array")),
    function("is_object", 1, |_, args| is(args, "object")),
    function("is_set", 1, |_, args| is(args, "set")),
    function("to_number", 1, to_number),
    function("cast_array", 1, |_, args| match operand(args, 1)? {
        Value::Set(set) => Ok(Value::array(set.to_vec())),
        array @ Value::Array(_) => Ok(array.clone()),
        other => Err(wrong_type(1, other, &["array", "set"])),
    }),
    function("cast_set", 1, |_, args| match operand(args, 1)? {
        Value::Array(items) => Ok(Value::set(items.to_vec())),
        set @ Value::Set(_) => Ok(set.clone()),
        other => Err(wrong_type(1, other, &["array", "set"])),
    }),
    function("cast_string", 1, |_, args| same(args, "string")),
    function("cast_boolean", 1, |_, args| same(args, "boolean")),
    function("cast_null", 1, |_, args| same(args, "null")),
    function("cast_object", 1, |_, args| same(args, "object")),
];

fn count(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let value = operand(args, 1)?;
    Ok(Value::from(match value {
        Value::Array(items) => items.len(),
        Value::Object(object) => object.len(),
        Value::Set(set) => set.len(),
        Value::String(text) => text.chars().count(),
        other => return Err(wrong_type(1, other, &["array", "object", "set", "string"])),
    }))
}

fn fold(
    context: &mut Context<'_>,
    args: &[&Value],
    start: i64,
    small: fn(i64, i64) -> Option<i64>,
    big: fn(num_bigint::BigInt, num_bigint::BigInt) -> num_bigint::BigInt,
    float: fn(&Float, &Float) -> Float,
) -> Outcome {
    let value = operand(args, 1)?;
    let items = items(value).ok_or_else(|| wrong_type(1, value, &["set", "array"]))?;
    let mut total = Number::from(start);
    for item in items {
        let number = item.as_number().ok_or_else(|| wrong_item(1, value, item, &["number"]))?;
        total = calculate(context, &total, number, small, big, float)?;
    }
    Ok(Value::Number(total))
}

type Items<'v> = Box<dyn Iterator<Item = &'v Value> + 'v>;

fn extreme(args: &[&Value], pick: for<'v> fn(Items<'v>) -> Option<&'v Value>) -> Outcome {
    let value = operand(args, 1)?;
    let items = items(value).ok_or_else(|| wrong_type(1, value, &["set", "array"]))?;
    pick(items).cloned().ok_or(BuiltinError::Undefined)
}

fn sort(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    match operand(args, 1)? {
        Value::Array(items) => {
            let mut items = items.to_vec();
            items.sort();
            Ok(Value::array(items))
        }
        Value::Set(set) => Ok(Value::array(set.to_vec())),
        other => Err(wrong_type(1, other, &["set", "array"])),
    }
}

fn truths(args: &[&Value], hold: for<'v> fn(Items<'v>) -> bool) -> Outcome {
    let value = operand(args, 1)?;
    let items = items(value).ok_or_else(|| wrong_type(1, value, &["array", "set"]))?;
    Ok(Value::Bool(hold(items)))
}

fn member(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (item, collection) = (operand(args, 1)?, operand(args, 2)?);
    Ok(Value::Bool(match collection {
        Value::Set(set) => set.contains(item),
        Value::Array(items) => items.contains(item),
        Value::Object(object) => object.values().any(|value| value == item),
        _ => false,
    }))
}

fn member_with_key(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (key, item, collection) = (operand(args, 1)?, operand(args, 2)?, operand(args, 3)?);
    Ok(Value::Bool(match collection {
        Value::Set(set) => key == item && set.contains(item),
        Value::Array(_) | Value::Object(_) => collection.get(key) == Some(item),
        _ => false,
    }))
}

fn is(args: &[&Value], kind: &str) -> Outcome {
    Ok(Value::Bool(operand(args, 1)?.kind() == kind))
}

fn same(args: &[&Value], kind: &'static str) -> Outcome {
    let value = operand(args, 1)?;
    if value.kind() == kind { Ok(value.clone()) } else { Err(wrong_type(1, value, &[kind])) }
}

fn to_number(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    match operand(args, 1)? {
        Value::Null => Ok(Value::from(0)),
        Value::Bool(it) => Ok(Value::from(i32::from(*it))),
        number @ Value::Number(_) => Ok(number.clone()),
        Value::String(text) if is_not_finite(text) => {
            Err(BuiltinError::Operand("operand 1 must be valid number string but got string".to_owned()))
        }
        Value::String(text) => parse_number(text).map(Value::Number).ok_or_else(|| super::failed("invalid syntax")),
        other => Err(wrong_type(1, other, &["null", "boolean", "number", "string"])),
    }
}

fn is_not_finite(text: &str) -> bool {
    matches!(text.trim_start_matches(['+', '-']).to_ascii_lowercase().as_str(), "inf" | "infinity" | "nan")
}

/// Text that Go reads as a number and JSON spells alike.
fn parse_number(text: &str) -> Option<Number> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = if text.starts_with('-') { "-" } else { "" };
    // Go takes `.5`, `5.` and leading zeros.
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    if let Some(number) = Number::parse(text) {
        return Some(number);
    }
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let fraction = if fraction.is_empty() { String::new() } else { format!(".{fraction}") };
    let exponent = exponent.map(|it| format!("e{it}")).unwrap_or_default();
    Number::parse(&format!("{sign}{whole}{fraction}{exponent}"))
}
