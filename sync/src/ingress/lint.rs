//! The first gate: bytes alone, before any foreign code reads them.
//!
//! [`lint`] walks one change chunk of Automerge's storage format from front to back, in time and memory
//! that its length bounds. It guards against what a decoder cannot be left with: run lengths that claim
//! more operations than there is memory, chunks that inflate, columns that maps do not have. Whether the
//! content makes sense is asked later, by [`super::semantic`].
//!
//! Format: <https://automerge.org/automerge-binary-format-spec/>, “change chunks”.

use sha2::{Digest, Sha256};

/// Longest change in bytes.
pub const MAX_BYTES: usize = 64 * 1024;

/// Most operations in a change.
pub const MAX_OPERATIONS: u64 = 4_096;

/// Most values that the operations of a change may replace together.
pub const MAX_PREDECESSORS: u64 = 4_096;

/// Most changes that a change may directly depend on.
pub const MAX_DEPS: u64 = 64;

/// Most actors, besides its own, that a change may name.
pub const MAX_ACTORS: u64 = 64;

/// Longest message in bytes.
pub const MAX_MESSAGE: u64 = 256;

/// Longest key of a register or of a field in it, in bytes; the shortest has one.
pub const MAX_KEY: u64 = 128;

/// End of the operation counters that are taken. Automerge keeps 32 bits and panics beyond them, so half
/// of them stay for whoever writes next.
pub const MAX_START_OP: u64 = 1 << 31;

/// Bytes of every actor: an incarnation.
pub(super) const ACTOR_BYTES: u64 = 16;

const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
const RAW_CHANGE: u8 = 1;

/// Bit of a column's specification that says it is deflated.
pub(super) const DEFLATED: u64 = 0b1000;

const KEY: u64 = 0x15;
const ACTION: u64 = 0x42;
const PREDECESSOR_COUNT: u64 = 0x70;

/// Columns of a change to maps: object (actor, counter), key, insert, action, value (length and type,
/// bytes), predecessors (count, actor, counter). Those of lists and marks are missing on purpose.
const COLUMNS: [u64; 10] = [0x01, 0x02, KEY, 0x34, ACTION, 0x56, 0x57, PREDECESSOR_COUNT, 0x71, 0x73];

