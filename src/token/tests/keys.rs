//! Which keys count, for how long, and what asks for new ones.

use super::*;

#[tokio::test]
async fn a_cached_token_is_refused_once_its_key_is_gone() {
    let bench = bench();
    assert_eq!(bench.refusal(&good_token()).await, None);
    bench.issuer.replace_keys(KeySet::parse(jwks(&[("k2", &EC_OTHER)]).as_bytes()).expect("a key set"));
    assert_eq!(bench.refusal(&good_token()).await, Some(TokenError::UnknownKey));
}

#[tokio::test]
async fn keys_are_not_served_stale_for_ever() {
    let bench = bench();
    bench.issuer.confirm(NOW);
    assert!(bench.issuer.keys(NOW + super::issuer::MAX_STALE_SECONDS).is_some());
    assert!(bench.issuer.keys(NOW + super::issuer::MAX_STALE_SECONDS + 1).is_none());
    assert!(bench.verifier.has_keys());
    bench.issuer.confirm(NOW - super::issuer::MAX_STALE_SECONDS - 1);
    assert!(!bench.verifier.has_keys(), "not ready");
    assert_eq!(bench.refusal(&good_token()).await, Some(TokenError::KeysUnavailable));
}

#[tokio::test]
async fn a_cached_token_stays_good_when_its_key_stays() {
    let bench = bench();
    assert_eq!(bench.refusal(&good_token()).await, None);
    bench.issuer.replace_keys(KeySet::parse(jwks(&[("k2", &EC_OTHER), ("k1", &EC)]).as_bytes()).expect("a key set"));
    assert_eq!(bench.refusal(&good_token()).await, None);
}

#[tokio::test]
async fn a_set_that_says_nothing_usable_is_not_taken() {
    for text in ["{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, "not json", r#"{"keys":7}"#] {
        assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
    }
    let many = json!({"keys": vec![json!(EC.public_jwk()); MAX_KEYS + 1]}).to_string();
    assert_eq!(KeySet::parse(many.as_bytes()).err(), Some(KeySetError::TooMany));
}

#[tokio::test]
async fn unusable_keys_do_not_spoil_their_set() {
    let ec = json!(EC.public_jwk());
    let encryption = with(ec.clone(), "use", json!("enc"));
    let signing_only = with(ec.clone(), "key_ops", json!(["sign"]));
    let wrong_alg = with(ec.clone(), "alg", json!("RS256"));
    let off_curve = with(ec.clone(), "y", ec["x"].clone());
    let short_rsa = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB"});
    let text = json!({"keys": [encryption, signing_only, wrong_alg, off_curve, short_rsa, ec]}).to_string();
    assert_eq!(KeySet::parse(text.as_bytes()).expect("one key is good").len(), 1);
}

#[tokio::test]
async fn wrong_tokens_do_not_eat_the_refresh_budget() {
    let mut bench = bench();
    let unknown = with(header(), "kid", json!("new"));
    for payload in [
        with(payload(), "aud", json!("other")),
        with(payload(), "exp", json!(NOW - 1)),
        with(payload(), "iss", json!("https://stranger.example")),
    ] {
        assert!(bench.refusal(&token_of(&EC_OTHER, &unknown, &payload)).await.is_some());
    }
    assert!(bench.asked.try_recv().is_err(), "none of them may ask for a refresh");
}

#[tokio::test]
async fn random_key_ids_ask_for_one_refresh_per_gate_interval() {
    let mut bench = bench();
    for kid in 0..1_000 {
        let token = token_of(&EC_OTHER, &with(header(), "kid", json!(format!("random-{kid}"))), &payload());
        assert_eq!(bench.refusal(&token).await, Some(TokenError::UnknownKey));
        // The feed's report after an attempt that brought nothing new.
        if bench.asked.try_recv().is_ok() {
            assert_eq!(kid, 0, "only the first may ask");
            bench.issuer.refresh_ended();
        }
    }
    bench.clock.advance(30);
    let token = token_of(&EC_OTHER, &with(header(), "kid", json!("later")), &payload());
    bench.refusal(&token).await;
    assert!(bench.asked.try_recv().is_ok(), "after the interval one more may ask");
}

#[tokio::test]
async fn a_rotated_key_works_on_the_first_request() {
    let Bench { issuer, mut asked, verifier, clock } = bench();
    let feed = tokio::spawn({
        let issuer = Arc::clone(&issuer);
        async move {
            asked.recv().await.expect("a refresh is asked for");
            issuer.replace_keys(KeySet::parse(jwks(&[("k2", &EC_OTHER)]).as_bytes()).expect("a key set"));
            asked
        }
    });
    let (_, nobody) = Issuer::new(settings());
    let bench = Bench { issuer, asked: nobody, verifier, clock };
    let token = token_of(&EC_OTHER, &with(header(), "kid", json!("k2")), &payload());
    assert_eq!(bench.refusal(&token).await, None);
    feed.await.expect("the feed ends");
}

#[tokio::test]
async fn an_outage_is_not_the_tokens_fault() {
    let (issuer, _asked) = Issuer::new(settings());
    let clock = Clock::fixed(NOW);
    let verifier = Verifier::new(vec![Arc::clone(&issuer)], &limits(), clock.clone());
    let (_, nobody) = Issuer::new(settings());
    let bench = Bench { issuer, asked: nobody, verifier, clock };
    assert!(!bench.verifier.has_keys());
    assert_eq!(bench.refusal(&good_token()).await, Some(TokenError::KeysUnavailable));
    bench.issuer.replace_keys(KeySet::parse(jwks(&[("k1", &EC)]).as_bytes()).expect("a key set"));
    assert_eq!(bench.refusal(&good_token()).await, None, "nothing about the outage is remembered");
}

