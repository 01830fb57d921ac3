//! The third gate: a decoded change against the document that it claims to extend.
//!
//! First its [shape](read), which only the kind and the genesis of the document decide: every operation
//! makes a register, or writes into a register that this change makes. Then its [history](follow): the
//! change stands exactly where an honest replica would have put it. Then its [predecessors](replace): a
//! register replaces what its writer saw under that key and nothing else, or it could delete any value
//! of the document under the name of another.
//!
//! Deliberately absent: who may write what, and whether it is wise. Those are authorisation and policy.

use std::collections::{BTreeMap, BTreeSet};

use automerge::{
    ChangeHash, ExpandedChange, ObjId, ObjType, ReadDoc, ScalarValue,
    legacy::{Key, ObjectId, Op, OpId, OpType},
};

use super::{Parsed, Rejection, verify::guard};
use crate::{
    document::{
        Document, Field, FieldError, Fields, Kind, Settled, Written, genesis,
        register::{MAX_DEPTH, MAX_SCALAR},
        schema::{RegisterSchema, Writers},
    },
    id::{DocumentId, Origin},
};

/// What is done with a register that the schema of this program lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownKeys {
    /// Refused: central knows every schema that is in use.
    Refuse,
    /// Kept, as long as it says who wrote it: a site reads what a newer central writes.
    Keep,
}

/// Where a sound change stands.
#[derive(Debug)]
pub enum Standing {
    /// The document has it.
    Present,
    /// The document lacks changes that it depends on.
    Waiting {
        /// Those changes, ascending.
        missing: Vec<ChangeHash>,
    },
    /// It can follow.
    Fits {
        /// The registers that it writes, in its own order.
        writes: Vec<Write>,
    },
}

/// One register as a change writes it.
#[derive(Clone, Debug)]
pub struct Write {
    /// Genesis container that it is an entry of; none at the root.
    pub container: Option<&'static str>,
    /// Key in the container or at the root.
    pub key: String,
    /// Its entry, or that of its container, in the schema; none for a kept key of a newer program.
    pub schema: Option<&'static RegisterSchema>,
    /// Who wrote it, as the register says of itself.
    pub written: Written,
    /// Everything in it.
    pub fields: Fields,
}

impl Write {
    /// Path of the register, for people: `hostname`, `tags/rack`.
    pub fn path(&self) -> String {
        path(self.container, &self.key)
    }
}

/// Why a change cannot belong to its document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SemanticError {
    /// Nothing is written.
    #[error("change writes nothing")]
    Empty,
    /// The genesis is computed everywhere; nobody else uses its actor.
    #[error("change is written by the actor of the genesis")]
    GenesisActor,
    /// Every change follows the genesis.
    #[error("change follows nothing, not even the genesis")]
    NoDeps,
    /// A gap or a second history of one actor.
    #[error("change is number {found} of its actor, whose next is {expected}")]
    Sequence {
        /// One more than the document has of the actor.
        expected: u64,
        /// What the change says.
        found: u64,
    },
    /// Its actor forgot what it wrote before.
    #[error("change does not follow the previous one of its actor")]
    Forgetful,
    /// Operations are numbered after everything that the writer saw.
    #[error("operations start at {found}, the next free number is {expected}")]
    StartOp {
        /// One more than the greatest number among the ancestors.
        expected: u64,
        /// What the change says.
        found: u64,
    },
    /// Lists, texts and marks.
    #[error("operation {0} is one of a list or text")]
    Sequential(usize),
    /// Only genesis containers and objects of the same change take keys.
    #[error("operation {0} writes into an object that neither the genesis nor this change made")]
    ForeignObject(usize),
    /// The kind of a document is part of its genesis.
    #[error("`{}` names the kind and is never rewritten", genesis::KIND_KEY)]
    Kind,
    /// Containers are made by the genesis alone.
    #[error("`{0}` is a container of the genesis and is never made again")]
    Container(String),
    /// The schema does not have the key.
    #[error("`{0}` is not a register of the schema")]
    UnknownRegister(String),
    /// A register was deleted, incremented, or is to be no map.
    #[error("`{path}` is {done}; a register is replaced by a map")]
    NotAMap {
        /// Path of the register.
        path: String,
        /// What the operation does to it.
        done: &'static str,
    },
    /// A field of a type that registers do not have.
    #[error("field `{field}` of `{path}` is {done}")]
    FieldType {
        /// Path of the register.
        path: String,
        /// Key of the field.
        field: String,
        /// What the operation does to it.
        done: &'static str,
    },
    /// A text or byte string above [`MAX_SCALAR`].
    #[error("field `{field}` of `{path}` has {bytes} bytes, more than {MAX_SCALAR}")]
    FieldSize {
        /// Path of the register.
        path: String,
        /// Key of the field.
        field: String,
        /// Its length.
        bytes: usize,
    },
    /// The map of a register is written once, each key of it once.
    #[error("field `{field}` of `{path}` is written twice")]
    FieldTwice {
        /// Path of the register.
        path: String,
        /// Key of the field.
        field: String,
    },
    /// Maps nested deeper than [`MAX_DEPTH`].
    #[error("maps in `{0}` are nested more than {MAX_DEPTH} deep")]
    Depth(String),
    /// What the register holds cannot be read.
    #[error("`{path}` is unreadable: {error}")]
    Value {
        /// Path of the register.
        path: String,
        /// Which field, and why.
        error: FieldError,
    },
    /// Stamps are never negative.
    #[error("change is stamped {0}, before 1970")]
    Time(i64),
    /// A register and its change were stamped differently.
    #[error("`{0}` is stamped differently from its change")]
    Stamp(String),
    /// An entry that belongs to a site was written under another's name.
    #[error("`{path}` is written by `{site}`; each site has its own key there")]
    OwnKey {
        /// Path of the register.
        path: String,
        /// Who wrote it, as it says of itself.
        site: String,
    },
    /// It replaces something else than its writer can have seen there.
    #[error("`{0}` does not replace exactly what its writer saw there")]
    Predecessors(String),
}

