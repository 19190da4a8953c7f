//! The decision log: events made of decisions, masked, and written to the console or sent to a service.
//!
//! Mirrors: OPA `v1/plugins/logs`, v1.19.0. Everything here is off the request path, and takes no more than its share of the
//! machine: events that find no room are dropped and counted. Credentials never leave in clear: see `secrets`.

pub mod buffer;
mod event;
pub mod pace;
mod secrets;
pub mod spill;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc::Receiver;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::buffer::{Buffer, Limits, Overflow};
use self::event::Events;
pub use self::event::redacted;
use self::pace::Pace;
use self::spill::{Spill, SpillSettings};
use self::upload::Uploader;
use super::status::Status;
use super::{backoff, random_share};
use crate::decision_queue::metrics::{LogMetrics, LogOutcome};
use crate::decision_queue::{Record, Subscribers, Waiting};
use crate::lifecycle::Lifecycle;
use crate::remote::service::Service;

/// The first pause after a failed upload.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The interval of checks for uploads without a service.
const IDLE: Duration = Duration::from_secs(3_600);
/// The wait for pending decisions at shutdown.
const LAST_DECISIONS: Duration = Duration::from_millis(500);
/// Events that are made in one go, before others have the processor.
const BATCH: usize = 64;
/// Bytes of an upload that is kept on disk when nothing says how large one may be.
const LAST_UPLOAD: usize = 32_768;
/// From here on an event is made where checks need not wait for it.
const SLOW_EVENT: Duration = Duration::from_millis(1);
/// The interval of shutdown checks while an event waits for room.
const LOOK: Duration = Duration::from_millis(50);
/// The buffer while there is no target.
const NO_ROOM: Limits = Limits { bytes: 0, events: 0, overflow: Overflow::DropOld };

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
    /// The labels of this process, in every event.
    pub labels: BTreeMap<String, String>,
    pub mask: Vec<String>,
    pub drop: Vec<String>,
    /// Credentials are erased from events whatever the mask says.
    pub redact: bool,
    /// Headers where tokens are looked for, in lower case.
    pub token_headers: Vec<String>,
    pub min_delay: Duration,
    pub max_delay: Duration,
    /// Bytes of one upload, compressed.
    pub upload_limit: usize,
    /// The limit of events that wait for an upload.
    pub limits: Limits,
    /// Bytes of decisions that are no events yet, about.
    pub waiting_bytes: usize,
    pub spill: Option<SpillSettings>,
    pub max_per_second: Option<u64>,
    /// The share of all processors, in percent.
    pub share: u64,
}

impl DecisionLogSettings {
    /// Decisions are logged, and not only sent to subscribers.
    pub fn is_anywhere(&self) -> bool {
        self.console || self.service.is_some()
    }
}

/// Settings with the service that they name.
#[derive(Clone, Debug)]
pub struct Target {
    pub settings: DecisionLogSettings,
    pub service: Option<Arc<Service>>,
}

/// A target that may change; nothing while decisions are not logged.
pub type Targets = watch::Receiver<Option<Arc<Target>>>;

/// Writes the decision log.
#[derive(Debug)]
pub struct DecisionLog {
    pub target: Targets,
    pub metrics: Arc<LogMetrics>,
    pub status: Status,
    /// The subscribers to decisions.
    pub watchers: Subscribers,
}

impl DecisionLog {
    /// Logs until everything stops, and what is left then.
    pub fn start(self, records: Receiver<Box<Waiting>>, lifecycle: &Lifecycle) {
        let buffer = Arc::new(Buffer::new(NO_ROOM));
        let writer = Writer {
            target: None,
            lifecycle: lifecycle.clone(),
            buffer: Arc::clone(&buffer),
            metrics: Arc::clone(&self.metrics),
            pace: Pace::default(),
            second: (0, 0),
            is_slow: false,
            watchers: self.watchers,
        };
        let (ended, end_of_writer) = oneshot::channel();
        let (targets, stopping) = (self.target.clone(), lifecycle.stopping());
        lifecycle.spawn(async move {
            writer.run(records, targets, stopping).await;
            // The other end is gone only when everything ends.
            let _ = ended.send(());
        });
        let uploader = Uploader::new(buffer, self.metrics, self.status);
        lifecycle.spawn(upload(uploader, self.target, lifecycle.stopping(), end_of_writer));
    }
}

