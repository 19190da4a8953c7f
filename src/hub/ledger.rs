//! The ledger: entries, and the order of their changes, in one file or in a server that hubs share.

mod events;
mod shared;
mod sources;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use self::events::{EVENTS, EVENTS_MARK};
use self::shared::Mirror;
use crate::revocation::{BLOCKS, Change, Entry, HubKey, Key, Kind, Line, Record, UserEvents, block_of};
use crate::state::{RedisSettings, State, StateError, StateSettings, Table, Writing};

/// A key to its kind and entry.
const ENTRIES: Table = Table("entry");
/// The number of a change to its key.
const LOG: Table = Table("log");
const META: Table = Table("meta");
/// Identifiers of tokens and events that were accepted, to the second until which they are remembered.
const SEEN: Table = Table("seen");
/// That second and the identifier.
const SEEN_UNTIL: Table = Table("seen_until");

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
    #[error("hub.redis.key_file `{}` cannot be read, or has less than 32 bytes", .0.display())]
    KeyFile(PathBuf),
    #[error("another key made the ledger in the Redis server: all hubs need the same hub.redis.key_file")]
    OtherKey,
    #[error("the ledger in the Redis server numbers its sources in another way than this hub, which must start again")]
    OtherSources,
    #[error("other hubs have made many changes, which are being read")]
    Behind,
    #[error("the file of the ledger is damaged, or of another version")]
    Format,
}

/// Where a ledger is.
#[derive(Clone, Debug)]
pub enum LedgerStore {
    /// In the file `hub.redb` of this folder, with its own key.
    Folder(PathBuf),
    /// In a server that several hubs share, which all have their key from the same secret: a copy of the server's data is not enough to
    /// test guesses of names.
    Redis { server: RedisSettings, key_file: PathBuf },
}

/// A change as it is in the log, with the kind of its entry.
#[derive(Clone, Debug)]
struct Merged {
    kind: u8,
    line: Line,
}

/// Changes that a ledger did not make and has learned of.
#[derive(Debug, PartialEq)]
pub enum News {
    Changes(Vec<Line>),
    /// Too much, or changes without an order: readers take the snapshot.
    Reset,
    /// The server had lost something, which this hub has put back: readers take the snapshot.
    Healed,
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger {
    state: State,
    epoch: RwLock<String>,
    /// With a server that hubs share: everything as this hub has seen it, so that nothing is un-revoked when the server loses its data.
    mirror: Option<Mutex<Mirror>>,
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
    pub writing: &'a Writing<'a>,
    seq: u64,
    merged: Vec<Merged>,
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
        put_change(self.writing, self.seq, kind, key, &entry)?;
        if is_new {
            self.added.push(kind);
        }
        self.merged.push(Merged { kind, line: Line::Changed { key, entry, seq: self.seq } });
        Ok(self.seq)
    }
}

/// A row of the log, with what its key has now.
fn logged(
    seq: u64,
    row: &[u8],
    get: impl Fn(Table, &[u8]) -> Result<Option<Vec<u8>>, LedgerError>,
) -> Result<Merged, LedgerError> {
    let (key, mark) = row.split_first_chunk::<{ size_of::<Key>() }>().ok_or(LedgerError::Format)?;
    let key = *key;
    if mark == EVENTS_MARK {
        // Those that are gone are none.
        let events = get(EVENTS, &key)?.as_deref().and_then(UserEvents::from_bytes).unwrap_or_default();
        return Ok(Merged { kind: 0, line: Line::Noted { key, events, seq } });
    }
    // One that is over and gone has nothing that counts.
    let (kind, entry) = get(ENTRIES, &key)?.as_deref().map(entry_of).transpose()?.unwrap_or_default();
    Ok(Merged { kind, line: Line::Changed { key, entry, seq } })
}

/// Writes a change with its number.
fn put_change(writing: &Writing<'_>, seq: u64, kind: u8, key: Key, entry: &Entry) -> Result<(), StateError> {
    writing.put(ENTRIES, &key, &row_of(kind, entry))?;
    put_log(writing, seq, &key)
}

