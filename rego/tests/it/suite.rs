//! OPA's own evaluation suite (v1.19.0) against our engine, as OPA's runner compares.
//!
//! The cases lie in the folder `shared` beside the repository, or where `STEPGATE_SHARED` says. `failing.txt` lists
//! the cases that fail, each with a sentence; it only shrinks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stepgate_rego::value::Number;
use stepgate_rego::{DataConflicts, Options};
use stepgate_rego::{EvalOptions, Host as _, Source, SystemHost, Value, Version, compile, compile_query};
use yaml_serde::Value as Yaml;

use crate::test_host::TestHost;

const FAILING: &str = include_str!("failing.txt");
/// The longest that one case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(10);

struct Case {
    name: String,
    category: String,
    version: Version,
    body: Yaml,
}

fn shared() -> PathBuf {
    std::env::var_os("STEPGATE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from)
}

fn yaml_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|end| end == "yaml") {
            found.push(path);
        }
    }
}

fn cases(root: &Path) -> Vec<Case> {
    let mut cases = Vec::new();
    for (folder, version) in [("v0", Version::V0), ("v1", Version::V1)] {
        let base = root.join(folder);
        let mut files = Vec::new();
        yaml_files(&base, &mut files);
        files.sort();
        for file in files {
            let text = std::fs::read_to_string(&file).expect("a readable case");
            let document: Yaml = yaml_serde::from_str(&text).expect("YAML");
            let category = file.strip_prefix(&base).ok().and_then(|path| path.iter().next());
            let category = category.map(|it| it.to_string_lossy().into_owned()).unwrap_or_default();
            for body in document.get("cases").and_then(Yaml::as_sequence).into_iter().flatten() {
                let note = body.get("note").and_then(Yaml::as_str).unwrap_or_default();
                let name = format!("{folder}/{note}");
                cases.push(Case { name, category: category.clone(), version, body: body.clone() });
            }
        }
    }
    cases
}

fn value(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(it) => Value::Bool(*it),
        Yaml::Number(number) => Number::parse(&number.to_string()).map_or(Value::Null, Value::Number),
        Yaml::String(text) => Value::from(text),
        Yaml::Sequence(items) => Value::array(items.iter().map(value).collect()),
        Yaml::Mapping(members) => Value::object(members.iter().map(|(key, it)| (value(key), value(it))).collect()),
        Yaml::Tagged(tagged) => value(&tagged.value),
    }
}

/// The JSON form: sets are sorted arrays, keys are texts.
fn json_form(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::array(items.iter().map(json_form).collect()),
        Value::Set(set) => Value::array(set.iter().map(json_form).collect()),
        Value::Object(object) => {
            let key = |key: &Value| if key.as_str().is_some() { key.clone() } else { Value::from(key.to_json()) };
            Value::object(object.iter().map(|(name, it)| (key(name), json_form(it))).collect())
        }
        other => other.clone(),
    }
}

/// The binding as OPA's runner compares it; `sort_bindings` sorts what is bound to an array.
fn bound(value: &Value, sort: bool) -> Value {
    match json_form(value) {
        Value::Array(items) if sort => {
            let mut items = items.to_vec();
            items.sort();
            Value::array(items)
        }
        other => other,
    }
}

/// The error of a run: OPA's code and text.
type Failure = (String, String);

fn run(case: &Case) -> Result<BTreeSet<Value>, Failure> {
    let body = &case.body;
    let compile_failure = |errors: Vec<stepgate_rego::CompileError>| {
        let codes = errors.first().map_or("", |error| error.code).to_owned();
        (codes, errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    };
    let world = TestHost { end: Some(Instant::now() + CASE_TIMEOUT), now_ns: SystemHost.now_ns() };
    let strict = body["strict_error"].as_bool().unwrap_or(false);
    let options = EvalOptions { strict_builtin_errors: strict, ..EvalOptions::default() };
    let sources: Vec<Source> = body["modules"]
        .as_sequence()
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(at, text)| Source {
            path: format!("test-{at}.rego").into(),
            text: text.as_str().unwrap_or_default().to_owned(),
            version: case.version,
        })
        .collect();
    let data = match &body["data"] {
        Yaml::Null => Value::empty_object(),
        data => value(data),
    };
    let compile_options = Options { data_conflicts: DataConflicts::Merge, ..Options::default() };
    let policy = compile(&sources, data, &compile_options).map_err(compile_failure)?;
    let input = match (&body["input_term"], &body["input"]) {
        (Yaml::String(term), _) => {
            let query = compile_query(&policy, &format!("x = {term}"), case.version, &[]).map_err(compile_failure)?;
            let rows = policy.solutions(&query, None, &options, &world).expect("a term");
            rows.first().and_then(|row| row.bindings.first()).map(|(_, it)| it.clone())
        }
        (_, Yaml::Null) if body.get("input").is_none() => None,
        (_, input) => Some(value(input)),
    };
    let text = body["query"].as_str().unwrap_or_default();
    let query = compile_query(&policy, text, case.version, &[]).map_err(compile_failure)?;
    let rows = policy
        .solutions(&query, input.as_ref(), &options, &world)
        .map_err(|error| (error.kind.code().to_owned(), error.to_string()))?;
    let sort = body["sort_bindings"].as_bool().unwrap_or(false);
    Ok(rows
        .into_iter()
        .map(|row| {
            let members = row.bindings.iter().map(|(name, it)| (Value::from(name.as_str()), bound(it, sort)));
            Value::object(members.collect())
        })
        .collect())
}

