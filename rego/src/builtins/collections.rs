//! Sets, arrays, objects, and documents as JSON patches them.
//!
//! Mirrors: OPA `v1/topdown/{sets,array,object,subset,reachable}.go`, v1.19.0.

mod patch;

use std::collections::{HashSet, VecDeque};

use super::{
    Builtin, BuiltinError, Context, Outcome, array, failed, function, integer, items, object, operand, set, wrong_item,
    wrong_type,
};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, ITEM_BYTES, MEMBER_BYTES, Meter as _};
use crate::value::{Object, Set, Value, metered};

pub(super) const TABLE: &[Builtin] = &[
    function("and", 2, |context, args| {
        let (a, b) = (set(args, 1)?, set(args, 2)?);
        let items = filtered(context, a, |item| b.contains(item))?;
        context.set(items)
    }),
    function("or", 2, |context, args| {
        let (a, b) = (set(args, 1)?, set(args, 2)?);
        let items = context.copied(a.iter().chain(b.iter()))?;
        context.set(items)
    }),
    function("set_diff", 2, |context, args| difference(context, set(args, 1)?, set(args, 2)?)),
    function("intersection", 1, intersection),
    function("union", 1, union),
    function("array.concat", 2, |context, args| {
        let items = context.copied(array(args, 1)?.iter().chain(array(args, 2)?))?;
        context.array(items)
    }),
    function("array.flatten", 1, flatten),
    function("array.slice", 3, slice),
    function("array.reverse", 1, |context, args| {
        let items = context.copied(array(args, 1)?.iter().rev())?;
        context.array(items)
    }),
    function("object.get", 3, get),
    function("object.keys", 1, |context, args| {
        let keys = context.copied(object(args, 1)?.keys())?;
        context.set(keys)
    }),
    function("object.union", 2, |context, args| merged(context, &[object(args, 1)?, object(args, 2)?])),
    function("object.union_n", 1, union_n),
    function("object.remove", 2, |context, args| picked(context, args, false)),
    function("object.filter", 2, |context, args| picked(context, args, true)),
    function("object.subset", 2, subset),
    function("json.filter", 2, patch::filter),
    function("json.remove", 2, patch::remove),
    function("json.patch", 2, patch::patch),
    function("graph.reachable", 2, reachable),
    function("graph.reachable_paths", 2, reachable_paths),
];

/// The items of `a` that `keep` wants.
fn filtered(context: &mut Context<'_>, a: &Set, keep: impl Fn(&Value) -> bool) -> Result<Vec<Value>, BuiltinError> {
    let mut items = Vec::new();
    for item in a.iter() {
        metered::hashing(context, item)?;
        context.step()?;
        if keep(item) {
            context.push(&mut items, item.clone())?;
        }
    }
    Ok(items)
}

pub(super) fn difference(context: &mut Context<'_>, a: &Set, b: &Set) -> Outcome {
    let items = filtered(context, a, |item| !b.contains(item))?;
    context.set(items)
}

fn intersection(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let sets = set(args, 1)?;
    let mut result: Option<Vec<Value>> = None;
    for item in sets.iter() {
        let Value::Set(next) = item else { return Err(wrong_item(1, operand(args, 1)?, item, &["set"])) };
        context.step()?;
        result = Some(match result {
            None => context.copied(next.iter())?,
            Some(known) => {
                let mut kept = Vec::new();
                let before = known.len();
                for item in known {
                    metered::hashing(context, &item)?;
                    if next.contains(&item) {
                        context.push(&mut kept, item)?;
                    } else {
                        context.step()?;
                    }
                }
                context.release(before.saturating_mul(ITEM_BYTES));
                kept
            }
        });
    }
    context.set(result.unwrap_or_default())
}

fn union(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut result = Vec::new();
    for item in set(args, 1)?.iter() {
        let Value::Set(next) = item else { return Err(wrong_item(1, operand(args, 1)?, item, &["set"])) };
        for item in next.iter() {
            context.push(&mut result, item.clone())?;
        }
    }
    context.set(result)
}

fn flatten(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut flat = Vec::new();
    for item in array(args, 1)? {
        match item {
            Value::Array(inner) => {
                context.step()?;
                for item in inner.iter() {
                    context.push(&mut flat, item.clone())?;
                }
            }
            other => context.push(&mut flat, other.clone())?,
        }
    }
    context.array(flat)
}

fn slice(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let items = array(args, 1)?;
    let within = |index: i64, limit: usize| usize::try_from(index).unwrap_or(0).min(limit);
    let stop = within(integer(args, 3)?, items.len());
    let start = within(integer(args, 2)?, stop);
    let items = context.copied(items.get(start..stop).unwrap_or_default().iter())?;
    context.array(items)
}

