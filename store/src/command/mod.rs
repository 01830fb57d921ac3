//! What people and machines ask for: read, ask policy, change, all in one transaction.
//!
//! `settings`, `site`, `group`, `enrolment`, `certificate`, `workflow`, `node`, `task`, `claim` and `fence` are what people do; `boot` and `report` what machines do; `content`
//! is what a site fetched; `quarantine` and `proposal` are what people decide of what a site was refused, `conflict` of what writers disagree about, `twin` of machines that may be one. `ask` is the door of
//! what people may ask for at a site too: it is done, or becomes a proposal (`paper`) that central answers (`answer`). Each command writes the documents and the journal entry together. Whether the
//! caller may ask at all is decided before, at the door through which it came; whether this *site* may do
//! it is asked here, in the transaction, because central will ask the same of what the site then delivers.

pub mod settings;
pub mod site;
pub mod group;
pub mod enrolment;
pub mod certificate;
pub mod authority;
pub mod workflow;
pub mod content;
pub mod node;
pub mod task;
pub mod boot;
pub mod report;
pub mod quarantine;
pub mod proposal;
pub mod conflict;
pub mod twin;
pub mod ask;
mod paper;
pub(crate) mod answer;
pub mod claim;
pub mod fence;

use sync::{
    document::Kind,
    id::{DocumentId, NodeId, Origin, SiteId},
    journal::Event,
    policy::{Action, Autonomy, Reason, Verdict, autonomy},
};

use crate::{StoreError, Tx};

pub(crate) fn refused<T>(why: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::Refused(Reason::new(why)))
}

/// Peers take no longer text in a register, so none is written.
pub(crate) fn check_text(what: &str, text: &str) -> Result<(), StoreError> {
    let most = sync::document::register::MAX_SCALAR;
    if text.len() > most {
        return refused(format!("{what} of {} bytes is too long: at most {most} are kept", text.len()));
    }
    Ok(())
}

fn unknown(what: &str, id: impl std::fmt::Display) -> StoreError {
    StoreError::Unknown(format!("{what} {id}"))
}

/// Asks whether this replica may do it by itself now: central may, a site as its autonomy permits.
fn verdict(tx: &Tx<'_>, action: Action) -> Result<Verdict, StoreError> {
    let Origin::Site(site) = tx.origin() else { return Ok(Verdict::Allow) };
    let autonomy = tx.view().site(site)?.map(|row| row.effective.autonomy);
    let autonomy: Autonomy = autonomy.unwrap_or(sync::document::site::Effective::default().autonomy);
    Ok(autonomy::permits(autonomy, action))
}

/// Refuses with the reason what this replica may not do by itself. Doors of people go through [`ask`], which queues
/// it instead.
fn demand(tx: &Tx<'_>, action: Action) -> Result<(), StoreError> {
    match verdict(tx, action)? {
        Verdict::Allow => Ok(()),
        Verdict::Queue(reason) | Verdict::Refuse(reason) => Err(StoreError::Refused(reason)),
    }
}

/// Refuses what would make an order live while central is in recovery.
pub(crate) fn gives_orders(tx: &Tx<'_>) -> Result<(), StoreError> {
    match (tx.origin(), tx.view().suspended()?) {
        (Origin::Central, Some(why)) => Err(StoreError::Recovering(Reason::new(why))),
        // A site holds its own orders like all others, by `policy::order`.
        (Origin::Central, None) | (Origin::Site(_), _) => Ok(()),
    }
}

/// At a site that a machine only visits: where it is at home. What is true of it and wanted of it is
/// written there.
fn home_elsewhere(tx: &Tx<'_>, node: NodeId) -> Result<Option<SiteId>, StoreError> {
    let Origin::Site(here) = tx.origin() else { return Ok(None) };
    let Some(row) = tx.view().node(node)? else { return Ok(None) };
    // One that this site took for its own is its own until it hears otherwise in the document.
    if row.home.is_none() {
        return Ok(None);
    }
    Ok(tx.view().elsewhere(node, Some(&row), here)?.map(|away| away.home))
}

pub(crate) fn register_set(
    kind: Kind,
    document: impl Into<DocumentId>,
    path: &str,
    value: impl ToString,
) -> Event {
    Event::RegisterSet {
        kind: kind.to_string(),
        document: document.into(),
        path: path.to_string(),
        value: value.to_string(),
    }
}

impl Tx<'_> {
    fn new_id(&mut self) -> Result<DocumentId, StoreError> {
        Ok(self.author()?.entropy.document_id())
    }
}
