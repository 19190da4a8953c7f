//! A receiver of Shared Signals 1.0: security event tokens (RFC 8417) that a transmitter pushes (RFC 8935) or that are fetched from it
//! (RFC 8936), with events of CAEP and RISC.
//!
//! An accepted event is durable before it is acknowledged. An event that names no user here is acknowledged, too, and counted: the
//! transmitter cannot correct it.

mod delivery;
mod event;
mod subject;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

pub(super) use self::delivery::start;
pub use self::delivery::{PollSettings, VerifySettings};
use self::event::EventType;
use self::subject::{Subject, SubjectError, Subjects};
use super::scim::keys_of_address;
use super::unmatched::Unmatched;
use super::{Credentials, Hub, Ledger, LedgerError};
use crate::revocation::{Change, HubKey, IssuerJoins, Key, Kind};
use crate::token::{Issuer, SignedJwt, TokenError, numeric_date, verify_signature_of};
use crate::value::{as_text, member, to_serde_json};

/// The longest wait for a transmitter's keys.
const KEY_WAIT: Duration = Duration::from_secs(3);
/// Seconds by which the clock of a transmitter may be ahead.
const LEEWAY: i64 = 300;
/// Seconds for which a `jti` is remembered.
const REMEMBERED: u32 = 7 * 86_400;
/// Bytes of `jti`.
const MAX_JTI_BYTES: usize = 256;
/// Events of one SET.
const MAX_EVENTS: usize = 16;
/// Depth of a SET.
const MAX_DEPTH: usize = 64;

/// The words of a transmitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Shared Signals 1.0.
    Standard,
    /// The subject is in the event, and a user has no `format`.
    Okta,
    /// Drafts before 1.0, such as of Google and Apple.
    Sse,
}

impl Dialect {
    /// Subjects are in events, in the words of older drafts.
    pub fn is_older(self) -> bool {
        self != Self::Standard
    }
}

/// The meaning of the end of all sessions of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionRevoked {
    /// Tokens of now are rejected, and the user signs in again.
    Reauthenticate,
    /// Tokens of now are rejected; a session may fetch new ones.
    Refresh,
}

/// A stream, as configured.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// In its address and in metrics.
    pub name: String,
    /// `aud` of its SETs.
    pub audience: String,
    /// Issuers whose tokens it decides about.
    pub issuers: Vec<String>,
    pub dialect: Dialect,
    /// Those of a transmitter that pushes SETs.
    pub credentials: Credentials,
    /// `iss` of subjects that is none of the issuers, to the join that its `sub` has.
    pub subject_issuers: BTreeMap<String, String>,
    /// The join of identifiers without a meaning.
    pub opaque_is: Option<String>,
    /// The joins of further formats: `did`, `phone_number`, `uri`.
    pub format_is: BTreeMap<String, String>,
    /// SCIM providers whose users are found by an address.
    pub directories: Vec<String>,
    pub tenant: Option<String>,
    pub session_revoked: SessionRevoked,
    pub ignores_claims_change: bool,
    pub denies_devices: bool,
    /// An account that a policy has locked is no account that is disabled.
    pub notes_policy_lockouts: bool,
    /// The levels of names in `assurance-level-change` that are not of NIST.
    pub levels: BTreeMap<String, u8>,
    /// The tier of a recovery that the transmitter reports: 1 is by the user, 2 by the help desk, 3 by several persons.
    pub recovery_tier: Option<u8>,
    pub poll: Option<PollSettings>,
    pub verify: Option<VerifySettings>,
}

/// A stream that runs.
#[derive(Debug)]
pub struct Stream {
    settings: StreamSettings,
    /// Its bit among those that disable.
    source: u8,
    /// The transmitter with its keys.
    transmitter: Arc<Issuer>,
    /// When it was last heard of, in seconds since the epoch.
    heard: AtomicI64,
    /// The state of the last verification that was asked for.
    asked: parking_lot::Mutex<Option<String>>,
    /// This hub fetches events and asks for verifications; of several hubs one does.
    leads: AtomicBool,
}

/// Why a SET is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error("there is no such address")]
    Absent,
    /// The code of RFC 8935 section 2.4, and why.
    #[error("{1}")]
    Invalid(&'static str, String),
    #[error("it was not carried out in time")]
    Late,
    #[error("the keys of the transmitter are not here")]
    Keys,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Not a SET that this receiver understands.
fn request(message: impl Into<String>) -> SetError {
    SetError::Invalid("invalid_request", message.into())
}

/// A SET whose signature and claims are right.
#[derive(Debug)]
struct Set {
    jti: String,
    issued: i64,
    events: Vec<(String, Map<String, Value>)>,
    /// `sub_id`.
    subject: Option<Value>,
}

/// The outcome of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventOutcome {
    Applied,
    Duplicate,
    Unmatched,
    Unknown,
    Noted,
    Stale,
    Invalid,
}

