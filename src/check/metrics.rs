//! Metrics of checks: outcomes, durations, phases, tokens by state.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::telemetry::{CheckOutcome, Labels, Registrar, RoomMetrics};

/// Upper bounds of the check durations, in seconds.
const CHECK_BUCKETS: [f64; 12] =
    [0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.25];
/// Upper bounds of the phases, in seconds.
const PHASE_BUCKETS: [f64; 10] =
    [0.000_001, 0.000_002_5, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_5, 0.005, 0.05];
/// One check of so many is timed by phase: reading the clock costs as much as some phases take.
const SAMPLE: u32 = 16;

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
    const ALL: [Self; 6] = [Self::Queue, Self::Input, Self::Token, Self::Evidence, Self::Eval, Self::Respond];

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

#[derive(Debug)]
pub struct CheckMetrics {
    allowed: Counter,
    denied: Counter,
    challenged: Counter,
    faulted: Counter,
    faults: Family<Labels, Counter>,
    duration: Histogram,
    pub in_flight: Gauge,
    tokens: Family<Labels, Counter>,
    /// Resolved once: nearly every check has one of these states.
    tokens_verified: Counter,
    tokens_unconfigured: Counter,
    pub ambiguous_paths: Counter,
    /// In the order of `Phase::ALL`, and all of them of the same checks last.
    phases: Vec<Histogram>,
    /// The number of checks, for samples.
    turn: AtomicU32,
    denials: Family<Labels, Counter>,
    /// Resolved once: nearly every denial is the policy's own.
    denials_by_policy: Counter,
    step_ups: Family<Labels, Counter>,
    cancelled: Counter,
    /// 1 where denials are allowed, 2 where faults are as well.
    pub dry_run: Gauge,
    pub dry_run_allowed: Counter,
    opa: Option<OpaMetrics>,
}

/// OPA's own two, present when `enable-performance-metrics` is on.
#[derive(Debug)]
struct OpaMetrics {
    duration: Histogram,
    /// A gauge, because a counter's name would end in `_total`, and OPA's is `error_counter`.
    errors: Family<Labels, Gauge>,
}

impl RoomMetrics for CheckMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        let checks = registrar.counters("stepgate_checks", "Checks, by decision");
        let decision = |decision: &str| checks.get_or_create(&vec![("decision", decision.to_owned())]).clone();
        let tokens = registrar.counters("stepgate_tokens", "Tokens, by state and reason");
        let state = |state: &str| tokens.get_or_create(&token_labels(state, "")).clone();
        let denials = registrar.counters("stepgate_denials", "Denied checks, by reason");
        let denials_by_policy = denials.get_or_create(&vec![("reason", "policy".to_owned())]).clone();
        let phases = Phase::ALL.map(Phase::label);
        Self {
            allowed: decision("allow"),
            denied: decision("deny"),
            challenged: decision("challenge"),
            faulted: decision("fault"),
            faults: registrar.counters("stepgate_faults", "Denials because something went wrong, by reason"),
            duration: registrar.histogram(
                "stepgate_check_duration_seconds",
                "Time from the opened stream to the answer, seconds",
                &CHECK_BUCKETS,
            ),
            in_flight: registrar.gauge("stepgate_in_flight_checks", "Checks being answered now"),
            tokens_verified: state("verified"),
            tokens_unconfigured: state("unconfigured"),
            tokens,
            ambiguous_paths: registrar.counter("stepgate_ambiguous_paths", "Requests whose path has no canonical form"),
            phases: registrar.histograms(
                ("stepgate_check_phase_seconds", "Duration of each check phase, sampled 1 in 16, seconds"),
                &PHASE_BUCKETS,
                "phase",
                &[&phases[..], &["total"]].concat(),
            ),
            turn: AtomicU32::new(0),
            denials_by_policy,
            denials,
            step_ups: registrar.counters("stepgate_step_ups", "Step-up challenges, by the level of the caller"),
            cancelled: registrar
                .counter("stepgate_cancelled_checks", "Checks whose caller gave up before there was a decision"),
            dry_run: registrar.gauge(
                "stepgate_dry_run",
                "Dry-run scope: 0 off, 1 denials of the policy are allowed, 2 faults are allowed as well",
            ),
            dry_run_allowed: registrar
                .counter("stepgate_dry_run_allowed", "Checks that were allowed although they were to be denied"),
            opa: registrar.opa_buckets().map(|buckets| OpaMetrics {
                duration: registrar
                    .histograms(
                        ("grpc_request_duration_seconds", "Duration of successful evaluations, seconds"),
                        &buckets,
                        "handler",
                        &["check"],
                    )
                    .swap_remove(0),
                errors: registrar.gauges("error_counter", "Faults, by OPA's reason"),
            }),
        }
    }
}

