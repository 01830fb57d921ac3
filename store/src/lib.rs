//! What one replica knows, on disk, and how it changes.
//!
//! [`Store`] is the door. `writer` owns the one writing connection: a command is a closure that runs in a
//! transaction ([`Tx`]); several that wait are committed together, and nothing is answered before that.
//! `documents` (of which `open` keeps a few in memory), `log`, `journal`, `peers`, `authority` and `quota` are what a
//! transaction can do; `marks` keeps signed heads of the
//! journal, `retention` trims and archives it, `audit` proves that it is what was written; `scope`, `directory` and
//! `reset` say what a site holds; `life` says when another life of the database begins, `recovery` what central does not do after that,
//! `backup` keeps a database and puts it back, `join` is how it meets its peers;
//! `command` are the changes that people and machines ask for; `view` are the derived tables that everything
//! reads; `replica` answers the replication engine; `blobs` holds content.
//!
//! Deliberately absent: sockets, HTTP, clocks and randomness. Instants and entropy come in as [`Given`].
//! The API says nothing about SQLite, so that another engine can stand behind it.

#![warn(missing_docs)]

mod error;
mod schema;
mod writer;
mod life;
mod recovery;
pub mod backup;

mod open;
mod documents;
mod log;
mod journal;
pub mod marks;
pub mod retention;
pub mod audit;
mod chains;
mod peers;
pub mod quarantine;
mod authority;
mod quota;
mod join;
mod scope;
mod directory;
mod reset;
mod withdraw;
mod intent;
mod conflicts;
pub mod tokens;

pub mod view;
pub mod command;
mod replica;

pub mod blobs;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

pub use directory::{DirectoryRow, DirectoryStanding};
pub use error::StoreError;
pub use peers::Standing;
pub use recovery::{Awaited, Ended, Recovery, Stage};
pub use view::View;
pub use writer::{Committed, Tx};

use blobs::Blobs;
use sync::{
    document::Author,
    document::register::Entropy,
    id::{Incarnation, Origin},
    time::Timestamp,
};

/// What the edge of the program gives to a command: when, by whom, and 32 random bytes.
#[derive(Clone, Debug)]
pub struct Given {
    /// Own clock.
    pub now: Timestamp,
    /// Person, rule or program that acts.
    pub by: String,
    /// Bytes that were never used before.
    pub entropy: [u8; 32],
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Folder of the replica; made if it is not there.
    pub folder: PathBuf,
    /// Whose replica it is.
    pub origin: Origin,
    /// Instant and entropy, for a new incarnation.
    pub given: Given,
}

/// One replica. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    origin: Origin,
    incarnation: Arc<Mutex<Incarnation>>,
    database: PathBuf,
    writer: writer::Writer,
    readers: Mutex<Vec<rusqlite::Connection>>,
    blobs: Blobs,
}

impl Store {
    /// Opens the replica in a folder, or makes it.
    ///
    /// A new incarnation begins when there is no database, or when the copy of the incarnation beside the
    /// database disagrees with it: then one of the two was restored, orders are suspended until central or
    /// a person confirms, and old actors are never used again.
    ///
    /// # Errors
    /// `Newer` for a database of a newer program, `Foreign` for one of another replica, `Open`, `File` or
    /// `Sql` when the disk does not do what it should. Nothing is changed then.
    pub fn open(opening: &Opening) -> Result<Self, StoreError> {
        Store::open_on(opening, None)
    }

    /// The same on a virtual machine that says which `generation` of itself it is: a text that changes when a
    /// snapshot of the machine is restored, or the machine is cloned, and at no other time. Another one than at
    /// the last start begins a new incarnation, because the database is then that of the snapshot.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(opening: &Opening, generation: Option<&str>) -> Result<Self, StoreError> {
        let (writer, incarnation) = writer::Writer::open(opening, generation)?;
        Ok(Store {
            inner: Arc::new(Inner {
                origin: opening.origin,
                incarnation,
                database: writer::database(&opening.folder),
                writer,
                readers: Mutex::new(Vec::new()),
                blobs: Blobs::open(opening.folder.join("blobs"))?,
            }),
        })
    }

    /// Whose replica this is.
    pub fn origin(&self) -> Origin {
        self.inner.origin
    }

    /// Life of the database, the actor of every change that is written here.
    pub fn incarnation(&self) -> Incarnation {
        // Whoever panicked while he held it has only ever stored a whole value.
        *self.inner.incarnation.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Content.
    pub fn blobs(&self) -> &Blobs {
        &self.inner.blobs
    }

    /// File of the database.
    pub fn database(&self) -> &Path {
        &self.inner.database
    }

    /// Calls `watcher` after every commit in which a peer's log has grown.
    pub fn watch(&self, watcher: impl Fn(&Committed) + Send + 'static) {
        self.inner.writer.watch(Box::new(watcher));
    }

    /// Calls `watcher` after every commit in which the journal has grown, by what came about here or by what a peer
    /// brought. It runs on the writer's thread when the entries can be read and before anybody is answered, so it
    /// only wakes others; it takes the place of the one before it.
    pub fn watch_journal(&self, watcher: impl Fn() + Send + 'static) {
        self.inner.writer.watch_journal(Box::new(move |_| watcher()));
    }

    /// Runs `command` in a transaction and hands its outcome to `done` after the commit, on the writer's
    /// thread. An error rolls back what the command did and nothing else. Where too many commands wait already,
    /// `done` hears `Busy` at once, on the caller's thread.
    pub fn submit<T: Send + 'static>(
        &self,
        given: Given,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
        done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        self.inner.writer.submit(given, command, done);
    }

    /// Runs `command` in a transaction and waits for its commit.
    ///
    /// # Errors
    /// Those of the command; `Sql` or `Full` when the commit failed; nothing is changed then.
    pub fn run<T: Send + 'static>(
        &self,
        given: Given,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.submit(given, command, move |outcome| drop(sender.send(outcome)));
        receiver.recv().unwrap_or(Err(StoreError::Closed))
    }

    /// Reads derived tables in one consistent snapshot.
    ///
    /// # Errors
    /// Those of `read`, and `Sql` when the database cannot be read.
    pub fn read<T>(&self, read: impl FnOnce(&View<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let pooled = self.inner.readers.lock().map_err(|_| StoreError::Closed)?.pop();
        let connection = match pooled {
            Some(connection) => connection,
            None => writer::reader(&self.inner.database)?,
        };
        connection.execute_batch("BEGIN")?;
        let outcome = read(&View::new(&connection, self.inner.origin));
        connection.execute_batch("COMMIT")?;
        self.inner.readers.lock().map_err(|_| StoreError::Closed)?.push(connection);
        outcome
    }
}

impl Given {
    fn author(
        &self,
        incarnation: Incarnation,
        site: Origin,
        at: sync::time::Hlc,
        policy_epoch: u64,
    ) -> Author {
        Author {
            incarnation,
            site,
            by: self.by.clone(),
            at,
            policy_epoch,
            entropy: Entropy::new(self.entropy),
        }
    }
}

#[cfg(test)]
mod tests;
