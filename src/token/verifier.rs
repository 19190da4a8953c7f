//! From a request to the state of its token.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest::{SHA256, digest};
use tokio::time::Instant;

use super::asserted::Asserted;
use super::authn::Authn;
use super::cache::{Fingerprint, TokenCache};
use super::certificate::{self, CertificateSettings};
use super::claims::{Binding, Claims, TokenHeader, Unverified};
use super::dpop::{self, Proofs};
use super::error::TokenError;
use super::extract::{Location, find_token, without_tokens};
use super::introspection::{Endpoint, IntrospectionSettings, Introspector};
use super::issuer::{ClaimsChallenge, Issuer, IssuerSettings, KEY_WAIT, KeySource};
use super::workload;
use crate::clock::Clock;
use crate::opa::input::{Attributes, Http};
use crate::telemetry::CacheCount;
use crate::value::{Members, Value};

/// The limits of the token store.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A longer token is refused before it is looked at.
    pub token_bytes: usize,
    pub cache_bytes: u64,
    pub cache_ttl: Duration,
    pub proofs: dpop::Settings,
    pub certificates: CertificateSettings,
}

/// The state of the caller's token.
#[derive(Clone, Debug)]
pub enum TokenState {
    /// No issuers are configured: tokens mean nothing here.
    Unconfigured,
    /// No token was sent.
    Absent,
    Verified(Arc<Verified>),
    /// Verified by Envoy, where the configuration trusts it.
    Asserted(Arc<Asserted>),
    Rejected(TokenError),
}

/// The verifying party, and the period of validity.
#[derive(Debug)]
enum VerifiedBy {
    /// A key, while it is among those of its issuer.
    Key { fingerprint: [u8; 32], generation: AtomicU64 },
    /// The issuer itself, until this moment; it is asked again from `refresh` on.
    Issuer { refresh: i64, until: i64 },
}

/// A token whose signature, claims and time were right.
#[derive(Debug)]
pub struct Verified {
    issuer: Arc<Issuer>,
    claims: Claims,
    authn: Authn,
    /// `input.jwt`, ready to be handed to policies.
    document: Value,
    /// `input.workload`, where the token is that of a program.
    workload: Option<Value>,
    voucher: VerifiedBy,
    /// SHA-256 of the signing input, or of an unsigned token. The signature is left out: one of ECDSA has two forms.
    digest: [u8; 32],
    serial: u64,
    derived: Derived,
}

/// Keys that a store has derived from a token, kept with it as long as the store's key is the same.
pub trait DerivedKeys: Any + Send + Sync {}

/// The number of the store's key, and what was derived with it.
#[derive(Default)]
struct Derived(ArcSwapOption<(u64, Arc<dyn Any + Send + Sync>)>);

impl fmt::Debug for Derived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Derived")
    }
}

/// The number of the next token that is verified.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(0);

impl Verified {
    fn new(issuer: &Arc<Issuer>, claims: Claims, document: Value, voucher: VerifiedBy, digest: [u8; 32]) -> Self {
        Self {
            authn: issuer.settings.assess(claims.document()),
            workload: workload::describe(&issuer.settings, claims.document()),
            issuer: Arc::clone(issuer),
            claims,
            document,
            voucher,
            digest,
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            derived: Derived::default(),
        }
    }

    /// The same token, at no more than level `cap`.
    pub fn capped(&self, cap: usize) -> Self {
        Self {
            issuer: Arc::clone(&self.issuer),
            claims: self.claims.clone(),
            authn: self.authn.capped(cap),
            document: self.document.clone(),
            workload: self.workload.clone(),
            voucher: match &self.voucher {
                VerifiedBy::Key { fingerprint, generation } => VerifiedBy::Key {
                    fingerprint: *fingerprint,
                    generation: AtomicU64::new(generation.load(Ordering::Relaxed)),
                },
                VerifiedBy::Issuer { refresh, until } => VerifiedBy::Issuer { refresh: *refresh, until: *until },
            },
            digest: self.digest,
            // Tokens that were made for it at its own level do not count.
            serial: NEXT_SERIAL.fetch_add(1, Ordering::Relaxed),
            derived: Derived::default(),
        }
    }

