//! Events of CAEP 1.0, RISC 1.0 and Shared Signals 1.0, and what each changes.

use serde_json::{Map, Value, json};

use super::subject::Subject;
use super::{SessionRevoked, StreamSettings};
use crate::hub::HubSettings;
use crate::hub::command::MARGIN;
use crate::revocation::{Change, Key, Kind, PERMANENT, short};

const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
const RISC: &str = "https://schemas.openid.net/secevent/risc/event-type/";
const SSF: &str = "https://schemas.openid.net/secevent/ssf/event-type/";
/// As in drafts before 1.0.
const SSE: &str = "https://schemas.openid.net/secevent/sse/event-type/";

/// A time in milliseconds, which some transmitters send, is beyond that.
const MILLISECONDS: f64 = 1e11;
/// Seconds that the time of an event may be ahead.
const AHEAD: u32 = 60;

/// The type of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    SessionRevoked,
    CredentialChange,
    TokenClaimsChange,
    DeviceComplianceChange,
    AccountDisabled,
    AccountPurged,
    AccountEnabled,
    CredentialCompromise,
    SessionsRevoked,
    CredentialChangeRequired,
    IdentifierChanged,
    IdentifierRecycled,
    Verification,
    StreamUpdated,
    /// Known, and without an effect on tokens.
    Noted(&'static str),
}

/// Events that are known and change nothing.
const NOTED: [&str; 11] = [
    "session-established",
    "session-presented",
    "assurance-level-change",
    "risk-level-change",
    "opt-in",
    "opt-out-initiated",
    "opt-out-cancelled",
    "opt-out-effective",
    "recovery-activated",
    "recovery-information-changed",
    "credential-compromise-suspected",
];

impl EventType {
    /// The type of this URI; `None` for one that is not known.
    pub fn of(uri: &str) -> Option<Self> {
        let (name, is_risc) = match (uri.strip_prefix(CAEP), uri.strip_prefix(RISC)) {
            (Some(name), _) => (name, false),
            (_, Some(name)) => (name, true),
            _ => {
                return match uri.strip_prefix(SSF).or_else(|| uri.strip_prefix(SSE))? {
                    "verification" => Some(Self::Verification),
                    "stream-updated" => Some(Self::StreamUpdated),
                    _ => None,
                };
            }
        };
        Some(match (is_risc, name) {
            (false, "session-revoked") => Self::SessionRevoked,
            (false, "credential-change") => Self::CredentialChange,
            (false, "token-claims-change") => Self::TokenClaimsChange,
            (false, "device-compliance-change") => Self::DeviceComplianceChange,
            (true, "account-disabled") => Self::AccountDisabled,
            (true, "account-purged") => Self::AccountPurged,
            (true, "account-enabled") => Self::AccountEnabled,
            (true, "credential-compromise") => Self::CredentialCompromise,
            (true, "sessions-revoked") => Self::SessionsRevoked,
            (true, "account-credential-change-required") => Self::CredentialChangeRequired,
            (true, "identifier-changed") => Self::IdentifierChanged,
            (true, "identifier-recycled") => Self::IdentifierRecycled,
            (_, name) => Self::Noted(NOTED.into_iter().find(|known| *known == name)?),
        })
    }

    /// The last part of its URI, for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionRevoked => "session-revoked",
            Self::CredentialChange => "credential-change",
            Self::TokenClaimsChange => "token-claims-change",
            Self::DeviceComplianceChange => "device-compliance-change",
            Self::AccountDisabled => "account-disabled",
            Self::AccountPurged => "account-purged",
            Self::AccountEnabled => "account-enabled",
            Self::CredentialCompromise => "credential-compromise",
            Self::SessionsRevoked => "sessions-revoked",
            Self::CredentialChangeRequired => "account-credential-change-required",
            Self::IdentifierChanged => "identifier-changed",
            Self::IdentifierRecycled => "identifier-recycled",
            Self::Verification => "verification",
            Self::StreamUpdated => "stream-updated",
            Self::Noted(name) => name,
        }
    }

    /// It is about an account and never about one session.
    pub fn is_of_account(self) -> bool {
        !matches!(self, Self::SessionRevoked | Self::DeviceComplianceChange | Self::Noted(_))
    }

    /// It is about the stream and not about someone.
    pub fn is_of_stream(self) -> bool {
        matches!(self, Self::Verification | Self::StreamUpdated)
    }
}

