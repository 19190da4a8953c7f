//! Running compiled code: one evaluation of a policy over an input.
//!
//! Values are pointed at, never copied: those of the policy, the data and the input where they are, those that are made on
//! the way in an arena that ends with the evaluation.

mod calls;
mod documents;
mod exec;
mod groups;

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use typed_arena::Arena;

use crate::builtins::Context;
use crate::compile::CompiledQuery;
use crate::host::Host;
use crate::meter::{HEADER_BYTES, ITEM_BYTES, MEMBER_BYTES, Meter as _};
use crate::policy::{GroupId, Mock, NodeId, Policy, Src};
use crate::syntax::Location;
use crate::value::{Measure, Text, Value};

/// The deepest nesting of rules, functions and loops. It takes less than 8 MiB of stack, even in a build for development.
const MAX_DEPTH: u32 = 1_000;

/// The largest value that an evaluation may make, by [`Value::weight`].
const MAX_WEIGHT: usize = 1 << 25;

/// The deepest value that an evaluation may make: values are compared, written and dropped level by level.
const MAX_VALUE_DEPTH: u32 = 2_000;

/// The candidates of one step.
const WEIGHT_PER_STEP: usize = 256;

/// Registers that every evaluation has room for.
const INITIAL_REGS: usize = 64;
/// A register while the vector of them grows.
const REG_BYTES: usize = 3 * size_of::<Option<&Value>>();

/// The bounds of one evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Operations, and items that loops and built-in functions touch.
    pub steps: u64,
    /// Bytes that it may hold: values that are made on the way, what is remembered, and what functions need while they run.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps: 100_000_000, bytes: 256 << 20 }
    }
}

/// The treatment of errors by an evaluation.
#[derive(Clone, Copy, Debug, Default)]
pub struct EvalOptions {
    pub limits: Limits,
    /// Errors of built-in functions end the evaluation instead of being undefined.
    pub strict_builtin_errors: bool,
}

/// Why an evaluation has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError {
    pub kind: ErrorKind,
    pub message: String,
    /// File, row and column, if known.
    pub at: Option<(std::sync::Arc<str>, Location)>,
}

/// OPA's codes, and our own bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    Conflict,
    Type,
    Builtin,
    WithMerge,
    /// Over a bound: time or depth.
    Budget,
    /// Over the bound of steps: with more of them there might be a result.
    Steps,
    /// It would have to wait for something outside of the process, and must not.
    Waiting,
    /// Over a bound of memory: its own, or that of all evaluations.
    Memory,
    Internal,
}

impl ErrorKind {
    pub fn code(self) -> &'static str {
        match self {
            Self::Conflict => "eval_conflict_error",
            Self::Type => "eval_type_error",
            Self::Builtin => "eval_builtin_error",
            Self::WithMerge => "eval_with_merge_error",
            Self::Budget | Self::Steps | Self::Waiting | Self::Memory => "eval_cancel_error",
            Self::Internal => "eval_internal_error",
        }
    }
}

impl EvalError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), at: None }
    }

    pub fn budget(what: &str) -> Self {
        Self::new(ErrorKind::Budget, format!("over budget: {what}"))
    }

    /// The evaluation took all its steps.
    pub fn steps() -> Self {
        Self::new(ErrorKind::Steps, "over budget: steps")
    }

    /// The evaluation needs more memory than it may hold.
    pub fn memory(limit_bytes: usize) -> Self {
        Self::new(ErrorKind::Memory, format!("over budget: memory, the evaluation needs more than {limit_bytes} bytes"))
    }

    /// The host grants no more memory.
    pub fn shared_memory() -> Self {
        Self::new(ErrorKind::Memory, "over budget: memory, all evaluations together need too much")
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            Some((file, at)) => write!(f, "{file}:{}: {}: {}", at.row, self.kind.code(), self.message),
            None => write!(f, "{}: {}", self.kind.code(), self.message),
        }
    }
}

impl std::error::Error for EvalError {}

/// The search continues after a solution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

/// The action for every solution of a body.
type Sink<'s, 'a> = &'s mut dyn FnMut(&mut Evaluator<'a>) -> Result<Flow, EvalError>;

#[derive(Clone, Copy)]
enum Memo<'a> {
    Unknown,
    Known(Option<&'a Value>),
}

/// A replaced function.
#[derive(Clone)]
struct Mocked<'a> {
    mock: &'a Mock,
    value: Option<&'a Value>,
}