impl EventOutcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Duplicate => "duplicate",
            Self::Unmatched => "unmatched",
            Self::Unknown => "unknown",
            Self::Noted => "noted",
            Self::Stale => "stale",
            Self::Invalid => "invalid",
        }
    }
}

impl Stream {
    /// `leads`: this hub works for it from the start.
    pub(super) fn new(settings: &StreamSettings, source: u8, transmitter: Arc<Issuer>, now: i64, leads: bool) -> Self {
        let (heard, asked) = (AtomicI64::new(now), parking_lot::Mutex::default());
        Self { settings: settings.clone(), source, transmitter, heard, asked, leads: AtomicBool::new(leads) }
    }

    /// Its bit among those that disable.
    pub(super) fn source(&self) -> u8 {
        self.source
    }

    /// True for the hub that fetches events and asks for verifications.
    fn leads(&self) -> bool {
        self.leads.load(Ordering::Acquire)
    }

    /// Where hubs share a ledger: takes a part in the work for this stream, and in what is known of it.
    pub(super) fn share(&self, ledger: &Ledger, ttl: Duration) {
        let name = format!("ssf/{}", self.settings.name);
        let leads = ledger.lease(&name, ttl).unwrap_or(false);
        if !leads {
            // The answer to what this hub has asked for may have gone to another one.
            *self.asked.lock() = None;
        }
        self.leads.store(leads, Ordering::Release);
        let heard = self.heard.load(Ordering::Acquire);
        if let Ok(latest) = ledger.latest(&format!("heard/{name}"), heard) {
            self.heard.fetch_max(latest, Ordering::AcqRel);
        }
    }

    /// Its name, and when it was last heard of, in seconds since the epoch.
    pub(super) fn heard(&self) -> (&str, i64) {
        (&self.settings.name, self.heard.load(Ordering::Acquire))
    }

    /// Verifies a SET: RFC 8417 section 2 and Shared Signals 1.0.
    async fn read(&self, hub: &Hub, text: &str) -> Result<Set, SetError> {
        let deadline = Instant::now() + KEY_WAIT;
        let verified = verify_signature_of(&self.transmitter, text, &hub.clock, deadline).await;
        let jwt = verified.map_err(|error| match error {
            TokenError::KeysUnavailable => SetError::Keys,
            TokenError::Algorithm | TokenError::UnknownKey | TokenError::BadSignature => {
                SetError::Invalid("invalid_key", error.to_string())
            }
            error => request(error.to_string()),
        })?;
        self.check(&jwt, hub.clock.now())
    }

    fn check(&self, jwt: &SignedJwt, now: i64) -> Result<Set, SetError> {
        let typ = jwt.typ.as_deref().unwrap_or_default().to_ascii_lowercase();
        let typ = typ.strip_prefix("application/").unwrap_or(&typ);
        let is_typed = typ == "secevent+jwt" || (self.settings.dialect == Dialect::Sse && ["", "jwt"].contains(&typ));
        if !is_typed {
            return Err(request("`typ` is not secevent+jwt"));
        }
        let claims = &jwt.claims;
        let text = |name: &str| member(claims, name).and_then(as_text);
        if text("iss") != Some(&self.transmitter.settings.issuer) {
            return Err(SetError::Invalid("invalid_issuer", "`iss` is not the transmitter of this stream".to_owned()));
        }
        let is_ours = |audience: &crate::value::Value| as_text(audience) == Some(self.settings.audience.as_str());
        let is_for_us = match member(claims, "aud") {
            Some(crate::value::Value::Array(audiences)) => audiences.iter().any(is_ours),
            Some(audience) => is_ours(audience),
            None => false,
        };
        if !is_for_us {
            return Err(SetError::Invalid("invalid_audience", "`aud` has not the audience of this stream".to_owned()));
        }
        let jti = text("jti").filter(|jti| (1..=MAX_JTI_BYTES).contains(&jti.len()));
        let Some(jti) = jti else { return Err(request(format!("`jti`: expected 1 to {MAX_JTI_BYTES} bytes"))) };
        let issued = member(claims, "iat").and_then(numeric_date);
        let Some(issued) = issued.filter(|issued| *issued <= now.saturating_add(LEEWAY)) else {
            return Err(request("`iat` is absent, or in the future"));
        };
        if member(claims, "exp").is_some() {
            return Err(request("a SET has no `exp`: it says what has happened"));
        }
        if member(claims, "sub").is_some() && self.settings.dialect != Dialect::Sse {
            return Err(request("a SET has no `sub`; its subject is `sub_id`"));
        }
        let Some(Value::Object(mut claims)) = to_serde_json(claims, MAX_DEPTH) else {
            return Err(request("the claims nest too deeply"));
        };
        let Some(Value::Object(events)) = claims.remove("events") else { return Err(request("`events` is no object")) };
        if events.is_empty() || events.len() > MAX_EVENTS {
            return Err(request(format!("`events`: expected 1 to {MAX_EVENTS}")));
        }
        let mut listed = Vec::new();
        for (uri, event) in events {
            let Value::Object(event) = event else { return Err(request("an event is no object")) };
            listed.push((uri, event));
        }
        Ok(Set { jti: jti.to_owned(), issued, events: listed, subject: claims.remove("sub_id") })
    }

