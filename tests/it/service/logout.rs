//! Back-channel logout and revocation by token: what a provider or an administrator ends, sidecars reject.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use stepgate::app::HubApp;

use super::hub::{document, revoke, start_with};
use super::revocation::{Bench, ISSUER};
use crate::harness::NOW;

const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// A hub that accepts logout tokens, and a sidecar whose keys are those of the issuer.
async fn start(folder: &Path) -> (HubApp, Bench) {
    let keys = tempfile::tempdir().expect("a folder");
    let more = json!({
        "public": {"addr": "127.0.0.1:0", "url": "https://hub.example"},
        "logout": [{"name": "acme", "issuer": ISSUER, "client_ids": ["api", "web"]}],
    });
    let mut document = document(folder, more);
    let issuer = document.pointer_mut("/plugins/stepgate/issuers/0").and_then(Value::as_object_mut).expect("an issuer");
    issuer.remove("jwks_url");
    issuer.insert("jwks_file".to_owned(), json!(keys.path().join("jwks.json")));
    let hub = start_with(document).await.expect("the hub starts");
    let bench = Bench::start_in(&format!("http://{}", hub.address()), json!({}), keys).await;
    (hub, bench)
}

fn claims(jti: &str) -> Value {
    json!({"iss": ISSUER, "aud": "api", "iat": NOW, "exp": NOW + 120, "jti": jti, "sub": "alice", "sid": "s1", "events": {EVENT: {}}})
}

/// Posts a form; gives the status and the body.
async fn post(hub: &HubApp, path: &str, form: String) -> (u16, Value) {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("http://{}{path}", hub.public_address().expect("a public listener"));
    let request = client.post(url).header("content-type", "application/x-www-form-urlencoded").body(form);
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    assert_eq!(answer.headers().get("cache-control").map(|value| value.as_bytes()), Some(&b"no-store"[..]));
    (status, serde_json::from_str(&answer.text().await.expect("text")).unwrap_or_default())
}

