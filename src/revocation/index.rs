//! Entries by key, in 64 shards: a sorted base and the changes since. A lookup reads one shard; nothing is ever evicted.

use std::collections::HashMap;

use parking_lot::RwLock;

use super::entry::Entry;
use super::key::Key;

const SHARDS: usize = 64;
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
    keys: Vec<Key>,
    entries: Vec<[u8; Entry::BYTES]>,
    changes: HashMap<Key, Entry>,
}

impl Default for Index {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }
}

impl Index {
    fn shard(&self, key: &Key) -> Option<&RwLock<Shard>> {
        let [first, ..] = key;
        self.shards.get(usize::from(*first) % SHARDS)
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
        if shard.changes.len() > MIN_CHANGES.max(shard.keys.len() / 16) {
            shard.merge();
        }
    }

    /// Replaces everything, one shard after the other.
    pub fn replace(&self, entries: impl IntoIterator<Item = (Key, Entry), IntoIter: ExactSizeIterator>) {
        let entries = entries.into_iter();
        // Keys are hashes, so that shards are alike; one that grows would need twice its room for a moment.
        let room = entries.len() / SHARDS + entries.len() / (SHARDS * 16) + 16;
        let mut fresh: Vec<Vec<(Key, Entry)>> = (0..SHARDS).map(|_| Vec::with_capacity(room)).collect();
        for (key, entry) in entries {
            if let Some(shard) = fresh.get_mut(usize::from(key[0]) % SHARDS) {
                shard.push((key, entry));
            }
        }
        for (shard, mut entries) in self.shards.iter().zip(fresh) {
            entries.sort_unstable_by_key(|(key, _)| *key);
            entries.dedup_by_key(|(key, _)| *key);
            let (keys, entries) = entries.into_iter().map(|(key, entry)| (key, entry.to_bytes())).unzip();
            *shard.write() = Shard { keys, entries, changes: HashMap::default() };
        }
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// Every entry, in no particular order.
    pub fn entries(&self) -> Vec<(Key, Entry)> {
        self.shards.iter().flat_map(|shard| shard.read().all()).collect()
    }
}

impl Shard {
    fn based(&self, key: &Key) -> Option<Entry> {
        let at = self.keys.binary_search(key).ok()?;
        self.entries.get(at).map(|bytes| Entry::from_bytes(*bytes))
    }

    fn len(&self) -> usize {
        let new = self.changes.keys().filter(|key| self.keys.binary_search(key).is_err()).count();
        self.keys.len().saturating_add(new)
    }

    fn all(&self) -> Vec<(Key, Entry)> {
        let based = self.keys.iter().zip(&self.entries).filter(|(key, _)| !self.changes.contains_key(*key));
        let based = based.map(|(key, bytes)| (*key, Entry::from_bytes(*bytes)));
        based.chain(self.changes.iter().map(|(key, entry)| (*key, *entry))).collect()
    }

    /// Merges the changes into the base.
    fn merge(&mut self) {
        let mut all = self.all();
        all.sort_unstable_by_key(|(key, _)| *key);
        (self.keys, self.entries) = all.into_iter().map(|(key, entry)| (key, entry.to_bytes())).unzip();
        self.changes = HashMap::default();
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
        index.replace((0..50_000).map(|number| (key(number), entry(number))));
        known.extend((0..50_000).map(|number| (key(number), entry(number))));
        // Old and new keys, many more than a shard keeps beside its base.
        for number in 40_000..200_000 {
            index.put(key(number), entry(number + 1));
            known.insert(key(number), entry(number + 1));
        }
        assert_eq!(index.len(), known.len());
        assert!(known.iter().all(|(key, entry)| index.get(key) == Some(*entry)));
        assert_eq!(index.get(&key(1_000_000)), None);
        assert_eq!(index.entries().into_iter().collect::<BTreeMap<_, _>>(), known);
    }
}
