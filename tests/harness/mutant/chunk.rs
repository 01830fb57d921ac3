//! Automerge's chunks in pieces: header, what comes before the columns, the columns.
//!
//! Format: <https://automerge.org/automerge-binary-format-spec/>. Only honest chunks are taken apart; what is
//! put together is anything.

use sha2::{Digest, Sha256};

use super::{bytes, draw};
use crate::{corpus::pick, random::Random};

const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];

/// Mutates the body of a chunk and gives it the length and checksum that it should have.
pub fn reseal(
    random: &mut Random,
    honest: &[u8],
    mutate: impl FnOnce(&mut Random, &[u8]) -> Vec<u8>,
) -> Vec<u8> {
    let Some((kind, body)) = split(honest) else { return bytes::mutate(random, honest) };
    let body = mutate(random, body);
    // Now and then another type of chunk, or a checksum that really is wrong.
    let kind = if random.chance(1) { *draw(random, &[0, 1, 2, 3, 4]) } else { kind };
    let mut sealed = seal(kind, &body);
    if random.chance(1) {
        sealed[4] ^= 1;
    }
    sealed
}

/// Type and body of a chunk.
pub fn split(chunk: &[u8]) -> Option<(u8, &[u8])> {
    let mut rest = chunk.get(8..)?;
    let kind = *take(&mut rest, 1)?.first()?;
    unsigned(&mut rest)?;
    Some((kind, rest))
}

/// A chunk with the length and checksum that it should have.
pub fn seal(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut covered = vec![kind];
    push(&mut covered, body.len() as u64);
    covered.extend(body);
    let digest = Sha256::digest(&covered);
    [&MAGIC[..], &digest[..4], &covered].concat()
}

/// Mutates one or two columns of a change or a document, sometimes with those of another one, and seals it.
/// Nothing if `honest` is neither.
pub fn columns(random: &mut Random, honest: &[u8], donor: &[u8]) -> Option<Vec<u8>> {
    let mut pieces = Pieces::of(honest)?;
    let donor = Pieces::of(donor)?;
    for _ in 0..=random.below(2) {
        pieces.mutate(random, &donor);
    }
    Some(pieces.chunk())
}

/// A change or document in pieces.
struct Pieces {
    kind: u8,
    before: Vec<u8>,
    /// Lists of columns, by specification: one in a change, two in a document.
    lists: Vec<Vec<(u64, Vec<u8>)>>,
    after: Vec<u8>,
}

impl Pieces {
    fn of(chunk: &[u8]) -> Option<Self> {
        let (kind, body) = split(chunk)?;
        let mut rest = body;
        let lists = match kind {
            0 => {
                actors(&mut rest)?;
                let heads = unsigned(&mut rest)?;
                take(&mut rest, usize::try_from(heads).ok()?.checked_mul(32)?)?;
                2
            }
            1 => {
                let deps = unsigned(&mut rest)?;
                take(&mut rest, usize::try_from(deps).ok()?.checked_mul(32)?)?;
                actor(&mut rest)?;
                for _ in 0..3 {
                    // Number, first operation and time; a signed number ends where an unsigned one does.
                    unsigned(&mut rest)?;
                }
                actor(&mut rest)?;
                actors(&mut rest)?;
                1
            }
            _ => return None,
        };
        let before = body[..body.len() - rest.len()].to_vec();
        let mut lengths = Vec::new();
        for _ in 0..lists {
            let mut list = Vec::new();
            for _ in 0..unsigned(&mut rest)? {
                list.push((unsigned(&mut rest)?, unsigned(&mut rest)?));
            }
            lengths.push(list);
        }
        let mut lists = Vec::new();
        for list in lengths {
            let mut columns = Vec::new();
            for (column, length) in list {
                columns.push((column, take(&mut rest, usize::try_from(length).ok()?)?.to_vec()));
            }
            lists.push(columns);
        }
        Some(Pieces { kind, before, lists, after: rest.to_vec() })
    }

