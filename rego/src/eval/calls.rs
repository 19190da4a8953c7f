//! Calls of built-in functions, `print`, and `with`.

use super::exec::Mocking;
use super::{EvalError, Evaluator, Flow, Mocked, Scope, Sink};
use crate::builtins::{Builtin, BuiltinError};
use crate::eval::ErrorKind;
use crate::meter::{HEADER_BYTES, MEMBER_BYTES, Meter as _};
use crate::policy::{Call, MockValue, Op, Override, Replacement, Src};
use crate::syntax::Location;
use crate::value::{FALSE, TRUE, Value, json_bytes};

/// Lines of one `print`.
const MAX_PRINTED_LINES: usize = 1_000;

impl<'a> Evaluator<'a> {
    pub(super) fn builtin(&mut self, call: &'a Call) -> Result<Option<&'a Value>, EvalError> {
        let Call { function, args, at, prepared } = call;
        let at = *at;
        let mut inline: [&'a Value; 4] = [&crate::value::NULL; 4];
        let few = args.len() <= inline.len();
        if few {
            for (slot, src) in inline.iter_mut().zip(args) {
                match self.get(src) {
                    Some(value) => *slot = value,
                    None => return Ok(None),
                }
            }
        }
        let many = if few { Vec::new() } else { self.args(args).unwrap_or_default() };
        let given = if few { inline.get(..args.len()).unwrap_or_default() } else { many.as_slice() };
        if given.len() != args.len() {
            return Ok(None);
        }
        if !self.world.mocks.is_empty()
            && let Some(result) = self.mocked(Mocking::Builtin(function), given, at)?
        {
            return Ok(result);
        }
        if let Some(prepared) = prepared
            && let Some(result) = prepared.run(&mut self.context, given)?
        {
            return Ok(Some(if result { &TRUE } else { &FALSE }));
        }
        self.native(function, given, at)
    }

    fn native(
        &mut self,
        function: &'static Builtin,
        args: &[&'a Value],
        at: Location,
    ) -> Result<Option<&'a Value>, EvalError> {
        let place = |error: EvalError| EvalError {
            at: error.at.clone().or_else(|| self.file.map(|file| (std::sync::Arc::clone(file), at))),
            ..error
        };
        let recorder = if function.nondeterministic { self.context.host.recorder() } else { None };
        let recalled = recorder.and_then(|recorder| recorder.replay(function.name, args));
        let result = match recalled {
            Some(value) => Ok(value),
            None => (function.run)(&mut self.context, args),
        };
        if let (Some(recorder), Ok(value)) = (recorder, &result) {
            recorder.record(function.name, args, value);
        }
        match result {
            Ok(Value::Bool(true)) => Ok(Some(&TRUE)),
            Ok(Value::Bool(false)) => Ok(Some(&FALSE)),
            Ok(value) => self.keep_charged(value).map(Some),
            Err(BuiltinError::Undefined) => Ok(None),
            Err(BuiltinError::Halt(error)) => Err(place(error)),
            Err(_) if !self.context.strict => Ok(None),
            Err(BuiltinError::Operand(message)) => {
                Err(place(EvalError::new(ErrorKind::Type, format!("{}: {message}", function.name))))
            }
            Err(BuiltinError::Failed(message)) => {
                Err(place(EvalError::new(ErrorKind::Builtin, format!("{}: {message}", function.name))))
            }
        }
    }

    /// The value of a replaced function; `None` when it is not replaced.
    pub(super) fn mocked(
        &mut self,
        function: Mocking,
        args: &[&'a Value],
        at: Location,
    ) -> Result<Option<Option<&'a Value>>, EvalError> {
        let found = self.world.mocks.iter().rposition(|it| match (it.mock.of, function) {
            (Replacement::Builtin(a), Mocking::Builtin(b)) => a.name == b.name,
            (Replacement::Rule(a), Mocking::Rule(b)) => a == b,
            _ => false,
        });
        let Some(mocked) = found.and_then(|found| self.world.mocks.get(found)).cloned() else { return Ok(None) };
        let MockValue::Function(by) = &mocked.mock.by else { return Ok(Some(mocked.value)) };
        let group = match by {
            Replacement::Builtin(builtin) => return self.native(builtin, args, at).map(Some),
            Replacement::Rule(group) => *group,
        };
        // Inside the replacement every function is itself again.
        let bytes = Scope::bytes(self.policy);
        self.context.allocate(bytes)?;
        let replaced = self.world.replaced.clone();
        let inner = Scope { replaced, ..Scope::new(self.policy, self.world.input, self.world.data) };
        let outer = std::mem::replace(&mut self.world, inner);
        let result = self.call(group, args, at);
        self.world = outer;
        self.context.release(bytes);
        result.map(Some)
    }

    /// Prints one line for each combination of what the arguments may be.
    pub(super) fn print(&mut self, args: &'a [Src]) -> Result<(), EvalError> {
        let mut lines = vec![String::new()];
        for (position, src) in args.iter().enumerate() {
            let Some(Value::Set(values)) = self.get(src) else { continue };
            // Lines are longer than the JSON text of what they show, but not three times; and they are made twice.
            let mut bytes = 16usize;
            for value in values.iter().take(MAX_PRINTED_LINES) {
                bytes = bytes.saturating_add(json_bytes(value, &mut self.context)?.saturating_mul(6));
            }
            let before = lines.iter().fold(0usize, |sum, line| sum.saturating_add(line.len()));
            let many = values.len().clamp(1, MAX_PRINTED_LINES);
            let bytes = bytes.saturating_mul(lines.len()).saturating_add(before.saturating_mul(many));
            self.context.work(bytes / 64)?;
            self.context.allocate(bytes)?;
            let shown: Vec<String> = match values.len() {
                0 => vec!["<undefined>".to_owned()],
                _ => {
                    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    values.iter().take(MAX_PRINTED_LINES).map(text).collect()
                }
            };
            let space = if position > 0 { " " } else { "" };
            lines = lines
                .iter()
                .flat_map(|line| shown.iter().map(move |text| format!("{line}{space}{text}")))
                .take(MAX_PRINTED_LINES)
                .collect();
        }
        for line in lines {
            if let Some(tracer) = self.context.host.tracer() {
                tracer.print(&line);
            }
        }
        Ok(())
    }

    pub(super) fn with(
        &mut self,
        overrides: &'a [Override],
        ops: &'a [Op],
        outs: &'a [u32],
        rest: &'a [Op],
        sink: Sink<'_, 'a>,
    ) -> Result<Flow, EvalError> {
        let mut input = self.world.input;
        let mut data = self.world.data;
        let mut replaced = self.world.replaced.clone();
        let mut mocks = self.world.mocks.clone();
        for change in overrides {
            match change {
                Override::Input(path, src) => {
                    let Some(value) = self.get(src) else { return Ok(Flow::Continue) };
                    input = Some(self.changed(input, path, value)?);
                }
                Override::Data(path, src) => {
                    let Some(value) = self.get(src) else { return Ok(Flow::Continue) };
                    data = self.changed(Some(data), path, value)?;
                    replaced.push(path);
                }
                Override::Mock(mock) => {
                    let value = match &mock.by {
                        MockValue::Value(src) => match self.get(src) {
                            Some(value) => Some(value),
                            None => return Ok(Flow::Continue),
                        },
                        MockValue::Function(_) => None,
                    };
                    mocks.push(Mocked { mock, value });
                }
            }
        }
        let bytes = Scope::bytes(self.policy);
        self.context.allocate(bytes)?;
        let inner = Scope { replaced, mocks, ..Scope::new(self.policy, input, data) };
        let outer = std::mem::replace(&mut self.world, inner);
        let mut rows: Vec<Vec<Option<&'a Value>>> = Vec::new();
        let result = self.exec(ops, &mut |evaluator| {
            evaluator.context.allocate(outs.len().saturating_mul(16).saturating_add(HEADER_BYTES))?;
            let at = |reg: &u32| evaluator.regs.get(evaluator.base.wrapping_add(*reg as usize)).copied().flatten();
            rows.push(outs.iter().map(at).collect());
            Ok(if outs.is_empty() { Flow::Stop } else { Flow::Continue })
        });
        self.world = outer;
        result?;
        self.context.release(bytes);
        for row in rows {
            for (reg, value) in outs.iter().zip(row) {
                if let Some(value) = value {
                    self.set(*reg, value);
                }
            }
            if self.exec(rest, sink)? == Flow::Stop {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }

    /// The document with the value at `path` replaced; objects on the way are made where they are missing.
    fn changed(
        &mut self,
        document: Option<&'a Value>,
        path: &[Value],
        value: &'a Value,
    ) -> Result<&'a Value, EvalError> {
        let Some((key, below)) = path.split_first() else { return Ok(value) };
        if key.as_str().is_none() {
            return Err(EvalError::new(ErrorKind::Conflict, "bad document path"));
        }
        let inner = self.changed(document.and_then(|document| document.get(key)), below, value)?;
        let members = document.and_then(Value::as_object).map_or(0, crate::value::Object::len).saturating_add(1);
        self.context.work(members)?;
        self.context.allocate(members.saturating_mul(MEMBER_BYTES))?;
        let made = match document {
            Some(Value::Object(object)) => Value::Object(object.with(key.clone(), inner.clone()).into()),
            _ => Value::object(vec![(key.clone(), inner.clone())]),
        };
        self.keep(made)
    }
}
