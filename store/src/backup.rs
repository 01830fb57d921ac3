//! Backups: the database and the small files without which nobody can use it, in one folder; and the way back.
//!
//! ```text
//! <backup>/holdfast.db    the database, one file without a write-ahead log, checked when it was made
//! <backup>/backup.json    what it is: whose, when, and which content it names
//! <backup>/…              copies of the small files: keys, certificates, tokens
//! ```
//! [`backup`] works beside the running program. [`restore`] needs the replica for itself: whoever calls it
//! holds the lock that the program would hold. The database that is there is put aside under another name
//! and never deleted; the new one takes its place in one step, marked, so that the next start begins another
//! life of it (see `life`) whatever lies beside it. Every step before that one leaves the old database in use.
//!
//! Small files are only put where none is: a key or certificate that is there may be newer than its copy.
//!
//! Deliberately absent: content. Its names are in the database and in `backup.json`; it never changes, so
//! the folder `blobs` can be copied at any time by any means.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a backup is files; beside the writer and `blobs` this module is the only one that touches a disk"
)]

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::Serialize;
use sync::{
    blob::Digest,
    id::{Incarnation, Origin},
    time::Timestamp,
};

use crate::{
    StoreError, View,
    blobs::{BlobError, Blobs},
    schema,
    writer::{self, meta, set_meta},
};

/// Name of the database in a backup, as in a replica.
const DATABASE: &str = "holdfast.db";

/// Name of the file that says what a backup is.
const MANIFEST: &str = "backup.json";

/// Where a program keeps what a backup holds.
#[derive(Clone, Copy, Debug)]
pub struct Place<'p> {
    /// Folder of the replica.
    pub replica: &'p Path,
    /// Folder of the small files.
    pub home: &'p Path,
    /// Names of the small files: keys, certificates, tokens.
    pub keys: &'p [&'p str],
}

/// What a backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// When it was made.
    pub made_at: Timestamp,
    /// Version of the program that made it.
    pub program: String,
    /// Version of the database.
    pub database_version: i64,
    /// Whose replica it is.
    pub origin: Origin,
    /// Life of the database when it was made.
    pub incarnation: Option<Incarnation>,
    /// Number of documents.
    pub documents: u64,
    /// Size of the database in bytes.
    pub bytes: u64,
    /// The small files that are in it.
    pub keys: Vec<String>,
    /// The small files that were not there to be copied.
    pub absent: Vec<String>,
    /// Content that its workflows name, with sizes. It is not in the backup.
    pub blobs: Vec<NamedBlob>,
}

/// Content that a replica names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NamedBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes; 0 if nobody said.
    pub size: u64,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was made, if it says so.
    pub made_at: Option<String>,
    /// Number of documents in it.
    pub documents: u64,
    /// Where the database is that was there before.
    pub aside: Option<PathBuf>,
    /// Small files that came from the backup.
    pub placed: Vec<String>,
    /// Small files that were there already, differ from those of the backup, and stayed as they are.
    pub kept: Vec<String>,
    /// Content that the restored workflows name and that is not in the folder of blobs.
    pub missing: Vec<NamedBlob>,
}

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something is where the backup should go.
    #[error("{path} is there already and is not empty")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// There is no database to back up.
    #[error("there is no database at {path}")]
    NoDatabase {
        /// Where it would be.
        path: PathBuf,
    },
    /// What should be restored is not a backup.
    #[error("{path} is no backup of Holdfast: {why}")]
    NoBackup {
        /// What was given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The database is damaged.
    #[error("the database {path} is damaged: {found}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the check found.
        found: String,
    },
    /// A newer program made the backup.
    #[error("the backup has database version {found}, this program knows versions up to {known}")]
    Newer {
        /// Version of the backup.
        found: i64,
        /// Newest version of this program.
        known: i64,
    },
    /// The backup is another replica's.
    #[error("the backup belongs to {found}, not to {expected}")]
    Foreign {
        /// Whose it is.
        found: String,
        /// Whose place it should take.
        expected: String,
    },
    /// Somebody reads the database that should be replaced.
    #[error("another program has the database {path} open")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The volume has no room.
    #[error("there is no room for {path}")]
    Full {
        /// What should have been written.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// SQLite failed.
    #[error("{action} {path}")]
    Sql {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
    /// The copy cannot be read as a replica.
    #[error("read the copy of the database")]
    Store(#[source] StoreError),
    /// Content cannot be looked for.
    #[error("look for content")]
    Blobs(#[source] BlobError),
}

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => BackupError::Full { path: DATABASE.into() },
            other => BackupError::Store(other),
        }
    }
}

