//! Memory limits of one HTTP/2 connection: bytes read at once, incomplete header blocks, and answers that
//! its peer does not read.
//!
//! The library `h2` decodes every frame that the socket has before it hands out a request, keeps header blocks until they end, and keeps
//! what the peer does not read. So the socket is read in small portions, not at all while nothing can be written, and the connection is
//! closed where the peer exceeds a quota.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::listener::Connection;

/// Bytes that are read of a connection before its requests are looked at.
const READ_BYTES: usize = 32 << 10;
/// The cost of an answer that its peer does not read: the stream, its task, headers and the message.
pub const UNREAD_ANSWER_BYTES: usize = 8 << 10;
/// Unread answers that every connection may have.
const MIN_UNREAD_ANSWERS: usize = 64;
/// Bytes of header blocks that every connection may leave incomplete.
const MIN_HEADER_BLOCK_BYTES: usize = 16 << 10;
/// The part of a total that one connection may take.
const CONNECTION_PART: usize = 16;
/// The beginning of a connection (RFC 9113 section 3.4), in bytes.
pub const PREFACE_BYTES: usize = 24;

/// The limits of all connections of a listener together.
#[derive(Debug)]
pub struct Quotas {
    max_unread_answers: usize,
    max_header_block_bytes: usize,
    unread_answers: AtomicUsize,
    header_block_bytes: AtomicUsize,
}

impl Quotas {
    /// `unread_bytes` for answers that peers do not read, `header_block_bytes` for header blocks that are not complete.
    pub fn new(unread_bytes: usize, header_block_bytes: usize) -> Self {
        Self {
            max_unread_answers: (unread_bytes / UNREAD_ANSWER_BYTES).max(MIN_UNREAD_ANSWERS),
            max_header_block_bytes: header_block_bytes.max(MIN_HEADER_BLOCK_BYTES),
            unread_answers: AtomicUsize::new(0),
            header_block_bytes: AtomicUsize::new(0),
        }
    }
}

/// One connection, as its guard and its requests see it.
#[derive(Debug)]
pub struct ConnectionState {
    quotas: Arc<Quotas>,
    /// Bytes of requests in flight on this connection.
    pub bytes_in_flight: AtomicUsize,
    /// Messages of this connection that are waited for.
    pub incomplete: AtomicUsize,
    unread_answers: AtomicUsize,
    header_block_bytes: AtomicUsize,
    /// Bytes that were read, until that is more than a preface.
    preface_bytes: AtomicUsize,
    /// The first bytes, where they came together.
    first_bytes: OnceLock<[u8; 3]>,
    read_left: AtomicUsize,
    is_write_blocked: AtomicBool,
    /// Why the connection is to be closed.
    excess: Mutex<Option<&'static str>>,
    closing: Notify,
}

impl ConnectionState {
    pub fn new(quotas: Arc<Quotas>) -> Arc<Self> {
        Arc::new(Self {
            quotas,
            bytes_in_flight: AtomicUsize::new(0),
            incomplete: AtomicUsize::new(0),
            unread_answers: AtomicUsize::new(0),
            header_block_bytes: AtomicUsize::new(0),
            preface_bytes: AtomicUsize::new(0),
            first_bytes: OnceLock::new(),
            read_left: AtomicUsize::new(READ_BYTES),
            is_write_blocked: AtomicBool::new(false),
            excess: Mutex::default(),
            closing: Notify::new(),
        })
    }

    /// Allows the next portion to be read.
    pub fn begin_poll(&self) {
        self.read_left.store(READ_BYTES, Ordering::Relaxed);
    }

    pub fn has_preface(&self) -> bool {
        self.preface_bytes.load(Ordering::Relaxed) >= PREFACE_BYTES
    }

    /// The peer leaves written data unread.
    pub fn is_write_blocked(&self) -> bool {
        self.is_write_blocked.load(Ordering::Relaxed)
    }

