//! Prometheus metrics. Every label has a fixed set of values; nothing from a request becomes one.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::opa_metrics::{BundleMetrics, StatusMetrics};
use super::phases::CheckMetrics;

pub(super) type Labels = Vec<(&'static str, String)>;

/// Upper bounds of the check durations, in seconds.
const CHECK_BUCKETS: [f64; 12] =
    [0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.25];

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    Allow,
    Deny,
    Challenge,
    /// Denied because something went wrong.
    Fault,
}

impl CheckOutcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Challenge => "challenge",
            Self::Fault => "fault",
        }
    }
}

/// The result of a recurring attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
}

/// The result of a decision log event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOutcome {
    /// The service took it.
    Uploaded,
    /// It stands on the console, and is sent nowhere.
    Written,
    /// The policy's `drop` rule is true.
    Unwanted,
    /// Too many decisions waited to become events.
    QueueFull,
    /// Too many bytes of events waited for an upload.
    BufferFull,
    /// More than `max_decisions_per_second`.
    RateLimited,
    /// The process ended before the service took it.
    Stopped,
    /// The service refuses it for what it is, and takes others; or the file that held it was damaged.
    Refused,
    /// Nothing says where decisions are logged any more.
    Unconfigured,
    /// Not an end: a rule of the mask was skipped, or the mask failed and all was erased.
    BadMaskRule,
}

impl LogOutcome {
    const ALL: [Self; 10] = [
        Self::Uploaded,
        Self::Written,
        Self::Unwanted,
        Self::QueueFull,
        Self::BufferFull,
        Self::RateLimited,
        Self::Stopped,
        Self::Refused,
        Self::Unconfigured,
        Self::BadMaskRule,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Uploaded => "uploaded",
            Self::Written => "written",
            Self::Unwanted => "drop_rule",
            Self::QueueFull => "queue_full",
            Self::BufferFull => "buffer_full",
            Self::RateLimited => "rate_limited",
            Self::Stopped => "stopped",
            Self::Refused => "refused",
            Self::Unconfigured => "unconfigured",
            Self::BadMaskRule => "bad_mask_rule",
        }
    }
}

/// Why a connection was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// `limits.connections` are open.
    Limit,
    /// Too many handshakes are under way, and this one did not go on.
    Handshakes,
    /// TLS was not agreed upon, or took too long.
    Handshake,
    /// The peer left before TLS was agreed upon, as a probe does that only opens the port.
    ClientClosed,
    /// The peer does not trust our certificate, and says so.
    ClientRejectedCertificate,
    /// The peer does not speak HTTP/2 here, or TLS where there is none.
    Protocol,
    /// The peer shows no certificate, and must.
    NoCertificate,
    /// The peer's certificate is not trusted, or it is not one of `allowed_spiffe_ids`.
    NotAllowed,
    /// The peer takes too much of the process: answers that it does not read, header blocks that it does not complete.
    QuotaExceeded,
}

impl RejectReason {
    pub const ALL: [Self; 9] = [
        Self::Limit,
        Self::Handshakes,
        Self::Handshake,
        Self::ClientClosed,
        Self::ClientRejectedCertificate,
        Self::Protocol,
        Self::NoCertificate,
        Self::NotAllowed,
        Self::QuotaExceeded,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Handshakes => "handshakes",
            Self::Handshake => "handshake",
            Self::ClientClosed => "client_closed",
            Self::ClientRejectedCertificate => "client_rejected_certificate",
            Self::Protocol => "protocol",
            Self::NoCertificate => "no_certificate",
            Self::NotAllowed => "not_allowed",
            Self::QuotaExceeded => "quota_exceeded",
        }
    }
}

