//! The HTTP listeners: health and metrics on all of them, OPA's API on the main one, what changes something on the admin socket.
//!
//! Mirrors: OPA `v1/server/server.go` for `/health` and `/metrics`, v1.9.0. `/live` and `/ready` are ours.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::address::Peer;
use super::api::{self, Api};
use super::health::{BUNDLES, Health, Plugin};
use super::http_listener::{HttpListener, MAX_CONNECTIONS};
use super::hub;
use super::listener::Listener;
use super::public;
use super::rejected_connections::RejectedConnections;
use super::tls::Tls;
use crate::hub::Hub;
use crate::policy::{QueryOptions, Store};
use crate::telemetry::Metrics;
use crate::value::Value;

/// The time limit of a health rule of the policy.
const HEALTH_BUDGET: Duration = Duration::from_millis(500);
/// Health rules that are evaluated at the same time, on all listeners; probes ask for one or two.
static HEALTH_RULES: Semaphore = Semaphore::const_new(4);

/// The time limit of decision streams at shutdown; other answers have the grace period.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// The routes of every HTTP listener.
#[derive(Clone, Debug)]
pub struct HttpListenerConfig {
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub policy: Arc<Store>,
    /// Absent where the listener speaks plain HTTP.
    pub tls: Option<Arc<Tls>>,
    pub kind: ListenerKind,
}

/// Further routes of a listener.
#[derive(Clone, Debug)]
pub enum ListenerKind {
    /// Nothing: it is for probes.
    Diagnostic,
    Api(Arc<Api>),
    /// The API and what changes something; only for a socket file of this machine.
    Admin(Arc<Api>),
    /// The feed of a hub.
    Feed(Arc<Hub>),
    /// Where identity providers reach a hub.
    HubPublic(Arc<Hub>),
    /// Changes of a hub; only for a socket file of this machine.
    HubAdmin(Arc<Hub>),
}

/// Serves until `stop` comes.
pub async fn serve_http(listener: Listener, listener_config: HttpListenerConfig, stop: CancellationToken) {
    let is_local = listener.is_local();
    let has_watchers = matches!(listener_config.kind, ListenerKind::Admin(_) | ListenerKind::Feed(_));
    let max_connections = match &listener_config.kind {
        ListenerKind::Feed(hub) => hub.max_readers().saturating_add(MAX_CONNECTIONS),
        ListenerKind::HubPublic(_) => public::MAX_CONNECTIONS,
        _ => MAX_CONNECTIONS,
    };
    let refusals = Arc::new(RejectedConnections::new(&listener_config.metrics, "http"));
    let (kind, tls) = (listener_config.kind.clone(), listener_config.tls.clone());
    let listener = HttpListener::new(listener, tls, refusals, max_connections);
    let mut router = Router::new()
        .route("/live", get(|| async { json(StatusCode::OK, "{}") }))
        .route("/ready", get(ready))
        .fallback(not_found);
    if !matches!(kind, ListenerKind::HubPublic(_)) {
        router = router
            .route("/health", get(health))
            .route("/health/{*rule}", get(health_rule))
            .route("/metrics", get(metrics));
    }
    let router = router.with_state(listener_config);
    let router = match kind {
        ListenerKind::Diagnostic => router,
        ListenerKind::Api(api) => api::guarded(router.merge(api::routes(&api)), api, is_local),
        ListenerKind::Admin(api) => router.merge(api::routes(&api)).merge(api::admin_routes(&api)),
        ListenerKind::Feed(hub) => router.merge(hub::feed_routes(&hub, stop.clone())),
        ListenerKind::HubPublic(hub) => router.merge(public::routes(&hub)),
        ListenerKind::HubAdmin(hub) => router.merge(hub::admin_routes(&hub)),
    };
    let service = router.into_make_service_with_connect_info::<Peer>();
    let stopped = stop.clone();
    let serving = axum::serve(listener, service).with_graceful_shutdown(async move { stop.cancelled().await });
    let late = async {
        stopped.cancelled().await;
        tokio::time::sleep(LAST_EVENTS).await;
    };
    tokio::select! {
        ended = serving => {
            if let Err(error) = ended {
                tracing::error!(error = %error, "an HTTP listener ended");
            }
        }
        // A subscriber that does not read, as a stopped terminal, delays no other.
        () = late, if has_watchers => {}
    }
}

