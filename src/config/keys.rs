//! Every key that may be configured: its type, its default, what it does, and whether it does it yet.

mod table;

use serde_json::Value;

use super::duration;
use super::memory::Consumer;
use super::problem::Problems;

/// The type of a value.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    String,
    Bool,
    /// A whole number within bounds.
    Integer(u64, u64),
    Duration,
    Choice(&'static [&'static str]),
    Strings,
    Numbers,
    /// A number from 0 to 100.
    Percentage,
    /// An object from text to text.
    StringMap,
    /// An object from text to a level.
    LevelMap,
    /// A level of assurance, by number or name.
    Level,
    /// A section whose keys are listed on their own.
    Section,
    /// A list of sections.
    Sections,
    /// An object of sections by name, or a list of them.
    Named,
    /// `strict`, or an object whose keys are listed on their own.
    SectionOrStrict,
    /// Anything: OPA's, kept and not looked at.
    Any,
}

impl Kind {
    /// The value is checked as a whole, and not key by key.
    fn is_leaf(self) -> bool {
        !matches!(self, Self::Section | Self::Sections | Self::Named | Self::SectionOrStrict)
    }
}

/// The support of a key.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    Supported,
    /// Accepted without effect, for the reason given.
    NoOp(&'static str),
    /// Stops the start, for the reason given.
    Refused(&'static str),
}

/// The value of a key that is not configured.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// The feature is off, or nothing is there.
    None,
    /// The section that the key belongs to needs it.
    Required,
    /// This value, spelled as in a configuration. The resolver reads it from here.
    Is(&'static str),
    /// The share of a consumer of memory, in units of so many bytes.
    Share(Consumer, u64),
    /// So many bytes, and no more than the memory limit divided by this.
    Capped(u64, u64),
    /// Depends on other keys, or on the machine.
    Computed(&'static str),
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Dotted; `[]` stands for each item of a list.
    pub path: &'static str,
    pub kind: Kind,
    pub default: Default,
    pub about: &'static str,
    pub effect: Effect,
}

/// All keys.
pub fn all() -> impl Iterator<Item = &'static Key> {
    #[cfg(test)]
    return table::all().chain(tests::ADDED.get());
    #[cfg(not(test))]
    table::all()
}

/// The key at a path of the table.
pub fn find(path: &str) -> Option<&'static Key> {
    all().find(|key| key.path == path)
}

/// The prefix of stepgate's own section, where an unknown key stops the start.
pub(super) const OWN: &str = "plugins.stepgate";

/// Problems of the keys of a configuration for another machine: its `${…}` are accepted unexpanded.
pub fn problems(document: &Value) -> Problems {
    let mut problems = Problems::default();
    check(&filled(document), &mut problems);
    problems
}

