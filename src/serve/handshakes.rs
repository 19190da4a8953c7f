//! Pending TLS handshakes, capped per listener and not counted against `limits.connections`, so that unauthenticated peers cannot
//! exhaust the connection limit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::listener::{Connection, Listener, address_of};
use super::metrics::RejectReason;
use super::rejected_connections::{RejectedConnection, RejectedConnections};
use super::tls::Tls;

/// Handshakes at the same time.
const MAX_HANDSHAKES: usize = 512;
/// The minimum time of each before a newer one may replace it at the cap; newer ones wait for that.
const MIN_HANDSHAKE_TIME: Duration = Duration::from_millis(500);

/// The result of a handshake.
type HandshakeResult = Result<Box<TlsStream<TcpStream>>, (RejectedConnection, String)>;

/// One that is under way.
#[derive(Debug)]
struct Handshake {
    task: AbortHandle,
    peer: String,
    began: Instant,
}

/// The handshakes of one listener.
#[derive(Debug)]
pub struct Handshakes {
    tls: Arc<Tls>,
    refusals: Arc<RejectedConnections>,
    tasks: JoinSet<HandshakeResult>,
    oldest: VecDeque<Handshake>,
}

impl Handshakes {
    pub fn new(tls: Arc<Tls>, refusals: Arc<RejectedConnections>) -> Self {
        Self { tls, refusals, tasks: JoinSet::new(), oldest: VecDeque::new() }
    }

    /// The next connection of `listener`, over TLS and as it must be; or of a socket file, which is guarded by its permissions.
    pub async fn next_connection(&mut self, listener: &Listener) -> Connection {
        loop {
            let room = self.room();
            tokio::select! {
                // Those that have ended first: they make room.
                biased;
                ended = self.next() => if let Some(stream) = ended {
                    return Connection::Tls(stream);
                },
                connection = listener.next_connection_at(room) => match connection {
                    Connection::Tcp(stream) => self.begin(stream),
                    other => return other,
                },
            }
        }
    }

    /// When another one may begin: now, or once the oldest has had its time.
    fn room(&self) -> Instant {
        match self.oldest.front().filter(|_| self.oldest.len() >= MAX_HANDSHAKES) {
            Some(oldest) => oldest.began + MIN_HANDSHAKE_TIME,
            None => Instant::now(),
        }
    }

    /// Begins one; where there are too many, the oldest makes room.
    fn begin(&mut self, stream: TcpStream) {
        let is_full = self.oldest.len() >= MAX_HANDSHAKES;
        if is_full && let Some(oldest) = self.oldest.pop_front() {
            oldest.task.abort();
            let why = format!("{MAX_HANDSHAKES} handshakes are under way, and this was the oldest");
            self.refusals.log(&RejectedConnection { reason: RejectReason::Handshakes, why }, &oldest.peer);
        }
        let (tls, peer) = (Arc::clone(&self.tls), address_of(&stream));
        let whose = peer.clone();
        let shaking = async { tls.handshake(stream).await.map_err(|refusal| (refusal, whose)) };
        let handshake = Handshake { task: self.tasks.spawn(shaking), peer, began: Instant::now() };
        self.oldest.push_back(handshake);
    }

    /// Comes when one has ended, with the connection if it is as it must be. Waits for ever while none is under way.
    async fn next(&mut self) -> Option<Box<TlsStream<TcpStream>>> {
        let ended = self.tasks.join_next().await;
        self.oldest.retain(|handshake| !handshake.task.is_finished());
        match ended {
            Some(Ok(Ok(stream))) => Some(stream),
            Some(Ok(Err((refusal, peer)))) => {
                self.refusals.log(&refusal, &peer);
                None
            }
            // Given up for a newer one.
            Some(Err(_)) => None,
            None => std::future::pending().await,
        }
    }
}
