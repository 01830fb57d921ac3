//! Claims: a machine boots at one site and is at home at another.
//!
//! A site opens a claim in the transaction of its boot answer, and gives or withholds its consent. Central settles each by
//! `policy::migration` in the transaction that brought what decides it, or lays it before a person; an approval moves the
//! home and closes the fence in one transaction. Nothing is settled while central is in recovery: what it has forgotten
//! may come back. `fence` in this folder says when the new home may install.
//!
//! Deliberately absent: rules that want several approvers.

mod decide;
mod home;
mod open;
mod settle;

use sync::{
    document::claim::{self, Decision},
    id::SiteId,
    journal::Event,
    policy::ClaimState,
};

pub use self::decide::{Decided, approve, decide, reject};
pub(super) use self::decide::{check_consent, consent};
pub use self::settle::tend;
pub(crate) use self::{
    home::one_home,
    open::{boots, boots_at_home, from_observations, tells},
    settle::{recovered, settle, settle_about, settle_of},
};
use crate::{StoreError, Tx, view::ClaimRow};

/// Who decides where no person does.
const POLICY: &str = "policy";

/// Central tells both sites.
pub(in crate::command) fn both(tx: &mut Tx<'_>, sites: [SiteId; 2], event: &Event) -> Result<(), StoreError> {
    sites.into_iter().try_for_each(|site| tx.journal_for(site, event.clone()))
}

fn decision(
    tx: &Tx<'_>,
    row: &ClaimRow,
    state: ClaimState,
    decided_by: Option<String>,
) -> Result<Decision, StoreError> {
    let name = |site| -> Result<String, StoreError> {
        Ok(tx.view().site(site)?.map_or_else(|| site.to_string(), |row| row.name))
    };
    Ok(Decision {
        state,
        round: row.round,
        expires_at: row.expires_at.unwrap_or(tx.now()),
        policy_matched: row.policy_matched.clone(),
        auto_approve_eligible: row.auto_approve_eligible,
        automatic: row.automatic,
        was_rejected: row.was_rejected || state == ClaimState::Rejected,
        decided_by,
        reason: row.reason.clone(),
        to_name: name(row.to)?,
        from_name: name(row.from)?,
    })
}

/// Writes a decision and tells both sites; `by_policy`: no person stands in it.
fn write_decision(
    tx: &mut Tx<'_>,
    row: &ClaimRow,
    decision: &Decision,
    by_policy: bool,
) -> Result<(), StoreError> {
    acting(tx, by_policy, |tx| {
        tx.write(claim::KIND, row.id.into(), |edit| {
            edit.set(&claim::decision(), decision, &decision.reason);
        })?;
        let event = Event::ClaimDecided {
            claim: row.id,
            node: row.node,
            from: row.from,
            to: row.to,
            state: decision.state.to_string(),
            policy_matched: decision.policy_matched.clone(),
            decided_by: decision.decided_by.clone(),
            reason: decision.reason.clone(),
        };
        both(tx, [row.from, row.to], &event)
    })
}

/// Does something in the name of policy, or of whoever acts.
pub(in crate::command) fn acting<T>(
    tx: &mut Tx<'_>,
    by_policy: bool,
    act: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    if !by_policy {
        return act(tx);
    }
    let acts = std::mem::replace(&mut tx.author()?.by, POLICY.to_string());
    let done = act(tx);
    tx.author()?.by = acts;
    done
}

fn end(
    tx: &mut Tx<'_>,
    row: &ClaimRow,
    state: ClaimState,
    decided_by: Option<String>,
    why: &str,
) -> Result<(), StoreError> {
    let by_policy = decided_by.is_none();
    let decision =
        Decision { automatic: false, reason: why.to_string(), ..decision(tx, row, state, decided_by)? };
    write_decision(tx, row, &decision, by_policy)
}
