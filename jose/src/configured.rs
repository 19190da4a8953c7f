//! Keys as operators write them: PEM, or a shared secret. For bundles and for the assertions of clients.
//!
//! Mirrors: `parseVerificationKey` of OPA `v1/bundle/verify.go` and `GetPrivateKey` of `v1/bundle/keys.go`, v1.19.0.

use std::fmt;

use crate::algorithm::{Algorithm, KeyType};
use crate::pem::pem_block;
use crate::private::{PrivateKey, sequence};
use crate::unsigned;
use crate::verify::VerifyingKey;

/// Why a configured key is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfiguredKeyError {
    #[error("there is no algorithm `{0}`")]
    Algorithm(String),
    #[error("the key cannot be read: {0}")]
    Key(String),
    #[error("the key cannot sign: {0}")]
    Sign(String),
}

/// A key and the only algorithm that it is used with.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfiguredKey {
    algorithm: Algorithm,
    key: VerifyingKey,
}

impl fmt::Debug for ConfiguredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfiguredKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

fn algorithm(name: &str) -> Result<Algorithm, ConfiguredKeyError> {
    Algorithm::named(name).ok_or_else(|| ConfiguredKeyError::Algorithm(name.to_owned()))
}

impl ConfiguredKey {
    /// `key` is a public key, a certificate or a private key in PEM; for `HS…` it is the secret itself.
    ///
    /// # Errors
    /// The algorithm or the key is none, or the key is for another algorithm.
    pub fn new(name: &str, key: &str) -> Result<Self, ConfiguredKeyError> {
        let failed = |message: &str| ConfiguredKeyError::Key(message.to_owned());
        let algorithm = algorithm(name)?;
        if algorithm.key_type() == KeyType::Secret {
            return match key.is_empty() {
                true => Err(failed("the secret is empty")),
                false => Ok(Self { algorithm, key: VerifyingKey::Secret(key.as_bytes().to_vec()) }),
            };
        }
        let (label, der, _) = pem_block(key).ok_or_else(|| failed("not PEM"))?;
        let key = match label {
            "RSA PUBLIC KEY" => public_pkcs1(&der).ok_or_else(|| failed("malformed RSA PUBLIC KEY"))?,
            "RSA PRIVATE KEY" | "PRIVATE KEY" | "EC PRIVATE KEY" => {
                let private = PrivateKey::from_pem(key).map_err(|_| failed(&format!("malformed {label}")))?;
                private.public()
            }
            _ => {
                // Text after the block is ignored, as in OPA.
                let end = format!("-----END {label}-----");
                let at = key.find(&end).map(|at| at.saturating_add(end.len())).and_then(|end| key.get(..end));
                let read = VerifyingKey::from_pem(at.unwrap_or(key)).ok_or_else(|| failed("no key in it"))?;
                read.map_err(ConfiguredKeyError::Key)?
            }
        };
        if key.key_type() == algorithm.key_type() {
            Ok(Self { algorithm, key })
        } else {
            Err(failed(&format!("it is not for {name}")))
        }
    }

    /// Verifies `signature` of `signed` with this key.
    pub fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        self.key.verifies(self.algorithm, signed, signature)
    }
}

/// RSAPublicKey (RFC 8017 appendix A.1.1).
fn public_pkcs1(der: &[u8]) -> Option<VerifyingKey> {
    let numbers = sequence(der)?;
    let [n, e] = numbers.as_slice() else { return None };
    Some(VerifyingKey::Rsa { n: unsigned(n.data).to_vec(), e: unsigned(e.data).to_vec() })
}

/// The signature over `message` by a private key in PEM, or by a secret where `name` is `HS…`.
///
/// # Errors
/// The algorithm or the key is none, or the key is for another algorithm.
pub fn sign_configured(name: &str, key: &str, message: &[u8]) -> Result<Vec<u8>, ConfiguredKeyError> {
    let algorithm = algorithm(name)?;
    let private = match algorithm.key_type() {
        KeyType::Secret if key.is_empty() => {
            return Err(ConfiguredKeyError::Key("the secret is empty".to_owned()));
        }
        KeyType::Secret => PrivateKey::Secret(key.as_bytes().to_vec()),
        _ => PrivateKey::from_pem(key).map_err(|_| ConfiguredKeyError::Key("not a private key in PEM".to_owned()))?,
    };
    private.sign(algorithm, message).map_err(ConfiguredKeyError::Sign)
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
        let signature = sign_configured("HS512", "s3cret", b"text").expect("it signs");
        let verifier = ConfiguredKey::new("HS512", "s3cret").expect("a secret");
        assert!(verifier.verifies(b"text", &signature) && !verifier.verifies(b"other", &signature));
        assert!(!ConfiguredKey::new("HS512", "other").expect("a secret").verifies(b"text", &signature));
        assert_eq!(ConfiguredKey::new("HS256", ""), Err(ConfiguredKeyError::Key("the secret is empty".to_owned())));
        assert_eq!(ConfiguredKey::new("none", "x"), Err(ConfiguredKeyError::Algorithm("none".to_owned())));
        assert_eq!(ConfiguredKey::new("RS256", "s3cret"), Err(ConfiguredKeyError::Key("not PEM".to_owned())));
    }

    #[test]
    fn a_key_is_used_with_its_own_algorithm_only() {
        let signature = sign_configured("ES256", P256, b"text").expect("it signs");
        assert!(ConfiguredKey::new("ES256", P256).expect("a key").verifies(b"text", &signature));
        assert!(matches!(ConfiguredKey::new("RS256", P256), Err(ConfiguredKeyError::Key(_))));
        assert!(matches!(ConfiguredKey::new("ES384", P256), Err(ConfiguredKeyError::Key(_))));
        assert!(matches!(sign_configured("RS256", P256, b"text"), Err(ConfiguredKeyError::Sign(_))));
    }
}
