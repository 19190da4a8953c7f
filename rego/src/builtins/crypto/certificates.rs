//! Certificates and requests for them, in the shape that Go's `crypto/x509` has in JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};
use num_bigint::BigUint;
use stepgate_jose::{Curve, VerifyingKey, pem_block};
use x509_parser::cri_attributes::{ParsedCriAttribute, X509CriAttribute};
use x509_parser::prelude::{
    AlgorithmIdentifier, AttributeTypeAndValue, FromDer as _, GeneralName, ParsedExtension, X509Certificate,
    X509CertificationRequest, X509Extension, X509Name,
};
use x509_parser::x509::SubjectPublicKeyInfo;

use super::super::encoding::decode_base64;
use super::super::{BuiltinError, Context, Outcome, failed, find};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, Meter as _};
use crate::value::{Number, Value};

/// Bytes as Go's `json.Marshal` spells them.
pub(super) fn bytes(bytes: &[u8]) -> Value {
    Value::from(STANDARD.encode(bytes))
}

/// An unsigned integer of any size.
pub(super) fn integer(bytes: &[u8]) -> Value {
    Number::parse(&BigUint::from_bytes_be(bytes).to_string()).map_or(Value::Null, Value::from)
}

/// The bytes of certificates one after another, from PEM or base64.
pub(super) fn certificates(context: &mut Context<'_>, given: &str) -> Result<Vec<Vec<u8>>, BuiltinError> {
    // The text decoded, its blocks, and each certificate by itself.
    context.allocate(given.len().saturating_mul(4))?;
    let mut der = Vec::new();
    let decoded;
    let pem = if given.starts_with("-----BEGIN") {
        given
    } else {
        let bytes = decode_base64(context, given)?;
        match String::from_utf8(bytes) {
            Ok(text) if text.starts_with("-----BEGIN") => {
                decoded = text;
                &decoded
            }
            Ok(text) => return split(context, text.as_bytes()),
            Err(other) => return split(context, other.as_bytes()),
        }
    };
    let mut rest = pem;
    while let Some((label, block, after)) = next_block(context, rest)? {
        if label != "CERTIFICATE" {
            return Err(failed(format!("PEM block type is '{label}', expected CERTIFICATE")));
        }
        der.extend(block);
        rest = after;
    }
    split(context, &der)
}

/// The longest PEM block: decoding one cannot be interrupted.
const MAX_BLOCK_BYTES: usize = 4 * MAX_CERTIFICATE_BYTES;

type Block<'t> = (&'t str, Vec<u8>, &'t str);

/// The next PEM block. Looking for its end goes through the text once, however many blocks follow.
pub(super) fn next_block<'t>(context: &mut Context<'_>, text: &'t str) -> Result<Option<Block<'t>>, BuiltinError> {
    context.work(4)?;
    let begin = if text.starts_with("-----BEGIN ") { Some(0) } else { find(context, text, "\n-----BEGIN ")? };
    let Some(begin) = begin else { return Ok(None) };
    let rest = text.get(begin..).unwrap_or_default();
    let length = find(context, rest, "\n-----END ")?.unwrap_or(rest.len());
    if length > MAX_BLOCK_BYTES {
        return Err(EvalError::budget("a PEM block is too long").into());
    }
    context.work(length / 4)?;
    Ok(pem_block(rest))
}

/// The longest certificate: reading one cannot be interrupted.
const MAX_CERTIFICATE_BYTES: usize = 64 << 10;
/// The longest integer in one: writing its digits takes the square of their number.
const MAX_INTEGER_BYTES: usize = 2_048;
/// Bytes of values for each byte of a certificate, and for what every certificate has.
const VALUE_BYTES: usize = 24;
const DESCRIBED_BYTES: usize = 32 << 10;

