//! Revocation in a check: the keys of a token, the verdict of the store, and `input.revocation`.
//!
//! Runs after the token cache on every request, so that a cached token is rejected as soon as its entry is here.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use super::evidence::Evidence;
use crate::revocation::{
    HubKey, IssuerJoins, Key, Kind, Mode, RevocationMetrics, RevocationStore, Revoked, State, TokenNames, TokenTimes,
    UserEvents, Verdict,
};
use crate::token::{DerivedKeys, TokenError, TokenState};
use crate::value::{DuplicateKeys, JsonLimits, Key as MemberKey, Members, Value, parse_json, texts};

static STATE: MemberKey = crate::key!("state");
static AGE_SECONDS: MemberKey = crate::key!("age_seconds");
static MAPPED_BY: MemberKey = crate::key!("mapped_by");
static UNMAPPABLE: MemberKey = crate::key!("unmappable");
static EVENTS: MemberKey = crate::key!("events");
static EVENTS_STATE: MemberKey = crate::key!("events_state");
static COMPLETE: MemberKey = crate::key!("complete");
static OVERFLOW: MemberKey = crate::key!("overflow");
/// Those of most users: made once.
static NO_EVENTS: LazyLock<Value> = LazyLock::new(|| Members::default().into_value());
static UNBOUNDED: MemberKey = crate::key!("unbounded");

/// Steps to which the `max_age` of a challenge is rounded down, in seconds: finer ones would say when the event was.
const MAX_AGES: [i64; 6] = [86_400, 3_600, 900, 300, 60, 0];

/// The demand of a route on revocation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteRevocation {
    /// The store is not asked.
    Off,
    /// As `when_cold` and `when_stale` have it.
    #[default]
    BestEffort,
    /// Denied with 503 unless the entries are live and the token can be matched.
    Required,
}

/// Revocation for checks.
#[derive(Clone, Debug)]
pub struct RevocationCheck {
    store: Arc<RevocationStore>,
    issuers: Arc<BTreeMap<String, IssuerJoins>>,
    metrics: Arc<RevocationMetrics>,
}

/// The keys of a token, and which joins they come from.
#[derive(Debug)]
struct TokenKeys {
    keys: Vec<(Kind, Key)>,
    mapped_by: Vec<String>,
    unmappable: bool,
}

/// `input.revocation`.
#[derive(Clone, Debug)]
pub struct RevocationFacts {
    state: State,
    age: i64,
    mapped_by: Vec<String>,
    unmappable: bool,
    unbounded: bool,
    events: UserEvents,
    has_all_events: bool,
    /// The level that an event has taken the user down to.
    cap: Option<usize>,
}

impl RevocationFacts {
    pub fn document(&self) -> Value {
        let mut members = Members::default();
        members.put(&STATE, Value::from(self.state.name()));
        members.put(&AGE_SECONDS, Value::from(self.age));
        members.put(&MAPPED_BY, texts(self.mapped_by.iter().map(String::as_str)));
        members.put(&UNMAPPABLE, Value::Bool(self.unmappable));
        members.put(&UNBOUNDED, Value::Bool(self.unbounded));
        members.put(&EVENTS, document_of(&self.events));
        members.put(&EVENTS_STATE, if self.has_all_events { COMPLETE.value() } else { OVERFLOW.value() });
        members.into_value()
    }
}

impl RevocationCheck {
    pub fn new(
        store: Arc<RevocationStore>,
        issuers: BTreeMap<String, IssuerJoins>,
        metrics: Arc<RevocationMetrics>,
    ) -> Self {
        Self { store, issuers: Arc::new(issuers), metrics }
    }

    /// The evidence after revocation: the same, or with the token rejected.
    pub fn apply(&self, evidence: Evidence, wanted: RouteRevocation, now: i64) -> (Evidence, Option<RevocationFacts>) {
        let state = self.store.state(now);
        let mut facts = RevocationFacts {
            state,
            age: self.store.age(now),
            mapped_by: Vec::new(),
            unmappable: false,
            unbounded: false,
            events: UserEvents::default(),
            has_all_events: true,
            cap: None,
        };
        let error = match evidence.token() {
            _ if wanted == RouteRevocation::Off => None,
            TokenState::Verified(verified) => {
                let issuer = verified.issuer();
                let times = Times {
                    issued: verified.issued(),
                    expires: verified.expires(),
                    authenticated: verified.authn().auth_time(),
                };
                let keys = |joins: &IssuerJoins, hub_key: &HubKey, generation| {
                    verified.derived(generation, || {
                        let digest = hex::encode(verified.digest());
                        keys_of(issuer, verified.claims().document(), Some(&digest), joins, hub_key)
                    })
                };
                self.verdict(issuer, times, keys, wanted, &mut facts, now)
            }
            // Envoy has verified it; only its claims are here.
            TokenState::Asserted(asserted) => {
                let times = Times {
                    issued: asserted.issued,
                    expires: asserted.expires,
                    authenticated: asserted.authn.auth_time(),
                };
                let keys = |joins: &IssuerJoins, hub_key: &HubKey, _| {
                    Arc::new(keys_of(&asserted.issuer, &asserted.claims, None, joins, hub_key))
                };
                self.verdict(&asserted.issuer, times, keys, wanted, &mut facts, now)
            }
            TokenState::Absent | TokenState::Unconfigured | TokenState::Rejected(_) => None,
        };
        let evidence = match error {
            Some(error) => {
                self.metrics.rejected(error.reason());
                evidence.refused(error)
            }
            None => match facts.cap {
                Some(cap) => evidence.capped(cap),
                None => evidence,
            },
        };
        (evidence, Some(facts))
    }

