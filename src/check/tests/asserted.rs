//! Tokens that Envoy has verified: trusted where that is configured, from its metadata alone, and never as our own.

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Struct, Value as Field};
use serde_json::{Value as Json, json};

use super::*;
use crate::token::{issuer_for_tests, token_for_tests, verifier_for_tests};

fn field(json: &Json) -> Field {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(flag) => Kind::BoolValue(*flag),
        Json::Number(number) => Kind::NumberValue(number.as_f64().expect("a number")),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => {
            Kind::ListValue(envoy_types::pb::google::protobuf::ListValue { values: items.iter().map(field).collect() })
        }
        Json::Object(_) => Kind::StructValue(object(json)),
    };
    Field { kind: Some(kind) }
}

fn object(json: &Json) -> Struct {
    let members = json.as_object().expect("an object");
    Struct { fields: members.iter().map(|(name, value)| (name.clone(), field(value))).collect() }
}

/// A request of which Envoy's filter says this, and whose client sends these headers.
fn shown(filter: &str, payload: &Json, path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut request = CheckRequest::decode(message(path, headers).as_slice()).expect("a message");
    let metadata = Metadata {
        filter_metadata: HashMap::from([(filter.to_owned(), object(&json!({"payload": payload})))]),
        ..Metadata::default()
    };
    request.attributes.as_mut().expect("attributes").metadata_context = Some(metadata);
    request.encode_to_vec()
}

fn checker() -> Checker {
    let (tokens, clock) = verifier_for_tests();
    let asserted = vec![AssertedSettings { payload_key: "payload".to_owned(), issuer: issuer_for_tests() }];
    let demand = at_level(1);
    let route = Route {
        hosts: vec![],
        methods: vec![],
        path: PathPattern::parse("/true").expect("a path"),
        peers: vec![],
        demand,
    };
    let settings = Settings { asserted, routes: vec![route], ..settings() };
    Checker::new(settings, store_of(POLICY), Some(tokens), clock, &Metrics::new(None))
}

/// The policy's view of the token, in the metadata that it answers.
async fn seen(message: &[u8]) -> String {
    let Answer::Respond(response) = answer(&checker(), message).await else { panic!("a response") };
    format!("{:?}", response.dynamic_metadata)
}

const FILTER: &str = "envoy.filters.http.jwt_authn";

#[tokio::test]
async fn what_envoy_says_is_believed_from_its_metadata_alone() {
    let now = verifier_for_tests().1.now();
    let issuer = issuer_for_tests().issuer;
    let claims = json!({"iss": issuer, "aud": "api", "sub": "ann", "exp": now + 60, "amr": ["mfa"]});
    let but = |name: &str, value: Json| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    assert!(seen(&shown(FILTER, &claims, "/extras", &[])).await.contains("asserted"));
    for (what, message, state) in [
        ("another filter", shown("envoy.filters.http.lua", &claims, "/extras", &[]), "absent"),
        ("another issuer", shown(FILTER, &but("iss", json!("https://other")), "/extras", &[]), "absent"),
        ("no issuer", shown(FILTER, &but("iss", Json::Null), "/extras", &[]), "absent"),
        ("a header", self::message("/extras", &[("x-jwt-payload", &claims.to_string())]), "absent"),
        ("over", shown(FILTER, &but("exp", json!(now)), "/extras", &[]), "rejected"),
        ("not for us", shown(FILTER, &but("aud", json!("other")), "/extras", &[]), "rejected"),
        ("bound", shown(FILTER, &but("cnf", json!({"jkt": "AAAA"})), "/extras", &[]), "rejected"),
        ("an ID token", shown(FILTER, &but("nonce", json!("n")), "/extras", &[]), "rejected"),
    ] {
        let text = seen(&message).await;
        assert!(text.contains(state) && !text.contains("asserted"), "{what}: {text}");
    }
    let own = format!("Bearer {}", token_for_tests(&json!({})));
    assert!(
        seen(&shown(FILTER, &claims, "/extras", &[("authorization", &own)])).await.contains("verified"),
        "ours first"
    );
    let broken = seen(&shown(FILTER, &claims, "/extras", &[("authorization", "Bearer x")])).await;
    assert!(broken.contains("rejected"), "a bad token is not made good: {broken}");
    let Answer::Respond(response) = answer(&checker(), &shown(FILTER, &claims, "/true", &[])).await else {
        panic!("a response")
    };
    assert_eq!(denial(&response).0, 403, "no route takes it for a verified one");
}
