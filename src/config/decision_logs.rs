//! The decision log.
//!
//! Mirrors: OPA `v1/plugins/logs/plugin.go`, v1.19.0.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::memory::Consumer;
use super::resolve::{Resolver, parts};
use super::section::Section;
use crate::feed::decision_log::DecisionLogSettings;
use crate::feed::decision_log::buffer::{Limits, Overflow};
use crate::feed::decision_log::spill::SpillSettings;
use crate::remote::service::ServiceSettings;

impl Resolver<'_> {
    /// The destinations and limits of decision logs; without `decision_logs` only subscribers receive decisions.
    pub(super) fn decision_log(
        &mut self,
        document: &Value,
        path: &str,
        own: Section<'_>,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> DecisionLogSettings {
        let configured = document.get("decision_logs").filter(|value| value.is_object());
        let item = Section::of("decision_logs", configured);
        let console = item.is_on("console");
        // With neither a service nor the console the first service counts, as in OPA.
        let first = || services.keys().next().cloned().filter(|_| !console);
        let service = item.text("service").map(str::to_owned).or_else(first).filter(|_| configured.is_some());
        if let Some(name) = service.as_ref().filter(|name| !services.contains_key(*name)) {
            self.problems.error("decision_logs.service", format!("there is no service `{name}`"));
        }
        if configured.is_some() && service.is_none() && !console {
            self.problems.error("decision_logs", "give a `service`, or `console: true`");
        }
        let reporting = item.section("reporting");
        let (least, most) = (reporting.count("min_delay_seconds"), reporting.count("max_delay_seconds"));
        if least > most {
            let message = "max_delay_seconds must not be less than min_delay_seconds";
            self.problems.error("decision_logs.reporting", message);
        }
        let resource = match (item.text("resource"), item.text("partition_name")) {
            (Some(resource), _) => resource.to_owned(),
            (None, Some(partition)) if !partition.is_empty() => format!("/logs/{partition}"),
            _ => "/logs".to_owned(),
        };
        let document_at = |name: &str| parts(item.text_or_default(name));
        let buffer = match reporting.share("buffer_size_limit_bytes", self.memory) {
            0 => self.memory.default_for(Consumer::DecisionLogBuffer),
            bytes => bytes,
        };
        let is_by_event = reporting.text("buffer_type") == Some("event");
        let events = if is_by_event { reporting.count("buffer_size_limit_events") } else { u64::MAX };
        let spill = own
            .text("spill_directory")
            .map(|folder| SpillSettings { folder: folder.into(), limit: own.count("spill_size_limit_bytes") });
        if own.text("overflow") == Some("spill") && spill.is_none() {
            self.problems.error("plugins.stepgate.log.spill_directory", "required for `overflow: spill`");
        }
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        DecisionLogSettings {
            console,
            service,
            resource,
            path: path.to_owned(),
            labels: BTreeMap::new(),
            mask: document_at("mask_decision"),
            drop: document_at("drop_decision"),
            token_headers: Vec::new(),
            redact: own.is_on("redact"),
            min_delay: Duration::from_secs(least.max(1)),
            max_delay: Duration::from_secs(most.max(1)),
            upload_limit: bytes(reporting.count("upload_size_limit_bytes")),
            limits: Limits {
                bytes: bytes(buffer),
                events: bytes(events),
                overflow: match (own.text("overflow"), own.text("audit")) {
                    (Some("spill"), _) => Overflow::Spill,
                    // Required events are never dropped: checks wait, and are denied.
                    (_, Some("required")) => Overflow::Wait,
                    (Some("drop_new"), _) => Overflow::DropNew,
                    _ => Overflow::DropOld,
                },
            },
            waiting_bytes: self.memory.size_for(Consumer::DecisionQueue),
            spill,
            share: own.count("cpu_share_percent"),
            max_per_second: reporting.at("max_decisions_per_second").and_then(Value::as_u64),
        }
    }
}
