//! The messages of a session.

use minicbor::{Decode, Encode};

use super::Versions;
use crate::{
    id::{DocumentId, Incarnation, NodeId, SiteId},
    journal::Mark,
    time::Timestamp,
};

/// Hash over a log up to a position: it tells whether two replicas mean the same log.
#[derive(Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Rolling(#[cbor(with = "minicbor::bytes")] pub [u8; 16]);

impl Rolling {
    /// Continues over one more item, given as encoded.
    #[must_use]
    pub fn over(self, item: &[u8]) -> Rolling {
        let mut hasher = blake3::Hasher::new_derive_key("holdfast/log/v1");
        hasher.update(&self.0);
        hasher.update(item);
        Rolling(hasher.finalize().as_bytes()[..16].try_into().expect("a BLAKE3 digest has 32 bytes"))
    }
}

impl std::fmt::Debug for Rolling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::id::hex(&self.0[..4]))
    }
}

/// A mark that only central can make, by a key that never leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct Seal(#[cbor(with = "minicbor::bytes")] pub [u8; 16]);

/// A position in a log, the number of items up to and including it, with the hash over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Cursor {
    /// Number of the last item; 0 before the first.
    #[n(0)]
    pub position: u64,
    /// Hash over all items up to it.
    #[n(1)]
    pub rolling: Rolling,
}

/// What a replica holds: how many changes, the sum of their hashes, and the sum of its documents' heads.
///
/// Sums are modulo 2^128 over the first 16 bytes of each hash, so that their order does not matter and
/// what the peer has not acknowledged can be taken off again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Fingerprint {
    /// Number of changes.
    pub changes: u64,
    /// Sum over the changes.
    pub sum: u128,
    /// Sum over `blake3(document, sorted heads)` of every document; absent where something is not
    /// acknowledged, because then heads differ rightly.
    pub heads: Option<u128>,
}

impl Fingerprint {
    /// Adds a change by its hash.
    pub fn add(&mut self, change: &[u8; 32]) {
        self.changes = self.changes.wrapping_add(1);
        self.sum = self.sum.wrapping_add(first_half(change));
    }

    /// Takes a change off by its hash.
    pub fn remove(&mut self, change: &[u8; 32]) {
        self.changes = self.changes.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(first_half(change));
    }

    /// Adds a document by the hashes of its sorted heads.
    pub fn add_heads(&mut self, document: DocumentId, heads: &[u8]) {
        let mut hasher = blake3::Hasher::new_derive_key("holdfast/heads/v1");
        hasher.update(document.as_bytes());
        hasher.update(heads);
        let sum = self.heads.get_or_insert(0);
        *sum = sum.wrapping_add(first_half(hasher.finalize().as_bytes()));
    }

    /// Whether two replicas hold the same, as far as both could say.
    pub fn agrees(&self, other: &Fingerprint) -> bool {
        let heads = match (self.heads, other.heads) {
            (Some(ours), Some(theirs)) => ours == theirs,
            (None, _) | (_, None) => true,
        };
        heads && (self.changes, self.sum) == (other.changes, other.sum)
    }
}

fn first_half(hash: &[u8; 32]) -> u128 {
    u128::from_be_bytes(hash[..16].try_into().expect("16 of 32 bytes"))
}

impl<C> Encode<C> for Fingerprint {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.array(3)?.u64(self.changes)?.bytes(&self.sum.to_be_bytes())?;
        match self.heads {
            Some(heads) => encoder.bytes(&heads.to_be_bytes())?.ok(),
            None => encoder.null()?.ok(),
        }
    }
}

impl<'b, C> Decode<'b, C> for Fingerprint {
    fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let wide = |bytes: &[u8]| -> Result<u128, minicbor::decode::Error> {
            let bytes =
                bytes.try_into().map_err(|_| minicbor::decode::Error::message("a sum has 16 bytes"))?;
            Ok(u128::from_be_bytes(bytes))
        };
        if decoder.array()? != Some(3) {
            return Err(minicbor::decode::Error::message("a fingerprint has three parts"));
        }
        let changes = decoder.u64()?;
        let sum = wide(decoder.bytes()?)?;
        let heads = if decoder.datatype()? == minicbor::data::Type::Null {
            decoder.null()?;
            None
        } else {
            Some(wide(decoder.bytes()?)?)
        };
        Ok(Fingerprint { changes, sum, heads })
    }
}

