//! AuthorizationPolicies whose action is CUSTOM.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Hit, hit};
use crate::doctor::manifests::{Manifests, Object, at, list, text};

/// Istio's root namespace where nobody says otherwise.
const ROOT_NAMESPACE: &str = "istio-system";

/// Members of `source` that Istio refuses in CUSTOM policies; each also has a form with `not`.
const IDENTITIES: &[&str] = &["namespaces", "serviceAccounts", "trustDomains", "principals", "requestPrincipals"];
const IDENTITY_KEYS: &[&str] = &["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];

fn customs(manifests: &Manifests) -> impl Iterator<Item = &Object> {
    manifests.of_kind("AuthorizationPolicy").filter(|policy| policy.text(&["spec", "action"]) == Some("CUSTOM"))
}

fn provider(policy: &Object) -> Option<&str> {
    policy.text(&["spec", "provider", "name"])
}

fn targets(policy: &Object) -> Vec<&Value> {
    policy.list(&["spec", "targetRefs"]).iter().chain(policy.at(&["spec", "targetRef"])).collect()
}

pub(super) fn matches_identity(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for policy in customs(manifests) {
        for (n, rule) in policy.list(&["spec", "rules"]).iter().enumerate() {
            for source in list(rule, &["from"]).iter().filter_map(|from| at(from, &["source"])?.as_object()) {
                for name in source.keys() {
                    let plain = name.strip_prefix("not").unwrap_or(name);
                    if IDENTITIES.iter().any(|identity| identity.eq_ignore_ascii_case(plain)) {
                        found.push(hit(policy, format!("rules[{n}] matches `source.{name}`")));
                    }
                }
            }
            for key in list(rule, &["when"]).iter().filter_map(|when| text(when, &["key"])) {
                if IDENTITY_KEYS.contains(&key) || key.starts_with("request.auth.") {
                    found.push(hit(policy, format!("rules[{n}] matches `{key}`")));
                }
            }
        }
    }
    found
}

pub(super) fn dry_run(manifests: &Manifests) -> Vec<Hit<'_>> {
    let is_on = |policy: &&Object| policy.annotation("istio.io/dry-run").is_some_and(|value| value != "false");
    let marked = customs(manifests).filter(is_on);
    marked.map(|policy| hit(policy, "has the annotation `istio.io/dry-run`")).collect()
}

pub(super) fn without_rules(manifests: &Manifests) -> Vec<Hit<'_>> {
    let empty = customs(manifests).filter(|policy| policy.list(&["spec", "rules"]).is_empty());
    empty.map(|policy| hit(policy, "has no `rules`")).collect()
}

pub(super) fn covers_authorizer(manifests: &Manifests) -> Vec<Hit<'_>> {
    let providers = manifests.providers();
    let roots: BTreeSet<&str> =
        manifests.meshes().iter().filter_map(|mesh| mesh.text(&["rootNamespace"])).chain([ROOT_NAMESPACE]).collect();
    let mut found = Vec::new();
    for policy in customs(manifests) {
        if policy.at(&["spec", "selector", "matchLabels"]).is_some() || !targets(policy).is_empty() {
            continue;
        }
        let own = providers.iter().filter(|known| Some(known.name.as_str()) == provider(policy));
        let home = own.filter_map(|known| known.kubernetes_service()).map(|(namespace, _)| namespace).next();
        if roots.contains(policy.namespace()) {
            found.push(hit(policy, "covers the whole mesh"));
        } else if home == Some(policy.namespace()) {
            found.push(hit(policy, "covers its whole namespace, where the authorizer lives"));
        }
    }
    found
}

pub(super) fn selector_in_ambient(manifests: &Manifests) -> Vec<Hit<'_>> {
    let is_waypoint =
        |gateway: &Object| gateway.text(&["spec", "gatewayClassName"]).is_some_and(|class| class.ends_with("waypoint"));
    let mut found = Vec::new();
    for policy in customs(manifests).filter(|policy| targets(policy).is_empty()) {
        let namespace = policy.namespace();
        let is_ambient = manifests
            .namespace(namespace)
            .is_some_and(|object| object.label("istio.io/dataplane-mode") == Some("ambient"));
        let has_waypoint =
            manifests.of_kind("Gateway").any(|gateway| gateway.namespace() == namespace && is_waypoint(gateway));
        if is_ambient || has_waypoint {
            found.push(hit(policy, format!("has no `targetRefs`, and the namespace `{namespace}` is ambient")));
        }
    }
    found
}

