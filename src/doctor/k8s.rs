//! The mistakes in Kubernetes and Istio manifests that nothing else finds before production.
//!
//! The rules are those of `docs/reference/lint.md`, which is made from the table below.

mod forward_auth;
mod hub;
mod policies;
mod providers;
mod workloads;

use std::fmt;

use super::manifests::{Manifests, Object};

pub use self::workloads::{Authorizer, asks_more_than_life, authorizers, configurations};

/// The severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Opens a hole, or denies everything.
    Error,
    /// Works until something happens.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Where a rule found something.
#[derive(Debug)]
pub struct Hit<'a> {
    object: &'a Object,
    what: String,
}

fn hit(object: &Object, what: impl Into<String>) -> Hit<'_> {
    Hit { object, what: what.into() }
}

/// One kind of mistake.
#[derive(Debug)]
pub struct Rule {
    pub id: &'static str,
    pub severity: Severity,
    /// The consequence.
    pub why: &'static str,
    /// The remediation.
    pub remediation: &'static str,
    find: fn(&Manifests) -> Vec<Hit<'_>>,
}

const fn error(
    id: &'static str,
    why: &'static str,
    remediation: &'static str,
    find: fn(&Manifests) -> Vec<Hit<'_>>,
) -> Rule {
    Rule { id, severity: Severity::Error, why, remediation, find }
}

const fn warning(
    id: &'static str,
    why: &'static str,
    remediation: &'static str,
    find: fn(&Manifests) -> Vec<Hit<'_>>,
) -> Rule {
    Rule { id, severity: Severity::Warning, why, remediation, find }
}

