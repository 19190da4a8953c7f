//! Addresses and sockets. Everything is bound before anything is served, so a taken port stops the start.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::handshakes::Handshakes;
use super::refusal::{Refusal, Refusals};
use super::tls::{Tls, client_certificates, client_subject};
use crate::telemetry::RejectReason;

/// Connections of one HTTP listener; beyond, the oldest is closed once it waits for a request. Silent ones take neither the
/// place of probes nor all descriptors of the process.
const MAX_CONNECTIONS: usize = 256;
/// The delay after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listen address: `host:port`, `:port`, `grpc://host:port`, `unix:///path` or `unix://@abstract`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp { host: String, port: u16 },
    UnixPath(PathBuf),
    UnixAbstract(String),
}

/// A listen address of HTTP. As in OPA, `http://` is plain whatever certificates there are, `https://` needs one, and an address
/// without either is plain where there is none.
///
/// Mirrors: OPA `v1/server/server.go` `getListener`, v1.9.0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAddress {
    pub address: Address,
    pub security: Security,
}

/// HTTP is served over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    Plain,
    Tls,
    /// TLS where there is a certificate.
    AsPossible,
}

impl HttpAddress {
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let (rest, security) = match text.split_once("://") {
            // TLS is for TCP: what follows is a host.
            Some(("https", rest)) if !rest.contains("://") => (rest, Security::Tls),
            Some(("http" | "unix", _)) => (text, Security::Plain),
            _ => (text, Security::AsPossible),
        };
        let address = Address::parse(rest).map_err(|_| AddressError(text.to_owned()))?;
        Ok(Self { address, security })
    }
}

/// Text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an address; write host:port, grpc://host:port, unix:///path or unix://@name; for HTTP also https://host:port"
)]
pub struct AddressError(String);

/// The users that may connect to a socket file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// The permission bits.
    pub mode: u32,
    /// The group by number; nothing: that of the process.
    pub group: Option<u32>,
}

impl SocketAccess {
    /// These permission bits, for the group of the process.
    pub const fn mode(mode: u32) -> Self {
        Self { mode, group: None }
    }
}

/// A socket that cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}")]
    Bind { address: Address, source: io::Error },
    #[error("cannot listen on {0}: a file that is not a socket is in the way")]
    Occupied(Address),
    #[error("cannot listen on {0}: another process listens there")]
    InUse(Address),
}

impl Address {
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError(text.to_owned());
        if let Some(name) = text.strip_prefix("unix://@") {
            return if name.is_empty() { Err(refused()) } else { Ok(Self::UnixAbstract(name.to_owned())) };
        }
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.is_empty() { Err(refused()) } else { Ok(Self::UnixPath(PathBuf::from(path))) };
        }
        let rest = text.strip_prefix("grpc://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (host, port) = rest.rsplit_once(':').ok_or_else(refused)?;
        let port = port.parse().map_err(|_| refused())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.contains('/') {
            return Err(refused());
        }
        Ok(Self::Tcp { host: if host.is_empty() { "::".to_owned() } else { host.to_owned() }, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::UnixPath(path) => write!(f, "unix://{}", path.display()),
            Self::UnixAbstract(name) => write!(f, "unix://@{name}"),
        }
    }
}

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: Option<PathBuf> },
}

