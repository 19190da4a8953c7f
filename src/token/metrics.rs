//! Metrics of tokens and issuers' keys.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::{CacheCount, Labels, Outcome, Registrar, RoomMetrics};

#[derive(Debug)]
pub struct TokenMetrics {
    pub cache: CacheCount,
    key_refreshes: Family<Labels, Counter>,
    key_refreshed_at: Family<Labels, Gauge>,
    unusable_keys: Family<Labels, Counter>,
}

impl RoomMetrics for TokenMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        Self {
            cache: registrar.cache(
                ["stepgate_token_cache_hits", "stepgate_token_cache_misses"],
                ["Token cache hits", "Token cache misses"],
            ),
            key_refreshes: registrar.counters("stepgate_key_refreshes", "Key set refreshes, by issuer and outcome"),
            key_refreshed_at: registrar.gauges(
                "stepgate_key_refreshed_at_seconds",
                "Time of the last successful refresh of an issuer's keys, Unix seconds",
            ),
            unusable_keys: registrar
                .counters("stepgate_unusable_keys", "Keys of an issuer that cannot verify signatures, by reason"),
        }
    }
}

impl TokenMetrics {
    /// A key of an issuer cannot be used; each counts once.
    pub fn key_unusable(&self, issuer: &str, reason: &'static str) {
        let labels = vec![("issuer", issuer.to_owned()), ("reason", reason.to_owned())];
        self.unusable_keys.get_or_create(&labels).inc();
    }

    /// A refresh of an issuer's keys ended at `now`.
    pub fn keys_refreshed(&self, issuer: &str, outcome: Outcome, now: i64) {
        let issuer = ("issuer", issuer.to_owned());
        self.key_refreshes.get_or_create(&vec![issuer.clone(), ("outcome", outcome.label())]).inc();
        if outcome == Outcome::Success {
            self.key_refreshed_at.get_or_create(&vec![issuer]).set(now);
        }
    }
}
