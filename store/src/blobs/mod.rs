//! The blobs of one replica, on disk: content under the name of its BLAKE3 digest.
//!
//! `layout` says where things lie, `partial` is how bytes come in (a put whose digest shows at the end, a
//! fetch whose digest is known and which survives a crash), `sweep` is what becomes of those that never
//! ended. [`Blobs`] is the door to them, [`BlobReader`] the way out. The one promise: a name that can be
//! seen has all of its bytes, verified and synced before the name was given. What the disk does to them
//! later is found by [`Blobs::verify`].
//!
//! Nothing guards the directory as a whole. Each unfinished file is locked by whoever writes it, so an
//! import on the command line may work beside the running agent, and a crash leaves no lock behind. That
//! needs a local file system, as the database does.
//!
//! Deliberately absent: sources, budgets and retries (who calls knows peers and time), pins and eviction
//! (they are rows, and rows decide), chunk maps, and caching of sizes.
#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "blobs are files; this module and the database are the only ones of the crate that touch a disk"
)]

mod layout;
mod partial;
mod sweep;

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use sync::blob::Digest;

use self::layout::Layout;
pub use self::partial::{Fetch, Put};

/// All blobs of one replica. A clone is another handle to the same directory.
#[derive(Debug, Clone)]
pub struct Blobs {
    home: Arc<Home>,
}

/// What the handles, puts and fetches of one directory share.
#[derive(Debug)]
struct Home {
    layout: Layout,
    /// Number to try for the next incoming file; other processes may have taken it.
    next_incoming: AtomicU64,
}

