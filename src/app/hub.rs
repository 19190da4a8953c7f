//! `stepgate hub`: the ledger, its listeners, and nothing of a check.

use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::issuers::start_issuers;
use super::{ADMIN_MODE, Signals, block_on_new_runtime, load_tls, raise_file_limit, readable};
use crate::clock::Clock;
use crate::config::HubConfig;
use crate::hub::{Hub, HubMetrics, LedgerStore};
use crate::lifecycle::Lifecycle;
use crate::policy::Store;
use crate::revocation::{Line, LoadError, RevocationMetrics, RevocationStore};
use crate::serve::{HttpListenerConfig, Listener, ListenerKind, ListenerMetrics, Readiness, serve_http};
use crate::telemetry::Metrics;

/// Between two attempts to follow an embedded hub.
const PAUSE: Duration = Duration::from_millis(250);
/// Requests in flight have so long at the end.
const GRACE: Duration = Duration::from_secs(10);

/// Runs a hub until a signal stops it.
pub fn run_hub(config: HubConfig) -> anyhow::Result<()> {
    block_on_new_runtime(async {
        raise_file_limit();
        let mut stop = Signals::listen()?;
        let hub = HubApp::start(config, Clock::System).await?;
        stop.wait().await;
        if !hub.stop(GRACE).await {
            tracing::warn!("some requests were still in flight after the grace period");
        }
        tracing::info!("stopped");
        Ok(())
    })
}

/// A hub, running: for `stepgate hub`, and for tests in their own process.
#[derive(Debug)]
pub struct HubApp {
    lifecycle: Lifecycle,
    address: String,
    public_address: Option<String>,
}

impl HubApp {
    /// Opens the ledger and binds both listeners before anything serves.
    ///
    /// # Errors
    /// The ledger is in use, TLS cannot be loaded, or an address cannot be bound.
    pub async fn start(config: HubConfig, clock: Clock) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new(None));
        let lifecycle = Lifecycle::default();
        let started = start_hub(config, clock, &metrics, &lifecycle).await?;
        Ok(Self { lifecycle, address: started.address, public_address: started.public_address })
    }

    /// The address of the feed.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address that identity providers reach.
    pub fn public_address(&self) -> Option<&str> {
        self.public_address.as_deref()
    }

    /// Stops serving. False: some work did not end within `grace`.
    pub async fn stop(self, grace: Duration) -> bool {
        self.lifecycle.stop();
        self.lifecycle.drained(grace).await
    }
}

/// A hub that was started, with its addresses.
pub(super) struct Started {
    pub hub: Arc<Hub>,
    pub address: String,
    public_address: Option<String>,
}

