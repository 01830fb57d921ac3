//! Backups of this site, on the command line: what is copied, and what a person reads.
//!
//! The copying itself is [`store::backup`]. A backup is made beside the running agent; a restore takes the
//! lock that the agent would have.

use std::path::Path;

use store::backup::{self, BackupError, Place};
use sync::{id::Origin, time::Timestamp};

use crate::identity::{DataDir, IdentityError, KEPT};

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data folder does not do.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The backup does not do.
    #[error(transparent)]
    Backup(#[from] BackupError),
}

impl Error {
    /// What a person does next.
    pub fn next(&self) -> &'static str {
        match self {
            Error::Identity(error) => error.next(),
            Error::Backup(error) => error.next(),
        }
    }
}

/// Backs the site up into the folder `to`. `say` is told what is done, a line at a time.
///
/// # Errors
/// When this is no site, or the copy cannot be made; nothing is left of it then.
pub fn save(data: &DataDir, to: &Path, now: Timestamp, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let enrolment = data.enrolment()?;
    let replica = data.replica();
    let made = backup::backup(&place(data, &replica), to, now, say)?;
    say(&format!(
        "backup of site {} ({}) in {}: {} documents, {} bytes",
        enrolment.name,
        enrolment.site,
        to.display(),
        made.documents,
        made.bytes
    ));
    let bytes: u64 = made.blobs.iter().map(|blob| blob.size).sum();
    say(&format!(
        "content is not in it: the site fetches {} files ({bytes} bytes) from central again",
        made.blobs.len()
    ));
    say("it holds private keys: keep it where nobody else reads it");
    Ok(())
}

/// Puts the database of a backup in the place of the site's, and keys where there are none: a new machine
/// becomes the site of the backup. `say` is told what is done, a line at a time.
///
/// # Errors
/// When an agent runs, or the backup does not do; the site is as it was then.
pub fn put_back(data: &DataDir, from: &Path, now: Timestamp, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let _lock = data.lock()?;
    let enrolment = match data.enrolment() {
        Err(IdentityError::NotEnrolled { .. }) => DataDir::at(from).enrolment()?,
        known => known?,
    };
    let (replica, origin) = (data.replica(), Origin::Site(enrolment.site));
    let restored = backup::restore(&place(data, &replica), origin, from, now, say)?;
    let made = restored.made_at.map_or("a copy".into(), |at| format!("a backup of {at}"));
    say(&format!("restored from {made}: {} documents", restored.documents));
    if let Some(aside) = restored.aside {
        say(&format!("the old database is {}; remove it when nobody needs it any more", aside.display()));
    }
    if !restored.placed.is_empty() {
        say(&format!("from the backup: {}", restored.placed.join(", ")));
    }
    if !restored.kept.is_empty() {
        say(&format!("kept, although the backup has others: {}", restored.kept.join(", ")));
    }
    if !restored.missing.is_empty() {
        say(&format!("{} files of content are not here; the site fetches them", restored.missing.len()));
    }
    say(
        "next: start the agent; it boots machines and follows no order until `holdfast-site resume`, or until \
         central confirms",
    );
    Ok(())
}

fn place<'p>(data: &'p DataDir, replica: &'p Path) -> Place<'p> {
    Place { replica, home: data.path(), keys: &KEPT }
}
