//! What a machine that boots is told, decided from plain values.
//!
//! `request` is who asks by DHCP and what is said, `loader` which file a firmware runs first. `view` is what
//! the site knows when a machine asks; `decide` makes the one answer of it, the same for DHCP and for the
//! script; `script` writes that answer for iPXE. All of it is pure: the same request, view and instant
//! give the same bytes. Reading the replica, noting the answer and sending it are other rooms' work.

pub mod request;

pub mod loader;

pub mod view;

pub mod decide;

pub mod script;
