//! The snapshot of a hub, which a sidecar also keeps on disk: a header, and the entries in 64 blocks in the order of their keys, each with
//! the events about users after it. Each part has its own SHA-256: it is used before the rest has come, and two snapshots never need room
//! at once.

use std::io::{self, Read, Write};

use aws_lc_rs::digest::{Context, SHA256, digest};
use serde_json::{Value, json};

use super::entry::Entry;
use super::events::UserEvents;
use super::key::Key;

const MAGIC: &[u8] = b"SGRV2\n";
const RECORD_BYTES: usize = size_of::<Key>() + Entry::BYTES;
const DIGEST_BYTES: usize = 32;
/// Bytes of the header: one line of JSON, filled up with spaces.
const LINE_BYTES: usize = 512;
const HEADER_BYTES: usize = MAGIC.len() + LINE_BYTES + DIGEST_BYTES;
/// Bytes before the records of a block: their number.
const COUNT_BYTES: usize = 4;
/// Bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;
/// Bytes of the events of a block.
const MAX_EVENTS_BYTES: usize = 64 << 20;
/// Blocks of a snapshot. The keys of a block have its number as their first six bits.
pub const BLOCKS: usize = 64;

/// The block of a key.
pub fn block_of(key: &Key) -> usize {
    let [first, ..] = key;
    usize::from(first >> 2)
}

/// A key with its entry.
pub type Record = (Key, Entry);

/// The header of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Identifies a history of the ledger.
    pub epoch: String,
    /// The last change in it.
    pub seq: u64,
    /// When it was complete, in seconds since the epoch.
    pub as_of: i64,
    /// The longest life of any accepted token, in seconds.
    pub retain: u64,
    /// The key of the hub, in hexadecimal.
    pub hub_key: String,
}

/// Why a snapshot is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("it is no snapshot of this format")]
    Format,
    #[error("its header cannot be read")]
    Header,
    #[error("a digest in it is wrong")]
    Digest,
    #[error("it ends too early")]
    Cut,
}

/// The header of `count` entries, as it is written.
pub fn encode_header(header: &Header, count: usize) -> [u8; HEADER_BYTES] {
    let line = json!({"epoch": header.epoch, "seq": header.seq, "as_of": header.as_of, "retain": header.retain,
                      "hub_key": header.hub_key, "count": count});
    let mut text = line.to_string().into_bytes();
    text.resize(LINE_BYTES - 1, b' ');
    text.push(b'\n');
    let digest = digest(&SHA256, &text);
    let mut bytes = [0; HEADER_BYTES];
    let parts = MAGIC.iter().chain(&text).chain(digest.as_ref());
    bytes.iter_mut().zip(parts).for_each(|(byte, part)| *byte = *part);
    bytes
}

/// Room for a header that is written last, when the number of entries is known.
pub const NO_HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// Writes the block `number`, whose records are in the order of their keys.
///
/// # Errors
/// `out` cannot be written.
pub fn write_block(out: &mut impl Write, number: usize, records: &[Record]) -> io::Result<()> {
    let mut sum = Sum::new(number);
    let mut write = |bytes: &[u8]| {
        sum.0.update(bytes);
        out.write_all(bytes)
    };
    write(&u32::try_from(records.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_be_bytes())?;
    for (key, entry) in records {
        write(key)?;
        write(&entry.to_bytes())?;
    }
    out.write_all(&sum.finish())
}

/// Writes the events of the block `number`.
///
/// # Errors
/// `out` cannot be written.
pub fn write_events(out: &mut impl Write, number: usize, events: &[(Key, UserEvents)]) -> io::Result<()> {
    let mut text = Vec::new();
    for (key, events) in events {
        text.extend_from_slice(json!([hex::encode(key), events.to_json()]).to_string().as_bytes());
        text.push(b'\n');
    }
    let length = u32::try_from(text.len()).map_err(|_| io::ErrorKind::InvalidInput)?.to_be_bytes();
    let mut sum = Sum::new(number.saturating_add(BLOCKS));
    sum.0.update(&length);
    sum.0.update(&text);
    out.write_all(&length)?;
    out.write_all(&text)?;
    out.write_all(&sum.finish())
}

/// The digest of a block: of its number, its count and its records.
struct Sum(Context);

impl Sum {
    fn new(number: usize) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&u8::try_from(number).unwrap_or(u8::MAX).to_be_bytes());
        Self(context)
    }

    fn finish(self) -> [u8; DIGEST_BYTES] {
        let mut bytes = [0; DIGEST_BYTES];
        bytes.iter_mut().zip(self.0.finish().as_ref()).for_each(|(byte, sum)| *byte = *sum);
        bytes
    }
}

