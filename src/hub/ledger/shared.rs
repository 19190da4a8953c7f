//! A ledger that hubs share: each follows what the others change, and has everything in memory. When the server loses its data, or an
//! older replica takes its place, every hub merges its copy into the ledger: in doubt a token is revoked.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest;
use parking_lot::Mutex;

use super::sources::SOURCE;
use super::{ENTRIES, LOG, Ledger, LedgerError, META, Merged, News, entry_of, logged, number, put_change, seq_of};
use crate::revocation::{Entry, Key, Line};
use crate::state::Writing;

/// Changes of other hubs that are taken within an own change; beyond, they are read first.
const MAX_MISSED: u64 = 1_000;
/// Entries that are put back at a time.
const HEALED: usize = 1_000;
/// Bytes of the secret, at least and at most.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 32..=4_096;

/// The copy of a shared ledger that a hub has in memory.
#[derive(Debug, Default)]
pub struct Mirror {
    /// With the kind, as in the table.
    pub entries: BTreeMap<Key, (u8, Entry)>,
    /// The rows of sources with their numbers.
    pub sources: BTreeMap<Vec<u8>, u8>,
    /// That of the server, when it was last found to be whole.
    generation: String,
    /// The sources have other numbers there.
    has_moved: bool,
}

impl Mirror {
    pub fn of(generation: String) -> Self {
        Self { generation, ..Self::default() }
    }

    /// Takes a change. Gives the kind of its entry, and true where it is new, false where it has gone.
    pub fn set(&mut self, change: &Merged) -> (u8, Option<bool>) {
        let Line::Changed { key, entry, .. } = change.line else { return (change.kind, None) };
        if entry == Entry::default() {
            let gone = self.entries.remove(&key);
            return (gone.map_or(change.kind, |(kind, _)| kind), gone.map(|_| false));
        }
        let before = self.entries.insert(key, (change.kind, entry));
        (change.kind, before.is_none().then_some(true))
    }
}

/// The key of all hubs in hex, from the secret in this file.
pub fn secret(path: &Path) -> Result<String, LedgerError> {
    let unusable = || LedgerError::KeyFile(path.to_owned());
    let bytes = std::fs::read(path).map_err(|_| unusable())?;
    let secret = bytes.trim_ascii();
    if !SECRET_BYTES.contains(&secret.len()) {
        return Err(unusable());
    }
    Ok(hex::encode(digest::digest(&digest::SHA256, &[b"stepgate hub key\n", secret].concat())))
}

/// The key is the one that made the ledger. A new ledger gets a digest of it.
pub fn check_key(writing: &Writing<'_>, secret: &str) -> Result<(), LedgerError> {
    let check = digest::digest(&digest::SHA256, &[b"check\n", secret.as_bytes()].concat());
    match writing.get(META, b"key_check")? {
        Some(known) if known == check.as_ref() => Ok(()),
        Some(_) => Err(LedgerError::OtherKey),
        None => Ok(writing.put(META, b"key_check", check.as_ref())?),
    }
}

impl Ledger {
    /// Within a change of a shared ledger: what other hubs have changed and this one has not seen.
    pub(super) fn missed(&self, writing: &Writing<'_>, seq: u64) -> Result<Vec<Merged>, LedgerError> {
        let Some(mirror) = &self.mirror else { return Ok(Vec::new()) };
        if mirror.lock().has_moved {
            return Err(LedgerError::OtherSources);
        }
        let known = self.seq();
        let epoch = writing.get(META, b"epoch")?;
        let behind = seq.checked_sub(known).filter(|behind| *behind <= MAX_MISSED);
        if behind.is_none() || epoch.as_deref() != Some(self.epoch.read().as_bytes()) {
            return Err(LedgerError::Behind);
        }
        let missed = |seq: u64| {
            let row = writing.get(LOG, &seq.to_be_bytes())?.ok_or(LedgerError::Behind)?;
            logged(seq, &row, |table, key| Ok(writing.get(table, key)?))
        };
        (known.saturating_add(1)..=seq).map(missed).collect()
    }