    /// The subject of an event.
    fn subject_of<'a>(&self, set: &'a Set, event: &'a Map<String, Value>) -> Result<&'a Value, SetError> {
        if self.settings.dialect.is_older() {
            return event.get("subject").or(set.subject.as_ref()).ok_or_else(|| request("the event has no `subject`"));
        }
        match &set.subject {
            Some(subject) => Ok(subject),
            None if event.contains_key("subject") => Err(request(
                "the subject is in the event, as in older drafts: the stream needs `dialect: okta` or `sse`",
            )),
            None => Err(request("there is no `sub_id`")),
        }
    }
}

/// The keys that a subject of a stream names, directories left out.
///
/// # Errors
/// It is no subject.
pub(super) fn subject_keys(
    settings: &StreamSettings,
    issuers: &BTreeMap<String, IssuerJoins>,
    hub_key: &HubKey,
    subject: &Value,
) -> Result<BTreeSet<Key>, String> {
    let subjects = Subjects { settings, issuers, hub_key, directories: &|_| Ok(BTreeSet::new()) };
    let subject = subjects.keys(subject).map_err(|error| error.to_string())?;
    Ok(subject.all().map(|(_, key)| key).collect())
}

impl Hub {
    /// The stream of this name, for the credential of its transmitter. Waits for the disk.
    ///
    /// # Errors
    /// There is none, or the credential is another.
    pub fn stream(&self, name: &str, bearer: Option<&str>) -> Result<Arc<Stream>, SetError> {
        let stream = self.streams.iter().find(|known| known.settings.name == name).ok_or(SetError::Absent)?;
        match stream.settings.credentials.admit(bearer) {
            true => Ok(Arc::clone(stream)),
            false => {
                let message = "the credential is not that of this stream".to_owned();
                Err(SetError::Invalid("authentication_failed", message))
            }
        }
    }

    /// Verifies a SET and carries it out; durable when this returns. Waits for keys and for the disk.
    ///
    /// # Errors
    /// It is not good, there are no keys, or nothing is durable.
    pub async fn receive(self: &Arc<Self>, stream: &Arc<Stream>, text: &str) -> Result<(), SetError> {
        let set = match stream.read(self, text).await {
            Ok(set) => set,
            Err(error) => {
                if let SetError::Invalid(code, description) = &error {
                    self.metrics.event(&stream.settings.name, "", EventOutcome::Invalid);
                    tracing::warn!(stream = stream.settings.name, code, description, "a SET was not accepted");
                }
                return Err(error);
            }
        };
        let (hub, stream) = (Arc::clone(self), Arc::clone(stream));
        let work = tokio::task::spawn_blocking(move || hub.apply_set(&stream, &set));
        work.await.unwrap_or(Err(SetError::Ledger(LedgerError::Format)))
    }

