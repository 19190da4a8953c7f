//! From a verdict to the `CheckResponse`. Status and body are built from one decision, so they cannot disagree: Envoy
//! acts on `status` alone, and a denied body under an OK status would allow.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption, QueryParameter};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckResponse, DeniedHttpResponse, OkHttpResponse};
use envoy_types::pb::envoy::r#type::v3::HttpStatus as EnvoyStatus;
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{BoolValue, Struct, Value as Field};
use envoy_types::pb::google::rpc::Status;

use super::challenge::{Challenge, ChallengeScheme, Hints};
use super::evidence::Evidence;
use super::fault::Fault;
use super::identity::HeaderMutations;
use super::redirect::{END_OF_LOOP, Page};
use super::resource::{self, Wanted};
use super::routes::{RouteRequirement, Shortfall};
use super::{DryRun, Settings};
use crate::opa::decision::{Allow, Decision, Deny, Header, HttpStatus, Metadata, StepUp};
use crate::opa::input::Attributes;
use crate::telemetry::{CheckOutcome, chain};
use crate::token::{TokenError, TokenState, Verified};

/// `google.rpc.Code` values that answers carry.
const OK: i32 = 0;
const PERMISSION_DENIED: i32 = 7;
const UNAUTHENTICATED: i32 = 16;

/// The answer to Envoy.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Respond(Box<CheckResponse>),
    /// Only under `compat: grpc_errors`.
    Fail {
        code: GrpcCode,
        message: String,
    },
}

impl Answer {
    /// The outcome in one word.
    pub fn word(&self) -> &'static str {
        let passes = |response: &CheckResponse| response.status.as_ref().is_none_or(|status| status.code == 0);
        match self {
            Self::Respond(response) if passes(response) => "allow",
            Self::Respond(_) | Self::Fail { .. } => "deny",
        }
    }
}

/// The gRPC errors that OPA-Envoy answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcCode {
    Unknown,
    ResourceExhausted,
    Internal,
    Unavailable,
}

/// A decision and what it was based on.
pub struct Verdict {
    pub decision: Decision,
    pub evidence: Evidence,
    /// The requirements of the routes.
    pub demand: Option<RouteRequirement>,
    /// The shortfall of the caller.
    pub unmet: Option<Shortfall>,
    /// The `acr_values` to request so that the required level is reached.
    pub acr_values: Vec<String>,
    /// Several tokens in a row were not enough.
    pub is_not_satisfiable: bool,
    /// The subprotocols of a WebSocket without tokens, where there was one among them.
    pub subprotocols: Option<String>,
    pub now: i64,
}

impl Verdict {
    /// An allow that neither the policy nor a token was asked about.
    pub fn allow(now: i64) -> Self {
        Self {
            decision: Decision::True,
            evidence: Evidence::absent(),
            demand: None,
            unmet: None,
            acr_values: Vec::new(),
            is_not_satisfiable: false,
            subprotocols: None,
            now,
        }
    }

    /// The demand for more authentication, if that is what is wrong.
    pub fn step_up(&self) -> Option<&StepUp> {
        match (&self.decision, &self.unmet) {
            (Decision::Deny(deny), _) => deny.step_up.as_ref(),
            (Decision::True | Decision::Allow(_), Some(shortfall)) => shortfall.step_up(),
            _ => None,
        }
    }

    /// Why the policy's own result is not what is answered; empty when it is.
    pub fn reason(&self) -> &'static str {
        match &self.unmet {
            _ if self.is_not_satisfiable => "step_up_not_satisfiable",
            Some(shortfall) => shortfall.reason().unwrap_or_else(|| self.evidence.missing_token_reason()),
            None => "",
        }
    }

    /// The challenge for a caller without a valid token, with every requirement, so that one login is enough.
    fn asked_at_first(&self) -> StepUp {
        let Some(demand) = &self.demand else { return StepUp::default() };
        let named = demand.strongest(None).map(|required| &required.acr_values).filter(|named| !named.is_empty());
        StepUp {
            acr_values: named.unwrap_or(&self.acr_values).clone(),
            max_age: demand.max_age,
            scope: (!demand.scopes.is_empty()).then(|| demand.scopes.join(" ")),
            ..StepUp::default()
        }
    }

    pub fn is_allow(&self) -> bool {
        self.decision.is_allow() && self.unmet.is_none()
    }
}

