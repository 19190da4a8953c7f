//! JSON Web Tokens.
//!
//! Mirrors: OPA `v1/topdown/tokens.go`, v1.19.0. Whether a signature is right is remembered through the host; everything
//! else is looked at on every call.

use aws_lc_rs::digest::{Context as Digest, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use stepgate_jose::{Algorithm, Bits, VerifyingKey};

use super::crypto::keys::{NamedKey, jwks, sign, verifying_keys};
use super::encoding::{decode_base64url, hex, unmarshal};
use super::{Builtin, BuiltinError, Context, Outcome, excerpt, failed, function, object, operand, text};
use crate::eval::EvalError;
use crate::meter::{HEADER_BYTES, Meter as _};
use crate::value::{Number, Value, lossy};

pub(super) const TABLE: &[Builtin] = &[
    function("io.jwt.decode", 1, |context, args| decode(context, text(args, 1)?)),
    function("io.jwt.verify_rs256", 2, |context, args| verify(context, args, Algorithm::Rs(Bits::B256))),
    function("io.jwt.verify_rs384", 2, |context, args| verify(context, args, Algorithm::Rs(Bits::B384))),
    function("io.jwt.verify_rs512", 2, |context, args| verify(context, args, Algorithm::Rs(Bits::B512))),
    function("io.jwt.verify_ps256", 2, |context, args| verify(context, args, Algorithm::Ps(Bits::B256))),
    function("io.jwt.verify_ps384", 2, |context, args| verify(context, args, Algorithm::Ps(Bits::B384))),
    function("io.jwt.verify_ps512", 2, |context, args| verify(context, args, Algorithm::Ps(Bits::B512))),
    function("io.jwt.verify_es256", 2, |context, args| verify(context, args, Algorithm::Es(Bits::B256))),
    function("io.jwt.verify_es384", 2, |context, args| verify(context, args, Algorithm::Es(Bits::B384))),
    function("io.jwt.verify_es512", 2, |context, args| verify(context, args, Algorithm::Es(Bits::B512))),
    function("io.jwt.verify_eddsa", 2, |context, args| verify(context, args, Algorithm::EdDsa)),
    function("io.jwt.verify_hs256", 2, |context, args| verify_secret(context, args, Bits::B256)),
    function("io.jwt.verify_hs384", 2, |context, args| verify_secret(context, args, Bits::B384)),
    function("io.jwt.verify_hs512", 2, |context, args| verify_secret(context, args, Bits::B512)),
    function("io.jwt.decode_verify", 2, decode_verify),
    super::changing("io.jwt.encode_sign", 3, |context, args| {
        let mut part = |position: usize| -> Result<String, BuiltinError> {
            let text = context.passing_json(operand(args, position)?)?;
            context.allocate(text.len())?;
            Ok(text)
        };
        let (header, payload, key) = (part(1)?, part(2)?, part(3)?);
        encode_sign(context, &header, &payload, &key)
    }),
    super::changing("io.jwt.encode_sign_raw", 3, |context, args| {
        encode_sign(context, text(args, 1)?, text(args, 2)?, text(args, 3)?)
    }),
];

/// Levels of tokens inside tokens.
const MAX_NESTING: usize = 8;

/// A compact token taken apart (RFC 7515 section 7.1).
struct Token<'t> {
    header: &'t str,
    payload: &'t str,
    signature: &'t str,
}

impl<'t> Token<'t> {
    fn parse(text: &'t str) -> Result<Self, BuiltinError> {
        if !text.contains('.') {
            return Err(failed("encoded JWT had no period separators"));
        }
        let mut parts = text.split('.');
        match (parts.next(), parts.next(), parts.next(), parts.count()) {
            (Some(header), Some(payload), Some(signature), 0) => Ok(Self { header, payload, signature }),
            _ => Err(failed(format!("encoded JWT must have 3 sections, found {}", text.split('.').count()))),
        }
    }

    fn signed(&self) -> Vec<u8> {
        format!("{}.{}", self.header, self.payload).into_bytes()
    }

    fn signature(&self) -> Result<Vec<u8>, BuiltinError> {
        decode_base64url(self.signature)
    }

    fn header(&self, context: &mut Context<'_>) -> Outcome {
        let bytes = decode_base64url(self.header)
            .map_err(|error| failed(format!("JWT header had invalid encoding: {}", error)))?;
        let header =
            json_object(context, &lossy(&bytes)).map_err(|error| failed(format!("bad JWT header: {}", error)))?;
        if header.member("enc").is_some() {
            return Err(failed("JWT is a JWE object, which is not supported"));
        }
        Ok(header)
    }

