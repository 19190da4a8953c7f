//! From a user of a provider to tokens: the keys that its links give, and their entries.
//!
//! A provider disables a key while one of its users with that key is inactive, or was deleted: a second user with the same value takes
//! nothing back.

use std::collections::BTreeSet;

use serde_json::Value;
use uuid::Uuid;

use super::directory::{Rows as _, Stored};
use super::error::ScimError;
use super::{Link, ScimSettings};
use crate::hub::LedgerError;
use crate::hub::ledger::Batch;
use crate::revocation::{Change, Fold, HubKey, IssuerJoins, Key, Kind, PERMANENT};
use crate::state::Table;

/// Key, source and user to the state of the user.
pub const LINKS: Table = Table("scim_link");
/// Source, user and key.
pub const KEYS: Table = Table("scim_key");
/// Source, hash of the name and user to the end of the tombstone and its keys.
pub const TOMBSTONES: Table = Table("scim_tombstone");
/// Source and user: no link gives a key.
pub const UNMAPPED: Table = Table("scim_unmapped");

/// Rows of one key or user that are read.
const MAX_ROWS: usize = 10_000;

/// The state of a user at its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Active,
    Inactive,
    Deleted,
}

/// Times of a change, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub now: u32,
    /// Tokens issued until then are revoked.
    pub at: u32,
    /// Until when that counts.
    pub until: u32,
    /// Until when a deleted user is remembered.
    pub deleted_until: u32,
}

/// The parts that links of a provider are computed from.
#[derive(Clone, Copy, Debug)]
pub struct Linker<'a> {
    pub settings: &'a ScimSettings,
    pub source: u8,
    pub hub_key: &'a HubKey,
    pub issuers: &'a std::collections::BTreeMap<String, IssuerJoins>,
    pub times: Times,
}

/// The result for a user's keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Some link gives a key.
    pub is_mapped: bool,
    /// Keys of an active user that stay disabled: another user with them is inactive or deleted.
    pub still_disabled: usize,
}

/// The state of a user in a row of its key: 0 active, or the second until which it disables.
fn state_of(row: &[u8]) -> u32 {
    row.try_into().map_or(PERMANENT, u32::from_be_bytes)
}