/// Starts a hub.
pub(super) async fn start_hub(
    config: HubConfig,
    clock: Clock,
    metrics: &Arc<Metrics>,
    lifecycle: &Lifecycle,
) -> anyhow::Result<Started> {
    let _: (Arc<ListenerMetrics>, Arc<HubMetrics>) = (metrics.of(), metrics.of());
    let store = config.settings.store.clone();
    let place = match &store {
        LedgerStore::Folder(folder) => {
            // The file has the hub's key: it is the hub's alone.
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .with_context(|| format!("hub.data_dir: `{}` cannot be made", folder.display()))?;
            "hub.data_dir"
        }
        LedgerStore::Redis { .. } => "hub.redis",
    };
    let issuers = start_issuers(config.issuers, &config.services, metrics, &clock, lifecycle);
    let (settings, hub_clock, hub_metrics) = (config.settings, clock.clone(), metrics.of());
    // It waits for a disk or a server.
    let hub = tokio::task::spawn_blocking(move || Hub::open(settings, hub_clock, hub_metrics)).await?.context(place)?;
    let (streams, transmitters): (Vec<_>, Vec<_>) = config.streams.into_iter().unzip();
    let transmitters = start_issuers(transmitters, &config.services, metrics, &clock, lifecycle);
    let hub = hub.with_issuers(issuers).with_streams(streams.into_iter().zip(transmitters).collect())?;
    let hub = Arc::new(hub);
    let tls = config.tls.map(|settings| load_tls(settings, "plugins.stepgate.hub.tls")).transpose()?;
    let tls = tls.map(Arc::new);
    if let Some(tls) = &tls {
        lifecycle.spawn_until_stop(Arc::clone(tls).keep_fresh(metrics.of()));
    }
    let feed = Listener::bind(&config.address, ADMIN_MODE).await.map_err(readable)?;
    let admin = Listener::bind(&config.admin, ADMIN_MODE).await.map_err(readable)?;
    let diagnostic = match &config.diagnostic {
        Some(address) => {
            Some((Listener::bind(address, ADMIN_MODE).await.map_err(readable)?, ListenerKind::Diagnostic, None))
        }
        None => None,
    };
    let public = match config.public {
        None => None,
        Some(public) => {
            let tls = public.tls.map(|settings| load_tls(settings, "plugins.stepgate.hub.public.tls")).transpose()?;
            let tls = tls.map(Arc::new);
            if let Some(tls) = &tls {
                lifecycle.spawn_until_stop(Arc::clone(tls).keep_fresh(metrics.of()));
            }
            let listener = Listener::bind(&public.address, ADMIN_MODE).await.map_err(readable)?;
            tracing::info!(address = listener.local_address(), "identity providers reach the hub here");
            Some((listener, ListenerKind::HubPublic(Arc::clone(&hub)), tls))
        }
    };
    let public_address = public.as_ref().map(|(listener, ..)| listener.local_address());
    let (address, admin_socket) = (feed.local_address(), admin.local_address());
    hub.start(lifecycle);
    let (health, policy) = (Arc::new(Readiness::default()), Arc::new(Store::default()));
    let own =
        [(feed, ListenerKind::Feed(Arc::clone(&hub)), tls), (admin, ListenerKind::HubAdmin(Arc::clone(&hub)), None)];
    for (listener, kind, tls) in own.into_iter().chain(public).chain(diagnostic) {
        let listener_config = HttpListenerConfig {
            health: Arc::clone(&health),
            metrics: Arc::clone(metrics),
            policy: Arc::clone(&policy),
            tls,
            kind,
        };
        lifecycle.spawn(serve_http(listener, listener_config, lifecycle.signal()));
    }
    match store {
        LedgerStore::Folder(folder) => {
            tracing::info!(address, admin_socket, data_dir = %folder.display(), "the hub has started");
        }
        LedgerStore::Redis { server, .. } => {
            tracing::info!(
                address,
                admin_socket,
                namespace = server.namespace,
                "the hub has started, with its ledger in Redis"
            );
        }
    }
    Ok(Started { hub, address, public_address })
}

/// Keeps the store of this process as the hub in it: the feed without a network.
pub(super) async fn follow_embedded(
    hub: Arc<Hub>,
    store: Arc<RevocationStore>,
    metrics: Arc<RevocationMetrics>,
    clock: Clock,
) {
    loop {
        if let Err(error) = follow_once(&hub, &store, &metrics, &clock).await {
            tracing::warn!(error = format!("{error:#}"), "revocations of the embedded hub are not received");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow_once(
    hub: &Arc<Hub>,
    store: &Arc<RevocationStore>,
    metrics: &RevocationMetrics,
    clock: &Clock,
) -> anyhow::Result<()> {
    let reading = Arc::clone(hub);
    let snapshot = tokio::task::spawn_blocking(move || reading.snapshot()).await??;
    let taking = Arc::clone(store);
    let loaded = tokio::task::spawn_blocking(move || taking.load(&*snapshot)).await?;
    metrics.overflow.set(i64::from(matches!(loaded, Err(LoadError::Overflow { .. }))));
    loaded?;
    let (epoch, seq) = store.position().context("a snapshot has a header")?;
    let after = format!("{epoch}.{seq}");
    let reading = Arc::clone(hub);
    let reader = tokio::task::spawn_blocking(move || reading.reader(&after)).await??;
    let mut reader = reader.context("hub.feed_readers are connected")?;
    while let Some(line) = reader.next().await.and_then(|line| Line::parse(line.as_bytes())) {
        store.apply(&line);
        // Every second: entries are not counted with each change.
        match line {
            Line::Confirmed { .. } => {
                let now = clock.now();
                metrics.publish(store.state(now), store.age(now), store.len());
            }
            Line::Changed { .. } | Line::Noted { .. } => {
                metrics.applied.inc();
            }
            Line::Reset => {}
        }
    }
    Ok(())
}
