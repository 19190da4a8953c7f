//! A check that is being decided. It is logged however it ends, also when the client cancels it and its future is dropped.

use tokio::time::Instant;

use super::fault::Fault;
use crate::decision_queue::{QueuePermit, Record};
use crate::telemetry::Metrics;

/// The log record of a check, and its permit in the decision queue.
pub struct Pending<'a> {
    pub record: Record,
    place: Option<QueuePermit<'a>>,
    metrics: &'a Metrics,
    started: Instant,
    is_done: bool,
}

impl<'a> Pending<'a> {
    pub fn new(record: Record, place: Option<QueuePermit<'a>>, metrics: &'a Metrics, started: Instant) -> Self {
        Self { record, place, metrics, started, is_done: false }
    }

    /// The answer is there.
    pub fn done(mut self) {
        self.is_done = true;
        self.record();
    }

    fn record(&mut self) {
        if let Some(place) = self.place.take() {
            place.take(Record { total: self.started.elapsed(), ..std::mem::take(&mut self.record) });
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        // A panic is logged as such by its handler.
        if self.is_done || std::thread::panicking() {
            return;
        }
        let fault = Fault::Cancelled;
        self.metrics.cancelled(fault.opa_reason());
        self.record.reason = fault.reason();
        self.record.error = Some(fault.to_string());
        self.record();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;
    use crate::decision_queue::DecisionQueue;

    #[test]
    fn a_check_is_told_once_however_it_ends() {
        let metrics = Arc::new(Metrics::new(None));
        let (decision_queue, mut records) = DecisionQueue::new(Arc::clone(&metrics), 16 << 20);
        let pending = || Pending::new(Record::default(), decision_queue.reserve(), &metrics, Instant::now());
        pending().done();
        assert_eq!(records.try_recv().expect("it is told").record.reason, "");
        drop(pending());
        assert_eq!(records.try_recv().expect("it is told").record.reason, "cancelled");
        let broken = catch_unwind(AssertUnwindSafe(|| {
            let _pending = pending();
            panic!("a defect");
        }));
        assert!(broken.is_err() && records.try_recv().is_err(), "it was not cancelled");
        assert!(metrics.text().contains("stepgate_cancelled_checks_total 1"));
    }
}
