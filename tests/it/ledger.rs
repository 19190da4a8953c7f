//! `tests/compat/ledger.yaml`: a row for every key of OPA's configuration and every field of its events and status. It must be
//! whole, its proofs must exist, and the tables of `docs/reference/compat.md` must be what it says (`UPDATE_DOCS=1` writes them).

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

const BEGIN: &str = "<!-- the ledger begins -->\n";
const END: &str = "<!-- the ledger ends -->\n";
/// OPA's fields: `EventV1` of `v1/plugins/logs/plugin.go`, `UpdateRequestV1` of `v1/plugins/status/plugin.go`, v1.19.0.
const EVENT: [&str; 24] = [
    "labels",
    "decision_id",
    "batch_decision_id",
    "trace_id",
    "span_id",
    "revision",
    "bundles",
    "path",
    "query",
    "input",
    "result",
    "intermediate_results",
    "mapped_result",
    "nd_builtin_cache",
    "erased",
    "masked",
    "error",
    "requested_by",
    "timestamp",
    "metrics",
    "req_id",
    "rule_labels",
    "request_context",
    "custom",
];
const STATUS: [&str; 7] = ["labels", "bundle", "bundles", "discovery", "decision_logs", "plugins", "metrics"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn ledger() -> Value {
    let text = std::fs::read_to_string(root().join("tests/compat/ledger.yaml")).expect("the ledger");
    yaml_serde::from_str(&text).expect("YAML")
}

fn rows<'a>(ledger: &'a Value, section: &str) -> Vec<&'a Value> {
    ledger[section].as_array().expect("a list").iter().collect()
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Keys of OPA in the reference of the configuration, each with what it says of itself.
fn documented() -> Vec<(String, String)> {
    let reference = stepgate::config::reference();
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.splitn(2, "` | ");
        let key = cells.next()?.to_owned();
        let about = cells.next()?.rsplit(" | ").next()?.trim_end_matches(" |").to_owned();
        (!key.starts_with("plugins.stepgate")).then_some((key, about))
    };
    reference.iter().flat_map(|(_, page)| page.lines()).filter_map(row).collect()
}

#[test]
fn every_key_and_field_has_a_row() {
    let ledger = ledger();
    let known: BTreeSet<String> = documented().into_iter().map(|(key, _)| key).collect();
    let listed: BTreeSet<String> = rows(&ledger, "config").iter().map(|row| text(row, "key").to_owned()).collect();
    assert_eq!(listed, known);
    for (section, fields) in [("event", &EVENT[..]), ("status", &STATUS)] {
        let listed: BTreeSet<&str> = rows(&ledger, section).iter().map(|row| text(row, "field")).collect();
        assert_eq!(listed, fields.iter().copied().collect(), "{section}");
    }
}

#[test]
fn rows_say_what_the_configuration_does_and_prove_it() {
    let ledger = ledger();
    let documented = documented();
    for section in ["config", "event", "status"] {
        for row in rows(&ledger, section) {
            let (is, reason, proof) = (text(row, "is"), text(row, "reason"), text(row, "proof"));
            assert!(["same", "lenient", "ignored", "differs", "missing"].contains(&is), "{row}");
            assert!(is == "same" || !reason.is_empty(), "a reason is missing: {row}");
            assert!(section != "config" || !proof.is_empty(), "a proof is missing: {row}");
            assert!(is == "missing" || !proof.is_empty(), "a proof is missing: {row}");
            if let Some((file, test)) = proof.split_once("::") {
                let source = std::fs::read_to_string(root().join(file)).unwrap_or_default();
                let named = [format!("fn {test}("), format!("def {test}(")];
                assert!(named.iter().any(|name| source.contains(name)), "there is no such test: {row}");
            }
            let about = documented.iter().find(|(key, _)| key == text(row, "key")).map_or("", |(_, about)| about);
            assert_eq!(about.starts_with("Accepted without effect"), is == "ignored", "{row}");
            assert!(!about.starts_with("Refused") || is == "missing", "{row}");
        }
    }
}

fn tables(ledger: &Value) -> String {
    let mut out = String::new();
    for (section, name, title) in [
        ("config", "key", "Keys of the configuration"),
        ("event", "field", "Fields of an event"),
        ("status", "field", "Members of the status"),
    ] {
        let rows = rows(ledger, section);
        let same = rows.iter().filter(|row| text(row, "is") == "same").count();
        out.push_str(&format!(
            "### {title}\n\n{same} of {} are as in OPA ([tests/compat/ledger.yaml](../../tests/compat/ledger.yaml) names each with its proof). The others:\n\n\
             | {name} | is | why |\n| --- | --- | --- |\n",
            rows.len()
        ));
        for row in rows.iter().filter(|row| text(row, "is") != "same") {
            out.push_str(&format!("| `{}` | {} | {} |\n", text(row, name), text(row, "is"), text(row, "reason")));
        }
        out.push('\n');
    }
    out
}

#[test]
fn the_tables_of_the_docs_are_what_it_says() {
    let path = root().join("docs/reference/compat.md");
    let page = std::fs::read_to_string(&path).expect("docs/reference/compat.md");
    let (before, rest) = page.split_once(BEGIN).expect("where the ledger begins");
    let (_, after) = rest.split_once(END).expect("where the ledger ends");
    let wanted = format!("{before}{BEGIN}{}{END}{after}", tables(&ledger()));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).expect("it is written");
        return;
    }
    assert!(page == wanted, "run `UPDATE_DOCS=1 cargo test --test it ledger`");
}
