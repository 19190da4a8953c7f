//! OPA's outward surface, mirrored: the input document that policies read and the decision that they return.
//!
//! Pure: no I/O, no clock, no async. What OPA names keeps OPA's name here, letter for letter.

pub mod decision;
pub mod input;
pub mod manifest;
pub mod rest;
pub mod signature;
