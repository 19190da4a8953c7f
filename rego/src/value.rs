//! The values that policies read and return: JSON's, and sets.
//!
//! A value is a cheaply cloned, immutable tree of 16 bytes at its root. Objects and sets keep their members in OPA's order,
//! so that iteration, comparison and printing need no sorting; large ones have a hash table beside, so that a lookup does
//! not depend on their size.

mod collections;
mod float;
mod json;
pub mod metered;
mod number;
mod text;

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub use arcstr::ArcStr as Text;

pub use self::collections::{Array, Measure, Object, Set};
pub use self::float::{Float, spell_general, spell_plain, spell_scientific};
pub(crate) use self::json::write_value;
pub use self::json::{
    DuplicateKeys, JsonError, JsonLimits, JsonReadError, MAX_NUMBER_BYTES, json_bytes, parse_json, parse_json_metered,
    write_json,
};
pub use self::number::Number;
pub use self::text::{chunks, lossy, quoted};

/// One value.
#[derive(Clone, Default)]
pub enum Value {
    #[default]
    Null,
    Bool(bool),
    Number(Number),
    String(Text),
    Array(Arc<Array>),
    Object(Arc<Object>),
    Set(Arc<Set>),
}

/// Bytes of text that weigh as much as one small value.
const BYTES_PER_WEIGHT: usize = 16;

/// `true`, to point at.
pub static TRUE: Value = Value::Bool(true);
/// `false`, to point at.
pub static FALSE: Value = Value::Bool(false);
/// `null`, to point at.
pub static NULL: Value = Value::Null;

impl Value {
    pub fn array(items: Vec<Value>) -> Self {
        Self::Array(Arc::new(Array::new(items)))
    }

    /// An object; of two equal keys the last wins.
    pub fn object(members: Vec<(Value, Value)>) -> Self {
        Self::Object(Arc::new(Object::new(members)))
    }

    pub fn set(items: Vec<Value>) -> Self {
        Self::Set(Arc::new(Set::new(items)))
    }

    pub fn empty_object() -> Self {
        Self::object(Vec::new())
    }

    pub fn text(text: impl AsRef<str>) -> Self {
        Self::String(Text::from(text.as_ref()))
    }

    /// OPA's name of the kind of value.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::Object(_) => "object",
            Self::Set(_) => "set",
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(it) => Some(*it),
            _ => None,
        }
    }

    pub fn as_number(&self) -> Option<&Number> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }

    pub fn as_i64(&self) -> Option<i64> {
        self.as_number()?.as_i64()
    }

    pub fn as_f64(&self) -> Option<f64> {
        self.as_number().map(Number::as_f64)
    }

    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    pub fn as_set(&self) -> Option<&Set> {
        match self {
            Self::Set(set) => Some(set),
            _ => None,
        }
    }

    /// The member under `key`: of an object, the item at an index of an array, or the item of a set itself.
    pub fn get(&self, key: &Value) -> Option<&Value> {
        match self {
            Self::Object(object) => object.get(key),
            Self::Array(items) => items.get(key.as_number()?.as_index()?),
            Self::Set(set) => set.get(key),
            _ => None,
        }
    }

    /// The member of an object under a string.
    pub fn member(&self, key: &str) -> Option<&Value> {
        self.as_object()?.get_str(key)
    }

    /// The value at a path of strings.
    pub fn at<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Option<&Value> {
        path.into_iter().try_fold(self, |value, key| value.member(key))
    }

    pub fn is_true(&self) -> bool {
        matches!(self, Self::Bool(true))
    }

    pub fn is_false(&self) -> bool {
        matches!(self, Self::Bool(false))
    }

    /// The number of values in the tree below, long texts counting for several. A shared value counts each
    /// time: this is the cost of writing, comparing or walking the value.
    #[inline]
    pub fn weight(&self) -> usize {
        self.measure().weight
    }

    /// The weight and the levels of nesting, without looking at what is below.
    #[inline]
    pub fn measure(&self) -> Measure {
        let scalar = |weight: usize| Measure { weight, depth: 0 };
        match self {
            Self::Null | Self::Bool(_) => scalar(1),
            Self::Number(number) => scalar(number.weight()),
            Self::String(text) => scalar(1 + text.len() / BYTES_PER_WEIGHT),
            Self::Array(array) => array.measure(),
            Self::Object(object) => object.measure(),
            Self::Set(set) => set.measure(),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Number(_) => 2,
            Self::String(_) => 3,
            Self::Array(_) => 4,
            Self::Object(_) => 5,
            Self::Set(_) => 6,
        }
    }
}

