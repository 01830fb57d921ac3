//! Blobs on their way in.
//!
//! [`Put`] is for bytes whose digest shows at the end (an upload, an import): it leaves nothing behind
//! unless it finishes. [`Fetch`] is for a digest that is wanted: its file stays whatever happens and the
//! next fetch goes on from there. Both hash while they write, and end in the same order, *data before
//! name*: sync the file, move it to its name, sync the directory.
//!
//! Deliberately absent: verifying before the last byte. What a crash or a bad source did to a partial
//! file shows when it is complete, and then all of it is fetched again.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use sync::blob::Digest;

use super::{BlobError, Home, layout::Layout, sweep::is_at};

/// A blob that gets its name at the end. Dropped before that, it leaves nothing.
#[derive(Debug)]
pub struct Put {
    home: Arc<Home>,
    path: PathBuf,
    /// Nothing once it has its name, and after a write failed.
    growing: Option<Growing>,
}

impl Put {
    pub(super) fn start(home: Arc<Home>) -> Result<Self, BlobError> {
        loop {
            let number = home.next_incoming.fetch_add(1, Ordering::Relaxed);
            let path = home.layout.incoming(number);
            let created = File::options().write(true).create_new(true).mode(0o444).open(&path);
            let file = match created {
                Ok(file) => file,
                // Another process puts into the same store and counts for itself.
                Err(source) if source.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(BlobError::writing(None, &path, source)),
            };
            // A sweep of another process may come between creating and locking; then try the next number.
            if lock(&file, &path).map_err(|source| BlobError::writing(None, &path, source))? {
                let growing = Growing { file, hasher: blake3::Hasher::new(), path: path.clone() };
                return Ok(Put { home, path, growing: Some(growing) });
            }
        }
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// `Full` or `Write`: what was written so far is removed at once, and every further call is
    /// `Broken`, because a blob with a gap would get a perfectly valid name.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let growing = self.growing.as_mut().ok_or_else(|| BlobError::Broken { path: self.path.clone() })?;
        growing.append(bytes).map_err(|source| {
            self.discard();
            BlobError::writing(None, &self.path, source)
        })
    }

    /// Gives the blob its name and returns that and its size in bytes. After this it is on disk for good.
    ///
    /// # Errors
    /// `Mismatch` when the bytes are not `expected`; `Full`, `Write`, `Publish`; `Broken` after a failed
    /// write. Nothing is published then and nothing is left behind.
    pub fn finish(mut self, expected: Option<Digest>) -> Result<(Digest, u64), BlobError> {
        let growing = self.growing.as_ref().ok_or_else(|| BlobError::Broken { path: self.path.clone() })?;
        let (found, size) = (growing.digest(), growing.len());
        if let Some(expected) = expected
            && expected != found
        {
            return Err(BlobError::Mismatch { expected, found });
        }
        growing.sync(found)?;
        growing.rename(&self.home.layout, found)?;
        self.growing = None;
        self.home.layout.sync_name(found)?;
        Ok((found, size))
    }

    fn discard(&mut self) {
        if let Some(growing) = self.growing.take() {
            growing.remove();
        }
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        self.discard();
    }
}

/// A blob that is wanted by name. Dropped before it is finished, it can be resumed.
#[derive(Debug)]
pub struct Fetch {
    home: Arc<Home>,
    digest: Digest,
    announced: Option<u64>,
    growing: Growing,
}

impl Fetch {
    pub(super) fn resume(home: Arc<Home>, digest: Digest, announced: Option<u64>) -> Result<Self, BlobError> {
        let path = home.layout.partial(digest);
        let file = open_partial(digest, &path)?;
        let mut growing = Growing { file, hasher: blake3::Hasher::new(), path };
        if let Err(source) = growing.take_up(announced) {
            return Err(BlobError::Read { digest, path: growing.path.clone(), source });
        }
        Ok(Fetch { home, digest, announced, growing })
    }

    /// The name of what is fetched.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes that are on disk; the next one that is needed, counted from 0.
    pub fn offset(&self) -> u64 {
        self.growing.len()
    }

