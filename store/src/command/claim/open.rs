//! How claims begin: a machine boots at one site and is at home at another, or two sites have adopted one.

use std::collections::BTreeMap;

use sync::{
    document::{
        claim::{self, Asked, Evidence, Opened, SeenAtHome},
        contested, node,
    },
    id::{ClaimId, MacAddr, NodeId, Origin, SiteId},
    journal::Event,
    policy::{ClaimState, Wanted, migration},
};

use super::{both, settle};
use crate::{
    StoreError, Tx,
    command::report::Registration,
    view::{ClaimFilter, NodeRow},
};

/// Claims of one site that nobody has decided, at most: to boot proves no more than an address.
const MAX_OPEN: usize = 4_096;

/// Interfaces of a machine that are named as evidence, at most.
const MAX_MACS: usize = 64;

/// At a site: a machine with this address boots that is at home elsewhere. It is claimed, once.
pub(crate) fn boots(tx: &mut Tx<'_>, mac: MacAddr) -> Result<(), StoreError> {
    let Origin::Site(here) = tx.origin() else { return Ok(()) };
    let Some(away) = tx.view().away(mac, here)? else { return Ok(()) };
    let id = ClaimId::of(away.node, here, away.home_epoch);
    let Some(row) = tx.view().claim(id)? else {
        let filter = ClaimFilter { to: Some(here), state: Some(ClaimState::Open), ..ClaimFilter::default() };
        if tx.view().claims(&filter)?.len() >= MAX_OPEN {
            return Ok(());
        }
        let opened = Opened {
            node: away.node,
            to_site: here,
            from_site: away.home,
            home_epoch: away.home_epoch,
            first_seen: tx.now(),
        };
        let evidence = Evidence { macs: [(mac.to_string(), true)].into(), ..nothing_known() };
        return open(tx, &opened, Some(&evidence));
    };
    let last = row.decided_at.max(row.asked_at).unwrap_or(row.first_seen);
    if row.asked_again == Some(row.round) || !migration::may_ask_again(row.state, row.round, last, tx.now()) {
        return Ok(());
    }
    let asked = Asked { round: row.round, booted_at: tx.now() };
    tx.write(claim::KIND, id.into(), |edit| {
        edit.set(&claim::asked(), &asked, "it booted here again");
    })?;
    tx.journal(Event::ClaimAskedAgain { claim: id, node: row.node, round: row.round })
}

/// At a site: a machine that is at home elsewhere says what it is. The claim is told what it does not know yet; what it
/// knows stays, for anybody on the wire can say something else.
pub(crate) fn tells(tx: &mut Tx<'_>, id: ClaimId, it: &Registration) -> Result<(), StoreError> {
    let known = tx.with_document(claim::KIND, id.into(), |document| {
        contested::read(document, &claim::evidence()).newest().map(|side| side.value.clone())
    })?;
    // Beyond the bound on claims there is none.
    let Some(known) = known else { return Ok(()) };
    let before = known.unwrap_or_else(nothing_known);
    let mut macs = before.macs.clone();
    let nics = it.nics.values().filter_map(|mac| mac.parse::<MacAddr>().ok());
    for mac in nics.map(|mac| mac.to_string()) {
        if macs.len() < MAX_MACS {
            macs.entry(mac).or_insert(true);
        }
    }
    let said = |known: &Option<String>, name: &str| known.clone().or_else(|| it.known(name));
    let evidence = Evidence {
        macs,
        serial: said(&before.serial, "serial"),
        system_uuid: said(&before.system_uuid, "system_uuid"),
        vendor: said(&before.vendor, "vendor"),
        model: said(&before.model, "model"),
        address: before.address.clone(),
    };
    if evidence == before {
        return Ok(());
    }
    tx.write(claim::KIND, id.into(), |edit| {
        edit.set(&claim::evidence(), &evidence, "it said what it is");
    })?;
    Ok(())
}

