//! Claims: machines that boot elsewhere than at home, and what became of that.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use sync::{
    document::{
        Document,
        claim::{self, InForce},
    },
    id::{ClaimId, MacAddr, NodeId, Origin, SiteId},
    policy::ClaimState,
    time::Timestamp,
};

use super::{NodeRow, View, bodies};
use crate::{StoreError, log::signed};

/// One claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRow {
    /// The claim.
    pub id: ClaimId,
    /// The machine.
    pub node: NodeId,
    /// Where it boots.
    pub to: SiteId,
    /// Its name, as central said it.
    pub to_name: String,
    /// Where it is at home.
    pub from: SiteId,
    /// Its name, as central said it.
    pub from_name: String,
    /// How often the machine had moved.
    pub home_epoch: u64,
    /// Who opened it.
    pub opened_by: Origin,
    /// First boot seen there.
    pub first_seen: Timestamp,
    /// What is known of the machine there.
    pub evidence: EvidenceRow,
    /// Where it stands.
    pub state: ClaimState,
    /// Number of the round, from 1.
    pub round: u64,
    /// Whether central has heard of it.
    pub known_at_central: bool,
    /// When this round ends, while it is open.
    pub expires_at: Option<Timestamp>,
    /// What a person where it boots said.
    pub to_said: Option<bool>,
    /// What a person at its home said.
    pub from_said: Option<bool>,
    /// Which policies or consents approve it, or would.
    pub policy_matched: Option<String>,
    /// Whether it could be approved without a person at central.
    pub auto_approve_eligible: bool,
    /// Whether it was approved without any person.
    pub automatic: bool,
    /// Whether a person at central rejected it in this round or one before.
    pub was_rejected: bool,
    /// The person at central who decided.
    pub decided_by: Option<String>,
    /// When, or when central began to wait.
    pub decided_at: Option<Timestamp>,
    /// Why, or what it waits for.
    pub reason: String,
    /// The round that its site asks to decide again, newest.
    pub asked_again: Option<u64>,
    /// When it asked.
    pub asked_at: Option<Timestamp>,
    /// The round in which the machine was seen at home.
    pub seen_at_home: Option<u64>,
    /// The fence, after an approval.
    pub fence: Option<FenceRow>,
}

/// What a site knows of a machine that it claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceRow {
    /// Addresses of its interfaces.
    pub macs: Vec<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// SMBIOS UUID.
    pub system_uuid: Option<String>,
    /// Who made it.
    pub vendor: Option<String>,
    /// What it is called by who made it.
    pub model: Option<String>,
    /// The address that it has there.
    pub address: Option<String>,
}

/// Whether the former home may still hold an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceRow {
    /// Whether no order is issued yet.
    pub closed: bool,
    /// When every order that it can hold has expired.
    pub until: Option<Timestamp>,
    /// What it waits for, or what opened it.
    pub reason: String,
    /// The person who broke it.
    pub broken_by: Option<String>,
}

impl ClaimRow {
    /// Whether the fence of an approved move is closed. A site may have heard of the approval alone, where the link was
    /// cut between both.
    pub fn is_fenced(&self) -> bool {
        self.state == ClaimState::Approved && self.fence.as_ref().is_none_or(|fence| fence.closed)
    }
}

/// Which claims are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimFilter {
    /// Only those of this machine.
    pub node: Option<NodeId>,
    /// Only those of machines that boot at this site.
    pub to: Option<SiteId>,
    /// Only those of machines at home at this site.
    pub from: Option<SiteId>,
    /// Only those that stand so.
    pub state: Option<ClaimState>,
    /// Only those after this one.
    pub after: Option<ClaimId>,
    /// At most so many; 0: all.
    pub limit: u64,
}

/// Where a machine is at home that is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away {
    /// The machine.
    pub node: NodeId,
    /// Its home.
    pub home: SiteId,
    /// How often it has moved.
    pub home_epoch: u64,
    /// When the directory said so, if nothing nearer does.
    pub told_at: Option<Timestamp>,
}

