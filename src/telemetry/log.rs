//! Log lines on standard error in OPA's shapes: `level`, `msg`, `time` and the event's fields at the top level.
//!
//! Mirrors: OPA `v1/logging` and `cmd/run.go` (`--log-level`, `--log-format`), v1.9.0. Everything is written through a JSON
//! encoder, so no text from a request can forge a line.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// The log format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Json,
    JsonPretty,
    Text,
}

/// The least severe lines that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    Debug,
    #[default]
    Info,
    Warn,
    Error,
}

/// Starts logging for the whole process. A second call changes nothing.
pub fn init(format: Format, verbosity: Verbosity) {
    let filter = match verbosity {
        Verbosity::Debug => LevelFilter::DEBUG,
        Verbosity::Info => LevelFilter::INFO,
        Verbosity::Warn => LevelFilter::WARN,
        Verbosity::Error => LevelFilter::ERROR,
    };
    let lines = Lines { format }.with_filter(filter);
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// Writes one event of the decision log, which is JSON, as OPA writes it to its console.
pub fn decision(event: &str) {
    console("Decision Log", "decision_logs", event);
}

/// Writes the status, a JSON object, as OPA writes it to its console.
pub fn status(status: &str) {
    console("Status Log", "status", status);
}

/// Writes a line with the members of a JSON object.
fn console(message: &str, kind: &str, object: &str) {
    let Some(members) = object.strip_prefix('{') else { return };
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    let head = format!(r#"{{"level":"info","msg":"{message}","time":"{time}","type":"openpolicyagent.org/{kind}","#);
    let _ = writeln!(std::io::stderr().lock(), "{head}{members}");
}

struct Lines {
    format: Format,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // Libraries below us log for their own developers.
        if !event.metadata().target().starts_with("stepgate") {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = self.line(*event.metadata().level(), fields);
        line.push('\n');
        // Standard error is gone, and with it the only output.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

impl Lines {
    fn line(&self, level: Level, Fields { message, mut fields }: Fields) -> String {
        let level = level.as_str().to_ascii_lowercase();
        let mut time = String::new();
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        if self.format == Format::Text {
            let mut line = format!("{time} {} {message}", level.to_ascii_uppercase());
            for (name, value) in &fields {
                let _ = write!(line, " {name}={value}");
            }
            return line.replace(['\n', '\r'], " ");
        }
        fields.insert("level".to_owned(), Value::from(level));
        fields.insert("msg".to_owned(), Value::from(message));
        fields.insert("time".to_owned(), Value::from(time));
        let object = Value::Object(fields);
        match self.format {
            Format::JsonPretty => serde_json::to_string_pretty(&object).unwrap_or_default(),
            _ => object.to_string(),
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    fields: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            // OPA's names have dashes, Rust's fields cannot.
            (name, value) => {
                self.fields.insert(name.replace('_', "-"), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, Value::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::from(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_cannot_forge_a_line() {
        let mut fields = Map::new();
        fields.insert("path".to_owned(), Value::from("/a\n{\"level\":\"error\"}"));
        for format in [Format::Json, Format::Text] {
            let fields = Fields { message: "m\r\nforged".to_owned(), fields: fields.clone() };
            let line = Lines { format }.line(Level::INFO, fields);
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }
}
