//! One issuer: its settings, its keys as they are now, and the gate through which a token may ask for newer ones.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use stepgate_jose::Algorithm;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::assurance::{AssuranceTable, Preset};
use super::authn::Authn;
use super::claims::{Profile, TokenHeader};
use super::error::TokenError;
use super::extract::Location;
use super::introspection::IntrospectionSettings;
use super::keyset::KeySet;
use crate::clock::Clock;
use crate::value::Value;

/// The least time between two refreshes that tokens ask for.
pub const REFRESH_GATE_SECONDS: i64 = 30;
/// The longest that keys count without their source having confirmed them: an outage is bridged, a takeover of keys that
/// were withdrawn meanwhile is not bridged for ever.
pub const MAX_STALE_SECONDS: i64 = 24 * 3_600;
/// The longest wait of a check for keys.
pub const KEY_WAIT: Duration = Duration::from_millis(100);

/// Where an issuer's keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    JwksUrl(String),
    /// The URL of an OpenID provider configuration (OpenID Connect Discovery section 4).
    Discovery(String),
    JwksFile(PathBuf),
    /// A key set in the configuration itself.
    Inline(String),
    /// A path below one of `services`.
    Service {
        name: String,
        resource: String,
    },
    /// None: the issuer is asked about its tokens.
    Introspection,
}

/// One entry of `plugins.stepgate.issuers`.
#[derive(Clone, Debug)]
pub struct IssuerSettings {
    /// Compared to `iss` byte for byte.
    pub issuer: String,
    pub audiences: Vec<String>,
    pub algorithms: Vec<Algorithm>,
    pub keys: KeySource,
    /// Clock skew granted to `exp`, `nbf` and `iat`.
    pub leeway: Duration,
    pub profile: Profile,
    /// The longest from `iat` to `exp`.
    pub max_lifetime: Option<Duration>,
    pub locations: Vec<Location>,
    pub preset: Preset,
    pub audience_claim: AudienceClaim,
    /// The claims that may name the caller, the first that is there counts.
    pub subject_claims: Vec<String>,
    pub claim_names: ClaimNames,
    pub assurance: AssuranceTable,
    pub claims_challenge: Option<ClaimsChallenge>,
    /// Introspection of tokens that are no JWTs, if configured.
    pub introspection: Option<IntrospectionSettings>,
}

/// Which claim says whom a token is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AudienceClaim {
    #[default]
    Audience,
    /// As in access tokens of Amazon Cognito, which have no `aud`.
    ClientId,
}

impl AudienceClaim {
    pub fn name(self) -> &'static str {
        match self {
            Self::Audience => "aud",
            Self::ClientId => "client_id",
        }
    }
}

/// Claims under names of the issuer's own; the usual ones then mean nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimNames {
    pub acr: Option<String>,
    pub amr: Option<String>,
    pub auth_time: Option<String>,
    pub scope: Option<String>,
}

impl IssuerSettings {
    /// An issuer of which nothing more is known: no audience, no algorithm, no leeway, tokens after `Authorization: Bearer`.
    pub fn new(issuer: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            audiences: Vec::new(),
            algorithms: Vec::new(),
            keys: KeySource::Inline(String::new()),
            leeway: Duration::ZERO,
            profile: Profile::Legacy,
            max_lifetime: None,
            locations: vec![Location::bearer()],
            preset: Preset::Generic,
            audience_claim: AudienceClaim::Audience,
            subject_claims: vec!["sub".to_owned()],
            claim_names: ClaimNames::default(),
            assurance: AssuranceTable::default(),
            claims_challenge: None,
            introspection: None,
        }
    }

    pub fn leeway_seconds(&self) -> i64 {
        i64::try_from(self.leeway.as_secs()).unwrap_or(i64::MAX)
    }

    /// The authentication level that the claims of a verified token prove.
    pub fn assess(&self, claims: &Value) -> Authn {
        self.assurance.assess(claims, &self.claim_names, self.leeway_seconds())
    }
}

/// The claims challenge of Microsoft Entra (`insufficient_claims`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimsChallenge {
    /// The application that this API is registered as.
    pub client_id: String,
    pub authorization_uri: String,
}

/// Asks the key feed to refresh the keys of one issuer now.
#[derive(Debug)]
pub struct RefreshRequest;

/// An issuer with its present keys.
#[derive(Debug)]
pub struct Issuer {
    pub settings: IssuerSettings,
    keys: ArcSwapOption<KeySet>,
    /// When the source last confirmed them, in seconds since the epoch.
    confirmed: AtomicI64,
    /// Grows with every new key set.
    generation: AtomicU64,
    /// When a token last made the feed refresh, in seconds since the epoch.
    last_asked: AtomicI64,
    ask: mpsc::Sender<RefreshRequest>,
    in_flight: AtomicBool,
    /// Counts refreshes that have ended, well or badly.
    ended: watch::Sender<u64>,
}

