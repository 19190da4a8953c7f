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
    let cookie = Location::Cookie { name: "token".to_owned() };
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
