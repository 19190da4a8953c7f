//! `# METADATA` comments, for `rego.metadata.rule` and `rego.metadata.chain`.

use std::sync::Arc;

use super::CompileError;
use crate::syntax::{Module, Rule};
use crate::value::Value;

/// The annotations of all modules.
#[derive(Debug, Default)]
pub struct Annotations {}

impl Annotations {
    pub fn read(_modules: &[(Arc<str>, Module)]) -> Result<Self, Vec<CompileError>> {
        Ok(Self {})
    }

    /// What `rego.metadata.rule()` and `rego.metadata.chain()` give in `rule` of the module at `module`.
    pub fn of(&self, _module: usize, _rule: &Rule) -> (Value, Value) {
        (Value::empty_object(), Value::array(Vec::new()))
    }
}
