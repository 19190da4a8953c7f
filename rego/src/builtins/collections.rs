//! Sets, arrays, objects, and documents as JSON patches them.
//!
//! Mirrors: OPA `v1/topdown/{sets,array,object,subset,reachable}.go`, v1.19.0.

mod patch;

use std::collections::VecDeque;

use super::{
    Builtin, BuiltinError, Context, Outcome, array, failed, function, integer, items, object, operand, set, wrong_item,
    wrong_type,
};
use crate::value::{Object, Value};

pub const TABLE: &[Builtin] = &[
    function("and", 2, |_, args| {
        let (a, b) = (set(args, 1)?, set(args, 2)?);
        Ok(Value::set(a.iter().filter(|item| b.contains(item)).cloned().collect()))
    }),
    function("or", 2, |_, args| {
        let (a, b) = (set(args, 1)?, set(args, 2)?);
        Ok(Value::set(a.iter().chain(b.iter()).cloned().collect()))
    }),
    function("set_diff", 2, |_, args| {
        let (a, b) = (set(args, 1)?, set(args, 2)?);
        Ok(Value::set(a.iter().filter(|item| !b.contains(item)).cloned().collect()))
    }),
    function("intersection", 1, intersection),
    function("union", 1, union),
    function("array.concat", 2, |_, args| Ok(Value::array([array(args, 1)?, array(args, 2)?].concat()))),
    function("array.flatten", 1, flatten),
    function("array.slice", 3, slice),
    function("array.reverse", 1, |_, args| Ok(Value::array(array(args, 1)?.iter().rev().cloned().collect()))),
    function("object.get", 3, get),
    function("object.keys", 1, |_, args| Ok(Value::set(object(args, 1)?.keys().cloned().collect()))),
    function("object.union", 2, |_, args| Ok(merged(object(args, 1)?, object(args, 2)?))),
    function("object.union_n", 1, union_n),
    function("object.remove", 2, |_, args| {
        let (object, keys) = (object(args, 1)?, keys(args)?);
        Ok(Value::object(kept(object, |key| !keys.contains(&key))))
    }),
    function("object.filter", 2, |_, args| {
        let (object, keys) = (object(args, 1)?, keys(args)?);
        Ok(Value::object(kept(object, |key| keys.contains(&key))))
    }),
    function("object.subset", 2, subset),
    function("json.filter", 2, patch::filter),
    function("json.remove", 2, patch::remove),
    function("json.patch", 2, patch::patch),
    function("graph.reachable", 2, reachable),
    function("graph.reachable_paths", 2, reachable_paths),
];

fn intersection(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let sets = set(args, 1)?;
    let mut result: Option<Vec<Value>> = None;
    for item in sets.iter() {
        let Value::Set(next) = item else { return Err(wrong_item(1, operand(args, 1)?, item, &["set"])) };
        result = Some(match result {
            None => next.to_vec(),
            Some(known) => known.into_iter().filter(|item| next.contains(item)).collect(),
        });
    }
    Ok(Value::set(result.unwrap_or_default()))
}

fn union(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut result = Vec::new();
    for item in set(args, 1)?.iter() {
        let Value::Set(next) = item else { return Err(wrong_item(1, operand(args, 1)?, item, &["set"])) };
        result.extend(next.iter().cloned());
    }
    Ok(Value::set(result))
}

fn flatten(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut flat = Vec::new();
    for item in array(args, 1)? {
        match item {
            Value::Array(inner) => flat.extend(inner.iter().cloned()),
            other => flat.push(other.clone()),
        }
    }
    Ok(Value::array(flat))
}

fn slice(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let items = array(args, 1)?;
    let within = |index: i64, limit: usize| usize::try_from(index).unwrap_or(0).min(limit);
    let stop = within(integer(args, 3)?, items.len());
    let start = within(integer(args, 2)?, stop);
    Ok(Value::array(items.get(start..stop).unwrap_or_default().to_vec()))
}

fn get(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    object(args, 1)?;
    let (document, path, default) = (operand(args, 1)?, operand(args, 2)?, operand(args, 3)?);
    let found = match path {
        Value::Array(keys) => keys.iter().try_fold(document, |at, key| at.get(key)),
        key => document.get(key),
    };
    Ok(found.unwrap_or(default).clone())
}

/// The second operand as keys.
fn keys<'v>(args: &[&'v Value]) -> Result<std::collections::BTreeSet<&'v Value>, BuiltinError> {
    match operand(args, 2)? {
        Value::Array(items) => Ok(items.iter().collect()),
        Value::Set(set) => Ok(set.iter().collect()),
        Value::Object(object) => Ok(object.keys().collect()),
        other => Err(wrong_type(2, other, &["object", "set", "array"])),
    }
}

