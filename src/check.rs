//! The request plane: from the bytes of a `CheckRequest` to an answer.
//!
//! Touches memory only, with two waits that are short and bounded: for keys that a token needs and that are not here yet, and
//! for other servers where the policy calls `http.send`, on separate threads.
//! Knows nothing about gRPC servers or where policies, keys and settings come from.

mod caller;
mod canonical;
mod challenge;
mod deadline;
mod evidence;
mod fault;
mod identity;
mod identity_token;
mod metrics;
mod obligations;
mod preflight;
mod redirect;
mod resource;
mod respond;
mod response_limits;
mod revocation;
mod routes;
mod span;
mod step_up_loop;
mod trace;

use std::borrow::Cow;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use self::evidence::Evidence;
use self::respond::Verdict;
use self::step_up_loop::StepUpLoopGuard;
use crate::clock::Clock;
use crate::decision_queue::{DecisionQueue, Record};
use crate::opa::decision::{Decision, DecisionError, Deny, Dialect};
use crate::opa::input::{self, Attributes, BodyUse, Http};
use crate::policy::PolicyMetrics;
use crate::policy::{self, AnswerSource, Effort};
use crate::telemetry::{CheckOutcome, Metrics, SpanAttributes, Tracer};
use crate::token::{AssertedSettings, ReplayCache, Verifier};
use crate::value::{Members, Value};

pub use self::caller::{CallerSettings, ClientAddress};
pub use self::canonical::{Ambiguity, canonical_path};
pub use self::challenge::{DpopChallenge, Settings as ChallengeSettings};
pub use self::deadline::CheckDeadline;
pub use self::evidence::AmbiguousPath;
pub use self::fault::Fault;
use self::fault::FaultLog;
pub use self::identity::{IdentityHeader, IdentitySource};
pub use self::identity_token::{IdentityTokenSigner, MAX_LIFETIME as MAX_IDENTITY_TOKEN_LIFETIME};
pub use self::metrics::CheckMetrics;
use self::metrics::Phase;
pub use self::redirect::Redirect;
pub use self::resource::ResourceMetadata;
pub use self::respond::{Answer, GrpcCode};
pub use self::response_limits::{MAX_METADATA_DEPTH, ResponseLimits};
pub use self::revocation::{RevocationCheck, RouteRevocation};
pub use self::routes::{LevelRequirement, PathPattern, Route, RouteRequirement, is_plain_host};
use self::span::CheckSpan;

/// Evaluations that may wait for other servers at the same time; further ones queue until their deadline.
const MAX_WAITING_EVALUATIONS: usize = 256;
/// Evaluations beyond a brief attempt that compute at the same time, for each processor.
const LONG_EVALUATIONS_PER_PROCESSOR: usize = 1;
/// From this size on, the memory of an evaluation is returned to the operating system at once.
const LARGE_EVALUATION_BYTES: usize = 1 << 20;
/// Retention of the ids of used tokens, and the longest remaining lifetime of a single-use token: an hour plus the longest leeway.
const USED_SPAN: Duration = Duration::from_secs(4_200);

/// The denials that `dry-run` turns into an allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DryRun {
    #[default]
    Off,
    /// OPA's scope: denials by the policy.
    Denials,
    /// Faults as well.
    DenialsAndFaults,
}

impl DryRun {
    /// The dry-run scope; `None` where checks are answered as they are decided.
    pub fn warning(self) -> Option<&'static str> {
        match self {
            Self::Off => None,
            Self::Denials => Some("dry-run is on: requests that the policy denies are allowed"),
            Self::DenialsAndFaults => {
                Some("dry-run is on: requests that the policy denies, and those that fail to be checked, are allowed")
            }
        }
    }
}

/// Named deviations from stepgate's own ways, towards OPA-Envoy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compat {
    /// Faults are gRPC errors, which `failure_mode_allow` turns into an allow.
    pub grpc_errors: bool,
    /// The parser's words go to the client.
    pub body_errors: bool,
    /// The keys that count in a decision: OPA's alone, or stepgate's as well.
    pub dialect: Dialect,
}

