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

use crate::eval::{EvalError, EvalOptions};
use crate::host::Host;
use crate::meter::{EvalMeter, HEADER_BYTES, ITEM_BYTES, MEMBER_BYTES, Meter};
use crate::value::{Number, Object, Set, Value, chunks, json_bytes, metered, write_value};

pub use self::crypto::certificate;
pub use self::encoding::{DuplicateKey, parse_yaml, parse_yaml_configuration};
pub use self::http::is_cacheable;
pub(crate) use self::patterns::{Prepared, glob_prefix};
pub(crate) use self::signatures::signature;

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
pub(crate) type Run = fn(&mut Context<'_>, &[&Value]) -> Result<Value, BuiltinError>;

/// Why a function has no result.
#[derive(Clone, Debug)]
pub(crate) enum BuiltinError {
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
pub(crate) type Outcome = Result<Value, BuiltinError>;

/// The context of functions besides their arguments.
pub struct Context<'a> {
    pub host: &'a dyn Host,
    pub strict: bool,
    meter: EvalMeter<'a>,
    now: Option<i64>,
    /// Results that must stay the same within an evaluation.
    remembered: HashMap<(&'static str, Value), Value>,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Meter for Context<'_> {
    type Error = EvalError;

    #[inline]
    fn work(&mut self, steps: usize) -> Result<(), EvalError> {
        self.meter.work(steps)
    }

    #[inline]
    fn allocate(&mut self, bytes: usize) -> Result<(), EvalError> {
        self.meter.allocate(bytes)
    }

    #[inline]
    fn release(&mut self, bytes: usize) {
        self.meter.release(bytes);
    }
}

impl<'a> Context<'a> {
    pub(crate) fn new(host: &'a dyn Host, options: &EvalOptions) -> Self {
        Self {
            host,
            strict: options.strict_builtin_errors,
            meter: EvalMeter::new(host, options.limits),
            now: None,
            remembered: HashMap::new(),
        }
    }

    /// Counts one step.
    #[inline]
    pub(crate) fn step(&mut self) -> Result<(), EvalError> {
        self.meter.step()
    }

    /// Bytes that the evaluation holds.
    pub(crate) fn held_bytes(&self) -> usize {
        self.meter.held_bytes()
    }

    /// The time of this evaluation, in nanoseconds since the epoch.
    pub(crate) fn now_ns(&mut self) -> i64 {
        *self.now.get_or_insert_with(|| self.host.now_ns())
    }

    /// The cached result of a function for these arguments in this evaluation.
    pub(crate) fn remembered(&self, key: &(&'static str, Value)) -> Option<Value> {
        self.remembered.get(key).cloned()
    }

    /// Keeps what a function gives for these arguments until the evaluation ends.
    pub(crate) fn remember(&mut self, key: (&'static str, Value), value: Value) -> Result<(), EvalError> {
        self.allocate(2 * MEMBER_BYTES)?;
        self.remembered.insert(key, value);
        Ok(())
    }

    // Making values: each is charged before it is made.

    /// A copy of `text`.
    pub(crate) fn text(&mut self, text: &str) -> Outcome {
        self.work(text.len() / 256 + 1)?;
        self.allocate(text.len().saturating_add(HEADER_BYTES))?;
        Ok(Value::from(text))
    }

    /// The string of at most `bytes` bytes that `make` gives. `make` works through them once.
    pub(crate) fn made_text(&mut self, bytes: usize, make: impl FnOnce() -> String) -> Outcome {
        let passing = bytes.saturating_mul(3);
        self.work(bytes / 64)?;
        self.allocate(passing.saturating_add(HEADER_BYTES))?;
        let made = Value::from(make());
        self.release(passing.saturating_sub(made.as_str().map_or(0, str::len)));
        Ok(made)
    }

    /// The string that `append` makes of `parts`, piece by piece; `append` adds at most `factor` bytes for each that it is given.
    pub(crate) fn mapped_text<'t>(
        &mut self,
        parts: impl Iterator<Item = &'t str>,
        factor: usize,
        mut append: impl FnMut(&mut String, &'t str),
    ) -> Outcome {
        let mut out = TextBuilder::new(self)?;
        for part in parts {
            for chunk in chunks(part, CHUNK_BYTES) {
                out.reserve(self, chunk.len().saturating_mul(factor))?;
                append(out.text(), chunk);
            }
        }
        out.finish(self)
    }

    /// Adds an item to a list.
    pub(crate) fn push(&mut self, items: &mut Vec<Value>, item: Value) -> Result<(), EvalError> {
        self.step()?;
        self.allocate(ITEM_BYTES)?;
        items.push(item);
        Ok(())
    }

    /// Adds a member to a list of members.
    pub(crate) fn push_member(
        &mut self,
        members: &mut Vec<(Value, Value)>,
        member: (Value, Value),
    ) -> Result<(), EvalError> {
        self.step()?;
        self.allocate(MEMBER_BYTES)?;
        members.push(member);
        Ok(())
    }

    /// The items as a list of their own.
    pub(crate) fn copied<'v>(&mut self, items: impl Iterator<Item = &'v Value>) -> Result<Vec<Value>, EvalError> {
        let mut list = Vec::new();
        for item in items {
            self.push(&mut list, item.clone())?;
        }
        Ok(list)
    }

    pub(crate) fn array(&mut self, items: Vec<Value>) -> Outcome {
        self.work(items.len() / 32)?;
        self.allocate(HEADER_BYTES)?;
        Ok(Value::array(items))
    }

    pub(crate) fn set(&mut self, items: Vec<Value>) -> Outcome {
        self.allocate(HEADER_BYTES)?;
        Ok(metered::set(self, items)?)
    }

    pub(crate) fn object(&mut self, members: Vec<(Value, Value)>) -> Outcome {
        self.allocate(HEADER_BYTES)?;
        Ok(metered::object(self, members)?)
    }

    /// The JSON text of a value, which is let go again soon: nothing stays charged for it.
    pub(crate) fn passing_json(&mut self, value: &Value) -> Result<String, EvalError> {
        let bytes = json_bytes(value, self)?;
        let passing = bytes.saturating_mul(2);
        self.allocate(passing)?;
        let mut out = String::with_capacity(bytes);
        write_value(value, &mut out, self)?;
        self.release(passing);
        Ok(out)
    }
}

/// Bytes of a text that are worked through between two polls of the deadline.
pub(crate) const CHUNK_BYTES: usize = 16 << 10;

/// A string that grows, charged before it does.
pub(crate) struct TextBuilder {
    text: String,
    charged: usize,
}

impl TextBuilder {
    pub(crate) fn new(context: &mut Context<'_>) -> Result<Self, EvalError> {
        context.allocate(HEADER_BYTES)?;
        Ok(Self { text: String::new(), charged: 0 })
    }

    /// Makes room for `bytes` more, and counts the work of adding them.
    pub(crate) fn reserve(&mut self, context: &mut Context<'_>, bytes: usize) -> Result<(), EvalError> {
        // It grows by doubling, and is copied once it is complete.
        let wanted = self.text.len().saturating_add(bytes).saturating_mul(3);
        context.work(bytes / 64 + 1)?;
        if let Some(more) = wanted.checked_sub(self.charged) {
            context.allocate(more)?;
            self.charged = wanted;
        }
        Ok(())
    }

    /// Adds `text`.
    pub(crate) fn push(&mut self, context: &mut Context<'_>, text: &str) -> Result<(), EvalError> {
        self.reserve(context, text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    /// Adds `text` many times.
    pub(crate) fn push_repeated(
        &mut self,
        context: &mut Context<'_>,
        text: &str,
        times: usize,
    ) -> Result<(), EvalError> {
        self.reserve(context, text.len().saturating_mul(times))?;
        (0..times).for_each(|_| self.text.push_str(text));
        Ok(())
    }

    /// Adds a value as OPA prints it.
    pub(crate) fn push_value(&mut self, context: &mut Context<'_>, value: &Value) -> Result<(), EvalError> {
        match value {
            Value::String(text) => self.push(context, text),
            other => {
                // Printing escapes more characters than JSON does, and puts spaces after commas.
                let bytes = json_bytes(other, context)?.saturating_mul(3);
                self.reserve(context, bytes)?;
                self.text.push_str(&other.to_string());
                Ok(())
            }
        }
    }

    /// The text, to add what room was made for.
    pub(crate) fn text(&mut self) -> &mut String {
        &mut self.text
    }

    pub(crate) fn finish(self, context: &mut Context<'_>) -> Outcome {
        let value = Value::from(self.text);
        context.release(self.charged.saturating_sub(value.as_str().map_or(0, str::len)));
        Ok(value)
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
    // The compiler writes it into tests with cases.
    function("internal.test_case", 1, |context, args| {
        if let (Some(tracer), Some(path)) = (context.host.tracer(), args.first()) {
            tracer.test_case(path);
        }
        Ok(Value::Bool(true))
    }),
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
pub(crate) fn named(name: &str) -> Option<&'static Builtin> {
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

/// The first place of `part` in `text`.
fn find(context: &mut Context<'_>, text: &str, part: &str) -> Result<Option<usize>, EvalError> {
    strings::Needle::new(context, part)?.find(context, text, 0)
}

/// The beginning of a text that an error shows: errors are not charged.
fn excerpt(text: &str) -> &str {
    text.get(..text.floor_char_boundary(MAX_SHOWN_BYTES)).unwrap_or(text)
}

/// Bytes of a text that an error shows.
const MAX_SHOWN_BYTES: usize = 256;

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
fn texts<'v>(context: &mut Context<'_>, args: &[&'v Value], position: usize) -> Result<Vec<&'v str>, BuiltinError> {
    let value = operand(args, position)?;
    let mut texts = Vec::new();
    for item in items(value).ok_or_else(|| wrong_type(position, value, &["array", "set"]))? {
        context.step()?;
        context.allocate(ITEM_BYTES)?;
        texts.push(item.as_str().ok_or_else(|| wrong_item(position, value, item, &["string"]))?);
    }
    Ok(texts)
}
