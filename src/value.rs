//! The values that policies read and return.
//!
//! `Value` is that of our Rego engine: a cheaply cloned, immutable tree of JSON values and sets. The files that may
//! name that crate are listed in `tests/it/tidy.rs`; everything else says `crate::value::Value`.

use std::collections::BTreeMap;

pub use stepgate_rego::Meter;
pub use stepgate_rego::value::{
    DuplicateKeys, JsonError, JsonLimits, JsonReadError, MAX_NUMBER_BYTES, Number, Text, Value, lossy, parse_json,
    parse_json_metered,
};
pub use stepgate_rego::{DuplicateKey, certificate, parse_yaml_configuration};

/// A fixed object key: text in the program itself, which no thread counts.
#[derive(Clone, Debug)]
pub struct Key(Text);

impl Key {
    /// Use [`key!`](crate::key) to make one.
    pub const fn of(text: Text) -> Self {
        Self(text)
    }

    pub fn value(&self) -> Value {
        Value::String(self.0.clone())
    }
}

/// Makes a [`Key`](crate::value::Key) of a literal.
#[macro_export]
macro_rules! key {
    ($text:literal) => {
        $crate::value::Key::of(stepgate_rego::literal!($text))
    };
}

/// Collects the members of one object; of two with one key the last counts. Looking one up takes longer the more there are.
#[derive(Clone, Debug, Default)]
pub struct Members(Vec<(Value, Value)>);

impl Members {
    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.0.iter().rev().find(|(known, _)| known.as_str() == Some(&key.0)).map(|(_, value)| value)
    }

    /// Sets a member; gives the value that it had before.
    pub fn put(&mut self, key: &Key, value: Value) -> Option<Value> {
        let known = self.0.iter_mut().rev().find(|(known, _)| known.as_str() == Some(&key.0));
        match known {
            Some((_, known)) => Some(std::mem::replace(known, value)),
            None => {
                self.0.push((key.value(), value));
                None
            }
        }
    }

    /// Sets a member without looking whether it was there, so that any number can be set.
    pub fn put_text(&mut self, key: &str, value: Value) {
        self.0.push((Value::from(key), value));
    }

    pub fn into_value(self) -> Value {
        Value::object(self.0)
    }
}

/// Collects the members of an object whose values are arrays that grow.
#[derive(Debug, Default)]
pub struct Lists(BTreeMap<String, Vec<Value>>);

impl Lists {
    /// Adds `value` to the array under `key`, which is made when it is missing.
    pub fn push(&mut self, key: String, value: Value) {
        self.0.entry(key).or_default().push(value);
    }

    pub fn into_value(self) -> Value {
        Value::object(self.0.into_iter().map(|(key, values)| (Value::from(key), Value::array(values))).collect())
    }
}

/// The member `key` of `value`, when `value` is an object that has it.
pub fn member<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.member(key)
}

/// The text of `value`, when it is a string.
pub fn as_text(value: &Value) -> Option<&str> {
    value.as_str()
}

/// A number from its JSON spelling, or nothing when it cannot be held.
pub fn number(spelling: &str) -> Option<Value> {
    Number::parse(spelling).map(Value::Number)
}

/// A YAML document as OPA reads it: version 1.1, where `no` is false, turned into JSON. Nothing when it is malformed or deeper than
/// `limits` allow.
pub fn parse_yaml(text: &str, limits: JsonLimits) -> Option<Value> {
    let document = stepgate_rego::parse_yaml(text).ok()?;
    parse_json(json_text(&document).as_bytes(), limits).ok()
}

/// A value without sets as `serde_json` has it. `None`: it nests deeper than `depth`.
pub fn to_serde_json(value: &Value, depth: usize) -> Option<serde_json::Value> {
    use serde_json::Value as Json;

    let inner = |value| to_serde_json(value, depth.checked_sub(1)?);
    Some(match value {
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| Some((key.as_str()?.to_owned(), inner(value)?)));
            Json::Object(members.collect::<Option<_>>()?)
        }
        Value::Array(items) => Json::Array(items.iter().map(inner).collect::<Option<_>>()?),
        scalar => serde_json::from_str(&json_text(scalar)).ok()?,
    })
}

