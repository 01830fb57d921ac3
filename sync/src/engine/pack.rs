//! What items of a log are on the wire, where that is shorter than the items themselves.
//!
//! A log is items, one per position, and its rolling hash covers those. On the way a run of them may stand as
//! one: all changes of a document that the peer does not have yet as a [`Snapshot`] of it, a journal entry
//! that follows the one before it in the same frame as a [`Linked`] one, which leaves out the hash that the
//! reader can compute, and any other change as a [`Brief`](crate::wire::Brief), which leaves out more
//! ([`brief`]). [`pack`] makes the short form and knows that it comes apart into the very same bytes;
//! [`unpack`] takes it apart, but for the last, which only the replica can. Positions, hashes, fingerprints, seals and
//! acknowledgements are those of the items.
//!
//! Only central sends snapshots and changes in short form ([decision
//! 0021](../../../docs/decisions/0021-snapshots-are-a-short-form.md), [decision
//! 0023](../../../docs/decisions/0023-a-change-names-what-its-reader-has.md)).

use automerge::Change;
use minicbor::bytes::ByteVec;

use super::{brief, session::WINDOW};
use crate::{
    document::{Document, Kind},
    id::DocumentId,
    ingress::snapshot,
    journal::chain,
    wire::{Item, Linked, Seal, Snapshot, frame},
};

/// Most bytes that the items of one frame may come apart into. Whoever sends reads less than that at once.
const MAX_UNPACKED: usize = WINDOW;

/// First bytes of the short forms: a map with one key.
const SNAPSHOT: [u8; 2] = [0xa1, 8];
const LINKED: [u8; 2] = [0xa1, 9];

/// Bytes of a hash that an entry carries.
const HASH: usize = 32;

/// Short forms that do not come apart.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Whoever sent it may not send snapshots, nor changes in short form.
    #[error("only central sends snapshots and changes in short form")]
    NotCentral,
    /// Not what the format says, for this reason.
    #[error("item cannot be unpacked: {0}")]
    Malformed(String),
    /// A snapshot that cannot be read, or is not the changes that it stands for.
    #[error("snapshot of document {document} cannot be taken apart: {why}")]
    Snapshot {
        /// The document.
        document: DocumentId,
        /// Why, for people.
        why: String,
    },
    /// A change in short form that can be none.
    #[error(transparent)]
    Brief(#[from] brief::BriefError),
    /// More than [`MAX_UNPACKED`].
    #[error("items unpack to more than {MAX_UNPACKED} bytes")]
    TooLong,
}

/// Puts items of our log into the shortest form, in the same order; `short` where the peer takes what only central
/// sends.
pub fn pack(items: Vec<Vec<u8>>, short: bool) -> Vec<Vec<u8>> {
    let mut packed = Vec::with_capacity(items.len());
    let mut run = Run::default();
    let mut before: Option<Vec<u8>> = None;
    for bytes in items {
        let Ok(item) = minicbor::decode::<Item>(&bytes) else {
            run.end(&mut packed);
            packed.push(bytes);
            continue;
        };
        if short && run.takes(&item, &bytes) {
            continue;
        }
        run.end(&mut packed);
        if short && run.takes(&item, &bytes) {
            continue;
        }
        packed.push(match (&item.entry, &before) {
            (Some(entry), Some(before)) => linked(entry, before).unwrap_or(bytes),
            _ => bytes,
        });
        if item.entry.is_some() {
            before = item.entry;
        }
    }
    run.end(&mut packed);
    packed
}

/// Takes the items of one frame apart, one per position. What `engine::brief` takes apart stays as it is.
///
/// # Errors
/// What is wrong with them; nothing of the frame counts then.
pub fn unpack(items: Vec<ByteVec>, may_be_short: bool) -> Result<Vec<Vec<u8>>, UnpackError> {
    let mut unpacked: Vec<Vec<u8>> = Vec::with_capacity(items.len());
    let mut total = 0;
    let mut before: Option<Vec<u8>> = None;
    for bytes in items {
        let bytes = Vec::from(bytes);
        let begin = unpacked.len();
        if bytes.starts_with(&SNAPSHOT) {
            if !may_be_short {
                return Err(UnpackError::NotCentral);
            }
            let item = decode(&bytes)?;
            unpacked.extend(take_apart(&item.snapshot.unwrap_or_default())?);
        } else if bytes.starts_with(&LINKED) {
            let linked = decode(&bytes)?.linked.unwrap_or_default();
            let before = before.as_ref().ok_or_else(|| {
                UnpackError::Malformed("no entry comes before one that leaves out its hash".into())
            })?;
            unpacked.push(Item::entry(unlinked(&linked, before)?).to_bytes());
        } else if brief::is_brief(&bytes) {
            if !may_be_short {
                return Err(UnpackError::NotCentral);
            }
            total += brief::length(&bytes)?;
            unpacked.push(bytes);
            if total > MAX_UNPACKED {
                return Err(UnpackError::TooLong);
            }
            continue;
        } else {
            unpacked.push(bytes);
        }
        total += unpacked[begin..].iter().map(Vec::len).sum::<usize>();
        if total > MAX_UNPACKED {
            return Err(UnpackError::TooLong);
        }
        if let Some(entry) = unpacked.last().and_then(|item| minicbor::decode::<Item>(item).ok()?.entry) {
            before = Some(entry);
        }
    }
    Ok(unpacked)
}

