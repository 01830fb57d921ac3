//! The disks of the simulated world: fast, copied for backups, full, and cut short in a commit.
//!
//! Worlds live on a RAM disk where there is one: every commit is flushed, and a simulation commits
//! thousands of times in a second. [`save`] and [`restore`] copy a replica's files as they lie there at a
//! moment between two steps, [`kill`] leaves them as they lie there, [`cut`] takes away the end of what the last commit wrote, and [`limit`] makes
//! SQLite say that the disk is full, at the page where it would.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use rusqlite::{Connection, MAIN_DB, auto_extension, config::DbConfig, ffi};
use store::{Given, Store, StoreError};

/// Files that make up a replica, besides content, which is named by its digest and never changes.
const FILES: [&str; 3] = ["holdfast.db", "holdfast.db-wal", "incarnation"];

/// Where SQLite keeps what is derived from the others.
const SHARED_MEMORY: &str = "holdfast.db-shm";

/// A folder for a world, gone with it.
///
/// # Panics
/// When no folder can be made.
pub fn folder() -> tempfile::TempDir {
    let builder = || tempfile::Builder::new().prefix("holdfast-").to_owned();
    let fast = Path::new("/dev/shm");
    let made = if fast.is_dir() { builder().tempdir_in(fast) } else { builder().tempdir() };
    made.or_else(|_| builder().tempdir()).expect("a folder for the world")
}

/// Copies a replica's files from `folder` to `copy`, as they are.
///
/// # Errors
/// What the disk says.
pub fn save(folder: &Path, copy: &Path) -> io::Result<()> {
    fs::create_dir_all(copy)?;
    for name in FILES {
        remove(&copy.join(name))?;
        if folder.join(name).exists() {
            fs::copy(folder.join(name), copy.join(name))?;
        }
    }
    Ok(())
}

/// Puts a copy back in the place of what is there. The replica must not be running.
///
/// # Errors
/// What the disk says.
pub fn restore(copy: &Path, folder: &Path) -> io::Result<()> {
    remove(&folder.join(SHARED_MEMORY))?;
    save(copy, folder)
}

/// Puts the database of a copy back and leaves what lies beside it, as people do by hand. The replica must
/// not be running.
///
/// # Errors
/// What the disk says.
pub fn restore_database(copy: &Path, folder: &Path) -> io::Result<()> {
    remove(&folder.join(SHARED_MEMORY))?;
    for name in &FILES[..2] {
        remove(&folder.join(name))?;
        if copy.join(name).exists() {
            fs::copy(copy.join(name), folder.join(name))?;
        }
    }
    Ok(())
}

/// What lies on a disk before a commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    log: u64,
    database: Vec<u8>,
}

/// What lies on the disk of the replica in `folder` now.
pub fn before(folder: &Path) -> Before {
    Before { log: log_length(folder), database: database(folder) }
}

/// The bytes of the write-ahead log in `folder` that a loss of power in the middle of the last commit can leave
/// and take: up to where, and from where. Nothing if it can take none: the log began anew with that commit, or
/// the commit was on the disk already, because SQLite moved pages of it into the database.
pub fn torn(folder: &Path, before: &Before) -> Option<(u64, u64)> {
    let log = log_length(folder);
    (log > before.log && database(folder) == before.database).then_some((before.log, log))
}

fn log_length(folder: &Path) -> u64 {
    fs::metadata(folder.join("holdfast.db-wal")).map_or(0, |file| file.len())
}

fn database(folder: &Path) -> Vec<u8> {
    fs::read(folder.join("holdfast.db")).unwrap_or_default()
}

/// Cuts the write-ahead log in `folder` to `length` bytes, as a loss of power does in the middle of a
/// commit. The replica must not be running.
///
/// # Errors
/// What the disk says.
pub fn cut(folder: &Path, length: u64) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(folder.join("holdfast.db-wal"))?.set_len(length)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Leaves the database of `store` room for so many pages more than it has, or for as many as it likes.
///
/// # Errors
/// When the store cannot run a command.
///
/// # Panics
/// When the store was opened before [`watch_connections`] was called.
pub fn limit(store: &Store, given: Given, spare_pages: Option<u64>) -> Result<(), StoreError> {
    at_writer(store, given, move |connection| {
        let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        let most = match spare_pages {
            Some(spare) => pages + i64::try_from(spare).unwrap_or(i64::MAX),
            None => i64::from(u32::MAX) - 1,
        };
        connection.pragma_update(None, "max_page_count", most)
    })
}

