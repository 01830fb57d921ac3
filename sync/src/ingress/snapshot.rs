//! A whole document from a peer, where that is smaller than the changes of which it consists.
//!
//! [`read`] takes a snapshot apart and returns its changes, in an order in which each comes after what it
//! depends on. They are then admitted one by one like any others: a snapshot is a way to send changes and
//! proves nothing about them. What it saves is bytes on the wire, not work.
//!
//! Of 20,000 mutated snapshots 1,045 made Automerge 0.12 panic, and a few bytes can claim more rows than
//! there is memory. So [`lint`] first walks the bytes in time that their length bounds and adds up what they
//! would unfold to; then they are loaded under guard, and must come back from their own bytes. Compressed
//! columns are refused: [`Document::snapshot`](crate::document::Document::snapshot) has none, and frames
//! are compressed anyway.
//!
//! Format: <https://automerge.org/automerge-binary-format-spec/>, “document chunks”.

use std::collections::BTreeSet;

use automerge::{Change, ChangeHash};

use super::{
    Rejection,
    lint::{ACTOR_BYTES, DEFLATED, LintError, MAX_KEY, MAX_MESSAGE, MAX_START_OP, Reader, header},
    verify::{guard, verify},
};
use crate::{
    document::{Document, Kind, genesis},
    id::DocumentId,
};

/// Longest snapshot in bytes.
pub const MAX_BYTES: usize = 4 << 20;

/// Most bytes that its columns, and its changes one by one, may unfold to.
pub const MAX_UNFOLDED: u64 = 16 << 20;

/// Most changes in a snapshot.
pub const MAX_CHANGES: u64 = 1 << 16;

/// Most operations in a snapshot.
pub const MAX_OPERATIONS: u64 = 1 << 18;

const DOCUMENT: u8 = 0;

/// Columns about changes: actor, number, last operation, time, message, dependencies (count, index), extra
/// (length and type, bytes).
const CHANGE_COLUMNS: [u64; 9] = [ACTOR, 0x03, 0x13, 0x23, MESSAGE, 0x40, 0x43, 0x56, 0x57];

/// Columns about operations on maps: object (actor, counter), key, id (actor, counter), insert, action, value
/// (length and type, bytes), successors (count, actor, counter). Those of lists and marks are missing on
/// purpose, but for the actor and counter of a key, which Automerge writes with nothing in them.
const OPERATION_COLUMNS: [u64; 14] =
    [0x01, 0x02, 0x11, 0x13, KEY, 0x21, 0x23, 0x34, ACTION, 0x56, 0x57, 0x80, 0x81, 0x83];

const ACTOR: u64 = 0x01;
const MESSAGE: u64 = 0x35;
const KEY: u64 = 0x15;
const ACTION: u64 = 0x42;

