//! The harness: a world in which replicas, links and machines are played, and the shipped programs started.
//!
//! `random` is where every run's choices come from. `world` joins stores and engines over links in memory
//! under one virtual clock, `damage` is what disks do to them. `programs` starts the shipped programs, `wire` is the UDP path between them
//! that can be cut, `rest` reads what they say, and `machine` is a PXE client that speaks real packets.
//!
//! Deliberately absent: anything that decides. The harness plays the network and the machines; what is
//! right or wrong stands in the suites.

pub mod random;
pub mod world;
pub mod damage;

pub mod programs;
pub mod wire;
pub mod rest;
pub mod machine;
