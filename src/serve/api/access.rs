//! Access control of the API.
//!
//! Mirrors: OPA `v1/server/{authorizer,identifier}`, v1.19.0.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::{Api, BUDGET, Failure, INPUT, Parameters, decoded};
use crate::opa::rest;
use crate::policy::QueryOptions;
use crate::serve::address::Peer;
use crate::value::{Members, Value, certificate, texts};

/// The authentication of callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    #[default]
    Off,
    /// A bearer token, which the policy gets as `input.identity`.
    Token,
    /// A client certificate, whose subject is `input.identity`.
    Tls,
}

/// The authorization of callers.
#[derive(Clone, Debug, Default)]
pub struct Access {
    pub authentication: Authentication,
    /// The document that allows requests, part by part (`--authorization=basic`).
    pub authorization: Option<Vec<String>>,
}

const UNAUTHORIZED: &str = "request rejected by administrative policy";

fn unauthorized(message: impl Into<String>) -> Failure {
    Failure::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

/// Passes a request on when it may come in.
pub(super) async fn check(api: Arc<Api>, is_local: bool, request: Request, next: Next) -> Response {
    // The path that is authorized must be the path that is served: another spelling is redirected to the canonical one, as in OPA.
    if let Some(plain) = plain_path(request.uri().path()) {
        let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let status = if is_read { StatusCode::MOVED_PERMANENTLY } else { StatusCode::TEMPORARY_REDIRECT };
        return (status, [(header::LOCATION, format!("{plain}{query}"))]).into_response();
    }
    match admitted(&api, is_local, request).await {
        Ok(request) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

/// The path without empty, `.` and `..` segments and without a slash at its end; nothing when it is so already.
fn plain_path(path: &str) -> Option<String> {
    let decoded = rest::percent_decoded(path)?;
    let is_odd = |part: &str| matches!(part, "" | "." | "..");
    if decoded == "/" || !decoded.split('/').skip(1).any(is_odd) {
        return None;
    }
    let mut parts: Vec<String> = Vec::new();
    for part in decoded.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts
                .push(url::form_urlencoded::byte_serialize(part.as_bytes()).collect::<String>().replace('+', "%20")),
        }
    }
    Some(format!("/{}", parts.join("/")))
}

/// Recognizes the forward-auth request of a proxy, as of nginx (`auth_request`), Traefik (ForwardAuth) and Caddy (`forward_auth`). Those
/// look at the status alone.
fn is_forward_auth(path: &str, headers: &HeaderMap) -> bool {
    let is_data = ["/v0/data", "/v1/data"].iter().any(|prefix| path.starts_with(prefix));
    let has = |name: &str| headers.contains_key(name);
    let is_forwarded = has("x-forwarded-uri") && has("x-forwarded-method");
    is_data && (has("x-original-uri") || has("x-original-url") || is_forwarded)
}

/// `Host` is a loopback name, and `Origin` is absent or one: a page of another site whose name resolves to us (DNS rebinding) fails that.
fn is_from_here(request: &Request) -> bool {
    let host = request.headers().get("host").and_then(|value| value.to_str().ok());
    let host = request.uri().authority().map(Authority::as_str).or(host);
    let origins = request.headers().get_all("origin");
    let is_ours = |origin: &HeaderValue| {
        let host = origin.to_str().ok().and_then(|text| text.split_once("://")).map(|(_, host)| host);
        host.is_some_and(is_loopback)
    };
    host.is_some_and(is_loopback) && origins.iter().all(is_ours)
}

/// A host, with or without a port, is `localhost` or a loopback address.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    !host.contains('@')
        && (name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback()))
}

fn forbidden(message: &str) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, "forbidden", message)
}

