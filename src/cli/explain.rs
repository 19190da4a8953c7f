//! `stepgate explain`: which lines of the policy decided about a request, from its event in the decision log or its input.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use stepgate_rego::data_path;
use stepgate_rego::{EvalOptions, Policy, Version, compile_query};

use super::check::{PolicyArgs, listed};
use super::tail::plain;
use crate::check::canonical_path;
use crate::clock::from_rfc3339;
use crate::feed::decision_log::redacted;
use crate::opa::input::{Options, from_protojson};
use crate::policy::{BuiltinSettings, EvalHost, HostContext, Module, RegoVersion, Strictness, Trail, compile_sources};
use crate::value::{DuplicateKeys, JsonLimits, Value, as_text, items, json_text, member, parse_json};

/// The longest that the policy may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Deeper than the deepest input that is decided about (`input_depth`), by the event around it.
const INPUT: JsonLimits = JsonLimits { depth: 1_016, duplicates: DuplicateKeys::LastWins };

#[derive(Debug, Args)]
pub struct Explain {
    /// The id of the decision, or a file as for `--log`; without it, the first one there is
    #[arg(value_name = "DECISION_ID | FILE")]
    what: Option<String>,
    /// Events of the decision log, one on each line, or one request: its input, or what Envoy sends (a `CheckRequest` in JSON); `-` is
    /// the standard input
    #[arg(short, long, default_value = "-")]
    log: PathBuf,
    /// Policies and data: files or folders
    #[arg(short, long)]
    data: Vec<String>,
    /// Bundles: archives or folders
    #[arg(short, long)]
    bundle: Vec<String>,
    /// The rule that decides, such as `data.mesh.decision`; without it, the one that the event names
    #[arg(long)]
    rule: Option<String>,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// The decision to explain.
struct Case {
    input: Value,
    /// As the event has it, such as `mesh/decision`.
    path: Option<String>,
    /// The result at the time.
    logged: Option<String>,
    /// The answer to Envoy, and why it differs from the policy's result.
    answered: Option<String>,
    reason: Option<String>,
    /// Why there was no decision.
    error: Option<String>,
    /// The answers of built-in functions at the time (`nd_builtin_cache`).
    answers: Option<Value>,
    /// When that was, in nanoseconds since the epoch.
    now_ns: Option<i64>,
    id: Option<String>,
}

impl Explain {
    pub fn execute(&self) -> anyhow::Result<ExitCode> {
        let case = self.case()?;
        let mut sources = self.policy.load(&self.data, false)?;
        let bundles = self.policy.load(&self.bundle, true)?;
        sources.modules.extend(bundles.modules);
        sources.add_data(&[], bundles.data)?;
        let host_context = HostContext::local()?;
        let how = Strictness { traced: true, ..Strictness::default() };
        let policy = compile_sources(&sources, &host_context, how)
            .map_err(|rejections| anyhow::anyhow!("{}", listed(&rejections)))?;
        let rule = match (&self.rule, &case.path) {
            (Some(rule), _) => rule.clone(),
            (None, Some(path)) => data_path(&path.trim_matches('/').split('/').map(Value::from).collect::<Vec<_>>()),
            (None, None) => bail!("--rule is needed, such as `data.mesh.decision`: this is no event of a decision log"),
        };
        let version = match self.policy.version() {
            RegoVersion::V0 => Version::V0,
            RegoVersion::V1 => Version::V1,
        };
        let query = compile_query(&policy, &rule, version, &[])
            .map_err(|_| anyhow::anyhow!("`{rule}` is no rule of these policies"))?;
        // A foreign input must not send requests from here, nor show the environment of the reader. The values that the event
        // says of the world at the time counts.
        let alone = HostContext::new(&BuiltinSettings::default());
        let world = EvalHost::lasting(TIMEOUT, &alone).following(Trail::default()).recalling(case.answers, case.now_ns);
        let result = policy.solutions(&query, Some(&case.input), &EvalOptions::default(), &world);
        let (prints, trail) = world.into_records();
        let secrets = Hidden::of(&case.input);
        let now = match result {
            Ok(rows) => {
                let value = rows.first().and_then(|row| row.values.first());
                value.map_or_else(|| "undefined".to_owned(), |value| json_text(&redacted("result", value)))
            }
            Err(error) => format!("an error: {error}"),
        };
        let mut lines: Vec<String> = case.id.iter().map(|id| format!("decision {id}")).collect();
        lines.push(format!("{rule} is {now}"));
        if let Some(answered) = case.answered {
            let why = case.reason.map_or_else(String::new, |reason| format!(", reason {reason}"));
            lines.push(format!("Envoy was answered {answered}{why}"));
        }
        if let Some(error) = case.error {
            let has_evidence = member(&case.input, "jwt").is_some();
            let input = if has_evidence { "" } else { "; the input is what Envoy sent, without what tokens prove" };
            lines.push(format!("it was not decided then: {error}{input}"));
        }
        if let Some(logged) = case.logged.filter(|logged| *logged != now) {
            let why = "these are other policies or data than those that decided, the log has masked what they read, or they asked for \
                       the time, the environment, chance or another server, whose answers are logged with `nd_builtin_cache` alone, those \
                       of other servers and of the environment only without redaction";
            lines.push(format!("it was {logged}: {why}"));
        }
        lines.extend(prints.iter().map(|line| format!("print: {line}")));
        let mut out = lines.iter().map(|line| plain(&secrets.erased_from(line)) + "\n").collect::<String>();
        out.push_str(&story(&policy, &trail, &sources.modules));
        out.push_str("\ninput, without credentials and names of persons\n");
        out.push_str(&indented(&redacted("input", &case.input)));
        // The reader has closed the pipe.
        match std::io::stdout().write_all(out.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(ExitCode::SUCCESS),
        }
    }

