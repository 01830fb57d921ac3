//! What machines report, and what they are answered.
//!
//! A machine repeats a report under the same id until it is answered. The answer is stored in the same
//! transaction as what follows from it, so a repeated report gets the same answer and changes nothing:
//! also when the answer to the first was lost in a crash after the commit.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};
use serde_json::{Value, json};
use sync::{
    document::{
        node::{self, Evidence, Hardware, State},
        task::{self as task_document, Consumed, Outcome},
    },
    id::{ClaimId, MacAddr, NodeId, ReportId, SiteId, TaskId},
    journal::Event,
    policy::{
        Action, Liveness, NodeState, Reason, TaskState, Verdict, lifecycle,
        lifecycle::Step,
        order::{self, MAX_ATTEMPT_BOOTS},
    },
};

use super::{ask, boot, claim, home_elsewhere, task, unknown, verdict};
use crate::{
    StoreError, Tx,
    log::signed,
    view::{Away, NodeRow, ProgressRow, ProposalState, TaskRow},
};

/// What a machine is answered: an HTTP status and a JSON body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200; 202 when the machine is to ask again; 409 when what was reported cannot be.
    pub status: u16,
    /// The body.
    pub body: Value,
}

/// A machine introduces itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// Evidence by name, as in `node::EVIDENCE`; others are ignored.
    pub evidence: BTreeMap<String, String>,
    /// Logical processors.
    pub cpus: Option<u64>,
    /// Main memory.
    pub memory_bytes: Option<u64>,
    /// Size in bytes by device name.
    pub disks: BTreeMap<String, u64>,
    /// MAC address by interface name.
    pub nics: BTreeMap<String, String>,
}

impl Registration {
    /// A piece of evidence, unless it is what no firmware says of hardware.
    pub(super) fn known(&self, name: &str) -> Option<String> {
        let value = self.evidence.get(name)?.trim();
        let is_evidence = value.len() <= 256 && !PLACEHOLDERS.contains(&value.to_lowercase().as_str());
        is_evidence.then(|| value.to_string())
    }
}

/// What a machine reports of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Asks for the go-ahead to write its disk.
    GoAhead,
    /// Writes.
    InstallStarted,
    /// Has come this far, in percent.
    Progress(u64),
    /// Is done.
    InstallComplete,
    /// Has given up.
    InstallFailed(String),
}

impl Report {
    /// The word that REST and journal use.
    pub fn kind(&self) -> &'static str {
        match self {
            Report::GoAhead => "go_ahead",
            Report::InstallStarted => "install_started",
            Report::Progress(_) => "progress",
            Report::InstallComplete => "install_complete",
            Report::InstallFailed(_) => "install_failed",
        }
    }

    fn detail(&self) -> String {
        match self {
            Report::Progress(percent) => format!("{percent} %"),
            Report::InstallFailed(error) => error.clone(),
            Report::GoAhead | Report::InstallStarted | Report::InstallComplete => String::new(),
        }
    }
}

/// Status of the answer `wait`: nothing was decided and nothing noted.
const WAIT: u16 = 202;

/// Values that vendors leave where a serial number should be.
const PLACEHOLDERS: [&str; 8] = [
    "",
    "default string",
    "not specified",
    "none",
    "to be filled by o.e.m.",
    "system serial number",
    "0",
    "00000000-0000-0000-0000-000000000000",
];