/// What is wrong with the bytes of a change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LintError {
    /// Longer than [`MAX_BYTES`].
    #[error("change has {0} bytes, more than {MAX_BYTES}")]
    TooLarge(usize),
    /// The bytes end too early.
    #[error("bytes end inside {0}")]
    Truncated(&'static str),
    /// A variable-length number that no 64 bits hold.
    #[error("{0} does not fit 64 bits")]
    Number(&'static str),
    /// Not in Automerge's storage format.
    #[error("bytes are no chunk of Automerge")]
    Magic,
    /// A document (0), a deflated change (2), a bundle (3) or something new.
    #[error("chunk is of type {0}, not a raw change (1)")]
    ChunkType(u8),
    /// A change or something else where a whole document should be.
    #[error("chunk is of type {0}, not a document (0)")]
    NoSnapshot(u8),
    /// The chunk does not end where the bytes end.
    #[error("chunk claims {claimed} bytes and has {found}")]
    Length {
        /// What its header says.
        claimed: u64,
        /// What follows the header.
        found: usize,
    },
    /// The checksum is another content's.
    #[error("checksum does not match the content")]
    Checksum,
    /// More than [`MAX_DEPS`].
    #[error("change depends on {0} changes, more than {MAX_DEPS}")]
    Deps(u64),
    /// Dependencies are named twice or in another order than by value.
    #[error("dependencies are not in ascending order")]
    DepsOrder,
    /// An actor that is not an incarnation.
    #[error("an actor has {0} bytes, not 16")]
    Actor(u64),
    /// More than [`MAX_ACTORS`].
    #[error("change names {0} other actors, more than {MAX_ACTORS}")]
    Actors(u64),
    /// Zero, or [`MAX_START_OP`] and more.
    #[error("operations start at {0}, outside 1..{MAX_START_OP}")]
    StartOp(u64),
    /// More than [`MAX_MESSAGE`].
    #[error("message has {0} bytes, more than {MAX_MESSAGE}")]
    Message(u64),
    /// The message is not UTF-8.
    #[error("message is not text")]
    MessageText,
    /// A column is deflated.
    #[error("column {0:#04x} is compressed")]
    Compressed(u64),
    /// A column of lists, texts or marks, or of nothing known.
    #[error("column {0:#04x} is none of a change to maps")]
    Column(u64),
    /// Columns are there twice or in another order than by number.
    #[error("columns are not in ascending order")]
    ColumnOrder,
    /// The columns do not end where the chunk ends: author footers stand there.
    #[error("columns claim {claimed} bytes and {found} follow")]
    Columns {
        /// Sum of the lengths of the columns.
        claimed: u64,
        /// What follows their list.
        found: usize,
    },
    /// A column that every operation has a value in leaves some out.
    #[error("column of {0} has a gap")]
    Gap(&'static str),
    /// More than [`MAX_OPERATIONS`].
    #[error("change claims more than {MAX_OPERATIONS} operations")]
    Operations,
    /// More than [`MAX_PREDECESSORS`].
    #[error("change claims to replace more than {MAX_PREDECESSORS} values")]
    Predecessors,
    /// Empty, or longer than [`MAX_KEY`].
    #[error("a key has {0} bytes, not 1 to {MAX_KEY}")]
    Key(u64),
}

/// Checks that `bytes` are exactly one raw change that is safe to decode.
///
/// # Errors
/// The first thing that is wrong. Nothing but `bytes` is read and nothing is kept.
pub fn lint(bytes: &[u8]) -> Result<(), LintError> {
    if bytes.len() > MAX_BYTES {
        return Err(LintError::TooLarge(bytes.len()));
    }
    let mut chunk = Reader { rest: bytes };
    header(&mut chunk, |kind| if kind == RAW_CHANGE { Ok(()) } else { Err(LintError::ChunkType(kind)) })?;
    metadata(&mut chunk)?;
    for (column, mut data) in columns(&mut chunk)? {
        match column {
            KEY => keys(&mut data)?,
            ACTION => actions(&mut data)?,
            PREDECESSOR_COUNT => predecessors(&mut data)?,
            // Read no further than their bytes reach, whatever their run lengths claim: operations are
            // counted by the actions, predecessors by their counts.
            _ => {}
        }
    }
    Ok(())
}

/// A change chunk in two: the hashes that it depends on, and what follows them. Nothing if the bytes are none.
pub(crate) fn split(bytes: &[u8]) -> Option<(Vec<[u8; 32]>, &[u8])> {
    let mut chunk = Reader { rest: bytes };
    let is_change = |kind| if kind == RAW_CHANGE { Ok(()) } else { Err(LintError::ChunkType(kind)) };
    header(&mut chunk, is_change).ok()?;
    let count = chunk.unsigned("the number of dependencies").ok().filter(|count| *count <= MAX_DEPS)?;
    let deps = (0..count).map(|_| chunk.take(32, "the dependencies").ok()?.try_into().ok());
    let deps = deps.collect::<Option<_>>()?;
    Some((deps, chunk.rest))
}

/// The change chunk of these parts, with the header that belongs to it, and its hash.
pub(crate) fn joined(deps: &[[u8; 32]], rest: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let mut count = vec![];
    unsigned(deps.len() as u64, &mut count);
    let mut covered = vec![RAW_CHANGE];
    unsigned((count.len() + 32 * deps.len() + rest.len()) as u64, &mut covered);
    covered.extend(count);
    covered.extend(deps.as_flattened());
    covered.extend(rest);
    let hash: [u8; 32] = Sha256::digest(&covered).into();
    ([&MAGIC[..], &hash[..4], &covered].concat(), hash)
}

/// The hash of a change chunk, sound or not.
pub(crate) fn hash(chunk: &[u8]) -> [u8; 32] {
    Sha256::digest(chunk.get(8..).unwrap_or_default()).into()
}

/// Unsigned LEB128.
fn unsigned(mut number: u64, bytes: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(number & 0x7f).expect("seven bits");
        number >>= 7;
        if number == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

/// Reads the header of a chunk that is all of the bytes, of a type that `is_wanted`.
pub(super) fn header(
    chunk: &mut Reader<'_>,
    is_wanted: impl FnOnce(u8) -> Result<(), LintError>,
) -> Result<(), LintError> {
    if chunk.take(4, "the magic number")? != MAGIC {
        return Err(LintError::Magic);
    }
    let checksum = chunk.take(4, "the checksum")?;
    let covered = chunk.rest;
    is_wanted(chunk.byte("the chunk type")?)?;
    let claimed = chunk.unsigned("the chunk's length")?;
    let found = chunk.rest.len();
    if usize::try_from(claimed) != Ok(found) {
        return Err(LintError::Length { claimed, found });
    }
    if !Sha256::digest(covered).starts_with(checksum) {
        return Err(LintError::Checksum);
    }
    Ok(())
}

fn metadata(chunk: &mut Reader<'_>) -> Result<(), LintError> {
    let deps = chunk.unsigned("the number of dependencies")?;
    if deps > MAX_DEPS {
        return Err(LintError::Deps(deps));
    }
    let mut last: Option<&[u8]> = None;
    for _ in 0..deps {
        let dep = chunk.take(32, "the dependencies")?;
        if last.is_some_and(|last| last >= dep) {
            return Err(LintError::DepsOrder);
        }
        last = Some(dep);
    }
    actor(chunk)?;
    chunk.unsigned("the sequence number")?;
    let start_op = chunk.unsigned("the first operation's number")?;
    if start_op == 0 || start_op >= MAX_START_OP {
        return Err(LintError::StartOp(start_op));
    }
    chunk.signed("the time")?;
    let message = chunk.unsigned("the message's length")?;
    if message > MAX_MESSAGE {
        return Err(LintError::Message(message));
    }
    if std::str::from_utf8(chunk.take(message, "the message")?).is_err() {
        return Err(LintError::MessageText);
    }
    let actors = chunk.unsigned("the number of other actors")?;
    if actors > MAX_ACTORS {
        return Err(LintError::Actors(actors));
    }
    (0..actors).try_for_each(|_| actor(chunk))
}

fn actor(chunk: &mut Reader<'_>) -> Result<(), LintError> {
    let bytes = chunk.unsigned("an actor's length")?;
    if bytes != ACTOR_BYTES {
        return Err(LintError::Actor(bytes));
    }
    chunk.take(bytes, "an actor").map(drop)
}

/// Splits the rest of the chunk into columns, which fill it exactly.
fn columns<'a>(chunk: &mut Reader<'a>) -> Result<Vec<(u64, Reader<'a>)>, LintError> {
    let count = chunk.unsigned("the number of columns")?;
    let mut lengths: Vec<(u64, u64)> = Vec::new();
    let mut claimed: u64 = 0;
    // Columns ascend within `COLUMNS`, so a greater count fails before it costs anything.
    for _ in 0..count {
        let column = chunk.unsigned("the list of columns")?;
        if column & DEFLATED != 0 {
            return Err(LintError::Compressed(column));
        }
        if !COLUMNS.contains(&column) {
            return Err(LintError::Column(column));
        }
        if lengths.last().is_some_and(|(last, _)| *last >= column) {
            return Err(LintError::ColumnOrder);
        }
        let length = chunk.unsigned("the list of columns")?;
        claimed = claimed.saturating_add(length);
        lengths.push((column, length));
    }
    let found = chunk.rest.len();
    if usize::try_from(claimed) != Ok(found) {
        return Err(LintError::Columns { claimed, found });
    }
    lengths
        .into_iter()
        .map(|(column, length)| Ok((column, Reader { rest: chunk.take(length, "a column")? })))
        .collect()
}

fn actions(column: &mut Reader<'_>) -> Result<(), LintError> {
    let mut operations: u64 = 0;
    runs(column, "actions", |column, run| {
        column.unsigned("the actions")?;
        operations = operations.saturating_add(run);
        if operations > MAX_OPERATIONS { Err(LintError::Operations) } else { Ok(()) }
    })
}

/// Each operation's count makes the decoder loop that often, fed by runs in two other columns: sixteen
/// bytes can claim 2⁶⁰ predecessors.
fn predecessors(column: &mut Reader<'_>) -> Result<(), LintError> {
    let mut total: u64 = 0;
    runs(column, "predecessor counts", |column, run| {
        let count = column.unsigned("the predecessor counts")?;
        total = total.saturating_add(count.saturating_mul(run));
        if total > MAX_PREDECESSORS { Err(LintError::Predecessors) } else { Ok(()) }
    })
}

/// One long key under a long run would be copied and compared once per operation.
fn keys(column: &mut Reader<'_>) -> Result<(), LintError> {
    runs(column, "keys", |column, _| {
        let length = column.unsigned("the keys")?;
        if length == 0 || length > MAX_KEY {
            return Err(LintError::Key(length));
        }
        column.take(length, "the keys").map(drop)
    })
}

/// Walks a run-length encoded column: a positive number and one value that often, or a negative number
/// and that many values. `value` reads one value and is told for how many operations it stands. Zero
/// begins a run of nothing, which none of the columns walked here may have.
fn runs<'a>(
    column: &mut Reader<'a>,
    name: &'static str,
    mut value: impl FnMut(&mut Reader<'a>, u64) -> Result<(), LintError>,
) -> Result<(), LintError> {
    while !column.rest.is_empty() {
        let length = column.signed(name)?;
        match length {
            0 => return Err(LintError::Gap(name)),
            1.. => value(column, length.unsigned_abs())?,
            // Every value takes a byte at least, so the bytes end before a false length does.
            ..0 => (0..length.unsigned_abs()).try_for_each(|_| value(column, 1))?,
        }
    }
    Ok(())
}

/// Bytes not read yet.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], LintError> {
        let count = usize::try_from(count).map_err(|_| LintError::Truncated(what))?;
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(LintError::Truncated(what))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self, what: &'static str) -> Result<u8, LintError> {
        Ok(self.take(1, what)?[0])
    }

    /// Unsigned LEB128, at most 64 bits.
    pub(super) fn unsigned(&mut self, what: &'static str) -> Result<u64, LintError> {
        let mut number: u64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            // Only one bit is left for the tenth byte.
            if shift == 63 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(LintError::Number(what))
    }

    /// Signed LEB128, at most 64 bits.
    pub(super) fn signed(&mut self, what: &'static str) -> Result<i64, LintError> {
        let mut number: i64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            // The tenth byte holds the sign and nothing else.
            if shift == 63 && byte != 0 && byte != 0x7f {
                break;
            }
            number |= i64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let extends = byte & 0x40 != 0 && shift < 57;
                return Ok(if extends { number | (-1 << (shift + 7)) } else { number });
            }
        }
        Err(LintError::Number(what))
    }
}

