//! Evaluation of the route requirements: the callers they apply to, and the treatment of tokens that cannot meet them.

use super::evidence::Evidence;
use super::respond::Verdict;
use super::routes::{self, RouteRequirement, Shortfall};
use super::{Checker, USED_SPAN};
use crate::opa::input::Attributes;
use crate::token::{ReplayError, TokenError};

impl Checker {
    /// The requirements of all routes that match this request.
    pub(super) fn demand(
        &self,
        attributes: &Attributes<'_>,
        path: Option<&str>,
        evidence: &Evidence,
    ) -> Option<RouteRequirement> {
        let http = attributes.http.as_ref().filter(|_| !self.settings.routes.is_empty())?;
        // By the certificate of the connection, never by a header; and a token that was sent and refused stays refused.
        let peer = Some(attributes.source_principal).filter(|peer| !peer.is_empty() && evidence.has_no_token());
        routes::demand(&self.settings.routes, http, path?, peer)
    }

    /// The shortfall of the request; `None` when the requirement is met.
    pub(super) fn unmet(
        &self,
        demand: &RouteRequirement,
        attributes: &Attributes<'_>,
        evidence: &Evidence,
        now: i64,
    ) -> Option<Shortfall> {
        if demand.same_origin && attributes.http.as_ref().is_some_and(routes::is_cross_origin) {
            return Some(Shortfall::Origin);
        }
        demand.unmet(evidence.verified(), now)
    }

    /// Refuses the token where it cannot do what is demanded: it is of another issuer, or was used before.
    pub(super) fn settle(&self, verdict: Verdict, attributes: &Attributes<'_>) -> Verdict {
        let error = match &verdict.unmet {
            Some(Shortfall::Issuer) => Some(TokenError::OtherIssuer),
            _ if verdict.demand.as_ref().is_some_and(|demand| demand.single_use)
                && verdict.is_allow()
                && !verdict.decision.skips_route_requirements() =>
            {
                let was_counted = self.tokens.as_ref().is_some_and(|tokens| tokens.was_counted(attributes));
                self.use_up(&verdict, was_counted).err()
            }
            _ => None,
        };
        match error {
            Some(error) => {
                Verdict { unmet: Some(Shortfall::Token), evidence: verdict.evidence.refused(error), ..verdict }
            }
            None => verdict,
        }
    }

    /// Takes the caller's token as used. Last of all, so that a request which is denied uses up nothing.
    fn use_up(&self, verdict: &Verdict, was_counted: bool) -> Result<(), TokenError> {
        let Some((verified, used)) = verdict.evidence.verified().zip(self.used.as_ref()) else {
            return Err(TokenError::NotForOneUse);
        };
        let id = verified.id().filter(|id| !id.is_empty()).ok_or(TokenError::NotForOneUse)?;
        let left = verified.expires_with_leeway().saturating_sub(verdict.now);
        if u64::try_from(left).is_ok_and(|left| left > USED_SPAN.as_secs()) {
            return Err(TokenError::NotForOneUse);
        }
        // A use that was counted before is recorded as well: from anyone else it is a second one.
        match used.first(&[verified.issuer(), id], verdict.now) {
            Ok(()) => Ok(()),
            Err(_) if was_counted => Ok(()),
            Err(ReplayError::Replayed) => Err(TokenError::Used),
            Err(ReplayError::CacheFull) => Err(TokenError::ProofsFull),
        }
    }

    /// The caller has presented too many tokens that are not enough, or cannot obtain a better one.
    pub(super) fn is_not_satisfiable(&self, verdict: &Verdict) -> bool {
        let Some(verified) = verdict.evidence.verified() else { return false };
        if let Some(step_up) = verdict.step_up() {
            // The tokens of workloads have no levels, and no person could authenticate.
            let is_hopeless = verdict.unmet.is_some() && step_up.acr_values.is_empty() && step_up.max_age.is_none();
            return is_hopeless || self.step_up_loop.record_failure(verified, step_up, verdict.now);
        }
        if verdict.is_allow() {
            self.step_up_loop.satisfied(verified, verdict.now);
        }
        false
    }
}
