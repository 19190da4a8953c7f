//! One HTTP/2 connection, with the checks on it done where they arrive.
//!
//! A check takes microseconds, less than it costs to hand it to another thread. So the streams that one read of the
//! socket brought are all answered by the task that read them, and their answers leave in one write, unless one has to wait or
//! follows a slow one.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::bind::Connection;
use super::refusal::Refusal;
use super::runner::{Runner, Work};
use crate::telemetry::Refused;

/// Envoy's own greatest limit for headers is 8 MiB; a smaller one here would answer 431, which is a gRPC error.
const MAX_HEADER_LIST_BYTES: u32 = 9 << 20;
/// Streams are bounded by `Limits`, which denies; HTTP/2's own bound would refuse.
const MAX_STREAMS: u32 = 100_000;
/// Envoy resets the streams of checks that time out; that must not end the connection.
const MAX_PENDING_RESETS: usize = 4_096;
/// Frames of a connection's life that come for streams which are closed already, as the rest of what was refused: h2 counts each as a reset
/// of its own and ends the connection beyond, with all checks on it.
const MAX_LATE_FRAMES: usize = 1 << 20;
const WINDOW_BYTES: u32 = 1 << 20;

/// How long a peer has to say that it speaks HTTP/2. Whoever only connects would hold a place of `limits.connections` for ever: pings
/// begin after that.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// What it says (RFC 9113 section 3.4), in bytes.
const PREFACE_BYTES: usize = 24;

/// How long the peer has to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How a connection lives.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionSettings {
    /// A peer that says nothing for so long is asked whether it is there, and left when it does not answer.
    pub keepalive: Duration,
    /// After so long, give or take a tenth, the peer is told to go away, so that new replicas get their share.
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

/// Takes the work of a connection's streams; whoever polls the connection does it.
#[derive(Clone, Default)]
struct Queue(Arc<Mutex<Queued>>);

#[derive(Default)]
struct Queued {
    works: Vec<(Work, bool)>,
    /// Whether the work that comes next is only a refusal: hyper hands it over as soon as it has the future of its answer.
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

/// What becomes of a request.
pub struct Answering<F> {
    pub answer: F,
    /// Whether it is refused whatever it says.
    pub is_refusal: bool,
}

/// Serves `connection` until the peer is done; once the tasks of `runner` are to stop, or it is old, it is told to go away, and what it has asked by
/// then is answered.
///
/// # Errors
/// The peer speaks something else than HTTP/2.
pub async fn serve_connection<F, B>(
    connection: Connection,
    settings: ConnectionSettings,
    answer: impl Fn(Request<Incoming>) -> Answering<F>,
    runner: Runner,
) -> Result<(), Refusal>
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
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LATE_FRAMES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES.saturating_mul(4));
    let service = hyper::service::service_fn(|request| {
        let Answering { answer, is_refusal } = answer(request);
        queue.0.lock().is_refusal = is_refusal;
        async { Ok::<_, Infallible>(answer.await) }
    });
    let heard = Arc::new(Heard::default());
    let connection = Overheard { inner: connection, heard: Arc::clone(&heard) };
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
    let mut has_begun = false;
    let mut stopped = false;
    std::future::poll_fn(|cx| {
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
                // How it ended is told by what was heard: the peer went away, or spoke no HTTP/2.
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if idle => break,
                Poll::Pending => {}
            }
        }
        has_begun = has_begun || heard.bytes.load(Ordering::Relaxed) >= PREFACE_BYTES;
        // A peer that has said nothing yet cannot be told to go away, and has asked nothing.
        let is_lost = !has_begun && (stopped || silence.as_mut().poll(cx).is_ready());
        if is_lost { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    heard.stranger().map_or(Ok(()), |why| Err(Refusal { reason: Refused::Protocol, why: why.to_owned() }))
}

/// How a peer has begun.
#[derive(Debug, Default)]
struct Heard {
    /// What was read, until that is more than a preface.
    bytes: AtomicUsize,
    /// The first bytes, where they came together.
    first: OnceLock<[u8; 3]>,
}

impl Heard {
    /// What the peer speaks instead of HTTP/2.
    fn stranger(&self) -> Option<&'static str> {
        match self.first.get()? {
            b"PRI" => None,
            // A record of a handshake (RFC 8446 section 5.1).
            [0x16, 0x03, _] => Some("TLS is spoken to a listener that has none"),
            _ => Some("something else than HTTP/2 is spoken"),
        }
    }
}

/// A connection whose first bytes are looked at.
struct Overheard {
    inner: Connection,
    heard: Arc<Heard>,
}

impl AsyncRead for Overheard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.heard.bytes.load(Ordering::Relaxed) < PREFACE_BYTES {
            let new = buf.filled().get(before..).unwrap_or_default();
            if let (0, Some(first)) = (self.heard.bytes.fetch_add(new.len(), Ordering::Relaxed), new.first_chunk()) {
                self.heard.first.get_or_init(|| *first);
            }
        }
        read
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
