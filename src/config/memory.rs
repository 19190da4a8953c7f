//! How much memory there is, and what may take how much of it.

/// The memory limit of the process in bytes, where it has one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory(pub Option<u64>);

impl Memory {
    /// `most` bytes, but no more than this part of the limit: what fills up by itself (tokens, messages, connections, decisions and events
    /// that wait) must leave room for the process, which needs 5 MB beside its binary, and for the policy.
    pub fn share(self, most: u64, part: u64) -> u64 {
        self.0.map_or(most, |limit| limit.checked_div(part).unwrap_or(limit).clamp(1, most.max(1)))
    }
}
