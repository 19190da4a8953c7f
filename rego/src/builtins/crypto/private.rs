//! Private keys, in the shapes that Go's types have in JSON and as JSON Web Keys.

use aws_lc_rs::agreement::{ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey as Agreement};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use x509_parser::asn1_rs::{Any, FromDer as _, Oid, Tag};
use x509_parser::prelude::X509Certificate;

use super::super::encoding::decode_base64;
use super::super::{BuiltinError, Context, Outcome, failed, text};
use super::certificates::{bytes, charge_described, coordinates, described, integer, next_block, public_key};
use super::keys::{Curve, VerifyingKey, pem_block, unsigned};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, Meter as _};
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

pub(crate) fn parse_private_keys(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let given = text(args, 1)?;
    if given.is_empty() {
        return Ok(Value::Null);
    }
    let mut keys = Vec::new();
    for key in metered_keys(context, given)? {
        charge_described(context, &[])?;
        context.push(&mut keys, key.described())?;
    }
    context.array(keys)
}

pub(crate) fn parse_rsa_private_key(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let given = text(args, 1)?;
    if given.is_empty() {
        return Err(failed("input PEM data was empty"));
    }
    let decoded;
    let pem = if given.starts_with("-----BEGIN") {
        given
    } else {
        context.allocate(given.len())?;
        decoded = String::from_utf8(decode_base64(context, given)?).unwrap_or_default();
        &decoded
    };
    charge_described(context, &[])?;
    Ok(metered_keys(context, pem)?.first().map_or(Value::Null, PrivateKey::web_key))
}

pub(crate) fn parse_keypair(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let begin = "-----BEGIN ";
    let plain = |context: &mut Context<'_>, given: &str| {
        context.allocate(given.len().saturating_mul(3))?;
        if given.starts_with(begin) { Ok(given.as_bytes().to_vec()) } else { decode_base64(context, given) }
    };
    let (certificates, key) = (plain(context, text(args, 1)?)?, plain(context, text(args, 2)?)?);
    let mut chain = Vec::new();
    match std::str::from_utf8(&certificates) {
        Ok(pem) if pem.starts_with(begin) => {
            let mut rest = pem;
            while let Some((label, der, after)) = next_block(context, rest)? {
                if label == "CERTIFICATE" {
                    context.allocate(der.len().saturating_mul(2).saturating_add(HEADER_BYTES))?;
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
        Ok(pem) if pem.starts_with(begin) => metered_keys(context, pem)?.into_iter().next(),
        _ => pkcs8(&key),
    };
    if leaf.len() > MAX_KEY_BYTES * 4 {
        return Err(EvalError::budget("a certificate is too long").into());
    }
    charge_described(context, leaf)?;
    charge_described(context, &[])?;
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

/// The longest private key: reading one cannot be interrupted.
const MAX_KEY_BYTES: usize = 16 << 10;

/// The same as [`from_pem`], within the bounds of an evaluation.
fn metered_keys(context: &mut Context<'_>, given: &str) -> Result<Vec<PrivateKey>, BuiltinError> {
    // The text decoded, its blocks, and the numbers in them.
    context.allocate(given.len().saturating_mul(4))?;
    let decoded = match decode_base64(context, given) {
        Err(BuiltinError::Halt(error)) => return Err(error.into()),
        decoded => decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok()),
    };
    let mut rest = decoded.as_deref().unwrap_or(given);
    let mut keys = Vec::new();
    while let Some((label, der, after)) = next_block(context, rest)? {
        if der.len() > MAX_KEY_BYTES {
            return Err(EvalError::budget("a private key is too long").into());
        }
        // The public half of a key on a curve is computed.
        context.work(10_000)?;
        context.allocate(HEADER_BYTES)?;
        keys.extend(key_of(label, &der)?);
        rest = after;
    }
    Ok(keys)
}

/// The key of one block; nothing where it is of another kind.
fn key_of(label: &str, der: &[u8]) -> Result<Option<PrivateKey>, BuiltinError> {
    let key = match label {
        "RSA PRIVATE KEY" => pkcs1(der),
        "PRIVATE KEY" => pkcs8(der),
        "EC PRIVATE KEY" => sec1(der, None),
        _ => return Ok(None),
    };
    key.map(Some).ok_or_else(|| failed(format!("x509: failed to parse private key of block {label:?}")))
}

/// The keys of all blocks; other blocks are passed over. Text without any has no keys.
fn from_pem(given: &str) -> Result<Vec<PrivateKey>, BuiltinError> {
    let mut rest = given;
    let mut keys = Vec::new();
    while let Some((label, der, after)) = pem_block(rest) {
        keys.extend(key_of(label, &der)?);
        rest = after;
    }
    Ok(keys)
}

/// The public half of the first key, which may be a public key in PKCS#1, too.
pub(crate) fn public_half(pem: &str) -> Option<VerifyingKey> {
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
pub(crate) fn web_key_of_pem(pem: &str) -> Option<Value> {
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
