//! Log lines as OPA writes them, and Prometheus metrics.

mod decisions;
pub mod log;
mod metrics;
mod opa_metrics;
mod phases;
mod throttle;
mod traces;

pub use self::metrics::{CheckOutcome, LogOutcome, Metrics, Outcome, RejectReason};
pub use self::opa_metrics::BundleMetrics;
pub use self::phases::{CacheCount, CheckMetrics, Phase, PhaseClock};
pub use self::throttle::Throttle;
pub use self::traces::{Call, ChildSpans, Context, SpanAttributes, Trace, Tracer};

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
