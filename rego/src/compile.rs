//! Modules to a policy that can be asked: names, safety, rules by path, code.

mod annotations;
mod check;
pub(crate) mod hir;
mod lower;
mod reads;
mod recursion;
mod resolve;
mod safety;
mod tree;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use self::hir::{Function, Root, Term};
use crate::builtins::{self, Builtin};
use crate::policy::Policy;
use crate::syntax::{self, Location, Version};
use crate::value::Value;

pub(crate) use self::check::Types;
pub use self::lower::{CompiledQuery, compile_query};
pub use self::reads::Reads;

/// Why a policy is refused: OPA's code, place and words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CompileError {
    /// Such as `rego_unsafe_var_error`.
    pub code: &'static str,
    pub file: Arc<str>,
    pub at: Location,
    pub message: String,
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.file, self.at.row, self.code, self.message)
    }
}

/// One file of a policy.
#[derive(Clone, Debug)]
pub struct Source {
    pub path: Arc<str>,
    pub text: String,
    pub version: Version,
}

/// The capabilities of a policy.
#[derive(Clone, Debug, Default)]
pub struct Capabilities {
    /// Functions that are refused when a policy calls them, with what to say about it.
    pub denied: HashMap<String, String>,
    /// Only these functions, when there is a list.
    pub allowed: Option<HashSet<String>>,
}

/// Options of the compiler.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub capabilities: Capabilities,
    /// Data under a rule's path is refused.
    pub data_conflicts: DataConflicts,
    /// Evaluations report every statement to the host ([`crate::Tracer::visit`]).
    pub traced: bool,
    /// Refuses imports, arguments and assigned variables that nothing uses (`opa check --strict`).
    pub strict: bool,
    /// Every definition of a test is a rule of its own, `test_x#01` after `test_x`, as `opa test` has it: one that holds hides no other.
    pub separate_tests: bool,
}

/// The treatment of data at the path of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataConflicts {
    #[default]
    Refuse,
    /// Both are merged; where they meet, the data counts.
    Merge,
}

/// Compiles `sources` over `data`, or says everything that is wrong with them.
pub fn compile(sources: &[Source], data: Value, options: &Options) -> Result<Policy, Vec<CompileError>> {
    let mut errors = Vec::new();
    let mut modules = Vec::new();
    for source in sources {
        match syntax::parse_module(&source.text, source.version) {
            Ok(module) => modules.push((source.path.clone(), module)),
            Err(error) => errors.push(CompileError {
                code: "rego_parse_error",
                file: source.path.clone(),
                at: error.at,
                message: error.message,
            }),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    if options.separate_tests {
        separate_tests(&mut modules);
    }
    tree::build(&modules, data, options)
}

/// A rule of this name is a test.
pub fn is_test_name(name: &str) -> bool {
    name.starts_with("test_") || name.starts_with("todo_test_")
}

/// Gives every definition of a test but the first of its name in a package a name of its own.
fn separate_tests(modules: &mut [(Arc<str>, syntax::Module)]) {
    let mut counts: HashMap<Vec<Arc<str>>, usize> = HashMap::new();
    for (_, module) in modules {
        for rule in module.rules.iter_mut().filter(|rule| !rule.is_default) {
            let Some((first, rest)) = rule.head.path.split_first_mut() else { continue };
            let syntax::TermKind::Var(name) = &mut first.kind else { continue };
            if !is_test_name(name) {
                continue;
            }
            // Cases with constant names are parts of one test.
            let case = rest.iter().map_while(|term| match &term.kind {
                syntax::TermKind::String(text) => Some(Arc::clone(text)),
                _ => None,
            });
            let path = module.package.iter().chain([&*name]).cloned().chain(case).collect();
            let count = counts.entry(path).or_default();
            if *count > 0 {
                *name = format!("{name}#{count:02}").into();
            }
            *count = count.saturating_add(1);
        }
    }
}

/// Functions that version 0 still has.
const DEPRECATED: &[&str] = &[
    "all",
    "any",
    "cast_array",
    "cast_boolean",
    "cast_null",
    "cast_object",
    "cast_set",
    "cast_string",
    "net.cidr_overlap",
    "re_match",
    "set_diff",
];

/// The names of one module.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    pub file: Arc<str>,
    /// The checks of version 1: nothing shadows `input` or `data`, and deprecated functions are gone.
    pub strict: bool,
    pub package: Vec<Value>,
    /// First names of the rules of the package, in all its files.
    pub rules: &'a HashSet<Arc<str>>,
    pub imports: HashMap<Arc<str>, (Root, Vec<Term>)>,
    /// Those of them that something has used.
    pub used: RefCell<HashSet<Arc<str>>>,
    pub shared: &'a Shared,
}

/// The state shared by all modules.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// The number of arguments of every function, by its path.
    pub arities: HashMap<Vec<Value>, usize>,
    /// The paths of all rules.
    pub paths: HashSet<Vec<Value>>,
    pub capabilities: Capabilities,
    /// As [`Options::strict`].
    pub refuses_unused: bool,
}

impl Names<'_> {
    /// The meaning of a name that no variable hides: an import or a rule of the package.
    pub(crate) fn global(&self, name: &str) -> Option<(Root, Vec<Term>)> {
        if let Some((import, path)) = self.imports.get_key_value(name) {
            self.used.borrow_mut().insert(import.clone());
            return Some(path.clone());
        }
        self.rules.contains(name).then(|| {
            let path = self.package.iter().cloned().chain([Value::from(name)]);
            (Root::Data, path.map(Term::Const).collect())
        })
    }

    pub(crate) fn builtin(&self, name: &str) -> Option<&'static Builtin> {
        let capabilities = &self.shared.capabilities;
        let internal = name.starts_with("internal.");
        if (self.strict && DEPRECATED.contains(&name))
            || capabilities.denied.contains_key(name)
            || capabilities.allowed.as_ref().is_some_and(|allowed| !internal && !allowed.contains(name))
        {
            return None;
        }
        builtins::named(name)
    }

    /// Why `name` cannot be called.
    pub(crate) fn refusal(&self, name: &str) -> String {
        match self.shared.capabilities.denied.get(name) {
            Some(why) => format!("unsafe built-in function calls in expression: {name}: {why}"),
            None if self.strict && DEPRECATED.contains(&name) => {
                format!("deprecated built-in function calls in expression: {name}")
            }
            None => format!("undefined function {name}"),
        }
    }

    pub(crate) fn arity(&self, function: &Function) -> Option<usize> {
        match function {
            Function::Builtin(builtin) => Some(builtin.arity),
            Function::Rule(path) => {
                let arity = self.shared.arities.get(&**path).copied();
                // A rule can be called without arguments.
                arity.or_else(|| self.shared.paths.contains(&**path).then_some(0))
            }
        }
    }

    pub(crate) fn is_function(&self, path: &[Value]) -> bool {
        self.shared.arities.contains_key(path)
    }

    /// `path` leads into the value of a rule.
    pub(crate) fn is_inside_rule(&self, path: &[Value]) -> bool {
        (1..path.len()).any(|len| path.get(..len).is_some_and(|prefix| self.shared.paths.contains(prefix)))
    }
}