fn put_log(writing: &Writing<'_>, seq: u64, row: &[u8]) -> Result<(), StateError> {
    writing.put(LOG, &seq.to_be_bytes(), row)?;
    match seq.checked_sub(MAX_LOG) {
        Some(old) => writing.remove(LOG, &old.to_be_bytes()),
        None => Ok(()),
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
    /// Opens it; a new one gets an epoch, and in a file a key of its own.
    pub fn open(store: &LedgerStore, max_entries: usize) -> Result<Self, LedgerError> {
        match store {
            LedgerStore::Folder(folder) => Self::open_file(&folder.join("hub.redb"), max_entries),
            LedgerStore::Redis { server, key_file } => {
                let secret = shared::secret(key_file)?;
                Self::of(State::open(&StateSettings::Redis(server.clone()))?, Some(secret), max_entries)
            }
        }
    }

    /// Opens a file.
    pub fn open_file(path: &Path, max_entries: usize) -> Result<Self, LedgerError> {
        Self::of(State::open(&StateSettings::File(path.to_owned()))?, None, max_entries)
    }

    fn of(state: State, secret: Option<String>, max_entries: usize) -> Result<Self, LedgerError> {
        let (epoch, hub_key) = state.write(|writing| -> Result<_, LedgerError> {
            let epoch = text_of(writing, "epoch", || Ok(uuid::Uuid::new_v4().to_string()))?;
            let hub_key = match secret {
                Some(secret) => {
                    shared::check_key(writing, &secret)?;
                    secret
                }
                None => text_of(writing, "hub_key", || {
                    let mut bytes = [0; HubKey::BYTES];
                    getrandom::fill(&mut bytes).map_err(|_| LedgerError::Random)?;
                    Ok(hex::encode(bytes))
                })?,
            };
            Ok((epoch, hub_key))
        })?;
        let bytes = hex::decode(&hub_key).map_err(|_| LedgerError::Format)?;
        // That of the server that everything is read from; another one is noticed.
        let mirror = match state.is_shared() {
            true => Some(Mutex::new(Mirror::of(state.generation()?))),
            false => None,
        };
        let ledger = Self {
            state,
            epoch: RwLock::new(epoch),
            mirror,
            hub_key: HubKey::new(&bytes),
            hub_key_hex: hub_key,
            seq: AtomicU64::new(0),
            entries: AtomicUsize::new(0),
            short_lived: AtomicUsize::new(0),
            max_entries,
        };
        ledger.load()?;
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

    pub fn epoch(&self) -> String {
        self.epoch.read().clone()
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
        self.state.copy_to(path, &[&[ENTRIES, EVENTS, LOG, META, SEEN, SEEN_UNTIL], super::scim::TABLES].concat())?;
        let epoch = uuid::Uuid::new_v4().to_string();
        State::open(&StateSettings::File(path.to_owned()))?
            .write(|writing| writing.put(META, b"epoch", epoch.as_bytes()).map_err(LedgerError::from))
    }

    /// Carries out `work` as one change of the file, all or nothing. What it merged is on disk when this returns, and comes in the order
    /// in which readers get it. One caller at a time.
    ///
    /// # Errors
    /// That of `work`, or the disk fails; nothing has changed then.
    pub fn transact<T, E: From<LedgerError>>(
        &self,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, E>,
    ) -> Result<(T, Vec<Line>), E> {
        let done = self.state.write(|writing| {
            let seq = seq_of(writing).map_err(Aborted::Ledger)?;
            let missed = self.missed(writing, seq).map_err(Aborted::Ledger)?;
            let mut batch = Batch { ledger: self, writing, seq, merged: missed, added: Vec::new() };
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
        if self.mirror.is_none() {
            added.into_iter().for_each(|kind| self.count(kind, true));
        }
        self.absorb(&merged);
        Ok((outcome, merged.into_iter().map(|merged| merged.line).collect()))
    }

    /// Changes that are durable and that this ledger has not reported: those of other hubs, and those of its own where the disk failed
    /// when they were already written.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn catch_up(&self) -> Result<News, LedgerError> {
        let mut changes = Vec::new();
        if self.stored_seq()? <= self.seq() {
            return Ok(News::Changes(changes));
        }
        loop {
            let Some(page) = self.logged_after(self.seq(), MAX_DUE)? else {
                self.load()?;
                return Ok(News::Reset);
            };
            self.absorb(&page);
            let is_last = page.len() < MAX_DUE;
            changes.extend(page.into_iter().map(|merged| merged.line));
            if is_last {
                return Ok(News::Changes(changes));
            }
        }
    }

    fn stored_seq(&self) -> Result<u64, LedgerError> {
        number(self.get(META, b"seq")?)
    }

    /// Takes what was merged for known.
    fn absorb(&self, merged: &[Merged]) {
        if let Some(mirror) = &self.mirror {
            let mut mirror = mirror.lock();
            for change in merged {
                let (kind, is_new) = mirror.set(change);
                if let Some(is_new) = is_new {
                    self.count(kind, is_new);
                }
            }
        }
        if let Some(seq) = merged.last().and_then(|last| last.line.seq()) {
            self.seq.store(seq, Ordering::Release);
        }
    }

    /// Reads everything: of a file the numbers of entries alone.
    fn load(&self) -> Result<(), LedgerError> {
        // Read first: what changes meanwhile is read again.
        let (epoch, seq) = (self.get(META, b"epoch")?, self.stored_seq()?);
        let epoch = epoch.and_then(|epoch| String::from_utf8(epoch).ok()).ok_or(LedgerError::Behind)?;
        let mut entries = BTreeMap::new();
        let (mut all, mut short_lived) = (0usize, 0usize);
        self.each_row(|key, kind, entry| {
            all = all.saturating_add(1);
            short_lived = short_lived.saturating_add(usize::from(is_bounded(kind)));
            if self.mirror.is_some() {
                entries.insert(key, (kind, entry));
            }
        })?;
        if let Some(mirror) = &self.mirror {
            mirror.lock().entries = entries;
        }
        self.entries.store(all, Ordering::Relaxed);
        self.short_lived.store(short_lived, Ordering::Relaxed);
        *self.epoch.write() = epoch;
        self.seq.store(seq, Ordering::Release);
        Ok(())
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
        if rows.len() <= limit {
            self.forget_over(now);
        }
        let next = rows.get(limit).map(|(key, _)| key.clone()).unwrap_or_default();
        let mut over = Vec::new();
        for (key, row) in rows.iter().take(limit) {
            let (kind, entry) = entry_of(row)?;
            over.extend(entry.is_over(now).then_some((key, kind)));
        }
        let mut removed = Vec::new();
        // Also without anything to remove: a disk that fails is noticed.
        self.state.write(|writing| -> Result<(), LedgerError> {
            writing.put(META, b"swept", &now.to_be_bytes())?;
            for (key, kind) in over {
                // Another hub may have changed it meanwhile.
                let now_there = writing.get(ENTRIES, key)?.as_deref().map(entry_of).transpose()?;
                if now_there.is_some_and(|(_, entry)| entry.is_over(now)) {
                    writing.remove(ENTRIES, key)?;
                    removed.push(kind);
                }
            }
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
        if self.mirror.is_none() {
            removed.into_iter().for_each(|kind| self.count(kind, false));
        }
        Ok(next)
    }

    /// Every entry, and the number of a change that they all have, or later ones.
    pub fn records(&self) -> Result<(u64, Vec<Record>), LedgerError> {
        let mut records = Vec::with_capacity(self.len());
        let seq = self.each_block(|_, block| records.extend_from_slice(block))?;
        Ok((seq, records))
    }

    /// Gives `visit` the entries of each block of a snapshot; then the number of a change that they all have, or later ones.
    pub fn each_block(&self, mut visit: impl FnMut(usize, &[Record])) -> Result<u64, LedgerError> {
        let (mut number, mut block) = (0, Vec::new());
        let mut take = |key: Key, entry: Entry| {
            while number < block_of(&key) {
                visit(number, &block);
                block.clear();
                number = number.saturating_add(1);
            }
            block.push((key, entry));
        };
        // Read first: what changes meanwhile is sent again.
        let mut seq = self.seq();
        match &self.mirror {
            Some(mirror) => {
                let mirror = mirror.lock();
                seq = self.seq();
                mirror.entries.iter().for_each(|(key, (_, entry))| take(*key, *entry));
            }
            // In the order of the keys.
            None => self.each_row(|key, _, entry| take(key, entry))?,
        }
        for number in number..BLOCKS {
            visit(number, &block);
            block.clear();
        }
        Ok(seq)
    }

    /// The changes after `seq`, each with the entry as it is now; `None` where some are missing, or there are too many.
    pub fn changes_after(&self, seq: u64) -> Result<Option<Vec<Line>>, LedgerError> {
        if seq > self.seq() {
            return Ok(None);
        }
        // Further behind than that, the snapshot is less work for both.
        let changes = self.logged_after(seq, MAX_DUE)?.filter(|changes| changes.len() < MAX_DUE);
        Ok(changes.map(|changes| changes.into_iter().map(|merged| merged.line).collect()))
    }

    /// Up to `limit` changes after `seq`, each with the entry as it is now; `None` where some are missing.
    fn logged_after(&self, seq: u64, limit: usize) -> Result<Option<Vec<Merged>>, LedgerError> {
        if self.stored_seq()? <= seq {
            return Ok(Some(Vec::new()));
        }
        let first = seq.saturating_add(1);
        let rows = self.state.rows(LOG, &first.to_be_bytes(), limit)?;
        if rows.first().is_none_or(|(number, _)| number.as_slice() != first.to_be_bytes()) {
            return Ok(None);
        }
        let mut changes = Vec::with_capacity(rows.len());
        for (number, key) in rows {
            let seq = u64::from_be_bytes(number.try_into().map_err(|_| LedgerError::Format)?);
            changes.push(logged(seq, &key, |table, key| self.get(table, key))?);
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

fn seq_of(writing: &Writing<'_>) -> Result<u64, LedgerError> {
    number(writing.get(META, b"seq")?)
}

/// The number in a row; 0 without one.
fn number(row: Option<Vec<u8>>) -> Result<u64, LedgerError> {
    let Some(bytes) = row else { return Ok(0) };
    Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| LedgerError::Format)?))
}

fn text_of(
    writing: &Writing<'_>,
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
mod tests;
