//! Proposals: what sites may not do themselves and ask central for.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sync::{
    document::{
        Document, contested,
        proposal::{self, Act},
    },
    id::{DocumentId, NodeId, ProposalId, SiteId},
    time::Timestamp,
};

use super::{View, bodies, quarantine};
use crate::{StoreError, log::signed};

/// Where a proposal stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProposalState {
    /// Nobody has decided.
    Open,
    /// Central did what was wished.
    Applied,
    /// Central did not.
    Refused,
}

impl ProposalState {
    fn as_str(self) -> &'static str {
        match self {
            ProposalState::Open => "open",
            ProposalState::Applied => "applied",
            ProposalState::Refused => "refused",
        }
    }
}

/// One proposal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalRow {
    /// The proposal.
    pub id: ProposalId,
    /// Whose it is.
    pub site: SiteId,
    /// Who wishes it.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub why: String,
    /// Settings epoch that the site followed then.
    pub policy_epoch: u64,
    /// Entry of the site's journal that tells of it.
    pub journal_seq: u64,
    /// What is to be done.
    pub action: String,
    /// Kind of the document that it is about.
    pub kind: Option<String>,
    /// That document.
    pub document: Option<DocumentId>,
    /// The arguments, of `write` registers by their paths.
    pub arguments: BTreeMap<String, Json>,
    /// The proposal that must be applied before.
    pub rests_on: Option<ProposalId>,
    /// Where it stands.
    pub state: ProposalState,
    /// How it ended, if it did.
    pub outcome: Option<EndRow>,
}

/// How a proposal ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRow {
    /// Who decided.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why so.
    pub reason: String,
}

/// Which proposals are wanted.
#[derive(Clone, Debug, Default)]
pub struct ProposalFilter {
    /// Only those of this site.
    pub site: Option<SiteId>,
    /// Only those that stand so.
    pub state: Option<ProposalState>,
    /// Only those after this one.
    pub after: Option<ProposalId>,
    /// At most so many; 0: all.
    pub limit: u64,
}

impl View<'_> {
    /// Proposals in the order in which this replica got them, which keeps that of each site's journal.
    pub fn proposals(&self, filter: &ProposalFilter) -> Result<Vec<ProposalRow>, StoreError> {
        let limit = if filter.limit == 0 { -1 } else { signed(filter.limit) };
        let statement = self.sql.prepare_cached(
            "SELECT body FROM view_proposals WHERE (?1 IS NULL OR site = ?1) AND (?2 IS NULL OR state = ?2)
                 AND (?3 IS NULL OR doc > (SELECT doc FROM view_proposals WHERE id = ?3)) ORDER BY doc LIMIT ?4",
        )?;
        bodies(
            statement,
            params![
                filter.site.map(|site| site.0),
                filter.state.map(ProposalState::as_str),
                filter.after.map(|id| id.0),
                limit
            ],
        )
    }

    /// One proposal.
    pub fn proposal(&self, id: ProposalId) -> Result<Option<ProposalRow>, StoreError> {
        let statement = self.sql.prepare_cached("SELECT body FROM view_proposals WHERE id = ?1")?;
        Ok(bodies(statement, [id.as_bytes()])?.pop())
    }

    /// The newest proposals that have ended, the last one that was made first.
    pub fn ended_proposals(&self, limit: u64) -> Result<Vec<ProposalRow>, StoreError> {
        let statement = self.sql.prepare_cached(
            "SELECT body FROM view_proposals WHERE state != 'open' ORDER BY doc DESC LIMIT ?1",
        )?;
        bodies(statement, [signed(limit)])
    }

    /// The newest proposal to adopt a machine.
    pub fn adoption(&self, node: NodeId) -> Result<Option<ProposalRow>, StoreError> {
        let statement = self.sql.prepare_cached(
            "SELECT body FROM view_proposals WHERE about = ?1 AND action = ?2 ORDER BY doc DESC LIMIT 1",
        )?;
        Ok(bodies(statement, params![node.as_bytes(), Act::AdoptMachine.as_str()])?.pop())
    }

    /// Number of proposals that nobody has ended, of all actions or of one.
    pub fn count_open_proposals(&self, action: Option<Act>) -> Result<u64, StoreError> {
        let count: i64 = self
            .sql
            .prepare_cached(
                "SELECT count(*) FROM view_proposals WHERE state = 'open' AND (?1 IS NULL OR action = ?1)",
            )?
            .query_row([action.map(Act::as_str)], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// At central: proposals of a site that its journal tells of and nobody has ended, in the order of that journal.
    pub(crate) fn due_proposals(&self, site: SiteId) -> Result<Vec<ProposalId>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT proposal FROM asked JOIN view_proposals ON view_proposals.id = asked.proposal
                 AND view_proposals.site = asked.site
             WHERE asked.site = ?1 AND state = 'open' ORDER BY asked",
        )?;
        let rows = statement.query_map([site.as_bytes()], |row| row.get(0).map(ProposalId))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Those that rest on another one.
    pub(crate) fn proposals_after(&self, id: ProposalId) -> Result<Vec<ProposalRow>, StoreError> {
        let statement =
            self.sql.prepare_cached("SELECT body FROM view_proposals WHERE after = ?1 ORDER BY doc")?;
        bodies(statement, [id.as_bytes()])
    }
}

pub(super) fn refresh(sql: &Connection, doc: i64, document: &Document) -> Result<(), StoreError> {
    let wish = contested::read(document, &proposal::wish());
    let Some(wish) = wish.newest() else { return Ok(()) };
    let Some(site) = wish.written.site.site() else { return Ok(()) };
    let outcome = contested::read(document, &proposal::outcome());
    let outcome = outcome.newest();
    let arguments = contested::keys(document, proposal::ARGUMENTS).into_iter().filter_map(|path| {
        let argument = contested::read(document, &proposal::argument(&path));
        let value = quarantine::shown(&argument.newest()?.value.0);
        Some((path, value))
    });
    let row = ProposalRow {
        id: document.id().into(),
        site,
        by: wish.written.by.clone(),
        at: wish.written.at.timestamp(),
        why: wish.written.why.clone(),
        policy_epoch: wish.written.policy_epoch,
        journal_seq: wish.value.journal_seq,
        action: wish.value.action.clone(),
        kind: wish.value.about.clone(),
        document: wish.value.document,
        arguments: arguments.collect(),
        rests_on: wish.value.after,
        state: match outcome {
            None => ProposalState::Open,
            Some(side) if side.value.applied => ProposalState::Applied,
            Some(_) => ProposalState::Refused,
        },
        outcome: outcome.map(|side| EndRow {
            by: side.written.by.clone(),
            at: side.written.at.timestamp(),
            reason: side.value.reason.clone(),
        }),
    };
    sql.prepare_cached(
        "INSERT OR REPLACE INTO view_proposals (doc, id, site, state, action, about, after, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        doc,
        row.id.as_bytes(),
        row.site.as_bytes(),
        row.state.as_str(),
        row.action,
        row.document.map(|id| id.0),
        row.rests_on.map(|id| id.0),
        serde_json::to_string(&row)?
    ])?;
    Ok(())
}
