//! From a checked document to settings that cannot be wrong.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::aliases::with_present_names;
use super::bundles::BundleContext;
use super::document::Document;
use super::hub::HubConfig;
use super::keys;
use super::memory::{Consumer, Memory};
use super::problem::Problems;
use super::proofs::dpop_challenge;
use super::revocation::RevocationConfig;
use super::section::Section;
use super::status::ApiConfig;
use super::workloads::with_kubernetes;
use crate::check::{
    self, AmbiguousPath, CallerSettings, ChallengeSettings, ClientAddress, Compat, DryRun, IdentityHeader,
    IdentitySource, ResponseLimits,
};
use crate::feed::bundle::BundleSettings;
use crate::feed::decision_log::DecisionLogSettings;
use crate::feed::discovery::DiscoverySettings;
use crate::feed::status::sender::StatusSettings;
use crate::feed::traces::TraceSettings;
use crate::opa::decision::Dialect;
use crate::opa::input::{Descriptors, Options};
use crate::policy::{BuiltinSettings, Entrypoint, MemorySettings, OutboundSettings};
use crate::remote::service::ServiceSettings;
use crate::serve::{Address, GrpcSettings, SocketAccess, TlsSettings};
use crate::token::{self, CertificateSettings, IssuerSettings, Scale};

/// Buckets of OPA's `grpc_request_duration_seconds`.
const OPA_BUCKETS: [f64; 11] = [1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 3e-3, 5e-3, 0.1, 1.0];

/// Everything that was configured.
#[derive(Debug)]
pub struct Config {
    /// Absent without a plugin block.
    pub grpc: Option<GrpcListenerConfig>,
    pub entrypoint: Entrypoint,
    pub builtins: BuiltinSettings,
    pub services: BTreeMap<String, ServiceSettings>,
    pub bundles: Vec<BundleSettings>,
    pub decision_log: DecisionLogSettings,
    pub status: Option<StatusSettings>,
    pub tracing: Option<TraceSettings>,
    pub discovery: Option<DiscoverySettings>,
    pub api: ApiConfig,
    /// The labels of this process, without `id` and `version`.
    pub labels: BTreeMap<String, String>,
    pub check: check::Settings,
    /// Services, and those that issuers need beside them.
    pub issuer_services: BTreeMap<String, ServiceSettings>,
    /// Documents that must be empty before policies are activated.
    pub load_checks: Vec<Vec<String>>,
    /// Not ready before a policy with the entry point is active; OPA does not look.
    pub awaits_entrypoint: bool,
    /// Absent without `hub`.
    pub hub: Option<HubConfig>,
    /// Absent without `revocation`.
    pub revocation: Option<RevocationConfig>,
    /// Absent without `issuers`.
    pub issuers: Option<Vec<IssuerSettings>>,
    pub tokens: token::Settings,
    /// Buckets of OPA's histogram, when performance metrics are on.
    pub opa_buckets: Option<Vec<f64>>,
}

/// The ext_authz listener.
#[derive(Debug)]
pub struct GrpcListenerConfig {
    pub address: Address,
    pub socket_access: SocketAccess,
    pub tls: Option<TlsSettings>,
    pub settings: GrpcSettings,
}

/// Resolves a document, or says everything that is wrong with it. Warnings come back either way. `memory_limit` is that
/// of the process, in bytes.
pub fn resolve(document: &Document, memory_limit: Option<u64>) -> (Option<Config>, Problems) {
    let mut problems = Problems::default();
    let duplicates = document.duplicates.iter().cloned();
    let document = with_present_names(&document.value, &mut problems);
    problems.errors.extend(duplicates);
    keys::check(&document, &mut problems);
    // Values of wrong types are absent to the resolver, whose other findings are reported in the same run.
    let mut found = Problems::default();
    let config =
        Resolver { problems: &mut found, scale: Arc::default(), memory: Memory(memory_limit) }.config(&document);
    problems.add_new(found);
    let config = problems.errors.is_empty().then_some(config);
    (config, problems)
}

pub(super) struct Resolver<'a> {
    pub(super) problems: &'a mut Problems,
    /// The levels of assurance that there are.
    pub(super) scale: Arc<Scale>,
    pub(super) memory: Memory,
}

