//! Bytes as what a hub sends: a snapshot, which is written again as it was read, and lines of the feed.
#![no_main]

use sha2::{Digest as _, Sha256};
use stepgate::revocation::{Line, decode, encode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // With the digest that no mutation would find.
    let whole = [bytes, Sha256::digest(bytes).as_slice()].concat();
    if let Ok((header, records)) = decode(&whole) {
        let again = decode(&encode(&header, &records)).expect("what we write is a snapshot");
        assert_eq!(again, (header, records));
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Some(line @ Line::Changed { .. }) = Line::parse(line) {
            assert_eq!(Line::parse(line.text().as_bytes()), Some(line));
        }
    }
});
