//! The pages and schemas that are generated from the table of keys, and that one row of it is all that a key needs.

use serde_json::json;

use super::keys::{self, Default, Effect, Key, Kind};
use super::tests::{own, problems};
use super::*;

/// Compares a generated file with the committed one, or writes it where `STEPGATE_REGENERATE` is set.
fn is_up_to_date(file: &str, text: &str) -> bool {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("STEPGATE_REGENERATE").is_some() {
        std::fs::write(&path, text).expect("the file is written");
    }
    std::fs::read_to_string(path).is_ok_and(|committed| committed == text)
}

const REGENERATE: &str = "run `STEPGATE_REGENERATE=1 cargo test --lib generated`";

#[test]
fn generated_pages_are_up_to_date() {
    for (file, text) in reference() {
        assert!(is_up_to_date(&format!("docs/reference/config/{file}"), &text), "{file}: {REGENERATE}");
    }
}

#[test]
fn generated_schemas_are_up_to_date() {
    let schema = schema();
    assert!(is_up_to_date("docs/config.schema.json", &format!("{schema:#}\n")), "{REGENERATE}");
    // The chart's schema has it in one line.
    let path = "k8s/charts/stepgate/values.schema.json";
    let values = std::fs::read_to_string(path).expect("the chart's schema");
    let line = values.lines().find(|line| line.trim_start().starts_with("\"configuration\": "));
    let line = line.expect("a definition `configuration`");
    let values = values.replace(line, &format!("    \"configuration\": {schema}"));
    assert!(is_up_to_date(path, &values), "{REGENERATE}");
}

#[test]
fn the_examples_of_the_pages_resolve() {
    for (file, example) in crate::config::reference::examples() {
        let (value, duplicates) = crate::value::parse_yaml_configuration(example).expect(file);
        let value = crate::value::to_serde_json(&value, 100).expect(file);
        let (config, problems) = resolve(&Document::of(value), None);
        assert!(config.is_some() && duplicates.is_empty() && problems.warnings.is_empty(), "{file}: {problems:?}");
    }
}

/// One row is all that a key needs: it is in the pages, in the schema, checked, and the resolver reads its default.
#[test]
fn a_key_is_defined_in_one_place() {
    static ROW: Key = Key {
        path: "plugins.stepgate.limits.added_seconds",
        kind: Kind::Integer(1, 9),
        default: Default::Is("7"),
        about: "Added by a test.",
        effect: Effect::Supported,
    };
    keys::tests::ADDED.set(Some(&ROW));
    let pages = reference();
    let limits = &pages.iter().find(|(file, _)| *file == "limits.md").expect("a page").1;
    assert!(limits.contains("| `plugins.stepgate.limits.added_seconds` | integer, 1 to 9 | `7` | Added by a test. |"));
    let schema = schema();
    let pointer = "/properties/plugins/properties/stepgate/properties/limits/properties/added_seconds";
    assert_eq!(schema.pointer(pointer).and_then(|row| row.get("default")), Some(&json!(7)));
    let of = |limits: &serde_json::Value| {
        let section = crate::config::section::Section::of("plugins.stepgate.limits", Some(limits));
        section.count("added_seconds")
    };
    assert_eq!((of(&json!({})), of(&json!({"added_seconds": 3}))), (7, 3));
    let found = problems(own(json!({"limits": {"added_seconds": 10}})));
    assert!(found.errors.iter().any(|problem| problem.path == ROW.path), "{found:?}");
    keys::tests::ADDED.set(None);
    assert!(problems(own(json!({"limits": {"added_seconds": 3}}))).errors.len() == 1, "unknown again");
}
