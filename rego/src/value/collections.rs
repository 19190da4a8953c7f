//! Arrays, objects and sets: members, sorted where order means nothing, and a hash table of their places once there are many.
//!
//! Each knows its measure. Values are shared, so that a small one can stand for a tree that no memory would hold.

use std::cmp::Ordering;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::LazyLock;

use ahash::RandomState;
use hashbrown::HashTable;

use super::Value;
use crate::meter::Meter;

/// From this many members on, a hash table is kept.
const INDEXED_FROM: usize = 16;

/// Keyed at random: members may come from a hostile client.
static HASHING: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The items of an array.
#[derive(Clone, Debug, Default)]
pub struct Array {
    items: Vec<Value>,
    measure: Measure,
}

/// The members of an object, sorted by key, each key once.
#[derive(Clone, Debug, Default)]
pub struct Object {
    members: Box<[(Value, Value)]>,
    measure: Measure,
    places: Option<Box<HashTable<u32>>>,
}

/// The items of a set, sorted, each once.
#[derive(Clone, Debug, Default)]
pub struct Set {
    items: Box<[Value]>,
    measure: Measure,
    places: Option<Box<HashTable<u32>>>,
}

fn hash_of(value: &Value) -> u64 {
    HASHING.hash_one(value)
}

/// The table of places, when it pays.
fn places<'a>(keys: impl ExactSizeIterator<Item = &'a Value>) -> Option<Box<HashTable<u32>>> {
    if keys.len() < INDEXED_FROM || u32::try_from(keys.len()).is_err() {
        return None;
    }
    let hashes: Vec<u64> = keys.map(hash_of).collect();
    let mut table = HashTable::with_capacity(hashes.len());
    for (place, &hash) in (0u32..).zip(&hashes) {
        table.insert_unique(hash, place, |&at| hashes.get(at as usize).copied().unwrap_or_default());
    }
    Some(Box::new(table))
}

/// The same, with a meter.
fn metered_places<'a, M: Meter>(
    keys: impl ExactSizeIterator<Item = &'a Value>,
    meter: &mut M,
) -> Result<Option<Box<HashTable<u32>>>, M::Error> {
    if keys.len() < INDEXED_FROM || u32::try_from(keys.len()).is_err() {
        return Ok(None);
    }
    // The hashes, and a table of places that is at most seven eighths full.
    let (passing, kept) = (keys.len().saturating_mul(8), keys.len().saturating_mul(12).saturating_add(64));
    meter.allocate(passing.saturating_add(kept))?;
    let mut hashes = Vec::with_capacity(keys.len());
    for key in keys {
        meter.work(1)?;
        super::metered::hashing(meter, key)?;
        hashes.push(hash_of(key));
    }
    let mut table = HashTable::with_capacity(hashes.len());
    for (place, &hash) in (0u32..).zip(&hashes) {
        meter.work(1)?;
        table.insert_unique(hash, place, |&at| hashes.get(at as usize).copied().unwrap_or_default());
    }
    meter.release(passing);
    Ok(Some(Box::new(table)))
}

/// The number of values below a value.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// See [`Value::weight`].
    pub weight: usize,
    /// Levels of nesting.
    pub depth: u32,
}

impl Default for Measure {
    fn default() -> Self {
        Self { weight: 1, depth: 1 }
    }
}

impl Measure {
    /// The weight of a collection of `values`.
    fn of<'a>(values: impl Iterator<Item = &'a Value>) -> Self {
        let (weight, depth) = values.fold((1usize, 0), |(weight, depth), value| {
            let below = value.measure();
            (weight.saturating_add(below.weight), depth.max(below.depth))
        });
        Self { weight, depth: depth.saturating_add(1) }
    }
}

impl Array {
    pub fn new(items: Vec<Value>) -> Self {
        let measure = Measure::of(items.iter());
        Self { items, measure }
    }

    pub fn measure(&self) -> Measure {
        self.measure
    }

    pub fn as_slice(&self) -> &[Value] {
        &self.items
    }
}

impl Deref for Array {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

impl PartialEq for Array {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

impl Eq for Array {}

impl Ord for Array {
    fn cmp(&self, other: &Self) -> Ordering {
        self.items.cmp(&other.items)
    }
}

impl PartialOrd for Array {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Object {
    /// Sorts the members; of two equal keys the last wins.
    pub fn new(mut members: Vec<(Value, Value)>) -> Self {
        if !members.is_sorted_by(|(a, _), (b, _)| a < b) {
            members.sort_by(|(a, _), (b, _)| a.cmp(b));
            members.reverse();
            members.dedup_by(|(a, _), (b, _)| a == b);
            members.reverse();
        }
        let members = members.into_boxed_slice();
        let places = places(members.iter().map(|(key, _)| key));
        let measure = Measure::of(members.iter().flat_map(|(key, value)| [key, value]));
        Self { members, measure, places }
    }

