//! The bounds of one evaluation: how much work it may do, how long it may take, and how much memory it may hold.
//!
//! Work is counted in steps of roughly a hundred instructions; the deadline is polled every [`STEPS_PER_POLL`] of them. Memory is charged before
//! it is allocated, so that a bound is never exceeded by more than [`FREE_BYTES`]; what is freed again before the end of the evaluation is
//! released.

use std::convert::Infallible;

use crate::eval::{EvalError, Limits};
use crate::host::Host;

/// Steps between two polls of the deadline.
pub(crate) const STEPS_PER_POLL: u64 = 256;
/// Bytes that every evaluation may hold without asking the host for them: most need less.
pub const FREE_BYTES: usize = 256 << 10;
/// Bytes that are asked of the host at once, so that it is seldom asked.
const GRANT_BYTES: usize = 256 << 10;

/// The memory of a value in a growing vector: the vector may be half empty, and its old half may still be allocated.
pub(crate) const ITEM_BYTES: usize = 48;
/// The same for a key and its value.
pub(crate) const MEMBER_BYTES: usize = 96;
/// A string beside its bytes, or an array, object or set beside its items: counters, length, measure, and the allocator's rounding.
pub(crate) const HEADER_BYTES: usize = 96;

/// Counts work and memory, and refuses what goes beyond a bound.
pub trait Meter {
    type Error;

    /// Counts `steps` of work that is about to be done.
    fn work(&mut self, steps: usize) -> Result<(), Self::Error>;

    /// Charges `bytes` that are about to be allocated.
    fn allocate(&mut self, bytes: usize) -> Result<(), Self::Error>;

    /// Gives back `bytes` that were charged and are free again.
    fn release(&mut self, bytes: usize);
}

/// For policies and data, which come from operators: no bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unmetered;

impl Meter for Unmetered {
    type Error = Infallible;

    fn work(&mut self, _steps: usize) -> Result<(), Infallible> {
        Ok(())
    }

    fn allocate(&mut self, _bytes: usize) -> Result<(), Infallible> {
        Ok(())
    }

    fn release(&mut self, _bytes: usize) {}
}

/// The meter of one evaluation.
pub(crate) struct EvalMeter<'a> {
    host: &'a dyn Host,
    steps: u64,
    until_poll: u64,
    max_bytes: usize,
    /// Bytes that this evaluation may hold now.
    granted: usize,
    /// Bytes that are granted and not held.
    room: usize,
}

impl<'a> EvalMeter<'a> {
    pub(crate) fn new(host: &'a dyn Host, limits: Limits) -> Self {
        let granted = limits.bytes.min(FREE_BYTES);
        let Limits { steps, bytes: max_bytes } = limits;
        Self { host, steps, until_poll: STEPS_PER_POLL, max_bytes, granted, room: granted }
    }

    /// Bytes that the evaluation holds.
    pub(crate) fn held_bytes(&self) -> usize {
        self.granted.saturating_sub(self.room)
    }

    /// Counts one step.
    #[inline]
    pub(crate) fn step(&mut self) -> Result<(), EvalError> {
        self.until_poll = self.until_poll.wrapping_sub(1);
        if self.until_poll == 0 { self.poll(STEPS_PER_POLL) } else { Ok(()) }
    }

    #[inline]
    pub(crate) fn work(&mut self, steps: usize) -> Result<(), EvalError> {
        let steps = steps as u64;
        if steps < self.until_poll {
            self.until_poll = self.until_poll.wrapping_sub(steps);
            return Ok(());
        }
        self.poll(steps.saturating_add(STEPS_PER_POLL.saturating_sub(self.until_poll)))
    }

    #[cold]
    fn poll(&mut self, done: u64) -> Result<(), EvalError> {
        self.until_poll = STEPS_PER_POLL;
        self.steps = self.steps.checked_sub(done).ok_or_else(EvalError::steps)?;
        if self.host.is_expired() { Err(EvalError::budget("time")) } else { Ok(()) }
    }

    #[inline]
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<(), EvalError> {
        match self.room.checked_sub(bytes) {
            Some(room) => {
                self.room = room;
                Ok(())
            }
            None => self.grow(bytes),
        }
    }

    #[cold]
    fn grow(&mut self, bytes: usize) -> Result<(), EvalError> {
        let missing = bytes.saturating_sub(self.room);
        let left = self.max_bytes.saturating_sub(self.granted);
        if missing > left {
            return Err(EvalError::memory(self.max_bytes));
        }
        let grant = missing.max(GRANT_BYTES).min(left);
        if !self.host.grant_memory(grant) {
            return Err(EvalError::shared_memory());
        }
        self.granted = self.granted.saturating_add(grant);
        self.room = self.room.saturating_add(grant).saturating_sub(bytes);
        Ok(())
    }

    pub(crate) fn release(&mut self, bytes: usize) {
        self.room = self.room.saturating_add(bytes).min(self.granted);
    }
}

impl Drop for EvalMeter<'_> {
    fn drop(&mut self) {
        self.host.memory_held(self.granted.max(FREE_BYTES.min(self.max_bytes)).saturating_sub(self.room));
    }
}
