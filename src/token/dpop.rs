//! Proof of possession: DPoP as a resource server checks it (RFC 9449 section 4.3 and 7.1).
//!
//! A proof counts once, on this process: replicas do not know each other's proofs, so a stolen one works at most once on each
//! within [`Settings::window`].

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use stepgate_jose::{Algorithm, VerifyingKey};

use super::claims::{decode, numeric_date};
use super::error::{ProofFault, TokenError};
use super::nonce::{Nonces, SPAN_SECONDS};
use super::replay_cache::{ReplayCache, ReplayError};
use super::spiffe::SpiffePattern;
use crate::opa::input::{Http, hex_pair};
use crate::value::{Value, as_text, member};

/// Bytes of a proof.
const MAX_PROOF_BYTES: usize = 8_192;
/// Bytes of a proof's `jti`.
const MAX_JTI_BYTES: usize = 256;
/// Tolerated clock skew of clients for `exp` and `nbf` of a proof, in seconds.
const PROOF_LEEWAY_SECONDS: i64 = 5;
/// Members of a JWK that only its owner may know.
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Settings of DPoP proofs.
#[derive(Clone, Debug)]
pub struct Settings {
    pub algorithms: Vec<Algorithm>,
    /// The accepted window of `iat`, before and after our clock.
    pub window: Duration,
    /// Where clients reach us, such as `https://api.example.com`; empty: where the request says.
    pub origins: Vec<String>,
    /// Proofs that are remembered; beyond, further ones are refused.
    pub max_proofs: usize,
    /// Where proofs must have a nonce of ours.
    pub nonces: Option<Arc<Nonces>>,
    /// Workloads that have counted a proof, or a token for one use, before they send it here.
    pub checked_by: Vec<SpiffePattern>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            algorithms: vec![
                Algorithm::ES256,
                Algorithm::ES384,
                Algorithm::ES512,
                Algorithm::PS256,
                Algorithm::RS256,
                Algorithm::EdDsa,
            ],
            window: Duration::from_secs(60),
            origins: Vec::new(),
            max_proofs: 1_000_000,
            nonces: None,
            checked_by: Vec::new(),
        }
    }
}

/// Checks proofs, each of them once.
#[derive(Debug)]
pub struct Proofs {
    settings: Settings,
    seen: ReplayCache,
}

impl Proofs {
    /// The workload of the connection has already counted the proof.
    pub fn is_counted_by(&self, principal: &str) -> bool {
        self.settings.checked_by.iter().any(|pattern| pattern.matches(principal))
    }

    pub fn new(settings: Settings) -> Self {
        // A proof is good for `window` before and after its time; with a nonce, as long as that: for three spans at most, where another
        // replica's clock is ahead.
        let by_nonce = settings.nonces.as_ref().map_or(0, |_| SPAN_SECONDS.unsigned_abs().saturating_mul(3));
        let span = settings.window.saturating_mul(2).max(Duration::from_secs(by_nonce));
        let seen = ReplayCache::new(span, settings.max_proofs);
        Self { settings, seen }
    }

