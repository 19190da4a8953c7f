//! The integration tests: one binary, one file per concern.

mod cli;
mod differences;
mod hostile;
mod keys;
mod ledger;
mod policies;
mod providers;
mod random;
mod rego;
mod tidy;
mod typing;
