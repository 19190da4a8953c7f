//! The request plane: from the bytes of a `CheckRequest` to an answer.
//!
//! Touches memory only, with two waits that are short and bounded: for keys that a token needs and that are not here yet, and
//! for other servers where the policy calls `http.send`, on threads aside.
//! Knows nothing about gRPC servers or where policies, keys and settings come from.

mod canonical;
mod challenge;
mod evidence;
mod fault;
mod identity;
mod respond;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use uuid::Uuid;

use self::evidence::Evidence;
use self::respond::Verdict;
use crate::clock::Clock;
use crate::opa::decision::{Decision, Dialect};
use crate::opa::input::{self, Attributes, BodyUse};
use crate::policy::{self, Journal, Record};
use crate::telemetry::{Decided, Metrics};
use crate::token::Verifier;
use crate::value::Value;

pub use self::canonical::{Ambiguity, canonical_path};
pub use self::challenge::{DpopChallenge, Settings as ChallengeSettings};
pub use self::evidence::AmbiguousPath;
pub use self::fault::Fault;
pub use self::identity::{IdentityHeader, IdentitySource};
pub use self::respond::{Answer, GrpcCode};

/// Evaluations that may wait for other servers at the same time; further ones queue until their deadline.
const MAX_ASIDE: usize = 256;

/// What `dry-run` turns into an allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DryRun {
    #[default]
    Off,
    /// OPA's scope: denials by the policy.
    Denials,
    /// Faults as well.
    DenialsAndFaults,
}

/// Named deviations from stepgate's own ways, towards OPA-Envoy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compat {
    /// Faults are gRPC errors, which `failure_mode_allow` turns into an allow.
    pub grpc_errors: bool,
    /// The parser's words go to the client.
    pub body_errors: bool,
    /// Only OPA's keys count in a decision.
    pub decision_keys: bool,
}

/// How checks are made; fixed for the life of the process.
#[derive(Clone, Debug)]
pub struct Settings {
    pub input: input::Options,
    /// Add `method`, `path`, `jwt` and `authn` to the document.
    pub extras: bool,
    pub ambiguous_path: AmbiguousPath,
    /// The longest that one evaluation may take.
    pub evaluation_timeout: Duration,
    pub dry_run: DryRun,
    /// Whether a check is denied whose decision finds no room in the decision log.
    pub audit: bool,
    pub compat: Compat,
    pub challenge: ChallengeSettings,
    pub identity_headers: Vec<IdentityHeader>,
}

/// Answers checks.
#[derive(Debug)]
pub struct Checker {
    settings: Settings,
    policy: Arc<policy::Store>,
    /// Absent when no issuers are configured.
    tokens: Option<Arc<Verifier>>,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// Where decisions are logged, if they are.
    journal: Option<Arc<Journal>>,
    /// Places for evaluations that may wait for other servers.
    aside: Arc<Semaphore>,
}

impl Checker {
    pub fn new(
        settings: Settings,
        policy: Arc<policy::Store>,
        tokens: Option<Arc<Verifier>>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let aside = Arc::new(Semaphore::new(MAX_ASIDE));
        Self { settings, policy, tokens, clock, metrics, journal: None, aside }
    }

    /// The same, telling every decision.
    pub fn with_journal(self, journal: Arc<Journal>) -> Self {
        Self { journal: Some(journal), ..self }
    }

    /// Answers one check before `deadline`.
    pub async fn check(&self, message: &[u8], deadline: Instant) -> Answer {
        let started = Instant::now();
        let place = self.journal().and_then(Journal::reserve);
        let mut record = self.record(place.is_some());
        let (decided, answer) = match Attributes::parse(message) {
            Err(error) => (Decided::Fault, self.fault(Fault::Malformed(error), None, &mut record)),
            Ok(attributes) if self.settings.audit && place.is_none() => {
                (Decided::Fault, self.fault(Fault::Unlogged, Some(&attributes), &mut record))
            }
            Ok(attributes) => match self.decide(message, &attributes, deadline, &mut record).await {
                Ok(verdict) => respond::decision(&self.settings, verdict, &attributes, &record.decision_id),
                Err(fault) => (Decided::Fault, self.fault(fault, Some(&attributes), &mut record)),
            },
        };
        self.metrics.checked(decided, started.elapsed());
        if let Some(place) = place {
            record.total = started.elapsed();
            place.take(record);
        }
        answer
    }

    /// What will be told of a check; no more than its id when nobody is told.
    fn record(&self, is_wanted: bool) -> Record {
        let timestamp_ns = if is_wanted { self.clock.now_ns() } else { 0 };
        Record { decision_id: decision_id(), is_wanted, timestamp_ns, ..Record::default() }
    }

    /// The journal, while somebody reads it.
    fn journal(&self) -> Option<&Journal> {
        self.journal.as_deref().filter(|journal| journal.is_read())
    }

