//! Whose tokens are accepted: `plugins.stepgate.issuers`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stepgate_jose::Algorithm;

use super::proofs::with_dpop;
use super::resolve::{Resolver, is_token};
use super::section::Section;
use super::workloads::with_defaults;
use crate::remote::service::ServiceSettings;
use crate::token::{
    self, AssertedSettings, AssuranceTable, AudienceClaim, ClaimNames, IssuerSettings, KeySource, Location, Preset,
    Profile,
};

/// The greatest difference between clocks that is allowed for.
/// The keys of an issuer in the table.
const ISSUER: &str = "plugins.stepgate.issuers[]";
const MAX_LEEWAY: Duration = Duration::from_secs(600);
/// Tenants of one entry; each has keys of its own.
const MAX_TENANTS: usize = 100;
/// Where keys may come from.
pub(super) const KEY_SOURCES: [&str; 5] = ["jwks_url", "discovery", "jwks_file", "jwks_service", "jwks"];

/// Envoy is trusted to have verified an issuer's tokens.
/// Tenants of Entra that anybody can have a token of; the last is that of all private Microsoft accounts.
const EVERYBODYS_TENANTS: [&str; 4] = ["common", "organizations", "consumers", "9188040d-6c67-4c5b-b112-36a304b66dad"];

fn is_asserted(item: &Value) -> bool {
    item.get("trust").and_then(Value::as_str) == Some("envoy")
}

/// The named part of `issuer` in an entry, such as `{tenant}`.
fn tenant_part(issuer: &str) -> Option<String> {
    let (name, _) = issuer.split_once('{')?.1.split_once('}')?;
    Some(format!("{{{name}}}"))
}

/// Every `iss` of an entry of `issuers`: one for each tenant where it has a named part.
pub(super) fn issuer_names(entry: &Value) -> Vec<String> {
    let entry = with_defaults(entry);
    let issuer = entry.get("issuer").and_then(Value::as_str).unwrap_or_default();
    match tenant_part(issuer) {
        Some(part) => Section::of(ISSUER, Some(&entry))
            .texts("tenants")
            .into_iter()
            .map(|tenant| issuer.replace(&part, tenant))
            .collect(),
        None => vec![issuer.to_owned()],
    }
}

/// The names of claims that an issuer has in the place of the usual ones.
fn claim_names(item: Section<'_>) -> ClaimNames {
    let named = |name: &str| item.text(name).filter(|given| !given.is_empty()).map(str::to_owned);
    ClaimNames { acr: named("acr"), amr: named("amr"), auth_time: named("auth_time"), scope: named("scope") }
}

