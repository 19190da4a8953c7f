//! A SCIM 2.0 service provider (RFC 7643 and RFC 7644) for each directory that provisions users: tokens of users
//! that are inactive or deleted there are rejected.
//!
//! A change is in the ledger's file together with the entries that it makes, before it is answered.

mod answer;
mod directory;
mod discovery;
mod error;
mod filter;
mod links;
mod patch;
mod schema;
mod search;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use http::{Method, StatusCode};
use serde_json::Value;
use uuid::Uuid;

pub use self::answer::ScimAnswer;
use self::directory::Stored;
use self::error::ScimError;
use self::links::{Linker, Times};
use self::schema::{ResourceType, Schemas};
use self::search::Query;
use super::command::MARGIN;
use super::rate::Rate;
use super::{Credentials, Hub, LedgerError};
use crate::revocation::{Key, PERMANENT};
use crate::state::Table;
use crate::telemetry::chain;
use crate::value::{DuplicateKeys, JsonLimits, parse_json, to_serde_json};

/// The tables of all providers.
pub(super) const TABLES: &[Table] = &[
    directory::RESOURCES,
    directory::INDEX,
    directory::MEMBERS,
    links::LINKS,
    links::KEYS,
    links::TOMBSTONES,
    links::UNMAPPED,
];

/// The byte of a row's key that has the number of its provider.
pub(super) fn source_at(table: Table) -> usize {
    if table == links::LINKS { size_of::<Key>() } else { 0 }
}

/// Depth of a body.
const MAX_DEPTH: usize = 32;
/// Attributes that the configuration of a provider names.
pub const MAX_ATTRIBUTES: usize = 8;
/// Links of a provider.
pub const MAX_LINKS: usize = 8;
/// Deleted users that are forgotten at a time.
const MAX_FORGOTTEN: usize = 1_000;
/// Users without a key that are counted.
const MAX_UNMAPPED: i64 = 10_000;
/// Users that are linked again in one change.
const MAX_LINKED: usize = 500;

/// An attribute of a user that has the value of a claim of its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// `userName`, `externalId`, `emails` (each address), or one of the further attributes.
    pub attribute: String,
    /// The join of the issuers.
    pub join: String,
}

/// A provider, as configured.
#[derive(Clone, Debug)]
pub struct ScimSettings {
    /// In its address, and in the log.
    pub name: String,
    pub credentials: Credentials,
    /// Issuers whose tokens it decides about.
    pub issuers: Vec<String>,
    pub links: Vec<Link>,
    /// Further attributes of users, for links.
    pub attributes: Vec<String>,
    /// Disabling a user that no link maps is answered as an error.
    pub refuses_unmapped: bool,
    /// A user that is removed from a group needs new tokens.
    pub revokes_members: bool,
    /// Only groups with one of these names or external identifiers; empty: all.
    pub watched_groups: Vec<String>,
    /// Requests per second.
    pub rate: u32,
}

/// A provider that runs.
#[derive(Debug)]
pub struct Provider {
    settings: ScimSettings,
    schemas: Schemas,
    /// Its bit among those that disable.
    pub(super) source: u8,
    /// `https://hub.example/scim/okta/v2`.
    base: String,
    rate: Rate,
    /// When it last sent a request with its credential, in seconds since the epoch; 0 before.
    heard: AtomicI64,
}

/// A request to a provider.
#[derive(Clone, Debug)]
pub struct ScimRequest {
    pub method: Method,
    /// The parts of the path after `/scim/<provider>/v2/`, decoded.
    pub path: Vec<String>,
    pub query: Vec<(String, String)>,
    pub content_type: Option<String>,
    pub body: bytes::Bytes,
}

impl Provider {
    pub(super) fn new(settings: &ScimSettings, source: u8, public_url: &str) -> Self {
        let base = format!("{}/scim/{}/v2", public_url.trim_end_matches('/'), settings.name);
        Self {
            settings: settings.clone(),
            schemas: Schemas::new(&settings.attributes),
            source,
            base,
            rate: Rate::new(settings.rate),
            heard: AtomicI64::new(0),
        }
    }

    /// Its name, and when it was last heard of, in seconds since the epoch.
    pub(super) fn heard(&self) -> (&str, i64) {
        (&self.settings.name, self.heard.load(Ordering::Acquire))
    }
}

impl Hub {
    /// The provider of this name, for its credential. Waits for the disk.
    pub fn provider(&self, name: &str, bearer: Option<&str>) -> Option<Arc<Provider>> {
        let known = self.providers.iter().find(|known| known.settings.name == name)?;
        known.settings.credentials.admit(bearer).then(|| Arc::clone(known))
    }

    /// Answers a request of a provider; a change is durable then. Waits for the disk.
    pub fn scim(&self, provider: &Provider, request: &ScimRequest) -> ScimAnswer {
        provider.heard.store(self.clock.now(), Ordering::Release);
        let answer = match provider.rate.take() {
            true => self.scim_answer(provider, request),
            false => ScimAnswer { retry_after: Some(1), ..ScimAnswer::error(429, None, "too many requests") },
        };
        self.metrics.scim(&provider.settings.name, request.method.as_str(), answer.status);
        answer
    }

