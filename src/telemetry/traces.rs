//! One trace for a check: who asked, what came of it, and how long each part took. Whatever happens to it, checks never wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::Metrics;
use super::metrics::{Labels, Registrar, RoomMetrics};

/// Maximum characters of a method, host or path in a span: many traces wait for a slow collector.
const MAX_TEXT_CHARS: usize = 512;
/// Requests of one check that have spans.
const MAX_CALLS: usize = 64;

/// A position in a trace (W3C Trace Context section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    pub is_sampled: bool,
}

impl Context {
    /// Reads `traceparent`.
    pub fn parse(text: &str) -> Option<Self> {
        // Letters are small (section 3.2.2).
        if text.contains(|c: char| c.is_ascii_uppercase()) {
            return None;
        }
        let mut parts = text.trim_matches([' ', '\t']).split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let is_hex = version.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_known = version.len() == 2 && is_hex && version != "ff" && flags.len() == 2;
        // Version 00 has four parts and no more.
        if !is_known || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let (mut context, mut bits) = (Self { trace: [0; 16], span: [0; 8], is_sampled: false }, [0; 1]);
        hex::decode_to_slice(trace, &mut context.trace).ok()?;
        hex::decode_to_slice(span, &mut context.span).ok()?;
        hex::decode_to_slice(flags, &mut bits).ok()?;
        context.is_sampled = bits[0] & 1 == 1;
        (context.trace != [0; 16] && context.span != [0; 8]).then_some(context)
    }
}

/// A request that the policy sent to another server.
#[derive(Clone, Debug)]
pub struct Call {
    pub span: [u8; 8],
    pub method: String,
    pub host: String,
    pub began: Instant,
    pub ended: Instant,
    /// The status of the response, or a word for why there is none.
    pub outcome: Result<u16, &'static str>,
}

/// A check that is followed to the servers that its policy asks.
#[derive(Clone, Debug)]
pub struct ChildSpans {
    context: Context,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl ChildSpans {
    /// A span for an outgoing request, and its `traceparent`.
    pub fn step(&self) -> ([u8; 8], String) {
        let span = random();
        (span, format!("00-{}-{}-01", hex::encode(self.context.trace), hex::encode(span)))
    }

    /// A request was answered, or not.
    pub fn called(&self, call: Call) {
        let mut calls = self.calls.lock();
        if calls.len() < MAX_CALLS {
            calls.push(Call { method: short(&call.method), host: short(&call.host), ..call });
        }
    }
}

/// The attributes of a check's span.
#[derive(Clone, Debug, Default)]
pub struct SpanAttributes {
    pub decision_id: String,
    pub method: String,
    pub host: String,
    /// Without the query.
    pub path: String,
    /// `allow`, `deny`, `challenge`, `fault`, or `cancelled` where the caller gave up first.
    pub decision: &'static str,
    /// The word for what went wrong; empty when nothing did.
    pub reason: &'static str,
}

impl SpanAttributes {
    /// The attributes of a request.
    pub fn of(method: &str, host: &str, path: &str) -> Self {
        Self { method: short(method), host: short(host), path: short(path), ..Self::default() }
    }
}

/// A text, truncated for a span.
fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).collect()
}

/// Phases of a check, about.
const PHASES: usize = 6;

/// A check that is followed.
#[derive(Debug)]
pub struct Trace {
    pub context: Context,
    /// The span that the check is a part of.
    pub parent: Option<[u8; 8]>,
    /// In nanoseconds since the epoch.
    pub began_ns: i64,
    began: Instant,
    pub took: Duration,
    /// Each with its begin and end since the check began.
    pub phases: Vec<(&'static str, Duration, Duration)>,
    pub told: SpanAttributes,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Trace {
    /// For requests to other servers on behalf of this check.
    pub fn followed(&self) -> ChildSpans {
        ChildSpans { context: self.context, calls: Arc::clone(&self.calls) }
    }

    /// The requests to other servers, each with its begin and end since the check began.
    pub fn calls(&self) -> Vec<(Call, Duration, Duration)> {
        let offset = |at: Instant| at.saturating_duration_since(self.began);
        self.calls.lock().iter().map(|call| (call.clone(), offset(call.began), offset(call.ended))).collect()
    }

    /// A phase ends now that began at `since`.
    pub fn phase(&mut self, phase: &'static str, since: Instant, now: Instant) {
        let offset = |at: Instant| at.saturating_duration_since(self.began);
        self.phases.push((phase, offset(since), offset(now)));
    }
}

/// Says which checks are followed, and takes their traces.
#[derive(Clone, Debug)]
pub struct Tracer {
    traces: Sender<Box<Trace>>,
    /// The sampling rate of traces that begin here, as a number of 2^63.
    threshold: u64,
    metrics: Arc<TraceMetrics>,
}

/// Counts traces by result.
#[derive(Debug)]
pub struct TraceMetrics(Family<Labels, Counter>);

impl RoomMetrics for TraceMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        Self(registrar.counters("stepgate_traces", "Traces, by result"))
    }
}

