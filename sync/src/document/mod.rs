//! What is replicated: one small Automerge document per entity.
//!
//! `schema` says which kinds there are and which registers each has; `genesis` computes the first change
//! of a document; `register` is how a decision is written, `contested` how it is read, with every side
//! that concurrent writers left; `settlement` how they end; `settings` what descends from groups to sites; `node`, `site`,
//! `group`, `workflow`, `task`, `proposal` and `claim` are the kinds.
//!
//! Only maps and scalars are used: no lists, no text, no marks, no counters yet. Nothing is deleted.
//! Deliberately absent: autosurgeon, whose reconcile clobbers concurrent edits, and any `get` besides
//! [`contested::read`], because it hides conflicts.

pub mod claim;
pub mod contested;
pub mod genesis;
pub mod group;
pub mod node;
pub mod proposal;
pub mod register;
pub mod schema;
pub mod settings;
pub mod settlement;
pub mod site;
pub mod task;
pub mod workflow;

use automerge::{ActorId, Automerge, Change, ChangeHash, ReadDoc};

pub use contested::{Contested, Disputed, Side};
pub use register::{Author, Field, FieldError, Fields, Register, Settled, Value, Written};
pub use schema::{Class, Kind, Writers};

use crate::id::DocumentId;
use register::Containers;

/// One replicated document in memory, about 17 KB each: hold few.
#[derive(Clone)]
pub struct Document {
    id: DocumentId,
    containers: Containers,
    /// Every register that is read asks for it.
    genesis: ChangeHash,
    automerge: Automerge,
}

/// A stored document that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The snapshot is not readable by Automerge.
    #[error("load snapshot of {kind} {id}")]
    Load {
        /// Kind of the document.
        kind: Kind,
        /// Its id.
        id: DocumentId,
        /// What Automerge said.
        #[source]
        source: Box<automerge::AutomergeError>,
    },
    /// The snapshot does not begin with the genesis of its kind and id.
    #[error("snapshot of {kind} {id} has another genesis")]
    ForeignGenesis {
        /// Kind that was expected.
        kind: Kind,
        /// Id that was expected.
        id: DocumentId,
    },
    /// A stored change cannot be read or applied.
    #[error("apply stored change to {kind} {id}")]
    Apply {
        /// Kind of the document.
        kind: Kind,
        /// Its id.
        id: DocumentId,
        /// What Automerge said.
        #[source]
        source: Box<automerge::AutomergeError>,
    },
}

impl Document {
    /// Creates the document with its computed genesis and nothing else.
    pub fn new(kind: Kind, id: DocumentId) -> Self {
        let automerge = genesis::document(kind, id);
        Document { id, containers: Containers::of(kind, id), genesis: automerge.get_heads()[0], automerge }
    }

    /// Makes the document of its genesis and these changes, in any order, and of all at once: one by one each takes
    /// as long as ten. One that depends on what is not there waits unseen: ask [`Document::has`].
    ///
    /// # Errors
    /// `Apply` when Automerge does not take them.
    pub fn of(kind: Kind, id: DocumentId, mut changes: Vec<Change>) -> Result<Self, DocumentError> {
        changes.insert(0, genesis::change(kind, id));
        let (genesis, automerge) = (changes[0].hash(), Automerge::new());
        let mut document = Document { id, containers: Containers::of(kind, id), genesis, automerge };
        document.apply_all(changes)?;
        Ok(document)
    }

    /// Opens a snapshot that [`Document::save`] made here.
    ///
    /// # Errors
    /// `Load` when the bytes are damaged, `ForeignGenesis` when they are another document's.
    pub fn load(kind: Kind, id: DocumentId, snapshot: &[u8]) -> Result<Self, DocumentError> {
        Self::load_from(Containers::of(kind, id), id, genesis::hash(kind, id), snapshot)
    }

