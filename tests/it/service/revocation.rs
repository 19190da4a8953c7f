//! Revocation end to end in the sidecar: a hub that speaks the protocol, tokens, checks.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};
use stepgate::revocation::{Entry, Header, HubKey, Kind, Line, PERMANENT, Record, encode};
use stepgate_jose::{Algorithm, PrivateKey, SigningKey, signing_input};
use tokio::sync::broadcast;

use crate::harness::{NOW, Service, settled};

pub(super) const ISSUER: &str = "https://issuer";
const KEY: [u8; 32] = [7; 32];
const AT: u32 = 1_800_000_000;
const POLICY: &str = r#"package app
default allow := false
allow if {
    input.jwt.state == "verified"
    not input.parsed_path[0] in {"facts", "events", "level"}
}
allow if {
    input.parsed_path[0] == "events"
    input.revocation.events_state == "complete"
    some event in input.revocation.events[input.parsed_path[1]]
    event.source == "idp"
    some name, value in event
    sprintf("%v=%v", [name, value]) == input.parsed_path[2]
}
allow if {
    input.parsed_path[0] == "level"
    input.authn.level == to_number(input.parsed_path[1])
    object.get(input.authn, "capped_by", "") == input.parsed_path[2]
}
allow if {
    input.parsed_path[0] == "facts"
    input.revocation.state == "live"
    input.revocation.mapped_by == ["sub", "email"]
    not input.revocation.unmappable
}
allow if input.parsed_path[0] == "public"
allow if {
    input.parsed_path[0] == "asserted"
    input.jwt.state == "asserted"
}
"#;

/// A hub: its records, and the lines that its readers get.
#[derive(Clone)]
struct Hub {
    url: String,
    state: Arc<Mutex<Records>>,
    lines: broadcast::Sender<String>,
}

struct Records {
    epoch: String,
    seq: u64,
    records: Vec<Record>,
    snapshots: usize,
    is_down: bool,
}

impl Hub {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Records { epoch: "e1".to_owned(), seq: 0, records: Vec::new(), snapshots: 0, is_down: false };
        let hub = Self { url, state: Arc::new(Mutex::new(state)), lines: broadcast::channel(64).0 };
        let answering = hub.clone();
        let router = axum::Router::new().fallback(move |request: Request| {
            let answering = answering.clone();
            async move { answering.answer(&request) }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        hub
    }

    fn answer(&self, request: &Request) -> Response {
        let mut state = self.state.lock();
        if state.is_down {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        if request.uri().path() == "/v1/snapshot" {
            state.snapshots += 1;
            let header = Header {
                epoch: state.epoch.clone(),
                seq: state.seq,
                as_of: NOW,
                retain: 90_000,
                hub_key: hex::encode(KEY),
            };
            return Body::from(encode(&header, &state.records)).into_response();
        }
        let after = request.uri().query().unwrap_or_default();
        let first = match after == format!("after={}.{}", state.epoch, state.seq) {
            true => json!({"hello": {"as_of": NOW}}),
            false => json!({"reset": "gap"}),
        };
        let mut lines = self.lines.subscribe();
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<String, std::convert::Infallible>>(16);
        tokio::spawn(async move {
            let _ = sender.send(Ok(format!("{first}\n"))).await;
            while let Ok(line) = lines.recv().await {
                if line.is_empty() || sender.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        });
        let stream = futures_of(receiver);
        Body::from_stream(stream).into_response()
    }

    /// Publishes the entry of a key.
    fn put(&self, kind: Kind, name: &str, value: &str, entry: Entry) {
        let issuer = if kind == Kind::Key { "" } else { ISSUER };
        let key = HubKey::new(&KEY).key(kind, issuer, name, value);
        let mut state = self.state.lock();
        state.seq += 1;
        state.records.retain(|(known, _)| *known != key);
        state.records.push((key, entry));
        let _ = self.lines.send(Line::Changed { key, entry, seq: state.seq }.text());
    }

    fn beat(&self, as_of: i64) {
        let _ = self.lines.send(Line::Confirmed { as_of }.text());
    }

    /// Cuts every feed.
    fn cut(&self) {
        let _ = self.lines.send(String::new());
    }
}

/// A channel as a stream.
fn futures_of<T: Send + 'static>(
    mut receiver: tokio::sync::mpsc::Receiver<T>,
) -> impl futures_core::Stream<Item = T> + Send {
    futures_of_poll(move |context| receiver.poll_recv(context))
}

struct Polled<F>(F);

fn futures_of_poll<T, F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<T>> + Unpin>(
    poll: F,
) -> Polled<F> {
    Polled(poll)
}

impl<T, F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<T>> + Unpin> futures_core::Stream
    for Polled<F>
{
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        (self.0)(context)
    }
}

/// A sidecar that follows the hub at a URL, and who signs its tokens.
pub(super) struct Bench {
    pub service: Service,
    key: SigningKey,
    _folder: tempfile::TempDir,
}

impl Bench {
    pub async fn start(hub: &str, more: Value) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::start_in(hub, more, folder).await
    }

