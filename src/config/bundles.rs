//! Services and bundles.
//!
//! Mirrors: OPA `v1/plugins/rest`, `v1/plugins/bundle/config.go` and `v1/download/config.go`, v1.19.0.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use url::Url;

use super::resolve::{Resolver, Section};
use crate::feed::bundle::BundleSettings;
use crate::remote::service::{Credentials, ServiceSettings};
use crate::secret::Secret;

/// OPA's pauses between polls.
const MIN_DELAY: u64 = 60;
const MAX_DELAY: u64 = 120;
/// OPA's limit of a bundle.
const SIZE_LIMIT: u64 = 1 << 30;
/// OPA's time for the head of an answer, in seconds.
const HEADER_TIMEOUT: u64 = 10;

impl Resolver<'_> {
    /// Services by name, from an object or from a list whose items have a `name`.
    pub(super) fn services(&mut self, document: &Value) -> BTreeMap<String, ServiceSettings> {
        let mut services = BTreeMap::new();
        for (name, place, item) in named(document.get("services"), "services") {
            let Some(name) = name else {
                self.problems.error(place, "a service in a list needs a `name`");
                continue;
            };
            let Some(service) = self.service(&place, Section(Some(item))) else { continue };
            if services.insert(name.to_owned(), service).is_some() {
                self.problems.error(place, "named twice");
            }
        }
        services
    }

    fn service(&mut self, place: &str, item: Section<'_>) -> Option<ServiceSettings> {
        let text = item.text("url").unwrap_or_default();
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if url.is_none() {
            self.problems.error(format!("{place}.url"), "expected an http or https URL");
        }
        if item.text("type").is_some_and(|kind| !kind.is_empty()) {
            self.problems.error(format!("{place}.type"), "not offered yet; bundles come over http and https");
        }
        if item.flag("allow_insecure_tls") == Some(true) {
            let message = "the server is not verified: whoever stands between can replace every policy";
            self.problems.warn(format!("{place}.allow_insecure_tls"), message);
        }
        let headers = item
            .members("headers")
            .filter_map(|(name, value)| Some((name.to_ascii_lowercase(), Secret::new(value.as_str()?.to_owned()))));
        Some(ServiceSettings {
            url: url?,
            headers: headers.collect(),
            credentials: self.credentials(place, item.section("credentials")),
            header_timeout: Duration::from_secs(item.count("response_header_timeout_seconds", HEADER_TIMEOUT)),
            ca_cert: item.section("tls").text("ca_cert").map(Into::into),
            system_roots: item.section("tls").flag("system_ca_required").unwrap_or(false),
            skip_verification: item.flag("allow_insecure_tls").unwrap_or(false),
        })
    }

    fn credentials(&mut self, place: &str, item: Section<'_>) -> Credentials {
        let bearer = item.section("bearer");
        if bearer.0.is_none() {
            return Credentials::None;
        }
        let scheme = bearer.text("scheme").unwrap_or("Bearer").to_owned();
        let place = format!("{place}.credentials.bearer");
        match (bearer.text("token"), bearer.text("token_path")) {
            (Some(token), None) => {
                if token.is_empty() || token.contains("${") {
                    self.problems.error(format!("{place}.token"), "empty, or a `${…}` in it was not replaced");
                }
                Credentials::Bearer { scheme, token: Secret::new(token.to_owned()) }
            }
            (None, Some(path)) => Credentials::BearerFile { scheme, path: path.into() },
            _ => {
                self.problems.error(place, "give either `token` or `token_path`");
                Credentials::None
            }
        }
    }

    pub(super) fn bundles(
        &mut self,
        document: &Value,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Vec<BundleSettings> {
        let mut bundles = Vec::new();
        for (name, place, item) in named(document.get("bundles"), "bundles") {
            let Some(name) = name else {
                self.problems.error(place, "expected an object of bundles by name");
                continue;
            };
            bundles.extend(self.bundle(name, &place, Section(Some(item)), services));
        }
        let has_keys = document.get("keys").and_then(Value::as_object).is_some_and(|keys| !keys.is_empty());
        if has_keys && !bundles.is_empty() {
            let message = "signatures of bundles are not verified yet, and unverified bundles must not pass for verified ones; \
                           remove the keys, or keep using OPA for this";
            self.problems.error("keys", message);
        }
        bundles
    }

    fn bundle(
        &mut self,
        name: &str,
        place: &str,
        item: Section<'_>,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<BundleSettings> {
        let resource = item
            .text("resource")
            .filter(|resource| !resource.is_empty())
            .map_or_else(|| format!("bundles/{name}"), str::to_owned);
        if resource.starts_with("file:") {
            let message = "not offered yet; give the file on the command line with `--bundle`";
            self.problems.error(format!("{place}.resource"), message);
        }
        // Without a name the first service counts, as in OPA.
        let service = item.text("service").map(str::to_owned).or_else(|| services.keys().next().cloned());
        if !service.as_ref().is_some_and(|service| services.contains_key(service)) {
            let known: Vec<_> = services.keys().map(String::as_str).collect();
            let message = format!("there is no such service; there are: {}", known.join(", "));
            self.problems.error(format!("{place}.service"), message);
        }
        let polling = item.section("polling");
        let (least, most) =
            (polling.count("min_delay_seconds", MIN_DELAY), polling.count("max_delay_seconds", MAX_DELAY));
        if polling.at("min_delay_seconds").is_some() != polling.at("max_delay_seconds").is_some() {
            self.problems.error(format!("{place}.polling"), "give both min_delay_seconds and max_delay_seconds");
        }
        if least > most {
            let message = "max_delay_seconds must not be less than min_delay_seconds";
            self.problems.error(format!("{place}.polling"), message);
        }
        Some(BundleSettings {
            name: name.to_owned(),
            service: service?,
            resource,
            min_delay: Duration::from_secs(least.max(1)),
            max_delay: Duration::from_secs(most.max(1)),
            size_limit: item.count("size_limit_bytes", SIZE_LIMIT),
        })
    }
}

/// The items of an object by their names, or of a list by their members `name`, each with its place.
fn named<'a>(value: Option<&'a Value>, place: &str) -> Vec<(Option<&'a str>, String, &'a Value)> {
    match value {
        Some(Value::Object(members)) => {
            members.iter().map(|(name, item)| (Some(name.as_str()), format!("{place}.{name}"), item)).collect()
        }
        Some(Value::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(at, item)| (item.get("name").and_then(Value::as_str), format!("{place}[{at}]"), item))
            .collect(),
        _ => Vec::new(),
    }
}