/// The time of an event, in seconds: its own, else that of the SET, else now. One that is further ahead than a minute counts as a minute
/// ahead: it would reject tokens of the future.
pub fn time_of(event: &Map<String, Value>, issued: i64, now: u32) -> u32 {
    let own = event.get("event_timestamp").and_then(Value::as_f64).filter(|seconds| *seconds > 0.0);
    let own = own.map(|time| if time > MILLISECONDS { time / 1_000.0 } else { time });
    let seconds = match own {
        // A float beyond the range is its end.
        Some(seconds) => seconds as u32,
        None => u32::try_from(issued).unwrap_or_default(),
    };
    seconds.min(now.saturating_add(AHEAD))
}

/// The facts of an event at `at` that policies read: its kind in `input.revocation.events`, and its members; `None` for any other event. Free text
/// of an event is left out.
pub fn facts(
    event_type: EventType,
    event: &Map<String, Value>,
    (at, id): (u32, &str),
    subject: &Subject,
    stream: &StreamSettings,
) -> Option<(&'static str, Map<String, Value>)> {
    let text = |name: &str| event.get(name).and_then(Value::as_str).and_then(short);
    let mut members = Map::new();
    let mut put = |name: &str, value: Option<&str>| {
        members.extend(value.map(|value| (name.to_owned(), json!(value))));
    };
    let kind = match event_type {
        EventType::CredentialChange => {
            put("credential_type", text("credential_type"));
            put("change_type", text("change_type"));
            "credential_change"
        }
        EventType::CredentialCompromise => {
            put("credential_type", text("credential_type"));
            put("change_type", Some("compromise"));
            "credential_change"
        }
        EventType::DeviceComplianceChange => {
            put("status", text("current_status"));
            put("device", subject.devices.first().map(hex::encode).as_deref());
            "device"
        }
        EventType::Noted("assurance-level-change") => {
            let level = text("current_level");
            put("namespace", text("namespace"));
            put("level", level);
            put("previous", text("previous_level"));
            if text("change_direction") == Some("decrease") {
                // A level that no one has mapped is none.
                let cap =
                    level.and_then(|level| stream.levels.get(level).copied().or_else(|| aal_of(level))).unwrap_or(0);
                members.insert("cap".to_owned(), json!(cap));
            }
            "assurance"
        }
        EventType::Noted("risk-level-change") => {
            put("principal", text("principal"));
            put("level", text("current_level"));
            put("previous", text("previous_level"));
            put("reason", text("risk_reason"));
            "risk"
        }
        EventType::Noted(name @ ("recovery-activated" | "recovery-information-changed")) => {
            put("type", Some(name));
            members.extend(stream.recovery_tier.map(|tier| ("tier".to_owned(), json!(tier))));
            "recovery"
        }
        _ => return None,
    };
    let own = [("id", json!(id)), ("at", json!(at)), ("source", json!(stream.name))];
    members.extend(own.map(|(name, value)| (name.to_owned(), value)));
    Some((kind, members))
}

/// The level of an authenticator assurance level of NIST SP 800-63, as CAEP has it.
fn aal_of(level: &str) -> Option<u8> {
    match level {
        "nist-aal1" => Some(1),
        "nist-aal2" => Some(2),
        "nist-aal3" => Some(3),
        _ => None,
    }
}

/// Tokens of now are rejected, and their user signs in again: in the place of a session that has no room.
pub fn sign_in_again(issued: i64, now: u32, hub: &HubSettings) -> Change {
    let at = u32::try_from(issued).unwrap_or_default().min(now.saturating_add(AHEAD));
    let life = hub.retain.max(hub.session_retain);
    let until = at.saturating_add(life).saturating_add(MARGIN);
    Change { not_before: at, authenticated_not_before: at, until, ..Change::default() }
}

