//! Builds everything from a `Config`, serves, and drains.

mod control;
mod hub;
mod issuers;
mod runtime;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::hub::start_hub;
pub use self::hub::{HubApp, run_hub};
use self::runtime::Runtime;
use crate::clock::Clock;
use crate::config::{Config, Document, HubLocation, RevocationConfig, resolve};
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
    pub clock: Clock,
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

impl Launch {
    /// The service with this configuration and these policies, and with everything else as `stepgate run` has it by default, but for
    /// health and metrics on a free port.
    ///
    /// # Errors
    /// Every problem of the configuration.
    pub fn new(document: Document, files: PolicyFiles, clock: Clock) -> anyhow::Result<Self> {
        let origin = Origin { document, environment: BTreeMap::new(), memory_limit: None };
        let (config, problems) = resolve(&origin.document, origin.memory_limit);
        let config = config.with_context(|| {
            let lines: Vec<_> = problems.errors.iter().map(ToString::to_string).collect();
            lines.join("\n")
        })?;
        Ok(Self {
            config,
            config_warnings: problems.warnings.len(),
            clock,
            origin,
            files,
            api: Vec::new(),
            diagnostic: vec![HttpAddress::parse("http://127.0.0.1:0")?],
            http_socket_access: ADMIN_MODE,
            tls: None,
            authentication: Authentication::Off,
            authorization: false,
            policy_writes: false,
            watch: false,
            max_errors: 10,
            ready_timeout: None,
            shutdown_wait: Duration::ZERO,
            shutdown_grace: Duration::from_secs(10),
        })
    }
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

/// The findings of a start with this launch, as lines, without serving or network requests.
///
/// # Errors
/// The start would fail.
pub fn validate(launch: Launch) -> anyhow::Result<Vec<String>> {
    block_on_new_runtime(async { Ok(prepare(launch).await?.findings()) })
}

/// A start whose parts are valid: policies are compiled and evaluated once, files of TLS are read. No socket is bound.
struct Prepared {
    launch: Launch,
    runtime: Arc<Runtime>,
    lifecycle: Lifecycle,
    feed: PolicyFeed,
    /// Of the HTTP listeners.
    tls: Option<Tls>,
    grpc_tls: Option<Tls>,
}

/// Builds everything that `run` and `doctor plan` have in common. Warnings go to the log.
async fn prepare(mut launch: Launch) -> anyhow::Result<Prepared> {
    let config = &mut launch.config;
    let metrics = Arc::new(Metrics::new(config.opa_buckets.take()));
    metrics.config_warned(launch.config_warnings);
    if launch.files.paths.is_empty() && config.bundles.is_empty() && config.discovery.is_none() {
        tracing::warn!("no policy is given: every check is denied");
    }
    if config.grpc.is_none() && config.discovery.is_none() {
        tracing::warn!("no plugins.envoy_ext_authz_grpc in the configuration: no gRPC port is opened");
    }
    let lifecycle = Lifecycle::default();
    let runtime =
        Runtime::new(config, launch.origin.clone(), launch.clock.clone(), launch.files.version, &lifecycle, metrics);
    let files = launch.files.clone();
    let feed = load(PolicyFeed { files, activation: Arc::clone(&runtime.activation) }, launch.max_errors).await?;
    let needs_tls = |address: &&HttpAddress| address.security == Security::Tls && launch.tls.is_none();
    if let Some(address) = launch.api.iter().chain(&launch.diagnostic).find(needs_tls) {
        anyhow::bail!("https://{} needs --tls-cert-file and --tls-private-key-file", address.address);
    }
    let tls = launch.tls.take().map(|settings| load_tls(settings, "--tls-cert-file")).transpose()?;
    let grpc_tls = runtime::load_grpc_tls(config)?;
    Ok(Prepared { runtime: Arc::new(runtime), launch, lifecycle, feed, tls, grpc_tls })
}

fn load_tls(settings: TlsSettings, of: &str) -> anyhow::Result<Tls> {
    Tls::new(settings).map_err(|error| anyhow::anyhow!("{of}: {}", chain(&error)))
}

impl Prepared {
    fn findings(&self) -> Vec<String> {
        let config = &self.launch.config;
        let mut lines = vec![format!("configuration read, with {} warning(s)", self.launch.config_warnings)];
        lines.extend(config.check.dry_run.warning().map(str::to_owned));
        if !self.launch.files.paths.is_empty() {
            lines.push("policies compiled; smoke evaluation passed".to_owned());
        }
        if !config.bundles.is_empty() {
            lines.push(format!(
                "{} bundle(s) will be downloaded: `stepgate check -b` and `inspect` look at archives",
                config.bundles.len()
            ));
        }
        for (tls, of) in [(&self.tls, "--tls-cert-file"), (&self.grpc_tls, "plugins.stepgate.grpc.tls")] {
            lines.extend(tls.is_some().then(|| format!("{of}: certificates, key and roots fit")));
        }
        lines.extend(config.grpc.as_ref().map(|grpc| format!("ext_authz will be served at {}", grpc.address)));
        lines
    }
}

/// As many connections as the system lets it have, which is what programs in Go take for themselves, too.
fn raise_file_limit() {
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// Serves until a signal comes, then drains.
async fn serve(launch: Launch) -> anyhow::Result<()> {
    raise_file_limit();
    let mut stop = Signals::listen()?;
    let (wait, grace, ready_timeout) = (launch.shutdown_wait, launch.shutdown_grace, launch.ready_timeout);
    let app = App::start(launch).await?;
    if let Some(timeout) = ready_timeout {
        wait_ready(&app.runtime.health, timeout, &mut stop).await?;
    }
    stop.wait().await;
    app.runtime.health.drain();
    tracing::info!("stopping: no longer ready");
    tokio::time::sleep(wait).await;
    if !app.stop(grace).await {
        tracing::warn!("some checks were still in flight after the grace period");
    }
    tracing::info!("stopped");
    Ok(())
}

/// The service, running: for `stepgate run`, and for tests in their own process.
pub struct App {
    runtime: Arc<Runtime>,
    lifecycle: Lifecycle,
    grpc: Option<String>,
    http: Vec<String>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("grpc", &self.grpc).field("http", &self.http).finish_non_exhaustive()
    }
}

impl App {
    /// Starts everything. Policies are compiled and every socket is bound before anything serves.
    ///
    /// # Errors
    /// What `doctor plan` would find, or an address that cannot be bound.
    pub async fn start(launch: Launch) -> anyhow::Result<Self> {
        let Prepared { launch, runtime, lifecycle, feed, tls, grpc_tls } = prepare(launch).await?;
        let tls = tls.map(|tls| runtime.kept_fresh(tls));
        let listeners = http_listeners(&launch, &runtime, &lifecycle, tls.as_ref()).await?;
        let mut config = launch.config;
        let limits = config.grpc.as_ref().map(|grpc| grpc.settings.clone());
        let discovery = config.discovery.take();
        let http: Vec<String> = listeners.iter().map(|(listener, ..)| listener.local_address()).collect();
        let is_embedded = |revocation: &RevocationConfig| revocation.source == HubLocation::Embedded;
        if config.revocation.as_ref().is_some_and(is_embedded)
            && let Some(hub) = config.hub.take()
        {
            let hub = start_hub(hub, launch.clock.clone(), &runtime.metrics, &lifecycle).await?.hub;
            // It is set once, here.
            let _ = runtime.hub.set(hub);
        }
        let grpc = if config.grpc.is_some() { runtime.start_checks(&mut config, grpc_tls).await? } else { None };
        runtime.apply(config).await;
        if let Some(settings) = discovery {
            runtime.start_discovery(settings);
        }
        for (listener, kind, tls) in listeners {
            tracing::info!(address = listener.local_address(), tls = tls.is_some(), "serving HTTP");
            lifecycle.spawn(serve_http(listener, runtime.listener_config(kind, tls), lifecycle.signal()));
        }
        if launch.watch {
            feed.watch(&lifecycle).context("--watch: the files cannot be watched")?;
        }
        tracing::info!(
            listeners = http.iter().chain(&grpc).map(String::as_str).collect::<Vec<_>>().join(","),
            policy_revision = runtime.policy_revision(),
            memory_limit_bytes = launch.origin.memory_limit,
            checks_in_flight = limits.as_ref().map(|limits| limits.max_checks),
            bytes_in_flight = limits.as_ref().map(|limits| limits.max_bytes_in_flight),
            connections = limits.as_ref().map(|limits| limits.max_connections),
            "started"
        );
        Ok(Self { runtime, lifecycle, grpc, http })
    }

