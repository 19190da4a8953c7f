//! Members of parsed certificates and requests that OPA's own suite does not look at.

use stepgate_rego::Options;
use stepgate_rego::{EvalOptions, Source, Value, Version, compile};

use crate::test_host::TestHost;

/// Made with `openssl req -x509`: nameConstraints (critical), certificatePolicies 1.2.3.4, inhibitAnyPolicy 0,
/// policyConstraints with requireExplicitPolicy 2, and an unknown critical extension 1.2.3.
const AUTHORITY: &str = include_str!("certificates/authority.b64");
/// Made with `openssl req -new`: challengePassword, subjectAltName, basicConstraints (critical).
const REQUEST: &str = include_str!("certificates/request.b64");

/// The value of `expression` for the certificate or request `input`, as JSON.
fn eval(expression: &str, input: &str) -> String {
    let text = format!("package p\nr := json.marshal({expression})\n");
    let source = Source { path: "p.rego".into(), text, version: Version::V1 };
    let policy = compile(&[source], Value::empty_object(), &Options::default()).expect("the policy compiles");
    let input = Value::from(input.replace('\n', ""));
    let path = [Value::from("p"), Value::from("r")];
    let value = policy.eval(&path, Some(&input), &EvalOptions::default(), &TestHost::default()).expect("no error");
    value.as_ref().and_then(Value::as_str).unwrap_or("undefined").to_owned()
}

#[test]
fn constraints_of_an_authority() {
    for (name, want) in [
        ("PermittedDNSDomainsCritical", "true"),
        ("PermittedDNSDomains", r#"["example.com"]"#),
        ("ExcludedDNSDomains", "null"),
        ("PermittedIPRanges", r#"[{"IP":"10.1.0.0","Mask":"//8AAA=="}]"#),
        ("ExcludedEmailAddresses", r#"["evil.example"]"#),
        ("UnhandledCriticalExtensions", "[[1,2,3]]"),
        ("PolicyIdentifiers", "[[1,2,3,4]]"),
        ("Policies", r#"["1.2.3.4"]"#),
        ("PolicyMappings", "null"),
        ("RequireExplicitPolicy", "2"),
        ("RequireExplicitPolicyZero", "false"),
        ("InhibitAnyPolicy", "0"),
        ("InhibitAnyPolicyZero", "true"),
        ("InhibitPolicyMappingZero", "false"),
    ] {
        assert_eq!(eval(&format!("crypto.x509.parse_certificates(input)[0].{name}"), AUTHORITY), want, "{name}");
    }
}

#[test]
fn attributes_of_a_request() {
    assert_eq!(
        eval("crypto.x509.parse_certificate_request(input).Attributes", REQUEST),
        concat!(
            r#"[{"Type":[1,2,840,113549,1,9,14],"Value":[[{"Type":[2,5,29,17],"Value":"MAuCCWEuZXhhbXBsZQ=="},"#,
            r#"{"Type":[2,5,29,19],"Value":true}]]}]"#
        )
    );
}