    fn mutate(&mut self, random: &mut Random, donor: &Pieces) {
        let list = pick(random, self.lists.len());
        let other = donor.lists.get(list).cloned().unwrap_or_default();
        if random.chance(10) {
            let part = if random.chance(50) { &mut self.before } else { &mut self.after };
            *part = bytes::mutate(random, part);
            return;
        }
        let columns = &mut self.lists[list];
        if columns.is_empty() {
            columns.extend(other);
            return;
        }
        let at = pick(random, columns.len());
        let specification = columns[at].0;
        match random.below(10) {
            0 => drop(columns.remove(at)),
            1 => columns[at].0 = *draw(random, &[0x11, 0x13, 0x21, 0x36, 0x4a, 0x94, 0xa5, 0x1_0007]),
            2..5 => {
                if let Some((_, data)) = other.into_iter().find(|(column, _)| *column == specification) {
                    columns[at].1 = data;
                }
            }
            5..8 => runs(random, &mut columns[at].1),
            _ => columns[at].1 = bytes::mutate(random, &columns[at].1),
        }
    }

    fn chunk(&self) -> Vec<u8> {
        let mut body = self.before.clone();
        for list in &self.lists {
            push(&mut body, list.len() as u64);
            for (column, data) in list {
                push(&mut body, *column);
                push(&mut body, data.len() as u64);
            }
        }
        for (_, data) in self.lists.iter().flatten() {
            body.extend(data);
        }
        body.extend(&self.after);
        seal(self.kind, &body)
    }
}

/// Claims another length of the first run, or puts a run before it.
fn runs(random: &mut Random, data: &mut Vec<u8>) {
    let length = *draw(random, &[0, 1, 2, 3, 60, 1 << 10, 1 << 13, 1 << 20, 1 << 33, 1 << 62]);
    let mut new = Vec::new();
    push(&mut new, length);
    // Bit 6 of the last byte is the sign of a run: what is positive needs one more byte where it is set.
    if new.last().is_some_and(|last| last & 0x40 != 0) {
        if let Some(last) = new.last_mut() {
            *last |= 0x80;
        }
        new.push(0);
    }
    let mut rest = &data[..];
    let first = unsigned(&mut rest).map_or(0, |_| data.len() - rest.len());
    if random.chance(50) {
        data.splice(..first, new);
    } else {
        new.push(u8::try_from(random.below(128)).expect("a byte"));
        data.splice(..0, new);
    }
}

fn actors(rest: &mut &[u8]) -> Option<()> {
    (0..unsigned(rest)?).try_for_each(|_| actor(rest))
}

/// Anything that has its length before it.
fn actor(rest: &mut &[u8]) -> Option<()> {
    let length = usize::try_from(unsigned(rest)?).ok()?;
    take(rest, length).map(drop)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// Unsigned LEB128.
fn unsigned(rest: &mut &[u8]) -> Option<u64> {
    let mut number: u64 = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn push(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits");
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use sync::{
        document::{Document, Kind, genesis},
        id::DocumentId,
    };

    use super::*;

    #[test]
    fn honest_chunks_are_put_together_as_they_were() {
        let id = DocumentId([7; 16]);
        for kind in Kind::ALL {
            let change = genesis::change(*kind, id).raw_bytes().to_vec();
            assert_eq!(Pieces::of(&change).expect("a change").chunk(), change);
            let snapshot = Document::new(*kind, id).snapshot();
            assert_eq!(Pieces::of(&snapshot).expect("a document").chunk(), snapshot);
        }
    }

    #[test]
    fn what_is_sealed_passes_the_checksum() {
        let change = genesis::change(Kind::Node, DocumentId([7; 16])).raw_bytes().to_vec();
        let mut checksums = 0;
        for seed in 0..1_000 {
            let mutant = reseal(&mut Random::new(seed), &change, bytes::mutate);
            let found = sync::ingress::lint(&mutant);
            checksums += u64::from(found == Err(sync::ingress::LintError::Checksum));
        }
        assert!((1..50).contains(&checksums), "about one in a hundred is sealed wrongly: {checksums}");
    }
}
