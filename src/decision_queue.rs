//! Decisions on their way to the decision log. Recording one never waits: what does not fit is dropped and counted.

pub mod metrics;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, Permit, Receiver, Sender};

use self::metrics::{LogMetrics, LogOutcome};
use crate::policy::Snapshot;
use crate::telemetry::Metrics;
use crate::value::Value;

/// Decisions that wait for the decision log at most.
const MAX_WAITING: usize = 5_000;
/// Bytes that one part of an input takes, about: less in long texts, and more in lists of small ones.
const BYTES_PER_WEIGHT: usize = 32;

/// Events that a slow watcher may be behind; beyond, it misses the oldest.
const MAX_BEHIND: usize = 1_024;

/// Bytes that are held, until it is dropped.
#[derive(Debug)]
struct HeldEvents {
    bytes: usize,
    total: Arc<AtomicUsize>,
}

impl HeldEvents {
    fn new(bytes: usize, total: &Arc<AtomicUsize>) -> Self {
        total.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, total: Arc::clone(total) }
    }
}

impl Drop for HeldEvents {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The subscribers to decision log events.
#[derive(Clone, Debug)]
pub struct Subscribers {
    /// Bytes of events that all of them together may be behind: each has a part of the same last ones.
    max_behind_bytes: usize,
    all: Arc<Mutex<Vec<Arc<SubscriberQueue>>>>,
    /// Their number. Every check reads it without taking the lock.
    count: Arc<AtomicUsize>,
}

impl Subscribers {
    pub fn are_there(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Shows an event, which is JSON, to all of them.
    pub fn publish(&self, event: &str) {
        if !self.are_there() {
            return;
        }
        let event: Arc<str> = event.into();
        self.all.lock().iter().for_each(|unseen| unseen.put(&event));
    }

    /// All of them miss an event that there was no room for.
    fn miss(&self) {
        if !self.are_there() {
            return;
        }
        for unseen in self.all.lock().iter() {
            let mut behind = unseen.events.lock();
            behind.missed = behind.missed.saturating_add(1);
            drop(behind);
            unseen.news.notify_one();
        }
    }

    fn new(max_behind_bytes: usize) -> Self {
        Self { max_behind_bytes, all: Arc::default(), count: Arc::default() }
    }

    /// One more of them, who sees events from now on.
    pub fn watch(&self) -> Subscriber {
        let unseen = Arc::new(SubscriberQueue { max_bytes: self.max_behind_bytes, ..SubscriberQueue::default() });
        self.all.lock().push(Arc::clone(&unseen));
        self.count.fetch_add(1, Ordering::Relaxed);
        Subscriber { unseen, watchers: self.clone() }
    }
}

/// The pending events of one subscriber.
#[derive(Debug, Default)]
struct SubscriberQueue {
    max_bytes: usize,
    events: Mutex<MissedEvents>,
    news: Notify,
}

#[derive(Debug, Default)]
struct MissedEvents {
    events: VecDeque<Arc<str>>,
    bytes: usize,
    /// Events that made room for newer ones.
    missed: u64,
}

impl SubscriberQueue {
    fn put(&self, event: &Arc<str>) {
        let mut behind = self.events.lock();
        while behind.events.len() >= MAX_BEHIND || behind.bytes.saturating_add(event.len()) > self.max_bytes {
            // One that is too large alone is shown all the same.
            let Some(oldest) = behind.events.pop_front() else { break };
            behind.bytes = behind.bytes.saturating_sub(oldest.len());
            behind.missed = behind.missed.saturating_add(1);
        }
        behind.bytes = behind.bytes.saturating_add(event.len());
        behind.events.push_back(Arc::clone(event));
        drop(behind);
        self.news.notify_one();
    }

    fn take(&self) -> Option<Result<Arc<str>, u64>> {
        let mut behind = self.events.lock();
        if behind.missed > 0 {
            return Some(Err(std::mem::take(&mut behind.missed)));
        }
        let event = behind.events.pop_front()?;
        behind.bytes = behind.bytes.saturating_sub(event.len());
        Some(Ok(event))
    }
}

/// One of those who watch, as long as it lives.
#[derive(Debug)]
pub struct Subscriber {
    unseen: Arc<SubscriberQueue>,
    watchers: Subscribers,
}

impl Subscriber {
    /// The next event, or how many were missed because they came too fast.
    pub async fn next(&mut self) -> Result<Arc<str>, u64> {
        loop {
            if let Some(next) = self.unseen.take() {
                return next;
            }
            self.unseen.news.notified().await;
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.watchers.all.lock().retain(|unseen| !Arc::ptr_eq(unseen, &self.unseen));
        self.watchers.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The path that the data API was asked for, where it and not Envoy asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiRequestInfo {
    /// The path of the document.
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
    /// It will be read; otherwise only its id is gathered.
    pub has_consumers: bool,
    /// The word for what went wrong; empty when nothing did.
    pub reason: &'static str,
    /// When the check arrived, in nanoseconds since the epoch.
    pub timestamp_ns: i64,
    /// Absent for a check.
    pub asked: Option<Box<ApiRequestInfo>>,
    /// The origin of the decision.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Absent when the request could not be turned into input.
    pub input: Option<Value>,
    pub result: Option<Value>,
    /// The answers of non-deterministic functions.
    pub answers: Option<Value>,
    /// Why there is no decision.
    pub error: Option<String>,
    /// The answer to Envoy, `allow` or `deny`; empty for other callers. Requirements and `dry-run` overrule the policy.
    pub answered: &'static str,
    pub evaluation: Duration,
    pub total: Duration,
}

/// A decision that waits, and holds its bytes until it is dropped.
#[derive(Debug)]
pub struct Waiting {
    pub record: Record,
    _held: HeldEvents,
}

/// Room for one decision.
#[derive(Debug)]
pub struct QueuePermit<'a> {
    permit: Permit<'a, Box<Waiting>>,
    waiting: &'a Arc<AtomicUsize>,
}

impl QueuePermit<'_> {
    pub fn take(self, record: Record) {
        let weight = [&record.input, &record.result].into_iter().flatten().map(Value::weight).sum::<usize>();
        let held = HeldEvents::new(weight.saturating_mul(BYTES_PER_WEIGHT), self.waiting);
        self.permit.send(Box::new(Waiting { record, _held: held }));
    }
}

/// The near end of the way.
#[derive(Debug)]
pub struct DecisionQueue {
    records: Sender<Box<Waiting>>,
    /// Bytes of the records that wait.
    waiting: Arc<AtomicUsize>,
    max_waiting_bytes: usize,
    metrics: Arc<LogMetrics>,
    log_enabled: AtomicBool,
    watchers: Subscribers,
}

impl DecisionQueue {
    /// Decisions of about `max_waiting_bytes` may wait; beyond that no further place is given. Half as much may wait for watchers.
    pub fn new(metrics: &Metrics, max_waiting_bytes: usize) -> (Self, Receiver<Box<Waiting>>) {
        let (records, waiting) = mpsc::channel(MAX_WAITING);
        let (metrics, log_enabled, watchers) =
            (metrics.of(), AtomicBool::new(true), Subscribers::new(max_waiting_bytes / 2));
        (Self { records, waiting: Arc::default(), max_waiting_bytes, metrics, log_enabled, watchers }, waiting)
    }

