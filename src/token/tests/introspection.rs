//! RFC 7662, and the traps of caching what an issuer says (CVE-2021-32701, CVE-2026-33496).

use parking_lot::Mutex;

use super::*;

/// An issuer whose answers a test gives.
#[derive(Default)]
struct AskedIssuer(Arc<Mutex<Vec<(String, Done)>>>);

impl std::fmt::Debug for AskedIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

impl Endpoint for AskedIssuer {
    fn ask(&self, token: &str, done: Done) {
        self.0.lock().push((token.to_owned(), done));
    }
}

struct Opaque {
    bench: Bench,
    asked: Arc<Mutex<Vec<(String, Done)>>>,
    count: usize,
}

impl Opaque {
    fn new(may_lack_audience: bool) -> Self {
        Self::of(|settings| {
            settings.introspection =
                Some(IntrospectionSettings { may_lack_audience, ..IntrospectionSettings::new("") });
        })
    }

    fn of(change: impl FnOnce(&mut IssuerSettings)) -> Self {
        let mut settings = IssuerSettings { introspection: Some(IntrospectionSettings::new("")), ..settings() };
        change(&mut settings);
        let mut bench = bench_with(settings);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let endpoint = Arc::clone(&asked);
        bench.verifier = bench
            .verifier
            .with_introspection(move |_| Some(Arc::new(AskedIssuer(Arc::clone(&endpoint))) as Arc<dyn Endpoint>));
        Self { bench, asked, count: 0 }
    }

    /// The state of an opaque token of which the issuer says this, if it is asked and says something.
    async fn state(&mut self, token: &str, body: Option<&Json>) -> TokenState {
        let answer = async {
            tokio::task::yield_now().await;
            let asked: Vec<_> = self.asked.lock().drain(..).collect();
            let count = asked.len();
            for (_, done) in asked {
                done(body.map(|body| body.to_string().into_bytes()));
            }
            count
        };
        let (state, count) = tokio::join!(self.bench.state(token), answer);
        self.count += count;
        state
    }