    /// The error of entries that are not fresh enough.
    fn freshness(&self, wanted: RouteRevocation, facts: &RevocationFacts) -> Option<TokenError> {
        let settings = &self.store.settings;
        let is_required = wanted == RouteRevocation::Required;
        let is_denied = match facts.state {
            State::Live => is_required && (facts.unmappable || facts.unbounded),
            State::Stale => is_required || settings.when_stale == Mode::Deny,
            State::Cold => is_required || settings.when_cold == Mode::Deny,
        };
        is_denied.then_some(TokenError::RevocationUnknown)
    }

    fn verdict(
        &self,
        issuer: &str,
        times: Times,
        keys: impl FnOnce(&IssuerJoins, &HubKey, u64) -> Arc<TokenKeys>,
        wanted: RouteRevocation,
        facts: &mut RevocationFacts,
        now: i64,
    ) -> Option<TokenError> {
        let default = IssuerJoins::default();
        let joins = self.issuers.get(issuer).unwrap_or(&default);
        // Entries are there, even if they are old: what they revoke stays revoked.
        if let (Some((hub_key, generation)), Some(retain)) = (self.store.hub_key(), self.store.retain()) {
            let keys = keys(joins, &hub_key, generation);
            facts.mapped_by.clone_from(&keys.mapped_by);
            facts.unmappable = keys.unmappable;
            let is_bounded = times.issued.is_some_and(|issued| times.expires.saturating_sub(issued) <= retain);
            facts.unbounded = !is_bounded;
            if !is_bounded && !joins.allows_unbounded {
                return Some(TokenError::TooLong);
            }
            let (events, has_all_events) = self.store.events(&keys.keys, now);
            let authenticated = times.authenticated.or(times.issued).unwrap_or_default();
            facts.cap = events.level_cap(authenticated).and_then(|cap| usize::try_from(cap).ok());
            (facts.events, facts.has_all_events) = (events, has_all_events);
            let times = TokenTimes { issued: times.issued.unwrap_or(0), authenticated: times.authenticated };
            match self.store.verdict(&keys.keys, times, now) {
                Verdict::Good => {}
                Verdict::Disabled => return Some(TokenError::AccountDisabled),
                Verdict::Revoked(Revoked::Token) => return Some(TokenError::TokenRevoked),
                Verdict::Revoked(Revoked::Session) => return Some(TokenError::SessionRevoked),
                Verdict::Revoked(Revoked::Key) => return Some(TokenError::KeyRevoked),
                Verdict::Reauthenticate(not_before) => {
                    return Some(TokenError::Reauthenticate(max_age(now, not_before)));
                }
            }
        }
        self.freshness(wanted, facts)
    }
}

/// Events as policies read them.
fn document_of(events: &UserEvents) -> Value {
    if events.is_empty() {
        return NO_EVENTS.clone();
    }
    let limits = JsonLimits { depth: 4, duplicates: DuplicateKeys::Refuse };
    parse_json(events.to_json().to_string().as_bytes(), limits).unwrap_or_else(|_| NO_EVENTS.clone())
}

/// The `max_age` that only an authentication after `not_before` meets, rounded down.
fn max_age(now: i64, not_before: u32) -> u32 {
    let age = now.saturating_sub(i64::from(not_before)).saturating_sub(1).max(0);
    let rounded = MAX_AGES.into_iter().find(|step| *step <= age).unwrap_or(0);
    u32::try_from(rounded).unwrap_or(0)
}

/// Times of a token, in seconds since the epoch.
#[derive(Clone, Copy, Debug)]
struct Times {
    issued: Option<i64>,
    expires: i64,
    authenticated: Option<i64>,
}

fn keys_of(issuer: &str, claims: &Value, digest: Option<&str>, settings: &IssuerJoins, hub: &HubKey) -> TokenKeys {
    let TokenNames { names, mapped_by, unmappable } = TokenNames::of(claims, digest, settings);
    let keys = names.iter().map(|name| (name.kind, name.key(issuer, hub))).collect();
    TokenKeys { keys, mapped_by, unmappable }
}

impl DerivedKeys for TokenKeys {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_challenge_says_little() {
        for (age, want) in [(0, 0), (60, 0), (61, 60), (301, 300), (5_000, 3_600), (1_000_000, 86_400)] {
            let not_before = 1_800_000_000;
            assert_eq!(max_age(i64::from(not_before) + age, not_before), want, "{age}");
        }
    }
}
