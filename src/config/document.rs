//! The configuration as a document: file, substitution from the environment, overrides from flags.
//!
//! Mirrors: OPA `v1/config` and `cmd/internal/env`, v1.9.0: `${NAME}` is replaced as text before the YAML is read, and an
//! unset name is left as it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::overrides::{OverrideError, apply};
use super::problem::Problem;
use crate::value::{DuplicateKey, parse_yaml_configuration, to_serde_json};

/// Levels of nesting of a configuration.
const MAX_DEPTH: usize = 100;
/// Bytes that a configuration file may have.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The merged configuration, not yet checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub value: Value,
    /// Keys that stand twice: the first of them would be lost in silence.
    pub duplicates: Vec<Problem>,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    #[error("the configuration file `{}` cannot be read", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    #[error("the configuration file `{}` is larger than 16 MiB", .0.display())]
    TooLarge(PathBuf),
    #[error("the configuration file `{}` is not YAML: {reason}", path.display())]
    Yaml { path: PathBuf, reason: String },
    #[error("the configuration file `{}` is not an object", .0.display())]
    NotAnObject(PathBuf),
    #[error("`--set {0}`: {1}")]
    Set(String, #[source] OverrideError),
    #[error("`{0}` is not the URL of a bundle")]
    Url(String),
    #[error("`--set-file {0}`: the file cannot be read")]
    SetFile(String, #[source] std::io::Error),
}

impl Document {
    /// A document from elsewhere than a file.
    pub fn of(value: Value) -> Self {
        Self { value, duplicates: Vec::new() }
    }

    /// Reads `file` and applies the overrides in order.
    pub fn load(
        file: Option<&Path>,
        set: &[String],
        set_file: &[String],
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, DocumentError> {
        let Self { mut value, duplicates } = match file {
            Some(path) => read(path, environment)?,
            None => Self::of(Value::Object(serde_json::Map::new())),
        };
        for text in set {
            let text = substitute(text, environment);
            apply(&mut value, &text).map_err(|error| DocumentError::Set(text.clone(), error))?;
        }
        for text in set_file {
            let (key, path) = text.split_once('=').unwrap_or((text, ""));
            let content = std::fs::read_to_string(path).map_err(|error| DocumentError::SetFile(text.clone(), error))?;
            super::overrides::put(&mut value, key, Value::from(content.trim()))
                .map_err(|error| DocumentError::Set(text.clone(), error))?;
        }
        Ok(Self { value, duplicates })
    }

    /// Adds a bundle by its URL, as OPA does for one on the command line: service and bundle of this name, kept on disk.
    pub fn add_bundle_url(&mut self, name: &str, url: &str) -> Result<(), DocumentError> {
        let refused = || DocumentError::Url(url.to_owned());
        let parsed = url::Url::parse(url).map_err(|_| refused())?;
        let resource =
            parsed.query().map_or_else(|| parsed.path().to_owned(), |query| format!("{}?{query}", parsed.path()));
        let server = parsed.origin().ascii_serialization();
        let members = self.value.as_object_mut().ok_or_else(refused)?;
        match members.entry("services").or_insert_with(|| json!({})) {
            Value::Object(services) => {
                services.insert(name.to_owned(), json!({"url": server}));
            }
            Value::Array(services) => services.push(json!({"name": name, "url": server})),
            _ => return Err(refused()),
        }
        let bundles = members.entry("bundles").or_insert_with(|| json!({}));
        let bundle = json!({"service": name, "resource": resource, "persist": true});
        bundles.as_object_mut().ok_or_else(refused)?.insert(name.to_owned(), bundle);
        Ok(())
    }
}

fn read(path: &Path, environment: &BTreeMap<String, String>) -> Result<Document, DocumentError> {
    let failed = |error| DocumentError::Read(path.to_owned(), error);
    if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE_BYTES {
        return Err(DocumentError::TooLarge(path.to_owned()));
    }
    let text = substitute(&std::fs::read_to_string(path).map_err(failed)?, environment);
    let refused = |reason: String| DocumentError::Yaml { path: path.to_owned(), reason };
    // As OPA reads it, where `on` is true.
    let (value, duplicates) = parse_yaml_configuration(&text).map_err(refused)?;
    let value = to_serde_json(&value, MAX_DEPTH).ok_or_else(|| refused(format!("deeper than {MAX_DEPTH} levels")))?;
    let twice =
        |key: DuplicateKey| Problem { path: key.path, message: format!("stands twice, again in line {}", key.line) };
    let duplicates = duplicates.into_iter().map(twice).collect();
    match value {
        Value::Null => Ok(Document { value: Value::Object(serde_json::Map::new()), duplicates }),
        Value::Object(_) => Ok(Document { value, duplicates }),
        _ => Err(DocumentError::NotAnObject(path.to_owned())),
    }
}

/// Replaces `${NAME}` for every name that is set.
pub(super) fn substitute(text: &str, environment: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        out.push_str(before);
        match after.split_once('}').and_then(|(name, tail)| environment.get(name).map(|value| (value, tail))) {
            Some((value, tail)) => {
                out.push_str(value);
                rest = tail;
            }
            None => {
                out.push_str("${");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_the_command_line_is_a_bundle() {
        let mut document = Document::of(json!({"services": [{"name": "a", "url": "http://a"}]}));
        document.add_bundle_url("cli1", "https://bundles.test:8443/b.tar.gz?v=1").expect("a URL");
        assert_eq!(document.value["services"][1], json!({"name": "cli1", "url": "https://bundles.test:8443"}));
        let bundle = json!({"service": "cli1", "resource": "/b.tar.gz?v=1", "persist": true});
        assert_eq!(document.value["bundles"], json!({"cli1": bundle}));
        assert!(document.add_bundle_url("cli2", "http://").is_err());
    }

    #[test]
    fn names_are_replaced_as_text_and_unset_ones_are_left() {
        let environment = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("E".to_owned(), String::new())]);
        assert_eq!(substitute("x${A}y${E}z${NONE} ${ $A ${A}", &environment), "x1yz${NONE} ${ $A 1");
    }
}