impl TraceMetrics {
    pub fn ended(&self, result: &'static str, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.0.get_or_create(&vec![("outcome", result.to_owned())]).inc_by(count);
    }
}

impl Tracer {
    /// Keeps `percent` of the traces that begin here, and all whose parent is kept; `waiting` of them wait for their export.
    pub fn new(percent: f64, waiting: usize, metrics: &Metrics) -> (Self, Receiver<Box<Trace>>) {
        let (traces, receiver) = mpsc::channel(waiting.max(1));
        // Both ends are exact: nothing, and everything.
        let threshold =
            if percent >= 100.0 { u64::MAX } else { (percent.max(0.0) / 100.0 * (1u64 << 63) as f64) as u64 };
        (Self { traces, threshold, metrics: metrics.of() }, receiver)
    }

    /// A trace for a check that began at `began`, unless it is not to be followed.
    pub fn begin(&self, traceparent: Option<&str>, began: Instant, began_ns: i64) -> Option<Box<Trace>> {
        let parent = traceparent.and_then(Context::parse);
        let trace = parent.map_or_else(new_trace, |parent| parent.trace);
        let is_sampled = match &parent {
            Some(parent) => parent.is_sampled,
            None => self.keeps(&trace),
        };
        let context = Context { trace, span: random(), is_sampled };
        is_sampled.then(|| {
            Box::new(Trace {
                context,
                parent: parent.map(|parent| parent.span),
                began_ns,
                began,
                took: Duration::ZERO,
                phases: Vec::with_capacity(PHASES),
                told: SpanAttributes::default(),
                calls: Arc::default(),
            })
        })
    }

    /// As OpenTelemetry's TraceIdRatioBased has it: by the lower half of the id, so that all who see it agree.
    fn keeps(&self, trace: &[u8; 16]) -> bool {
        let [.., a, b, c, d, e, f, g, h] = *trace;
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < self.threshold
    }

    /// Takes a trace whose check has ended; without room it is counted as dropped.
    pub fn end(&self, mut trace: Box<Trace>) {
        trace.took = trace.began.elapsed();
        if self.traces.try_send(trace).is_err() {
            self.metrics.ended("queue_full", 1);
        }
    }
}

/// Eight bytes of a random UUID that say nothing of its version.
fn random() -> [u8; 8] {
    let [a, b, c, d, e, f, _, _, _, g, h, ..] = uuid::Uuid::new_v4().into_bytes();
    [a, b, c, d, e, f, g, h]
}

fn new_trace() -> [u8; 16] {
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (random(), random());
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn parents_are_read_as_the_standard_says() {
        let parent = Context::parse(PARENT).expect("it is good");
        assert_eq!((hex::encode(parent.span), parent.is_sampled), ("b7ad6b7169203331".to_owned(), true));
        assert!(!Context::parse(&PARENT.replace("-01", "-00")).expect("it is good").is_sampled);
        assert!(Context::parse(&format!("01{}-more", &PARENT[2..])).is_some(), "a later version may have more");
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-zaf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "zz-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "\u{a0}00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_parent_decides_and_else_the_share() {
        let tracer = |percent| Tracer::new(percent, 1, &Metrics::new(None));
        let (all, mut ended) = tracer(100.0);
        let (none, _) = tracer(0.0);
        let now = Instant::now();
        assert!(all.begin(None, now, 0).is_some() && none.begin(None, now, 0).is_none());
        assert!(all.begin(Some(&PARENT.replace("-01", "-00")), now, 0).is_none());
        let mut trace = none.begin(Some(PARENT), now, 0).expect("its parent is kept");
        assert_eq!(trace.parent.map(hex::encode).as_deref(), Some("b7ad6b7169203331"));
        assert_eq!(hex::encode(trace.context.trace), "0af7651916cd43dd8448eb211c80319c");
        trace.phase("input", now, now + Duration::from_millis(1));
        all.end(trace);
        assert_eq!(
            SpanAttributes::of("GET", "h", &"/x".repeat(1_000)).path.len(),
            MAX_TEXT_CHARS,
            "what waits is short"
        );
        let another = all.begin(Some("nonsense"), now, 0).expect("it begins here");
        assert_eq!(another.parent, None);
        all.end(another);
        assert_eq!(ended.try_recv().expect("the first").phases.len(), 1);
        assert!(ended.try_recv().is_err(), "there was no room for the second");
        let (half, _) = tracer(50.0);
        let kept = (0..2_000).filter(|_| half.begin(None, now, 0).is_some()).count();
        assert!((800..1_200).contains(&kept), "{kept}");
    }
}