fn split(context: &mut Context<'_>, mut der: &[u8]) -> Result<Vec<Vec<u8>>, BuiltinError> {
    let mut found = Vec::new();
    while !der.is_empty() {
        // Whatever its length says, no more is read than a certificate may have.
        let (head, is_cut) = match der.get(..MAX_CERTIFICATE_BYTES) {
            Some(head) => (head, true),
            None => (der, false),
        };
        context.work(head.len().min(4_096) / 4)?;
        let (rest, certificate) = X509Certificate::from_der(head).map_err(|_| match is_cut {
            true => EvalError::budget("a certificate is too long").into(),
            false => failed("x509: malformed certificate"),
        })?;
        let raw = certificate.as_raw();
        if certificate.raw_serial().len() > MAX_INTEGER_BYTES || has_long_key(certificate.public_key()) {
            return Err(EvalError::budget("an integer in a certificate is too long").into());
        }
        context.work(raw.len() / 4)?;
        context.allocate(HEADER_BYTES)?;
        found.push(raw.to_vec());
        der = der.get(head.len().saturating_sub(rest.len())..).unwrap_or_default();
    }
    Ok(found)
}

fn has_long_key(key: &SubjectPublicKeyInfo<'_>) -> bool {
    matches!(VerifyingKey::from_spki(key), Some(VerifyingKey::Rsa { n, e }) if n.len().max(e.len()) > MAX_INTEGER_BYTES)
}

/// Certificates one after another.
pub(super) fn list(context: &mut Context<'_>, chain: &[Vec<u8>], uri_strings: bool) -> Outcome {
    let mut items = Vec::new();
    for der in chain {
        charge_described(context, der)?;
        let item = described(der, uri_strings)?;
        context.push(&mut items, item)?;
    }
    context.array(items)
}

/// Charges what one certificate, request or key is described with.
pub(super) fn charge_described(context: &mut Context<'_>, der: &[u8]) -> Result<(), BuiltinError> {
    context.work(der.len().saturating_add(1_000))?;
    Ok(context.allocate(der.len().saturating_mul(VALUE_BYTES).saturating_add(DESCRIBED_BYTES))?)
}

/// One certificate. OPA adds the URIs as strings in all functions but one.
pub(super) fn described(der: &[u8], uri_strings: bool) -> Outcome {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| failed("x509: malformed certificate"))?;
    let tbs = &certificate.tbs_certificate;
    let mut out = Members::default();
    out.set("Raw", bytes(certificate.as_raw()));
    out.set("RawTBSCertificate", bytes(tbs.as_ref()));
    out.set("RawIssuer", bytes(tbs.issuer.as_raw()));
    out.set("SerialNumber", integer(certificate.raw_serial()));
    out.set("Issuer", name(&tbs.issuer));
    out.set("NotBefore", time(tbs.validity.not_before.timestamp()));
    out.set("NotAfter", time(tbs.validity.not_after.timestamp()));
    out.set("Version", Value::from(tbs.version.0.saturating_add(1)));
    out.signed_by(&certificate.signature_algorithm, &certificate.signature_value.data);
    out.subject(&tbs.subject, &tbs.subject_pki);
    out.extensions(tbs.extensions());
    if uri_strings {
        let uris = alternative_names(tbs.extensions(), |name| match name {
            GeneralName::URI(uri) => Some(Value::from(*uri)),
            _ => None,
        });
        out.set("URIStrings", uris);
    }
    Ok(out.finish())
}