/// The changes of an event at `at`, by key.
pub fn changes(
    event_type: EventType,
    event: &Map<String, Value>,
    subject: &Subject,
    (at, now): (u32, u32),
    stream: &StreamSettings,
    source: u8,
    hub: &HubSettings,
) -> Vec<(Kind, Key, Change)> {
    let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
    let retained = |life: u32| at.saturating_add(life).saturating_add(MARGIN);
    let (token_life, session_life) = (retained(hub.retain), retained(hub.retain.max(hub.session_retain)));
    let revoke = Change { not_before: at, until: token_life, ..Change::default() };
    let sign_in = Change { authenticated_not_before: at, until: session_life, ..Change::default() };
    let both = Change { not_before: at, ..sign_in };
    let bit = |is_set: bool, until: u32| Change { disable: Some((source, is_set)), disabled_until: until, ..revoke };
    let is_policy = text("initiating_entity") == "policy" || text("reason") == "policy";
    let change = match event_type {
        EventType::SessionRevoked => {
            let is_explicit = ["admin", "policy", "system"].contains(&text("initiating_entity"));
            match stream.session_revoked {
                SessionRevoked::Refresh if !is_explicit => revoke,
                SessionRevoked::Refresh | SessionRevoked::Reauthenticate => both,
            }
        }
        EventType::CredentialChange => match (text("change_type"), text("credential_type")) {
            ("create", _) => return Vec::new(),
            (_, "password" | "PASSWORD") => both,
            _ => sign_in,
        },
        EventType::TokenClaimsChange if stream.ignores_claims_change => return Vec::new(),
        EventType::TokenClaimsChange | EventType::IdentifierChanged | EventType::IdentifierRecycled => revoke,
        EventType::DeviceComplianceChange if !stream.denies_devices => return Vec::new(),
        EventType::DeviceComplianceChange => {
            let is_compliant = text("current_status") == "compliant";
            let keys = subject.devices.iter();
            return keys.map(|key| (Kind::Device, *key, bit(!is_compliant, PERMANENT))).collect();
        }
        EventType::AccountDisabled if is_policy && stream.notes_policy_lockouts => return Vec::new(),
        EventType::AccountDisabled => bit(true, PERMANENT),
        // From now on: an event that comes late must not shorten what is already there.
        EventType::AccountPurged => bit(true, now.saturating_add(hub.deleted_retention)),
        EventType::AccountEnabled => bit(false, 0),
        EventType::CredentialCompromise | EventType::SessionsRevoked => both,
        EventType::CredentialChangeRequired => sign_in,
        EventType::Verification | EventType::StreamUpdated | EventType::Noted(_) => return Vec::new(),
    };
    let deny = Change { deny: Some(true), until: retained(hub.session_retain), ..Change::default() };
    let denied = Change { deny: Some(true), until: token_life, ..Change::default() };
    let each = subject.all().map(|(kind, key)| match kind {
        Kind::Session => (kind, key, deny),
        Kind::Token => (kind, key, denied),
        _ => (kind, key, change),
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_events_are_seconds_and_not_of_the_future() {
        let of = |event: Value| time_of(event.as_object().expect("an object"), 900, 1_000);
        for (event, want) in [
            (json!({}), 900),
            (json!({"event_timestamp": 500}), 500),
            (json!({"event_timestamp": 500.9}), 500),
            (json!({"event_timestamp": 1_700_000_000_000_i64}), 1_060),
            (json!({"event_timestamp": 990_000_000_000_i64}), 1_060),
            (json!({"event_timestamp": -5}), 900),
            (json!({"event_timestamp": "500"}), 900),
            (json!({"event_timestamp": 4_070_908_800_i64}), 1_060),
            (json!({"event_timestamp": 1e300}), 1_060),
        ] {
            assert_eq!(of(event.clone()), want, "{event}");
        }
        assert_eq!(time_of(&Map::new(), -1, 1_000), 0);
    }

    #[test]
    fn types_are_known_by_their_whole_uri() {
        for (uri, want) in [
            (format!("{CAEP}session-revoked"), Some("session-revoked")),
            (format!("{RISC}account-disabled"), Some("account-disabled")),
            (format!("{CAEP}account-disabled"), None),
            (format!("{SSF}verification"), Some("verification")),
            (format!("{CAEP}risk-level-change"), Some("risk-level-change")),
            ("session-revoked".to_owned(), None),
            (format!("{CAEP}new"), None),
        ] {
            assert_eq!(EventType::of(&uri).map(EventType::name), want, "{uri}");
        }
    }
}
