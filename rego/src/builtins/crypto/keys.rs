//! Keys as arguments of functions: PEM, certificates, JSON Web Keys and sets of them.

use stepgate_jose::{Algorithm, PrivateKey, VerifyingKey};

use crate::value::{DuplicateKeys, JsonLimits, Value, parse_json};

/// Levels of nesting in a key set.
const JSON: JsonLimits = JsonLimits { depth: 32, duplicates: DuplicateKeys::LastWins };

/// A key and what its set says of it.
#[derive(Clone, Debug)]
pub(crate) struct NamedKey {
    pub key: VerifyingKey,
    pub alg: Option<String>,
    pub kid: Option<String>,
}

/// The keys of a certificate, a public key in PEM, a JSON Web Key or a set of them.
pub(crate) fn verifying_keys(text: &str) -> Result<Vec<NamedKey>, String> {
    if let Some(key) = VerifyingKey::from_pem(text) {
        return Ok(vec![NamedKey { key: key?, alg: None, kid: None }]);
    }
    let failed = |why: String| format!("failed to parse a JWK key (set): {why}");
    let document = parse_json(text.as_bytes(), JSON).map_err(|error| failed(error.to_string()))?;
    let mut keys = Vec::new();
    for jwk in jwks(&document) {
        let member = |name: &str| jwk.member(name).and_then(Value::as_str);
        // A key that cannot be read spoils the set; one for another algorithm is passed over, and so is one that signs.
        let key = VerifyingKey::from_jwk(&member).map_err(failed)?;
        let other = member("alg").is_some_and(|alg| Algorithm::named(alg).is_none());
        if other || jwk.member("d").is_some() {
            continue;
        }
        keys.push(NamedKey { key, alg: member("alg").map(str::to_owned), kid: member("kid").map(str::to_owned) });
    }
    Ok(keys)
}

/// The keys of a set, or the one key that the document is.
pub(crate) fn jwks(document: &Value) -> Vec<&Value> {
    match document.member("keys").and_then(Value::as_array) {
        Some(keys) => keys.iter().collect(),
        None => vec![document],
    }
}

/// Signs with a private JSON Web Key.
pub(crate) fn sign(jwk: &Value, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, String> {
    let member = |name: &str| jwk.member(name).and_then(Value::as_str);
    PrivateKey::from_jwk(&member, algorithm)?.sign(algorithm, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_sign_and_keys_that_cannot_be_read_verify_nothing() {
        let keys = |text: &str| verifying_keys(text).map(|keys| keys.len());
        let rsa = r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#;
        assert_eq!(keys(&format!("{{\"keys\":[{rsa}]}}")), Ok(1));
        assert_eq!(keys(r#"{"kty":"RSA","n":"AQAB","e":"AQAB","d":"AQAB"}"#), Ok(0));
        assert!(keys(&format!("{{\"keys\":[{rsa},{{\"kty\":\"FOO\",\"alg\":\"zz\"}}]}}")).is_err());
        assert!(keys(r#"{"kty":"OKP","crv":"X25519","x":"AQAB"}"#).is_err());
    }
}
