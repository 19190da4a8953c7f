//! The ext_authz listener: `envoy.service.auth.v3.Authorization/Check`, health and reflection.
//!
//! Messages are read as raw bytes here, not by the framework, so that what it would answer with a gRPC error (a message
//! that is too large, text that is not UTF-8, a panic) is an explicit denial: `failure_mode_allow` turns errors into
//! allows, but never a denial.
//!
//! One check, from the bytes on the socket to those of the answer:
//!
//! ```text
//! connection task (serve_connection)        this file                       stream_executor
//! ----------------------------------        ---------                       ---------------
//! hyper reads HEADERS of a stream    ---->  respond(): deadline and permit
//!   asks the service for an answer   <----  a future, not polled yet
//!   gives the stream to Queue
//! drains Queue                       -------------------------------------> run(work)
//!                                                                             here, or after slow work
//!                                           Arrival::answer(): message      <-- polled   in the overflow queue
//!                                             Checker::check()
//!                                           encode(): CheckResponse         --> done
//! hyper writes all answers at once   <--------------------------------------
//! ```
//!
//! A stream that Envoy resets drops its future: `Arrival` then counts the check as cancelled.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use prost::Message as _;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tower_service::Service as _;

use super::connection::{Answering, ConnectionSettings, serve_connection};
use super::connection_guard::{ConnectionState, Quotas, UnreadAnswer};
use super::handshakes::Handshakes;
use super::health::Health;
use super::limits::{INCOMPLETE_BYTES, Limits, Share};
use super::listener::Listener;
use super::metrics::RejectReason;
use super::rejected_connections::{RejectedConnection, RejectedConnections};
use super::stream_executor::StreamExecutor;
use super::tls::Tls;
use crate::check::{Answer, CheckDeadline, Checker, Fault, GrpcCode};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Metrics;

const SERVICE: &str = "envoy.service.auth.v3.Authorization";
const CHECK_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// The prefix of a gRPC frame: a flag and a 32-bit length.
const FRAME_PREFIX: usize = 5;
/// The part of Envoy's deadline that is left to receive the answer.
const DEADLINE_MARGIN: Duration = Duration::from_millis(20);

/// After a wait of this length a check is worth a look whether anybody still waits for it: a caller that opens and resets streams
/// would have them all decided, while others wait.
const RESET_CHECK_AFTER: Duration = Duration::from_millis(5);

/// Settings of the listener.
#[derive(Clone, Debug)]
pub struct GrpcSettings {
    /// `grpc-max-recv-msg-size`.
    pub max_message_bytes: usize,
    /// The longest that one check may take.
    pub check_timeout: Duration,
    pub max_checks: usize,
    pub max_bytes_in_flight: usize,
    /// For answers that peers do not read.
    pub max_unread_bytes: usize,
    /// For header blocks that are not complete.
    pub max_header_block_bytes: usize,
    /// For checks whose message is not complete.
    pub max_incomplete_bytes: usize,
    /// After their handshakes; more are closed at once.
    pub max_connections: usize,
    pub reflection: bool,
    pub connection: ConnectionSettings,
}

/// The gRPC server.
#[derive(Debug)]
pub struct GrpcServer {
    pub settings: GrpcSettings,
    pub checker: Arc<Checker>,
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub tls: Option<Arc<Tls>>,
}

