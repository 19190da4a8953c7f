//! Authentication challenges: RFC 6750 section 3 and RFC 9470 section 3, as header and as JSON.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::opa::decision::{HttpStatus, StepUp};
use crate::token::{ClaimsChallenge, Nonces, TokenError, TokenState, Verified, is_context};

/// The parameters of every challenge.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub realm: Option<String>,
    /// Where the protected resource's metadata is (RFC 9728 section 5.1).
    pub resource_metadata: Option<String>,
    /// Where some issuer's tokens may be bound to a key (RFC 9449).
    pub dpop: Option<DpopChallenge>,
}

/// The parameters of challenges for sender-constrained tokens.
#[derive(Clone, Debug)]
pub struct DpopChallenge {
    /// The algorithms that proofs may have.
    pub algorithms: String,
    /// Every issuer requires a proof of possession.
    pub is_required: bool,
    /// Where proofs must have a nonce of ours.
    pub nonces: Option<Arc<Nonces>>,
}

/// The authentication scheme of a challenge, by the token that the client sent.
#[derive(Clone, Copy, Debug)]
pub enum ChallengeScheme<'a> {
    Bearer,
    /// The token is bound to a key.
    Dpop,
    /// The client reads the claims challenges of Entra, and might not read any other.
    Entra(&'a ClaimsChallenge),
}

impl<'a> ChallengeScheme<'a> {
    pub fn of(verified: Option<&'a Verified>) -> Self {
        match verified {
            Some(verified) if verified.is_bound() => Self::Dpop,
            Some(verified) => verified.claims_challenge().map_or(Self::Bearer, Self::Entra),
            None => Self::Bearer,
        }
    }
}

/// `realm` of a challenge that would otherwise have no parameter at all, which RFC 6750 does not allow.
const DEFAULT_REALM: &str = "stepgate";

/// The reason of a step-up that asks for another level.
pub const LEVEL_TOO_LOW: &str = "level_too_low";

/// The reason of a step-up that asks only for a more recent authentication.
pub const AUTHENTICATION_TOO_OLD: &str = "authentication_too_old";

/// The word for the client's code: the policy's, or one for what is asked.
fn reason_of(step_up: &StepUp) -> &str {
    match (&step_up.reason, step_up.acr_values.is_empty(), step_up.max_age) {
        (Some(reason), ..) => reason,
        (None, false, _) => LEVEL_TOO_LOW,
        (None, true, Some(_)) => AUTHENTICATION_TOO_OLD,
        (None, true, None) => INSUFFICIENT_USER_AUTHENTICATION,
    }
}

/// The error code of RFC 9470 section 3.
const INSUFFICIENT_USER_AUTHENTICATION: &str = "insufficient_user_authentication";

/// The parameters of a challenge beside its error.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hints<'a> {
    /// Where the metadata of the resource is that the request is for.
    pub resource_metadata: Option<&'a str>,
    /// The audience of a token for the request.
    pub scope: Option<&'a str>,
}

/// A rendered challenge.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    pub status: HttpStatus,
    /// The values of `WWW-Authenticate`; none when the caller can do nothing but wait.
    pub headers: Vec<String>,
    /// Where a browser goes instead.
    pub location: Option<String>,
    /// `Set-Cookie`, with that.
    pub cookie: Option<String>,
    /// The body for a person, in the place of JSON.
    pub page: Option<&'static str>,
    /// Members of the JSON body, beside `decision_id`.
    pub body: serde_json::Map<String, serde_json::Value>,
}

impl Settings {
    /// The nonce to give out at `now`.
    pub fn nonce(&self, now: i64) -> Option<String> {
        Some(self.dpop.as_ref()?.nonces.as_ref()?.at(now))
    }

