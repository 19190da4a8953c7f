//! OPA's REST API, as far as it is called beside a sidecar.
//!
//! Mirrors: OPA `v1/server/server.go`, v1.19.0: paths, answers and errors. What differs, on purpose: off loopback nothing of it is
//! served without access control; policies change only with `--allow-policy-writes`; and the input of a caller
//! never stands for verified evidence.

mod access;
mod authzen;
mod data;
mod policies;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::access::{Access, Authentication};
use super::address::Peer;
use crate::clock::Clock;
use crate::decision_queue::DecisionQueue;
use crate::opa::decision::Dialect;
use crate::policy::{ApiError, Module, Rejection, Store};
use crate::value::{DuplicateKeys, JsonLimits, Value};

/// Evaluations of the API at the same time; further ones wait.
const MAX_EVALUATIONS: usize = 32;
/// The longest wait of a request for a free worker.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// The time limit of one evaluation.
const BUDGET: Duration = Duration::from_secs(10);
/// Documents that callers send.
const INPUT: JsonLimits = JsonLimits { depth: 512, duplicates: DuplicateKeys::LastWins };

/// Bounds of what callers send, and from what size on answers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Bytes as they are sent.
    pub body: usize,
    /// Bytes after decompression.
    pub decoded: usize,
    /// Answers of fewer bytes are not compressed.
    pub gzip_from: usize,
}

/// Why a policy was not changed.
#[derive(Debug)]
pub enum PolicyChangeError {
    /// It belongs to a bundle.
    Owned(String),
    NotFound,
    Rejected(Vec<Rejection>),
    /// The policies compile, and could not be activated.
    Activation(String),
}

/// The parts of the process that the API shows and changes beside decisions.
pub trait Control: Send + Sync {
    /// The active configuration, without secrets.
    fn config(&self) -> Json;
    /// Nothing when no status is configured.
    fn status(&self) -> Option<Json>;
    fn policies(&self) -> Vec<Module>;
    fn put_policy(&self, id: &str, text: &str) -> Result<(), PolicyChangeError>;
    fn delete_policy(&self, id: &str) -> Result<(), PolicyChangeError>;
    /// Downloads a bundle now; false when there is none of this name.
    fn refresh(&self, bundle: &str) -> bool;
}

/// The state shared by the handlers.
pub struct Api {
    pub policy: Arc<Store>,
    pub control: Arc<dyn Control>,
    pub decision_queue: Option<Arc<DecisionQueue>>,
    pub clock: Clock,
    pub access: Access,
    pub limits: BodyLimits,
    /// Remove `jwt` and `authn` from an input: they are stepgate's own.
    pub guards_evidence: bool,
    /// PUT and DELETE of policies are allowed.
    pub policy_writes: bool,
    /// The document of `POST /`, part by part.
    pub default_decision: Vec<String>,
    /// The form in which results of the policy are read.
    pub dialect: Dialect,
    /// Where AuthZEN's clients reach this server.
    pub authzen_url: Option<String>,
    pub stopping: CancellationToken,
    evaluations: Semaphore,
    requests: AtomicU64,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("access", &self.access).finish_non_exhaustive()
    }
}

impl Api {
    pub fn new(
        policy: Arc<Store>,
        control: Arc<dyn Control>,
        decision_queue: Option<Arc<DecisionQueue>>,
        clock: Clock,
        settings: ApiSettings,
    ) -> Self {
        let ApiSettings {
            access,
            limits,
            guards_evidence,
            policy_writes,
            default_decision,
            dialect,
            authzen_url,
            stopping,
        } = settings;
        Self {
            policy,
            control,
            decision_queue,
            clock,
            access,
            limits,
            guards_evidence,
            policy_writes,
            default_decision,
            dialect,
            authzen_url,
            stopping,
            evaluations: Semaphore::new(MAX_EVALUATIONS),
            requests: AtomicU64::new(0),
        }
    }

    /// The number of a request, from 1.
    fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Runs `work` on a thread that may block, when a permit is free.
    async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        let busy = || Failure::new(StatusCode::SERVICE_UNAVAILABLE, "internal_error", "too many evaluations at once");
        let permit = tokio::time::timeout(MAX_WAIT, self.evaluations.acquire()).await;
        let _permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
        let panicked = |_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the evaluation panicked");
        tokio::task::spawn_blocking(work).await.map_err(panicked)
    }
}

/// Settings of the API's listener.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    pub access: Access,
    pub limits: BodyLimits,
    pub guards_evidence: bool,
    pub policy_writes: bool,
    pub default_decision: Vec<String>,
    pub dialect: Dialect,
    pub authzen_url: Option<String>,
    /// Comes when everything is to stop, so that answers without end have one.
    pub stopping: CancellationToken,
}

