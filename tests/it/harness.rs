//! The whole service in this process: `Service::start(config)`, a client for each listener, a clock that tests move, and a server of
//! bundles that can be made to misbehave. What needs no Envoy is tested here; `tests/e2e/` reads the same wire independently.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{self, HttpRequest};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{self, ListValue, Struct};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tonic::transport::Channel;

use stepgate::app::{App, Launch};
use stepgate::clock::Clock;
use stepgate::config::Document;
use stepgate::feed::files::{PathSpec, PolicyFiles};
use stepgate::opa::signature::Verification;
use stepgate::policy::RegoVersion;

/// JSON as protobuf has it.
fn protobuf(value: &Value) -> protobuf::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(protobuf).collect() }),
        Value::Object(members) => {
            let fields = members.iter().map(|(key, value)| (key.clone(), protobuf(value))).collect();
            Kind::StructValue(Struct { fields })
        }
    };
    protobuf::Value { kind: Some(kind) }
}

/// The moment at which every service starts.
pub const NOW: i64 = 1_800_000_000;
/// The longest that a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);

/// The service, running in this process.
pub struct Service {
    pub clock: Clock,
    app: App,
    checks: AuthorizationClient<Channel>,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Service {
    /// Starts with this configuration, to which the gRPC listener on a free port is added, and with one policy file where `policy` is
    /// not empty. The entry point is `app/allow`.
    pub async fn start(mut config: Value, policy: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let plugin = json!({"addr": "127.0.0.1:0", "path": "app/allow"});
        merge(&mut config, json!({"plugins": {"envoy_ext_authz_grpc": plugin}}));
        let mut paths = Vec::new();
        if !policy.is_empty() {
            let path = folder.path().join("policy.rego");
            std::fs::write(&path, policy).expect("the policy is written");
            paths.push(PathSpec::parse(&path.display().to_string()));
        }
        let files = PolicyFiles {
            paths,
            ignore: Vec::new(),
            version: RegoVersion::V1,
            as_bundles: false,
            verification: Verification::default(),
        };
        let clock = Clock::fixed(NOW);
        let launch = Launch::new(Document::of(config), files, clock.clone()).expect("the configuration is valid");
        let app = App::start(launch).await.expect("the service starts");
        let address = app.grpc_address().expect("a gRPC listener");
        let channel = Channel::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { clock, app, checks: AuthorizationClient::new(channel), http, _folder: folder }
    }

    /// The answer to a GET of `path`.
    pub async fn check(&self, path: &str) -> CheckResponse {
        self.check_with(path, "").await
    }

    /// The answer to a GET of `path` with a token, unless that is empty.
    pub async fn check_with(&self, path: &str, token: &str) -> CheckResponse {
        let mut http = HttpRequest { method: "GET".to_owned(), path: path.to_owned(), ..HttpRequest::default() };
        if !token.is_empty() {
            http.headers.insert("authorization".to_owned(), format!("Bearer {token}"));
        }
        self.send(http, None).await
    }

    async fn send(&self, http: HttpRequest, metadata: Option<Metadata>) -> CheckResponse {
        let request = attribute_context::Request { http: Some(http), ..attribute_context::Request::default() };
        let attributes =
            AttributeContext { request: Some(request), metadata_context: metadata, ..AttributeContext::default() };
        let request = CheckRequest { attributes: Some(attributes) };
        self.checks.clone().check(request).await.expect("an answer").into_inner()
    }

    /// The status and the reason for a GET of `path` with claims that Envoy has verified.
    pub async fn status_of_asserted(&self, path: &str, payload_key: &str, claims: &Value) -> (u32, String) {
        let http = HttpRequest { method: "GET".to_owned(), path: path.to_owned(), ..HttpRequest::default() };
        let payload = Struct { fields: [(payload_key.to_owned(), protobuf(claims))].into() };
        let filters = [("envoy.filters.http.jwt_authn".to_owned(), payload)].into();
        let metadata = Metadata { filter_metadata: filters, ..Metadata::default() };
        Self::status(self.send(http, Some(metadata)).await)
    }

    /// The status that the client gets, and the reason in its body.
    pub async fn status_of(&self, path: &str, token: &str) -> (u32, String) {
        Self::status(self.check_with(path, token).await)
    }

    fn status(answer: CheckResponse) -> (u32, String) {
        if answer.status.is_some_and(|status| status.code == 0) {
            return (200, String::new());
        }
        let Some(HttpResponse::DeniedResponse(denied)) = answer.http_response else { return (403, String::new()) };
        let body: Value = serde_json::from_str(&denied.body).unwrap_or_default();
        let status = denied.status.map_or(403, |status| u32::try_from(status.code).unwrap_or(0));
        (status, body.get("reason").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// `WWW-Authenticate` of a denial.
    pub async fn challenge_of(&self, path: &str, token: &str) -> String {
        let answer = self.check_with(path, token).await;
        let Some(HttpResponse::DeniedResponse(denied)) = answer.http_response else { return String::new() };
        let headers = denied.headers.into_iter().filter_map(|option| option.header);
        headers.filter(|header| header.key == "www-authenticate").map(|header| header.value).collect()
    }

    pub async fn allows(&self, path: &str) -> bool {
        self.check(path).await.status.is_some_and(|status| status.code == 0)
    }

    /// The status and the text at a path of the listener of health and metrics.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let address = self.app.http_addresses().first().expect("a listener");
        let answer = self.http.get(format!("http://{address}{path}")).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    }

    /// The value of a line of the metrics; 0 where there is none.
    pub async fn metric(&self, line: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let value = |known: &str| known.strip_prefix(line)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value).unwrap_or(0.0)
    }

    /// The conditions that readiness waits for.
    pub async fn waiting_for(&self) -> Vec<String> {
        let (_, text) = self.get("/ready").await;
        let document: Value = serde_json::from_str(&text).unwrap_or_default();
        let names = document.get("waiting_for").and_then(Value::as_array).cloned().unwrap_or_default();
        names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Stops, and waits until everything has ended.
    pub async fn stop(self) {
        assert!(self.app.stop(Duration::from_secs(10)).await, "the service ends");
    }
}

/// Waits until `condition` holds; fails with `what` if it never does.
pub async fn settled<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Adds the members of `more` to `document`, object by object.
pub fn merge(document: &mut Value, more: Value) {
    match (document, more) {
        (Value::Object(members), Value::Object(more)) => {
            for (name, value) in more {
                merge(members.entry(name).or_insert_with(|| json!({})), value);
            }
        }
        (place, more) => *place = more,
    }
}

/// An answer of the server, by the request's headers.
type Route = Arc<dyn Fn(&HeaderMap) -> Response + Send + Sync>;

/// A server of bundles, decision logs and status, whose answers tests change.
#[derive(Clone, Default)]
pub struct Server {
    pub url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    routes: HashMap<String, Route>,
    /// Paths that were asked for.
    requests: Vec<String>,
    /// Statuses and events that were uploaded.
    statuses: Vec<Value>,
    events: Vec<Value>,
    upload_status: u16,
}

impl Server {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = Self { url, state: Arc::default() };
        server.state.lock().upload_status = 200;
        let answering = server.clone();
        let router = Router::new().fallback(move |request: Request| answering.clone().answer(request));
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    async fn answer(self, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        let (head, body) = request.into_parts();
        let body = to_bytes(body, 16 << 20).await.unwrap_or_default();
        let mut state = self.state.lock();
        state.requests.push(path.clone());
        match path.split('/').nth(1) {
            Some("status") => {
                state.statuses.push(serde_json::from_slice(&body).expect("a status"));
                StatusCode::OK.into_response()
            }
            Some("logs") => {
                let status = StatusCode::from_u16(state.upload_status).expect("a status");
                if status.is_success() {
                    let events: Vec<Value> =
                        serde_json::from_reader(flate2::read::GzDecoder::new(&*body)).expect("events");
                    state.events.extend(events);
                }
                status.into_response()
            }
            _ => {
                let route = state.routes.get(&path).cloned();
                drop(state);
                route.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |route| route(&head.headers))
            }
        }
    }

    /// Answers a path so from now on.
    pub fn route(&self, path: &str, answer: impl Fn(&HeaderMap) -> Response + Send + Sync + 'static) {
        self.state.lock().routes.insert(path.to_owned(), Arc::new(answer));
    }

    /// Offers bytes with an ETag; 304 to clients that have them.
    pub fn offer(&self, path: &str, bytes: Vec<u8>, etag: &str) {
        let (bytes, etag) = (Bytes::from(bytes), etag.to_owned());
        self.route(path, move |headers| {
            if headers.get("if-none-match").is_some_and(|known| known.as_bytes() == etag.as_bytes()) {
                return (StatusCode::NOT_MODIFIED, [("etag", etag.clone())]).into_response();
            }
            ([("etag", etag.clone())], Body::from(bytes.clone())).into_response()
        });
    }

    pub fn fail(&self, path: &str, status: u16) {
        let status = StatusCode::from_u16(status).expect("a status");
        self.route(path, move |_| status.into_response());
    }

    pub fn upload_status(&self, status: u16) {
        self.state.lock().upload_status = status;
    }

    pub fn requests(&self, path: &str) -> usize {
        self.state.lock().requests.iter().filter(|known| *known == path).count()
    }

    pub fn events(&self) -> Vec<Value> {
        self.state.lock().events.clone()
    }

    pub fn statuses(&self) -> usize {
        self.state.lock().statuses.len()
    }

    /// The last uploaded status of a bundle.
    pub fn bundle_status(&self, name: &str) -> Value {
        let state = self.state.lock();
        let of = |status: &Value| status.get("bundles").and_then(|bundles| bundles.get(name)).cloned();
        state.statuses.iter().rev().find_map(of).unwrap_or_default()
    }

    /// A configuration with the bundle `b` of this server and its status.
    pub fn config(&self) -> Value {
        json!({
            "services": {"s": {"url": self.url, "response_header_timeout_seconds": 1}},
            "bundles": {"b": {"resource": "/b.tar.gz", "polling": {"min_delay_seconds": 1, "max_delay_seconds": 1}}},
            "status": {"service": "s"},
        })
    }
}

/// A bundle with these files.
pub fn bundle(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("/{name}").trim_start_matches('/'), text.as_bytes()).expect("a file");
    }
    let archive = tar.into_inner().expect("an archive");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&archive).expect("it is packed");
    packed.finish().expect("it is packed")
}

/// A bundle that allows the path `/<word>` alone.
pub fn policy(word: &str, revision: &str) -> Vec<u8> {
    let rego = "package app\ndefault allow := false\nallow if input.parsed_path[0] == data.app.word\n";
    let manifest = json!({"revision": revision, "roots": ["app"]}).to_string();
    let data = json!({"app": {"word": word}}).to_string();
    bundle(&[("app.rego", rego), ("data.json", &data), (".manifest", &manifest)])
}