    pub async fn start_in(hub: &str, more: Value, folder: tempfile::TempDir) -> Self {
        let pem = PrivateKey::generate(Algorithm::ES256).expect("a key");
        let key = SigningKey::from_pem(Algorithm::ES256, &pem).expect("its PEM is read");
        let mut jwk = key.public_jwk();
        jwk.insert("kid", "k".to_owned());
        let keys = folder.path().join("jwks.json");
        std::fs::write(&keys, json!({"keys": [jwk]}).to_string()).expect("the keys are written");
        let joins = json!({"email": {"claim": "email", "fold": "email", "when": "email_verified"}});
        let mut config = json!({
            "services": {"hub": {"url": hub, "response_header_timeout_seconds": 1}},
            "persistence_directory": folder.path(),
            "plugins": {"stepgate": {
                "revocation": {"service": "hub"},
                "issuers": [{"issuer": ISSUER, "audiences": ["a"], "algorithms": ["ES256"], "jwks_file": keys,
                             "revocation": {"joins": joins}}],
                "routes": [{"path": "/required/**", "revocation": "required"}, {"path": "/off/**", "revocation": "off"}],
            }},
        });
        crate::harness::merge(&mut config, more);
        // A member that is null is left out.
        let revocation = config.pointer_mut("/plugins/stepgate/revocation").and_then(Value::as_object_mut);
        revocation.expect("a section").retain(|_, value| !value.is_null());
        let service = Service::start(config, POLICY).await;
        Self { service, key, _folder: folder }
    }

    pub fn token(&self, more: Value) -> String {
        let mut claims = json!({"iss": ISSUER, "aud": "a", "sub": "alice", "iat": NOW - 100, "exp": NOW + 3_600,
                                "auth_time": NOW - 200, "sid": "s1", "email": "Alice@Example.com", "email_verified": true});
        crate::harness::merge(&mut claims, more);
        // Members that are null are left out.
        claims.as_object_mut().expect("claims").retain(|_, value| !value.is_null());
        self.sign(&json!({"alg": "ES256", "kid": "k"}), &claims)
    }

    /// Any JWT of the issuer.
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = signing_input(&header.to_string(), &claims.to_string());
        format!("{signed}.{}", self.key.sign(signed.as_bytes()).expect("it signs"))
    }

    /// The status that a client gets, and the reason in the body.
    pub async fn ask(&self, path: &str, token: &str) -> (u32, String) {
        self.service.status_of(path, token).await
    }

    pub async fn becomes(&self, path: &str, token: &str, want: (u32, &str)) {
        settled(&format!("{want:?} at {path}"), || async {
            let (status, reason) = self.ask(path, token).await;
            (status, reason.as_str()) == want
        })
        .await;
    }
}

fn revoked() -> Entry {
    Entry { not_before: AT, until: AT + 90_000, ..Entry::default() }
}

