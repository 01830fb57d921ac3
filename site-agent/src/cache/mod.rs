//! Content that this site needs and does not have: fetched from central, verified, and then made of use.
//!
//! [`run`] follows the wishes of the replica after every change, asks the engine's `Fetcher` which blob is
//! next, and fetches it over the session's connection: the network half reads the stream, the disk half
//! writes and verifies on a thread of its own, and what is there already is not asked for again. When a blob
//! has arrived, that is journalled and every task that waited for it alone becomes ready, in one commit.
//!
//! Deliberately absent in this version: eviction, wishes beyond tasks, other sites as sources, and budgets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use store::{
    blobs::{BlobError, Blobs},
    command::{content, task},
};
use sync::{
    blob::Digest,
    engine::blobs::{Failure, Fetcher},
    quic::{
        Connection,
        stream::{FrameError, request_blob},
    },
};
use tokio::{sync::mpsc, task::JoinSet};
use tracing::{error, info, warn};

use crate::{agent::Agent, error::chain};

/// Pieces of up to 64 KiB that wait for the disk; beyond, QUIC's flow control holds central.
const WAITING_PIECES: usize = 16;

/// A source that sends nothing for this long is given up; the connection itself notices a lost peer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is waited for, as the status shows it.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// Wanted and not here, in the order in which it is fetched.
    pub wanted: Vec<Wanted>,
}

/// One blob that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes, where it is known.
    pub size: Option<u64>,
    /// Why the last try failed, if one did.
    pub trouble: Option<String>,
}

/// Why a fetch ended without its blob.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("central does not hold blob {0}")]
    NotThere(Digest),
    #[error("fetch blob {digest}")]
    Stream {
        digest: Digest,
        #[source]
        source: FrameError,
    },
    #[error("central sent nothing of blob {digest} for {} s", PATIENCE.as_secs())]
    Silent { digest: Digest },
    #[error("the disk is full: blob {digest} stays wanted, {have} of {} bytes are kept", size.map_or("unknown".to_owned(), |size| size.to_string()))]
    Full {
        digest: Digest,
        have: u64,
        size: Option<u64>,
        #[source]
        source: BlobError,
    },
    #[error(transparent)]
    Blob(BlobError),
    #[error("this program is stopping")]
    Stopping,
}

impl FetchError {
    /// Whether the source sent other bytes than the name says.
    fn is_wrong_bytes(&self) -> bool {
        matches!(self, FetchError::Blob(BlobError::Mismatch { .. } | BlobError::TooLong { .. }))
    }
}