/// Takes a machine's introduction.
///
/// # Errors
/// `Unknown` when no node has this MAC address and `adopt` does not make one.
pub fn register(
    tx: &mut Tx<'_>,
    report: ReportId,
    mac: MacAddr,
    adopt: bool,
    it: &Registration,
) -> Result<Answer, StoreError> {
    if let Some(answer) = answered_before(tx, report)? {
        return Ok(answer);
    }
    let here = tx.origin().site();
    if let Some(here) = here
        && let Some(away) = tx.view().away(mac, here)?
        && tx.view().open_task(away.node, Some(here))?.is_none()
    {
        return visits(tx, report, mac, &away, it);
    }
    if tx.view().node_by_mac(mac)?.is_none() {
        match verdict(tx, Action::Adopt)? {
            Verdict::Allow if adopt => boot::adopt(tx, mac, "seen booting")?,
            Verdict::Queue(reason) if adopt => return ask_to_adopt(tx, mac, &reason),
            Verdict::Allow | Verdict::Queue(_) | Verdict::Refuse(_) => return Err(unknown("machine", mac)),
        };
    }
    let node = tx.view().node_by_mac(mac)?.ok_or_else(|| unknown("machine", mac))?;
    write_evidence(tx, &node, it)?;
    let open = tx.view().open_task(node.id, here)?;
    received(tx, report, node.id, open.as_ref(), "register", String::new())?;
    if let Some(row) = &open
        && row.state == TaskState::Booting
    {
        let needs_approval = tx
            .view()
            .workflow(row.workflow)?
            .and_then(|workflow| workflow.versions.get(&row.version).map(|version| version.needs_approval))
            .unwrap_or(false);
        if needs_approval && row.approved != Some(true) {
            task::step(tx, row, TaskState::PendingApproval, "hardware was reported")?;
        } else {
            task::step(tx, row, TaskState::Approved, "hardware was reported, no approval is needed")?;
        }
    }
    let task = open.map(|row| json!({ "id": row.id, "attempt": row.attempt }));
    let answer = Answer { status: 200, body: json!({ "node": node.id, "state": node.state, "task": task }) };
    remember(tx, report, node.id, &answer)?;
    Ok(answer)
}

/// An unknown machine waits until central has adopted it.
fn ask_to_adopt(tx: &mut Tx<'_>, mac: MacAddr, reason: &Reason) -> Result<Answer, StoreError> {
    ask::ask_to_adopt(tx, mac, reason)?;
    let asked = tx.view().adoption(NodeId::of(mac))?;
    if asked.is_none_or(|row| row.state != ProposalState::Open) {
        return Err(unknown("machine", mac));
    }
    let why = "central is asked to adopt the machine";
    Ok(Answer { status: WAIT, body: json!({ "answer": "wait", "why": why }) })
}

/// A machine that is at home elsewhere is claimed, with what it says of itself, and has nothing to do here.
fn visits(
    tx: &mut Tx<'_>,
    report: ReportId,
    mac: MacAddr,
    away: &Away,
    it: &Registration,
) -> Result<Answer, StoreError> {
    let Away { node, home, home_epoch, .. } = *away;
    claim::boots(tx, mac)?;
    let here = tx.origin().site().unwrap_or(home);
    let id = ClaimId::of(node, here, home_epoch);
    claim::tells(tx, id, it)?;
    received(tx, report, node, None, "register", String::new())?;
    let state = tx.view().node(node)?.map_or(NodeState::Discovered, |row| row.state);
    let claim = tx.view().claim(id)?.map(|row| json!({ "id": id, "state": row.state, "home": home }));
    let answer =
        Answer { status: 200, body: json!({ "node": node, "state": state, "task": null, "claim": claim }) };
    remember(tx, report, node, &answer)?;
    Ok(answer)
}