#[tokio::test]
async fn keys_that_share_a_name_or_have_none_are_tried() {
    let bench = bench();
    bench.issuer.replace_keys(KeySet::parse(jwks(&[("k1", &EC_OTHER), ("k1", &EC)]).as_bytes()).expect("a key set"));
    assert_eq!(bench.refusal(&good_token()).await, None);
    assert_eq!(bench.refusal(&token_of(&EC, &without(header(), "kid"), &payload())).await, None);
}

#[tokio::test]
async fn a_cached_token_does_not_outlive_its_stale_keys() {
    let bench = bench_with(IssuerSettings { max_lifetime: None, ..settings() });
    let later = super::issuer::MAX_STALE_SECONDS + 1;
    let token = token_of(&EC, &header(), &with(payload(), "exp", json!(NOW + later + 600)));
    bench.issuer.confirm(NOW);
    assert_eq!(bench.refusal(&token).await, None);
    bench.clock.advance(later);
    assert_eq!(bench.refusal(&token).await, Some(TokenError::KeysUnavailable));
}

/// A sender of a new key is asked to come again while its set cannot be fetched, and refused once it was.
#[tokio::test]
async fn an_unknown_key_counts_as_bad_only_while_the_set_is_fresh() {
    let bench = bench();
    bench.issuer.confirm(NOW);
    let of_another = token_of(&EC_OTHER, &with(header(), "kid", json!("new")), &payload());
    let verify = async || {
        let soon = tokio::time::Instant::now() + Duration::from_millis(50);
        super::verify_signature_of(&bench.issuer, &of_another, &bench.clock, soon).await.err()
    };
    assert_eq!(verify().await, Some(TokenError::UnknownKey));
    bench.clock.advance(super::issuer::REFRESH_GATE_SECONDS + 1);
    assert_eq!(verify().await, Some(TokenError::KeysUnavailable));
    bench.issuer.confirm(bench.clock.now());
    assert_eq!(verify().await, Some(TokenError::UnknownKey));
}

#[tokio::test]
async fn who_comes_while_keys_are_fetched_waits_for_them_too() {
    let (issuer, mut asked) = Issuer::new(settings());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    let both = async {
        let first = issuer.refresh(NOW, deadline);
        let second = async {
            asked.recv().await.expect("the first asks");
            let waits = tokio::spawn({
                let issuer = Arc::clone(&issuer);
                async move {
                    issuer.refresh(NOW, deadline).await;
                    issuer.generation()
                }
            });
            tokio::task::yield_now().await;
            issuer.replace_keys(KeySet::parse(jwks(&[("k1", &EC)]).as_bytes()).expect("a key set"));
            waits.await.expect("it ends")
        };
        tokio::join!(first, second).1
    };
    let before = issuer.generation();
    assert_eq!(both.await, before + 1, "it saw the new keys");
    assert!(asked.try_recv().is_err(), "one question for both");
}

#[tokio::test]
async fn a_clock_that_jumps_decides_by_where_it_stands() {
    let mut bench = bench();
    assert_eq!(bench.refusal(&good_token()).await, None);
    bench.clock.advance(3_600);
    assert_eq!(bench.refusal(&good_token()).await, Some(TokenError::Expired));
    bench.clock.advance(-3_600);
    assert_eq!(bench.refusal(&good_token()).await, None, "and back");
    bench.clock.advance(-3_600);
    assert_eq!(bench.refusal(&good_token()).await, Some(TokenError::NotYetValid));
    // Keys that were confirmed in what is now the future are asked for all the same.
    let unknown =
        token_of(&EC_OTHER, &with(header(), "kid", json!("new")), &with(payload(), "iat", json!(NOW - 7_200)));
    assert_eq!(bench.refusal(&unknown).await, Some(TokenError::UnknownKey));
    assert!(bench.asked.try_recv().is_ok());
    bench.clock.advance(3_600);
    assert_eq!(bench.refusal(&good_token()).await, None);
}

#[test]
fn only_other_keys_are_new() {
    let bench = bench();
    let replace = |keys: &[(&str, &SigningKey)]| {
        bench.issuer.replace_keys(KeySet::parse(jwks(keys).as_bytes()).expect("a key set"))
    };
    assert!(replace(&[("k1", &EC), ("k2", &EC_OTHER)]));
    assert!(!replace(&[("k2", &EC_OTHER), ("k1", &EC)]), "the order means nothing");
    assert!(replace(&[("k1", &EC)]) && replace(&[("k1", &EC_OTHER)]));
}

#[test]
fn keys_that_cannot_be_used_are_listed_with_the_reason() {
    let good: Json = serde_json::from_str(&jwks(&[("k1", &EC)])).expect("JSON");
    let mut keys = good["keys"].as_array().expect("keys").clone();
    for (kid, change) in [
        ("enc", json!({"use": "enc"})),
        ("ops", json!({"key_ops": ["encrypt"]})),
        ("alg", json!({"alg": "RS256"})),
        ("unknown", json!({"alg": "X"})),
        ("oct", json!({"kty": "oct"})),
        // RFC 7518 section 6.2.1.2: as long as the curve asks for.
        ("short", json!({"x": "AQAB"})),
    ] {
        let mut key = keys[0].clone();
        key["kid"] = json!(kid);
        for (name, value) in change.as_object().expect("members") {
            key[name] = value.clone();
        }
        keys.push(key);
    }
    let set = KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).expect("one is good");
    let told: Vec<_> = set.unusable().iter().map(|key| (key.kid.as_str(), key.reason)).collect();
    assert_eq!(told, [("ops", "key_ops"), ("alg", "alg"), ("unknown", "alg"), ("oct", "key"), ("short", "key")]);
}
