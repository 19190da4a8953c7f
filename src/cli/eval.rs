//! `stepgate eval`: evaluates a query.
//!
//! Mirrors: OPA `cmd/eval.go` and `v1/presentation`, v1.9.0, as far as the flags below go.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value as Json, json};
use stepgate_rego::{EvalOptions, Policy, Row, Version, compile_query};

use super::check::{PolicyArgs, listed};
use crate::policy::{RegoVersion, Surroundings, World, compile_sources};
use crate::value::{DuplicateKeys, JsonLimits, Value, parse_json, parse_yaml};

/// The longest that a query may take unless `--timeout` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);
const INPUT: JsonLimits = JsonLimits { depth: 1_000, duplicates: DuplicateKeys::LastWins };

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Json,
    Pretty,
    Raw,
    Values,
    Bindings,
}

#[derive(Debug, Args)]
pub struct Eval {
    /// The query, such as `data.app.allow`
    query: Option<String>,
    /// Policies and data: files or folders
    #[arg(short, long)]
    data: Vec<String>,
    /// A file with the input document, JSON or YAML
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Read the input document from standard input
    #[arg(short = 'I', long, conflicts_with = "input")]
    stdin_input: bool,
    /// Read the query from standard input
    #[arg(long, conflicts_with = "query")]
    stdin: bool,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// The package that the query stands in, such as `app.authz`
    #[arg(long)]
    package: Option<String>,
    /// Errors of built-in functions end the evaluation
    #[arg(long)]
    strict_builtin_errors: bool,
    /// Exit with 1 when the answer is empty or undefined
    #[arg(long)]
    fail: bool,
    /// Exit with 1 when the answer is defined
    #[arg(long)]
    fail_defined: bool,
    /// The longest that the query may take, such as `500ms`
    #[arg(long)]
    timeout: Option<String>,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl Eval {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let sources = self.policy.load(&self.data)?;
        let surroundings = Surroundings::local()?;
        let policy = match compile_sources(&sources, &surroundings) {
            Ok(policy) => policy,
            Err(rejections) => {
                let errors: Vec<Json> = rejections
                    .iter()
                    .map(|it| {
                        let location = json!({"file": it.file, "row": it.line, "col": it.column});
                        json!({"message": it.message, "code": it.code, "location": location})
                    })
                    .collect();
                return Ok(self.failed(&errors, &listed(&rejections)));
            }
        };
        let query = match (&self.query, self.stdin) {
            (Some(query), _) => query.clone(),
            (None, true) => std::io::read_to_string(std::io::stdin())?,
            (None, false) => anyhow::bail!("a query is needed, such as `data.app.allow`"),
        };
        self.answer(&policy, &query, &surroundings)
    }

    fn answer(&self, policy: &Policy, query: &str, surroundings: &Surroundings) -> anyhow::Result<ExitCode> {
        let version = match self.policy.version() {
            RegoVersion::V0 => Version::V0,
            RegoVersion::V1 => Version::V1,
        };
        let package = self.package.as_deref().unwrap_or("");
        let package: Vec<Value> = package.split('.').filter(|part| !part.is_empty()).map(Value::from).collect();
        let compiled = match compile_query(policy, query, version, &package) {
            Ok(compiled) => compiled,
            Err(errors) => {
                let listed: Vec<Json> = errors
                    .iter()
                    .map(|it| {
                        let location = json!({"file": "", "row": it.at.row, "col": it.at.col});
                        json!({"message": it.message, "code": it.code, "location": location})
                    })
                    .collect();
                let text: Vec<String> = errors.iter().map(|it| format!("{}: {}", it.code, it.message)).collect();
                return Ok(self.failed(&listed, &text.join("\n")));
            }
        };
        let budget = match &self.timeout {
            None => TIMEOUT,
            Some(text) => crate::config::parse_duration(text).context("--timeout: expected a duration such as `5s`")?,
        };
        let world = World::lasting(budget, surroundings);
        let options = EvalOptions { strict_builtin_errors: self.strict_builtin_errors, ..EvalOptions::default() };
        let result = policy.query(&compiled, self.input()?.as_ref(), &options, &world);
        for line in world.into_prints() {
            eprintln!("{line}");
        }
        match result {
            Ok(rows) => {
                let rows: Vec<Row> = rows.into_iter().filter(is_solution).collect();
                println!("{}", self.written(&rows, query, &compiled.places));
                let defined = !rows.is_empty();
                let failed = (self.fail && !defined) || (self.fail_defined && defined);
                Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
            }
            Err(error) => {
                let location =
                    error.at.as_ref().map(|(file, at)| json!({"file": &**file, "row": at.row, "col": at.col}));
                let mut listed = json!({"message": error.message, "code": error.kind.code()});
                if let (Some(location), Some(members)) = (location, listed.as_object_mut()) {
                    members.insert("location".to_owned(), location);
                }
                Ok(self.failed(&[listed], &error.to_string()))
            }
        }
    }

