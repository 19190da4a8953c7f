//! Tokens that only their issuer can read (RFC 7662): it is asked, and what it says is remembered for a moment.
//!
//! Nothing here does I/O: the client is injected as [`Endpoint`]. An answer that comes too late for its request is cached for
//! the next one. A token that is refused for what the issuer says is refused for a short time without asking again; an issuer that
//! does not answer says nothing about a token. An answer that is in use is asked for again before it ends, and with `stale_if_error` the
//! last one counts while the issuer is away.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::cache::{Fingerprint, TokenCache};
use super::error::TokenError;
use super::issuer::Issuer;
use super::verifier::Verified;
use crate::clock::Clock;
use crate::secret::Secret;

/// Questions under way at the same time; further tokens are answered 503.
const MAX_IN_FLIGHT: usize = 256;
/// Those of them that may be about tokens never seen before: made-up ones must not keep out those that are in use.
const MAX_NEW_IN_FLIGHT: usize = MAX_IN_FLIGHT / 2;
/// The period without another request after a failed one, in which the last answer counts.
const FAILURE_SECONDS: i64 = 1;
/// The part of a check's remaining time that introspection may use at most, so that the policy can still decide without an answer.
const WAIT_PART: (u32, u32) = (3, 4);
/// Tokens that are known to be refused.
const MAX_REFUSED: u64 = 10_000;
/// Default lifetime of a cached inactive answer.
pub const INACTIVE_TTL: Duration = Duration::from_secs(10);

/// `issuers[].introspection`.
#[derive(Clone, Debug)]
pub struct IntrospectionSettings {
    /// One of `services`, with the credentials of the protected resource.
    pub service: String,
    pub resource: String,
    /// The lifetime of a cached active answer, shortened by `exp`.
    pub ttl: Duration,
    /// Accept an answer without `aud`: the issuer gives tokens to one API only.
    pub may_lack_audience: bool,
    /// The longest that a check waits for an answer, and never more than three quarters of its remaining time.
    pub timeout: Option<Duration>,
    /// Extends the last active answer beyond `ttl` while the issuer does not answer, never past `exp`.
    pub stale_if_error: Duration,
    /// Lifetime of a cached inactive answer.
    pub inactive_ttl: Duration,
    /// Introspect JWTs as well.
    pub is_for_all: bool,
    /// The value of `Authorization`, where the client of the protected resource has credentials of its own.
    pub authorization: Option<Secret<String>>,
}

impl IntrospectionSettings {
    /// At a service, with the defaults of everything else.
    pub fn new(service: &str) -> Self {
        Self {
            service: service.to_owned(),
            resource: "introspect".to_owned(),
            ttl: Duration::from_secs(60),
            may_lack_audience: false,
            timeout: None,
            stale_if_error: Duration::ZERO,
            inactive_ttl: INACTIVE_TTL,
            is_for_all: false,
            authorization: None,
        }
    }
}

/// Takes the answer's body; nothing when there is none.
pub type Done = Box<dyn FnOnce(Option<Vec<u8>>) + Send>;

/// Asks an issuer, and calls back once.
pub trait Endpoint: fmt::Debug + Send + Sync {
    fn ask(&self, token: &str, done: Done);
}

type Answer = Result<Arc<Verified>, TokenError>;

/// Asks one issuer about its tokens.
#[derive(Debug)]
pub struct Introspector {
    pub issuer: Arc<Issuer>,
    endpoint: Arc<dyn Endpoint>,
    cache: Arc<TokenCache>,
    /// Tokens that are refused, each with why.
    refused: Cache<Fingerprint, TokenError>,
    in_flight: Mutex<InFlight>,
    /// When the issuer last did not answer, in seconds since the epoch.
    failed: AtomicI64,
    clock: Clock,
}

/// Questions under way.
#[derive(Debug, Default)]
struct InFlight {
    answers: HashMap<Fingerprint, Question>,
    /// Those of them about tokens never seen before.
    new: HashSet<Fingerprint>,
}

/// The future answer to a question, and when it was asked.
#[derive(Clone, Debug)]
struct Question {
    answer: watch::Receiver<Option<Answer>>,
    asked: Instant,
}

/// A question that is under way until this is dropped, whatever becomes of it.
struct Flight {
    of: Arc<Introspector>,
    fingerprint: Fingerprint,
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut in_flight = self.of.in_flight.lock();
        in_flight.answers.remove(&self.fingerprint);
        in_flight.new.remove(&self.fingerprint);
    }
}

