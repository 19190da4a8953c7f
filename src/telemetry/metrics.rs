//! The registry of Prometheus metrics. Each room defines its own with [`RoomMetrics`]; this file names none of them. Every label has a
//! fixed set of values: nothing from a request becomes one.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Names and values of labels.
pub type Labels = Vec<(&'static str, String)>;

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckOutcome {
    Allow,
    Deny,
    Challenge,
    /// Denied because something went wrong.
    Fault,
}

impl CheckOutcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Challenge => "challenge",
            Self::Fault => "fault",
        }
    }
}

/// The result of a recurring attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure,
}

impl Outcome {
    pub const ALL: [Self; 2] = [Self::Success, Self::Failure];

    pub fn label(self) -> String {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
        }
        .to_owned()
    }
}

/// The metrics of one room.
pub trait RoomMetrics: Any + Send + Sync {
    /// Creates and registers them.
    fn register(registrar: &mut Registrar<'_>) -> Self;
}

/// Creates metrics and registers them under their names.
#[derive(Debug)]
pub struct Registrar<'r> {
    registry: &'r mut Registry,
    opa_buckets: Option<&'r [f64]>,
}

impl Registrar<'_> {
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        self.registered(name, help, Counter::default())
    }

    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        self.registered(name, help, Gauge::default())
    }

    /// Counters by labels.
    pub fn counters(&mut self, name: &'static str, help: &'static str) -> Family<Labels, Counter> {
        self.registered(name, help, Family::default())
    }

    /// Gauges by labels.
    pub fn gauges(&mut self, name: &'static str, help: &'static str) -> Family<Labels, Gauge> {
        self.registered(name, help, Family::default())
    }

    /// A histogram with these upper bounds.
    pub fn histogram(&mut self, name: &'static str, help: &'static str, bounds: &[f64]) -> Histogram {
        self.registered(name, help, Histogram::new(bounds.iter().copied()))
    }

    /// Histograms with one label, one for each of its values.
    pub fn histograms(
        &mut self,
        (name, help): (&'static str, &'static str),
        bounds: &[f64],
        label: &'static str,
        values: &[&str],
    ) -> Vec<Histogram> {
        let bounds: Arc<[f64]> = bounds.into();
        let make = move || Histogram::new(bounds.iter().copied());
        let family = Family::<Labels, Histogram, _>::new_with_constructor(make);
        let of = |value: &&str| family.get_or_create(&vec![(label, (*value).to_owned())]).clone();
        let histograms = values.iter().map(of).collect();
        self.registry.register(name, help, family);
        histograms
    }

    /// Hits and misses of a cache: two counters.
    pub fn cache(&mut self, [hits, misses]: [&'static str; 2], [hit_help, miss_help]: [&'static str; 2]) -> CacheCount {
        CacheCount { hits: self.counter(hits, hit_help), misses: self.counter(misses, miss_help) }
    }

    /// Bounds of OPA's `grpc_request_duration_seconds`, where its performance metrics are wanted.
    pub fn opa_buckets(&self) -> Option<Vec<f64>> {
        self.opa_buckets.map(<[f64]>::to_vec)
    }

    fn registered<M: prometheus_client::registry::Metric + Clone>(
        &mut self,
        name: &'static str,
        help: &'static str,
        metric: M,
    ) -> M {
        self.registry.register(name, help, metric.clone());
        metric
    }
}

/// Hits and misses of a cache.
#[derive(Clone, Debug, Default)]
pub struct CacheCount {
    hits: Counter,
    misses: Counter,
}

impl CacheCount {
    pub fn hit(&self) {
        self.hits.inc();
    }

    pub fn miss(&self) {
        self.misses.inc();
    }
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    rooms: Mutex<Rooms>,
    opa_buckets: Option<Vec<f64>>,
}

#[derive(Debug, Default)]
struct Rooms {
    registry: Registry,
    known: HashMap<TypeId, Arc<dyn Any + Send + Sync>>,
}

impl Metrics {
    /// `opa_buckets` are those of `grpc_request_duration_seconds`, when OPA's performance metrics are wanted.
    pub fn new(opa_buckets: Option<Vec<f64>>) -> Self {
        let metrics = Self { rooms: Mutex::default(), opa_buckets };
        metrics.of::<ProcessMetrics>();
        metrics
    }

    /// The metrics of a room, registered when they are first asked for.
    pub fn of<M: RoomMetrics>(&self) -> Arc<M> {
        let mut rooms = self.rooms.lock();
        let Rooms { registry, known } = &mut *rooms;
        let found = known.get(&TypeId::of::<M>()).and_then(|room| Arc::clone(room).downcast::<M>().ok());
        found.unwrap_or_else(|| {
            let room = Arc::new(M::register(&mut Registrar { registry, opa_buckets: self.opa_buckets.as_deref() }));
            known.insert(TypeId::of::<M>(), Arc::clone(&room) as Arc<dyn Any + Send + Sync>);
            room
        })
    }

    pub fn config_warned(&self, count: usize) {
        self.of::<ProcessMetrics>().config_warnings.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The text exposition format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.rooms.lock().registry);
        text
    }
}

#[derive(Debug)]
struct ProcessMetrics {
    config_warnings: Gauge,
}

impl RoomMetrics for ProcessMetrics {
    fn register(registrar: &mut Registrar<'_>) -> Self {
        let build = registrar.gauges("stepgate_build_info", "Info metric (value 1) with the version of the process");
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION").to_owned())]).set(1);
        Self {
            config_warnings: registrar
                .gauge("stepgate_config_warnings", "Warnings about the configuration at the start"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Room(Counter);

    impl RoomMetrics for Room {
        fn register(registrar: &mut Registrar<'_>) -> Self {
            Self(registrar.counter("stepgate_test", "Of a test"))
        }
    }

    #[test]
    fn a_room_is_registered_once() {
        let metrics = Metrics::new(None);
        metrics.of::<Room>().0.inc();
        metrics.of::<Room>().0.inc();
        let text = metrics.text();
        assert!(text.contains("stepgate_test_total 2") && text.matches("# HELP stepgate_test").count() == 1, "{text}");
    }
}
