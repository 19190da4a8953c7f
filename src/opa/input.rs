//! The input document, built straight from the bytes of a `CheckRequest`.
//!
//! Mirrors: opa-envoy-plugin `envoyauth/request.go` (the behaviour of its main branch where that differs from v1.9.0).
//! The message is never turned into Rust structs first: a table of fields (`schema`) says how each one is written, so
//! building the document is one walk over the bytes. The reasons are in `docs/adr/0001-input-from-the-wire.md`.

mod attributes;
mod body;
mod document;
mod form;
mod grpc_body;
mod media;
mod multipart;
mod path;
mod protojson;
mod schema;
mod wire;

pub use self::attributes::{Attributes, Http};
pub use self::body::{BodyError, BodyMemory, ParsedBody};
pub use self::document::{BodyUse, Document, InputError, OF_BODY, OF_CALLER, Options, build};
pub use self::form::{EscapeError, QueryError, hex_pair, percent_decode};
pub use self::grpc_body::{Descriptors, DescriptorsError};
pub use self::protojson::{ProtojsonError, from_protojson};
pub use self::wire::WireError;

#[cfg(test)]
mod tests;
