//! Issuers, each with the feed that keeps its keys fresh.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::feed::keys::KeyFeed;
use crate::lifecycle::Lifecycle;
use crate::remote::Remote;
use crate::remote::service::{Service, ServiceSettings};
use crate::telemetry::Metrics;
use crate::token::{Issuer, IssuerSettings, KeySource};

/// Starts the feeds; `services` has those whose keys are at a service.
pub(super) fn start_issuers(
    settings: Vec<IssuerSettings>,
    services: &BTreeMap<String, ServiceSettings>,
    metrics: &Metrics,
    clock: &Clock,
    lifecycle: &Lifecycle,
) -> Vec<Arc<Issuer>> {
    let remote = Remote::default();
    let start = |settings: IssuerSettings| {
        let service = match &settings.keys {
            KeySource::Service { name, .. } => services.get(name).cloned().map(Service::new),
            _ => None,
        };
        let (issuer, asked) = Issuer::new(settings);
        let feed = KeyFeed {
            issuer: Arc::clone(&issuer),
            remote: remote.clone(),
            service,
            metrics: metrics.of(),
            clock: clock.clone(),
            unusable: Mutex::default(),
        };
        feed.start(asked, lifecycle);
        issuer
    };
    settings.into_iter().map(start).collect()
}