/// Settings of all checks; fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct Settings {
    pub input: input::Options,
    /// Add `method`, `path`, `jwt` and `authn` to the document.
    pub stepgate_fields: bool,
    pub ambiguous_path: AmbiguousPath,
    /// The longest that one evaluation may take.
    pub evaluation_timeout: Duration,
    pub dry_run: DryRun,
    /// Deny a check whose decision finds no room in the decision log.
    pub audit: bool,
    pub compat: Compat,
    /// The trusted sources of the caller's identity and address.
    pub caller: CallerSettings,
    /// Allow CORS preflight requests without evaluating the policy.
    pub allow_preflight: bool,
    /// Issuers whose tokens Envoy verifies.
    pub asserted: Vec<AssertedSettings>,
    pub challenge: ChallengeSettings,
    /// Where browsers go instead of being challenged.
    pub redirect: Option<Redirect>,
    /// Served to anybody, before the policy is asked.
    pub resources: Vec<ResourceMetadata>,
    /// The requirements of routes beside the policy.
    pub routes: Vec<Route>,
    pub identity_headers: Vec<IdentityHeader>,
    pub response_limits: ResponseLimits,
    /// Tokens for one use that are remembered; beyond, further ones are refused.
    pub max_used_tokens: usize,
    /// Signs identity tokens for the upstream.
    pub identity_token_signer: Option<Arc<IdentityTokenSigner>>,
}

/// Answers checks.
#[derive(Debug)]
pub struct Checker {
    settings: Settings,
    policy: Arc<policy::Store>,
    /// Absent when no issuers are configured.
    tokens: Option<Arc<Verifier>>,
    clock: Clock,
    metrics: Arc<CheckMetrics>,
    policy_metrics: Arc<PolicyMetrics>,
    /// Where decisions are logged, if they are.
    decision_queue: Option<Arc<DecisionQueue>>,
    /// Permits for evaluations that wait for other servers.
    waiting_evaluations: Arc<Semaphore>,
    /// Permits for evaluations that compute for longer than a brief attempt.
    long_evaluations: Arc<Semaphore>,
    step_up_loop: StepUpLoopGuard,
    /// Revoked tokens are rejected, where a hub is configured.
    revocation: Option<RevocationCheck>,
    /// Tokens that were good for one request, where any route demands such.
    used: Option<ReplayCache>,
    /// Where checks are traced, if they are.
    tracer: Option<Tracer>,
    /// Lines about checks that there was no room for, and about those that there was no time for.
    fault_log: FaultLog,
}

impl Checker {
    pub fn new(
        settings: Settings,
        policy: Arc<policy::Store>,
        tokens: Option<Arc<Verifier>>,
        clock: Clock,
        metrics: &Metrics,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let has_single_use = settings.routes.iter().any(|route| route.demand.single_use);
        let used = has_single_use.then(|| ReplayCache::new(USED_SPAN, settings.max_used_tokens));
        Self {
            settings,
            policy,
            tokens,
            clock,
            metrics: metrics.of(),
            policy_metrics: metrics.of(),
            decision_queue: None,
            waiting_evaluations: Arc::new(Semaphore::new(MAX_WAITING_EVALUATIONS)),
            long_evaluations: Arc::new(Semaphore::new(processors.saturating_mul(LONG_EVALUATIONS_PER_PROCESSOR))),
            step_up_loop: StepUpLoopGuard::default(),
            used,
            revocation: None,
            tracer: None,
            fault_log: FaultLog::default(),
        }
    }

    /// The same, logging every decision.
    pub fn with_journal(self, decision_queue: Arc<DecisionQueue>) -> Self {
        Self { decision_queue: Some(decision_queue), ..self }
    }

    /// The same, rejecting revoked tokens.
    pub fn with_revocation(self, revocation: RevocationCheck) -> Self {
        Self { revocation: Some(revocation), ..self }
    }

    /// The same, tracing checks.
    pub fn with_tracer(self, tracer: Tracer) -> Self {
        Self { tracer: Some(tracer), ..self }
    }

    pub fn metrics(&self) -> &CheckMetrics {
        &self.metrics
    }