/// The answer to a decided check.
pub fn decision(
    settings: &Settings,
    verdict: Verdict,
    attributes: &Attributes<'_>,
    id: &str,
) -> (CheckOutcome, Answer) {
    let now = verdict.now;
    let mutation = || {
        let mutation = HeaderMutations::of(settings, &verdict.evidence, attributes, now);
        mutation.with_subprotocols(verdict.subprotocols.as_deref())
    };
    // The next nonce comes with the answer to a valid proof, so that the client's next proof is not rejected first.
    let is_bound = verdict.evidence.verified().is_some_and(Verified::is_bound);
    let nonce = || is_bound.then(|| settings.challenge.nonce(now)).flatten();
    let met = settings.redirect.as_ref().zip(attributes.http.as_ref());
    let cookie = met.and_then(|(redirect, http)| redirect.met(http));
    let (decided, response) = match &verdict.decision {
        _ if !verdict.is_allow() && (settings.dry_run == DryRun::Off || !verdict.decision.is_allow()) => {
            denial(settings, &verdict, attributes, id)
        }
        Decision::True => {
            let mutation = mutation();
            let nonce = nonce();
            let has_more = !mutation.is_empty() || nonce.is_some() || cookie.is_some();
            let ok = has_more.then(|| with_identity(with_nonce(OkHttpResponse::default(), nonce, cookie), mutation));
            return (CheckOutcome::Allow, allow(ok, None, id));
        }
        Decision::Allow(decision) => {
            let metadata = decision.dynamic_metadata.clone();
            let ok = with_nonce(ok_response(decision.clone()), nonce(), cookie);
            return (CheckOutcome::Allow, allow(Some(with_identity(ok, mutation())), metadata, id));
        }
        Decision::False | Decision::Deny(_) => denial(settings, &verdict, attributes, id),
    };
    if settings.dry_run == DryRun::Off {
        return (decided, Answer::Respond(Box::new(response)));
    }
    let metadata = response.dynamic_metadata;
    (decided, allow(Some(with_identity(OkHttpResponse::default(), mutation())), metadata, id))
}

/// The answer to a check that went wrong; `attributes` are there unless the request itself could not be read.
pub fn fault(
    settings: &Settings,
    fault: &Fault,
    attributes: Option<&Attributes<'_>>,
    subprotocols: Option<&str>,
    id: &str,
) -> Answer {
    // Without attributes the caller's copies of our headers are unknown, so that they could not be removed.
    let removal = match attributes {
        Some(attributes) => Some(HeaderMutations::removal(&settings.identity_headers, attributes)),
        None => settings.identity_headers.is_empty().then(HeaderMutations::default),
    };
    if let (DryRun::DenialsAndFaults, Some(removal)) = (settings.dry_run, removal) {
        let removal = removal.with_subprotocols(subprotocols);
        return allow(Some(with_identity(OkHttpResponse::default(), removal)), None, id);
    }
    if let (true, Some((code, message))) = (settings.compat.grpc_errors, fault.grpc_error()) {
        return Answer::Fail { code, message };
    }
    if let (true, Fault::Input(error)) = (settings.compat.body_errors, fault) {
        return Answer::Respond(Box::new(opa_parse_error(&chain(error))));
    }
    let mut body = serde_json::Map::new();
    body.insert("reason".to_owned(), fault.reason().into());
    body.insert("decision_id".to_owned(), id.into());
    let denied = DeniedHttpResponse {
        status: Some(envoy_status(fault.http_status())),
        headers: vec![header("content-type", "application/json"), header("cache-control", "no-store")],
        body: serde_json::Value::Object(body).to_string(),
    };
    let mut metadata = with_id(None, id);
    metadata.fields.insert("reason".to_owned(), text_field(fault.reason()));
    Answer::Respond(Box::new(CheckResponse {
        status: Some(status(PERMISSION_DENIED)),
        dynamic_metadata: Some(metadata),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
    }))
}

