//! One evaluator: regorus's interpreter, configured to come as close to OPA as it can.
//!
//! The only file that names `regorus` besides `value.rs`. An `Engine` is used by one check at a time; `snapshot` keeps
//! one per worker, each parsed on its own, so that workers share no counters. regorus's `CompiledPolicy` and its virtual
//! machine are not used: both change what policies mean.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::{Duration, Instant};

use regorus::utils::limits::{ExecutionTimerConfig, PolicyLengthConfig};

use super::audit::{NamedModule, Rejection, RuleTree, audit};
use super::builtins::{OverBudget, replacements};
use super::entrypoint::Entrypoint;
use super::sources::{RegoVersion, Sources};
use crate::value::Value;

/// The syntax tree that `audit` and `refs` read.
pub mod ast {
    pub use regorus::unstable::{AssignOp, Expr, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleHead, Span};
}

/// Policies may hold keys and certificates on one line.
const LENGTHS: PolicyLengthConfig = PolicyLengthConfig {
    max_col: NonZeroU32::new(1 << 20).expect("not zero"),
    max_file_bytes: NonZeroUsize::new(16 << 20).expect("not zero"),
    max_lines: NonZeroUsize::new(1_000_000).expect("not zero"),
};
/// Steps between two looks at the time.
const CHECK_INTERVAL: NonZeroU32 = NonZeroU32::new(256).expect("not zero");

pub type Extension = Box<dyn regorus::Extension>;
pub use anyhow::Error as BuiltinErrorInner;

/// What a built-in function fails with. regorus takes only its own error type here.
#[derive(Debug)]
pub struct BuiltinError(BuiltinErrorInner);

impl BuiltinError {
    pub fn over_budget(what: &str) -> Self {
        Self(anyhow::anyhow!("over budget: {what}"))
    }
}

impl From<BuiltinError> for BuiltinErrorInner {
    fn from(error: BuiltinError) -> Self {
        error.0
    }
}

/// Why an evaluation has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("the evaluation went over its budget")]
    Budget,
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Failed(String),
}

/// How the decision is read.
#[derive(Clone, Debug)]
enum Target {
    /// The path of a rule: the cheap way.
    Rule(String),
    /// Any other document: a package, base data, or a part of a rule's value.
    Query(String),
}

