//! Signatures of bundles: who vouches for which files.
//!
//! Mirrors: OPA `v1/bundle/{verify,sign,hash}.go`, v1.19.0. What differs, on purpose: where a public key is configured, a bundle
//! without a signature is refused, and a delta is verified like a snapshot.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use globset::GlobMatcher;
use serde_json::{Map, Value as Json, json};
use sha2::Digest as _;
use stepgate_jose::{ConfiguredKey, ConfiguredKeyError, sign_configured, signing_input};

use crate::value::{DuplicateKeys, JsonLimits, Value, as_text, parse_json, parse_yaml};

/// The name of the file with the signature.
pub const FILE: &str = ".signatures.json";
/// Levels of nesting in a file that is hashed as a document.
const DOCUMENT: JsonLimits = JsonLimits { depth: 1_000, duplicates: DuplicateKeys::LastWins };

/// A key of the configuration that verifies bundles.
#[derive(Clone, Debug)]
pub struct PublicKey {
    pub key: ConfiguredKey,
    pub scope: String,
}

/// Settings of bundle verification.
#[derive(Clone, Debug, Default)]
pub struct Verification {
    pub keys: BTreeMap<String, PublicKey>,
    /// The only key that counts, if it is named.
    pub key_id: Option<String>,
    pub scope: String,
    /// Files that need not be listed.
    pub exclude: Vec<GlobMatcher>,
    pub demand: SignaturePolicy,
}

/// The treatment of bundles without a signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SignaturePolicy {
    /// The bundle is taken; one that is signed must verify.
    #[default]
    Optional,
    Required,
    /// OPA's order: required of snapshots where a key is named, and never asked of deltas.
    AsInOpa,
    /// Nothing is looked at.
    Skip,
}

/// The error of a bundle's verification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    #[error("bundle missing .signatures.json file: a key is configured, so only signed bundles are taken")]
    Missing,
    #[error("verification key not provided: the bundle is signed, and no key is configured under `keys`")]
    NoKeys,
    #[error("`.signatures.json` is malformed: {0}")]
    Malformed(&'static str),
    #[error("there is no key `{0}` with a `key` to verify with")]
    UnknownKey(String),
    #[error("verification key ID is empty")]
    NoKeyId,
    #[error("the signature is not that of the key `{0}`")]
    Wrong(String),
    #[error("scope mismatch: the signature is for `{got}`, wanted is `{want}`")]
    Scope { got: String, want: String },
    #[error("file {0} not included in bundle signature")]
    NotListed(String),
    #[error("file(s) {0:?} specified in bundle signatures but not found in the target bundle")]
    NotThere(Vec<String>),
    #[error("{0}: digest mismatch")]
    Digest(String),
    #[error("`{file}`: there is no hash algorithm `{algorithm}`")]
    HashAlgorithm { file: String, algorithm: String },
    #[error("`{0}` is neither JSON nor YAML, so it has no digest")]
    Document(String),
}

/// A file of a bundle as its signature names it, and its bytes.
pub type File<'a> = (&'a str, &'a [u8]);

/// Parses a pattern of `exclude_files`, as Go's `filepath.Match` reads it: nothing crosses a `/`.
pub fn exclusion(pattern: &str) -> Option<GlobMatcher> {
    let mut plain = String::new();
    for char in pattern.chars() {
        match char {
            '*' if plain.ends_with('*') && !plain.ends_with("\\*") => {}
            '{' | '}' => plain.extend(['[', char, ']']),
            char => plain.push(char),
        }
    }
    let glob = globset::GlobBuilder::new(&plain).literal_separator(true).backslash_escape(true).build();
    glob.ok().map(|glob| glob.compile_matcher())
}