impl From<BlobError> for BackupError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Full { path, .. } => BackupError::Full { path },
            other => BackupError::Blobs(other),
        }
    }
}

impl BackupError {
    /// What a person does next. Whatever failed, what was there before is as it was.
    pub fn next(&self) -> &'static str {
        match self {
            BackupError::Exists { .. } => "name a folder that is not there yet; no backup is written over",
            BackupError::NoDatabase { .. } => {
                "name the data folder with --data-dir; a program that never ran has nothing to keep"
            }
            BackupError::NoBackup { .. } => "name the folder that `backup --to` made; nothing was changed",
            BackupError::Damaged { .. } => "use another backup; nothing was changed",
            BackupError::Newer { .. } => {
                "restore it with the program that made it, or a newer one; nothing was changed"
            }
            BackupError::Foreign { .. } => "name the backup of this one; nothing was changed",
            BackupError::InUse { .. } => "wait until it has ended, or end it; nothing was changed",
            BackupError::Full { .. } => "make room on that volume and do it again; nothing was changed",
            BackupError::File { .. } | BackupError::Sql { .. } => {
                "check the owner and the permissions of both folders, and do it again"
            }
            BackupError::Store(_) | BackupError::Blobs(_) => {
                "read the reason; bring this program and the one that runs to the same version"
            }
        }
    }

    fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                BackupError::Full { path: path.to_path_buf() }
            }
            _ => BackupError::File { action, path: path.to_path_buf(), source },
        }
    }

    fn sql(action: &'static str, path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => BackupError::Full { path },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                BackupError::Damaged { path, found: source.to_string() }
            }
            Some(_) | None => BackupError::Sql { action, path, source },
        }
    }
}

/// Writes a backup of the replica into the folder `to`, which is made, or is there and empty. `say` is told
/// what is done, a line at a time.
///
/// The program may run meanwhile: the copy is what was committed when it began, and it is checked before it
/// gets its name. All files have mode 0600.
///
/// # Errors
/// `Exists`, `NoDatabase`, `Damaged`, `Full`, …; what was written by then is removed again.
pub fn backup(
    place: &Place<'_>,
    to: &Path,
    now: Timestamp,
    say: &mut dyn FnMut(&str),
) -> Result<Backup, BackupError> {
    let source = writer::database(place.replica);
    if !source.exists() {
        return Err(BackupError::NoDatabase { path: source });
    }
    let is_new = make_target(to)?;
    let outcome = fill(place, &source, to, now, say);
    if outcome.is_err() {
        // Nothing that looks like a backup stays, and nothing that we did not write goes.
        let names = place.keys.iter().copied().chain([MANIFEST, DATABASE, "holdfast.db.new"]);
        for name in names.chain(["holdfast.db.new-journal"]) {
            drop(fs::remove_file(to.join(name)));
        }
        if is_new {
            drop(fs::remove_dir(to));
        }
    }
    outcome
}

/// Puts the database of the backup `from` in the place of the one in the replica of `origin`, and the small
/// files where there are none. `say` is told what is done, a line at a time.
///
/// The caller holds the lock of the replica. The old database stays beside the new one, under a name with
/// the instant. A folder that was copied by hand while the program was stopped will do as well as a backup.
///
/// # Errors
/// `NoBackup`, `Damaged`, `Newer`, `Foreign`, `Full`, …; the old database is in use as before then.
pub fn restore(
    place: &Place<'_>,
    origin: Origin,
    from: &Path,
    now: Timestamp,
    say: &mut dyn FnMut(&str),
) -> Result<Restored, BackupError> {
    let live = writer::database(place.replica);
    let staged = writer::staged(place.replica);
    make_folder(place.replica)?;
    let outcome = prepare(place, origin, from, &staged, now, say).and_then(|mut restored| {
        restored.aside = take_place(&staged, &live, now, say)?;
        Ok(restored)
    });
    if outcome.is_err() {
        drop(discard(&staged));
    }
    outcome
}

