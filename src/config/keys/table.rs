//! The table of keys: OPA's, then stepgate's own, those about callers last.

mod hub;
mod identity;
mod opa;
mod own;
mod revocation;
mod services;

use super::{Default, Effect, Key, Kind};

pub(super) const fn key(path: &'static str, kind: Kind, default: Default, about: &'static str) -> Key {
    Key { path, kind, default, about, effect: Effect::Supported }
}

pub(super) const fn no_op(path: &'static str, why: &'static str) -> Key {
    Key { path, kind: Kind::Any, default: Default::None, about: "", effect: Effect::NoOp(why) }
}

pub(super) const fn refused(path: &'static str, why: &'static str) -> Key {
    Key { path, kind: Kind::Any, default: Default::None, about: "", effect: Effect::Refused(why) }
}

/// All keys.
pub fn all() -> impl Iterator<Item = &'static Key> {
    services::KEYS
        .iter()
        .chain(opa::KEYS)
        .chain(own::KEYS)
        .chain(identity::KEYS)
        .chain(revocation::KEYS)
        .chain(hub::KEYS)
}