impl View<'_> {
    /// Where the machine with this address is at home, if that is another site than `here`: what its document says, or
    /// what the directory says where there is none, or of a later move.
    pub fn away(&self, mac: MacAddr, here: SiteId) -> Result<Option<Away>, StoreError> {
        let row = self.node_by_mac(mac)?;
        let node = row.as_ref().map_or_else(|| NodeId::of(mac), |row| row.id);
        self.elsewhere(node, row.as_ref(), here)
    }

    /// The same of a machine by its id. `row` is what its document says.
    pub(crate) fn elsewhere(
        &self,
        node: NodeId,
        row: Option<&NodeRow>,
        here: SiteId,
    ) -> Result<Option<Away>, StoreError> {
        let said = row.and_then(|row| Some((row.home?, row.home_epoch)));
        let said = said.map(|(home, home_epoch)| Away { node, home, home_epoch, told_at: None });
        // A site hears of an approval before the machine leaves it, or comes to it.
        let moves = self.claims_on(node)?.into_iter().filter(|row| row.state == ClaimState::Approved);
        let moves =
            moves.map(|row| Away { node, home: row.to, home_epoch: row.home_epoch + 1, told_at: None });
        let told = self.directory(node)?.and_then(|row| {
            let home = row.stub.home?;
            Some(Away { node, home, home_epoch: row.stub.home_epoch, told_at: Some(row.at) })
        });
        let newest = told.into_iter().chain(moves).chain(said).max_by_key(|away| away.home_epoch);
        Ok(newest.filter(|away| away.home != here))
    }

    /// Claims in the order in which this replica heard of them.
    pub fn claims(&self, filter: &ClaimFilter) -> Result<Vec<ClaimRow>, StoreError> {
        let limit = if filter.limit == 0 { -1 } else { signed(filter.limit) };
        let statement = self.sql.prepare_cached(
            "SELECT body FROM view_claims WHERE (?1 IS NULL OR node = ?1) AND (?2 IS NULL OR to_site = ?2)
             AND (?3 IS NULL OR from_site = ?3) AND (?4 IS NULL OR state = ?4)
             AND (?5 IS NULL OR doc > (SELECT doc FROM view_claims WHERE id = ?5)) ORDER BY doc LIMIT ?6",
        )?;
        bodies(
            statement,
            params![
                filter.node.map(|node| node.0),
                filter.to.map(|site| site.0),
                filter.from.map(|site| site.0),
                filter.state.map(ClaimState::as_str),
                filter.after.map(|claim| claim.0),
                limit
            ],
        )
    }

    /// One claim.
    pub fn claim(&self, claim: ClaimId) -> Result<Option<ClaimRow>, StoreError> {
        let statement = self.sql.prepare_cached("SELECT body FROM view_claims WHERE id = ?1")?;
        Ok(bodies(statement, [claim.as_bytes()])?.pop())
    }

    /// Claims on a machine.
    pub(crate) fn claims_on(&self, node: NodeId) -> Result<Vec<ClaimRow>, StoreError> {
        let statement =
            self.sql.prepare_cached("SELECT body FROM view_claims WHERE node = ?1 ORDER BY doc")?;
        bodies(statement, [node.as_bytes()])
    }

    /// Why no order for the machine is issued or followed at its new home yet, if that is so.
    pub fn fence_closed(&self, node: NodeId) -> Result<Option<String>, StoreError> {
        let statement = self
            .sql
            .prepare_cached("SELECT body FROM view_claims WHERE node = ?1 AND fence = 1 ORDER BY doc")?;
        let closed: Vec<ClaimRow> = bodies(statement, [node.as_bytes()])?;
        let why = |row: ClaimRow| {
            let unheard = || "central has not said yet that no other site may install it".to_string();
            row.fence.map_or_else(unheard, |fence| fence.reason)
        };
        Ok(closed.into_iter().next().map(why))
    }

    /// At central: claims whose time has come, or whose fence waits for what `site` has acknowledged.
    pub(crate) fn claims_due(
        &self,
        site: Option<SiteId>,
        now: Timestamp,
    ) -> Result<Vec<ClaimRow>, StoreError> {
        let statement = self.sql.prepare_cached(
            "SELECT body FROM view_claims WHERE due <= ?1
             UNION SELECT body FROM view_claims WHERE fence = 1 AND from_site = ?2",
        )?;
        bodies(statement, params![signed(now.0), site.map(|site| site.0)])
    }
}

pub(super) fn refresh(sql: &Connection, doc: i64, document: &Document) -> Result<(), StoreError> {
    let Some(found) = InForce::of(document) else { return Ok(()) };
    let InForce {
        opened,
        opened_by,
        evidence,
        asked,
        seen_at_home,
        to_said,
        from_said,
        decision,
        decided_at,
        fence,
    } = found;
    let evidence = evidence.map(|it| EvidenceRow {
        macs: it.macs.into_keys().collect(),
        serial: it.serial,
        system_uuid: it.system_uuid,
        vendor: it.vendor,
        model: it.model,
        address: it.address,
    });
    let known_at_central = decision.is_some();
    let decision = decision.unwrap_or(claim::Decision {
        state: ClaimState::Open,
        round: 1,
        expires_at: Timestamp(0),
        policy_matched: None,
        auto_approve_eligible: false,
        automatic: false,
        was_rejected: false,
        decided_by: None,
        reason: "central has not heard of it yet".into(),
        to_name: String::new(),
        from_name: String::new(),
    });
    let is_open = known_at_central && decision.state == ClaimState::Open;
    let row = ClaimRow {
        id: document.id().into(),
        node: opened.node,
        to: opened.to_site,
        to_name: decision.to_name,
        from: opened.from_site,
        from_name: decision.from_name,
        home_epoch: opened.home_epoch,
        opened_by,
        first_seen: opened.first_seen,
        evidence: evidence.unwrap_or_default(),
        state: decision.state,
        round: decision.round,
        known_at_central,
        expires_at: is_open.then_some(decision.expires_at),
        to_said,
        from_said,
        policy_matched: decision.policy_matched,
        auto_approve_eligible: decision.auto_approve_eligible,
        automatic: decision.automatic,
        was_rejected: decision.was_rejected,
        decided_by: decision.decided_by,
        decided_at,
        reason: decision.reason,
        asked_again: asked.as_ref().map(|it| it.round),
        asked_at: asked.map(|it| it.booted_at),
        seen_at_home: seen_at_home.map(|it| it.round),
        fence: fence.map(|it| FenceRow {
            closed: it.closed,
            until: it.until,
            reason: it.reason,
            broken_by: it.broken_by,
        }),
    };
    let fenced = row.is_fenced();
    let until = row.fence.as_ref().filter(|_| fenced).and_then(|fence| fence.until);
    sql.prepare_cached(
        "INSERT OR REPLACE INTO view_claims (doc, id, node, to_site, from_site, state, due, fence, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        doc,
        row.id.as_bytes(),
        row.node.as_bytes(),
        row.to.as_bytes(),
        row.from.as_bytes(),
        row.state.as_str(),
        row.expires_at.or(until).map(|at| signed(at.0)),
        fenced,
        serde_json::to_string(&row)?
    ])?;
    Ok(())
}
