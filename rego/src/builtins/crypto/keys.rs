//! Keys that verify and sign, from PEM, certificates and JSON Web Keys.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::{hmac, rsa, signature};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::super::encoding::decode_base64url;
use crate::value::{DuplicateKeys, JsonLimits, Value, parse_json};

/// Levels of nesting in a key set.
const JSON: JsonLimits = JsonLimits { depth: 32, duplicates: DuplicateKeys::LastWins };

/// A signature algorithm of JSON Web Algorithms (RFC 7518, RFC 8037).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Hs(Bits),
    Rs(Bits),
    Ps(Bits),
    Es(Bits),
    EdDsa,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    B256,
    B384,
    B512,
}

impl Algorithm {
    pub(crate) fn named(name: &str) -> Option<Self> {
        if name == "EdDSA" {
            return Some(Self::EdDsa);
        }
        let (family, bits) = name.split_at_checked(2)?;
        let bits = match bits {
            "256" => Bits::B256,
            "384" => Bits::B384,
            "512" => Bits::B512,
            _ => return None,
        };
        match family {
            "HS" => Some(Self::Hs(bits)),
            "RS" => Some(Self::Rs(bits)),
            "PS" => Some(Self::Ps(bits)),
            "ES" => Some(Self::Es(bits)),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    fn named(name: &str) -> Option<Self> {
        match name {
            "P-256" => Some(Self::P256),
            "P-384" => Some(Self::P384),
            "P-521" => Some(Self::P521),
            _ => None,
        }
    }

    /// The name in JSON Web Keys (RFC 7518 section 6.2.1.1).
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// By its object identifier.
    pub(crate) fn of_identifier(dotted: &str) -> Option<Self> {
        match dotted {
            "1.2.840.10045.3.1.7" => Some(Self::P256),
            "1.3.132.0.34" => Some(Self::P384),
            "1.3.132.0.35" => Some(Self::P521),
            _ => None,
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// Signatures of so many bits are made on this curve (RFC 7518 section 3.4).
    pub(crate) fn fits(self, bits: Bits) -> bool {
        matches!((self, bits), (Self::P256, Bits::B256) | (Self::P384, Bits::B384) | (Self::P521, Bits::B512))
    }

    /// By the length of an uncompressed point.
    fn of_point(point: &[u8]) -> Option<Self> {
        [Self::P256, Self::P384, Self::P521].into_iter().find(|curve| point.len() == curve.bytes() * 2 + 1)
    }
}

/// A key that can verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VerifyingKey {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ec { curve: Curve, point: Vec<u8> },
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
}

impl VerifyingKey {
    /// Verifies the signature of `signed`; false for a key of another kind.
    pub(crate) fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        match (self, algorithm) {
            (Self::Rsa { n, e }, Algorithm::Rs(bits)) => {
                let parameters: &signature::RsaParameters = match bits {
                    Bits::B256 => &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
                    Bits::B384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Bits::B512 => &signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
                };
                rsa::PublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok()
            }
            (Self::Rsa { n, e }, Algorithm::Ps(bits)) => {
                let parameters: &signature::RsaParameters = match bits {
                    Bits::B256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Bits::B384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Bits::B512 => &signature::RSA_PSS_2048_8192_SHA512,
                };
                rsa::PublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok()
            }
            (Self::Ec { curve, point }, Algorithm::Es(bits)) => {
                let algorithm: &dyn signature::VerificationAlgorithm = match (curve, bits) {
                    (Curve::P256, Bits::B256) => &signature::ECDSA_P256_SHA256_FIXED,
                    (Curve::P384, Bits::B384) => &signature::ECDSA_P384_SHA384_FIXED,
                    (Curve::P521, Bits::B512) => &signature::ECDSA_P521_SHA512_FIXED,
                    _ => return false,
                };
                signature::UnparsedPublicKey::new(algorithm, point).verify(signed, signature).is_ok()
            }
            (Self::Ed25519(key), Algorithm::EdDsa) => {
                signature::UnparsedPublicKey::new(&signature::ED25519, key).verify(signed, signature).is_ok()
            }
            (Self::Secret(secret), Algorithm::Hs(bits)) => {
                let key = hmac::Key::new(hmac_algorithm(bits), secret);
                hmac::verify(&key, signed, signature).is_ok()
            }
            _ => false,
        }
    }

    /// From a `SubjectPublicKeyInfo` (RFC 5280 section 4.1.2.7).
    pub(crate) fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        match spki.parsed() {
            Ok(PublicKey::RSA(rsa)) => {
                Some(Self::Rsa { n: unsigned(rsa.modulus).to_vec(), e: unsigned(rsa.exponent).to_vec() })
            }
            Ok(PublicKey::EC(point)) => {
                Some(Self::Ec { curve: Curve::of_point(point.data())?, point: point.data().to_vec() })
            }
            _ if spki.algorithm.algorithm.to_id_string() == "1.3.101.112" => {
                Some(Self::Ed25519(spki.subject_public_key.data.to_vec()))
            }
            _ => None,
        }
    }
}

fn hmac_algorithm(bits: Bits) -> hmac::Algorithm {
    match bits {
        Bits::B256 => hmac::HMAC_SHA256,
        Bits::B384 => hmac::HMAC_SHA384,
        Bits::B512 => hmac::HMAC_SHA512,
    }
}

/// A number without its leading octets of zero.
pub fn unsigned(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// A key and what its set says of it.
#[derive(Clone, Debug)]
pub(crate) struct NamedKey {
    pub key: VerifyingKey,
    pub alg: Option<String>,
    pub kid: Option<String>,
}

/// The first PEM block: its label, its bytes, and the text after its last line. As in Go, its boundaries are whole lines.
pub(crate) fn pem_block(text: &str) -> Option<(&str, Vec<u8>, &str)> {
    let begin = "-----BEGIN ";
    let start = if text.starts_with(begin) { 0 } else { text.find(&format!("\n{begin}"))?.saturating_add(1) };
    let (first, rest) = text.get(start..)?.split_once('\n')?;
    let label = first.trim_end().strip_prefix(begin)?.strip_suffix("-----")?;
    let end = format!("-----END {label}-----");
    let at = if rest.starts_with(&end) { 0 } else { rest.find(&format!("\n{end}"))?.saturating_add(1) };
    let (body, tail) = rest.split_at_checked(at)?;
    let (last, after) = tail.split_once('\n').unwrap_or((tail, ""));
    if last.trim_end() != end {
        return None;
    }
    // Headers such as `Proc-Type` end at an empty line.
    let body = match body.split_once("\n\n") {
        Some((headers, body)) if headers.contains(':') => body,
        _ => body,
    };
    let plain: String = body.chars().filter(|char| !char.is_ascii_whitespace()).collect();
    Some((label, STANDARD.decode(plain).ok()?, after))
}

/// The keys of a certificate, a public key in PEM, a JSON Web Key or a set of them.
pub(crate) fn verifying_keys(text: &str) -> Result<Vec<NamedKey>, String> {
    if let Some((label, der, rest)) = pem_block(text) {
        if !rest.is_empty() {
            return Err("extra data after a PEM certificate block".to_owned());
        }
        let key = match label {
            "CERTIFICATE" => {
                let (_, certificate) = x509_parser::parse_x509_certificate(&der)
                    .map_err(|error| format!("failed to parse a PEM certificate: {error}"))?;
                VerifyingKey::from_spki(certificate.public_key())
            }
            "PUBLIC KEY" => {
                let (_, spki) = SubjectPublicKeyInfo::from_der(&der)
                    .map_err(|error| format!("failed to parse a PEM public key: {error}"))?;
                VerifyingKey::from_spki(&spki)
            }
            _ => return Err("failed to extract a Key from the PEM certificate".to_owned()),
        };
        let key = key.ok_or("failed to extract a Key from the PEM certificate")?;
        return Ok(vec![NamedKey { key, alg: None, kid: None }]);
    }
    let failed = |why: String| format!("failed to parse a JWK key (set): {why}");
    let document = parse_json(text.as_bytes(), JSON).map_err(|error| failed(error.to_string()))?;
    let mut keys = Vec::new();
    for jwk in jwks(&document) {
        let member = |name: &str| jwk.member(name).and_then(Value::as_str);
        // A key that cannot be read spoils the set; one for another algorithm is passed over, and so is one that signs.
        let key = verifying_key(jwk).map_err(failed)?;
        let other = member("alg").is_some_and(|alg| Algorithm::named(alg).is_none());
        if other || jwk.member("d").is_some() {
            continue;
        }
        keys.push(NamedKey { key, alg: member("alg").map(str::to_owned), kid: member("kid").map(str::to_owned) });
    }
    Ok(keys)
}

/// The keys of a set, or the one key that the document is.
pub(crate) fn jwks(document: &Value) -> Vec<&Value> {
    match document.member("keys").and_then(Value::as_array) {
        Some(keys) => keys.iter().collect(),
        None => vec![document],
    }
}

fn part(jwk: &Value, name: &str) -> Result<Vec<u8>, String> {
    let text = jwk.member(name).and_then(Value::as_str).ok_or_else(|| format!("missing {name:?}"))?;
    decode_base64url(text).map_err(|_| format!("{name:?} is not base64url"))
}

fn verifying_key(jwk: &Value) -> Result<VerifyingKey, String> {
    let kty = jwk.member("kty").and_then(Value::as_str).unwrap_or("");
    match kty {
        // Go reads both as numbers: leading octets of zero count for nothing.
        "RSA" => {
            let number = |name| Ok::<_, String>(unsigned(&part(jwk, name)?).to_vec());
            Ok(VerifyingKey::Rsa { n: number("n")?, e: number("e")? })
        }
        "EC" => {
            let curve = jwk.member("crv").and_then(Value::as_str).and_then(Curve::named).ok_or("unknown curve")?;
            Ok(VerifyingKey::Ec { curve, point: point(jwk, curve)? })
        }
        "OKP" => match jwk.member("crv").and_then(Value::as_str) {
            Some("Ed25519") => Ok(VerifyingKey::Ed25519(part(jwk, "x")?)),
            _ => Err("unknown curve".to_owned()),
        },
        "oct" => Ok(VerifyingKey::Secret(part(jwk, "k")?)),
        other => Err(format!("invalid key type {other:?}")),
    }
}

fn point(jwk: &Value, curve: Curve) -> Result<Vec<u8>, String> {
    let mut point = vec![4];
    for name in ["x", "y"] {
        point.extend(padded(&part(jwk, name)?, curve.bytes()));
    }
    Ok(point)
}

/// To exactly `len` bytes, zeros in front.
fn padded(bytes: &[u8], len: usize) -> Vec<u8> {
    let bytes = unsigned(bytes);
    let mut out = vec![0; len.saturating_sub(bytes.len())];
    out.extend_from_slice(bytes);
    out
}

/// Signs with a private JSON Web Key.
pub(crate) fn sign(jwk: &Value, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, String> {
    let random = SystemRandom::new();
    let kty = jwk.member("kty").and_then(Value::as_str).unwrap_or("");
    match (kty, algorithm) {
        ("oct", Algorithm::Hs(bits)) => {
            let key = hmac::Key::new(hmac_algorithm(bits), &part(jwk, "k")?);
            Ok(hmac::sign(&key, message).as_ref().to_vec())
        }
        ("RSA", Algorithm::Rs(bits) | Algorithm::Ps(bits)) => {
            let pair = rsa_pair(jwk)?;
            let encoding: &'static dyn signature::RsaEncoding = match (algorithm, bits) {
                (Algorithm::Rs(_), Bits::B256) => &signature::RSA_PKCS1_SHA256,
                (Algorithm::Rs(_), Bits::B384) => &signature::RSA_PKCS1_SHA384,
                (Algorithm::Rs(_), Bits::B512) => &signature::RSA_PKCS1_SHA512,
                (_, Bits::B256) => &signature::RSA_PSS_SHA256,
                (_, Bits::B384) => &signature::RSA_PSS_SHA384,
                (_, Bits::B512) => &signature::RSA_PSS_SHA512,
            };
            let mut made = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &random, message, &mut made).map_err(|_| "the RSA key cannot sign".to_owned())?;
            Ok(made)
        }
        ("EC", Algorithm::Es(bits)) => {
            let curve = jwk.member("crv").and_then(Value::as_str).and_then(Curve::named).ok_or("unknown curve")?;
            let scheme = match (curve, bits) {
                (Curve::P256, Bits::B256) => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
                (Curve::P384, Bits::B384) => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
                (Curve::P521, Bits::B512) => &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
                _ => return Err("the curve does not fit the algorithm".to_owned()),
            };
            let private = padded(&part(jwk, "d")?, curve.bytes());
            let pair = signature::EcdsaKeyPair::from_private_key_and_public_key(scheme, &private, &point(jwk, curve)?)
                .map_err(|error| error.to_string())?;
            let made = pair.sign(&random, message).map_err(|_| "the EC key cannot sign".to_owned())?;
            Ok(made.as_ref().to_vec())
        }
        ("OKP", Algorithm::EdDsa) => {
            let pair =
                signature::Ed25519KeyPair::from_seed_unchecked(&part(jwk, "d")?).map_err(|error| error.to_string())?;
            Ok(pair.sign(message).as_ref().to_vec())
        }
        _ => Err(format!("invalid key type {kty:?} for the algorithm")),
    }
}

fn rsa_pair(jwk: &Value) -> Result<signature::RsaKeyPair, String> {
    // RSAPrivateKey (RFC 8017 appendix A.1.2): version and eight integers.
    let mut body = der_integer(&[0]);
    for name in ["n", "e", "d", "p", "q", "dp", "dq", "qi"] {
        body.extend(der_integer(&part(jwk, name)?));
    }
    let mut der = vec![0x30];
    der.extend(der_length(body.len()));
    der.extend(body);
    signature::RsaKeyPair::from_der(&der).map_err(|error| error.to_string())
}

fn der_integer(bytes: &[u8]) -> Vec<u8> {
    let mut content = unsigned(bytes).to_vec();
    if content.first().is_none_or(|first| first & 0x80 != 0) {
        content.insert(0, 0);
    }
    let mut out = vec![0x02];
    out.extend(der_length(content.len()));
    out.extend(content);
    out
}

fn der_length(len: usize) -> Vec<u8> {
    match u8::try_from(len) {
        Ok(short) if short < 0x80 => vec![short],
        _ => {
            let bytes = len.to_be_bytes();
            let bytes = unsigned(&bytes);
            let mut out = vec![0x80 | u8::try_from(bytes.len()).unwrap_or(0)];
            out.extend_from_slice(bytes);
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_blocks_are_whole_lines() {
        let block = |text: &str| pem_block(text).map(|(label, der, rest)| (label.to_owned(), der, rest.to_owned()));
        let good = Some(("KEY".to_owned(), b"hi".to_vec(), String::new()));
        assert_eq!(block("-----BEGIN KEY-----\naGk=\n-----END KEY-----\n"), good);
        assert_eq!(block("words\n-----BEGIN KEY-----\r\naG\r\nk=\r\n-----END KEY-----"), good);
        assert_eq!(pem_block("-----BEGIN KEY-----\naGk=\n-----END KEY-----\n\n").map(|(_, _, rest)| rest), Some("\n"));
        for bad in [
            "  -----BEGIN KEY-----\naGk=\n  -----END KEY-----",
            "-----BEGIN KEY-----aGk=-----END KEY-----",
            "words -----BEGIN KEY-----\naGk=\n-----END KEY-----",
            "-----BEGIN KEY-----\naGk=\n-----END KEY----- words",
            "-----BEGIN KEY-----\naGk=\n-----END OTHER-----",
        ] {
            assert_eq!(block(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_that_sign_and_keys_that_cannot_be_read_verify_nothing() {
        let keys = |text: &str| verifying_keys(text).map(|keys| keys.len());
        let rsa = r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#;
        assert_eq!(keys(&format!("{{\"keys\":[{rsa}]}}")), Ok(1));
        assert_eq!(keys(r#"{"kty":"RSA","n":"AQAB","e":"AQAB","d":"AQAB"}"#), Ok(0));
        assert!(keys(&format!("{{\"keys\":[{rsa},{{\"kty\":\"FOO\",\"alg\":\"zz\"}}]}}")).is_err());
        assert!(keys(r#"{"kty":"OKP","crv":"X25519","x":"AQAB"}"#).is_err());
    }
}
