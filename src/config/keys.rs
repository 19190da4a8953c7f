//! Every key that may be configured: its type, its default, what it does, and whether it does it yet.

use serde_json::Value;

use super::duration;
use super::problem::Problems;

/// What a value must be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Text,
    Bool,
    /// A whole number within bounds.
    Count(u64, u64),
    Duration,
    Choice(&'static [&'static str]),
    Texts,
    Numbers,
    /// An object from text to text.
    TextMap,
    /// An object from text to a level.
    LevelMap,
    /// A section whose keys are listed on their own.
    Section,
    /// A list of sections.
    Sections,
    /// An object of sections by name, or a list of them.
    Named,
    /// `strict`, or an object whose keys are listed on their own.
    SectionOrStrict,
    /// Anything: OPA's, kept and not looked at.
    Any,
}

impl Kind {
    /// Whether the value is looked at here, and not key by key.
    fn is_leaf(self) -> bool {
        !matches!(self, Self::Section | Self::Sections | Self::Named | Self::SectionOrStrict)
    }
}

/// Whether a key does something.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    Works,
    /// Accepted without effect, for the reason given.
    NoOp(&'static str),
    /// Stops the start, for the reason given.
    Refused(&'static str),
}

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Dotted; `[]` stands for each item of a list.
    pub path: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub about: &'static str,
    pub effect: Effect,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { path, kind, default, about, effect: Effect::Works }
}

const fn no_op(path: &'static str, why: &'static str) -> Key {
    Key { path, kind: Kind::Any, default: "", about: "", effect: Effect::NoOp(why) }
}

const fn refused(path: &'static str, why: &'static str) -> Key {
    Key { path, kind: Kind::Any, default: "", about: "", effect: Effect::Refused(why) }
}

const LATER: &str = "not offered yet; remove it or keep using OPA for this";
const LEVELS: u64 = 4;

