//! What a machine boots from the network: Debian's cloud kernel and an initramfs around one shell script.
//!
//! `init.sh` holds the stories; here they are packed with busybox and the kernel's virtio modules. The archive
//! is a function of its inputs, so its digest is the same on every run and can stand in an image record.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache;
use crate::cpio::{Entry, archive};
use crate::error::{Doing, LabError, Result};
use crate::packages;

const INIT: &str = include_str!("init.sh");
const LEASE: &str = include_str!("lease.sh");
const BUSYBOX: &str = "/bin/busybox";

/// Modules in the order in which most of them load; `init.sh` walks the list twice.
const MODULES: [&str; 9] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio_blk",
];

/// A kernel and its initramfs, as files in the cache.
pub(crate) struct Boot {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// BLAKE3 of both, hexadecimal: changes when either does.
    pub(crate) digest: String,
}

/// Returns the kernel and initramfs of the lab, made when they are not in the cache.
///
/// # Errors
/// When the kernel's package cannot be had or lacks a module, or busybox is not installed.
pub(crate) fn boot() -> Result<Boot> {
    let package = packages::unpacked("linux-image-cloud-amd64")?;
    let kernel = find(&package.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    let bytes = archive(&entries(&package)?);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&fs::read(&kernel).doing(format!("read {}", kernel.display()))?).update(&bytes);
    let digest = hasher.finalize().to_hex().to_string();
    let name = format!("initramfs-{}.cpio", &digest[..16]);
    let initramfs = cache::entry(&name, |at| fs::write(at, &bytes).doing("write the initramfs"))?;
    Ok(Boot { kernel, initramfs, digest })
}

fn entries(package: &Path) -> Result<BTreeMap<String, Entry>> {
    let read = |path: &Path| fs::read(path).doing(format!("read {}", path.display()));
    let mut entries = BTreeMap::from([
        ("bin".to_string(), Entry::Folder),
        ("bin/busybox".into(), Entry::File(read(Path::new(BUSYBOX))?, true)),
        ("dev".into(), Entry::Folder),
        // The kernel opens it for us before there is a devtmpfs.
        ("dev/console".into(), Entry::Device(5, 1)),
        ("init".into(), Entry::File(INIT.into(), true)),
        ("lease".into(), Entry::File(LEASE.into(), true)),
        ("modules".into(), Entry::Folder),
        ("modules/list".into(), Entry::File(MODULES.join("\n").into(), false)),
    ]);
    let modules = find(&package.join("lib/modules"), |_| true)?;
    for module in MODULES {
        let file = format!("{module}.ko");
        let path = find_below(&modules, &file)?.ok_or_else(|| {
            LabError::new(format!("no module {module}"), format!("no {file} in {}", modules.display()))
        })?;
        entries.insert(format!("modules/{file}"), Entry::File(read(&path)?, false));
    }
    Ok(entries)
}

/// Returns the first file of a folder, by name, that is `wanted`.
fn find(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let paths = sorted(folder)?;
    let fits = |path: &PathBuf| path.file_name().is_some_and(|name| wanted(&name.to_string_lossy()));
    paths.into_iter().find(fits).ok_or_else(|| {
        LabError::new("a package is not what it was", format!("nothing fits in {}", folder.display()))
    })
}

fn find_below(folder: &Path, file: &str) -> Result<Option<PathBuf>> {
    for path in sorted(folder)? {
        if path.file_name().is_some_and(|name| name == file) {
            return Ok(Some(path));
        }
        if path.is_dir()
            && !path.is_symlink()
            && let Some(found) = find_below(&path, file)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let list =
        || -> io::Result<Vec<PathBuf>> { fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect() };
    let mut paths = list().doing(format!("list {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::run;
    use std::process::Command;

    #[test]
    fn the_same_inputs_give_the_same_initramfs() -> Result<()> {
        let package = packages::unpacked("linux-image-cloud-amd64")?;
        assert_eq!(archive(&entries(&package)?), archive(&entries(&package)?));
        assert_eq!(boot()?.digest, boot()?.digest);
        Ok(())
    }

    #[test]
    fn the_scripts_parse() -> Result<()> {
        for script in ["init.sh", "lease.sh"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab").join(script);
            run(Command::new("busybox").args(["sh", "-n"]).arg(path))?;
        }
        Ok(())
    }
}
