//! The store: entries, how fresh they are, and the verdict over a token.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;

use super::entry::Entry;
use super::events::UserEvents;
use super::index::Index;
use super::key::{HubKey, Key, Kind};
use super::line::Line;
use super::snapshot::{
    BLOCKS, Block, Header, Part, SnapshotError, block_of, encode_header, read_parts, write_block, write_events,
};

/// The treatment of requests while entries are missing or old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Allow,
    Deny,
}

/// Settings of the store. Durations are seconds.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Entries older than this are stale.
    pub max_staleness: i64,
    /// Entries older than this count as if there were none.
    pub stale_limit: i64,
    pub when_stale: Mode,
    pub when_cold: Mode,
    /// A snapshot with more is not used.
    pub max_entries: usize,
    /// Users with events; those of further ones are not kept.
    pub max_events: usize,
}

/// The freshness of the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Live,
    /// Older than `max_staleness`.
    Stale,
    /// There are none yet, or they are older than `stale_limit`.
    Cold,
}

impl State {
    pub const ALL: [Self; 3] = [Self::Live, Self::Stale, Self::Cold];

    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stale => "stale",
            Self::Cold => "cold",
        }
    }
}

/// The verdict over a token, the most severe last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Good,
    /// The holder must authenticate after this time, in seconds since the epoch.
    Reauthenticate(u32),
    Revoked(Revoked),
    Disabled,
}

/// Why a token is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revoked {
    Token,
    Session,
    Key,
}

/// The times of a token, in seconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub struct TokenTimes {
    pub issued: i64,
    pub authenticated: Option<i64>,
}

/// The store.
#[derive(Debug)]
pub struct RevocationStore {
    pub settings: Settings,
    index: Index,
    /// When the entries were complete; 0 before there are any.
    as_of: AtomicI64,
    seq: AtomicU64,
    /// Events about users that policies read.
    events: RwLock<HashMap<Key, UserEvents>>,
    /// Some events had no room.
    lacks_events: AtomicBool,
    header: ArcSwapOption<Header>,
    hub_key: ArcSwapOption<HubKey>,
    /// Counts changes of the hub's key: keys that were computed before are void.
    generation: AtomicU64,
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("it cannot be used")]
    Snapshot(#[from] SnapshotError),
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    #[error("{entries} entries are more than revocation.max_entries ({max}); they need {bytes} bytes")]
    Overflow { entries: usize, max: usize, bytes: u64 },
    /// Taking it would un-revoke everything.
    #[error(
        "the hub has another key, so it has lost its file: give it its file back, or remove `revocations.sgrv` and start again to accept what it has"
    )]
    OtherHub,
}

/// A snapshot that is being taken.
#[derive(Debug)]
pub struct Load {
    store: Arc<RevocationStore>,
    header: Header,
    is_same_key: bool,
    /// It has everything that is here.
    is_continued: bool,
    block: usize,
    events: HashMap<Key, UserEvents>,
    lacks_events: bool,
}

impl Load {
    /// Takes the next block.
    pub fn block(&mut self, block: Block) {
        let block = match self.is_continued {
            true => block,
            false => self.merged(&block),
        };
        self.store.index.replace(self.block, block);
        self.block = self.block.saturating_add(1);
    }

    /// These entries and those that are here: in doubt revoked.
    fn merged(&self, block: &Block) -> Block {
        let mut merged: BTreeMap<Key, Entry> = block.records().collect();
        for (key, entry) in self.store.index.block(self.block) {
            merged.entry(key).or_default().union(&entry);
        }
        Block::of(merged.into_iter())
    }

    /// Takes the events after a block.
    pub fn events(&mut self, events: Vec<(Key, UserEvents)>) {
        for (key, events) in events {
            if self.events.len() >= self.store.settings.max_events {
                self.lacks_events = true;
                return;
            }
            self.events.insert(key, events);
        }
    }

