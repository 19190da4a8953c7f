//! Forgets a source that is configured no more: what it has disabled is enabled, its users are removed, and its number is free.

use super::command::MARGIN;
use super::{CommandError, Hub, scim};
use crate::revocation::Change;

/// Entries, or rows, that are changed at a time.
const PART: usize = 1_000;

impl Hub {
    /// Forgets the source `name`, such as `scim/okta`. Tokens that were issued until now stay rejected. Gives the number of entries that
    /// it disabled. It may be called again after an error, and goes on. Waits for the disk.
    ///
    /// # Errors
    /// There is no such source, this hub has it configured, or the disk fails.
    pub fn forget(&self, name: &str, reason: &str, actor: &str) -> Result<usize, CommandError> {
        let refused = |why: String| Err(CommandError::Request("source", why));
        let known = self.ledger.sources()?;
        let Some(number) = known.get(name).copied() else {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            return refused(format!("expected one of: {}", names.join(", ")));
        };
        let providers = self.providers.iter().map(|provider| provider.source);
        if providers.chain(self.streams.iter().map(|stream| stream.source())).any(|configured| configured == number) {
            return refused(format!("`{name}` is configured: remove it from every hub, and start them again"));
        }
        if reason.is_empty() {
            return Err(CommandError::Request("reason", "it is empty".to_owned()));
        }
        let at = self.now().saturating_add(self.settings.skew);
        let until = at.saturating_add(self.settings.retain).saturating_add(MARGIN);
        let enable = Change { disable: Some((number, false)), not_before: at, until, ..Change::default() };
        let disabled = self.ledger.disabled_by(number)?;
        for part in disabled.chunks(PART) {
            self.change("forget", |batch| {
                part.iter().try_for_each(|(kind, key)| batch.apply(*kind, *key, &enable).map(|_| ()))
            })?;
        }
        for table in scim::TABLES {
            self.ledger.remove_rows(*table, scim::source_at(*table), number, PART)?;
        }
        self.ledger.forget_source(name)?;
        tracing::warn!(source = name, entries = disabled.len(), actor, reason, "a source was forgotten");
        Ok(disabled.len())
    }
}
