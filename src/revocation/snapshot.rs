//! The snapshot of a hub, which a sidecar also keeps on disk: a magic line, a header as JSON on a line, records of fixed size, and a SHA-256 of it
//! all.

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::entry::Entry;
use super::key::Key;

const MAGIC: &[u8] = b"SGRV1\n";
const RECORD_BYTES: usize = size_of::<Key>() + Entry::BYTES;
const DIGEST_BYTES: usize = 32;
/// Bytes of the header.
const MAX_HEADER_BYTES: usize = 64 << 10;

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
    #[error("its digest is wrong")]
    Digest,
}

/// Writes a snapshot.
pub fn encode(header: &Header, records: &[Record]) -> Vec<u8> {
    let line = json!({"epoch": header.epoch, "seq": header.seq, "as_of": header.as_of, "retain": header.retain,
                      "hub_key": header.hub_key, "count": records.len()});
    let mut bytes = Vec::with_capacity(records.len().saturating_mul(RECORD_BYTES).saturating_add(1_024));
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(line.to_string().as_bytes());
    bytes.push(b'\n');
    for (key, entry) in records {
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(&entry.to_bytes());
    }
    let digest = digest(&SHA256, &bytes);
    bytes.extend_from_slice(digest.as_ref());
    bytes
}

/// Reads a snapshot whole, or not at all.
///
/// # Errors
/// It is damaged, or of another format.
pub fn decode(bytes: &[u8]) -> Result<(Header, Vec<Record>), SnapshotError> {
    let (body, sum) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or(SnapshotError::Format)?;
    let rest = body.strip_prefix(MAGIC).ok_or(SnapshotError::Format)?;
    if digest(&SHA256, body).as_ref() != sum.as_slice() {
        return Err(SnapshotError::Digest);
    }
    let end = rest.iter().take(MAX_HEADER_BYTES).position(|byte| *byte == b'\n').ok_or(SnapshotError::Header)?;
    let (line, records) = rest.split_at_checked(end).ok_or(SnapshotError::Header)?;
    let line: Value = serde_json::from_slice(line).map_err(|_| SnapshotError::Header)?;
    let records = records.get(1..).unwrap_or_default();
    let header = header_of(&line).ok_or(SnapshotError::Header)?;
    let count = line.get("count").and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
    if count.and_then(|count| count.checked_mul(RECORD_BYTES)) != Some(records.len()) {
        return Err(SnapshotError::Format);
    }
    Ok((header, records.chunks_exact(RECORD_BYTES).filter_map(record_of).collect()))
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

fn record_of(bytes: &[u8]) -> Option<Record> {
    let (key, rest) = bytes.split_first_chunk::<16>()?;
    Some((*key, Entry::from_bytes(rest.try_into().ok()?)))
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
        let records = vec![([1; 16], entry), ([2; 16], Entry::default())];
        let bytes = encode(&header, &records);
        assert_eq!(decode(&bytes), Ok((header, records)));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(decode(b""), Err(SnapshotError::Format));
    }
}
