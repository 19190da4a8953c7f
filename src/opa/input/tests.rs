//! Whole documents from whole messages.

use envoy_types::pb::envoy::service::auth::v3::AttributeContext;
use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use prost::Message as _;

use super::*;
use crate::value::{DuplicateKeys, json_text};

const OPTIONS: Options = Options {
    skip_body: false,
    depth: 100,
    descriptors: None,
    raw_headers_count: true,
    expose_body_errors: false,
    duplicate_members: DuplicateKeys::LastWins,
};

fn document(message: &[u8], options: &Options) -> Result<String, InputError> {
    let attributes = Attributes::parse(message)?;
    let document = build(message, &attributes, options, BodyUse::Decision, &mut BodyMemory::unbounded())?;
    Ok(json_text(&document.members.into_value()))
}

fn with_http(http: HttpRequest) -> Vec<u8> {
    let request = Request { http: Some(http), ..Request::default() };
    let source = Peer { principal: "spiffe://a/b".to_owned(), ..Peer::default() };
    let attributes = AttributeContext { request: Some(request), source: Some(source), ..AttributeContext::default() };
    CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

fn headers(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn a_member_twice_is_the_last_one_or_refused() {
    let message = |kind: &str, body: &str| {
        let headers = [("content-type".to_owned(), kind.to_owned())].into();
        with_http(HttpRequest { headers, body: body.to_owned(), ..HttpRequest::default() })
    };
    let twice = message("application/json", r#"{"a":{"method":"call","method":"list"}}"#);
    let last = document(&twice, &OPTIONS).expect("as OPA reads it");
    assert!(last.contains(r#""parsed_body":{"a":{"method":"list"}}"#), "{last}");
    let reject = Options { duplicate_members: DuplicateKeys::Refuse, ..OPTIONS };
    let part = "--B\r\nContent-Disposition: form-data; name=j\r\nContent-Type: application/json\r\n\r\n{\"k\":1,\"k\":2}\r\n--B--\r\n";
    for refused in [twice, message("multipart/form-data; boundary=B", part)] {
        let error = document(&refused, &reject).expect_err("a member stands twice");
        assert!(matches!(&error, InputError::Body(body) if body.is_ambiguous()), "{error:?}");
    }
    let once = message("application/json", r#"[{"a":1},{"a":2}]"#);
    assert!(document(&once, &reject).is_ok());
}

#[test]
fn a_request_without_http_still_has_a_document() {
    let want = r#"{"parsed_body":null,"parsed_path":[""],"parsed_query":{},"truncated_body":false,"version":{"encoding":"protojson","ext_authz":"v3"}}"#;
    assert_eq!(document(&[], &OPTIONS).expect("a document"), want);
}

#[test]
fn skipping_the_body_removes_both_keys_but_not_path_errors() {
    let skip = Options { skip_body: true, ..OPTIONS };
    assert!(!document(&[], &skip).expect("a document").contains("body"));
    let message = with_http(HttpRequest { path: "/%zz".to_owned(), ..HttpRequest::default() });
    assert!(matches!(document(&message, &skip), Err(InputError::Target(_))));
}

#[test]
fn a_field_that_appears_twice_is_refused() {
    let twice = [with_http(HttpRequest::default()), with_http(HttpRequest::default())].concat();
    assert!(matches!(document(&twice, &OPTIONS), Err(InputError::Wire(WireError::Repeated))));
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    let mut message = with_http(HttpRequest { path: "/abc".to_owned(), ..HttpRequest::default() });
    let at = message.windows(4).position(|window| window == b"/abc").expect("the path is in the message");
    message[at + 1] = 0xff;
    assert!(matches!(Attributes::parse(&message), Err(WireError::Utf8)));
}

#[test]
fn unreadable_bodies_are_errors_or_exposed_as_configured() {
    let message = with_http(HttpRequest {
        headers: headers(&[("content-type", "application/json")]),
        body: "{".to_owned(),
        ..HttpRequest::default()
    });
    assert!(matches!(document(&message, &OPTIONS), Err(InputError::Body(_))));
    let expose = Options { expose_body_errors: true, ..OPTIONS };
    assert!(document(&message, &expose).expect("a document").contains(r#""body_error":"the body is not"#));
    let twice = with_http(HttpRequest {
        headers: headers(&[("content-type", "application/json")]),
        body: r#"{"method": "tools/call", "method": "tools/list"}"#.to_owned(),
        ..HttpRequest::default()
    });
    let rejecting = Options { duplicate_members: DuplicateKeys::Refuse, ..expose };
    assert!(matches!(document(&twice, &rejecting), Err(InputError::Body(error)) if error.is_ambiguous()));
}

#[test]
fn raw_headers_describe_the_body_unless_told_otherwise() {
    use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};

    let header = |raw: &str| HeaderValue {
        key: "Content-Type".to_owned(),
        raw_value: raw.as_bytes().to_vec(),
        ..HeaderValue::default()
    };
    let message = |headers: Vec<HeaderValue>| {
        let body = "{\"a\":1}".to_owned();
        with_http(HttpRequest { header_map: Some(HeaderMap { headers }), body, ..HttpRequest::default() })
    };
    let one = message(vec![header("application/json")]);
    assert!(document(&one, &OPTIONS).expect("a document").contains(r#""parsed_body":{"a":1}"#));
    let strict = Options { raw_headers_count: false, ..OPTIONS };
    assert!(document(&one, &strict).expect("a document").contains(r#""parsed_body":null"#));
    let two = message(vec![header("application/json"), header("text/plain")]);
    assert!(matches!(document(&two, &OPTIONS), Err(InputError::Body(_))));
}

#[test]
fn a_partial_body_is_truncated_whatever_its_type() {
    let message = with_http(HttpRequest {
        headers: headers(&[("x-envoy-auth-partial-body", "true"), ("content-type", "application/json")]),
        body: "{\"a\"".to_owned(),
        ..HttpRequest::default()
    });
    assert!(document(&message, &OPTIONS).expect("a document").contains(r#""truncated_body":true"#));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_builder_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = document(&bytes, &OPTIONS);
    }

    #[test]
    fn no_damage_to_a_message_makes_the_builder_panic(
        at in 0usize..400, byte in proptest::prelude::any::<u8>(), cut in 0usize..400,
        body in "(?s)[\\[\\]{}\",:0-9.eE%&=;a\\\\-]{0,40}", kind in 0usize..4, path in "(?s)[/%.a-f0-9;?=&+\u{e9}-]{0,30}",
    ) {
        let types = ["application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", "application/grpc"];
        let mut message = with_http(HttpRequest {
            headers: headers(&[("content-type", types.get(kind).copied().unwrap_or_default())]),
            path,
            body,
            ..HttpRequest::default()
        });
        let _ = document(&message, &OPTIONS);
        if let Some(slot) = message.get_mut(at) {
            *slot = byte;
        }
        message.truncate(message.len().max(1) - cut.min(message.len().saturating_sub(1)));
        let _ = document(&message, &OPTIONS);
    }
}