impl Verification {
    /// Verifies `files` by `signatures`, the content of their signature file.
    pub fn check(&self, signatures: Option<&[u8]>, files: &[File<'_>], is_delta: bool) -> Result<(), SignatureError> {
        if self.demand == SignaturePolicy::Skip || (self.demand == SignaturePolicy::AsInOpa && is_delta) {
            return Ok(());
        }
        let tokens = match signatures {
            None => Vec::new(),
            Some(bytes) => tokens(bytes)?,
        };
        let token = match tokens.as_slice() {
            [] => {
                let required = match self.demand {
                    SignaturePolicy::Required => true,
                    SignaturePolicy::AsInOpa => self.key_id.is_some(),
                    SignaturePolicy::Optional | SignaturePolicy::Skip => false,
                };
                return if required { Err(SignatureError::Missing) } else { Ok(()) };
            }
            [token] => token,
            _ => return Err(SignatureError::Malformed("multiple JWTs not supported (expected exactly one)")),
        };
        if self.keys.is_empty() {
            return Err(SignatureError::NoKeys);
        }
        let mut listed = self.listed(token)?;
        for (name, bytes) in files {
            let entry = listed.remove(*name);
            if self.exclude.iter().any(|pattern| pattern.is_match(name)) {
                continue;
            }
            let (algorithm, hash) = entry.ok_or_else(|| SignatureError::NotListed((*name).to_owned()))?;
            let own = digest(name, bytes, &algorithm)?;
            if !own.eq_ignore_ascii_case(&hash) {
                return Err(SignatureError::Digest((*name).to_owned()));
            }
        }
        if listed.is_empty() { Ok(()) } else { Err(SignatureError::NotThere(listed.into_keys().collect())) }
    }

    /// The files that a token lists, each with its hash algorithm and hash, once its signature is right.
    fn listed(&self, token: &str) -> Result<BTreeMap<String, (String, String)>, SignatureError> {
        let malformed = SignatureError::Malformed;
        let (signed, signature) = token.rsplit_once('.').ok_or(malformed("not a JWT"))?;
        let (header, payload) = signed.split_once('.').ok_or(malformed("not a JWT"))?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed("not base64url"));
        let object = |part: &str| -> Result<Map<String, Json>, SignatureError> {
            serde_json::from_slice(&decode(part)?).map_err(|_| malformed("not a JSON object in the JWT"))
        };
        let (header, payload) = (object(header)?, object(payload)?);
        let text = |members: &Map<String, Json>, name: &str| match members.get(name) {
            None | Some(Json::Null) => Ok(String::new()),
            Some(Json::String(text)) => Ok(text.clone()),
            Some(_) => Err(malformed("a member of the JWT is not text")),
        };
        let named = [self.key_id.clone().unwrap_or_default(), text(&header, "kid")?, text(&payload, "keyid")?];
        let id = named.into_iter().find(|id| !id.is_empty()).ok_or(SignatureError::NoKeyId)?;
        let key = self.keys.get(&id).ok_or_else(|| SignatureError::UnknownKey(id.clone()))?;
        // The algorithm is that of the key; what the header says counts for nothing.
        if !key.key.verifies(signed.as_bytes(), &decode(signature)?) {
            return Err(SignatureError::Wrong(id));
        }
        let want = if self.scope.is_empty() { key.scope.clone() } else { self.scope.clone() };
        let got = text(&payload, "scope")?;
        if got != want {
            return Err(SignatureError::Scope { got, want });
        }
        let files = match payload.get("files") {
            None | Some(Json::Null) => &[][..],
            Some(files) => files.as_array().ok_or(malformed("`files` is not a list"))?,
        };
        let entry = |file: &Json| {
            let file = file.as_object()?;
            Some((text(file, "name").ok()?, (text(file, "algorithm").ok()?, text(file, "hash").ok()?)))
        };
        files.iter().map(|file| entry(file).ok_or(malformed("a file of the JWT"))).collect()
    }
}

