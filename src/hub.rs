//! The hub: it keeps what is revoked, durably, and publishes changes to every sidecar within a second.
//!
//! One hub has one file. A change is answered after it is on disk, and then goes to the readers of the feed in the order of the
//! ledger. Knows no listener and no policy; names of users end here: the ledger and the feed have hashes.

mod command;
mod credentials;
mod explain;
mod forget;
mod ledger;
mod logout;
mod metrics;
mod rate;
mod readers;
mod scim;
mod ssf;
mod unmatched;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

pub use self::command::{Action, Command, CommandError, RevocationRequest};
pub use self::credentials::Credentials;
pub use self::explain::Explanation;
use self::ledger::{Batch, Ledger, News};
pub use self::ledger::{LedgerError, LedgerStore};
use self::logout::Logout;
pub use self::logout::{LogoutError, LogoutSettings};
pub use self::metrics::HubMetrics;
use self::readers::Published;
pub use self::readers::Reader;
pub use self::scim::{Link, MAX_ATTRIBUTES, MAX_LINKS, Provider, ScimAnswer, ScimRequest, ScimSettings};
pub use self::ssf::{
    Dialect, EventOutcome, PollSettings, SessionRevoked, SetError, Stream, StreamSettings, VerifySettings,
};
use self::unmatched::UnmatchedEvents;
use crate::clock::Clock;
use crate::lifecycle::Lifecycle;
use crate::revocation::{Header, IssuerJoins, Line, NO_HEADER, encode_header, write_block, write_events};
use crate::state::StateError;
use crate::telemetry::chain;
use crate::token::Issuer;

/// Lines that a slow reader may be behind before it has to take the snapshot: 256 KiB of them.
const MAX_BUFFERED_LINES: usize = 2_048;
/// The feed confirms itself so often.
const BEAT: Duration = Duration::from_secs(1);
/// The longest wait of a change for those before it: less than that of a request.
const TURN_WAIT: Duration = Duration::from_secs(4);
/// A snapshot is shared by all readers for so long.
const SNAPSHOT_AGE: Duration = Duration::from_secs(10);
/// One of several hubs works for a stream so long, and goes on with every beat.
const LEASE: Duration = Duration::from_secs(10);
/// Bytes of an entry in a snapshot, and a little for what is beside them.
const SNAPSHOT_ENTRY_BYTES: usize = 36;
/// Entries that the search for those that are over looks at with every beat.
const SWEPT_ENTRIES: usize = 1_000;

/// A hub, as configured. Times are in seconds.
#[derive(Clone, Debug)]
pub struct HubSettings {
    pub store: LedgerStore,
    /// The longest life of any accepted token.
    pub retain: u32,
    /// The longest life of a session.
    pub session_retain: u32,
    /// Added to the time of a change that has none of its own: clocks of issuers may be ahead by that.
    pub skew: u32,
    pub max_entries: usize,
    /// Readers of the feed at the same time.
    pub max_readers: usize,
    /// Those of readers of the feed; without any, every reader that can connect is admitted.
    pub credentials: Credentials,
    /// By `iss`.
    pub issuers: BTreeMap<String, IssuerJoins>,
    /// Deleted users are remembered for so long.
    pub deleted_retention: u32,
    /// The address under which providers know the hub.
    pub public_url: String,
    pub scim: Vec<ScimSettings>,
    pub logouts: Vec<LogoutSettings>,
}

