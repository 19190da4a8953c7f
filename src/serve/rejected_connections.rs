//! Rejected connections: each is counted, and logged at a limited rate.

use std::sync::Arc;
use std::time::Instant;

use super::metrics::{ListenerMetrics, RejectReason};
use crate::telemetry::{Metrics, Throttle};

/// A connection that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedConnection {
    pub reason: RejectReason,
    /// The description for people, in the words of the component that found it.
    pub why: String,
}

/// Where the refusals of one listener end.
#[derive(Debug)]
pub struct RejectedConnections {
    metrics: Arc<ListenerMetrics>,
    /// Which one: `grpc` or `http`.
    listener: &'static str,
    /// By reason.
    lines: [Throttle; RejectReason::ALL.len()],
}

impl RejectedConnections {
    pub fn new(metrics: &Metrics, listener: &'static str) -> Self {
        Self { metrics: metrics.of(), listener, lines: Default::default() }
    }

    /// Counts `refusal` of a connection from `peer`, and writes a line when there was none of its reason for a while.
    pub fn log(&self, refusal: &RejectedConnection, peer: &str) {
        self.metrics.connection_refused(self.listener, refusal.reason);
        let line = RejectReason::ALL.iter().zip(&self.lines).find(|(reason, _)| **reason == refusal.reason);
        let Some(withheld) = line.and_then(|(_, line)| line.due(Instant::now())) else { return };
        let (listener, reason, why) = (self.listener, refusal.reason.label(), refusal.why.as_str());
        match refusal.reason {
            // Also what a probe of the port leaves.
            RejectReason::ClientClosed => {
                tracing::info!(reason, why, listener, peer, withheld, "a connection was not served")
            }
            _ => tracing::warn!(reason, why, listener, peer, withheld, "a connection was not served"),
        }
    }
}