/// The table.
pub const KEYS: &[Key] = &[
    key("services", Kind::Named, "", "Servers by name, as an object or as a list of objects with a `name`."),
    key("services[].name", Kind::Text, "", "In a list."),
    key("services[].url", Kind::Text, "required", "http or https."),
    key("services[].headers", Kind::TextMap, "", "Sent with every request to this origin, and to no other."),
    key("services[].response_header_timeout_seconds", Kind::Count(1, 86_400), "10", "For the head of an answer."),
    key("services[].allow_insecure_tls", Kind::Bool, "false", "Do not verify the server."),
    key("services[].tls", Kind::Section, "", ""),
    key("services[].tls.ca_cert", Kind::Text, "", "Path of the roots in PEM that are trusted."),
    key("services[].tls.system_ca_required", Kind::Bool, "false", "Trust the system's roots beside them."),
    key("services[].type", Kind::Text, "", "Only plain HTTP: `oci` is not offered yet."),
    key("services[].credentials", Kind::Section, "", ""),
    key("services[].credentials.bearer", Kind::Section, "", ""),
    key("services[].credentials.bearer.token", Kind::Text, "", "The token itself."),
    key("services[].credentials.bearer.token_path", Kind::Text, "", "Path of the token, read for every request."),
    key("services[].credentials.bearer.scheme", Kind::Text, "Bearer", "Before the token."),
    refused("services[].credentials.oauth2", LATER),
    refused("services[].credentials.client_tls", LATER),
    refused("services[].credentials.s3_signing", LATER),
    refused("services[].credentials.gcp_metadata", LATER),
    refused("services[].credentials.azure_managed_identity", LATER),
    refused("services[].credentials.plugin", "there are no plugins"),
    key("bundles", Kind::Named, "", "Bundles by name."),
    key("bundles[].service", Kind::Text, "the first service", "The name of its service."),
    key("bundles[].resource", Kind::Text, "bundles/<name>", "Its path below the service's URL."),
    key("bundles[].polling", Kind::Section, "", ""),
    key("bundles[].polling.min_delay_seconds", Kind::Count(0, 1 << 32), "60", "The shortest pause between two polls."),
    key("bundles[].polling.max_delay_seconds", Kind::Count(0, 1 << 32), "120", "The longest."),
    no_op("bundles[].polling.long_polling_timeout_seconds", "every poll is answered at once"),
    key(
        "bundles[].size_limit_bytes",
        Kind::Count(1, 1 << 40),
        "1073741824",
        "Bytes of the archive, and of all that is in it.",
    ),
    key(
        "bundles[].trigger",
        Kind::Choice(&["periodic"]),
        "periodic",
        "`manual` is not offered: nothing could trigger it.",
    ),
    no_op(
        "bundles[].persist",
        "not offered yet: after a start every check is denied until the bundle has been fetched",
    ),
    refused("bundles[].signing", LATER),
    refused("bundle", LATER),
    refused("discovery", LATER),
    refused("decision_logs", LATER),
    refused("status", LATER),
    refused("distributed_tracing", LATER),
    refused("storage", "policies and data are kept in memory only"),
    no_op("keys", "bundles are not verified yet; with `bundles`, keys stop the start"),
    no_op("labels", "they appear in decision logs and status, which are not offered yet"),
    no_op("default_decision", "the data API is not offered"),
    no_op("default_authorization_decision", "the data API is not offered"),
    key("caching", Kind::Section, "", ""),
    key("caching.inter_query_builtin_cache", Kind::Section, "", ""),
    key(
        "caching.inter_query_builtin_cache.max_size_bytes",
        Kind::Count(0, 1 << 40),
        "67108864",
        "Bytes of `http.send` responses that are kept for later evaluations; 0 means the default.",
    ),
    no_op("caching.inter_query_builtin_cache.forced_eviction_threshold_percentage", "the cache evicts by itself"),
    no_op("caching.inter_query_builtin_cache.stale_entry_eviction_period_seconds", "the cache evicts by itself"),
    no_op("caching.inter_query_builtin_value_cache", "patterns and parsed values are kept with the policy"),
    no_op("nd_builtin_cache", "it appears in decision logs, which are not offered yet"),
    no_op("persistence_directory", "there are no bundles to persist"),
    no_op("server", "it tunes the data API, which is not offered"),
    key("plugins", Kind::Section, "", ""),
    key(
        "plugins.envoy_ext_authz_grpc",
        Kind::Section,
        "",
        "The ext_authz server. Without this block no gRPC port is opened, as in OPA.",
    ),
    key(
        "plugins.envoy_ext_authz_grpc.addr",
        Kind::Text,
        ":9191",
        "Where to listen: `host:port`, `grpc://host:port`, `unix:///path` or `unix://@abstract`.",
    ),
    key(
        "plugins.envoy_ext_authz_grpc.path",
        Kind::Text,
        "envoy/authz/allow",
        "The decision: a path under `data`, split at `/`.",
    ),
    key(
        "plugins.envoy_ext_authz_grpc.query",
        Kind::Text,
        "",
        "Deprecated by OPA. Only a plain reference such as `data.envoy.authz.allow`; not together with `path`.",
    ),
    key(
        "plugins.envoy_ext_authz_grpc.dry-run",
        Kind::Bool,
        "false",
        "Answer allow where the policy denies. Faults still deny.",
    ),
    key("plugins.envoy_ext_authz_grpc.enable-reflection", Kind::Bool, "false", "Serve grpc.reflection v1 and v1alpha."),
    key(
        "plugins.envoy_ext_authz_grpc.proto-descriptor",
        Kind::Text,
        "",
        "Path of a binary FileDescriptorSet by which gRPC bodies are parsed.",
    ),
    key(
        "plugins.envoy_ext_authz_grpc.grpc-max-recv-msg-size",
        Kind::Count(1, 1 << 30),
        "4194304",
        "Bytes; a larger check request is denied with 413.",
    ),
    key(
        "plugins.envoy_ext_authz_grpc.grpc-max-send-msg-size",
        Kind::Count(1, 2_147_483_647),
        "2147483647",
        "Accepted; answers are never that large.",
    ),
    key(
        "plugins.envoy_ext_authz_grpc.skip-request-body-parse",
        Kind::Bool,
        "false",
        "Leave out `parsed_body` and `truncated_body`.",
    ),
    key(
        "plugins.envoy_ext_authz_grpc.enable-performance-metrics",
        Kind::Bool,
        "false",
        "Add OPA's `grpc_request_duration_seconds` and `error_counter` to /metrics.",
    ),
    key(
        "plugins.envoy_ext_authz_grpc.grpc-request-duration-seconds-buckets",
        Kind::Numbers,
        "1e-6 … 1",
        "Buckets of that histogram.",
    ),
    key("plugins.stepgate", Kind::Section, "", ""),
    key(
        "plugins.stepgate.compat",
        Kind::SectionOrStrict,
        "",
        "`strict`: answer as OPA-Envoy does. Or single deviations, below.",
    ),
    key(
        "plugins.stepgate.compat.grpc_errors",
        Kind::Bool,
        "false",
        "Faults are gRPC errors, which `failure_mode_allow` turns into an allow.",
    ),
    key(
        "plugins.stepgate.compat.body_errors",
        Kind::Bool,
        "false",
        "Show the client why its request could not be parsed, in OPA's words.",
    ),
    key("plugins.stepgate.compat.decision_keys", Kind::Bool, "false", "Ignore `step_up` and `reason` in decisions."),
    key(
        "plugins.stepgate.dry_run_faults",
        Kind::Bool,
        "false",
        "With `dry-run`: allow where something went wrong, too.",
    ),
    key("plugins.stepgate.socket_mode", Kind::Text, "\"0660\"", "Permissions of the gRPC socket file, octal."),
    key("plugins.stepgate.input", Kind::Section, "", ""),
    key(
        "plugins.stepgate.input.extras",
        Kind::Bool,
        "true",
        "Add `method`, `path`, `jwt` and `authn` to the input. Off under `compat: strict`.",
    ),
    key(
        "plugins.stepgate.input.ambiguous_path",
        Kind::Choice(&["warn", "reject"]),
        "warn",
        "`reject`: 400 before the policy for a path without a canonical form.",
    ),
    key(
        "plugins.stepgate.input.body_errors",
        Kind::Choice(&["deny", "expose"]),
        "deny",
        "`expose`: hand the policy `parsed_body: null` and `body_error` instead of a 400.",
    ),
    key("plugins.stepgate.builtins", Kind::Section, "", ""),
    key(
        "plugins.stepgate.builtins.opa_runtime",
        Kind::Bool,
        "false",
        "Let policies call `opa.runtime`, which shows them all environment variables. On under `compat: strict`.",
    ),
    key(
        "plugins.stepgate.builtins.http_send",
        Kind::Bool,
        "false",
        "Let policies call `http.send`; checks then wait for other servers. On under `compat: strict`.",
    ),
    key(
        "plugins.stepgate.builtins.http_send_hosts",
        Kind::Texts,
        "",
        "Hosts, without ports, that `http.send` may ask, redirects included. Unset means all.",
    ),
    key("plugins.stepgate.limits", Kind::Section, "", ""),
    key(
        "plugins.stepgate.limits.check_timeout",
        Kind::Duration,
        "180ms",
        "The longest that one check may take, beside the timeout that Envoy sends. 10s where `builtins.http_send` is on.",
    ),
    key(
        "plugins.stepgate.limits.evaluation_timeout",
        Kind::Duration,
        "50ms",
        "The longest that one evaluation may take.",
    ),
    key(
        "plugins.stepgate.limits.input_depth",
        Kind::Count(8, 1_000),
        "512",
        "Levels of nesting in bodies and metadata.",
    ),
    key("plugins.stepgate.limits.checks_in_flight", Kind::Count(1, 1_000_000), "4096", "More are denied with 503."),
    key(
        "plugins.stepgate.limits.bytes_in_flight",
        Kind::Count(1 << 16, 1 << 40),
        "134217728",
        "Bytes of all check requests in flight; more are denied with 503.",
    ),
    key(
        "plugins.stepgate.limits.token_bytes",
        Kind::Count(256, 1 << 20),
        "16384",
        "A longer token is rejected unread.",
    ),
    key(
        "plugins.stepgate.limits.token_cache_bytes",
        Kind::Count(0, 1 << 40),
        "a quarter of the memory limit, 64 MiB at most",
        "Room for verified tokens.",
    ),
    key(
        "plugins.stepgate.limits.token_cache_ttl",
        Kind::Duration,
        "10m",
        "A cached token is verified again after this time.",
    ),
    key("plugins.stepgate.step_up", Kind::Section, "", ""),
    key("plugins.stepgate.step_up.realm", Kind::Text, "", "`realm` of challenges."),
    key("plugins.stepgate.step_up.resource_metadata", Kind::Text, "", "`resource_metadata` of challenges (RFC 9728)."),
    key(
        "plugins.stepgate.identity_headers",
        Kind::TextMap,
        "",
        "Headers set on allow, from `claims.<path>`, `claims[\"<name>\"]` or `authn.<member>`. A caller's own copies are removed, as far as Envoy shows them (its `allowed_headers` hides the others).",
    ),
    key(
        "plugins.stepgate.issuers",
        Kind::Sections,
        "",
        "Whose tokens are accepted. Without this key tokens mean nothing; an empty list stops the start.",
    ),
    key("plugins.stepgate.issuers[].issuer", Kind::Text, "required", "Compared to `iss` byte for byte."),
    key("plugins.stepgate.issuers[].audiences", Kind::Texts, "required", "One of them must be in `aud`."),
    key(
        "plugins.stepgate.issuers[].algorithms",
        Kind::Texts,
        "required",
        "RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA.",
    ),
    key(
        "plugins.stepgate.issuers[].jwks_url",
        Kind::Text,
        "",
        "Where the key set is. Exactly one of jwks_url, discovery, jwks_file and jwks.",
    ),
    key("plugins.stepgate.issuers[].discovery", Kind::Text, "", "URL of the OpenID provider configuration."),
    key("plugins.stepgate.issuers[].jwks_file", Kind::Text, "", "Path of a key set, read again every minute."),
    key("plugins.stepgate.issuers[].jwks", Kind::Any, "", "The key set itself."),
    key(
        "plugins.stepgate.issuers[].leeway",
        Kind::Duration,
        "30s",
        "Clock skew granted to `exp`, `nbf` and `iat`, 10m at most.",
    ),
    key(
        "plugins.stepgate.issuers[].token_profile",
        Kind::Choice(&["rfc9068", "legacy"]),
        "legacy",
        "`rfc9068`: require `typ: at+jwt` and that RFC's claims.",
    ),
    key(
        "plugins.stepgate.issuers[].token_from",
        Kind::Sections,
        "Authorization: Bearer",
        "Where this issuer's tokens may be.",
    ),
    key("plugins.stepgate.issuers[].token_from[].header", Kind::Text, "", "A header's name."),
    key(
        "plugins.stepgate.issuers[].token_from[].scheme",
        Kind::Text,
        "",
        "The scheme before the token; none if left out.",
    ),
    key("plugins.stepgate.issuers[].token_from[].cookie", Kind::Text, "", "A cookie's name."),
    key(
        "plugins.stepgate.issuers[].preset",
        Kind::Choice(&crate::token::Preset::NAMES),
        "generic",
        "Which provider's `acr` and `amr` words to expect.",
    ),
    key("plugins.stepgate.issuers[].acr_levels", Kind::LevelMap, "", "Levels (0 to 4) of further `acr` values."),
    key(
        "plugins.stepgate.issuers[].amr_aliases",
        Kind::TextMap,
        "",
        "Further `amr` words, each with the known word that it means.",
    ),
    key(
        "plugins.stepgate.issuers[].trust_mfa",
        Kind::Bool,
        "true",
        "Believe `mfa` in `amr` without two named factors.",
    ),
    key("plugins.stepgate.issuers[].amr_string", Kind::Bool, "false", "Take a bare string `amr` for a list of one."),
];