/// Checks `parsed` against `document`.
///
/// Unsound changes are told apart from such that wait as far as their own content shows it, so that
/// nothing is parked that could never be taken.
///
/// # Errors
/// `Semantic`, or `Panicked` when Automerge stumbles over the question.
pub fn check(document: &Document, parsed: &Parsed, unknown: UnknownKeys) -> Result<Standing, Rejection> {
    if document.has(&parsed.hash()) {
        return Ok(Standing::Present);
    }
    let change = &parsed.expanded;
    let registers = read(document, change, unknown)?;
    let missing: Vec<_> = change.deps.iter().filter(|dep| !document.has(dep)).copied().collect();
    if !missing.is_empty() {
        return Ok(Standing::Waiting { missing });
    }
    guard("place a change in its document", || {
        follow(document, change)?;
        replace(document, change, &registers)
    })??;
    Ok(Standing::Fits { writes: registers.into_iter().map(|register| register.write).collect() })
}

/// Reads which registers a change would write, from its own content alone.
///
/// For people who look at what was refused: whether it fits any document is not asked, and registers
/// that this program does not know are shown too.
///
/// # Errors
/// `Semantic` when the change does not write registers of such a document.
pub fn registers(kind: Kind, id: DocumentId, parsed: &Parsed) -> Result<Vec<Write>, Rejection> {
    let made = read(&Document::new(kind, id), &parsed.expanded, UnknownKeys::Keep)?;
    Ok(made.into_iter().map(|made| made.write).collect())
}

/// A register that the change makes.
struct Made<'a> {
    write: Write,
    /// Id of its map.
    id: OpId,
    /// The operation that makes it.
    op: &'a Op,
}

/// A map that the change makes: that of a register, or one inside it.
struct Map {
    /// Position of the register among those of the change.
    register: usize,
    /// How many maps are around it, the register's own not counted.
    depth: usize,
    fields: BTreeMap<String, Entry>,
}

enum Entry {
    Field(Field),
    Map(OpId),
}

/// Where a register stands.
struct Slot {
    container: Option<&'static str>,
    key: String,
    schema: Option<&'static RegisterSchema>,
}

impl Slot {
    fn path(&self) -> String {
        path(self.container, &self.key)
    }
}

fn path(container: Option<&str>, key: &str) -> String {
    container.map_or_else(|| key.to_string(), |container| format!("{container}/{key}"))
}

/// Reads the operations of a change as the registers that they make.
fn read<'a>(
    document: &Document,
    change: &'a ExpandedChange,
    unknown: UnknownKeys,
) -> Result<Vec<Made<'a>>, SemanticError> {
    if change.actor_id == *document.containers().actor() {
        return Err(SemanticError::GenesisActor);
    }
    if change.deps.is_empty() {
        return Err(SemanticError::NoDeps);
    }
    if change.operations.is_empty() {
        return Err(SemanticError::Empty);
    }
    if change.time < 0 {
        return Err(SemanticError::Time(change.time));
    }
    let mut maps: BTreeMap<OpId, Map> = BTreeMap::new();
    let mut slots: Vec<(Slot, OpId, &Op)> = Vec::new();
    for (index, (op, counter)) in change.operations.iter().zip(change.start_op.get()..).enumerate() {
        let key = match &op.key {
            Key::Map(key) if !op.insert => key.as_str(),
            Key::Map(_) | Key::Seq(_) => return Err(SemanticError::Sequential(index)),
        };
        let id = OpId(counter, change.actor_id.clone());
        let container = match &op.obj {
            ObjectId::Root => None,
            ObjectId::Id(object) => match (document.containers().made_by(object), maps.get_mut(object)) {
                (Some(container), _) => Some(container),
                (None, Some(map)) => {
                    if let Some(nested) = field(map, op, key, &id, &slots[map.register].0)? {
                        maps.insert(id, nested);
                    }
                    continue;
                }
                (None, None) => return Err(SemanticError::ForeignObject(index)),
            },
        };
        let slot = slot(document, container, key, unknown)?;
        if !matches!(op.action, OpType::Make(ObjType::Map)) {
            return Err(SemanticError::NotAMap { path: slot.path(), done: done(&op.action) });
        }
        maps.insert(id.clone(), Map { register: slots.len(), depth: 0, fields: BTreeMap::new() });
        slots.push((slot, id, op));
    }
    slots
        .into_iter()
        .map(|(slot, id, op)| {
            let fields = gather(&mut maps, &id);
            Ok(Made { write: value(slot, fields, change.time)?, id, op })
        })
        .collect()
}

fn op_id(object: &ObjId) -> Option<OpId> {
    match object {
        ObjId::Root => None,
        ObjId::Id(counter, actor, _) => Some(OpId(*counter, actor.clone())),
    }
}

/// Finds what the schema says of a key at the root or in a container.
fn slot(
    document: &Document,
    container: Option<&'static RegisterSchema>,
    key: &str,
    unknown: UnknownKeys,
) -> Result<Slot, SemanticError> {
    let named =
        |schema| Slot { container: container.map(|container| container.key), key: key.to_string(), schema };
    if container.is_some() {
        return Ok(named(container));
    }
    let schema = document.kind().schema();
    if key == genesis::KIND_KEY {
        return Err(SemanticError::Kind);
    }
    if schema.container(key).is_some() {
        return Err(SemanticError::Container(key.to_string()));
    }
    match (schema.register(key), unknown) {
        (None, UnknownKeys::Refuse) => Err(SemanticError::UnknownRegister(key.to_string())),
        (found, UnknownKeys::Refuse | UnknownKeys::Keep) => Ok(named(found)),
    }
}