impl Outcome {
    fn label(self) -> String {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
        .to_owned()
    }
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    allowed: Counter,
    denied: Counter,
    challenged: Counter,
    faulted: Counter,
    faults: Family<Labels, Counter>,
    duration: Histogram,
    tokens: Family<Labels, Counter>,
    /// Resolved once: nearly every check has one of these states.
    tokens_verified: Counter,
    tokens_unconfigured: Counter,
    ambiguous_paths: Counter,
    pub in_flight: Gauge,
    refused_connections: Family<Labels, Counter>,
    certificate_usable: Family<Labels, Gauge>,
    certificate_not_before: Family<Labels, Gauge>,
    certificate_not_after: Family<Labels, Gauge>,
    key_refreshes: Family<Labels, Counter>,
    key_refreshed_at: Family<Labels, Gauge>,
    unusable_keys: Family<Labels, Counter>,
    bundle_polls: Family<Labels, Counter>,
    decision_logs: Family<Labels, Counter>,
    bundle_polled_at: Family<Labels, Gauge>,
    policy_activations: Family<Labels, Counter>,
    config_warnings: Gauge,
    status: StatusMetrics,
    pub check_metrics: CheckMetrics,
    /// Bytes that evaluations held.
    pub evaluation_memory: Histogram,
    opa: Option<OpaMetrics>,
}

/// OPA's own two, present when `enable-performance-metrics` is on.
#[derive(Debug)]
struct OpaMetrics {
    duration: Histogram,
    /// A gauge, because a counter's name would end in `_total`, and OPA's is `error_counter`.
    errors: Family<Labels, Gauge>,
}

/// From 16 KiB to 256 MiB.
const MEMORY_BUCKETS: [f64; 8] =
    [16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0, 268_435_456.0];