async fn log_out(hub: &HubApp, token: &str) -> (u16, Value) {
    post(hub, "/logout/acme", format!("logout_token={token}")).await
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k", "typ": "logout+jwt"})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_ends_one_session_or_all_of_a_user() {
    let folder = tempfile::tempdir().expect("a folder");
    let (hub, bench) = start(folder.path()).await;
    let (one, other) = (bench.token(json!({})), bench.token(json!({"sid": "s2"})));
    bench.becomes("/required/x", &one, (200, "")).await;
    let logout = bench.sign(&header(), &claims("j1"));
    assert_eq!(log_out(&hub, &logout).await, (200, Value::Null));
    bench.becomes("/x", &one, (401, "session_revoked")).await;
    assert_eq!(bench.ask("/x", &other).await.0, 200, "another session of the user");
    let (status, body) = log_out(&hub, &logout).await;
    assert_eq!((status, &body["error_description"]), (400, &json!("`jti` has been used")));
    // Without a session, the user has to sign in again everywhere.
    let mut whole = claims("j2");
    whole.as_object_mut().expect("claims").remove("sid");
    assert_eq!(log_out(&hub, &bench.sign(&json!({"alg": "ES256", "kid": "k"}), &whole)).await.0, 200);
    bench.becomes("/x", &other, (401, "token_revoked")).await;
    let refreshed = bench.token(json!({"sid": "s2", "iat": NOW + 1}));
    assert_eq!(
        bench.ask("/x", &refreshed).await.1,
        "reauthentication_required",
        "a refreshed token keeps its `auth_time`"
    );
    let again = bench.token(json!({"sid": "s3", "iat": NOW + 1, "auth_time": NOW + 1}));
    assert_eq!(bench.ask("/x", &again).await.0, 200);
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_no_good_logout_tokens_change_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (hub, bench) = start(folder.path()).await;
    let token = bench.token(json!({}));
    bench.becomes("/required/x", &token, (200, "")).await;
    let with = |name: &str, value: Value| {
        let mut claims = claims("bad");
        let members = claims.as_object_mut().expect("claims");
        members.remove(name);
        if !value.is_null() {
            members.insert(name.to_owned(), value);
        }
        claims
    };
    for (wrong, want) in [
        (with("nonce", json!("n")), "`nonce`"),
        (with("aud", json!("other")), "`aud`"),
        (with("aud", json!(["x", 7])), "`aud`"),
        (with("aud", Value::Null), "`aud`"),
        (with("iss", json!("https://other")), "issuer"),
        (with("jti", Value::Null), "`jti`"),
        (with("jti", json!("x".repeat(257))), "`jti`"),
        (with("jti", json!(7)), "`jti`"),
        (with("events", json!([])), "`events`"),
        (with("events", json!({"other": {}})), "`events`"),
        (with("events", json!({EVENT: "x"})), "`events`"),
        (with("exp", json!(NOW - 61)), "expired"),
        (with("exp", Value::Null), "`exp`"),
        (with("exp", json!("soon")), "`exp`"),
        (with("iat", json!(NOW + 61)), "`iat`"),
        (with("iat", json!(NOW - 4_000)), "`iat`"),
        (with("iat", json!(-1)), "`iat`"),
        (with("sid", json!("")), "`sid`"),
        (
            json!({"iss": ISSUER, "aud": "api", "iat": NOW, "exp": NOW + 9, "jti": "j", "events": {EVENT: {}}}),
            "neither",
        ),
    ] {
        let (status, body) = log_out(&hub, &bench.sign(&header(), &wrong)).await;
        let described = body["error_description"].as_str().unwrap_or_default();
        assert!(
            status == 400 && described.contains(want) && body["error"] == "invalid_request",
            "{want}: {status} {body}"
        );
    }
    let good = bench.sign(&header(), &claims("good"));
    let (signed, signature) = good.rsplit_once('.').expect("a JWT");
    let flipped: String = signature.chars().rev().collect();
    let unsigned = "eyJhbGciOiJub25lIn0.e30.";
    for wrong in [format!("{signed}.{flipped}"), unsigned.to_owned(), "x".to_owned(), String::new()] {
        assert_eq!(log_out(&hub, &wrong).await.0, 400, "{wrong}");
    }
    for header in [json!({"alg": "HS256", "kid": "k"}), json!({"alg": "ES256", "kid": "k", "typ": "at+jwt"})] {
        assert_eq!(log_out(&hub, &bench.sign(&header, &claims("typ"))).await.0, 400, "{header}");
    }
    assert_eq!(post(&hub, "/logout/acme", format!("logout_token={good}&logout_token={good}")).await.0, 400, "two");
    assert_eq!(post(&hub, "/logout/acme", format!("logout_token={}", "x".repeat(17 << 10))).await.0, 400, "too long");
    assert_eq!(post(&hub, "/logout/other", format!("logout_token={good}")).await.0, 404);
    assert_eq!(bench.ask("/x", &token).await.0, 200, "and nothing has changed");
    assert_eq!(log_out(&hub, &good).await.0, 200, "nor was its `jti` used up");
    // They are bounded before a signature is verified.
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("http://{}/logout/acme", hub.public_address().expect("a public listener"));
    let mut statuses = std::collections::BTreeSet::new();
    // Some seconds' worth are allowed at once, and fifty more each second.
    for _ in 0..10_000 {
        if statuses.contains(&429) {
            break;
        }
        let request = client.post(&url).header("content-type", "application/x-www-form-urlencoded");
        statuses.insert(request.body("logout_token=x").send().await.expect("an answer").status().as_u16());
    }
    assert_eq!(statuses, [400, 429].into());
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_revokes_the_token_at_hand() {
    let folder = tempfile::tempdir().expect("a folder");
    let (hub, bench) = start(folder.path()).await;
    let file = folder.path().join("token");
    let revoke_file = async |token: &str| {
        std::fs::write(&file, token).expect("the token is written");
        let output = revoke(folder.path(), &["token", "--token-file", file.to_str().expect("a path")]).await;
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for more in [json!({"jti": "t1"}), json!({"sid": "s7"})] {
        let token = bench.token(more);
        bench.becomes("/required/x", &token, (200, "")).await;
        assert!(revoke_file(&token).await.contains("{\"seq\":"));
        bench.becomes("/x", &token, (401, "token_revoked")).await;
        assert_eq!(bench.ask("/x", &bench.token(json!({"jti": "t2"}))).await.0, 200, "other tokens of the user");
    }
    let expired = bench.token(json!({"exp": NOW - 120}));
    for gone in [expired.as_str(), "opaque", "a.b.c"] {
        assert!(revoke_file(gone).await.contains("no sidecar accepts it"), "{gone}");
    }
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[test]
fn logout_of_an_issuer_without_keys_is_refused() {
    let errors = |logout: Value| {
        let more = json!({"public": {"url": "https://hub.example"}, "logout": [logout]});
        let (_, problems) =
            stepgate::config::resolve(&stepgate::config::Document::of(document(Path::new("/x"), more)), None);
        problems.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(errors(json!({"name": "a", "issuer": ISSUER, "client_ids": ["api"]})), "");
    let found = errors(json!({"name": "A b", "issuer": "https://other", "client_ids": []}));
    for want in ["logout[0].name", "none of the configured issuers", "logout[0].client_ids"] {
        assert!(found.contains(want), "{want}: {found}");
    }
}