    /// The protocol that the peer speaks instead of HTTP/2.
    pub fn other_protocol(&self) -> Option<&'static str> {
        match self.first_bytes.get()? {
            b"PRI" => None,
            // A record of a handshake (RFC 8446 section 5.1).
            [0x16, 0x03, _] => Some("TLS is spoken to a listener that has none"),
            _ => Some("something else than HTTP/2 is spoken"),
        }
    }

    /// The quota that was exceeded.
    pub fn excess(&self) -> Option<&'static str> {
        *self.excess.lock()
    }

    /// Resolves when a quota is exceeded.
    pub async fn exceeded(&self) {
        self.closing.notified().await;
    }

    fn close(&self, why: &'static str) {
        self.excess.lock().get_or_insert(why);
        self.closing.notify_one();
    }

    /// Counts an answer until its peer has taken it. A connection with too many of them is closed.
    pub fn answer(self: &Arc<Self>) -> UnreadAnswer {
        let own = self.unread_answers.fetch_add(1, Ordering::Relaxed);
        let all = self.quotas.unread_answers.fetch_add(1, Ordering::Relaxed);
        let most = self.quotas.max_unread_answers;
        if own >= (most / CONNECTION_PART).max(MIN_UNREAD_ANSWERS) || (all >= most && own >= MIN_UNREAD_ANSWERS / 4) {
            self.close("the peer leaves too many answers unread");
        }
        UnreadAnswer { state: Arc::clone(self) }
    }

    /// Sets the bytes of the header block that is not complete.
    fn set_header_block(&self, bytes: usize) {
        let before = self.header_block_bytes.swap(bytes, Ordering::Relaxed);
        self.quotas.header_block_bytes.fetch_sub(before, Ordering::Relaxed);
        let all = self.quotas.header_block_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if bytes > MIN_HEADER_BLOCK_BYTES && all > self.quotas.max_header_block_bytes {
            self.close("header blocks that are not complete take too much memory");
        }
    }
}

impl Drop for ConnectionState {
    fn drop(&mut self) {
        self.quotas.header_block_bytes.fetch_sub(*self.header_block_bytes.get_mut(), Ordering::Relaxed);
    }
}

/// An answer that its peer has not taken yet.
#[derive(Debug)]
pub struct UnreadAnswer {
    state: Arc<ConnectionState>,
}

