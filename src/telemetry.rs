//! Log lines as OPA writes them, and Prometheus metrics.

pub mod log;
mod metrics;
mod throttle;
mod traces;

pub use self::metrics::{CacheCount, CheckOutcome, Labels, Metrics, Outcome, Registrar, RoomMetrics};
pub use self::throttle::Throttle;
pub use self::traces::{Call, ChildSpans, Context, SpanAttributes, Trace, TraceMetrics, Tracer};

/// An error with all its causes on one line; `Display` of an error never repeats its source.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
