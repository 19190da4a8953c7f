//! The faults of a decision. Each is an explicit denial with a reason, an HTTP status and a metric.

use std::time::Instant;

use super::canonical::Ambiguity;
use super::respond::GrpcCode;
use crate::opa::decision::{DecisionError, HttpStatus};
use crate::opa::input::{InputError, WireError};
use crate::telemetry::{Throttle, chain};

/// Why a check has no decision.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("the check request cannot be read")]
    Malformed(#[source] WireError),
    #[error("the check request is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the check request uses a gRPC encoding that was not agreed on")]
    Compressed,
    #[error("the request cannot be turned into input")]
    Input(#[source] InputError),
    #[error("the request's path is ambiguous")]
    AmbiguousPath(#[source] Ambiguity),
    #[error("no policy is active yet")]
    NoPolicy,
    #[error("the policy gave no decision")]
    Undefined,
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Evaluation(String),
    #[error("the policy's result is not a decision")]
    Result(#[source] DecisionError),
    #[error("the evaluation went over its budget")]
    EvaluationTimeout,
    #[error("the evaluation needs too much memory: {0}")]
    EvaluationMemory(String),
    #[error("the check went over its deadline")]
    CheckTimeout,
    #[error("the check went over the deadline of its caller")]
    CallerDeadline,
    #[error("too many checks are being answered")]
    Overloaded,
    #[error("the caller gave up before there was a decision")]
    Cancelled,
    #[error("the decision finds no room in the decision log, which `audit: required` asks for")]
    AuditLogFull,
    #[error("answering the check panicked")]
    Panic,
}

impl From<InputError> for Fault {
    fn from(error: InputError) -> Self {
        match error {
            InputError::Wire(error) => Self::Malformed(error),
            InputError::Memory => Self::EvaluationMemory("parsing the request body".to_owned()),
            other => Self::Input(other),
        }
    }
}

/// Rate limiters of the log lines about faults that come in crowds.
#[derive(Debug, Default)]
pub struct FaultLog {
    overload: Throttle,
    /// Time and memory of checks.
    limits: Throttle,
}

impl Fault {
    /// A stable word for clients, logs and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Compressed => "malformed_request",
            Self::TooLarge(_) => "request_too_large",
            Self::Input(InputError::Body(error)) if error.is_ambiguous() => "ambiguous_body",
            Self::Input(InputError::Body(_)) => "body_error",
            Self::Input(_) => "request_parse_error",
            Self::AmbiguousPath(_) => "ambiguous_path",
            Self::NoPolicy => "no_policy",
            Self::Undefined => "undefined_decision",
            Self::Conflict(_) | Self::Evaluation(_) => "evaluation_error",
            Self::Result(_) => "invalid_decision",
            Self::EvaluationTimeout => "evaluation_timeout",
            Self::EvaluationMemory(_) => "evaluation_memory",
            Self::CheckTimeout | Self::CallerDeadline => "check_timeout",
            Self::Overloaded => "overloaded",
            Self::Cancelled => "cancelled",
            Self::AuditLogFull => "audit_log_full",
            Self::Panic => "panic",
        }
    }

    /// The value of OPA's `error_counter`.
    pub fn opa_reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Compressed | Self::TooLarge(_) | Self::Overloaded => "start_check_error",
            Self::AuditLogFull => "unknown_log_error",
            Self::Input(_) | Self::AmbiguousPath(_) => "request_parse_error",
            Self::NoPolicy | Self::Undefined | Self::Evaluation(_) | Self::Panic => "envoyauth_eval_error",
            Self::Conflict(_) => "eval_conflict_error",
            Self::Result(_) => "envoyauth_result_error",
            Self::EvaluationTimeout | Self::EvaluationMemory(_) => "eval_cancel_error",
            Self::CheckTimeout | Self::CallerDeadline => "check_request_timeout",
            Self::Cancelled => "check_request_cancelled",
        }
    }

    /// The text that the client sees.
    pub fn http_status(&self) -> HttpStatus {
        match self {
            Self::Malformed(_) | Self::Compressed | Self::Input(_) | Self::AmbiguousPath(_) => HttpStatus::BAD_REQUEST,
            Self::TooLarge(_) => HttpStatus::CONTENT_TOO_LARGE,
            Self::Undefined | Self::Conflict(_) | Self::Evaluation(_) | Self::Result(_) => HttpStatus::FORBIDDEN,
            Self::NoPolicy
            | Self::EvaluationTimeout
            | Self::EvaluationMemory(_)
            | Self::CheckTimeout
            | Self::CallerDeadline
            | Self::Overloaded
            | Self::Cancelled
            | Self::AuditLogFull
            | Self::Panic => HttpStatus::SERVICE_UNAVAILABLE,
        }
    }

    /// OPA-Envoy's answer, where it answers with a gRPC error: the code and the message.
    pub fn grpc_error(&self) -> Option<(GrpcCode, String)> {
        Some(match self {
            Self::Malformed(_) | Self::Compressed => {
                (GrpcCode::Internal, format!("grpc: error unmarshalling request: {}", chain(self)))
            }
            Self::TooLarge(limit) => {
                (GrpcCode::ResourceExhausted, format!("grpc: received message larger than max ({limit})"))
            }
            Self::Undefined | Self::NoPolicy => (GrpcCode::Unknown, "undefined decision".to_owned()),
            Self::Conflict(text) => (GrpcCode::Unknown, format!("eval_conflict_error: {text}")),
            Self::Evaluation(text) => (GrpcCode::Unknown, text.clone()),
            Self::Result(error) if !error.is_unusable() => {
                (GrpcCode::Unknown, format!("failed to get response status: {error}"))
            }
            Self::CallerDeadline => (GrpcCode::Unknown, "context deadline reached during query execution".to_owned()),
            Self::Cancelled => (GrpcCode::Unavailable, self.to_string()),
            // A fault that a client can cause by the size or the content of its request is never an error that Envoy may turn into an allow;
            // nor is a lack of room in the decision log.
            Self::Result(_)
            | Self::EvaluationTimeout
            | Self::EvaluationMemory(_)
            | Self::CheckTimeout
            | Self::Overloaded
            | Self::Panic
            | Self::Input(_)
            | Self::AmbiguousPath(_)
            | Self::AuditLogFull => return None,
        })
    }

    /// Faults of the policy or of stepgate log as errors, those of a client as information. Overload faults go through a rate
    /// limiter: a line for each would take processor time from the checks.
    pub(super) fn log(&self, id: &str, throttles: &FaultLog) {
        let (reason, error) = (self.reason(), chain(self));
        match self {
            Self::Overloaded | Self::CheckTimeout | Self::CallerDeadline | Self::EvaluationMemory(_) => {
                let throttle = if matches!(self, Self::Overloaded) { &throttles.overload } else { &throttles.limits };
                if let Some(withheld) = throttle.due(Instant::now()) {
                    tracing::error!(decision_id = id, reason, error, withheld, "check failed; the request is denied");
                }
            }
            Self::Malformed(_) | Self::Compressed | Self::TooLarge(_) | Self::Input(_) | Self::AmbiguousPath(_) => {
                tracing::info!(decision_id = id, reason, error, "check refused");
            }
            _ => tracing::error!(decision_id = id, reason, error, "check failed; the request is denied"),
        }
    }
}
