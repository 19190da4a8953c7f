//! Public keys and shared secrets: from SPKI, certificates, PEM and JSON Web Keys.

use std::fmt;

use aws_lc_rs::signature::{self, ParsedPublicKey};
use aws_lc_rs::{hmac, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::algorithm::{Algorithm, Bits, Curve, KeyType};
use crate::pem::pem_block;
use crate::unsigned;

/// Why a published key is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a component is missing or not base64url")]
    Encoding,
    #[error("an RSA key shorter than 2048 or longer than 8192 bits")]
    RsaSize,
    #[error("a point that is not on its curve")]
    Point,
    #[error("not a private key in PKCS#8 PEM for this algorithm")]
    PrivateKey,
}

/// A key that can verify.
#[derive(Clone, PartialEq, Eq)]
pub enum VerifyingKey {
    /// Modulus and exponent, without leading zeros.
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    Ec {
        curve: Curve,
        point: Vec<u8>,
    },
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").field("key_type", &self.key_type()).finish_non_exhaustive()
    }
}

impl VerifyingKey {
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Rsa { .. } => KeyType::Rsa,
            Self::Ec { curve, .. } => KeyType::Ec(*curve),
            Self::Ed25519(_) => KeyType::Ed25519,
            Self::Secret(_) => KeyType::Secret,
        }
    }

    /// Verifies the signature of `message`; false for an algorithm of another family.
    pub fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if algorithm.key_type() != self.key_type() {
            return false;
        }
        match (self, algorithm) {
            (Self::Rsa { n, e }, algorithm) => {
                let parameters: &signature::RsaParameters = match algorithm {
                    Algorithm::Ps(Bits::B256) => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps(Bits::B384) => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps(Bits::B512) => &signature::RSA_PSS_2048_8192_SHA512,
                    Algorithm::Rs(Bits::B256) => &signature::RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
                    Algorithm::Rs(Bits::B384) => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs(Bits::B512) => &signature::RSA_PKCS1_1024_8192_SHA512_FOR_LEGACY_USE_ONLY,
                    _ => return false,
                };
                rsa::PublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            (Self::Ec { curve, point }, _) => {
                signature::UnparsedPublicKey::new(verification(*curve), point).verify(message, signature).is_ok()
            }
            (Self::Ed25519(key), _) => {
                signature::UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature).is_ok()
            }
            (Self::Secret(secret), Algorithm::Hs(bits)) => {
                hmac::verify(&hmac::Key::new(hmac_algorithm(bits), secret), message, signature).is_ok()
            }
            _ => false,
        }
    }

    /// As [`Self::verifies`], with the signature in base64url without padding, as tokens have it.
    pub fn verifies_encoded(&self, algorithm: Algorithm, message: &[u8], signature: &str) -> bool {
        URL_SAFE_NO_PAD.decode(signature).is_ok_and(|signature| self.verifies(algorithm, message, &signature))
    }

    /// From a `SubjectPublicKeyInfo` (RFC 5280 section 4.1.2.7).
    pub fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
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

    /// From a certificate or a public key in PEM, with nothing after it. `None`: the text is no PEM.
    ///
    /// # Errors
    /// The block has another label, or cannot be parsed. The words are OPA's.
    pub fn from_pem(text: &str) -> Option<Result<Self, String>> {
        let (label, der, rest) = pem_block(text)?;
        Some(match (label, rest) {
            (_, rest) if !rest.is_empty() => Err("extra data after a PEM certificate block".to_owned()),
            ("CERTIFICATE", _) => x509_parser::parse_x509_certificate(&der)
                .map_err(|error| format!("failed to parse a PEM certificate: {error}"))
                .and_then(|(_, certificate)| Self::from_spki(certificate.public_key()).ok_or_else(no_key)),
            ("PUBLIC KEY", _) => SubjectPublicKeyInfo::from_der(&der)
                .map_err(|error| format!("failed to parse a PEM public key: {error}"))
                .and_then(|(_, spki)| Self::from_spki(&spki).ok_or_else(no_key)),
            _ => Err(no_key()),
        })
    }

    /// From a JSON Web Key, whose members `member` gives, as Go's libraries take it: padded base64url, short coordinates, RSA keys of any
    /// length, shared secrets.
    ///
    /// # Errors
    /// A member is missing or cannot be read. The words are OPA's.
    pub fn from_jwk<'a>(member: &impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let curve = || member("crv").and_then(Curve::named).ok_or_else(|| "unknown curve".to_owned());
        match member("kty").unwrap_or("") {
            // Go reads both as numbers: leading octets of zero count for nothing.
            "RSA" => {
                let number = |name| Ok::<_, String>(unsigned(&part(member, name)?).to_vec());
                Ok(Self::Rsa { n: number("n")?, e: number("e")? })
            }
            "EC" => {
                let curve = curve()?;
                Ok(Self::Ec { curve, point: point(member, curve)? })
            }
            "OKP" if member("crv") == Some("Ed25519") => Ok(Self::Ed25519(part(member, "x")?)),
            "OKP" => Err("unknown curve".to_owned()),
            "oct" => Ok(Self::Secret(part(member, "k")?)),
            other => Err(format!("invalid key type {other:?}")),
        }
    }

    /// From a JSON Web Key that an issuer publishes, as RFC 7518 wants it: base64url without padding, coordinates of full length and on
    /// their curve, RSA of 2048 to 8192 bits, no shared secret. Leading octets of zero of an RSA key, which section 6.3.1.1 forbids and
    /// some issuers write, change nothing.
    ///
    /// # Errors
    /// The kind of the fault.
    pub fn from_published_jwk<'a>(member: &impl Fn(&str) -> Option<&'a str>) -> Result<Self, KeyError> {
        let decode = |name: &str| match member(name).map(|component| URL_SAFE_NO_PAD.decode(component)) {
            Some(Ok(bytes)) if !bytes.is_empty() => Ok(bytes),
            _ => Err(KeyError::Encoding),
        };
        match (member("kty"), member("crv")) {
            (Some("RSA"), _) => {
                let (n, e) = (decode("n")?, decode("e")?);
                let (n, e) = (unsigned(&n).to_vec(), unsigned(&e).to_vec());
                let leading = n.first().map_or(0, |byte| byte.leading_zeros());
                let bits = n.len().saturating_mul(8).saturating_sub(usize::try_from(leading).unwrap_or_default());
                if !(2_048..=8_192).contains(&bits) {
                    return Err(KeyError::RsaSize);
                }
                if e.is_empty() { Err(KeyError::Encoding) } else { Ok(Self::Rsa { n, e }) }
            }
            (Some("EC"), Some(curve)) => {
                let curve = Curve::named(curve).ok_or(KeyError::Encoding)?;
                let (x, y) = (decode("x")?, decode("y")?);
                if x.len() != curve.bytes() || y.len() != curve.bytes() {
                    return Err(KeyError::Point);
                }
                let point = [&[4u8][..], &x, &y].concat();
                ParsedPublicKey::new(verification(curve), &point).map_err(|_| KeyError::Point)?;
                Ok(Self::Ec { curve, point })
            }
            (Some("OKP"), Some("Ed25519")) => {
                let key = decode("x")?;
                if key.len() == 32 { Ok(Self::Ed25519(key)) } else { Err(KeyError::Point) }
            }
            _ => Err(KeyError::Encoding),
        }
    }
}