/// One item of a log. Its encoding is what the rolling hash covers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Item {
    /// Number of the document's kind, for a change.
    #[n(0)]
    pub kind: Option<u8>,
    /// The document, for a change.
    #[n(1)]
    pub document: Option<DocumentId>,
    /// The raw change chunk.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub change: Option<Vec<u8>>,
    /// An encoded journal entry.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub entry: Option<Vec<u8>>,
    /// Beside a change that central told once: by it central knows the change again, whoever brings it.
    #[n(4)]
    pub seal: Option<Seal>,
    /// From central: the document leaves what the site holds. Never a deletion: it lives on elsewhere.
    #[n(5)]
    pub dropped: Option<bool>,
    /// From central: machines and where they belong.
    #[n(6)]
    pub stubs: Option<Vec<Stub>>,
    /// From central: it did not take everything that the site wrote into the document.
    #[n(7)]
    pub reset: Option<Reset>,
    /// On the wire only, from central: the changes of a whole document.
    #[n(8)]
    pub snapshot: Option<Snapshot>,
    /// On the wire only: a journal entry that follows the one before it in the same frame.
    #[n(9)]
    pub linked: Option<Linked>,
    /// From central: the newest entry that it has of a chain of the site's journal; what came next does not
    /// follow it, and nothing more of that chain will be taken.
    #[n(10)]
    pub broken: Option<StreamHead>,
    /// From central: whether it is in recovery. Orders that arrive while it is wait at the site.
    #[n(11)]
    pub recovering: Option<bool>,
    /// What the sender says of its journal: a signed head, or from where on it is kept.
    #[n(12)]
    pub mark: Option<Mark>,
    /// From central: of which machines the site is not told any more where they belong.
    #[n(13)]
    pub gone: Option<Gone>,
    /// On the wire only, from central: a change without what the reader can find out.
    #[n(14)]
    pub brief: Option<Brief>,
    /// From central: changes of the document that it takes back, 32 bytes each. It wrote them after its database
    /// had gone back in time, and what it had written before under the same numbers came back.
    #[cbor(n(16), with = "minicbor::bytes")]
    pub withdrawn: Option<Vec<u8>>,
}

/// What leaves the directory of a site. What is not in it is unknown there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Gone {
    /// These machines.
    #[n(0)]
    pub nodes: Vec<NodeId>,
    /// All machines that the site was told to be at home at these sites.
    #[n(1)]
    pub homes: Vec<SiteId>,
    /// Whatever was told before `Begin` and was not told again until `End`. The site keeps it until then.
    #[n(2)]
    pub anew: Option<Anew>,
}

/// The directory is told anew, as after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Anew {
    /// From here on.
    #[n(0)]
    Begin,
    /// Up to here: now all of it was told.
    #[n(1)]
    End,
}

/// All changes of a document up to some heads, in place of as many items. The items come out as they were;
/// see `engine::pack`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Snapshot {
    /// Number of the document's kind.
    #[n(0)]
    pub kind: u8,
    /// The document.
    #[n(1)]
    pub document: DocumentId,
    /// It, as Automerge saves it without compression.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
    /// Seals of its changes in the order of the log, 16 bytes each; empty where they have none.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub seals: Vec<u8>,
    /// Which change of the document comes first in the log, which second, two bytes each, most significant
    /// first. The changes are counted by first operation, then by hash; empty where that is their order.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub order: Vec<u8>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot { kind: 0, document: DocumentId([0; 16]), bytes: vec![], seals: vec![], order: vec![] }
    }
}

