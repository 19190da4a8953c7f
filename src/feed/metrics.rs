//! Metrics of bundles and of OPA's status.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::status::StatusMetrics;
use crate::telemetry::{Labels, Outcome, Registrar, RoomMetrics};

#[derive(Debug)]
pub struct FeedMetrics {
    bundle_polls: Family<Labels, Counter>,
    bundle_polled_at: Family<Labels, Gauge>,
    /// By OPA's names.
    pub status: StatusMetrics,
}

impl RoomMetrics for FeedMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        Self {
            bundle_polls: registrar.counters("stepgate_bundle_polls", "Polls of bundles, by outcome"),
            bundle_polled_at: registrar.gauges(
                "stepgate_bundle_polled_at_seconds",
                "Time when a bundle was last known to be what its server offers, Unix seconds",
            ),
            status: StatusMetrics::register(registrar),
        }
    }
}

impl FeedMetrics {
    /// A bundle was requested and, if it was new, activated.
    pub fn bundle_polled(&self, name: &str, outcome: Outcome, now: i64) {
        let name = ("name", name.to_owned());
        self.bundle_polls.get_or_create(&vec![name.clone(), ("outcome", outcome.label())]).inc();
        if outcome == Outcome::Success {
            self.bundle_polled_at.get_or_create(&vec![name]).set(now);
        }
    }
}