/// A loaded policy, ready to be asked.
#[derive(Clone)]
pub struct Engine {
    inner: regorus::Engine,
    target: Target,
    over: OverBudget,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Engine {
    /// Parses and audits `sources`, or says everything that is wrong with them.
    pub fn load(sources: &Sources, entrypoint: &Entrypoint) -> Result<Self, Vec<Rejection>> {
        let over = OverBudget::default();
        let mut inner = regorus::Engine::new();
        inner.set_policy_length_config(LENGTHS);
        inner.set_strict_builtin_errors(false);
        inner.set_gather_prints(true);
        for (name, arity, function) in replacements(&over) {
            inner.add_extension(name.to_owned(), arity, function).map_err(|error| engine_fault(&error))?;
        }

        let mut rejections = Vec::new();
        let mut files = Vec::new();
        for module in &sources.modules {
            inner.set_rego_v0(module.version == RegoVersion::V0);
            match inner.add_policy(module.path.clone(), module.text.clone()) {
                Ok(_) => files.push(module.path.as_str()),
                Err(error) => rejections.push(Rejection {
                    file: module.path.clone(),
                    line: 0,
                    code: "rego_parse_error",
                    message: error.to_string().trim().to_owned(),
                }),
            }
        }
        inner.set_rego_v0(false);
        if !rejections.is_empty() {
            return Err(rejections);
        }

        let modules: Vec<NamedModule<'_>> =
            files.into_iter().zip(inner.get_modules().iter().map(AsRef::as_ref)).collect();
        let found = audit(&modules, &sources.data, is_builtin);
        if !found.is_empty() {
            return Err(found);
        }
        let target = match RuleTree::of(&modules).is_rule(entrypoint.segments()) {
            true => Target::Rule(entrypoint.reference()),
            false => Target::Query(entrypoint.reference()),
        };
        inner.add_data(sources.data.clone()).map_err(|error| engine_fault(&error))?;

        // The first query schedules and indexes every rule: better now than in a request. It is trivial, so that an
        // error can only come from the policy itself.
        inner.eval_query("true".to_owned(), false).map_err(|error| engine_fault(&error))?;
        Ok(Self { inner, target, over })
    }

    /// Evaluates the decision; `Value::Undefined` when there is none.
    pub fn eval(&mut self, input: Value, budget: Duration) -> Result<Value, EvalError> {
        self.inner.set_execution_timer_config(ExecutionTimerConfig { limit: budget, check_interval: CHECK_INTERVAL });
        self.inner.set_input(input);
        let started = Instant::now();
        self.over.take();
        let outcome = match &self.target {
            Target::Rule(path) => self.inner.eval_rule(path.clone()),
            Target::Query(query) => self.inner.eval_query(query.clone(), false).map(|results| {
                let first = results.result.into_iter().next();
                first.and_then(|row| row.expressions.into_iter().next()).map_or(Value::Undefined, |e| e.value)
            }),
        };
        // An error in one definition of a function is lost when another definition has a value: ask the limits themselves.
        if outcome.is_ok() && (self.over.take() || started.elapsed() >= budget) {
            return Err(EvalError::Budget);
        }
        outcome.map_err(|error| self.classify(&error))
    }

    /// What `print` said during the last evaluation.
    pub fn take_prints(&mut self) -> Vec<String> {
        self.inner.take_prints().unwrap_or_default()
    }

    /// Evaluates the rule at `path`, such as `data.lib.mfa_test.test_one`; used to run Rego tests.
    pub fn eval_path(&mut self, path: &str) -> Result<Value, EvalError> {
        self.inner.eval_rule(path.to_owned()).map_err(|error| self.classify(&error))
    }

    /// The paths of all rules whose name starts with `test_`.
    pub fn test_rules(&mut self) -> Vec<String> {
        let mut paths = Vec::new();
        for module in self.inner.get_modules().iter() {
            let package = super::refs::package(module);
            for rule in &module.policy {
                let (head, _) = super::refs::static_path(super::refs::head(rule));
                if head.first().is_some_and(|name| name.starts_with("test_")) {
                    paths.push(format!("data.{}.{}", package.join("."), head.join(".")));
                }
            }
        }
        paths
    }

    fn classify(&self, error: &BuiltinErrorInner) -> EvalError {
        let timed_out = error.chain().any(|cause| cause.downcast_ref::<regorus::LimitError>().is_some());
        let text = error.to_string();
        if self.over.take() || timed_out || text.contains("execution exceeded time limit") {
            return EvalError::Budget;
        }
        // regorus has no error codes; its two sentences for OPA's eval_conflict_error are fixed.
        if text.contains("conflicts with") || text.contains("must not produce multiple outputs") {
            return EvalError::Conflict(one_line(&text));
        }
        EvalError::Failed(one_line(&text))
    }
}

/// Whether the engine has the function `name`.
fn is_builtin(name: &str) -> bool {
    name == "print"
        || name == "internal.test_panic" && cfg!(debug_assertions)
        || regorus::unstable::BUILTINS.contains_key(name)
}

/// Calls the engine's own function `name`.
pub fn call_builtin(name: &str, arguments: &[Value]) -> Result<Value, BuiltinErrorInner> {
    use regorus::unstable::{BUILTINS, Expr, Ref, Source, Span};

    let Some((function, _)) = BUILTINS.get(name) else { anyhow::bail!("no built-in function `{name}`") };
    let source = Source::from_contents(name.to_owned(), String::new())?;
    let span = Span { source, line: 1, col: 1, start: 0, end: 0 };
    let place = Ref::new(Expr::Null { span: span.clone(), value: Value::Null, eidx: 0 });
    let places = vec![place; arguments.len()];
    function(&span, &places, arguments, false)
}

/// regorus's errors show the source over several lines; logs want one.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn engine_fault(error: &BuiltinErrorInner) -> Vec<Rejection> {
    vec![Rejection {
        file: "policy".to_owned(),
        line: 0,
        code: "rego_compile_error",
        message: one_line(&error.to_string()),
    }]
}
