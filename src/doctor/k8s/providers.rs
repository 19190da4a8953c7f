//! The mesh configuration's extension providers, the Services behind them, and what other meshes have in their place.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::policies::{is_asked, is_waypoint};
use super::{Hit, hit};
use crate::doctor::manifests::{Manifests, Object, Provider, at, is_on, list, text};

/// Valid as a DNS label (RFC 1123).
fn is_label(name: &str) -> bool {
    let is_edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    name.len() <= 63
        && is_edge(name.as_bytes().first())
        && is_edge(name.as_bytes().last())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

pub(super) fn name(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    let mut known = BTreeSet::new();
    for provider in manifests.providers() {
        if !is_label(&provider.name) {
            found.push(hit(provider.object, format!("the provider is named `{}`", provider.name)));
        }
        if !provider.name.is_empty() && !known.insert((&raw const *provider.object, provider.name.clone())) {
            found.push(hit(provider.object, format!("two providers are named `{}`", provider.name)));
        }
    }
    found
}

/// Longer timeouts are errors: clients give up before.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn timeout(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for provider in manifests.providers() {
        let name = &provider.name;
        let Some(given) = at(&provider.settings, &["timeout"]) else {
            found.push(hit(provider.object, format!("the provider `{name}` has no `timeout`")));
            continue;
        };
        let timeout = given.as_str().and_then(crate::config::parse_duration);
        if !timeout.is_some_and(|timeout| !timeout.is_zero() && timeout <= MAX_TIMEOUT) {
            found.push(hit(provider.object, format!("the provider `{name}` has the timeout {given}")));
        }
    }
    found
}

pub(super) fn fail_open(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found: Vec<Hit<'_>> = Vec::new();
    for provider in manifests.providers() {
        if is_on(at(&provider.settings, &["failOpen"])) {
            found.push(hit(provider.object, format!("the provider `{}` has `failOpen: true`", provider.name)));
        }
    }
    for policy in manifests.of_kind("SecurityPolicy") {
        if is_on(policy.at(&["spec", "extAuth", "failOpen"])) {
            found.push(hit(policy, "has `extAuth.failOpen: true`"));
        }
    }
    // Other filters have the same switch.
    let of_ext_authz = |filter: &&Object| filter.value.to_string().contains("ext_authz");
    for filter in
        manifests.of_kind("EnvoyFilter").filter(of_ext_authz).filter(|filter| allows_on_failure(&filter.value))
    {
        found.push(hit(filter, "has `failure_mode_allow: true`"));
    }
    found
}

/// Some filter in it allows where the authorizer fails.
fn allows_on_failure(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.iter().any(|(name, value)| {
            let is_switch = name == "failure_mode_allow" || name == "failureModeAllow";
            (is_switch && is_on(Some(value))) || allows_on_failure(value)
        }),
        Value::Array(items) => items.iter().any(allows_on_failure),
        _ => false,
    }
}

pub(super) fn status_on_error(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for provider in manifests.providers() {
        let name = &provider.name;
        match at(&provider.settings, &["statusOnError"]) {
            None if !is_on(at(&provider.settings, &["failOpen"])) => {
                found.push(hit(provider.object, format!("the provider `{name}` has no `statusOnError`")));
            }
            // Istio takes text alone.
            Some(status) if !status.as_str().is_some_and(|status| status.len() == 3 && status.starts_with('5')) => {
                found.push(hit(provider.object, format!("the provider `{name}` has `statusOnError: {status}`")));
            }
            _ => {}
        }
    }
    found
}

