//! A listener for HTTP, with or without TLS, with a bound on its connections.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::address::Peer;
use super::handshakes::Handshakes;
use super::listener::{Connection, Listener};
use super::metrics::RejectReason;
use super::rejected_connections::{RejectedConnection, RejectedConnections};
use super::tls::{Tls, client_certificates, client_subject};

/// Connections of one HTTP listener, but for the feed of a hub; beyond, the oldest is closed once it waits for a request. Silent ones
/// take neither the place of probes nor all descriptors of the process.
pub(super) const MAX_CONNECTIONS: usize = 256;

/// A listener for HTTP, with or without TLS.
#[derive(Debug)]
pub struct HttpListener {
    listener: Listener,
    handshakes: Option<Handshakes>,
    refusals: Arc<RejectedConnections>,
    /// Connections that may still be there, oldest first.
    open: VecDeque<Open>,
    max_connections: usize,
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
    pub fn new(
        listener: Listener,
        tls: Option<Arc<Tls>>,
        refusals: Arc<RejectedConnections>,
        max_connections: usize,
    ) -> Self {
        let handshakes = tls.map(|tls| Handshakes::new(tls, Arc::clone(&refusals)));
        Self { listener, handshakes, refusals, open: VecDeque::new(), max_connections }
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
        if self.open.len() >= self.max_connections
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.close.cancel();
            let why = format!("{} connections are open, and this was the oldest", self.max_connections);
            self.refusals.log(&RejectedConnection { reason: RejectReason::Limit, why }, &oldest.peer);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpStream;

    use super::*;
    use crate::serve::{Address, SocketAccess};
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn the_oldest_connection_makes_room_for_a_new_one() {
        let address = Address::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
        let listener = Listener::bind(&address, SocketAccess::mode(0o660)).await.expect("a port");
        let place = listener.local_address();
        let metrics = Arc::new(Metrics::new(None));
        let mut listener =
            HttpListener::new(listener, None, Arc::new(RejectedConnections::new(&metrics, "http")), MAX_CONNECTIONS);
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
}