    /// Appends `bytes`, which begin at [`Fetch::offset`].
    ///
    /// # Errors
    /// `TooLong` when they reach beyond the announced size: none of them is taken. `Full` and `Write`: as
    /// many as went in are kept, and `offset` says how many, so that this fetch or a later one can go on.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        if let Some(announced) = self.announced
            && bytes.len() as u64 > announced.saturating_sub(self.offset())
        {
            return Err(BlobError::TooLong { digest: self.digest, announced });
        }
        self.growing
            .append(bytes)
            .map_err(|source| BlobError::writing(Some(self.digest), &self.growing.path, source))
    }

    /// Verifies all bytes, those from before a crash included, publishes them under their name and
    /// returns how many there are. After this the blob is on disk for good.
    ///
    /// # Errors
    /// `TooShort` when bytes are missing: what is here is kept. `Mismatch` when these are not the bytes:
    /// all of them are removed, because nobody can say which are wrong. `Full`, `Write`, `Publish`: the blob
    /// stays wanted; what is here is kept, unless it was the sync that failed.
    pub fn finish(self) -> Result<u64, BlobError> {
        let Fetch { home, digest, announced, growing } = self;
        let (found, size) = (growing.digest(), growing.len());
        if let Some(announced) = announced
            && size < announced
        {
            return Err(BlobError::TooShort { digest, announced, found: size });
        }
        if found != digest {
            growing.remove();
            return Err(BlobError::Mismatch { expected: digest, found });
        }
        if let Err(error) = growing.sync(digest) {
            // After a failed sync the system forgets which pages are not on disk: they would read back as
            // good, the next sync would succeed, and a power cut would show what was lost.
            growing.remove();
            return Err(error);
        }
        growing.rename(&home.layout, digest)?;
        growing.make_read_only(&home.layout, digest)?;
        home.layout.sync_name(digest)?;
        Ok(size)
    }
}

/// Opens and locks the partial file of `digest`, new or as it was left.
fn open_partial(digest: Digest, path: &Path) -> Result<File, BlobError> {
    let error = |source| BlobError::writing(Some(digest), path, source);
    loop {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(error)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(BlobError::Busy { digest, path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(error(source)),
            // Whoever held the lock may have published the file meanwhile. It must not be written to any
            // more; open what has the name now.
            Ok(()) if is_at(&file, path).map_err(error)? => return Ok(file),
            Ok(()) => {}
        }
    }
}

/// Locks a file that was just made, unless somebody took it for abandoned; returns whether it is ours.
fn lock(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => is_at(file, path),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(source),
    }
}

/// A locked file that grows, and the hash of exactly the bytes that are in it.
#[derive(Debug)]
struct Growing {
    file: File,
    hasher: blake3::Hasher,
    path: PathBuf,
}

impl Growing {
    fn len(&self) -> u64 {
        self.hasher.count()
    }

    fn digest(&self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }

    /// Hashes what is in the file, or empties it where that is more than can be right.
    fn take_up(&mut self, announced: Option<u64>) -> io::Result<()> {
        let there = self.file.metadata()?.len();
        if announced.is_some_and(|announced| there > announced) {
            self.file.set_len(0)?;
        }
        self.hasher.update_reader(&self.file)?;
        Ok(())
    }

