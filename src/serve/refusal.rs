//! Connections that are not served: counted each, told now and then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::telemetry::{Metrics, Refused};

/// How often a line is written about one reason; the metric counts each.
const PAUSE: Duration = Duration::from_secs(10);

/// A connection that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Refused,
    /// For people: what was wrong, in the words of whoever found it.
    pub why: String,
}

/// Where the refusals of one listener end.
#[derive(Debug)]
pub struct Refusals {
    metrics: Arc<Metrics>,
    /// Which one: `grpc` or `http`.
    listener: &'static str,
    /// When a line was last written, by reason, and how many were withheld since.
    told: Mutex<[(Option<Instant>, u64); Refused::ALL.len()]>,
}

impl Refusals {
    pub fn new(metrics: Arc<Metrics>, listener: &'static str) -> Self {
        Self { metrics, listener, told: Mutex::default() }
    }

    /// Counts `refusal` of a connection from `peer`, and writes a line when there was none of its reason for a while:
    /// whoever can connect must not fill a disk.
    pub fn tell(&self, refusal: &Refusal, peer: &str) {
        self.metrics.connection_refused(self.listener, refusal.reason);
        let Some(withheld) = self.due(refusal.reason, Instant::now()) else { return };
        let (listener, reason, why) = (self.listener, refusal.reason.label(), refusal.why.as_str());
        match refusal.reason {
            // Also what a probe of the port leaves.
            Refused::Abandoned => tracing::info!(reason, why, listener, peer, withheld, "a connection was not served"),
            _ => tracing::warn!(reason, why, listener, peer, withheld, "a connection was not served"),
        }
    }

    /// Whether a line is due, and how many were withheld before it.
    fn due(&self, reason: Refused, now: Instant) -> Option<u64> {
        let at = Refused::ALL.iter().position(|known| *known == reason)?;
        let mut told = self.told.lock();
        let (last, withheld) = told.get_mut(at)?;
        if last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            *withheld = withheld.saturating_add(1);
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_now_and_then() {
        let refusals = Refusals::new(Arc::new(Metrics::new(None)), "grpc");
        let begin = Instant::now();
        let due = |reason, seconds| refusals.due(reason, begin + Duration::from_secs(seconds));
        assert_eq!(due(Refused::Limit, 0), Some(0));
        assert_eq!(due(Refused::Limit, 1), None);
        assert_eq!(due(Refused::NotAllowed, 1), Some(0), "another reason is other news");
        assert_eq!(due(Refused::Limit, 9), None);
        assert_eq!(due(Refused::Limit, 10), Some(2));
        assert_eq!(due(Refused::Limit, 11), None);
    }
}
