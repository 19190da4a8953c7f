//! Where checks spend their time, and what they find on the way: what dashboards draw beside the outcomes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::decisions::Decisions;
use super::metrics::Labels;
use super::traces::{ChildSpans, SpanAttributes, Trace, Tracer};

/// Upper bounds of the phases, in seconds.
const PHASE_BUCKETS: [f64; 10] =
    [0.000_001, 0.000_002_5, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_5, 0.005, 0.05];
/// One check of so many is timed by phase: reading the clock costs as much as some phases take.
const SAMPLE: u32 = 16;
/// Characters of a revision that become a label.
const MAX_REVISION_CHARS: usize = 64;

/// A part of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From the opened stream to the whole message: it may have to wait for others, or for the rest of itself.
    Queue,
    /// From Envoy's message to the document.
    Input,
    /// Finding and verifying the token.
    Token,
    /// The level of the token, the route requirements, and the members of `input` for them.
    Evidence,
    /// The policy.
    Eval,
    /// From the decision to the answer.
    Respond,
}

impl Phase {
    pub(super) const ALL: [Self; 6] =
        [Self::Queue, Self::Input, Self::Token, Self::Evidence, Self::Eval, Self::Respond];

    pub fn label(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Input => "input",
            Self::Token => "token",
            Self::Evidence => "evidence",
            Self::Eval => "eval",
            Self::Respond => "respond",
        }
    }
}

/// Hits and misses of a cache.
#[derive(Clone, Debug, Default)]
pub struct CacheCount {
    hits: Counter,
    misses: Counter,
}

impl CacheCount {
    pub fn hit(&self) {
        self.hits.inc();
    }

    pub fn miss(&self) {
        self.misses.inc();
    }
}

/// The metrics of the inside of checks.
#[derive(Debug)]
pub struct CheckMetrics {
    by_phase: Family<Labels, Histogram, fn() -> Histogram>,
    /// Resolved once, in the order of `Phase::ALL`.
    phases: [Histogram; Phase::ALL.len()],
    /// All of them, of the same checks.
    total: Histogram,
    turn: AtomicU32,
    pub tokens: CacheCount,
    pub decisions: CacheCount,
    denials: Family<Labels, Counter>,
    /// Resolved once: nearly every denial is the policy's own.
    denials_by_policy: Counter,
    step_ups: Family<Labels, Counter>,
    policy: Family<Labels, Gauge>,
    pub(super) by_reason: Decisions,
    pub log_queue: Gauge,
    traces: Family<Labels, Counter>,
    cancelled: Counter,
    /// 1 where denials are allowed, 2 where faults are as well.
    dry_run: Gauge,
    dry_run_allowed: Counter,
    entrypoint_undefined: Gauge,
    rejected: Family<Labels, Gauge>,
}

impl Default for CheckMetrics {
    fn default() -> Self {
        let denials = Family::<Labels, Counter>::default();
        let denials_by_policy = denials.get_or_create(&vec![("reason", "policy".to_owned())]).clone();
        let by_phase =
            Family::<Labels, _, _>::new_with_constructor((|| Histogram::new(PHASE_BUCKETS)) as fn() -> Histogram);
        let of = |phase: &str| by_phase.get_or_create(&vec![("phase", phase.to_owned())]).clone();
        Self {
            denials_by_policy,
            phases: Phase::ALL.map(|phase| of(phase.label())),
            total: of("total"),
            by_phase,
            turn: AtomicU32::new(0),
            tokens: CacheCount::default(),
            decisions: CacheCount::default(),
            denials,
            step_ups: Family::default(),
            policy: Family::default(),
            by_reason: Decisions::default(),
            log_queue: Gauge::default(),
            traces: Family::default(),
            cancelled: Counter::default(),
            dry_run: Gauge::default(),
            dry_run_allowed: Counter::default(),
            entrypoint_undefined: Gauge::default(),
            rejected: Family::default(),
        }
    }
}

