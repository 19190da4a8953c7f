//! The pages of `docs/reference/config/`, made from the table of keys. Each has an example, which a test resolves.

use std::fmt::Write as _;

use super::keys::{Default, Effect, Key, Kind, all};
use super::memory::share_of;

/// A page: its file, its title, what it is about, the keys on it with everything below them, and an example.
struct Page {
    file: &'static str,
    title: &'static str,
    about: &'static str,
    keys: &'static [&'static str],
    example: &'static str,
}

const PAGES: [Page; 12] = [
    Page {
        file: "listener.md",
        title: "The gRPC listener and compatibility",
        about: "Where Envoy asks, with which entry point, and how closely the answers follow OPA-Envoy's.",
        keys: &[
            "plugins",
            "plugins.envoy_ext_authz_grpc",
            "plugins.stepgate",
            "plugins.stepgate.grpc",
            "plugins.stepgate.socket_mode",
            "plugins.stepgate.socket_group",
            "plugins.stepgate.compat",
            "plugins.stepgate.dry_run_scope",
        ],
        example: include_str!("reference/listener.yaml"),
    },
    Page {
        file: "issuers.md",
        title: "Issuers, tokens and proofs of possession",
        about: "Whose tokens count, how they are verified, and which level of authentication they have.",
        keys: &[
            "plugins.stepgate.issuers",
            "plugins.stepgate.levels",
            "plugins.stepgate.dpop",
            "plugins.stepgate.client_certificate",
        ],
        example: include_str!("reference/issuers.yaml"),
    },
    Page {
        file: "revocation.md",
        title: "Revocation",
        about: "Rejects the tokens of users, sessions, clients and keys that a hub has revoked ([how it works](../../operate/revocation.md)).",
        keys: &[
            "plugins.stepgate.revocation",
            "plugins.stepgate.issuers[].revocation",
            "plugins.stepgate.routes[].revocation",
        ],
        example: include_str!("reference/revocation.yaml"),
    },
    Page {
        file: "hub.md",
        title: "Hub",
        about: "Configures `stepgate hub`: the ledger of revocations and the feed of sidecars ([how it works](../../operate/revocation.md)).",
        keys: &["plugins.stepgate.hub"],
        example: include_str!("reference/hub.yaml"),
    },
    Page {
        file: "routes.md",
        title: "Routes, step-up and identity",
        about: "What routes demand without a line of Rego, how clients are challenged, and what the upstream learns.",
        keys: &[
            "plugins.stepgate.routes",
            "plugins.stepgate.step_up",
            "plugins.stepgate.resource",
            "plugins.stepgate.resources",
            "plugins.stepgate.identity_headers",
            "plugins.stepgate.identity_token",
        ],
        example: include_str!("reference/routes.yaml"),
    },
    Page {
        file: "evaluation.md",
        title: "Input, built-in functions and caches",
        about: "What policies see and what they may do.",
        keys: &[
            "plugins.stepgate.input",
            "plugins.stepgate.client_ip",
            "plugins.stepgate.peer_from_xfcc",
            "plugins.stepgate.cors_preflight",
            "plugins.stepgate.builtins",
            "caching",
        ],
        example: include_str!("reference/evaluation.yaml"),
    },
    Page {
        file: "limits.md",
        title: "Limits",
        about: "Bounds of time, memory and numbers. [Every bound on a request's way](../../operate/limits.md) is listed with its answer.",
        keys: &["plugins.stepgate.limits"],
        example: include_str!("reference/limits.yaml"),
    },
    Page {
        file: "services.md",
        title: "Services, credentials and keys",
        about: "The servers that stepgate asks and uploads to.",
        keys: &["services", "keys"],
        example: include_str!("reference/services.yaml"),
    },
    Page {
        file: "bundles.md",
        title: "Bundles and discovery",
        about: "Policies from servers: polling, signatures, persistence, and a configuration from a bundle.",
        keys: &[
            "bundles",
            "bundle",
            "discovery",
            "persistence_directory",
            "storage",
            "plugins.stepgate.bundles",
            "plugins.stepgate.discovery_allowed_keys",
            "plugins.stepgate.load_checks",
        ],
        example: include_str!("reference/bundles.yaml"),
    },
    Page {
        file: "decision-logs.md",
        title: "Decision logs",
        about: "Events of decisions, to the console or a service, with masks and without credentials.",
        keys: &["decision_logs", "nd_builtin_cache", "plugins.stepgate.log"],
        example: include_str!("reference/decision-logs.yaml"),
    },
    Page {
        file: "status-and-tracing.md",
        title: "Status, labels and tracing",
        about: "Reports about bundles, discovery and the decision log, and traces of checks.",
        keys: &["status", "labels", "distributed_tracing"],
        example: include_str!("reference/status-and-tracing.yaml"),
    },
    Page {
        file: "api.md",
        title: "The API and the admin socket",
        about: "OPA's REST API on `--addr`, AuthZEN, and the socket of `stepgate tail`.",
        keys: &[
            "server",
            "default_decision",
            "default_authorization_decision",
            "plugins.stepgate.admin_socket",
            "plugins.stepgate.authzen",
        ],
        example: include_str!("reference/api.yaml"),
    },
];

/// Examples of the pages, by file.
#[cfg(test)]
pub(super) fn examples() -> impl Iterator<Item = (&'static str, &'static str)> {
    PAGES.iter().map(|page| (page.file, page.example))
}