    async fn refusal(&mut self, token: &str, body: Option<&Json>) -> Option<TokenError> {
        match self.state(token, body).await {
            TokenState::Verified(_) => None,
            TokenState::Rejected(error) => Some(error),
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn active() -> Json {
    json!({"active": true, "sub": "ann", "aud": "api", "iss": ISSUER, "exp": NOW + 300, "acr": "mfa", "scope": "read"})
}

#[tokio::test]
async fn an_active_token_is_what_its_issuer_says() {
    let mut opaque = Opaque::new(false);
    let TokenState::Verified(verified) = opaque.state("opaque", Some(&active())).await else { panic!("refused") };
    assert_eq!((verified.subject(), verified.authn().level, verified.has_scope("read")), ("ann", 2, true));
    assert_eq!(opaque.refusal("opaque", None).await, None, "it is remembered");
    assert_eq!(opaque.count, 1);
    opaque.bench.clock.advance(60);
    let inactive = json!({"active": false});
    assert_eq!(opaque.refusal("opaque", Some(&inactive)).await, Some(TokenError::Inactive), "and asked about again");
    assert_eq!(opaque.count, 2);
    assert_eq!(opaque.refusal("opaque", Some(&active())).await, Some(TokenError::Inactive));
    assert_eq!(opaque.count, 2, "what is inactive is not asked about at once");
}

#[tokio::test]
async fn everything_about_an_answer_is_checked() {
    for (body, want) in [
        (with(active(), "aud", json!("other")), TokenError::WrongAudience),
        (without(active(), "aud"), absent("aud")),
        (with(active(), "iss", json!("https://other")), TokenError::UnknownIssuer),
        (with(active(), "exp", json!(NOW)), TokenError::Expired),
        (with(active(), "exp", json!((NOW + 300).to_string())), wrong("exp")),
        (with(active(), "nbf", json!(NOW + 10)), TokenError::NotYetValid),
        (without(active(), "sub"), no_subject()),
        (with(active(), "typ", json!("Refresh")), TokenError::WrongType),
        (with(active(), "token_use", json!("refresh_token")), TokenError::WrongType),
        (with(active(), "iat", json!(NOW + 10)), TokenError::NotYetValid),
        (with(active(), "cnf", json!({"jkt": "AAAA"})), TokenError::Bound),
        (with(active(), "active", json!("true")), TokenError::IntrospectionUnavailable),
        (without(active(), "active"), TokenError::IntrospectionUnavailable),
        (json!([active()]), TokenError::IntrospectionUnavailable),
        (json!({"active": false}), TokenError::Inactive),
    ] {
        assert_eq!(Opaque::new(false).refusal("opaque", Some(&body)).await, Some(want), "{body}");
    }
    assert_eq!(Opaque::new(true).refusal("opaque", Some(&without(active(), "aud"))).await, None);
    let client = with(without(active(), "sub"), "client_id", json!("batch"));
    assert_eq!(Opaque::new(false).refusal("opaque", Some(&client)).await, Some(no_subject()));
    let names = vec!["sub".to_owned(), "client_id".to_owned()];
    let mut named = Opaque::of(|settings| settings.subject_claims = names);
    let TokenState::Verified(verified) = named.state("opaque", Some(&client)).await else {
        panic!("a client acts for itself")
    };
    assert_eq!(verified.subject(), "batch");
    let lasting = without(active(), "exp");
    let mut opaque = Opaque::new(false);
    assert_eq!(opaque.refusal("opaque", Some(&lasting)).await, None);
    opaque.bench.clock.advance(61);
    assert_eq!(
        opaque.refusal("opaque", None).await,
        Some(TokenError::IntrospectionUnavailable),
        "no longer than the answer"
    );
}

#[tokio::test]
async fn what_is_refused_for_good_is_not_asked_about_again() {
    let mut opaque = Opaque::new(false);
    let other = with(active(), "aud", json!("other"));
    for _ in 0..3 {
        assert_eq!(opaque.refusal("opaque", Some(&other)).await, Some(TokenError::WrongAudience));
    }
    assert_eq!(opaque.count, 1);
}

#[tokio::test]
async fn a_question_that_is_dropped_can_be_asked_again() {
    let mut opaque = Opaque::new(false);
    let dropped = async {
        tokio::task::yield_now().await;
        opaque.asked.lock().clear();
    };
    let (refusal, ()) = tokio::join!(opaque.bench.refusal("opaque"), dropped);
    assert_eq!(refusal, Some(TokenError::IntrospectionUnavailable));
    assert_eq!(opaque.refusal("opaque", Some(&active())).await, None);
}

#[tokio::test]
async fn an_outage_says_nothing_about_a_token() {
    let mut opaque = Opaque::new(false);
    assert_eq!(opaque.refusal("opaque", None).await, Some(TokenError::IntrospectionUnavailable));
    assert!(TokenError::IntrospectionUnavailable.is_temporary());
    assert_eq!(opaque.refusal("opaque", Some(&active())).await, None, "the next one is asked about");
    assert_eq!(opaque.bench.refusal(&good_token()).await, None, "signed tokens need no introspection");
    assert_eq!(opaque.asked.lock().len(), 0);
}

#[tokio::test]
async fn one_question_serves_all_and_a_late_answer_the_next() {
    let mut opaque = Opaque::new(false);
    let late = Some(TokenError::IntrospectionUnavailable);
    let (one, other) = tokio::join!(opaque.bench.refusal("opaque"), opaque.bench.refusal("opaque"));
    assert_eq!((one, other), (late, late), "no check waits for ever");
    let (token, done) = opaque.asked.lock().remove(0);
    assert_eq!((token.as_str(), opaque.asked.lock().len()), ("opaque", 0));
    done(Some(active().to_string().into_bytes()));
    assert_eq!(opaque.refusal("opaque", None).await, None);
    assert_eq!(opaque.count, 0, "no other request was sent");
}

#[tokio::test]
async fn a_refreshed_answer_counts_for_its_whole_time() {
    let stale = Duration::from_secs(3_600);
    let settings = IntrospectionSettings { stale_if_error: stale, ..IntrospectionSettings::new("") };
    let mut opaque = Opaque::of(|issuer| issuer.introspection = Some(settings));
    let lasting = without(active(), "exp");
    assert_eq!(opaque.refusal("opaque", Some(&lasting)).await, None);
    opaque.bench.clock.advance(1_800);
    assert_eq!(opaque.refusal("opaque", None).await, None, "the last answer counts while the issuer is away");
    assert_eq!(opaque.count, 1 + 1);
    // Within a second of a failure nothing is asked.
    assert_eq!(opaque.refusal("opaque", None).await, None);
    assert_eq!(opaque.count, 2);
    opaque.bench.clock.advance(2);
    assert_eq!(opaque.refusal("opaque", Some(&lasting)).await, None);
    assert_eq!(opaque.count, 3, "and again later");
}

#[tokio::test(start_paused = true)]
async fn a_hanging_issuer_leaves_time_for_the_policy() {
    let settings =
        IntrospectionSettings { stale_if_error: Duration::from_secs(3_600), ..IntrospectionSettings::new("") };
    let mut opaque = Opaque::of(|issuer| issuer.introspection = Some(settings));
    assert_eq!(opaque.refusal("opaque", Some(&without(active(), "exp"))).await, None);
    opaque.bench.clock.advance(61);
    // Nothing is answered, and the check is not at its end when it goes on with the last answer.
    let began = tokio::time::Instant::now();
    assert_eq!(opaque.bench.refusal("opaque").await, None);
    assert!(began.elapsed() < BENCH_DEADLINE);
    // The next check does not wait for the same question.
    opaque.bench.clock.advance(2);
    let began = tokio::time::Instant::now();
    assert_eq!(opaque.bench.refusal("opaque").await, None);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_jwt_is_looked_at_before_its_issuer_is_asked() {
    let bound = with(payload(), "cnf", json!({"jkt": "AAAA"}));
    let with_keys = |issuer: &mut IssuerSettings| {
        let introspection = IntrospectionSettings { is_for_all: true, ..IntrospectionSettings::new("") };
        issuer.introspection = Some(introspection);
    };
    let without_keys = |issuer: &mut IssuerSettings| {
        with_keys(issuer);
        issuer.keys = KeySource::Introspection;
    };
    for (header, payload, want) in [
        (header(), payload(), None),
        (header(), bound, Some(TokenError::Bound)),
        (header(), with(payload(), "typ", json!("Refresh")), Some(TokenError::WrongType)),
        (with(header(), "typ", json!("logout+jwt")), payload(), Some(TokenError::WrongType)),
        (header(), with(payload(), "at_hash", json!("h")), Some(TokenError::WrongType)),
        (header(), with(payload(), "exp", json!(NOW - 999)), Some(TokenError::Expired)),
        (header(), with(payload(), "aud", json!("other")), Some(TokenError::WrongAudience)),
    ] {
        let token = token_of(&EC, &header, &payload);
        assert_eq!(Opaque::of(with_keys).refusal(&token, Some(&active())).await, want, "{payload}");
        assert_eq!(Opaque::of(without_keys).refusal(&token, Some(&active())).await, want, "{payload}");
    }
    // A forged one is not asked about where there are keys.
    let mut opaque = Opaque::of(with_keys);
    let forged = token_of(&EC_OTHER, &header(), &payload());
    assert_eq!(opaque.refusal(&forged, Some(&active())).await, Some(TokenError::BadSignature));
    assert_eq!(opaque.count, 0);
}

#[tokio::test]
async fn null_is_absent_in_an_answer() {
    let mut answer = active();
    for name in ["exp", "nbf", "cnf", "token_type", "nonce", "scope"] {
        answer = with(answer, name, Json::Null);
    }
    assert_eq!(Opaque::new(false).refusal("opaque", Some(&answer)).await, None);
}
