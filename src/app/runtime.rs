//! Everything that lives as long as the process, and what a configuration makes of it: at the start, and when one is discovered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value as Json;
use tokio::sync::{mpsc, watch};

use super::hub::follow_embedded;
use super::issuers::start_issuers;
use super::{Origin, readable};
use crate::check::{CheckMetrics, Checker, DryRun, RevocationCheck};
use crate::clock::Clock;
use crate::config::{Config, Document, GrpcListenerConfig, HubLocation, RevocationConfig, merge, public, resolve};
use crate::decision_queue::DecisionQueue;
use crate::decision_queue::metrics::LogMetrics;
use crate::feed::activation::{Activation, ActivationConfig};
use crate::feed::bundle::Source;
use crate::feed::bundle::contents::BundleReader;
use crate::feed::bundle::poller::Poller;
use crate::feed::bundles::{Bundles, Services};
use crate::feed::decision_log::{DecisionLog, DecisionLogSettings, Target as LogTarget};
use crate::feed::discovery::{Discovered, Discovery, DiscoverySettings};
use crate::feed::introspection::IntrospectionEndpoint;
use crate::feed::metrics::FeedMetrics;
use crate::feed::revocation::RevocationFeed;
use crate::feed::status::Status;
use crate::feed::status::sender::{StatusSender, Target as StatusTarget};
use crate::feed::traces::{TraceExporter, TraceSettings};
use crate::hub::Hub;
use crate::lifecycle::Lifecycle;
use crate::policy::{EvaluationMemory, HostContext, PolicyMetrics, RegoVersion, Store};
use crate::remote::service::{Service, ServiceSettings};
use crate::revocation::{RevocationMetrics, RevocationStore};
use crate::serve::{
    Api, ApiSettings, BUNDLES, GrpcServer, Health, HttpListenerConfig, Listener, ListenerKind, ListenerMetrics, Plugin,
    Readiness, Tls,
};
use crate::telemetry::{Metrics, TraceMetrics, Tracer, chain};
use crate::token::{TokenMetrics, Verifier};
use crate::value::{DuplicateKeys, JsonLimits, parse_json};

/// The interval of the warning that `dry-run` is on.
const DRY_RUN_WARNINGS: Duration = Duration::from_secs(60);
/// Configurations are no deeper.
const CONFIG: JsonLimits = JsonLimits { depth: 100, duplicates: DuplicateKeys::LastWins };

/// The process.
#[derive(Debug)]
pub struct Runtime {
    origin: Origin,
    /// The labels of this process.
    id: String,
    pub activation: Arc<Activation>,
    pub health: Health,
    /// The hub in this process.
    pub hub: OnceLock<Arc<Hub>>,
    pub(super) bundles: Arc<Bundles>,
    pub(super) status: Status,
    store: Arc<Store>,
    pub(super) metrics: Arc<Metrics>,
    clock: Clock,
    lifecycle: Lifecycle,
    /// Absent where decisions can never be logged.
    decision_queue: Option<Arc<DecisionQueue>>,
    log: watch::Sender<Option<Arc<LogTarget>>>,
    pub(super) told: watch::Sender<Option<StatusTarget>>,
    pub(super) in_force: Mutex<Document>,
    version: RegoVersion,
    has_checks: AtomicBool,
    has_discovered: AtomicBool,
}

/// The requirements for policies.
fn activation_config(config: &Config, metrics: &Metrics) -> ActivationConfig {
    let memory =
        EvaluationMemory::new(config.builtins.memory, Some(metrics.of::<PolicyMetrics>().evaluation_memory.clone()));
    ActivationConfig {
        entrypoint: config.entrypoint.clone(),
        host_context: Arc::new(HostContext::sharing(&config.builtins, memory)),
        load_checks: config.load_checks.clone(),
        awaits_entrypoint: config.awaits_entrypoint,
        bundles: config.bundles.len(),
    }
}

