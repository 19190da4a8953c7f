//! Where in a request a token may stand.

use super::*;

#[tokio::test]
async fn tokens_are_found_only_where_they_may_be() {
    let bench = bench();
    let good = good_token();
    let bearer = |scheme: &str| format!("{scheme} {good}");
    for (name, headers, want) in [
        ("any letter case", vec![("authorization", bearer("bEARER"))], Some("verified")),
        ("spaces", vec![("authorization", format!("  Bearer   {good}  "))], Some("verified")),
        ("no header", vec![], Some("absent")),
        ("another scheme", vec![("authorization", "Basic abc".to_owned())], Some("absent")),
        ("a longer scheme", vec![("authorization", bearer("BearerX"))], Some("absent")),
        ("no token", vec![("authorization", "Bearer".to_owned())], Some("malformed_header")),
        ("an inner space", vec![("authorization", format!("Bearer {good} x"))], Some("malformed_header")),
        ("a tab", vec![("authorization", "Bearer a\tb".to_owned())], Some("malformed_header")),
        (
            "two, joined by Envoy",
            vec![("authorization", format!("Bearer {good},Bearer {good}"))],
            Some("several_tokens"),
        ),
        ("a cookie", vec![("cookie", format!("token={good}"))], Some("absent")),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let got = match bench.headers(&headers).await {
            TokenState::Verified(_) => "verified",
            TokenState::Absent => "absent",
            TokenState::Rejected(error) => error.reason(),
            other => panic!("unexpected {other:?}"),
        };
        assert_eq!(Some(got), want, "{name}");
    }
}

#[tokio::test]
async fn cookies_and_headers_are_used_when_configured_and_never_both() {
    let cookie = Location::Cookie { name: "token".to_owned(), chunks: false };
    let bench = bench_with(IssuerSettings { locations: vec![Location::bearer(), cookie], ..settings() });
    let good = good_token();
    for (name, headers, verified) in [
        ("cookie", vec![("cookie", format!("a=1; token={good}; b=2"))], true),
        ("joined cookies", vec![("cookie", format!("a=1,token={good}"))], true),
        ("an empty one beside", vec![("cookie", format!("token=; token={good}"))], true),
        ("a space before the sign", vec![("cookie", format!("token =x; token={good}"))], false),
        ("a name that only begins alike", vec![("cookie", format!("tokens=1; token={good}"))], true),
        ("a name that only ends alike", vec![("cookie", format!("xtoken={good}"))], false),
        ("the same cookie twice", vec![("cookie", format!("token={good}; token={good}"))], false),
        ("both", vec![("cookie", format!("token={good}")), ("authorization", format!("Bearer {good}"))], false),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(matches!(bench.headers(&headers).await, TokenState::Verified(_)), verified, "{name}");
    }
}

#[tokio::test]
async fn a_token_may_be_cut_over_cookies() {
    let cookie = Location::Cookie { name: "s".to_owned(), chunks: true };
    let bench = bench_with(IssuerSettings { locations: vec![cookie], ..settings() });
    let good = good_token();
    let (one, rest) = good.split_at(100);
    let (two, three) = rest.split_at(100);
    for (cookies, want) in [
        (format!("s={good}"), "verified"),
        (format!("s_0={one}; a=1; s_1={two}; s_2={three}"), "verified"),
        (format!("s.2={three}; s.0={one}; s.1={two}"), "verified"),
        (format!("s=chunks-3; sC1={one}; sC2={two}; sC3={three}"), "verified"),
        (format!("s_1={two}; s_2={three}"), "absent"),
        (format!("s=chunks-3; sC1={one}; sC3={three}"), "bad_chunks"),
        ("s=chunks-33".to_owned(), "bad_chunks"),
        (format!("s_0={good}; s_2=x"), "bad_chunks"),
        (format!("s=chunks-1; sC1={good}; s_0={good}"), "several_tokens"),
        (format!("s_0={one}; s_0={one}; s_1={two}; s_2={three}"), "several_tokens"),
        (format!("s={good}; s_0={one}; s_1={two}; s_2={three}"), "several_tokens"),
        (format!("s_0={good}; s.0={good}"), "several_tokens"),
        (format!("s_0={one}; s_1={two}"), "not_a_jwt"),
    ] {
        let got = match bench.headers(&[("cookie", &cookies)]).await {
            TokenState::Verified(_) => "verified",
            TokenState::Absent => "absent",
            TokenState::Rejected(error) => error.reason(),
            other => panic!("unexpected {other:?}"),
        };
        assert_eq!(got, want, "{}", cookies.get(..30).unwrap_or(&cookies));
    }
}

#[tokio::test]
async fn a_websocket_carries_its_token_as_a_subprotocol() {
    let of = |prefix: &str| Location::WebSocketProtocol { prefix: prefix.to_owned() };
    let locations = vec![Location::bearer(), of("bearer."), of("base64url.bearer.authorization.k8s.io.")];
    let bench = bench_with(IssuerSettings { locations, ..settings() });
    let good = good_token();
    let encoded = URL_SAFE_NO_PAD.encode(&good);
    for (protocols, authorization, want) in [
        (format!("chat, bearer.{good}"), None, "verified"),
        (format!("base64url.bearer.authorization.k8s.io.{encoded}, v4"), None, "verified"),
        ("chat".to_owned(), None, "absent"),
        ("bearer.".to_owned(), None, "malformed_header"),
        ("base64url.bearer.authorization.k8s.io.!".to_owned(), None, "malformed_header"),
        (format!("bearer.{good}, bearer.{good}"), None, "several_tokens"),
        (format!("bearer.{good}, base64url.bearer.authorization.k8s.io.{encoded}"), None, "several_tokens"),
        (format!("bearer.{good}"), Some(format!("Bearer {good}")), "several_tokens"),
    ] {
        let mut headers = vec![("sec-websocket-protocol", protocols.as_str())];
        headers.extend(authorization.as_deref().map(|value| ("authorization", value)));
        let got = match bench.headers(&headers).await {
            TokenState::Verified(_) => "verified",
            TokenState::Absent => "absent",
            TokenState::Rejected(error) => error.reason(),
            other => panic!("unexpected {other:?}"),
        };
        assert_eq!(got, want, "{}", protocols.get(..30).unwrap_or(&protocols));
    }
}
