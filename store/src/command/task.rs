//! Tasks: creating one with its order, cancelling, and the steps that a site notes.

use std::{collections::BTreeMap, time::Duration};

use sync::{
    document::task::{self, Approval, Cancel, OrderRegister, Spec, State},
    id::{NodeId, SiteId, TaskId, WorkflowId},
    journal::Event,
    policy::{Action, TaskState, Wanted, lifecycle},
};

use super::{demand, gives_orders, refused, unknown};
use crate::{StoreError, Tx, view::TaskRow};

/// A task to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    /// The machine.
    pub node: NodeId,
    /// What is installed.
    pub workflow: WorkflowId,
    /// Which version; the newest if absent.
    pub version: Option<u64>,
    /// Values for templates.
    pub parameters: BTreeMap<String, String>,
    /// Free marks.
    pub tags: BTreeMap<String, String>,
}

/// Parameters, or tags, of one task: with the largest values they fit the largest change that peers take.
const MAX_ENTRIES: usize = 64;

/// Creates a task for the node's home site and issues its order, which lives as long as that site allows.
///
/// # Errors
/// `Unknown` node, workflow or version; `Refused` when this site may not create tasks, when the node has no home, is not to be installed, or
/// has a task that has not ended, which is named; `Recovering` while central is in recovery.
pub fn create(tx: &mut Tx<'_>, new: &NewTask) -> Result<TaskRow, StoreError> {
    demand(tx, Action::CreateTask)?;
    gives_orders(tx)?;
    let node = tx.view().node(new.node)?.ok_or_else(|| unknown("node", new.node))?;
    let Some(home) = node.home else {
        return refused(format!("node {} has no home site yet that could install it", node.id));
    };
    if let Wanted::Retired | Wanted::Ignored | Wanted::Deprovision = node.wanted {
        return refused(format!("node {} is wanted `{}`", node.id, node.wanted));
    }
    if let Some(other) = tx.view().open_task(node.id, Some(home))? {
        return refused(format!("node {} has task {}, which is {}", node.id, other.id, other.state));
    }
    let workflow = tx.view().workflow(new.workflow)?.ok_or_else(|| unknown("workflow", new.workflow))?;
    let newest = workflow.versions.keys().next_back().copied().unwrap_or(0);
    let version = new.version.unwrap_or(newest);
    if !workflow.versions.contains_key(&version) {
        return Err(unknown("version", format!("{version} of workflow {}", workflow.name)));
    }
    for (what, map) in [("parameter", &new.parameters), ("tag", &new.tags)] {
        if map.len() > MAX_ENTRIES {
            return refused(format!("a task has at most {MAX_ENTRIES} {what}s"));
        }
        for (key, value) in map {
            if key.is_empty() || key.len() > 128 || value.len() > 256 {
                return refused(format!("{what} `{key}`: names have 1 to 128 bytes, values at most 256"));
            }
        }
    }
    let site = tx.view().site(home)?.ok_or_else(|| unknown("site", home))?;
    let id: TaskId = tx.new_id()?.into();
    let order = OrderRegister {
        issued_by: tx.by().to_string(),
        attempt: 1,
        not_after: tx.now().after(Duration::from_secs(site.effective.order_max_s)),
        based_on: node.install_nonce,
    };
    let spec = Spec {
        node: node.id,
        for_site: home,
        workflow: workflow.id,
        version,
        parameters: new.parameters.clone(),
        disk_layout: None,
        network_config: None,
        tags: new.tags.clone(),
        created_by: tx.by().to_string(),
        created_at: tx.now(),
        not_before: None,
    };
    tx.write(task::KIND, id.into(), |edit| {
        edit.set(&task::spec(), &spec, "created");
        edit.set(&task::order(), &order, "issued with the task");
    })?;
    tx.journal_for(
        home,
        Event::TaskCreated { task: id, node: node.id, for_site: home, workflow: workflow.id, version },
    )?;
    tx.journal_for(home, Event::OrderIssued { task: id, attempt: 1, not_after: order.not_after })?;
    tx.view().task(id)?.ok_or_else(|| unknown("task", id))
}

