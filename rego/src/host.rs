//! The world as a policy may see it: everything that is neither policy, data nor input.

use std::sync::Arc;
use std::time::Duration;

use crate::syntax::Location;
use crate::value::Value;

/// The interface of an evaluation to its host program.
pub trait Host {
    /// Nanoseconds since the epoch; asked at most once in an evaluation.
    fn now_ns(&self) -> i64;

    /// The evaluation must end. Polled every few hundred steps.
    fn is_expired(&self) -> bool {
        false
    }

    /// Charges `bytes` to the evaluation until it ends; false when they are refused. Called for memory beyond
    /// [`FREE_BYTES`](crate::meter::FREE_BYTES), some hundred kilobytes at once.
    fn grant_memory(&self, _bytes: usize) -> bool {
        true
    }

    /// The evaluation ends, and held about `bytes`.
    fn memory_held(&self, _bytes: usize) {}

    /// A line that `print` wrote, with its place.
    fn print(&self, _line: &str) {}

    /// The arguments of `trace`.
    fn note(&self, _text: &str) {}

    /// A statement is about to run, or a definition has a value; called only when the policy was compiled for tracing.
    fn visit(&self, _place: &Place) {}

    /// A test with cases begins this one: the path below `data` of the member that is its result, as an array.
    fn test_case(&self, _path: &Value) {}

    /// A recorded result to replay for a non-deterministic function, which is not called then.
    fn recalled(&self, _name: &'static str, _args: &[&Value]) -> Option<Value> {
        None
    }

    /// Records the result of a non-deterministic function.
    fn answered(&self, _name: &'static str, _args: &[&Value], _result: &Value) {}

    /// Random bytes, for `rand.intn` and `uuid.rfc4122`.
    fn random(&self, bytes: &mut [u8]);

    /// The cached result of a signature verification. `key` covers token, key material and algorithm.
    fn known_signature(&self, _key: &[u8; 32]) -> Option<bool> {
        None
    }

    /// Remembers what a verification gave.
    fn remember_signature(&self, _key: [u8; 32], _valid: bool) {}

    /// The value of `opa.runtime()`.
    fn runtime(&self) -> Value {
        Value::empty_object()
    }

    /// Sends a request of `http.send`, or answers it from what was kept. Must end with the evaluation.
    fn http_send(&self, _request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        Err(HttpError::Internal("http.send is not enabled".to_owned()))
    }

    /// `net.lookup_ip_addr`: the addresses of a name.
    fn lookup_ip_addr(&self, _name: &str) -> Result<Vec<String>, String> {
        Err("net.lookup_ip_addr is not enabled".to_owned())
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
