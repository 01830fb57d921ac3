//! Recovery: what central does, and does not do, between the begin of another life and a person's word.
//!
//! A central whose database went back in time lacks decisions that some site still has. It takes them back as
//! the sites join (`join`; its own seal tells them from what a site made up), and a site is *returned* once
//! both have held the same. Meanwhile it gives no order (`command::task`), settles nothing by itself (homes,
//! settings epochs), and lets in sites that it does not know but its authority certified. What it had given
//! before, and never delivered, may have been withdrawn in the time that is gone: so it tells every site that
//! it is in recovery, and an order that arrives after that waits at the site.
//!
//! Deliberately absent: an end by itself. Only a person knows whether a site that is still away matters.

use rusqlite::params;
use serde::Serialize;
use sync::{
    id::{Incarnation, Origin, SiteId, TaskId},
    journal::Event,
    time::Timestamp,
    wire::Item,
};

use crate::{
    StoreError, Tx, View,
    command::{answer, check_text, claim, conflict, node, settings, twin},
    log::{Row, signed},
    view::NodeFilter,
    writer::{meta, set_meta},
};

/// At a site: the newest change that was here when central told that it is in recovery.
const RECOVERING: &str = "recovering";

/// A central that is in recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// What began it.
    pub why: String,
    /// When, by central's clock.
    pub since: Timestamp,
    /// The life of the database that it began.
    pub incarnation: Option<Incarnation>,
    /// The sites that may have something, by name.
    pub sites: Vec<Awaited>,
}

/// A site that may have what central lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Awaited {
    /// The site.
    pub site: SiteId,
    /// Its name; empty where its document is not back yet.
    pub name: String,
    /// How far it is.
    pub stage: Stage,
    /// When it was last heard, by central's clock.
    pub heard_at: Option<Timestamp>,
}

/// How far a site has given back what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Not heard since.
    Away,
    /// Connected, and both do not hold the same yet.
    Returning,
    /// Both have held the same since.
    Returned,
}

/// What came of the wish to end the recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Central was not in recovery.
    WasNot,
    /// It is over. These sites had not given back what they have.
    Over(Vec<Awaited>),
    /// These sites have not given back what they have, and nobody said that they do not matter.
    Waits(Vec<Awaited>),
}

impl View<'_> {
    /// The recovery that central is in, if it is in one.
    pub fn recovery(&self) -> Result<Option<Recovery>, StoreError> {
        let (Origin::Central, Some(why)) = (self.origin(), self.suspended()?) else { return Ok(None) };
        let since = meta(self.sql, "suspended_at")?.and_then(|bytes| bytes.try_into().ok());
        let mut statement = self.sql.prepare_cached(
            "SELECT peer, life IS NOT NULL, returned, heard_at FROM peers
             WHERE life IS NOT NULL OR heard_at IS NOT NULL
             UNION SELECT lower(hex(site)), 0, 0, NULL FROM certificates
             WHERE lower(hex(site)) NOT IN (SELECT peer FROM peers WHERE life IS NOT NULL OR heard_at IS NOT NULL)
             ORDER BY 1",
        )?;
        let mut rows = statement.query([])?;
        let mut sites = Vec::new();
        while let Some(row) = rows.next()? {
            let Ok(Origin::Site(site)) = row.get::<_, String>(0)?.parse() else { continue };
            if self.revoked(site)?.is_some() {
                continue;
            }
            let stage = match (row.get(1)?, row.get(2)?) {
                (_, true) => Stage::Returned,
                (true, false) => Stage::Returning,
                (false, false) => Stage::Away,
            };
            let heard_at: Option<i64> = row.get(3)?;
            sites.push(Awaited {
                site,
                name: self.site(site)?.map(|row| row.name).unwrap_or_default(),
                stage,
                heard_at: heard_at.map(|ms| Timestamp(ms.unsigned_abs())),
            });
        }
        sites.sort_by(|a, b| (&a.name, a.site).cmp(&(&b.name, b.site)));
        let incarnation = meta(self.sql, "incarnation")?.and_then(|bytes| Incarnation::from_slice(&bytes));
        Ok(Some(Recovery { why, since: Timestamp(since.map_or(0, u64::from_be_bytes)), incarnation, sites }))
    }

    /// At a site: whether central has told that it is in recovery, and not yet that it is no more.
    pub fn central_recovers(&self) -> Result<bool, StoreError> {
        Ok(meta(self.sql, RECOVERING)?.is_some())
    }

    /// At a site: why a task waits that central told of, or spoke of again, while it was in recovery.
    pub(crate) fn awaits_recovery(&self, task: TaskId) -> Result<Option<String>, StoreError> {
        let Some(upto) = meta(self.sql, RECOVERING)?.and_then(|bytes| bytes.try_into().ok()) else {
            return Ok(None);
        };
        let upto = u64::from_be_bytes(upto);
        let arrived = self
            .sql
            .prepare_cached(
                "SELECT 1 FROM changes JOIN documents ON documents.doc = changes.doc
                 WHERE documents.id = ?1 AND change > ?2 AND changes.source IS NOT NULL",
            )?
            .exists(params![task.as_bytes(), signed(upto)])?;
        Ok(arrived.then(|| {
            "central was restored, and this order arrived before anybody ended its recovery".to_string()
        }))
    }
}