/// Takes changes apart and puts them together again, for tests that need bytes nobody would write.
#[cfg(test)]
pub(super) mod forge {
    use super::*;

    /// A change chunk in pieces.
    pub(in super::super) struct Chunk {
        /// Chunk type; a raw change is 1.
        pub(in super::super) kind: u8,
        /// Everything from the dependencies to the other actors.
        pub(in super::super) metadata: Vec<u8>,
        /// Specification and bytes of each column.
        pub(in super::super) columns: Vec<(u64, Vec<u8>)>,
        /// What follows the columns.
        pub(in super::super) extra: Vec<u8>,
    }

    impl Chunk {
        /// Takes an honest change apart.
        pub(in super::super) fn of(bytes: &[u8]) -> Self {
            let mut chunk = Reader { rest: bytes };
            header(&mut chunk, |_| Ok(())).expect("an honest header");
            let body = chunk.rest;
            metadata(&mut chunk).expect("honest metadata");
            let metadata = body[..body.len() - chunk.rest.len()].to_vec();
            let columns = columns(&mut chunk).expect("honest columns");
            let columns = columns.into_iter().map(|(column, data)| (column, data.rest.to_vec())).collect();
            Chunk { kind: RAW_CHANGE, metadata, columns, extra: Vec::new() }
        }

