//! The deadline of a check.

use std::time::Duration;

use tokio::time::Instant;

use super::fault::Fault;

/// When a check came, and how long its answer is of use.
#[derive(Clone, Copy, Debug)]
pub struct CheckDeadline {
    pub arrived: Instant,
    pub deadline: Instant,
    /// The caller's own deadline comes before `limits.check_timeout`.
    pub is_callers: bool,
}

impl CheckDeadline {
    /// From now on.
    pub fn of(length: Duration) -> Self {
        let arrived = Instant::now();
        Self { arrived, deadline: arrived + length, is_callers: false }
    }

    /// The same, with a deadline that the caller has set.
    pub fn of_caller(length: Duration) -> Self {
        Self { is_callers: true, ..Self::of(length) }
    }

    /// The outcome of a check that exceeded its deadline.
    pub fn exceeded(&self) -> Fault {
        if self.is_callers { Fault::CallerDeadline } else { Fault::CheckTimeout }
    }

    /// The check was queued for more than 75 % of its time, so that too little is left to answer it. The client of a
    /// shed check still receives the denial, and checks behind it do not wait for an answer that would be late as well. Less would deny
    /// what was only throttled: a limit of 0.1 CPU stops a process for 90 of 100 ms.
    pub fn is_stale(&self) -> bool {
        self.arrived.elapsed() > self.deadline.saturating_duration_since(self.arrived) / 4 * 3
    }
}
