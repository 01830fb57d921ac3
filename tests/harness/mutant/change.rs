//! Edits what a change says, and encodes it as Automerge would: the checksum is right, the content is not.

use automerge::{
    ActorId, Change, ChangeHash, ExpandedChange, ObjType, ScalarValue,
    legacy::{ElementId, Key, ObjectId, Op, OpId, OpType, SortedVec},
};
use sync::document::{Document, genesis};

use super::{draw, quietly};
use crate::{
    corpus::{Corpus, Situation, pick},
    random::Random,
};

/// Keys of registers, of fields, of containers, and of nothing.
const KEYS: [&str; 22] = [
    "state",
    "hostname",
    "home",
    "kind",
    "macs",
    "tags",
    "observed",
    "wanted",
    "spec",
    "order",
    "effective",
    "colour",
    "by",
    "site",
    "at",
    "why",
    "policy_epoch",
    "nonce",
    "value",
    "home_site",
    "autonomy",
    "not_after",
];

/// Texts that mean something somewhere.
const WORDS: [&str; 8] = ["central", "retired", "full", "installed", "", "true", "\0", "é"];

/// One to three edits of the change of a situation. Nothing where Automerge cannot encode what came out.
pub fn edit(random: &mut Random, corpus: &Corpus, situation: &Situation<'_>) -> Option<Vec<u8>> {
    let mut change = Change::try_from(&situation.next.bytes[..]).ok()?.decode();
    let cast = Cast::of(corpus, situation.document);
    for _ in 0..=random.below(3) {
        match random.below(20) {
            0..6 => whole(random, corpus, &cast, &mut change),
            6..9 => list(random, corpus, &mut change),
            _ => operation(random, &cast, &mut change),
        }
    }
    quietly(|| Change::from(change).raw_bytes().to_vec()).ok()
}

/// Whoever and whatever can be named.
struct Cast {
    hashes: Vec<ChangeHash>,
    actors: Vec<ActorId>,
    sites: Vec<String>,
}

impl Cast {
    fn of(corpus: &Corpus, document: &Document) -> Self {
        let metas = document.automerge().get_changes_meta(&[]);
        let mut actors: Vec<ActorId> = metas.iter().map(|meta| meta.actor.clone().into_owned()).collect();
        actors.extend(corpus.actors.keys().map(|actor| ActorId::from(&actor[..])));
        actors.push(genesis::actor(document.kind(), document.id()));
        actors.push(ActorId::from(&[0xee; 16][..]));
        let sites = corpus.sites.iter().map(ToString::to_string).collect();
        Cast { hashes: metas.iter().map(|meta| meta.hash).collect(), actors, sites }
    }

    fn id(&self, random: &mut Random) -> OpId {
        OpId(random.below(160), draw(random, &self.actors).clone())
    }
}

/// Edits what holds for the whole change.
fn whole(random: &mut Random, corpus: &Corpus, cast: &Cast, change: &mut ExpandedChange) {
    match random.below(12) {
        0 => change.seq = change.seq.wrapping_add(random.below(3)).wrapping_sub(1),
        1 => change.seq = *draw(random, &[0, 1, 2, 7, 1 << 31, 1 << 32, u64::MAX]),
        2 => {
            let near = change.start_op.get().wrapping_add(random.below(5)).wrapping_sub(2);
            change.start_op = near.try_into().unwrap_or(change.start_op);
        }
        3 => {
            let far = *draw(random, &[1, (1 << 31) - 1, 1 << 31, u64::from(u32::MAX) - 2, 1 << 40]);
            change.start_op = far.try_into().unwrap_or(change.start_op);
        }
        4 => drop(change.deps.pop()),
        5 => {
            change.deps = (0..=random.below(3)).map(|_| *draw(random, &cast.hashes)).collect();
            change.deps.sort();
            change.deps.dedup();
        }
        6 => {
            change.deps.push(ChangeHash(random.bytes()));
            change.deps.sort();
        }
        7 => change.actor_id = draw(random, &cast.actors).clone(),
        8 => change.extra_bytes = vec![1, 2, 65, 66],
        9 => change.time = *draw(random, &[0, -1, 1, i64::MAX, i64::MIN, change.time.wrapping_add(1)]),
        10 => change.message = Some("m".repeat(pick(random, 300))),
        _ => {
            // Everything but the operations of another honest change.
            if let Ok(other) = Change::try_from(&corpus.any_change(random).bytes[..]) {
                let operations = std::mem::take(&mut change.operations);
                *change = ExpandedChange { operations, ..other.decode() };
            }
        }
    }
}

