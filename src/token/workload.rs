//! Identities of workloads: CI jobs of GitHub and GitLab, service accounts of Kubernetes, SPIFFE IDs, in one vocabulary.
//!
//! Names can be given up and registered by another owner; ids cannot. The subject is therefore made of ids. GitLab writes booleans as
//! texts, which in Rego are never `true`: here they are booleans.

use super::assurance::Preset;
use super::claims::Profile;
use super::issuer::IssuerSettings;
use super::spiffe;
use crate::value::{Members, Value, as_text, member};

/// `input.workload`; nothing when the issuer's tokens are not those of workloads. What is unknown is absent.
pub fn describe(settings: &IssuerSettings, claims: &Value) -> Option<Value> {
    if settings.profile == Profile::JwtSvid {
        return spiffe_id(claims);
    }
    of_preset(settings.preset, claims)
}

/// A person without write access can start or feed the job. The first name is the former one: both are there until 0.3, since a rule
/// `not input.workload.open_to_strangers` would hold without it.
const UNTRUSTED_TRIGGER: [&str; 2] = ["open_to_strangers", "untrusted_trigger"];

fn put_untrusted_trigger(members: &mut Members, is_open: bool) {
    for name in UNTRUSTED_TRIGGER {
        members.put_text(name, Value::Bool(is_open));
    }
}

/// The SPIFFE ID, and its parts.
fn spiffe_id(claims: &Value) -> Option<Value> {
    let id = member(claims, "sub").and_then(as_text)?;
    let (domain, path) = spiffe::parse(id)?;
    let parts = [("provider", "spiffe"), ("subject", id), ("trust_domain", domain), ("path", path)];
    let parts = parts.into_iter().map(|(name, text)| (name, Value::from(text)));
    Some(parts.chain(UNTRUSTED_TRIGGER.map(|name| (name, Value::Bool(false)))).collect())
}

fn of_preset(preset: Preset, claims: &Value) -> Option<Value> {
    let (provider, names): (_, &[(&str, &str)]) = match preset {
        Preset::Github => (
            "github",
            &[
                ("repository", "repository"),
                ("repository_id", "repository_id"),
                ("owner", "repository_owner"),
                ("owner_id", "repository_owner_id"),
                ("ref", "ref"),
                ("environment", "environment"),
                ("event", "event_name"),
                ("workflow", "job_workflow_ref"),
                ("runner", "runner_environment"),
            ],
        ),
        Preset::Gitlab => (
            "gitlab",
            &[
                ("repository", "project_path"),
                ("repository_id", "project_id"),
                ("owner", "namespace_path"),
                ("owner_id", "namespace_id"),
                ("ref", "ref"),
                ("environment", "environment"),
                ("event", "pipeline_source"),
                ("workflow", "ci_config_ref_uri"),
                ("runner", "runner_environment"),
            ],
        ),
        Preset::Kubernetes => return Some(kubernetes(claims)),
        _ => return None,
    };
    let mut members = Members::default();
    members.put_text("provider", Value::from(provider));
    for (name, claim) in names {
        if let Some(text) = text_of(claims, claim) {
            members.put_text(name, Value::from(text));
        }
    }
    for name in ["ref_protected", "environment_protected"] {
        if let Some(flag) = flag_of(claims, name) {
            members.put_text(name, Value::Bool(flag));
        }
    }
    let trusted: &[&str] = match preset {
        Preset::Github => {
            &["push", "schedule", "workflow_dispatch", "repository_dispatch", "release", "deployment", "merge_group"]
        }
        _ => &["push", "schedule", "web", "api", "trigger"],
    };
    let event = text_of(claims, if preset == Preset::Github { "event_name" } else { "pipeline_source" });
    // A trigger that is not known to need write access may be started, or fed, without it: pull requests, comments, and what
    // follows from them.
    let is_open = !event.is_some_and(|event| trusted.contains(&event.as_str()));
    put_untrusted_trigger(&mut members, is_open);
    let id = text_of(claims, if preset == Preset::Github { "repository_id" } else { "project_id" });
    if let Some(id) = id {
        let place = match (text_of(claims, "environment"), text_of(claims, "ref")) {
            (Some(environment), _) => format!("environment:{}", plain(&environment)),
            (None, Some(reference)) => format!("ref:{}", plain(&reference)),
            (None, None) => "ref:".to_owned(),
        };
        members.put_text("subject", Value::from(format!("{provider}:repository:{}:{place}", plain(&id))));
    }
    Some(members.into_value())
}

