//! The status of bundles, discovery and the decision log: updated by the feeds, served at `/v1/status`, sent to a service.
//!
//! Mirrors: `Status` of OPA `v1/plugins/bundle/status.go` and `UpdateRequestV1` of `v1/plugins/status/plugin.go`, v1.19.0.

mod opa_metrics;
pub mod sender;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, Value as Json, json};
use tokio::sync::Notify;

pub use self::opa_metrics::{BundleMetrics, StatusMetrics};
use super::bundle::poller::PollError;
use crate::clock::rfc3339;
use crate::policy::{ApiError, Rejection};
use crate::telemetry::chain;

/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";
/// Errors that a status lists at most.
const MAX_ERRORS: usize = 100;
/// Bytes of a message, which may quote what a bundle or a server says.
const MAX_MESSAGE: usize = 2_000;

/// The error of the last attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    pub code: &'static str,
    pub message: String,
    /// Each as OPA describes an error of a policy.
    pub errors: Vec<Json>,
    /// The status that the server answered with.
    pub http_code: Option<u16>,
}

/// A message that is not longer than anybody reads.
pub fn clipped(message: &str) -> String {
    match message.get(..message.floor_char_boundary(MAX_MESSAGE)) {
        Some(start) if start.len() < message.len() => format!("{start}…"),
        _ => message.to_owned(),
    }
}

impl Fault {
    /// The status of a bundle, in OPA's form.
    pub fn of_bundle(error: &dyn std::error::Error) -> Self {
        Self { code: "bundle_error", message: clipped(&chain(error)), errors: Vec::new(), http_code: None }
    }

    pub fn of_poll(error: &PollError) -> Self {
        let http_code = match error {
            PollError::Status { code, .. } => Some(*code),
            PollError::Fetch(_) => None,
        };
        Self { http_code, ..Self::of_bundle(error) }
    }

    pub fn of_policy(rejections: &[Rejection]) -> Self {
        let clipped = |rejection: &Rejection| {
            let (file, message) = (clipped(&rejection.file), clipped(&rejection.message));
            ApiError::from(&Rejection { file, message, ..rejection.clone() }).to_json()
        };
        Self {
            code: "bundle_error",
            message: "error(s) occurred while compiling module(s)".to_owned(),
            errors: rejections.iter().take(MAX_ERRORS).map(clipped).collect(),
            http_code: None,
        }
    }
}

/// The state of one bundle. Times are nanoseconds since the epoch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BundleStatus {
    pub name: String,
    pub active_revision: String,
    /// `snapshot` or `delta`, the last that came.
    pub kind: &'static str,
    /// Bytes of the last archive.
    pub size: usize,
    pub activated_at: Option<i64>,
    pub downloaded_at: Option<i64>,
    /// When the server last gave a bundle, or said that it is the same.
    pub answered_at: Option<i64>,
    pub asked_at: Option<i64>,
    pub fault: Option<Fault>,
    pub timers: BTreeMap<&'static str, u64>,
}

impl BundleStatus {
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    fn to_json(&self) -> Json {
        let time = |at: Option<i64>| Json::from(at.map_or_else(|| NEVER.to_owned(), rfc3339));
        let mut members = Map::new();
        let mut put = |name: &str, value: Json| {
            if !matches!(&value, Json::Null) && value != json!("") && value != json!(0) {
                members.insert(name.to_owned(), value);
            }
        };
        put("name", self.name.clone().into());
        put("active_revision", self.active_revision.clone().into());
        put("last_successful_activation", time(self.activated_at));
        put("type", self.kind.into());
        put("size", self.size.into());
        put("last_successful_download", time(self.downloaded_at));
        put("last_successful_request", time(self.answered_at));
        put("last_request", time(self.asked_at));
        if !self.timers.is_empty() {
            put("metrics", self.timers.iter().map(|(name, took)| ((*name).to_owned(), Json::from(*took))).collect());
        }
        if let Some(fault) = &self.fault {
            // A message without a code is no error, as when discovery leaves something out.
            put("code", fault.code.into());
            put("message", fault.message.clone().into());
            if !fault.errors.is_empty() {
                put("errors", fault.errors.clone().into());
            }
            put("http_code", fault.http_code.map_or(Json::Null, Json::from));
        }
        Json::Object(members)
    }

