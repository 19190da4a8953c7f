//! Private keys: from PEM and JSON Web Keys, to signatures, public halves and JSON Web Keys.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::agreement::{ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey as Agreement};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use aws_lc_rs::{hmac, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use x509_parser::asn1_rs::{Any, FromDer as _, Oid, Tag};

use crate::algorithm::{Algorithm, Bits, Curve, KeyType};
use crate::pem::{encode, pem_block};
use crate::unsigned;
use crate::verify::{KeyError, VerifyingKey, hmac_algorithm, padded, part, point};

/// Names of the numbers of an RSA key in JSON Web Keys (RFC 7518 section 6.3), in the order of RSAPrivateKey.
const RSA_NUMBERS: [&str; 8] = ["n", "e", "d", "p", "q", "dp", "dq", "qi"];

/// A key that can sign.
#[derive(Clone)]
pub enum PrivateKey {
    /// RSAPrivateKey (RFC 8017 appendix A.1.2) without its version.
    Rsa([Vec<u8>; 8]),
    /// The private number and the uncompressed point.
    Ec {
        curve: Curve,
        private: Vec<u8>,
        point: Vec<u8>,
    },
    Ed25519 {
        seed: Vec<u8>,
        public: Vec<u8>,
    },
    Secret(Vec<u8>),
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").finish_non_exhaustive()
    }
}

impl PrivateKey {
    /// A new key of the family of `algorithm`, as PKCS#8 PEM.
    ///
    /// # Errors
    /// The family is not generated here, or the system has no randomness.
    pub fn generate(algorithm: Algorithm) -> Result<String, KeyError> {
        let failed = |_| KeyError::PrivateKey;
        let der = match algorithm.key_type() {
            KeyType::Rsa => {
                let pair = RsaKeyPair::generate(rsa::KeySize::Rsa2048).map_err(failed)?;
                pair.as_der().map_err(failed)?.as_ref().to_vec()
            }
            KeyType::Ec(curve) => {
                EcdsaKeyPair::generate_pkcs8(signing(curve), &SystemRandom::new()).map_err(failed)?.as_ref().to_vec()
            }
            KeyType::Ed25519 | KeyType::Secret => return Err(KeyError::PrivateKey),
        };
        Ok(encode("PRIVATE KEY", &der))
    }

    /// The key of one block of PEM. `None`: the label is no private key's.
    ///
    /// # Errors
    /// The bytes are no such key.
    pub fn of_block(label: &str, der: &[u8]) -> Option<Result<Self, KeyError>> {
        let key = match label {
            "RSA PRIVATE KEY" => pkcs1(der),
            "PRIVATE KEY" => Self::from_pkcs8(der),
            "EC PRIVATE KEY" => sec1(der, None),
            _ => return None,
        };
        Some(key.ok_or(KeyError::PrivateKey))
    }