/// Writes a whole snapshot, of records in any order.
pub fn encode(header: &Header, records: &[Record]) -> Vec<u8> {
    let mut records = records.to_vec();
    records.sort_unstable_by_key(|(key, _)| *key);
    records.dedup_by_key(|(key, _)| *key);
    let mut bytes = encode_header(header, records.len()).to_vec();
    let mut rest = records.as_slice();
    for number in 0..BLOCKS {
        let (block, after) = rest.split_at(rest.partition_point(|(key, _)| block_of(key) <= number));
        // A Vec takes everything.
        let _ = write_block(&mut bytes, number, block).and_then(|()| write_events(&mut bytes, number, &[]));
        rest = after;
    }
    bytes
}

/// A part of a snapshot.
#[derive(Debug, PartialEq)]
pub enum Part {
    /// The header and the number of entries. It comes first, and once.
    Header(Header, usize),
    /// The next block.
    Block(Block),
    /// The events about users whose keys belong to the block before it.
    Events(Vec<(Key, UserEvents)>),
}

/// Entries in the order of their keys, as they are kept: the keys, and the entries in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub keys: Vec<Key>,
    pub entries: Vec<[u8; Entry::BYTES]>,
}

impl Block {
    /// A block of records in the order of their keys.
    pub fn of(records: impl ExactSizeIterator<Item = Record>) -> Self {
        let mut block = Self::with_capacity(records.len());
        for (key, entry) in records {
            block.keys.push(key);
            block.entries.push(entry.to_bytes());
        }
        block
    }

    fn with_capacity(count: usize) -> Self {
        Self { keys: Vec::with_capacity(count), entries: Vec::with_capacity(count) }
    }

    /// A block of the bytes of records; none if the keys are not in order, or belong to another block.
    fn read(bytes: &[u8], number: usize) -> Option<Self> {
        let mut block = Self::with_capacity(bytes.len() / RECORD_BYTES);
        for record in bytes.chunks_exact(RECORD_BYTES) {
            let (key, entry) = record.split_first_chunk::<{ size_of::<Key>() }>()?;
            if block_of(key) != number || block.keys.last().is_some_and(|last| last >= key) {
                return None;
            }
            block.keys.push(*key);
            block.entries.push(entry.try_into().ok()?);
        }
        Some(block)
    }

    pub fn records(&self) -> impl Iterator<Item = Record> {
        self.keys.iter().zip(&self.entries).map(|(key, entry)| (*key, Entry::from_bytes(*entry)))
    }
}

