//! Strings.
//!
//! Mirrors: OPA `v1/topdown/{strings,template_string}.go`, v1.19.0.

mod search;
mod sprintf;

use std::collections::HashSet;

pub(super) use self::search::Needle;
use super::{
    Builtin, BuiltinError, Context, Outcome, TextBuilder, array, failed, function, integer, items, number, object,
    operand, text, texts, wrong_item, wrong_type,
};
use crate::eval::{ErrorKind, EvalError};
use crate::meter::{ITEM_BYTES, MEMBER_BYTES, Meter as _};
use crate::value::Value;

pub(super) const TABLE: &[Builtin] = &[
    function("concat", 2, concat),
    function("contains", 2, |context, args| {
        let (text, part) = (text(args, 1)?, text(args, 2)?);
        Ok(Value::Bool(part.is_empty() || Needle::new(context, part)?.find(context, text, 0)?.is_some()))
    }),
    function("startswith", 2, |context, args| {
        let (text, part) = searched_work(context, args)?;
        Ok(Value::Bool(text.starts_with(part)))
    }),
    function("endswith", 2, |context, args| {
        let (text, part) = searched_work(context, args)?;
        Ok(Value::Bool(text.ends_with(part)))
    }),
    function("strings.any_prefix_match", 2, |context, args| {
        any_match(context, args, |text, part| text.starts_with(part))
    }),
    function("strings.any_suffix_match", 2, |context, args| {
        any_match(context, args, |text, part| text.ends_with(part))
    }),
    function("strings.reverse", 1, |context, args| {
        let given = text(args, 1)?;
        context.made_text(given.len(), || given.chars().rev().collect())
    }),
    function("strings.count", 2, count),
    function("strings.replace_n", 2, replace_n),
    function("strings.split_n", 3, split_n),
    function("format_int", 2, format_int),
    function("indexof", 2, indexof),
    function("indexof_n", 2, indexof_n),
    function("substring", 3, substring),
    function("lower", 1, |context, args| mapped(context, text(args, 1)?, char::to_lowercase)),
    function("upper", 1, |context, args| mapped(context, text(args, 1)?, char::to_uppercase)),
    function("replace", 3, replace),
    function("split", 2, split),
    function("trim", 2, |context, args| trimmed(context, args, Side::Both)),
    function("trim_left", 2, |context, args| trimmed(context, args, Side::Left)),
    function("trim_right", 2, |context, args| trimmed(context, args, Side::Right)),
    function("trim_prefix", 2, |context, args| {
        let (text, part) = searched_work(context, args)?;
        context.text(text.strip_prefix(part).unwrap_or(text))
    }),
    function("trim_suffix", 2, |context, args| {
        let (text, part) = searched_work(context, args)?;
        context.text(text.strip_suffix(part).unwrap_or(text))
    }),
    function("trim_space", 1, |context, args| {
        let given = text(args, 1)?;
        context.work(given.len() / 16)?;
        context.text(given.trim())
    }),
    function("sprintf", 2, sprintf::sprintf),
    function("internal.template_string", 1, template_string),
];

fn concat(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let join = text(args, 1)?;
    let value = operand(args, 2)?;
    let parts = items(value).ok_or_else(|| wrong_type(2, value, &["set", "array"]))?;
    let mut out = TextBuilder::new(context)?;
    for (at, part) in parts.enumerate() {
        if at > 0 {
            out.push(context, join)?;
        }
        out.push(context, part.as_str().ok_or_else(|| wrong_item(2, value, part, &["string"]))?)?;
    }
    out.finish(context)
}

/// A text and what is looked for in it. Searching is linear in both.
fn searched_work<'v>(context: &mut Context<'_>, args: &[&'v Value]) -> Result<(&'v str, &'v str), BuiltinError> {
    let (text, part) = (text(args, 1)?, text(args, 2)?);
    context.work(text.len().saturating_add(part.len()) / 64)?;
    Ok((text, part))
}

fn one_or_many<'v>(
    context: &mut Context<'_>,
    args: &[&'v Value],
    position: usize,
) -> Result<Vec<&'v str>, BuiltinError> {
    match operand(args, position)? {
        Value::String(text) => Ok(vec![text]),
        Value::Array(_) | Value::Set(_) => texts(context, args, position),
        other => Err(wrong_type(position, other, &["string", "set", "array"])),
    }
}

fn any_match(context: &mut Context<'_>, args: &[&Value], matches: fn(&str, &str) -> bool) -> Outcome {
    let (texts, parts) = (one_or_many(context, args, 1)?, one_or_many(context, args, 2)?);
    for text in &texts {
        for part in &parts {
            context.work(part.len() / 256 + 1)?;
            if matches(text, part) {
                return Ok(Value::Bool(true));
            }
        }
    }
    Ok(Value::Bool(false))
}

