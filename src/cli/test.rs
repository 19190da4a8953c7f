//! `stepgate test`: runs the rules whose names begin with `test_`.
//!
//! Mirrors: OPA `cmd/test.go` and `v1/tester`, v1.9.0, as far as the flags below go. `todo_test_` rules are skipped: the exit code is 2 then, unless `-z` is given. Each definition
//! of a test is a test: `test_x`, `test_x#01`; rules such as `test_x.case1` and `test_x[name]` are cases of one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use stepgate_rego::is_test_name;
use stepgate_rego::{EvalOptions, GroupKind, Location, Policy};

use super::check::{PolicyArgs, listed};
use super::coverage::Coverage;
use crate::clock::nanoseconds;
use crate::policy::{EvalHost, HostContext, Strictness, Trail, compile_sources};
use crate::value::Value;

/// The longest that one run of a measured test may take.
const BENCH_BUDGET: Duration = Duration::from_secs(5);
const RULE: &str = "--------------------------------------------------------------------------------";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Pretty,
    Json,
}

#[derive(Debug, Args)]
pub struct Test {
    /// Policies, tests and data: files or folders
    #[arg(required = true)]
    paths: Vec<String>,
    /// Take the paths for bundles: archives or folders
    #[arg(short, long)]
    bundle: bool,
    /// Only tests whose path (`data.app_test.test_x`) matches this regular expression
    #[arg(short, long)]
    run: Option<String>,
    /// List the tests that pass, too
    #[arg(short, long)]
    verbose: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
    /// The longest that one test may take
    #[arg(short, long, default_value = "5s")]
    timeout: String,
    /// Report which rows the tests came by, instead of the tests
    #[arg(short, long)]
    coverage: bool,
    /// The least coverage in percent; less is a failure
    #[arg(long, default_value_t = 0.0)]
    threshold: f64,
    /// Measure how long each test takes
    #[arg(long, conflicts_with = "coverage")]
    bench: bool,
    /// Number of runs of each test in a benchmark
    #[arg(long, default_value_t = 1_000)]
    count: u32,
    /// End with 0 although tests were skipped (`todo_test_…`)
    #[arg(short = 'z', long)]
    exit_zero_on_skipped: bool,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Pass,
    Fail,
    Skipped,
    Error(String),
}

struct Report {
    path: Vec<Value>,
    file: String,
    row: u32,
    package: String,
    name: String,
    outcome: Outcome,
    /// The cases of a test that has some, and whether each passed.
    cases: Vec<(String, bool)>,
    took: Duration,
    prints: Vec<String>,
}

