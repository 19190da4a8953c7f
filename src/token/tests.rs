//! Each way in which token checks have failed elsewhere, by name.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use prost::Message as _;
use serde_json::{Value as Json, json};
use stepgate_jose::{Algorithm, PrivateKey, SigningKey};
use tokio::sync::mpsc;

use super::*;
use crate::clock::Clock;
use crate::opa::input::Attributes;
use crate::value::json_text;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://id.example.com";

static EC: LazyLock<SigningKey> = LazyLock::new(|| new_key(Algorithm::ES256));
static EC_OTHER: LazyLock<SigningKey> = LazyLock::new(|| new_key(Algorithm::ES256));
static RSA: LazyLock<SigningKey> = LazyLock::new(|| new_key(Algorithm::RS256));

fn new_key(alg: Algorithm) -> SigningKey {
    SigningKey::from_pem(alg, &PrivateKey::generate(alg).expect("a key")).expect("its PEM is read")
}

fn encode(part: &Json) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

/// A token with this header and payload, signed by `key` whatever the header says.
fn token_of(key: &SigningKey, header: &Json, payload: &Json) -> String {
    let signed = format!("{}.{}", encode(header), encode(payload));
    format!("{signed}.{}", key.sign(signed.as_bytes()).expect("it signs"))
}

fn header() -> Json {
    json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt"})
}

fn payload() -> Json {
    json!({"iss": ISSUER, "aud": "api", "sub": "alice", "exp": NOW + 600, "iat": NOW - 10, "client_id": "c", "jti": "1"})
}

fn with(mut base: Json, name: &str, value: Json) -> Json {
    base[name] = value;
    base
}

fn without(mut base: Json, name: &str) -> Json {
    base.as_object_mut().expect("an object").remove(name);
    base
}

fn good_token() -> String {
    token_of(&EC, &header(), &payload())
}

fn jwks(keys: &[(&str, &SigningKey)]) -> String {
    let keys: Vec<_> = keys.iter().map(|(kid, key)| with(json!(key.public_jwk()), "kid", json!(kid))).collect();
    json!({"keys": keys}).to_string()
}

/// An issuer `ISSUER` with the audience `api`.
pub fn settings() -> IssuerSettings {
    IssuerSettings {
        audiences: vec!["api".to_owned()],
        algorithms: vec![Algorithm::ES256, Algorithm::RS256],
        ..IssuerSettings::new(ISSUER)
    }
}

fn wrong(claim: &'static str) -> TokenError {
    TokenError::BadClaim(claim, ClaimProblem::Wrong)
}

fn absent(claim: &'static str) -> TokenError {
    TokenError::BadClaim(claim, ClaimProblem::Missing)
}

fn no_subject() -> TokenError {
    TokenError::BadClaim("sub", ClaimProblem::NoSubject)
}

/// One issuer, its verifier, and the ends that a key feed would hold.
struct Bench {
    issuer: Arc<Issuer>,
    asked: mpsc::Receiver<RefreshRequest>,
    verifier: Verifier,
    clock: Clock,
}

fn limits() -> Settings {
    Settings {
        token_bytes: 16 * 1024,
        cache_bytes: 1 << 20,
        cache_ttl: Duration::from_secs(600),
        proofs: ProofSettings::default(),
        certificates: CertificateSettings::default(),
    }
}

/// The time of a check.
const BENCH_DEADLINE: Duration = Duration::from_millis(150);

fn bench_with(settings: IssuerSettings) -> Bench {
    bench_within(settings, &limits())
}

fn bench_within(settings: IssuerSettings, limits: &Settings) -> Bench {
    let clock = Clock::fixed(NOW);
    let (issuer, asked) = Issuer::new(settings);
    issuer.replace_keys(KeySet::parse(jwks(&[("k1", &EC), ("r1", &RSA)]).as_bytes()).expect("a key set"));
    let verifier = Verifier::new(vec![Arc::clone(&issuer)], limits, clock.clone());
    Bench { issuer, asked, verifier, clock }
}

fn bench() -> Bench {
    bench_with(settings())
}

impl Bench {
    async fn headers(&self, headers: &[(&str, &str)]) -> TokenState {
        let headers: HashMap<_, _> = headers.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        self.request(HttpRequest { headers, ..HttpRequest::default() }).await
    }

    async fn request(&self, http: HttpRequest) -> TokenState {
        self.request_from("", http).await
    }