fn no_key() -> String {
    "failed to extract a Key from the PEM certificate".to_owned()
}

fn verification(curve: Curve) -> &'static signature::EcdsaVerificationAlgorithm {
    match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED,
        Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED,
        Curve::P521 => &signature::ECDSA_P521_SHA512_FIXED,
    }
}

pub(crate) fn hmac_algorithm(bits: Bits) -> hmac::Algorithm {
    match bits {
        Bits::B256 => hmac::HMAC_SHA256,
        Bits::B384 => hmac::HMAC_SHA384,
        Bits::B512 => hmac::HMAC_SHA512,
    }
}

/// A member of a JSON Web Key in base64url, with padding or without.
pub(crate) fn part<'a>(member: &impl Fn(&str) -> Option<&'a str>, name: &str) -> Result<Vec<u8>, String> {
    let text = member(name).ok_or_else(|| format!("missing {name:?}"))?;
    let decoded = if text.ends_with('=') { URL_SAFE.decode(text) } else { URL_SAFE_NO_PAD.decode(text) };
    decoded.map_err(|_| format!("{name:?} is not base64url"))
}

/// The uncompressed point of a JSON Web Key, short coordinates filled up.
pub(crate) fn point<'a>(member: &impl Fn(&str) -> Option<&'a str>, curve: Curve) -> Result<Vec<u8>, String> {
    let mut point = vec![4];
    for name in ["x", "y"] {
        point.extend(padded(&part(member, name)?, curve.bytes()));
    }
    Ok(point)
}

/// To at least `len` bytes, zeros in front.
pub(crate) fn padded(bytes: &[u8], len: usize) -> Vec<u8> {
    let bytes = unsigned(bytes);
    let mut out = vec![0; len.saturating_sub(bytes.len())];
    out.extend_from_slice(bytes);
    out
}
