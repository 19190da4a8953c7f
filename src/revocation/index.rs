//! Entries by key, in a shard for each block of a snapshot: a sorted base and the changes since. A lookup reads one shard; nothing is ever evicted.

use std::collections::HashMap;

use parking_lot::RwLock;

use super::entry::Entry;
use super::key::Key;
use super::snapshot::{BLOCKS, Block, block_of};

/// Changes of a shard before they are merged into its base, at least; or a sixteenth of that.
const MIN_CHANGES: usize = 1_024;
/// The bytes of an entry in the base, with those of the changes beside it.
pub const ENTRY_BYTES: u64 = 48;

/// The entries.
#[derive(Debug)]
pub struct Index {
    shards: Box<[RwLock<Shard>]>,
}

#[derive(Debug, Default)]
struct Shard {
    base: Block,
    changes: HashMap<Key, Entry>,
}

impl Default for Index {
    fn default() -> Self {
        Self { shards: (0..BLOCKS).map(|_| RwLock::default()).collect() }
    }
}

impl Index {
    fn shard(&self, key: &Key) -> Option<&RwLock<Shard>> {
        self.shards.get(block_of(key))
    }

    pub fn get(&self, key: &Key) -> Option<Entry> {
        let shard = self.shard(key)?.read();
        shard.changes.get(key).copied().or_else(|| shard.based(key))
    }

    /// Replaces or adds an entry.
    pub fn put(&self, key: Key, entry: Entry) {
        let Some(shard) = self.shard(&key) else { return };
        let mut shard = shard.write();
        shard.changes.insert(key, entry);
        if shard.changes.len() > MIN_CHANGES.max(shard.base.keys.len() / 16) {
            shard.merge();
        }
    }

    /// Replaces a shard with a block.
    pub fn replace(&self, number: usize, block: Block) {
        let Some(shard) = self.shards.get(number) else { return };
        let fresh = Shard { base: block, changes: HashMap::default() };
        // The old one goes after the lock.
        let _old = std::mem::replace(&mut *shard.write(), fresh);
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// The entries of a block, in the order of their keys.
    pub fn block(&self, block: usize) -> Vec<(Key, Entry)> {
        self.shards.get(block).map(|shard| shard.read().all()).unwrap_or_default()
    }
}

impl Shard {
    fn based(&self, key: &Key) -> Option<Entry> {
        let at = self.base.keys.binary_search(key).ok()?;
        self.base.entries.get(at).map(|bytes| Entry::from_bytes(*bytes))
    }

    fn len(&self) -> usize {
        let new = self.changes.keys().filter(|key| self.base.keys.binary_search(key).is_err()).count();
        self.base.keys.len().saturating_add(new)
    }

    /// In the order of the keys.
    fn all(&self) -> Vec<(Key, Entry)> {
        let based = self.base.records().filter(|(key, _)| !self.changes.contains_key(key));
        let mut all: Vec<_> = based.chain(self.changes.iter().map(|(key, entry)| (*key, *entry))).collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all
    }

    /// Merges the changes into the base.
    fn merge(&mut self) {
        *self = Self { base: Block::of(self.all().into_iter()), changes: HashMap::default() };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn key(number: u32) -> Key {
        let mut key = Key::default();
        // As even as a hash.
        let mixed = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        key[..8].copy_from_slice(&mixed.to_be_bytes());
        key[8..12].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn entry(number: u32) -> Entry {
        Entry {
            not_before: number,
            authenticated_not_before: number ^ 1,
            until: u32::MAX - number,
            disabled: u16::try_from(number % 7).expect("a small number"),
            disabled_until: number / 2,
            deny: number % 2 == 1,
        }
    }

    #[test]
    fn an_index_is_a_map() {
        let index = Index::default();
        let mut known = BTreeMap::new();
        let mut blocks = vec![BTreeMap::new(); BLOCKS];
        for number in 0..50_000 {
            blocks[block_of(&key(number))].insert(key(number), entry(number));
        }
        for (at, block) in blocks.into_iter().enumerate() {
            index.replace(at, Block::of(block.into_iter()));
        }
        known.extend((0..50_000).map(|number| (key(number), entry(number))));
        // Old and new keys, many more than a shard keeps beside its base.
        for number in 40_000..200_000 {
            index.put(key(number), entry(number + 1));
            known.insert(key(number), entry(number + 1));
        }
        assert_eq!(index.len(), known.len());
        assert!(known.iter().all(|(key, entry)| index.get(key) == Some(*entry)));
        assert_eq!(index.get(&key(1_000_000)), None);
        let blocks: Vec<_> = (0..BLOCKS).flat_map(|at| index.block(at)).collect();
        assert_eq!(blocks, known.into_iter().collect::<Vec<_>>(), "in the order of the keys");
    }
}
