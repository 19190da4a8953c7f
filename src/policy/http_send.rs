//! `http.send` of policies: which hosts may be asked, what is kept between evaluations, and waiting no longer than a check.
//!
//! Mirrors: the inter-query cache of OPA `v1/topdown/http.go`, v1.19.0.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use parking_lot::Mutex;
use stepgate_rego::is_cacheable;
use stepgate_rego::{Caching, HttpError, HttpRequest, HttpResponse, Pem};
use tokio::runtime::{Handle, Runtime};

use crate::remote::send::{ClientKind, Outgoing, SendError, Sender};
use crate::telemetry::{Call, ChildSpans};
use crate::value::Value;

/// Pauses between attempts: the first, and the longest.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// The weight of a cached response beside its body.
const ENTRY_BYTES: usize = 512;
const NANOSECONDS: i64 = 1_000_000_000;

/// The limits of `http.send`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundSettings {
    /// Hosts that may be asked, without ports; nothing allows all.
    pub hosts: Option<Vec<String>>,
    /// Bytes of responses that are kept.
    pub cache_bytes: u64,
}

impl Default for OutboundSettings {
    fn default() -> Self {
        Self { hosts: None, cache_bytes: 64 << 20 }
    }
}

/// Where the work of waiting is done.
#[derive(Debug)]
enum Waiter {
    /// The server's runtime; evaluations that wait are on its blocking threads.
    Shared(Handle),
    /// A tool has no other.
    Own(Runtime),
}

/// A response that may be used again.
#[derive(Clone, Debug)]
struct CachedResponse {
    response: Arc<HttpResponse>,
    /// Nanoseconds since the epoch.
    until: i64,
}

/// Sends what policies ask for.
#[derive(Debug)]
pub struct Outbound {
    sender: Sender,
    kept: Cache<Value, CachedResponse>,
    waiter: Waiter,
    waiting: Arc<Mutex<HashMap<String, usize>>>,
}

/// Requests that wait for one host: a slow one must leave places to the others.
const MAX_WAITING_ON_ONE_HOST: usize = 128;

/// A request that waits for a host.
struct Waiting {
    all: Arc<Mutex<HashMap<String, usize>>>,
    host: String,
}

impl Waiting {
    /// One more; nothing where there are too many.
    fn on(all: &Arc<Mutex<HashMap<String, usize>>>, host: String) -> Option<Self> {
        let mut hosts = all.lock();
        let count = hosts.entry(host.clone()).or_default();
        if *count >= MAX_WAITING_ON_ONE_HOST {
            return None;
        }
        *count = count.saturating_add(1);
        Some(Self { all: Arc::clone(all), host })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut hosts = self.all.lock();
        if let Some(count) = hosts.get_mut(&self.host) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                hosts.remove(&self.host);
            }
        }
    }
}

impl Outbound {
    /// On the runtime that calls this.
    pub fn on_this_runtime(settings: &OutboundSettings) -> Self {
        Self::new(settings, Waiter::Shared(Handle::current()))
    }

