//! Sends traces to a collector, in batches, by OTLP.
//!
//! Mirrors: OPA `internal/distributedtracing`, v1.19.0. The messages are the parts that we use of
//! `opentelemetry/proto/{trace,common,resource}/v1` (OTLP 1.x).

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;

use crate::clock::nanoseconds;
use crate::remote::service::{GrpcStatus, Service, ServiceSettings};
use crate::telemetry::{Trace, TraceMetrics, chain};

const HTTP_PATH: &str = "/v1/traces";
const GRPC_METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// Span kinds and the code of a status (trace.proto).
const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const ERROR: i32 = 2;
/// The flush timeout at shutdown.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// The export protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    Http,
}

/// Where traces go.
#[derive(Clone, Debug)]
pub struct TraceSettings {
    pub protocol: Protocol,
    pub service: ServiceSettings,
    /// The sampling rate of traces that begin here.
    pub percent: f64,
    /// `service.name` and its like.
    pub resource: Vec<(&'static str, String)>,
    pub batch: usize,
    pub waiting: usize,
    /// The gathering period of a batch.
    pub pause: Duration,
}

/// Sends them.
#[derive(Debug)]
pub struct TraceExporter {
    settings: TraceSettings,
    service: Service,
    metrics: Arc<TraceMetrics>,
    is_failing: bool,
}

impl TraceExporter {
    pub fn new(settings: TraceSettings, metrics: Arc<TraceMetrics>) -> Self {
        Self { service: Service::new(settings.service.clone()), settings, metrics, is_failing: false }
    }

    /// Sends until everything stops, and what is left then.
    pub async fn run(mut self, mut traces: Receiver<Box<Trace>>, stopping: impl Future<Output = ()>) {
        let mut stopping = std::pin::pin!(stopping);
        let mut batch = Vec::with_capacity(self.settings.batch);
        loop {
            let until = Instant::now() + self.settings.pause;
            let mut is_last = false;
            while batch.len() < self.settings.batch {
                tokio::select! {
                    () = &mut stopping => {
                        is_last = true;
                        break;
                    }
                    () = tokio::time::sleep_until(until) => break,
                    received = traces.recv() => match received {
                        Some(trace) => batch.push(trace),
                        None => {
                            is_last = true;
                            break;
                        }
                    },
                }
            }
            while is_last && let Ok(trace) = traces.try_recv() {
                batch.push(trace);
            }
            if !batch.is_empty() {
                let late = async {
                    if !is_last {
                        (&mut stopping).await;
                    }
                    tokio::time::sleep(LAST_EXPORT).await;
                };
                tokio::select! {
                    () = self.export(&batch) => batch.clear(),
                    () = late => {
                        // A collector that hangs holds up no stop.
                        traces.close();
                        let lost = batch.len().saturating_add(traces.len());
                        return self.metrics.ended("stopped", lost);
                    }
                }
            }
            if is_last {
                return;
            }
        }
    }

    async fn export(&mut self, batch: &[Box<Trace>]) {
        let body = self.request(batch).encode_to_vec();
        let failed = match self.settings.protocol {
            Protocol::Http => {
                match self.service.post(HTTP_PATH, &[("content-type", "application/x-protobuf")], body).await {
                    Ok(200..=299) => None,
                    Ok(status) => Some(format!("the collector answers {status}")),
                    Err(error) => Some(chain(&error)),
                }
            }
            Protocol::Grpc => match self.service.call(GRPC_METHOD, &body).await {
                Ok(GrpcStatus { http: 200, grpc: 0 }) => None,
                Ok(status) => Some(format!("the collector answers {} with grpc-status {}", status.http, status.grpc)),
                Err(error) => Some(chain(&error)),
            },
        };
        self.metrics.ended(if failed.is_some() { "failed" } else { "exported" }, batch.len());
        // Once for an outage.
        match &failed {
            Some(error) if !self.is_failing => tracing::warn!(error, "traces cannot be exported and are dropped"),
            None if self.is_failing => tracing::info!("traces are exported again"),
            _ => {}
        }
        self.is_failing = failed.is_some();
    }

