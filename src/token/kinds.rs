//! Which tokens are access tokens: one table of the words by which providers name the others, for JWTs and for answers of
//! introspection.
//!
//! Sources: RFC 9068 section 5 and RFC 8725 section 3.11 (JWTs); RFC 7662 section 2.2 and RFC 6749 section 5.1 (`token_type` of an
//! answer); RFC 9449 section 6.2 (`DPoP`); OpenID Connect Core section 2 (`nonce`, `at_hash`) and Back-Channel Logout section 2.4;
//! Keycloak (`typ`), Amazon Cognito (`token_use`), ForgeRock (`tokenName`), Ory Hydra 1 (`token_type: access_token`).

use super::error::TokenError;
use crate::value::{Value, as_text, member};

/// Claims that may say what kind a token is of.
const KIND_CLAIMS: [&str; 5] = ["typ", "type", "token_use", "token_type", "tokenName"];

/// Words for tokens that are no access tokens, in lower case, with `_` between words, without `application/` and `+jwt`.
const OTHER_KINDS: &[&str] = &[
    "id",
    "id_token",
    "idtoken",
    "refresh",
    "refresh_token",
    "refreshtoken",
    "offline",
    "offline_token",
    "logout",
    "logout_token",
    "code",
    "authorization_code",
    "device_code",
    "user_code",
    "userinfo",
    "client_assertion",
    "client_authentication",
    "dpop",
    "registrationaccesstoken",
    "registration_access_token",
    "initialaccesstoken",
    "initial_access_token",
    "secevent",
    "rt",
    "offline_access",
    "serialized_id",
    "n_a",
    "registration",
];

/// The beginning of the URNs for kinds of tokens (RFC 8693 section 3).
const KIND_URN: &str = "urn:ietf:params:oauth:token_type:";

/// Types of a token that an issuer may name in an answer (RFC 7662 section 2.2).
const ANSWERED_TYPES: &[&str] = &["bearer", "dpop", "access_token"];

/// Where the claims come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin<'a> {
    /// A JWT with this `typ` in its header, in lower case.
    Jwt { typ: &'a str },
    /// The kinds in introspection answers (RFC 7662).
    Answer,
}

/// Refuses claims of a token that is no access token.
pub fn check(claims: &Value, origin: Origin<'_>) -> Result<(), TokenError> {
    let word = |name: &str| member(claims, name).map(|value| plain(as_text(value).unwrap_or_default()));
    let is_other = |value: &Value| as_text(value).is_some_and(|text| names_other(&plain(text)));
    for name in KIND_CLAIMS {
        let is_wrong = match member(claims, name) {
            None | Some(Value::Null) => false,
            Some(value @ Value::String(_)) => is_other(value),
            // `type` is also a claim of many applications.
            Some(Value::Array(items)) => name != "type" || items.iter().any(is_other),
            Some(_) => name != "type",
        };
        if is_wrong {
            return Err(TokenError::WrongType);
        }
    }
    // Security event tokens, such as logout tokens (RFC 8417 section 2.2).
    if member(claims, "events").is_some_and(|events| events.as_object().is_some()) {
        return Err(TokenError::WrongType);
    }
    // Cognito and those who follow it say it of every token.
    if word("token_use").is_some_and(|word| !matches!(word.as_str(), "access" | "access_token")) {
        return Err(TokenError::WrongType);
    }
    if let (Origin::Answer, Some(word)) = (origin, word("token_type")) {
        let is_known = ANSWERED_TYPES.contains(&word.as_str());
        if !is_known || (word == "dpop" && !has_key(claims)) {
            return Err(TokenError::WrongType);
        }
    }
    let has = |name: &str| member(claims, name).is_some_and(|value| !matches!(value, Value::Null));
    // Keycloak before 25 copies `nonce` into access tokens, which say that they are some.
    let says_access =
        matches!(word("typ").as_deref(), Some("bearer" | "dpop")) || matches!(origin, Origin::Jwt { typ: "at+jwt" });
    if (has("nonce") && !says_access) || ["at_hash", "c_hash", "s_hash"].iter().any(|name| has(name)) {
        return Err(TokenError::WrongType);
    }
    Ok(())
}