    /// All blocks are there.
    pub fn finish(mut self) {
        let store = &self.store;
        let mut known = store.events.write();
        if !self.is_continued {
            for (key, events) in known.drain() {
                self.events.entry(key).or_default().extend(&events);
            }
        }
        *known = self.events;
        store.lacks_events.store(self.lacks_events, Ordering::Release);
        drop(known);
        if !self.is_same_key {
            let hub_key = hex::decode(&self.header.hub_key).unwrap_or_default();
            store.hub_key.store(Some(Arc::new(HubKey::new(&hub_key))));
            store.generation.fetch_add(1, Ordering::AcqRel);
        }
        // Changes after it come again.
        store.seq.store(self.header.seq, Ordering::Release);
        store.as_of.store(self.header.as_of, Ordering::Release);
        store.header.store(Some(Arc::new(self.header)));
    }
}

impl RevocationStore {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            index: Index::default(),
            as_of: AtomicI64::new(0),
            seq: AtomicU64::new(0),
            events: RwLock::default(),
            lacks_events: AtomicBool::new(false),
            header: ArcSwapOption::empty(),
            hub_key: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
        }
    }

    /// Begins to take a snapshot of `count` entries in place of everything, block by block. One from another history of the same hub, as
    /// when an older copy of its file was put back, is merged with what is here: it must not un-revoke. One at a time; the store is as
    /// fresh as before until [`Load::finish`].
    ///
    /// # Errors
    /// It is too large, or of a hub with another key; the entries stay as they are.
    pub fn begin(self: &Arc<Self>, header: Header, count: usize) -> Result<Load, LoadError> {
        let known = self.header.load_full();
        let is_same_key = known.as_deref().is_some_and(|known| known.hub_key == header.hub_key);
        if known.is_some() && !is_same_key && !self.is_empty() {
            return Err(LoadError::OtherHub);
        }
        if count > self.settings.max_entries {
            let bytes = (count as u64).saturating_mul(super::index::ENTRY_BYTES);
            return Err(LoadError::Overflow { entries: count, max: self.settings.max_entries, bytes });
        }
        let is_older = header.seq < self.seq.load(Ordering::Acquire);
        let is_continued = known.is_none_or(|known| known.epoch == header.epoch) && !is_older;
        let events = HashMap::new();
        Ok(Load { store: Arc::clone(self), header, is_same_key, is_continued, block: 0, events, lacks_events: false })
    }

    /// Takes a whole snapshot.
    ///
    /// # Errors
    /// It cannot be read or is damaged, or as for [`Self::begin`].
    pub fn load(self: &Arc<Self>, from: impl Read) -> Result<(), LoadError> {
        let mut load = None;
        read_parts(from, |part| {
            match (part, &mut load) {
                (Part::Header(header, count), _) => load = Some(self.begin(header, count)?),
                (Part::Block(block), Some(load)) => load.block(block),
                (Part::Events(events), Some(load)) => load.events(events),
                (Part::Block(_) | Part::Events(_), None) => return Err(LoadError::Snapshot(SnapshotError::Format)),
            }
            Ok(())
        })?;
        if let Some(load) = load {
            load.finish();
        }
        Ok(())
    }

    /// Applies a change of the feed: the whole entry, as it is now.
    pub fn put(&self, key: Key, entry: Entry, seq: u64) {
        self.index.put(key, entry);
        self.seq.fetch_max(seq, Ordering::AcqRel);
    }

    /// Applies a change of the events about a user.
    pub fn note(&self, key: Key, events: UserEvents, seq: u64) {
        let mut known = self.events.write();
        if events.is_empty() {
            known.remove(&key);
        } else if known.len() < self.settings.max_events || known.contains_key(&key) {
            known.insert(key, events);
        } else {
            self.lacks_events.store(true, Ordering::Release);
        }
        self.seq.fetch_max(seq, Ordering::AcqRel);
    }

    /// The events about the user of these keys that are not too old, and whether all are here.
    pub fn events(&self, keys: &[(Kind, Key)], now: i64) -> (UserEvents, bool) {
        let mut found = UserEvents::default();
        let known = self.events.read();
        if !known.is_empty() {
            let users = keys.iter().filter(|(kind, _)| *kind == Kind::User);
            users.filter_map(|(_, key)| known.get(key)).for_each(|events| found.extend(events));
            found.forget(now);
        }
        (found, !self.lacks_events.load(Ordering::Acquire))
    }

    /// Applies a line of the feed, but for the request to take a snapshot.
    pub fn apply(&self, line: &Line) {
        match line {
            Line::Confirmed { as_of } => self.confirm(*as_of),
            Line::Changed { key, entry, seq } => self.put(*key, *entry, *seq),
            Line::Noted { key, events, seq } => self.note(*key, events.clone(), *seq),
            Line::Reset => {}
        }
    }

    /// The hub has said that nothing else has changed up to `as_of`.
    pub fn confirm(&self, as_of: i64) {
        self.as_of.fetch_max(as_of, Ordering::AcqRel);
    }

    /// Where the feed goes on: the epoch and the last change that is here.
    pub fn position(&self) -> Option<(String, u64)> {
        let header = self.header.load_full()?;
        Some((header.epoch.clone(), self.seq.load(Ordering::Acquire)))
    }

    /// Writes a snapshot of the present entries, to be kept on disk. No change may come meanwhile. False: there is none yet.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn write_snapshot(&self, out: &mut impl Write) -> io::Result<bool> {
        let Some(header) = self.header.load_full() else { return Ok(false) };
        let seq = self.seq.load(Ordering::Acquire);
        let as_of = self.as_of.load(Ordering::Acquire);
        let header = Header { seq, as_of, ..Header::clone(&header) };
        out.write_all(&encode_header(&header, self.len()))?;
        for block in 0..BLOCKS {
            write_block(out, block, &self.index.block(block))?;
            let of_block =
                |(key, events): (&Key, &UserEvents)| (block_of(key) == block).then(|| (*key, events.clone()));
            let events: Vec<_> = self.events.read().iter().filter_map(of_block).collect();
            write_events(out, block, &events)?;
        }
        Ok(true)
    }

    /// The longest life of any accepted token, in seconds; `None` before the hub has said it.
    pub fn retain(&self) -> Option<i64> {
        self.header.load().as_deref().map(|header| i64::try_from(header.retain).unwrap_or(i64::MAX))
    }

    /// The hub's key, and the number of its change.
    pub fn hub_key(&self) -> Option<(Arc<HubKey>, u64)> {
        let generation = self.generation.load(Ordering::Acquire);
        self.hub_key.load_full().map(|key| (key, generation))
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The age of the entries in seconds.
    pub fn age(&self, now: i64) -> i64 {
        now.saturating_sub(self.as_of.load(Ordering::Acquire)).max(0)
    }

    pub fn state(&self, now: i64) -> State {
        if self.as_of.load(Ordering::Acquire) == 0 {
            return State::Cold;
        }
        match self.age(now) {
            age if age <= self.settings.max_staleness => State::Live,
            age if age <= self.settings.stale_limit => State::Stale,
            _ => State::Cold,
        }
    }

    /// The most severe verdict of any of these keys.
    pub fn verdict(&self, keys: &[(Kind, Key)], times: TokenTimes, now: i64) -> Verdict {
        let retain = self.retain().unwrap_or(0);
        let found = keys.iter().filter_map(|(kind, key)| Some((*kind, self.index.get(key)?)));
        found.map(|(kind, entry)| of_entry(kind, &entry, times, retain, now)).max().unwrap_or(Verdict::Good)
    }
}

