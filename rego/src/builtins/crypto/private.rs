//! Private keys, in the shapes that Go's types have in JSON and as JSON Web Keys.

use aws_lc_rs::agreement::{ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey as Agreement};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use x509_parser::asn1_rs::{Any, FromDer as _, Oid, Tag};
use x509_parser::prelude::X509Certificate;

use super::super::encoding::decode_base64;
use super::super::{BuiltinError, Context, Outcome, failed, text};
use super::certificates::{bytes, coordinates, described, integer, public_key};
use super::keys::{Curve, VerifyingKey, pem_block, unsigned};
use crate::value::Value;

/// A key that can sign.
enum PrivateKey {
    /// RSAPrivateKey (RFC 8017 appendix A.1.2) without its version.
    Rsa([Vec<u8>; 8]),
    Ec {
        curve: Curve,
        private: Vec<u8>,
        point: Vec<u8>,
    },
    Ed25519 {
        seed: Vec<u8>,
        public: Vec<u8>,
    },
}

pub fn parse_private_keys(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let given = text(args, 1)?;
    if given.is_empty() {
        return Ok(Value::Null);
    }
    Ok(Value::array(from_pem(given)?.iter().map(PrivateKey::described).collect()))
}

pub fn parse_rsa_private_key(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let given = text(args, 1)?;
    if given.is_empty() {
        return Err(failed("input PEM data was empty"));
    }
    let decoded;
    let pem = if given.starts_with("-----BEGIN") {
        given
    } else {
        decoded = String::from_utf8(decode_base64(given)?).unwrap_or_default();
        &decoded
    };
    Ok(from_pem(pem)?.first().map_or(Value::Null, PrivateKey::web_key))
}

pub fn parse_keypair(_: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let begin = "-----BEGIN ";
    let plain =
        |given: &str| if given.starts_with(begin) { Ok(given.as_bytes().to_vec()) } else { decode_base64(given) };
    let (certificates, key) = (plain(text(args, 1)?)?, plain(text(args, 2)?)?);
    let mut chain = Vec::new();
    match std::str::from_utf8(&certificates) {
        Ok(pem) if pem.starts_with(begin) => {
            let mut rest = pem;
            while let Some((label, der, after)) = pem_block(rest) {
                if label == "CERTIFICATE" {
                    chain.push(der);
                }
                rest = after;
            }
        }
        _ => chain.push(certificates),
    }
    let Some(leaf) = chain.first() else {
        return Err(failed("tls: failed to find any PEM data in certificate input"));
    };
    let key = match std::str::from_utf8(&key) {
        Ok(pem) if pem.starts_with(begin) => from_pem(pem)?.into_iter().next(),
        _ => pkcs8(&key),
    };
    let key = key.ok_or_else(|| failed("tls: failed to parse private key"))?;
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|_| failed("x509: malformed certificate"))?;
    if VerifyingKey::from_spki(certificate.public_key()) != Some(key.public()) {
        return Err(failed("tls: private key does not match public key"));
    }
    Ok([
        ("Certificate", Value::array(chain.iter().map(|der| bytes(der)).collect())),
        ("PrivateKey", key.described()),
        ("SupportedSignatureAlgorithms", Value::Null),
        ("OCSPStaple", Value::Null),
        ("SignedCertificateTimestamps", Value::Null),
        ("Leaf", described(leaf, false)?),
    ]
    .into_iter()
    .collect())
}

/// The keys of all blocks; other blocks are passed over. Text without any has no keys.
fn from_pem(given: &str) -> Result<Vec<PrivateKey>, BuiltinError> {
    let decoded = decode_base64(given).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let mut rest = decoded.as_deref().unwrap_or(given);
    let mut keys = Vec::new();
    while let Some((label, der, after)) = pem_block(rest) {
        let key = match label {
            "RSA PRIVATE KEY" => pkcs1(&der),
            "PRIVATE KEY" => pkcs8(&der),
            "EC PRIVATE KEY" => sec1(&der, None),
            _ => {
                rest = after;
                continue;
            }
        };
        keys.push(key.ok_or_else(|| failed(format!("x509: failed to parse private key of block {label:?}")))?);
        rest = after;
    }
    Ok(keys)
}

/// The public half of the first key, which may be a public key in PKCS#1, too.
pub fn public_half(pem: &str) -> Option<VerifyingKey> {
    match pem_block(pem)? {
        ("RSA PUBLIC KEY", der, _) => {
            let numbers = sequence(&der)?;
            let [n, e] = numbers.as_slice() else { return None };
            Some(VerifyingKey::Rsa { n: unsigned(n.data).to_vec(), e: unsigned(e.data).to_vec() })
        }
        _ => from_pem(pem).ok()?.first().map(PrivateKey::public),
    }
}

/// The first private key of `pem` as a JSON Web Key.
pub fn web_key_of_pem(pem: &str) -> Option<Value> {
    from_pem(pem).ok()?.first().map(PrivateKey::web_key)
}

