//! The sources that disable: each has a number, the bit of entries.

use std::collections::BTreeMap;

use super::{Ledger, LedgerError, META};
use crate::revocation::{Key, Kind};
use crate::state::Table;

/// Before the name of a source, in `meta`.
pub(super) const SOURCE: &[u8] = b"source:";
/// Sources that disable, administrators among them: the bits of an entry.
const MAX_SOURCES: u8 = 16;

impl Ledger {
    /// The number of a source among those that disable, which it keeps for ever.
    ///
    /// # Errors
    /// There are too many sources, or the disk fails.
    pub fn source(&self, name: &str) -> Result<u8, LedgerError> {
        let key = [SOURCE, name.as_bytes()].concat();
        let number = self.state.write(|writing| {
            let rows = writing.rows_of(META, SOURCE, usize::from(MAX_SOURCES).saturating_add(1))?;
            if let Some((_, row)) = rows.iter().find(|(known, _)| *known == key) {
                return row.first().copied().ok_or(LedgerError::Format);
            }
            let is_free = |bit: &u8| rows.iter().all(|(_, row)| row.first() != Some(bit));
            let free = (1..MAX_SOURCES).find(is_free).ok_or_else(|| LedgerError::Sources(name.to_owned()))?;
            writing.put(META, &key, &[free])?;
            Ok(free)
        })?;
        if let Some(mirror) = &self.mirror {
            mirror.lock().sources.insert(key, number);
        }
        Ok(number)
    }

    /// The numbers of all sources but administrators, by name.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn sources(&self) -> Result<BTreeMap<String, u8>, LedgerError> {
        let rows = self.state.rows_of(META, SOURCE, usize::from(MAX_SOURCES).saturating_add(1))?;
        let source = |(key, row): (Vec<u8>, Vec<u8>)| {
            let name = String::from_utf8(key.get(SOURCE.len()..)?.to_vec()).ok()?;
            Some((name, row.first().copied()?))
        };
        Ok(rows.into_iter().filter_map(source).collect())
    }

    /// The entries that a source disables, with their kinds.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn disabled_by(&self, source: u8) -> Result<Vec<(Kind, Key)>, LedgerError> {
        let bit = 1u16.checked_shl(source.into()).unwrap_or_default();
        let mut found = Vec::new();
        self.each_row(|key, kind, entry| {
            let kind = Kind::ALL.get(usize::from(kind)).filter(|_| entry.disabled & bit != 0);
            found.extend(kind.map(|kind| (*kind, key)));
        })?;
        Ok(found)
    }

    /// Removes the rows of a source, whose number is at the byte `at` of their keys; `part` rows at a time.
    ///
    /// # Errors
    /// The tables cannot be read or written.
    pub fn remove_rows(&self, table: Table, at: usize, source: u8, part: usize) -> Result<(), LedgerError> {
        let mut own = Vec::new();
        self.state.scan(table, &[], |key, _| {
            own.extend((key.get(at) == Some(&source)).then(|| key.to_vec()));
            true
        })?;
        for rows in own.chunks(part) {
            self.state.write(|writing| {
                rows.iter().try_for_each(|key| writing.remove(table, key)).map_err(LedgerError::from)
            })?;
        }
        Ok(())
    }

    /// Makes the number of a source free.
    ///
    /// # Errors
    /// The tables cannot be written.
    pub fn forget_source(&self, name: &str) -> Result<(), LedgerError> {
        let key = [SOURCE, name.as_bytes()].concat();
        self.state.write(|writing| writing.remove(META, &key).map_err(LedgerError::from))?;
        if let Some(mirror) = &self.mirror {
            mirror.lock().sources.remove(&key);
        }
        Ok(())
    }
}
