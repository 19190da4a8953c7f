//! `stepgate hub` and `stepgate revoke`: the hub, and what its administrators do with it.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::app;
use crate::config::{Document, HubConfig, resolve};
use crate::doctor::{FORM, JSON, get, post};
use crate::hub::{Action, Explanation};
use crate::revocation::Kind;
use crate::serve::{HttpAddress, Security};
use crate::telemetry::log::{Format, Verbosity, init};
use crate::token::unverified_claims;

/// A hub answers after its disk; one that takes longer is not well.
const MAX_WAIT: Duration = Duration::from_secs(15);
/// Bytes of an answer.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Hub {
    #[command(subcommand)]
    command: Option<HubCommand>,
    #[command(flatten)]
    start: Start,
}

#[derive(Debug, Subcommand)]
enum HubCommand {
    /// Show the state of a running hub: entries, readers, the last change
    Status(Socket),
    /// List the last security events that named no one here: time, source, event and the hash of its `jti`
    Unmatched(Socket),
    /// Say whether an event would reject a token, and what is missing if not; needs no running hub
    Explain(Explain),
    /// Forget a directory or stream that is configured no more: enable what it has disabled, remove its users, and free its number
    Forget {
        /// `scim/<name>` or `ssf/<name>`, as it was configured
        source: String,
        /// Why; it goes to the hub's log
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        socket: Socket,
    },
    /// Copy the file of a running hub, as it is at one moment
    Backup {
        /// The new file
        file: PathBuf,
        #[command(flatten)]
        socket: Socket,
    },
    /// Read a whole file that no hub has open, such as a backup
    Check {
        /// The file
        file: PathBuf,
    },
}

/// The flags of a start.
#[derive(Debug, Args)]
struct Start {
    /// The configuration file; it has `plugins.stepgate.hub` and the issuers
    #[arg(short, long, env = "STEPGATE_HUB_CONFIG_FILE")]
    config_file: Option<PathBuf>,
    /// Override configuration: `a.b=1,c={x,y}`
    #[arg(long)]
    set: Vec<String>,
    /// Serve health and metrics, without TLS, at `http://host:port` or a socket file
    #[arg(long)]
    diagnostic_addr: Option<String>,
    /// Log lines as text instead of JSON
    #[arg(long)]
    text: bool,
}

#[derive(Debug, Args)]
struct Explain {
    #[command(flatten)]
    start: Start,
    /// A file with a token, `-` for the standard input; it is read and not verified
    #[arg(long)]
    token_file: PathBuf,
    /// A file with a SCIM user in JSON, as the directory sends it
    #[arg(long, required_unless_present = "subject")]
    scim: Option<PathBuf>,
    /// The directory, where there are several
    #[arg(long, requires = "scim")]
    provider: Option<String>,
    /// A file with the subject of a security event in JSON
    #[arg(long, conflicts_with = "scim")]
    subject: Option<PathBuf>,
    /// The stream, where there are several
    #[arg(long, requires = "subject")]
    stream: Option<String>,
}

#[derive(Debug, Args)]
struct Socket {
    /// The socket file of `plugins.stepgate.hub.admin_socket`, with or without `unix://`
    #[arg(long, env = "STEPGATE_HUB_SOCKET", default_value = "/run/stepgate/hub.sock")]
    socket: String,
}

#[derive(Debug, Args)]
pub struct Revoke {
    /// The kind of thing that the value names
    #[arg(value_parser = PossibleValuesParser::new(Kind::ALL.map(Kind::name)))]
    kind: String,
    /// The user, session, token or other; none for an issuer
    #[arg(default_value = "")]
    value: String,
    /// With `token`: a file with the token itself, `-` for the standard input; the hub verifies it
    #[arg(long, conflicts_with_all = ["value", "issuer", "name", "at", "ActionFlags"])]
    token_file: Option<PathBuf>,
    /// The `iss` of the tokens; not for keys
    #[arg(long, default_value = "")]
    issuer: String,
    /// The join of a user (`sub` by default), `jti` or `digest` of a token, `jkt` or `x5t` of a key
    #[arg(long, default_value = "")]
    name: String,
    /// Why; it goes to the hub's log
    #[arg(long)]
    reason: String,
    /// When it happened, in seconds since the epoch; now by default
    #[arg(long)]
    at: Option<u32>,
    #[command(flatten)]
    action: ActionFlags,
    #[command(flatten)]
    socket: Socket,
}

