//! Telling the caller what to prove: RFC 6750 section 3 and RFC 9470 section 3, as header and as JSON.

use crate::opa::decision::{HttpStatus, StepUp};
use crate::token::{TokenError, TokenState};

/// What stands in every challenge.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub realm: Option<String>,
    /// Where the protected resource's metadata is (RFC 9728 section 5.1).
    pub resource_metadata: Option<String>,
    /// Where some issuer's tokens may be bound to a key (RFC 9449).
    pub dpop: Option<DpopChallenge>,
}

/// What stands in challenges for bound tokens.
#[derive(Clone, Debug)]
pub struct DpopChallenge {
    /// The algorithms that proofs may have.
    pub algorithms: String,
    /// Whether no token without a proof is taken from anybody.
    pub is_required: bool,
}

/// `realm` of a challenge that would otherwise have no parameter at all, which RFC 6750 does not allow.
const DEFAULT_REALM: &str = "stepgate";

/// A rendered challenge.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    pub status: HttpStatus,
    /// The values of `WWW-Authenticate`; none when the caller can do nothing but wait.
    pub headers: Vec<String>,
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
            TokenState::Rejected(error) if error.is_temporary() => Some(Challenge {
                status: HttpStatus::SERVICE_UNAVAILABLE,
                headers: Vec::new(),
                body: object([("reason", error.reason().into())]),
            }),
            TokenState::Rejected(error) => Some(self.rejected(*error)),
        }
    }

    /// No credentials were sent: no `error` (RFC 6750 section 3.1).
    fn without_token(&self) -> Challenge {
        let mut headers = Vec::new();
        for is_dpop in [false, true] {
            let is_offered = match &self.dpop {
                None => !is_dpop,
                Some(dpop) => is_dpop || !dpop.is_required,
            };
            if is_offered {
                let mut parameters = Parameters::default();
                let default = (!is_dpop).then_some(DEFAULT_REALM);
                parameters.add_some("realm", self.realm.as_deref().or(default));
                parameters.add_some("resource_metadata", self.resource_metadata.as_deref());
                headers.push(self.rendered(parameters, is_dpop));
            }
        }
        let body = object([("reason", "no_token".into())]);
        Challenge { status: HttpStatus::UNAUTHORIZED, headers, body }
    }

    fn rejected(&self, error: TokenError) -> Challenge {
        let mut parameters = Parameters::default();
        parameters.add_some("realm", self.realm.as_deref());
        parameters.add("error", error.code());
        parameters.add("error_description", &sentence(&error.to_string()));
        parameters.add_some("resource_metadata", self.resource_metadata.as_deref());
        let status = if error.code() == "invalid_request" { HttpStatus::BAD_REQUEST } else { HttpStatus::UNAUTHORIZED };
        let body = object([("error", error.code().into()), ("reason", error.reason().into())]);
        Challenge { status, headers: vec![self.rendered(parameters, error.is_of_proof())], body }
    }

    /// The challenge with its scheme, and what belongs to that.
    fn rendered(&self, mut parameters: Parameters, is_dpop: bool) -> String {
        match self.dpop.as_ref().filter(|_| is_dpop) {
            None => parameters.under("Bearer"),
            Some(dpop) => {
                parameters.add("algs", &dpop.algorithms);
                parameters.under("DPoP")
            }
        }
    }

    /// The step-up challenge; `is_bound` says whether the token is bound to a key.
    pub fn step_up(&self, step_up: &StepUp, is_bound: bool) -> Challenge {
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
        Challenge { status: HttpStatus::UNAUTHORIZED, headers: vec![self.rendered(parameters, is_bound)], body }
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

    fn under(self, scheme: &str) -> String {
        format!("{scheme} {}", self.0.join(", "))
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
            dpop: None,
        }
    }

    #[test]
    fn step_up_challenges_are_those_of_rfc_9470() {
        let plain = Settings::default();
        let level = StepUp { acr_values: vec!["phr".into(), "mfa".into()], ..StepUp::default() };
        assert_eq!(
            plain.step_up(&level, false).headers.first().map(String::as_str),
            Some(
                "Bearer error=\"insufficient_user_authentication\", \
                  error_description=\"A different authentication level is required\", acr_values=\"phr mfa\""
            )
        );
        let age = StepUp { max_age: Some(5), ..StepUp::default() };
        assert_eq!(
            plain.step_up(&age, false).headers.first().map(String::as_str),
            Some(
                "Bearer error=\"insufficient_user_authentication\", \
                  error_description=\"More recent authentication is required\", max_age=\"5\""
            )
        );
        let all = StepUp { scope: Some("payments:write".into()), max_age: Some(0), ..level };
        let challenge = settings().step_up(&all, false);
        assert_eq!(challenge.status, HttpStatus::UNAUTHORIZED);
        assert!(challenge.headers[0].ends_with(
            "acr_values=\"phr mfa\", max_age=\"0\", scope=\"payments:write\", \
             resource_metadata=\"https://api.example.com/.well-known/oauth-protected-resource\""
        ));
    }

    #[test]
    fn without_a_token_there_is_no_error() {
        let challenge = Settings::default().for_token(&TokenState::Absent).expect("a challenge");
        assert_eq!(challenge.headers.first().map(String::as_str), Some("Bearer realm=\"stepgate\""));
    }

    #[test]
    fn rejected_tokens_are_told_why_in_our_own_words() {
        let challenge = Settings::default().for_token(&TokenState::Rejected(TokenError::Expired)).expect("a challenge");
        assert_eq!(
            challenge.headers.first().map(String::as_str),
            Some("Bearer error=\"invalid_token\", error_description=\"The token has expired\"")
        );
        let twice =
            Settings::default().for_token(&TokenState::Rejected(TokenError::SeveralTokens)).expect("a challenge");
        assert_eq!(twice.status, HttpStatus::BAD_REQUEST);
        let outage =
            Settings::default().for_token(&TokenState::Rejected(TokenError::KeysUnavailable)).expect("an answer");
        assert_eq!((outage.status, outage.headers), (HttpStatus::SERVICE_UNAVAILABLE, Vec::new()));
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
        let header = Settings::default().step_up(&step_up, false).headers.remove(0);
        assert!(header.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{header}");
        assert_eq!(header.matches('"').count(), 8, "{header}");
        assert!(!header.contains('\\'), "{header}");
    }

    #[test]
    fn bound_tokens_are_challenged_under_their_own_scheme() {
        let dpop = |is_required| Settings {
            dpop: Some(DpopChallenge { algorithms: "ES256 PS256".to_owned(), is_required }),
            ..Settings::default()
        };
        let both = dpop(false).for_token(&TokenState::Absent).expect("a challenge").headers;
        assert_eq!(both, ["Bearer realm=\"stepgate\"", "DPoP algs=\"ES256 PS256\""]);
        let one = dpop(true).for_token(&TokenState::Absent).expect("a challenge").headers;
        assert_eq!(one, ["DPoP algs=\"ES256 PS256\""]);
        let proof = dpop(false).for_token(&TokenState::Rejected(TokenError::Proof)).expect("a challenge").headers;
        assert!(
            proof[0].starts_with("DPoP error=\"invalid_dpop_proof\"") && proof[0].ends_with("algs=\"ES256 PS256\""),
            "{proof:?}"
        );
        let bearer = dpop(false).for_token(&TokenState::Rejected(TokenError::Bound)).expect("a challenge").headers;
        assert!(bearer[0].starts_with("DPoP error=\"invalid_token\""), "{bearer:?}");
        let step_up = dpop(false).step_up(&StepUp { max_age: Some(0), ..StepUp::default() }, true).headers;
        assert!(step_up[0].starts_with("DPoP error=\"insufficient_user_authentication\""), "{step_up:?}");
    }
}
