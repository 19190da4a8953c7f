//! The listener of a hub that identity providers reach.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, post};
use serde_json::json;
use tokio::sync::Semaphore;

use super::hub::bearer_of;
use crate::hub::{Hub, LogoutError, ScimAnswer, ScimRequest, SetError};
use crate::telemetry::chain;

/// Connections; beyond, the oldest is closed once it waits for a request.
pub(super) const MAX_CONNECTIONS: usize = 2_048;
/// Bytes of a request.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Bytes of a form.
const MAX_FORM_BYTES: usize = 16 << 10;
/// The media type of a SET, and its bytes at most.
const SET_MEDIA: &str = "application/secevent+jwt";
const MAX_SET_BYTES: usize = 64 << 10;
/// Requests that are carried out at the same time, or wait for the disk.
const MAX_IN_FLIGHT: usize = 256;
/// Logout tokens and SETs that are carried out at the same time.
const MAX_UNAUTHENTICATED: usize = 64;
/// The longest wait for a body.
const BODY_WAIT: Duration = Duration::from_secs(10);
/// A provider gets its answer within that, or comes again.
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
struct PublicListener {
    hub: Arc<Hub>,
    in_flight: Arc<Semaphore>,
    /// For what is authenticated by its contents: it takes no place of directories.
    unauthenticated: Arc<Semaphore>,
}

pub(super) fn routes(hub: &Arc<Hub>) -> Router {
    let listener = PublicListener {
        hub: Arc::clone(hub),
        in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
        unauthenticated: Arc::new(Semaphore::new(MAX_UNAUTHENTICATED)),
    };
    Router::new()
        .route("/scim/{provider}/v2", any(scim))
        .route("/scim/{provider}/v2/", any(scim))
        .route("/scim/{provider}/v2/{*rest}", any(scim))
        .route("/logout/{name}", post(logout))
        .route("/ssf/{name}/events", post(events))
        .with_state(listener)
}

/// Everything of a SCIM provider.
async fn scim(
    State(listener): State<PublicListener>,
    Path(parts): Path<Vec<String>>,
    RawQuery(query): RawQuery,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Ok(permit) = Arc::clone(&listener.in_flight).try_acquire_owned() else {
        return response(busy("too many requests are carried out"));
    };
    let mut parts = parts.into_iter();
    let provider = parts.next().unwrap_or_default();
    let rest = parts.next().unwrap_or_default();
    let bearer = bearer_of(&headers);
    // Only then is a body taken.
    let (hub, asked, shown) = (Arc::clone(&listener.hub), provider.clone(), bearer.clone());
    let is_admitted = tokio::task::spawn_blocking(move || hub.admits_provider(&asked, shown.as_deref())).await;
    if !is_admitted.unwrap_or(false) {
        return response(ScimAnswer::error(401, None, "the credential is none of this provider"));
    }
    let Some(body) = read(body, MAX_BODY_BYTES).await else {
        return response(ScimAnswer::error(413, None, "the body is larger than 1 MiB, or did not come in time"));
    };
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into());
    let query = query.unwrap_or_default();
    let request = ScimRequest {
        method,
        path: rest.split('/').map(str::to_owned).collect(),
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        content_type,
        body,
    };
    let hub = listener.hub;
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        hub.scim(&provider, bearer.as_deref(), &request)
    });
    let answer = match tokio::time::timeout(DEADLINE, work).await {
        Ok(Ok(answer)) => answer,
        // It may still be carried out; a provider that comes again finds the state as it is then.
        Ok(Err(_)) | Err(_) => busy("the request was not carried out in time"),
    };
    response(answer)
}

/// `POST /logout/<name>` with the form `logout_token` (OpenID Connect Back-Channel Logout 1.0, section 2.5).
async fn logout(
    State(listener): State<PublicListener>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Ok(_permit) = listener.unauthenticated.try_acquire() else { return logout_answer(&Err(LogoutError::Busy)) };
    let body = read(body, MAX_FORM_BYTES).await.unwrap_or_default();
    let Some(token) = form(&headers, &body, "logout_token") else {
        return logout_answer(&Err(LogoutError::Invalid("expected a form with one `logout_token`".to_owned())));
    };
    let outcome = tokio::time::timeout(DEADLINE, Arc::clone(&listener.hub).log_out(&name, &token)).await;
    logout_answer(&outcome.unwrap_or(Err(LogoutError::Keys)))
}

