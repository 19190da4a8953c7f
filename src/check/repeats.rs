//! Whether a demand for stronger authentication gets anywhere.
//!
//! A provider that cannot do what is asked sends the client back with another token that is no better, and the client
//! would go on for ever. The third different token within two minutes that does not satisfy the same demand ends that.
//! What counts are verified tokens, so that one stolen token, or many requests with the same one, lock nobody out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;

use crate::token::Verified;

/// How long an attempt counts.
pub const WINDOW_SECONDS: i64 = 120;
/// Different tokens that are challenged; the next one is refused.
const MAX_CHALLENGED: usize = 2;
/// Demands that are remembered; 100 bytes each. Beyond, further ones are challenged as often as they come.
const MAX_DEMANDS: usize = 50_000;

/// One caller (issuer and subject), one method and one class of resources.
type Key = [u8; 32];
/// A token, by what was signed.
type Digest = [u8; 32];

/// Tokens that did not satisfy a demand, each with when that was.
type Attempts = Vec<(Digest, i64)>;

/// Remembers which tokens did not satisfy a demand.
#[derive(Debug, Default)]
pub struct Repeats {
    demands: Mutex<HashMap<Key, Attempts>>,
    /// How many there are, for checks that have nothing to forget.
    count: AtomicUsize,
}

impl Repeats {
    /// Says that a token does not satisfy the demand on a resource; true when it is one too many.
    pub fn is_one_too_many(&self, verified: &Verified, resource: &Resource<'_>, now: i64) -> bool {
        let Some(key) = key(verified, resource) else { return false };
        let mut demands = self.demands.lock();
        if demands.len() >= MAX_DEMANDS && !demands.contains_key(&key) {
            demands.retain(|_, attempts| attempts.iter().any(|&(_, at)| is_recent(at, now)));
            self.count.store(demands.len(), Ordering::Release);
            if demands.len() >= MAX_DEMANDS {
                return false;
            }
        }
        let attempts = demands.entry(key).or_default();
        attempts.retain(|&(_, at)| is_recent(at, now));
        let token = verified.digest();
        let is_known = attempts.iter().any(|&(known, _)| known == token);
        let is_one_too_many = !is_known && attempts.len() >= MAX_CHALLENGED;
        if !is_known && !is_one_too_many {
            attempts.push((token, now));
        }
        self.count.store(demands.len(), Ordering::Release);
        is_one_too_many
    }

    /// Says that a token was good enough: whatever was tried before is forgotten.
    pub fn satisfied(&self, verified: &Verified, resource: &Resource<'_>) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let Some(key) = key(verified, resource) else { return };
        let mut demands = self.demands.lock();
        demands.remove(&key);
        self.count.store(demands.len(), Ordering::Release);
    }
}

/// What a demand is about.
#[derive(Clone, Copy, Debug)]
pub struct Resource<'a> {
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
}

impl Resource<'_> {
    /// The first segment of the path: below it are resources of one kind.
    fn class(&self) -> &str {
        let path = self.path.split(['?', '#']).next().unwrap_or_default();
        path.split('/').find(|segment| !segment.is_empty()).unwrap_or_default()
    }
}

fn is_recent(at: i64, now: i64) -> bool {
    (0..WINDOW_SECONDS).contains(&now.saturating_sub(at))
}

fn key(verified: &Verified, resource: &Resource<'_>) -> Option<Key> {
    let mut context = Context::new(&SHA256);
    let host = resource.host.to_ascii_lowercase();
    for part in [verified.issuer(), verified.subject(), resource.method, &host, resource.class()] {
        context.update(&part.len().to_be_bytes());
        context.update(part.as_bytes());
    }
    context.finish().as_ref().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::verified_for_tests;

    const PAY: Resource<'_> = Resource { method: "POST", host: "api", path: "/pay/1?x" };

    fn verified(subject: &str, number: u32) -> std::sync::Arc<Verified> {
        // Whatever makes the token another one.
        verified_for_tests(&serde_json::json!({"sub": subject, "jti": number.to_string()}), |_| {})
    }

    #[test]
    fn the_third_different_token_is_one_too_many() {
        let repeats = Repeats::default();
        for _ in 0..6 {
            assert!(!repeats.is_one_too_many(&verified("ann", 1), &PAY, 0), "the same one, again and again");
        }
        assert!(!repeats.is_one_too_many(&verified("ann", 2), &PAY, 60));
        assert!(repeats.is_one_too_many(&verified("ann", 3), &PAY, 119));
        assert!(repeats.is_one_too_many(&verified("ann", 3), &Resource { path: "/pay/2", ..PAY }, 119), "of one kind");
        assert!(!repeats.is_one_too_many(&verified("ann", 1), &PAY, 119), "the first may still come");
        for (who, what) in [
            ("bob", PAY),
            ("ann", Resource { path: "/read", ..PAY }),
            ("ann", Resource { method: "GET", ..PAY }),
            ("ann", Resource { host: "other", ..PAY }),
        ] {
            assert!(!repeats.is_one_too_many(&verified(who, 3), &what, 119), "{who} {what:?}");
        }
        assert!(!repeats.is_one_too_many(&verified("ann", 3), &PAY, 120), "the first no longer counts");
    }

    #[test]
    fn a_token_that_is_good_enough_starts_afresh() {
        let repeats = Repeats::default();
        repeats.satisfied(&verified("ann", 9), &PAY);
        for token in [1, 2] {
            assert!(!repeats.is_one_too_many(&verified("ann", token), &PAY, 0));
        }
        repeats.satisfied(&verified("ann", 9), &PAY);
        assert!(!repeats.is_one_too_many(&verified("ann", 3), &PAY, 0));
    }

    #[test]
    fn memory_is_bounded() {
        let repeats = Repeats::default();
        let one = verified("ann", 1);
        for number in 0..MAX_DEMANDS {
            repeats.is_one_too_many(&one, &Resource { path: &format!("/{number}"), ..PAY }, 0);
        }
        repeats.is_one_too_many(&one, &PAY, 0);
        assert_eq!(repeats.demands.lock().len(), MAX_DEMANDS);
        repeats.is_one_too_many(&one, &PAY, WINDOW_SECONDS);
        assert_eq!(repeats.demands.lock().len(), 1, "what is over is forgotten");
    }
}
