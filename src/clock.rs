//! The only place that reads the time of day. Everything else is handed a `Clock` or a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat};

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
    /// A clock that is fixed at `seconds` since the Unix epoch until a test moves it.
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

/// A length as OPA's metrics have it.
pub fn nanoseconds(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

/// A moment as RFC 3339 writes it, in UTC with nanoseconds.
pub fn rfc3339(ns: i64) -> String {
    DateTime::from_timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// The nanoseconds since the Unix epoch of a moment that RFC 3339 writes so.
pub fn from_rfc3339(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok()?.timestamp_nanos_opt()
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339_says() {
        for (ns, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_827_696_000_000_001, "2000-02-29T12:34:56.000000001Z"),
            (1_767_225_599_999_999_999, "2025-12-31T23:59:59.999999999Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(rfc3339(ns), text);
            assert_eq!(from_rfc3339(text), Some(ns));
        }
        assert_eq!(from_rfc3339("yesterday"), None);
    }
}
