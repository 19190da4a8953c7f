//! The built-in functions of Rego, by name.
//!
//! Each file names the OPA source that it mirrors. A function gets values and gives a value; what it may do beyond that is
//! in its [`Context`].

mod aggregates;
mod arithmetic;
mod collections;
pub(crate) mod crypto;
mod encoding;
mod http;
mod net;
mod patterns;
mod providers;
mod signatures;
mod strings;
mod time;
mod tokens;
mod units;

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use crate::eval::{EvalError, EvalOptions, steps_per_look};
use crate::host::Host;
use crate::value::{Number, Object, Set, Value};

pub use self::crypto::certificate;
pub use self::encoding::parse_yaml;
pub use self::http::is_cacheable;
pub use self::patterns::{Prepared, glob_prefix};
pub use self::signatures::signature;

/// One function.
#[derive(Debug)]
pub struct Builtin {
    pub name: &'static str,
    pub arity: usize,
    /// Gives any number of results: `walk`.
    pub relation: bool,
    /// The same arguments may give another result.
    pub nondeterministic: bool,
    /// May wait for something outside of the process.
    pub waits: bool,
    pub(crate) run: Run,
}

/// The code of a function.
pub type Run = fn(&mut Context<'_>, &[&Value]) -> Result<Value, BuiltinError>;

/// Why a function has no result.
#[derive(Clone, Debug)]
pub enum BuiltinError {
    /// There is none, and that is no error.
    Undefined,
    /// An operand is of the wrong type.
    Operand(String),
    Failed(String),
    /// The evaluation ends.
    Halt(EvalError),
}

impl fmt::Display for BuiltinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undefined => f.write_str("undefined"),
            Self::Operand(message) | Self::Failed(message) => f.write_str(message),
            Self::Halt(error) => error.fmt(f),
        }
    }
}

impl From<EvalError> for BuiltinError {
    fn from(error: EvalError) -> Self {
        Self::Halt(error)
    }
}

/// A result of a function.
pub type Outcome = Result<Value, BuiltinError>;

/// What functions may use besides their arguments.
pub struct Context<'a> {
    pub host: &'a dyn Host,
    pub strict: bool,
    steps: u64,
    until_look: u64,
    now: Option<i64>,
    /// Results that must stay the same within an evaluation.
    pub(crate) remembered: HashMap<(&'static str, Value), Value>,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl<'a> Context<'a> {
    pub(crate) fn new(host: &'a dyn Host, options: &EvalOptions) -> Self {
        Self {
            host,
            strict: options.strict_builtin_errors,
            steps: options.limits.steps,
            until_look: steps_per_look(),
            now: None,
            remembered: HashMap::new(),
        }
    }

    /// Counts one step.
    #[inline]
    pub(crate) fn step(&mut self) -> Result<(), EvalError> {
        self.until_look = self.until_look.wrapping_sub(1);
        if self.until_look == 0 { self.look() } else { Ok(()) }
    }

    #[cold]
    fn look(&mut self) -> Result<(), EvalError> {
        self.until_look = steps_per_look();
        match self.steps.checked_sub(steps_per_look()) {
            Some(left) => self.steps = left,
            None => return Err(EvalError::budget("steps")),
        }
        if self.host.is_expired() { Err(EvalError::budget("time")) } else { Ok(()) }
    }

    /// Counts `amount` steps of work that a function is about to do.
    pub(crate) fn work(&mut self, amount: usize) -> Result<(), EvalError> {
        let amount = amount as u64;
        if amount < self.until_look {
            self.until_look = self.until_look.wrapping_sub(amount);
            return Ok(());
        }
        match self.steps.checked_sub(amount) {
            Some(left) => self.steps = left,
            None => return Err(EvalError::budget("steps")),
        }
        self.look()
    }

    /// The time of this evaluation, in nanoseconds since the epoch.
    pub(crate) fn now_ns(&mut self) -> i64 {
        *self.now.get_or_insert_with(|| self.host.now_ns())
    }
}

const fn function(name: &'static str, arity: usize, run: Run) -> Builtin {
    Builtin { name, arity, relation: false, nondeterministic: false, waits: false, run }
}

/// A function whose result is not decided by its arguments.
const fn changing(name: &'static str, arity: usize, run: Run) -> Builtin {
    Builtin { name, arity, relation: false, nondeterministic: true, waits: false, run }
}

/// A function that may wait for something outside of the process.
const fn waiting(name: &'static str, arity: usize, run: Run) -> Builtin {
    Builtin { name, arity, relation: false, nondeterministic: true, waits: true, run }
}

/// Functions that the evaluator knows by itself.
const KNOWN: &[Builtin] = &[
    function("print", 0, |_, _| Ok(Value::Bool(true))),
    Builtin {
        name: "walk",
        arity: 1,
        relation: true,
        nondeterministic: false,
        waits: false,
        run: |_, _| Err(BuiltinError::Undefined),
    },
];