impl CheckMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let help = "Parts of one check in sixteen";
        registry.register("stepgate_check_phase_seconds", help, self.by_phase.clone());
        registry.register("stepgate_token_cache_hits", "Tokens that were verified before", self.tokens.hits.clone());
        registry.register("stepgate_token_cache_misses", "Tokens that were not", self.tokens.misses.clone());
        let help = "Answers of the policy that were kept";
        registry.register("stepgate_decision_cache_hits", help, self.decisions.hits.clone());
        let help = "Answers that were evaluated, though they might have been kept";
        registry.register("stepgate_decision_cache_misses", help, self.decisions.misses.clone());
        self.by_reason.register(registry);
        registry.register("stepgate_denials", "Denials by who denied", self.denials.clone());
        registry.register("stepgate_step_ups", "Demands for more by the caller's level", self.step_ups.clone());
        registry.register(
            "stepgate_policy_info",
            "Info metric (value 1) of the active policy, labelled with entrypoint and revision",
            self.policy.clone(),
        );
        let help = "Checks whose caller gave up before there was a decision";
        registry.register("stepgate_cancelled_checks", help, self.cancelled.clone());
        let help = "Dry-run scope: 0 off, 1 denials of the policy are allowed, 2 faults are allowed as well";
        registry.register("stepgate_dry_run", help, self.dry_run.clone());
        let help = "Checks that were allowed although they were to be denied";
        registry.register("stepgate_dry_run_allowed", help, self.dry_run_allowed.clone());
        let help = "Set to 1 while nothing is defined at the path of the decision, so that every check is denied";
        registry.register("stepgate_entrypoint_undefined", help, self.entrypoint_undefined.clone());
        let help = "Set to 1 while the newest policies of a source are rejected, and older ones decide";
        registry.register("stepgate_policy_rejected", help, self.rejected.clone());
        registry.register("stepgate_traces", "Traces by what became of them", self.traces.clone());
        registry.register("stepgate_decision_log_queue", "Decisions that wait to be events", self.log_queue.clone());
    }

    /// The phase clock of a check that arrived at `began` and starts now; only samples record anything.
    pub fn clock(&self, began: Instant) -> PhaseClock<'_> {
        let is_sampled = self.turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE);
        let since = Instant::now();
        let clock = PhaseClock { check_metrics: is_sampled.then_some(self), began, since, trace: None };
        clock.record(Phase::Queue, since.duration_since(began));
        clock
    }

    /// The active policy makes every decision undefined.
    pub fn entrypoint_undefined(&self, is_undefined: bool) {
        self.entrypoint_undefined.set(i64::from(is_undefined));
    }

    /// The newest policies of a source, `files` or a bundle's name, were rejected, so that older ones stay active.
    pub fn policy_rejected(&self, source: &str, is_rejected: bool) {
        self.rejected.get_or_create(&vec![("source", source.to_owned())]).set(i64::from(is_rejected));
    }

    /// The dry-run scope: 0 off, 1 denials of the policy, 2 faults as well.
    pub fn dry_run_is(&self, scope: i64) {
        self.dry_run.set(scope);
    }

    /// A check was allowed although it was to be denied.
    pub fn dry_run_allowed(&self) {
        self.dry_run_allowed.inc();
    }

    /// A caller gave up.
    pub fn cancelled(&self) {
        self.cancelled.inc();
    }

    /// Counts traces by result.
    pub fn traces_ended(&self, end: &'static str, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.traces.get_or_create(&vec![("outcome", end.to_owned())]).inc_by(count);
    }

    /// A check was denied: by the policy where `reason` is empty.
    pub fn denied(&self, reason: &'static str) {
        match reason {
            "" => self.denials_by_policy.inc(),
            _ => self.denials.get_or_create(&vec![("reason", reason.to_owned())]).inc(),
        };
    }

    /// A caller of this level was asked for more.
    pub fn stepped_up(&self, level: usize) {
        self.step_ups.get_or_create(&vec![("level", level.to_string())]).inc();
    }

    /// Exports the active policy; the series of the previous one is removed.
    pub fn policy_in_force<'a>(
        &self,
        entrypoint: &str,
        revisions: impl Iterator<Item = (&'a String, &'a String)> + Clone,
    ) {
        let short = |revision: &str| revision.chars().take(MAX_REVISION_CHARS).collect::<String>();
        let named = |(bundle, revision): (&String, &String)| format!("{bundle}={}", short(revision));
        self.by_reason.begin(
            entrypoint,
            match revisions.clone().count() {
                0 | 1 => revisions.clone().map(|(_, revision)| short(revision)).collect(),
                _ => revisions.clone().map(named).collect::<Vec<_>>().join(","),
            },
        );
        self.policy.clear();
        let record = |bundle: &str, revision: &str| {
            let revision = short(revision);
            let labels =
                vec![("entrypoint", entrypoint.to_owned()), ("bundle", bundle.to_owned()), ("revision", revision)];
            self.policy.get_or_create(&labels).set(1);
        };
        let mut revisions = revisions.peekable();
        if revisions.peek().is_none() {
            record("", "");
        }
        revisions.for_each(|(bundle, revision)| record(bundle, revision));
    }
}

