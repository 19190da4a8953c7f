//! `parsed_path`, the rule of opa-envoy-plugin's main branch: the target is never parsed as a URL, so `//admin` is a
//! path and not a host (CVE-2026-26205).

use super::form::{EscapeError, Plus, decode};

/// Splits an undecoded path into decoded segments. Decoding comes first, so `%2F` separates too.
pub fn parse_path(path: &str) -> Result<Vec<String>, EscapeError> {
    let decoded = decode(path.as_bytes(), Plus::Keep)?;
    let text = crate::value::lossy(&decoded);
    Ok(text.trim_start_matches('/').split('/').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::parse_path;

    #[test]
    fn paths_split_after_decoding() {
        for (path, want) in [
            ("", &[""][..]),
            ("/", &[""]),
            ("//", &[""]),
            ("/a//b/", &["a", "", "b", ""]),
            ("//admin/people", &["admin", "people"]),
            ("/%2Fadmin", &["admin"]),
            ("http://h.com/p", &["http:", "", "h.com", "p"]),
            ("host:443", &["host:443"]),
            ("/..%2f../x", &["..", "..", "x"]),
            ("/a%2Fb/c+d", &["a", "b", "c+d"]),
            ("/%ff", &["\u{fffd}"]),
            ("/a#frag", &["a#frag"]),
            ("*", &["*"]),
        ] {
            assert_eq!(parse_path(path).expect("the path decodes"), want, "{path}");
        }
        assert!(parse_path("/a%zz").is_err());
        assert!(parse_path("/a%").is_err());
    }
}
