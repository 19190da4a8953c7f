//! Limits of checks in flight and of the bytes of their messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::connection_guard::ConnectionState;

/// The part of all bytes that one connection may take.
const CONNECTION_PART: usize = 16;

/// The bounds and what is used of them.
#[derive(Debug)]
pub struct Limits {
    max_checks: usize,
    max_bytes: usize,
    max_incomplete: usize,
    checks: AtomicUsize,
    bytes: AtomicUsize,
    incomplete: AtomicUsize,
}

/// The cost of a check whose message is not complete: its stream and a task.
pub const INCOMPLETE_BYTES: usize = 16 << 10;
/// The part of all incomplete messages that one connection may have.
const INCOMPLETE_PART: usize = 4;

/// A message that is waited for.
#[derive(Debug)]
pub struct Incomplete {
    limits: Arc<Limits>,
    connection: Arc<ConnectionState>,
}

/// A share of the limits, given back when dropped.
#[derive(Debug)]
pub struct Share {
    limits: Arc<Limits>,
    connection: Arc<ConnectionState>,
    bytes: usize,
}

impl Limits {
    pub fn new(max_checks: usize, max_bytes: usize, max_incomplete: usize) -> Self {
        let [checks, bytes, incomplete] = [0, 0, 0].map(AtomicUsize::new);
        Self { max_checks, max_bytes, max_incomplete, checks, bytes, incomplete }
    }

    /// One more message that is waited for, or nothing when there are too many.
    pub fn wait(self: &Arc<Self>, connection: &Arc<ConnectionState>) -> Option<Incomplete> {
        let permit = Incomplete { limits: Arc::clone(self), connection: Arc::clone(connection) };
        let all = self.incomplete.fetch_add(1, Ordering::Relaxed);
        let own = connection.incomplete.fetch_add(1, Ordering::Relaxed);
        let most = self.max_incomplete;
        (all < most && own < (most / INCOMPLETE_PART).max(1)).then_some(permit)
    }

    /// One more check of a connection, or nothing when there are too many.
    pub fn enter(self: &Arc<Self>, connection: &Arc<ConnectionState>) -> Option<Share> {
        // Dropping the share gives the place back, also when there was none.
        let share = Share { limits: Arc::clone(self), connection: Arc::clone(connection), bytes: 0 };
        let others = self.checks.fetch_add(1, Ordering::Relaxed);
        (others < self.max_checks).then_some(share)
    }
}

impl Share {
    /// Takes `more` bytes for this check; false when there are too many in flight, on its connection or on all. A connection that has
    /// nothing else in flight has its message, as far as the total allows.
    pub fn hold(&mut self, more: usize) -> bool {
        self.bytes = self.bytes.saturating_add(more);
        let all = self.limits.bytes.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        let own = self.connection.bytes_in_flight.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        all <= self.limits.max_bytes && (own <= self.limits.max_bytes / CONNECTION_PART || own == self.bytes)
    }
}

impl Drop for Incomplete {
    fn drop(&mut self) {
        self.limits.incomplete.fetch_sub(1, Ordering::Relaxed);
        self.connection.incomplete.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.limits.checks.fetch_sub(1, Ordering::Relaxed);
        self.limits.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.connection.bytes_in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::connection_guard::Quotas;

    #[test]
    fn shares_are_bounded_and_given_back() {
        let limits = Arc::new(Limits::new(2, 1_600, 8));
        let quotas = Arc::new(Quotas::new(1 << 20, 1 << 20));
        let [one, other] = [0, 1].map(|_| ConnectionState::new(Arc::clone(&quotas)));
        let mut first = limits.enter(&one).expect("room");
        let second = limits.enter(&other).expect("room");
        assert!(limits.enter(&one).is_none());
        assert!(limits.enter(&one).is_none(), "a refused check holds no permit");
        drop(second);
        assert!(first.hold(60));
        let mut third = limits.enter(&one).expect("room again");
        assert!(!third.hold(60), "more than a sixteenth for one connection");
        drop(third);
        let mut third = limits.enter(&other).expect("room again");
        assert!(third.hold(1_500), "alone on its connection");
        assert!(!third.hold(60), "more than all may have");
        drop((first, third));
        assert_eq!(limits.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(one.bytes_in_flight.load(Ordering::Relaxed), 0);
        let waiting: Vec<_> = (0..2).map(|_| limits.wait(&one).expect("room")).collect();
        assert!(limits.wait(&one).is_none(), "more than a quarter for one connection");
        assert!(limits.wait(&other).is_some());
        drop(waiting);
        assert_eq!(limits.incomplete.load(Ordering::Relaxed), 0);
    }
}