/// The documents and functions, as `with` has changed them, and what was found out under them.
struct Scope<'a> {
    input: Option<&'a Value>,
    data: &'a Value,
    /// Paths under `data` whose rules are replaced.
    replaced: Vec<&'a [Value]>,
    mocks: Vec<Mocked<'a>>,
    memo: Vec<Memo<'a>>,
    keyed: HashMap<(GroupId, &'a Value), Option<&'a Value>, ahash::RandomState>,
    documents: HashMap<NodeId, Option<&'a Value>, ahash::RandomState>,
    /// Calls of functions so far.
    calls: u32,
    /// Cached results of functions by arguments, once there were many calls.
    results: HashMap<(GroupId, Vec<&'a Value>), Option<&'a Value>, ahash::RandomState>,
}

impl<'a> Scope<'a> {
    /// Bytes of a scope for a policy of so many rules.
    fn bytes(policy: &Policy) -> usize {
        policy.groups.len().saturating_mul(size_of::<Memo<'_>>()).saturating_add(4 * HEADER_BYTES)
    }

    fn new(policy: &Policy, input: Option<&'a Value>, data: &'a Value) -> Self {
        Self {
            input,
            data,
            replaced: Vec::new(),
            mocks: Vec::new(),
            memo: vec![Memo::Unknown; policy.groups.len()],
            keyed: HashMap::default(),
            documents: HashMap::default(),
            calls: 0,
            results: HashMap::default(),
        }
    }
}

struct Evaluator<'a> {
    policy: &'a Policy,
    arena: &'a Arena<Value>,
    regs: Vec<Option<&'a Value>>,
    /// Where the present frame begins.
    base: usize,
    world: Scope<'a>,
    context: Context<'a>,
    /// The file of the rule that runs.
    file: Option<&'a std::sync::Arc<str>>,
    depth: u32,
    /// Registers that are charged.
    charged_regs: usize,
}

/// One row of a query's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Solution {
    pub bindings: Vec<(Text, Value)>,
    /// The value of each statement.
    pub values: Vec<Value>,
}

impl Policy {
    /// The document at `path` under `data`; nothing when it is undefined.
    pub fn eval(
        &self,
        path: &[Value],
        input: Option<&Value>,
        options: &EvalOptions,
        host: &dyn Host,
    ) -> Result<Option<Value>, EvalError> {
        let arena = Arena::new();
        let mut evaluator = Evaluator::new(self, &arena, input, options, host);
        let mut node = crate::policy::ROOT;
        let mut rest = path;
        let found = loop {
            let Some(here) = self.nodes.get(node as usize) else { break None };
            if here.group.is_some() || here.dynamic.is_some() || rest.is_empty() {
                break evaluator.document(node)?;
            }
            match rest.split_first().and_then(|(key, after)| Some((here.children.get(key)?, after))) {
                Some((&child, after)) => {
                    node = child;
                    rest = after;
                }
                None => {
                    rest = path;
                    break Some(&self.data);
                }
            }
        };
        Ok(rest.iter().try_fold(found, |value, key| Some(value?.get(key))).flatten().cloned())
    }

    /// All solutions of a compiled query.
    ///
    /// # Errors
    /// A conflict, an error of the host, or a limit.
    pub fn solutions(
        &self,
        query: &CompiledQuery,
        input: Option<&Value>,
        options: &EvalOptions,
        host: &dyn Host,
    ) -> Result<Vec<Solution>, EvalError> {
        let arena = Arena::new();
        let mut evaluator = Evaluator::new(self, &arena, input, options, host);
        evaluator.regs.resize(query.frame as usize, None);
        let mut rows = Vec::new();
        evaluator.exec(&query.ops, &mut |evaluator| {
            let columns = query.shown.len().saturating_add(query.values.len());
            evaluator.context.allocate(columns.saturating_mul(MEMBER_BYTES).saturating_add(2 * HEADER_BYTES))?;
            let bindings = query
                .shown
                .iter()
                .map(|(name, src)| (name.clone(), evaluator.get(src).cloned().unwrap_or_default()))
                .collect();
            let values = query.values.iter().map(|src| evaluator.get(src).cloned().unwrap_or_default()).collect();
            rows.push(Solution { bindings, values });
            Ok(Flow::Continue)
        })?;
        Ok(rows)
    }
}

