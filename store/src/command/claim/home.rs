//! The moves: a machine gets another home, and the former one a fence.

use sync::{
    document::{
        claim::{Decision, Opened},
        contested,
        node::{self, Home},
    },
    id::{ClaimId, NodeId, Origin},
    journal::Event,
    policy::{ClaimState, Wanted, migration::Held},
};

use super::{
    acting, both, decision,
    open::{evidence_of, open},
    settle, write_decision,
};
use crate::{
    StoreError, Tx,
    command::{conflict, fence},
    view::ClaimRow,
};

/// Gives a machine its new home: with the decision, the fence, and the end of what its former sites were to do with it.
pub(super) fn move_home(
    tx: &mut Tx<'_>,
    row: &ClaimRow,
    decided_by: Option<String>,
    why: &str,
) -> Result<(), StoreError> {
    let by_policy = decided_by.is_none();
    let held = fence::held(tx, row.node, row.from)?;
    // Both sites hear of the decision before the machine leaves the one and comes to the other.
    let decision =
        Decision { reason: why.to_string(), ..decision(tx, row, ClaimState::Approved, decided_by)? };
    write_decision(tx, row, &decision, by_policy)?;
    give(tx, row, held, by_policy, why)
}

/// The new home, the end of what the former ones were to do, and the fence; `held` are the orders of before.
pub(super) fn give(
    tx: &mut Tx<'_>,
    row: &ClaimRow,
    held: Vec<Held>,
    by_policy: bool,
    why: &str,
) -> Result<(), StoreError> {
    let home_epoch = row.home_epoch + 1;
    acting(tx, by_policy, |tx| {
        let home = Home { home_site: Some(row.to), home_epoch, claim: Some(row.id.to_string()) };
        tx.write(node::KIND, row.node.into(), |edit| {
            edit.set(&node::home(), &home, why);
        })?;
        fence::cancel_elsewhere(tx, row.node, row.to)
    })?;
    let event = Event::HomeMoved { node: row.node, from: row.from, to: row.to, home_epoch, claim: row.id };
    acting(tx, by_policy, |tx| both(tx, [row.from, row.to], &event))?;
    fence::close(tx, row, held)?;
    // What is contested of it is settled as its new home has it.
    conflict::settle(tx, node::KIND, row.node.into())?;
    // What others wished of the machine was about where it was.
    for other in tx.view().claims_on(row.node)? {
        if other.id != row.id && other.state == ClaimState::Open {
            settle(tx, other.id)?;
        }
    }
    Ok(())
}

/// At central: an approval that came back to a restored central may have come without the move.
pub(super) fn finish(tx: &mut Tx<'_>, row: &ClaimRow) -> Result<(), StoreError> {
    let Some(node) = tx.view().node(row.node)? else { return Ok(()) };
    if (node.home, node.home_epoch) != (Some(row.from), row.home_epoch) || node.wanted == Wanted::Retired {
        return Ok(());
    }
    let held = fence::held(tx, row.node, row.from)?;
    let why = "approved before central's database went back in time";
    give(tx, row, held, true, why)
}

/// At central: a machine that two lives of central gave different homes, the one in ignorance of the other, has one again.
/// It stays where it is by what was written last, as after an approved move: the other one is fenced like any former home.
pub(crate) fn one_home(tx: &mut Tx<'_>, node: NodeId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    let homes = tx.with_document(node::KIND, node.into(), |document| {
        let homes = contested::read(document, &node::home());
        let is = homes.newest()?.value.home_site?;
        let others = homes.sides().iter().filter(|side| side.value.home_site.is_some_and(|was| was != is));
        let was = others.max_by_key(|side| (side.written.at, side.op()))?.value.home_site?;
        let epoch = homes.sides().iter().map(|side| side.value.home_epoch).max()?;
        Some((was, is, epoch))
    })?;
    let Some((was, is, epoch)) = homes.flatten() else { return Ok(()) };
    let Some(node) = tx.view().node(node)? else { return Ok(()) };
    let id = ClaimId::of(node.id, is, epoch);
    if tx.view().claim(id)?.is_none() {
        let (to_site, from_site, first_seen) = (is, was, tx.now());
        let opened = Opened { node: node.id, to_site, from_site, home_epoch: epoch, first_seen };
        open(tx, &opened, Some(&evidence_of(&node)))?;
    }
    let Some(row) = tx.view().claim(id)? else { return Ok(()) };
    let why = "central had forgotten that it was at home elsewhere when it gave it this home";
    match row.state {
        ClaimState::Approved => {
            let held = fence::held(tx, row.node, row.from)?;
            give(tx, &row, held, true, why)
        }
        ClaimState::Open | ClaimState::Rejected | ClaimState::Expired | ClaimState::Withdrawn => {
            move_home(tx, &row, None, why)
        }
    }
}
