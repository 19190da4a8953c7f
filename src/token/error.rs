//! Why a token was refused: one variant for each thing that a client or an operator can do something about.

/// A refused token. The text says nothing that came from the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("more than one token was sent")]
    SeveralTokens,
    #[error("the authorization header is malformed")]
    MalformedHeader,
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
    #[error("the token was sent in a place that its issuer does not use")]
    WrongPlace,
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    #[error("the token is of a type that is not an access token")]
    WrongType,
    #[error("the token's signing key is unknown")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    BadSignature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is good for longer than its issuer may say")]
    TooLong,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token is meant for another audience")]
    WrongAudience,
    #[error("a claim is missing or of the wrong type")]
    BadClaim,
    #[error("the token is bound to a key that was not proven")]
    Bound,
    #[error("the token is bound to another certificate than the client's")]
    WrongCertificate,
    #[error("the token is not bound to a key, and was sent as if it were")]
    NotBound,
    #[error("the proof of possession is missing")]
    ProofMissing,
    #[error("the proof of possession is not acceptable")]
    Proof,
    #[error("the proof of possession is too old, or of the future")]
    ProofStale,
    /// In the words of RFC 9449 section 9.
    #[error("resource server requires nonce in DPoP proof")]
    Nonce,
    #[error("the proof of possession has been used before")]
    ProofReplayed,
    #[error("the proof of possession is not that of the token's key")]
    WrongKey,
    #[error("too many proofs of possession or tokens for one use at the moment")]
    ProofsFull,
    #[error("the issuer's keys cannot be had at the moment")]
    KeysUnavailable,
    #[error("the token has been used before, and is good for one request here")]
    Used,
    #[error("a token for one request needs a `jti`, and at most an hour to live")]
    NotForOneUse,
    #[error("the token is not active")]
    Inactive,
    #[error("the issuer cannot be asked about the token at the moment")]
    IntrospectionUnavailable,
}

impl TokenError {
    /// A stable word for policies, logs and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::SeveralTokens => "several_tokens",
            Self::MalformedHeader => "malformed_header",
            Self::TooLarge => "token_too_large",
            Self::NotAJwt => "not_a_jwt",
            Self::Header => "bad_token_header",
            Self::Payload => "bad_payload",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongPlace => "wrong_place",
            Self::Algorithm => "bad_algorithm",
            Self::WrongType => "wrong_type",
            Self::UnknownKey => "unknown_key",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::TooLong => "lifetime_too_long",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongAudience => "wrong_audience",
            Self::BadClaim => "bad_claim",
            Self::Bound => "bound_token",
            Self::WrongCertificate => "wrong_certificate",
            Self::NotBound => "not_bound",
            Self::ProofMissing => "proof_missing",
            Self::Proof => "bad_proof",
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
        }
    }

    /// The code of RFC 6750 section 3.1.
    pub fn code(self) -> &'static str {
        match self {
            Self::SeveralTokens | Self::MalformedHeader => "invalid_request",
            // RFC 9449 section 7.1.
            Self::ProofMissing | Self::Proof | Self::ProofStale | Self::ProofReplayed => "invalid_dpop_proof",
            Self::Nonce => "use_dpop_nonce",
            _ => "invalid_token",
        }
    }

    /// Whether it is about the proof of possession, so that the challenge is one for it.
    pub fn is_of_proof(self) -> bool {
        matches!(self.code(), "invalid_dpop_proof" | "use_dpop_nonce")
            || matches!(self, Self::Bound | Self::NotBound | Self::WrongKey)
    }

    /// Whether the caller can do nothing but wait.
    pub fn is_temporary(self) -> bool {
        matches!(self, Self::KeysUnavailable | Self::ProofsFull | Self::IntrospectionUnavailable)
    }
}