/// Registers the metrics of every room, so that they are exported from the start.
fn register(metrics: &Metrics) {
    metrics.of::<CheckMetrics>();
    metrics.of::<PolicyMetrics>();
    metrics.of::<TokenMetrics>();
    metrics.of::<LogMetrics>();
    metrics.of::<FeedMetrics>();
    metrics.of::<ListenerMetrics>();
    metrics.of::<RevocationMetrics>();
    metrics.of::<TraceMetrics>();
}

/// The files of TLS of the gRPC listener.
pub fn load_grpc_tls(config: &mut Config) -> anyhow::Result<Option<Tls>> {
    let settings = config.grpc.as_mut().and_then(|grpc| grpc.tls.take());
    settings.map(|settings| super::load_tls(settings, "plugins.stepgate.grpc.tls")).transpose()
}

impl Runtime {
    pub fn new(
        config: &Config,
        origin: Origin,
        clock: Clock,
        version: RegoVersion,
        lifecycle: &Lifecycle,
        metrics: Arc<Metrics>,
    ) -> Self {
        register(&metrics);
        let (store, status) = (Arc::new(Store::default()), Status::default());
        let activation = Activation::new(activation_config(config, &metrics), Arc::clone(&store), metrics.of());
        let activation = Arc::new(activation);
        let bundles = Arc::new(Bundles::new(
            Arc::clone(&activation),
            Arc::clone(&status),
            metrics.of(),
            clock.clone(),
            version,
            lifecycle,
        ));
        let health: Health = Arc::new(Readiness::default());
        health.has_plugin(Plugin::Discovery);
        health.await_condition("policy", Plugin::Checks, {
            let store = Arc::clone(&store);
            move || store.current().is_some()
        });
        health.await_condition("entrypoint", Plugin::Checks, {
            let activation = Arc::clone(&activation);
            move || activation.has_had_entrypoint()
        });
        let ((log, log_target), (told, status_target)) = (watch::channel(None), watch::channel(None));
        let is_told = config.decision_log.is_anywhere() || config.discovery.is_some() || config.api.admin.is_some();
        let decision_queue = is_told.then(|| {
            let (decision_queue, records) = DecisionQueue::new(&metrics, config.decision_log.waiting_bytes);
            let (metrics, status, watchers) = (metrics.of(), Arc::clone(&status), decision_queue.watchers());
            DecisionLog { target: log_target, metrics, status, watchers }.start(records, lifecycle);
            Arc::new(decision_queue)
        });
        let plugins = {
            let health = Arc::clone(&health);
            Arc::new(move || health.plugins())
        };
        let sender =
            StatusSender { status: Arc::clone(&status), plugins, metrics: Arc::clone(&metrics), target: status_target };
        lifecycle.spawn_until_stop(sender.run());
        let in_force = Mutex::new(origin.document.clone());
        Self {
            origin,
            id: uuid::Uuid::new_v4().to_string(),
            activation,
            health,
            bundles,
            status,
            store,
            metrics,
            clock,
            lifecycle: lifecycle.clone(),
            decision_queue,
            log,
            told,
            in_force,
            version,
            has_checks: AtomicBool::new(false),
            has_discovered: AtomicBool::new(false),
            hub: OnceLock::new(),
        }
    }

    /// The revisions of the active bundles; `None` without a policy.
    pub fn policy_revision(&self) -> Option<String> {
        let snapshot = self.store.current()?;
        let revisions = snapshot.revisions().iter().map(|(name, revision)| format!("{name}={revision}"));
        Some(revisions.collect::<Vec<_>>().join(","))
    }

    /// The API over this runtime.
    pub fn api(self: &Arc<Self>, settings: ApiSettings) -> Arc<Api> {
        let control = Arc::clone(self);
        let decision_queue = self.decision_queue.clone();
        Arc::new(Api::new(Arc::clone(&self.store), control, decision_queue, self.clock.clone(), settings))
    }

