//! Builds everything from a `Config`, serves, and drains.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::check::Checker;
use crate::clock::Clock;
use crate::config::{Config, GrpcDoor};
use crate::feed::activation::Activation;
use crate::feed::bundles::{Bundles, Services};
use crate::feed::decision_log::DecisionLog;
use crate::feed::files::{PolicyFeed, PolicyFiles};
use crate::feed::keys::KeyFeed;
use crate::feed::status::Status;
use crate::lifecycle::Lifecycle;
use crate::policy::{Journal, Store, Surroundings};
use crate::remote::Remote;
use crate::remote::service::Service;
use crate::serve::{Address, BUNDLES, GrpcServer, Health, HttpDoor, Listener, Readiness, SocketMode, serve_http};
use crate::telemetry::Metrics;
use crate::token::{Issuer, IssuerSettings, Verifier};

/// Rego's syntax trees and values nest; so does walking them.
const THREAD_STACK_BYTES: usize = 8 << 20;

/// A resolved start.
#[derive(Debug)]
pub struct Launch {
    pub config: Config,
    pub config_warnings: usize,
    pub files: PolicyFiles,
    pub http: Vec<Address>,
    pub http_socket_mode: SocketMode,
    pub watch: bool,
    pub max_errors: usize,
    pub ready_timeout: Option<Duration>,
    pub shutdown_wait: Duration,
    pub shutdown_grace: Duration,
}

/// Runs until a signal stops it.
pub fn run(launch: Launch) -> anyhow::Result<()> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_stack_size(THREAD_STACK_BYTES)
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let outcome = runtime.block_on(serve(launch));
    runtime.shutdown_background();
    outcome
}