/// Ends `store` and leaves its files as they lie there, as a program that is killed does. Closing a database
/// otherwise brings the write-ahead log into it.
///
/// # Errors
/// When the store cannot run a command, or what the disk says.
///
/// # Panics
/// When the store was opened before [`watch_connections`] was called.
pub fn kill(store: Store, given: Given) -> Result<(), StoreError> {
    let shared = store.database().with_file_name(SHARED_MEMORY);
    at_writer(&store, given, |connection| {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map(drop)
    })?;
    drop(store);
    remove(&shared).map_err(|source| StoreError::File {
        action: "remove",
        path: shared,
        source: std::sync::Arc::new(source),
    })
}

/// Does something with the writing connection of a store.
fn at_writer(
    store: &Store,
    given: Given,
    work: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static,
) -> Result<(), StoreError> {
    let path = fs::canonicalize(store.database()).expect("the database is there");
    let Writer(handle) = *writers().get(&path).expect("the store was opened after `watch_connections`");
    store.run(given, move |_| {
        // SAFETY: this runs on the one thread that uses the connection, between two statements of it, and
        // the store, which owns the connection, waits for us. What is made here does not own it.
        #[expect(unsafe_code, reason = "what is set is a property of the store's own connection")]
        let connection = unsafe { Connection::from_handle(handle as *mut ffi::sqlite3) }?;
        Ok(work(&connection)?)
    })
}

/// A store's writing connection, as an address: it is used on the thread that owns it and nowhere else.
#[derive(Clone, Copy)]
struct Writer(usize);

/// The writing connection of each database that this program has open, by its file.
fn writers() -> MutexGuard<'static, BTreeMap<PathBuf, Writer>> {
    static WRITERS: Mutex<BTreeMap<PathBuf, Writer>> = Mutex::new(BTreeMap::new());
    WRITERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes every writing connection that is opened from now on, so that [`limit`] finds it.
pub fn watch_connections() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the routine opens and closes no database and does not touch the list of routines.
        #[expect(unsafe_code, reason = "SQLite is told a C function")]
        let registered = unsafe { auto_extension::register_auto_extension(opened) };
        registered.expect("SQLite takes the routine");
    });
}

/// Forgets the writing connection of a database that was closed or is about to be opened.
pub fn forget(database: &Path) {
    if let Ok(path) = fs::canonicalize(database) {
        writers().remove(&path);
    }
}

#[expect(unsafe_code, reason = "SQLite calls it with a connection that it is about to hand out")]
unsafe extern "C" fn opened(
    database: *mut ffi::sqlite3,
    message: *mut *mut std::ffi::c_char,
    _: *const ffi::sqlite3_api_routines,
) -> std::ffi::c_int {
    // SAFETY: both come from SQLite and are passed on as they are.
    unsafe { auto_extension::init_auto_extension(database, message, note) }
}

#[expect(unsafe_code, reason = "only the address of the connection is taken")]
fn note(connection: Connection) -> rusqlite::Result<()> {
    if connection.is_readonly(MAIN_DB)? {
        return Ok(());
    }
    if let Some(path) = connection.path().and_then(|path| fs::canonicalize(path).ok()) {
        // SAFETY: nothing is done with the connection here.
        let handle = unsafe { connection.handle() };
        // Whoever else looks into the database while its store has it open is not its writer.
        writers().entry(path).or_insert(Writer(handle as usize));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sync::{id::Origin, time::Timestamp};

    use super::*;

    #[test]
    fn a_killed_store_leaves_its_files_as_they_were() {
        watch_connections();
        let folder = folder();
        let given = || Given { now: Timestamp(1_795_161_600_000), by: "ann".into(), entropy: [7; 32] };
        let place = folder.path().join("central");
        let store =
            Store::open(&store::Opening { folder: place.clone(), origin: Origin::Central, given: given() })
                .expect("it opens");
        let made = store.run(given(), |tx| store::command::site::create(tx, "lyon", "", "")).expect("a site");
        assert_eq!(store.read(|view| Ok(view.site(made)?.is_some())).ok(), Some(true));
        let before = FILES.map(|name| fs::read(place.join(name)).expect("a file"));
        assert!(!before[1].is_empty(), "what was written is in the write-ahead log");
        kill(store, given()).expect("it ends");
        assert_eq!(before, FILES.map(|name| fs::read(place.join(name)).expect("a file")));
        assert!(!place.join(SHARED_MEMORY).exists());
    }
}