fn kept(object: &Object, keep: impl Fn(&Value) -> bool) -> Vec<(Value, Value)> {
    object.iter().filter(|(key, _)| keep(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Objects are merged member by member; anything else of `b` wins.
fn merged(a: &Object, b: &Object) -> Value {
    let mut members = a.to_vec();
    for (key, value) in b.iter() {
        match members.binary_search_by(|(known, _)| known.cmp(key)) {
            Ok(at) => {
                let Some((_, known)) = members.get_mut(at) else { continue };
                *known = match (&*known, value) {
                    (Value::Object(a), Value::Object(b)) => merged(a, b),
                    _ => value.clone(),
                };
            }
            Err(at) => members.insert(at, (key.clone(), value.clone())),
        }
    }
    Value::object(members)
}

fn union_n(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let list = array(args, 1)?;
    let mut result = Object::default();
    for item in list {
        let Value::Object(next) = item else { return Err(wrong_item(1, operand(args, 1)?, item, &["object"])) };
        context.work(result.len().saturating_add(next.len()))?;
        if let Value::Object(object) = merged(&result, next) {
            result = (*object).clone();
        }
    }
    Ok(Value::Object(result.into()))
}

fn subset(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (large, small) = (operand(args, 1)?, operand(args, 2)?);
    if let (Value::Array(large), Value::Set(small)) = (large, small) {
        let found = large.iter().filter(|item| small.contains(item)).count();
        return Ok(Value::Bool(!large.is_empty() && found >= small.len()));
    }
    part_of(large, small).map(Value::Bool).ok_or_else(|| {
        BuiltinError::Operand("both arguments object.subset must be of the same type or array and set".to_owned())
    })
}

/// Nothing where the kinds have no parts in common.
fn part_of(large: &Value, small: &Value) -> Option<bool> {
    match (large, small) {
        (Value::Object(large), Value::Object(small)) => Some(small.iter().all(|(key, value)| {
            large.get(key).is_some_and(|known| known == value || part_of(known, value) == Some(true))
        })),
        (Value::Set(large), Value::Set(small)) => Some(small.iter().all(|item| large.contains(item))),
        (Value::Array(large), Value::Array(small)) => {
            Some(small.is_empty() || large.windows(small.len()).any(|window| window == small.as_slice()))
        }
        _ => None,
    }
}

fn neighbours<'v>(graph: &'v Object, node: &Value) -> Option<Vec<&'v Value>> {
    graph.get(node).map(|edges| items(edges).map(Iterator::collect).unwrap_or_default())
}

fn starts<'v>(args: &[&'v Value]) -> Result<Vec<&'v Value>, BuiltinError> {
    let initial = operand(args, 2)?;
    let starts = items(initial).ok_or_else(|| wrong_type(2, initial, &["array", "set"]))?;
    Ok(starts.collect())
}

fn reachable(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let graph = object(args, 1)?;
    let mut queue: VecDeque<&Value> = starts(args)?.into();
    let mut reached = std::collections::BTreeSet::new();
    while let Some(node) = queue.pop_front() {
        context.step()?;
        let Some(edges) = neighbours(graph, node) else { continue };
        if reached.insert(node) {
            queue.extend(edges.into_iter().filter(|edge| !reached.contains(edge)));
        }
    }
    Ok(Value::set(reached.into_iter().cloned().collect()))
}

fn reachable_paths(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let graph = object(args, 1)?;
    let mut paths = Vec::new();
    for start in starts(args)? {
        // The paths that are still to be followed: each with the node that comes next.
        let mut open: Vec<(Vec<Value>, &Value)> = vec![(Vec::new(), start)];
        while let Some((mut path, node)) = open.pop() {
            context.work(path.len().saturating_add(1))?;
            let Some(edges) = neighbours(graph, node) else {
                if !path.is_empty() || graph.get(start).is_some() {
                    paths.push(Value::array(path));
                }
                continue;
            };
            path.push(node.clone());
            if edges.is_empty() {
                paths.push(Value::array(path));
                continue;
            }
            for edge in edges {
                if path.contains(edge) {
                    paths.push(Value::array(path.clone()));
                } else {
                    open.push((path.clone(), edge));
                }
            }
        }
    }
    Ok(Value::set(paths))
}

fn no_such_path() -> BuiltinError {
    failed("path does not exist in tree")
}
