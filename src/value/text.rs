//! Bytes to text the way Go prints them: every byte that is not UTF-8 becomes one U+FFFD.
//!
//! `String::from_utf8_lossy` merges a cut multi-byte sequence into one replacement; OPA does not, and policies see the
//! difference in `count` and in comparisons.

/// Decodes `bytes`, replacing each invalid byte by U+FFFD.
pub fn lossy(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::lossy;

    #[test]
    fn every_invalid_byte_is_replaced_alone() {
        assert_eq!(lossy(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(lossy(b"\xe2\x82"), "\u{fffd}\u{fffd}");
        assert_eq!(lossy("grün €".as_bytes()), "grün €");
    }
}
