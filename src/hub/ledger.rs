//! The ledger: entries, and the order of their changes, in one file.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::revocation::{Change, Entry, HubKey, Key, Kind, Record};
use crate::state::{State, StateError, Table, Writing};

/// A key to its kind and entry.
const ENTRIES: Table = Table("entry");
/// The number of a change to its key.
const LOG: Table = Table("log");
const META: Table = Table("meta");
/// Identifiers of tokens and events that were accepted, to the second until which they are remembered.
const SEEN: Table = Table("seen");
/// That second and the identifier.
const SEEN_UNTIL: Table = Table("seen_until");

/// Before the name of a source, in `meta`.
const SOURCE: &[u8] = b"source:";
/// Sources that disable, administrators among them: the bits of an entry.
const MAX_SOURCES: u8 = 16;

/// Changes that a reader can be behind; beyond, it takes the snapshot.
const MAX_LOG: u64 = 262_144;
/// Changes that a reader gets at once when it comes back, and one more.
const MAX_DUE: usize = 2_049;
/// Rows that are read at a time.
const ROWS: usize = 65_536;

/// Why the ledger did not do it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the ledger of revocations")]
    State(#[from] StateError),
    #[error("sessions and tokens have their share of the entries (half of hub.max_entries, {0})")]
    Full(usize),
    #[error("there is no file `{}`", .0.display())]
    Absent(PathBuf),
    #[error("`{0}` is one source too many: a ledger knows fifteen, those of the past included")]
    Sources(String),
    #[error("the disk is too slow: changes before this one are not on it yet")]
    Busy,
    #[error("the system has no randomness for the key of a new ledger")]
    Random,
    #[error("the file of the ledger is damaged, or of another version")]
    Format,
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    state: State,
    epoch: String,
    hub_key: HubKey,
    hub_key_hex: String,
    seq: AtomicU64,
    /// All entries, and those of sessions and tokens.
    entries: AtomicUsize,
    short_lived: AtomicUsize,
    max_entries: usize,
}

/// Entries of these kinds come in any number; those of all others are always admitted.
fn is_bounded(kind: u8) -> bool {
    [Kind::Session, Kind::Token].iter().any(|bounded| code(*bounded) == kind)
}

/// The kind in one byte.
fn code(kind: Kind) -> u8 {
    let at = Kind::ALL.iter().position(|known| *known == kind).unwrap_or_default();
    u8::try_from(at).unwrap_or(u8::MAX)
}

/// Changes that are made together.
pub struct Batch<'a> {
    ledger: &'a Ledger,
    pub writing: &'a Writing,
    seq: u64,
    merged: Vec<(u64, Record)>,
    /// The kinds of entries that were not there.
    added: Vec<u8>,
}

impl std::fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("merged", &self.merged).finish_non_exhaustive()
    }
}

impl Batch<'_> {
    /// The entry of a key, as it is after the changes so far.
    pub fn entry(&self, key: &Key) -> Result<Entry, LedgerError> {
        let known = self.writing.get(ENTRIES, key)?;
        Ok(known.as_deref().map(entry_of).transpose()?.map(|(_, entry)| entry).unwrap_or_default())
    }

    /// Remembers an identifier until `until`; false if it was remembered already.
    pub fn is_first(&mut self, id: Key, until: u32) -> Result<bool, LedgerError> {
        if self.writing.get(SEEN, &id)?.is_some() {
            return Ok(false);
        }
        let until = until.to_be_bytes();
        self.writing.put(SEEN, &id, &until)?;
        self.writing.put(SEEN_UNTIL, &[until.as_slice(), &id].concat(), &[])?;
        Ok(true)
    }

    /// Merges a change, and gives its number.
    pub fn apply(&mut self, kind: Kind, key: Key, change: &Change) -> Result<u64, LedgerError> {
        let kind = code(kind);
        let is_new = self.writing.get(ENTRIES, &key)?.is_none();
        let (share, taken) = (self.ledger.max_entries / 2, self.ledger.short_lived.load(Ordering::Relaxed));
        let added = self.added.iter().filter(|kind| is_bounded(**kind)).count();
        if is_new && is_bounded(kind) && taken.saturating_add(added) >= share {
            return Err(LedgerError::Full(share));
        }
        let mut entry = self.entry(&key)?;
        entry.apply(change);
        self.seq = self.seq.saturating_add(1);
        self.writing.put(ENTRIES, &key, &row_of(kind, &entry))?;
        self.writing.put(LOG, &self.seq.to_be_bytes(), &key)?;
        if let Some(old) = self.seq.checked_sub(MAX_LOG) {
            self.writing.remove(LOG, &old.to_be_bytes())?;
        }
        if is_new {
            self.added.push(kind);
        }
        self.merged.push((self.seq, (key, entry)));
        Ok(self.seq)
    }
}

