//! Sends events to the service of the decision log, chunk by chunk.

use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::Target;
use super::buffer::{Buffer, Overflow};
use super::pace::Pace;
use super::spill::Spill;
use crate::feed::status::{Fault, Status};
use crate::remote::RemoteError;
use crate::telemetry::{Logged, Metrics, chain};

/// How many times smaller events become, as a first guess.
const SHRINK: usize = 10;

/// One upload.
struct Chunk {
    body: Vec<u8>,
    events: usize,
}

/// Takes events from the buffer to the service.
pub struct Uploader {
    pub buffer: Arc<Buffer>,
    pub spill: Option<Spill>,
    pub metrics: Arc<Metrics>,
    pub status: Status,
    pub pace: Pace,
    /// Taken from the buffer, and refused.
    waiting: Option<Chunk>,
}

impl Uploader {
    pub fn new(buffer: Arc<Buffer>, metrics: Arc<Metrics>, status: Status) -> Self {
        Self { buffer, spill: None, metrics, status, pace: Pace::default(), waiting: None }
    }

    /// Sends everything; false when a chunk was not taken and waits for the next time.
    pub async fn upload(&mut self, target: &Target) -> bool {
        loop {
            if let Some(chunk) = self.waiting.take() {
                if !self.send(target, &chunk.body).await {
                    self.waiting = Some(chunk);
                    return false;
                }
                self.metrics.decisions_logged(Logged::Uploaded, chunk.events);
            }
            match self.spilled() {
                Some(chunk) => {
                    // It stays on disk until it has been taken.
                    if !self.send(target, &chunk.body).await {
                        return false;
                    }
                    self.metrics.decisions_logged(Logged::Uploaded, chunk.events);
                    self.forget_spilled();
                }
                None => match self.next_chunk(target.settings.upload_limit).await {
                    Some(chunk) => self.waiting = Some(chunk),
                    None => return true,
                },
            }
        }
    }

    fn spilled(&mut self) -> Option<Chunk> {
        loop {
            match self.spill.as_ref()?.oldest() {
                Ok(found) => return found.map(|(body, events)| Chunk { body, events }),
                Err(error) => {
                    let before = self.spill.as_ref().map_or(0, Spill::events);
                    self.forget_spilled();
                    let lost = before.saturating_sub(self.spill.as_ref().map_or(0, Spill::events));
                    self.metrics.decisions_logged(Logged::BufferFull, lost);
                    tracing::error!(%error, events = lost, "events on disk cannot be read and are lost");
                }
            }
        }
    }

    fn forget_spilled(&mut self) {
        if let Some(Err(error)) = self.spill.as_mut().map(Spill::remove_oldest) {
            tracing::error!(%error, "events on disk cannot be removed");
        }
    }

    /// As many of the oldest events as one upload takes, and at least one.
    async fn next_chunk(&mut self, limit: usize) -> Option<Chunk> {
        let mut events = self.buffer.take(limit.saturating_mul(SHRINK));
        if events.is_empty() {
            return None;
        }
        let working = self.pace.begin();
        let mut body = packed(&events);
        while body.len() > limit && events.len() > 1 {
            let rest = events.split_off(events.len().div_ceil(2));
            self.buffer.put_back(rest);
            body = packed(&events);
        }
        self.pace.end(working).await;
        Some(Chunk { body, events: events.len() })
    }

    async fn send(&self, target: &Target, body: &[u8]) -> bool {
        let Some(service) = &target.service else { return false };
        let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
        let sent = service.post(&target.settings.resource, &headers, body.to_vec()).await;
        let fault = fault(&sent);
        if let Some(fault) = &fault {
            tracing::error!("{}; the events are kept", fault.message);
        }
        let is_taken = fault.is_none();
        self.status.decision_logs(fault);
        is_taken
    }

    /// Makes room while the service takes nothing: the oldest events go to disk, where that is wanted.
    pub async fn relieve(&mut self, limit: usize) {
        while self.spill.is_some()
            && self.buffer.limits().overflow == Overflow::Spill
            && self.buffer.is_half_full()
            && let Some(chunk) = self.next_chunk(limit).await
            && self.keep_on_disk(&chunk)
        {}
    }

    fn keep_on_disk(&mut self, chunk: &Chunk) -> bool {
        let Some(spill) = &mut self.spill else { return false };
        match spill.write(&chunk.body, chunk.events) {
            Ok(gone) => {
                self.metrics.decisions_logged(Logged::BufferFull, gone);
                true
            }
            Err(error) => {
                tracing::error!(%error, events = chunk.events, "events cannot be written to disk and are lost");
                self.metrics.decisions_logged(Logged::BufferFull, chunk.events);
                false
            }
        }
    }

    /// What is left at the end goes to disk where that is wanted, and is lost otherwise.
    pub async fn finish(&mut self, limit: usize) {
        let mut left = 0usize;
        let mut open = self.waiting.take();
        loop {
            let Some(chunk) = open.take() else {
                open = self.next_chunk(limit).await;
                if open.is_none() {
                    break;
                }
                continue;
            };
            if self.spill.is_some() {
                self.keep_on_disk(&chunk);
            } else {
                left = left.saturating_add(chunk.events);
            }
        }
        if left > 0 {
            self.metrics.decisions_logged(Logged::Stopped, left);
            tracing::error!(events = left, "decisions were not uploaded before the end");
        }
        let kept = self.spill.as_ref().map_or(0, Spill::events);
        if kept > 0 {
            tracing::warn!(events = kept, "decisions wait on disk for the next start");
        }
    }
}

/// What the status tells of an upload that was not taken.
fn fault(sent: &Result<u16, RemoteError>) -> Option<Fault> {
    let told =
        |message: String, http_code| Some(Fault { code: "decision_log_error", message, http_code, errors: Vec::new() });
    match sent {
        Ok(status) if (200..300).contains(status) => None,
        Ok(status) => told(format!("log upload failed, server replied with HTTP {status}"), Some(*status)),
        Err(error) => told(format!("log upload failed: {}", chain(error)), None),
    }
}

/// A gzipped JSON array.
fn packed(events: &[String]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(b"[");
    for (at, event) in events.iter().enumerate() {
        let _ = encoder.write_all(if at > 0 { b"," } else { b"" });
        let _ = encoder.write_all(event.as_bytes());
    }
    let _ = encoder.write_all(b"]");
    encoder.finish().unwrap_or_default()
}
