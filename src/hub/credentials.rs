//! Bearer tokens in files: of readers of the feed, of directories and of transmitters.

use std::path::PathBuf;

/// Bytes of a token in a file, at least and at most.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 32..=4_096;

/// The tokens of one party. Files are read again with every request, so that they can be rotated.
#[derive(Clone, Debug, Default)]
pub struct Credentials(Vec<PathBuf>);

impl Credentials {
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self(files)
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if one party's files have a file in common with another's.
    pub fn shares_a_file(&self, other: &Self) -> bool {
        self.0.iter().any(|file| other.0.contains(file))
    }

    /// True for one of the tokens. Waits for the disk.
    pub fn admit(&self, bearer: Option<&str>) -> bool {
        let Some(bearer) = bearer else { return false };
        self.0.iter().any(|path| match std::fs::read_to_string(path) {
            Ok(token) => is_same(token.trim(), bearer),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a file with a credential cannot be read");
                false
            }
        })
    }
}

/// Compares without saying where they differ. Tokens that are too short or too long are none.
fn is_same(token: &str, bearer: &str) -> bool {
    TOKEN_BYTES.contains(&token.len())
        && aws_lc_rs::constant_time::verify_slices_are_equal(token.as_bytes(), bearer.as_bytes()).is_ok()
}
