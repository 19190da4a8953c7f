//! Durable tables: in a file that one process has, or in a Redis or Valkey server that several processes share. A change is all or
//! nothing, and durable when it returns. Does not know what is stored in it.

mod file;
mod redis;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use self::file::FileTables;
use self::redis::RedisTables;
pub use self::redis::{Durability, RedisSettings};

/// A change of many rows needs at most about so much: what is written to learn whether the disk has room again.
const PROBE_BYTES: usize = 256 << 10;
const PROBE: Table = Table("probe");

/// A table: bytes by bytes, in the order of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table(pub &'static str);

/// A key with its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Where tables are.
#[derive(Clone, Debug)]
pub enum StateSettings {
    File(PathBuf),
    Redis(RedisSettings),
}

/// Why tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("`{}` is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("`{}` cannot be opened", .path.display())]
    Open { path: PathBuf, source: Box<::redb::Error> },
    #[error("the file of the tables could not be opened again after the disk had failed")]
    Closed,
    #[error("the file of the tables cannot be read or written")]
    Io(#[source] Box<::redb::Error>),
    #[error("no server of `urls` can be used: {0}")]
    NoServer(String),
    #[error("the Redis server failed")]
    Redis(#[source] Box<::redis::RedisError>),
    #[error("another process is changing the tables, and has not ended in time")]
    Locked,
    #[error("the change took too long, or the server lost its lock: nothing has changed")]
    LockLost,
    #[error("the change has {0} rows, more than a Redis server takes at once")]
    TooLarge(usize),
    #[error("the change is in the server's memory, and too few disks or replicas have confirmed it")]
    NotDurable,
    #[error("the tables are in a Redis server: back it up there")]
    NoCopy,
    #[error("the system has no randomness")]
    Random,
}

#[derive(Debug)]
enum Tables {
    File(FileTables),
    Redis(Box<RedisTables>),
}

/// Open tables.
#[derive(Debug)]
pub struct State {
    tables: Tables,
    /// A change has failed, and since then nothing of its size was written.
    may_lack_room: AtomicBool,
}

impl State {
    /// Opens tables. A file is made where there is none, for its owner alone.
    ///
    /// # Errors
    /// Another process has the file, or it is no such file; no server can be reached, or none is as it must be.
    pub fn open(settings: &StateSettings) -> Result<Self, StateError> {
        let tables = match settings {
            StateSettings::File(path) => Tables::File(FileTables::open(path)?),
            StateSettings::Redis(settings) => Tables::Redis(Box::new(RedisTables::open(settings.clone())?)),
        };
        Ok(Self { tables, may_lack_room: AtomicBool::new(false) })
    }

    /// Other processes may change the tables.
    pub fn is_shared(&self) -> bool {
        matches!(self.tables, Tables::Redis(_))
    }

    /// Identifies the memory of the server; another one may lack what was acknowledged. Empty for a file.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn generation(&self) -> Result<String, StateError> {
        match &self.tables {
            Tables::File(_) => Ok(String::new()),
            Tables::Redis(tables) => tables.generation(),
        }
    }

    /// Waits, for less than a second, until a process may have changed shared tables since the last call.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn wait_for_change(&self) -> Result<(), StateError> {
        match &self.tables {
            Tables::File(_) => Ok(()),
            Tables::Redis(tables) => tables.wait_for_change(),
        }
    }

    /// True for the one process that may do what `name` says until `ttl` is over. It asks again before that.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub fn lease(&self, name: &str, ttl: Duration) -> Result<bool, StateError> {
        match &self.tables {
            Tables::File(_) => Ok(true),
            Tables::Redis(tables) => tables.lease(name, ttl),
        }
    }

    /// Changes tables, all or nothing. It is durable when this returns. One change at a time; this waits for its turn and for the disk.
    ///
    /// # Errors
    /// That of `change`, or the tables cannot be written. Nothing has changed then, unless a server failed after it had the change: it
    /// may have made it.
    pub fn write<T, E: From<StateError>>(&self, change: impl FnOnce(&Writing<'_>) -> Result<T, E>) -> Result<T, E> {
        // Set before, and left by an error of the tables: those of `change` are known by the flag of the tables.
        let done = match &self.tables {
            Tables::File(tables) => tables.write(|writing| change(&Writing(Changes::File(writing)))),
            Tables::Redis(tables) => tables.write(|writing| change(&Writing(Changes::Redis(writing)))),
        };
        let has_failed = match &self.tables {
            Tables::File(tables) => tables.has_failed(),
            Tables::Redis(tables) => tables.has_failed(),
        };
        if has_failed {
            self.may_lack_room.store(true, Ordering::Release);
        }
        done
    }

    /// After a change has failed: writes and removes as much as a change may need. A full disk may have room for a few rows yet, and none
    /// for a change.
    ///
    /// # Errors
    /// The tables cannot be written.
    pub fn prove_room(&self) -> Result<(), StateError> {
        if self.may_lack_room.load(Ordering::Acquire) {
            self.write(|writing| writing.put(PROBE, b"", &vec![0; PROBE_BYTES]))?;
            self.write(|writing| writing.remove(PROBE, b""))?;
            self.may_lack_room.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Copies these tables, as they are at one moment, to a new file. Changes go on meanwhile.
    ///
    /// # Errors
    /// There is a file already, one of both cannot be read or written, or the tables are in a server.
    pub fn copy_to(&self, path: &Path, tables: &[Table]) -> Result<(), StateError> {
        match &self.tables {
            Tables::File(file) => file.copy_to(path, tables),
            Tables::Redis(_) => Err(StateError::NoCopy),
        }
    }

    /// Up to `limit` rows from the key `first` on. Of a file: as they were when this was called.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn rows(&self, table: Table, first: &[u8], limit: usize) -> Result<Vec<Row>, StateError> {
        match &self.tables {
            Tables::File(tables) => tables.rows(table, first, limit),
            Tables::Redis(tables) => tables.rows(table, first, limit),
        }
    }

    /// The rows whose keys begin with `prefix`, in their order, until `visit` says no. Of a file: as they were when this was called;
    /// of a server, changes that come meanwhile may show.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn scan(&self, table: Table, prefix: &[u8], visit: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), StateError> {
        match &self.tables {
            Tables::File(tables) => tables.scan(table, prefix, visit),
            Tables::Redis(tables) => tables.scan(table, prefix, visit),
        }
    }

    /// Up to `limit` rows whose keys begin with `prefix`.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn rows_of(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Row>, StateError> {
        let mut rows = Vec::new();
        if limit > 0 {
            self.scan(table, prefix, |key, value| collect(&mut rows, limit, key, value))?;
        }
        Ok(rows)
    }
}

