//! `stepgate tail`: decisions of a running server as they are made.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::doctor::get;

/// Bytes of one event.
const MAX_EVENT_BYTES: u64 = 16 << 20;

#[derive(Debug, Args)]
pub struct Tail {
    /// The socket file of `plugins.stepgate.admin_socket`, with or without `unix://`
    #[arg(long, default_value = "/run/stepgate/admin.sock")]
    socket: String,
    /// Only what was not allowed
    #[arg(long)]
    denied: bool,
    /// Only paths that begin so
    #[arg(long)]
    path: Option<String>,
    /// Only this method
    #[arg(long)]
    method: Option<String>,
    /// Only what was decided for this reason, such as `overloaded` (docs/operate/status-codes.md)
    #[arg(long)]
    reason: Option<String>,
    /// Only what contains this text, anywhere in the event
    #[arg(long)]
    contains: Option<String>,
    /// End after so many
    #[arg(short = 'n', long)]
    count: Option<u64>,
    #[arg(short, long, value_enum, default_value = "pretty")]
    format: Format,
    /// Colours: by itself only on a terminal
    #[arg(long, value_enum, default_value = "auto")]
    color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Pretty,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

impl Tail {
    pub fn execute(&self) -> anyhow::Result<ExitCode> {
        let place = self.socket.strip_prefix("unix://").unwrap_or(&self.socket);
        let stream = UnixStream::connect(place).with_context(|| {
            format!(
                "no server listens at `{place}`; set `plugins.stepgate.admin_socket` there, and run as the owner of the socket"
            )
        })?;
        // HTTP/1.0: an answer without end has no chunks.
        let Some((200, mut lines)) = get(stream, "HTTP/1.0", "admin", "/v1/decisions")? else {
            bail!("`{place}` is no admin socket of stepgate, or one of an older version");
        };
        let has_colors = self.color == Color::Always || (self.color == Color::Auto && std::io::stdout().is_terminal());
        let mut out = std::io::stdout().lock();
        let mut shown = 0u64;
        while self.count.is_none_or(|count| shown < count) {
            let mut line = String::new();
            if std::io::Read::take(&mut lines, MAX_EVENT_BYTES).read_line(&mut line)? == 0 {
                eprintln!("the server has ended");
                break;
            }
            let event: Value = serde_json::from_str(&line).context("the server sent no JSON")?;
            if let Some(missed) = event.get("missed") {
                eprintln!("… {missed} decisions came faster than they could be shown");
                continue;
            }
            if !self.is_wanted(&event, &line) {
                continue;
            }
            shown = shown.saturating_add(1);
            let told = match self.format {
                Format::Json => writeln!(out, "{}", line.trim_end()),
                Format::Pretty => writeln!(out, "{}", pretty(&event, has_colors)),
            };
            match told.and_then(|()| out.flush()) {
                // The reader has closed the pipe.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
                told => told?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn is_wanted(&self, event: &Value, line: &str) -> bool {
        let request = |name: &str| http(event, name);
        let denied = |wanted: bool| !wanted || !is_allowed(event);
        denied(self.denied)
            && self.path.as_ref().is_none_or(|path| request("path").starts_with(path.as_str()))
            && self.method.as_ref().is_none_or(|method| request("method").eq_ignore_ascii_case(method))
            && self
                .reason
                .as_ref()
                .is_none_or(|reason| event.pointer("/custom/reason").and_then(Value::as_str) == Some(reason))
            && self.contains.as_ref().is_none_or(|text| line.contains(text.as_str()))
    }
}

fn http<'a>(event: &'a Value, name: &str) -> &'a str {
    event.pointer(&format!("/input/attributes/request/http/{name}")).and_then(Value::as_str).unwrap_or_default()
}

/// The text without what commands a terminal, or turns the order of its letters: a caller may have sent it.
pub fn plain(text: &str) -> String {
    let is_bidi =
        |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || is_bidi(c) { '?' } else { c }).collect()
}

/// The request passed; route requirements, preflights and `dry-run` overrule the policy.
fn is_allowed(event: &Value) -> bool {
    match event.pointer("/custom/answered").and_then(Value::as_str) {
        Some(answered) => answered == "allow",
        None => is_allowed_by_policy(event),
    }
}

fn is_allowed_by_policy(event: &Value) -> bool {
    let result = event.get("result");
    let is_true = |value: &Value| value == &Value::Bool(true);
    let reason = event.pointer("/custom/reason").and_then(Value::as_str).unwrap_or_default();
    let is_overruled = !matches!(reason, "" | "cors_preflight");
    !is_overruled && result.is_some_and(|result| is_true(result) || result.get("allowed").is_some_and(is_true))
}

/// One line: time, decision, request, subject, reason, duration, id. What the requests say is shown without control characters.
fn pretty(event: &Value, has_colors: bool) -> String {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let is_fault = event.get("error").is_some();
    let (word, color) = match (is_fault, is_allowed(event)) {
        (true, _) => ("FAULT", "\u{1b}[35m"),
        (false, true) => ("ALLOW", "\u{1b}[32m"),
        (false, false) => ("DENY ", "\u{1b}[31m"),
    };
    let time = text("/timestamp").split('T').nth(1).unwrap_or_default().trim_end_matches('Z');
    let mut parts = vec![http(event, "method").to_owned(), format!("{}{}", http(event, "host"), http(event, "path"))];
    for (name, pointer) in [
        ("state", "/input/jwt/state"),
        ("sub", "/input/jwt/claims/sub"),
        ("reason", "/custom/reason"),
        ("reason", "/result/reason"),
        ("error", "/error/message"),
    ] {
        if !text(pointer).is_empty() {
            parts.push(format!("{name}={}", text(pointer)));
        }
    }
    let reason = event.pointer("/custom/reason").and_then(Value::as_str);
    if is_allowed(event) && !is_allowed_by_policy(event) && reason != Some("cors_preflight") {
        parts.push("dry-run".to_owned());
    }
    if let Some(level) = event.pointer("/input/authn/level") {
        parts.push(format!("level={level}"));
    }
    if let Some(nanoseconds) = event.pointer("/metrics/timer_server_handler_ns").and_then(Value::as_f64) {
        parts.push(format!("{:.2}ms", nanoseconds / 1e6));
    }
    parts.push(text("/decision_id").to_owned());
    let word = if has_colors { format!("{color}{word}\u{1b}[0m") } else { word.to_owned() };
    format!("{} {word} {}", plain(time), plain(&parts.join(" ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(result: Value) -> Value {
        json!({
            "decision_id": "d", "timestamp": "2026-01-02T03:04:05.678Z", "result": result,
            "input": {"attributes": {"request": {"http": {"method": "GET", "host": "api", "path": "/a\u{1b}[2J"}}}, "jwt": {"state": "verified"}},
            "metrics": {"timer_server_handler_ns": 250_000},
        })
    }

    #[test]
    fn a_decision_is_one_line_without_surprises() {
        let line = pretty(&event(json!({"allowed": false, "reason": "x"})), false);
        assert_eq!(line, "03:04:05.678 DENY  GET api/a?[2J state=verified reason=x 0.25ms d");
        let colored = pretty(&event(json!(true)), true);
        assert_eq!(colored.matches('\u{1b}').count(), 2, "only ours: {colored:?}");
        let mut overruled = event(json!(true));
        overruled["custom"] = json!({"reason": "level_too_low"});
        assert!(!is_allowed(&overruled));
        // The answer to Envoy counts, not the policy's result.
        let mut passed = event(json!({"allowed": false}));
        passed["custom"] = json!({"answered": "allow"});
        assert!(is_allowed(&passed) && pretty(&passed, false).contains(" dry-run "), "{}", pretty(&passed, false));
        passed["custom"] = json!({"answered": "allow", "reason": "cors_preflight"});
        assert!(is_allowed(&passed) && !pretty(&passed, false).contains("dry-run"));
        passed = event(json!(true));
        passed["custom"] = json!({"answered": "deny"});
        assert!(!is_allowed(&passed));
        let mut fault = event(Value::Null);
        fault["error"] = json!({"message": "m"});
        assert!(pretty(&fault, false).contains(" FAULT ") && !is_allowed(&fault));
    }
}
