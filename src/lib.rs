//! stepgate: external authorization for Envoy and Istio.
//!
//! Floors, from the ground up; a module uses only what stands below it (`tests/it/tidy.rs` checks it):
//! ground `clock` `secret` `value`; contract `opa`. `ARCHITECTURE.md` has the whole map.

pub mod clock;
pub mod jws;
pub mod opa;
pub mod policy;
pub mod secret;
pub mod token;
pub mod value;
