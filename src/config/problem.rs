//! Problems of a configuration, each with its key and a hint.

use std::collections::HashSet;
use std::fmt;

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Such as `plugins.stepgate.issuers[0].audiences`.
    pub path: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// All problems: errors stop the start, warnings do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    pub errors: Vec<Problem>,
    pub warnings: Vec<Problem>,
}

impl Problems {
    pub fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(Problem { path: path.into(), message: message.into() });
    }

    /// Adds later findings, except about keys that have an error already: those are consequences of it.
    pub fn add_new(&mut self, later: Self) {
        let known: HashSet<String> = self.errors.iter().map(|problem| problem.path.clone()).collect();
        let is_new = |problem: &Problem| !known.contains(&problem.path);
        self.errors.extend(later.errors.into_iter().filter(is_new));
        self.warnings.extend(later.warnings.into_iter().filter(is_new));
    }

    pub fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Problem { path: path.into(), message: message.into() });
    }
}