/// All rules, in the order of the reference.
pub const RULES: &[Rule] = &[
    error(
        "custom-matches-identity",
        "Istio refuses CUSTOM policies that match principals, namespaces, service accounts or request.auth; only its webhook says so, and where that is bypassed all is denied.",
        "Match by paths, hosts, headers or addresses, or use `rules: [{}]` and decide in Rego: `input.peer` and `input.jwt` have the identities.",
        policies::matches_identity,
    ),
    error(
        "custom-dry-run",
        "`istio.io/dry-run` on a CUSTOM policy drops it silently before Istio 1.30 and denies what it matches since.",
        "Remove the annotation; for a trial set `plugins.envoy_ext_authz_grpc.dry-run: true` in stepgate.",
        policies::dry_run,
    ),
    error(
        "custom-without-rules",
        "A CUSTOM policy without rules is refused by Istio: it would never ask.",
        "Write `rules: [{}]` for every request.",
        policies::without_rules,
    ),
    error(
        "custom-asks-for-itself",
        "The policy also covers the authorizer itself: each check is a request that must be checked first, and all is denied.",
        "Give the policy a selector, or keep it out of the root namespace and of the authorizer's own.",
        policies::covers_authorizer,
    ),
    error(
        "custom-not-enforced-in-ambient",
        "ztunnel ignores CUSTOM, and waypoints ignore policies with a selector: the workload is not protected.",
        "Deploy a waypoint and bind the policy to it by `targetRefs`.",
        policies::selector_in_ambient,
    ),
    error(
        "two-providers",
        "Two CUSTOM policies with different providers for one workload: Istio denies what both match, unless PILOT_ENABLE_MULTIPLE_CUSTOM_AUTHZ_PROVIDERS is set (1.30 and newer).",
        "Use one provider for each workload.",
        policies::two_providers,
    ),
    error(
        "custom-target-missing",
        "The Gateway that `targetRefs` names does not exist in the policy's namespace, or nothing is sent through it: nothing is checked.",
        "Correct the name; label the namespace or the Services `istio.io/use-waypoint`.",
        policies::target_missing,
    ),
    warning(
        "custom-path-rules",
        "A path that no entry of `rules` matches is not checked at all, and `/admin` matches neither `//admin` nor `/ADMIN`.",
        "Use `rules: [{}]`, or exclude with `notPaths`, and decide by path in Rego. `pathNormalization: MERGE_SLASHES` helps against `//admin` alone.",
        policies::path_rules,
    ),
    warning(
        "custom-client-rules",
        "Headers and hosts are written by the client: a request without the header, or to another name of the workload, is not checked at all.",
        "Use `rules: [{}]` and decide by them in Rego.",
        policies::client_rules,
    ),
    warning(
        "custom-http-rules-on-tcp",
        "On TCP ports Istio drops conditions on methods and paths: every connection to them is checked, without a request.",
        "Restrict the rule by `ports`, or allow in Rego where `input.attributes.request.http` is missing.",
        policies::http_rules_on_tcp,
    ),
    warning(
        "token-header-comes-later",
        "Istio checks tokens after ext_authz: the header that `outputPayloadToHeader` names is missing, or the client's own, when the policy runs.",
        "Let stepgate verify the token: name the issuer in `plugins.stepgate.issuers` and read `input.jwt`.",
        policies::payload_header,
    ),
    error(
        "provider-name",
        "The name of an extension provider must be its own, and a lower-case DNS label of at most 63 letters (Istio 1.30 and newer); otherwise all is denied.",
        "Rename it, for example to `stepgate`.",
        providers::name,
    ),
    error(
        "provider-unknown",
        "The policy names a provider that the mesh configuration does not have: what it matches is denied.",
        "Add it to `meshConfig.extensionProviders`, or correct the name.",
        policies::provider_unknown,
    ),
    error(
        "provider-timeout",
        "Without `timeout` Istio waits 600 s for an answer, with `0s` for ever: one hung authorizer hangs every request.",
        "Set `timeout: 0.5s`, or less for a sidecar.",
        providers::timeout,
    ),
    error(
        "fail-open",
        "When the authorizer cannot be reached, every request passes unchecked.",
        "Set it to false, run two replicas or a sidecar, and watch `ext_authz.error`.",
        providers::fail_open,
    ),
    warning(
        "provider-status-on-error",
        "Without `statusOnError` an authorizer that cannot be reached looks like a denial, 403; with a status such as 200 like a success.",
        "Set `statusOnError: \"503\"`.",
        providers::status_on_error,
    ),
    error(
        "port-not-http2",
        "Envoy speaks HTTP/1.1 to ports that are not known to be gRPC, and every request becomes a 403.",
        "Set `appProtocol: grpc` or name the port `grpc`; in a ServiceEntry set `protocol: GRPC`.",
        providers::port_protocol,
    ),
    error(
        "provider-port",
        "The Service or ServiceEntry that the provider names does not exist there, or has no such port: what its policies match is denied.",
        "Correct `service` or `port` of the provider; a Service has its whole name, `stepgate.stepgate-system.svc.cluster.local`.",
        providers::service_port,
    ),
    error(
        "host-in-two-namespaces",
        "The host that a provider names exists in two namespaces: the provider is invalid, and what its policies match is denied.",
        "Keep one ServiceEntry, in the root namespace, and name it `istio-system/<host>` in the provider.",
        providers::two_namespaces,
    ),
    error(
        "http-provider-on-grpc-port",
        "`envoyExtAuthzHttp` sends plain HTTP requests; this port speaks gRPC, so every request is denied.",
        "Use `envoyExtAuthzGrpc`.",
        providers::http_on_grpc,
    ),
    error(
        "forward-auth-to-grpc-port",
        "The proxy sends plain HTTP requests to a port that speaks gRPC: every request is denied, or passes where the proxy is set to fail open.",
        "Use gRPC: `protocol: GRPC` of an HTTPRoute's `ExternalAuth`, `extAuth.grpc` of a SecurityPolicy. nginx and Traefik have no gRPC authorization: put Envoy in front.",
        forward_auth::to_grpc_port,
    ),
    error(
        "forward-auth-to-data-api",
        "The data API answers 200 to a denial as well, with `false` in its body, and forward-auth proxies look at the status alone: every request passes. stepgate answers 403 where it recognises them.",
        "Ask by ext_authz over gRPC, port 9191: `envoyExtAuthzGrpc`, `extAuth.grpc`, `protocol: GRPC`. nginx and Traefik have no gRPC authorization: put Envoy in front.",
        forward_auth::to_data_api,
    ),
    warning(
        "cut-bodies",
        "With `allowPartialMessage` Envoy cuts a longer body, and the policy decides about its beginning: a member that it forbids may be in the rest.",
        "Deny where `input.truncated_body` is true, or remove `allowPartialMessage`: Envoy then answers 413 to longer bodies.",
        providers::partial_bodies,
    ),
    warning(
        "body-as-text",
        "Without `packAsBytes` Envoy sends bodies as text: one that is no UTF-8, such as a picture, is refused.",
        "Set `packAsBytes: true` in `includeRequestBodyInCheck`.",
        providers::body_as_text,
    ),
    warning(
        "clear-route-cache",
        "Istio accepts `clearRouteCache` and never writes it into Envoy's configuration.",
        "Remove it; routing by a header that the authorizer sets needs an EnvoyFilter.",
        providers::clear_route_cache,
    ),
    error(
        "gateway-timeout",
        "Envoy Gateway waits 10 s for the authorizer where `extAuth.timeout` is missing.",
        "Set `timeout: 500ms`.",
        providers::gateway_timeout,
    ),
    error(
        "gateway-without-grant",
        "A SecurityPolicy may use a Service of another namespace only with a ReferenceGrant there; without it its routes answer 500.",
        "Add the ReferenceGrant of k8s/components/envoy-gateway.",
        providers::reference_grant,
    ),
    warning(
        "outbound-frames",
        "Envoy closes its connection to stepgate, with the checks of everybody on it, once 1,000 resets wait to be sent: a client that resets its requests brings that about, and a check that is lost is an error.",
        "Apply `k8s/istio/mesh/envoyfilter.yaml` (`k8s/istio/local` for a sidecar): it sets `max_outbound_control_frames` and `max_outbound_frames` of the cluster.",
        providers::outbound_frames,
    ),
    warning(
        "request-headers-over-limit",
        "stepgate refuses a check whose own headers have more than 1 MiB, which Envoy counts as an error: tracing copies headers of the request, such as `tracestate`, into them.",
        "Keep `max_request_headers_kb` at 960 or less; Envoy's default is 60.",
        providers::request_headers,
    ),
    error(
        "sidecar-without-drain",
        "The container ends together with the application: the last requests of a pod that stops are denied.",
        "Make it a native sidecar (an init container with `restartPolicy: Always`), or pass `--shutdown-wait-period`. (`preStop.sleep` is dropped silently by Kubernetes 1.29.)",
        workloads::without_drain,
    ),
    error(
        "socket-not-mounted",
        "istio-proxy does not see the folder of the authorizer's socket: every request is an error.",
        "Add the annotation `sidecar.istio.io/userVolumeMount`, or use the abstract socket `unix://@stepgate`, which needs no volume.",
        workloads::socket_not_mounted,
    ),
    error(
        "not-restricted",
        "The namespace enforces the restricted Pod Security Standard, and this container would be refused.",
        "Copy the `securityContext` of k8s/base/deployment.yaml.",
        workloads::not_restricted,
    ),
    error(
        "liveness-waits",
        "The liveness probe asks for more than life: while a bundle server is down, all replicas are restarted again and again.",
        "Use `/live` for liveness and `/ready` for readiness.",
        workloads::liveness,
    ),
    error(
        "without-readiness",
        "Without a readiness probe a pod gets checks before it has policies, and denies them.",
        "Add `readinessProbe: {httpGet: {path: /ready, port: 8282}}`.",
        workloads::without_readiness,
    ),
    error(
        "configuration",
        "stepgate does not start with this configuration.",
        "Correct the keys; docs/reference/config/README.md lists them.",
        workloads::configuration,
    ),
    error(
        "kubernetes-token",
        "`preset: kubernetes` reads the keys from the API server with the pod's own token, and this pod has none: it never becomes ready.",
        "Add k8s/components/kubernetes-issuer, or `kubernetesIssuer.enabled: true` in the chart's values: a projected token with its own audience and lifetime.",
        workloads::kubernetes_token,
    ),
    error(
        "hub-with-replicas",
        "A hub's file belongs to one process: of several hubs each hears a part of what is revoked, and sidecars of one accept what another has rejected.",
        "Run one replica; sidecars keep their entries while it is away. Several hubs need `hub.redis`: add k8s/components/hub-redis. An embedded hub (`revocation.hub: embedded`) is for a single stepgate: use k8s/components/hub.",
        hub::with_replicas,
    ),
    error(
        "hub-without-volume",
        "The hub's file is in the container: after a restart nothing is revoked any more.",
        "Mount a PersistentVolumeClaim at `hub.data_dir`, as k8s/components/hub does.",
        hub::without_volume,
    ),
    warning(
        "single-replica",
        "With one replica every update and every lost node denies all requests of the mesh for a while.",
        "Run at least two, with a PodDisruptionBudget, or a sidecar in each pod.",
        workloads::single_replica,
    ),
    warning(
        "image-not-pinned",
        "A tag that moves changes what decides about requests without a word in your repository.",
        "Name a version, best with its digest.",
        workloads::image_not_pinned,
    ),
];

