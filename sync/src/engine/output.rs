//! What the engine wants done.

use super::Connection;
use crate::{
    id::{DocumentId, Incarnation, Origin},
    time::Timestamp,
    wire::{Cursor, Fingerprint, Holdings, Seal, Telemetry, message::refuse},
};

/// What a site says of itself in its greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Life of its database.
    pub incarnation: Incarnation,
    /// Life of our database that its positions speak of.
    pub central: Option<Incarnation>,
    /// Which of our logs they are counted in; nothing if it has to find out what it lacks.
    pub log: Option<u64>,
    /// What it has of our log.
    pub pulled: Cursor,
    /// What we put beside that.
    pub seal: Option<Seal>,
    /// What it knows us to have of its log.
    pub pushed: u64,
    /// What it holds.
    pub fingerprint: Fingerprint,
    /// Settings epoch that it follows.
    pub policy_epoch: u64,
}

/// Why a connection is closed, as the QUIC application error code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseCode {
    /// Nothing wrong.
    Done,
    /// No common version.
    Version,
    /// The logs are not continuations of each other.
    Fork,
    /// The peer breaks the protocol.
    Protocol,
    /// The peer is not who it says.
    Identity,
    /// Our replica cannot go on.
    Replica,
    /// A newer connection of the same site took its place.
    Replaced,
    /// The peer was silent for too long.
    Silent,
    /// The peer was asked to come back later and comes all the same.
    Busy,
    /// The peer does not read what it is told.
    Deaf,
}

impl CloseCode {
    /// Number on the wire.
    pub fn number(self) -> u32 {
        match self {
            CloseCode::Done => 0,
            CloseCode::Version => refuse::VERSION,
            CloseCode::Fork => refuse::FORK,
            CloseCode::Protocol => refuse::PROTOCOL,
            CloseCode::Identity => refuse::IDENTITY,
            CloseCode::Replica => refuse::REPLICA,
            CloseCode::Replaced => 6,
            CloseCode::Silent => 7,
            CloseCode::Busy => 8,
            CloseCode::Deaf => 9,
        }
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Transport: dial central; answer with `Dialed` or `DialFailed`.
    Dial,
    /// Transport: send a frame.
    Send {
        /// Where.
        connection: Connection,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Transport: end the connection after what was sent before; answer with `Closed`.
    Close {
        /// Which.
        connection: Connection,
        /// Why.
        code: CloseCode,
        /// Why, for people.
        reason: String,
    },
    /// Replica: where do we stand towards `peer`? Answer with `Opened`.
    Open {
        /// For the answer.
        connection: Connection,
        /// The peer.
        peer: Origin,
        /// At central: what the site says of itself.
        claim: Option<Claim>,
    },
    /// Replica: our log for `peer` at `position`? Answer with `Located`.
    Locate {
        /// For the answer.
        connection: Connection,
        /// The peer.
        peer: Origin,
        /// The position.
        position: u64,
    },
    /// Replica: read our log for `peer`. Answer with `Read`.
    Read {
        /// For the answer.
        connection: Connection,
        /// The peer.
        peer: Origin,
        /// First position.
        from: u64,
        /// Stop before the items are larger than this, but give one at least.
        max_bytes: usize,
    },
    /// Replica: take over items of the peer's log, in one commit. Answer with `Ingested`, `HeldBack` or
    /// `IngestFailed`; until then nothing more of this session comes.
    Ingest {
        /// For the answer.
        connection: Connection,
        /// The peer.
        peer: Origin,
        /// Position of the first.
        from: u64,
        /// Encoded items in order.
        items: Vec<Vec<u8>>,
        /// At a site: what central put beside the last of them.
        seal: Option<Seal>,
    },
    /// Replica of a site: central greets from this life of its database and both logs begin with what is
    /// in them. No answer.
    Settle {
        /// Central.
        peer: Origin,
        /// Life of its database.
        life: Incarnation,
    },
    /// Replica: what is held that the peer should hold? A site whose log speaks of another life of central
    /// than `life` begins it anew first. Answer with `Elements`.
    Elements {
        /// For the answer.
        connection: Connection,
        /// The peer.
        peer: Origin,
        /// At a site: life of central's database, and which log begins.
        life: Option<(Incarnation, u64)>,
    },
    /// Replica of a site: what is held of these documents, and of the journals? Answer with `Held`.
    Hold {
        /// For the answer.
        connection: Connection,
        /// The peer.
        peer: Origin,
        /// The documents in which both differ.
        documents: Vec<DocumentId>,
    },
    /// Replica: put into our log for the peer what it lacks, and keep that both have a common log from
    /// here on. Answer with `Joined`.
    Join {
        /// For the answer.
        connection: Connection,
        /// The peer.
        peer: Origin,
        /// Life of the peer's database.
        life: Incarnation,
        /// What the peer holds.
        holdings: Holdings,
    },
    /// Replica of a site: its positions are not in central's log, or central's not in its own, or both hold
    /// something else: begin the logs anew. No answer; the session ends.
    Forked {
        /// The peer.
        peer: Origin,
        /// Why, for people.
        reason: String,
        /// Whether the database went back in time, so that another life of it begins and no order is
        /// followed until somebody confirms.
        life_ends: bool,
    },
    /// Replica: the peer has everything of our log up to here. No answer.
    Acknowledged {
        /// The peer.
        peer: Origin,
        /// The position.
        position: u64,
    },
    /// Replica of central: the site knew our log up to here when it wrote what it delivers from now on, and
    /// has delivered all that it wrote before. It must not overtake an `Ingest` that came before it. No answer.
    Known {
        /// The site.
        peer: Origin,
        /// The position.
        position: u64,
    },
    /// Replica of a site: what do we hold at these positions? Answer with `Fingerprinted`.
    TakeFingerprint {
        /// For the answer.
        connection: Connection,
        /// Position of the peer's log.
        pulled: u64,
        /// Position of our log.
        pushed: u64,
    },
    /// Replica of central: does the site hold what it should? Answer with `Compared`.
    Compare {
        /// For the answer.
        connection: Connection,
        /// The site.
        peer: Origin,
        /// What the site has of our log.
        pulled: u64,
        /// What the site knows us to have of its log.
        pushed: u64,
        /// What the site holds at these positions.
        fingerprint: Fingerprint,
    },
    /// Notice: a session is established.
    Up {
        /// The peer.
        peer: Origin,
        /// The peer's clock.
        clock: Timestamp,
    },
    /// Notice: there is no session any more.
    Down {
        /// The peer.
        peer: Origin,
        /// Why, for people.
        reason: String,
    },
    /// Notice: the peer said that it is there.
    Heard {
        /// The peer.
        peer: Origin,
        /// The peer's clock.
        clock: Timestamp,
        /// What a site tells of itself.
        telemetry: Option<Telemetry>,
    },
    /// Notice: both sides hold the same (`true`), or do not although they should.
    Agreement {
        /// The peer.
        peer: Origin,
        /// Whether they do.
        agrees: bool,
        /// Position of central's log that was compared.
        pulled: u64,
    },
    /// Notice: central takes nothing of a site now, at a site and at central. Nothing is lost: the site sends it
    /// again then.
    Busy {
        /// The peer.
        peer: Origin,
        /// When it goes on, by our clock.
        until: Timestamp,
        /// Why, for people.
        reason: String,
    },
    /// Notice: the peer refused the session or was refused, and dialing again will not help by itself.
    Refused {
        /// The peer.
        peer: Origin,
        /// One of the codes in [`crate::wire::message::refuse`].
        code: u32,
        /// Why, for people.
        reason: String,
    },
}