    /// A request of a workload with this certificate.
    async fn request_from(&self, principal: &str, http: HttpRequest) -> TokenState {
        let request = Request { http: Some(http), ..Request::default() };
        let source = Peer { principal: principal.to_owned(), ..Peer::default() };
        let attributes =
            AttributeContext { request: Some(request), source: Some(source), ..AttributeContext::default() };
        let message = CheckRequest { attributes: Some(attributes) }.encode_to_vec();
        let attributes = Attributes::parse(&message).expect("it parses");
        let deadline = tokio::time::Instant::now() + BENCH_DEADLINE;
        self.verifier.verify(&attributes, deadline).await
    }

    async fn state(&self, token: &str) -> TokenState {
        self.headers(&[("authorization", &format!("Bearer {token}"))]).await
    }

    /// The reason for refusing, or `None` for a verified token.
    async fn refusal(&self, token: &str) -> Option<TokenError> {
        match self.state(token).await {
            TokenState::Verified(_) => None,
            TokenState::Rejected(error) => Some(error),
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// A good token with these claims beside the usual ones.
pub fn token_for_tests(claims: &Json) -> String {
    let mut payload = payload();
    for (name, value) in claims.as_object().expect("an object") {
        payload = with(payload, name, value.clone());
    }
    token_of(&EC, &header(), &payload)
}

/// The key set of a key that no issuer has, and the same token signed with it.
pub fn strange_token_for_tests() -> (String, String) {
    (jwks(&[("k1", &EC_OTHER)]), token_of(&EC_OTHER, &header(), &payload()))
}

/// A verifier for such tokens, and its clock.
pub fn verifier_for_tests() -> (Arc<Verifier>, Clock) {
    let bench = bench();
    (Arc::new(bench.verifier), bench.clock)
}

/// Such a token, verified, for tests of what is made of it.
pub fn verified_for_tests(claims: &Json, change: impl FnOnce(&mut IssuerSettings)) -> Arc<Verified> {
    let mut settings = settings();
    change(&mut settings);
    let bench = bench_with(settings);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    match runtime.block_on(bench.state(&token_for_tests(claims))) {
        TokenState::Verified(verified) => verified,
        other => panic!("unexpected {other:?}"),
    }
}

async fn refusal_of(header: Json, payload: Json) -> Option<TokenError> {
    bench().refusal(&token_of(&EC, &header, &payload)).await
}

mod certificate;
mod dpop;
mod introspection;
mod keys;
mod places;
mod spiffe;

#[tokio::test]
async fn a_good_token_is_verified_and_described() {
    let TokenState::Verified(verified) = bench().state(&good_token()).await else { panic!("it is good") };
    let document = json_text(verified.document());
    assert!(document.contains(r#""state":"verified""#) && document.contains(r#""sub":"alice""#), "{document}");
    assert!(document.contains(r#""header":{"alg":"ES256","kid":"k1","typ":"at+jwt"}"#), "{document}");
}

#[tokio::test]
async fn rsa_tokens_are_verified() {
    let token = token_of(&RSA, &json!({"alg": "RS256", "kid": "r1"}), &payload());
    assert_eq!(bench().refusal(&token).await, None);
}

#[tokio::test]
async fn wrong_json_type_is_not_an_absent_claim() {
    for (name, value) in [
        ("exp", json!("9999999999")),
        ("exp", json!(null)),
        ("exp", json!([NOW + 600])),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("nbf", json!("0")),
        ("nbf", json!(null)),
        ("iat", json!({})),
        ("aud", json!(7)),
        ("aud", json!(["api", 7])),
        ("sub", json!(7)),
        ("sub", json!("")),
    ] {
        assert_eq!(
            refusal_of(header(), with(payload(), name, value.clone())).await,
            Some(if value == json!("") { no_subject() } else { wrong(name) }),
            "{name} {value}"
        );
    }
    let huge = format!(
        "{}.{}",
        encode(&header()),
        URL_SAFE_NO_PAD.encode(payload().to_string().replace("1800000600", "1e400"))
    );
    let token = format!("{huge}.{}", EC.sign(huge.as_bytes()).expect("it signs"));
    assert_eq!(bench().refusal(&token).await, Some(wrong("exp")));
}

#[tokio::test]
async fn missing_claims_are_refused() {
    for (name, want) in [("exp", absent("exp")), ("sub", no_subject()), ("aud", absent("aud"))] {
        assert_eq!(refusal_of(header(), without(payload(), name)).await, Some(want), "{name}");
    }
}

#[tokio::test]
async fn times_are_checked_at_each_edge() {
    for (leeway, name, offset, want) in [
        (0, "exp", 1, None),
        (0, "exp", 0, Some(TokenError::Expired)),
        (0, "nbf", 0, None),
        (0, "nbf", 1, Some(TokenError::NotYetValid)),
        (0, "iat", 1, Some(TokenError::NotYetValid)),
        (30, "exp", -29, None),
        (30, "exp", -30, Some(TokenError::Expired)),
        (30, "nbf", 30, None),
        (30, "nbf", 31, Some(TokenError::NotYetValid)),
        (30, "iat", 30, None),
        (30, "iat", 31, Some(TokenError::NotYetValid)),
    ] {
        let bench = bench_with(IssuerSettings { leeway: Duration::from_secs(leeway), ..settings() });
        let token = token_of(&EC, &header(), &with(payload(), name, json!(NOW + offset)));
        assert_eq!(bench.refusal(&token).await, want, "{name} {offset:+} with leeway {leeway}");
    }
    assert_eq!(
        refusal_of(header(), with(payload(), "exp", json!(NOW as f64 + 1.5))).await,
        None,
        "fractions are allowed"
    );
}

#[tokio::test]
async fn a_cached_token_is_refused_once_it_expires() {
    let bench = bench();
    let token = token_of(&EC, &header(), &with(payload(), "exp", json!(NOW + 2)));
    assert_eq!(bench.refusal(&token).await, None);
    bench.clock.advance(1);
    assert_eq!(bench.refusal(&token).await, None);
    bench.clock.advance(2);
    assert_eq!(bench.refusal(&token).await, Some(TokenError::Expired));
}

#[tokio::test]
async fn algorithms_cannot_be_confused() {
    for (header, want) in [
        (json!({"alg": "none"}), TokenError::Algorithm),
        (json!({"alg": "None"}), TokenError::Algorithm),
        (json!({"alg": "HS256", "kid": "k1"}), TokenError::Algorithm),
        (json!({"alg": "es256", "kid": "k1"}), TokenError::Algorithm),
        (json!({"alg": "ES384", "kid": "k1"}), TokenError::Algorithm),
        // An accepted algorithm, but not of this key's type.
        (json!({"alg": "RS256", "kid": "k1"}), TokenError::UnknownKey),
        (json!({"kid": "k1"}), TokenError::Header),
        (json!({"alg": 7}), TokenError::Header),
    ] {
        assert_eq!(refusal_of(header.clone(), payload()).await, Some(want), "{header}");
    }
}

#[tokio::test]
async fn header_parameters_that_change_the_meaning_are_refused() {
    for (name, value) in [
        ("crit", json!(["exp"])),
        ("zip", json!("DEF")),
        ("enc", json!("A256GCM")),
        ("b64", json!(false)),
        ("kid", json!("k".repeat(600))),
        ("kid", json!(1)),
        ("typ", json!(1)),
    ] {
        assert_eq!(refusal_of(with(header(), name, value), payload()).await, Some(TokenError::Header), "{name}");
    }
}

#[tokio::test]
async fn keys_named_by_the_token_are_not_fetched_or_used() {
    let attacker = with(header(), "jwk", json!(EC_OTHER.public_jwk()));
    let token = token_of(&EC_OTHER, &with(attacker, "jku", json!("http://169.254.169.254/")), &payload());
    assert_eq!(bench().refusal(&token).await, Some(TokenError::BadSignature));
}

#[tokio::test]
async fn tokens_of_other_kinds_are_refused() {
    for typ in
        ["dpop+jwt", "logout+jwt", "secevent+jwt", "application/Logout+JWT", "oauth-id-jag+jwt", "entity-statement+jwt"]
    {
        assert_eq!(
            refusal_of(with(header(), "typ", json!(typ)), payload()).await,
            Some(TokenError::WrongType),
            "{typ}"
        );
    }
    for kind in ["ID", "Refresh", "Logout"] {
        let refused = refusal_of(header(), with(payload(), "typ", json!(kind))).await;
        assert_eq!(refused, Some(TokenError::WrongType), "{kind}");
    }
    for claim in ["nonce", "at_hash", "c_hash", "s_hash"] {
        assert_eq!(
            refusal_of(with(header(), "typ", json!("JWT")), with(payload(), claim, json!("x"))).await,
            Some(TokenError::WrongType),
            "{claim}"
        );
    }
}

#[tokio::test]
async fn a_lifetime_may_have_a_limit() {
    let limited = || bench_with(IssuerSettings { max_lifetime: Some(Duration::from_secs(300)), ..settings() });
    for (issued, expires, want) in [
        (Some(NOW), NOW + 300, None),
        (Some(NOW), NOW + 301, Some(TokenError::TooLong)),
        (Some(NOW - 200), NOW + 101, Some(TokenError::TooLong)),
        (None, NOW + 1, Some(absent("iat"))),
    ] {
        let payload = with(without(payload(), "iat"), "exp", json!(expires));
        let payload = issued.iter().fold(payload, |payload, issued| with(payload, "iat", json!(issued)));
        assert_eq!(limited().refusal(&token_of(&EC, &header(), &payload)).await, want, "{issued:?} {expires}");
    }
}

#[tokio::test]
async fn rfc9068_asks_for_its_type_and_claims() {
    let strict = || bench_with(IssuerSettings { profile: Profile::Rfc9068, ..settings() });
    assert_eq!(strict().refusal(&good_token()).await, None);
    let prefixed = with(header(), "typ", json!("application/AT+JWT"));
    assert_eq!(strict().refusal(&token_of(&EC, &prefixed, &payload())).await, None);
    for header in [with(header(), "typ", json!("JWT")), without(header(), "typ")] {
        assert_eq!(strict().refusal(&token_of(&EC, &header, &payload())).await, Some(TokenError::WrongType));
    }
    for claim in ["client_id", "jti", "iat"] {
        let token = token_of(&EC, &header(), &without(payload(), claim));
        assert_eq!(strict().refusal(&token).await, Some(absent(claim)), "{claim}");
    }
}

#[tokio::test]
async fn an_unknown_issuer_is_failed_not_missing_and_opens_no_connection() {
    let mut bench = bench();
    for issuer in
        [json!("http://169.254.169.254/"), json!("https://id.example.com/"), json!("HTTPS://id.example.com"), json!(1)]
    {
        let token = token_of(&EC, &with(header(), "kid", json!("new")), &with(payload(), "iss", issuer));
        assert_eq!(bench.refusal(&token).await, Some(TokenError::UnknownIssuer));
    }
    assert!(bench.asked.try_recv().is_err(), "no refresh may be asked for");
}

#[tokio::test]
async fn malformed_tokens_are_refused_before_any_work() {
    let bench = bench();
    let good = good_token();
    for (name, token, want) in [
        ("dots", ".".repeat(10_000), TokenError::NotAJwt),
        ("one part", "abc".to_owned(), TokenError::NotAJwt),
        ("five parts", format!("{good}.a.b"), TokenError::NotAJwt),
        (
            "no signature",
            good.rsplit_once('.').map(|(signed, _)| format!("{signed}.")).expect("dots"),
            TokenError::NotAJwt,
        ),
        ("too large", "a".repeat(16 * 1024 + 1), TokenError::TooLarge),
        ("padding", format!("{good}="), TokenError::BadSignature),
        ("cut signature", good[..good.len() - 4].to_owned(), TokenError::BadSignature),
        (
            "deep payload",
            format!("{}.{}.x", encode(&header()), URL_SAFE_NO_PAD.encode("[".repeat(10_000))),
            TokenError::Payload,
        ),
        ("payload is no object", format!("{}.{}.x", encode(&header()), encode(&json!([1]))), TokenError::Payload),
        (
            "not utf-8",
            format!("{}.{}.x", encode(&header()), URL_SAFE_NO_PAD.encode(b"{\"iss\":\"\xff\"}")),
            TokenError::Payload,
        ),
        (
            "a member twice",
            format!("{}.{}.x", encode(&header()), URL_SAFE_NO_PAD.encode(r#"{"iss":"a","iss":"b"}"#)),
            TokenError::Payload,
        ),
    ] {
        assert_eq!(bench.refusal(&token).await, Some(want), "{name}");
    }
}

#[tokio::test]
async fn the_audience_is_compared_whole() {
    for (aud, want) in [
        (json!("api"), None),
        (json!(["other", "api"]), None),
        (json!("API"), Some(TokenError::WrongAudience)),
        (json!("api "), Some(TokenError::WrongAudience)),
        (json!([]), Some(TokenError::WrongAudience)),
    ] {
        assert_eq!(refusal_of(header(), with(payload(), "aud", aud.clone())).await, want, "{aud}");
    }
}

#[tokio::test]
async fn a_bound_token_without_proof_is_refused() {
    let cnf = json!({"jkt": "x"});
    assert_eq!(refusal_of(header(), with(payload(), "cnf", cnf)).await, Some(TokenError::Bound));
}

#[tokio::test]
async fn the_cache_is_bounded_by_bytes_and_keeps_what_is_used() {
    let clock = Clock::fixed(NOW);
    let (issuer, _) = Issuer::new(settings());
    issuer.replace_keys(KeySet::parse(jwks(&[("k1", &EC)]).as_bytes()).expect("a key set"));
    let limits = Settings { cache_bytes: 64 * 1024, ..limits() };
    let cache = super::cache::TokenCache::new(limits.cache_bytes, limits.cache_ttl, clock.clone());
    let verifier = Verifier::new(vec![Arc::clone(&issuer)], &limits, clock.clone());
    let (_, nobody) = Issuer::new(settings());
    let bench = Bench { issuer, asked: nobody, verifier, clock };
    let TokenState::Verified(verified) = bench.state(&good_token()).await else { panic!("it is good") };
    // Tokens that are used go on being used, while a million come once.
    let hot = ["hot-1", "hot-2", "hot-3"].map(|token| cache.fingerprint(token));
    for fingerprint in hot {
        cache.insert(fingerprint, 5, Arc::clone(&verified));
    }
    for n in 0..1_000_000 {
        if n % 100 == 0 {
            for fingerprint in &hot {
                cache.get(fingerprint);
            }
        }
        let token = format!("token-{n}");
        cache.insert(cache.fingerprint(&token), token.len(), Arc::clone(&verified));
        if n % 100_000 == 0 {
            assert!(cache.settled_bytes() <= limits.cache_bytes);
        }
    }
    assert!(cache.settled_bytes() <= limits.cache_bytes);
    let left = hot.iter().filter(|fingerprint| cache.get(fingerprint).is_some()).count();
    assert_eq!(left, hot.len(), "a flood washes out none of them");
}

proptest::proptest! {
    #[test]
    fn no_header_makes_the_reader_panic(value in "(?s).{0,120}") {
        let _ = super::claims::Unverified::parse(&value);
    }
}

#[tokio::test]
async fn a_name_of_a_key_may_be_just_so_long() {
    let edge = with(header(), "kid", json!("k".repeat(512)));
    assert_eq!(refusal_of(edge, payload()).await, Some(TokenError::UnknownKey));
    let beyond = with(header(), "kid", json!("k".repeat(513)));
    assert_eq!(refusal_of(beyond, payload()).await, Some(TokenError::Header));
}

#[tokio::test]
async fn a_token_may_have_just_the_size_of_its_limit() {
    let bench = bench();
    assert_eq!(bench.refusal(&"a".repeat(16 * 1024)).await, Some(TokenError::NotAJwt));
    assert_eq!(bench.refusal(&"a".repeat(16 * 1024 + 1)).await, Some(TokenError::TooLarge));
}

#[test]
fn a_verified_token_tells_who_and_what_for() {
    let verified = verified_for_tests(&json!({"scope": "read write"}), |_| {});
    assert_eq!((verified.issuer(), verified.subject(), verified.id()), (ISSUER, "alice", Some("1")));
    for (claims, want) in [
        (json!({"scope": "read write"}), true),
        (json!({"scope": "writer"}), false),
        (json!({"scope": ["read", "write"]}), true),
        (json!({"scope": ["read write"]}), false),
        (json!({"scp": "write read"}), true),
        (json!({"scp": ["read", "write"]}), true),
        (json!({"scp": ["read write"]}), false),
        (json!({}), false),
    ] {
        assert_eq!(verified_for_tests(&claims, |_| {}).has_scope("write"), want, "{claims}");
    }
    let other = verified_for_tests(&json!({"scope": "read write"}), |_| {});
    assert_ne!(verified.serial(), other.serial(), "each verification is its own");
    let late = verified_for_tests(&json!({}), |settings| settings.leeway = Duration::from_secs(30));
    assert_eq!(late.expires_with_leeway(), NOW + 630);
}