impl Drop for UnreadAnswer {
    fn drop(&mut self) {
        self.state.unread_answers.fetch_sub(1, Ordering::Relaxed);
        self.state.quotas.unread_answers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads the headers of HTTP/2 frames as they pass, to know how long a header block has become (RFC 9113 sections 4.1 and 6.10).
#[derive(Debug, Default)]
struct FrameScanner {
    /// Bytes of the preface that have passed.
    preface: usize,
    header: Vec<u8>,
    /// Bytes of the payload that are still to come.
    payload_left: usize,
    /// The bytes of the incomplete header block.
    block_bytes: usize,
}

const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

impl FrameScanner {
    fn scan(&mut self, mut bytes: &[u8]) {
        if self.preface < PREFACE_BYTES {
            let skipped = bytes.len().min(PREFACE_BYTES.saturating_sub(self.preface));
            self.preface = self.preface.saturating_add(skipped);
            bytes = bytes.get(skipped..).unwrap_or_default();
        }
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skipped = bytes.len().min(self.payload_left);
                self.payload_left = self.payload_left.saturating_sub(skipped);
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            let missing = FRAME_HEADER_BYTES.saturating_sub(self.header.len()).min(bytes.len());
            let (head, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
            self.header.extend_from_slice(head);
            bytes = rest;
            if let [high, middle, low, kind, flags, ..] = *self.header.as_slice()
                && self.header.len() == FRAME_HEADER_BYTES
            {
                self.payload_left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                self.header.clear();
                if kind == HEADERS || kind == CONTINUATION {
                    let before = if kind == CONTINUATION { self.block_bytes } else { 0 };
                    let is_complete = flags & END_HEADERS != 0;
                    self.block_bytes = if is_complete { 0 } else { before.saturating_add(self.payload_left) };
                }
            }
        }
    }
}

/// A connection that is guarded.
pub struct GuardedConnection {
    inner: Connection,
    state: Arc<ConnectionState>,
    frames: FrameScanner,
}

impl GuardedConnection {
    pub fn new(inner: Connection, state: Arc<ConnectionState>) -> Self {
        Self { inner, state, frames: FrameScanner::default() }
    }

    fn look_at(&mut self, new: &[u8]) {
        let state = &self.state;
        if !state.has_preface()
            && let (0, Some(first)) = (state.preface_bytes.fetch_add(new.len(), Ordering::Relaxed), new.first_chunk())
        {
            state.first_bytes.get_or_init(|| *first);
        }
        let before = self.frames.block_bytes;
        self.frames.scan(new);
        if self.frames.block_bytes != before {
            state.set_header_block(self.frames.block_bytes);
        }
    }

    /// Writes pile up here while the peer reads nothing: reading stops until it does.
    fn wrote<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.state.is_write_blocked.store(result.is_pending(), Ordering::Relaxed);
        result
    }
}

impl AsyncRead for GuardedConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.state.excess().is_some() {
            return Poll::Ready(Ok(()));
        }
        if self.state.is_write_blocked() {
            // Woken by the socket once it can be written to: that is what the write waits for.
            return Poll::Pending;
        }
        let left = self.state.read_left.load(Ordering::Relaxed);
        if left == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let new = buf.filled().get(before..).unwrap_or_default();
        self.state.read_left.store(left.saturating_sub(new.len()), Ordering::Relaxed);
        self.look_at(new);
        read
    }
}

impl AsyncWrite for GuardedConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        if flushed.is_pending() { self.wrote(flushed) } else { flushed }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
        [&[high, middle, low, kind, flags, 0, 0, 0, 1][..], payload].concat()
    }

    #[test]
    fn header_blocks_are_measured_however_they_are_cut() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let bytes = [
            preface,
            frame(4, 0, b""),
            frame(HEADERS, 0, &[0; 100]),
            frame(CONTINUATION, 0, &[0; 1_000]),
            frame(CONTINUATION, 0, &[0; 10]),
        ]
        .concat();
        for portion in [1, 7, 64, bytes.len()] {
            let mut scanner = FrameScanner::default();
            bytes.chunks(portion).for_each(|chunk| scanner.scan(chunk));
            assert_eq!(scanner.block_bytes, 1_110, "{portion}");
            scanner.scan(&frame(CONTINUATION, END_HEADERS, b"x"));
            assert_eq!(scanner.block_bytes, 0);
            scanner.scan(&frame(HEADERS, END_HEADERS, &[0; 50]));
            assert_eq!(scanner.block_bytes, 0);
        }
    }

    #[test]
    fn unread_answers_and_header_blocks_are_bounded_for_each_connection_and_for_all() {
        let quotas = Arc::new(Quotas::new(128 * UNREAD_ANSWER_BYTES, 100 << 10));
        let one = ConnectionState::new(Arc::clone(&quotas));
        let mut held: Vec<_> = (0..MIN_UNREAD_ANSWERS).map(|_| one.answer()).collect();
        assert_eq!(one.excess(), None);
        held.push(one.answer());
        assert!(one.excess().is_some());
        let other = ConnectionState::new(Arc::clone(&quotas));
        held.push(other.answer());
        assert_eq!(other.excess(), None, "others go on");
        drop(held);
        assert_eq!(quotas.unread_answers.load(Ordering::Relaxed), 0);
        one.set_header_block(90 << 10);
        other.set_header_block(20 << 10);
        assert!(other.excess().is_some());
        drop((one, other));
        assert_eq!(quotas.header_block_bytes.load(Ordering::Relaxed), 0);
    }
}