/// Why a change was given up.
enum Aborted<E> {
    Work(E),
    Ledger(LedgerError),
}

impl<E> From<StateError> for Aborted<E> {
    fn from(error: StateError) -> Self {
        Self::Ledger(error.into())
    }
}

/// The value of a row of entries.
fn row_of(kind: u8, entry: &Entry) -> Vec<u8> {
    std::iter::once(kind).chain(entry.to_bytes()).collect()
}

fn entry_of(row: &[u8]) -> Result<(u8, Entry), LedgerError> {
    let (kind, entry) = row.split_first().ok_or(LedgerError::Format)?;
    let entry = entry.try_into().map_err(|_| LedgerError::Format)?;
    Ok((*kind, Entry::from_bytes(entry)))
}

impl Ledger {
    /// Opens the file; a new one gets an epoch and a key of its own.
    pub fn open(path: &Path, max_entries: usize) -> Result<Self, LedgerError> {
        let state = State::open(path)?;
        let (epoch, hub_key, seq) = state.write(|writing| -> Result<_, LedgerError> {
            let epoch = text_of(writing, "epoch", || Ok(uuid::Uuid::new_v4().to_string()))?;
            let hub_key = text_of(writing, "hub_key", || {
                let mut bytes = [0; HubKey::BYTES];
                getrandom::fill(&mut bytes).map_err(|_| LedgerError::Random)?;
                Ok(hex::encode(bytes))
            })?;
            Ok((epoch, hub_key, seq_of(writing)?))
        })?;
        let bytes = hex::decode(&hub_key).map_err(|_| LedgerError::Format)?;
        let ledger = Self {
            state,
            epoch,
            hub_key: HubKey::new(&bytes),
            hub_key_hex: hub_key,
            seq: AtomicU64::new(seq),
            entries: AtomicUsize::new(0),
            short_lived: AtomicUsize::new(0),
            max_entries,
        };
        ledger.each_row(|_, kind, _| ledger.count(kind, true))?;
        Ok(ledger)
    }

    fn count(&self, kind: u8, is_new: bool) {
        let both = [Some(&self.entries), is_bounded(kind).then_some(&self.short_lived)];
        for count in both.into_iter().flatten() {
            match is_new {
                true => count.fetch_add(1, Ordering::Relaxed),
                false => count.fetch_sub(1, Ordering::Relaxed),
            };
        }
    }

    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    pub fn hub_key(&self) -> &HubKey {
        &self.hub_key
    }

    pub fn hub_key_hex(&self) -> &str {
        &self.hub_key_hex
    }

    pub fn seq(&self) -> u64 {
        self.seq.load(Ordering::Acquire)
    }

    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Copies everything, as it is at one moment, to a new file. The copy has an epoch of its own: changes that are made after it was
    /// put back have numbers that readers know for others.
    pub fn copy_to(&self, path: &Path) -> Result<(), LedgerError> {
        self.state.copy_to(path, &[&[ENTRIES, LOG, META, SEEN, SEEN_UNTIL], super::scim::TABLES].concat())?;
        let epoch = uuid::Uuid::new_v4().to_string();
        State::open(path)?.write(|writing| writing.put(META, b"epoch", epoch.as_bytes()).map_err(LedgerError::from))
    }

