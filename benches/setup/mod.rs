//! What the benchmarks of parts and the count of instructions have in common: a check of the example policies with a token.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use prost::Message as _;
use stepgate::check::{AmbiguousPath, CallerSettings, ChallengeSettings, Checker, Compat, DryRun, Settings};
use stepgate::clock::Clock;
use stepgate::jws::{Alg, SigningKey};
use stepgate::opa::input::Options;
use stepgate::policy::{self, Entrypoint, Module, RegoVersion, Snapshot, Sources, Surroundings};
use stepgate::telemetry::Metrics;
use stepgate::token::{AssuranceTable, Issuer, IssuerSettings, KeySet, KeySource, Location, Profile, Verifier};

pub const NOW: i64 = 1_800_000_000;
const POLICY: &str = include_str!("../../policies/api_policy/api_policy.rego");
const STEP_UP: &str = include_str!("../../policies/lib/step_up.rego");
pub const OPTIONS: Options =
    Options { skip_body: false, depth: 512, descriptors: None, raw_headers_count: true, expose_body_errors: false };

pub fn verifier(key: &SigningKey) -> Verifier {
    let (issuer, _) = Issuer::new(IssuerSettings {
        issuer: "https://id.example.com".to_owned(),
        audiences: vec!["api".to_owned()],
        algorithms: vec![key.alg()],
        keys: KeySource::Inline(String::new()),
        leeway: Duration::ZERO,
        profile: Profile::Legacy,
        locations: vec![Location::bearer()],
        assurance: AssuranceTable::default(),
        preset: stepgate::token::Preset::Generic,
        max_lifetime: None,
        claims_challenge: None,
        introspection: None,
    });
    let jwks = serde_json::json!({"keys": [key.public_jwk().expect("a JWK")]}).to_string();
    issuer.replace_keys(KeySet::parse(jwks.as_bytes()).expect("a key set"));
    let limits = stepgate::token::Settings {
        token_bytes: 16_384,
        cache_bytes: 1 << 24,
        cache_ttl: Duration::from_secs(600),
        proofs: stepgate::token::ProofSettings::default(),
        certificates: stepgate::token::CertificateSettings::default(),
    };
    Verifier::new(vec![issuer], &limits, Clock::fixed(NOW))
}

pub fn message_of(key: &SigningKey) -> Vec<u8> {
    let claims = serde_json::json!({
        "iss": "https://id.example.com", "aud": "api", "sub": "alice", "exp": NOW + 600, "amr": ["pwd", "mfa"]
    });
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{}","typ":"at+jwt"}}"#, key.alg().name())),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let token = format!("{signed}.{}", key.sign(signed.as_bytes()).expect("it signs"));
    let mut headers: HashMap<_, _> =
        (0..11).map(|n| (format!("x-header-{n}"), "a value of an ordinary length".to_owned())).collect();
    headers.insert("authorization".to_owned(), format!("Bearer {token}"));
    let http = HttpRequest {
        method: "GET".to_owned(),
        path: "/api/v1/admin/data".to_owned(),
        host: "api.example.com".to_owned(),
        headers,
        ..HttpRequest::default()
    };
    let request = Request { http: Some(http), ..Request::default() };
    CheckRequest { attributes: Some(AttributeContext { request: Some(request), ..AttributeContext::default() }) }
        .encode_to_vec()
}

pub fn snapshot() -> Snapshot {
    let module = |path: &str, text: &str| Module { path: path.into(), text: text.into(), version: RegoVersion::V1 };
    let sources = Sources { modules: vec![module("a.rego", POLICY), module("b.rego", STEP_UP)], ..Sources::default() };
    let surroundings = Arc::new(Surroundings::new(&policy::BuiltinSettings::default()));
    Snapshot::build(&sources, &Entrypoint::from_path("api_policy/allow"), &surroundings).expect("the policy compiles")
}

pub fn new_key(alg: Alg) -> SigningKey {
    SigningKey::from_pem(alg, &SigningKey::generate(alg).expect("a key")).expect("its PEM is read")
}

pub fn checker(verifier: Arc<Verifier>) -> Checker {
    let store = Arc::new(policy::Store::default());
    store.activate(snapshot());
    let settings = Settings {
        input: OPTIONS,
        extras: true,
        ambiguous_path: AmbiguousPath::Reject,
        evaluation_timeout: Duration::from_millis(50),
        dry_run: DryRun::Off,
        audit: false,
        compat: Compat::default(),
        caller: CallerSettings::default(),
        allow_preflight: false,
        asserted: Vec::new(),
        challenge: ChallengeSettings::default(),
        redirect: None,
        resource: None,
        routes: Vec::new(),
        identity_headers: Vec::new(),
        minter: None,
    };
    Checker::new(settings, store, Some(verifier), Clock::fixed(NOW), Arc::new(Metrics::new(None)))
}
