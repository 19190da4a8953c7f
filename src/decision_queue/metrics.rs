//! Metrics of the decision log: every decision ends in one count.

use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::{Labels, Registrar, RoomMetrics};

/// The result of a decision log event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOutcome {
    /// The service took it.
    Uploaded,
    /// It stands on the console, and is sent nowhere.
    Written,
    /// The policy's `drop` rule is true.
    Unwanted,
    /// Too many decisions waited to become events.
    QueueFull,
    /// Too many bytes of events waited for an upload.
    BufferFull,
    /// More than `max_decisions_per_second`.
    RateLimited,
    /// The process ended before the service took it.
    Stopped,
    /// The service refuses it for what it is, and takes others; or the file that held it was damaged.
    Refused,
    /// Nothing says where decisions are logged any more.
    Unconfigured,
    /// Not an end: a rule of the mask was skipped, or the mask failed and all was erased.
    BadMaskRule,
}

impl LogOutcome {
    const ALL: [Self; 10] = [
        Self::Uploaded,
        Self::Written,
        Self::Unwanted,
        Self::QueueFull,
        Self::BufferFull,
        Self::RateLimited,
        Self::Stopped,
        Self::Refused,
        Self::Unconfigured,
        Self::BadMaskRule,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Uploaded => "uploaded",
            Self::Written => "written",
            Self::Unwanted => "drop_rule",
            Self::QueueFull => "queue_full",
            Self::BufferFull => "buffer_full",
            Self::RateLimited => "rate_limited",
            Self::Stopped => "stopped",
            Self::Refused => "refused",
            Self::Unconfigured => "unconfigured",
            Self::BadMaskRule => "bad_mask_rule",
        }
    }
}

#[derive(Debug)]
pub struct LogMetrics {
    events: Family<Labels, Counter>,
    /// Decisions that wait to become events.
    pub queue: Gauge,
}

impl RoomMetrics for LogMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        Self {
            events: registrar.counters("stepgate_decision_logs", "Decision log events, by result"),
            queue: registrar.gauge("stepgate_decision_log_queue", "Decisions queued to become decision log events"),
        }
    }
}

impl LogMetrics {
    /// Counts events of the decision log by result.
    pub fn logged(&self, end: LogOutcome, count: usize) {
        let label = vec![("outcome", end.label().to_owned())];
        self.events.get_or_create(&label).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// The counts of decision log events so far, by the label of the metric.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let count = |end: &LogOutcome| {
            let label = vec![("outcome", end.label().to_owned())];
            self.events.get(&label).map(|counter| (end.label(), counter.get()))
        };
        LogOutcome::ALL.iter().filter_map(count).collect()
    }
}