/// Where clients from outside come into the mesh, a provider whose cluster has Envoy's small bound for frames that wait.
pub(super) fn outbound_frames(manifests: &Manifests) -> Vec<Hit<'_>> {
    if manifests.of_kind("Gateway").all(is_waypoint) {
        return Vec::new();
    }
    let filters: Vec<String> = manifests
        .of_kind("EnvoyFilter")
        .map(|filter| filter.value.to_string())
        .filter(|text| text.contains("max_outbound_control_frames"))
        .collect();
    let mut found = Vec::new();
    let is_used = |provider: &&Provider| provider.is_grpc && is_asked(manifests, &provider.name);
    for provider in manifests.providers().iter().filter(is_used) {
        let service = text(&provider.settings, &["service"]).unwrap_or_default();
        // `namespace/host`, or a host alone.
        let host = service.rsplit('/').next().unwrap_or(service);
        if !filters.iter().any(|filter| filter.contains(host)) {
            let what =
                format!("the provider `{}` has no EnvoyFilter that sets `max_outbound_control_frames`", provider.name);
            found.push(hit(provider.object, what));
        }
    }
    found
}

/// The largest `max_request_headers_kb` whose headers, copied into those of a check, stay below the 1 MiB that the gRPC listener takes.
const MAX_REQUEST_HEADERS_KB: u64 = 960;

pub(super) fn request_headers(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for filter in manifests.of_kind("EnvoyFilter") {
        if let Some(kilobytes) = request_headers_kb(&filter.value).filter(|&given| given > MAX_REQUEST_HEADERS_KB) {
            found.push(hit(filter, format!("has `max_request_headers_kb: {kilobytes}`")));
        }
    }
    found
}

/// The largest `max_request_headers_kb` in it.
fn request_headers_kb(value: &Value) -> Option<u64> {
    match value {
        Value::Object(members) => {
            let within = |(name, value): (&String, &Value)| match name.as_str() {
                "max_request_headers_kb" | "maxRequestHeadersKb" => value.as_u64(),
                _ => request_headers_kb(value),
            };
            members.iter().filter_map(within).max()
        }
        Value::Array(items) => items.iter().filter_map(request_headers_kb).max(),
        _ => None,
    }
}

/// Istio speaks HTTP/2 to this port of a Service.
fn is_http2(port: &Value) -> bool {
    match text(port, &["appProtocol"]) {
        Some(protocol) => {
            matches!(protocol.to_ascii_lowercase().as_str(), "grpc" | "grpc-web" | "http2" | "kubernetes.io/h2c")
        }
        None => {
            let name = text(port, &["name"]).unwrap_or_default();
            matches!(name.split('-').next(), Some("grpc" | "http2"))
        }
    }
}

pub(super) fn port_protocol(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for provider in manifests.providers().iter().filter(|provider| provider.is_grpc) {
        let service = provider.kubernetes_service();
        if let Some(service) = service.and_then(|(namespace, name)| manifests.find("Service", namespace, name)) {
            for port in list(&service.value, &["spec", "ports"]) {
                if at(port, &["port"]).and_then(Value::as_u64) == provider.port() && !is_http2(port) {
                    found.push(hit(service, format!("port {} is not known to be gRPC", provider.port().unwrap_or(0))));
                }
            }
        }
        let (host, _) = provider.service();
        for entry in entries(manifests, host) {
            for port in list(&entry.value, &["spec", "ports"]) {
                let protocol = text(port, &["protocol"]).unwrap_or_default();
                let is_ours = at(port, &["number"]).and_then(Value::as_u64) == provider.port();
                if is_ours && !matches!(protocol.to_ascii_uppercase().as_str(), "GRPC" | "HTTP2") {
                    found.push(hit(
                        entry,
                        format!("port {} has the protocol `{protocol}`", provider.port().unwrap_or(0)),
                    ));
                }
            }
        }
    }
    found
}

/// The ServiceEntries of a host.
fn entries<'a>(manifests: &'a Manifests, host: &str) -> Vec<&'a Object> {
    let has_host = |entry: &&Object| entry.list(&["spec", "hosts"]).iter().any(|known| known.as_str() == Some(host));
    manifests.of_kind("ServiceEntry").filter(has_host).collect()
}

