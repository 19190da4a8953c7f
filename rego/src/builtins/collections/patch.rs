//! `json.filter`, `json.remove` and `json.patch` (RFC 6902).
//!
//! Mirrors: OPA `v1/topdown/json.go` and `internal/edittree`, v1.19.0. Documents are edited in place, so that many operations on a large one
//! don't copy it for each.

use std::collections::HashMap;

use super::super::{BuiltinError, Context, Outcome, array, excerpt, failed, items, object, operand, wrong_type};
use super::no_such_path;
use crate::eval::EvalError;
use crate::meter::Meter as _;
use crate::value::{Object, Value, metered};

type Path = Vec<Value>;

/// A path: a JSON pointer without regard to its first slashes, or an array of keys.
fn parse_path(context: &mut Context<'_>, value: &Value) -> Result<Path, BuiltinError> {
    match value {
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => {
            let mut path = Vec::new();
            for part in text.trim_start_matches('/').split('/') {
                context.allocate(part.len().saturating_mul(3))?;
                context.work(part.len() / 64)?;
                let part = context.text(&part.replace("~1", "/").replace("~0", "~"))?;
                context.push(&mut path, part)?;
            }
            Ok(path)
        }
        Value::Array(keys) => Ok(context.copied(keys.iter())?),
        other => Err(BuiltinError::Operand(format!(
            "operand 2 must be one of {{set, array}} containing string paths or array of path segments but got {}",
            other.kind()
        ))),
    }
}

/// Paths as a tree; a path that ends covers every longer one.
enum Tree {
    End,
    Inner(HashMap<Value, Tree, ahash::RandomState>),
}

/// The memory of an entry of a tree while its table grows.
const TREE_BYTES: usize = 4 * size_of::<(Value, Tree)>();

fn paths(context: &mut Context<'_>, args: &[&Value]) -> Result<Tree, BuiltinError> {
    let listed = operand(args, 2)?;
    let items = items(listed).ok_or_else(|| wrong_type(2, listed, &["set", "array"]))?;
    let mut tree = HashMap::default();
    for item in items {
        context.step()?;
        let path = parse_path(context, item)?;
        let mut here = &mut tree;
        let mut keys = path.into_iter().peekable();
        while let Some(key) = keys.next() {
            context.step()?;
            metered::hashing(context, &key)?;
            context.allocate(TREE_BYTES)?;
            let is_last = keys.peek().is_none();
            let next = here.entry(key).or_insert_with(|| Tree::Inner(HashMap::default()));
            if is_last {
                *next = Tree::End;
            }
            match next {
                Tree::End => break,
                Tree::Inner(inner) => here = inner,
            }
        }
    }
    Ok(Tree::Inner(tree))
}

/// The key of an item of an array in a tree of paths.
fn index_key(context: &mut Context<'_>, at: usize) -> Result<Value, BuiltinError> {
    context.work(2)?;
    Ok(Value::from(at.to_string()))
}

pub(super) fn filter(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    object(args, 1)?;
    let tree = paths(context, args)?;
    Ok(filtered(context, operand(args, 1)?, &tree)?.unwrap_or_else(Value::empty_object))
}

fn filtered(context: &mut Context<'_>, value: &Value, tree: &Tree) -> Result<Option<Value>, BuiltinError> {
    context.step()?;
    let Tree::Inner(wanted) = tree else { return Ok(Some(value.clone())) };
    Ok(Some(match value {
        Value::Object(object) => {
            let mut members = Vec::new();
            for (key, below) in wanted {
                context.step()?;
                metered::hashing(context, key)?;
                let Some(value) = object.get(key) else { continue };
                if let Some(value) = filtered(context, value, below)? {
                    context.push_member(&mut members, (key.clone(), value))?;
                }
            }
            context.object(members)?
        }
        Value::Array(list) => {
            let mut kept = Vec::new();
            for (at, item) in list.iter().enumerate() {
                let Some(below) = wanted.get(&index_key(context, at)?) else { continue };
                if let Some(item) = filtered(context, item, below)? {
                    context.push(&mut kept, item)?;
                }
            }
            context.array(kept)?
        }
        Value::Set(set) => {
            let mut kept = Vec::new();
            for item in set.iter() {
                context.step()?;
                metered::hashing(context, item)?;
                let Some(below) = wanted.get(item) else { continue };
                if let Some(item) = filtered(context, item, below)? {
                    context.push(&mut kept, item)?;
                }
            }
            context.set(kept)?
        }
        scalar => scalar.clone(),
    }))
}

