//! Backups of central, on the command line: what is copied, and what a person reads.
//!
//! The copying itself is [`store::backup`]. A backup is made beside the running server; a restore takes the
//! lock that the server would have.

use std::path::Path;

use store::backup::{self, BackupError, Place};
use sync::{id::Origin, time::Timestamp};

use crate::{
    failure::{Exit, Failure, chain},
    server::{KEPT, lock},
};

/// Backs the data folder up into the folder `to`. `say` is told what is done, a line at a time.
///
/// # Errors
/// For people, when the copy cannot be made; nothing is left of it then.
pub fn save(data: &Path, to: &Path, now: Timestamp, say: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let made = backup::backup(&place(data), to, now, say)
        .map_err(|error| failure(format!("no backup was made in {}", to.display()), &error))?;
    say(&format!(
        "backup of central in {}: {} documents, {} bytes",
        to.display(),
        made.documents,
        made.bytes
    ));
    if !made.absent.is_empty() {
        say(&format!("not there to be copied: {}", made.absent.join(", ")));
    }
    let bytes: u64 = made.blobs.iter().map(|blob| blob.size).sum();
    say(&format!(
        "content is not in it: copy {}; backup.json names {} files ({bytes} bytes) of it",
        data.join("blobs").display(),
        made.blobs.len()
    ));
    say("it holds the keys of the fleet: keep it where nobody else reads it");
    Ok(())
}

/// Puts the database of a backup in the place of central's, and keys where there are none: a new machine
/// becomes the central of the backup. `say` is told what is done, a line at a time.
///
/// # Errors
/// For people, when a server runs, or the backup does not do; central is as it was then.
pub fn put_back(data: &Path, from: &Path, now: Timestamp, say: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let _lock = lock(data)?;
    let restored = backup::restore(&place(data), Origin::Central, from, now, say)
        .map_err(|error| failure(format!("{} was not restored", from.display()), &error))?;
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
    for blob in &restored.missing {
        say(&format!("not in {}: {} ({} bytes)", data.join("blobs").display(), blob.digest, blob.size));
    }
    if !restored.missing.is_empty() {
        say("send these files with `PUT /api/v1/blobs` again, or copy the folder of blobs");
    }
    say("next: start the server; it takes back from its sites what it has lost, and issues no order until \
         somebody ends its recovery with `holdfast-central resume`");
    Ok(())
}

fn place(data: &Path) -> Place<'_> {
    Place { replica: data, home: data, keys: &KEPT }
}

fn failure(what: String, error: &BackupError) -> Failure {
    Failure::new(Exit::Backup, what, chain(error), error.next())
}
