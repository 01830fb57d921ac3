//! The life of a machine and of a task: the words, and which step may follow which.
//!
//! Facts ([`NodeState`], written by the site that sees the machine) and wishes ([`Wanted`], written by
//! people and rules) are different registers and never conflict with each other. What people see is
//! [`Phase`], one pure function of both, the live task and an approved move.

use super::{Reason, Verdict, words};

words! {
    /// What the site that sees the machine knows to be true.
    pub enum NodeState {
        /// Seen or adopted; nothing was installed by us.
        Discovered = "discovered",
        /// An attempt asked for its go-ahead or reported that it is under way.
        Installing = "installing",
        /// The installation reported its completion.
        Installed = "installed",
        /// The attempt ended without completion.
        InstallFailed = "install_failed",
        /// Booted its own disk after an installation.
        Active = "active",
    }
}

words! {
    /// What people and rules want of a machine, from the least to the most destructive.
    pub enum Wanted {
        /// Leave it as it is.
        Keep = "keep",
        /// Serve it nothing and show it nowhere until a person says otherwise.
        Ignored = "ignored",
        /// Install it again.
        Reprovision = "reprovision",
        /// Take it out of service.
        Deprovision = "deprovision",
        /// Gone for good; never served again, anywhere, unless a person at central revokes it.
        Retired = "retired",
    }
}

words! {
    /// Where a task stands.
    pub enum TaskState {
        /// Issued; its boot files are not verified at the site yet.
        Pending = "pending",
        /// Boot files at the site are verified; the machine may boot it.
        Ready = "ready",
        /// The machine was given the boot script.
        Booting = "booting",
        /// Hardware was reported and a person must approve.
        PendingApproval = "pending_approval",
        /// May go ahead.
        Approved = "approved",
        /// The order was consumed: the disk may be written.
        Installing = "installing",
        /// The machine reported completion.
        Completed = "completed",
        /// Ended without completion; reason and logs are kept.
        Failed = "failed",
        /// A person said no. Not a failure.
        Rejected = "rejected",
        /// Withdrawn before the first write.
        Cancelled = "cancelled",
        /// Its order can never be live again.
        Stale = "stale",
    }
}

words! {
    /// What people see of a machine.
    pub enum Phase {
        /// Known, nothing planned.
        Discovered = "discovered",
        /// A live task exists and has not started.
        Pending = "pending",
        /// An attempt is under way.
        Installing = "installing",
        /// Installation completed, not booted from disk yet.
        Installed = "installed",
        /// The last attempt failed.
        InstallFailed = "install_failed",
        /// In service.
        Active = "active",
        /// Wanted anew, not done yet.
        Reprovision = "reprovision",
        /// To be taken out of service, not done yet.
        Deprovisioning = "deprovisioning",
        /// An approved move to another site waits for its fence.
        Migrating = "migrating",
        /// Served nothing, on request.
        Ignored = "ignored",
        /// Gone for good.
        Retired = "retired",
    }
}

impl TaskState {
    /// Whether nothing can follow any more.
    pub fn is_final(self) -> bool {
        match self {
            TaskState::Completed
            | TaskState::Failed
            | TaskState::Rejected
            | TaskState::Cancelled
            | TaskState::Stale => true,
            TaskState::Pending
            | TaskState::Ready
            | TaskState::Booting
            | TaskState::PendingApproval
            | TaskState::Approved
            | TaskState::Installing => false,
        }
    }

    /// Whether the task exists and the machine has not begun it.
    pub fn is_waiting(self) -> bool {
        matches!(self, TaskState::Pending | TaskState::Ready)
    }
}

/// Joins facts and wishes into what people see. `task` is the node's live task, if any; `fence_closed`
/// says that a claim for the node was approved and its fence is still closed.
pub fn phase(state: NodeState, wanted: Wanted, task: Option<TaskState>, fence_closed: bool) -> Phase {
    match wanted {
        Wanted::Retired => return Phase::Retired,
        Wanted::Ignored => return Phase::Ignored,
        Wanted::Keep | Wanted::Reprovision | Wanted::Deprovision => {}
    }
    if fence_closed {
        return Phase::Migrating;
    }
    if state == NodeState::Installing {
        return Phase::Installing;
    }
    if task.is_some_and(TaskState::is_waiting) {
        return Phase::Pending;
    }
    match (wanted, state) {
        (Wanted::Deprovision, _) => Phase::Deprovisioning,
        (Wanted::Reprovision, _) => Phase::Reprovision,
        (_, NodeState::Discovered) => Phase::Discovered,
        (_, NodeState::Installing) => Phase::Installing,
        (_, NodeState::Installed) => Phase::Installed,
        (_, NodeState::InstallFailed) => Phase::InstallFailed,
        (_, NodeState::Active) => Phase::Active,
    }
}

/// A step of a machine, with whether a report about it skipped one that must have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The state already is what the report says: answer 200, change nothing.
    Duplicate,
    /// The ordinary next step.
    Next,
    /// A step in between was never reported; it is journalled as implied.
    Implied(NodeState),
}

