//! Builds everything from a `Config`, serves, and drains.

mod control;
mod runtime;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::runtime::Runtime;
use crate::config::{Config, Document};
use crate::feed::files::{PolicyFeed, PolicyFiles};
use crate::lifecycle::Lifecycle;
use crate::serve::{
    Access, ApiSettings, Authentication, HttpAddress, Listener, ListenerKind, Readiness, Security, SocketAccess, Tls,
    TlsSettings, serve_http,
};
use crate::telemetry::{Metrics, chain};

/// Only its owner may use the admin socket.
const ADMIN_MODE: SocketAccess = SocketAccess::mode(0o600);
/// Rego's syntax trees and values nest; so does walking them.
const THREAD_STACK_BYTES: usize = 8 << 20;

/// A resolved start.
#[derive(Debug)]
pub struct Launch {
    pub config: Config,
    pub config_warnings: usize,
    /// The inputs of the configuration.
    pub origin: Origin,
    pub files: PolicyFiles,
    /// Where the API is served.
    pub api: Vec<HttpAddress>,
    /// Where only health and metrics are.
    pub diagnostic: Vec<HttpAddress>,
    pub http_socket_access: SocketAccess,
    /// TLS of the HTTP listeners.
    pub tls: Option<TlsSettings>,
    pub authentication: Authentication,
    /// The policy authorizes requests to the API.
    pub authorization: bool,
    pub policy_writes: bool,
    pub watch: bool,
    pub max_errors: usize,
    pub ready_timeout: Option<Duration>,
    pub shutdown_wait: Duration,
    pub shutdown_grace: Duration,
}

/// The inputs of the configuration, at the start and when one is discovered.
#[derive(Clone, Debug)]
pub struct Origin {
    pub document: Document,
    pub environment: BTreeMap<String, String>,
    pub memory_limit: Option<u64>,
}

/// Runs until a signal stops it.
pub fn run(launch: Launch) -> anyhow::Result<()> {
    block_on_new_runtime(serve(launch))
}

/// Runs it on a runtime of its own.
fn block_on_new_runtime<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_stack_size(THREAD_STACK_BYTES)
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

/// The findings of a start with this launch, as lines, without serving or network requests: policies are compiled and evaluated once, and the
/// files of TLS are read.
///
/// # Errors
/// The start would fail.
pub fn validate(launch: Launch) -> anyhow::Result<Vec<String>> {
    block_on_new_runtime(validate_prepared(launch))
}

async fn validate_prepared(launch: Launch) -> anyhow::Result<Vec<String>> {
    let Launch { mut config, files, .. } = launch;
    let (metrics, lifecycle) = (Arc::new(Metrics::new(None)), Lifecycle::default());
    let mut lines = vec![format!("the configuration is read, with {} warning(s)", launch.config_warnings)];
    if files.paths.is_empty() && config.bundles.is_empty() && config.discovery.is_none() {
        tracing::warn!("no policy is given: every check will be denied");
    }
    lines.extend(config.check.dry_run.warning().map(str::to_owned));
    let plane = Runtime::new(&config, launch.origin, files.version, &lifecycle, metrics);
    let has_files = !files.paths.is_empty();
    load(PolicyFeed { files, activation: Arc::clone(&plane.activation) }, launch.max_errors).await?;
    if has_files {
        lines.push("the policies of the command line compile, and were tried out".to_owned());
    }
    if !config.bundles.is_empty() {
        lines.push(format!(
            "{} bundle(s) will be downloaded: `stepgate check -b` and `inspect` look at archives",
            config.bundles.len()
        ));
    }
    let tls = |settings, of: &str| {
        Tls::new(settings)
            .map(|_| format!("{of}: certificates, key and roots fit"))
            .map_err(|error| anyhow::anyhow!("{of}: {}", chain(&error)))
    };
    let needs_tls = |address: &&HttpAddress| address.security == Security::Tls && launch.tls.is_none();
    if let Some(address) = launch.api.iter().chain(&launch.diagnostic).find(needs_tls) {
        return Err(without_certificate(address));
    }
    lines.extend(launch.tls.map(|settings| tls(settings, "--tls-cert-file")).transpose()?);
    match config.grpc.take() {
        None if config.discovery.is_none() => {
            tracing::warn!("no plugins.envoy_ext_authz_grpc in the configuration: no gRPC port will be opened");
        }
        None => {}
        Some(listener_config) => {
            lines.extend(listener_config.tls.map(|settings| tls(settings, "plugins.stepgate.grpc.tls")).transpose()?);
            lines.push(format!("ext_authz will be served at {}", listener_config.address));
        }
    }
    Ok(lines)
}

