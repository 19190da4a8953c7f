//! The listeners of a hub: the feed for sidecars, and a socket of this machine for administrators.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http_body::Frame;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::public::form;
use crate::hub::{CommandError, Hub, LedgerError, LogoutError, Reader, RevocationRequest};
use crate::telemetry::chain;

/// Snapshots that are sent at the same time; further readers come again.
const MAX_SNAPSHOTS: usize = 32;
/// Bytes of a request.
const MAX_BODY_BYTES: usize = 16 << 10;

type Next = Pin<Box<dyn Future<Output = (Option<Arc<str>>, Reader)> + Send>>;

/// The state that the routes share.
#[derive(Clone, Debug)]
struct HubListener {
    hub: Arc<Hub>,
    snapshots: Arc<Semaphore>,
    stopping: CancellationToken,
}

/// The feed.
pub(super) fn feed_routes(hub: &Arc<Hub>, stopping: CancellationToken) -> Router {
    let snapshots = Arc::new(Semaphore::new(MAX_SNAPSHOTS));
    Router::new().route("/v1/snapshot", get(snapshot)).route("/v1/feed", get(feed)).with_state(HubListener {
        hub: Arc::clone(hub),
        snapshots,
        stopping,
    })
}

/// Changes and the state.
pub(super) fn admin_routes(hub: &Arc<Hub>) -> Router {
    Router::new()
        .route("/v1/revocations", post(revoke))
        .route("/v1/revoke", post(revoke_token))
        .route("/v1/hub/status", get(status))
        .route("/v1/hub/unmatched", get(unmatched))
        .route("/v1/hub/backup", post(back_up))
        .route("/v1/hub/forget", post(forget))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::clone(hub))
}

/// `GET /v1/snapshot`.
async fn snapshot(State(listener): State<HubListener>, headers: HeaderMap) -> Response {
    if !listener.admits(&headers).await {
        return unauthorized();
    }
    let Ok(permit) = listener.snapshots.try_acquire_owned() else { return later("too many snapshots are sent") };
    let hub = listener.hub;
    match tokio::task::spawn_blocking(move || hub.snapshot()).await {
        Ok(Ok(bytes)) => {
            let body = Whole { bytes: Some(bytes), _permit: permit };
            ([(header::CONTENT_TYPE, "application/octet-stream")], Body::new(body)).into_response()
        }
        Ok(Err(error)) => unavailable(&error),
        Err(_) => later("the snapshot was not made"),
    }
}

/// `GET /v1/feed?after=<epoch>.<seq>`.
async fn feed(State(listener): State<HubListener>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    if !listener.admits(&headers).await {
        return unauthorized();
    }
    let after = query.as_deref().and_then(|query| query.strip_prefix("after=")).unwrap_or_default().to_owned();
    let hub = Arc::clone(&listener.hub);
    match tokio::task::spawn_blocking(move || hub.reader(&after)).await {
        Ok(Ok(Some(reader))) => {
            let lines = Lines { next: next(reader, listener.stopping.clone()), stopping: listener.stopping };
            ([(header::CONTENT_TYPE, "application/jsonl")], Body::new(lines)).into_response()
        }
        Ok(Ok(None)) => later("hub.feed_readers are connected"),
        Ok(Err(error)) => unavailable(&error),
        Err(_) => later("the feed was not opened"),
    }
}

/// `POST /v1/revocations`: 200 with the number of the change, once it is on disk.
async fn revoke(State(hub): State<Arc<Hub>>, body: Bytes) -> Response {
    let request: RevocationRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return answer(StatusCode::BAD_REQUEST, &json!({"error": error.to_string()})),
    };
    // The socket is its owner's alone.
    match tokio::task::spawn_blocking(move || hub.execute(&request, "admin_socket")).await {
        Ok(Ok(seq)) => answer(StatusCode::OK, &json!({ "seq": seq })),
        Ok(Err(CommandError::Ledger(error))) => unavailable(&error),
        Ok(Err(error)) => answer(StatusCode::BAD_REQUEST, &json!({"error": error.to_string()})),
        Err(_) => later("the change was not made"),
    }
}