/// A media type in lower case, without `application/` (RFC 7515 section 4.1.9).
pub fn media_type(typ: &str) -> String {
    let typ = typ.to_ascii_lowercase();
    typ.strip_prefix("application/").filter(|rest| !rest.is_empty()).map(str::to_owned).unwrap_or(typ)
}

/// The word without what is the same for all kinds.
fn plain(word: &str) -> String {
    let word = media_type(word.trim());
    let word = word.strip_suffix("+jwt").unwrap_or(&word).replace(['-', ' '], "_");
    word.strip_prefix(KIND_URN).map(str::to_owned).unwrap_or(word)
}

/// A word names another kind. `dpop` is also the type of a bound access token.
fn names_other(word: &str) -> bool {
    word != "dpop" && OTHER_KINDS.contains(&word)
}

fn has_key(claims: &Value) -> bool {
    member(claims, "cnf").and_then(|cnf| member(cnf, "jkt")).and_then(as_text).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::value::{DuplicateKeys, JsonLimits, parse_json};

    fn is_taken(claims: &Json, origin: Origin<'_>) -> bool {
        let limits = JsonLimits { depth: 9, duplicates: DuplicateKeys::Refuse };
        check(&parse_json(claims.to_string().as_bytes(), limits).expect("JSON"), origin).is_ok()
    }

    #[test]
    fn only_access_tokens_are_taken() {
        let jwt = |typ| Origin::Jwt { typ };
        for (claims, origin, want) in [
            (json!({}), jwt(""), true),
            (json!({"typ": "Bearer"}), jwt("jwt"), true),
            (json!({"typ": "Bearer", "nonce": "n"}), jwt("jwt"), true),
            (json!({"nonce": "n"}), jwt("at+jwt"), true),
            (json!({"nonce": "n"}), jwt("jwt"), false),
            (json!({"nonce": "n", "typ": "ID"}), jwt("at+jwt"), false),
            (json!({"typ": "Bearer", "at_hash": "h"}), jwt("at+jwt"), false),
            (json!({"typ": "Refresh"}), jwt(""), false),
            (json!({"typ": "Offline"}), jwt(""), false),
            (json!({"typ": "logout+jwt"}), jwt(""), false),
            (json!({"type": "refresh-token"}), jwt(""), false),
            (json!({"type": "user"}), jwt(""), true),
            (json!({"type": ["user"]}), jwt(""), true),
            (json!({"type": ["Refresh", "x"]}), jwt(""), false),
            (json!({"typ": ["refresh_token"]}), jwt(""), false),
            (json!({"token_type": {"v": "refresh"}}), jwt(""), false),
            (json!({"token_type": "urn:ietf:params:oauth:token-type:id_token"}), jwt(""), false),
            (json!({"token_type": "rt+jwt"}), jwt(""), false),
            (json!({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}), jwt("jwt"), false),
            (json!({"events": {}}), Origin::Answer, false),
            (json!({"events": 7, "nonce": null}), jwt(""), true),
            (json!({"typ": "DPoP", "nonce": "n"}), jwt("jwt"), true),
            (json!({"tokenName": "refresh_token"}), Origin::Answer, false),
            (json!({"tokenName": "access_token"}), Origin::Answer, true),
            (json!({"token_use": "id"}), jwt(""), false),
            (json!({"token_use": "access"}), jwt(""), true),
            (json!({"token_use": 7}), jwt(""), false),
            (json!({"token_type": "refresh_token"}), jwt(""), false),
            (json!({"token_type": "urn:example:service"}), jwt(""), true),
            (json!({"token_type": "Bearer"}), Origin::Answer, true),
            (json!({"token_type": "access_token"}), Origin::Answer, true),
            (json!({"token_type": "N_A"}), Origin::Answer, false),
            (json!({"token_type": "mac"}), Origin::Answer, false),
            (json!({"token_type": null}), Origin::Answer, false),
            (json!({"token_type": "DPoP"}), Origin::Answer, false),
            (json!({"token_type": "DPoP", "cnf": {"jkt": "x"}}), Origin::Answer, true),
        ] {
            assert_eq!(is_taken(&claims, origin), want, "{claims} {origin:?}");
        }
    }
}
