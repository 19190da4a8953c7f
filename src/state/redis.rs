//! Tables in a Redis or Valkey server, which several processes share. The only place that names the client.
//!
//! A table is a hash of its rows and a sorted set of its keys, all below one hash tag. A change takes a lock, reads what it needs, and
//! leaves in one script that looks for its lock first: all or nothing, in one order for all processes. Everything is read from the
//! server that has the lock.

mod server;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{ConnectionLike as _, ErrorKind, RedisError, Script, cmd};

pub use self::server::{Durability, RedisSettings};
use self::server::{Info, Link};

use super::{Row, StateError, Table, collect};

/// The longest wait for the changes of other processes.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// A process that dies within a change blocks others for so long. A change that takes longer fails: its caller waits no longer.
const LOCK_TTL: Duration = Duration::from_secs(4);
/// Between two attempts to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(2);
/// A replica has so long to confirm a change.
const CONFIRM_WAIT: Duration = Duration::from_millis(500);
/// The wait for changes of other processes.
const NEWS_WAIT: Duration = Duration::from_millis(900);
/// Rows that are read at a time: fewer than a Lua function takes.
const PAGE: usize = 1_000;
/// Rows of a change: three arguments each, and Redis takes about a million.
const MAX_ROWS: usize = 250_000;
/// Connections that are kept for the next request.
const MAX_IDLE: usize = 8;

/// Makes a change, if its lock is still there. `KEYS`: the lock, the news, then hash and set of each table. `ARGV`: the holder of the
/// lock, then for each row the place of its table in `KEYS`, its key, and its value after a `1`; nothing to remove it.
const COMMIT: &str = "
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 2, #ARGV, 3 do
  local at, key, value = tonumber(ARGV[i]), ARGV[i + 1], ARGV[i + 2]
  if value == '' then
    redis.call('HDEL', KEYS[at], key)
    redis.call('ZREM', KEYS[at + 1], key)
  else
    redis.call('HSET', KEYS[at], key, string.sub(value, 2))
    redis.call('ZADD', KEYS[at + 1], 0, key)
  end
end
redis.call('DEL', KEYS[1])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 64, '*', 'by', ARGV[1])
return 1";

/// Rows in the order of their keys. `KEYS`: hash and set of the table. `ARGV`: the first key, the last one, the number of rows.
const ROWS: &str = "
local keys = redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
if #keys == 0 then return {{}, {}} end
return {keys, redis.call('HMGET', KEYS[1], unpack(keys))}";

/// Removes a lock that is still the caller's.
const UNLOCK: &str = "
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1";

/// Takes a lease, or keeps it. `ARGV`: the holder, milliseconds.
const LEASE: &str = "
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1";

/// Tables in a server.
pub struct RedisTables {
    settings: RedisSettings,
    /// Names this process for locks and leases.
    holder: String,
    idle: Mutex<Vec<Link>>,
    /// The last of the news, and the connection that waits for them.
    news: Mutex<(String, Option<Link>)>,
    /// The last change has failed.
    has_failed: AtomicBool,
    scripts: Scripts,
}

struct Scripts {
    commit: Script,
    rows: Script,
    unlock: Script,
    lease: Script,
}

impl std::fmt::Debug for RedisTables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisTables").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn failed(error: RedisError) -> StateError {
    StateError::Redis(Box::new(error))
}

/// A connection after this error is of no use.
fn breaks(error: &StateError) -> bool {
    match error {
        StateError::Redis(error) => error.is_io_error() || error.is_unrecoverable_error() || is_of_a_replica(error),
        _ => false,
    }
}

