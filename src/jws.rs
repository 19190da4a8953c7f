//! Signatures over tokens: which algorithms there are, which keys fit them, and whether a signature is right.
//!
//! The only file that names `jsonwebtoken`, and only for its signature code: that crate reads the system's time and
//! lacks ES512, so times are checked in `token/claims.rs` and ES512 comes from the cryptography crate underneath.

use std::fmt;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{self, ParsedPublicKey, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};

use stepgate_rego::signing::unsigned;
pub use stepgate_rego::signing::{SigningError, Verifier as ConfiguredKey, sign as sign_with};

/// The signing input: header and payload, each in base64url (RFC 7515 section 5.1).
pub fn signing_input(header: &serde_json::Value, payload: &serde_json::Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(payload.to_string()))
}

/// Signature algorithms (RFC 7518 section 3.1, RFC 8037). There is no `none`, and no shared secret: keys come from
/// published sets, where an HMAC secret would be public (RFC 8725 section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alg {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

/// The families of keys that can verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    Rsa,
    P256,
    P384,
    P521,
    Ed25519,
}

const NAMES: [(&str, Alg); 10] = [
    ("RS256", Alg::Rs256),
    ("RS384", Alg::Rs384),
    ("RS512", Alg::Rs512),
    ("PS256", Alg::Ps256),
    ("PS384", Alg::Ps384),
    ("PS512", Alg::Ps512),
    ("ES256", Alg::Es256),
    ("ES384", Alg::Es384),
    ("ES512", Alg::Es512),
    ("EdDSA", Alg::EdDsa),
];

impl Alg {
    /// By its registered name; letter case counts.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|&(_, alg)| alg)
    }

    pub fn name(self) -> &'static str {
        NAMES.iter().find(|&&(_, alg)| alg == self).map_or("", |(name, _)| name)
    }

    /// All names, for messages.
    pub fn names() -> Vec<&'static str> {
        NAMES.iter().map(|&(name, _)| name).collect()
    }

    /// The only family of keys that this algorithm may be used with.
    pub fn key_type(self) -> KeyType {
        match self {
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => KeyType::Rsa,
            Self::Es256 => KeyType::P256,
            Self::Es384 => KeyType::P384,
            Self::Es512 => KeyType::P521,
            Self::EdDsa => KeyType::Ed25519,
        }
    }

    fn library(self) -> Option<Algorithm> {
        Some(match self {
            Self::Rs256 => Algorithm::RS256,
            Self::Rs384 => Algorithm::RS384,
            Self::Rs512 => Algorithm::RS512,
            Self::Ps256 => Algorithm::PS256,
            Self::Ps384 => Algorithm::PS384,
            Self::Ps512 => Algorithm::PS512,
            Self::Es256 => Algorithm::ES256,
            Self::Es384 => Algorithm::ES384,
            Self::EdDsa => Algorithm::EdDSA,
            Self::Es512 => return None,
        })
    }
}

/// Why key material is not used.
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

/// A public key, checked when it was made.
#[derive(Clone)]
pub struct VerifyingKey {
    key_type: KeyType,
    material: Material,
}

#[derive(Clone)]
enum Material {
    Library(DecodingKey),
    /// An uncompressed point on P-521.
    P521(Vec<u8>),
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").field("key_type", &self.key_type).finish_non_exhaustive()
    }
}

impl VerifyingKey {
    /// An RSA key from the base64url of modulus and exponent. Leading octets of zero, which RFC 7518 (6.3.1.1) forbids and some issuers write,
    /// change neither.
    pub fn rsa(n: &str, e: &str) -> Result<Self, KeyError> {
        let (modulus, exponent) = (decode(n)?, decode(e)?);
        let (modulus, exponent) = (unsigned(&modulus), unsigned(&exponent));
        let leading = modulus.first().map_or(0, |byte| byte.leading_zeros());
        let bits = modulus.len().saturating_mul(8).saturating_sub(usize::try_from(leading).unwrap_or_default());
        if !(2_048..=8_192).contains(&bits) {
            return Err(KeyError::RsaSize);
        }
        if exponent.is_empty() {
            return Err(KeyError::Encoding);
        }
        let key = DecodingKey::from_rsa_raw_components(modulus, exponent);
        Ok(Self { key_type: KeyType::Rsa, material: Material::Library(key) })
    }

