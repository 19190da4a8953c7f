//! Bundles: archives of policies and data that a server offers, fetched again and again.
//!
//! Mirrors: OPA `v1/plugins/bundle`, v1.19.0. The active bundle stays active whatever fails.

pub mod archive;
pub mod contents;
pub mod patch;
pub mod poller;
pub mod saved;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::contents::{BundleError, BundlePayload, BundleReader};
use self::poller::{Download, PollError, Poller, Polling, Resource};
use self::saved::SavedBundle;
use super::activation::{Activated, Activation, ActivationError};
use super::backoff;
use super::status::{Fault, Status, clipped};
use crate::clock::{Clock, nanoseconds};
use crate::feed::metrics::FeedMetrics;
use crate::lifecycle::Lifecycle;
use crate::opa::signature::Verification;
use crate::telemetry::{Outcome, chain};

/// The first pause before a file is read again, and the longest.
const FIRST_REREAD: Duration = Duration::from_secs(1);
const LONGEST_REREAD: Duration = Duration::from_secs(60);
/// The time to retry activating a saved bundle whose dependencies are not yet active.
const KEPT_PATIENCE: Duration = Duration::from_secs(5);

/// Where a bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A service by name, and what to ask it for.
    Service { service: String, resource: Resource },
    /// An archive or a folder, read once.
    File(PathBuf),
}

/// One bundle of the configuration.
#[derive(Clone, Debug)]
pub struct BundleSettings {
    pub name: String,
    pub source: Source,
    pub polling: Polling,
    /// Bytes of the archive, and of everything in it.
    pub size_limit: u64,
    pub verification: Verification,
    /// Where it is kept for the next start.
    pub kept: Option<SavedBundle>,
    /// `metadata.sequence` of its manifest is required and must never fall.
    pub rollback_guard: bool,
    /// The silence of its server after which readiness ends.
    pub max_staleness: Option<Duration>,
    /// The configuration as one value: a bundle whose configuration differs is restarted.
    pub fingerprint: u64,
}

