//! Services.
//!
//! Mirrors: OPA `v1/plugins/rest`, v1.19.0.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use url::Url;

use super::resolve::Resolver;
use super::section::Section;
use crate::remote::service::ServiceSettings;
use crate::secret::Secret;

impl Resolver<'_> {
    /// Services by name, from an object or from a list whose items have a `name`.
    pub(super) fn services(&mut self, document: &Value) -> BTreeMap<String, ServiceSettings> {
        let mut services = BTreeMap::new();
        for (name, place, item) in named(document.get("services"), "services") {
            let Some(name) = name else {
                self.problems.error(place, "a service in a list needs a `name`");
                continue;
            };
            let Some(service) = self.service(&place, Section::of("services[]", Some(item)), document) else { continue };
            if services.insert(name.to_owned(), service).is_some() {
                self.problems.error(place, "named twice");
            }
        }
        services
    }

    fn service(&mut self, place: &str, item: Section<'_>, document: &Value) -> Option<ServiceSettings> {
        let text = item.text("url").unwrap_or_default();
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        if url.is_none() {
            self.problems.error(format!("{place}.url"), "expected an http or https URL");
        }
        let is_registry = item.text("type") == Some("oci");
        if item.text("type").is_some_and(|kind| !matches!(kind, "" | "oci")) {
            self.problems.error(format!("{place}.type"), "expected `oci`, or nothing for a plain server");
        }
        if item.flag("allow_insecure_tls") == Some(true) {
            let message = "the server is not verified: a machine in between can replace every policy";
            self.problems.warn(format!("{place}.allow_insecure_tls"), message);
        }
        let headers = item
            .members("headers")
            .filter_map(|(name, value)| Some((name.to_ascii_lowercase(), Secret::new(value.as_str()?.to_owned()))));
        // The second is deprecated by OPA.
        let tls = |name: &str| {
            let old = item.section("credentials").section("client_tls");
            item.section("tls").at(name).or_else(|| old.at(name))
        };
        Some(ServiceSettings {
            url: url?,
            is_registry,
            is_http2: false,
            headers: headers.collect(),
            credentials: self.credentials(place, item.section("credentials"), document, is_registry),
            client_certificate: self.client_certificate(place, item.section("credentials").section("client_tls")),
            header_timeout: Duration::from_secs(item.count("response_header_timeout_seconds")),
            ca_cert: tls("ca_cert").and_then(Value::as_str).filter(|path| !path.is_empty()).map(Into::into),
            system_roots: tls("system_ca_required").and_then(Value::as_bool).unwrap_or(false),
            skip_verification: item.is_on("allow_insecure_tls"),
        })
    }
}

/// The items of an object by their names, or of a list by their members `name`, each with its place.
pub(super) fn named<'a>(value: Option<&'a Value>, place: &str) -> Vec<(Option<&'a str>, String, &'a Value)> {
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