    fn case(&self) -> anyhow::Result<Case> {
        let is_stdin = self.log.as_os_str() == "-";
        let file = self.what.as_deref().map(Path::new).filter(|what| is_stdin && what.is_file());
        let (source, id) = match (file, is_stdin) {
            (Some(file), _) => (Some(file), None),
            (None, true) => (None, self.what.as_ref()),
            (None, false) => (Some(self.log.as_path()), self.what.as_ref()),
        };
        let text = match source {
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("`{}`", path.display()))?,
            None if std::io::stdin().is_terminal() => {
                bail!("give the decision log with --log, or a request in a file: servers do not keep what they decided")
            }
            None => std::io::read_to_string(std::io::stdin())?,
        };
        // One document over many lines, or one on each line.
        let (documents, unread) = match parse_json(text.as_bytes(), INPUT) {
            Ok(one) => (vec![one], 0),
            Err(_) => {
                let lines = text.lines().filter(|line| !line.trim().is_empty());
                let read: Vec<_> = lines.map(|line| parse_json(line.as_bytes(), INPUT)).collect();
                let unread = read.iter().filter(|line| line.is_err()).count();
                (read.into_iter().flatten().collect::<Vec<_>>(), unread)
            }
        };
        let id_of = |document: &Value| member(document, "decision_id").and_then(as_text).map(str::to_owned);
        let found = documents.iter().find(|document| match id {
            Some(id) => id_of(document).as_ref() == Some(id),
            None => true,
        });
        let Some(found) = found else {
            match id {
                Some(id) => {
                    bail!("there is no decision `{id}` in {} event(s); {unread} line(s) are no JSON", documents.len())
                }
                None => bail!("neither an event nor an input was found; {unread} line(s) are no JSON"),
            }
        };
        let custom = |name: &str| Some(as_text(member(member(found, "custom")?, name)?)?.to_owned());
        Ok(match member(found, "input").filter(|_| member(found, "decision_id").is_some()) {
            Some(input) => Case {
                input: input.clone(),
                path: member(found, "path").and_then(as_text).map(str::to_owned),
                logged: member(found, "result").map(json_text),
                answered: custom("answered"),
                reason: custom("reason"),
                error: member(found, "error")
                    .and_then(|error| member(error, "message"))
                    .and_then(as_text)
                    .map(str::to_owned),
                answers: member(found, "nd_builtin_cache").cloned(),
                now_ns: member(found, "timestamp").and_then(as_text).and_then(from_rfc3339),
                id: id_of(found),
            },
            None if custom("answered").is_some() => match custom("reason").filter(|_| member(found, "error").is_some())
            {
                Some(reason) => {
                    bail!("there was no input to decide about: {} (docs/operate/status-codes.md)", plain(&reason))
                }
                None => bail!("the event has no input: the mask of the log has taken it"),
            },
            None => Case {
                input: input_of(found)?,
                path: None,
                logged: None,
                answered: None,
                reason: None,
                error: None,
                answers: None,
                now_ns: None,
                id: None,
            },
        })
    }
}

