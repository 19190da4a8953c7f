//! Decisions as they are made, for administrators of this machine: one event of the decision log on each line, without end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use http_body::Frame;
use tokio_util::sync::CancellationToken;

use super::{Call, Failure};
use crate::decision_queue::Subscriber;

type Next = Pin<Box<dyn Future<Output = (Option<Bytes>, Subscriber)> + Send>>;

/// `GET /v1/decisions`.
pub(super) async fn decisions(call: Call) -> Result<Response, Failure> {
    let decision_queue = call
        .api
        .decision_queue
        .as_ref()
        .ok_or_else(|| Failure::not_found("the stream of decisions is disabled".to_owned()))?;
    let events = Events::new(decision_queue.watchers().watch(), call.api.stopping.clone());
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(events)).into_response())
}

/// Lines until everything stops.
struct Events {
    next: Next,
    stopping: CancellationToken,
}

impl Events {
    fn new(events: Subscriber, stopping: CancellationToken) -> Self {
        Self { next: next(events, stopping.clone()), stopping }
    }
}

/// The next line; nothing once there is none to come.
fn next(mut events: Subscriber, stopping: CancellationToken) -> Next {
    Box::pin(async move {
        let received = tokio::select! {
            () = stopping.cancelled() => None,
            received = events.next() => Some(received),
        };
        let line = received.map(|received| match received {
            Ok(event) => Bytes::from(format!("{event}\n")),
            // A slow subscriber receives the number of events that it has missed; checks do not wait for it.
            Err(missed) => Bytes::from(format!("{{\"missed\":{missed}}}\n")),
        });
        (line, events)
    })
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Poll::Ready((line, events)) = self.next.as_mut().poll(cx) else { return Poll::Pending };
        let stopping = self.stopping.clone();
        self.next = next(events, stopping);
        Poll::Ready(line.map(|line| Ok(Frame::data(line))))
    }
}