fn get(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    object(args, 1)?;
    let (document, path, default) = (operand(args, 1)?, operand(args, 2)?, operand(args, 3)?);
    metered::hashing(context, path)?;
    let found = match path {
        Value::Array(keys) => {
            let mut here = Some(document);
            for key in keys.iter() {
                context.step()?;
                here = here.and_then(|at| at.get(key));
            }
            here
        }
        key => document.get(key),
    };
    Ok(found.unwrap_or(default).clone())
}

/// The members of the first operand whose keys the second one names, or those that it does not name.
fn picked(context: &mut Context<'_>, args: &[&Value], wanted: bool) -> Outcome {
    let source = object(args, 1)?;
    let names = match operand(args, 2)? {
        Value::Array(items) => {
            let items = context.copied(items.iter())?;
            context.set(items)?
        }
        names @ (Value::Set(_) | Value::Object(_)) => names.clone(),
        other => return Err(wrong_type(2, other, &["object", "set", "array"])),
    };
    let mut members = Vec::new();
    for (key, value) in source.iter() {
        context.step()?;
        metered::hashing(context, key)?;
        if names.get(key).is_some() == wanted {
            context.push_member(&mut members, (key.clone(), value.clone()))?;
        }
    }
    context.object(members)
}

/// Objects are merged member by member; of anything else the last one wins, and what came before it counts no more.
fn merged(context: &mut Context<'_>, objects: &[&Object]) -> Outcome {
    let mut all = Vec::new();
    for object in objects {
        for (key, value) in object.iter() {
            context.push_member(&mut all, (key.clone(), value.clone()))?;
        }
    }
    let all = metered::sort_by_key(context, all, |(key, _)| key)?;
    let mut members: Vec<(Value, Value)> = Vec::new();
    let mut rest = all.as_slice();
    while let Some(((key, _), _)) = rest.split_first() {
        let mut same = 1usize;
        while let Some((next, _)) = rest.get(same) {
            context.step()?;
            if !metered::equal(context, key, next)? {
                break;
            }
            same = same.saturating_add(1);
        }
        let (group, after) = rest.split_at_checked(same).unwrap_or((rest, &[]));
        rest = after;
        let plain = group.iter().rposition(|(_, value)| value.as_object().is_none());
        let objects = group.get(plain.map_or(0, |at| at.saturating_add(1))..).unwrap_or_default();
        let value = match (objects, group.last()) {
            ([(_, one)], _) => one.clone(),
            ([], Some((_, last))) => last.clone(),
            (several, _) => {
                context.allocate(several.len().saturating_mul(ITEM_BYTES))?;
                let several: Vec<&Object> = several.iter().filter_map(|(_, value)| value.as_object()).collect();
                merged(context, &several)?
            }
        };
        context.push_member(&mut members, (key.clone(), value))?;
    }
    context.release(all.len().saturating_mul(MEMBER_BYTES));
    context.object(members)
}

fn union_n(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut objects = Vec::new();
    for item in array(args, 1)? {
        context.step()?;
        context.allocate(ITEM_BYTES)?;
        objects.push(
            item.as_object().ok_or_else(|| wrong_item(1, args.first().copied().unwrap_or(item), item, &["object"]))?,
        );
    }
    merged(context, &objects)
}

fn subset(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (large, small) = (operand(args, 1)?, operand(args, 2)?);
    if let (Value::Array(large), Value::Set(small)) = (large, small) {
        let mut found = 0usize;
        for item in large.iter() {
            context.step()?;
            metered::hashing(context, item)?;
            found = found.saturating_add(usize::from(small.contains(item)));
        }
        return Ok(Value::Bool(!large.is_empty() && found >= small.len()));
    }
    part_of(context, large, small)?.map(Value::Bool).ok_or_else(|| {
        BuiltinError::Operand("both arguments object.subset must be of the same type or array and set".to_owned())
    })
}

/// Nothing where the kinds have no parts in common.
fn part_of(context: &mut Context<'_>, large: &Value, small: &Value) -> Result<Option<bool>, BuiltinError> {
    Ok(match (large, small) {
        (Value::Object(large), Value::Object(small)) => {
            for (key, value) in small.iter() {
                context.step()?;
                metered::hashing(context, key)?;
                let Some(known) = large.get(key) else { return Ok(Some(false)) };
                if !metered::equal(context, known, value)? && part_of(context, known, value)? != Some(true) {
                    return Ok(Some(false));
                }
            }
            Some(true)
        }
        (Value::Set(large), Value::Set(small)) => {
            for item in small.iter() {
                context.step()?;
                metered::hashing(context, item)?;
                if !large.contains(item) {
                    return Ok(Some(false));
                }
            }
            Some(true)
        }
        (Value::Array(large), Value::Array(small)) => Some(has_run(context, large, small)?),
        _ => None,
    })
}

