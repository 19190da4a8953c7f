//! Subjects of events (RFC 9493, and complex subjects of Shared Signals 1.0): the keys that they name.
//!
//! A stream speaks for its own issuers and for no others. A subject that names no one here is no error: the event is counted.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::StreamSettings;
use crate::hub::LedgerError;
use crate::revocation::{Fold, HubKey, IssuerJoins, Key, Kind};

/// The session of Keycloak that is all sessions of a user.
const ALL_SESSIONS: &str = "ALL";
/// Identifiers of one subject.
const MAX_ALIASES: usize = 16;

/// Why a subject is none.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

fn invalid<T>(message: impl Into<String>) -> Result<T, SubjectError> {
    Err(SubjectError::Invalid(message.into()))
}

/// The keys of a subject.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    pub users: BTreeSet<Key>,
    pub sessions: BTreeSet<Key>,
    pub tokens: BTreeSet<Key>,
    pub clients: BTreeSet<Key>,
    pub groups: BTreeSet<Key>,
    pub devices: BTreeSet<Key>,
    /// The users whose session it is, where it names one.
    pub owners: BTreeSet<Key>,
}

impl Subject {
    /// The same, for an event about an account: that of the user, whichever session is named with it.
    pub fn of_account(self) -> Self {
        match self.owners.is_empty() {
            true => self,
            false => Self { users: self.owners, ..Self::default() },
        }
    }

    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// Every key, with its kind.
    pub fn all(&self) -> impl Iterator<Item = (Kind, Key)> {
        let sets = [
            (Kind::User, &self.users),
            (Kind::Session, &self.sessions),
            (Kind::Token, &self.tokens),
            (Kind::Client, &self.clients),
            (Kind::Group, &self.groups),
            (Kind::Device, &self.devices),
        ];
        sets.into_iter().flat_map(|(kind, keys)| keys.iter().map(move |key| (kind, *key)))
    }

    fn extend(&mut self, other: Self) {
        self.users.extend(other.users);
        self.sessions.extend(other.sessions);
        self.tokens.extend(other.tokens);
        self.clients.extend(other.clients);
        self.groups.extend(other.groups);
        self.devices.extend(other.devices);
        self.owners.extend(other.owners);
    }
}

/// Finds the keys of users that a directory knows under a name or an address.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Result<BTreeSet<Key>, LedgerError>;

/// The parts that subjects of a stream are matched with.
#[derive(Clone, Copy)]
pub struct Subjects<'a> {
    pub settings: &'a StreamSettings,
    pub issuers: &'a BTreeMap<String, IssuerJoins>,
    pub hub_key: &'a HubKey,
    pub directories: Lookup<'a>,
}

impl std::fmt::Debug for Subjects<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subjects").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn text<'a>(subject: &'a Map<String, Value>, name: &str) -> Result<&'a str, SubjectError> {
    match subject.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()) {
        Some(text) => Ok(text),
        None => invalid(format!("the subject has no `{name}`")),
    }
}