/// A projected service-account token (its claim `kubernetes.io`).
fn kubernetes(claims: &Value) -> Value {
    let mut members = Members::default();
    members.put_text("provider", Value::from("kubernetes"));
    put_untrusted_trigger(&mut members, false);
    let Some(own) = member(claims, "kubernetes.io") else { return members.into_value() };
    let account = member(own, "serviceaccount");
    let of_account = |name: &str| account.and_then(|account| text_of(account, name));
    let of_pod = |name: &str| member(own, "pod").and_then(|pod| text_of(pod, name));
    for (name, value) in [
        ("namespace", text_of(own, "namespace")),
        ("service_account", of_account("name")),
        ("service_account_uid", of_account("uid")),
        ("pod", of_pod("name")),
        ("pod_uid", of_pod("uid")),
    ] {
        if let Some(value) = value {
            members.put_text(name, Value::from(value));
        }
    }
    if let Some(uid) = of_account("uid") {
        members.put_text("subject", Value::from(format!("kubernetes:serviceaccount:{}", plain(&uid))));
    }
    members.into_value()
}

/// A part of a subject cannot contain the separator.
fn plain(part: &str) -> String {
    part.replace('%', "%25").replace(':', "%3A")
}

/// A text that is not empty, or a whole number as one.
fn text_of(claims: &Value, name: &str) -> Option<String> {
    let value = member(claims, name)?;
    let number = || value.as_i64().map(|number| number.to_string());
    as_text(value).map(str::to_owned).or_else(number).filter(|text| !text.is_empty())
}

/// A boolean, or one that is written as text.
fn flag_of(claims: &Value, name: &str) -> Option<bool> {
    match member(claims, name)? {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) if &**text == "true" => Some(true),
        Value::String(text) if &**text == "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{DuplicateKeys, JsonLimits, json_text, parse_json};

    fn described(preset: Preset, claims: &str) -> String {
        let limits = JsonLimits { depth: 9, duplicates: DuplicateKeys::Refuse };
        let claims = parse_json(claims.as_bytes(), limits).expect("JSON");
        of_preset(preset, &claims).map_or_else(String::new, |workload| json_text(&workload))
    }

    #[test]
    fn workloads_are_named_by_what_cannot_be_taken_over() {
        assert_eq!(
            described(
                Preset::Github,
                r#"{"repository": "o/r", "repository_id": "7", "event_name": "push", "ref": "refs/heads/main:x", "ref_protected": "true"}"#
            ),
            r#"{"event":"push","open_to_strangers":false,"provider":"github","ref":"refs/heads/main:x","ref_protected":true,"repository":"o/r","repository_id":"7","subject":"github:repository:7:ref:refs/heads/main%3Ax","untrusted_trigger":false}"#
        );
        assert_eq!(
            described(
                Preset::Gitlab,
                r#"{"project_id": 9, "environment": "prod:eu", "ref_protected": "false", "environment_protected": true, "pipeline_source": "merge_request_event"}"#
            ),
            r#"{"environment":"prod:eu","environment_protected":true,"event":"merge_request_event","open_to_strangers":true,"provider":"gitlab","ref_protected":false,"repository_id":"9","subject":"gitlab:repository:9:environment:prod%3Aeu","untrusted_trigger":true}"#
        );
        assert_eq!(
            described(
                Preset::Kubernetes,
                r#"{"kubernetes.io": {"namespace": "n", "serviceaccount": {"name": "s", "uid": "u"}, "pod": {"name": "p", "uid": "q"}}}"#
            ),
            r#"{"namespace":"n","open_to_strangers":false,"pod":"p","pod_uid":"q","provider":"kubernetes","service_account":"s","service_account_uid":"u","subject":"kubernetes:serviceaccount:u","untrusted_trigger":false}"#
        );
    }

    #[test]
    fn what_is_unknown_is_absent_and_trusts_nobody() {
        assert_eq!(
            described(Preset::Github, "{}"),
            r#"{"open_to_strangers":true,"provider":"github","untrusted_trigger":true}"#
        );
        assert_eq!(
            described(Preset::Gitlab, r#"{"ref_protected": "yes", "project_id": [1]}"#),
            r#"{"open_to_strangers":true,"provider":"gitlab","untrusted_trigger":true}"#
        );
        assert_eq!(
            described(Preset::Kubernetes, "{}"),
            r#"{"open_to_strangers":false,"provider":"kubernetes","untrusted_trigger":false}"#
        );
        assert_eq!(described(Preset::Okta, r#"{"repository_id": "7"}"#), "");
        for (preset, claim, event) in [
            (Preset::Github, "event_name", "web"),
            (Preset::Gitlab, "pipeline_source", "release"),
            (Preset::Github, "event_name", "pull_request"),
            (Preset::Github, "event_name", "pull_request_target"),
            (Preset::Github, "event_name", "workflow_run"),
            (Preset::Github, "event_name", "issue_comment"),
            (Preset::Gitlab, "pipeline_source", "parent_pipeline"),
            (Preset::Gitlab, "pipeline_source", "external_pull_request_event"),
        ] {
            let text = described(preset, &format!(r#"{{"{claim}": "{event}"}}"#));
            assert!(text.contains(r#""open_to_strangers":true"#), "{event}");
        }
    }
}
