//! The host functions of policies: the clock, randomness, the process, and cached signature checks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use stepgate_rego::Capabilities;
use stepgate_rego::{Host, HttpClient, HttpError, HttpRequest, HttpResponse, Place, Recorder, SignatureCache, Tracer};

use super::Trail;
use super::http_send::{Outbound, OutboundSettings};
use super::memory::{EvaluationMemory, MemoryGrant, MemorySettings};
use crate::clock::Clock;
use crate::telemetry::ChildSpans;
use crate::value::{Value, json_text, member};

/// Signatures remembered at most; one takes about a hundred bytes.
const MAX_SIGNATURES: u64 = 50_000;
/// Functions whose answers are kept, as in OPA.
const RECORDED: [&str; 6] =
    ["http.send", "net.lookup_ip_addr", "opa.runtime", "rand.intn", "time.now_ns", "uuid.rfc4122"];
/// Cases of one test.
pub const MAX_CASES: usize = 100_000;
/// Answers of one function that one evaluation keeps.
const MAX_ANSWERS: usize = 100;
/// The value of `opa.runtime().version`: the OPA whose behaviour is mirrored.
pub const OPA_VERSION: &str = "1.19.0";

/// Which built-in functions that reach outside a policy may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuiltinSettings {
    pub http_send: Option<OutboundSettings>,
    /// `opa.runtime`, which shows a policy the environment of the process with all its secrets.
    pub opa_runtime: bool,
    /// Record the answers of non-deterministic functions.
    pub keeps_answers: bool,
    /// Room for answers of a policy that cannot come out differently; 0 to keep none.
    pub decision_cache_bytes: u64,
    pub memory: MemorySettings,
}

/// The state shared by all policies.
#[derive(Debug)]
pub struct HostContext {
    /// The environment of the process, where policies may see it.
    runtime: Option<Value>,
    outbound: Option<Outbound>,
    /// Results of signature checks, by the hash of token, key material and algorithm. They never change, so an
    /// entry is only evicted for lack of room.
    signatures: Cache<[u8; 32], bool>,
    keeps_answers: bool,
    decision_cache_bytes: u64,
    memory: Arc<EvaluationMemory>,
}

impl HostContext {
    /// For a server. With `http_send` this must be called on its runtime.
    pub fn new(settings: &BuiltinSettings) -> Self {
        Self::sharing(settings, EvaluationMemory::new(settings.memory, None))
    }

    /// For a server whose evaluations share `memory` with others.
    pub fn sharing(settings: &BuiltinSettings, memory: Arc<EvaluationMemory>) -> Self {
        let outbound = settings.http_send.as_ref().map(Outbound::on_this_runtime);
        Self {
            keeps_answers: settings.keeps_answers,
            decision_cache_bytes: settings.decision_cache_bytes,
            memory,
            ..Self::with(settings.opa_runtime, outbound)
        }
    }

    /// For a discovery bundle, which computes a configuration from the environment, the labels and what else was configured.
    pub fn for_discovery(config: Value) -> Self {
        let mut host_context = Self::with(true, None);
        host_context.runtime = host_context.runtime.map(|runtime| {
            let mut members = runtime.as_object().map(|members| members.to_vec()).unwrap_or_default();
            members.push((Value::from("config"), config));
            Value::object(members)
        });
        host_context
    }

    /// For the command-line tools: their user sees the environment and reaches the network anyway.
    pub fn local() -> std::io::Result<Self> {
        Ok(Self::with(true, Some(Outbound::alone(&OutboundSettings::default())?)))
    }

    fn with(opa_runtime: bool, outbound: Option<Outbound>) -> Self {
        let signatures = Cache::new(MAX_SIGNATURES);
        Self {
            runtime: opa_runtime.then(runtime),
            outbound,
            signatures,
            keeps_answers: false,
            decision_cache_bytes: 0,
            memory: EvaluationMemory::new(MemorySettings::default(), None),
        }
    }

    /// Memory for one more evaluation.
    pub fn memory(&self) -> Arc<MemoryGrant> {
        self.memory.grant()
    }

    pub fn decision_cache_bytes(&self) -> u64 {
        self.decision_cache_bytes
    }

