//! The constraints of a certificate on the chain below it: name constraints and policies (RFC 5280 sections 4.2.1.4 and
//! 4.2.1.10 to 4.2.1.14), in the shape of Go's `x509.Certificate`.

use x509_parser::extensions::GeneralSubtree;
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Extension};

use super::certificates::{bytes, ip_address, object_identifier, or_null};
use crate::value::Value;

type Named = (&'static str, Value);

/// The members about names, policies, and critical extensions that Go leaves to its caller.
pub(super) fn members(extensions: &[X509Extension<'_>]) -> Vec<Named> {
    let (mut permitted, mut excluded, mut names_critical) = (Vec::new(), Vec::new(), false);
    let (mut identifiers, mut policies, mut mappings) = (Vec::new(), Vec::new(), Vec::new());
    let (mut explicit, mut inhibit_mapping, mut inhibit_any) = (None, None, None);
    let mut unhandled = Vec::new();
    for extension in extensions {
        match extension.parsed_extension() {
            ParsedExtension::NameConstraints(it) => {
                permitted.extend(it.permitted_subtrees.iter().flatten());
                excluded.extend(it.excluded_subtrees.iter().flatten());
                names_critical = extension.critical;
            }
            ParsedExtension::CertificatePolicies(it) => {
                let dotted = it.iter().map(|policy| policy.policy_id.to_id_string());
                for dotted in dotted {
                    identifiers.push(object_identifier(&dotted));
                    policies.push(Value::from(dotted));
                }
            }
            ParsedExtension::PolicyMappings(it) => mappings.extend(it.mappings.iter().map(|mapping| {
                [
                    ("IssuerDomainPolicy", Value::from(mapping.issuer_domain_policy.to_id_string())),
                    ("SubjectDomainPolicy", Value::from(mapping.subject_domain_policy.to_id_string())),
                ]
                .into_iter()
                .collect::<Value>()
            })),
            ParsedExtension::PolicyConstraints(it) => {
                (explicit, inhibit_mapping) = (it.require_explicit_policy, it.inhibit_policy_mapping);
            }
            ParsedExtension::InhibitAnyPolicy(it) => inhibit_any = Some(it.skip_certs),
            _ => {}
        }
        if extension.critical && !is_handled(extension) {
            unhandled.push(object_identifier(&extension.oid.to_id_string()));
        }
    }
    let mut out = vec![
        ("UnhandledCriticalExtensions", or_null(unhandled)),
        ("PermittedDNSDomainsCritical", Value::Bool(names_critical)),
        ("PermittedDNSDomains", or_null(pick(&permitted, dns_domain))),
        ("ExcludedDNSDomains", or_null(pick(&excluded, dns_domain))),
        ("PermittedIPRanges", or_null(pick(&permitted, ip_range))),
        ("ExcludedIPRanges", or_null(pick(&excluded, ip_range))),
        ("PermittedEmailAddresses", or_null(pick(&permitted, email_address))),
        ("ExcludedEmailAddresses", or_null(pick(&excluded, email_address))),
        ("PermittedURIDomains", or_null(pick(&permitted, uri_domain))),
        ("ExcludedURIDomains", or_null(pick(&excluded, uri_domain))),
        ("PolicyIdentifiers", or_null(identifiers)),
        ("Policies", or_null(policies)),
        ("PolicyMappings", or_null(mappings)),
    ];
    // Zero where there is no bound, and zero with a flag where the bound is zero.
    let mut bound = |name, zero, value: Option<u32>| {
        out.push((name, Value::from(i64::from(value.unwrap_or(0)))));
        out.push((zero, Value::Bool(value == Some(0))));
    };
    bound("RequireExplicitPolicy", "RequireExplicitPolicyZero", explicit);
    bound("InhibitPolicyMapping", "InhibitPolicyMappingZero", inhibit_mapping);
    bound("InhibitAnyPolicy", "InhibitAnyPolicyZero", inhibit_any);
    out
}

fn pick(subtrees: &[&GeneralSubtree<'_>], pick: fn(&GeneralName<'_>) -> Option<Value>) -> Vec<Value> {
    subtrees.iter().filter_map(|it| pick(&it.base)).collect()
}

fn dns_domain(name: &GeneralName<'_>) -> Option<Value> {
    if let GeneralName::DNSName(name) = name { Some(Value::from(*name)) } else { None }
}

fn email_address(name: &GeneralName<'_>) -> Option<Value> {
    if let GeneralName::RFC822Name(name) = name { Some(Value::from(*name)) } else { None }
}

fn uri_domain(name: &GeneralName<'_>) -> Option<Value> {
    if let GeneralName::URI(name) = name { Some(Value::from(*name)) } else { None }
}

/// An address and its mask, 4 or 16 bytes each.
fn ip_range(name: &GeneralName<'_>) -> Option<Value> {
    let GeneralName::IPAddress(both) = name else { return None };
    let (address, mask) = both.split_at_checked(both.len() / 2)?;
    Some([("IP", ip_address(address)?), ("Mask", bytes(mask))].into_iter().collect())
}

/// Go's parser handles everything in the extension.
///
/// Source: `processExtensions` of Go 1.25 `crypto/x509/parser.go`.
fn is_handled(extension: &X509Extension<'_>) -> bool {
    let is_picked = |it: &GeneralName<'_>| {
        matches!(
            it,
            GeneralName::DNSName(_) | GeneralName::RFC822Name(_) | GeneralName::URI(_) | GeneralName::IPAddress(_)
        )
    };
    match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(it) => it.general_names.iter().any(is_picked),
        ParsedExtension::NameConstraints(it) => {
            let mut subtrees = it.permitted_subtrees.iter().chain(&it.excluded_subtrees).flatten();
            subtrees.all(|it| is_picked(&it.base))
        }
        ParsedExtension::KeyUsage(_)
        | ParsedExtension::BasicConstraints(_)
        | ParsedExtension::CRLDistributionPoints(_)
        | ParsedExtension::AuthorityKeyIdentifier(_)
        | ParsedExtension::ExtendedKeyUsage(_)
        | ParsedExtension::SubjectKeyIdentifier(_)
        | ParsedExtension::CertificatePolicies(_)
        | ParsedExtension::PolicyMappings(_)
        | ParsedExtension::PolicyConstraints(_)
        | ParsedExtension::InhibitAnyPolicy(_)
        | ParsedExtension::AuthorityInfoAccess(_) => true,
        _ => false,
    }
}