impl<'a> Evaluator<'a> {
    fn new(
        policy: &'a Policy,
        arena: &'a Arena<Value>,
        input: Option<&'a Value>,
        options: &EvalOptions,
        host: &'a dyn Host,
    ) -> Self {
        Self {
            policy,
            arena,
            regs: Vec::with_capacity(INITIAL_REGS),
            base: 0,
            world: Scope::new(policy, input, &policy.data),
            context: Context::new(host, options),
            file: None,
            depth: 0,
            charged_regs: INITIAL_REGS,
        }
    }

    /// The value at `src`; nothing when it is undefined, or is the input and there is none.
    #[inline]
    fn get(&self, src: &'a Src) -> Option<&'a Value> {
        match src {
            Src::Reg(reg) => self.regs.get(self.base.wrapping_add(*reg as usize)).copied().flatten(),
            Src::Const(value) => Some(value),
            Src::Input => self.world.input,
            Src::Data => Some(self.world.data),
        }
    }

    #[inline]
    fn set(&mut self, reg: u32, value: &'a Value) {
        if let Some(slot) = self.regs.get_mut(self.base.wrapping_add(reg as usize)) {
            *slot = Some(value);
        }
    }

    /// Keeps a value whose items were not charged yet.
    fn keep(&mut self, value: Value) -> Result<&'a Value, EvalError> {
        let bytes = match &value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.len().saturating_mul(size_of::<Value>()),
            Value::Object(object) => object.len().saturating_mul(3 * size_of::<Value>()),
            Value::Set(set) => set.len().saturating_mul(2 * size_of::<Value>()),
            _ => 0,
        };
        self.context.allocate(bytes.saturating_add(HEADER_BYTES))?;
        self.keep_charged(value)
    }

    /// Keeps a value that was charged when it was made.
    fn keep_charged(&mut self, value: Value) -> Result<&'a Value, EvalError> {
        match &value {
            Value::Bool(true) => return Ok(&crate::value::TRUE),
            Value::Bool(false) => return Ok(&crate::value::FALSE),
            Value::Null => return Ok(&crate::value::NULL),
            _ => {}
        }
        self.context.allocate(ITEM_BYTES)?;
        let Measure { weight, depth } = value.measure();
        if weight > MAX_WEIGHT || depth > MAX_VALUE_DEPTH {
            return Err(EvalError::budget("a value grew too large"));
        }
        self.charge(weight)?;
        Ok(self.arena.alloc(value))
    }

    /// The place of an item of an array, as a value.
    fn index(&mut self, at: usize) -> Result<&'a Value, EvalError> {
        static SMALL: LazyLock<Vec<Value>> = LazyLock::new(|| (0..1_024usize).map(Value::from).collect());
        match SMALL.get(at) {
            Some(small) => Ok(small),
            None => self.keep(Value::from(at)),
        }
    }

    /// Counts what it takes to go through values of this weight. Most steps take less time than they are given.
    #[inline]
    fn charge(&mut self, weight: usize) -> Result<(), EvalError> {
        match weight / WEIGHT_PER_STEP {
            0 => Ok(()),
            steps => self.context.work(steps),
        }
    }

    /// Counts one level of nesting; an error ends the evaluation, so that no caller has to unwind it.
    #[inline]
    fn descend(&mut self) -> Result<(), EvalError> {
        if self.depth >= MAX_DEPTH {
            return Err(EvalError::budget("rules, functions and loops are nested too deeply"));
        }
        self.depth = self.depth.saturating_add(1);
        Ok(())
    }

    #[inline]
    fn ascend(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// Runs `run` in a frame of its own.
    fn in_frame<T>(
        &mut self,
        size: u32,
        args: &[&'a Value],
        run: impl FnOnce(&mut Self) -> Result<T, EvalError>,
    ) -> Result<T, EvalError> {
        self.descend()?;
        let outer = self.base;
        let start = self.regs.len();
        self.base = start;
        let end = start.saturating_add((size as usize).max(args.len()));
        if let Some(more) = end.checked_sub(self.charged_regs) {
            self.context.allocate(more.saturating_mul(REG_BYTES))?;
            self.charged_regs = end;
        }
        self.regs.extend(args.iter().map(|arg| Some(*arg)));
        self.regs.resize(end, None);
        let result = run(self);
        self.regs.truncate(start);
        self.base = outer;
        self.ascend();
        result
    }
}
