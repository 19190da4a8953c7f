//! All bundles of the configuration: started, changed and ended as the configuration says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::activation::Activation;
use super::bundle::contents::BundleReader;
use super::bundle::poller::Poller;
use super::bundle::{BundleFeed, BundleSettings, Source};
use super::metrics::FeedMetrics;
use super::status::Status;
use crate::clock::Clock;
use crate::lifecycle::Lifecycle;
use crate::policy::RegoVersion;
use crate::remote::service::Service;

/// Services by name.
pub type Services = BTreeMap<String, Arc<Service>>;

/// Keeps all bundles fresh.
#[derive(Debug)]
pub struct Bundles {
    activation: Arc<Activation>,
    status: Status,
    metrics: Arc<FeedMetrics>,
    clock: Clock,
    /// The Rego version of modules unless a manifest has one.
    version: RegoVersion,
    lifecycle: Lifecycle,
    running: Mutex<BTreeMap<String, Running>>,
}

#[derive(Debug)]
struct Running {
    settings: Arc<BundleSettings>,
    refresh: Arc<Notify>,
    lifecycle: Lifecycle,
    /// This instance has been active, and not only an earlier one of its name.
    was_active: Arc<AtomicBool>,
}

impl Bundles {
    pub fn new(
        activation: Arc<Activation>,
        status: Status,
        metrics: Arc<FeedMetrics>,
        clock: Clock,
        version: RegoVersion,
        lifecycle: &Lifecycle,
    ) -> Self {
        let lifecycle = lifecycle.child();
        Self { activation, status, metrics, clock, version, lifecycle, running: Mutex::default() }
    }

    /// Replaces the set of bundles. Deactivation blocks the thread. New bundles start, unchanged ones continue, and removed ones stop and become inactive.
    pub fn apply(&self, wanted: Vec<BundleSettings>, services: &Services) {
        let is_wanted = |name: &str| wanted.iter().any(|it| it.name == name);
        let gone: Vec<_> = self.running.lock().extract_if(.., |name, _| !is_wanted(name)).collect();
        // Without the lock: building takes time, and checks ask what is active.
        for (name, ended) in gone {
            ended.lifecycle.stop();
            self.status.forget_bundle(&name);
            self.activation.report_rejected(&name, false);
            if let Err(error) = self.activation.remove_bundle(&name) {
                // The others make no sense without it: the active policy stays, as with every failed change.
                tracing::error!(name, "the bundle is not taken out of force: {error}");
            }
        }
        let mut running = self.running.lock();
        for settings in wanted {
            if running.get(&settings.name).is_some_and(|it| it.settings.fingerprint == settings.fingerprint) {
                continue;
            }
            // The one before must be over when its successor begins: what it is still reading counts no more.
            if let Some(before) = running.remove(&settings.name) {
                before.lifecycle.stop();
            }
            let name = settings.name.clone();
            if let Some(started) = self.start(settings, services) {
                running.insert(name, started);
            }
        }
    }

    fn start(&self, settings: BundleSettings, services: &Services) -> Option<Running> {
        let (settings, refresh) = (Arc::new(settings), Arc::new(Notify::new()));
        let poller = match &settings.source {
            Source::File(_) => None,
            // Resolving the configuration has made sure that the service is there.
            Source::Service { service, resource } => Some(Poller {
                service: Arc::clone(services.get(service)?),
                resource: resource.clone(),
                polling: settings.polling.clone(),
                limit: settings.size_limit,
                // A saved bundle must be whole.
                deltas: settings.kept.is_none(),
                etag: None,
                is_long: settings.polling.long.is_some(),
            }),
        };
        self.status.bundle(&settings.name, |_| {});
        let (lifecycle, was_active) = (self.lifecycle.child(), Arc::new(AtomicBool::new(false)));
        let feed = BundleFeed {
            reading: Arc::new(BundleReader {
                limit: settings.size_limit,
                version: self.version,
                verification: settings.verification.clone(),
            }),
            settings: Arc::clone(&settings),
            poller,
            activation: Arc::clone(&self.activation),
            status: Arc::clone(&self.status),
            metrics: Arc::clone(&self.metrics),
            clock: self.clock.clone(),
            refresh: Arc::clone(&refresh),
            lifecycle: lifecycle.clone(),
            was_active: Arc::clone(&was_active),
        };
        lifecycle.spawn_until_stop(feed.run());
        Some(Running { settings, refresh, lifecycle, was_active })
    }

    /// Every bundle has been active as it is configured now.
    pub fn are_active(&self) -> bool {
        self.running.lock().values().all(|running| running.was_active.load(Ordering::Acquire))
    }

    /// The bundles that have not been heard of for longer than their `max_staleness`.
    pub fn stale(&self) -> Vec<String> {
        let now = self.clock.now_ns();
        let is_stale = |running: &&Running| {
            let limit = running.settings.max_staleness;
            limit.is_some_and(|limit| !self.status.is_fresh(&running.settings.name, limit, now))
        };
        self.running.lock().values().filter(is_stale).map(|running| running.settings.name.clone()).collect()
    }

    /// Asks for a poll of this bundle at once; false when there is no such bundle.
    pub fn refresh(&self, name: &str) -> bool {
        let running = self.running.lock();
        let found = running.get(name);
        if let Some(running) = found {
            running.refresh.notify_one();
        }
        found.is_some()
    }
}