    /// The challenge for a request that the policy denies without saying how, by the state of its token. A caller whose
    /// token is good, or a server without issuers, is not challenged.
    pub fn for_token(&self, token: &TokenState, hints: Hints<'_>) -> Option<Challenge> {
        match token {
            TokenState::Unconfigured | TokenState::Verified(_) | TokenState::Asserted(_) => None,
            TokenState::Absent => Some(self.without_token(hints)),
            TokenState::Rejected(TokenError::Reauthenticate(max_age)) => {
                let reason = Some(TokenError::Reauthenticate(*max_age).reason().to_owned());
                let step_up = StepUp { max_age: Some(u64::from(*max_age)), reason, ..StepUp::default() };
                Some(self.step_up(&step_up, ChallengeScheme::Bearer, hints))
            }
            TokenState::Rejected(error) if error.is_temporary() => Some(Challenge {
                status: HttpStatus::SERVICE_UNAVAILABLE,
                body: object([("reason", error.reason().into())]),
                ..Challenge::denial()
            }),
            TokenState::Rejected(error) => Some(self.rejected(*error, hints)),
        }
    }

    /// No credentials were sent: no `error` (RFC 6750 section 3.1).
    fn without_token(&self, hints: Hints<'_>) -> Challenge {
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
                parameters.add_hints(hints);
                headers.push(self.rendered(parameters, is_dpop));
            }
        }
        let body = object([("reason", "no_token".into())]);
        Challenge { status: HttpStatus::UNAUTHORIZED, headers, body, ..Challenge::denial() }
    }

    fn rejected(&self, error: TokenError, hints: Hints<'_>) -> Challenge {
        let mut parameters = Parameters::default();
        parameters.add_some("realm", self.realm.as_deref());
        parameters.add("error", error.code());
        parameters.add("error_description", &sentence(&error.to_string()));
        parameters.add_hints(hints);
        let status = if error.code() == "invalid_request" { HttpStatus::BAD_REQUEST } else { HttpStatus::UNAUTHORIZED };
        let body = object([("error", error.code().into()), ("reason", error.reason().into())]);
        let headers = vec![self.rendered(parameters, error.is_of_proof())];
        Challenge { status, headers, body, ..Challenge::denial() }
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

    /// The token was issued for less than these scopes (RFC 6750 section 3.1).
    pub fn insufficient_scope(&self, scope: &str, form: ChallengeScheme<'_>, hints: Hints<'_>) -> Challenge {
        let description = "The token was issued for less than is needed";
        let mut parameters = Parameters::default();
        parameters.add_some("realm", self.realm.as_deref());
        parameters.add("error", "insufficient_scope");
        parameters.add("error_description", description);
        parameters.add_hints(Hints { scope: Some(scope), ..hints });
        let body = object([
            ("error", "insufficient_scope".into()),
            ("error_description", description.into()),
            ("reason", "insufficient_scope".into()),
            ("scope", scope.into()),
        ]);
        let headers = vec![self.rendered(parameters, matches!(form, ChallengeScheme::Dpop))];
        Challenge { status: HttpStatus::FORBIDDEN, headers, body, ..Challenge::denial() }
    }

    /// The answer when several tokens in a row did not meet the requirement: no challenge, so that the client stops.
    pub fn not_satisfiable(&self, step_up: &StepUp, hints: Hints<'_>) -> Challenge {
        let mut body = self.step_up(step_up, ChallengeScheme::Bearer, hints).body;
        body.insert("reason".to_owned(), "step_up_not_satisfiable".into());
        let description =
            "The identity provider's tokens do not meet the requirement; authenticating again is not expected to help";
        body.insert("error_description".to_owned(), description.into());
        Challenge { status: HttpStatus::FORBIDDEN, body, ..Challenge::denial() }
    }

    /// The step-up challenge.
    pub fn step_up(&self, step_up: &StepUp, form: ChallengeScheme<'_>, hints: Hints<'_>) -> Challenge {
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
        parameters.add("error", INSUFFICIENT_USER_AUTHENTICATION);
        parameters.add("error_description", &description);
        if !acr_values.is_empty() {
            parameters.add("acr_values", &acr_values.join(" "));
        }
        if let Some(max_age) = step_up.max_age {
            parameters.add("max_age", &max_age.to_string());
        }
        let scope_hint = scope.as_deref().map(str::trim).filter(|scope| !scope.is_empty());
        parameters.add_hints(Hints { scope: scope_hint, ..hints });

        let mut body = object([
            ("error", INSUFFICIENT_USER_AUTHENTICATION.into()),
            ("error_description", description.into()),
            ("reason", reason_of(step_up).into()),
        ]);
        if !acr_values.is_empty() {
            body.insert("acr_values".to_owned(), acr_values.clone().into());
        }
        if let Some(max_age) = step_up.max_age {
            body.insert("max_age".to_owned(), max_age.into());
        }
        if let Some(scope) = scope {
            body.insert("scope".to_owned(), scope.into());
        }
        let by_claims = match form {
            ChallengeScheme::Entra(how) => {
                acr_values.iter().find(|value| is_context(value)).map(|context| by_claims(how, context))
            }
            _ => None,
        };
        let header = by_claims.unwrap_or_else(|| self.rendered(parameters, matches!(form, ChallengeScheme::Dpop)));
        Challenge { status: HttpStatus::UNAUTHORIZED, headers: vec![header], body, ..Challenge::denial() }
    }
}