pub(super) fn remove(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    object(args, 1)?;
    let tree = paths(context, args)?;
    Ok(without(context, operand(args, 1)?, Some(&tree))?.unwrap_or_else(Value::empty_object))
}

/// Nothing when the value itself is removed.
fn without(context: &mut Context<'_>, value: &Value, tree: Option<&Tree>) -> Result<Option<Value>, BuiltinError> {
    context.step()?;
    let Some(tree) = tree else { return Ok(Some(value.clone())) };
    let Tree::Inner(unwanted) = tree else { return Ok(None) };
    Ok(Some(match value {
        Value::Object(object) => {
            let mut members = Vec::new();
            for (key, inner) in object.iter() {
                metered::hashing(context, key)?;
                if let Some(inner) = without(context, inner, unwanted.get(key))? {
                    context.push_member(&mut members, (key.clone(), inner))?;
                }
            }
            context.object(members)?
        }
        Value::Array(list) => {
            let mut kept = Vec::new();
            for (at, item) in list.iter().enumerate() {
                let below = unwanted.get(&index_key(context, at)?);
                if let Some(item) = without(context, item, below)? {
                    context.push(&mut kept, item)?;
                }
            }
            context.array(kept)?
        }
        Value::Set(set) => {
            let mut kept = Vec::new();
            for item in set.iter() {
                metered::hashing(context, item)?;
                if let Some(item) = without(context, item, unwanted.get(item))? {
                    context.push(&mut kept, item)?;
                }
            }
            context.set(kept)?
        }
        scalar => scalar.clone(),
    }))
}

pub(super) fn patch(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let mut document = Node::Value(operand(args, 1)?.clone());
    for operation in array(args, 2)? {
        context.step()?;
        let Value::Object(operation) = operation else {
            return Err(failed("must be an array of JSON-Patch objects, but at least one element is not an object"));
        };
        apply(context, &mut document, operation)?;
    }
    document.finish(context)
}

/// A part of a document that is edited: opened where operations reach into it, and a plain value elsewhere.
#[derive(Debug)]
enum Node {
    Value(Value),
    Object(HashMap<Value, Node, ahash::RandomState>),
    Array(Vec<Node>),
    Set(HashMap<Value, Node, ahash::RandomState>),
}

/// The memory of a member of an opened object or set, and of an item of an opened array.
const NODE_BYTES: usize = 4 * size_of::<(Value, Node)>();

impl Node {
    /// Opens a collection, so that its parts can be edited.
    fn open(&mut self, context: &mut Context<'_>) -> Result<(), EvalError> {
        let Self::Value(value) = self else { return Ok(()) };
        let opened = match &*value {
            Value::Object(object) => {
                let mut members = HashMap::default();
                for (key, value) in object.iter() {
                    context.step()?;
                    metered::hashing(context, key)?;
                    context.allocate(NODE_BYTES)?;
                    members.insert(key.clone(), Self::Value(value.clone()));
                }
                Self::Object(members)
            }
            Value::Array(list) => {
                let mut items = Vec::new();
                for item in list.iter() {
                    context.step()?;
                    context.allocate(NODE_BYTES)?;
                    items.push(Self::Value(item.clone()));
                }
                Self::Array(items)
            }
            Value::Set(set) => {
                let mut items = HashMap::default();
                for item in set.iter() {
                    context.step()?;
                    metered::hashing(context, item)?;
                    context.allocate(NODE_BYTES)?;
                    items.insert(item.clone(), Self::Value(item.clone()));
                }
                Self::Set(items)
            }
            _ => return Ok(()),
        };
        *self = opened;
        Ok(())
    }

    /// The part under `key`, with its collection opened.
    fn child(&mut self, context: &mut Context<'_>, key: &Value) -> Result<&mut Self, BuiltinError> {
        self.open(context)?;
        metered::hashing(context, key)?;
        match self {
            Self::Object(members) | Self::Set(members) => members.get_mut(key),
            Self::Array(items) => {
                let at = index(key, items.len())?;
                items.get_mut(at)
            }
            Self::Value(_) => None,
        }
        .ok_or_else(no_such_path)
    }

    fn at(&mut self, context: &mut Context<'_>, path: &[Value]) -> Result<&mut Self, BuiltinError> {
        let mut here = self;
        for key in path {
            context.step()?;
            here = here.child(context, key)?;
        }
        Ok(here)
    }

