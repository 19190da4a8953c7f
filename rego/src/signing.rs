//! Signatures with keys as operators write them: PEM, or a shared secret. For bundles and for the assertions of clients.
//!
//! Mirrors: `parseVerificationKey` of OPA `v1/bundle/verify.go` and `GetPrivateKey` of `v1/bundle/keys.go`, v1.19.0.

pub use crate::builtins::crypto::keys::unsigned;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::builtins::crypto::keys::{Algorithm, VerifyingKey, pem_block, sign as sign_with, verifying_keys};
use crate::builtins::crypto::private;
use crate::value::Value;

/// Why a key is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SigningError {
    #[error("there is no algorithm `{0}`")]
    Algorithm(String),
    #[error("the key cannot be read: {0}")]
    Key(String),
    #[error("the key cannot sign: {0}")]
    Sign(String),
}

/// A key and the only algorithm that it is used with.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    algorithm: Algorithm,
    key: VerifyingKey,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

fn algorithm(name: &str) -> Result<Algorithm, SigningError> {
    Algorithm::named(name).ok_or_else(|| SigningError::Algorithm(name.to_owned()))
}

impl Verifier {
    /// `key` is a public key, a certificate or a private key in PEM; for `HS…` it is the secret itself.
    pub fn new(name: &str, key: &str) -> Result<Self, SigningError> {
        let algorithm = algorithm(name)?;
        if matches!(algorithm, Algorithm::Hs(_)) {
            return match key.is_empty() {
                true => Err(SigningError::Key("the secret is empty".to_owned())),
                false => Ok(Self { algorithm, key: VerifyingKey::Secret(key.as_bytes().to_vec()) }),
            };
        }
        let label = pem_block(key).map(|(label, ..)| label).ok_or_else(|| SigningError::Key("not PEM".to_owned()))?;
        let key = match label {
            "RSA PUBLIC KEY" | "RSA PRIVATE KEY" | "PRIVATE KEY" | "EC PRIVATE KEY" => {
                private::public_half(key).ok_or_else(|| SigningError::Key(format!("malformed {label}")))?
            }
            _ => {
                // Text after the block is ignored, as in OPA.
                let end = format!("-----END {label}-----");
                let at = key.find(&end).map(|at| at.saturating_add(end.len())).and_then(|end| key.get(..end));
                let mut keys = verifying_keys(at.unwrap_or(key)).map_err(SigningError::Key)?;
                keys.pop().map(|named| named.key).ok_or_else(|| SigningError::Key("no key in it".to_owned()))?
            }
        };
        let fits = match (&key, algorithm) {
            (VerifyingKey::Rsa { .. }, Algorithm::Rs(_) | Algorithm::Ps(_)) => true,
            (VerifyingKey::Ec { curve, .. }, Algorithm::Es(bits)) => curve.fits(bits),
            (VerifyingKey::Ed25519(_), Algorithm::EdDsa) => true,
            _ => false,
        };
        if fits { Ok(Self { algorithm, key }) } else { Err(SigningError::Key(format!("it is not for {name}"))) }
    }

    /// Verifies `signature` of `signed` with this key.
    pub fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        self.key.verifies(self.algorithm, signed, signature)
    }
}

/// The signature over `message` by a private key in PEM, or by a secret where `name` is `HS…`.
pub fn sign(name: &str, key: &str, message: &[u8]) -> Result<Vec<u8>, SigningError> {
    let algorithm = algorithm(name)?;
    let web_key = match algorithm {
        Algorithm::Hs(_) if key.is_empty() => return Err(SigningError::Key("the secret is empty".to_owned())),
        Algorithm::Hs(_) => {
            let secret = URL_SAFE_NO_PAD.encode(key);
            [("kty", Value::from("oct")), ("k", Value::from(secret))].into_iter().collect()
        }
        _ => private::web_key_of_pem(key).ok_or_else(|| SigningError::Key("not a private key in PEM".to_owned()))?,
    };
    sign_with(&web_key, algorithm, message).map_err(SigningError::Sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made for these tests alone.
    const P256: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg64e5K/JmGVeYCXvK
hZlpJ+o3vlkD1ltSQNQoVAmRBN6hRANCAAQnmRYWEnUTT+KEWaXXJ8GXDbeBAEdv
sKe9qNCjdVvH6KIB8vQXc5WYwnCmUbGjTyiuGzKa2PKQg/iBwPXktZMc
-----END PRIVATE KEY-----
";

    #[test]
    fn secrets_and_keys_sign_what_they_verify() {
        let signature = sign("HS512", "s3cret", b"text").expect("it signs");
        let verifier = Verifier::new("HS512", "s3cret").expect("a secret");
        assert!(verifier.verifies(b"text", &signature) && !verifier.verifies(b"other", &signature));
        assert!(!Verifier::new("HS512", "other").expect("a secret").verifies(b"text", &signature));
        assert_eq!(Verifier::new("HS256", ""), Err(SigningError::Key("the secret is empty".to_owned())));
        assert_eq!(Verifier::new("none", "x"), Err(SigningError::Algorithm("none".to_owned())));
        assert_eq!(Verifier::new("RS256", "s3cret"), Err(SigningError::Key("not PEM".to_owned())));
    }

    #[test]
    fn a_key_is_used_with_its_own_algorithm_only() {
        let signature = sign("ES256", P256, b"text").expect("it signs");
        assert!(Verifier::new("ES256", P256).expect("a key").verifies(b"text", &signature));
        assert!(matches!(Verifier::new("RS256", P256), Err(SigningError::Key(_))));
        assert!(matches!(Verifier::new("ES384", P256), Err(SigningError::Key(_))));
        assert!(matches!(sign("RS256", P256, b"text"), Err(SigningError::Sign(_))));
    }
}
