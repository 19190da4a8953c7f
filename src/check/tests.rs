//! Whole checks, from bytes to answers, with a policy that echoes what the path asks for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use prost::Message as _;

use super::*;
use crate::policy::{BuiltinSettings, Entrypoint, HostContext, Module, RegoVersion, Snapshot, Sources};
use crate::token::{Issuer, IssuerSettings};
use crate::value::{as_text, member};

const POLICY: &str = r#"package p
seg := input.parsed_path[0]
allow := true if seg == "true"
allow := false if seg == "false"
allow := {"allowed": false} if seg == "object"
allow := {"allowed": false, "http_status": 418} if seg == "bad"
allow := {"allowed": false, "http_status": 404} if seg == "shaped"
allow := {"allowed": false, "step_up": {"acr_values": ["mfa"]}, "headers": {"x-more": "1"}} if seg == "step-up"
allow := {"allowed": false, "step_up": {"max_age": 5}, "http_status": 403, "body": "mine"} if seg == "own-way"
allow := {"allowed": true, "headers": {"x-name": input.parsed_body.name}} if seg == "body"
allow := 1 if seg == "conflict"
allow := 2 if seg == "conflict"
allow := {"allowed": true, "headers": {"x-path": input.path}} if seg == "path"
allow := {"allowed": true, "skip_route_requirements": true} if seg == "override"
allow := input.demand.satisfied if seg == "reads"
allow := {"allowed": true, "dynamic_metadata": {"state": input.jwt.state, "level": input.authn.level}} if seg == "extras"
"#;

/// A route's demand for a level alone.
fn at_level(level: usize) -> RouteRequirement {
    RouteRequirement { levels: vec![LevelRequirement { level, acr_values: Vec::new() }], ..RouteRequirement::default() }
}

fn settings() -> Settings {
    Settings {
        input: input::Options {
            skip_body: false,
            depth: 100,
            descriptors: None,
            raw_headers_count: true,
            expose_body_errors: false,
            duplicate_members: crate::value::DuplicateKeys::LastWins,
        },
        stepgate_fields: true,
        ambiguous_path: AmbiguousPath::Warn,
        evaluation_timeout: Duration::from_millis(500),
        dry_run: DryRun::Off,
        audit: false,
        compat: Compat::default(),
        caller: CallerSettings::default(),
        allow_preflight: false,
        asserted: Vec::new(),
        challenge: ChallengeSettings::default(),
        redirect: None,
        resources: Vec::new(),
        routes: Vec::new(),
        response_limits: ResponseLimits::default(),
        max_used_tokens: 1_000,
        identity_headers: Vec::new(),
        identity_token_signer: None,
    }
}

fn checker(settings: Settings, issuers: bool) -> Checker {
    checker_of(POLICY, settings, issuers)
}

fn store_of(policy: &str) -> Arc<crate::policy::Store> {
    let module = Module { path: "p.rego".into(), text: policy.into(), version: RegoVersion::V1 };
    let sources = Sources { modules: vec![module], ..Sources::default() };
    let store = Arc::new(crate::policy::Store::default());
    let entrypoint = Entrypoint::from_path("p/allow");
    store.activate(
        Snapshot::build(&sources, &entrypoint, &Arc::new(HostContext::new(&BuiltinSettings::default())))
            .expect("the policy compiles"),
    );
    store
}

fn checker_of(policy: &str, settings: Settings, issuers: bool) -> Checker {
    let store = store_of(policy);
    let tokens = issuers.then(|| {
        let (issuer, _) = Issuer::new(IssuerSettings {
            audiences: vec!["a".to_owned()],
            algorithms: vec![stepgate_jose::Algorithm::ES256],
            ..IssuerSettings::new("i")
        });
        let limits = crate::token::Settings {
            token_bytes: 1_000,
            cache_bytes: 1_000,
            cache_ttl: Duration::from_secs(1),
            proofs: crate::token::ProofSettings::default(),
            certificates: crate::token::CertificateSettings::default(),
        };
        Arc::new(Verifier::new(vec![issuer], &limits, Clock::fixed(0)))
    });
    Checker::new(settings, store, tokens, Clock::fixed(0), &Metrics::new(None))
}