/// The hub.
pub struct Hub {
    settings: HubSettings,
    ledger: Ledger,
    clock: Clock,
    metrics: Arc<HubMetrics>,
    lines: broadcast::Sender<Published>,
    /// One change at a time: lines leave in the order of the ledger.
    turn: Mutex<()>,
    /// When the ledger was last known to be good.
    as_of: AtomicI64,
    readers: AtomicUsize,
    snapshot: Mutex<Option<(Instant, Bytes)>>,
    providers: Vec<Arc<Provider>>,
    logouts: Vec<Logout>,
    /// Issuers with their keys.
    issuers: Vec<Arc<Issuer>>,
    streams: Vec<Arc<Stream>>,
    unmatched: UnmatchedEvents,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Hub {
    /// Opens the ledger.
    ///
    /// # Errors
    /// Its file is in use or cannot be opened.
    pub fn open(settings: HubSettings, clock: Clock, metrics: Arc<HubMetrics>) -> Result<Self, LedgerError> {
        let ledger = Ledger::open(&settings.store, settings.max_entries)?;
        metrics.entries.set(i64::try_from(ledger.len()).unwrap_or(i64::MAX));
        metrics.store_up.set(1);
        let as_of = AtomicI64::new(clock.now());
        let provider = |scim: &ScimSettings| {
            let source = ledger.source(&format!("scim/{}", scim.name))?;
            Ok(Arc::new(Provider::new(scim, source, &settings.public_url)))
        };
        let providers = settings.scim.iter().map(provider).collect::<Result<_, LedgerError>>()?;
        let hub = Self {
            providers,
            logouts: settings.logouts.iter().map(Logout::new).collect(),
            issuers: Vec::new(),
            streams: Vec::new(),
            unmatched: UnmatchedEvents::default(),
            settings,
            ledger,
            clock,
            metrics,
            lines: broadcast::channel(MAX_BUFFERED_LINES).0,
            turn: Mutex::default(),
            as_of,
            readers: AtomicUsize::new(0),
            snapshot: Mutex::default(),
        };
        hub.link_all_again()?;
        Ok(hub)
    }

    /// The same, with issuers whose signatures it verifies.
    pub fn with_issuers(self, issuers: Vec<Arc<Issuer>>) -> Self {
        Self { issuers, ..self }
    }

    pub fn issuers(&self) -> &[Arc<Issuer>] {
        &self.issuers
    }

    /// The same, with streams of events, each with its transmitter.
    ///
    /// # Errors
    /// The ledger cannot be written, or knows too many sources.
    pub fn with_streams(mut self, streams: Vec<(StreamSettings, Arc<Issuer>)>) -> Result<Self, LedgerError> {
        let now = self.clock.now();
        for (settings, transmitter) in streams {
            let source = self.ledger.source(&format!("ssf/{}", settings.name))?;
            self.streams.push(Arc::new(Stream::new(&settings, source, transmitter, now, !self.ledger.is_shared())));
        }
        Ok(self)
    }

    /// Events that named no one here, oldest first.
    pub fn unmatched(&self) -> Value {
        self.unmatched.list()
    }

    /// Makes a change of the ledger, and publishes what it merged. It is durable when this returns. Waits for earlier changes and for the disk.
    ///
    /// # Errors
    /// That of `work`, or the disk fails; nothing has changed then.
    fn change<T, E: From<LedgerError>>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        // Its caller waits no longer either: what was given up is not carried out after something newer.
        let Some(_turn) = self.turn.try_lock_for(TURN_WAIT) else { return Err(LedgerError::Busy.into()) };
        self.change_locked(action, work)
    }

