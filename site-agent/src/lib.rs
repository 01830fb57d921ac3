//! One branch office: what boots its machines and keeps doing so while central is away.
//!
//! [`event_loop`] starts everything and owns time and chance; [`agent`] is what the services share.
//! A machine comes in by [`dhcp`], [`tftp`] or [`http`]; [`sight`] reads what the replica knows of it, [`boot`]
//! decides, pure, what it is told. [`link`] keeps the replication session with central, [`cache`] fetches
//! content over it and [`renewal`] keeps the certificate in force; no service waits for any of them.
//! [`config`], [`identity`], [`token`] and [`status`] are what a person sets, who this site is, what machines
//! prove themselves with, and what works here now; [`backup`] keeps a copy of the site and puts it back. [`desk`]
//! is what a branch admin asks the running agent for, through its [`client`].
//!
//! Deliberately absent in this version: leases, discovery, the console, and the node program.

pub mod config;
pub mod identity;
pub mod backup;
pub mod token;
pub mod error;

pub mod boot;
pub mod sight;

pub mod dhcp;
pub mod tftp;
pub mod http;

pub mod cache;
pub mod link;
pub mod renewal;
pub mod evidence;
pub mod silence;
pub mod status;

pub mod agent;
pub mod event_loop;

pub mod client;
pub mod desk;

#[cfg(test)]
mod testing;
