//! The integration tests: one binary, one file per concern.

mod policies;
mod tidy;