fn verdict(case: &Case) -> Result<(), String> {
    let outcome = std::panic::catch_unwind(|| run(case)).unwrap_or_else(|_| Err(("panic".into(), "panic".into())));
    let body = &case.body;
    let (code, text) = (body["want_error_code"].as_str(), body["want_error"].as_str());
    if code.is_some() || text.is_some() {
        return match outcome {
            Ok(rows) => Err(format!("an error was wanted ({}), got {rows:?}", code.or(text).unwrap_or_default())),
            Err((got, message)) => {
                let fits = code.is_none_or(|code| code == got) && text.is_none_or(|text| message.contains(text));
                if fits { Ok(()) } else { Err(format!("wanted {code:?} {text:?}, got {got}: {message}")) }
            }
        };
    }
    let rows = outcome.map_err(|(_, message)| message)?;
    let Some(want) = body["want_result"].as_sequence() else {
        return if body.get("want_result").is_none() || rows.is_empty() { Ok(()) } else { Err(format!("{rows:?}")) };
    };
    let want: BTreeSet<Value> = want.iter().map(|row| json_form(&value(row))).collect();
    if rows == want { Ok(()) } else { Err(format!("wanted {want:?}, got {rows:?}")) }
}

#[test]
fn opas_own_suite_passes() {
    let root = shared().join("opa-conformance");
    if !root.is_dir() {
        eprintln!("SKIPPED: OPA's suite is not at {}; the engine was not compared with OPA", root.display());
        assert!(std::env::var_os("STEPGATE_REQUIRE_SHARED").is_none(), "the suite is required");
        return;
    }
    let cases = cases(&root);
    let only = std::env::var("STEPGATE_REGO_CASE").ok();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let work = || {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
                        continue;
                    }
                    if let Err(reason) = verdict(case) {
                        failures.lock().expect("no panic").insert(case.name.clone(), reason);
                    }
                }
            };
            std::thread::Builder::new().stack_size(32 << 20).spawn_scoped(scope, work).expect("a thread");
        }
    });
    let failures = failures.into_inner().expect("no panic");
    let known: BTreeSet<&str> = FAILING
        .lines()
        .filter_map(|line| line.split(" # ").next())
        .map(str::trim)
        .filter(|it| !it.is_empty())
        .collect();
    let mut table: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for case in &cases {
        let row = table.entry(&case.category).or_default();
        row[usize::from(failures.contains_key(&case.name))] += 1;
    }
    if let Ok(path) = std::env::var("STEPGATE_REGO_REPORT") {
        let lines: Vec<String> = failures.iter().map(|(name, why)| format!("{name}\t{why}")).collect();
        std::fs::write(path, lines.join("\n")).expect("a report");
    }
    println!("{} cases, {} failed", cases.len(), failures.len());
    if only.is_some() {
        assert!(failures.is_empty(), "{failures:#?}");
        return;
    }
    let new: Vec<_> = failures.iter().filter(|(name, _)| !known.contains(name.as_str())).collect();
    let fixed: Vec<_> = known.iter().filter(|name| !failures.contains_key(**name)).collect();
    assert!(new.is_empty(), "{} cases fail that are not listed: {:?}", new.len(), &new[..new.len().min(10)]);
    assert!(fixed.is_empty(), "these pass now: take them off the list: {fixed:?}");
    let summary = summary(&table);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/rego-conformance.md");
    if std::env::var_os("STEPGATE_REGENERATE").is_some() {
        std::fs::write(&path, &summary).expect("the summary is written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == summary,
        "run `STEPGATE_REGENERATE=1 cargo test -p stepgate-rego suite` to renew {}",
        path.display()
    );
}

/// The passing and failing cases, as Markdown.
fn summary(table: &BTreeMap<&str, [usize; 2]>) -> String {
    let total = |of: &dyn Fn(&str) -> bool| {
        table.iter().filter(|(name, _)| of(name)).fold([0, 0], |[passed, failed], (_, [p, f])| [passed + p, failed + f])
    };
    let later = |name: &str| name.starts_with("graphql");
    let opt_in = |name: &str| name == "logic_operators";
    let mut out = String::from(
        "# OPA's own suite\n\nThe evaluation cases of OPA v1.19.0, versions 0 and 1 of the language, run by `rego/tests/it/suite.rs` as OPA's own \
         runner\ncompares. Every case that fails is listed in `rego/tests/it/failing.txt` with its reason.\n\n\
         | cases | passed | failed | |\n| --- | ---: | ---: | --- |\n",
    );
    for (name, [passed, failed], note) in [
        ("stock", total(&|name| !later(name) && !opt_in(name)), ""),
        ("`graphql.*`", total(&later), "not offered"),
        ("`and`, `or`", total(&opt_in), "opt-in in OPA too"),
    ] {
        let _ = writeln!(out, "| {name} | {passed} | {failed} | {note} |");
    }
    out.push_str("\n## Stock cases that fail, by category\n\n| category | passed | failed |\n| --- | ---: | ---: |\n");
    for (name, [passed, failed]) in
        table.iter().filter(|(name, [_, failed])| *failed > 0 && !later(name) && !opt_in(name))
    {
        let _ = writeln!(out, "| {name} | {passed} | {failed} |");
    }
    out
}