/// A change without its header, and with the beginnings of the hashes that it depends on: whoever takes it has the
/// changes that they name. See `engine::brief`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Brief {
    /// Number of the document's kind.
    #[n(0)]
    pub kind: u8,
    /// The document.
    #[n(1)]
    pub document: DocumentId,
    /// What central put beside the change.
    #[n(2)]
    pub seal: Option<Seal>,
    /// The first [`Brief::NAME`] bytes of each dependency.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub deps: Vec<u8>,
    /// What follows the dependencies in the change.
    #[cbor(n(4), with = "minicbor::bytes")]
    pub rest: Vec<u8>,
    /// Where in it the actor of the document's genesis is left out, if it is.
    #[n(5)]
    pub genesis_at: Option<u64>,
}

impl Brief {
    /// Bytes of a hash that name a change among those of one document.
    pub const NAME: usize = 6;
}

/// A journal entry without the hash of the entry before it, which the reader has just read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Linked {
    /// What is left.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub rest: Vec<u8>,
    /// Where the hash stands.
    #[n(1)]
    pub at: u64,
}

/// What every site knows of a machine that is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Stub {
    /// The machine.
    #[n(0)]
    pub node: NodeId,
    /// Where it is at home.
    #[n(1)]
    pub home: Option<SiteId>,
    /// Number of moves.
    #[n(2)]
    pub home_epoch: u64,
    /// Never to be served again.
    #[n(3)]
    pub retired: bool,
}

/// What central took of a document, and what it did not. The site brings its copy to that, and writes the
/// rest anew, but for what was refused.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Reset {
    /// Central's heads of the document, 32 bytes each, ascending; none where it holds the genesis only.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub heads: Vec<u8>,
    /// Up to this position of the site's log nothing more of the document will be taken.
    #[n(1)]
    pub upto: u64,
    /// Changes that were not taken.
    #[n(2)]
    pub refused: Vec<Refusal>,
}

/// A change that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Refusal {
    /// Its hash; of bytes that are no change, of nothing.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub change: Vec<u8>,
    /// Whether the site may not write that. Otherwise the bytes were not sound, and what they say is
    /// written anew.
    #[n(1)]
    pub denied: bool,
    /// Why, for people.
    #[n(2)]
    pub reason: String,
}

impl Item {
    /// A change of a document.
    pub fn change(kind: u8, document: DocumentId, change: Vec<u8>) -> Self {
        Item { kind: Some(kind), document: Some(document), change: Some(change), ..Item::default() }
    }

    /// A journal entry.
    pub fn entry(entry: Vec<u8>) -> Self {
        Item { entry: Some(entry), ..Item::default() }
    }

    /// That a document leaves what the site holds.
    pub fn dropped(kind: u8, document: DocumentId) -> Self {
        Item { kind: Some(kind), document: Some(document), dropped: Some(true), ..Item::default() }
    }

    /// Machines and where they belong.
    pub fn stubs(stubs: Vec<Stub>) -> Self {
        Item { stubs: Some(stubs), ..Item::default() }
    }

    /// What leaves the directory of a site.
    pub fn gone(gone: Gone) -> Self {
        Item { gone: Some(gone), ..Item::default() }
    }

    /// What was taken of a document, and what was not.
    pub fn reset(kind: u8, document: DocumentId, reset: Reset) -> Self {
        Item { kind: Some(kind), document: Some(document), reset: Some(reset), ..Item::default() }
    }

    /// Changes that central takes back, 32 bytes each.
    pub fn withdrawn(kind: u8, document: DocumentId, hashes: Vec<u8>) -> Self {
        Item { kind: Some(kind), document: Some(document), withdrawn: Some(hashes), ..Item::default() }
    }

    /// Whether central is in recovery.
    pub fn recovering(is: bool) -> Self {
        Item { recovering: Some(is), ..Item::default() }
    }

    /// A signed head of the journal, or from where on it is kept.
    pub fn mark(mark: Mark) -> Self {
        Item { mark: Some(mark), ..Item::default() }
    }

    /// Whether encoded bytes are that: such an item is a map with this one key.
    pub fn is_mark(bytes: &[u8]) -> bool {
        bytes.starts_with(&[0xa1, 12])
    }