/// Without one of them: reject the tokens that were issued until now.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct ActionFlags {
    /// Reject all tokens until --enable
    #[arg(long)]
    disable: bool,
    /// Take --disable back; tokens issued until now stay rejected
    #[arg(long)]
    enable: bool,
    /// Reject tokens whose holder authenticated until now; needs `auth_time` in tokens
    #[arg(long)]
    reauthenticate: bool,
    /// Take the denial of a session, token or key back
    #[arg(long)]
    allow: bool,
}

impl ActionFlags {
    fn action(&self) -> Action {
        match self {
            Self { disable: true, .. } => Action::Disable,
            Self { enable: true, .. } => Action::Enable,
            Self { reauthenticate: true, .. } => Action::Reauthenticate,
            Self { allow: true, .. } => Action::Allow,
            _ => Action::Revoke,
        }
    }
}

impl Socket {
    fn connect(&self) -> anyhow::Result<UnixStream> {
        let place = self.socket.strip_prefix("unix://").unwrap_or(&self.socket);
        let stream = UnixStream::connect(place).with_context(|| {
            format!("no hub listens at `{place}`; give `plugins.stepgate.hub.admin_socket` as --socket, and run as its owner")
        })?;
        stream.set_read_timeout(Some(MAX_WAIT))?;
        stream.set_write_timeout(Some(MAX_WAIT))?;
        Ok(stream)
    }
}

/// The JSON of an answer with 200; else its error.
fn answer(answer: Option<(u16, impl std::io::Read)>) -> anyhow::Result<Value> {
    let Some((status, body)) = answer else { bail!("the answer is no HTTP: this is no hub") };
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(body, MAX_ANSWER_BYTES), &mut text)?;
    let document: Value = serde_json::from_str(&text).unwrap_or_default();
    match (status, document.get("error").and_then(Value::as_str)) {
        (200, _) => Ok(document),
        (_, Some(error)) => bail!("{error}"),
        _ => bail!("the hub answered {status}"),
    }
}

impl Hub {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Some(HubCommand::Status(socket)) => {
                let status = answer(get(socket.connect()?, "HTTP/1.0", "hub", "/v1/hub/status")?)?;
                println!("{status:#}");
            }
            Some(HubCommand::Unmatched(socket)) => {
                let listed = answer(get(socket.connect()?, "HTTP/1.0", "hub", "/v1/hub/unmatched")?)?;
                let listed = listed.get("unmatched").and_then(Value::as_array);
                listed.into_iter().flatten().for_each(|event| println!("{event}"));
            }
            Some(HubCommand::Forget { source, reason, socket }) => {
                let request = json!({"source": source, "reason": reason}).to_string();
                println!("{}", answer(post(socket.connect()?, "hub", "/v1/hub/forget", JSON, &request)?)?);
            }
            Some(HubCommand::Explain(explain)) => return explain.execute(),
            Some(HubCommand::Backup { file, socket }) => {
                let path = std::path::absolute(&file)?;
                let request = json!({"path": path}).to_string();
                answer(post(socket.connect()?, "hub", "/v1/hub/backup", JSON, &request)?)?;
            }
            Some(HubCommand::Check { file }) => println!("{}", crate::hub::Hub::check(&file)?),
            None => {
                init(if self.start.text { Format::Text } else { Format::Json }, Verbosity::Info);
                app::run_hub(self.start.config()?)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Start {
    fn config(&self) -> anyhow::Result<HubConfig> {
        let environment: BTreeMap<String, String> = super::run::environment();
        let document = Document::load(self.config_file.as_deref(), &self.set, &[], &environment)?;
        let (config, problems) = resolve(&document, super::memory_limit::memory_limit());
        for warning in &problems.warnings {
            tracing::warn!("configuration: {warning}");
        }
        let Some(config) = config else {
            let lines: Vec<_> = problems.errors.iter().map(ToString::to_string).collect();
            bail!("{} error(s) in the configuration:\n{}", lines.len(), lines.join("\n"));
        };
        let diagnostic = self.diagnostic_addr.as_deref().map(HttpAddress::parse).transpose()?;
        if diagnostic.as_ref().is_some_and(|address| address.security == Security::Tls) {
            bail!("--diagnostic-addr: it serves health and metrics, without TLS");
        }
        let hub = config.hub.map(|hub| HubConfig { diagnostic: diagnostic.map(|known| known.address), ..hub });
        hub.context("the configuration has no `plugins.stepgate.hub`: give a file with it as --config-file")
    }
}

/// The one of this name, or the only one.
fn only<'a, T>(all: &'a [T], name: Option<&str>, name_of: impl Fn(&T) -> &str, what: &str) -> anyhow::Result<&'a T> {
    let names = || all.iter().map(&name_of).collect::<Vec<_>>().join(", ");
    match (name, all) {
        (Some(name), _) => all
            .iter()
            .find(|one| name_of(one) == name)
            .with_context(|| format!("no {what} `{name}`; there are: {}", names())),
        (None, [one]) => Ok(one),
        (None, _) => bail!("give one {what} by name; there are: {}", names()),
    }
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    match file == Path::new("-") {
        true => Ok(std::io::read_to_string(std::io::stdin().lock())?),
        false => std::fs::read_to_string(file).with_context(|| format!("`{}`", file.display())),
    }
}

