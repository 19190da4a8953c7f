//! What policies see of the world around them: the clock, randomness, the process, and signatures already verified.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use stepgate_rego::Host;
use stepgate_rego::compile::Capabilities;

use crate::clock::Clock;
use crate::value::Value;

/// Signatures remembered at most; one takes about a hundred bytes.
const MAX_SIGNATURES: u64 = 50_000;
/// What `opa.runtime().version` says: the OPA whose behaviour is mirrored.
const OPA_VERSION: &str = "1.19.0";

/// Which built-in functions that reach outside a policy may call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuiltinSettings {
    /// `opa.runtime`, which shows a policy the environment of the process with all its secrets.
    pub opa_runtime: bool,
}

/// What all policies share.
#[derive(Debug)]
pub struct Surroundings {
    settings: BuiltinSettings,
    runtime: Value,
    /// Whether a signature is right, by the hash of token, key material and algorithm. That never changes, so nothing
    /// ends an entry but lack of room.
    signatures: Cache<[u8; 32], bool>,
}

impl Surroundings {
    pub fn new(settings: BuiltinSettings) -> Self {
        let runtime = if settings.opa_runtime { runtime() } else { Value::empty_object() };
        Self { settings, runtime, signatures: Cache::new(MAX_SIGNATURES) }
    }

    /// For the tools of the command line: whoever types a command sees the environment anyway.
    pub fn local() -> Self {
        Self::new(BuiltinSettings { opa_runtime: true })
    }

    /// The functions that are refused when a policy calls them.
    pub fn capabilities(&self) -> Capabilities {
        let leaves = "it would leave the process while a request waits, and this version has no switch to allow it";
        let mut denied = vec![("http.send", leaves), ("net.lookup_ip_addr", leaves)];
        if !self.settings.opa_runtime {
            let off = "it shows the policy all environment variables; to allow it, set \
                       plugins.stepgate.builtins.opa_runtime: true";
            denied.push(("opa.runtime", off));
        }
        let denied = denied.into_iter().map(|(name, why)| (name.to_owned(), why.to_owned())).collect();
        Capabilities { denied, allowed: None }
    }
}

/// The environment of the process, as `opa.runtime` gives it.
fn runtime() -> Value {
    let text = |text: std::ffi::OsString| Value::from(text.to_string_lossy().into_owned());
    let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    [("env", Value::object(env)), ("version", Value::from(OPA_VERSION)), ("commit", Value::from(""))]
        .into_iter()
        .collect()
}

/// What one evaluation sees of the world.
#[derive(Debug)]
pub struct World<'a> {
    end: Instant,
    prints: RefCell<Vec<String>>,
    surroundings: &'a Surroundings,
}

impl<'a> World<'a> {
    /// A world that ends after `budget`.
    pub fn lasting(budget: Duration, surroundings: &'a Surroundings) -> Self {
        Self { end: Instant::now() + budget, prints: RefCell::default(), surroundings }
    }

    /// What `print` said, in order.
    pub fn into_prints(self) -> Vec<String> {
        self.prints.into_inner()
    }
}

impl Host for World<'_> {
    fn now_ns(&self) -> i64 {
        Clock::System.now_ns()
    }

    fn is_expired(&self) -> bool {
        Instant::now() >= self.end
    }

    fn print(&self, line: &str) {
        self.prints.borrow_mut().push(line.to_owned());
    }

    fn random(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(16) {
            let random = uuid::Uuid::new_v4().into_bytes();
            chunk.iter_mut().zip(random).for_each(|(byte, random)| *byte = random);
        }
    }

    fn known_signature(&self, key: &[u8; 32]) -> Option<bool> {
        self.surroundings.signatures.get(key)
    }

    fn remember_signature(&self, key: [u8; 32], valid: bool) {
        self.surroundings.signatures.insert(key, valid);
    }

    fn runtime(&self) -> Value {
        self.surroundings.runtime.clone()
    }
}
