//! Proxies that ask by plain HTTP requests: Ingress controllers, Traefik, the Gateway API, Envoy Gateway and Istio's HTTP provider.

use serde_json::Value;
use url::Url;

use super::workloads::authorizers;
use super::{Hit, hit};
use crate::doctor::manifests::{Manifests, Object, at, list, text};

/// Ports of stepgate and OPA-Envoy unless they are configured otherwise.
const API_PORT: u64 = 8181;
const GRPC_PORT: u64 = 9191;

/// Where a proxy sends its HTTP authorization requests.
struct Target<'a> {
    object: &'a Object,
    /// The setting that names it.
    setting: String,
    /// The name of a Service, or a host.
    service: String,
    namespace: String,
    port: Option<u64>,
    path: String,
}

impl<'a> Target<'a> {
    /// From a URL, such as `http://stepgate.stepgate-system:8181/v1/data/app/allow`.
    fn of_url(object: &'a Object, setting: &str, address: &str) -> Option<Self> {
        let url = Url::parse(address).ok()?;
        let mut labels = url.host_str()?.split('.');
        let (service, namespace) = (labels.next()?, labels.next().unwrap_or_else(|| object.namespace()));
        Some(Self {
            object,
            setting: format!("`{setting}: {address}`"),
            service: service.to_owned(),
            namespace: namespace.to_owned(),
            port: url.port_or_known_default().map(u64::from),
            path: url.path().to_owned(),
        })
    }

    /// From a reference to a Service.
    fn of_backend(object: &'a Object, setting: &str, backend: &Value, path: Option<&str>) -> Option<Self> {
        let service = text(backend, &["name"])?.to_owned();
        let port = at(backend, &["port"]).and_then(Value::as_u64);
        Some(Self {
            object,
            setting: format!("`{setting}` of `{service}`, port {}", port.unwrap_or_default()),
            service,
            namespace: text(backend, &["namespace"]).unwrap_or_else(|| object.namespace()).to_owned(),
            port,
            path: path.unwrap_or("/").to_owned(),
        })
    }

    /// The Service is one of an authorizer: by the pods that it selects, or by its name.
    fn is_authorizer(&self, manifests: &Manifests) -> bool {
        let is_named = ["stepgate", "opa"].iter().any(|name| self.service.split('-').any(|part| part == *name));
        is_named
            || manifests.find("Service", &self.namespace, &self.service).is_some_and(|service| {
                let Some(Value::Object(selector)) = service.at(&["spec", "selector"]) else { return false };
                authorizers(manifests).iter().any(|own| {
                    let label = |name: &str| at(own.metadata?, &["labels", name]);
                    own.object.namespace() == self.namespace
                        && !selector.is_empty()
                        && selector.iter().all(|(name, value)| label(name) == Some(value))
                })
            })
    }

    /// The requests arrive at `port` of the pods.
    fn reaches(&self, manifests: &Manifests, port: u64) -> bool {
        let of_service = manifests.find("Service", &self.namespace, &self.service).and_then(|service| {
            let mut ports = service.list(&["spec", "ports"]).iter();
            ports.find(|known| at(known, &["port"]).and_then(Value::as_u64) == self.port)
        });
        let target = of_service.and_then(|known| at(known, &["targetPort"])).and_then(Value::as_u64);
        self.port == Some(port) || target == Some(port)
    }

    fn asks_api(&self, manifests: &Manifests) -> bool {
        let is_data = ["/v1/data", "/v0/data", "/v1/query"].iter().any(|api| self.path.starts_with(api));
        is_data || (self.reaches(manifests, API_PORT) && self.is_authorizer(manifests))
    }
}

fn targets(manifests: &Manifests) -> Vec<Target<'_>> {
    let mut found = Vec::new();
    for ingress in manifests.of_kind("Ingress") {
        let Some(Value::Object(annotations)) = ingress.at(&["metadata", "annotations"]) else { continue };
        for (name, address) in annotations.iter().filter(|(name, _)| name.ends_with("/auth-url")) {
            found.extend(address.as_str().and_then(|address| Target::of_url(ingress, name, address)));
        }
    }
    for middleware in manifests.of_kind("Middleware") {
        let address = middleware.text(&["spec", "forwardAuth", "address"]);
        found.extend(address.and_then(|address| Target::of_url(middleware, "forwardAuth.address", address)));
    }
    for route in manifests.of_kind("HTTPRoute").chain(manifests.of_kind("GRPCRoute")) {
        for filter in route.list(&["spec", "rules"]).iter().flat_map(|rule| list(rule, &["filters"])) {
            let Some(external) = at(filter, &["externalAuth"]) else { continue };
            let (backend, path) = (at(external, &["backendRef"]), text(external, &["http", "path"]));
            if text(external, &["protocol"]) == Some("HTTP") {
                found.extend(backend.and_then(|it| Target::of_backend(route, "externalAuth.backendRef", it, path)));
            }
        }
    }
    for policy in manifests.of_kind("SecurityPolicy") {
        let Some(http) = policy.at(&["spec", "extAuth", "http"]) else { continue };
        for backend in list(http, &["backendRefs"]).iter().chain(at(http, &["backendRef"])) {
            found.extend(Target::of_backend(policy, "extAuth.http", backend, text(http, &["path"])));
        }
    }
    found
}

/// Istio's HTTP providers; those at the gRPC port are found where the other providers are.
fn of_providers(manifests: &Manifests) -> Vec<Target<'_>> {
    let mut found = Vec::new();
    for provider in manifests.providers().iter().filter(|provider| !provider.is_grpc) {
        let (host, _) = provider.service();
        let mut labels = host.split('.');
        found.push(Target {
            object: provider.object,
            setting: format!("the provider `{}`, port {}", provider.name, provider.port().unwrap_or_default()),
            service: labels.next().unwrap_or_default().to_owned(),
            namespace: labels.next().unwrap_or("default").to_owned(),
            port: provider.port(),
            path: text(&provider.settings, &["pathPrefix"]).unwrap_or("/").to_owned(),
        });
    }
    found
}

pub(super) fn to_data_api(manifests: &Manifests) -> Vec<Hit<'_>> {
    let all = targets(manifests).into_iter().chain(of_providers(manifests));
    let asks = all.filter(|target| target.asks_api(manifests));
    asks.map(|target| hit(target.object, format!("{} is the data API", target.setting))).collect()
}

pub(super) fn to_grpc_port(manifests: &Manifests) -> Vec<Hit<'_>> {
    let all = targets(manifests).into_iter();
    let asks = all.filter(|target| target.reaches(manifests, GRPC_PORT) && target.is_authorizer(manifests));
    asks.map(|target| hit(target.object, format!("{} is the gRPC port", target.setting))).collect()
}