    /// Verifies that the request's sender holds the key that `token` is bound to. The numbers are those of RFC 9449 section 4.3.
    /// A proof that `was_counted` by a trusted peer, such as the gateway, is no replay here.
    pub fn check(
        &self,
        http: &Http<'_>,
        token: &str,
        thumbprint: &str,
        was_counted: bool,
        now: i64,
    ) -> Result<(), TokenError> {
        let fault = |fault: ProofFault| TokenError::Proof(fault);
        // 1: exactly one header field; Envoy joins several by a comma, which no proof has.
        let values = http.header_values("dpop");
        let proof = match values.as_slice() {
            [] => return Err(TokenError::ProofMissing),
            [proof] => std::str::from_utf8(proof.trim_ascii()).map_err(|_| fault(ProofFault::Syntax))?,
            _ => return Err(fault(ProofFault::Repeated)),
        };
        if proof.contains(',') {
            return Err(fault(ProofFault::Repeated));
        }
        if proof.len() > MAX_PROOF_BYTES {
            return Err(fault(ProofFault::TooLarge));
        }
        // 2: a well-formed JWT.
        let parts = |text: &'_ str| -> Option<(Value, Value)> {
            let (header, payload) = text.split_once('.')?;
            Some((decode(header)?, decode(payload)?))
        };
        let (signed, signature) = proof.rsplit_once('.').ok_or(fault(ProofFault::Syntax))?;
        let (header, payload) = parts(signed).ok_or(fault(ProofFault::Syntax))?;
        if ["crit", "zip", "enc", "b64"].iter().any(|name| member(&header, name).is_some()) {
            return Err(fault(ProofFault::Extension));
        }
        // 4 and 5: its type, and an algorithm that is on the list.
        if text(&header, "typ") != Some("dpop+jwt") {
            return Err(fault(ProofFault::Type));
        }
        let alg = text(&header, "alg").and_then(Algorithm::asymmetric).ok_or(fault(ProofFault::Algorithm))?;
        if !self.settings.algorithms.contains(&alg) {
            return Err(fault(ProofFault::Algorithm));
        }
        // 7: no private part; 6: the signature is that of the key in the header.
        let jwk = member(&header, "jwk").filter(|jwk| matches!(jwk, Value::Object(_)));
        let jwk = jwk.ok_or(fault(ProofFault::Key))?;
        if PRIVATE_MEMBERS.iter().any(|name| member(jwk, name).is_some()) {
            return Err(fault(ProofFault::Key));
        }
        let component = |name: &str| text(jwk, name);
        let key = VerifyingKey::from_published_jwk(&component).map_err(|_| fault(ProofFault::Key))?;
        if !key.verifies_encoded(alg, signed.as_bytes(), signature) {
            return Err(fault(ProofFault::Signature));
        }
        // 3 and 8: the claims, of which the method is compared letter by letter.
        let jti = text(&payload, "jti").filter(|jti| (1..=MAX_JTI_BYTES).contains(&jti.len()));
        let jti = jti.ok_or(fault(ProofFault::Id))?;
        if text(&payload, "htm") != Some(http.method) {
            return Err(fault(ProofFault::Method));
        }
        // 9: the URL without query and fragment.
        let htu = text(&payload, "htu").ok_or(fault(ProofFault::Url))?;
        if !self.is_own_url(htu, http) {
            return Err(fault(ProofFault::Url));
        }
        // 10: a nonce of ours, where that is asked for.
        if let Some(nonces) = &self.settings.nonces
            && !text(&payload, "nonce").is_some_and(|nonce| nonces.is_good(nonce, now))
        {
            return Err(TokenError::Nonce);
        }
        self.check_time(&payload, now)?;
        // 12: made for this token, by the key that the token is bound to.
        let hash = URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes()));
        if text(&payload, "ath") != Some(hash.as_str()) || self::thumbprint(jwk).as_deref() != Some(thumbprint) {
            return Err(TokenError::WrongKey);
        }
        // Replay last, so that invalid proofs cannot fill the replay cache. A proof that was counted before is recorded as well: from anyone
        // else it is a replay.
        match self.seen.first(&[thumbprint, htu, jti], now) {
            Ok(()) => Ok(()),
            Err(_) if was_counted => Ok(()),
            Err(ReplayError::Replayed) => Err(TokenError::ProofReplayed),
            Err(ReplayError::CacheFull) => Err(TokenError::ProofsFull),
        }
    }

    /// 11: made just now, which a good nonce says as well; and within `exp` and `nbf`, where there are any.
    fn check_time(&self, payload: &Value, now: i64) -> Result<(), TokenError> {
        let date = |name: &str| match member(payload, name) {
            None => Ok(None),
            Some(value) => numeric_date(value).map(Some).ok_or(TokenError::Proof(ProofFault::Time)),
        };
        let window = i64::try_from(self.settings.window.as_secs()).unwrap_or(i64::MAX);
        let issued = date("iat")?.ok_or(TokenError::Proof(ProofFault::Time))?;
        if self.settings.nonces.is_none() && now.saturating_sub(issued).saturating_abs() > window {
            return Err(TokenError::ProofStale);
        }
        let leeway = window.min(PROOF_LEEWAY_SECONDS);
        let is_over = date("exp")?.is_some_and(|end| now >= end.saturating_add(leeway));
        let is_ahead = date("nbf")?.is_some_and(|start| start > now.saturating_add(leeway));
        if is_over || is_ahead { Err(TokenError::ProofStale) } else { Ok(()) }
    }

    /// `htu` is the URL of this request, as clients see it.
    fn is_own_url(&self, htu: &str, http: &Http<'_>) -> bool {
        let Some(url) = HttpUrl::parse(htu) else { return false };
        let is_ours = if self.settings.origins.is_empty() {
            let is_loopback = matches!(url.host.as_str(), "localhost" | "127.0.0.1" | "[::1]");
            let is_plain = url.scheme == "https" || is_loopback;
            is_plain && HttpUrl::authority(http.host, url.scheme) == Some((url.host.clone(), url.port))
        } else {
            self.settings.origins.contains(&url.origin()) && !self.is_for_other_origin(&url, http.host)
        };
        let path = http.path.split(['?', '#']).next().unwrap_or_default();
        is_ours && comparable(path).is_some_and(|path| comparable(url.path) == Some(path))
    }

    /// The request's Host is that of another of our origins. A Host that is none of them was rewritten on the way.
    fn is_for_other_origin(&self, url: &HttpUrl<'_>, host: &str) -> bool {
        let names_host = |origin: &String| {
            HttpUrl::parse(origin)
                .is_some_and(|own| HttpUrl::authority(host, own.scheme) == Some((own.host.clone(), own.port)))
        };
        HttpUrl::authority(host, url.scheme) != Some((url.host.clone(), url.port))
            && self.settings.origins.iter().any(names_host)
    }
}

