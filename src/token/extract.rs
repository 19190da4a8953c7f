//! Finding the token in a request (RFC 6750 section 2.1, or where an issuer's settings say).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::TokenError;
use crate::opa::input::Http;

/// The location of a token in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A header, with the scheme that comes before the token, if any. Both are lower case.
    Header { name: String, scheme: Option<String> },
    Cookie {
        name: String,
        /// The token may be split over several cookies: `name_0`, `name.0` or, after `name=chunks-2`, `nameC1` and so on.
        chunks: bool,
    },
    /// An entry of `Sec-WebSocket-Protocol` that begins so: what follows is the token, or its base64url where the prefix begins
    /// with `base64url.`. Browsers can send nothing else with a WebSocket.
    WebSocketProtocol { prefix: String },
}

/// The header of subprotocols (RFC 6455 section 11.3.4).
pub const WEBSOCKET_PROTOCOL: &str = "sec-websocket-protocol";
/// Cookies that one token may be cut over.
const MAX_CHUNKS: usize = 32;

impl Location {
    /// `Authorization: Bearer`.
    pub fn bearer() -> Self {
        Self::Header { name: "authorization".to_owned(), scheme: Some("bearer".to_owned()) }
    }

    /// `Authorization: DPoP` (RFC 9449 section 7.1).
    pub fn dpop() -> Self {
        Self::Header { name: "authorization".to_owned(), scheme: Some("dpop".to_owned()) }
    }

    /// The name of the header that the token is in, where it is one.
    pub fn header(&self) -> Option<&str> {
        match self {
            Self::Header { name, .. } => Some(name),
            Self::Cookie { .. } => None,
            Self::WebSocketProtocol { .. } => Some(WEBSOCKET_PROTOCOL),
        }
    }

    fn find<'a>(&self, http: &Http<'a>) -> Result<Option<Cow<'a, str>>, TokenError> {
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
                b64token(token).map(|token| Some(Cow::Borrowed(token)))
            }
            Self::WebSocketProtocol { prefix } => websocket_token(http, prefix),
            Self::Cookie { name, chunks } => {
                let whole = cookie(http, name)?;
                if !chunks {
                    return whole.map(|value| b64token(value).map(Cow::Borrowed)).transpose();
                }
                let pieces = chunked(http, name, whole)?;
                let is_announced = |whole: &&[u8]| whole.starts_with(b"chunks-");
                match (whole.filter(|whole| !is_announced(whole)), pieces) {
                    (Some(_), Some(_)) => Err(TokenError::SeveralTokens),
                    (Some(whole), None) => b64token(whole).map(|token| Some(Cow::Borrowed(token))),
                    (None, Some(token)) => b64token(&token).map(|token| Some(Cow::Owned(token.to_owned()))),
                    (None, None) => Ok(None),
                }
            }
        }
    }
}

/// The value of the cookie of this name; more than one is an error.
fn cookie<'a>(http: &Http<'a>, name: &str) -> Result<Option<&'a [u8]>, TokenError> {
    let mut found = None;
    for header in http.header_values("cookie") {
        // Envoy joins repeated cookie headers by a comma; neither separator can be part of a token.
        for pair in header.split(|byte| matches!(byte, b';' | b',')) {
            let pair = pair.trim_ascii();
            let Some(rest) = pair.strip_prefix(name.as_bytes()) else { continue };
            let value = match rest.strip_prefix(b"=") {
                // The value that browsers send after logging out.
                Some(b"") => continue,
                Some(value) => value,
                // `name =value`: some upstreams would take it for the cookie.
                None if rest.trim_ascii_start().starts_with(b"=") => return Err(TokenError::MalformedHeader),
                None => continue,
            };
            if found.replace(value).is_some() {
                return Err(TokenError::SeveralTokens);
            }
        }
    }
    Ok(found)
}