/// OPA-Envoy's own answer, which shows the parser's words to the client.
fn opa_parse_error(error: &str) -> CheckResponse {
    let message = format!("request_parse_error: {error}");
    let denied = DeniedHttpResponse {
        status: Some(envoy_status(HttpStatus::BAD_REQUEST)),
        headers: Vec::new(),
        body: message.clone(),
    };
    CheckResponse {
        status: Some(Status { code: PERMISSION_DENIED, message, details: Vec::new() }),
        dynamic_metadata: None,
        http_response: Some(HttpResponse::DeniedResponse(denied)),
    }
}

fn allow(ok: Option<OkHttpResponse>, metadata: Option<Metadata>, id: &str) -> Answer {
    Answer::Respond(Box::new(CheckResponse {
        status: Some(status(OK)),
        dynamic_metadata: Some(with_id(metadata, id)),
        http_response: ok.map(HttpResponse::OkResponse),
    }))
}

fn ok_response(decision: Allow) -> OkHttpResponse {
    let query = |Header { name: key, value }| QueryParameter { key, value };
    OkHttpResponse {
        headers: headers(decision.headers),
        headers_to_remove: decision.request_headers_to_remove,
        response_headers_to_add: headers(decision.response_headers_to_add),
        query_parameters_to_set: decision.query_parameters_to_set.into_iter().map(query).collect(),
        query_parameters_to_remove: decision.query_parameters_to_remove,
        ..OkHttpResponse::default()
    }
}

/// Gives the client the nonce of its next proof, and the cookie that ends a count.
fn with_nonce(mut ok: OkHttpResponse, nonce: Option<String>, cookie: Option<String>) -> OkHttpResponse {
    // Beside the upstream's own cookies.
    #[expect(deprecated, reason = "older Envoys know no `append_action`, and replace without this")]
    let appended =
        |cookie: String| HeaderValueOption { append: Some(BoolValue { value: true }), ..header("set-cookie", &cookie) };
    ok.response_headers_to_add.extend(cookie.map(appended));
    ok.response_headers_to_add.extend(nonce.map(|nonce| header("dpop-nonce", &nonce)));
    ok
}

/// Adds our headers. What the policy sets by the same name wins: it was decided with all the evidence.
fn with_identity(mut ok: OkHttpResponse, mutation: HeaderMutations) -> OkHttpResponse {
    let by_policy = |ok: &OkHttpResponse, name: &str| {
        ok.headers
            .iter()
            .filter_map(|option| option.header.as_ref())
            .any(|header| header.key.eq_ignore_ascii_case(name))
    };
    for (name, value) in mutation.set {
        if !by_policy(&ok, &name) {
            ok.headers.push(header(&name, &value));
        }
    }
    for name in mutation.remove {
        if !by_policy(&ok, &name) && !ok.headers_to_remove.contains(&name) {
            ok.headers_to_remove.push(name);
        }
    }
    ok
}

