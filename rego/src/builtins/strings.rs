//! Strings.
//!
//! Mirrors: OPA `v1/topdown/{strings,template_string}.go`, v1.19.0.

mod sprintf;

use super::{
    Builtin, BuiltinError, Context, Outcome, array, failed, function, integer, items, number, object, operand, text,
    texts, wrong_item, wrong_type,
};
use crate::eval::{ErrorKind, EvalError};
use crate::value::Value;

pub const TABLE: &[Builtin] = &[
    function("concat", 2, concat),
    function("contains", 2, |_, args| Ok(Value::Bool(text(args, 1)?.contains(text(args, 2)?)))),
    function("startswith", 2, |_, args| Ok(Value::Bool(text(args, 1)?.starts_with(text(args, 2)?)))),
    function("endswith", 2, |_, args| Ok(Value::Bool(text(args, 1)?.ends_with(text(args, 2)?)))),
    function("strings.any_prefix_match", 2, |_, args| any_match(args, |text, part| text.starts_with(part))),
    function("strings.any_suffix_match", 2, |_, args| any_match(args, |text, part| text.ends_with(part))),
    function("strings.reverse", 1, |_, args| Ok(Value::from(text(args, 1)?.chars().rev().collect::<String>()))),
    function("strings.count", 2, count),
    function("strings.replace_n", 2, replace_n),
    function("strings.split_n", 3, split_n),
    function("format_int", 2, format_int),
    function("indexof", 2, indexof),
    function("indexof_n", 2, indexof_n),
    function("substring", 3, substring),
    function("lower", 1, |_, args| Ok(Value::from(mapped(text(args, 1)?, char::to_lowercase)))),
    function("upper", 1, |_, args| Ok(Value::from(mapped(text(args, 1)?, char::to_uppercase)))),
    function("replace", 3, replace),
    function("split", 2, split),
    function("trim", 2, |_, args| trimmed(args, |text, set| text.trim_matches(set))),
    function("trim_left", 2, |_, args| trimmed(args, |text, set| text.trim_start_matches(set))),
    function("trim_right", 2, |_, args| trimmed(args, |text, set| text.trim_end_matches(set))),
    function("trim_prefix", 2, |_, args| {
        let (text, part) = (text(args, 1)?, text(args, 2)?);
        Ok(Value::from(text.strip_prefix(part).unwrap_or(text)))
    }),
    function("trim_suffix", 2, |_, args| {
        let (text, part) = (text(args, 1)?, text(args, 2)?);
        Ok(Value::from(text.strip_suffix(part).unwrap_or(text)))
    }),
    function("trim_space", 1, |_, args| Ok(Value::from(text(args, 1)?.trim()))),
    function("sprintf", 2, sprintf::sprintf),
    function("internal.template_string", 1, template_string),
];

/// Bytes that a function may add to its operands.
pub(super) const MAX_TEXT_BYTES: usize = 64 << 20;

fn concat(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let join = text(args, 1)?;
    let value = operand(args, 2)?;
    let parts = items(value).ok_or_else(|| wrong_type(2, value, &["set", "array"]))?;
    let mut out = String::new();
    for (at, part) in parts.enumerate() {
        if at > 0 {
            out.push_str(join);
        }
        out.push_str(part.as_str().ok_or_else(|| wrong_item(2, value, part, &["string"]))?);
    }
    context.work(out.len() / 64)?;
    Ok(Value::from(out))
}

fn one_or_many<'v>(args: &[&'v Value], position: usize) -> Result<Vec<&'v str>, BuiltinError> {
    match operand(args, position)? {
        Value::String(text) => Ok(vec![text]),
        Value::Array(_) | Value::Set(_) => texts(args, position),
        other => Err(wrong_type(position, other, &["string", "set", "array"])),
    }
}

fn any_match(args: &[&Value], matches: fn(&str, &str) -> bool) -> Outcome {
    let (texts, parts) = (one_or_many(args, 1)?, one_or_many(args, 2)?);
    Ok(Value::Bool(texts.iter().any(|text| parts.iter().any(|part| matches(text, part)))))
}

fn count(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (text, part) = (text(args, 1)?, text(args, 2)?);
    let count = if part.is_empty() { text.chars().count().saturating_add(1) } else { text.matches(part).count() };
    Ok(Value::from(count))
}

/// All patterns in one pass, as Go's `strings.NewReplacer` does: at each place the first pattern that fits.
fn replace_all(text: &str, pairs: &[(&str, &str)]) -> Result<String, BuiltinError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut after_empty = false;
    loop {
        // An empty pattern fits once at every place.
        let found = pairs.iter().find(|(old, _)| rest.starts_with(old) && !(old.is_empty() && after_empty));
        match found {
            Some((old, new)) if !old.is_empty() => {
                out.push_str(new);
                rest = rest.get(old.len()..).unwrap_or_default();
                after_empty = false;
            }
            found => {
                if let Some((_, new)) = found {
                    out.push_str(new);
                }
                let mut chars = rest.chars();
                let Some(char) = chars.next() else { return Ok(out) };
                // A longer pattern may fit where an empty one did.
                if let Some((old, new)) = pairs.iter().find(|(old, _)| !old.is_empty() && rest.starts_with(old)) {
                    out.push_str(new);
                    rest = rest.get(old.len()..).unwrap_or_default();
                    continue;
                }
                out.push(char);
                rest = chars.as_str();
                after_empty = false;
            }
        }
        if out.len() > MAX_TEXT_BYTES {
            return Err(EvalError::budget("a string grew too long").into());
        }
    }
}

