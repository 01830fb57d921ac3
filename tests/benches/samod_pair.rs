//! samod, the peer-to-peer repository of Automerge documents, on the same documents.
//!
//! Two repositories with a folder each, over TCP on loopback, through a relay that counts bytes and messages. The site's folder
//! begins as a copy of central's. Both open every document before they meet, because samod speaks of open documents only.
//! Where nothing is said for [`QUIET`] after both have all of the other's changes, they have come together.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use automerge::{Automerge, ROOT, ReadDoc as _, transaction::Transactable as _};
use samod::{BackoffConfig, DocHandle, DocumentId, PeerId, Repo, Transport, storage::TokioFilesystemStorage};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    runtime::Runtime,
};
use url::Url;

/// How long nothing must be said.
const QUIET: Duration = Duration::from_secs(1);

/// How long both may take.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Two repositories that hold the same documents.
pub(crate) struct Pair {
    runtime: Runtime,
    folder: tempfile::TempDir,
    documents: Vec<DocumentId>,
}

/// What one coming together cost.
pub(crate) struct Cost {
    /// Bytes from the site, and from central.
    bytes: [u64; 2],
    messages: u64,
    took: Duration,
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Cost { bytes: [up, down], messages, took } = self;
        let seconds = took.as_secs_f64();
        write!(f, "{up} B up, {down} B down in {messages} messages, {seconds:.1} s, every document loaded")
    }
}

impl Pair {
    /// Gives both repositories the documents.
    pub(crate) fn holding(documents: Vec<Automerge>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let documents = runtime.block_on(async {
            let central = load("central", folder.path()).await;
            let mut ids = Vec::with_capacity(documents.len());
            for document in documents {
                let handle = central.create(document).await.expect("a document");
                ids.push(handle.document_id().clone());
            }
            central.stop().await;
            ids
        });
        copy(&folder.path().join("central"), &folder.path().join("site"));
        Pair { runtime, folder, documents }
    }

    /// Both start anew from what they stored, central writes into so many documents, and they meet.
    pub(crate) fn meet(&self, changed: usize, value: &str) -> Cost {
        self.runtime.block_on(async {
            let [central, site] =
                [load("central", self.folder.path()).await, load("site", self.folder.path()).await];
            let ours = open(&central, &self.documents).await;
            let theirs = open(&site, &self.documents).await;
            for handle in ours.iter().take(changed) {
                handle.with_document(|document| {
                    let written = document.transact(|tx| tx.put(ROOT, "samod", value));
                    written.expect("it is written");
                });
            }
            let carried = Arc::new(Carried::default());
            let begun = Instant::now();
            let line = connect(&central, &site, &carried).await;
            let took = line.until_settled(&theirs, &carried).await - begun;
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let heads = ours.with_document(|document| document.get_heads());
                assert_eq!(heads, theirs.with_document(|document| document.get_heads()));
            }
            if changed > 0 {
                let read = theirs[0].with_document(|document| {
                    let found = document.get(ROOT, "samod").expect("it reads");
                    found.and_then(|(read, _)| read.into_string().ok())
                });
                assert_eq!(read.as_deref(), Some(value));
            }
            central.stop().await;
            site.stop().await;
            let [up, down] = &carried.bytes;
            let bytes = [up.load(Ordering::SeqCst), down.load(Ordering::SeqCst)];
            Cost { bytes, messages: carried.messages.load(Ordering::SeqCst), took }
        })
    }
}

async fn load(name: &str, folder: &Path) -> Repo {
    let storage = TokioFilesystemStorage::new(folder.join(name));
    Repo::build_tokio().with_peer_id(PeerId::from(name)).with_storage(storage).load().await
}

/// Copies a repository's documents; who it is, stays.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let from: PathBuf = entry.expect("an entry").path();
        let name = from.file_name().expect("a name");
        if from.is_dir() {
            copy(&from, &to.join(name));
        } else if !name.to_string_lossy().contains("storage-adapter-id") {
            fs::copy(&from, to.join(name)).expect("a file");
        }
    }
}

async fn open(repo: &Repo, ids: &[DocumentId]) -> Vec<DocHandle> {
    let mut handles = Vec::with_capacity(ids.len());
    for id in ids {
        handles.push(repo.find(id.clone()).await.expect("the repository runs").expect("the document"));
    }
    handles
}

/// What went over a line.
#[derive(Default)]
struct Carried {
    bytes: [AtomicU64; 2],
    messages: AtomicU64,
}

impl Carried {
    fn all(&self) -> u64 {
        self.bytes.iter().map(|bytes| bytes.load(Ordering::SeqCst)).sum()
    }
}

/// The site's end of a line to central.
struct Line {
    connection: samod::ConnectionId,
}

async fn connect(central: &Repo, site: &Repo, carried: &Arc<Carried>) -> Line {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    let url = Url::parse(&format!("tcp://{address}")).expect("an address");
    let acceptor = central.make_acceptor(url.clone()).expect("central runs");
    let carried = Arc::clone(carried);
    tokio::spawn(async move {
        let (dialed, _) = listener.accept().await.expect("the site dials");
        dialed.set_nodelay(true).expect("a socket");
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        acceptor.accept(Transport::from_tokio_io(theirs)).expect("central runs");
        let (dialed_reads, dialed_writes) = dialed.into_split();
        let (our_reads, our_writes) = tokio::io::split(ours);
        tokio::spawn(carry(dialed_reads, our_writes, 0, Arc::clone(&carried)));
        tokio::spawn(carry(our_reads, dialed_writes, 1, carried));
    });
    let dialer = site.dial_tcp(url, BackoffConfig::default()).expect("the site runs");
    dialer.established().await.expect("a line");
    Line { connection: dialer.connection_id().expect("a line") }
}

/// Carries messages, each behind its length in four bytes, and counts them.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: usize,
    carried: Arc<Carried>,
) {
    let mut message = Vec::new();
    while let Ok(length) = from.read_u32().await {
        message.resize(usize::try_from(length).expect("it fits"), 0);
        if from.read_exact(&mut message).await.is_err() || to.write_u32(length).await.is_err() {
            return;
        }
        if to.write_all(&message).await.is_err() {
            return;
        }
        carried.bytes[direction].fetch_add(4 + u64::from(length), Ordering::SeqCst);
        carried.messages.fetch_add(1, Ordering::SeqCst);
    }
}

impl Line {
    /// Waits until both have all of the other's changes and say nothing more; tells when the last word was said.
    async fn until_settled(&self, handles: &[DocHandle], carried: &Carried) -> Instant {
        let settled = async {
            for handle in handles {
                handle.we_have_their_changes(self.connection).await;
                handle.they_have_our_changes(self.connection).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("both come together");
        let mut last = (carried.all(), Instant::now());
        while last.1.elapsed() < QUIET {
            tokio::time::sleep(QUIET / 20).await;
            if carried.all() != last.0 {
                last = (carried.all(), Instant::now());
            }
        }
        last.1
    }
}