    fn apply_set(&self, stream: &Stream, set: &Set) -> Result<(), SetError> {
        let now = self.now();
        let settings = &stream.settings;
        let lookup = |address: &str| keys_of_address(self, &settings.directories, &settings.issuers, address);
        let subjects = Subjects {
            settings,
            issuers: &self.settings.issuers,
            hub_key: self.ledger.hub_key(),
            directories: &lookup,
        };
        let mut subject_of_all: Option<Subject> = None;
        let mut changes: Vec<(Kind, Key, Change)> = Vec::new();
        let mut outcomes: Vec<(&'static str, EventOutcome)> = Vec::new();
        let mut notes: Vec<(Key, &'static str, Map<String, Value>)> = Vec::new();
        let seen = self.ledger.hub_key().key(Kind::Token, "set", &settings.name, &set.jti);
        let id = hex::encode(seen.split_at(seen.len() / 2).0);
        for (uri, event) in &set.events {
            let Some(event_type) = EventType::of(uri) else {
                outcomes.push(("other", EventOutcome::Unknown));
                continue;
            };
            if event_type.is_of_stream() {
                self.hear_of_stream(stream, event_type, event)?;
                outcomes.push((event_type.name(), EventOutcome::Noted));
                continue;
            }
            let subject = subjects.keys(stream.subject_of(set, event)?).map_err(|error| match error {
                SubjectError::Invalid(message) => request(message),
                SubjectError::Ledger(error) => error.into(),
            })?;
            let subject = if event_type.is_of_account() { subject.of_account() } else { subject };
            if subject_of_all.as_ref().is_some_and(|known| *known != subject) {
                return Err(request("the events of one SET have different subjects"));
            }
            let at = event::time_of(event, set.issued, now);
            let own = event::changes(event_type, event, &subject, (at, now), settings, stream.source, &self.settings);
            let has_effect = |change: &Change| change.until > now || change.disable.is_some();
            let users: BTreeSet<Key> = subject.users.union(&subject.owners).copied().collect();
            let facts = event::facts(event_type, event, (at, &id), &subject, settings).filter(|_| !users.is_empty());
            let is_noted = facts.is_some();
            if let Some((kind, members)) = facts {
                notes.extend(users.into_iter().map(|user| (user, kind, members.clone())));
            }
            // A repetition is recognized for so long: after that, an old SET must not enable anyone.
            let is_forgotten = at.saturating_add(REMEMBERED) < now;
            let outcome = match (&subject, &own) {
                (_, _) if event_type == EventType::AccountEnabled && is_forgotten => EventOutcome::Stale,
                (subject, _) if subject.is_empty() => EventOutcome::Unmatched,
                (_, own) if own.is_empty() && is_noted => EventOutcome::Applied,
                (_, own) if own.is_empty() => EventOutcome::Noted,
                (_, own) if !own.iter().any(|(.., change)| has_effect(change)) => EventOutcome::Stale,
                _ => EventOutcome::Applied,
            };
            if outcome == EventOutcome::Applied {
                changes.extend(own);
            }
            outcomes.push((event_type.name(), outcome));
            subject_of_all = Some(subject);
        }
        let owners = subject_of_all.map(|subject| subject.owners).unwrap_or_default();
        let is_first = self.change("signal", |batch| -> Result<bool, SetError> {
            if !batch.is_first(seen, now.saturating_add(REMEMBERED))? {
                return Ok(false);
            }
            for (kind, key, change) in &changes {
                match batch.apply(*kind, *key, change) {
                    // Sessions have their share of the room: all of the user's end.
                    Err(LedgerError::Full(_)) if !owners.is_empty() => {
                        for owner in &owners {
                            batch.apply(Kind::User, *owner, &event::sign_in_again(set.issued, now, &self.settings))?;
                        }
                    }
                    applied => {
                        applied?;
                    }
                }
            }
            for (user, kind, members) in notes {
                batch.note(user, kind, members, now)?;
            }
            Ok(true)
        })?;
        stream.heard.store(self.clock.now(), Ordering::Release);
        let keys: BTreeSet<String> = changes.iter().map(|(_, key, _)| hex::encode(key)).collect();
        let keys = keys.into_iter().collect::<Vec<_>>().join(",");
        for (name, outcome) in outcomes {
            let outcome = if is_first { outcome } else { EventOutcome::Duplicate };
            self.metrics.event(&settings.name, name, outcome);
            tracing::info!(stream = settings.name, event = name, outcome = outcome.name(), keys, "security event");
            if outcome == EventOutcome::Unmatched {
                let jti = hex::encode(seen);
                self.unmatched.add(Unmatched {
                    at: self.clock.now(),
                    source: settings.name.clone(),
                    event: name,
                    id: jti,
                });
            }
        }
        Ok(())
    }

    /// Publishes how long ago each stream was heard of.
    pub(super) fn publish_ages(&self) {
        for stream in &self.streams {
            let age = self.clock.now().saturating_sub(stream.heard.load(Ordering::Acquire));
            self.metrics.source_age(&stream.settings.name, age);
        }
    }

    /// A verification, or the state of the stream.
    fn hear_of_stream(
        &self,
        stream: &Stream,
        event_type: EventType,
        event: &Map<String, Value>,
    ) -> Result<(), SetError> {
        let name = &stream.settings.name;
        if event_type == EventType::StreamUpdated {
            let status = event.get("status").and_then(Value::as_str).unwrap_or_default();
            let is_enabled = status == "enabled";
            self.metrics.stream_enabled(name, is_enabled);
            if !is_enabled {
                tracing::error!(stream = name, status, "the transmitter sends no more events");
            }
            return Ok(());
        }
        let state = event.get("state").and_then(Value::as_str);
        let mut asked = stream.asked.lock();
        if state.is_some() && asked.is_some() && state != asked.as_deref() {
            return Err(SetError::Invalid("invalid_state", "`state` is not that of the last request".to_owned()));
        }
        *asked = None;
        self.metrics.stream_enabled(name, true);
        Ok(())
    }
}