    /// Answers one check within its deadline.
    pub async fn check(&self, message: &[u8], term: CheckDeadline) -> Answer {
        let mut span = CheckSpan::begin(&self.metrics, &self.policy_metrics, term.arrived);
        let parsed = Attributes::parse(message);
        if let Some(wanted) = parsed.as_ref().ok().and_then(|attributes| self.public_document(attributes)) {
            span.discard();
            return respond::document(wanted, &decision_id());
        }
        let permit = self.decision_queue().and_then(DecisionQueue::reserve);
        let is_unlogged = self.settings.audit && permit.is_none();
        span.log_to(self.record(permit.is_some()), permit);
        if let Some((tracer, attributes)) = self.tracer.as_ref().zip(parsed.as_ref().ok()) {
            let http = attributes.http.as_ref();
            let decision_id = span.record.decision_id.clone();
            let attributes = || SpanAttributes { decision_id, ..http.map(trace::span_attributes).unwrap_or_default() };
            span.trace_to(tracer, http.and_then(trace::traceparent), self.clock.now_ns(), attributes);
        }
        let (outcome, answer) = match parsed {
            Err(error) => self.fault(Fault::Malformed(error), None, &mut span),
            Ok(attributes) if is_unlogged => self.fault(Fault::AuditLogFull, Some(&attributes), &mut span),
            Ok(attributes) => match self.decide(message, &attributes, term, &mut span).await {
                Ok(verdict) => {
                    self.count(&verdict);
                    let (outcome, answer) =
                        respond::decision(&self.settings, verdict, &attributes, &span.record.decision_id);
                    span.end_phase(Phase::Respond);
                    match self.usable(&answer) {
                        Ok(()) => (outcome, answer),
                        Err(error) => self.fault(Fault::Result(error), Some(&attributes), &mut span),
                    }
                }
                Err(fault) => self.fault(fault, Some(&attributes), &mut span),
            },
        };
        span.finish(outcome, answer.word());
        answer
    }

    /// Checks that Envoy can use an answer.
    fn usable(&self, answer: &Answer) -> Result<(), DecisionError> {
        match answer {
            Answer::Respond(response) => self.settings.response_limits.check(response),
            Answer::Fail { .. } => Ok(()),
        }
    }