impl Linker<'_> {
    /// The keys of a user.
    pub fn keys(&self, user: &Stored) -> BTreeSet<Key> {
        self.keys_for(user, &self.settings.issuers)
    }

    /// The keys of a user for tokens of these issuers.
    pub fn keys_for(&self, user: &Stored, issuers: &[String]) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        for link in &self.settings.links {
            for value in values_of(link, user) {
                for issuer in issuers {
                    let joins = self.issuers.get(issuer).map(|known| known.joins.as_slice()).unwrap_or_default();
                    let join = joins.iter().find(|join| join.name == link.join).map(|join| join.fold);
                    let fold = join.or((link.join == "sub").then_some(Fold::Exact));
                    if let Some(value) = fold.and_then(|fold| fold.apply(value)) {
                        keys.insert(self.hub_key.key(Kind::User, issuer, &link.join, &value));
                    }
                }
            }
        }
        keys
    }

    /// Carries a change of a user over to its keys. `before` is none for a new user.
    ///
    /// # Errors
    /// A key is another user's, or the disk fails.
    pub fn relink(
        &self,
        batch: &mut Batch<'_>,
        id: Uuid,
        user: &Stored,
        before: Option<Standing>,
        after: Standing,
    ) -> Result<Outcome, ScimError> {
        let mut wanted = if after == Standing::Deleted { BTreeSet::new() } else { self.keys(user) };
        let known = self.known(batch, id)?;
        let is_mapped = !wanted.is_empty() || (after != Standing::Active && !known.is_empty());
        // Tokens of a user that leaves are revoked even if another has the value; a value that is taken is refused.
        let shared: Vec<Key> = wanted
            .iter()
            .filter_map(|key| self.is_shared(batch, key, id).map(|shared| shared.then_some(*key)).transpose())
            .collect::<Result<_, _>>()?;
        let disables = after == Standing::Inactive && before == Some(Standing::Active);
        if !shared.is_empty() && !disables {
            return Err(ScimError::taken("a value that links this user to tokens belongs to another user"));
        }
        shared.iter().for_each(|key| {
            wanted.remove(key);
        });
        if before.is_none() {
            self.end_tombstones(batch, user, &wanted)?;
        }
        let mut revoked: BTreeSet<Key> = shared.into_iter().collect();
        if after == Standing::Deleted {
            // Also of a value that it had beside another user, or since the links have changed.
            revoked.extend(self.keys(user));
        }
        for key in known.union(&wanted) {
            let is_lost = !wanted.contains(key);
            match after {
                Standing::Active if is_lost => {
                    self.put(batch, *key, id, None)?;
                    revoked.insert(*key);
                }
                Standing::Active => self.put(batch, *key, id, Some(0))?,
                Standing::Inactive => self.put(batch, *key, id, Some(PERMANENT))?,
                Standing::Deleted => self.put(batch, *key, id, Some(self.times.deleted_until))?,
            }
        }
        if after == Standing::Deleted {
            self.put_tombstone(batch, id, user, &known)?;
        }
        let mut still_disabled = 0usize;
        for key in known.union(&wanted).chain(&revoked).copied().collect::<BTreeSet<_>>() {
            let is_disabled = self.settle(batch, key, revoked.contains(&key))?;
            still_disabled = still_disabled.saturating_add(usize::from(is_disabled && after == Standing::Active));
        }
        self.note_mapped(batch, id, is_mapped || after == Standing::Deleted)?;
        Ok(Outcome { is_mapped, still_disabled })
    }

    /// Revokes the tokens that a user has now.
    ///
    /// # Errors
    /// The disk fails.
    pub fn revoke(&self, batch: &mut Batch<'_>, id: Uuid) -> Result<(), LedgerError> {
        self.known(batch, id)?.into_iter().try_for_each(|key| self.settle(batch, key, true).map(|_| ()))
    }

    /// The links of the configuration have changed: every user gets the keys that they give now. That revokes no tokens but
    /// those of users that are inactive.
    ///
    /// # Errors
    /// The disk fails.
    pub fn link_again(&self, batch: &mut Batch<'_>, id: Uuid, user: &Stored) -> Result<Outcome, LedgerError> {
        let (wanted, known) = (self.keys(user), self.known(batch, id)?);
        let state = if user.is_active() { 0 } else { PERMANENT };
        let mut outcome = Outcome { is_mapped: !wanted.is_empty(), still_disabled: 0 };
        for key in known.union(&wanted) {
            if !wanted.contains(key) && user.is_active() {
                self.put(batch, *key, id, None)?;
            } else if !known.contains(key) && self.is_shared(batch, key, id)? {
                outcome.still_disabled = outcome.still_disabled.saturating_add(1);
                if !user.is_active() {
                    self.settle(batch, *key, true)?;
                }
                continue;
            } else {
                self.put(batch, *key, id, Some(state))?;
            }
            self.settle(batch, *key, false)?;
        }
        self.note_mapped(batch, id, outcome.is_mapped)?;
        Ok(outcome)
    }

    /// Remembers a user whom no link maps, or no longer.
    fn note_mapped(&self, batch: &Batch<'_>, id: Uuid, is_mapped: bool) -> Result<(), LedgerError> {
        let row = self.user_key(id);
        match is_mapped {
            true => batch.writing.remove(UNMAPPED, &row)?,
            false => batch.writing.put(UNMAPPED, &row, &[])?,
        }
        Ok(())
    }

    fn user_key(&self, id: Uuid) -> Vec<u8> {
        [&[self.source], id.as_bytes().as_slice()].concat()
    }

    /// The keys that a user has now.
    fn known(&self, batch: &Batch<'_>, id: Uuid) -> Result<BTreeSet<Key>, LedgerError> {
        let rows = batch.rows(KEYS, &self.user_key(id), MAX_ROWS)?;
        Ok(rows.iter().filter_map(|(key, _)| key.last_chunk::<16>().copied()).collect())
    }

    fn put(&self, batch: &Batch<'_>, key: Key, id: Uuid, state: Option<u32>) -> Result<(), LedgerError> {
        let link = self.link_key(key, id);
        let own = [self.user_key(id).as_slice(), key.as_slice()].concat();
        match state {
            Some(state) => {
                batch.writing.put(LINKS, &link, &state.to_be_bytes())?;
                // The keys of a deleted user are in its tombstone.
                match state == self.times.deleted_until {
                    true => batch.writing.remove(KEYS, &own)?,
                    false => batch.writing.put(KEYS, &own, &[])?,
                }
            }
            None => {
                batch.writing.remove(LINKS, &link)?;
                batch.writing.remove(KEYS, &own)?;
            }
        }
        Ok(())
    }

    fn link_key(&self, key: Key, id: Uuid) -> Vec<u8> {
        [key.as_slice(), &[self.source], id.as_bytes()].concat()
    }

    /// True if another user that is not deleted has the key.
    fn is_shared(&self, batch: &Batch<'_>, key: &Key, id: Uuid) -> Result<bool, LedgerError> {
        let rows = batch.rows(LINKS, &[key.as_slice(), &[self.source]].concat(), MAX_ROWS)?;
        let is_other = |row: &[u8], state: u32| !row.ends_with(id.as_bytes()) && (state == 0 || state == PERMANENT);
        Ok(rows.iter().any(|(row, state)| is_other(row, state_of(state))))
    }

    /// Gives the entry of a key the provider's bit as its users have it now; true if it is set.
    fn settle(&self, batch: &mut Batch<'_>, key: Key, is_revoked: bool) -> Result<bool, LedgerError> {
        let rows = batch.rows(LINKS, &[key.as_slice(), &[self.source]].concat(), MAX_ROWS)?;
        let until = rows.iter().map(|(_, state)| state_of(state)).max().unwrap_or_default();
        let disables = until > self.times.now;
        let entry = batch.entry(&key)?;
        let bit = 1u16.checked_shl(self.source.into()).unwrap_or_default();
        let is_set = entry.disabled & bit != 0;
        let has_other_end = disables && entry.disabled == bit && entry.disabled_until != until;
        let has_changed = disables != is_set;
        // Also when it is taken away: tokens issued meanwhile stay revoked.
        let revokes = is_revoked || has_changed;
        let mut change = Change::default();
        if has_changed || has_other_end {
            change.disable = Some((self.source, disables));
            change.disabled_until = if disables { until } else { 0 };
        }
        if revokes {
            (change.not_before, change.until) = (self.times.at, self.times.until);
        }
        if change != Change::default() {
            batch.apply(Kind::User, key, &change)?;
        }
        Ok(disables)
    }

    /// The hash of a user's name, for its tombstone.
    fn name_key(&self, user: &Stored) -> Key {
        let name = user.text("userName").unwrap_or_default().to_lowercase();
        self.hub_key.key(Kind::User, "scim", &self.settings.name, &name)
    }

    fn put_tombstone(
        &self,
        batch: &Batch<'_>,
        id: Uuid,
        user: &Stored,
        keys: &BTreeSet<Key>,
    ) -> Result<(), LedgerError> {
        if keys.is_empty() {
            return Ok(());
        }
        let row = [&[self.source], self.name_key(user).as_slice(), id.as_bytes()].concat();
        let until = self.times.deleted_until.to_be_bytes();
        let value: Vec<u8> = until.into_iter().chain(keys.iter().flatten().copied()).collect();
        Ok(batch.writing.put(TOMBSTONES, &row, &value)?)
    }

    /// A user comes back under its name: the keys that it has again are its own.
    fn end_tombstones(&self, batch: &Batch<'_>, user: &Stored, wanted: &BTreeSet<Key>) -> Result<(), LedgerError> {
        let prefix = [&[self.source], self.name_key(user).as_slice()].concat();
        for (row, value) in batch.rows(TOMBSTONES, &prefix, MAX_ROWS)? {
            self.end_tombstone(batch, &row, &value, |key| wanted.contains(key))?;
        }
        Ok(())
    }

    /// Ends the keys of a tombstone that `is_over` names; gives them.
    fn end_tombstone(
        &self,
        batch: &Batch<'_>,
        row: &[u8],
        value: &[u8],
        is_over: impl Fn(&Key) -> bool,
    ) -> Result<Vec<Key>, LedgerError> {
        let (Some(id), Some((until, keys))) = (row.last_chunk::<16>(), value.split_first_chunk::<4>()) else {
            return Err(LedgerError::Format);
        };
        let all = keys.chunks_exact(16).filter_map(|key| Key::try_from(key).ok());
        let (over, kept): (Vec<Key>, Vec<Key>) = all.partition(|key| is_over(key));
        for key in &over {
            batch.writing.remove(LINKS, &self.link_key(*key, Uuid::from_bytes(*id)))?;
        }
        match (over.is_empty(), kept.is_empty()) {
            (true, _) => {}
            (false, true) => batch.writing.remove(TOMBSTONES, row)?,
            (false, false) => {
                let value = [until.as_slice(), kept.concat().as_slice()].concat();
                batch.writing.put(TOMBSTONES, row, &value)?;
            }
        }
        Ok(over)
    }

    /// Forgets deleted users whose time is over, a number of them at a time.
    ///
    /// # Errors
    /// The disk fails.
    pub fn forget_deleted(&self, batch: &mut Batch<'_>, rows: &[(Vec<u8>, Vec<u8>)]) -> Result<(), LedgerError> {
        for (row, value) in rows {
            for key in self.end_tombstone(batch, row, value, |_| true)? {
                self.settle(batch, key, false)?;
            }
        }
        Ok(())
    }

    /// True for the row of a deleted user whose time is over.
    pub fn is_over(&self, value: &[u8]) -> bool {
        value.first_chunk::<4>().is_some_and(|until| u32::from_be_bytes(*until) <= self.times.now)
    }
}

/// The values that a link takes from a user.
pub fn values_of<'a>(link: &Link, user: &'a Stored) -> Vec<&'a str> {
    let holder = match link.attribute.rsplit_once(':') {
        Some((urn, name)) if urn != super::schema::USER => {
            user.attributes.get(urn).and_then(|extension| extension.get(name))
        }
        Some((_, name)) => user.attributes.get(name),
        None => user.attributes.get(&link.attribute),
    };
    match holder {
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => items.iter().filter_map(|item| item.get("value")?.as_str()).collect(),
        _ => Vec::new(),
    }
}
