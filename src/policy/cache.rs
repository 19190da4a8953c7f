//! The decision cache, for evaluations that are deterministic (ADR 7).
//!
//! A cache belongs to one policy with its data, and ends with it. An answer is found again by everything that the evaluation can
//! have looked at in the input, spelled out, and is kept only when the evaluation asked the world for nothing.

use std::sync::Arc;

use moka::sync::Cache;

use crate::value::{Text, Value, items, json_text};

/// Longer keys cost more than most evaluations do: bodies, for example.
const MAX_KEY_BYTES: usize = 16 << 10;
/// The approximate memory of an entry beside its key and answer.
const OVERHEAD: usize = 400;
/// The approximate memory of a text or collection beside its parts, and of each part in it.
const ALLOCATION: usize = 64;
const PART: usize = 16;

/// Answers by what they depend on.
#[derive(Debug)]
pub struct DecisionCache {
    /// The places of the input that the policy looks at, in their order.
    places: Vec<Vec<Text>>,
    entries: Cache<Arc<[u8]>, Option<Value>>,
}

impl DecisionCache {
    /// A cache for a policy that looks at these places of the input. Nothing where there is no room, or where it looks at the input
    /// as a whole: no two requests are alike.
    pub fn new(places: Vec<Vec<Text>>, bytes: u64) -> Option<Self> {
        let is_useful = bytes > 0 && places.iter().all(|place| !place.is_empty());
        let weight = |key: &Arc<[u8]>, answer: &Option<Value>| {
            let answer = answer.as_ref().map_or(0, bytes_of);
            u32::try_from(key.len().saturating_add(answer).saturating_add(OVERHEAD)).unwrap_or(u32::MAX)
        };
        is_useful.then(|| Self { places, entries: Cache::builder().weigher(weight).max_capacity(bytes).build() })
    }

    /// The inputs of an evaluation of `input`, as a key; `None` where that is too long. JSON has no zero bytes, so that no two inputs have
    /// one key, and spells numbers as they came: `1` and `1.0` are equal to policies, but can be printed.
    pub fn key(&self, input: &Value) -> Option<Arc<[u8]>> {
        let mut key = Vec::with_capacity(256);
        for place in &self.places {
            if let Some(value) = input.at(place.iter().map(Text::as_str)) {
                if value.weight().saturating_mul(2) > MAX_KEY_BYTES {
                    return None;
                }
                key.extend_from_slice(json_text(value).as_bytes());
            }
            key.push(0);
        }
        (key.len() <= MAX_KEY_BYTES).then(|| Arc::from(key))
    }

    pub fn get(&self, key: &[u8]) -> Option<Option<Value>> {
        self.entries.get(key)
    }

    pub fn put(&self, key: Arc<[u8]>, answer: Option<Value>) {
        self.entries.insert(key, answer);
    }
}