fn message(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    message_of(http("GET", path, headers), None)
}

/// A request with a client address and a peer.
pub fn message_with(principal: &str, address: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let socket = SocketAddress { address: address.into(), ..SocketAddress::default() };
    let address = Address { address: Some(address::Address::SocketAddress(socket)) };
    let peer = Peer { principal: principal.into(), address: Some(address), ..Peer::default() };
    message_of(http("GET", "/", headers), Some(peer))
}

/// A request to a host.
pub fn message_to(method: &str, host: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    message_of(HttpRequest { host: host.into(), ..http(method, "/", headers) }, None)
}

fn http(method: &str, path: &str, headers: &[(&str, &str)]) -> HttpRequest {
    let headers: HashMap<_, _> = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    HttpRequest { method: method.into(), path: path.into(), headers, ..HttpRequest::default() }
}

fn message_of(http: HttpRequest, source: Option<Peer>) -> Vec<u8> {
    let request = Request { http: Some(http), ..Request::default() };
    CheckRequest {
        attributes: Some(AttributeContext { request: Some(request), source, ..AttributeContext::default() }),
    }
    .encode_to_vec()
}

async fn answer(checker: &Checker, message: &[u8]) -> Answer {
    checker.check(message, CheckDeadline::of(Duration::from_secs(1))).await
}

async fn respond(checker: &Checker, path: &str, headers: &[(&str, &str)]) -> CheckResponse {
    match answer(checker, &message(path, headers)).await {
        Answer::Respond(response) => *response,
        Answer::Fail { message, .. } => panic!("a gRPC error: {message}"),
    }
}

fn code(response: &CheckResponse) -> i32 {
    response.status.as_ref().map_or(0, |status| status.code)
}

/// The HTTP status, the value of `WWW-Authenticate` and the body of a denial.
fn denial(response: &CheckResponse) -> (i32, String, String) {
    assert_ne!(code(response), 0, "it must be a denial");
    let Some(HttpResponse::DeniedResponse(denied)) = &response.http_response else {
        return (403, String::new(), String::new());
    };
    let header = denied
        .headers
        .iter()
        .filter_map(|option| option.header.as_ref())
        .find(|header| header.key == "www-authenticate");
    let status = denied.status.as_ref().map_or(0, |status| status.code);
    (status, header.map(|header| header.value.clone()).unwrap_or_default(), denied.body.clone())
}

/// The status of a denial; nothing when it is none.
fn refused_with(response: &CheckResponse) -> Option<i32> {
    (code(response) != 0).then(|| denial(response).0)
}

#[tokio::test]
async fn a_policy_sees_its_caller_also_where_nobody_keeps_a_journal() {
    let policy = "package p\nimport rego.v1\nallow := {\"allowed\": input.client.ip == \"192.0.2.7\", \"headers\": {\"x-peer\": input.peer.principal}}";
    let checker = checker_of(policy, settings(), false);
    let message = message_with("spiffe://cluster.local/ns/a/sa/b", "192.0.2.7", &[]);
    let Answer::Respond(response) = answer(&checker, &message).await else { panic!("a gRPC error") };
    let Some(HttpResponse::OkResponse(ok)) = &response.http_response else {
        panic!("it must be allowed: {response:?}")
    };
    let peer = ok.headers.iter().filter_map(|option| option.header.as_ref()).find(|header| header.key == "x-peer");
    assert_eq!(peer.map(|header| header.value.as_str()), Some("spiffe://cluster.local/ns/a/sa/b"));
}

mod asserted;
mod crossing;
mod demands;
mod reference;

