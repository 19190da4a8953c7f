//! A policy and its data, compiled once and never changed.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{Engine, EvalError, Evaluation, Rejection};
use super::entrypoint::Entrypoint;
use super::sources::Sources;
use super::world::Surroundings;
use crate::value::Value;

/// An immutable policy.
#[derive(Debug)]
pub struct Snapshot {
    engine: Engine,
}

impl Snapshot {
    /// Compiles `sources`, or says everything that is wrong with them.
    pub fn build(
        sources: &Sources,
        entrypoint: &Entrypoint,
        surroundings: &Arc<Surroundings>,
    ) -> Result<Self, Vec<Rejection>> {
        Ok(Self { engine: Engine::load(sources, entrypoint, surroundings)? })
    }

    /// Evaluates the decision for `input` within `budget`.
    pub fn eval(&self, input: &Value, budget: Duration) -> Result<Evaluation, EvalError> {
        self.engine.eval(input, budget)
    }
}
