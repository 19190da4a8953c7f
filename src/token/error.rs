//! Why a token was refused: one variant for each thing that a client or an operator can do something about.

/// The problem with a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimProblem {
    #[error("is missing")]
    Missing,
    #[error("is of the wrong type, empty or out of range")]
    Wrong,
    #[error("is missing, and no other of subject_claims names the caller")]
    NoSubject,
    #[error("is not usable, and another of subject_claims is no text")]
    OtherSubject,
}

/// Which check of RFC 9449 section 4.3 a proof of possession did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofFault {
    #[error("was sent more than once")]
    Repeated,
    #[error("is too large")]
    TooLarge,
    #[error("is not a signed JWT")]
    Syntax,
    #[error("has a header parameter that is not understood")]
    Extension,
    #[error("has another typ than dpop+jwt")]
    Type,
    #[error("has an algorithm that is not accepted")]
    Algorithm,
    #[error("has no usable public key")]
    Key,
    #[error("has a wrong signature")]
    Signature,
    #[error("has no jti, or one that is too long")]
    Id,
    #[error("is for another method (htm)")]
    Method,
    #[error("is for another URL (htu)")]
    Url,
    #[error("has no iat, or a date that is none")]
    Time,
}

impl ProofFault {
    fn reason(self) -> &'static str {
        match self {
            Self::Repeated => "proof_repeated",
            Self::TooLarge => "proof_too_large",
            Self::Syntax => "proof_not_a_jwt",
            Self::Extension => "proof_extension",
            Self::Type => "proof_type",
            Self::Algorithm => "proof_algorithm",
            Self::Key => "proof_key",
            Self::Signature => "proof_signature",
            Self::Id => "proof_jti",
            Self::Method => "proof_method",
            Self::Url => "proof_url",
            Self::Time => "proof_time",
        }
    }
}

/// A refused token. The text says nothing that came from the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("more than one token was sent")]
    SeveralTokens,
    #[error("the header or cookie with the token is malformed")]
    MalformedHeader,
    #[error("parts of the token's cookie are missing, or there are too many")]
    BadChunks,
    #[error("the token is too large")]
    TooLarge,
    #[error("the token is not a signed JWT")]
    NotAJwt,
    #[error("the token's header is not acceptable")]
    Header,
    #[error("the token's payload is not acceptable")]
    Payload,
    #[error("the token is not from an accepted issuer")]
    UnknownIssuer,
    #[error("the token is from an issuer that is not accepted for this request")]
    OtherIssuer,
    #[error("token location not allowed for this issuer")]
    WrongPlace,
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    #[error("the token is not an access token")]
    WrongType,
    #[error("the token's signing key is unknown")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    BadSignature,
    #[error("the token has expired")]
    Expired,
    #[error("token lifetime exceeds the configured maximum")]
    TooLong,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("token audience not accepted")]
    WrongAudience,
    #[error("the claim {0} {1}")]
    BadClaim(&'static str, ClaimProblem),
    #[error("the token is bound to a key, and no proof of possession was sent")]
    Bound,
    #[error("the token is bound to another certificate than the client's")]
    WrongCertificate,
    #[error("the token is not bound to a key, and was sent with the DPoP scheme")]
    NotBound,
    #[error("DPoP proof missing")]
    ProofMissing,
    #[error("DPoP proof {0}")]
    Proof(ProofFault),
    #[error("DPoP proof iat outside the accepted window")]
    ProofStale,
    /// In the words of RFC 9449 section 9.
    #[error("resource server requires nonce in DPoP proof")]
    Nonce,
    #[error("DPoP proof replayed")]
    ProofReplayed,
    #[error("DPoP proof key does not match the token's confirmation")]
    WrongKey,
    #[error("replay cache full")]
    ProofsFull,
    #[error("issuer signing keys unavailable")]
    KeysUnavailable,
    #[error("single-use token already used")]
    Used,
    #[error("a single-use token needs a jti and a remaining lifetime of at most an hour")]
    NotForOneUse,
    #[error("the token is not active")]
    Inactive,
    #[error("token introspection unavailable")]
    IntrospectionUnavailable,
    /// The account is disabled; the client is told no more than that the token was revoked.
    #[error("the token was revoked")]
    AccountDisabled,
    #[error("the token was revoked")]
    TokenRevoked,
    #[error("the token was revoked")]
    SessionRevoked,
    #[error("the token was revoked")]
    KeyRevoked,
    /// Its holder must authenticate again: a new authentication may be so many seconds old.
    #[error("more recent authentication is required")]
    Reauthenticate(u32),
    #[error("the state of revocations is unknown")]
    RevocationUnknown,
}

impl TokenError {
    /// A stable word for policies, logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::SeveralTokens => "several_tokens",
            Self::MalformedHeader => "malformed_header",
            Self::BadChunks => "bad_chunks",
            Self::TooLarge => "token_too_large",
            Self::NotAJwt => "not_a_jwt",
            Self::Header => "bad_token_header",
            Self::Payload => "bad_payload",
            Self::UnknownIssuer => "unknown_issuer",
            Self::OtherIssuer => "other_issuer",
            Self::WrongPlace => "wrong_place",
            Self::Algorithm => "bad_algorithm",
            Self::WrongType => "wrong_type",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::TooLong => "lifetime_too_long",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongAudience => "wrong_audience",
            Self::BadClaim(..) => "bad_claim",
            Self::Bound => "bound_token",
            Self::WrongCertificate => "wrong_certificate",
            Self::NotBound => "not_bound",
            Self::ProofMissing => "proof_missing",
            Self::Proof(fault) => fault.reason(),
            Self::ProofStale => "stale_proof",
            Self::Nonce => "nonce_needed",
            Self::ProofReplayed => "proof_replayed",
            Self::WrongKey => "wrong_key",
            Self::ProofsFull => "too_many_proofs",
            Self::KeysUnavailable => "keys_unavailable",
            Self::Used => "token_used",
            Self::NotForOneUse => "not_for_one_use",
            Self::Inactive => "inactive_token",
            Self::IntrospectionUnavailable => "introspection_unavailable",
            Self::AccountDisabled => "account_disabled",
            Self::TokenRevoked => "token_revoked",
            Self::SessionRevoked => "session_revoked",
            Self::KeyRevoked => "key_revoked",
            Self::Reauthenticate(_) => "reauthentication_required",
            Self::RevocationUnknown => "revocation_unknown",
        }
    }

    /// The code of RFC 6750 section 3.1.
    pub fn code(self) -> &'static str {
        match self {
            Self::SeveralTokens | Self::MalformedHeader | Self::BadChunks => "invalid_request",
            // RFC 9449 section 7.1.
            Self::ProofMissing | Self::Proof(_) | Self::ProofStale | Self::ProofReplayed => "invalid_dpop_proof",
            Self::Nonce => "use_dpop_nonce",
            // RFC 9470 section 3.
            Self::Reauthenticate(_) => "insufficient_user_authentication",
            _ => "invalid_token",
        }
    }

    /// The error is about the proof of possession, so the challenge uses the DPoP scheme.
    pub fn is_of_proof(self) -> bool {
        matches!(self.code(), "invalid_dpop_proof" | "use_dpop_nonce")
            || matches!(self, Self::Bound | Self::NotBound | Self::WrongKey)
    }

    /// The caller can only retry later.
    pub fn is_temporary(self) -> bool {
        matches!(
            self,
            Self::KeysUnavailable | Self::ProofsFull | Self::IntrospectionUnavailable | Self::RevocationUnknown
        )
    }
}
