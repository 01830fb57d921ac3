//! Registers: a decision is one key whose value is a fresh map, replaced as a whole.
//!
//! Because the map is always new, two concurrent decisions conflict as a whole and visibly. Every map
//! carries who wrote it ([`Written`]); the nonce makes an equal decision a decision all the same, where
//! Automerge would drop an equal put. [`Value`] turns the rest of the map into a type and back; keys that
//! this program does not know are left where they are.

use std::{collections::BTreeMap, marker::PhantomData};

use automerge::{
    ActorId, Automerge, ChangeHash, ObjId, ObjType, ROOT, ScalarValue,
    legacy::OpId,
    transaction::{CommitOptions, Transactable, Transaction},
};

use super::{Kind, genesis, schema::RegisterSchema};
use crate::{
    blob::Digest,
    id::{
        ClaimId, DocumentId, GroupId, Incarnation, MacAddr, NodeId, Nonce, Origin, ProposalId, ReportId,
        SiteId, TaskId, WorkflowId,
    },
    time::{Hlc, Timestamp},
};

/// Longest text or byte string in a register, in bytes.
pub const MAX_SCALAR: usize = 4_096;

/// How deep maps inside a register may be nested, the register itself not counted.
pub const MAX_DEPTH: usize = 3;

/// One value inside a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// Text, at most [`MAX_SCALAR`] bytes.
    Str(String),
    /// A number that is never negative.
    Uint(u64),
    /// A number or stamp.
    Int(i64),
    /// Yes or no.
    Bool(bool),
    /// Bytes, at most [`MAX_SCALAR`].
    Bytes(Vec<u8>),
    /// More fields.
    Map(Fields),
}

/// The map of a register, or one inside it.
pub type Fields = BTreeMap<String, Field>;

/// A register whose map cannot be read as its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// A field that must be there is not.
    #[error("field `{0}` is missing")]
    Missing(String),
    /// A field holds something else than its type.
    #[error("field `{field}` is not {expected}")]
    Type {
        /// Name of the field.
        field: String,
        /// What it should hold.
        expected: &'static str,
    },
}

/// What a register can hold.
pub trait Value: Sized {
    /// Writes the fields, without those of [`Written`].
    fn to_fields(&self) -> Fields;

    /// Reads the fields; unknown ones are ignored.
    ///
    /// # Errors
    /// The first field that is missing or of another type.
    fn from_fields(fields: &Fields) -> Result<Self, FieldError>;
}

/// Who wrote a register, when and why. Its field names are not available to values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Person, rule or program, as text for people.
    pub by: String,
    /// Replica that wrote it.
    pub site: Origin,
    /// The writer's stamp.
    pub at: Hlc,
    /// Reason given, possibly empty.
    pub why: String,
    /// Settings epoch that the writer had.
    pub policy_epoch: u64,
    /// Tells this writing from an equal one.
    pub nonce: Nonce,
}

/// What a neutral value says of the disagreement that it ends: whose value it repeats, and which values it was chosen
/// from. Central alone writes one, and whoever reads it takes it for what it repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Who wrote the value that it repeats, when and why.
    pub of: Written,
    /// Nonces of all sides, that one among them.
    pub sides: Vec<Nonce>,
}

/// Who is about to write. One author is one transaction of one replica.
#[derive(Clone, Debug)]
pub struct Author {
    /// Actor of the change.
    pub incarnation: Incarnation,
    /// Replica.
    pub site: Origin,
    /// Person, rule or program.
    pub by: String,
    /// Stamp of the change and of every register in it.
    pub at: Hlc,
    /// Settings epoch in force here.
    pub policy_epoch: u64,
    /// Source of nonces.
    pub entropy: Entropy,
}

/// Given randomness, stretched: as many ids as are needed from 32 bytes that the edge drew.
#[derive(Clone)]
pub struct Entropy {
    seed: [u8; 32],
    taken: u64,
}

impl Entropy {
    /// Starts from 32 bytes that were never used before.
    pub fn new(seed: [u8; 32]) -> Self {
        Entropy { seed, taken: 0 }
    }

