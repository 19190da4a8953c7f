//! Lines as a request: method, path, host, headers with a colon each, an empty line, the body.
#![no_main]

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use prost::Message as _;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let mut next = || lines.next().unwrap_or_default().to_owned();
    let (method, path, host) = (next(), next(), next());
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let http = HttpRequest { method, path, host, headers, body: body.to_owned(), ..HttpRequest::default() };
    let request = Request { http: Some(http), ..Request::default() };
    let attributes = AttributeContext { request: Some(request), ..AttributeContext::default() };
    let response = stepgate_fuzz::must_deny(&CheckRequest { attributes: Some(attributes) }.encode_to_vec());
    // Nothing that was sent leaves its place in an answer.
    if let Some(envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse::DeniedResponse(denied)) =
        response.http_response
    {
        for header in denied.headers.iter().filter_map(|option| option.header.as_ref()) {
            assert!(!header.value.bytes().any(|byte| byte.is_ascii_control()), "{header:?}");
        }
        assert!(
            denied.body.is_empty() || serde_json::from_str::<serde_json::Value>(&denied.body).is_ok(),
            "{}",
            denied.body
        );
    }
});
