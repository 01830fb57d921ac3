//! Facts that somebody must be able to answer for: append-only, hash-linked streams.
//!
//! A site has one stream, which goes up; central has one stream per site, which goes down, and one of its
//! own. `event` is what can be said, `kind` what each is called, `chain` is how an entry is bound to the one before it. A mistake is
//! corrected by a new entry; nothing is ever changed. `mark` is what a replica says of a whole stream: that it signed how
//! far it goes, or that it does not keep its beginning any more. Deliberately absent: keys.

pub mod chain;
pub mod event;
pub mod kind;
pub mod mark;

pub use chain::{ChainError, Entry, Head, Stream};
pub use event::Event;
pub use mark::Mark;
