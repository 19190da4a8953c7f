//! Sends events to the service of the decision log, chunk by chunk.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::value::RawValue;

use super::Target;
use super::buffer::{Buffer, Overflow};
use super::pace::Pace;
use super::spill::Spill;
use crate::decision_queue::metrics::{LogMetrics, LogOutcome};
use crate::feed::status::{Fault, Status};
use crate::opa::rest::gunzip;
use crate::remote::RemoteError;
use crate::telemetry::chain;

/// The compression ratio of events, as a first guess.
const SHRINK: usize = 10;

/// The number of rejections of a chunk before it is split.
const MAX_REFUSALS: u32 = 5;
/// Chunks that are refused and kept. With so many of them no more events are taken from the buffer.
const MAX_REFUSED: usize = 64;
/// Bytes of a chunk once it is unpacked.
const MAX_UNPACKED: usize = 1 << 28;

/// One upload.
#[derive(Debug)]
struct Chunk {
    body: Vec<u8>,
    events: usize,
    /// The number of rejections for the content.
    refusals: u32,
}

impl Chunk {
    fn new(body: Vec<u8>, events: usize) -> Self {
        Self { body, events, refusals: 0 }
    }

    /// Its events; nothing when it is damaged.
    fn unpacked(&self) -> Option<Vec<String>> {
        let text = gunzip(&self.body, MAX_UNPACKED).ok()?;
        let events: Vec<Box<RawValue>> = serde_json::from_slice(&text).ok()?;
        Some(events.into_iter().map(|event| event.get().to_owned()).collect())
    }
}

/// The service's answer to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Taken,
    /// It takes nothing at the moment.
    Later,
    /// It does not take this one.
    Refused,
}

/// Takes events from the buffer to the service.
pub struct Uploader {
    pub buffer: Arc<Buffer>,
    pub spill: Option<Spill>,
    pub metrics: Arc<LogMetrics>,
    pub status: Status,
    pub pace: Pace,
    /// Taken from the buffer when the service took nothing.
    late: Option<Chunk>,
    /// The service rejects this chunk, while it may take others.
    refused: VecDeque<Chunk>,
}

impl Uploader {
    pub fn new(buffer: Arc<Buffer>, metrics: Arc<LogMetrics>, status: Status) -> Self {
        let pace = Pace::default();
        Self { buffer, spill: None, metrics, status, pace, late: None, refused: VecDeque::new() }
    }

    /// Sends everything, what was refused before last of all; false when the service takes nothing.
    pub async fn upload(&mut self, target: &Target) -> bool {
        let (mut has_taken, mut refusals, mut again) = (false, 0usize, self.refused.len());
        loop {
            let Some((chunk, is_on_disk)) = self.next(target.settings.upload_limit, &mut again).await else {
                return has_taken || refusals == 0;
            };
            let sent = self.send(target, &chunk.body).await;
            if is_on_disk && sent != Sent::Later {
                self.forget_spilled();
            }
            match sent {
                Sent::Taken => {
                    has_taken = true;
                    self.metrics.logged(LogOutcome::Uploaded, chunk.events);
                }
                Sent::Refused => {
                    let is_new = chunk.refusals == 0;
                    refusals = refusals.saturating_add(1);
                    again = again.saturating_add(self.set_aside(chunk, has_taken, target.settings.limits.overflow));
                    // A service that refuses two in a row may well refuse all.
                    if is_new && refusals > 1 && !has_taken {
                        return false;
                    }
                }
                Sent::Later => {
                    if !is_on_disk {
                        self.late = Some(chunk);
                    }
                    return false;
                }
            }
        }
    }

    /// The next chunk, and its location on disk until it has been taken.
    async fn next(&mut self, limit: usize, again: &mut usize) -> Option<(Chunk, bool)> {
        if let Some(chunk) = self.late.take() {
            return Some((chunk, false));
        }
        if self.refused.len() < MAX_REFUSED {
            if let Some(chunk) = self.spilled() {
                return Some((chunk, true));
            }
            if let Some(chunk) = self.next_chunk(limit).await {
                return Some((chunk, false));
            }
        }
        *again = again.checked_sub(1)?;
        self.refused.pop_front().map(|chunk| (chunk, false))
    }

