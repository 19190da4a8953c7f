//! Events about a user that policies read and that reject nothing: as a hub keeps them, and as a sidecar has them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The kinds of events, by their names in `input.revocation.events`.
pub const KINDS: [&str; 5] = ["assurance", "credential_change", "device", "recovery", "risk"];
/// Events of a kind that are kept of a user.
const MAX_OF_KIND: usize = 8;
/// Bytes of the events of a user, as JSON. Beyond, the oldest go.
pub const MAX_USER_BYTES: usize = 2_048;
/// Events are kept for so many seconds.
pub const KEPT: i64 = 30 * 86_400;
/// Bytes of a text in an event.
const MAX_TEXT_BYTES: usize = 64;

/// The events about a user: a few of each kind, the newest first. Each has `id`, the same for all keys of the user, and `at` in seconds
/// since the epoch; the other members are short texts and numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserEvents(BTreeMap<&'static str, Vec<Map<String, Value>>>);

impl UserEvents {
    /// Reads them; `None` for what is none, or too large. Kinds of later versions are left out.
    pub fn from_json(document: &Value) -> Option<Self> {
        let mut events = Self::default();
        for (name, list) in document.as_object()? {
            let Some(kind) = KINDS.into_iter().find(|kind| kind == name) else { continue };
            let list = list.as_array().filter(|list| list.len() <= MAX_OF_KIND)?;
            let read = |event: &Value| event.as_object().filter(|event| is_event(event)).cloned();
            events.0.insert(kind, list.iter().map(read).collect::<Option<_>>()?);
        }
        (events.to_json().to_string().len() <= MAX_USER_BYTES).then_some(events)
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Self::from_json(&serde_json::from_slice(bytes).ok()?)
    }

    pub fn to_json(&self) -> Value {
        json!(self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.values().all(Vec::is_empty)
    }

    /// Adds an event of a kind. The same one counts once.
    pub fn add(&mut self, kind: &'static str, event: Map<String, Value>) {
        // Of the same second, the last one is the newest.
        self.0.entry(kind).or_default().insert(0, event);
        self.tidy();
        while self.to_json().to_string().len() > MAX_USER_BYTES {
            let oldest = self.0.values_mut().filter(|list| !list.is_empty()).min_by_key(|list| list.last().map(at));
            let Some(list) = oldest else { return };
            list.pop();
        }
    }

    /// Adds those of another key of the user.
    pub fn extend(&mut self, other: &Self) {
        for (kind, list) in &other.0 {
            self.0.entry(kind).or_default().extend(list.iter().cloned());
        }
        self.tidy();
    }

    /// Removes what is too old; true if there was something.
    pub fn forget(&mut self, now: i64) -> bool {
        let before: usize = self.0.values().map(Vec::len).sum();
        for list in self.0.values_mut() {
            list.retain(|event| at(event).saturating_add(KEPT) > now);
        }
        self.0.retain(|_, list| !list.is_empty());
        self.0.values().map(Vec::len).sum::<usize>() < before
    }

    /// The lowest level, from 0 on, that a provider has taken a user down to and that still counts for one who authenticated at
    /// `authenticated`, in seconds since the epoch. The newest event of each namespace counts.
    pub fn level_cap(&self, authenticated: i64) -> Option<u64> {
        let mut newest: BTreeMap<&str, &Map<String, Value>> = BTreeMap::new();
        for event in self.0.get("assurance").into_iter().flatten() {
            newest.entry(event.get("namespace").and_then(Value::as_str).unwrap_or_default()).or_insert(event);
        }
        let counting = newest.values().filter(|event| authenticated <= at(event));
        counting.filter_map(|event| event.get("cap")?.as_u64()).min()
    }

    /// The newest first, each once, and no more than are kept.
    fn tidy(&mut self) {
        for list in self.0.values_mut() {
            list.sort_by_key(|event| std::cmp::Reverse(at(event)));
            let mut seen = Vec::new();
            list.retain(|event| {
                let id = event.get("id").cloned();
                let is_new = !seen.contains(&id);
                seen.push(id);
                is_new
            });
            list.truncate(MAX_OF_KIND);
        }
    }
}

fn at(event: &Map<String, Value>) -> i64 {
    event.get("at").and_then(Value::as_i64).unwrap_or_default()
}

fn is_event(event: &Map<String, Value>) -> bool {
    let is_short = |value: &Value| match value {
        Value::String(text) => text.len() <= MAX_TEXT_BYTES,
        Value::Number(_) => true,
        _ => false,
    };
    event.get("id").is_some_and(Value::is_string)
        && event.get("at").is_some_and(Value::is_i64)
        && event.values().all(is_short)
}

/// A text of an event, if it is short enough to be kept.
pub fn short(text: &str) -> Option<&str> {
    (!text.is_empty() && text.len() <= MAX_TEXT_BYTES).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, at: i64, more: Value) -> Map<String, Value> {
        let mut event = more.as_object().cloned().unwrap_or_default();
        event.extend([("id".to_owned(), json!(id)), ("at".to_owned(), json!(at))]);
        event
    }

