//! A check that is being decided. However it ends, it is told: also when its caller gives up, and its future is dropped.

use std::time::Duration;

use tokio::time::Instant;

use crate::policy::{Place, Record};
use crate::telemetry::Metrics;

/// What will be told of a check, and the place for it.
pub struct Pending<'a> {
    pub record: Record,
    place: Option<Place<'a>>,
    metrics: &'a Metrics,
    started: Instant,
    is_done: bool,
}

impl<'a> Pending<'a> {
    pub fn new(record: Record, place: Option<Place<'a>>, metrics: &'a Metrics, started: Instant) -> Self {
        Self { record, place, metrics, started, is_done: false }
    }

    /// The answer is there.
    pub fn done(mut self) {
        self.is_done = true;
        self.tell();
    }

    fn tell(&mut self) {
        if let Some(place) = self.place.take() {
            let took: Duration = self.started.elapsed();
            place.take(Record { total: took, ..std::mem::take(&mut self.record) });
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        self.metrics.insides.cancelled();
        self.record.reason = "cancelled";
        self.record.error = Some("the caller gave up before there was a decision".to_owned());
        self.tell();
    }
}