fn decode(bytes: &[u8]) -> Result<Item, UnpackError> {
    minicbor::decode(bytes).map_err(|error| UnpackError::Malformed(error.to_string()))
}

/// Changes of one document that follow each other in the log.
#[derive(Default)]
struct Run {
    of: Option<(u8, DocumentId)>,
    changes: Vec<(Vec<u8>, Option<Seal>)>,
    /// In their short form, where they have one.
    items: Vec<Vec<u8>>,
}

impl Run {
    /// Takes an item that belongs to the run or begins one. Otherwise the run has ended.
    fn takes(&mut self, item: &Item, bytes: &[u8]) -> bool {
        let (Some(kind), Some(document), Some(change)) = (item.kind, item.document, &item.change) else {
            return false;
        };
        if self.of.is_some_and(|of| of != (kind, document)) {
            return false;
        }
        self.of = Some((kind, document));
        self.changes.push((change.clone(), item.seal));
        self.items.push(brief::shorten(item, bytes).unwrap_or_else(|| bytes.to_vec()));
        true
    }

    /// Ends the run: what it holds goes out, as a snapshot if that is shorter.
    fn end(&mut self, packed: &mut Vec<Vec<u8>>) {
        let Run { of, changes, items } = std::mem::take(self);
        let short = of.and_then(|(kind, document)| snapshot_of(kind, document, &changes));
        match short {
            Some(short) if frame::weight(&short) < frame::weight(&items.concat()) => packed.push(short),
            Some(_) | None => packed.extend(items),
        }
    }
}

/// The snapshot that stands for these changes of one document, whether or not it is shorter; nothing if there
/// are fewer than two, or they are no whole history.
pub fn whole(items: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut run = Run::default();
    let taken = items.iter().all(|bytes| minicbor::decode(bytes).is_ok_and(|item| run.takes(&item, bytes)));
    let (kind, document) = run.of.filter(|_| taken)?;
    snapshot_of(kind, document, &run.changes)
}

fn snapshot_of(number: u8, document: DocumentId, changes: &[(Vec<u8>, Option<Seal>)]) -> Option<Vec<u8>> {
    // One change is shorter than the snapshot of it, always.
    if changes.len() < 2 {
        return None;
    }
    let kind = Kind::from_number(number)?;
    let parsed: Vec<Change> =
        changes.iter().map(|(bytes, _)| Change::try_from(&bytes[..])).collect::<Result<_, _>>().ok()?;
    // What is in the snapshot is named by hashes: the same hash is the same change, byte for byte.
    let same = changes.iter().zip(&parsed).all(|((bytes, _), change)| change.raw_bytes() == &bytes[..]);
    let mut whole = Document::new(kind, document);
    if !same || whole.apply_all(parsed.clone()).is_err() || !parsed.iter().all(|it| whole.has(&it.hash())) {
        return None;
    }
    let seals: Vec<Seal> = changes.iter().filter_map(|(_, seal)| *seal).collect();
    if !seals.is_empty() && seals.len() != changes.len() {
        return None;
    }
    let places = places(&parsed);
    let order = if places.is_sorted() {
        vec![]
    } else {
        places.iter().flat_map(|place| u16::try_from(*place).unwrap_or(u16::MAX).to_be_bytes()).collect()
    };
    let bytes = whole.snapshot();
    if changes.len() >= usize::from(u16::MAX) || snapshot::lint(&bytes).is_err() {
        return None;
    }
    let seals = seals.iter().flat_map(|seal| seal.0).collect();
    let item =
        Item { snapshot: Some(Snapshot { kind: number, document, bytes, seals, order }), ..Item::default() };
    Some(item.to_bytes())
}

