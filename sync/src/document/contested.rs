//! Reading a register with every side that concurrent writers left.
//!
//! This is the only caller of Automerge's `get_all`. A [`Contested`] value is never silently one of its
//! sides: whoever needs one value says which rule applies, and each rule depends on the document alone,
//! so that replicas with equal heads act alike before anybody has settled anything.
//!
//! A neutral value, by which central settles, is read as what it repeats. Where somebody wrote beside it who had
//! not heard of it, it counts for nothing: what it was chosen from stands again, less what that writer had seen.
//! So whoever had seen all sides has the last word, and a side that he had not seen is not lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use automerge::{
    Automerge, ChangeHash, ObjId, ObjType, ReadDoc, ScalarValueRef, ValueRef,
    iter::{DocItem, MapRangeItem},
};

use super::{
    Class, Document, Field, Fields, Kind, Register, Value, Written,
    register::{self, Settled, Untyped},
    schema::RegisterSchema,
};
use crate::id::{Nonce, Origin, SiteId};

/// One writer's value of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side<V> {
    /// The value.
    pub value: V,
    /// Who wrote it; of a neutral value, who wrote what it repeats.
    pub written: Written,
    /// Of a neutral value: who settled by it, when and why.
    pub settled_by: Option<Written>,
    /// Change that wrote it.
    pub change: ChangeHash,
    /// Whether its writer had seen nothing but the genesis of the document.
    pub first: bool,
    /// Operation: counter and actor. The greater one is later in the order that Automerge gives.
    op: (u64, Vec<u8>),
}

impl<V> Side<V> {
    /// The operation that wrote it: its number, and the actor.
    pub fn op(&self) -> (u64, &[u8]) {
        (self.op.0, &self.op.1)
    }

    /// The nonce that the register has.
    pub fn nonce(&self) -> Nonce {
        self.settled_by.as_ref().unwrap_or(&self.written).nonce
    }
}

/// All sides of a register; more than one is a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested<V> {
    sides: Vec<Side<V>>,
    agreed: Option<Box<Side<V>>>,
}

impl<V> Contested<V> {
    /// Every side, ordered by operation. Empty when it was never written.
    pub fn sides(&self) -> &[Side<V>] {
        &self.sides
    }

    /// Whether writers disagree.
    pub fn is_contested(&self) -> bool {
        self.sides.len() > 1
    }