impl Subjects<'_> {
    /// The keys of a subject, simple or complex.
    ///
    /// # Errors
    /// It is none, or the file cannot be read.
    pub fn keys(&self, subject: &Value) -> Result<Subject, SubjectError> {
        let Some(members) = subject.as_object() else { return invalid("the subject is no object") };
        match self.format_of(members).as_deref() {
            None | Some("complex") => self.complex(members),
            Some(format) => self.simple(format, members),
        }
    }

    /// The identifier format, without one: a complex subject. Older drafts have hyphens and another name.
    fn format_of(&self, subject: &Map<String, Value>) -> Option<String> {
        let format = subject.get("format").and_then(Value::as_str);
        let older = || subject.get("subject_type").and_then(Value::as_str).filter(|_| self.settings.dialect.is_older());
        format.or_else(older).map(|format| format.replace('-', "_"))
    }

    fn simple(&self, format: &str, subject: &Map<String, Value>) -> Result<Subject, SubjectError> {
        let users = match format {
            "iss_sub" => {
                let (issuer, sub) = (text(subject, "iss")?, text(subject, "sub")?);
                match self.settings.subject_issuers.get(issuer) {
                    Some(join) => self.users_by(join, sub),
                    None if self.settings.issuers.iter().any(|known| known == issuer) => {
                        BTreeSet::from([self.hub_key.key(Kind::User, issuer, "sub", sub)])
                    }
                    None => BTreeSet::new(),
                }
            }
            "email" => self.users_by_address(text(subject, "email")?)?,
            "account" => {
                let uri = text(subject, "uri")?;
                self.users_by_address(uri.strip_prefix("acct:").unwrap_or(uri))?
            }
            "opaque" => {
                let id = text(subject, "id")?;
                self.settings.opaque_is.as_deref().map(|join| self.users_by(join, id)).unwrap_or_default()
            }
            "jwt_id" => {
                let (issuer, id) = (text(subject, "iss")?, text(subject, "jti")?);
                let is_ours = self.settings.issuers.iter().any(|known| known == issuer);
                let key = is_ours.then(|| self.hub_key.key(Kind::Token, issuer, "jti", id));
                return Ok(Subject { tokens: key.into_iter().collect(), ..Subject::default() });
            }
            "aliases" => {
                let listed = subject.get("identifiers").and_then(Value::as_array);
                let Some(listed) = listed.filter(|listed| (1..=MAX_ALIASES).contains(&listed.len())) else {
                    return invalid(format!("`identifiers`: expected 1 to {MAX_ALIASES}"));
                };
                let mut all = Subject::default();
                for alias in listed {
                    let Some(alias) = alias.as_object() else { return invalid("an alias is no object") };
                    match self.format_of(alias).as_deref() {
                        None | Some("aliases" | "complex") => return invalid("an alias is no simple subject"),
                        Some(format) => all.extend(self.simple(format, alias)?),
                    }
                }
                return Ok(all);
            }
            other => {
                let name = match other {
                    "phone_number" => "phone_number",
                    "did" => "url",
                    _ => "uri",
                };
                let join = self.settings.format_is.get(other);
                match (join, subject.get(name).and_then(Value::as_str)) {
                    (Some(join), Some(value)) => self.users_by(join, value),
                    _ => BTreeSet::new(),
                }
            }
        };
        Ok(Subject { users, ..Subject::default() })
    }

    /// Each member narrows: a session is less than its user.
    fn complex(&self, subject: &Map<String, Value>) -> Result<Subject, SubjectError> {
        let part = |name: &str| subject.get(name).filter(|part| !part.is_null());
        for name in ["tenant", "org_unit"] {
            let Some(part) = part(name) else { continue };
            let id = ["id", "uri", "sub"].iter().find_map(|name| part.get(*name)?.as_str());
            // A stream without a tenant of its own cannot know whom that means.
            if id.is_none() || id != self.settings.tenant.as_deref() {
                return Ok(Subject::default());
            }
        }
        let user = part("user").map(|user| self.keys_of_user(user)).transpose()?;
        let device = part("device").map(|device| self.of_issuers(device, Kind::Device)).transpose()?;
        if let Some(session) = part("session") {
            let sessions = self.of_issuers(session, Kind::Session)?;
            let is_all = session.get("id").and_then(Value::as_str) == Some(ALL_SESSIONS);
            let owners = user.unwrap_or_default();
            // Keycloak names all sessions of a user so; one without an identifier is no less.
            if (sessions.is_empty() || is_all) && !owners.is_empty() {
                return Ok(Subject { users: owners, ..Subject::default() });
            }
            return Ok(Subject { sessions, owners, ..Subject::default() });
        }
        if let Some(devices) = device.filter(|devices| !devices.is_empty()) {
            return Ok(Subject { devices, ..Subject::default() });
        }
        if let Some(users) = user {
            return Ok(Subject { users, ..Subject::default() });
        }
        if let Some(group) = part("group") {
            return Ok(Subject { groups: self.of_issuers(group, Kind::Group)?, ..Subject::default() });
        }
        if let Some(application) = part("application") {
            return Ok(Subject { clients: self.of_issuers(application, Kind::Client)?, ..Subject::default() });
        }
        match subject.is_empty() {
            true => invalid("the subject is empty"),
            false => Ok(Subject::default()),
        }
    }

    fn keys_of_user(&self, user: &Value) -> Result<BTreeSet<Key>, SubjectError> {
        let Some(members) = user.as_object() else { return invalid("`user` is no object") };
        // Okta leaves the format out.
        let format = self.format_of(members).or_else(|| {
            let is_pair = members.contains_key("iss") && members.contains_key("sub");
            (is_pair && self.settings.dialect.is_older()).then(|| "iss_sub".to_owned())
        });
        match format.as_deref() {
            None | Some("complex") => invalid("`user` is no simple subject"),
            Some(format) => Ok(self.simple(format, members)?.users),
        }
    }

    /// The keys of an identifier under every issuer of the stream.
    fn of_issuers(&self, part: &Value, kind: Kind) -> Result<BTreeSet<Key>, SubjectError> {
        let Some(members) = part.as_object() else { return invalid(format!("`{}` is no object", kind.name())) };
        let id = ["id", "sub", "uri", "jti"].iter().find_map(|name| members.get(*name)?.as_str());
        let Some(id) = id.filter(|id| Fold::Exact.apply(id).is_some()) else { return Ok(BTreeSet::new()) };
        let is_found = |issuer: &&String| {
            let joins = self.issuers.get(*issuer);
            kind != Kind::Device || joins.is_some_and(|joins| joins.device_claim.is_some())
        };
        let issuers = self.settings.issuers.iter().filter(is_found);
        Ok(issuers.map(|issuer| self.hub_key.key(kind, issuer, "", id)).collect())
    }

    /// The keys of a value under a join, for every issuer that has it.
    fn users_by(&self, name: &str, value: &str) -> BTreeSet<Key> {
        let key = |issuer: &String| {
            let joins = self.issuers.get(issuer).map(|known| known.joins.as_slice()).unwrap_or_default();
            let fold = joins.iter().find(|join| join.name == name).map(|join| join.fold);
            let fold = fold.or((name == "sub").then_some(Fold::Exact))?;
            Some(self.hub_key.key(Kind::User, issuer, name, &fold.apply(value)?))
        };
        self.settings.issuers.iter().filter_map(key).collect()
    }

    /// The keys of an address: by joins that are addresses, and of the one user of a directory with it.
    fn users_by_address(&self, address: &str) -> Result<BTreeSet<Key>, SubjectError> {
        let joins = self.settings.issuers.iter().filter_map(|issuer| self.issuers.get(issuer));
        let names: BTreeSet<&str> = joins
            .flat_map(|known| &known.joins)
            .filter(|join| join.fold == Fold::Email)
            .map(|join| join.name.as_str())
            .collect();
        let mut users: BTreeSet<Key> = names.into_iter().flat_map(|name| self.users_by(name, address)).collect();
        users.extend((self.directories)(address)?);
        Ok(users)
    }
}
