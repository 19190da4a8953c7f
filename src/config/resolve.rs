//! From a checked document to settings that cannot be wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::bundles::BundleContext;
use super::document::Document;
use super::duration;
use super::keys;
use super::problem::Problems;
use super::proofs::{dpop_challenge, with_dpop};
use super::status::ApiConfig;
use super::workloads::{add_kubernetes, with_defaults};
use crate::check::{self, AmbiguousPath, ChallengeSettings, Compat, DryRun, IdentityHeader, IdentitySource};
use crate::feed::bundle::BundleSettings;
use crate::feed::decision_log::DecisionLogSettings;
use crate::feed::discovery::DiscoverySettings;
use crate::feed::status::sender::StatusSettings;
use crate::jws::Alg;
use crate::opa::input::{Descriptors, Options};
use crate::policy::{BuiltinSettings, Entrypoint, OutboundSettings};
use crate::remote::service::ServiceSettings;
use crate::serve::{Address, GrpcSettings, SocketMode};
use crate::token::{self, AssuranceTable, CertificateSettings, IssuerSettings, KeySource, Location, Preset, Profile};

/// Buckets of OPA's `grpc_request_duration_seconds`.
const OPA_BUCKETS: [f64; 11] = [1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 3e-3, 5e-3, 0.1, 1.0];
/// The greatest difference between clocks that is allowed for.
const MAX_LEEWAY: Duration = Duration::from_secs(600);
/// The most memory that the token cache takes by default.
const TOKEN_CACHE_BYTES: u64 = 64 << 20;

/// Everything that was configured.
#[derive(Debug)]
pub struct Config {
    /// Absent without a plugin block.
    pub grpc: Option<GrpcDoor>,
    pub entrypoint: Entrypoint,
    pub builtins: BuiltinSettings,
    pub services: BTreeMap<String, ServiceSettings>,
    pub bundles: Vec<BundleSettings>,
    pub decision_log: Option<DecisionLogSettings>,
    pub status: Option<StatusSettings>,
    pub discovery: Option<DiscoverySettings>,
    pub api: ApiConfig,
    /// Of this process, without `id` and `version`.
    pub labels: BTreeMap<String, String>,
    pub check: check::Settings,
    /// Documents that must be empty before policies come in force.
    pub load_checks: Vec<Vec<String>>,
    /// Absent without `issuers`.
    pub issuers: Option<Vec<IssuerSettings>>,
    pub tokens: token::Settings,
    /// Buckets of OPA's histogram, when performance metrics are on.
    pub opa_buckets: Option<Vec<f64>>,
}

/// The ext_authz listener.
#[derive(Debug)]
pub struct GrpcDoor {
    pub address: Address,
    pub socket_mode: SocketMode,
    pub settings: GrpcSettings,
}

/// Resolves a document, or says everything that is wrong with it. Warnings come back either way. `memory_limit` is that
/// of the process, in bytes.
pub fn resolve(document: &Document, memory_limit: Option<u64>) -> (Option<Config>, Problems) {
    let mut problems = Problems::default();
    keys::check(&document.0, &mut problems);
    if !problems.errors.is_empty() {
        return (None, problems);
    }
    let config = Resolver { problems: &mut problems }.config(&document.0, memory_limit);
    let config = problems.errors.is_empty().then_some(config);
    (config, problems)
}

pub(super) struct Resolver<'a> {
    pub(super) problems: &'a mut Problems,
}

/// A section whose values have the types that the table says.
#[derive(Clone, Copy)]
pub(super) struct Section<'a>(pub(super) Option<&'a Value>);

impl<'a> Section<'a> {
    pub(super) fn at(self, name: &str) -> Option<&'a Value> {
        self.0?.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn section(self, name: &str) -> Self {
        Self(self.at(name))
    }

    pub(super) fn text(self, name: &str) -> Option<&'a str> {
        self.at(name)?.as_str()
    }

    pub(super) fn flag(self, name: &str) -> Option<bool> {
        self.at(name)?.as_bool()
    }

    pub(super) fn count(self, name: &str, default: u64) -> u64 {
        self.at(name).and_then(Value::as_u64).unwrap_or(default)
    }

    fn size(self, name: &str, default: u64) -> usize {
        usize::try_from(self.count(name, default)).unwrap_or(usize::MAX)
    }

    pub(super) fn duration(self, name: &str, default: Duration) -> Duration {
        self.text(name).and_then(duration::parse).unwrap_or(default)
    }

    pub(super) fn texts(self, name: &str) -> Vec<&'a str> {
        let items = self.at(name).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    pub(super) fn members(self, name: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.at(name).and_then(Value::as_object).into_iter().flatten()
    }
}