    pub fn measure(&self) -> Measure {
        self.measure
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// An object of members that are sorted by key, each key once.
    pub(super) fn sorted<M: Meter>(members: Vec<(Value, Value)>, meter: &mut M) -> Result<Self, M::Error> {
        let members = members.into_boxed_slice();
        let places = metered_places(members.iter().map(|(key, _)| key), meter)?;
        let measure = Measure::of(members.iter().flat_map(|(key, value)| [key, value]));
        Ok(Self { members, measure, places })
    }

    /// The members in the order of their keys.
    pub fn as_slice(&self) -> &[(Value, Value)] {
        &self.members
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Value, &Value)> + ExactSizeIterator {
        self.members.iter().map(|(key, value)| (key, value))
    }

    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Value> + ExactSizeIterator {
        self.members.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Value> + ExactSizeIterator {
        self.members.iter().map(|(_, value)| value)
    }

    pub fn get(&self, key: &Value) -> Option<&Value> {
        if let Some(places) = &self.places {
            let at = places.find(hash_of(key), |&at| self.members.get(at as usize).is_some_and(|(it, _)| it == key))?;
            return self.members.get(*at as usize).map(|(_, value)| value);
        }
        if let Value::String(text) = key {
            return self.get_str(text);
        }
        let at = self.members.binary_search_by(|(it, _)| it.cmp(key)).ok()?;
        self.members.get(at).map(|(_, value)| value)
    }

    /// The member under the string `key`.
    pub fn get_str(&self, key: &str) -> Option<&Value> {
        let found = |it: &Value| matches!(it, Value::String(text) if text.as_bytes() == key.as_bytes());
        if let Some(places) = &self.places {
            let hash = HASHING.hash_one(Bytes(key));
            let at = places.find(hash, |&at| self.members.get(at as usize).is_some_and(|(it, _)| found(it)))?;
            return self.members.get(*at as usize).map(|(_, value)| value);
        }
        // Few members: comparing lengths first is quicker than an ordered search.
        self.members.iter().find(|(it, _)| found(it)).map(|(_, value)| value)
    }

    /// The members, to build another object of.
    pub fn to_vec(&self) -> Vec<(Value, Value)> {
        self.members.to_vec()
    }

    /// This object with one member set.
    pub fn with(&self, key: Value, value: Value) -> Self {
        let mut members = self.to_vec();
        match members.binary_search_by(|(it, _)| it.cmp(&key)) {
            Ok(at) => {
                if let Some(member) = members.get_mut(at) {
                    member.1 = value;
                }
            }
            Err(at) => members.insert(at, (key, value)),
        }
        Self::new(members)
    }
}

/// Hashes text as a string value does.
struct Bytes<'a>(&'a str);

impl Hash for Bytes<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.as_bytes().hash(state);
    }
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.members == other.members
    }
}

impl Eq for Object {}

impl Ord for Object {
    /// Pair by pair in key order, keys before values, then the shorter first.
    fn cmp(&self, other: &Self) -> Ordering {
        self.members.cmp(&other.members)
    }
}

impl PartialOrd for Object {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Set {
    /// Sorts the items and drops repeated ones.
    pub fn new(mut items: Vec<Value>) -> Self {
        if !items.is_sorted_by(|a, b| a < b) {
            items.sort();
            items.dedup();
        }
        let items = items.into_boxed_slice();
        let places = places(items.iter());
        let measure = Measure::of(items.iter());
        Self { items, measure, places }
    }

    pub fn measure(&self) -> Measure {
        self.measure
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// A set of items that are sorted, each once.
    pub(super) fn sorted<M: Meter>(items: Vec<Value>, meter: &mut M) -> Result<Self, M::Error> {
        let items = items.into_boxed_slice();
        let places = metered_places(items.iter(), meter)?;
        let measure = Measure::of(items.iter());
        Ok(Self { items, measure, places })
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Value> {
        self.items.iter()
    }

    /// The item that equals `key`.
    pub fn get(&self, key: &Value) -> Option<&Value> {
        if let Some(places) = &self.places {
            let at = places.find(hash_of(key), |&at| self.items.get(at as usize) == Some(key))?;
            return self.items.get(*at as usize);
        }
        self.items.iter().find(|item| *item == key)
    }

    pub fn contains(&self, key: &Value) -> bool {
        self.get(key).is_some()
    }

    pub fn to_vec(&self) -> Vec<Value> {
        self.items.to_vec()
    }
}

impl PartialEq for Set {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

impl Eq for Set {}

impl Ord for Set {
    fn cmp(&self, other: &Self) -> Ordering {
        self.items.cmp(&other.items)
    }
}

impl PartialOrd for Set {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
