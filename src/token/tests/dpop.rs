//! RFC 9449 section 4.3: each of its checks, by its number, and section 7.1.

use aws_lc_rs::digest::{SHA256, digest};

use super::*;
use crate::token::dpop::thumbprint;
use crate::token::error::ProofFault;
use crate::value::{DuplicateKeys, JsonLimits, parse_json};

fn jwk(key: &SigningKey) -> Json {
    let mut jwk = json!(key.public_jwk());
    // A client's JWK has no more than the key.
    jwk.as_object_mut()
        .expect("an object")
        .retain(|name, _| ["kty", "crv", "x", "y", "n", "e"].contains(&name.as_str()));
    jwk
}

fn thumbprint_of(key: &SigningKey) -> String {
    let limits = JsonLimits { depth: 4, duplicates: DuplicateKeys::Refuse };
    thumbprint(&parse_json(jwk(key).to_string().as_bytes(), limits).expect("JSON")).expect("a thumbprint")
}

/// A token that is bound to `EC_OTHER`.
fn bound_token() -> String {
    token_of(&EC, &header(), &with(payload(), "cnf", json!({"jkt": thumbprint_of(&EC_OTHER)})))
}

fn proof_header() -> Json {
    json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk(&EC_OTHER)})
}

fn proof_payload(token: &str) -> Json {
    json!({
        "jti": "p1", "htm": "POST", "htu": "https://api.test/pay", "iat": NOW,
        "ath": URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes())),
    })
}

fn dpop_bench() -> Bench {
    bench_with(IssuerSettings { locations: vec![Location::bearer(), Location::dpop()], ..settings() })
}

async fn state(bench: &Bench, headers: &[(&str, &str)]) -> TokenState {
    let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    let (method, path, host) = ("POST".to_owned(), "/pay?x=1".to_owned(), "api.test".to_owned());
    bench.request(HttpRequest { headers, method, path, host, ..HttpRequest::default() }).await
}