/// The longest that a check takes which waits for nothing; Envoy's own default is 200 ms.
const CHECK_TIMEOUT: Duration = Duration::from_millis(180);

/// Where keys may come from.
pub(super) const KEY_SOURCES: [&str; 5] = ["jwks_url", "discovery", "jwks_file", "jwks_service", "jwks"];

/// What policies may reach. `strict` allows what OPA allows.
fn builtins(document: &Value, own: Section<'_>, strict: bool) -> BuiltinSettings {
    let cache = Section(document.get("caching")).section("inter_query_builtin_cache");
    let outbound = OutboundSettings {
        hosts: own.at("http_send_hosts").map(|_| own.texts("http_send_hosts").into_iter().map(str::to_owned).collect()),
        cache_bytes: match cache.count("max_size_bytes", 0) {
            0 => OutboundSettings::default().cache_bytes,
            bytes => bytes,
        },
    };
    BuiltinSettings {
        opa_runtime: own.flag("opa_runtime").unwrap_or(strict),
        http_send: own.flag("http_send").unwrap_or(strict).then_some(outbound),
        keeps_answers: document.get("nd_builtin_cache") == Some(&Value::Bool(true)),
    }
}

/// The parts of a path such as `system/log/mask`.
pub(super) fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// The labels that a document gives.
pub fn resolve_labels(document: &Document) -> BTreeMap<String, String> {
    labels(&document.0)
}

