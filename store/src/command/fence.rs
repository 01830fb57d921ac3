//! The fence of a move: until the former home of a machine can hold no order for its disk, its new home gets none.
//!
//! It opens when the former home has acknowledged that the machine is not its own and no attempt there is past its
//! first write; when every order that it can hold has expired; or when a named person breaks it.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use sync::{
    document::{
        Document, Value,
        claim::{self, Fence},
        site::{self, Effective},
        task::{self, Cancel},
    },
    id::{ClaimId, NodeId, Origin, SiteId, TaskId},
    ingress,
    journal::Event,
    policy::{
        Autonomy, Reason, TaskState,
        migration::{self, Former, Held},
    },
};

use super::{
    check_text,
    claim::{acting, both},
    refused, unknown,
};
use crate::{
    StoreError, Tx,
    view::{ClaimRow, TaskFilter, TaskRow},
};

/// Orders for a machine that a site may hold, as far as central knows.
pub(super) fn held(tx: &mut Tx<'_>, node: NodeId, site: SiteId) -> Result<Vec<Held>, StoreError> {
    let attempts = reach(tx, site)?.attempts;
    let filter = TaskFilter { node: Some(node), site: Some(site), ..TaskFilter::default() };
    let held = |row: TaskRow| {
        let order = row.order?;
        let used = row.consumed_by.is_some();
        let under_way = used && !row.state.is_final();
        // What central cancelled the site may not have heard of; what failed it may try again.
        let may_begin = match row.state {
            TaskState::Completed => false,
            TaskState::Failed => order.attempt < attempts,
            TaskState::Pending
            | TaskState::Ready
            | TaskState::Booting
            | TaskState::PendingApproval
            | TaskState::Approved
            | TaskState::Installing
            | TaskState::Rejected
            | TaskState::Cancelled
            | TaskState::Stale => true,
        };
        may_begin.then_some(Held { not_after: order.not_after, attempt: order.attempt, under_way })
    };
    Ok(tx.view().tasks(&filter)?.into_iter().filter_map(held).collect())
}

/// At central: withdraws the orders for a machine that other sites than its home were given and have not used.
pub(super) fn cancel_elsewhere(tx: &mut Tx<'_>, node: NodeId, home: SiteId) -> Result<(), StoreError> {
    let filter = TaskFilter { node: Some(node), ..TaskFilter::default() };
    for row in tx.view().tasks(&filter)? {
        if row.site == home || row.state.is_final() || row.cancelled || row.consumed_by.is_some() {
            continue;
        }
        let why = format!("the machine has moved to site {home}");
        tx.write(task::KIND, row.id.into(), |edit| {
            edit.set(&task::cancel(), &Cancel { cancelled: true }, &why);
        })?;
        let event = Event::TaskTransitioned {
            task: row.id,
            from: row.state.to_string(),
            to: TaskState::Cancelled.to_string(),
            cause: why,
        };
        tx.journal_for(row.site, event)?;
    }
    Ok(())
}

/// At central: a task came from a site. Where its machine is at home elsewhere by now it is withdrawn, and a fence that
/// waits for that site is looked at.
pub(crate) fn task_came(tx: &mut Tx<'_>, id: TaskId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    let found: Option<([u8; 16], [u8; 16], [u8; 16])> = tx
        .sql
        .prepare_cached(
            "SELECT view_tasks.node, view_tasks.site, home FROM view_tasks
                 JOIN view_nodes ON view_nodes.id = view_tasks.node
             WHERE view_tasks.id = ?1 AND home IS NOT NULL AND home != view_tasks.site",
        )?
        .query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((node, site, home)) = found else { return Ok(()) };
    let (node, site) = (NodeId(node), SiteId(site));
    cancel_elsewhere(tx, node, SiteId(home))?;
    for row in tx.view().claims_on(node)? {
        if row.is_fenced() && row.from == site {
            look(tx, &row)?;
        }
    }
    Ok(())
}

/// At central: puts the fence of a move that was just made. `held` are the orders of before.
pub(super) fn close(tx: &mut Tx<'_>, row: &ClaimRow, held: Vec<Held>) -> Result<(), StoreError> {
    set(tx, row, held)?;
    // Whoever has the machine back waits for himself no longer.
    for other in tx.view().claims_on(row.node)? {
        if other.id != row.id && other.is_fenced() && other.from == row.to {
            open(tx, &other, "the machine is at home there again", None)?;
        }
    }
    Ok(())
}