    /// `iss`.
    pub fn issuer(&self) -> &str {
        &self.issuer.settings.issuer
    }

    /// The subject, by the issuer's `subject_claims`: `sub` unless configured otherwise. It is unique only beside the issuer.
    pub fn subject(&self) -> &str {
        self.claims.subject(&self.issuer.settings).unwrap_or_default()
    }

    /// When the caller authenticated, else when the token was issued, in seconds since the epoch.
    pub fn authenticated_or_issued(&self) -> Option<i64> {
        self.authn.auth_time().or_else(|| self.claims.issued())
    }

    /// `jti`, which means something only beside the issuer.
    pub fn id(&self) -> Option<&str> {
        self.claims.text("jti")
    }

    /// Identifies this verification in this process.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// When the token was issued, in seconds since the epoch.
    pub fn issued(&self) -> Option<i64> {
        self.claims.issued()
    }

    /// `exp`, in seconds since the epoch.
    pub fn expires(&self) -> i64 {
        self.claims.expires
    }

    /// The keys that `derive` makes of this token: once for each `generation` of a store's key.
    pub fn derived<K: DerivedKeys>(&self, generation: u64, derive: impl FnOnce() -> K) -> Arc<K> {
        let known = self.derived.0.load();
        let known = known.as_deref().filter(|(made_for, _)| *made_for == generation);
        if let Some(keys) = known.and_then(|(_, keys)| Arc::clone(keys).downcast().ok()) {
            return keys;
        }
        let keys = Arc::new(derive());
        self.derived.0.store(Some(Arc::new((generation, Arc::clone(&keys) as Arc<dyn Any + Send + Sync>))));
        keys
    }

    /// Identifies this token.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The token has a scope.
    pub fn has_scope(&self, wanted: &str) -> bool {
        self.claims.has_scope(wanted, &self.issuer.settings.claim_names)
    }

    /// The token is for this audience, which is one that its issuer's settings accept; `None` where they don't.
    pub fn is_for(&self, audience: &str) -> Option<bool> {
        let is_known = self.issuer.settings.audiences.iter().any(|known| known == audience);
        is_known.then(|| self.claims.is_for(audience, &self.issuer.settings))
    }

    /// The `acr_values` to request from the issuer so that its next token has at least this level.
    pub fn acr_values(&self, level: usize) -> Vec<String> {
        self.issuer.settings.assurance.acr_values(level)
    }

    /// Its issuer states that one of these values of `acr` was met, and the operator did not assign a level below `level` to it.
    pub fn has_acr(&self, wanted: &[String], level: usize) -> bool {
        let assurance = &self.issuer.settings.assurance;
        self.authn.met(wanted).any(|acr| assurance.fixed_worth(acr).is_none_or(|worth| worth >= level))
    }

    /// The claims challenge of its client, where the issuer is Entra.
    pub fn claims_challenge(&self) -> Option<&ClaimsChallenge> {
        let is_able = || self.claims.lists("xms_cc", "cp1");
        self.issuer.settings.claims_challenge.as_ref().filter(|_| is_able())
    }

    /// `input.jwt`.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// `input.workload`.
    pub fn workload(&self) -> Option<&Value> {
        self.workload.as_ref()
    }

    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The token is sender-constrained, and the proof was verified.
    pub fn is_bound(&self) -> bool {
        matches!(self.claims.binding(), Some(Binding::Key(_)))
    }

    pub fn authn(&self) -> &Authn {
        &self.authn
    }