    /// That a chain of the journal broke after this entry.
    pub fn broken(newest: StreamHead) -> Self {
        Item { broken: Some(newest), ..Item::default() }
    }

    /// The bytes that are sent and hashed.
    pub fn to_bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("encoding into memory cannot fail")
    }
}

/// What one side holds of a document.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Holding {
    /// Number of its kind; 0 where it is not held at all.
    #[n(0)]
    pub kind: u8,
    /// The document.
    #[n(1)]
    pub document: DocumentId,
    /// Hashes of its heads, 32 bytes each, ascending; none where it is not held. Central names those of the
    /// site's heads that it has, which is all the site needs where these are all.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub heads: Vec<u8>,
    /// From central: it holds the document, which is not in the site's scope.
    #[n(3)]
    pub outside: Option<bool>,
}

/// The newest entry that one side holds of the other's journal stream, in one life of its writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct StreamHead {
    /// Life of the database that wrote it.
    #[n(0)]
    pub incarnation: Incarnation,
    /// Number of the entry in that life.
    #[n(1)]
    pub seq: u64,
    /// Its hash.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub hash: [u8; 32],
}

/// What one side tells of itself so that the other can say what is lacking.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Holdings {
    /// The documents in which both differ.
    #[n(0)]
    pub documents: Vec<Holding>,
    /// What is held of the receiver's journal, by life.
    #[n(1)]
    pub streams: Vec<StreamHead>,
    /// From a site: hashes of the entries of its journal that central never acknowledged. From central:
    /// those of them that it holds.
    #[n(2)]
    pub entries: Vec<minicbor::bytes::ByteArray<32>>,
    /// From a site: it holds no document at all, so nothing was compared and everything is lacking.
    #[n(3)]
    pub nothing: Option<bool>,
}

