//! The costs of the parts of a check: the document, a token (cold and cached), the evaluation, and the whole check.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use prost::Message as _;
use stepgate::check::{
    AmbiguousPath, CallerSettings, ChallengeSettings, CheckDeadline, Checker, Compat, DryRun, Settings,
};
use stepgate::clock::Clock;
use stepgate::opa::input::{self, Attributes, Options};
use stepgate::policy::{self, Bounds, Entrypoint, HostContext, Module, RegoVersion, Snapshot, Sources};
use stepgate::telemetry::Metrics;
use stepgate::token::{Issuer, IssuerSettings, KeySet, Verifier};
use stepgate_jose::{Algorithm, PrivateKey, SigningKey};
use tokio::time::Instant;

const NOW: i64 = 1_800_000_000;
const POLICY: &str = include_str!("../policies/api_policy/api_policy.rego");
const STEP_UP: &str = include_str!("../policies/lib/step_up.rego");
const OPTIONS: Options = Options {
    skip_body: false,
    depth: 512,
    descriptors: None,
    raw_headers_count: true,
    expose_body_errors: false,
    duplicate_members: stepgate::value::DuplicateKeys::LastWins,
};

fn verifier(key: &SigningKey) -> Verifier {
    let (issuer, _) = Issuer::new(IssuerSettings {
        audiences: vec!["api".to_owned()],
        algorithms: vec![key.algorithm()],
        ..IssuerSettings::new("https://id.example.com")
    });
    let jwks = serde_json::json!({"keys": [key.public_jwk()]}).to_string();
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

fn message_of(key: &SigningKey) -> Vec<u8> {
    let claims = serde_json::json!({
        "iss": "https://id.example.com", "aud": "api", "sub": "alice", "exp": NOW + 600, "amr": ["pwd", "mfa"]
    });
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{}","typ":"at+jwt"}}"#, key.algorithm().name())),
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

fn snapshot(decision_cache_bytes: u64) -> Snapshot {
    let module = |path: &str, text: &str| Module { path: path.into(), text: text.into(), version: RegoVersion::V1 };
    let sources = Sources { modules: vec![module("a.rego", POLICY), module("b.rego", STEP_UP)], ..Sources::default() };
    let settings = policy::BuiltinSettings { decision_cache_bytes, ..policy::BuiltinSettings::default() };
    let host_context = Arc::new(HostContext::new(&settings));
    Snapshot::build(&sources, &Entrypoint::from_path("api_policy/allow"), &host_context).expect("the policy compiles")
}

fn parts(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let [rsa, ec] = [Algorithm::RS256, Algorithm::ES256].map(|alg| {
        let pem = PrivateKey::generate(alg).expect("a key");
        SigningKey::from_pem(alg, &pem).expect("its PEM is read")
    });
    let (key, message) = (&rsa, message_of(&rsa));
    let attributes = Attributes::parse(&message).expect("it parses");
    let far = || Instant::now() + Duration::from_secs(3_600);

    c.bench_function("input build", |b| {
        b.iter(|| {
            let attributes = Attributes::parse(black_box(&message)).expect("it parses");
            input::build(&message, &attributes, &OPTIONS, input::BodyUse::Decision, &mut input::BodyMemory::unbounded())
                .expect("a document")
                .members
                .into_value()
        });
    });
    for key in [&rsa, &ec] {
        let message = message_of(key);
        let attributes = Attributes::parse(&message).expect("it parses");
        c.bench_function(&format!("token cold, {}", key.algorithm().name()), |b| {
            b.iter_batched(
                || verifier(key),
                |verifier| runtime.block_on(verifier.verify(&attributes, far())),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    let warm = Arc::new(verifier(key));
    runtime.block_on(warm.verify(&attributes, far()));
    c.bench_function("token cached", |b| b.iter(|| runtime.block_on(warm.verify(black_box(&attributes), far()))));

    let document =
        input::build(&message, &attributes, &OPTIONS, input::BodyUse::Decision, &mut input::BodyMemory::unbounded())
            .expect("a document")
            .members
            .into_value();
    let policy = snapshot(0);
    let budget = Duration::from_millis(50);
    c.bench_function("evaluation", |b| {
        b.iter(|| policy.eval(black_box(&document), Bounds::within(budget)).expect("a result"));
    });

    let policy = snapshot(1 << 20);
    c.bench_function("evaluation, kept", |b| {
        b.iter(|| policy.eval(black_box(&document), Bounds::within(budget)).expect("a result"));
    });

    let store = Arc::new(policy::Store::default());
    store.activate(snapshot(0));
    let settings = Settings {
        input: OPTIONS,
        stepgate_fields: true,
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
        resources: Vec::new(),
        routes: Vec::new(),
        response_limits: stepgate::check::ResponseLimits::default(),
        max_used_tokens: 1_000,
        identity_headers: Vec::new(),
        identity_token_signer: None,
    };
    let checker = Checker::new(settings, store, Some(warm), Clock::fixed(NOW), &Metrics::new(None));
    c.bench_function("whole check, cached token", |b| {
        b.iter(|| runtime.block_on(checker.check(black_box(&message), CheckDeadline::of(Duration::from_secs(3_600)))))
    });
}

criterion_group!(benches, parts);
criterion_main!(benches);