fn json_of(file: &Path) -> anyhow::Result<Value> {
    serde_json::from_str(&text_of(file)?).with_context(|| format!("`{}`", file.display()))
}

impl Explain {
    fn execute(&self) -> anyhow::Result<ExitCode> {
        let hub = self.start.config()?;
        let token = text_of(&self.token_file)?;
        let claims = unverified_claims(token.trim()).context("--token-file: it is no JWT")?;
        let explained = match (&self.scim, &self.subject) {
            (Some(user), _) => {
                let provider = only(&hub.settings.scim, self.provider.as_deref(), |one| &one.name, "hub.scim")?;
                Explanation::of_user(&hub.settings, provider, &json_of(user)?, &claims)
            }
            (_, Some(subject)) => {
                let streams: Vec<_> = hub.streams.iter().map(|(stream, _)| stream.clone()).collect();
                let stream = only(&streams, self.stream.as_deref(), |one| &one.name, "hub.streams")?;
                Explanation::of_subject(&hub.settings, stream, &json_of(subject)?, &claims)
            }
            (None, None) => bail!("give --scim or --subject"),
        };
        let explained = explained.map_err(anyhow::Error::msg)?;
        explained.lines.iter().for_each(|line| println!("{line}"));
        println!(
            "{}",
            if explained.is_match { "the token would be rejected" } else { "the token would NOT be rejected" }
        );
        Ok(ExitCode::from(u8::from(!explained.is_match)))
    }
}

impl Revoke {
    pub fn execute(&self) -> anyhow::Result<ExitCode> {
        if let Some(file) = &self.token_file {
            return self.revoke_token(file);
        }
        let mut request = json!({"kind": self.kind, "issuer": self.issuer, "name": self.name, "value": self.value,
                                 "action": self.action.action().name(), "reason": self.reason});
        if let (Some(at), Some(members)) = (self.at, request.as_object_mut()) {
            members.insert("at".to_owned(), at.into());
        }
        let done = answer(post(self.socket.connect()?, "hub", "/v1/revocations", JSON, &request.to_string())?)?;
        println!("{done}");
        Ok(ExitCode::SUCCESS)
    }

    /// A token that is at hand.
    fn revoke_token(&self, file: &Path) -> anyhow::Result<ExitCode> {
        if self.kind != Kind::Token.name() {
            bail!("--token-file is for `stepgate revoke token`");
        }
        let text = text_of(file)?;
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("token", text.trim())
            .append_pair("reason", &self.reason)
            .finish();
        let done = answer(post(self.socket.connect()?, "hub", "/v1/revoke", FORM, &form)?)?;
        match done.get("seq").is_some_and(Value::is_u64) {
            true => println!("{done}"),
            false => println!("the token has expired, or is of no issuer that the hub knows: no sidecar accepts it"),
        }
        Ok(ExitCode::SUCCESS)
    }
}