impl Issuer {
    /// An issuer without keys, and the receiving end of its refresh requests.
    pub fn new(settings: IssuerSettings) -> (Arc<Self>, mpsc::Receiver<RefreshRequest>) {
        // One waiting request is enough: a refresh serves everybody who asked before it began.
        let (ask, asked) = mpsc::channel(1);
        let issuer = Self {
            settings,
            keys: ArcSwapOption::empty(),
            confirmed: AtomicI64::new(i64::MAX),
            generation: AtomicU64::new(0),
            last_asked: AtomicI64::new(i64::MIN),
            ask,
            in_flight: AtomicBool::new(false),
            ended: watch::Sender::new(0),
        };
        (Arc::new(issuer), asked)
    }

    /// The keys that count at `now`: none before the first came, none once they are stale.
    pub fn keys(&self, now: i64) -> Option<Arc<KeySet>> {
        if self.is_stale(now) { None } else { self.keys.load_full() }
    }

    /// The source has been silent for too long.
    pub fn is_stale(&self, now: i64) -> bool {
        now.saturating_sub(self.confirmed.load(Ordering::Acquire)) > MAX_STALE_SECONDS
    }

    /// The source gave its keys so recently that it is not asked again.
    pub fn is_fresh(&self, now: i64) -> bool {
        now.saturating_sub(self.confirmed.load(Ordering::Acquire)) <= REFRESH_GATE_SECONDS
    }

    /// Says that the source has just been asked and gave its keys.
    pub fn confirm(&self, now: i64) {
        self.confirmed.store(now, Ordering::Release);
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Keys were loaded at least once.
    pub fn has_keys(&self) -> bool {
        self.keys.load().is_some()
    }

    /// Replaces the key set as a whole; true if it holds other keys than the one before.
    pub fn replace_keys(&self, keys: KeySet) -> bool {
        let before = self.keys.load_full();
        let is_new = before.is_none_or(|before| before.fingerprints() != keys.fingerprints());
        self.keys.store(Some(Arc::new(keys)));
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.refresh_ended();
        is_new
    }

    /// Announces that a refresh is under way; its waiters wait for the outcome.
    pub fn refresh_begins(&self) {
        self.in_flight.store(true, Ordering::Release);
    }

    /// Says that a refresh ended, with new keys or without; the last good ones stay.
    pub fn refresh_ended(&self) {
        self.in_flight.store(false, Ordering::Release);
        self.ended.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Asks for newer keys and waits until a refresh has ended or `deadline` has come. Refused without waiting when
    /// a token has made the feed refresh less than `REFRESH_GATE_SECONDS` ago and no refresh is under way.
    pub async fn refresh(&self, now: i64, deadline: Instant) {
        let mut ended = self.ended.subscribe();
        let asked = self.last_asked.load(Ordering::Acquire);
        // A moment in the future means that the clock was set back; the gate opens rather than staying shut.
        let open = !(0..REFRESH_GATE_SECONDS).contains(&now.saturating_sub(asked));
        if open && self.last_asked.compare_exchange(asked, now, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.refresh_begins();
            // A full channel means that a request is waiting already.
            let _ = self.ask.try_send(RefreshRequest);
        } else if !self.in_flight.load(Ordering::Acquire) {
            return;
        }
        let _ = tokio::time::timeout_at(deadline, ended.changed()).await;
    }

    /// The key that verifies the signature, and the number of its key set. A token that names an unknown key, or comes before any key
    /// was loaded, may wait for one refresh until `deadline`.
    pub(super) async fn verifying_key(
        &self,
        header: &TokenHeader,
        signed: &str,
        signature: &str,
        clock: &Clock,
        deadline: Instant,
    ) -> Result<([u8; 32], u64), TokenError> {
        for refreshed in [false, true] {
            let generation = self.generation();
            let keys = self.keys(clock.now());
            let failure = match keys.as_deref().map(|keys| try_keys(keys, header, signed, signature)) {
                Some(Ok(key)) => return Ok((key, generation)),
                Some(Err(failure)) => failure,
                None => TokenError::KeysUnavailable,
            };
            // The right key may just not be here yet, also under a known name: a restored provider has new keys under old names. The gate
            // bounds what made-up tokens can bring about.
            if refreshed {
                return Err(failure);
            }
            self.refresh(clock.now(), deadline).await;
        }
        Err(TokenError::UnknownKey)
    }
}

fn try_keys(keys: &KeySet, header: &TokenHeader, signed: &str, signature: &str) -> Result<[u8; 32], TokenError> {
    let mut tried = false;
    for key in keys.candidates(header.kid.as_deref(), header.alg) {
        tried = true;
        if key.verify(header.alg, signed.as_bytes(), signature) {
            return Ok(key.fingerprint());
        }
    }
    Err(if tried { TokenError::BadSignature } else { TokenError::UnknownKey })
}
