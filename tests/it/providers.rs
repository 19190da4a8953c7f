//! The pages of `docs/providers`: each configuration is one that starts, and each token shape beside it is accepted or rejected as the page says.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use prost::Message as _;
use serde_json::{Value as Json, json};
use stepgate::clock::Clock;
use stepgate::config::{Document, resolve};
use stepgate::opa::input::Attributes;
use stepgate::token::{Issuer, IssuerSettings, KeySet, Location, Profile, TokenState, Verifier};
use stepgate_jose::{Algorithm, PrivateKey, SigningKey};
use tokio::time::Instant;

const NOW: i64 = 1_800_000_000;

/// The fenced blocks of a page, each with its language and the comment before it.
fn blocks(page: &str) -> Vec<(String, String, String)> {
    let (mut found, mut comment) = (Vec::new(), String::new());
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let body: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            found.push((language.to_owned(), std::mem::take(&mut comment), body.join("\n")));
        } else if let Some(text) = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) {
            comment = text.to_owned();
        }
    }
    found
}

/// The level of a token that is accepted, or the reason of one that is rejected, in the words of the pages.
async fn outcome(settings: Vec<IssuerSettings>, tokens: &stepgate::token::Settings, shape: &Json) -> String {
    let of = |issuer: &&IssuerSettings| {
        let by_name = shape["iss"].as_str() == Some(&issuer.issuer);
        by_name || (shape["iss"].is_null() && shape["sub"].as_str().is_some_and(|sub| sub.starts_with(&issuer.issuer)))
    };
    let meant = settings.iter().find(of).or(settings.first()).expect("an issuer").clone();
    let alg = if meant.algorithms.contains(&Algorithm::ES256) { Algorithm::ES256 } else { Algorithm::RS256 };
    let pem = PrivateKey::generate(alg).expect("a key");
    let key = SigningKey::from_pem(alg, &pem).expect("its PEM");
    let mut jwk = json!(key.public_jwk());
    let members = jwk.as_object_mut().expect("an object");
    members.insert("kid".to_owned(), json!("k"));
    if meant.profile == Profile::JwtSvid {
        members.insert("use".to_owned(), json!("jwt-svid"));
    }
    let keys = json!({"keys": [jwk]}).to_string();
    let issuers = settings
        .into_iter()
        .map(|settings| {
            let profile = settings.profile;
            let (issuer, _) = Issuer::new(settings);
            issuer.replace_keys(KeySet::parse_for(profile, keys.as_bytes()).expect("a key set"));
            issuer.confirm(NOW);
            issuer
        })
        .collect();
    let mut payload = shape.as_object().expect("an object").clone();
    payload.extend([("iat".to_owned(), json!(NOW - 5)), ("exp".to_owned(), json!(NOW + 300))]);
    let encoded = |value: &Json| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = json!({"alg": alg.name(), "kid": "k", "typ": "JWT"});
    let signed = format!("{}.{}", encoded(&header), encoded(&Json::Object(payload)));
    let token = format!("{signed}.{}", key.sign(signed.as_bytes()).expect("a signature"));
    let Some(Location::Header { name, scheme }) = meant.locations.first() else { return "no header".to_owned() };
    let value = scheme.as_ref().map_or(token.clone(), |scheme| format!("{scheme} {token}"));
    let http = HttpRequest { headers: [(name.clone(), value)].into(), ..HttpRequest::default() };
    let request = Request { http: Some(http), ..Request::default() };
    let attributes = AttributeContext { request: Some(request), ..AttributeContext::default() };
    let message = CheckRequest { attributes: Some(attributes) }.encode_to_vec();
    let attributes = Attributes::parse(&message).expect("a message");
    let verifier = Arc::new(Verifier::new(issuers, tokens, Clock::fixed(NOW)));
    match verifier.verify(&attributes, Instant::now() + Duration::from_secs(1)).await {
        TokenState::Verified(verified) => {
            let level = verified.authn().document(NOW);
            format!("accepted as {}", level.member("level_name").and_then(|name| name.as_str()).unwrap_or("?"))
        }
        TokenState::Rejected(error) => format!("rejected as {}", error.reason()),
        _ => "no token was found".to_owned(),
    }
}

#[tokio::test]
async fn configurations_take_the_tokens_that_the_pages_show() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/providers");
    let mut pages = 0;
    for entry in std::fs::read_dir(folder).expect("the pages") {
        let path = entry.expect("a page").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if name == "README" {
            continue;
        }
        let page = std::fs::read_to_string(&path).expect("a text");
        for part in ["**Switch on.**", "**Try it.**", "**Cannot be done.**"] {
            assert!(page.contains(part), "{name}: {part}");
        }
        let blocks = blocks(&page);
        let yaml = blocks.iter().find(|(language, ..)| language == "yaml").expect("a configuration");
        let document: Json = yaml_serde::from_str(&yaml.2).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (config, problems) = resolve(&Document::of(document), None);
        assert!(problems.errors.is_empty() && problems.warnings.is_empty(), "{name}: {problems:?}");
        let config = config.expect("it starts");
        let issuers = config.issuers.expect("issuers");
        let shapes: Vec<_> = blocks.iter().filter(|(_, comment, _)| !comment.is_empty()).collect();
        for outcome in ["accepted", "rejected"] {
            assert!(shapes.iter().any(|(_, comment, _)| comment.starts_with(outcome)), "{name}: none is {outcome}");
        }
        for (_, want, shape) in shapes {
            let shape: Json = serde_json::from_str(shape).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(outcome(issuers.clone(), &config.tokens, &shape).await, *want, "{name}: {shape}");
        }
        pages += 1;
    }
    assert_eq!(pages, 11, "a page for each provider");
}
