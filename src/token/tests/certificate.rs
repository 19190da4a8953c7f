//! RFC 8705 section 3: a token that is bound to a certificate.

use envoy_types::pb::envoy::service::auth::v3::attribute_context::Peer;

use super::*;

const PEM: &str = "-----BEGIN%20CERTIFICATE-----%0AaGk%3D%0A-----END%20CERTIFICATE-----%0A";
/// SHA-256 of the bytes `hi`.
const HASH: &str = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4";
const THUMBPRINT: &str = "j0NDRmSPa5bfid2pAcUXaxCm2Dlh3TwayItZstwyeqQ";

fn token() -> String {
    token_of(&EC, &header(), &with(payload(), "cnf", json!({"x5t#S256": THUMBPRINT})))
}

async fn state(xfcc_from_end: Option<usize>, certificate: &str, xfcc: Option<&str>) -> TokenState {
    let certificates = CertificateSettings { xfcc_from_end, ..CertificateSettings::default() };
    state_by(certificates, certificate, xfcc.map(|value| ("x-forwarded-client-cert", value))).await
}

async fn state_by(certificates: CertificateSettings, certificate: &str, header: Option<(&str, &str)>) -> TokenState {
    let bench = bench();
    let settings = Settings { certificates, ..limits() };
    let verifier = Verifier::new(vec![Arc::clone(&bench.issuer)], &settings, bench.clock.clone());
    let mut headers = HashMap::from([("authorization".to_owned(), format!("Bearer {}", token()))]);
    headers.extend(header.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let request = Request { http: Some(HttpRequest { headers, ..HttpRequest::default() }), ..Request::default() };
    let source = Peer { certificate: certificate.to_owned(), ..Peer::default() };
    let attributes = AttributeContext { request: Some(request), source: Some(source), ..AttributeContext::default() };
    let message = CheckRequest { attributes: Some(attributes) }.encode_to_vec();
    let attributes = Attributes::parse(&message).expect("it parses");
    verifier.verify(&attributes, tokio::time::Instant::now() + Duration::from_millis(150)).await
}

#[tokio::test]
async fn only_the_client_with_the_certificate_may_use_the_token() {
    let (ours, other) = (format!("By=a;Hash={HASH}"), format!("By=b;Hash={}", "0".repeat(64)));
    let twice = format!("By=a;Hash={HASH};Hash={}", "0".repeat(64));
    let (first, last) = (format!("{ours},{other}"), format!("{other},{ours}"));
    for (name, index, certificate, xfcc, is_good) in [
        ("seen by Envoy", None, PEM, None, true),
        ("seen by Envoy, whatever the header says", Some(0), PEM, Some(other.as_str()), true),
        (
            "another was seen, whatever the header says",
            Some(0),
            "-----BEGIN%20CERTIFICATE-----eA%3D%3D-----END%20CERTIFICATE-----",
            Some(ours.as_str()),
            false,
        ),
        ("none", None, "", None, false),
        ("a header that is not trusted", None, "", Some(ours.as_str()), false),
        ("the last element", Some(0), "", Some(last.as_str()), true),
        ("not just any element", Some(0), "", Some(first.as_str()), false),
        ("the one before the last", Some(1), "", Some(first.as_str()), true),
        ("beyond the header", Some(2), "", Some(first.as_str()), false),
        ("malformed", Some(0), "", Some("Hash"), false),
        ("a hash twice", Some(0), "", Some(twice.as_str()), false),
        ("a hash too short", Some(0), "", Some("By=a;Hash=8f43"), false),
    ] {
        let state = state(index, certificate, xfcc).await;
        match state {
            TokenState::Verified(_) => assert!(is_good, "{name}"),
            TokenState::Rejected(error) => {
                assert_eq!((error, is_good), (TokenError::WrongCertificate, false), "{name}")
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_header_with_the_certificate_counts_where_it_is_believed() {
    for (client_cert, header, is_good) in [
        (true, ("client-cert", ":aGk=:"), true),
        (false, ("client-cert", ":aGk=:"), false),
        (true, ("client-cert", ":eA==:"), false),
        (true, ("client-cert", "aGk="), false),
        (true, ("client-cert", ":aGk=:,:aGk=:"), false),
        (true, ("client-cert", "::"), false),
        (true, ("x-forwarded-client-cert", ":aGk=:"), false),
    ] {
        let certificates = CertificateSettings { client_cert, ..CertificateSettings::default() };
        let state = state_by(certificates, "", Some(header)).await;
        assert_eq!(matches!(state, TokenState::Verified(_)), is_good, "{client_cert} {header:?}");
    }
}
