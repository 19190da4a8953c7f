//! The key feed against a real HTTP server: floods, rotation and outages.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::json;
use tokio::time::Instant;

use stepgate::clock::Clock;
use stepgate::feed::keys::KeyFeed;
use stepgate::lifecycle::Lifecycle;
use stepgate::opa::input::Attributes;
use stepgate::remote::Remote;
use stepgate::telemetry::Metrics;
use stepgate::token::{Issuer, IssuerSettings, KeySource, Settings, TokenError, TokenState, Verifier};
use stepgate_jose::{Algorithm, PrivateKey, SigningKey};

const NOW: i64 = 1_800_000_000;

/// An identity provider whose key set can be changed and broken.
struct Provider {
    answer: Mutex<(StatusCode, String)>,
    fetches: AtomicUsize,
}

struct Bench {
    provider: Arc<Provider>,
    verifier: Verifier,
    lifecycle: Lifecycle,
}

fn new_key() -> SigningKey {
    let pem = PrivateKey::generate(Algorithm::ES256).expect("a key");
    SigningKey::from_pem(Algorithm::ES256, &pem).expect("its PEM is read")
}

fn jwks(kid: &str, key: &SigningKey) -> String {
    let mut jwk = json!(key.public_jwk());
    jwk.as_object_mut().expect("an object").insert("kid".to_owned(), json!(kid));
    json!({"keys": [jwk]}).to_string()
}

fn token(kid: &str, key: &SigningKey) -> String {
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(json!({"alg": "ES256", "kid": kid}));
    let claims = encode(json!({"iss": "i", "aud": "a", "sub": "s", "exp": NOW + 600}));
    let signed = format!("{header}.{claims}");
    format!("{signed}.{}", key.sign(signed.as_bytes()).expect("it signs"))
}

impl Bench {
    async fn start(status: StatusCode, keys: String) -> Self {
        let provider = Arc::new(Provider { answer: Mutex::new((status, keys)), fetches: AtomicUsize::new(0) });
        let served = Arc::clone(&provider);
        let router = Router::new().route(
            "/jwks",
            get(move || async move {
                served.fetches.fetch_add(1, Ordering::Relaxed);
                served.answer.lock().clone()
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/jwks", listener.local_addr().expect("an address"));
        let lifecycle = Lifecycle::default();
        lifecycle.spawn_until_stop(async move { axum::serve(listener, router).await.expect("it serves") });

        let (issuer, asked) = Issuer::new(IssuerSettings {
            audiences: vec!["a".to_owned()],
            algorithms: vec![Algorithm::ES256],
            keys: KeySource::JwksUrl(url),
            ..IssuerSettings::new("i")
        });
        let clock = Clock::fixed(NOW);
        let feed = KeyFeed {
            issuer: Arc::clone(&issuer),
            remote: Remote::default(),
            service: None,
            metrics: Metrics::new(None).of(),
            clock: clock.clone(),
            unusable: Mutex::default(),
        };
        feed.start(asked, &lifecycle);
        let limits = Settings {
            token_bytes: 16_384,
            cache_bytes: 1 << 20,
            cache_ttl: Duration::from_secs(600),
            proofs: stepgate::token::ProofSettings::default(),
            certificates: stepgate::token::CertificateSettings::default(),
        };
        Self { provider, verifier: Verifier::new(vec![issuer], &limits, clock), lifecycle }
    }

    async fn state(&self, token: &str) -> TokenState {
        let headers = HashMap::from([("authorization".to_owned(), format!("Bearer {token}"))]);
        let request = Request { http: Some(HttpRequest { headers, ..HttpRequest::default() }), ..Request::default() };
        let context = AttributeContext { request: Some(request), ..AttributeContext::default() };
        let message = CheckRequest { attributes: Some(context) }.encode_to_vec();
        let attributes = Attributes::parse(&message).expect("it parses");
        let deadline = Instant::now() + Duration::from_secs(5);
        self.verifier.verify(&attributes, deadline).await
    }

    /// Waits until `token` is verified: keys arrive on their own time.
    async fn until_verified(&self, token: &str) {
        let limit = Instant::now() + Duration::from_secs(20);
        while !matches!(self.state(token).await, TokenState::Verified(_)) {
            assert!(Instant::now() < limit, "the keys never arrived");
            tokio::task::yield_now().await;
        }
    }

    fn fetches(&self) -> usize {
        self.provider.fetches.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn ten_thousand_random_key_ids_cause_at_most_two_fetches() {
    let key = new_key();
    let bench = Bench::start(StatusCode::OK, jwks("k1", &key)).await;
    bench.until_verified(&token("k1", &key)).await;
    let claims = token("x", &key);
    let (_, rest) = claims.split_once('.').expect("parts");
    for n in 0..10_000 {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": "ES256", "kid": format!("random-{n}")}).to_string());
        let state = bench.state(&format!("{header}.{rest}")).await;
        assert!(matches!(state, TokenState::Rejected(TokenError::UnknownKey)), "{state:?}");
    }
    assert!(bench.fetches() <= 2, "{} fetches", bench.fetches());
    bench.lifecycle.stop();
}

#[tokio::test]
async fn a_rotated_key_works_on_the_first_request() {
    let (old, new) = (new_key(), new_key());
    let bench = Bench::start(StatusCode::OK, jwks("old", &old)).await;
    bench.until_verified(&token("old", &old)).await;
    *bench.provider.answer.lock() = (StatusCode::OK, jwks("new", &new));
    assert!(matches!(bench.state(&token("new", &new)).await, TokenState::Verified(_)));
    let state = bench.state(&token("old", &old)).await;
    assert!(
        matches!(state, TokenState::Rejected(TokenError::UnknownKey)),
        "the removed key is trusted no more: {state:?}"
    );
    bench.lifecycle.stop();
}

#[tokio::test]
async fn an_outage_changes_nothing_for_known_keys() {
    let key = new_key();
    let bench = Bench::start(StatusCode::OK, jwks("k1", &key)).await;
    bench.until_verified(&token("k1", &key)).await;
    for broken in ["", "{}", r#"{"keys":[]}"#] {
        *bench.provider.answer.lock() = (StatusCode::OK, broken.to_owned());
        bench.state(&token("unknown", &key)).await;
        assert!(matches!(bench.state(&token("k1", &key)).await, TokenState::Verified(_)), "{broken:?}");
    }
    *bench.provider.answer.lock() = (StatusCode::INTERNAL_SERVER_ERROR, String::new());
    bench.state(&token("unknown", &key)).await;
    assert!(matches!(bench.state(&token("k1", &key)).await, TokenState::Verified(_)));
    bench.lifecycle.stop();
}

#[tokio::test]
async fn keys_that_come_late_are_found() {
    let key = new_key();
    let bench = Bench::start(StatusCode::SERVICE_UNAVAILABLE, String::new()).await;
    let state = bench.state(&token("k1", &key)).await;
    assert!(matches!(state, TokenState::Rejected(TokenError::KeysUnavailable)), "{state:?}");
    *bench.provider.answer.lock() = (StatusCode::OK, jwks("k1", &key));
    bench.until_verified(&token("k1", &key)).await;
    bench.lifecycle.stop();
}
