//! The harness: a world in which replicas, links and machines are played, and the shipped programs started.
//!
//! `random` is where every run's choices come from. `world` joins stores and engines over links in memory
//! under one virtual clock; `link` is what a line does to frames, `disk` what becomes of files, `hostile`
//! what a site that means harm sends, `fleet` a branch with many machines, `eye` looks into a database without its store, `history` keeps what
//! happened in words. `damage` is what disks and people do to a replica. `corpus` is what a played fleet says
//! to each other, and `mutant` makes of it what nobody honest would say. `programs` starts the shipped
//! programs, `wire` is the UDP path between them that can be cut, `rest` reads what they say, and `machine`
//! is a PXE client that speaks real packets.
//!
//! Deliberately absent: anything that decides. The harness plays the network and the machines; what is
//! right or wrong stands in the suites, and for mutants of changes in `mutant::trial`, which a bench shares.

pub mod random;
pub mod link;
pub mod disk;
pub mod eye;
pub mod history;
pub mod hostile;
pub mod world;
pub mod damage;
pub mod corpus;
pub mod mutant;
pub mod fleet;

pub mod programs;
pub mod wire;
pub mod rest;
pub mod machine;