/// `GET /health[?bundles][&plugins[&exclude-plugin=name]]`.
async fn health(State(listener_config): State<HttpListenerConfig>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let pairs: Vec<_> = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "true"))).collect();
    let asked = |name: &str| pairs.iter().any(|&(key, value)| key == name && value != "false");
    let waits = |plugin: Plugin| listener_config.health.plugins().get(plugin.name()) == Some(&"NOT_READY");
    let bundles = listener_config.health.waiting_for().contains(&BUNDLES) || waits(Plugin::Discovery);
    if (asked("bundles") || asked("bundle")) && bundles {
        return json(StatusCode::INTERNAL_SERVER_ERROR, r#"{"error": "one or more bundles are not activated"}"#);
    }
    let excluded = |name: &str| pairs.iter().any(|&(key, value)| key == "exclude-plugin" && value == name);
    let down = |(name, state): (String, &'static str)| state != "OK" && !excluded(&name);
    if asked("plugins") && listener_config.health.plugins().into_iter().any(down) {
        return json(StatusCode::INTERNAL_SERVER_ERROR, r#"{"error": "one or more plugins are not up"}"#);
    }
    json(StatusCode::OK, "{}")
}

/// `GET /health/<rule>`: what `data.system.health.<rule>` says of the states of all parts.
async fn health_rule(State(listener_config): State<HttpListenerConfig>, Path(rule): Path<String>) -> Response {
    let failed = |what: &str| {
        let message = format!("health check (data.system.health.{}) {what}", rule.replace('/', "."));
        json(StatusCode::INTERNAL_SERVER_ERROR, &serde_json::json!({ "error": message }).to_string())
    };
    let states =
        listener_config.health.plugins().into_iter().map(|(name, state)| (Value::from(name), Value::from(state)));
    let input: Value = [
        ("plugin_state", Value::object(states.collect())),
        ("plugins_ready", Value::Bool(listener_config.health.has_been_up())),
    ]
    .into_iter()
    .collect();
    let Some(snapshot) = listener_config.policy.current() else { return failed("was undefined") };
    let Ok(_turn) = HEALTH_RULES.try_acquire() else { return failed("was not evaluated: too many at once") };
    let path: Vec<String> = ["system", "health"].into_iter().chain(rule.split('/')).map(str::to_owned).collect();
    let asked = tokio::task::spawn_blocking(move || {
        let question = QueryOptions { input: Some(&input), strict_builtin_errors: false, budget: HEALTH_BUDGET };
        snapshot.document(&path, &question)
    });
    match asked.await {
        Ok(Ok(Some(Value::Bool(true)))) => json(StatusCode::OK, "{}"),
        Ok(Ok(None)) => failed("was undefined"),
        Ok(Ok(Some(_))) => failed("returned unexpected value"),
        Ok(Err(complaint)) => failed(&format!("cannot be evaluated: {}", complaint.message)),
        Err(_) => failed("panicked"),
    }
}

async fn ready(State(listener_config): State<HttpListenerConfig>) -> Response {
    let waiting = listener_config.health.waiting_for();
    if waiting.is_empty() {
        return json(StatusCode::OK, "{}");
    }
    let body = serde_json::json!({"error": "not ready", "waiting_for": waiting}).to_string();
    json(StatusCode::SERVICE_UNAVAILABLE, &body)
}

async fn metrics(State(listener_config): State<HttpListenerConfig>, headers: HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = match accepted.contains("application/openmetrics-text") {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    };
    ([(header::CONTENT_TYPE, kind)], listener_config.metrics.text()).into_response()
}

async fn not_found(State(listener_config): State<HttpListenerConfig>) -> Response {
    let offered = match listener_config.kind {
        ListenerKind::Diagnostic => "/health, /live, /ready and /metrics",
        ListenerKind::Api(_) => {
            "/v1/data, /v0/data, /v1/query, /v1/policies, /v1/config, /v1/status, /health, /live, /ready and /metrics"
        }
        ListenerKind::Admin(_) => "POST /v1/bundles/<name>/refresh and everything of the API",
        ListenerKind::Feed(_) => "/v1/feed, /v1/snapshot, /health, /live, /ready and /metrics",
        ListenerKind::HubPublic(_) => "/scim/<provider>/v2, /logout/<name>, /ssf/<name>/events, /live and /ready",
        ListenerKind::HubAdmin(_) => {
            "POST /v1/revocations, POST /v1/revoke, POST /v1/hub/backup, /v1/hub/status, /v1/hub/unmatched, /health, /live, /ready and /metrics"
        }
    };
    let body = serde_json::json!({"code": "resource_not_found", "message": format!("stepgate serves {offered} here")});
    json(StatusCode::NOT_FOUND, &body.to_string())
}

fn json(status: StatusCode, body: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}
