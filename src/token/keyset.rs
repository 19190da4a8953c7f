//! A set of public keys (RFC 7517) and the choice of those that fit a token.
//!
//! Keys that cannot be used here are left out rather than failing the set (RFC 7517 section 5); a set without a single
//! usable key is refused, so that an empty answer never replaces good keys.

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use stepgate_jose::{Algorithm, VerifyingKey};

use super::claims::Profile;
use crate::value::{DuplicateKeys, JsonLimits, Value, as_text, json_text, member, parse_json};

/// Keys that one set may have.
pub const MAX_KEYS: usize = 100;
/// Keys that are tried for one token when it names none, or when several share its name.
const MAX_CANDIDATES: usize = 8;
const JSON: JsonLimits = JsonLimits { depth: 8, duplicates: DuplicateKeys::Refuse };

/// One usable key.
#[derive(Debug)]
pub struct Key {
    kid: Option<String>,
    /// The key's own restriction to one algorithm.
    alg: Option<Algorithm>,
    verifying: VerifyingKey,
    fingerprint: [u8; 32],
}

/// The keys of one issuer at one moment.
#[derive(Debug)]
pub struct KeySet {
    keys: Vec<Arc<Key>>,
    unusable: Vec<UnusableKey>,
}

/// A key of a set that cannot verify signatures of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusableKey {
    /// At most 64 characters of it.
    pub kid: String,
    pub reason: &'static str,
    pub fingerprint: [u8; 32],
}

/// Why a key is none of ours.
const NOT_FOR_US: &str = "use";
/// Characters of a `kid` that are reported.
const MAX_KID_CHARS: usize = 64;

/// Why a key set is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    #[error("the key set is not JSON: {0}")]
    Json(#[from] crate::value::JsonError),
    #[error("the key set has no `keys` array")]
    NoKeys,
    #[error("the key set has more than {MAX_KEYS} keys")]
    TooMany,
    #[error("none of the {0} keys can be used to verify signatures")]
    NoneUsable(usize),
}

impl Key {
    pub fn verify(&self, alg: Algorithm, message: &[u8], signature: &str) -> bool {
        self.verifying.verifies_encoded(alg, message, signature)
    }

    /// Identifies this key across refreshes: a hash of its JWK.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    fn fits(&self, alg: Algorithm) -> bool {
        self.verifying.key_type() == alg.key_type() && self.alg.is_none_or(|own| own == alg)
    }

    /// The key, or why it cannot be used.
    fn parse(jwk: &Value, profile: Profile) -> Result<Self, &'static str> {
        let text = |name: &str| member(jwk, name).and_then(as_text);
        let is_for_us = match profile {
            // A bundle has keys of X.509 certificates, too, and all keys have names (JWT-SVID section 4).
            Profile::JwtSvid => text("use") == Some("jwt-svid") && text("kid").is_some(),
            // A key for encryption, or one that may not verify, is no key for us (RFC 7517 sections 4.2 and 4.3).
            _ => member(jwk, "use").is_none() || text("use") == Some("sig"),
        };
        if !is_for_us {
            return Err(NOT_FOR_US);
        }
        if let Some(operations) = member(jwk, "key_ops") {
            let mut operations = operations.as_array().ok_or("key_ops")?.iter();
            if !operations.any(|operation| as_text(operation) == Some("verify")) {
                return Err("key_ops");
            }
        }
        text("kty").ok_or("kty")?;
        let verifying = VerifyingKey::from_published_jwk(&text).map_err(|_| "key")?;
        let alg = match text("alg") {
            Some(name) => Some(Algorithm::asymmetric(name).ok_or("alg")?),
            None => None,
        };
        if alg.is_some_and(|alg| alg.key_type() != verifying.key_type()) {
            return Err("alg");
        }
        Ok(Self { kid: text("kid").map(str::to_owned), alg, verifying, fingerprint: fingerprint_of(jwk) })
    }
}

/// A hash of a JWK.
fn fingerprint_of(jwk: &Value) -> [u8; 32] {
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest(&SHA256, json_text(jwk).as_bytes()).as_ref());
    fingerprint
}

impl KeySet {
    /// Reads a JWK set.
    pub fn parse(text: &[u8]) -> Result<Self, KeySetError> {
        Self::parse_for(Profile::Legacy, text)
    }

    /// Reads the keys of a JWK set that verify tokens of this kind.
    pub fn parse_for(profile: Profile, text: &[u8]) -> Result<Self, KeySetError> {
        let document = parse_json(text, JSON)?;
        let listed = member(&document, "keys").and_then(|keys| keys.as_array()).ok_or(KeySetError::NoKeys)?;
        if listed.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let (mut keys, mut unusable) = (Vec::new(), Vec::new());
        for jwk in listed {
            match Key::parse(jwk, profile) {
                Ok(key) => keys.push(Arc::new(key)),
                // One for encryption, or for certificates, is not meant for us.
                Err(NOT_FOR_US) => {}
                Err(reason) => {
                    let kid = member(jwk, "kid").and_then(as_text).unwrap_or_default();
                    let kid = kid.chars().take(MAX_KID_CHARS).collect();
                    unusable.push(UnusableKey { kid, reason, fingerprint: fingerprint_of(jwk) });
                }
            }
        }
        if keys.is_empty() {
            return Err(KeySetError::NoneUsable(listed.len()));
        }
        Ok(Self { keys, unusable })
    }

    /// The keys that cannot be used, each with why: its `key_ops`, `kty` or `alg`, or `key` for what it is made of.
    pub fn unusable(&self) -> &[UnusableKey] {
        &self.unusable
    }

    /// Identifies the set, whatever the order of its keys.
    pub fn fingerprints(&self) -> BTreeSet<[u8; 32]> {
        self.keys.iter().map(|key| key.fingerprint()).collect()
    }

    /// The keys to try for a token with this `kid` and algorithm.
    pub fn candidates<'a>(&'a self, kid: Option<&'a str>, alg: Algorithm) -> impl Iterator<Item = &'a Arc<Key>> {
        let is_named = move |key: &&Arc<Key>| kid.is_some() && key.kid.as_deref() == kid;
        // A key without a name can be meant by any token; a token without one can mean any key. They come last, so that
        // they cannot displace the key that is named.
        let possible = move |key: &&Arc<Key>| kid.is_none() || key.kid.is_none();
        let ordered = self.keys.iter().filter(is_named).chain(self.keys.iter().filter(possible));
        ordered.filter(move |key| key.fits(alg)).take(MAX_CANDIDATES)
    }

    /// The key that once verified a token is still in the set.
    pub fn holds(&self, fingerprint: &[u8; 32]) -> bool {
        self.keys.iter().any(|key| key.fingerprint == *fingerprint)
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
