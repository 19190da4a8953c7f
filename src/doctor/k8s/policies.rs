//! AuthorizationPolicies whose action is CUSTOM.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::{Hit, hit};
use crate::doctor::manifests::{Manifests, Object, at, list, text};

/// Istio's default root namespace.
const ROOT_NAMESPACE: &str = "istio-system";

/// Members of `source` that Istio refuses in CUSTOM policies; each also has a form with `not`.
const IDENTITIES: &[&str] = &["namespaces", "serviceAccounts", "trustDomains", "principals", "requestPrincipals"];
const IDENTITY_KEYS: &[&str] = &["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];

fn customs(manifests: &Manifests) -> impl Iterator<Item = &Object> {
    manifests.of_kind("AuthorizationPolicy").filter(|policy| policy.text(&["spec", "action"]) == Some("CUSTOM"))
}

/// A CUSTOM policy of the manifests uses the provider of this name.
pub(super) fn is_asked(manifests: &Manifests, name: &str) -> bool {
    customs(manifests).any(|policy| provider(policy) == Some(name))
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
    // Where each provider's authorizer lives: nowhere for one in every pod, whose checks pass no proxy.
    let mut homes: BTreeMap<String, Option<(String, String)>> = BTreeMap::new();
    for provider in manifests.providers() {
        let home = provider.kubernetes_service().map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        homes.insert(provider.name, home);
    }
    let roots = roots(manifests);
    let mut found = Vec::new();
    for policy in customs(manifests) {
        let home = homes.get(provider(policy).unwrap_or_default());
        let (namespace, selected) = (policy.namespace(), selected(policy));
        let is_root = roots.contains(namespace);
        let service = home.and_then(Option::as_ref);
        let is_at_home = service.is_some_and(|(home, _)| home == namespace);
        if !targets(policy).is_empty() {
            let named = |target: &&Value| {
                text(target, &["kind"]) == Some("Service")
                    && text(target, &["name"]) == service.map(|(_, name)| name.as_str())
            };
            if is_at_home && targets(policy).iter().any(named) {
                found.push(hit(policy, "is bound to the authorizer's Service"));
            }
        } else if service.is_some_and(|(home, name)| is_left_out(manifests, policy, home, name)) {
            continue;
        } else if selected.is_empty() {
            if is_root && service.is_some() {
                found.push(hit(policy, "covers the whole mesh"));
            } else if is_at_home {
                found.push(hit(policy, "covers its whole namespace, where the authorizer lives"));
            }
        } else if (is_root || is_at_home)
            && let Some((home, name)) = service
        {
            let labels = manifests.find("Service", home, name).and_then(|found| found.at(&["spec", "selector"]));
            if labels.and_then(Value::as_object).is_some_and(|labels| covers(&selected, labels)) {
                found.push(hit(policy, format!("selects the pods of Service {home}/{name}")));
            }
        }
    }
    found
}

/// The authorizer's pods have no proxy that could ask, or every rule leaves its port out.
fn is_left_out(manifests: &Manifests, policy: &Object, home: &str, name: &str) -> bool {
    let service = manifests.find("Service", home, name);
    let labels = service.and_then(|service| service.at(&["spec", "selector"])).and_then(Value::as_object);
    let own = |metadata: &Value| {
        let of_pod = at(metadata, &["labels"]).and_then(Value::as_object);
        labels.zip(of_pod).is_some_and(|(labels, of_pod)| covers(labels, of_pod))
    };
    let is_bare = |metadata: &Value| {
        ["labels", "annotations"].iter().any(|place| {
            let inject = at(metadata, &[place, "sidecar.istio.io/inject"]);
            inject.is_some_and(|inject| inject == "false" || inject == &Value::Bool(false))
        })
    };
    let mut pods = pods(manifests).filter(|(namespace, metadata)| *namespace == home && own(metadata)).peekable();
    let without_proxy = manifests.namespace(home).and_then(|home| home.label("istio-injection")) == Some("disabled")
        || (pods.peek().is_some() && pods.all(|(_, metadata)| is_bare(metadata)));
    let ports: Vec<String> = service
        .into_iter()
        .flat_map(|service| service.list(&["spec", "ports"]))
        .filter_map(|port| Some(at(port, &["port"])?.to_string()))
        .collect();
    let rules = policy.list(&["spec", "rules"]);
    let leaves_out = |rule: &Value| {
        let operations: Vec<&Value> = operations(rule).collect();
        let leaves = |operation: &&Value| {
            let left = list(operation, &["notPorts"]);
            !ports.is_empty() && left.iter().filter_map(Value::as_str).any(|left| ports.iter().any(|port| port == left))
        };
        !operations.is_empty() && operations.iter().all(leaves)
    };
    without_proxy || (!rules.is_empty() && rules.iter().all(leaves_out))
}

/// The namespaces whose policies count in all others.
fn roots(manifests: &Manifests) -> BTreeSet<&str> {
    let named: BTreeSet<&str> = manifests.meshes().iter().filter_map(|mesh| mesh.text(&["rootNamespace"])).collect();
    if named.is_empty() { BTreeSet::from([ROOT_NAMESPACE]) } else { named }
}

/// The labels of the pods that a policy selects; none for all.
fn selected(policy: &Object) -> Map<String, Value> {
    policy.at(&["spec", "selector", "matchLabels"]).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Pods with these labels are selected.
fn covers(selected: &Map<String, Value>, labels: &Map<String, Value>) -> bool {
    selected.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// Metadata of the pods of every workload, with its namespace.
fn pods(manifests: &Manifests) -> impl Iterator<Item = (&str, &Value)> {
    let templates = ["Deployment", "StatefulSet", "DaemonSet"].into_iter().flat_map(|kind| manifests.of_kind(kind));
    let templates =
        templates.filter_map(|object| Some((object.namespace(), object.at(&["spec", "template", "metadata"])?)));
    templates.chain(manifests.of_kind("Pod").filter_map(|pod| Some((pod.namespace(), pod.at(&["metadata"])?))))
}

pub(super) fn selector_in_ambient(manifests: &Manifests) -> Vec<Hit<'_>> {
    const MODE: &str = "istio.io/dataplane-mode";
    let waypoints = manifests.of_kind("Gateway").filter(|gateway| is_waypoint(gateway)).map(Object::namespace);
    let labelled =
        manifests.of_kind("Namespace").filter(|object| object.label(MODE) == Some("ambient")).map(Object::name);
    let ambient: BTreeSet<&str> = waypoints.chain(labelled).collect();
    let mut pods_of: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for (namespace, metadata) in pods(manifests) {
        pods_of.entry(namespace).or_default().push(metadata);
    }
    let roots = roots(manifests);
    let mut found = Vec::new();
    for policy in customs(manifests).filter(|policy| targets(policy).is_empty()) {
        let (namespace, selected) = (policy.namespace(), selected(policy));
        let of_namespace = pods_of.get(namespace).map_or(&[][..], Vec::as_slice);
        let mut own = of_namespace.iter().filter(|pod| {
            at(pod, &["labels"]).and_then(Value::as_object).is_some_and(|labels| covers(&selected, labels))
        });
        // Gateways have an Envoy that reads selectors, whatever their namespace is.
        let is_gateway = selected.contains_key("gateway.networking.k8s.io/gateway-name")
            || selected.get("istio").and_then(Value::as_str).is_some_and(|name| {
                name.ends_with("gateway") || name.starts_with("ingress") || name.starts_with("egress")
            })
            || own.clone().any(|pod| {
                text(pod, &["annotations", "inject.istio.io/templates"])
                    .is_some_and(|templates| templates.contains("gateway"))
            });
        let is_mode = |pod: &Value, mode: &str| text(pod, &["labels", MODE]) == Some(mode);
        let is_kept_out = own.clone().next().is_some() && own.clone().all(|pod| is_mode(pod, "none"));
        if is_gateway || is_kept_out {
            continue;
        }
        if ambient.contains(namespace) {
            found.push(hit(policy, format!("has no `targetRefs`, and the namespace `{namespace}` is ambient")));
        } else if own.any(|pod| is_mode(pod, "ambient")) {
            found.push(hit(policy, "has no `targetRefs`, and selects pods that are ambient"));
        } else if roots.contains(namespace) && selected.is_empty() && !ambient.is_empty() {
            let names = ambient.iter().copied().collect::<Vec<_>>().join("`, `");
            found.push(hit(policy, format!("is for the whole mesh, of which `{names}` is ambient")));
        }
    }
    found
}

pub(super) fn is_waypoint(gateway: &Object) -> bool {
    gateway.text(&["spec", "gatewayClassName"]).is_some_and(|class| class.ends_with("waypoint"))
}

/// Some traffic passes a waypoint of this name, where namespaces and Services were given.
fn is_enrolled(manifests: &Manifests, waypoint: &Object) -> bool {
    const USE: &str = "istio.io/use-waypoint";
    let labelled = ["Namespace", "Service", "ServiceEntry", "Pod"].into_iter().flat_map(|kind| manifests.of_kind(kind));
    let mut labels =
        labelled.map(|object| (object.label(USE), object.label("istio.io/use-waypoint-namespace"), object));
    labels.any(|(name, namespace, object)| {
        let home = if object.kind() == "Namespace" { object.name() } else { object.namespace() };
        name == Some(waypoint.name()) && namespace.unwrap_or(home) == waypoint.namespace()
    })
}

pub(super) fn target_missing(manifests: &Manifests) -> Vec<Hit<'_>> {
    let has_gateways = manifests.of_kind("Gateway").next().is_some();
    let mut found = Vec::new();
    for policy in customs(manifests) {
        for target in targets(policy).into_iter().filter(|target| text(target, &["kind"]) == Some("Gateway")) {
            let name = text(target, &["name"]).unwrap_or_default();
            match manifests.find("Gateway", policy.namespace(), name) {
                None if has_gateways => {
                    found.push(hit(policy, format!("there is no Gateway `{name}` in `{}`", policy.namespace())));
                }
                Some(gateway)
                    if is_waypoint(gateway)
                        && manifests.namespace(policy.namespace()).is_some()
                        && !is_enrolled(manifests, gateway) =>
                {
                    found.push(hit(policy, format!("nothing is labelled `istio.io/use-waypoint: {name}`")));
                }
                _ => {}
            }
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
    let roots = roots(manifests);
    let mut policies: Vec<_> = customs(manifests).map(|policy| (policy, selection(policy))).collect();
    // The wide ones first, so that the narrow ones find them.
    policies.sort_by_key(|(policy, selected)| (!roots.contains(policy.namespace()), !selected.is_empty()));
    for (policy, selected) in policies {
        let (namespace, own) = (policy.namespace(), provider(policy).unwrap_or_default());
        let around = roots.iter().copied().chain([namespace]);
        // Waypoints read what is bound to them, sidecars what selects them: never both.
        let places: Vec<_> = match targets(policy).is_empty() {
            true => around.flat_map(|place| [(place, String::new()), (place, selected.clone())]).collect(),
            false => vec![(namespace, selected.clone())],
        };
        let mut others = places.iter().filter_map(|place| known.get(place)).flatten();
        if let Some((its, other)) = others.find(|(its, _)| **its != own) {
            found.push(hit(policy, format!("asks `{own}`, {} asks `{its}`", other.title())));
        }
        known.entry((namespace, selected)).or_default().entry(own).or_insert(policy);
    }
    found
}

pub(super) fn path_rules(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for (policy, n, rule) in narrow_rules(manifests) {
        let paths = operations(rule).flat_map(|operation| list(operation, &["paths"])).filter_map(Value::as_str);
        for path in paths.filter(|path| !["*", "/*", "/{**}"].contains(path)) {
            found.push(hit(policy, format!("rules[{n}] asks only for `{path}`")));
        }
    }
    found
}

pub(super) fn client_rules(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for (policy, n, rule) in narrow_rules(manifests) {
        let hosts = operations(rule).flat_map(|operation| list(operation, &["hosts"])).filter_map(Value::as_str);
        for host in hosts.filter(|host| *host != "*") {
            found.push(hit(policy, format!("rules[{n}] asks only for the host `{host}`")));
        }
        let keys = list(rule, &["when"]).iter().filter_map(|condition| text(condition, &["key"]));
        for key in keys.filter(|key| key.starts_with("request.headers[")) {
            found.push(hit(policy, format!("rules[{n}] asks by `{key}`")));
        }
    }
    found
}

/// The rules of policies that do not ask about every request, with their places. Beside one without conditions the others change
/// nothing.
fn narrow_rules(manifests: &Manifests) -> impl Iterator<Item = (&Object, usize, &Value)> {
    let asks_always = |policy: &Object| {
        policy.list(&["spec", "rules"]).iter().any(|rule| rule.as_object().is_some_and(Map::is_empty))
    };
    customs(manifests)
        .filter(move |policy| !asks_always(policy))
        .flat_map(|policy| policy.list(&["spec", "rules"]).iter().enumerate().map(move |(n, rule)| (policy, n, rule)))
}

/// The conditions of a rule on requests.
fn operations(rule: &Value) -> impl Iterator<Item = &Value> {
    list(rule, &["to"]).iter().filter_map(|to| at(to, &["operation"]))
}

pub(super) fn http_rules_on_tcp(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for policy in customs(manifests) {
        let has_http_rules = policy.list(&["spec", "rules"]).iter().any(|rule| {
            operations(rule).any(|operation| {
                operation.get("ports").is_none()
                    && operation.get("notPorts").is_none()
                    && ["methods", "paths", "hosts"].iter().any(|name| operation.get(name).is_some())
            })
        });
        let services = manifests.of_kind("Service").filter(|service| service.namespace() == policy.namespace());
        for service in services.filter(|_| has_http_rules) {
            let (selected, own) = (selected(policy), service.at(&["spec", "selector"]).and_then(Value::as_object));
            let bound = targets(policy);
            let is_bound =
                bound.is_empty() || bound.iter().any(|target| text(target, &["name"]) == Some(service.name()));
            let is_selected = is_bound && own.is_some_and(|own| covers(&selected, own) || covers(own, &selected));
            let tcp = list(&service.value, &["spec", "ports"]).iter().filter(|port| {
                let protocol = text(port, &["appProtocol"]).or_else(|| text(port, &["name"])).unwrap_or_default();
                ["tcp", "tls", "https", "mysql", "mongo", "redis"].iter().any(|kind| protocol.starts_with(kind))
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
    let mut of_namespace: BTreeMap<&str, Vec<Map<String, Value>>> = BTreeMap::new();
    for policy in customs(manifests) {
        of_namespace.entry(policy.namespace()).or_default().push(selected(policy));
    }
    let is_met = |request: &&Object| {
        let own = selected(request);
        let policies = of_namespace.get(request.namespace()).map_or(&[][..], Vec::as_slice);
        policies.iter().any(|policy| covers(policy, &own) || covers(&own, policy))
    };
    let mut found = Vec::new();
    for request in manifests.of_kind("RequestAuthentication").filter(is_met) {
        for rule in request.list(&["spec", "jwtRules"]) {
            let claims = list(rule, &["outputClaimToHeaders"]).iter().filter_map(|claim| text(claim, &["header"]));
            for header in claims.chain(text(rule, &["outputPayloadToHeader"])) {
                found.push(hit(request, format!("`{header}` is written after the check")));
            }
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
