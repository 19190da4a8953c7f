//! `stepgate run`: OPA's flags, each working, a stated no-op, or refused by name.
//!
//! Mirrors: OPA `cmd/run.go`, v1.9.0. Every flag can come from `OPA_RUN_<FLAG>`; an explicit flag wins.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, ValueEnum};
use stepgate_jose::ConfiguredKey;

use crate::app::{self, Launch, Origin};
use crate::clock::Clock;
use crate::config::{Document, resolve};
use crate::doctor::Verdict;
use crate::feed::files::{PathSpec, PolicyFiles, ignore_pattern};
use crate::opa::signature::{PublicKey, SignaturePolicy, Verification, exclusion};
use crate::policy::RegoVersion;
use crate::serve::{Authentication, HttpAddress, SocketAccess, TlsSettings};
use crate::telemetry::log::{Format, Verbosity, init};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Json,
    JsonPretty,
    Text,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AuthenticationFlag {
    Off,
    Token,
    Tls,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TlsVersion {
    #[value(name = "1.2", alias = "1.0", alias = "1.1")]
    V1_2,
    #[value(name = "1.3")]
    V1_3,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AuthorizationFlag {
    Off,
    Basic,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Policy and data: files, folders, `file://…`, `dotted.prefix:file`, or the URL of a bundle
    paths: Vec<String>,
    /// Start the server (there is no interactive shell, so this is needed)
    #[arg(short, long, env = "OPA_RUN_SERVER", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    server: bool,
    /// The configuration file
    #[arg(short, long, env = "OPA_RUN_CONFIG_FILE")]
    config_file: Option<PathBuf>,
    /// Where to serve OPA's API, health and metrics over HTTP
    #[arg(short, long, env = "OPA_RUN_ADDR", default_value = "localhost:8181", value_delimiter = ',')]
    addr: Vec<String>,
    /// Authentication of API callers: `token` passes a bearer token to the policy as `input.identity`,
    /// `tls` the subject of a client certificate
    #[arg(long, env = "OPA_RUN_AUTHENTICATION", value_enum, default_value = "off")]
    authentication: AuthenticationFlag,
    /// Authorization of API callers: `basic` evaluates the policy at `data.system.authz.allow`
    #[arg(long, env = "OPA_RUN_AUTHORIZATION", value_enum, default_value = "off")]
    authorization: AuthorizationFlag,
    /// Allow PUT and DELETE of /v1/policies
    #[arg(long, env = "OPA_RUN_ALLOW_POLICY_WRITES", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    allow_policy_writes: bool,
    /// Where to serve health and metrics for probes; over TLS where there is a certificate and `http://` is not written
    #[arg(long, env = "OPA_RUN_DIAGNOSTIC_ADDR", default_value = "http://0.0.0.0:8282", value_delimiter = ',')]
    diagnostic_addr: Vec<String>,
    /// Override configuration: `a.b=1,c={x,y}`
    #[arg(long, env = "OPA_RUN_SET")]
    set: Vec<String>,
    /// Override configuration by a file's content: `a.b=path`
    #[arg(long, env = "OPA_RUN_SET_FILE")]
    set_file: Vec<String>,
    /// Take the paths for bundles: archives or folders
    #[arg(short, long, env = "OPA_RUN_BUNDLE", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    bundle: bool,
    /// Leave out files and folders with such names, for example `.*`
    #[arg(long, env = "OPA_RUN_IGNORE", value_delimiter = ',')]
    ignore: Vec<String>,
    /// Reload policies and data when they change
    #[arg(short, long, env = "OPA_RUN_WATCH", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    watch: bool,
    #[arg(short, long, env = "OPA_RUN_LOG_LEVEL", value_enum, default_value = "info")]
    log_level: LogLevel,
    #[arg(long, env = "OPA_RUN_LOG_FORMAT", value_enum, default_value = "json")]
    log_format: LogFormat,
    /// Seconds that checks in flight have to finish on shutdown
    #[arg(long, env = "OPA_RUN_SHUTDOWN_GRACE_PERIOD", default_value_t = 10)]
    shutdown_grace_period: u64,
    /// Seconds to go on serving after the signal to stop
    #[arg(long, env = "OPA_RUN_SHUTDOWN_WAIT_PERIOD", default_value_t = 0)]
    shutdown_wait_period: u64,
    /// Seconds to wait for readiness before giving up; 0 waits for ever
    #[arg(long, env = "OPA_RUN_READY_TIMEOUT", default_value_t = 0)]
    ready_timeout: u64,
    /// Rego v0 instead of v1
    #[arg(long, env = "OPA_RUN_V0_COMPATIBLE", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    v0_compatible: bool,
    /// Rego v1; the default
    #[arg(long, env = "OPA_RUN_V1_COMPATIBLE", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    v1_compatible: bool,
    /// Permissions of HTTP socket files, octal
    #[arg(long, env = "OPA_RUN_UNIX_SOCKET_PERM", default_value = "755")]
    unix_socket_perm: String,
    /// Maximum number of policy errors to print
    #[arg(short, long, env = "OPA_RUN_MAX_ERRORS", default_value_t = 10)]
    max_errors: usize,
    #[command(flatten)]
    tls: TlsFlags,
    #[command(flatten)]
    verify: Verify,
    #[command(flatten)]
    without_effect: WithoutEffect,
    #[command(flatten)]
    refused: RefusedFlags,
}

/// TLS of the API.
#[derive(Debug, Args)]
struct TlsFlags {
    /// The certificates of the API in PEM; read again when they change
    #[arg(long, env = "OPA_RUN_TLS_CERT_FILE", requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,
    #[arg(long, env = "OPA_RUN_TLS_PRIVATE_KEY_FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
    /// The roots of client certificates
    #[arg(long, env = "OPA_RUN_TLS_CA_CERT_FILE", requires = "tls_cert_file")]
    tls_ca_cert_file: Option<PathBuf>,
    #[arg(long, env = "OPA_RUN_MIN_TLS_VERSION", value_enum, default_value = "1.2")]
    min_tls_version: TlsVersion,
}

impl TlsFlags {
    fn settings(&self, authentication: Authentication) -> anyhow::Result<Option<TlsSettings>> {
        let needs_client = authentication == Authentication::Tls;
        if needs_client && self.tls_ca_cert_file.is_none() {
            bail!("--authentication=tls needs --tls-cert-file, --tls-private-key-file and --tls-ca-cert-file");
        }
        Ok(self.tls_cert_file.clone().zip(self.tls_private_key_file.clone()).map(|(certificate, key)| TlsSettings {
            certificate,
            key,
            client_roots: self.tls_ca_cert_file.clone(),
            needs_client,
            only_1_3: matches!(self.min_tls_version, TlsVersion::V1_3),
            clients: Vec::new(),
            is_http2: false,
        }))
    }
}

/// Verification of the bundles of the command line.
#[derive(Debug, Args)]
struct Verify {
    /// Take signed bundles without looking at their signatures
    #[arg(long, env = "OPA_RUN_SKIP_VERIFY", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    skip_verify: bool,
    /// The key that bundles must be signed with: a public key in PEM, a secret, or the path of either
    #[arg(long, env = "OPA_RUN_VERIFICATION_KEY")]
    verification_key: Option<String>,
    #[arg(long, env = "OPA_RUN_VERIFICATION_KEY_ID", default_value = "default")]
    verification_key_id: String,
    #[arg(long, env = "OPA_RUN_SIGNING_ALG", default_value = "RS256")]
    signing_alg: String,
    /// The scope that signatures must have
    #[arg(long, env = "OPA_RUN_SCOPE", default_value = "")]
    scope: String,
    /// Patterns of files that need not be signed
    #[arg(long, env = "OPA_RUN_EXCLUDE_FILES_VERIFY", value_delimiter = ',')]
    exclude_files_verify: Vec<String>,
}

impl Verify {
    fn verification(&self) -> anyhow::Result<Verification> {
        if self.skip_verify {
            return Ok(Verification { demand: SignaturePolicy::Skip, ..Verification::default() });
        }
        let Some(given) = &self.verification_key else { return Ok(Verification::default()) };
        let text = std::fs::read_to_string(given).unwrap_or_else(|_| given.clone());
        let key = ConfiguredKey::new(&self.signing_alg, &text).context("--verification-key")?;
        let exclude = self.exclude_files_verify.iter().map(|pattern| {
            exclusion(pattern).with_context(|| format!("--exclude-files-verify `{pattern}` is not a pattern"))
        });
        Ok(Verification {
            keys: BTreeMap::from([(self.verification_key_id.clone(), PublicKey { key, scope: String::new() })]),
            key_id: Some(self.verification_key_id.clone()),
            scope: self.scope.clone(),
            exclude: exclude.collect::<anyhow::Result<_>>()?,
            demand: SignaturePolicy::Required,
        })
    }
}

/// Flags that are accepted because scripts pass them, and do nothing.
#[derive(Debug, Args)]
struct WithoutEffect {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_telemetry: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    skip_version_check: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    skip_known_schema_check: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    optimize_store_for_read_speed: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    h2c: Option<String>,
    #[arg(long, short = 'H', hide = true)]
    history: Option<String>,
    #[arg(long, short = 'f', hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    log_timestamp_format: Option<String>,
    #[arg(long, hide = true)]
    tls_cert_refresh_period: Option<String>,
}

/// Flags that promise something that is not offered.
#[derive(Debug, Args)]
struct RefusedFlags {
    #[arg(long, hide = true)]
    tls_cipher_suites: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pprof: Option<String>,
}

impl WithoutEffect {
    fn given(&self) -> Vec<(&'static str, &'static str)> {
        [
            ("disable-telemetry", self.disable_telemetry.is_some(), "stepgate reports nothing to anybody"),
            ("skip-version-check", self.skip_version_check.is_some(), "stepgate reports nothing to anybody"),
            ("skip-known-schema-check", self.skip_known_schema_check.is_some(), "there is no schema check"),
            (
                "optimize-store-for-read-speed",
                self.optimize_store_for_read_speed.is_some(),
                "data is always kept ready to read",
            ),
            ("h2c", self.h2c.is_some(), "the HTTP listeners speak HTTP/1.1"),
            ("history", self.history.is_some(), "there is no interactive shell"),
            ("format", self.format.is_some(), "there is no interactive shell"),
            ("log-timestamp-format", self.log_timestamp_format.is_some(), "times are always RFC 3339"),
            (
                "tls-cert-refresh-period",
                self.tls_cert_refresh_period.is_some(),
                "certificates are read again as soon as they change",
            ),
        ]
        .into_iter()
        .filter_map(|(name, given, why)| given.then_some((name, why)))
        .collect()
    }
}

impl RefusedFlags {
    /// Those that were given, and why they are refused.
    fn given(&self) -> Vec<(&'static str, &'static str)> {
        [
            ("tls-cipher-suites", self.tls_cipher_suites.is_some(), "only suites that are good are offered"),
            ("pprof", self.pprof.is_some(), "there is no profiler"),
        ]
        .into_iter()
        .filter_map(|(name, given, why)| given.then_some((name, why)))
        .collect()
    }
}

/// The variables of the environment whose names and values are text.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The arguments of `opa run` that stepgate reads differently.
pub fn judge(arguments: &[&str]) -> Vec<(Verdict, String)> {
    #[derive(Debug, Parser)]
    #[command(args_override_self = true)]
    struct Flags {
        #[command(flatten)]
        run: Run,
    }
    let mut left = arguments.to_vec();
    let mut found = Vec::new();
    loop {
        // The first stands for the program's name, as `run` does here.
        let error = match Flags::try_parse_from(&left) {
            Ok(Flags { run }) => {
                let refused = run.refused.given().into_iter();
                let refused = refused.map(|(flag, why)| (Verdict::Refused, format!("--{flag}: {why}")));
                let ignored = run.without_effect.given().into_iter();
                let ignored = ignored.map(|(flag, why)| (Verdict::Look, format!("--{flag} has no effect: {why}")));
                found.extend(refused.chain(ignored));
                return found;
            }
            Err(error) => error,
        };
        found.push((Verdict::Refused, format!("args: {}", error.to_string().lines().next().unwrap_or_default())));
        // An unknown flag hides nothing about the others.
        let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return found };
        let before = left.len();
        left.retain(|argument| argument.split_once('=').map_or(*argument, |(flag, _)| flag) != unknown);
        if error.kind() != ErrorKind::UnknownArgument || left.len() == before {
            return found;
        }
    }
}

impl Run {
    pub fn execute(self) -> anyhow::Result<()> {
        init(
            match self.log_format {
                LogFormat::Json => Format::Json,
                LogFormat::JsonPretty => Format::JsonPretty,
                LogFormat::Text => Format::Text,
            },
            match self.log_level {
                LogLevel::Debug => Verbosity::Debug,
                LogLevel::Info => Verbosity::Info,
                LogLevel::Warn => Verbosity::Warn,
                LogLevel::Error => Verbosity::Error,
            },
        );
        if !self.server {
            bail!("there is no interactive shell; add --server");
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            commit = super::COMMIT,
            config_file = self.config_file.as_deref().map(|path| path.display().to_string()),
            "starting"
        );
        app::run(self.launch()?)
    }

    /// The launch settings. Warnings go to the log.
    pub fn launch(self) -> anyhow::Result<Launch> {
        if let Some((flag, why)) = self.refused.given().first() {
            bail!("--{flag} is refused: {why}");
        }
        for (flag, why) in self.without_effect.given() {
            tracing::warn!("--{flag} has no effect: {why}");
        }
        let environment = environment();
        let mut document = Document::load(self.config_file.as_deref(), &self.set, &self.set_file, &environment)?;
        let is_url = |path: &&String| path.starts_with("http://") || path.starts_with("https://");
        for (at, url) in self.paths.iter().filter(is_url).enumerate() {
            document.add_bundle_url(&format!("cli{}", at.saturating_add(1)), url)?;
        }
        let authentication = match self.authentication {
            AuthenticationFlag::Off => Authentication::Off,
            AuthenticationFlag::Token => Authentication::Token,
            AuthenticationFlag::Tls => Authentication::Tls,
        };
        let origin = Origin { document, environment, memory_limit: super::memory_limit::memory_limit() };
        let (config, problems) = resolve(&origin.document, origin.memory_limit);
        for warning in &problems.warnings {
            tracing::warn!("configuration: {warning}");
        }
        let Some(config) = config else {
            let lines: Vec<_> = problems.errors.iter().map(ToString::to_string).collect();
            bail!("{} error(s) in the configuration:\n{}", lines.len(), lines.join("\n"));
        };
        let addresses = |texts: &[String]| -> anyhow::Result<Vec<HttpAddress>> {
            texts.iter().filter(|text| !text.is_empty()).map(|text| Ok(HttpAddress::parse(text)?)).collect()
        };
        let mode = u32::from_str_radix(&self.unix_socket_perm, 8).context("--unix-socket-perm is not octal")?;
        let ignore = self
            .ignore
            .iter()
            .map(|pattern| ignore_pattern(pattern).with_context(|| format!("--ignore `{pattern}` is not a pattern")));
        Ok(Launch {
            files: PolicyFiles {
                paths: self.paths.iter().filter(|path| !is_url(path)).map(|path| PathSpec::parse(path)).collect(),
                ignore: ignore.collect::<anyhow::Result<_>>()?,
                version: if self.v0_compatible && !self.v1_compatible { RegoVersion::V0 } else { RegoVersion::V1 },
                as_bundles: self.bundle,
                verification: self.verify.verification()?,
            },
            origin,
            api: addresses(&self.addr)?,
            diagnostic: addresses(&self.diagnostic_addr)?,
            tls: self.tls.settings(authentication)?,
            authentication,
            authorization: matches!(self.authorization, AuthorizationFlag::Basic),
            policy_writes: self.allow_policy_writes,
            http_socket_access: SocketAccess::mode(mode),
            watch: self.watch,
            max_errors: self.max_errors,
            ready_timeout: (self.ready_timeout > 0).then(|| Duration::from_secs(self.ready_timeout)),
            shutdown_wait: Duration::from_secs(self.shutdown_wait_period),
            shutdown_grace: Duration::from_secs(self.shutdown_grace_period),
            config_warnings: problems.warnings.len(),
            clock: Clock::System,
            config,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::Run;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    #[test]
    fn no_switch_swallows_the_policy_after_it() {
        for switch in [
            "--server",
            "-s",
            "--watch",
            "--v0-compatible",
            "--disable-telemetry",
            "--skip-version-check",
            "--h2c",
            "--optimize-store-for-read-speed",
            "--skip-known-schema-check",
            "--bundle",
            "-b",
            "--pprof",
            "--skip-verify",
        ] {
            let line = Line::try_parse_from(["run", switch, "policy.rego"]).expect("it parses");
            assert_eq!(line.run.paths, ["policy.rego"], "{switch}");
        }
        let line = Line::try_parse_from(["run", "--server=false", "--watch=true", "p"]).expect("it parses");
        assert!(!line.run.server && line.run.watch);
    }
}
