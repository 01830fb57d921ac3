//! What the targets share: how an input is cut into parts, and what counts as a finding.
//!
//! An input is a document (kind and id) or nothing, and then parts, each with its length before it. Chunks are
//! sealed here, so that whoever mutates need not know of lengths and checksums.

use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::Change;
use sha2::{Digest, Sha256};
use sync::{
    document::{Document, Kind},
    id::{DocumentId, SiteId},
    ingress::{Admission, Authority, Delivery, UnknownKeys, Write, admit, authorize, verify},
    policy::Autonomy,
};

/// Panics of foreign code under guard are no findings: only what leaves the code under test is.
pub fn be_quiet() {
    std::panic::set_hook(Box::new(|_| {}));
}

/// Runs a target; a panic that leaves it is a finding.
pub fn hunt(run: impl FnOnce()) {
    if let Err(cause) = catch_unwind(AssertUnwindSafe(run)) {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string));
        eprintln!("finding: {}", text.unwrap_or_default());
        std::process::abort();
    }
}

/// The document that an input is about, and what follows.
pub fn document(data: &[u8]) -> Option<(Kind, DocumentId, &[u8])> {
    let (first, rest) = data.split_first()?;
    let kind = Kind::from_number(first % 5 + 1)?;
    let (id, rest) = rest.split_first_chunk::<16>()?;
    Some((kind, DocumentId(*id), rest))
}

/// The parts of an input, each behind its length in two bytes, little end first; the last may be cut short.
pub fn parts(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(behind.len());
        let (part, behind) = behind.split_at(length);
        parts.push(part);
        rest = behind;
    }
    parts
}

/// A chunk of Automerge's with the length and checksum that it should have.
pub fn seal(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut covered = vec![kind];
    let mut length = body.len();
    while length > 0x7f {
        covered.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    covered.push(length as u8);
    covered.extend_from_slice(body);
    let digest = Sha256::digest(&covered);
    [&[0x85, 0x6f, 0x4a, 0x83], &digest[..4], &covered].concat()
}

/// Takes changes into an empty document as central does, whatever the judge says, and checks that it survives.
pub fn take(kind: Kind, id: DocumentId, batch: &[Vec<u8>]) -> Admission {
    let site = Delivery {
        site: SiteId([2; 16]),
        name: "lyon".into(),
        actor_is_theirs: true,
        autonomy: Autonomy::Full,
        released: false,
        beyond: false,
    };
    let judge = |document: &Document, change: &Change, writes: &[Write]| {
        drop(authorize(document, change, writes, &site));
        Ok(())
    };
    let slices: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
    let empty = Document::new(kind, id);
    let admission = admit(&empty, &slices, UnknownKeys::Refuse, Authority::Judged(&judge));
    if let Some(document) = &admission.document {
        verify(document).expect("the document survives");
    }
    admission
}