async fn admitted(api: &Arc<Api>, is_local: bool, request: Request) -> Result<Request, Failure> {
    let path = request.uri().path();
    let is_probe = path == "/metrics" || path == "/live" || path == "/ready" || path.starts_with("/health");
    if is_forward_auth(path, request.headers()) {
        return Err(forbidden(
            "this is a forward-auth request of a proxy: the data API answers 200 to a denial, too, so that every request would pass; let the \
             proxy ask the gRPC listener (Envoy ext_authz)",
        ));
    }
    let Some(document) = &api.access.authorization else {
        if api.policy_writes && !is_probe && !is_from_here(&request) {
            return Err(forbidden(
                "with --allow-policy-writes and without --authorization=basic, `Host` must be a loopback name, and `Origin` too where there is one",
            ));
        }
        // Callers over TLS with a certificate were verified; other listeners may be plain.
        let peer = request.extensions().get::<ConnectInfo<Peer>>();
        let is_known =
            api.access.authentication == Authentication::Tls && peer.is_some_and(|peer| peer.0.subject.is_some());
        return match is_local || is_probe || is_known {
            true => Ok(request),
            false => Err(unauthorized(
                "this listener can be reached from other machines, and nobody says who may use it: start with \
                 --authorization=basic and a policy at data.system.authz.allow, or listen on localhost",
            )),
        };
    };
    let (request, input) = described(api, request).await?;
    let snapshot = api.policy.current();
    let undefined = || {
        let message = "authorization policy missing or undefined";
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    };
    let Some(snapshot) = snapshot else { return Err(undefined()) };
    let document = document.clone();
    let decision = api.aside(move || {
        let question = QueryOptions { input: Some(&input), strict_builtin_errors: false, budget: BUDGET };
        snapshot.document(&document, &question)
    });
    let decision = decision.await?.map_err(|api_error| Failure::evaluation(&api_error))?;
    match decision.ok_or_else(undefined)? {
        Value::Bool(true) => Ok(request),
        Value::Object(members) => match members.get(&Value::from("allowed")) {
            Some(Value::Bool(true)) => Ok(request),
            Some(_) => {
                let reason = members.get(&Value::from("reason")).and_then(Value::as_str);
                Err(unauthorized(reason.unwrap_or(UNAUTHORIZED)))
            }
            None => {
                Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "document missing or undefined"))
            }
        },
        _ => Err(unauthorized(UNAUTHORIZED)),
    }
}

/// The policy's input of a request, and the request with its body put back.
async fn described(api: &Api, request: Request) -> Result<(Request, Value), Failure> {
    let (parts, body) = request.into_parts();
    let mut input = Members::default();
    // As Go splits: the decoded path, what follows the first `/`, so that `/` alone is one empty part.
    let malformed = || Failure::bad_request("invalid URL escape in the path");
    let whole = rest::percent_decoded(parts.uri.path()).ok_or_else(malformed)?;
    let path: Vec<String> = whole.split('/').skip(1).map(str::to_owned).collect();
    let has_body = parts.method == Method::POST
        && match path.as_slice() {
            [only] => only.is_empty(),
            [version, data, ..] => matches!(version.as_str(), "v0" | "v1") && data == "data",
            [] => false,
        };
    input.put_text("path", texts(path.iter().map(String::as_str)));
    input.put_text("method", Value::from(parts.method.as_str()));
    input.put_text("params", gathered(Parameters::of(&parts.uri).0));
    input.put_text("headers", gathered(canonical(&parts.headers)));
    let peer = parts.extensions.get::<ConnectInfo<Peer>>();
    let identity = match api.access.authentication {
        Authentication::Off => None,
        Authentication::Token => bearer(&parts.headers).map(str::to_owned),
        Authentication::Tls => peer.and_then(|peer| peer.0.subject.clone()),
    };
    if let Some(identity) = identity {
        input.put_text("identity", Value::from(identity));
    }
    let shown = peer.into_iter().flat_map(|peer| peer.0.certificates.iter()).filter_map(|der| certificate(der));
    let shown: Vec<_> = shown.collect();
    if !shown.is_empty() {
        input.put_text("client_certificates", Value::array(shown));
    }
    let too_large = |_| Failure::bad_request(rest::BodyError::TooLarge.to_string());
    let bytes = axum::body::to_bytes(body, api.limits.body).await.map_err(too_large)?;
    if has_body {
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let document = rest::document(&decoded(api, &parts.headers, &bytes)?, kind, INPUT);
        if let Some(document) = document.map_err(|error| Failure::bad_request(error.to_string()))? {
            input.put_text("body", document);
        }
    }
    Ok((Request::from_parts(parts, Body::from(bytes)), input.into_value()))
}

