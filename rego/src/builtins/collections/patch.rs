//! `json.filter`, `json.remove` and `json.patch` (RFC 6902).
//!
//! Mirrors: OPA `v1/topdown/json.go` and `internal/edittree`, v1.19.0.

use super::super::{BuiltinError, Context, Outcome, array, failed, items, object, operand, wrong_type};
use super::no_such_path;
use crate::value::{Object, Value};

type Path = Vec<Value>;

/// A path: a JSON pointer without regard to its first slashes, or an array of keys.
fn parse_path(value: &Value) -> Result<Path, BuiltinError> {
    match value {
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => {
            let unescape = |part: &str| Value::from(part.replace("~1", "/").replace("~0", "~"));
            Ok(text.trim_start_matches('/').split('/').map(unescape).collect())
        }
        Value::Array(keys) => Ok(keys.to_vec()),
        other => Err(BuiltinError::Operand(format!(
            "operand 2 must be one of {{set, array}} containing string paths or array of path segments but got {}",
            other.kind()
        ))),
    }
}

/// The paths as one tree; `null` ends a path.
fn paths(context: &mut Context<'_>, args: &[&Value]) -> Result<Value, BuiltinError> {
    let listed = operand(args, 2)?;
    let items = items(listed).ok_or_else(|| wrong_type(2, listed, &["set", "array"]))?;
    let mut tree = Value::empty_object();
    for item in items {
        let path = parse_path(item)?;
        if !path.is_empty() {
            context.work(tree.weight())?;
            tree = planted(&tree, &path);
        }
    }
    Ok(tree)
}

fn planted(tree: &Value, path: &[Value]) -> Value {
    let Value::Object(object) = tree else { return tree.clone() };
    match path.split_first() {
        None => tree.clone(),
        Some((key, [])) => Value::Object(object.with(key.clone(), Value::Null).into()),
        Some((key, rest)) => {
            let inner = object.get(key).cloned().unwrap_or_else(Value::empty_object);
            Value::Object(object.with(key.clone(), planted(&inner, rest)).into())
        }
    }
}

pub fn filter(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    object(args, 1)?;
    let tree = paths(context, args)?;
    Ok(filtered(operand(args, 1)?, &tree).unwrap_or_else(Value::empty_object))
}

fn filtered(value: &Value, tree: &Value) -> Option<Value> {
    let Value::Object(wanted) = tree else { return Some(value.clone()) };
    match value {
        Value::Object(object) => Some(Value::object(
            wanted.iter().filter_map(|(key, below)| Some((key.clone(), filtered(object.get(key)?, below)?))).collect(),
        )),
        Value::Array(list) => Some(Value::array(
            list.iter().enumerate().filter_map(|(at, item)| filtered(item, wanted.get_str(&at.to_string())?)).collect(),
        )),
        Value::Set(set) => Some(Value::set(set.iter().filter_map(|item| filtered(item, wanted.get(item)?)).collect())),
        scalar => Some(scalar.clone()),
    }
}

pub fn remove(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    object(args, 1)?;
    let tree = paths(context, args)?;
    Ok(without(operand(args, 1)?, Some(&tree)).unwrap_or_else(Value::empty_object))
}

/// Nothing when the value itself is removed.
fn without(value: &Value, tree: Option<&Value>) -> Option<Value> {
    let Some(tree) = tree else { return Some(value.clone()) };
    let Value::Object(unwanted) = tree else { return None };
    Some(match value {
        Value::Object(object) => Value::object(
            object.iter().filter_map(|(key, inner)| Some((key.clone(), without(inner, unwanted.get(key))?))).collect(),
        ),
        Value::Array(list) => Value::array(
            list.iter().enumerate().filter_map(|(at, item)| without(item, unwanted.get_str(&at.to_string()))).collect(),
        ),
        Value::Set(set) => Value::set(set.iter().filter_map(|item| without(item, unwanted.get(item))).collect()),
        scalar => scalar.clone(),
    })
}

pub fn patch(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut document = operand(args, 1)?.clone();
    for operation in array(args, 2)? {
        context.work(document.weight())?;
        let Value::Object(operation) = operation else {
            return Err(failed("must be an array of JSON-Patch objects, but at least one element is not an object"));
        };
        document = apply(&document, operation)?;
    }
    Ok(document)
}

