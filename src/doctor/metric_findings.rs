//! Findings from the metrics of a running server.

use std::collections::BTreeMap;

/// The age of an issuer's keys that is reported; after 24 hours they count no more.
const OLD_KEYS_SECONDS: f64 = 6.0 * 3_600.0;
/// The time without an answer of a bundle's server that is reported.
const OLD_BUNDLES_SECONDS: f64 = 900.0;

/// The time without a word of a stream that is reported.
const SILENT_SOURCE_SECONDS: f64 = 900.0;

/// The time left to a certificate that is reported: also those of an hour are renewed before.
const CERTIFICATE_SECONDS: f64 = 900.0;

/// One line of the text exposition format.
struct Sample<'a> {
    name: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    value: f64,
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (series, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| {
        let (name, value) = label.split_once("=\"")?;
        Some((name, value.trim_end_matches('"')))
    });
    Some(Sample { name, labels: labels.collect(), value: value.parse().ok()? })
}

/// The newest policies of a source are rejected: a restart would fail, or start without them.
pub fn is_rejected(metrics: &str) -> bool {
    metrics.lines().filter_map(sample).any(|sample| sample.name == "stepgate_policy_rejected" && sample.value > 0.0)
}

/// The findings, with their remediation; counts are those since the start. `now` is in seconds since the epoch.
pub fn metric_findings(metrics: &str, now: f64) -> Vec<String> {
    metrics.lines().filter_map(sample).filter_map(|sample| finding(&sample, now)).collect()
}

