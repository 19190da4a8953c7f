//! One compiled policy: our Rego engine over the sources of a snapshot.
//!
//! `tests/it/tidy.rs` lists the files that may name `stepgate_rego`. The policy is immutable and shared by all workers;
//! what an evaluation needs beside it lives as long as the evaluation.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepgate_rego::Options;
use stepgate_rego::{ErrorKind, EvalOptions, GroupKind, Limits, Policy, Source, Version, compile};

use super::cache::DecisionCache;
use super::entrypoint::Entrypoint;
use super::host::{EvalHost, HostContext};
use super::memory::MemoryGrant;
use super::query::key;
use super::sources::{Module, RegoVersion, Sources};
use crate::opa::input::{OF_BODY, OF_CALLER};
use crate::telemetry::ChildSpans;
use crate::value::Value;

/// One reason for refusing a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub file: String,
    pub line: u32,
    pub column: u32,
    /// OPA's code, such as `rego_type_error`.
    pub code: &'static str,
    pub message: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.line, self.code, self.message)
    }
}

/// Why an evaluation has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("the evaluation went over its budget")]
    Budget,
    #[error("{0}")]
    Memory(String),
    /// A brief attempt ended: evaluated with full effort there may be an answer.
    #[error("the evaluation takes longer than a brief attempt")]
    Unfinished,
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Failed(String),
}

/// The answer of one evaluation.
#[derive(Debug)]
pub struct Evaluation {
    /// Nothing when no rule gave a decision.
    pub value: Option<Value>,
    /// The output of `print`, in order.
    pub prints: Vec<String>,
    /// The answers of non-deterministic functions, where they are recorded.
    pub answers: Option<Value>,
    pub source: AnswerSource,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerSource {
    /// It was evaluated, and nothing is kept.
    Uncached,
    /// It was evaluated, though it might have been kept.
    Miss,
    /// It was kept.
    Hit,
}

/// The time limit of an evaluation, and its trace.
#[derive(Debug)]
pub struct Bounds {
    /// For its own work, without what it waits for.
    pub budget: Duration,
    /// When it ends, whatever it waits for.
    pub deadline: Instant,
    /// Receives the requests to other servers.
    pub followed: Option<ChildSpans>,
    pub effort: Effort,
    /// The memory limit; `None`: the one of every evaluation.
    pub memory: Option<Arc<MemoryGrant>>,
}

/// The work limit of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Little work, and no waiting for others: what nearly every evaluation needs. It is [`EvalError::Unfinished`] beyond that.
    Brief,
    Full,
}

/// Steps of a brief attempt: a millisecond or two.
const BRIEF_STEPS: u64 = 20_000;

impl Bounds {
    /// Work and waiting have `length` together, without a trace.
    pub fn within(length: Duration) -> Self {
        let deadline = Instant::now() + length;
        Self { budget: length, deadline, followed: None, effort: Effort::Full, memory: None }
    }
}

/// A loaded policy, ready to be asked.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    entrypoint: Vec<Value>,
    reads_body: bool,
    reads_caller: bool,
    cache: Option<DecisionCache>,
    host_context: Arc<HostContext>,
}