/// A token that Envoy has verified is matched by its claims, on every request.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_envoy_has_verified_is_rejected_too() {
    let hub = Hub::start().await;
    let joins = json!({"email": {"claim": "email", "fold": "email"}});
    let issuer = json!({"issuer": ISSUER, "audiences": ["a"], "trust": "envoy", "payload_in_metadata": "jwt",
                        "revocation": {"joins": joins}});
    let bench = Bench::start(&hub.url, json!({"plugins": {"stepgate": {"issuers": [issuer]}}})).await;
    let claims = |more: Value| {
        let mut claims = json!({"iss": ISSUER, "aud": "a", "sub": "alice", "email": "Alice@example.com", "sid": "s1",
                                "iat": NOW - 100, "exp": NOW + 3_600, "auth_time": NOW - 200});
        crate::harness::merge(&mut claims, more);
        claims
    };
    let ask = async |claims: Value| bench.service.status_of_asserted("/asserted", "jwt", &claims).await;
    let becomes = async |more: Value, want: (u32, &str)| {
        settled(&format!("{want:?}"), || async {
            let (status, reason) = ask(claims(more.clone())).await;
            (status, reason.as_str()) == want
        })
        .await;
    };
    becomes(json!({}), (200, "")).await;
    assert_eq!(ask(claims(json!({"exp": NOW + 1_000_000}))).await.1, "lifetime_too_long");
    hub.put(Kind::User, "email", "alice@example.com", revoked());
    becomes(json!({}), (401, "token_revoked")).await;
    becomes(json!({"email": "bob@example.com", "sub": "bob"}), (200, "")).await;
    hub.put(Kind::Session, "", "s2", Entry { deny: true, until: AT + 90_000, ..Entry::default() });
    becomes(json!({"email": "bob@example.com", "sub": "bob", "sid": "s2"}), (401, "session_revoked")).await;
    bench.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_token_is_rejected_as_soon_as_its_user_is_revoked() {
    let hub = Hub::start().await;
    let bench = Bench::start(&hub.url, json!({})).await;
    let (alice, bob) =
        (bench.token(json!({})), bench.token(json!({"sub": "bob", "email": "bob@example.com", "sid": "s2"})));
    for token in [&alice, &bob] {
        bench.becomes("/x", token, (200, "")).await;
    }
    assert_eq!(bench.ask("/facts", &alice).await.0, 200, "the policy sees how the token is matched");
    hub.put(Kind::User, "sub", "alice", revoked());
    bench.becomes("/x", &alice, (401, "token_revoked")).await;
    assert_eq!(bench.ask("/x", &bob).await.0, 200);
    assert_eq!(bench.ask("/public", &alice).await.0, 200, "what needs no token stays open");
    assert_eq!(bench.ask("/off/x", &alice).await.0, 200, "a route that does not ask the store");
    let fresh = bench.token(json!({"iat": NOW + 1}));
    assert_eq!(bench.ask("/x", &fresh).await.0, 200, "a token of later");
    hub.put(
        Kind::User,
        "email",
        "alice@example.com",
        Entry { disabled: 1, disabled_until: PERMANENT, ..Entry::default() },
    );
    bench.becomes("/x", &fresh, (401, "account_disabled")).await;
    let unverified = bench.token(json!({"iat": NOW + 1, "email_verified": false}));
    assert_eq!(bench.ask("/x", &unverified).await.0, 200, "an address that is not verified names no one");
    assert!(bench.service.metric("stepgate_revocation_rejections_total{reason=\"token_revoked\"}").await >= 1.0);
    bench.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_keys_and_authentications_are_revoked_by_themselves() {
    let hub = Hub::start().await;
    let bench = Bench::start(&hub.url, json!({})).await;
    let (one, other) = (bench.token(json!({"jti": "j1"})), bench.token(json!({"sid": "s2", "jti": "j2"})));
    bench.becomes("/x", &one, (200, "")).await;
    let denied = Entry { deny: true, until: AT + 1_000, ..Entry::default() };
    hub.put(Kind::Session, "", "s1", denied);
    bench.becomes("/x", &one, (401, "session_revoked")).await;
    assert_eq!(bench.ask("/x", &other).await.0, 200, "another session");
    hub.put(Kind::Token, "jti", "j2", denied);
    bench.becomes("/x", &other, (401, "token_revoked")).await;
    let third = bench.token(json!({"sid": "s3"}));
    hub.put(
        Kind::User,
        "sub",
        "alice",
        Entry { authenticated_not_before: AT - 150, until: AT + 1_000, ..Entry::default() },
    );
    bench.becomes("/x", &third, (401, "reauthentication_required")).await;
    let challenge = bench.service.challenge_of("/x", &third).await;
    assert!(
        challenge.contains("insufficient_user_authentication") && challenge.contains("max_age=\"60\""),
        "{challenge}"
    );
    let again = bench.token(json!({"sid": "s3", "auth_time": NOW - 149}));
    assert_eq!(bench.ask("/x", &again).await.0, 200, "authenticated after it");
    bench.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_must_outlive_tokens() {
    let hub = Hub::start().await;
    let bench = Bench::start(&hub.url, json!({})).await;
    bench.becomes("/x", &bench.token(json!({})), (200, "")).await;
    for (claims, reason) in
        [(json!({"exp": NOW + 100_000}), "lifetime_too_long"), (json!({"iat": null}), "lifetime_too_long")]
    {
        let (status, got) = bench.ask("/x", &bench.token(claims)).await;
        assert_eq!((status, got.as_str()), (401, reason));
    }
    bench.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_is_gone_makes_entries_stale_and_then_cold() {
    let hub = Hub::start().await;
    let bench = Bench::start(&hub.url, json!({})).await;
    let token = bench.token(json!({}));
    bench.becomes("/required/x", &token, (200, "")).await;
    let snapshots = hub.state.lock().snapshots;
    // A feed that is cut goes on where it was, without a snapshot.
    hub.cut();
    hub.put(Kind::User, "sub", "carol", revoked());
    hub.state.lock().is_down = true;
    bench.service.clock.advance(61);
    assert_eq!(bench.ask("/required/x", &token).await, (503, "revocation_unknown".to_owned()));
    assert_eq!(bench.ask("/x", &token).await.0, 200, "stale entries are used where the route allows it");
    bench.service.clock.advance(840);
    assert_eq!(bench.ask("/x", &token).await, (503, "revocation_unknown".to_owned()), "cold");
    assert_eq!(bench.ask("/public", "").await.0, 200, "without a token there is nothing to revoke");
    hub.state.lock().is_down = false;
    settled("the feed", || async {
        hub.beat(NOW + 901);
        bench.ask("/x", &token).await.0 == 200
    })
    .await;
    assert!(hub.state.lock().snapshots <= snapshots + 1, "one snapshot for the gap");
    bench.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_uses_the_copy_on_disk() {
    let hub = Hub::start().await;
    hub.put(Kind::User, "sub", "alice", revoked());
    let bench = Bench::start(&hub.url, json!({})).await;
    bench.becomes("/x", &bench.token(json!({})), (401, "token_revoked")).await;
    let Bench { service, _folder: folder, .. } = bench;
    service.stop().await;
    hub.state.lock().is_down = true;
    let bench = Bench::start_in(&hub.url, json!({}), folder).await;
    bench.becomes("/x", &bench.token(json!({})), (401, "token_revoked")).await;
    let bob = bench.token(json!({"sub": "bob", "email": "b@example.com"}));
    assert_eq!(bench.ask("/x", &bob).await.0, 200);
    let Bench { service, _folder: folder, .. } = bench;
    service.stop().await;
    // A damaged copy is no copy.
    let path = folder.path().join("revocations.sgrv");
    let mut bytes = std::fs::read(&path).expect("the copy");
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).expect("it is damaged");
    let bench = Bench::start_in(&hub.url, json!({}), folder).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bench.service.waiting_for().await, ["revocations"]);
    assert_eq!(bench.ask("/x", &bench.token(json!({}))).await, (503, "revocation_unknown".to_owned()));
    bench.service.stop().await;
}