/// Without the members that the environment of that machine fills.
fn filled(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let own = members.iter().filter(|(_, value)| !value.as_str().is_some_and(|text| text.contains("${")));
            Value::Object(own.map(|(name, value)| (name.clone(), filled(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(filled).collect()),
        other => other.clone(),
    }
}

/// Checks every key and value of `document`.
pub fn check(document: &Value, problems: &mut Problems) {
    section(document, "", "", problems);
}

fn section(value: &Value, path: &str, pattern: &str, problems: &mut Problems) {
    let Some(members) = value.as_object() else { return };
    for (name, value) in members {
        let join = |prefix: &str| if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let (path, pattern) = (join(path), join(pattern));
        match find(&pattern) {
            Some(key) => known(key, value, &path, &pattern, problems),
            None => unknown(name, &path, &pattern, problems),
        }
    }
}

fn known(key: &Key, value: &Value, path: &str, pattern: &str, problems: &mut Problems) {
    match key.effect {
        Effect::Refused(why) => return problems.error(path, why),
        Effect::NoOp(why) => return problems.warn(path, format!("has no effect: {why}")),
        Effect::Supported => {}
    }
    if pattern.starts_with(OWN) && key.kind.is_leaf() && holds_placeholder(value) {
        return problems.error(path, "a `${…}` in it was not replaced: the variable is not set");
    }
    match (key.kind, value) {
        // An empty section is all defaults, as in OPA.
        (Kind::Section, Value::Null) => {}
        (Kind::Section | Kind::SectionOrStrict, Value::Object(_)) => section(value, path, pattern, problems),
        (Kind::SectionOrStrict, Value::String(text)) if text == "strict" => {}
        (Kind::Named, Value::Object(members)) => {
            for (name, item) in members {
                item_of(item, format!("{path}.{name}"), pattern, problems);
            }
        }
        (Kind::Sections | Kind::Named, Value::Array(items)) => {
            for (at, item) in items.iter().enumerate() {
                item_of(item, format!("{path}[{at}]"), pattern, problems);
            }
        }
        (kind, value) => {
            if let Some(expected) = mismatch(kind, value) {
                let got = value.to_string();
                let got: String = got.chars().take(60).collect();
                problems.error(path, format!("expected {expected}, got `{got}`"));
            }
        }
    }
}

fn item_of(item: &Value, path: String, pattern: &str, problems: &mut Problems) {
    if item.is_object() {
        section(item, &path, &format!("{pattern}[]"), problems);
    } else {
        problems.error(path, "expected an object");
    }
}

/// Some string in `value` still has a `${`.
fn holds_placeholder(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("${"),
        Value::Array(items) => items.iter().any(holds_placeholder),
        Value::Object(members) => members.values().any(holds_placeholder),
        _ => false,
    }
}

/// Valid as a level name; the existence of the level is checked later.
fn is_level(value: &Value) -> bool {
    value.is_string() || value.is_u64()
}

/// The expected type, when `value` has another.
fn mismatch(kind: Kind, value: &Value) -> Option<String> {
    let texts = |items: &Vec<Value>| items.iter().all(Value::is_string);
    let (fits, expected) = match kind {
        Kind::String => (value.is_string(), "a string".to_owned()),
        Kind::Bool => (value.is_boolean(), "a boolean".to_owned()),
        Kind::Integer(least, most) => {
            (value.as_u64().is_some_and(|n| (least..=most).contains(&n)), format!("an integer from {least} to {most}"))
        }
        Kind::Duration => (
            value.as_str().and_then(duration::parse).is_some_and(|length| !length.is_zero() || value == "0s"),
            "a duration such as `180ms`, `30s` or `10m`".to_owned(),
        ),
        Kind::Choice(names) => {
            let is_unquoted = !value.is_string() && names.contains(&value.to_string().as_str());
            let hint = if is_unquoted { ", in quotes: without them YAML takes it for something else" } else { "" };
            (value.as_str().is_some_and(|text| names.contains(&text)), format!("one of {}{hint}", names.join(", ")))
        }
        Kind::Strings => (value.as_array().is_some_and(texts), "an array of strings".to_owned()),
        Kind::Numbers => {
            (value.as_array().is_some_and(|items| items.iter().all(Value::is_number)), "an array of numbers".to_owned())
        }
        Kind::Percentage => {
            (value.as_f64().is_some_and(|n| (0.0..=100.0).contains(&n)), "a number from 0 to 100".to_owned())
        }
        Kind::StringMap => (
            value.as_object().is_some_and(|members| members.values().all(Value::is_string)),
            "an object of strings".to_owned(),
        ),
        Kind::LevelMap => (
            value.as_object().is_some_and(|members| members.values().all(is_level)),
            "an object of levels, each by number or name".to_owned(),
        ),
        Kind::Level => (is_level(value), "a level, by number or name".to_owned()),
        Kind::Section | Kind::SectionOrStrict => (false, "an object".to_owned()),
        Kind::Sections => (false, "an array of objects".to_owned()),
        Kind::Named => (false, "an object of objects".to_owned()),
        Kind::Any => (true, String::new()),
    };
    (!fits).then_some(expected)
}

fn unknown(name: &str, path: &str, pattern: &str, problems: &mut Problems) {
    let parent = pattern.strip_suffix(name).unwrap_or_default();
    let siblings = all().filter_map(|key| key.path.strip_prefix(parent)).filter(|rest| !rest.contains(['.', '[']));
    let nearest = siblings.map(|sibling| (strsim::damerau_levenshtein(name, sibling), sibling)).min();
    let hint = match nearest {
        Some((distance, sibling)) if distance <= sibling.len().div_ceil(3) => format!("; did you mean `{sibling}`?"),
        _ => String::new(),
    };
    if pattern.starts_with(OWN) {
        problems.error(path, format!("unknown key{hint}"));
    } else if parent == "plugins." {
        // OPA: plugin "x" not registered.
        problems.error(path, format!("there is no such plugin{hint}"));
    } else {
        problems.warn(path, format!("unknown key, ignored{hint}"));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// A key that a test adds to the table.
        pub static ADDED: Cell<Option<&'static Key>> = const { Cell::new(None) };
    }

    #[test]
    fn stated_defaults_are_values_of_their_keys() {
        for key in all() {
            let Default::Is(text) = key.default else { continue };
            let value = match key.kind {
                Kind::Bool | Kind::Integer(..) | Kind::Percentage => serde_json::from_str(text).expect(key.path),
                _ => Value::from(text),
            };
            assert_eq!(mismatch(key.kind, &value), None, "{}", key.path);
        }
    }
}