    /// As `change`, with the lock already held.
    fn change_locked<T, E: From<LedgerError>>(
        &self,
        action: &'static str,
        work: impl FnOnce(&mut Batch<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let began = Instant::now();
        self.publish_news(self.ledger.catch_up()?);
        let done = self.ledger.transact(work);
        self.metrics.committed(began.elapsed());
        let (done, merged) = match done {
            Ok((outcome, merged)) => (Ok(outcome), merged),
            Err(error) => (Err(error), Vec::new()),
        };
        merged.iter().for_each(|_| self.metrics.changed(action, self.ledger.len()));
        self.publish(merged);
        done
    }

    fn publish(&self, changes: Vec<Line>) {
        for line in changes {
            // An error means that there are no readers.
            let _ = self.lines.send(Published { seq: line.seq(), is_last: false, line: line.text().into() });
        }
    }

    /// Publishes what this hub did not change itself.
    fn publish_news(&self, news: News) {
        if let News::Changes(changes) = news {
            return self.publish(changes);
        }
        if news == News::Healed {
            self.metrics.heals.inc();
        }
        *self.snapshot.lock() = None;
        let line = Line::Reset.text().into();
        let _ = self.lines.send(Published { seq: None, is_last: true, line });
    }

    /// Carries out a request of an administrator, named `actor`. The change is durable when this returns its number. Waits for the disk.
    ///
    /// # Errors
    /// The request names nothing that is known, there is no room, or the disk fails; nothing has changed then.
    pub fn execute(&self, request: &RevocationRequest, actor: &str) -> Result<u64, CommandError> {
        let command = Command::new(request, &self.settings, self.now())?;
        let (kind, change) = (command.kind, command.change);
        let key = self.ledger.hub_key().key(kind, &command.issuer, &command.name, &command.value);
        let done = self.change(request.action.name(), |batch| batch.apply(kind, key, &change));
        let seq = done.inspect_err(|error| self.metrics.failed(error))?;
        let (kind, action, key) = (kind.name(), request.action.name(), hex::encode(key));
        tracing::info!(kind, action, key, seq, actor, reason = request.reason, "revocation");
        Ok(seq)
    }

    fn now(&self) -> u32 {
        u32::try_from(self.clock.now()).unwrap_or_default()
    }

    /// The snapshot, not older than ten seconds. Waits for the disk.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn snapshot(&self) -> Result<Bytes, LedgerError> {
        let mut known = self.snapshot.lock();
        if let Some((at, bytes)) = &*known
            && at.elapsed() < SNAPSHOT_AGE
        {
            return Ok(bytes.clone());
        }
        let as_of = self.as_of.load(Ordering::Acquire);
        let room = self.ledger.len().saturating_mul(SNAPSHOT_ENTRY_BYTES);
        let (mut bytes, mut count) = (Vec::with_capacity(room.saturating_add(NO_HEADER.len())), 0usize);
        bytes.extend_from_slice(&NO_HEADER);
        let mut unread = None;
        let seq = self.ledger.each_block(|number, records| {
            count = count.saturating_add(records.len());
            // A Vec takes everything.
            let _ = write_block(&mut bytes, number, records);
            match self.ledger.events_of(number) {
                Ok(events) => write_events(&mut bytes, number, &events).unwrap_or_default(),
                Err(error) => unread = Some(error),
            }
        })?;
        if let Some(error) = unread {
            return Err(error);
        }
        let header = Header {
            epoch: self.ledger.epoch(),
            seq,
            as_of,
            retain: self.settings.retain.into(),
            hub_key: self.ledger.hub_key_hex().to_owned(),
        };
        let header = encode_header(&header, count);
        bytes.iter_mut().zip(header).for_each(|(byte, own)| *byte = own);
        let bytes = Bytes::from(bytes);
        *known = Some((Instant::now(), bytes.clone()));
        Ok(bytes)
    }

    /// Copies the ledger, as it is at one moment, to a new file. Waits for the disk.
    ///
    /// # Errors
    /// There is a file already, or the disk fails.
    pub fn back_up(&self, path: &Path) -> Result<(), LedgerError> {
        self.ledger.copy_to(path)?;
        tracing::info!(path = %path.display(), "the ledger was copied");
        Ok(())
    }

    /// Reads a whole ledger that no hub has open, and gives its epoch, last change and number of entries.
    ///
    /// # Errors
    /// It is in use, absent, damaged or of another version.
    pub fn check(path: &Path) -> Result<Value, LedgerError> {
        if !path.is_file() {
            return Err(LedgerError::Absent(path.to_owned()));
        }
        let ledger = Ledger::open_file(path, usize::MAX)?;
        let (seq, records) = ledger.records()?;
        Ok(json!({"epoch": ledger.epoch(), "seq": seq, "entries": records.len()}))
    }

    /// The state of the hub, for `stepgate hub status`.
    pub fn status(&self) -> Value {
        json!({
            "epoch": self.ledger.epoch(),
            "seq": self.ledger.seq(),
            "entries": self.ledger.len(),
            "max_entries": self.settings.max_entries,
            "readers": self.readers.load(Ordering::Relaxed),
            "retain_seconds": self.settings.retain,
            "age_seconds": self.clock.now().saturating_sub(self.as_of.load(Ordering::Acquire)).max(0),
            "sources": self.sources(),
        })
    }

