//! Which definitions of a rule can apply at all: those whose equalities with constants hold.
//!
//! A condition is `reference = constant` in the body, outside negation. One table for each reference leads from the value
//! that it has now to the definitions that ask for that value; those that ask for nothing are always tried.

use std::collections::HashMap;

use crate::value::Value;

/// Below this many definitions a table costs more than it saves.
const WORTHWHILE: usize = 3;

/// A constant path into the input or into an argument of a function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyPath {
    /// The argument; nothing for the input.
    pub argument: Option<u32>,
    pub path: Box<[Value]>,
}

/// What a definition asks of the value at a path.
#[derive(Clone, Debug)]
pub struct Condition {
    pub path: KeyPath,
    pub value: Value,
}

/// A decision tree over the definitions of one rule, by their places.
#[derive(Debug)]
pub enum Index {
    /// These must be tried.
    All(Box<[u32]>),
    Switch {
        path: KeyPath,
        table: HashMap<Value, Index, ahash::RandomState>,
        /// Those that do not look at the path.
        rest: Box<Index>,
    },
}

impl Default for Index {
    fn default() -> Self {
        Self::All(Box::default())
    }
}

impl Index {
    /// Builds the index of definitions, each with its conditions.
    pub fn new(conditions: &[Vec<Condition>]) -> Self {
        let all = (0u32..).take(conditions.len()).collect();
        Self::build(all, conditions, &mut Vec::new())
    }

    fn build(rules: Vec<u32>, conditions: &[Vec<Condition>], used: &mut Vec<KeyPath>) -> Self {
        let of = |rule: u32| conditions.get(rule as usize).map_or(&[][..], Vec::as_slice);
        if rules.len() < WORTHWHILE {
            return Self::All(rules.into());
        }
        // The path with the most different values divides best.
        let mut values: HashMap<&KeyPath, HashMap<&Value, usize>> = HashMap::new();
        for &rule in &rules {
            for condition in of(rule) {
                if !used.contains(&condition.path) {
                    *values.entry(&condition.path).or_default().entry(&condition.value).or_default() += 1;
                }
            }
        }
        let best = values.iter().max_by(|(a, x), (b, y)| {
            (x.len(), x.values().sum::<usize>())
                .cmp(&(y.len(), y.values().sum::<usize>()))
                .then_with(|| b.path.cmp(&a.path))
        });
        let Some((&path, _)) = best else { return Self::All(rules.into()) };
        let path = path.clone();
        let mut table: HashMap<Value, Vec<u32>, ahash::RandomState> = HashMap::default();
        let mut rest = Vec::new();
        for &rule in &rules {
            match of(rule).iter().find(|condition| condition.path == path) {
                Some(condition) => table.entry(condition.value.clone()).or_default().push(rule),
                None => rest.push(rule),
            }
        }
        used.push(path.clone());
        let table = table.into_iter().map(|(value, rules)| (value, Self::build(rules, conditions, used))).collect();
        let rest = Box::new(Self::build(rest, conditions, used));
        used.pop();
        Self::Switch { path, table, rest }
    }

    /// Adds the definitions that can apply; `value_at` gives what stands at a path now.
    pub fn candidates<'v>(&self, value_at: &mut impl FnMut(&KeyPath) -> Option<&'v Value>, found: &mut Vec<u32>) {
        match self {
            Self::All(rules) => found.extend_from_slice(rules),
            Self::Switch { path, table, rest } => {
                if let Some(next) = value_at(path).and_then(|value| table.get(value)) {
                    next.candidates(value_at, found);
                }
                rest.candidates(value_at, found);
            }
        }
    }
}
