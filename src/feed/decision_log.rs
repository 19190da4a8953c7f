//! The decision log: events made of decisions, masked, and written to the console or sent to a service.
//!
//! Mirrors: OPA `v1/plugins/logs`, v1.19.0. Everything here is off the request path. What proves who somebody is never
//! leaves in clear: see [`event`].

mod event;

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::time::Instant;

use self::event::Events;
use super::status::{Fault, Status};
use super::{backoff, random_share};
use crate::lifecycle::Lifecycle;
use crate::policy::Record;
use crate::remote::RemoteError;
use crate::remote::service::Service;
use crate::telemetry::{Logged, Metrics, chain};

/// The first pause after a failed upload.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// How often it is looked for uploads where there is nothing to upload to.
const IDLE: Duration = Duration::from_secs(3_600);
/// How long decisions are waited for once everything stops.
const LAST_DECISIONS: Duration = Duration::from_millis(500);

/// Where decisions are logged, and how.
#[derive(Clone, Debug)]
pub struct DecisionLogSettings {
    pub console: bool,
    /// The name of the service that events are sent to.
    pub service: Option<String>,
    /// Below the service's URL.
    pub resource: String,
    /// The path of the decision, as it was configured.
    pub path: String,
    /// Of this process, in every event.
    pub labels: BTreeMap<String, String>,
    pub mask: Vec<String>,
    pub drop: Vec<String>,
    /// Whether credentials are taken out of events whatever the mask says.
    pub redact: bool,
    pub min_delay: Duration,
    pub max_delay: Duration,
    /// Bytes of one upload, compressed.
    pub upload_limit: usize,
    /// Bytes of events that wait for an upload.
    pub buffer_limit: usize,
    pub max_per_second: Option<u64>,
}

/// Settings with the service that they name.
#[derive(Clone, Debug)]
pub struct Target {
    pub settings: DecisionLogSettings,
    pub service: Option<Arc<Service>>,
}

impl Target {
    fn pause(&self) -> Duration {
        let spread = self.settings.max_delay.saturating_sub(self.settings.min_delay);
        self.settings.min_delay.saturating_add(random_share(spread))
    }
}

/// Writes the decision log.
#[derive(Debug)]
pub struct DecisionLog {
    /// Nothing while decisions are not logged.
    pub target: watch::Receiver<Option<Arc<Target>>>,
    pub metrics: Arc<Metrics>,
    pub status: Status,
}

impl DecisionLog {
    /// Logs until everything stops, and what is left then.
    pub fn start(self, records: Receiver<Box<Record>>, lifecycle: &Lifecycle) {
        let stopping = lifecycle.stopping();
        lifecycle.spawn(self.run(records, stopping));
    }

    async fn run(mut self, mut records: Receiver<Box<Record>>, stopping: impl Future<Output = ()>) {
        let mut writer = Writer::new(Arc::clone(&self.metrics), Arc::clone(&self.status));
        let mut stopping = std::pin::pin!(stopping);
        let mut upload_at = writer.retarget(self.target.borrow_and_update().clone());
        let mut failures = 0u32;
        loop {
            tokio::select! {
                () = &mut stopping => break,
                record = records.recv() => match record {
                    Some(record) => writer.write(&record),
                    None => break,
                },
                Ok(()) = self.target.changed() => {
                    // What was gathered for the old target still goes there.
                    writer.upload().await;
                    upload_at = writer.retarget(self.target.borrow_and_update().clone());
                }
                () = tokio::time::sleep_until(upload_at) => {
                    let uploaded = writer.upload().await;
                    failures = if uploaded { 0 } else { failures.saturating_add(1) };
                    upload_at = writer.next_upload(failures);
                }
            }
        }
        // Checks in flight still give decisions.
        while let Ok(Some(record)) = tokio::time::timeout(LAST_DECISIONS, records.recv()).await {
            writer.write(&record);
        }
        writer.upload().await;
        let left = writer.buffer.len();
        if left > 0 {
            self.metrics.decisions_logged(Logged::Stopped, left);
            tracing::error!(events = left, "decisions were not uploaded before the end");
        }
    }
}

/// Events between a decision and their upload.
struct Writer {
    target: Option<Arc<Target>>,
    metrics: Arc<Metrics>,
    status: Status,
    buffer: VecDeque<String>,
    bytes: usize,
    /// The second that is counted, and the events in it.
    second: (i64, u64),
}

impl Writer {
    fn new(metrics: Arc<Metrics>, status: Status) -> Self {
        Self { target: None, metrics, status, buffer: VecDeque::new(), bytes: 0, second: (0, 0) }
    }