    /// Every source but administrators: its kind, and how long ago it was last heard of.
    fn sources(&self) -> Value {
        let scim = self.providers.iter().map(|provider| ("scim", provider.heard()));
        let streams = self.streams.iter().map(|stream| ("ssf", stream.heard()));
        let now = self.clock.now();
        let shown = |(kind, (name, heard)): (&str, (&str, i64))| {
            let age = (heard > 0).then(|| now.saturating_sub(heard));
            json!({"name": name, "kind": kind, "age_seconds": age})
        };
        scim.chain(streams).map(shown).collect()
    }

    /// True for a reader that may have the feed with this credential. Waits for the disk.
    pub fn admits(&self, bearer: Option<&str>) -> bool {
        self.settings.credentials.is_empty() || self.settings.credentials.admit(bearer)
    }

    /// Confirms the feed every second, and removes entries that are over, until everything stops.
    pub async fn run(self: Arc<Self>) {
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut place = Vec::new();
        loop {
            beats.tick().await;
            let hub = Arc::clone(&self);
            let from = std::mem::take(&mut place);
            // It waits for the disk.
            place = tokio::task::spawn_blocking(move || hub.beat(&from)).await.unwrap_or_default();
        }
    }

    /// One beat. While the ledger cannot be written, `as_of` stands still, so that sidecars grow stale.
    fn beat(&self, from: &[u8]) -> Vec<u8> {
        let _turn = self.turn.lock();
        // Before other hubs are asked: what they acknowledge meanwhile is not confirmed by it.
        let now = self.clock.now();
        let swept = self.follow_locked().and_then(|()| self.ledger.sweep(from, SWEPT_ENTRIES, self.now()));
        // With the end of a walk through the ledger: seldom is enough.
        let is_at_end = matches!(&swept, Ok(next) if next.is_empty());
        let forget = || self.ledger.forget_events(self.now());
        if is_at_end
            && let Err(error) = self.forget_deleted().and_then(|()| self.count_unmapped()).and_then(|()| forget())
        {
            tracing::error!(error = chain(&error), "deleted users and events whose time is over were not forgotten");
        }
        let was_up = self.metrics.store_up.get() == 1;
        self.metrics.store_up.set(i64::from(swept.is_ok()));
        match &swept {
            Ok(_) => self.as_of.store(now, Ordering::Release),
            Err(error) if was_up => {
                tracing::error!(error = chain(error), "the ledger cannot be written: nothing is accepted")
            }
            Err(_) => {}
        }
        self.metrics.entries.set(i64::try_from(self.ledger.len()).unwrap_or(i64::MAX));
        if self.ledger.is_shared() {
            self.streams.iter().for_each(|stream| stream.share(&self.ledger, LEASE));
        }
        self.publish_ages();
        let line = Line::Confirmed { as_of: self.as_of.load(Ordering::Acquire) }.text().into();
        let _ = self.lines.send(Published { seq: None, is_last: false, line });
        swept.unwrap_or_default()
    }

    /// Publishes what other hubs have changed.
    fn follow_locked(&self) -> Result<(), LedgerError> {
        let news = self.ledger.follow(self.now())?;
        self.publish_news(news);
        Ok(())
    }

    /// Publishes changes of other hubs as they come, until everything stops.
    async fn follow(self: Arc<Self>) {
        loop {
            let hub = Arc::clone(&self);
            let followed = tokio::task::spawn_blocking(move || {
                hub.ledger.wait_for_news()?;
                let _turn = hub.turn.lock();
                hub.follow_locked()
            });
            // A failure is logged with the beat.
            if !matches!(followed.await, Ok(Ok(()))) {
                tokio::time::sleep(BEAT).await;
            }
        }
    }

    /// Starts its own tasks.
    pub fn start(self: &Arc<Self>, lifecycle: &Lifecycle) {
        lifecycle.spawn_until_stop(Arc::clone(self).run());
        if self.ledger.is_shared() {
            lifecycle.spawn_until_stop(Arc::clone(self).follow());
        }
        ssf::start(self, lifecycle);
    }

    pub fn max_readers(&self) -> usize {
        self.settings.max_readers
    }
}

impl From<StateError> for CommandError {
    fn from(error: StateError) -> Self {
        Self::Ledger(LedgerError::State(error))
    }
}

#[cfg(test)]
mod tests;
