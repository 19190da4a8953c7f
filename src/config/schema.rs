//! `docs/config.schema.json`, made from the table of keys: for editors, and for the chart's `values.schema.json`.

use serde_json::{Map, Value, json};

use super::aliases;
use super::keys::{Default, Effect, Key, Kind, OWN, all};

/// The JSON Schema (2020-12) of a configuration.
pub fn schema() -> Value {
    let mut root = section("");
    if let Some(members) = root.as_object_mut() {
        members.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        members.insert("title".to_owned(), json!("stepgate configuration"));
    }
    root
}

/// The section at `path`, whose keys are the rows directly below it.
fn section(path: &str) -> Value {
    let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
    let mut properties = Map::new();
    for key in all() {
        let Some(name) = key.path.strip_prefix(&prefix).filter(|name| !name.contains(['.', '['])) else { continue };
        properties.insert(name.to_owned(), of_key(key));
    }
    for (former, present) in aliases::in_section(path) {
        let renamed = json!({"deprecated": true, "description": format!("Renamed: `{present}`.")});
        properties.insert(former.to_owned(), renamed);
    }
    let mut section = json!({"type": ["object", "null"], "properties": properties});
    // Elsewhere unknown keys are warnings, as in OPA.
    if path.starts_with(OWN)
        && let Some(members) = section.as_object_mut()
    {
        members.insert("additionalProperties".to_owned(), json!(false));
    }
    section
}

fn of_key(key: &Key) -> Value {
    let mut schema = of_kind(key);
    let description = match key.effect {
        Effect::Supported => key.about.to_owned(),
        Effect::NoOp(why) => format!("Accepted without effect: {why}."),
        Effect::Refused(why) => format!("Refused: {why}."),
    };
    let Some(members) = schema.as_object_mut() else { return schema };
    if matches!(key.effect, Effect::Refused(_)) {
        members.insert("not".to_owned(), json!({}));
    }
    if !description.is_empty() {
        members.insert("description".to_owned(), json!(description));
    }
    if let Default::Is(text) = key.default {
        let value = match key.kind {
            Kind::Bool | Kind::Integer(..) | Kind::Percentage => serde_json::from_str(text).unwrap_or(json!(text)),
            _ => json!(text),
        };
        members.insert("default".to_owned(), value);
    }
    schema
}

fn of_kind(key: &Key) -> Value {
    let item = || section(&format!("{}[]", key.path));
    match key.kind {
        Kind::String => json!({"type": "string"}),
        Kind::Bool => or_variable(json!({"type": "boolean"})),
        Kind::Integer(least, most) => or_variable(json!({"type": "integer", "minimum": least, "maximum": most})),
        Kind::Percentage => or_variable(json!({"type": "number", "minimum": 0, "maximum": 100})),
        Kind::Duration => {
            or_variable(json!({"type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$"}))
        }
        Kind::Choice(names) => or_variable(json!({"enum": names})),
        Kind::Strings => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Numbers => json!({"type": "array", "items": {"type": "number"}}),
        Kind::StringMap => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Kind::LevelMap => json!({"type": "object", "additionalProperties": {"type": ["string", "integer"]}}),
        Kind::Level => json!({"type": ["string", "integer"]}),
        Kind::Section => section(key.path),
        Kind::Sections => json!({"type": "array", "items": item()}),
        Kind::Named => {
            json!({"anyOf": [{"type": "object", "additionalProperties": item()}, {"type": "array", "items": item()}]})
        }
        Kind::SectionOrStrict => json!({"anyOf": [{"const": "strict"}, section(key.path)]}),
        Kind::Any => json!({}),
    }
}

/// The value, or the name of an environment variable that has it.
fn or_variable(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "string", "pattern": "\\$\\{"}]})
}
