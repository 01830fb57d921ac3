//! The fleet: where it is designed, watched and invited.
//!
//! [`config`] is what a person sets, [`server`] starts everything and ends it, [`event_loop`] owns the
//! program's time and chance. `hub` lets sites in and replicates with them, `sessions` lists who is
//! connected, `addresses` finds them after a restart, [`enrolment`] makes machines into sites, `http` is the
//! operators' API, `content` how blobs leave. [`client`] talks to a running server, [`desk`] shows its quarantine, [`backup`] keeps a copy of central and puts it back.
//!
//! Deliberately absent: boot services, which are a site's, and everything that a site must be able to
//! decide alone.

pub mod config;
pub mod failure;

pub mod event_loop;
pub mod server;

pub mod enrolment;

mod evidence;
mod hub;
mod sessions;
mod addresses;

mod content;
mod http;

pub mod client;
pub mod desk;
pub mod conflicts;
pub mod twins;
pub mod moves;
pub mod tree;
pub mod backup;
pub mod archive;
