//! stepgate: external authorization for Envoy and Istio.
//!
//! Floors, from the ground up; a module uses only what stands below it (`tests/it/tidy.rs` checks it):
//! `ARCHITECTURE.md` has the table of the floors and the whole map.

pub mod app;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod decision_queue;
pub mod doctor;
pub mod feed;
pub mod folder;
pub mod hub;
pub mod lifecycle;
pub mod opa;
pub mod policy;
pub mod remote;
pub mod revocation;
pub mod secret;
pub mod serve;
pub mod state;
pub mod telemetry;
pub mod token;
pub mod value;