/// The elements of a DER sequence.
fn sequence(der: &[u8]) -> Option<Vec<Any<'_>>> {
    let (_, outer) = Any::from_der(der).ok()?;
    if outer.tag() != Tag::Sequence {
        return None;
    }
    let mut rest = outer.data;
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (after, item) = Any::from_der(rest).ok()?;
        items.push(item);
        rest = after;
    }
    Some(items)
}

fn pkcs1(der: &[u8]) -> Option<PrivateKey> {
    let numbers = sequence(der)?;
    let parts: Vec<Vec<u8>> = numbers.iter().skip(1).take(8).map(|it| unsigned(it.data).to_vec()).collect();
    Some(PrivateKey::Rsa(parts.try_into().ok()?))
}

/// PrivateKeyInfo (RFC 5208 section 5).
fn pkcs8(der: &[u8]) -> Option<PrivateKey> {
    let parts = sequence(der)?;
    let [_, algorithm, key, ..] = parts.as_slice() else { return None };
    let mut algorithm = algorithm.data;
    let (rest, kind) = Oid::from_der(algorithm).ok()?;
    algorithm = rest;
    match kind.to_id_string().as_str() {
        "1.2.840.113549.1.1.1" => pkcs1(key.data),
        "1.2.840.10045.2.1" => sec1(key.data, Curve::of_identifier(&Oid::from_der(algorithm).ok()?.1.to_id_string())),
        "1.3.101.112" => {
            let (_, inner) = Any::from_der(key.data).ok()?;
            let pair = Ed25519KeyPair::from_seed_unchecked(inner.data).ok()?;
            let public = pair.public_key().as_ref().to_vec();
            Some(PrivateKey::Ed25519 { seed: inner.data.to_vec(), public })
        }
        _ => None,
    }
}

/// ECPrivateKey (RFC 5915 section 3). The curve is named here or around it.
fn sec1(der: &[u8], curve: Option<Curve>) -> Option<PrivateKey> {
    let parts = sequence(der)?;
    let named = parts.iter().find(|part| part.tag().0 == 0).and_then(|part| Oid::from_der(part.data).ok());
    let curve = curve.or_else(|| Curve::of_identifier(&named?.1.to_id_string()))?;
    let private = parts.get(1)?.data.to_vec();
    let algorithm = match curve {
        Curve::P256 => &ECDH_P256,
        Curve::P384 => &ECDH_P384,
        Curve::P521 => &ECDH_P521,
    };
    let point = Agreement::from_private_key(algorithm, &private).ok()?.compute_public_key().ok()?.as_ref().to_vec();
    Some(PrivateKey::Ec { curve, private, point })
}

impl PrivateKey {
    fn public(&self) -> VerifyingKey {
        match self {
            Self::Rsa([n, e, ..]) => VerifyingKey::Rsa { n: n.clone(), e: e.clone() },
            Self::Ec { curve, point, .. } => VerifyingKey::Ec { curve: *curve, point: point.clone() },
            Self::Ed25519 { public, .. } => VerifyingKey::Ed25519(public.clone()),
        }
    }

    /// As Go's `rsa.PrivateKey`, `ecdsa.PrivateKey` and `ed25519.PrivateKey`.
    fn described(&self) -> Value {
        let public = public_key(&self.public());
        let mut members = public.as_object().map(|object| object.to_vec()).unwrap_or_default();
        let mut set = |name: &str, value: Value| members.push((Value::from(name), value));
        match self {
            Self::Rsa([_, _, d, p, q, dp, dq, qi]) => {
                set("D", integer(d));
                set("Primes", Value::array(vec![integer(p), integer(q)]));
                let computed = [
                    ("Dp", integer(dp)),
                    ("Dq", integer(dq)),
                    ("Qinv", integer(qi)),
                    ("CRTValues", Value::array(Vec::new())),
                ];
                set("Precomputed", computed.into_iter().collect());
            }
            Self::Ec { private, .. } => set("D", integer(private)),
            Self::Ed25519 { seed, public } => return bytes(&[seed.as_slice(), public.as_slice()].concat()),
        }
        Value::object(members)
    }

    /// As a JSON Web Key (RFC 7517).
    fn web_key(&self) -> Value {
        let (kind, parts): (_, Vec<(&str, &[u8])>) = match self {
            Self::Rsa(parts) => {
                let names = ["n", "e", "d", "p", "q", "dp", "dq", "qi"];
                ("RSA", names.into_iter().zip(parts.iter().map(Vec::as_slice)).collect())
            }
            Self::Ec { curve, private, point } => {
                let (x, y) = coordinates(*curve, point);
                ("EC", vec![("x", x), ("y", y), ("d", private)])
            }
            Self::Ed25519 { seed, public } => ("OKP", vec![("x", public), ("d", seed)]),
        };
        let curve = match self {
            Self::Rsa(_) => None,
            Self::Ec { curve, .. } => Some(curve.name()),
            Self::Ed25519 { .. } => Some("Ed25519"),
        };
        let parts = parts.into_iter().map(|(name, bytes)| (name, Value::from(URL_SAFE_NO_PAD.encode(bytes))));
        let named = [("kty", Some(kind)), ("crv", curve)];
        let named = named.into_iter().filter_map(|(name, text)| text.map(|text| (name, Value::from(text))));
        named.chain(parts).collect()
    }
}