    /// A token with its issuer's answer `body` (RFC 7662 section 2.2).
    pub(super) fn introspected(issuer: &Arc<Issuer>, body: &[u8], token: &str, now: i64) -> Result<Self, TokenError> {
        let own = Unverified::parse(token).ok().map(|jwt| jwt.payload);
        let claims = Claims::of_answer(body, own.as_ref(), &issuer.settings, now)?;
        let ttl = issuer.settings.introspection.as_ref().map_or(0, |settings| settings.ttl.as_secs());
        let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
        let until = now.saturating_add(ttl);
        let refresh = now.saturating_add((ttl.saturating_mul(3) / 4).max(1));
        let document = document(issuer, None, &claims);
        let voucher = VerifiedBy::Issuer { refresh, until };
        Ok(Self::new(issuer, claims, document, voucher, digest_of(token)))
    }

    /// Its introspection answer should be refreshed while it is still valid.
    fn is_ending(&self, now: i64) -> bool {
        matches!(self.voucher, VerifiedBy::Issuer { refresh, .. } if now >= refresh)
    }

    /// The longest that it is cached beyond the cache's own limit: its last answer may count while the issuer is away.
    pub(super) fn cached_at_least(&self) -> Duration {
        let settings = self.issuer.settings.introspection.as_ref();
        match (&self.voucher, settings) {
            (VerifiedBy::Issuer { .. }, Some(settings)) => settings.ttl.saturating_add(settings.stale_if_error),
            _ => Duration::ZERO,
        }
    }

    /// The last introspection answer counts although the issuer does not answer.
    pub(super) fn counts_while_away(&self, now: i64) -> bool {
        let settings = self.issuer.settings.introspection.as_ref();
        let beyond =
            settings.map_or(0, |settings| i64::try_from(settings.stale_if_error.as_secs()).unwrap_or(i64::MAX));
        matches!(self.voucher, VerifiedBy::Issuer { until, .. } if now < until.saturating_add(beyond))
            && now < self.claims.expires
    }

    /// Until when it counts, in seconds since the epoch.
    pub fn expires_with_leeway(&self) -> i64 {
        self.claims.expires.saturating_add(self.leeway())
    }

    fn leeway(&self) -> i64 {
        self.issuer.settings.leeway_seconds()
    }

    /// Everything about a cached token that may have changed since it was verified.
    fn recheck(&self, now: i64, place: &Location) -> Result<(), Stale> {
        if !self.issuer.settings.locations.contains(place) {
            return Err(Stale::Refused(TokenError::WrongPlace));
        }
        self.claims.check_time(now, self.leeway()).map_err(Stale::Refused)?;
        self.claims.check_audience(&self.issuer.settings).map_err(Stale::Refused)?;
        let is_good = match &self.voucher {
            VerifiedBy::Issuer { until, .. } => now < *until,
            VerifiedBy::Key { .. } if self.issuer.is_stale(now) => false,
            VerifiedBy::Key { fingerprint, generation: known } => {
                let generation = self.issuer.generation();
                let is_known = known.load(Ordering::Acquire) == generation
                    || self.issuer.keys(now).is_some_and(|keys| keys.holds(fingerprint));
                if is_known {
                    known.store(generation, Ordering::Release);
                }
                is_known
            }
        };
        if is_good { Ok(()) } else { Err(Stale::Verify) }
    }
}

/// The cache's answer about a token.
enum Cached {
    Known(TokenState),
    /// It must be verified; `before` is what its issuer said the last time.
    Unknown {
        before: Option<Arc<Verified>>,
    },
}

/// The token has the three parts of a signed JWT, and a header that begins as one of JSON.
fn looks_like_jwt(token: &str) -> bool {
    let parts: Vec<&str> = token.split('.').collect();
    // `{"`, and `{` before white space, in base64url.
    parts.len() == 3 && (token.starts_with("ey") || token.starts_with("ew"))
}

/// Why a cache entry does not answer.
enum Stale {
    Refused(TokenError),
    /// It must be verified again.
    Verify,
}

