//! Bytes as what a hub sends: a snapshot, which is written again as it was read, and lines of the feed.
#![no_main]

use std::collections::BTreeSet;

use stepgate::revocation::{Entry, Header, Key, Line, Record, decode, encode};

fn record(bytes: &[u8]) -> Option<Record> {
    let (key, entry) = bytes.split_first_chunk::<16>()?;
    Some((*key, Entry::from_bytes(entry.try_into().ok()?)))
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = decode(bytes);
    // With digests that no mutation would find.
    let records: Vec<Record> = bytes.chunks_exact(35).filter_map(record).collect();
    let header = Header { epoch: "e".to_owned(), seq: 1, as_of: 2, retain: 3, hub_key: "00".to_owned() };
    let mut whole = encode(&header, &records);
    let (known, read) = decode(&whole).expect("what we write is a snapshot");
    let unique: BTreeSet<Key> = records.iter().map(|(key, _)| *key).collect();
    assert!(known == header && read.iter().map(|(key, _)| *key).eq(unique));
    if let [first, second, flip, ..] = bytes {
        let at = usize::from(u16::from_be_bytes([*first, *second])) % whole.len();
        whole[at] ^= flip;
        assert!(*flip == 0 || decode(&whole).is_err());
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Some(line @ Line::Changed { .. }) = Line::parse(line) {
            assert_eq!(Line::parse(line.text().as_bytes()), Some(line));
        }
    }
});