/// Where each change stands when all are ordered by what the document itself says, so that both sides see the
/// same order: by the first operation, which is behind those of everything that the change follows.
fn places(changes: &[Change]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by_key(|index| (changes[*index].start_op(), changes[*index].hash()));
    let mut places = vec![0; changes.len()];
    for (place, index) in order.into_iter().enumerate() {
        places[index] = place;
    }
    places
}

/// The items that a snapshot stands for.
fn take_apart(it: &Snapshot) -> Result<Vec<Vec<u8>>, UnpackError> {
    let wrong = |why: String| UnpackError::Snapshot { document: it.document, why };
    let kind = Kind::from_number(it.kind).ok_or_else(|| wrong(format!("no kind has number {}", it.kind)))?;
    let raw = snapshot::read(kind, it.document, &it.bytes).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        wrong(format!("{error}{cause}"))
    })?;
    let parsed: Vec<Change> = raw
        .iter()
        .map(|bytes| Change::try_from(&bytes[..]))
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    let mut sorted: Vec<Option<Vec<u8>>> = vec![None; raw.len()];
    for (bytes, place) in raw.into_iter().zip(places(&parsed)) {
        sorted[place] = Some(bytes);
    }
    let count = sorted.len();
    if !it.seals.is_empty() && it.seals.len() != 16 * count {
        return Err(wrong(format!("{} bytes of seals stand beside {count} changes", it.seals.len())));
    }
    if !it.order.is_empty() && it.order.len() != 2 * count {
        return Err(wrong(format!("{} bytes of order stand beside {count} changes", it.order.len())));
    }
    let mut order =
        it.order.chunks_exact(2).map(|place| usize::from(u16::from_be_bytes([place[0], place[1]])));
    let mut seals = it.seals.chunks_exact(16).map(|seal| Seal(seal.try_into().expect("chunks of 16 bytes")));
    (0..count)
        .map(|index| {
            let place = order.next().unwrap_or(index);
            let change = sorted
                .get_mut(place)
                .and_then(Option::take)
                .ok_or_else(|| wrong(format!("its order names change {place} twice, or there is none")))?;
            let item = Item { seal: seals.next(), ..Item::change(it.kind, it.document, change) };
            Ok(item.to_bytes())
        })
        .collect()
}

/// An entry that carries the hash of the one before it, without that hash.
fn linked(entry: &[u8], before: &[u8]) -> Option<Vec<u8>> {
    let hash = chain::hash(before);
    let at = entry.windows(HASH).position(|window| window == hash)?;
    let rest = [&entry[..at], &entry[at + HASH..]].concat();
    let item = Item { linked: Some(Linked { rest, at: at as u64 }), ..Item::default() };
    Some(item.to_bytes())
}