    /// From now on writes there; gives when to upload first.
    fn retarget(&mut self, target: Option<Arc<Target>>) -> Instant {
        self.target = target;
        self.next_upload(0)
    }

    /// When to upload after so many failures in a row.
    fn next_upload(&self, failures: u32) -> Instant {
        let pause = match &self.target {
            None => IDLE,
            Some(target) if failures == 0 => target.pause(),
            Some(target) => backoff(FIRST_RETRY, target.settings.max_delay, failures),
        };
        Instant::now() + pause
    }

    fn write(&mut self, record: &Record) {
        let Some(target) = self.target.clone() else {
            return self.metrics.decisions_logged(Logged::Unconfigured, 1);
        };
        let settings = &target.settings;
        if !self.is_within_rate(settings.max_per_second, record.timestamp_ns) {
            return self.metrics.decisions_logged(Logged::RateLimited, 1);
        }
        let Some(event) = (Events { settings, metrics: &self.metrics }).make(record) else {
            return self.metrics.decisions_logged(Logged::Unwanted, 1);
        };
        if settings.console {
            crate::telemetry::log::decision(&event);
        }
        if target.service.is_none() {
            return self.metrics.decisions_logged(Logged::Written, 1);
        }
        self.bytes = self.bytes.saturating_add(event.len());
        self.buffer.push_back(event);
        // The oldest go first, as in OPA.
        while self.bytes > settings.buffer_limit
            && let Some(oldest) = self.buffer.pop_front()
        {
            self.bytes = self.bytes.saturating_sub(oldest.len());
            self.metrics.decisions_logged(Logged::BufferFull, 1);
        }
    }

    fn is_within_rate(&mut self, most: Option<u64>, now_ns: i64) -> bool {
        let Some(most) = most else { return true };
        let second = now_ns / 1_000_000_000;
        if self.second.0 != second {
            self.second = (second, 0);
        }
        self.second.1 = self.second.1.saturating_add(1);
        self.second.1 <= most
    }

    /// Sends everything, chunk by chunk; false when a chunk was not taken and waits for the next time.
    async fn upload(&mut self) -> bool {
        let Some(target) = self.target.clone() else { return true };
        let Some(service) = &target.service else { return true };
        while !self.buffer.is_empty() {
            let (count, body) = self.chunk(target.settings.upload_limit);
            let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
            let sent = service.post(&target.settings.resource, &headers, body).await;
            self.status.decision_logs(fault(&sent));
            match sent {
                Ok(status) if (200..300).contains(&status) => {
                    for event in self.buffer.drain(..count) {
                        self.bytes = self.bytes.saturating_sub(event.len());
                    }
                    self.metrics.decisions_logged(Logged::Uploaded, count);
                }
                Ok(status) => {
                    tracing::error!(status, "Log upload failed: the service refused the events; they are kept");
                    return false;
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "Log upload failed; the events are kept");
                    return false;
                }
            }
        }
        true
    }

    /// As many of the oldest events as one upload takes, and at least one.
    fn chunk(&self, limit: usize) -> (usize, Vec<u8>) {
        // Events shrink to about a tenth; whatever is too much is halved.
        let mut bytes = 0usize;
        let fitting = self.buffer.iter().take_while(|event| {
            bytes = bytes.saturating_add(event.len());
            bytes <= limit.saturating_mul(10)
        });
        let mut count = fitting.count().max(1);
        loop {
            let packed = packed(self.buffer.iter().take(count));
            if packed.len() <= limit || count == 1 {
                return (count, packed);
            }
            count /= 2;
        }
    }
}

/// What the status tells of an upload that was not taken.
fn fault(sent: &Result<u16, RemoteError>) -> Option<Fault> {
    let told =
        |message: String, http_code| Some(Fault { code: "decision_log_error", message, http_code, errors: Vec::new() });
    match sent {
        Ok(status) if (200..300).contains(status) => None,
        Ok(status) => told(format!("log upload failed, server replied with HTTP {status}"), Some(*status)),
        Err(error) => told(format!("log upload failed: {}", chain(error)), None),
    }
}