pub(super) fn service_port(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for provider in manifests.providers() {
        let Some((namespace, name)) = provider.kubernetes_service() else {
            found.extend(entry_missing(manifests, &provider).map(|what| hit(provider.object, what)));
            continue;
        };
        let has_services = manifests.of_kind("Service").any(|service| service.namespace() == namespace);
        let wanted = provider.port();
        match manifests.find("Service", namespace, name) {
            None if has_services => {
                found.push(hit(provider.object, format!("there is no Service `{name}` in `{namespace}`")));
            }
            Some(service) => {
                let mut ports = service.list(&["spec", "ports"]).iter();
                if !ports.any(|port| at(port, &["port"]).and_then(Value::as_u64) == wanted) {
                    let wanted = wanted.map_or_else(|| "none".to_owned(), |port| port.to_string());
                    found.push(hit(provider.object, format!("{} has no port {wanted}", service.title())));
                }
            }
            None => {}
        }
        let (_, given) = provider.service();
        if let Some(given) = given.filter(|given| *given != namespace) {
            found
                .push(hit(provider.object, format!("`service` begins with `{given}/` for a Service of `{namespace}`")));
        }
    }
    found
}

/// The problem of a provider whose host is no Kubernetes Service, where the ServiceEntries were given.
fn entry_missing(manifests: &Manifests, provider: &Provider<'_>) -> Option<String> {
    let (host, namespace) = provider.service();
    let entries = entries(manifests, host);
    if entries.is_empty() {
        let is_short = !host.contains('.') || host.ends_with(".svc");
        return if manifests.of_kind("ServiceEntry").next().is_some() {
            Some(format!("no ServiceEntry has the host `{host}`"))
        } else {
            is_short.then(|| format!("`{host}` is neither a whole name (`stepgate.stepgate-system.svc.cluster.local`) nor the host of a ServiceEntry"))
        };
    }
    let here = |entry: &&&Object| namespace.is_none_or(|namespace| entry.namespace() == namespace);
    let mut visible = entries.iter().filter(here).peekable();
    if visible.peek().is_none() {
        return Some(format!("no ServiceEntry of `{}` has the host `{host}`", namespace.unwrap_or_default()));
    }
    let wanted = provider.port();
    let has_port = |entry: &&Object| {
        entry.list(&["spec", "ports"]).iter().any(|port| at(port, &["number"]).and_then(Value::as_u64) == wanted)
    };
    (!visible.any(has_port)).then(|| {
        format!(
            "no ServiceEntry of `{host}` has the port {}",
            wanted.map_or_else(|| "that is missing".to_owned(), |port| port.to_string())
        )
    })
}

pub(super) fn two_namespaces(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for provider in manifests.providers() {
        let (host, namespace) = provider.service();
        let entries = entries(manifests, host);
        let namespaces: BTreeSet<_> = entries.iter().map(|entry| entry.namespace()).collect();
        if namespace.is_none() && namespaces.len() > 1 {
            let places = namespaces.into_iter().collect::<Vec<_>>().join("`, `");
            found.extend(entries.first().map(|entry| hit(entry, format!("`{host}` is in `{places}`"))));
        }
    }
    found
}

pub(super) fn http_on_grpc(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for provider in manifests.providers().iter().filter(|provider| !provider.is_grpc) {
        let service = provider.kubernetes_service();
        let service = service.and_then(|(namespace, name)| manifests.find("Service", namespace, name));
        let ports = service.map_or(&[][..], |service| service.list(&["spec", "ports"]));
        let is_grpc =
            ports.iter().any(|port| at(port, &["port"]).and_then(Value::as_u64) == provider.port() && is_http2(port));
        if is_grpc || (service.is_none() && provider.port() == Some(9191)) {
            found.push(hit(
                provider.object,
                format!("the provider `{}` asks port {}", provider.name, provider.port().unwrap_or(0)),
            ));
        }
    }
    found
}

pub(super) fn body_as_text(manifests: &Manifests) -> Vec<Hit<'_>> {
    let with_text = manifests.providers().into_iter().filter(|provider| {
        let body = at(&provider.settings, &["includeRequestBodyInCheck"]);
        provider.is_grpc && body.is_some_and(|body| at(body, &["packAsBytes"]) != Some(&Value::Bool(true)))
    });
    with_text.map(|provider| hit(provider.object, format!("the provider `{}`", provider.name))).collect()
}

