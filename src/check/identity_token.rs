//! A short-lived token of our own with the caller's identity, for the upstream.
//!
//! Unlike headers it cannot be forged by a client that reaches the upstream past Envoy. It is made of what was verified, lives no
//! longer than the caller's own token, and is of a type that is no access token (RFC 8725 section 3.11).

use std::fmt;
use std::time::Duration;

use moka::sync::Cache;
use serde_json::{Map, Value as Json};
use stepgate_jose::{SigningKey, signing_input};
use uuid::Uuid;

use super::identity::IdentitySource;
use crate::token::Verified;
use crate::value::json_text;

/// The longest that one counts.
pub const MAX_LIFETIME: Duration = Duration::from_secs(60);
/// `typ` of its header.
const TYPE: &str = "stepgate-identity+jwt";
/// Tokens that are kept to be sent again.
const MAX_KEPT: u64 = 10_000;

/// `plugins.stepgate.identity_token`, with its key.
pub struct IdentityTokenSigner {
    pub key: SigningKey,
    pub kid: String,
    pub issuer: String,
    pub audience: String,
    pub lifetime: Duration,
    /// Further claims, by name.
    pub claims: Vec<(String, IdentitySource)>,
    /// By the verification that it is made of: the text, and until when it is sent.
    kept: Cache<u64, (String, i64)>,
}

impl fmt::Debug for IdentityTokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minter").field("kid", &self.kid).field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl IdentityTokenSigner {
    pub fn new(key: SigningKey, kid: String, issuer: String, audience: String) -> Self {
        let kept = Cache::builder().max_capacity(MAX_KEPT).time_to_live(MAX_LIFETIME).build();
        Self { key, kid, issuer, audience, lifetime: MAX_LIFETIME, claims: Vec::new(), kept }
    }

    /// The token for this caller; nothing when it cannot be signed.
    pub fn token(&self, verified: &Verified, now: i64) -> Option<String> {
        let serial = verified.serial();
        // With half of its life left it is sent again: signing takes longer than all the rest of a check.
        if let Some((token, until)) = self.kept.get(&serial)
            && now < until
        {
            return Some(token);
        }
        let lifetime = i64::try_from(self.lifetime.min(MAX_LIFETIME).as_secs()).unwrap_or(0);
        let expires = now.saturating_add(lifetime).min(verified.expires_with_leeway());
        let token = self.sign(verified, now, expires)?;
        let until = now.saturating_add(lifetime / 2).min(expires);
        self.kept.insert(serial, (token.clone(), until));
        Some(token)
    }

    fn sign(&self, verified: &Verified, now: i64, expires: i64) -> Option<String> {
        let mut claims = Map::new();
        for (name, source) in &self.claims {
            if let Some(value) = source.found(verified, now) {
                claims.insert(name.clone(), serde_json::from_str(&json_text(&value)).ok()?);
            }
        }
        // Ours last: no claim of the caller's token takes the place of one of them.
        for (name, value) in [
            ("iss", Json::from(self.issuer.as_str())),
            ("aud", Json::from(self.audience.as_str())),
            ("sub", Json::from(verified.subject())),
            ("sub_iss", Json::from(verified.issuer())),
            ("iat", Json::from(now)),
            ("exp", Json::from(expires)),
            ("jti", Json::from(Uuid::new_v4().to_string())),
        ] {
            claims.insert(name.to_owned(), value);
        }
        let header = serde_json::json!({"alg": self.key.algorithm().name(), "kid": self.kid, "typ": TYPE});
        let signed = signing_input(&header.to_string(), &Json::Object(claims).to_string());
        let signature = self.key.sign(signed.as_bytes()).inspect_err(|error| {
            tracing::error!(%error, "the identity token cannot be signed; the upstream gets none");
        });
        Some(format!("{signed}.{}", signature.ok()?))
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::*;
    use crate::token::verified_for_tests;
    use stepgate_jose::{Algorithm, PrivateKey};

    fn identity_token_signer() -> IdentityTokenSigner {
        let pem = PrivateKey::generate(Algorithm::ES256).expect("a key");
        let key = SigningKey::from_pem(Algorithm::ES256, &pem).expect("a key");
        IdentityTokenSigner::new(key, "k".to_owned(), "https://gate".to_owned(), "upstream".to_owned())
    }

    fn part(token: &str, at: usize) -> Json {
        let part = token.split('.').nth(at).expect("a part");
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64")).expect("JSON")
    }

    #[test]
    fn the_token_says_what_was_verified_and_no_longer_than_that() {
        let claims =
            [("tenant", "claims.tenant"), ("iss", "claims.tenant"), ("none", "claims.none"), ("level", "authn.level")];
        let claims = claims.map(|(name, source)| (name.to_owned(), IdentitySource::parse(source).expect("a source")));
        let identity_token_signer = IdentityTokenSigner { claims: claims.to_vec(), ..identity_token_signer() };
        let verified = verified_for_tests(&json!({"tenant": {"id": 7}, "amr": ["mfa"]}), |_| {});
        let now = verified.expires_with_leeway() - 1_000;
        let token = identity_token_signer.token(&verified, now).expect("a token");
        assert_eq!(part(&token, 0), json!({"alg": "ES256", "kid": "k", "typ": "stepgate-identity+jwt"}));
        let mut claims = part(&token, 1);
        assert!(claims.as_object_mut().expect("claims").remove("jti").is_some());
        let (subject, issuer) = (verified.subject(), verified.issuer());
        assert_eq!(
            claims,
            json!({"iss": "https://gate", "aud": "upstream", "sub": subject, "sub_iss": issuer, "iat": now, "exp": now + 60,
                   "tenant": {"id": 7}, "level": 2})
        );
        assert_eq!(identity_token_signer.token(&verified, now + 29).as_deref(), Some(token.as_str()), "sent again");
        assert_ne!(
            identity_token_signer.token(&verified, now + 30).as_deref(),
            Some(token.as_str()),
            "with half of its life left"
        );
        let last = identity_token_signer.token(&verified, verified.expires_with_leeway() - 5).expect("a token");
        assert_eq!(part(&last, 1)["exp"], json!(verified.expires_with_leeway()));
    }
}
