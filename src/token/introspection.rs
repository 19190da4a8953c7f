//! Tokens that only their issuer can read (RFC 7662): it is asked, and what it says is remembered for a moment.
//!
//! Nothing here does I/O: whoever asks is given with [`Endpoint`]. An answer that comes too late for its request is kept for
//! the next one. A token that is refused for what the issuer says is refused for a short time without asking again; an issuer that
//! does not answer says nothing about a token.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::cache::{Fingerprint, TokenCache};
use super::error::TokenError;
use super::issuer::{Issuer, KEY_WAIT};
use super::verifier::{Verified, digest_of};
use crate::clock::Clock;

/// Questions under way at the same time; further tokens are answered 503.
const MAX_IN_FLIGHT: usize = 256;
/// Tokens that are known to be refused.
const MAX_REFUSED: u64 = 10_000;
/// How long a token that is refused is not asked about again.
const REFUSED_TTL: Duration = Duration::from_secs(10);

/// `issuers[].introspection`.
#[derive(Clone, Debug)]
pub struct IntrospectionSettings {
    /// One of `services`, with the credentials of the protected resource.
    pub service: String,
    pub resource: String,
    /// How long an answer is believed, `exp` or not.
    pub ttl: Duration,
    /// Whether an answer without `aud` is taken: the issuer gives tokens to one API only.
    pub may_lack_audience: bool,
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
    in_flight: Mutex<HashMap<Fingerprint, watch::Receiver<Option<Answer>>>>,
    clock: Clock,
}

/// A question that is under way until this is dropped, whatever becomes of it.
struct Flight {
    of: Arc<Introspector>,
    fingerprint: Fingerprint,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.of.in_flight.lock().remove(&self.fingerprint);
    }
}

impl Introspector {
    pub fn new(issuer: Arc<Issuer>, endpoint: Arc<dyn Endpoint>, cache: Arc<TokenCache>, clock: Clock) -> Self {
        let refused = Cache::builder().max_capacity(MAX_REFUSED).time_to_live(REFUSED_TTL).build();
        Self { issuer, endpoint, cache, refused, in_flight: Mutex::default(), clock }
    }

    /// What the issuer says of a token. Asks once, however many wait, and waits neither long nor past `deadline`.
    pub async fn ask(self: &Arc<Self>, token: &str, fingerprint: Fingerprint, deadline: Instant) -> Answer {
        if let Some(error) = self.refused.get(&fingerprint) {
            return Err(error);
        }
        let mut answer = self.answer_to(token, fingerprint)?;
        let wait = deadline.min(Instant::now() + KEY_WAIT);
        match tokio::time::timeout_at(wait, answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Err(TokenError::IntrospectionUnavailable)),
            _ => Err(TokenError::IntrospectionUnavailable),
        }
    }

    /// Where the answer will be.
    fn answer_to(
        self: &Arc<Self>,
        token: &str,
        fingerprint: Fingerprint,
    ) -> Result<watch::Receiver<Option<Answer>>, TokenError> {
        let (told, answer) = watch::channel(None);
        {
            let mut in_flight = self.in_flight.lock();
            if let Some(known) = in_flight.get(&fingerprint) {
                return Ok(known.clone());
            }
            if in_flight.len() >= MAX_IN_FLIGHT {
                return Err(TokenError::IntrospectionUnavailable);
            }
            in_flight.insert(fingerprint, answer.clone());
        }
        let flight = Flight { of: Arc::clone(self), fingerprint };
        let (bytes, digest) = (token.len(), digest_of(token));
        self.endpoint.ask(
            token,
            Box::new(move |body| {
                let own = &flight.of;
                let answer = own.read(body.as_deref(), digest);
                match &answer {
                    Ok(verified) => own.cache.insert(fingerprint, bytes, Arc::clone(verified)),
                    Err(error) if !error.is_temporary() => own.refused.insert(fingerprint, *error),
                    Err(_) => {}
                }
                told.send_replace(Some(answer));
            }),
        );
        Ok(answer)
    }

    fn read(&self, body: Option<&[u8]>, digest: [u8; 32]) -> Answer {
        let body = body.ok_or(TokenError::IntrospectionUnavailable)?;
        Verified::introspected(&self.issuer, body, digest, self.clock.now()).map(Arc::new)
    }
}
