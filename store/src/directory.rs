//! The directory: machines of the fleet and where they belong, also at sites that do not hold them.
//!
//! Central keeps one row per node, numbered by the order of the last changes, and tells a site the rows of
//! its *domain* that it was not told and that are not of its own machines: when a session begins and with
//! every sign of life, many to one item of the log. What is not in a site's directory is unknown there; every
//! answer that rests on it says how old it is.
//!
//! The domain is the whole fleet, or the sites that stand in a group and below it. In it are the machines at
//! home at those sites and those at home nowhere; and the ones that the site visited, wherever they belong.
//! What leaves the domain, because a machine, a site or a group moved or the domain is another one, is taken
//! away again by an item of its own ([`Gone`]). Only what changed is looked at: rows after the last that was
//! told, and the machines of the homes that entered or left. `domains` says which homes a site was told of,
//! `directory_moves` where a machine was when the site was told last.
//!
//! After a join all of it is told anew. The site keeps what it had until central has said everything, and a
//! central in recovery says that only when its recovery is over: until then a site may know better.

use std::collections::BTreeSet;

use rusqlite::{OptionalExtension, params};
use sync::{
    id::{NodeId, Origin, SiteId},
    policy::Wanted,
    time::Timestamp,
    wire::{Anew, Gone, Item, Stub},
};

use crate::{
    StoreError, Tx, View,
    authority::Position,
    log::{self, Row, signed},
    view::NodeRow,
    writer::{meta, set_meta},
};

/// Rows in one item; about 40 bytes each.
const MANY: usize = 1_000;

/// At a site: what stands in the directory up to this row is gone unless central tells it again.
const SWEEP: &str = "directory_sweep";

/// Where a machine belongs that this site does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryRow {
    /// What was told of it.
    pub stub: Stub,
    /// When it was told, by the clock here.
    pub at: Timestamp,
}

/// How far a site is with its directory, as central knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryStanding {
    /// Everything was told. It is at every sign of life, but for what only the end of a recovery shows.
    pub told: bool,
    /// What was told last is committed at the site.
    pub acknowledged: bool,
}

/// What a site was told of the directory, as central keeps it.
struct Told {
    /// The last row.
    upto: i64,
    /// The sites whose machines it is told of; none: all.
    homes: Option<BTreeSet<SiteId>>,
    /// From which position on it is told of all.
    whole_from: i64,
    due: bool,
    anew: bool,
}

impl Told {
    fn has(&self, home: Option<SiteId>) -> bool {
        match (home, &self.homes) {
            (Some(home), Some(homes)) => homes.contains(&home),
            (None, _) | (_, None) => true,
        }
    }
}

/// Keeps where a node belongs, at central.
pub(crate) fn note(tx: &mut Tx<'_>, found: &NodeRow) -> Result<(), StoreError> {
    let retired = found.wanted == Wanted::Retired;
    let stub = Stub { node: found.id, home: found.home, home_epoch: found.home_epoch, retired };
    let before = row(tx.sql, stub.node)?.map(|row| row.stub);
    if before == Some(stub) {
        return Ok(());
    }
    let seq = keep(tx, &stub)?;
    if let Some(before) = before.filter(|before| before.home != stub.home) {
        tx.sql
            .prepare_cached("INSERT INTO directory_moves (seq, node, home) VALUES (?1, ?2, ?3)")?
            .execute(params![seq, stub.node.as_bytes(), before.home.map(|site| site.0)])?;
    }
    Ok(())
}

/// Replaces the row of a node; it becomes the newest.
fn keep(tx: &Tx<'_>, stub: &Stub) -> Result<i64, StoreError> {
    let since: Option<i64> = tx
        .sql
        .prepare_cached("DELETE FROM directory WHERE node = ?1 RETURNING since")?
        .query_row([stub.node.as_bytes()], |row| row.get(0))
        .optional()?;
    tx.sql
        .prepare_cached(
            "INSERT INTO directory (node, since, home, home_epoch, retired, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            stub.node.as_bytes(),
            since.unwrap_or(0),
            stub.home.map(|site| site.0),
            signed(stub.home_epoch),
            stub.retired,
            signed(tx.given.now.0)
        ])?;
    let seq = tx.sql.last_insert_rowid();
    if since.is_none() {
        tx.sql.prepare_cached("UPDATE directory SET since = seq WHERE seq = ?1")?.execute([seq])?;
    }
    Ok(seq)
}