/// Verifies tokens of the configured issuers.
#[derive(Debug)]
pub struct Verifier {
    issuers: Vec<Arc<Issuer>>,
    /// Every place that any issuer uses.
    locations: Vec<Location>,
    cache: Arc<TokenCache>,
    introspectors: Vec<Arc<Introspector>>,
    token_bytes: usize,
    proofs: Proofs,
    certificates: CertificateSettings,
    clock: Clock,
    count: CacheCount,
}

impl Verifier {
    pub fn new(issuers: Vec<Arc<Issuer>>, settings: &Settings, clock: Clock) -> Self {
        let mut locations = Vec::new();
        for location in issuers.iter().flat_map(|issuer| &issuer.settings.locations) {
            if !locations.contains(location) {
                locations.push(location.clone());
            }
        }
        let cache = Arc::new(TokenCache::new(settings.cache_bytes, settings.cache_ttl, clock.clone()));
        let proofs = Proofs::new(settings.proofs.clone());
        Self {
            issuers,
            locations,
            cache,
            introspectors: Vec::new(),
            token_bytes: settings.token_bytes,
            proofs,
            certificates: settings.certificates,
            clock,
            count: CacheCount::default(),
        }
    }

    /// Tokens of some issuer come in the header of this name, in lower case.
    pub fn reads_header(&self, name: &str) -> bool {
        self.locations.iter().any(|location| location.header() == Some(name))
    }

    /// The header of WebSocket subprotocols without tokens, where there is one in it.
    pub fn subprotocols_without_tokens(&self, http: &Http<'_>) -> Option<String> {
        // Every check asks, and few configurations have such tokens.
        if !self.locations.iter().any(|location| matches!(location, Location::WebSocketProtocol { .. })) {
            return None;
        }
        without_tokens(http, &self.locations)
    }

    /// The same, counting what its cache is good for.
    pub fn counting(self, count: CacheCount) -> Self {
        Self { count, ..self }
    }

    /// The same, asking about tokens that are no JWTs; `endpoint` leads to an issuer that has `introspection`.
    pub fn with_introspection(
        mut self,
        endpoint: impl Fn(&IntrospectionSettings) -> Option<Arc<dyn Endpoint>>,
    ) -> Self {
        for issuer in &self.issuers {
            if let Some(endpoint) = issuer.settings.introspection.as_ref().and_then(&endpoint) {
                let (issuer, cache) = (Arc::clone(issuer), Arc::clone(&self.cache));
                self.introspectors.push(Arc::new(Introspector::new(issuer, endpoint, cache, self.clock.clone())));
            }
        }
        self
    }

    /// The `acr_values` to request for at least this level, where only one issuer of those `accepted` (one of each list; all without any)
    /// gives tokens to people.
    pub fn acr_values(&self, level: usize, accepted: &[Vec<String>]) -> Vec<String> {
        let is_accepted = |issuer: &IssuerSettings| accepted.iter().all(|names| names.contains(&issuer.issuer));
        let is_of_people = |issuer: &IssuerSettings| !issuer.preset.is_of_workloads() && is_accepted(issuer);
        let mut of_people = self.issuers.iter().filter(|issuer| is_of_people(&issuer.settings));
        match (of_people.next(), of_people.next()) {
            (Some(only), None) if level > 0 => only.settings.assurance.acr_values(level),
            _ => Vec::new(),
        }
    }

    /// Every issuer that has keys has current ones.
    pub fn has_keys(&self) -> bool {
        let now = self.clock.now();
        let mut with_keys = self.issuers.iter().filter(|issuer| issuer.settings.keys != KeySource::Introspection);
        with_keys.all(|issuer| issuer.keys(now).is_some())
    }

