//! What people decide: those at central about claims, one or many; those at a site what it consents to.

use serde::Serialize;
use sync::{
    document::claim::{self, Consent},
    id::{ClaimId, Origin, SiteId},
    journal::Event,
    policy::{Action, ClaimState},
};

use super::{
    both, end,
    home::move_home,
    settle,
    settle::{obstacle, stranger},
};
use crate::{
    StoreError, Tx,
    command::{check_text, demand, gives_orders, refused, unknown},
    view::{ClaimFilter, ClaimRow},
};

/// At central: whether a person may decide a claim now, and what it is.
fn decidable(tx: &Tx<'_>, id: ClaimId, why: &str) -> Result<ClaimRow, StoreError> {
    check_text("why", why)?;
    if tx.origin() != Origin::Central {
        return refused("central decides about claims; a site gives or withholds its consent");
    }
    gives_orders(tx)?;
    tx.view().claim(id)?.ok_or_else(|| unknown("claim", id))
}

fn approvable(tx: &Tx<'_>, row: &ClaimRow) -> Result<(), StoreError> {
    if row.state == ClaimState::Approved {
        return refused(format!("claim {} is approved already", row.id));
    }
    if let Some(why) = obstacle(tx, row)?.or(stranger(tx, row)?) {
        return refused(format!("claim {} cannot be approved: {why}", row.id));
    }
    Ok(())
}

fn rejectable(row: &ClaimRow) -> Result<(), StoreError> {
    match row.state {
        ClaimState::Open => Ok(()),
        ClaimState::Approved | ClaimState::Rejected | ClaimState::Expired | ClaimState::Withdrawn => {
            refused(format!("claim {} is {}, so there is nothing to reject", row.id, row.state))
        }
    }
}

/// A person at central approves a claim, also one that ended without an approval.
///
/// # Errors
/// `Unknown` claim; `Refused` when the machine has moved since or is retired; `Recovering` while central is in recovery.
pub fn approve(tx: &mut Tx<'_>, id: ClaimId, why: &str) -> Result<ClaimRow, StoreError> {
    let row = decidable(tx, id, why)?;
    approvable(tx, &row)?;
    let by = tx.by().to_string();
    let row = ClaimRow { automatic: false, ..row };
    move_home(tx, &row, Some(by), why)?;
    tx.view().claim(id)?.ok_or_else(|| unknown("claim", id))
}

/// A person at central rejects a claim.
///
/// # Errors
/// `Unknown` claim; `Refused` when it is not open; `Recovering` while central is in recovery.
pub fn reject(tx: &mut Tx<'_>, id: ClaimId, why: &str) -> Result<ClaimRow, StoreError> {
    let row = decidable(tx, id, why)?;
    rejectable(&row)?;
    let by = tx.by().to_string();
    end(tx, &row, ClaimState::Rejected, Some(by), why)?;
    tx.view().claim(id)?.ok_or_else(|| unknown("claim", id))
}

/// What becomes, or would become, of one of many claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decided {
    /// The claim, as it is afterwards; in a preview as it is.
    pub claim: ClaimRow,
    /// Whether it is decided so.
    pub decided: bool,
    /// Why not.
    pub why_not: Option<String>,
}

/// A person at central decides many claims alike, for an office that moves. A preview changes nothing.
///
/// # Errors
/// `Recovering` while central is in recovery. What cannot be decided is told, and the others are.
pub fn decide(
    tx: &mut Tx<'_>,
    filter: &ClaimFilter,
    approves: bool,
    why: &str,
    preview: bool,
) -> Result<Vec<Decided>, StoreError> {
    let mut told = Vec::new();
    for row in tx.view().claims(filter)? {
        let row = decidable(tx, row.id, why)?;
        let may = if approves { approvable(tx, &row) } else { rejectable(&row) };
        let why_not = match may {
            Ok(()) => None,
            Err(StoreError::Refused(reason)) => Some(reason.to_string()),
            Err(error) => return Err(error),
        };
        let claim = match (&why_not, preview, approves) {
            (None, false, true) => approve(tx, row.id, why)?,
            (None, false, false) => reject(tx, row.id, why)?,
            (Some(_), _, _) | (None, true, _) => row,
        };
        told.push(Decided { claim, decided: why_not.is_none(), why_not });
    }
    Ok(told)
}

/// A person at one side of a claim gives or withholds that side's consent, also while the site is cut off. Central
/// writes it down for the people of `asking`, who may not do so by themselves.
///
/// # Errors
/// `Unknown` claim; `Refused` when it has ended, is none of the site's, or the site may not consent by itself.
pub(in crate::command) fn consent(
    tx: &mut Tx<'_>,
    id: ClaimId,
    asking: Option<SiteId>,
    consents: bool,
    why: &str,
) -> Result<ClaimRow, StoreError> {
    check_text("why", why)?;
    let side = match (tx.origin(), asking) {
        (Origin::Site(here), _) => here,
        (Origin::Central, Some(site)) => site,
        (Origin::Central, None) => {
            return refused("the sites consent to a claim; central approves or rejects it");
        }
    };
    let row = tx.view().claim(id)?.ok_or_else(|| unknown("claim", id))?;
    check_consent(&row, side)?;
    if tx.origin() != Origin::Central {
        demand(tx, Action::ConsentToClaim)?;
    }
    tx.write(claim::KIND, id.into(), |edit| {
        edit.set(&claim::consent(side), &Consent { consents }, why);
    })?;
    let event = Event::ClaimConsented { claim: id, node: row.node, side, consents, reason: why.to_string() };
    match tx.origin() {
        Origin::Site(_) => tx.journal(event)?,
        Origin::Central => {
            both(tx, [row.from, row.to], &event)?;
            settle(tx, id)?;
        }
    }
    tx.view().claim(id)?.ok_or_else(|| unknown("claim", id))
}

/// Whether the people of a site have something to say to a claim.
pub(in crate::command) fn check_consent(row: &ClaimRow, side: SiteId) -> Result<(), StoreError> {
    if row.to != side && row.from != side {
        return refused(format!("claim {} is between two other sites", row.id));
    }
    if row.state != ClaimState::Open {
        return refused(format!("claim {} is {}, so there is nothing to consent to", row.id, row.state));
    }
    Ok(())
}
