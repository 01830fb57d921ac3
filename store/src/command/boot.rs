//! What a site notes when it has answered a booting machine.

use rusqlite::params;
use sync::{
    document::node::{self, Evidence, Observed, State},
    id::{MacAddr, NodeId, Origin, TaskId},
    journal::Event,
    policy::{Action, NodeState, TaskState, Verdict},
};

use super::{ask, claim, home_elsewhere, node::settle_home, task, verdict};
use crate::{StoreError, Tx, log::signed};

/// Unknown machines that are remembered at most. One noisy host that makes up addresses fills neither
/// the journal nor the disk.
pub const MAX_CANDIDATES: i64 = 256;

/// Machines that a site makes nodes because they booted, and that never registered, at most: booting proves
/// no more than an address.
pub const MAX_UNREGISTERED: i64 = 256;

/// A boot answer, in words, with what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The boot interface.
    pub mac: MacAddr,
    /// The answer, for people.
    pub answer: String,
    /// Why.
    pub reason: String,
    /// The machine becomes a node of this site, or central is asked to make it one.
    pub adopt: bool,
    /// The boot script of this task was given.
    pub booting: Option<TaskId>,
    /// The machine was sent to its own disk.
    pub local_disk: bool,
    /// The machine is at home elsewhere, and this site claims it.
    pub claims: bool,
}

/// Notes an answer. The same answer again is counted and not journalled.
///
/// Returns the node, if the machine is one now.
pub fn answered(tx: &mut Tx<'_>, it: &Answered) -> Result<Option<NodeId>, StoreError> {
    let mut known = tx.view().node_by_mac(it.mac)?;
    // The settings may have changed since the answer was decided.
    let may_adopt = verdict(tx, Action::Adopt)?;
    if known.is_none() && it.adopt && may_adopt == Verdict::Allow && unregistered(tx)? < MAX_UNREGISTERED {
        adopt(tx, it.mac, "seen booting")?;
        known = tx.view().node_by_mac(it.mac)?;
    }
    let before = tx.view().boot(it.mac)?;
    let repeated =
        before.as_ref().is_some_and(|boot| (&boot.answer, &boot.reason) == (&it.answer, &it.reason));
    if before.is_none() && known.is_none() {
        let candidates: i64 = tx.sql.query_row(
            "SELECT count(*) FROM boots WHERE mac NOT IN (SELECT mac FROM view_macs)",
            [],
            |row| row.get(0),
        )?;
        if candidates >= MAX_CANDIDATES {
            return Ok(None);
        }
    }
    let now = signed(tx.given.now.0);
    tx.sql
        .prepare_cached(
            "INSERT INTO boots (mac, answer, reason, first_at, last_at, count) VALUES (?1, ?2, ?3, ?4, ?4, 1)
             ON CONFLICT (mac) DO UPDATE SET answer = ?2, reason = ?3, last_at = ?4,
                 first_at = CASE WHEN ?5 THEN first_at ELSE ?4 END, count = CASE WHEN ?5 THEN count + 1 ELSE 1 END",
        )?
        .execute(params![it.mac.0, it.answer, it.reason, now, repeated])?;
    if !repeated {
        let event = Event::BootAnswered { mac: it.mac, answer: it.answer.clone(), reason: it.reason.clone() };
        tx.journal(event)?;
        if let Verdict::Queue(reason) = may_adopt
            && it.adopt
            && known.is_none()
        {
            ask::ask_to_adopt(tx, it.mac, &reason)?;
        }
    }
    if it.claims {
        claim::boots(tx, it.mac)?;
    }
    let Some(node) = known else { return Ok(None) };
    claim::boots_at_home(tx, &node)?;
    if let Some(id) = it.booting
        && let Some(row) = tx.view().task(id)?
        && let TaskState::Ready | TaskState::Approved = row.state
    {
        task::step(tx, &row, TaskState::Booting, "the machine was given the boot script")?;
    }
    if it.local_disk && node.state == NodeState::Installed && home_elsewhere(tx, node.id)?.is_none() {
        let state = State {
            state: NodeState::Active,
            cause: "booted its own disk".into(),
            task: node.task,
            attempt: node.attempt,
            error: None,
            install_nonce: node.install_nonce,
        };
        set_state(tx, node.id, node.state, &state, false)?;
    }
    Ok(Some(node.id))
}

/// Machines that were seen booting and never said what they are.
fn unregistered(tx: &Tx<'_>) -> Result<i64, StoreError> {
    Ok(tx
        .sql
        .prepare_cached(
            "SELECT count(*) FROM view_nodes WHERE json_extract(body, '$.evidence') = '{}'
             AND json_array_length(body, '$.observed_by') > 0",
        )?
        .query_row([], |row| row.get(0))?)
}

/// Makes an unknown machine a node. Central gives it this site as its home when it hears of it.
pub(crate) fn adopt(tx: &mut Tx<'_>, mac: MacAddr, cause: &str) -> Result<NodeId, StoreError> {
    let id = NodeId::of(mac);
    let first_seen = tx.now();
    let origin = tx.origin();
    let state = State {
        state: NodeState::Discovered,
        cause: cause.into(),
        task: None,
        attempt: None,
        error: None,
        install_nonce: None,
    };
    tx.write(node::KIND, id.into(), |edit| {
        edit.set(&node::mac(mac), &Evidence { value: mac.to_string() }, cause);
        if let Origin::Site(site) = origin {
            edit.set(&node::observed(site), &Observed { first_seen, asked_again: None }, cause);
        }
        edit.set(&node::state(), &state, cause);
    })?;
    tx.journal(Event::NodeDiscovered { node: id, mac })?;
    settle_home(tx, id)?;
    Ok(id)
}

/// Writes a fact about a node and journals it. A site that the machine only visits journals it alone.
pub(crate) fn set_state(
    tx: &mut Tx<'_>,
    node: NodeId,
    from: NodeState,
    state: &State,
    implied: bool,
) -> Result<(), StoreError> {
    if home_elsewhere(tx, node)?.is_none() {
        tx.write(node::KIND, node.into(), |edit| {
            edit.set(&node::state(), state, &state.cause);
        })?;
    }
    tx.journal(Event::NodeTransitioned {
        node,
        from: from.to_string(),
        to: state.state.to_string(),
        cause: state.cause.clone(),
        implied,
    })
}