    /// Draws the next `N` bytes, at most 32.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        self.taken += 1;
        let drawn = blake3::keyed_hash(&self.seed, &self.taken.to_be_bytes());
        drawn.as_bytes()[..N].try_into().expect("at most 32 bytes are drawn at once")
    }

    /// Draws a nonce.
    pub fn nonce(&mut self) -> Nonce {
        Nonce(self.bytes())
    }

    /// Draws the id of a new document.
    pub fn document_id(&mut self) -> DocumentId {
        DocumentId(self.bytes())
    }
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy")
    }
}

/// Names a register and the type of what it holds.
#[derive(Debug)]
pub struct Register<V> {
    pub(crate) container: Option<&'static str>,
    pub(crate) key: String,
    value: PhantomData<V>,
}

impl<V> Register<V> {
    /// A register at the root of its document.
    pub fn at_root(key: &'static str) -> Self {
        Register { container: None, key: key.to_string(), value: PhantomData }
    }

    /// An entry of a genesis container.
    pub fn within(container: &'static str, key: impl Into<String>) -> Self {
        Register { container: Some(container), key: key.into(), value: PhantomData }
    }

    /// A register by where it stands, when only running code knows which.
    pub(crate) fn named(container: Option<&'static str>, key: String) -> Self {
        Register { container, key, value: PhantomData }
    }

    /// Its key, at the root or in its container.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Path for people: `hostname`, `tags/rack`.
    pub fn path(&self) -> String {
        match self.container {
            Some(container) => format!("{container}/{}", self.key),
            None => self.key.clone(),
        }
    }
}

/// The objects that hold the registers of one document: its root, and the containers that its genesis made.
///
/// Their ids follow from the genesis: its first operation names the kind, and the next ones make the containers in
/// the order of the schema. So Automerge is not asked for them, which takes as long as reading a register.
#[derive(Clone)]
pub(crate) struct Containers {
    kind: Kind,
    actor: ActorId,
}

/// Number of the operation of a genesis that makes the first container.
const FIRST_CONTAINER: u64 = 2;

impl Containers {
    pub(crate) fn of(kind: Kind, id: DocumentId) -> Self {
        Containers { kind, actor: genesis::actor(kind, id) }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Who wrote the genesis.
    pub(crate) fn actor(&self) -> &ActorId {
        &self.actor
    }

    /// The root, or a container of the kind.
    pub(crate) fn object(&self, container: Option<&str>) -> Option<ObjId> {
        let Some(key) = container else { return Some(ROOT) };
        let place = self.kind.schema().containers.iter().position(|known| known.key == key)?;
        Some(ObjId::Id(FIRST_CONTAINER + place as u64, self.actor.clone(), 0))
    }

    /// The container that an operation of the genesis made.
    pub(crate) fn made_by(&self, OpId(counter, actor): &OpId) -> Option<&'static RegisterSchema> {
        let place = usize::try_from(counter.checked_sub(FIRST_CONTAINER)?).ok()?;
        self.kind.schema().containers.get(place).filter(|_| *actor == self.actor)
    }
}

/// A change being written.
pub struct Edit<'a> {
    transaction: Transaction<'a>,
    containers: &'a Containers,
    author: &'a mut Author,
    /// Of the register that was written last.
    nonce: Option<Nonce>,
}

impl Edit<'_> {
    /// Replaces the register by a fresh map of `value` and who wrote it; returns the nonce.
    ///
    /// # Panics
    /// When the document lacks the container: every document begins with its genesis.
    pub fn set<V: Value>(&mut self, register: &Register<V>, value: &V, why: &str) -> Nonce {
        self.put(register.container, &register.key, value.to_fields(), why)
    }

    /// Replaces a register by what somebody else wrote there, read as its type and written anew: this
    /// author stands in it from now on, and what the schema does not know is left behind.
    ///
    /// # Errors
    /// The first field that is missing or of another type; nothing is written then.
    ///
    /// # Panics
    /// When the document lacks the container.
    pub fn restate(
        &mut self,
        container: Option<&'static str>,
        key: &str,
        schema: &RegisterSchema,
        fields: &Fields,
        why: &str,
    ) -> Result<Nonce, FieldError> {
        let fields = (schema.typed)(fields)?;
        Ok(self.put(container, key, fields, why))
    }

    /// Ends a disagreement by repeating one of its sides, `fields`, neutrally: `settled` says whose it is.
    ///
    /// # Panics
    /// When the document lacks the container.
    pub fn settle(
        &mut self,
        container: Option<&'static str>,
        key: &str,
        fields: Fields,
        settled: &Settled,
        why: &str,
    ) -> Nonce {
        let Settled { of, sides } = settled;
        let mut said = of.to_fields();
        said.insert("sides".to_string(), Field::Bytes(sides.iter().flat_map(|nonce| nonce.0).collect()));
        let mut fields = fields;
        fields.insert(SETTLES.to_string(), Field::Map(said));
        self.put(container, key, fields, why)
    }

    fn put(&mut self, within: Option<&'static str>, key: &str, mut fields: Fields, why: &str) -> Nonce {
        let parent = self.containers.object(within).expect("genesis made the container");
        // Each tells its register's writing from an equal one, which takes no randomness of its own: numbers
        // that follow each other are half as long on the wire.
        let nonce = match self.nonce {
            None => self.author.entropy.nonce(),
            Some(Nonce(last)) => Nonce(u64::from_be_bytes(last).wrapping_add(1).to_be_bytes()),
        };
        self.nonce = Some(nonce);
        let Author { by, site, at, policy_epoch, .. } = &*self.author;
        let written = Written {
            by: by.clone(),
            site: *site,
            at: *at,
            why: why.to_string(),
            policy_epoch: *policy_epoch,
            nonce,
        };
        fields.extend(written.to_fields());
        put_map(&mut self.transaction, &parent, key, &fields);
        nonce
    }
}

