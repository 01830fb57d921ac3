//! What the lab needs from Debian, whether it is here, and the part that is only unpacked.
//!
//! `packages.txt` is the one list, with two sections: `tests/run` installs the first before it starts the lab,
//! the second is downloaded and unpacked into the cache here, when first asked for. An
//! unpacked package changes nothing about the machine: a kernel is not booted by mistake, and GRUB's tools do
//! not touch a boot loader. Deliberately absent: installing anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::error::{Doing, LabError, Result};
use crate::process::run;

const LIST: &str = include_str!("packages.txt");

/// A package without files that depends on the current kernel for virtual machines, which is the one we want:
/// a fixed version would be gone from Debian's archive after a few months.
const KERNEL: &str = "linux-image-cloud-amd64";

/// Checks that tests can run here: root, and every package of the first section.
///
/// # Errors
/// Naming what is missing and how to get it.
pub(crate) fn check() -> Result<()> {
    let user = run(Command::new("id").arg("-u"))?;
    if user.trim() != "0" {
        return Err(LabError::new(
            "the lab cannot run here",
            "it makes network namespaces, which needs root",
        )
        .with_next("run it as root, or leave it out"));
    }
    match missing(&section(LIST, "install"), &installed()?) {
        packages if packages.is_empty() => Ok(()),
        packages => Err(LabError::new(
            "the lab cannot run here",
            format!("these Debian packages are not installed: {}", packages.join(" ")),
        )
        .with_next(format!("apt-get install --no-install-recommends {}", packages.join(" ")))),
    }
}

/// Returns the folder in which a package of the second section lies unpacked, `usr/…` and so on below it.
///
/// The first call for a package downloads it; all later ones, also of later runs, find it.
///
/// # Errors
/// When the package is not on the list, or `apt-get` cannot get it.
pub(crate) fn unpacked(package: &str) -> Result<PathBuf> {
    if !section(LIST, "unpack").contains(&package) {
        let why = "it is not in the section [unpack] of tests/lab/packages.txt";
        return Err(LabError::new(format!("package {package} is not used by the lab"), why));
    }
    cache::entry(&format!("package-{package}"), |at| unpack(package, at))
}

/// Downloads a package beside `at` and unpacks it there.
fn unpack(package: &str, at: &Path) -> Result<()> {
    let work = at.with_file_name("download");
    fs::create_dir(&work).doing(format!("make {}", work.display()))?;
    let name = if package == KERNEL { kernel_package()? } else { package.into() };
    run(Command::new("apt-get").args(["download", &name]).current_dir(&work)).map_err(|error| {
        error.with_next("run `apt-get update`, and check that this machine reaches Debian's archive")
    })?;
    run(Command::new("dpkg").arg("-x").arg(only_deb(&work)?).arg(at)).map(drop)
}

/// Returns the name of the package with today's kernel, such as `linux-image-6.1.0-56-cloud-amd64`.
fn kernel_package() -> Result<String> {
    let said = run(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = said.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    package.map(|version| format!("linux-image-{version}")).ok_or_else(|| {
        LabError::new("no kernel for the lab", format!("apt-cache knows no kernel behind {KERNEL}"))
            .with_next("run `apt-get update`")
    })
}

fn only_deb(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).doing(format!("list {}", folder.display()))?;
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .ok_or_else(|| LabError::new("no package downloaded", format!("no .deb in {}", folder.display())))
}

/// Returns the names in one section of the list, in its order.
fn section<'a>(list: &'a str, name: &str) -> Vec<&'a str> {
    let heading = format!("[{name}]");
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let after = lines.skip_while(|line| **line != heading).skip(1);
    after.take_while(|line| !line.starts_with('[')).collect()
}

fn missing<'a>(wanted: &[&'a str], installed: &BTreeSet<String>) -> Vec<&'a str> {
    wanted.iter().copied().filter(|package| !installed.contains(*package)).collect()
}

fn installed() -> Result<BTreeSet<String>> {
    let format = "--showformat=${db:Status-Status} ${Package}\n";
    let list = run(Command::new("dpkg-query").args(["--show", format]))
        .map_err(|error| error.with_next("the lab is made for Debian 12 and later"))?;
    let packages = list.lines().filter_map(|line| line.strip_prefix("installed "));
    Ok(packages.map(String::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_two_sections_that_share_nothing() {
        let (install, unpack) = (section(LIST, "install"), section(LIST, "unpack"));
        assert!(install.contains(&"qemu-system-x86"), "{install:?}");
        assert!(unpack.contains(&KERNEL), "{unpack:?}");
        assert!(install.iter().all(|package| !unpack.contains(package)));
        let written = LIST.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()));
        assert_eq!(install.len() + unpack.len(), written.count(), "every name is in a section");
    }

    #[test]
    fn missing_packages_are_named_in_the_order_of_the_list() {
        let installed = BTreeSet::from(["curl".to_string(), "zsh".to_string()]);
        assert_eq!(missing(&["ovmf", "curl", "ipxe"], &installed), ["ovmf", "ipxe"]);
    }

    #[test]
    fn this_machine_has_what_the_lab_needs() -> Result<()> {
        check()?;
        for package in section(LIST, "unpack") {
            let folder = unpacked(package)?;
            assert!(folder.join("usr").exists() || folder.join("boot").exists(), "{package} has files");
        }
        Ok(())
    }

    #[test]
    fn a_package_that_is_not_listed_is_not_fetched() {
        let expected = "package zsh is not used by the lab\n  why: it is not in the section [unpack] of \
                        tests/lab/packages.txt";
        assert_eq!(unpacked("zsh").unwrap_err().to_string(), expected);
    }
}
