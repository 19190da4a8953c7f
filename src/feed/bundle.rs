//! Bundles: archives of policies and data that a server offers, fetched again and again.
//!
//! Mirrors: OPA `v1/download` and `v1/plugins/bundle`, v1.19.0. Whatever goes wrong, what is in force stays in force.

pub mod archive;

use std::sync::Arc;
use std::time::Duration;

use self::archive::BundleError;
use super::activation::{Activation, ActivationError};
use super::{backoff, random_share};
use crate::clock::Clock;
use crate::lifecycle::Lifecycle;
use crate::policy::RegoVersion;
use crate::remote::RemoteError;
use crate::remote::service::Service;
use crate::telemetry::{Metrics, Outcome, chain};

/// The first pause after a failure; the longest is that between two polls.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// One bundle of the configuration.
#[derive(Clone, Debug)]
pub struct BundleSettings {
    pub name: String,
    /// The name of its service.
    pub service: String,
    /// Below the service's URL.
    pub resource: String,
    pub min_delay: Duration,
    pub max_delay: Duration,
    /// Bytes of the archive, and of everything in it.
    pub size_limit: u64,
}

/// Why a bundle was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BundleFeedError {
    #[error("the bundle cannot be fetched")]
    Fetch(#[from] RemoteError),
    /// OPA's words.
    #[error("server replied with {0}")]
    Status(&'static str),
    #[error("the bundle is refused")]
    Bundle(#[from] BundleError),
    #[error("the bundle is not put in force")]
    Activation(#[from] ActivationError),
    #[error("the bundle is not put in force: building it panicked")]
    Panic,
}

/// What a poll found.
#[derive(Debug, PartialEq, Eq)]
enum Polled {
    Same,
    Activated,
}

/// Keeps one bundle fresh.
#[derive(Debug)]
pub struct BundleFeed {
    pub settings: BundleSettings,
    pub service: Arc<Service>,
    pub activation: Arc<Activation>,
    pub version: RegoVersion,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
}

impl BundleFeed {
    /// Polls until everything stops.
    pub fn start(self, lifecycle: &Lifecycle) {
        lifecycle.spawn_until_stop(self.run());
    }

    async fn run(self) {
        let name = self.settings.name.as_str();
        let mut etag = None;
        let mut failures = 0u32;
        loop {
            let polled = self.poll(&mut etag).await;
            let outcome = if polled.is_ok() { Outcome::Success } else { Outcome::Failure };
            self.metrics.bundle_polled(name, outcome, self.clock.now());
            let pause = match polled {
                Ok(found) => {
                    if found == Polled::Activated {
                        tracing::info!(name, etag = etag.as_deref(), "Bundle loaded and activated successfully.");
                    }
                    failures = 0;
                    let spread = self.settings.max_delay.saturating_sub(self.settings.min_delay);
                    self.settings.min_delay.saturating_add(random_share(spread))
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    tracing::error!(name, "Bundle load failed: {}", chain(&error));
                    backoff(FIRST_RETRY, self.settings.max_delay, failures)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks once. The etag is that of the bundle in force: a refused one is fetched again.
    async fn poll(&self, etag: &mut Option<String>) -> Result<Polled, BundleFeedError> {
        let limit = usize::try_from(self.settings.size_limit).unwrap_or(usize::MAX);
        let mut headers = vec![("prefer", "modes=snapshot")];
        headers.extend(etag.as_deref().map(|etag| ("if-none-match", etag)));
        let reply = self.service.get(&self.settings.resource, &headers, limit).await?;
        match reply.status {
            304 => return Ok(Polled::Same),
            200 => {}
            _ => return Err(BundleFeedError::Status(reply.reason)),
        }
        let (activation, settings) = (Arc::clone(&self.activation), self.settings.clone());
        let (version, new) = (self.version, reply.etag.clone().unwrap_or_default());
        // Unpacking and compiling keep a thread busy.
        let built = tokio::task::spawn_blocking(move || -> Result<(), BundleFeedError> {
            let bundle = archive::read(&reply.body, settings.size_limit, version)?;
            drop(reply.body);
            Ok(activation.replace_bundle(&settings.name, bundle, &new)?)
        });
        built.await.map_err(|_| BundleFeedError::Panic)??;
        *etag = reply.etag;
        Ok(Polled::Activated)
    }
}