/// Reads a snapshot as it comes. It keeps no more than a block.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    has_header: bool,
    /// The number of the next block.
    block: usize,
    /// Records that are still to come.
    left: usize,
    /// The events of the last block are to come.
    has_block: bool,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next part; `None` while some of it is to come, and at the end.
    ///
    /// # Errors
    /// The part is damaged, or of another format.
    pub fn next_part(&mut self) -> Result<Option<Part>, SnapshotError> {
        match self.has_header {
            false => self.header(),
            true if self.block == BLOCKS && self.bytes.is_empty() => Ok(None),
            true if self.block == BLOCKS => Err(SnapshotError::Format),
            true if self.has_block => self.next_events(),
            true => self.next_block(),
        }
    }

    /// True once all parts were given.
    pub fn is_complete(&self) -> bool {
        self.has_header && self.block == BLOCKS && self.bytes.is_empty() && self.left == 0
    }

    fn header(&mut self) -> Result<Option<Part>, SnapshotError> {
        let known = self.bytes.len().min(MAGIC.len());
        if self.bytes.get(..known) != MAGIC.get(..known) {
            return Err(SnapshotError::Format);
        }
        let Some(bytes) = self.bytes.get(MAGIC.len()..HEADER_BYTES) else { return Ok(None) };
        let (line, sum) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or(SnapshotError::Header)?;
        if digest(&SHA256, line).as_ref() != sum.as_slice() {
            return Err(SnapshotError::Digest);
        }
        let line: Value = serde_json::from_slice(line).map_err(|_| SnapshotError::Header)?;
        let header = header_of(&line).ok_or(SnapshotError::Header)?;
        let count = line.get("count").and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let count = count.ok_or(SnapshotError::Header)?;
        self.bytes.drain(..HEADER_BYTES);
        (self.has_header, self.left) = (true, count);
        Ok(Some(Part::Header(header, count)))
    }

    fn next_block(&mut self) -> Result<Option<Part>, SnapshotError> {
        let Some(count) = self.bytes.first_chunk::<COUNT_BYTES>() else { return Ok(None) };
        let count = usize::try_from(u32::from_be_bytes(*count)).map_err(|_| SnapshotError::Format)?;
        let left = self.left.checked_sub(count).ok_or(SnapshotError::Format)?;
        let end = count.checked_mul(RECORD_BYTES).and_then(|bytes| bytes.checked_add(COUNT_BYTES));
        let end = end.ok_or(SnapshotError::Format)?;
        let whole = end.saturating_add(DIGEST_BYTES);
        let (Some(body), Some(sum)) = (self.bytes.get(..end), self.bytes.get(end..whole)) else { return Ok(None) };
        let mut expected = Sum::new(self.block);
        expected.0.update(body);
        if expected.finish() != sum {
            return Err(SnapshotError::Digest);
        }
        let records = body.get(COUNT_BYTES..).unwrap_or_default();
        let block = Block::read(records, self.block).ok_or(SnapshotError::Format)?;
        self.bytes.drain(..whole);
        (self.left, self.has_block) = (left, true);
        if self.block.saturating_add(1) == BLOCKS && left != 0 {
            return Err(SnapshotError::Format);
        }
        Ok(Some(Part::Block(block)))
    }

    fn next_events(&mut self) -> Result<Option<Part>, SnapshotError> {
        let Some(length) = self.bytes.first_chunk::<COUNT_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| SnapshotError::Format)?;
        if length > MAX_EVENTS_BYTES {
            return Err(SnapshotError::Format);
        }
        let end = length.saturating_add(COUNT_BYTES);
        let whole = end.saturating_add(DIGEST_BYTES);
        let (Some(body), Some(sum)) = (self.bytes.get(..end), self.bytes.get(end..whole)) else { return Ok(None) };
        let mut expected = Sum::new(self.block.saturating_add(BLOCKS));
        expected.0.update(body);
        if expected.finish() != sum {
            return Err(SnapshotError::Digest);
        }
        let text = body.get(COUNT_BYTES..).unwrap_or_default();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let events = lines.map(|line| events_of(line).filter(|(key, _)| block_of(key) == self.block));
        let events = events.collect::<Option<_>>().ok_or(SnapshotError::Format)?;
        self.bytes.drain(..whole);
        (self.block, self.has_block) = (self.block.saturating_add(1), false);
        Ok(Some(Part::Events(events)))
    }
}

/// Gives the parts of a snapshot to `visit`.
///
/// # Errors
/// That of `visit`; the snapshot cannot be read, or is damaged. Parts that came before it were given.
pub fn read_parts<E: From<SnapshotError> + From<io::Error>>(
    mut from: impl Read,
    mut visit: impl FnMut(Part) -> Result<(), E>,
) -> Result<(), E> {
    let mut decoder = Decoder::default();
    let mut bytes = vec![0; READ_BYTES];
    loop {
        let read = from.read(&mut bytes)?;
        decoder.push(bytes.get(..read).unwrap_or_default());
        while let Some(part) = decoder.next_part()? {
            visit(part)?;
        }
        if read == 0 {
            return if decoder.is_complete() { Ok(()) } else { Err(SnapshotError::Cut.into()) };
        }
    }
}