impl Listener {
    /// Binds `address`. A stale socket file is removed first; one in use is an error.
    pub async fn bind(address: &Address, access: SocketAccess) -> Result<Self, BindError> {
        let failed = |source| BindError::Bind { address: address.clone(), source };
        match address {
            Address::Tcp { host, port } => {
                let bound = match TcpListener::bind((host.as_str(), *port)).await {
                    // `:port` means every address; where there is no IPv6, that is every IPv4 address.
                    Err(error) if host == "::" && error.kind() != io::ErrorKind::AddrInUse => {
                        TcpListener::bind(("0.0.0.0", *port)).await
                    }
                    bound => bound,
                };
                bound.map(Self::Tcp).map_err(failed)
            }
            Address::UnixAbstract(name) => {
                let abstract_name = std::os::unix::net::SocketAddr::from_abstract_name(name).map_err(failed)?;
                let listener = std::os::unix::net::UnixListener::bind_addr(&abstract_name).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let listener = UnixListener::from_std(listener).map_err(failed)?;
                Ok(Self::Unix { listener, path: None })
            }
            Address::UnixPath(path) => {
                if let Ok(meta) = std::fs::symlink_metadata(path) {
                    if !meta.file_type().is_socket() {
                        return Err(BindError::Occupied(address.clone()));
                    }
                    if std::os::unix::net::UnixStream::connect(path).is_ok() {
                        return Err(BindError::InUse(address.clone()));
                    }
                    std::fs::remove_file(path).map_err(failed)?;
                }
                let listener = UnixListener::bind(path).map_err(failed)?;
                if access.group.is_some() {
                    std::os::unix::fs::chown(path, None, access.group).map_err(failed)?;
                }
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode)).map_err(failed)?;
                Ok(Self::Unix { listener, path: Some(path.clone()) })
            }
        }
    }

    /// The next connection. Errors of accepting (no descriptor left, a peer that has gone) are retried.
    pub async fn next_connection(&self) -> Connection {
        loop {
            let accepted = match self {
                Self::Tcp(listener) => TcpListener::accept(listener).await.map(|(stream, _)| {
                    // Small answers must not wait for more.
                    let _ = stream.set_nodelay(true);
                    Connection::Tcp(stream)
                }),
                Self::Unix { listener, .. } => {
                    UnixListener::accept(listener).await.map(|(stream, _)| Connection::Unix(stream))
                }
            };
            match accepted {
                Ok(connection) => return connection,
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// The next connection, but not before `begin`; until then it waits in the backlog.
    pub async fn next_connection_at(&self, begin: Instant) -> Connection {
        if begin > Instant::now() {
            tokio::time::sleep_until(begin).await;
        }
        self.next_connection().await
    }

    /// Only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(listener) => listener.local_addr().is_ok_and(|address| address.ip().is_loopback()),
            Self::Unix { .. } => true,
        }
    }

    /// The bound address, with the port that the system chose.
    pub fn local_address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(|address| address.to_string()).unwrap_or_default(),
            Self::Unix { path, .. } => {
                path.as_ref().map_or_else(|| "unix://@".to_owned(), |path| format!("unix://{}", path.display()))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path: Some(path), .. } = self {
            // A missing file is what is wanted.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A connection of any kind.
#[derive(Debug)]
pub enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Where it comes from; `@` from a Unix socket, as in Go.
    pub fn peer(&self) -> String {
        match self {
            Self::Tcp(stream) => address_of(stream),
            Self::Tls(stream) => address_of(stream.get_ref().0),
            Self::Unix(_) => "@".to_owned(),
        }
    }
}

pub(super) fn address_of(stream: &TcpStream) -> String {
    stream.peer_addr().map(|address| address.to_string()).unwrap_or_default()
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: String,
    /// The certificate of the peer, verified.
    pub subject: Option<String>,
    /// That one, and those that vouch for it, in DER.
    pub certificates: Arc<[Vec<u8>]>,
}

/// A listener for HTTP, with or without TLS.
#[derive(Debug)]
pub struct HttpListener {
    listener: Listener,
    handshakes: Option<Handshakes>,
    refusals: Arc<Refusals>,
    /// Connections that may still be there, oldest first.
    open: VecDeque<Open>,
}

/// A connection that may still be there.
#[derive(Debug)]
struct Open {
    alive: Weak<()>,
    /// Closes it.
    close: CancellationToken,
    peer: String,
}

/// A connection of an HTTP listener.
#[derive(Debug)]
pub struct HttpConnection {
    connection: Connection,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Goes with the connection.
    _alive: Arc<()>,
}

impl HttpListener {
    pub fn new(listener: Listener, tls: Option<Arc<Tls>>, refusals: Arc<Refusals>) -> Self {
        let handshakes = tls.map(|tls| Handshakes::new(tls, Arc::clone(&refusals)));
        Self { listener, handshakes, refusals, open: VecDeque::new() }
    }

    async fn next_connection(&mut self) -> Connection {
        match &mut self.handshakes {
            None => self.listener.next_connection().await,
            Some(handshakes) => handshakes.next_connection(&self.listener).await,
        }
    }
}

impl HttpListener {
    fn bounded(&mut self, connection: Connection, peer: String) -> HttpConnection {
        self.open.retain(|open| open.alive.strong_count() > 0);
        if self.open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.close.cancel();
            let why = format!("{MAX_CONNECTIONS} connections are open, and this was the oldest");
            self.refusals.log(&Refusal { reason: RejectReason::Limit, why }, &oldest.peer);
        }
        let (alive, close) = (Arc::new(()), CancellationToken::new());
        self.open.push_back(Open { alive: Arc::downgrade(&alive), close: close.clone(), peer });
        HttpConnection { connection, closing: Box::pin(close.cancelled_owned()), _alive: alive }
    }
}

