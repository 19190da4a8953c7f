//! `http.send`: what a request says, what its response becomes, and the memory of both within an evaluation. The host sends.
//!
//! Mirrors: OPA `v1/topdown/http.go`, v1.19.0.

use std::time::Duration;

use super::encoding::{unmarshal, unmarshal_yaml};
use super::time::duration;
use super::{Builtin, BuiltinError, Context, Outcome, excerpt, failed, object, operand};
use crate::eval::{ErrorKind, EvalError};
use crate::host::{Caching, HttpError, HttpRequest, HttpResponse, Pem, TlsOptions};
use crate::meter::{HEADER_BYTES, MEMBER_BYTES, Meter as _};
use crate::value::{Object, Value, lossy, metered};

pub(super) const TABLE: &[Builtin] = &[super::waiting("http.send", 1, send)];

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUIRED: &[&str] = &["method", "url"];
/// Statuses whose responses may be used again (RFC 7231 section 6.1).
const CACHEABLE: &[u16] = &[200, 203, 204, 206, 300, 301, 404, 405, 410, 414, 501];

const MEMBERS: &[&str] = &[
    "method",
    "url",
    "body",
    "enable_redirect",
    "force_json_decode",
    "force_yaml_decode",
    "headers",
    "raw_body",
    "tls_use_system_certs",
    "tls_ca_cert",
    "tls_ca_cert_file",
    "tls_ca_cert_env_variable",
    "tls_client_cert",
    "tls_client_cert_file",
    "tls_client_cert_env_variable",
    "tls_client_key",
    "tls_client_key_file",
    "tls_client_key_env_variable",
    "tls_insecure_skip_verify",
    "tls_server_name",
    "timeout",
    "cache",
    "force_cache",
    "force_cache_duration_seconds",
    "raise_error",
    "caching_mode",
    "max_retry_attempts",
    "cache_ignored_headers",
];

/// Only known members, and those that are required.
pub(super) fn check_members(context: &mut Context<'_>, request: &Object) -> Result<(), BuiltinError> {
    context.work(request.len())?;
    let refused = |what: &str, names: Vec<Value>| {
        Err(BuiltinError::Operand(format!("operand 1 {what} request parameters(s): {}", Value::set(names))))
    };
    let known = |key: &Value| key.as_str().is_some_and(|key| MEMBERS.contains(&key));
    let unknown: Vec<Value> = request.keys().filter(|key| !known(key)).cloned().collect();
    if !unknown.is_empty() {
        return refused("invalid", unknown);
    }
    let missing: Vec<Value> =
        REQUIRED.iter().filter(|key| request.get_str(key).is_none()).map(|key| Value::from(*key)).collect();
    if missing.is_empty() { Ok(()) } else { refused("missing required", missing) }
}

fn send(context: &mut Context<'_>, args: &[&Value]) -> Outcome {
    let given = object(args, 1)?;
    let raises = match given.get_str("raise_error") {
        None => true,
        Some(Value::Bool(raises)) => *raises,
        Some(_) => return Err(failed("invalid value for raise_error field")),
    };
    match answer(context, given, operand(args, 1)?) {
        Err(BuiltinError::Operand(message) | BuiltinError::Failed(message)) if !raises => {
            Ok(no_response("eval_http_send_internal_error", &message))
        }
        Ok(value) if raises => match value.at(["error", "message"]).and_then(Value::as_str) {
            Some(message) => Err(failed(message)),
            None => Ok(value),
        },
        other => other,
    }
}

/// The value with `raise_error: false` when there is no response.
fn no_response(code: &str, message: &str) -> Value {
    let error: Value = [("code", Value::from(code)), ("message", Value::from(message))].into_iter().collect();
    [("status_code", Value::from(0)), ("error", error)].into_iter().collect()
}

/// The response, or what stands for its absence; the same every time within an evaluation.
fn answer(context: &mut Context<'_>, given: &Object, whole: &Value) -> Outcome {
    check_members(context, given)?;
    let key = cache_key(context, given, whole)?;
    context.work(key.weight() / 16)?;
    let memory = ("http.send", key.clone());
    if let Some(known) = context.remembered(&memory) {
        return Ok(known);
    }
    let json = flag(given, "force_json_decode")?;
    let yaml = flag(given, "force_yaml_decode")?;
    let request = request(context, given, key)?;
    let caching = request.caching;
    let (value, keep) = match context.host.http_client().map_or_else(no_client, |client| client.send(&request)) {
        Ok(response) => {
            let keep = caching != Caching::Off || is_cacheable(response.status);
            (formatted(context, &response, json, yaml)?, keep)
        }
        Err(HttpError::Network(message)) => (no_response("eval_http_send_network_error", &message), true),
        Err(HttpError::Internal(message)) => (no_response("eval_http_send_internal_error", &message), true),
        Err(HttpError::WouldWait) => {
            return Err(EvalError::new(ErrorKind::Waiting, "http.send has to wait for an answer").into());
        }
        Err(HttpError::OutOfTime) => return Err(EvalError::budget("time, while waiting for http.send").into()),
    };
    if keep {
        context.remember(memory, value.clone())?;
    }
    Ok(value)
}