/// The items of an array or set; none of anything else.
pub fn items(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Set(set) => set.iter().collect(),
        _ => Vec::new(),
    }
}

/// The value without the value at `path`; `None` when there is none.
pub fn without(value: &Value, path: &[String]) -> Option<Value> {
    let (first, rest) = path.split_first()?;
    let changed = |inner: &Value| if rest.is_empty() { Some(None) } else { without(inner, rest).map(Some) };
    match value {
        Value::Object(members) => {
            let key = Value::from(first.as_str());
            let changed = changed(members.get(&key)?)?;
            let others = members.iter().filter(|(name, _)| **name != key);
            let mut members: Vec<(Value, Value)> = others.map(|(name, value)| (name.clone(), value.clone())).collect();
            members.extend(changed.map(|value| (key, value)));
            Some(Value::object(members))
        }
        Value::Array(items) => {
            let at: usize = first.parse().ok()?;
            let changed = changed(items.get(at)?)?;
            let mut items: Vec<Value> = items.to_vec();
            match changed {
                Some(value) => *items.get_mut(at)? = value,
                None => {
                    items.remove(at);
                }
            }
            Some(Value::array(items))
        }
        _ => None,
    }
}

/// The value with `new` at `path`, objects made on the way; nothing when the path leads through something else.
pub fn with_at(value: &Value, path: &[String], new: &Value) -> Option<Value> {
    let Some((first, rest)) = path.split_first() else { return Some(new.clone()) };
    match value {
        Value::Object(members) => {
            let key = Value::from(first.as_str());
            let inner = members.get(&key).cloned().unwrap_or_else(Value::empty_object);
            let changed = with_at(&inner, rest, new)?;
            let others = members.iter().filter(|(name, _)| **name != key);
            let mut members: Vec<(Value, Value)> = others.map(|(name, value)| (name.clone(), value.clone())).collect();
            members.push((key, changed));
            Some(Value::object(members))
        }
        Value::Array(items) => {
            let at: usize = first.parse().ok()?;
            let changed = with_at(items.get(at)?, rest, new)?;
            let mut items: Vec<Value> = items.to_vec();
            *items.get_mut(at)? = changed;
            Some(Value::array(items))
        }
        _ => None,
    }
}

/// An array of strings.
pub fn texts<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
    Value::array(items.into_iter().map(Value::from).collect())
}

/// The JSON text of `value` for people, indented by two spaces. Numbers keep their spelling.
pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    write_pretty(value, 0, &mut out);
    out
}

fn write_pretty(value: &Value, depth: usize, out: &mut String) {
    let deeper = depth.saturating_add(1);
    let line = |out: &mut String, first: bool, depth: usize| {
        out.push_str(if first { "\n" } else { ",\n" });
        out.push_str(&"  ".repeat(depth));
    };
    let all = |items: &mut dyn Iterator<Item = &Value>, out: &mut String| {
        out.push('[');
        for (at, item) in items.enumerate() {
            line(out, at == 0, deeper);
            write_pretty(item, deeper, out);
        }
        line(out, true, depth);
        out.push(']');
    };
    match value {
        Value::Array(items) if !items.is_empty() => all(&mut items.iter(), out),
        Value::Set(items) if !items.is_empty() => all(&mut items.iter(), out),
        Value::Object(members) if !members.is_empty() => {
            out.push('{');
            for (at, (key, value)) in members.iter().enumerate() {
                line(out, at == 0, deeper);
                let name = key.as_str().map_or_else(|| Value::from(key.to_json()), Value::from);
                out.push_str(&name.to_json());
                out.push_str(": ");
                write_pretty(value, deeper, out);
            }
            line(out, true, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_json()),
    }
}

/// The JSON text of `value`, as OPA writes it. Sets print as arrays.
pub fn json_text(value: &Value) -> String {
    value.to_json()
}