    fn scim_answer(&self, provider: &Provider, request: &ScimRequest) -> ScimAnswer {
        match self.scim_route(provider, request) {
            Ok(answer) => answer,
            Err(ScimError::Request { status, scim_type, detail }) => ScimAnswer::error(status, scim_type, &detail),
            Err(ScimError::Ledger(error)) => {
                self.metrics.failed(&error);
                tracing::error!(error = chain(&error), "a request of a SCIM provider was not carried out");
                let why = "the change is not on disk; come again";
                ScimAnswer { retry_after: Some(30), ..ScimAnswer::error(503, None, why) }
            }
        }
    }

    fn scim_route(&self, provider: &Provider, request: &ScimRequest) -> Result<ScimAnswer, ScimError> {
        let path: Vec<&str> = request.path.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        let method = &request.method;
        let is_get = method == Method::GET;
        let query = || Query::of_pairs(&request.query);
        let kind = path.first().and_then(|first| ResourceType::ALL.into_iter().find(|kind| kind.endpoint() == *first));
        match (kind, path.as_slice()) {
            (_, []) if is_get => self.search(provider, &ResourceType::ALL, &query()?),
            (_, [".search"]) if method == Method::POST => {
                self.search(provider, &ResourceType::ALL, &Query::of_body(&body(request)?)?)
            }
            (_, [] | [".search"]) => Ok(ScimAnswer::not_allowed(if path.is_empty() { "GET" } else { "POST" })),
            (Some(kind), [_]) if is_get => self.search(provider, &[kind], &query()?),
            (Some(kind), [_]) if method == Method::POST => self.create(provider, kind, &body(request)?),
            (Some(_), [_]) => Ok(ScimAnswer::not_allowed("GET, POST")),
            (Some(kind), [_, ".search"]) if method == Method::POST => {
                self.search(provider, &[kind], &Query::of_body(&body(request)?)?)
            }
            (Some(_), [_, ".search"]) => Ok(ScimAnswer::not_allowed("POST")),
            (Some(kind), [_, id]) => {
                let absent = || ScimError::absent(&format!("{} `{id}`", kind.name()));
                // Only in the form in which it was given.
                let id = Uuid::parse_str(id).ok().filter(|parsed| parsed.to_string() == *id).ok_or_else(absent)?;
                match method.as_str() {
                    "GET" => self.read(provider, kind, id, &query()?),
                    "PUT" => self.replace(provider, kind, id, &body(request)?, &query()?),
                    "PATCH" => self.patch(provider, kind, id, &body(request)?, &query()?),
                    "DELETE" => self.delete(provider, kind, id),
                    _ => Ok(ScimAnswer::not_allowed("GET, PUT, PATCH, DELETE")),
                }
            }
            (None, ["Me" | "Bulk", ..]) => Err(ScimError::new(501, None, "it is not offered")),
            (None, [first @ ("ServiceProviderConfig" | "ResourceTypes" | "Schemas"), rest @ ..]) if rest.len() < 2 => {
                if !is_get {
                    return Ok(ScimAnswer::not_allowed("GET"));
                }
                if request.query.iter().any(|(name, _)| name == "filter") {
                    return Err(ScimError::new(403, None, "these are not filtered"));
                }
                discovery::answer(provider, first, rest.first().copied())
            }
            _ => Err(ScimError::absent("such address")),
        }
    }

    /// The links of a provider, at this moment.
    fn linker<'a>(&'a self, provider: &'a Provider) -> Linker<'a> {
        let now = self.now();
        let at = now.saturating_add(self.settings.skew);
        Linker {
            settings: &provider.settings,
            source: provider.source,
            hub_key: self.ledger.hub_key(),
            issuers: &self.settings.issuers,
            times: Times {
                now,
                at,
                until: at.saturating_add(self.settings.retain).saturating_add(MARGIN),
                // Before the end of time, which inactive users have.
                deleted_until: now.saturating_add(self.settings.deleted_retention).min(PERMANENT.saturating_sub(1)),
            },
        }
    }