    /// The one value, where there is exactly one.
    pub fn settled(&self) -> Option<&Side<V>> {
        match self.sides.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// For evidence and placement: the newest side by (stamp, operation).
    pub fn newest(&self) -> Option<&Side<V>> {
        self.sides.iter().max_by(|a, b| (a.written.at, &a.op).cmp(&(b.written.at, &b.op)))
    }

    /// For facts: the home site's side, then any that is not somebody's very first look at the machine,
    /// then the newest.
    pub fn of_home(&self, home: Option<SiteId>) -> Option<&Side<V>> {
        self.sides.iter().max_by(|a, b| {
            let rank = |side: &Side<V>| {
                let at_home = home.is_some() && side.written.site.site() == home;
                (at_home, !side.first, side.written.at)
            };
            (rank(a), &a.op).cmp(&(rank(b), &b.op))
        })
    }

    /// For decisions: the side with the lowest `severity`, then the newest.
    pub fn least_by<S: Ord>(&self, severity: impl Fn(&V) -> S) -> Option<&Side<V>> {
        self.sides.iter().min_by(|a, b| {
            let of = |side: &Side<V>| severity(&side.value);
            of(a).cmp(&of(b)).then_with(|| (b.written.at, &b.op).cmp(&(a.written.at, &a.op)))
        })
    }

    /// For intents: the one side; while contested the value that all sides had seen, then the home
    /// site's side, then none.
    pub fn agreed(&self, home: Option<SiteId>) -> Option<&Side<V>> {
        if !self.is_contested() {
            return self.settled();
        }
        self.last_agreed().or_else(|| {
            let home = Origin::Site(home?);
            self.sides.iter().find(|side| side.written.site == home)
        })
    }

    /// While contested: the value that all sides had seen before they wrote, if it was one and the same.
    pub fn last_agreed(&self) -> Option<&Side<V>> {
        self.agreed.as_deref()
    }
}

/// Reads `register` of `document`. Sides that cannot be read as `V` are left out: ingress lets none in,
/// and a newer program's additions do not make a value unreadable.
pub fn read<V: Value>(document: &Document, register: &Register<V>) -> Contested<V> {
    read_with(document, register, None)
}

/// Where a path like `hostname` or `tags/rack` leads in a document of the kind: container, key, and what the schema says.
pub fn place(kind: Kind, path: &str) -> Option<(Option<&'static str>, &str, &'static RegisterSchema)> {
    match path.split_once('/') {
        Some((container, key)) => {
            let schema = kind.schema().container(container)?;
            Some((Some(schema.key), key, schema))
        }
        None => Some((None, path, kind.schema().register(path)?)),
    }
}

/// Reads the register at a path, whatever its type; nothing where there can be none.
pub fn read_path(document: &Document, path: &str) -> Option<Contested<Untyped>> {
    let (container, key, _) = place(document.kind(), path)?;
    Some(read(document, &Register::named(container, key.to_string())))
}

/// Reads `register` as somebody saw it who had these changes, all that they rest on, and nothing else.
/// Changes that the document lacks are as if nobody had named them.
pub fn read_at<V: Value>(document: &Document, register: &Register<V>, heads: &[ChangeHash]) -> Contested<V> {
    read_with(document, register, Some(heads))
}

fn read_with<V: Value>(
    document: &Document,
    register: &Register<V>,
    heads: Option<&[ChangeHash]>,
) -> Contested<V> {
    let Some(parent) = document.containers().object(register.container) else {
        return Contested { sides: vec![], agreed: None };
    };
    let sides = standing(document, &parent, &register.key, heads);
    let agreed = if sides.len() > 1 { last_agreed(document, &parent, &register.key, &sides) } else { None };
    Contested { sides, agreed }
}

/// Keys of a genesis container, sorted.
pub fn keys(document: &Document, container: &'static str) -> Vec<String> {
    let parent = document.containers().object(Some(container));
    parent.map(|parent| document.automerge().keys(&parent).collect()).unwrap_or_default()
}

/// A register that is contested, and what may be settled there.
#[derive(Clone, Debug)]
pub struct Disputed {
    /// Genesis container that it is an entry of; none at the root.
    pub container: Option<&'static str>,
    /// Key in the container or at the root.
    pub key: String,
    /// What the schema says of it.
    pub schema: &'static RegisterSchema,
    /// All sides.
    pub read: Contested<Untyped>,
}

impl Disputed {
    /// Path of the register, for people.
    pub fn path(&self) -> String {
        self.container.map_or_else(|| self.key.clone(), |container| format!("{container}/{}", self.key))
    }
}

/// Every contested fact, decision and intent of a document, sorted by path. Evidence and placement settle
/// themselves, and what is written once has one writer.
pub fn disputed(document: &Document) -> Vec<Disputed> {
    let mut found = Vec::new();
    for place in places(document) {
        let container = place.map(|container| container.key);
        let Some(parent) = document.containers().object(container) else { continue };
        let conflicts = document.automerge().map_range(&parent, ..).filter(|item| item.conflict);
        found.extend(conflicts.filter_map(|item| dispute(document, place, &item.key)));
    }
    found.sort_by_key(Disputed::path);
    found
}

/// The root, and the containers of the kind.
fn places(document: &Document) -> impl Iterator<Item = Option<&'static RegisterSchema>> {
    std::iter::once(None).chain(document.kind().schema().containers.iter().map(Some))
}

/// What is contested under a key where Automerge has more than one value.
fn dispute(document: &Document, place: Option<&'static RegisterSchema>, key: &str) -> Option<Disputed> {
    let schema = place.or_else(|| document.kind().schema().register(key))?;
    match schema.class {
        Class::Observed | Class::Decision | Class::Intent => {}
        Class::Evidence | Class::Placement | Class::Immutable => return None,
    }
    let container = place.map(|container| container.key);
    let read = read(document, &Register::named(container, key.to_string()));
    read.is_contested().then(|| Disputed { container, key: key.to_string(), schema, read })
}

/// Entries that a document of a machine has, with some to spare.
const ENTRIES: usize = 128;

