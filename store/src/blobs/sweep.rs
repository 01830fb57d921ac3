//! What becomes of files that nobody writes to any more.
//!
//! A living [`super::Put`] or [`super::Fetch`] holds a lock on its file, which the system releases with
//! the process, however it ends. A file that can be locked is abandoned, whatever its age or name.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use sync::blob::Digest;

use super::{BlobError, layout::Layout};

/// Removes abandoned puts, and abandoned downloads of blobs that are complete.
///
/// A download and a put may bring the same blob; whichever comes second leaves its file unused.
pub(super) fn sweep(layout: &Layout) -> Result<(), BlobError> {
    let incomings = layout.incomings();
    let listing = |source| BlobError::List { path: incomings.clone(), source };
    for entry in fs::read_dir(&incomings).map_err(listing)? {
        let entry = entry.map_err(listing)?;
        if entry.file_type().map_err(listing)?.is_file() {
            sweep_file(&entry.path())?;
        }
    }
    for (digest, _) in layout.list_partials()? {
        if layout.blob(digest).exists() {
            sweep_file(&layout.partial(digest))?;
        }
    }
    Ok(())
}

/// Removes the complete blob at `path`; returns whether there was one.
pub(super) fn remove(digest: Digest, path: PathBuf) -> Result<bool, BlobError> {
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(BlobError::Remove { digest, path, source }),
    }
}

/// Removes the unfinished download at `path` unless somebody is at it; returns whether there was one.
pub(super) fn abandon(digest: Digest, path: PathBuf) -> Result<bool, BlobError> {
    match remove_unlocked(&path) {
        Ok(Found::Nothing) => Ok(false),
        Ok(Found::Abandoned) => Ok(true),
        Ok(Found::InUse) => Err(BlobError::Busy { digest, path }),
        Err(source) => Err(BlobError::Remove { digest, path, source }),
    }
}

fn sweep_file(path: &Path) -> Result<(), BlobError> {
    match remove_unlocked(path) {
        Ok(Found::Nothing | Found::Abandoned | Found::InUse) => Ok(()),
        Err(source) => Err(BlobError::Sweep { path: path.to_owned(), source }),
    }
}

enum Found {
    Nothing,
    Abandoned,
    InUse,
}

fn remove_unlocked(path: &Path) -> io::Result<Found> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(source),
    };
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => return Ok(Found::InUse),
        Err(TryLockError::Error(source)) => return Err(source),
        Ok(()) => {}
    }
    // Between opening and locking, the file may have been finished and its name taken by another.
    if !is_at(&file, path)? {
        return Ok(Found::InUse);
    }
    fs::remove_file(path)?;
    Ok(Found::Abandoned)
}

/// Whether `path` is a name of this very file.
///
/// A lock belongs to the file, not to its name: only after locking is it known whose name one has.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(source),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Blobs, *};

    fn incoming(blobs: &Blobs) -> usize {
        fs::read_dir(blobs.home.layout.incomings()).unwrap().count()
    }

    #[test]
    fn opening_sweeps_puts_of_the_dead_and_spares_those_of_the_living() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        // What a killed process leaves: a file without a lock.
        fs::write(blobs.home.layout.incoming(0), "half of some").unwrap();
        fs::write(blobs.home.layout.incoming(1), "half of another").unwrap();
        let mut living = blobs.put().unwrap();
        living.write(b"still growing").unwrap();
        assert_eq!(incoming(&blobs), 3);

        let second = Blobs::open(dir.path()).unwrap();
        assert_eq!(incoming(&blobs), 1);

        // Both count from their own start and must not meet on one number.
        let mut beside = second.put().unwrap();
        beside.write(b"of the second handle").unwrap();
        let mut third = second.put().unwrap();
        third.write(b"and once more").unwrap();
        for put in [living, beside, third] {
            let (digest, _) = put.finish(None).unwrap();
            assert!(blobs.verify(digest).unwrap());
        }
        assert_eq!((incoming(&blobs), blobs.list().unwrap().len()), (0, 3));
    }

    #[test]
    fn opening_keeps_partial_downloads_until_their_blob_is_here() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let (here, wanted) = (Digest::of(b"here"), Digest::of(b"wanted"));
        for digest in [here, wanted] {
            blobs.fetch(digest, None).unwrap().write(b"he").unwrap();
        }
        blobs.put_bytes(b"here").unwrap();
        assert_eq!(blobs.unfinished().unwrap().len(), 2);

        let blobs = Blobs::open(dir.path()).unwrap();
        assert_eq!(blobs.unfinished().unwrap(), [(wanted, 2)]);
        assert!(blobs.contains(here).unwrap());
    }

    #[test]
    fn a_file_that_was_renamed_or_replaced_is_not_at_its_old_name() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("partial"), dir.path().join("published"));
        let file = File::create(&old).unwrap();
        assert!(is_at(&file, &old).unwrap());
        fs::rename(&old, &new).unwrap();
        assert!(!is_at(&file, &old).unwrap());
        fs::write(&old, "of another fetch").unwrap();
        assert!(!is_at(&file, &old).unwrap());
        assert!(is_at(&file, &new).unwrap());
    }

    #[test]
    fn a_download_is_abandoned_only_when_nobody_is_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = Digest::of(b"unwanted");
        let mut fetch = blobs.fetch(digest, None).unwrap();
        fetch.write(b"unw").unwrap();
        assert!(matches!(blobs.abandon(digest), Err(BlobError::Busy { .. })));
        drop(fetch);
        assert!(blobs.abandon(digest).unwrap());
        assert!(!blobs.abandon(digest).unwrap());
        assert_eq!(blobs.unfinished().unwrap(), []);
    }
}