    fn payload(&self) -> Result<String, BuiltinError> {
        let bytes = decode_base64url(self.payload)
            .map_err(|error| failed(format!("JWT payload had invalid encoding: {}", error)))?;
        Ok(lossy(&bytes))
    }
}

fn json_object(context: &mut Context<'_>, text: &str) -> Outcome {
    let value = unmarshal(context, text).map_err(|error| failed(format!("invalid JSON: {}", error)))?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(failed("decoded JSON type was not an Object")),
    }
}

/// The longest token: verifying it and taking it apart cannot be interrupted.
const MAX_TOKEN_BYTES: usize = 4 << 20;

/// Charges the copies of a token's parts, and the work on them.
fn charge_token(context: &mut Context<'_>, token: &str) -> Result<(), EvalError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(EvalError::budget("a token is too long"));
    }
    context.work(token.len() / 8)?;
    context.allocate(token.len().saturating_mul(8).saturating_add(8 * HEADER_BYTES))
}

/// Charges the keys that are read from a text.
fn read_keys(context: &mut Context<'_>, text: &str) -> Result<Vec<NamedKey>, BuiltinError> {
    if text.len() > MAX_KEYS_BYTES {
        return Err(EvalError::budget("a set of keys is too long").into());
    }
    context.work(text.len() / 4)?;
    context.allocate(text.len().saturating_mul(KEY_BYTES_FACTOR))?;
    let keys = verifying_keys(text).map_err(failed);
    context.release(text.len().saturating_mul(KEY_BYTES_FACTOR / 2));
    keys
}

/// The longest set of keys: reading it cannot be interrupted.
const MAX_KEYS_BYTES: usize = 256 << 10;
/// Bytes for each byte of a set of keys: its document, and the keys.
const KEY_BYTES_FACTOR: usize = 32;
/// Steps of one verification with an asymmetric key, beside those for the message.
const VERIFICATION_STEPS: usize = 10_000;

fn decode(context: &mut Context<'_>, given: &str) -> Outcome {
    charge_token(context, given)?;
    let mut given = given.to_owned();
    for _ in 0..MAX_NESTING {
        let token = Token::parse(&given)?;
        let header = token.header(context)?;
        let payload = token.payload()?;
        if header.member("cty").and_then(Value::as_str) == Some("JWT") {
            given = payload.trim_matches(['"', '\'']).to_owned();
            continue;
        }
        let payload = json_object(context, &payload)?;
        let signature =
            token.signature().map_err(|error| failed(format!("JWT signature had invalid encoding: {}", error)))?;
        // Go keeps bytes in strings; what is not UTF-8 must not change on the way to hexadecimal.
        let signature = hex(&signature);
        return Ok(Value::array(vec![header, payload, Value::from(signature)]));
    }
    Err(failed("tokens are nested too deeply"))
}

/// The header parameters that say how to verify.
struct Header {
    alg: String,
    kid: String,
    cty: String,
    /// Every critical parameter is known (RFC 7515 section 4.1.11).
    understood: bool,
}

impl Header {
    fn parse(header: &Value) -> Result<Self, BuiltinError> {
        let text = |name: &str| match header.member(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.to_string()),
            Some(_) => Err(failed(format!("{name}: must be a string"))),
        };
        text("typ")?;
        let mut understood = true;
        if let Some(critical) = header.member("crit") {
            let list = critical.as_array().ok_or_else(|| failed("crit: must be a list"))?;
            if list.is_empty() {
                return Err(failed("crit: must be a nonempty list"));
            }
            for name in list {
                // Members that are no names are not understood (RFC 7515 section 4.1.11).
                understood &= name.as_str().is_some_and(|name| {
                    ["alg", "kid", "typ", "cty", "crit"].contains(&name) || header.member(name).is_none()
                });
            }
        }
        Ok(Self { alg: text("alg")?, kid: text("kid")?, cty: text("cty")?, understood })
    }
}

/// The key of a remembered signature.
fn memory_key(token: &str, key: &str, algorithm: &str) -> [u8; 32] {
    let mut digest = Digest::new(&SHA256);
    for part in [token, key, algorithm] {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part.as_bytes());
    }
    digest.finish().as_ref().try_into().unwrap_or_default()
}

