//! Requirements that no caller can meet, and settings without effect: reported at the start, with the route, the issuers and
//! what is missing.

use serde_json::Value;

use super::issuers::issuer_names;
use super::resolve::Resolver;
use super::section::Section;
use crate::check::{self, Route};
use crate::token::{IssuerSettings, Location, Preset, ProofSettings};

/// Audiences of every token of a provider.
const EVERYBODYS_AUDIENCES: &[(Preset, &str)] = &[
    // Keycloak puts it into every token whose user may manage the own account.
    (Preset::Keycloak, "account"),
    // Microsoft Graph and its predecessor: tokens for them are handed to every application.
    (Preset::Entra, "00000003-0000-0000-c000-000000000000"),
    (Preset::Entra, "00000002-0000-0000-c000-000000000000"),
    (Preset::Entra, "https://graph.microsoft.com"),
    (Preset::Entra, "https://graph.windows.net"),
];

impl Resolver<'_> {
    pub(super) fn check_reachability(
        &mut self,
        own: Section<'_>,
        issuers: &[IssuerSettings],
        check: &check::Settings,
        proofs: &ProofSettings,
    ) {
        for (at, route) in check.routes.iter().enumerate() {
            self.check_route(issuers, route, &format!("plugins.stepgate.routes[{at}]"));
        }
        let entries: Vec<&Value> = own.at("issuers").and_then(Value::as_array).into_iter().flatten().collect();
        for issuer in issuers {
            let at = entries.iter().position(|entry| issuer_names(entry).contains(&issuer.issuer)).unwrap_or_default();
            self.check_issuer(issuer, &format!("plugins.stepgate.issuers[{at}]"));
        }
        let locations = || issuers.iter().flat_map(|issuer| &issuer.locations);
        let has_cookie = locations().any(|location| matches!(location, Location::Cookie { .. }));
        if check.redirect.is_some() && !has_cookie {
            let message =
                "no issuer reads a token from a cookie (`token_from`), so that a browser would come back without one";
            self.problems.warn("plugins.stepgate.step_up.redirect", message);
        }
        if has_cookie && !check.routes.iter().any(|route| route.demand.same_origin) {
            let message = "browsers send cookies with the requests of other pages, too (CSRF): set `same_origin: true` on a route of `/**`, unless the application checks it";
            self.problems.warn("plugins.stepgate.issuers", message);
        }
        if locations().any(|location| *location == Location::dpop()) && proofs.origins.is_empty() {
            let message = "neither `origins` nor a `resource` says where clients reach this API: the request's own Host is trusted, so that a proof made for another server is good with its Host";
            self.problems.warn("plugins.stepgate.dpop.origins", message);
        }
    }

    fn check_route(&mut self, issuers: &[IssuerSettings], route: &Route, place: &str) {
        let demand = &route.demand;
        let is_accepted =
            |issuer: &&IssuerSettings| demand.issuers.iter().all(|accepted| accepted.contains(&issuer.issuer));
        let accepted: Vec<&IssuerSettings> = issuers.iter().filter(is_accepted).collect();
        let names = accepted.iter().map(|issuer| format!("`{}`", issuer.issuer)).collect::<Vec<_>>().join(", ");
        if accepted.is_empty() {
            let message = "no issuer whose tokens are verified here is accepted: what Envoy verified (`trust: envoy`) is accepted by no route";
            return self.problems.warn(place, message);
        }
        let highest = accepted.iter().map(|issuer| issuer.assurance.highest()).max().unwrap_or(0);
        let (level, named) = demand.strongest(None).map_or((0, &[][..]), |first| (first.level, &first.acr_values[..]));
        if level > highest && named.is_empty() {
            let (level, highest) = (self.scale.name(level).to_owned(), self.scale.name(highest).to_owned());
            let message = format!(
                "no token of {names} reaches `{level}`, but at most `{highest}`: say by `acr_levels` of an issuer which `acr` it stands for"
            );
            return self.problems.error(format!("{place}.level"), message);
        }
        if demand.max_age.is_some() && accepted.iter().all(|issuer| issuer.preset.is_of_workloads()) {
            let message = format!("tokens of {names} are those of programs and have no `auth_time`");
            self.problems.warn(format!("{place}.max_age"), message);
        }
        let is_silent = |issuer: &&&IssuerSettings| {
            issuer.preset == Preset::Keycloak && !issuer.assurance.has_own_values() && issuer.claim_names.acr.is_none()
        };
        if level > 0
            && named.is_empty()
            && let Some(issuer) = accepted.iter().find(is_silent)
        {
            let message = format!(
                "the levels of authentication of Keycloak are the realm's own: write what they are worth into `acr_levels` of `{}`, such as `{{\"2\": mfa}}`; until then only `amr` counts, and it cannot be asked for a level",
                issuer.issuer
            );
            self.problems.warn(format!("{place}.level"), message);
        }
        let is_enough = |issuer: &&IssuerSettings, value: &String| {
            issuer.assurance.fixed_worth(value).is_none_or(|worth| worth >= level.max(1))
        };
        for value in named {
            if value == "0" || !accepted.iter().any(|issuer| is_enough(issuer, value)) {
                let message = format!(
                    "`{value}` is never enough: `0` is no level, and `acr_levels` of {names} put other values below the route's `level`"
                );
                self.problems.error(format!("{place}.acr_values"), message);
            }
        }
        let knows = |issuer: &&IssuerSettings, value: &String| issuer.assurance.worth(value).is_some();
        for value in named {
            if !accepted.iter().any(|issuer| knows(issuer, value)) {
                let message =
                    format!("no `acr_levels` of {names} names `{value}`: only a token with just this `acr` meets it");
                self.problems.warn(format!("{place}.acr_values"), message);
            } else if accepted.len() > 1 && !accepted.iter().all(|issuer| knows(issuer, value)) {
                let message = format!(
                    "`{value}` is asked of tokens of {names}, and not all of them know it: name the issuers that do in `issuers`, or map it in the `acr_levels` of each"
                );
                self.problems.warn(format!("{place}.acr_values"), message);
            }
        }
    }

    fn check_issuer(&mut self, issuer: &IssuerSettings, place: &str) {
        for (preset, audience) in EVERYBODYS_AUDIENCES {
            if issuer.preset == *preset && issuer.audiences.iter().any(|known| known.trim_end_matches('/') == *audience)
            {
                let message = format!("`{audience}` is in tokens for everybody; let clients ask for one of your own");
                self.problems.error(format!("{place}.audiences"), message);
            }
        }
        if issuer.claims_challenge.is_some() && !issuer.assurance.has_contexts() {
            let message = "no `acr_levels` of this issuer names an authentication context (`c1` to `c99`), so that nothing can be asked for in this way";
            self.problems.warn(format!("{place}.claims_challenge"), message);
        }
        if issuer.assurance.fixed_worth("0").is_some_and(|level| level > 0) {
            let message = "`0` says that nothing is certain (OpenID Connect Core, section 2): it counts as no level, whatever stands here";
            self.problems.warn(format!("{place}.acr_levels.0"), message);
        }
    }
}
