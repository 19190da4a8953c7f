//! Readers of the feed: what changed after the place where each stands, and then every line as it comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Hub, LedgerError};
use crate::revocation::Line;

/// A line that goes to all readers.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// The number of a change; none for a confirmation.
    pub seq: Option<u64>,
    /// Changes are missing after it.
    pub is_last: bool,
    pub line: Arc<str>,
}

/// A reader.
#[derive(Debug)]
pub struct Reader {
    hub: Arc<Hub>,
    /// Lines that are due before those that come.
    due: VecDeque<Arc<str>>,
    lines: Receiver<Published>,
    /// The last change of those that were due.
    seq: u64,
    /// Changes are missing: the reader has to take the snapshot.
    is_over: bool,
}

impl Hub {
    /// A reader that has everything up to `after`, `<epoch>.<seq>`; `None` where there are too many readers. Waits for the disk.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn reader(self: &Arc<Self>, after: &str) -> Result<Option<Reader>, LedgerError> {
        // From here on no line is missed; some may come twice.
        let lines = self.lines.subscribe();
        if self.readers.fetch_add(1, Ordering::AcqRel) >= self.settings.max_readers {
            self.readers.fetch_sub(1, Ordering::AcqRel);
            return Ok(None);
        }
        self.metrics.readers.inc();
        // Goes with the reader, also with one whose changes cannot be read.
        let mut reader = Reader { hub: Arc::clone(self), due: VecDeque::new(), lines, seq: 0, is_over: false };
        // Before the changes are read: those that come meanwhile are not confirmed by it.
        let as_of = self.as_of.load(Ordering::Acquire);
        let place = after.rsplit_once('.').and_then(|(epoch, seq)| Some((epoch, seq.parse().ok()?)));
        let changes = match place {
            Some((epoch, seq)) if epoch == self.ledger.epoch() => self.ledger.changes_after(seq)?,
            _ => None,
        };
        match changes {
            Some(changes) => {
                let last = changes.last().and_then(Line::seq).unwrap_or_default();
                reader.due.extend(changes.into_iter().map(|line| line.text().into()));
                reader.seq = last;
                reader.due.push_back(Line::Confirmed { as_of }.text().into());
            }
            None => reader.reset(),
        }
        Ok(Some(reader))
    }
}

impl Reader {
    /// The next line; `None` when the reader has to open the feed again.
    pub async fn next(&mut self) -> Option<Arc<str>> {
        if let Some(line) = self.due.pop_front() {
            return Some(line);
        }
        if self.is_over {
            return None;
        }
        loop {
            match self.lines.recv().await {
                // It was due, with an entry that may be newer than this line.
                Ok(published) if published.seq.is_some_and(|seq| seq <= self.seq) => {}
                Ok(published) => {
                    self.is_over = published.is_last;
                    return Some(published.line);
                }
                Err(RecvError::Lagged(_)) => {
                    self.reset();
                    return self.due.pop_front();
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn reset(&mut self) {
        self.due.push_back(Line::Reset.text().into());
        self.is_over = true;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.hub.readers.fetch_sub(1, Ordering::AcqRel);
        self.hub.metrics.readers.dec();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::hub::tests::{open, request, settings};

    #[tokio::test]
    async fn a_line_that_was_due_does_not_come_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let hub = open(settings(folder.path()));
        let mut reader = hub.reader(&format!("{}.0", hub.ledger.epoch())).expect("it reads").expect("there is room");
        reader.due.clear();
        // As if the first change had been made between the subscription and the reading of the ledger.
        reader.seq = 1;
        for value in ["a", "b"] {
            hub.execute(&request(json!({"value": value})), "test").expect("it is accepted");
        }
        let line = Line::parse(reader.next().await.expect("a line").as_bytes());
        assert!(matches!(line, Some(Line::Changed { seq: 2, .. })), "{line:?}");
    }
}
