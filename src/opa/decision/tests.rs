//! Each shape of a decision, and each way to be none.

use super::*;
use crate::value::{DuplicateKeys, JsonLimits, parse_json};

fn parse_as(json: &str, dialect: Dialect) -> Result<Decision, DecisionError> {
    let limits = JsonLimits { depth: 100, duplicates: DuplicateKeys::Refuse };
    let value = parse_json(json.as_bytes(), limits).expect("the test's JSON parses");
    Decision::parse(&value, dialect)
}

fn parse(json: &str) -> Result<Decision, DecisionError> {
    parse_as(json, Dialect::Stepgate)
}

fn header(name: &str, value: &str) -> Header {
    Header { name: name.to_owned(), value: value.to_owned() }
}

#[test]
fn every_shape_is_read() {
    assert_eq!(parse("true"), Ok(Decision::True));
    assert_eq!(parse("false"), Ok(Decision::False));
    assert_eq!(parse(r#"{"allowed":true,"body":5,"http_status":"x"}"#), Ok(Decision::Allow(Allow::default())));
    assert_eq!(
        parse(r#"{"allowed":true,"headers":[{"x-a":"1"},{"x-a":["2","3"]}],"request_headers_to_remove":["z"]}"#),
        Ok(Decision::Allow(Allow {
            headers: vec![header("x-a", "1"), header("x-a", "2"), header("x-a", "3")],
            request_headers_to_remove: vec!["z".to_owned()],
            ..Allow::default()
        }))
    );
    assert_eq!(
        parse(r#"{"allowed":false,"http_status":302,"headers":{"location":"/l"},"response_headers_to_add":5}"#),
        Ok(Decision::Deny(Deny {
            headers: vec![header("location", "/l")],
            http_status: HttpStatus::new(302),
            ..Deny::default()
        }))
    );
}

#[test]
fn what_is_not_a_decision_is_refused() {
    for json in [
        "1",
        "\"true\"",
        "null",
        "[]",
        "{}",
        r#"{"allowed":"true"}"#,
        r#"{"allowed":1}"#,
        r#"{"allow":true}"#,
        r#"{"allowed":true,"headers":{"x":1}}"#,
        r#"{"allowed":false,"headers":{"x":null}}"#,
        r#"{"allowed":true,"headers":"x"}"#,
        r#"{"allowed":false,"body":5}"#,
        r#"{"allowed":false,"http_status":"302"}"#,
        r#"{"allowed":false,"http_status":302.5}"#,
        r#"{"allowed":false,"http_status":451}"#,
        r#"{"allowed":false,"http_status":-200}"#,
        r#"{"allowed":true,"dynamic_metadata":null}"#,
        r#"{"allowed":true,"dynamic_metadata":{"x":1e999}}"#,
        r#"{"allowed":true,"query_parameters_to_set":[{"a":"1"}]}"#,
        r#"{"allowed":true,"request_headers_to_remove":"a"}"#,
        r#"{"allowed":false,"step_up":{"max_age":-1}}"#,
        r#"{"allowed":false,"step_up":{"max_age":"60"}}"#,
        r#"{"allowed":false,"step_up":{"max_agee":60}}"#,
        r#"{"allowed":false,"step_up":null}"#,
        r#"{"allowed":false,"reason":1}"#,
    ] {
        assert!(parse(json).is_err(), "{json}");
    }
}

#[test]
fn text_that_splits_a_header_is_refused() {
    for json in [
        r#"{"allowed":true,"headers":{"x":"a\r\nset-cookie: b"}}"#,
        r#"{"allowed":true,"headers":{"x":"a\u0000"}}"#,
        r#"{"allowed":true,"headers":{"x y":"a"}}"#,
        r#"{"allowed":true,"headers":{"":"a"}}"#,
        r#"{"allowed":true,"response_headers_to_add":{"x":"a\nb"}}"#,
        r#"{"allowed":true,"request_headers_to_remove":["x\r"]}"#,
    ] {
        for dialect in [Dialect::Opa, Dialect::Stepgate] {
            assert!(matches!(parse_as(json, dialect), Err(DecisionError::HeaderText(_))), "{json}");
        }
    }
}

#[test]
fn a_step_up_beside_allowed_true_is_a_denial() {
    let json = r#"{"allowed":true,"step_up":{"acr_values":["mfa"],"max_age":60}}"#;
    let Ok(Decision::Deny(deny)) = parse(json) else { panic!("it must be a denial") };
    assert_eq!(deny.step_up.map(|step_up| step_up.max_age), Some(Some(60)));
    assert_eq!(parse_as(json, Dialect::Opa), Ok(Decision::Allow(Allow::default())), "OPA does not know the key");
}

proptest::proptest! {
    #[test]
    fn no_value_makes_the_parser_panic(text in r#"[\[\]{}",:a-z_0-9.e\\-]{0,60}"#) {
        let limits = JsonLimits { depth: 20, duplicates: DuplicateKeys::LastWins };
        if let Ok(value) = parse_json(text.as_bytes(), limits) {
            let _ = Decision::parse(&value, Dialect::Stepgate);
            let _ = metadata(&value);
        }
    }
}
