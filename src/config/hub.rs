//! The hub: its listeners, its file, and how long it remembers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::issuers::issuer_names;
use super::resolve::Resolver;
use super::scim::credentials;
use super::section::Section;
use super::streams::Stream;
use crate::hub::{HubSettings, LedgerStore};
use crate::remote::service::ServiceSettings;
use crate::serve::{Address, TlsSettings};
use crate::state::{Durability, RedisSettings};
use crate::token::{IssuerSettings, KeySource};

const PLACE: &str = "plugins.stepgate.hub";

/// Where something listens.
#[derive(Clone, Debug)]
pub struct HubListener {
    pub address: Address,
    pub tls: Option<TlsSettings>,
}

/// A hub, as configured.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Where identity providers reach it.
    pub public: Option<HubListener>,
    /// Where sidecars read the feed.
    pub address: Address,
    pub tls: Option<TlsSettings>,
    /// Where health and metrics are, beside the feed.
    pub diagnostic: Option<Address>,
    /// The socket of administrators.
    pub admin: Address,
    pub settings: HubSettings,
    /// Issuers whose signatures it verifies.
    pub issuers: Vec<IssuerSettings>,
    /// Streams of events, with their transmitters.
    pub streams: Vec<Stream>,
    /// Services that have keys of issuers.
    pub services: BTreeMap<String, ServiceSettings>,
}

