//! Requests signed for Amazon Web Services (Signature Version 4).
//!
//! Mirrors: OPA `v1/topdown/providers.go` and `internal/providers/aws/signing_v4.go`, v1.19.0.

use std::collections::BTreeMap;

use aws_lc_rs::{digest, hmac};
use chrono::{DateTime, Utc};

use super::encoding::{hex, uri};
use super::http::check_members;
use super::{Builtin, BuiltinError, Context, Outcome, function, number, object, wrong_type};
use crate::eval::EvalError;
use crate::meter::{MEMBER_BYTES, Meter as _};
use crate::value::{Object, Value};

pub(super) const TABLE: &[Builtin] = &[function("providers.aws.sign_req", 3, sign_request)];

/// The most bytes that are signed.
const MAX_SIGNED_BYTES: usize = 8 << 20;
const REQUIRED_SETTINGS: &[&str] = &["aws_service", "aws_access_key", "aws_secret_access_key", "aws_region"];
/// Headers that proxies change on the way.
const NOT_SIGNED: &[&str] = &["authorization", "user-agent", "x-amzn-trace-id"];

fn sign_request(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let (request, settings) = (object(args, 1)?, object(args, 2)?);
    required(settings)?;
    let time = number(args, 3)?.as_i64();
    let time = time.ok_or_else(|| refused(3, "could not convert time_ns value into a unix timestamp"))?;

    check_members(context, request)?;
    let invalid: Vec<Value> = ["method", "url"]
        .into_iter()
        .filter(|name| request.get_str(name).is_none_or(|it| it.as_str().is_none()))
        .map(Value::from)
        .collect();
    if !invalid.is_empty() {
        let named = Value::set(invalid);
        return Err(refused(1, &format!("invalid values for required request parameters(s): {named}")));
    }

    let no_headers = Object::default();
    let headers = match request.get_str("headers") {
        None => &no_headers,
        Some(Value::Object(headers)) => headers,
        Some(other) => return Err(wrong_type(0, other, &["object"])),
    };
    let mut bytes = request.get_str("raw_body").and_then(Value::as_str).map_or(0, str::len).saturating_mul(2);
    for (name, value) in headers.iter().chain(request.iter()).chain(settings.iter()) {
        context.step()?;
        // Names and values are put in small letters, sorted, joined and kept.
        let text = |value: &Value| value.as_str().map_or(0, str::len);
        bytes = bytes.saturating_add(text(name).saturating_add(text(value)).saturating_mul(8));
        bytes = bytes.saturating_add(4 * MEMBER_BYTES);
    }
    if bytes > MAX_SIGNED_BYTES {
        return Err(EvalError::budget("a request is too long to be signed").into());
    }
    context.work(bytes / 32)?;
    context.allocate(bytes)?;
    let body = match (request.get_str("raw_body"), request.get_str("body")) {
        (Some(raw), _) => raw.as_str().unwrap_or_default().to_owned(),
        (None, Some(body)) => context.passing_json(body)?,
        (None, None) => String::new(),
    };
    if body.len() > MAX_SIGNED_BYTES {
        return Err(EvalError::budget("a request is too long to be signed").into());
    }
    context.work(body.len() / 16)?;
    context.allocate(body.len())?;
    let payload = match settings.get_str("disable_payload_signing") {
        Some(Value::Bool(true)) => "UNSIGNED-PAYLOAD".to_owned(),
        None | Some(Value::Bool(false)) => sha256(body.as_bytes()),
        Some(_) => return Err(refused(2, "invalid value for 'disable_payload_signing' in AWS config")),
    };

    let signing = Signing {
        method: string(request, "method"),
        url: Url::parse(context, string(request, "url"))?,
        service: string(settings, "aws_service"),
        access_key: string(settings, "aws_access_key"),
        secret_key: string(settings, "aws_secret_access_key"),
        region: string(settings, "aws_region"),
        time: DateTime::<Utc>::from_timestamp_nanos(time).format("%Y%m%dT%H%M%SZ").to_string(),
        payload,
    };
    let mut added = vec![("host", signing.url.host.clone()), ("x-amz-date", signing.time.clone())];
    if ["s3", "glacier"].contains(&signing.service) {
        added.push(("x-amz-content-sha256", signing.payload.clone()));
    }
    let session = string(settings, "aws_session_token");
    if !session.is_empty() {
        added.push(("x-amz-security-token", session.to_owned()));
    }
    let mut signed: BTreeMap<String, String> =
        added.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let mut all: Vec<(Value, Value)> = Vec::new();
    for (name, value) in headers.iter() {
        let (name, value) = (name.as_str().unwrap_or_default(), value.as_str().unwrap_or_default());
        all.push((Value::from(name), Value::from(value)));
        let lower = name.to_lowercase();
        if !NOT_SIGNED.contains(&lower.as_str()) {
            signed.insert(lower, value.to_owned());
        }
    }
    all.push((Value::from("Authorization"), Value::from(signing.authorization(&signed))));
    all.extend(added.into_iter().map(|(name, value)| (Value::from(name), Value::from(value))));
    Ok(Value::Object(request.with(Value::from("headers"), Value::object(all)).into()))
}

