//! The spans of a check.

use uuid::Uuid;

use crate::opa::input::Http;
use crate::telemetry::SpanAttributes;

/// The caller's place in its trace.
pub(super) fn traceparent<'a>(http: &Http<'a>) -> Option<&'a str> {
    let values = http.header_values("traceparent");
    let [value] = values.as_slice() else { return None };
    std::str::from_utf8(value).ok()
}

/// The span attributes of a request; neither its query nor userinfo before a host.
pub(super) fn span_attributes(http: &Http<'_>) -> SpanAttributes {
    let is_origin_form = http.path.starts_with('/');
    let path = http.path.split(['?', '#']).next().filter(|_| is_origin_form).unwrap_or_default();
    let path = without_tokens(path);
    let host = http.host.rsplit('@').next().unwrap_or_default();
    SpanAttributes::of(http.method, host, &path)
}

/// A path with a star for each segment that may be a credential: one with a JWT in it, or 24 characters that include a letter and a digit and are
/// no UUID.
fn without_tokens(path: &str) -> String {
    let is_secret = |segment: &str| {
        let mut bytes = segment.bytes();
        let is_long = segment.len() >= 24 && Uuid::parse_str(segment).is_err();
        segment.contains("eyJ")
            || (is_long
                && bytes.clone().any(|byte| byte.is_ascii_digit())
                && bytes.any(|byte| byte.is_ascii_alphabetic()))
    };
    let shown = path.split('/').map(|segment| if is_secret(segment) { "*" } else { segment });
    shown.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_may_be_credentials_are_stars() {
        for (path, want) in [
            ("/accounts/42/transfers", "/accounts/42/transfers"),
            ("/reset/eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1In0.c2ln/x", "/reset/*/x"),
            ("/reset/f3b0c44298fc1c149afbf4c8", "/reset/*"),
            ("/orders/123e4567-e89b-12d3-a456-426614174000", "/orders/123e4567-e89b-12d3-a456-426614174000"),
            ("/a-long-name-that-only-has-letters", "/a-long-name-that-only-has-letters"),
        ] {
            assert_eq!(without_tokens(path), want);
        }
    }
}
