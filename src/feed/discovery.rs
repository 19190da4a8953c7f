//! Discovery: a bundle whose policy says how everything else is configured.
//!
//! Mirrors: OPA `v1/plugins/discovery`, v1.19.0: where the configuration stands, and that what was configured at the start wins.
//! Knows no configuration: it hands a document on, and reports the result.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tokio::sync::{mpsc, oneshot};

use super::bundle::BundleSettings;
use super::bundle::contents::{BundleError, BundlePayload, BundleReader};
use super::bundle::poller::{Download, PollError, Poller};
use super::status::{Fault, Status, clipped};
use crate::clock::Clock;
use crate::opa::signature::SignaturePolicy;
use crate::policy::{ApiError, Entrypoint, HostContext, QueryOptions, Rejection, Snapshot};
use crate::telemetry::chain;
use crate::value::json_text;

/// The time limit of computing the configuration.
const BUDGET: Duration = Duration::from_secs(5);

/// The discovery of a configuration.
#[derive(Clone, Debug)]
pub struct DiscoverySettings {
    pub bundle: BundleSettings,
    /// Where in `data` the configuration stands, part by part.
    pub decision: Vec<String>,
}

/// A configuration that was discovered.
#[derive(Debug)]
pub struct Discovered {
    pub document: Json,
    /// A key that was configured at the start has verified it.
    pub is_signed: bool,
    /// Receives the result: the reason of a rejection, or the parts that were left out, if any.
    pub reply: oneshot::Sender<Result<Option<String>, String>>,
}

/// The reason that a discovered configuration is not active.
#[derive(Debug, thiserror::Error)]
enum DiscoveryError {
    #[error(transparent)]
    Poll(#[from] PollError),
    #[error("the bundle is refused")]
    Bundle(#[from] BundleError),
    #[error("a delta cannot be a configuration")]
    Delta,
    #[error("error(s) occurred while compiling module(s)")]
    Policy(Vec<Rejection>),
    #[error("{0}")]
    Evaluation(String),
    #[error("undefined configuration")]
    Undefined,
    #[error("{0}")]
    Refused(String),
    #[error("computing it panicked")]
    Panic,
}

/// Keeps the configuration fresh.
#[derive(Debug)]
pub struct Discovery {
    pub settings: DiscoverySettings,
    pub reading: Arc<BundleReader>,
    pub poller: Poller,
    pub host_context: Arc<HostContext>,
    pub status: Status,
    pub clock: Clock,
    pub discovered: mpsc::Sender<Discovered>,
    /// The parts of the active configuration that are ignored, if any.
    pub left_out: Option<String>,
}

impl Discovery {
    /// Polls for ever.
    pub async fn run(mut self) {
        self.begin_with_kept().await;
        let mut failures = 0u32;
        loop {
            self.status.discovery(|status| status.asked_at = Some(self.clock.now_ns()));
            let outcome = self.poll().await;
            failures = if outcome.is_ok() { 0 } else { failures.saturating_add(1) };
            if let Err(error) = &outcome {
                tracing::error!("Discovery failed: {}", clipped(&chain(error)));
            }
            self.report(outcome);
            tokio::time::sleep(self.poller.pause(failures)).await;
        }
    }

    fn report(&self, outcome: Result<bool, DiscoveryError>) {
        let now = self.clock.now_ns();
        self.status.discovery(|status| match outcome {
            Ok(is_new) => {
                status.answered_at = Some(now);
                status.fault = self.reservation();
                if is_new {
                    status.activated_at = Some(now);
                }
            }
            Err(error) => {
                status.fault = Some(match &error {
                    DiscoveryError::Poll(error) => Fault::of_poll(error),
                    DiscoveryError::Policy(rejections) => Fault::of_policy(rejections),
                    other => Fault::of_bundle(other),
                });
            }
        });
    }

    /// A message without a code is no error.
    fn reservation(&self) -> Option<Fault> {
        self.left_out.as_ref().map(|message| Fault { message: message.clone(), ..Fault::default() })
    }

    async fn begin_with_kept(&mut self) {
        let Some(kept) = self.settings.bundle.kept.clone() else { return };
        let limit = self.settings.bundle.size_limit;
        match tokio::task::spawn_blocking(move || kept.load(limit)).await {
            Ok(Ok(None)) | Err(_) => {}
            Ok(Ok(Some((archive, _)))) => match self.activate(&Arc::new(archive)).await {
                Ok(()) => tracing::info!("Discovery bundle loaded from disk and activated successfully."),
                Err(error) => tracing::warn!("the saved discovery bundle is not used: {}", clipped(&chain(&error))),
            },
            Ok(Err(error)) => tracing::warn!("the saved discovery bundle cannot be read: {error}"),
        }
    }

    /// There was a new document.
    async fn poll(&mut self) -> Result<bool, DiscoveryError> {
        let Some(Download { archive, etag }) = self.poller.ask().await? else { return Ok(false) };
        let now = self.clock.now_ns();
        self.status.discovery(|status| {
            status.downloaded_at = Some(now);
            status.size = archive.len();
            status.kind = "snapshot";
        });
        let archive = Arc::new(archive);
        self.activate(&archive).await?;
        if let Some(kept) = self.settings.bundle.kept.clone()
            && let Ok(Err(error)) = tokio::task::spawn_blocking(move || kept.save(&archive)).await
        {
            tracing::warn!("the discovery bundle is active and could not be saved for the next start: {error}");
        }
        tracing::info!(etag, "Discovery update processed successfully.");
        self.poller.etag = etag;
        Ok(true)
    }

    async fn activate(&mut self, archive: &Arc<Vec<u8>>) -> Result<(), DiscoveryError> {
        let (reading, archive) = (Arc::clone(&self.reading), Arc::clone(archive));
        let (decision, host_context) = (self.settings.decision.clone(), Arc::clone(&self.host_context));
        let computed = tokio::task::spawn_blocking(move || {
            let bundle = match reading.archive(&archive)? {
                BundlePayload::Snapshot(bundle) => bundle,
                BundlePayload::Delta(_) => return Err(DiscoveryError::Delta),
            };
            let snapshot = Snapshot::build(&bundle.sources, &Entrypoint::from_path(""), &host_context);
            let snapshot = snapshot.map_err(DiscoveryError::Policy)?;
            let question = QueryOptions { input: None, strict_builtin_errors: false, budget: BUDGET };
            let failed = |complaint: ApiError| DiscoveryError::Evaluation(complaint.message);
            let document = snapshot.document(&decision, &question).map_err(failed)?.ok_or(DiscoveryError::Undefined)?;
            let document = serde_json::from_str(&json_text(&document));
            let document = document.map_err(|error| DiscoveryError::Evaluation(error.to_string()))?;
            Ok((bundle.manifest.revision, document))
        });
        let (revision, document) = computed.await.map_err(|_| DiscoveryError::Panic)??;
        let (reply, answer) = oneshot::channel();
        let is_signed = self.reading.verification.demand == SignaturePolicy::Required;
        // At shutdown the receiver is gone.
        let gone = || DiscoveryError::Refused("stopping".to_owned());
        self.discovered.send(Discovered { document, is_signed, reply }).await.map_err(|_| gone())?;
        self.left_out = answer.await.map_err(|_| gone())?.map_err(DiscoveryError::Refused)?;
        self.status.discovery(|status| {
            status.active_revision = revision;
            status.fault = self.reservation();
        });
        Ok(())
    }
}