    /// The value that this part has become. It stays open.
    fn value(&self, context: &mut Context<'_>) -> Outcome {
        context.step()?;
        match self {
            Self::Value(value) => Ok(value.clone()),
            Self::Object(members) => {
                let mut list = Vec::new();
                for (key, node) in members {
                    let value = node.value(context)?;
                    context.push_member(&mut list, (key.clone(), value))?;
                }
                context.object(list)
            }
            Self::Array(items) => {
                let mut list = Vec::new();
                for node in items {
                    let value = node.value(context)?;
                    context.push(&mut list, value)?;
                }
                context.array(list)
            }
            Self::Set(items) => {
                let mut list = Vec::new();
                for node in items.values() {
                    let value = node.value(context)?;
                    context.push(&mut list, value)?;
                }
                context.set(list)
            }
        }
    }

    /// The value, so that nothing stays open below.
    fn close(&mut self, context: &mut Context<'_>) -> Outcome {
        if let Self::Value(value) = self {
            return Ok(value.clone());
        }
        let value = self.value(context)?;
        *self = Self::Value(value.clone());
        Ok(value)
    }

    fn finish(self, context: &mut Context<'_>) -> Outcome {
        self.value(context)
    }
}

fn apply(context: &mut Context<'_>, document: &mut Node, operation: &Object) -> Result<(), BuiltinError> {
    let required =
        |name: &str| operation.get_str(name).ok_or_else(|| failed(format!("missing required attribute '{name}'")));
    let path = required("path")?;
    let op = required("op")?;
    let Some(op) = op.as_str() else {
        return Err(failed(format!("attribute 'op' must be a string but found: {}", op.kind())));
    };
    let path = parse_path(context, path)?;
    match op {
        "add" => insert(context, document, &path, required("value")?),
        "remove" => delete(context, document, &path),
        "replace" => {
            delete(context, document, &path)?;
            insert(context, document, &path, required("value")?)
        }
        "move" => {
            let from = parse_path(context, required("from")?)?;
            let moved = document.at(context, &from)?.close(context)?;
            delete(context, document, &from)?;
            insert(context, document, &path, &moved)
        }
        "copy" => {
            let from = parse_path(context, required("from")?)?;
            let copied = document.at(context, &from)?.close(context)?;
            insert(context, document, &path, &copied)
        }
        "test" => {
            let value = required("value")?;
            let found = document.at(context, &path)?.close(context)?;
            if metered::equal(context, &found, value)? {
                return Ok(());
            }
            let shown = |context: &mut Context<'_>, value: &Value| -> Result<String, EvalError> {
                let text = context.passing_json(value)?;
                Ok(excerpt(&text).to_owned())
            };
            let (expected, found) = (shown(context, value)?, shown(context, &found)?);
            Err(failed(format!("value from EditTree != patch value.\n\nExpected: {expected}\n\nFound: {found}")))
        }
        other => Err(failed(format!("unrecognized op: '{}'", excerpt(other)))),
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

fn insert(context: &mut Context<'_>, document: &mut Node, path: &[Value], value: &Value) -> Result<(), BuiltinError> {
    let Some((key, parents)) = path.split_last() else {
        *document = Node::Value(value.clone());
        return Ok(());
    };
    let parent = document.at(context, parents)?;
    parent.open(context)?;
    metered::hashing(context, key)?;
    context.allocate(NODE_BYTES)?;
    match parent {
        Node::Object(members) => _ = members.insert(key.clone(), Node::Value(value.clone())),
        Node::Array(items) => {
            let at = index(key, items.len())?;
            if at > items.len() {
                return Err(failed("index for array insertion out of bounds"));
            }
            // Later items are moved.
            context.work(items.len().saturating_sub(at) / 64)?;
            items.insert(at, Node::Value(value.clone()));
        }
        Node::Set(items) => {
            if !metered::equal(context, key, value)? {
                return Err(failed("set key does not equal value to be inserted"));
            }
            items.insert(key.clone(), Node::Value(value.clone()));
        }
        Node::Value(_) => return Err(no_such_path()),
    }
    Ok(())
}

fn delete(context: &mut Context<'_>, document: &mut Node, path: &[Value]) -> Result<(), BuiltinError> {
    let Some((key, parents)) = path.split_last() else {
        *document = Node::Value(Value::Null);
        return Ok(());
    };
    let parent = document.at(context, parents)?;
    parent.open(context)?;
    metered::hashing(context, key)?;
    let found = match parent {
        Node::Object(members) | Node::Set(members) => members.remove(key).is_some(),
        Node::Array(items) => {
            let at = index(key, items.len())?;
            context.work(items.len().saturating_sub(at) / 64)?;
            let found = at < items.len();
            if found {
                items.remove(at);
            }
            found
        }
        Node::Value(_) => false,
    };
    if found { Ok(()) } else { Err(no_such_path()) }
}
