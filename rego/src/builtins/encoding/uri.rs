//! `uri.parse`: URLs as Go's `url.Parse` takes them apart.

use super::super::{BuiltinError, Outcome, failed};
use super::query::percent_decode;
use crate::value::{Value, quoted};

pub fn parse(given: &str) -> Outcome {
    if given.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return Err(refused(given, "net/url: invalid control character in URL"));
    }
    let mut members: Vec<(&str, String)> = Vec::new();
    let (rest, fragment) = given.split_once('#').unwrap_or((given, ""));
    if !fragment.is_empty() {
        members.push(("fragment", percent_decode(fragment, false)?));
    }
    let (scheme, rest) = scheme(rest).ok_or_else(|| refused(given, "missing protocol scheme"))?;
    if !scheme.is_empty() {
        members.push(("scheme", scheme.to_ascii_lowercase()));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !query.is_empty() {
        members.push(("raw_query", query.to_owned()));
    }
    if !rest.starts_with('/') {
        if !scheme.is_empty() {
            // Opaque, such as `mailto:a@b`: there is no path.
            return Ok(collected(members));
        }
        if rest.split('/').next().is_some_and(|first| first.contains(':')) {
            return Err(refused(given, "first path segment in URL cannot contain colon"));
        }
    }
    let path = match rest.strip_prefix("//") {
        Some(after) if !scheme.is_empty() || !rest.starts_with("///") => {
            let at = after.find('/').unwrap_or(after.len());
            let (authority, path) = after.split_at(at);
            host(given, authority, &mut members)?;
            path
        }
        _ => rest,
    };
    if !path.is_empty() {
        let decoded = percent_decode(path, false).map_err(|_| refused(given, "invalid URL escape"))?;
        members.push(("path", decoded));
        members.push(("raw_path", path.to_owned()));
    }
    Ok(collected(members))
}

fn collected(members: Vec<(&str, String)>) -> Value {
    members.into_iter().map(|(key, value)| (key, Value::from(value))).collect()
}

fn refused(given: &str, why: &str) -> BuiltinError {
    failed(format!("parse {}: {why}", quoted(given)))
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

fn host(given: &str, authority: &str, members: &mut Vec<(&str, String)>) -> Result<(), BuiltinError> {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (name, port) = if let Some(inner) = host.strip_prefix('[') {
        let (name, after) = inner.split_once(']').ok_or_else(|| refused(given, "missing ']' in host"))?;
        (name.to_owned(), after)
    } else {
        let at = host.rfind(':').unwrap_or(host.len());
        let (name, port) = host.split_at(at);
        if name.contains([' ', '<', '>', '"']) {
            return Err(refused(given, &format!("invalid character {} in host name", quoted(" "))));
        }
        (percent_decode(name, false).map_err(|_| refused(given, "invalid URL escape"))?, port)
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    if !port.is_empty() && (!port.starts_with(':') || !digits.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(refused(given, &format!("invalid port {} after host", quoted(port))));
    }
    if !name.is_empty() {
        members.push(("hostname", name));
    }
    if !digits.is_empty() {
        members.push(("port", digits.to_owned()));
    }
    Ok(())
}

/// A path as Go's `URL.EscapedPath` spells it: as given if that is a valid spelling, else escaped anew.
pub fn escaped_path(given: &str) -> Result<String, BuiltinError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte);
    if given.bytes().all(|byte| plain(byte) || b"!'()*[]%".contains(&byte)) {
        return Ok(given.to_owned());
    }
    let mut out = String::new();
    for byte in percent_decode(given, false)?.bytes() {
        if plain(byte) { out.push(char::from(byte)) } else { out.push_str(&format!("%{byte:02X}")) }
    }
    Ok(out)
}