impl Metrics {
    /// `opa_buckets` are those of `grpc_request_duration_seconds`, when OPA's performance metrics are wanted.
    pub fn new(opa_buckets: Option<Vec<f64>>) -> Self {
        let mut registry = Registry::default();
        let build = Family::<Labels, Gauge>::default();
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
        registry.register("stepgate_build_info", "The version that runs", build);

        let checks = Family::<Labels, Counter>::default();
        let counter = |decision: &str| checks.get_or_create(&vec![("decision", decision.to_owned())]).clone();
        let (allowed, denied) = (counter("allow"), counter("deny"));
        let (challenged, faulted) = (counter("challenge"), counter("fault"));
        registry.register("stepgate_checks", "Checks by what was answered", checks.clone());

        let tokens = Family::<Labels, Counter>::default();
        let state = |state: &str| tokens.get_or_create(&token_labels(state, "")).clone();
        let (tokens_verified, tokens_unconfigured) = (state("verified"), state("unconfigured"));

        let opa = opa_buckets.map(|buckets| {
            let family = Family::<Labels, Histogram, _>::new_with_constructor(move || Histogram::new(buckets.clone()));
            let duration = family.get_or_create(&vec![("handler", "check".to_owned())]).clone();
            registry.register("grpc_request_duration_seconds", "Duration of successful evaluations", family);
            let errors = Family::default();
            registry.register("error_counter", "Faults by OPA's reason", errors.clone());
            OpaMetrics { duration, errors }
        });
        let mut metrics = Self {
            allowed,
            denied,
            challenged,
            faulted,
            faults: Family::default(),
            duration: Histogram::new(CHECK_BUCKETS),
            tokens,
            tokens_verified,
            tokens_unconfigured,
            ambiguous_paths: Counter::default(),
            in_flight: Gauge::default(),
            refused_connections: Family::default(),
            certificate_usable: Family::default(),
            certificate_not_before: Family::default(),
            certificate_not_after: Family::default(),
            key_refreshes: Family::default(),
            key_refreshed_at: Family::default(),
            unusable_keys: Family::default(),
            policy_activations: Family::default(),
            bundle_polls: Family::default(),
            decision_logs: Family::default(),
            bundle_polled_at: Family::default(),
            config_warnings: Gauge::default(),
            status: StatusMetrics::default(),
            check_metrics: CheckMetrics::default(),
            evaluation_memory: Histogram::new(MEMORY_BUCKETS),
            opa,
            registry,
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        // An alert sees the first failure only where there was a zero before.
        for outcome in [Outcome::Success, Outcome::Failure] {
            self.policy_activations.get_or_create(&vec![("outcome", outcome.label())]).inc_by(0);
        }
        let registry = &mut self.registry;
        self.status.register(registry);
        self.check_metrics.register(registry);
        let help = "Memory held by each policy evaluation, bytes";
        registry.register("stepgate_evaluation_memory_bytes", help, self.evaluation_memory.clone());
        registry.register("stepgate_faults", "Denials because something went wrong, by reason", self.faults.clone());
        registry.register(
            "stepgate_check_duration_seconds",
            "Time from the opened stream to the answer",
            self.duration.clone(),
        );
        registry.register("stepgate_tokens", "Tokens by state and reason", self.tokens.clone());
        let help = "Requests whose path has no canonical form";
        registry.register("stepgate_ambiguous_paths", help, self.ambiguous_paths.clone());
        registry.register("stepgate_in_flight_checks", "Checks being answered now", self.in_flight.clone());
        let help = "Connections that were not served, by reason";
        registry.register("stepgate_refused_connections", help, self.refused_connections.clone());
        let help = "1 if the TLS files of a listener are valid as they are on disk, 0 while older ones are in use";
        registry.register("stepgate_certificate_usable", help, self.certificate_usable.clone());
        let help = "When the certificate of a listener begins to be valid, in seconds since the epoch";
        registry.register("stepgate_certificate_not_before_seconds", help, self.certificate_not_before.clone());
        let help = "When it ends";
        registry.register("stepgate_certificate_not_after_seconds", help, self.certificate_not_after.clone());
        let help = "Keys of an issuer that cannot be used, by reason";
        registry.register("stepgate_unusable_keys", help, self.unusable_keys.clone());
        registry.register("stepgate_key_refreshes", "Key set refreshes by issuer", self.key_refreshes.clone());
        let help = "When the issuer's keys were last refreshed, in seconds since the epoch";
        registry.register("stepgate_key_refreshed_at_seconds", help, self.key_refreshed_at.clone());
        let help = "Decisions by what became of them in the decision log";
        registry.register("stepgate_decision_logs", help, self.decision_logs.clone());
        registry.register("stepgate_bundle_polls", "Polls of bundles by outcome", self.bundle_polls.clone());
        let help = "When the bundle was last known to be what its server offers, in seconds since the epoch";
        registry.register("stepgate_bundle_polled_at_seconds", help, self.bundle_polled_at.clone());
        let help = "Policy activations, by result";
        registry.register("stepgate_policy_activations", help, self.policy_activations.clone());
        registry.register(
            "stepgate_config_warnings",
            "Doubtful keys in the configuration",
            self.config_warnings.clone(),
        );
    }

    /// One check has been answered after `took`; `reason` is empty where the policy itself decided.
    pub fn checked(&self, decided: CheckOutcome, reason: &'static str, took: Duration) {
        self.check_metrics.by_reason.count(decided, reason);
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
        if let Some(opa) = &self.opa {
            opa.errors.get_or_create(&vec![("reason", opa_reason.to_owned())]).inc();
        }
    }

    /// A caller gave up before there was a decision.
    pub fn cancelled(&self, opa_reason: &'static str) {
        self.check_metrics.cancelled();
        if let Some(opa) = &self.opa {
            opa.errors.get_or_create(&vec![("reason", opa_reason.to_owned())]).inc();
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

    pub fn ambiguous_path(&self) {
        self.ambiguous_paths.inc();
    }

    pub fn connection_refused(&self, listener: &'static str, reason: RejectReason) {
        let labels = vec![("listener", listener.to_owned()), ("reason", reason.label().to_owned())];
        self.refused_connections.get_or_create(&labels).inc();
    }

    /// The files of this part of a listener's TLS are valid as they are now.
    pub fn certificate_usable(&self, listener: &'static str, part: &'static str, is_usable: bool) {
        let labels = vec![("listener", listener.to_owned()), ("part", part.to_owned())];
        self.certificate_usable.get_or_create(&labels).set(i64::from(is_usable));
    }

    /// When the certificate of a listener is valid, in seconds since the epoch.
    pub fn certificate_valid(&self, listener: &'static str, begin: i64, end: i64) {
        let labels = vec![("listener", listener.to_owned())];
        self.certificate_not_before.get_or_create(&labels).set(begin);
        self.certificate_not_after.get_or_create(&labels).set(end);
    }

    /// One refresh of an issuer's keys ended at `now`.
    /// A key of an issuer cannot be used; each counts once.
    pub fn key_unusable(&self, issuer: &str, reason: &'static str) {
        let labels = vec![("issuer", issuer.to_owned()), ("reason", reason.to_owned())];
        self.unusable_keys.get_or_create(&labels).inc();
    }

    pub fn keys_refreshed(&self, issuer: &str, outcome: Outcome, now: i64) {
        let issuer = ("issuer", issuer.to_owned());
        self.key_refreshes.get_or_create(&vec![issuer.clone(), ("outcome", outcome.label())]).inc();
        if outcome == Outcome::Success {
            self.key_refreshed_at.get_or_create(&vec![issuer]).set(now);
        }
    }

    /// A bundle was requested and, if it was new, activated.
    pub fn bundle_polled(&self, name: &str, outcome: Outcome, now: i64) {
        let name = ("name", name.to_owned());
        self.bundle_polls.get_or_create(&vec![name.clone(), ("outcome", outcome.label())]).inc();
        if outcome == Outcome::Success {
            self.bundle_polled_at.get_or_create(&vec![name]).set(now);
        }
    }

    /// Counts events of the decision log by result.
    pub fn decisions_logged(&self, end: LogOutcome, count: usize) {
        let label = vec![("outcome", end.label().to_owned())];
        self.decision_logs.get_or_create(&label).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// The counts of decision log events so far, by the label of the metric.
    pub fn decision_log_counts(&self) -> BTreeMap<&'static str, u64> {
        let count = |end: &LogOutcome| {
            let label = vec![("outcome", end.label().to_owned())];
            self.decision_logs.get(&label).map(|counter| (end.label(), counter.get()))
        };
        LogOutcome::ALL.iter().filter_map(count).collect()
    }

    pub fn policy_activated(&self, outcome: Outcome) {
        self.policy_activations.get_or_create(&vec![("outcome", outcome.label())]).inc();
    }

    pub fn config_warned(&self, count: usize) {
        self.config_warnings.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The state of all plugins and bundles, for `status.prometheus`.
    pub fn status_told(&self, plugins: &BTreeMap<String, &'static str>, bundles: &[BundleMetrics<'_>]) {
        self.status.publish(plugins, bundles);
    }

    /// The text exposition format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn token_labels(state: &str, reason: &str) -> Labels {
    vec![("state", state.to_owned()), ("reason", reason.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented_and_described_once() {
        let text = Metrics::new(Some(vec![0.001])).text();
        let mut names: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "{text}");
        // Those without a series yet have no line.
        let sources = [include_str!("metrics.rs"), include_str!("phases.rs"), include_str!("decisions.rs")];
        let quoted = sources.iter().flat_map(|source| source.split('"'));
        let is_name = |part: &&str| {
            part.strip_prefix("stepgate_").is_some_and(|name| {
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') && name.len() > 3
            })
        };
        names.extend(quoted.filter(is_name));
        assert!(names.len() > 30, "{names:?}");
        for name in names {
            let is_told = include_str!("../../docs/operate/metrics.md").split('`').any(|code| {
                let code = code.split('{').next().unwrap_or_default();
                code == name || code.strip_suffix("_total") == Some(name)
            });
            assert!(is_told, "{name} is not in docs/operate/metrics.md");
        }
    }

    #[test]
    fn names_are_those_that_dashboards_ask_for() {
        let metrics = Metrics::new(Some(vec![0.001]));
        metrics.checked(CheckOutcome::Allow, "", Duration::from_micros(50));
        metrics.fault("undefined_decision", "envoyauth_eval_error");
        metrics.token("rejected", "expired");
        let text = metrics.text();
        for line in [
            "stepgate_checks_total{decision=\"allow\"} 1",
            "stepgate_faults_total{reason=\"undefined_decision\"} 1",
            "stepgate_tokens_total{state=\"rejected\",reason=\"expired\"} 1",
            "grpc_request_duration_seconds_count{handler=\"check\"} 1",
            "error_counter{reason=\"envoyauth_eval_error\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }
}