/// The routes of the API. Access is checked around them, and around those of health and metrics on the same listener.
pub fn routes(api: &Arc<Api>) -> Router {
    Router::new()
        .route("/", post(data::default_decision))
        .route("/v0/data", post(data::v0_post))
        .route("/v0/data/{*path}", post(data::v0_post))
        .route("/v1/data", get(data::v1_get).post(data::v1_post))
        .route("/v1/data/{*path}", get(data::v1_get).post(data::v1_post))
        .route("/v1/query", get(data::query_get).post(data::query_post))
        .route("/v1/policies", get(policies::list))
        .route("/v1/policies/{*id}", get(policies::get).put(policies::put).delete(policies::delete))
        .route("/v1/config", get(policies::config))
        .route("/v1/status", get(policies::status))
        .route("/access/v1/evaluation", post(authzen::evaluation_post))
        .route("/access/v1/evaluations", post(authzen::evaluations_post))
        .route("/.well-known/authzen-configuration", get(authzen::configuration))
        .layer(DefaultBodyLimit::max(api.limits.body))
        .with_state(Arc::clone(api))
}

/// The routes of the admin socket.
pub fn admin_routes(api: &Arc<Api>) -> Router {
    Router::new()
        .route("/v1/bundles/{name}/refresh", post(policies::refresh))
        .route("/v1/decisions", get(watch::decisions))
        .with_state(Arc::clone(api))
}

/// Puts the question who may before every route of `router`.
pub fn guarded(router: Router, api: Arc<Api>, is_local: bool) -> Router {
    router
        .layer(axum::middleware::from_fn(move |request, next| access::check(Arc::clone(&api), is_local, request, next)))
}

/// An answer that is an error, in OPA's shape.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    code: &'static str,
    message: String,
    errors: Vec<Json>,
}

impl Failure {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), errors: Vec::new() }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", message)
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "resource_not_found", message)
    }

    fn with_errors(self, errors: impl IntoIterator<Item = Json>) -> Self {
        Self { errors: errors.into_iter().collect(), ..self }
    }

    fn evaluation(api_error: &ApiError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "error(s) occurred while evaluating query")
            .with_errors([api_error.to_json()])
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut body = json!({"code": self.code, "message": self.message});
        if let (false, Some(members)) = (self.errors.is_empty(), body.as_object_mut()) {
            members.insert("errors".to_owned(), self.errors.into());
        }
        (self.status, [(header::CONTENT_TYPE, "application/json")], format!("{body:#}\n")).into_response()
    }
}

/// The query parameters, by name; a bare name means true.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn of(uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        Self(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The last value.
    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn flag(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| value.is_empty() || value.eq_ignore_ascii_case("true"))
    }
}

/// One call of the API.
struct Call {
    api: Arc<Api>,
    uri: Uri,
    headers: HeaderMap,
    parameters: Parameters,
    began: Instant,
    /// The caller's address.
    peer: String,
}

impl FromRequestParts<Arc<Api>> for Call {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<ConnectInfo<Peer>>();
        Ok(Self {
            api: Arc::clone(api),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            parameters: Parameters::of(&parts.uri),
            began: Instant::now(),
            peer: peer.map(|peer| peer.0.address.clone()).unwrap_or_default(),
        })
    }
}

impl Call {
    fn header(&self, name: HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// A JSON answer, indented and compressed as it was asked for.
    fn answer(&self, value: &Value) -> Response {
        let pretty = self.parameters.flag("pretty");
        let mut text = if pretty { crate::value::pretty(value) } else { crate::value::json_text(value) };
        text.push('\n');
        let kind = (header::CONTENT_TYPE, "application/json");
        let mut accepted = self.header(header::ACCEPT_ENCODING).split(',');
        let wanted = accepted.any(|coding| coding.split(';').next().is_some_and(|name| name.trim() == "gzip"));
        if wanted && text.len() >= self.api.limits.gzip_from {
            let coding = (header::CONTENT_ENCODING, "gzip");
            return ([kind, coding], crate::opa::rest::gzip(text.as_bytes())).into_response();
        }
        ([kind], text).into_response()
    }
}

/// A body, decompressed if need be.
fn decoded(api: &Api, headers: &HeaderMap, body: &Bytes) -> Result<Vec<u8>, Failure> {
    let coding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !coding.contains("gzip") {
        return Ok(body.to_vec());
    }
    crate::opa::rest::gunzip(body, api.limits.decoded).map_err(|error| Failure::bad_request(error.to_string()))
}