impl CheckMetrics {
    /// One check has been answered after `took`.
    pub fn answered(&self, decided: CheckOutcome, took: Duration) {
        match decided {
            CheckOutcome::Allow => self.allowed.inc(),
            CheckOutcome::Deny => self.denied.inc(),
            CheckOutcome::Challenge => self.challenged.inc(),
            CheckOutcome::Fault => self.faulted.inc(),
        };
        self.duration.observe(took.as_secs_f64());
        if let (Some(opa), true) = (&self.opa, decided != CheckOutcome::Fault) {
            opa.duration.observe(took.as_secs_f64());
        }
    }

    /// A check was denied because of a fault; `opa_reason` is what OPA's `error_counter` calls it.
    pub fn fault(&self, reason: &'static str, opa_reason: &'static str) {
        self.faults.get_or_create(&vec![("reason", reason.to_owned())]).inc();
        self.opa_error(opa_reason);
    }

    /// A caller gave up before there was a decision.
    pub fn cancelled(&self, opa_reason: &'static str) {
        self.cancelled.inc();
        self.opa_error(opa_reason);
    }

    fn opa_error(&self, reason: &'static str) {
        if let Some(opa) = &self.opa {
            opa.errors.get_or_create(&vec![("reason", reason.to_owned())]).inc();
        }
    }

    /// The state of one request's token; `reason` is empty unless it was rejected.
    pub fn token(&self, state: &'static str, reason: &'static str) {
        match state {
            "verified" => self.tokens_verified.inc(),
            "unconfigured" => self.tokens_unconfigured.inc(),
            _ => self.tokens.get_or_create(&token_labels(state, reason)).inc(),
        };
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

    /// The next check is one of those that are timed by phase.
    pub fn is_sample(&self) -> bool {
        self.turn.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE)
    }

    /// A phase of a sample took so long; `None` is the whole check.
    pub fn phase(&self, phase: Option<Phase>, took: Duration) {
        let at = Phase::ALL.iter().position(|known| Some(*known) == phase).unwrap_or(Phase::ALL.len());
        if let Some(histogram) = self.phases.get(at) {
            histogram.observe(took.as_secs_f64());
        }
    }
}

fn token_labels(state: &str, reason: &str) -> Labels {
    vec![("state", state.to_owned()), ("reason", reason.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn names_are_those_that_dashboards_ask_for() {
        let metrics = Metrics::new(Some(vec![0.001]));
        let checks = metrics.of::<CheckMetrics>();
        checks.answered(CheckOutcome::Allow, Duration::from_micros(50));
        checks.fault("undefined_decision", "envoyauth_eval_error");
        checks.token("rejected", "expired");
        checks.denied("");
        checks.stepped_up(1);
        let text = metrics.text();
        for line in [
            "stepgate_checks_total{decision=\"allow\"} 1",
            "stepgate_faults_total{reason=\"undefined_decision\"} 1",
            "stepgate_tokens_total{state=\"rejected\",reason=\"expired\"} 1",
            "stepgate_denials_total{reason=\"policy\"} 1",
            "stepgate_step_ups_total{level=\"1\"} 1",
            "grpc_request_duration_seconds_count{handler=\"check\"} 1",
            "error_counter{reason=\"envoyauth_eval_error\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }
}
