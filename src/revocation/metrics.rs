//! Metrics of the revocation store.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::store::State;
use crate::telemetry::{Labels, Registrar, RoomMetrics};

#[derive(Debug)]
pub struct RevocationMetrics {
    state: Family<Labels, Gauge>,
    pub age: Gauge,
    pub entries: Gauge,
    pub overflow: Gauge,
    pub applied: Counter,
    rejections: Family<Labels, Counter>,
}

impl RoomMetrics for RevocationMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        Self {
            state: registrar.gauges(
                "stepgate_revocation_state",
                "Set to 1 for the state of the revocation store: live, stale or cold",
            ),
            age: registrar.gauge("stepgate_revocation_age_seconds", "Age of the revocation entries, seconds"),
            entries: registrar.gauge("stepgate_revocation_entries", "Entries of the revocation store"),
            overflow: registrar.gauge(
                "stepgate_revocation_overflow",
                "Set to 1 while a snapshot has more entries than revocation.max_entries, and is not used",
            ),
            applied: registrar.counter("stepgate_revocation_applied", "Changes received from the hub"),
            rejections: registrar
                .counters("stepgate_revocation_rejections", "Tokens rejected by the revocation store, by reason"),
        }
    }
}

impl RevocationMetrics {
    pub fn rejected(&self, reason: &'static str) {
        self.rejections.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    pub fn publish(&self, state: State, age: i64, entries: usize) {
        for known in State::ALL {
            let labels = vec![("state", known.name().to_owned())];
            self.state.get_or_create(&labels).set(i64::from(known == state));
        }
        self.age.set(age);
        self.entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }
}