    pub fn watchers(&self) -> Subscribers {
        self.watchers.clone()
    }

    /// Decisions have consumers; while there are none, nothing needs to be gathered.
    pub fn has_consumers(&self) -> bool {
        self.log_enabled() || self.watchers.are_there()
    }

    /// Decisions are logged.
    pub fn log_enabled(&self) -> bool {
        self.log_enabled.load(Ordering::Relaxed)
    }

    pub fn set_log_enabled(&self, log_enabled: bool) {
        self.log_enabled.store(log_enabled, Ordering::Relaxed);
    }

    /// A permit for a decision; without one it is counted as dropped, and nothing needs to be gathered for it.
    pub fn reserve(&self) -> Option<QueuePermit<'_>> {
        let has_room = self.waiting.load(Ordering::Relaxed) < self.max_waiting_bytes;
        match self.records.try_reserve() {
            Ok(permit) if has_room => Some(QueuePermit { permit, waiting: &self.waiting }),
            _ => {
                // Without a decision log, no event is missing.
                if self.log_enabled() {
                    self.metrics.logged(LogOutcome::QueueFull, 1);
                }
                self.watchers.miss();
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

    const LIMIT: usize = 16 << 20;

    #[tokio::test]
    async fn events_are_wanted_while_somebody_watches() {
        let (decision_queue, _records) = DecisionQueue::new(&Metrics::new(None), LIMIT);
        decision_queue.set_log_enabled(false);
        assert!(!decision_queue.has_consumers());
        let (mut one, other) = (decision_queue.watchers().watch(), decision_queue.watchers().watch());
        drop(other);
        assert!(decision_queue.has_consumers() && !decision_queue.log_enabled());
        for at in 0..MAX_BEHIND + 3 {
            decision_queue.watchers().publish(&at.to_string());
        }
        assert_eq!(one.next().await, Err(3), "what came too fast is counted");
        assert_eq!(one.next().await, Ok("3".into()));
        drop(one);
        assert!(!decision_queue.has_consumers());
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_bytes() {
        let metrics = Metrics::new(None);
        let (decision_queue, mut records) = DecisionQueue::new(&metrics, LIMIT);
        let record = || Record { input: Some(Value::from("x".repeat(1 << 20))), ..Record::default() };
        let mut taken = 0;
        while let Some(place) = decision_queue.reserve() {
            place.take(record());
            taken += 1;
        }
        assert_eq!(taken, LIMIT >> 21, "long texts count twice");
        let dropped = "stepgate_decision_logs_total{outcome=\"queue_full\"} 1";
        assert!(metrics.text().contains(dropped));
        decision_queue.set_log_enabled(false);
        let mut alone = decision_queue.watchers().watch();
        assert!(decision_queue.reserve().is_none());
        assert_eq!(alone.next().await, Err(1), "the subscriber receives the count");
        assert!(metrics.text().contains(dropped), "a disabled log misses nothing");
        decision_queue.set_log_enabled(true);
        drop(alone);
        drop(records.recv().await);
        assert!(decision_queue.reserve().is_some(), "there is room again");

        let (mut watcher, mut healthy) = (decision_queue.watchers().watch(), decision_queue.watchers().watch());
        let event = "x".repeat(1 << 20);
        for _ in 0..20 {
            decision_queue.watchers().publish(&event);
            assert_eq!(
                healthy.next().await,
                Ok(event.as_str().into()),
                "a reading subscriber loses nothing by one that does not read"
            );
        }
        assert_eq!(watcher.next().await, Err(20 - 8), "what found no room is counted");
        for _ in 0..8 {
            assert_eq!(watcher.next().await, Ok(event.as_str().into()));
        }
        let large = "x".repeat(LIMIT / 2 + 1);
        for event in ["small", &large] {
            decision_queue.watchers().publish(event);
        }
        assert_eq!(watcher.next().await, Err(1));
        assert_eq!(watcher.next().await, Ok(large.as_str().into()), "one that is too large alone is shown");
    }
}
