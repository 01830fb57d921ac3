//! What central and every site must agree on.
//!
//! The pure half, from the ground up: `id`, `time` and `blob` are the words; `policy` decides about
//! plain values; `document` is what is replicated and how it is read and written; `journal` is what must be answered for;
//! `ingress` is what a peer's bytes must pass; `wire` is how it travels; `engine` is the replication
//! session as a state machine without I/O. Feature `quic` adds the one part that touches a socket.
//!
//! Deliberately absent: clocks, randomness, files and SQL. Instants and entropy arrive as arguments, so
//! that the same inputs give the same outputs byte for byte, on a server and in a simulated year.

#![warn(missing_docs)]

pub mod id;
pub mod time;
pub mod blob;

pub mod policy;
pub mod document;
pub mod journal;

pub mod ingress;
pub mod wire;
pub mod engine;

#[cfg(feature = "quic")]
pub mod quic;
