//! Content: what a site notes about what it fetched.

use sync::{blob::Digest, journal::Event};

use crate::{StoreError, Tx};

/// Notes that a blob is here, verified, with so many bytes.
pub fn arrived(tx: &mut Tx<'_>, digest: Digest, size: u64) -> Result<(), StoreError> {
    tx.journal(Event::BlobArrived { digest, size })
}

/// Notes that somebody sent bytes that are not the blob. They were dropped and the blob stays wanted.
pub fn refused(tx: &mut Tx<'_>, digest: Digest, reason: &str) -> Result<(), StoreError> {
    tx.journal(Event::BlobRefused { digest, reason: reason.to_string() })
}
