//! The headers that tell the upstream who the caller is, and the removal of a caller's own copies of them.
//!
//! A received header counts as a copy when its name is the same after lower-casing and reading `_` as `-`: many servers
//! hand both spellings to the application as one (CVE-2025-64484).

use crate::opa::input::Attributes;
use crate::value::{Value, as_text, member};

use super::evidence::Evidence;

/// One header that stepgate owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityHeader {
    /// Lower case.
    pub name: String,
    pub source: IdentitySource,
}

/// Where a header's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentitySource {
    /// A claim of the verified token, by its path.
    Claim(Vec<String>),
    /// A member of `input.authn`.
    Authn(String),
}

impl IdentitySource {
    /// Reads `claims.<path>` or `authn.<member>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (root, rest) = text.split_once('.')?;
        if rest.is_empty() || rest.split('.').any(str::is_empty) {
            return None;
        }
        match root {
            "claims" => Some(Self::Claim(rest.split('.').map(str::to_owned).collect())),
            "authn" => Some(Self::Authn(rest.to_owned())),
            _ => None,
        }
    }

    fn value(&self, evidence: &Evidence, now: i64) -> Option<String> {
        let verified = evidence.verified()?;
        match self {
            Self::Claim(path) => {
                let claims = verified.claims().document();
                header_text(path.iter().try_fold(claims, |here, key| member(here, key))?)
            }
            Self::Authn(name) => header_text(member(&verified.authn().document(now), name)?),
        }
    }
}

/// What to do with the request's headers on allow.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mutation {
    pub set: Vec<(String, String)>,
    pub remove: Vec<String>,
}

impl Mutation {
    /// The owned headers of this request: those with a value are set, the others and every copy are removed.
    pub fn of(owned: &[IdentityHeader], evidence: &Evidence, attributes: &Attributes<'_>, now: i64) -> Self {
        let mut mutation = Self::default();
        for header in owned {
            match header.source.value(evidence, now) {
                // Envoy removes after it sets: a name that is set must not be among those removed.
                Some(value) => mutation.set.push((header.name.clone(), value)),
                None => mutation.remove.push(header.name.clone()),
            }
        }
        if let Some(http) = attributes.http.as_ref().filter(|_| !owned.is_empty()) {
            for received in http.header_names() {
                let is_copy = owned.iter().any(|header| header.name != received && is_same(&header.name, received));
                if is_copy && !mutation.remove.iter().any(|name| name == received) {
                    mutation.remove.push(received.to_owned());
                }
            }
        }
        mutation
    }

    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
}

fn is_same(owned: &str, received: &str) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    owned.bytes().map(plain).eq(received.bytes().map(plain))
}

/// Text that may stand in a header; lists of texts are joined by a comma. Anything else has no header form.
fn header_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.format_decimal(),
        Value::Array(items) => items.iter().map(as_text).collect::<Option<Vec<_>>>()?.join(","),
        _ => return None,
    };
    (!text.is_empty() && !text.chars().any(char::is_control)).then_some(text)
}
