//! Metrics of the hub.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::{EventOutcome, LedgerError, LogoutError};
use crate::telemetry::{Labels, Registrar, RoomMetrics};

#[derive(Debug)]
pub struct HubMetrics {
    changes: Family<Labels, Counter>,
    failures: Counter,
    commit_nanoseconds: Counter,
    logouts: Family<Labels, Counter>,
    events: Family<Labels, Counter>,
    source_age: Family<Labels, Gauge>,
    streams_enabled: Family<Labels, Gauge>,
    scim_requests: Family<Labels, Counter>,
    scim_unmapped: Family<Labels, Gauge>,
    pub entries: Gauge,
    pub readers: Gauge,
    pub store_up: Gauge,
    pub heals: Counter,
}

impl RoomMetrics for HubMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        Self {
            changes: registrar.counters("stepgate_hub_changes", "Changes accepted by the hub, by action"),
            failures: registrar.counter("stepgate_hub_failed_commits", "Changes that could not be made durable"),
            commit_nanoseconds: registrar
                .counter("stepgate_hub_commit_nanoseconds", "Time spent making changes durable, nanoseconds"),
            logouts: registrar.counters("stepgate_hub_logout_tokens", "Logout tokens, by address and outcome"),
            events: registrar.counters("stepgate_hub_events", "Security events, by source, type and outcome"),
            source_age: registrar
                .gauges("stepgate_hub_source_age_seconds", "Seconds since a stream was last heard of, by source"),
            streams_enabled: registrar
                .gauges("stepgate_hub_stream_enabled", "Set to 0 when a transmitter says that a stream is paused"),
            scim_requests: registrar
                .counters("stepgate_hub_scim_requests", "Requests of SCIM providers, by provider, method and status"),
            scim_unmapped: registrar.gauges(
                "stepgate_hub_scim_unmapped_users",
                "Users whom no link maps to a token claim, by provider; at most 10,000 are counted",
            ),
            entries: registrar.gauge("stepgate_hub_entries", "Entries of the hub"),
            readers: registrar.gauge("stepgate_hub_feed_readers", "Readers of the feed"),
            store_up: registrar.gauge("stepgate_hub_store_up", "Set to 1 while the ledger can be written"),
            heals: registrar.counter("stepgate_hub_heals", "Times that a Redis server got back what it had lost"),
        }
    }
}

impl HubMetrics {
    /// The time of a change, made or not.
    pub fn committed(&self, took: Duration) {
        self.commit_nanoseconds.inc_by(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// A change that the disk did not take.
    pub fn failed(&self, error: &LedgerError) {
        if !matches!(error, LedgerError::Full(_)) {
            self.failures.inc();
        }
    }

    pub fn logout(&self, name: &str, error: Option<&LogoutError>) {
        let outcome = match error {
            None => "applied",
            Some(LogoutError::Invalid(_)) => "invalid",
            Some(_) => "failed",
        };
        let labels = vec![("logout", name.to_owned()), ("outcome", outcome.to_owned())];
        self.logouts.get_or_create(&labels).inc();
    }

    pub fn event(&self, source: &str, event: &'static str, outcome: EventOutcome) {
        let labels =
            vec![("source", source.to_owned()), ("type", event.to_owned()), ("outcome", outcome.name().to_owned())];
        self.events.get_or_create(&labels).inc();
    }

    pub fn source_age(&self, source: &str, seconds: i64) {
        self.source_age.get_or_create(&vec![("source", source.to_owned())]).set(seconds);
    }

    pub fn stream_enabled(&self, source: &str, is_enabled: bool) {
        self.streams_enabled.get_or_create(&vec![("source", source.to_owned())]).set(i64::from(is_enabled));
    }

    pub fn scim(&self, provider: &str, method: &str, status: u16) {
        // The method is the client's: one that is not SCIM's has no name here.
        let known = ["GET", "POST", "PUT", "PATCH", "DELETE"].into_iter().find(|known| *known == method);
        let labels = vec![
            ("provider", provider.to_owned()),
            ("method", known.unwrap_or("other").to_owned()),
            ("status", status.to_string()),
        ];
        self.scim_requests.get_or_create(&labels).inc();
    }

    pub fn unmapped(&self, provider: &str, users: i64) {
        self.scim_unmapped.get_or_create(&vec![("provider", provider.to_owned())]).set(users);
    }

    pub fn changed(&self, action: &'static str, entries: usize) {
        self.changes.get_or_create(&vec![("action", action.to_owned())]).inc();
        self.entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }
}