/// The approximate memory of a value.
fn bytes_of(value: &Value) -> usize {
    let parts = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => return PART,
        Value::String(text) => text.len(),
        Value::Object(members) => {
            members.iter().map(|(name, value)| bytes_of(name).saturating_add(bytes_of(value))).sum()
        }
        Value::Array(_) | Value::Set(_) => items(value).into_iter().map(bytes_of).sum(),
    };
    parts.saturating_add(ALLOCATION)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::policy::{
        AnswerSource, Bounds, BuiltinSettings, Entrypoint, HostContext, Module, RegoVersion, Snapshot, Sources,
    };
    use crate::value::{DuplicateKeys, JsonLimits, Value, json_text, parse_json};

    const BUDGET: Duration = Duration::from_secs(5);

    fn load(policy: &str, decision_cache_bytes: u64) -> Snapshot {
        let settings = BuiltinSettings { decision_cache_bytes, opa_runtime: true, ..BuiltinSettings::default() };
        let module = Module { path: "p.rego".into(), text: format!("package p\n{policy}"), version: RegoVersion::V1 };
        let sources = Sources { modules: vec![module], data: Value::empty_object() };
        let host_context = Arc::new(HostContext::new(&settings));
        Snapshot::build(&sources, &Entrypoint::from_path("p/allow"), &host_context).expect("it loads")
    }

    #[test]
    fn small_values_count_what_they_really_take() {
        let limits = JsonLimits { depth: 10, duplicates: DuplicateKeys::Refuse };
        let of = |text: &str| super::bytes_of(&parse_json(text.as_bytes(), limits).expect("JSON"));
        // Measured: 270 bytes for an object with a list of one number, 42 for a short text.
        let many = |item: &str| of(&format!("[{}]", vec![item; 100].join(","))) / 100;
        assert!((200..400).contains(&many(r#"{"a": [1]}"#)), "{}", many(r#"{"a": [1]}"#));
        assert!((42..100).contains(&many(r#""abc""#)), "{}", many(r#""abc""#));
        assert!((10_000..10_100).contains(&many(&format!("\"{}\"", "x".repeat(10_000)))), "long texts are their bytes");
    }

    fn ask(snapshot: &Snapshot, input: &str) -> (String, AnswerSource) {
        let limits = JsonLimits { depth: 10, duplicates: DuplicateKeys::Refuse };
        let input = parse_json(input.as_bytes(), limits).expect("JSON");
        match snapshot.eval(&input, Bounds::within(BUDGET)) {
            Ok(found) => (found.value.map_or("undefined".to_owned(), |value| json_text(&value)), found.source),
            Err(error) => (error.to_string(), AnswerSource::Uncached),
        }
    }

    /// Inputs that differ as little as they can.
    const INPUTS: &[&str] = &[
        "{}",
        r#"{"a": null}"#,
        r#"{"a": {}}"#,
        r#"{"a": {"b": null}}"#,
        r#"{"a": {"b": 1}}"#,
        r#"{"a": {"b": 1.0}}"#,
        r#"{"a": {"b": 1e0}}"#,
        r#"{"a": {"b": "1"}}"#,
        r#"{"a": {"b": ""}}"#,
        r#"{"a": {"b": "\u0000"}}"#,
        r#"{"a": {"b": "null"}, "c": 1}"#,
        r#"{"a": {"b": [1]}, "c": "1"}"#,
        r#"{"a": {"b": {"1": 1}}, "c": [1]}"#,
        r#"{"a": ["b"], "c": false}"#,
        r#"{"b": 1, "c": 1}"#,
    ];

    #[test]
    fn with_and_without_it_the_answers_are_the_same() {
        for policy in [
            "allow if input.a.b == 1",
            "allow := input.a.b",
            "allow := sprintf(\"%v %v\", [input.a.b, input.c])",
            "allow := json.marshal(input.a)",
            "default allow := \"no\"\nallow := type_name(input.a.b) if input.c",
            "allow := x if { x := input.a.b; not input.c == 1 } else := input.c",
            "allow := object.get(input.a, \"b\", \"none\")",
            "allow := x if { x := f(input.a.b) with input.a.b as input.c }\nf(x) := [x, input.a]",
            "allow := [input[name] | some name in [\"a\", \"c\"]]",
            "allow := [path | walk(input, [path, _])]",
            "allow := input.a.b\nallow := input.c",
            "allow := y if { x := input.a; y := x[input.c] }",
        ] {
            let (plain, cached) = (load(policy, 0), load(policy, 1 << 20));
            for input in INPUTS.iter().chain(INPUTS) {
                assert_eq!(ask(&cached, input).0, ask(&plain, input).0, "{policy} {input}");
            }
        }
    }

    #[test]
    fn what_is_not_looked_at_does_not_count() {
        let cached = load("allow if { input.a.b == 1; not input.c }", 1 << 20);
        assert_eq!(ask(&cached, r#"{"a": {"b": 1, "x": 1}}"#), ("true".to_owned(), AnswerSource::Miss));
        assert_eq!(ask(&cached, r#"{"a": {"b": 1, "x": 2}, "y": 3}"#), ("true".to_owned(), AnswerSource::Hit));
        assert_eq!(ask(&cached, r#"{"a": {"b": 1}, "c": false}"#), ("true".to_owned(), AnswerSource::Miss));
        assert_eq!(ask(&cached, r#"{"a": {"b": 1}, "c": null}"#), ("undefined".to_owned(), AnswerSource::Miss));
        assert_eq!(ask(&cached, r#"{"a": {"b": 1}, "c": null}"#), ("undefined".to_owned(), AnswerSource::Hit));
        assert_eq!(ask(&load("allow if input.a", 0), "{}").1, AnswerSource::Uncached, "off");
        assert_eq!(
            ask(&load("allow if count(input) == 0", 1 << 20), "{}").1,
            AnswerSource::Uncached,
            "the whole input"
        );
        let long = format!(r#"{{"a": "{}"}}"#, "x".repeat(super::MAX_KEY_BYTES));
        assert_eq!(ask(&load("allow if input.a", 1 << 20), &long).1, AnswerSource::Uncached, "too long");
    }

    #[test]
    fn what_asks_the_world_is_asked_again() {
        for policy in [
            "allow if { input.a; time.now_ns() > 0 }",
            "allow if { input.a; rand.intn(\"x\", 10) >= 0 }",
            "allow if { input.a; uuid.rfc4122(\"x\") != \"\" }",
            "allow if { input.a; opa.runtime().env }",
            "allow if { input.a; print(\"seen\") }",
            "allow if { input.a; trace(\"seen\") }",
            "allow if { input.a; not io.jwt.decode_verify(\"eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.reR-Yw9-EIJWb1gPrglG4bXHFBImd74qTFADmamXZfQ\", {\"secret\": \"s\"})[0] }",
            "allow if { input.a; f(1) }\nf(_) if time.now_ns() > 0",
        ] {
            let cached = load(policy, 1 << 20);
            for _ in 0..2 {
                assert_eq!(ask(&cached, r#"{"a": 1}"#), ("true".to_owned(), AnswerSource::Miss), "{policy}");
            }
        }
        let cached = load("allow := x if { x := input.a; input.b } else := time.now_ns()", 1 << 20);
        assert_eq!(ask(&cached, r#"{"a": 1, "b": 1}"#).1, AnswerSource::Miss);
        assert_eq!(ask(&cached, r#"{"a": 1, "b": 1}"#).1, AnswerSource::Hit, "the clock was not asked");
    }

    #[test]
    fn errors_are_never_kept() {
        let cached = load("allow := 1 if input.a\nallow := 2 if input.b", 1 << 20);
        for _ in 0..2 {
            let (answer, _) = ask(&cached, r#"{"a": 1, "b": 1}"#);
            assert!(answer.contains("conflict"), "{answer}");
        }
    }
}
