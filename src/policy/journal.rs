//! Decisions on their way to the decision log. Recording one never waits: what does not fit is dropped and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc::{self, Permit, Receiver, Sender};

use super::Snapshot;
use crate::telemetry::{Logged, Metrics};
use crate::value::Value;

/// Decisions that wait for the decision log at most.
const MAX_WAITING: usize = 5_000;

/// Events that a slow watcher may be behind.
const MAX_BEHIND: usize = 1_024;

/// Whoever watches events of the decision log as they are made.
#[derive(Clone, Debug)]
pub struct Watchers {
    events: broadcast::Sender<Arc<str>>,
    /// How many there are. Every check asks, and must not take the lock of `events` for it.
    count: Arc<AtomicUsize>,
}

impl Watchers {
    fn none() -> Self {
        Self { events: broadcast::Sender::new(MAX_BEHIND), count: Arc::default() }
    }

    pub fn are_there(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Shows an event, which is JSON, to all of them.
    pub fn tell(&self, event: &str) {
        if self.are_there() {
            // The last one may have left meanwhile.
            let _ = self.events.send(Arc::from(event));
        }
    }

    /// One more of them, who sees events from now on.
    pub fn watch(&self) -> Watcher {
        self.count.fetch_add(1, Ordering::Relaxed);
        Watcher { events: self.events.subscribe(), count: Arc::clone(&self.count) }
    }
}

/// One of those who watch, as long as it lives.
#[derive(Debug)]
pub struct Watcher {
    events: broadcast::Receiver<Arc<str>>,
    count: Arc<AtomicUsize>,
}

impl Watcher {
    /// The next event, or how many were missed because they came too fast; nothing once there is none to come.
    pub async fn next(&mut self) -> Option<Result<Arc<str>, u64>> {
        match self.events.recv().await {
            Ok(event) => Some(Ok(event)),
            Err(RecvError::Lagged(missed)) => Some(Err(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the data API asked for, where it and not Envoy asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Of the document.
    pub path: Option<String>,
    pub query: Option<String>,
    /// The caller's address.
    pub by: String,
    pub request: u64,
}

/// One decision, as it was made.
#[derive(Debug, Default)]
pub struct Record {
    pub decision_id: String,
    /// Whether it will be read; otherwise nothing but its id is gathered.
    pub is_wanted: bool,
    /// The word for what went wrong; empty when nothing did.
    pub reason: &'static str,
    /// When the check arrived, in nanoseconds since the epoch.
    pub timestamp_ns: i64,
    /// Absent for a check.
    pub asked: Option<Box<Asked>>,
    /// What decided.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Absent when the request could not be turned into input.
    pub input: Option<Value>,
    pub result: Option<Value>,
    /// What functions answered that may answer differently the next time.
    pub answers: Option<Value>,
    /// Why there is no decision.
    pub error: Option<String>,
    pub evaluation: Duration,
    pub total: Duration,
}

/// Room for one decision.
#[derive(Debug)]
pub struct Place<'a>(Permit<'a, Box<Record>>);

impl Place<'_> {
    pub fn take(self, record: Record) {
        self.0.send(Box::new(record));
    }
}

/// The near end of the way.
#[derive(Debug)]
pub struct Journal {
    records: Sender<Box<Record>>,
    metrics: Arc<Metrics>,
    is_read: AtomicBool,
    watchers: Watchers,
}

impl Journal {
    pub fn new(metrics: Arc<Metrics>) -> (Self, Receiver<Box<Record>>) {
        let (records, waiting) = mpsc::channel(MAX_WAITING);
        (Self { records, metrics, is_read: AtomicBool::new(true), watchers: Watchers::none() }, waiting)
    }

    pub fn watchers(&self) -> Watchers {
        self.watchers.clone()
    }

    /// Whether anybody is told of decisions; while nobody is, nothing needs to be gathered for it.
    pub fn is_wanted(&self) -> bool {
        self.is_read() || self.watchers.are_there()
    }

    /// Whether decisions are logged.
    pub fn is_read(&self) -> bool {
        self.is_read.load(Ordering::Relaxed)
    }

    pub fn set_read(&self, is_read: bool) {
        self.is_read.store(is_read, Ordering::Relaxed);
    }

    /// A place for a decision that is to come; without one it is counted as dropped, and nothing needs to be gathered for it.
    pub fn reserve(&self) -> Option<Place<'_>> {
        match self.records.try_reserve() {
            Ok(permit) => Some(Place(permit)),
            Err(_) => {
                self.metrics.decisions_logged(Logged::QueueFull, 1);
                None
            }
        }
    }

    pub fn record(&self, record: Record) {
        if let Some(place) = self.reserve() {
            place.take(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_wanted_while_somebody_watches() {
        let (journal, _records) = Journal::new(Arc::new(Metrics::new(None)));
        journal.set_read(false);
        assert!(!journal.is_wanted());
        let (mut one, other) = (journal.watchers().watch(), journal.watchers().watch());
        drop(other);
        assert!(journal.is_wanted() && !journal.is_read());
        for at in 0..MAX_BEHIND + 3 {
            journal.watchers().tell(&at.to_string());
        }
        assert_eq!(one.next().await, Some(Err(3)), "what came too fast is counted");
        assert_eq!(one.next().await, Some(Ok("3".into())));
        drop(one);
        assert!(!journal.is_wanted());
    }
}
