//! The real-network lab.
//!
//! Firmware, loaders and a kernel that nobody here wrote, booted under QEMU in an office made of network
//! namespaces. Read `network` for the place, `machine` for who boots in it, `initramfs` and its `init.sh` for
//! what a booted machine does, `disk` for what it boots afterwards; `dnsmasq`, `http` and `baseline` are the
//! world without our product; `firewall` is a network that drops UDP. A test reads like this:
//!
//!     let net = Net::new()?;
//!     let dns = Dnsmasq::plain(&net)?;
//!     let machine = Machine::bios("52:54:00:00:00:01").disk(&disk);
//!     let mut run = machine.power_on(&net)?;
//!     let first = run.wait_serial("HOLDFAST report", 120)?;
//!
//! It needs root and the Debian packages of `packages.txt`; without them tests fail and say so. Run it with
//! `--test-threads=1`: two emulated machines beside each other on two cores measure each other.

mod cache;
mod error;
mod packages;
mod process;

mod network;

mod dnsmasq;
mod http;

mod machine;
mod nvram;

mod cpio;
mod initramfs;

mod disk;

mod baseline;
mod rehearsal;

mod story;

mod firewall;