fn unlinked(linked: &Linked, before: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let at = usize::try_from(linked.at).unwrap_or(usize::MAX);
    let (head, tail) = linked.rest.split_at_checked(at).ok_or_else(|| {
        UnpackError::Malformed("the hash that an entry leaves out is behind its end".into())
    })?;
    Ok([head, &chain::hash(before), tail].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        document::{
            Author,
            node::{self, Text},
            register::Entropy,
        },
        id::{Incarnation, MacAddr, NodeId, Origin, SiteId},
        journal::{Event, Head, Stream},
        time::{Hlc, Timestamp},
    };

    const LYON: SiteId = SiteId([2; 16]);

    fn author(incarnation: u8, at: i64) -> Author {
        let mut seed = [incarnation; 32];
        seed[..8].copy_from_slice(&at.to_be_bytes());
        Author {
            incarnation: Incarnation([incarnation; 16]),
            site: if incarnation == 1 { Origin::Central } else { Origin::Site(LYON) },
            by: "ann".into(),
            at: Hlc::at(Timestamp(1_795_161_600_000)).max(Hlc(at << 16)),
            policy_epoch: 1,
            entropy: Entropy::new(seed),
        }
    }

    fn name(document: &mut Document, incarnation: u8, at: i64, value: &str) -> Change {
        let change = document.write(&mut author(incarnation, at), |edit| {
            edit.set(&node::hostname(), &Text { value: value.into() }, "asked for");
            edit.set(&node::tag(value), &node::Tag { value: Some(value.into()), removed: None }, "");
        });
        change.expect("it writes")
    }

    /// Changes of one machine by two replicas, some of them beside each other, in the order of their arrival.
    fn history(number: u8, length: i64) -> (DocumentId, Vec<Change>) {
        let id = DocumentId::from(NodeId::of(MacAddr([0x52, 0x54, 0, 0, 0, number])));
        let mut here = Document::new(Kind::Node, id);
        let mut changes = Vec::new();
        for at in 0..length {
            let mut there = here.clone();
            changes.push(name(&mut here, 1, 3 * at, &format!("pos-{at}")));
            if at % 3 == 1 {
                // It has the same first operation; which of both has the lower hash is up to them.
                let beside = name(&mut there, 2, 3 * at + 1, &format!("till-{at}"));
                here.apply(beside.clone()).unwrap();
                changes.push(beside);
            }
        }
        (id, changes)
    }

    fn items(id: DocumentId, changes: &[Change]) -> Vec<Vec<u8>> {
        let seal = |change: &Change| Seal(change.hash().0[..16].try_into().unwrap());
        changes
            .iter()
            .map(|change| {
                let item = Item::change(Kind::Node.number(), id, change.raw_bytes().to_vec());
                Item { seal: Some(seal(change)), ..item }.to_bytes()
            })
            .collect()
    }

    fn entries(count: u8) -> Vec<Vec<u8>> {
        let mut head = Head::new(Incarnation([1; 16]));
        let entry = |number| {
            let event = Event::NodeDiscovered { node: NodeId([number; 16]), mac: MacAddr([number; 6]) };
            Item::entry(head.append(Stream::Down(LYON), Hlc::default(), "ann", 1, event)).to_bytes()
        };
        (0..count).map(entry).collect()
    }

    fn on_the_wire(items: &[Vec<u8>], with_snapshots: bool) -> Vec<ByteVec> {
        pack(items.to_vec(), with_snapshots).into_iter().map(Into::into).collect()
    }

    /// Takes items apart as a site does that has these changes.
    fn apart(packed: Vec<ByteVec>, known: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
        let hash = |bytes: &Vec<u8>| {
            let item: Item = minicbor::decode(bytes).ok()?;
            Some((item.document?, crate::ingress::lint::hash(&item.change?)))
        };
        let known: Vec<_> = known.iter().filter_map(hash).collect();
        let items = unpack(packed, true).map_err(|error| error.to_string())?;
        let named = |document, name: brief::Name| {
            let are = |of: &DocumentId, hash: &[u8; 32]| *of == document && hash.starts_with(&name);
            Ok::<_, String>(known.iter().filter(|(of, hash)| are(of, hash)).map(|(_, hash)| *hash).collect())
        };
        brief::lengthen(items, named)?.map_err(|error| error.to_string())
    }

    fn is_snapshot(item: &[u8]) -> bool {
        item.starts_with(&SNAPSHOT)
    }

    #[test]
    fn p6_a_whole_document_goes_as_a_snapshot_and_comes_apart_into_the_very_same_items() {
        let mut shuffled = 0;
        for number in 0..40 {
            let (id, changes) = history(number, 2 + i64::from(number % 9));
            let items = items(id, &changes);
            let packed = on_the_wire(&items, true);
            let weight = |items: &[ByteVec]| {
                frame::weight(&items.iter().map(|it| &***it).collect::<Vec<_>>().concat())
            };
            assert!(weight(&packed) <= frame::weight(&items.concat()));
            // The longer its history, the more a snapshot saves; until then each change goes in short form.
            let snapshot = whole(&items).unwrap();
            assert!(weight(&packed) <= frame::weight(&snapshot));
            assert!(
                packed.len() == 1 && is_snapshot(&packed[0]) || packed.iter().all(|it| brief::is_brief(it))
            );
            assert_eq!(apart(packed, &[]).unwrap(), items);
            shuffled += u32::from(!decode(&snapshot).unwrap().snapshot.unwrap().order.is_empty());
            assert_eq!(unpack(vec![snapshot.into()], true).unwrap(), items);
        }
        assert!(shuffled > 5, "{shuffled} of them arrived in another order than the document's own");
    }

    #[test]
    fn p6_what_is_no_whole_document_goes_in_short_form() {
        let (id, changes) = history(1, 6);
        let items = items(id, &changes);
        // Its beginning is with the peer already, or one in the middle is: each names what it follows.
        let lacking = [&items[..2], &items[3..]].concat();
        for part in [&items[1..], &lacking[..], &items[..1]] {
            let packed = on_the_wire(part, true);
            assert!(packed.iter().all(|item| brief::is_brief(item)));
            let length = |items: &[Vec<u8>]| items.iter().map(Vec::len).sum::<usize>();
            let short: Vec<Vec<u8>> = packed.iter().map(|item| item.to_vec()).collect();
            assert!(length(&short) + 26 * short.len() < length(part), "a hash and a header at least");
            assert_eq!(apart(packed.clone(), &items).unwrap(), part);
            let told = apart(packed, &[]);
            assert!(part == &items[..1] || told.unwrap_err().contains("and 0 such are here"));
        }
        assert!(whole(&items[1..]).is_none() && whole(&lacking).is_none() && whole(&items[..1]).is_none());
        // A beginning is a whole document of an earlier day.
        assert!(whole(&items[..6]).is_some());
        assert_eq!(on_the_wire(&items, false).len(), items.len());
    }

    #[test]
    fn p6_documents_and_entries_in_one_frame_keep_their_order() {
        let entries = entries(4);
        let (one, two) = (history(1, 300), history(2, 300));
        let all = [
            &entries[..1],
            &items(one.0, &one.1),
            &items(two.0, &two.1),
            &entries[1..2],
            &[b"a newer program's".to_vec()],
            &entries[2..],
        ]
        .concat();
        let packed = on_the_wire(&all, true);
        let shape: Vec<&str> = packed
            .iter()
            .map(|item| {
                if is_snapshot(item) {
                    "snapshot"
                } else if item.starts_with(&LINKED) {
                    "linked"
                } else {
                    "-"
                }
            })
            .collect();
        assert_eq!(shape, ["-", "snapshot", "snapshot", "linked", "-", "linked", "linked"]);
        assert_eq!(apart(packed, &[]).unwrap(), all);
    }

    #[test]
    fn h6_no_short_form_of_a_peer_panics_or_comes_apart_into_something_else_unseen() {
        let (id, changes) = history(7, 9);
        let (beside, few) = history(8, 2);
        let all = [items(id, &changes), entries(3), items(beside, &few)].concat();
        let snapshot = whole(&all[..changes.len()]).unwrap();
        let packed = [vec![snapshot.into()], on_the_wire(&all[changes.len()..], true)].concat();
        assert!(is_snapshot(&packed[0]) && packed[4..].iter().all(|item| brief::is_brief(item)));
        assert!(matches!(unpack(packed.clone(), false), Err(UnpackError::NotCentral)));
        assert!(matches!(unpack(packed[4..].to_vec(), false), Err(UnpackError::NotCentral)));
        assert!(matches!(unpack(packed[2..].to_vec(), true), Err(UnpackError::Malformed(_))));
        let mut state = 7_u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).expect("31 bits") % below
        };
        let (mut refused, mut other) = (0, 0);
        for _ in 0..3_000 {
            let mut worse = packed.clone();
            let item = next(worse.len());
            let at = 2 + next(worse[item].len() - 2);
            worse[item][at] = u8::try_from(next(256)).expect("a byte");
            match apart(worse, &all) {
                Err(_) => refused += 1,
                // The rolling hash covers the items, so that both notice.
                Ok(items) => other += u32::from(items != all),
            }
        }
        // A seventh of them met the snapshot, whose checksum covers it but for the seals and the order.
        assert!(refused > 200 && other > 500, "{refused} refused, {other} other");

        let order = |order: &[u16]| {
            let item = decode(&packed[0]).unwrap();
            let order = order.iter().flat_map(|place| place.to_be_bytes()).collect();
            let snapshot = Some(Snapshot { order, ..item.snapshot.clone().unwrap() });
            unpack(vec![Item { snapshot, ..item }.to_bytes().into()], true).map_err(|error| error.to_string())
        };
        let count = u16::try_from(changes.len()).unwrap();
        assert!(order(&vec![0; usize::from(count)]).unwrap_err().contains("names change 0 twice"));
        assert!(order(&[0, 1]).unwrap_err().contains("4 bytes of order"));
        assert!(order(&(1..=count).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn h6_a_short_form_does_not_unfold_without_end() {
        let (id, changes) = history(3, 900);
        let (of, few) = history(4, 3);
        let last = &on_the_wire(&items(of, &few)[2..], true)[0];
        assert!(brief::is_brief(last));
        let count = MAX_UNPACKED / brief::length(last).unwrap();
        assert!(unpack(vec![last.clone(); count], true).is_ok());
        assert!(matches!(unpack(vec![last.clone(); count + 1], true), Err(UnpackError::TooLong)));
        let packed = on_the_wire(&items(id, &changes), true);
        assert_eq!(packed.len(), 1);
        let many: Vec<ByteVec> = std::iter::repeat_n(packed[0].clone(), 12).collect();
        assert!(matches!(unpack(many, true), Err(UnpackError::TooLong)));
    }
}
