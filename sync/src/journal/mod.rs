//! Facts that somebody must be able to answer for: append-only, hash-linked streams.
//!
//! A site has one stream, which goes up; central has one stream per site, which goes down, and one of its
//! own. `event` is what can be said, `chain` is how an entry is bound to the one before it. A mistake is
//! corrected by a new entry; nothing is ever changed or removed. Deliberately absent: signatures of the
//! stream heads and checkpoints, which come with retention.

pub mod chain;
pub mod event;

pub use chain::{ChainError, Entry, Head, Stream};
pub use event::Event;