fn of_entry(kind: Kind, entry: &Entry, times: TokenTimes, retain: i64, now: i64) -> Verdict {
    let is_before = |end: u32| end == super::entry::PERMANENT || now < i64::from(end);
    let revoked = Verdict::Revoked(match kind {
        Kind::Session => Revoked::Session,
        Kind::Key => Revoked::Key,
        _ => Revoked::Token,
    });
    let counts = is_before(entry.until);
    if kind.has_times() && entry.disabled != 0 && is_before(entry.disabled_until) {
        return Verdict::Disabled;
    }
    if entry.deny && counts {
        return revoked;
    }
    if !kind.has_times() || !counts {
        return Verdict::Good;
    }
    // A token of the same second counts as one from before.
    if entry.not_before != 0 && times.issued <= i64::from(entry.not_before) {
        return revoked;
    }
    let not_before = i64::from(entry.authenticated_not_before);
    match times.authenticated {
        _ if not_before == 0 => Verdict::Good,
        Some(authenticated) if authenticated <= not_before => Verdict::Reauthenticate(entry.authenticated_not_before),
        Some(_) => Verdict::Good,
        // When its holder authenticated is not known: every token of the time is revoked.
        None if now < not_before.saturating_add(retain) => revoked,
        None => Verdict::Good,
    }
}

#[cfg(test)]
mod tests;