/// Runs `write` as one change with the author's stamp as its time; `None` when nothing was written.
pub(super) fn transact(
    automerge: &mut Automerge,
    containers: &Containers,
    author: &mut Author,
    write: impl FnOnce(&mut Edit<'_>),
) -> Option<ChangeHash> {
    let at = author.at;
    let mut edit = Edit { transaction: automerge.transaction(), containers, author, nonce: None };
    write(&mut edit);
    edit.transaction.commit_with(CommitOptions::default().with_time(at.0)).0
}

fn put_map(transaction: &mut Transaction<'_>, parent: &ObjId, key: &str, fields: &Fields) {
    let write = "writing a map key in a map of this document cannot fail";
    let map = transaction.put_object(parent, key, ObjType::Map).expect(write);
    for (key, field) in fields {
        match field {
            Field::Str(text) => transaction.put(&map, key, text.as_str()).expect(write),
            Field::Uint(number) => transaction.put(&map, key, *number).expect(write),
            Field::Int(number) => transaction.put(&map, key, *number).expect(write),
            Field::Bool(truth) => transaction.put(&map, key, *truth).expect(write),
            Field::Bytes(bytes) => {
                transaction.put(&map, key, ScalarValue::Bytes(bytes.clone())).expect(write)
            }
            Field::Map(inner) => put_map(transaction, &map, key, inner),
        }
    }
}

/// Name of the field that a neutral value has beside those of its value.
pub const SETTLES: &str = "settles";

/// The names of the fields of [`Written`] and [`Settled`], which no value has.
pub const RESERVED: [&str; 7] = ["by", "site", "at", "why", "policy_epoch", "nonce", SETTLES];

/// The fields that are a value's own.
pub fn own(fields: &Fields) -> Fields {
    let own = fields.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str()));
    own.map(|(name, field)| (name.clone(), field.clone())).collect()
}

/// A value of whatever type, as it stands in its register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untyped(pub Fields);

impl Value for Untyped {
    fn to_fields(&self) -> Fields {
        self.0.clone()
    }

    fn from_fields(fields: &Fields) -> Result<Self, FieldError> {
        Ok(Untyped(own(fields)))
    }
}

impl Settled {
    /// Reads what a neutral value settles; nothing of any other value.
    ///
    /// # Errors
    /// The first field that is missing or of another type.
    pub fn from_fields(fields: &Fields) -> Result<Option<Self>, FieldError> {
        let said = match fields.get(SETTLES) {
            None => return Ok(None),
            Some(Field::Map(said)) => said,
            Some(_) => return wrong(SETTLES, "a map"),
        };
        let Field::Bytes(bytes) = field(said, "sides")? else { return wrong("sides", "bytes") };
        let (nonces, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() {
            return wrong("sides", "nonces");
        }
        Ok(Some(Settled {
            of: Written::from_fields(said)?,
            sides: nonces.iter().map(|nonce| Nonce(*nonce)).collect(),
        }))
    }
}

impl Written {
    fn to_fields(&self) -> Fields {
        Fields::from([
            ("by".to_string(), Field::Str(self.by.clone())),
            ("site".to_string(), Field::Str(self.site.to_string())),
            ("at".to_string(), Field::Int(self.at.0)),
            ("why".to_string(), Field::Str(self.why.clone())),
            ("policy_epoch".to_string(), Field::Uint(self.policy_epoch)),
            ("nonce".to_string(), Field::Bytes(self.nonce.0.to_vec())),
        ])
    }

