//! Proof of possession: DPoP as a resource server checks it (RFC 9449 section 4.3 and 7.1).
//!
//! A proof counts once, on this process: replicas do not know each other's proofs, so a stolen one works at most once on each
//! within [`Settings::window`].

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use url::Url;

use super::claims::decode;
use super::error::TokenError;
use super::keyset::verifying_key;
use super::nonce::Nonces;
use super::seen::{Seen, Unfit};
use crate::jws::Alg;
use crate::opa::input::{Http, hex_pair};
use crate::value::{Value, as_text, member};

/// Bytes of a proof.
const MAX_PROOF_BYTES: usize = 8_192;
/// Bytes of a proof's `jti`.
const MAX_JTI_BYTES: usize = 256;
/// Members of a JWK that only its owner may know.
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// How proofs are checked.
#[derive(Clone, Debug)]
pub struct Settings {
    pub algorithms: Vec<Alg>,
    /// How old a proof may be, and how far ahead of our clock.
    pub window: Duration,
    /// Where clients reach us, such as `https://api.example.com`; empty: where the request says.
    pub origins: Vec<String>,
    /// Proofs that are remembered; beyond, further ones are refused.
    pub max_proofs: usize,
    /// Where proofs must have a nonce of ours.
    pub nonces: Option<Arc<Nonces>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            algorithms: vec![Alg::Es256, Alg::Es384, Alg::Es512, Alg::Ps256, Alg::Rs256, Alg::EdDsa],
            window: Duration::from_secs(60),
            origins: Vec::new(),
            max_proofs: 1_000_000,
            nonces: None,
        }
    }
}

/// Checks proofs, each of them once.
#[derive(Debug)]
pub struct Proofs {
    settings: Settings,
    seen: Seen,
}

impl Proofs {
    pub fn new(settings: Settings) -> Self {
        // A proof is good for `window` before and after its time.
        let seen = Seen::new(settings.window.saturating_mul(2), settings.max_proofs);
        Self { settings, seen }
    }

    /// Whether the request proves that its sender holds the key that `token` is bound to. The numbers are those of RFC 9449 section 4.3.
    pub fn check(&self, http: &Http<'_>, token: &str, thumbprint: &str, now: i64) -> Result<(), TokenError> {
        // 1: exactly one header field; Envoy joins several by a comma, which no proof has.
        let values = http.header_values("dpop");
        let proof = match values.as_slice() {
            [] => return Err(TokenError::ProofMissing),
            [proof] => std::str::from_utf8(proof.trim_ascii()).map_err(|_| TokenError::Proof)?,
            _ => return Err(TokenError::Proof),
        };
        if proof.len() > MAX_PROOF_BYTES || proof.contains(',') {
            return Err(TokenError::Proof);
        }
        // 2: a well-formed JWT.
        let (signed, signature) = proof.rsplit_once('.').ok_or(TokenError::Proof)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Proof)?;
        let (header, payload) = (decode(header).ok_or(TokenError::Proof)?, decode(payload).ok_or(TokenError::Proof)?);
        if ["crit", "zip", "enc", "b64"].iter().any(|name| member(&header, name).is_some()) {
            return Err(TokenError::Proof);
        }
        // 4 and 5: its type, and an algorithm that is on the list.
        if text(&header, "typ") != Some("dpop+jwt") {
            return Err(TokenError::Proof);
        }
        let alg = text(&header, "alg").and_then(Alg::named).ok_or(TokenError::Proof)?;
        if !self.settings.algorithms.contains(&alg) {
            return Err(TokenError::Proof);
        }
        // 7: no private part; 6: the signature is that of the key in the header.
        let jwk = member(&header, "jwk").filter(|jwk| matches!(jwk, Value::Object(_))).ok_or(TokenError::Proof)?;
        if PRIVATE_MEMBERS.iter().any(|name| member(jwk, name).is_some()) {
            return Err(TokenError::Proof);
        }
        let component = |name: &str| text(jwk, name);
        let key = component("kty").and_then(|kty| verifying_key(kty, &component).ok()).ok_or(TokenError::Proof)?;
        if !key.verify(alg, signed.as_bytes(), signature) {
            return Err(TokenError::Proof);
        }
        // 3 and 8: the claims, of which the method is compared letter by letter.
        let jti = text(&payload, "jti").filter(|jti| (1..=MAX_JTI_BYTES).contains(&jti.len()));
        let jti = jti.ok_or(TokenError::Proof)?;
        if text(&payload, "htm") != Some(http.method) {
            return Err(TokenError::Proof);
        }
        // 9: the URL without query and fragment.
        let htu = text(&payload, "htu").ok_or(TokenError::Proof)?;
        if !self.is_own_url(htu, http) {
            return Err(TokenError::Proof);
        }
        // 10: a nonce of ours, where that is asked for.
        if let Some(nonces) = &self.settings.nonces
            && !text(&payload, "nonce").is_some_and(|nonce| nonces.is_good(nonce, now))
        {
            return Err(TokenError::Nonce);
        }
        // 11: made just now.
        let issued = member(&payload, "iat").and_then(Value::as_i64).ok_or(TokenError::Proof)?;
        let window = i64::try_from(self.settings.window.as_secs()).unwrap_or(i64::MAX);
        if now.saturating_sub(issued).abs() > window {
            return Err(TokenError::ProofStale);
        }
        // 12: made for this token, by the key that the token is bound to.
        let hash = URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes()));
        if text(&payload, "ath") != Some(hash.as_str()) || self::thumbprint(jwk).as_deref() != Some(thumbprint) {
            return Err(TokenError::WrongKey);
        }
        // And once. Last, so that nobody can use up the memory with proofs that are worth nothing.
        self.seen.first(&[thumbprint, htu, jti], now).map_err(|unfit| match unfit {
            Unfit::Again => TokenError::ProofReplayed,
            Unfit::NoRoom => TokenError::ProofsFull,
        })
    }

    /// Whether `htu` is the URL of this request, as clients see it.
    fn is_own_url(&self, htu: &str, http: &Http<'_>) -> bool {
        let Some(url) = Url::parse(htu).ok().filter(|url| url.query().is_none() && url.fragment().is_none()) else {
            return false;
        };
        let origin = url.origin().ascii_serialization();
        let is_ours = if self.settings.origins.is_empty() {
            let host = url.host_str().unwrap_or_default();
            let is_loopback = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
            let is_plain = url.scheme() == "https" || (url.scheme() == "http" && is_loopback);
            let ours = Url::parse(&format!("{}://{}", url.scheme(), http.host)).map(|ours| ours.origin());
            is_plain && ours.is_ok_and(|ours| ours.ascii_serialization() == origin)
        } else {
            self.settings.origins.contains(&origin)
        };
        let path = http.path.split(['?', '#']).next().unwrap_or_default();
        let ours = Url::parse(&format!("{origin}{path}"));
        is_ours && url.username().is_empty() && ours.is_ok_and(|ours| plain_path(&ours) == plain_path(&url))
    }
}

