//! The conditions of readiness, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// The condition that every configured bundle has been active.
pub const BUNDLES: &str = "bundles";

/// A part of the process, by the name that OPA has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Plugin {
    Bundle,
    Discovery,
    DecisionLogs,
    Status,
    Checks,
}

impl Plugin {
    pub fn name(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Discovery => "discovery",
            Self::DecisionLogs => "decision_logs",
            Self::Status => "status",
            Self::Checks => "envoy_ext_authz_grpc",
        }
    }
}

struct Condition {
    plugin: Plugin,
    holds: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Conditions that must all hold for the process to take traffic.
#[derive(Default)]
pub struct Readiness {
    conditions: Mutex<BTreeMap<&'static str, Condition>>,
    plugins: Mutex<BTreeSet<Plugin>>,
    draining: AtomicBool,
    /// All plugins have been up at the same time.
    was_up: AtomicBool,
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readiness").field("waiting_for", &self.waiting_for()).finish()
    }
}

/// A shared `Readiness`.
pub type Health = Arc<Readiness>;

impl Readiness {
    /// Registers a plugin, even if readiness never waits for it.
    pub fn has_plugin(&self, plugin: Plugin) {
        self.plugins.lock().insert(plugin);
    }

    /// Readiness also waits until `condition` holds.
    pub fn await_condition(
        &self,
        name: &'static str,
        plugin: Plugin,
        condition: impl Fn() -> bool + Send + Sync + 'static,
    ) {
        self.has_plugin(plugin);
        self.conditions.lock().insert(name, Condition { plugin, holds: Box::new(condition) });
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
        let mut waiting: Vec<_> = self.open().into_iter().map(|(name, _)| name).collect();
        if self.draining.load(Ordering::Acquire) {
            waiting.push("draining");
        }
        waiting
    }

    fn open(&self) -> Vec<(&'static str, Plugin)> {
        let conditions = self.conditions.lock();
        let open = conditions.iter().filter(|(_, condition)| !(condition.holds)());
        open.map(|(&name, condition)| (name, condition.plugin)).collect()
    }

    /// The states of all parts: `OK` or `NOT_READY`, in OPA's words.
    pub fn plugins(&self) -> BTreeMap<String, &'static str> {
        let (open, draining) = (self.open(), self.draining.load(Ordering::Acquire));
        let state = |plugin: Plugin| {
            let waits = open.iter().any(|(_, of)| *of == plugin) || (draining && plugin == Plugin::Checks);
            if waits { "NOT_READY" } else { "OK" }
        };
        let states: BTreeMap<String, &'static str> =
            self.plugins.lock().iter().map(|&plugin| (plugin.name().to_owned(), state(plugin))).collect();
        if states.values().all(|state| *state == "OK") {
            self.was_up.store(true, Ordering::Release);
        }
        states
    }

    /// All plugins have been up at the same time, once.
    pub fn has_been_up(&self) -> bool {
        self.plugins();
        self.was_up.load(Ordering::Acquire)
    }
}
