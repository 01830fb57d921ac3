//! Tasks: creating one with its order, cancelling, trying again, giving up, and the steps that a site notes.

use std::{collections::BTreeMap, time::Duration};

use sync::{
    document::{
        contested, node,
        task::{self, Abort, Approval, Cancel, OrderRegister, Outcome, Spec, State},
    },
    id::{NodeId, Origin, SiteId, TaskId, WorkflowId},
    journal::Event,
    policy::{
        Action, NodeState, TaskState, Wanted, lifecycle,
        order::{Silence, silent},
    },
    time::Timestamp,
};

use super::{boot, demand, gives_orders, refused, register_set, unknown};
use crate::{
    StoreError, Tx,
    view::{NodeRow, TaskFilter, TaskRow},
};

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
    if let Some(of) = node.alias_of {
        return refused(format!("node {} is another interface of node {of}; name that one", node.id));
    }
    let Some(home) = node.home else {
        return refused(format!("node {} has no home site yet that could install it", node.id));
    };
    check_wanted(&node)?;
    if let Some(why) = tx.view().fence_closed(node.id)? {
        return refused(format!(
            "node {} has moved and its former site may still install it: {why}",
            node.id
        ));
    }
    if let Some(site) = tx.origin().site()
        && let Some(moved) = tx.view().moved_to(&node, site)?
    {
        return refused(format!("node {} is at home at site {moved}, and is installed there", node.id));
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
    check_maps(new)?;
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

/// Whether parameters and tags are few and short enough.
pub(super) fn check_maps(new: &NewTask) -> Result<(), StoreError> {
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
    Ok(())
}

/// Whether anybody wants the node installed.
pub(super) fn check_wanted(node: &NodeRow) -> Result<(), StoreError> {
    match node.wanted {
        Wanted::Keep | Wanted::Reprovision => Ok(()),
        Wanted::Retired | Wanted::Ignored | Wanted::Deprovision => {
            refused(format!("node {} is wanted `{}`", node.id, node.wanted))
        }
    }
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
    check_judged(&row)?;
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

/// Whether a task waits for somebody's word.
pub(super) fn check_judged(row: &TaskRow) -> Result<(), StoreError> {
    match row.state {
        TaskState::PendingApproval => Ok(()),
        other => refused(format!("task {} is {other}, so there is nothing to approve or reject", row.id)),
    }
}

/// Gives a failed task another attempt under a new order.
///
/// # Errors
/// `Unknown` task; `Refused` when it has not failed, had all of its attempts, or its machine is not to be installed
/// there any more; `Recovering` while central is in recovery.
pub fn retry(tx: &mut Tx<'_>, id: TaskId, why: &str) -> Result<TaskRow, StoreError> {
    let row = tx.view().task(id)?.ok_or_else(|| unknown("task", id))?;
    check_retry(tx, &row)?;
    demand(tx, retries(tx, id)?)?;
    gives_orders(tx)?;
    let node = tx.view().node(row.node)?.ok_or_else(|| unknown("node", row.node))?;
    let site = tx.view().site(row.site)?.ok_or_else(|| unknown("site", row.site))?;
    let attempt = row.attempt + 1;
    let order = OrderRegister {
        issued_by: tx.by().to_string(),
        attempt,
        not_after: tx.now().after(Duration::from_secs(site.effective.order_max_s)),
        based_on: node.install_nonce,
    };
    tx.write(task::KIND, id.into(), |edit| {
        edit.set(&task::order(), &order, why);
    })?;
    tx.journal_for(row.site, Event::OrderIssued { task: id, attempt, not_after: order.not_after })?;
    let event = Event::TaskTransitioned {
        task: id,
        from: row.state.to_string(),
        to: TaskState::Pending.to_string(),
        cause: format!("attempt {attempt}: {why}"),
    };
    tx.journal_for(row.site, event)?;
    tx.view().task(id)?.ok_or_else(|| unknown("task", id))
}

/// What another attempt of a task is to autonomy. Within the life of the order that failed it is what was ordered; after
/// that nobody who waited for its end counts on it any more (see `fence`), and it is a new order.
pub(super) fn retries(tx: &Tx<'_>, id: TaskId) -> Result<Action, StoreError> {
    let order = tx.view().task(id)?.and_then(|row| row.order);
    let known_time = tx.view().known_time(tx.now())?;
    let has_ended = order.is_some_and(|order| order.not_after < known_time.max(tx.now()));
    Ok(if has_ended { Action::CreateTask } else { Action::MakePending })
}

/// Whether a task can have another attempt.
pub(super) fn check_retry(tx: &Tx<'_>, row: &TaskRow) -> Result<(), StoreError> {
    let id = row.id;
    if row.state != TaskState::Failed {
        return refused(format!("task {id} is {}, and only a failed one is tried again", row.state));
    }
    let site = tx.view().site(row.site)?.ok_or_else(|| unknown("site", row.site))?;
    let most = site.effective.max_install_attempts;
    if row.attempt >= most {
        return refused(format!(
            "task {id} had {} of {most} attempts; look at why, and create another",
            row.attempt
        ));
    }
    let node = tx.view().node(row.node)?.ok_or_else(|| unknown("node", row.node))?;
    check_wanted(&node)?;
    if node.home != Some(row.site) {
        return refused(format!("node {} is not at home at site {} any more", node.id, row.site));
    }
    // Somebody gave the attempt up, and its site has not heard of that.
    if node.state == NodeState::Installing {
        return refused(format!("site {} has not said yet that attempt {} has ended", row.site, row.attempt));
    }
    match tx.view().open_task(row.node, Some(row.site))? {
        Some(other) => refused(format!("node {} has task {}, which is {}", node.id, other.id, other.state)),
        None => Ok(()),
    }
}

/// Gives up an attempt after its first write. It has failed from here on; its machine is told to stop when it asks, and
/// gets no other order before its site has heard of it.
///
/// # Errors
/// `Unknown` task; `Refused` when no attempt of it is past its first write.
pub fn abort(tx: &mut Tx<'_>, id: TaskId, why: &str) -> Result<TaskRow, StoreError> {
    let row = tx.view().task(id)?.ok_or_else(|| unknown("task", id))?;
    check_abort(&row)?;
    demand(tx, Action::AbortAttempt)?;
    tx.write(task::KIND, id.into(), |edit| {
        edit.set(&task::abort(), &Abort { attempt: row.attempt }, why);
    })?;
    tx.journal_for(row.site, register_set(task::KIND, id, "abort", format!("attempt {}", row.attempt)))?;
    follow_abort(tx, id)?;
    tx.view().task(id)?.ok_or_else(|| unknown("task", id))
}

/// Whether an attempt of a task is past its first write.
pub(super) fn check_abort(row: &TaskRow) -> Result<(), StoreError> {
    let id = row.id;
    if row.consumed_by.is_none() {
        return refused(format!("no attempt of task {id} is past its first write; cancel it instead"));
    }
    if row.state.is_final() {
        return refused(format!("task {id} is {} already", row.state));
    }
    Ok(())
}

/// At the site that runs a task: writes what follows from an attempt of it that somebody gave up, once.
pub(crate) fn follow_abort(tx: &mut Tx<'_>, id: TaskId) -> Result<(), StoreError> {
    let Origin::Site(here) = tx.origin() else { return Ok(()) };
    let Some(row) = tx.view().task(id)?.filter(|row| row.site == here && row.aborted) else { return Ok(()) };
    let found = tx.with_document(task::KIND, id.into(), |document| {
        let written = contested::read(document, &task::state());
        let written = written.of_home(Some(here)).map(|side| side.value.clone());
        let abort = contested::read(document, &task::abort());
        (written, abort.newest().map(|side| side.written.clone()))
    })?;
    let Some((Some(written), Some(abort))) = found else { return Ok(()) };
    if written.state.is_final() && written.attempt >= row.attempt {
        return Ok(());
    }
    let said = if abort.why.is_empty() { String::new() } else { format!(": {}", abort.why) };
    give_up(tx, &row, written.state, &format!("given up by {}{said}", abort.by))
}

/// At a site: ends the attempts of which nothing was heard for as long as its settings say, and returns them.
/// `listened` is how long the site has listened without a break. That central is out of reach ends none.
///
/// # Errors
/// Those of the database.
pub fn end_silent(tx: &mut Tx<'_>, here: SiteId, listened: Duration) -> Result<Vec<TaskId>, StoreError> {
    let Some(site) = tx.view().site(here)? else { return Ok(vec![]) };
    let timeout = Duration::from_secs(site.effective.install_timeout_s);
    if listened < timeout {
        return Ok(vec![]);
    }
    let filter = TaskFilter { site: Some(here), state: Some(TaskState::Installing), ..TaskFilter::default() };
    let mut ended = Vec::new();
    for row in tx.view().tasks(&filter)? {
        let heard = heard(tx, here, &row)?;
        if let Some(why) = silent(&Silence { heard, now: tx.now(), listened, timeout }) {
            give_up(tx, &row, row.state, why.as_str())?;
            ended.push(row.id);
        }
    }
    Ok(ended)
}

/// When the machine of a task was last heard here, by our own clock.
fn heard(tx: &mut Tx<'_>, here: SiteId, row: &TaskRow) -> Result<Timestamp, StoreError> {
    let written = tx.with_document(task::KIND, row.id.into(), |document| {
        let state = contested::read(document, &task::state());
        state.of_home(Some(here)).map(|side| side.written.at.timestamp())
    })?;
    let reported = tx.view().last_report(row.node)?;
    let came_on = tx.view().progress(row.id)?.map(|progress| progress.at);
    let mut heard = written.flatten().max(reported).max(came_on);
    for mac in tx.view().node(row.node)?.map(|node| node.macs).unwrap_or_default() {
        heard = heard.max(tx.view().boot(mac)?.map(|boot| boot.last_at));
    }
    Ok(heard.unwrap_or(tx.now()))
}

/// At the site that runs a task: its current attempt has failed, as the site judges.
pub(crate) fn give_up(
    tx: &mut Tx<'_>,
    row: &TaskRow,
    from: TaskState,
    error: &str,
) -> Result<(), StoreError> {
    if let Some(node) = tx.view().node(row.node)?
        && node.state == NodeState::Installing
        && (node.task, node.attempt) == (Some(row.id), Some(row.attempt))
    {
        let state = node::State {
            state: NodeState::InstallFailed,
            cause: "judged by the site".into(),
            task: node.task,
            attempt: node.attempt,
            error: Some(error.to_string()),
            install_nonce: node.install_nonce,
        };
        boot::set_state(tx, node.id, node.state, &state, false)?;
    }
    let state = State { state: TaskState::Failed, cause: error.to_string(), attempt: row.attempt };
    let outcome = Outcome { succeeded: false, detail: error.to_string() };
    tx.write(task::KIND, row.id.into(), |edit| {
        edit.set(&task::state(), &state, error);
        edit.set(&task::outcome(), &outcome, "");
    })?;
    tx.journal(Event::TaskTransitioned {
        task: row.id,
        from: from.to_string(),
        to: TaskState::Failed.to_string(),
        cause: error.to_string(),
    })
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
    let filter = TaskFilter { site: Some(here), state: Some(TaskState::Pending), ..TaskFilter::default() };
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