    /// The first private key of a PEM text.
    ///
    /// # Errors
    /// There is none, or one before it cannot be read.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let mut rest = text;
        while let Some((label, der, after)) = pem_block(rest) {
            if let Some(key) = Self::of_block(label, &der) {
                return key;
            }
            rest = after;
        }
        Err(KeyError::PrivateKey)
    }

    /// PrivateKeyInfo (RFC 5208 section 5).
    pub fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let parts = sequence(der)?;
        let [_, algorithm, key, ..] = parts.as_slice() else { return None };
        let (parameters, kind) = Oid::from_der(algorithm.data).ok()?;
        match kind.to_id_string().as_str() {
            "1.2.840.113549.1.1.1" => pkcs1(key.data),
            "1.2.840.10045.2.1" => {
                sec1(key.data, Curve::of_identifier(&Oid::from_der(parameters).ok()?.1.to_id_string()))
            }
            "1.3.101.112" => {
                let (_, inner) = Any::from_der(key.data).ok()?;
                let pair = Ed25519KeyPair::from_seed_unchecked(inner.data).ok()?;
                let public = pair.public_key().as_ref().to_vec();
                Some(Self::Ed25519 { seed: inner.data.to_vec(), public })
            }
            _ => None,
        }
    }

    /// From a private JSON Web Key, whose members `member` gives.
    ///
    /// # Errors
    /// A member is missing or cannot be read, or the key cannot be used with `algorithm`. The words are OPA's.
    pub fn from_jwk<'a>(member: &impl Fn(&str) -> Option<&'a str>, algorithm: Algorithm) -> Result<Self, String> {
        let kty = member("kty").unwrap_or("");
        match (kty, algorithm) {
            ("oct", Algorithm::Hs(_)) => Ok(Self::Secret(part(member, "k")?)),
            ("RSA", Algorithm::Rs(_) | Algorithm::Ps(_)) => {
                let mut numbers: [Vec<u8>; 8] = Default::default();
                for (number, name) in numbers.iter_mut().zip(RSA_NUMBERS) {
                    *number = part(member, name)?;
                }
                Ok(Self::Rsa(numbers))
            }
            ("EC", Algorithm::Es(_)) => {
                let curve = member("crv").and_then(Curve::named).ok_or("unknown curve")?;
                let private = padded(&part(member, "d")?, curve.bytes());
                Ok(Self::Ec { curve, private, point: point(member, curve)? })
            }
            ("OKP", Algorithm::EdDsa) => {
                let seed = part(member, "d")?;
                let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|error| error.to_string())?;
                let public = pair.public_key().as_ref().to_vec();
                Ok(Self::Ed25519 { seed, public })
            }
            _ => Err(format!("invalid key type {kty:?} for the algorithm")),
        }
    }

    /// The public half. Of a secret, the secret itself.
    pub fn public(&self) -> VerifyingKey {
        match self {
            Self::Rsa([n, e, ..]) => VerifyingKey::Rsa { n: unsigned(n).to_vec(), e: unsigned(e).to_vec() },
            Self::Ec { curve, point, .. } => VerifyingKey::Ec { curve: *curve, point: point.clone() },
            Self::Ed25519 { public, .. } => VerifyingKey::Ed25519(public.clone()),
            Self::Secret(secret) => VerifyingKey::Secret(secret.clone()),
        }
    }

    /// The signature over `message`.
    ///
    /// # Errors
    /// The key is of another family than `algorithm`, or cannot sign.
    pub fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, String> {
        let random = SystemRandom::new();
        match (self, algorithm) {
            (Self::Secret(secret), Algorithm::Hs(bits)) => {
                let key = hmac::Key::new(hmac_algorithm(bits), secret);
                Ok(hmac::sign(&key, message).as_ref().to_vec())
            }
            (Self::Rsa(numbers), Algorithm::Rs(_) | Algorithm::Ps(_)) => {
                let pair = RsaKeyPair::from_der(&rsa_der(numbers)).map_err(|error| error.to_string())?;
                let encoding: &'static dyn signature::RsaEncoding = match algorithm {
                    Algorithm::Rs(Bits::B256) => &signature::RSA_PKCS1_SHA256,
                    Algorithm::Rs(Bits::B384) => &signature::RSA_PKCS1_SHA384,
                    Algorithm::Rs(_) => &signature::RSA_PKCS1_SHA512,
                    Algorithm::Ps(Bits::B256) => &signature::RSA_PSS_SHA256,
                    Algorithm::Ps(Bits::B384) => &signature::RSA_PSS_SHA384,
                    _ => &signature::RSA_PSS_SHA512,
                };
                let mut made = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut made).map_err(|_| "the RSA key cannot sign".to_owned())?;
                Ok(made)
            }
            (Self::Ec { curve, private, point }, Algorithm::Es(_)) => {
                if algorithm.key_type() != KeyType::Ec(*curve) {
                    return Err("the curve does not fit the algorithm".to_owned());
                }
                let pair = EcdsaKeyPair::from_private_key_and_public_key(
                    signing(*curve),
                    &padded(private, curve.bytes()),
                    point,
                )
                .map_err(|error| error.to_string())?;
                let made = pair.sign(&random, message).map_err(|_| "the EC key cannot sign".to_owned())?;
                Ok(made.as_ref().to_vec())
            }
            (Self::Ed25519 { seed, .. }, Algorithm::EdDsa) => {
                let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|error| error.to_string())?;
                Ok(pair.sign(message).as_ref().to_vec())
            }
            _ => Err("invalid key type for the algorithm".to_owned()),
        }
    }

    /// The base64url of the signature over `message`.
    ///
    /// # Errors
    /// As of [`Self::sign`].
    pub fn sign_encoded(&self, algorithm: Algorithm, message: &[u8]) -> Result<String, KeyError> {
        self.sign(algorithm, message).map(|made| URL_SAFE_NO_PAD.encode(made)).map_err(|_| KeyError::PrivateKey)
    }

    /// The members of its JSON Web Key (RFC 7517), private ones included.
    pub fn jwk(&self) -> Vec<(&'static str, String)> {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Rsa(numbers) => {
                let numbers = RSA_NUMBERS.into_iter().zip(numbers).map(|(name, number)| (name, text(number)));
                [("kty", "RSA".to_owned())].into_iter().chain(numbers).collect()
            }
            Self::Ec { curve, private, point } => {
                let (x, y) = point.get(1..).unwrap_or_default().split_at_checked(curve.bytes()).unwrap_or_default();
                let mut members = vec![("kty", "EC".to_owned()), ("crv", curve.name().to_owned())];
                members.extend([("x", text(x)), ("y", text(y)), ("d", text(private))]);
                members
            }
            Self::Ed25519 { seed, public } => {
                let named = [("kty", "OKP".to_owned()), ("crv", "Ed25519".to_owned())];
                named.into_iter().chain([("x", text(public)), ("d", text(seed))]).collect()
            }
            Self::Secret(secret) => vec![("kty", "oct".to_owned()), ("k", text(secret))],
        }
    }

    /// The members of the public half's JSON Web Key.
    pub fn public_jwk(&self) -> Vec<(&'static str, String)> {
        let mut members = self.jwk();
        members.retain(|(name, _)| matches!(*name, "kty" | "crv" | "n" | "e" | "x" | "y"));
        members
    }
}