    /// The state of the request's token. Waits only when keys are missing, and not past `deadline`.
    pub async fn verify(&self, attributes: &Attributes<'_>, deadline: Instant) -> TokenState {
        let Some(http) = &attributes.http else { return TokenState::Absent };
        let (token, place) = match find_token(http, &self.locations) {
            Ok(Some(found)) => found,
            Ok(None) => return TokenState::Absent,
            Err(error) => return TokenState::Rejected(error),
        };
        let token = token.as_ref();
        if token.len() > self.token_bytes {
            return TokenState::Rejected(TokenError::TooLarge);
        }
        let fingerprint = self.cache.fingerprint(token);
        let state = match self.cached(&fingerprint, place) {
            Cached::Known(state) => {
                self.count.hit();
                if let TokenState::Verified(verified) = &state
                    && verified.is_ending(self.clock.now())
                    && let Some(introspector) = self.introspector(token, place)
                {
                    introspector.refresh(token, fingerprint);
                }
                state
            }
            Cached::Unknown { before } => {
                self.count.miss();
                // Boxed, so that a check whose token is remembered stays small: its future is moved several times.
                let verified = match self.introspector(token, place) {
                    Some(introspector) => {
                        match Box::pin(self.check_before_asking(&introspector.issuer, token, place, deadline)).await {
                            Ok(()) => Box::pin(introspector.ask(token, fingerprint, deadline, before)).await,
                            Err(error) => Err(error),
                        }
                    }
                    None => Box::pin(self.verify_afresh(token, place, deadline)).await.map(|verified| {
                        let verified = Arc::new(verified);
                        self.cache.insert(fingerprint, token.len(), Arc::clone(&verified));
                        verified
                    }),
                };
                verified.map_or_else(TokenState::Rejected, TokenState::Verified)
            }
        };
        // A cached token is no proof of its sender: possession is proven with each request.
        match state {
            TokenState::Verified(verified) => match self.prove(attributes, token, place, &verified) {
                Ok(()) => TokenState::Verified(verified),
                Err(error) => TokenState::Rejected(error),
            },
            other => other,
        }
    }

    /// Verifies that the sender of a bound token holds its key.
    fn prove(
        &self,
        attributes: &Attributes<'_>,
        token: &str,
        place: &Location,
        verified: &Verified,
    ) -> Result<(), TokenError> {
        match (verified.claims.binding(), *place == Location::dpop(), &attributes.http) {
            (None, false, _) => Ok(()),
            (None | Some(Binding::Certificate(_)), true, _) => Err(TokenError::NotBound),
            (Some(Binding::Key(thumbprint)), true, Some(http)) => {
                let was_counted = self.was_counted(attributes);
                self.proofs.check(http, token, thumbprint, was_counted, self.clock.now())
            }
            (Some(Binding::Certificate(wanted)), false, _) => {
                match certificate::thumbprint(attributes, self.certificates) {
                    Some(shown) if shown == wanted => Ok(()),
                    _ => Err(TokenError::WrongCertificate),
                }
            }
            (Some(_), ..) => Err(TokenError::Bound),
        }
    }

    /// The workload of the connection, by its certificate and never by a header, has already counted proofs and single-use tokens.
    pub fn was_counted(&self, attributes: &Attributes<'_>) -> bool {
        !attributes.source_principal.is_empty() && self.proofs.is_counted_by(attributes.source_principal)
    }

    /// The introspection client for a token of this location: for opaque tokens, and for JWTs where its issuer says so.
    fn introspector(&self, token: &str, place: &Location) -> Option<&Arc<Introspector>> {
        if self.introspectors.is_empty() {
            return None;
        }
        let mut here = self.introspectors.iter().filter(|it| it.issuer.settings.locations.contains(place));
        match Unverified::parse(token) {
            // Opaque tokens may have dots, too.
            Err(_) if !looks_like_jwt(token) => here.next(),
            Err(_) => here.find(|introspector| introspector.is_for_all()),
            Ok(jwt) => here.find(|it| it.is_for_all() && jwt.issuer() == Some(&it.issuer.settings.issuer)),
        }
    }