impl Resolver<'_> {
    pub(super) fn issuers(
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
            if is_asserted(&item) {
                continue;
            }
            for item in self.of_tenants(item, &place) {
                let Some(issuer) = self.issuer(Section::of(ISSUER, Some(&item)), &place, services) else { continue };
                if issuers.iter().any(|known| known.issuer == issuer.issuer) {
                    self.problems.error(format!("{place}.issuer"), "named twice");
                }
                issuers.push(issuer);
            }
        }
        self.check_locations(&issuers);
        self.check_introspection(&issuers);
        Some(issuers)
    }

    /// Issuers whose tokens Envoy verifies.
    pub(super) fn asserted(
        &mut self,
        own: Section<'_>,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Vec<AssertedSettings> {
        let listed = own.at("issuers").and_then(Value::as_array);
        let mut asserted = Vec::new();
        for (at, item) in listed.into_iter().flatten().enumerate().filter(|(_, item)| is_asserted(item)) {
            let place = format!("plugins.stepgate.issuers[{at}]");
            let item = Section::of(ISSUER, Some(item));
            for name in KEY_SOURCES.iter().chain(&["algorithms", "introspection", "dpop", "token_from"]) {
                if item.at(name).is_some() {
                    let message = "with `trust: envoy` it is Envoy that finds and verifies tokens";
                    self.problems.error(format!("{place}.{name}"), message);
                }
            }
            let Some(payload_key) = item.text("payload_in_metadata").filter(|key| !key.is_empty()) else {
                let message = "required: what the filter `jwt_authn` has as `payload_in_metadata`";
                self.problems.error(format!("{place}.payload_in_metadata"), message);
                continue;
            };
            // Only the defaults of the preset about claims: Envoy has the keys.
            let mut whole = with_defaults(item.value.unwrap_or(&Value::Null));
            for name in KEY_SOURCES.iter().chain(&["algorithms"]) {
                whole.as_object_mut().and_then(|members| members.remove(*name));
            }
            for entry in self.of_tenants(whole, &place) {
                if let Some(issuer) = self.issuer(Section::of(ISSUER, Some(&entry)), &place, services) {
                    asserted.push(AssertedSettings { payload_key: payload_key.to_owned(), issuer });
                }
            }
        }
        asserted
    }

    /// One header cannot be read both with and without a scheme: every token would be found twice.
    fn check_locations(&mut self, issuers: &[IssuerSettings]) {
        let locations = || issuers.iter().flat_map(|issuer| &issuer.locations);
        let header = |location: &Location| match location {
            Location::Header { name, scheme } => Some((name.clone(), scheme.is_some())),
            Location::Cookie { .. } | Location::WebSocketProtocol { .. } => None,
        };
        let whole = locations().filter_map(header).filter(|(_, scheme)| !scheme);
        for (name, _) in whole {
            if locations().filter_map(header).any(|(other, scheme)| scheme && other == name) {
                let message = format!("the header `{name}` is read with a scheme in one place and without in another");
                self.problems.error("plugins.stepgate.issuers", message);
                return;
            }
        }
        let all: Vec<&Location> = locations().collect();
        let overlap = |one: &Location, other: &Location| match (one, other) {
            (Location::Cookie { name, chunks }, Location::Cookie { name: same, chunks: others }) => {
                name == same && chunks != others
            }
            (Location::WebSocketProtocol { prefix }, Location::WebSocketProtocol { prefix: longer }) => {
                prefix != longer && longer.starts_with(prefix.as_str())
            }
            _ => false,
        };
        if all.iter().any(|one| all.iter().any(|other| overlap(one, other))) {
            let message = "two entries of `token_from` find the same token: a cookie with and without `chunks`, or a `websocket_protocol` that another begins with";
            self.problems.error("plugins.stepgate.issuers", message);
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
        // An issuer with introspection alone has no keys to be configured.
        let has_keys = KEY_SOURCES.iter().any(|name| item.at(name).is_some());
        let is_only_asked = item.value.is_some_and(is_asserted) || (!has_keys && item.at("introspection").is_some());
        require("algorithms", names.is_empty() && !is_only_asked);
        self.check_workload_audiences(item, place);
        self.check_names(item, &audiences, place);
        let mut algorithms = Vec::new();
        for name in names {
            match Algorithm::asymmetric(name) {
                Some(alg) => algorithms.push(alg),
                None if name.starts_with("HS") => {
                    let message = format!("`{name}` shares a secret; keys from a key set are public");
                    self.problems.error(format!("{place}.algorithms"), message);
                }
                None => {
                    let message = format!("`{name}` is none of {}", Algorithm::asymmetric_names().join(", "));
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
            profile: self.profile(item, place),
            max_lifetime: item.optional_duration("max_lifetime"),
            locations: self.all_locations(item, place),
            preset: item.text("preset").and_then(Preset::named).unwrap_or_default(),
            audience_claim: match item.text("audience_claim") {
                Some("client_id") => AudienceClaim::ClientId,
                _ => AudienceClaim::Audience,
            },
            subject_claims: self.subject_claims(item, place),
            claim_names: claim_names(item.section("claims")),
            assurance: self.assurance(item, place),
            claims_challenge: self.claims_challenge(item, place),
            introspection: self.introspection(item.section("introspection"), place, services),
        })
    }

    /// Finds names that no token can have.
    fn check_names(&mut self, item: Section<'_>, audiences: &[&str], place: &str) {
        if audiences.contains(&"") {
            let message = "an empty audience would accept tokens that are meant for no API: name this one";
            self.problems.error(format!("{place}.audiences"), message);
        }
        let mut warn = |name: &str, given: &str| {
            let message = format!("`{given}` is compared as it stands, so that no token matches it");
            self.problems.warn(format!("{place}.{name}"), message);
        };
        let is_odd = |given: &str| given == "*" || given.contains(char::is_whitespace);
        item.text("issuer").filter(|given| is_odd(given)).into_iter().for_each(|given| warn("issuer", given));
        audiences.iter().filter(|given| is_odd(given)).for_each(|given| warn("audiences", given));
        item.members("acr_levels").filter(|(acr, _)| acr.is_empty()).for_each(|(acr, _)| warn("acr_levels", acr));
    }

    /// The entry for each of its tenants: their names in the place of the named part of `issuer` and of the URLs of keys.
    fn of_tenants(&mut self, item: Value, place: &str) -> Vec<Value> {
        let issuer = item.get("issuer").and_then(Value::as_str).unwrap_or_default().to_owned();
        let part = tenant_part(&issuer);
        let tenants: Vec<String> =
            Section::of(ISSUER, Some(&item)).texts("tenants").into_iter().map(str::to_owned).collect();
        let place = format!("{place}.tenants");
        let Some(part) = part else {
            if item.get("tenants").is_some() {
                self.problems.error(
                    &place,
                    "`issuer` has no named part, as in `https://login.microsoftonline.com/{tenant}/v2.0`",
                );
            }
            return vec![item];
        };
        if issuer.replace(&part, "").contains(['{', '}']) {
            self.problems.error(&place, "`issuer` has more than one named part");
        }
        if tenants.is_empty() || tenants.len() > MAX_TENANTS {
            let message = format!(
                "required: the tenants whose tokens are accepted, at most {MAX_TENANTS}; anybody may have one of their own"
            );
            self.problems.error(&place, message);
            return Vec::new();
        }
        let is_good = |tenant: &String| {
            tenant.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
                && !matches!(tenant.as_str(), "" | "." | "..")
                && !EVERYBODYS_TENANTS.iter().any(|everybodys| tenant.eq_ignore_ascii_case(everybodys))
        };
        if let Some(bad) = tenants.iter().find(|tenant| !is_good(tenant)) {
            self.problems.error(&place, format!("`{bad}` is not one tenant: name each by its id"));
            return Vec::new();
        }
        let for_tenant = |tenant: &String| {
            let mut item = item.clone();
            for name in ["issuer", "discovery", "jwks_url"] {
                if let Some(Value::String(text)) = item.get_mut(name) {
                    *text = text.replace(&part, tenant);
                }
            }
            item
        };
        tenants.iter().map(for_tenant).collect()
    }

    fn subject_claims(&mut self, item: Section<'_>, place: &str) -> Vec<String> {
        let named: Vec<String> = item.texts("subject_claims").into_iter().map(str::to_owned).collect();
        let place = format!("{place}.subject_claims");
        if item.at("subject_claims").is_some() && named.is_empty() {
            self.problems.error(&place, "the list is empty, so that no token could name its caller");
        }
        if named.iter().any(String::is_empty) {
            self.problems.error(&place, "a claim without a name");
        }
        if item.text("token_profile").is_some_and(|profile| profile != "legacy")
            && named.iter().any(|name| name != "sub")
        {
            self.problems.error(&place, "tokens of this `token_profile` always have `sub`");
        }
        if named.is_empty() { vec!["sub".to_owned()] } else { named }
    }

    fn profile(&mut self, item: Section<'_>, place: &str) -> Profile {
        let profile = match item.text("token_profile") {
            Some("rfc9068") => Profile::Rfc9068,
            Some("jwt-svid") => Profile::JwtSvid,
            _ => Profile::Legacy,
        };
        let is_trust_domain =
            item.text("issuer").and_then(token::parse_spiffe_id).is_some_and(|(_, path)| path.is_empty());
        if (profile == Profile::JwtSvid) != is_trust_domain {
            let message =
                "`token_profile: jwt-svid` goes with an issuer that is a trust domain such as `spiffe://example.org`";
            self.problems.error(format!("{place}.token_profile"), message);
        }
        profile
    }

    fn leeway(&mut self, item: Section<'_>, place: &str) -> Duration {
        let leeway = item.duration("leeway");
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
            let resource = item.text_or_default("jwks_resource").to_owned();
            sources.push(KeySource::Service { name: name.to_owned(), resource });
        }
        sources.extend(item.text("jwks_file").map(|path| KeySource::JwksFile(path.into())));
        if let Some(jwks) = item.at("jwks") {
            let text = jwks.as_str().map_or_else(|| jwks.to_string(), str::to_owned);
            if let Err(error) = token::KeySet::parse_for(self.profile(item, place), text.as_bytes()) {
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
        for (at, listed) in
            listed.iter().map(|value| Section::of("plugins.stepgate.issuers[].token_from[]", Some(value))).enumerate()
        {
            for name in ["header", "cookie", "scheme", "websocket_protocol"] {
                if let Some(given) = listed.text(name).filter(|given| !is_token(given)) {
                    let message = format!("`{given}` is no name of a {name}, so that no token is found there");
                    self.problems.warn(format!("{place}.token_from[{at}].{name}"), message);
                }
            }
            if let Some(prefix) = listed.text("websocket_protocol") {
                if listed.at("header").is_some() || listed.at("cookie").is_some() || prefix.is_empty() {
                    let message = "give one of `header`, `cookie` and a `websocket_protocol` that is not empty";
                    self.problems.error(format!("{place}.token_from[{at}]"), message);
                }
                locations.push(Location::WebSocketProtocol { prefix: prefix.to_owned() });
                continue;
            }
            match (listed.text("header"), listed.text("cookie")) {
                (Some(name), None) => locations.push(Location::Header {
                    name: name.to_ascii_lowercase(),
                    scheme: listed.text("scheme").map(str::to_ascii_lowercase),
                }),
                (None, Some(_)) if listed.text("scheme").is_some() => {
                    self.problems.error(format!("{place}.token_from[{at}].scheme"), "a cookie has no scheme");
                }
                (None, Some(name)) => {
                    let chunks = listed.is_on("chunks");
                    locations.push(Location::Cookie { name: name.to_owned(), chunks });
                }
                _ => {
                    let message = "give one of `header`, `cookie` and `websocket_protocol`";
                    self.problems.error(format!("{place}.token_from[{at}]"), message);
                }
            }
        }
        if locations.is_empty() {
            self.problems.error(format!("{place}.token_from"), "the list is empty: name at least one location");
        }
        locations
    }

    /// Those of `token_from`, and that of bound tokens.
    fn all_locations(&mut self, item: Section<'_>, place: &str) -> Vec<Location> {
        if item.text("dpop") == Some("required") && item.at("token_from").is_some() {
            let message = "with `dpop: required` tokens come as `Authorization: DPoP` alone: leave `token_from` out, or say `dpop: optional`";
            self.problems.error(format!("{place}.token_from"), message);
        }
        with_dpop(self.locations(item, place), item.text("dpop"))
    }

    fn assurance(&mut self, item: Section<'_>, place: &str) -> AssuranceTable {
        let mut table = AssuranceTable::new(
            item.text("preset").and_then(Preset::named).unwrap_or_default(),
            Arc::clone(&self.scale),
        );
        for (alias, known) in item.members("amr_aliases") {
            if !known.as_str().is_some_and(|known| table.alias_amr(alias, known)) {
                self.problems.error(format!("{place}.amr_aliases.{alias}"), "its meaning is not a known amr word");
            }
        }
        for (acr, level) in item.members("acr_levels") {
            if let Some(level) = self.level(level, &format!("{place}.acr_levels.{acr}")) {
                table.level_of_acr(acr, level);
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
