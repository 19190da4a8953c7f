//! The listener of a hub that identity providers reach.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use tokio::sync::Semaphore;

use super::hub::bearer_of;
use crate::hub::{Hub, ScimAnswer, ScimRequest};

/// Connections; beyond, the oldest is closed once it waits for a request.
pub(super) const MAX_CONNECTIONS: usize = 2_048;
/// Bytes of a request.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Requests that are carried out at the same time, or wait for the disk.
const MAX_IN_FLIGHT: usize = 256;
/// A provider gets its answer within that, or comes again.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
struct PublicListener {
    hub: Arc<Hub>,
    in_flight: Arc<Semaphore>,
}

pub(super) fn routes(hub: &Arc<Hub>) -> Router {
    let listener = PublicListener { hub: Arc::clone(hub), in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)) };
    Router::new()
        .route("/scim/{provider}/v2", any(scim))
        .route("/scim/{provider}/v2/", any(scim))
        .route("/scim/{provider}/v2/{*rest}", any(scim))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(listener)
}

/// Everything of a SCIM provider.
async fn scim(
    State(listener): State<PublicListener>,
    Path(parts): Path<Vec<String>>,
    RawQuery(query): RawQuery,
    method: Method,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejected) => return response(ScimAnswer::error(rejected.status().as_u16(), None, &rejected.body_text())),
    };
    let Ok(permit) = Arc::clone(&listener.in_flight).try_acquire_owned() else {
        return response(busy("too many requests are carried out"));
    };
    let mut parts = parts.into_iter();
    let provider = parts.next().unwrap_or_default();
    let rest = parts.next().unwrap_or_default();
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into());
    let query = query.unwrap_or_default();
    let request = ScimRequest {
        method,
        path: rest.split('/').map(str::to_owned).collect(),
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        content_type,
        body,
    };
    let bearer = bearer_of(&headers);
    let hub = listener.hub;
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        hub.scim(&provider, bearer.as_deref(), &request)
    });
    let answer = match tokio::time::timeout(DEADLINE, work).await {
        Ok(Ok(answer)) => answer,
        // It may still be carried out: a provider that comes again finds that nothing is left to do.
        Ok(Err(_)) | Err(_) => busy("the request was not carried out in time"),
    };
    response(answer)
}

fn busy(why: &str) -> ScimAnswer {
    ScimAnswer { retry_after: Some(30), ..ScimAnswer::error(503, None, why) }
}

fn response(answer: ScimAnswer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match answer.body {
        Some(body) => (status, [(header::CONTENT_TYPE, "application/scim+json")], body.to_string()).into_response(),
        None => status.into_response(),
    };
    let allow = answer.allow.map(|allow| (header::ALLOW, HeaderValue::from_static(allow)));
    let retry = answer.retry_after.map(|seconds| (header::RETRY_AFTER, HeaderValue::from(seconds)));
    let location = answer.location.and_then(|text| HeaderValue::try_from(text).ok());
    let challenge = (status == StatusCode::UNAUTHORIZED).then(|| HeaderValue::from_static("Bearer"));
    let extra = [
        allow,
        retry,
        location.map(|value| (header::LOCATION, value)),
        challenge.map(|value| (header::WWW_AUTHENTICATE, value)),
    ];
    response.headers_mut().extend(extra.into_iter().flatten());
    response
}