fn count(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (text, part) = searched_work(context, args)?;
    if part.is_empty() {
        return Ok(Value::from(text.chars().count().saturating_add(1)));
    }
    let needle = Needle::new(context, part)?;
    let (mut count, mut from) = (0usize, 0usize);
    while let Some(at) = needle.find(context, text, from)? {
        count = count.saturating_add(1);
        from = at.saturating_add(part.len());
    }
    Ok(Value::from(count))
}

/// All patterns in one pass, as Go's `strings.NewReplacer` does: at each place the first pattern that fits.
fn replace_all(context: &mut Context<'_>, text: &str, pairs: &[(&str, &str)]) -> Outcome {
    let mut out = TextBuilder::new(context)?;
    let mut rest = text;
    let mut after_empty = false;
    loop {
        context.work(pairs.len() / 8 + 1)?;
        // An empty pattern fits once at every place.
        let found = pairs.iter().find(|(old, _)| rest.starts_with(old) && !(old.is_empty() && after_empty));
        match found {
            Some((old, new)) if !old.is_empty() => {
                out.push(context, new)?;
                rest = rest.get(old.len()..).unwrap_or_default();
                after_empty = false;
            }
            found => {
                if let Some((_, new)) = found {
                    out.push(context, new)?;
                }
                let mut chars = rest.chars();
                let Some(char) = chars.next() else { return out.finish(context) };
                // A longer pattern may fit where an empty one did.
                if let Some((old, new)) = pairs.iter().find(|(old, _)| !old.is_empty() && rest.starts_with(old)) {
                    out.push(context, new)?;
                    rest = rest.get(old.len()..).unwrap_or_default();
                    continue;
                }
                out.reserve(context, char.len_utf8())?;
                out.text().push(char);
                rest = chars.as_str();
                after_empty = false;
            }
        }
    }
}

fn replace(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (given, old, new) = (text(args, 1)?, text(args, 2)?, text(args, 3)?);
    if old.is_empty() {
        return replace_all(context, given, &[(old, new)]);
    }
    let needle = Needle::new(context, old)?;
    let mut out = TextBuilder::new(context)?;
    let mut from = 0;
    while let Some(at) = needle.find(context, given, from)? {
        out.push(context, given.get(from..at).unwrap_or_default())?;
        out.push(context, new)?;
        from = at.saturating_add(old.len());
    }
    out.push(context, given.get(from..).unwrap_or_default())?;
    out.finish(context)
}

fn replace_n(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let patterns = object(args, 1)?;
    let text = text(args, 2)?;
    let mut pairs = Vec::new();
    for (key, value) in patterns.iter() {
        context.step()?;
        context.allocate(MEMBER_BYTES)?;
        let bad = |what: &str| BuiltinError::Operand(format!("operand 1 non-string {what} found in pattern object"));
        pairs.push((key.as_str().ok_or_else(|| bad("key"))?, value.as_str().ok_or_else(|| bad("value"))?));
    }
    replace_all(context, text, &pairs)
}

/// The pieces of a text; Go splits at the empty string into characters.
fn pieces<'t>(context: &mut Context<'_>, text: &'t str, by: &str) -> Result<Vec<&'t str>, BuiltinError> {
    let mut pieces = Vec::new();
    if by.is_empty() {
        for piece in text.split_inclusive(|_: char| true) {
            context.step()?;
            context.allocate(ITEM_BYTES)?;
            pieces.push(piece);
        }
        return Ok(pieces);
    }
    let needle = Needle::new(context, by)?;
    let mut from = 0;
    while let Some(at) = needle.find(context, text, from)? {
        context.allocate(ITEM_BYTES)?;
        pieces.push(text.get(from..at).unwrap_or_default());
        from = at.saturating_add(by.len());
    }
    pieces.push(text.get(from..).unwrap_or_default());
    Ok(pieces)
}

fn split(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut items = Vec::new();
    let found = pieces(context, text(args, 1)?, text(args, 2)?)?;
    let passing = found.len().saturating_mul(ITEM_BYTES);
    for piece in found {
        let piece = context.text(piece)?;
        context.push(&mut items, piece)?;
    }
    context.release(passing);
    context.array(items)
}

