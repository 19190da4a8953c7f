//! Shared by the targets: a checker with every feature switched on that reads untrusted bytes, and a policy that allows verified
//! callers alone. No key of its issuer exists, so whatever is sent, an allow is a hole.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::CheckResponse;
use stepgate::check::{
    AmbiguousPath, Answer, CallerSettings, ChallengeSettings, CheckDeadline, Checker, ClientAddress, Compat, DryRun,
    IdentityHeader, IdentitySource, LevelRequirement, PathPattern, ResponseLimits, Route, RouteRequirement, Settings,
};
use stepgate::clock::Clock;
use stepgate::hub::{
    Credentials, Dialect, Hub, HubSettings, LedgerStore, Link, LogoutSettings, ScimSettings, SessionRevoked,
    StreamSettings,
};
use stepgate::opa::input::Options;
use stepgate::policy::{self, BuiltinSettings, Entrypoint, HostContext, Module, RegoVersion, Snapshot, Sources};
use stepgate::revocation::{Fold, IssuerJoins, Join};
use stepgate::telemetry::Metrics;
use stepgate::token::{CertificateSettings, Issuer, IssuerSettings, KeySet, Location, Preset, ProofSettings, Verifier};
use stepgate_jose::{Algorithm, PrivateKey, SigningKey};

/// Reads every part of the input, so that all of it is built.
const POLICY: &str = r#"package p

default allow := false

allow if {
	input.jwt.state == "verified"
	seen
}

seen if count(json.marshal(input)) > 0

seen if input.parsed_body
"#;

pub fn checker() -> Checker {
    let (issuer, _) = Issuer::new(IssuerSettings {
        audiences: vec!["api".to_owned()],
        algorithms: vec![Algorithm::ES256, Algorithm::RS256, Algorithm::EdDsa],
        leeway: Duration::from_secs(30),
        locations: vec![
            Location::bearer(),
            Location::dpop(),
            Location::Cookie { name: "token".to_owned(), chunks: true },
            Location::WebSocketProtocol { prefix: "base64url.bearer.".to_owned() },
        ],
        preset: Preset::Github,
        ..IssuerSettings::new("https://id.example.com")
    });
    // The private half is forgotten at once.
    let pem = PrivateKey::generate(Algorithm::ES256).expect("a key");
    let key = SigningKey::from_pem(Algorithm::ES256, &pem).expect("a key");
    let jwks = serde_json::json!({"keys": [key.public_jwk()]}).to_string();
    issuer.replace_keys(KeySet::parse(jwks.as_bytes()).expect("a key set"));
    let clock = Clock::fixed(1_800_000_000);
    let limits = stepgate::token::Settings {
        token_bytes: 16_384,
        cache_bytes: 1 << 20,
        cache_ttl: Duration::from_secs(600),
        proofs: ProofSettings::default(),
        certificates: CertificateSettings {
            xfcc_from_end: Some(0),
            client_cert: true,
            ..CertificateSettings::default()
        },
    };
    let verifier = Arc::new(Verifier::new(vec![issuer], &limits, clock.clone()));
    let store = Arc::new(policy::Store::default());
    store.activate(snapshot(POLICY).expect("the policy compiles"));
    let route = Route {
        hosts: vec!["*.example.com".to_owned()],
        methods: Vec::new(),
        path: PathPattern::parse("/a/**/b").expect("a pattern"),
        peers: Vec::new(),
        demand: RouteRequirement {
            levels: vec![LevelRequirement { level: 2, acr_values: Vec::new() }],
            max_age: Some(60),
            scopes: vec!["pay".to_owned()],
            same_origin: true,
            ..RouteRequirement::default()
        },
    };
    let settings = Settings {
        input: Options {
            skip_body: false,
            depth: 512,
            descriptors: None,
            raw_headers_count: true,
            expose_body_errors: false,
            duplicate_members: stepgate::value::DuplicateKeys::LastWins,
        },
        stepgate_fields: true,
        ambiguous_path: AmbiguousPath::Warn,
        evaluation_timeout: Duration::from_secs(5),
        dry_run: DryRun::Off,
        audit: false,
        compat: Compat::default(),
        caller: CallerSettings { peer_from_xfcc: true, client_address: ClientAddress::ForwardedFor(1) },
        allow_preflight: false,
        asserted: Vec::new(),
        challenge: ChallengeSettings::default(),
        redirect: None,
        resources: Vec::new(),
        routes: vec![route],
        identity_headers: vec![IdentityHeader {
            name: "x-user".to_owned(),
            source: IdentitySource::Claim(vec!["sub".to_owned()]),
        }],
        response_limits: ResponseLimits::default(),
        max_used_tokens: 1_000,
        identity_token_signer: None,
    };
    Checker::new(settings, store, Some(verifier), clock, &Metrics::new(None))
}

/// The active module, if it compiles.
pub fn snapshot(text: &str) -> Option<Snapshot> {
    let module = Module { path: "p.rego".into(), text: text.into(), version: RegoVersion::V1 };
    let sources = Sources { modules: vec![module], ..Sources::default() };
    let host_context = Arc::new(HostContext::new(&BuiltinSettings::default()));
    Snapshot::build(&sources, &Entrypoint::from_path("p/allow"), &host_context).ok()
}