/// Withdraws a task.
///
/// # Errors
/// `Unknown` task; `Refused` when its order was consumed: the attempt ends by itself or is aborted.
pub fn cancel(tx: &mut Tx<'_>, id: TaskId, why: &str) -> Result<TaskRow, StoreError> {
    let row = tx.view().task(id)?.ok_or_else(|| unknown("task", id))?;
    if row.consumed_by.is_some() {
        return refused(format!("task {id} is past its first write, so it can only end or be aborted"));
    }
    lifecycle::task_step(row.state, TaskState::Cancelled).map_err(StoreError::Refused)?;
    tx.write(task::KIND, id.into(), |edit| {
        edit.set(&task::cancel(), &Cancel { cancelled: true }, why);
    })?;
    let event = Event::TaskTransitioned {
        task: id,
        from: row.state.to_string(),
        to: TaskState::Cancelled.to_string(),
        cause: why.to_string(),
    };
    tx.journal_for(row.site, event)?;
    tx.view().task(id)?.ok_or_else(|| unknown("task", id))
}

/// Approves or rejects a task whose machine has reported its hardware and waits.
///
/// # Errors
/// `Unknown` task; `Refused` when it does not wait for approval, with the state that it is in. An approval
/// makes an order live, so it is `Recovering` while central is in recovery.
pub fn judge(tx: &mut Tx<'_>, id: TaskId, approved: bool, why: &str) -> Result<TaskRow, StoreError> {
    let row = tx.view().task(id)?.ok_or_else(|| unknown("task", id))?;
    demand(tx, Action::ApproveTask)?;
    if approved {
        gives_orders(tx)?;
    }
    let to = if approved { TaskState::Approved } else { TaskState::Rejected };
    if row.state != TaskState::PendingApproval {
        return refused(format!("task {id} is {}, so there is nothing to approve or reject", row.state));
    }
    tx.write(task::KIND, id.into(), |edit| {
        edit.set(&task::approval(), &Approval { approved }, why);
    })?;
    let event = Event::TaskTransitioned {
        task: id,
        from: row.state.to_string(),
        to: to.to_string(),
        cause: why.to_string(),
    };
    tx.journal_for(row.site, event)?;
    tx.view().task(id)?.ok_or_else(|| unknown("task", id))
}

/// At a site: takes a task a step on and journals it. A step to the same state is nothing.
///
/// # Errors
/// `Refused` when the step cannot be.
pub(crate) fn step(tx: &mut Tx<'_>, row: &TaskRow, to: TaskState, cause: &str) -> Result<(), StoreError> {
    if row.state == to {
        return Ok(());
    }
    lifecycle::task_step(row.state, to).map_err(StoreError::Refused)?;
    let state = State { state: to, cause: cause.to_string(), attempt: row.attempt };
    tx.write(task::KIND, row.id.into(), |edit| {
        edit.set(&task::state(), &state, cause);
    })?;
    tx.journal(Event::TaskTransitioned {
        task: row.id,
        from: row.state.to_string(),
        to: to.to_string(),
        cause: cause.to_string(),
    })
}

/// At a site: marks every pending task whose content is all here as ready, and returns them.
pub fn mark_ready(
    tx: &mut Tx<'_>,
    here: SiteId,
    is_here: impl Fn(sync::blob::Digest) -> bool,
) -> Result<Vec<TaskId>, StoreError> {
    let filter = crate::view::TaskFilter {
        site: Some(here),
        state: Some(TaskState::Pending),
        ..crate::view::TaskFilter::default()
    };
    let mut ready = Vec::new();
    for row in tx.view().tasks(&filter)? {
        let workflow = tx.view().workflow(row.workflow)?;
        let version = workflow.as_ref().and_then(|workflow| workflow.versions.get(&row.version));
        if !row.cancelled
            && version.is_some_and(|version| version.files.values().all(|digest| is_here(*digest)))
        {
            step(tx, &row, TaskState::Ready, "boot files are here and verified")?;
            ready.push(row.id);
        }
    }
    Ok(ready)
}