/// Reads a whole snapshot.
///
/// # Errors
/// It is damaged, or of another format.
pub fn decode(bytes: &[u8]) -> Result<(Header, Vec<Record>), SnapshotError> {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    let (mut header, mut records) = (None, Vec::new());
    while let Some(part) = decoder.next_part()? {
        match part {
            Part::Header(own, _) => header = Some(own),
            Part::Block(block) => records.extend(block.records()),
            Part::Events(_) => {}
        }
    }
    match header {
        Some(header) if decoder.is_complete() => Ok((header, records)),
        _ => Err(SnapshotError::Cut),
    }
}

fn events_of(line: &[u8]) -> Option<(Key, UserEvents)> {
    let line: Value = serde_json::from_slice(line).ok()?;
    let [key, events] = line.as_array()?.as_slice() else { return None };
    Some((hex::decode(key.as_str()?).ok()?.try_into().ok()?, UserEvents::from_json(events)?))
}

fn header_of(line: &Value) -> Option<Header> {
    let text = |name: &str| line.get(name).and_then(Value::as_str).map(str::to_owned);
    Some(Header {
        epoch: text("epoch")?,
        seq: line.get("seq")?.as_u64()?,
        as_of: line.get("as_of")?.as_i64()?,
        retain: line.get("retain")?.as_u64()?,
        hub_key: text("hub_key")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_read_whole_or_not_at_all() {
        let header =
            Header { epoch: "e".to_owned(), seq: 7, as_of: 1_800_000_000, retain: 90_000, hub_key: "00ff".to_owned() };
        let entry = Entry {
            not_before: 1,
            authenticated_not_before: 2,
            until: 3,
            disabled: 0x8001,
            disabled_until: 4,
            deny: true,
        };
        let records = vec![([1; 16], entry), ([2; 16], Entry::default()), ([255; 16], entry)];
        let bytes = encode(&header, &records);
        assert_eq!(decode(&bytes), Ok((header.clone(), records.clone())));
        // As it comes, byte by byte.
        let (mut decoder, mut parts) = (Decoder::default(), Vec::new());
        for byte in &bytes {
            assert!(!decoder.is_complete());
            decoder.push(&[*byte]);
            while let Some(part) = decoder.next_part().expect("it is whole") {
                parts.push(part);
            }
        }
        assert!(decoder.is_complete() && parts.len() == 2 * BLOCKS + 1);
        assert_eq!(parts.first(), Some(&Part::Header(header, 3)));
        assert_eq!(parts.get(2 * BLOCKS - 1), Some(&Part::Block(Block::of(records[2..].iter().copied()))));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(decode(b""), Err(SnapshotError::Cut));
        assert_eq!(decode(&[bytes.as_slice(), b"x"].concat()), Err(SnapshotError::Format));
    }

    /// Whole blocks in a wrong place, in a wrong order or in a wrong number.
    #[test]
    fn blocks_belong_where_they_are() {
        let header = Header { epoch: "e".to_owned(), seq: 7, as_of: 1, retain: 1, hub_key: "00".to_owned() };
        let snapshot = |count: usize, blocks: &[(usize, Vec<Record>)]| {
            let mut bytes = encode_header(&header, count).to_vec();
            for number in 0..BLOCKS {
                let records = blocks.iter().find(|(at, _)| *at == number).map(|(_, records)| records.clone());
                write_block(&mut bytes, number, &records.unwrap_or_default()).expect("a Vec takes it");
                write_events(&mut bytes, number, &[]).expect("a Vec takes it");
            }
            decode(&bytes).map(|(_, records)| records.len())
        };
        let record = |first: u8| ([first; 16], Entry::default());
        assert_eq!(snapshot(2, &[(0, vec![record(1), record(3)])]), Ok(2));
        assert_eq!(snapshot(2, &[(0, vec![record(3), record(1)])]), Err(SnapshotError::Format));
        assert_eq!(snapshot(2, &[(0, vec![record(1), record(1)])]), Err(SnapshotError::Format));
        assert_eq!(snapshot(1, &[(1, vec![record(1)])]), Err(SnapshotError::Format));
        assert_eq!(snapshot(1, &[(0, vec![record(1), record(2)])]), Err(SnapshotError::Format));
        assert_eq!(snapshot(3, &[(0, vec![record(1), record(2)])]), Err(SnapshotError::Format));
    }
}
