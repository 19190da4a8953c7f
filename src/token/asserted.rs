//! Claims that Envoy says it has verified (its `jwt_authn` filter), read from dynamic metadata.
//!
//! Never from a header, which is whatever the client sent; and only where the configuration says that the filter runs before
//! this one. Nothing here has seen a signature: such a token is of a type of its own, which no demand for a verified one
//! accepts.

use super::authn::Authn;
use super::claims::Claims;
use super::error::TokenError;
use super::issuer::IssuerSettings;
use crate::value::{Members, Value, member};

/// Where `jwt_authn` puts what it found.
const FILTER: &str = "envoy.filters.http.jwt_authn";

/// An entry of `plugins.stepgate.issuers` with `trust: envoy`.
#[derive(Clone, Debug)]
pub struct AssertedSettings {
    /// The filter's `payload_in_metadata`.
    pub payload_key: String,
    /// Issuer, audiences, leeway and words; nothing of keys counts.
    pub issuer: IssuerSettings,
}

/// A token that Envoy has verified.
#[derive(Debug)]
pub struct Asserted {
    pub authn: Authn,
    /// `input.jwt`.
    pub document: Value,
    pub issuer: String,
    pub claims: Value,
    /// `iat`, in seconds since the epoch.
    pub issued: Option<i64>,
    /// `exp`, in seconds since the epoch.
    pub expires: i64,
}

impl Asserted {
    /// The same, at no more than level `cap`.
    pub fn capped(&self, cap: usize) -> Self {
        Self {
            authn: self.authn.capped(cap),
            document: self.document.clone(),
            issuer: self.issuer.clone(),
            claims: self.claims.clone(),
            issued: self.issued,
            expires: self.expires,
        }
    }
}

impl AssertedSettings {
    /// The claims of a token of this issuer in the request's metadata, if any.
    pub fn read(&self, attributes: &Value, now: i64) -> Option<Result<Asserted, TokenError>> {
        let filters = member(member(attributes, "metadataContext")?, "filterMetadata")?;
        let payload = member(member(filters, FILTER)?, &self.payload_key)?;
        let claims = match Claims::of_envoy(payload.clone(), &self.issuer, now) {
            Ok(claims) => claims,
            Err(TokenError::UnknownIssuer) => return None,
            Err(error) => return Some(Err(error)),
        };
        let mut document = Members::default();
        document.put_text("state", Value::from("asserted"));
        document.put_text("issuer", Value::from(self.issuer.issuer.as_str()));
        document.put_text("claims", claims.document().clone());
        Some(Ok(Asserted {
            authn: self.issuer.assess(claims.document()),
            document: document.into_value(),
            issuer: self.issuer.issuer.clone(),
            claims: claims.document().clone(),
            issued: claims.issued(),
            expires: claims.expires,
        }))
    }
}