/// Adds a row; false once there are `limit`.
fn collect(rows: &mut Vec<Row>, limit: usize, key: &[u8], value: &[u8]) -> bool {
    if rows.len() < limit {
        rows.push((key.to_vec(), value.to_vec()));
    }
    rows.len() < limit
}

enum Changes<'a> {
    File(&'a file::Writing),
    Redis(&'a redis::Writing),
}

/// A change that is being made.
pub struct Writing<'a>(Changes<'a>);

impl std::fmt::Debug for Writing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writing")
    }
}

impl Writing<'_> {
    /// The value of a row, after the changes so far.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self.0 {
            Changes::File(writing) => writing.get(table, key),
            Changes::Redis(writing) => writing.get(table, key),
        }
    }

    /// Up to `limit` rows whose keys begin with `prefix`, after the changes so far.
    pub fn rows_of(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Row>, StateError> {
        match self.0 {
            Changes::File(writing) => writing.rows_of(table, prefix, limit),
            Changes::Redis(writing) => writing.rows_of(table, prefix, limit),
        }
    }

    pub fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        match self.0 {
            Changes::File(writing) => writing.put(table, key, value),
            Changes::Redis(writing) => {
                writing.set(table, key, Some(value));
                Ok(())
            }
        }
    }

    pub fn remove(&self, table: Table, key: &[u8]) -> Result<(), StateError> {
        match self.0 {
            Changes::File(writing) => writing.remove(table, key),
            Changes::Redis(writing) => {
                writing.set(table, key, None);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
