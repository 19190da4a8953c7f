//! Telling the caller what to prove: RFC 6750 section 3 and RFC 9470 section 3, as header and as JSON.

use crate::opa::decision::{HttpStatus, StepUp};
use crate::token::{TokenError, TokenState};

/// What stands in every challenge.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub realm: Option<String>,
    /// Where the protected resource's metadata is (RFC 9728 section 5.1).
    pub resource_metadata: Option<String>,
}

/// `realm` of a challenge that would otherwise have no parameter at all, which RFC 6750 does not allow.
const DEFAULT_REALM: &str = "stepgate";

/// A rendered challenge.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    pub status: HttpStatus,
    /// The value of `WWW-Authenticate`; absent when the caller can do nothing but wait.
    pub header: Option<String>,
    /// Members of the JSON body, beside `decision_id`.
    pub body: serde_json::Map<String, serde_json::Value>,
}

impl Settings {
    /// The challenge for a request that the policy denies without saying how, by the state of its token. A caller whose
    /// token is good, or a server without issuers, is not challenged.
    pub fn for_token(&self, token: &TokenState) -> Option<Challenge> {
        match token {
            TokenState::Unconfigured | TokenState::Verified(_) => None,
            TokenState::Absent => Some(self.without_token()),
            TokenState::Rejected(TokenError::KeysUnavailable) => Some(Challenge {
                status: HttpStatus::SERVICE_UNAVAILABLE,
                header: None,
                body: object([("reason", TokenError::KeysUnavailable.reason().into())]),
            }),
            TokenState::Rejected(error) => Some(self.rejected(*error)),
        }
    }

    /// No credentials were sent: no `error` (RFC 6750 section 3.1).
    fn without_token(&self) -> Challenge {
        let mut parameters = Parameters::default();
        parameters.add("realm", self.realm.as_deref().unwrap_or(DEFAULT_REALM));
        parameters.add_some("resource_metadata", self.resource_metadata.as_deref());
        let body = object([("reason", "no_token".into())]);
        Challenge { status: HttpStatus::UNAUTHORIZED, header: Some(parameters.bearer()), body }
    }

    fn rejected(&self, error: TokenError) -> Challenge {
        let mut parameters = Parameters::default();
        parameters.add_some("realm", self.realm.as_deref());
        parameters.add("error", error.code());
        parameters.add("error_description", &sentence(&error.to_string()));
        parameters.add_some("resource_metadata", self.resource_metadata.as_deref());
        let status = if error.code() == "invalid_request" { HttpStatus::BAD_REQUEST } else { HttpStatus::UNAUTHORIZED };
        let body = object([("error", error.code().into()), ("reason", error.reason().into())]);
        Challenge { status, header: Some(parameters.bearer()), body }
    }

    /// The step-up challenge.
    pub fn step_up(&self, step_up: &StepUp) -> Challenge {
        let acr_values: Vec<_> =
            step_up.acr_values.iter().map(|value| token(value)).filter(|v| !v.is_empty()).collect();
        let description = match (&step_up.description, acr_values.is_empty(), step_up.max_age) {
            (Some(description), ..) => quotable(description),
            (None, true, Some(_)) => "More recent authentication is required".to_owned(),
            _ => "A different authentication level is required".to_owned(),
        };
        let scope = step_up.scope.as_deref().map(|scope| scope.split(' ').map(token).collect::<Vec<_>>().join(" "));

        let mut parameters = Parameters::default();
        parameters.add_some("realm", self.realm.as_deref());
        parameters.add("error", "insufficient_user_authentication");
        parameters.add("error_description", &description);
        if !acr_values.is_empty() {
            parameters.add("acr_values", &acr_values.join(" "));
        }
        if let Some(max_age) = step_up.max_age {
            parameters.add("max_age", &max_age.to_string());
        }
        parameters.add_some("scope", scope.as_deref().map(str::trim).filter(|scope| !scope.is_empty()));
        parameters.add_some("resource_metadata", self.resource_metadata.as_deref());

        let mut body = object([
            ("error", "insufficient_user_authentication".into()),
            ("error_description", description.into()),
            ("reason", step_up.reason.as_deref().unwrap_or("step_up_required").into()),
        ]);
        if !acr_values.is_empty() {
            body.insert("acr_values".to_owned(), acr_values.into());
        }
        if let Some(max_age) = step_up.max_age {
            body.insert("max_age".to_owned(), max_age.into());
        }
        if let Some(scope) = scope {
            body.insert("scope".to_owned(), scope.into());
        }
        Challenge { status: HttpStatus::UNAUTHORIZED, header: Some(parameters.bearer()), body }
    }
}