#[tokio::test]
async fn bare_decisions_are_bare() {
    let checker = checker(settings(), false);
    let allowed = respond(&checker, "/true", &[]).await;
    assert_eq!((code(&allowed), &allowed.http_response), (0, &None));
    let denied = respond(&checker, "/false", &[]).await;
    assert_eq!((code(&denied), &denied.http_response), (7, &None));
    let id = |response: &CheckResponse| {
        format!("{:?}", response.dynamic_metadata.as_ref().and_then(|all| all.fields.get("decision_id")))
    };
    assert!(id(&allowed).contains("StringValue") && id(&allowed).len() > 36, "{}", id(&allowed));
    assert_ne!(id(&allowed), id(&denied), "each decision has its own");
}

#[tokio::test]
async fn every_fault_is_a_denial_with_its_status_and_reason() {
    let checker = checker(settings(), false);
    for (path, status, reason) in [
        ("/none", 403, "undefined_decision"),
        ("/bad", 403, "invalid_decision"),
        ("/conflict", 403, "evaluation_error"),
        ("/%zz", 400, "request_parse_error"),
    ] {
        let (got, _, body) = denial(&respond(&checker, path, &[]).await);
        assert_eq!(got, status, "{path}");
        assert!(body.contains(reason), "{path}: {body}");
    }
    let Answer::Respond(response) = answer(&checker, &broken_body()).await else { panic!("a response") };
    let (status, _, body) = denial(&response);
    assert_eq!(status, 400);
    assert!(body.contains("body_error") && !body.contains("JSON"), "the parser's words stay here: {body}");
    let Answer::Respond(response) = answer(&checker, b"\xff\xff").await else { panic!("a response") };
    assert_eq!(denial(&response).0, 400);
}

