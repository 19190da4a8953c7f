//! Keys of revocation: the hub, the claims that events are matched with, and routes.

use super::Default::{Computed, Is, None as NONE, Required as REQUIRED};
use super::{Key, Kind, key};

pub const KEYS: &[Key] = &[
    key(
        "plugins.stepgate.revocation",
        Kind::Section,
        NONE,
        "Rejects the tokens of users, sessions, clients and keys that a hub has revoked.",
    ),
    key(
        "plugins.stepgate.revocation.service",
        Kind::String,
        NONE,
        "The service of the hub; it, or `hub`, is required.",
    ),
    key(
        "plugins.stepgate.revocation.hub",
        Kind::Choice(&["embedded"]),
        NONE,
        "`embedded` runs the hub of `plugins.stepgate.hub` in this process: for a single stepgate, because another replica would have a hub of its own.",
    ),
    key(
        "plugins.stepgate.revocation.max_staleness",
        Kind::Duration,
        Is("60s"),
        "Entries that the hub has not confirmed for longer are stale: `when_stale` applies.",
    ),
    key(
        "plugins.stepgate.revocation.stale_limit",
        Kind::Duration,
        Is("15m"),
        "Entries that the hub has not confirmed for longer count as if there were none: `when_cold` applies.",
    ),
    key(
        "plugins.stepgate.revocation.when_stale",
        Kind::Choice(&["allow", "deny"]),
        Is("allow"),
        "`deny` answers requests with a token with 503 `revocation_unknown` while entries are stale.",
    ),
    key(
        "plugins.stepgate.revocation.when_cold",
        Kind::Choice(&["allow", "deny"]),
        Is("deny"),
        "`deny` answers requests with a token with 503 `revocation_unknown` while there are no entries.",
    ),
    key(
        "plugins.stepgate.revocation.max_entries",
        Kind::Integer(1, 100_000_000),
        Computed("5000000, at most 1/16 of the memory limit at 48 bytes each"),
        "Entries at most. A larger snapshot is not used, `stepgate_revocation_overflow` is 1, and the entries grow stale; nothing is evicted.",
    ),
    key(
        "plugins.stepgate.revocation.max_events",
        Kind::Integer(0, 10_000_000),
        Is("200000"),
        "Users whose events are kept for `input.revocation.events`, in at most 2 KiB each. Beyond, `input.revocation.events_state` is `overflow`.",
    ),
    key(
        "plugins.stepgate.revocation.persist",
        Kind::Bool,
        Is("true"),
        "Keep a copy of the entries in `persistence_directory` for the next start. Who can write that folder can un-revoke: mount it for stepgate alone.",
    ),
    key(
        "plugins.stepgate.issuers[].revocation",
        Kind::Section,
        NONE,
        "The claims that events about users are matched with.",
    ),
    key(
        "plugins.stepgate.issuers[].revocation.joins",
        Kind::Named,
        Computed("those of the preset"),
        "Ways of naming a user, at most 8, beside `sub`: events name users by them.",
    ),
    key(
        "plugins.stepgate.issuers[].revocation.joins[].claim",
        Kind::String,
        REQUIRED,
        "The claim with the name of the user.",
    ),
    key(
        "plugins.stepgate.issuers[].revocation.joins[].fold",
        Kind::Choice(&["exact", "email", "uuid"]),
        Is("exact"),
        "`email` trims the value and lowers its case, `uuid` lowers the case.",
    ),
    key(
        "plugins.stepgate.issuers[].revocation.joins[].when",
        Kind::String,
        NONE,
        "A claim that must be true for the join to count, such as `email_verified`.",
    ),
    key("plugins.stepgate.issuers[].revocation.session_claim", Kind::String, Is("sid"), "The claim with the session."),
    key(
        "plugins.stepgate.issuers[].revocation.groups_claim",
        Kind::String,
        Is("groups"),
        "The claim with the groups, of which 256 are looked at.",
    ),
    key("plugins.stepgate.issuers[].revocation.device_claim", Kind::String, NONE, "The claim with the device."),
    key(
        "plugins.stepgate.issuers[].revocation.required_joins",
        Kind::Strings,
        NONE,
        "Joins without which a token is `unmappable`: an event could name its user and not match it.",
    ),
    key(
        "plugins.stepgate.issuers[].revocation.unbounded",
        Kind::Choice(&["reject", "allow"]),
        Is("reject"),
        "Tokens without `iat`, or that live longer than the hub keeps entries: `reject` answers 401 `lifetime_too_long`.",
    ),
    key(
        "plugins.stepgate.routes[].revocation",
        Kind::Choice(&["required", "best_effort", "off"]),
        Computed("`best_effort`"),
        "`required` answers 503 `revocation_unknown` unless the entries are live and the token can be matched; `off` does not ask the store.",
    ),
];
