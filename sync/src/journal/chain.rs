//! Entries and how each is bound to the one before it.
//!
//! A chain is (incarnation, stream): entries are numbered from 1 without gaps and each carries the hash
//! of the one before; the first carries zeros. A new incarnation begins a new chain of the same stream.

use minicbor::{Decode, Encode};

use super::Event;
use crate::{
    id::{Incarnation, SiteId},
    time::Hlc,
};

/// Largest encoded entry.
pub const MAX_ENTRY: usize = 16 << 10;

/// Whose facts a stream holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub enum Stream {
    /// What happened at a site; goes up.
    #[n(0)]
    Site(#[n(0)] SiteId),
    /// What central did that concerns a site; goes down.
    #[n(1)]
    Down(#[n(0)] SiteId),
    /// What happened at central; stays there.
    #[n(2)]
    Central,
}

impl std::fmt::Display for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stream::Site(site) => write!(f, "site/{site}"),
            Stream::Down(site) => write!(f, "central/{site}"),
            Stream::Central => f.write_str("central"),
        }
    }
}

/// One fact in its place.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Entry {
    /// Life of the database that wrote it.
    #[n(0)]
    pub incarnation: Incarnation,
    /// Stream that it is part of.
    #[n(1)]
    pub stream: Stream,
    /// Number, from 1.
    #[n(2)]
    pub seq: u64,
    /// Hash of the entry before, zeros for the first.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub previous: [u8; 32],
    /// When it was written, by the writer's clock.
    #[n(4)]
    pub at: Hlc,
    /// Person, rule or program that made it happen.
    #[n(5)]
    pub by: String,
    /// Settings epoch that it was decided under.
    #[n(6)]
    pub policy_epoch: u64,
    /// The fact; nothing if a newer program wrote it.
    #[n(7)]
    pub event: Option<Event>,
}

/// The newest entry of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Life of the database.
    pub incarnation: Incarnation,
    /// Number of the newest entry; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

/// An entry that does not continue its chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It is longer than [`MAX_ENTRY`].
    #[error("journal entry of {0} bytes is longer than {MAX_ENTRY}")]
    TooLong(usize),
    /// It is not an entry.
    #[error("journal entry cannot be decoded: {0}")]
    Decode(String),
    /// It belongs to another stream.
    #[error("journal entry belongs to {found}, not to {expected}")]
    Stream {
        /// Stream of the chain.
        expected: Stream,
        /// Stream of the entry.
        found: Stream,
    },
    /// Entries between are missing.
    #[error("journal entry {found} does not follow {last}")]
    Gap {
        /// Newest entry.
        last: u64,
        /// Number of the entry.
        found: u64,
    },
    /// Its predecessor is another entry than ours.
    #[error("journal entry {0} follows another entry than the one that is here")]
    Fork(u64),
}

impl Head {
    /// The head of a chain without entries.
    pub fn new(incarnation: Incarnation) -> Self {
        Head { incarnation, seq: 0, hash: [0; 32] }
    }

    /// Appends a fact; returns the encoded entry and moves the head.
    pub fn append(&mut self, stream: Stream, at: Hlc, by: &str, policy_epoch: u64, event: Event) -> Vec<u8> {
        let entry = Entry {
            incarnation: self.incarnation,
            stream,
            seq: self.seq + 1,
            previous: self.hash,
            at,
            by: by.to_string(),
            policy_epoch,
            event: Some(event),
        };
        let bytes = minicbor::to_vec(&entry).expect("encoding into memory cannot fail");
        *self = Head { incarnation: self.incarnation, seq: entry.seq, hash: hash(&bytes) };
        bytes
    }
}

/// Checks that `bytes` continue the chain whose newest entry is `head` (`None`: nothing of the stream is
/// here yet) and returns the entry and the new head.
///
/// # Errors
/// Why they do not. An entry of another incarnation must be number 1.
pub fn follow(stream: Stream, head: Option<&Head>, bytes: &[u8]) -> Result<(Entry, Head), ChainError> {
    let entry = decode(bytes)?;
    let head = continues(stream, head, &entry, bytes)?;
    Ok((entry, head))
}

/// The same for an entry that was decoded from `bytes` already.
///
/// # Errors
/// As [`follow`], but for what decoding finds.
pub fn continues(
    stream: Stream,
    head: Option<&Head>,
    entry: &Entry,
    bytes: &[u8],
) -> Result<Head, ChainError> {
    if entry.stream != stream {
        return Err(ChainError::Stream { expected: stream, found: entry.stream });
    }
    let (last, last_hash) = match head {
        Some(head) if head.incarnation == entry.incarnation => (head.seq, head.hash),
        Some(_) | None => (0, [0; 32]),
    };
    if entry.seq != last + 1 {
        return Err(ChainError::Gap { last, found: entry.seq });
    }
    if entry.previous != last_hash {
        return Err(ChainError::Fork(entry.seq));
    }
    Ok(Head { incarnation: entry.incarnation, seq: entry.seq, hash: hash(bytes) })
}

