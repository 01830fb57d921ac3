//! What central makes of claims by what is known now, as far as policy may; the rest is laid before a person.

use sync::{
    document::{
        claim::{self, Decision},
        contested,
    },
    id::{ClaimId, NodeId, Origin, SiteId},
    policy::{
        ClaimState, MigrationConsent, MigrationPolicy, Wanted,
        migration::{self, Case, MAX_ROUNDS, Party},
    },
};

use super::{
    POLICY, decision, end, from_observations,
    home::{finish, move_home},
    one_home, write_decision,
};
use crate::{
    StoreError, Tx,
    command::fence,
    view::{ClaimFilter, ClaimRow, NodeRow},
};

/// At central: settles a claim by what is known now, as far as policy may.
pub(crate) fn settle(tx: &mut Tx<'_>, id: ClaimId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    let Some(row) = tx.view().claim(id)? else { return Ok(()) };
    if row.state == ClaimState::Approved {
        return finish(tx, &row);
    }
    match open_round(tx, row)? {
        Some(row) => review(tx, row),
        None => Ok(()),
    }
}

/// The round that stands open now: one that is about nothing any more is ended, and one that was asked for begins.
fn open_round(tx: &mut Tx<'_>, mut row: ClaimRow) -> Result<Option<ClaimRow>, StoreError> {
    let ends_because = obstacle(tx, &row)?;
    if row.state == ClaimState::Open {
        let ends_because = ends_because.or_else(|| {
            (row.seen_at_home == Some(row.round)).then(|| "the machine booted at home again".into())
        });
        let Some(why) = ends_because else { return Ok(Some(row)) };
        end(tx, &row, ClaimState::Withdrawn, None, &why)?;
        return Ok(None);
    }
    if row.asked_again != Some(row.round) || row.round >= MAX_ROUNDS || ends_because.is_some() {
        return Ok(None);
    }
    row.round += 1;
    row.state = ClaimState::Open;
    row.known_at_central = false;
    Ok(Some(row))
}

/// Moves the machine where the policies of both sites allow it, and otherwise says why a person decides, and until when.
fn review(tx: &mut Tx<'_>, mut row: ClaimRow) -> Result<(), StoreError> {
    let (to, from) = (party(tx, row.to, row.to_said)?, party(tx, row.from, row.from_said)?);
    let case = Case { to, from, moved_lately: moved_lately(tx, row.node)?, was_rejected: row.was_rejected };
    let review = migration::review(&case);
    let strange = stranger(tx, &row)?;
    row.policy_matched = review.matched.clone();
    row.auto_approve_eligible = review.eligible;
    let Some(waits) = strange.or(review.waits.map(|why| why.to_string())) else {
        row.automatic = review.automatic;
        let why = format!("approved by {}", row.policy_matched.as_deref().unwrap_or(POLICY));
        return move_home(tx, &row, None, &why);
    };
    let expires_at = match row.expires_at {
        Some(expires_at) if row.known_at_central => expires_at,
        Some(_) | None => {
            let ttl = tx.view().site(row.to)?.map(|site| site.effective.claim_ttl_s);
            tx.now().after(ttl.map_or(migration::CLAIM_TTL, std::time::Duration::from_secs))
        }
    };
    let decision = Decision {
        automatic: false,
        expires_at,
        reason: waits,
        ..decision(tx, &row, ClaimState::Open, None)?
    };
    let known = tx.with_document(claim::KIND, row.id.into(), |document| {
        contested::read(document, &claim::decision()).settled().map(|side| side.value.clone())
    })?;
    if known.flatten().as_ref() == Some(&decision) {
        return Ok(());
    }
    write_decision(tx, &row, &decision, true)
}

/// Why a claim is about nothing any more.
pub(super) fn obstacle(tx: &Tx<'_>, row: &ClaimRow) -> Result<Option<String>, StoreError> {
    let Some(node) = tx.view().node(row.node)? else { return Ok(None) };
    Ok(if node.home_epoch > row.home_epoch || node.home == Some(row.to) {
        Some("the machine has moved since".into())
    } else if node.wanted == Wanted::Retired {
        Some("the machine is retired".into())
    } else {
        None
    })
}

/// Why central does not know what a claim is about.
pub(super) fn stranger(tx: &Tx<'_>, row: &ClaimRow) -> Result<Option<String>, StoreError> {
    let Some(node) = tx.view().node(row.node)? else {
        return Ok(Some("central does not know the machine".into()));
    };
    let knows = (node.home, node.home_epoch) == (Some(row.from), row.home_epoch);
    Ok((!knows).then(|| "the machine is at home elsewhere than the claim says".into()))
}

fn party(tx: &Tx<'_>, site: SiteId, said: Option<bool>) -> Result<Party, StoreError> {
    Ok(match tx.view().site(site)? {
        Some(row) => Party {
            name: row.name,
            policy: row.effective.migration_policy,
            consent: row.effective.migration_consent,
            said,
        },
        None => Party {
            name: site.to_string(),
            policy: MigrationPolicy::Manual,
            consent: MigrationConsent::Both,
            said,
        },
    })
}

fn moved_lately(tx: &Tx<'_>, node: NodeId) -> Result<bool, StoreError> {
    let now = tx.now();
    let lately =
        |row: &ClaimRow| row.decided_at.is_some_and(|at| now < at.after(migration::AUTOMATIC_ONCE_IN));
    let moved = |row: &ClaimRow| row.state == ClaimState::Approved && row.automatic;
    Ok(tx.view().claims_on(node)?.iter().any(|row| moved(row) && lately(row)))
}

/// At central: settles what waits about a machine, for that may be retired by now.
pub(crate) fn settle_about(tx: &mut Tx<'_>, node: NodeId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central {
        return Ok(());
    }
    for row in tx.view().claims_on(node)? {
        if row.state == ClaimState::Open {
            settle(tx, row.id)?;
        }
    }
    Ok(())
}

/// At central: settles what waits between a site and others, because its settings are other ones.
pub(crate) fn settle_of(tx: &mut Tx<'_>, site: SiteId) -> Result<(), StoreError> {
    let open = ClaimFilter { state: Some(ClaimState::Open), ..ClaimFilter::default() };
    let mut waiting = tx.view().claims(&ClaimFilter { to: Some(site), ..open.clone() })?;
    waiting.extend(tx.view().claims(&ClaimFilter { from: Some(site), ..open })?);
    waiting.iter().try_for_each(|row| settle(tx, row.id))
}

/// At central: does what is due by now: rounds that end, and fences that open. `site`: whose acknowledgement is news.
///
/// # Errors
/// Those of the database.
pub fn tend(tx: &mut Tx<'_>, site: Option<SiteId>) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    let now = tx.now();
    for row in tx.view().claims_due(site, now)? {
        if row.is_fenced() {
            fence::look(tx, &row)?;
        } else if row.state == ClaimState::Open && row.expires_at.is_some_and(|end| end <= now) {
            end(tx, &row, ClaimState::Expired, None, "nobody decided in time")?;
        }
    }
    Ok(())
}

/// At central, after its recovery: settles everything that waited for its end.
pub(crate) fn recovered(tx: &mut Tx<'_>, nodes: &[NodeRow]) -> Result<(), StoreError> {
    for row in nodes {
        one_home(tx, row.id)?;
    }
    for row in nodes {
        if row.observed_by.iter().any(|site| row.home != Some(*site)) {
            from_observations(tx, row.id, None)?;
        }
    }
    for row in tx.view().claims(&ClaimFilter::default())? {
        settle(tx, row.id)?;
    }
    tend(tx, None)
}