/// A request for a certificate (PKCS #10), from PEM or base64.
pub(super) fn request(context: &mut Context<'_>, given: &str) -> Outcome {
    if given.len() > 4 * MAX_CERTIFICATE_BYTES {
        return Err(EvalError::budget("a certificate request is too long").into());
    }
    charge_described(context, given.as_bytes())?;
    let pem = "-----BEGIN CERTIFICATE REQUEST-----";
    let text = if given.starts_with(pem) { given.as_bytes().to_vec() } else { decode_base64(context, given)? };
    let der = match std::str::from_utf8(&text).ok().and_then(pem_block) {
        Some(("CERTIFICATE REQUEST", der, _)) => der,
        Some(_) => return Err(failed("invalid PEM-encoded certificate signing request")),
        None => text,
    };
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|error| failed(format!("asn1: structure error: {error}")))?;
    if !rest.is_empty() {
        return Err(failed("asn1: syntax error: trailing data"));
    }
    let info = &request.certification_request_info;
    if der.len() > MAX_CERTIFICATE_BYTES || has_long_key(&info.subject_pki) {
        return Err(EvalError::budget("a certificate request is too long").into());
    }
    let mut out = Members::default();
    out.set("Raw", bytes(request.as_raw()));
    out.set("RawTBSCertificateRequest", bytes(info.raw));
    out.set("Version", Value::from(info.version.0));
    out.signed_by(&request.signature_algorithm, &request.signature_value.data);
    out.subject(&info.subject, &info.subject_pki);
    out.set("Attributes", or_null(info.attributes().iter().filter_map(attribute).collect()));
    let asked = info.attributes().iter().find_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(request) => Some(&*request.extensions),
        _ => None,
    });
    let asked = asked.unwrap_or(&[]);
    out.set("Extensions", extension_list(asked));
    out.set("ExtraExtensions", Value::Null);
    out.names(asked);
    Ok(out.finish())
}

/// One attribute of a request. As in Go, those that hold no list of types and values are left out.
fn attribute(given: &X509CriAttribute<'_>) -> Option<Value> {
    let ParsedCriAttribute::ExtensionRequest(request) = given.parsed_attribute() else { return None };
    let pairs = request.extensions.iter().map(|it| {
        // A critical extension has its flag second, and Go reads no further.
        let value = if it.critical { Value::Bool(true) } else { bytes(it.value) };
        [("Type", object_identifier(&it.oid.to_id_string())), ("Value", value)].into_iter().collect::<Value>()
    });
    let set = Value::array(vec![Value::array(pairs.collect())]);
    Some([("Type", object_identifier(&given.oid.to_id_string())), ("Value", set)].into_iter().collect())
}

#[derive(Default)]
struct Members(Vec<(Value, Value)>);

impl Members {
    fn set(&mut self, name: &str, value: Value) {
        self.0.push((Value::from(name), value));
    }

    fn finish(self) -> Value {
        Value::object(self.0)
    }

    fn signed_by(&mut self, algorithm: &AlgorithmIdentifier<'_>, signature: &[u8]) {
        self.set("Signature", bytes(signature));
        self.set("SignatureAlgorithm", Value::from(signature_algorithm(algorithm)));
    }

    fn subject(&mut self, subject: &X509Name<'_>, key: &SubjectPublicKeyInfo<'_>) {
        self.set("RawSubject", bytes(subject.as_raw()));
        self.set("Subject", name(subject));
        self.set("RawSubjectPublicKeyInfo", bytes(key.raw));
        let parsed = VerifyingKey::from_spki(key);
        let algorithm = match &parsed {
            Some(VerifyingKey::Rsa { .. }) => 1,
            Some(VerifyingKey::Ec { .. }) => 3,
            Some(VerifyingKey::Ed25519(_)) => 4,
            _ => 0,
        };
        self.set("PublicKeyAlgorithm", Value::from(algorithm));
        self.set("PublicKey", parsed.as_ref().map_or(Value::Null, public_key));
    }