/// One of `keys` made the signature: the one that is named, or any whose algorithm fits.
fn signed_by(
    context: &mut Context<'_>,
    keys: &[NamedKey],
    header: &Header,
    algorithm: Algorithm,
    token: &Token<'_>,
    signature: &[u8],
) -> Result<bool, BuiltinError> {
    let signed = token.signed();
    if !header.kid.is_empty() {
        context.work(keys.len())?;
        if let Some(named) = keys.iter().find(|key| key.kid.as_deref() == Some(&header.kid)) {
            context.work(VERIFICATION_STEPS)?;
            return Ok(named.key.verifies(algorithm, &signed, signature));
        }
    }
    for key in keys.iter().filter(|key| key.alg.as_deref().is_none_or(|alg| alg == header.alg)) {
        context.work(VERIFICATION_STEPS.saturating_add(signed.len() / 16))?;
        if key.key.verifies(algorithm, &signed, signature) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn verify(context: &mut Context<'_>, args: &[&Value], algorithm: Algorithm) -> Outcome {
    let (token_text, key_text) = (text(args, 1)?, text(args, 2)?);
    charge_token(context, token_text)?;
    context.work(key_text.len() / 16)?;
    let memory = memory_key(token_text, key_text, &format!("{algorithm:?}"));
    if let Some(valid) = context.host.signatures().and_then(|cache| cache.get(&memory)) {
        return Ok(Value::Bool(valid));
    }
    let token = Token::parse(token_text)?;
    let keys = read_keys(context, key_text)?;
    let signature = token.signature()?;
    let header = Header::parse(&token.header(context)?)?;
    let valid = signed_by(context, &keys, &header, algorithm, &token, &signature)?;
    if let Some(cache) = context.host.signatures() {
        cache.insert(memory, valid);
    }
    Ok(Value::Bool(valid))
}

fn verify_secret(context: &mut Context<'_>, args: &[&Value], bits: Bits) -> Outcome {
    let (token_text, secret) = (text(args, 1)?, text(args, 2)?);
    charge_token(context, token_text)?;
    context.work(secret.len() / 16)?;
    context.allocate(secret.len())?;
    let token = Token::parse(token_text)?;
    let signature = token.signature()?;
    let key = VerifyingKey::Secret(secret.as_bytes().to_vec());
    Ok(Value::Bool(key.verifies(Algorithm::Hs(bits), &token.signed(), &signature)))
}

/// The constraints of `io.jwt.decode_verify`.
#[derive(Default)]
struct Constraints {
    keys: Option<(Vec<NamedKey>, String)>,
    secret: String,
    alg: String,
    iss: String,
    aud: String,
    /// Nanoseconds.
    time: f64,
}

impl Constraints {
    fn parse(context: &mut Context<'_>, args: &[&Value]) -> Result<Self, BuiltinError> {
        let mut constraints = Self::default();
        let mut time = None;
        for (name, value) in object(args, 2)?.iter() {
            let name = name.as_str().unwrap_or_default();
            context.step()?;
            context.allocate(value.as_str().map_or(0, str::len))?;
            let text = || {
                value
                    .as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| failed(format!("{} constraint: must be a string", excerpt(name))))
            };
            match name {
                "cert" => {
                    let text = text()?;
                    constraints.keys = Some((read_keys(context, &text)?, text));
                }
                "secret" => constraints.secret = text()?,
                "alg" => constraints.alg = text()?,
                "iss" => constraints.iss = text()?,
                "aud" => constraints.aud = text()?,
                "time" => {
                    let at = value.as_f64().ok_or_else(|| failed("token time constraint: must be a number"))?;
                    if at < 0.0 {
                        return Err(failed("token time constraint: must not be negative"));
                    }
                    time = Some(at);
                }
                other => return Err(failed(format!("unknown token validation constraint: {}", excerpt(other)))),
            }
        }
        constraints.time = match time {
            Some(time) => time,
            None => Number::from(context.now_ns()).as_f64(),
        };
        match (constraints.keys.is_some(), !constraints.secret.is_empty()) {
            (true, true) => Err(failed("duplicate key constraints")),
            (false, false) => Err(failed("no key constraint")),
            _ => Ok(constraints),
        }
    }

    fn verify(
        &self,
        context: &mut Context<'_>,
        token_text: &str,
        token: &Token<'_>,
        header: &Header,
    ) -> Result<bool, BuiltinError> {
        let signature = token.signature()?;
        let Some(algorithm) = Algorithm::named(&header.alg) else { return Ok(false) };
        match &self.keys {
            Some((keys, key_text)) => {
                let memory = memory_key(token_text, key_text, &format!("{algorithm:?}"));
                if let Some(valid) = context.host.signatures().and_then(|cache| cache.get(&memory)) {
                    return Ok(valid);
                }
                let valid = signed_by(context, keys, header, algorithm, token, &signature)?;
                if let Some(cache) = context.host.signatures() {
                    cache.insert(memory, valid);
                }
                Ok(valid)
            }
            None => {
                context.work(self.secret.len() / 16)?;
                let key = VerifyingKey::Secret(self.secret.as_bytes().to_vec());
                Ok(key.verifies(algorithm, &token.signed(), &signature))
            }
        }
    }

    /// The registered claims (RFC 7519 section 4.1).
    fn accept(&self, payload: &Value) -> Result<bool, BuiltinError> {
        if !self.iss.is_empty() && payload.member("iss").and_then(Value::as_str) != Some(&self.iss) {
            return Ok(false);
        }
        let meant = |value: &Value| value.as_str() == Some(&self.aud);
        let audience = match payload.member("aud") {
            None => self.aud.is_empty(),
            Some(Value::Array(list)) => list.iter().any(meant),
            Some(one) => meant(one),
        };
        if !audience {
            return Ok(false);
        }
        let now = Number::from_f64(self.time / 1e9);
        let date = |name: &str| match payload.member(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number.clone())),
            Some(_) => Err(failed(format!("{name} value must be a number"))),
        };
        if date("exp")?.is_some_and(|expires| now >= expires) {
            return Ok(false);
        }
        Ok(date("nbf")?.is_none_or(|start| now >= start))
    }
}

