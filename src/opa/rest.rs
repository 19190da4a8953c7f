//! Bodies and paths of OPA's REST API.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::input::percent_decode;
use crate::value::{JsonLimits, Value, parse_json, parse_yaml};

/// Why a body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("could not decompress the body")]
    Gzip,
    #[error("request body too large")]
    TooLarge,
    #[error("body contains malformed input document")]
    Malformed,
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// At most `limit` bytes of what is compressed.
pub fn gunzip(bytes: &[u8], limit: usize) -> Result<Vec<u8>, BodyError> {
    let mut out = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    MultiGzDecoder::new(bytes).take(most).read_to_end(&mut out).map_err(|_| BodyError::Gzip)?;
    if out.len() > limit { Err(BodyError::TooLarge) } else { Ok(out) }
}

/// The document of a body; nothing for an empty one.
pub fn document(bytes: &[u8], content_type: &str, limits: JsonLimits) -> Result<Option<Value>, BodyError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    if content_type.contains("yaml") {
        let text = std::str::from_utf8(bytes).map_err(|_| BodyError::Malformed)?;
        return parse_yaml(text, limits).map(Some).ok_or(BodyError::Malformed);
    }
    parse_json(bytes, limits).map(Some).map_err(|_| BodyError::Malformed)
}

/// The parts of a path below `data`: split at `/`, empty ones dropped, percent-decoded one by one.
pub fn segments(path: &str) -> Vec<String> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(|part| percent_decoded(part).unwrap_or_else(|| part.to_owned()))
        .collect()
}

/// Nothing when an escape is malformed or the bytes are not UTF-8.
pub fn percent_decoded(part: &str) -> Option<String> {
    String::from_utf8(percent_decode(part.as_bytes()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::DuplicateKeys;

    #[test]
    fn compressed_bodies_have_a_limit() {
        let packed = gzip(&[b'x'; 1_000]);
        assert_eq!(gunzip(&packed, 1_000).map(|out| out.len()), Ok(1_000));
        assert_eq!(gunzip(&packed, 999), Err(BodyError::TooLarge));
        assert_eq!(gunzip(&packed[..packed.len() / 2], 1_000), Err(BodyError::Gzip));
        assert_eq!(gunzip(b"plain", 1_000), Err(BodyError::Gzip));
    }

    #[test]
    fn bodies_and_paths_are_read_as_in_opa() {
        let limits = JsonLimits { depth: 10, duplicates: DuplicateKeys::LastWins };
        assert_eq!(document(b" \n", "", limits), Ok(None));
        let yaml = document(b"a: [1]", "application/x-yaml", limits).expect("YAML").expect("a document");
        assert_eq!(Ok(Some(yaml)), document(br#"{"a":[1]}"#, "application/json", limits));
        assert_eq!(document(b"{", "", limits), Err(BodyError::Malformed));
        assert_eq!(segments("/a//b%2Fc/%zz/"), ["a", "b/c", "%zz"]);
    }
}
