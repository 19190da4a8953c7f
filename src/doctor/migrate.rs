//! The changes for a deployment of OPA-Envoy when its image becomes stepgate's.

use std::fmt;

use serde_json::Value;

use super::k8s::{Authorizer, asks_more_than_life, authorizers, configurations};
use super::manifests::{Manifests, at, text};
use crate::config::key_problems;

/// The image to put in OPA's place.
pub const IMAGE: &str = concat!("registry.example/stepgate:", env!("CARGO_PKG_VERSION"));

/// The action that a line of a migration asks of its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Works as it is.
    Same,
    /// Must be changed.
    Change,
    /// Works, but differs in something.
    Look,
    /// Stepgate would not start with it.
    Refused,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Same => "same",
            Self::Change => "change",
            Self::Look => "look",
            Self::Refused => "refused",
        })
    }
}

/// The findings about one container or configuration.
#[derive(Debug)]
pub struct Migration {
    pub title: String,
    pub origin: String,
    pub lines: Vec<(Verdict, String)>,
}

/// The changes for every container that runs OPA and every configuration of it. `judge` returns which of the arguments after the
/// program's name what is not simply the same.
pub fn migrations(manifests: &Manifests, judge: fn(&[&str]) -> Vec<(Verdict, String)>) -> Vec<Migration> {
    let mut found: Vec<Migration> = Vec::new();
    for own in authorizers(manifests).iter().filter(|own| own.is_opa()) {
        found.push(Migration {
            title: format!("{}, container {}", own.object.title(), own.name()),
            origin: own.object.origin.clone(),
            lines: container(own, judge),
        });
    }
    for (map, key, document) in configurations(manifests) {
        found.push(Migration {
            title: format!("{}, {key}", map.title()),
            origin: map.origin.clone(),
            lines: configuration(&document),
        });
    }
    found
}

fn container(own: &Authorizer<'_>, judge: fn(&[&str]) -> Vec<(Verdict, String)>) -> Vec<(Verdict, String)> {
    let mut lines = vec![(Verdict::Change, format!("image: {}  ->  {IMAGE}", own.image()))];
    let arguments = own.arguments();
    // `opa` and `/opa` start stepgate in its image.
    let flags = match arguments.split_first() {
        Some((program, rest)) if *program == "opa" || *program == "/opa" => rest,
        _ => arguments.as_slice(),
    };
    let environment = own.flags_by_environment();
    let flags: Vec<&str> = flags.iter().copied().chain(environment.iter().map(String::as_str)).collect();
    let judged = judge(&flags);
    if judged.is_empty() {
        lines.push((Verdict::Same, format!("args: all {} work", flags.len())));
    }
    lines.extend(judged);
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let at_probe = |path: &[&str]| at(own.container, &[&[probe], path].concat());
        if at_probe(&["exec"]).is_some() {
            let why = "the image has no shell, and no program but stepgate; take httpGet of port 8282";
            lines.push((Verdict::Change, format!("{probe}: exec; {why}")));
        }
        if let Some(path) = text(own.container, &[probe, "httpGet", "path"]) {
            lines.push(if probe == "livenessProbe" && asks_more_than_life(path) {
                let why = "works, but restarts every replica while a bundle server is down, as OPA does; take /live";
                (Verdict::Look, format!("{probe}: {path}; {why}"))
            } else {
                (Verdict::Same, format!("{probe}: {path}"))
            });
        }
    }
    if at(own.container, &["readinessProbe"]).is_none() {
        lines.push((Verdict::Look, "readinessProbe: none; take httpGet /ready of port 8282".to_owned()));
    }
    if at(own.container, &["securityContext", "runAsUser"]).is_none()
        && at(own.pod, &["securityContext", "runAsUser"]).is_none()
    {
        lines.push((
            Verdict::Look,
            "user: the image runs as 65532, OPA's as 1000; files from volumes must be readable".to_owned(),
        ));
    }
    lines
}

fn configuration(document: &Value) -> Vec<(Verdict, String)> {
    let problems = key_problems(document);
    let refused = problems.errors.iter().map(|problem| (Verdict::Refused, problem.to_string()));
    let look = problems.warnings.iter().map(|problem| (Verdict::Look, problem.to_string()));
    let mut lines: Vec<_> = refused.chain(look).collect();
    if lines.is_empty() {
        lines.push((Verdict::Same, "every key works".to_owned()));
    }
    let addr = text(document, &["plugins", "envoy_ext_authz_grpc", "addr"]).unwrap_or_default();
    if addr.starts_with("unix:///") {
        let mode = "the socket has mode 0660, OPA's follows the umask; plugins.stepgate.socket_mode changes it";
        lines.push((Verdict::Look, format!("plugins.envoy_ext_authz_grpc.addr: {mode}")));
    }
    let is_strict = at(document, &["plugins", "stepgate", "compat"]) == Some(&Value::from("strict"));
    if !is_strict {
        let faults = "faults of policies are denials with a reason, not gRPC errors; `plugins.stepgate.compat: strict` has OPA's answers";
        lines.push((Verdict::Look, faults.to_owned()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPA: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: shop}
spec:
  template:
    spec:
      containers:
      - {name: app, image: app}
      - name: opa-envoy
        image: openpolicyagent/opa:1.9.0-envoy
        args: [run, --server, --config-file=/config/config.yaml, --odd]
        env: [{name: OPA_RUN_OTHER, value: '1'}, {name: HOME, value: /}]
        startupProbe: {exec: {command: [wget, localhost]}}
        livenessProbe: {httpGet: {path: /health?plugins, port: 8282}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: opa, namespace: shop}
data:
  config.yaml: |
    plugins:
      envoy_ext_authz_grpc: {addr: 'unix:///run/opa/opa.sock', path: app/allow}
    decision_logs: {console: true}
  policy.rego: |
    package app
";

    #[test]
    fn what_changes_is_told_line_by_line() {
        let mut manifests = Manifests::default();
        manifests.add("opa.yaml", OPA).expect("YAML");
        let judge: fn(&[&str]) -> Vec<(Verdict, String)> = |flags| {
            let odd = ["--odd", "--other=1"];
            flags.iter().filter(|flag| odd.contains(flag)).map(|flag| (Verdict::Refused, (*flag).to_owned())).collect()
        };
        let found = migrations(&manifests, judge);
        let titles: Vec<_> = found.iter().map(|migration| migration.title.as_str()).collect();
        assert_eq!(titles, ["Deployment shop/app, container opa-envoy", "ConfigMap shop/opa, config.yaml"]);
        let has = |verdict, part: &str| {
            found
                .iter()
                .flat_map(|migration| &migration.lines)
                .any(|(own, line)| *own == verdict && line.contains(part))
        };
        assert!(has(Verdict::Change, "openpolicyagent/opa:1.9.0-envoy"));
        assert!(has(Verdict::Refused, "--odd"));
        assert!(has(Verdict::Refused, "--other=1"), "from the environment");
        assert!(has(Verdict::Look, "livenessProbe: /health?plugins"));
        assert!(has(Verdict::Change, "startupProbe: exec"));
        assert!(has(Verdict::Look, "readinessProbe: none"));
        assert!(has(Verdict::Same, "every key works"));
        assert!(has(Verdict::Look, "mode 0660"));
    }
}