/// A private key and the only algorithm that it is used with.
#[derive(Clone, Debug)]
pub struct SigningKey {
    algorithm: Algorithm,
    key: PrivateKey,
}

impl SigningKey {
    /// The first private key of a PEM text.
    ///
    /// # Errors
    /// There is none, or it is of another family than `algorithm`.
    pub fn from_pem(algorithm: Algorithm, pem: &str) -> Result<Self, KeyError> {
        let key = PrivateKey::from_pem(pem)?;
        let fits = key.public().key_type() == algorithm.key_type();
        if fits { Ok(Self { algorithm, key }) } else { Err(KeyError::PrivateKey) }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The base64url of the signature over `message`.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(&self, message: &[u8]) -> Result<String, KeyError> {
        self.key.sign_encoded(self.algorithm, message)
    }

    /// The members of the public half's JSON Web Key.
    pub fn public_jwk(&self) -> BTreeMap<&'static str, String> {
        self.key.public_jwk().into_iter().collect()
    }
}

fn signing(curve: Curve) -> &'static signature::EcdsaSigningAlgorithm {
    match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
        Curve::P521 => &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
    }
}

/// The elements of a DER sequence.
pub(crate) fn sequence(der: &[u8]) -> Option<Vec<Any<'_>>> {
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

/// RSAPrivateKey (RFC 8017 appendix A.1.2): version and eight integers.
fn rsa_der(numbers: &[Vec<u8>; 8]) -> Vec<u8> {
    let mut body = der_integer(&[0]);
    for number in numbers {
        body.extend(der_integer(number));
    }
    let mut der = vec![0x30];
    der.extend(der_length(body.len()));
    der.extend(body);
    der
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
mod tests;
