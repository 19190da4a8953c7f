//! Rego as Open Policy Agent evaluates it. Pure: no I/O, no clock, no async; the world comes through one trait, [`Host`].

pub mod builtins;
pub mod compile;
pub mod eval;
mod host;
pub mod meter;
pub mod policy;
pub mod signing;
pub mod syntax;
mod typing;
pub mod value;

pub use arcstr::literal;

pub use self::compile::{CompileError, Reads, Source, compile, compile_query};
pub use self::eval::{ErrorKind, EvalError, EvalOptions, Limits, Solution};
pub use self::host::{Caching, Host, HttpError, HttpRequest, HttpResponse, Pem, Place, TlsOptions};
pub use self::policy::{GroupKind, Policy};
pub use self::syntax::{Location, Version};
pub use self::value::Value;