        /// Replaces the bytes of a column, or adds it in its place.
        pub(in super::super) fn column(mut self, column: u64, bytes: Vec<u8>) -> Self {
            self.columns.retain(|(other, _)| *other != column);
            self.columns.push((column, bytes));
            self.columns.sort();
            self
        }

        /// The bytes, with the length and checksum that they should have.
        pub(in super::super) fn bytes(&self) -> Vec<u8> {
            let mut body = self.metadata.clone();
            body.extend(unsigned(self.columns.len() as u64));
            for (column, bytes) in &self.columns {
                body.extend([unsigned(*column), unsigned(bytes.len() as u64)].concat());
            }
            for (_, bytes) in &self.columns {
                body.extend(bytes);
            }
            body.extend(&self.extra);
            chunk(self.kind, &body)
        }
    }

    /// A chunk with the length and checksum that it should have.
    pub(in super::super) fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([0; 4]);
        bytes.push(kind);
        bytes.extend(unsigned(body.len() as u64));
        bytes.extend(body);
        repair(&mut bytes);
        bytes
    }

    /// Writes the checksum that the bytes should have.
    pub(in super::super) fn repair(bytes: &mut [u8]) {
        let digest = Sha256::digest(&bytes[8..]);
        bytes[4..8].copy_from_slice(&digest[..4]);
    }

    /// Metadata of a change without dependencies, message and other actors, by actor `9…9`, number 1,
    /// first operation 1, time 0.
    pub(in super::super) fn plain_metadata() -> Vec<u8> {
        [&[0, 16][..], &[9; 16], &[1, 1, 0, 0, 0]].concat()
    }

    /// Unsigned LEB128.
    pub(in super::super) fn unsigned(mut number: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let low = u8::try_from(number & 0x7f).expect("seven bits");
            number >>= 7;
            if number == 0 {
                bytes.push(low);
                return bytes;
            }
            bytes.push(low | 0x80);
        }
    }

    /// Signed LEB128 of a positive number, as run lengths are written.
    pub(in super::super) fn run(length: u64) -> Vec<u8> {
        let mut bytes = unsigned(length);
        if bytes.last().is_some_and(|last| last & 0x40 != 0) {
            *bytes.last_mut().expect("not empty") |= 0x80;
            bytes.push(0);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use automerge::{ActorId, Automerge, Change, ROOT, transaction::Transactable};
    use expect_test::expect;

    use super::{
        forge::{Chunk, plain_metadata, run, unsigned},
        *,
    };
    use crate::{
        document::{Kind, genesis},
        id::DocumentId,
    };

    fn honest() -> Vec<u8> {
        genesis::change(Kind::Node, DocumentId([7; 16])).raw_bytes().to_vec()
    }

    fn verdict(bytes: &[u8]) -> String {
        lint(bytes).map_or_else(|error| error.to_string(), |()| "passes".to_string())
    }

    /// One change that claims `operations` puts of the same key, in a few bytes.
    fn operations_bomb(operations: u64) -> Vec<u8> {
        let repeated = |value: &[u8]| [&run(operations)[..], value].concat();
        Chunk { kind: 1, metadata: plain_metadata(), columns: vec![], extra: vec![] }
            .column(KEY, repeated(b"\x01k"))
            .column(0x34, unsigned(operations))
            .column(ACTION, repeated(&[1]))
            .column(0x56, repeated(&[0]))
            .column(PREDECESSOR_COUNT, repeated(&[0]))
            .bytes()
    }

    /// One put that claims to replace `count` values.
    fn predecessors_bomb(count: u64) -> Vec<u8> {
        let repeated = |value: &[u8]| [&run(count)[..], value].concat();
        let once = |value: &[u8]| [&[1], value].concat();
        Chunk { kind: 1, metadata: plain_metadata(), columns: vec![], extra: vec![] }
            .column(KEY, once(b"\x01k"))
            .column(0x34, vec![1])
            .column(ACTION, once(&[1]))
            .column(0x56, once(&[0]))
            .column(PREDECESSOR_COUNT, once(&unsigned(count)))
            .column(0x71, repeated(&[0]))
            .column(0x73, repeated(&[1]))
            .bytes()
    }

    /// A change that Automerge deflated: its content is `bytes` long.
    fn deflate_bomb(bytes: usize) -> Vec<u8> {
        let mut automerge = Automerge::new().with_actor(ActorId::from(&[9; 16][..]));
        let mut transaction = automerge.transaction();
        transaction.put(ROOT, "k", "a".repeat(bytes)).unwrap();
        transaction.commit();
        automerge.get_changes(&[])[0].bytes().to_vec()
    }

    #[test]
    fn honest_changes_pass_and_are_put_together_as_they_were() {
        for kind in Kind::ALL {
            let bytes = genesis::change(*kind, DocumentId([7; 16])).raw_bytes().to_vec();
            assert_eq!(lint(&bytes), Ok(()));
            assert_eq!(Chunk::of(&bytes).bytes(), bytes);
        }
    }

    #[test]
    fn bytes_that_are_no_single_raw_change_are_named() {
        let mut report = String::new();
        let mut case = |name: &str, bytes: &[u8]| report += &format!("{name}: {}\n", verdict(bytes));
        let change = || Chunk::of(&honest());
        let with_metadata = |metadata: Vec<u8>| Chunk { metadata, ..change() }.bytes();
        let splice = |at: usize, with: &[u8]| {
            let mut metadata = plain_metadata();
            metadata.splice(at..=at, with.iter().copied());
            with_metadata(metadata)
        };

        case("nothing", b"");
        case(
            "a message of Automerge's own protocol with an empty filter",
            &[0x42, 0, 0, 1, 0, 3, 1, 0, 7, 0],
        );
        case("cut short", &honest()[..40]);
        case("two changes in a row", &[honest(), honest()].concat());
        case("a byte more than the limit", &vec![0; MAX_BYTES + 1]);
        let mut wrong = honest();
        wrong[4] ^= 0xff;
        case("a wrong checksum", &wrong);
        case("a document", &genesis::document(Kind::Node, DocumentId([7; 16])).save());
        case("a bundle", &Chunk { kind: 3, ..change() }.bytes());
        case("a deflated change", &deflate_bomb(1_000));
        case("an author footer", &Chunk { extra: vec![1, 2, 65, 66], ..change() }.bytes());
        case("65 dependencies", &splice(0, &unsigned(65)));
        case("a dependency twice", &splice(0, &[&[2][..], &[7; 64]].concat()));
        case("dependencies that descend", &splice(0, &[&[2][..], &[8; 32], &[7; 32]].concat()));
        case("an actor derived for isolated writing", &splice(1, &[21]));
        case("operation 0", &splice(19, &[0]));
        case("operation 2³¹", &splice(19, &unsigned(1 << 31)));
        case("operation 2³²", &splice(19, &unsigned(1 << 32)));
        case("a number of 71 bits", &splice(19, &[0xff; 11]));
        case("a message of 257 bytes", &splice(21, &[&unsigned(257)[..], &[b'm'; 257]].concat()));
        case("a message that is no text", &splice(21, &[1, 0xff]));
        case("65 other actors", &splice(22, &unsigned(65)));
        case("another actor of 3 bytes", &splice(22, &[1, 3, 1, 2, 3]));
        case("a column of lists", &change().column(0x13, vec![1, 1]).bytes());
        case("a column of marks", &change().column(0xa5, vec![1, 1, b'm']).bytes());
        case("a deflated column", &change().column(ACTION | DEFLATED, vec![1, 1]).bytes());
        let mut twice = change();
        twice.columns.push((0x73, vec![]));
        twice.columns.push((0x73, vec![]));
        case("a column twice", &twice.bytes());
        case("an operation without action", &change().column(ACTION, vec![0, 1]).bytes());
        case("an operation without key", &change().column(KEY, vec![0, 4]).bytes());
        case("an empty key", &change().column(KEY, vec![4, 0]).bytes());
        let long = [&[0x7f][..], &unsigned(129), &[b'k'; 129]].concat();
        case("a key of 129 bytes", &change().column(KEY, long).bytes());
        case(
            "4,097 operations one by one",
            &change().column(ACTION, [&[0xff, 0x5f][..], &[1; 4_097]].concat()).bytes(),
        );
        let (operations, predecessors) = (operations_bomb(1 << 33), predecessors_bomb(1 << 60));
        case(&format!("2³³ operations in {} bytes", operations.len()), &operations);
        case(&format!("2⁶⁰ predecessors in {} bytes", predecessors.len()), &predecessors);
        case("4,096 operations", &operations_bomb(4_096));
        expect![[r#"
            nothing: bytes end inside the magic number
            a message of Automerge's own protocol with an empty filter: bytes are no chunk of Automerge
            cut short: chunk claims 76 bytes and has 30
            two changes in a row: chunk claims 76 bytes and has 162
            a byte more than the limit: change has 65537 bytes, more than 65536
            a wrong checksum: checksum does not match the content
            a document: chunk is of type 0, not a raw change (1)
            a bundle: chunk is of type 3, not a raw change (1)
            a deflated change: chunk is of type 2, not a raw change (1)
            an author footer: columns claim 40 bytes and 44 follow
            65 dependencies: change depends on 65 changes, more than 64
            a dependency twice: dependencies are not in ascending order
            dependencies that descend: dependencies are not in ascending order
            an actor derived for isolated writing: an actor has 21 bytes, not 16
            operation 0: operations start at 0, outside 1..2147483648
            operation 2³¹: operations start at 2147483648, outside 1..2147483648
            operation 2³²: operations start at 4294967296, outside 1..2147483648
            a number of 71 bits: the first operation's number does not fit 64 bits
            a message of 257 bytes: message has 257 bytes, more than 256
            a message that is no text: message is not text
            65 other actors: change names 65 other actors, more than 64
            another actor of 3 bytes: an actor has 3 bytes, not 16
            a column of lists: column 0x13 is none of a change to maps
            a column of marks: column 0xa5 is none of a change to maps
            a deflated column: column 0x4a is compressed
            a column twice: columns are not in ascending order
            an operation without action: column of actions has a gap
            an operation without key: column of keys has a gap
            an empty key: a key has 0 bytes, not 1 to 128
            a key of 129 bytes: a key has 129 bytes, not 1 to 128
            4,097 operations one by one: change claims more than 4096 operations
            2³³ operations in 74 bytes: change claims more than 4096 operations
            2⁶⁰ predecessors in 86 bytes: change claims to replace more than 4096 values
            4,096 operations: passes
        "#]]
        .assert_eq(&report);
    }

    #[test]
    fn the_bombs_are_bombs() {
        // Smaller sisters, which Automerge survives, show that the claim is really followed.
        let inflated = Change::try_from(&deflate_bomb(8 << 20)[..]).unwrap();
        assert!(inflated.raw_bytes().len() > 8 << 20);
        assert!(deflate_bomb(8 << 20).len() < MAX_BYTES);
        let operations = Change::try_from(&operations_bomb(100_000)[..]).unwrap();
        assert_eq!(operations.len(), 100_000);
        let predecessors = Change::try_from(&predecessors_bomb(100_000)[..]).unwrap();
        assert_eq!(predecessors.decode().operations[0].pred.len(), 100_000);
    }
}
