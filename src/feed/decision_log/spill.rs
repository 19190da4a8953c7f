//! Events on disk: what is too much for memory while a service cannot take it, and what is left when the process ends.
//!
//! One file is one upload, ready to be sent. Files of an earlier process are sent first.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::feed::private_file;

/// Files that one folder may hold.
const MAX_FILES: usize = 100_000;

/// Where events go that find no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpillSettings {
    pub folder: PathBuf,
    /// Bytes of all files; beyond, the oldest go.
    pub limit: u64,
}

/// One upload on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    path: PathBuf,
    events: usize,
    bytes: u64,
}

/// Uploads on disk, oldest first.
#[derive(Debug)]
pub struct Spill {
    settings: SpillSettings,
    entries: VecDeque<Entry>,
    next: u64,
}

impl Spill {
    /// Opens the folder, with what an earlier process left there.
    pub fn open(settings: SpillSettings) -> io::Result<Self> {
        std::fs::create_dir_all(&settings.folder)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&settings.folder)?.take(MAX_FILES) {
            let entry = entry?;
            let Some((number, events)) = parsed(&entry.path()) else { continue };
            found.push((number, Entry { path: entry.path(), events, bytes: entry.metadata()?.len() }));
        }
        found.sort_by_key(|(number, _)| *number);
        let next = found.last().map_or(0, |(number, _)| number.saturating_add(1));
        Ok(Self { settings, entries: found.into_iter().map(|(_, entry)| entry).collect(), next })
    }

    /// Writes one upload of so many events; gives how many older ones had to go.
    pub fn write(&mut self, body: &[u8], events: usize) -> io::Result<usize> {
        let path = self.settings.folder.join(format!("{:020}-{events}.json.gz", self.next));
        self.next = self.next.saturating_add(1);
        let draft = path.with_extension("draft");
        let mut file = private_file(&draft)?;
        file.write_all(body)?;
        file.sync_data()?;
        std::fs::rename(&draft, &path)?;
        self.entries.push_back(Entry { path, events, bytes: body.len() as u64 });
        let mut gone = 0usize;
        while self.bytes() > self.settings.limit || self.entries.len() > MAX_FILES {
            let Some(oldest) = self.entries.pop_front() else { break };
            std::fs::remove_file(&oldest.path)?;
            gone = gone.saturating_add(oldest.events);
        }
        Ok(gone)
    }

    /// The oldest upload and how many events it holds.
    pub fn oldest(&self) -> io::Result<Option<(Vec<u8>, usize)>> {
        let Some(entry) = self.entries.front() else { return Ok(None) };
        Ok(Some((std::fs::read(&entry.path)?, entry.events)))
    }

    /// Takes the oldest upload away: it has been sent, or cannot be read.
    pub fn remove_oldest(&mut self) -> io::Result<()> {
        match self.entries.pop_front() {
            Some(entry) => std::fs::remove_file(&entry.path),
            None => Ok(()),
        }
    }

    /// Events on disk.
    pub fn events(&self) -> usize {
        self.entries.iter().map(|entry| entry.events).sum()
    }

    fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }
}

/// Number and events of a file's name.
fn parsed(path: &Path) -> Option<(u64, usize)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".json.gz")?;
    let (number, events) = name.split_once('-')?;
    Some((number.parse().ok()?, events.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_written_survives_the_process_and_leaves_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = SpillSettings { folder: folder.path().join("log"), limit: 9 };
        let mut spill = Spill::open(settings.clone()).expect("it opens");
        assert_eq!(spill.write(b"one", 1).expect("it is written"), 0);
        assert_eq!(spill.write(b"two", 2).expect("it is written"), 0);
        for file in std::fs::read_dir(&settings.folder).expect("a folder") {
            let mode = file.and_then(|file| file.metadata()).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "decisions are confidential");
        }
        std::fs::write(settings.folder.join("stranger"), "x").expect("another file");
        let mut spill = Spill::open(settings).expect("it opens again");
        assert_eq!(spill.events(), 3);
        assert_eq!(spill.write(b"threes", 4).expect("it is written"), 1, "the oldest goes");
        assert_eq!(spill.oldest().expect("it is read"), Some((b"two".to_vec(), 2)));
        spill.remove_oldest().expect("it goes");
        assert_eq!(spill.oldest().expect("it is read"), Some((b"threes".to_vec(), 4)));
        spill.remove_oldest().expect("it goes");
        assert_eq!(spill.oldest().expect("nothing is read"), None);
    }
}