/// Uploads now and then, and earlier when much is waiting.
async fn upload(
    mut uploader: Uploader,
    mut targets: Targets,
    stopping: impl Future<Output = ()>,
    end_of_writer: oneshot::Receiver<()>,
) {
    let mut stopping = std::pin::pin!(stopping);
    let mut target = targets.borrow_and_update().clone();
    let mut failures = 0u32;
    'target: loop {
        if let Some(target) = &target {
            prepare(&mut uploader, &target.settings);
        }
        let pause = match &target {
            None => IDLE,
            Some(target) if failures > 0 => backoff(FIRST_RETRY, target.settings.max_delay, failures),
            Some(target) => {
                let settings = &target.settings;
                settings.min_delay.saturating_add(random_share(settings.max_delay.saturating_sub(settings.min_delay)))
            }
        };
        let upload_at = Instant::now() + pause;
        loop {
            tokio::select! {
                () = &mut stopping => {
                    // Checks in flight still give decisions.
                    let _ = end_of_writer.await;
                    if let Some(target) = &target {
                        uploader.upload(target).await;
                    }
                    // Also what was waiting when the configuration lost its log.
                    uploader.finish(target.map_or(LAST_UPLOAD, |target| target.settings.upload_limit)).await;
                    return;
                }
                () = tokio::time::sleep_until(upload_at) => break,
                () = uploader.buffer.filled() => match &target {
                    Some(target) if failures > 0 => uploader.relieve(target.settings.upload_limit).await,
                    _ => break,
                },
                changed = targets.changed() => {
                    if changed.is_err() {
                        // The process ends: no further change arrives.
                        std::future::pending::<()>().await;
                    }
                    target = targets.borrow_and_update().clone();
                    failures = 0;
                    continue 'target;
                }
            }
        }
        if let Some(target) = target.as_ref().filter(|target| target.service.is_some()) {
            failures = if uploader.upload(target).await { 0 } else { failures.saturating_add(1) };
        }
    }
}

/// Makes an uploader what the settings say.
fn prepare(uploader: &mut Uploader, settings: &DecisionLogSettings) {
    uploader.pace = Pace::of_share(settings.share);
    if uploader.spill.is_none()
        && let Some(wanted) = &settings.spill
    {
        match Spill::open(wanted.clone()) {
            Ok(spill) => uploader.spill = Some(spill),
            Err(error) => {
                let folder = wanted.folder.display();
                tracing::error!(%folder, %error, "events cannot be kept on disk; those without room are dropped");
            }
        }
    }
}

/// Makes events of records.
struct Writer {
    target: Option<Arc<Target>>,
    lifecycle: Lifecycle,
    buffer: Arc<Buffer>,
    metrics: Arc<LogMetrics>,
    pace: Pace,
    /// The second that is counted, and the events in it.
    second: (i64, u64),
    /// The last event took long to make: the policy's mask is heavy, and checks must not wait for the next.
    is_slow: bool,
    watchers: Subscribers,
}