/// Decodes a stored or received entry.
///
/// # Errors
/// `TooLong` or `Decode`.
pub fn decode(bytes: &[u8]) -> Result<Entry, ChainError> {
    if bytes.len() > MAX_ENTRY {
        return Err(ChainError::TooLong(bytes.len()));
    }
    minicbor::decode(bytes).map_err(|error| ChainError::Decode(error.to_string()))
}

/// Hash that the next entry carries: it covers the encoded bytes, so also what a newer program added.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("holdfast/journal/v1");
    hasher.update(bytes);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: SiteId = SiteId([1; 16]);

    fn three() -> Vec<Vec<u8>> {
        let mut head = Head::new(Incarnation([7; 16]));
        (1..=3)
            .map(|epoch| {
                head.append(
                    Stream::Site(SITE),
                    Hlc(epoch as i64),
                    "ann",
                    epoch,
                    Event::EpochAdopted { epoch },
                )
            })
            .collect()
    }

    #[test]
    fn a_chain_is_followed_from_its_first_entry() {
        let mut head = None;
        for (number, bytes) in (1..).zip(three()) {
            let (entry, next) = follow(Stream::Site(SITE), head.as_ref(), &bytes).unwrap();
            assert_eq!((entry.seq, entry.by.as_str()), (number, "ann"));
            head = Some(next);
        }
        let fresh = Head::new(Incarnation([8; 16])).append(
            Stream::Site(SITE),
            Hlc(9),
            "ann",
            4,
            Event::EpochAdopted { epoch: 4 },
        );
        assert_eq!(follow(Stream::Site(SITE), head.as_ref(), &fresh).unwrap().1.seq, 1);
    }

    #[test]
    fn p15_an_entry_that_was_left_out_changed_or_moved_is_noticed() {
        let entries = three();
        let (_, first) = follow(Stream::Site(SITE), None, &entries[0]).unwrap();
        let check = |head: Option<&Head>, stream, bytes: &[u8], expected: &str| {
            assert_eq!(follow(stream, head, bytes).unwrap_err().to_string(), expected);
        };
        let site = Stream::Site(SITE);
        check(Some(&first), site, &entries[2], "journal entry 3 does not follow 1");
        check(None, site, &entries[1], "journal entry 2 does not follow 0");
        check(
            Some(&first),
            Stream::Central,
            &entries[1],
            "journal entry belongs to site/01010101010101010101010101010101, not to central",
        );
        let mut forged = Head::new(Incarnation([7; 16]));
        forged.append(site, Hlc(1), "eve", 1, Event::EpochAdopted { epoch: 1 });
        let forged = forged.append(site, Hlc(2), "eve", 1, Event::EpochAdopted { epoch: 1 });
        check(Some(&first), site, &forged, "journal entry 2 follows another entry than the one that is here");
        check(None, site, &[0xff; 20_000], "journal entry of 20000 bytes is longer than 16384");
    }

    #[test]
    fn an_event_of_a_newer_program_is_kept_without_being_understood() {
        #[derive(Encode)]
        #[cbor(map)]
        struct Newer {
            #[n(0)]
            incarnation: Incarnation,
            #[n(1)]
            stream: Stream,
            #[n(2)]
            seq: u64,
            #[cbor(n(3), with = "minicbor::bytes")]
            previous: [u8; 32],
            #[n(4)]
            at: Hlc,
            #[n(5)]
            by: String,
            #[n(6)]
            policy_epoch: u64,
            #[n(7)]
            event: NewerEvent,
            #[n(8)]
            colour: &'static str,
        }
        #[derive(Encode)]
        #[cbor(map)]
        enum NewerEvent {
            #[n(4_000)]
            MoonRose {
                #[n(0)]
                phase: u64,
            },
        }
        let bytes = minicbor::to_vec(Newer {
            incarnation: Incarnation([7; 16]),
            stream: Stream::Central,
            seq: 1,
            previous: [0; 32],
            at: Hlc(1),
            by: "a newer program".into(),
            policy_epoch: 0,
            event: NewerEvent::MoonRose { phase: 3 },
            colour: "silver",
        })
        .unwrap();
        let (entry, head) = follow(Stream::Central, None, &bytes).unwrap();
        assert_eq!((entry.event, entry.by.as_str()), (None, "a newer program"));
        assert_eq!(head.hash, hash(&bytes));
    }
}
