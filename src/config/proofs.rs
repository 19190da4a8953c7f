//! Proofs of possession (RFC 9449), and tokens that their issuer is asked about (RFC 7662).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stepgate_jose::Algorithm;
use url::Url;

use super::resolve::Resolver;
use super::section::Section;
use crate::check::DpopChallenge;
use crate::remote::credentials::Credentials;
use crate::remote::service::ServiceSettings;
use crate::secret::Secret;
use crate::token::{
    IntrospectionSettings, IssuerSettings, Location, MIN_NONCE_KEY_BYTES, Nonces, ProofSettings, SpiffePattern,
};

/// A proof that counts for longer is hardly one of its moment, and all of that time is remembered.
const MAX_WINDOW: Duration = Duration::from_secs(3_600);

impl Resolver<'_> {
    pub(super) fn proofs(&mut self, item: Section<'_>) -> ProofSettings {
        let mut settings = ProofSettings::default();
        if item.at("algorithms").is_some() {
            settings.algorithms.clear();
        }
        for name in item.texts("algorithms") {
            match Algorithm::asymmetric(name) {
                Some(alg) => settings.algorithms.push(alg),
                None => {
                    let message = format!("`{name}` is none of {}", Algorithm::asymmetric_names().join(", "));
                    self.problems.error("plugins.stepgate.dpop.algorithms", message);
                }
            }
        }
        if settings.algorithms.is_empty() {
            self.problems.error("plugins.stepgate.dpop.algorithms", "the list is empty, so no proof could be accepted");
        }
        for text in item.texts("origins") {
            let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
            let is_bare = |url: &Url| {
                url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty()
            };
            let is_local = |url: &Url| matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
            match url.filter(|url| is_bare(url) && !text.contains('*')) {
                Some(url) if url.scheme() == "http" && !is_local(&url) => {
                    let message = format!("`{text}` is plain http, over which tokens and proofs can be read");
                    self.problems.warn("plugins.stepgate.dpop.origins", message);
                    settings.origins.push(url.origin().ascii_serialization());
                }
                Some(url) => settings.origins.push(url.origin().ascii_serialization()),
                None => {
                    let message = format!("`{text}` is not an origin such as `https://api.example.com`");
                    self.problems.error("plugins.stepgate.dpop.origins", message);
                }
            }
        }
        for (at, text) in item.texts("checked_by").into_iter().enumerate() {
            match SpiffePattern::parse(text) {
                Some(pattern) => settings.checked_by.push(pattern),
                None => {
                    let message = format!("`{text}` is neither a SPIFFE ID nor one that ends with `/*`");
                    self.problems.error(format!("plugins.stepgate.dpop.checked_by[{at}]"), message);
                }
            }
        }
        settings.window = item.duration("window");
        if settings.window.as_secs() == 0 || settings.window > MAX_WINDOW {
            self.problems.error("plugins.stepgate.dpop.window", "expected 1s to 1h");
        }
        settings.max_proofs = item.share_size("max_proofs", self.memory);
        if let Some(path) = item.text("nonce_key_file") {
            let key = std::fs::read(path).map_err(|error| format!("`{path}` cannot be read: {error}"));
            let too_short = || format!("`{path}` has less than {MIN_NONCE_KEY_BYTES} bytes");
            match key.and_then(|key| Nonces::new(&key).ok_or_else(too_short)) {
                Ok(nonces) => settings.nonces = Some(Arc::new(nonces)),
                Err(message) => self.problems.error("plugins.stepgate.dpop.nonce_key_file", message),
            }
        }
        settings
    }
}