/// Makes the folder of a backup. Tells whether it was not there.
fn make_target(to: &Path) -> Result<bool, BackupError> {
    match DirBuilder::new().mode(0o700).create(to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut found = fs::read_dir(to).map_err(|error| BackupError::file("read folder", to, error))?;
            match found.next() {
                None => Ok(false),
                Some(_) => Err(BackupError::Exists { path: to.to_path_buf() }),
            }
        }
        Err(error) => Err(BackupError::file("make folder", to, error)),
    }
}

fn fill(
    place: &Place<'_>,
    source: &Path,
    to: &Path,
    now: Timestamp,
    say: &mut dyn FnMut(&str),
) -> Result<Backup, BackupError> {
    let partial = to.join("holdfast.db.new");
    private(&partial).map_err(|error| BackupError::file("write", &partial, error))?;
    say("copying the database");
    {
        let reader = writer::reader(source)?;
        let target = partial
            .to_str()
            .ok_or_else(|| BackupError::file("write", &partial, io::Error::other("the path is not UTF-8")))?;
        // One read transaction: a state that was committed, whatever is written meanwhile.
        reader.execute("VACUUM INTO ?1", [target]).map_err(|error| {
            match BackupError::sql("copy", source, error) {
                BackupError::Full { .. } => BackupError::Full { path: partial.clone() },
                other => other,
            }
        })?;
    }
    say("checking the copy");
    let failed = |error| BackupError::sql("check", &partial, error);
    let copy = Connection::open_with_flags(&partial, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    check(&copy, &partial)?;
    let origin: Origin = origin_of(&copy)?.unwrap_or_default().parse().map_err(StoreError::from)?;
    let view = View::new(&copy, origin);
    let documents = view.documents()?.values().sum();
    let blobs = named(&view)?;
    let incarnation = meta(&copy, "incarnation")?.and_then(|bytes| Incarnation::from_slice(&bytes));
    let database_version = version_of(&copy).map_err(failed)?;
    set_meta(&copy, "backup", now.to_string().as_bytes())?;
    copy.close().map_err(|(_, error)| failed(error))?;
    let bytes = sync(&partial)?;

    say("copying keys");
    let mut backup = Backup {
        made_at: now,
        program: env!("CARGO_PKG_VERSION").into(),
        database_version,
        origin,
        incarnation,
        documents,
        bytes,
        keys: vec![],
        absent: vec![],
        blobs,
    };
    for name in place.keys {
        let list = if copy_new(&place.home.join(name), &to.join(name))? {
            &mut backup.keys
        } else {
            &mut backup.absent
        };
        list.push((*name).to_string());
    }
    let manifest = to.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&backup).map_err(StoreError::from)?;
    private(&manifest)
        .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
        .map_err(|error| BackupError::file("write", &manifest, error))?;
    // Last: a folder in which the database has its name is whole.
    let database = to.join(DATABASE);
    fs::rename(&partial, &database).map_err(|error| BackupError::file("write", &database, error))?;
    sync_folder(to)?;
    sync_folder(parent_of(to))?;
    Ok(backup)
}

