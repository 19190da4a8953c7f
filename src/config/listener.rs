//! The ext_authz listener: where it is, who may use it, and how much.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::memory::Consumer;
use super::resolve::{GrpcListenerConfig, Resolver};
use super::section::Section;
use crate::serve::{Address, ConnectionSettings, GrpcSettings, SocketAccess, TlsSettings};
use crate::token::SpiffePattern;

impl Resolver<'_> {
    pub(super) fn grpc(
        &mut self,
        plugin: Section<'_>,
        own: Section<'_>,
        check_timeout: Duration,
    ) -> Option<GrpcListenerConfig> {
        let limits = own.section("limits");
        let address = match Address::parse(plugin.text_or_default("addr")) {
            Ok(address) => Some(address),
            Err(error) => {
                self.problems.error("plugins.envoy_ext_authz_grpc.addr", error.to_string());
                None
            }
        };
        let mode = own.text_or_default("socket_mode");
        let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o777);
        let group = own.at("socket_group").and_then(Value::as_u64).and_then(|group| u32::try_from(group).ok());
        if mode.is_none() {
            self.problems.error("plugins.stepgate.socket_mode", "expected octal permissions such as \"0660\"");
        }
        let grpc = own.section("grpc");
        let tls = self.tls("plugins.stepgate.grpc.tls", grpc, address.as_ref());
        let tls = tls.map(|tls| TlsSettings { is_http2: true, ..tls });
        let age = grpc.optional_duration("max_connection_age").unwrap_or_default();
        let max_message_bytes = plugin.size("grpc-max-recv-msg-size");
        let max_bytes_in_flight = limits.share_size("bytes_in_flight", self.memory);
        if limits.at("bytes_in_flight").is_some() && max_bytes_in_flight < max_message_bytes {
            self.problems.warn(
                "plugins.stepgate.limits.bytes_in_flight",
                format!(
                    "a message of grpc-max-recv-msg-size ({max_message_bytes}) is denied as `overloaded` even alone"
                ),
            );
        }
        Some(GrpcListenerConfig {
            address: address?,
            socket_access: SocketAccess { mode: mode?, group },
            tls,
            settings: GrpcSettings {
                max_message_bytes,
                check_timeout,
                max_checks: limits.size("checks_in_flight"),
                max_bytes_in_flight,
                max_unread_bytes: self.memory.size_for(Consumer::UnreadAnswers),
                max_incomplete_bytes: self.memory.size_for(Consumer::IncompleteMessages),
                max_header_block_bytes: self.memory.size_for(Consumer::HeaderBlocks),
                max_connections: limits.share_size("connections", self.memory),
                reflection: plugin.is_on("enable-reflection"),
                connection: ConnectionSettings {
                    keepalive: grpc.duration("keepalive"),
                    max_age: (!age.is_zero()).then_some(age),
                },
            },
        })
    }

    /// The section `tls` of a listener, which stands at `place`.
    pub(super) fn tls(
        &mut self,
        place: &'static str,
        listener: Section<'_>,
        address: Option<&Address>,
    ) -> Option<TlsSettings> {
        // An empty `tls: {}` is an error, not plaintext.
        if listener.value.and_then(|listener| listener.get("tls")).is_some_and(Value::is_null) {
            self.problems.error(place, "the section is empty: give cert_file and private_key_file, or remove it");
        }
        let tls = listener.section("tls");
        tls.value?;
        if !matches!(address, None | Some(Address::Tcp { .. })) {
            self.problems.error(place, "a socket is guarded by its permissions; TLS is for TCP");
        }
        let path = |name| tls.text(name).map(PathBuf::from);
        let pair = path("cert_file").zip(path("private_key_file"));
        if pair.is_none() {
            self.problems.error(place, "cert_file and private_key_file are both needed");
        }
        let client_roots = path("ca_cert_file");
        let mut clients = Vec::new();
        for (at, text) in tls.texts("allowed_spiffe_ids").into_iter().enumerate() {
            match SpiffePattern::parse(text) {
                Some(pattern) => clients.push(pattern),
                None => self.problems.error(
                    format!("{place}.allowed_spiffe_ids[{at}]"),
                    "expected an id such as spiffe://cluster.local/ns/shop/sa/web, or one that ends with /*",
                ),
            }
        }
        if tls.at("allowed_spiffe_ids").is_some() && tls.texts("allowed_spiffe_ids").is_empty() {
            self.problems.error(format!("{place}.allowed_spiffe_ids"), "the list is empty, so no client could connect");
        }
        if !clients.is_empty() && client_roots.is_none() {
            self.problems
                .error(format!("{place}.allowed_spiffe_ids"), "needs ca_cert_file: without it clients prove no id");
        }
        let (certificate, key) = pair?;
        let needs_client = client_roots.is_some();
        let only_1_3 = tls.text("min_version") == Some("1.3");
        Some(TlsSettings { certificate, key, client_roots, needs_client, only_1_3, clients, is_http2: false })
    }
}