/// Takes out, doubles, moves or adds operations.
fn list(random: &mut Random, corpus: &Corpus, change: &mut ExpandedChange) {
    if change.operations.is_empty() {
        return;
    }
    let (from, to) = (pick(random, change.operations.len()), pick(random, change.operations.len()));
    match random.below(5) {
        0 => drop(change.operations.remove(from)),
        1 => change.operations.swap(from, to),
        2 => change.operations.insert(to, change.operations[from].clone()),
        3 => change.operations.truncate(from),
        _ => {
            if let Ok(other) = Change::try_from(&corpus.any_change(random).bytes[..]) {
                let mut other = other.decode().operations;
                let taken = other.swap_remove(pick(random, other.len()));
                change.operations.insert(to, taken);
            }
        }
    }
}

fn operation(random: &mut Random, cast: &Cast, change: &mut ExpandedChange) {
    if change.operations.is_empty() {
        return;
    }
    let at = pick(random, change.operations.len());
    let other = change.operations[pick(random, change.operations.len())].clone();
    let operation: &mut Op = &mut change.operations[at];
    match random.below(16) {
        0 => operation.pred = SortedVec::new(),
        1 => operation.pred = vec![cast.id(random)].into(),
        2 => operation.pred = other.pred,
        3 => {
            let mut ids: Vec<OpId> = operation.pred.iter().cloned().collect();
            ids.push(cast.id(random));
            operation.pred = ids.into();
        }
        4 => operation.obj = ObjectId::Id(cast.id(random)),
        5 => operation.obj = ObjectId::Root,
        6 => operation.obj = other.obj,
        7..9 => operation.key = Key::Map((*draw(random, &KEYS)).into()),
        9 => operation.key = Key::Seq(ElementId::Head),
        10 => operation.insert = !operation.insert,
        11 => {
            let types = [ObjType::Table, ObjType::List, ObjType::Text, ObjType::Map];
            operation.action = OpType::Make(*draw(random, &types));
        }
        12 => operation.action = draw(random, &[OpType::Increment(3), OpType::Delete]).clone(),
        13 => operation.action = other.action,
        _ => operation.action = OpType::Put(scalar(random, cast, &operation.action)),
    }
}

/// Another value, of the same type where there is one.
fn scalar(random: &mut Random, cast: &Cast, before: &OpType) -> ScalarValue {
    match (before, random.below(4)) {
        (OpType::Put(ScalarValue::Str(text)), 0..3) => match random.below(4) {
            0 => draw(random, &cast.sites).as_str().into(),
            1 => (*draw(random, &WORDS)).into(),
            2 => "x".repeat(*draw(random, &[0, 1, 4_096, 4_097, 40_000])).as_str().into(),
            _ => format!("{text}!").as_str().into(),
        },
        (OpType::Put(ScalarValue::Bytes(_)), 0..3) => ScalarValue::Bytes(random.bytes::<16>().to_vec()),
        (OpType::Put(ScalarValue::Uint(_)), 0..3) => {
            ScalarValue::Uint(*draw(random, &[0, 1, 2, 1 << 40, u64::MAX]))
        }
        (OpType::Put(ScalarValue::Int(number)), 0..3) => {
            ScalarValue::Int(*draw(random, &[0, 1, -1, number.wrapping_add(1), i64::MAX, i64::MIN]))
        }
        (OpType::Put(ScalarValue::Boolean(truth)), 0..3) => ScalarValue::Boolean(!truth),
        _ => draw(
            random,
            &[
                ScalarValue::Null,
                ScalarValue::Uint(7),
                ScalarValue::Int(-7),
                ScalarValue::F64(0.5),
                ScalarValue::Timestamp(1),
                ScalarValue::Boolean(true),
                ScalarValue::counter(1),
                ScalarValue::Bytes(vec![0; 16]),
                ScalarValue::Unknown { type_code: 12, bytes: vec![1] },
                "x".into(),
            ],
        )
        .clone(),
    }
}
