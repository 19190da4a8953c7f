//! Private keys, in the shapes that Go's types have in JSON and as JSON Web Keys.

use stepgate_jose::{PrivateKey, VerifyingKey};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::super::encoding::decode_base64;
use super::super::{BuiltinError, Context, Outcome, failed, text};
use super::certificates::{bytes, charge_described, described, integer, next_block, public_key};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, Meter as _};
use crate::value::Value;

pub(crate) fn parse_private_keys(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let given = text(args, 1)?;
    if given.is_empty() {
        return Ok(Value::Null);
    }
    let mut keys = Vec::new();
    for key in metered_keys(context, given)? {
        charge_described(context, &[])?;
        context.push(&mut keys, described_key(&key))?;
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
    Ok(metered_keys(context, pem)?.first().map_or(Value::Null, web_key))
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
        _ => PrivateKey::from_pkcs8(&key),
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
        ("PrivateKey", described_key(&key)),
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
    let malformed = |_| failed(format!("x509: failed to parse private key of block {label:?}"));
    PrivateKey::of_block(label, der).transpose().map_err(malformed)
}

/// As Go's `rsa.PrivateKey`, `ecdsa.PrivateKey` and `ed25519.PrivateKey`.
fn described_key(key: &PrivateKey) -> Value {
    let public = public_key(&key.public());
    let mut members = public.as_object().map(|object| object.to_vec()).unwrap_or_default();
    let mut set = |name: &str, value: Value| members.push((Value::from(name), value));
    match key {
        PrivateKey::Rsa([_, _, d, p, q, dp, dq, qi]) => {
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
        PrivateKey::Ec { private, .. } => set("D", integer(private)),
        PrivateKey::Ed25519 { seed, public } => return bytes(&[seed.as_slice(), public.as_slice()].concat()),
        PrivateKey::Secret(secret) => return bytes(secret),
    }
    Value::object(members)
}

/// As a JSON Web Key (RFC 7517).
fn web_key(key: &PrivateKey) -> Value {
    key.jwk().into_iter().map(|(name, text)| (name, Value::from(text))).collect()
}