/// A denial: as the policy shaped it, or a challenge.
fn denial(
    settings: &Settings,
    verdict: &Verdict,
    attributes: &Attributes<'_>,
    id: &str,
) -> (CheckOutcome, CheckResponse) {
    let evidence = &verdict.evidence;
    let mut decision = match &verdict.decision {
        Decision::Deny(deny) => Some(deny.clone()),
        _ => None,
    };
    let shaped = decision
        .as_ref()
        .is_some_and(|deny| deny.http_status.is_some() || deny.body.is_some() || !deny.headers.is_empty());
    let form = ChallengeScheme::of(evidence.verified());
    let covering = attributes.http.as_ref().and_then(|http| resource::covering(&settings.resources, http));
    let first = verdict.asked_at_first();
    let hints = Hints {
        resource_metadata: settings
            .challenge
            .resource_metadata
            .as_deref()
            .or_else(|| covering.map(|resource| resource.url.as_str())),
        scope: first.scope.as_deref().or_else(|| covering?.scope.as_deref()),
    };
    let challenge = match (verdict.step_up(), &verdict.unmet) {
        (Some(step_up), _) if verdict.is_not_satisfiable => {
            // A client that would be challenged must see that it is not.
            decision = decision.map(|deny| Deny { http_status: None, body: None, ..deny });
            let end = with_have(settings.challenge.not_satisfiable(step_up, hints), verdict);
            let page = settings.redirect.as_ref().zip(attributes.http.as_ref());
            Some(as_page(end, page.and_then(|(to, http)| to.end_for(http))))
        }
        (Some(step_up), _) => {
            let challenge = with_have(settings.challenge.step_up(step_up, form, hints), verdict);
            let is_own_way = decision.as_ref().is_some_and(|deny| deny.http_status.is_some() || deny.body.is_some());
            Some(if is_own_way { challenge } else { for_browser(settings, challenge, step_up, attributes, true) })
        }
        (None, Some(Shortfall::Scope(scope))) => Some(settings.challenge.insufficient_scope(scope, form, hints)),
        (None, Some(Shortfall::Origin)) => Some(Challenge::cross_origin()),
        (None, _) if shaped => None,
        (None, _) => settings
            .challenge
            .for_token(evidence.token(), hints)
            // A shortfall that a new login cannot remedy is an error, not a redirect.
            .map(|challenge| match evidence.token() {
                TokenState::Absent | TokenState::Rejected(TokenError::Expired) => {
                    for_browser(settings, challenge, &first, attributes, false)
                }
                _ => challenge,
            }),
    };
    let reason = decision.as_ref().and_then(|deny| deny.reason.clone());
    let metadata = decision.as_ref().and_then(|deny| deny.dynamic_metadata.clone());
    let mut metadata = with_id(metadata, id);
    if let Some(reason) = reason {
        metadata.fields.entry("reason".to_owned()).or_insert_with(|| text_field(&reason));
    }
    let (decided, code, denied) = match (challenge, decision) {
        (Some(challenge), decision) => {
            let is_asking = challenge.status == HttpStatus::UNAUTHORIZED || challenge.location.is_some();
            let code = if is_asking { UNAUTHENTICATED } else { PERMISSION_DENIED };
            let nonce = settings.challenge.nonce(verdict.now);
            (CheckOutcome::Challenge, code, Some(challenged(challenge, decision.unwrap_or_default(), nonce, id)))
        }
        // The bare `false` has no denied response; Envoy then sends a bare 403.
        (None, None) => (CheckOutcome::Deny, PERMISSION_DENIED, None),
        (None, Some(deny)) => (CheckOutcome::Deny, PERMISSION_DENIED, Some(denied(deny))),
    };
    let response = CheckResponse {
        status: Some(status(code)),
        dynamic_metadata: Some(metadata),
        http_response: denied.map(HttpResponse::DeniedResponse),
    };
    (decided, response)
}

fn denied(deny: Deny) -> DeniedHttpResponse {
    DeniedHttpResponse {
        status: Some(envoy_status(deny.http_status.unwrap_or(HttpStatus::FORBIDDEN))),
        headers: headers(deny.headers),
        body: deny.body.unwrap_or_default(),
    }
}

/// A challenge, with what the policy wants beside it: its status and body win, its headers are added.
fn challenged(mut challenge: Challenge, deny: Deny, nonce: Option<String>, id: &str) -> DeniedHttpResponse {
    challenge.body.insert("decision_id".to_owned(), id.into());
    let mut own = Vec::new();
    own.extend(challenge.headers.iter().map(|value| header("www-authenticate", value)));
    if let Some(nonce) = nonce.filter(|_| challenge.headers.iter().any(|value| value.starts_with("DPoP "))) {
        own.push(header("dpop-nonce", &nonce));
    }
    own.extend(challenge.location.iter().map(|value| header("location", value)));
    own.extend(challenge.cookie.iter().map(|value| header("set-cookie", value)));
    if challenge.status == HttpStatus::SERVICE_UNAVAILABLE {
        own.push(header("retry-after", "1"));
    }
    let by_policy = |name: &str| deny.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if deny.body.is_none() && !by_policy("content-type") {
        let kind = if challenge.page.is_some() { "text/html; charset=utf-8" } else { "application/json" };
        own.push(header("content-type", kind));
    }
    if !by_policy("cache-control") {
        own.push(header("cache-control", "no-store"));
    }
    own.extend(headers(deny.headers));
    DeniedHttpResponse {
        status: Some(envoy_status(deny.http_status.unwrap_or(challenge.status))),
        headers: own,
        body: deny.body.unwrap_or_else(|| match challenge.page {
            Some(page) => page.to_owned(),
            None => serde_json::Value::Object(challenge.body).to_string(),
        }),
    }
}