/// Times the phases of one check, one after the other.
#[derive(Debug)]
pub struct PhaseClock<'a> {
    /// The histograms, if this check is a sample.
    check_metrics: Option<&'a CheckMetrics>,
    began: Instant,
    since: Instant,
    /// The trace of the check, and its receiver.
    trace: Option<(Box<Trace>, &'a Tracer)>,
}

impl<'a> PhaseClock<'a> {
    /// Starts a trace if the incoming traceparent is sampled or local sampling selects this check.
    pub fn follow(
        &mut self,
        tracer: &'a Tracer,
        traceparent: Option<&str>,
        now_ns: i64,
        told: impl FnOnce() -> SpanAttributes,
    ) {
        let took = i64::try_from(self.began.elapsed().as_nanos()).unwrap_or_default();
        let trace = tracer.begin(traceparent, self.began, now_ns.saturating_sub(took));
        self.trace = trace.map(|mut trace| {
            trace.told = told();
            trace.phase(Phase::Queue, self.began, self.since);
            (trace, tracer)
        });
    }

    /// The child spans for requests to other servers, if the check is traced.
    pub fn followed(&self) -> Option<ChildSpans> {
        self.trace.as_ref().map(|(trace, _)| trace.followed())
    }

    /// The check has ended so.
    pub fn decided(&mut self, decision: &'static str, reason: &'static str) {
        if let Some(check_metrics) = self.check_metrics.take() {
            check_metrics.total.observe(self.began.elapsed().as_secs_f64());
        }
        if let Some((mut trace, tracer)) = self.trace.take() {
            (trace.told.decision, trace.told.reason) = (decision, reason);
            tracer.end(trace);
        }
    }

    /// This phase ends now, and the next begins.
    pub fn ended(&mut self, phase: Phase) {
        if self.check_metrics.is_none() && self.trace.is_none() {
            return;
        }
        let now = Instant::now();
        self.record(phase, now.duration_since(self.since));
        if let Some((trace, _)) = &mut self.trace {
            trace.phase(phase, self.since, now);
        }
        self.since = now;
    }
}

impl PhaseClock<'_> {
    fn record(&self, phase: Phase, took: Duration) {
        let at = Phase::ALL.iter().position(|known| *known == phase);
        if let Some(histogram) = self.check_metrics.zip(at).and_then(|(check_metrics, at)| check_metrics.phases.get(at))
        {
            histogram.observe(took.as_secs_f64());
        }
    }
}

impl Drop for PhaseClock<'_> {
    /// A check that did not end by itself has a trace as well.
    fn drop(&mut self) {
        self.decided(if std::thread::panicking() { "fault" } else { "cancelled" }, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn one_check_in_sixteen_is_timed_and_labels_are_few() {
        let metrics = Metrics::new(None);
        for _ in 0..32 {
            let mut clock = metrics.check_metrics.clock(Instant::now());
            for phase in Phase::ALL.into_iter().skip(1) {
                clock.ended(phase);
            }
            metrics.check_metrics.denied("");
            metrics.check_metrics.stepped_up(1);
        }
        metrics.check_metrics.tokens.hit();
        let revisions = |revision: &str| std::collections::BTreeMap::from([("b".to_owned(), revision.to_owned())]);
        for revision in ["r1", &"r".repeat(100)] {
            metrics.check_metrics.policy_in_force("p/allow", revisions(revision).iter());
        }
        let text = metrics.text();
        for line in [
            "stepgate_check_phase_seconds_count{phase=\"eval\"} 2",
            "stepgate_check_phase_seconds_count{phase=\"queue\"} 2",
            "stepgate_check_phase_seconds_count{phase=\"total\"} 2",
            "stepgate_denials_total{reason=\"policy\"} 32",
            "stepgate_step_ups_total{level=\"1\"} 32",
            "stepgate_token_cache_hits_total 1",
            "stepgate_token_cache_misses_total 0",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
        let told: Vec<_> = text.lines().filter(|line| line.starts_with("stepgate_policy_info{")).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told.iter().all(|line| line.contains(&format!("revision=\"{}\"", "r".repeat(64)))), "{told:?}");
    }
}