impl Blobs {
    /// Opens the blobs in `dir`, which is made if it is not there; its parent must be.
    ///
    /// Removes what puts left behind that ended without a name, and partial downloads of blobs that are
    /// here by now. Other partial downloads stay and can be resumed.
    ///
    /// # Errors
    /// `Open`, `Full`, `List` or `Sweep`, with the path that would not do.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, BlobError> {
        let layout = Layout::create(dir.as_ref())?;
        sweep::sweep(&layout)?;
        Ok(Blobs { home: Arc::new(Home { layout, next_incoming: AtomicU64::new(0) }) })
    }

    /// Starts a blob whose digest shows when its last byte is written.
    ///
    /// # Errors
    /// `Full` or `Write` when no file could be made.
    pub fn put(&self) -> Result<Put, BlobError> {
        Put::start(self.home.clone())
    }

    /// Stores `bytes` and returns their name. The same bytes twice are one blob.
    ///
    /// # Errors
    /// As [`Put::write`] and [`Put::finish`].
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let mut put = self.put()?;
        put.write(bytes)?;
        Ok(put.finish(None)?.0)
    }

    /// Starts or resumes the download of `digest`, of which `size` bytes are announced, if anybody said.
    ///
    /// Reads and hashes what an earlier attempt left, so this takes as long as reading that. More of it
    /// than `size` cannot be this blob and is thrown away. A blob that is already here is downloaded
    /// anew and replaced at the end, which is how a damaged one heals; ask [`Blobs::contains`] before.
    ///
    /// # Errors
    /// `Busy` while another fetch of the same digest lives, in whichever process; `Full`, `Write`, `Read`.
    pub fn fetch(&self, digest: Digest, size: Option<u64>) -> Result<Fetch, BlobError> {
        Fetch::resume(self.home.clone(), digest, size)
    }

    /// Opens a complete blob, or returns nothing when it is not here. The reader goes on reading
    /// what it opened if the blob is removed meanwhile.
    ///
    /// # Errors
    /// `Read`.
    pub fn reader(&self, digest: Digest) -> Result<Option<BlobReader>, BlobError> {
        let path = self.home.layout.blob(digest);
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((len, file)) => Ok(Some(BlobReader { digest, path, file, len })),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BlobError::Read { digest, path, source }),
        }
    }

    /// Whether the whole blob is here.
    ///
    /// # Errors
    /// `Read` when the disk does not say.
    pub fn contains(&self, digest: Digest) -> Result<bool, BlobError> {
        Ok(self.size(digest)?.is_some())
    }

    /// Size in bytes of a complete blob, or nothing when it is not here.
    ///
    /// # Errors
    /// `Read` when the disk does not say.
    pub fn size(&self, digest: Digest) -> Result<Option<u64>, BlobError> {
        let path = self.home.layout.blob(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BlobError::Read { digest, path, source }),
        }
    }

    /// Every complete blob with its size in bytes, by ascending digest. Asks the disk for each of them.
    /// Files with names that are not ours are left out, and left alone.
    ///
    /// # Errors
    /// `List`.
    pub fn list(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        self.home.layout.list_blobs()
    }

    /// Bytes of all complete blobs together, counted anew each time. Partial downloads come on top, see
    /// [`Blobs::unfinished`].
    ///
    /// # Errors
    /// `List`.
    pub fn total_bytes(&self) -> Result<u64, BlobError> {
        Ok(self.list()?.iter().map(|(_, size)| size).sum())
    }

    /// Removes a complete blob and returns whether it was here. Its space is free once the last reader
    /// is gone. A power cut right after may bring the blob back, whole.
    ///
    /// # Errors
    /// `Remove`.
    pub fn remove(&self, digest: Digest) -> Result<bool, BlobError> {
        sweep::remove(digest, self.home.layout.blob(digest))
    }

    /// Partial downloads with the bytes that are here of each, by ascending digest.
    ///
    /// # Errors
    /// `List`.
    pub fn unfinished(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        self.home.layout.list_partials()
    }

    /// Removes a partial download that nobody wants any more and returns whether there was one.
    ///
    /// # Errors
    /// `Busy` while a [`Fetch`] of it lives; `Remove`.
    pub fn abandon(&self, digest: Digest) -> Result<bool, BlobError> {
        sweep::abandon(digest, self.home.layout.partial(digest))
    }

    /// Reads a complete blob from end to end and returns whether it still is what its name says.
    ///
    /// Reading trusts names; this is for whoever patrols the disk. A blob that fails should be removed
    /// and fetched again.
    ///
    /// # Errors
    /// `Missing` when it is not here; `Read`.
    pub fn verify(&self, digest: Digest) -> Result<bool, BlobError> {
        let reader = self.reader(digest)?.ok_or(BlobError::Missing { digest })?;
        let mut hasher = blake3::Hasher::new();
        match hasher.update_reader(&reader.file) {
            Ok(_) => Ok(hasher.finalize().as_bytes() == digest.as_bytes()),
            Err(source) => Err(BlobError::Read { digest, path: reader.path, source }),
        }
    }
}

/// A complete blob, open for reading.
#[derive(Debug)]
pub struct BlobReader {
    digest: Digest,
    path: PathBuf,
    file: File,
    len: u64,
}

