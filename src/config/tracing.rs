//! Traces.
//!
//! Mirrors: OPA `internal/distributedtracing`, v1.19.0.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use url::Url;

use super::resolve::Resolver;
use super::section::Section;
use crate::feed::traces::{Protocol, TraceSettings};
use crate::remote::credentials::Credentials;
use crate::remote::service::{ClientCertificate, ServiceSettings};

impl Resolver<'_> {
    pub(super) fn tracing(&mut self, document: &Value) -> Option<TraceSettings> {
        let item = Section::root(document).section("distributed_tracing");
        let protocol = match item.text("type") {
            None | Some("") => return None,
            Some("http") => Protocol::Http,
            Some(_) => Protocol::Grpc,
        };
        let default = if protocol == Protocol::Http { "localhost:4318" } else { "localhost:4317" };
        let address = item.text("address").filter(|text| !text.is_empty()).unwrap_or(default);
        let encryption = item.text_or_default("encryption");
        let scheme = if encryption == "off" { "http" } else { "https" };
        let url = Url::parse(&format!("{scheme}://{address}")).ok().filter(|url| url.path() == "/");
        if url.is_none() {
            self.problems.error("distributed_tracing.address", "expected `host:port`");
        }
        let path = |name: &str| item.text(name).map(PathBuf::from);
        let client_certificate = path("tls_cert_file").zip(path("tls_private_key_file"));
        if client_certificate.is_none() && (path("tls_cert_file").is_some() || path("tls_private_key_file").is_some()) {
            self.problems.error("distributed_tracing", "tls_cert_file and tls_private_key_file go together");
        }
        if encryption == "mtls" && client_certificate.is_none() {
            self.problems
                .error("distributed_tracing.encryption", "`mtls` needs tls_cert_file and tls_private_key_file");
        }
        let skip_verification = item.flag("allow_insecure_tls") == Some(true);
        if skip_verification {
            self.problems.warn("distributed_tracing.allow_insecure_tls", "the collector is not verified");
        }
        let options = item.section("batch_span_processor_options");
        let resource = item.section("resource");
        let mut members = vec![("service.name", item.text_or_default("service_name").to_owned())];
        for (name, key) in [
            ("service.version", "service_version"),
            ("service.instance.id", "service_instance_id"),
            ("service.namespace", "service_namespace"),
            ("deployment.environment", "deployment_environment"),
        ] {
            members.extend(resource.text(key).map(|text| (name, text.to_owned())));
        }
        let milliseconds = |name: &str| Duration::from_millis(options.count(name));
        Some(TraceSettings {
            protocol,
            service: ServiceSettings {
                url: url?,
                is_registry: false,
                is_http2: protocol == Protocol::Grpc && encryption == "off",
                headers: Vec::new(),
                credentials: Credentials::None,
                header_timeout: milliseconds("export_timeout_ms"),
                ca_cert: path("tls_ca_cert_file"),
                system_roots: path("tls_ca_cert_file").is_none(),
                client_certificate: client_certificate.map(|(certificate, key)| ClientCertificate { certificate, key }),
                skip_verification,
            },
            percent: item.at("sample_percentage").and_then(Value::as_f64).unwrap_or(100.0),
            resource: members,
            batch: options.size("max_export_batch_size"),
            waiting: options.size("max_queue_size"),
            pause: milliseconds("batch_timeout_ms"),
        })
    }
}
