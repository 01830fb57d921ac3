//! A provisioning order for one node at one site: what is to be done, whether it may still be done, and
//! what became of it.

use std::collections::BTreeMap;

use super::register::value;
use super::{
    Document, Kind, Register,
    contested::{self, Disputed},
};
use crate::{
    id::{NodeId, Nonce, ReportId, SiteId, WorkflowId},
    policy::TaskState,
    time::Timestamp,
};

value! {
    /// What is to be done. Written once.
    pub struct Spec {
        /// The machine.
        pub node: NodeId,
        /// The site that does it.
        pub for_site: SiteId,
        /// What is installed.
        pub workflow: WorkflowId,
        /// Which version of it.
        pub version: u64,
        /// Values for templates.
        pub parameters: BTreeMap<String, String>,
        /// How the disks are to be laid out; the workflow's own way if absent.
        pub disk_layout: Option<String>,
        /// How the network is to be configured; the workflow's own way if absent.
        pub network_config: Option<String>,
        /// Free marks for people and filters.
        pub tags: BTreeMap<String, String>,
        /// Who asked for it.
        pub created_by: String,
        /// When.
        pub created_at: Timestamp,
        /// Not before this instant, if given.
        pub not_before: Option<Timestamp>,
    }
}

value! {
    /// Where the task stands, written by the site.
    pub struct State {
        /// The state.
        pub state: TaskState,
        /// What made it so, for people.
        pub cause: String,
        /// Number of the attempt, from 1.
        pub attempt: u64,
    }
}

value! {
    /// Whether the first write was approved.
    pub struct Approval {
        /// Yes or no.
        pub approved: bool,
    }
}

value! {
    /// The permission to write the disk once.
    pub struct OrderRegister {
        /// Who gave it.
        pub issued_by: String,
        /// Number of the attempt that it is for, from 1.
        pub attempt: u64,
        /// End of its life.
        pub not_after: Timestamp,
        /// The node's install nonce that the giver saw.
        pub based_on: Option<Nonce>,
    }
}

value! {
    /// That the order was used, written before the first write to the disk.
    pub struct Consumed {
        /// The attempt.
        pub attempt: u64,
        /// The report that asked.
        pub report: ReportId,
        /// Install nonce that the node has from now on.
        pub install_nonce: Nonce,
    }
}

value! {
    /// Whether the task was withdrawn.
    pub struct Cancel {
        /// Yes or no.
        pub cancelled: bool,
    }
}

value! {
    /// That an attempt was given up after its order was consumed.
    pub struct Abort {
        /// The attempt.
        pub attempt: u64,
    }
}

value! {
    /// How the task ended.
    pub struct Outcome {
        /// Whether the machine reported completion.
        pub succeeded: bool,
        /// What it or the site said.
        pub detail: String,
    }
}

/// The kind of these documents.
pub const KIND: Kind = Kind::Task;

/// Register of what is to be done.
pub fn spec() -> Register<Spec> {
    Register::at_root("spec")
}

/// Register of where it stands.
pub fn state() -> Register<State> {
    Register::at_root("state")
}

/// Register of the approval.
pub fn approval() -> Register<Approval> {
    Register::at_root("approval")
}

/// Register of the order.
pub fn order() -> Register<OrderRegister> {
    Register::at_root("order")
}

/// Register of the consumption.
pub fn consumed() -> Register<Consumed> {
    Register::at_root("consumed")
}

/// Register of the withdrawal.
pub fn cancel() -> Register<Cancel> {
    Register::at_root("cancel")
}

/// Register of the attempt that was given up.
pub fn abort() -> Register<Abort> {
    Register::at_root("abort")
}

/// Register of the end.
pub fn outcome() -> Register<Outcome> {
    Register::at_root("result")
}

/// What is in force in a task document, the same on every replica with equal heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// What is to be done; nothing while only the genesis is here.
    pub spec: Option<Spec>,
    /// Where it stands: what the site wrote, unless people withdrew, rejected or approved it before the
    /// first write, or gave up the attempt after it, which the site may not know yet.
    pub state: TaskState,
    /// Attempt that the state speaks of, from 1.
    pub attempt: u64,
    /// The order, if issued; of contested ones the earliest end.
    pub order: Option<OrderRegister>,
    /// Whether approved; while contested, not.
    pub approved: Option<bool>,
    /// Whether withdrawn; while contested, yes.
    pub cancelled: bool,
    /// The consumption, if any: the first by stamp.
    pub consumed: Option<Consumed>,
    /// Whether the present attempt was given up after its order was consumed.
    pub aborted: bool,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Paths of contested registers, sorted.
    pub contested: Vec<String>,
}

impl InForce {
    /// Reads what is in force.
    pub fn of(document: &Document) -> Self {
        let spec = contested::read(document, &spec());
        let site = spec.settled().map(|side| side.value.for_site);
        let state = contested::read(document, &state());
        let order = contested::read(document, &order());
        let approval = contested::read(document, &approval());
        let cancel = contested::read(document, &cancel());
        let consumed = contested::read(document, &consumed());
        let abort = contested::read(document, &abort());
        let outcome = contested::read(document, &outcome());
        let consumed = consumed.of_home(site).map(|side| side.value.clone());
        let order = order.least_by(|order| order.not_after).map(|side| side.value.clone());
        let attempt = order.as_ref().map_or(1, |order| order.attempt);
        let begun = consumed.as_ref().is_some_and(|used| used.attempt == attempt);
        let decided = Decided {
            cancelled: cancel.settled().is_some_and(|side| side.value.cancelled),
            approved: approval.settled().map(|side| side.value.approved),
        };
        let aborted = begun && abort.sides().iter().any(|side| side.value.attempt == attempt);
        // What the site wrote of an attempt says nothing of the next one.
        let written = state.of_home(site).filter(|side| side.value.attempt >= attempt);
        let written = written.map_or(TaskState::Pending, |side| side.value.state);
        let state_now = match (begun, aborted && !written.is_final()) {
            (true, true) => TaskState::Failed,
            (true, false) => written,
            (false, _) => decided.of(written),
        };
        InForce {
            spec: spec.settled().map(|side| side.value.clone()),
            state: state_now,
            attempt: state.of_home(site).map_or(attempt, |side| side.value.attempt.max(attempt)),
            order,
            approved: approval.least_by(|approval| approval.approved).map(|side| side.value.approved),
            cancelled: cancel.least_by(|cancel| !cancel.cancelled).is_some_and(|side| side.value.cancelled),
            consumed,
            aborted,
            outcome: outcome.of_home(site).map(|side| side.value.clone()),
            contested: contested::disputed(document).iter().map(Disputed::path).collect(),
        }
    }
}

/// What people decided of a task, while nobody contests it.
struct Decided {
    cancelled: bool,
    approved: Option<bool>,
}

impl Decided {
    /// Where a task stands that has not begun and that its site has in `written`.
    fn of(&self, written: TaskState) -> TaskState {
        match (written, self.approved) {
            (ended, _) if ended.is_final() => ended,
            _ if self.cancelled => TaskState::Cancelled,
            (_, Some(false)) => TaskState::Rejected,
            (TaskState::PendingApproval, Some(true)) => TaskState::Approved,
            (other, _) => other,
        }
    }
}