fn write_evidence(tx: &mut Tx<'_>, node: &NodeRow, it: &Registration) -> Result<(), StoreError> {
    let mut fresh: Vec<(&'static str, String)> = Vec::new();
    for name in node::EVIDENCE {
        if let Some(value) = it.known(name)
            && node.evidence.get(name) != Some(&value)
        {
            fresh.push((name, value));
        }
    }
    let hardware = Hardware {
        report: None,
        cpus: it.cpus,
        memory_bytes: it.memory_bytes,
        disks: it.disks.clone(),
        nics: it.nics.clone(),
    };
    let known = tx.with_document(node::KIND, node.id.into(), |document| {
        sync::document::contested::read(document, &node::hardware()).newest().map(|side| side.value.clone())
    })?;
    let changed = known.flatten().as_ref() != Some(&hardware);
    if (fresh.is_empty() && !changed) || home_elsewhere(tx, node.id)?.is_some() {
        return Ok(());
    }
    tx.write(node::KIND, node.id.into(), |edit| {
        for (name, value) in &fresh {
            edit.set(&node::evidence(name), &Evidence { value: value.clone() }, "reported by the machine");
        }
        if changed {
            edit.set(&node::hardware(), &hardware, "reported by the machine");
        }
    })
}

/// Takes a report about an attempt.
///
/// # Errors
/// `Unknown` node or task. What cannot be is an answer with status 409, not an error.
pub fn event(
    tx: &mut Tx<'_>,
    here: SiteId,
    report: ReportId,
    node: NodeId,
    about: (TaskId, u64),
    it: &Report,
) -> Result<Answer, StoreError> {
    if let Some(answer) = answered_before(tx, report)? {
        return if answer == go() { confirmed(tx) } else { Ok(answer) };
    }
    let (id, attempt) = about;
    let node = tx.view().node(node)?.ok_or_else(|| unknown("node", node))?;
    let row = tx.view().task(id)?.ok_or_else(|| unknown("task", id))?;
    let answer = match judge(&node, &row, attempt, it) {
        // The machine has said so under another id, and may have gone on since.
        Ok(()) if says_the_end_again(&row, it) => {
            received(tx, report, node.id, Some(&row), it.kind(), it.detail())?;
            ok(&node)
        }
        Err(reason) => refuse(tx, report, &node, it, &reason)?,
        Ok(()) => match it {
            Report::GoAhead => go_ahead(tx, here, report, &node, &row)?,
            Report::Progress(percent) => {
                received(tx, report, node.id, Some(&row), it.kind(), it.detail())?;
                note_progress(tx, &row, (*percent).min(100))?;
                ok(&node)
            }
            Report::InstallStarted => advance(tx, report, &node, &row, it, NodeState::Installing)?,
            Report::InstallComplete => advance(tx, report, &node, &row, it, NodeState::Installed)?,
            Report::InstallFailed(_) => advance(tx, report, &node, &row, it, NodeState::InstallFailed)?,
        },
    };
    // A machine that waits asks again, under the same id or another, until the answer is another.
    if answer.status != WAIT {
        remember(tx, report, node.id, &answer)?;
    }
    Ok(answer)
}

/// What must hold for any report about an attempt.
fn judge(node: &NodeRow, row: &TaskRow, attempt: u64, it: &Report) -> Result<(), Reason> {
    if row.node != node.id {
        return Err(Reason::new(format!("task {} is for node {}", row.id, row.node)));
    }
    let current = row.order.as_ref().map_or(1, |order| order.attempt);
    if attempt != current {
        return Err(Reason::new(format!("attempt {attempt} is not the current one, which is {current}")));
    }
    if *it != Report::GoAhead && row.consumed_by.is_none() {
        return Err(Reason::new("the attempt was not given its go-ahead"));
    }
    if row.state.is_final() && *it != Report::GoAhead && !says_the_end_again(row, it) {
        return Err(Reason::new(format!("the attempt has ended: task {} is {}", row.id, row.state)));
    }
    Ok(())
}

/// Whether a report says of an attempt that has ended how it ended.
fn says_the_end_again(row: &TaskRow, it: &Report) -> bool {
    match it {
        Report::InstallComplete => row.state == TaskState::Completed,
        Report::InstallFailed(_) => row.state == TaskState::Failed && !row.aborted,
        Report::GoAhead | Report::InstallStarted | Report::Progress(_) => false,
    }
}

/// The one place where an order is used up. The answer leaves only after this is committed.
fn go_ahead(
    tx: &mut Tx<'_>,
    here: SiteId,
    report: ReportId,
    node: &NodeRow,
    row: &TaskRow,
) -> Result<Answer, StoreError> {
    let circumstances = tx.view().circumstances(row, node, here, Some(report), tx.now())?;
    match order::liveness(&circumstances) {
        Liveness::Live => {
            let attempt = row.order.as_ref().map_or(1, |order| order.attempt);
            let install_nonce = tx.author()?.entropy.nonce();
            received(tx, report, node.id, Some(row), Report::GoAhead.kind(), String::new())?;
            tx.write(task_document::KIND, row.id.into(), |edit| {
                edit.set(
                    &task_document::consumed(),
                    &Consumed { attempt, report, install_nonce },
                    "go-ahead",
                );
            })?;
            tx.journal(Event::OrderConsumed { task: row.id, attempt, node: node.id, report })?;
            // The machine may have asked before anybody noted that it booted or reported its hardware.
            let mut current = row.clone();
            while current.state != TaskState::Installing {
                let next = match current.state {
                    TaskState::Pending => TaskState::Ready,
                    TaskState::Ready => TaskState::Booting,
                    TaskState::Booting | TaskState::PendingApproval => TaskState::Approved,
                    TaskState::Approved
                    | TaskState::Installing
                    | TaskState::Completed
                    | TaskState::Failed
                    | TaskState::Rejected
                    | TaskState::Cancelled
                    | TaskState::Stale => TaskState::Installing,
                };
                task::step(tx, &current, next, "the machine asked for its go-ahead")?;
                current.state = next;
            }
            let state = State {
                state: NodeState::Installing,
                cause: "the order was consumed".into(),
                task: Some(row.id),
                attempt: Some(attempt),
                error: None,
                install_nonce: Some(install_nonce),
            };
            boot::set_state(tx, node.id, node.state, &state, false)?;
            Ok(go())
        }
        // What this report consumed came back to a database that had forgotten it.
        Liveness::Consumed => confirmed(tx),
        Liveness::UnderWay => take_up_again(tx, report, node, row),
        Liveness::AwaitsApproval => {
            let why = "the task waits for approval";
            Ok(Answer { status: WAIT, body: json!({ "answer": "wait", "why": why }) })
        }
        Liveness::Held(reason) | Liveness::Stale(reason) => {
            refuse(tx, report, node, &Report::GoAhead, &reason)
        }
    }
}

/// The go-ahead.
fn go() -> Answer {
    Answer { status: 200, body: json!({ "answer": "go" }) }
}

/// A go-ahead that was given before, unless this site follows no orders: then what was allowed may have been overtaken in
/// the time that its database has forgotten, and the machine waits until somebody confirms.
fn confirmed(tx: &Tx<'_>) -> Result<Answer, StoreError> {
    let Some(why) = tx.view().suspended()? else { return Ok(go()) };
    let why = format!("this site follows no orders at the moment: {why}");
    Ok(Answer { status: WAIT, body: json!({ "answer": "wait", "why": why }) })
}

/// The machine lost power in the middle and booted the same attempt again.
fn take_up_again(
    tx: &mut Tx<'_>,
    report: ReportId,
    node: &NodeRow,
    row: &TaskRow,
) -> Result<Answer, StoreError> {
    let before = progress_of(tx, row)?;
    let boots = before.map_or(0, |progress| progress.boots) + 1;
    if boots < MAX_ATTEMPT_BOOTS {
        received(tx, report, node.id, Some(row), Report::GoAhead.kind(), "taken up again".into())?;
        store_progress(tx, row, before.map_or(0, |progress| progress.percent), boots)?;
        return Ok(Answer { status: 200, body: json!({ "answer": "resume" }) });
    }
    let error = format!("the attempt was booted {MAX_ATTEMPT_BOOTS} times and did not end");
    advance(tx, report, node, row, &Report::InstallFailed(error.clone()), NodeState::InstallFailed)?;
    Ok(Answer { status: 409, body: json!({ "answer": "stop", "why": error }) })
}

/// Takes a node, and its task with it, a step on.
fn advance(
    tx: &mut Tx<'_>,
    report: ReportId,
    node: &NodeRow,
    row: &TaskRow,
    it: &Report,
    to: NodeState,
) -> Result<Answer, StoreError> {
    let step = match lifecycle::node_step(node.state, to) {
        Ok(step) => step,
        Err(reason) => return refuse(tx, report, node, it, &reason),
    };
    received(tx, report, node.id, Some(row), it.kind(), it.detail())?;
    if step == Step::Duplicate {
        return Ok(ok(node));
    }
    let error = match it {
        Report::InstallFailed(error) => Some(error.clone()),
        Report::GoAhead | Report::InstallStarted | Report::Progress(_) | Report::InstallComplete => None,
    };
    let state = |state, cause: &str, error| State {
        state,
        cause: cause.to_string(),
        task: Some(row.id),
        attempt: Some(row.attempt),
        error,
        install_nonce: node.install_nonce,
    };
    let mut from = node.state;
    if let Step::Implied(between) = step {
        boot::set_state(tx, node.id, from, &state(between, "implied by a later report", None), true)?;
        from = between;
    }
    boot::set_state(tx, node.id, from, &state(to, "reported by the machine", error.clone()), false)?;
    let outcome = match to {
        NodeState::Installed => Some((TaskState::Completed, true, String::from("completed"))),
        NodeState::InstallFailed => Some((TaskState::Failed, false, error.unwrap_or_default())),
        NodeState::Discovered | NodeState::Installing | NodeState::Active => None,
    };
    if let Some((end, succeeded, detail)) = outcome {
        task::step(tx, row, end, "reported by the machine")?;
        tx.write(task_document::KIND, row.id.into(), |edit| {
            edit.set(&task_document::outcome(), &Outcome { succeeded, detail }, "");
        })?;
        if succeeded {
            note_progress(tx, row, 100)?;
        }
    }
    Ok(Answer { status: 200, body: json!({ "state": to }) })
}

fn ok(node: &NodeRow) -> Answer {
    Answer { status: 200, body: json!({ "state": node.state }) }
}

fn refuse(
    tx: &mut Tx<'_>,
    report: ReportId,
    node: &NodeRow,
    it: &Report,
    reason: &Reason,
) -> Result<Answer, StoreError> {
    tx.journal(Event::ReportRefused {
        report,
        node: node.id,
        kind: it.kind().to_string(),
        reason: reason.to_string(),
    })?;
    let body = json!({ "answer": "stop", "why": reason.as_str(), "state": node.state });
    Ok(Answer { status: 409, body })
}

fn received(
    tx: &mut Tx<'_>,
    report: ReportId,
    node: NodeId,
    row: Option<&TaskRow>,
    kind: &str,
    detail: String,
) -> Result<(), StoreError> {
    tx.journal(Event::ReportReceived {
        report,
        node,
        task: row.map(|row| row.id),
        attempt: row.map(|row| row.attempt),
        kind: kind.to_string(),
        detail,
    })
}

/// How far the current attempt has come; what an earlier one reported does not count.
fn progress_of(tx: &Tx<'_>, row: &TaskRow) -> Result<Option<ProgressRow>, StoreError> {
    Ok(tx.view().progress(row.id)?.filter(|progress| progress.attempt == row.attempt))
}

fn note_progress(tx: &mut Tx<'_>, row: &TaskRow, percent: u64) -> Result<(), StoreError> {
    let boots = progress_of(tx, row)?.map_or(0, |progress| progress.boots);
    store_progress(tx, row, percent, boots)
}

fn store_progress(tx: &mut Tx<'_>, row: &TaskRow, percent: u64, boots: u64) -> Result<(), StoreError> {
    tx.sql
        .prepare_cached(
            "INSERT OR REPLACE INTO progress (task, attempt, percent, boots, at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            row.id.as_bytes(),
            signed(row.attempt),
            signed(percent),
            signed(boots),
            signed(tx.given.now.0)
        ])?;
    Ok(())
}

fn answered_before(tx: &Tx<'_>, report: ReportId) -> Result<Option<Answer>, StoreError> {
    let found: Option<(u16, String)> = tx
        .sql
        .prepare_cached("SELECT status, answer FROM reports WHERE report = ?1")?
        .query_row([report.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(match found {
        Some((status, body)) => Some(Answer { status, body: serde_json::from_str(&body)? }),
        None => None,
    })
}

fn remember(tx: &Tx<'_>, report: ReportId, node: NodeId, answer: &Answer) -> Result<(), StoreError> {
    tx.sql
        .prepare_cached("INSERT INTO reports (report, node, at, status, answer) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            report.as_bytes(),
            node.as_bytes(),
            signed(tx.given.now.0),
            answer.status,
            answer.body.to_string()
        ])?;
    Ok(())
}