    /// A key on one of the NIST curves from the base64url of its coordinates.
    pub fn ec(curve: KeyType, x: &str, y: &str) -> Result<Self, KeyError> {
        let (width, algorithm): (usize, &'static signature::EcdsaVerificationAlgorithm) = match curve {
            KeyType::P256 => (32, &signature::ECDSA_P256_SHA256_FIXED),
            KeyType::P384 => (48, &signature::ECDSA_P384_SHA384_FIXED),
            KeyType::P521 => (66, &signature::ECDSA_P521_SHA512_FIXED),
            KeyType::Rsa | KeyType::Ed25519 => return Err(KeyError::Point),
        };
        let (x_bytes, y_bytes) = (decode(x)?, decode(y)?);
        if x_bytes.len() != width || y_bytes.len() != width {
            return Err(KeyError::Point);
        }
        let point = [&[4u8][..], &x_bytes, &y_bytes].concat();
        ParsedPublicKey::new(algorithm, &point).map_err(|_| KeyError::Point)?;
        let material = match curve {
            KeyType::P521 => Material::P521(point),
            _ => Material::Library(DecodingKey::from_ec_components(x, y).map_err(|_| KeyError::Encoding)?),
        };
        Ok(Self { key_type: curve, material })
    }

    /// An Ed25519 key from the base64url of its point.
    pub fn ed25519(x: &str) -> Result<Self, KeyError> {
        if decode(x)?.len() != 32 {
            return Err(KeyError::Point);
        }
        let key = DecodingKey::from_ed_components(x).map_err(|_| KeyError::Encoding)?;
        Ok(Self { key_type: KeyType::Ed25519, material: Material::Library(key) })
    }

    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// Verifies `signature` (base64url) of `message` with this key. False for an algorithm of another key type.
    pub fn verify(&self, alg: Alg, message: &[u8], signature: &str) -> bool {
        if alg.key_type() != self.key_type {
            return false;
        }
        match (&self.material, alg.library()) {
            (Material::Library(key), Some(alg)) => {
                jsonwebtoken::crypto::verify(signature, message, key, alg).unwrap_or(false)
            }
            (Material::P521(point), None) => URL_SAFE_NO_PAD.decode(signature).is_ok_and(|signature| {
                UnparsedPublicKey::new(&signature::ECDSA_P521_SHA512_FIXED, point).verify(message, &signature).is_ok()
            }),
            _ => false,
        }
    }
}

fn decode(component: &str) -> Result<Vec<u8>, KeyError> {
    match URL_SAFE_NO_PAD.decode(component) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(KeyError::Encoding),
    }
}

/// A private key, for the development helper `stepgate token` and for tests.
pub struct SigningKey {
    alg: Alg,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("alg", &self.alg).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key of the family of `alg`, as PKCS#8 PEM.
    pub fn generate(alg: Alg) -> Result<String, KeyError> {
        let der = match alg.key_type() {
            KeyType::Rsa => {
                let pair = signature::RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048);
                let pair = pair.map_err(|_| KeyError::PrivateKey)?;
                let der = pair.as_der().map_err(|_| KeyError::PrivateKey)?;
                der.as_ref().to_vec()
            }
            KeyType::P256 => ec_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING)?,
            KeyType::P384 => ec_pkcs8(&signature::ECDSA_P384_SHA384_FIXED_SIGNING)?,
            KeyType::P521 | KeyType::Ed25519 => return Err(KeyError::PrivateKey),
        };
        let body = STANDARD.encode(der);
        let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
        Ok(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")))
    }

    pub fn from_pem(alg: Alg, pem: &str) -> Result<Self, KeyError> {
        let key = match alg.key_type() {
            KeyType::Rsa => EncodingKey::from_rsa_pem(pem.as_bytes()),
            KeyType::P256 | KeyType::P384 => EncodingKey::from_ec_pem(pem.as_bytes()),
            KeyType::P521 | KeyType::Ed25519 => return Err(KeyError::PrivateKey),
        };
        let algorithm = alg.library().ok_or(KeyError::PrivateKey)?;
        let key = key.map_err(|_| KeyError::PrivateKey)?;
        Ok(Self { alg, algorithm, key })
    }

    pub fn alg(&self) -> Alg {
        self.alg
    }

    /// The base64url of the signature over `message`.
    pub fn sign(&self, message: &[u8]) -> Result<String, KeyError> {
        jsonwebtoken::crypto::sign(message, &self.key, self.algorithm).map_err(|_| KeyError::PrivateKey)
    }

    /// The public half as the members of a JWK.
    pub fn public_jwk(&self) -> Result<serde_json::Value, KeyError> {
        let jwk = Jwk::from_encoding_key(&self.key, self.algorithm).map_err(|_| KeyError::PrivateKey)?;
        serde_json::to_value(jwk).map_err(|_| KeyError::PrivateKey)
    }
}

