//! Archives of the journal, and whether the journal is what was written.
//!
//! [`make`] writes the old beginnings of all chains into a file and lets the database go of them. A file is a CBOR
//! sequence, packed with zstd, and is called after its digest: a head that names the chains, then their entries, byte
//! for byte. [`verify`] walks what the database has, [`verify_file`] an archive, both beside a running server.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use store::{
    Store, StoreError,
    audit::{self, Chain},
    retention::{ArchiveHead, SHORTEST},
};
use sync::{
    blob::Digest,
    journal::{Mark, Stream},
    time::Timestamp,
};

use crate::{
    enrolment::ca::Authority,
    evidence,
    failure::{Exit, Failure, chain},
};

/// Folder of the archives in the data folder.
pub const FOLDER: &str = "archive";

/// Entries in one archive at most; what is left goes into the next one.
const LARGEST: u64 = 1_000_000;

/// Bytes of an unpacked archive that are read at most.
const LARGEST_BYTES: u64 = 4 << 30;

/// An archive that was made.
#[derive(Debug)]
pub(crate) struct Made {
    /// The file.
    pub(crate) path: PathBuf,
    /// BLAKE3 digest of the file, and most of its name.
    pub(crate) digest: Digest,
    /// Entries in it.
    pub(crate) entries: u64,
    /// What to let go of.
    pub(crate) head: ArchiveHead,
}

/// Why no archive was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    /// Nothing that old may be archived.
    #[error("{0}")]
    Refused(String),
    /// The file could not be written.
    #[error("write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The database could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes entries older than `before` into a file in `data`. The database still has them afterwards: it is let go
/// of them in one transaction, [`store::Tx::trim_archived`], when the file is on the disk.
///
/// # Errors
/// When there is nothing to archive, or the file cannot be written; nothing is left of it then.
pub(crate) fn make(
    store: &Store,
    data: &Path,
    before: Timestamp,
    now: Timestamp,
) -> Result<Made, ArchiveError> {
    let newest = Timestamp(now.as_ms().saturating_sub(SHORTEST.as_millis() as u64));
    if before > newest {
        let why = format!(
            "a site that was restored takes from here what it lacks, so {} days are kept: {newest} is the newest \
             instant to archive before",
            SHORTEST.as_secs() / Duration::from_secs(86_400).as_secs()
        );
        return Err(ArchiveError::Refused(why));
    }
    let folder = data.join(FOLDER);
    let draft = folder.join("draft.new");
    let failed = |source| ArchiveError::Write { path: draft.clone(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
    let parts = store.read(|view| view.archivable(before, LARGEST))?;
    if parts.is_empty() {
        let why = format!(
            "no entry before {before} can leave: the newest of each chain stays, and what a site lacks"
        );
        return Err(ArchiveError::Refused(why));
    }
    let head = ArchiveHead::new(before, now, parts);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft);
    let hashing = Hashing { file: file.map_err(failed)?, hasher: blake3::Hasher::new() };
    let mut packer = zstd::stream::write::Encoder::new(hashing, 9).map_err(failed)?;
    let entries = store.read(|view| view.write_archive(&head, &mut packer))?;
    let Hashing { file, hasher } = packer.finish().map_err(failed)?;
    file.sync_all().map_err(failed)?;
    let digest = Digest(*hasher.finalize().as_bytes());
    let path = folder.join(format!("journal-{digest}.cbor.zst"));
    fs::rename(&draft, &path).map_err(failed)?;
    File::open(&folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(Made { path, digest, entries, head })
}

/// A file that is hashed while it is written.
struct Hashing {
    file: File,
    hasher: blake3::Hasher,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Walks every chain in the database of the data folder, or of a backup of one. `say` is told what is found, a line
/// a chain.
///
/// # Errors
/// For people, when something cannot be read, or is not what was written.
pub fn verify(data: &Path, say: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let authority = Authority::open(data).map_err(|error| unread(data, &error))?;
    let check = |mark: &Mark, stream: Stream, key: Option<&[u8]>| match stream {
        Stream::Site(_) => evidence::verified(mark, stream, key),
        Stream::Down(_) | Stream::Central => {
            let signer = mark.signer.as_ref().map(|it| it.to_vec()).unwrap_or_default();
            let signature = mark.signature.as_ref().map(|it| it.to_vec()).unwrap_or_default();
            authority.verify(&signer, &mark.statement(stream), &signature)
        }
    };
    let chains = audit::beside(data, |view| view.audit(&check)).map_err(|error| unread(data, &error))?;
    for chain in &chains {
        say(&line(chain));
    }
    let faults: Vec<String> = chains
        .iter()
        .filter_map(|it| Some(format!("{} in life {}: {}", it.stream, it.incarnation, it.fault.as_ref()?)))
        .collect();
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(
            Exit::Running,
            "the journal is not what was written",
            faults.join("; "),
            "keep this folder as evidence; look into a backup from before, and into the journals of the sites",
        )),
    }
}

fn line(chain: &Chain) -> String {
    let mut text = format!(
        "{} in life {}: {} entries up to {}",
        chain.stream, chain.incarnation, chain.entries, chain.last
    );
    for (after, upto, archive) in &chain.missing {
        text += &match archive {
            Some(digest) => format!("; {} to {upto} in archive {digest}", after + 1),
            None => format!("; {} to {upto} are not kept any more", after + 1),
        };
    }
    if let Some((seq, at)) = chain.signed {
        text += &format!("; signed up to {seq} at {at}");
    }
    if chain.fault.is_some() {
        text += "; DOES NOT FIT";
    }
    text
}

/// Proves that an archive is what was taken out of the database in `data`. `say` is told what is in it.
///
/// # Errors
/// For people, when it cannot be read or does not fit.
pub fn verify_file(data: &Path, file: &Path, say: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let bytes = fs::read(file).map_err(|error| unread(file, &error))?;
    let digest = Digest::of(&bytes);
    let wrong = |why: String| {
        Failure::new(
            Exit::Running,
            format!("{} is not what was taken out of the journal", file.display()),
            why,
            "take another copy of the archive; its name holds its digest, compare with `b3sum`",
        )
    };
    let mut unpacked = Vec::new();
    zstd::stream::read::Decoder::new(&bytes[..])
        .and_then(|it| it.take(LARGEST_BYTES).read_to_end(&mut unpacked))
        .map_err(|error| wrong(error.to_string()))?;
    let (head, entries) = ArchiveHead::read(&unpacked).map_err(wrong)?;
    let joined = audit::beside(data, |view| {
        head.parts.iter().map(|part| view.joins(part, digest)).collect::<Result<Vec<_>, _>>()
    });
    let joined = joined.map_err(|error| unread(data, &error))?;
    let faults: Vec<String> = joined.into_iter().filter_map(Result::err).collect();
    if !faults.is_empty() {
        return Err(wrong(faults.join("; ")));
    }
    say(&format!(
        "archive {digest}: {} entries before {}, made at {}",
        entries.len(),
        head.before,
        head.made_at
    ));
    for part in &head.parts {
        say(&format!("{} in life {}: {} to {}", part.stream, part.incarnation, part.after + 1, part.upto));
    }
    Ok(())
}

fn unread(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::new(
        Exit::Data,
        format!("{} cannot be read", path.display()),
        chain(error),
        "name the data folder with `--data-dir`, and run this as its owner",
    )
}