impl GrpcServer {
    /// Serves `listener` until `stop` comes, then lets the checks in flight finish.
    ///
    /// # Errors
    /// The reflection service cannot be built.
    pub async fn serve(
        self,
        listener: Listener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic_reflection::server::Error> {
        let (reporter, health_service) = tonic_health::server::health_reporter();
        let others = self.other_services(health_service)?;
        let GrpcServer { settings, checker, health, metrics, tls } = self;
        let shared = Arc::new(Shared {
            checker,
            limits: Arc::new(Limits::new(
                settings.max_checks,
                settings.max_bytes_in_flight,
                settings.max_incomplete_bytes / INCOMPLETE_BYTES,
            )),
            max_message_bytes: settings.max_message_bytes,
            check_timeout: settings.check_timeout,
        });
        let connections = Lifecycle::default();
        let runner =
            StreamExecutor::new(connections.clone(), tokio::runtime::Handle::current().metrics().num_workers());
        let places = Arc::new(Semaphore::new(settings.max_connections));
        let quotas = Arc::new(Quotas::new(settings.max_unread_bytes, settings.max_header_block_bytes));
        let refusals = Arc::new(RejectedConnections::new(&metrics, "grpc"));
        let mut handshakes = tls.map(|tls| Handshakes::new(tls, Arc::clone(&refusals)));
        let accepting = async {
            loop {
                let connection = match &mut handshakes {
                    None => listener.next_connection().await,
                    Some(handshakes) => handshakes.next_connection(&listener).await,
                };
                let peer = connection.peer();
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    let why = format!("limits.connections ({}) are open", settings.max_connections);
                    refusals.log(&RejectedConnection { reason: RejectReason::Limit, why }, &peer);
                    continue;
                };
                let (shared, others, refusals) = (Arc::clone(&shared), others.clone(), Arc::clone(&refusals));
                let (runner, quotas) = (runner.clone(), Arc::clone(&quotas));
                connections.spawn(async move {
                    let _place = place;
                    let answer = move |request, state: &_| respond(&shared, &others, request, state);
                    let served = serve_connection(connection, settings.connection, quotas, answer, runner).await;
                    if let Err(refusal) = served {
                        refusals.log(&refusal, &peer);
                    }
                });
            }
        };
        tokio::select! {
            () = stop => {}
            never = accepting => never,
            never = report_health(&reporter, &health) => match never {},
        }
        // A connection is refused rather than accepted and never answered.
        drop((handshakes, listener));
        connections.stop();
        tokio::select! {
            () = connections.ended() => Ok(()),
            never = report_health(&reporter, &health) => match never {},
        }
    }

    /// Services beside checks, served by the framework.
    fn other_services(
        &self,
        health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
    ) -> Result<Routes, tonic_reflection::server::Error> {
        let mut routes = Routes::new(health);
        if self.settings.reflection {
            let builder = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(stepgate_proto::EXT_AUTHZ_DESCRIPTORS)
            };
            routes = routes.add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?);
        }
        Ok(routes.prepare())
    }
}