/// The answer to a message of Envoy, which must never be an allow.
pub fn must_deny(message: &[u8]) -> CheckResponse {
    static CHECKER: LazyLock<Checker> = LazyLock::new(checker);
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    let term = CheckDeadline::of(Duration::from_secs(5));
    let answer = RUNTIME.with(|runtime| runtime.block_on(CHECKER.check(message, term)));
    let Answer::Respond(response) = answer else {
        panic!("a gRPC error, which failure_mode_allow would turn into an allow")
    };
    assert_ne!(response.status.as_ref().map_or(0, |status| status.code), 0, "an allow: {response:?}");
    *response
}

/// The credential of requests to [`hub`].
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const ISSUER: &str = "https://id.example.com";

/// The key of the issuer and transmitter of [`hub`].
static SIGNER: LazyLock<SigningKey> = LazyLock::new(|| {
    let pem = PrivateKey::generate(Algorithm::ES256).expect("a key");
    SigningKey::from_pem(Algorithm::ES256, &pem).expect("a key")
});

/// A JWT with this `typ` and these claims.
pub fn sign(typ: &str, claims: &str) -> String {
    let header = serde_json::json!({"alg": "ES256", "typ": typ}).to_string();
    let signed = stepgate_jose::signing_input(&header, claims);
    let signature = SIGNER.sign(signed.as_bytes()).expect("it signs");
    format!("{signed}.{signature}")
}

/// A hub in memory with a directory, a logout address and a stream in each dialect, that knows the key of [`sign`].
pub fn hub() -> Arc<Hub> {
    let folder = std::path::PathBuf::from(format!("/dev/shm/stepgate-fuzz-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder in memory");
    let token = folder.join("token");
    std::fs::write(&token, TOKEN).expect("the credential");
    let join = Join { name: "email".to_owned(), claim: "email".to_owned(), fold: Fold::Email, when: None };
    let joins = IssuerJoins { joins: vec![join], ..IssuerJoins::default() };
    let link = |attribute: &str, join: &str| Link { attribute: attribute.to_owned(), join: join.to_owned() };
    let extra = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:employeeNumber";
    let scim = ScimSettings {
        name: "fuzz".to_owned(),
        credentials: Credentials::new(vec![token.clone()]),
        issuers: vec![ISSUER.to_owned()],
        links: vec![link("externalId", "sub"), link("emails", "email")],
        attributes: vec![extra.to_owned()],
        refuses_unmapped: true,
        revokes_members: true,
        watched_groups: Vec::new(),
        rate: u32::MAX,
    };
    let logout =
        LogoutSettings { name: "fuzz".to_owned(), issuer: ISSUER.to_owned(), client_ids: vec!["api".to_owned()] };
    let stream = |dialect: Dialect| StreamSettings {
        name: format!("{dialect:?}").to_lowercase(),
        audience: "hub".to_owned(),
        issuers: vec![ISSUER.to_owned()],
        dialect,
        credentials: Credentials::new(vec![token.clone()]),
        subject_issuers: [("https://org.example.com".to_owned(), "sub".to_owned())].into(),
        opaque_is: Some("sub".to_owned()),
        format_is: [("did".to_owned(), "sub".to_owned())].into(),
        directories: vec!["fuzz".to_owned()],
        tenant: Some("acme".to_owned()),
        session_revoked: SessionRevoked::Reauthenticate,
        ignores_claims_change: false,
        denies_devices: true,
        notes_policy_lockouts: false,
        levels: BTreeMap::new(),
        recovery_tier: Some(2),
        poll: None,
        verify: None,
    };
    let settings = HubSettings {
        store: LedgerStore::Folder(folder),
        retain: 90_000,
        session_retain: 2_592_000,
        skew: 2,
        max_entries: 1_000_000,
        max_readers: 10,
        credentials: Credentials::default(),
        issuers: [(ISSUER.to_owned(), joins)].into(),
        deleted_retention: 86_400,
        public_url: "https://hub.example.com".to_owned(),
        scim: vec![scim],
        logouts: vec![logout],
    };
    let issuer = || {
        let algorithms = vec![Algorithm::ES256];
        let (issuer, _) = Issuer::new(IssuerSettings { algorithms, ..IssuerSettings::new(ISSUER) });
        let jwks = serde_json::json!({"keys": [SIGNER.public_jwk()]}).to_string();
        issuer.replace_keys(KeySet::parse(jwks.as_bytes()).expect("a key set"));
        issuer
    };
    let metrics = Metrics::new(None);
    let hub = Hub::open(settings, Clock::fixed(1_800_000_000), metrics.of()).expect("it opens");
    let streams = [Dialect::Standard, Dialect::Okta, Dialect::Sse].map(|dialect| (stream(dialect), issuer()));
    Arc::new(hub.with_issuers(vec![issuer()]).with_streams(streams.into()).expect("it has room"))
}
