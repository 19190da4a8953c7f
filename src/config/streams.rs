//! Streams of security events that a hub receives.

use std::collections::BTreeMap;

use serde_json::Value;
use stepgate_jose::Algorithm;

use super::resolve::Resolver;
use super::scim::credentials;
use super::section::Section;
use crate::hub::{Dialect, PollSettings, ScimSettings, SessionRevoked, StreamSettings, VerifySettings};
use crate::remote::service::ServiceSettings;
use crate::revocation::IssuerJoins;
use crate::token::{IssuerSettings, KeySource};

const PLACE: &str = "plugins.stepgate.hub";
const STREAM: &str = "plugins.stepgate.hub.streams[]";
/// The name below `/.well-known` of a transmitter's configuration (Shared Signals 1.0, section 7.1).
const WELL_KNOWN: &str = "/.well-known/ssf-configuration";

/// A stream with its transmitter.
pub type Stream = (StreamSettings, IssuerSettings);

/// Where a transmitter's configuration is: the name goes before the path of its identifier.
fn discovery(transmitter: &str) -> Option<String> {
    let mut url = url::Url::parse(transmitter).ok().filter(|url| ["http", "https"].contains(&url.scheme()))?;
    let path = format!("{WELL_KNOWN}{}", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Some(url.into())
}

impl Resolver<'_> {
    pub(super) fn streams(
        &mut self,
        hub: Section<'_>,
        joins: &BTreeMap<String, IssuerJoins>,
        scim: &[ScimSettings],
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Vec<Stream> {
        let listed = hub.at("streams").and_then(Value::as_array);
        let mut streams: Vec<Stream> = Vec::new();
        for (at, item) in listed.into_iter().flatten().enumerate() {
            let place = format!("{PLACE}.streams[{at}]");
            let item = Section::of(STREAM, Some(item));
            let Some(stream) = self.stream(item, &place, joins, services) else { continue };
            if streams.iter().any(|(known, _)| known.name == stream.0.name) {
                self.problems.error(format!("{place}.name"), "named twice");
            }
            if stream.0.poll.is_none() && hub.section("public").value.is_none() {
                self.problems.error(&place, "SETs are pushed to `hub.public`: configure it, or `poll`");
            }
            for name in stream.0.directories.iter().filter(|name| !scim.iter().any(|known| known.name == **name)) {
                self.problems.error(format!("{place}.directories"), format!("`{name}` is none of `hub.scim`"));
            }
            streams.push(stream);
        }
        streams
    }

    fn stream(
        &mut self,
        item: Section<'_>,
        place: &str,
        joins: &BTreeMap<String, IssuerJoins>,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<Stream> {
        let name = self.address_name(item, place);
        let texts = |name: &str| -> Vec<String> { item.texts(name).into_iter().map(str::to_owned).collect() };
        let issuers = texts("issuers");
        if issuers.is_empty() {
            self.problems.error(format!("{place}.issuers"), "required: the issuers whose tokens it decides about");
        }
        for issuer in issuers.iter().filter(|issuer| !joins.contains_key(*issuer)) {
            self.problems.error(format!("{place}.issuers"), format!("`{issuer}` is none of the configured issuers"));
        }
        let text = |name: &str| item.text(name).filter(|text| !text.is_empty());
        let (transmitter, audience) = (text("transmitter"), text("audience"));
        for (name, value) in [("transmitter", transmitter), ("audience", audience)] {
            if value.is_none() {
                self.problems.error(format!("{place}.{name}"), "it is required");
            }
        }
        let transmitter = self.transmitter(item, place, transmitter?);
        let join_of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let map = |name: &str| -> BTreeMap<String, String> {
            item.members(name).map(|(key, value)| (key.clone(), join_of(value))).collect()
        };
        let (subject_issuers, format_is) = (map("subject_issuers"), map("format_is"));
        let opaque_is = text("opaque_is").map(str::to_owned);
        for join in subject_issuers.values().chain(format_is.values()).chain(&opaque_is) {
            let mut known = issuers.iter().filter_map(|issuer| joins.get(issuer)).flat_map(|known| &known.joins);
            if join != "sub" && !known.any(|known| known.name == *join) {
                self.problems.error(place, format!("`{join}` is no join of these issuers"));
            }
        }
        let dialect = match item.text_or_default("dialect") {
            "okta" => Dialect::Okta,
            "sse" => Dialect::Sse,
            _ => Dialect::Standard,
        };
        let credentials = credentials(item);
        let poll = self.endpoint(item.section("poll"), place, "poll", services).map(|(service, resource)| {
            PollSettings { service, resource, interval: item.section("poll").duration("interval") }
        });
        if poll.is_none() && credentials.is_empty() {
            let message =
                "required: the transmitter's credential in `Authorization` of what it pushes; or configure `poll`";
            self.problems.error(format!("{place}.token_files"), message);
        }
        let verify = self.endpoint(item.section("verify"), place, "verify", services).map(|(service, resource)| {
            VerifySettings {
                service,
                resource,
                stream_id: item.section("verify").text("stream_id").unwrap_or_default().to_owned(),
                interval: item.section("verify").duration("interval"),
            }
        });
        let settings = StreamSettings {
            name,
            audience: audience?.to_owned(),
            issuers,
            dialect,
            credentials,
            subject_issuers,
            opaque_is,
            format_is,
            directories: texts("directories"),
            tenant: text("tenant").map(str::to_owned),
            session_revoked: match (item.text("session_revoked"), dialect) {
                (Some("refresh"), _) | (None, Dialect::Okta) => SessionRevoked::Refresh,
                _ => SessionRevoked::Reauthenticate,
            },
            ignores_claims_change: item.text_or_default("claims_change") == "ignore",
            denies_devices: item.text_or_default("device") == "deny",
            levels: self.stream_levels(item, place),
            recovery_tier: item.integer("recovery_tier").and_then(|tier| u8::try_from(tier).ok()),
            notes_policy_lockouts: item.text_or_default("policy_disabled") == "ignore",
            poll,
            verify,
        };
        Some((settings, transmitter))
    }

    /// Levels by the names that the transmitter has for them.
    fn stream_levels(&mut self, item: Section<'_>, place: &str) -> BTreeMap<String, u8> {
        let mut levels = BTreeMap::new();
        for (name, level) in item.members("levels") {
            let level = self.level(level, &format!("{place}.levels.{name}"));
            levels.extend(level.and_then(|level| u8::try_from(level).ok()).map(|level| (name.clone(), level)));
        }
        levels
    }

    /// The transmitter as an issuer of SETs.
    fn transmitter(&mut self, item: Section<'_>, place: &str, transmitter: &str) -> IssuerSettings {
        let mut algorithms = Vec::new();
        for name in item.texts("algorithms") {
            match Algorithm::asymmetric(name) {
                Some(algorithm) => algorithms.push(algorithm),
                None => self.problems.error(
                    format!("{place}.algorithms"),
                    format!("`{name}` is none of {}", Algorithm::asymmetric_names().join(", ")),
                ),
            }
        }
        if algorithms.is_empty() {
            algorithms = vec![Algorithm::RS256, Algorithm::ES256, Algorithm::PS256];
        }
        let found = discovery(transmitter);
        let keys = match (item.text("jwks_file"), item.text("jwks_url"), found) {
            (Some(file), ..) => KeySource::JwksFile(file.into()),
            (_, Some(url), _) => KeySource::JwksUrl(url.to_owned()),
            (_, _, Some(url)) => KeySource::Discovery(url),
            _ => {
                let message = "it is no URL, so its keys cannot be found: give `jwks_url` or `jwks_file`";
                self.problems.error(format!("{place}.transmitter"), message);
                KeySource::Inline(String::new())
            }
        };
        IssuerSettings { algorithms, keys, ..IssuerSettings::new(transmitter) }
    }

    /// The service and the path of an endpoint of the transmitter.
    fn endpoint(
        &mut self,
        item: Section<'_>,
        place: &str,
        name: &str,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<(ServiceSettings, String)> {
        item.value?;
        let service = item.text("service").and_then(|service| services.get(service));
        if service.is_none() {
            self.problems.error(format!("{place}.{name}.service"), "required: one of `services`, with its credentials");
        }
        let resource = item.text("resource");
        if resource.is_none() {
            self.problems.error(format!("{place}.{name}.resource"), "required: the path of the endpoint");
        }
        Some((service?.clone(), resource?.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_of_a_transmitter_is_before_its_path() {
        for (transmitter, want) in [
            ("https://idp.example", Some("https://idp.example/.well-known/ssf-configuration")),
            ("https://idp.example/", Some("https://idp.example/.well-known/ssf-configuration")),
            ("https://idp.example/a/b", Some("https://idp.example/.well-known/ssf-configuration/a/b")),
            ("urn:idp", None),
        ] {
            assert_eq!(discovery(transmitter).as_deref(), want, "{transmitter}");
        }
    }
}
