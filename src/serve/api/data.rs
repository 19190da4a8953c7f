//! Decisions and queries: `/v1/data`, `/v0/data`, `POST /` and `/v1/query`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{StatusCode, Uri, header};
use axum::response::Response;

use super::{BUDGET, Call, Failure, INPUT, decoded};
use crate::clock::nanoseconds;
use crate::decision_queue::{ApiRequestInfo, Record};
use crate::opa::rest::{self, BodyError};
use crate::policy::{ApiError, QueryError, QueryOptions, Snapshot};
use crate::value::{Members, Value, parse_json};

/// Members of an input that only stepgate fills.
const EVIDENCE: [&str; 4] = ["jwt", "authn", "workload", "revocation"];

type Reply = Result<Response, Failure>;

/// The result of an evaluation.
struct ApiOutcome {
    id: String,
    value: Option<Value>,
    revisions: Value,
    metrics: Value,
}

impl Call {
    fn body(&self, bytes: &Bytes) -> Result<Option<Value>, Failure> {
        let malformed = |error: BodyError| Failure::bad_request(error.to_string());
        let bytes = decoded(&self.api, &self.headers, bytes)?;
        rest::document(&bytes, self.header(header::CONTENT_TYPE), INPUT).map_err(malformed)
    }

    fn snapshot(&self) -> Result<Arc<Snapshot>, Failure> {
        let missing = "no policy is active yet";
        let failure = || Failure::new(StatusCode::SERVICE_UNAVAILABLE, "internal_error", missing);
        self.api.policy.current().ok_or_else(failure)
    }

    /// The input without what only stepgate may say; true when something was taken out.
    fn guarded(&self, input: Option<Value>) -> (Option<Value>, bool) {
        match input {
            Some(Value::Object(members)) if self.api.guards_evidence => {
                let is_own = |key: &Value| key.as_str().is_some_and(|key| EVIDENCE.contains(&key));
                if !members.iter().any(|(key, _)| is_own(key)) {
                    return (Some(Value::Object(members)), false);
                }
                let kept = members.iter().filter(|(key, _)| !is_own(key));
                (Some(Value::object(kept.map(|(key, value)| (key.clone(), value.clone())).collect())), true)
            }
            input => (input, false),
        }
    }

    /// Evaluates the document at `path`, and logs the decision.
    async fn decide(&self, path: &[String], input: Option<Value>) -> Result<ApiOutcome, Failure> {
        let snapshot = self.snapshot()?;
        let strict_builtin_errors = self.parameters.flag("strict-builtin-errors");
        let (asked, policy, given) = (path.to_vec(), Arc::clone(&snapshot), input.clone());
        let began = Instant::now();
        let result = self.api.aside(move || {
            policy.document(&asked, &QueryOptions { input: given.as_ref(), strict_builtin_errors, budget: BUDGET })
        });
        let result = result.await?;
        let evaluation = began.elapsed();
        let id = uuid::Uuid::new_v4().to_string();
        let asked = ApiRequestInfo { path: (!path.is_empty()).then(|| path.join("/")), ..self.asked() };
        self.log_decision(&id, &snapshot, asked, input, &result, evaluation);
        let value = result.map_err(|api_error| Failure::evaluation(&api_error))?;
        let revisions = snapshot.revisions().iter().map(|(name, revision)| {
            (Value::from(name.as_str()), [("revision", Value::from(revision.as_str()))].into_iter().collect())
        });
        let revisions = Value::object(revisions.collect());
        let nanoseconds = |length: Duration| Value::Number(nanoseconds(length).into());
        let metrics = [
            ("timer_rego_query_eval_ns", nanoseconds(evaluation)),
            ("timer_server_handler_ns", nanoseconds(self.began.elapsed())),
        ];
        Ok(ApiOutcome { id, value, revisions, metrics: metrics.into_iter().collect() })
    }

    pub(super) fn asked(&self) -> ApiRequestInfo {
        ApiRequestInfo { by: self.peer.clone(), request: self.api.next_request(), ..ApiRequestInfo::default() }
    }

    pub(super) fn log_decision(
        &self,
        id: &str,
        snapshot: &Arc<Snapshot>,
        asked: ApiRequestInfo,
        input: Option<Value>,
        result: &Result<Option<Value>, ApiError>,
        evaluation: Duration,
    ) {
        let Some(decision_queue) =
            self.api.decision_queue.as_ref().filter(|decision_queue| decision_queue.has_consumers())
        else {
            return;
        };
        decision_queue.record(Record {
            decision_id: id.to_owned(),
            has_consumers: true,
            reason: "",
            timestamp_ns: self.api.clock.now_ns(),
            asked: Some(Box::new(asked)),
            snapshot: Some(Arc::clone(snapshot)),
            input,
            result: result.as_ref().ok().cloned().flatten(),
            answers: None,
            error: result.as_ref().err().map(|api_error| format!("{}: {}", api_error.code, api_error.message)),
            answered: "",
            evaluation,
            total: self.began.elapsed(),
        });
    }