    /// With a runtime of its own, for tools.
    pub fn alone(settings: &OutboundSettings) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self::new(settings, Waiter::Own(runtime)))
    }

    fn new(settings: &OutboundSettings, waiter: Waiter) -> Self {
        let hosts = settings.hosts.clone();
        let allow = move |host: &str| {
            hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host)))
        };
        let weigh = |key: &Value, kept: &CachedResponse| {
            let bytes = kept.response.body.len().saturating_add(key.weight().saturating_mul(16));
            u32::try_from(bytes.saturating_add(ENTRY_BYTES)).unwrap_or(u32::MAX)
        };
        let kept = Cache::builder().max_capacity(settings.cache_bytes).weigher(weigh).build();
        Self { sender: Sender::new(Arc::new(allow)), kept, waiter, waiting: Arc::default() }
    }

    /// A response that was kept and may be used without asking.
    pub fn kept(&self, request: &HttpRequest, now: i64) -> Option<HttpResponse> {
        let kept = if request.caching == Caching::Off { None } else { self.kept.get(&request.key) };
        kept.filter(|kept| now < kept.until).map(|kept| (*kept.response).clone())
    }

    /// Answers a request before `end`, from what was kept if it may.
    pub fn send(
        &self,
        request: &HttpRequest,
        now: i64,
        end: Instant,
        followed: Option<&ChildSpans>,
    ) -> Result<HttpResponse, HttpError> {
        if let Some(response) = self.kept(request, now) {
            return Ok(response);
        }
        let kept = if request.caching == Caching::Off { None } else { self.kept.get(&request.key) };
        // Only now are files of certificates read.
        let outgoing = outgoing(request)?;
        if let Some(kept) = kept
            && let Some(response) = self.revalidate(request, &outgoing, &kept, now, end, followed)?
        {
            return Ok(response);
        }
        let response = self.deliver(outgoing, request.retries, end, followed)?;
        self.keep(request, &response, now);
        Ok(response)
    }

    /// Asks whether a stale response is still right; nothing if that cannot be asked.
    fn revalidate(
        &self,
        request: &HttpRequest,
        outgoing: &Outgoing,
        kept: &CachedResponse,
        now: i64,
        end: Instant,
        followed: Option<&ChildSpans>,
    ) -> Result<Option<HttpResponse>, HttpError> {
        self.kept.invalidate(&request.key);
        let mut conditional = outgoing.clone();
        for (name, condition) in [("etag", "if-none-match"), ("last-modified", "if-modified-since")] {
            if let Some(value) = kept.response.header(name).filter(|value| !value.is_empty()) {
                conditional.headers.push((condition.to_owned(), value.to_owned()));
            }
        }
        if conditional.headers.len() == outgoing.headers.len() {
            return Ok(None);
        }
        let fresh = self.deliver(conditional, request.retries, end, followed)?;
        match fresh.status {
            200 => {
                self.keep(request, &fresh, now);
                Ok(Some(fresh))
            }
            304 => {
                let mut response = (*kept.response).clone();
                response.headers.retain(|(name, _)| fresh.header(name).is_none());
                response.headers.extend(fresh.headers.iter().cloned());
                if let Some(until) = expiry(request.caching, &fresh, now) {
                    self.kept
                        .insert(request.key.clone(), CachedResponse { response: Arc::new(response.clone()), until });
                }
                Ok(Some(response))
            }
            _ => Ok(None),
        }
    }

    fn keep(&self, request: &HttpRequest, response: &HttpResponse, now: i64) {
        let may = match request.caching {
            Caching::Off => false,
            Caching::ByHeaders => !directives(response).any(|(name, _)| name == "no-store"),
            Caching::Forced(_) => true,
        };
        if !may || !is_cacheable(response.status) {
            return;
        }
        if let Some(until) = expiry(request.caching, response, now) {
            self.kept.insert(request.key.clone(), CachedResponse { response: Arc::new(response.clone()), until });
        }
    }

    /// Sends, and records a child span of the check. As in OPA, the other server receives the trace context.
    fn deliver(
        &self,
        mut outgoing: Outgoing,
        retries: u32,
        end: Instant,
        followed: Option<&ChildSpans>,
    ) -> Result<HttpResponse, HttpError> {
        let host = url::Url::parse(&outgoing.url).ok().and_then(|url| Some(url.host_str()?.to_owned()));
        let _waiting = Waiting::on(&self.waiting, host.clone().unwrap_or_default()).ok_or_else(|| {
            HttpError::Network(format!("{MAX_WAITING_ON_ONE_HOST} requests of policies wait for this host already"))
        })?;
        let Some(followed) = followed else { return self.attempt(&outgoing, retries, end) };
        let (span, traceparent) = followed.step();
        // The policy's own header counts.
        if !outgoing.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("traceparent")) {
            outgoing.headers.push(("traceparent".to_owned(), traceparent));
        }
        let began = Instant::now();
        let done = self.attempt(&outgoing, retries, end);
        let outcome = done.as_ref().map(|response| response.status).map_err(|error| match error {
            HttpError::Network(_) => "network",
            HttpError::Internal(_) => "internal",
            HttpError::OutOfTime | HttpError::WouldWait => "timeout",
        });
        let (method, host, ended) = (outgoing.method, host.unwrap_or_default(), Instant::now());
        followed.called(Call { span, method, host, began, ended, outcome });
        done
    }

    /// Sends until something comes back, at most `retries` times more.
    fn attempt(&self, outgoing: &Outgoing, retries: u32, end: Instant) -> Result<HttpResponse, HttpError> {
        let work = async {
            let mut pause = RETRY_PAUSES.0;
            let mut left = retries;
            loop {
                match self.sender.send(outgoing).await {
                    Err(SendError::Network { .. }) if left > 0 => {
                        left = left.saturating_sub(1);
                        tokio::time::sleep(pause).await;
                        pause = pause.saturating_mul(2).min(RETRY_PAUSES.1);
                    }
                    done => return done,
                }
            }
        };
        let work = async { tokio::time::timeout_at(end.into(), work).await };
        let done = match &self.waiter {
            Waiter::Shared(handle) => handle.block_on(work),
            Waiter::Own(runtime) => runtime.block_on(work),
        };
        match done {
            Err(_) => Err(HttpError::OutOfTime),
            Ok(Err(error @ SendError::Network { .. })) => Err(HttpError::Network(error.to_string())),
            Ok(Err(error)) => Err(HttpError::Internal(error.to_string())),
            Ok(Ok(reply)) => Ok(HttpResponse {
                status: reply.status,
                reason: reply.reason,
                headers: reply.headers,
                body: reply.body,
            }),
        }
    }
}

