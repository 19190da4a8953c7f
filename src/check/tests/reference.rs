//! The pages of `docs/reference`: every member of the input is in the schema, the example has every one, and the examples of decisions are
//! what they are called.

use serde_json::{Value as Json, json};

use super::*;
use crate::opa::decision::{Decision, Dialect};
use crate::token::{token_for_tests, verifier_for_tests};
use crate::value::{DuplicateKeys, JsonLimits, parse_json};

const SCHEMA: &str = include_str!("../../../docs/reference/input.schema.json");
const INPUT: &str = include_str!("../../../docs/reference/input.md");
const DECISION: &str = include_str!("../../../docs/reference/decision.md");

/// The JSON blocks of a page, each with the comment before it.
fn examples(page: &str) -> Vec<(&str, &str)> {
    let mut parts = page.split("```json\n");
    let mut before = parts.next().unwrap_or_default();
    let mut found = Vec::new();
    for part in parts {
        let (example, after) = part.split_once("```").expect("the block ends");
        let comment = before.trim_end().rsplit('\n').next().unwrap_or_default();
        found.push((comment.trim_start_matches("<!-- ").trim_end_matches(" -->"), example));
        before = after;
    }
    found
}

fn metadata_of(response: &CheckResponse, name: &str) -> String {
    let field = response.dynamic_metadata.as_ref().and_then(|metadata| metadata.fields.get(name));
    format!("{:?}", field.expect("the policy answers it"))
}

#[tokio::test]
async fn every_member_of_the_input_is_in_the_schema() {
    let example = examples(INPUT).first().expect("an example").1;
    let policy = [
        "package p",
        &format!("schema := json.unmarshal(`{SCHEMA}`)"),
        &format!("example := json.unmarshal(`{example}`)"),
        r#"unknown(document) := {name | some name, _ in document; not schema.properties[name]} |
    {[name, inner] | some name in ["jwt", "authn", "peer", "client", "demand", "revocation"]; some inner, _ in document[name]; not schema.properties[name].properties[inner]} |
    {[name, "lacks", inner] | some name, _ in document; some inner in schema.properties[name].required; not inner in object.keys(document[name])}"#,
        r#"missing := object.keys(schema.properties) - object.keys(example) - {"body_error", "source_principal", "workload"}"#,
        r#"allow := {"allowed": true, "ignore_demand": true, "dynamic_metadata": {"input": [name | some name in unknown(input)],
    "example": [name | some name in unknown(example)], "missing": [name | some name in missing]}}"#,
    ]
    .join("\n");
    let route = Route {
        hosts: Vec::new(),
        methods: Vec::new(),
        path: PathPattern::parse("/**").expect("a pattern"),
        peers: Vec::new(),
        demand: RouteRequirement { max_age: Some(60), single_use: true, scopes: vec!["pay".to_owned()], ..at_level(2) },
    };
    let (tokens, clock) = verifier_for_tests();
    let now = clock.now();
    let settings = Settings { routes: vec![route], ..settings() };
    let checker = Checker::new(settings, store_of(&policy), Some(tokens), clock, &Metrics::new(None));
    let good = token_for_tests(&json!({"amr": ["pwd", "otp"], "auth_time": now - 5}));
    for token in [None, Some(good.as_str()), Some("a.b.c")] {
        let authorization = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
        let response = respond(&checker, "/a/b?c=d", &headers).await;
        for name in ["input", "example", "missing"] {
            let text = metadata_of(&response, name);
            assert!(text.contains("values: []"), "{name}: {text}");
        }
    }
}

#[test]
fn examples_of_decisions_are_what_they_are_called() {
    let limits = JsonLimits { depth: 9, duplicates: DuplicateKeys::Refuse };
    for (called, example) in examples(DECISION) {
        let value = parse_json(example.trim().as_bytes(), limits).expect("JSON");
        let decision = Decision::parse(&value, Dialect::Stepgate).expect("a decision");
        assert_eq!(decision.is_allow(), called == "allow", "{example}");
        let members: Json = serde_json::from_str(example).expect("JSON");
        for name in members.as_object().expect("an object").keys() {
            assert!(DECISION.contains(&format!("| `{name}` |")), "{name} has no row");
        }
    }
    for name in ["acr_values", "max_age", "scope", "description", "reason"] {
        assert!(DECISION.contains(&format!("| `step_up.{name}` |")), "{name} has no row");
    }
}
