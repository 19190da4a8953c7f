//! Descriptors that stepgate serves by gRPC reflection. Generated from Envoy's own protos, which the crate `envoy-types`
//! carries; `tests/regenerate.rs` checks that they are up to date and rewrites them on request.

/// A `FileDescriptorSet` of `envoy/service/auth/v3/external_auth.proto` and everything that it imports.
pub const EXT_AUTHZ_DESCRIPTORS: &[u8] = include_bytes!("../descriptors/ext_authz.bin");
