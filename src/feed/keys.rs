//! Keeps issuers' keys fresh: at start, on a schedule, and when a token names a key that is not here.
//!
//! OpenID Connect Discovery section 4, OpenID Connect Core section 10.1.1, RFC 7517. A failed refresh changes nothing:
//! the last good keys stay.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::Receiver;
use url::Url;

use super::{backoff, jittered};
use crate::clock::Clock;
use crate::lifecycle::Lifecycle;
use crate::remote::service::{RequestOptions, Service};
use crate::remote::{Origin, Remote, RemoteError};
use crate::telemetry::{Outcome, chain};
use crate::token::TokenMetrics;
use crate::token::{Issuer, KeySet, KeySetError, KeySource, RefreshRequest};
use crate::value::{DuplicateKeys, JsonLimits, as_text, member, parse_json};

/// The largest key set or provider configuration that is read.
const MAX_DOCUMENT_BYTES: usize = 512 * 1024;
/// The refresh interval of keys when the server sends none.
const DEFAULT_PERIOD: Duration = Duration::from_secs(600);
/// The bounds of what a server may say by `Cache-Control: max-age`.
const SHORTEST_PERIOD: Duration = Duration::from_secs(60);
const LONGEST_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// Keys that are remembered as unusable.
const MAX_UNUSABLE: usize = 1_000;
/// The first and the longest pause after a failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Why keys could not be refreshed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("the provider configuration cannot be fetched")]
    Discovery(#[source] RemoteError),
    #[error("the provider configuration is malformed")]
    Malformed,
    #[error("the provider configuration is for the issuer `{0}`")]
    OtherIssuer(String),
    #[error("the provider configuration's jwks_uri `{0}` is neither https nor on the same server")]
    JwksUri(String),
    #[error("the key set cannot be fetched")]
    Fetch(#[source] RemoteError),
    #[error("the server of the key set answers {0}")]
    Status(u16),
    #[error("the issuer has no keys")]
    None,
    #[error("the key set file cannot be read")]
    File(#[source] std::io::Error),
    #[error("the key set is not taken")]
    KeySet(#[from] KeySetError),
}

/// Keeps the keys of one issuer fresh.
#[derive(Debug)]
pub struct KeyFeed {
    pub issuer: Arc<Issuer>,
    pub remote: Remote,
    /// Where the key set is, if it is at a service.
    pub service: Option<Service>,
    pub metrics: Arc<TokenMetrics>,
    pub clock: Clock,
    /// Keys that were reported as unusable.
    pub unusable: Mutex<HashSet<[u8; 32]>>,
}

impl KeyFeed {
    /// Starts the feed; `asked` brings the refreshes that tokens ask for.
    pub fn start(self, asked: Receiver<RefreshRequest>, lifecycle: &Lifecycle) {
        if self.issuer.settings.keys == KeySource::Introspection {
            return;
        }
        lifecycle.spawn_until_stop(self.run(asked));
    }

    async fn run(self, mut asked: Receiver<RefreshRequest>) {
        let mut failures = 0u32;
        loop {
            let pause = match self.refresh().await {
                Ok(period) => {
                    failures = 0;
                    jittered(period)
                }
                Err(error) => {
                    let issuer = self.issuer.settings.issuer.as_str();
                    let message = match self.issuer.has_keys() {
                        true => "keys could not be refreshed; the last good ones stay",
                        false => {
                            "keys could not be fetched; until they are, tokens of this issuer are denied as `keys_unavailable`"
                        }
                    };
                    tracing::error!(issuer, error = chain(&error), "{message}");
                    failures = failures.saturating_add(1);
                    backoff(FIRST_RETRY, LONGEST_RETRY, failures)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                request = asked.recv() => if request.is_none() { return },
            }
        }
    }

    /// Fetches once; gives the time until the next scheduled refresh.
    async fn refresh(&self) -> Result<Duration, KeysError> {
        self.issuer.refresh_begins();
        let outcome = self.fetch().await;
        let issuer = self.issuer.settings.issuer.as_str();
        match outcome {
            Ok((keys, period)) => {
                let count = keys.len() as u64;
                self.report_unusable(&keys);
                match self.issuer.replace_keys(keys) {
                    true => tracing::info!(issuer, keys = count, "the keys are new"),
                    false => tracing::debug!(issuer, keys = count, "the keys are the same"),
                }
                self.issuer.confirm(self.clock.now());
                self.metrics.keys_refreshed(issuer, Outcome::Success, self.clock.now());
                Ok(period)
            }
            Err(error) => {
                self.issuer.refresh_ended();
                self.metrics.keys_refreshed(issuer, Outcome::Failure, self.clock.now());
                Err(error)
            }
        }
    }

    /// Logs and counts each key that cannot be used, once.
    fn report_unusable(&self, keys: &KeySet) {
        let mut known = self.unusable.lock();
        // A provider that always makes new ones is reported afresh at times, and fills nothing.
        if known.len() > MAX_UNUSABLE {
            known.clear();
        }
        for key in keys.unusable() {
            if known.insert(key.fingerprint) {
                let (issuer, reason) = (self.issuer.settings.issuer.as_str(), key.reason);
                tracing::warn!(issuer, kid = key.kid, reason, "a key of the issuer cannot be used");
                self.metrics.key_unusable(issuer, reason);
            }
        }
    }

    async fn fetch(&self) -> Result<(KeySet, Duration), KeysError> {
        match &self.issuer.settings.keys {
            KeySource::Introspection => Err(KeysError::None),
            KeySource::Service { resource, .. } => {
                let service = self.service.as_ref().ok_or(KeysError::None)?;
                let ask = RequestOptions { limit: MAX_DOCUMENT_BYTES, ..RequestOptions::default() };
                let reply = service.get(resource, &ask).await.map_err(KeysError::Fetch)?;
                match reply.status {
                    200 => Ok((self.keys(&reply.body)?, DEFAULT_PERIOD)),
                    status => Err(KeysError::Status(status)),
                }
            }
            KeySource::Inline(text) => Ok((self.keys(text.as_bytes())?, LONGEST_PERIOD)),
            KeySource::JwksFile(path) => Ok((self.keys(&read_file(path).await?)?, SHORTEST_PERIOD)),
            KeySource::JwksUrl(url) => self.fetch_keys(url, Origin::Operator).await,
            KeySource::Discovery(url) => {
                let (jwks_uri, origin) = self.discover(url).await?;
                self.fetch_keys(&jwks_uri, origin).await
            }
        }
    }

    fn keys(&self, document: &[u8]) -> Result<KeySet, KeySetError> {
        KeySet::parse_for(self.issuer.settings.profile, document)
    }

    async fn fetch_keys(&self, url: &str, origin: Origin) -> Result<(KeySet, Duration), KeysError> {
        let fetched = self.remote.fetch(url, origin, MAX_DOCUMENT_BYTES).await.map_err(KeysError::Fetch)?;
        let period = fetched.max_age.unwrap_or(DEFAULT_PERIOD).clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
        Ok((self.keys(&fetched.body)?, period))
    }

    /// The `jwks_uri` of the provider configuration, and how far it is trusted.
    async fn discover(&self, url: &str) -> Result<(String, Origin), KeysError> {
        let fetched =
            self.remote.fetch(url, Origin::Operator, MAX_DOCUMENT_BYTES).await.map_err(KeysError::Discovery)?;
        jwks_uri(&fetched.body, url, &self.issuer.settings.issuer)
    }
}

/// Reads `jwks_uri` out of a provider configuration that was found at `url`.
fn jwks_uri(document: &[u8], url: &str, issuer: &str) -> Result<(String, Origin), KeysError> {
    let limits = JsonLimits { depth: 16, duplicates: DuplicateKeys::Refuse };
    let document = parse_json(document, limits).map_err(|_| KeysError::Malformed)?;
    let text = |name: &str| member(&document, name).and_then(as_text).ok_or(KeysError::Malformed);
    // Byte for byte (OpenID Connect Discovery section 4.3). AD FS has another issuer in access tokens, and says so.
    if text("issuer")? != issuer && text("access_token_issuer").ok() != Some(issuer) {
        return Err(KeysError::OtherIssuer(text("issuer")?.chars().take(256).collect()));
    }
    let jwks_uri = text("jwks_uri")?;
    let (Ok(found_at), Ok(leads_to)) = (Url::parse(url), Url::parse(jwks_uri)) else {
        return Err(KeysError::Malformed);
    };
    if found_at.origin() == leads_to.origin() {
        // The operator named this server.
        return Ok((jwks_uri.to_owned(), Origin::Operator));
    }
    if leads_to.scheme() != "https" {
        return Err(KeysError::JwksUri(jwks_uri.to_owned()));
    }
    Ok((jwks_uri.to_owned(), Origin::Learned))
}

async fn read_file(path: &Path) -> Result<Vec<u8>, KeysError> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_DOCUMENT_BYTES as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    })
    .await;
    read.map_err(|_| KeysError::Malformed)?.map_err(KeysError::File)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: &str = "http://idp.cluster.local/.well-known/openid-configuration";

    fn check(document: &str) -> Result<(String, Origin), KeysError> {
        jwks_uri(document.as_bytes(), AT, "https://id.example.com")
    }

    #[test]
    fn provider_configurations_lead_only_where_they_may() {
        let of = |jwks_uri: &str| format!(r#"{{"issuer":"https://id.example.com","jwks_uri":"{jwks_uri}"}}"#);
        assert!(matches!(check(&of("http://idp.cluster.local/keys")), Ok((_, Origin::Operator))));
        assert!(matches!(check(&of("https://keys.example.com/jwks")), Ok((_, Origin::Learned))));
        assert!(matches!(check(&of("http://keys.example.com/jwks")), Err(KeysError::JwksUri(_))));
        assert!(matches!(check(&of("http://idp.cluster.local:8080/keys")), Err(KeysError::JwksUri(_))));
        assert!(matches!(
            check(r#"{"issuer":"https://id.example.com/","jwks_uri":"x"}"#),
            Err(KeysError::OtherIssuer(_))
        ));
        assert!(matches!(check("{}"), Err(KeysError::Malformed)));
        let adfs = r#"{"issuer":"https://adfs","access_token_issuer":"https://id.example.com","jwks_uri":"http://idp.cluster.local/k"}"#;
        assert!(matches!(check(adfs), Ok((_, Origin::Operator))));
    }

    #[test]
    fn jitter_stays_within_a_tenth() {
        for _ in 0..1_000 {
            let pause = jittered(Duration::from_secs(100));
            assert!((Duration::from_secs(90)..=Duration::from_secs(110)).contains(&pause), "{pause:?}");
        }
    }
}