fn labels(document: &Value) -> BTreeMap<String, String> {
    let given = Section(Some(document)).members("labels");
    given.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

impl Resolver<'_> {
    fn config(&mut self, document: &Value, memory_limit: Option<u64>) -> Config {
        let plugins = Section(document.get("plugins"));
        let plugin = plugins.section("envoy_ext_authz_grpc");
        let own = plugins.section("stepgate");
        let limits = own.section("limits");
        let has_block = plugins.0.is_some_and(|plugins| plugins.get("envoy_ext_authz_grpc").is_some());
        let strict = own.text("compat") == Some("strict");
        let compat = |name: &str| strict || own.section("compat").flag(name).unwrap_or(false);
        let compat = Compat {
            grpc_errors: compat("grpc_errors"),
            body_errors: compat("body_errors"),
            decision_keys: compat("decision_keys"),
        };
        let builtins = builtins(document, own.section("builtins"), strict);
        // Whoever lets policies wait for other servers has told Envoy to wait, too; its own timeout still counts.
        let check_timeout = if builtins.http_send.is_some() { Duration::from_secs(10) } else { CHECK_TIMEOUT };
        let check_timeout = limits.duration("check_timeout", check_timeout);
        let evaluation_timeout = limits.duration("evaluation_timeout", Duration::from_millis(50));
        if evaluation_timeout > check_timeout {
            let message = "longer than check_timeout; the check would always end first";
            self.problems.error("plugins.stepgate.limits.evaluation_timeout", message);
        }
        let mut check = check::Settings {
            input: self.input(plugin, own),
            extras: own.section("input").flag("extras").unwrap_or(!strict),
            ambiguous_path: match own.section("input").text("ambiguous_path") {
                Some("reject") => AmbiguousPath::Reject,
                _ => AmbiguousPath::Warn,
            },
            evaluation_timeout,
            audit: own.section("log").text("audit") == Some("required"),
            dry_run: match (plugin.flag("dry-run"), own.flag("dry_run_faults")) {
                (Some(true), Some(true)) => DryRun::DenialsAndFaults,
                (Some(true), _) => DryRun::Denials,
                _ => DryRun::Off,
            },
            compat,
            challenge: ChallengeSettings {
                realm: own.section("step_up").text("realm").map(str::to_owned),
                resource_metadata: own.section("step_up").text("resource_metadata").map(str::to_owned),
                dpop: None,
            },
            redirect: self.redirect(own.section("step_up").section("redirect")),
            resource: None,
            routes: self.routes(own),
            identity_headers: self.identity_headers(own),
            minter: None,
        };
        self.identity_token(own, &mut check);
        let mut services = self.services(document);
        add_kubernetes(document, &mut services);
        let status = self.status(document, &services);
        let context = BundleContext {
            document,
            services: &services,
            keys: self.public_keys(document),
            memory_limit,
            signatures_as_in_opa: own.section("compat").text("bundle_signatures") == Some("opa"),
        };
        let bundles = self.bundles(&context);
        let discovery = self.discovery(&context);
        let entrypoint = self.entrypoint(plugin);
        let issuers = self.issuers(own, &services);
        let proofs = self.proofs(own.section("dpop"));
        self.resource(own, issuers.as_deref(), &mut check);
        if issuers.is_none() && !check.routes.is_empty() {
            self.problems.error("plugins.stepgate.routes", "without `issuers` nobody could meet their demands");
        }
        check.challenge.dpop = dpop_challenge(issuers.as_deref().unwrap_or_default(), &proofs);
        let mut decision_log = self.decision_log(document, entrypoint.configured(), own.section("log"), &services);
        if let Some(log) = &mut decision_log {
            let locations = issuers.iter().flatten().flat_map(|issuer| &issuer.locations);
            let header = |location: &Location| match location {
                Location::Header { name, .. } => Some(name.clone()),
                Location::Cookie { .. } => None,
            };
            log.token_headers = locations.filter_map(header).collect();
            if check.audit && log.max_per_second.is_some() {
                let message =
                    "decisions over the limit are not logged, which `plugins.stepgate.log.audit: required` rules out";
                self.problems.error("decision_logs.reporting.max_decisions_per_second", message);
            }
        } else if check.audit {
            let message = "there is no decision log: configure `decision_logs`, or every check is denied";
            self.problems.error("plugins.stepgate.log.audit", message);
        }
        let performance = plugin.flag("enable-performance-metrics") == Some(true);
        Config {
            grpc: has_block.then(|| self.grpc(plugin, own, check_timeout)).flatten(),
            entrypoint,
            builtins,
            services,
            bundles,
            decision_log,
            status,
            discovery,
            api: self.api(document),
            labels: labels(document),
            load_checks: own.texts("load_checks").into_iter().map(parts).collect(),
            check,
            issuers,
            tokens: token::Settings {
                token_bytes: limits.size("token_bytes", 16 << 10),
                cache_bytes: limits.count(
                    "token_cache_bytes",
                    memory_limit.map_or(TOKEN_CACHE_BYTES, |limit| (limit / 4).min(TOKEN_CACHE_BYTES)),
                ),
                cache_ttl: limits.duration("token_cache_ttl", Duration::from_secs(600)),
                proofs,
                certificates: CertificateSettings {
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

    fn grpc(&mut self, plugin: Section<'_>, own: Section<'_>, check_timeout: Duration) -> Option<GrpcDoor> {
        let limits = own.section("limits");
        let address = match Address::parse(plugin.text("addr").unwrap_or(":9191")) {
            Ok(address) => Some(address),
            Err(error) => {
                self.problems.error("plugins.envoy_ext_authz_grpc.addr", error.to_string());
                None
            }
        };
        let mode = own.text("socket_mode").unwrap_or("0660");
        let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777);
        if mode.is_none() {
            self.problems.error("plugins.stepgate.socket_mode", "expected octal permissions such as \"0660\"");
        }
        Some(GrpcDoor {
            address: address?,
            socket_mode: SocketMode(mode?),
            settings: GrpcSettings {
                max_message_bytes: plugin.size("grpc-max-recv-msg-size", 4 << 20),
                check_timeout,
                max_checks: limits.size("checks_in_flight", 4_096),
                max_bytes_in_flight: limits.size("bytes_in_flight", 128 << 20),
                reflection: plugin.flag("enable-reflection").unwrap_or(false),
            },
        })
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
            (path, None) => Entrypoint::from_path(path.unwrap_or("envoy/authz/allow")),
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
            skip_body: plugin.flag("skip-request-body-parse").unwrap_or(false),
            depth: own.section("limits").size("input_depth", 512),
            descriptors,
            raw_headers_count: own.text("compat") != Some("strict"),
            expose_body_errors: own.section("input").text("body_errors") == Some("expose"),
        }
    }

    fn identity_headers(&mut self, own: Section<'_>) -> Vec<IdentityHeader> {
        let mut headers = Vec::new();
        for (name, source) in own.members("identity_headers") {
            let place = format!("plugins.stepgate.identity_headers.{name}");
            if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') || name.is_empty() {
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

    fn issuers(
        &mut self,
        own: Section<'_>,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<Vec<IssuerSettings>> {
        let listed = own.at("issuers")?.as_array()?;
        if listed.is_empty() {
            let message = "the list is empty, so no token could ever be accepted; name an issuer or remove the key";
            self.problems.error("plugins.stepgate.issuers", message);
        }
        let mut issuers: Vec<IssuerSettings> = Vec::new();
        for (at, item) in listed.iter().enumerate() {
            let place = format!("plugins.stepgate.issuers[{at}]");
            let item = with_defaults(item);
            let Some(issuer) = self.issuer(Section(Some(&item)), &place, services) else { continue };
            if issuers.iter().any(|known| known.issuer == issuer.issuer) {
                self.problems.error(format!("{place}.issuer"), "named twice");
            }
            issuers.push(issuer);
        }
        self.check_locations(&issuers);
        self.check_introspection(&issuers);
        Some(issuers)
    }

    /// One header cannot be read both with and without a scheme: every token would be found twice.
    fn check_locations(&mut self, issuers: &[IssuerSettings]) {
        let locations = || issuers.iter().flat_map(|issuer| &issuer.locations);
        let header = |location: &Location| match location {
            Location::Header { name, scheme } => Some((name.clone(), scheme.is_some())),
            Location::Cookie { .. } => None,
        };
        let whole = locations().filter_map(header).filter(|(_, scheme)| !scheme);
        for (name, _) in whole {
            if locations().filter_map(header).any(|(other, scheme)| scheme && other == name) {
                let message = format!("the header `{name}` is read with a scheme in one place and without in another");
                self.problems.error("plugins.stepgate.issuers", message);
                return;
            }
        }
    }

    fn issuer(
        &mut self,
        item: Section<'_>,
        place: &str,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<IssuerSettings> {
        let mut require = |name: &str, missing: bool| {
            if missing {
                self.problems.error(format!("{place}.{name}"), "required");
            }
        };
        let (audiences, names) = (item.texts("audiences"), item.texts("algorithms"));
        require("issuer", item.text("issuer").is_none_or(str::is_empty));
        require("audiences", audiences.is_empty());
        // Who is only asked signs nothing that is read here.
        let is_only_asked =
            !KEY_SOURCES.iter().any(|name| item.at(name).is_some()) && item.at("introspection").is_some();
        require("algorithms", names.is_empty() && !is_only_asked);
        self.check_workload_audiences(item, place);
        let mut algorithms = Vec::new();
        for name in names {
            match Alg::named(name) {
                Some(alg) => algorithms.push(alg),
                None if name.starts_with("HS") => {
                    let message = format!("`{name}` shares a secret; keys from a key set are public");
                    self.problems.error(format!("{place}.algorithms"), message);
                }
                None => {
                    let message = format!("`{name}` is none of {}", Alg::names().join(", "));
                    self.problems.error(format!("{place}.algorithms"), message);
                }
            }
        }
        Some(IssuerSettings {
            issuer: item.text("issuer")?.to_owned(),
            audiences: audiences.into_iter().map(str::to_owned).collect(),
            algorithms,
            keys: if is_only_asked { KeySource::Introspection } else { self.key_source(item, place, services)? },
            leeway: self.leeway(item, place),
            profile: if item.text("token_profile") == Some("rfc9068") { Profile::Rfc9068 } else { Profile::Legacy },
            locations: with_dpop(self.locations(item, place), item.text("dpop")),
            preset: item.text("preset").and_then(Preset::named).unwrap_or_default(),
            assurance: self.assurance(item, place),
            claims_challenge: self.claims_challenge(item, place),
            introspection: self.introspection(item.section("introspection"), place, services),
        })
    }

    fn leeway(&mut self, item: Section<'_>, place: &str) -> Duration {
        let leeway = item.duration("leeway", Duration::from_secs(30));
        if leeway > MAX_LEEWAY {
            let message = "longer than 10m; clocks that differ so much make `exp` meaningless";
            self.problems.error(format!("{place}.leeway"), message);
        }
        leeway
    }

    fn key_source(
        &mut self,
        item: Section<'_>,
        place: &str,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<KeySource> {
        let mut sources = Vec::new();
        for (name, make) in
            [("jwks_url", KeySource::JwksUrl as fn(String) -> KeySource), ("discovery", KeySource::Discovery)]
        {
            if let Some(url) = item.text(name) {
                let scheme = url::Url::parse(url).ok().map(|url| url.scheme().to_owned());
                if !matches!(scheme.as_deref(), Some("http" | "https")) {
                    self.problems.error(format!("{place}.{name}"), "expected an http or https URL");
                }
                if scheme.as_deref() == Some("http") {
                    let message = "keys over plain http can be replaced by anyone on the way; use https";
                    self.problems.warn(format!("{place}.{name}"), message);
                }
                sources.push(make(url.to_owned()));
            }
        }
        if let Some(name) = item.text("jwks_service") {
            if !services.contains_key(name) {
                self.problems.error(format!("{place}.jwks_service"), "there is no such service");
            }
            let resource = item.text("jwks_resource").unwrap_or("openid/v1/jwks").to_owned();
            sources.push(KeySource::Service { name: name.to_owned(), resource });
        }
        sources.extend(item.text("jwks_file").map(|path| KeySource::JwksFile(path.into())));
        if let Some(jwks) = item.at("jwks") {
            let text = jwks.as_str().map_or_else(|| jwks.to_string(), str::to_owned);
            if let Err(error) = token::KeySet::parse(text.as_bytes()) {
                self.problems.error(format!("{place}.jwks"), error.to_string());
            }
            sources.push(KeySource::Inline(text));
        }
        if sources.len() != 1 {
            self.problems.error(place, "give exactly one of jwks_url, discovery, jwks_file, jwks_service and jwks");
        }
        sources.pop()
    }

    fn locations(&mut self, item: Section<'_>, place: &str) -> Vec<Location> {
        let Some(listed) = item.at("token_from").and_then(Value::as_array) else { return vec![Location::bearer()] };
        let mut locations = Vec::new();
        for (at, listed) in listed.iter().map(|value| Section(Some(value))).enumerate() {
            match (listed.text("header"), listed.text("cookie")) {
                (Some(name), None) => locations.push(Location::Header {
                    name: name.to_ascii_lowercase(),
                    scheme: listed.text("scheme").map(str::to_ascii_lowercase),
                }),
                (None, Some(_)) if listed.text("scheme").is_some() => {
                    self.problems.error(format!("{place}.token_from[{at}].scheme"), "a cookie has no scheme");
                }
                (None, Some(name)) => locations.push(Location::Cookie { name: name.to_owned() }),
                _ => self.problems.error(format!("{place}.token_from[{at}]"), "give either `header` or `cookie`"),
            }
        }
        if locations.is_empty() {
            self.problems.error(format!("{place}.token_from"), "no place is named");
        }
        locations
    }

    fn assurance(&mut self, item: Section<'_>, place: &str) -> AssuranceTable {
        let mut table = AssuranceTable::new(item.text("preset").and_then(Preset::named).unwrap_or_default());
        for (alias, known) in item.members("amr_aliases") {
            if !known.as_str().is_some_and(|known| table.alias_amr(alias, known)) {
                self.problems.error(format!("{place}.amr_aliases.{alias}"), "its meaning is not a known amr word");
            }
        }
        for (acr, level) in item.members("acr_levels") {
            let level = level.as_u64().and_then(|level| usize::try_from(level).ok()).unwrap_or(usize::MAX);
            if !table.level_of_acr(acr, level) {
                self.problems.error(format!("{place}.acr_levels.{acr}"), "there is no such level");
            }
        }
        if item.flag("trust_mfa") == Some(false) {
            table.distrust_mfa();
        }
        if item.flag("amr_string") == Some(true) {
            table.accept_amr_string();
        }
        table
    }
}