fn row(sql: &rusqlite::Connection, node: NodeId) -> Result<Option<DirectoryRow>, StoreError> {
    Ok(sql
        .prepare_cached("SELECT node, home, home_epoch, retired, at FROM directory WHERE node = ?1")?
        .query_row([node.as_bytes()], |row| {
            Ok(DirectoryRow { stub: stub(row)?, at: Timestamp(row.get::<_, i64>(4)?.unsigned_abs()) })
        })
        .optional()?)
}

/// Reads a stub from the columns node, home, home_epoch and retired.
fn stub(row: &rusqlite::Row<'_>) -> rusqlite::Result<Stub> {
    Ok(Stub {
        node: NodeId(row.get(0)?),
        home: row.get::<_, Option<[u8; 16]>>(1)?.map(SiteId),
        home_epoch: row.get::<_, i64>(2)?.unsigned_abs(),
        retired: row.get(3)?,
    })
}

/// At central: a site that has seen a machine which is not in its scope wrote of it. It is told where the machine
/// belongs, now and ever after, also outside of its domain. Tells whether that is new.
pub(crate) fn visited(tx: &mut Tx<'_>, site: SiteId, node: NodeId) -> Result<bool, StoreError> {
    let is_new = tx
        .sql
        .prepare_cached("INSERT OR IGNORE INTO visitors (site, node) VALUES (?1, ?2)")?
        .execute(params![site.as_bytes(), node.as_bytes()])?
        > 0;
    if !is_new {
        return Ok(false);
    }
    let told = tx.told(site)?;
    let stub: Option<Stub> = tx
        .sql
        .prepare_cached(
            "SELECT node, home, home_epoch, retired FROM directory WHERE node = ?1 AND seq <= ?2 AND home != ?3",
        )?
        .query_row(params![node.as_bytes(), told.upto, site.as_bytes()], stub)
        .optional()?;
    // What is newer than that, or in its domain, it hears of anyway.
    match stub.filter(|stub| !told.has(stub.home)) {
        Some(stub) => tx.tell_stubs(site, vec![stub]).map(|()| true),
        None => Ok(true),
    }
}

/// At central: a group or a site has changed, so every domain but the whole fleet may be another one, and that
/// of the site itself, if it is one.
pub(crate) fn outdate_domains(tx: &Tx<'_>, site: Option<SiteId>) -> Result<(), StoreError> {
    let peer = site.map(|site| Origin::Site(site).to_string());
    tx.sql
        .prepare_cached(
            "UPDATE peers SET domain_due = 1 WHERE domain_due = 0 AND (restricted = 1 OR peer = ?1)",
        )?
        .execute([peer])?;
    Ok(())
}

