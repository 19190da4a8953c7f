//! Tokens that a policy verifies with its own key never count as tokens of an issuer, nor the reverse, however often they are cached.

use serde_json::json;

use super::*;
use crate::token::{strange_token_for_tests, token_for_tests, verifier_for_tests};

#[tokio::test]
async fn no_result_crosses_between_issuers_and_a_policys_own_key() {
    let (keys, strange) = strange_token_for_tests();
    let policy = format!(
        "package p\ntoken := substring(input.attributes.request.http.headers.authorization, 7, -1)\n\
         allow := {{\"allowed\": true, \"headers\": {{\"x-own\": sprintf(\"%v %v\", [io.jwt.verify_es256(token, `{keys}`), input.jwt.state])}}}}"
    );
    let (tokens, clock) = verifier_for_tests();
    let checker = Checker::new(settings(), store_of(&policy), Some(tokens), clock, &Metrics::new(None));
    let ours = token_for_tests(&json!({}));
    for _ in 0..3 {
        for (token, want) in [(&ours, "false verified"), (&strange, "true rejected")] {
            let response = respond(&checker, "/", &[("authorization", &format!("Bearer {token}"))]).await;
            let Some(HttpResponse::OkResponse(ok)) = response.http_response else { panic!("allowed") };
            let header =
                ok.headers.first().and_then(|option| option.header.as_ref()).map(|header| header.value.as_str());
            assert_eq!(header, Some(want));
        }
    }
}
