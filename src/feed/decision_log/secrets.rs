//! Detection of credentials anywhere in an event: by name, or by form.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::value::{Value, as_text};

/// Names of headers, parameters and members whose values are credentials.
const NAMES: [&str; 41] = [
    "access_token",
    "api_key",
    "apikey",
    "assertion",
    "auth_token",
    "authorization",
    "cf-access-jwt-assertion",
    "client_assertion",
    "client_secret",
    "cookie",
    "dpop",
    "id_token",
    "id_token_hint",
    "jwt",
    "password",
    "private-token",
    "proxy-authorization",
    "refresh_token",
    "sec-websocket-protocol",
    "session_token",
    "set-cookie",
    "sig",
    "token",
    "x-access-token",
    "x-amz-security-token",
    "x-amzn-oidc-data",
    "x-api-key",
    "x-auth-request-access-token",
    "x-auth-token",
    "x-csrf-token",
    "x-forwarded-access-token",
    "x-forwarded-authorization",
    "x-forwarded-client-cert",
    "x-forwarded-id-token",
    "x-goog-authenticated-user-jwt",
    "x-goog-iap-jwt-assertion",
    "x-id-token",
    "x-jwt-payload",
    "x-ms-token-aad-access-token",
    "x-original-authorization",
    "x-vault-token",
];
/// The authorization code, by a name that means something else anywhere but among parameters.
const CODE: &str = "code";

static KNOWN: LazyLock<HashSet<&'static str>> = LazyLock::new(|| NAMES.into_iter().collect());

/// Finds secrets.
#[derive(Clone, Copy, Debug)]
pub struct Secrets<'a> {
    /// Headers where tokens are looked for, in lower case.
    pub token_headers: &'a [String],
}

impl Secrets<'_> {
    fn is_secret(self, name: &str) -> bool {
        let name = match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        };
        let name = name.strip_suffix("[]").unwrap_or(&name);
        KNOWN.contains(name) || self.token_headers.iter().any(|header| header == name)
    }

    /// A query, a path or a URL has a credential among its parameters.
    pub fn are_in_query(self, text: &str) -> bool {
        let pairs = text.split(['?', '#', ';']).flat_map(|part| url::form_urlencoded::parse(part.as_bytes()));
        pairs.into_iter().any(|(name, _)| name.eq_ignore_ascii_case(CODE) || self.is_secret(&name))
    }

    /// The paths to all secrets below `path`, each after those that stand before it in the same list.
    pub fn find(self, value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
        match value {
            Value::String(text) if is_credential(text) => found.push(path.clone()),
            Value::Object(members) => {
                let among_parameters = path.last().is_some_and(|name| name == "parsed_query" || name == "parsed_body");
                for (key, value) in members.iter() {
                    let Some(name) = as_text(key) else { continue };
                    path.push(name.to_owned());
                    let is_named = self.is_secret(name) || (among_parameters && name.eq_ignore_ascii_case(CODE));
                    if is_named && is_plain(value) {
                        found.push(path.clone());
                    } else {
                        self.find(value, path, found);
                    }
                    path.pop();
                }
            }
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    path.push(at.to_string());
                    self.find(item, path, found);
                    path.pop();
                }
            }
            // Nothing leads into a set, so all of it goes.
            Value::Set(set) => {
                let mut inside = Vec::new();
                set.iter().for_each(|item| self.find(item, path, &mut inside));
                if !inside.is_empty() {
                    found.push(path.clone());
                }
            }
            _ => {}
        }
    }
}

/// The value has the type of a credential: a string, a number, or an array of them.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::String(_) | Value::Number(_) => true,
        Value::Array(items) => items.iter().all(is_plain),
        Value::Set(items) => items.iter().all(is_plain),
        _ => false,
    }
}

