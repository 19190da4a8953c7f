//! The short way: policies from text, and queries with a host and limits of their own.
//!
//! Everything here is made of [`compile`], [`compile_query`] and [`Policy::eval`], which take data, Rego versions and capabilities.

use std::fmt;

use crate::compile::{CompileError, CompiledQuery, Options, Source, compile, compile_query};
use crate::eval::{EvalError, EvalOptions, Limits, Solution};
use crate::host::{Host, SystemHost};
use crate::policy::Policy;
use crate::syntax::Version;
use crate::value::Value;

/// Every error of a compilation, in the order of files and rows, with OPA's codes and words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileErrors(pub Vec<CompileError>);

impl fmt::Display for CompileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if number > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileErrors {}

impl Policy {
    /// Compiles modules of Rego version 1, each with the path that errors name.
    ///
    /// # Errors
    /// Everything that is wrong with any of the modules.
    pub fn compile<'t>(modules: impl IntoIterator<Item = (&'t str, &'t str)>) -> Result<Self, CompileErrors> {
        let source =
            |(path, text): (&str, &str)| Source { path: path.into(), text: text.to_owned(), version: Version::V1 };
        let sources: Vec<_> = modules.into_iter().map(source).collect();
        compile(&sources, Value::empty_object(), &Options::default()).map_err(CompileErrors)
    }

    /// A query over this policy, such as `data.example.allow` or `x := data.example.roles[_]; x != "admin"`.
    ///
    /// # Errors
    /// The query is no Rego, or names what the policy cannot have.
    pub fn query(&self, text: &str) -> Result<Query<'_>, CompileErrors> {
        let compiled = compile_query(self, text, Version::V1, &[]).map_err(CompileErrors)?;
        Ok(Query { policy: self, compiled, host: &SystemHost, options: EvalOptions::default() })
    }
}

/// A compiled query. Evaluating it any number of times compiles nothing.
pub struct Query<'p> {
    policy: &'p Policy,
    compiled: CompiledQuery,
    host: &'p dyn Host,
    options: EvalOptions,
}

impl fmt::Debug for Query<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<'p> Query<'p> {
    /// Evaluations see the clock, randomness, HTTP and whatever else `host` offers; [`SystemHost`] by default.
    #[must_use]
    pub fn with_host(self, host: &'p dyn Host) -> Self {
        Self { host, ..self }
    }

    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.options.limits = limits;
        self
    }

    /// An error of a built-in function ends the evaluation instead of making its expression undefined.
    #[must_use]
    pub fn with_strict_builtin_errors(mut self) -> Self {
        self.options.strict_builtin_errors = true;
        self
    }

    /// The value of the query's last statement in its first solution; `None` when it is undefined.
    ///
    /// # Errors
    /// A conflict, an error of the host, or a limit.
    pub fn eval(&self, input: &Value) -> Result<Option<Value>, EvalError> {
        Ok(self.solutions(input)?.into_iter().next().and_then(|mut solution| solution.values.pop()))
    }

    /// Every solution: the bindings of the query's variables and the values of its statements.
    ///
    /// # Errors
    /// As of [`Self::eval`].
    pub fn solutions(&self, input: &Value) -> Result<Vec<Solution>, EvalError> {
        let mut found = self.policy.solutions(&self.compiled, Some(input), &self.options, self.host)?;
        found.retain(|solution| self.compiled.is_solution(solution));
        Ok(found)
    }
}