    /// Metrics by OPA's names.
    fn metrics(&self) -> BundleMetrics<'_> {
        BundleMetrics {
            name: &self.name,
            revision: &self.active_revision,
            fault: self.fault.as_ref().map(|fault| (fault.code, fault.message.as_str())),
            activated_at: self.activated_at,
            downloaded_at: self.downloaded_at,
            answered_at: self.answered_at,
            asked_at: self.asked_at,
        }
    }

    /// The parts that count as a change: not the time of the last request.
    fn essence(&self) -> Self {
        Self { answered_at: None, asked_at: None, timers: BTreeMap::new(), ..self.clone() }
    }
}

/// The whole status document.
#[derive(Debug, Default)]
pub struct Board {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    labels: BTreeMap<String, String>,
    bundles: BTreeMap<String, BundleStatus>,
    discovery: Option<BundleStatus>,
    decision_logs: Option<Fault>,
}

impl Board {
    pub fn set_labels(&self, labels: BTreeMap<String, String>) {
        self.state.lock().labels = labels;
    }

    /// Updates the status of a bundle.
    pub fn bundle(&self, name: &str, change: impl FnOnce(&mut BundleStatus)) {
        let mut state = self.state.lock();
        let status = state.bundles.entry(name.to_owned()).or_insert_with(|| BundleStatus::named(name));
        let before = status.essence();
        change(status);
        if status.essence() != before {
            self.changed.notify_one();
        }
    }

    pub fn forget_bundle(&self, name: &str) {
        if self.state.lock().bundles.remove(name).is_some() {
            self.changed.notify_one();
        }
    }

    /// Updates the status of discovery.
    pub fn discovery(&self, change: impl FnOnce(&mut BundleStatus)) {
        let mut state = self.state.lock();
        let status = state.discovery.get_or_insert_with(|| BundleStatus::named("discovery"));
        let before = status.essence();
        change(status);
        if status.essence() != before {
            self.changed.notify_one();
        }
    }

    /// The last upload of decisions worked, or did not.
    pub fn decision_logs(&self, fault: Option<Fault>) {
        let mut state = self.state.lock();
        if state.decision_logs != fault {
            state.decision_logs = fault;
            self.changed.notify_one();
        }
    }

    /// Comes when something has changed since the last time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn bundles(&self) -> Vec<BundleStatus> {
        self.state.lock().bundles.values().cloned().collect()
    }

    /// The server has answered within `limit` before `now`.
    pub fn is_fresh(&self, name: &str, limit: Duration, now_ns: i64) -> bool {
        let limit = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX);
        let state = self.state.lock();
        let answered = state.bundles.get(name).and_then(|status| status.answered_at);
        answered.is_some_and(|at| now_ns.saturating_sub(at) <= limit)
    }

    /// The whole status. `plugins` are states by name, `decisions` what became of them in the decision log.
    pub fn to_json(&self, plugins: &BTreeMap<String, &'static str>, decisions: &BTreeMap<&'static str, u64>) -> Json {
        let state = self.state.lock();
        let mut status = json!({"labels": state.labels});
        let Some(members) = status.as_object_mut() else { return status };
        if !state.bundles.is_empty() {
            let bundles = state.bundles.iter().map(|(name, status)| (name.clone(), status.to_json()));
            members.insert("bundles".to_owned(), bundles.collect());
        }
        if let Some(discovery) = &state.discovery {
            members.insert("discovery".to_owned(), discovery.to_json());
        }
        let mut log = Map::new();
        if let Some(fault) = &state.decision_logs {
            log.insert("code".to_owned(), fault.code.into());
            log.insert("message".to_owned(), fault.message.clone().into());
            log.extend(fault.http_code.map(|code| ("http_code".to_owned(), code.into())));
        }
        if !decisions.is_empty() {
            log.insert("metrics".to_owned(), json!(decisions));
        }
        if !log.is_empty() {
            members.insert("decision_logs".to_owned(), Json::Object(log));
        }
        let plugins = plugins.iter().map(|(name, state)| (name.clone(), json!({"state": state})));
        members.insert("plugins".to_owned(), plugins.collect());
        status
    }
}

