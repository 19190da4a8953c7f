//! The operations, one after the other.

use super::{EvalError, Evaluator, Flow, Sink};
use crate::builtins::{Builtin, BuiltinError};
use crate::compile::hir::Collection;
use crate::eval::ErrorKind;
use crate::meter::{HEADER_BYTES, ITEM_BYTES, MEMBER_BYTES, Meter as _};
use crate::policy::{Comparison, Op, Src};
use crate::value::{Value, metered};

impl<'a> Evaluator<'a> {
    /// Runs `ops`, calling `sink` with every solution.
    pub(super) fn exec(&mut self, ops: &'a [Op], sink: Sink<'_, 'a>) -> Result<Flow, EvalError> {
        self.descend()?;
        let flow = self.run(ops, sink)?;
        self.ascend();
        Ok(flow)
    }

    #[inline]
    fn run(&mut self, ops: &'a [Op], sink: Sink<'_, 'a>) -> Result<Flow, EvalError> {
        let mut rest = ops;
        while let Some((op, after)) = rest.split_first() {
            rest = after;
            self.context.step()?;
            match op {
                Op::Fail => return Ok(Flow::Continue),
                Op::Get { from, key, to, base } => {
                    let (Some(from), Some(key)) = (self.get(from), self.get(key)) else { return Ok(Flow::Continue) };
                    self.charge(key.weight())?;
                    let found = if *base { base_member(from, key) } else { from.get(key) };
                    let Some(value) = found else { return Ok(Flow::Continue) };
                    self.set(*to, value);
                }
                Op::Path { from, path, to, base } => {
                    let step: fn(&'a Value, &Value) -> Option<&'a Value> =
                        if *base { base_member } else { |at, key| at.get(key) };
                    let found = self.get(from).and_then(|from| path.iter().try_fold(from, step));
                    let Some(value) = found else { return Ok(Flow::Continue) };
                    self.set(*to, value);
                }
                Op::Truth(src) => match self.get(src) {
                    Some(value) if !value.is_false() => {}
                    _ => return Ok(Flow::Continue),
                },
                Op::Compare(comparison, left, right) => {
                    let (Some(left), Some(right)) = (self.get(left), self.get(right)) else {
                        return Ok(Flow::Continue);
                    };
                    if !self.compare(*comparison, left, right)? {
                        return Ok(Flow::Continue);
                    }
                }
                Op::ArrayLen(src, len) => match self.get(src) {
                    Some(Value::Array(items)) if items.len() == *len => {}
                    _ => return Ok(Flow::Continue),
                },
                Op::ObjectLen(src, len) => match self.get(src) {
                    Some(Value::Object(object)) if object.len() == *len => {}
                    _ => return Ok(Flow::Continue),
                },
                Op::Array(..) | Op::Set(..) | Op::Object(..) => {
                    if !self.construct(op)? {
                        return Ok(Flow::Continue);
                    }
                }
                Op::Collect { kind, ops, key, value, to } => {
                    let made = self.collect(*kind, ops, key.as_ref(), value)?;
                    let made = self.keep_charged(made)?;
                    self.set(*to, made);
                }
                Op::Not(ops) => {
                    if self.exists(ops)? {
                        return Ok(Flow::Continue);
                    }
                }
                Op::Every { over, key, value, ops } => {
                    if !self.every(over, *key, *value, ops)? {
                        return Ok(Flow::Continue);
                    }
                }
                Op::Builtin { call, to } => {
                    let Some(value) = self.builtin(call)? else { return Ok(Flow::Continue) };
                    self.set(*to, value);
                }
                Op::BuiltinTest(call) => match self.builtin(call)? {
                    Some(value) if !value.is_false() => {}
                    _ => return Ok(Flow::Continue),
                },
                Op::Function { group, args, to, at } => {
                    let Some(args) = self.args(args) else { return Ok(Flow::Continue) };
                    let Some(value) = self.call(*group, &args, *at)? else { return Ok(Flow::Continue) };
                    self.set(*to, value);
                }
                Op::Visit(place) => {
                    if let Some(tracer) = self.context.host.tracer() {
                        tracer.visit(place);
                    }
                }
                Op::Print { args } => self.print(args)?,
                Op::Rule { group, to } => {
                    let Some(value) = self.rule(*group)? else { return Ok(Flow::Continue) };
                    self.set(*to, value);
                }
                Op::Keyed { group, key, to } => {
                    let Some(key) = self.get(key) else { return Ok(Flow::Continue) };
                    let Some(value) = self.keyed(*group, key)? else { return Ok(Flow::Continue) };
                    self.set(*to, value);
                }
                Op::Document { node, to } => {
                    let Some(value) = self.document(*node)? else { return Ok(Flow::Continue) };
                    self.set(*to, value);
                }
                Op::Scan { over, key, value } => {
                    let Some(over) = self.get(over) else { return Ok(Flow::Continue) };
                    return self.scan(over, *key, *value, rest, sink);
                }
                Op::Walk { over, path, value } => {
                    let Some(over) = self.get(over) else { return Ok(Flow::Continue) };
                    return self.walk(over, *path, *value, rest, sink);
                }
                Op::Dynamic { node, operands, to } => {
                    return self.dynamic(*node, operands, *to, &mut |evaluator| evaluator.exec(rest, sink));
                }
                Op::With { overrides, ops, outs } => return self.with(overrides, ops, outs, rest, sink),
            }
        }
        sink(self)
    }

    pub(super) fn exists(&mut self, ops: &'a [Op]) -> Result<bool, EvalError> {
        let mut found = false;
        self.exec(ops, &mut |_| {
            found = true;
            Ok(Flow::Stop)
        })?;
        Ok(found)
    }

    pub(super) fn args(&self, args: &'a [Src]) -> Option<Vec<&'a Value>> {
        args.iter().map(|src| self.get(src)).collect()
    }

    fn construct(&mut self, op: &'a Op) -> Result<bool, EvalError> {
        let (value, to) = match op {
            Op::Array(items, to) => {
                let Some(items) = self.values(items)? else { return Ok(false) };
                (self.context.array(items).map_err(halted)?, *to)
            }
            Op::Set(items, to) => {
                let Some(items) = self.values(items)? else { return Ok(false) };
                (self.context.set(items).map_err(halted)?, *to)
            }
            Op::Object(members, to) => {
                self.context.allocate(members.len().saturating_mul(MEMBER_BYTES))?;
                let mut pairs: Vec<(Value, Value)> = Vec::with_capacity(members.len());
                for (key, value) in members {
                    let (Some(key), Some(value)) = (self.get(key), self.get(value)) else { return Ok(false) };
                    pairs.push((key.clone(), value.clone()));
                }
                (self.context.object(pairs).map_err(halted)?, *to)
            }
            _ => return Ok(true),
        };
        let value = self.keep_charged(value)?;
        self.set(to, value);
        Ok(true)
    }

    fn values(&mut self, items: &'a [Src]) -> Result<Option<Vec<Value>>, EvalError> {
        self.context.allocate(items.len().saturating_mul(ITEM_BYTES))?;
        Ok(items.iter().map(|src| self.get(src).cloned()).collect())
    }

    fn collect(
        &mut self,
        kind: Collection,
        ops: &'a [Op],
        key: Option<&'a Src>,
        value: &'a Src,
    ) -> Result<Value, EvalError> {
        if kind == Collection::Object {
            let mut members: Vec<(Value, Value)> = Vec::new();
            self.exec(ops, &mut |evaluator| {
                let key = key.and_then(|key| evaluator.get(key));
                if let (Some(key), Some(value)) = (key, evaluator.get(value)) {
                    evaluator.context.allocate(MEMBER_BYTES)?;
                    members.push((key.clone(), value.clone()));
                }
                Ok(Flow::Continue)
            })?;
            return self.unique(members);
        }
        let mut items: Vec<Value> = Vec::new();
        self.exec(ops, &mut |evaluator| {
            if let Some(value) = evaluator.get(value) {
                evaluator.context.allocate(ITEM_BYTES)?;
                items.push(value.clone());
            }
            Ok(Flow::Continue)
        })?;
        let made = if kind == Collection::Set { self.context.set(items) } else { self.context.array(items) };
        made.map_err(halted)
    }

    /// An object of members whose keys must not have different values.
    fn unique(&mut self, members: Vec<(Value, Value)>) -> Result<Value, EvalError> {
        let members = metered::sort_by_key(&mut self.context, members, |(key, _)| key)?;
        for pair in members.windows(2) {
            let [(a, x), (b, y)] = pair else { continue };
            self.context.step()?;
            if metered::equal(&mut self.context, a, b)? && !metered::equal(&mut self.context, x, y)? {
                return Err(EvalError::new(ErrorKind::Conflict, "object keys must be unique"));
            }
        }
        self.context.object(members).map_err(halted)
    }

    fn compare(&mut self, comparison: Comparison, left: &Value, right: &Value) -> Result<bool, EvalError> {
        let context = &mut self.context;
        Ok(match comparison {
            Comparison::Equal => metered::equal(context, left, right)?,
            Comparison::NotEqual => !metered::equal(context, left, right)?,
            Comparison::Less => metered::compare(context, left, right)?.is_lt(),
            Comparison::LessOrEqual => metered::compare(context, left, right)?.is_le(),
            Comparison::Greater => metered::compare(context, left, right)?.is_gt(),
            Comparison::GreaterOrEqual => metered::compare(context, left, right)?.is_ge(),
        })
    }

    fn every(&mut self, over: &'a Src, key: u32, value: u32, ops: &'a [Op]) -> Result<bool, EvalError> {
        let mut holds = true;
        let mut check = |evaluator: &mut Self, item_key: &'a Value, item: &'a Value| {
            evaluator.context.step()?;
            evaluator.set(key, item_key);
            evaluator.set(value, item);
            holds = evaluator.exists(ops)?;
            Ok::<bool, EvalError>(holds)
        };
        match self.get(over) {
            Some(Value::Array(items)) => {
                for (at, item) in items.iter().enumerate() {
                    let at = self.index(at)?;
                    if !check(self, at, item)? {
                        break;
                    }
                }
            }
            Some(Value::Object(object)) => {
                for (item_key, item) in object.iter() {
                    if !check(self, item_key, item)? {
                        break;
                    }
                }
            }
            Some(Value::Set(set)) => {
                for item in set.iter() {
                    if !check(self, item, item)? {
                        break;
                    }
                }
            }
            _ => return Ok(false),
        }
        Ok(holds)
    }

    pub(super) fn scan(
        &mut self,
        over: &'a Value,
        key: Option<u32>,
        value: u32,
        rest: &'a [Op],
        sink: Sink<'_, 'a>,
    ) -> Result<Flow, EvalError> {
        match over {
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    if let Some(key) = key {
                        let at = self.index(at)?;
                        self.set(key, at);
                    }
                    self.set(value, item);
                    if self.exec(rest, sink)? == Flow::Stop {
                        return Ok(Flow::Stop);
                    }
                }
            }
            Value::Object(object) => {
                for (member, item) in object.iter() {
                    if let Some(key) = key {
                        self.set(key, member);
                    }
                    self.set(value, item);
                    if self.exec(rest, sink)? == Flow::Stop {
                        return Ok(Flow::Stop);
                    }
                }
            }
            Value::Set(set) => {
                for item in set.iter() {
                    if let Some(key) = key {
                        self.set(key, item);
                    }
                    self.set(value, item);
                    if self.exec(rest, sink)? == Flow::Stop {
                        return Ok(Flow::Stop);
                    }
                }
            }
            _ => {}
        }
        Ok(Flow::Continue)
    }

