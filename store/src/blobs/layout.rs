//! Where things lie.
//!
//! ```text
//! <root>/4f/4f53cda1…   a complete blob, read-only; the two digits are the first of its name
//! <root>/partial/9b02…  a download by digest, as far as it came
//! <root>/incoming/17    a put, which has no name yet
//! ```
//!
//! All directories are made and synced when the store is opened, so that later one sync of one
//! directory is enough to make a new name last.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use sync::blob::Digest;

use super::BlobError;

/// The paths of one store.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Makes the directories that are missing below `root`, and `root` itself, and makes them last.
    pub(super) fn create(root: &Path) -> Result<Self, BlobError> {
        let layout = Layout { root: root.to_owned() };
        create_dir(root)?;
        for dir in layout.shards().chain([layout.partials(), layout.incomings()]) {
            create_dir(&dir)?;
        }
        // Also when nothing was missing: whoever made them may have been killed before syncing.
        for dir in [Some(root), parent_of(root)].into_iter().flatten() {
            sync_dir(dir).map_err(|source| BlobError::opening(dir, source))?;
        }
        Ok(layout)
    }

    #[cfg(test)]
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the complete blob `digest` is.
    pub(super) fn blob(&self, digest: Digest) -> PathBuf {
        let name = digest.to_string();
        let mut path = self.root.join(&name[..2]);
        path.push(name);
        path
    }

    /// Where the unfinished download of `digest` is.
    pub(super) fn partial(&self, digest: Digest) -> PathBuf {
        self.partials().join(digest.to_string())
    }

    /// Where the put with this number is.
    pub(super) fn incoming(&self, number: u64) -> PathBuf {
        self.incomings().join(number.to_string())
    }

    /// The directory of all puts.
    pub(super) fn incomings(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Makes the name of a blob that was moved into place last through a power cut.
    pub(super) fn sync_name(&self, digest: Digest) -> Result<(), BlobError> {
        let path = self.blob(digest);
        let shard = path.parent().expect("a blob lies in a directory");
        sync_dir(shard).map_err(|source| BlobError::publishing(digest, path, source))
    }

    /// All complete blobs with their sizes, by ascending digest.
    pub(super) fn list_blobs(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        let mut blobs = Vec::new();
        for shard in self.shards() {
            blobs.extend(list(&shard, |digest| self.blob(digest))?);
        }
        Ok(blobs)
    }

    /// All unfinished downloads with what is there of them, by ascending digest.
    pub(super) fn list_partials(&self) -> Result<Vec<(Digest, u64)>, BlobError> {
        list(&self.partials(), |digest| self.partial(digest))
    }

    fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    fn shards(&self) -> impl Iterator<Item = PathBuf> {
        (0..=u8::MAX).map(|byte| self.root.join(format!("{byte:02x}")))
    }
}

/// The directory that holds the name of `path`, if it is not the root of all.
pub(super) fn parent_of(path: &Path) -> Option<&Path> {
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

fn create_dir(path: &Path) -> Result<(), BlobError> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(BlobError::opening(path, source)),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The files in `dir` that are exactly where `place` would have put them, sorted.
fn list(dir: &Path, place: impl Fn(Digest) -> PathBuf) -> Result<Vec<(Digest, u64)>, BlobError> {
    let error = |source| BlobError::List { path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if place(digest) != entry.path() {
            continue;
        }
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => found.push((digest, metadata.len())),
            Ok(_) => {}
            // Finished or removed since the directory was read.
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(error(source)),
        }
    }
    found.sort_unstable();
    Ok(found)
}
