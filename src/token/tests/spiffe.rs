//! JWT-SVID: what its standard asks beyond RFC 7519.

use super::*;

fn svid_settings() -> IssuerSettings {
    IssuerSettings { issuer: "spiffe://example.org".to_owned(), profile: Profile::JwtSvid, ..settings() }
}

fn svid_bench() -> Bench {
    let bench = bench_with(svid_settings());
    let svid = with(with(json!(EC.public_jwk()), "kid", json!("k1")), "use", json!("jwt-svid"));
    let plain = with(json!(EC_OTHER.public_jwk()), "kid", json!("k2"));
    let bundle = json!({"keys": [svid, plain], "spiffe_sequence": 1});
    bench.issuer.replace_keys(KeySet::parse_for(Profile::JwtSvid, bundle.to_string().as_bytes()).expect("a bundle"));
    bench
}

fn svid_header() -> Json {
    json!({"alg": "ES256", "kid": "k1", "typ": "JWT"})
}

fn svid_payload() -> Json {
    json!({"sub": "spiffe://example.org/ns/a/sa/b", "aud": ["api"], "exp": NOW + 60})
}

#[tokio::test]
async fn a_svid_is_known_by_its_trust_domain() {
    for payload in [svid_payload(), with(svid_payload(), "iss", json!("https://spire.example.org"))] {
        let TokenState::Verified(verified) = svid_bench().state(&token_of(&EC, &svid_header(), &payload)).await else {
            panic!("refused")
        };
        let workload = verified.workload().map(crate::value::json_text).unwrap_or_default();
        assert_eq!(
            workload,
            r#"{"open_to_strangers":false,"path":"/ns/a/sa/b","provider":"spiffe","subject":"spiffe://example.org/ns/a/sa/b","trust_domain":"example.org","untrusted_trigger":false}"#
        );
        assert_eq!(verified.authn().level, 0);
    }
}

#[tokio::test]
async fn everything_else_is_refused() {
    let in_header = |name: &str, value: Json| (with(svid_header(), name, value), svid_payload());
    let in_payload = |name: &str, value: Json| (svid_header(), with(svid_payload(), name, value));
    for ((header, payload), want) in [
        (in_header("typ", json!("at+jwt")), TokenError::WrongType),
        (in_header("typ", json!("jwt")), TokenError::WrongType),
        (in_header("x5t", json!("AAAA")), TokenError::Header),
        (in_header("alg", json!("EdDSA")), TokenError::Algorithm),
        (in_payload("sub", json!("spiffe://other.org/a")), TokenError::UnknownIssuer),
        (in_payload("sub", json!("spiffe://example.org/a/")), TokenError::UnknownIssuer),
        (in_payload("sub", json!("alice")), TokenError::UnknownIssuer),
        (in_payload("aud", json!(["other"])), TokenError::WrongAudience),
        ((svid_header(), without(svid_payload(), "exp")), absent("exp")),
        ((svid_header(), without(svid_payload(), "aud")), absent("aud")),
    ] {
        let token = token_of(&EC, &header, &payload);
        assert_eq!(svid_bench().refusal(&token).await, Some(want), "{header} {payload}");
    }
    let other = token_of(&EC_OTHER, &with(svid_header(), "kid", json!("k2")), &svid_payload());
    assert_eq!(svid_bench().refusal(&other).await, Some(TokenError::UnknownKey), "keys of other uses");
    // Named as the issuer, with a subject that is no ID.
    let named = token_of(
        &EC,
        &svid_header(),
        &with(with(svid_payload(), "iss", json!("spiffe://example.org")), "sub", json!("a")),
    );
    assert_eq!(svid_bench().refusal(&named).await, Some(wrong("sub")));
}

#[tokio::test]
async fn an_algorithm_that_the_standard_leaves_out_is_refused_even_where_configured() {
    let bench = bench_with(IssuerSettings { algorithms: vec![Algorithm::EdDsa], ..svid_settings() });
    let token = token_of(&EC, &with(svid_header(), "alg", json!("EdDSA")), &svid_payload());
    assert_eq!(bench.refusal(&token).await, Some(TokenError::Algorithm));
}
