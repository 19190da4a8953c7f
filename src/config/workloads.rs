//! Issuers of workloads' tokens, of which most is known.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};
use url::Url;

use super::resolve::Resolver;
use super::section::Section;
use crate::remote::credentials::Credentials;
use crate::remote::service::ServiceSettings;
use crate::token::Preset;

/// Where Kubernetes puts what a pod needs to reach its API server.
const IN_CLUSTER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The name of the API server among the services.
const KUBERNETES: &str = "kubernetes";

/// An entry of `issuers` with what its preset knows.
pub(super) fn with_defaults(item: &Value) -> Value {
    let mut item = item.clone();
    let preset = item.get("preset").and_then(Value::as_str).and_then(Preset::named);
    let Some(members) = item.as_object_mut() else { return item };
    let defaults = match preset {
        Some(Preset::Github) => {
            json!({"issuer": "https://token.actions.githubusercontent.com", "algorithms": ["RS256"]})
        }
        Some(Preset::Gitlab) => json!({"issuer": "https://gitlab.com", "algorithms": ["RS256"]}),
        Some(Preset::Kubernetes) => {
            json!({"issuer": "https://kubernetes.default.svc.cluster.local", "algorithms": ["RS256", "ES256"]})
        }
        Some(Preset::Cognito) => json!({"audience_claim": "client_id", "algorithms": ["RS256"]}),
        _ => return item,
    };
    put(members, &defaults);
    let has_keys = super::issuers::KEY_SOURCES.iter().any(|name| members.contains_key(*name));
    if !has_keys {
        let issuer = members.get("issuer").and_then(Value::as_str).unwrap_or_default().trim_end_matches('/').to_owned();
        let keys = match preset {
            Some(Preset::Kubernetes) => json!({"jwks_service": KUBERNETES}),
            _ => json!({"discovery": format!("{issuer}/.well-known/openid-configuration")}),
        };
        put(members, &keys);
    }
    item
}

fn put(members: &mut Map<String, Value>, defaults: &Value) {
    for (name, value) in defaults.as_object().into_iter().flatten() {
        members.entry(name.clone()).or_insert_with(|| value.clone());
    }
}

/// The services, and the API server as every pod reaches it where an issuer has its keys there. No other service uses that.
pub(super) fn with_kubernetes(
    document: &Value,
    services: &BTreeMap<String, ServiceSettings>,
) -> BTreeMap<String, ServiceSettings> {
    let mut services = services.clone();
    let issuers = document.pointer("/plugins/stepgate/issuers").and_then(Value::as_array);
    let is_used = issuers.into_iter().flatten().any(|issuer| {
        let issuer = with_defaults(issuer);
        let text = |name: &str| issuer.get(name).and_then(Value::as_str);
        text("preset") == Some(KUBERNETES) && text("jwks_service") == Some(KUBERNETES)
    });
    let (true, Ok(url)) = (is_used, Url::parse("https://kubernetes.default.svc")) else { return services };
    services.entry(KUBERNETES.to_owned()).or_insert_with(|| ServiceSettings {
        url,
        is_registry: false,
        is_http2: false,
        headers: Vec::new(),
        credentials: Credentials::BearerFile {
            scheme: "Bearer".to_owned(),
            path: format!("{IN_CLUSTER}/token").into(),
            is_encoded: false,
        },
        header_timeout: Duration::from_secs(10),
        ca_cert: Some(format!("{IN_CLUSTER}/ca.crt").into()),
        system_roots: false,
        client_certificate: None,
        skip_verification: false,
    });
    services
}

impl Resolver<'_> {
    /// Rejects an audience that the provider gives to every job.
    pub(super) fn check_workload_audiences(&mut self, item: Section<'_>, place: &str) {
        let preset = item.text("preset").and_then(Preset::named);
        for audience in item.texts("audiences") {
            let is_everybodys = match preset {
                Some(Preset::Github) => audience.starts_with("https://github.com/"),
                Some(Preset::Gitlab) => Some(audience) == item.text("issuer"),
                _ => false,
            };
            if is_everybodys {
                let message = format!("`{audience}` is in tokens for everybody; let jobs ask for one of your own");
                self.problems.error(format!("{place}.audiences"), message);
            }
            if preset == Some(Preset::Kubernetes) && audience.starts_with("https://kubernetes.default.svc") {
                let message =
                    format!("`{audience}` is in the token of every pod; project one with an audience of your own");
                self.problems.warn(format!("{place}.audiences"), message);
            }
        }
    }
}
