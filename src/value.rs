//! The values that policies read and return.
//!
//! `Value` is regorus's: a cheaply cloned tree of JSON values and sets. This file and `policy/engine.rs` are the only
//! places that name that crate; everything else says `crate::value::Value`. It does not evaluate anything.

mod json;
mod text;

use std::collections::BTreeMap;

pub use self::json::{DuplicateKeys, JsonError, JsonLimits, parse_json};
pub use self::text::lossy;
pub use regorus::Value;

/// A fixed object key. Each document gets its own copy of the text: copies shared by all workers were measured to cost
/// more, in counters that bounce between cores, than the small allocations that they save.
#[derive(Clone, Copy, Debug)]
pub struct Key(&'static str);

impl Key {
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    pub fn value(&self) -> Value {
        Value::from(self.0)
    }
}

/// Collects the members of one object.
#[derive(Debug, Default)]
pub struct Members(BTreeMap<Value, Value>);

impl Members {
    /// Sets a member; gives the value that it had before.
    pub fn put(&mut self, key: &Key, value: Value) -> Option<Value> {
        self.0.insert(key.value(), value)
    }

    pub fn put_text(&mut self, key: &str, value: Value) {
        self.0.insert(Value::from(key), value);
    }

    /// Adds `value` to the array under `key`, which is made when it is missing.
    pub fn push_text(&mut self, key: String, value: Value) {
        let slot = self.0.entry(Value::from(key)).or_insert_with(Value::new_array);
        if let Ok(array) = slot.as_array_mut() {
            array.push(value);
        }
    }

    pub fn into_value(self) -> Value {
        Value::from(self.0)
    }
}

/// The member `key` of `value`, when `value` is an object that has it.
pub fn member<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.as_object().ok()?.get(&Value::from(key))
}

/// The text of `value`, when it is a string.
pub fn as_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// A number from its JSON spelling, or nothing when it cannot be held.
pub fn number(spelling: &str) -> Option<Value> {
    json::number(spelling)
}

/// A YAML document as JSON has it; nothing when it is malformed or deeper than `limits` allow.
pub fn parse_yaml(text: &str, limits: JsonLimits) -> Option<Value> {
    let document: serde_json::Value = yaml_serde::from_str(text).ok()?;
    parse_json(document.to_string().as_bytes(), limits).ok()
}

/// An array of strings.
pub fn texts<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
    Value::from(items.into_iter().map(Value::from).collect::<Vec<_>>())
}

/// The JSON text of `value`, without white space. Sets print as arrays.
pub fn json_text(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