/// Providers and filters that cut bodies, where the policies that were given read bodies and never `truncated_body`.
pub(super) fn partial_bodies(manifests: &Manifests) -> Vec<Hit<'_>> {
    let policies: Vec<&str> = manifests
        .of_kind("ConfigMap")
        .filter_map(|map| map.at(&["data"])?.as_object())
        .flat_map(|files| files.iter().filter(|(name, _)| name.ends_with(".rego")))
        .filter_map(|(_, text)| text.as_str())
        .collect();
    let reads = |member: &str| policies.iter().any(|text| text.contains(member));
    let reads_body = reads("parsed_body") || reads("raw_body") || reads("http.body");
    if !reads_body || reads("truncated_body") {
        return Vec::new();
    }
    let cuts = |settings: &Value| is_on(at(settings, &["includeRequestBodyInCheck", "allowPartialMessage"]));
    let providers = manifests.providers().into_iter().filter(|provider| cuts(&provider.settings));
    let found = providers.map(|provider| {
        hit(provider.object, format!("the provider `{}` has `allowPartialMessage: true`", provider.name))
    });
    let cutting = |text: &str| text.contains("\"allow_partial_message\":true");
    let filters = manifests.of_kind("EnvoyFilter").filter(|filter| cutting(&filter.value.to_string()));
    found.chain(filters.map(|filter| hit(filter, "has `allow_partial_message: true`"))).collect()
}

pub(super) fn clear_route_cache(manifests: &Manifests) -> Vec<Hit<'_>> {
    let with =
        manifests.providers().into_iter().filter(|provider| at(&provider.settings, &["clearRouteCache"]).is_some());
    with.map(|provider| hit(provider.object, format!("the provider `{}` sets it", provider.name))).collect()
}

pub(super) fn gateway_timeout(manifests: &Manifests) -> Vec<Hit<'_>> {
    let with_ext_auth = manifests.of_kind("SecurityPolicy").filter(|policy| policy.at(&["spec", "extAuth"]).is_some());
    with_ext_auth
        .filter(|policy| policy.at(&["spec", "extAuth", "timeout"]).is_none())
        .map(|policy| hit(policy, "has no `extAuth.timeout`"))
        .collect()
}

pub(super) fn reference_grant(manifests: &Manifests) -> Vec<Hit<'_>> {
    let mut found = Vec::new();
    for policy in manifests.of_kind("SecurityPolicy") {
        let backends = ["grpc", "http"].iter().flat_map(|kind| {
            let one = policy.at(&["spec", "extAuth", kind, "backendRef"]);
            policy.list(&["spec", "extAuth", kind, "backendRefs"]).iter().chain(one)
        });
        for backend in backends {
            let kind = text(backend, &["kind"]).unwrap_or("Service");
            let Some(namespace) = text(backend, &["namespace"]).filter(|other| *other != policy.namespace()) else {
                continue;
            };
            let grants = |grant: &Object| {
                grant.namespace() == namespace
                    && grant.list(&["spec", "from"]).iter().any(|from| {
                        text(from, &["group"]) == Some("gateway.envoyproxy.io")
                            && text(from, &["kind"]) == Some("SecurityPolicy")
                            && text(from, &["namespace"]) == Some(policy.namespace())
                    })
                    && grant.list(&["spec", "to"]).iter().any(|to| {
                        text(to, &["kind"]) == Some(kind)
                            && text(to, &["name"]).is_none_or(|name| text(backend, &["name"]) == Some(name))
                    })
            };
            // Where nothing of the other namespace was given, its grants were not either.
            let is_given = manifests.all().any(|object| object.namespace() == namespace);
            if is_given && !manifests.of_kind("ReferenceGrant").any(grants) {
                found.push(hit(
                    policy,
                    format!("uses a {kind} of `{namespace}`, which grants nothing to `{}`", policy.namespace()),
                ));
            }
        }
    }
    found
}