fn finding(sample: &Sample<'_>, now: f64) -> Option<String> {
    let label = |name: &str| sample.labels.get(name).copied().unwrap_or_default();
    let count = sample.value;
    let age = now - count;
    let finding = match sample.name {
        "stepgate_key_refreshed_at_seconds" if age > OLD_KEYS_SECONDS => {
            let issuer = label("issuer");
            format!("the keys of {issuer} are {:.0} hours old: can its URL be reached from here?", age / 3_600.0)
        }
        "stepgate_bundle_polled_at_seconds" if age > OLD_BUNDLES_SECONDS => {
            let name = label("name");
            format!("the server of the bundle {name} was not heard of for {:.0} minutes: the log says why", age / 60.0)
        }
        "stepgate_certificate_not_after_seconds" if -age < CERTIFICATE_SECONDS => {
            let (listener, minutes) = (label("listener"), -age / 60.0);
            match minutes < 0.0 {
                true => format!("the certificate of the {listener} listener has ended: renew it"),
                false => format!("the certificate of the {listener} listener ends in {minutes:.0} minutes: renew it"),
            }
        }
        "stepgate_certificate_usable" if count <= 0.0 => {
            let (listener, part) = (label("listener"), label("part"));
            format!(
                "the {part} of the {listener} listener has changed and cannot be used, and the old one stays: the log says why"
            )
        }
        "stepgate_hub_store_up" if count <= 0.0 => {
            "the hub cannot write its file, and accepts nothing: is the disk full?".to_owned()
        }
        "stepgate_hub_stream_enabled" if count <= 0.0 => {
            format!("the transmitter of {} has paused its stream: the log has its reason", label("source"))
        }
        _ if count <= 0.0 => return None,
        "stepgate_hub_source_age_seconds" if count > SILENT_SOURCE_SECONDS => format!(
            "the stream {} was not heard of for {:.0} minutes: does its transmitter still send? `verify` asks it",
            label("source"),
            count / 60.0
        ),
        "stepgate_hub_scim_unmapped_users" => format!(
            "{count} user(s) of {} have no link to a token claim, and disabling them does nothing: hub.scim[].link, docs/operate/revocation.md",
            label("provider")
        ),
        "stepgate_hub_events_total" if label("outcome") == "unmatched" => format!(
            "{count} event(s) of {} named no one here, {}: `stepgate hub unmatched`, and the joins of its issuers",
            label("source"),
            label("type")
        ),
        "stepgate_revocation_state" if matches!(label("state"), "stale" | "cold") => format!(
            "revocations are {}: does the hub run, and can it be reached? docs/operate/revocation.md",
            label("state")
        ),
        "stepgate_revocation_overflow" => {
            "the hub has more entries than revocation.max_entries, and they are not used: raise it; the log has the bytes"
                .to_owned()
        }
        "stepgate_faults_total" => {
            let remediation = match label("reason") {
                "overloaded" => "add replicas or processors (limits.checks_in_flight)",
                "check_timeout" => "Envoy waits no longer; is the processor throttled?",
                "no_policy" => "`stepgate check` says what is wrong with the policy",
                "undefined_decision" => "no rule gave a decision; give the entry point a default",
                "evaluation_timeout" => "the policy is too slow; `stepgate eval --profile` shows where",
                _ => "docs/operate/status-codes.md, and the log",
            };
            format!("{count} check(s) denied by a fault, {}: {remediation}", label("reason"))
        }
        "stepgate_decision_logs_total"
            if matches!(label("outcome"), "queue_full" | "buffer_full" | "refused" | "stopped") =>
        {
            format!("{count} decision(s) are missing in the log, {}: docs/reference/compat.md", label("outcome"))
        }
        "stepgate_policy_activations_total" if label("outcome") == "failure" => {
            format!("{count} new policy or policies were refused, and the one before decides: the log says why")
        }
        "stepgate_denials_total" if label("reason") == "step_up_not_satisfiable" => format!(
            "{count} caller(s) came with tokens that never satisfy a demand: does the provider know the levels? docs/policies/step-up.md"
        ),
        "stepgate_cancelled_checks_total" => {
            format!(
                "{count} check(s) whose caller gave up first: compare Envoy's timeout with stepgate_check_duration_seconds"
            )
        }
        "stepgate_refused_connections_total" => {
            let remediation = match label("reason") {
                "limit" if label("listener") == "http" => {
                    "256 are open there, and the oldest made room: who keeps so many?"
                }
                "limit" => "raise limits.connections, or add replicas",
                "handshakes" => "clients open TLS connections without completing the handshake, or the process is CPU-starved",
                "handshake" => "is TLS spoken there, of a version that is wanted here? The log says more",
                "client_closed" => "probes that only open the port, or callers that left without a word",
                "client_rejected_certificate" => "the caller does not trust our certificate: give it our root",
                "protocol" => "HTTP/2 without TLS is spoken there; does the caller use TLS (grpc.tls), or HTTP/1?",
                "no_certificate" => {
                    "the caller must show one; in Istio by `mode: ISTIO_MUTUAL` or `MUTUAL` in its DestinationRule"
                }
                _ => {
                    "the caller's certificate has ended, is not of the roots of this listener, or is not in allowed_spiffe_ids; the log names it"
                }
            };
            format!("{count} connection(s) to {} not served, {}: {remediation}", label("listener"), label("reason"))
        }
        "stepgate_dry_run" => {
            let scope = if count > 1.0 { "denials and faults" } else { "denials" };
            format!("dry-run is on: {scope} are allowed; remove plugins.envoy_ext_authz_grpc.dry-run to enforce them")
        }
        "stepgate_policy_rejected" => format!(
            "the newest policies of `{}` are rejected, and older ones decide; after a restart none would: the log says why",
            label("source")
        ),
        "stepgate_entrypoint_undefined" => {
            "every check is denied: the active policy defines nothing at plugins.envoy_ext_authz_grpc.path; the log names the likely rule"
                .to_owned()
        }
        "stepgate_config_warnings" => {
            format!("{count} doubtful key(s) in the configuration: the log names them at the start")
        }
        _ => return None,
    };
    Some(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The alerts and `doctor` report the same ages.
    #[test]
    fn alerts_have_the_same_thresholds() {
        let rules = include_str!("../../k8s/components/monitoring/rules.yaml");
        for (metric, threshold) in [
            ("stepgate_key_refreshed_at_seconds", format!("> {} * 3600", OLD_KEYS_SECONDS / 3_600.0)),
            ("stepgate_bundle_polled_at_seconds", format!("> {OLD_BUNDLES_SECONDS}")),
            ("stepgate_hub_source_age_seconds", format!("> {SILENT_SOURCE_SECONDS}")),
        ] {
            let rule = rules.lines().find(|line| line.contains(metric)).expect(metric);
            assert!(rule.ends_with(&threshold), "{rule}: {threshold}");
        }
    }

    #[test]
    fn only_what_somebody_should_know_is_told() {
        let quiet = "# TYPE stepgate_faults counter\nstepgate_checks_total{decision=\"deny\"} 7\nstepgate_faults_total{reason=\"x\"} 0\n\
            stepgate_denials_total{reason=\"policy\"} 3\nstepgate_decision_logs_total{outcome=\"uploaded\"} 5\n\
            stepgate_policy_activations_total{outcome=\"success\"} 2\nstepgate_key_refreshed_at_seconds{issuer=\"https://a\"} 99000\n\
            stepgate_certificate_not_after_seconds{listener=\"grpc\"} 101000\nstepgate_certificate_usable{listener=\"grpc\",part=\"certificate\"} 1\n\
            stepgate_bundle_polled_at_seconds{name=\"b\"} 99500\nstepgate_config_warnings 0\nstepgate_hub_store_up 1\nstepgate_hub_source_age_seconds{source=\"a\"} 3\nstepgate_hub_scim_unmapped_users{provider=\"a\"} 0\n\
            stepgate_hub_events_total{source=\"a\",type=\"x\",outcome=\"applied\"} 3\nstepgate_revocation_state{state=\"live\"} 1\nstepgate_revocation_state{state=\"stale\"} 0\nstepgate_dry_run 0\nstepgate_entrypoint_undefined 0\nstepgate_policy_rejected{source=\"files\"} 0\nnonsense\n{} 1\nx{y=\"z\"} NaN";
        assert_eq!(metric_findings(quiet, 100_000.0), Vec::<String>::new());
        for (line, part) in [
            (
                "stepgate_faults_total{reason=\"overloaded\"} 3",
                "3 check(s) denied by a fault, overloaded: add replicas",
            ),
            ("stepgate_faults_total{reason=\"other\"} 1", "docs/operate/status-codes.md"),
            (
                "stepgate_decision_logs_total{outcome=\"buffer_full\"} 2",
                "2 decision(s) are missing in the log, buffer_full",
            ),
            ("stepgate_policy_activations_total{outcome=\"failure\"} 1", "were refused"),
            ("stepgate_denials_total{reason=\"step_up_not_satisfiable\"} 1", "docs/policies/step-up.md"),
            ("stepgate_cancelled_checks_total 4", "4 check(s) whose caller"),
            (
                "stepgate_refused_connections_total{listener=\"grpc\",reason=\"limit\"} 1",
                "1 connection(s) to grpc not served, limit: raise limits.connections",
            ),
            ("stepgate_refused_connections_total{listener=\"http\",reason=\"limit\"} 1", "the oldest made room"),
            ("stepgate_refused_connections_total{reason=\"no_certificate\"} 1", "must show one"),
            ("stepgate_hub_store_up 0", "is the disk full"),
            ("stepgate_hub_stream_enabled{source=\"okta\"} 0", "okta has paused"),
            ("stepgate_hub_source_age_seconds{source=\"okta\"} 1200", "okta was not heard of for 20 minutes"),
            ("stepgate_hub_scim_unmapped_users{provider=\"okta\"} 2", "2 user(s) of okta have no link"),
            (
                "stepgate_hub_events_total{source=\"okta\",type=\"session-revoked\",outcome=\"unmatched\"} 1",
                "1 event(s) of okta named no one",
            ),
            ("stepgate_revocation_state{state=\"stale\"} 1", "revocations are stale"),
            ("stepgate_revocation_overflow 1", "raise it"),
            ("stepgate_config_warnings 2", "2 doubtful"),
            ("stepgate_dry_run 1", "dry-run is on: denials are allowed"),
            ("stepgate_dry_run 2", "denials and faults are allowed"),
            ("stepgate_policy_rejected{source=\"files\"} 1", "the newest policies of `files` are rejected"),
            ("stepgate_entrypoint_undefined 1", "defines nothing at"),
            (
                "stepgate_certificate_usable{listener=\"grpc\",part=\"ca_cert\"} 0",
                "the ca_cert of the grpc listener has changed",
            ),
            ("stepgate_certificate_not_after_seconds{listener=\"grpc\"} 100600", "ends in 10 minutes"),
            ("stepgate_certificate_not_after_seconds{listener=\"http\"} 99000", "has ended"),
            (
                "stepgate_key_refreshed_at_seconds{issuer=\"https://a,b\"} 1000",
                "the keys of https://a,b are 28 hours old",
            ),
            ("stepgate_bundle_polled_at_seconds{name=\"b\"} 98800", "the bundle b was not heard of for 20 minutes"),
        ] {
            let found = metric_findings(line, 100_000.0);
            assert!(found.len() == 1 && found.iter().all(|sign| sign.contains(part)), "{line}: {found:?}");
        }
    }
}