async fn serve(launch: Launch) -> anyhow::Result<()> {
    let mut stop = Signals::listen()?;
    let Launch { config, files, .. } = launch;
    let metrics = Arc::new(Metrics::new(config.opa_buckets));
    metrics.config_warned(launch.config_warnings);

    // Policies are compiled and every socket is bound before anything serves.
    let store = Arc::new(Store::default());
    let surroundings = Arc::new(Surroundings::new(&config.builtins));
    let activation =
        Arc::new(Activation::new(config.entrypoint, surroundings, Arc::clone(&store), Arc::clone(&metrics)));
    let version = files.version;
    if files.paths.is_empty() && config.bundles.is_empty() {
        tracing::warn!("no policy was given: every check is denied");
    }
    let feed = load(PolicyFeed { files, activation: Arc::clone(&activation) }, launch.max_errors).await?;
    let grpc = match config.grpc {
        Some(GrpcDoor { address, socket_mode, settings }) => {
            Some((Listener::bind(&address, socket_mode).await.map_err(readable)?, settings))
        }
        None => {
            tracing::warn!("no plugins.envoy_ext_authz_grpc in the configuration: no gRPC port is opened");
            None
        }
    };
    let mut http = Vec::new();
    for address in &launch.http {
        http.push(Listener::bind(address, launch.http_socket_mode).await.map_err(readable)?);
    }

    let lifecycle = Lifecycle::default();
    let health: Health = Arc::new(Readiness::default());
    health.await_condition("policy", {
        let store = Arc::clone(&store);
        move || store.current().is_some()
    });
    let clock = Clock::System;
    let services: Services =
        config.services.into_iter().map(|(name, settings)| (name, Arc::new(Service::new(settings)))).collect();
    let status = Status::default();
    let bundles =
        Bundles::new(activation, Arc::clone(&status), Arc::clone(&metrics), clock.clone(), version, &lifecycle);
    bundles.apply(config.bundles, &services);
    let bundles = Arc::new(bundles);
    health.await_condition(BUNDLES, {
        let bundles = Arc::clone(&bundles);
        move || bundles.are_active()
    });
    health.await_condition("bundle_freshness", {
        let bundles = Arc::clone(&bundles);
        move || bundles.stale().is_empty()
    });
    let tokens = match config.issuers {
        None => None,
        Some(issuers) => {
            let issuers = start_issuers(issuers, &metrics, &clock, &lifecycle);
            let verifier = Arc::new(Verifier::new(issuers, &config.tokens, clock.clone()));
            health.await_condition("issuer_keys", {
                let verifier = Arc::clone(&verifier);
                move || verifier.has_keys()
            });
            Some(verifier)
        }
    };
    let mut checker = Checker::new(config.check, store, tokens, clock, Arc::clone(&metrics));
    if let Some(settings) = config.decision_log {
        let service = settings.service.as_ref().and_then(|name| services.get(name).cloned());
        let (journal, records) = Journal::new(Arc::clone(&metrics));
        DecisionLog { settings, service, metrics: Arc::clone(&metrics) }.start(records, &lifecycle);
        checker = checker.with_journal(journal);
    }
    let checker = Arc::new(checker);

    for listener in http {
        tracing::info!(address = listener.local_address(), "serving health and metrics");
        let door = HttpDoor { health: Arc::clone(&health), metrics: Arc::clone(&metrics) };
        lifecycle.spawn(serve_http(listener, door, lifecycle.stopping()));
    }
    if let Some((listener, settings)) = grpc {
        tracing::info!(address = listener.local_address(), "serving ext_authz");
        let server = GrpcServer { settings, checker, health: Arc::clone(&health), metrics };
        let stopping = lifecycle.stopping();
        lifecycle.spawn(async move {
            if let Err(error) = server.serve(listener, stopping).await {
                tracing::error!(error = crate::telemetry::chain(&error), "the ext_authz server ended");
            }
        });
    }
    if launch.watch {
        feed.watch(&lifecycle).context("--watch: the files cannot be watched")?;
    }
    if let Some(timeout) = launch.ready_timeout {
        wait_ready(&health, timeout, &mut stop).await?;
    }
    stop.wait().await;

    health.drain();
    tracing::info!("stopping: no longer ready");
    tokio::time::sleep(launch.shutdown_wait).await;
    lifecycle.stop();
    if !lifecycle.drained(launch.shutdown_grace).await {
        tracing::warn!("some checks were still in flight after the grace period");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Compiles the policy off the runtime's workers; a first policy that is refused stops the start.
async fn load(feed: PolicyFeed, max_errors: usize) -> anyhow::Result<PolicyFeed> {
    if feed.files.paths.is_empty() {
        return Ok(feed);
    }
    let loaded = tokio::task::spawn_blocking(move || feed.activate().map(|()| feed)).await?;
    loaded.map_err(|error| {
        let text = crate::telemetry::chain(&error);
        let lines: Vec<_> = text.lines().take(max_errors.saturating_add(1)).collect();
        anyhow::anyhow!("{}", lines.join("\n"))
    })
}

fn start_issuers(
    settings: Vec<IssuerSettings>,
    metrics: &Arc<Metrics>,
    clock: &Clock,
    lifecycle: &Lifecycle,
) -> Vec<Arc<Issuer>> {
    let remote = Remote::default();
    let start = |settings| {
        let (issuer, asked) = Issuer::new(settings);
        let feed = KeyFeed {
            issuer: Arc::clone(&issuer),
            remote: remote.clone(),
            metrics: Arc::clone(metrics),
            clock: clock.clone(),
        };
        feed.start(asked, lifecycle);
        issuer
    };
    settings.into_iter().map(start).collect()
}

async fn wait_ready(health: &Readiness, timeout: Duration, stop: &mut Signals) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    while !health.is_ready() {
        if Instant::now() >= deadline {
            anyhow::bail!("not ready within --ready-timeout; waiting for {}", health.waiting_for().join(", "));
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            () = stop.wait() => anyhow::bail!("stopped before it was ready"),
        }
    }
    Ok(())
}

fn readable(error: crate::serve::BindError) -> anyhow::Error {
    anyhow::anyhow!("{}", crate::telemetry::chain(&error))
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be handled");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
