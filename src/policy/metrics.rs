//! Metrics of the active policy and its evaluations.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::decision_counts::DecisionCounts;
use crate::telemetry::{CacheCount, Labels, Outcome, Registrar, RoomMetrics};

/// From 16 KiB to 256 MiB.
const MEMORY_BUCKETS: [f64; 8] =
    [16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0, 268_435_456.0];
/// Characters of a revision that become a label.
const MAX_REVISION_CHARS: usize = 64;

#[derive(Debug)]
pub struct PolicyMetrics {
    /// Bytes that evaluations held.
    pub evaluation_memory: Histogram,
    pub decision_cache: CacheCount,
    /// Decisions by outcome and reason.
    pub decisions: DecisionCounts,
    info: Family<Labels, Gauge>,
    activations: Family<Labels, Counter>,
    entrypoint_undefined: Gauge,
    rejected: Family<Labels, Gauge>,
}

impl RoomMetrics for PolicyMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        let metrics = Self {
            evaluation_memory: registrar.histogram(
                "stepgate_evaluation_memory_bytes",
                "Memory held by each policy evaluation, bytes",
                &MEMORY_BUCKETS,
            ),
            decision_cache: registrar.cache(
                ["stepgate_decision_cache_hits", "stepgate_decision_cache_misses"],
                ["Decision cache hits", "Decision cache misses"],
            ),
            decisions: DecisionCounts::new(
                registrar.counters("stepgate_decisions", "Decisions of the active policy, by outcome and reason"),
            ),
            info: registrar.gauges(
                "stepgate_policy_info",
                "Info metric (value 1) of the active policy, labelled with entrypoint and revision",
            ),
            activations: registrar.counters("stepgate_policy_activations", "Policy activations, by result"),
            entrypoint_undefined: registrar.gauge(
                "stepgate_entrypoint_undefined",
                "Set to 1 while nothing is defined at the path of the decision, so that every check is denied",
            ),
            rejected: registrar.gauges(
                "stepgate_policy_rejected",
                "Set to 1 while the newest policies of a source are rejected, and older ones decide",
            ),
        };
        // An alert sees the first failure only where there was a zero before.
        for outcome in Outcome::ALL {
            metrics.activations.get_or_create(&vec![("outcome", outcome.label())]).inc_by(0);
        }
        metrics
    }
}

impl PolicyMetrics {
    /// An activation ended.
    pub fn activated(&self, outcome: Outcome) {
        self.activations.get_or_create(&vec![("outcome", outcome.label())]).inc();
    }

    /// The active policy makes every decision undefined.
    pub fn entrypoint_undefined(&self, is_undefined: bool) {
        self.entrypoint_undefined.set(i64::from(is_undefined));
    }

    /// The newest policies of a source, `files` or a bundle's name, were rejected, so that older ones stay active.
    pub fn rejected(&self, source: &str, is_rejected: bool) {
        self.rejected.get_or_create(&vec![("source", source.to_owned())]).set(i64::from(is_rejected));
    }

    /// Exports the active policy; the series of the previous one is removed.
    pub fn publish_active<'a>(
        &self,
        entrypoint: &str,
        revisions: impl Iterator<Item = (&'a String, &'a String)> + Clone,
    ) {
        let short = |revision: &str| revision.chars().take(MAX_REVISION_CHARS).collect::<String>();
        let named = |(bundle, revision): (&String, &String)| format!("{bundle}={}", short(revision));
        self.decisions.begin(
            entrypoint,
            match revisions.clone().count() {
                0 | 1 => revisions.clone().map(|(_, revision)| short(revision)).collect(),
                _ => revisions.clone().map(named).collect::<Vec<_>>().join(","),
            },
        );
        self.info.clear();
        let publish = |bundle: &str, revision: &str| {
            let revision = short(revision);
            let labels =
                vec![("entrypoint", entrypoint.to_owned()), ("bundle", bundle.to_owned()), ("revision", revision)];
            self.info.get_or_create(&labels).set(1);
        };
        let mut revisions = revisions.peekable();
        if revisions.peek().is_none() {
            publish("", "");
        }
        revisions.for_each(|(bundle, revision)| publish(bundle, revision));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn only_the_active_revision_is_exported() {
        let metrics = Metrics::new(None);
        let policy = metrics.of::<PolicyMetrics>();
        for revision in ["r1", &"r".repeat(100)] {
            policy.publish_active("p/allow", BTreeMap::from([("b".to_owned(), revision.to_owned())]).iter());
        }
        let text = metrics.text();
        let exported: Vec<_> = text.lines().filter(|line| line.starts_with("stepgate_policy_info{")).collect();
        assert_eq!(exported.len(), 1, "{exported:?}");
        assert!(exported.iter().all(|line| line.contains(&format!("revision=\"{}\"", "r".repeat(64)))), "{exported:?}");
        assert!(text.contains("stepgate_policy_activations_total{outcome=\"failure\"} 0"), "{text}");
    }
}