fn outgoing(request: &HttpRequest) -> Result<Outgoing, HttpError> {
    let tls = &request.tls;
    if tls.server_name.is_some() {
        return Err(HttpError::Internal("tls_server_name is not offered; name the server in the URL".to_owned()));
    }
    if request.url.starts_with("unix:") {
        return Err(HttpError::Internal("unix:// URLs are not offered".to_owned()));
    }
    let identity = match (tls.client_certificate.first(), tls.client_key.first()) {
        (Some(certificate), Some(key)) => Some([read(certificate)?, b"\n".to_vec(), read(key)?].concat()),
        _ => None,
    };
    Ok(Outgoing {
        method: request.method.clone(),
        url: request.url.clone(),
        headers: request.headers.clone(),
        body: request.body.clone(),
        timeout: request.timeout,
        client: ClientKind {
            follow_redirects: request.follow_redirects,
            roots: tls.roots.iter().map(read).collect::<Result<_, _>>()?,
            system_roots: tls.system_roots,
            identity,
            skip_verification: tls.skip_verification,
        },
    })
}

fn read(pem: &Pem) -> Result<Vec<u8>, HttpError> {
    match pem {
        Pem::Text(text) => Ok(text.clone().into_bytes()),
        Pem::File(path) => std::fs::read(path).map_err(|error| HttpError::Internal(format!("open {path}: {error}"))),
        Pem::Variable(name) => Ok(super::host::variable(name).unwrap_or_default().into_bytes()),
    }
}

/// The directives of `Cache-Control`.
fn directives(response: &HttpResponse) -> impl Iterator<Item = (&str, &str)> {
    let header = response.header("cache-control").unwrap_or_default();
    header.split(',').map(|part| {
        let (name, value) = part.trim().split_once('=').unwrap_or((part.trim(), ""));
        (name.trim(), value)
    })
}

