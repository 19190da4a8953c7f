//! The facts about the request beside Envoy's attributes: its canonical path, its token, and the level that the token proves.

use std::sync::Arc;

use tokio::time::Instant;

use super::resource::{ResourceMetadata, covering};
use crate::opa::input::{Attributes, Http};
use crate::token::{AssertedSettings, Authn, TokenError, TokenState, Verified, Verifier};
use crate::value::{Key, Members, Value};

static JWT: Key = crate::key!("jwt");
static AUTHN: Key = crate::key!("authn");
static WORKLOAD: Key = crate::key!("workload");

/// The treatment of a path that has no canonical form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AmbiguousPath {
    /// Count and log it; `input.path` is absent, so a policy that needs it fails closed.
    #[default]
    Warn,
    /// 400 before the policy is asked.
    Reject,
}

/// The evidence of one check.
#[derive(Debug)]
pub struct Evidence {
    token: TokenState,
}

impl Evidence {
    /// Looks at the request's token, waiting for missing keys no longer than until `deadline`.
    pub async fn gather(attributes: &Attributes<'_>, tokens: Option<&Verifier>, deadline: Instant) -> Self {
        let token = match tokens {
            None => TokenState::Unconfigured,
            Some(tokens) => tokens.verify(attributes, deadline).await,
        };
        Self { token }
    }

    /// The same, or what Envoy asserts, where no token was sent that could be verified here.
    pub fn or_asserted(self, by_envoy: &[AssertedSettings], attributes: Option<&Value>, now: i64) -> Self {
        let is_open = matches!(
            self.token,
            TokenState::Absent | TokenState::Unconfigured | TokenState::Rejected(TokenError::UnknownIssuer)
        );
        let Some(attributes) = attributes.filter(|_| is_open) else { return self };
        match by_envoy.iter().find_map(|settings| settings.read(attributes, now)) {
            Some(Ok(asserted)) => Self { token: TokenState::Asserted(Arc::new(asserted)) },
            Some(Err(error)) => Self { token: TokenState::Rejected(error) },
            None => self,
        }
    }

    /// Nothing is known.
    pub fn absent() -> Self {
        Self { token: TokenState::Absent }
    }

    /// The same, with the token refused after all.
    pub fn refused(self, error: TokenError) -> Self {
        Self { token: TokenState::Rejected(error) }
    }

    /// The same, with the token at no more than level `cap`.
    pub fn capped(self, cap: usize) -> Self {
        let token = match self.token {
            TokenState::Verified(verified) if verified.authn().level > cap => {
                TokenState::Verified(Arc::new(verified.capped(cap)))
            }
            TokenState::Asserted(asserted) if asserted.authn.level > cap => {
                TokenState::Asserted(Arc::new(asserted.capped(cap)))
            }
            token => token,
        };
        Self { token }
    }

    /// Rejects a token whose audience is another of our resources than that of the request (RFC 8707 section 2).
    pub fn for_resource(self, resources: &[ResourceMetadata], http: Option<&Http<'_>>) -> Self {
        let (Some(verified), Some(http), true) = (self.verified(), http, resources.len() > 1) else { return self };
        let Some(own) = covering(resources, http) else { return self };
        let is_for = |resource: &ResourceMetadata| verified.is_for(&resource.id);
        let is_for_another = resources.iter().any(|resource| is_for(resource) == Some(true));
        match is_for(own) {
            Some(false) if is_for_another => self.refused(TokenError::WrongAudience),
            _ => self,
        }
    }

    /// No token was sent, or none is expected here.
    pub fn has_no_token(&self) -> bool {
        matches!(self.token, TokenState::Absent | TokenState::Unconfigured)
    }

    pub fn token(&self) -> &TokenState {
        &self.token
    }

    pub fn verified(&self) -> Option<&Verified> {
        match &self.token {
            TokenState::Verified(verified) => Some(verified),
            _ => None,
        }
    }

    /// `input.jwt.state`.
    pub fn state_name(&self) -> &'static str {
        match self.token {
            TokenState::Unconfigured => "unconfigured",
            TokenState::Absent => "absent",
            TokenState::Verified(_) => "verified",
            TokenState::Asserted(_) => "asserted",
            TokenState::Rejected(_) => "rejected",
        }
    }

    /// The reason of a rejected token; empty for any other.
    pub fn rejection_reason(&self) -> &'static str {
        match self.token {
            TokenState::Rejected(error) => error.reason(),
            _ => "",
        }
    }

    /// The reason why a request that needs a token is denied for lack of a valid one.
    pub fn missing_token_reason(&self) -> &'static str {
        match self.rejection_reason() {
            "" => "no_token",
            reason => reason,
        }
    }

    /// Adds `jwt`, `authn` and, for tokens of programs, `workload` to the document.
    pub fn add_to(&self, members: &mut Members, now: i64) {
        let (jwt, authn) = match &self.token {
            TokenState::Verified(verified) => (verified.document().clone(), verified.authn().document(now)),
            TokenState::Asserted(asserted) => (asserted.document.clone(), asserted.authn.document(now)),
            TokenState::Rejected(error) => (rejected(*error), Authn::none().document(now)),
            TokenState::Absent | TokenState::Unconfigured => (self.bare_state(), Authn::none().document(now)),
        };
        if let Some(workload) = self.verified().and_then(Verified::workload) {
            members.put(&WORKLOAD, workload.clone());
        }
        members.put(&JWT, jwt);
        members.put(&AUTHN, authn);
    }

    fn bare_state(&self) -> Value {
        let mut members = Members::default();
        members.put_text("state", Value::from(self.state_name()));
        members.into_value()
    }
}

fn rejected(error: TokenError) -> Value {
    let mut members = Members::default();
    members.put_text("state", Value::from("rejected"));
    members.put_text("error", Value::from(error.code()));
    members.put_text("reason", Value::from(error.reason()));
    members.put_text("description", Value::from(error.to_string()));
    members.into_value()
}
