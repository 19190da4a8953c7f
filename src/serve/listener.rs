//! Sockets. Everything is bound before anything is served, so a taken port stops the start.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::address::Address;

/// The delay after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