impl Test {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let only = self.run.as_deref().map(globless).transpose()?;
        let budget =
            crate::config::parse_duration(&self.timeout).context("--timeout: expected a duration such as `5s`")?;
        let sources = self.policy.load(&self.paths, self.bundle)?;
        let host_context = HostContext::local()?;
        let coverage = self.coverage || self.threshold > 0.0;
        let how = Strictness { traced: coverage, separate_tests: true, ..Strictness::default() };
        let policy = match compile_sources(&sources, &host_context, how) {
            Ok(policy) => policy,
            Err(rejections) => {
                eprintln!("{}", listed(&rejections));
                return Ok(ExitCode::FAILURE);
            }
        };
        let mut trail = Trail::default();
        let chosen =
            tests(&policy).into_iter().filter(|path| only.as_ref().is_none_or(|only| only.is_match(&shown(path))));
        let mut reports: Vec<Report> =
            chosen.map(|path| report(&policy, path, budget, &host_context, &mut trail)).collect();
        reports.sort_by(|a, b| (&a.file, a.row).cmp(&(&b.file, b.row)));
        let failed = reports.iter().any(|it| matches!(it.outcome, Outcome::Fail | Outcome::Error(_)));
        if self.bench && !failed {
            self.measure(&policy, &reports, &host_context);
            return Ok(ExitCode::SUCCESS);
        }
        if coverage && !failed {
            let coverage = Coverage::of(&policy, &trail);
            if self.coverage {
                println!("{:#}", coverage.as_json());
            }
            if coverage.percent() < self.threshold {
                let (is, least) = (coverage.percent(), self.threshold);
                eprintln!("Code coverage threshold not met: got {is:.2} instead of {least:.2}");
                return Ok(ExitCode::from(2));
            }
            if self.coverage {
                return Ok(ExitCode::SUCCESS);
            }
        }
        match self.format {
            Format::Json => println!("{:#}", Json::Array(reports.iter().map(as_json).collect())),
            Format::Pretty => print!("{}", self.pretty(&reports)),
        }
        let skipped = !self.exit_zero_on_skipped && reports.iter().any(|it| it.outcome == Outcome::Skipped);
        Ok(if failed || skipped { ExitCode::from(2) } else { ExitCode::SUCCESS })
    }

    /// Runs each test that passes [`Test::count`] times, and prints as Go prints benchmarks.
    fn measure(&self, policy: &Policy, reports: &[Report], host_context: &HostContext) {
        for it in reports.iter().filter(|it| it.outcome == Outcome::Pass) {
            let started = Instant::now();
            for _ in 0..self.count {
                let world = EvalHost::lasting(BENCH_BUDGET, host_context);
                let _ = policy.eval(&it.path, None, &EvalOptions::default(), &world);
            }
            let each = started.elapsed().as_nanos() / u128::from(self.count.max(1));
            println!("{}.{}\t{}\t{each} ns/op", it.package, it.name, self.count);
        }
    }

    fn pretty(&self, reports: &[Report]) -> String {
        let mut out = String::new();
        let mut by_file: BTreeMap<&str, Vec<&Report>> = BTreeMap::new();
        for report in reports.iter().filter(|it| self.verbose || it.outcome != Outcome::Pass) {
            by_file.entry(&report.file).or_default().push(report);
        }
        for (file, reports) in &by_file {
            out.push_str(&format!("{file}:\n"));
            for report in reports {
                let word = match &report.outcome {
                    Outcome::Pass => "PASS",
                    Outcome::Fail => "FAIL",
                    Outcome::Skipped => "SKIPPED",
                    Outcome::Error(_) => "ERROR",
                };
                out.push_str(&format!("{}.{}: {word} ({:?})\n", report.package, report.name, report.took));
                for (name, passed) in report.cases.iter().filter(|(_, passed)| self.verbose || !passed) {
                    out.push_str(&format!("  {name}: {}\n", if *passed { "PASS" } else { "FAIL" }));
                }
                if let Outcome::Error(error) = &report.outcome {
                    out.push_str(&format!("  {error}\n"));
                }
                if !report.prints.is_empty() {
                    out.push_str(&format!("\n  {}\n\n", report.prints.join("\n  ")));
                }
            }
        }
        if !by_file.is_empty() {
            out.push_str(&format!("{RULE}\n"));
        }
        let all = reports.len();
        for (word, wanted) in [("PASS", 0), ("FAIL", 1), ("SKIPPED", 2), ("ERROR", 3)] {
            let count = reports
                .iter()
                .filter(|it| {
                    let kind = match it.outcome {
                        Outcome::Pass => 0,
                        Outcome::Fail => 1,
                        Outcome::Skipped => 2,
                        Outcome::Error(_) => 3,
                    };
                    kind == wanted
                })
                .count();
            if count > 0 {
                out.push_str(&format!("{word}: {count}/{all}\n"));
            }
        }
        out
    }
}

/// The regular expression of `--run`.
fn globless(pattern: &str) -> anyhow::Result<regex::Regex> {
    regex::Regex::new(pattern).context("--run: not a regular expression")
}

/// The paths of all tests: rules, and what several rules such as `test_x.case1` and `test_x[name]` make together.
fn tests(policy: &Policy) -> BTreeSet<Vec<Value>> {
    let test_of = |(path, _): (&[Value], GroupKind)| {
        let is_test = |at: &usize| path.get(*at).and_then(Value::as_str).is_some_and(is_test_name);
        let at = (policy.package_len(path)..path.len()).find(is_test)?;
        path.get(..=at).map(<[Value]>::to_vec)
    };
    policy.rule_paths().filter_map(test_of).collect()
}

