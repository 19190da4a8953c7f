//! The feed of revocations: a snapshot of the hub, then its changes line by line, and a copy on disk for the next start.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{jittered, write_private};
use crate::clock::Clock;
use crate::remote::RemoteError;
use crate::remote::service::{RequestOptions, Service};
use crate::revocation::{Line, LoadError, RevocationMetrics, RevocationStore, SnapshotError, decode, encode};
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
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                return tracing::warn!(%error, path = %path.display(), "the copy of the revocations cannot be read");
            }
        };
        match decode(&bytes) {
            Ok((header, records)) => match self.store.load(header, records) {
                Ok(()) => tracing::info!(entries = self.store.len(), "revocations of the last run are used"),
                Err(error) => tracing::warn!(error = chain(&error), "the copy of the revocations is not used"),
            },
            Err(error) => tracing::warn!(error = chain(&error), "the copy of the revocations is not used"),
        }
        self.publish();
    }

    /// Writes the copy on disk, off the workers: they answer checks.
    async fn write_file(&self) {
        let (Some(path), store) = (self.file.clone(), Arc::clone(&self.store)) else { return };
        let writing = move || {
            let Some((header, records)) = store.snapshot() else { return };
            if let Err(error) = write_private(&path, &encode(&header, &records)) {
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
                Line::Changed { .. } => {
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

    async fn take_snapshot(&self) -> Result<(), FeedError> {
        let options = RequestOptions { limit: MAX_SNAPSHOT_BYTES, ..RequestOptions::default() };
        let reply = self.service.get("/v1/snapshot", &options).await.map_err(FeedError::Remote)?;
        if reply.status != 200 {
            return Err(FeedError::Status(reply.status));
        }
        let (store, metrics) = (Arc::clone(&self.store), Arc::clone(&self.metrics));
        // Millions of entries are sorted off the workers.
        let loading = move || {
            let (header, records) = decode(&reply.body).map_err(FeedError::Snapshot)?;
            // It is as large as the entries: both are not needed at once.
            drop(reply);
            let loaded = store.load(header, records);
            metrics.overflow.set(i64::from(matches!(loaded, Err(LoadError::Overflow { .. }))));
            loaded.map_err(FeedError::Load)
        };
        tokio::task::spawn_blocking(loading).await.map_err(|_| FeedError::Panicked)??;
        self.write_file().await;
        Ok(())
    }
}
