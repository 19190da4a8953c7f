//! Handshakes that are under way: as many as one listener bears. They hold no place of a connection, so that nobody who only begins one
//! takes the place of those who can prove who they are.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::server::TlsStream;

use super::bind::address_of;
use super::refusal::{Refusal, Refusals};
use super::tls::Tls;
use crate::telemetry::Refused;

/// Handshakes at the same time; beyond, the oldest is given up.
const MAX_HANDSHAKES: usize = 256;

/// How a handshake with a peer ended.
type Shaken = Result<Box<TlsStream<TcpStream>>, (Refusal, String)>;

/// The handshakes of one listener.
#[derive(Debug)]
pub struct Handshakes {
    tls: Arc<Tls>,
    listener: &'static str,
    refusals: Arc<Refusals>,
    tasks: JoinSet<Shaken>,
    /// What ends each, and with whom it is, oldest first.
    oldest: VecDeque<(AbortHandle, String)>,
}

impl Handshakes {
    pub fn new(tls: Arc<Tls>, listener: &'static str, refusals: Arc<Refusals>) -> Self {
        Self { tls, listener, refusals, tasks: JoinSet::new(), oldest: VecDeque::new() }
    }

    /// Begins one; where there are too many, the oldest makes room.
    pub fn begin(&mut self, stream: TcpStream) {
        self.oldest.retain(|(handshake, _)| !handshake.is_finished());
        if let Some((handshake, peer)) = self.oldest.pop_front_if(|_| self.tasks.len() >= MAX_HANDSHAKES) {
            handshake.abort();
            let why = format!("more than {MAX_HANDSHAKES} handshakes are under way, and this was the oldest");
            self.refusals.tell(&Refusal { reason: Refused::Limit, why }, self.listener, &peer);
        }
        let (tls, peer) = (Arc::clone(&self.tls), address_of(&stream));
        let whose = peer.clone();
        let shaking = async { tls.handshake(stream).await.map_err(|refusal| (refusal, whose)) };
        self.oldest.push_back((self.tasks.spawn(shaking), peer));
    }

    /// The next connection that is as it must be. Waits for ever while nothing is under way.
    pub async fn next(&mut self) -> Box<TlsStream<TcpStream>> {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Ok(stream))) => return stream,
                Some(Ok(Err((refusal, peer)))) => self.refusals.tell(&refusal, self.listener, &peer),
                // Given up for a newer one.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}
