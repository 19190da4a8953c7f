//! Detection of loops of step-up challenges.
//!
//! A provider that cannot do what is asked sends the client back with another token that is no better, and the client
//! would go on for ever. The third different token within two minutes that answers a challenge and does not satisfy the same demand ends
//! that. A token answers a challenge if its holder authenticated after it (`auth_time`, else `iat`): devices with sessions of their own
//! are no loop. Only verified tokens count, so one stolen token, or many requests with the same one, cannot lock a subject out.
//!
//! Everything is kept by caller and demand, both of which are ours to say: what a client writes into paths and hosts makes
//! nothing grow.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use moka::sync::Cache;
use parking_lot::Mutex;

use crate::opa::decision::StepUp;
use crate::token::Verified;

/// The window in which an attempt counts.
pub const WINDOW_SECONDS: i64 = 120;
/// Different tokens that answer a challenge and are challenged again; the next one is refused.
const MAX_CHALLENGED: usize = 2;
/// Callers that are remembered, the latest; about 500 bytes each.
const MAX_CALLERS: u64 = 20_000;
/// Demands that are remembered of one caller, the latest.
const MAX_DEMANDS: usize = 8;

type Digest = [u8; 32];

/// Tokens of one caller that did not satisfy one demand.
#[derive(Debug)]
struct Attempts {
    demand: Digest,
    /// When it was first demanded, and with which token, which answers nothing.
    challenged: i64,
    first: Digest,
    /// A level was missing, and not only freshness.
    is_for_level: bool,
    /// The best that was shown.
    level: usize,
    auth_time: Option<i64>,
    /// Each token, with when it came.
    tokens: Vec<(Digest, i64)>,
}

type Callers = Cache<Digest, Arc<Mutex<Vec<Attempts>>>>;

/// Remembers which tokens did not satisfy a demand.
#[derive(Debug)]
pub struct StepUpLoopGuard {
    /// Made when something is first demanded.
    callers: OnceLock<Callers>,
    /// When anything was last demanded, for checks that have nothing to forget.
    last: AtomicI64,
}

impl Default for StepUpLoopGuard {
    fn default() -> Self {
        Self { callers: OnceLock::new(), last: AtomicI64::new(i64::MIN) }
    }
}

impl StepUpLoopGuard {
    /// Says that a token does not satisfy a demand; true when it is one too many.
    pub fn record_failure(&self, verified: &Verified, step_up: &StepUp, now: i64) -> bool {
        self.last.store(now, Ordering::Release);
        let callers = self.callers.get_or_init(|| {
            let window = Duration::from_secs(WINDOW_SECONDS.unsigned_abs());
            Cache::builder().max_capacity(MAX_CALLERS).time_to_idle(window).build()
        });
        let caller = callers.get_with(caller(verified), Arc::default);
        let mut demands = caller.lock();
        let (demand, token) = (demand(step_up), verified.digest());
        let at = demands.iter().position(|attempts| attempts.demand == demand);
        let mut attempts = match at {
            Some(at) => demands.remove(at),
            None => Attempts {
                demand,
                challenged: now,
                first: token,
                is_for_level: !step_up.acr_values.is_empty(),
                level: 0,
                auth_time: None,
                tokens: Vec::new(),
            },
        };
        attempts.tokens.retain(|&(_, at)| is_recent(at, now));
        if attempts.tokens.is_empty() && !is_recent(attempts.challenged, now) {
            (attempts.challenged, attempts.first) = (now, token);
        }
        let is_answer = verified.authenticated_or_issued().is_none_or(|at| at >= attempts.challenged);
        attempts.level = attempts.level.max(verified.authn().level);
        attempts.auth_time = attempts.auth_time.max(verified.authn().auth_time());
        let is_known = token == attempts.first || attempts.tokens.iter().any(|&(known, _)| known == token);
        let counts = is_answer && !is_known;
        let record_failure = counts && attempts.tokens.len() >= MAX_CHALLENGED;
        if counts && !record_failure {
            attempts.tokens.push((token, now));
        }
        if demands.len() >= MAX_DEMANDS {
            demands.remove(0);
        }
        demands.push(attempts);
        record_failure
    }

    /// Says that a token was good enough for something: demands that no token before it was as good for are forgotten.
    pub fn satisfied(&self, verified: &Verified, now: i64) {
        if !is_recent(self.last.load(Ordering::Acquire), now) {
            return;
        }
        let Some(demands) = self.callers.get().and_then(|callers| callers.get(&caller(verified))) else { return };
        let authn = verified.authn();
        demands.lock().retain(|attempts| match attempts.is_for_level {
            true => authn.level <= attempts.level,
            false => authn.auth_time() <= attempts.auth_time,
        });
    }
}

fn is_recent(at: i64, now: i64) -> bool {
    (0..WINDOW_SECONDS).contains(&now.saturating_sub(at))
}

