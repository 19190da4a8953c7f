//! The integration tests: one binary, one file per concern.

mod cli;
mod harness;
mod keys;
mod ledger;
mod policies;
mod providers;
mod redis;
mod service;
mod tidy;