/// An object from each name to the list of its values.
fn gathered(pairs: Vec<(String, String)>) -> Value {
    let mut lists: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, value) in pairs {
        lists.entry(name).or_default().push(Value::from(value));
    }
    Value::object(lists.into_iter().map(|(name, values)| (Value::from(name), Value::array(values))).collect())
}

/// Headers with their names as Go spells them, such as `X-Request-Id`.
fn canonical(headers: &HeaderMap) -> Vec<(String, String)> {
    let spelled = |name: &str| {
        let part = |part: &str| {
            let (first, rest) = part.split_at_checked(1).unwrap_or((part, ""));
            format!("{}{rest}", first.to_ascii_uppercase())
        };
        name.split('-').map(part).collect::<Vec<_>>().join("-")
    };
    headers
        .iter()
        .filter(|(name, _)| *name != header::HOST)
        .map(|(name, value)| (spelled(name.as_str()), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

/// OPA's `^Bearer\s+(\S+)$`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let rest = text.strip_prefix("Bearer")?;
    let token = rest.trim_start();
    (rest.len() > token.len() && !token.is_empty() && !token.contains(char::is_whitespace)).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_proxies_and_of_other_sites_are_known() {
        let headers = |names: &[&'static str]| {
            names
                .iter()
                .map(|&name| (axum::http::HeaderName::from_static(name), HeaderValue::from_static("x")))
                .collect()
        };
        for (path, names, want) in [
            ("/v1/data/a", &["x-original-uri"][..], true),
            ("/v1/data", &["x-original-url"][..], true),
            ("/v0/data/a", &["x-forwarded-uri", "x-forwarded-method"][..], true),
            ("/v1/data/a", &["x-forwarded-uri"][..], false),
            ("/v1/data/a", &[][..], false),
            ("/health", &["x-original-uri"][..], false),
        ] {
            assert_eq!(is_forward_auth(path, &headers(names)), want, "{path} {names:?}");
        }
        for (host, origin, want) in [
            ("localhost:8181", None, true),
            ("127.0.0.1", None, true),
            ("[::1]:8181", Some("http://localhost:3000"), true),
            ("evil.example:8181", None, false),
            ("localhost.evil.example", None, false),
            ("127.0.0.1", Some("http://evil.example"), false),
            ("127.0.0.1", Some("null"), false),
            ("a@127.0.0.1", None, false),
        ] {
            let mut request = Request::builder().uri("/v1/policies").header("host", host);
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            let request = request.body(axum::body::Body::empty()).expect("a request");
            assert_eq!(is_from_here(&request), want, "{host} {origin:?}");
        }
    }

    #[test]
    fn other_spellings_of_a_path_are_sent_to_the_plain_one() {
        for (path, plain) in [
            ("/", None),
            ("/v1/data", None),
            ("/v1/data/a%20b", None),
            ("/v1/data/", Some("/v1/data")),
            ("/v1/data//secret", Some("/v1/data/secret")),
            ("//v1/data", Some("/v1/data")),
            ("/v1/x/../data/a", Some("/v1/data/a")),
            ("/v1/%2e%2e/v1/data", Some("/v1/data")),
            ("/v1/data/a%2F%2Fb", Some("/v1/data/a/b")),
            ("/v1/data//a%20b", Some("/v1/data/a%20b")),
            ("/../..", Some("/")),
        ] {
            assert_eq!(plain_path(path).as_deref(), plain, "{path}");
        }
    }

    #[test]
    fn bearer_tokens_are_read_as_opa_reads_them() {
        for (text, token) in [
            ("Bearer tok", Some("tok")),
            ("Bearer \t tok", Some("tok")),
            ("bearer tok", None),
            ("Bearer a b", None),
            ("Bearertok", None),
            ("Bearer ", None),
        ] {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().expect("a header"))]);
            assert_eq!(bearer(&headers), token, "{text}");
        }
    }
}