    /// Carries out `work` as one change of the file, all or nothing. What it merged is on disk when this returns, and comes in the order
    /// in which readers get it. One caller at a time.
    ///
    /// # Errors
    /// That of `work`, or the disk fails; nothing has changed then.
    pub fn transact<T, E: From<LedgerError>>(
        &self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, E>,
    ) -> Result<(T, Vec<(u64, Record)>), E> {
        let done = self.state.write(|writing| {
            let seq = seq_of(writing).map_err(Aborted::Ledger)?;
            let mut batch = Batch { ledger: self, writing, seq, merged: Vec::new(), added: Vec::new() };
            let outcome = work(&mut batch).map_err(Aborted::Work)?;
            if batch.seq != seq {
                writing.put(META, b"seq", &batch.seq.to_be_bytes())?;
            }
            Ok((outcome, batch.merged, batch.added))
        });
        let (outcome, merged, added) = done.map_err(|aborted| match aborted {
            Aborted::Work(error) => error,
            Aborted::Ledger(error) => error.into(),
        })?;
        if let Some((seq, _)) = merged.last() {
            self.seq.store(*seq, Ordering::Release);
        }
        added.into_iter().for_each(|kind| self.count(kind, true));
        Ok((outcome, merged))
    }

    /// Changes that are on disk and were not reported as made: the disk failed when they were already written.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn catch_up(&self) -> Result<Vec<(u64, Record)>, LedgerError> {
        let known = self.seq();
        let on_disk = self.get(META, b"seq")?.map(<[u8; 8]>::try_from).transpose();
        let on_disk = on_disk.map_err(|_| LedgerError::Format)?.map(u64::from_be_bytes).unwrap_or_default();
        if on_disk <= known {
            return Ok(Vec::new());
        }
        self.seq.store(on_disk, Ordering::Release);
        Ok(self.changes_after(known)?.unwrap_or_default())
    }

    /// The number of a source among those that disable, which it keeps for ever.
    ///
    /// # Errors
    /// There are too many sources, or the disk fails.
    pub fn source(&self, name: &str) -> Result<u8, LedgerError> {
        let key = [SOURCE, name.as_bytes()].concat();
        let rows = self.state.rows_of(META, SOURCE, usize::from(MAX_SOURCES).saturating_add(1))?;
        if let Some((_, row)) = rows.iter().find(|(known, _)| *known == key) {
            return row.first().copied().ok_or(LedgerError::Format);
        }
        let is_free = |bit: &u8| rows.iter().all(|(_, row)| row.first() != Some(bit));
        let free = (1..MAX_SOURCES).find(is_free).ok_or_else(|| LedgerError::Sources(name.to_owned()))?;
        self.state.write(|writing| writing.put(META, &key, &[free]).map_err(LedgerError::from))?;
        Ok(free)
    }

    /// A fact about the ledger, by its name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, LedgerError> {
        self.get(META, name.as_bytes())
    }

    /// # Errors
    /// The file cannot be written.
    pub fn set_meta(&self, name: &str, value: &[u8]) -> Result<(), LedgerError> {
        self.state.write(|writing| writing.put(META, name.as_bytes(), value).map_err(LedgerError::from))
    }

    /// The rows of a table whose keys begin with `prefix`, in their order, until `visit` says no.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), LedgerError> {
        Ok(self.state.scan(table, prefix, visit)?)
    }

    /// The value of a row.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, LedgerError> {
        Ok(self.state.rows_of(table, key, 1)?.into_iter().find(|(known, _)| known == key).map(|(_, value)| value))
    }

    /// Removes entries that are over among `limit` from the key `first` on, and gives the key to go on with; empty at the end.
    pub fn sweep(&self, first: &[u8], limit: usize, now: u32) -> Result<Vec<u8>, LedgerError> {
        self.state.prove_room()?;
        let rows = self.state.rows(ENTRIES, first, limit.saturating_add(1))?;
        let next = rows.get(limit).map(|(key, _)| key.clone()).unwrap_or_default();
        let mut over = Vec::new();
        for (key, row) in rows.iter().take(limit) {
            let (kind, entry) = entry_of(row)?;
            over.extend(entry.is_over(now).then_some((key, kind)));
        }
        // Also without anything to remove: a disk that fails is noticed.
        self.state.write(|writing| -> Result<(), LedgerError> {
            writing.put(META, b"swept", &now.to_be_bytes())?;
            over.iter().try_for_each(|(key, _)| writing.remove(ENTRIES, key))?;
            for (row, _) in writing.rows_of(SEEN_UNTIL, &[], limit)? {
                let Some((until, id)) = row.split_first_chunk::<4>() else { return Err(LedgerError::Format) };
                if u32::from_be_bytes(*until) > now {
                    break;
                }
                writing.remove(SEEN, id)?;
                writing.remove(SEEN_UNTIL, &row)?;
            }
            Ok(())
        })?;
        over.iter().for_each(|(_, kind)| self.count(*kind, false));
        Ok(next)
    }

    /// Every entry, and the number of a change that they all have, or later ones.
    pub fn records(&self) -> Result<(u64, Vec<Record>), LedgerError> {
        // Read first: what changes meanwhile is sent again.
        let seq = self.seq();
        let mut records = Vec::with_capacity(self.len());
        self.each_row(|key, _, entry| records.push((key, entry)))?;
        Ok((seq, records))
    }

    /// The changes after `seq`, each with the entry as it is now; `None` where some are missing, or there are too many.
    pub fn changes_after(&self, seq: u64) -> Result<Option<Vec<(u64, Record)>>, LedgerError> {
        let first = seq.saturating_add(1);
        let rows = self.state.rows(LOG, &first.to_be_bytes(), MAX_DUE)?;
        // Further behind than that, the snapshot is less work for both.
        let is_missing = rows.first().is_some_and(|(number, _)| number.as_slice() != first.to_be_bytes());
        if is_missing || rows.len() == MAX_DUE || seq > self.seq() {
            return Ok(None);
        }
        let mut changes = Vec::with_capacity(rows.len());
        for (number, key) in rows {
            let number = u64::from_be_bytes(number.try_into().map_err(|_| LedgerError::Format)?);
            let key: Key = key.try_into().map_err(|_| LedgerError::Format)?;
            let row = self.state.rows(ENTRIES, &key, 1)?.into_iter().find(|(known, _)| *known == key);
            // One that is over and gone has nothing that counts.
            let entry = row.map(|(_, row)| entry_of(&row)).transpose()?.map(|(_, entry)| entry).unwrap_or_default();
            changes.push((number, (key, entry)));
        }
        Ok(Some(changes))
    }

    fn each_row(&self, mut visit: impl FnMut(Key, u8, Entry)) -> Result<(), LedgerError> {
        let mut first = Vec::new();
        loop {
            let rows = self.state.rows(ENTRIES, &first, ROWS)?;
            for (key, row) in &rows {
                let (kind, entry) = entry_of(row)?;
                visit(key.as_slice().try_into().map_err(|_| LedgerError::Format)?, kind, entry);
            }
            match rows.into_iter().nth(ROWS.saturating_sub(1)) {
                // The least key after it.
                Some((last, _)) => first = last.into_iter().chain([0]).collect(),
                None => return Ok(()),
            }
        }
    }
}

