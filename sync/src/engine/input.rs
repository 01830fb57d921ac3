//! What may happen to the engine.

use std::time::Duration;

use super::reconcile::Element;
use crate::{
    id::{Incarnation, Origin, SiteId},
    time::Timestamp,
    wire::{Cursor, Fingerprint, Holdings, Seal, Telemetry},
};

/// A connection, numbered by whoever owns the transport; a number is never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Connection(pub u64);

/// When something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Time since the engine was made, by a clock that never jumps. Waits are measured with it.
    pub elapsed: Duration,
    /// What the wall clock showed. It is told to the peer, nothing is measured with it.
    pub wall: Timestamp,
}

/// Where the replica stands towards a peer when a session begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Life of our database.
    pub incarnation: Incarnation,
    /// Settings epoch that we follow.
    pub policy_epoch: u64,
    /// What we have of the peer's log.
    pub pulled: Cursor,
    /// A site: what the peer has acknowledged of our log. Central: our log at the position that the
    /// site says it has; absent if our log ends before it.
    pub pushed: Option<Cursor>,
    /// Last position of our log for the peer.
    pub end: u64,
    /// A site: what it holds at (pulled, pushed).
    pub fingerprint: Fingerprint,
    /// Central: whether the site's fingerprint is right; absent if that cannot be said.
    pub agrees: Option<bool>,
    /// A site: life of central's database that the positions speak of, once both have a common log.
    pub central: Option<Incarnation>,
    /// How often both logs were begun anew, as central counts; at a site nothing while it has to find out what
    /// each lacks.
    pub log: Option<u64>,
    /// A site: what central put beside `pulled`.
    pub seal: Option<Seal>,
    /// Central: how the session goes on. A site: [`Greeting::Continue`].
    pub greeting: Greeting,
}

/// How central answers a greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// Both logs go on where they were.
    Continue,
    /// One of both lives in another database than before: both logs begin anew, after both have found
    /// out what each lacks.
    Join,
    /// The site's positions are not in our log, for this reason; the site must begin another life.
    Forked(String),
    /// The site has more of our log than we have ourselves, and proves it: we went back in time. Our
    /// replica has begun another life, which ends every session.
    Restored(String),
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The time of [`super::Engine::poll_timeout`] has come, or any other time.
    Timeout,
    /// A dial succeeded.
    Dialed {
        /// The new connection.
        connection: Connection,
    },
    /// A dial failed.
    DialFailed {
        /// Any number; spreads the next dial.
        jitter: u16,
    },
    /// A site connected.
    Accepted {
        /// The new connection.
        connection: Connection,
        /// The site, by its certificate.
        site: SiteId,
    },
    /// A frame arrived.
    Frame {
        /// Where.
        connection: Connection,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A connection has ended, whoever ended it.
    Closed {
        /// Which.
        connection: Connection,
        /// Why, for people.
        reason: String,
        /// Any number; spreads the next dial.
        jitter: u16,
    },
    /// Our log for `peer` has grown.
    Changed {
        /// The peer.
        peer: Origin,
        /// Its last position now.
        end: u64,
    },
    /// Somebody at central's address says that central was started anew: a site with a session sends something over it
    /// now, and so finds out. Nothing proves it, so nothing else follows from it.
    Knocked,
    /// What a site tells of itself from now on.
    Telemetry(Telemetry),
    /// Answer to [`super::Output::Open`].
    Opened {
        /// The connection of the question.
        connection: Connection,
        /// The answer.
        standing: Box<Standing>,
    },
    /// Answer to [`super::Output::Locate`].
    Located {
        /// The connection of the question.
        connection: Connection,
        /// Our log at that position; absent if it ends before it.
        cursor: Option<Cursor>,
    },
    /// Answer to [`super::Output::Read`].
    Read {
        /// The connection of the question.
        connection: Connection,
        /// Position of the first item.
        from: u64,
        /// Encoded items in order; none if the log ends before `from`.
        items: Vec<Vec<u8>>,
        /// At central: what it knows its log again by at the last of them.
        seal: Option<Seal>,
    },
    /// Answer to [`super::Output::Ingest`]: committed.
    Ingested {
        /// The connection of the question.
        connection: Connection,
        /// What we have of the peer's log now.
        cursor: Cursor,
        /// Where our log for the peer ended in that commit.
        end: u64,
    },
    /// Answer to [`super::Output::Ingest`] at central: what follows the cursor was not taken, because the site is
    /// beyond its quota. It is to be sent again later.
    HeldBack {
        /// The connection of the question.
        connection: Connection,
        /// What we have of the peer's log now; committed.
        cursor: Cursor,
        /// How long the site shall wait.
        wait: Duration,
        /// Why, for people.
        reason: String,
    },
    /// Answer to [`super::Output::Ingest`]: nothing was committed.
    IngestFailed {
        /// The connection of the question.
        connection: Connection,
        /// Why, for people.
        reason: String,
    },
    /// Answer to [`super::Output::Ingest`] at a site: a short form could not be made whole. Nothing was committed.
    Unreadable {
        /// The connection of the question.
        connection: Connection,
        /// Why, for people.
        reason: String,
    },
    /// Answer to [`super::Output::Ingest`]: what came is here, and showed that our database went back in time.
    /// Another life of it has begun, and every log anew.
    LifeBegun {
        /// The connection of the question.
        connection: Connection,
        /// What showed it, for people.
        reason: String,
    },
    /// Answer to [`super::Output::Elements`].
    Elements {
        /// The connection of the question.
        connection: Connection,
        /// One per document that is held and that the peer should hold.
        elements: Vec<Element>,
    },
    /// Answer to [`super::Output::Hold`].
    Held {
        /// The connection of the question.
        connection: Connection,
        /// What is held.
        holdings: Holdings,
    },
    /// Answer to [`super::Output::Join`]: committed.
    Joined {
        /// The connection of the question.
        connection: Connection,
        /// Last position of our new log for the peer.
        end: u64,
        /// Central: what it holds of the documents that the site named.
        holdings: Holdings,
    },
    /// Answer to [`super::Output::TakeFingerprint`].
    Fingerprinted {
        /// The connection of the question.
        connection: Connection,
        /// Position of the peer's log.
        pulled: u64,
        /// Position of our log.
        pushed: u64,
        /// What we hold at these positions.
        fingerprint: Fingerprint,
    },
    /// Answer to [`super::Output::Compare`].
    Compared {
        /// The connection of the question.
        connection: Connection,
        /// Position asked about.
        pulled: u64,
        /// Whether both hold the same; absent if that cannot be said.
        agrees: Option<bool>,
    },
}