impl Writer {
    async fn run(
        mut self,
        mut records: Receiver<Box<Waiting>>,
        mut targets: Targets,
        stopping: impl Future<Output = ()>,
    ) {
        let mut stopping = std::pin::pin!(stopping);
        let mut batch = Vec::with_capacity(BATCH);
        self.retarget(targets.borrow_and_update().clone());
        loop {
            tokio::select! {
                () = &mut stopping => break,
                received = records.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    let waiting = i64::try_from(records.len()).unwrap_or(i64::MAX);
                    self.metrics.queue.set(waiting);
                    let mut working = self.pace.begin();
                    for waiting in batch.drain(..) {
                        self.write(&waiting.record).await;
                        if self.is_slow {
                            self.pace.end(working).await;
                            working = self.pace.begin();
                        }
                    }
                    self.pace.end(working).await;
                }
                Ok(()) = targets.changed() => self.retarget(targets.borrow_and_update().clone()),
            }
        }
        while let Ok(Some(waiting)) = tokio::time::timeout(LAST_DECISIONS, records.recv()).await {
            self.write(&waiting.record).await;
        }
    }

    fn retarget(&mut self, target: Option<Arc<Target>>) {
        if let Some(target) = &target {
            self.buffer.set_limits(target.settings.limits);
            self.pace = Pace::of_share(target.settings.share);
        }
        self.target = target;
    }

    async fn write(&mut self, record: &Record) {
        let Some(target) = self.target.clone() else {
            return self.metrics.logged(LogOutcome::Unconfigured, 1);
        };
        let settings = &target.settings;
        if !settings.is_anywhere() && !self.watchers.are_there() {
            return self.metrics.logged(LogOutcome::Unconfigured, 1);
        }
        if !self.is_within_rate(settings.max_per_second, record.timestamp_ns) {
            return self.metrics.logged(LogOutcome::RateLimited, 1);
        }
        let events = Events { settings, metrics: &self.metrics };
        let began = Instant::now();
        let made = if self.is_slow { tokio::task::block_in_place(|| events.make(record)) } else { events.make(record) };
        self.is_slow = began.elapsed() > SLOW_EVENT && Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
        let Some(event) = made else {
            return self.metrics.logged(LogOutcome::Unwanted, 1);
        };
        self.watchers.publish(&event);
        if !settings.is_anywhere() {
            return;
        }
        if settings.console {
            crate::telemetry::log::decision(&event);
        }
        if target.service.is_none() {
            return self.metrics.logged(LogOutcome::Written, 1);
        }
        self.place(event, settings.limits.overflow).await;
    }

    /// Finds room for an event, as the settings say.
    async fn place(&self, mut event: String, overflow: Overflow) {
        loop {
            event = match self.buffer.offer(event) {
                Ok(()) => return,
                Err(event) => event,
            };
            match overflow {
                Overflow::DropNew => return self.metrics.logged(LogOutcome::BufferFull, 1),
                // Shutdown makes no more room, and at most one queue of events follows.
                Overflow::Wait | Overflow::Spill if self.lifecycle.is_stopping() => return self.buffer.cram(event),
                Overflow::Wait | Overflow::Spill => {
                    self.buffer.log_full();
                    let _ = tokio::time::timeout(LOOK, self.buffer.freed()).await;
                }
                Overflow::DropOld => {
                    let gone = self.buffer.force(event);
                    return self.metrics.logged(LogOutcome::BufferFull, gone);
                }
            }
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
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::decision_queue::DecisionQueue;
    use crate::remote::credentials::Credentials;
    use crate::remote::service::ServiceSettings;

    /// A service that answers each upload with the next status, the last one for ever; gives the ids of what it took.
    async fn service(statuses: Vec<u16>) -> (Arc<Service>, Arc<Mutex<Vec<String>>>) {
        let mut statuses = statuses.into_iter().peekable();
        service_by(move |_| if statuses.len() > 1 { statuses.next() } else { statuses.peek().copied() }.unwrap_or(200))
            .await
    }

    /// A service whose answer depends on the ids of what is uploaded.
    async fn service_by(
        mut answer: impl FnMut(&[String]) -> u16 + Send + 'static,
    ) -> (Arc<Service>, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let taken = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&taken);
        tokio::spawn(async move {
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
                let mut text = String::new();
                GzDecoder::new(body.as_slice()).read_to_string(&mut text).expect("gzip");
                let events: Vec<serde_json::Value> = serde_json::from_str(&text).expect("an array");
                let ids: Vec<String> =
                    events.iter().map(|event| event["decision_id"].as_str().unwrap_or("").to_owned()).collect();
                let status = answer(&ids);
                if status == 200 {
                    log.lock().extend(ids);
                }
                let answer = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let settings = ServiceSettings {
            url: url.parse().expect("a URL"),
            is_registry: false,
            is_http2: false,
            headers: Vec::new(),
            credentials: Credentials::None,
            header_timeout: Duration::from_secs(5),
            ca_cert: None,
            system_roots: true,
            client_certificate: None,
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
            limits: Limits { bytes: 1 << 20, events: 10_000, overflow: Overflow::DropOld },
            waiting_bytes: 16 << 20,
            spill: None,
            share: 100,
            token_headers: Vec::new(),
            max_per_second: None,
        }
    }

    /// Logs so many decisions and stops; gives the metrics.
    async fn log(settings: DecisionLogSettings, service: Arc<Service>, count: usize, pause: Duration) -> String {
        let (metrics, lifecycle) = (crate::telemetry::Metrics::new(None), Lifecycle::default());
        let (decision_queue, records) = DecisionQueue::new(&metrics, 16 << 20);
        let target = Target { settings, service: Some(service) };
        let (_keep, target) = watch::channel(Some(Arc::new(target)));
        DecisionLog { target, metrics: metrics.of(), status: Status::default(), watchers: decision_queue.watchers() }
            .start(records, &lifecycle);
        for at in 0..count {
            decision_queue.record(Record { decision_id: format!("d{at}"), timestamp_ns: 1, ..Record::default() });
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
    async fn one_event_that_is_refused_holds_up_no_other() {
        let refusing = |ids: &[String]| if ids.iter().any(|id| id == "d7") { 400 } else { 200 };
        let (picky, taken) = service_by(refusing).await;
        let metrics = log(settings(), picky, 200, Duration::from_millis(1_500)).await;
        let (gone, left) = (counted(&metrics, "refused"), counted(&metrics, "stopped"));
        assert_eq!((counted(&metrics, "uploaded"), gone + left), (199, 1), "{metrics}");
        assert!(!taken.lock().contains(&"d7".to_owned()) && taken.lock().len() == 199);
        let (closed, _) = service(vec![400]).await;
        let metrics = log(settings(), closed, 200, Duration::from_millis(1_500)).await;
        assert_eq!(
            (counted(&metrics, "refused"), counted(&metrics, "stopped")),
            (0, 200),
            "all of them are kept: {metrics}"
        );
    }

    #[tokio::test]
    async fn damaged_files_hold_up_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("00000000000000000000-3.json.gz"), b"damaged").expect("a file");
        let (healthy, taken) = service(vec![200]).await;
        let limits = Limits { overflow: Overflow::Spill, ..settings().limits };
        let spill = Some(SpillSettings { folder: folder.path().to_owned(), limit: 1 << 20 });
        let spilling = DecisionLogSettings { limits, spill, ..settings() };
        let metrics = log(spilling, healthy, 10, Duration::from_millis(200)).await;
        assert_eq!((counted(&metrics, "refused"), counted(&metrics, "uploaded")), (3, 10), "{metrics}");
        assert_eq!(taken.lock().len(), 10);
    }

    #[tokio::test]
    async fn what_waits_when_the_log_is_taken_away_is_counted() {
        let (metrics, lifecycle) = (crate::telemetry::Metrics::new(None), Lifecycle::default());
        let (decision_queue, records) = DecisionQueue::new(&metrics, 16 << 20);
        let (broken, _) = service(vec![500]).await;
        let (targets, target) = watch::channel(Some(Arc::new(Target { settings: settings(), service: Some(broken) })));
        DecisionLog { target, metrics: metrics.of(), status: Status::default(), watchers: decision_queue.watchers() }
            .start(records, &lifecycle);
        for at in 0..20 {
            decision_queue.record(Record { decision_id: format!("d{at}"), timestamp_ns: 1, ..Record::default() });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        targets.send_replace(None);
        tokio::time::sleep(Duration::from_millis(50)).await;
        lifecycle.stop();
        assert!(lifecycle.drained(Duration::from_secs(10)).await, "the log ends");
        assert_eq!(counted(&metrics.text(), "stopped"), 20, "{}", metrics.text());
    }

    #[tokio::test]
    async fn every_decision_is_accounted_for() {
        let (broken, taken) = service(vec![500]).await;
        let small = DecisionLogSettings { limits: Limits { bytes: 5_000, ..settings().limits }, ..settings() };
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
