//! A small disk with an operating system on it: boots on BIOS and UEFI, prints a marker line, switches off.
//!
//! It is used twice: lying on a machine's disk as the system that was there before, and as the image that a
//! workflow writes. Layout of the 24 MiB: a DOS partition table with one active FAT16 partition of type 0xEF at
//! 1 MiB; GRUB's boot sector and core image before it for BIOS, `EFI/BOOT/BOOTX64.EFI` (GRUB again) in it for
//! UEFI, and one kernel with the lab's initramfs for both. All of it is put together as bytes in a file: no
//! mount, no loop device, no root. The same inputs give the same bytes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache;
use crate::error::{Doing, Result};
use crate::initramfs::{self, Boot};
use crate::packages;
use crate::process::run;

/// Size of every image, in bytes.
pub(crate) const SIZE: u64 = 24 << 20;

const SECTOR: u64 = 512;
const PARTITION_AT: u64 = 1 << 20;

/// Changes when the recipe below does, so that the cache does not return yesterday's image.
const RECIPE: &str = "1";

/// The start of 1980, the earliest time that FAT knows, for everything that writes a time into the image.
const EPOCH: &str = "315532800";

/// Returns the image whose system prints `HOLDFAST marker <marker>`, made when it is not in the cache. `marker`
/// is one word of letters, digits and dashes.
///
/// # Errors
/// When a package cannot be had or one of its tools fails.
pub(crate) fn image(marker: &str) -> Result<PathBuf> {
    assert!(marker.chars().all(|char| char.is_ascii_alphanumeric() || char == '-'), "a marker is a word");
    let boot = initramfs::boot()?;
    let key = blake3::hash(format!("{RECIPE} {marker} {}", boot.digest).as_bytes()).to_hex();
    cache::entry(&format!("disk-{marker}-{}.img", &key[..16]), |at| make(&boot, marker, at))
}

/// Puts a copy of an image where a machine may write to it.
///
/// # Errors
/// When the copy cannot be made.
pub(crate) fn place(image: &Path, at: &Path) -> Result<()> {
    fs::copy(image, at).doing(format!("copy {} to {}", image.display(), at.display())).map(drop)
}

/// Returns the BLAKE3 of a disk's bytes, hexadecimal; for an image, the name of its blob.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn digest(disk: &Path) -> Result<String> {
    let bytes = fs::read(disk).doing(format!("read {}", disk.display()))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

fn make(boot: &Boot, marker: &str, at: &Path) -> Result<()> {
    let work = tempfile::tempdir().doing("make a folder")?;
    let work = work.path();
    let disk = File::create(at).doing("make the image")?;
    disk.set_len(SIZE).doing("size the image")?;
    let write = |bytes: &[u8], at: u64| disk.write_all_at(bytes, at).doing("write to the image");

    let bios = grub("grub-pc-bin", "i386-pc", &["biosdisk"], marker, work)?;
    let sector = fs::read(grub_folder("grub-pc-bin", "i386-pc")?.join("boot.img")).doing("read boot.img")?;
    let core = fs::read(&bios).doing("read GRUB's core image")?;
    assert!(SECTOR + core.len() as u64 <= PARTITION_AT, "GRUB's core fits before the partition");
    // Boot code only: what follows its 440 bytes is the partition table.
    write(&sector[..440], 0)?;
    write(&partition_entry(), 446)?;
    write(&[0x55, 0xaa], 510)?;
    write(&core, SECTOR)?;

    let efi = grub("grub-efi-amd64-bin", "x86_64-efi", &[], marker, work)?;
    fill_partition(
        at,
        &[(&efi, "::/EFI/BOOT/BOOTX64.EFI"), (&boot.kernel, "::/vmlinuz"), (&boot.initramfs, "::/initrd")],
    )
}

/// Builds a GRUB that needs no configuration file, and returns its path.
fn grub(package: &str, target: &str, more: &[&str], marker: &str, work: &Path) -> Result<PathBuf> {
    let script = work.join("grub.cfg");
    fs::write(&script, grub_script(marker)).doing("write GRUB's script")?;
    let out = work.join(target);
    let mut mkimage = tool("grub-common", "grub-mkimage")?;
    mkimage.arg("-d").arg(grub_folder(package, target)?).args(["-O", target, "-p", "(hd0,msdos1)/"]);
    mkimage.arg("-c").arg(&script).arg("-o").arg(&out).args(more);
    run(mkimage.args(["boot", "fat", "linux", "part_msdos", "serial", "terminal"]))?;
    Ok(out)
}