/// The names of the cases of the test at `path`, each the rest of its path below the test: those that were begun, those with constant names,
/// and those that have a result.
fn cases(policy: &Policy, path: &[Value], begun: &[Value], result: Option<&Value>) -> BTreeSet<Vec<Value>> {
    let below = |whole: &[Value]| whole.strip_prefix(path).filter(|rest| !rest.is_empty()).map(<[Value]>::to_vec);
    let is_object = |kind| matches!(kind, GroupKind::Object | GroupKind::Set);
    let constant = policy.rule_paths().filter(|(_, kind)| !is_object(*kind)).filter_map(|(whole, _)| below(whole));
    let begun = begun.iter().filter_map(|whole| below(whole.as_array()?));
    let mut found: BTreeSet<Vec<Value>> = constant.chain(begun).collect();
    // A rule whose value is an object by itself has no cases.
    let is_one_value = policy.rule_paths().any(|(whole, kind)| whole == path && kind == GroupKind::Complete);
    for (name, _) in result.and_then(Value::as_object).into_iter().flat_map(|members| members.iter()) {
        if !is_one_value && !found.iter().any(|case| case.first() == Some(name)) {
            found.insert(vec![name.clone()]);
        }
    }
    found
}

/// Where the first definition of a test, or of one of its cases, stands.
fn location(policy: &Policy, path: &[Value]) -> Option<(std::sync::Arc<str>, Location)> {
    let rules = policy.rule_paths().filter(|(whole, _)| whole.starts_with(path));
    rules.filter_map(|(whole, _)| policy.rule_location(whole)).min_by_key(|(file, at)| (file.clone(), at.row))
}

fn shown(path: &[Value]) -> String {
    let names: Vec<&str> = path.iter().filter_map(Value::as_str).collect();
    format!("data.{}", names.join("."))
}

fn report(
    policy: &Policy,
    path: Vec<Value>,
    budget: Duration,
    host_context: &HostContext,
    trail: &mut Trail,
) -> Report {
    let (file, at) = location(policy, &path).map_or((String::new(), 0), |(file, at)| (file.to_string(), at.row));
    let (name, package) = path.split_last().map_or((String::new(), String::new()), |(name, package)| {
        (name.as_str().unwrap_or("").to_owned(), shown(package))
    });
    let world = EvalHost::lasting(budget, host_context).following(std::mem::take(trail));
    let started = Instant::now();
    let mut found = Vec::new();
    let outcome = if name.starts_with("todo_") {
        Outcome::Skipped
    } else {
        match policy.eval(&path, None, &EvalOptions::default(), &world) {
            Ok(Some(Value::Bool(true))) => Outcome::Pass,
            Ok(result) => {
                let passes = |case: &Vec<Value>| {
                    let value = case.iter().try_fold(result.as_ref()?, |value, name| value.get(name))?;
                    Some(*value == Value::Bool(true))
                };
                let cases = cases(policy, &path, &world.cases(), result.as_ref());
                found = cases.into_iter().map(|case| (case_name(&case), passes(&case).unwrap_or(false))).collect();
                let is_passed = !found.is_empty() && found.iter().all(|(_, passed)| *passed);
                if is_passed { Outcome::Pass } else { Outcome::Fail }
            }
            Err(error) => Outcome::Error(error.to_string()),
        }
    };
    let took = started.elapsed();
    let (prints, told) = world.into_records();
    *trail = told;
    Report { path, file, row: at, package, name, outcome, cases: found, took, prints }
}

/// A case as it is listed: texts as they are, joined by slashes.
fn case_name(case: &[Value]) -> String {
    let names = case.iter().map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned));
    names.collect::<Vec<_>>().join("/")
}

fn as_json(report: &Report) -> Json {
    let mut json = json!({
        "location": {"file": report.file, "row": report.row, "col": 1},
        "package": report.package,
        "name": report.name,
        "duration": nanoseconds(report.took),
    });
    if let Some(members) = json.as_object_mut() {
        if !report.cases.is_empty() {
            let case = |(name, passed): &(String, bool)| {
                (name.clone(), if *passed { json!({"name": name}) } else { json!({"name": name, "fail": true}) })
            };
            members.insert("sub_results".to_owned(), report.cases.iter().map(case).collect());
        }
        match &report.outcome {
            Outcome::Pass => {}
            Outcome::Fail => {
                members.insert("fail".to_owned(), Json::Bool(true));
            }
            Outcome::Skipped => {
                members.insert("skip".to_owned(), Json::Bool(true));
            }
            Outcome::Error(error) => {
                members.insert("error".to_owned(), json!({ "message": error }));
            }
        }
    }
    json
}
