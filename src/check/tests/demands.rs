//! Route requirements for callers with valid tokens, and the challenges.

use serde_json::{Value as Json, json};
use url::Url;

use super::*;
use crate::token::{token_for_tests, verifier_for_tests};

fn route(path: &str, demand: RouteRequirement) -> Route {
    Route {
        hosts: Vec::new(),
        methods: Vec::new(),
        path: PathPattern::parse(path).expect("a pattern"),
        peers: Vec::new(),
        demand,
    }
}

/// A checker that takes tokens of `token_for_tests`.
fn checker(settings: Settings) -> Checker {
    let (tokens, clock) = verifier_for_tests();
    Checker::new(settings, store_of(POLICY), Some(tokens), clock, &Metrics::new(None))
}

async fn with_token(checker: &Checker, path: &str, claims: &Json) -> CheckResponse {
    respond(checker, path, &[("authorization", &format!("Bearer {}", token_for_tests(claims)))]).await
}

fn header_of(response: &CheckResponse, name: &str) -> Option<String> {
    let Some(HttpResponse::DeniedResponse(denied)) = &response.http_response else { return None };
    let mut headers = denied.headers.iter().filter_map(|option| option.header.as_ref());
    headers.find(|header| header.key == name).map(|header| header.value.clone())
}

#[tokio::test]
async fn routes_demand_beside_the_policy() {
    let now = verifier_for_tests().1.now();
    let demand = RouteRequirement { max_age: Some(300), scopes: vec!["pay".to_owned()], ..at_level(2) };
    let routes = ["/true", "/override", "/reads", "/false"].map(|path| route(path, demand.clone())).to_vec();
    let checker = checker(Settings { routes, ..settings() });
    let good = json!({"amr": ["pwd", "otp"], "auth_time": now - 300, "scope": "read pay"});
    let but = |name: &str, value: Json| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    assert_eq!(code(&with_token(&checker, "/true", &good).await), 0);
    assert_eq!(code(&with_token(&checker, "/reads", &good).await), 0);
    for (number, (lacking, status, words)) in [
        (but("amr", json!(["pwd"])), 401, "acr_values=\"mfa phr phrh\""),
        (but("auth_time", json!(now - 301)), 401, "max_age=\"300\""),
        (but("auth_time", json!("now")), 401, "max_age=\"300\""),
        (but("scope", json!("pay:all")), 403, "error=\"insufficient_scope\""),
        (json!({}), 401, "scope=\"pay\""),
    ]
    .into_iter()
    .enumerate()
    {
        let mut lacking = lacking;
        lacking["sub"] = json!(format!("user-{number}"));
        let response = with_token(&checker, "/true", &lacking).await;
        let (got, header, body) = denial(&response);
        assert!(got == status && header.contains(words), "{lacking}: {got} {header} {body}");
        assert_eq!(code(&with_token(&checker, "/override", &lacking).await), 0, "the policy may know better");
        assert_eq!(denial(&with_token(&checker, "/reads", &lacking).await).0, 403, "the policy may read it");
        assert_eq!(code(&with_token(&checker, "/path", &lacking).await), 0, "other routes demand nothing");
    }
    assert_eq!(denial(&with_token(&checker, "/false", &good).await).0, 403, "a denial stays one");
    let (status, header, _) = denial(&respond(&checker, "/true", &[]).await);
    assert_eq!(
        (status, header.as_str()),
        (401, "Bearer realm=\"stepgate\", scope=\"pay\""),
        "a request without a token is challenged"
    );
    for bypass in ["//true", "/x/../true", "/true;a", "/tru%2565"] {
        assert_eq!(denial(&with_token(&checker, bypass, &json!({})).await).0, 400, "{bypass}");
    }
    for spelling in ["/true/", "/%74rue", "/true?x=1"] {
        assert_eq!(denial(&with_token(&checker, spelling, &json!({})).await).0, 401, "{spelling}");
    }
}

