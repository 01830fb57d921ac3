//! What can go wrong with a replica on disk.

use std::{path::PathBuf, sync::Arc};

use sync::{document::DocumentError, id::ParseIdError, journal::ChainError, policy::Reason};

use crate::blobs::BlobError;

/// An operation of the store that did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed; nothing of the operation was committed.
    #[error("database")]
    Sql(#[source] Arc<rusqlite::Error>),
    /// The volume has no room. Nothing of the operation was committed.
    #[error("the volume of the database is full")]
    Full,
    /// The database file cannot be opened.
    #[error("open database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// A newer program wrote the database.
    #[error(
        "the database has version {found}, this program knows versions up to {known}; it was not touched. \
         Next: start the newer program again, or restore a backup that this one made"
    )]
    Newer {
        /// Version of the database.
        found: i64,
        /// Newest version of this program.
        known: i64,
    },
    /// The database is damaged.
    #[error(
        "the database is damaged; keep the folder. Next: put a backup in its place with `restore --from FOLDER`, \
         which keeps the damaged one beside it"
    )]
    Corrupt(#[source] Arc<rusqlite::Error>),
    /// There is no database, and a restore of one was broken off.
    #[error("a restore was broken off and left {path}. Next: do it again with `restore --from FOLDER`")]
    Unfinished {
        /// What it had prepared.
        path: PathBuf,
    },
    /// The database belongs to another replica than the one that is starting.
    #[error("the database belongs to {found}, not to {expected}")]
    Foreign {
        /// Whose it is.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// A file beside the database cannot be read or written.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A stored document cannot be opened.
    #[error(transparent)]
    Document(#[from] Arc<DocumentError>),
    /// Stored or received bytes are not what their place says.
    #[error("{what}: {why}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A journal entry does not continue its chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Blob storage failed.
    #[error(transparent)]
    Blob(#[from] Arc<BlobError>),
    /// The thing that was asked for is not here.
    #[error("{0} is not known here")]
    Unknown(String),
    /// What was asked contradicts what holds; the reason is for the person who asked.
    #[error("{0}")]
    Refused(Reason),
    /// Central is in recovery, and gives no order until somebody ends it. The reason is what began it.
    #[error("central is in recovery and gives no order: {0}")]
    Recovering(Reason),
    /// Too many commands wait for the writer; this one was not taken.
    #[error("more is asked of the database than it can write now")]
    Busy,
    /// The writer has stopped.
    #[error("the store is closed")]
    Closed,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => StoreError::Full,
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                StoreError::Corrupt(Arc::new(error))
            }
            Some(_) | None => StoreError::Sql(Arc::new(error)),
        }
    }
}

impl From<DocumentError> for StoreError {
    fn from(error: DocumentError) -> Self {
        StoreError::Document(Arc::new(error))
    }
}

impl From<BlobError> for StoreError {
    fn from(error: BlobError) -> Self {
        StoreError::Blob(Arc::new(error))
    }
}

impl From<ParseIdError> for StoreError {
    fn from(error: ParseIdError) -> Self {
        StoreError::Malformed { what: "stored id", why: error.to_string() }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        StoreError::Malformed { what: "derived row", why: error.to_string() }
    }
}
