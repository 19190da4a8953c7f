//! `stepgate eval`: evaluates a query.
//!
//! Mirrors: OPA `cmd/eval.go` and `v1/presentation`, v1.9.0, as far as the flags below go.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use stepgate_rego::{EvalOptions, Place, Policy, Solution, Version, compile_query};

use super::check::{PolicyArgs, listed};
use super::coverage::Coverage;
use crate::clock::nanoseconds;
use crate::policy::{EvalHost, HostContext, RegoVersion, Step, Strictness, Trail, Visits, compile_sources};
use crate::value::{DuplicateKeys, JsonLimits, Value, parse_json, parse_yaml, pretty};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Explain {
    Off,
    Notes,
    Full,
}

#[derive(Debug, Args)]
pub struct Eval {
    /// The query, such as `data.app.allow`
    query: Option<String>,
    /// Policies and data: files or folders
    #[arg(short, long)]
    data: Vec<String>,
    /// Bundles: archives or folders
    #[arg(short, long)]
    bundle: Vec<String>,
    /// A file with the input document, JSON or YAML
    #[arg(short, long)]
    input: Option<PathBuf>,
    /// Read the input document from standard input
    #[arg(short = 'I', long, conflicts_with = "input")]
    stdin_input: bool,
    /// Read the query from standard input
    #[arg(long, conflicts_with = "query")]
    stdin: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// The package of the query, such as `app.authz`
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
    /// Show the notes of `trace`, or every statement that the evaluation comes by
    #[arg(long, value_enum, default_value_t = Explain::Off)]
    explain: Explain,
    /// Show how often statements ran, and how long they took
    #[arg(long)]
    profile: bool,
    /// Statements that a profile shows
    #[arg(long, default_value_t = 10)]
    profile_limit: usize,
    /// Report which rows of the policies the evaluation comes by
    #[arg(long)]
    coverage: bool,
    /// The longest that the query may take, such as `500ms`
    #[arg(long)]
    timeout: Option<String>,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl Eval {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let mut sources = self.policy.load(&self.data, false)?;
        let bundles = self.policy.load(&self.bundle, true)?;
        sources.modules.extend(bundles.modules);
        sources.add_data(&[], bundles.data)?;
        let host_context = HostContext::local()?;
        let traced = self.profile || self.coverage || self.explain == Explain::Full;
        let how = Strictness { traced, ..Strictness::default() };
        let policy = match compile_sources(&sources, &host_context, how) {
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
        self.answer(&policy, &query, &host_context)
    }

    fn answer(&self, policy: &Policy, query: &str, host_context: &HostContext) -> anyhow::Result<ExitCode> {
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
        let world = EvalHost::lasting(budget, host_context).following(Trail::default());
        let options = EvalOptions { strict_builtin_errors: self.strict_builtin_errors, ..EvalOptions::default() };
        let result = policy.solutions(&compiled, self.input()?.as_ref(), &options, &world);
        let (prints, trail) = world.into_records();
        for line in prints {
            eprintln!("{line}");
        }
        match result {
            Ok(rows) => {
                let rows: Vec<Solution> = rows.into_iter().filter(|row| compiled.is_solution(row)).collect();
                println!("{}", self.written(&rows, query, &compiled.places, &self.records(policy, &trail)));
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

    /// Optional results beside the answer, by the name of their member in OPA's JSON.
    fn records(&self, policy: &Policy, trail: &Trail) -> Vec<(&'static str, Value)> {
        let mut records = Vec::new();
        if self.coverage {
            records.push(("coverage", value_of(&Coverage::of(policy, trail).as_json())));
        }
        if self.explain != Explain::Off {
            records.push(("explanation", Value::array(explained(trail, self.explain))));
        }
        if self.profile {
            records.push(("profile", Value::array(profiled(trail, self.profile_limit))));
        }
        records
    }

    fn written(
        &self,
        rows: &[Solution],
        query: &str,
        places: &[(u32, u32)],
        records: &[(&'static str, Value)],
    ) -> String {
        match self.format {
            Format::Json => {
                let texts = statements(query, places);
                let mut members: Vec<(&str, Value)> = records.to_vec();
                if !rows.is_empty() {
                    let rows = rows.iter().map(|row| row_of(row, &texts)).collect();
                    members.push(("result", Value::array(rows)));
                }
                pretty(&members.into_iter().collect())
            }
            Format::Pretty => {
                let shown = |row: &Solution| match row.values.as_slice() {
                    [value] if row.bindings.is_empty() => pretty(value),
                    _ => pretty(&bindings(row)),
                };
                let answer = if rows.is_empty() {
                    "undefined".to_owned()
                } else {
                    rows.iter().map(shown).collect::<Vec<_>>().join("\n")
                };
                let records = records.iter().map(|(name, record)| format!("{name}: {}", pretty(record)));
                records.chain([answer]).collect::<Vec<_>>().join("\n")
            }
            Format::Raw => {
                let raw = |value: &Value| value.as_str().map_or_else(|| value.to_json(), str::to_owned);
                let line = |row: &Solution| row.values.iter().map(raw).collect::<Vec<_>>().join(" ");
                rows.iter().map(line).collect::<Vec<_>>().join("\n")
            }
            Format::Values => {
                let all = rows.iter().flat_map(|row| row.values.iter().cloned());
                pretty(&Value::array(all.collect()))
            }
            Format::Bindings => pretty(&Value::array(rows.iter().map(bindings).collect())),
        }
    }
}

fn bindings(row: &Solution) -> Value {
    let members = row.bindings.iter().map(|(name, value)| (Value::from(name.as_str()), value.clone()));
    Value::object(members.collect())
}

fn row_of(row: &Solution, texts: &[(String, (u32, u32))]) -> Value {
    let expression = |(value, (text, (row, column))): (&Value, &(String, (u32, u32)))| -> Value {
        let location: Value = [("row", Value::from(*row)), ("col", Value::from(*column))].into_iter().collect();
        [("value", value.clone()), ("text", Value::from(text.as_str())), ("location", location)].into_iter().collect()
    };
    let expressions = Value::array(row.values.iter().zip(texts).map(expression).collect());
    let shown = (!row.bindings.is_empty()).then(|| ("bindings", bindings(row)));
    [("expressions", expressions)].into_iter().chain(shown).collect()
}

fn place_of(place: &Place) -> Value {
    let (row, column) = (Value::from(place.at.row), Value::from(place.at.col));
    [("file", Value::from(&*place.file)), ("row", row), ("col", column)].into_iter().collect()
}

/// One line for each step: `file:row | eval`, `file:row | exit` where a definition had a value, and notes.
fn explained(trail: &Trail, explain: Explain) -> Vec<Value> {
    let line = |step: &Step| match step {
        Step::Note(text) => Some(format!("note {text:?}")),
        Step::At(place) if explain == Explain::Full => {
            let what = if place.is_head { "exit" } else { "eval" };
            Some(format!("{}:{}:{} | {what}", place.file, place.at.row, place.at.col))
        }
        Step::At(_) => None,
    };
    trail.steps.iter().filter_map(line).map(Value::from).collect()
}

/// The statements that took longest.
fn profiled(trail: &Trail, limit: usize) -> Vec<Value> {
    let mut visits: Vec<_> = trail.visits.iter().filter(|(place, _)| !place.is_head).collect();
    visits.sort_by_key(|(_, visits)| std::cmp::Reverse(visits.took));
    let entry = |(place, visits): (&Place, &Visits)| -> Value {
        let took = nanoseconds(visits.took);
        let members =
            [("total_time_ns", number(took)), ("num_eval", number(visits.count)), ("location", place_of(place))];
        members.into_iter().collect()
    };
    visits.into_iter().take(limit).map(entry).collect()
}

fn number(count: u64) -> Value {
    Value::Number(count.into())
}

/// JSON that the program made itself.
fn value_of(json: &Json) -> Value {
    parse_json(json.to_string().as_bytes(), INPUT).unwrap_or_default()
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
