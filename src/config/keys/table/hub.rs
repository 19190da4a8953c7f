//! Keys of the hub.

use super::Default::{Computed, Is, None as NONE, Required as REQUIRED};
use super::{Key, Kind, key};

pub const KEYS: &[Key] = &[
    key(
        "plugins.stepgate.hub",
        Kind::Section,
        NONE,
        "The hub that `stepgate hub` runs; `stepgate run` does not read it.",
    ),
    key(
        "plugins.stepgate.hub.addr",
        Kind::String,
        Is("127.0.0.1:8443"),
        "Where sidecars read the feed. Off loopback it needs `tls`, and client certificates or `token_files`.",
    ),
    key(
        "plugins.stepgate.hub.admin_socket",
        Kind::String,
        Is("unix:///run/stepgate/hub.sock"),
        "The socket file of administrators, for `stepgate revoke`. Only its owner may use it.",
    ),
    key(
        "plugins.stepgate.hub.data_dir",
        Kind::String,
        REQUIRED,
        "The folder of `hub.redb`. It must survive restarts; one process at a time has it.",
    ),
    key("plugins.stepgate.hub.tls", Kind::Section, NONE, "TLS of the feed; the files are read again when they change."),
    key("plugins.stepgate.hub.tls.cert_file", Kind::String, REQUIRED, "Path of the certificates in PEM."),
    key("plugins.stepgate.hub.tls.private_key_file", Kind::String, REQUIRED, "Path of the private key in PEM."),
    key(
        "plugins.stepgate.hub.tls.ca_cert_file",
        Kind::String,
        NONE,
        "Path of the trust roots of client certificates (PEM). If set, sidecars must present a certificate.",
    ),
    key(
        "plugins.stepgate.hub.tls.allowed_spiffe_ids",
        Kind::Strings,
        Computed("all of those roots"),
        "Sidecars that may connect: `spiffe://cluster.local/ns/shop/sa/web`, or all below one: `spiffe://cluster.local/ns/shop/*`.",
    ),
    key("plugins.stepgate.hub.tls.min_version", Kind::Choice(&["1.2", "1.3"]), Is("1.2"), "The oldest version of TLS."),
    key(
        "plugins.stepgate.hub.token_files",
        Kind::Strings,
        NONE,
        "Files with a bearer token each, of 32 to 4096 bytes, that sidecars may read the feed with. They are read with every request: rotate with two of them.",
    ),
    key(
        "plugins.stepgate.hub.retain",
        Kind::Duration,
        Is("25h"),
        "The longest life of any accepted token. Sidecars reject tokens that live longer, unless their issuer has `unbounded: allow`.",
    ),
    key(
        "plugins.stepgate.hub.session_retain",
        Kind::Duration,
        Is("720h"),
        "The longest life of a session or refresh token: a token that is refreshed keeps its `sid` and `auth_time`.",
    ),
    key(
        "plugins.stepgate.hub.skew",
        Kind::Duration,
        Is("2s"),
        "Added to the time of a change without a time of its own, because clocks of issuers may be ahead.",
    ),
    key(
        "plugins.stepgate.hub.max_entries",
        Kind::Integer(2, 100_000_000),
        Is("5000000"),
        "Sessions and tokens have half of it, and are refused beyond; users, clients, groups, devices, keys and issuers are always admitted.",
    ),
    key(
        "plugins.stepgate.hub.feed_readers",
        Kind::Integer(1, 1_000_000),
        Is("20000"),
        "Readers of the feed at the same time; further ones get 503.",
    ),
];
