//! The whole service, without Envoy.

mod bundles;
mod decision_log;
mod discovery;
mod hub;
mod logout;
mod revocation;
mod scim;
mod shared_hub;
mod ssf;