    fn request(&self, batch: &[Box<Trace>]) -> otlp::Request {
        let resource = self.settings.resource.iter().map(|(name, value)| otlp::text(name, value)).collect();
        let scope = otlp::Scope { name: "stepgate".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let spans = batch.iter().flat_map(|trace| spans(trace)).collect();
        otlp::Request {
            resource_spans: vec![otlp::ResourceSpans {
                resource: Some(otlp::Resource { attributes: resource }),
                scope_spans: vec![otlp::ScopeSpans { scope: Some(scope), spans }],
            }],
        }
    }
}

/// The check, and within it each of its phases.
fn spans(trace: &Trace) -> Vec<otlp::Span> {
    let told = &trace.told;
    let at = |offset: Duration| u64::try_from(trace.began_ns).unwrap_or_default().saturating_add(nanoseconds(offset));
    let mut attributes = vec![
        otlp::text("stepgate.decision", told.decision),
        otlp::text("stepgate.decision_id", &told.decision_id),
        otlp::text("http.request.method", &told.method),
        otlp::text("server.address", &told.host),
        otlp::text("url.path", &told.path),
    ];
    if !told.reason.is_empty() {
        attributes.push(otlp::text("stepgate.reason", told.reason));
    }
    let is_fault = told.decision == "fault";
    let root = otlp::Span {
        trace_id: trace.context.trace.to_vec(),
        span_id: trace.context.span.to_vec(),
        parent_span_id: trace.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        name: "envoy.service.auth.v3.Authorization/Check".to_owned(),
        kind: SERVER,
        start_time_unix_nano: at(Duration::ZERO),
        end_time_unix_nano: at(trace.took),
        attributes,
        status: is_fault.then(|| otlp::Status { message: told.reason.to_owned(), code: ERROR }),
    };
    let part = |(number, (phase, begin, end)): (u8, &(&str, Duration, Duration))| {
        // Differs from the root by one byte: only this function creates children of it.
        let mut id = trace.context.span;
        if let Some(last) = id.last_mut() {
            *last ^= number;
        }
        otlp::Span {
            trace_id: root.trace_id.clone(),
            span_id: id.to_vec(),
            parent_span_id: root.span_id.clone(),
            name: (*phase).to_owned(),
            kind: INTERNAL,
            start_time_unix_nano: at(*begin),
            end_time_unix_nano: at(*end),
            ..otlp::Span::default()
        }
    };
    let parts: Vec<_> = (1u8..).zip(&trace.phases).map(part).collect();
    let calls = trace.calls().into_iter().map(|(call, begin, end)| {
        // Neither path nor query: requests of policies may contain confidential data.
        let outcome = match call.outcome {
            Ok(status) => otlp::number("http.response.status_code", i64::from(status)),
            Err(word) => otlp::text("error.type", word),
        };
        otlp::Span {
            trace_id: root.trace_id.clone(),
            span_id: call.span.to_vec(),
            parent_span_id: root.span_id.clone(),
            name: format!("HTTP {}", call.method),
            kind: CLIENT,
            start_time_unix_nano: at(begin),
            end_time_unix_nano: at(end),
            attributes: vec![
                otlp::text("http.request.method", &call.method),
                otlp::text("server.address", &call.host),
                outcome,
            ],
            status: call.outcome.err().map(|word| otlp::Status { message: word.to_owned(), code: ERROR }),
        }
    });
    let calls: Vec<_> = calls.collect();
    [vec![root], parts, calls].concat()
}

/// The messages, with the numbers of their fields.
mod otlp {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Request {
        #[prost(message, repeated, tag = "1")]
        pub resource_spans: Vec<ResourceSpans>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        pub resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub scope_spans: Vec<ScopeSpans>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub attributes: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct ScopeSpans {
        #[prost(message, optional, tag = "1")]
        pub scope: Option<Scope>,
        #[prost(message, repeated, tag = "2")]
        pub spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Scope {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub version: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Span {
        #[prost(bytes = "vec", tag = "1")]
        pub trace_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub span_id: Vec<u8>,
        #[prost(bytes = "vec", tag = "4")]
        pub parent_span_id: Vec<u8>,
        #[prost(string, tag = "5")]
        pub name: String,
        #[prost(int32, tag = "6")]
        pub kind: i32,
        #[prost(fixed64, tag = "7")]
        pub start_time_unix_nano: u64,
        #[prost(fixed64, tag = "8")]
        pub end_time_unix_nano: u64,
        #[prost(message, repeated, tag = "9")]
        pub attributes: Vec<KeyValue>,
        #[prost(message, optional, tag = "15")]
        pub status: Option<Status>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Status {
        #[prost(string, tag = "2")]
        pub message: String,
        #[prost(int32, tag = "3")]
        pub code: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct KeyValue {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<AnyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct AnyValue {
        #[prost(string, optional, tag = "1")]
        pub string_value: Option<String>,
        #[prost(int64, optional, tag = "3")]
        pub int_value: Option<i64>,
    }

    pub fn text(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { string_value: Some(value.to_owned()), ..AnyValue::default() }),
        }
    }

    pub fn number(key: &str, value: i64) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { int_value: Some(value), ..AnyValue::default() }) }
    }
}
