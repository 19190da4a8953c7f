//! A policy and its data, compiled once and never changed.

use std::time::Duration;

use super::engine::{Engine, EvalError, Evaluation, Rejection};
use super::entrypoint::Entrypoint;
use super::sources::Sources;
use crate::value::Value;

/// The longest that one Rego test may take.
const TEST_BUDGET: Duration = Duration::from_secs(5);

/// An immutable policy.
#[derive(Debug)]
pub struct Snapshot {
    engine: Engine,
}

impl Snapshot {
    /// Compiles `sources`, or says everything that is wrong with them.
    pub fn build(sources: &Sources, entrypoint: &Entrypoint) -> Result<Self, Vec<Rejection>> {
        Ok(Self { engine: Engine::load(sources, entrypoint)? })
    }

    /// Evaluates the decision for `input` within `budget`.
    pub fn eval(&self, input: &Value, budget: Duration) -> Result<Evaluation, EvalError> {
        self.engine.eval(input, budget)
    }
}

/// How one Rego test ended.
#[derive(Debug)]
pub struct TestOutcome {
    /// The rule's path, such as `data.lib.mfa_test.test_one`.
    pub rule: String,
    pub passed: bool,
    /// Why it did not pass.
    pub message: String,
}

/// Runs every rule named `test_…` in `sources`.
pub fn run_tests(sources: &Sources) -> Result<Vec<TestOutcome>, Vec<Rejection>> {
    let engine = Engine::load(sources, &Entrypoint::from_path(""))?;
    let run = |path: Vec<Value>| {
        let result = engine.eval_rule(&path, TEST_BUDGET);
        let names: Vec<&str> = path.iter().filter_map(Value::as_str).collect();
        TestOutcome {
            rule: format!("data.{}", names.join(".")),
            passed: matches!(&result, Ok(Evaluation { value: Some(Value::Bool(true)), .. })),
            message: match result {
                Ok(Evaluation { value: Some(value), .. }) => format!("it is {value}"),
                Ok(_) => "it is undefined".to_owned(),
                Err(error) => error.to_string(),
            },
        }
    };
    Ok(engine.test_rules().into_iter().map(run).collect())
}
