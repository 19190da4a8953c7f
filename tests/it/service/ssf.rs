//! Security events: what a transmitter pushes or has waiting, sidecars act on.

#![expect(clippy::indexing_slicing, reason = "the helpers of tests, too")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::post;
use parking_lot::Mutex;
use serde_json::{Value, json};
use stepgate::app::HubApp;

use super::hub::{TOKEN, document, socket, start_with};
use super::revocation::{Bench, ISSUER};
use crate::harness::{NOW, merge, settled};

const TRANSMITTER: &str = "https://transmitter.example";
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type";
const RISC: &str = "https://schemas.openid.net/secevent/risc/event-type";
const SSF: &str = "https://schemas.openid.net/secevent/ssf/event-type";

/// A hub with one stream, changed by `more`, and a sidecar with the key of the transmitter.
async fn start(folder: &Path, more: Value, top: Value) -> (HubApp, Bench) {
    let keys = tempfile::tempdir().expect("a folder");
    let credential = folder.join("credential");
    std::fs::write(&credential, TOKEN).expect("the credential");
    let jwks = keys.path().join("jwks.json");
    let mut stream = json!({"name": "idp", "transmitter": TRANSMITTER, "audience": "https://hub.example", "issuers": [ISSUER],
                            "token_files": [credential], "jwks_file": jwks});
    merge(&mut stream, more);
    let public = json!({"addr": "127.0.0.1:0", "url": "https://hub.example"});
    let mut document = document(folder, json!({"public": public, "streams": [stream]}));
    merge(&mut document, top);
    let hub = start_with(document).await.expect("the hub starts");
    let bench = Bench::start_in(&format!("http://{}", hub.address()), json!({}), keys).await;
    (hub, bench)
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k", "typ": "secevent+jwt"})
}

/// The claims of a SET with one event about `subject`.
fn set(jti: &str, event: &str, subject: Value, more: Value) -> Value {
    let mut body = json!({"event_timestamp": NOW});
    merge(&mut body, more);
    json!({"iss": TRANSMITTER, "aud": "https://hub.example", "iat": NOW, "jti": jti, "sub_id": subject, "events": {event: body}})
}

fn alice() -> Value {
    json!({"format": "iss_sub", "iss": ISSUER, "sub": "alice"})
}

struct Transmitter {
    client: reqwest::Client,
    url: String,
}

impl Transmitter {
    fn of(hub: &HubApp) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { client, url: format!("http://{}/ssf/idp/events", hub.public_address().expect("a public listener")) }
    }

    async fn push_with(&self, credential: &str, media: &str, text: String) -> (u16, Value) {
        let request = self.client.post(&self.url).header("content-type", media).bearer_auth(credential).body(text);
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), serde_json::from_str(&answer.text().await.expect("text")).unwrap_or_default())
    }

    async fn push(&self, text: String) -> (u16, Value) {
        self.push_with(TOKEN, "application/secevent+jwt", text).await
    }
}

async fn metrics(hub: &HubApp) -> String {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let url = format!("http://{}/metrics", hub.address());
    client.get(url).send().await.expect("metrics").text().await.expect("text")
}

