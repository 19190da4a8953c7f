//! The manifest of a bundle: its revision, and which parts of `data` it owns.
//!
//! Mirrors: `Manifest` of OPA `v1/bundle/bundle.go`, v1.19.0.

use globset::{Glob, GlobMatcher};
use serde_json::Value;

/// Roots that one manifest may name.
const MAX_ROOTS: usize = 10_000;

/// The manifest of a bundle.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    pub revision: String,
    pub roots: Roots,
    /// 0 or 1, for all its modules.
    pub rego_version: Option<u64>,
    /// 0 or 1, by pattern, for paths as the archive spells them; in order of the patterns, the first that matches counts.
    file_versions: Vec<(String, GlobMatcher, u64)>,
    /// As it was read.
    pub document: Option<Value>,
}

/// The paths under `data` that a bundle owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots(Vec<Vec<String>>);

impl Default for Roots {
    /// Everything.
    fn default() -> Self {
        Self(vec![Vec::new()])
    }
}

/// Why a manifest is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("it is not a JSON object with the members that OPA gives a manifest: {0}")]
    Shape(&'static str),
    #[error("its roots overlap: `{0}` and `{1}`")]
    Overlap(String, String),
    #[error("it has more than 10,000 roots")]
    TooManyRoots,
    #[error("it declares WebAssembly entry points, which are not offered; build the bundle with `opa build -t rego`")]
    Wasm,
}

impl Manifest {
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        // As Go decodes: the first value counts, whatever follows, and names are compared without regard to case.
        let first = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>().next();
        let document = first.and_then(Result::ok).ok_or(ManifestError::Shape("not JSON"))?;
        if document.is_null() {
            return Ok(Self::default());
        }
        let members = document.as_object().ok_or(ManifestError::Shape("not an object"))?;
        let alike = |name: &str| members.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let get = |name: &str| members.get(name).or_else(|| alike(name)).filter(|value| !value.is_null());
        if get("wasm").is_some_and(|wasm| wasm.as_array().is_none_or(|list| !list.is_empty())) {
            return Err(ManifestError::Wasm);
        }
        let revision = match get("revision") {
            None => String::new(),
            Some(value) => value.as_str().ok_or(ManifestError::Shape("`revision` is not text"))?.to_owned(),
        };
        let version = |value: &Value| value.as_u64().filter(|version| *version <= 1);
        let rego_version = match get("rego_version") {
            None => None,
            Some(value) => Some(version(value).ok_or(ManifestError::Shape("`rego_version` is neither 0 nor 1"))?),
        };
        let mut file_versions = Vec::new();
        if let Some(value) = get("file_rego_versions") {
            let wrong = ManifestError::Shape("`file_rego_versions` is not an object from paths to 0 or 1");
            for (pattern, value) in value.as_object().ok_or_else(|| wrong.clone())? {
                let glob = Glob::new(pattern).map_err(|_| ManifestError::Shape("a pattern of `file_rego_versions`"))?;
                let version = version(value).ok_or_else(|| wrong.clone())?;
                file_versions.push((pattern.clone(), glob.compile_matcher(), version));
            }
            file_versions.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        }
        let roots = match get("roots") {
            None => Roots::default(),
            Some(value) => {
                let wrong = ManifestError::Shape("`roots` is not an array of strings");
                let list = value.as_array().ok_or_else(|| wrong.clone())?;
                let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
                Roots::parse(&texts.ok_or(wrong)?)?
            }
        };
        Ok(Self { revision, roots, rego_version, file_versions, document: Some(document) })
    }

    /// The number at `metadata.sequence`, which grows with every bundle of those who want no older one to come back.
    pub fn sequence(&self) -> Option<i64> {
        self.document.as_ref()?.get("metadata")?.get("sequence")?.as_i64()
    }

    /// The version of Rego that the module at `path`, as the archive spells it, is written in.
    pub fn version_of(&self, path: &str) -> Option<u64> {
        let found = self.file_versions.iter().find(|(_, pattern, _)| pattern.is_match(path));
        found.map(|(_, _, version)| *version).or(self.rego_version)
    }
}

impl Roots {
    fn parse(texts: &[&str]) -> Result<Self, ManifestError> {
        if texts.len() > MAX_ROOTS {
            return Err(ManifestError::TooManyRoots);
        }
        let segments = |text: &str| -> Vec<String> {
            text.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        let mut roots: Vec<Vec<String>> = texts.iter().map(|text| segments(text)).collect();
        // In order, whatever lies under a root follows it.
        roots.sort();
        let roots = Self(roots);
        let neighbours = roots.0.windows(2).filter_map(|pair| match pair {
            [a, b] if b.starts_with(a) => Some(ManifestError::Overlap(a.join("/"), b.join("/"))),
            _ => None,
        });
        match neighbours.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(roots),
        }
    }

