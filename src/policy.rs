//! The policy store: the snapshot that decides, swapped whole.
//!
//! Knows nothing about files, bundles or requests: it is given sources and hands out values. What evaluates Rego stands
//! behind `engine`.

mod cache;
mod engine;
mod entrypoint;
mod journal;
mod memory;
mod outbound;
mod question;
mod snapshot;
mod sources;
mod trail;
mod world;

use std::sync::Arc;

use arc_swap::ArcSwapOption;

pub use self::engine::{
    AnswerSource, Bounds, Effort, EvalError, Evaluation, Rejection, Strictness, compile_sources, package_of,
};
pub use self::entrypoint::{Entrypoint, EntrypointError, UndefinedEntrypoint};
pub use self::journal::{Asked, Journal, Place, Record, Waiting, Watcher, Watchers};
pub use self::memory::{EvaluationMemory, MemoryGrant, MemorySettings};
pub use self::outbound::OutboundSettings;
pub use self::question::{Complaint, QueryError, Question};
pub use self::snapshot::Snapshot;
pub use self::sources::{Module, RegoVersion, SourceConflict, Sources};
pub use self::trail::{Step, Trail, Visits};
pub use self::world::{BuiltinSettings, Surroundings, World};

/// Holds the active snapshot. Readers take a reference and keep it for the whole check.
#[derive(Debug, Default)]
pub struct Store {
    current: ArcSwapOption<Snapshot>,
}

impl Store {
    /// The active snapshot; `None` before the first activation.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }

    /// Activates a built snapshot. Checks in flight finish on the one they began with.
    pub fn activate(&self, snapshot: Snapshot) {
        self.current.store(Some(Arc::new(snapshot)));
    }
}

#[cfg(test)]
mod tests;
