//! The HTTP doors: health and metrics, read-only.
//!
//! Mirrors: OPA `v1/server/server.go` for `/health` and `/metrics`, v1.9.0. `/live` and `/ready` are ours. The policy and
//! data API of OPA is not offered; its paths answer 404 with OPA's error shape.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::bind::Listener;
use super::health::{BUNDLES, Health};
use crate::telemetry::Metrics;

/// What the HTTP doors show.
#[derive(Clone, Debug)]
pub struct HttpDoor {
    pub health: Health,
    pub metrics: Arc<Metrics>,
}

/// The name of the one plugin, as OPA's `?plugins` and `exclude-plugin` know it.
const PLUGIN: &str = "envoy_ext_authz_grpc";

/// Serves until `stop` comes.
pub async fn serve_http(listener: Listener, door: HttpDoor, stop: impl Future<Output = ()> + Send + 'static) {
    let router = Router::new()
        .route("/health", get(health))
        .route("/live", get(|| async { json(StatusCode::OK, "{}") }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .fallback(not_found)
        .with_state(door);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        tracing::error!(error = %error, "an HTTP listener ended");
    }
}

/// `GET /health[?bundles][&plugins[&exclude-plugin=name]]`.
async fn health(State(door): State<HttpDoor>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let pairs: Vec<_> = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "true"))).collect();
    let asked = |name: &str| pairs.iter().any(|&(key, value)| key == name && value != "false");
    if (asked("bundles") || asked("bundle")) && door.health.waiting_for().contains(&BUNDLES) {
        return json(StatusCode::INTERNAL_SERVER_ERROR, r#"{"error": "one or more bundles are not activated"}"#);
    }
    let excluded = pairs.iter().any(|&(key, value)| key == "exclude-plugin" && value == PLUGIN);
    if asked("plugins") && !excluded && !door.health.is_ready() {
        return json(StatusCode::INTERNAL_SERVER_ERROR, r#"{"error": "one or more plugins are not up"}"#);
    }
    json(StatusCode::OK, "{}")
}

async fn ready(State(door): State<HttpDoor>) -> Response {
    let waiting = door.health.waiting_for();
    if waiting.is_empty() {
        return json(StatusCode::OK, "{}");
    }
    let body = serde_json::json!({"error": "not ready", "waiting_for": waiting}).to_string();
    json(StatusCode::SERVICE_UNAVAILABLE, &body)
}

async fn metrics(State(door): State<HttpDoor>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], door.metrics.text()).into_response()
}

async fn not_found() -> Response {
    let body =
        r#"{"code": "resource_not_found", "message": "stepgate serves /health, /live, /ready and /metrics here"}"#;
    json(StatusCode::NOT_FOUND, body)
}

fn json(status: StatusCode, body: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}
