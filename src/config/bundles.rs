//! Bundles, and the keys that verify them.
//!
//! Mirrors: OPA `v1/plugins/bundle/config.go`, `v1/download/config.go` and `v1/keys/keys.go`, v1.19.0.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use stepgate_jose::ConfiguredKey;

use super::memory::Memory;
use super::resolve::Resolver;
use super::section::Section;
use super::services::named;
use crate::feed::bundle::poller::{Polling, Resource};
use crate::feed::bundle::saved::SavedBundle;
use crate::feed::bundle::{BundleSettings, Source};
use crate::opa::signature::{PublicKey, SignaturePolicy, Verification, exclusion};
use crate::remote::registry::Reference;
use crate::remote::service::ServiceSettings;

/// The other sections that bundles depend on.
pub(super) struct BundleContext<'a> {
    pub document: &'a Value,
    pub services: &'a BTreeMap<String, ServiceSettings>,
    pub keys: BTreeMap<String, PublicKey>,
    /// `compat: {bundle_signatures: opa}`.
    pub signatures_as_in_opa: bool,
    /// The memory of the process, in bytes.
    pub memory: Memory,
}

impl Resolver<'_> {
    /// The keys that can verify, by their ids.
    pub(super) fn public_keys(&mut self, document: &Value) -> BTreeMap<String, PublicKey> {
        let mut keys = BTreeMap::new();
        for (id, item) in Section::root(document).members("keys") {
            let (place, item) = (format!("keys.{id}"), Section::of("keys[]", Some(item)));
            let (public, private) = (item.text("key"), item.text("private_key"));
            let given = |key: Option<&str>| key.is_some_and(|key| !key.is_empty());
            if !given(public) && !given(private) {
                self.problems.error(&place, "no keys provided: give `key` or `private_key`");
            }
            let Some(text) = public.filter(|text| !text.is_empty()) else { continue };
            match ConfiguredKey::new(item.text_or_default("algorithm"), text) {
                Ok(key) => {
                    keys.insert(id.clone(), PublicKey { key, scope: item.text("scope").unwrap_or("").to_owned() });
                }
                Err(error) => {
                    let hint = "; the key itself is wanted, so for a file use `--set-file`";
                    self.problems.error(format!("{place}.key"), format!("{error}{hint}"));
                }
            }
        }
        keys
    }

    pub(super) fn bundles(&mut self, context: &BundleContext<'_>) -> Vec<BundleSettings> {
        let mut bundles = Vec::new();
        for (name, place, item) in named(context.document.get("bundles"), "bundles") {
            let Some(name) = name else {
                self.problems.error(place, "expected an object of bundles by name");
                continue;
            };
            bundles.extend(self.bundle(name, &place, Section::of("bundles[]", Some(item)), context));
        }
        let own = Section::root(context.document).section("plugins").section("stepgate");
        for (name, _) in own.members("bundles") {
            if !bundles.iter().any(|bundle| bundle.name == *name) {
                self.problems.error(format!("plugins.stepgate.bundles.{name}"), "there is no such bundle");
            }
        }
        bundles
    }

    /// One bundle, or the discovery bundle.
    pub(super) fn bundle(
        &mut self,
        name: &str,
        place: &str,
        item: Section<'_>,
        context: &BundleContext<'_>,
    ) -> Option<BundleSettings> {
        let source = self.source(name, place, item, context.services);
        let polling = self.polling(place, item);
        let verification = self.verification(place, item.section("signing"), context);
        let own = Section::of(
            "plugins.stepgate.bundles[]",
            Section::root(context.document).section("plugins").section("stepgate").section("bundles").at(name),
        );
        if own.at("max_staleness").is_some() && matches!(source, Some(Source::File(_))) {
            let message = "a file is read once: it would be stale for ever";
            self.problems.error(format!("plugins.stepgate.bundles.{name}.max_staleness"), message);
        }
        let kept = item.is_on("persist").then(|| {
            if Path::new(name).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                self.problems.error(place, "a bundle of this name cannot be kept in a folder");
            }
            let folder = Section::root(context.document).text_or_default("persistence_directory");
            SavedBundle { folder: PathBuf::from(folder).join("bundles").join(name) }
        });
        let service = match &source {
            Some(Source::Service { service, .. }) => Some(service.as_str()),
            _ => None,
        };
        let services = named(context.document.get("services"), "services");
        let service = services.iter().find(|(name, ..)| name.is_some() && *name == service).map(|(.., item)| *item);
        let mut hasher = DefaultHasher::new();
        for part in [item.value, service, context.document.get("keys"), own.value] {
            part.map(Value::to_string).hash(&mut hasher);
        }
        Some(BundleSettings {
            name: name.to_owned(),
            source: source?,
            polling,
            // A bundle of more would not fit into memory once it is compiled, beside the one that it replaces.
            size_limit: item.share("size_limit_bytes", context.memory),
            verification,
            kept,
            rollback_guard: own.is_on("rollback_guard"),
            max_staleness: own.optional_duration("max_staleness"),
            fingerprint: hasher.finish(),
        })
    }

    fn source(
        &mut self,
        name: &str,
        place: &str,
        item: Section<'_>,
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<Source> {
        let resource = item.text("resource").filter(|resource| !resource.is_empty());
        if let Some(path) = resource.and_then(|resource| resource.strip_prefix("file://")) {
            if item.flag("persist") == Some(true) {
                self.problems.warn(format!("{place}.persist"), "has no effect: the bundle is a file already");
            }
            return Some(Source::File(path.strip_prefix("localhost").unwrap_or(path).into()));
        }
        let resource = resource.map_or_else(|| format!("bundles/{name}"), str::to_owned);
        // Without a name the first service counts, as in OPA.
        let service = item.text("service").map(str::to_owned).or_else(|| services.keys().next().cloned());
        if !service.as_ref().is_some_and(|service| services.contains_key(service)) {
            let known: Vec<_> = services.keys().map(String::as_str).collect();
            let message = format!("there is no such service; there are: {}", known.join(", "));
            self.problems.error(format!("{place}.service"), message);
        }
        let service = service?;
        let resource = match services.get(&service).filter(|service| service.is_registry) {
            None => Resource::Path(resource),
            Some(registry) => {
                let known = registry.url.host_str().map(|host| match registry.url.port() {
                    Some(port) => format!("{host}:{port}"),
                    None => host.to_owned(),
                });
                let reference = Reference::parse(&resource).filter(|it| Some(&it.registry) == known.as_ref());
                if reference.is_none() {
                    let message =
                        "expected `host/repository:tag`, with the host of the service: credentials go nowhere else";
                    self.problems.error(format!("{place}.resource"), message);
                }
                Resource::Artifact(reference?)
            }
        };
        Some(Source::Service { service, resource })
    }

    fn polling(&mut self, place: &str, bundle: Section<'_>) -> Polling {
        let item = bundle.section("polling");
        let (least, most) = (item.count("min_delay_seconds"), item.count("max_delay_seconds"));
        if item.at("min_delay_seconds").is_some() != item.at("max_delay_seconds").is_some() {
            self.problems.error(format!("{place}.polling"), "give both min_delay_seconds and max_delay_seconds");
        }
        if least > most {
            let message = "max_delay_seconds must not be less than min_delay_seconds";
            self.problems.error(format!("{place}.polling"), message);
        }
        let long = item.at("long_polling_timeout_seconds").and_then(Value::as_u64);
        Polling {
            min_delay: Duration::from_secs(least.max(1)),
            max_delay: Duration::from_secs(most.max(1)),
            long: long.map(Duration::from_secs),
            is_manual: bundle.text("trigger") == Some("manual"),
        }
    }

    fn verification(&mut self, place: &str, signing: Section<'_>, context: &BundleContext<'_>) -> Verification {
        let key_id = signing.text("keyid").filter(|id| !id.is_empty()).map(str::to_owned);
        if let Some(id) = key_id.as_ref().filter(|id| !context.keys.contains_key(*id)) {
            let message = format!("there is no key `{id}` with a `key` under `keys`");
            self.problems.error(format!("{place}.signing.keyid"), message);
        }
        let mut exclude = Vec::new();
        for pattern in signing.texts("exclude_files") {
            match exclusion(pattern) {
                Some(glob) => exclude.push(glob),
                None => {
                    let message = format!("`{pattern}` is not a pattern");
                    self.problems.error(format!("{place}.signing.exclude_files"), message);
                }
            }
        }
        let is_wanted = !context.keys.is_empty() || signing.value.is_some();
        Verification {
            keys: context.keys.clone(),
            key_id,
            scope: signing.text("scope").unwrap_or("").to_owned(),
            exclude,
            demand: match (context.signatures_as_in_opa, is_wanted) {
                (true, _) => SignaturePolicy::AsInOpa,
                (false, true) => SignaturePolicy::Required,
                (false, false) => SignaturePolicy::Optional,
            },
        }
    }
}
