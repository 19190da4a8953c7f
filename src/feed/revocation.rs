//! The feed of revocations: a snapshot of the hub, then its changes line by line, and a copy on disk for the next start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{jittered, write_private};
use crate::clock::Clock;
use crate::remote::RemoteError;
use crate::remote::service::Service;
use crate::revocation::{
    Decoder, Header, Line, Load, LoadError, Part, RevocationMetrics, RevocationStore, SnapshotError,
};
use crate::telemetry::chain;

/// Bytes of a snapshot at most: 5 million entries and more.
const MAX_SNAPSHOT_BYTES: usize = 512 << 20;
/// Bytes of a line.
const MAX_LINE_BYTES: usize = 64 << 10;
/// The hub writes a line every second; a feed that is silent for longer is opened again.
const MAX_SILENCE: Duration = Duration::from_secs(5);
/// Pauses between two attempts.
const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Changes are written to disk at most so often.
const SAVE_PAUSE: Duration = Duration::from_secs(60);

/// Why the feed is opened again.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("the hub cannot be reached")]
    Remote(#[source] RemoteError),
    #[error("the hub answered {0}")]
    Status(u16),
    #[error("the snapshot cannot be used")]
    Snapshot(#[source] SnapshotError),
    #[error("the snapshot cannot be used")]
    Load(#[source] crate::revocation::LoadError),
    #[error("taking the snapshot panicked")]
    Panicked,
    #[error("the snapshot has more than {MAX_SNAPSHOT_BYTES} bytes")]
    TooLarge,
    #[error("a line of the feed cannot be read")]
    Line,
    #[error("the feed was silent for {MAX_SILENCE:?}")]
    Silent,
}

/// Keeps the revocation store fresh.
#[derive(Debug)]
pub struct RevocationFeed {
    pub service: Arc<Service>,
    pub store: Arc<RevocationStore>,
    pub metrics: Arc<RevocationMetrics>,
    pub clock: Clock,
    /// The copy on disk, if one is kept.
    pub file: Option<PathBuf>,
}

impl RevocationFeed {
    /// Follows the hub until the task ends.
    pub async fn run(self) {
        self.read_file();
        let mut pause = MIN_PAUSE;
        let mut is_failing = false;
        loop {
            let began = Instant::now();
            match self.follow().await {
                // Proxies cut long answers: that is no failure.
                Ok(()) => (pause, is_failing) = (MIN_PAUSE, false),
                Err(error) => {
                    if !is_failing {
                        tracing::warn!(error = chain(&error), "revocations are not received");
                    }
                    is_failing = true;
                    pause = if began.elapsed() > MAX_PAUSE { MIN_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
                }
            }
            self.publish();
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    fn publish(&self) {
        let now = self.clock.now();
        self.metrics.publish(self.store.state(now), self.store.age(now), self.store.len());
    }

    /// Uses the copy on disk, which is as old as it says.
    fn read_file(&self) {
        let Some(path) = &self.file else { return };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                return tracing::warn!(%error, path = %path.display(), "the copy of the revocations cannot be read");
            }
        };
        match self.store.load(file) {
            Ok(()) => tracing::info!(entries = self.store.len(), "revocations of the last run are used"),
            Err(error) => tracing::warn!(error = chain(&error), "the copy of the revocations is not used"),
        }
        self.publish();
    }

    /// Writes the copy on disk, off the workers: they answer checks.
    async fn write_file(&self) {
        let (Some(path), store) = (self.file.clone(), Arc::clone(&self.store)) else { return };
        let writing = move || {
            if store.position().is_none() {
                return;
            }
            if let Err(error) = write_private(&path, |file| store.write_snapshot(file).map(|_| ())) {
                tracing::warn!(%error, path = %path.display(), "the copy of the revocations cannot be written");
            }
        };
        // A panic there is logged where it happens; the next copy is a whole one.
        let _ = tokio::task::spawn_blocking(writing).await;
    }

    /// Takes a snapshot where there is none, then applies lines until the feed ends.
    async fn follow(&self) -> Result<(), FeedError> {
        let (epoch, seq) = match self.store.position() {
            Some(position) => position,
            None => {
                self.take_snapshot().await?;
                self.store.position().ok_or(FeedError::Line)?
            }
        };
        let path = format!("/v1/feed?after={epoch}.{seq}");
        let mut stream = self.service.open(&path).await.map_err(FeedError::Remote)?;
        match stream.status() {
            200 => {}
            status => return Err(FeedError::Status(status)),
        }
        let mut saved = Instant::now();
        let mut has_changes = false;
        loop {
            let line = tokio::time::timeout(MAX_SILENCE, stream.next_line(MAX_LINE_BYTES)).await;
            let Some(line) = line.map_err(|_| FeedError::Silent)?.map_err(FeedError::Remote)? else { return Ok(()) };
            let line = Line::parse(&line).ok_or(FeedError::Line)?;
            self.store.apply(&line);
            match line {
                Line::Changed { .. } | Line::Noted { .. } => {
                    self.metrics.applied.inc();
                    has_changes = true;
                }
                // Every second: entries are not counted with each change.
                Line::Confirmed { .. } => self.publish(),
                Line::Reset => self.take_snapshot().await?,
            }
            if has_changes && saved.elapsed() > SAVE_PAUSE {
                self.write_file().await;
                (saved, has_changes) = (Instant::now(), false);
            }
        }
    }

    fn begin(&self, header: Header, count: usize) -> Result<Load, FeedError> {
        let begun = self.store.begin(header, count);
        self.metrics.overflow.set(i64::from(matches!(begun, Err(LoadError::Overflow { .. }))));
        begun.map_err(FeedError::Load)
    }

    /// Takes the entries block by block, so that they need no room twice.
    async fn take_snapshot(&self) -> Result<(), FeedError> {
        let mut stream = self.service.open("/v1/snapshot").await.map_err(FeedError::Remote)?;
        if stream.status() != 200 {
            return Err(FeedError::Status(stream.status()));
        }
        let (mut decoder, mut load, mut left) = (Decoder::default(), None::<Load>, MAX_SNAPSHOT_BYTES);
        while !decoder.is_complete() {
            let bytes = tokio::time::timeout(MAX_SILENCE, stream.next_bytes()).await.map_err(|_| FeedError::Silent)?;
            let bytes = bytes.map_err(FeedError::Remote)?.ok_or(FeedError::Snapshot(SnapshotError::Cut))?;
            left = left.checked_sub(bytes.len()).ok_or(FeedError::TooLarge)?;
            decoder.push(&bytes);
            while let Some(part) = decoder.next_part().map_err(FeedError::Snapshot)? {
                load = match (part, load.take()) {
                    (Part::Header(header, count), _) => Some(self.begin(header, count)?),
                    // Tens of thousands of entries, off the workers: they answer checks.
                    (Part::Block(block), Some(mut load)) => {
                        let taking = tokio::task::spawn_blocking(move || {
                            load.block(block);
                            load
                        });
                        Some(taking.await.map_err(|_| FeedError::Panicked)?)
                    }
                    (Part::Events(events), Some(mut load)) => {
                        load.events(events);
                        Some(load)
                    }
                    (Part::Block(_) | Part::Events(_), None) => return Err(FeedError::Snapshot(SnapshotError::Format)),
                };
            }
        }
        if let Some(load) = load {
            load.finish();
        }
        self.write_file().await;
        Ok(())
    }
}