/// Why a bundle was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BundleFeedError {
    #[error(transparent)]
    Poll(#[from] PollError),
    #[error("the bundle is refused")]
    Bundle(#[from] BundleError),
    #[error("bundle activation failed")]
    Activation(#[from] ActivationError),
    #[error("the saved bundle cannot be read")]
    Kept(#[source] std::io::Error),
    #[error("bundle activation failed: building it panicked")]
    Panic,
}

/// The result of a poll.
#[derive(Debug, PartialEq, Eq)]
enum PollResult {
    Same,
    Activated,
}

/// Keeps one bundle fresh.
#[derive(Debug)]
pub struct BundleFeed {
    pub settings: Arc<BundleSettings>,
    pub reading: Arc<BundleReader>,
    /// Absent for a file.
    pub poller: Option<Poller>,
    pub activation: Arc<Activation>,
    pub status: Status,
    pub metrics: Arc<FeedMetrics>,
    pub clock: Clock,
    /// Asks for a poll at once.
    pub refresh: Arc<Notify>,
    /// Ends when the configuration has the bundle no more, or another one of its name.
    pub lifecycle: Lifecycle,
    /// It has been active since it was started.
    pub was_active: Arc<AtomicBool>,
}

impl BundleFeed {
    /// Polls for ever; for a file, until it is active.
    pub async fn run(mut self) {
        self.begin_with_kept().await;
        if self.settings.polling.is_manual {
            self.refresh.notified().await;
        }
        let mut failures = 0u32;
        loop {
            let polled = self.poll().await;
            failures = if polled.is_ok() { 0 } else { failures.saturating_add(1) };
            self.report(&polled);
            let pause = match (&self.poller, &polled) {
                (Some(poller), _) => poller.pause(failures),
                (None, Err(_)) => backoff(FIRST_REREAD, LONGEST_REREAD, failures),
                // Read once, as in OPA; again only on request.
                (None, Ok(_)) => Duration::MAX,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.refresh.notified() => {}
            }
        }
    }

    fn report(&self, polled: &Result<PollResult, BundleFeedError>) {
        let (name, now) = (self.settings.name.as_str(), self.clock.now_ns());
        let outcome = if polled.is_ok() { Outcome::Success } else { Outcome::Failure };
        self.metrics.bundle_polled(name, outcome, self.clock.now());
        match polled {
            Ok(PollResult::Same) => {}
            Ok(PollResult::Activated) => {
                let etag = self.poller.as_ref().and_then(|poller| poller.etag.as_deref());
                tracing::info!(name, etag, "Bundle loaded and activated successfully.");
            }
            Err(error) => tracing::error!(name, "Bundle load failed: {}", clipped(&chain(error))),
        }
        // A server that does not answer has offered nothing that could be rejected, and what was removed no longer matters.
        if !matches!(polled, Err(BundleFeedError::Poll(_) | BundleFeedError::Activation(ActivationError::Over))) {
            self.activation.report_rejected(name, polled.is_err());
        }
        let undefined = self.activation.undefined_entrypoint();
        let undefined = undefined.map(|error| Fault { code: ENTRYPOINT_UNDEFINED, ..Fault::of_bundle(&error) });
        self.status.bundle(name, |status| {
            status.fault = polled.as_ref().err().map(fault).or(undefined);
            // As in OPA, an answer that is no bundle is no success.
            if matches!(polled, Ok(_) | Err(BundleFeedError::Activation(_))) {
                status.answered_at = Some(now);
            }
        });
    }

    /// Activates the saved bundle, so that a start does not wait for a server.
    async fn begin_with_kept(&mut self) {
        let Some(kept) = self.settings.kept.clone() else { return };
        let limit = self.settings.size_limit;
        let name = self.settings.name.clone();
        let loaded = tokio::task::spawn_blocking(move || kept.load(limit)).await;
        let (archive, saved_at) = match loaded {
            Ok(Ok(Some(loaded))) => loaded,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                return tracing::warn!(name, "{}", chain(&BundleFeedError::Kept(error)));
            }
        };
        let mut changes = self.activation.changes();
        let end = Instant::now() + KEPT_PATIENCE;
        loop {
            changes.mark_unchanged();
            let error = match self.activate(Download { archive: archive.clone(), etag: None }, false).await {
                Ok(()) => {
                    tracing::info!(name, "Bundle loaded from disk and activated successfully.");
                    return self.status.bundle(&name, |status| status.answered_at = Some(saved_at));
                }
                Err(error) => error,
            };
            // It may need another one, which is being loaded at the same time.
            let is_worth_it = matches!(error, BundleFeedError::Activation(_))
                && matches!(tokio::time::timeout_at(end.into(), changes.changed()).await, Ok(Ok(())));
            if !is_worth_it {
                return tracing::warn!(name, "the saved bundle is not used: {}", clipped(&chain(&error)));
            }
        }
    }

    /// Asks once.
    async fn poll(&mut self) -> Result<PollResult, BundleFeedError> {
        let name = self.settings.name.clone();
        let (asked, asked_at) = (Instant::now(), self.clock.now_ns());
        self.status.bundle(&name, |status| status.asked_at = Some(asked_at));
        let download = match &mut self.poller {
            Some(poller) => {
                let asked = loop {
                    tokio::select! {
                        asked = poller.ask() => break asked?,
                        // A requested poll starts now, not after a server that holds its answer back.
                        () = self.refresh.notified() => {}
                    }
                };
                let Some(download) = asked else { return Ok(PollResult::Same) };
                download
            }
            None => Download { archive: Vec::new(), etag: None },
        };
        let took = nanoseconds(asked.elapsed());
        let (etag, size, now) = (download.etag.clone(), download.archive.len(), self.clock.now_ns());
        let activated = self.activate(download, true).await;
        self.status.bundle(&name, |status| {
            status.timers.insert("timer_bundle_request_ns", took);
            if matches!(activated, Ok(()) | Err(BundleFeedError::Activation(_))) {
                status.downloaded_at = Some(now);
                status.size = size;
            }
        });
        activated?;
        if let Some(poller) = &mut self.poller {
            poller.etag = etag;
        }
        Ok(PollResult::Activated)
    }

    /// Reads, verifies and builds what came, on a thread that may be busy.
    async fn activate(&self, download: Download, is_new: bool) -> Result<(), BundleFeedError> {
        let (settings, reading) = (Arc::clone(&self.settings), Arc::clone(&self.reading));
        let (activation, lifecycle) = (Arc::clone(&self.activation), self.lifecycle.clone());
        let built = tokio::task::spawn_blocking(move || -> Result<(Activated, u64, u64), BundleFeedError> {
            let began = Instant::now();
            let contents = match &settings.source {
                Source::File(path) => BundlePayload::Snapshot(reading.snapshot(path, &|_| false)?),
                Source::Service { .. } => reading.archive(&download.archive)?,
            };
            let read = nanoseconds(began.elapsed());
            let is_snapshot = matches!(contents, BundlePayload::Snapshot(_));
            // Only an archive that is to be saved stays in memory while the policy is built.
            let archive = settings.kept.as_ref().filter(|_| is_snapshot && is_new).map(|_| download.archive);
            let etag = download.etag.unwrap_or_default();
            let began = Instant::now();
            let cancelled = || lifecycle.is_stopping();
            let activated =
                activation.replace_bundle(&settings.name, contents, &etag, settings.rollback_guard, cancelled)?;
            if let (Some(kept), Some(archive)) = (&settings.kept, archive)
                && let Err(error) = kept.save(&archive)
            {
                let (name, folder) = (&settings.name, kept.folder.display());
                tracing::warn!(name, %folder, %error, "the bundle is active and could not be saved for the next start");
            }
            Ok((activated, read, nanoseconds(began.elapsed())))
        });
        let (activated, read, build) = built.await.map_err(|_| BundleFeedError::Panic)??;
        self.was_active.store(true, Ordering::Release);
        let now = self.clock.now_ns();
        self.status.bundle(&self.settings.name, |status| {
            status.active_revision = activated.revision;
            status.kind = activated.kind;
            status.activated_at = Some(now);
            status.timers.insert("timer_rego_load_bundles_ns", read);
            status.timers.insert("timer_rego_module_compile_ns", build);
        });
        Ok(())
    }
}

/// The code of a status: the bundles are active, and every decision is undefined.
const ENTRYPOINT_UNDEFINED: &str = "entrypoint_undefined";

fn fault(error: &BundleFeedError) -> Fault {
    match error {
        BundleFeedError::Activation(ActivationError::Policy(rejections)) => Fault::of_policy(rejections),
        BundleFeedError::Poll(error) => Fault::of_poll(error),
        other => Fault::of_bundle(other),
    }
}