/// `POST /v1/revoke` with the form `token` (RFC 7009): 200 also for a token that is accepted nowhere.
async fn revoke_token(State(hub): State<Arc<Hub>>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(token) = form(&headers, &body, "token") else {
        return answer(StatusCode::BAD_REQUEST, &json!({"error": "expected a form with one `token`"}));
    };
    let reason = form(&headers, &body, "reason").unwrap_or_default();
    match hub.revoke_token(&token, &reason, "admin_socket").await {
        Ok(seq) => answer(StatusCode::OK, &json!({ "seq": seq })),
        Err(LogoutError::Ledger(error)) => unavailable(&error),
        Err(error) => later(&error.to_string()),
    }
}

/// `GET /v1/hub/status`.
async fn status(State(hub): State<Arc<Hub>>) -> Response {
    answer(StatusCode::OK, &hub.status())
}

/// `GET /v1/hub/unmatched`.
async fn unmatched(State(hub): State<Arc<Hub>>) -> Response {
    answer(StatusCode::OK, &json!({"unmatched": hub.unmatched()}))
}

/// `POST /v1/hub/forget` with a source that is configured no more, and a reason.
async fn forget(State(hub): State<Arc<Hub>>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |name: &str| request.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (source, reason) = (text("source"), text("reason"));
    match tokio::task::spawn_blocking(move || hub.forget(&source, &reason, "admin_socket")).await {
        Ok(Ok(entries)) => answer(StatusCode::OK, &json!({ "entries": entries })),
        Ok(Err(CommandError::Ledger(error))) => unavailable(&error),
        Ok(Err(error)) => answer(StatusCode::BAD_REQUEST, &json!({"error": error.to_string()})),
        Err(_) => later("the source was not forgotten"),
    }
}

/// `POST /v1/hub/backup` with the path of a new file on the hub's machine.
async fn back_up(State(hub): State<Arc<Hub>>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(path) = request.get("path").and_then(Value::as_str).map(PathBuf::from).filter(|path| path.is_absolute())
    else {
        return answer(StatusCode::BAD_REQUEST, &json!({"error": "`path`: expected an absolute path"}));
    };
    match tokio::task::spawn_blocking(move || hub.back_up(&path)).await {
        Ok(Ok(())) => answer(StatusCode::OK, &json!({})),
        Ok(Err(error)) => unavailable(&error),
        Err(_) => later("the copy was not made"),
    }
}

impl HubListener {
    /// Reads files, so off the workers.
    async fn admits(&self, headers: &HeaderMap) -> bool {
        let bearer = bearer_of(headers);
        let hub = Arc::clone(&self.hub);
        tokio::task::spawn_blocking(move || hub.admits(bearer.as_deref())).await.unwrap_or(false)
    }
}

/// The bearer token of a request.
pub(super) fn bearer_of(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok())?;
    let (_, bearer) = text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))?;
    Some(bearer.trim().to_owned())
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

fn unauthorized() -> Response {
    let body = json!({"error": "the credential is none of hub.token_files"});
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], format!("{body}\n")).into_response()
}

fn later(why: &str) -> Response {
    let body = json!({ "error": why });
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], format!("{body}\n")).into_response()
}

/// Nothing was changed, or cannot be read.
fn unavailable(error: &LedgerError) -> Response {
    let text = chain(error);
    tracing::error!(error = text, "a request was not served");
    later(&text)
}

/// A snapshot, which holds its permit until it is sent.
struct Whole {
    bytes: Option<Bytes>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Lines of the feed until the reader has to open it again, or everything stops.
struct Lines {
    next: Next,
    stopping: CancellationToken,
}

fn next(mut reader: Reader, stopping: CancellationToken) -> Next {
    Box::pin(async move {
        let line = tokio::select! {
            () = stopping.cancelled() => None,
            line = reader.next() => line,
        };
        (line, reader)
    })
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Poll::Ready((line, reader)) = self.next.as_mut().poll(cx) else { return Poll::Pending };
        let stopping = self.stopping.clone();
        self.next = next(reader, stopping);
        Poll::Ready(line.map(|line| Ok(Frame::data(Bytes::copy_from_slice(line.as_bytes())))))
    }
}
