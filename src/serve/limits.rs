//! How much may be in flight: checks, and the bytes of their messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bounds and what is used of them.
#[derive(Debug)]
pub struct Limits {
    max_checks: usize,
    max_bytes: usize,
    checks: AtomicUsize,
    bytes: AtomicUsize,
}

/// A share of the limits, given back when dropped.
#[derive(Debug)]
pub struct Share {
    limits: Arc<Limits>,
    bytes: usize,
}

impl Limits {
    pub fn new(max_checks: usize, max_bytes: usize) -> Self {
        Self { max_checks, max_bytes, checks: AtomicUsize::new(0), bytes: AtomicUsize::new(0) }
    }

    /// One more check, or nothing when there are too many.
    pub fn enter(self: &Arc<Self>) -> Option<Share> {
        // Dropping the share gives the place back, also when there was none.
        let share = Share { limits: Arc::clone(self), bytes: 0 };
        let others = self.checks.fetch_add(1, Ordering::Relaxed);
        (others < self.max_checks).then_some(share)
    }
}

impl Share {
    /// Takes `more` bytes for this check; false when there are too many in flight.
    pub fn hold(&mut self, more: usize) -> bool {
        self.bytes = self.bytes.saturating_add(more);
        self.limits.bytes.fetch_add(more, Ordering::Relaxed).saturating_add(more) <= self.limits.max_bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.limits.checks.fetch_sub(1, Ordering::Relaxed);
        self.limits.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_and_given_back() {
        let limits = Arc::new(Limits::new(2, 100));
        let mut first = limits.enter().expect("room");
        let second = limits.enter().expect("room");
        assert!(limits.enter().is_none());
        assert!(limits.enter().is_none(), "a refused check takes no place");
        drop(second);
        let mut third = limits.enter().expect("room again");
        assert!(first.hold(60));
        assert!(!third.hold(60));
        drop(third);
        assert!(first.hold(40));
    }
}