    /// The metadata of a protected resource, where the request asks for them. It is no decision: nothing is logged.
    fn public_document(&self, attributes: &Attributes<'_>) -> Option<resource::Wanted<'_>> {
        let http = attributes.http.as_ref()?;
        self.settings.resources.iter().find_map(|resource| resource.wanted(http))
    }

    /// The log record of a check; no more than its id when nothing reads the log.
    fn record(&self, has_consumers: bool) -> Record {
        let timestamp_ns = if has_consumers { self.clock.now_ns() } else { 0 };
        Record { decision_id: decision_id(), has_consumers, timestamp_ns, ..Record::default() }
    }

    /// The decision queue, while it has consumers.
    fn decision_queue(&self) -> Option<&DecisionQueue> {
        self.decision_queue.as_deref().filter(|decision_queue| decision_queue.has_consumers())
    }

    /// The answer to a check that came at `arrived` and could not be made.
    pub fn refuse(&self, fault: Fault, arrived: Instant) -> Answer {
        let mut span = CheckSpan::begin(&self.metrics, &self.policy_metrics, arrived);
        let permit = self.decision_queue().and_then(DecisionQueue::reserve);
        span.log_to(self.record(permit.is_some()), permit);
        if matches!(fault, Fault::Cancelled) {
            // The span counts and logs it.
            drop(span);
            return respond::fault(&self.settings, &fault, None, None, "");
        }
        let (outcome, answer) = self.fault(fault, None, &mut span);
        span.finish(outcome, answer.word());
        answer
    }

    fn fault(
        &self,
        fault: Fault,
        attributes: Option<&Attributes<'_>>,
        span: &mut CheckSpan<'_>,
    ) -> (CheckOutcome, Answer) {
        let id = span.record.decision_id.clone();
        fault.log(&id, &self.fault_log);
        span.fault(&fault);
        let subprotocols = attributes.and_then(|attributes| self.subprotocols(attributes));
        let answer = respond::fault(&self.settings, &fault, attributes, subprotocols.as_deref(), &id);
        (CheckOutcome::Fault, answer)
    }

    /// The subprotocols of a WebSocket without tokens, where there is one among them.
    fn subprotocols(&self, attributes: &Attributes<'_>) -> Option<String> {
        let (tokens, http) = self.tokens.as_ref().zip(attributes.http.as_ref())?;
        tokens.subprotocols_without_tokens(http)
    }

    async fn decide(
        &self,
        message: &[u8],
        attributes: &Attributes<'_>,
        term: CheckDeadline,
        span: &mut CheckSpan<'_>,
    ) -> Result<Verdict, Fault> {
        let has_consumers = span.record.has_consumers;
        let snapshot = self.policy.current().ok_or(Fault::NoPolicy)?;
        span.record.snapshot = has_consumers.then(|| Arc::clone(&snapshot));
        let path = self
            .canonical(attributes)
            .inspect_err(|_| self.record_early_input(message, attributes, &mut span.record))?;
        // A body that no rule reads may be malformed, unless OPA's answer is wanted.
        let is_read = self.settings.compat.body_errors || snapshot.reads_body();
        let body = match (is_read, has_consumers) {
            (true, _) => BodyUse::Decision,
            (false, true) => BodyUse::Log,
            (false, false) => BodyUse::Nothing,
        };
        let memory = snapshot.memory();
        let grant = |bytes| memory.take(bytes);
        let document =
            input::build(message, attributes, &self.settings.input, body, &mut input::BodyMemory::new(&grant))
                .inspect_err(|_| self.record_early_input(message, attributes, &mut span.record))?;
        span.end_phase(Phase::Input);
        let is_token_header = |name: &str| self.tokens.as_ref().is_some_and(|tokens| tokens.reads_header(name));
        let is_preflight = |http: &Http<'_>| preflight::is_preflight(http, is_token_header);
        if self.settings.allow_preflight && attributes.http.as_ref().is_some_and(is_preflight) {
            span.record.input =
                has_consumers.then(|| self.input_before_token(document.members, attributes, path.as_deref()));
            span.record.reason = "cors_preflight";
            return Ok(Verdict::allow(self.clock.now()));
        }
        let evidence = {
            let mut gathering = pin!(Evidence::gather(attributes, self.tokens.as_deref(), term.deadline));
            match poll_fn(|context| Poll::Ready(gathering.as_mut().poll(context))).await {
                Poll::Ready(evidence) => evidence,
                Poll::Pending => {
                    // The caller may give up meanwhile: what was asked is logged all the same.
                    let early_input = || self.input_before_token(document.members.clone(), attributes, path.as_deref());
                    span.record.input = has_consumers.then(early_input);
                    gathering.await
                }
            }
        };
        let by_envoy = self.settings.asserted.as_slice();
        let shown = document.members.get(&ATTRIBUTES).filter(|_| !by_envoy.is_empty());
        let evidence = evidence.or_asserted(by_envoy, shown, self.clock.now());
        let evidence = evidence.for_resource(&self.settings.resources, attributes.http.as_ref());
        let now = self.clock.now();
        let demand = self.demand(attributes, path.as_deref(), &evidence);
        let (evidence, revocation) = match &self.revocation {
            Some(revocation) => {
                let wanted = demand.as_ref().and_then(|demand| demand.revocation).unwrap_or_default();
                revocation.apply(evidence, wanted, now)
            }
            None => (evidence, None),
        };
        self.metrics.token(evidence.state_name(), evidence.rejection_reason());
        span.end_phase(Phase::Token);

        let unmet = demand.as_ref().and_then(|demand| self.unmet(demand, attributes, &evidence, now));
        let mut members = document.members;
        if self.settings.stepgate_fields {
            let with_caller = has_consumers || snapshot.reads_caller();
            self.add_request_fields(&mut members, attributes, path.as_deref(), with_caller);
            evidence.add_to(&mut members, now);
            if let Some(demand) = &demand {
                members.put(&DEMAND, demand.document(unmet.is_none()));
            }
            if let Some(revocation) = &revocation {
                members.put(&REVOCATION, revocation.document());
            }
        }
        let input = members.into_value();
        span.record.input = has_consumers.then(|| input.clone());
        span.end_phase(Phase::Evidence);
        let decision = self.evaluate(snapshot, input, memory, term, span).await?;
        span.end_phase(Phase::Eval);
        let mut decision = decision;
        let unmet = unmet.filter(|_| !decision.skips_route_requirements()).and_then(|unmet| match &mut decision {
            Decision::True | Decision::Allow(_) => Some(unmet),
            // The requirements of the policy and of the route are asked for at once.
            Decision::Deny(Deny { step_up: Some(step_up), .. }) => {
                unmet.add_to(step_up);
                None
            }
            Decision::False | Decision::Deny(_) => None,
        });
        let now = self.clock.now();
        // Only a challenge names them.
        let is_denied = unmet.is_some() || !decision.is_allow();
        let acr_values = self.tokens.as_ref().zip(demand.as_ref()).filter(|_| is_denied);
        let acr_values =
            acr_values.map(|(tokens, demand)| tokens.acr_values(demand.level(), &demand.issuers)).unwrap_or_default();
        let subprotocols = self.subprotocols(attributes);
        let is_not_satisfiable = false;
        let verdict = Verdict { decision, evidence, unmet, demand, acr_values, is_not_satisfiable, subprotocols, now };
        let mut verdict = self.settle(verdict, attributes);
        verdict.is_not_satisfiable = self.is_not_satisfiable(&verdict);
        span.record.reason = verdict.reason();
        Ok(verdict)
    }

    /// Records the input of a check that ends in a fault before its decision, for the log.
    fn record_early_input(&self, message: &[u8], attributes: &Attributes<'_>, record: &mut Record) {
        if record.has_consumers {
            // The body is left out: it may be what is wrong.
            let refuse = |_| false;
            let mut memory = input::BodyMemory::new(&refuse);
            let document = input::build(message, attributes, &self.settings.input, BodyUse::Nothing, &mut memory);
            let path = attributes.http.as_ref().and_then(|http| canonical_path(http.path).ok());
            record.input =
                document.ok().map(|document| self.input_before_token(document.members, attributes, path.as_deref()));
        }
    }

    /// The input of a check that ends before its token is known: masks and drop rules go by everything else.
    fn input_before_token(&self, mut members: Members, attributes: &Attributes<'_>, path: Option<&str>) -> Value {
        if self.settings.stepgate_fields {
            self.add_request_fields(&mut members, attributes, path, true);
        }
        members.into_value()
    }

    /// Adds `method`, `path`, `peer` and `client` to the document.
    fn add_request_fields(
        &self,
        members: &mut Members,
        attributes: &Attributes<'_>,
        path: Option<&str>,
        with_caller: bool,
    ) {
        if with_caller {
            self.settings.caller.add_to(members, attributes);
        }
        if let Some(http) = &attributes.http {
            members.put(&METHOD, Value::from(http.method));
        }
        if let Some(path) = path {
            members.put(&PATH, Value::from(path));
        }
    }

    /// Counts what a denial was for.
    fn count(&self, verdict: &Verdict) {
        if verdict.is_allow() {
            return;
        }
        self.metrics.denied(verdict.reason());
        if verdict.step_up().is_some() {
            self.metrics.stepped_up(verdict.evidence.verified().map_or(0, |verified| verified.authn().level));
        }
    }

    /// The canonical path; where it is ambiguous, nothing or a refusal. Not even `stepgate_fields: false` turns the refusal off.
    fn canonical<'a>(&self, attributes: &Attributes<'a>) -> Result<Option<Cow<'a, str>>, Fault> {
        let Some(http) = &attributes.http else { return Ok(None) };
        match canonical_path(http.path) {
            Ok(path) => Ok(Some(path)),
            Err(ambiguity) => {
                self.metrics.ambiguous_paths.inc();
                // No route can be found by a path that others may read differently.
                if self.settings.ambiguous_path == AmbiguousPath::Reject || !self.settings.routes.is_empty() {
                    return Err(Fault::AmbiguousPath(ambiguity));
                }
                tracing::info!(why = %ambiguity, "a request's path is ambiguous; input.path is absent");
                Ok(None)
            }
        }
    }

    async fn evaluate(
        &self,
        snapshot: Arc<policy::Snapshot>,
        input: Value,
        memory: Arc<policy::MemoryGrant>,
        term: CheckDeadline,
        span: &mut CheckSpan<'_>,
    ) -> Result<Decision, Fault> {
        let (deadline, followed) = (term.deadline, span.child_spans());
        let has_consumers = span.record.has_consumers;
        let left = deadline.saturating_duration_since(Instant::now());
        let budget = self.settings.evaluation_timeout.min(left);
        if budget.is_zero() {
            return Err(term.exceeded());
        }
        let started = Instant::now();
        let bounds = |effort, memory| policy::Bounds {
            budget,
            deadline: deadline.into_std(),
            followed: followed.clone(),
            effort,
            memory: Some(memory),
        };
        // Nearly every evaluation is done within a brief attempt, on the thread that reads its connection. A longer one must not delay
        // other checks: it starts again on a separate thread.
        let brief = snapshot.eval(&input, bounds(Effort::Brief, memory));
        let evaluation = match brief {
            Err(policy::EvalError::Unfinished) => {
                let memory = snapshot.memory();
                let bounds = bounds(Effort::Full, Arc::clone(&memory));
                self.evaluate_aside(snapshot, input, bounds, memory)
                    .await
                    .map_err(|fault| fault.unwrap_or(term.exceeded()))?
            }
            done => done,
        };
        span.record.evaluation = started.elapsed();
        let evaluation = evaluation.map_err(|error| match error {
            policy::EvalError::Budget | policy::EvalError::Unfinished
                if budget < self.settings.evaluation_timeout || Instant::now() >= deadline =>
            {
                term.exceeded()
            }
            policy::EvalError::Budget | policy::EvalError::Unfinished => Fault::EvaluationTimeout,
            policy::EvalError::Memory(message) => Fault::EvaluationMemory(message),
            policy::EvalError::Conflict(message) => Fault::Conflict(message),
            policy::EvalError::Failed(message) => Fault::Evaluation(message),
        })?;
        match evaluation.source {
            AnswerSource::Uncached => {}
            AnswerSource::Hit => self.policy_metrics.decision_cache.hit(),
            AnswerSource::Miss => self.policy_metrics.decision_cache.miss(),
        }
        for print in &evaluation.prints {
            tracing::info!(decision_id = span.record.decision_id, "{print}");
        }
        span.record.answers = evaluation.answers;
        let value = evaluation.value.ok_or(Fault::Undefined)?;
        span.record.result = has_consumers.then(|| value.clone());
        Decision::parse(&value, self.settings.compat.dialect).map_err(Fault::Result)
    }

    /// Evaluates on a thread that may block: the policy computes for long, or waits for another server. Without a fault the deadline has
    /// passed.
    async fn evaluate_aside(
        &self,
        snapshot: Arc<policy::Snapshot>,
        input: Value,
        bounds: policy::Bounds,
        memory: Arc<policy::MemoryGrant>,
    ) -> Result<Result<policy::Evaluation, policy::EvalError>, Option<Fault>> {
        let permits = if snapshot.waits() { &self.waiting_evaluations } else { &self.long_evaluations };
        let permit = tokio::time::timeout_at(bounds.deadline.into(), Arc::clone(permits).acquire_owned()).await;
        let permit = permit.map_err(|_| None)?.map_err(|_| None)?;
        let evaluation = tokio::task::spawn_blocking(move || {
            let evaluation = snapshot.eval(&input, bounds);
            drop(input);
            if memory.granted() >= LARGE_EVALUATION_BYTES {
                stepgate_allocator::return_freed_memory();
            }
            drop(permit);
            evaluation
        });
        evaluation.await.map_err(|_| Some(Fault::Panic))
    }
}

static ATTRIBUTES: crate::value::Key = crate::key!("attributes");
static DEMAND: crate::value::Key = crate::key!("demand");
static REVOCATION: crate::value::Key = crate::key!("revocation");
static METHOD: crate::value::Key = crate::key!("method");
static PATH: crate::value::Key = crate::key!("path");

/// A new UUIDv4, as OPA gives every decision.
fn decision_id() -> String {
    Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests;