    /// `path` is at or under a root.
    pub fn own<T: AsRef<str>>(&self, path: &[T]) -> bool {
        self.0.iter().any(|root| {
            root.len() <= path.len() && root.iter().zip(path).all(|(own, part)| own.as_str() == part.as_ref())
        })
    }

    /// Some path under `path` can belong to a root.
    pub fn reach_below<T: AsRef<str>>(&self, path: &[T]) -> bool {
        self.0.iter().any(|root| root.iter().zip(path).all(|(own, part)| own.as_str() == part.as_ref()))
    }

    /// A path that both own.
    pub fn shared_with(&self, other: &Self) -> Option<String> {
        let inside = |a: &Self, b: &Self| a.0.iter().find(|root| b.own(root)).cloned();
        inside(self, other).or_else(|| inside(other, self)).map(|root| root.join("/"))
    }

    /// As a manifest lists them.
    pub fn listed(&self) -> Vec<String> {
        self.0.iter().map(|root| root.join("/")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(texts: &[&str]) -> Roots {
        Roots::parse(texts).expect("the roots are apart")
    }

    #[test]
    fn roots_are_compared_by_whole_segments() {
        let own = roots(&["a/b", "/c/"]);
        for (path, owned, below) in [
            (&["a", "b"][..], true, true),
            (&["a", "b", "x"], true, true),
            (&["a", "bc"], false, false),
            (&["a"], false, true),
            (&["c", "d"], true, true),
            (&[], false, true),
            (&["d"], false, false),
        ] {
            assert_eq!((own.own(path), own.reach_below(path)), (owned, below), "{path:?}");
        }
        assert!(Roots::default().own(&["anything"]) && Roots::default().own::<&str>(&[]));
        assert_eq!(own.shared_with(&roots(&["a/b/c"])), Some("a/b/c".to_owned()));
        assert_eq!(own.shared_with(&roots(&["a"])), Some("a/b".to_owned()));
        assert_eq!(own.shared_with(&roots(&["a/bc", "d"])), None);
        assert_eq!(own.shared_with(&Roots::default()), Some("a/b".to_owned()));
    }

    #[test]
    fn overlapping_roots_are_refused() {
        for texts in [&["a", "a/b"][..], &["a", "a"], &["", "a"], &["a/b", "c", "a"]] {
            assert!(matches!(Roots::parse(texts), Err(ManifestError::Overlap(..))), "{texts:?}");
        }
        let many: Vec<String> = (0..=MAX_ROOTS).map(|at| format!("r{at}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(Roots::parse(&many), Err(ManifestError::TooManyRoots));
    }

    #[test]
    fn manifests_say_what_opa_lets_them_say() {
        let manifest = Manifest::parse(
            br#"{"revision": "r1", "roots": ["a"], "rego_version": 1, "file_rego_versions": {"/old/*.rego": 0, "/old/new.rego": 1}, "more": 1}"#,
        )
        .expect("a manifest");
        assert_eq!(manifest.revision, "r1");
        assert_eq!(manifest.version_of("/old/p.rego"), Some(0));
        assert_eq!(manifest.version_of("/old/new.rego"), Some(0), "`*` sorts before `n`");
        assert_eq!(manifest.version_of("old/p.rego"), Some(1), "paths are compared as they are spelled");
        for text in ["{}", "null", "{} more"] {
            assert_eq!(Manifest::parse(text.as_bytes()).expect("a manifest").roots, Roots::default(), "{text}");
        }
        let other_case = Manifest::parse(br#"{"Roots": ["p"]}"#).expect("a manifest");
        assert_eq!(other_case.roots.listed(), ["p"]);
        for text in [
            "[]",
            "{",
            r#"{"revision": 1}"#,
            r#"{"roots": "a"}"#,
            r#"{"roots": [1]}"#,
            r#"{"rego_version": 2}"#,
            r#"{"file_rego_versions": {"a": "0"}}"#,
            r#"{"file_rego_versions": {"/old/[": 0}}"#,
        ] {
            assert!(matches!(Manifest::parse(text.as_bytes()), Err(ManifestError::Shape(_))), "{text}");
        }
        let wasm = br#"{"wasm": [{"entrypoint": "a"}]}"#;
        assert_eq!(Manifest::parse(wasm).err(), Some(ManifestError::Wasm));
    }
}