/// A request for `/true` whose body is no JSON.
fn broken_body() -> Vec<u8> {
    let request = HttpRequest {
        path: "/true".into(),
        headers: HashMap::from([("content-type".to_owned(), "application/json".to_owned())]),
        body: "{".into(),
        ..HttpRequest::default()
    };
    let attributes = AttributeContext {
        request: Some(Request { http: Some(request), ..Request::default() }),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

#[tokio::test]
async fn a_body_that_no_rule_reads_breaks_nothing() {
    for (policy, status) in [
        ("package p\nallow := input.parsed_path[0] == \"true\"", None),
        ("package p\nallow := input.parsed_path[0] == \"true\"\nunasked := input.parsed_body", None),
        ("package p\nallow if not q\nq if input.parsed_body", Some(400)),
        ("package p\nallow if not q\nq if input[\"truncated_body\"]", Some(400)),
        ("package p\nallow if not q\nq if object.get(input, \"parsed_body\", 1) == 2", Some(400)),
    ] {
        let Answer::Respond(response) = answer(&checker_of(policy, settings(), false), &broken_body()).await else {
            panic!("a response")
        };
        assert_eq!(status, refused_with(&response), "{policy}");
    }
    let compat = Compat { body_errors: true, ..Compat::default() };
    let strict = checker_of("package p\nallow := true", Settings { compat, ..settings() }, false);
    let Answer::Respond(response) = answer(&strict, &broken_body()).await else { panic!("a response") };
    assert_eq!(refused_with(&response), Some(400), "OPA's answer, when it is asked for");
}

#[tokio::test]
async fn a_passed_deadline_and_a_missing_policy_are_denials() {
    let late = checker(settings(), false);
    let Answer::Respond(response) = late.check(&message("/true", &[]), CheckDeadline::of(Duration::ZERO)).await else {
        panic!("a response")
    };
    assert_eq!(denial(&response).0, 503);
    let empty = Checker::new(settings(), Arc::default(), None, Clock::fixed(0), &Metrics::new(None));
    let (status, _, body) = denial(&respond(&empty, "/true", &[]).await);
    assert_eq!(status, 503);
    assert!(body.contains("no_policy"), "{body}");
}

#[tokio::test]
async fn opas_errors_come_back_only_when_asked_for() {
    let compat = Compat { grpc_errors: true, body_errors: true, dialect: Dialect::Opa };
    let strict = checker(Settings { compat, ..settings() }, false);
    for path in ["/none", "/bad", "/conflict"] {
        let answer = answer(&strict, &message(path, &[])).await;
        assert!(matches!(answer, Answer::Fail { code: GrpcCode::Unknown, .. }), "{path}: {answer:?}");
    }
    let (status, _, body) = denial(&respond(&strict, "/%zz", &[]).await);
    assert_eq!(status, 400);
    assert!(body.starts_with("request_parse_error: "), "{body}");
}

#[tokio::test]
async fn unshaped_denials_are_challenged_where_issuers_are_configured() {
    let checker = checker(settings(), true);
    for path in ["/false", "/object"] {
        let (status, header, _) = denial(&respond(&checker, path, &[]).await);
        assert_eq!((status, header.as_str()), (401, "Bearer realm=\"stepgate\""), "{path}");
        let (status, header, _) = denial(&respond(&checker, path, &[("authorization", "Bearer x")]).await);
        assert_eq!(status, 401);
        assert!(header.starts_with("Bearer error=\"invalid_token\""), "{header}");
    }
    assert_eq!(denial(&respond(&checker, "/shaped", &[]).await).0, 404, "what the policy shaped stays");
    assert_eq!(code(&respond(&checker, "/true", &[("authorization", "Bearer x")]).await), 0, "the policy decides");
    assert_eq!(denial(&respond(&checker, "/none", &[]).await).0, 403, "a fault is no denial by the policy");
}

#[tokio::test]
async fn step_up_is_rendered_and_the_policys_own_status_and_body_win() {
    let checker = checker(settings(), false);
    let response = respond(&checker, "/step-up", &[]).await;
    let (status, header, body) = denial(&response);
    assert_eq!((code(&response), status), (16, 401));
    assert!(header.contains("acr_values=\"mfa\""), "{header}");
    assert!(body.contains(r#""have":{"level":0}"#), "{body}");
    let (status, header, body) = denial(&respond(&checker, "/own-way", &[]).await);
    assert_eq!((status, body.as_str()), (403, "mine"));
    assert!(header.contains("max_age=\"5\""), "{header}");
}

#[tokio::test]
async fn dry_run_allows_what_it_says_and_no_more() {
    let denials = checker(Settings { dry_run: DryRun::Denials, ..settings() }, true);
    for path in ["/false", "/shaped", "/step-up"] {
        assert_eq!(code(&respond(&denials, path, &[]).await), 0, "{path}");
    }
    assert_ne!(code(&respond(&denials, "/none", &[]).await), 0);
    let faults = checker(Settings { dry_run: DryRun::DenialsAndFaults, ..settings() }, false);
    assert_eq!(code(&respond(&faults, "/none", &[]).await), 0);
}

#[tokio::test]
async fn a_dry_run_of_faults_lets_no_forged_identity_through() {
    let subject = IdentityHeader { name: "x-subject".into(), source: IdentitySource::Claim(vec!["sub".into()]) };
    let settings = Settings { dry_run: DryRun::DenialsAndFaults, identity_headers: vec![subject], ..settings() };
    let checker = checker(settings, false);
    let response = respond(&checker, "/none", &[("x_subject", "root")]).await;
    let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!("headers must be removed") };
    assert_eq!(ok.headers_to_remove, ["x-subject", "x_subject"]);
    let Answer::Respond(response) = answer(&checker, b"\xff").await else { panic!("an answer") };
    assert_ne!(code(&response), 0, "what the request holds is unknown");
}

#[tokio::test]
async fn an_ambiguous_path_is_absent_or_refused() {
    let warns = checker(settings(), false);
    assert_eq!(code(&respond(&warns, "/path", &[]).await), 0);
    let (_, _, body) = denial(&respond(&warns, "/path//", &[]).await);
    assert!(body.contains("undefined_decision"), "input.path is absent: {body}");
    let rejects = checker(Settings { ambiguous_path: AmbiguousPath::Reject, ..settings() }, false);
    let bare = Settings { ambiguous_path: AmbiguousPath::Reject, stepgate_fields: false, ..settings() };
    for rejects in [rejects, checker(bare, false)] {
        let (status, _, body) = denial(&respond(&rejects, "//true", &[]).await);
        assert_eq!(status, 400);
        assert!(body.contains("ambiguous_path"), "{body}");
    }
}

#[tokio::test]
async fn copies_of_our_headers_are_removed_with_and_without_identity() {
    let subject = IdentityHeader { name: "x-subject".into(), source: IdentitySource::Claim(vec!["sub".into()]) };
    let checker = checker(Settings { identity_headers: vec![subject], ..settings() }, true);
    for path in ["/true", "/path"] {
        let forged = [("x-subject", "root"), ("x_subject", "root"), ("x-other", "1")];
        let response = respond(&checker, path, &forged).await;
        let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!("headers must be removed") };
        let mut removed = ok.headers_to_remove;
        removed.sort();
        assert_eq!(removed, ["x-subject", "x_subject"], "{path}");
    }
}

#[tokio::test]
async fn a_request_of_the_tcp_filter_is_decided() {
    let checker = checker(settings(), true);
    let Answer::Respond(response) = answer(&checker, &CheckRequest::default().encode_to_vec()).await else {
        panic!("a response")
    };
    assert_eq!(denial(&response).0, 403);
}

#[tokio::test]
async fn the_policy_sees_the_evidence() {
    for (issuers, state) in [(false, "unconfigured"), (true, "absent")] {
        let response = respond(&checker(settings(), issuers), "/extras", &[]).await;
        let text = format!("{:?}", response.dynamic_metadata);
        assert!(text.contains(state), "{text}");
    }
    let bare = checker(Settings { stepgate_fields: false, ..settings() }, false);
    assert!(denial(&respond(&bare, "/extras", &[]).await).2.contains("undefined_decision"));
}

#[tokio::test]
async fn preflight_requests_pass_only_where_that_is_wanted() {
    let good = [("origin", "https://app.example"), ("access-control-request-method", "PUT")];
    let header = IdentityHeader { name: "x-user".to_owned(), source: IdentitySource::Policy };
    let open = checker(Settings { allow_preflight: true, identity_headers: vec![header], ..settings() }, true);
    let ask = async |checker: &Checker, http: HttpRequest| match answer(checker, &message_of(http, None)).await {
        Answer::Respond(response) => *response,
        Answer::Fail { message, .. } => panic!("a gRPC error: {message}"),
    };
    let forged = [good[0], good[1], ("x-user", "admin")];
    let response = ask(&open, http("OPTIONS", "/false", &forged)).await;
    assert_eq!(code(&response), 0);
    let Some(HttpResponse::OkResponse(ok)) = &response.http_response else { panic!("headers are removed") };
    assert!(ok.headers_to_remove.contains(&"x-user".to_owned()));
    assert_ne!(code(&ask(&checker(settings(), true), http("OPTIONS", "/false", &good)).await), 0, "off by itself");
    let more = |name, value| [good[0], good[1], (name, value)];
    for (why, method, headers) in [
        ("another method", "GET", &good[..]),
        ("no origin", "OPTIONS", &good[1..]),
        ("an empty origin", "OPTIONS", &[("origin", ""), good[1]]),
        ("no method", "OPTIONS", &good[..1]),
        ("a token", "OPTIONS", &more("authorization", "Bearer x")),
        ("a cookie", "OPTIONS", &more("cookie", "a=b")),
        ("an API key", "OPTIONS", &more("x-api-key", "a")),
        ("a token in a header of another name", "OPTIONS", &more("X-Session-Token", "a")),
        ("a proof", "OPTIONS", &more("dpop", "a")),
        ("another method meant", "OPTIONS", &more("x-http-method-override", "DELETE")),
        ("a body that Envoy did not read", "OPTIONS", &more("content-length", "2")),
        ("a body without a length", "OPTIONS", &more("transfer-encoding", "chunked")),
        ("another protocol", "OPTIONS", &more("upgrade", "websocket")),
    ] {
        assert_ne!(code(&ask(&open, http(method, "/false", headers)).await), 0, "{why}");
    }
    let with_body = HttpRequest { body: "{}".into(), ..http("OPTIONS", "/false", &good) };
    assert_ne!(code(&ask(&open, with_body).await), 0, "a body");
}

/// The path in the input of a record, which has what masks go by, too.
fn path_of(record: &crate::decision_queue::Record) -> Option<&str> {
    assert!(record.input.as_ref().and_then(|input| member(input, "method")).is_some(), "{:?}", record.input);
    let places = ["attributes", "request", "http", "path"].iter();
    places.fold(record.input.as_ref(), |value, name| member(value?, name)).and_then(as_text)
}

#[tokio::test]
async fn a_fault_before_the_decision_says_what_was_asked() {
    let metrics = Metrics::new(None);
    let (decision_queue, mut records) = DecisionQueue::new(&metrics, 16 << 20);
    let settings = Settings { ambiguous_path: AmbiguousPath::Reject, ..settings() };
    let clock = crate::clock::Clock::default();
    let checker =
        Checker::new(settings, store_of(POLICY), None, clock, &metrics).with_journal(Arc::new(decision_queue));
    let broken = HttpRequest { body: "{".into(), ..http("POST", "/body", &[("content-type", "application/json")]) };
    let ambiguous = http("GET", "/a/%2e%2e/b", &[]);
    for (request, reason, path) in [(ambiguous, "ambiguous_path", "/a/%2e%2e/b"), (broken, "body_error", "/body")] {
        answer(&checker, &message_of(request, None)).await;
        let record = records.try_recv().expect("it is told").record;
        assert_eq!((record.reason, record.snapshot.is_some()), (reason, true));
        assert_eq!(path_of(&record), Some(path), "{reason}");
    }
}

#[tokio::test]
async fn a_check_whose_caller_gives_up_is_counted_and_logged() {
    let metrics = Metrics::new(None);
    let (decision_queue, mut records) = DecisionQueue::new(&metrics, 16 << 20);
    // The keys of this issuer never come, so that the check waits for them.
    let (issuer, _asked) = Issuer::new(crate::token::issuer_for_tests());
    let limits = crate::token::Settings {
        token_bytes: 10_000,
        cache_bytes: 1_000,
        cache_ttl: Duration::from_secs(1),
        proofs: crate::token::ProofSettings::default(),
        certificates: crate::token::CertificateSettings::default(),
    };
    let clock = crate::token::verifier_for_tests().1;
    let tokens = Arc::new(Verifier::new(vec![issuer], &limits, clock.clone()));
    let checker = Checker::new(settings(), store_of(POLICY), Some(tokens), clock, &metrics);
    let (tracer, mut traces) = Tracer::new(100.0, 9, &metrics);
    let checker = checker.with_journal(Arc::new(decision_queue)).with_tracer(tracer);
    let token = format!("Bearer {}", crate::token::token_for_tests(&serde_json::json!({})));
    let message = message("/true", &[("authorization", &token)]);
    let mut checking = Box::pin(checker.check(&message, CheckDeadline::of(Duration::from_secs(5))));
    assert!(std::future::poll_fn(|cx| std::task::Poll::Ready(checking.as_mut().poll(cx).is_pending())).await);
    drop(checking);
    let record = records.try_recv().expect("it is told").record;
    assert_eq!((record.reason, record.error.is_some(), record.decision_id.is_empty()), ("cancelled", true, false));
    assert_eq!(path_of(&record), Some("/true"));
    let told = traces.try_recv().expect("it is traced").told;
    assert_eq!((told.decision, told.path.as_str(), told.decision_id), ("cancelled", "/true", record.decision_id));
    assert!(metrics.text().contains("stepgate_cancelled_checks_total 1"), "{}", metrics.text());
    let Answer::Respond(_) = answer(&checker, &self::message("/true", &[])).await else { panic!("an answer") };
    assert_ne!(records.try_recv().expect("it is told").record.reason, "cancelled");
    assert_eq!(traces.try_recv().expect("it is traced").told.decision, "allow");
    assert!(traces.try_recv().is_err(), "each is traced once");
    assert!(metrics.text().contains("stepgate_cancelled_checks_total 1"), "{}", metrics.text());
}