/// Responses with this status may be cached.
pub fn is_cacheable(status: u16) -> bool {
    CACHEABLE.contains(&status)
}

/// The request without the headers that `cache_ignored_headers` names.
fn cache_key(context: &mut Context<'_>, given: &Object, whole: &Value) -> Outcome {
    let (Some(ignored), Some(headers)) = (given.get_str("cache_ignored_headers"), given.get_str("headers")) else {
        return Ok(whole.clone());
    };
    let refused = || failed("cache_ignored_headers must be an array of strings");
    let ignored = ignored.as_array().filter(|it| it.iter().all(|name| name.as_str().is_some())).ok_or_else(refused)?;
    let headers = headers.as_object().ok_or_else(|| failed("invalid type for headers key"))?;
    let mut kept = Vec::new();
    for (name, value) in headers.iter() {
        if !metered::contains(context, ignored, name)? {
            context.push_member(&mut kept, (name.clone(), value.clone()))?;
        }
    }
    let kept = context.object(kept)?;
    context.allocate(given.len().saturating_add(2).saturating_mul(2 * MEMBER_BYTES))?;
    let key = given.with(Value::from("headers"), kept).with(Value::from("cache_ignored_headers"), Value::Null);
    Ok(Value::Object(key.into()))
}

fn flag(given: &Object, name: &str) -> Result<bool, BuiltinError> {
    match given.get_str(name) {
        None => Ok(false),
        Some(Value::Bool(it)) => Ok(*it),
        Some(_) => Err(failed(format!("invalid value for {name:?} field"))),
    }
}

fn string(given: &Object, name: &str) -> Result<Option<String>, BuiltinError> {
    match given.get_str(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim_matches('"').to_owned())),
        Some(_) => Err(failed(format!("{name:?} must be a string"))),
    }
}

fn whole(given: &Object, name: &str) -> Result<Option<u32>, BuiltinError> {
    let Some(value) = given.get_str(name) else { return Ok(None) };
    let number = value.as_i64().and_then(|it| u32::try_from(it).ok());
    number
        .map(Some)
        .ok_or_else(|| failed(format!("invalid value for field {name:?}, a {} that is no small number", value.kind())))
}

fn request(context: &mut Context<'_>, given: &Object, key: Value) -> Result<HttpRequest, BuiltinError> {
    let mut headers = Vec::new();
    // Texts are copied, and certificates once more.
    for value in given.values() {
        let bytes = value.as_str().map_or(0, str::len).saturating_mul(3);
        context.work(bytes / 64)?;
        context.allocate(bytes)?;
    }
    match given.get_str("headers") {
        None => {}
        Some(Value::Object(members)) => {
            for (name, value) in members.iter() {
                let name = name.as_str().ok_or_else(|| failed("invalid type for headers key"))?;
                let bytes = name.len().saturating_add(value.as_str().map_or(0, str::len));
                context.work(bytes / 64 + 1)?;
                context.allocate(bytes.saturating_add(2 * HEADER_BYTES))?;
                let refused = || failed(format!("invalid type for headers value: {}", value.kind()));
                headers.push((name.to_owned(), value.as_str().ok_or_else(refused)?.to_owned()));
            }
        }
        Some(_) => return Err(failed("invalid type for headers key")),
    }
    let body = match (string(given, "raw_body")?, given.get_str("body")) {
        (Some(raw), _) => raw,
        (None, Some(body)) => {
            let body = context.passing_json(body)?;
            context.allocate(body.len())?;
            body
        }
        (None, None) => String::new(),
    };
    match string(given, "caching_mode")?.as_deref() {
        None | Some("serialized" | "deserialized") => {}
        Some(other) => {
            return Err(failed(format!("invalid value specified for caching_mode field: {}", excerpt(other))));
        }
    }
    let by_headers = flag(given, "cache")?;
    let caching = if flag(given, "force_cache")? {
        let missing = "'force_cache' set but 'force_cache_duration_seconds' parameter is missing";
        match whole(given, "force_cache_duration_seconds")?.ok_or_else(|| failed(missing))? {
            0 => Caching::ByHeaders,
            seconds => Caching::Forced(seconds),
        }
    } else if by_headers {
        Caching::ByHeaders
    } else {
        Caching::Off
    };
    Ok(HttpRequest {
        key,
        caching,
        method: string(given, "method")?.unwrap_or_default().to_uppercase(),
        url: string(given, "url")?.unwrap_or_default(),
        headers,
        body: body.into_bytes(),
        timeout: timeout(given)?,
        follow_redirects: flag(given, "enable_redirect")?,
        retries: whole(given, "max_retry_attempts")?.unwrap_or(0),
        tls: TlsOptions {
            system_roots: flag(given, "tls_use_system_certs")?,
            roots: pem(given, "tls_ca_cert")?,
            client_certificate: pem(given, "tls_client_cert")?,
            client_key: pem(given, "tls_client_key")?,
            skip_verification: flag(given, "tls_insecure_skip_verify")?,
            server_name: string(given, "tls_server_name")?,
        },
    })
}