/// Brings the backup's database beside the place that it will take, checks and marks it there, and puts
/// small files where there are none.
fn prepare(
    place: &Place<'_>,
    origin: Origin,
    from: &Path,
    staged: &Path,
    now: Timestamp,
    say: &mut dyn FnMut(&str),
) -> Result<Restored, BackupError> {
    let source = from.join(DATABASE);
    discard(staged)?;
    say("copying the database");
    if !copy_new(&source, staged)? {
        let why = format!("there is no {DATABASE} in it");
        return Err(BackupError::NoBackup { path: from.to_path_buf(), why });
    }
    // A folder that was copied by hand may have commits in its write-ahead log.
    copy_new(&beside(&source, "-wal"), &beside(staged, "-wal"))?;

    say("checking it");
    let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => BackupError::NoBackup {
            path: from.to_path_buf(),
            why: format!("its {DATABASE} is not a database"),
        },
        _ => BackupError::sql("check", &source, error),
    };
    let copy = Connection::open_with_flags(staged, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).map_err(failed)?;
    check(&copy, &source)?;
    let found = version_of(&copy).map_err(failed)?;
    if found > schema::version() {
        return Err(BackupError::Newer { found, known: schema::version() });
    }
    let owner = origin_of(&copy).ok().flatten();
    let Some(owner) = owner.filter(|_| found > 0) else {
        let why = format!("its {DATABASE} is another program's, or empty");
        return Err(BackupError::NoBackup { path: from.to_path_buf(), why });
    };
    if owner != origin.to_string() {
        return Err(BackupError::Foreign { found: owner, expected: origin.to_string() });
    }
    let view = View::new(&copy, origin);
    let documents = view.documents()?.values().sum();
    let named = named(&view)?;
    let made_at = meta(&copy, "backup")?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let made = made_at.as_ref().map_or("a copy".into(), |at| format!("a backup of {at}"));
    let mark = format!("the database was restored at {now} from {made}");
    set_meta(&copy, writer::RESTORED, mark.as_bytes())?;
    copy.close().map_err(|(_, error)| failed(error))?;
    sync(staged)?;

    // Before the database: with them and without it a program says that a restore was broken off.
    let mut restored =
        Restored { made_at, documents, aside: None, placed: vec![], kept: vec![], missing: vec![] };
    for name in place.keys {
        let (source, target) = (from.join(name), place.home.join(name));
        match (read(&source)?, read(&target)?) {
            (Some(_), None) => {
                copy_new(&source, &target)?;
                restored.placed.push((*name).to_string());
            }
            (Some(theirs), Some(ours)) if theirs != ours => restored.kept.push((*name).to_string()),
            (_, _) => {}
        }
    }
    sync_folder(place.home)?;
    let blobs = Blobs::open(place.replica.join("blobs"))?;
    for blob in named {
        if !blobs.contains(blob.digest)? {
            restored.missing.push(blob);
        }
    }
    Ok(restored)
}

/// Puts the old database aside and the new one in its place.
fn take_place(
    staged: &Path,
    live: &Path,
    now: Timestamp,
    say: &mut dyn FnMut(&str),
) -> Result<Option<PathBuf>, BackupError> {
    let folder = parent_of(live);
    let mut aside = None;
    if live.exists() {
        say("putting the old database aside");
        let name = format!("{DATABASE}.before-{}", now.to_string().replace(':', "-"));
        let path = folder.join(name);
        // A second name for the same files: the old database stays where it is until the new one takes its
        // name, and its commits that are only in the write-ahead log stay with it.
        let logs = [beside(live, "-wal"), beside(&path, "-wal")];
        link(live, &path)?;
        if logs[0].exists() {
            link(&logs[0], &logs[1])?;
        }
        sync_folder(folder)?;
        if let Err(error) = fold(live) {
            drop(fs::remove_file(&path));
            drop(fs::remove_file(&logs[1]));
            return Err(error);
        }
        // Neither belongs to the new database, and SQLite would take them for its own.
        for name in ["-wal", "-shm"] {
            remove(&beside(live, name))?;
        }
        if fs::metadata(&logs[1]).is_ok_and(|log| log.len() == 0) {
            remove(&logs[1])?;
        }
        aside = Some(path);
    }
    say("putting the restored database in its place");
    fs::rename(staged, live).map_err(|error| BackupError::file("replace", live, error))?;
    sync_folder(folder)?;
    // The mark inside says the same; without this file nobody takes the database for the one that ran last.
    remove(&folder.join("incarnation"))?;
    sync_folder(folder)?;
    Ok(aside)
}