fn apply(document: &Value, operation: &Object) -> Outcome {
    let required =
        |name: &str| operation.get_str(name).ok_or_else(|| failed(format!("missing required attribute '{name}'")));
    let path = required("path")?;
    let op = required("op")?;
    let Some(op) = op.as_str() else {
        return Err(failed(format!("attribute 'op' must be a string but found: {}", op.kind())));
    };
    let path = parse_path(path)?;
    match op {
        "add" => insert(document, &path, required("value")?),
        "remove" => delete(document, &path),
        "replace" => {
            let deleted = delete(document, &path)?;
            insert(&deleted, &path, required("value")?)
        }
        "move" => {
            let from = parse_path(required("from")?)?;
            let moved = at(document, &from)?.clone();
            let deleted = delete(document, &from)?;
            insert(&deleted, &path, &moved)
        }
        "copy" => {
            let from = parse_path(required("from")?)?;
            let copied = at(document, &from)?.clone();
            insert(document, &path, &copied)
        }
        "test" => {
            let value = required("value")?;
            let found = at(document, &path)?;
            if found == value {
                return Ok(document.clone());
            }
            Err(failed(format!("value from EditTree != patch value.\n\nExpected: {value}\n\nFound: {found}")))
        }
        other => Err(failed(format!("unrecognized op: '{other}'"))),
    }
}

fn index(key: &Value, len: usize) -> Result<usize, BuiltinError> {
    let index = match key {
        Value::Number(number) => number.as_index(),
        Value::String(text) if &**text == "-" => Some(len),
        Value::String(text) if text.len() > 1 && text.starts_with('0') => None,
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    index.ok_or_else(|| failed("invalid index for array"))
}

fn at<'v>(document: &'v Value, path: &[Value]) -> Result<&'v Value, BuiltinError> {
    let mut here = document;
    for key in path {
        here = match here {
            Value::Array(list) => list.get(index(key, list.len())?),
            other => other.get(key),
        }
        .ok_or_else(no_such_path)?;
    }
    Ok(here)
}

/// The document with the value below `path` changed by `change`.
fn changed(document: &Value, path: &[Value], change: &mut dyn FnMut(&Value, &Value) -> Outcome) -> Outcome {
    match path {
        [] => Ok(document.clone()),
        [last] => change(document, last),
        [key, rest @ ..] => {
            let inner = changed(at(document, std::slice::from_ref(key))?, rest, change)?;
            match document {
                Value::Object(object) => Ok(Value::Object(object.with(key.clone(), inner).into())),
                Value::Array(list) => {
                    let mut list = list.to_vec();
                    let place = index(key, list.len())?;
                    *list.get_mut(place).ok_or_else(no_such_path)? = inner;
                    Ok(Value::array(list))
                }
                Value::Set(set) => {
                    let mut items: Vec<Value> = set.iter().filter(|item| *item != key).cloned().collect();
                    items.push(inner);
                    Ok(Value::set(items))
                }
                _ => Err(no_such_path()),
            }
        }
    }
}

fn insert(document: &Value, path: &[Value], value: &Value) -> Outcome {
    if path.is_empty() {
        return Ok(value.clone());
    }
    changed(document, path, &mut |parent, key| match parent {
        Value::Object(object) => Ok(Value::Object(object.with(key.clone(), value.clone()).into())),
        Value::Array(list) => {
            let mut list = list.to_vec();
            let place = index(key, list.len())?;
            if place > list.len() {
                return Err(failed("index for array insertion out of bounds"));
            }
            list.insert(place, value.clone());
            Ok(Value::array(list))
        }
        Value::Set(set) => {
            if key != value {
                return Err(failed("set key does not equal value to be inserted"));
            }
            let mut items = set.to_vec();
            items.push(value.clone());
            Ok(Value::set(items))
        }
        _ => Err(no_such_path()),
    })
}

fn delete(document: &Value, path: &[Value]) -> Outcome {
    if path.is_empty() {
        return Ok(Value::Null);
    }
    at(document, path)?;
    changed(document, path, &mut |parent, key| match parent {
        Value::Object(object) => Ok(Value::object(
            object
                .iter()
                .filter(|(known, _)| *known != key)
                .map(|(known, value)| (known.clone(), value.clone()))
                .collect(),
        )),
        Value::Array(list) => {
            let mut list = list.to_vec();
            let place = index(key, list.len())?;
            if place >= list.len() {
                return Err(no_such_path());
            }
            list.remove(place);
            Ok(Value::array(list))
        }
        Value::Set(set) => Ok(Value::set(set.iter().filter(|item| *item != key).cloned().collect())),
        _ => Err(no_such_path()),
    })
}