/// Keeps `grpc.health.v1` in step with readiness.
async fn report_health(reporter: &tonic_health::server::HealthReporter, health: &Health) -> Infallible {
    let mut reported = None;
    loop {
        let ready = health.is_ready();
        if reported != Some(ready) {
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            reporter.set_service_status("", status).await;
            reporter.set_service_status(SERVICE, status).await;
            reported = Some(ready);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The state shared by all connections.
struct Shared {
    checker: Arc<Checker>,
    limits: Arc<Limits>,
    max_message_bytes: usize,
    check_timeout: Duration,
}

/// Answers a request. Time in the queue behind other streams of its connection counts: the deadline begins here, not when the
/// future is polled.
fn respond(
    shared: &Arc<Shared>,
    others: &Routes,
    mut request: Request<Incoming>,
    state: &Arc<ConnectionState>,
) -> Answering<impl Future<Output = Response<Body>> + Send + use<>> {
    let call = if request.uri().path() == CHECK_PATH {
        // Nothing else of the headers is needed; a map of them may be large.
        let headers = std::mem::take(request.headers_mut());
        Call::Check(Arrival::of(shared, &headers, state), shared.limits.enter(state))
    } else {
        Call::Other(others.clone())
    };
    let is_refusal = matches!(call, Call::Check(_, None));
    let answer = async move {
        match call {
            // The one place that catches panics: whatever went wrong below, Envoy gets a denial.
            Call::Check(arrival, share) => {
                let answering = std::pin::pin!(arrival.answer(request, share));
                let answer = CatchPanic(AssertUnwindSafe(answering)).await;
                arrival.answered.store(true, Ordering::Relaxed);
                let answer =
                    answer.unwrap_or_else(|()| arrival.shared.checker.refuse(Fault::Panic, arrival.term.arrived));
                encode(answer, arrival.connection.answer())
            }
            // Boxed, so that checks do not carry its size.
            Call::Other(mut others) => match Box::pin(others.call(request)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
        }
    };
    Answering { answer, is_refusal }
}

enum Call {
    /// The share is absent where too many others are here.
    Check(Arrival, Option<Share>),
    /// Answered by the framework.
    Other(Routes),
}

/// A check from the moment at which it came; counted as long as it lives, however it ends: Envoy may cancel it at any point.
struct Arrival {
    shared: Arc<Shared>,
    connection: Arc<ConnectionState>,
    term: CheckDeadline,
    /// The request was answered, or another task logs its end.
    answered: AtomicBool,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.shared.checker.metrics().in_flight.dec();
        if !self.answered.load(Ordering::Relaxed) {
            let _nobody_listens = self.shared.checker.refuse(Fault::Cancelled, self.term.arrived);
        }
    }
}

impl Arrival {
    fn of(shared: &Arc<Shared>, headers: &HeaderMap, connection: &Arc<ConnectionState>) -> Self {
        shared.checker.metrics().in_flight.inc();
        let answered = AtomicBool::new(false);
        Self {
            connection: Arc::clone(connection),
            term: shared.term_for(headers),
            shared: Arc::clone(shared),
            answered,
        }
    }

    async fn answer(&self, request: Request<Incoming>, share: Option<Share>) -> Answer {
        let (checker, term) = (&self.shared.checker, self.term);
        let mut body = request.into_body();
        let Some(mut share) = share else {
            // A complete message is read now, so that no frame arrives for a stream that is closed.
            std::future::poll_fn(|cx| {
                while let Poll::Ready(Some(Ok(_))) = Pin::new(&mut body).poll_frame(cx) {}
                Poll::Ready(())
            })
            .await;
            return checker.refuse(Fault::Overloaded, term.arrived);
        };
        if term.arrived.elapsed() > RESET_CHECK_AFTER {
            // Whose stream was reset meanwhile is dropped here.
            step_back().await;
        }
        if term.is_stale() {
            return checker.refuse(Fault::Overloaded, term.arrived);
        }
        let mut reading = std::pin::pin!(self.shared.read(body, &mut share));
        // Nearly every message is here already; only one that is not needs a timer.
        let read = match std::future::poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await {
            Poll::Ready(read) => read,
            Poll::Pending => match self.shared.limits.wait(&self.connection) {
                None => Err(Fault::Overloaded),
                Some(_waiting) => match tokio::time::timeout_at(term.deadline, reading).await {
                    Ok(read) => read,
                    Err(_) => Err(term.exceeded()),
                },
            },
        };
        match read {
            Ok(message) => {
                self.answered.store(true, Ordering::Relaxed);
                checker.check(&message, term).await
            }
            Err(fault) => checker.refuse(fault, term.arrived),
        }
    }
}

impl Shared {
    /// The deadline of one check: the caller's own less a margin, but no more than configured.
    fn term_for(&self, headers: &HeaderMap) -> CheckDeadline {
        let asked = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(grpc_timeout);
        // A caller in a great hurry still gets half of its time.
        let callers = asked.map(|asked| asked.saturating_sub(DEADLINE_MARGIN).max(asked / 2));
        match callers.filter(|callers| *callers < self.check_timeout) {
            Some(callers) => CheckDeadline::of_caller(callers),
            None => CheckDeadline::of(self.check_timeout),
        }
    }

    /// The one message of a unary call, without its frame.
    async fn read(&self, mut body: Incoming, share: &mut Share) -> Result<Bytes, Fault> {
        let mut whole: Option<Bytes> = None;
        let mut gathered = BytesMut::new();
        let limit = self.max_message_bytes.saturating_add(FRAME_PREFIX);
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            // A reset or broken connection: no client is left to read the answer.
            let Ok(frame) = frame else { return Err(Fault::Cancelled) };
            let Ok(data) = frame.into_data() else { continue };
            if gathered.len().saturating_add(whole.as_ref().map_or(0, Bytes::len)).saturating_add(data.len()) > limit {
                return Err(Fault::TooLarge(self.max_message_bytes));
            }
            if !share.hold(data.len()) {
                return Err(Fault::Overloaded);
            }
            match whole.take() {
                // Nearly every message comes in one piece, which then is not copied.
                None if gathered.is_empty() => whole = Some(data),
                None => gathered.extend_from_slice(&data),
                Some(first) => {
                    gathered.extend_from_slice(&first);
                    gathered.extend_from_slice(&data);
                }
            }
            if body.is_end_stream() {
                break;
            }
        }
        unframe(whole.unwrap_or_else(|| gathered.freeze()), self.max_message_bytes)
    }
}

/// Is not ready once, so that the connection looks after the stream.
async fn step_back() {
    let mut has_stepped = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut has_stepped, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn unframe(mut frame: Bytes, limit: usize) -> Result<Bytes, Fault> {
    use crate::opa::input::WireError;

    if frame.len() < FRAME_PREFIX {
        return Err(Fault::Malformed(WireError::Cut));
    }
    if frame.get_u8() != 0 {
        return Err(Fault::Compressed);
    }
    let len = usize::try_from(frame.get_u32()).unwrap_or(usize::MAX);
    if len > limit {
        return Err(Fault::TooLarge(limit));
    }
    if len != frame.len() {
        return Err(Fault::Malformed(WireError::Cut));
    }
    Ok(frame)
}

/// The value of `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount.saturating_mul(3_600)),
        "M" => Duration::from_secs(amount.saturating_mul(60)),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

fn encode(answer: Answer, unread: UnreadAnswer) -> Response<Body> {
    match answer {
        Answer::Respond(response) => {
            let mut response = Response::new(Body::new(UnaryBody::of(&response, unread)));
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            response
        }
        Answer::Fail { code, message } => {
            let code = match code {
                GrpcCode::Unknown => tonic::Code::Unknown,
                GrpcCode::ResourceExhausted => tonic::Code::ResourceExhausted,
                GrpcCode::Internal => tonic::Code::Internal,
                GrpcCode::Unavailable => tonic::Code::Unavailable,
            };
            tonic::Status::new(code, message).into_http()
        }
    }
}

/// One framed message, then the trailer that says all went well.
struct UnaryBody {
    data: Option<Bytes>,
    ended: bool,
    /// Until the peer has taken it.
    _unread: UnreadAnswer,
}

impl UnaryBody {
    fn of(response: &CheckResponse, unread: UnreadAnswer) -> Self {
        let len = response.encoded_len();
        let mut frame = BytesMut::with_capacity(len.saturating_add(FRAME_PREFIX));
        frame.put_u8(0);
        frame.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        response.encode_raw(&mut frame);
        Self { data: Some(frame.freeze()), ended: false, _unread: unread }
    }
}

impl http_body::Body for UnaryBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.ended = true;
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

/// Runs a future; a panic inside it is its error.
struct CatchPanic<F>(AssertUnwindSafe<F>);

impl<F: Future + Unpin> Future for CatchPanic<F> {
    type Output = Result<F::Output, ()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = &mut self.0.0;
        match std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(inner).poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_in_every_unit() {
        for (text, want) in [
            ("100m", Some(Duration::from_millis(100))),
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3_600))),
            ("5u", Some(Duration::from_micros(5))),
            ("", None),
            ("m", None),
            ("1x", None),
            ("-1m", None),
            ("123456789m", None),
            ("1é", None),
        ] {
            assert_eq!(grpc_timeout(text), want, "{text}");
        }
    }

    #[test]
    fn frames_are_checked() {
        let unframe = |bytes: &[u8]| unframe(Bytes::copy_from_slice(bytes), 10);
        assert_eq!(unframe(&[0, 0, 0, 0, 2, b'h', b'i']).expect("a message"), &b"hi"[..]);
        assert!(matches!(unframe(&[0, 0, 0]), Err(Fault::Malformed(_))));
        assert!(matches!(unframe(&[1, 0, 0, 0, 0]), Err(Fault::Compressed)));
        assert!(matches!(unframe(&[0, 0, 0, 0, 11]), Err(Fault::TooLarge(10))));
        assert!(matches!(unframe(&[0, 0, 0, 0, 3, b'h', b'i']), Err(Fault::Malformed(_))), "cut");
        assert!(matches!(unframe(&[0, 0, 0, 0, 1, b'h', b'i']), Err(Fault::Malformed(_))), "more than one");
    }
}
