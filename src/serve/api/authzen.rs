//! AuthZEN's Authorization API 1.0: `/access/v1/evaluation` and `/access/v1/evaluations`, over the policy that checks ask.
//!
//! The caller's statements are `input.authzen` and no evidence: `input.jwt` and `input.authn` are absent, so that a
//! rule which needs them does not allow.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{BUDGET, Call, INPUT, decoded};
use crate::decision_queue::ApiRequestInfo;
use crate::opa::decision::{Decision, StepUp};
use crate::policy::{ApiError, Bounds, Evaluation, Snapshot};
use crate::value::{Members, Value, as_text, json_text, member, parse_json};

/// Evaluations of one request.
const MAX_EVALUATIONS: usize = 1_000;
/// Members that an evaluation may take from the request around it.
const SHARED: [&str; 4] = ["subject", "action", "resource", "context"];
/// Members of those that must be there, each not empty.
const REQUIRED: [(&str, &[&str]); 3] =
    [("subject", &["type", "id"]), ("action", &["name"]), ("resource", &["type", "id"])];

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An answer that is an error: a message as JSON text (section 10.1 of the specification).
struct RejectedConnection(StatusCode, String);

type Reply = Result<Value, RejectedConnection>;

/// When the evaluations of one request end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Semantic {
    ExecuteAll,
    DenyOnFirstDeny,
    PermitOnFirstPermit,
}

impl Semantic {
    fn of(request: &Value) -> Result<Self, RejectedConnection> {
        let named = member(request, "options").and_then(|options| member(options, "evaluations_semantic"));
        match named.map(as_text) {
            None | Some(Some("execute_all")) => Ok(Self::ExecuteAll),
            Some(Some("deny_on_first_deny")) => Ok(Self::DenyOnFirstDeny),
            Some(Some("permit_on_first_permit")) => Ok(Self::PermitOnFirstPermit),
            Some(_) => Err(bad_request("options.evaluations_semantic is none that is known")),
        }
    }

    fn ends_with(self, decision: bool) -> bool {
        match self {
            Self::ExecuteAll => false,
            Self::DenyOnFirstDeny => !decision,
            Self::PermitOnFirstPermit => decision,
        }
    }
}

fn bad_request(message: impl Into<String>) -> RejectedConnection {
    RejectedConnection(StatusCode::BAD_REQUEST, message.into())
}

/// One evaluation: what it says itself, and what the request around it says for all. What must be there is there.
fn evaluation(own: &Value, shared: Option<&Value>) -> Result<Value, RejectedConnection> {
    if !matches!(own, Value::Object(_)) {
        return Err(bad_request("an evaluation is an object"));
    }
    let mut members = Members::default();
    for name in SHARED {
        if let Some(value) = member(own, name).or_else(|| member(shared?, name)) {
            if !matches!(value, Value::Object(_)) {
                return Err(bad_request(format!("{name} is not an object")));
            }
            members.put_text(name, value.clone());
        }
    }
    let whole = members.into_value();
    for (name, required) in REQUIRED {
        let item = member(&whole, name).ok_or_else(|| bad_request(format!("{name} is missing")))?;
        for part in required {
            if member(item, part).and_then(as_text).is_none_or(str::is_empty) {
                return Err(bad_request(format!("{name}.{part} is missing")));
            }
        }
    }
    Ok(whole)
}

/// `decision` and `context` of an answer.
fn answer(decision: bool, context: Value) -> Value {
    let mut members = Members::default();
    members.put_text("decision", Value::Bool(decision));
    if context.as_object().is_some_and(|context| context.iter().next().is_some()) {
        members.put_text("context", context);
    }
    members.into_value()
}

/// An evaluation error, inside an answer to several.
fn error_of(status: StatusCode, message: &str) -> Value {
    let mut error = Members::default();
    error.put_text("status", Value::from(usize::from(status.as_u16())));
    error.put_text("message", Value::from(message));
    let context = [("error", error.into_value())].into_iter().collect();
    answer(false, context)
}