    /// The functions that are refused when a policy calls them.
    pub fn capabilities(&self) -> Capabilities {
        let mut denied =
            vec![("net.lookup_ip_addr", "names are not looked up while a request waits; use addresses from the data")];
        if self.outbound.is_none() {
            let off = "requests would wait for another server; to allow it, set \
                       plugins.stepgate.builtins.http_send: true, and the hosts in http_send_hosts";
            denied.push(("http.send", off));
        }
        if self.runtime.is_none() {
            let off = "it shows the policy all environment variables; to allow it, set \
                       plugins.stepgate.builtins.opa_runtime: true";
            denied.push(("opa.runtime", off));
        }
        let denied = denied.into_iter().map(|(name, why)| (name.to_owned(), why.to_owned())).collect();
        Capabilities { denied, allowed: None }
    }
}

/// An environment variable that a policy names.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The environment of the process, as `opa.runtime` gives it.
fn runtime() -> Value {
    let text = |text: std::ffi::OsString| Value::from(text.to_string_lossy().into_owned());
    let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    [("env", Value::object(env)), ("version", Value::from(OPA_VERSION)), ("commit", Value::from(""))]
        .into_iter()
        .collect()
}

type Answers = BTreeMap<&'static str, BTreeMap<String, Value>>;

/// The cache key of a function with these arguments.
fn arguments(args: &[&Value]) -> String {
    json_text(&Value::array(args.iter().map(|arg| (*arg).clone()).collect()))
}

/// The host of one evaluation.
#[derive(Debug)]
pub struct EvalHost<'a> {
    /// When its own work must end; waiting for others moves it.
    end: Cell<Instant>,
    /// When everything must end.
    deadline: Instant,
    prints: RefCell<Vec<String>>,
    cases: RefCell<Vec<Value>>,
    trail: Option<RefCell<Trail>>,
    /// The answers of functions, by name and arguments in JSON; `None` where they are not recorded.
    answers: Option<RefCell<Answers>>,
    /// Recorded answers to replay.
    recalled: Option<Value>,
    /// The current time; `None`: the system's clock.
    now_ns: Option<i64>,
    /// Follows what is asked of other servers.
    followed: Option<ChildSpans>,
    /// A non-deterministic function was called.
    was_asked: Cell<bool>,
    /// It may wait for other servers.
    may_wait: bool,
    memory: Arc<MemoryGrant>,
    host_context: &'a HostContext,
}

impl<'a> EvalHost<'a> {
    /// A world that ends after `budget`.
    pub fn lasting(budget: Duration, host_context: &'a HostContext) -> Self {
        Self::until(Instant::now() + budget, budget, host_context)
    }

    /// A world with a `budget` for its own work, that ends at `deadline` whatever it waits for.
    pub fn until(deadline: Instant, budget: Duration, host_context: &'a HostContext) -> Self {
        let end = Cell::new(deadline.min(Instant::now() + budget));
        let answers = host_context.keeps_answers.then(RefCell::default);
        Self {
            end,
            deadline,
            prints: RefCell::default(),
            cases: RefCell::default(),
            trail: None,
            answers,
            recalled: None,
            now_ns: None,
            followed: None,
            was_asked: Cell::new(false),
            may_wait: true,
            memory: host_context.memory(),
            host_context,
        }
    }

    /// A host that appends to an existing evaluation trace.
    pub fn following(self, trail: Trail) -> Self {
        Self { trail: Some(RefCell::new(trail)), ..self }
    }

    /// A world as it was: functions answer as `answers` of an earlier evaluation say, and it is `now_ns`.
    pub fn recalling(self, answers: Option<Value>, now_ns: Option<i64>) -> Self {
        Self { recalled: answers, now_ns, ..self }
    }

    /// Goes on with the memory that was granted for the request.
    pub fn within(self, memory: Arc<MemoryGrant>) -> Self {
        Self { memory, ..self }
    }

    /// Ends where another server would have to be waited for.
    pub fn without_waiting(self) -> Self {
        Self { may_wait: false, ..self }
    }

    /// Bytes that the evaluation may still hold.
    pub fn bytes_left(&self) -> usize {
        self.memory.left()
    }

    /// A host that records requests to other servers.
    pub fn followed(self, followed: Option<ChildSpans>) -> Self {
        Self { followed, ..self }
    }

    /// The cases of tests that were begun, as paths below `data`; at most `MAX_CASES`.
    pub fn cases(&self) -> Vec<Value> {
        self.cases.borrow().clone()
    }

    /// The output of `print`, in order, and the evaluated locations.
    pub fn into_records(self) -> (Vec<String>, Trail) {
        let mut trail = self.trail.map(RefCell::into_inner).unwrap_or_default();
        trail.pause();
        (self.prints.into_inner(), trail)
    }