/// Until when a response may be used, in nanoseconds since the epoch; nothing if its headers cannot be read.
fn expiry(caching: Caching, response: &HttpResponse, now: i64) -> Option<i64> {
    let time = |name: &str| response.header(name).and_then(|text| httpdate::parse_http_date(text).ok());
    let nanoseconds = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    };
    let seconds = |from: i64, seconds: u32| from.saturating_add(i64::from(seconds).saturating_mul(NANOSECONDS));
    if let Caching::Forced(duration) = caching {
        return Some(seconds(now, duration));
    }
    match directives(response).find(|(name, _)| *name == "max-age") {
        Some((_, max_age)) => {
            let max_age: u64 = max_age.parse().ok()?;
            let max_age = u32::try_from(max_age).unwrap_or(u32::MAX).min(i32::MAX.unsigned_abs());
            Some(seconds(nanoseconds(time("date")?), max_age))
        }
        None => Some(time("expires").map_or(0, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::policy::{
        Bounds, BuiltinSettings, Entrypoint, EvalError, HostContext, Module, RegoVersion, Snapshot, Sources,
    };

    const BUDGET: Duration = Duration::from_millis(200);

    /// A server that counts its requests and answers each alike; `/slow` never answers.
    async fn server(response: &'static str) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let serve = async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 2048];
                let read = stream.read(&mut request).await.unwrap_or(0);
                count.fetch_add(1, Ordering::Relaxed);
                if request[..read].starts_with(b"GET /slow") {
                    open.push(stream);
                    continue;
                }
                stream.write_all(response.as_bytes()).await.expect("the response is written");
            }
        };
        tokio::task::spawn(serve);
        (address, asked)
    }

    fn outbound(hosts: Option<&[&str]>) -> OutboundSettings {
        OutboundSettings {
            hosts: hosts.map(|hosts| hosts.iter().map(|it| (*it).to_owned()).collect()),
            ..OutboundSettings::default()
        }
    }

    fn load(policy: &str, http_send: Option<OutboundSettings>) -> Result<Arc<Snapshot>, String> {
        let host_context = Arc::new(HostContext::new(&BuiltinSettings { http_send, ..BuiltinSettings::default() }));
        let module = Module { path: "p.rego".into(), text: policy.into(), version: RegoVersion::V1 };
        let sources = Sources { modules: vec![module], ..Sources::default() };
        let built = Snapshot::build(&sources, &Entrypoint::from_path("p/allow"), &host_context);
        built.map(Arc::new).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    /// The value of `p.allow`, evaluated on a thread that may block.
    async fn ask(snapshot: &Arc<Snapshot>) -> Result<Option<Value>, EvalError> {
        let snapshot = Arc::clone(snapshot);
        let evaluation = tokio::task::spawn_blocking(move || snapshot.eval(&Value::Null, Bounds::within(BUDGET)));
        evaluation.await.expect("no panic").map(|evaluation| evaluation.value)
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\nconnection: close\r\n\r\n{\"ok\":true}";

    #[tokio::test(flavor = "multi_thread")]
    async fn a_response_is_data_and_is_kept_as_long_as_it_says() {
        let (address, asked) = server(OK).await;
        let request = |options: &str| {
            format!(
                "package p\nallow := http.send({{\"method\": \"GET\", \"url\": \"http://{address}/\"{options}}}).body.ok"
            )
        };
        let forced =
            load(&request(", \"force_cache\": true, \"force_cache_duration_seconds\": 60"), Some(outbound(None)));
        let forced = forced.expect("it loads");
        assert!(forced.waits());
        for _ in 0..3 {
            assert_eq!(ask(&forced).await, Ok(Some(Value::Bool(true))));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let plain = load(&request(""), Some(outbound(None))).expect("it loads");
        for _ in 0..3 {
            assert_eq!(ask(&plain).await, Ok(Some(Value::Bool(true))));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn hosts_off_the_list_are_never_asked() {
        let (address, asked) = server(OK).await;
        let policy = format!(
            "package p\nallow := http.send({{\"method\": \"GET\", \"url\": \"http://{address}/\", \"raise_error\": false}}).error.message"
        );
        let snapshot = load(&policy, Some(outbound(Some(&["idp.example.com"])))).expect("it loads");
        let message = ask(&snapshot).await.expect("an answer").expect("a message");
        assert_eq!(message.as_str(), Some("disallowed host: 127.0.0.1"));
        let snapshot = load(&policy, Some(outbound(Some(&["127.0.0.1"])))).expect("it loads");
        assert_eq!(ask(&snapshot).await, Ok(None));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_server_that_does_not_answer_never_opens_a_default() {
        let (address, _) = server(OK).await;
        let policy = format!(
            "package p\ndefault allow := true\nallow := false if http.send({{\"method\": \"GET\", \"url\": \"http://{address}/slow\"}}).body.deny"
        );
        let snapshot = load(&policy, Some(outbound(None))).expect("it loads");
        assert_eq!(ask(&snapshot).await, Err(EvalError::Budget));
    }

    #[test]
    fn a_policy_that_calls_it_while_it_is_off_is_told_what_to_set() {
        let policy = "package p\nallow := http.send({\"method\": \"GET\", \"url\": \"http://h/\"}).body";
        let refusal = load(policy, None).expect_err("it is off");
        assert!(refusal.starts_with("p.rego:2: rego_type_error"), "{refusal}");
        assert!(refusal.contains("plugins.stepgate.builtins.http_send: true"), "{refusal}");
    }

    #[test]
    fn headers_say_how_long_a_response_may_be_used() {
        let response = |headers: &[(&str, &str)]| HttpResponse {
            status: 200,
            reason: String::new(),
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            body: Vec::new(),
        };
        let date = ("date", "Thu, 01 Jan 1970 00:00:10 GMT");
        let until = |headers: &[(&str, &str)]| expiry(Caching::ByHeaders, &response(headers), 0);
        assert_eq!(until(&[date, ("cache-control", "public, max-age=5")]), Some(15 * NANOSECONDS));
        assert_eq!(until(&[("cache-control", "max-age=5")]), None);
        assert_eq!(until(&[date, ("cache-control", "max-age=x")]), None);
        assert_eq!(until(&[("expires", "Thu, 01 Jan 1970 00:01:00 GMT")]), Some(60 * NANOSECONDS));
        assert_eq!(until(&[("expires", "0")]), Some(0));
        assert_eq!(until(&[]), Some(0));
        assert_eq!(expiry(Caching::Forced(7), &response(&[]), NANOSECONDS), Some(8 * NANOSECONDS));
    }
}
