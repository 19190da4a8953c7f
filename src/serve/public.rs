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
    /// For logout tokens and SETs: they leave the permits of directories alone.
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
    let name = parts.next().unwrap_or_default();
    let rest = parts.next().unwrap_or_default();
    let (hub, bearer) = (Arc::clone(&listener.hub), bearer_of(&headers));
    let found = tokio::task::spawn_blocking(move || hub.provider(&name, bearer.as_deref())).await;
    // One answer whether the provider or the credential is wrong; only then is a body taken.
    let Ok(Some(provider)) = found else {
        return response(ScimAnswer::error(401, None, "the credential is none of this provider"));
    };
    let body = match read(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(NoBody::TooLarge) => return response(ScimAnswer::error(413, None, "the body is larger than 1 MiB")),
        Err(NoBody::Late) => return response(busy("the body did not come in time")),
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
        hub.scim(&provider, &request)
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
    let body = match read(body, MAX_FORM_BYTES).await {
        Ok(body) => body,
        Err(NoBody::TooLarge) => Bytes::new(),
        Err(NoBody::Late) => return logout_answer(&Err(LogoutError::Late)),
    };
    let Some(token) = form(&headers, &body, "logout_token") else {
        return logout_answer(&Err(LogoutError::Invalid("expected a form with one `logout_token`".to_owned())));
    };
    let outcome = tokio::time::timeout(DEADLINE, Arc::clone(&listener.hub).log_out(&name, &token)).await;
    logout_answer(&outcome.unwrap_or(Err(LogoutError::Late)))
}

fn logout_answer(outcome: &Result<(), LogoutError>) -> Response {
    let (status, retry) = match outcome {
        Ok(()) => (StatusCode::OK, None),
        Err(LogoutError::Absent) => (StatusCode::NOT_FOUND, None),
        Err(LogoutError::Invalid(_)) => (StatusCode::BAD_REQUEST, None),
        Err(LogoutError::Busy) => (StatusCode::TOO_MANY_REQUESTS, Some(1)),
        Err(LogoutError::Keys | LogoutError::Late | LogoutError::Ledger(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, Some(30))
        }
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
    let Ok(_permit) = listener.unauthenticated.try_acquire() else { return set_answer(&Err(SetError::Late)) };
    let (hub, bearer) = (Arc::clone(&listener.hub), bearer_of(&headers));
    let found = tokio::task::spawn_blocking(move || hub.stream(&name, bearer.as_deref())).await;
    let stream = match found.unwrap_or(Err(SetError::Late)) {
        Ok(stream) => stream,
        Err(error) => return set_answer(&Err(error)),
    };
    let body = match read(body, MAX_SET_BYTES).await {
        Ok(body) => body,
        Err(NoBody::TooLarge) => Bytes::new(),
        Err(NoBody::Late) => return set_answer(&Err(SetError::Late)),
    };
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_set = media.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case(SET_MEDIA));
    let Some(text) = std::str::from_utf8(&body).ok().filter(|text| is_set && !text.is_empty()) else {
        let message = format!("expected {SET_MEDIA} of 1 to {MAX_SET_BYTES} bytes");
        return set_answer(&Err(SetError::Invalid("invalid_request", message)));
    };
    let outcome = tokio::time::timeout(DEADLINE, listener.hub.receive(&stream, text.trim())).await;
    set_answer(&outcome.unwrap_or(Err(SetError::Late)))
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

/// Why there is no body.
enum NoBody {
    TooLarge,
    /// It did not come in time, or the connection has ended.
    Late,
}

/// A body of at most `limit` bytes.
async fn read(body: Body, limit: usize) -> Result<Bytes, NoBody> {
    match tokio::time::timeout(BODY_WAIT, axum::body::to_bytes(body, limit)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if is_too_large(&error) => Err(NoBody::TooLarge),
        Ok(Err(_)) | Err(_) => Err(NoBody::Late),
    }
}

/// The body was longer than it may be.
fn is_too_large(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = inner.source();
    }
    false
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