/// Fetches what is wanted, until the future is dropped.
pub async fn run(agent: Arc<Agent>) -> std::convert::Infallible {
    let mut changes = agent.changes.subscribe();
    let mut link = agent.link.subscribe();
    let mut desk = Desk {
        agent,
        fetcher: Fetcher::default(),
        sizes: BTreeMap::new(),
        troubles: BTreeMap::new(),
        refused: BTreeSet::new(),
    };
    let mut fetches = JoinSet::new();
    let mut known = None;
    desk.review().await;
    loop {
        let source = link.borrow_and_update().source();
        let now = desk.agent.edge.elapsed();
        let current = source.as_ref().map(Connection::stable_id);
        // Only another connection is news to the fetcher: it tries at once what was failing.
        if current != known {
            known = current;
            desk.fetcher.link(source.is_some(), now);
        }
        if let Some(connection) = &source {
            while let Some(digest) = desk.fetcher.poll(now) {
                let size = desk.sizes.get(&digest).copied().flatten();
                let (blobs, connection) = (desk.agent.store.blobs().clone(), connection.clone());
                fetches.spawn(async move { (digest, fetch(blobs, connection, digest, size).await) });
            }
        }
        let wake = desk.fetcher.poll_timeout().map(|at| at.saturating_sub(now));
        let timer = async {
            match wake {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = changes.changed() => desk.review().await,
            Ok(()) = link.changed() => {}
            Some(ended) = fetches.join_next() => match ended {
                Ok((digest, outcome)) => desk.ended(digest, outcome).await,
                Err(error) => error!(%error, "a fetch failed"),
            },
            () = timer => {}
        }
    }
}

/// What the loop knows.
struct Desk {
    agent: Arc<Agent>,
    fetcher: Fetcher,
    sizes: BTreeMap<Digest, Option<u64>>,
    troubles: BTreeMap<Digest, String>,
    /// Blobs whose wrong bytes were journalled in this run: once is enough.
    refused: BTreeSet<Digest>,
}

impl Desk {
    /// Looks at what is wanted now, makes ready what can be, and notes other settings.
    async fn review(&mut self) {
        self.settle(None).await;
        let wanted = self.agent.read(|agent, view| {
            let blobs = agent.store.blobs();
            // A blob that the disk will not tell about is fetched anew, which heals it.
            view.wanted_blobs(|digest| blobs.contains(digest).unwrap_or(false))
        });
        match wanted.await {
            Ok(wanted) => {
                let order: Vec<Digest> = wanted.iter().map(|(digest, _)| *digest).collect();
                self.fetcher.want(&order, self.agent.edge.elapsed());
                self.troubles.retain(|digest, _| order.contains(digest));
                self.sizes = wanted.iter().copied().collect();
                self.publish(&order);
            }
            Err(error) => error!(error = %chain(&error), "wanted content cannot be read"),
        }
    }

    /// Commits what follows from content that is here: an entry for the blob that just came, if one did,
    /// and tasks that are ready.
    async fn settle(&mut self, arrived: Option<(Digest, u64)>) {
        let (blobs, here) = (self.agent.store.blobs().clone(), self.agent.site);
        let settled = self.agent.submit("cache", move |tx| {
            if let Some((digest, size)) = arrived {
                content::arrived(tx, digest, size)?;
            }
            task::mark_ready(tx, here, |digest| blobs.contains(digest).unwrap_or(false))
        });
        match settled.await {
            Ok(ready) => {
                for task in ready {
                    info!(%task, "task is ready to boot");
                }
            }
            Err(error) => error!(error = %chain(&error), "what arrived could not be noted"),
        }
    }

    async fn ended(&mut self, digest: Digest, outcome: Result<u64, FetchError>) {
        let agent = Arc::clone(&self.agent);
        match outcome {
            Ok(size) => {
                info!(%digest, size, "blob arrived");
                self.troubles.remove(&digest);
                self.refused.remove(&digest);
                self.fetcher.fetched(digest, agent.edge.elapsed());
                self.settle(Some((digest, size))).await;
            }
            Err(failure) => {
                let text = chain(&failure);
                if failure.is_wrong_bytes() && self.refused.insert(digest) {
                    let reason = text.clone();
                    let noted = agent.submit("cache", move |tx| content::refused(tx, digest, &reason)).await;
                    if let Err(error) = noted {
                        error!(error = %chain(&error), "refused content could not be noted");
                    }
                }
                match &failure {
                    FetchError::Full { .. } => error!(error = %text, "fetch failed"),
                    _ => warn!(error = %text, "fetch failed"),
                }
                let kind = match failure.is_wrong_bytes() {
                    true => Failure::WrongBytes,
                    false => Failure::Interrupted,
                };
                self.troubles.insert(digest, text);
                self.fetcher.failed(digest, kind, agent.edge.jitter(), agent.edge.elapsed());
            }
        }
        self.review().await;
    }

    fn publish(&self, order: &[Digest]) {
        let wanted = order.iter().map(|digest| Wanted {
            digest: *digest,
            size: self.sizes.get(digest).copied().flatten(),
            trouble: self.troubles.get(digest).cloned(),
        });
        self.agent.content.send_replace(Content { wanted: wanted.collect() });
    }
}

/// Gets one blob, from where an earlier try stopped, and returns its size.
async fn fetch(
    blobs: Blobs,
    connection: Connection,
    digest: Digest,
    size: Option<u64>,
) -> Result<u64, FetchError> {
    let opening = blobs.clone();
    let opened = tokio::task::spawn_blocking(move || opening.fetch(digest, size)).await;
    let mut fetch = match opened.map_err(|_| FetchError::Stopping)? {
        Ok(fetch) => fetch,
        Err(source @ BlobError::Full { .. }) => {
            return Err(FetchError::Full { digest, have: kept(&blobs, digest), size, source });
        }
        Err(other) => return Err(FetchError::Blob(other)),
    };
    let mut request = digest.as_bytes().to_vec();
    request.extend_from_slice(&fetch.offset().to_be_bytes());
    let broken = |source| FetchError::Stream { digest, source };
    let asked = tokio::time::timeout(PATIENCE, request_blob(&connection, &request, "central")).await;
    let asked = asked.map_err(|_| FetchError::Silent { digest })?.map_err(broken)?;
    let mut reader = asked.ok_or(FetchError::NotThere(digest))?;

    let (pieces, mut waiting) = mpsc::channel::<Option<Bytes>>(WAITING_PIECES);
    let disk = tokio::task::spawn_blocking(move || {
        while let Some(piece) = waiting.blocking_recv() {
            match piece {
                Some(bytes) => fetch.write(&bytes)?,
                None => return fetch.finish().map(Some),
            }
        }
        // The network gave up: what came is kept for the next try.
        Ok(None)
    });
    let network = async {
        loop {
            let piece = tokio::time::timeout(PATIENCE, reader.next()).await;
            let piece = piece.map_err(|_| FetchError::Silent { digest })?.map_err(broken)?;
            let is_end = piece.is_none();
            // The disk half has ended early when nobody takes the piece; it says why below.
            if pieces.send(piece).await.is_err() || is_end {
                return Ok(());
            }
        }
    };
    let network: Result<(), FetchError> = network.await;
    drop(pieces);
    match disk.await.map_err(|_| FetchError::Stopping)? {
        Ok(Some(size)) => Ok(size),
        Ok(None) => network.and(Err(FetchError::Stopping)),
        Err(source @ BlobError::Full { .. }) => {
            Err(FetchError::Full { digest, have: kept(&blobs, digest), size, source })
        }
        Err(other) => Err(FetchError::Blob(other)),
    }
}

/// Bytes that are here of a blob that is not complete.
fn kept(blobs: &Blobs, digest: Digest) -> u64 {
    let found = blobs.unfinished().unwrap_or_default();
    found.into_iter().find(|(name, _)| *name == digest).map_or(0, |(_, size)| size)
}

#[cfg(test)]
mod tests;