/// Lets tests see what a panic while deciding turns into; absent from release builds.
#[cfg(debug_assertions)]
#[expect(clippy::panic, reason = "a panic is what the tests ask for")]
const TESTS: &[Builtin] = &[function("internal.test_panic", 0, |_, _| panic!("a test asked for this panic"))];
#[cfg(not(debug_assertions))]
const TESTS: &[Builtin] = &[];

static TABLES: &[&[Builtin]] = &[
    KNOWN,
    TESTS,
    aggregates::TABLE,
    arithmetic::TABLE,
    collections::TABLE,
    crypto::TABLE,
    encoding::TABLE,
    http::TABLE,
    net::TABLE,
    patterns::TABLE,
    providers::TABLE,
    strings::TABLE,
    time::TABLE,
    tokens::TABLE,
    units::TABLE,
];

static BY_NAME: LazyLock<HashMap<&'static str, &'static Builtin>> =
    LazyLock::new(|| all().map(|builtin| (builtin.name, builtin)).collect());

/// Every function.
pub fn all() -> impl Iterator<Item = &'static Builtin> {
    TABLES.iter().flat_map(|table| table.iter())
}

/// The function `name`.
pub fn named(name: &str) -> Option<&'static Builtin> {
    BY_NAME.get(name).copied()
}

// Operands

/// OPA's words for an operand of the wrong type. Positions count from 1.
fn wrong_type(position: usize, value: &Value, expected: &[&str]) -> BuiltinError {
    let got = value.kind();
    BuiltinError::Operand(match expected {
        [one] => format!("operand {position} must be {one} but got {got}"),
        several => format!("operand {position} must be one of {{{}}} but got {got}", several.join(", ")),
    })
}

/// OPA's words for an item of the wrong type.
fn wrong_item(position: usize, collection: &Value, item: &Value, expected: &[&str]) -> BuiltinError {
    let (kind, got) = (collection.kind(), item.kind());
    BuiltinError::Operand(match expected {
        [one] => format!("operand {position} must be {kind} of {one}s but got {kind} containing {got}"),
        several => format!(
            "operand {position} must be {kind} of (any of) {{{}}} but got {kind} containing {got}",
            several.join(", ")
        ),
    })
}

fn failed(message: impl Into<String>) -> BuiltinError {
    BuiltinError::Failed(message.into())
}

fn operand<'v>(args: &[&'v Value], position: usize) -> Result<&'v Value, BuiltinError> {
    args.get(position.wrapping_sub(1)).copied().ok_or(BuiltinError::Undefined)
}

fn text<'v>(args: &[&'v Value], position: usize) -> Result<&'v str, BuiltinError> {
    let value = operand(args, position)?;
    value.as_str().ok_or_else(|| wrong_type(position, value, &["string"]))
}

fn number<'v>(args: &[&'v Value], position: usize) -> Result<&'v Number, BuiltinError> {
    let value = operand(args, position)?;
    value.as_number().ok_or_else(|| wrong_type(position, value, &["number"]))
}

/// A whole number that fits 64 bits.
fn integer(args: &[&Value], position: usize) -> Result<i64, BuiltinError> {
    number(args, position)?.as_i64().ok_or_else(|| {
        BuiltinError::Operand(format!("operand {position} must be integer number but got floating-point number"))
    })
}

fn boolean(args: &[&Value], position: usize) -> Result<bool, BuiltinError> {
    let value = operand(args, position)?;
    value.as_bool().ok_or_else(|| wrong_type(position, value, &["boolean"]))
}

fn array<'v>(args: &[&'v Value], position: usize) -> Result<&'v [Value], BuiltinError> {
    let value = operand(args, position)?;
    value.as_array().ok_or_else(|| wrong_type(position, value, &["array"]))
}

fn object<'v>(args: &[&'v Value], position: usize) -> Result<&'v Object, BuiltinError> {
    let value = operand(args, position)?;
    value.as_object().ok_or_else(|| wrong_type(position, value, &["object"]))
}

fn set<'v>(args: &[&'v Value], position: usize) -> Result<&'v Set, BuiltinError> {
    let value = operand(args, position)?;
    value.as_set().ok_or_else(|| wrong_type(position, value, &["set"]))
}

/// The items of an array or set.
fn items<'v>(value: &'v Value) -> Option<Box<dyn Iterator<Item = &'v Value> + 'v>> {
    match value {
        Value::Array(items) => Some(Box::new(items.iter())),
        Value::Set(set) => Some(Box::new(set.iter())),
        _ => None,
    }
}

/// The strings of an array or set.
fn texts<'v>(args: &[&'v Value], position: usize) -> Result<Vec<&'v str>, BuiltinError> {
    let value = operand(args, position)?;
    let items = items(value).ok_or_else(|| wrong_type(position, value, &["array", "set"]))?;
    items.map(|item| item.as_str().ok_or_else(|| wrong_item(position, value, item, &["string"]))).collect()
}