/// Judges a report that a machine is now in `to`, when this replica has it in `from`.
///
/// # Errors
/// The reason, when no path leads there.
pub fn node_step(from: NodeState, to: NodeState) -> Result<Step, Reason> {
    use NodeState::{Active, Discovered, InstallFailed, Installed, Installing};
    match (from, to) {
        (a, b) if a == b => Ok(Step::Duplicate),
        (Discovered | Installed | InstallFailed | Active, Installing) => Ok(Step::Next),
        (Installing, Installed | InstallFailed) => Ok(Step::Next),
        (Discovered | InstallFailed | Active, Installed) => Ok(Step::Implied(Installing)),
        (Discovered | Installed | Active, InstallFailed) => Ok(Step::Implied(Installing)),
        (Installed, Active) => Ok(Step::Next),
        (Installing, Active) => Ok(Step::Implied(Installed)),
        (_, Discovered) | (Discovered | InstallFailed, Active) => {
            Err(Reason::new(format!("a machine that is {from} does not become {to}")))
        }
        (Installing, Installing) | (Installed, Installed) => Ok(Step::Duplicate),
        (InstallFailed, InstallFailed) | (Active, Active) => Ok(Step::Duplicate),
    }
}

/// Judges a change of what is wanted.
pub fn wanted_step(from: Wanted, to: Wanted) -> Verdict {
    use Wanted::{Deprovision, Ignored, Keep, Reprovision, Retired};
    match (from, to) {
        (a, b) if a == b => Verdict::Allow,
        (_, Retired | Ignored) | (Keep, Reprovision | Deprovision) | (_, Keep) => Verdict::Allow,
        (Reprovision, Deprovision) | (Deprovision, Reprovision) => Verdict::Allow,
        (Ignored | Retired, Reprovision | Deprovision) => Verdict::Refuse(Reason::new(format!(
            "a machine that is {from} must be wanted `keep` by a person before `{to}`"
        ))),
        (Reprovision, Reprovision) | (Deprovision, Deprovision) => Verdict::Allow,
    }
}

/// Judges a step of a task. Cancel and reject win over everything until consumption.
///
/// # Errors
/// The reason, when `to` cannot follow `from`.
pub fn task_step(from: TaskState, to: TaskState) -> Result<(), Reason> {
    use TaskState::{
        Approved, Booting, Cancelled, Completed, Failed, Installing, Pending, PendingApproval, Ready,
        Rejected, Stale,
    };
    let allowed = match (from, to) {
        (a, b) if a == b => true,
        (Pending, Ready) | (Ready, Pending | Booting) | (Booting, PendingApproval | Approved) => true,
        (PendingApproval, Approved | Rejected) => true,
        // A machine that lost power before it wrote anything boots the same script again.
        (Approved, Booting | Installing) => true,
        (Installing, Completed | Failed) => true,
        (Pending | Ready | Booting | PendingApproval | Approved, Cancelled | Stale | Failed) => true,
        (
            Pending | Ready | Booting | PendingApproval | Approved | Installing | Completed | Failed
            | Rejected | Cancelled | Stale,
            _,
        ) => false,
    };
    if allowed { Ok(()) } else { Err(Reason::new(format!("a task that is {from} does not become {to}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a hand-written table: a header of columns, then a row of cells per line, `|` between them.
    fn table(text: &'static str) -> (Vec<&'static str>, Vec<Vec<&'static str>>) {
        let mut rows = text
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
            .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let header = rows.next().expect("a table has a header");
        (header, rows.collect())
    }

    #[test]
    fn every_cell_of_the_node_table_holds() {
        let (header, rows) = table(include_str!("../../../fixtures/policies/node_steps.txt"));
        assert_eq!(rows.len(), NodeState::ALL.len());
        for row in rows {
            assert_eq!(row.len(), NodeState::ALL.len() + 1, "{row:?}");
            for (to, cell) in header[1..].iter().zip(&row[1..]) {
                let (from, to) = (row[0].parse().unwrap(), to.parse().unwrap());
                let found = match node_step(from, to) {
                    Ok(Step::Duplicate) => "same".to_string(),
                    Ok(Step::Next) => "next".to_string(),
                    Ok(Step::Implied(state)) => format!("implies {state}"),
                    Err(_) => "never".to_string(),
                };
                assert_eq!(&found, cell, "{from} to {to}");
            }
        }
    }

    #[test]
    fn l2_every_cell_of_the_task_table_holds() {
        let (header, rows) = table(include_str!("../../../fixtures/policies/task_steps.txt"));
        assert_eq!(rows.len(), TaskState::ALL.len());
        for row in rows {
            for (to, cell) in header[1..].iter().zip(&row[1..]) {
                let (from, to): (TaskState, TaskState) = (row[0].parse().unwrap(), to.parse().unwrap());
                let found = if task_step(from, to).is_ok() { "yes" } else { "-" };
                assert_eq!(found, *cell, "{from} to {to}");
            }
        }
    }

    #[test]
    fn people_see_one_word_for_every_combination() {
        let (_, rows) = table(include_str!("../../../fixtures/policies/phases.txt"));
        assert_eq!(rows.len(), NodeState::ALL.len() * Wanted::ALL.len());
        for row in rows {
            let (state, wanted) = (row[0].parse().unwrap(), row[1].parse().unwrap());
            assert_eq!(phase(state, wanted, None, false).as_str(), row[2], "{state} {wanted}");
            assert_eq!(
                phase(state, wanted, Some(TaskState::Ready), false).as_str(),
                row[3],
                "{state} {wanted}, task"
            );
            assert_eq!(phase(state, wanted, None, true).as_str(), row[4], "{state} {wanted}, fence");
        }
    }
}
