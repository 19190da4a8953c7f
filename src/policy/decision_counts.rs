//! Decisions by what decided and why.

use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::telemetry::{CheckOutcome, Labels};

/// Counts decisions by outcome, reason, entry point and revision. Only the active policy's series are exported, so that their number stays small
/// however often it changes.
#[derive(Debug)]
pub struct DecisionCounts {
    all: Family<Labels, Counter>,
    in_force: RwLock<InForce>,
}

#[derive(Debug, Default)]
struct InForce {
    entrypoint: String,
    revision: String,
    /// The counters that were needed so far. There are as many reasons as the program has words for them.
    known: Vec<(CheckOutcome, &'static str, Counter)>,
}

impl InForce {
    fn find(&self, decided: CheckOutcome, reason: &str) -> Option<&Counter> {
        self.known.iter().find(|known| known.0 == decided && known.1 == reason).map(|(_, _, counter)| counter)
    }
}

impl DecisionCounts {
    pub fn new(all: Family<Labels, Counter>) -> Self {
        Self { all, in_force: RwLock::default() }
    }

    /// From now on this policy decides; its revision, or `bundle=revision` for several.
    pub fn begin(&self, entrypoint: &str, revision: String) {
        let mut in_force = self.in_force.write();
        self.all.clear();
        *in_force = InForce { entrypoint: entrypoint.to_owned(), revision, known: Vec::new() };
    }

    /// `reason` is empty where the policy itself decided.
    pub fn count(&self, decided: CheckOutcome, reason: &'static str) {
        if let Some(counter) = self.in_force.read().find(decided, reason) {
            counter.inc();
            return;
        }
        let mut in_force = self.in_force.write();
        let labels = [
            ("outcome", decided.name()),
            ("reason", if reason.is_empty() { "policy" } else { reason }),
            ("entrypoint", &in_force.entrypoint),
            ("revision", &in_force.revision),
        ];
        let labels = labels.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
        let counter = self.all.get_or_create(&labels).clone();
        counter.inc();
        if in_force.find(decided, reason).is_none() {
            in_force.known.push((decided, reason, counter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicyMetrics;
    use crate::telemetry::Metrics;

    #[test]
    fn only_the_policy_in_force_is_told() {
        let metrics = Metrics::new(None);
        let policy = metrics.of::<PolicyMetrics>();
        let decisions = &policy.decisions;
        for revision in ["r1", "r2"] {
            decisions.begin("p/allow", revision.to_owned());
            for _ in 0..3 {
                decisions.count(CheckOutcome::Allow, "");
                decisions.count(CheckOutcome::Fault, "overloaded");
            }
        }
        let text = metrics.text();
        let mut told: Vec<_> = text.lines().filter(|line| line.starts_with("stepgate_decisions_total{")).collect();
        told.sort_unstable();
        assert_eq!(
            told,
            [
                r#"stepgate_decisions_total{outcome="allow",reason="policy",entrypoint="p/allow",revision="r2"} 3"#,
                r#"stepgate_decisions_total{outcome="fault",reason="overloaded",entrypoint="p/allow",revision="r2"} 3"#,
            ]
        );
    }
}