impl Introspector {
    pub fn new(issuer: Arc<Issuer>, endpoint: Arc<dyn Endpoint>, cache: Arc<TokenCache>, clock: Clock) -> Self {
        let inactive_ttl =
            issuer.settings.introspection.as_ref().map_or(INACTIVE_TTL, |settings| settings.inactive_ttl);
        let refused = Cache::builder().max_capacity(MAX_REFUSED).time_to_live(inactive_ttl).build();
        let failed = AtomicI64::new(i64::MIN);
        Self { issuer, endpoint, cache, refused, in_flight: Mutex::default(), failed, clock }
    }

    /// JWTs of the issuer are introspected as well.
    pub fn is_for_all(&self) -> bool {
        self.issuer.settings.introspection.as_ref().is_some_and(|settings| settings.is_for_all)
    }

    /// Refreshes an answer that will expire soon, in the background.
    pub fn refresh(self: &Arc<Self>, token: &str, fingerprint: Fingerprint) {
        if !self.has_failed() {
            // Without room it is asked about when its answer has ended.
            let _ = self.answer_to(token, fingerprint, false);
        }
    }

    /// The issuer did not answer a moment ago.
    fn has_failed(&self) -> bool {
        (0..FAILURE_SECONDS).contains(&self.clock.now().saturating_sub(self.failed.load(Ordering::Acquire)))
    }

    /// The issuer's answer about a token. One request serves all waiters, and none waits longer than `timeout` or past `deadline`. `before` is
    /// the last known answer.
    pub async fn ask(
        self: &Arc<Self>,
        token: &str,
        fingerprint: Fingerprint,
        deadline: Instant,
        before: Option<Arc<Verified>>,
    ) -> Answer {
        if let Some(error) = self.refused.get(&fingerprint) {
            return Err(error);
        }
        let stale = before.clone().filter(|before| before.counts_while_away(self.clock.now()));
        if let (Some(stale), true) = (&stale, self.has_failed()) {
            return Ok(Arc::clone(stale));
        }
        let answer = match self.answer_to(token, fingerprint, before.is_none()) {
            Err(error) => Err(error),
            Ok(question) => {
                let now = Instant::now();
                let (part, whole) = WAIT_PART;
                let most = deadline.saturating_duration_since(now) / whole * part;
                let timeout = self.issuer.settings.introspection.as_ref().and_then(|settings| settings.timeout);
                let wait = timeout.map_or(most, |timeout| timeout.min(most));
                // A question that others have waited for in vain.
                let is_hanging = stale.is_some() && now.saturating_duration_since(question.asked) >= wait;
                let wait = if is_hanging { Duration::ZERO } else { wait };
                self.wait_for(question, wait).await
            }
        };
        match (answer, stale) {
            (Err(TokenError::IntrospectionUnavailable), Some(stale)) => Ok(stale),
            (answer, _) => answer,
        }
    }

    async fn wait_for(&self, mut question: Question, wait: Duration) -> Answer {
        match tokio::time::timeout(wait, question.answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Err(TokenError::IntrospectionUnavailable)),
            _ => {
                self.failed.store(self.clock.now(), Ordering::Release);
                Err(TokenError::IntrospectionUnavailable)
            }
        }
    }

    /// Where the answer will be.
    fn answer_to(
        self: &Arc<Self>,
        token: &str,
        fingerprint: Fingerprint,
        is_new: bool,
    ) -> Result<Question, TokenError> {
        let (sender, answer) = watch::channel(None);
        let question = Question { answer, asked: Instant::now() };
        {
            let mut in_flight = self.in_flight.lock();
            if let Some(known) = in_flight.answers.get(&fingerprint) {
                return Ok(known.clone());
            }
            if in_flight.answers.len() >= MAX_IN_FLIGHT || (is_new && in_flight.new.len() >= MAX_NEW_IN_FLIGHT) {
                return Err(TokenError::IntrospectionUnavailable);
            }
            in_flight.answers.insert(fingerprint, question.clone());
            if is_new {
                in_flight.new.insert(fingerprint);
            }
        }
        let flight = Flight { of: Arc::clone(self), fingerprint };
        let asked: Arc<str> = token.into();
        self.endpoint.ask(
            token,
            Box::new(move |body| {
                let own = &flight.of;
                let answer = own.read(body.as_deref(), &asked);
                match &answer {
                    Ok(verified) => own.cache.insert(fingerprint, asked.len(), Arc::clone(verified)),
                    Err(error) if !error.is_temporary() => {
                        own.refused.insert(fingerprint, *error);
                        own.cache.remove(&fingerprint);
                    }
                    Err(_) => own.failed.store(own.clock.now(), Ordering::Release),
                }
                sender.send_replace(Some(answer));
            }),
        );
        Ok(question)
    }

    fn read(&self, body: Option<&[u8]>, token: &str) -> Answer {
        let body = body.ok_or(TokenError::IntrospectionUnavailable)?;
        Verified::introspected(&self.issuer, body, token, self.clock.now()).map(Arc::new)
    }
}
