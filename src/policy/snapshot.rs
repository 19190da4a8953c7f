//! A policy and its data, compiled once and never changed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::engine::{Bounds, Engine, EvalError, Evaluation, Rejection};
use super::entrypoint::{Entrypoint, UndefinedEntrypoint};
use super::host::HostContext;
use super::memory::MemoryGrant;
use super::query::{ApiError, QueryError, QueryOptions};
use super::sources::Sources;
use crate::value::Value;

/// An immutable policy.
#[derive(Debug)]
pub struct Snapshot {
    engine: Engine,
    undefined: Option<UndefinedEntrypoint>,
    revisions: BTreeMap<String, String>,
}

impl Snapshot {
    /// Compiles `sources`, or says everything that is wrong with them.
    pub fn build(
        sources: &Sources,
        entrypoint: &Entrypoint,
        host_context: &Arc<HostContext>,
    ) -> Result<Self, Vec<Rejection>> {
        let engine = Engine::load(sources, entrypoint, host_context)?;
        let undefined = (!engine.can_decide()).then(|| entrypoint.undefined(engine.rules()));
        Ok(Self { engine, undefined, revisions: BTreeMap::new() })
    }

    /// The same, made of bundles with these revisions.
    pub fn with_revisions(self, revisions: BTreeMap<String, String>) -> Self {
        Self { revisions, ..self }
    }

    /// The revisions of the bundles that it was made of, by their names.
    pub fn revisions(&self) -> &BTreeMap<String, String> {
        &self.revisions
    }

    /// Why every decision will be undefined, if it is known.
    pub fn undefined_entrypoint(&self) -> Option<&UndefinedEntrypoint> {
        self.undefined.as_ref()
    }

    /// The document at another place than the decision's, within `budget`.
    pub fn ask(&self, path: &[String], input: &Value, budget: Duration) -> Result<Option<Value>, EvalError> {
        self.engine.ask(path, input, budget)
    }

    /// The document at any place, as OPA's data API asks for it.
    pub fn document(&self, path: &[String], question: &QueryOptions<'_>) -> Result<Option<Value>, ApiError> {
        self.engine.document(path, question)
    }

    /// The bindings of every answer to a query.
    pub fn query(&self, text: &str, question: &QueryOptions<'_>) -> Result<Vec<Value>, QueryError> {
        self.engine.query(text, question)
    }

    /// An evaluation may wait for another server.
    pub fn waits(&self) -> bool {
        self.engine.waits()
    }

    /// Memory for one more evaluation.
    pub fn memory(&self) -> Arc<MemoryGrant> {
        self.engine.memory()
    }

    /// The decision can depend on the parsed body.
    pub fn reads_body(&self) -> bool {
        self.engine.reads_body()
    }

    /// The decision can depend on the connection and the client.
    pub fn reads_caller(&self) -> bool {
        self.engine.reads_caller()
    }

    /// Evaluates the decision for `input`.
    pub fn eval(&self, input: &Value, bounds: Bounds) -> Result<Evaluation, EvalError> {
        self.engine.eval(input, bounds)
    }
}
