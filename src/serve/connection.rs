//! One HTTP/2 connection, with the checks on it done where they arrive.
//!
//! A check takes microseconds, less than it costs to hand it to another thread. So the streams that one read of the
//! socket brought are all answered by the task that read them, and their answers leave in one write, unless one has to wait or
//! follows a slow one.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection_guard::{ConnectionState, GuardedConnection, Quotas};
use super::listener::Connection;
use super::metrics::RejectReason;
use super::rejected_connections::RejectedConnection;
use super::stream_executor::{StreamExecutor, Work};

/// A longer list of headers is answered 431, which Envoy counts as an error. So this is more than Envoy can be made to send: the headers of
/// the call, with those of tracing that came with the request, whose list is bounded by `max_request_headers_kb`, 60 by default.
const MAX_HEADER_LIST_BYTES: u32 = 1 << 20;
/// No table of headers is kept for a peer: entries of it would stand for many times their bytes.
const HEADER_TABLE_BYTES: u32 = 0;
/// The longest time a peer may leave written data unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams are bounded by `Limits`, which denies; HTTP/2's own bound would refuse.
const MAX_STREAMS: u32 = 100_000;
/// Envoy resets the streams of checks that time out; that must not end the connection.
const MAX_PENDING_RESETS: usize = 4_096;
/// Frames of a connection's life that come for streams which are closed already, as the rest of what was refused: h2 counts each as a reset
/// of its own and ends the connection beyond, with all checks on it.
const MAX_LATE_FRAMES: usize = 1 << 20;
const WINDOW_BYTES: u32 = 1 << 20;

/// The time limit for the HTTP/2 preface. An idle TCP connection would otherwise hold a permit of `limits.connections` for ever: pings
/// begin after that.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// The time limit for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Settings of connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionSettings {
    /// A peer that says nothing for so long is asked whether it is there, and left when it does not answer.
    pub keepalive: Duration,
    /// Maximum age, give or take a tenth, before GOAWAY, so that new replicas get their share.
    pub max_age: Option<Duration>,
}

impl ConnectionSettings {
    /// When a connection that begins now has to end.
    fn end(self) -> Option<Instant> {
        let age = self.max_age?;
        // Replicas that start together must not lose all their peers together.
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ()) % 201;
        let permille = u32::try_from(random).unwrap_or(100).saturating_add(900);
        Instant::now().checked_add(age.saturating_mul(permille) / 1_000)
    }
}

/// Executes the streams of a connection on the task that polls the connection.
#[derive(Clone, Default)]
struct Queue(Arc<Mutex<QueuedStream>>);

#[derive(Default)]
struct QueuedStream {
    works: Vec<(Work, bool)>,
    /// The next work is only a rejection: hyper hands it over as soon as it has the future of its answer.
    is_refusal: bool,
}

impl<F> hyper::rt::Executor<F> for Queue
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, work: F) {
        let mut queued = self.0.lock();
        let is_refusal = std::mem::take(&mut queued.is_refusal);
        queued.works.push((Box::pin(work), is_refusal));
    }
}

/// The outcome of a request.
pub struct Answering<F> {
    pub answer: F,
    /// It is rejected whatever it contains.
    pub is_refusal: bool,
}

/// Serves `connection` until the peer closes it; on shutdown, or at its maximum age, the peer receives GOAWAY, and its requests up to
/// then is answered.
///
/// # Errors
/// The peer speaks something else than HTTP/2, or exceeded a quota.
pub async fn serve_connection<F, B>(
    connection: Connection,
    settings: ConnectionSettings,
    quotas: Arc<Quotas>,
    answer: impl Fn(Request<Incoming>, &Arc<ConnectionState>) -> Answering<F>,
    runner: StreamExecutor,
) -> Result<(), RejectedConnection>
where
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let queue = Queue::default();
    let mut builder = http2::Builder::new(queue.clone());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval((!settings.keepalive.is_zero()).then_some(settings.keepalive))
        .keep_alive_timeout(PING_TIMEOUT)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .header_table_size(HEADER_TABLE_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LATE_FRAMES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES.saturating_mul(4));
    let state = ConnectionState::new(quotas);
    let service = hyper::service::service_fn(|request| {
        let Answering { answer, is_refusal } = answer(request, &state);
        queue.0.lock().is_refusal = is_refusal;
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = GuardedConnection::new(connection, Arc::clone(&state));
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(connection), service));
    let (stopping, end) = (runner.stopping(), settings.end());
    let mut stop = std::pin::pin!(async move {
        let aged = async {
            match end {
                Some(end) => tokio::time::sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stopping => {}
            () = aged => {}
        }
    });
    let mut silence = std::pin::pin!(tokio::time::sleep(PREFACE_TIMEOUT));
    let mut unread = std::pin::pin!(tokio::time::sleep(WRITE_TIMEOUT));
    let mut exceeded = std::pin::pin!(state.exceeded());
    let (mut stopped, mut was_blocked) = (false, false);
    let mut is_unread = false;
    std::future::poll_fn(|cx| {
        state.begin_poll();
        if exceeded.as_mut().poll(cx).is_ready() || state.excess().is_some() {
            return Poll::Ready(());
        }
        if !stopped && stop.as_mut().poll(cx).is_ready() {
            stopped = true;
            serving.as_mut().graceful_shutdown();
        }
        loop {
            let ended = serving.as_mut().poll(cx);
            let works = std::mem::take(&mut queue.0.lock().works);
            let idle = works.is_empty();
            works.into_iter().for_each(|(work, is_refusal)| runner.run(work, is_refusal));
            match ended {
                // The received bytes explain the end: the peer went away, or spoke no HTTP/2.
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if idle => break,
                Poll::Pending => {}
            }
        }
        let is_blocked = state.is_write_blocked();
        if is_blocked && !was_blocked {
            unread.as_mut().reset(Instant::now() + WRITE_TIMEOUT);
        }
        was_blocked = is_blocked;
        is_unread = is_blocked && unread.as_mut().poll(cx).is_ready();
        // A peer without a preface cannot receive GOAWAY, and has no requests.
        let is_lost = !state.has_preface() && (stopped || silence.as_mut().poll(cx).is_ready());
        if is_lost || is_unread { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let excess = state.excess().or_else(|| is_unread.then_some("the peer has read nothing for 10 seconds"));
    match (excess, state.other_protocol()) {
        (Some(why), _) => Err(RejectedConnection { reason: RejectReason::QuotaExceeded, why: why.to_owned() }),
        (None, Some(why)) => Err(RejectedConnection { reason: RejectReason::Protocol, why: why.to_owned() }),
        (None, None) => Ok(()),
    }
}
