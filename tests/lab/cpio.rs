//! Writes the archive format of an initramfs: cpio "newc".
//!
//! Source: `Documentation/driver-api/early-userspace/buffer-format.rst` of Linux. The same entries in any order
//! give the same bytes: entries are sorted by name, belong to root, carry time 0 and count their inodes from 1.
//! Deliberately absent: hard links, compression (the kernel takes an archive as it is, and unpacking it is what
//! an emulated machine is slow at).

use std::collections::BTreeMap;

/// What is stored under one name.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Folder,
    /// A file's bytes and whether it can be run.
    File(Vec<u8>, bool),
    /// A symbolic link's target.
    Link(String),
    /// A character device's numbers, major and minor.
    Device(u32, u32),
}

/// Returns the archive. Names have no leading slash; a folder is its own entry and sorts before what is in it.
pub(crate) fn archive(entries: &BTreeMap<String, Entry>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, (name, entry)) in (1..).zip(entries) {
        append(&mut bytes, index, name, entry);
    }
    append(&mut bytes, 0, "TRAILER!!!", &Entry::File(Vec::new(), false));
    bytes
}

fn append(bytes: &mut Vec<u8>, inode: u32, name: &str, entry: &Entry) {
    let (mode, data, device): (u32, &[u8], (u32, u32)) = match entry {
        Entry::Folder => (0o040_755, &[], (0, 0)),
        Entry::File(data, true) => (0o100_755, data, (0, 0)),
        // The trailer has mode 0 in most writers; nobody looks at it.
        Entry::File(data, false) => (0o100_644, data, (0, 0)),
        Entry::Link(target) => (0o120_777, target.as_bytes(), (0, 0)),
        Entry::Device(major, minor) => (0o020_600, &[], (*major, *minor)),
    };
    let length = |of: &[u8]| u32::try_from(of.len()).expect("newc files are below 4 GiB");
    // inode, mode, uid, gid, links, time, size, device of the file system (two), its own (two), name, checksum
    let links = if matches!(entry, Entry::Folder) { 2 } else { 1 };
    let name_size = length(name.as_bytes()) + 1;
    let fields = [inode, mode, 0, 0, links, 0, length(data), 0, 0, device.0, device.1, name_size, 0];
    bytes.extend(b"070701");
    for field in fields {
        bytes.extend(format!("{field:08X}").into_bytes());
    }
    bytes.extend(name.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend(data);
    pad(bytes);
}

/// Names and data end at a multiple of four bytes from the archive's beginning.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    use expect_test::expect;

    fn entries() -> BTreeMap<String, Entry> {
        BTreeMap::from([
            ("init".into(), Entry::File(b"#!/bin/sh\n".to_vec(), true)),
            ("etc".into(), Entry::Folder),
            ("etc/text".into(), Entry::File(b"abc".to_vec(), false)),
            ("console".into(), Entry::Device(5, 1)),
            ("sh".into(), Entry::Link("busybox".into())),
        ])
    }

    #[test]
    fn another_program_reads_what_we_write() {
        let folder = tempfile::tempdir().expect("a folder");
        // Only listed, not unpacked: a device node needs root, a listing does not.
        let mut cpio = Command::new("busybox")
            .args(["cpio", "-itv"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null()) // It counts blocks there.
            .spawn()
            .expect("busybox");
        cpio.stdin.take().expect("a pipe").write_all(&archive(&entries())).expect("written");
        let listing = cpio.wait_with_output().expect("an end").stdout;
        expect![[r#"
            crw------- 0/0         0 1970-01-01 00:00:00 console
            drwxr-xr-x 0/0         0 1970-01-01 00:00:00 etc
            -rw-r--r-- 0/0         3 1970-01-01 00:00:00 etc/text
            -rwxr-xr-x 0/0        10 1970-01-01 00:00:00 init
            lrwxrwxrwx 0/0         0 1970-01-01 00:00:00 sh -> busybox
        "#]]
        .assert_eq(&String::from_utf8_lossy(&listing));
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        let expected = expect!["1298dc35aaac47f54fe43cc95961b43aeb2b40efe15d76218c6ff45c2e956b0a"];
        expected.assert_eq(&blake3::hash(&archive(&entries())).to_hex());
    }
}
