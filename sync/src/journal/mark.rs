//! What a replica says of its journal besides the entries: that it signed how far a stream goes, or that it does
//! not keep the beginning of one any more.
//!
//! A mark travels in the same log as the entries, after those that it speaks of. Nothing is signed or verified in
//! here: [`Mark::statement`] is what whoever holds a key signs.

use minicbor::{Decode, Encode, bytes::ByteVec};

use super::{Head, Stream};
use crate::{id::Incarnation, time::Timestamp};

/// Largest serial number or digest, and largest signature, that is kept, in bytes.
pub const MAX_PART: usize = 128;

/// How far a stream goes in one life of its writer, or from where on it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Mark {
    /// Life of the database that wrote the stream.
    #[n(0)]
    pub incarnation: Incarnation,
    /// Number of the entry.
    #[n(1)]
    pub seq: u64,
    /// Its hash.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub hash: [u8; 32],
    /// When the mark was made, by the writer's clock.
    #[n(3)]
    pub at: Timestamp,
    /// Who signed: a site by the serial number of its certificate, central by the digest of its authority.
    #[n(4)]
    pub signer: Option<ByteVec>,
    /// ECDSA over [`statement`](Self::statement), ASN.1.
    #[n(5)]
    pub signature: Option<ByteVec>,
    /// Whether the entries up to this one are not kept at the writer any more: who does not have them goes on
    /// from here.
    #[n(6)]
    pub trimmed: Option<bool>,
}

impl Mark {
    /// The head of a chain, to be signed.
    pub fn of(head: &Head, at: Timestamp) -> Self {
        let Head { incarnation, seq, hash } = *head;
        Mark { incarnation, seq, hash, at, signer: None, signature: None, trimmed: None }
    }

    /// That what is up to the head is not kept any more.
    pub fn trimmed(head: &Head, at: Timestamp) -> Self {
        Mark { trimmed: Some(true), ..Mark::of(head, at) }
    }

    /// The same with a signature.
    #[must_use]
    pub fn signed(self, signer: Vec<u8>, signature: Vec<u8>) -> Self {
        Mark { signer: Some(signer.into()), signature: Some(signature.into()), ..self }
    }

    /// The bytes that are signed: no certificate begins like this, and no other stream or instant gives the same.
    pub fn statement(&self, stream: Stream) -> Vec<u8> {
        let said = (stream, self.incarnation, self.seq, minicbor::bytes::ByteArray::from(self.hash), self.at);
        let mut bytes = b"holdfast/journal-head/v1\n".to_vec();
        minicbor::encode(said, &mut bytes).expect("encoding into memory cannot fail");
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SiteId;

    #[test]
    fn p15_a_statement_is_of_one_stream_life_entry_and_instant() {
        let head = Head { incarnation: Incarnation([7; 16]), seq: 3, hash: [9; 32] };
        let mark = Mark::of(&head, Timestamp(1));
        let site = Stream::Site(SiteId([1; 16]));
        let others = [
            (Stream::Down(SiteId([1; 16])), mark.clone()),
            (site, Mark { incarnation: Incarnation([8; 16]), ..mark.clone() }),
            (site, Mark { seq: 4, ..mark.clone() }),
            (site, Mark { hash: [8; 32], ..mark.clone() }),
            (site, Mark { at: Timestamp(2), ..mark.clone() }),
        ];
        let statement = mark.statement(site);
        assert!(others.iter().all(|(stream, other)| other.statement(*stream) != statement));
        // Who signed is no part of it: the key says that.
        assert_eq!(mark.clone().signed(vec![1], vec![2]).statement(site), statement);
        let bytes = minicbor::to_vec(mark.clone().signed(vec![1], vec![2])).unwrap();
        assert_eq!(minicbor::decode::<Mark>(&bytes).unwrap(), mark.signed(vec![1], vec![2]));
    }
}