/// All that a document holds, walked once: for whoever reads many of its registers.
pub struct Registers<'a> {
    document: &'a Document,
    /// Entries of the root, of each container, and of each map that nobody contests: those of one object together.
    entries: Vec<MapRangeItem<'a>>,
    /// Where those of each object stand, by their object.
    objects: Vec<(Arc<ObjId>, Range<usize>)>,
}

impl<'a> Registers<'a> {
    /// Walks the document.
    pub fn of(document: &'a Document) -> Self {
        let mut entries = Vec::with_capacity(ENTRIES);
        let mut objects: Vec<(Arc<ObjId>, Range<usize>)> = Vec::new();
        for found in document.automerge().iter() {
            let DocItem::Map(item) = found.item else { continue };
            let at = entries.len();
            entries.push(item);
            match objects.last_mut() {
                Some((object, range)) if *object == found.obj => range.end = at + 1,
                Some(_) | None => objects.push((found.obj, at..at + 1)),
            }
        }
        objects.sort_by(|(a, _), (b, _)| a.cmp(b));
        Registers { document, entries, objects }
    }

    /// The document.
    pub fn document(&self) -> &'a Document {
        self.document
    }

    /// What [`read`] gives.
    pub fn read<V: Value>(&self, register: &Register<V>) -> Contested<V> {
        let nothing = Contested { sides: vec![], agreed: None };
        let Some(parent) = self.container(register.container) else { return nothing };
        match self.entries(&parent).iter().find(|item| item.key == register.key) {
            None => nothing,
            // The walk goes by the side that Automerge would choose, and leaves the others out.
            Some(item) if item.conflict => read(self.document, register),
            Some(item) => {
                let object = item.id();
                let fields = self.fields(&object, register::MAX_DEPTH);
                let only = fields.and_then(|fields| side(self.document, &object, &fields));
                Contested { sides: only.into_iter().collect(), agreed: None }
            }
        }
    }

    /// What [`keys`] gives.
    pub fn keys(&self, container: &'static str) -> impl Iterator<Item = &str> {
        let parent = self.container(Some(container));
        parent.into_iter().flat_map(|parent| self.entries(&parent)).map(|item| &*item.key)
    }

    /// What [`disputed`] gives.
    pub fn disputed(&self) -> Vec<Disputed> {
        let mut found = Vec::new();
        for place in places(self.document) {
            let Some(parent) = self.container(place.map(|container| container.key)) else { continue };
            let conflicts = self.entries(&parent).iter().filter(|item| item.conflict);
            found.extend(conflicts.filter_map(|item| dispute(self.document, place, &item.key)));
        }
        found.sort_by_key(Disputed::path);
        found
    }

    fn entries(&self, object: &ObjId) -> &[MapRangeItem<'a>] {
        let found = self.objects.binary_search_by(|(known, _)| (**known).cmp(object));
        found.map(|place| &self.entries[self.objects[place].1.clone()]).unwrap_or_default()
    }

    fn container(&self, container: Option<&str>) -> Option<ObjId> {
        self.document.containers().object(container)
    }

    fn fields(&self, object: &ObjId, depth: usize) -> Option<Fields> {
        let entries = self.entries(object).iter();
        entries
            .map(|item| Some((item.key.to_string(), field(item, depth, |id| self.fields(id, depth - 1))?)))
            .collect()
    }
}

fn sides_at<V: Value>(
    document: &Document,
    parent: &ObjId,
    key: &str,
    heads: Option<&[ChangeHash]>,
) -> Vec<Side<V>> {
    let automerge = document.automerge();
    let values = match heads {
        None => automerge.get_all(parent, key),
        Some(heads) => automerge.get_all_at(parent, key, heads),
    };
    let mut sides: Vec<Side<V>> = values
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(_, object)| {
            side(document, &object, &fields_of(automerge, &object, register::MAX_DEPTH)?)
        })
        .collect();
    sides.sort_by(|a, b| a.op.cmp(&b.op));
    sides
}