fn text<'v>(of: &'v Value, name: &str) -> Option<&'v str> {
    member(of, name).and_then(as_text)
}

/// A path with its percent-encoding in one form (RFC 3986 section 6.2.2).
fn plain_path(url: &Url) -> String {
    let mut out = String::new();
    let mut rest = url.path();
    while let Some(at) = rest.find('%') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let digits = tail.get(1..3).unwrap_or_default();
        let Some(byte) = hex_pair(digits.as_bytes()) else {
            out.push('%');
            rest = tail.get(1..).unwrap_or_default();
            continue;
        };
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&digits.to_ascii_uppercase());
        }
        rest = tail.get(3..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// The SHA-256 thumbprint of a JWK (RFC 7638 section 3).
pub fn thumbprint(jwk: &Value) -> Option<String> {
    let names: &[&str] = match text(jwk, "kty")? {
        "EC" => &["crv", "kty", "x", "y"],
        "RSA" => &["e", "kty", "n"],
        "OKP" => &["crv", "kty", "x"],
        _ => return None,
    };
    let members = names.iter().map(|name| Some(format!("\"{name}\":\"{}\"", text(jwk, name)?)));
    let canonical = format!("{{{}}}", members.collect::<Option<Vec<_>>>()?.join(","));
    Some(URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprints_are_those_of_rfc_7638() {
        let jwk = r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#;
        let jwk = crate::value::parse_json(
            jwk.as_bytes(),
            crate::value::JsonLimits { depth: 3, duplicates: crate::value::DuplicateKeys::Refuse },
        );
        assert_eq!(thumbprint(&jwk.expect("JSON")).as_deref(), Some("NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"));
    }

    #[test]
    fn urls_are_compared_as_they_are_meant() {
        let plain = |text: &str| plain_path(&Url::parse(text).expect("a URL"));
        assert_eq!(plain("https://a/%7euser/%2fx"), plain("https://a/~user/%2Fx"));
        assert_ne!(plain("https://a/b%2Fc"), plain("https://a/b/c"));
        let proofs = |origins: &[&str]| {
            let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
            Proofs::new(Settings { origins, ..Settings::default() })
        };
        let mut http = Http::default();
        (http.path, http.host) = ("/a/b?x=1", "api.test:8443");
        for (htu, by_host, by_origin) in [
            ("https://api.test:8443/a/b", true, false),
            ("https://API.test:8443/a/b", true, false),
            ("https://public.test/a/b", false, true),
            ("https://public.test:443/a/b", false, true),
            ("http://public.test/a/b", false, false),
            ("http://api.test:8443/a/b", false, false),
            ("https://api.test/a/b", false, false),
            ("https://api.test:8443/a/b?x=1", false, false),
            ("https://api.test:8443/a/b#x", false, false),
            ("https://user@api.test:8443/a/b", false, false),
            ("https://api.test:8443/a", false, false),
            ("nonsense", false, false),
        ] {
            let got = (proofs(&[]).is_own_url(htu, &http), proofs(&["https://public.test"]).is_own_url(htu, &http));
            assert_eq!(got, (by_host, by_origin), "{htu}");
        }
    }
}