/// The items of `small` are a contiguous part of `large`, by the algorithm of Knuth, Morris and Pratt.
fn has_run(context: &mut Context<'_>, large: &[Value], small: &[Value]) -> Result<bool, BuiltinError> {
    if small.len() > large.len() {
        return Ok(false);
    }
    let bytes = small.len().saturating_mul(size_of::<usize>());
    context.allocate(bytes)?;
    // For each place in `small`: how many items before it are the first ones again.
    let mut borders = vec![0usize; small.len()];
    let mut border = 0usize;
    let advance = |context: &mut Context<'_>, borders: &[usize], mut at: usize, item: &Value| {
        loop {
            context.step()?;
            match small.get(at) {
                Some(next) if metered::equal(context, next, item)? => {
                    return Ok::<usize, EvalError>(at.saturating_add(1));
                }
                _ if at == 0 => return Ok(0),
                _ => at = borders.get(at.saturating_sub(1)).copied().unwrap_or(0),
            }
        }
    };
    for (at, item) in small.iter().enumerate().skip(1) {
        border = advance(context, &borders, border, item)?;
        if let Some(slot) = borders.get_mut(at) {
            *slot = border;
        }
    }
    let mut found = 0usize;
    for item in large {
        if found == small.len() {
            break;
        }
        found = advance(context, &borders, found, item)?;
    }
    context.release(bytes);
    Ok(found == small.len())
}

fn neighbours<'v>(
    context: &mut Context<'_>,
    graph: &'v Object,
    node: &Value,
) -> Result<Option<Vec<&'v Value>>, BuiltinError> {
    metered::hashing(context, node)?;
    let Some(edges) = graph.get(node) else { return Ok(None) };
    let mut list = Vec::new();
    for edge in items(edges).into_iter().flatten() {
        context.step()?;
        context.allocate(ITEM_BYTES)?;
        list.push(edge);
    }
    context.release(list.len().saturating_mul(ITEM_BYTES));
    Ok(Some(list))
}

fn starts<'v>(context: &mut Context<'_>, args: &[&'v Value]) -> Result<Vec<&'v Value>, BuiltinError> {
    let initial = operand(args, 2)?;
    let mut starts = Vec::new();
    for start in items(initial).ok_or_else(|| wrong_type(2, initial, &["array", "set"]))? {
        context.step()?;
        context.allocate(ITEM_BYTES)?;
        starts.push(start);
    }
    Ok(starts)
}

fn reachable(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let graph = object(args, 1)?;
    let mut queue: VecDeque<&Value> = starts(context, args)?.into();
    let mut reached: HashSet<&Value, ahash::RandomState> = HashSet::default();
    while let Some(node) = queue.pop_front() {
        context.step()?;
        let Some(edges) = neighbours(context, graph, node)? else { continue };
        context.allocate(ITEM_BYTES)?;
        if reached.insert(node) {
            for edge in edges {
                context.step()?;
                metered::hashing(context, edge)?;
                if !reached.contains(edge) {
                    context.allocate(ITEM_BYTES)?;
                    queue.push_back(edge);
                }
            }
        }
    }
    let reached = context.copied(reached.into_iter())?;
    context.set(reached)
}

fn reachable_paths(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let graph = object(args, 1)?;
    let mut paths = Vec::new();
    let path_bytes = |path: &[Value]| path.len().saturating_mul(ITEM_BYTES).saturating_add(HEADER_BYTES);
    for start in starts(context, args)? {
        // The paths that are still to be followed: each with the node that comes next.
        let mut open: Vec<(Vec<Value>, &Value)> = vec![(Vec::new(), start)];
        while let Some((mut path, node)) = open.pop() {
            context.work(path.len().saturating_add(1))?;
            let Some(edges) = neighbours(context, graph, node)? else {
                if !path.is_empty() || graph.get(start).is_some() {
                    let path = context.array(path)?;
                    context.push(&mut paths, path)?;
                }
                continue;
            };
            context.allocate(ITEM_BYTES)?;
            path.push(node.clone());
            if edges.is_empty() {
                let path = context.array(path)?;
                context.push(&mut paths, path)?;
                continue;
            }
            for edge in edges {
                context.work(path.len() / 16 + 1)?;
                context.allocate(path_bytes(&path))?;
                if metered::contains(context, &path, edge)? {
                    let path = context.array(path.clone())?;
                    context.push(&mut paths, path)?;
                } else {
                    open.push((path.clone(), edge));
                }
            }
            context.release(path_bytes(&path));
        }
    }
    context.set(paths)
}

fn no_such_path() -> BuiltinError {
    failed("path does not exist in tree")
}
