//! A compiled regular expression and what matching with it costs.
//!
//! A match cannot be interrupted. Its cost is bounded beforehand: where all states of the pattern's automaton are few, by the length of the
//! text; else by that length times the states of the nondeterministic automaton, which is what the crate `regex` goes through at worst.

use regex::{Regex, RegexBuilder};
use regex_automata::dfa::dense;
use regex_automata::nfa::thompson;

use super::super::{BuiltinError, Context};
use crate::eval::EvalError;
use crate::meter::Meter as _;

/// Bytes that a pattern of the policy may take when it is compiled.
const MAX_TRUSTED_BYTES: usize = 16 << 20;
/// Bytes that a pattern may take which is only known when it is evaluated: compiling it cannot be interrupted.
const MAX_COMPILED_BYTES: usize = 512 << 10;
/// Bytes of a deterministic automaton that is small: building it is tried once for each pattern.
const MAX_SMALL_TRUSTED_BYTES: usize = 1 << 20;
const MAX_SMALL_BYTES: usize = 64 << 10;
/// Bytes that the crate `regex` may take for the states that it builds while it matches.
const MAX_CACHE_BYTES: usize = 256 << 10;
/// States of the nondeterministic automaton that one step goes through.
const STATES_PER_STEP: usize = 16;
/// Bytes that one step of a small deterministic automaton reads.
const BYTES_PER_STEP: usize = 32;
/// Steps of one match; beyond, it is refused.
const MAX_MATCH_STEPS: usize = 200_000;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
    states: usize,
    is_small: bool,
    /// Bytes that it takes, roughly: automata for both directions, and the states that are built while it matches.
    bytes: usize,
}

impl Pattern {
    /// Compiles a pattern in the words of the crate `regex` that the policy itself contains.
    pub fn trusted(translated: &str) -> Result<Self, String> {
        Self::with_limits(translated, MAX_TRUSTED_BYTES, MAX_SMALL_TRUSTED_BYTES, MAX_TRUSTED_BYTES)
    }

    /// Compiles any other pattern.
    pub fn untrusted(translated: &str) -> Result<Self, String> {
        Self::with_limits(translated, MAX_COMPILED_BYTES, MAX_SMALL_BYTES, MAX_CACHE_BYTES)
    }

    fn with_limits(translated: &str, limit: usize, small: usize, cache: usize) -> Result<Self, String> {
        let regex = RegexBuilder::new(translated)
            .size_limit(limit)
            .dfa_size_limit(cache)
            .nest_limit(200)
            .build()
            .map_err(|error| error.to_string())?;
        let config = thompson::Config::new().nfa_size_limit(Some(limit)).which_captures(thompson::WhichCaptures::None);
        let automaton =
            thompson::Compiler::new().configure(config).build(translated).map_err(|error| error.to_string())?;
        let small = dense::Config::new().dfa_size_limit(Some(small)).determinize_size_limit(Some(small));
        let is_small = dense::Builder::new().configure(small).build_from_nfa(&automaton).is_ok();
        let bytes = automaton.memory_usage().saturating_mul(4).saturating_add(16 << 10);
        Ok(Self { regex, states: automaton.states().len(), is_small, bytes })
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The compiled pattern, once a search through `bytes` of text is charged.
    pub fn charged(&self, context: &mut Context<'_>, bytes: usize) -> Result<&Regex, EvalError> {
        let steps =
            if self.is_small { bytes / BYTES_PER_STEP } else { bytes.saturating_mul(self.states) / STATES_PER_STEP };
        self.charge(context, steps)
    }

    /// Charges one more search, which goes at most through the `bytes` of text that are left and seldom so far.
    pub fn charge_next(&self, context: &mut Context<'_>, bytes: usize) -> Result<(), EvalError> {
        let steps = if self.is_small { bytes / 256 } else { bytes.saturating_mul(self.states) / 4_096 };
        context.work(steps.saturating_add(2))
    }

    /// The compiled pattern, once a search for its groups through `bytes` of text is charged: that always goes through the nondeterministic
    /// automaton.
    pub fn charged_for_groups(&self, context: &mut Context<'_>, bytes: usize) -> Result<&Regex, EvalError> {
        self.charge(context, bytes.saturating_mul(self.states) / STATES_PER_STEP)
    }

    fn charge(&self, context: &mut Context<'_>, steps: usize) -> Result<&Regex, EvalError> {
        if steps > MAX_MATCH_STEPS {
            return Err(EvalError::budget("a regular expression is too large for so long a text"));
        }
        context.work(steps.saturating_add(4))?;
        Ok(&self.regex)
    }
}

/// Charges the compilation of a pattern that is not remembered: what it may come to at worst.
pub(super) fn charge_compilation(context: &mut Context<'_>, pattern: &str) -> Result<(), BuiltinError> {
    context.work(pattern.len().saturating_add(1_000))?;
    // Classes of letters and repetitions multiply.
    let is_plain =
        !pattern.contains('{') && !pattern.contains("\\p") && !pattern.contains("\\P") && !pattern.contains("(?");
    let automata = if is_plain { pattern.len().saturating_mul(PLAIN_BYTES) } else { usize::MAX };
    let tree = pattern.len().saturating_mul(TREE_BYTES);
    let bytes = automata.min(MAX_COMPILED_BYTES.saturating_mul(3)).saturating_add(tree);
    context.allocate(bytes)?;
    context.release(bytes);
    Ok(())
}

/// Bytes of the syntax tree for each character of a pattern.
const TREE_BYTES: usize = 256;
/// Bytes of the automata for each character of a pattern without repetitions and large classes.
const PLAIN_BYTES: usize = 2_048;