    #[test]
    fn the_newest_are_kept_each_once() {
        let mut events = UserEvents::default();
        for number in 0..20 {
            events.add("risk", event(&format!("{number}"), number, json!({"level": "HIGH"})));
            events.add("risk", event(&format!("{number}"), number, json!({"level": "HIGH"})));
        }
        let ids = |events: &UserEvents| -> Vec<String> {
            let document = events.to_json();
            let list = document["risk"].as_array().cloned().unwrap_or_default();
            list.iter().map(|event| event["id"].as_str().unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(ids(&events), ["19", "18", "17", "16", "15", "14", "13", "12"]);
        let mut other = UserEvents::default();
        other.add("risk", event("19", 19, json!({})));
        other.add("recovery", event("r", 3, json!({"tier": 2})));
        events.extend(&other);
        assert!(ids(&events).len() == 8 && events.to_json()["recovery"][0]["tier"] == 2);
        assert_eq!(UserEvents::from_json(&events.to_json()), Some(events.clone()));
        assert!(!events.forget(KEPT) && events.forget(KEPT + 15));
        assert_eq!(ids(&events), ["19", "18", "17", "16"]);
        assert!(events.forget(KEPT * 2) && events.is_empty());
    }

    #[test]
    fn they_have_a_bound() {
        let mut events = UserEvents::default();
        for kind in KINDS {
            for number in 0..8 {
                let long = json!({"a": "x".repeat(64), "b": "y".repeat(64)});
                events.add(kind, event(&format!("{kind}{number}"), number, long));
            }
        }
        assert!(events.to_json().to_string().len() <= MAX_USER_BYTES);
        assert!(UserEvents::from_json(&events.to_json()).is_some());
        assert_eq!(UserEvents::from_json(&json!({"later": [1]})), Some(UserEvents::default()));
        for bad in [
            json!([]),
            json!({"risk": {}}),
            json!({"risk": [{"id": "a"}]}),
            json!({"risk": [{"id": "a", "at": 1, "x": []}]}),
            json!({"risk": [{"id": "a", "at": 1, "x": "y".repeat(65)}]}),
            json!({"risk": (0..9).map(|at| json!({"id": format!("{at}"), "at": at})).collect::<Vec<_>>()}),
        ] {
            assert_eq!(UserEvents::from_json(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_level_is_lowered_until_the_next_authentication_or_a_rise() {
        let mut events = UserEvents::default();
        events.add("assurance", event("a", 100, json!({"namespace": "NIST-AAL", "level": "nist-aal1", "cap": 1})));
        events.add("assurance", event("b", 90, json!({"namespace": "own", "level": "low", "cap": 2})));
        assert_eq!((events.level_cap(100), events.level_cap(101)), (Some(1), None));
        events.add("assurance", event("c", 110, json!({"namespace": "NIST-AAL", "level": "nist-aal2"})));
        assert_eq!((events.level_cap(80), events.level_cap(95)), (Some(2), None));
    }
}