/// Reads one operation inside a register; returns the map that it makes there, if it makes one.
fn field(map: &mut Map, op: &Op, key: &str, id: &OpId, slot: &Slot) -> Result<Option<Map>, SemanticError> {
    let (path, field) = (|| slot.path(), || key.to_string());
    let nested = matches!(op.action, OpType::Make(ObjType::Map));
    if nested && map.depth == MAX_DEPTH {
        return Err(SemanticError::Depth(path()));
    }
    let entry = match &op.action {
        OpType::Make(ObjType::Map) => Entry::Map(id.clone()),
        OpType::Put(ScalarValue::Str(text)) => Entry::Field(Field::Str(text.to_string())),
        OpType::Put(ScalarValue::Bytes(bytes)) => Entry::Field(Field::Bytes(bytes.clone())),
        OpType::Put(ScalarValue::Uint(number)) => Entry::Field(Field::Uint(*number)),
        OpType::Put(ScalarValue::Int(number)) => Entry::Field(Field::Int(*number)),
        OpType::Put(ScalarValue::Boolean(truth)) => Entry::Field(Field::Bool(*truth)),
        other => return Err(SemanticError::FieldType { path: path(), field: field(), done: done(other) }),
    };
    let bytes = match &entry {
        Entry::Field(Field::Str(text)) => text.len(),
        Entry::Field(Field::Bytes(bytes)) => bytes.len(),
        Entry::Field(Field::Uint(_) | Field::Int(_) | Field::Bool(_) | Field::Map(_)) | Entry::Map(_) => 0,
    };
    if bytes > MAX_SCALAR {
        return Err(SemanticError::FieldSize { path: path(), field: field(), bytes });
    }
    // The map is new, so whatever the operation claims to replace stands somewhere else.
    if !op.pred.is_empty() {
        return Err(SemanticError::Predecessors(path()));
    }
    if map.fields.insert(key.to_string(), entry).is_some() {
        return Err(SemanticError::FieldTwice { path: path(), field: field() });
    }
    Ok(nested.then(|| Map { register: map.register, depth: map.depth + 1, fields: BTreeMap::new() }))
}

/// What an operation does, for people.
fn done(action: &OpType) -> &'static str {
    match action {
        OpType::Make(ObjType::Map) => "made a map",
        OpType::Make(ObjType::Table) => "made a table",
        OpType::Make(ObjType::List) => "made a list",
        OpType::Make(ObjType::Text) => "made a text of single characters",
        OpType::Delete => "deleted",
        OpType::Increment(_) => "incremented",
        OpType::Put(ScalarValue::Counter(_)) => "made a counter",
        OpType::Put(ScalarValue::Null) => "made null",
        OpType::Put(ScalarValue::F64(_)) => "made a fraction",
        OpType::Put(ScalarValue::Timestamp(_)) => "made a timestamp",
        OpType::Put(ScalarValue::Unknown { .. }) => "made something unknown",
        OpType::Put(_) => "made a plain value",
        OpType::MarkBegin(_) | OpType::MarkEnd(_) => "marked",
    }
}

/// Joins the maps of one register; their depth is bounded by [`field`].
fn gather(maps: &mut BTreeMap<OpId, Map>, id: &OpId) -> Fields {
    let Some(map) = maps.remove(id) else { return Fields::new() };
    map.fields
        .into_iter()
        .map(|(key, entry)| match entry {
            Entry::Field(field) => (key, field),
            Entry::Map(id) => (key, Field::Map(gather(maps, &id))),
        })
        .collect()
}

/// Reads what a register holds, as its schema will.
fn value(slot: Slot, fields: Fields, time: i64) -> Result<Write, SemanticError> {
    let unreadable = |error| SemanticError::Value { path: slot.path(), error };
    let written = Written::from_fields(&fields).map_err(unreadable)?;
    Settled::from_fields(&fields).map_err(unreadable)?;
    if written.at.0 != time {
        return Err(SemanticError::Stamp(slot.path()));
    }
    if let Some(schema) = slot.schema {
        let site = written.site.to_string();
        match schema.writers {
            Writers::CentralAndOwnKey if written.site == Origin::Central => {}
            Writers::OwnKey | Writers::CentralAndOwnKey if slot.key != site => {
                return Err(SemanticError::OwnKey { path: slot.path(), site });
            }
            Writers::OwnKey
            | Writers::CentralAndOwnKey
            | Writers::Central
            | Writers::CentralAndSite
            | Writers::Site => {}
        }
        (schema.check)(&fields).map_err(unreadable)?;
    }
    Ok(Write { container: slot.container, key: slot.key, schema: slot.schema, written, fields })
}

/// Checks that the change stands where an honest replica would have put it, given its dependencies.
fn follow(document: &Document, change: &ExpandedChange) -> Result<(), SemanticError> {
    let automerge = document.automerge();
    let unseen: BTreeSet<ChangeHash> =
        automerge.get_changes_meta(&change.deps).iter().map(|meta| meta.hash).collect();
    let (mut last_seq, mut last_op, mut forgetful) = (0, 0, false);
    for meta in automerge.get_changes_meta(&[]) {
        let seen = !unseen.contains(&meta.hash);
        if *meta.actor == change.actor_id {
            last_seq = last_seq.max(meta.seq);
            forgetful |= !seen;
        }
        if seen {
            last_op = last_op.max(meta.max_op);
        }
    }
    // Without this order a replica that forks would be told that it forgot, not that it counts again.
    if change.seq != last_seq + 1 {
        return Err(SemanticError::Sequence { expected: last_seq + 1, found: change.seq });
    }
    if forgetful {
        return Err(SemanticError::Forgetful);
    }
    if change.start_op.get() != last_op + 1 {
        return Err(SemanticError::StartOp { expected: last_op + 1, found: change.start_op.get() });
    }
    Ok(())
}

