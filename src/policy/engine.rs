//! One compiled policy: our Rego engine over the sources of a snapshot.
//!
//! The only file that names `stepgate_rego` besides `value.rs`. The policy is immutable and shared by all workers;
//! what an evaluation needs beside it lives as long as the evaluation.

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, Instant};

use stepgate_rego::compile::{Capabilities, Options};
use stepgate_rego::{ErrorKind, EvalOptions, Host, Policy, Source, Version, compile};

use super::entrypoint::Entrypoint;
use super::sources::{RegoVersion, Sources};
use crate::clock::Clock;
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
    Conflict(String),
    #[error("{0}")]
    Failed(String),
}

/// The answer of one evaluation.
#[derive(Debug)]
pub struct Evaluation {
    /// Nothing when no rule gave a decision.
    pub value: Option<Value>,
    /// What `print` said, in order.
    pub prints: Vec<String>,
}

/// A loaded policy, ready to be asked.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    entrypoint: Vec<Value>,
}

impl Engine {
    /// Compiles `sources`, or says everything that is wrong with them.
    pub fn load(sources: &Sources, entrypoint: &Entrypoint) -> Result<Self, Vec<Rejection>> {
        let policy = compile_sources(sources)?;
        let key = |segment: &String| match segment.parse::<u32>() {
            Ok(index) => Value::from(index),
            Err(_) => Value::from(segment),
        };
        Ok(Self { policy, entrypoint: entrypoint.segments().iter().map(key).collect() })
    }

    /// Evaluates the decision.
    pub fn eval(&self, input: &Value, budget: Duration) -> Result<Evaluation, EvalError> {
        self.eval_at(&self.entrypoint, Some(input), budget)
    }

    fn eval_at(&self, path: &[Value], input: Option<&Value>, budget: Duration) -> Result<Evaluation, EvalError> {
        let world = World::lasting(budget);
        let result = self.policy.eval(path, input, &EvalOptions::default(), &world);
        let prints = world.into_prints();
        result.map(|value| Evaluation { value, prints }).map_err(|error| match error.kind {
            ErrorKind::Budget => EvalError::Budget,
            ErrorKind::Conflict => EvalError::Conflict(error.to_string()),
            _ => EvalError::Failed(error.to_string()),
        })
    }

    /// The paths under `data` of all rules whose name starts with `test_`.
    pub fn test_rules(&self) -> Vec<Vec<Value>> {
        let is_test = |path: &[Value]| path.last().and_then(Value::as_str).is_some_and(|it| it.starts_with("test_"));
        self.policy.rule_paths().filter(|(path, _)| is_test(path)).map(|(path, _)| path.to_vec()).collect()
    }

    /// Evaluates the rule at `path` without input; used to run Rego tests.
    pub fn eval_rule(&self, path: &[Value], budget: Duration) -> Result<Evaluation, EvalError> {
        self.eval_at(path, None, budget)
    }
}

/// Compiles `sources`, or says everything that is wrong with them.
pub fn compile_sources(sources: &Sources) -> Result<Policy, Vec<Rejection>> {
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
    let options = Options { capabilities: capabilities(), ..Options::default() };
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

/// Functions that reach out of the process are refused when a policy calls them.
fn capabilities() -> Capabilities {
    let denied = ["http.send", "net.lookup_ip_addr"];
    let why = "it would leave the process while a request waits, and this version has no switch to allow it";
    Capabilities { denied: denied.into_iter().map(|name| (name.to_owned(), why.to_owned())).collect(), allowed: None }
}

/// What one evaluation sees of the world.
#[derive(Debug)]
pub struct World {
    end: Instant,
    prints: RefCell<Vec<String>>,
}

impl World {
    /// A world that ends after `budget`.
    pub fn lasting(budget: Duration) -> Self {
        Self { end: Instant::now() + budget, prints: RefCell::default() }
    }

    /// What `print` said, in order.
    pub fn into_prints(self) -> Vec<String> {
        self.prints.into_inner()
    }
}

impl Host for World {
    fn now_ns(&self) -> i64 {
        Clock::System.now_ns()
    }

    fn is_expired(&self) -> bool {
        Instant::now() >= self.end
    }

    fn print(&self, line: &str) {
        self.prints.borrow_mut().push(line.to_owned());
    }

    fn random(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(16) {
            let random = uuid::Uuid::new_v4().into_bytes();
            chunk.iter_mut().zip(random).for_each(|(byte, random)| *byte = random);
        }
    }
}