    /// A chunk that is rejected again and again is halved, so that one bad event does not hold up the rest. Returns the number of
    /// chunks are to be tried at once.
    fn set_aside(&mut self, mut chunk: Chunk, takes_others: bool, overflow: Overflow) -> usize {
        chunk.refusals = chunk.refusals.saturating_add(1);
        let has_room = takes_others || self.refused.len() < MAX_REFUSED;
        if chunk.refusals < MAX_REFUSALS || !has_room {
            self.refused.push_back(chunk);
            return 0;
        }
        let mut events = chunk.unpacked().unwrap_or_default();
        if events.len() > 1 {
            let rest = events.split_off(events.len().div_ceil(2));
            for half in [rest, events] {
                // It is known that something in them is refused.
                let refusals = MAX_REFUSALS.saturating_sub(1);
                self.refused.push_front(Chunk { refusals, ..Chunk::new(packed(&half), half.len()) });
            }
            return 2;
        }
        if takes_others && overflow != Overflow::Wait {
            tracing::error!(events = chunk.events, "the service refuses this decision and takes others: it is dropped");
            self.metrics.logged(LogOutcome::Refused, chunk.events);
        } else {
            self.refused.push_back(chunk);
        }
        0
    }

    fn spilled(&mut self) -> Option<Chunk> {
        loop {
            let oldest = self.spill.as_ref()?.oldest();
            let events_before = self.spill.as_ref().map_or(0, Spill::events);
            match oldest {
                Ok(None) => return None,
                Ok(Some((body, events))) => {
                    let chunk = Chunk::new(body, events);
                    if chunk.unpacked().is_some() {
                        return Some(chunk);
                    }
                    tracing::error!(events, "events on disk are damaged and lost");
                }
                Err(error) => tracing::error!(%error, "events on disk cannot be read and are lost"),
            }
            self.forget_spilled();
            let lost = events_before.saturating_sub(self.spill.as_ref().map_or(0, Spill::events));
            self.metrics.logged(LogOutcome::Refused, lost);
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
        Some(Chunk::new(body, events.len()))
    }

    async fn send(&self, target: &Target, body: &[u8]) -> Sent {
        let Some(service) = &target.service else { return Sent::Later };
        let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
        let sent = service.post(&target.settings.resource, &headers, body.to_vec()).await;
        let fault = fault(&sent);
        if let Some(fault) = &fault {
            tracing::error!("{}; the events are kept", fault.message);
        }
        let outcome = match (&fault, sent) {
            (None, _) => Sent::Taken,
            (Some(_), Ok(400 | 413 | 415 | 422)) => Sent::Refused,
            (Some(_), _) => Sent::Later,
        };
        self.status.decision_logs(fault);
        outcome
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
                self.metrics.logged(LogOutcome::BufferFull, gone);
                true
            }
            Err(error) => {
                tracing::error!(%error, events = chunk.events, "events cannot be written to disk and are lost");
                self.metrics.logged(LogOutcome::BufferFull, chunk.events);
                false
            }
        }
    }

    /// The rest at shutdown goes to disk where that is configured, and is lost otherwise.
    pub async fn finish(&mut self, limit: usize) {
        let mut left = 0usize;
        loop {
            let waiting = match self.late.take().or_else(|| self.refused.pop_front()) {
                Some(chunk) => Some(chunk),
                None => self.next_chunk(limit).await,
            };
            let Some(chunk) = waiting else { break };
            if self.spill.is_some() {
                self.keep_on_disk(&chunk);
            } else {
                left = left.saturating_add(chunk.events);
            }
        }
        if left > 0 {
            self.metrics.logged(LogOutcome::Stopped, left);
            tracing::error!(events = left, "decisions were not uploaded before the end");
        }
        let kept = self.spill.as_ref().map_or(0, Spill::events);
        if kept > 0 {
            tracing::warn!(events = kept, "decisions wait on disk for the next start");
        }
    }
}

/// The status text of an upload that was not taken.
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
