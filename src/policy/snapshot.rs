//! A policy and its data, compiled once and never changed, with an engine for each worker.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::audit::Rejection;
use super::engine::{Engine, EvalError};
use super::entrypoint::Entrypoint;
use super::sources::Sources;
use crate::value::Value;

/// How snapshots are built.
#[derive(Clone, Debug)]
pub struct Settings {
    pub entrypoint: Entrypoint,
    /// Engines per snapshot; as many as there are threads that decide.
    pub engines: usize,
}

/// An immutable policy. Evaluating needs exclusive use of an engine, so there is one for every worker.
#[derive(Debug)]
pub struct Snapshot {
    /// An engine is taken out while it evaluates: one that panicked half-way is in no state to decide again and is lost.
    engines: Vec<Mutex<Option<Box<Engine>>>>,
    /// Never asked, so always good to copy when an engine was lost.
    spare: Mutex<Engine>,
}

/// The answer of one evaluation.
#[derive(Debug)]
pub struct Evaluation {
    /// `Value::Undefined` when no rule gave a decision.
    pub value: Value,
    /// What `print` said, in order.
    pub prints: Vec<String>,
}

/// Which worker this thread is: the first to ask is 0, the next 1, and so on.
fn worker() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    MINE.with(|mine| *mine)
}

impl Snapshot {
    /// Compiles `sources`, or says everything that is wrong with them.
    pub fn build(sources: &Sources, settings: &Settings) -> Result<Self, Vec<Rejection>> {
        let load = || Engine::load(sources, &settings.entrypoint);
        let engines = (0..settings.engines.max(1))
            .map(|_| load().map(Box::new).map(Some).map(Mutex::new))
            .collect::<Result<_, _>>()?;
        Ok(Self { engines, spare: Mutex::new(load()?) })
    }

    /// Evaluates the decision for `input` within `budget`.
    pub fn eval(&self, input: Value, budget: Duration) -> Result<Evaluation, EvalError> {
        let at = worker().checked_rem(self.engines.len()).unwrap_or_default();
        let Some(place) = self.engines.get(at) else { return Err(EvalError::Budget) };
        // Another thread holds it only while it evaluates, which its own budget bounds.
        let Some(mut place) = place.try_lock_for(budget) else { return Err(EvalError::Budget) };
        let mut engine = place.take().unwrap_or_else(|| Box::new(self.spare.lock().clone()));
        let outcome = engine.eval(input, budget);
        let prints = engine.take_prints();
        *place = Some(engine);
        outcome.map(|value| Evaluation { value, prints })
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
    let mut engine = Engine::load(sources, &Entrypoint::from_path(""))?;
    let outcome = |rule: String, result: Result<Value, EvalError>| TestOutcome {
        passed: result == Ok(Value::Bool(true)),
        message: match result {
            Ok(value) => format!("it is {}", crate::value::json_text(&value)),
            Err(error) => error.to_string(),
        },
        rule,
    };
    Ok(engine
        .test_rules()
        .into_iter()
        .map(|rule| {
            let result = engine.eval_path(&rule);
            outcome(rule, result)
        })
        .collect())
}
