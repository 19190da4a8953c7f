//! Asking a service for a bundle, again and again.
//!
//! Mirrors: OPA `v1/download/download.go`, v1.19.0: what is asked, and when again. What differs, on purpose: the etag is that of
//! the active bundle even after a failure, and long polling never asks more often than ten times a second.

use std::sync::Arc;
use std::time::Duration;

use crate::feed::{backoff, random_share};
use crate::remote::RemoteError;
use crate::remote::registry::{self, PullResult, Reference};
use crate::remote::service::{RequestOptions, Service};

/// The first pause after a failure; the longest is that between two polls.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The shortest pause between two long polls.
const LONG_POLL_PAUSE: Duration = Duration::from_millis(100);
/// The content type of bundles from a server that supports long polling.
const LONG_POLL_TYPE: &str = "application/vnd.openpolicyagent.bundles";

/// When a service is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Polling {
    pub min_delay: Duration,
    pub max_delay: Duration,
    /// The longest time that such a server may hold its answer back.
    pub long: Option<Duration>,
    /// Polls only on request.
    pub is_manual: bool,
}

/// Where at its service a bundle is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Below the service's URL.
    Path(String),
    /// In a container registry.
    Artifact(Reference),
}

/// A new archive.
#[derive(Debug)]
pub struct Download {
    pub archive: Vec<u8>,
    pub etag: Option<String>,
}

/// Why nothing was downloaded.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    #[error("request failed")]
    Fetch(#[from] RemoteError),
    /// OPA's words.
    #[error("server replied with {reason}")]
    Status { code: u16, reason: &'static str },
}

/// Asks one service for one bundle.
#[derive(Debug)]
pub struct Poller {
    pub service: Arc<Service>,
    pub resource: Resource,
    pub polling: Polling,
    /// Bytes of an archive at most.
    pub limit: u64,
    /// Changes to the active bundle are accepted.
    pub deltas: bool,
    /// The ETag of the active bundle.
    pub etag: Option<String>,
    pub is_long: bool,
}

impl Poller {
    /// Polls once; `None` when the active bundle is current.
    pub async fn ask(&mut self) -> Result<Option<Download>, PollError> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        match &self.resource {
            Resource::Path(_) => self.ask_server(limit).await,
            Resource::Artifact(reference) => {
                let pulled = registry::pull(&self.service, reference, self.etag.as_deref(), limit).await?;
                match pulled {
                    PullResult::Same => Ok(None),
                    PullResult::New { archive, digest } => Ok(Some(Download { archive, etag: Some(digest) })),
                    PullResult::Refused(code, reason) => Err(PollError::Status { code, reason }),
                }
            }
        }
    }

    async fn ask_server(&mut self, limit: usize) -> Result<Option<Download>, PollError> {
        let Resource::Path(path) = &self.resource else { return Ok(None) };
        let wait = self.polling.long.filter(|_| self.is_long);
        let mut prefer = if self.deltas { "modes=snapshot,delta" } else { "modes=snapshot" }.to_owned();
        if let Some(wait) = wait {
            prefer.push_str(&format!(";wait={}", wait.as_secs()));
        }
        let mut headers = vec![("prefer", prefer.as_str())];
        headers.extend(self.etag.as_deref().map(|etag| ("if-none-match", etag)));
        let ask =
            RequestOptions { headers: &headers, limit, wait: wait.unwrap_or_default(), ..RequestOptions::default() };
        let reply = self.service.get(path, &ask).await?;
        match reply.status {
            200 => {
                self.is_long = reply.content_type.as_deref() == Some(LONG_POLL_TYPE);
                Ok(Some(Download { archive: reply.body, etag: reply.etag }))
            }
            304 => Ok(None),
            code => Err(PollError::Status { code, reason: reply.reason }),
        }
    }

    /// The delay after so many failures in a row.
    pub fn pause(&self, failures: u32) -> Duration {
        if self.polling.is_manual {
            return Duration::MAX;
        }
        if failures > 0 {
            return backoff(FIRST_RETRY, self.polling.max_delay, failures);
        }
        if self.is_long && self.polling.long.is_some() {
            return LONG_POLL_PAUSE;
        }
        self.polling
            .min_delay
            .saturating_add(random_share(self.polling.max_delay.saturating_sub(self.polling.min_delay)))
    }
}
