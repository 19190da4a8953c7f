//! The world as a policy may see it: everything that is neither policy, data nor input.

use crate::value::Value;

/// What evaluation asks of the program around it.
pub trait Host {
    /// Nanoseconds since the epoch; asked at most once in an evaluation.
    fn now_ns(&self) -> i64;

    /// Whether the evaluation must end. Asked every few hundred steps.
    fn is_expired(&self) -> bool {
        false
    }

    /// A line that `print` wrote, with its place.
    fn print(&self, _line: &str) {}

    /// Random bytes, for `rand.intn` and `uuid.rfc4122`.
    fn random(&self, bytes: &mut [u8]);

    /// What an earlier verification of a signature gave. `key` covers token, key material and algorithm.
    fn known_signature(&self, _key: &[u8; 32]) -> Option<bool> {
        None
    }

    /// Remembers what a verification gave.
    fn remember_signature(&self, _key: [u8; 32], _valid: bool) {}

    /// What `opa.runtime()` gives.
    fn runtime(&self) -> Value {
        Value::empty_object()
    }

    /// `http.send`: the response object, or why there is none.
    fn http_send(&self, _request: &Value) -> Result<Value, String> {
        Err("http.send is not enabled".to_owned())
    }

    /// `net.lookup_ip_addr`: the addresses of a name.
    fn lookup_ip_addr(&self, _name: &str) -> Result<Vec<String>, String> {
        Err("net.lookup_ip_addr is not enabled".to_owned())
    }
}
