//! The last active bundle, on disk: used at a start when its server cannot be reached.
//!
//! Mirrors: `persist` of OPA `v1/plugins/bundle/plugin.go`, v1.19.0, and its places. What differs, on purpose: a bundle that cannot
//! be saved is a warning, and is active all the same.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use crate::feed::write_private;

/// Where a bundle is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedBundle {
    /// `<persistence_directory>/bundles/<name>`.
    pub folder: PathBuf,
}

impl SavedBundle {
    fn path(&self) -> PathBuf {
        self.folder.join("bundle.tar.gz")
    }

    /// The archive, and when it was saved, in nanoseconds since the epoch; nothing when none was.
    pub fn load(&self, limit: u64) -> io::Result<Option<(Vec<u8>, i64)>> {
        let meta = match std::fs::metadata(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        if meta.len() > limit {
            return Err(io::Error::other("it is larger than `size_limit_bytes`"));
        }
        let age = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Some((std::fs::read(self.path())?, i64::try_from(age.as_nanos()).unwrap_or(i64::MAX))))
    }

    /// Saves an archive whole or not at all.
    pub fn save(&self, archive: &[u8]) -> io::Result<()> {
        write_private(&self.path(), |file| file.write_all(archive))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = SavedBundle { folder: folder.path().join("bundles/a/b") };
        assert!(kept.load(10).expect("it is looked for").is_none());
        kept.save(b"first").expect("it is saved");
        kept.save(b"second").expect("it is saved again");
        let (archive, at) = kept.load(10).expect("it is read").expect("it is there");
        assert!(archive == b"second" && at > 1_700_000_000_000_000_000);
        assert!(kept.load(3).is_err(), "it is too large");
        let blocked = SavedBundle { folder: folder.path().join("bundles/a/b/bundle.tar.gz/x") };
        assert!(blocked.save(b"x").is_err());
    }
}
