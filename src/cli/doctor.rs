//! `stepgate doctor`: what is wrong with a running server, with manifests, or with a move from OPA-Envoy.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::run;
use crate::app::validate;
use crate::clock::Clock;
use crate::doctor::{Manifests, ProbeError, Severity, Verdict, ask, examine, is_rejected, metric_findings, migrations};
use crate::serve::client_config;
use crate::telemetry::log;

/// Between two questions of `--wait`.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Doctor {
    #[command(subcommand)]
    command: Option<Command>,
    /// Say nothing and end with 0 if the server is ready, else with 1: for health checks of containers
    #[arg(long)]
    probe: bool,
    /// Ask again until the server is ready and decides by its newest policies, at most for so long
    #[arg(long, value_parser = wait, conflicts_with = "probe")]
    wait: Option<Duration>,
    /// The diagnostic listener of the server
    #[arg(long, default_value = "http://127.0.0.1:8282")]
    url: String,
    /// The roots in PEM that an `https://` listener's certificate comes from
    #[arg(long)]
    tls_ca_cert_file: Option<PathBuf>,
    /// The certificate in PEM to show there, where `--authentication=tls` asks for one
    #[arg(long, requires_all = ["tls_private_key_file", "tls_ca_cert_file"])]
    tls_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find mistakes in Kubernetes and Istio manifests, offline
    #[command(visible_alias = "lint")]
    K8s {
        /// Files, folders, or `-` for the standard input
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// Warnings are errors
        #[arg(long)]
        strict: bool,
        #[arg(short, long, value_enum, default_value = "pretty")]
        format: Format,
    },
    /// Validate the flags and configuration of `stepgate run` without serving: configuration, policies, TLS files
    Plan(Box<run::Run>),
    /// Show what changes for an OPA-Envoy deployment whose image becomes stepgate's
    Migrate {
        /// Files, folders, or `-` for the standard input
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Pretty,
    Json,
}

impl Doctor {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Some(Command::K8s { paths, strict, format }) => lint(&paths, strict, format),
            Some(Command::Plan(run)) => {
                log::init(log::Format::Text, log::Verbosity::Info);
                for line in validate(run.launch()?)? {
                    println!("ok: {line}");
                }
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Migrate { paths }) => migrate(&paths),
            None => {
                let own = self.tls_cert_file.as_deref().zip(self.tls_private_key_file.as_deref());
                let trusted = self.tls_ca_cert_file.as_deref();
                let tls = trusted.map(|trusted| client_config(trusted, own)).transpose();
                let tls = tls.map_err(|error| anyhow::anyhow!("{}", crate::telemetry::chain(&error)))?;
                let ask = |path: &str| ask(&self.url, path, tls.as_ref());
                match self.probe {
                    true => Ok(ExitCode::from(u8::from(!matches!(ask("/ready"), Ok((200, _)))))),
                    false => await_good(&self.url, ask, self.wait.unwrap_or_default()),
                }
            }
        }
    }
}

fn lint(paths: &[PathBuf], strict: bool, format: Format) -> anyhow::Result<ExitCode> {
    let manifests = Manifests::read(paths).context("nothing was examined")?;
    let findings = examine(&manifests);
    let errors = findings.iter().filter(|finding| finding.rule.severity == Severity::Error).count();
    match format {
        Format::Json => {
            let listed = findings.iter().map(|finding| {
                json!({
                    "rule": finding.rule.id, "severity": finding.rule.severity.to_string(), "object": finding.object,
                    "file": finding.origin, "what": finding.what, "why": finding.rule.why, "mend": finding.rule.remediation,
                })
            });
            println!("{}", serde_json::to_string_pretty(&listed.collect::<Vec<_>>())?);
        }
        Format::Pretty => {
            for finding in &findings {
                println!("{}[{}] {} ({})", finding.rule.severity, finding.rule.id, finding.object, finding.origin);
                println!("  {}", finding.what);
                println!("  why:  {}", finding.rule.why);
                println!("  mend: {}", finding.rule.remediation);
                println!("  see:  docs/reference/lint.md#{}\n", finding.rule.id);
            }
            if !manifests.has_meshes() {
                println!(
                    "not examined: what providers do, because no mesh configuration was given (docs/reference/lint.md)"
                );
            }
            let warnings = findings.len().saturating_sub(errors);
            println!("{} object(s) examined: {errors} error(s), {warnings} warning(s)", manifests.all().count());
        }
    }
    let is_whole = report_unread(&manifests);
    Ok(ExitCode::from(u8::from(errors > 0 || !is_whole || (strict && !findings.is_empty()))))
}

