//! Events about users that policies read, in the ledger: beside the entries, and in the same order of changes.

use serde_json::{Map, Value};

use super::{Batch, Ledger, LedgerError, Merged, put_log};
use crate::revocation::{BLOCKS, Key, Line, UserEvents, block_of};
use crate::state::Table;

/// A key of a user to the events about the user that policies read.
pub(super) const EVENTS: Table = Table("event");
/// In the log, after the key of events.
pub(super) const EVENTS_MARK: &[u8] = b"e";

impl Batch<'_> {
    /// Keeps an event about the user of a key, and gives its number.
    pub fn note(
        &mut self,
        key: Key,
        kind: &'static str,
        event: Map<String, Value>,
        now: u32,
    ) -> Result<u64, LedgerError> {
        let known = self.writing.get(EVENTS, &key)?;
        let mut events = known.as_deref().and_then(UserEvents::from_bytes).unwrap_or_default();
        events.forget(now.into());
        events.add(kind, event);
        self.seq = self.seq.saturating_add(1);
        self.writing.put(EVENTS, &key, events.to_json().to_string().as_bytes())?;
        put_log(self.writing, self.seq, &[key.as_slice(), EVENTS_MARK].concat())?;
        self.merged.push(Merged { kind: 0, line: Line::Noted { key, events, seq: self.seq } });
        Ok(self.seq)
    }
}

impl Ledger {
    /// The events of a block of a snapshot, by key.
    pub fn events_of(&self, block: usize) -> Result<Vec<(Key, UserEvents)>, LedgerError> {
        let mut found = Vec::new();
        for first in 0..=u8::MAX {
            if block_of(&[first; size_of::<Key>()]) != block {
                continue;
            }
            self.state.scan(EVENTS, &[first], |key, row| {
                let key = key.try_into().ok();
                found.extend(key.zip(UserEvents::from_bytes(row).filter(|events| !events.is_empty())));
                true
            })?;
        }
        Ok(found)
    }

    /// Forgets events that are older than they are kept.
    ///
    /// # Errors
    /// The tables cannot be read or written.
    pub fn forget_events(&self, now: u32) -> Result<(), LedgerError> {
        for block in 0..BLOCKS {
            for (key, mut known) in self.events_of(block)? {
                if known.forget(now.into()) {
                    // Another hub may have added one meanwhile: the row is read again.
                    self.state.write(|writing| -> Result<(), LedgerError> {
                        let row = writing.get(EVENTS, &key)?;
                        let mut events = row.as_deref().and_then(UserEvents::from_bytes).unwrap_or_default();
                        events.forget(now.into());
                        let done = match events.is_empty() {
                            true => writing.remove(EVENTS, &key),
                            false => writing.put(EVENTS, &key, events.to_json().to_string().as_bytes()),
                        };
                        done.map_err(LedgerError::from)
                    })?;
                }
            }
        }
        Ok(())
    }
}
