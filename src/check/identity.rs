//! Identity headers for the upstream, and the removal of a caller's own copies of them.
//!
//! A received header counts as a copy when its name is the same after lower-casing and reading everything but letters and digits as `-`:
//! CGI and its kin hand `X_Auth`, `X-Auth` and `X.Auth` to the application as one (CVE-2025-64484).

use crate::opa::input::Attributes;
use crate::value::{Value, as_text, member};

use super::Settings;
use super::evidence::Evidence;
use crate::token::{Authn, Verified, WEBSOCKET_PROTOCOL};

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
    /// A member of `input.workload`.
    Workload(String),
    /// Nothing but what the policy's decision says.
    Policy,
    /// A token of our own.
    Token,
}

impl IdentitySource {
    /// Reads `claims.<path>`, `claims["<name>"]`, `authn.<member>`, `workload.<member>` or `policy`.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "policy" {
            return Some(Self::Policy);
        }
        if let Some(member) = text.strip_prefix("workload.") {
            return (!member.is_empty()).then(|| Self::Workload(member.to_owned()));
        }
        if let Some(member) = text.strip_prefix("authn.") {
            return Authn::MEMBERS.contains(&member).then(|| Self::Authn(member.to_owned()));
        }
        let mut rest = text.strip_prefix("claims")?;
        let mut path = Vec::new();
        while !rest.is_empty() {
            let (part, after) = match rest.strip_prefix("[\"") {
                Some(quoted) => quoted.split_once("\"]")?,
                None => {
                    let plain = rest.strip_prefix('.')?;
                    plain.split_at(plain.find(['.', '[']).unwrap_or(plain.len()))
                }
            };
            if part.is_empty() {
                return None;
            }
            path.push(part.to_owned());
            rest = after;
        }
        (!path.is_empty()).then_some(Self::Claim(path))
    }

    /// The identity that was verified.
    pub fn found(&self, verified: &Verified, now: i64) -> Option<Value> {
        match self {
            Self::Claim(path) => {
                let claims = verified.claims().document();
                path.iter().try_fold(claims, |here, key| member(here, key)).cloned()
            }
            Self::Workload(name) => member(verified.workload()?, name).cloned(),
            Self::Authn(name) => member(&verified.authn().document(now), name).cloned(),
            Self::Policy | Self::Token => None,
        }
    }
}

/// The changes to the request's headers on allow.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HeaderMutations {
    pub set: Vec<(String, String)>,
    pub remove: Vec<String>,
}

impl HeaderMutations {
    /// The owned headers of this request: those with a value are set, the others and every copy are removed.
    pub fn of(settings: &Settings, evidence: &Evidence, attributes: &Attributes<'_>, now: i64) -> Self {
        let owned = &settings.identity_headers;
        let mut mutation = Self::removal(owned, attributes);
        let Some(verified) = evidence.verified() else { return mutation };
        for header in owned {
            let value = match header.source {
                IdentitySource::Token => settings
                    .identity_token_signer
                    .as_ref()
                    .and_then(|identity_token_signer| identity_token_signer.token(verified, now)),
                _ => header.source.found(verified, now).as_ref().and_then(header_text),
            };
            if let Some(value) = value {
                // Envoy removes after it sets: a name that is set must not be among those removed.
                mutation.remove.retain(|name| *name != header.name);
                mutation.set.push((header.name.clone(), value));
            }
        }
        mutation
    }

    /// Every owned header and every copy of one is removed, none is set.
    pub fn removal(owned: &[IdentityHeader], attributes: &Attributes<'_>) -> Self {
        let mut mutation = Self { set: Vec::new(), remove: owned.iter().map(|header| header.name.clone()).collect() };
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

    /// The same, with the subprotocols of a WebSocket that the upstream may see.
    pub fn with_subprotocols(mut self, subprotocols: Option<&str>) -> Self {
        match subprotocols {
            None => {}
            Some("") => self.remove.push(WEBSOCKET_PROTOCOL.to_owned()),
            Some(others) => self.set.push((WEBSOCKET_PROTOCOL.to_owned(), others.to_owned())),
        }
        self
    }

    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
}

fn is_same(owned: &str, received: &str) -> bool {
    let plain = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' };
    owned.bytes().map(plain).eq(received.bytes().map(plain))
}

/// Text that is valid in a header; arrays of strings are joined by a comma. Other values have no header form.
fn header_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        // An item with a comma would arrive as two.
        Value::Array(items) => {
            let item = |value| as_text(value).filter(|text| !text.contains(','));
            items.iter().map(item).collect::<Option<Vec<_>>>()?.join(",")
        }
        _ => return None,
    };
    (!text.is_empty() && !text.chars().any(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::token::verified_for_tests;

    #[test]
    fn a_source_is_a_path_of_claims_or_a_member_that_exists() {
        let claim = |path: &[&str]| Some(IdentitySource::Claim(path.iter().map(|&part| part.to_owned()).collect()));
        for (text, want) in [
            ("policy", Some(IdentitySource::Policy)),
            ("workload.role", Some(IdentitySource::Workload("role".into()))),
            ("authn.level", Some(IdentitySource::Authn("level".into()))),
            ("claims.sub", claim(&["sub"])),
            ("claims.realm.name", claim(&["realm", "name"])),
            ("claims[\"https://x/y.z\"].id", claim(&["https://x/y.z", "id"])),
            ("workload.", None),
            ("authn.unknown", None),
            ("claims", None),
            ("claims.", None),
            ("claims..a", None),
            ("claims[\"a", None),
            ("claimsub", None),
            ("headers.x", None),
        ] {
            assert_eq!(IdentitySource::parse(text), want, "{text}");
        }
    }

    #[test]
    fn what_has_no_header_form_is_not_sent() {
        let claims = json!({
            "text": "a b", "flag": true, "number": 7, "list": ["a", "b"], "empty": "", "none": null, "object": {"a": 1},
            "line": "a\nb", "comma": ["a,b"], "mixed": ["a", 1], "nested": ["a", ["b"]], "nothing": [],
        });
        let verified = verified_for_tests(&claims, |_| {});
        for (claim, want) in [
            ("text", Some("a b")),
            ("flag", Some("true")),
            ("number", Some("7")),
            ("list", Some("a,b")),
            ("empty", None),
            ("none", None),
            ("object", None),
            ("line", None),
            ("comma", None),
            ("mixed", None),
            ("nested", None),
            ("nothing", None),
            ("missing", None),
        ] {
            let found = IdentitySource::Claim(vec![claim.to_owned()]).found(&verified, 0);
            assert_eq!(found.as_ref().and_then(header_text).as_deref(), want, "{claim}");
        }
    }
}
