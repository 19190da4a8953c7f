//! The decision's place: from `path` (or the old `query`) of the plugin block to a reference under `data`.

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

/// No rule and no data can give the decision a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "nothing is defined at `{path}` (plugins.envoy_ext_authz_grpc.path): every check is denied as `undefined_decision`{hint}"
)]
pub struct UndefinedEntrypoint {
    path: String,
    /// The likely rule.
    hint: String,
}

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

    /// The error that nothing is defined here, with the nearest of `rules`, which are paths below `data`.
    pub(super) fn undefined(&self, rules: impl Iterator<Item = String>) -> UndefinedEntrypoint {
        let wanted = self.segments.join("/").replace('.', "/");
        let wanted = wanted.strip_prefix("data/").unwrap_or(&wanted);
        let nearest = rules.map(|rule| (strsim::damerau_levenshtein(wanted, &rule), rule)).min();
        let hint = match nearest {
            Some((distance, rule)) if distance <= rule.len().div_ceil(2) => format!("; did you mean `{rule}`?"),
            _ => String::new(),
        };
        UndefinedEntrypoint { path: self.configured.clone(), hint }
    }

    pub(super) fn segments(&self) -> &[String] {
        &self.segments
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
    fn paths_are_split_at_slashes() {
        for (path, want) in [
            ("envoy/authz/allow", &["envoy", "authz", "allow"][..]),
            ("/envoy//authz/", &["envoy", "authz"]),
            ("envoy.authz.allow", &["envoy.authz.allow"]),
            ("", &[]),
        ] {
            assert_eq!(Entrypoint::from_path(path).segments(), want, "{path}");
        }
    }

    #[test]
    fn an_undefined_path_names_the_likely_rule() {
        for (path, want) in [
            ("data/envoy/authz/allow", "; did you mean `envoy/authz/allow`?"),
            ("envoy.authz.allow", "; did you mean `envoy/authz/allow`?"),
            ("envoy/autz/alow", "; did you mean `envoy/authz/allow`?"),
            ("somewhere/else", ""),
        ] {
            let rules = ["envoy/authz/allow", "lib/tokens/valid"].map(str::to_owned);
            assert_eq!(Entrypoint::from_path(path).undefined(rules.into_iter()).hint, want, "{path}");
        }
    }

    #[test]
    fn only_plain_queries_are_taken() {
        assert_eq!(
            Entrypoint::from_query("data.istio.authz.allow").map(|it| it.segments().to_vec()),
            Ok(vec!["istio".into(), "authz".into(), "allow".into()])
        );
        assert!(Entrypoint::from_query("data.a == true").is_err());
        assert!(Entrypoint::from_query("input.a").is_err());
    }
}