fn split_n(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let count = integer(args, 3)?;
    let found = pieces(context, text(args, 1)?, text(args, 2)?)?;
    let wanted = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX).min(found.len());
    let kept = if count >= 0 { found.get(..wanted) } else { found.get(found.len().saturating_sub(wanted)..) };
    let mut items = Vec::new();
    for piece in kept.unwrap_or_default() {
        let piece = context.text(piece)?;
        context.push(&mut items, piece)?;
    }
    context.array(items)
}

fn format_int(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let input = number(args, 1)?;
    let radix = match number(args, 2)?.as_i64() {
        Some(radix @ (2 | 8 | 10 | 16)) => u32::try_from(radix).unwrap_or(10),
        _ => return Err(BuiltinError::Operand("operand 2 must be one of {2, 8, 10, 16}".to_owned())),
    };
    let digits = input.digits();
    super::arithmetic::conversion(context, digits)?;
    let whole = input.to_bigint().unwrap_or_else(|| input.to_float().truncated());
    // A decimal digit is less than four binary ones.
    context.made_text(digits.saturating_mul(4), || whole.to_str_radix(radix))
}

fn searched<'v>(args: &[&'v Value]) -> Result<(&'v str, &'v str), BuiltinError> {
    let (base, search) = (text(args, 1)?, text(args, 2)?);
    if search.is_empty() { Err(failed("empty search character")) } else { Ok((base, search)) }
}

fn indexof(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (base, search) = searched(args)?;
    let Some(at) = Needle::new(context, search)?.find(context, base, 0)? else { return Ok(Value::from(-1)) };
    context.work(at / 64)?;
    Ok(Value::from(base.get(..at).unwrap_or_default().chars().count()))
}

fn indexof_n(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (base, search) = searched(args)?;
    let mut found = Vec::new();
    for (at, (start, _)) in base.char_indices().enumerate() {
        context.work(search.len() / 256 + 1)?;
        if base.get(start..).is_some_and(|rest| rest.starts_with(search)) {
            context.push(&mut found, Value::from(at))?;
        }
    }
    context.array(found)
}

fn substring(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (base, start, length) = (text(args, 1)?, integer(args, 2)?, integer(args, 3)?);
    let Ok(start) = usize::try_from(start) else { return Err(failed("negative offset")) };
    context.work(base.len() / 64)?;
    let offset = |text: &str, chars: usize| text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
    let rest = base.get(offset(base, start)..).unwrap_or_default();
    let end = usize::try_from(length).map_or(rest.len(), |length| offset(rest, length));
    context.text(rest.get(..end).unwrap_or_default())
}

/// Character by character, as Go does: `ß` has no single upper case and stays.
fn mapped<I: Iterator<Item = char>>(context: &mut Context<'_>, text: &str, map: fn(char) -> I) -> Outcome {
    let one = |char: char| {
        // Go maps rune to rune; this one has a single partner only there.
        if char == '\u{130}' && map('A').next() == Some('a') {
            return 'i';
        }
        let mut mapped = map(char);
        match (mapped.next(), mapped.next()) {
            (Some(one), None) => one,
            _ => char,
        }
    };
    // No character has a partner that is more than half as long again.
    context.mapped_text(std::iter::once(text), 2, |out, part| out.extend(part.chars().map(one)))
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Left,
    Right,
    Both,
}

fn trimmed(context: &mut Context<'_>, args: &[&Value], side: Side) -> Outcome {
    let (given, cut) = (text(args, 1)?, text(args, 2)?);
    context.allocate(cut.len().saturating_mul(ITEM_BYTES))?;
    let mut set: HashSet<char, ahash::RandomState> = HashSet::default();
    for char in cut.chars() {
        context.step()?;
        set.insert(char);
    }
    let mut end_of = |chars: &mut dyn Iterator<Item = char>| {
        let mut bytes = 0usize;
        for char in chars {
            context.step()?;
            if !set.contains(&char) {
                break;
            }
            bytes = bytes.saturating_add(char.len_utf8());
        }
        Ok::<usize, EvalError>(bytes)
    };
    let mut rest = given;
    if side != Side::Right {
        rest = rest.get(end_of(&mut rest.chars())?..).unwrap_or_default();
    }
    if side != Side::Left {
        let cut = end_of(&mut rest.chars().rev())?;
        rest = rest.get(..rest.len().saturating_sub(cut)).unwrap_or_default();
    }
    context.release(cut.len().saturating_mul(ITEM_BYTES));
    context.text(rest)
}

fn template_string(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut out = TextBuilder::new(context)?;
    for part in array(args, 1)? {
        let value = match part {
            Value::Set(set) => match set.len() {
                0 => {
                    out.push(context, "<undefined>")?;
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
        out.push_value(context, value)?;
    }
    out.finish(context)
}