fn caller(verified: &Verified) -> Digest {
    digest_of(&[verified.issuer(), verified.subject()])
}

fn demand(step_up: &StepUp) -> Digest {
    let max_age = step_up.max_age.map(|max_age| max_age.to_string()).unwrap_or_default();
    let mut parts = vec![max_age.as_str(), step_up.scope.as_deref().unwrap_or_default()];
    parts.extend(step_up.acr_values.iter().map(String::as_str));
    digest_of(&parts)
}

fn digest_of(parts: &[&str]) -> Digest {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part.as_bytes());
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::token::verified_for_tests;

    fn verified(claims: Json) -> Arc<Verified> {
        verified_for_tests(&claims, |_| {})
    }

    /// One of several tokens of one person, each as weak as the others.
    fn weak(subject: &str, number: u32) -> Arc<Verified> {
        verified(json!({"sub": subject, "jti": number.to_string(), "amr": ["pwd"], "auth_time": 100 + number}))
    }

    fn mfa() -> StepUp {
        StepUp { acr_values: vec!["mfa".to_owned()], ..StepUp::default() }
    }

    #[test]
    fn the_third_answer_is_one_too_many() {
        let step_up_loop = StepUpLoopGuard::default();
        for _ in 0..6 {
            assert!(!step_up_loop.record_failure(&weak("ann", 1), &mfa(), 0), "the same one, again and again");
        }
        for number in [2, 3] {
            assert!(!step_up_loop.record_failure(&weak("ann", number), &mfa(), 60));
        }
        assert!(step_up_loop.record_failure(&weak("ann", 4), &mfa(), 119));
        assert!(!step_up_loop.record_failure(&weak("ann", 1), &mfa(), 119), "the first may still come");
        assert!(!step_up_loop.record_failure(&weak("bob", 4), &mfa(), 119), "another person");
        for other in [StepUp { max_age: Some(5), ..mfa() }, StepUp { acr_values: vec!["phr".to_owned()], ..mfa() }] {
            assert!(!step_up_loop.record_failure(&weak("ann", 4), &other, 119), "another demand");
        }
        assert!(!step_up_loop.record_failure(&weak("ann", 4), &mfa(), 180), "the others no longer count");
    }

    #[test]
    fn sessions_from_before_the_challenge_are_no_answers() {
        let step_up_loop = StepUpLoopGuard::default();
        let device = |number: u32, auth_time: i64| {
            verified(json!({"sub": "ann", "jti": number.to_string(), "amr": ["pwd"], "auth_time": auth_time}))
        };
        for number in 0..9 {
            assert!(!step_up_loop.record_failure(&device(number, 700), &mfa(), 1_000), "device {number}");
        }
        let told: Vec<bool> =
            (10..13).map(|number| step_up_loop.record_failure(&device(number, 1_001), &mfa(), 1_010)).collect();
        assert_eq!(told, [false, false, true], "three new logins");
    }

    #[test]
    fn only_a_better_token_starts_afresh() {
        for (claims, is_afresh) in [
            (json!({"sub": "ann", "amr": ["mfa"]}), true),
            (json!({"sub": "ann", "amr": ["pwd"], "auth_time": 999}), false),
            (json!({"sub": "bob", "amr": ["mfa"]}), false),
        ] {
            let step_up_loop = StepUpLoopGuard::default();
            step_up_loop.satisfied(&weak("ann", 9), 0);
            for token in [1, 2, 3] {
                assert!(!step_up_loop.record_failure(&weak("ann", token), &mfa(), 0));
                step_up_loop.satisfied(&weak("ann", token), 0);
            }
            step_up_loop.satisfied(&verified(claims.clone()), 0);
            assert_eq!(step_up_loop.record_failure(&weak("ann", 4), &mfa(), 0), !is_afresh, "{claims}");
        }
        let (step_up_loop, fresh) = (StepUpLoopGuard::default(), StepUp { max_age: Some(5), ..StepUp::default() });
        for token in [1, 2, 3] {
            assert!(!step_up_loop.record_failure(&weak("ann", token), &fresh, 0));
        }
        step_up_loop.satisfied(&weak("ann", 3), 0);
        assert!(step_up_loop.record_failure(&weak("ann", 4), &fresh, 0), "as old as what came before");
        step_up_loop.satisfied(&weak("ann", 5), 0);
        assert!(!step_up_loop.record_failure(&weak("ann", 6), &fresh, 0), "a fresher one was good enough");
    }

    #[test]
    fn memory_is_bounded_by_caller() {
        let step_up_loop = StepUpLoopGuard::default();
        let one = weak("ann", 1);
        for number in 0..100 {
            step_up_loop.record_failure(&one, &StepUp { max_age: Some(number), ..mfa() }, 0);
        }
        let caller = step_up_loop.callers.get().and_then(|callers| callers.get(&caller(&one))).expect("she is known");
        assert_eq!(caller.lock().len(), MAX_DEMANDS);
    }
}