    /// The document as it comes back from its own snapshot.
    ///
    /// # Errors
    /// As [`Document::load`].
    pub(crate) fn again(&self) -> Result<Self, DocumentError> {
        Self::load_from(self.containers.clone(), self.id, self.genesis, &self.snapshot())
    }

    fn load_from(
        containers: Containers,
        id: DocumentId,
        genesis: ChangeHash,
        snapshot: &[u8],
    ) -> Result<Self, DocumentError> {
        let kind = containers.kind();
        let automerge = Automerge::load(snapshot).map_err(|source| DocumentError::Load {
            kind,
            id,
            source: Box::new(source),
        })?;
        if automerge.get_change_meta_by_hash(&genesis).is_none() {
            return Err(DocumentError::ForeignGenesis { kind, id });
        }
        Ok(Document { id, containers, genesis, automerge })
    }

    /// Kind of the document.
    pub fn kind(&self) -> Kind {
        self.containers.kind()
    }

    /// Id of the document.
    pub fn id(&self) -> DocumentId {
        self.id
    }

    /// Hash of its first change.
    pub fn genesis(&self) -> ChangeHash {
        self.genesis
    }

    /// The objects that hold its registers.
    pub(crate) fn containers(&self) -> &Containers {
        &self.containers
    }

    /// The CRDT itself, for reading.
    pub fn automerge(&self) -> &Automerge {
        &self.automerge
    }

    /// Sorted hashes of the changes that nothing follows. Equal heads are equal documents; equal saved
    /// bytes are not required for it and not given by it.
    pub fn heads(&self) -> Vec<ChangeHash> {
        let mut heads = self.automerge.get_heads();
        heads.sort();
        heads
    }

    /// Whether `change` is part of the document.
    pub fn has(&self, change: &ChangeHash) -> bool {
        self.automerge.get_change_meta_by_hash(change).is_some()
    }

    /// Number of operations in its history.
    pub fn operations(&self) -> usize {
        usize::try_from(self.automerge.stats().num_ops).unwrap_or(usize::MAX)
    }

    /// Snapshot of the whole history.
    pub fn save(&self) -> Vec<u8> {
        self.automerge.save()
    }

    /// The same without compression: larger, and much sooner written and read. So peers take it, who inflate nothing.
    pub fn snapshot(&self) -> Vec<u8> {
        self.automerge.save_nocompress()
    }

    /// Applies a change that passed [`crate::ingress`] or was stored by this replica.
    ///
    /// # Errors
    /// What Automerge says; the document is unchanged then.
    pub fn apply(&mut self, change: Change) -> Result<(), DocumentError> {
        let (kind, id) = (self.kind(), self.id);
        self.automerge.apply_changes([change]).map_err(|source| DocumentError::Apply {
            kind,
            id,
            source: Box::new(source),
        })
    }

    /// The same for many, in any order. One that depends on what is not there waits unseen: ask
    /// [`Document::has`].
    ///
    /// # Errors
    /// What Automerge says; the document may hold a part of them then.
    pub fn apply_all(&mut self, changes: Vec<Change>) -> Result<(), DocumentError> {
        let (kind, id) = (self.kind(), self.id);
        self.automerge.apply_changes(changes).map_err(|source| DocumentError::Apply {
            kind,
            id,
            source: Box::new(source),
        })
    }

    /// Writes registers in one change and returns it, or nothing when `write` wrote nothing.
    ///
    /// The change's actor is the author's incarnation, its time the author's stamp.
    pub fn write(
        &mut self,
        author: &mut Author,
        write: impl FnOnce(&mut register::Edit<'_>),
    ) -> Option<Change> {
        self.automerge.set_actor(ActorId::from(author.incarnation.as_bytes().as_slice()));
        let hash = register::transact(&mut self.automerge, &self.containers, author, write)?;
        self.automerge.get_change_by_hash(&hash)
    }
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Document({} {})", self.kind(), self.id)
    }
}