/// A text contains a JWT, or is the value of an `Authorization` header.
pub fn is_credential(text: &str) -> bool {
    let is_authorization = text.trim_start().split_once(' ').is_some_and(|(scheme, rest)| {
        let rest = rest.trim();
        let is_one = !rest.is_empty() && !rest.contains(char::is_whitespace);
        let is_pair = || STANDARD.decode(rest).is_ok_and(|pair| pair.contains(&b':'));
        is_one
            && (scheme.eq_ignore_ascii_case("bearer")
                || scheme.eq_ignore_ascii_case("dpop")
                || (scheme.eq_ignore_ascii_case("basic") && is_pair()))
    });
    is_authorization || text.match_indices("eyJ").any(|(at, _)| begins_with_jwt(text.get(at..).unwrap_or_default()))
}

/// Three parts in base64url, of which the signature may be empty (RFC 7515 section 3.1).
fn begins_with_jwt(text: &str) -> bool {
    let is_of_part = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_');
    let end = text.find(|char| !is_of_part(char) && char != '.').unwrap_or(text.len());
    let mut parts = text.get(..end).unwrap_or_default().split('.');
    matches!((parts.next(), parts.next(), parts.next()), (Some(header), Some(payload), Some(_)) if header.len() > 8 && !payload.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{DuplicateKeys, JsonLimits, parse_json};

    fn found(json: &str) -> Vec<String> {
        let limits = JsonLimits { depth: 50, duplicates: DuplicateKeys::Refuse };
        let value = parse_json(json.as_bytes(), limits).expect("JSON");
        let mut found = Vec::new();
        let headers = ["x-user".to_owned()];
        Secrets { token_headers: &headers }.find(&value, &mut Vec::new(), &mut found);
        found.into_iter().map(|path| path.join("/")).collect()
    }

    #[test]
    fn secrets_are_found_by_name_at_any_depth() {
        for (json, want) in [
            (
                r#"{"headers": [{"Authorization": "x"}, {"x-user": "y", "plain": 1}]}"#,
                &["headers/0/Authorization", "headers/1/x-user"][..],
            ),
            (
                r#"{"allow": {"query_parameters_to_set": {"access_token": "x"}}}"#,
                &["allow/query_parameters_to_set/access_token"],
            ),
            (r#"{"password": 1234, "token": ["a", "b"], "api_key": null}"#, &["password", "token"]),
            // Evidence and flags of that name are none.
            (r#"{"jwt": {"state": "verified", "dpop": true}, "code": 7}"#, &[]),
            (
                r#"{"parsed_query": {"code": ["c"], "id_token[]": ["x"]}, "country": {"code": "DE"}}"#,
                &["parsed_query/code", "parsed_query/id_token[]"],
            ),
        ] {
            assert_eq!(found(json), want, "{json}");
        }
    }

    #[test]
    fn secrets_are_found_by_what_they_look_like() {
        for (text, want) in [
            ("eyJhbGciOiJub25lIn0.e30.", true),
            ("data.x with input.token as \"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln\"", true),
            ("Bearer abc", true),
            ("dpop abc", true),
            ("Basic YTpi", true),
            ("Basic plan", false),
            ("bearer of good news", false),
            ("eyJ.a.b", false),
            ("eyJhbGciOiJub25lIn0.e30", false),
            ("keyJhbGciO", false),
        ] {
            assert_eq!(is_credential(text), want, "{text}");
        }
        assert_eq!(
            found(r#"{"a": ["x", "Bearer y"], "meta": {"f": {"id": "eyJhbGciOiJub25lIn0.e30.x"}}}"#),
            ["a/1", "meta/f/id"]
        );
    }

    #[test]
    fn queries_are_searched_by_name() {
        let secrets = Secrets { token_headers: &[] };
        for text in ["/a?token=x", "/a;token=x", "/a#access_token=x", "a=1&Code=2", "x[]=1&sig=2", "%74oken=1"] {
            assert!(secrets.are_in_query(text), "{text}");
        }
        for text in ["/a?x=token", "/token", "", "tokens=1"] {
            assert!(!secrets.are_in_query(text), "{text}");
        }
    }

    #[test]
    fn a_set_with_a_secret_goes_as_a_whole() {
        let set = Value::set(["Bearer x", "plain"].into_iter().map(Value::from).collect());
        let mut found = Vec::new();
        Secrets { token_headers: &[] }.find(&set, &mut vec!["s".to_owned()], &mut found);
        assert_eq!(found, [["s"]]);
    }
}
