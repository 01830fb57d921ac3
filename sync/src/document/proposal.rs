//! What a site may not do itself and asks central for.
//!
//! A site writes the whole of it in one change: what it wishes, the arguments, by whom and why. Central alone
//! writes how it ends, once. The arguments of the action `write` are registers of another document, each
//! under its path and with the very fields that it would have there, so that nothing is lost on the way and
//! whoever wished it stands in it.
//!
//! Deliberately absent: other actions. Those that a site's settings queue at its doors will have arguments
//! of their own under other keys.

use super::register::{Fields, RESERVED, Value, value};
use super::{FieldError, Kind, Register};
use crate::id::{DocumentId, ProposalId};

/// The action that writes registers of a document.
pub const WRITE: &str = "write";

value! {
    /// What is wished. Written once, with all of its arguments.
    pub struct Wish {
        /// What is to be done; so far [`WRITE`].
        pub action: String,
        /// Kind of the document that it is about.
        pub about: Option<String>,
        /// That document.
        pub document: Option<DocumentId>,
        /// Number of the entry in the site's journal that tells of it.
        pub journal_seq: u64,
        /// The proposal that must be applied before, if it rests on one.
        pub after: Option<ProposalId>,
    }
}

value! {
    /// How it ended.
    pub struct Outcome {
        /// Whether central did it.
        pub applied: bool,
        /// Why so, for whoever wished it.
        pub reason: String,
    }
}

/// One argument: of [`WRITE`] the fields of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument(pub Fields);

impl Value for Argument {
    fn to_fields(&self) -> Fields {
        self.0.clone()
    }

    fn from_fields(fields: &Fields) -> Result<Self, FieldError> {
        let own = fields.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str()));
        Ok(Argument(own.map(|(name, field)| (name.clone(), field.clone())).collect()))
    }
}

/// The kind of these documents.
pub const KIND: Kind = Kind::Proposal;

/// Container of the arguments.
pub const ARGUMENTS: &str = "arguments";

/// Register of what is wished.
pub fn wish() -> Register<Wish> {
    Register::at_root("wish")
}

/// Register of one argument; of [`WRITE`] the key is the path of the register.
pub fn argument(key: &str) -> Register<Argument> {
    Register::within(ARGUMENTS, key)
}

/// Register of the end.
pub fn outcome() -> Register<Outcome> {
    Register::at_root("outcome")
}