    /// Waits, for less than a second, for changes of other hubs.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn wait_for_news(&self) -> Result<(), LedgerError> {
        Ok(self.state.wait_for_change()?)
    }

    /// Other hubs have the ledger, too.
    pub fn is_shared(&self) -> bool {
        self.mirror.is_some()
    }

    /// True for the one hub that does what `name` says until `ttl` is over.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn lease(&self, name: &str, ttl: Duration) -> Result<bool, LedgerError> {
        Ok(self.state.lease(name, ttl)?)
    }

    /// The latest of a time that hubs share under this name, and `own`.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn latest(&self, name: &str, own: i64) -> Result<i64, LedgerError> {
        let known = self.get(META, name.as_bytes())?.and_then(|row| row.try_into().ok()).map(i64::from_be_bytes);
        if known.is_none_or(|known| known < own) {
            self.set_meta(name, &own.to_be_bytes())?;
        }
        Ok(known.unwrap_or(own).max(own))
    }

    /// Forgets entries that are over, as the server does.
    pub(super) fn forget_over(&self, now: u32) {
        let Some(mirror) = &self.mirror else { return };
        mirror.lock().entries.retain(|_, (kind, entry)| {
            let is_over = entry.is_over(now);
            if is_over {
                self.count(*kind, false);
            }
            !is_over
        });
    }

    /// Takes what other hubs have changed. A server that has lost something gets it back first. One caller at a time.
    ///
    /// # Errors
    /// The server cannot be reached, or this hub has to start again.
    pub fn follow(&self, now: u32) -> Result<News, LedgerError> {
        let Some(mirror) = &self.mirror else { return self.catch_up() };
        if mirror.lock().has_moved {
            return Err(LedgerError::OtherSources);
        }
        let generation = self.state.generation()?;
        let (epoch, seq) = (self.get(META, b"epoch")?, number(self.get(META, b"seq")?)?);
        let is_other_epoch = epoch.as_deref() != Some(self.epoch.read().as_bytes());
        // Read from the log as well: a server may have kept one of both.
        let known = self.seq();
        let has_lost = seq < known || (known > 0 && self.get(LOG, &known.to_be_bytes())?.is_none());
        let is_other_server = mirror.lock().generation != generation;
        if !is_other_epoch && !has_lost && !is_other_server {
            return self.catch_up();
        }
        let news = self.heal(mirror, is_other_epoch || has_lost, now)?;
        mirror.lock().generation = generation;
        Ok(news)
    }

    /// Puts back what this hub has and the server has not. `has_lost`: it is known to lack changes, or has another history.
    fn heal(&self, mirror: &Mutex<Mirror>, has_lost: bool, now: u32) -> Result<News, LedgerError> {
        let mut there = BTreeMap::new();
        self.each_row(|key, kind, entry| {
            there.insert(key, (kind, entry));
        })?;
        let lost: Vec<(Key, u8, Entry)> = {
            let mirror = mirror.lock();
            let is_lost = |(key, (_, own)): &(&Key, &(u8, Entry))| {
                let known = there.get(*key).map(|(_, entry)| *entry).unwrap_or_default();
                let mut both = known;
                both.union(own);
                both != known && !own.is_over(now)
            };
            mirror.entries.iter().filter(is_lost).map(|(key, (kind, entry))| (*key, *kind, *entry)).collect()
        };
        if lost.is_empty() && !has_lost {
            tracing::info!("the server of the ledger was replaced or restarted, and has everything");
            return self.catch_up();
        }
        // A history that lost something is another one: readers of the old one take the snapshot.
        let has_moved = self.state.write(|writing| self.restore_meta(writing))?;
        for part in lost.chunks(HEALED) {
            self.state.write(|writing| -> Result<(), LedgerError> {
                let mut seq = seq_of(writing)?;
                for (key, kind, own) in part {
                    let mut entry = match writing.get(ENTRIES, key)? {
                        Some(row) => entry_of(&row)?.1,
                        None => Entry::default(),
                    };
                    entry.union(own);
                    seq = seq.saturating_add(1);
                    put_change(writing, seq, *kind, *key, &entry)?;
                }
                Ok(writing.put(META, b"seq", &seq.to_be_bytes())?)
            })?;
        }
        mirror.lock().has_moved = has_moved;
        self.load()?;
        if !lost.is_empty() {
            tracing::error!(entries = lost.len(), "the server of the ledger had lost revocations: they were put back");
        }
        if has_moved {
            return Err(LedgerError::OtherSources);
        }
        Ok(if lost.is_empty() { News::Reset } else { News::Healed })
    }

    /// Puts back epoch, key, number of the last change and numbers of sources; true if sources have other numbers there.
    fn restore_meta(&self, writing: &Writing<'_>) -> Result<bool, LedgerError> {
        check_key(writing, &self.hub_key_hex)?;
        let known = writing.get(META, b"epoch")?;
        // Another hub may have begun a new history already.
        let is_same = known.as_deref().is_none_or(|known| known == self.epoch.read().as_bytes());
        if is_same {
            writing.put(META, b"epoch", uuid::Uuid::new_v4().to_string().as_bytes())?;
        }
        // A number that is in the log, of no entry: by it hubs see that the server has kept the log.
        let seq = seq_of(writing)?.max(self.seq()).saturating_add(1);
        writing.put(LOG, &seq.to_be_bytes(), &Key::default())?;
        writing.put(META, b"seq", &seq.to_be_bytes())?;
        let there = writing.rows_of(META, SOURCE, usize::from(u8::MAX))?;
        let Some(mirror) = &self.mirror else { return Ok(false) };
        let mut has_moved = false;
        for (name, bit) in &mirror.lock().sources {
            match there.iter().find(|(known, row)| known == name || row.first() == Some(bit)) {
                Some((known, row)) => has_moved |= known != name || row.first() != Some(bit),
                None => writing.put(META, name, &[*bit])?,
            }
        }
        Ok(has_moved)
    }
}

#[cfg(test)]
mod tests;