/// What a site tells of itself now and then. It is overwritten, never kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Telemetry {
    /// Version of the program.
    #[n(0)]
    pub version: String,
    /// Seconds since it started.
    #[n(1)]
    pub uptime_s: u64,
    /// Log items that central has not acknowledged.
    #[n(2)]
    pub unacknowledged: u64,
    /// Blobs that are wanted and not here.
    #[n(3)]
    pub blobs_wanted: u64,
    /// Boot requests seen in this run.
    #[n(4)]
    pub boots_seen: u64,
    /// Bytes of content on disk.
    #[n(5)]
    pub blob_bytes: u64,
    /// Why it follows no orders, if so.
    #[n(6)]
    pub suspended: Option<String>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub enum Message {
    /// The site's first words.
    #[n(0)]
    Hello {
        /// Versions that the site speaks.
        #[n(0)]
        versions: Versions,
        /// Who it is; must be what its certificate says.
        #[n(1)]
        site: SiteId,
        /// Life of its database.
        #[n(2)]
        incarnation: Incarnation,
        /// Settings epoch that it follows.
        #[n(3)]
        policy_epoch: u64,
        /// What it has of central's log.
        #[n(4)]
        pulled: Cursor,
        /// What it knows central to have of its own log; it sends from the next item on.
        #[n(5)]
        pushed: Cursor,
        /// What it holds, less what central has not acknowledged.
        #[n(6)]
        fingerprint: Fingerprint,
        /// Its clock.
        #[n(7)]
        clock: Timestamp,
        /// Life of central's database that `pulled` and `pushed` speak of; absent while both sides have
        /// no common log.
        #[n(8)]
        central: Option<Incarnation>,
        /// What central put beside `pulled`, so that it knows its own log again.
        #[n(9)]
        seal: Option<Seal>,
        /// A snapshot could not be read here: central is to send changes only.
        #[n(10)]
        plain: Option<bool>,
        /// Which log they speak of: how often both began their logs anew, as central counts. Absent where the
        /// site has begun anew and both have to find out what each lacks.
        #[n(11)]
        log: Option<u64>,
    },
    /// Central's first words.
    #[n(1)]
    HelloOk {
        /// Version that is spoken from here on.
        #[n(0)]
        version: u32,
        /// What central has of the site's log.
        #[n(1)]
        pulled: Cursor,
        /// Whether both hold the same; absent if that cannot be said yet.
        #[n(2)]
        agrees: Option<bool>,
        /// Central's clock.
        #[n(3)]
        clock: Timestamp,
        /// Life of central's database.
        #[n(4)]
        incarnation: Incarnation,
        /// Whether both logs begin anew, because one of both sides lives in another database than before.
        #[n(5)]
        join: bool,
        /// Over how many milliseconds the sites shall spread their return, should all of them lose central at
        /// once.
        #[n(6)]
        spread_ms: u32,
        /// How often both logs were begun anew, this time included.
        #[n(7)]
        log: u64,
    },
    /// The sender does not go on; the connection ends.
    #[n(2)]
    Refuse {
        /// One of the codes in [`refuse`].
        #[n(0)]
        code: u32,
        /// What, why and what next, for people.
        #[n(1)]
        reason: String,
    },
    /// The next items of the sender's log.
    #[n(3)]
    Log {
        /// Position of the first.
        #[n(0)]
        from: u64,
        /// The items, each encoded, in order.
        #[n(1)]
        items: Vec<minicbor::bytes::ByteVec>,
        /// From central: what it knows its log again by at the last of them.
        #[n(2)]
        seal: Option<Seal>,
    },
    /// Everything up to here is committed at the sender of this message.
    #[n(4)]
    Ack {
        /// Position in the receiver's log.
        #[n(0)]
        position: u64,
    },
    /// The site asks whether both hold the same.
    #[n(5)]
    Compare {
        /// What the site has of central's log.
        #[n(0)]
        pulled: u64,
        /// What central had acknowledged of the site's log.
        #[n(1)]
        pushed: u64,
        /// What the site holds at these positions.
        #[n(2)]
        fingerprint: Fingerprint,
    },
    /// Central's answer.
    #[n(6)]
    Compared {
        /// Position asked about, to match the question.
        #[n(0)]
        pulled: u64,
        /// Whether both hold the same; absent if that cannot be said at these positions.
        #[n(1)]
        agrees: Option<bool>,
    },
    /// The sender is there.
    #[n(7)]
    Heartbeat {
        /// Its clock.
        #[n(0)]
        clock: Timestamp,
        /// What a site tells of itself; absent from central.
        #[n(1)]
        telemetry: Option<Telemetry>,
    },
    /// A part of a message of the set reconciliation, from the site a question, from central its answer.
    #[n(8)]
    Differences {
        /// The next bytes of it.
        #[cbor(n(0), with = "minicbor::bytes")]
        bytes: Vec<u8>,
        /// Whether the message ends here.
        #[n(1)]
        last: bool,
    },
    /// A part of what the sender holds, first from the site, then from central.
    #[n(9)]
    Holdings {
        /// The next part.
        #[n(0)]
        part: Holdings,
        /// Whether it ends here.
        #[n(1)]
        last: bool,
    },
    /// Central takes nothing of the site's log now. In answer to a greeting the site greets again later, over
    /// the same connection; afterwards it sends again what follows `position`.
    #[n(10)]
    Busy {
        /// How long the site shall wait.
        #[n(0)]
        retry_after_ms: u32,
        /// What central has taken of the site's log in this session, committed or not.
        #[n(1)]
        position: u64,
        /// Why, for people.
        #[n(2)]
        reason: String,
    },
}

/// Codes of [`Message::Refuse`].
pub mod refuse {
    /// No common version.
    pub const VERSION: u32 = 1;
    /// The logs of both sides are not continuations of each other.
    pub const FORK: u32 = 2;
    /// The message breaks the protocol.
    pub const PROTOCOL: u32 = 3;
    /// The site in Hello is not the one in the certificate.
    pub const IDENTITY: u32 = 4;
    /// The peer's replica cannot go on, such as with a full disk.
    pub const REPLICA: u32 = 5;
}