    pub fn listener_config(&self, kind: ListenerKind, tls: Option<Arc<Tls>>) -> HttpListenerConfig {
        HttpListenerConfig {
            health: Arc::clone(&self.health),
            metrics: Arc::clone(&self.metrics),
            policy: Arc::clone(&self.store),
            tls,
            kind,
        }
    }

    /// The labels of this process: those that were configured, and `id` and `version`, which are always its own.
    pub(super) fn labels(&self, configured: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut labels = configured.clone();
        labels.insert("id".to_owned(), self.id.clone());
        labels.insert("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        labels
    }

    /// Binds the gRPC listener and answers checks there. Returns its address.
    pub async fn start_checks(&self, config: &mut Config, tls: Option<Tls>) -> anyhow::Result<Option<String>> {
        let Some(GrpcListenerConfig { address, socket_access, settings, .. }) = config.grpc.take() else {
            return Ok(None);
        };
        let tls = tls.map(|tls| self.kept_fresh(tls));
        let listener = Listener::bind(&address, socket_access).await.map_err(readable)?;
        let tokens = config.issuers.take().map(|issuers| {
            // The hub in this process has them already.
            let issuers = match self.hub.get() {
                Some(hub) => hub.issuers().to_vec(),
                None => start_issuers(issuers, &config.issuer_services, &self.metrics, &self.clock, &self.lifecycle),
            };
            let verifier = Verifier::new(issuers, &config.tokens, self.clock.clone());
            let verifier = verifier.counting(self.metrics.of::<TokenMetrics>().cache.clone());
            let verifier = Arc::new(verifier.with_introspection(|settings| {
                let service = Arc::new(Service::new(config.services.get(&settings.service)?.clone()));
                let (resource, lifecycle) = (settings.resource.clone(), self.lifecycle.clone());
                let authorization = settings.authorization.clone();
                Some(Arc::new(IntrospectionEndpoint { service, resource, authorization, lifecycle }))
            }));
            self.health.await_condition("issuer_keys", Plugin::Checks, {
                let verifier = Arc::clone(&verifier);
                move || verifier.has_keys()
            });
            verifier
        });
        let store = Arc::clone(&self.store);
        let mut checker = Checker::new(config.check.clone(), store, tokens, self.clock.clone(), &self.metrics);
        if let Some(decision_queue) = &self.decision_queue {
            checker = checker.with_journal(Arc::clone(decision_queue));
        }
        if let Some(settings) = config.tracing.take() {
            checker = checker.with_tracer(self.start_traces(settings));
        }
        if let Some(settings) = config.revocation.take() {
            checker = checker.with_revocation(self.start_revocation(settings, &config.services));
        }
        self.warn_of_dry_run(config.check.dry_run);
        let bound = listener.local_address();
        tracing::info!(address = bound, "serving ext_authz");
        let (health, metrics) = (Arc::clone(&self.health), Arc::clone(&self.metrics));
        let server = GrpcServer { settings, checker: Arc::new(checker), health, metrics, tls };
        let stopping = self.lifecycle.stopping();
        self.lifecycle.spawn(async move {
            if let Err(error) = server.serve(listener, stopping).await {
                tracing::error!(error = chain(&error), "the ext_authz server ended");
            }
        });
        self.has_checks.store(true, Ordering::Release);
        Ok(Some(bound))
    }

    /// Says again and again that denials are allowed, and shows it in a gauge.
    fn warn_of_dry_run(&self, dry_run: DryRun) {
        self.metrics.of::<CheckMetrics>().dry_run.set(match dry_run {
            DryRun::Off => 0,
            DryRun::Denials => 1,
            DryRun::DenialsAndFaults => 2,
        });
        let Some(warning) = dry_run.warning() else { return };
        self.lifecycle.spawn_until_stop(async move {
            loop {
                tracing::warn!("{warning}");
                tokio::time::sleep(DRY_RUN_WARNINGS).await;
            }
        });
    }

    /// TLS whose files are read again when they change.
    pub fn kept_fresh(&self, tls: Tls) -> Arc<Tls> {
        let tls = Arc::new(tls);
        self.lifecycle.spawn_until_stop(Arc::clone(&tls).keep_fresh(self.metrics.of()));
        tls
    }

    /// Follows the hub. Not ready before there are entries, of the hub or of the last run.
    fn start_revocation(
        &self,
        settings: RevocationConfig,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> RevocationCheck {
        let store = Arc::new(RevocationStore::new(settings.settings));
        let metrics = self.metrics.of::<RevocationMetrics>();
        if let (HubLocation::Embedded, Some(hub)) = (&settings.source, self.hub.get()) {
            let (hub, store, metrics) = (Arc::clone(hub), Arc::clone(&store), Arc::clone(&metrics));
            self.lifecycle.spawn_until_stop(follow_embedded(hub, store, metrics, self.clock.clone()));
        }
        if let HubLocation::Service(name) = &settings.source
            && let Some(service) = services.get(name).cloned()
        {
            let feed = RevocationFeed {
                service: Arc::new(Service::new(service)),
                store: Arc::clone(&store),
                metrics: Arc::clone(&metrics),
                clock: self.clock.clone(),
                file: settings.file,
            };
            self.lifecycle.spawn_until_stop(feed.run());
        }
        self.health.await_condition("revocations", Plugin::Checks, {
            let store = Arc::clone(&store);
            move || store.position().is_some()
        });
        RevocationCheck::new(store, settings.issuers, metrics)
    }

    fn start_traces(&self, settings: TraceSettings) -> Tracer {
        let (tracer, traces) = Tracer::new(settings.percent, settings.waiting, &self.metrics);
        let exporter = TraceExporter::new(settings, self.metrics.of());
        self.lifecycle.spawn(exporter.run(traces, self.lifecycle.stopping()));
        tracer
    }

    /// Makes bundles, decision log, status and labels what the configuration says.
    pub async fn apply(&self, config: Config) {
        let Config { services, bundles, decision_log, status, labels, .. } = config;
        let services: Services =
            services.into_iter().map(|(name, settings)| (name, Arc::new(Service::new(settings)))).collect();
        let labels = self.labels(&labels);
        self.status.set_labels(labels.clone());
        let named = |name: &Option<String>| name.as_ref().and_then(|name| services.get(name).cloned());
        if decision_log.is_anywhere() {
            self.health.has_plugin(Plugin::DecisionLogs);
        }
        if let Some(decision_queue) = &self.decision_queue {
            decision_queue.set_log_enabled(decision_log.is_anywhere());
        }
        let settings = DecisionLogSettings { labels, ..decision_log };
        self.log.send_replace(Some(Arc::new(LogTarget { service: named(&settings.service), settings })));
        self.told.send_replace(status.map(|settings| {
            self.health.has_plugin(Plugin::Status);
            StatusTarget { service: named(&settings.service), settings }
        }));
        if !bundles.is_empty() {
            self.await_bundles();
        }
        let running = Arc::clone(&self.bundles);
        // Checks do not wait while what is left of the policy is built.
        let applied = tokio::task::spawn_blocking(move || running.apply(bundles, &services)).await;
        if applied.is_err() {
            tracing::error!("changing the bundles panicked");
        }
    }

    fn await_bundles(&self) {
        let bundles = Arc::clone(&self.bundles);
        self.health.await_condition(BUNDLES, Plugin::Bundle, move || bundles.are_active());
        let bundles = Arc::clone(&self.bundles);
        self.health.await_condition("bundle_freshness", Plugin::Bundle, move || bundles.stale().is_empty());
    }

    /// Polls the discovery bundle, and takes what it says.
    pub fn start_discovery(self: &Arc<Self>, settings: DiscoverySettings) {
        // Resolving the configuration has made sure that both are there.
        let Source::Service { service, resource } = &settings.bundle.source else { return };
        let Some(config) = resolve(&self.origin.document, self.origin.memory_limit).0 else { return };
        let Some(service) = config.services.get(service).cloned() else { return };
        self.health.await_condition("discovery", Plugin::Discovery, {
            let plane = Arc::downgrade(self);
            move || plane.upgrade().is_none_or(|plane| plane.has_discovered.load(Ordering::Acquire))
        });
        let poller = Poller {
            service: Arc::new(Service::new(service)),
            resource: resource.clone(),
            polling: settings.bundle.polling.clone(),
            limit: settings.bundle.size_limit,
            deltas: false,
            etag: None,
            is_long: settings.bundle.polling.long.is_some(),
        };
        let mut shown = public(&self.origin.document);
        if let Some(members) = shown.as_object_mut() {
            members.insert("labels".to_owned(), serde_json::json!(self.labels(&config.labels)));
        }
        let shown = parse_json(shown.to_string().as_bytes(), CONFIG).unwrap_or_default();
        let (discovered, documents) = mpsc::channel(1);
        let discovery = Discovery {
            reading: Arc::new(BundleReader {
                limit: settings.bundle.size_limit,
                version: self.version,
                verification: settings.bundle.verification.clone(),
            }),
            settings,
            poller,
            host_context: Arc::new(HostContext::for_discovery(shown)),
            status: Arc::clone(&self.status),
            clock: self.clock.clone(),
            discovered,
            left_out: None,
        };
        self.lifecycle.spawn_until_stop(discovery.run());
        self.lifecycle.spawn_until_stop(Arc::clone(self).take_discovered(documents));
    }

    async fn take_discovered(self: Arc<Self>, mut documents: mpsc::Receiver<Discovered>) {
        while let Some(Discovered { document, is_signed, reply }) = documents.recv().await {
            let taken = self.take(document, is_signed).await;
            if taken.is_ok() {
                self.has_discovered.store(true, Ordering::Release);
            }
            // At shutdown the receiver is gone.
            let _ = reply.send(taken);
        }
    }

    /// Activates a discovered configuration as a whole, or reports why not. Keys that cannot change while the process runs are
    /// logged and left as they are.
    async fn take(&self, discovered: Json, is_signed: bool) -> Result<Option<String>, String> {
        let merged = merge(&self.origin.document, discovered, is_signed, &self.origin.environment)?;
        let (config, problems) = resolve(&merged.document, self.origin.memory_limit);
        for warning in &problems.warnings {
            tracing::warn!("discovered configuration: {warning}");
        }
        let Some(mut config) = config else {
            let lines: Vec<_> = problems.errors.iter().map(ToString::to_string).collect();
            return Err(format!("{} error(s) in the configuration: {}", lines.len(), lines.join("; ")));
        };
        let mut left_out = merged.left_out;
        if self.has_checks.load(Ordering::Acquire) {
            for section in ["/plugins/envoy_ext_authz_grpc", "/plugins/stepgate", "/server"] {
                if fixed(&merged.document, section) != fixed(&self.in_force.lock(), section) {
                    let name = section.trim_start_matches('/').replace('/', ".");
                    left_out.push(format!("{name} (cannot change while the process runs; restart it)"));
                }
            }
        } else {
            let configured = self.activation.configure(activation_config(&config, &self.metrics));
            configured.map_err(|error| error.to_string())?;
            let tls = load_grpc_tls(&mut config).map_err(|error| format!("{error:#}"))?;
            self.start_checks(&mut config, tls).await.map_err(|error| format!("{error:#}"))?;
        }
        self.apply(config).await;
        *self.in_force.lock() = merged.document;
        let message =
            || format!("Keys in the discovered configuration that count for nothing: {}", left_out.join(", "));
        Ok((!left_out.is_empty()).then(message))
    }
}

/// A section without what can change while the process runs.
fn fixed(document: &Document, section: &str) -> Option<Json> {
    let mut found = document.value.pointer(section).cloned()?;
    if let Some(members) = found.as_object_mut() {
        members.remove("bundles");
    }
    Some(found)
}
