//! The replay cache of DPoP proofs and single-use tokens.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac::{Key as MacKey, sign as mac};
use parking_lot::Mutex;

use super::own_key::own_key;

/// Why something does not count as seen for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// It has been seen before.
    Replayed,
    /// Too much is remembered already.
    CacheFull,
}

/// The replay cache. An entry is kept until it expires; when the cache is full, new proofs and tokens are rejected.
pub struct ReplayCache {
    key: MacKey,
    /// Seconds that one generation lasts.
    span: i64,
    /// In both generations together.
    room: usize,
    generations: Mutex<Generations>,
    started: Instant,
}

impl std::fmt::Debug for ReplayCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen").field("span", &self.span).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Generations {
    /// When the younger generation began, by the clock and by how long the process had run.
    began: i64,
    since: Duration,
    now: HashSet<[u8; 16]>,
    before: HashSet<[u8; 16]>,
}

impl ReplayCache {
    /// Remembers each thing for at least `span`, and `room` of them.
    pub fn new(span: Duration, room: usize) -> Self {
        let span = i64::try_from(span.as_secs()).unwrap_or(i64::MAX / 4).max(1);
        Self { key: own_key(), span, room, generations: Mutex::default(), started: Instant::now() }
    }

    /// Remembers what these parts name, when it is seen for the first time. `now` is in seconds since the epoch.
    pub fn first(&self, parts: &[&str], now: i64) -> Result<(), ReplayError> {
        self.first_after(parts, now, self.started.elapsed())
    }

    /// The same, when the process has run so long. Nothing is forgotten unless both clocks say that it is old: one that is set
    /// may go forth and back, and what was forgotten meanwhile would be good again.
    fn first_after(&self, parts: &[&str], now: i64, elapsed: Duration) -> Result<(), ReplayError> {
        let mut message = Vec::new();
        for part in parts {
            message.extend_from_slice(&(part.len() as u64).to_be_bytes());
            message.extend_from_slice(part.as_bytes());
        }
        let mut id = [0; 16];
        id.copy_from_slice(mac(&self.key, &message).as_ref().get(..16).unwrap_or(&[0; 16]));
        let mut generations = self.generations.lock();
        let passed = now.saturating_sub(generations.began);
        let ran = i64::try_from(elapsed.saturating_sub(generations.since).as_secs()).unwrap_or(i64::MAX);
        let (age, is_unused) = (passed.min(ran), generations.now.is_empty() && passed > 0);
        if age >= self.span || is_unused {
            let is_all_old = age >= self.span.saturating_mul(2);
            let last = std::mem::take(&mut generations.now);
            let before = match (is_all_old, is_unused) {
                (true, _) => HashSet::new(),
                // There is nothing younger than what was kept so far.
                (false, true) => std::mem::take(&mut generations.before),
                (false, false) => last,
            };
            *generations = Generations { began: now, since: elapsed, now: HashSet::new(), before };
        }
        if generations.before.contains(&id) || generations.now.contains(&id) {
            return Err(ReplayError::Replayed);
        }
        if generations.now.len().saturating_add(generations.before.len()) >= self.room {
            return Err(ReplayError::CacheFull);
        }
        generations.now.insert(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_counts_once_as_long_as_it_is_worth_something() {
        let seen = ReplayCache::new(Duration::from_secs(120), 3);
        assert_eq!(seen.first(&["k", "u", "1"], 1_000), Ok(()));
        for later in [1_000, 1_060, 1_119, 900] {
            assert_eq!(seen.first(&["k", "u", "1"], later), Err(ReplayError::Replayed), "{later}");
        }
        assert_eq!(seen.first(&["k", "u1", ""], 1_000), Ok(()), "another proof");
        assert_eq!(seen.first(&["k", "u", "2"], 1_000), Ok(()));
        assert_eq!(seen.first(&["k", "u", "3"], 1_000), Err(ReplayError::CacheFull), "nothing is forgotten for room");
        let later = |now, seconds| seen.first_after(&["k", "u", "1"], now, Duration::from_secs(seconds));
        assert_eq!(later(1_400, 400), Ok(()), "such a proof is refused for its age");
    }

    #[test]
    fn a_clock_that_goes_forth_and_back_makes_nothing_good_again() {
        let seen = ReplayCache::new(Duration::from_secs(120), 10);
        let first = |id: &str, now, seconds| seen.first_after(&[id], now, Duration::from_secs(seconds));
        assert_eq!(first("a", 10_000, 0), Ok(()));
        assert_eq!(first("b", 13_600, 1), Ok(()), "an hour ahead");
        assert_eq!(first("a", 10_002, 2), Err(ReplayError::Replayed), "and back");
        assert_eq!(first("a", 6_400, 3), Err(ReplayError::Replayed), "an hour behind");
        assert_eq!(first("b", 10_004, 4), Err(ReplayError::Replayed));
        // Long after, by both clocks.
        assert_eq!(first("c", 14_000, 400), Ok(()));
        assert_eq!(first("d", 14_400, 800), Ok(()));
        assert_eq!(first("a", 14_800, 1_200), Ok(()));
    }
}
