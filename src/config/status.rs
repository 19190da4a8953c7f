//! The status, discovery, and the listeners of the API.
//!
//! Mirrors: OPA `v1/plugins/{status,discovery}` and `v1/server` as far as they are configured, v1.19.0.

use std::collections::BTreeMap;

use serde_json::Value;

use super::bundles::BundleContext;
use super::resolve::{Resolver, parts};
use super::section::Section;
use crate::feed::discovery::DiscoverySettings;
use crate::feed::status::sender::StatusSettings;
use crate::remote::service::ServiceSettings;
use crate::serve::{Address, BodyLimits};

/// The settings of the HTTP API.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    pub limits: BodyLimits,
    /// The document of `POST /`.
    pub default_decision: Vec<String>,
    /// The document that says who may.
    pub authorization: Vec<String>,
    /// The socket of what changes something.
    pub admin: Option<Address>,
    /// Where AuthZEN's clients reach this server.
    pub authzen_url: Option<String>,
}

impl Resolver<'_> {
    pub(super) fn status(
        &mut self,
        document: &Value,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<StatusSettings> {
        let item = Section::of("status", Some(document.get("status").filter(|value| value.is_object())?));
        let (console, prometheus) = (item.is_on("console"), item.is_on("prometheus"));
        // With nothing else the first service counts, as in OPA.
        let first = || services.keys().next().cloned().filter(|_| !console && !prometheus);
        let service = item.text("service").filter(|name| !name.is_empty()).map(str::to_owned).or_else(first);
        if let Some(name) = service.as_ref().filter(|name| !services.contains_key(*name)) {
            self.problems.error("status.service", format!("there is no service `{name}`"));
        }
        let resource = match item.text("partition_name") {
            Some(partition) if !partition.is_empty() => format!("/status/{partition}"),
            _ => "/status".to_owned(),
        };
        Some(StatusSettings { console, prometheus, service, resource })
    }

    pub(super) fn discovery(&mut self, context: &BundleContext<'_>) -> Option<DiscoverySettings> {
        let item = Section::of("discovery", Some(context.document.get("discovery").filter(|value| value.is_object())?));
        let name = item.text("name").filter(|name| !name.is_empty());
        let Some(resource) = item.text("resource").filter(|text| !text.is_empty()).map(str::to_owned).or_else(|| {
            let prefix = item.text_or_default("prefix").trim_matches('/');
            name.map(|name| format!("{prefix}/{name}"))
        }) else {
            self.problems.error("discovery.resource", "required: where the discovery bundle is");
            return None;
        };
        if item.text("service").is_none() && context.services.len() > 1 {
            self.problems.error("discovery.service", "more than one service is defined; name one");
        }
        if resource.starts_with("file:") {
            self.problems.error("discovery.resource", "a file cannot be discovered; write it into the configuration");
        }
        // The same as a bundle, by another name.
        let mut members = item.value.and_then(Value::as_object).cloned().unwrap_or_default();
        members.insert("resource".to_owned(), resource.into());
        let bundle = Value::Object(members);
        let bundle =
            self.bundle(name.unwrap_or("discovery"), "discovery", Section::of("discovery", Some(&bundle)), context)?;
        Some(DiscoverySettings {
            bundle,
            decision: parts(&item.text("decision").or(name).unwrap_or("").replace('.', "/")),
        })
    }

    pub(super) fn api(&mut self, document: &Value) -> ApiConfig {
        let document = Section::root(document);
        let server = document.section("server");
        let encoding = server.section("encoding").section("gzip");
        let decoding = server.section("decoding");
        let own = document.section("plugins").section("stepgate");
        let admin = own.text("admin_socket").and_then(|text| match Address::parse(text) {
            Ok(address @ Address::UnixPath(_)) => Some(address),
            // An abstract socket has no permissions: every process of the pod reaches it.
            _ => {
                let message = "expected `unix:///` and the path of a socket: its permissions say who administrates";
                self.problems.error("plugins.stepgate.admin_socket", message);
                None
            }
        });
        ApiConfig {
            limits: BodyLimits {
                body: decoding.size("max_length"),
                decoded: decoding.section("gzip").size("max_length"),
                gzip_from: encoding.size("min_length"),
            },
            default_decision: parts(document.text_or_default("default_decision")),
            authorization: parts(document.text_or_default("default_authorization_decision")),
            admin,
            authzen_url: own.section("authzen").text("url").map(str::to_owned),
        }
    }
}
