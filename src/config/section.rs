//! A section of a checked document, whose values and defaults come from the table of keys.

use std::time::Duration;

use serde_json::Value;

use super::duration;
use super::keys::{Default, Key, find};
use super::memory::Memory;

/// A section whose values have the types that the table says.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    pub(super) value: Option<&'a Value>,
    /// The path of its keys in the table, such as `services[]`.
    pattern: &'static str,
}

impl<'a> Section<'a> {
    /// The whole document.
    pub(super) fn root(document: &'a Value) -> Self {
        Self::of("", Some(document))
    }

    pub(super) fn of(pattern: &'static str, value: Option<&'a Value>) -> Self {
        Self { value, pattern }
    }

    fn key(self, name: &str) -> Option<&'static Key> {
        let separator = if self.pattern.is_empty() { "" } else { "." };
        let key = find(&format!("{}{separator}{name}", self.pattern));
        debug_assert!(key.is_some(), "`{name}` of `{}` is not in the table", self.pattern);
        key
    }

    /// The default that the table states as a value.
    fn stated(self, name: &str) -> Option<&'static str> {
        let key = self.key(name)?;
        debug_assert!(matches!(key.default, Default::Is(_)), "`{}` has no stated default", key.path);
        match key.default {
            Default::Is(text) => Some(text),
            _ => None,
        }
    }

    /// The key's default is computed by the caller.
    fn assert_computed(self, name: &str) {
        let is_stated = self.key(name).is_some_and(|key| matches!(key.default, Default::Is(_)));
        debug_assert!(!is_stated, "`{name}` of `{}` has a stated default", self.pattern);
    }

    pub(super) fn at(self, name: &str) -> Option<&'a Value> {
        self.value?.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn section(self, name: &str) -> Self {
        Self::of(self.key(name).map_or("", |key| key.path), self.at(name))
    }

    /// The text as it was configured.
    pub(super) fn text(self, name: &str) -> Option<&'a str> {
        self.at(name)?.as_str()
    }

    /// The text, or its default.
    pub(super) fn text_or_default(self, name: &str) -> &'a str {
        self.text(name).or_else(|| self.stated(name)).unwrap_or_default()
    }

    /// The flag as it was configured.
    pub(super) fn flag(self, name: &str) -> Option<bool> {
        self.at(name)?.as_bool()
    }

    /// The flag, or its default.
    pub(super) fn is_on(self, name: &str) -> bool {
        self.flag(name).unwrap_or_else(|| self.stated(name) == Some("true"))
    }

    /// The integer as it was configured.
    pub(super) fn integer(self, name: &str) -> Option<u64> {
        self.at(name)?.as_u64()
    }

    /// The integer, or its default.
    pub(super) fn count(self, name: &str) -> u64 {
        let default = || self.stated(name).and_then(|text| text.parse().ok());
        self.integer(name).or_else(default).unwrap_or_default()
    }

    /// The integer, or its default, as a size in memory.
    pub(super) fn size(self, name: &str) -> usize {
        usize::try_from(self.count(name)).unwrap_or(usize::MAX)
    }

    /// The integer, or a default that depends on the memory limit.
    pub(super) fn share(self, name: &str, memory: Memory) -> u64 {
        let default = || match self.key(name)?.default {
            Default::Share(consumer, unit) => memory.default_for(consumer).checked_div(unit),
            Default::Capped(most, divisor) => Some(memory.cap_to_fraction(most, divisor)),
            _ => None,
        };
        self.integer(name).or_else(default).unwrap_or_default()
    }

    /// As [`Self::share`], as a size in memory.
    pub(super) fn share_size(self, name: &str, memory: Memory) -> usize {
        usize::try_from(self.share(name, memory)).unwrap_or(usize::MAX)
    }

    /// The duration, or its default.
    pub(super) fn duration(self, name: &str) -> Duration {
        let default = || self.stated(name).and_then(duration::parse);
        self.text(name).and_then(duration::parse).or_else(default).unwrap_or_default()
    }

    /// The duration, where the default depends on other keys.
    pub(super) fn duration_or(self, name: &str, computed: Duration) -> Duration {
        self.assert_computed(name);
        self.optional_duration(name).unwrap_or(computed)
    }

    /// The duration as it was configured.
    pub(super) fn optional_duration(self, name: &str) -> Option<Duration> {
        self.text(name).and_then(duration::parse)
    }

    /// The flag, where the default depends on other keys.
    pub(super) fn flag_or(self, name: &str, computed: bool) -> bool {
        self.assert_computed(name);
        self.flag(name).unwrap_or(computed)
    }

    pub(super) fn texts(self, name: &str) -> Vec<&'a str> {
        let items = self.at(name).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    pub(super) fn members(self, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.at(name).and_then(Value::as_object).into_iter().flatten()
    }
}