/// A URL of HTTP as it is written: nothing in it is removed or put in order, as a browser would.
struct HttpUrl<'u> {
    scheme: &'static str,
    host: String,
    port: u16,
    path: &'u str,
}

impl<'u> HttpUrl<'u> {
    /// Nothing unless it has a scheme of HTTP and a plain host, and neither query nor fragment.
    fn parse(text: &'u str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = ["https", "http"].into_iter().find(|known| known.eq_ignore_ascii_case(scheme))?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
        let (host, port) = Self::authority(authority, scheme)?;
        let path = if path.is_empty() { "/" } else { path };
        (path.starts_with('/') && !path.contains(['?', '#'])).then_some(Self { scheme, host, port, path })
    }

    /// Host and port of `host[:port]`.
    fn authority(text: &str, scheme: &str) -> Option<(String, u16)> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
                (host, if is_number { port.parse().ok()? } else { return None })
            }
            _ => (text, if scheme == "https" { 443 } else { 80 }),
        };
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        };
        let is_address = |inner: &str| inner.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte));
        let is_good = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => is_address(inner),
            None => is_name(host),
        };
        is_good.then(|| (host.to_ascii_lowercase(), port))
    }

    fn origin(&self) -> String {
        match (self.scheme, self.port) {
            ("https", 443) | ("http", 80) => format!("{}://{}", self.scheme, self.host),
            (scheme, port) => format!("{scheme}://{}:{port}", self.host),
        }
    }
}

/// A path with its percent-encoding in one form (RFC 3986 section 6.2.2): letters, digits and `-_~` decoded, the digits of other triplets in
/// upper case. Nothing is removed. Nothing at all where it has a dot segment, a backslash or a control byte, which others might remove.
fn comparable(path: &str) -> Option<String> {
    let bytes = path.as_bytes();
    if bytes.iter().any(|&byte| byte < b' ' || byte == 0x7f || byte == b'\\') {
        return None;
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let triplet = tail.get(..3);
        match triplet.and_then(|triplet| hex_pair(triplet.get(1..)?.as_bytes())) {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) => out.push(char::from(byte)),
            Some(byte) => out.push_str(&format!("%{byte:02X}")),
            None => out.push('%'),
        }
        let taken =
            if triplet.is_some_and(|triplet| hex_pair(triplet.as_bytes().get(1..).unwrap_or_default()).is_some()) {
                3
            } else {
                1
            };
        rest = tail.get(taken..).unwrap_or_default();
    }
    out.push_str(rest);
    let is_dots = |segment: &str| matches!(segment.replace("%2E", ".").as_str(), "." | "..");
    (!out.split('/').any(is_dots)).then_some(out)
}

fn text<'v>(of: &'v Value, name: &str) -> Option<&'v str> {
    member(of, name).and_then(as_text)
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
        assert_eq!(comparable("/%7euser/%2fx"), comparable("/~user/%2Fx"));
        assert_ne!(comparable("/b%2Fc"), comparable("/b/c"));
        assert_eq!(comparable("/100%/%zz%"), Some("/100%/%zz%".to_owned()));
        for bad in ["/a/../b", "/a/%2e%2E/b", "/.%2e", "/./a", "/a/%2e", "/a\\b", "/a\tb", "/a\u{7f}"] {
            assert_eq!(comparable(bad), None, "{bad:?}");
        }
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