/// At central: looks whether a closed fence can open.
pub(super) fn look(tx: &mut Tx<'_>, row: &ClaimRow) -> Result<(), StoreError> {
    // It may have opened with an earlier one.
    let Some(row) = tx.view().claim(row.id)?.filter(ClaimRow::is_fenced) else { return Ok(()) };
    let held = held(tx, row.node, row.from)?;
    set(tx, &row, held)
}

fn set(tx: &mut Tx<'_>, row: &ClaimRow, orders: Vec<Held>) -> Result<(), StoreError> {
    let settings = tx.view().site(row.from)?;
    let (reached, acknowledged) = (was_reached(tx, row.from)?, has_acknowledged(tx, row)?);
    let Reach { autonomy, order_max_s, attempts } = reach(tx, row.from)?;
    let former = Former {
        name: settings.map_or_else(|| row.from.to_string(), |it| it.name),
        acknowledged,
        // Who was never connected has no order and no settings.
        autonomy: if reached { autonomy } else { Autonomy::ReadOnly },
        order_max: Duration::from_secs(order_max_s),
        attempts,
        orders: if reached { orders } else { vec![] },
    };
    let stands = match migration::fence(&former, tx.now()) {
        // Whoever had it before may install it as well: the new home knows of this fence alone.
        migration::Fence::Open(why) => match earlier(tx, row)? {
            None => migration::Fence::Open(why),
            Some(other) => {
                let why = other.fence.map(|fence| fence.reason).unwrap_or_default();
                migration::Fence::Closed(None, Reason::new(why))
            }
        },
        closed @ migration::Fence::Closed(..) => closed,
    };
    match stands {
        migration::Fence::Open(why) => open(tx, row, why.as_str(), None),
        migration::Fence::Closed(until, why) => {
            let fence = Fence { closed: true, until, reason: why.to_string(), broken_by: None };
            let same = row
                .fence
                .as_ref()
                .is_some_and(|it| it.closed && it.until == until && it.reason == fence.reason);
            if same { Ok(()) } else { write(tx, row, &fence, true) }
        }
    }
}

fn open(tx: &mut Tx<'_>, row: &ClaimRow, why: &str, broken_by: Option<String>) -> Result<(), StoreError> {
    let by_policy = broken_by.is_none();
    let fence = Fence { closed: false, until: None, reason: why.to_string(), broken_by: broken_by.clone() };
    write(tx, row, &fence, by_policy)?;
    let event = Event::FenceOpened { claim: row.id, node: row.node, reason: why.to_string(), broken_by };
    acting(tx, by_policy, |tx| both(tx, [row.from, row.to], &event))?;
    for later in tx.view().claims_on(row.node)? {
        if later.is_fenced() && later.home_epoch > row.home_epoch {
            look(tx, &later)?;
        }
    }
    Ok(())
}

/// A move of the same machine before this one whose fence is closed.
fn earlier(tx: &Tx<'_>, row: &ClaimRow) -> Result<Option<ClaimRow>, StoreError> {
    let all = tx.view().claims_on(row.node)?.into_iter();
    Ok(all.filter(|it| it.is_fenced() && it.home_epoch < row.home_epoch).min_by_key(|it| it.home_epoch))
}

fn write(tx: &mut Tx<'_>, row: &ClaimRow, fence: &Fence, by_policy: bool) -> Result<(), StoreError> {
    acting(tx, by_policy, |tx| {
        tx.write(claim::KIND, row.id.into(), |edit| {
            edit.set(&claim::fence(), fence, &fence.reason);
        })
    })
}

/// Whether the site was ever connected.
fn was_reached(tx: &Tx<'_>, site: SiteId) -> Result<bool, StoreError> {
    Ok(tx
        .sql
        .prepare_cached("SELECT 1 FROM peers WHERE peer = ?1 AND (life IS NOT NULL OR heard_at IS NOT NULL)")?
        .exists([Origin::Site(site).to_string()])?)
}

