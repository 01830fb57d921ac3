//! Machines that are one, at central: what their hardware shows, and what a person says.

use sync::{
    document::node::{self, Alias},
    id::{NodeId, Origin},
    policy::twin::{self, Twin},
};

use super::{check_text, refused, register_set, unknown};
use crate::{StoreError, Tx, view::NodeRow};

/// At central: takes a machine that its hardware shows to be another one for that. In recovery it waits.
pub(crate) fn settle(tx: &mut Tx<'_>, id: NodeId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    for other in tx.view().twins_of(id)? {
        let Some(row) = tx.view().node(id)?.filter(|row| row.alias_of.is_none()) else { return Ok(()) };
        let (a, b) = (tx.view().look(&row)?, tx.view().look(&other)?);
        if let Twin::Same(reason) = twin::compare(&a, &b) {
            // Whoever is at work, or was there before, goes on under its name.
            let rank = |row: &NodeRow, has_task: bool| {
                (!has_task, row.install_nonce.is_none(), row.home.is_none(), row.id)
            };
            let (main, second) = if rank(&row, a.has_task) <= rank(&other, b.has_task) {
                (&row, &other)
            } else {
                (&other, &row)
            };
            write(tx, second, Some(main.id), reason.as_str())?;
        }
    }
    Ok(())
}

/// At central: a person says that a machine is another interface of `of`, or, with none, a machine of its own.
///
/// # Errors
/// `Unknown` node; `Refused` when both are the same document, `of` is itself another's interface, or the machine has a
/// task that has not ended.
pub fn say(tx: &mut Tx<'_>, id: NodeId, of: Option<NodeId>, why: &str) -> Result<NodeRow, StoreError> {
    check_text("why", why)?;
    if tx.origin() != Origin::Central {
        return refused("central says which machines are one");
    }
    let row = tx.view().node(id)?.ok_or_else(|| unknown("node", id))?;
    if let Some(of) = of {
        let main = tx.view().node(of)?.ok_or_else(|| unknown("node", of))?;
        if of == id {
            return refused(format!("node {id} cannot be another interface of itself"));
        }
        if let Some(further) = main.alias_of {
            return refused(format!(
                "node {of} is itself another interface of node {further}; name that one"
            ));
        }
        if let Some(task) = tx.view().open_task(id, None)? {
            return refused(format!("node {id} has task {}, which is {}; end it first", task.id, task.state));
        }
        if let Some(second) = tx.view().aliases_of(id)?.first() {
            return refused(format!("node {second} is another interface of node {id}; say that of it first"));
        }
    }
    write(tx, &row, of, why)?;
    tx.view().node(id)?.ok_or_else(|| unknown("node", id))
}

fn write(tx: &mut Tx<'_>, row: &NodeRow, of: Option<NodeId>, why: &str) -> Result<(), StoreError> {
    tx.write(node::KIND, row.id.into(), |edit| {
        edit.set(&node::alias(), &Alias { node: of }, why);
    })?;
    let value = of.map_or_else(|| "a machine of its own".to_string(), |of| of.to_string());
    tx.journal_about(row.home, register_set(node::KIND, row.id, "alias_of", value))
}