fn grub_script(marker: &str) -> String {
    format!(
        "serial --unit=0 --speed=115200
terminal_output serial
set root=(hd0,msdos1)
linux /vmlinuz console=ttyS0 quiet panic=1 lab.marker={marker}
initrd /initrd
boot
"
    )
}

fn grub_folder(package: &str, target: &str) -> Result<PathBuf> {
    Ok(packages::unpacked(package)?.join("usr/lib/grub").join(target))
}

/// Active, type 0xEF (EFI system partition), all of the disk after the first MiB, addressed by LBA: the
/// cylinder fields say "beyond", as they do on any disk today.
fn partition_entry() -> [u8; 16] {
    let mut entry = [0; 16];
    entry[0] = 0x80;
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = 0xef;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).expect("a small disk").to_le_bytes();
    entry[8..12].copy_from_slice(&sectors(PARTITION_AT));
    entry[12..16].copy_from_slice(&sectors(SIZE - PARTITION_AT));
    entry
}

/// Makes the FAT file system and copies files into it.
fn fill_partition(disk: &Path, files: &[(&Path, &str)]) -> Result<()> {
    let partition = format!("{}@@{PARTITION_AT}", disk.display());
    let sectors = ((SIZE - PARTITION_AT) / SECTOR).to_string();
    let hidden = (PARTITION_AT / SECTOR).to_string();
    let geometry = ["-T", &sectors, "-h", "16", "-s", "63", "-H", &hidden, "-N", "1ab0d15c"];
    run(mtool("mformat")?.args(["-i", &partition]).args(geometry).args(["-v", "LABDISK", "::"]))?;
    run(mtool("mmd")?.args(["-i", &partition, "::/EFI", "::/EFI/BOOT"]))?;
    for (from, to) in files {
        run(mtool("mcopy")?.args(["-i", &partition]).arg(from).arg(to))?;
    }
    Ok(())
}

fn mtool(name: &str) -> Result<Command> {
    let mut command = tool("mtools", name)?;
    // The image is smaller than its geometry says, which mtools would rather not believe.
    command.env("MTOOLS_SKIP_CHECK", "1").env("SOURCE_DATE_EPOCH", EPOCH).env("TZ", "UTC");
    Ok(command)
}

fn tool(package: &str, name: &str) -> Result<Command> {
    Ok(Command::new(packages::unpacked(package)?.join("usr/bin").join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    use crate::machine::Machine;
    use crate::network::Net;

    #[test]
    fn the_partition_table_is_what_other_programs_read() -> Result<()> {
        let image = image("table")?;
        let listing = run(Command::new("busybox").args(["fdisk", "-l"]).arg(&image))?;
        let first = format!("{}1", image.display());
        let line = listing.lines().find_map(|line| line.strip_prefix(&first)).unwrap_or(&listing);
        let columns: Vec<&str> = line.split_whitespace().collect();
        // Active, its cylinders, then first and last sector, how many, how much, and the type.
        expect!["* 1023,254,63 1023,254,63 2048 49151 47104 23.0M ef EFI (FAT-12/16/32)"]
            .assert_eq(&columns.join(" "));
        Ok(())
    }

    #[test]
    fn the_same_inputs_give_the_same_image() -> Result<()> {
        let folder = tempfile::tempdir().doing("make a folder")?;
        let make_in = |name: &str| {
            let at = folder.path().join(name);
            make(&initramfs::boot()?, "twice", &at)?;
            digest(&at)
        };
        assert_eq!(make_in("one")?, make_in("two")?);
        Ok(())
    }

    #[test]
    fn the_image_boots_by_itself_on_bios() -> Result<()> {
        boots_by_itself(Machine::bios("52:54:00:00:00:11"))
    }

    #[test]
    fn the_image_boots_by_itself_on_uefi() -> Result<()> {
        boots_by_itself(Machine::uefi("52:54:00:00:00:12"))
    }

    fn boots_by_itself(machine: Machine) -> Result<()> {
        let net = Net::new()?;
        let disk = net.folder().join("disk.img");
        place(&image("by-itself")?, &disk)?;
        let before = digest(&disk)?;
        let mut run = machine.disk(&disk).disk_only().power_on(&net)?;
        let line = run.wait_serial("HOLDFAST marker", 60)?;
        assert_eq!(line.text, "HOLDFAST marker by-itself");
        let off = run.wait_off(20)?;
        println!("seconds from power-on to the marker: {:.1}, to off: {off:.1}", line.seconds);
        assert_eq!(digest(&disk)?, before, "a boot changes nothing on the disk");
        Ok(())
    }
}
