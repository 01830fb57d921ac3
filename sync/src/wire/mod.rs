//! What central and a site say to each other.
//!
//! `message` has the messages, `frame` their encoding and limits, `version` how two programs of
//! different age find a common tongue. Everything is CBOR maps with small integer keys: a field that the
//! reader does not know is skipped, one that the writer did not know is absent.

pub mod frame;
pub mod message;
pub mod version;

pub use frame::{FrameError, MAX_FRAME, decode, encode};
pub use message::{
    Anew, Brief, Cursor, Fingerprint, Gone, Holding, Holdings, Item, Linked, Message, Refusal, Reset,
    Rolling, Seal, Snapshot, StreamHead, Stub, Telemetry,
};
pub use version::Versions;