impl Tx<'_> {
    /// At central: ends its recovery, `why` in the words of whoever does. Without `anyway` it does so only if
    /// every site that may have something has given it back.
    ///
    /// Central gives orders from here on, makes up for what it did not settle, and tells the sites.
    ///
    /// # Errors
    /// `Refused` when `why` is too long.
    pub fn end_recovery(&mut self, why: &str, anyway: bool) -> Result<Ended, StoreError> {
        check_text("why", why)?;
        let Some(recovery) = self.view().recovery()? else { return Ok(Ended::WasNot) };
        let missing: Vec<Awaited> =
            recovery.sites.into_iter().filter(|site| site.stage != Stage::Returned).collect();
        if !missing.is_empty() && !anyway {
            return Ok(Ended::Waits(missing));
        }
        self.journal(Event::RecoveryEnded {
            incarnation: self.state.incarnation,
            reason: recovery.why,
            why: why.to_string(),
            without: missing.iter().map(|site| site.site).collect(),
        })?;
        self.resume_orders()?;
        Ok(Ended::Over(missing))
    }

    /// At central: makes up for what waited for the end of the recovery.
    pub(crate) fn recovered(&mut self) -> Result<(), StoreError> {
        if self.state.origin != Origin::Central {
            return Ok(());
        }
        let nodes = self.view().nodes(&NodeFilter::default())?;
        let sites: Vec<SiteId> = self.view().sites()?.iter().map(|row| row.id).collect();
        for row in nodes.iter().filter(|row| row.home.is_none()) {
            node::settle_home(self, row.id)?;
        }
        claim::recovered(self, &nodes)?;
        settings::descend(self, sites.iter().copied(), "central was restored")?;
        conflict::settle_all(self, None)?;
        for row in self.view().nodes(&NodeFilter::default())? {
            twin::settle(self, row.id)?;
        }
        for id in &sites {
            answer::due(self, *id)?;
        }
        for id in sites {
            // Whoever has not joined yet is told when he does.
            if self.view().peer(Origin::Site(id))?.life.is_some() {
                self.tell_recovering(Origin::Site(id))?;
            }
        }
        Ok(())
    }

    /// At central: tells a site whether central is in recovery.
    pub(crate) fn tell_recovering(&mut self, peer: Origin) -> Result<(), StoreError> {
        if self.state.origin != Origin::Central {
            return Ok(());
        }
        let is = self.view().suspended()?.is_some();
        self.tell(peer, Row::Note(Item::recovering(is).to_bytes()))
    }

    /// At a site: takes over what central tells of its recovery.
    pub(crate) fn take_recovering(&mut self, is: bool) -> Result<(), StoreError> {
        if self.view().central_recovers()? == is {
            return Ok(());
        }
        if is {
            let newest: i64 =
                self.sql.query_row("SELECT ifnull(max(change), 0) FROM changes", [], |row| row.get(0))?;
            set_meta(self.sql, RECOVERING, &newest.to_be_bytes())?;
        } else {
            self.sql.execute("DELETE FROM meta WHERE key = ?1", [RECOVERING])?;
        }
        self.journal(Event::CentralRecovering { is })
    }

    /// At central: keeps that a site holds the same as we do, in this life.
    pub(crate) fn note_returned(&self, peer: Origin) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE peers SET returned = 1 WHERE peer = ?1 AND returned = 0 AND life IS NOT NULL AND anew = 0",
            )?
            .execute([peer.to_string()])?;
        Ok(())
    }
}
