//! The decision's place: from `path` (or the old `query`) of the plugin block to a reference under `data`.

use std::fmt::Write as _;

/// Which document is the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrypoint {
    /// As it was written in the configuration.
    configured: String,
    segments: Vec<String>,
}

/// A `query` that is more than a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a plain reference such as `data.envoy.authz.allow`")]
pub struct EntrypointError(String);

impl Entrypoint {
    /// OPA's rule for `path`: split at `/`, empty pieces dropped, dots are not separators.
    pub fn from_path(path: &str) -> Self {
        let segments = path.split('/').filter(|piece| !piece.is_empty()).map(str::to_owned).collect();
        Self { configured: path.to_owned(), segments }
    }

    /// The old `query`, when it is a plain reference.
    pub fn from_query(query: &str) -> Result<Self, EntrypointError> {
        let refused = || EntrypointError(query.to_owned());
        let rest = query.trim().strip_prefix("data.").ok_or_else(refused)?;
        let segments: Vec<_> = rest.split('.').map(str::to_owned).collect();
        if !segments.iter().all(|segment| is_identifier(segment)) {
            return Err(refused());
        }
        Ok(Self { configured: query.to_owned(), segments })
    }

    pub fn configured(&self) -> &str {
        &self.configured
    }

    pub(super) fn segments(&self) -> &[String] {
        &self.segments
    }

    /// The reference in Rego's syntax. A piece of digits is an index; anything that is no identifier is quoted.
    pub(super) fn reference(&self) -> String {
        let mut text = "data".to_owned();
        for segment in &self.segments {
            // Writing to a String cannot fail.
            let _ = if is_identifier(segment) {
                write!(text, ".{segment}")
            } else if segment.bytes().all(|byte| byte.is_ascii_digit()) {
                write!(text, "[{segment}]")
            } else {
                write!(text, "[{}]", crate::value::json_text(&segment.as_str().into()))
            };
        }
        text
    }
}

fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_references() {
        for (path, want) in [
            ("envoy/authz/allow", "data.envoy.authz.allow"),
            ("/envoy//authz/", "data.envoy.authz"),
            ("envoy.authz.allow", r#"data["envoy.authz.allow"]"#),
            ("a/0/b-c", r#"data.a[0]["b-c"]"#),
            ("", "data"),
        ] {
            assert_eq!(Entrypoint::from_path(path).reference(), want, "{path}");
        }
    }

    #[test]
    fn only_plain_queries_are_taken() {
        assert_eq!(
            Entrypoint::from_query("data.istio.authz.allow").map(|e| e.reference()),
            Ok("data.istio.authz.allow".into())
        );
        assert!(Entrypoint::from_query("data.a == true").is_err());
        assert!(Entrypoint::from_query("input.a").is_err());
    }
}