fn user(name: &str) -> Value {
    json!({"format": "iss_sub", "iss": ISSUER, "sub": name})
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_has_its_effect() {
    let folder = tempfile::tempdir().expect("a folder");
    let more = json!({"opaque_is": "sub", "tenant": "acme", "format_is": {"did": "sub"}});
    let (hub, bench) = start(folder.path(), more, json!({})).await;
    let transmitter = Transmitter::of(&hub);
    let email = |name: &str| json!({"format": "email", "email": format!("{}@Example.com", name.to_uppercase())});
    // Each with the subject, and what becomes of a token of before, of one of later with the same sign-in, and of a new sign-in.
    let rejected = "token_revoked";
    let again = "reauthentication_required";
    let out = "account_disabled";
    for (at, (event, subject, more, want)) in [
        (format!("{CAEP}/session-revoked"), user("e0"), json!({}), [rejected, again, ""]),
        (format!("{CAEP}/session-revoked"), json!({"format": "complex", "session": {"format": "opaque", "id": "s-e1"}}), json!({}), ["session_revoked"; 3]),
        // As Keycloak names a session.
        (format!("{CAEP}/session-revoked"), json!({"user": user("e2"), "session": {"format": "opaque", "id": "s-e2"}, "tenant": {"format": "opaque", "id": "acme"}}), json!({}), ["session_revoked"; 3]),
        (format!("{CAEP}/credential-change"), user("e3"), json!({"credential_type": "password", "change_type": "update"}), [rejected, again, ""]),
        (format!("{CAEP}/credential-change"), user("e4"), json!({"credential_type": "fido2-roaming", "change_type": "revoke"}), [again, again, ""]),
        (format!("{CAEP}/credential-change"), user("e5"), json!({"credential_type": "pin", "change_type": "create"}), ["", "", ""]),
        (format!("{CAEP}/token-claims-change"), email("e6"), json!({"claims": {"role": "x"}}), [rejected, "", ""]),
        (format!("{RISC}/account-disabled"), user("e7"), json!({"reason": "hijacking"}), [out; 3]),
        (format!("{RISC}/account-purged"), json!({"format": "opaque", "id": "e8"}), json!({}), [out; 3]),
        (format!("{RISC}/sessions-revoked"), json!({"format": "account", "uri": "acct:e9@example.com"}), json!({}), [rejected, again, ""]),
        (format!("{RISC}/credential-compromise"), json!({"format": "aliases", "identifiers": [email("e10"), {"format": "did", "url": "e10"}]}), json!({"credential_type": "password"}), [rejected, again, ""]),
        (format!("{RISC}/account-credential-change-required"), user("e11"), json!({}), [again, again, ""]),
        (format!("{RISC}/identifier-changed"), email("e12"), json!({"new-value": "x@example.com"}), [rejected, "", ""]),
        (format!("{CAEP}/risk-level-change"), user("e13"), json!({"current_level": "HIGH"}), ["", "", ""]),
        // One without a time of its own, and one in milliseconds.
        (format!("{CAEP}/session-revoked"), user("e14"), json!({"event_timestamp": null}), [rejected, again, ""]),
        (format!("{CAEP}/session-revoked"), user("e15"), json!({"event_timestamp": NOW * 1_000}), [rejected, again, ""]),
        // As Keycloak names all sessions of a user; and an account that is disabled is not one session.
        (
            format!("{CAEP}/session-revoked"),
            json!({"user": user("e16"), "session": {"format": "opaque", "id": "ALL"}, "tenant": {"format": "opaque", "id": "acme"}}),
            json!({}),
            [rejected, again, ""],
        ),
        (
            format!("{RISC}/account-disabled"),
            json!({"user": user("e17"), "session": {"format": "opaque", "id": "other"}}),
            json!({}),
            [out; 3],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("e{at}");
        let token = |more: Value| {
            let mut claims = json!({"sub": name, "email": format!("{name}@example.com"), "sid": format!("s-{name}")});
            merge(&mut claims, more);
            bench.token(claims)
        };
        let before = token(json!({}));
        bench.becomes("/required/x", &before, (200, "")).await;
        let text = bench.sign(&header(), &set(&name, &event, subject, more));
        assert_eq!(transmitter.push(text.clone()).await, (202, Value::Null), "{name} {event}");
        let tokens = [before, token(json!({"iat": NOW + 1})), token(json!({"iat": NOW + 1, "auth_time": NOW + 1}))];
        for (token, want) in tokens.iter().zip(want) {
            bench.becomes("/x", token, (if want.is_empty() { 200 } else { 401 }, want)).await;
        }
        assert_eq!(transmitter.push(text).await.0, 202, "a transmitter that sends it again");
    }
    let text = metrics(&hub).await;
    for want in [
        "type=\"account-disabled\",outcome=\"applied\"} 2",
        "type=\"account-disabled\",outcome=\"duplicate\"} 2",
        "type=\"risk-level-change\",outcome=\"applied\"} 1",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
    // A late purge shortens nothing, and an enabling SET that is older than repetitions are remembered is none.
    let old = NOW - 401 * 86_400;
    for (jti, event) in [("purged", "account-purged"), ("old", "account-enabled")] {
        let mut claims = set(jti, &format!("{RISC}/{event}"), user("e7"), json!({"event_timestamp": old}));
        claims["iat"] = json!(old);
        assert_eq!(transmitter.push(bench.sign(&header(), &claims)).await.0, 202);
    }
    let still = bench.token(json!({"sub": "e7", "email": "e7@example.com", "sid": "y", "iat": NOW + 1}));
    assert_eq!(bench.ask("/x", &still).await.1, "account_disabled");
    // The stream enables a user that it has disabled.
    let enable = bench.sign(&header(), &set("on", &format!("{RISC}/account-enabled"), user("e7"), json!({})));
    assert_eq!(transmitter.push(enable).await.0, 202);
    let token = bench.token(json!({"sub": "e7", "email": "e7@example.com", "sid": "x", "iat": NOW + 1}));
    bench.becomes("/x", &token, (200, "")).await;
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

/// They reject nothing by themselves; a lowered level counts until the user has authenticated again, or it rises.
#[tokio::test(flavor = "multi_thread")]
async fn policies_read_events_about_the_user() {
    let folder = tempfile::tempdir().expect("a folder");
    let more = json!({"levels": {"gold": 3, "bronze": "single_factor"}, "recovery_tier": 2});
    let (hub, bench) = start(folder.path(), more, json!({})).await;
    let transmitter = Transmitter::of(&hub);
    let token = |more: Value| {
        let mut claims = json!({"sub": "alice", "amr": ["pwd", "otp"], "sid": "s1"});
        merge(&mut claims, more);
        bench.token(claims)
    };
    let before = token(json!({}));
    bench.becomes("/required/x", &before, (200, "")).await;
    assert_eq!((bench.ask("/level/2/-", &before).await.0, bench.ask("/level/2/", &before).await.0), (403, 200));
    let assurance = |current: &str, direction: &str, namespace: &str| json!({"namespace": namespace, "current_level": current, "previous_level": "nist-aal3", "change_direction": direction});
    let long = "x".repeat(65);
    for (at, (event, more, path)) in [
        (
            "caep/risk-level-change",
            json!({"principal": "USER", "current_level": "HIGH", "risk_reason": long}),
            "risk/level=HIGH",
        ),
        (
            "caep/credential-change",
            json!({"credential_type": "pin", "change_type": "create"}),
            "credential_change/change_type=create",
        ),
        ("risc/recovery-activated", json!({}), "recovery/tier=2"),
        ("caep/device-compliance-change", json!({"current_status": "not-compliant"}), "device/status=not-compliant"),
        ("caep/assurance-level-change", assurance("nist-aal1", "decrease", "NIST-AAL"), "assurance/cap=1"),
    ]
    .into_iter()
    .enumerate()
    {
        let uri = event.replace("caep", CAEP).replace("risc", RISC);
        assert_eq!(transmitter.push(bench.sign(&header(), &set(&format!("n{at}"), &uri, alice(), more))).await.0, 202);
        bench.becomes(&format!("/events/{path}"), &before, (200, "")).await;
    }
    // Free text is not among them.
    assert_eq!(bench.ask(&format!("/events/risk/reason={long}"), &before).await.0, 403);
    let bob = token(json!({"sub": "bob", "email": "bob@example.com"}));
    assert_eq!(bench.ask("/events/risk/level=HIGH", &bob).await.0, 403);
    // The level is what is left of it.
    assert_eq!(bench.ask("/level/1/assurance", &before).await.0, 200);
    let again = token(json!({"auth_time": NOW + 1, "iat": NOW + 1}));
    assert_eq!(bench.ask("/level/2/", &again).await.0, 200, "authenticated after it");
    let send = |jti: &str, more: Value| {
        transmitter.push(bench.sign(&header(), &set(jti, &format!("{CAEP}/assurance-level-change"), alice(), more)))
    };
    assert_eq!(send("up", assurance("nist-aal3", "increase", "NIST-AAL")).await.0, 202);
    bench.becomes("/level/2/", &before, (200, "")).await;
    for (jti, level, want) in [("own", "bronze", "1"), ("lower", "tin", "0")] {
        assert_eq!(send(jti, assurance(level, "decrease", "own")).await.0, 202);
        bench.becomes(&format!("/level/{want}/assurance"), &before, (200, "")).await;
    }
    // A sidecar that comes later has them from the snapshot.
    let text = metrics(&hub).await;
    assert!(text.contains("type=\"risk-level-change\",outcome=\"applied\"} 1"), "{text}");
    let late = Bench::start(&format!("http://{}", hub.address()), json!({})).await;
    let token = late.token(json!({"sub": "alice", "amr": ["pwd", "otp"]}));
    late.becomes("/events/risk/level=HIGH", &token, (200, "")).await;
    late.service.stop().await;
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_that_are_not_good_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let (hub, bench) = start(folder.path(), json!({}), json!({})).await;
    let transmitter = Transmitter::of(&hub);
    let token = bench.token(json!({}));
    bench.becomes("/required/x", &token, (200, "")).await;
    let revoked = format!("{CAEP}/session-revoked");
    let good = || set("good", &revoked, alice(), json!({}));
    let with = |name: &str, value: Value| {
        let mut claims = good();
        let members = claims.as_object_mut().expect("claims");
        members.remove(name);
        if !value.is_null() {
            members.insert(name.to_owned(), value);
        }
        claims
    };
    let other = json!({"format": "iss_sub", "iss": ISSUER, "sub": "bob"});
    for (claims, want) in [
        (with("iss", json!("https://other")), "invalid_issuer"),
        (with("iss", Value::Null), "invalid_issuer"),
        (with("aud", json!("https://other")), "invalid_audience"),
        (with("aud", json!(["a", 7])), "invalid_audience"),
        (with("aud", Value::Null), "invalid_audience"),
        (with("jti", Value::Null), "invalid_request"),
        (with("jti", json!("")), "invalid_request"),
        (with("jti", json!("x".repeat(257))), "invalid_request"),
        (with("iat", Value::Null), "invalid_request"),
        (with("iat", json!(NOW + 301)), "invalid_request"),
        (with("iat", json!("now")), "invalid_request"),
        (with("exp", json!(NOW + 60)), "invalid_request"),
        (with("sub", json!("alice")), "invalid_request"),
        (with("sub_id", Value::Null), "invalid_request"),
        (with("sub_id", json!("alice")), "invalid_request"),
        (with("sub_id", json!({})), "invalid_request"),
        (with("sub_id", json!({"format": "iss_sub", "iss": ISSUER})), "invalid_request"),
        (with("sub_id", json!({"format": "aliases", "identifiers": []})), "invalid_request"),
        (with("events", Value::Null), "invalid_request"),
        (with("events", json!({})), "invalid_request"),
        (with("events", json!([])), "invalid_request"),
        (with("events", json!({revoked.as_str(): "x"})), "invalid_request"),
    ] {
        let (status, body) = transmitter.push(bench.sign(&header(), &claims)).await;
        assert_eq!((status, &body["err"]), (400, &json!(want)), "{claims}: {body}");
        assert!(body["description"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    }
    // In the words of another dialect, which the description names.
    let mut okta = with("sub_id", Value::Null);
    okta["events"] = json!({revoked.as_str(): {"subject": alice()}});
    let (status, body) = transmitter.push(bench.sign(&header(), &okta)).await;
    assert!(
        status == 400 && body["description"].as_str().is_some_and(|text| text.contains("`dialect: okta`")),
        "{body}"
    );
    for (header, want) in [
        (json!({"alg": "ES256", "kid": "k"}), "invalid_request"),
        (json!({"alg": "ES256", "kid": "k", "typ": "JWT"}), "invalid_request"),
        (json!({"alg": "HS256", "kid": "k", "typ": "secevent+jwt"}), "invalid_key"),
        (json!({"alg": "none", "typ": "secevent+jwt"}), "invalid_key"),
        (json!({"alg": "EdDSA", "kid": "k", "typ": "secevent+jwt"}), "invalid_key"),
        (json!({"alg": "ES256", "kid": "other", "typ": "secevent+jwt"}), "invalid_key"),
        (json!({"alg": "ES256", "kid": "k", "typ": "secevent+jwt", "crit": ["x"], "x": 1}), "invalid_request"),
    ] {
        let (status, body) = transmitter.push(bench.sign(&header, &good())).await;
        assert_eq!((status, &body["err"]), (400, &json!(want)), "{header}: {body}");
    }
    let text = bench.sign(&header(), &good());
    let (signed, signature) = text.rsplit_once('.').expect("a JWT");
    let flipped: String = signature.chars().rev().collect();
    let media = "application/secevent+jwt";
    for (credential, media, text, want) in [
        (TOKEN, media, format!("{signed}.{flipped}"), "invalid_key"),
        (TOKEN, media, "x".to_owned(), "invalid_request"),
        (TOKEN, media, String::new(), "invalid_request"),
        (TOKEN, media, "x".repeat((64 << 10) + 1), "invalid_request"),
        (TOKEN, "application/json", text.clone(), "invalid_request"),
        ("wrong", media, text.clone(), "authentication_failed"),
        ("", media, text.clone(), "authentication_failed"),
    ] {
        let (status, body) = transmitter.push_with(credential, media, text).await;
        assert_eq!((status, &body["err"]), (400, &json!(want)), "{body}");
    }
    assert_eq!(bench.ask("/x", &token).await.0, 200, "nothing has changed");
    // Two events are about one subject; what is not known, or names no one of this stream, is acknowledged.
    let mut two = good();
    two["events"] = json!({revoked.as_str(): {}, (format!("{RISC}/sessions-revoked")): {}, "urn:unknown": {}});
    two["jti"] = json!("two");
    for (claims, outcome) in [
        (set("u1", "urn:unknown", alice(), json!({})), "type=\"other\",outcome=\"unknown\"} 1"),
        (
            set("u2", &revoked, json!({"format": "iss_sub", "iss": "https://other", "sub": "alice"}), json!({})),
            "outcome=\"unmatched\"} 1",
        ),
        (
            set("u3", &revoked, json!({"format": "phone_number", "phone_number": "+1"}), json!({})),
            "outcome=\"unmatched\"} 2",
        ),
        (
            set("u4", &revoked, json!({"user": alice(), "tenant": {"format": "opaque", "id": "x"}}), json!({})),
            "outcome=\"unmatched\"} 3",
        ),
        (set("u5", &revoked, other, json!({"event_timestamp": 1_000_000})), "outcome=\"stale\"} 1"),
    ] {
        assert_eq!(transmitter.push(bench.sign(&header(), &claims)).await.0, 202, "{claims}");
        let text = metrics(&hub).await;
        assert!(text.contains(outcome), "{outcome}: {text}");
    }
    assert_eq!(bench.ask("/x", &token).await.0, 200, "nothing has changed");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_stepgate"));
    command.args(["hub", "unmatched", "--socket"]).arg(socket(folder.path()));
    let listed = tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("it ends");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.lines().count() == 3 && listed.contains("\"event\":\"session-revoked\""), "{listed}");
    assert!(!listed.contains("alice"), "names of users are not kept");
    assert_eq!(transmitter.push(bench.sign(&header(), &two)).await.0, 202);
    bench.becomes("/x", &token, (401, "token_revoked")).await;
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_the_words_of_okta() {
    let folder = tempfile::tempdir().expect("a folder");
    let more = json!({"dialect": "okta", "subject_issuers": {"https://acme.okta.com": "sub"}});
    let (hub, bench) = start(folder.path(), more, json!({})).await;
    let transmitter = Transmitter::of(&hub);
    let subject = |name: &str| json!({"user": {"iss": "https://acme.okta.com", "sub": name}});
    let okta = |jti: &str, events: Value| json!({"iss": TRANSMITTER, "aud": "https://hub.example", "iat": NOW, "jti": jti, "events": events});
    let revoked = format!("{CAEP}/session-revoked");
    let change = format!("{CAEP}/credential-change");
    for (name, events, want) in [
        // One browser session has ended: the user is not signed out everywhere.
        (
            "o1",
            json!({revoked.as_str(): {"subject": subject("o1"), "event_timestamp": NOW * 1_000, "initiating_entity": "user"}}),
            ["token_revoked", ""],
        ),
        (
            "o2",
            json!({revoked.as_str(): {"subject": subject("o2"), "event_timestamp": NOW * 1_000, "initiating_entity": "admin"}}),
            ["token_revoked", "reauthentication_required"],
        ),
        (
            "o3",
            json!({change.as_str(): {"subject": {"format": "iss_sub", "iss": "https://acme.okta.com", "sub": "o3"}, "credential_type": "ALL_FACTORS", "change_type": "revoke"}}),
            ["reauthentication_required"; 2],
        ),
        (
            "o4",
            json!({change.as_str(): {"subject": subject("o4"), "credential_type": "password", "change_type": "revoke"}, revoked.as_str(): {"subject": subject("o4"), "initiating_entity": "system"}}),
            ["token_revoked", "reauthentication_required"],
        ),
    ] {
        let token = |iat: i64| {
            bench.token(json!({"sub": name, "email": format!("{name}@example.com"), "sid": name, "iat": iat}))
        };
        bench.becomes("/required/x", &token(NOW - 100), (200, "")).await;
        assert_eq!(transmitter.push(bench.sign(&header(), &okta(name, events))).await.0, 202, "{name}");
        for (iat, want) in [(NOW - 100, want[0]), (NOW + 1, want[1])] {
            bench.becomes("/x", &token(iat), (if want.is_empty() { 200 } else { 401 }, want)).await;
        }
    }
    // Two subjects in one SET would leave it open whom each event means.
    let two = json!({change.as_str(): {"subject": subject("o5"), "change_type": "revoke"}, revoked.as_str(): {"subject": subject("o6")}});
    assert_eq!(transmitter.push(bench.sign(&header(), &okta("two", two))).await.0, 400);
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[derive(Default)]
struct Waiting {
    sets: Vec<(String, String)>,
    requests: Vec<Value>,
    asked: Vec<Value>,
}

/// A transmitter that has SETs waiting until they are acknowledged.
async fn poll(State(waiting): State<Arc<Mutex<Waiting>>>, body: String) -> String {
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let mut waiting = waiting.lock();
    let done: Vec<String> =
        body["ack"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let refused: Vec<String> = body["setErrs"].as_object().into_iter().flatten().map(|(jti, _)| jti.clone()).collect();
    waiting.sets.retain(|(jti, _)| !done.contains(jti) && !refused.contains(jti));
    waiting.requests.push(body);
    let (first, has_more) = (waiting.sets.iter().take(2), waiting.sets.len() > 2);
    let sets: serde_json::Map<String, Value> = first.map(|(jti, set)| (jti.clone(), json!(set))).collect();
    json!({"sets": sets, "moreAvailable": has_more}).to_string()
}

async fn verification(State(waiting): State<Arc<Mutex<Waiting>>>, body: String) -> axum::http::StatusCode {
    waiting.lock().asked.push(serde_json::from_str(&body).expect("JSON"));
    axum::http::StatusCode::NO_CONTENT
}

#[tokio::test(flavor = "multi_thread")]
async fn sets_that_wait_are_fetched_and_acknowledged() {
    let folder = tempfile::tempdir().expect("a folder");
    let waiting = Arc::new(Mutex::new(Waiting::default()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let router = axum::Router::new().route("/poll", post(poll)).route("/verify", post(verification));
    let router = router.with_state(Arc::clone(&waiting));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let more = json!({"token_files": [], "poll": {"service": "idp", "resource": "/poll", "interval": "1s"},
                      "verify": {"service": "idp", "resource": "/verify", "stream_id": "s-1", "interval": "60s"}});
    let (hub, bench) = start(folder.path(), more, json!({"services": {"idp": {"url": url}}})).await;
    let token = bench.token(json!({}));
    bench.becomes("/required/x", &token, (200, "")).await;
    let verified =
        set("v", &format!("{SSF}/verification"), json!({"format": "opaque", "id": "s-1"}), json!({"state": "wrong"}));
    settled("a verification event to be asked for", || async { waiting.lock().asked.len() == 1 }).await;
    let state = waiting.lock().asked[0]["state"].clone();
    let right =
        set("w", &format!("{SSF}/verification"), json!({"format": "opaque", "id": "s-1"}), json!({"state": state}));
    let bad = set("b", &format!("{CAEP}/session-revoked"), json!({}), json!({}));
    let revoked = set("r", &format!("{CAEP}/session-revoked"), alice(), json!({}));
    for (jti, claims) in [("v", verified), ("b", bad), ("w", right), ("r", revoked)] {
        waiting.lock().sets.push((jti.to_owned(), bench.sign(&header(), &claims)));
    }
    bench.becomes("/x", &token, (401, "token_revoked")).await;
    settled("all to be answered", || async { waiting.lock().sets.is_empty() }).await;
    let requests = waiting.lock().requests.clone();
    let refused = |jti: &str| requests.iter().find_map(|request| request["setErrs"][jti]["err"].as_str());
    assert_eq!((refused("v"), refused("b")), (Some("invalid_state"), Some("invalid_request")));
    let acknowledged = requests.iter().flat_map(|request| request["ack"].as_array().cloned().unwrap_or_default());
    let acknowledged: std::collections::BTreeSet<_> = acknowledged.map(|jti| jti.to_string()).collect();
    assert_eq!(acknowledged, ["\"r\"".to_owned(), "\"w\"".to_owned()].into());
    // A transmitter that does not wait is not asked again at once.
    let before = waiting.lock().requests.len();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(waiting.lock().requests.len() <= before + 3, "{}", waiting.lock().requests.len() - before);
    assert!(metrics(&hub).await.contains("stepgate_hub_source_age_seconds{source=\"idp\"} 0"));
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

/// A session without room ends all of its user's; one of no known user waits, and what is behind it does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_share_of_sessions_stops_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let waiting = Arc::new(Mutex::new(Waiting::default()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let router = axum::Router::new().route("/poll", post(poll)).with_state(Arc::clone(&waiting));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let more = json!({"poll": {"service": "idp", "resource": "/poll", "interval": "1s"}});
    let top = json!({"services": {"idp": {"url": url}}, "plugins": {"stepgate": {"hub": {"max_entries": 2}}}});
    let (hub, bench) = start(folder.path(), more, top).await;
    let transmitter = Transmitter::of(&hub);
    let session = |id: &str| json!({"session": {"format": "opaque", "id": id}});
    let revoked = format!("{CAEP}/session-revoked");
    let first = bench.sign(&header(), &set("first", &revoked, session("s0"), json!({})));
    assert_eq!(transmitter.push(first).await.0, 202, "it has the only place");
    let token = bench.token(json!({}));
    bench.becomes("/required/x", &token, (200, "")).await;
    let of_alice = json!({"user": alice(), "session": {"format": "opaque", "id": "s1"}});
    assert_eq!(transmitter.push(bench.sign(&header(), &set("owned", &revoked, of_alice, json!({})))).await.0, 202);
    bench.becomes("/x", &token, (401, "token_revoked")).await;
    let without_room = bench.sign(&header(), &set("a", &revoked, session("s2"), json!({})));
    assert_eq!(transmitter.push(without_room.clone()).await.0, 503);
    let bob = bench.token(json!({"sub": "bob", "email": "bob@example.com", "sid": "s9"}));
    bench.becomes("/x", &bob, (200, "")).await;
    let disabled = bench.sign(&header(), &set("b", &format!("{RISC}/account-disabled"), user("bob"), json!({})));
    waiting.lock().sets.extend([("a".to_owned(), without_room), ("b".to_owned(), disabled)]);
    bench.becomes("/x", &bob, (401, "account_disabled")).await;
    settled("the second to be acknowledged", || async { waiting.lock().sets.len() == 1 }).await;
    bench.service.stop().await;
    assert!(hub.stop(Duration::from_secs(5)).await);
}

#[test]
fn mistakes_of_a_stream_are_named() {
    let errors = |more: Value| {
        let mut stream = json!({"name": "idp", "transmitter": TRANSMITTER, "audience": "a", "issuers": [ISSUER], "token_files": ["/t"]});
        merge(&mut stream, more);
        let hub = json!({"public": {"url": "https://hub.example"}, "streams": [stream]});
        let (_, problems) =
            stepgate::config::resolve(&stepgate::config::Document::of(document(Path::new("/x"), hub)), None);
        problems.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(errors(json!({})), "");
    for (more, want) in [
        (json!({"name": "x y"}), "streams[0].name"),
        (json!({"transmitter": ""}), "streams[0].transmitter"),
        (json!({"transmitter": "urn:idp"}), "give `jwks_url` or `jwks_file`"),
        (json!({"audience": ""}), "streams[0].audience"),
        (json!({"issuers": ["https://other"]}), "none of the configured issuers"),
        (json!({"token_files": []}), "streams[0].token_files"),
        (json!({"algorithms": ["HS256"]}), "`HS256` is none of"),
        (json!({"opaque_is": "oid"}), "`oid` is no join of these issuers"),
        (json!({"directories": ["okta"]}), "`okta` is none of `hub.scim`"),
        (json!({"poll": {"service": "x", "resource": "/p"}}), "poll.service"),
    ] {
        let found = errors(more);
        assert!(found.contains(want), "{want}: {found}");
    }
}