fn object<const N: usize>(members: [(&str, serde_json::Value); N]) -> serde_json::Map<String, serde_json::Value> {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The parameters of one challenge.
#[derive(Default)]
struct Parameters(Vec<String>);

impl Parameters {
    /// Whatever the value holds, the header cannot be split or ended early by it.
    fn add(&mut self, name: &str, value: &str) {
        self.0.push(format!("{name}=\"{}\"", quotable(value)));
    }

    fn add_some(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    fn bearer(self) -> String {
        format!("Bearer {}", self.0.join(", "))
    }
}

/// The characters of `error_description` (RFC 6750 section 3): printable ASCII without quote and backslash.
fn quotable(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ' '..='~') && !matches!(c, '"' | '\\') { c } else { ' ' }).collect()
}

/// The characters of a scope token or an acr value (RFC 6750 section 3).
fn token(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '!'..='~') && !matches!(c, '"' | '\\')).collect()
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            realm: None,
            resource_metadata: Some("https://api.example.com/.well-known/oauth-protected-resource".into()),
        }
    }

    #[test]
    fn step_up_challenges_are_those_of_rfc_9470() {
        let plain = Settings::default();
        let level = StepUp { acr_values: vec!["phr".into(), "mfa".into()], ..StepUp::default() };
        assert_eq!(
            plain.step_up(&level).header.as_deref(),
            Some(
                "Bearer error=\"insufficient_user_authentication\", \
                  error_description=\"A different authentication level is required\", acr_values=\"phr mfa\""
            )
        );
        let age = StepUp { max_age: Some(5), ..StepUp::default() };
        assert_eq!(
            plain.step_up(&age).header.as_deref(),
            Some(
                "Bearer error=\"insufficient_user_authentication\", \
                  error_description=\"More recent authentication is required\", max_age=\"5\""
            )
        );
        let all = StepUp { scope: Some("payments:write".into()), max_age: Some(0), ..level };
        let challenge = settings().step_up(&all);
        assert_eq!(challenge.status, HttpStatus::UNAUTHORIZED);
        assert!(challenge.header.expect("a header").ends_with(
            "acr_values=\"phr mfa\", max_age=\"0\", scope=\"payments:write\", \
             resource_metadata=\"https://api.example.com/.well-known/oauth-protected-resource\""
        ));
    }

    #[test]
    fn without_a_token_there_is_no_error() {
        let challenge = Settings::default().for_token(&TokenState::Absent).expect("a challenge");
        assert_eq!(challenge.header.as_deref(), Some("Bearer realm=\"stepgate\""));
    }

    #[test]
    fn rejected_tokens_are_told_why_in_our_own_words() {
        let challenge = Settings::default().for_token(&TokenState::Rejected(TokenError::Expired)).expect("a challenge");
        assert_eq!(
            challenge.header.as_deref(),
            Some("Bearer error=\"invalid_token\", error_description=\"The token has expired\"")
        );
        let twice =
            Settings::default().for_token(&TokenState::Rejected(TokenError::SeveralTokens)).expect("a challenge");
        assert_eq!(twice.status, HttpStatus::BAD_REQUEST);
        let outage =
            Settings::default().for_token(&TokenState::Rejected(TokenError::KeysUnavailable)).expect("an answer");
        assert_eq!((outage.status, outage.header), (HttpStatus::SERVICE_UNAVAILABLE, None));
    }

    #[test]
    fn no_text_can_leave_its_parameter() {
        let hostile = "x\", error=\"none\r\nset-cookie: a=b\\\u{e9}";
        let step_up = StepUp {
            acr_values: vec![hostile.into()],
            scope: Some(hostile.into()),
            description: Some(hostile.into()),
            ..StepUp::default()
        };
        let header = Settings::default().step_up(&step_up).header.expect("a header");
        assert!(header.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{header}");
        assert_eq!(header.matches('"').count(), 8, "{header}");
        assert!(!header.contains('\\'), "{header}");
    }
}