    /// The answer to a check that could not be made.
    pub fn refuse(&self, fault: Fault) -> Answer {
        self.metrics.checked(Decided::Fault, Duration::ZERO);
        let place = self.journal().and_then(Journal::reserve);
        let mut record = self.record(place.is_some());
        let answer = self.fault(fault, None, &mut record);
        if let Some(place) = place {
            place.take(record);
        }
        answer
    }

    fn fault(&self, fault: Fault, attributes: Option<&Attributes<'_>>, record: &mut Record) -> Answer {
        fault.log(&record.decision_id);
        self.metrics.fault(fault.reason(), fault.opa_reason());
        record.result = None;
        record.reason = fault.reason();
        if record.is_wanted {
            let message = fault.grpc_error().map(|(_, message)| message);
            record.error = Some(message.unwrap_or_else(|| crate::telemetry::chain(&fault)));
        }
        respond::fault(&self.settings, &fault, attributes, &record.decision_id)
    }

    async fn decide(
        &self,
        message: &[u8],
        attributes: &Attributes<'_>,
        deadline: Instant,
        record: &mut Record,
    ) -> Result<Verdict, Fault> {
        let snapshot = self.policy.current().ok_or(Fault::NoPolicy)?;
        let path = self.canonical(attributes)?;
        record.snapshot = record.is_wanted.then(|| Arc::clone(&snapshot));
        // A body that no rule looks at can be as broken as it likes, unless OPA's answer is wanted.
        let is_read = self.settings.compat.body_errors || snapshot.reads_body();
        let body = match (is_read, record.is_wanted) {
            (true, _) => BodyUse::Decision,
            (false, true) => BodyUse::Log,
            (false, false) => BodyUse::Nothing,
        };
        let document = input::build(message, attributes, &self.settings.input, body)?;
        let evidence = Evidence::gather(attributes, self.tokens.as_deref(), deadline).await;
        self.metrics.token(evidence.state_name(), evidence.rejection_reason());

        let mut members = document.members;
        if self.settings.extras {
            evidence.add_to(&mut members, attributes, path.as_deref(), self.clock.now());
        }
        let input = members.into_value();
        record.input = record.is_wanted.then(|| input.clone());
        let decision = self.evaluate(snapshot, input, deadline, record).await?;
        Ok(Verdict { decision, evidence, now: self.clock.now() })
    }

    /// The canonical path; where it is ambiguous, nothing or a refusal. Not even `extras: false` turns the refusal off.
    fn canonical<'a>(&self, attributes: &Attributes<'a>) -> Result<Option<Cow<'a, str>>, Fault> {
        let Some(http) = &attributes.http else { return Ok(None) };
        match canonical_path(http.path) {
            Ok(path) => Ok(Some(path)),
            Err(ambiguity) => {
                self.metrics.ambiguous_path();
                if self.settings.ambiguous_path == AmbiguousPath::Reject {
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
        deadline: Instant,
        record: &mut Record,
    ) -> Result<Decision, Fault> {
        let left = deadline.saturating_duration_since(Instant::now());
        let budget = self.settings.evaluation_timeout.min(left);
        if budget.is_zero() {
            return Err(Fault::Deadline);
        }
        let started = Instant::now();
        let evaluation = if snapshot.waits() {
            self.evaluate_aside(snapshot, input, budget, deadline).await?
        } else {
            snapshot.eval(&input, budget, deadline.into_std())
        };
        record.evaluation = started.elapsed();
        let evaluation = evaluation.map_err(|error| match error {
            policy::EvalError::Budget if budget < self.settings.evaluation_timeout || Instant::now() >= deadline => {
                Fault::Deadline
            }
            policy::EvalError::Budget => Fault::OverBudget,
            policy::EvalError::Conflict(message) => Fault::Conflict(message),
            policy::EvalError::Failed(message) => Fault::Evaluation(message),
        })?;
        for print in &evaluation.prints {
            tracing::info!(decision_id = record.decision_id, "{print}");
        }
        record.answers = evaluation.answers;
        let value = evaluation.value.ok_or(Fault::Undefined)?;
        record.result = record.is_wanted.then(|| value.clone());
        let dialect = if self.settings.compat.decision_keys { Dialect::Opa } else { Dialect::Stepgate };
        Decision::parse(&value, dialect).map_err(Fault::Result)
    }

    /// Evaluates on a thread that may block: the policy may wait for another server.
    async fn evaluate_aside(
        &self,
        snapshot: Arc<policy::Snapshot>,
        input: Value,
        budget: Duration,
        deadline: Instant,
    ) -> Result<Result<policy::Evaluation, policy::EvalError>, Fault> {
        let permit = tokio::time::timeout_at(deadline, Arc::clone(&self.aside).acquire_owned()).await;
        let permit = permit.map_err(|_| Fault::Deadline)?.map_err(|_| Fault::Deadline)?;
        let evaluation = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            snapshot.eval(&input, budget, deadline.into_std())
        });
        evaluation.await.map_err(|_| Fault::Panic)
    }
}

/// A new UUIDv4, as OPA gives every decision.
fn decision_id() -> String {
    Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests;
