//! The share of the processor that the decision log may use.

use std::time::{Duration, Instant};

/// The share of all processors, in percent, when nothing else is said.
pub const DEFAULT_SHARE: u64 = 10;

/// Rests after work so that work stays within its share.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The rest after each unit of work.
    rest: f64,
}

/// Work that began.
#[derive(Clone, Copy, Debug)]
pub struct Working(Instant);

impl Default for Pace {
    fn default() -> Self {
        Self::of_share(DEFAULT_SHARE)
    }
}

impl Pace {
    /// `percent` of all processors, for one thread.
    pub fn of_share(percent: u64) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let percent = u32::try_from(percent.clamp(1, 100)).unwrap_or(100);
        let cores = f64::from(percent) / 100.0 * f64::from(u32::try_from(processors).unwrap_or(1));
        Self { rest: (1.0 / cores - 1.0).max(0.0) }
    }

    pub fn begin(self) -> Working {
        Working(Instant::now())
    }

    /// Rests for what the work has taken.
    pub async fn end(self, working: Working) {
        let rest = self.rest_after(working.0.elapsed());
        if !rest.is_zero() {
            tokio::time::sleep(rest).await;
        }
    }

    fn rest_after(self, worked: Duration) -> Duration {
        worked.mul_f64(self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_rest_are_the_share() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let worked = Duration::from_millis(10);
        let pace = Pace::of_share(10);
        let all = worked + pace.rest_after(worked);
        let share = worked.as_secs_f64() / all.as_secs_f64();
        let wanted = (0.1 * processors as f64).min(1.0);
        assert!((share - wanted).abs() < 0.01, "{share} of one core, {wanted} wanted");
        assert_eq!(Pace::of_share(100).rest_after(worked), Duration::ZERO);
    }
}
