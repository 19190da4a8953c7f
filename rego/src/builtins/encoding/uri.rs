//! `uri.parse`: URLs as Go's `url.Parse` takes them apart.
//!
//! Mirrors: OPA `v1/topdown/uri.go`, main of 2026-08-20; Go `net/url`, 1.25.

use std::net::IpAddr;

use super::super::{BuiltinError, Context, Outcome, failed};
use super::query::{invalid_escape, percent_decode};
use crate::meter::{MEMBER_BYTES, Meter as _};
use crate::value::{Value, quoted};

type Parts = Vec<(&'static str, String)>;

pub(crate) fn parse(context: &mut Context<'_>, given: &str) -> Outcome {
    context.work(given.len() / 8)?;
    context.allocate(given.len().saturating_mul(8).saturating_add(16 * MEMBER_BYTES))?;
    let (url, fragment) = given.split_once('#').unwrap_or((given, ""));
    let mut parts = Parts::new();
    // Like Go, an error shows the text without its fragment, unless that is what is wrong.
    main_part(context, url, &mut parts).map_err(|error| shown(url, error))?;
    if !fragment.is_empty() {
        let fragment = percent_decode(context, fragment, false).map_err(|error| shown(given, error))?;
        parts.push(("fragment", fragment));
    }
    Ok(parts.into_iter().map(|(key, value)| (key, Value::from(value))).collect())
}

fn shown(url: &str, error: BuiltinError) -> BuiltinError {
    match error {
        BuiltinError::Failed(why) => failed(format!("parse {}: {why}", quoted(url))),
        other => other,
    }
}

fn main_part(context: &mut Context<'_>, url: &str, parts: &mut Parts) -> Result<(), BuiltinError> {
    if url.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return Err(failed("net/url: invalid control character in URL"));
    }
    let (scheme, rest) = scheme(url).ok_or_else(|| failed("missing protocol scheme"))?;
    if !scheme.is_empty() {
        parts.push(("scheme", scheme.to_ascii_lowercase()));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !query.is_empty() {
        parts.push(("raw_query", query.to_owned()));
    }
    if !rest.starts_with('/') {
        if !scheme.is_empty() {
            // Opaque, such as `mailto:a@b`: there is no path.
            return Ok(());
        }
        if rest.split('/').next().is_some_and(|first| first.contains(':')) {
            return Err(failed("first path segment in URL cannot contain colon"));
        }
    }
    let path = match rest.strip_prefix("//") {
        Some(after) if !scheme.is_empty() || !rest.starts_with("///") => {
            let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
            let host = match authority.rsplit_once('@') {
                None => host(context, authority)?,
                Some((user, name)) => {
                    let host = host(context, name)?;
                    user_information(user)?;
                    host
                }
            };
            split_host(&host, parts);
            path
        }
        _ => rest,
    };
    if !path.is_empty() {
        let decoded = percent_decode(context, path, false)?;
        // The spelling counts only where the path has several.
        let raw = if escaped(&decoded) == path { decoded.clone() } else { path.to_owned() };
        parts.push(("path", decoded));
        parts.push(("raw_path", raw));
    }
    Ok(())
}

/// The scheme, empty if there is none, and what follows.
fn scheme(text: &str) -> Option<(&str, &str)> {
    for (at, char) in text.char_indices() {
        match char {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return None,
            ':' => return Some((text.get(..at)?, text.get(at.saturating_add(1)..)?)),
            _ => break,
        }
    }
    Some(("", text))
}

/// Name and password are checked, and not shown.
fn user_information(user: &str) -> Result<(), BuiltinError> {
    if !user.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte)) {
        return Err(failed("net/url: invalid userinfo"));
    }
    invalid_escape(user, |_| true).map_or(Ok(()), |escape| Err(escape_error(&escape)))
}

fn escape_error(escape: &str) -> BuiltinError {
    failed(format!("invalid URL escape {}", quoted(escape)))
}

