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
}