/// The sides as they stand, neutral ones read as what they were chosen from where anybody wrote beside them.
fn standing<V: Value>(
    document: &Document,
    parent: &ObjId,
    key: &str,
    heads: Option<&[ChangeHash]>,
) -> Vec<Side<V>> {
    let sides: Vec<Side<V>> = sides_at(document, parent, key, heads);
    if sides.len() < 2 || sides.iter().all(|side| side.settled_by.is_none()) {
        return sides;
    }
    let mut apart: BTreeMap<(u64, Vec<u8>), Side<V>> = BTreeMap::new();
    let mut left = sides;
    while let Some(side) = left.pop() {
        match side.settled_by {
            Some(_) => left.extend(sides_at(document, parent, key, Some(&deps(document, &side.change)))),
            None => drop(apart.insert(side.op.clone(), side)),
        }
    }
    let unseen = |by: &Side<V>| -> BTreeSet<ChangeHash> {
        let after = document.automerge().get_changes_meta(&deps(document, &by.change));
        after.into_iter().map(|meta| meta.hash).collect()
    };
    let unseen: Vec<_> = apart.values().map(|by| (by.op.clone(), unseen(by))).collect();
    let is_seen =
        |it: &Side<V>| unseen.iter().any(|(by, unseen)| *by != it.op && !unseen.contains(&it.change));
    let seen: Vec<_> = apart.values().filter(|it| is_seen(it)).map(|it| it.op.clone()).collect();
    apart.into_iter().filter(|(op, _)| !seen.contains(op)).map(|(_, side)| side).collect()
}

fn deps(document: &Document, change: &ChangeHash) -> Vec<ChangeHash> {
    document.automerge().get_change_meta_by_hash(change).map(|meta| meta.deps.to_vec()).unwrap_or_default()
}

/// The side that the map `object` of a register is.
fn side<V: Value>(document: &Document, object: &ObjId, fields: &Fields) -> Option<Side<V>> {
    let automerge = document.automerge();
    let change = automerge.hash_for_opid(object)?;
    let meta = automerge.get_change_meta_by_hash(&change)?;
    let ObjId::Id(counter, actor, _) = object else { return None };
    let value = V::from_fields(fields).ok()?;
    let (written, settled_by) = match (Written::from_fields(fields).ok()?, Settled::from_fields(fields).ok()?)
    {
        (written, None) => (written, None),
        (by, Some(settled)) => (settled.of, Some(by)),
    };
    Some(Side {
        value,
        written,
        settled_by,
        change,
        first: meta.deps.iter().all(|dep| *dep == document.genesis()),
        op: (*counter, actor.to_bytes().to_vec()),
    })
}

/// The value that every side had before it wrote, if it was one and the same.
fn last_agreed<V: Value>(
    document: &Document,
    parent: &ObjId,
    key: &str,
    sides: &[Side<V>],
) -> Option<Box<Side<V>>> {
    let mut agreed: Option<Side<V>> = None;
    for side in sides {
        let mut before = standing::<V>(document, parent, key, Some(&deps(document, &side.change)));
        if before.len() != 1 {
            return None;
        }
        let before = before.pop()?;
        match &agreed {
            Some(found) if found.op != before.op => return None,
            Some(_) => {}
            None => agreed = Some(before),
        }
    }
    agreed.map(Box::new)
}

/// Reads the map of a register, which is written once and never changed; so is every map inside it.
pub(crate) fn fields_of(automerge: &Automerge, object: &ObjId, depth: usize) -> Option<Fields> {
    let entries = automerge.map_range(object, ..);
    entries
        .map(|item| {
            let field = field(&item, depth, |id| fields_of(automerge, id, depth - 1))?;
            Some((item.key.into_owned(), field))
        })
        .collect()
}

/// One field of a register; `inner` reads a map in it, of which there may be `depth` more around each other.
fn field(
    item: &MapRangeItem<'_>,
    depth: usize,
    inner: impl FnOnce(&ObjId) -> Option<Fields>,
) -> Option<Field> {
    Some(match &item.value {
        ValueRef::Scalar(scalar) => match scalar {
            ScalarValueRef::Str(text) => Field::Str(text.to_string()),
            ScalarValueRef::Uint(number) => Field::Uint(*number),
            ScalarValueRef::Int(number) => Field::Int(*number),
            ScalarValueRef::Boolean(truth) => Field::Bool(*truth),
            ScalarValueRef::Bytes(bytes) => Field::Bytes(bytes.to_vec()),
            _ => return None,
        },
        ValueRef::Object(ObjType::Map) if depth > 0 => Field::Map(inner(&item.id())?),
        ValueRef::Object(_) => return None,
    })
}
