//! Metrics of OPA's status, by its names.
//!
//! Mirrors: OPA `v1/plugins/status/metrics.go`, v1.19.0. Its counters are gauges here: the name
//! of a counter would end in `_total`.

use std::collections::BTreeMap;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::{Labels, Registrar};

/// The metrics of one bundle. Times are nanoseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub struct BundleMetrics<'a> {
    pub name: &'a str,
    pub revision: &'a str,
    /// Code and message.
    pub fault: Option<(&'a str, &'a str)>,
    pub activated_at: Option<i64>,
    pub downloaded_at: Option<i64>,
    pub answered_at: Option<i64>,
    pub asked_at: Option<i64>,
}

/// The metrics of OPA's status, shown with `status.prometheus`.
#[derive(Debug)]
pub struct StatusMetrics {
    plugins: Family<Labels, Gauge>,
    loaded: Family<Labels, Gauge>,
    failed: Family<Labels, Gauge>,
    asked_at: Family<Labels, Gauge>,
    activated_at: Family<Labels, Gauge>,
    downloaded_at: Family<Labels, Gauge>,
    answered_at: Family<Labels, Gauge>,
    info: Family<Labels, Gauge>,
}

impl StatusMetrics {
    pub fn register(registrar: &mut Registrar<'_>) -> Self {
        Self {
            info: registrar.gauges("opa_info", "Info metric (value 1) with the version"),
            plugins: registrar.gauges("plugin_status_gauge", "Plugins by name and status"),
            loaded: registrar.gauges("bundle_loaded_counter", "Bundles that were loaded"),
            failed: registrar.gauges("bundle_failed_load_counter", "Bundles that failed to load"),
            asked_at: registrar.gauges("last_bundle_request", "Time of the last bundle request, nanoseconds"),
            activated_at: registrar.gauges(
                "last_success_bundle_activation",
                "Time of the last successful activation, nanoseconds since the epoch",
            ),
            downloaded_at: registrar
                .gauges("last_success_bundle_download", "Time of the last bundle download, nanoseconds"),
            answered_at: registrar
                .gauges("last_success_bundle_request", "Time of the last answer of a bundle's server, nanoseconds"),
        }
    }

    /// Replaces all series at once: removed bundles are no longer exported.
    pub fn publish(&self, plugins: &BTreeMap<String, &'static str>, bundles: &[BundleMetrics<'_>]) {
        self.info.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
        for family in [&self.plugins, &self.activated_at, &self.downloaded_at, &self.answered_at, &self.asked_at] {
            family.clear();
        }
        for (name, state) in plugins {
            self.plugins.get_or_create(&vec![("name", name.clone()), ("status", (*state).to_owned())]).set(1);
        }
        bundles.iter().for_each(|bundle| self.bundle(bundle));
    }

    fn bundle(&self, told: &BundleMetrics<'_>) {
        let name = ("name", told.name.to_owned());
        let by_name = vec![name.clone()];
        match told.fault {
            None if told.activated_at.is_some() => {
                self.loaded.get_or_create(&by_name).inc();
            }
            fault => {
                let (code, message) = fault.unwrap_or_default();
                // The kind of the error, of which there are few; what follows differs for ever.
                let kind = message.split(':').next().unwrap_or_default().to_owned();
                let labels = vec![name.clone(), ("code", code.to_owned()), ("message", kind)];
                self.failed.get_or_create(&labels).inc();
            }
        }
        let set = |family: &Family<Labels, Gauge>, labels: &Labels, at: Option<i64>| {
            family.get_or_create(labels).set(at.unwrap_or_default());
        };
        set(&self.activated_at, &vec![name, ("active_revision", told.revision.to_owned())], told.activated_at);
        set(&self.downloaded_at, &by_name, told.downloaded_at);
        set(&self.answered_at, &by_name, told.answered_at);
        set(&self.asked_at, &by_name, told.asked_at);
    }
}