/// Redaction of credentials and names of persons in an input.
struct Hidden(Vec<String>);

impl Hidden {
    fn of(input: &Value) -> Self {
        let (mut whole, mut left) = (Vec::new(), Vec::new());
        texts_of(input, &mut whole);
        let shown = redacted("input", input);
        texts_of(&shown, &mut left);
        let left: BTreeSet<&str> = left.into_iter().flat_map(pieces).collect();
        let mut hidden: Vec<_> =
            whole.into_iter().flat_map(pieces).filter(|piece| !left.contains(piece)).map(str::to_owned).collect();
        // The longest first: one may be part of another.
        hidden.sort_unstable_by_key(|text| std::cmp::Reverse(text.len()));
        hidden.dedup();
        Self(hidden)
    }

    fn erased_from(&self, line: &str) -> String {
        self.0.iter().fold(line.to_owned(), |line, hidden| line.replace(hidden.as_str(), "(erased)"))
    }
}

/// A text and its words, if they are long enough to identify something.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| c.is_whitespace() || "?&=;,\"".contains(c)).filter(|word| word.len() > 5);
    std::iter::once(text).filter(|text| text.len() > 3).chain(words)
}

fn texts_of<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Object(members) => members.iter().for_each(|(_, value)| texts_of(value, found)),
        Value::Array(_) | Value::Set(_) => items(value).into_iter().for_each(|item| texts_of(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The input that a document is, or that a check of the request would have, as far as its token does not matter.
fn input_of(document: &Value) -> anyhow::Result<Value> {
    let is_request = member(document, "attributes").is_some() && member(document, "parsed_path").is_none();
    if !is_request {
        return Ok(document.clone());
    }
    let options = Options {
        skip_body: false,
        depth: INPUT.depth,
        descriptors: None,
        raw_headers_count: true,
        expose_body_errors: false,
        duplicate_members: crate::value::DuplicateKeys::LastWins,
    };
    let built = from_protojson(&json_text(document), &options);
    let (built, method, path) = built.map_err(|error| anyhow::anyhow!("{}", crate::telemetry::chain(&error)))?;
    eprintln!(
        "this is a request: what a configuration adds to it is missing (input.jwt, authn, peer, client, workload, demand)"
    );
    let mut members = built.members;
    members.put_text("method", Value::from(method));
    if let Ok(path) = canonical_path(&path) {
        members.put_text("path", Value::from(&*path));
    }
    Ok(members.into_value())
}

/// In JSON over many lines.
fn indented(value: &Value) -> String {
    let plain = json_text(value);
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(&plain);
    let pretty = parsed.and_then(|parsed| serde_json::to_string_pretty(&parsed)).unwrap_or(plain);
    pretty.lines().map(|line| format!("  {}\n", super::tail::plain(line))).collect()
}

/// Every rule that was come by, with its lines: those that were reached have a mark, and of those that were not reached the
/// first is where it ended.
fn story(policy: &Policy, trail: &Trail, modules: &[Module]) -> String {
    let mut rows: BTreeMap<&str, (BTreeSet<u32>, BTreeSet<u32>)> = BTreeMap::new();
    for place in policy.places() {
        let (reached, all) = rows.entry(&place.file).or_default();
        all.insert(place.at.row);
        if trail.visits.contains_key(place) {
            reached.insert(place.at.row);
        }
    }
    let mut out = String::new();
    for module in modules {
        let Some((reached, all)) = rows.get(module.path.as_str()).filter(|(reached, _)| !reached.is_empty()) else {
            continue;
        };
        out.push_str(&format!("\n{}\n", module.path));
        for block in blocks(&module.text).into_iter().filter(|block| block.iter().any(|(row, _)| reached.contains(row)))
        {
            for (row, line) in block {
                let mark = match (reached.contains(&row), all.contains(&row)) {
                    (true, _) => '+',
                    (false, true) => '-',
                    (false, false) => ' ',
                };
                out.push_str(&format!("{mark} {row:>4}  {line}\n"));
            }
        }
    }
    out
}

/// The text in blocks that an empty line parts, with the numbers of rows.
fn blocks(text: &str) -> Vec<Vec<(u32, &str)>> {
    let mut found = vec![Vec::new()];
    for (row, line) in (1u32..).zip(text.lines()) {
        if line.trim().is_empty() {
            found.push(Vec::new());
        } else if let Some(last) = found.last_mut() {
            last.push((row, line));
        }
    }
    found
}