impl Tx<'_> {
    /// Tells a site what it was not told of the directory, at central.
    pub(crate) fn tell_directory(&mut self, site: SiteId) -> Result<(), StoreError> {
        let mut told = self.told(site)?;
        if told.due {
            self.settle_domain(site, &mut told)?;
        }
        let before = told.upto;
        while let Some(last) = self.tell_rows(site, &told)? {
            told.upto = last;
        }
        if told.anew && self.view().suspended()?.is_none() {
            self.tell_gone(site, Gone { anew: Some(Anew::End), ..Gone::default() })?;
            self.sql
                .prepare_cached("UPDATE peers SET directory_anew = 0 WHERE peer = ?1")?
                .execute([Origin::Site(site).to_string()])?;
        }
        if told.upto > before {
            // Where a machine was before that, nobody was told.
            self.sql
                .prepare_cached(
                    "DELETE FROM directory_moves WHERE seq <= (SELECT min(directory) FROM peers WHERE directory > 0)",
                )?
                .execute([])?;
        }
        Ok(())
    }

    /// The same from the beginning, at central: nobody knows what the site has of it.
    pub(crate) fn tell_directory_anew(&mut self, site: SiteId) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE peers SET directory = 0, whole_from = 0, domain_due = 1, directory_anew = 1 WHERE peer = ?1",
            )?
            .execute([Origin::Site(site).to_string()])?;
        self.tell_gone(site, Gone { anew: Some(Anew::Begin), ..Gone::default() })?;
        self.tell_directory(site)
    }

    fn told(&self, site: SiteId) -> Result<Told, StoreError> {
        let peer = Origin::Site(site).to_string();
        let found: Option<(i64, bool, i64, bool, bool)> = self
            .sql
            .prepare_cached(
                "SELECT directory, restricted, whole_from, domain_due, directory_anew FROM peers WHERE peer = ?1",
            )?
            .query_row([&peer], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
            })
            .optional()?;
        let (upto, restricted, whole_from, due, anew) = found.unwrap_or((0, false, 0, true, false));
        let homes = if restricted {
            let mut statement = self.sql.prepare_cached("SELECT home FROM domains WHERE peer = ?1")?;
            let rows = statement.query_map([&peer], |row| Ok(SiteId(row.get(0)?)))?;
            Some(rows.collect::<Result<_, _>>()?)
        } else {
            None
        };
        Ok(Told { upto, homes, whole_from, due, anew })
    }

    /// Brings what a site is told of to its domain as it is now.
    fn settle_domain(&mut self, site: SiteId, told: &mut Told) -> Result<(), StoreError> {
        let peer = Origin::Site(site).to_string();
        let wanted = self.view().domain_of(site)?;
        let before = told.homes.take();
        // Whoever was told nothing yet has nothing to forget, and hears all of it after this.
        if told.upto > 0 {
            self.tell_what_left(site, told.upto, &before, &wanted)?;
            self.tell_what_entered(site, told.upto, &before, &wanted)?;
        }
        let end = signed(log::end(self.sql, Origin::Site(site))?);
        if told.upto == 0 {
            self.sql.prepare_cached("DELETE FROM domains WHERE peer = ?1")?.execute([&peer])?;
        }
        match &wanted {
            None => {
                self.sql.prepare_cached("DELETE FROM domains WHERE peer = ?1")?.execute([&peer])?;
                if before.is_some() {
                    told.whole_from = end;
                }
            }
            Some(homes) => {
                for left in before.iter().flatten().filter(|home| !homes.contains(home)) {
                    self.sql
                        .prepare_cached("DELETE FROM domains WHERE peer = ?1 AND home = ?2")?
                        .execute(params![peer, left.as_bytes()])?;
                }
                // Of the whole fleet it knew these before.
                let from = if before.is_none() && told.upto > 0 { told.whole_from } else { end };
                for home in homes {
                    self.sql
                        .prepare_cached(
                            "INSERT OR IGNORE INTO domains (peer, home, told) VALUES (?1, ?2, ?3)",
                        )?
                        .execute(params![peer, home.as_bytes(), from])?;
                }
            }
        }
        self.sql
            .prepare_cached(
                "UPDATE peers SET restricted = ?2, whole_from = ?3, domain_due = 0 WHERE peer = ?1",
            )?
            .execute(params![peer, wanted.is_some(), told.whole_from])?;
        told.homes = wanted;
        Ok(())
    }

    /// Takes from a site the machines of the homes that are not in its domain any more.
    fn tell_what_left(
        &mut self,
        site: SiteId,
        upto: i64,
        before: &Option<BTreeSet<SiteId>>,
        now: &Option<BTreeSet<SiteId>>,
    ) -> Result<(), StoreError> {
        let Some(now) = now else { return Ok(()) };
        let before = match before {
            Some(before) => before.clone(),
            None => {
                let mut statement = self.sql.prepare_cached(
                    "SELECT DISTINCT home FROM directory WHERE home IS NOT NULL
                     UNION SELECT home FROM directory_moves WHERE home IS NOT NULL",
                )?;
                let rows = statement.query_map([], |row| Ok(SiteId(row.get(0)?)))?;
                rows.collect::<Result<_, _>>()?
            }
        };
        let left: Vec<SiteId> = before.difference(now).copied().filter(|home| *home != site).collect();
        for homes in left.chunks(MANY) {
            self.tell_gone(site, Gone { homes: homes.to_vec(), ..Gone::default() })?;
        }
        if left.is_empty() {
            return Ok(());
        }
        // Those that it visited it goes on to know.
        let visited: Vec<Stub> = {
            let mut statement = self.sql.prepare_cached(
                "SELECT directory.node, home, home_epoch, retired FROM visitors
                     JOIN directory ON directory.node = visitors.node
                 WHERE site = ?1 AND seq <= ?2 AND home IS NOT NULL AND home != ?1",
            )?;
            let rows = statement.query_map(params![site.as_bytes(), upto], stub)?;
            rows.collect::<Result<_, _>>()?
        };
        let visited = visited.into_iter().filter(|stub| stub.home.is_some_and(|home| left.contains(&home)));
        self.tell_stubs(site, visited.collect())
    }

    /// Tells a site of the machines of the homes that are in its domain now, as far as it was told of others.
    fn tell_what_entered(
        &mut self,
        site: SiteId,
        upto: i64,
        before: &Option<BTreeSet<SiteId>>,
        now: &Option<BTreeSet<SiteId>>,
    ) -> Result<(), StoreError> {
        let Some(before) = before else { return Ok(()) };
        let mut stubs = Vec::new();
        match now {
            Some(now) => {
                let mut statement = self.sql.prepare_cached(
                    "SELECT node, home, home_epoch, retired FROM directory WHERE home = ?1 AND seq <= ?2",
                )?;
                for home in now.difference(before).filter(|home| **home != site) {
                    for row in statement.query_map(params![home.as_bytes(), upto], stub)? {
                        stubs.push(row?);
                    }
                }
            }
            None => {
                let mut statement = self.sql.prepare_cached(
                    "SELECT node, home, home_epoch, retired FROM directory
                     WHERE home IS NOT NULL AND home != ?1 AND seq <= ?2 ORDER BY seq",
                )?;
                for row in statement.query_map(params![site.as_bytes(), upto], stub)? {
                    let row = row?;
                    if !row.home.is_some_and(|home| before.contains(&home)) {
                        stubs.push(row);
                    }
                }
            }
        }
        for stubs in stubs.chunks(MANY) {
            self.tell_stubs(site, stubs.to_vec())?;
        }
        Ok(())
    }

    /// Tells the next rows after those that were told, and returns the last; nothing where there is none.
    fn tell_rows(&mut self, site: SiteId, told: &Told) -> Result<Option<i64>, StoreError> {
        let (mut stubs, mut gone, mut last) = (Vec::new(), Vec::new(), None);
        {
            let mut statement = self.sql.prepare_cached(
                "SELECT node, home, home_epoch, retired, seq, since FROM directory WHERE seq > ?1
                 ORDER BY seq LIMIT ?2",
            )?;
            let mut rows = statement.query(params![told.upto, signed(MANY as u64)])?;
            while let Some(row) = rows.next()? {
                let (stub, since) = (stub(row)?, row.get::<_, i64>(5)?);
                last = Some(row.get(4)?);
                let is_own = stub.home == Some(site);
                if !is_own && (told.has(stub.home) || is_visitor(self.sql, site, stub.node)?) {
                    stubs.push(stub);
                } else if since <= told.upto && self.had(site, told, &stub)? {
                    gone.push(stub.node);
                }
            }
        }
        let Some(last) = last else { return Ok(None) };
        self.sql
            .prepare_cached("UPDATE peers SET directory = ?2 WHERE peer = ?1")?
            .execute(params![Origin::Site(site).to_string(), last])?;
        self.tell_stubs(site, stubs)?;
        if !gone.is_empty() {
            self.tell_gone(site, Gone { nodes: gone, ..Gone::default() })?;
        }
        Ok(Some(last))
    }

    /// Whether a machine was in the site's directory when the site was told last.
    fn had(&self, site: SiteId, told: &Told, stub: &Stub) -> Result<bool, StoreError> {
        let moved: Option<Option<[u8; 16]>> = self
            .sql
            .prepare_cached(
                "SELECT home FROM directory_moves WHERE node = ?1 AND seq > ?2 ORDER BY seq LIMIT 1",
            )?
            .query_row(params![stub.node.as_bytes(), told.upto], |row| row.get(0))
            .optional()?;
        let home = moved.map_or(stub.home, |home| home.map(SiteId));
        Ok(home != Some(site) && (told.has(home) || is_visitor(self.sql, site, stub.node)?))
    }

    fn tell_stubs(&mut self, site: SiteId, stubs: Vec<Stub>) -> Result<(), StoreError> {
        if stubs.is_empty() { Ok(()) } else { self.tell_of_directory(site, &Item::stubs(stubs)) }
    }

    fn tell_gone(&mut self, site: SiteId, gone: Gone) -> Result<(), StoreError> {
        self.tell_of_directory(site, &Item::gone(gone))
    }

    fn tell_of_directory(&mut self, site: SiteId, item: &Item) -> Result<(), StoreError> {
        let peer = Origin::Site(site);
        self.tell(peer, Row::Note(item.to_bytes()))?;
        let end = log::end(self.sql, peer)?;
        self.sql
            .prepare_cached("UPDATE peers SET directory_at = ?2 WHERE peer = ?1")?
            .execute(params![peer.to_string(), signed(end)])?;
        Ok(())
    }

    /// At central: whether the directory had told the site of `from`, by what it had acknowledged then, that a
    /// machine is at home elsewhere.
    pub(crate) fn had_told_elsewhere(
        &self,
        from: Position,
        site: SiteId,
        node: NodeId,
    ) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached(
                "SELECT 1 FROM directory WHERE node = ?1 AND home != ?2 AND seq <= ?3 AND (
                     EXISTS (SELECT 1 FROM peers WHERE peer = ?4 AND restricted = 0 AND whole_from <= ?5)
                     OR EXISTS (SELECT 1 FROM domains
                         WHERE peer = ?4 AND domains.home = directory.home AND told <= ?5))",
            )?
            .exists(params![
                node.as_bytes(),
                site.as_bytes(),
                signed(from.directory),
                from.peer.to_string(),
                signed(from.known)
            ])?)
    }

    /// At central: whether a machine is at home outside of what the site is told of, so that it is a stranger
    /// there once its document has left.
    pub(crate) fn is_beyond(&self, site: SiteId, node: NodeId) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached(
                "SELECT 1 FROM directory JOIN peers ON peer = ?3 WHERE node = ?1 AND home != ?2
                     AND restricted = 1 AND home NOT IN (SELECT home FROM domains WHERE domains.peer = ?3)
                     AND NOT EXISTS (SELECT 1 FROM visitors WHERE visitors.site = ?2 AND visitors.node = ?1)",
            )?
            .exists(params![node.as_bytes(), site.as_bytes(), Origin::Site(site).to_string()])?)
    }

    /// Takes over what central tells of the directory, at a site.
    pub(crate) fn take_stubs(&mut self, stubs: &[Stub]) -> Result<(), StoreError> {
        for stub in stubs {
            keep(self, stub)?;
        }
        Ok(())
    }

    /// Forgets what central says is not this site's to know, at a site.
    pub(crate) fn take_gone(&mut self, gone: &Gone) -> Result<(), StoreError> {
        for home in &gone.homes {
            self.sql.prepare_cached("DELETE FROM directory WHERE home = ?1")?.execute([home.as_bytes()])?;
        }
        for node in &gone.nodes {
            self.sql.prepare_cached("DELETE FROM directory WHERE node = ?1")?.execute([node.as_bytes()])?;
        }
        match gone.anew {
            None => Ok(()),
            Some(Anew::Begin) => {
                let newest: i64 =
                    self.sql.query_row("SELECT ifnull(max(seq), 0) FROM directory", [], |row| row.get(0))?;
                set_meta(self.sql, SWEEP, &newest.to_be_bytes())
            }
            Some(Anew::End) => {
                let upto = meta(self.sql, SWEEP)?.and_then(|bytes| bytes.try_into().ok());
                if let Some(upto) = upto.map(i64::from_be_bytes) {
                    self.sql.prepare_cached("DELETE FROM directory WHERE seq <= ?1")?.execute([upto])?;
                    self.sql.prepare_cached("DELETE FROM meta WHERE key = ?1")?.execute([SWEEP])?;
                }
                Ok(())
            }
        }
    }
}