// === Comparison: OPA `v1/ast/compare.go`, v1.19.0 ===

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Number(a), Self::Number(b)) => a == b,
            (Self::String(a), Self::String(b)) => a == b,
            (Self::Array(a), Self::Array(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Object(a), Self::Object(b)) => Arc::ptr_eq(a, b) || a == b,
            (Self::Set(a), Self::Set(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        }
    }
}

impl Eq for Value {}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Number(a), Self::Number(b)) => a.cmp(b),
            (Self::String(a), Self::String(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Self::Array(a), Self::Array(b)) if !Arc::ptr_eq(a, b) => a.cmp(b),
            (Self::Object(a), Self::Object(b)) if !Arc::ptr_eq(a, b) => a.cmp(b),
            (Self::Set(a), Self::Set(b)) if !Arc::ptr_eq(a, b) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Null => state.write_u8(0),
            Self::Bool(it) => state.write_u8(1 + u8::from(*it)),
            Self::Number(number) => number.hash(state),
            // The same as a `str`, so that a lookup by text needs no value.
            Self::String(text) => text.as_bytes().hash(state),
            Self::Array(items) => {
                state.write_u8(4);
                items.iter().for_each(|item| item.hash(state));
            }
            Self::Object(object) => {
                state.write_u8(5);
                object.iter().for_each(|(key, value)| {
                    key.hash(state);
                    value.hash(state);
                });
            }
            Self::Set(set) => {
                state.write_u8(6);
                set.iter().for_each(|item| item.hash(state));
            }
        }
    }
}

// === Making values ===

impl std::str::FromStr for Value {
    type Err = JsonError;

    /// Reads a JSON document of at most 1,000 levels, in which the last of two equal members counts, as in Go.
    fn from_str(text: &str) -> Result<Self, JsonError> {
        parse_json(text.as_bytes(), JsonLimits { depth: 1_000, duplicates: DuplicateKeys::LastWins })
    }
}

impl From<bool> for Value {
    fn from(it: bool) -> Self {
        Self::Bool(it)
    }
}

impl From<i64> for Value {
    fn from(it: i64) -> Self {
        Self::Number(Number::from(it))
    }
}

impl From<u64> for Value {
    fn from(it: u64) -> Self {
        Self::Number(Number::from(it))
    }
}

impl From<i32> for Value {
    fn from(it: i32) -> Self {
        Self::from(i64::from(it))
    }
}

impl From<u32> for Value {
    fn from(it: u32) -> Self {
        Self::from(i64::from(it))
    }
}

impl From<usize> for Value {
    fn from(it: usize) -> Self {
        Self::from(it as u64)
    }
}

impl From<f64> for Value {
    fn from(it: f64) -> Self {
        Self::Number(Number::from_f64(it))
    }
}

impl From<Number> for Value {
    fn from(it: Number) -> Self {
        Self::Number(it)
    }
}

impl From<&str> for Value {
    fn from(it: &str) -> Self {
        Self::String(Text::from(it))
    }
}

impl From<String> for Value {
    fn from(it: String) -> Self {
        Self::String(Text::from(it))
    }
}

impl From<&String> for Value {
    fn from(it: &String) -> Self {
        Self::String(Text::from(it.as_str()))
    }
}

impl From<Text> for Value {
    fn from(it: Text) -> Self {
        Self::String(it)
    }
}

impl From<Vec<Value>> for Value {
    fn from(items: Vec<Value>) -> Self {
        Self::array(items)
    }
}

impl<'a> FromIterator<(&'a str, Value)> for Value {
    fn from_iter<I: IntoIterator<Item = (&'a str, Value)>>(members: I) -> Self {
        Self::object(members.into_iter().map(|(key, value)| (Value::from(key), value)).collect())
    }
}
