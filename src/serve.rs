//! The listeners: sockets bound first, then served.
//!
//! Knows how to listen and how to speak gRPC and HTTP; knows nothing about files, feeds or Rego.

mod api;
mod bind;
mod connection;
mod connection_guard;
mod grpc;
mod handshakes;
mod health;
mod http;
mod limits;
mod refusal;
mod runner;
mod tls;

pub use self::api::{Access, Api, ApiSettings, Authentication, BodyLimits, Control, PolicyChangeError};
pub use self::bind::{Address, AddressError, BindError, HttpAddress, Listener, Security, SocketAccess};
pub use self::connection::ConnectionSettings;
pub use self::grpc::{GrpcServer, GrpcSettings};
pub use self::health::{BUNDLES, Health, Plugin, Readiness};
pub use self::http::{HttpListenerConfig, ListenerKind, serve_http};
pub use self::limits::Limits;
pub use self::tls::{Tls, TlsError, TlsSettings, client_config};
