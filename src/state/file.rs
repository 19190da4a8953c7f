//! Tables in one file. The only place that names the embedded database, redb: one process has the file, a commit is on disk when it
//! returns, and a process that is killed loses nothing that was committed.

use std::cell::Cell;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use redb::{Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};

use super::{Row, StateError, Table, collect};

/// The longest wait for readers before the file is opened again.
const REOPEN_WAIT: Duration = Duration::from_millis(500);

fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.0)
}

fn failed<E: Into<redb::Error>>(error: E) -> StateError {
    StateError::Io(Box::new(error.into()))
}

/// An open file.
#[derive(Debug)]
pub struct FileTables {
    path: PathBuf,
    /// None after a failure, when it could not be opened again.
    database: RwLock<Option<Database>>,
    /// The disk has failed: the database does nothing more before it is opened again.
    has_failed: AtomicBool,
}

impl FileTables {
    /// Opens the file, which is made where there is none, for its owner alone.
    ///
    /// # Errors
    /// Another process has it, or it is no such file.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let database = RwLock::new(Some(open_database(path)?));
        Ok(Self { path: path.to_owned(), database, has_failed: AtomicBool::new(false) })
    }

    /// The database, opened again after a failure of the disk. What was committed before is there.
    fn database(&self) -> Result<MappedRwLockReadGuard<'_, Database>, StateError> {
        if self.has_failed.load(Ordering::Acquire) {
            // A list that is being read holds it, and may be what asks here: it ends first, and a later call opens the file.
            let Some(mut database) = self.database.try_write_for(REOPEN_WAIT) else { return Err(StateError::Closed) };
            if self.has_failed.load(Ordering::Acquire) {
                // Closed first: one at a time has the file.
                *database = None;
                *database = Some(open_database(&self.path)?);
                self.has_failed.store(false, Ordering::Release);
            }
        }
        // One read may be within another, as in a list that looks things up.
        RwLockReadGuard::try_map(self.database.read_recursive(), Option::as_ref).map_err(|_| StateError::Closed)
    }

    /// Notes a failure of the disk.
    fn noted<T>(&self, outcome: Result<T, StateError>) -> Result<T, StateError> {
        if outcome.is_err() {
            self.set_failed();
        }
        outcome
    }

    fn set_failed(&self) {
        self.has_failed.store(true, Ordering::Release);
    }

    /// The disk has failed, and the file was not opened again yet.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// Changes tables, all or nothing. It is durable when this returns. One change at a time; this waits for its turn and for the disk.
    ///
    /// # Errors
    /// That of `change`, or the file cannot be written; nothing has changed then.
    pub fn write<T, E: From<StateError>>(&self, change: impl FnOnce(&Writing) -> Result<T, E>) -> Result<T, E> {
        let database = self.database()?;
        let transaction = self.noted(database.begin_write().map_err(failed))?;
        let writing = Writing { transaction, has_failed: Cell::new(false) };
        let outcome = change(&writing);
        if writing.has_failed.get() {
            self.set_failed();
        }
        // Dropped without a commit, it changes nothing.
        let outcome = outcome?;
        self.noted(writing.transaction.commit().map_err(failed))?;
        Ok(outcome)
    }

    /// Copies these tables, as they are at one moment, to a new file. Changes go on meanwhile.
    ///
    /// # Errors
    /// There is a file already, or one of both cannot be read or written.
    pub fn copy_to(&self, path: &Path, tables: &[Table]) -> Result<(), StateError> {
        let taken = |source: std::io::Error| StateError::Open {
            path: path.to_owned(),
            source: Box::new(redb::StorageError::Io(source).into()),
        };
        // Made here, so that a file that is there is not taken for the copy.
        std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(taken)?;
        let copied = self.copy_tables(path, tables);
        if copied.is_err() {
            // Half a copy is none, and would be in the way of the next one.
            let _ = std::fs::remove_file(path);
        }
        copied
    }

    fn copy_tables(&self, path: &Path, tables: &[Table]) -> Result<(), StateError> {
        let copy = Self::open(path)?;
        let database = self.database()?;
        let reading = self.noted(database.begin_read().map_err(failed))?;
        copy.write(|writing| {
            for &table in tables {
                let rows = match reading.open_table(definition(table)) {
                    Ok(rows) => rows,
                    Err(TableError::TableDoesNotExist(_)) => continue,
                    Err(error) => return Err(failed(error)),
                };
                let mut copied = writing.transaction.open_table(definition(table)).map_err(failed)?;
                for row in rows.range::<&[u8]>(..).map_err(failed)? {
                    let (key, value) = row.map_err(failed)?;
                    copied.insert(key.value(), value.value()).map_err(failed)?;
                }
            }
            Ok(())
        })
    }

    /// Up to `limit` rows from `first` on, as they were when this was called.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn rows(&self, table: Table, first: &[u8], limit: usize) -> Result<Vec<Row>, StateError> {
        let database = self.database()?;
        self.noted(read_rows(&database, table, first, limit))
    }

    /// The rows whose keys begin with `prefix`, as they were when this was called, in their order, until `visit` says no.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn scan(&self, table: Table, prefix: &[u8], visit: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), StateError> {
        let database = self.database()?;
        let read = || {
            let reading = database.begin_read().map_err(failed)?;
            match reading.open_table(definition(table)) {
                Ok(rows) => scan(&rows, prefix, visit),
                Err(TableError::TableDoesNotExist(_)) => Ok(()),
                Err(error) => Err(failed(error)),
            }
        };
        self.noted(read())
    }
}