/// One cause has one word: in the response, in the decision log and in the metrics.
#[tokio::test]
async fn a_shortfall_has_one_reason_everywhere() {
    let now = verifier_for_tests().1.now();
    let demand = RouteRequirement { max_age: Some(300), scopes: vec!["pay".to_owned()], ..at_level(2) };
    let other = RouteRequirement { issuers: vec![vec!["https://other.example".to_owned()]], ..Default::default() };
    let routes = vec![route("/true", demand), route("/path", other)];
    let metrics = Metrics::new(None);
    let (decision_queue, mut records) = DecisionQueue::new(&metrics, 16 << 20);
    let (tokens, clock) = verifier_for_tests();
    let checker = Checker::new(Settings { routes, ..settings() }, store_of(POLICY), Some(tokens), clock, &metrics)
        .with_journal(Arc::new(decision_queue));
    let full = json!({"amr": ["pwd", "otp"], "auth_time": now, "scope": "pay"});
    let but = |name: &str, value: Json| {
        let mut claims = full.clone();
        claims[name] = value;
        claims
    };
    for (reason, path, claims) in [
        ("level_too_low", "/true", but("amr", json!(["pwd"]))),
        ("authentication_too_old", "/true", but("auth_time", json!(now - 301))),
        ("insufficient_scope", "/true", but("scope", json!("read"))),
        ("other_issuer", "/path", full.clone()),
        ("expired", "/true", but("exp", json!(now - 3_600))),
    ] {
        let (_, _, body) = denial(&with_token(&checker, path, &claims).await);
        let body: Json = serde_json::from_str(&body).expect("a document");
        let record = records.try_recv().expect("an event").record;
        assert_eq!((body["reason"].as_str(), record.reason), (Some(reason), reason));
        let counted = format!("stepgate_denials_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.text().contains(&counted), "{counted}");
    }
    let (_, _, body) = denial(&respond(&checker, "/true", &[]).await);
    assert!(body.contains("no_token") && records.try_recv().expect("an event").record.reason == "no_token", "{body}");
}

#[tokio::test]
async fn a_token_for_one_use_is_good_for_one_request() {
    let now = verifier_for_tests().1.now();
    let once = RouteRequirement { single_use: true, ..RouteRequirement::default() };
    let both = RouteRequirement { single_use: true, scopes: vec!["pay".to_owned()], ..RouteRequirement::default() };
    let routes = ["/true", "/override", "/false", "/path"];
    let mut routes = routes.map(|path| route(path, if path == "/path" { both.clone() } else { once.clone() })).to_vec();
    routes.push(route("/true", RouteRequirement::default()));
    let checker = checker(Settings { routes, ..settings() });
    let token = |id: &str| json!({"jti": id});
    assert_eq!(denial(&with_token(&checker, "/false", &token("1")).await).0, 403, "a denial uses up nothing");
    assert_eq!(denial(&with_token(&checker, "/path", &token("1")).await).0, 403, "nor does a demand that is not met");
    assert_eq!(code(&with_token(&checker, "/override", &token("1")).await), 0, "nor does what the policy overrides");
    assert_eq!(code(&with_token(&checker, "/override", &token("1")).await), 0);
    assert_eq!(code(&with_token(&checker, "/true", &token("1")).await), 0);
    for path in ["/true", "/path"] {
        let (status, header, body) = denial(&with_token(&checker, path, &json!({"jti": "1", "scope": "pay"})).await);
        assert_eq!(status, 401);
        assert!(header.contains("error=\"invalid_token\"") && body.contains("token_used"), "{header} {body}");
    }
    assert_eq!(code(&with_token(&checker, "/true", &token("2")).await), 0, "another token");
    for unfit in [json!({"jti": null}), token(""), json!({"jti": 7}), json!({"jti": "3", "exp": now + 4_201})] {
        let (status, _, body) = denial(&with_token(&checker, "/true", &unfit).await);
        assert!(status == 401 && body.contains("not_for_one_use"), "{unfit}: {body}");
    }
    assert_eq!(denial(&respond(&checker, "/true", &[]).await).0, 401, "no token is none for one use");
}

#[tokio::test]
async fn all_routes_that_match_count() {
    let level = at_level;
    let age = |max_age| RouteRequirement { max_age: Some(max_age), ..RouteRequirement::default() };
    let routes = vec![route("/**", level(1)), route("/true", age(60)), route("/*", level(3)), route("/true", age(90))];
    let checker = checker(Settings { routes, ..settings() });
    let (_, header, _) = denial(&with_token(&checker, "/true", &json!({"amr": ["pwd", "otp"]})).await);
    assert!(header.contains("acr_values=\"phr phrh\", max_age=\"60\""), "{header}");
}

#[tokio::test]
async fn a_client_that_gets_nowhere_is_told_to_stop() {
    let demand = at_level(2);
    let checker = checker(Settings { routes: vec![route("/true", demand)], ..settings() });
    let now = verifier_for_tests().1.now();
    let weak = |number: u32| json!({"amr": ["pwd"], "jti": number.to_string(), "auth_time": now});
    for number in [1, 1, 1, 2, 2, 3] {
        assert_eq!(denial(&with_token(&checker, "/true", &weak(number)).await).0, 401);
    }
    for path in ["/true", "/step-up"] {
        let checks = [4, 5].map(weak);
        for claims in &checks {
            let response = with_token(&checker, path, claims).await;
            let (status, header, body) = denial(&response);
            match path {
                "/true" => {
                    assert_eq!((code(&response), status, header.as_str()), (7, 403, ""));
                    assert!(body.contains("step_up_not_satisfiable") && body.contains("acr_values"), "{body}");
                }
                _ => assert_eq!(status, 401, "another kind of resource"),
            }
        }
    }
    assert_eq!(code(&with_token(&checker, "/true", &json!({"amr": ["mfa"]})).await), 0, "a better token is welcome");
    assert_eq!(denial(&with_token(&checker, "/true", &weak(4)).await).0, 401, "and ends the matter");
}

#[tokio::test]
async fn what_else_is_allowed_resets_nothing() {
    let demand = at_level(2);
    let checker = checker(Settings { routes: vec![route("/true", demand)], ..settings() });
    let now = verifier_for_tests().1.now();
    let mut answers = Vec::new();
    for number in 0..5 {
        let claims = json!({"amr": ["pwd"], "jti": number.to_string(), "auth_time": now + number});
        answers.push(denial(&with_token(&checker, "/true", &claims).await).0);
        assert_eq!(code(&with_token(&checker, "/path", &claims).await), 0);
    }
    assert_eq!(answers, [401, 401, 401, 403, 403]);
}

#[tokio::test]
async fn the_policy_and_the_route_ask_at_once() {
    let demand = RouteRequirement { max_age: Some(60), scopes: vec!["pay".to_owned()], ..at_level(3) };
    let routes = vec![route("/own-way", demand.clone()), route("/step-up", demand)];
    let checker = checker(Settings { routes, ..settings() });
    let (_, header, _) = denial(&with_token(&checker, "/own-way", &json!({"amr": ["pwd"]})).await);
    assert!(header.contains("acr_values=\"phr phrh\", max_age=\"5\", scope=\"pay\""), "{header}");
    let (_, header, _) = denial(&with_token(&checker, "/step-up", &json!({"amr": ["pwd"]})).await);
    assert!(header.contains("acr_values=\"mfa\", max_age=\"60\""), "the policy's words first: {header}");
}

#[tokio::test]
async fn further_routes_only_demand_more() {
    let named = |level, acr: &str| RouteRequirement {
        levels: vec![LevelRequirement { level, acr_values: vec![acr.to_owned()] }],
        ..RouteRequirement::default()
    };
    // Each with claims that meet one of two routes; both are needed.
    for (one, other, claims) in [
        (named(0, "c1"), named(0, "c2"), json!({"acr": "c1"})),
        (named(0, "c1"), at_level(1), json!({"amr": ["pwd"]})),
        (at_level(2), named(2, "urn:x"), json!({"acr": "urn:x"})),
    ] {
        for demands in [[one.clone(), other.clone()], [other.clone(), one.clone()]] {
            let routes = demands.map(|demand| route("/true", demand)).to_vec();
            let checker = checker(Settings { routes, ..settings() });
            assert_eq!(denial(&with_token(&checker, "/true", &claims).await).0, 401, "{one:?} {other:?} {claims}");
        }
    }
    let routes = [named(0, "c1"), named(0, "c2")].map(|demand| route("/true", demand)).to_vec();
    let checker = checker(Settings { routes, ..settings() });
    assert_eq!(code(&with_token(&checker, "/true", &json!({"acrs": ["c2", "c1"]})).await), 0);
}

#[tokio::test]
async fn values_go_with_the_level_that_they_are_for() {
    let named = RouteRequirement {
        levels: vec![LevelRequirement { level: 2, acr_values: vec!["named".to_owned()] }],
        ..RouteRequirement::default()
    };
    let high = at_level(3);
    for demands in [[named.clone(), high.clone()], [high, named]] {
        let routes = demands.map(|demand| route("/true", demand)).to_vec();
        let checker = checker(Settings { routes, ..settings() });
        let (_, header, _) = denial(&with_token(&checker, "/true", &json!({"amr": ["pwd"]})).await);
        assert!(header.contains("acr_values=\"phr phrh\""), "{header}");
    }
}

#[tokio::test]
async fn a_dry_run_of_a_route_keeps_what_the_policy_does() {
    let demand = at_level(2);
    let routes = vec![route("/path", demand)];
    let checker = checker(Settings { routes, dry_run: DryRun::Denials, ..settings() });
    let response = with_token(&checker, "/path", &json!({"amr": ["pwd"]})).await;
    let Some(HttpResponse::OkResponse(ok)) = &response.http_response else { panic!("the policy sets a header") };
    assert_eq!((code(&response), ok.headers.len()), (0, 1));
}

#[tokio::test]
async fn browsers_that_navigate_are_sent_to_the_login() {
    let redirect = Redirect {
        login_url: Url::parse("https://login.example.com/?theme=dark").expect("a URL"),
        return_parameter: "return_to".to_owned(),
        return_origins: vec![Url::parse("https://app.example.com").expect("a URL")],
    };
    let checker = checker(Settings { redirect: Some(redirect), ..settings() });
    let ask = |method: &str, host: &str, path: &str, headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let http = HttpRequest {
            method: method.into(),
            host: host.into(),
            path: path.into(),
            headers,
            ..HttpRequest::default()
        };
        let request = Request { http: Some(http), ..Request::default() };
        let attributes = AttributeContext { request: Some(request), ..AttributeContext::default() };
        CheckRequest { attributes: Some(attributes) }.encode_to_vec()
    };
    let (app, navigates) = ("app.example.com", [("sec-fetch-mode", "navigate"), ("accept", "*/*")]);
    let old = [("accept", "text/html;q=0.9, */*;q=0.8")];
    for (host, path, headers, back) in [
        (app, "/step-up?a=1&b", &navigates[..], "https%3A%2F%2Fapp.example.com%2Fstep-up%3Fa%3D1%26b"),
        ("APP.example.com:443", "/step-up", &old[..], "https%3A%2F%2Fapp.example.com%2Fstep-up"),
        (app, "/step-up/@evil.com/", &navigates[..], "https%3A%2F%2Fapp.example.com%2Fstep-up%2F%40evil.com%2F"),
        (app, &format!("/step-up?{}", "x".repeat(3_000)), &navigates[..], "https%3A%2F%2Fapp.example.com%2F"),
    ] {
        let Answer::Respond(response) = answer(&checker, &ask("GET", host, path, headers)).await else {
            panic!("a response")
        };
        assert_eq!((code(&response), denial(&response).0), (16, 302), "{path}");
        let want = format!("https://login.example.com/?theme=dark&acr_values=mfa&return_to={back}");
        assert_eq!(header_of(&response, "location"), Some(want));
        assert_eq!(header_of(&response, "cache-control").as_deref(), Some("no-store"));
        assert_eq!(header_of(&response, "www-authenticate"), None);
    }
    for (method, host, headers) in [
        ("POST", app, &navigates[..]),
        ("HEAD", app, &navigates[..]),
        ("GET", "evil.com", &navigates[..]),
        ("GET", "app.example.com:8443", &navigates[..]),
        ("GET", "app.example.com.evil.com", &navigates[..]),
        ("GET", app, &[("sec-fetch-mode", "cors"), ("accept", "text/html")][..]),
        ("GET", app, &[("accept", "application/json")][..]),
        ("GET", app, &[("accept", "text/html"), ("x-requested-with", "XMLHttpRequest")][..]),
        ("GET", app, &[("sec-fetch-mode", "navigate"), ("upgrade", "websocket")][..]),
        ("GET", app, &[][..]),
    ] {
        let Answer::Respond(response) = answer(&checker, &ask(method, host, "/step-up", headers)).await else {
            panic!("a response")
        };
        assert_eq!(denial(&response).0, 401, "{method} {host} {headers:?}");
        assert_eq!(header_of(&response, "location"), None);
    }
    let without_token = answer(&checker, &ask("GET", app, "/false", &navigates)).await;
    let Answer::Respond(response) = without_token else { panic!("a response") };
    let login = "https://login.example.com/?theme=dark&return_to=https%3A%2F%2Fapp.example.com%2Ffalse";
    assert_eq!(header_of(&response, "location").as_deref(), Some(login), "who has no token logs in");
    let Answer::Respond(shaped) = answer(&checker, &ask("GET", app, "/own-way", &navigates)).await else {
        panic!("a response")
    };
    assert_eq!(denial(&shaped).0, 403, "the policy's own way");
}

