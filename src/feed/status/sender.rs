//! Sends the status to a service and to the console when it has changed.
//!
//! Mirrors: OPA `v1/plugins/status/plugin.go`, v1.19.0. A difference on purpose: a poll that found nothing new is not sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tokio::sync::watch;

use super::{BundleStatus, Status};
use crate::decision_queue::metrics::LogMetrics;
use crate::feed::backoff;
use crate::feed::metrics::FeedMetrics;
use crate::remote::RemoteError;
use crate::remote::service::Service;
use crate::telemetry::{Metrics, chain};

/// The period in which changes are gathered before they are sent.
const GATHER: Duration = Duration::from_millis(50);
/// The interval of checks for changed states of plugins.
const LOOK: Duration = Duration::from_secs(1);
/// The first pause after a failure, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The receivers of the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusSettings {
    pub console: bool,
    /// Export it as metrics, by OPA's names.
    pub prometheus: bool,
    /// The name of the service.
    pub service: Option<String>,
    /// Below the service's URL.
    pub resource: String,
}

/// Settings with the service that they name.
#[derive(Clone, Debug, Default)]
pub struct Target {
    pub settings: StatusSettings,
    pub service: Option<Arc<Service>>,
}

/// The states of all parts, by name.
pub type PluginStates = Arc<dyn Fn() -> BTreeMap<String, &'static str> + Send + Sync>;

/// Why a status was not taken.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("status update failed")]
    Send(#[from] RemoteError),
    #[error("status update failed, server replied with HTTP {0}")]
    Refused(u16),
}

/// Sends the status.
pub struct StatusSender {
    pub status: Status,
    pub plugins: PluginStates,
    pub metrics: Arc<Metrics>,
    /// Nothing while no status is wanted.
    pub target: watch::Receiver<Option<Target>>,
}

impl std::fmt::Debug for StatusSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusSender").finish_non_exhaustive()
    }
}

impl StatusSender {
    /// Sends until everything stops.
    pub async fn run(mut self) {
        let mut told = BTreeMap::new();
        let mut failures = 0u32;
        // The initial status is sent first.
        let mut is_news = true;
        loop {
            let pause = if failures > 0 { backoff(FIRST_RETRY, LONGEST_RETRY, failures) } else { LOOK };
            if !is_news {
                tokio::select! {
                    () = self.status.changed(), if failures == 0 => is_news = true,
                    changed = self.target.changed() => match changed {
                        Ok(()) => is_news = true,
                        Err(_) => return,
                    },
                    () = tokio::time::sleep(pause) => is_news = failures > 0,
                }
            }
            let states = (self.plugins)();
            if !is_news && states == told {
                continue;
            }
            tokio::time::sleep(GATHER).await;
            let Some(target) = self.target.borrow_and_update().clone() else {
                is_news = false;
                continue;
            };
            let message = self.status.to_json(&states, &self.metrics.of::<LogMetrics>().counts());
            if target.settings.prometheus {
                let bundles = self.status.bundles();
                let told: Vec<_> = bundles.iter().map(BundleStatus::metrics).collect();
                self.metrics.of::<FeedMetrics>().status.publish(&states, &told);
            }
            match self.send(&target, &message).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    tracing::error!("{}", chain(&error));
                }
            }
            (told, is_news) = (states, false);
        }
    }

    async fn send(&self, target: &Target, message: &Json) -> Result<(), SendError> {
        if target.settings.console {
            crate::telemetry::log::status(&message.to_string());
        }
        let Some(service) = &target.service else { return Ok(()) };
        let headers = [("content-type", "application/json")];
        let status = service.post(&target.settings.resource, &headers, message.to_string().into_bytes()).await?;
        if (200..300).contains(&status) { Ok(()) } else { Err(SendError::Refused(status)) }
    }
}