fn refused(position: usize, why: &str) -> BuiltinError {
    BuiltinError::Operand(format!("operand {position} {why}"))
}

fn string<'o>(object: &'o Object, name: &str) -> &'o str {
    object.get_str(name).and_then(Value::as_str).unwrap_or_default()
}

/// Every setting that is required is there, and a string.
fn required(settings: &Object) -> Result<(), BuiltinError> {
    let those = |bad: fn(Option<&Value>) -> bool| -> Vec<Value> {
        REQUIRED_SETTINGS.iter().filter(|name| bad(settings.get_str(name))).map(|name| Value::from(*name)).collect()
    };
    let missing = those(|setting| setting.is_none());
    if !missing.is_empty() {
        return Err(refused(2, &format!("missing required AWS config parameters(s): {}", Value::set(missing))));
    }
    let invalid = those(|setting| setting.is_some_and(|setting| setting.as_str().is_none()));
    if !invalid.is_empty() {
        return Err(refused(
            2,
            &format!("invalid values for required AWS config parameters(s): {}", Value::set(invalid)),
        ));
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// The parts of a URL that are signed.
struct Url {
    host: String,
    path: String,
    query: String,
}

impl Url {
    fn parse(context: &mut Context<'_>, given: &str) -> Result<Self, BuiltinError> {
        let parts = uri::parse(context, given)?;
        let part = |name: &str| parts.member(name).and_then(Value::as_str).unwrap_or_default();
        let name = match part("hostname") {
            v6 if v6.contains(':') => format!("[{v6}]"),
            name => name.to_owned(),
        };
        let host = match part("port") {
            "" => name,
            port => format!("{name}:{port}"),
        };
        Ok(Self { host, path: uri::escaped_path(context, part("raw_path"))?, query: part("raw_query").to_owned() })
    }
}

struct Signing<'r> {
    method: &'r str,
    url: Url,
    service: &'r str,
    access_key: &'r str,
    secret_key: &'r str,
    region: &'r str,
    /// ISO 8601, basic form.
    time: String,
    /// The digest of the body.
    payload: String,
}

impl Signing<'_> {
    /// The value of the header `Authorization`.
    fn authorization(&self, headers: &BTreeMap<String, String>) -> String {
        let date = self.time.get(..8).unwrap_or_default();
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let names = headers.keys().map(String::as_str).collect::<Vec<_>>().join(";");
        let Url { path, query, .. } = &self.url;
        let request = format!("{}\n{path}\n{query}\n{lines}\n{names}\n{}", self.method, self.payload);

        let scope = format!("{date}/{}/{}/aws4_request", self.region, self.service);
        let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", self.time, sha256(request.as_bytes()));
        let mut key = format!("AWS4{}", self.secret_key).into_bytes();
        for part in [date, self.region, self.service, "aws4_request"] {
            key = mac(&key, part);
        }
        let signature = hex(&mac(&key, &to_sign));
        format!("AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}", self.access_key)
    }
}

fn mac(key: &[u8], message: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message.as_bytes()).as_ref().to_vec()
}
