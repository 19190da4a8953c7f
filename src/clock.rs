//! The only place that reads the time of day. Everything else is handed a `Clock` or a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where "now" comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system's time.
    #[default]
    System,
    /// A time that tests set and move.
    Fixed(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stands at `seconds` since the Unix epoch until a test moves it.
    pub fn fixed(seconds: i64) -> Self {
        Self::Fixed(Arc::new(AtomicI64::new(seconds)))
    }

    /// Seconds since the Unix epoch; zero when the system's clock stands before it.
    pub fn now(&self) -> i64 {
        match self {
            Self::System => i64::try_from(since_epoch().as_secs()).unwrap_or_default(),
            Self::Fixed(seconds) => seconds.load(Ordering::Relaxed),
        }
    }

    /// Nanoseconds since the Unix epoch.
    pub fn now_ns(&self) -> i64 {
        match self {
            Self::System => i64::try_from(since_epoch().as_nanos()).unwrap_or_default(),
            Self::Fixed(seconds) => seconds.load(Ordering::Relaxed).saturating_mul(1_000_000_000),
        }
    }

    /// Moves a fixed clock forward; the system's clock is left alone.
    pub fn advance(&self, seconds: i64) {
        if let Self::Fixed(now) = self {
            now.fetch_add(seconds, Ordering::Relaxed);
        }
    }
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
