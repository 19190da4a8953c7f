//! Percent-decoding and `application/x-www-form-urlencoded`, as Go's `net/url` reads them.

use crate::value::{Lists, Value, lossy};

/// A `%` that is not followed by two hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid URL escape `{0}`")]
pub struct EscapeError(pub String);

/// Why a path or query cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error(transparent)]
    Escape(#[from] EscapeError),
    #[error("invalid semicolon separator in query")]
    Semicolon,
}

/// The decoding of `+`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plus {
    Keep,
    Space,
}

/// Decodes `%XX`, leaving everything else as it is.
pub fn percent_decode(text: &[u8]) -> Result<Vec<u8>, EscapeError> {
    decode(text, Plus::Keep)
}

pub(super) fn decode(text: &[u8], plus: Plus) -> Result<Vec<u8>, EscapeError> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match byte {
            b'%' => {
                let digits = tail.split_at_checked(2);
                let Some((code, after)) = digits.and_then(|(digits, after)| Some((hex_pair(digits)?, after))) else {
                    return Err(EscapeError(lossy(rest.get(..3).unwrap_or(rest))));
                };
                out.push(code);
                after
            }
            b'+' if plus == Plus::Space => {
                out.push(b' ');
                tail
            }
            _ => {
                out.push(byte);
                tail
            }
        };
    }
    Ok(out)
}

/// The byte that two hexadecimal digits spell.
pub fn hex_pair(digits: &[u8]) -> Option<u8> {
    let &[high, low] = digits else { return None };
    let high = char::from(high).to_digit(16)?;
    let low = char::from(low).to_digit(16)?;
    u8::try_from((high << 4) | low).ok()
}

/// A query or form body: an object from name to array of strings, values in order.
pub(super) fn parse_query(query: &[u8]) -> Result<Value, QueryError> {
    let mut members = Lists::default();
    for piece in query.split(|&byte| byte == b'&').filter(|piece| !piece.is_empty()) {
        if piece.contains(&b';') {
            return Err(QueryError::Semicolon);
        }
        let mut halves = piece.splitn(2, |&byte| byte == b'=');
        let name = decode(halves.next().unwrap_or_default(), Plus::Space)?;
        let value = decode(halves.next().unwrap_or_default(), Plus::Space)?;
        members.push(lossy(&name), Value::from(lossy(&value)));
    }
    Ok(members.into_value())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::json_text;

    #[test]
    fn queries_read_as_go_reads_them() {
        for (query, want) in [
            ("", "{}"),
            ("x=1&x=2&y&z=", r#"{"x":["1","2"],"y":[""],"z":[""]}"#),
            ("q=a+b%20c%26", r#"{"q":["a b c\u0026"]}"#),
            ("=1&&=2", r#"{"":["1","2"]}"#),
            ("a=b=c", r#"{"a":["b=c"]}"#),
            ("%61=1&a=2", r#"{"a":["1","2"]}"#),
        ] {
            let value = parse_query(query.as_bytes()).expect("the query parses");
            assert_eq!(json_text(&value), want, "{query}");
        }
        assert_eq!(parse_query(b"x=1;y=2"), Err(QueryError::Semicolon));
        assert_eq!(parse_query(b"x=%zz1"), Err(QueryError::Escape(EscapeError("%zz".into()))));
        assert_eq!(parse_query(b"x=%"), Err(QueryError::Escape(EscapeError("%".into()))));
    }
}