async fn refusal(bench: &Bench, token: &str, proof: &str) -> Option<TokenError> {
    match state(bench, &[("authorization", &format!("DPoP {token}")), ("dpop", proof)]).await {
        TokenState::Verified(_) => None,
        TokenState::Rejected(error) => Some(error),
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test]
async fn a_proof_counts_once_and_the_token_with_it() {
    let (bench, token) = (dpop_bench(), bound_token());
    let proof = token_of(&EC_OTHER, &proof_header(), &proof_payload(&token));
    assert_eq!(refusal(&bench, &token, &proof).await, None);
    assert_eq!(refusal(&bench, &token, &proof).await, Some(TokenError::ProofReplayed), "the token is cached now");
    let next = token_of(&EC_OTHER, &proof_header(), &with(proof_payload(&token), "jti", json!("p2")));
    let TokenState::Verified(verified) =
        state(&bench, &[("authorization", &format!("DPoP {token}")), ("dpop", &next)]).await
    else {
        panic!("it is good")
    };
    assert!(verified.is_bound(), "and is asked for more as DPoP");
}

#[tokio::test]
async fn every_numbered_check_counts() {
    let token = bound_token();
    let good = || (proof_header(), proof_payload(&token));
    let in_header = |name: &str, value: Json| (with(proof_header(), name, value), proof_payload(&token));
    let in_payload = |name: &str, value: Json| (proof_header(), with(proof_payload(&token), name, value));
    let mut private = jwk(&EC_OTHER);
    private["d"] = json!("AQAB");
    for (number, (header, payload), want) in [
        ("3 jti", (proof_header(), without(proof_payload(&token), "jti")), TokenError::Proof(ProofFault::Id)),
        ("3 jti empty", in_payload("jti", json!("")), TokenError::Proof(ProofFault::Id)),
        ("3 jti long", in_payload("jti", json!("x".repeat(257))), TokenError::Proof(ProofFault::Id)),
        ("3 iat", (proof_header(), without(proof_payload(&token), "iat")), TokenError::Proof(ProofFault::Time)),
        ("3 iat text", in_payload("iat", json!(NOW.to_string())), TokenError::Proof(ProofFault::Time)),
        ("4 typ", in_header("typ", json!("JWT")), TokenError::Proof(ProofFault::Type)),
        ("4 no typ", (without(proof_header(), "typ"), proof_payload(&token)), TokenError::Proof(ProofFault::Type)),
        ("5 none", in_header("alg", json!("none")), TokenError::Proof(ProofFault::Algorithm)),
        ("5 secret", in_header("alg", json!("HS256")), TokenError::Proof(ProofFault::Algorithm)),
        ("5 not on the list", in_header("alg", json!("RS512")), TokenError::Proof(ProofFault::Algorithm)),
        ("6 another key", in_header("jwk", jwk(&EC)), TokenError::Proof(ProofFault::Signature)),
        ("6 no key", (without(proof_header(), "jwk"), proof_payload(&token)), TokenError::Proof(ProofFault::Key)),
        ("7 private", in_header("jwk", private), TokenError::Proof(ProofFault::Key)),
        ("8 htm", in_payload("htm", json!("GET")), TokenError::Proof(ProofFault::Method)),
        ("8 letter case", in_payload("htm", json!("post")), TokenError::Proof(ProofFault::Method)),
        ("9 path", in_payload("htu", json!("https://api.test/other")), TokenError::Proof(ProofFault::Url)),
        ("9 host", in_payload("htu", json!("https://evil.test/pay")), TokenError::Proof(ProofFault::Url)),
        ("9 query", in_payload("htu", json!("https://api.test/pay?x=1")), TokenError::Proof(ProofFault::Url)),
        ("11 old", in_payload("iat", json!(NOW - 61)), TokenError::ProofStale),
        ("11 of the future", in_payload("iat", json!(NOW + 61)), TokenError::ProofStale),
        ("12 no ath", (proof_header(), without(proof_payload(&token), "ath")), TokenError::WrongKey),
        ("12 another token", in_payload("ath", json!("AAAA")), TokenError::WrongKey),
        ("crit", in_header("crit", json!(["x"])), TokenError::Proof(ProofFault::Extension)),
    ] {
        let proof = token_of(&EC_OTHER, &header, &payload);
        assert_eq!(refusal(&dpop_bench(), &token, &proof).await, Some(want), "{number}");
    }
    let (header, payload) = good();
    let proof = token_of(&EC_OTHER, &header, &payload);
    // Good but for its size; the signature has 86 letters, and 3 bytes are 4 letters.
    let huge = |bytes: usize| {
        let plain = token_of(&EC_OTHER, &header, &with(payload.clone(), "pad", json!("")));
        let filled = with(payload.clone(), "pad", json!("x".repeat((bytes - plain.len()).div_ceil(4) * 3)));
        token_of(&EC_OTHER, &header, &filled)
    };
    assert_eq!(refusal(&dpop_bench(), &token, &huge(8 * 1024 - 4)).await, None, "just small enough");
    for (number, fault, bad) in [
        ("1 two", ProofFault::Repeated, format!("{proof},{proof}")),
        ("2 no JWT", ProofFault::Syntax, "x".to_owned()),
        ("2 cut", ProofFault::Syntax, proof.split('.').take(2).collect::<Vec<_>>().join(".")),
        ("2 huge", ProofFault::TooLarge, huge(8 * 1024 + 1)),
        ("6 changed", ProofFault::Signature, format!("{}AAAA", proof.get(..proof.len() - 4).expect("a proof"))),
    ] {
        assert_eq!(refusal(&dpop_bench(), &token, &bad).await, Some(TokenError::Proof(fault)), "{number}");
    }
    // 12: a whole proof of a key that the token is not bound to.
    let strange = token_of(&EC, &with(proof_header(), "jwk", jwk(&EC)), &proof_payload(&token));
    assert_eq!(refusal(&dpop_bench(), &token, &strange).await, Some(TokenError::WrongKey));
}

#[tokio::test]
async fn a_proof_is_good_to_the_edge_of_its_window() {
    let token = bound_token();
    for issued in [NOW - 60, NOW + 60] {
        let proof = token_of(&EC_OTHER, &proof_header(), &with(proof_payload(&token), "iat", json!(issued)));
        assert_eq!(refusal(&dpop_bench(), &token, &proof).await, None, "{issued}");
    }
}

#[tokio::test]
async fn plain_http_is_for_this_machine_alone() {
    let (bench, token) = (dpop_bench(), bound_token());
    for (n, (host, htu, is_good)) in [
        ("localhost:80", "http://localhost/pay", true),
        ("[::1]", "http://[::1]/pay", true),
        ("api.test", "http://api.test/pay", false),
        ("localhost", "ftp://localhost/pay", false),
        ("localhost", "https://localhost/pay", true),
    ]
    .into_iter()
    .enumerate()
    {
        let payload = with(with(proof_payload(&token), "htu", json!(htu)), "jti", json!(n.to_string()));
        let proof = token_of(&EC_OTHER, &proof_header(), &payload);
        let headers =
            HashMap::from([("authorization".to_owned(), format!("DPoP {token}")), ("dpop".to_owned(), proof)]);
        let (method, path, host) = ("POST".to_owned(), "/pay".to_owned(), host.to_owned());
        let state = bench.request(HttpRequest { headers, method, path, host, ..HttpRequest::default() }).await;
        assert_eq!(matches!(state, TokenState::Verified(_)), is_good, "{htu}");
    }
}

#[test]
fn each_kind_of_key_has_its_thumbprint() {
    let limits = JsonLimits { depth: 4, duplicates: DuplicateKeys::Refuse };
    let of = |text: &str| thumbprint(&parse_json(text.as_bytes(), limits).expect("JSON"));
    // RFC 8037 appendix A.3.
    let okp = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    assert_eq!(of(okp).as_deref(), Some("kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"));
    assert_eq!(of(r#"{"kty":"oct","k":"AAAA"}"#), None);
    assert_eq!(of(r#"{"kty":"EC","crv":"P-256","x":"AAAA"}"#), None);
}

#[tokio::test]
async fn bound_and_unbound_tokens_keep_to_their_schemes() {
    let (bench, token) = (dpop_bench(), bound_token());
    let proof = token_of(&EC_OTHER, &proof_header(), &proof_payload(&token));
    let rejected = async |headers: &[(&str, &str)]| match state(&bench, headers).await {
        TokenState::Rejected(error) => error,
        other => panic!("unexpected {other:?}"),
    };
    let bearer = format!("Bearer {token}");
    assert_eq!(rejected(&[("authorization", &bearer), ("dpop", &proof)]).await, TokenError::Bound);
    assert_eq!(rejected(&[("authorization", &format!("DPoP {token}"))]).await, TokenError::ProofMissing);
    let both = format!("{bearer},DPoP {token}");
    assert_eq!(rejected(&[("authorization", &both), ("dpop", &proof)]).await, TokenError::SeveralTokens);
    let plain = good_token();
    let proof = token_of(&EC_OTHER, &proof_header(), &proof_payload(&plain));
    assert_eq!(rejected(&[("authorization", &format!("DPoP {plain}")), ("dpop", &proof)]).await, TokenError::NotBound);
    assert!(matches!(state(&bench, &[("authorization", &format!("Bearer {plain}"))]).await, TokenState::Verified(_)));
    // Bound to more than can be proven here.
    let cnf = json!({"jkt": thumbprint_of(&EC_OTHER), "x5t#S256": "AAAA"});
    let token = token_of(&EC, &header(), &with(payload(), "cnf", cnf));
    let proof = token_of(&EC_OTHER, &proof_header(), &proof_payload(&token));
    assert_eq!(rejected(&[("authorization", &format!("DPoP {token}")), ("dpop", &proof)]).await, TokenError::Bound);
}

#[tokio::test]
async fn where_nonces_are_asked_for_a_proof_has_one_of_ours() {
    let nonces = Arc::new(Nonces::new(&[7; 32]).expect("a key"));
    let proofs = ProofSettings { nonces: Some(Arc::clone(&nonces)), ..ProofSettings::default() };
    let settings = IssuerSettings { locations: vec![Location::dpop()], ..settings() };
    let bench = bench_within(settings, &Settings { proofs, ..limits() });
    let token = bound_token();
    for (nonce, want) in [
        (None, Some(TokenError::Nonce)),
        (Some(json!("")), Some(TokenError::Nonce)),
        (Some(json!(nonces.at(NOW - 180))), Some(TokenError::Nonce)),
        (Some(json!([nonces.at(NOW)])), Some(TokenError::Nonce)),
        (Some(json!(nonces.at(NOW))), None),
    ] {
        let payload = nonce.iter().fold(proof_payload(&token), |payload, nonce| with(payload, "nonce", nonce.clone()));
        assert_eq!(refusal(&bench, &token, &token_of(&EC_OTHER, &proof_header(), &payload)).await, want, "{nonce:?}");
    }
    assert_eq!(TokenError::Nonce.code(), "use_dpop_nonce");
}

/// A proof is accepted from a workload, at a host.
async fn is_taken(bench: &Bench, principal: &str, host: &str, token: &str, proof: &str) -> bool {
    let headers = [("authorization".to_owned(), format!("DPoP {token}")), ("dpop".to_owned(), proof.to_owned())].into();
    let (method, path, host) = ("POST".to_owned(), "/pay".to_owned(), host.to_owned());
    let http = HttpRequest { headers, method, path, host, ..HttpRequest::default() };
    matches!(bench.request_from(principal, http).await, TokenState::Verified(_))
}

#[tokio::test]
async fn a_proof_that_a_gateway_has_counted_is_a_replay_from_anyone_else() {
    let gateway = "spiffe://td/ns/gw/sa/gw";
    let proofs = ProofSettings {
        checked_by: vec![SpiffePattern::parse(gateway).expect("a pattern")],
        ..ProofSettings::default()
    };
    let settings = IssuerSettings { locations: vec![Location::dpop()], ..settings() };
    let bench = bench_within(settings, &Settings { proofs, ..limits() });
    let token = bound_token();
    let proof = |id: &str| token_of(&EC_OTHER, &proof_header(), &with(proof_payload(&token), "jti", json!(id)));
    for (principal, id, want) in [
        (gateway, "a", true),
        (gateway, "a", true),
        ("spiffe://td/ns/evil/sa/evil", "a", false),
        ("", "a", false),
        ("", "b", true),
        (gateway, "b", true),
        ("", "b", false),
    ] {
        assert_eq!(is_taken(&bench, principal, "api.test", &token, &proof(id)).await, want, "{principal} {id}");
    }
}

#[tokio::test]
async fn a_proof_is_remembered_as_long_as_its_nonce_is_good() {
    let nonces = Arc::new(Nonces::new(&[7; 32]).expect("a key"));
    let window = Duration::from_secs(2);
    let proofs = ProofSettings { nonces: Some(Arc::clone(&nonces)), window, ..ProofSettings::default() };
    let settings = IssuerSettings { locations: vec![Location::dpop()], ..settings() };
    let bench = bench_within(settings, &Settings { proofs, ..limits() });
    let token = bound_token();
    let payload = with(proof_payload(&token), "nonce", json!(nonces.at(NOW)));
    let proof = token_of(&EC_OTHER, &proof_header(), &payload);
    assert_eq!(refusal(&bench, &token, &proof).await, None);
    for _ in 0..6 {
        bench.clock.advance(9);
        assert_eq!(refusal(&bench, &token, &proof).await, Some(TokenError::ProofReplayed));
    }
}

#[tokio::test]
async fn a_proof_is_for_one_of_our_hosts() {
    let origins = ["https://api.test", "https://other.test"].map(str::to_owned).to_vec();
    let proofs = ProofSettings { origins, ..ProofSettings::default() };
    let settings = IssuerSettings { locations: vec![Location::dpop()], ..settings() };
    let bench = bench_within(settings, &Settings { proofs, ..limits() });
    let token = bound_token();
    let proof = |id: &str| token_of(&EC_OTHER, &proof_header(), &with(proof_payload(&token), "jti", json!(id)));
    assert!(is_taken(&bench, "", "api.test", &token, &proof("1")).await);
    assert!(is_taken(&bench, "", "api.test:443", &token, &proof("2")).await);
    assert!(!is_taken(&bench, "", "other.test", &token, &proof("3")).await, "that of another of our hosts");
    assert!(is_taken(&bench, "", "backend.internal", &token, &proof("4")).await, "a Host that was rewritten");
}