    /// Reads who wrote a register from its map.
    ///
    /// # Errors
    /// The first field that is missing or of another type.
    pub fn from_fields(fields: &Fields) -> Result<Self, FieldError> {
        Ok(Written {
            by: FieldType::take(fields, "by")?,
            site: FieldType::take(fields, "site")?,
            at: Hlc(i64::take(fields, "at")?),
            why: FieldType::take(fields, "why")?,
            policy_epoch: FieldType::take(fields, "policy_epoch")?,
            nonce: FieldType::take(fields, "nonce")?,
        })
    }
}

/// A type that one field can hold.
pub(crate) trait FieldType: Sized {
    /// Writes the field; an absent value writes nothing.
    fn put(&self, name: &str, fields: &mut Fields);

    /// Reads the field.
    fn take(fields: &Fields, name: &str) -> Result<Self, FieldError>;
}

fn wrong<T>(name: &str, expected: &'static str) -> Result<T, FieldError> {
    Err(FieldError::Type { field: name.to_string(), expected })
}

fn field<'a>(fields: &'a Fields, name: &str) -> Result<&'a Field, FieldError> {
    fields.get(name).ok_or_else(|| FieldError::Missing(name.to_string()))
}

macro_rules! scalar_field {
    ($type:ty, $variant:ident, $expected:literal) => {
        impl FieldType for $type {
            fn put(&self, name: &str, fields: &mut Fields) {
                fields.insert(name.to_string(), Field::$variant(self.clone()));
            }

            fn take(fields: &Fields, name: &str) -> Result<Self, FieldError> {
                match field(fields, name)? {
                    Field::$variant(value) => Ok(value.clone()),
                    _ => wrong(name, $expected),
                }
            }
        }
    };
}
scalar_field!(String, Str, "text");
scalar_field!(u64, Uint, "an unsigned number");
scalar_field!(i64, Int, "a number");
scalar_field!(bool, Bool, "true or false");

macro_rules! id_field {
    ($($type:ty => $expected:literal),+ $(,)?) => {$(
        impl FieldType for $type {
            fn put(&self, name: &str, fields: &mut Fields) {
                fields.insert(name.to_string(), Field::Bytes(self.0.to_vec()));
            }

            fn take(fields: &Fields, name: &str) -> Result<Self, FieldError> {
                match field(fields, name)? {
                    Field::Bytes(bytes) => match bytes.as_slice().try_into() {
                        Ok(bytes) => Ok(Self(bytes)),
                        Err(_) => wrong(name, $expected),
                    },
                    _ => wrong(name, $expected),
                }
            }
        }
    )+};
}
id_field! {
    NodeId => "a node id", SiteId => "a site id", TaskId => "a task id", WorkflowId => "a workflow id",
    GroupId => "a group id", Nonce => "a nonce", ReportId => "a report id", Digest => "a digest",
    MacAddr => "a MAC address", Incarnation => "an incarnation", DocumentId => "a document id",
    ProposalId => "a proposal id", ClaimId => "a claim id",
}

impl FieldType for Timestamp {
    fn put(&self, name: &str, fields: &mut Fields) {
        self.0.put(name, fields);
    }

    fn take(fields: &Fields, name: &str) -> Result<Self, FieldError> {
        u64::take(fields, name).map(Timestamp)
    }
}

impl<T: FieldType> FieldType for Option<T> {
    fn put(&self, name: &str, fields: &mut Fields) {
        if let Some(value) = self {
            value.put(name, fields);
        }
    }

    fn take(fields: &Fields, name: &str) -> Result<Self, FieldError> {
        if fields.contains_key(name) { T::take(fields, name).map(Some) } else { Ok(None) }
    }
}

impl<T: FieldType> FieldType for BTreeMap<String, T> {
    fn put(&self, name: &str, fields: &mut Fields) {
        let mut map = Fields::new();
        for (key, value) in self {
            value.put(key, &mut map);
        }
        fields.insert(name.to_string(), Field::Map(map));
    }