/// The JWTs of a signature file.
fn tokens(bytes: &[u8]) -> Result<Vec<String>, SignatureError> {
    let malformed = SignatureError::Malformed;
    let first = serde_json::Deserializer::from_slice(bytes).into_iter::<Json>().next();
    let document = first.and_then(Result::ok).ok_or(malformed("not JSON"))?;
    if document.get("plugin").and_then(Json::as_str).is_some_and(|plugin| !matches!(plugin, "" | "_default")) {
        return Err(malformed("`plugin` names a verifier that is not there"));
    }
    let list = match document.get("signatures") {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(list) => list.as_array().ok_or(malformed("`signatures` is not a list"))?,
    };
    list.iter().map(|token| token.as_str().map(str::to_owned).ok_or(malformed("a signature is not text"))).collect()
}

/// The signing key and algorithm.
#[derive(Clone, Debug)]
pub struct Signer<'a> {
    /// A private key in PEM, or a secret.
    pub key: &'a str,
    pub algorithm: &'a str,
    pub key_id: &'a str,
    /// Further claims, such as `scope`.
    pub claims: Map<String, Json>,
}

/// The content of a signature file for `files`.
pub fn sign(files: &[File<'_>], signer: &Signer<'_>) -> Result<String, SignError> {
    let listed: Result<Vec<Json>, SignatureError> = files
        .iter()
        .map(|(name, bytes)| Ok(json!({"name": name, "hash": digest(name, bytes, "SHA-256")?, "algorithm": "SHA-256"})))
        .collect();
    let mut payload = signer.claims.clone();
    payload.insert("files".to_owned(), listed?.into());
    let mut header = json!({"alg": signer.algorithm});
    if !signer.key_id.is_empty() {
        if signer.claims.is_empty() {
            payload.insert("keyid".to_owned(), signer.key_id.into());
        }
        if let Some(members) = header.as_object_mut() {
            members.insert("kid".to_owned(), signer.key_id.into());
        }
    }
    let signed = signing_input(&header.to_string(), &Json::Object(payload).to_string());
    let signature = sign_configured(signer.algorithm, signer.key, signed.as_bytes())?;
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
    Ok(json!({"signatures": [token]}).to_string())
}

/// Why a bundle cannot be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error(transparent)]
    File(#[from] SignatureError),
    #[error(transparent)]
    Key(#[from] ConfiguredKeyError),
}

/// The hash of a file in hexadecimal. Documents are hashed by what they mean: keys in order, no spaces, numbers as spelled.
pub fn digest(name: &str, bytes: &[u8], algorithm: &str) -> Result<String, SignatureError> {
    let base = name.rsplit('/').next().unwrap_or(name);
    let unreadable = || SignatureError::Document(name.to_owned());
    let document = match base {
        "data.json" | "data.yaml" | "data.yml" | ".manifest" | FILE => {
            let parsed = parse_json(bytes, DOCUMENT).ok();
            let parsed = parsed.or_else(|| parse_yaml(std::str::from_utf8(bytes).ok()?, DOCUMENT));
            Some(parsed.ok_or_else(unreadable)?)
        }
        _ => None,
    };
    let mut text = String::new();
    let content = match &document {
        Some(document) => {
            write_canonical(document, &mut text);
            text.as_bytes()
        }
        None => bytes,
    };
    let of = |algorithm| digest::digest(algorithm, content).as_ref().to_vec();
    let hash = match algorithm {
        "MD5" => md5::Md5::digest(content).to_vec(),
        "SHA-1" => of(&digest::SHA1_FOR_LEGACY_USE_ONLY),
        "SHA-224" => of(&digest::SHA224),
        "SHA-256" => of(&digest::SHA256),
        "SHA-384" => of(&digest::SHA384),
        "SHA-512" => of(&digest::SHA512),
        "SHA-512-224" => sha2::Sha512_224::digest(content).to_vec(),
        "SHA-512-256" => of(&digest::SHA512_256),
        _ => {
            let algorithm = algorithm.to_owned();
            return Err(SignatureError::HashAlgorithm { file: name.to_owned(), algorithm });
        }
    };
    Ok(hex::encode(hash))
}

/// As Go's encoder writes without `EscapeHTML`.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            out.push('{');
            for (at, (key, value)) in members.iter().enumerate() {
                out.push_str(if at > 0 { "," } else { "" });
                write_text(as_text(key).unwrap_or_default(), out);
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        plain => out.push_str(&crate::value::json_text(plain)),
    }
}

fn write_text(text: &str, out: &mut String) {
    let quoted = Json::from(text).to_string();
    // Two characters that are plain in JSON and line ends in JavaScript.
    out.push_str(&quoted.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [File<'static>; 3] = [
        ("a/p.rego", b"package a.p"),
        ("data.json", b"{\"b\": 1, \"a\": 1.0}"),
        (".manifest", b"{\"roots\": [\"a\"]}"),
    ];

    fn verification(demand: SignaturePolicy) -> Verification {
        let key = PublicKey { key: ConfiguredKey::new("HS256", "s3cret").expect("a key"), scope: "write".to_owned() };
        Verification { keys: BTreeMap::from([("k".to_owned(), key)]), demand, ..Verification::default() }
    }

    fn signed(files: &[File<'_>], claims: Json) -> Vec<u8> {
        let claims = claims.as_object().cloned().expect("claims");
        let signer = Signer { key: "s3cret", algorithm: "HS256", key_id: "k", claims };
        sign(files, &signer).expect("it signs").into_bytes()
    }

    #[test]
    fn documents_are_hashed_by_what_they_mean() {
        let want = "21cfd8393ad5092788b63a7645d0e8bacef6bc9a054402bcda02d1efbd4ef375";
        for text in
            [r#"{"acl":{"a":true,"n":1.0,"u":"<é>"}}"#, " { \"acl\": {\"u\": \"<\\u00e9>\", \"n\":1.0, \"a\":true}}\n"]
        {
            let hash = digest("x/data.json", text.as_bytes(), "SHA-256").expect("a digest");
            assert_eq!(hash, want);
        }
        let yaml = digest("data.yaml", b"b: [1]\na: x", "SHA-256");
        assert_eq!(yaml, digest("data.json", br#"{"a":"x","b":[1]}"#, "SHA-256"));
        assert_ne!(digest("p.rego", b"a", "SHA-256"), digest("p.rego", b"a ", "SHA-256"));
        assert!(matches!(digest("data.json", b"\"\xff{", "SHA-256"), Err(SignatureError::Document(_))));
    }

    #[test]
    fn every_hash_algorithm_of_opa_is_known() {
        for (name, want) in [
            ("MD5", "900150983cd24fb0d6963f7d28e17f72"),
            ("SHA-1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("SHA-224", "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
            ("SHA-256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("SHA-512-224", "4634270f707b6a54daae7530460842e20e37ed265ceee9a43e8924aa"),
            ("SHA-512-256", "53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23"),
        ] {
            assert_eq!(digest("f", b"abc", name).as_deref(), Ok(want), "{name}");
        }
        for (name, length) in [("SHA-384", 96), ("SHA-512", 128)] {
            assert_eq!(digest("f", b"abc", name).map(|hash| hash.len()), Ok(length), "{name}");
        }
        assert!(matches!(digest("f", b"abc", "sha-256"), Err(SignatureError::HashAlgorithm { .. })));
    }

    #[test]
    fn what_was_signed_is_believed_and_nothing_else() {
        let verification = verification(SignaturePolicy::Required);
        let check = |signatures: &[u8], files: &[File<'_>]| verification.check(Some(signatures), files, false);
        let good = signed(&FILES, json!({"scope": "write"}));
        assert_eq!(check(&good, &FILES), Ok(()));
        let reformatted = [FILES[0], ("data.json", &b"{\"a\":1.0,\"b\":1}"[..]), FILES[2]];
        assert_eq!(check(&good, &reformatted), Ok(()));
        let changed = [("a/p.rego", &b"package a.q"[..]), FILES[1], FILES[2]];
        assert_eq!(check(&good, &changed), Err(SignatureError::Digest("a/p.rego".to_owned())));
        assert_eq!(check(&good, &FILES[..2]), Err(SignatureError::NotThere(vec![".manifest".to_owned()])));
        let more = [FILES[0], FILES[1], FILES[2], ("x.rego", &b"package x"[..])];
        assert_eq!(check(&good, &more), Err(SignatureError::NotListed("x.rego".to_owned())));
        assert!(matches!(check(&signed(&FILES, json!({})), &FILES), Err(SignatureError::Scope { .. })));
        let two = String::from_utf8(good.clone()).expect("text").replace('[', "[\"x\",");
        assert!(matches!(check(two.as_bytes(), &FILES), Err(SignatureError::Malformed(_))));
        let other = String::from_utf8(good).expect("text").replace("\"]", "AA\"]");
        assert!(check(other.as_bytes(), &FILES).is_err());
        for junk in [&b"{"[..], b"[]", br#"{"signatures": "x"}"#, br#"{"signatures": ["x"]}"#, br#"{"plugin": "own"}"#]
        {
            assert!(check(junk, &FILES).is_err(), "{}", String::from_utf8_lossy(junk));
        }
    }

    #[test]
    fn keys_are_found_by_setting_then_header_and_their_algorithm_counts() {
        let mut verification = verification(SignaturePolicy::Required);
        let good = signed(&FILES, json!({"scope": "write"}));
        verification.key_id = Some("other".to_owned());
        let missing = verification.check(Some(&good), &FILES, false);
        assert_eq!(missing, Err(SignatureError::UnknownKey("other".to_owned())));
        verification.key_id = None;
        let key = ConfiguredKey::new("HS384", "s3cret").expect("a key");
        verification.keys.insert("k".to_owned(), PublicKey { key, scope: "write".to_owned() });
        assert_eq!(verification.check(Some(&good), &FILES, false), Err(SignatureError::Wrong("k".to_owned())));
        verification.keys.clear();
        assert_eq!(verification.check(Some(&good), &FILES, false), Err(SignatureError::NoKeys));
    }

    #[test]
    fn who_demands_signatures_gets_no_unsigned_bundle_and_no_unsigned_delta() {
        for (demand, key_id, snapshot, delta) in [
            (SignaturePolicy::Required, None, false, false),
            (SignaturePolicy::Optional, None, true, true),
            (SignaturePolicy::AsInOpa, None, true, true),
            (SignaturePolicy::AsInOpa, Some("k".to_owned()), false, true),
            (SignaturePolicy::Skip, Some("k".to_owned()), true, true),
        ] {
            let verification = Verification { key_id, ..verification(demand) };
            assert_eq!(verification.check(None, &FILES, false).is_ok(), snapshot, "{demand:?}");
            assert_eq!(verification.check(None, &FILES, true).is_ok(), delta, "{demand:?}");
            assert_eq!(verification.check(Some(br#"{"signatures": []}"#), &FILES, true).is_ok(), delta, "{demand:?}");
        }
    }

    #[test]
    fn excluded_files_need_not_be_listed() {
        let exclude = ["*/p.rego", "{x}"].iter().filter_map(|pattern| exclusion(pattern)).collect();
        let verification = Verification { exclude, ..verification(SignaturePolicy::Required) };
        let good = signed(&FILES[1..], json!({"scope": "write"}));
        assert_eq!(verification.check(Some(&good), &FILES, false), Ok(()));
        let deep = [("a/b/p.rego", &b"x"[..]), FILES[1], FILES[2]];
        assert_eq!(
            verification.check(Some(&good), &deep, false),
            Err(SignatureError::NotListed("a/b/p.rego".to_owned()))
        );
    }
}