impl BlobReader {
    /// The name of what is read.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes at all, which a blob may.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buffer` from byte `offset` on and returns how many bytes it got: all of it, or what there
    /// is up to the end; beyond the end, 0. Does not move the position that [`Read`] and [`Seek`] use,
    /// so that several threads may share one reader.
    ///
    /// # Errors
    /// `Read`, also when the file became shorter than it was when it was opened.
    pub fn read_range(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, BlobError> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        match self.file.read_exact_at(&mut buffer[..count], offset) {
            Ok(()) => Ok(count),
            Err(source) => Err(BlobError::Read { digest: self.digest, path: self.path.clone(), source }),
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Why a blob could not be stored, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The volume has no room, or the quota of its owner is used up. The blob stays wanted; what a
    /// fetch had written is still there, what a put had written is gone.
    #[error("the disk is full: no room for {} at {path}", named(.digest))]
    Full {
        /// The blob, where its name is known by then.
        digest: Option<Digest>,
        /// The file or directory that could not grow.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not what they were called. Nothing was published and they are gone.
    #[error("the bytes are blob {found}, not {expected}")]
    Mismatch {
        /// What was asked for.
        expected: Digest,
        /// What the bytes are.
        found: Digest,
    },
    /// A source sent more bytes than it or somebody else announced. None of the last piece was taken.
    #[error("blob {digest} is longer than the {announced} bytes that were announced")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// Its size in bytes, as announced.
        announced: u64,
    },
    /// A fetch was ended before its last byte. What came is kept.
    #[error("blob {digest} ended after {found} of {announced} bytes")]
    TooShort {
        /// The blob.
        digest: Digest,
        /// Its size in bytes, as announced.
        announced: u64,
        /// Bytes that are here.
        found: u64,
    },
    /// Another fetch of the same blob is under way.
    #[error("blob {digest} is being fetched by somebody else, to {path}")]
    Busy {
        /// The blob.
        digest: Digest,
        /// The locked file.
        path: PathBuf,
    },
    /// The blob is not here.
    #[error("blob {digest} is not here")]
    Missing {
        /// The blob.
        digest: Digest,
    },
    /// A put goes on after one of its writes failed; the gap must not get a name.
    #[error("an earlier write to {path} failed, start again")]
    Broken {
        /// Where it was.
        path: PathBuf,
    },
    /// The directories could not be made or synced.
    #[error("open the blob store at {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What an earlier process left behind could not be removed.
    #[error("remove the abandoned file {path}")]
    Sweep {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// An unfinished blob could not be made, written or synced.
    #[error("write {} to {path}", named(.digest))]
    Write {
        /// The blob, where its name is known by then.
        digest: Option<Digest>,
        /// The unfinished file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A verified blob could not be given its name, or the name could not be synced: it may be
    /// visible, but might not survive a power cut.
    #[error("publish blob {digest} as {path}")]
    Publish {
        /// The blob.
        digest: Digest,
        /// Where it belongs.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes could not be read, of a complete blob or of a partial one.
    #[error("read blob {digest} from {path}")]
    Read {
        /// The blob.
        digest: Digest,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory could not be read.
    #[error("list the blobs in {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A blob could not be removed.
    #[error("remove blob {digest} at {path}")]
    Remove {
        /// The blob.
        digest: Digest,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl BlobError {
    fn opening(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_full(&source) { Self::Full { digest: None, path, source } } else { Self::Open { path, source } }
    }

    fn writing(digest: Option<Digest>, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if is_full(&source) {
            Self::Full { digest, path, source }
        } else {
            Self::Write { digest, path, source }
        }
    }

    /// A new name may need a new block of its directory, so this can fail for room as well.
    fn publishing(digest: Digest, path: PathBuf, source: io::Error) -> Self {
        if is_full(&source) {
            Self::Full { digest: Some(digest), path, source }
        } else {
            Self::Publish { digest, path, source }
        }
    }
}

/// Whether room is what is missing: ENOSPC or EDQUOT. Not EFBIG, which more room would not cure.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn named(digest: &Option<Digest>) -> String {
    digest.map_or_else(|| "a new blob".to_owned(), |digest| format!("blob {digest}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use expect_test::{Expect, expect};

    use super::*;

    fn store() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path().join("blobs")).unwrap();
        (dir, blobs)
    }

    /// Every file below the store with its size, digests cut to eight digits.
    fn tree(blobs: &Blobs) -> String {
        let root = blobs.home.layout.root();
        let mut lines = Vec::new();
        for dir in fs::read_dir(root).unwrap() {
            for file in fs::read_dir(dir.unwrap().path()).unwrap() {
                let file = file.unwrap();
                let path = file.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                let short: String = path.chars().take(path.find('/').unwrap() + 9).collect();
                lines.push(format!("{short} {}\n", file.metadata().unwrap().len()));
            }
        }
        lines.sort();
        lines.concat()
    }

    #[test]
    fn what_is_put_can_be_read_under_its_digest() {
        let (_dir, blobs) = store();
        let digest = blobs.put_bytes(b"#!ipxe\nboot\n").unwrap();
        assert_eq!(digest, Digest::of(b"#!ipxe\nboot\n"));

        let mut reader = blobs.reader(digest).unwrap().unwrap();
        assert_eq!((reader.digest(), reader.len(), reader.is_empty()), (digest, 12, false));
        let mut text = String::new();
        reader.seek(SeekFrom::Start(7)).unwrap();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "boot\n");

        expect![[r#"
            8e/8e5ba3db 12
        "#]]
        .assert_eq(&tree(&blobs));
        let mode = fs::metadata(blobs.home.layout.blob(digest)).unwrap().permissions().mode();
        assert_eq!(mode & 0o222, 0, "nobody may write to a complete blob, mode {mode:o}");
    }

    #[test]
    fn the_empty_blob_is_a_blob() {
        let (_dir, blobs) = store();
        let digest = blobs.put_bytes(b"").unwrap();
        assert_eq!(blobs.size(digest).unwrap(), Some(0));
        assert!(blobs.reader(digest).unwrap().unwrap().is_empty());
        assert_eq!(blobs.fetch(digest, Some(0)).unwrap().finish().unwrap(), 0);
    }

    #[test]
    fn what_is_not_here_is_nothing_rather_than_an_error() {
        let (_dir, blobs) = store();
        let digest = Digest::of(b"elsewhere");
        assert!(blobs.reader(digest).unwrap().is_none());
        assert!(!blobs.contains(digest).unwrap());
        assert_eq!(blobs.size(digest).unwrap(), None);
        assert!(!blobs.remove(digest).unwrap());
        assert!(!blobs.abandon(digest).unwrap());
        assert!(
            matches!(blobs.verify(digest), Err(BlobError::Missing { digest: missing }) if missing == digest)
        );
    }

    #[test]
    fn ranges_end_where_the_blob_ends() {
        let (_dir, blobs) = store();
        let digest = blobs.put_bytes(b"0123456789").unwrap();
        let reader = blobs.reader(digest).unwrap().unwrap();
        let check = |offset, length, expected: &str| {
            let mut buffer = vec![b'?'; length];
            let count = reader.read_range(offset, &mut buffer).unwrap();
            assert_eq!(String::from_utf8_lossy(&buffer[..count]), expected, "{length} from {offset}");
            assert!(buffer[count..].iter().all(|&byte| byte == b'?'), "nothing beyond the count is touched");
        };
        check(0, 0, "");
        check(0, 1, "0");
        check(0, 10, "0123456789");
        check(0, 11, "0123456789");
        check(9, 1, "9");
        check(9, 5, "9");
        check(10, 5, "");
        check(11, 5, "");
        check(u64::MAX, 5, "");
        check(3, 4, "3456");
    }

    #[test]
    fn the_list_is_sorted_and_leaves_strangers_alone() {
        let (_dir, blobs) = store();
        let mut expected: Vec<(Digest, u64)> =
            (1..=40).map(|size| (blobs.put_bytes(&vec![7; size]).unwrap(), size as u64)).collect();
        expected.sort();
        let root = blobs.home.layout.root();
        fs::write(root.join("00/README"), "not ours").unwrap();
        let elsewhere = Digest::of(b"in the wrong directory").to_string();
        let wrong = if elsewhere.starts_with("00") { "01" } else { "00" };
        fs::write(root.join(wrong).join(&elsewhere), "not ours").unwrap();
        fs::write(root.join("ab").join("AB".repeat(32)), "not ours").unwrap();

        assert_eq!(blobs.list().unwrap(), expected);
        assert_eq!(blobs.total_bytes().unwrap(), (1..=40).sum::<u64>());

        let (gone, size) = expected.remove(11);
        assert!(blobs.remove(gone).unwrap());
        assert_eq!(blobs.list().unwrap(), expected);
        assert_eq!(blobs.total_bytes().unwrap(), (1..=40).sum::<u64>() - size);
        assert!(root.join("00/README").exists());
    }

    #[test]
    fn a_reader_outlives_the_removal_of_its_blob() {
        let (_dir, blobs) = store();
        let digest = blobs.put_bytes(b"still being sent").unwrap();
        let mut reader = blobs.reader(digest).unwrap().unwrap();
        assert!(blobs.remove(digest).unwrap());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still being sent");
    }

    #[test]
    fn verify_finds_what_the_disk_did_and_a_fetch_heals_it() {
        let (_dir, blobs) = store();
        let content = vec![0x5a; 100_000];
        let digest = blobs.put_bytes(&content).unwrap();
        let path = blobs.home.layout.blob(digest);
        let damage = |bytes: &[u8]| {
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        };
        assert!(blobs.verify(digest).unwrap());

        damage(&content[..99_999]);
        assert!(!blobs.verify(digest).unwrap(), "truncated");

        let mut flipped = content.clone();
        flipped[70_000] ^= 0x10;
        damage(&flipped);
        assert!(!blobs.verify(digest).unwrap(), "one bit");

        let mut fetch = blobs.fetch(digest, Some(100_000)).unwrap();
        fetch.write(&content).unwrap();
        fetch.finish().unwrap();
        assert!(blobs.verify(digest).unwrap());
    }

    #[test]
    fn a_blob_that_shrinks_under_its_reader_is_an_error_not_a_short_answer() {
        let (_dir, blobs) = store();
        let digest = blobs.put_bytes(b"0123456789").unwrap();
        let path = blobs.home.layout.blob(digest);
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"0123456789").unwrap();
        let reader = blobs.reader(digest).unwrap().unwrap();
        File::options().write(true).open(&path).unwrap().set_len(5).unwrap();
        let error = reader.read_range(0, &mut [0; 10]).unwrap_err();
        assert!(matches!(&error, BlobError::Read { digest: of, .. } if *of == digest), "{error:?}");
    }

    #[test]
    fn a_store_that_cannot_be_opened_says_which_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("blobs");
        fs::write(&file, "in the way").unwrap();
        let error = Blobs::open(&file).unwrap_err();
        assert!(matches!(&error, BlobError::Open { path, .. } if path.starts_with(&file)), "{error:?}");

        let orphan = dir.path().join("no/blobs");
        let error = Blobs::open(&orphan).unwrap_err();
        assert!(matches!(&error, BlobError::Open { path, .. } if *path == orphan), "{error:?}");
    }

    #[test]
    fn a_relative_directory_needs_no_parent_in_its_name() {
        expect![[r#"Some(".")"#]].assert_eq(&format!("{:?}", layout::parent_of(Path::new("blobs"))));
        expect![[r#"Some("/var")"#]].assert_eq(&format!("{:?}", layout::parent_of(Path::new("/var/blobs"))));
        expect!["None"].assert_eq(&format!("{:?}", layout::parent_of(Path::new("/"))));
    }

    #[test]
    fn errors_read_like_sentences() {
        let digest = Digest([0xab; 32]);
        let path = PathBuf::from("/b/partial/ab");
        let raw = io::Error::from_raw_os_error;
        let check = |error: BlobError, expected: Expect| {
            expected.assert_eq(&error.to_string().replace(&"ab".repeat(32), "abab…"))
        };
        check(
            BlobError::writing(Some(digest), &path, raw(28)),
            expect!["the disk is full: no room for blob abab… at /b/partial/ab"],
        );
        check(
            BlobError::writing(None, &path, raw(122)),
            expect!["the disk is full: no room for a new blob at /b/partial/ab"],
        );
        check(BlobError::writing(None, &path, raw(27)), expect!["write a new blob to /b/partial/ab"]);
        check(
            BlobError::publishing(digest, path.clone(), raw(28)),
            expect!["the disk is full: no room for blob abab… at /b/partial/ab"],
        );
        check(
            BlobError::publishing(digest, path.clone(), raw(5)),
            expect!["publish blob abab… as /b/partial/ab"],
        );
        check(
            BlobError::opening(&path, raw(28)),
            expect!["the disk is full: no room for a new blob at /b/partial/ab"],
        );
        check(BlobError::opening(&path, raw(13)), expect!["open the blob store at /b/partial/ab"]);
        check(
            BlobError::TooShort { digest, announced: 10, found: 3 },
            expect!["blob abab… ended after 3 of 10 bytes"],
        );
    }
}