/// The prefix of stepgate's own section, where an unknown key stops the start.
const OWN: &str = "plugins.stepgate";

/// Checks every key and value of `document`.
pub fn check(document: &Value, problems: &mut Problems) {
    section(document, "", "", problems);
}

fn section(value: &Value, path: &str, pattern: &str, problems: &mut Problems) {
    let Some(members) = value.as_object() else { return };
    for (name, value) in members {
        let join = |prefix: &str| if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let (path, pattern) = (join(path), join(pattern));
        match KEYS.iter().find(|key| key.path == pattern) {
            Some(key) => known(key, value, &path, &pattern, problems),
            None => unknown(name, &path, &pattern, problems),
        }
    }
}

fn known(key: &Key, value: &Value, path: &str, pattern: &str, problems: &mut Problems) {
    match key.effect {
        Effect::Refused(why) => return problems.error(path, why),
        Effect::NoOp(why) => return problems.warn(path, format!("has no effect: {why}")),
        Effect::Works => {}
    }
    if pattern.starts_with(OWN) && key.kind.is_leaf() && holds_placeholder(value) {
        return problems.error(path, "a `${…}` in it was not replaced: the variable is not set");
    }
    match (key.kind, value) {
        // An empty section is all defaults, as in OPA.
        (Kind::Section, Value::Null) => {}
        (Kind::Section | Kind::SectionOrStrict, Value::Object(_)) => section(value, path, pattern, problems),
        (Kind::SectionOrStrict, Value::String(text)) if text == "strict" => {}
        (Kind::Named, Value::Object(members)) => {
            for (name, item) in members {
                item_of(item, format!("{path}.{name}"), pattern, problems);
            }
        }
        (Kind::Sections | Kind::Named, Value::Array(items)) => {
            for (at, item) in items.iter().enumerate() {
                item_of(item, format!("{path}[{at}]"), pattern, problems);
            }
        }
        (kind, value) => {
            if let Some(expected) = mismatch(kind, value) {
                let got = value.to_string();
                let got: String = got.chars().take(60).collect();
                problems.error(path, format!("expected {expected}, got `{got}`"));
            }
        }
    }
}

