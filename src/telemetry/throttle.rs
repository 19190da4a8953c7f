//! Lines that anybody can provoke.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The interval of log lines of one kind; metrics count each event.
const PAUSE: Duration = Duration::from_secs(10);

/// Lets one line of a kind through in ten seconds, so that clients cannot fill a disk with log lines.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When the last one was let through, and how many were withheld since.
    told: Mutex<(Option<Instant>, u64)>,
}

impl Throttle {
    /// A line is due now; with the number of suppressed ones.
    pub fn due(&self, now: Instant) -> Option<u64> {
        let mut told = self.told.lock();
        let (last, withheld) = &mut *told;
        if last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            *withheld = withheld.saturating_add(1);
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_let_through_now_and_then() {
        let (throttle, begin) = (Throttle::default(), Instant::now());
        let due = |seconds| throttle.due(begin + Duration::from_secs(seconds));
        assert_eq!([due(0), due(1), due(9), due(10), due(11)], [Some(0), None, None, Some(2), None]);
    }
}
