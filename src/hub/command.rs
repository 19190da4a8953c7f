//! Requests of administrators, and the change that each makes.

use serde::Deserialize;

use super::{HubSettings, LedgerError};
use crate::revocation::{Change, Fold, Kind, PERMANENT};

/// Bytes of a reason.
pub(super) const MAX_REASON_BYTES: usize = 256;
/// The bit of administrators among the sources that disable.
const ADMIN: u8 = 0;
/// Beyond the longest life of a token: clocks differ.
pub(super) const MARGIN: u32 = 120;
/// Denied keys and clients, seconds.
const DENIED: u32 = 400 * 86_400;

/// A request of an administrator, in the words of the API.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationRequest {
    pub kind: String,
    /// `iss`; not for keys.
    #[serde(default)]
    pub issuer: String,
    /// The join of a user (`sub` by default), `jti` or `digest` of a token, `jkt` or `x5t` of a key.
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub value: String,
    pub action: Action,
    /// Goes to the log, and nowhere else.
    pub reason: String,
    /// When it happened, in seconds since the epoch; now by default.
    pub at: Option<u32>,
}

/// The effect of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Rejects tokens issued until now: of a user, client, group, device or issuer. Denies a session, token or key.
    Revoke,
    /// Rejects tokens whose holder authenticated until now.
    Reauthenticate,
    /// Rejects all tokens until `enable`.
    Disable,
    /// Takes `disable` back; tokens issued until now stay rejected.
    Enable,
    /// Takes the denial of a session, token, key or client back.
    Allow,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Self::Revoke => "revoke",
            Self::Reauthenticate => "reauthenticate",
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Allow => "allow",
        }
    }
}

/// Why a request changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The member, and what it must be.
    #[error("`{0}`: {1}")]
    Request(&'static str, String),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// A request that makes sense.
#[derive(Debug)]
pub struct Command {
    pub kind: Kind,
    pub issuer: String,
    pub name: String,
    pub value: String,
    pub change: Change,
}

impl Command {
    pub fn new(request: &RevocationRequest, settings: &HubSettings, now: u32) -> Result<Self, CommandError> {
        let wrong = |member, what: &str| Err(CommandError::Request(member, what.to_owned()));
        let Some(kind) = Kind::named(&request.kind) else {
            let names = Kind::ALL.map(Kind::name).join(", ");
            return wrong("kind", &format!("expected one of {names}"));
        };
        if request.reason.trim().is_empty() || request.reason.len() > MAX_REASON_BYTES {
            return wrong("reason", &format!("expected 1 to {MAX_REASON_BYTES} bytes: it is in the log for the audit"));
        }
        let issuer = match (kind, settings.issuers.contains_key(&request.issuer)) {
            (Kind::Key, _) if request.issuer.is_empty() => String::new(),
            (Kind::Key, _) => return wrong("issuer", "a key belongs to no issuer"),
            (_, true) => request.issuer.clone(),
            (_, false) => {
                let known: Vec<_> = settings.issuers.keys().map(String::as_str).collect();
                return wrong("issuer", &format!("expected one of the configured issuers: {}", known.join(", ")));
            }
        };
        let (name, fold) = names(kind, request, settings)?;
        let value = match kind {
            Kind::Issuer if request.value.is_empty() => String::new(),
            Kind::Issuer => return wrong("value", "an issuer has none"),
            _ => match fold.apply(&request.value) {
                Some(value) => value,
                None => return wrong("value", "it is empty, too long, or not of the form of its join"),
            },
        };
        let at = request.at.unwrap_or_else(|| now.saturating_add(settings.skew));
        if at > now.saturating_add(60) {
            return wrong("at", "it is more than a minute ahead: it would reject tokens of the future");
        }
        let change = change(kind, request.action, at, now, settings)?;
        let has_no_effect = change.until <= now && change.disable.is_none() && change.deny.is_none();
        if has_no_effect {
            return wrong("at", "it is so long ago that no token of then is left: nothing would be rejected");
        }
        Ok(Self { kind, issuer, name, value, change })
    }
}

/// The name under which the value is known, and its form.
fn names(kind: Kind, request: &RevocationRequest, settings: &HubSettings) -> Result<(String, Fold), CommandError> {
    let given = request.name.as_str();
    let known: Vec<(&str, Fold)> = match kind {
        Kind::User => {
            let joins = settings.issuers.get(&request.issuer).map(|issuer| issuer.joins.as_slice()).unwrap_or_default();
            let joins = joins.iter().map(|join| (join.name.as_str(), join.fold));
            std::iter::once(("sub", Fold::Exact)).chain(joins).collect()
        }
        Kind::Token => vec![("jti", Fold::Exact), ("digest", Fold::Exact)],
        Kind::Key => vec![("jkt", Fold::Exact), ("x5t", Fold::Exact)],
        Kind::Session | Kind::Client | Kind::Group | Kind::Device | Kind::Issuer => vec![("", Fold::Exact)],
    };
    let wanted = |(name, _): &&(&str, Fold)| given == *name || given.is_empty();
    let found = known.iter().find(wanted).map(|(name, fold)| ((*name).to_owned(), *fold));
    let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
    found.ok_or_else(|| CommandError::Request("name", format!("expected one of: {}", names.join(", "))))
}

fn change(kind: Kind, action: Action, at: u32, now: u32, settings: &HubSettings) -> Result<Change, CommandError> {
    // Every token that was issued before is dead by then.
    let retained = |life: u32| at.saturating_add(life).saturating_add(MARGIN);
    let denied = match kind {
        Kind::Session => retained(settings.session_retain),
        Kind::Token => token_change(now.saturating_add(settings.retain), now).until,
        _ => now.saturating_add(DENIED),
    };
    let has_deny = matches!(kind, Kind::Session | Kind::Token | Kind::Key);
    let change = match action {
        Action::Revoke if has_deny => Change { deny: Some(true), until: denied, ..Change::default() },
        Action::Allow if has_deny => Change { deny: Some(false), ..Change::default() },
        Action::Allow => {
            return Err(refused(action, kind, "times are never taken back; `enable` takes `disable` back"));
        }
        _ if has_deny => return Err(refused(action, kind, "it can be revoked and allowed")),
        Action::Revoke => Change { not_before: at, until: retained(settings.retain), ..Change::default() },
        // As long as sessions live: a token that is refreshed keeps its `auth_time`.
        Action::Reauthenticate => Change {
            authenticated_not_before: at,
            until: retained(settings.retain.max(settings.session_retain)),
            ..Change::default()
        },
        Action::Disable => Change { disable: Some((ADMIN, true)), disabled_until: PERMANENT, ..Change::default() },
        Action::Enable => Change {
            disable: Some((ADMIN, false)),
            not_before: at,
            until: retained(settings.retain),
            ..Change::default()
        },
    };
    Ok(change)
}

/// The denial of a token that expires at `expires`: at most as long as keys are denied.
pub(super) fn token_change(expires: u32, now: u32) -> Change {
    let until = expires.min(now.saturating_add(DENIED)).saturating_add(MARGIN);
    Change { deny: Some(true), until, ..Change::default() }
}

fn refused(action: Action, kind: Kind, why: &str) -> CommandError {
    CommandError::Request("action", format!("`{}` is not for a {}: {why}", action.name(), kind.name()))
}