pub(super) fn two_providers(manifests: &Manifests) -> Vec<Hit<'_>> {
    // By namespace and whom they select, nothing standing for all: the first policy of each provider.
    let mut known: BTreeMap<(&str, String), BTreeMap<&str, &Object>> = BTreeMap::new();
    let mut found = Vec::new();
    let selection = |policy: &Object| {
        let labels = policy.at(&["spec", "selector", "matchLabels"]).and_then(Value::as_object);
        let labels = labels.filter(|labels| !labels.is_empty());
        match (labels, targets(policy).as_slice()) {
            (None, []) => String::new(),
            (labels, targets) => format!("{labels:?} {targets:?}"),
        }
    };
    let (all, some): (Vec<_>, Vec<_>) =
        customs(manifests).map(|policy| (policy, selection(policy))).partition(|(_, selected)| selected.is_empty());
    for (policy, selected) in all.into_iter().chain(some) {
        let (namespace, own) = (policy.namespace(), provider(policy).unwrap_or_default());
        let places = [(namespace, String::new()), (namespace, selected.clone())];
        let mut others = places.iter().filter_map(|place| known.get(place)).flatten();
        if let Some((its, other)) = others.find(|(its, _)| **its != own) {
            found.push(hit(policy, format!("asks `{own}`, {} asks `{its}`", other.title())));
        }
        known.entry((namespace, selected)).or_default().entry(own).or_insert(policy);
    }
    found
}

pub(super) fn path_rules(manifests: &Manifests) -> Vec<Hit<'_>> {
    let merges = |mesh: &Object| {
        let how = mesh.text(&["pathNormalization", "normalization"]).unwrap_or_default();
        how.ends_with("MERGE_SLASHES")
    };
    let is_merged = !manifests.meshes().is_empty() && manifests.meshes().iter().all(merges);
    let mut found = Vec::new();
    for policy in customs(manifests).filter(|_| !is_merged) {
        for (n, rule) in policy.list(&["spec", "rules"]).iter().enumerate() {
            let operations = list(rule, &["to"]).iter().filter_map(|to| at(to, &["operation"]));
            for path in operations.flat_map(|operation| list(operation, &["paths"])).filter_map(Value::as_str) {
                if path != "*" && path != "/*" {
                    found.push(hit(policy, format!("rules[{n}] asks only for `{path}`")));
                }
            }
        }
    }
    found
}

pub(super) fn http_rules_on_tcp(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for policy in customs(manifests) {
        let has_http_rules = policy.list(&["spec", "rules"]).iter().any(|rule| {
            let mut operations = list(rule, &["to"]).iter().filter_map(|to| at(to, &["operation"]));
            operations.any(|operation| {
                operation.get("ports").is_none()
                    && ["methods", "paths", "hosts"].iter().any(|name| operation.get(name).is_some())
            })
        });
        let services = manifests.of_kind("Service").filter(|service| service.namespace() == policy.namespace());
        for service in services.filter(|_| has_http_rules) {
            let selected = policy.at(&["spec", "selector", "matchLabels"]);
            let is_selected = selected.is_none() || selected == service.at(&["spec", "selector"]);
            let tcp = list(&service.value, &["spec", "ports"]).iter().filter(|port| {
                let protocol = text(port, &["appProtocol"]).or_else(|| text(port, &["name"])).unwrap_or_default();
                ["tcp", "mysql", "mongo", "redis"].iter().any(|kind| protocol.starts_with(kind))
            });
            for port in tcp.filter(|_| is_selected) {
                let number = at(port, &["port"]).map(Value::to_string).unwrap_or_default();
                found.push(hit(policy, format!("also counts for port {number} of {}", service.title())));
            }
        }
    }
    found
}

pub(super) fn payload_header(manifests: &Manifests) -> Vec<Hit<'_>> {
    let namespaces: BTreeSet<_> = customs(manifests).map(Object::namespace).collect();
    let mut found = Vec::new();
    for request in manifests.of_kind("RequestAuthentication").filter(|object| namespaces.contains(object.namespace())) {
        for header in
            request.list(&["spec", "jwtRules"]).iter().filter_map(|rule| text(rule, &["outputPayloadToHeader"]))
        {
            found.push(hit(request, format!("`{header}` is written after the check")));
        }
    }
    found
}

pub(super) fn provider_unknown(manifests: &Manifests) -> Vec<Hit<'_>> {
    let providers = manifests.providers();
    let mut found = Vec::new();
    for policy in customs(manifests) {
        match provider(policy) {
            None => found.push(hit(policy, "has no `provider.name`")),
            Some(name) if !manifests.meshes().is_empty() && providers.iter().all(|known| known.name != name) => {
                found.push(hit(policy, format!("names `{name}`")));
            }
            Some(_) => {}
        }
    }
    found
}