    /// The answers of functions, as OPA's `nd_builtin_cache` has them.
    pub fn answers(&self) -> Option<Value> {
        let answers = self.answers.as_ref()?.borrow();
        let of = |(name, results): (&&'static str, &BTreeMap<String, Value>)| {
            let results = results.iter().map(|(args, result)| (Value::from(args.as_str()), result.clone()));
            (Value::from(*name), Value::object(results.collect()))
        };
        (!answers.is_empty()).then(|| Value::object(answers.iter().map(of).collect()))
    }

    /// The evaluation called a non-deterministic function, or had a side effect.
    pub fn was_asked(&self) -> bool {
        self.was_asked.get()
    }

    /// The output of `print`, in order.
    pub fn into_prints(self) -> Vec<String> {
        self.prints.into_inner()
    }
}

impl Host for EvalHost<'_> {
    fn now_ns(&self) -> i64 {
        self.was_asked.set(true);
        self.now_ns.unwrap_or_else(|| Clock::System.now_ns())
    }

    fn is_expired(&self) -> bool {
        Instant::now() >= self.end.get()
    }

    fn grant_memory(&self, bytes: usize) -> bool {
        self.memory.take(bytes)
    }

    fn memory_held(&self, bytes: usize) {
        self.memory.observe(bytes);
    }

    fn random(&self, bytes: &mut [u8]) {
        self.was_asked.set(true);
        for chunk in bytes.chunks_mut(16) {
            let random = uuid::Uuid::new_v4().into_bytes();
            chunk.iter_mut().zip(random).for_each(|(byte, random)| *byte = random);
        }
    }

    fn runtime(&self) -> Value {
        self.was_asked.set(true);
        self.host_context.runtime.clone().unwrap_or_else(Value::empty_object)
    }

    fn tracer(&self) -> Option<&dyn Tracer> {
        Some(self)
    }

    fn recorder(&self) -> Option<&dyn Recorder> {
        Some(self)
    }

    fn signatures(&self) -> Option<&dyn SignatureCache> {
        Some(self.host_context)
    }

    fn http_client(&self) -> Option<&dyn HttpClient> {
        Some(self)
    }
}

impl SignatureCache for HostContext {
    fn get(&self, key: &[u8; 32]) -> Option<bool> {
        self.signatures.get(key)
    }

    fn insert(&self, key: [u8; 32], is_valid: bool) {
        self.signatures.insert(key, is_valid);
    }
}

impl Tracer for EvalHost<'_> {
    fn print(&self, line: &str) {
        self.was_asked.set(true);
        self.prints.borrow_mut().push(line.to_owned());
    }

    fn note(&self, text: &str) {
        self.was_asked.set(true);
        if let Some(trail) = &self.trail {
            trail.borrow_mut().note(text);
        }
    }

    fn visit(&self, place: &Place) {
        if let Some(trail) = &self.trail {
            trail.borrow_mut().visit(place);
        }
    }

    fn test_case(&self, path: &Value) {
        let mut cases = self.cases.borrow_mut();
        if cases.len() < MAX_CASES {
            cases.push(path.clone());
        }
    }
}

impl Recorder for EvalHost<'_> {
    fn replay(&self, name: &'static str, args: &[&Value]) -> Option<Value> {
        let results = member(self.recalled.as_ref()?, name)?;
        member(results, &arguments(args)).cloned()
    }

    fn record(&self, name: &'static str, args: &[&Value], result: &Value) {
        self.was_asked.set(true);
        let Some(answers) = self.answers.as_ref().filter(|_| RECORDED.contains(&name)) else { return };
        let mut answers = answers.borrow_mut();
        let results = answers.entry(name).or_default();
        if results.len() < MAX_ANSWERS {
            results.insert(arguments(args), result.clone());
        }
    }
}

impl HttpClient for EvalHost<'_> {
    fn send(&self, request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        self.was_asked.set(true);
        match &self.host_context.outbound {
            Some(outbound) if !self.may_wait => outbound.kept(request, self.now_ns()).ok_or(HttpError::WouldWait),
            Some(outbound) => {
                let began = Instant::now();
                let answer = outbound.send(request, self.now_ns(), self.deadline, self.followed.as_ref());
                self.end.set(self.deadline.min(self.end.get() + began.elapsed()));
                answer
            }
            None => Err(HttpError::Internal("http.send is not enabled".to_owned())),
        }
    }
}