/// A gzipped JSON array.
fn packed<'e>(events: impl Iterator<Item = &'e String>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(b"[");
    for (at, event) in events.enumerate() {
        let _ = encoder.write_all(if at > 0 { b"," } else { b"" });
        let _ = encoder.write_all(event.as_bytes());
    }
    let _ = encoder.write_all(b"]");
    encoder.finish().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::policy::Journal;
    use crate::remote::service::{Credentials, ServiceSettings};

    /// A service that answers each upload with the next status, the last one for ever; gives the ids of what it took.
    async fn service(statuses: Vec<u16>) -> (Arc<Service>, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&taken);
        tokio::spawn(async move {
            let mut statuses = statuses.into_iter().peekable();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let body = loop {
                    let mut bytes = vec![0; 65_536];
                    let read = stream.read(&mut bytes).await.unwrap_or(0);
                    request.extend_from_slice(&bytes[..read]);
                    let head = request.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
                    let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
                    let length: Option<usize> =
                        text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
                    if let (Some(head), Some(length)) = (head, length)
                        && request.len() >= head + length
                    {
                        break request[head..head + length].to_vec();
                    }
                    if read == 0 {
                        break Vec::new();
                    }
                };
                let status = if statuses.len() > 1 { statuses.next() } else { statuses.peek().copied() }.unwrap_or(200);
                if status == 200 {
                    let mut text = String::new();
                    GzDecoder::new(body.as_slice()).read_to_string(&mut text).expect("gzip");
                    let events: Vec<serde_json::Value> = serde_json::from_str(&text).expect("an array");
                    log.lock()
                        .extend(events.iter().map(|event| event["decision_id"].as_str().unwrap_or("").to_owned()));
                }
                let answer = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let settings = ServiceSettings {
            url: url.parse().expect("a URL"),
            headers: Vec::new(),
            credentials: Credentials::None,
            header_timeout: Duration::from_secs(5),
            ca_cert: None,
            system_roots: true,
            skip_verification: false,
        };
        (Arc::new(Service::new(settings)), taken)
    }

    fn settings() -> DecisionLogSettings {
        DecisionLogSettings {
            console: false,
            service: Some("s".to_owned()),
            resource: "/logs".to_owned(),
            path: "p/allow".to_owned(),
            labels: BTreeMap::new(),
            mask: Vec::new(),
            drop: Vec::new(),
            redact: true,
            min_delay: Duration::from_millis(10),
            max_delay: Duration::from_millis(20),
            upload_limit: 400,
            buffer_limit: 1 << 20,
            max_per_second: None,
        }
    }

    /// Logs so many decisions and stops; gives the metrics.
    async fn log(settings: DecisionLogSettings, service: Arc<Service>, count: usize, pause: Duration) -> String {
        let (metrics, lifecycle) = (Arc::new(Metrics::new(None)), Lifecycle::default());
        let (journal, records) = Journal::new(Arc::clone(&metrics));
        let target = Target { settings, service: Some(service) };
        let (_keep, target) = watch::channel(Some(Arc::new(target)));
        DecisionLog { target, metrics: Arc::clone(&metrics), status: Status::default() }.start(records, &lifecycle);
        for at in 0..count {
            journal.record(Record { decision_id: format!("d{at}"), timestamp_ns: 1, ..Record::default() });
        }
        tokio::time::sleep(pause).await;
        lifecycle.stop();
        assert!(lifecycle.drained(Duration::from_secs(10)).await, "the log ends");
        metrics.text()
    }

    fn counted(metrics: &str, outcome: &str) -> usize {
        let name = format!("stepgate_decision_logs_total{{outcome=\"{outcome}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
    }

    #[tokio::test]
    async fn a_failing_service_loses_nothing_once_it_is_healed() {
        let (service, taken) = service(vec![503, 500, 200]).await;
        let metrics = log(settings(), service, 200, Duration::from_millis(900)).await;
        let mut taken = taken.lock().clone();
        assert_eq!(taken.len(), 200, "every decision arrives once");
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), 200);
        assert_eq!(counted(&metrics, "uploaded"), 200, "{metrics}");
    }

    #[tokio::test]
    async fn every_decision_is_accounted_for() {
        let (broken, taken) = service(vec![500]).await;
        let small = DecisionLogSettings { buffer_limit: 5_000, ..settings() };
        let metrics = log(small, broken, 100, Duration::from_millis(100)).await;
        let (dropped, stopped) = (counted(&metrics, "buffer_full"), counted(&metrics, "stopped"));
        assert!(dropped > 0 && stopped > 0, "{metrics}");
        assert_eq!(dropped + stopped, 100);
        assert!(taken.lock().is_empty());

        let (healthy, taken) = service(vec![200]).await;
        let limited = DecisionLogSettings { max_per_second: Some(30), ..settings() };
        let metrics = log(limited, healthy, 100, Duration::from_millis(10)).await;
        assert_eq!((counted(&metrics, "rate_limited"), counted(&metrics, "uploaded")), (70, 30), "{metrics}");
        assert_eq!(taken.lock().len(), 30, "what is left when everything stops is uploaded");
    }
}