/// At a site: a machine boots here. Where it is at home here and another site claims it, that is noted, once.
pub(crate) fn boots_at_home(tx: &mut Tx<'_>, node: &NodeRow) -> Result<(), StoreError> {
    let Some(here) = tx.origin().site().filter(|here| node.home == Some(*here)) else { return Ok(()) };
    for row in tx.view().claims_on(node.id)? {
        let is_news = row.from == here
            && row.state == ClaimState::Open
            && row.home_epoch == node.home_epoch
            && row.seen_at_home != Some(row.round);
        if is_news {
            let seen = SeenAtHome { round: row.round, booted_at: tx.now() };
            tx.write(claim::KIND, row.id.into(), |edit| {
                edit.set(&claim::seen_at_home(), &seen, "it booted at home");
            })?;
            tx.journal(Event::ClaimedSeenAtHome { claim: row.id, node: node.id, round: row.round })?;
        }
    }
    Ok(())
}

fn nothing_known() -> Evidence {
    Evidence {
        macs: BTreeMap::new(),
        serial: None,
        system_uuid: None,
        vendor: None,
        model: None,
        address: None,
    }
}

pub(super) fn open(tx: &mut Tx<'_>, opened: &Opened, evidence: Option<&Evidence>) -> Result<(), StoreError> {
    let Opened { node, to_site, from_site, home_epoch, .. } = *opened;
    let id = ClaimId::of(node, to_site, home_epoch);
    tx.write(claim::KIND, id.into(), |edit| {
        edit.set(&claim::opened(), opened, "it boots there");
        if let Some(evidence) = evidence {
            edit.set(&claim::evidence(), evidence, "");
        }
    })?;
    let event = Event::ClaimOpened { claim: id, node, from: from_site, to: to_site, home_epoch };
    match tx.origin() {
        Origin::Site(_) => tx.journal(event),
        Origin::Central => both(tx, [from_site, to_site], &event),
    }
}

/// At central: opens the claims of the sites that have seen a machine which is at home elsewhere, where whoever gave it
/// that home had not heard of it. `peer` is who told of the machine; nobody: all are looked at.
pub(crate) fn from_observations(
    tx: &mut Tx<'_>,
    node: NodeId,
    peer: Option<SiteId>,
) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    if let Some(peer) = peer
        && !tx
            .sql
            .prepare_cached("SELECT 1 FROM view_nodes WHERE id = ?1 AND home IS NOT NULL AND home != ?2")?
            .exists([node.as_bytes(), peer.as_bytes()])?
    {
        return Ok(());
    }
    let Some(row) = tx.view().node(node)? else { return Ok(()) };
    let Some(home) = row.home else { return Ok(()) };
    let sites = row.observed_by.iter().copied();
    let others = sites.filter(|site| *site != home && peer.is_none_or(|peer| peer == *site));
    for site in others.collect::<Vec<_>>() {
        let id = ClaimId::of(node, site, row.home_epoch);
        if row.wanted == Wanted::Retired || tx.view().claim(id)?.is_some() {
            continue;
        }
        let seen = tx.with_document(node::KIND, node.into(), |document| {
            let observed = node::observed(site);
            let now = contested::read(document, &observed);
            let now = now.newest()?;
            let given = contested::read(document, &node::home()).newest()?.change;
            let before = contested::read_at(document, &observed, &[given]);
            let is_old = before.sides().iter().any(|side| side.written.nonce == now.written.nonce);
            (!is_old).then_some(now.value.first_seen)
        })?;
        let Some(first_seen) = seen.flatten() else { continue };
        let opened = Opened { node, to_site: site, from_site: home, home_epoch: row.home_epoch, first_seen };
        open(tx, &opened, Some(&evidence_of(&row)))?;
        settle(tx, id)?;
    }
    Ok(())
}

pub(super) fn evidence_of(row: &NodeRow) -> Evidence {
    let known = |name: &str| row.evidence.get(name).cloned();
    Evidence {
        macs: row.macs.iter().take(MAX_MACS).map(|mac| (mac.to_string(), true)).collect(),
        serial: known("serial"),
        system_uuid: known("system_uuid"),
        vendor: known("vendor"),
        model: known("model"),
        address: None,
    }
}