    /// Like `write_all`, but after an error it is known how much went in: a full disk takes the first half
    /// of a piece and refuses the second.
    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.hasher.update(&bytes[..count]);
                    bytes = &bytes[count..];
                }
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(source),
            }
        }
        Ok(())
    }

    fn sync(&self, digest: Digest) -> Result<(), BlobError> {
        self.file.sync_all().map_err(|source| BlobError::writing(Some(digest), &self.path, source))
    }

    /// Gives the file its name, in place of an equal one where there is one.
    fn rename(&self, layout: &Layout, digest: Digest) -> Result<(), BlobError> {
        let place = layout.blob(digest);
        fs::rename(&self.path, &place).map_err(|source| BlobError::publishing(digest, place, source))
    }

    /// Only after renaming: a partial file that is read-only could not be resumed.
    fn make_read_only(&self, layout: &Layout, digest: Digest) -> Result<(), BlobError> {
        let changed = self.file.metadata().and_then(|metadata| {
            let mut permissions = metadata.permissions();
            permissions.set_readonly(true);
            self.file.set_permissions(permissions)
        });
        changed.map_err(|source| BlobError::publishing(digest, layout.blob(digest), source))
    }

    /// Removes the file. Where that fails, the next sweep or fetch deals with it, so it is not an error here.
    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        // Closing is not enough: a process that is just being started holds copies of all our files until
        // it runs its program, and the lock would stay with them.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::unix::fs::PermissionsExt,
        process::{Command, Stdio},
    };

    use super::{super::Blobs, *};

    /// Bytes that do not repeat within a block, so that a piece in the wrong place changes the digest.
    fn content(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn store() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        (dir, blobs)
    }

    fn incoming(blobs: &Blobs) -> usize {
        fs::read_dir(blobs.home.layout.incomings()).unwrap().count()
    }

    /// Asserts that `digest` is here with these bytes, read-only, and that nothing unfinished is left.
    fn assert_published(blobs: &Blobs, digest: Digest, bytes: &[u8]) {
        let mut buffer = vec![0; bytes.len() + 1];
        let count = blobs.reader(digest).unwrap().expect("published").read_range(0, &mut buffer).unwrap();
        assert!(&buffer[..count] == bytes, "the bytes are those that were written");
        let mode = fs::metadata(blobs.home.layout.blob(digest)).unwrap().permissions().mode();
        assert_eq!(mode & 0o222, 0, "nobody may write to a complete blob, mode {mode:o}");
        assert_eq!((incoming(blobs), blobs.unfinished().unwrap()), (0, vec![]));
    }

    #[test]
    fn pieces_of_any_size_make_the_same_blob() {
        let bytes = content(200_003);
        let digest = Digest::of(&bytes);
        for piece in [1, 7, 1_023, 1_024, 1_025, 65_536, 200_003, 500_000] {
            // One byte at a time is a system call for each: a shorter blob tells as much.
            let bytes = if piece == 1 { &bytes[..5_000] } else { &bytes };
            let digest = if piece == 1 { Digest::of(bytes) } else { digest };

            let (_dir, blobs) = store();
            let mut put = blobs.put().unwrap();
            bytes.chunks(piece).for_each(|piece| put.write(piece).unwrap());
            assert_eq!(put.finish(Some(digest)).unwrap(), (digest, bytes.len() as u64));
            assert_published(&blobs, digest, bytes);

            let (_dir, blobs) = store();
            let mut fetch = blobs.fetch(digest, Some(bytes.len() as u64)).unwrap();
            bytes.chunks(piece).for_each(|piece| fetch.write(piece).unwrap());
            assert_eq!(fetch.finish().unwrap(), bytes.len() as u64);
            assert_published(&blobs, digest, bytes);
        }
    }

    #[test]
    fn a_put_with_the_wrong_digest_publishes_nothing() {
        let (_dir, blobs) = store();
        let (asked, sent) = (Digest::of(b"asked for"), Digest::of(b"sent"));
        let mut put = blobs.put().unwrap();
        put.write(b"sent").unwrap();
        assert_eq!(incoming(&blobs), 1);
        let error = put.finish(Some(asked)).unwrap_err();
        assert!(
            matches!(error, BlobError::Mismatch { expected, found } if (expected, found) == (asked, sent)),
            "{error:?}"
        );
        assert_eq!((incoming(&blobs), blobs.list().unwrap()), (0, vec![]));
    }

    #[test]
    fn a_put_that_is_dropped_leaves_nothing() {
        let (_dir, blobs) = store();
        let mut put = blobs.put().unwrap();
        put.write(b"the browser was closed").unwrap();
        drop(put);
        assert_eq!((incoming(&blobs), blobs.list().unwrap()), (0, vec![]));
    }

    #[test]
    fn the_same_bytes_twice_are_one_blob() {
        let (_dir, blobs) = store();
        let first = blobs.put_bytes(b"kernel").unwrap();
        let second = blobs.put_bytes(b"kernel").unwrap();
        assert_eq!(first, second);
        assert_eq!(blobs.list().unwrap(), [(first, 6)]);
        assert_published(&blobs, first, b"kernel");
    }

    #[test]
    fn two_threads_may_put_the_same_bytes_at_once() {
        let (_dir, blobs) = store();
        let bytes = content(300_000);
        let start = std::sync::Barrier::new(2);
        let put = || {
            start.wait();
            let mut digests = Vec::new();
            for _ in 0..8 {
                let mut put = blobs.put().unwrap();
                bytes.chunks(10_000).for_each(|piece| put.write(piece).unwrap());
                digests.push(put.finish(None).unwrap().0);
            }
            digests
        };
        let (mine, other) = std::thread::scope(|scope| {
            let other = scope.spawn(put);
            (put(), other.join().unwrap())
        });
        let digest = Digest::of(&bytes);
        assert_eq!((mine, other), (vec![digest; 8], vec![digest; 8]));
        assert_eq!(blobs.list().unwrap(), [(digest, 300_000)]);
        assert_published(&blobs, digest, &bytes);
    }

    #[test]
    fn t6_a_dropped_fetch_is_resumed_where_it_stopped() {
        let (dir, blobs) = store();
        let bytes = content(150_000);
        let digest = Digest::of(&bytes);
        let mut fetch = blobs.fetch(digest, Some(150_000)).unwrap();
        assert_eq!((fetch.digest(), fetch.offset()), (digest, 0));
        fetch.write(&bytes[..70_001]).unwrap();
        drop(fetch);
        assert!(!blobs.contains(digest).unwrap());
        drop(blobs);

        let blobs = Blobs::open(dir.path()).unwrap();
        assert_eq!(blobs.unfinished().unwrap(), [(digest, 70_001)]);
        let mut fetch = blobs.fetch(digest, Some(150_000)).unwrap();
        assert_eq!(fetch.offset(), 70_001);
        fetch.write(&bytes[70_001..]).unwrap();
        assert_eq!(fetch.finish().unwrap(), 150_000);
        assert_published(&blobs, digest, &bytes);
    }

    #[test]
    fn t6_a_fetch_that_ends_early_keeps_what_came() {
        let (_dir, blobs) = store();
        let digest = Digest::of(b"0123456789");
        let mut fetch = blobs.fetch(digest, Some(10)).unwrap();
        fetch.write(b"0123").unwrap();
        let error = fetch.finish().unwrap_err();
        assert!(matches!(error, BlobError::TooShort { announced: 10, found: 4, .. }), "{error:?}");
        assert_eq!(blobs.unfinished().unwrap(), [(digest, 4)]);
        assert_eq!(blobs.list().unwrap(), []);
    }

    #[test]
    fn t6_a_bit_that_flipped_while_nobody_looked_is_found() {
        let (_dir, blobs) = store();
        let bytes = content(100_000);
        let digest = Digest::of(&bytes);
        blobs.fetch(digest, Some(100_000)).unwrap().write(&bytes[..60_000]).unwrap();
        let path = blobs.home.layout.partial(digest);
        let mut on_disk = fs::read(&path).unwrap();
        on_disk[12_345] ^= 1;
        fs::write(&path, &on_disk).unwrap();

        let mut fetch = blobs.fetch(digest, Some(100_000)).unwrap();
        assert_eq!(fetch.offset(), 60_000);
        fetch.write(&bytes[60_000..]).unwrap();
        let error = fetch.finish().unwrap_err();
        on_disk.extend_from_slice(&bytes[60_000..]);
        let really = Digest::of(&on_disk);
        assert!(
            matches!(error, BlobError::Mismatch { expected, found } if (expected, found) == (digest, really)),
            "{error:?}"
        );
        assert_eq!((blobs.list().unwrap(), blobs.unfinished().unwrap()), (vec![], vec![]));

        let mut fetch = blobs.fetch(digest, Some(100_000)).unwrap();
        assert_eq!(fetch.offset(), 0, "bad bytes are not resumed");
        fetch.write(&bytes).unwrap();
        fetch.finish().unwrap();
        assert_published(&blobs, digest, &bytes);
    }

    #[test]
    fn t6_a_source_that_sends_other_bytes_publishes_nothing() {
        let (_dir, blobs) = store();
        let digest = Digest::of(b"vmlinuz");
        for size in [None, Some(7)] {
            let mut fetch = blobs.fetch(digest, size).unwrap();
            fetch.write(b"malware").unwrap();
            let error = fetch.finish().unwrap_err();
            assert!(matches!(error, BlobError::Mismatch { expected, .. } if expected == digest), "{error:?}");
            assert_eq!((blobs.list().unwrap(), blobs.unfinished().unwrap()), (vec![], vec![]));
        }
    }

    #[test]
    fn more_bytes_than_announced_are_not_taken() {
        let (_dir, blobs) = store();
        let digest = Digest::of(b"0123456789");
        let mut fetch = blobs.fetch(digest, Some(10)).unwrap();
        fetch.write(b"01234567").unwrap();
        let error = fetch.write(b"89!").unwrap_err();
        assert!(matches!(error, BlobError::TooLong { announced: 10, .. }), "{error:?}");
        assert_eq!((fetch.offset(), blobs.unfinished().unwrap()), (8, vec![(digest, 8)]));
        // Another source may be right where this one was wrong.
        fetch.write(b"89").unwrap();
        assert!(matches!(fetch.write(b"!"), Err(BlobError::TooLong { .. })));
        assert_eq!(fetch.finish().unwrap(), 10);
        assert_published(&blobs, digest, b"0123456789");
    }

    #[test]
    fn a_partial_file_longer_than_announced_is_begun_anew() {
        let (_dir, blobs) = store();
        let digest = Digest::of(b"0123456789");
        blobs.fetch(digest, None).unwrap().write(b"something much longer").unwrap();
        let mut fetch = blobs.fetch(digest, Some(10)).unwrap();
        assert_eq!(fetch.offset(), 0);
        fetch.write(b"0123456789").unwrap();
        fetch.finish().unwrap();
        assert_published(&blobs, digest, b"0123456789");
    }

    #[test]
    fn one_blob_is_fetched_by_one_at_a_time() {
        let (dir, blobs) = store();
        let digest = Digest::of(b"wanted twice");
        let mut first = blobs.fetch(digest, None).unwrap();
        first.write(b"wanted ").unwrap();
        let beside = Blobs::open(dir.path()).unwrap();
        for blobs in [&blobs, &beside] {
            let error = blobs.fetch(digest, None).unwrap_err();
            assert!(matches!(&error, BlobError::Busy { digest: busy, .. } if *busy == digest), "{error:?}");
        }
        first.write(b"twice").unwrap();
        first.finish().unwrap();
        assert_published(&blobs, digest, b"wanted twice");
        // The lock went with the first; what is published must not be what the next one writes to.
        blobs.fetch(digest, None).unwrap().write(b"rubbish").unwrap();
        assert!(blobs.verify(digest).unwrap());
    }

    #[test]
    fn a_fetch_gives_its_lock_up_even_where_a_starting_process_still_has_its_file() {
        let (_dir, blobs) = store();
        let digest = Digest::of(b"held by two");
        let fetch = blobs.fetch(digest, None).unwrap();
        // What a fork does until it executes.
        let _copy = fetch.growing.file.try_clone().unwrap();
        drop(fetch);
        blobs.fetch(digest, None).unwrap();
    }

    /// `/dev/full` refuses every byte with ENOSPC, for everybody and without any privilege: the system's own
    /// error on the real path, only the file is another.
    fn full_device() -> File {
        File::options().write(true).open("/dev/full").unwrap()
    }

    #[test]
    fn a_full_disk_keeps_what_a_fetch_has_and_the_fetch_goes_on_when_there_is_room() {
        let (_dir, blobs) = store();
        let bytes = content(100_000);
        let digest = Digest::of(&bytes);
        let mut fetch = blobs.fetch(digest, Some(100_000)).unwrap();
        fetch.write(&bytes[..40_000]).unwrap();

        let room = std::mem::replace(&mut fetch.growing.file, full_device());
        let error = fetch.write(&bytes[40_000..]).unwrap_err();
        let path = blobs.home.layout.partial(digest);
        assert!(
            matches!(&error, BlobError::Full { digest: Some(of), path: at, source }
                if *of == digest && *at == path && source.raw_os_error() == Some(28)),
            "{error:?}"
        );
        assert_eq!(fetch.offset(), 40_000);
        assert_eq!((blobs.list().unwrap(), blobs.unfinished().unwrap()), (vec![], vec![(digest, 40_000)]));

        // The same fetch goes on, as far as it gets, ...
        fetch.growing.file = room;
        fetch.write(&bytes[40_000..70_000]).unwrap();
        drop(fetch);
        // ... and a later one does.
        let mut fetch = blobs.fetch(digest, Some(100_000)).unwrap();
        assert_eq!(fetch.offset(), 70_000);
        fetch.write(&bytes[70_000..]).unwrap();
        fetch.finish().unwrap();
        assert_published(&blobs, digest, &bytes);
    }

    #[test]
    fn a_full_disk_takes_the_file_of_a_put_away_and_lets_nothing_incomplete_get_a_name() {
        let (_dir, blobs) = store();
        let mut put = blobs.put().unwrap();
        put.write(b"first half, ").unwrap();
        put.growing.as_mut().unwrap().file = full_device();
        let error = put.write(b"second half").unwrap_err();
        assert!(matches!(&error, BlobError::Full { digest: None, .. }), "{error:?}");
        assert_eq!(incoming(&blobs), 0, "the room is given back at once");
        assert!(matches!(put.write(b"more"), Err(BlobError::Broken { .. })));
        assert!(matches!(put.finish(None), Err(BlobError::Broken { .. })));
        assert_eq!((incoming(&blobs), blobs.list().unwrap()), (0, vec![]));
    }

    #[test]
    fn a_sync_that_fails_leaves_no_bytes_that_could_be_taken_for_good() {
        let (_dir, blobs) = store();
        let digest = Digest::of(b"never reached the disk");
        let mut fetch = blobs.fetch(digest, None).unwrap();
        fetch.write(b"never reached the disk").unwrap();
        // A pipe cannot be synced (EINVAL), whoever asks.
        let (_reader, writer) = io::pipe().unwrap();
        fetch.growing.file = File::from(std::os::fd::OwnedFd::from(writer));
        let error = fetch.finish().unwrap_err();
        assert!(matches!(&error, BlobError::Write { digest: Some(of), .. } if *of == digest), "{error:?}");
        assert_eq!((blobs.list().unwrap(), blobs.unfinished().unwrap()), (vec![], vec![]));
    }

    // What only another process can show runs in a child: this same test program, told by a variable to
    // play the child's part of the one test that it is given.

    const CHILD: &str = "HOLDFAST_TEST_BLOBS";

    fn child_part() -> Option<PathBuf> {
        std::env::var_os(CHILD).map(PathBuf::from)
    }

    /// The command that runs the child's part of `test` on the store in `dir`, after `script` in a shell.
    fn child(test: &str, dir: &Path, script: &str) -> Command {
        let (_, module) = module_path!().split_once("::").unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", &format!("{script}; exec \"$@\""), "sh"]);
        command.arg(std::env::current_exe().unwrap()).arg(format!("{module}::{test}"));
        command.args(["--exact", "--nocapture", "--include-ignored"]).env(CHILD, dir);
        command
    }

    fn assert_succeeds(mut command: Command) {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{}: {text}", output.status);
    }

    #[test]
    fn t6_a_killed_process_leaves_a_fetch_to_resume_and_a_put_to_sweep() {
        let bytes = content(100_000);
        let digest = Digest::of(&bytes);
        if let Some(dir) = child_part() {
            let blobs = Blobs::open(dir).unwrap();
            let mut fetch = blobs.fetch(digest, Some(100_000)).unwrap();
            fetch.write(&bytes[..30_000]).unwrap();
            let mut put = blobs.put().unwrap();
            put.write(&bytes[..30_000]).unwrap();
            println!("half way");
            io::stdin().lines().for_each(drop);
            panic!("the parent ends this process before it ends the input");
        }

        let dir = tempfile::tempdir().unwrap();
        let mut command =
            child("t6_a_killed_process_leaves_a_fetch_to_resume_and_a_put_to_sweep", dir.path(), ":");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        assert!(output.any(|line| line.unwrap().contains("half way")));

        // While it lives its files are its own, also for another process.
        let blobs = Blobs::open(dir.path()).unwrap();
        assert!(matches!(blobs.fetch(digest, Some(100_000)), Err(BlobError::Busy { .. })));
        assert_eq!(incoming(&blobs), 1);

        process.kill().unwrap();
        process.wait().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        assert_eq!(incoming(&blobs), 0);
        let mut fetch = blobs.fetch(digest, Some(100_000)).unwrap();
        assert_eq!(fetch.offset(), 30_000);
        fetch.write(&bytes[30_000..]).unwrap();
        fetch.finish().unwrap();
        assert_published(&blobs, digest, &bytes);
    }

    #[test]
    fn a_write_that_is_cut_short_counts_exactly_what_went_in() {
        // A limit on the size of files makes the system take a part of a write and refuse the rest, as a full
        // disk does, and needs no privilege. The cause is EFBIG then, which is not `Full`.
        let bytes = content(100_000);
        let digest = Digest::of(&bytes);
        if let Some(dir) = child_part() {
            let blobs = Blobs::open(dir).unwrap();
            let mut fetch = blobs.fetch(digest, Some(100_000)).unwrap();
            let error = fetch.write(&bytes).unwrap_err();
            assert!(
                matches!(&error, BlobError::Write { source, .. } if source.kind() == io::ErrorKind::FileTooLarge),
                "{error:?}"
            );
            // Shells count in blocks of 512 or of 1,024 bytes.
            assert!(matches!(fetch.offset(), 20_480 | 40_960), "{}", fetch.offset());
            let error = blobs.put_bytes(&bytes).unwrap_err();
            assert!(matches!(&error, BlobError::Write { digest: None, .. }), "{error:?}");
            assert_eq!(incoming(&blobs), 0);
            return;
        }

        let dir = tempfile::tempdir().unwrap();
        let limit = "trap '' XFSZ; ulimit -f 40";
        assert_succeeds(child("a_write_that_is_cut_short_counts_exactly_what_went_in", dir.path(), limit));

        let blobs = Blobs::open(dir.path()).unwrap();
        assert_eq!(blobs.list().unwrap(), []);
        let mut fetch = blobs.fetch(digest, Some(100_000)).unwrap();
        let offset = usize::try_from(fetch.offset()).unwrap();
        assert!(offset > 0);
        fetch.write(&bytes[offset..]).unwrap();
        fetch.finish().unwrap();
        assert_published(&blobs, digest, &bytes);
    }

    #[test]
    #[ignore = "mounts a file system of 256 KiB: needs root or user namespaces, `unshare` and `mount`"]
    fn a_file_system_that_is_really_full_loses_nothing() {
        let bytes = content(200_000);
        let digest = Digest::of(&bytes);
        if let Some(dir) = child_part() {
            let blobs = Blobs::open(dir).unwrap();
            let ballast = blobs.put_bytes(&[0; 150_000]).unwrap();
            let mut fetch = blobs.fetch(digest, Some(200_000)).unwrap();
            let error = bytes.chunks(30_000).find_map(|piece| fetch.write(piece).err()).unwrap();
            assert!(matches!(&error, BlobError::Full { digest: Some(of), .. } if *of == digest), "{error:?}");
            let offset = fetch.offset();
            assert!(!offset.is_multiple_of(30_000), "the last piece was cut at {offset}");
            let error = blobs.put_bytes(b"one byte would be too much").unwrap_err();
            assert!(matches!(&error, BlobError::Full { digest: None, .. }), "{error:?}");
            assert_eq!(incoming(&blobs), 0);
            assert_eq!(blobs.list().unwrap(), [(ballast, 150_000)]);
            assert_eq!(blobs.unfinished().unwrap(), [(digest, offset)]);

            assert!(blobs.remove(ballast).unwrap());
            drop(fetch);
            let mut fetch = blobs.fetch(digest, Some(200_000)).unwrap();
            assert_eq!(fetch.offset(), offset);
            fetch.write(&bytes[usize::try_from(offset).unwrap()..]).unwrap();
            fetch.finish().unwrap();
            assert_published(&blobs, digest, &bytes);
            return;
        }

        let dir = tempfile::tempdir().unwrap();
        let mount = format!("mount -t tmpfs -o size=256k none '{}'", dir.path().display());
        let inside = child("a_file_system_that_is_really_full_loses_nothing", dir.path(), &mount);
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount"]).arg(inside.get_program()).args(inside.get_args());
        assert_succeeds({
            command.env(CHILD, dir.path());
            command
        });
    }
}