/// The answer to a decision of the policy.
fn answer_of(decision: &Decision) -> Value {
    let mut context = Members::default();
    let (reason, step_up) = match decision {
        Decision::True | Decision::False => (None, None),
        Decision::Allow(allow) => (allow.reason.as_deref(), None),
        Decision::Deny(deny) => (deny.reason.as_deref(), deny.step_up.as_ref()),
    };
    if let Some(reason) = reason.or_else(|| step_up?.reason.as_deref()) {
        context.put_text("reason", Value::from(reason));
    }
    if let Some(StepUp { acr_values, max_age, scope, .. }) = step_up {
        if !acr_values.is_empty() {
            context.put_text("acr_values", Value::from(acr_values.join(" ")));
        }
        if let Some(max_age) = max_age {
            context.put_text("max_age", Value::from(*max_age));
        }
        if let Some(scope) = scope {
            context.put_text("scope", Value::from(scope.as_str()));
        }
    }
    answer(decision.is_allow(), context.into_value())
}

impl Call {
    /// Evaluates the policy once, and logs the decision.
    async fn evaluate(&self, document: Value, snapshot: &Arc<Snapshot>, until: Instant) -> Reply {
        let input: Value = [("authzen", document)].into_iter().collect();
        let (policy, given) = (Arc::clone(snapshot), input.clone());
        let began = Instant::now();
        let bounds = Bounds::within(until.saturating_duration_since(began));
        let evaluated = self.api.aside(move || policy.eval(&given, bounds)).await;
        let evaluated = evaluated.map_err(|failure| RejectedConnection(failure.status, failure.message))?;
        let told = match &evaluated {
            Ok(Evaluation { value, .. }) => Ok(value.clone()),
            Err(error) => Err(ApiError { code: "eval_error", message: error.to_string(), place: None }),
        };
        let asked = ApiRequestInfo { path: Some("access/v1/evaluation".to_owned()), ..self.asked() };
        self.log_decision(&uuid::Uuid::new_v4().to_string(), snapshot, asked, Some(input), &told, began.elapsed());
        let failed =
            |_| RejectedConnection(StatusCode::INTERNAL_SERVER_ERROR, "the policy cannot be evaluated".to_owned());
        match evaluated.map_err(failed)?.value {
            None => Ok(answer(false, [("reason", Value::from("undefined_decision"))].into_iter().collect())),
            Some(value) => {
                let unreadable = |_| {
                    RejectedConnection(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "the policy's result is no decision".to_owned(),
                    )
                };
                Decision::parse(&value, self.api.dialect).map(|decision| answer_of(&decision)).map_err(unreadable)
            }
        }
    }

    fn request(&self, bytes: &Bytes) -> Result<(Value, Arc<Snapshot>), RejectedConnection> {
        let bytes = decoded(&self.api, &self.headers, bytes).map_err(|failure| bad_request(failure.message))?;
        let request = parse_json(&bytes, INPUT).map_err(|_| bad_request("the body is no JSON document"))?;
        if !matches!(request, Value::Object(_)) {
            return Err(bad_request("the body is not an object"));
        }
        let snapshot = self.api.policy.current();
        let missing = || RejectedConnection(StatusCode::SERVICE_UNAVAILABLE, "no policy is active yet".to_owned());
        Ok((request, snapshot.ok_or_else(missing)?))
    }

    async fn one(&self, bytes: &Bytes) -> Reply {
        let (request, snapshot) = self.request(bytes)?;
        self.evaluate(evaluation(&request, None)?, &snapshot, self.until()).await
    }

    async fn several(&self, bytes: &Bytes) -> Reply {
        let (request, snapshot) = self.request(bytes)?;
        let until = self.until();
        let items = match member(&request, "evaluations") {
            Some(Value::Array(items)) if !items.is_empty() => items.clone(),
            None | Some(Value::Array(_)) => {
                return self.evaluate(evaluation(&request, None)?, &snapshot, until).await;
            }
            Some(_) => return Err(bad_request("evaluations is not an array")),
        };
        if items.len() > MAX_EVALUATIONS {
            return Err(bad_request(format!("more than {MAX_EVALUATIONS} evaluations")));
        }
        let semantic = Semantic::of(&request)?;
        let mut answers = Vec::new();
        for item in items.iter() {
            let answer = match evaluation(item, Some(&request)) {
                Ok(document) => self.evaluate(document, &snapshot, until).await,
                Err(refusal) => Err(refusal),
            };
            let answer = answer.unwrap_or_else(|RejectedConnection(status, message)| error_of(status, &message));
            let decision = member(&answer, "decision") == Some(&Value::Bool(true));
            answers.push(answer);
            if semantic.ends_with(decision) {
                break;
            }
        }
        Ok([("evaluations", Value::array(answers))].into_iter().collect())
    }