/// A shared board.
pub type Status = Arc<Board>;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_changes_are_told() {
        let board = Board::default();
        let metrics = async || tokio::time::timeout(Duration::from_millis(20), board.changed()).await.is_ok();
        board.bundle("a", |status| status.active_revision = "r1".to_owned());
        assert!(metrics().await);
        board.bundle("a", |status| {
            status.asked_at = Some(5);
            status.answered_at = Some(5);
        });
        assert!(!metrics().await, "a poll that finds nothing new is no news");
        board.bundle("a", |status| status.fault = Some(Fault { code: "bundle_error", ..Fault::default() }));
        assert!(metrics().await);
        board.decision_logs(None);
        assert!(!metrics().await);
        board.forget_bundle("a");
        assert!(metrics().await && board.bundles().is_empty());
    }

    #[test]
    fn it_looks_as_in_opa() {
        let board = Board::default();
        board.set_labels(BTreeMap::from([("id".to_owned(), "x".to_owned())]));
        board.bundle("a", |status| {
            status.activated_at = Some(1_700_000_000_000_000_000);
            status.active_revision = "r1".to_owned();
            status.fault = Some(Fault {
                code: "bundle_error",
                message: "server replied with Not Found".to_owned(),
                http_code: Some(404),
                ..Fault::default()
            });
        });
        let plugins = BTreeMap::from([("bundle".to_owned(), "OK")]);
        assert_eq!(
            board.to_json(&plugins, &BTreeMap::from([("uploaded", 7)])),
            json!({
                "labels": {"id": "x"},
                "bundles": {"a": {
                    "name": "a",
                    "active_revision": "r1",
                    "last_successful_activation": "2023-11-14T22:13:20.000000000Z",
                    "last_successful_download": NEVER,
                    "last_successful_request": NEVER,
                    "last_request": NEVER,
                    "code": "bundle_error",
                    "message": "server replied with Not Found",
                    "http_code": 404,
                }},
                "decision_logs": {"metrics": {"uploaded": 7}},
                "plugins": {"bundle": {"state": "OK"}},
            })
        );
    }

    #[test]
    fn what_a_bundle_calls_its_files_does_not_fill_the_status() {
        let name = "é".repeat(1 << 20);
        let rejection =
            Rejection { file: name.clone(), line: 1, column: 1, code: "rego_parse_error", message: name.clone() };
        let board = Board::default();
        board.bundle("a", |status| status.fault = Some(Fault::of_policy(&vec![rejection; 200])));
        board.bundle("b", |status| status.fault = Some(Fault::of_bundle(&std::io::Error::other(name.clone()))));
        let metrics = board.to_json(&BTreeMap::new(), &BTreeMap::new());
        assert_eq!(metrics["bundles"]["a"]["errors"].as_array().map(Vec::len), Some(MAX_ERRORS));
        let message = metrics["bundles"]["b"]["message"].as_str().expect("a message");
        assert!(message.ends_with("é…") && message.len() <= MAX_MESSAGE + 3, "{}", message.len());
        assert!(metrics.to_string().len() < 3 * MAX_ERRORS * MAX_MESSAGE);
        assert_eq!(clipped("short"), "short");
    }

    #[test]
    fn freshness_is_counted_from_the_last_answer() {
        let (board, minute) = (Board::default(), Duration::from_secs(60));
        assert!(!board.is_fresh("a", minute, 0));
        board.bundle("a", |status| status.answered_at = Some(0));
        assert!(board.is_fresh("a", minute, 60_000_000_000) && !board.is_fresh("a", minute, 60_000_000_001));
    }
}
