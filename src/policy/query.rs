//! Questions that are not a check's: any document, any query, as OPA's data API asks them.

use std::time::{Duration, Instant};

use serde_json::json;
use stepgate_rego::{EvalError, EvalOptions, Limits, Solution, Version, compile_query};

use super::engine::{Engine, Rejection};
use super::host::EvalHost;
use crate::value::Value;

/// The options of a query.
#[derive(Clone, Copy, Debug)]
pub struct QueryOptions<'a> {
    pub input: Option<&'a Value>,
    /// An error of a built-in function ends the evaluation.
    pub strict_builtin_errors: bool,
    pub budget: Duration,
}

/// An error as OPA describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// Such as `eval_conflict_error`.
    pub code: &'static str,
    pub message: String,
    /// File, row and column.
    pub place: Option<(String, u32, u32)>,
}

impl ApiError {
    pub fn to_json(&self) -> serde_json::Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let (Some((file, row, column)), Some(members)) = (&self.place, error.as_object_mut()) {
            members.insert("location".to_owned(), json!({"file": file, "row": row, "col": column}));
        }
        error
    }
}

impl From<&Rejection> for ApiError {
    fn from(rejection: &Rejection) -> Self {
        let place = Some((rejection.file.clone(), rejection.line, rejection.column));
        Self { code: rejection.code, message: rejection.message.clone(), place }
    }
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryError {
    /// It does not compile.
    Query(Vec<ApiError>),
    Evaluation(ApiError),
}

fn api_error(error: EvalError) -> ApiError {
    let place = error.at.as_ref().map(|(file, at)| (file.to_string(), at.row, at.col));
    ApiError { code: error.kind.code(), message: error.message, place }
}

impl Engine {
    /// The document at `path` under `data`; parts that are whole numbers may be indexes.
    pub fn document(&self, path: &[String], question: &QueryOptions<'_>) -> Result<Option<Value>, ApiError> {
        let path: Vec<Value> = path.iter().map(|part| key(part)).collect();
        let world = EvalHost::until(Instant::now() + question.budget, question.budget, self.host_context());
        let result = self.policy().eval(&path, question.input, &options(question, &world), &world);
        for line in world.into_prints() {
            tracing::info!("{line}");
        }
        result.map_err(api_error)
    }

    /// The bindings of every answer to a query.
    pub fn query(&self, text: &str, question: &QueryOptions<'_>) -> Result<Vec<Value>, QueryError> {
        let compiled = compile_query(self.policy(), text, Version::V1, &[]).map_err(|errors| {
            let api_error = |error: stepgate_rego::CompileError| ApiError {
                code: error.code,
                message: error.message,
                place: Some((String::new(), error.at.row, error.at.col)),
            };
            QueryError::Query(errors.into_iter().map(api_error).collect())
        })?;
        let world = EvalHost::until(Instant::now() + question.budget, question.budget, self.host_context());
        let rows = self.policy().solutions(&compiled, question.input, &options(question, &world), &world);
        let rows = rows.map_err(|error| QueryError::Evaluation(api_error(error)))?;
        let bindings = |row: Solution| {
            Value::object(row.bindings.into_iter().map(|(name, value)| (Value::from(name.as_str()), value)).collect())
        };
        Ok(rows.into_iter().filter(|row| compiled.is_solution(row)).map(bindings).collect())
    }
}

fn options(question: &QueryOptions<'_>, world: &EvalHost<'_>) -> EvalOptions {
    let limits = Limits { bytes: world.bytes_left(), ..Limits::default() };
    EvalOptions { strict_builtin_errors: question.strict_builtin_errors, limits }
}

/// A part of a path: a whole number is one.
pub(super) fn key(segment: &str) -> Value {
    segment.parse::<u32>().map_or_else(|_| Value::from(segment), Value::from)
}
