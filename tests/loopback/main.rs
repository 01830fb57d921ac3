//! The shipped programs over loopback, without root, when people, disks and the network do their worst.
//!
//! `office` is a central and a branch that found each other, `words` makes what programs say comparable. Every
//! other module is one trouble: what a person then reads, and that nothing was lost.
//!
//! Deliberately absent: firmware that is not played, packets that leave this machine, and faults below the
//! system call (torn writes, lost syncs): a killed process leaves the page cache behind.

mod office;
mod words;

mod enrolment;
mod revocation;
mod restore;
mod newer_database;
mod divergence;
mod full_disk;
mod garbage;
mod spoofed;
mod kills;
mod central_restart;
mod udp_blocked;
mod quota;
mod offline_day;
mod meetings;
mod moves;
mod forged;
mod events;
mod desk;