fn decode_verify(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    charge_token(context, text(args, 1)?)?;
    let mut given = text(args, 1)?.to_owned();
    let constraints = Constraints::parse(context, args)?;
    let unverified = || Value::array(vec![Value::Bool(false), Value::empty_object(), Value::empty_object()]);
    for _ in 0..MAX_NESTING {
        let token = Token::parse(&given)?;
        let header_value = token.header(context)?;
        let header = Header::parse(&header_value)?;
        if header.alg.is_empty()
            || !header.understood
            || (!constraints.alg.is_empty() && constraints.alg != header.alg)
            || !constraints.verify(context, &given, &token, &header)?
        {
            return Ok(unverified());
        }
        let payload = token.payload()?;
        if header.cty.eq_ignore_ascii_case("JWT") {
            given = payload;
            continue;
        }
        let payload = json_object(context, &payload)?;
        if !constraints.accept(&payload)? {
            return Ok(unverified());
        }
        return Ok(Value::array(vec![Value::Bool(true), header_value, payload]));
    }
    Err(failed("tokens are nested too deeply"))
}

fn encode_sign(context: &mut Context<'_>, header: &str, payload: &str, key: &str) -> Outcome {
    charge_token(context, header)?;
    charge_token(context, payload)?;
    if key.len() > MAX_KEYS_BYTES {
        return Err(EvalError::budget("a set of keys is too long").into());
    }
    let document = unmarshal(context, key)?;
    let keys = jwks(&document);
    let key = keys.first().copied().ok_or_else(|| failed("no keys found in JWK set"))?;
    let bad_header = |why: &str| failed(format!("missing or invalid 'alg' header: {why}"));
    if header.is_empty() {
        return Err(bad_header("cannot parse JSON: cannot parse empty string"));
    }
    let parsed = match unmarshal(context, header) {
        Ok(parsed) => parsed,
        // A lone word is no header, but not for want of closing brackets.
        Err(_) if !header.starts_with(['{', '[', '"']) => Value::Null,
        Err(error) => return Err(bad_header(&format!("cannot parse JSON: {}", error))),
    };
    let alg =
        parsed.member("alg").and_then(Value::as_str).ok_or_else(|| bad_header("jwsbb: header \"alg\" not found"))?;
    let algorithm = Algorithm::named(alg).ok_or_else(|| failed(format!("unknown JWS algorithm: {}", excerpt(alg))))?;
    let typ = parsed.member("typ").and_then(Value::as_str);
    if matches!(typ, None | Some("JWT")) && unmarshal(context, payload).is_err() {
        return Err(failed("type is JWT but payload is not JSON"));
    }
    // A private operation takes some hundred times as long as a public one.
    context.work(10 * VERIFICATION_STEPS)?;
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = sign(key, algorithm, signed.as_bytes()).map_err(failed)?;
    Ok(Value::from(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
}