    fn input(&self) -> anyhow::Result<Option<Value>> {
        let (bytes, name) = match (&self.input, self.stdin_input) {
            (Some(path), _) => (std::fs::read(path).with_context(|| format!("`{}`", path.display()))?, "--input"),
            (None, true) => {
                let mut bytes = Vec::new();
                std::io::stdin().read_to_end(&mut bytes)?;
                (bytes, "--stdin-input")
            }
            (None, false) => return Ok(None),
        };
        let parsed = parse_json(&bytes, INPUT).ok().or_else(|| parse_yaml(std::str::from_utf8(&bytes).ok()?, INPUT));
        parsed.map(Some).with_context(|| format!("{name}: neither JSON nor YAML"))
    }

    fn failed(&self, errors: &[Json], text: &str) -> ExitCode {
        match self.format {
            Format::Json => println!("{:#}", json!({ "errors": errors })),
            _ => eprintln!("{text}"),
        }
        ExitCode::from(2)
    }

    fn written(&self, rows: &[Row], query: &str, places: &[(u32, u32)]) -> String {
        let bindings = |row: &Row| {
            let members = row.bindings.iter().map(|(name, value)| (name.to_string(), json_of(value)));
            Json::Object(members.collect())
        };
        let pretty = |json: Json| format!("{json:#}");
        match self.format {
            Format::Json if rows.is_empty() => "{}".to_owned(),
            Format::Json => {
                let texts = statements(query, places);
                let row = |row: &Row| {
                    let expressions: Vec<Json> = row
                        .values
                        .iter()
                        .zip(&texts)
                        .map(|(value, (text, (line, column)))| {
                            json!({
                                "value": json_of(value),
                                "text": text,
                                "location": {"row": line, "col": column},
                            })
                        })
                        .collect();
                    let mut members = Map::new();
                    members.insert("expressions".to_owned(), Json::Array(expressions));
                    if !row.bindings.is_empty() {
                        members.insert("bindings".to_owned(), bindings(row));
                    }
                    Json::Object(members)
                };
                pretty(json!({ "result": rows.iter().map(row).collect::<Vec<_>>() }))
            }
            Format::Pretty if rows.is_empty() => "undefined".to_owned(),
            Format::Pretty => {
                let shown = |row: &Row| match row.values.as_slice() {
                    [value] if row.bindings.is_empty() => pretty(json_of(value)),
                    _ => pretty(bindings(row)),
                };
                rows.iter().map(shown).collect::<Vec<_>>().join("\n")
            }
            Format::Raw => {
                let raw = |value: &Value| value.as_str().map_or_else(|| value.to_json(), str::to_owned);
                let line = |row: &Row| row.values.iter().map(raw).collect::<Vec<_>>().join(" ");
                rows.iter().map(line).collect::<Vec<_>>().join("\n")
            }
            Format::Values => {
                let all = rows.iter().flat_map(|row| row.values.iter().map(json_of));
                pretty(Json::Array(all.collect()))
            }
            Format::Bindings => pretty(Json::Array(rows.iter().map(bindings).collect())),
        }
    }
}

/// A row counts when every statement but a lone one has a value that is not false.
fn is_solution(row: &Row) -> bool {
    row.values.len() == 1 || !row.values.iter().any(Value::is_false)
}

/// Numbers keep their spelling only as far as this type can.
fn json_of(value: &Value) -> Json {
    serde_json::from_str(&value.to_json()).unwrap_or(Json::Null)
}

/// The text of each statement, and where it begins.
fn statements(query: &str, places: &[(u32, u32)]) -> Vec<(String, (u32, u32))> {
    let offset = |(row, column): (u32, u32)| {
        let before: usize = query.split_inclusive('\n').take(row.saturating_sub(1) as usize).map(str::len).sum();
        let line = query.get(before..).unwrap_or("");
        let within: usize = line.chars().take(column.saturating_sub(1) as usize).map(char::len_utf8).sum();
        before.saturating_add(within)
    };
    let starts: Vec<usize> = places.iter().map(|&place| offset(place)).collect();
    let ends = starts.iter().skip(1).copied().chain([query.len()]);
    starts
        .iter()
        .zip(ends)
        .zip(places)
        .map(|((&start, end), &place)| {
            let text = query.get(start..end).unwrap_or("").trim_end_matches([';', '\n', ' ', '\t']);
            (text.to_owned(), place)
        })
        .collect()
}
