//! The world as a policy may see it: everything that is neither policy, data nor input.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::syntax::Location;
use crate::value::Value;

/// The interface of an evaluation to its host program. The clock and randomness are required; tracing, recording, signatures and HTTP
/// are offered by hosts that have them.
pub trait Host {
    /// Nanoseconds since the epoch; asked at most once in an evaluation.
    fn now_ns(&self) -> i64;

    /// Random bytes, for `rand.intn` and `uuid.rfc4122`.
    fn random(&self, bytes: &mut [u8]);

    /// The evaluation must end. Polled every few hundred steps.
    fn is_expired(&self) -> bool {
        false
    }

    /// Charges `bytes` to the evaluation until it ends; false when they are refused. Called for memory beyond
    /// [`FREE_BYTES`](crate::FREE_BYTES), some hundred kilobytes at once.
    fn grant_memory(&self, _bytes: usize) -> bool {
        true
    }

    /// The evaluation ends, and held about `bytes`.
    fn memory_held(&self, _bytes: usize) {}

    /// The value of `opa.runtime()`.
    fn runtime(&self) -> Value {
        Value::empty_object()
    }

    /// The receiver of `print`, `trace` and executed statements.
    fn tracer(&self) -> Option<&dyn Tracer> {
        None
    }

    /// Records non-deterministic results, or replays them.
    fn recorder(&self) -> Option<&dyn Recorder> {
        None
    }

    /// Remembers verified signatures between evaluations.
    fn signatures(&self) -> Option<&dyn SignatureCache> {
        None
    }

    /// Sends the requests of `http.send` and `net.lookup_ip_addr`, which are errors without it.
    fn http_client(&self) -> Option<&dyn HttpClient> {
        None
    }
}

/// Receives what an evaluation prints and executes.
pub trait Tracer {
    /// A line that `print` wrote.
    fn print(&self, line: &str);

    /// The arguments of `trace`.
    fn note(&self, _text: &str) {}

    /// A statement is about to run, or a definition has a value; called only when the policy was compiled for tracing.
    fn visit(&self, _place: &Place) {}

    /// A test with cases begins this one: the path below `data` of the member that is its result, as an array.
    fn test_case(&self, _path: &Value) {}
}

/// Records the results of non-deterministic functions, or replays recorded ones.
pub trait Recorder {
    /// A recorded result, for which the function is not called.
    fn replay(&self, name: &'static str, args: &[&Value]) -> Option<Value>;

    /// Records the result of a call.
    fn record(&self, name: &'static str, args: &[&Value], result: &Value);
}

/// Results of signature verifications by a digest of token, key material and algorithm.
pub trait SignatureCache {
    fn get(&self, key: &[u8; 32]) -> Option<bool>;

    fn insert(&self, key: [u8; 32], is_valid: bool);
}

/// Reaches other servers. Calls must end with the evaluation.
pub trait HttpClient {
    /// Sends a request of `http.send`, or answers it from its cache.
    ///
    /// # Errors
    /// There is no response; the kind says why.
    fn send(&self, request: &HttpRequest) -> Result<HttpResponse, HttpError>;

    /// `net.lookup_ip_addr`: the addresses of a name.
    ///
    /// # Errors
    /// The name has none, or the host does not look up names.
    fn lookup_ip_addr(&self, _name: &str) -> Result<Vec<String>, String> {
        Err("net.lookup_ip_addr is not enabled".to_owned())
    }
}

/// The clock and randomness of the system, and nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemHost;

impl Host for SystemHost {
    fn now_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    fn random(&self, bytes: &mut [u8]) {
        // The library's source of random bytes fails only where the system has none; zeros then are as good as any other answer.
        let _ = aws_lc_rs::rand::fill(bytes);
    }
}

/// A source position of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub file: Arc<str>,
    pub at: Location,
    /// The head of a definition, whose body was true.
    pub is_head: bool,
}

/// A request of `http.send`.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// The cache key of responses.
    pub key: Value,
    pub caching: Caching,
    /// In capitals.
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// For one attempt.
    pub timeout: Duration,
    pub follow_redirects: bool,
    /// Attempts after the first, when there is no response at all.
    pub retries: u32,
    pub tls: TlsOptions,
}

/// The freshness of a response for later evaluations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    Off,
    /// As the response's own headers say (RFC 9111).
    ByHeaders,
    /// This many seconds, whatever the headers say.
    Forced(u32),
}

/// TLS settings of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// The system's roots besides `roots`; without any `roots` they count anyway.
    pub system_roots: bool,
    pub roots: Vec<Pem>,
    pub client_certificate: Vec<Pem>,
    pub client_key: Vec<Pem>,
    pub skip_verification: bool,
    pub server_name: Option<String>,
}

/// Where a certificate or key is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pem {
    Text(String),
    File(String),
    /// An environment variable.
    Variable(String),
}

/// The response.
#[derive(Clone, Debug)]
pub struct HttpResponse {
    pub status: u16,
    pub reason: String,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// The first header `name`, which is in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }
}

/// Why there is no response.
#[derive(Clone, Debug)]
pub enum HttpError {
    /// The other side could not be reached or did not answer.
    Network(String),
    /// The request could not be made.
    Internal(String),
    /// The evaluation's time is over.
    OutOfTime,
    /// The evaluation must not wait: the caller makes it again where it may.
    WouldWait,
}