    fn walk(
        &mut self,
        over: &'a Value,
        path: Option<u32>,
        value: u32,
        rest: &'a [Op],
        sink: Sink<'_, 'a>,
    ) -> Result<Flow, EvalError> {
        // The path to where the walk is, and for each of its levels what is still to be visited there.
        let mut here: Vec<Value> = Vec::new();
        let mut levels: Vec<Children<'a>> = Vec::new();
        let mut found = over;
        loop {
            self.context.step()?;
            if let Some(reg) = path {
                self.context.allocate(here.len().saturating_mul(size_of::<Value>()).saturating_add(HEADER_BYTES))?;
                self.context.work(here.len() / 16)?;
                let made = self.keep_charged(Value::array(here.clone()))?;
                self.set(reg, made);
            }
            self.set(value, found);
            if self.exec(rest, sink)? == Flow::Stop {
                return Ok(Flow::Stop);
            }
            self.context.allocate(3 * (size_of::<Children<'_>>() + size_of::<Value>()))?;
            levels.push(Children::of(found));
            here.push(Value::Null);
            let next = loop {
                let Some(level) = levels.last_mut() else { break None };
                match level.next() {
                    Some(next) => break Some(next),
                    None => {
                        levels.pop();
                        here.pop();
                        self.context.release(3 * (size_of::<Children<'_>>() + size_of::<Value>()));
                    }
                }
            };
            let Some((key, item)) = next else { return Ok(Flow::Continue) };
            if let Some(last) = here.last_mut() {
                *last = key;
            }
            found = item;
        }
    }
}

/// A function that may be replaced.
#[derive(Clone, Copy)]
pub(super) enum Mocking {
    Builtin(&'static Builtin),
    Rule(u32),
}

/// A member of base data. References into it are paths of OPA's store, which are texts: a number finds the string key that spells it, and
/// a text that spells a whole number finds an item.
pub(super) fn base_member<'v>(at: &'v Value, key: &Value) -> Option<&'v Value> {
    at.get(key).or_else(|| match (at, key) {
        (Value::Object(object), Value::Number(number)) => object.get_str(&number.to_string()),
        (Value::Array(items), Value::String(text)) => {
            let index = text.parse::<usize>().ok().filter(|index| index.to_string() == text.as_str())?;
            items.get(index)
        }
        _ => None,
    })
}

/// Functions that only build values fail by ending the evaluation.
pub(super) fn halted(error: BuiltinError) -> EvalError {
    match error {
        BuiltinError::Halt(error) => error,
        other => EvalError::new(ErrorKind::Internal, other.to_string()),
    }
}

/// The values that a walk has still to visit, with their keys.
enum Children<'a> {
    Array(std::iter::Enumerate<std::slice::Iter<'a, Value>>),
    Object(std::slice::Iter<'a, (Value, Value)>),
    Set(std::slice::Iter<'a, Value>),
    Nothing,
}

impl<'a> Children<'a> {
    fn of(value: &'a Value) -> Self {
        match value {
            Value::Array(items) => Self::Array(items.iter().enumerate()),
            Value::Object(object) => Self::Object(object.as_slice().iter()),
            Value::Set(set) => Self::Set(set.iter()),
            _ => Self::Nothing,
        }
    }

    fn next(&mut self) -> Option<(Value, &'a Value)> {
        match self {
            Self::Array(items) => items.next().map(|(at, item)| (Value::from(at), item)),
            Self::Object(members) => members.next().map(|(key, item)| (key.clone(), item)),
            Self::Set(items) => items.next().map(|item| (item.clone(), item)),
            Self::Nothing => None,
        }
    }
}
