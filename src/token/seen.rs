//! What counts once.

use std::collections::HashSet;
use std::time::Duration;

use aws_lc_rs::hmac::{HMAC_SHA256, Key as MacKey, sign as mac};
use aws_lc_rs::rand::SystemRandom;
use parking_lot::Mutex;

/// Why something does not count as seen for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It has been seen before.
    Again,
    /// Too much is remembered already.
    NoRoom,
}

/// What has been seen. Nothing is forgotten before it has lost its worth; when there is no room, nothing new is taken.
pub struct Seen {
    key: MacKey,
    /// Seconds that one generation lasts.
    span: i64,
    /// In both generations together.
    room: usize,
    generations: Mutex<Generations>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen").field("span", &self.span).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Generations {
    number: i64,
    now: HashSet<[u8; 16]>,
    before: HashSet<[u8; 16]>,
}

impl Seen {
    /// Remembers each thing for at least `span`, and `room` of them.
    pub fn new(span: Duration, room: usize) -> Self {
        let span = i64::try_from(span.as_secs()).unwrap_or(i64::MAX / 4).max(1);
        let key = MacKey::generate(HMAC_SHA256, &SystemRandom::new()).expect("the system gives random bytes");
        Self { key, span, room, generations: Mutex::default() }
    }

    /// Remembers what these parts name, when it is seen for the first time. `now` is in seconds since the epoch.
    pub fn first(&self, parts: &[&str], now: i64) -> Result<(), Unfit> {
        let mut message = Vec::new();
        for part in parts {
            message.extend_from_slice(&(part.len() as u64).to_be_bytes());
            message.extend_from_slice(part.as_bytes());
        }
        let mut id = [0; 16];
        id.copy_from_slice(mac(&self.key, &message).as_ref().get(..16).unwrap_or(&[0; 16]));
        let number = now.div_euclid(self.span);
        let mut generations = self.generations.lock();
        // A clock that is set back forgets nothing.
        if number > generations.number {
            let before = if number == generations.number.saturating_add(1) {
                std::mem::take(&mut generations.now)
            } else {
                HashSet::new()
            };
            *generations = Generations { number, now: HashSet::new(), before };
        }
        if generations.before.contains(&id) || generations.now.contains(&id) {
            return Err(Unfit::Again);
        }
        if generations.now.len().saturating_add(generations.before.len()) >= self.room {
            return Err(Unfit::NoRoom);
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
        let seen = Seen::new(Duration::from_secs(120), 3);
        assert_eq!(seen.first(&["k", "u", "1"], 1_000), Ok(()));
        for later in [1_000, 1_060, 1_119, 900] {
            assert_eq!(seen.first(&["k", "u", "1"], later), Err(Unfit::Again), "{later}");
        }
        assert_eq!(seen.first(&["k", "u1", ""], 1_000), Ok(()), "another proof");
        assert_eq!(seen.first(&["k", "u", "2"], 1_000), Ok(()));
        assert_eq!(seen.first(&["k", "u", "3"], 1_000), Err(Unfit::NoRoom), "nothing is forgotten for room");
        assert_eq!(seen.first(&["k", "u", "1"], 1_400), Ok(()), "such a proof is refused for its age");
    }
}