/// The server is no primary any more.
fn is_of_a_replica(error: &RedisError) -> bool {
    matches!(error.code(), Some("READONLY" | "MOVED" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN"))
}

impl RedisTables {
    /// # Errors
    /// No server can be reached, or none is as it must be.
    pub fn open(settings: RedisSettings) -> Result<Self, StateError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| StateError::Random)?;
        let scripts = Scripts {
            commit: Script::new(COMMIT),
            rows: Script::new(ROWS),
            unlock: Script::new(UNLOCK),
            lease: Script::new(LEASE),
        };
        let tables = Self {
            settings,
            holder: hex::encode(bytes),
            idle: Mutex::default(),
            news: Mutex::new(("0-0".to_owned(), None)),
            has_failed: AtomicBool::new(false),
            scripts,
        };
        let link = tables.settings.connect()?;
        tables.idle.lock().push(link);
        if tables.settings.durability == Durability::External {
            tracing::warn!(
                "hub.redis.durability is `external`: nothing is known here of what a failure of the server loses"
            );
        }
        Ok(tables)
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    fn key(&self, name: &str) -> String {
        self.settings.key(name)
    }

    /// The hash of a table and the sorted set of its keys.
    fn keys_of(&self, table: Table) -> [String; 2] {
        [self.key(&format!("t:{}", table.0)), self.key(&format!("k:{}", table.0))]
    }

    /// Does `work` with a connection; again with a new one if one that was kept is broken.
    fn with_link<T>(&self, mut work: impl FnMut(&mut Link) -> Result<T, StateError>) -> Result<T, StateError> {
        let kept = self.idle.lock().pop();
        if let Some(mut link) = kept {
            match work(&mut link) {
                // All of them are as old.
                Err(error) if breaks(&error) => {
                    self.idle.lock().clear();
                    if matches!(&error, StateError::Redis(error) if error.is_timeout()) {
                        return Err(error);
                    }
                }
                done => {
                    self.keep(link);
                    return done;
                }
            }
        }
        let mut link = self.settings.connect()?;
        let done = work(&mut link);
        if !done.as_ref().is_err_and(breaks) {
            self.keep(link);
        }
        done
    }

    fn keep(&self, link: Link) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE && link.connection.is_open() {
            idle.push(link);
        }
    }

    /// The generation of the server that answers now.
    pub fn generation(&self) -> Result<String, StateError> {
        self.with_link(|link| {
            let info: String =
                cmd("INFO").arg(&["server", "replication"]).query(&mut link.connection).map_err(failed)?;
            let info = Info(&info);
            if info.get("role") != "master" {
                return Err(failed((ErrorKind::Io, "the server has become a replica").into()));
            }
            link.generation = info.generation();
            Ok(link.generation.clone())
        })
    }

    pub fn wait_for_change(&self) -> Result<(), StateError> {
        let mut news = self.news.lock();
        let mut link = match news.1.take() {
            Some(link) => link,
            None => self.settings.connect()?,
        };
        type Item = (String, Vec<(String, Vec<String>)>);
        let found: Option<Vec<Item>> = cmd("XREAD")
            .arg("BLOCK")
            .arg(u64::try_from(NEWS_WAIT.as_millis()).unwrap_or(u64::MAX))
            .arg("STREAMS")
            .arg(self.key("news"))
            .arg(&news.0)
            .query(&mut link.connection)
            .map_err(failed)?;
        if let Some((id, _)) = found.iter().flatten().flat_map(|(_, items)| items.last()).next_back() {
            news.0.clone_from(id);
        }
        news.1 = Some(link);
        Ok(())
    }

    pub fn lease(&self, name: &str, ttl: Duration) -> Result<bool, StateError> {
        let milliseconds = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.with_link(|link| {
            let mut call = self.scripts.lease.prepare_invoke();
            call.key(self.key(&format!("lease:{name}"))).arg(&self.holder).arg(milliseconds);
            call.invoke::<bool>(&mut link.connection).map_err(failed)
        })
    }

    /// Takes the lock, on a connection that the whole change uses.
    fn lock(&self, token: &str) -> Result<Link, StateError> {
        let end = Instant::now().checked_add(LOCK_WAIT);
        let mut kept = self.idle.lock().pop();
        loop {
            let is_kept = kept.is_some();
            let mut link = match kept.take() {
                Some(link) => link,
                None => self.settings.connect()?,
            };
            let taken: Result<Option<String>, _> = cmd("SET")
                .arg(self.key("lock"))
                .arg(token)
                .arg("NX")
                .arg("PX")
                .arg(u64::try_from(LOCK_TTL.as_millis()).unwrap_or(u64::MAX))
                .query(&mut link.connection);
            match taken {
                Ok(Some(_)) => return Ok(link),
                Ok(None) if end.is_some_and(|end| Instant::now() >= end) => {
                    self.keep(link);
                    return Err(StateError::Locked);
                }
                Ok(None) => {
                    kept = Some(link);
                    std::thread::sleep(LOCK_PAUSE);
                }
                // One that was kept may be broken. One that does not answer in time is no reason to wait again.
                Err(error) if is_kept && !error.is_timeout() && breaks(&failed(error.clone())) => {
                    self.idle.lock().clear()
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    pub fn write<T, E: From<StateError>>(&self, change: impl FnOnce(&Writing) -> Result<T, E>) -> Result<T, E> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| StateError::Random)?;
        let token = hex::encode(bytes);
        let link = self.lock(&token).inspect_err(|_| self.has_failed.store(true, Ordering::Release))?;
        let writing = Writing {
            link: RefCell::new(link),
            rows: self.scripts.rows.clone(),
            keys: RefCell::default(),
            prefix: self.key(""),
            changes: RefCell::default(),
            has_failed: Cell::new(false),
        };
        let outcome = change(&writing);
        let Writing { link, changes, has_failed, .. } = writing;
        let (mut link, changes) = (link.into_inner(), changes.into_inner());
        if has_failed.get() {
            // The lock ends by itself.
            self.has_failed.store(true, Ordering::Release);
            return outcome;
        }
        let done = match &outcome {
            Ok(_) if !changes.is_empty() => self.commit(&mut link, &token, &changes),
            _ => {
                let mut call = self.scripts.unlock.prepare_invoke();
                call.key(self.key("lock")).arg(&token);
                call.invoke::<()>(&mut link.connection).map_err(failed)
            }
        };
        if !done.as_ref().is_err_and(breaks) {
            self.keep(link);
        }
        self.has_failed.store(done.is_err(), Ordering::Release);
        let value = outcome?;
        done?;
        Ok(value)
    }

    fn commit(&self, link: &mut Link, token: &str, changes: &Overlay) -> Result<(), StateError> {
        if changes.len() > MAX_ROWS {
            return Err(StateError::TooLarge(changes.len()));
        }
        let mut call = self.scripts.commit.prepare_invoke();
        call.key(self.key("lock")).key(self.key("news")).arg(token);
        let mut places = BTreeMap::new();
        for ((table, key), value) in changes {
            // Lua counts from 1, and two keys come before those of tables.
            let next = places.len().saturating_mul(2).saturating_add(3);
            let at = *places.entry(*table).or_insert_with(|| {
                let [hash, set] = self.keys_of(*table);
                call.key(hash).key(set);
                next
            });
            let value = value.as_ref().map(|value| [b"1", value.as_slice()].concat()).unwrap_or_default();
            call.arg(at).arg(key).arg(value);
        }
        if !call.invoke::<bool>(&mut link.connection).map_err(failed)? {
            return Err(StateError::LockLost);
        }
        let wait = u64::try_from(CONFIRM_WAIT.as_millis()).unwrap_or(u64::MAX);
        // On the connection of the change: the server counts from its last command.
        let confirmed: u64 = match self.settings.durability {
            Durability::AofAlways | Durability::External => return Ok(()),
            Durability::Replica => cmd("WAIT").arg(1).arg(wait).query(&mut link.connection).map_err(failed)?,
            Durability::WaitAof => {
                let counts: (u64, u64) =
                    cmd("WAITAOF").arg(1).arg(0).arg(wait).query(&mut link.connection).map_err(failed)?;
                counts.0
            }
        };
        if confirmed == 0 { Err(StateError::NotDurable) } else { Ok(()) }
    }

    pub fn rows(&self, table: Table, first: &[u8], limit: usize) -> Result<Vec<Row>, StateError> {
        let mut rows = Vec::new();
        if limit > 0 {
            self.walk(table, [b"[", first].concat(), b"+", &mut |key, value| collect(&mut rows, limit, key, value))?;
        }
        Ok(rows)
    }

    pub fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        self.walk(table, [b"[", prefix].concat(), &end_of(prefix), &mut visit)
    }

    fn walk(
        &self,
        table: Table,
        mut first: Vec<u8>,
        last: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StateError> {
        let keys = self.keys_of(table);
        loop {
            let page = self.with_link(|link| page(link, &self.scripts.rows, &keys, &first, last))?;
            let is_last = page.len() < PAGE;
            for (key, value) in &page {
                // A row that went meanwhile has no value.
                if value.as_ref().is_some_and(|value| !visit(key, value)) {
                    return Ok(());
                }
            }
            match page.into_iter().next_back() {
                Some((key, _)) if !is_last => first = [b"(", key.as_slice()].concat(),
                _ => return Ok(()),
            }
        }
    }
}

/// The end of the keys with this prefix, as `ZRANGEBYLEX` takes it.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX);
    match kept.and_then(|at| prefix.split_at_checked(at)) {
        Some((before, rest)) => {
            let next = rest.first().copied().unwrap_or_default().saturating_add(1);
            [b"(", before, &[next]].concat()
        }
        None => b"+".to_vec(),
    }
}

type Page = Vec<(Vec<u8>, Option<Vec<u8>>)>;

fn page(link: &mut Link, script: &Script, keys: &[String; 2], first: &[u8], last: &[u8]) -> Result<Page, StateError> {
    let mut call = script.prepare_invoke();
    call.key(keys.as_slice()).arg(first).arg(last).arg(PAGE);
    let (keys, values): (Vec<Vec<u8>>, Vec<Option<Vec<u8>>>) = call.invoke(&mut link.connection).map_err(failed)?;
    Ok(keys.into_iter().zip(values).collect())
}

/// Rows that a change has set; none: it removes the row.
type Overlay = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// A change that is being made: what it sets is kept here, and leaves with the commit.
pub struct Writing {
    link: RefCell<Link>,
    rows: Script,
    keys: RefCell<BTreeMap<Table, [String; 2]>>,
    prefix: String,
    changes: RefCell<Overlay>,
    has_failed: Cell<bool>,
}

impl Writing {
    fn keys_of(&self, table: Table) -> [String; 2] {
        let made = || [format!("{}t:{}", self.prefix, table.0), format!("{}k:{}", self.prefix, table.0)];
        self.keys.borrow_mut().entry(table).or_insert_with(made).clone()
    }

    fn noted<T>(&self, outcome: Result<T, StateError>) -> Result<T, StateError> {
        if outcome.is_err() {
            self.has_failed.set(true);
        }
        outcome
    }

    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        if let Some(set) = self.changes.borrow().get(&(table, key.to_vec())) {
            return Ok(set.clone());
        }
        let [hash, _] = self.keys_of(table);
        let link = &mut self.link.borrow_mut().connection;
        self.noted(cmd("HGET").arg(hash).arg(key).query(link).map_err(failed))
    }

    pub fn set(&self, table: Table, key: &[u8], value: Option<&[u8]>) {
        self.changes.borrow_mut().insert((table, key.to_vec()), value.map(<[u8]>::to_vec));
    }

    pub fn rows_of(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Row>, StateError> {
        let changes = self.changes.borrow();
        let own = changes.range((table, prefix.to_vec())..);
        let mut own = own.take_while(|((of, key), _)| *of == table && key.starts_with(prefix)).peekable();
        let (keys, last) = (self.keys_of(table), end_of(prefix));
        let mut first = [b"[", prefix].concat();
        let mut rows = Vec::new();
        while rows.len() < limit {
            let page = self.noted(page(&mut self.link.borrow_mut(), &self.rows, &keys, &first, &last))?;
            let is_last = page.len() < PAGE;
            for (key, value) in page {
                // Rows of this change that come before it.
                while let Some(((_, new), set)) = own.next_if(|((_, own), _)| *own < key) {
                    rows.extend(set.clone().map(|value| (new.clone(), value)));
                }
                let value = match own.next_if(|((_, own), _)| *own == key) {
                    Some((_, set)) => set.clone(),
                    None => value,
                };
                first = [b"(", key.as_slice()].concat();
                rows.extend(value.map(|value| (key, value)));
            }
            if is_last {
                rows.extend(own.by_ref().filter_map(|((_, key), set)| Some((key.clone(), set.clone()?))));
                break;
            }
        }
        rows.truncate(limit);
        Ok(rows)
    }
}