/// Checks that each register replaces exactly the sides that are visible to whoever has seen the
/// dependencies and nothing else.
///
/// This asks for ids, not for values; values with all their sides are read by
/// [`contested`](crate::document::contested) alone.
fn replace(
    document: &Document,
    change: &ExpandedChange,
    registers: &[Made<'_>],
) -> Result<(), SemanticError> {
    let automerge = document.automerge();
    let mut visible: BTreeMap<(Option<&str>, &str), Vec<OpId>> = BTreeMap::new();
    for Made { write, id, op } in registers {
        let (container, key) = (write.container, write.key.as_str());
        let sides = visible.entry((container, key)).or_insert_with(|| {
            let parent = document.containers().object(container);
            let found = parent.and_then(|parent| automerge.get_all_at(&parent, key, &change.deps).ok());
            let mut sides: Vec<OpId> = found.into_iter().flatten().filter_map(|(_, id)| op_id(&id)).collect();
            sides.sort();
            sides
        });
        if !op.pred.iter().eq(sides.iter()) {
            return Err(SemanticError::Predecessors(path(container, key)));
        }
        // Who writes a register twice in one change replaces his own first version.
        *sides = vec![id.clone()];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use automerge::{ActorId, Automerge, ROOT, legacy::SortedVec};
    use expect_test::expect;

    use super::{
        super::{
            Authority, Outcome, admit,
            lint::forge::Chunk,
            parse,
            testing::{LYON, author, chain, encode, machine, quietly, text, write},
        },
        *,
    };
    use crate::{
        document::{claim, node},
        id::{ClaimId, NodeId, SiteId},
    };

    /// What becomes of `bytes` at a central whose document is `document`, in words.
    fn verdict(document: &Document, bytes: &[u8], unknown: UnknownKeys) -> String {
        let mut admission = quietly(|| admit(document, &[bytes], unknown, Authority::Trusted));
        match admission.outcomes.pop().expect("one outcome for one change") {
            Outcome::Accept(verified) => {
                let paths: Vec<_> =
                    verified.writes.iter().map(|write| path(write.container, &write.key)).collect();
                format!("accepted, writes {}", paths.join(" "))
            }
            Outcome::Duplicate => "had it already".into(),
            Outcome::Park { missing } => format!("waits for {} change(s)", missing.len()),
            Outcome::Deny(denied) => chain(&denied),
            Outcome::Reject(rejection) => chain(&rejection),
        }
    }

    /// The document, and a change by Lyon that follows it and replaces `hostname`.
    fn honest() -> (Document, ExpandedChange) {
        let document = machine();
        let mut next = document.clone();
        let change = write(&mut next, author(2, LYON, 20), &node::hostname(), &text("kasse-1"));
        (document, change.decode())
    }

    fn op(obj: ObjectId, key: &str, action: OpType, pred: &[OpId]) -> Op {
        Op { action, obj, key: Key::Map(key.into()), pred: SortedVec::from(pred.to_vec()), insert: false }
    }

    fn put(value: impl Into<ScalarValue>) -> OpType {
        OpType::Put(value.into())
    }

    const MAP: OpType = OpType::Make(ObjType::Map);

    /// Ids visible under a key at the heads.
    fn ids(document: &Document, container: Option<&str>, key: &str) -> Vec<OpId> {
        let parent = document.containers().object(container).unwrap();
        let found = document.automerge().get_all(parent, key).unwrap();
        found.iter().filter_map(|(_, id)| op_id(id)).collect()
    }

    fn made(change: &ExpandedChange, operation: usize) -> ObjectId {
        ObjectId::Id(OpId(change.start_op.get() + operation as u64, change.actor_id.clone()))
    }

    fn ghost() -> ActorId {
        ActorId::from(&[0xee; 16][..])
    }

    /// Position of the field in the register that [`honest`] writes.
    fn at(change: &ExpandedChange, key: &str) -> usize {
        change.operations.iter().position(|op| op.key == Key::Map(key.into())).expect("a field")
    }

    /// Numbers the operations of `change` from `start_op` in the name of `actor`, fields included.
    fn move_to(change: &mut ExpandedChange, actor: ActorId, start_op: u64) {
        let old = (change.actor_id.clone(), change.start_op.get());
        for op in &mut change.operations {
            if let ObjectId::Id(OpId(counter, owner)) = &mut op.obj
                && *owner == old.0
                && *counter >= old.1
            {
                *counter = *counter - old.1 + start_op;
                *owner = actor.clone();
            }
        }
        change.actor_id = actor;
        change.start_op = start_op.try_into().expect("operations count from 1");
    }

    type Attack<'a> = (&'a str, &'a dyn Fn(&mut ExpandedChange));

    fn report(attacks: &[Attack<'_>], unknown: UnknownKeys) -> String {
        let (document, change) = honest();
        let mut report = String::new();
        for (name, forge) in attacks {
            let mut change = change.clone();
            forge(&mut change);
            report += &format!("{name}: {}\n", verdict(&document, &encode(&change), unknown));
        }
        report
    }

    #[test]
    fn a_change_that_contradicts_its_history_is_refused() {
        let (document, _) = honest();
        let own = ActorId::from(&[2; 16][..]);
        let changes = document.automerge().get_changes_meta(&[]);
        let hash_of = |actor: u8, seq: u64| {
            let found = changes.iter().find(|meta| meta.actor.to_bytes() == [actor; 16] && meta.seq == seq);
            found.expect("such a change").hash
        };
        let first_of_central = hash_of(1, 1);
        let genesis_hash = genesis::hash(document.kind(), document.id());
        let rack = ids(&document, Some("tags"), "rack");
        let hostname = ids(&document, None, "hostname");
        let attacks: &[Attack<'_>] = &[
            ("an honest change", &|_| ()),
            ("a sequence gap of an unknown actor", &|change| {
                move_to(change, ghost(), change.start_op.get());
                change.seq = 5;
            }),
            ("a sequence gap of a known actor", &|change| change.seq = 7),
            ("a sequence number for the second time", &|change| change.seq = 1),
            ("the last sequence number there is", &|change| change.seq = u64::MAX),
            ("the next number without its own previous change", &|change| {
                change.deps = vec![first_of_central];
                move_to(change, own.clone(), 13);
            }),
            ("an author footer that is not in the first change", &|change| {
                change.extra_bytes = vec![1, 2, 65, 66]
            }),
            ("operations near the last number", &|change| {
                move_to(change, own.clone(), u64::from(u32::MAX) - 1);
            }),
            ("operations far ahead", &|change| move_to(change, own.clone(), (1 << 31) - 1)),
            ("operations numbered too low", &|change| move_to(change, own.clone(), 1)),
            ("operations that overlap the previous ones", &|change| {
                move_to(change, own.clone(), change.start_op.get() - 1);
            }),
            ("operations numbered apart from their objects", &|change| {
                change.start_op = 1.try_into().unwrap();
            }),
            ("the actor of the genesis", &|change| {
                move_to(change, genesis::actor(Kind::Node, DocumentId([7; 16])), change.start_op.get());
                change.seq = 2;
            }),
            ("no dependency", &|change| change.deps.clear()),
            ("another document's dependency", &|change| {
                change.deps = vec![genesis::hash(Kind::Node, DocumentId([8; 16]))];
            }),
            ("no operation", &|change| change.operations.clear()),
            ("a stamp before 1970", &|change| change.time = -1),
            ("an honest change by someone who saw the genesis alone", &|change| {
                move_to(change, ghost(), 5);
                (change.seq, change.deps) = (1, vec![genesis_hash]);
                change.operations[0].pred = SortedVec::new();
            }),
            // Two replicas with one actor: whose it is, authorisation knows.
            ("a change in central's name that central did not write", &|change| {
                move_to(change, ActorId::from(&[1; 16][..]), change.start_op.get());
                change.seq = 3;
            }),
            ("replaces nothing where something stands", &|change| {
                change.operations[0].pred = SortedVec::new()
            }),
            ("replaces what never was", &|change| {
                change.operations[0].pred = vec![OpId(3, own.clone())].into()
            }),
            ("replaces a value of an actor that nobody knows", &|change| {
                change.operations[0].pred = vec![OpId(3, ghost())].into();
            }),
            ("replaces another key's value", &|change| change.operations[0].pred = rack.clone().into()),
            ("replaces its own and another key's value", &|change| {
                change.operations[0].pred = [&rack[..], &hostname].concat().into();
            }),
            ("replaces its own value twice", &|change| {
                change.operations[0].pred = [&hostname[..], &hostname].concat().into();
            }),
            ("a field replaces a register", &|change| change.operations[1].pred = hostname.clone().into()),
        ];
        expect![[r#"
            an honest change: accepted, writes hostname
            a sequence gap of an unknown actor: change is number 5 of its actor, whose next is 1
            a sequence gap of a known actor: change is number 7 of its actor, whose next is 2
            a sequence number for the second time: change is number 1 of its actor, whose next is 2
            the last sequence number there is: change is number 18446744073709551615 of its actor, whose next is 2
            the next number without its own previous change: change does not follow the previous one of its actor
            an author footer that is not in the first change: columns claim 134 bytes and 138 follow
            operations near the last number: operations start at 4294967294, outside 1..2147483648
            operations far ahead: operations start at 2147483647, the next free number is 29
            operations numbered too low: operations start at 1, the next free number is 29
            operations that overlap the previous ones: operations start at 28, the next free number is 29
            operations numbered apart from their objects: operation 1 writes into an object that neither the genesis nor this change made
            the actor of the genesis: change is written by the actor of the genesis
            no dependency: change follows nothing, not even the genesis
            another document's dependency: waits for 1 change(s)
            no operation: change writes nothing
            a stamp before 1970: change is stamped -1, before 1970
            an honest change by someone who saw the genesis alone: accepted, writes hostname
            a change in central's name that central did not write: accepted, writes hostname
            replaces nothing where something stands: `hostname` does not replace exactly what its writer saw there
            replaces what never was: `hostname` does not replace exactly what its writer saw there
            replaces a value of an actor that nobody knows: `hostname` does not replace exactly what its writer saw there
            replaces another key's value: `hostname` does not replace exactly what its writer saw there
            replaces its own and another key's value: `hostname` does not replace exactly what its writer saw there
            replaces its own value twice: `hostname` does not replace exactly what its writer saw there
            a field replaces a register: `hostname` does not replace exactly what its writer saw there
        "#]].assert_eq(&report(attacks, UnknownKeys::Refuse));
    }

    #[test]
    fn only_registers_of_the_schema_are_written() {
        let (document, _) = honest();
        let genesis_id = |n: u64| ObjectId::Id(OpId(n, genesis::actor(Kind::Node, DocumentId([7; 16]))));
        let hostname = ids(&document, None, "hostname");
        let macs = ids(&document, None, "macs");
        let kind = ids(&document, None, genesis::KIND_KEY);
        let only = |change: &mut ExpandedChange, op: Op| change.operations = vec![op];
        let field = |change: &mut ExpandedChange, key: &str, action: OpType| {
            let owner = made(change, 0);
            change.operations.push(op(owner, key, action, &[]));
        };
        let nest = |change: &mut ExpandedChange, depth: usize| {
            for _ in 0..depth {
                let owner = match &change.operations[change.operations.len() - 1] {
                    last if last.action == MAP && change.operations.len() > 1 => {
                        made(change, change.operations.len() - 1)
                    }
                    _ => made(change, 0),
                };
                change.operations.push(op(owner, "deeper", MAP, &[]));
            }
        };
        let mark = automerge::legacy::MarkData { name: "bold".into(), value: true.into(), expand: true };
        let attacks: &[Attack<'_>] = &[
            ("an object that is not there", &|change| {
                change.operations[1].obj = ObjectId::Id(OpId(77, change.actor_id.clone()));
            }),
            ("an object of an actor that nobody knows", &|change| {
                change.operations[1].obj = ObjectId::Id(OpId(77, ghost()));
            }),
            ("a scalar as an object", &|change| change.operations[1].obj = genesis_id(1)),
            ("a table and a key in it", &|change| {
                change.operations[0].action = OpType::Make(ObjType::Table);
            }),
            ("a table in a register", &|change| field(change, "colour", OpType::Make(ObjType::Table))),
            ("a list", &|change| change.operations[0].action = OpType::Make(ObjType::List)),
            ("a text", &|change| change.operations[0].action = OpType::Make(ObjType::Text)),
            ("an insertion", &|change| change.operations[1].insert = true),
            ("an element of a list", &|change| {
                change.operations[1].key = Key::Seq(automerge::legacy::ElementId::Head);
            }),
            ("a mark", &|change| change.operations[1].action = OpType::MarkBegin(mark.clone())),
            ("an incremented text", &|change| change.operations[1].action = OpType::Increment(3)),
            ("an incremented register", &|change| {
                only(change, op(ObjectId::Root, "hostname", OpType::Increment(3), &hostname));
            }),
            ("a deleted register", &|change| {
                only(change, op(ObjectId::Root, "hostname", OpType::Delete, &hostname));
            }),
            ("a scalar as a register", &|change| {
                only(change, op(ObjectId::Root, "hostname", put("x"), &hostname))
            }),
            ("a counter as a register", &|change| {
                only(change, op(ObjectId::Root, "hostname", put(ScalarValue::counter(0)), &hostname));
            }),
            ("another kind", &|change| {
                only(change, op(ObjectId::Root, genesis::KIND_KEY, put("task"), &kind));
            }),
            ("a container made again", &|change| only(change, op(ObjectId::Root, "macs", MAP, &macs))),
            ("a deleted container", &|change| {
                only(change, op(ObjectId::Root, "macs", OpType::Delete, &macs))
            }),
            ("a key of no schema", &|change| change.operations[0].key = Key::Map("colour".into())),
            ("a scalar in a container", &|change| only(change, op(genesis_id(4), "rack", put("x"), &[]))),
            ("a key in a register of an earlier change", &|change| {
                only(change, op(ObjectId::Id(hostname[0].clone()), "value", put("x"), &[]));
            }),
            ("a map three deep", &|change| nest(change, 3)),
            ("a map four deep", &|change| nest(change, 4)),
            ("a field written twice", &|change| field(change, "value", put("y"))),
            ("a field that a newer program knows", &|change| field(change, "colour", put("red"))),
            ("a fraction", &|change| field(change, "colour", put(0.5))),
            ("null", &|change| field(change, "colour", put(ScalarValue::Null))),
            ("a timestamp", &|change| field(change, "colour", put(ScalarValue::Timestamp(1)))),
            ("a counter", &|change| field(change, "colour", put(ScalarValue::counter(1)))),
            ("a scalar of no known type", &|change| {
                field(change, "colour", put(ScalarValue::Unknown { type_code: 12, bytes: vec![1] }));
            }),
            ("a deleted field", &|change| field(change, "colour", OpType::Delete)),
            ("a text of 4,096 bytes", &|change| field(change, "colour", put("é".repeat(2_048)))),
            ("a text of 4,097 bytes", &|change| field(change, "colour", put("x".repeat(4_097)))),
            ("4,097 bytes", &|change| field(change, "colour", put(ScalarValue::Bytes(vec![0; 4_097])))),
            ("an empty register", &|change| change.operations.truncate(1)),
            ("a register without an author", &|change| {
                let nonce = at(change, "nonce");
                change.operations.remove(nonce);
            }),
            ("a register without its value", &|change| {
                let value = at(change, "value");
                change.operations.remove(value);
            }),
            ("a value of another type", &|change| {
                let value = at(change, "value");
                change.operations[value].action = put(7_u64);
            }),
            ("a register stamped later than its change", &|change| change.time -= 1),
        ];
        expect![[r#"
            an object that is not there: operation 1 writes into an object that neither the genesis nor this change made
            an object of an actor that nobody knows: operation 1 writes into an object that neither the genesis nor this change made
            a scalar as an object: operation 1 writes into an object that neither the genesis nor this change made
            a table and a key in it: `hostname` is made a table; a register is replaced by a map
            a table in a register: field `colour` of `hostname` is made a table
            a list: `hostname` is made a list; a register is replaced by a map
            a text: `hostname` is made a text of single characters; a register is replaced by a map
            an insertion: operation 1 is one of a list or text
            an element of a list: column 0x13 is none of a change to maps
            a mark: column 0x94 is none of a change to maps
            an incremented text: field `at` of `hostname` is incremented
            an incremented register: `hostname` is incremented; a register is replaced by a map
            a deleted register: `hostname` is deleted; a register is replaced by a map
            a scalar as a register: `hostname` is made a plain value; a register is replaced by a map
            a counter as a register: `hostname` is made a counter; a register is replaced by a map
            another kind: `kind` names the kind and is never rewritten
            a container made again: `macs` is a container of the genesis and is never made again
            a deleted container: `macs` is a container of the genesis and is never made again
            a key of no schema: `colour` is not a register of the schema
            a scalar in a container: `tags/rack` is made a plain value; a register is replaced by a map
            a key in a register of an earlier change: operation 0 writes into an object that neither the genesis nor this change made
            a map three deep: accepted, writes hostname
            a map four deep: maps in `hostname` are nested more than 3 deep
            a field written twice: field `value` of `hostname` is written twice
            a field that a newer program knows: accepted, writes hostname
            a fraction: field `colour` of `hostname` is made a fraction
            null: field `colour` of `hostname` is made null
            a timestamp: field `colour` of `hostname` is made a timestamp
            a counter: field `colour` of `hostname` is made a counter
            a scalar of no known type: field `colour` of `hostname` is made something unknown
            a deleted field: field `colour` of `hostname` is deleted
            a text of 4,096 bytes: accepted, writes hostname
            a text of 4,097 bytes: field `colour` of `hostname` has 4097 bytes, more than 4096
            4,097 bytes: field `colour` of `hostname` has 4097 bytes, more than 4096
            an empty register: `hostname` is unreadable: field `by` is missing
            a register without an author: `hostname` is unreadable: field `nonce` is missing
            a register without its value: `hostname` is unreadable: field `value` is missing
            a value of another type: `hostname` is unreadable: field `value` is not text
            a register stamped later than its change: `hostname` is stamped differently from its change
        "#]].assert_eq(&report(attacks, UnknownKeys::Refuse));
    }

    #[test]
    fn a_site_keeps_what_a_newer_central_writes_if_it_says_who_wrote_it() {
        let attacks: &[Attack<'_>] = &[
            ("a register of a newer schema", &|change| {
                change.operations[0].key = Key::Map("colour".into());
                change.operations[0].pred = SortedVec::new();
            }),
            ("one without an author", &|change| {
                change.operations[0].key = Key::Map("colour".into());
                change.operations[0].pred = SortedVec::new();
                let by = at(change, "by");
                change.operations.remove(by);
            }),
            ("the kind", &|change| change.operations[0].key = Key::Map(genesis::KIND_KEY.into())),
            ("a container", &|change| change.operations[0].key = Key::Map("tags".into())),
        ];
        expect![[r#"
            a register of a newer schema: accepted, writes colour
            one without an author: `colour` is unreadable: field `by` is missing
            the kind: `kind` names the kind and is never rewritten
            a container: `tags` is a container of the genesis and is never made again
        "#]]
        .assert_eq(&report(attacks, UnknownKeys::Keep));
    }

    #[test]
    fn a_site_writes_only_its_own_key_where_each_has_one() {
        let document = machine();
        let seen = node::Observed { first_seen: crate::time::Timestamp(1), asked_again: None };
        let by = |writer: Origin, key: &str| {
            let mut next = document.clone();
            let register = crate::document::Register::within("observed", key);
            let change = write(&mut next, author(2, writer, 20), &register, &seen);
            verdict(&document, change.raw_bytes(), UnknownKeys::Refuse)
        };
        let lyon = LYON.to_string();
        assert_eq!(by(LYON, &lyon), format!("accepted, writes observed/{lyon}"));
        let bern = SiteId([3; 16]).to_string();
        assert_eq!(
            by(LYON, &bern),
            format!("`observed/{bern}` is written by `{lyon}`; each site has its own key there")
        );
        assert!(
            by(Origin::Central, &lyon).ends_with("is written by `central`; each site has its own key there")
        );
        // The same site in capitals would be a second key that nobody reads.
        let shouting = SiteId([0xab; 16]);
        let found = by(Origin::Site(shouting), &shouting.to_string().to_uppercase());
        assert!(found.ends_with("each site has its own key there"), "{found}");
    }

    #[test]
    fn p8_central_writes_the_consent_of_any_side_and_a_site_that_of_its_own() {
        let id = ClaimId::of(NodeId([8; 16]), SiteId([3; 16]), 1);
        let document = Document::new(Kind::Claim, id.into());
        let by = |writer: Origin, key: &str| {
            let mut next = document.clone();
            let register = crate::document::Register::within("consent", key);
            let change =
                write(&mut next, author(2, writer, 20), &register, &claim::Consent { consents: true });
            verdict(&document, change.raw_bytes(), UnknownKeys::Refuse)
        };
        let lyon = LYON.to_string();
        assert_eq!(by(LYON, &lyon), format!("accepted, writes consent/{lyon}"));
        assert_eq!(by(Origin::Central, &lyon), format!("accepted, writes consent/{lyon}"));
        let bern = SiteId([3; 16]).to_string();
        assert_eq!(
            by(LYON, &bern),
            format!("`consent/{bern}` is written by `{lyon}`; each site has its own key there")
        );
    }

    #[test]
    fn h2_a_decision_replaces_every_side_that_its_writer_saw_and_no_other() {
        let base = machine();
        let rename = |document: &mut Document, incarnation, site, at, name| {
            write(document, author(incarnation, site, at), &node::hostname(), &text(name))
        };
        let (mut here, mut there) = (base.clone(), base.clone());
        let first = rename(&mut here, 1, Origin::Central, 20, "till-1");
        let second = rename(&mut there, 2, LYON, 21, "kasse-1");
        here.apply(second.clone()).unwrap();
        let settled = rename(&mut here.clone(), 1, Origin::Central, 30, "till-1");

        let check = |change: &ExpandedChange| verdict(&here, &encode(change), UnknownKeys::Refuse);
        assert_eq!(check(&settled.decode()), "accepted, writes hostname");
        let mut half = settled.decode();
        half.operations[0].pred = half.operations[0].pred.iter().take(1).cloned().collect();
        assert_eq!(check(&half), "`hostname` does not replace exactly what its writer saw there");

        // Central did not see Lyon's name and replaces its own, although both are visible by now.
        let mut alone = base.clone();
        alone.apply(first).unwrap();
        let unaware = rename(&mut alone, 1, Origin::Central, 31, "till-2");
        assert_eq!(check(&unaware.decode()), "accepted, writes hostname");
    }

    #[test]
    fn one_change_may_write_a_register_twice() {
        let document = machine();
        let mut writer = author(2, LYON, 20);
        let change = document.clone().write(&mut writer, |edit| {
            edit.set(&node::hostname(), &text("a"), "");
            edit.set(&node::hostname(), &text("b"), "");
        });
        let change = change.unwrap().decode();
        let bytes = encode(&change);
        assert_eq!(verdict(&document, &bytes, UnknownKeys::Refuse), "accepted, writes hostname hostname");

        let mut crooked = change.clone();
        let second = crooked.operations.iter().rposition(|op| op.action == MAP).unwrap();
        crooked.operations[second].pred = crooked.operations[0].pred.clone();
        assert_eq!(
            verdict(&document, &encode(&crooked), UnknownKeys::Refuse),
            "`hostname` does not replace exactly what its writer saw there"
        );
    }

    #[test]
    fn what_automerge_would_have_written_otherwise_is_refused() {
        let (document, change) = honest();
        let honest = encode(&change);
        let check = |chunk: Chunk| verdict(&document, &chunk.bytes(), UnknownKeys::Refuse);
        let column = |column: u64| {
            let found = Chunk::of(&honest).columns.into_iter().find(|(other, _)| *other == column);
            found.expect("a column of every change").1
        };

        assert_eq!(column(0x42), [0x7f, 0, 7, 1], "one map and seven puts, as a run");
        let one_by_one = Chunk::of(&honest).column(0x42, [&[0x78][..], &[0], &[1; 7]].concat());
        assert_eq!(check(one_by_one), "change is not encoded as automerge encodes it");

        let mut crowded = Chunk::of(&honest);
        let actors = crowded.metadata.len() - 18;
        assert_eq!(crowded.metadata[actors..], [&[1, 16][..], &[1; 16]].concat(), "central is named");
        crowded.metadata[actors] = 2;
        crowded.metadata.extend([&[16][..], &[0xee; 16]].concat());
        assert_eq!(check(crowded), "change is not encoded as automerge encodes it");
    }

    #[test]
    fn what_automerge_cannot_decode_is_refused_even_where_it_panics() {
        let (document, change) = honest();
        let honest = encode(&change);
        let check = |column: u64, bytes: &[u8]| {
            let chunk = Chunk::of(&honest).column(column, bytes.to_vec());
            verdict(&document, &chunk.bytes(), UnknownKeys::Refuse)
        };
        assert_eq!(
            check(0x70, &[0x7f, 1]),
            "automerge cannot read the change: unable to parse change: unexpected null in column pred"
        );
        // The object of the fields is made by actor 9 of two.
        assert_eq!(check(0x01, &[0, 1, 7, 9]), "automerge panicked when it was to decode a change");
    }

    #[test]
    fn a_change_is_a_duplicate_once_it_is_there_and_waits_until_it_can_be() {
        let mut document = machine();
        let before = document.clone();
        let first = write(&mut document, author(2, LYON, 20), &node::hostname(), &text("a"));
        let second = write(&mut document, author(2, LYON, 21), &node::hostname(), &text("b"));
        let standing = |document: &Document, change: &automerge::Change| match check(
            document,
            &parse(change.raw_bytes()).unwrap(),
            UnknownKeys::Refuse,
        )
        .unwrap()
        {
            Standing::Present => "present".to_string(),
            Standing::Waiting { missing } => format!("waits for the first: {}", missing == [first.hash()]),
            Standing::Fits { .. } => "fits".to_string(),
        };
        assert_eq!(standing(&before, &first), "fits");
        assert_eq!(standing(&before, &second), "waits for the first: true");
        assert_eq!(standing(&document, &second), "present");
        assert_eq!(standing(&document, &genesis::change(Kind::Node, DocumentId([7; 16]))), "present");
    }

    #[test]
    fn nonsense_is_not_parked() {
        let (document, mut change) = honest();
        change.deps = vec![ChangeHash([9; 32])];
        assert_eq!(verdict(&document, &encode(&change), UnknownKeys::Refuse), "waits for 1 change(s)");
        change.operations[0].key = Key::Map("colour".into());
        assert_eq!(
            verdict(&document, &encode(&change), UnknownKeys::Refuse),
            "`colour` is not a register of the schema"
        );
    }

    #[test]
    fn another_genesis_of_the_same_document_is_refused() {
        let mut foreign = Automerge::new().with_actor(genesis::actor(Kind::Node, DocumentId([7; 16])));
        let mut transaction = foreign.transaction();
        automerge::transaction::Transactable::put(&mut transaction, ROOT, "kind", "node").unwrap();
        transaction.commit();
        let bytes = foreign.get_changes(&[])[0].raw_bytes().to_vec();
        assert_eq!(
            verdict(&machine(), &bytes, UnknownKeys::Refuse),
            "change is written by the actor of the genesis"
        );
    }
}
