//! JWTs that are no access tokens, such as logout tokens: their issuer and signature. Their claims are checked by whom they are for.

use std::sync::Arc;

use tokio::time::Instant;

use super::claims::Unverified;
use super::error::TokenError;
use super::issuer::{Issuer, KeySource};
use super::verifier::digest_of;
use crate::clock::Clock;
use crate::value::Value;

/// A JWT that a key of its issuer has signed.
#[derive(Debug)]
pub struct SignedJwt {
    pub issuer: Arc<Issuer>,
    /// `typ` of the header.
    pub typ: Option<String>,
    /// Its claims, of which only `iss` was looked at.
    pub claims: Value,
    /// SHA-256 of the signing input, as [`super::Verified::digest`] has it.
    pub digest: [u8; 32],
}

/// Verifies the signature of `token` with the keys of that one of `issuers` which it names. Waits for keys until `deadline`.
///
/// # Errors
/// It is no JWT, of another issuer, signed by another key or algorithm, or there are no keys.
pub async fn verify_signature(
    issuers: &[Arc<Issuer>],
    token: &str,
    clock: &Clock,
    deadline: Instant,
) -> Result<SignedJwt, TokenError> {
    let unverified = Unverified::parse(token)?;
    let mut with_keys = issuers.iter().filter(|issuer| issuer.settings.keys != KeySource::Introspection);
    let issuer = with_keys.find(|issuer| unverified.issuer() == Some(&issuer.settings.issuer));
    verify(issuer.ok_or(TokenError::UnknownIssuer)?, unverified, clock, deadline).await
}

/// Verifies the signature of `token` with the keys of this issuer, whatever its `iss` says. Waits for keys until `deadline`.
///
/// # Errors
/// It is no JWT, signed by another key or algorithm, or there are no keys.
pub async fn verify_signature_of(
    issuer: &Arc<Issuer>,
    token: &str,
    clock: &Clock,
    deadline: Instant,
) -> Result<SignedJwt, TokenError> {
    verify(issuer, Unverified::parse(token)?, clock, deadline).await
}

async fn verify(
    issuer: &Arc<Issuer>,
    unverified: Unverified<'_>,
    clock: &Clock,
    deadline: Instant,
) -> Result<SignedJwt, TokenError> {
    let Unverified { header, payload, signed, signature } = unverified;
    if !issuer.settings.algorithms.contains(&header.alg) {
        return Err(TokenError::Algorithm);
    }
    let verified = issuer.verifying_key(&header, signed, signature, clock, deadline).await;
    // A new key whose set could not be fetched is no bad key: the sender has to come again.
    if matches!(verified, Err(TokenError::UnknownKey)) && !issuer.is_fresh(clock.now()) {
        return Err(TokenError::KeysUnavailable);
    }
    verified?;
    Ok(SignedJwt { issuer: Arc::clone(issuer), typ: header.typ, claims: payload, digest: digest_of(signed) })
}

/// The claims of a JWT without verification: for explanations, and never for a decision.
pub fn unverified_claims(token: &str) -> Option<Value> {
    Unverified::parse(token).ok().map(|unverified| unverified.payload)
}