async fn serve(launch: Launch) -> anyhow::Result<()> {
    // As many connections as the system lets it have, which is what programs in Go take for themselves, too.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
    let mut stop = Signals::listen()?;
    let Launch { mut config, files, .. } = launch;
    let metrics = Arc::new(Metrics::new(config.opa_buckets.take()));
    metrics.config_warned(launch.config_warnings);

    // Policies are compiled and every socket is bound before anything serves.
    if files.paths.is_empty() && config.bundles.is_empty() && config.discovery.is_none() {
        tracing::warn!("no policy was given: every check is denied");
    }
    let lifecycle = Lifecycle::default();
    let plane = Arc::new(Runtime::new(&config, launch.origin, files.version, &lifecycle, Arc::clone(&metrics)));
    let feed = load(PolicyFeed { files, activation: Arc::clone(&plane.activation) }, launch.max_errors).await?;
    if config.grpc.is_none() && config.discovery.is_none() {
        tracing::warn!("no plugins.envoy_ext_authz_grpc in the configuration: no gRPC port is opened");
    }
    let settings = ApiSettings {
        access: Access {
            authentication: launch.authentication,
            authorization: launch.authorization.then(|| config.api.authorization.clone()),
        },
        limits: config.api.limits,
        guards_evidence: config.check.stepgate_fields,
        policy_writes: launch.policy_writes,
        default_decision: config.api.default_decision.clone(),
        dialect: config.check.compat.dialect,
        authzen_url: config.api.authzen_url.clone(),
        stopping: lifecycle.signal(),
    };
    let api = plane.api(settings);
    let tls = launch.tls.map(Tls::new).transpose().map_err(|error| anyhow::anyhow!("{}", chain(&error)))?;
    let tls = tls.map(|tls| plane.kept_fresh(tls));
    let mut listener_configs = Vec::new();
    let tls_for = |address: &HttpAddress| match (address.security, &tls) {
        (Security::Plain, _) | (Security::AsPossible, None) => Ok(None),
        (_, Some(tls)) => Ok(Some(Arc::clone(tls))),
        (Security::Tls, None) => Err(without_certificate(address)),
    };
    for address in &launch.api {
        let listener = Listener::bind(&address.address, launch.http_socket_access).await.map_err(readable)?;
        let tls = tls_for(address)?;
        let asks_clients = tls.is_some() && launch.authentication == Authentication::Tls;
        if !listener.is_local() && !launch.authorization && !asks_clients {
            let address = listener.local_address();
            tracing::warn!(
                address,
                "API disabled on a non-loopback address, only health and metrics are served: set --authorization=basic"
            );
        }
        listener_configs.push((listener, ListenerKind::Api(Arc::clone(&api)), tls));
    }
    for address in &launch.diagnostic {
        let listener = Listener::bind(&address.address, launch.http_socket_access).await.map_err(readable)?;
        listener_configs.push((listener, ListenerKind::Diagnostic, tls_for(address)?));
    }
    if let Some(address) = &config.api.admin {
        listener_configs.push((
            Listener::bind(address, ADMIN_MODE).await.map_err(readable)?,
            ListenerKind::Admin(api),
            None,
        ));
    }
    let discovery = config.discovery.take();
    if config.grpc.is_some() {
        plane.start_checks(&mut config).await?;
    }
    plane.apply(config).await;
    if let Some(settings) = discovery {
        plane.start_discovery(settings);
    }
    for (listener, kind, tls) in listener_configs {
        tracing::info!(address = listener.local_address(), tls = tls.is_some(), "serving HTTP");
        lifecycle.spawn(serve_http(listener, plane.listener_config(kind, tls), lifecycle.signal()));
    }
    if launch.watch {
        feed.watch(&lifecycle).context("--watch: the files cannot be watched")?;
    }
    let health = &plane.health;
    if let Some(timeout) = launch.ready_timeout {
        wait_ready(health, timeout, &mut stop).await?;
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

fn without_certificate(address: &HttpAddress) -> anyhow::Error {
    anyhow::anyhow!("https://{} needs --tls-cert-file and --tls-private-key-file", address.address)
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