    /// Gives every user the keys that the links give now, where they have changed since the last start.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn link_all_again(&self) -> Result<(), LedgerError> {
        for provider in &self.providers {
            let linker = self.linker(provider);
            let mapping = format!("{:?} {:?} {:?}", provider.settings.links, provider.settings.issuers, linker.issuers);
            let digest = self.ledger.hub_key().key(crate::revocation::Kind::User, "links", "", &mapping);
            let name = format!("links:{}", provider.source);
            if self.ledger.meta(&name)?.is_some_and(|known| known == digest) {
                continue;
            }
            let mut users = Vec::new();
            let collected = directory::each(&self.ledger, provider.source, ResourceType::User, |id, row| {
                users.push((id, Stored::parse(row)?));
                Ok(true)
            });
            match collected {
                Ok(()) => {}
                Err(ScimError::Ledger(error)) => return Err(error),
                Err(ScimError::Request { .. }) => return Err(LedgerError::Format),
            }
            let mut conflicts = 0usize;
            for chunk in users.chunks(MAX_LINKED) {
                self.change("link", |batch| -> Result<(), LedgerError> {
                    for (id, user) in chunk {
                        let outcome = linker.link_again(batch, *id, user)?;
                        conflicts = conflicts.saturating_add(outcome.still_disabled);
                    }
                    Ok(())
                })?;
            }
            self.ledger.set_meta(&name, &digest)?;
            if !users.is_empty() {
                let (provider, users) = (&provider.settings.name, users.len());
                tracing::info!(provider, users, conflicts, "users were linked again: the configuration has changed");
            }
        }
        self.count_unmapped()
    }

    /// Forgets deleted users whose time is over.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn forget_deleted(&self) -> Result<(), LedgerError> {
        for provider in &self.providers {
            let linker = self.linker(provider);
            let mut over = Vec::new();
            self.ledger.scan(links::TOMBSTONES, &[provider.source], |row, value| {
                if linker.is_over(value) {
                    over.push((row.to_vec(), value.to_vec()));
                }
                over.len() < MAX_FORGOTTEN
            })?;
            if !over.is_empty() {
                self.change_locked("forget", |batch| linker.forget_deleted(batch, &over))?;
            }
        }
        Ok(())
    }

    /// Counts the users whom no link maps.
    pub(super) fn count_unmapped(&self) -> Result<(), LedgerError> {
        for provider in &self.providers {
            let mut count = 0i64;
            self.ledger.scan(links::UNMAPPED, &[provider.source], |_, _| {
                count = count.saturating_add(1);
                count < MAX_UNMAPPED
            })?;
            self.metrics.unmapped(&provider.settings.name, count);
        }
        Ok(())
    }
}

/// A link with the values that a user has for it.
#[derive(Debug)]
pub(super) struct LinkedValue<'a> {
    pub link: &'a Link,
    pub values: Vec<String>,
}

/// The values of each link of a provider for a user as the provider sends it.
///
/// # Errors
/// It is no user.
pub(super) fn linked_values<'a>(settings: &'a ScimSettings, user: &Value) -> Result<Vec<LinkedValue<'a>>, String> {
    let Some(members) = user.as_object() else { return Err("the user is no object".to_owned()) };
    let read = Schemas::new(&settings.attributes).read(ResourceType::User, members);
    let attributes = read.map_err(|error| error.to_string())?;
    let user = Stored { created: String::new(), modified: String::new(), attributes };
    let values = |link| links::values_of(link, &user).into_iter().map(str::to_owned).collect();
    Ok(settings.links.iter().map(|link| LinkedValue { link, values: values(link) }).collect())
}

/// The keys of the one user that has a name or an address, in each of these providers.
///
/// # Errors
/// The file cannot be read.
pub(super) fn keys_of_address(
    hub: &Hub,
    providers: &[String],
    issuers: &[String],
    address: &str,
) -> Result<BTreeSet<Key>, LedgerError> {
    let mut keys = BTreeSet::new();
    // Only keys of issuers for which both the stream and the directory speak.
    for provider in hub.providers.iter().filter(|known| providers.contains(&known.settings.name)) {
        let find = |attribute| {
            let found = directory::find(&hub.ledger, provider.source, ResourceType::User, attribute, address)?;
            Ok::<_, LedgerError>(found.unwrap_or_default())
        };
        // A name is one user's; an address may be of several.
        let by_name = find("userName")?;
        let found = if by_name.is_empty() { find("emails")? } else { by_name };
        // An address of several is no one's.
        if let (Some(id), 1) = (found.first(), found.len())
            && let Some(user) = directory::get(&hub.ledger, provider.source, ResourceType::User, *id)?
        {
            let both: Vec<String> =
                issuers.iter().filter(|issuer| provider.settings.issuers.contains(issuer)).cloned().collect();
            keys.extend(hub.linker(provider).keys_for(&user, &both));
        }
    }
    Ok(keys)
}

/// The body of a request, an object.
fn body(request: &ScimRequest) -> Result<serde_json::Map<String, Value>, ScimError> {
    let media = request.content_type.as_deref().unwrap_or("application/scim+json");
    let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !["application/scim+json", "application/json"].contains(&media.as_str()) {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE.as_u16();
        return Err(ScimError::new(status, None, "expected application/scim+json"));
    }
    let limits = JsonLimits { depth: MAX_DEPTH, duplicates: DuplicateKeys::Refuse };
    let value = parse_json(&request.body, limits).map_err(|error| ScimError::syntax(error.to_string()))?;
    match to_serde_json(&value, MAX_DEPTH.saturating_add(1)) {
        Some(Value::Object(members)) => Ok(members),
        _ => Err(ScimError::syntax("expected an object")),
    }
}

#[cfg(test)]
mod tests;