fn seq_of(writing: &Writing) -> Result<u64, LedgerError> {
    let Some(bytes) = writing.get(META, b"seq")? else { return Ok(0) };
    Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| LedgerError::Format)?))
}

fn text_of(
    writing: &Writing,
    name: &str,
    fresh: impl FnOnce() -> Result<String, LedgerError>,
) -> Result<String, LedgerError> {
    if let Some(known) = writing.get(META, name.as_bytes())? {
        return String::from_utf8(known).map_err(|_| LedgerError::Format);
    }
    let text = fresh()?;
    writing.put(META, name.as_bytes(), text.as_bytes())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revocation::PERMANENT;

    fn key(number: u8) -> Key {
        [number; 16]
    }

    fn apply(ledger: &Ledger, kind: Kind, number: u8, change: &Change) -> Result<(u64, Entry), LedgerError> {
        let (_, merged) = ledger.transact(|batch| batch.apply(kind, key(number), change))?;
        let (seq, (_, entry)) = *merged.first().expect("one change");
        Ok((seq, entry))
    }

    #[test]
    fn a_change_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hub.redb");
        let revoke = Change { not_before: 100, until: 1_000, ..Change::default() };
        let disable = Change { disable: Some((0, true)), disabled_until: PERMANENT, ..Change::default() };
        let ledger = Ledger::open(&path, 10).expect("it opens");
        assert_eq!(apply(&ledger, Kind::User, 1, &revoke).expect("it is written").0, 1);
        let (seq, entry) = apply(&ledger, Kind::User, 1, &disable).expect("it is written");
        assert!(seq == 2 && entry.not_before == 100 && entry.disabled == 1, "changes merge");
        let (epoch, hub_key) = (ledger.epoch().to_owned(), ledger.hub_key_hex().to_owned());
        drop(ledger);
        let ledger = Ledger::open(&path, 10).expect("it opens again");
        assert_eq!((ledger.epoch(), ledger.hub_key_hex()), (epoch.as_str(), hub_key.as_str()));
        assert_eq!((ledger.seq(), ledger.len()), (2, 1));
        assert_eq!(ledger.records().expect("it reads"), (2, vec![(key(1), entry)]));
        let changes = |seq| ledger.changes_after(seq).expect("it reads");
        assert_eq!(changes(1), Some(vec![(2, (key(1), entry))]));
        assert_eq!((changes(2), changes(3)), (Some(Vec::new()), None), "from the future: another ledger");
    }

    /// The disk may fail after a change was written and before that was known.
    #[test]
    fn a_change_that_was_not_acknowledged_is_caught_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::open(&folder.path().join("hub.redb"), 10).expect("it opens");
        let revoke = Change { not_before: 100, until: 1_000, ..Change::default() };
        let (_, entry) = apply(&ledger, Kind::User, 1, &revoke).expect("it is written");
        ledger.seq.store(0, Ordering::Release);
        assert_eq!(ledger.catch_up().expect("it reads"), [(1, (key(1), entry))]);
        assert!(ledger.seq() == 1 && ledger.catch_up().expect("it reads").is_empty());
    }

    #[test]
    fn a_reader_that_is_far_behind_takes_the_snapshot() {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::open(&folder.path().join("hub.redb"), 10).expect("it opens");
        let revoke = Change { not_before: 100, until: 1_000, ..Change::default() };
        let many = |batch: &mut Batch<'_>| -> Result<(), LedgerError> {
            (0..MAX_DUE).try_for_each(|_| batch.apply(Kind::User, key(1), &revoke).map(|_| ()))
        };
        ledger.transact(many).expect("they are written");
        assert!(ledger.changes_after(0).expect("it reads").is_none());
        assert_eq!(ledger.changes_after(1).expect("it reads").map(|changes| changes.len()), Some(MAX_DUE - 1));
    }

    #[test]
    fn sessions_never_take_the_place_of_users() {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::open(&folder.path().join("hub.redb"), 4).expect("it opens");
        let deny = Change { deny: Some(true), until: 50, ..Change::default() };
        for number in 0..2 {
            apply(&ledger, Kind::Session, number, &deny).expect("there is room");
        }
        assert!(matches!(apply(&ledger, Kind::Token, 9, &deny), Err(LedgerError::Full(2))));
        apply(&ledger, Kind::Session, 1, &deny).expect("a known one still changes");
        for number in 20..30 {
            apply(&ledger, Kind::User, number, &deny).expect("users are always admitted");
        }
        assert_eq!(ledger.len(), 12);
        // Those that are over make room, in steps.
        let mut place = ledger.sweep(b"", 5, 50).expect("it is written");
        assert_eq!((ledger.len(), place.as_slice()), (7, key(23).as_slice()));
        while !place.is_empty() {
            place = ledger.sweep(&place, 5, 50).expect("it is written");
        }
        assert_eq!(ledger.len(), 0);
        apply(&ledger, Kind::Token, 9, &deny).expect("there is room again");
        let gone = ledger.changes_after(0).expect("it reads").expect("all are there");
        assert_eq!(gone.first(), Some(&(1, (key(0), Entry::default()))), "nothing of it counts");
    }
}