    fn names(&mut self, extensions: &[X509Extension<'_>]) {
        let pick = |pick: fn(&GeneralName<'_>) -> Option<Value>| alternative_names(extensions, pick);
        self.set(
            "DNSNames",
            pick(|name| if let GeneralName::DNSName(name) = name { Some(Value::from(*name)) } else { None }),
        );
        self.set(
            "EmailAddresses",
            pick(|name| if let GeneralName::RFC822Name(name) = name { Some(Value::from(*name)) } else { None }),
        );
        self.set(
            "IPAddresses",
            pick(|name| if let GeneralName::IPAddress(address) = name { ip_address(address) } else { None }),
        );
        self.set("URIs", pick(|name| if let GeneralName::URI(uri) = name { Some(url(uri)) } else { None }));
    }

    fn extensions(&mut self, extensions: &[X509Extension<'_>]) {
        self.set("Extensions", extension_list(extensions));
        self.set("ExtraExtensions", Value::Null);
        self.names(extensions);
        let (mut usage, mut valid, mut ca, mut path) = (0, false, false, None);
        let (mut extended, mut unknown) = (Vec::new(), Vec::new());
        let (mut subject_key, mut authority_key) = (Value::Null, Value::Null);
        let (mut ocsp, mut issuers, mut revocation) = (Vec::new(), Vec::new(), Vec::new());
        for extension in extensions {
            match extension.parsed_extension() {
                ParsedExtension::KeyUsage(it) => usage = it.flags,
                ParsedExtension::BasicConstraints(it) => {
                    (valid, ca, path) = (true, it.ca, it.path_len_constraint);
                }
                ParsedExtension::ExtendedKeyUsage(_) => (extended, unknown) = extended_usages(extension.value),
                ParsedExtension::SubjectKeyIdentifier(it) => subject_key = bytes(it.0),
                ParsedExtension::AuthorityKeyIdentifier(it) => {
                    authority_key = it.key_identifier.as_ref().map_or(Value::Null, |it| bytes(it.0));
                }
                ParsedExtension::AuthorityInfoAccess(it) => {
                    for access in &it.accessdescs {
                        let GeneralName::URI(uri) = access.access_location else { continue };
                        match access.access_method.to_id_string().as_str() {
                            "1.3.6.1.5.5.7.48.1" => ocsp.push(Value::from(uri)),
                            "1.3.6.1.5.5.7.48.2" => issuers.push(Value::from(uri)),
                            _ => {}
                        }
                    }
                }
                ParsedExtension::CRLDistributionPoints(it) => {
                    for point in &it.points {
                        let Some(x509_parser::extensions::DistributionPointName::FullName(names)) =
                            &point.distribution_point
                        else {
                            continue;
                        };
                        revocation.extend(names.iter().filter_map(|name| match name {
                            GeneralName::URI(uri) => Some(Value::from(*uri)),
                            _ => None,
                        }));
                    }
                }
                _ => {}
            }
        }
        self.set("KeyUsage", Value::from(u32::from(usage)));
        self.set("BasicConstraintsValid", Value::Bool(valid));
        self.set("IsCA", Value::Bool(ca));
        // Go: -1 where there is no bound, 0 with a flag where the bound is 0.
        self.set("MaxPathLen", Value::from(if valid { path.map_or(-1, i64::from) } else { 0 }));
        self.set("MaxPathLenZero", Value::Bool(path == Some(0)));
        self.set("ExtKeyUsage", or_null(extended));
        self.set("UnknownExtKeyUsage", or_null(unknown));
        self.set("SubjectKeyId", subject_key);
        self.set("AuthorityKeyId", authority_key);
        self.set("OCSPServer", or_null(ocsp));
        self.set("IssuingCertificateURL", or_null(issuers));
        self.set("CRLDistributionPoints", or_null(revocation));
        for (name, value) in super::constraints::members(extensions) {
            self.set(name, value);
        }
    }
}

/// A public key: an object, or bytes.
pub(super) fn public_key(key: &VerifyingKey) -> Value {
    match key {
        VerifyingKey::Rsa { n, e } => [("N", integer(n)), ("E", integer(e))].into_iter().collect(),
        VerifyingKey::Ec { curve, point } => {
            let (x, y) = coordinates(*curve, point);
            [("Curve", Value::empty_object()), ("X", integer(x)), ("Y", integer(y))].into_iter().collect()
        }
        VerifyingKey::Ed25519(key) | VerifyingKey::Secret(key) => bytes(key),
    }
}

/// The two coordinates of an uncompressed point.
pub(super) fn coordinates(curve: Curve, point: &[u8]) -> (&[u8], &[u8]) {
    point.get(1..).and_then(|rest| rest.split_at_checked(curve.bytes())).unwrap_or_default()
}

fn time(seconds: i64) -> Value {
    let time = DateTime::<Utc>::from_timestamp(seconds, 0);
    time.map_or(Value::Null, |time| Value::from(time.to_rfc3339_opts(SecondsFormat::Secs, true)))
}

/// Go's empty slices are null.
pub(super) fn or_null(items: Vec<Value>) -> Value {
    if items.is_empty() { Value::Null } else { Value::array(items) }
}

pub(super) fn object_identifier(dotted: &str) -> Value {
    Value::array(dotted.split('.').filter_map(Number::parse).map(Value::from).collect())
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>) -> String {
    match attribute.as_str() {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(attribute.as_slice()).into_owned(),
    }
}

/// Go's `pkix.Name`.
fn name(given: &X509Name<'_>) -> Value {
    let attributes: Vec<(String, String)> =
        given.iter_attributes().map(|it| (it.attr_type().to_id_string(), attribute_text(it))).collect();
    let every = |kind: &str| -> Vec<Value> {
        attributes.iter().filter(|(oid, _)| oid == kind).map(|(_, text)| Value::from(text)).collect()
    };
    let mut out = Members::default();
    for (name, kind) in [
        ("Country", "2.5.4.6"),
        ("Organization", "2.5.4.10"),
        ("OrganizationalUnit", "2.5.4.11"),
        ("Locality", "2.5.4.7"),
        ("Province", "2.5.4.8"),
        ("StreetAddress", "2.5.4.9"),
        ("PostalCode", "2.5.4.17"),
    ] {
        out.set(name, or_null(every(kind)));
    }
    for (name, kind) in [("SerialNumber", "2.5.4.5"), ("CommonName", "2.5.4.3")] {
        out.set(name, every(kind).pop().unwrap_or_else(|| Value::from("")));
    }
    let names = attributes.iter().map(|(oid, text)| {
        [("Type", object_identifier(oid)), ("Value", Value::from(text))].into_iter().collect::<Value>()
    });
    out.set("Names", or_null(names.collect()));
    out.set("ExtraNames", Value::Null);
    out.finish()
}

fn extension_list(extensions: &[X509Extension<'_>]) -> Value {
    let list = extensions.iter().map(|it| {
        let mut out = Members::default();
        out.set("Id", object_identifier(&it.oid.to_id_string()));
        out.set("Critical", Value::Bool(it.critical));
        out.set("Value", bytes(it.value));
        out.finish()
    });
    or_null(list.collect())
}

fn alternative_names(extensions: &[X509Extension<'_>], pick: impl Fn(&GeneralName<'_>) -> Option<Value>) -> Value {
    let names = extensions.iter().filter_map(|it| match it.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    or_null(names.flatten().filter_map(pick).collect())
}

pub(super) fn ip_address(bytes: &[u8]) -> Option<Value> {
    let address: std::net::IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        _ => <[u8; 16]>::try_from(bytes).ok()?.into(),
    };
    Some(Value::from(address.to_string()))
}

/// Go's `url.URL`.
fn url(given: &str) -> Value {
    let (rest, fragment) = given.split_once('#').unwrap_or((given, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once(':').unwrap_or(("", rest));
    let (host, path, opaque) = match rest.strip_prefix("//") {
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (host, path, "")
        }
        None if rest.starts_with('/') => ("", rest, ""),
        None => ("", "", rest),
    };
    let mut out = Members::default();
    for (name, text) in [
        ("Scheme", scheme),
        ("Opaque", opaque),
        ("Host", host),
        ("Path", path),
        ("RawPath", ""),
        ("RawQuery", query),
        ("Fragment", fragment),
        ("RawFragment", ""),
    ] {
        out.set(name, Value::from(text));
    }
    out.set("User", Value::Null);
    out.set("OmitHost", Value::Bool(false));
    out.set("ForceQuery", Value::Bool(false));
    out.finish()
}

/// Purposes of keys, with the numbers that Go gives them and the names that OPA has for them.
pub(super) const EXTENDED_USAGES: &[(i64, &str, &str)] = &[
    (0, "KeyUsageAny", "2.5.29.37.0"),
    (1, "KeyUsageServerAuth", "1.3.6.1.5.5.7.3.1"),
    (2, "KeyUsageClientAuth", "1.3.6.1.5.5.7.3.2"),
    (3, "KeyUsageCodeSigning", "1.3.6.1.5.5.7.3.3"),
    (4, "KeyUsageEmailProtection", "1.3.6.1.5.5.7.3.4"),
    (5, "KeyUsageIPSECEndSystem", "1.3.6.1.5.5.7.3.5"),
    (6, "KeyUsageIPSECTunnel", "1.3.6.1.5.5.7.3.6"),
    (7, "KeyUsageIPSECUser", "1.3.6.1.5.5.7.3.7"),
    (8, "KeyUsageTimeStamping", "1.3.6.1.5.5.7.3.8"),
    (9, "KeyUsageOCSPSigning", "1.3.6.1.5.5.7.3.9"),
    (10, "KeyUsageMicrosoftServerGatedCrypto", "1.3.6.1.4.1.311.10.3.3"),
    (11, "KeyUsageNetscapeServerGatedCrypto", "2.16.840.1.113730.4.1"),
    (12, "KeyUsageMicrosoftCommercialCodeSigning", "1.3.6.1.4.1.311.2.1.22"),
    (13, "KeyUsageMicrosoftKernelCodeSigning", "1.3.6.1.4.1.311.61.1.1"),
];

/// The known purposes as numbers, the others as object identifiers.
fn extended_usages(value: &[u8]) -> (Vec<Value>, Vec<Value>) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    let oids = <Vec<x509_parser::asn1_rs::Oid<'_>>>::from_der(value).map(|(_, oids)| oids).unwrap_or_default();
    for oid in oids {
        let dotted = oid.to_id_string();
        match EXTENDED_USAGES.iter().find(|(_, _, it)| *it == dotted) {
            Some((number, _, _)) => known.push(Value::from(*number)),
            None => unknown.push(object_identifier(&dotted)),
        }
    }
    (known, unknown)
}

/// Go's number of a signature algorithm; zero if it knows none.
fn signature_algorithm(algorithm: &AlgorithmIdentifier<'_>) -> i64 {
    match algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.4" => 2,
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" => 3,
        "1.2.840.113549.1.1.11" => 4,
        "1.2.840.113549.1.1.12" => 5,
        "1.2.840.113549.1.1.13" => 6,
        "1.2.840.10040.4.3" => 7,
        "2.16.840.1.101.3.4.3.2" => 8,
        "1.2.840.10045.4.1" => 9,
        "1.2.840.10045.4.3.2" => 10,
        "1.2.840.10045.4.3.3" => 11,
        "1.2.840.10045.4.3.4" => 12,
        "1.2.840.113549.1.1.10" => probabilistic(algorithm),
        "1.3.101.112" => 16,
        _ => 0,
    }
}

/// RSASSA-PSS names its digest among the parameters (RFC 4055 section 3.1).
fn probabilistic(algorithm: &AlgorithmIdentifier<'_>) -> i64 {
    let parameters = algorithm
        .parameters
        .as_ref()
        .and_then(|it| x509_parser::signature_algorithm::RsaSsaPssParams::try_from(it).ok());
    let digest = parameters.map(|it| it.hash_algorithm_oid().to_id_string());
    match digest.as_deref() {
        Some("2.16.840.1.101.3.4.2.1") => 13,
        Some("2.16.840.1.101.3.4.2.2") => 14,
        Some("2.16.840.1.101.3.4.2.3") => 15,
        _ => 0,
    }
}
