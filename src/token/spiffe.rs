//! SPIFFE IDs (the SPIFFE-ID standard, section 2).

/// Bytes of a whole ID.
const MAX_BYTES: usize = 2_048;
/// Bytes of a trust domain's name.
const MAX_DOMAIN_BYTES: usize = 255;

/// The trust domain and the path of a SPIFFE ID; nothing when the text is none. The path is empty or begins with a slash.
pub fn parse(id: &str) -> Option<(&str, &str)> {
    let rest = id.strip_prefix("spiffe://").filter(|_| id.len() <= MAX_BYTES)?;
    let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let is_domain_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let is_domain = (1..=MAX_DOMAIN_BYTES).contains(&domain.len()) && domain.bytes().all(is_domain_byte);
    let is_segment = |segment: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        !matches!(segment, "" | "." | "..") && segment.bytes().all(is_plain)
    };
    let is_path = path.is_empty() || path.split('/').skip(1).all(is_segment);
    (is_domain && is_path).then_some((domain, path))
}

/// A SPIFFE id, or all below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpiffePattern {
    /// Without the star.
    text: String,
    is_prefix: bool,
}

impl SpiffePattern {
    /// Reads `spiffe://domain/path` or `spiffe://domain/*`, where the star stands for any number of segments.
    pub fn parse(text: &str) -> Option<Self> {
        let (plain, is_prefix) = text.strip_suffix("/*").map_or((text, false), |plain| (plain, true));
        let (_, path) = parse(plain)?;
        (is_prefix || !path.is_empty()).then(|| Self { text: plain.to_owned(), is_prefix })
    }

    /// Matches a SPIFFE ID. A value that is none, such as one with dot segments, matches nothing.
    pub fn matches(&self, id: &str) -> bool {
        if parse(id).is_none() {
            return false;
        }
        match id.strip_prefix(&self.text) {
            Some(rest) if self.is_prefix => rest.len() > 1 && rest.starts_with('/'),
            Some(rest) => rest.is_empty(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        assert_eq!(parse("spiffe://example.org/ns/a/sa/b"), Some(("example.org", "/ns/a/sa/b")));
        assert_eq!(parse("spiffe://a_b-c.d"), Some(("a_b-c.d", "")));
        for bad in [
            "",
            "spiffe://",
            "spiffe:///a",
            "SPIFFE://a/b",
            "https://a/b",
            "spiffe://A/b",
            "spiffe://a:80/b",
            "spiffe://u@a/b",
            "spiffe://a/b/",
            "spiffe://a//b",
            "spiffe://a/./b",
            "spiffe://a/../b",
            "spiffe://a/%62",
            "spiffe://a/b?c",
            "spiffe://a/b#c",
            "spiffe://a/\u{e9}",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&format!("spiffe://{}/b", "a".repeat(256))), None);
        assert_eq!(parse(&format!("spiffe://a/{}", "b".repeat(2_048))), None);
    }

    #[test]
    fn ids_are_matched_whole_or_below_a_star() {
        for (pattern, id, want) in [
            ("spiffe://a/ns/x/sa/y", "spiffe://a/ns/x/sa/y", true),
            ("spiffe://a/ns/x/sa/y", "spiffe://a/ns/x/sa/yz", false),
            ("spiffe://a/ns/x/sa/y", "spiffe://a/ns/x/sa", false),
            ("spiffe://a/ns/x/*", "spiffe://a/ns/x/sa/y", true),
            ("spiffe://a/ns/x/*", "spiffe://a/ns/xx/sa/y", false),
            ("spiffe://a/ns/x/*", "spiffe://a/ns/x", false),
            ("spiffe://a/ns/x/*", "spiffe://a/ns/x/", false),
            ("spiffe://a/*", "spiffe://b/x", false),
            ("spiffe://a/ns/x/*", "spiffe://a/ns/x/../y/sa/z", false),
            ("spiffe://a/ns/x/*", "spiffe://a/ns/x/./z", false),
            ("spiffe://a/ns/x/*", "spiffe://a/ns/x/%2e%2e/y", false),
            ("spiffe://a/ns/x/*", "spiffe://a/ns/x//z", false),
        ] {
            assert_eq!(SpiffePattern::parse(pattern).expect("a pattern").matches(id), want, "{pattern} {id}");
        }
        for bad in [
            "",
            "spiffe://",
            "spiffe://a",
            "spiffe:///x",
            "https://a/x",
            "spiffe://a/*/x",
            "spiffe://*/x",
            "spiffe://a/x/",
        ] {
            assert_eq!(SpiffePattern::parse(bad), None, "{bad}");
        }
    }
}
