//! The one spelling of a request's path, or the reason why it has none.
//!
//! A path that two readers may understand differently is how checks get bypassed (CVE-2026-26205, CVE-2026-42272,
//! CVE-2026-42274, CVE-2021-29492): such a path is not repaired here, it is called ambiguous. Whatever is left decodes in
//! exactly one way.

use std::borrow::Cow;

use crate::opa::input::{hex_pair, percent_decode};

/// Why a path has no canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguity {
    #[error("it does not start with a slash")]
    NoLeadingSlash,
    #[error("it has an empty segment")]
    EmptySegment,
    #[error("it has a `.` or `..` segment")]
    DotSegment,
    #[error("it has a backslash")]
    Backslash,
    #[error("it has path parameters after a `;`")]
    Parameters,
    #[error("it has a fragment")]
    Fragment,
    #[error("it has a control byte")]
    Control,
    #[error("it has an encoded separator, dot or percent sign")]
    EncodedDelimiter,
    #[error("it has a malformed percent escape")]
    Escape,
    #[error("it is not UTF-8")]
    NotUtf8,
}

/// The decoded path of a request target, without its query.
pub fn canonical_path(target: &str) -> Result<Cow<'_, str>, Ambiguity> {
    if target.contains('#') {
        return Err(Ambiguity::Fragment);
    }
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let rest = path.strip_prefix('/').ok_or(Ambiguity::NoLeadingSlash)?;
    for byte in path.bytes() {
        match byte {
            b'\\' => return Err(Ambiguity::Backslash),
            b';' => return Err(Ambiguity::Parameters),
            0..=0x1f | 0x7f => return Err(Ambiguity::Control),
            _ => {}
        }
    }
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        // The last segment is empty when the path ends in a slash, which is no ambiguity.
        if segment.is_empty() && segments.peek().is_some() {
            return Err(Ambiguity::EmptySegment);
        }
        if matches!(segment, "." | "..") {
            return Err(Ambiguity::DotSegment);
        }
    }
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path));
    }
    decoded(path).map(Cow::Owned)
}

fn decoded(path: &str) -> Result<String, Ambiguity> {
    let mut rest = path;
    while let Some((_, escape)) = rest.split_once('%') {
        let code = escape.as_bytes().get(..2).and_then(hex_pair).ok_or(Ambiguity::Escape)?;
        rest = escape.get(2..).unwrap_or_default();
        match code {
            b'/' | b'\\' | b'.' | b';' | b'?' | b'#' => return Err(Ambiguity::EncodedDelimiter),
            0..=0x1f | 0x7f => return Err(Ambiguity::Control),
            _ => {}
        }
    }
    let bytes = percent_decode(path.as_bytes()).map_err(|_| Ambiguity::Escape)?;
    // A segment that would decode a second time, by any of its encoded bytes.
    if bytes.windows(3).any(|three| matches!(three, [b'%', digits @ ..] if digits.iter().all(u8::is_ascii_hexdigit))) {
        return Err(Ambiguity::EncodedDelimiter);
    }
    String::from_utf8(bytes).map_err(|_| Ambiguity::NotUtf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unambiguous_paths_have_one_spelling() {
        for (target, want) in [
            ("/", "/"),
            ("/api/v1/admin/data", "/api/v1/admin/data"),
            ("/a/", "/a/"),
            ("/a?x=/../b;c", "/a"),
            ("/%61dmin", "/admin"),
            ("/a%20b", "/a b"),
            ("/caf%C3%A9", "/café"),
            ("/100%25", "/100%"),
            ("/a...b/..c", "/a...b/..c"),
            ("/a:b@c", "/a:b@c"),
        ] {
            assert_eq!(canonical_path(target).as_deref(), Ok(want), "{target}");
        }
    }

    #[test]
    fn ambiguous_paths_have_none() {
        for (target, want) in [
            ("", Ambiguity::NoLeadingSlash),
            ("*", Ambiguity::NoLeadingSlash),
            ("?x", Ambiguity::NoLeadingSlash),
            ("host:443", Ambiguity::NoLeadingSlash),
            ("http://h/p", Ambiguity::NoLeadingSlash),
            ("pkg.Service/Method", Ambiguity::NoLeadingSlash),
            ("//admin", Ambiguity::EmptySegment),
            ("///a", Ambiguity::EmptySegment),
            ("/a//b", Ambiguity::EmptySegment),
            ("/a//", Ambiguity::EmptySegment),
            ("/a/../admin", Ambiguity::DotSegment),
            ("/./admin", Ambiguity::DotSegment),
            ("/a/..", Ambiguity::DotSegment),
            ("/a/%2e%2e/admin", Ambiguity::EncodedDelimiter),
            ("/a/%2E%2e%2Fadmin", Ambiguity::EncodedDelimiter),
            ("/a%2fb", Ambiguity::EncodedDelimiter),
            ("/a%2Fb", Ambiguity::EncodedDelimiter),
            ("/a%5cb", Ambiguity::EncodedDelimiter),
            ("/a%5Cb", Ambiguity::EncodedDelimiter),
            ("/admin%3bx", Ambiguity::EncodedDelimiter),
            ("/admin%23x", Ambiguity::EncodedDelimiter),
            ("/admin%3Fx", Ambiguity::EncodedDelimiter),
            ("/%252e%252e/admin", Ambiguity::EncodedDelimiter),
            ("/a%2561", Ambiguity::EncodedDelimiter),
            ("/public/%25%32%65%25%32%65/admin", Ambiguity::EncodedDelimiter),
            ("/a%25%361", Ambiguity::EncodedDelimiter),
            ("/\\admin", Ambiguity::Backslash),
            ("/a/..;/admin", Ambiguity::Parameters),
            ("/admin;x=1", Ambiguity::Parameters),
            ("/admin#x", Ambiguity::Fragment),
            ("/admin?x#y", Ambiguity::Fragment),
            ("/a%00/admin", Ambiguity::Control),
            ("/a\u{7f}", Ambiguity::Control),
            ("/a\tb", Ambiguity::Control),
            ("/a%0a", Ambiguity::Control),
            ("/a%zz", Ambiguity::Escape),
            ("/a%", Ambiguity::Escape),
            ("/a%+1", Ambiguity::Escape),
            ("/%ff", Ambiguity::NotUtf8),
            ("/%c0%af", Ambiguity::NotUtf8),
        ] {
            assert_eq!(canonical_path(target), Err(want), "{target}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_canonical_path_is_safe_to_compare(target in "(?s)[/a.%0-9eEfF;#?\\\\\u{e9}-]{0,24}") {
            if let Ok(path) = canonical_path(&target) {
                proptest::prop_assert!(path.starts_with('/'));
                proptest::prop_assert!(!path.contains("//"));
                proptest::prop_assert!(path.split('/').all(|segment| segment != "." && segment != ".."));
                proptest::prop_assert!(!path.contains(['\\', ';', '#', '?']));
                let escape = |three: &[u8]| {
                    three.starts_with(b"%") && three.iter().skip(1).all(u8::is_ascii_hexdigit)
                };
                proptest::prop_assert!(!path.as_bytes().windows(3).any(escape));
            }
        }
    }
}
