//! The parts of a hub that identity providers reach: its public listener, SCIM, and logout.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::hub::{HubListener, is_loopback};
use super::resolve::Resolver;
use super::section::Section;
use crate::hub::{Credentials, Link, LogoutSettings, MAX_ATTRIBUTES, MAX_LINKS, ScimSettings};
use crate::revocation::IssuerJoins;

const PLACE: &str = "plugins.stepgate.hub";
/// Attributes of users that every provider has and that links may name.
const LINKED: [&str; 4] = ["userName", "externalId", "emails", "displayName"];

/// The public listener of a hub.
pub(super) struct Public {
    pub listener: HubListener,
    pub url: String,
}

impl Resolver<'_> {
    pub(super) fn hub_public(&mut self, hub: Section<'_>) -> Option<Public> {
        let item = hub.section("public");
        item.value?;
        let address = self.hub_address(item, &format!("{PLACE}.public.addr"), "addr");
        let tls = self.tls("plugins.stepgate.hub.public.tls", item, address.as_ref());
        let is_guarded = tls.is_some() || item.is_on("tls_in_front");
        if address.as_ref().is_some_and(|address| !is_loopback(address)) && !is_guarded {
            self.problems.error(
                format!("{PLACE}.public.addr"),
                "off loopback it needs `tls`, or `tls_in_front: true` where a gateway ends TLS: credentials would be readable",
            );
        }
        let url = item.text("url").unwrap_or_default();
        let is_url = url::Url::parse(url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
        if !is_url {
            let message =
                "required: the address under which identity providers reach the hub, such as https://hub.acme.example";
            self.problems.error(format!("{PLACE}.public.url"), message);
        }
        Some(Public { listener: HubListener { address: address?, tls }, url: url.to_owned() })
    }

    pub(super) fn scim(
        &mut self,
        hub: Section<'_>,
        issuers: &BTreeMap<String, IssuerJoins>,
        own: Section<'_>,
    ) -> Vec<ScimSettings> {
        let listed = hub.at("scim").and_then(Value::as_array);
        if listed.is_some_and(|listed| !listed.is_empty()) && hub.section("public").value.is_none() {
            self.problems.error(format!("{PLACE}.scim"), "it needs `hub.public`, where providers reach it");
        }
        let mut providers: Vec<ScimSettings> = Vec::new();
        for (at, item) in listed.into_iter().flatten().enumerate() {
            let place = format!("{PLACE}.scim[{at}]");
            let item = Section::of("plugins.stepgate.hub.scim[]", Some(item));
            let Some(provider) = self.scim_provider(item, &place, issuers, own) else { continue };
            if providers.iter().any(|known| known.name == provider.name) {
                self.problems.error(format!("{place}.name"), "named twice");
            }
            if providers.iter().any(|known| known.credentials.shares_a_file(&provider.credentials)) {
                self.problems.error(format!("{place}.token_files"), "a credential belongs to one provider");
            }
            providers.push(provider);
        }
        providers
    }

    fn scim_provider(
        &mut self,
        item: Section<'_>,
        place: &str,
        known: &BTreeMap<String, IssuerJoins>,
        own: Section<'_>,
    ) -> Option<ScimSettings> {
        let name = self.address_name(item, place);
        let texts = |name: &str| -> Vec<String> { item.texts(name).into_iter().map(str::to_owned).collect() };
        let credentials = credentials(item);
        if credentials.is_empty() {
            self.problems
                .error(format!("{place}.token_files"), "required: without a credential everyone could disable users");
        }
        let issuers = texts("issuers");
        if issuers.is_empty() {
            self.problems.error(format!("{place}.issuers"), "required: the issuers whose tokens it decides about");
        }
        for issuer in issuers.iter().filter(|issuer| !known.contains_key(*issuer)) {
            self.problems.error(format!("{place}.issuers"), format!("`{issuer}` is none of the configured issuers"));
        }
        let attributes = texts("attributes");
        if attributes.len() > MAX_ATTRIBUTES {
            self.problems.error(format!("{place}.attributes"), format!("more than {MAX_ATTRIBUTES}"));
        }
        let links = self.scim_links(item, place, &attributes, &issuers, known);
        let is_pairwise = links.iter().any(|link| link.join == "sub") && issuers.iter().any(|name| is_entra(own, name));
        if is_pairwise {
            let message = "tokens of Entra have another `sub` for each application; link `externalId`, mapped to objectId, to the join `oid`";
            self.problems.error(format!("{place}.link"), message);
        }
        Some(ScimSettings {
            name,
            credentials,
            issuers,
            links,
            attributes,
            refuses_unmapped: item.text_or_default("on_unmapped") == "refuse",
            revokes_members: item.text_or_default("membership") == "revoke",
            watched_groups: texts("watched_groups"),
            rate: u32::try_from(item.count("rate")).unwrap_or(u32::MAX),
        })
    }

    /// Addresses of logout tokens.
    pub(super) fn logouts(&mut self, hub: Section<'_>, own: Section<'_>, verified: &[&str]) -> Vec<LogoutSettings> {
        let listed = hub.at("logout").and_then(Value::as_array);
        if listed.is_some_and(|listed| !listed.is_empty()) && hub.section("public").value.is_none() {
            self.problems.error(format!("{PLACE}.logout"), "it needs `hub.public`, where providers reach it");
        }
        let mut logouts: Vec<LogoutSettings> = Vec::new();
        for (at, item) in listed.into_iter().flatten().enumerate() {
            let place = format!("{PLACE}.logout[{at}]");
            let item = Section::of("plugins.stepgate.hub.logout[]", Some(item));
            let name = self.address_name(item, &place);
            if logouts.iter().any(|known| known.name == name) {
                self.problems.error(format!("{place}.name"), "named twice");
            }
            let issuer = item.text("issuer").unwrap_or_default();
            if !verified.contains(&issuer) {
                let configured = own.at("issuers").and_then(Value::as_array).into_iter().flatten();
                let is_known = configured.flat_map(super::issuers::issuer_names).any(|name| name == issuer);
                let message = match is_known {
                    true => {
                        "the hub has no keys of this issuer: logout tokens need `jwks_url`, `discovery` or `jwks_file`"
                    }
                    false => "it is none of the configured issuers",
                };
                self.problems.error(format!("{place}.issuer"), message);
            }
            let client_ids: Vec<String> = item.texts("client_ids").into_iter().map(str::to_owned).collect();
            if client_ids.is_empty() {
                self.problems
                    .error(format!("{place}.client_ids"), "required: the clients in `aud` of its logout tokens");
            }
            logouts.push(LogoutSettings { name, issuer: issuer.to_owned(), client_ids });
        }
        logouts
    }

    /// A name that is a part of an address.
    pub(super) fn address_name(&mut self, item: Section<'_>, place: &str) -> String {
        let name = item.text("name").unwrap_or_default();
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 64 || !name.chars().all(is_plain) {
            let message = "required: up to 64 small letters, digits and hyphens; it is a part of the address";
            self.problems.error(format!("{place}.name"), message);
        }
        name.to_owned()
    }

    fn scim_links(
        &mut self,
        item: Section<'_>,
        place: &str,
        attributes: &[String],
        issuers: &[String],
        known: &BTreeMap<String, IssuerJoins>,
    ) -> Vec<Link> {
        let mut links: Vec<Link> = Vec::new();
        let joins = |issuer: &String| known.get(issuer).map(|known| known.joins.as_slice()).unwrap_or_default();
        let listed = item.at("link").and_then(Value::as_array);
        for (at, link) in listed.into_iter().flatten().enumerate() {
            let link = Section::of("plugins.stepgate.hub.scim[].link[]", Some(link));
            let (attribute, join) = (link.text("attribute").unwrap_or_default(), link.text("join").unwrap_or_default());
            if !LINKED.contains(&attribute) && !attributes.iter().any(|known| known == attribute) {
                let message = format!("expected one of {}, or one that `attributes` names", LINKED.join(", "));
                self.problems.error(format!("{place}.link[{at}].attribute"), message);
            }
            let is_known = join == "sub" || issuers.iter().flat_map(joins).any(|known| known.name == join);
            if !is_known {
                let mut names: Vec<&str> = issuers.iter().flat_map(joins).map(|known| known.name.as_str()).collect();
                names.push("sub");
                let message = format!("`{join}` is no join of these issuers: {}", names.join(", "));
                self.problems.error(format!("{place}.link[{at}].join"), message);
            }
            links.push(Link { attribute: attribute.to_owned(), join: join.to_owned() });
        }
        for issuer in issuers {
            let has = |link: &Link| link.join == "sub" || joins(issuer).iter().any(|known| known.name == link.join);
            if !links.is_empty() && !links.iter().any(has) {
                let message = format!("no link leads to a join of `{issuer}`: its tokens would stay valid");
                self.problems.error(format!("{place}.link"), message);
            }
        }
        if links.is_empty() || links.len() > MAX_LINKS {
            let message = format!(
                "expected 1 to {MAX_LINKS}: which attribute of a user has the value of which claim of its tokens"
            );
            self.problems.error(format!("{place}.link"), message);
        }
        links
    }
}

/// The bearer tokens of a party.
pub(super) fn credentials(item: Section<'_>) -> Credentials {
    Credentials::new(item.texts("token_files").into_iter().map(PathBuf::from).collect())
}

/// True for an issuer with the preset of Entra.
fn is_entra(own: Section<'_>, issuer: &str) -> bool {
    let listed = own.at("issuers").and_then(Value::as_array).into_iter().flatten();
    let mut of_entra = listed.filter(|item| item.get("preset").and_then(Value::as_str) == Some("entra"));
    of_entra.any(|item| super::issuers::issuer_names(item).iter().any(|name| name == issuer))
}