/// Joins the parts of a split cookie. Each part occurs once, and none is missing.
fn chunked(http: &Http<'_>, name: &str, whole: Option<&[u8]>) -> Result<Option<Vec<u8>>, TokenError> {
    // ASP.NET says how many there are, and counts from one.
    let announced =
        whole.and_then(|whole| std::str::from_utf8(whole.strip_prefix(b"chunks-")?).ok()?.parse::<usize>().ok());
    let numbered = |separator: char| has_piece(http, &format!("{name}{separator}"));
    if let Some(count) = announced {
        if count == 0 || count > MAX_CHUNKS {
            return Err(TokenError::BadChunks);
        }
        if numbered('_').is_some() || numbered('.').is_some() {
            return Err(TokenError::SeveralTokens);
        }
        let pieces = (1..=count).map(|at| cookie(http, &format!("{name}C{at}"))?.ok_or(TokenError::BadChunks));
        return Ok(Some(pieces.collect::<Result<Vec<_>, _>>()?.concat()));
    }
    let mut found = None;
    for separator in ['_', '.'] {
        let mut pieces = Vec::new();
        while pieces.len() < MAX_CHUNKS
            && let Some(piece) = cookie(http, &format!("{name}{separator}{}", pieces.len()))?
        {
            pieces.push(piece);
        }
        // The last number that was sent is that of the last piece, unless one is missing.
        if !pieces.is_empty() && numbered(separator).is_some_and(|last| last >= pieces.len()) {
            return Err(TokenError::BadChunks);
        }
        if !pieces.is_empty() && found.replace(pieces.concat()).is_some() {
            return Err(TokenError::SeveralTokens);
        }
    }
    Ok(found)
}

/// The greatest number after `prefix` among the names of cookies with a value.
fn has_piece(http: &Http<'_>, prefix: &str) -> Option<usize> {
    let headers = http.header_values("cookie").into_iter();
    let pairs = headers.flat_map(|header| header.split(|byte| matches!(byte, b';' | b',')));
    let number = |pair: &[u8]| {
        let (name, value) = pair.trim_ascii().split_at(pair.trim_ascii().iter().position(|&byte| byte == b'=')?);
        let digits = std::str::from_utf8(name).ok()?.strip_prefix(prefix)?;
        let is_number = !digits.is_empty() && digits.len() <= 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
        (is_number && value.len() > 1).then(|| digits.parse().ok()).flatten()
    };
    pairs.filter_map(number).max()
}

/// The entries of the header of subprotocols.
fn subprotocols<'a>(http: &Http<'a>) -> impl Iterator<Item = &'a [u8]> {
    let headers = http.header_values(WEBSOCKET_PROTOCOL).into_iter();
    headers.flat_map(|header| header.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

fn websocket_token<'a>(http: &Http<'a>, prefix: &str) -> Result<Option<Cow<'a, str>>, TokenError> {
    let mut entries = subprotocols(http).filter_map(|entry| entry.strip_prefix(prefix.as_bytes()));
    let (Some(rest), None) = (entries.next(), entries.next()) else {
        let is_there = subprotocols(http).any(|entry| entry.starts_with(prefix.as_bytes()));
        return if is_there { Err(TokenError::SeveralTokens) } else { Ok(None) };
    };
    if !prefix.starts_with("base64url.") {
        return b64token(rest).map(|token| Some(Cow::Borrowed(token)));
    }
    let decoded = URL_SAFE_NO_PAD.decode(rest).map_err(|_| TokenError::MalformedHeader)?;
    b64token(&decoded).map(|token| Some(Cow::Owned(token.to_owned())))
}

/// The header of subprotocols without tokens, for the upstream: nothing where there is no token in it, empty where nothing else is.
pub fn without_tokens(http: &Http<'_>, locations: &[Location]) -> Option<String> {
    let is_token = |entry: &[u8]| {
        locations.iter().any(|location| {
            matches!(location, Location::WebSocketProtocol { prefix } if entry.starts_with(prefix.as_bytes()))
        })
    };
    if !subprotocols(http).any(is_token) {
        return None;
    }
    let others =
        subprotocols(http).filter(|entry| !is_token(entry)).filter_map(|entry| std::str::from_utf8(entry).ok());
    Some(others.collect::<Vec<_>>().join(", "))
}

/// The one token of a request and the place where it was; more than one is an error.
pub fn find_token<'a, 'l>(
    http: &Http<'a>,
    locations: &'l [Location],
) -> Result<Option<(Cow<'a, str>, &'l Location)>, TokenError> {
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

/// The credentials after the scheme, whose letter case is ignored; `None` when the header has another scheme.
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