    fn until(&self) -> Instant {
        self.began.checked_add(BUDGET).unwrap_or(self.began)
    }

    /// The answer with the request's id, so that both ends speak of the same.
    fn reply(&self, reply: Reply) -> Response {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        let mut response = match reply {
            Ok(value) => (kind, json_text(&value)).into_response(),
            Err(RejectedConnection(status, message)) => (status, kind, json!(message).to_string()).into_response(),
        };
        if let Some(id) = self.headers.get(&REQUEST_ID) {
            response.headers_mut().insert(REQUEST_ID.clone(), id.clone());
        }
        response
    }
}

pub(super) async fn evaluation_post(call: Call, body: Bytes) -> Response {
    let reply = call.one(&body).await;
    call.reply(reply)
}

pub(super) async fn evaluations_post(call: Call, body: Bytes) -> Response {
    let reply = call.several(&body).await;
    call.reply(reply)
}

/// The metadata of this server, where its public URL is configured.
pub(super) async fn configuration(call: Call) -> Response {
    let Some(url) = call.api.authzen_url.as_deref().map(|url| url.trim_end_matches('/')) else {
        let message = "set plugins.stepgate.authzen.url to the URL of this server";
        return call.reply(Err(RejectedConnection(StatusCode::NOT_FOUND, message.to_owned())));
    };
    let mut members = Members::default();
    members.put_text("policy_decision_point", Value::from(url));
    for (name, path) in [("evaluation", "evaluation"), ("evaluations", "evaluations")] {
        members.put_text(&format!("access_{name}_endpoint"), Value::from(format!("{url}/access/v1/{path}")));
    }
    call.reply(Ok(members.into_value()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Value {
        parse_json(text.as_bytes(), INPUT).expect("JSON")
    }

    const WHOLE: &str = r#"{"subject": {"type": "user", "id": "a"}, "action": {"name": "read"}, "resource": {"type": "doc", "id": "1"}}"#;

    #[test]
    fn what_must_be_there_is_asked_for_by_name() {
        let merged = evaluation(&parsed(r#"{"action": {"name": "write"}, "x": 1}"#), Some(&parsed(WHOLE)));
        let merged = merged.unwrap_or_else(|refusal| panic!("{}", refusal.1));
        assert_eq!(
            json_text(&merged),
            r#"{"action":{"name":"write"},"resource":{"id":"1","type":"doc"},"subject":{"id":"a","type":"user"}}"#
        );
        for (text, want) in [
            ("[]", "an evaluation is an object"),
            ("{}", "subject is missing"),
            (r#"{"subject": "a"}"#, "subject is not an object"),
            (r#"{"subject": {"type": "user"}}"#, "subject.id is missing"),
            (r#"{"subject": {"type": "", "id": "a"}}"#, "subject.type is missing"),
            (r#"{"subject": {"type": "user", "id": 1}}"#, "subject.id is missing"),
            (r#"{"subject": {"type": "user", "id": "a"}, "action": {}}"#, "action.name is missing"),
        ] {
            let Err(RejectedConnection(status, message)) = evaluation(&parsed(text), None) else {
                panic!("{text} is taken")
            };
            assert_eq!((status, message.as_str()), (StatusCode::BAD_REQUEST, want), "{text}");
        }
    }

    #[test]
    fn a_step_up_is_told_in_the_words_of_the_specification() {
        let step_up = StepUp { acr_values: vec!["phr".into(), "mfa".into()], max_age: Some(60), ..StepUp::default() };
        let deny = crate::opa::decision::Deny { step_up: Some(step_up), ..Default::default() };
        assert_eq!(
            json_text(&answer_of(&Decision::Deny(deny))),
            r#"{"context":{"acr_values":"phr mfa","max_age":60},"decision":false}"#
        );
        assert_eq!(json_text(&answer_of(&Decision::True)), r#"{"decision":true}"#);
    }
}