    /// The answer of the data API, version 1.
    async fn v1(&self, path: &[String], input: Option<Value>, is_missing: bool) -> Reply {
        let (input, was_guarded) = self.guarded(input);
        let decided = self.decide(path, input).await?;
        let mut members = Members::default();
        if self.api.decision_queue.as_ref().is_some_and(|decision_queue| decision_queue.log_enabled()) {
            members.put_text("decision_id", Value::from(decided.id));
        }
        if self.parameters.flag("metrics") || self.parameters.flag("instrument") {
            members.put_text("metrics", decided.metrics);
        }
        if self.parameters.flag("provenance") {
            let version = Value::from(env!("CARGO_PKG_VERSION"));
            let empty = || Value::from("");
            let mut told = vec![
                ("version", version),
                ("build_commit", empty()),
                ("build_timestamp", empty()),
                ("build_hostname", empty()),
            ];
            if decided.revisions.as_object().is_some_and(|bundles| bundles.iter().next().is_some()) {
                told.push(("bundles", decided.revisions));
            }
            members.put_text("provenance", told.into_iter().collect());
        }
        if let Some(value) = decided.value {
            members.put_text("result", value);
        }
        let warning = match (is_missing, was_guarded) {
            (true, _) => Some("'input' key missing from the request"),
            (_, true) => Some("'jwt', 'authn' and 'workload' of the input are stepgate's own and were taken out"),
            _ => None,
        };
        if let Some(message) = warning {
            let told = [("code", Value::from("api_usage_warning")), ("message", Value::from(message))];
            members.put_text("warning", told.into_iter().collect());
        }
        Ok(self.answer(&members.into_value()))
    }

    /// The bare document, as version 0 answers.
    async fn v0(&self, path: &[String], body: &Bytes) -> Reply {
        let (input, _) = self.guarded(self.body(body)?.or(Some(Value::Null)));
        let missing = || {
            let message = format!("document missing: data{}", dotted(path));
            Failure::new(StatusCode::NOT_FOUND, "undefined_document", message)
        };
        let value = self.decide(path, input).await?.value.ok_or_else(missing)?;
        Ok(self.answer(&value))
    }

    async fn query(&self, text: &str, input: Option<Value>) -> Reply {
        if text.trim().is_empty() {
            return Err(Failure::bad_request("missing parameter 'q' value"));
        }
        let snapshot = self.snapshot()?;
        let (input, _) = self.guarded(input);
        let (asked, policy, given) = (text.to_owned(), Arc::clone(&snapshot), input.clone());
        let began = Instant::now();
        let rows = self.api.aside(move || {
            let question = QueryOptions { input: given.as_ref(), strict_builtin_errors: false, budget: BUDGET };
            policy.query(&asked, &question)
        });
        let rows = rows.await?.map(Value::array);
        let told = match &rows {
            Ok(rows) => Ok(Some(rows.clone())),
            Err(QueryError::Evaluation(api_error)) => Err(api_error.clone()),
            Err(QueryError::Query(errors)) => {
                let failure = Failure::bad_request("error(s) occurred while compiling query");
                return Err(failure.with_errors(errors.iter().map(ApiError::to_json)));
            }
        };
        let asked = ApiRequestInfo { query: Some(text.to_owned()), ..self.asked() };
        self.log_decision(&uuid::Uuid::new_v4().to_string(), &snapshot, asked, input, &told, began.elapsed());
        let rows = told.map_err(|api_error| Failure::evaluation(&api_error))?;
        let rows = rows.filter(|rows| rows.as_array().is_some_and(|rows| !rows.is_empty()));
        let members: Value = rows.map(|rows| ("result", rows)).into_iter().collect();
        Ok(self.answer(&members))
    }
}

fn dotted(path: &[String]) -> String {
    path.iter().map(|part| format!(".{part}")).collect()
}

/// The path of a document, from that of a request.
fn below_data(uri: &Uri) -> Vec<String> {
    rest::segments(uri.path()).split_off(2)
}

pub(super) async fn v1_get(call: Call) -> Reply {
    let input = match call.parameters.text("input") {
        None => None,
        Some(text) => {
            let malformed = |_| Failure::bad_request("parameter contains malformed input document");
            Some(parse_json(text.as_bytes(), INPUT).map_err(malformed)?)
        }
    };
    call.v1(&below_data(&call.uri), input, false).await
}

pub(super) async fn v1_post(call: Call, body: Bytes) -> Reply {
    let input = match call.body(&body)? {
        None | Some(Value::Null) => None,
        Some(Value::Object(members)) => members.get(&Value::from("input")).filter(|it| **it != Value::Null).cloned(),
        Some(_) => return Err(Failure::bad_request("body contains malformed input document: not an object")),
    };
    let is_missing = input.is_none();
    call.v1(&below_data(&call.uri), input, is_missing).await
}

pub(super) async fn v0_post(call: Call, body: Bytes) -> Reply {
    call.v0(&below_data(&call.uri), &body).await
}

pub(super) async fn default_decision(call: Call, body: Bytes) -> Reply {
    call.v0(&call.api.default_decision, &body).await
}

pub(super) async fn query_get(call: Call) -> Reply {
    call.query(call.parameters.text("q").unwrap_or_default(), None).await
}

pub(super) async fn query_post(call: Call, body: Bytes) -> Reply {
    let Some(Value::Object(members)) = call.body(&body)? else {
        return Err(Failure::bad_request("error(s) occurred while decoding request: not an object"));
    };
    let member = |name: &str| members.get(&Value::from(name));
    let text = member("query").and_then(Value::as_str).unwrap_or_default();
    call.query(text, member("input").cloned()).await
}