fn is_visitor(sql: &rusqlite::Connection, site: SiteId, node: NodeId) -> Result<bool, StoreError> {
    Ok(sql
        .prepare_cached("SELECT 1 FROM visitors WHERE site = ?1 AND node = ?2")?
        .exists(params![site.as_bytes(), node.as_bytes()])?)
}

impl View<'_> {
    /// Where a machine belongs, as far as the directory says.
    pub fn directory(&self, node: NodeId) -> Result<Option<DirectoryRow>, StoreError> {
        row(self.sql, node)
    }

    /// At central: how far a site is with its directory.
    pub fn directory_standing(&self, site: SiteId) -> Result<DirectoryStanding, StoreError> {
        let found = self
            .sql
            .prepare_cached(
                "SELECT domain_due = 0 AND directory_anew = 0
                         AND directory >= (SELECT ifnull(max(seq), 0) FROM directory),
                     directory_at <= acknowledged FROM peers WHERE peer = ?1",
            )?
            .query_row([Origin::Site(site).to_string()], |row| {
                Ok(DirectoryStanding { told: row.get(0)?, acknowledged: row.get(1)? })
            })
            .optional()?;
        Ok(found.unwrap_or(DirectoryStanding { told: false, acknowledged: false }))
    }

    /// At a site: whether central is telling the directory anew. Until it has, the site may know too much.
    pub fn directory_is_told_anew(&self) -> Result<bool, StoreError> {
        Ok(meta(self.sql, SWEEP)?.is_some())
    }

    /// Number of machines in the directory.
    pub fn count_directory(&self) -> Result<u64, StoreError> {
        let count: i64 = self.sql.query_row("SELECT count(*) FROM directory", [], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }
}
