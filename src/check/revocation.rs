//! Revocation in a check: the keys of a token, the verdict of the store, and `input.revocation`.
//!
//! Runs after the token cache on every request, so that a cached token is rejected as soon as its entry is here.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::evidence::Evidence;
use crate::revocation::{
    HubKey, Key, Kind, Mode, RevocationMetrics, RevocationStore, Revoked, State, TokenTimes, Verdict,
};
use crate::token::{DerivedKeys, TokenError, TokenState, Verified};
use crate::value::{Key as MemberKey, Members, Value, as_text, items, member, texts};

static STATE: MemberKey = crate::key!("state");
static AGE_SECONDS: MemberKey = crate::key!("age_seconds");
static MAPPED_BY: MemberKey = crate::key!("mapped_by");
static UNMAPPABLE: MemberKey = crate::key!("unmappable");
static UNBOUNDED: MemberKey = crate::key!("unbounded");

/// Joins of an issuer, `sub` not counted.
pub const MAX_JOINS: usize = 8;
/// Groups of a token that are looked at.
const MAX_GROUPS: usize = 256;
/// Bytes of a value that becomes a key.
const MAX_VALUE_BYTES: usize = 512;
/// Steps to which the `max_age` of a challenge is rounded down, in seconds: finer ones would say when the event was.
const MAX_AGES: [i64; 6] = [86_400, 3_600, 900, 300, 60, 0];

/// The form of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fold {
    /// Byte for byte.
    #[default]
    Exact,
    /// An e-mail address: trimmed, in small letters.
    Email,
    /// A UUID: in small letters.
    Uuid,
}

impl Fold {
    /// The form; `None` for what names no one.
    pub fn apply(self, value: &str) -> Option<String> {
        let folded = match self {
            Self::Exact => value.to_owned(),
            Self::Email => value.trim().to_lowercase(),
            Self::Uuid => value.to_ascii_lowercase(),
        };
        let is_address = self != Self::Email || folded.matches('@').count() == 1;
        let is_good = !folded.is_empty() && folded.len() <= MAX_VALUE_BYTES && !folded.chars().any(char::is_control);
        (is_good && is_address).then_some(folded)
    }
}

/// One way of naming a user, with the claim that has the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    pub name: String,
    pub claim: String,
    pub fold: Fold,
    /// The claim must be true for the join to count.
    pub when: Option<String>,
}

/// The claims of an issuer that events are matched with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerJoins {
    /// Beside `sub`, which is always one.
    pub joins: Vec<Join>,
    pub session_claim: String,
    pub groups_claim: String,
    pub device_claim: Option<String>,
    /// Without one of them an event could name the user and not be matched.
    pub required_joins: Vec<String>,
    /// Tokens that live longer than entries are kept are accepted.
    pub allows_unbounded: bool,
}

impl Default for IssuerJoins {
    fn default() -> Self {
        Self {
            joins: Vec::new(),
            session_claim: "sid".to_owned(),
            groups_claim: "groups".to_owned(),
            device_claim: None,
            required_joins: Vec::new(),
            allows_unbounded: false,
        }
    }
}

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
}

