//! Things that are made once and used by many runs: unpacked packages, the initramfs, disk images.
//!
//! They lie in `lab-cache` of cargo's target folder, each under a name that changes when what it is made from
//! does, so nothing in here is ever out of date; `rm -r target/lab-cache` costs a minute of the next run.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};

/// Returns the file or folder `name`, made by `make` at the path it is given when it is not there yet.
///
/// All or nothing: it is made beside its place and then moved there, so a run that was killed leaves no half of
/// it, and of two runs that make it at once the first one's is kept.
///
/// # Errors
/// Those of `make`, or when the cache cannot be written.
pub(crate) fn entry(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("lab-cache");
    let place = folder.join(name);
    if place.exists() {
        return Ok(place);
    }
    fs::create_dir_all(&folder).doing(format!("make {}", folder.display()))?;
    let work = tempfile::tempdir_in(&folder).doing(format!("make a folder in {}", folder.display()))?;
    let made = work.path().join("made");
    make(&made)?;
    match fs::rename(&made, &place) {
        Err(_) if place.exists() => Ok(place),
        moved => moved.doing(format!("move {name} to its place")).map(|()| place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::LabError;

    #[test]
    fn an_entry_is_made_once_and_a_failed_one_not_at_all() -> Result<()> {
        let name = format!("test-{}", std::process::id());
        let failed = entry(&name, |at| {
            fs::write(at, "half").doing("write")?;
            Err(LabError::new("made to fail", "this test"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "made to fail\n  why: this test");
        let first = entry(&name, |at| fs::write(at, "whole").doing("write"))?;
        let second = entry(&name, |_| unreachable!("it is there"))?;
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(&first).doing("read")?, "whole");
        fs::remove_file(first).doing("remove")
    }
}