/// The longest that a check takes which waits for nothing; Envoy's own default is 200 ms.
const CHECK_TIMEOUT: Duration = Duration::from_millis(180);

/// A token of RFC 9110, section 5.6.2, as methods, schemes and the names of headers and cookies are.
pub(super) fn is_token(text: &str) -> bool {
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_of_token)
}

/// Names of our own headers have one spelling only, which no server reads differently.
pub(super) fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The network access of policies. `strict` allows what OPA allows.
fn builtins(document: &Value, own: Section<'_>, strict: bool, limits: Section<'_>, memory: Memory) -> BuiltinSettings {
    let decision_cache_bytes = limits.count("decision_cache_bytes");
    let cache = Section::root(document).section("caching").section("inter_query_builtin_cache");
    let outbound = OutboundSettings {
        hosts: own.at("http_send_hosts").map(|_| own.texts("http_send_hosts").into_iter().map(str::to_owned).collect()),
        cache_bytes: match cache.share("max_size_bytes", memory) {
            0 => memory.default_for(Consumer::HttpSendCache),
            bytes => bytes,
        },
    };
    BuiltinSettings {
        opa_runtime: own.flag_or("opa_runtime", strict),
        http_send: own.flag_or("http_send", strict).then_some(outbound),
        keeps_answers: document.get("nd_builtin_cache") == Some(&Value::Bool(true)),
        decision_cache_bytes,
        memory: MemorySettings {
            each: limits.share_size("evaluation_memory_bytes", memory),
            all: limits.share_size("evaluations_memory_bytes", memory),
        },
    }
}

/// The limits of an answer.
fn response_limits(limits: Section<'_>) -> ResponseLimits {
    ResponseLimits {
        headers: limits.size("response_headers"),
        header_bytes: limits.size("response_header_bytes"),
        body_bytes: limits.size("response_body_bytes"),
        metadata_depth: limits.size("response_metadata_depth"),
    }
}

/// The parts of a path such as `system/log/mask`.
pub(super) fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The labels that a document gives.
pub fn resolve_labels(document: &Document) -> BTreeMap<String, String> {
    labels(&document.value)
}

