//! Back-channel logout (OpenID Connect Back-Channel Logout 1.0), and revocation of a token that is at hand (RFC 7009).
//!
//! A logout token names a session, whose tokens are denied, or a user: the user signs in again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::command::{MARGIN, MAX_REASON_BYTES, token_change};
use super::rate::Rate;
use super::{Hub, LedgerError};
use crate::revocation::{Change, Key, Kind};
use crate::token::{SignedJwt, TokenError, numeric_date, verify_signature};
use crate::value::{Value, as_text, member};

/// The member of `events` that makes a JWT a logout token.
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
/// Logout tokens of an issuer per second, good or bad: they are not authenticated before their signature is verified.
const RATE: u32 = 50;
/// The longest wait for an issuer's keys.
const KEY_WAIT: Duration = Duration::from_secs(3);
/// Seconds by which the clock of an issuer may be ahead.
const LEEWAY: i64 = 60;
/// Seconds after which a logout token says nothing any more, whatever its `exp`.
const MAX_AGE: i64 = 3_600;
/// Bytes of `jti`, `sid` and `sub`.
const MAX_ID_BYTES: usize = 256;

/// Whose logout tokens are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutSettings {
    /// In the address.
    pub name: String,
    pub issuer: String,
    /// One of them must be in `aud`.
    pub client_ids: Vec<String>,
}

/// Why a token did not change anything.
#[derive(Debug, thiserror::Error)]
pub enum LogoutError {
    #[error("there is no such address")]
    Absent,
    #[error("{0}")]
    Invalid(String),
    #[error("too many logout tokens")]
    Busy,
    #[error("it was not carried out in time")]
    Late,
    #[error("the keys of the issuer are not here")]
    Keys,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The address of an issuer's logout tokens.
#[derive(Debug)]
pub(super) struct Logout {
    settings: LogoutSettings,
    rate: Rate,
}

impl Logout {
    pub(super) fn new(settings: &LogoutSettings) -> Self {
        Self { settings: settings.clone(), rate: Rate::new(RATE) }
    }
}

/// A logout token whose claims are right.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    jti: String,
    sid: Option<String>,
    sub: Option<String>,
    issued: u32,
    expires: u32,
}

fn invalid(message: &str) -> LogoutError {
    LogoutError::Invalid(message.to_owned())
}

/// Checks the claims of a logout token, section 2.6.
fn check(jwt: &SignedJwt, settings: &LogoutSettings, now: i64) -> Result<Named, LogoutError> {
    let typ = jwt.typ.as_deref().unwrap_or("jwt").to_ascii_lowercase();
    let typ = typ.strip_prefix("application/").unwrap_or(&typ);
    if !["jwt", "logout+jwt"].contains(&typ) {
        return Err(invalid("`typ` is not logout+jwt"));
    }
    let claims = &jwt.claims;
    if jwt.issuer.settings.issuer != settings.issuer {
        return Err(invalid("the logout token is of another issuer"));
    }
    let is_ours =
        |audience: &Value| as_text(audience).is_some_and(|text| settings.client_ids.iter().any(|id| id == text));
    let is_for_us = match member(claims, "aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(is_ours),
        Some(audience) => is_ours(audience),
        None => false,
    };
    if !is_for_us {
        return Err(invalid("`aud` has none of the client_ids"));
    }
    let seconds = |name: &str| member(claims, name).and_then(Value::as_f64).filter(|seconds| seconds.is_finite());
    let second =
        |name: &str| seconds(name).filter(|seconds| (0.0..4e9).contains(seconds)).map(|seconds| seconds as i64);
    let (Some(issued), Some(expires)) = (second("iat"), second("exp")) else {
        return Err(invalid("`iat` and `exp` are required, in seconds"));
    };
    if issued > now.saturating_add(LEEWAY) || issued < now.saturating_sub(MAX_AGE) {
        return Err(invalid("`iat` is in the future, or too long ago"));
    }
    if expires <= now.saturating_sub(LEEWAY) {
        return Err(invalid("the logout token has expired"));
    }
    let events = member(claims, "events").and_then(|events| member(events, EVENT));
    if !matches!(events, Some(Value::Object(_))) {
        return Err(invalid("`events` has no back-channel logout"));
    }
    if member(claims, "nonce").is_some() {
        return Err(invalid("a logout token has no `nonce`"));
    }
    let id = |name: &str| match member(claims, name) {
        None => Ok(None),
        Some(value) => match as_text(value).filter(|text| !text.is_empty() && text.len() <= MAX_ID_BYTES) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(LogoutError::Invalid(format!("`{name}`: expected a string of 1 to {MAX_ID_BYTES} bytes"))),
        },
    };
    let (jti, sid, sub) = (id("jti")?, id("sid")?, id("sub")?);
    let Some(jti) = jti else { return Err(invalid("`jti` is required")) };
    if sid.is_none() && sub.is_none() {
        return Err(invalid("neither `sid` nor `sub` is there"));
    }
    let bounded = |seconds: i64| u32::try_from(seconds).unwrap_or(u32::MAX);
    Ok(Named { jti, sid, sub, issued: bounded(issued.min(now.saturating_add(LEEWAY))), expires: bounded(expires) })
}

impl Hub {
    /// Carries out a logout token. The change is durable when this returns; waits for keys and for the disk.
    ///
    /// # Errors
    /// The token is not good, there are no keys, or nothing is durable.
    pub async fn log_out(self: Arc<Self>, name: &str, token: &str) -> Result<(), LogoutError> {
        let known = self.logouts.iter().find(|known| known.settings.name == name).ok_or(LogoutError::Absent)?;
        let outcome = match known.rate.take() {
            true => self.log_out_of(known, token).await,
            false => Err(LogoutError::Busy),
        };
        self.metrics.logout(name, outcome.as_ref().err());
        outcome
    }

