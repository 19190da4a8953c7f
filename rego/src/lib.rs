//! Rego as Open Policy Agent evaluates it: parser, compiler, evaluator and built-in functions.
//!
//! ```
//! use stepgate_rego::{Policy, Value};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let policy = Policy::compile([("hello.rego", "package hello\nallow if input.user == \"alice\"")])?;
//!     let input: Value = r#"{"user": "alice"}"#.parse()?;
//!     assert_eq!(policy.query("data.hello.allow")?.eval(&input)?, Some(Value::Bool(true)));
//!     Ok(())
//! }
//! ```
//!
//! Policies are immutable and shared by threads. An evaluation has limits of time, steps, depth and memory ([`Limits`]), and reaches the
//! clock, randomness, HTTP and tracing through one trait, [`Host`]. The crate itself does no I/O.

#![warn(unreachable_pub)]

mod builtins;
mod compile;
mod engine;
mod eval;
mod host;
mod meter;
mod policy;
mod syntax;
mod typing;
pub mod value;

pub use arcstr::literal;

pub use self::builtins::{
    Builtin, DuplicateKey, all as builtins, certificate, is_cacheable, parse_yaml, parse_yaml_configuration,
};
pub use self::compile::hir::data_path;
pub use self::compile::{
    Capabilities, CompileError, CompiledQuery, DataConflicts, Options, Reads, Source, compile, compile_query,
    is_test_name,
};
pub use self::engine::{CompileErrors, Query};
pub use self::eval::{ErrorKind, EvalError, EvalOptions, Limits, Solution};
pub use self::host::{
    Caching, Host, HttpClient, HttpError, HttpRequest, HttpResponse, Pem, Place, Recorder, SignatureCache, SystemHost,
    TlsOptions, Tracer,
};
pub use self::meter::{FREE_BYTES, Meter};
pub use self::policy::{GroupKind, Policy};
pub use self::syntax::{Location, Version, package_of};
pub use self::value::Value;

/// The program of the README is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeTests;
