//! YAML as Go's `yaml.v2` reads and writes it: version 1.1, where `yes` is true and `010` is eight.
//!
//! Mirrors: `sigs.k8s.io/yaml`, which turns documents into JSON.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::super::{BuiltinError, Context, Outcome, failed};
use crate::eval::EvalError;
use crate::value::{Number, Value, quoted};

/// Values of one document; aliases multiply.
const MAX_VALUES: usize = 1_000_000;
const MAX_DEPTH: usize = 200;

pub fn unmarshal(context: &mut Context<'_>, text: &str) -> Outcome {
    context.work(text.len() / 4)?;
    parse(text)
}

/// The first document of `text`.
pub fn parse(text: &str) -> Outcome {
    let mut loader = Loader { open: Vec::new(), anchors: HashMap::new(), root: None, values: 0 };
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| failed(format!("yaml: {error}")))?;
        if matches!(event, Event::DocumentEnd) {
            break;
        }
        loader.event(event)?;
    }
    Ok(loader.root.unwrap_or(Value::Null))
}

enum Open {
    Sequence(usize, Vec<Value>),
    Mapping(usize, Vec<(Value, Value)>, Option<Value>),
}

struct Loader {
    open: Vec<Open>,
    anchors: HashMap<usize, Value>,
    root: Option<Value>,
    values: usize,
}

impl Loader {
    fn event(&mut self, event: Event<'_>) -> Result<(), BuiltinError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let value = if plain { plain_scalar(&text) } else { Value::from(&*text) };
                self.put(value, anchor)
            }
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned().ok_or_else(|| failed("yaml: unknown anchor"))?;
                self.put(value, 0)
            }
            Event::SequenceStart(anchor, _) => self.begin(Open::Sequence(anchor, Vec::new())),
            Event::MappingStart(anchor, _) => self.begin(Open::Mapping(anchor, Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::Sequence(anchor, items)) => self.put(Value::array(items), anchor),
                Some(Open::Mapping(anchor, members, _)) => self.put(Value::object(members), anchor),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open) -> Result<(), BuiltinError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(failed("yaml: exceeded max depth"));
        }
        self.open.push(open);
        Ok(())
    }

    fn put(&mut self, value: Value, anchor: usize) -> Result<(), BuiltinError> {
        self.values = self.values.saturating_add(value.weight());
        if self.values > MAX_VALUES {
            return Err(EvalError::budget("a YAML document has too many values").into());
        }
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(value),
            Some(Open::Sequence(_, items)) => items.push(value),
            Some(Open::Mapping(_, members, key)) => match key.take() {
                None => *key = Some(key_text(&value)?),
                Some(name) if name.as_str() == Some("<<") => merge(members, &value),
                Some(name) => {
                    if members.iter().any(|(known, _)| *known == name) {
                        return Err(failed(format!("yaml: key {name} already set in map")));
                    }
                    members.push((name, value));
                }
            },
        }
        Ok(())
    }
}

/// Members that are not there yet.
fn merge(members: &mut Vec<(Value, Value)>, value: &Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter() {
                if !members.iter().any(|(known, _)| known == key) {
                    members.push((key.clone(), value.clone()));
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| merge(members, item)),
        _ => {}
    }
}

/// Keys become text, as JSON wants them.
fn key_text(key: &Value) -> Result<Value, BuiltinError> {
    match key {
        Value::String(_) => Ok(key.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(Value::from(key.to_string())),
        Value::Null => Ok(Value::from("null")),
        other => Err(failed(format!("yaml: unsupported map key of type {}", other.kind()))),
    }
}

fn plain_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return if text.len() == 1 { Value::from(text) } else { Value::Bool(true) };
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return if text.len() == 1 { Value::from(text) } else { Value::Bool(false) };
        }
        _ => {}
    }
    number(text).map_or_else(|| Value::from(text), Value::Number)
}

fn number(text: &str) -> Option<Number> {
    let first = text.bytes().next()?;
    if !first.is_ascii_digit() && !matches!(first, b'+' | b'-' | b'.') {
        return None;
    }
    let plain: String = text.chars().filter(|char| *char != '_').collect();
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let radix = [("0x", 16), ("0b", 2), ("0o", 8)].into_iter().find(|(prefix, _)| digits.starts_with(prefix));
    if let Some((prefix, radix)) = radix {
        let value = u64::from_str_radix(digits.strip_prefix(prefix)?, radix).ok()?;
        return Number::parse(&format!("{sign}{value}"));
    }
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| (b'0'..b'8').contains(&byte)) {
        let value = u64::from_str_radix(digits, 8).ok()?;
        return Number::parse(&format!("{sign}{value}"));
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Number::parse(&format!("{sign}{digits}"));
    }
    let float: f64 = digits.parse().ok()?;
    let valid = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    (valid && float.is_finite()).then(|| Number::from_f64(if sign == "-" { -float } else { float }))
}

// Writing

pub fn marshal(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Array(_) | Value::Object(_) | Value::Set(_) if !is_empty(value) => write(value, 0, &mut out),
        scalar => {
            out.push_str(&inline(scalar));
            out.push('\n');
        }
    }
    out
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Set(set) => set.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    }
}

fn write(value: &Value, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let items: Vec<&Value> = match value {
        Value::Array(items) => items.iter().collect(),
        Value::Set(set) => set.iter().collect(),
        Value::Object(object) => {
            for (key, member) in object.iter() {
                let key = key.as_str().map_or_else(|| Value::from(key.to_json()), Value::from);
                out.push_str(&format!("{indent}{}:", inline(&key)));
                match member {
                    Value::Object(_) if !is_empty(member) => {
                        out.push('\n');
                        write(member, depth.saturating_add(1), out);
                    }
                    Value::Array(_) | Value::Set(_) if !is_empty(member) => {
                        out.push('\n');
                        write(member, depth, out);
                    }
                    scalar => out.push_str(&format!(" {}\n", inline(scalar))),
                }
            }
            return;
        }
        _ => Vec::new(),
    };
    for item in items {
        let mut inner = String::new();
        match item {
            Value::Array(_) | Value::Object(_) | Value::Set(_) if !is_empty(item) => {
                write(item, depth.saturating_add(1), &mut inner);
                out.push_str(&format!("{indent}- {}", inner.trim_start_matches(' ')));
            }
            scalar => out.push_str(&format!("{indent}- {}\n", inline(scalar))),
        }
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => text_scalar(text),
        Value::Array(_) | Value::Set(_) => "[]".to_owned(),
        Value::Object(_) => "{}".to_owned(),
        other => other.to_json(),
    }
}

/// Quoted where it would be read as something else.
fn text_scalar(text: &str) -> String {
    let special = text.starts_with(|char: char| "-?:,[]{}#&*!|>'\"%@` ".contains(char))
        && !(text.starts_with(['-', '?', ':']) && text.len() > 1 && !text[1..].starts_with(' '));
    let ambiguous =
        !matches!(plain_scalar(text), Value::String(_)) || matches!(text, "y" | "Y" | "n" | "N" | "=" | "<<");
    if text.contains(|char: char| char.is_control()) {
        return quoted(text);
    }
    if ambiguous {
        return quoted(text);
    }
    if text.is_empty() || special || text.contains(": ") || text.contains(" #") || text.ends_with([' ', ':']) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    text.to_owned()
}
