//! What is known of a caller's authentication: `input.authn`.

use std::sync::Arc;

use super::assurance::{MFA_LEVEL, NOTHING, PHISHING_RESISTANT_LEVEL, Proof};
use super::scale::Scale;
use crate::value::{Key, Members, Value, texts};

/// The known facts about the caller's authentication. An unknown fact is absent, never null: in Rego `null <= 300` is
/// true.
#[derive(Clone, Debug)]
pub struct Authn {
    pub level: usize,
    /// The values of `acr` and `acrs`, but for `0`.
    pub(super) named: Vec<String>,
    auth_time: Option<i64>,
    /// Seconds that `auth_time` may be ahead of our clock.
    pub(super) leeway: i64,
    /// Every member but the age.
    value: Value,
    /// Of the level; none where nothing is known.
    pub(super) scale: Option<Arc<Scale>>,
}

static LEVEL: Key = crate::key!("level");
static LEVEL_NAME: Key = crate::key!("level_name");
static FACTORS: Key = crate::key!("factors");
static IS_MFA: Key = crate::key!("mfa");
static PHISHING_RESISTANT: Key = crate::key!("phishing_resistant");
static CAPPED_BY: Key = crate::key!("capped_by");
static AUTH_TIME: Key = crate::key!("auth_time");
static AGE_SECONDS: Key = crate::key!("age_seconds");

impl Authn {
    /// The names that `document` can have.
    pub const MEMBERS: [&'static str; 8] =
        ["age_seconds", "auth_time", "capped_by", "factors", "level", "level_name", "mfa", "phishing_resistant"];

    /// Nothing is known.
    pub fn none() -> Self {
        Self::new(0, "none", NOTHING, None)
    }

    pub(super) fn new(level: usize, name: &str, proof: Proof, auth_time: Option<i64>) -> Self {
        let mut members = Members::default();
        members.put(&LEVEL, Value::from(level));
        members.put(&LEVEL_NAME, Value::from(name));
        members.put(&FACTORS, texts(proof.categories()));
        members.put(&IS_MFA, Value::Bool(proof.mfa));
        members.put(&PHISHING_RESISTANT, Value::Bool(proof.phishing_resistant));
        Self { level, named: Vec::new(), auth_time, leeway: 0, value: members.into_value(), scale: None }
    }

    /// The same, at no more than level `cap`, because of an event: `capped_by` is `assurance`, and no value of `acr` is met.
    pub fn capped(&self, cap: usize) -> Self {
        let (Some(scale), Value::Object(members)) = (&self.scale, &self.value) else { return self.clone() };
        let changed = |key: &Value, value: &Value| match key.as_str() {
            Some("level") => Value::from(cap),
            Some("level_name") => Value::from(scale.name(cap)),
            Some("mfa") => Value::Bool(*value == Value::Bool(true) && scale.includes(cap, MFA_LEVEL)),
            Some("phishing_resistant") => {
                Value::Bool(*value == Value::Bool(true) && scale.includes(cap, PHISHING_RESISTANT_LEVEL))
            }
            _ => value.clone(),
        };
        let members = members.to_vec().into_iter().map(|(key, value)| (key.clone(), changed(&key, &value)));
        let members = members.chain([(CAPPED_BY.value(), Value::from("assurance"))]).collect();
        Self { level: cap, named: Vec::new(), value: Value::object(members), ..self.clone() }
    }

    /// When the caller authenticated, in seconds since the epoch.
    pub fn auth_time(&self) -> Option<i64> {
        self.auth_time
    }

    /// Those of `wanted` values of `acr` that the provider says it met.
    pub fn met<'a>(&'a self, wanted: &'a [String]) -> impl Iterator<Item = &'a str> {
        self.named.iter().filter(|named| wanted.contains(named)).map(String::as_str)
    }

    /// The age of the authentication in seconds: 0 where `auth_time` is ahead of our clock by no more than the issuer's leeway, unknown
    /// where it is missing or further ahead.
    pub fn age_seconds(&self, now: i64) -> Option<i64> {
        let age = now.saturating_sub(self.auth_time?);
        (age >= self.leeway.saturating_neg()).then_some(age.max(0))
    }

    /// `input.authn` at this moment.
    pub fn document(&self, now: i64) -> Value {
        let (Some(auth_time), Some(age)) = (self.auth_time, self.age_seconds(now)) else { return self.value.clone() };
        let Value::Object(members) = &self.value else { return self.value.clone() };
        let more = [(AUTH_TIME.value(), Value::from(auth_time)), (AGE_SECONDS.value(), Value::from(age))];
        Value::object(members.to_vec().into_iter().chain(more).collect())
    }
}
