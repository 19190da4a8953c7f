//! The whole service, without Envoy.

mod bundles;
mod decision_log;
mod discovery;
mod hub;
mod revocation;
mod scim;