    async fn log_out_of(self: &Arc<Self>, known: &Logout, token: &str) -> Result<(), LogoutError> {
        let deadline = Instant::now() + KEY_WAIT;
        let jwt = verify_signature(&self.issuers, token, &self.clock, deadline).await.map_err(|error| match error {
            TokenError::KeysUnavailable => LogoutError::Keys,
            error => LogoutError::Invalid(error.to_string()),
        })?;
        let named = check(&jwt, &known.settings, self.clock.now())?;
        let (hub, issuer) = (Arc::clone(self), known.settings.issuer.clone());
        let work = tokio::task::spawn_blocking(move || hub.apply_logout(&issuer, &named));
        work.await.unwrap_or(Err(LogoutError::Ledger(LedgerError::Format)))
    }

    fn apply_logout(&self, issuer: &str, named: &Named) -> Result<(), LogoutError> {
        let key = |kind, name: &str, value: &str| self.ledger.hub_key().key(kind, issuer, name, value);
        let seen = key(Kind::Token, "logout", &named.jti);
        // As long as it would be accepted.
        let until = named.expires.saturating_add(MARGIN).max(named.issued.saturating_add(MARGIN));
        let retained = |life: u32| named.issued.saturating_add(life).saturating_add(MARGIN);
        let session = named.sid.as_deref().map(|sid| key(Kind::Session, "", sid));
        let user = named.sub.as_deref().map(|sub| key(Kind::User, "sub", sub));
        let deny = Change { deny: Some(true), until: retained(self.settings.session_retain), ..Change::default() };
        let sign_in = Change {
            not_before: named.issued,
            authenticated_not_before: named.issued,
            until: retained(self.settings.retain.max(self.settings.session_retain)),
            ..Change::default()
        };
        let (kind, key) = self.change("logout", |batch| {
            if !batch.is_first(seen, until)? {
                return Err(invalid("`jti` has been used"));
            }
            let session = session.map(|key| batch.apply(Kind::Session, key, &deny).map(|_| (Kind::Session, key)));
            match (session, user) {
                // Where sessions have their share of the room, all of the user's end.
                (Some(Err(LedgerError::Full(_))) | None, Some(key)) => {
                    batch.apply(Kind::User, key, &sign_in)?;
                    Ok((Kind::User, key))
                }
                (Some(session), _) => Ok(session?),
                (None, None) => Err(invalid("neither `sid` nor `sub` is there")),
            }
        })?;
        let (kind, key) = (kind.name(), hex::encode(key));
        tracing::info!(kind, key, issuer, "logged out by its provider");
        Ok(())
    }

    /// Revokes a token that an administrator has at hand; gives the number of the change, none for a token that no sidecar accepts anyway.
    ///
    /// # Errors
    /// There are no keys to know it by, or nothing is durable.
    pub async fn revoke_token(
        self: Arc<Self>,
        token: &str,
        reason: &str,
        actor: &'static str,
    ) -> Result<Option<u64>, LogoutError> {
        let deadline = Instant::now() + KEY_WAIT;
        let keys = match verify_signature(&self.issuers, token, &self.clock, deadline).await {
            Ok(jwt) => self.keys_of(&jwt),
            Err(TokenError::KeysUnavailable) => return Err(LogoutError::Keys),
            Err(TokenError::NotAJwt) => self.keys_of_opaque(token),
            // It is of another issuer, or of none.
            Err(_) => BTreeMap::new(),
        };
        if keys.is_empty() {
            return Ok(None);
        }
        let (hub, reason) = (Arc::clone(&self), reason.chars().take(MAX_REASON_BYTES).collect::<String>());
        let work = tokio::task::spawn_blocking(move || {
            let now = hub.now();
            let mut last = None;
            hub.change("revoke", |batch| -> Result<(), LedgerError> {
                for (key, until) in &keys {
                    last = Some(batch.apply(Kind::Token, *key, &token_change(*until, now))?);
                }
                Ok(())
            })?;
            let keys: Vec<String> = keys.keys().map(hex::encode).collect();
            tracing::info!(kind = "token", key = keys.join(","), seq = last, actor, reason, "revocation");
            Ok(last)
        });
        work.await.unwrap_or(Err(LogoutError::Ledger(LedgerError::Format)))
    }

    /// The keys of a token with its end; none for one that has expired.
    fn keys_of(&self, jwt: &SignedJwt) -> BTreeMap<Key, u32> {
        let issuer = &jwt.issuer.settings.issuer;
        let expires = member(&jwt.claims, "exp").and_then(numeric_date).unwrap_or_default();
        let end = expires.saturating_add(jwt.issuer.settings.leeway_seconds());
        if end <= self.clock.now() {
            return BTreeMap::new();
        }
        let key = |name: &str, value: &str| self.ledger.hub_key().key(Kind::Token, issuer, name, value);
        let id = member(&jwt.claims, "jti").and_then(as_text).filter(|id| !id.is_empty());
        let key = match id {
            Some(id) => key("jti", id),
            None => key("digest", &hex::encode(jwt.digest)),
        };
        BTreeMap::from([(key, u32::try_from(end).unwrap_or(u32::MAX))])
    }

    /// The keys under which a token that is no JWT may be known: by issuers that are asked about such tokens.
    fn keys_of_opaque(&self, token: &str) -> BTreeMap<Key, u32> {
        let asked = self.issuers.iter().filter(|issuer| issuer.settings.introspection.is_some());
        let digest = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes()));
        let until = self.now().saturating_add(self.settings.retain);
        let key = |issuer: &str| self.ledger.hub_key().key(Kind::Token, issuer, "digest", &digest);
        asked.map(|issuer| (key(&issuer.settings.issuer), until)).collect()
    }
}