fn pem(given: &Object, name: &str) -> Result<Vec<Pem>, BuiltinError> {
    let sources = [
        string(given, name)?.map(|text| Pem::Text(text.replace("\\n", "\n"))),
        string(given, &format!("{name}_file"))?.map(Pem::File),
        string(given, &format!("{name}_env_variable"))?.map(Pem::Variable),
    ];
    Ok(sources.into_iter().flatten().collect())
}

/// A duration in Go's words, or nanoseconds.
fn timeout(given: &Object) -> Result<Duration, BuiltinError> {
    let nanoseconds = match given.get_str("timeout") {
        None => return Ok(DEFAULT_TIMEOUT),
        Some(Value::String(text)) => match text.parse::<i64>() {
            Ok(nanoseconds) => nanoseconds,
            Err(_) => {
                duration(text).map_err(|error| failed(format!("invalid timeout value {}: {error}", excerpt(text))))?
            }
        },
        Some(number @ Value::Number(_)) => {
            let refused = || failed(format!("invalid timeout number value {number}, must be int64"));
            number.as_i64().ok_or_else(refused)?
        }
        Some(other) => return Err(super::wrong_type(1, other, &["string", "number"])),
    };
    // Go: no timeout. Ours is never longer than the check.
    let wanted = u64::try_from(nanoseconds).ok().filter(|it| *it > 0).map(Duration::from_nanos);
    Ok(wanted.unwrap_or(Duration::MAX))
}

fn formatted(context: &mut Context<'_>, response: &HttpResponse, json: bool, yaml: bool) -> Outcome {
    // The body as it came, and as text.
    context.work(response.body.len() / 16)?;
    context.allocate(response.body.len().saturating_mul(3).saturating_add(16 * MEMBER_BYTES))?;
    let content_type = response.header("content-type").unwrap_or_default();
    let text = lossy(&response.body);
    let body = if json || is_json(content_type) {
        or_null(unmarshal(context, &text))?
    } else if yaml || content_type.contains("application/yaml") || content_type.contains("application/x-yaml") {
        or_null(unmarshal_yaml(context, &text))?
    } else {
        Value::Null
    };
    let mut headers: Vec<(Value, Value)> = Vec::new();
    for (name, value) in &response.headers {
        context.work(4)?;
        context.allocate(name.len().saturating_add(value.len()).saturating_add(2 * MEMBER_BYTES))?;
        let (name, value) = (Value::from(name), Value::from(value));
        match headers.iter_mut().find(|(it, _)| *it == name) {
            Some((_, values)) => {
                let all = values.as_array().unwrap_or_default().iter().cloned().chain([value]).collect();
                *values = Value::array(all);
            }
            None => headers.push((name, Value::array(vec![value]))),
        }
    }
    Ok([
        ("status", Value::from(format!("{} {}", response.status, response.reason))),
        ("status_code", Value::from(u32::from(response.status))),
        ("body", body),
        ("raw_body", Value::from(text)),
        ("headers", Value::object(headers)),
    ]
    .into_iter()
    .collect())
}

/// An undecodable body is null.
fn or_null(decoded: Outcome) -> Outcome {
    match decoded {
        Err(BuiltinError::Halt(error)) => Err(error.into()),
        decoded => Ok(decoded.unwrap_or(Value::Null)),
    }
}

fn is_json(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media.strip_prefix("application/").is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

/// The answer of a host that sends no requests.
fn no_client() -> Result<HttpResponse, HttpError> {
    Err(HttpError::Internal("http.send is not enabled".to_owned()))
}
