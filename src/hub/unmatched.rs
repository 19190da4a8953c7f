//! Events that named no one here: they are acknowledged, and never silent.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde_json::{Value, json};

/// Events that are kept.
const MAX_KEPT: usize = 1_000;

/// An event that named no one here.
#[derive(Clone, Debug)]
pub struct Unmatched {
    /// Seconds since the epoch.
    pub at: i64,
    pub source: String,
    pub event: &'static str,
    /// The hash of its `jti`, as in the log.
    pub id: String,
}

/// The last of them.
#[derive(Debug, Default)]
pub struct UnmatchedEvents(Mutex<VecDeque<Unmatched>>);

impl UnmatchedEvents {
    pub fn add(&self, event: Unmatched) {
        let mut kept = self.0.lock();
        if kept.len() >= MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back(event);
    }

    /// The events that are kept, oldest first.
    pub fn list(&self) -> Value {
        let shown =
            |event: &Unmatched| json!({"at": event.at, "source": event.source, "event": event.event, "id": event.id});
        self.0.lock().iter().map(shown).collect()
    }
}
