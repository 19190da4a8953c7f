//! Counts, sums, extremes, membership, types and conversions.
//!
//! Mirrors: OPA `v1/topdown/{aggregates,casts,type,type_name}.go`, v1.19.0.

use std::cmp::Ordering;

use super::arithmetic::{ADD, MULTIPLY, Operation, Total};
use super::{Builtin, BuiltinError, Context, Outcome, function, items, operand, wrong_item, wrong_type};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, Meter as _};
use crate::value::{Number, Value, metered};

pub(super) const TABLE: &[Builtin] = &[
    function("count", 1, count),
    function("sum", 1, |context, args| fold(context, args, 0, &ADD)),
    function("product", 1, |context, args| fold(context, args, 1, &MULTIPLY)),
    function("max", 1, |context, args| extreme(context, args, Ordering::Greater)),
    function("min", 1, |context, args| extreme(context, args, Ordering::Less)),
    function("sort", 1, sort),
    function("all", 1, |context, args| Ok(Value::Bool(!has(context, args, |item| !item.is_true())?))),
    function("any", 1, |context, args| Ok(Value::Bool(has(context, args, Value::is_true)?))),
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
    function("cast_array", 1, |context, args| match operand(args, 1)? {
        Value::Set(set) => {
            let items = context.copied(set.iter())?;
            context.array(items)
        }
        array @ Value::Array(_) => Ok(array.clone()),
        other => Err(wrong_type(1, other, &["array", "set"])),
    }),
    function("cast_set", 1, |context, args| match operand(args, 1)? {
        Value::Array(items) => {
            let items = context.copied(items.iter())?;
            context.set(items)
        }
        set @ Value::Set(_) => Ok(set.clone()),
        other => Err(wrong_type(1, other, &["array", "set"])),
    }),
    function("cast_string", 1, |_, args| same(args, "string")),
    function("cast_boolean", 1, |_, args| same(args, "boolean")),
    function("cast_null", 1, |_, args| same(args, "null")),
    function("cast_object", 1, |_, args| same(args, "object")),
];

fn count(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let value = operand(args, 1)?;
    Ok(Value::from(match value {
        Value::Array(items) => items.len(),
        Value::Object(object) => object.len(),
        Value::Set(set) => set.len(),
        Value::String(text) => {
            context.work(text.len() / 64)?;
            text.chars().count()
        }
        other => return Err(wrong_type(1, other, &["array", "object", "set", "string"])),
    }))
}

fn fold(context: &mut Context<'_>, args: &[&Value], start: i64, operation: &Operation) -> Outcome {
    let value = operand(args, 1)?;
    let items = items(value).ok_or_else(|| wrong_type(1, value, &["set", "array"]))?;
    let mut total = Total::from(start);
    for item in items {
        context.step()?;
        let number = item.as_number().ok_or_else(|| wrong_item(1, value, item, &["number"]))?;
        total = total.with(context, number, operation)?;
    }
    total.finish(context)
}

fn extreme(context: &mut Context<'_>, args: &[&Value], wanted: Ordering) -> Outcome {
    let value = operand(args, 1)?;
    let mut items = items(value).ok_or_else(|| wrong_type(1, value, &["set", "array"]))?;
    let mut best = items.next().ok_or(BuiltinError::Undefined)?;
    for item in items {
        context.step()?;
        let order = metered::compare(context, item, best)?;
        // The last of equal ones is the greatest, and the first the least: `1.0` and `1` are spelled differently.
        if order == wanted || (order.is_eq() && wanted.is_gt()) {
            best = item;
        }
    }
    Ok(best.clone())
}

fn sort(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    match operand(args, 1)? {
        Value::Array(items) => {
            let items = context.copied(items.iter())?;
            let sorted = metered::sort_by_key(context, items, |it| it)?;
            context.array(sorted)
        }
        Value::Set(set) => {
            let items = context.copied(set.iter())?;
            context.array(items)
        }
        other => Err(wrong_type(1, other, &["set", "array"])),
    }
}

/// An item has the wanted value.
fn has(context: &mut Context<'_>, args: &[&Value], is_wanted: fn(&Value) -> bool) -> Result<bool, BuiltinError> {
    let value = operand(args, 1)?;
    for item in items(value).ok_or_else(|| wrong_type(1, value, &["array", "set"]))? {
        context.step()?;
        if is_wanted(item) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn member(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (item, collection) = (operand(args, 1)?, operand(args, 2)?);
    Ok(Value::Bool(match collection {
        Value::Set(set) => {
            metered::hashing(context, item)?;
            set.contains(item)
        }
        Value::Array(items) => metered::contains(context, items, item)?,
        Value::Object(object) => {
            for value in object.values() {
                context.step()?;
                if metered::equal(context, value, item)? {
                    return Ok(Value::Bool(true));
                }
            }
            false
        }
        _ => false,
    }))
}

fn member_with_key(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (key, item, collection) = (operand(args, 1)?, operand(args, 2)?, operand(args, 3)?);
    metered::hashing(context, key)?;
    Ok(Value::Bool(match collection {
        Value::Set(set) => metered::equal(context, key, item)? && set.contains(item),
        Value::Array(_) | Value::Object(_) => match collection.get(key) {
            Some(found) => metered::equal(context, found, item)?,
            None => false,
        },
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

/// The longest text of a number.
const MAX_NUMBER_TEXT: usize = 64 << 10;

fn to_number(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    match operand(args, 1)? {
        Value::String(text) if text.len() > MAX_NUMBER_TEXT => {
            Err(EvalError::budget("the text of a number is too long").into())
        }
        Value::String(text) => {
            context.work(text.len() / 4)?;
            context.allocate(text.len().saturating_mul(6).saturating_add(HEADER_BYTES))?;
            number_of(text)
        }
        Value::Null => Ok(Value::from(0)),
        Value::Bool(it) => Ok(Value::from(i32::from(*it))),
        number @ Value::Number(_) => Ok(number.clone()),
        other => Err(wrong_type(1, other, &["null", "boolean", "number", "string"])),
    }
}

fn number_of(text: &str) -> Outcome {
    if is_not_finite(text) {
        return Err(BuiltinError::Operand("operand 1 must be valid number string but got string".to_owned()));
    }
    parse_number(text).map(Value::Number).ok_or_else(|| super::failed("invalid syntax"))
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