/// Brings the commits of the write-ahead log into the database. A damaged one stays as it is.
fn fold(live: &Path) -> Result<(), BackupError> {
    let fold = || -> rusqlite::Result<bool> {
        let connection = Connection::open_with_flags(live, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let is_busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        connection.close().map_err(|(_, error)| error)?;
        Ok(is_busy)
    };
    match fold() {
        Ok(false) => Ok(()),
        Ok(true) => Err(BackupError::InUse { path: live.to_path_buf() }),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                tracing::warn!(%error, "the database that is put aside is damaged");
                Ok(())
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Err(BackupError::InUse { path: live.to_path_buf() })
            }
            Some(_) | None => Err(BackupError::sql("close", live, error)),
        },
    }
}

fn check(copy: &Connection, path: &Path) -> Result<(), BackupError> {
    let failed = |error| BackupError::sql("check", path, error);
    let mut statement = copy.prepare("PRAGMA integrity_check(3)").map_err(failed)?;
    let found = statement
        .query_map([], |row| row.get::<_, String>(0))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(failed)?;
    match found.as_slice() {
        [ok] if ok == "ok" => Ok(()),
        _ => Err(BackupError::Damaged { path: path.to_path_buf(), found: found.join("; ") }),
    }
}

fn version_of(copy: &Connection) -> rusqlite::Result<i64> {
    copy.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn origin_of(copy: &Connection) -> Result<Option<String>, StoreError> {
    Ok(meta(copy, "origin")?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Content that the workflows name, by digest.
fn named(view: &View<'_>) -> Result<Vec<NamedBlob>, StoreError> {
    let mut blobs = Vec::new();
    for version in view.workflows()?.iter().flat_map(|workflow| workflow.versions.values()) {
        for (role, digest) in &version.files {
            let size = version.sizes.get(role).copied().unwrap_or(0);
            blobs.push(NamedBlob { digest: *digest, size });
        }
    }
    blobs.sort_unstable();
    blobs.dedup_by_key(|blob| blob.digest);
    Ok(blobs)
}

/// Makes a file that is not there, for its owner alone.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Copies a file to a name that is free. Tells whether there was something to copy.
fn copy_new(from: &Path, to: &Path) -> Result<bool, BackupError> {
    let mut source = match File::open(from) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(BackupError::file("read", from, error)),
    };
    // Written beside its place, so that half a key is never found under its name.
    let draft = beside(to, ".copy");
    remove(&draft)?;
    let copied = private(&draft)
        .and_then(|mut target| io::copy(&mut source, &mut target).and_then(|_| target.sync_all()))
        .and_then(|()| fs::rename(&draft, to));
    if let Err(error) = copied {
        drop(fs::remove_file(&draft));
        return Err(BackupError::file("write", to, error));
    }
    Ok(true)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, BackupError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BackupError::file("read", path, error)),
    }
}

fn remove(path: &Path) -> Result<(), BackupError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BackupError::file("remove", path, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes what a restore that was broken off left.
fn discard(staged: &Path) -> Result<(), BackupError> {
    remove(staged)?;
    for name in ["-wal", "-shm", "-journal", ".copy"] {
        remove(&beside(staged, name))?;
    }
    Ok(())
}

/// Gives a file a second name, or makes a copy where the file system has no such thing.
fn link(from: &Path, to: &Path) -> Result<(), BackupError> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => copy_new(from, to).map(drop),
        outcome => outcome.map_err(|error| BackupError::file("put aside as", to, error)),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

fn make_folder(path: &Path) -> Result<(), BackupError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| BackupError::file("make folder", path, error))
}

/// Makes the bytes of a file last, and returns how many they are.
fn sync(path: &Path) -> Result<u64, BackupError> {
    let synced = File::open(path).and_then(|file| file.sync_all().and_then(|()| file.metadata()));
    Ok(synced.map_err(|error| BackupError::file("write", path, error))?.len())
}

fn sync_folder(path: &Path) -> Result<(), BackupError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|error| BackupError::file("write", path, error))
}

#[cfg(test)]
mod tests;
