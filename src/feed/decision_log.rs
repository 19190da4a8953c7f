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
use tokio::time::Instant;

use self::event::Events;
use super::{backoff, random_share};
use crate::lifecycle::Lifecycle;
use crate::policy::Record;
use crate::remote::service::Service;
use crate::telemetry::{Logged, Metrics, chain};

/// The first pause after a failed upload.
const FIRST_RETRY: Duration = Duration::from_millis(100);
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

/// Writes the decision log.
#[derive(Debug)]
pub struct DecisionLog {
    pub settings: DecisionLogSettings,
    pub service: Option<Arc<Service>>,
    pub metrics: Arc<Metrics>,
}

impl DecisionLog {
    /// Logs until everything stops, and what is left then.
    pub fn start(self, records: Receiver<Box<Record>>, lifecycle: &Lifecycle) {
        let stopping = lifecycle.stopping();
        lifecycle.spawn(self.run(records, stopping));
    }

    async fn run(self, mut records: Receiver<Box<Record>>, stopping: impl Future<Output = ()>) {
        let mut writer = Writer::new(&self);
        let mut stopping = std::pin::pin!(stopping);
        let mut upload_at = Instant::now() + self.pause();
        let mut failures = 0u32;
        loop {
            tokio::select! {
                () = &mut stopping => break,
                record = records.recv() => match record {
                    Some(record) => writer.write(&record),
                    None => break,
                },
                () = tokio::time::sleep_until(upload_at) => {
                    let uploaded = writer.upload().await;
                    failures = if uploaded { 0 } else { failures.saturating_add(1) };
                    let again = backoff(FIRST_RETRY, self.settings.max_delay, failures);
                    upload_at = Instant::now() + if uploaded { self.pause() } else { again };
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

    fn pause(&self) -> Duration {
        let spread = self.settings.max_delay.saturating_sub(self.settings.min_delay);
        self.settings.min_delay.saturating_add(random_share(spread))
    }
}

/// Events between a decision and their upload.
struct Writer<'a> {
    log: &'a DecisionLog,
    events: Events<'a>,
    buffer: VecDeque<String>,
    bytes: usize,
    /// The second that is counted, and the events in it.
    second: (i64, u64),
}

impl<'a> Writer<'a> {
    fn new(log: &'a DecisionLog) -> Self {
        let events = Events { settings: &log.settings, metrics: &log.metrics };
        Self { log, events, buffer: VecDeque::new(), bytes: 0, second: (0, 0) }
    }

    fn write(&mut self, record: &Record) {
        if !self.is_within_rate(record.timestamp_ns) {
            return self.log.metrics.decisions_logged(Logged::RateLimited, 1);
        }
        let Some(event) = self.events.make(record) else {
            return self.log.metrics.decisions_logged(Logged::Unwanted, 1);
        };
        if self.log.settings.console {
            crate::telemetry::log::decision(&event);
            if self.log.service.is_none() {
                return self.log.metrics.decisions_logged(Logged::Written, 1);
            }
        }
        self.bytes = self.bytes.saturating_add(event.len());
        self.buffer.push_back(event);
        // The oldest go first, as in OPA.
        while self.bytes > self.log.settings.buffer_limit
            && let Some(oldest) = self.buffer.pop_front()
        {
            self.bytes = self.bytes.saturating_sub(oldest.len());
            self.log.metrics.decisions_logged(Logged::BufferFull, 1);
        }
    }

    fn is_within_rate(&mut self, now_ns: i64) -> bool {
        let Some(most) = self.log.settings.max_per_second else { return true };
        let second = now_ns / 1_000_000_000;
        if self.second.0 != second {
            self.second = (second, 0);
        }
        self.second.1 = self.second.1.saturating_add(1);
        self.second.1 <= most
    }

    /// Sends everything, chunk by chunk; false when a chunk was not taken and waits for the next time.
    async fn upload(&mut self) -> bool {
        let Some(service) = &self.log.service else { return true };
        while !self.buffer.is_empty() {
            let (count, body) = self.chunk();
            let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
            let sent = service.post(&self.log.settings.resource, &headers, body).await;
            match sent {
                Ok(status) if (200..300).contains(&status) => {
                    for event in self.buffer.drain(..count) {
                        self.bytes = self.bytes.saturating_sub(event.len());
                    }
                    self.log.metrics.decisions_logged(Logged::Uploaded, count);
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
    fn chunk(&self) -> (usize, Vec<u8>) {
        let limit = self.log.settings.upload_limit;
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
        DecisionLog { settings, service: Some(service), metrics: Arc::clone(&metrics) }.start(records, &lifecycle);
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