impl Resolver<'_> {
    pub(super) fn hub(
        &mut self,
        own: Section<'_>,
        issuers: &[IssuerSettings],
        services: &BTreeMap<String, ServiceSettings>,
    ) -> Option<HubConfig> {
        let item = own.section("hub");
        item.value?;
        let address = self.hub_address(item, &format!("{PLACE}.addr"), "addr");
        let admin = self.hub_address(item, &format!("{PLACE}.admin_socket"), "admin_socket");
        if !matches!(admin, None | Some(Address::UnixPath(_))) {
            self.problems.error(
                format!("{PLACE}.admin_socket"),
                "expected a socket file such as unix:///run/stepgate/hub.sock: its permissions are what guards it",
            );
        }
        let tls = self.tls("plugins.stepgate.hub.tls", item, address.as_ref());
        let credentials = credentials(item);
        let asks_clients = tls.as_ref().is_some_and(|tls| tls.client_roots.is_some());
        if let Some(address @ Address::Tcp { .. }) = &address {
            let is_local = is_loopback(address);
            if !is_local && tls.is_none() {
                self.problems
                    .error(format!("{PLACE}.addr"), "off loopback the feed needs `tls`: it carries the hub's key");
            } else if !is_local && !asks_clients && credentials.is_empty() {
                self.problems.error(
                    format!("{PLACE}.addr"),
                    "everyone could read the feed: set `tls.ca_cert_file`, or `token_files`",
                );
            }
        }
        let named = own.at("issuers").and_then(Value::as_array).into_iter().flatten().flat_map(issuer_names).count();
        if named == 0 {
            self.problems.error(PLACE, "without `issuers` there is no user whose tokens it could revoke");
        }
        let joins = self.issuer_joins(own);
        let public = self.hub_public(item);
        let scim = self.scim(item, &joins, own);
        let with_keys = issuers.iter().filter(|issuer| issuer.keys != KeySource::Introspection);
        let verified: Vec<&str> = with_keys.map(|issuer| issuer.issuer.as_str()).collect();
        let logouts = self.logouts(item, own, &verified);
        let streams = self.streams(item, &joins, &scim, services);
        let store = self.ledger_store(item);
        let seconds = |name: &str| u32::try_from(item.duration(name).as_secs()).unwrap_or(u32::MAX);
        Some(HubConfig {
            address: address?,
            tls,
            admin: admin?,
            diagnostic: None,
            settings: HubSettings {
                store: store?,
                retain: seconds("retain"),
                session_retain: seconds("session_retain"),
                skew: seconds("skew"),
                max_entries: item.size("max_entries"),
                max_readers: item.size("feed_readers"),
                credentials,
                issuers: joins,
                deleted_retention: seconds("deleted_retention"),
                public_url: public.as_ref().map(|public| public.url.clone()).unwrap_or_default(),
                scim,
                logouts,
            },
            issuers: issuers.to_vec(),
            streams,
            services: services.clone(),
            public: public.map(|public| public.listener),
        })
    }

    /// The folder of the ledger, or its server.
    fn ledger_store(&mut self, item: Section<'_>) -> Option<LedgerStore> {
        let shared = item.section("redis");
        match (item.text("data_dir"), shared.value) {
            (Some(folder), None) => Some(LedgerStore::Folder(PathBuf::from(folder))),
            (None, Some(_)) => self.redis_store(shared),
            (None, None) => {
                self.problems
                    .error(format!("{PLACE}.data_dir"), "it is required without `redis`: the folder of the hub's file");
                None
            }
            (Some(_), Some(_)) => {
                self.problems
                    .error(format!("{PLACE}.redis"), "a hub has its ledger in `data_dir` or in `redis`, not in both");
                None
            }
        }
    }

    fn redis_store(&mut self, item: Section<'_>) -> Option<LedgerStore> {
        let urls: Vec<String> = item.texts("urls").into_iter().map(str::to_owned).collect();
        for (at, url) in urls.iter().enumerate() {
            if let Err(reason) = redis_url(url) {
                self.problems.error(format!("{PLACE}.redis.urls[{at}]"), reason);
            }
        }
        let namespace = item.text_or_default("namespace").to_owned();
        let is_of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !(1..=64).contains(&namespace.len()) || !namespace.bytes().all(is_of_a_name) {
            self.problems.error(format!("{PLACE}.redis.namespace"), "expected 1 to 64 of a-z, A-Z, 0-9, `.`, `_`, `-`");
        }
        let durability = match item.text_or_default("durability") {
            "waitaof" => Durability::WaitAof,
            "replica" => Durability::Replica,
            "external" => Durability::External,
            _ => Durability::AofAlways,
        };
        let path = |name: &str| item.text(name).map(PathBuf::from);
        let settings = RedisSettings {
            urls,
            namespace,
            username: item.text("username").map(str::to_owned),
            password_file: path("password_file"),
            ca_cert_file: path("ca_cert_file"),
            durability,
        };
        if settings.username.is_some() && settings.password_file.is_none() {
            self.problems.error(format!("{PLACE}.redis.password_file"), "`username` needs it");
        }
        Some(LedgerStore::Redis { server: settings, key_file: path("key_file")? })
    }

    pub(super) fn hub_address(&mut self, item: Section<'_>, place: &str, name: &str) -> Option<Address> {
        match Address::parse(item.text_or_default(name)) {
            Ok(address) => Some(address),
            Err(error) => {
                self.problems.error(place, error.to_string());
                None
            }
        }
    }
}

/// The address of a server: off loopback its connections carry names of users.
fn redis_url(text: &str) -> Result<(), &'static str> {
    let url = url::Url::parse(text).map_err(|_| "expected `rediss://host:port`")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials belong to `username` and `password_file`");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("expected no query and no fragment");
    }
    let host = url.host_str().unwrap_or_default();
    let is_local =
        host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    match url.scheme() {
        _ if host.is_empty() => Err("expected `rediss://host:port`"),
        "rediss" => Ok(()),
        "redis" if is_local => Ok(()),
        "redis" => Err("off loopback the connection needs TLS: `rediss://`"),
        _ => Err("expected `rediss://host:port`"),
    }
}

/// True for an address that only this machine reaches.
pub(super) fn is_loopback(address: &Address) -> bool {
    match address {
        Address::Tcp { host, .. } => {
            host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        }
        Address::UnixPath(_) | Address::UnixAbstract(_) => true,
    }
}