fn scan(
    table: &impl redb::ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), StateError> {
    for row in table.range(prefix..).map_err(failed)? {
        let (key, value) = row.map_err(failed)?;
        if !key.value().starts_with(prefix) || !visit(key.value(), value.value()) {
            break;
        }
    }
    Ok(())
}

fn open_database(path: &Path) -> Result<Database, StateError> {
    let database = Database::create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StateError::InUse(path.to_owned()),
        error => StateError::Open { path: path.to_owned(), source: Box::new(error.into()) },
    })?;
    let owner = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, owner).map_err(failed)?;
    Ok(database)
}

fn read_rows(database: &Database, table: Table, first: &[u8], limit: usize) -> Result<Vec<Row>, StateError> {
    let reading = database.begin_read().map_err(failed)?;
    let table = match reading.open_table(definition(table)) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let rows = table.range(first..).map_err(failed)?.take(limit);
    rows.map(|row| row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).map_err(failed)).collect()
}

/// A change that is being made.
pub struct Writing {
    transaction: redb::WriteTransaction,
    has_failed: Cell<bool>,
}

impl std::fmt::Debug for Writing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writing")
    }
}

impl Writing {
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        self.noted(|transaction| {
            let table = transaction.open_table(definition(table)).map_err(failed)?;
            let found = table.get(key).map_err(failed)?;
            Ok(found.map(|value| value.value().to_vec()))
        })
    }

    /// Up to `limit` rows whose keys begin with `prefix`, after the changes so far.
    pub fn rows_of(&self, table: Table, prefix: &[u8], limit: usize) -> Result<Vec<Row>, StateError> {
        self.noted(|transaction| {
            let table = transaction.open_table(definition(table)).map_err(failed)?;
            let mut rows = Vec::new();
            scan(&table, prefix, |key, value| collect(&mut rows, limit, key, value))?;
            Ok(rows)
        })
    }

    pub fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.noted(|transaction| {
            let mut table = transaction.open_table(definition(table)).map_err(failed)?;
            table.insert(key, value).map(|_| ()).map_err(failed)
        })
    }

    pub fn remove(&self, table: Table, key: &[u8]) -> Result<(), StateError> {
        self.noted(|transaction| {
            let mut table = transaction.open_table(definition(table)).map_err(failed)?;
            table.remove(key).map(|_| ()).map_err(failed)
        })
    }

    /// Notes a failure of the disk.
    fn noted<T>(&self, work: impl FnOnce(&redb::WriteTransaction) -> Result<T, StateError>) -> Result<T, StateError> {
        let outcome = work(&self.transaction);
        if outcome.is_err() {
            self.has_failed.set(true);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: Table = Table("names");

    /// A list that looks things up holds the file while it asks for it again.
    #[test]
    fn a_failure_within_a_list_is_an_error_and_no_deadlock() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = FileTables::open(&folder.path().join("a.redb")).expect("it opens");
        state.write(|writing| writing.put(NAMES, b"a", b"1")).expect("it is written");
        let mut within = None;
        let visit = |_: &[u8], _: &[u8]| {
            state.has_failed.store(true, Ordering::Release);
            within = Some(state.rows(NAMES, b"", 1));
            true
        };
        state.scan(NAMES, b"", visit).expect("it was begun before");
        assert!(matches!(within, Some(Err(StateError::Closed))), "{within:?}");
        assert_eq!(state.rows(NAMES, b"", 1).expect("it is open again").len(), 1);
    }

    #[test]
    fn changes_are_all_or_nothing_and_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.redb");
        let state = FileTables::open(&path).expect("it opens");
        assert!(state.rows(NAMES, b"", 10).expect("it reads").is_empty());
        assert!(matches!(FileTables::open(&path), Err(StateError::InUse(_))), "one process has it");
        assert_eq!(std::fs::metadata(&path).expect("the file").permissions().mode() & 0o777, 0o600);
        let put = |writing: &Writing| {
            writing.put(NAMES, b"b", b"2")?;
            writing.put(NAMES, b"a", b"1")
        };
        state.write(put).expect("it is written");
        let refused: Result<(), StateError> = state.write(|writing| {
            writing.remove(NAMES, b"a")?;
            Err(StateError::InUse(path.clone()))
        });
        assert!(refused.is_err());
        drop(state);
        let state = FileTables::open(&path).expect("it opens again");
        let rows = |first: &[u8], limit| state.rows(NAMES, first, limit).expect("it reads");
        assert_eq!(rows(b"", 10), [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
        assert_eq!((rows(b"b", 10).len(), rows(b"", 1).len()), (1, 1));
        std::fs::write(folder.path().join("b"), "no database").expect("a file");
        assert!(matches!(FileTables::open(&folder.path().join("b")), Err(StateError::Open { .. })));
    }
}
