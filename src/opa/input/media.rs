//! Media types and content dispositions with their parameters, as Go's `mime.ParseMediaType` reads them.
//!
//! Continuations (RFC 2231, `name*0=`) are not joined: no form of a browser or library uses them for a boundary.

/// A media type or disposition, split.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MediaType {
    /// Lower case, without parameters.
    pub name: String,
    parameters: Vec<(String, String)>,
}

/// Why a media type cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaTypeError {
    #[error("it has no type")]
    NoType,
    #[error("a parameter is malformed")]
    Parameter,
    #[error("a parameter appears twice")]
    Repeated,
}

impl MediaType {
    /// The value of the parameter `name` (lower case), unless it is empty.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let (_, value) = self.parameters.iter().find(|(key, _)| key == name)?;
        (!value.is_empty()).then_some(value)
    }
}

pub(super) fn parse(text: &str) -> Result<MediaType, MediaTypeError> {
    let (name, mut rest) = match text.find(';') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let name = name.trim().to_ascii_lowercase();
    let is_token_pair = name.split('/').count() <= 2 && name.split('/').all(is_token);
    if !is_token_pair {
        return Err(MediaTypeError::NoType);
    }
    let mut parameters: Vec<(String, String)> = Vec::new();
    while let Some(after) = rest.strip_prefix(';') {
        let after = after.trim_start();
        if after.is_empty() {
            break;
        }
        let (key, after) = after.split_once('=').ok_or(MediaTypeError::Parameter)?;
        let key = key.trim_end().to_ascii_lowercase();
        if !is_token(&key) {
            return Err(MediaTypeError::Parameter);
        }
        let (value, after) = value(after.trim_start())?;
        if parameters.iter().any(|(known, _)| *known == key) {
            return Err(MediaTypeError::Repeated);
        }
        parameters.push((key, value));
        rest = after.trim_start();
        if !rest.is_empty() && !rest.starts_with(';') {
            return Err(MediaTypeError::Parameter);
        }
    }
    Ok(MediaType { name, parameters })
}

/// A parameter's value, a token or a quoted string, and what follows it.
fn value(text: &str) -> Result<(String, &str), MediaTypeError> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| !is_token_char(c)).unwrap_or(text.len());
        let (token, rest) = text.split_at(end);
        return if token.is_empty() { Err(MediaTypeError::Parameter) } else { Ok((token.to_owned(), rest)) };
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                let rest = quoted.get(at..).and_then(|tail| tail.strip_prefix('"')).unwrap_or_default();
                return Ok((value, rest));
            }
            // Only a backslash before a special character escapes: old browsers send Windows paths unescaped.
            '\\' => match chars.clone().next() {
                Some((_, next)) if !is_token_char(next) => {
                    value.push(next);
                    chars.next();
                }
                _ => value.push('\\'),
            },
            '\r' | '\n' => return Err(MediaTypeError::Parameter),
            _ => value.push(c),
        }
    }
    Err(MediaTypeError::Parameter)
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_token_char)
}

fn is_token_char(c: char) -> bool {
    c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?=".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_split_and_unquoted() {
        let media = parse("Multipart/Form-Data; boundary=\"a b;c\" ; charset=utf-8;").expect("it parses");
        assert_eq!(media.name, "multipart/form-data");
        assert_eq!(media.parameter("boundary"), Some("a b;c"));
        assert_eq!(media.parameter("charset"), Some("utf-8"));
        assert_eq!(media.parameter("absent"), None);
    }

    #[test]
    fn malformed_media_types_are_refused() {
        for (text, want) in [
            ("", MediaTypeError::NoType),
            ("a/b/c", MediaTypeError::NoType),
            ("a/b; x", MediaTypeError::Parameter),
            ("a/b; x=", MediaTypeError::Parameter),
            ("a/b; x=\"y", MediaTypeError::Parameter),
            ("a/b; x=1 y=2", MediaTypeError::Parameter),
            ("a/b; x=1; X=2", MediaTypeError::Repeated),
        ] {
            assert_eq!(parse(text), Err(want), "{text}");
        }
    }
}
