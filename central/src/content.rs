//! How blobs leave: read in pieces off the runtime's own threads, paced by whoever takes them.
//!
//! No thread waits for a slow reader: each piece is read by itself, and the next one only when it is asked
//! for.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use store::blobs::{BlobError, BlobReader};

/// Bytes per read, and per piece that a connection is given.
pub(crate) const PIECE: usize = 64 << 10;

/// The bytes of a blob in a range, piece by piece.
pub(crate) struct Pieces {
    reader: Arc<BlobReader>,
    left: Range<u64>,
}

impl Pieces {
    /// Will read `range`, which must lie in the blob.
    pub(crate) fn new(reader: BlobReader, range: Range<u64>) -> Self {
        assert!(range.start <= range.end && range.end <= reader.len(), "the range lies in the blob");
        Pieces { reader: Arc::new(reader), left: range }
    }

    /// The next piece, at most [`PIECE`] bytes, or nothing after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, BlobError> {
        let start = self.left.start;
        let size = usize::try_from(self.left.end - start).unwrap_or(usize::MAX).min(PIECE);
        if size == 0 {
            return Ok(None);
        }
        let reader = Arc::clone(&self.reader);
        let piece = off_runtime(move || {
            let mut buffer = vec![0; size];
            reader.read_range(start, &mut buffer).map(|read| {
                buffer.truncate(read);
                Bytes::from(buffer)
            })
        })
        .await?;
        self.left.start += piece.len() as u64;
        Ok((!piece.is_empty()).then_some(piece))
    }
}

/// Runs what waits for a disk on a thread that may wait.
pub(crate) async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Such work is only cancelled when the runtime ends, and then so does whoever waits for it.
            Err(_) => std::future::pending().await,
        },
    }
}
