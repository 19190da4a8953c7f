//! The listeners: sockets bound first, then served.
//!
//! Knows how to listen and how to speak gRPC and HTTP; knows nothing about files, feeds or Rego.

mod address;
mod api;
mod connection;
mod connection_guard;
mod grpc;
mod handshakes;
mod health;
mod http;
mod http_listener;
mod hub;
mod limits;
mod listener;
mod metrics;
mod public;
mod rejected_connections;
mod stream_executor;
mod tls;

pub use self::address::{Address, AddressError, HttpAddress, Security};
pub use self::api::{Access, Api, ApiSettings, Authentication, BodyLimits, Control, PolicyChangeError};
pub use self::connection::ConnectionSettings;
pub use self::grpc::{GrpcServer, GrpcSettings};
pub use self::health::{BUNDLES, Health, Plugin, Readiness};
pub use self::http::{HttpListenerConfig, ListenerKind, serve_http};
pub use self::limits::Limits;
pub use self::listener::{BindError, Listener, SocketAccess};
pub use self::metrics::ListenerMetrics;
pub use self::tls::{Tls, TlsError, TlsSettings, client_config};