impl RevocationFacts {
    pub fn document(&self) -> Value {
        let mut members = Members::default();
        members.put(&STATE, Value::from(self.state.name()));
        members.put(&AGE_SECONDS, Value::from(self.age));
        members.put(&MAPPED_BY, texts(self.mapped_by.iter().map(String::as_str)));
        members.put(&UNMAPPABLE, Value::Bool(self.unmappable));
        members.put(&UNBOUNDED, Value::Bool(self.unbounded));
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
        };
        let error = match evidence.token() {
            _ if wanted == RouteRevocation::Off => None,
            TokenState::Verified(verified) => self.verdict(verified, wanted, &mut facts, now),
            // Envoy vouches for it, and its claims are all that there is.
            TokenState::Asserted(_) => self.freshness(wanted, &facts),
            TokenState::Absent | TokenState::Unconfigured | TokenState::Rejected(_) => None,
        };
        let evidence = match error {
            Some(error) => {
                self.metrics.rejected(error.reason());
                evidence.refused(error)
            }
            None => evidence,
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
        verified: &Verified,
        wanted: RouteRevocation,
        facts: &mut RevocationFacts,
        now: i64,
    ) -> Option<TokenError> {
        let default = IssuerJoins::default();
        let joins = self.issuers.get(verified.issuer()).unwrap_or(&default);
        // Entries are there, even if they are old: what they revoke stays revoked.
        if let (Some((hub_key, generation)), Some(retain)) = (self.store.hub_key(), self.store.retain()) {
            let keys = verified.derived(generation, || keys_of(verified, joins, &hub_key));
            facts.mapped_by.clone_from(&keys.mapped_by);
            facts.unmappable = keys.unmappable;
            let issued = verified.issued();
            let is_bounded = issued.is_some_and(|issued| verified.expires().saturating_sub(issued) <= retain);
            facts.unbounded = !is_bounded;
            if !is_bounded && !joins.allows_unbounded {
                return Some(TokenError::TooLong);
            }
            let times = TokenTimes { issued: issued.unwrap_or(0), authenticated: verified.authn().auth_time() };
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

/// The `max_age` that only an authentication after `not_before` meets, rounded down.
fn max_age(now: i64, not_before: u32) -> u32 {
    let age = now.saturating_sub(i64::from(not_before)).saturating_sub(1).max(0);
    let rounded = MAX_AGES.into_iter().find(|step| *step <= age).unwrap_or(0);
    u32::try_from(rounded).unwrap_or(0)
}

/// The keys of a token: the user by every join, session, token, client, groups, device, bound key and issuer.
fn keys_of(verified: &Verified, settings: &IssuerJoins, hub: &HubKey) -> TokenKeys {
    let issuer = verified.issuer();
    let claims = verified.claims().document();
    let text = |name: &str| member(claims, name).and_then(as_text).filter(|text| text.len() <= MAX_VALUE_BYTES);
    let mut keys = vec![(Kind::Issuer, hub.key(Kind::Issuer, issuer, "", ""))];
    let mut mapped_by = Vec::new();
    let mut add = |kind: Kind, name: &str, value: &str| keys.push((kind, hub.key(kind, issuer, name, value)));
    if let Some(subject) = text("sub") {
        add(Kind::User, "sub", subject);
        mapped_by.push("sub".to_owned());
    }
    for join in settings.joins.iter().take(MAX_JOINS) {
        let is_true = |claim: &String| member(claims, claim) == Some(&Value::Bool(true));
        if join.when.as_ref().is_none_or(is_true)
            && let Some(value) = text(&join.claim).and_then(|value| join.fold.apply(value))
        {
            add(Kind::User, &join.name, &value);
            mapped_by.push(join.name.clone());
        }
    }
    for (kind, name, claim) in
        [(Kind::Session, "", Some(&settings.session_claim)), (Kind::Device, "", settings.device_claim.as_ref())]
    {
        if let Some(value) = claim.and_then(|claim| text(claim)) {
            add(kind, name, value);
        }
    }
    if let Some(id) = text("jti") {
        add(Kind::Token, "jti", id);
    }
    add(Kind::Token, "digest", &hex::encode(verified.digest()));
    if let Some(client) = ["client_id", "azp", "appid"].into_iter().find_map(text) {
        add(Kind::Client, "", client);
    }
    let groups = member(claims, &settings.groups_claim).map(items).unwrap_or_default();
    groups.iter().take(MAX_GROUPS).filter_map(|group| as_text(group)).for_each(|group| add(Kind::Group, "", group));
    let confirmation = member(claims, "cnf");
    for (name, claim) in [("jkt", "jkt"), ("x5t", "x5t#S256")] {
        if let Some(thumbprint) = confirmation.and_then(|cnf| member(cnf, claim)).and_then(as_text) {
            keys.push((Kind::Key, hub.key(Kind::Key, "", name, thumbprint)));
        }
    }
    // Entra leaves groups out of a token that would be too long.
    let has_overage = member(claims, "_claim_names").is_some() || member(claims, "hasgroups").is_some();
    let lacks = settings.required_joins.iter().any(|join| !mapped_by.contains(join));
    TokenKeys { keys, unmappable: lacks || has_overage || mapped_by.is_empty(), mapped_by }
}

impl DerivedKeys for TokenKeys {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_one_form() {
        for (fold, given, want) in [
            (Fold::Exact, " A ", Some(" A ")),
            (Fold::Exact, "", None),
            (Fold::Exact, "a\nb", None),
            (Fold::Email, " Ada@Example.COM ", Some("ada@example.com")),
            (Fold::Email, "ada", None),
            (Fold::Email, "a@b@c", None),
            (Fold::Uuid, "6F9619FF-8B86-D011-B42D-00C04FC964FF", Some("6f9619ff-8b86-d011-b42d-00c04fc964ff")),
        ] {
            assert_eq!(fold.apply(given).as_deref(), want, "{given:?}");
        }
        assert_eq!(Fold::Exact.apply(&"x".repeat(513)), None);
    }

    #[test]
    fn the_age_of_a_challenge_says_little() {
        for (age, want) in [(0, 0), (60, 0), (61, 60), (301, 300), (5_000, 3_600), (1_000_000, 86_400)] {
            let not_before = 1_800_000_000;
            assert_eq!(max_age(i64::from(not_before) + age, not_before), want, "{age}");
        }
    }
}
