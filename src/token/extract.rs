//! Finding the token in a request (RFC 6750 section 2.1, or where an issuer's settings say).

use super::error::TokenError;
use crate::opa::input::Http;

/// A place where a token may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A header, with the scheme that comes before the token, if any. Both are lower case.
    Header {
        name: String,
        scheme: Option<String>,
    },
    Cookie {
        name: String,
    },
}

impl Location {
    /// `Authorization: Bearer`.
    pub fn bearer() -> Self {
        Self::Header { name: "authorization".to_owned(), scheme: Some("bearer".to_owned()) }
    }

    /// `Authorization: DPoP` (RFC 9449 section 7.1).
    pub fn dpop() -> Self {
        Self::Header { name: "authorization".to_owned(), scheme: Some("dpop".to_owned()) }
    }

    fn find<'a>(&self, http: &Http<'a>) -> Result<Option<&'a str>, TokenError> {
        match self {
            Self::Header { name, scheme } => {
                let Some(value) = single(&http.header_values(name))? else { return Ok(None) };
                let value = value.trim_ascii();
                let token = match scheme {
                    None => value,
                    Some(scheme) => match after_scheme(value, scheme) {
                        None => return Ok(None),
                        Some(token) => token,
                    },
                };
                // A comma means that Envoy joined two headers: the caller sent two tokens.
                if token.contains(&b',') {
                    return Err(TokenError::SeveralTokens);
                }
                b64token(token).map(Some)
            }
            Self::Cookie { name } => {
                let mut found = None;
                for header in http.header_values("cookie") {
                    // Envoy joins repeated cookie headers by a comma; neither separator can be part of a token.
                    for pair in header.split(|byte| matches!(byte, b';' | b',')) {
                        let pair = pair.trim_ascii();
                        let Some(rest) = pair.strip_prefix(name.as_bytes()) else { continue };
                        let value = match rest.strip_prefix(b"=") {
                            // What a browser sends after logging out.
                            Some(b"") => continue,
                            Some(value) => value,
                            // `name =value`: some upstreams would take it for the cookie.
                            None if rest.trim_ascii_start().starts_with(b"=") => {
                                return Err(TokenError::MalformedHeader);
                            }
                            None => continue,
                        };
                        if found.replace(b64token(value)?).is_some() {
                            return Err(TokenError::SeveralTokens);
                        }
                    }
                }
                Ok(found)
            }
        }
    }
}

/// The one token of a request and the place where it was; more than one is an error.
pub fn find_token<'a, 'l>(
    http: &Http<'a>,
    locations: &'l [Location],
) -> Result<Option<(&'a str, &'l Location)>, TokenError> {
    let mut found = None;
    for location in locations {
        if let Some(token) = location.find(http)?
            && found.replace((token, location)).is_some()
        {
            return Err(TokenError::SeveralTokens);
        }
    }
    Ok(found)
}

fn single<'a>(values: &[&'a [u8]]) -> Result<Option<&'a [u8]>, TokenError> {
    match values {
        [] => Ok(None),
        [value] => Ok(Some(value)),
        _ => Err(TokenError::SeveralTokens),
    }
}

/// What follows the scheme, whose letter case does not count; nothing when the header has another scheme.
fn after_scheme<'a>(value: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let (head, rest) = value.split_at_checked(scheme.len())?;
    if !head.eq_ignore_ascii_case(scheme.as_bytes()) {
        return None;
    }
    match rest.first() {
        None => Some(rest),
        Some(b' ') => Some(rest.trim_ascii_start()),
        Some(_) => None,
    }
}

/// `b64token` of RFC 6750 section 2.1.
fn b64token(token: &[u8]) -> Result<&str, TokenError> {
    let body = token.trim_ascii_end();
    let unpadded =
        body.iter().rposition(|&byte| byte != b'=').map_or(&[][..], |at| body.get(..=at).unwrap_or_default());
    let is_one = |byte: u8| byte.is_ascii_alphanumeric() | matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
    // Without a way out of the loop many bytes are looked at at once.
    let is_token = unpadded.iter().fold(true, |so_far, &byte| so_far & is_one(byte));
    match std::str::from_utf8(body) {
        Ok(text) if is_token && !unpadded.is_empty() => Ok(text),
        _ => Err(TokenError::MalformedHeader),
    }
}
