//! The policy store: the snapshot that decides, swapped whole.
//!
//! Knows nothing about files, bundles or requests: it is given sources and hands out values. What evaluates Rego stands
//! behind `engine`.

mod cache;
mod decision_counts;
mod engine;
mod entrypoint;
mod host;
mod http_send;
mod memory;
mod metrics;
mod query;
mod snapshot;
mod sources;
mod trace;

use std::sync::Arc;

use arc_swap::ArcSwapOption;

pub use self::engine::{
    AnswerSource, Bounds, Effort, EvalError, Evaluation, Rejection, Strictness, compile_sources, package_of,
};
pub use self::entrypoint::{Entrypoint, EntrypointError, UndefinedEntrypoint};
pub use self::host::{BuiltinSettings, EvalHost, HostContext, OPA_VERSION};
pub use self::http_send::OutboundSettings;
pub use self::memory::{EvaluationMemory, MemoryGrant, MemorySettings};
pub use self::metrics::PolicyMetrics;
pub use self::query::{ApiError, QueryError, QueryOptions};
pub use self::snapshot::Snapshot;
pub use self::sources::{Module, RegoVersion, SourceConflict, Sources};
pub use self::trace::{Step, Trail, Visits};

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