fn item_of(item: &Value, path: String, pattern: &str, problems: &mut Problems) {
    if item.is_object() {
        section(item, &path, &format!("{pattern}[]"), problems);
    } else {
        problems.error(path, "expected an object");
    }
}

/// Whether any text in `value` still has a `${`.
fn holds_placeholder(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("${"),
        Value::Array(items) => items.iter().any(holds_placeholder),
        Value::Object(members) => members.values().any(holds_placeholder),
        _ => false,
    }
}

/// What was expected, when `value` is not it.
fn mismatch(kind: Kind, value: &Value) -> Option<String> {
    let texts = |items: &Vec<Value>| items.iter().all(Value::is_string);
    let (fits, expected) = match kind {
        Kind::Text => (value.is_string(), "text".to_owned()),
        Kind::Bool => (value.is_boolean(), "true or false".to_owned()),
        Kind::Count(least, most) => (
            value.as_u64().is_some_and(|n| (least..=most).contains(&n)),
            format!("a whole number from {least} to {most}"),
        ),
        Kind::Duration => (
            value.as_str().and_then(duration::parse).is_some_and(|length| !length.is_zero() || value == "0s"),
            "a duration such as `180ms`, `30s` or `10m`".to_owned(),
        ),
        Kind::Choice(names) => {
            (value.as_str().is_some_and(|text| names.contains(&text)), format!("one of {}", names.join(", ")))
        }
        Kind::Texts => (value.as_array().is_some_and(texts), "a list of texts".to_owned()),
        Kind::Numbers => {
            (value.as_array().is_some_and(|items| items.iter().all(Value::is_number)), "a list of numbers".to_owned())
        }
        Kind::TextMap => (
            value.as_object().is_some_and(|members| members.values().all(Value::is_string)),
            "an object from text to text".to_owned(),
        ),
        Kind::LevelMap => (
            value.as_object().is_some_and(|members| members.values().all(|v| v.as_u64().is_some_and(|n| n <= LEVELS))),
            "an object from text to a level from 0 to 4".to_owned(),
        ),
        Kind::Section | Kind::SectionOrStrict => (false, "an object".to_owned()),
        Kind::Sections => (false, "a list of objects".to_owned()),
        Kind::Named => (false, "an object of objects".to_owned()),
        Kind::Any => (true, String::new()),
    };
    (!fits).then_some(expected)
}

fn unknown(name: &str, path: &str, pattern: &str, problems: &mut Problems) {
    let parent = pattern.strip_suffix(name).unwrap_or_default();
    let siblings =
        KEYS.iter().filter_map(|key| key.path.strip_prefix(parent)).filter(|rest| !rest.contains(['.', '[']));
    let nearest = siblings.map(|sibling| (strsim::damerau_levenshtein(name, sibling), sibling)).min();
    let hint = match nearest {
        Some((distance, sibling)) if distance <= sibling.len().div_ceil(3) => format!("; did you mean `{sibling}`?"),
        _ => String::new(),
    };
    if pattern.starts_with(OWN) {
        problems.error(path, format!("unknown key{hint}"));
    } else if parent == "plugins." {
        // OPA: plugin "x" not registered.
        problems.error(path, format!("there is no such plugin{hint}"));
    } else {
        problems.warn(path, format!("unknown key, ignored{hint}"));
    }
}