    fn take(fields: &Fields, name: &str) -> Result<Self, FieldError> {
        match field(fields, name)? {
            Field::Map(map) => map.keys().map(|key| Ok((key.clone(), T::take(map, key)?))).collect(),
            _ => wrong(name, "a map"),
        }
    }
}

macro_rules! word_field {
    ($($type:ty),+) => {$(
        impl FieldType for $type {
            fn put(&self, name: &str, fields: &mut Fields) {
                fields.insert(name.to_string(), Field::Str(self.to_string()));
            }

            fn take(fields: &Fields, name: &str) -> Result<Self, FieldError> {
                match field(fields, name)? {
                    Field::Str(text) => text.parse().or_else(|_| wrong(name, concat!("a ", stringify!($type)))),
                    _ => wrong(name, "text"),
                }
            }
        }
    )+};
}
word_field!(
    Origin,
    crate::policy::NodeState,
    crate::policy::Wanted,
    crate::policy::TaskState,
    crate::policy::Autonomy,
    crate::policy::Strategy,
    crate::policy::MigrationPolicy,
    crate::policy::MigrationConsent,
    crate::policy::PendingBoot,
    crate::policy::ClaimState,
    super::site::UnknownMachines
);

/// Declares a struct that a register can hold: each field under its own name, `Option` for what may be
/// absent. The names of [`Written`]'s fields are refused at compile time by a duplicate key in the test
/// `values_do_not_use_reserved_names`.
macro_rules! value {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),* }

        impl $crate::document::register::Value for $name {
            fn to_fields(&self) -> $crate::document::register::Fields {
                let mut fields = $crate::document::register::Fields::new();
                $($crate::document::register::FieldType::put(&self.$field, stringify!($field), &mut fields);)*
                fields
            }

            fn from_fields(
                fields: &$crate::document::register::Fields,
            ) -> Result<Self, $crate::document::register::FieldError> {
                Ok($name {
                    $($field: $crate::document::register::FieldType::take(fields, stringify!($field))?),*
                })
            }
        }
    };
}
pub(crate) use value;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        document::{Document, contested, node, site::Effective, task},
        policy::{NodeState, Wanted},
    };

    fn author(incarnation: u8, site: Origin, at: i64) -> Author {
        Author {
            incarnation: Incarnation([incarnation; 16]),
            site,
            by: "ann".into(),
            at: Hlc(at),
            policy_epoch: 1,
            entropy: Entropy::new([incarnation; 32]),
        }
    }

    fn machine() -> Document {
        Document::new(node::KIND, NodeId([7; 16]).into())
    }

    const LYON: Origin = Origin::Site(SiteId([2; 16]));

    #[test]
    fn an_equal_decision_is_a_decision_all_the_same() {
        let mut document = machine();
        let wish = node::Wish { wanted: Wanted::Reprovision };
        let write = |edit: &mut Edit<'_>| {
            edit.set(&node::wanted(), &wish, "again");
        };
        let first = document.write(&mut author(1, Origin::Central, 1), write).expect("a change");
        let second = document.write(&mut author(2, LYON, 2), write).expect("a change");
        assert_ne!(first.hash(), second.hash());
        let read = contested::read(&document, &node::wanted());
        let side = read.settled().expect("the second had seen the first");
        assert_eq!((side.written.site, side.written.at), (LYON, Hlc(2)));
    }

    #[test]
    fn h2_two_writers_who_had_not_seen_each_other_are_both_kept() {
        let base = {
            let mut document = machine();
            document.write(&mut author(1, Origin::Central, 1), |edit| {
                edit.set(&node::hostname(), &node::Text { value: "pos-1".into() }, "");
            });
            document
        };
        let rename = |mut document: Document, mut author: Author, name: &str| {
            let value = node::Text { value: name.into() };
            let change = document.write(&mut author, |edit| {
                edit.set(&node::hostname(), &value, "");
            });
            (document, change.expect("a change"))
        };
        let (mut here, _) = rename(base.clone(), author(1, Origin::Central, 10), "till-1");
        let (_, theirs) = rename(base, author(2, LYON, 20), "kasse-1");
        here.apply(theirs).unwrap();

        let read = contested::read(&here, &node::hostname());
        let mut names: Vec<_> = read.sides().iter().map(|side| side.value.value.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["kasse-1", "till-1"]);
        assert!(read.settled().is_none());
        assert_eq!(read.agreed(None).expect("both had seen pos-1").value.value, "pos-1");
        assert_eq!(node::InForce::of(&here).contested, ["hostname"]);
        assert_eq!(node::InForce::of(&here).hostname, "pos-1");
    }

    #[test]
    fn h3_while_wishes_are_contested_the_least_destructive_holds() {
        let base = machine();
        let mut here = base.clone();
        here.write(&mut author(1, Origin::Central, 5), |edit| {
            edit.set(&node::wanted(), &node::Wish { wanted: Wanted::Retired }, "");
        });
        let mut there = base;
        let keep = there
            .write(&mut author(2, LYON, 3), |edit| {
                edit.set(&node::wanted(), &node::Wish { wanted: Wanted::Keep }, "");
            })
            .expect("a change");
        here.apply(keep).unwrap();
        let found = node::InForce::of(&here);
        assert_eq!((found.wanted, found.contested), (Wanted::Keep, vec!["wanted".to_string()]));
    }

    #[test]
    fn a_first_look_loses_to_any_other_fact() {
        let mut here = machine();
        let fact = |state| node::State {
            state,
            cause: String::new(),
            task: None,
            attempt: None,
            error: None,
            install_nonce: None,
        };
        let mut there = here.clone();
        here.write(&mut author(1, LYON, 5), |edit| {
            edit.set(&node::state(), &fact(NodeState::Discovered), "");
        });
        here.write(&mut author(1, LYON, 6), |edit| {
            edit.set(&node::state(), &fact(NodeState::Active), "");
        });
        let first_look = there
            .write(&mut author(3, Origin::Site(SiteId([3; 16])), 9), |edit| {
                edit.set(&node::state(), &fact(NodeState::Discovered), "");
            })
            .expect("a change");
        here.apply(first_look).unwrap();
        assert_eq!(node::InForce::of(&here).state.expect("a fact").state, NodeState::Active);
    }

    #[test]
    fn a_document_survives_saving_and_refuses_the_name_of_another() {
        let mut document = machine();
        document.write(&mut author(1, Origin::Central, 1), |edit| {
            edit.set(&node::tag("rack"), &node::Tag { value: Some("r7".into()), removed: None }, "");
        });
        let bytes = document.save();
        let loaded = Document::load(node::KIND, document.id(), &bytes).unwrap();
        assert_eq!(loaded.heads(), document.heads());
        assert_eq!(node::InForce::of(&loaded), node::InForce::of(&document));
        let error = Document::load(task::KIND, document.id(), &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "snapshot of task 07070707070707070707070707070707 has another genesis"
        );
    }

    #[test]
    fn values_do_not_use_reserved_names() {
        let reserved = RESERVED;
        let mut fields = Effective::default().to_fields();
        fields.extend(
            task::Spec {
                node: NodeId([1; 16]),
                for_site: SiteId([1; 16]),
                workflow: WorkflowId([1; 16]),
                version: 1,
                parameters: BTreeMap::new(),
                disk_layout: Some(String::new()),
                network_config: Some(String::new()),
                tags: BTreeMap::new(),
                created_by: String::new(),
                created_at: Timestamp(0),
                not_before: Some(Timestamp(0)),
            }
            .to_fields(),
        );
        let consumed = task::Consumed { attempt: 1, report: ReportId([1; 16]), install_nonce: Nonce([1; 8]) };
        fields.extend(consumed.to_fields());
        let home = node::Home { home_site: Some(SiteId([1; 16])), home_epoch: 1, claim: Some(String::new()) };
        fields.extend(home.to_fields());
        assert!(fields.keys().all(|key| !reserved.contains(&key.as_str())), "{:?}", fields.keys());
    }

    #[test]
    fn a_value_says_which_field_it_misses() {
        let mut fields = node::Wish { wanted: Wanted::Keep }.to_fields();
        fields.insert("colour".into(), Field::Str("a newer program's".into()));
        assert!(node::Wish::from_fields(&fields).is_ok());
        fields.insert("wanted".into(), Field::Uint(1));
        assert_eq!(node::Wish::from_fields(&fields).unwrap_err().to_string(), "field `wanted` is not text");
        fields.remove("wanted");
        assert_eq!(node::Wish::from_fields(&fields).unwrap_err().to_string(), "field `wanted` is missing");
    }
}
