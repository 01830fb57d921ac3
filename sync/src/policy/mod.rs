//! What may happen, decided from plain values.
//!
//! `lifecycle` has the words for what a machine and a task are doing and which step may follow which;
//! `autonomy` says what a site may do by itself; `order` when an order may still wipe a disk; `link` what
//! counts as cut off; `quota` how much a site may put into the fleet; `migration` where a machine belongs; `conflict` who wins where writers disagree;
//! `twin` whether two documents describe one machine. Every function takes values and returns a [`Verdict`] with a [`Reason`]; none holds
//! a clock or a document. The tables stand once more, written by hand, in `fixtures/policies/`.

pub mod autonomy;
pub mod conflict;
pub mod lifecycle;
pub mod link;
pub mod migration;
pub mod order;
pub mod quota;
pub mod twin;
mod words;

pub(crate) use words::words;

pub use autonomy::{Action, Autonomy};
pub use conflict::{Accepted, Strategy};
pub use lifecycle::{NodeState, Phase, TaskState, Wanted};
pub use link::LinkState;
pub use migration::{ClaimState, MigrationConsent, MigrationPolicy, PendingBoot};
pub use order::{Liveness, Order};

use std::fmt;

/// What a policy says to an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do it now.
    Allow,
    /// Not here: put it before central as a proposal, which the caller is told about.
    Queue(Reason),
    /// Not at all, and the caller is told why.
    Refuse(Reason),
}

/// Why a policy said what it said; for people, complete without context.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reason(String);

impl Reason {
    /// Makes a reason from a sentence without a full stop.
    pub fn new(text: impl Into<String>) -> Self {
        Reason(text.into())
    }

    /// The sentence.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
