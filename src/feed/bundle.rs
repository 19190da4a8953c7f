//! Bundles: archives of policies and data that a server offers, fetched again and again.

pub mod archive;