/// The pages with the index, by file name.
pub fn reference() -> Vec<(&'static str, String)> {
    let mut index = "# Configuration reference\n\n\
        The file is OPA's. stepgate's own keys stand under `plugins.stepgate`, where an unknown key stops the start; elsewhere an unknown key is a warning. \
        `stepgate doctor plan --config-file FILE` reports all problems of a file in one run, each with its place, without serving.\n\n\
        `${NAME}` is replaced by the environment variable of that name. Durations have units: `180ms`, `30s`, `1h30m`. \
        Sizes are bytes. `[]` in a key stands for each item of a list, or each name of an object.\n\n\
        [config.schema.json](../../config.schema.json) is the JSON Schema: editors with the YAML language server read it from a first line \
        `# yaml-language-server: $schema=config.schema.json`. `stepgate config-schema` prints it.\n\n\
        | page | about |\n| --- | --- |\n"
        .to_owned();
    for page in &PAGES {
        // Writing to a String cannot fail.
        let _ = writeln!(index, "| [{}]({}) | {} |", page.title, page.file, page.about);
    }
    index.push_str("\nThe pages are generated from `src/config/keys/table/`; a test keeps them up to date.\n");
    let pages = PAGES.iter().map(|page| (page.file, page_text(page)));
    std::iter::once(("README.md", index)).chain(pages).collect()
}

/// The page that a key is on: that with the longest of its prefixes.
fn page_of(path: &str) -> Option<&'static str> {
    let is_below =
        |key: &str| path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    let of_page = |page: &'static Page| {
        page.keys.iter().filter(|key| is_below(key)).map(|key| key.len()).max().map(|length| (length, page.file))
    };
    PAGES.iter().filter_map(of_page).max().map(|(_, file)| file)
}

fn page_text(page: &Page) -> String {
    let mut text = format!("# {}\n\n{}\n\n```yaml\n{}```\n\n", page.title, page.about, page.example);
    text.push_str("| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
    for key in all().filter(|key| page_of(key.path) == Some(page.file)) {
        let about = match key.effect {
            Effect::Supported => key.about.to_owned(),
            Effect::NoOp(why) => format!("Accepted without effect: {why}."),
            Effect::Refused(why) => format!("Refused: {why}."),
        };
        let _ = writeln!(text, "| `{}` | {} | {} | {about} |", key.path, kind(key), default(key));
    }
    text
}

/// The default as a reader wants it: sizes in units, and what depends on the memory limit in words.
fn default(key: &Key) -> String {
    match key.default {
        Default::None => String::new(),
        Default::Required => "required".to_owned(),
        Default::Computed(text) => text.to_owned(),
        Default::Is(text) => match (key.kind, text.parse()) {
            (Kind::Integer(..), Ok(number)) if is_size(key.path) => sized(number),
            _ => format!("`{text}`"),
        },
        Default::Share(consumer, unit) => {
            let (most, fraction) = share_of(consumer);
            match unit {
                1 => format!("{}, or {fraction}", sized(most)),
                unit => format!("{}, or {fraction} at {} each", most.checked_div(unit).unwrap_or(most), sized(unit)),
            }
        }
        Default::Capped(most, divisor) => format!("{}, at most 1/{divisor} of the memory limit", sized(most)),
    }
}

fn is_size(path: &str) -> bool {
    path.ends_with("_bytes") || path.ends_with("_length") || path.ends_with("msg-size")
}

/// `64 MiB` or `48 bytes`.
fn sized(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.iter().find(|(_, shift)| bytes >= 1 << shift && bytes.trailing_zeros() >= *shift);
    unit.map_or_else(|| format!("{bytes} bytes"), |(name, shift)| format!("{} {name}", bytes >> shift))
}

fn kind(key: &Key) -> String {
    match key.kind {
        Kind::String => "string".to_owned(),
        Kind::Bool => "boolean".to_owned(),
        Kind::Integer(least, most) if is_size(key.path) => format!("integer, {} to {}", sized(least), sized(most)),
        Kind::Integer(least, most) => format!("integer, {least} to {most}"),
        Kind::Duration => "duration".to_owned(),
        Kind::Choice(names) => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or "),
        Kind::Strings => "array of strings".to_owned(),
        Kind::Numbers => "array of numbers".to_owned(),
        Kind::StringMap => "object of strings".to_owned(),
        Kind::Percentage => "number, 0 to 100".to_owned(),
        Kind::Level => "level".to_owned(),
        Kind::LevelMap => "object of levels".to_owned(),
        Kind::Section => "object".to_owned(),
        Kind::Sections => "array of objects".to_owned(),
        Kind::Named => "objects by name".to_owned(),
        Kind::SectionOrStrict => "`strict` or object".to_owned(),
        Kind::Any => "any".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_on_one_page() {
        let lost: Vec<_> = all().filter(|key| page_of(key.path).is_none()).map(|key| key.path).collect();
        assert!(lost.is_empty(), "give these keys a page: {lost:?}");
    }

    #[test]
    fn sizes_have_units() {
        for (bytes, text) in
            [(48, "48 bytes"), (16 << 10, "16 KiB"), (48 << 20, "48 MiB"), (1 << 30, "1 GiB"), (1_500, "1500 bytes")]
        {
            assert_eq!(sized(bytes), text);
        }
    }
}