fn replace(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (text, old, new) = (text(args, 1)?, text(args, 2)?, text(args, 3)?);
    Ok(Value::from(replace_all(text, &[(old, new)])?))
}

fn replace_n(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let patterns = object(args, 1)?;
    let text = text(args, 2)?;
    let mut pairs = Vec::new();
    for (key, value) in patterns.iter() {
        let bad = |what: &str| BuiltinError::Operand(format!("operand 1 non-string {what} found in pattern object"));
        pairs.push((key.as_str().ok_or_else(|| bad("key"))?, value.as_str().ok_or_else(|| bad("value"))?));
    }
    context.work(text.len().saturating_mul(pairs.len()))?;
    Ok(Value::from(replace_all(text, &pairs)?))
}

fn pieces<'t>(text: &'t str, by: &str) -> Vec<&'t str> {
    if !by.is_empty() {
        return text.split(by).collect();
    }
    // Go splits at the empty string into characters.
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        let (piece, after) = rest.split_at(char.len_utf8());
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn split(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let pieces = pieces(text(args, 1)?, text(args, 2)?);
    Ok(Value::array(pieces.into_iter().map(Value::from).collect()))
}

fn split_n(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let pieces = pieces(text(args, 1)?, text(args, 2)?);
    let count = integer(args, 3)?;
    let wanted = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX).min(pieces.len());
    let kept = if count >= 0 { pieces.get(..wanted) } else { pieces.get(pieces.len().saturating_sub(wanted)..) };
    Ok(Value::array(kept.unwrap_or_default().iter().copied().map(Value::from).collect()))
}

fn format_int(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let input = number(args, 1)?;
    let radix = match number(args, 2)?.as_i64() {
        Some(radix @ (2 | 8 | 10 | 16)) => u32::try_from(radix).unwrap_or(10),
        _ => return Err(BuiltinError::Operand("operand 2 must be one of {2, 8, 10, 16}".to_owned())),
    };
    let whole = input.to_bigint().unwrap_or_else(|| input.to_float().truncated());
    Ok(Value::from(whole.to_str_radix(radix)))
}

fn searched<'v>(args: &[&'v Value]) -> Result<(&'v str, &'v str), BuiltinError> {
    let (base, search) = (text(args, 1)?, text(args, 2)?);
    if search.is_empty() { Err(failed("empty search character")) } else { Ok((base, search)) }
}

fn indexof(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (base, search) = searched(args)?;
    let found = base.find(search).map(|at| base.get(..at).unwrap_or_default().chars().count());
    Ok(found.map_or(Value::from(-1), Value::from))
}

fn indexof_n(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (base, search) = searched(args)?;
    context.work(base.len() / 16)?;
    let found = base
        .char_indices()
        .enumerate()
        .filter(|(_, (at, _))| base.get(*at..).is_some_and(|rest| rest.starts_with(search)));
    Ok(Value::array(found.map(|(at, _)| Value::from(at)).collect()))
}

fn substring(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (base, start, length) = (text(args, 1)?, integer(args, 2)?, integer(args, 3)?);
    let Ok(start) = usize::try_from(start) else { return Err(failed("negative offset")) };
    let rest = base.chars().skip(start);
    Ok(Value::from(match usize::try_from(length) {
        Ok(length) => rest.take(length).collect::<String>(),
        Err(_) => rest.collect(),
    }))
}

/// Character by character, as Go does: `ß` has no single upper case and stays.
fn mapped<I: Iterator<Item = char>>(text: &str, map: fn(char) -> I) -> String {
    text.chars()
        .map(|char| {
            // Go maps rune to rune; this one has a single partner only there.
            if char == '\u{130}' && map('A').next() == Some('a') {
                return 'i';
            }
            let mut mapped = map(char);
            match (mapped.next(), mapped.next()) {
                (Some(one), None) => one,
                _ => char,
            }
        })
        .collect()
}

fn trimmed(args: &[&Value], trim: for<'t> fn(&'t str, &[char]) -> &'t str) -> Outcome {
    let cut: Vec<char> = text(args, 2)?.chars().collect();
    Ok(Value::from(trim(text(args, 1)?, &cut)))
}

fn template_string(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut out = String::new();
    for part in array(args, 1)? {
        let value = match part {
            Value::Set(set) => match set.len() {
                0 => {
                    out.push_str("<undefined>");
                    continue;
                }
                1 => set.iter().next().unwrap_or(part),
                _ => {
                    let message = "template-strings must not produce multiple outputs";
                    return Err(EvalError::new(ErrorKind::Conflict, message).into());
                }
            },
            other => other,
        };
        match value {
            Value::String(text) => out.push_str(text),
            other => out.push_str(&other.to_string()),
        }
    }
    Ok(Value::from(out))
}