/// Whether the former home has told all that it did while it did not know that the machine left it.
fn has_acknowledged(tx: &Tx<'_>, row: &ClaimRow) -> Result<bool, StoreError> {
    Ok(tx
        .sql
        .prepare_cached(
            "SELECT 1 FROM scope JOIN documents ON documents.doc = scope.doc JOIN peers ON peers.peer = scope.peer
             WHERE scope.peer = ?1 AND id = ?2 AND inside = 0 AND gone <= known",
        )?
        .exists(params![Origin::Site(row.from).to_string(), row.node.as_bytes()])?)
}

/// The most that a site may do by itself.
struct Reach {
    autonomy: Autonomy,
    order_max_s: u64,
    attempts: u64,
}

/// The most that a site may do by itself under any settings from those on that it is known to follow.
fn reach(tx: &mut Tx<'_>, site: SiteId) -> Result<Reach, StoreError> {
    let follows: Option<i64> = tx
        .sql
        .prepare_cached("SELECT epoch FROM peers WHERE peer = ?1")?
        .query_row([Origin::Site(site).to_string()], |row| row.get(0))
        .optional()?;
    let follows = follows.unwrap_or(0).unsigned_abs();
    let given = tx.with_document(site::KIND, site.into(), every_settings)?.unwrap_or_default();
    let from = given.iter().map(|it| it.epoch).filter(|epoch| *epoch <= follows).max();
    // Whoever has heard of no settings follows the defaults.
    let first = if from.is_none() { Some(Effective::default()) } else { None };
    let from = from.unwrap_or(0);
    let reach = Reach { autonomy: Autonomy::ReadOnly, order_max_s: 0, attempts: 0 };
    let may = given.into_iter().filter(|it| it.epoch >= from).chain(first);
    Ok(may.fold(reach, |most, it| Reach {
        autonomy: most.autonomy.max(it.autonomy),
        order_max_s: most.order_max_s.max(it.order_max_s),
        attempts: most.attempts.max(it.max_install_attempts()),
    }))
}

/// All settings that a site ever had, as its document has kept them.
fn every_settings(document: &Document) -> Vec<Effective> {
    let mut all = Vec::new();
    for change in document.automerge().get_changes(&[]) {
        let writes = ingress::parse(change.raw_bytes())
            .and_then(|parsed| ingress::registers(document.kind(), document.id(), &parsed))
            .unwrap_or_default();
        let effective = writes.iter().filter(|write| write.path() == "effective");
        all.extend(effective.filter_map(|write| Effective::from_fields(&write.fields).ok()));
    }
    all
}

/// A person at central breaks a fence, because the former home will never say anything again. He types the name of the
/// machine: its hostname, or its first address where it has none.
///
/// # Errors
/// `Unknown` claim; `Refused` when there is no closed fence, or the name is another one.
pub fn break_fence(tx: &mut Tx<'_>, id: ClaimId, typed: &str, why: &str) -> Result<ClaimRow, StoreError> {
    check_text("why", why)?;
    if tx.origin() != Origin::Central {
        return refused("a person at central breaks a fence");
    }
    super::gives_orders(tx)?;
    let row = tx.view().claim(id)?.ok_or_else(|| unknown("claim", id))?;
    if !row.is_fenced() {
        return refused(format!("claim {id} is {} and no fence of it is closed", row.state));
    }
    if let Some(first) = earlier(tx, &row)? {
        return refused(format!(
            "the fence of claim {} on the same machine is closed: break that one first",
            first.id
        ));
    }
    let node = tx.view().node(row.node)?.ok_or_else(|| unknown("node", row.node))?;
    let name = match (node.hostname.as_str(), node.macs.first()) {
        ("", Some(mac)) => mac.to_string(),
        ("", None) => node.id.to_string(),
        (hostname, _) => hostname.to_string(),
    };
    if typed != name {
        return refused(format!("the machine is `{name}`, not `{typed}`: type its name to break its fence"));
    }
    let by = tx.by().to_string();
    let said = if why.is_empty() { "a person broke it" } else { why };
    open(tx, &row, said, Some(by))?;
    tx.view().claim(id)?.ok_or_else(|| unknown("claim", id))
}