fn ec_pkcs8(algorithm: &'static signature::EcdsaSigningAlgorithm) -> Result<Vec<u8>, KeyError> {
    let document = signature::EcdsaKeyPair::generate_pkcs8(algorithm, &aws_lc_rs::rand::SystemRandom::new());
    Ok(document.map_err(|_| KeyError::PrivateKey)?.as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};

    use super::*;

    const MESSAGE: &[u8] = b"header.payload";

    fn verifies_only_its_own(key: &VerifyingKey, alg: Alg, signature: &str) {
        assert!(key.verify(alg, MESSAGE, signature), "{}", alg.name());
        assert!(!key.verify(alg, b"another", signature), "{}", alg.name());
        let (first, rest) = signature.split_at(1);
        let changed = format!("{}{rest}", if first == "A" { "B" } else { "A" });
        for wrong in [changed.as_str(), "", "!", &format!("{signature}AA")] {
            assert!(!key.verify(alg, MESSAGE, wrong), "{} {wrong}", alg.name());
        }
        for (name, other) in NAMES.iter().filter(|(_, other)| *other != alg) {
            assert!(!key.verify(*other, MESSAGE, signature), "{} as {name}", alg.name());
        }
    }

    fn component(jwk: &serde_json::Value, name: &str) -> String {
        jwk.get(name).and_then(serde_json::Value::as_str).expect("a component").to_owned()
    }

    #[test]
    fn every_algorithm_verifies_its_own_signatures_only() {
        let rsa = SigningKey::generate(Alg::Rs256).expect("a key");
        for (_, alg) in NAMES.iter().filter(|(_, alg)| alg.key_type() == KeyType::Rsa) {
            let signer = SigningKey::from_pem(*alg, &rsa).expect("it is read");
            let jwk = signer.public_jwk().expect("a JWK");
            let key = VerifyingKey::rsa(&component(&jwk, "n"), &component(&jwk, "e")).expect("a key");
            verifies_only_its_own(&key, *alg, &signer.sign(MESSAGE).expect("it signs"));
            let longer = |name| {
                let number = URL_SAFE_NO_PAD.decode(component(&jwk, name)).expect("base64url");
                URL_SAFE_NO_PAD.encode([&[0, 0], number.as_slice()].concat())
            };
            let key = VerifyingKey::rsa(&longer("n"), &longer("e")).expect("a key with leading zeros");
            verifies_only_its_own(&key, *alg, &signer.sign(MESSAGE).expect("it signs"));
        }
        for alg in [Alg::Es256, Alg::Es384] {
            let pem = SigningKey::generate(alg).expect("a key");
            let signer = SigningKey::from_pem(alg, &pem).expect("it is read");
            let jwk = signer.public_jwk().expect("a JWK");
            let key = VerifyingKey::ec(alg.key_type(), &component(&jwk, "x"), &component(&jwk, "y")).expect("a key");
            verifies_only_its_own(&key, alg, &signer.sign(MESSAGE).expect("it signs"));
        }
    }

    #[test]
    fn p521_and_ed25519_verify_what_their_library_signs() {
        let random = SystemRandom::new();
        let p521 = &signature::ECDSA_P521_SHA512_FIXED_SIGNING;
        let pair = EcdsaKeyPair::generate_pkcs8(p521, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(p521, pair.as_ref()).expect("a pair");
        let (x, y) = pair.public_key().as_ref().get(1..).expect("a point").split_at(66);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let key = VerifyingKey::ec(KeyType::P521, &x, &y).expect("a key");
        let signed = pair.sign(&random, MESSAGE).expect("it signs");
        verifies_only_its_own(&key, Alg::Es512, &URL_SAFE_NO_PAD.encode(signed));
        assert!(matches!(VerifyingKey::ec(KeyType::P521, &y, &x), Err(KeyError::Point)), "not on the curve");

        let pair = Ed25519KeyPair::generate().expect("a key");
        let key = VerifyingKey::ed25519(&URL_SAFE_NO_PAD.encode(pair.public_key())).expect("a key");
        verifies_only_its_own(&key, Alg::EdDsa, &URL_SAFE_NO_PAD.encode(pair.sign(MESSAGE)));
    }
}
