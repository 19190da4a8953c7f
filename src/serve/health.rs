//! What readiness waits for, by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// The condition that every configured bundle has been in force.
pub const BUNDLES: &str = "bundles";

type Condition = Box<dyn Fn() -> bool + Send + Sync>;

/// Conditions that must all hold for the process to take traffic.
#[derive(Default)]
pub struct Readiness {
    conditions: Mutex<BTreeMap<&'static str, Condition>>,
    draining: AtomicBool,
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness").field("waiting_for", &self.waiting_for()).finish()
    }
}

/// A shared `Readiness`.
pub type Health = Arc<Readiness>;

impl Readiness {
    /// Readiness also waits until `condition` holds.
    pub fn await_condition(&self, name: &'static str, condition: impl Fn() -> bool + Send + Sync + 'static) {
        self.conditions.lock().insert(name, Box::new(condition));
    }

    /// From now on not ready: the process is going away.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.waiting_for().is_empty()
    }

    /// The names of all conditions that do not hold.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        let mut waiting: Vec<_> =
            self.conditions.lock().iter().filter(|(_, holds)| !holds()).map(|(&name, _)| name).collect();
        if self.draining.load(Ordering::Acquire) {
            waiting.push("draining");
        }
        waiting
    }
}
