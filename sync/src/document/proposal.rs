//! What a site may not do itself and asks central for.
//!
//! A site writes the whole of it in one change: what it wishes, the arguments, by whom and why. Central alone
//! writes how it ends, once. The arguments of the action `write` are registers of another document, each
//! under its path and with the very fields that it would have there, so that nothing is lost on the way and
//! whoever wished it stands in it.
//!
//! The other actions are what somebody asked for at a door of the site. Those of `edit_node` are registers of the
//! node likewise; the others have one argument of a type of their own, or none.

use super::register::value;
use super::{Kind, Register};
use crate::{
    id::{DocumentId, MacAddr, ProposalId, WorkflowId},
    policy::words,
};

words! {
    /// What can be wished.
    pub enum Act {
        /// Registers of a document are written: what a site wrote that was not its to write.
        Write = "write",
        /// A node is edited.
        EditNode = "edit_node",
        /// A task is created for a node, with its order.
        CreateTask = "create_task",
        /// A task that waits for approval is approved.
        ApproveTask = "approve_task",
        /// The same is rejected.
        RejectTask = "reject_task",
        /// A task is withdrawn.
        CancelTask = "cancel_task",
        /// A failed task gets another attempt under a new order.
        RetryTask = "retry_task",
        /// An attempt that has consumed its order is given up.
        AbortTask = "abort_task",
        /// An unknown machine becomes a node of the site.
        AdoptMachine = "adopt_machine",
        /// The site's boot services are switched on or off.
        SwitchPxe = "switch_pxe",
        /// The site gives or withholds its consent to a claim.
        ConsentToClaim = "consent_to_claim",
    }
}

/// The word of the action that writes registers of a document.
pub const WRITE: &str = Act::Write.as_str();

value! {
    /// What is wished. Written once, with all of its arguments.
    pub struct Wish {
        /// What is to be done, a word of [`Act`].
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

value! {
    /// Argument of `create_task`. The node is what the proposal is about.
    pub struct Ordered {
        /// What is installed.
        pub workflow: WorkflowId,
        /// Which version of it; the newest if absent.
        pub version: Option<u64>,
        /// Values for templates.
        pub parameters: std::collections::BTreeMap<String, String>,
        /// Free marks.
        pub tags: std::collections::BTreeMap<String, String>,
    }
}

value! {
    /// Argument of `adopt_machine`.
    pub struct Machine {
        /// The boot interface.
        pub mac: MacAddr,
    }
}

value! {
    /// Argument of `switch_pxe`.
    pub struct Switch {
        /// On or off; absent: as the settings say.
        pub enabled: Option<bool>,
    }
}

/// Argument of `consent_to_claim`, as the claim itself has it.
pub use super::claim::Consent;

/// One argument: of [`WRITE`] the fields of a register.
pub use super::register::Untyped as Argument;

/// The kind of these documents.
pub const KIND: Kind = Kind::Proposal;

/// Container of the arguments.
pub const ARGUMENTS: &str = "arguments";

/// Register of what is wished.
pub fn wish() -> Register<Wish> {
    Register::at_root("wish")
}

/// Register of what a task is to be.
pub fn ordered() -> Register<Ordered> {
    Register::within(ARGUMENTS, "task")
}

/// Register of the machine that is to be adopted.
pub fn machine() -> Register<Machine> {
    Register::within(ARGUMENTS, "machine")
}

/// Register of how boot services are to be.
pub fn switch() -> Register<Switch> {
    Register::within(ARGUMENTS, "pxe")
}

/// Register of what a side says to a claim.
pub fn consent() -> Register<Consent> {
    Register::within(ARGUMENTS, "consent")
}

/// Register of one argument; of [`WRITE`] and `edit_node` the key is the path of the register.
pub fn argument(key: &str) -> Register<Argument> {
    Register::within(ARGUMENTS, key)
}

/// Register of the end.
pub fn outcome() -> Register<Outcome> {
    Register::at_root("outcome")
}
