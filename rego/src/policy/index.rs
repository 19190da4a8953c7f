//! Which definitions of a rule can apply at all: those whose conditions on the input or the arguments hold.
//!
//! A condition is `reference = constant` in the body, or a constant prefix that `startswith` or `glob.match` asks for,
//! outside negation. Tables lead from the current value of a reference to the definitions that ask for it; those
//! that ask for nothing are always tried, and first, as in OPA: where the first success decides, a conflict in one of them is an error although
//! one that the tables select would succeed.
//!
//! Mirrors: the order of `trieNode.Traverse` in OPA `v1/ast/index.go`, v1.19.0.

use std::collections::{BTreeMap, HashMap};

use crate::value::{Text, Value};

/// Below this many definitions a table costs more than it saves.
const WORTHWHILE: usize = 3;

type Table<K> = HashMap<K, Index, ahash::RandomState>;

/// A constant path into the input or into an argument of a function.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct KeyPath {
    /// The argument; nothing for the input.
    pub argument: Option<u32>,
    pub path: Box<[Value]>,
}

/// The condition of a definition on the value at a path.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    pub path: KeyPath,
    pub test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Test {
    Equals(Value),
    /// A string that begins so.
    Begins(Text),
}

/// A decision tree over the definitions of one rule, by their places.
#[derive(Debug)]
pub(crate) enum Index {
    /// These must be tried.
    All(Box<[u32]>),
    Equal {
        path: KeyPath,
        table: Table<Value>,
        /// Those that do not look at the path.
        rest: Box<Index>,
    },
    Prefix {
        path: KeyPath,
        /// By the length of the prefix.
        tables: Vec<(usize, Table<Text>)>,
        rest: Box<Index>,
    },
}

impl Default for Index {
    fn default() -> Self {
        Self::All(Box::default())
    }
}

/// The values that the index may read.
pub(crate) trait Facts<'v> {
    /// The current value at a path.
    fn value_at(&self, path: &KeyPath) -> Option<&'v Value>;
    /// `startswith` and `glob.match` are not replaced.
    fn prefixes_hold(&self) -> bool;
}

impl Index {
    /// Builds the index of definitions, each with its conditions.
    pub(crate) fn new(conditions: &[Vec<Condition>]) -> Self {
        let all = (0u32..).take(conditions.len()).collect();
        Self::build(all, conditions, &mut Vec::new())
    }

    fn build(rules: Vec<u32>, conditions: &[Vec<Condition>], used: &mut Vec<(KeyPath, bool)>) -> Self {
        let of = |rule: u32| conditions.get(rule as usize).map_or(&[][..], Vec::as_slice);
        if rules.len() < WORTHWHILE {
            return Self::in_order(rules, conditions, used);
        }
        // The path with the most different values divides best; equality is cheaper than a prefix.
        let mut values: BTreeMap<(&KeyPath, bool), HashMap<&Test, usize>> = BTreeMap::new();
        for &rule in &rules {
            for condition in of(rule) {
                let equal = matches!(condition.test, Test::Equals(_));
                if !used.contains(&(condition.path.clone(), equal)) {
                    *values.entry((&condition.path, equal)).or_default().entry(&condition.test).or_default() += 1;
                }
            }
        }
        let best = values
            .iter()
            .filter(|(_, tests)| tests.values().sum::<usize>() >= 2)
            .max_by_key(|((_, equal), tests)| (tests.len(), *equal, tests.values().sum::<usize>()));
        let Some((&(path, equal), _)) = best else { return Self::in_order(rules, conditions, used) };
        let path = path.clone();
        let mut sorted: HashMap<Test, Vec<u32>> = HashMap::new();
        let mut rest = Vec::new();
        for &rule in &rules {
            let asked = of(rule)
                .iter()
                .find(|condition| condition.path == path && matches!(condition.test, Test::Equals(_)) == equal);
            match asked {
                Some(condition) => sorted.entry(condition.test.clone()).or_default().push(rule),
                None => rest.push(rule),
            }
        }
        used.push((path.clone(), equal));
        let mut table = Table::<Value>::default();
        let mut tables: BTreeMap<usize, Table<Text>> = BTreeMap::new();
        for (test, rules) in sorted {
            let inner = Self::build(rules, conditions, used);
            match test {
                Test::Equals(value) => {
                    table.insert(value, inner);
                }
                Test::Begins(prefix) => {
                    tables.entry(prefix.len()).or_default().insert(prefix, inner);
                }
            }
        }
        let rest = Box::new(Self::build(rest, conditions, used));
        used.pop();
        if equal {
            Self::Equal { path, table, rest }
        } else {
            Self::Prefix { path, tables: tables.into_iter().collect(), rest }
        }
    }

    /// Definitions without a table: those that ask for nothing more come first.
    fn in_order(mut rules: Vec<u32>, conditions: &[Vec<Condition>], used: &[(KeyPath, bool)]) -> Self {
        let is_used = |it: &Condition| used.contains(&(it.path.clone(), matches!(it.test, Test::Equals(_))));
        let asks = |rule: u32| conditions.get(rule as usize).is_some_and(|all| !all.iter().all(is_used));
        rules.sort_by_key(|rule| asks(*rule));
        Self::All(rules.into())
    }

    /// Adds the definitions that can apply.
    pub(crate) fn candidates<'v>(&self, facts: &impl Facts<'v>, found: &mut Vec<u32>) {
        match self {
            Self::All(rules) => found.extend_from_slice(rules),
            Self::Equal { path, table, rest } => {
                rest.candidates(facts, found);
                if let Some(next) = facts.value_at(path).and_then(|value| table.get(value)) {
                    next.candidates(facts, found);
                }
            }
            Self::Prefix { path, tables, rest } => {
                rest.candidates(facts, found);
                if !facts.prefixes_hold() {
                    tables.iter().flat_map(|(_, table)| table.values()).for_each(|it| it.candidates(facts, found));
                } else if let Some(Value::String(text)) = facts.value_at(path) {
                    for (len, table) in tables {
                        if let Some(next) = text.get(..*len).and_then(|prefix| table.get(prefix)) {
                            next.candidates(facts, found);
                        }
                    }
                }
            }
        }
    }
}