/// The challenge, or where a browser goes instead of reading it.
fn for_browser(
    settings: &Settings,
    challenge: Challenge,
    step_up: &StepUp,
    attributes: &Attributes<'_>,
    is_step_up: bool,
) -> Challenge {
    let redirect = settings.redirect.as_ref().filter(|_| challenge.status == HttpStatus::UNAUTHORIZED);
    let page = redirect.zip(attributes.http.as_ref()).and_then(|(to, http)| to.page(http, step_up, is_step_up));
    as_page(challenge, page)
}

/// The challenge as a browser gets it.
fn as_page(challenge: Challenge, page: Option<Page>) -> Challenge {
    match page {
        Some(Page::Login { location, cookie }) => {
            Challenge { status: HttpStatus::FOUND, headers: Vec::new(), location: Some(location), cookie, ..challenge }
        }
        Some(Page::End { cookie }) => Challenge {
            status: HttpStatus::FORBIDDEN,
            headers: Vec::new(),
            cookie: Some(cookie),
            page: Some(END_OF_LOOP),
            ..challenge
        },
        None => challenge,
    }
}

/// The challenge with the caller's current level, so that a client can distinguish a new requirement from one it has met.
fn with_have(mut challenge: Challenge, verdict: &Verdict) -> Challenge {
    let authn = verdict.evidence.verified().map(Verified::authn);
    let mut have = serde_json::Map::new();
    have.insert("level".to_owned(), authn.map_or(0, |authn| authn.level).into());
    if let Some(age) = authn.and_then(|authn| authn.age_seconds(verdict.now)) {
        have.insert("age_seconds".to_owned(), age.into());
    }
    challenge.body.insert("have".to_owned(), have.into());
    challenge
}

/// A document that anybody may read, also pages of other origins, served in place of the upstream.
pub fn document(wanted: Wanted<'_>, id: &str) -> Answer {
    let all = header("access-control-allow-origin", "*");
    let denied = match wanted {
        Wanted::Document(body) => DeniedHttpResponse {
            status: Some(envoy_status(HttpStatus::OK)),
            headers: vec![header("content-type", "application/json"), header("cache-control", "max-age=300"), all],
            body: body.to_owned(),
        },
        Wanted::Preflight => DeniedHttpResponse {
            status: Some(envoy_status(HttpStatus::NO_CONTENT)),
            headers: vec![
                all,
                header("access-control-allow-methods", "GET, HEAD, OPTIONS"),
                header("access-control-allow-headers", "*"),
                header("access-control-max-age", "86400"),
            ],
            body: String::new(),
        },
    };
    Answer::Respond(Box::new(CheckResponse {
        status: Some(status(PERMISSION_DENIED)),
        dynamic_metadata: Some(with_id(None, id)),
        http_response: Some(HttpResponse::DeniedResponse(denied)),
    }))
}

fn status(code: i32) -> Status {
    Status { code, message: String::new(), details: Vec::new() }
}

fn envoy_status(status: HttpStatus) -> EnvoyStatus {
    EnvoyStatus { code: i32::from(status.code()) }
}

fn headers(headers: Vec<Header>) -> Vec<HeaderValueOption> {
    headers.into_iter().map(|Header { name, value }| option(name, value)).collect()
}

fn header(name: &str, value: &str) -> HeaderValueOption {
    option(name.to_owned(), value.to_owned())
}

/// Neither `append` nor `append_action` is set, as in OPA: Envoy overwrites on allow and keeps every value on deny.
fn option(key: String, value: String) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key, value, ..HeaderValue::default() }),
        ..HeaderValueOption::default()
    }
}

/// The metadata with `decision_id`, which always is the real one.
fn with_id(metadata: Option<Metadata>, id: &str) -> Struct {
    let mut metadata = metadata.unwrap_or_else(|| Struct { fields: HashMap::new() });
    metadata.fields.insert("decision_id".to_owned(), text_field(id));
    metadata
}

fn text_field(text: &str) -> Field {
    Field { kind: Some(Kind::StringValue(text.to_owned())) }
}
