//! The token store: which callers' tokens are good, and what they prove.
//!
//! A token is taken from its place, measured, decoded, matched to a configured issuer, verified with that issuer's
//! keys, and its claims are checked by type and time. A verified token is cached; everything that depends on time, on
//! keys or on configuration is checked again on every hit. Keys arrive from `feed/keys`; nothing here does I/O.

mod asserted;
mod assurance;
mod authn;
mod cache;
mod certificate;
mod claims;
mod dpop;
mod error;
mod extract;
mod introspection;
mod issuer;
mod keyset;
mod kinds;
mod metrics;
mod nonce;
mod own_key;
mod replay_cache;
mod scale;
mod signed;
mod spiffe;
mod verifier;
mod workload;

pub use self::asserted::{Asserted, AssertedSettings};
pub use self::assurance::{AssuranceTable, Preset, is_context};
pub use self::authn::Authn;
pub use self::certificate::{CertificateSettings, forwarded_uri, single_header};
pub use self::claims::{Claims, Profile, numeric_date};
pub use self::dpop::{Proofs, Settings as ProofSettings};
pub use self::error::{ClaimProblem, ProofFault, TokenError};
pub use self::extract::{Location, WEBSOCKET_PROTOCOL};
pub use self::introspection::{Done, Endpoint, INACTIVE_TTL, IntrospectionSettings, Introspector};
pub use self::issuer::{AudienceClaim, ClaimNames, ClaimsChallenge, Issuer, IssuerSettings, KeySource, RefreshRequest};
pub use self::keyset::{KeySet, KeySetError, MAX_KEYS, UnusableKey};
pub use self::metrics::TokenMetrics;
pub use self::nonce::{MIN_KEY_BYTES as MIN_NONCE_KEY_BYTES, Nonces};
pub use self::replay_cache::{ReplayCache, ReplayError};
pub use self::scale::Scale;
pub use self::signed::{SignedJwt, unverified_claims, verify_signature, verify_signature_of};
pub use self::spiffe::{SpiffePattern, parse as parse_spiffe_id};
pub use self::verifier::{DerivedKeys, Settings, TokenState, Verified, Verifier};

#[cfg(test)]
mod tests;
#[cfg(test)]
pub use self::tests::{
    settings as issuer_for_tests, strange_token_for_tests, token_for_tests, verified_for_tests, verifier_for_tests,
};
