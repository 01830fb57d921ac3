//! What is booted and installed. Versions are immutable; a new one is a new entry.

use std::collections::BTreeMap;

use super::register::value;
use super::{Document, Kind, Register, contested};
use crate::blob::Digest;

value! {
    /// What people call the workflow and what it is for.
    pub struct Identity {
        /// Name, unique among workflows.
        pub name: String,
        /// Family of the operating system, such as `debian`.
        pub os_family: String,
        /// Processor architecture, such as `x86_64`.
        pub arch: String,
        /// How it boots: `kernel` (iPXE loads kernel and initrd).
        pub boot_method: String,
    }
}

value! {
    /// One version: everything a machine is given.
    pub struct Version {
        /// Digest by role: `kernel`, `initrd`, and `image` where one is written to the disk.
        pub files: BTreeMap<String, Digest>,
        /// Size in bytes by role.
        pub sizes: BTreeMap<String, u64>,
        /// Added to the kernel command line.
        pub kernel_args: String,
        /// Whether a person approves the hardware before the first write.
        pub needs_approval: bool,
    }
}

/// The kind of these documents.
pub const KIND: Kind = Kind::Workflow;

/// Register of the identity.
pub fn identity() -> Register<Identity> {
    Register::at_root("identity")
}

/// Register of one version, from 1.
pub fn version(number: u64) -> Register<Version> {
    Register::within("versions", number.to_string())
}

/// The versions that exist, with their numbers, oldest first.
pub fn versions(document: &Document) -> BTreeMap<u64, Version> {
    contested::keys(document, "versions")
        .iter()
        .filter_map(|key| {
            let number: u64 = key.parse().ok()?;
            let version = contested::read(document, &version(number)).newest()?.value.clone();
            Some((number, version))
        })
        .collect()
}
