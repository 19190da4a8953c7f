//! The smoke evaluation of a new policy before its activation: one request, and the documents of `load_checks`.

use std::time::Duration;

use super::ActivationError;
use crate::feed::DATA;
use crate::policy::{Bounds, EvalError, Evaluation, QueryOptions, Snapshot};
use crate::value::{Value, json_text, parse_json};

/// The longest that a new policy may take for its first request.
const TRIAL: Duration = Duration::from_secs(1);
/// Characters of what a load check found.
const MAX_FOUND: usize = 1_000;

/// Looks at a document that says what is wrong with policies and data. While it is not there, nothing is known to be.
pub(super) fn load_check(candidate: &Snapshot, path: &[String]) -> Result<(), ActivationError> {
    let question = QueryOptions { input: None, strict_builtin_errors: false, budget: TRIAL };
    let found = match candidate.document(path, &question) {
        Ok(Some(Value::Set(items))) if items.is_empty() => return Ok(()),
        Ok(Some(Value::Array(items))) if items.is_empty() => return Ok(()),
        Ok(Some(Value::Object(members))) if members.iter().next().is_none() => return Ok(()),
        Ok(None) => {
            tracing::warn!(path = path.join("/"), "a document of plugins.stepgate.load_checks is undefined");
            return Ok(());
        }
        Ok(Some(found)) => json_text(&found),
        Err(complaint) => complaint.message,
    };
    Err(ActivationError::LoadCheck { path: path.join("/"), found: found.chars().take(MAX_FOUND).collect() })
}

/// Asks a candidate for a decision before requests do. What cannot answer in time never gets any; an error or no decision is
/// said, and denies.
pub(super) fn try_out(candidate: Snapshot, path: &str) -> Result<Snapshot, ActivationError> {
    if candidate.waits() {
        // It would ask other servers.
        return Ok(candidate);
    }
    match candidate.eval(&smoke_input(), Bounds::within(TRIAL)) {
        Err(EvalError::Budget | EvalError::Memory(_)) => return Err(ActivationError::Slow(TRIAL)),
        Err(error) => tracing::info!(path, %error, "the new policy cannot decide about a bare request"),
        Ok(Evaluation { value: None, .. }) => {
            tracing::info!(path, "the new policy has no decision about a bare request");
        }
        Ok(_) => {}
    }
    Ok(candidate)
}

/// A request with nothing in it.
fn smoke_input() -> Value {
    let http = r#"{"method": "GET", "path": "/", "host": "localhost", "scheme": "http", "headers": {}}"#;
    let text = format!(
        r#"{{"attributes": {{"request": {{"http": {http}}}}}, "parsed_path": [""], "parsed_query": {{}}, "method": "GET", "path": "/"}}"#
    );
    parse_json(text.as_bytes(), DATA).unwrap_or_default()
}