fn logout_answer(outcome: &Result<(), LogoutError>) -> Response {
    let (status, retry) = match outcome {
        Ok(()) => (StatusCode::OK, None),
        Err(LogoutError::Absent) => (StatusCode::NOT_FOUND, None),
        Err(LogoutError::Invalid(_)) => (StatusCode::BAD_REQUEST, None),
        Err(LogoutError::Busy) => (StatusCode::TOO_MANY_REQUESTS, Some(1)),
        Err(LogoutError::Keys | LogoutError::Ledger(_)) => (StatusCode::SERVICE_UNAVAILABLE, Some(30)),
    };
    let mut response = match outcome {
        Ok(()) => status.into_response(),
        Err(error) => {
            if let LogoutError::Ledger(error) = error {
                tracing::error!(error = chain(error), "a logout token was not carried out");
            }
            let code = if status == StatusCode::BAD_REQUEST { "invalid_request" } else { "temporarily_unavailable" };
            let body = json!({"error": code, "error_description": error.to_string()});
            (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
        }
    };
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().extend(retry.map(|seconds: u64| (header::RETRY_AFTER, HeaderValue::from(seconds))));
    response
}

/// `POST /ssf/<name>/events` with a SET (RFC 8935): 202 once it is on disk.
async fn events(
    State(listener): State<PublicListener>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Ok(_permit) = listener.unauthenticated.try_acquire() else { return set_answer(&Err(SetError::Keys)) };
    let body = read(body, MAX_SET_BYTES).await.unwrap_or_default();
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_set = media.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case(SET_MEDIA));
    let text = std::str::from_utf8(&body).ok().filter(|text| is_set && text.len() <= MAX_SET_BYTES);
    let Some(text) = text else {
        let message = format!("expected {SET_MEDIA} of at most {MAX_SET_BYTES} bytes");
        return set_answer(&Err(SetError::Invalid("invalid_request", message)));
    };
    let bearer = bearer_of(&headers);
    let outcome = tokio::time::timeout(DEADLINE, listener.hub.receive(&name, bearer, text.trim())).await;
    set_answer(&outcome.unwrap_or(Err(SetError::Keys)))
}

fn set_answer(outcome: &Result<(), SetError>) -> Response {
    match outcome {
        Ok(()) => StatusCode::ACCEPTED.into_response(),
        Err(SetError::Absent) => StatusCode::NOT_FOUND.into_response(),
        Err(SetError::Invalid(code, description)) => {
            let body = json!({"err": code, "description": description}).to_string();
            let language = (header::CONTENT_LANGUAGE, "en");
            (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/json"), language], body).into_response()
        }
        // Never 400: the transmitter would drop the event.
        Err(error) => {
            if let SetError::Ledger(error) = error {
                tracing::error!(error = chain(error), "a SET was not carried out");
            }
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "30")]).into_response()
        }
    }
}

/// The one value of this name in a form; `None` for another type, a longer body, or several.
pub(super) fn form(headers: &HeaderMap, body: &[u8], name: &str) -> Option<String> {
    let media = headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim();
    if !media.eq_ignore_ascii_case("application/x-www-form-urlencoded") || body.len() > MAX_FORM_BYTES {
        return None;
    }
    let mut values = url::form_urlencoded::parse(body).filter(|(known, _)| known == name).map(|(_, value)| value);
    values.next().filter(|_| values.next().is_none()).map(std::borrow::Cow::into_owned)
}

/// A body of at most `limit` bytes; `None` for a longer one, and for one that does not come in time.
async fn read(body: Body, limit: usize) -> Option<Bytes> {
    tokio::time::timeout(BODY_WAIT, axum::body::to_bytes(body, limit)).await.ok()?.ok()
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
