//! The configuration: OPA's file, flags and environment in, one resolved `Config` out, or every problem at once.
//!
//! `keys` is the single table of what may be configured; checking, hints and `docs/reference/config/` and `docs/config.schema.json` all come from it.

mod aliases;
mod bundles;
mod credentials;
mod decision_logs;
mod demands;
mod discovered;
mod document;
mod duration;
mod hub;
mod issuers;
mod keys;
mod listener;
mod memory;
mod overrides;
mod problem;
mod proofs;
mod reachability;
mod reference;
mod resolve;
mod revocation;
mod schema;
mod scim;
mod section;
mod services;
mod status;
mod streams;
mod tracing;
mod workloads;

pub use self::discovered::{merge, public};
pub use self::document::{Document, DocumentError};
pub use self::duration::parse as parse_duration;
pub use self::hub::HubConfig;
pub use self::keys::problems as key_problems;
pub use self::problem::{Problem, Problems};
pub use self::reference::reference;
pub use self::resolve::{Config, GrpcListenerConfig, resolve, resolve_labels};
pub use self::revocation::{HubLocation, RevocationConfig};
pub use self::schema::schema;
pub use self::status::ApiConfig;

#[cfg(test)]
mod generated_tests;
#[cfg(test)]
mod tests;