/// Says which files could not be read; whether all could.
fn report_unread(manifests: &Manifests) -> bool {
    for error in manifests.unread() {
        eprintln!("error: not examined: {}", crate::telemetry::chain(error));
    }
    manifests.unread().is_empty()
}

fn migrate(paths: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let manifests = Manifests::read(paths).context("nothing was examined")?;
    let migrations = migrations(&manifests, run::judge);
    for migration in &migrations {
        println!("{} ({})", migration.title, migration.origin);
        for (verdict, line) in &migration.lines {
            println!("  {verdict:<8}{line}");
        }
        println!();
    }
    if migrations.is_empty() {
        println!("No container that runs OPA, and no configuration of it, was found.");
        return Ok(ExitCode::FAILURE);
    }
    println!(
        "Then: `stepgate check` and `stepgate test` on your policies, and docs/install/migrate-from-opa-envoy.md."
    );
    let is_refused = migrations.iter().flat_map(|migration| &migration.lines).any(|(own, _)| *own == Verdict::Refused);
    let is_whole = report_unread(&manifests);
    Ok(ExitCode::from(u8::from(is_refused || !is_whole)))
}

/// The duration of `--wait`.
fn wait(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text).ok_or_else(|| "expected a duration such as `30s`".to_owned())
}

/// Asks a running server until all is well, or `wait` is over, and prints what was found last.
fn await_good(
    url: &str,
    ask: impl Fn(&str) -> Result<(u16, String), ProbeError>,
    wait: Duration,
) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    loop {
        let found = look(url, &ask);
        let is_good = found.as_ref().is_ok_and(|found| found.is_good);
        if !is_good && began.elapsed() < wait {
            std::thread::sleep(PAUSE.min(wait));
            continue;
        }
        let found = found?;
        found.lines.iter().for_each(|line| println!("{line}"));
        return Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
}

/// The status reports of a server.
struct Found {
    /// It is ready, and decides by its newest policies.
    is_good: bool,
    lines: Vec<String>,
}

/// Asks a running server what it waits for, and what its metrics show.
fn look(url: &str, ask: impl Fn(&str) -> Result<(u16, String), ProbeError>) -> anyhow::Result<Found> {
    let (status, body) = ask("/ready").map_err(|error| {
        let told = crate::telemetry::chain(&error);
        match error {
            ProbeError::Address(_) | ProbeError::Trust(_) => anyhow::anyhow!("{told}"),
            ProbeError::Connection(..) | ProbeError::Answer(_) => anyhow::anyhow!(
                "{told}; is this the --diagnostic-addr of a running stepgate? `doctor k8s` looks at manifests"
            ),
        }
    })?;
    let is_ready = status == 200;
    let mut lines = vec![match is_ready {
        true => format!("ready: {url} takes checks"),
        false => format!("not ready: {url} answers {status}"),
    }];
    let body: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    for name in body.get("waiting_for").and_then(serde_json::Value::as_array).into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        lines.push(format!("  waiting for {name}: {}", hint(name)));
    }
    let metrics = match ask("/metrics") {
        Ok((200, metrics)) => metrics,
        _ => {
            lines.push("  its metrics cannot be read: whether newer policies were rejected is not known".to_owned());
            String::new()
        }
    };
    let now = Clock::System.now_ns() as f64 / 1e9;
    lines.extend(metric_findings(&metrics, now).into_iter().map(|sign| format!("  {sign}")));
    Ok(Found { is_good: is_ready && !is_rejected(&metrics), lines })
}

/// The remediation of a condition of readiness.
fn hint(condition: &str) -> &'static str {
    match condition {
        "policy" => "no policy is active; `stepgate check` says what is wrong with it",
        "entrypoint" => {
            "no policy defines anything at plugins.envoy_ext_authz_grpc.path; the log names the likely rule"
        }
        "issuer_keys" => "the keys of an issuer were not fetched yet; can its URL be reached from here?",
        "bundles" => "a bundle was not loaded yet; the log says why, and /v1/status where `status` is configured",
        "bundle_freshness" => "a bundle's server has not been heard of for longer than max_staleness",
        "discovery" => "the discovery bundle was not loaded yet",
        _ => "the log says more",
    }
}