fn labels(document: &Value) -> BTreeMap<String, String> {
    let given = Section::root(document).members("labels");
    given.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

impl Resolver<'_> {
    fn config(&mut self, document: &Value) -> Config {
        let plugins = Section::root(document).section("plugins");
        let plugin = plugins.section("envoy_ext_authz_grpc");
        let own = plugins.section("stepgate");
        let limits = own.section("limits");
        self.scale = self.scale_of(own);
        let has_block = plugins.value.is_some_and(|plugins| plugins.get("envoy_ext_authz_grpc").is_some());
        let strict = own.text("compat") == Some("strict");
        let compat = |name: &str| strict || own.section("compat").flag(name).unwrap_or(false);
        let compat = Compat {
            grpc_errors: compat("grpc_errors"),
            body_errors: compat("body_errors"),
            dialect: if compat("decision_keys") { Dialect::Opa } else { Dialect::Stepgate },
        };
        let builtins = builtins(document, own.section("builtins"), strict, limits, self.memory);
        if builtins.memory.each > builtins.memory.all {
            let message = "more than evaluations_memory_bytes, which all evaluations share";
            self.problems.error("plugins.stepgate.limits.evaluation_memory_bytes", message);
        }
        // A configuration that lets policies wait for other servers has a longer Envoy timeout, too; Envoy's own timeout still counts.
        let check_timeout = if builtins.http_send.is_some() { Duration::from_secs(10) } else { CHECK_TIMEOUT };
        let check_timeout = limits.duration_or("check_timeout", check_timeout);
        let evaluation_timeout = limits.duration("evaluation_timeout");
        if evaluation_timeout > check_timeout {
            let message = "longer than check_timeout; the check would always end first";
            self.problems.error("plugins.stepgate.limits.evaluation_timeout", message);
        }
        let mut check = check::Settings {
            input: self.input(plugin, own),
            stepgate_fields: own.section("input").flag_or("stepgate_fields", !strict),
            ambiguous_path: match own.section("input").text("ambiguous_path") {
                Some("reject") => AmbiguousPath::Reject,
                _ => AmbiguousPath::Warn,
            },
            evaluation_timeout,
            caller: CallerSettings {
                peer_from_xfcc: own.is_on("peer_from_xfcc"),
                client_address: self.client_address(own.section("client_ip")),
            },
            allow_preflight: own.text("cors_preflight") == Some("allow"),
            audit: own.section("log").text("audit") == Some("required"),
            dry_run: match (plugin.flag("dry-run"), own.text("dry_run_scope")) {
                (Some(true), Some("all")) => DryRun::DenialsAndFaults,
                (Some(true), _) => DryRun::Denials,
                _ => DryRun::Off,
            },
            compat,
            asserted: Vec::new(),
            challenge: ChallengeSettings {
                realm: own.section("step_up").text("realm").map(str::to_owned),
                resource_metadata: own.section("step_up").text("resource_metadata").map(str::to_owned),
                dpop: None,
            },
            redirect: self.redirect(own.section("step_up").section("redirect")),
            resources: Vec::new(),
            routes: self.routes(own),
            identity_headers: self.identity_headers(own),
            response_limits: response_limits(limits),
            max_used_tokens: self.memory.used_tokens(),
            identity_token_signer: None,
        };
        self.identity_token(own, &mut check);
        let services = self.services(document);
        let issuer_services = with_kubernetes(document, &services);
        let status = self.status(document, &services);
        let context = BundleContext {
            document,
            services: &services,
            keys: self.public_keys(document),
            memory: self.memory,
            signatures_as_in_opa: own.section("compat").text("bundle_signatures") == Some("opa"),
        };
        let bundles = self.bundles(&context);
        let discovery = self.discovery(&context);
        let entrypoint = self.entrypoint(plugin);
        let issuers = self.issuers(own, &issuer_services);
        let revocation = self.revocation(own, document, &services);
        let hub = self.hub(own, issuers.as_deref().unwrap_or_default(), &issuer_services);
        let mut proofs = self.proofs(own.section("dpop"));
        check.asserted = self.asserted(own, &issuer_services);
        check.resources = self.resources(own, issuers.as_deref(), &proofs);
        if proofs.origins.is_empty() {
            proofs.origins = check.resources.iter().flat_map(check::ResourceMetadata::origins).collect();
        }
        self.check_reachability(own, issuers.as_deref().unwrap_or_default(), &check, &proofs);
        if issuers.is_none() && !check.routes.is_empty() {
            self.problems.error("plugins.stepgate.routes", "without `issuers` no caller could meet their requirements");
        }
        check.challenge.dpop = dpop_challenge(issuers.as_deref().unwrap_or_default(), &proofs);
        let mut decision_log = self.decision_log(document, entrypoint.configured(), own.section("log"), &services);
        let locations = issuers.iter().flatten().flat_map(|issuer| &issuer.locations);
        decision_log.token_headers = locations.filter_map(|location| location.header().map(str::to_owned)).collect();
        if check.audit && decision_log.max_per_second.is_some() {
            let message =
                "decisions over the limit are not logged, which `plugins.stepgate.log.audit: required` rules out";
            self.problems.error("decision_logs.reporting.max_decisions_per_second", message);
        }
        if check.audit && !decision_log.is_anywhere() {
            let message = "there is no decision log: configure `decision_logs`, or every check is denied";
            self.problems.error("plugins.stepgate.log.audit", message);
        }
        let performance = plugin.is_on("enable-performance-metrics");
        Config {
            grpc: has_block.then(|| self.grpc(plugin, own, check_timeout)).flatten(),
            entrypoint,
            builtins,
            services,
            bundles,
            decision_log,
            tracing: self.tracing(document),
            status,
            discovery,
            api: self.api(document),
            labels: labels(document),
            issuer_services,
            awaits_entrypoint: !strict,
            load_checks: own.texts("load_checks").into_iter().map(parts).collect(),
            check,
            hub,
            revocation,
            issuers,
            tokens: token::Settings {
                token_bytes: limits.size("token_bytes"),
                cache_bytes: limits.share("token_cache_bytes", self.memory),
                cache_ttl: limits.duration("token_cache_ttl"),
                proofs,
                certificates: CertificateSettings {
                    client_cert: own.section("client_certificate").is_on("client_cert"),
                    xfcc_from_end: own
                        .section("client_certificate")
                        .at("xfcc_from_end")
                        .and_then(Value::as_u64)
                        .map(|index| usize::try_from(index).unwrap_or(usize::MAX)),
                },
            },
            opa_buckets: performance.then(|| {
                let given = plugin.at("grpc-request-duration-seconds-buckets").and_then(Value::as_array);
                given.map_or(OPA_BUCKETS.to_vec(), |items| items.iter().filter_map(Value::as_f64).collect())
            }),
        }
    }

    fn client_address(&mut self, item: Section<'_>) -> ClientAddress {
        let from_end = item.at("forwarded_for").and_then(Value::as_u64).and_then(|at| usize::try_from(at).ok());
        match (from_end, item.text("header")) {
            (Some(_), Some(_)) => {
                self.problems.error("plugins.stepgate.client_ip", "give either `forwarded_for` or `header`");
                ClientAddress::default()
            }
            (Some(from_end), None) => ClientAddress::ForwardedFor(from_end),
            (None, Some(name)) if is_header_name(name) => ClientAddress::Header(name.to_ascii_lowercase()),
            (None, Some(_)) => {
                let message = "a header's name has only letters, digits and dashes";
                self.problems.error("plugins.stepgate.client_ip.header", message);
                ClientAddress::default()
            }
            (None, None) => ClientAddress::default(),
        }
    }

    fn entrypoint(&mut self, plugin: Section<'_>) -> Entrypoint {
        let place = "plugins.envoy_ext_authz_grpc.query";
        match (plugin.text("path"), plugin.text("query")) {
            (Some(_), Some(_)) => {
                self.problems.error(place, "give `path` or `query`, not both");
                Entrypoint::from_path("")
            }
            (None, Some(query)) => Entrypoint::from_query(query).unwrap_or_else(|error| {
                self.problems.error(place, error.to_string());
                Entrypoint::from_path("")
            }),
            (_, None) => Entrypoint::from_path(plugin.text_or_default("path")),
        }
    }

    fn input(&mut self, plugin: Section<'_>, own: Section<'_>) -> Options {
        let place = "plugins.envoy_ext_authz_grpc.proto-descriptor";
        let descriptors = plugin.text("proto-descriptor").and_then(|path| {
            let read = std::fs::read(path).map_err(|error| format!("`{path}` cannot be read: {error}"));
            let decoded =
                read.and_then(|bytes| Descriptors::decode(&bytes).map_err(|error| format!("`{path}`: {error}")));
            decoded.map_err(|message| self.problems.error(place, message)).ok()
        });
        Options {
            skip_body: plugin.is_on("skip-request-body-parse"),
            depth: own.section("limits").size("input_depth"),
            descriptors,
            raw_headers_count: own.text("compat") != Some("strict"),
            expose_body_errors: own.section("input").text("body_errors") == Some("expose"),
            duplicate_members: match own.section("input").text("duplicate_members") {
                Some("reject") => crate::value::DuplicateKeys::Refuse,
                _ => crate::value::DuplicateKeys::LastWins,
            },
        }
    }

    fn identity_headers(&mut self, own: Section<'_>) -> Vec<IdentityHeader> {
        let mut headers = Vec::new();
        for (name, source) in own.members("identity_headers") {
            let place = format!("plugins.stepgate.identity_headers.{name}");
            if !is_header_name(name) {
                self.problems.error(place, "a header's name has only letters, digits and dashes");
                continue;
            }
            if headers.iter().any(|known: &IdentityHeader| known.name.eq_ignore_ascii_case(name)) {
                self.problems.error(&place, "the same header is named twice");
            }
            match source.as_str().and_then(IdentitySource::parse) {
                Some(source) => headers.push(IdentityHeader { name: name.to_ascii_lowercase(), source }),
                None => {
                    self.problems.error(place, "expected `claims.<path>`, `claims[\"<name>\"]` or a member of `authn`")
                }
            }
        }
        headers
    }
}