/// A rule that found something.
#[derive(Debug)]
pub struct Finding {
    pub rule: &'static Rule,
    /// `Kind namespace/name`.
    pub object: String,
    /// The file.
    pub origin: String,
    /// The observed value.
    pub what: String,
}

/// The findings of the rules, errors first.
pub fn examine(manifests: &Manifests) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    for rule in RULES {
        found.extend((rule.find)(manifests).into_iter().map(|hit| Finding {
            rule,
            object: hit.object.title(),
            origin: hit.object.origin.clone(),
            what: hit.what,
        }));
    }
    found.sort_by(|one, other| {
        (one.rule.severity, &one.origin, &one.object).cmp(&(other.rule.severity, &other.origin, &other.object))
    });
    found
}

/// `docs/reference/lint.md`.
pub fn reference() -> String {
    let mut out = "# What `stepgate doctor k8s` looks for\n\n\
        Generated from `src/doctor/k8s.rs` by `stepgate lint-reference`; a test keeps it up to date.\n\n\
        ```sh\n\
        kubectl kustomize k8s/overlays/shared | stepgate doctor k8s - k8s/istio/istiod-values.yaml\n\
        helm template stepgate k8s/charts/stepgate | stepgate doctor k8s -\n\
        kubectl get authorizationpolicies,serviceentries,services,deployments,namespaces -A -o yaml | stepgate doctor k8s -\n\
        kubectl get configmap istio -n istio-system -o yaml | stepgate doctor k8s -\n\
        ```\n\n\
        It reads files, folders and the standard input. Render kustomizations and charts first: their parts are not whole. Give it everything at once,\n\
        the mesh configuration, too (Helm values of istiod, an IstioOperator, or the ConfigMap `istio`): some rules compare objects. It ends with 1 when there are errors, with `--strict` for warnings, too.\n"
        .to_owned();
    for rule in RULES {
        out.push_str(&format!("\n## {}\n\n*{}.* {}\n\n{}\n", rule.id, rule.severity, rule.why, rule.remediation));
    }
    out
}

#[cfg(test)]
mod tests;
