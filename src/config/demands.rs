//! Configuration of route requirements and of challenges.

use std::sync::Arc;

use serde_json::{Map, Value};
use stepgate_jose::{Algorithm, SigningKey};
use url::Url;

use super::issuers::issuer_names;
use super::proofs::dpop_challenge;
use super::resolve::{Resolver, is_header_name, is_token};
use super::section::Section;
use super::workloads::with_defaults;
use crate::check::{
    self, IdentityHeader, IdentitySource, IdentityTokenSigner, LevelRequirement, MAX_IDENTITY_TOKEN_LIFETIME,
    PathPattern, Redirect, ResourceMetadata, Route, RouteRequirement, RouteRevocation, is_plain_host,
};
use crate::token::{ClaimsChallenge, IssuerSettings, Location, Profile, ProofSettings, Scale, SpiffePattern};

/// Methods that a route is usually for.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];

/// Valid as a method: a token without `*`, which is always meant for several.
fn is_method(text: &str) -> bool {
    is_token(text) && !text.contains('*')
}

impl Resolver<'_> {
    /// The levels of assurance: the deployment's own, or the known ones.
    pub(super) fn scale_of(&mut self, own: Section<'_>) -> Arc<Scale> {
        if own.at("levels").is_none() {
            return Arc::default();
        }
        let scale = Scale::new(&own.texts("levels"));
        Arc::new(scale.unwrap_or_else(|error| {
            self.problems.error("plugins.stepgate.levels", error);
            Scale::default()
        }))
    }

    /// A level by its number or its name.
    pub(super) fn level(&mut self, value: &Value, place: &str) -> Option<usize> {
        let level = match value.as_str() {
            Some(name) => self.scale.level(name),
            None => value.as_u64().and_then(|level| usize::try_from(level).ok()),
        };
        let level = level.filter(|&level| level <= self.scale.highest());
        if level.is_none() {
            let names = (0..=self.scale.highest()).map(|level| self.scale.name(level)).collect::<Vec<_>>().join(", ");
            self.problems.error(place, format!("there is no such level; from 0 there are {names}"));
        }
        level
    }

    pub(super) fn routes(&mut self, own: Section<'_>) -> Vec<Route> {
        let listed = own.at("routes").and_then(Value::as_array);
        listed
            .into_iter()
            .flatten()
            .enumerate()
            .filter_map(|(at, item)| self.route(at, Section::of("plugins.stepgate.routes[]", Some(item)), own))
            .collect()
    }

    fn route(&mut self, at: usize, item: Section<'_>, own: Section<'_>) -> Option<Route> {
        let place = format!("plugins.stepgate.routes[{at}]");
        let owned = |name: &str| item.texts(name).into_iter().map(str::to_owned).collect::<Vec<String>>();
        let Some(path) = item.text("path").and_then(PathPattern::parse) else {
            let message = "expected a path such as `/accounts/*/transfers/**`, where a star is a whole segment";
            self.problems.error(format!("{place}.path"), message);
            return None;
        };
        self.check_segments(item.text("path").unwrap_or_default(), &format!("{place}.path"));
        let level = item.at("level").and_then(|level| self.level(level, &format!("{place}.level"))).unwrap_or(0);
        let max_age = item.optional_duration("max_age").map(|age| age.as_secs());
        let scopes = owned("scopes");
        let single_use = item.is_on("single_use");
        let has_no_level = item.at("level").is_none_or(|level| level == 0);
        let same_origin = item.is_on("same_origin");
        let demands_token = ["acr_values", "issuers", "peers"].iter().any(|name| !item.texts(name).is_empty());
        let allows_anonymous = has_no_level && max_age.is_none() && scopes.is_empty() && !single_use && !demands_token;
        if allows_anonymous && !same_origin && item.at("revocation").is_none() {
            let message = "it demands nothing: give `level`, `max_age`, `scopes`, `acr_values`, `issuers`, `peers`, `same_origin`, `revocation` or `single_use`";
            self.problems.error(&place, message);
        }
        let hosts: Vec<_> = owned("hosts").iter().map(|host| host.trim_end_matches('.').to_ascii_lowercase()).collect();
        for host in &hosts {
            if !is_plain_host(host.strip_prefix("*.").unwrap_or(host)) {
                let message =
                    format!("`{host}` is not a host such as `api.example.com` or `*.example.com`, without a port");
                self.problems.error(format!("{place}.hosts"), message);
            }
        }
        if let Some(scope) = scopes.iter().find(|scope| scope.is_empty() || scope.contains(' ')) {
            self.problems
                .error(format!("{place}.scopes"), format!("`{scope}` is not one scope, and no token could have it"));
        }
        let methods = owned("methods");
        if let Some(method) = methods.iter().find(|method| !is_method(method)) {
            let message = format!(
                "`{method}` is no method, so that the route would protect nothing: write each by itself, as in `[GET, POST]`, and leave `methods` out for all"
            );
            self.problems.error(format!("{place}.methods"), message);
        } else if let Some(method) =
            methods.iter().find(|method| !METHODS.contains(&method.to_ascii_uppercase().as_str()))
        {
            self.problems.warn(format!("{place}.methods"), format!("`{method}` is no usual method: is it a typo?"));
        }
        let acr_values = owned("acr_values");
        if let Some(value) = acr_values.iter().find(|value| value.is_empty() || value.contains(char::is_whitespace)) {
            let message = format!("`{value}` is not one value, and no token can have it");
            self.problems.warn(format!("{place}.acr_values"), message);
        }
        let issuers = self.route_issuers(&owned("issuers"), own, &format!("{place}.issuers"));
        let required = LevelRequirement { level, acr_values };
        let demand = RouteRequirement {
            levels: if required == LevelRequirement::default() { Vec::new() } else { vec![required] },
            max_age,
            scopes,
            single_use,
            allows_anonymous,
            issuers: if issuers.is_empty() { Vec::new() } else { vec![issuers] },
            same_origin,
            revocation: match item.text("revocation") {
                Some("required") => Some(RouteRevocation::Required),
                Some("off") => Some(RouteRevocation::Off),
                Some(_) => Some(RouteRevocation::BestEffort),
                None => None,
            },
        };
        Some(Route { hosts, methods, path, peers: self.peers(item, &place), demand })
    }

    /// The issuers that a route accepts: of those that are configured, where one with a named part stands for all its tenants.
    fn route_issuers(&mut self, named: &[String], own: Section<'_>, place: &str) -> Vec<String> {
        let configured = || own.at("issuers").and_then(Value::as_array).into_iter().flatten();
        let mut accepted = Vec::new();
        for wanted in named {
            let of_entry = |entry: &Value| {
                let names = issuer_names(entry);
                let is_whole = with_defaults(entry).get("issuer").and_then(Value::as_str) == Some(wanted);
                if is_whole { names } else { names.into_iter().filter(|name| name == wanted).collect() }
            };
            let found: Vec<String> = configured().flat_map(of_entry).collect();
            if found.is_empty() {
                self.problems.error(place, format!("`{wanted}` is none of plugins.stepgate.issuers"));
            }
            accepted.extend(found);
        }
        accepted
    }

    fn peers(&mut self, item: Section<'_>, place: &str) -> Vec<SpiffePattern> {
        let mut peers = Vec::new();
        for (at, text) in item.texts("peers").into_iter().enumerate() {
            match SpiffePattern::parse(text) {
                Some(pattern) => peers.push(pattern),
                None => {
                    let message = format!("`{text}` is neither a SPIFFE ID nor one that ends with `/*`");
                    self.problems.error(format!("{place}.peers[{at}]"), message);
                }
            }
        }
        peers
    }

    /// Finds parameters in the notations of other programs, which match nothing but themselves.
    fn check_segments(&mut self, path: &str, place: &str) {
        for segment in path.split('/') {
            if segment.contains(['{', '}', '<', '>']) {
                let message = format!(
                    "`{segment}` matches only itself, so that the route would protect nothing: write `*` for one segment"
                );
                self.problems.error(place, message);
            } else if segment.starts_with(':') {
                let message = format!("`{segment}` matches only itself: write `*` if it is a parameter");
                self.problems.warn(place, message);
            }
        }
    }

    pub(super) fn redirect(&mut self, item: Section<'_>) -> Option<Redirect> {
        item.value?;
        let place = "plugins.stepgate.step_up.redirect";
        let is_web = |url: &Url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
        };
        let login_url = item.text("login_url").and_then(|text| Url::parse(text).ok()).filter(is_web);
        if login_url.is_none() {
            self.problems.error(format!("{place}.login_url"), "expected an http or https URL without a user name");
        }
        let allows_http = item.is_on("allow_http");
        let is_plain = |url: &Url| url.scheme() == "http" && !allows_http;
        if login_url.as_ref().is_some_and(is_plain) {
            let message =
                "over plain http anyone on the way can read the login and change it; for a test set `allow_http: true`";
            self.problems.error(format!("{place}.login_url"), message);
        }
        let mut return_origins = Vec::new();
        for text in item.texts("return_origins") {
            let origin = Url::parse(text).ok().filter(|url| is_web(url) && url.path() == "/" && url.query().is_none());
            match origin.filter(|url| url.fragment().is_none() && !text.contains('*')) {
                Some(url) if is_plain(&url) => {
                    let message = format!("`{text}` is plain http: for a test set `allow_http: true`");
                    self.problems.error(format!("{place}.return_origins"), message);
                }
                Some(url) => return_origins.push(url),
                None => {
                    let message = format!("`{text}` is not an origin such as `https://app.example.com`");
                    self.problems.error(format!("{place}.return_origins"), message);
                }
            }
        }
        if return_origins.is_empty() {
            self.problems.error(format!("{place}.return_origins"), "the list is empty: name at least one origin");
        }
        let return_parameter = item.text_or_default("return_parameter").to_owned();
        if matches!(return_parameter.as_str(), "" | "acr_values" | "max_age" | "scope") {
            self.problems.error(format!("{place}.return_parameter"), "expected a name of its own, such as `return_to`");
        }
        Some(Redirect { login_url: login_url?, return_parameter, return_origins })
    }

    /// The metadata of the protected resources, of which challenges say where they are.
    pub(super) fn resources(
        &mut self,
        own: Section<'_>,
        issuers: Option<&[IssuerSettings]>,
        proofs: &ProofSettings,
    ) -> Vec<ResourceMetadata> {
        let mut found = Vec::new();
        let one = own.section("resource");
        if one.value.is_some() {
            found.extend(self.resource(one, "plugins.stepgate.resource", issuers, proofs));
        }
        for (at, item) in own.at("resources").and_then(Value::as_array).into_iter().flatten().enumerate() {
            let place = format!("plugins.stepgate.resources[{at}]");
            let Some(resource) =
                self.resource(Section::of("plugins.stepgate.resources[]", Some(item)), &place, issuers, proofs)
            else {
                continue;
            };
            if found.iter().any(|other: &ResourceMetadata| resource.collides_with(other)) {
                let message = format!("the metadata of another resource is served at `{}`, too", resource.url);
                self.problems.error(format!("{place}.id"), message);
            }
            found.push(resource);
        }
        found
    }

    fn resource(
        &mut self,
        item: Section<'_>,
        place: &str,
        issuers: Option<&[IssuerSettings]>,
        proofs: &ProofSettings,
    ) -> Option<ResourceMetadata> {
        let mut members = Map::new();
        let servers = item.texts("authorization_servers");
        let servers: Vec<_> = match servers.is_empty() {
            // Workloads have their tokens already.
            true => {
                let for_people =
                    |issuer: &&IssuerSettings| !issuer.preset.is_of_workloads() && issuer.profile != Profile::JwtSvid;
                issuers.into_iter().flatten().filter(for_people).map(|issuer| issuer.issuer.as_str()).collect()
            }
            false => servers,
        };
        if !servers.is_empty() {
            members.insert("authorization_servers".to_owned(), servers.into());
        }
        let scopes = item.texts("scopes_supported");
        if !scopes.is_empty() {
            members.insert("scopes_supported".to_owned(), scopes.into());
        }
        let locations = || issuers.into_iter().flatten().flat_map(|issuer| &issuer.locations);
        let takes_header = locations().any(|location| matches!(location, Location::Header { .. }));
        let methods = if takes_header || issuers.is_none() { vec!["header"] } else { Vec::new() };
        members.insert("bearer_methods_supported".to_owned(), methods.into());
        if let Some(dpop) = dpop_challenge(issuers.unwrap_or_default(), proofs) {
            let algorithms: Vec<&str> = dpop.algorithms.split(' ').collect();
            members.insert("dpop_signing_alg_values_supported".to_owned(), algorithms.into());
            members.insert("dpop_bound_access_tokens_required".to_owned(), dpop.is_required.into());
        }
        for name in ["resource_name", "resource_documentation"] {
            if let Some(text) = item.text(name) {
                members.insert(name.to_owned(), text.into());
            }
        }
        let hosts: Vec<String> = item.texts("hosts").into_iter().map(str::to_ascii_lowercase).collect();
        for host in &hosts {
            let name = match host.rsplit_once(':') {
                Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
                _ => host,
            };
            if !is_plain_host(name) {
                let message = format!("`{host}` is not a host such as `api.example.com` or `api.example.com:8443`");
                self.problems.error(format!("{place}.hosts"), message);
            }
        }
        let prefix = item.text("path_prefix");
        if prefix.is_some_and(|prefix| !prefix.starts_with('/') || prefix.contains(['*', '?', '#', '%'])) {
            let message = "expected a path such as `/mcp/accounts`, without stars, query and percent-encoding";
            self.problems.error(format!("{place}.path_prefix"), message);
        }
        let metadata = item.text("id").and_then(|id| ResourceMetadata::new(id, members));
        if metadata.is_none() {
            let message = "expected an https URL without query and fragment, such as `https://api.example.com`";
            self.problems.error(format!("{place}.id"), message);
        }
        metadata.map(|metadata| metadata.at(hosts, prefix))
    }

    /// The identity token for the upstream.
    pub(super) fn identity_token(&mut self, own: Section<'_>, check: &mut check::Settings) {
        let item = own.section("identity_token");
        if item.value.is_none() {
            return;
        }
        let place = "plugins.stepgate.identity_token";
        let mut required = |name: &str| {
            let text = item.text(name).filter(|text| !text.is_empty());
            if text.is_none() {
                self.problems.error(format!("{place}.{name}"), "required");
            }
            text
        };
        let (audience, issuer, header) = (required("audience"), required("issuer"), required("header"));
        let key = required("key_file").map(|path| {
            let alg = Algorithm::asymmetric(item.text_or_default("algorithm")).unwrap_or(Algorithm::ES256);
            let pem = std::fs::read_to_string(path).map_err(|error| format!("`{path}` cannot be read: {error}"))?;
            SigningKey::from_pem(alg, &pem).map_err(|error| format!("`{path}`: {error}"))
        });
        let key = key.and_then(|key| key.map_err(|error| self.problems.error(format!("{place}.key_file"), error)).ok());
        let lifetime = item.duration("lifetime");
        if lifetime > MAX_IDENTITY_TOKEN_LIFETIME || lifetime.as_secs() < 2 {
            self.problems.error(format!("{place}.lifetime"), "at least 2s and at most 60s");
        }
        let mut claims = Vec::new();
        for (name, source) in item.members("claims") {
            match source.as_str().and_then(IdentitySource::parse).filter(|source| *source != IdentitySource::Policy) {
                Some(source) => claims.push((name.clone(), source)),
                None => {
                    let message = "expected `claims.<path>`, `authn.<member>` or `workload.<member>`";
                    self.problems.error(format!("{place}.claims.{name}"), message);
                }
            }
        }
        let (Some(audience), Some(issuer), Some(header), Some(key)) = (audience, issuer, header, key) else { return };
        if !is_header_name(header) {
            self.problems.error(format!("{place}.header"), "a header's name has only letters, digits and dashes");
        }
        if check.identity_headers.iter().any(|known| known.name.eq_ignore_ascii_case(header)) {
            self.problems.error(format!("{place}.header"), "the same header is among `identity_headers`");
        }
        check
            .identity_headers
            .push(IdentityHeader { name: header.to_ascii_lowercase(), source: IdentitySource::Token });
        let kid = item.text_or_default("kid").to_owned();
        let mut identity_token_signer = IdentityTokenSigner::new(key, kid, issuer.to_owned(), audience.to_owned());
        (identity_token_signer.lifetime, identity_token_signer.claims) = (lifetime, claims);
        check.identity_token_signer = Some(Arc::new(identity_token_signer));
    }

    pub(super) fn claims_challenge(&mut self, item: Section<'_>, place: &str) -> Option<ClaimsChallenge> {
        let item = item.section("claims_challenge");
        item.value?;
        let Some(client_id) = item.text("client_id").filter(|id| !id.is_empty()) else {
            self.problems.error(format!("{place}.claims_challenge.client_id"), "required");
            return None;
        };
        let authorization_uri = item.text_or_default("authorization_uri").to_owned();
        Some(ClaimsChallenge { client_id: client_id.to_owned(), authorization_uri })
    }
}