impl Engine {
    /// Compiles `sources`, or says everything that is wrong with them.
    pub fn load(
        sources: &Sources,
        entrypoint: &Entrypoint,
        host_context: &Arc<HostContext>,
    ) -> Result<Self, Vec<Rejection>> {
        let policy = compile_sources(sources, host_context, Strictness::default())?;
        let entrypoint: Vec<Value> = entrypoint.segments().iter().map(|segment| key(segment)).collect();
        let reads = policy.reads(&entrypoint);
        let reads_caller = OF_CALLER.iter().any(|member| reads.contains(member));
        let reads_body = OF_BODY.iter().any(|member| reads.contains(member));
        let cache =
            DecisionCache::new(reads.places().map(<[_]>::to_vec).collect(), host_context.decision_cache_bytes());
        if cache.is_none() && host_context.decision_cache_bytes() > 0 {
            tracing::info!("limits.decision_cache_bytes has no effect: the policy looks at the input as a whole");
        }
        Ok(Self { policy, entrypoint, reads_body, reads_caller, cache, host_context: Arc::clone(host_context) })
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(super) fn host_context(&self) -> &HostContext {
        &self.host_context
    }

    /// Rules or data can give the decision a value.
    pub fn can_decide(&self) -> bool {
        self.policy.can_define(&self.entrypoint)
    }

    /// The rules that can be a decision, as paths below `data`.
    pub fn rules(&self) -> impl Iterator<Item = String> {
        let is_value = |(path, kind): (&'_ [Value], GroupKind)| (kind != GroupKind::Function).then(|| path.to_vec());
        let rules = self.policy.rule_paths().filter_map(is_value);
        rules.filter_map(|path| Some(path.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?.join("/")))
    }

    /// An evaluation may wait for another server.
    pub fn waits(&self) -> bool {
        self.policy.waits()
    }

    /// Memory for one more evaluation.
    pub fn memory(&self) -> Arc<MemoryGrant> {
        self.host_context.memory()
    }

    /// The decision can depend on the parsed body.
    pub fn reads_body(&self) -> bool {
        self.reads_body
    }

    /// The decision can depend on the connection and the client.
    pub fn reads_caller(&self) -> bool {
        self.reads_caller
    }

    /// The document at another place, such as `system.log.mask`.
    pub fn ask(&self, path: &[String], input: &Value, budget: Duration) -> Result<Option<Value>, EvalError> {
        let path: Vec<Value> = path.iter().map(|part| Value::from(part.as_str())).collect();
        let world = EvalHost::lasting(budget, &self.host_context);
        let result = self.policy.eval(&path, Some(input), &options(Effort::Full, &world), &world);
        result.map_err(|error| EvalError::Failed(error.to_string()))
    }

    /// Evaluates the decision.
    pub fn eval(&self, input: &Value, bounds: Bounds) -> Result<Evaluation, EvalError> {
        let Some((cache, key)) = self.cache.as_ref().and_then(|cache| Some((cache, cache.key(input)?))) else {
            return self.evaluate(input, bounds).map(|(evaluation, _)| evaluation);
        };
        if let Some(value) = cache.get(&key) {
            return Ok(Evaluation { value, prints: Vec::new(), answers: None, source: AnswerSource::Hit });
        }
        let (evaluation, is_closed) = self.evaluate(input, bounds)?;
        if is_closed {
            cache.put(key, evaluation.value.clone());
        }
        Ok(Evaluation { source: AnswerSource::Miss, ..evaluation })
    }

    /// The evaluation, and whether it asked the world for nothing.
    fn evaluate(&self, input: &Value, bounds: Bounds) -> Result<(Evaluation, bool), EvalError> {
        let Bounds { budget, deadline, followed, effort, memory } = bounds;
        let mut world = EvalHost::until(deadline, budget, &self.host_context).followed(followed);
        if let Some(memory) = memory {
            world = world.within(memory);
        }
        if effort == Effort::Brief {
            world = world.without_waiting();
        }
        let result = self.policy.eval(&self.entrypoint, Some(input), &options(effort, &world), &world);
        let value = result.map_err(|error| match error.kind {
            ErrorKind::Steps | ErrorKind::Waiting if effort == Effort::Brief => EvalError::Unfinished,
            ErrorKind::Budget | ErrorKind::Steps | ErrorKind::Waiting => EvalError::Budget,
            ErrorKind::Memory => EvalError::Memory(error.message),
            ErrorKind::Conflict => EvalError::Conflict(error.to_string()),
            _ => EvalError::Failed(error.to_string()),
        })?;
        let (answers, is_closed) = (world.answers(), !world.was_asked());
        let prints = world.into_prints();
        Ok((Evaluation { value, prints, answers, source: AnswerSource::Uncached }, is_closed))
    }
}

fn options(effort: Effort, world: &EvalHost<'_>) -> EvalOptions {
    let full = Limits::default();
    let steps = if effort == Effort::Brief { BRIEF_STEPS } else { full.steps };
    EvalOptions { limits: Limits { steps, bytes: world.bytes_left() }, ..EvalOptions::default() }
}

/// The package of a module, part by part; nothing when the module cannot be parsed.
pub fn package_of(module: &Module) -> Option<Vec<String>> {
    let version = match module.version {
        RegoVersion::V0 => Version::V0,
        RegoVersion::V1 => Version::V1,
    };
    stepgate_rego::package_of(&module.text, version)
}

/// The compiler options of the command-line tools.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strictness {
    /// Refuse what is never used, too.
    pub strict: bool,
    /// Evaluations leave a [`super::Trail`].
    pub traced: bool,
    /// Every definition of a test is a test.
    pub separate_tests: bool,
}

/// Compiles `sources`, or says everything that is wrong with them.
pub fn compile_sources(
    sources: &Sources,
    host_context: &HostContext,
    how: Strictness,
) -> Result<Policy, Vec<Rejection>> {
    let modules: Vec<Source> = sources
        .modules
        .iter()
        .map(|module| Source {
            path: module.path.as_str().into(),
            text: module.text.clone(),
            version: match module.version {
                RegoVersion::V0 => Version::V0,
                RegoVersion::V1 => Version::V1,
            },
        })
        .collect();
    let options = Options {
        capabilities: host_context.capabilities(),
        traced: how.traced,
        strict: how.strict,
        separate_tests: how.separate_tests,
        ..Options::default()
    };
    compile(&modules, sources.data.clone(), &options).map_err(|errors| {
        let rejection = |error: stepgate_rego::CompileError| Rejection {
            file: error.file.to_string(),
            line: error.at.row,
            column: error.at.col,
            code: error.code,
            message: error.message,
        };
        errors.into_iter().map(rejection).collect::<Vec<_>>()
    })
}