impl axum::serve::Listener for HttpListener {
    type Io = HttpConnection;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let connection = self.next_connection().await;
        let (subject, certificates) = match &connection {
            Connection::Tls(stream) => (client_subject(stream), client_certificates(stream)),
            _ => Default::default(),
        };
        let peer = Peer { address: connection.peer(), subject, certificates };
        (self.bounded(connection, peer.address.clone()), peer)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(Peer { address: self.listener.local_address(), subject: None, certificates: Arc::default() })
    }
}

impl Connected<IncomingStream<'_, HttpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, HttpListener>) -> Self {
        stream.remote_addr().clone()
    }
}

impl AsyncRead for HttpConnection {
    /// Ends when the connection is to be closed: an answer that has begun is still written.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match this.closing.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => Pin::new(&mut this.connection).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for HttpConnection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().connection).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().connection).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection).poll_shutdown(cx)
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        !matches!(self, Self::Tls(_))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn schemes_say_whether_http_is_served_over_tls() {
        for (text, security) in [
            ("127.0.0.1:1", Security::AsPossible),
            (":1", Security::AsPossible),
            ("http://127.0.0.1:1", Security::Plain),
            ("https://127.0.0.1:1", Security::Tls),
            ("unix:///x", Security::Plain),
        ] {
            assert_eq!(HttpAddress::parse(text).expect("an address").security, security, "{text}");
        }
        for text in ["https://", "https://x", "https://a/b:1", "ftp://a:1", "https://unix:///x", "https://http://a:1"] {
            assert!(HttpAddress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_have_these_forms() {
        let tcp = |host: &str, port| Ok(Address::Tcp { host: host.to_owned(), port });
        for (text, want) in [
            (":9191", tcp("::", 9191)),
            ("127.0.0.1:9191", tcp("127.0.0.1", 9191)),
            ("grpc://localhost:1", tcp("localhost", 1)),
            ("[::1]:5", tcp("::1", 5)),
            ("unix:///run/a.sock", Ok(Address::UnixPath("/run/a.sock".into()))),
            ("unix://@authz", Ok(Address::UnixAbstract("authz".to_owned()))),
        ] {
            assert_eq!(Address::parse(text), want, "{text}");
        }
        for text in ["", "9191", "host", "host:port", "host:99999", "tcp://a:1", "unix://", "unix://@"] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn the_oldest_connection_makes_room_for_a_new_one() {
        let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
        let listener = Listener::bind(&address, SocketAccess::mode(0o660)).await.expect("a port");
        let place = listener.local_address();
        let metrics = Arc::new(Metrics::new(None));
        let mut listener = HttpListener::new(listener, None, Arc::new(Refusals::new(Arc::clone(&metrics), "http")));
        let (mut clients, mut accepted) = (Vec::new(), Vec::new());
        for _ in 0..=MAX_CONNECTIONS {
            clients.push(TcpStream::connect(&place).await.expect("a connection"));
            accepted.push(axum::serve::Listener::accept(&mut listener).await.0);
        }
        let mut byte = [0];
        let mut ended = async |at: usize| {
            let read = tokio::io::AsyncReadExt::read(&mut accepted[at], &mut byte);
            tokio::time::timeout(Duration::from_millis(50), read)
                .await
                .is_ok_and(|read| read.is_ok_and(|read| read == 0))
        };
        assert_eq!((ended(0).await, ended(1).await, ended(MAX_CONNECTIONS).await), (true, false, false));
        let told = "stepgate_refused_connections_total{listener=\"http\",reason=\"limit\"} 1";
        assert!(metrics.text().contains(told), "the one that made room is counted");
        // Those that are gone count no more.
        accepted.truncate(2);
        clients.push(TcpStream::connect(&place).await.expect("a connection"));
        axum::serve::Listener::accept(&mut listener).await;
        assert_eq!(listener.open.len(), 2);
    }

    #[tokio::test]
    async fn only_a_stale_socket_file_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        let address = Address::UnixPath(path.clone());
        let bind = || Listener::bind(&address, SocketAccess::mode(0o660));

        let first = bind().await.expect("it binds");
        assert!(matches!(bind().await, Err(BindError::InUse(_))));
        assert_eq!(std::fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o660);
        drop(first);
        assert!(!path.exists(), "the file goes with the listener");

        drop(std::os::unix::net::UnixListener::bind(&path).expect("a stale socket"));
        bind().await.expect("the stale file is replaced");

        std::fs::write(&path, "precious").expect("a file");
        assert!(matches!(bind().await, Err(BindError::Occupied(_))));
    }
}