    /// The address of the gRPC listener; none before a discovered configuration opens it.
    pub fn grpc_address(&self) -> Option<&str> {
        self.grpc.as_deref()
    }

    /// The addresses of the HTTP listeners: those of the API, then those of health and metrics, then the admin socket.
    pub fn http_addresses(&self) -> &[String] {
        &self.http
    }

    pub fn is_ready(&self) -> bool {
        self.runtime.health.is_ready()
    }

    /// Stops serving. False: some work did not end within `grace`.
    pub async fn stop(self, grace: Duration) -> bool {
        self.lifecycle.stop();
        self.lifecycle.drained(grace).await
    }
}

/// Binds the HTTP listeners: of the API, of health and metrics alone, and the admin socket.
async fn http_listeners(
    launch: &Launch,
    runtime: &Arc<Runtime>,
    lifecycle: &Lifecycle,
    tls: Option<&Arc<Tls>>,
) -> anyhow::Result<Vec<(Listener, ListenerKind, Option<Arc<Tls>>)>> {
    let config = &launch.config;
    let api = runtime.api(ApiSettings {
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
    });
    let tls_for = |address: &HttpAddress| match address.security {
        Security::Plain => None,
        Security::Tls | Security::AsPossible => tls.cloned(),
    };
    let mut listeners = Vec::new();
    for address in &launch.api {
        let listener = Listener::bind(&address.address, launch.http_socket_access).await.map_err(readable)?;
        let tls = tls_for(address);
        let asks_clients = tls.is_some() && launch.authentication == Authentication::Tls;
        if !listener.is_local() && !launch.authorization && !asks_clients {
            let address = listener.local_address();
            tracing::warn!(
                address,
                "API disabled on a non-loopback address, only health and metrics are served: set --authorization=basic"
            );
        }
        listeners.push((listener, ListenerKind::Api(Arc::clone(&api)), tls));
    }
    for address in &launch.diagnostic {
        let listener = Listener::bind(&address.address, launch.http_socket_access).await.map_err(readable)?;
        listeners.push((listener, ListenerKind::Diagnostic, tls_for(address)));
    }
    if let Some(address) = &config.api.admin {
        let listener = Listener::bind(address, ADMIN_MODE).await.map_err(readable)?;
        listeners.push((listener, ListenerKind::Admin(api), None));
    }
    Ok(listeners)
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
