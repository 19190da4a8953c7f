//! Built-in functions that are replaced before a policy meets them: some would run far past any budget, one panics.
//!
//! Each replacement checks the size of the work and then calls the engine's own function.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::engine::{BuiltinError, Extension, call_builtin};
use crate::value::{Value, as_text};

/// Numbers that one `numbers.range` may produce.
const MAX_RANGE: i64 = 500_000;
/// Host bits that one `net.cidr_expand` may enumerate.
const MAX_CIDR_HOST_BITS: u32 = 16;
/// The greatest width or precision in a `sprintf` format.
const MAX_FORMAT_WIDTH: u32 = 10_000;
/// Bytes and braces that a `glob.match` pattern may have.
const MAX_GLOB_BYTES: usize = 4_096;
const MAX_GLOB_BRACES: usize = 8;

/// Raised when a capped function refuses, so that the caller can tell a budget from a mistake.
#[derive(Clone, Debug, Default)]
pub struct OverBudget(Arc<AtomicBool>);

impl OverBudget {
    fn raise(&self, what: &str) -> BuiltinError {
        self.0.store(true, Ordering::Relaxed);
        BuiltinError::over_budget(what)
    }

    /// Whether a function refused since the last call.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// The replacements: name, arity, function.
pub fn replacements(over: &OverBudget) -> Vec<(&'static str, u8, Extension)> {
    let capped = |name: &'static str, check: fn(&[Value]) -> Result<(), &'static str>| -> Extension {
        let over = over.clone();
        Box::new(move |arguments: Vec<Value>| {
            check(&arguments).map_err(|what| over.raise(what))?;
            call_builtin(name, &arguments)
        })
    };
    let mut all = vec![
        ("numbers.range", 2, capped("numbers.range", range)),
        ("net.cidr_expand", 1, capped("net.cidr_expand", cidr_expand)),
        ("sprintf", 2, capped("sprintf", format_widths)),
        ("glob.match", 3, capped("glob.match", glob)),
        ("strings.count", 2, Box::new(|arguments: Vec<Value>| Ok(count(&arguments))) as Extension),
    ];
    if cfg!(debug_assertions) {
        // Lets tests see what a panic while deciding turns into; absent from release builds.
        #[expect(clippy::panic, reason = "a panic is what the tests ask for")]
        all.push(("internal.test_panic", 0, Box::new(|_: Vec<Value>| panic!("a test asked for this panic"))));
    }
    all
}

fn range(arguments: &[Value]) -> Result<(), &'static str> {
    if let [from, to] = arguments
        && let (Ok(from), Ok(to)) = (from.as_i64(), to.as_i64())
        && from.checked_sub(to).is_none_or(|span| span.saturating_abs() > MAX_RANGE)
    {
        return Err("numbers.range over more than 500,000 numbers");
    }
    Ok(())
}

fn cidr_expand(arguments: &[Value]) -> Result<(), &'static str> {
    let Some((address, prefix)) = arguments.first().and_then(as_text).and_then(|cidr| cidr.split_once('/')) else {
        return Ok(());
    };
    let width = if address.contains(':') { 128 } else { 32 };
    match prefix.parse::<u32>() {
        Ok(prefix) if prefix <= width && width.saturating_sub(prefix) > MAX_CIDR_HOST_BITS => {
            Err("net.cidr_expand over more than 65,536 addresses")
        }
        _ => Ok(()),
    }
}

fn format_widths(arguments: &[Value]) -> Result<(), &'static str> {
    let Some(format) = arguments.first().and_then(as_text) else { return Ok(()) };
    let too_wide = format
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .any(|digits| digits.parse::<u32>().is_ok_and(|width| width > MAX_FORMAT_WIDTH) || digits.len() > 10);
    if too_wide && format.contains('%') { Err("sprintf with a width over 10,000") } else { Ok(()) }
}

fn glob(arguments: &[Value]) -> Result<(), &'static str> {
    let Some(pattern) = arguments.first().and_then(as_text) else { return Ok(()) };
    if pattern.len() > MAX_GLOB_BYTES || pattern.matches('{').count() > MAX_GLOB_BRACES {
        return Err("glob.match with a pattern over 4,096 bytes or 8 alternatives");
    }
    Ok(())
}

/// `strings.count`: occurrences that do not overlap; of the empty string, one more than the characters.
fn count(arguments: &[Value]) -> Value {
    match arguments {
        [Value::String(text), Value::String(needle)] if needle.is_empty() => {
            Value::from(text.chars().count().saturating_add(1))
        }
        [Value::String(text), Value::String(needle)] => Value::from(text.matches(&**needle).count()),
        _ => Value::Undefined,
    }
}
