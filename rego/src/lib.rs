//! Rego as Open Policy Agent evaluates it. Pure: no I/O, no clock, no async; the world comes through one trait.

pub mod syntax;
pub mod value;