impl Resolver<'_> {
    pub(super) fn introspection(
        &mut self,
        item: Section<'_>,
        place: &str,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<IntrospectionSettings> {
        item.value?;
        let service = item.text("service").filter(|name| services.contains_key(*name));
        if service.is_none() {
            let message = "required: one of `services`, with the credentials to ask with";
            self.problems.error(format!("{place}.introspection.service"), message);
        }
        Some(IntrospectionSettings {
            service: service?.to_owned(),
            resource: item.text_or_default("resource").to_owned(),
            ttl: item.duration("ttl"),
            may_lack_audience: item.text("audience") == Some("optional"),
            timeout: item.at("timeout").map(|_| self.introspection_timeout(item, place)),
            stale_if_error: item.duration("stale_if_error"),
            inactive_ttl: item.duration("inactive_ttl"),
            is_for_all: item.text("applies_to") == Some("all"),
            authorization: self.client_credentials(item, &format!("{place}.introspection"), service?, services),
        })
    }

    fn introspection_timeout(&mut self, item: Section<'_>, place: &str) -> Duration {
        let timeout = item.duration_or("timeout", Duration::MAX);
        if timeout.is_zero() {
            self.problems.error(format!("{place}.introspection.timeout"), "no answer arrives within 0s");
        }
        timeout
    }

    /// `Authorization` of a client with a secret: both are encoded as in a form first (RFC 6749 section 2.3.1).
    fn client_credentials(
        &mut self,
        item: Section<'_>,
        place: &str,
        service: &str,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<Secret<String>> {
        let secret = match (item.text("client_secret"), item.text("client_secret_file")) {
            (Some(_), Some(_)) => {
                self.problems.error(place, "give either `client_secret` or `client_secret_file`");
                None
            }
            (Some(text), None) if text.is_empty() || text.contains("${") => {
                self.problems.error(format!("{place}.client_secret"), "empty, or a `${…}` in it was not replaced");
                None
            }
            (Some(text), None) => Some(Secret::new(text.to_owned())),
            (None, Some(path)) => match std::fs::read_to_string(path) {
                Ok(text) => Some(Secret::new(text.trim_end_matches(['\n', '\r']).to_owned())),
                Err(error) => {
                    let message = format!("`{path}` cannot be read: {error}");
                    self.problems.error(format!("{place}.client_secret_file"), message);
                    None
                }
            },
            (None, None) => None,
        };
        let (client, secret) = match (item.text("client_id"), secret) {
            (Some(client), Some(secret)) => (client, secret),
            (Some(_), None) | (None, Some(_)) => {
                self.problems.error(place, "give `client_id` with `client_secret` or `client_secret_file`");
                return None;
            }
            (None, None) => return None,
        };
        if services.get(service).is_some_and(|service| !matches!(service.credentials, Credentials::None)) {
            self.problems.error(format!("{place}.client_id"), "the service has credentials already");
        }
        let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let pair = Secret::new(format!("{}:{}", encoded(client), encoded(secret.expose())));
        Some(Secret::new(format!("Basic {}", STANDARD.encode(pair.expose()))))
    }

    /// A token that two issuers could introspect has no determinable issuer.
    pub(super) fn check_introspection(&mut self, issuers: &[IssuerSettings]) {
        let asked: Vec<_> = issuers.iter().filter(|issuer| issuer.introspection.is_some()).collect();
        let overlaps = |(at, issuer): (usize, &&IssuerSettings)| {
            let mut earlier = asked.iter().take(at).flat_map(|other| &other.locations);
            earlier.any(|location| issuer.locations.contains(location))
        };
        if asked.iter().enumerate().any(overlaps) {
            let message =
                "two issuers with `introspection` have tokens in one place; give each a `token_from` of its own";
            self.problems.error("plugins.stepgate.issuers", message);
        }
    }
}

/// Where tokens may be once bound ones are taken, too, or alone.
pub(super) fn with_dpop(mut locations: Vec<Location>, dpop: Option<&str>) -> Vec<Location> {
    match dpop {
        Some("optional") => locations.push(Location::dpop()),
        Some("required") => locations = vec![Location::dpop()],
        _ => {}
    }
    locations
}

/// The parameters of challenges for bound tokens; `None` where no issuer has them.
pub(super) fn dpop_challenge(issuers: &[IssuerSettings], proofs: &ProofSettings) -> Option<DpopChallenge> {
    let takes = |issuer: &IssuerSettings| issuer.locations.contains(&Location::dpop());
    issuers.iter().any(takes).then(|| DpopChallenge {
        algorithms: proofs.algorithms.iter().map(|alg| alg.name()).collect::<Vec<_>>().join(" "),
        is_required: issuers.iter().all(|issuer| issuer.locations == [Location::dpop()]),
        nonces: proofs.nonces.clone(),
    })
}
