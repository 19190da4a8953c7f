//! The memory limits of evaluations: of each, and of concurrent ones together.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::histogram::Histogram;

/// Bounds in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySettings {
    /// For one evaluation, with the request body that it reads.
    pub each: usize,
    /// The limit of concurrent evaluations together, beside the first 256 KiB of each.
    pub all: usize,
}

/// Those of the tools of the command line.
impl Default for MemorySettings {
    fn default() -> Self {
        Self { each: 256 << 20, all: usize::MAX }
    }
}

/// The memory account shared by all evaluations of a process.
#[derive(Debug)]
pub struct EvaluationMemory {
    settings: MemorySettings,
    granted: AtomicUsize,
    /// Bytes that each evaluation held.
    held: Option<Histogram>,
}

impl EvaluationMemory {
    pub fn new(settings: MemorySettings, held: Option<Histogram>) -> Arc<Self> {
        Arc::new(Self { settings, granted: AtomicUsize::new(0), held })
    }

    /// Memory for one evaluation; nothing is granted yet.
    pub fn grant(self: &Arc<Self>) -> Arc<MemoryGrant> {
        Arc::new(MemoryGrant { shared: Arc::clone(self), granted: AtomicUsize::new(0) })
    }

    pub(super) fn observe(&self, bytes: usize) {
        if let Some(held) = &self.held {
            #[expect(clippy::cast_precision_loss, reason = "a metric")]
            held.observe(bytes as f64);
        }
    }
}

/// The memory of one evaluation, given back when dropped.
#[derive(Debug)]
pub struct MemoryGrant {
    shared: Arc<EvaluationMemory>,
    granted: AtomicUsize,
}

impl MemoryGrant {
    /// Bytes that may still be taken.
    pub fn left(&self) -> usize {
        self.shared.settings.each.saturating_sub(self.granted.load(Ordering::Relaxed))
    }

    /// Bytes that were taken.
    pub fn granted(&self) -> usize {
        self.granted.load(Ordering::Relaxed)
    }

    /// Takes `bytes` more; false where this evaluation or all of them would have too much.
    pub fn take(&self, bytes: usize) -> bool {
        let all = self.shared.granted.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let each = self.granted.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let fits = all <= self.shared.settings.all && each <= self.shared.settings.each;
        if !fits {
            self.give_back(bytes);
        }
        fits
    }

    /// Gives back what was taken.
    pub fn give_back(&self, bytes: usize) {
        self.shared.granted.fetch_sub(bytes, Ordering::Relaxed);
        self.granted.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn observe(&self, bytes: usize) {
        self.shared.observe(bytes);
    }
}

impl Drop for MemoryGrant {
    fn drop(&mut self) {
        self.shared.granted.fetch_sub(*self.granted.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_for_each_and_for_all_and_given_back() {
        let shared = EvaluationMemory::new(MemorySettings { each: 100, all: 150 }, None);
        let (first, second) = (shared.grant(), shared.grant());
        assert!(!first.take(101), "more than one may have");
        assert!(first.take(100));
        assert!(!second.take(60), "more than all may have");
        assert!(second.take(50));
        drop(first);
        assert!(second.take(50));
        assert_eq!(second.left(), 0);
        drop(second);
        assert_eq!(shared.granted.load(Ordering::Relaxed), 0);
    }
}
