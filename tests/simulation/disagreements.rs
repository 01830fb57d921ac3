//! What must hold where writers disagree.

use std::collections::BTreeSet;

use automerge::{Automerge, ObjId, ROOT, ReadDoc};
use harness::world::World;
use store::view::ConflictFilter;
use sync::{
    document::{Document, contested, node, register::SETTLES},
    id::{DocumentId, Origin},
    policy::Wanted,
};

use crate::{
    checks::{read, violated},
    moves,
};

/// Of wishes that contradict each other the least destructive is in force.
pub(crate) fn least_destructive_holds(document: &Document, body: &str, name: &str) {
    let wishes = contested::read(document, &node::wanted());
    let least = wishes.sides().iter().map(|side| side.value.wanted).min().unwrap_or(Wanted::Keep);
    let shown: serde_json::Value = serde_json::from_str(body).expect("rows are JSON");
    if shown["wanted"] != least.as_str() {
        let detail = format!("node {} at {name} is wanted {}, not {least}", document.id(), shown["wanted"]);
        violated("of contested wishes the least destructive is in force", detail);
    }
}

/// What central's settling leaves to people.
pub(crate) const LAST_WORD: &str = "who had seen all sides has the last word";

/// Registers of a machine that people write, each with the field in which its value stands.
pub(crate) const WRITTEN: [(&str, &str); 3] =
    [("hostname", "value"), ("notes", "value"), ("wanted", "wanted")];

/// What central has settled neutrally, and what somebody who had seen all sides of it wrote beside it.
pub(crate) struct LastWord {
    /// The value that central repeats.
    pub(crate) neutral: String,
    /// The other one, which is in force.
    pub(crate) later: String,
}

/// Whoever has seen all sides has the last word, also where central has settled them meanwhile.
pub(crate) fn last_word_holds(document: &Document, body: &str, name: &str) {
    for (key, field) in WRITTEN {
        let Some(LastWord { neutral, later }) = last_word(document.automerge(), key, field) else { continue };
        let shown: serde_json::Value = serde_json::from_str(body).expect("rows are JSON");
        if shown[key] != later.as_str() {
            let id = document.id();
            let detail =
                format!("`{key}` of node {id} at {name} is {}, not {later}, beside {neutral}", shown[key]);
            violated(LAST_WORD, detail);
        }
    }
}

/// Reads a register as Automerge has it, without the code under test.
pub(crate) fn last_word(document: &Automerge, key: &str, field: &str) -> Option<LastWord> {
    let values = document.get_all(ROOT, key).ok()?;
    let [one, other] = values.as_slice() else { return None };
    let settles = |object: &ObjId| document.get(object, SETTLES).ok().flatten().map(|(_, said)| said);
    let (said, neutral, later) = match (settles(&one.1), settles(&other.1)) {
        (Some(said), None) => (said, &one.1, &other.1),
        (None, Some(said)) => (said, &other.1, &one.1),
        (Some(_), Some(_)) | (None, None) => return None,
    };
    let sides = bytes(document, &said, "sides")?;
    let change = document.get_change_by_hash(&document.hash_for_opid(later)?)?;
    let before = document.get_all_at(ROOT, key, change.deps()).ok()?;
    let seen: BTreeSet<Vec<u8>> =
        before.iter().filter_map(|(_, object)| bytes(document, object, "nonce")).collect();
    let saw_all = sides.chunks(8).all(|side| seen.contains(side));
    let text = |object: &ObjId| Some(document.get(object, field).ok()??.0.as_str()?.to_string());
    if saw_all { Some(LastWord { neutral: text(neutral)?, later: text(later)? }) } else { None }
}

fn bytes(document: &Automerge, object: &ObjId, key: &str) -> Option<Vec<u8>> {
    document.get(object, key).ok()??.0.as_bytes().map(<[u8]>::to_vec)
}

/// What writers disagree about is kept as that, and nothing else; at central nothing of it is left that policy may settle.
pub(crate) fn nobody_disagrees_unseen(world: &mut World, origin: Origin) {
    let name = world.name(origin);
    let filter = ConflictFilter { open: Some(true), ..ConflictFilter::default() };
    let open = world.store(origin).read(|view| view.conflicts(&filter)).expect("it reads");
    for row in &open {
        let is_said =
            row.reason.as_ref().is_some_and(|reason| reason.contains("manual") || reason.contains("floor"));
        if origin == Origin::Central && !is_said {
            let detail = format!("`{}` of {} {}: {:?}", row.path, row.kind, row.document, row.reason);
            violated("in the end policy has settled what it may", detail);
        }
    }
    let kept: BTreeSet<(DocumentId, String)> = open.into_iter().map(|row| (row.document, row.path)).collect();
    let eye = world.eye(origin);
    let mut is = BTreeSet::new();
    for doc in read(eye.documents()) {
        let stored = read(eye.stored(doc));
        let (Some(kind), id) = (stored.kind, stored.id) else { continue };
        let document = eye.document(doc, kind, id).expect("it opened before");
        is.extend(contested::disputed(&document).iter().map(|one| (id, one.path())));
    }
    // What has left the site is nobody's business there, also while a machine is still being written.
    if let Origin::Site(site) = origin {
        is.retain(|(id, _)| !moves::has_left(eye, site, *id));
    }
    if kept != is {
        let detail = format!("{name} keeps {kept:?}, and in its documents are {is:?}");
        violated("what writers disagree about is kept as that", detail);
    }
}