    /// Checks a JWT before its issuer is asked: all of it where the issuer has keys, else its kind, time and audience.
    async fn check_before_asking(
        &self,
        issuer: &Issuer,
        token: &str,
        place: &Location,
        deadline: Instant,
    ) -> Result<(), TokenError> {
        let Ok(unverified) = Unverified::parse(token) else { return Ok(()) };
        if issuer.settings.keys != KeySource::Introspection {
            return self.verify_afresh(token, place, deadline).await.map(|_| ());
        }
        unverified.header.check_type(&issuer.settings)?;
        Claims::check_unsigned(
            &unverified.payload,
            unverified.header.typ.as_deref(),
            &issuer.settings,
            self.clock.now(),
        )
    }

    fn cached(&self, fingerprint: &Fingerprint, place: &Location) -> Cached {
        let Some(verified) = self.cache.get(fingerprint) else { return Cached::Unknown { before: None } };
        match verified.recheck(self.clock.now(), place) {
            Ok(()) => Cached::Known(TokenState::Verified(verified)),
            // It is kept for the time that its issuer may be away.
            Err(Stale::Verify) if matches!(verified.voucher, VerifiedBy::Issuer { .. }) => {
                Cached::Unknown { before: Some(verified) }
            }
            Err(stale) => {
                self.cache.remove(fingerprint);
                match stale {
                    Stale::Refused(error) => Cached::Known(TokenState::Rejected(error)),
                    Stale::Verify => Cached::Unknown { before: None },
                }
            }
        }
    }

    async fn verify_afresh(&self, token: &str, place: &Location, deadline: Instant) -> Result<Verified, TokenError> {
        let unverified = Unverified::parse(token)?;
        // Everything that can be refused without a key is refused before one is looked for, so that tokens of
        // unauthenticated clients cannot use up an issuer's refreshes.
        let named = |name: &str| self.issuers.iter().find(|issuer| issuer.settings.issuer == name);
        // The trust domain of a SPIFFE ID says whose keys count, whatever `iss` says (JWT-SVID section 4).
        let of_domain = unverified.trust_domain().and_then(|domain| named(&domain));
        let issuer = of_domain
            .or_else(|| unverified.issuer().and_then(named))
            .filter(|issuer| issuer.settings.keys != KeySource::Introspection)
            .ok_or(TokenError::UnknownIssuer)?;
        if !issuer.settings.locations.contains(place) {
            return Err(TokenError::WrongPlace);
        }
        unverified.header.check(&issuer.settings)?;
        let Unverified { header, payload, signed, signature } = unverified;
        let claims = Claims::check(payload, header.typ.as_deref(), &issuer.settings, self.clock.now())?;

        // A check does not wait longer for keys.
        let deadline = deadline.min(Instant::now() + KEY_WAIT);
        let (key, generation) = issuer.verifying_key(&header, signed, signature, &self.clock, deadline).await?;
        let document = document(issuer, Some(&header), &claims);
        let voucher = VerifiedBy::Key { fingerprint: key, generation: AtomicU64::new(generation) };
        Ok(Verified::new(issuer, claims, document, voucher, digest_of(signed)))
    }
}

/// SHA-256.
pub(super) fn digest_of(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    bytes
}

/// `input.jwt`; a token that only its issuer can read has no header.
fn document(issuer: &Issuer, header: Option<&TokenHeader>, claims: &Claims) -> Value {
    let mut document = Members::default();
    document.put_text("state", Value::from("verified"));
    document.put_text("issuer", Value::from(issuer.settings.issuer.as_str()));
    if let Some(header) = header {
        let mut head = Members::default();
        head.put_text("alg", Value::from(header.alg.name()));
        for (name, value) in [("kid", &header.kid), ("typ", &header.typ)] {
            if let Some(value) = value {
                head.put_text(name, Value::from(value.as_str()));
            }
        }
        document.put_text("header", head.into_value());
    }
    document.put_text("claims", claims.document().clone());
    document.into_value()
}
