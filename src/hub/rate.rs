//! A bound on requests per second.

use std::time::Instant;

use parking_lot::Mutex;

/// Requests at once, in seconds of the rate.
const BURST_SECONDS: f64 = 5.0;

/// Requests that are still allowed.
#[derive(Debug)]
pub struct Rate {
    per_second: f64,
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    pub fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: Mutex::new((per_second * BURST_SECONDS, Instant::now())) }
    }

    /// Takes one request; false: there is none left in this second.
    pub fn take(&self) -> bool {
        let mut left = self.left.lock();
        let now = Instant::now();
        let since = now.saturating_duration_since(left.1).as_secs_f64();
        let allowed = (left.0 + since * self.per_second).min(self.per_second * BURST_SECONDS);
        *left = (allowed, now);
        if allowed < 1.0 {
            return false;
        }
        left.0 -= 1.0;
        true
    }
}