impl Challenge {
    /// 403 and nothing else.
    fn denial() -> Self {
        let (headers, body) = (Vec::new(), serde_json::Map::new());
        Self { status: HttpStatus::FORBIDDEN, headers, location: None, cookie: None, page: None, body }
    }

    /// A request that changes something, and comes from a page of another origin with what the browser adds by itself.
    pub fn cross_origin() -> Self {
        Self { status: HttpStatus::FORBIDDEN, body: object([("reason", "cross_origin".into())]), ..Self::denial() }
    }
}

/// Entra's claims challenge for an authentication context.
fn by_claims(how: &ClaimsChallenge, context: &str) -> String {
    let claims = serde_json::json!({"access_token": {"acrs": {"essential": true, "value": context}}});
    let mut parameters = Parameters::default();
    parameters.add("realm", "");
    parameters.add("authorization_uri", &how.authorization_uri);
    parameters.add("client_id", &how.client_id);
    parameters.add("error", "insufficient_claims");
    parameters.add("claims", &STANDARD.encode(claims.to_string()));
    parameters.add("cc_type", "authcontext");
    parameters.under("Bearer")
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

    fn add_hints(&mut self, hints: Hints<'_>) {
        self.add_some("scope", hints.scope.filter(|scope| !scope.is_empty()));
        self.add_some("resource_metadata", hints.resource_metadata);
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
    use crate::token::ProofFault;

    #[test]
    fn step_up_challenges_are_those_of_rfc_9470() {
        let plain = Settings::default();
        let level = StepUp { acr_values: vec!["phr".into(), "mfa".into()], ..StepUp::default() };
        assert_eq!(
            plain.step_up(&level, ChallengeScheme::Bearer, Hints::default()).headers.first().map(String::as_str),
            Some(
                "Bearer error=\"insufficient_user_authentication\", \
                  error_description=\"A different authentication level is required\", acr_values=\"phr mfa\""
            )
        );
        let age = StepUp { max_age: Some(5), ..StepUp::default() };
        assert_eq!(
            plain.step_up(&age, ChallengeScheme::Bearer, Hints::default()).headers.first().map(String::as_str),
            Some(
                "Bearer error=\"insufficient_user_authentication\", \
                  error_description=\"More recent authentication is required\", max_age=\"5\""
            )
        );
        let all = StepUp { scope: Some("payments:write".into()), max_age: Some(0), ..level };
        let metadata = Some("https://api.example.com/.well-known/oauth-protected-resource");
        let hints = Hints { resource_metadata: metadata, ..Hints::default() };
        let challenge = Settings::default().step_up(&all, ChallengeScheme::Bearer, hints);
        assert_eq!(challenge.status, HttpStatus::UNAUTHORIZED);
        assert!(challenge.headers[0].ends_with(
            "acr_values=\"phr mfa\", max_age=\"0\", scope=\"payments:write\", \
             resource_metadata=\"https://api.example.com/.well-known/oauth-protected-resource\""
        ));
    }

    #[test]
    fn without_a_token_there_is_no_error() {
        let challenge = Settings::default().for_token(&TokenState::Absent, Hints::default()).expect("a challenge");
        assert_eq!(challenge.headers.first().map(String::as_str), Some("Bearer realm=\"stepgate\""));
    }

    #[test]
    fn rejected_tokens_are_told_why_in_our_own_words() {
        let challenge = Settings::default()
            .for_token(&TokenState::Rejected(TokenError::Expired), Hints::default())
            .expect("a challenge");
        assert_eq!(
            challenge.headers.first().map(String::as_str),
            Some("Bearer error=\"invalid_token\", error_description=\"The token has expired\"")
        );
        let twice = Settings::default()
            .for_token(&TokenState::Rejected(TokenError::SeveralTokens), Hints::default())
            .expect("a challenge");
        assert_eq!(twice.status, HttpStatus::BAD_REQUEST);
        let outage = Settings::default()
            .for_token(&TokenState::Rejected(TokenError::KeysUnavailable), Hints::default())
            .expect("an answer");
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
        let header = Settings::default().step_up(&step_up, ChallengeScheme::Bearer, Hints::default()).headers.remove(0);
        assert!(header.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{header}");
        assert_eq!(header.matches('"').count(), 8, "{header}");
        assert!(!header.contains('\\'), "{header}");
    }

    #[test]
    fn bound_tokens_are_challenged_under_their_own_scheme() {
        let dpop = |is_required| Settings {
            dpop: Some(DpopChallenge { algorithms: "ES256 PS256".to_owned(), is_required, nonces: None }),
            ..Settings::default()
        };
        let both = dpop(false).for_token(&TokenState::Absent, Hints::default()).expect("a challenge").headers;
        assert_eq!(both, ["Bearer realm=\"stepgate\"", "DPoP algs=\"ES256 PS256\""]);
        let one = dpop(true).for_token(&TokenState::Absent, Hints::default()).expect("a challenge").headers;
        assert_eq!(one, ["DPoP algs=\"ES256 PS256\""]);
        let proof = dpop(false)
            .for_token(&TokenState::Rejected(TokenError::Proof(ProofFault::Method)), Hints::default())
            .expect("a challenge")
            .headers;
        assert!(
            proof[0].starts_with("DPoP error=\"invalid_dpop_proof\"") && proof[0].ends_with("algs=\"ES256 PS256\""),
            "{proof:?}"
        );
        let bearer = dpop(false)
            .for_token(&TokenState::Rejected(TokenError::Bound), Hints::default())
            .expect("a challenge")
            .headers;
        assert!(bearer[0].starts_with("DPoP error=\"invalid_token\""), "{bearer:?}");
        let step_up = dpop(false)
            .step_up(&StepUp { max_age: Some(0), ..StepUp::default() }, ChallengeScheme::Dpop, Hints::default())
            .headers;
        assert!(step_up[0].starts_with("DPoP error=\"insufficient_user_authentication\""), "{step_up:?}");
    }

    #[test]
    fn clients_of_entra_are_asked_in_its_way() {
        let how =
            ClaimsChallenge { client_id: "app".to_owned(), authorization_uri: "https://login/authorize".to_owned() };
        let demand = |acr: &str| StepUp { acr_values: vec!["phr".into(), acr.into()], ..StepUp::default() };
        let header = Settings::default()
            .step_up(&demand("c1"), ChallengeScheme::Entra(&how), Hints::default())
            .headers
            .remove(0);
        let claims = STANDARD.encode(r#"{"access_token":{"acrs":{"essential":true,"value":"c1"}}}"#);
        assert_eq!(
            header,
            format!(
                "Bearer realm=\"\", authorization_uri=\"https://login/authorize\", client_id=\"app\", \
                 error=\"insufficient_claims\", claims=\"{claims}\", cc_type=\"authcontext\""
            )
        );
        for other in ["c0", "c100", "c", "c1x", "cc"] {
            let header = Settings::default()
                .step_up(&demand(other), ChallengeScheme::Entra(&how), Hints::default())
                .headers
                .remove(0);
            assert!(header.starts_with("Bearer error=\"insufficient_user_authentication\""), "{other}: {header}");
        }
    }

    #[test]
    fn a_client_that_cannot_succeed_is_not_challenged() {
        let demand = StepUp { acr_values: vec!["phr".into()], ..StepUp::default() };
        let answer = Settings::default().not_satisfiable(&demand, Hints::default());
        assert_eq!((answer.status, answer.headers.len()), (HttpStatus::FORBIDDEN, 0));
        assert_eq!(answer.body["reason"], "step_up_not_satisfiable");
        assert_eq!(answer.body["acr_values"], serde_json::json!(["phr"]));
    }

    #[test]
    fn the_policys_own_words_come_before_ours() {
        let own = StepUp { max_age: Some(5), description: Some("Sign in again".into()), ..StepUp::default() };
        let header = Settings::default().step_up(&own, ChallengeScheme::Bearer, Hints::default()).headers.remove(0);
        assert!(header.contains("error_description=\"Sign in again\""), "{header}");
    }

    #[test]
    fn tokens_and_descriptions_have_their_letters() {
        assert_eq!(token("a\"b\\c d\u{e9}\u{7f}\n!~"), "abcd!~");
        assert_eq!(quotable("a\"b\\c d\u{e9}\n"), "a b c d  ");
    }

    #[test]
    fn the_form_goes_by_the_token() {
        let entra = |settings: &mut crate::token::IssuerSettings| {
            settings.claims_challenge =
                Some(ClaimsChallenge { client_id: "app".into(), authorization_uri: "https://login/authorize".into() });
        };
        let of = |claims: serde_json::Value| {
            let verified = crate::token::verified_for_tests(&claims, entra);
            match ChallengeScheme::of(Some(&verified)) {
                ChallengeScheme::Bearer => "bearer",
                ChallengeScheme::Dpop => "dpop",
                ChallengeScheme::Entra(_) => "entra",
            }
        };
        assert_eq!(of(serde_json::json!({"xms_cc": ["cp1"]})), "entra");
        assert_eq!(of(serde_json::json!({"xms_cc": ["cp2", "cp1"]})), "entra");
        for other in
            [serde_json::json!({"xms_cc": ["cp2"]}), serde_json::json!({"xms_cc": "cp1"}), serde_json::json!({})]
        {
            assert_eq!(of(other), "bearer");
        }
        assert!(matches!(ChallengeScheme::of(None), ChallengeScheme::Bearer));
    }

    #[test]
    fn a_nonce_is_given_out_where_one_is_asked_for() {
        let nonces = std::sync::Arc::new(crate::token::Nonces::new(&[7; 32]).expect("a key"));
        let challenge = |nonces| DpopChallenge { algorithms: "ES256".to_owned(), is_required: true, nonces };
        let with = Settings { dpop: Some(challenge(Some(std::sync::Arc::clone(&nonces)))), ..Settings::default() };
        assert_eq!(with.nonce(60), Some(nonces.at(60)));
        assert_eq!(Settings { dpop: Some(challenge(None)), ..Settings::default() }.nonce(60), None);
    }
}