/// A host may contain this byte unescaped.
fn is_plain_in_host(byte: u8) -> bool {
    byte >= 0x80 || byte.is_ascii_alphanumeric() || b"!$&'()*+,;=:[]<>\"-_.~".contains(&byte)
}

/// A part of a host. Escapes stand for bytes that are not ASCII (RFC 3986 section 3.2.2), or for a percent sign before a zone; in a zone
/// also for what could stand there as it is, and for spaces.
fn host_text(context: &mut Context<'_>, text: &str, is_zone: bool) -> Result<String, BuiltinError> {
    let is_good = |code: u8| match is_zone {
        _ if code == b'%' => true,
        true => code == b' ' || is_plain_in_host(code),
        false => code >= 0x80,
    };
    if let Some(escape) = invalid_escape(text, is_good) {
        return Err(escape_error(&escape));
    }
    if let Some(char) = text.chars().find(|char| char.is_ascii() && *char != '%' && !is_plain_in_host(*char as u8)) {
        return Err(failed(format!("invalid character {} in host name", quoted(char.encode_utf8(&mut [0; 4])))));
    }
    percent_decode(context, text, false)
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').map_or(text.is_empty(), |digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Host and port, decoded; an address in brackets is one of IPv6.
fn host(context: &mut Context<'_>, given: &str) -> Result<String, BuiltinError> {
    let bad_port = |port: &str| failed(format!("invalid port {} after host", quoted(port)));
    let Some((before, inner)) = given.rsplit_once('[') else {
        if let Some(port) = given.rfind(':').and_then(|at| given.get(at..)).filter(|port| !is_port(port)) {
            return Err(bad_port(port));
        }
        return host_text(context, given, false);
    };
    let (inner, port) = inner.rsplit_once(']').ok_or_else(|| failed("missing ']' in host"))?;
    if !is_port(port) {
        return Err(bad_port(port));
    }
    if !before.is_empty() {
        return Err(failed("invalid IP-literal"));
    }
    let (name, zone) = inner.split_at(inner.find("%25").unwrap_or(inner.len()));
    let name = host_text(context, name, false)?;
    let zone = host_text(context, zone, true)?;
    let address: IpAddr =
        name.parse().map_err(|_| failed(format!("invalid host: ParseAddr({}): unable to parse IP", quoted(&name))))?;
    if address.is_ipv4() || zone == "%" {
        return Err(failed("invalid IP-literal"));
    }
    Ok(format!("[{name}{zone}]{port}"))
}

/// Name and port, as Go's `Hostname` and `Port` give them.
fn split_host(host: &str, parts: &mut Parts) {
    let at = host.rfind(':').filter(|at| host.get(*at..).is_some_and(is_port)).unwrap_or(host.len());
    let (name, port) = host.split_at(at);
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    if !bare.is_empty() {
        parts.push(("hostname", bare.to_owned()));
    }
    let digits = port.strip_prefix(':').unwrap_or(port);
    if !digits.is_empty() {
        parts.push(("port", digits.to_owned()));
    }
}

/// A path may contain this byte unescaped, as Go writes it.
fn is_plain_in_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

/// A path as Go spells it.
fn escaped(path: &str) -> String {
    if path == "*" {
        return path.to_owned();
    }
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if is_plain_in_path(byte) { out.push(char::from(byte)) } else { out.push_str(&format!("%{byte:02X}")) }
    }
    out
}

/// A path as Go's `URL.EscapedPath` spells it: as given if that is a valid spelling, else escaped anew.
pub(crate) fn escaped_path(context: &mut Context<'_>, given: &str) -> Result<String, BuiltinError> {
    if given.bytes().all(|byte| is_plain_in_path(byte) || b"!'()*[]%".contains(&byte)) {
        return Ok(given.to_owned());
    }
    Ok(escaped(&percent_decode(context, given, false)?))
}