/// What is wrong with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Longer than [`MAX_BYTES`].
    #[error("snapshot has {0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
    /// The bytes are not one safe document chunk.
    #[error(transparent)]
    Lint(#[from] LintError),
    /// More than [`MAX_UNFOLDED`].
    #[error("snapshot unfolds to more than {MAX_UNFOLDED} bytes")]
    Unfolds,
    /// More than [`MAX_CHANGES`].
    #[error("snapshot claims more than {MAX_CHANGES} changes")]
    Changes,
    /// More than [`MAX_OPERATIONS`].
    #[error("snapshot claims more than {MAX_OPERATIONS} operations")]
    Operations,
    /// Automerge cannot read it, or it is another document's.
    #[error("snapshot cannot be loaded")]
    Load(#[source] Box<crate::document::DocumentError>),
    /// A change depends on one that is not in it.
    #[error("snapshot lacks what one of its changes depends on")]
    Incomplete,
}

/// Reads the changes of a document, without its genesis, each as raw bytes for [`admit`](super::admit()).
///
/// # Errors
/// `Snapshot`, `Panicked`, or what [`verify`](super::verify()) says. Nothing is kept then.
pub fn read(kind: Kind, id: DocumentId, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Rejection> {
    lint(bytes)?;
    let document = guard("load a snapshot", || {
        Document::load(kind, id, bytes).map_err(|error| SnapshotError::Load(Box::new(error)))
    })??;
    verify(&document)?;
    let changes = guard("take a snapshot apart", || document.automerge().get_changes(&[]))?;
    Ok(in_order(changes, genesis::hash(kind, id))?)
}

/// Checks that `bytes` are one document chunk that is safe to load. Whoever sends a snapshot asks this
/// too, and sends changes where it is not.
///
/// # Errors
/// The first thing that is wrong. Nothing but `bytes` is read and nothing is kept.
pub fn lint(bytes: &[u8]) -> Result<(), SnapshotError> {
    if bytes.len() > MAX_BYTES {
        return Err(SnapshotError::TooLarge(bytes.len()));
    }
    let mut chunk = Reader { rest: bytes };
    header(&mut chunk, |kind| if kind == DOCUMENT { Ok(()) } else { Err(LintError::NoSnapshot(kind)) })?;
    for _ in 0..chunk.unsigned("the number of actors")? {
        let bytes = chunk.unsigned("an actor's length")?;
        if bytes != ACTOR_BYTES {
            return Err(LintError::Actor(bytes).into());
        }
        chunk.take(bytes, "an actor")?;
    }
    let heads = chunk.unsigned("the number of heads")?;
    for _ in 0..heads {
        chunk.take(32, "the heads")?;
    }
    let changes = lengths(&mut chunk, &CHANGE_COLUMNS)?;
    let operations = lengths(&mut chunk, &OPERATION_COLUMNS)?;
    let mut unfolded = Unfolded::default();
    for (column, length) in changes {
        let rows = unfolded.add(column, chunk.take(length, "a column")?)?;
        if rows > MAX_CHANGES {
            return Err(SnapshotError::Changes);
        }
    }
    for (column, length) in operations {
        let rows = unfolded.add(column, chunk.take(length, "a column")?)?;
        if rows > MAX_OPERATIONS {
            return Err(SnapshotError::Operations);
        }
    }
    for _ in 0..heads {
        chunk.unsigned("the positions of the heads")?;
    }
    match chunk.rest.len() {
        0 => Ok(()),
        found => Err(LintError::Columns { claimed: 0, found }.into()),
    }
}

/// Reads a list of columns: specification and length of each, in ascending order.
fn lengths(chunk: &mut Reader<'_>, known: &[u64]) -> Result<Vec<(u64, u64)>, LintError> {
    let mut lengths: Vec<(u64, u64)> = Vec::new();
    // Columns ascend within `known`, so a greater count fails before it costs anything.
    for _ in 0..chunk.unsigned("the number of columns")? {
        let column = chunk.unsigned("the list of columns")?;
        if column & DEFLATED != 0 {
            return Err(LintError::Compressed(column));
        }
        if !known.contains(&column) {
            return Err(LintError::Column(column));
        }
        if lengths.last().is_some_and(|(last, _)| *last >= column) {
            return Err(LintError::ColumnOrder);
        }
        lengths.push((column, chunk.unsigned("the list of columns")?));
    }
    Ok(lengths)
}

/// How much the columns are when every run is written out.
#[derive(Default)]
struct Unfolded {
    bytes: u64,
}

/// What a column holds, by the last three bits of its specification.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    /// How many values of other columns belong to a row.
    Group,
    /// A number that is never negative.
    Unsigned,
    /// A number, or the difference to the one before.
    Signed,
    /// Length and bytes.
    Text,
    /// Type and length of a value whose bytes stand elsewhere.
    Meta,
}

impl Unfolded {
    /// Adds a column and returns how many rows it claims.
    fn add(&mut self, column: u64, data: &[u8]) -> Result<u64, SnapshotError> {
        let mut data = Reader { rest: data };
        match column & 0b111 {
            4 => self.truths(&mut data),
            7 => {
                self.count(data.rest.len() as u64)?;
                Ok(0)
            }
            0 => self.runs(column, &mut data, Content::Group),
            3 => self.runs(column, &mut data, Content::Signed),
            5 => self.runs(column, &mut data, Content::Text),
            6 => self.runs(column, &mut data, Content::Meta),
            _ => self.runs(column, &mut data, Content::Unsigned),
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), SnapshotError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_UNFOLDED { Err(SnapshotError::Unfolds) } else { Ok(()) }
    }

    /// Counts of no and yes in turns.
    fn truths(&mut self, data: &mut Reader<'_>) -> Result<u64, SnapshotError> {
        let mut rows: u64 = 0;
        while !data.rest.is_empty() {
            let run = data.unsigned("the inserts")?;
            rows = rows.saturating_add(run);
            self.count(run)?;
        }
        Ok(rows)
    }

    /// A positive number and one value that often, a negative number and that many values, or zero and how
    /// many rows have none.
    fn runs(&mut self, column: u64, data: &mut Reader<'_>, content: Content) -> Result<u64, SnapshotError> {
        let mut rows: u64 = 0;
        while !data.rest.is_empty() {
            let length = data.signed("the runs of a column")?;
            let (values, each) = match length {
                0 => {
                    let none = data.unsigned("the runs of a column")?;
                    rows = rows.saturating_add(none);
                    self.count(none)?;
                    continue;
                }
                1.. => (1, length.unsigned_abs()),
                // Every value takes a byte at least, so the bytes end before a false length does.
                ..0 => (length.unsigned_abs(), 1),
            };
            for _ in 0..values {
                let weight = weigh(column, data, content)?;
                rows = rows.saturating_add(each);
                self.count(weight.saturating_mul(each))?;
            }
        }
        Ok(rows)
    }
}

/// Reads one value; returns how much one row of it is.
fn weigh(column: u64, data: &mut Reader<'_>, content: Content) -> Result<u64, SnapshotError> {
    const WHAT: &str = "the values of a column";
    let before = data.rest.len();
    let beside = match content {
        Content::Group => data.unsigned(WHAT)?,
        Content::Meta => data.unsigned(WHAT)? >> 4,
        Content::Unsigned => {
            let number = data.unsigned(WHAT)?;
            // Ids of operations beyond this leave no room for the next one.
            if column == ACTION || number < MAX_START_OP {
                0
            } else {
                return Err(LintError::StartOp(number).into());
            }
        }
        Content::Signed => {
            data.signed(WHAT)?;
            0
        }
        Content::Text => {
            let length = data.unsigned(WHAT)?;
            match column {
                KEY if length == 0 || length > MAX_KEY => return Err(LintError::Key(length).into()),
                MESSAGE if length > MAX_MESSAGE => return Err(LintError::Message(length).into()),
                _ => {}
            }
            data.take(length, WHAT)?;
            0
        }
    };
    let bytes = before - data.rest.len();
    Ok(beside.saturating_add(bytes as u64))
}

/// Puts changes in an order in which each follows its dependencies, and leaves the genesis out. Automerge
/// returns them so, without promising it.
fn in_order(changes: Vec<Change>, genesis: ChangeHash) -> Result<Vec<Vec<u8>>, SnapshotError> {
    let mut placed: BTreeSet<ChangeHash> = BTreeSet::from([genesis]);
    let mut ordered = Vec::with_capacity(changes.len());
    let mut unfolded: u64 = 0;
    let mut waiting: Vec<Change> = changes.into_iter().filter(|change| change.hash() != genesis).collect();
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut later = Vec::new();
        for change in waiting {
            if !change.deps().iter().all(|dep| placed.contains(dep)) {
                later.push(change);
                continue;
            }
            placed.insert(change.hash());
            let bytes = change.raw_bytes().to_vec();
            unfolded = unfolded.saturating_add(bytes.len() as u64);
            if unfolded > MAX_UNFOLDED {
                return Err(SnapshotError::Unfolds);
            }
            ordered.push(bytes);
        }
        if later.len() == before {
            return Err(SnapshotError::Incomplete);
        }
        waiting = later;
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use automerge::{ActorId, ObjType, ROOT, ReadDoc, ScalarValue, Value, transaction::Transactable};
    use expect_test::expect;

    use super::{
        super::{
            Authority, Outcome, UnknownKeys, admit,
            lint::forge,
            testing::{BERN, LYON, Random, author, chain, machine, quietly, scribble},
        },
        *,
    };
    use crate::id::Origin;

    const ID: DocumentId = DocumentId([7; 16]);

    /// A document that three replicas wrote, sometimes beside each other.
    fn written(kind: Kind, changes: i64, random: &mut Random) -> Document {
        let mut document = Document::new(kind, ID);
        let mut beside: Option<Document> = None;
        for step in 1..=changes {
            let (incarnation, site) = *random.pick(&[(1, Origin::Central), (2, LYON)]);
            scribble(&mut document, &mut author(incarnation, site, step), random);
            if random.below(4) == 0 {
                let mut there = beside.take().unwrap_or_else(|| document.clone());
                let change = scribble(&mut there, &mut author(3, BERN, step), random);
                if document.apply(change).is_ok() {
                    beside = (random.below(2) == 0).then_some(there);
                }
            }
        }
        document
    }

    /// Admits the changes of a snapshot into an empty document.
    fn rebuilt(kind: Kind, changes: &[Vec<u8>]) -> Document {
        let batch: Vec<&[u8]> = changes.iter().map(Vec::as_slice).collect();
        let empty = Document::new(kind, ID);
        let admission = admit(&empty, &batch, UnknownKeys::Refuse, Authority::Trusted);
        for outcome in &admission.outcomes {
            assert!(matches!(outcome, Outcome::Accept(_)), "{outcome:?}");
        }
        admission.document.unwrap_or(empty)
    }

    fn verdict(bytes: &[u8]) -> String {
        match quietly(|| read(Kind::Node, ID, bytes)) {
            Ok(changes) => format!("{} changes", changes.len()),
            Err(rejection) => chain(&rejection),
        }
    }

    /// A snapshot in pieces.
    struct Pieces {
        actors_and_heads: Vec<u8>,
        changes: Vec<(u64, Vec<u8>)>,
        operations: Vec<(u64, Vec<u8>)>,
        positions: Vec<u8>,
    }

    impl Pieces {
        fn of(bytes: &[u8]) -> Self {
            let mut chunk = Reader { rest: bytes };
            header(&mut chunk, |_| Ok(())).unwrap();
            let body = chunk.rest;
            for _ in 0..chunk.unsigned("").unwrap() {
                let length = chunk.unsigned("").unwrap();
                chunk.take(length, "").unwrap();
            }
            let heads = chunk.unsigned("").unwrap();
            chunk.take(32 * heads, "").unwrap();
            let actors_and_heads = body[..body.len() - chunk.rest.len()].to_vec();
            let changes = lengths(&mut chunk, &CHANGE_COLUMNS).unwrap();
            let operations = lengths(&mut chunk, &OPERATION_COLUMNS).unwrap();
            let mut take = |columns: Vec<(u64, u64)>| {
                let columns = columns.into_iter();
                columns.map(|(column, length)| (column, chunk.take(length, "").unwrap().to_vec())).collect()
            };
            let (changes, operations) = (take(changes), take(operations));
            Pieces { actors_and_heads, changes, operations, positions: chunk.rest.to_vec() }
        }

        fn operation(mut self, column: u64, bytes: Vec<u8>) -> Self {
            self.operations.retain(|(other, _)| *other != column);
            self.operations.push((column, bytes));
            self.operations.sort();
            self
        }

        fn change(mut self, column: u64, bytes: Vec<u8>) -> Self {
            self.changes.retain(|(other, _)| *other != column);
            self.changes.push((column, bytes));
            self.changes.sort();
            self
        }

        fn bytes(&self) -> Vec<u8> {
            let mut body = self.actors_and_heads.clone();
            for columns in [&self.changes, &self.operations] {
                body.extend(forge::unsigned(columns.len() as u64));
                for (column, bytes) in columns {
                    body.extend([forge::unsigned(*column), forge::unsigned(bytes.len() as u64)].concat());
                }
            }
            for (_, bytes) in self.changes.iter().chain(&self.operations) {
                body.extend(bytes);
            }
            body.extend(&self.positions);
            forge::chunk(DOCUMENT, &body)
        }
    }

    /// Changes some bytes of the body, and the checksum with them.
    fn mutated(snapshot: &[u8], random: &mut Random) -> Vec<u8> {
        let mut bytes = snapshot.to_vec();
        for _ in 0..=random.below(3) {
            let at = 10 + random.below(bytes.len() - 10);
            let byte = bytes[at];
            bytes[at] = match random.below(4) {
                0 => byte ^ (1 << random.below(8)),
                1 => byte.wrapping_add(1),
                2 => byte.wrapping_sub(1),
                _ => *random.pick(&[0, 1, 0x7e, 0x7f, 0x80, 0xff]),
            };
        }
        forge::repair(&mut bytes);
        bytes
    }

    /// A sound snapshot of what nobody honest would write: the heads in it are right.
    fn vandalised(document: &Document, random: &mut Random) -> Vec<u8> {
        let mut automerge = document.automerge().clone();
        automerge.set_actor(ActorId::from(&[5; 16][..]));
        let keys = ["hostname", "kind", "macs", "tags", "colour", "state"];
        let mut transaction = automerge.transaction();
        for _ in 0..=random.below(3) {
            let key = *random.pick(&keys);
            let done = match random.below(6) {
                0 => transaction.put(ROOT, key, "a plain value"),
                1 => transaction.delete(ROOT, key),
                2 => transaction.put(ROOT, key, ScalarValue::counter(1)),
                3 => transaction.put_object(ROOT, key, ObjType::Map).map(drop),
                4 => match transaction.get(ROOT, key) {
                    Ok(Some((Value::Object(ObjType::Map), map))) => transaction.put(map, "by", "eve"),
                    _ => Ok(()),
                },
                _ => {
                    transaction.put_object(ROOT, key, *random.pick(&[ObjType::List, ObjType::Text])).map(drop)
                }
            };
            done.expect("automerge writes it");
        }
        transaction.commit();
        automerge.save_nocompress()
    }

    #[test]
    fn a_snapshot_gives_the_changes_that_it_was_made_of() {
        let mut random = Random(1);
        for kind in Kind::ALL {
            for changes in [0, 1, 40] {
                let document = written(*kind, changes, &mut random);
                let snapshot = document.snapshot();
                assert_eq!(Pieces::of(&snapshot).bytes(), snapshot);
                let found = read(*kind, ID, &snapshot).unwrap();
                assert_eq!(rebuilt(*kind, &found).heads(), document.heads(), "{kind}, {changes}");
            }
        }
    }

    #[test]
    fn h6_bytes_that_are_no_safe_snapshot_are_named() {
        let mut report = String::new();
        let mut case = |name: &str, bytes: &[u8]| report += &format!("{name}: {}\n", verdict(bytes));
        let document = written(Kind::Node, 40, &mut Random(2));
        let snapshot = document.snapshot();
        let pieces = || Pieces::of(&snapshot);
        let long = |value: &[u8]| [&forge::run(1 << 33)[..], value].concat();

        case("an honest one", &machine().snapshot());
        case("nothing", b"");
        case("more than 4 MiB", &vec![0; MAX_BYTES + 1]);
        case("compressed columns", &document.save());
        case("a change", document.automerge().get_changes(&[])[1].raw_bytes());
        case("two of them", &[snapshot.clone(), snapshot.clone()].concat());
        case("cut short", &snapshot[..snapshot.len() - 9]);
        let mut wrong = snapshot.clone();
        wrong[4] ^= 1;
        case("a wrong checksum", &wrong);
        case("another document's", &Document::new(Kind::Node, DocumentId([8; 16])).snapshot());
        case("another kind's", &Document::new(Kind::Task, ID).snapshot());
        case("2³³ actions", &pieces().operation(ACTION, long(&[1])).bytes());
        case("2³³ keys", &pieces().operation(KEY, long(b"\x01k")).bytes());
        case("2³³ inserts", &pieces().operation(0x34, forge::unsigned(1 << 33)).bytes());
        case(
            "2³³ operations without an id",
            &pieces().operation(0x21, [&[0][..], &forge::unsigned(1 << 33)].concat()).bytes(),
        );
        case(
            "2³³ successors",
            &pieces().operation(0x80, [&[1][..], &forge::unsigned(1 << 33)].concat()).bytes(),
        );
        case(
            "a value of 2³³ bytes",
            &pieces().operation(0x56, [&[1][..], &forge::unsigned((1 << 37) + 6)].concat()).bytes(),
        );
        let keys = [&forge::run(150_000)[..], &[127], &[b'k'; 127]].concat();
        case("keys of 19 MB in 130 bytes", &pieces().operation(KEY, keys).bytes());
        case(
            "300,000 operations",
            &pieces().operation(ACTION, [&forge::run(300_000)[..], &[1]].concat()).bytes(),
        );
        case("70,000 changes", &pieces().change(ACTOR, [&forge::run(70_000)[..], &[0]].concat()).bytes());
        case("a mark", &pieces().operation(0xa5, vec![1, 1, b'm']).bytes());
        case("a column twice", &{
            let mut twice = pieces();
            twice.operations.push((0x83, vec![]));
            twice.bytes()
        });
        case("an actor of 3 bytes", &Pieces { actors_and_heads: vec![1, 3, 1, 2, 3, 0], ..pieces() }.bytes());
        case("no heads", &Pieces { positions: vec![], ..pieces() }.bytes());
        expect![[r#"
            an honest one: 3 changes
            nothing: bytes end inside the magic number
            more than 4 MiB: snapshot has 4194305 bytes, more than 4194304
            compressed columns: column 0x0a is compressed
            a change: chunk is of type 1, not a document (0)
            two of them: chunk claims 22997 bytes and has 46006
            cut short: chunk claims 22997 bytes and has 22988
            a wrong checksum: checksum does not match the content
            another document's: snapshot cannot be loaded: snapshot of node 07070707070707070707070707070707 has another genesis
            another kind's: snapshot cannot be loaded: snapshot of node 07070707070707070707070707070707 has another genesis
            2³³ actions: snapshot unfolds to more than 16777216 bytes
            2³³ keys: snapshot unfolds to more than 16777216 bytes
            2³³ inserts: snapshot unfolds to more than 16777216 bytes
            2³³ operations without an id: snapshot unfolds to more than 16777216 bytes
            2³³ successors: snapshot unfolds to more than 16777216 bytes
            a value of 2³³ bytes: snapshot unfolds to more than 16777216 bytes
            keys of 19 MB in 130 bytes: snapshot unfolds to more than 16777216 bytes
            300,000 operations: snapshot claims more than 262144 operations
            70,000 changes: snapshot claims more than 65536 changes
            a mark: column 0xa5 is none of a change to maps
            a column twice: columns are not in ascending order
            an actor of 3 bytes: an actor has 3 bytes, not 16
            no heads: bytes end inside the positions of the heads
        "#]].assert_eq(&report);
    }

    #[test]
    fn h6_no_mutated_snapshot_panics_or_gives_what_would_not_be_admitted_under_guard() {
        let seed: u64 = std::env::var("HOLDFAST_FUZZ_SEED").map_or(1, |text| text.parse().expect("a number"));
        let count: usize =
            std::env::var("HOLDFAST_FUZZ_COUNT").map_or(1_000, |text| text.parse().expect("a number"));
        let (mut guarded, mut alone) = (BTreeMap::<String, u64>::new(), BTreeMap::<&str, u64>::new());
        for seed in (seed..).take(count) {
            let mut random = Random(seed);
            let changes = i64::try_from(random.below(12)).expect("few");
            let document = written(Kind::Node, changes, &mut random);
            let bytes = if seed % 2 == 0 {
                mutated(&document.snapshot(), &mut random)
            } else {
                vandalised(&document, &mut random)
            };
            let found = quietly(|| {
                guard("", || read(Kind::Node, ID, &bytes))
                    .unwrap_or_else(|_| panic!("seed {seed}: a panic escapes"))
            });
            let outcome = match found {
                Ok(changes) => {
                    let batch: Vec<&[u8]> = changes.iter().map(Vec::as_slice).collect();
                    let empty = Document::new(Kind::Node, ID);
                    let admission =
                        quietly(|| admit(&empty, &batch, UnknownKeys::Refuse, Authority::Trusted));
                    if let Some(document) = &admission.document {
                        verify(document).unwrap_or_else(|error| panic!("seed {seed}: {}", chain(&error)));
                    }
                    let refused = admission.outcomes.iter().any(|it| matches!(it, Outcome::Reject(_)));
                    if refused { "read, and not all admitted" } else { "read, and all admitted" }.to_string()
                }
                Err(Rejection::Snapshot(SnapshotError::Load(_))) => "cannot be loaded".to_string(),
                Err(Rejection::Snapshot(SnapshotError::Lint(_))) => "lint".to_string(),
                Err(rejection) => rejection.to_string(),
            };
            *guarded.entry(outcome).or_default() += 1;
            // What the lint refuses might never come back from Automerge alone.
            if lint(&bytes).is_ok() {
                let loaded = quietly(|| guard("", || Document::load(Kind::Node, ID, &bytes).is_ok()));
                *alone
                    .entry(match loaded {
                        Ok(true) => "loads",
                        Ok(false) => "error",
                        Err(_) => "panic",
                    })
                    .or_default() += 1;
            }
        }
        println!("{count} mutants from seed {seed}\nguarded: {guarded:#?}\nautomerge alone: {alone:#?}");
        if count >= 1_000 {
            assert!(alone["panic"] > 3, "without enemies the rest proves nothing: {alone:?}");
            assert!(guarded["read, and not all admitted"] > 200, "{guarded:?}");
        }
    }
}