#[tokio::test]
async fn anybody_may_read_the_metadata() {
    let resource = ResourceMetadata::new("https://api.example.com/v1", serde_json::Map::new());
    let checker = checker(Settings { resources: resource.into_iter().collect(), ..settings() });
    let ask = |method: &str, host: &str, path: &str| {
        let http =
            HttpRequest { method: method.into(), host: host.into(), path: path.into(), ..HttpRequest::default() };
        let request = Request { http: Some(http), ..Request::default() };
        let attributes = AttributeContext { request: Some(request), ..AttributeContext::default() };
        CheckRequest { attributes: Some(attributes) }.encode_to_vec()
    };
    let path = "/.well-known/oauth-protected-resource/v1";
    let Answer::Respond(response) = answer(&checker, &ask("GET", "api.example.com", path)).await else {
        panic!("a response")
    };
    let (status, _, body) = denial(&response);
    assert_eq!((status, body.as_str()), (200, r#"{"resource":"https://api.example.com/v1"}"#));
    for (method, host, path) in [
        ("POST", "api.example.com", path),
        ("GET", "other.example.com", path),
        ("GET", "api.example.com", "/.well-known/oauth-protected-resource"),
        ("GET", "api.example.com", "/.well-known/oauth-protected-resource/v1/x"),
    ] {
        let Answer::Respond(response) = answer(&checker, &ask(method, host, path)).await else { panic!("a response") };
        assert_ne!(denial(&response).0, 200, "the policy is asked about {method} {host}{path}");
    }
}
