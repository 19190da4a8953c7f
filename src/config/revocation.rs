//! Revocation: the hub, the freshness of its entries, and the claims that events are matched with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::issuers::issuer_names;
use super::resolve::Resolver;
use super::section::Section;
use crate::remote::service::ServiceSettings;
use crate::revocation::{ENTRY_BYTES, Fold, IssuerJoins, Join, MAX_JOINS, Mode, Settings};

/// Entries where the memory has no limit.
const MAX_ENTRIES: u64 = 5_000_000;

/// Where the hub is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubLocation {
    /// The name of its service.
    Service(String),
    /// In this process.
    Embedded,
}

/// Revocation, as configured.
#[derive(Clone, Debug)]
pub struct RevocationConfig {
    pub source: HubLocation,
    pub settings: Settings,
    /// By `iss`.
    pub issuers: BTreeMap<String, IssuerJoins>,
    /// The copy of the entries for the next start.
    pub file: Option<PathBuf>,
}

/// Joins that a preset has: a user of these providers is named so in tokens and in events.
fn of_preset(preset: Option<&str>) -> Vec<Join> {
    let join =
        |name: &str, claim: &str, fold| Join { name: name.to_owned(), claim: claim.to_owned(), fold, when: None };
    let email = Join { when: Some("email_verified".to_owned()), ..join("email", "email", Fold::Email) };
    match preset {
        Some("okta") => vec![join("uid", "uid", Fold::Exact), join("login", "sub", Fold::Exact)],
        Some("entra") => vec![join("oid", "oid", Fold::Uuid), join("upn", "upn", Fold::Email)],
        Some("keycloak" | "google") => vec![email],
        _ => Vec::new(),
    }
}

impl Resolver<'_> {
    pub(super) fn revocation(
        &mut self,
        own: Section<'_>,
        document: &Value,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<RevocationConfig> {
        let place = "plugins.stepgate.revocation";
        let item = own.section("revocation");
        item.value?;
        if own.at("issuers").is_none() {
            let message = "without `issuers` there is no token that could be revoked: policies that decode tokens themselves cannot be protected";
            self.problems.error(place, message);
        }
        let source = match (item.text("service"), item.text("hub")) {
            (Some(service), None) => {
                if !services.contains_key(service) {
                    self.problems.error(format!("{place}.service"), format!("`{service}` is none of `services`"));
                }
                HubLocation::Service(service.to_owned())
            }
            (None, Some(_)) => {
                if own.section("hub").value.is_none() {
                    self.problems.error(format!("{place}.hub"), "`embedded` needs the section `plugins.stepgate.hub`");
                }
                HubLocation::Embedded
            }
            _ => {
                self.problems.error(place, "give `service`, the service of a hub, or `hub: embedded`");
                return None;
            }
        };
        let seconds = |name: &str| i64::try_from(item.duration(name).as_secs()).unwrap_or(i64::MAX);
        let mode = |name: &str| if item.text_or_default(name) == "deny" { Mode::Deny } else { Mode::Allow };
        let (max_staleness, stale_limit) = (seconds("max_staleness"), seconds("stale_limit"));
        if stale_limit < max_staleness {
            self.problems
                .error(format!("{place}.stale_limit"), "shorter than max_staleness; entries would never be stale");
        }
        let by_memory = self.memory.cap_to_fraction(MAX_ENTRIES.saturating_mul(ENTRY_BYTES), 16) / ENTRY_BYTES;
        let root = Section::root(document);
        let folder = PathBuf::from(root.text_or_default("persistence_directory"));
        Some(RevocationConfig {
            source,
            settings: Settings {
                max_staleness,
                stale_limit,
                when_stale: mode("when_stale"),
                when_cold: mode("when_cold"),
                max_entries: usize::try_from(item.integer("max_entries").unwrap_or(by_memory)).unwrap_or(usize::MAX),
                max_events: item.size("max_events"),
            },
            issuers: self.issuer_joins(own),
            file: item.is_on("persist").then(|| folder.join("revocations.sgrv")),
        })
    }

    pub(super) fn issuer_joins(&mut self, own: Section<'_>) -> BTreeMap<String, IssuerJoins> {
        let listed = own.at("issuers").and_then(Value::as_array).into_iter().flatten();
        let mut found = BTreeMap::new();
        for (at, entry) in listed.enumerate() {
            let issuer = Section::of("plugins.stepgate.issuers[]", Some(entry));
            let joins = self.joins(issuer, &format!("plugins.stepgate.issuers[{at}].revocation"));
            for name in issuer_names(entry) {
                found.insert(name, joins.clone());
            }
        }
        found
    }

    fn joins(&mut self, issuer: Section<'_>, place: &str) -> IssuerJoins {
        let item = issuer.section("revocation");
        let mut joins = of_preset(issuer.text("preset"));
        for (name, value) in item.members("joins") {
            let join = Section::of("plugins.stepgate.issuers[].revocation.joins[]", Some(value));
            joins.retain(|known| known.name != *name);
            if name == "sub" {
                self.problems.error(format!("{place}.joins.sub"), "`sub` is always a join");
            }
            let Some(claim) = join.text("claim") else {
                self.problems.error(format!("{place}.joins.{name}.claim"), "it is required");
                continue;
            };
            let fold = match join.text_or_default("fold") {
                "email" => Fold::Email,
                "uuid" => Fold::Uuid,
                _ => Fold::Exact,
            };
            let when = join.text("when").map(str::to_owned);
            joins.push(Join { name: name.clone(), claim: claim.to_owned(), fold, when });
        }
        if joins.len() > MAX_JOINS {
            self.problems.error(format!("{place}.joins"), format!("more than {MAX_JOINS}"));
        }
        let required_joins: Vec<String> = item.texts("required_joins").into_iter().map(str::to_owned).collect();
        let is_known = |name: &&String| *name != "sub" && !joins.iter().any(|join| join.name == **name);
        if let Some(name) = required_joins.iter().find(is_known) {
            self.problems.error(format!("{place}.required_joins"), format!("`{name}` is none of `joins`"));
        }
        IssuerJoins {
            joins,
            session_claim: item.text_or_default("session_claim").to_owned(),
            groups_claim: item.text_or_default("groups_claim").to_owned(),
            device_claim: item.text("device_claim").map(str::to_owned),
            required_joins,
            allows_unbounded: item.text("unbounded") == Some("allow"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_name_users_as_their_events_do() {
        let names = |preset| of_preset(Some(preset)).into_iter().map(|join| join.name).collect::<Vec<_>>();
        assert_eq!(names("okta"), ["uid", "login"]);
        assert_eq!(names("entra"), ["oid", "upn"]);
        assert!(of_preset(Some("keycloak")).iter().all(|join| join.when.as_deref() == Some("email_verified")));
        assert!(names("github").is_empty() && of_preset(None).is_empty());
    }
}
