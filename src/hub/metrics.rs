//! Metrics of the hub.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::{Labels, Registrar, RoomMetrics};

#[derive(Debug)]
pub struct HubMetrics {
    changes: Family<Labels, Counter>,
    failures: Counter,
    commit_nanoseconds: Counter,
    pub entries: Gauge,
    pub readers: Gauge,
    pub store_up: Gauge,
}

impl RoomMetrics for HubMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        Self {
            changes: registrar.counters("stepgate_hub_changes", "Changes accepted by the hub, by action"),
            failures: registrar.counter("stepgate_hub_failed_commits", "Changes that could not be made durable"),
            commit_nanoseconds: registrar
                .counter("stepgate_hub_commit_nanoseconds", "Time spent making changes durable, nanoseconds"),
            entries: registrar.gauge("stepgate_hub_entries", "Entries of the hub"),
            readers: registrar.gauge("stepgate_hub_feed_readers", "Readers of the feed"),
            store_up: registrar.gauge("stepgate_hub_store_up", "Set to 1 while the ledger can be written"),
        }
    }
}

impl HubMetrics {
    pub fn committed(&self, took: Duration, is_durable: bool) {
        self.commit_nanoseconds.inc_by(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        if !is_durable {
            self.failures.inc();
        }
    }

    pub fn changed(&self, action: &'static str, entries: usize) {
        self.changes.get_or_create(&vec![("action", action.to_owned())]).inc();
        self.entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }
}
