//! What this replica and a peer have of each other.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};
use sync::{
    document::Kind,
    engine::{Claim, Greeting},
    id::{DocumentId, Incarnation, Origin},
    journal::{Event, Head, Mark},
    policy::{Reason, quota::Hold},
    time::{MAX_DRIFT, Timestamp},
    wire::{Cursor, Fingerprint, Gone, Item, Reset, Rolling, Seal, StreamHead, Stub, Telemetry},
};

use crate::{
    StoreError, Tx,
    authority::Known,
    command::{answer, claim, conflict, fence, node, proposal, settings, site, task, twin},
    life,
    log::{self, signed},
    marks::stream_between,
    quarantine::{Aside, NOTHING},
};

pub use sync::engine::Standing;

impl Tx<'_> {
    pub(crate) fn ensure_peer(&self, peer: Origin) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("INSERT OR IGNORE INTO peers (peer) VALUES (?1)")?
            .execute([peer.to_string()])?;
        Ok(())
    }

    /// What is here of the peer's log.
    fn pulled(&self, peer: Origin) -> Result<Cursor, StoreError> {
        let found = self
            .sql
            .prepare_cached("SELECT pulled, pulled_rolling FROM peers WHERE peer = ?1")?
            .query_row([peer.to_string()], |row| {
                Ok(Cursor { position: row.get::<_, i64>(0)?.unsigned_abs(), rolling: Rolling(row.get(1)?) })
            })
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    fn acknowledged(&self, peer: Origin) -> Result<u64, StoreError> {
        let found: Option<i64> = self
            .sql
            .prepare_cached("SELECT acknowledged FROM peers WHERE peer = ?1")?
            .query_row([peer.to_string()], |row| row.get(0))
            .optional()?;
        Ok(found.unwrap_or(0).unsigned_abs())
    }

    /// Where we stand towards `peer`. At central `claim` is what the site says of itself, and what is
    /// decided here is how the session goes on.
    pub(crate) fn standing(&mut self, peer: Origin, claim: Option<Claim>) -> Result<Standing, StoreError> {
        self.ensure_peer(peer)?;
        let greeting = match &claim {
            None => Greeting::Continue,
            Some(claim) => self.greeting(peer, claim)?,
        };
        let bond = self.bond(peer)?;
        let common = bond.life.filter(|_| !bond.anew);
        let mut standing = Standing {
            incarnation: self.state.incarnation,
            policy_epoch: self.view().policy_epoch()?,
            pulled: self.pulled(peer)?,
            pushed: None,
            end: log::end(self.sql, peer)?,
            fingerprint: Fingerprint::default(),
            agrees: None,
            central: common,
            log: Some(bond.logs).filter(|_| !bond.anew || peer != Origin::Central),
            seal: bond.seal.filter(|_| common.is_some()),
            greeting,
        };
        match claim {
            None => {
                let acknowledged = self.acknowledged(peer)?;
                standing.pushed = self.locate(peer, acknowledged)?;
                standing.fingerprint = self.fingerprint(peer, acknowledged)?;
            }
            Some(claim) if standing.greeting == Greeting::Continue => {
                let had = claim.pulled.position;
                standing.agrees = self.compare(peer, had, claim.pushed, &claim.fingerprint)?;
            }
            Some(_) => {}
        }
        Ok(standing)
    }

    /// At central: how a session goes on whose site greets with `claim`.
    fn greeting(&mut self, peer: Origin, claim: &Claim) -> Result<Greeting, StoreError> {
        let bond = self.bond(peer)?;
        let life = self.state.incarnation;
        let Claim { pulled, seal, log, .. } = *claim;
        if let Origin::Site(site) = peer {
            self.see_epoch(site, claim.policy_epoch)?;
        }
        let common = bond.life == Some(claim.incarnation) && !bond.anew && claim.central == Some(life);
        if !common {
            // Also where the answer to its first greeting never reached the site: nothing was exchanged since.
            let is_first = bond.life.is_none_or(|life| life == claim.incarnation)
                && (bond.logs, log) == (0, Some(0))
                && claim.central.is_none();
            let exchanged = [pulled.position, claim.pushed, self.pulled(peer)?.position, bond.acknowledged];
            if is_first && exchanged == [0; 4] {
                self.gather_log(peer)?;
                self.settle(peer, claim.incarnation)?;
                return Ok(Greeting::Continue);
            }
            // A join that was broken off goes on with the logs that it began.
            if bond.life != Some(claim.incarnation) || !bond.anew {
                life::begin_logs(self.sql, peer)?;
                self.sql
                    .prepare_cached("UPDATE peers SET life = ?2 WHERE peer = ?1")?
                    .execute(params![peer.to_string(), claim.incarnation.as_bytes()])?;
            }
            return Ok(Greeting::Join);
        }
        // Where a log of the site's is none that we began, or not the last one, its positions are none of ours.
        let theirs = log.unwrap_or_default();
        if theirs == bond.logs && self.locate(peer, pulled.position)? == Some(pulled) {
            return Ok(Greeting::Continue);
        }
        if seal.is_some()
            && seal == self.seal_cursor(peer, life, theirs, pulled)
            && (theirs, pulled.position) > (bond.logs, bond.acknowledged)
        {
            let reason = format!(
                "{peer} has {} items of central's log, sealed by central itself, which central does not have: \
                 central's database went back in time",
                pulled.position
            );
            self.begin_life(&Reason::new(reason.clone()))?;
            return Ok(Greeting::Restored(reason));
        }
        Ok(Greeting::Forked(format!(
            "the site has {} items of central's log, which are not where central knows the site to be; \
             the site's database went back in time",
            pulled.position
        )))
    }

    fn bond(&self, peer: Origin) -> Result<Bond, StoreError> {
        let found = self
            .sql
            .prepare_cached(
                "SELECT life, anew, seal, settled, acknowledged, logs FROM peers WHERE peer = ?1",
            )?
            .query_row([peer.to_string()], |row| {
                Ok(Bond {
                    life: row.get::<_, Option<[u8; 16]>>(0)?.map(Incarnation),
                    anew: row.get(1)?,
                    seal: row.get::<_, Option<[u8; 16]>>(2)?.map(Seal),
                    settled: row.get::<_, i64>(3)?.unsigned_abs(),
                    acknowledged: row.get::<_, i64>(4)?.unsigned_abs(),
                    logs: row.get::<_, i64>(5)?.unsigned_abs(),
                })
            })
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    /// Keeps that the logs with `peer` begin as they are, in this life of its database.
    pub(crate) fn settle(&mut self, peer: Origin, life: Incarnation) -> Result<(), StoreError> {
        self.ensure_peer(peer)?;
        self.sql
            .prepare_cached("UPDATE peers SET life = ?2, anew = 0 WHERE peer = ?1")?
            .execute(params![peer.to_string(), life.as_bytes()])?;
        Ok(())
    }

    /// At central: what the site at `position` of our log is told to know it again by.
    pub(crate) fn seal_position(&self, peer: Origin, position: u64) -> Result<Option<Seal>, StoreError> {
        let (life, log) = (self.state.incarnation, self.bond(peer)?.logs);
        Ok(self.locate(peer, position)?.and_then(|cursor| self.seal_cursor(peer, life, log, cursor)))
    }

    /// Our log for `peer` at a position, if it reaches that far.
    pub fn locate(&self, peer: Origin, position: u64) -> Result<Option<Cursor>, StoreError> {
        Ok(log::mark(self.sql, peer, Some(position))?.map(|mark| mark.cursor))
    }

    /// Keeps that `peer` has everything of our log up to `position`.
    pub fn acknowledge(&mut self, peer: Origin, position: u64) -> Result<(), StoreError> {
        self.ensure_peer(peer)?;
        self.sql
            .prepare_cached(
                "UPDATE peers SET acknowledged = max(acknowledged, ?2), common_entry = max(common_entry, ifnull(
                     (SELECT max(entry) FROM log WHERE peer = ?1 AND position <= ?2), 0))
                 WHERE peer = ?1",
            )?
            .execute(params![peer.to_string(), signed(position)])?;
        // What the peer has is not told again; where it stands is what both count from.
        self.sql
            .prepare_cached("DELETE FROM log WHERE peer = ?1 AND position < ?2")?
            .execute(params![peer.to_string(), signed(position)])?;
        self.evict_dropped()
    }

    /// Takes over items of the peer's log and returns what is here of it now.
    ///
    /// Whatever an item is, the next ones are taken: what does not decode, what is not sound and what does not
    /// follow its chain is set aside.
    ///
    /// # Errors
    /// `Malformed` when the items do not follow what is here; then nothing is taken.
    pub(crate) fn ingest(
        &mut self,
        peer: Origin,
        from: u64,
        items: &[Vec<u8>],
        seal: Option<Seal>,
    ) -> Result<Ingest, StoreError> {
        self.ensure_peer(peer)?;
        let mut cursor = self.pulled(peer)?;
        if from != cursor.position + 1 {
            return Err(StoreError::Malformed {
                what: "batch of log items",
                why: format!("it begins at {from} and {} are here", cursor.position),
            });
        }
        let decoded: Vec<Result<Item, _>> = items.iter().map(|bytes| minicbor::decode(bytes)).collect();
        let (allowed, hold) = self.within_quota(peer, items, &decoded)?;
        let before = self.ever_aside(peer)?;
        let mut run: Option<Run> = None;
        let mut chain: Option<Head> = None;
        self.known.replace(Some(Known::default()));
        let mut ours_came_back = false;
        let mut written: BTreeMap<DocumentId, Kind> = BTreeMap::new();
        for (bytes, item) in items.iter().zip(decoded).take(allowed) {
            cursor = Cursor { position: cursor.position + 1, rolling: cursor.rolling.over(bytes) };
            let item = match item {
                Ok(item) => item,
                Err(error) => {
                    let aside = Aside { kind: NOTHING, id: DocumentId([0; 16]), denied: false, bytes };
                    self.set_aside(peer, &aside, &format!("log item cannot be decoded: {error}"))?;
                    continue;
                }
            };
            match (item.kind, item.document, item.change, item.entry) {
                (Some(kind), Some(document), Some(change), _) => {
                    let Some(kind) = Kind::from_number(kind) else {
                        // A kind of a newer program: kept aside, so that nothing is lost.
                        let aside = Aside { kind: kind.into(), id: document, denied: false, bytes: &change };
                        self.set_aside(peer, &aside, "documents of this kind are not known to this program")?;
                        continue;
                    };
                    match &mut run {
                        Some(run) if run.kind == kind && run.id == document => {
                            run.batch.push((change, item.seal));
                        }
                        Some(_) | None => {
                            ours_came_back |= self.take_run(run.take(), peer, cursor.position)?;
                            written.insert(document, kind);
                            run = Some(Run { kind, id: document, batch: vec![(change, item.seal)] });
                        }
                    }
                }
                (_, _, _, Some(entry)) => {
                    ours_came_back |= self.take_run(run.take(), peer, cursor.position)?;
                    let stream = stream_between(peer, self.state.origin);
                    self.take_entry(peer, stream, &entry, &mut chain)?;
                }
                _ => {
                    ours_came_back |= self.take_run(run.take(), peer, cursor.position)?;
                    // It may say where the peer's chain goes on.
                    chain = None;
                    self.known.replace(Some(Known::default()));
                    self.take_note(peer, Note::of(&Item { change: None, entry: None, ..item }))?;
                }
            }
        }
        ours_came_back |= self.take_run(run, peer, cursor.position)?;
        self.known.replace(None);
        site::follow_epoch(self)?;
        // Not before: what comes next may be the last word of somebody who had seen all sides.
        for (id, kind) in written {
            conflict::settle(self, kind, id)?;
            if kind == Kind::Node {
                twin::settle(self, id.into())?;
            }
        }
        if let Origin::Site(site) = peer
            && self.was_asked
            && !ours_came_back
        {
            answer::due(self, site)?;
        }
        self.outdate_agreement(peer)?;
        if self.ever_aside(peer)? > before {
            self.set_agreement(peer, false)?;
        }
        self.sql
            .prepare_cached("UPDATE peers SET pulled = ?2, pulled_rolling = ?3, seal = ?4 WHERE peer = ?1")?
            .execute(params![
                peer.to_string(),
                signed(cursor.position),
                cursor.rolling.0,
                seal.map(|seal| seal.0)
            ])?;
        if ours_came_back {
            let reason = match self.state.origin {
                Origin::Central => {
                    "a site has changes that central wrote and does not hold: central's database went back in time"
                }
                Origin::Site(_) => {
                    "central has changes that this database wrote and does not hold: it went back in time"
                }
            };
            self.begin_life(&Reason::new(reason))?;
            return Ok(Ingest::Forked(reason.into()));
        }
        Ok(match hold {
            None => Ingest::Taken(cursor),
            Some(hold) => Ingest::HeldBack(cursor, hold),
        })
    }

    /// Takes over changes of one document. Tells whether one was of our own actor and not here.
    fn take_run(&mut self, run: Option<Run>, peer: Origin, upto: u64) -> Result<bool, StoreError> {
        let Some(Run { kind, id, batch }) = run else { return Ok(false) };
        let (batch, seals): (Vec<Vec<u8>>, Vec<Option<Seal>>) = batch.into_iter().unzip();
        let admitted = self.admit(kind, id, &batch, &seals, peer, upto)?;
        match kind {
            Kind::Node => {
                node::settle_home(self, id.into())?;
                claim::one_home(self, id.into())?;
                claim::from_observations(self, id.into(), peer.site())?;
                claim::settle_about(self, id.into())?;
            }
            Kind::Workflow => {}
            Kind::Task => {
                task::follow_abort(self, id.into())?;
                fence::task_came(self, id.into())?;
            }
            Kind::Claim => claim::settle(self, id.into())?,
            Kind::Proposal => {
                proposal::settle(self, id.into())?;
                self.was_asked = true;
            }
            Kind::Site => {
                site::follow_resumed(self, id.into())?;
                settings::descend(self, [id.into()], "settings came back")?;
            }
            Kind::Group => {
                let sites = self.view().sites_within(id.into())?;
                settings::descend(self, sites, "settings came back")?;
            }
        }
        if kind != Kind::Node {
            // What a site may do stands in other documents.
            self.known.replace(Some(Known::default()));
        }
        Ok(admitted.ours_came_back)
    }

    /// Takes over what is neither a change nor an entry. Only central says such things, but for what each says of
    /// its journal; what a newer program says counts and means nothing to us.
    fn take_note(&mut self, peer: Origin, note: Note) -> Result<(), StoreError> {
        match (self.state.origin, note) {
            (_, Note::Mark(mark)) => self.take_mark(peer, &mark),
            (_, Note::Broken(newest)) => self.take_broken(peer, &newest),
            (Origin::Site(_), Note::Dropped(id)) => self.drop_document(peer, id),
            (Origin::Site(_), Note::Stubs(stubs)) => self.take_stubs(&stubs),
            (Origin::Site(_), Note::Gone(gone)) => self.take_gone(&gone),
            (Origin::Site(_), Note::Recovering(is)) => self.take_recovering(is),
            (Origin::Site(_), Note::Reset(kind, id, reset)) => self.take_reset(peer, kind, id, &reset),
            (Origin::Site(_), Note::Withdrawn(kind, id, hashes)) => {
                self.take_withdrawn(peer, kind, id, &hashes)
            }
            (Origin::Site(_), Note::Unknown) | (Origin::Central, _) => Ok(()),
        }
    }

    /// What is held here, less what `peer` has not acknowledged after `pushed`.
    pub fn fingerprint(&mut self, peer: Origin, pushed: u64) -> Result<Fingerprint, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT id, heads, changes, sum FROM documents WHERE changes > 0 AND dropped = 0",
        )?;
        let held = self.sum(&mut statement, params![])?;
        drop(statement);
        self.at_position(peer, held, pushed)
    }

    /// At central: whether a site holds what it should at (pulled, pushed); nothing if that cannot be
    /// said at these positions.
    pub fn compare(
        &mut self,
        site: Origin,
        pulled: u64,
        pushed: u64,
        found: &Fingerprint,
    ) -> Result<Option<bool>, StoreError> {
        let settled = self.bond(site)?.settled;
        if self.pulled(site)?.position != pushed || pulled < settled || self.locate(site, pulled)?.is_none() {
            return Ok(None);
        }
        let mut statement = self.sql.prepare_cached(
            "SELECT id, heads, changes, sum FROM scope JOIN documents ON documents.doc = scope.doc
             WHERE peer = ?1 AND inside = 1 AND changes > 0",
        )?;
        let held = self.sum(&mut statement, params![site.to_string()])?;
        drop(statement);
        let expected = self.at_position(site, held, pulled)?;
        let agrees = expected.agrees(found);
        // The site states its heads only where nothing of its log is left to tell.
        if agrees && found.heads.is_some() {
            self.note_returned(site)?;
        }
        tracing::debug!(%site, pulled, pushed, ?expected, ?found, agrees, "compared");
        Ok(Some(agrees))
    }

    /// Something moved: that both sides held the same says nothing any more. That they differed stays.
    pub(crate) fn outdate_agreement(&self, peer: Origin) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE peers SET agrees = NULL WHERE peer = ?1 AND agrees = 1")?
            .execute([peer.to_string()])?;
        Ok(())
    }

    /// Keeps whether both sides hold the same; the moment they cease to is a fact for the journal.
    pub fn set_agreement(&mut self, peer: Origin, agrees: bool) -> Result<(), StoreError> {
        self.ensure_peer(peer)?;
        let before = self.view().peer(peer)?;
        self.sql
            .prepare_cached("UPDATE peers SET agrees = ?2, compared_at = ?3 WHERE peer = ?1")?
            .execute(params![peer.to_string(), agrees, signed(self.given.now.0)])?;
        if let (false, Origin::Site(site)) = (agrees, peer)
            && before.agrees != Some(false)
        {
            self.journal(Event::ReplicaDiverged {
                site,
                pulled: before.acknowledged,
                pushed: before.pulled,
            })?;
        }
        Ok(())
    }

    /// Keeps that `peer` was heard, and what it told of itself.
    pub fn heard(
        &mut self,
        peer: Origin,
        clock: Timestamp,
        telemetry: Option<&Telemetry>,
    ) -> Result<(), StoreError> {
        self.ensure_peer(peer)?;
        let telemetry =
            telemetry.map(|telemetry| minicbor::to_vec(telemetry).expect("encoding into memory cannot fail"));
        self.sql
            .prepare_cached(
                "UPDATE peers SET heard_at = ?2, clock = ?3, telemetry = ifnull(?4, telemetry), refused = NULL
                 WHERE peer = ?1",
            )?
            .execute(params![peer.to_string(), signed(self.given.now.0), signed(clock.0), telemetry])?;
        match peer {
            Origin::Central => {
                // What our own clock showed beyond what central says now was wrong.
                if self.state.known > clock.after(MAX_DRIFT) {
                    self.state.known = clock;
                }
                self.confirm_central_time(clock)
            }
            Origin::Site(site) => {
                claim::tend(self, Some(site))?;
                self.tell_directory(site)
            }
        }
    }

    /// Keeps why a session was refused, until the next one is established. A peer whose log is another
    /// one than ours has diverged, whatever the fingerprints said before.
    pub fn refused(&mut self, peer: Origin, forked: bool, reason: &str) -> Result<(), StoreError> {
        self.ensure_peer(peer)?;
        self.sql
            .prepare_cached("UPDATE peers SET refused = ?2 WHERE peer = ?1")?
            .execute(params![peer.to_string(), reason])?;
        if forked { self.set_agreement(peer, false) } else { Ok(()) }
    }
}

/// Changes of one document that arrived together, each with its seal.
struct Run {
    kind: Kind,
    id: DocumentId,
    batch: Vec<(Vec<u8>, Option<Seal>)>,
}

/// What an item says that is neither a change nor an entry.
enum Note {
    Dropped(DocumentId),
    Stubs(Vec<Stub>),
    Gone(Gone),
    Reset(Kind, DocumentId, Reset),
    Recovering(bool),
    Mark(Mark),
    Broken(StreamHead),
    Withdrawn(Kind, DocumentId, Vec<u8>),
    Unknown,
}

impl Note {
    fn of(item: &Item) -> Self {
        let kind = item.kind.and_then(Kind::from_number);
        match (item, kind, item.document) {
            (Item { reset: Some(reset), .. }, Some(kind), Some(id)) => Note::Reset(kind, id, reset.clone()),
            (Item { withdrawn: Some(hashes), .. }, Some(kind), Some(id)) => {
                Note::Withdrawn(kind, id, hashes.clone())
            }
            (Item { dropped: Some(true), .. }, _, Some(id)) => Note::Dropped(id),
            (Item { stubs: Some(stubs), .. }, ..) => Note::Stubs(stubs.clone()),
            (Item { gone: Some(gone), .. }, ..) => Note::Gone(gone.clone()),
            (Item { recovering: Some(is), .. }, ..) => Note::Recovering(*is),
            (Item { mark: Some(mark), .. }, ..) => Note::Mark(mark.clone()),
            (Item { broken: Some(newest), .. }, ..) => Note::Broken(*newest),
            _ => Note::Unknown,
        }
    }
}

/// What became of items of a peer's log.
pub(crate) enum Ingest {
    /// They are here up to this position.
    Taken(Cursor),
    /// They are here up to this position; the rest is beyond the site's quota.
    HeldBack(Cursor, Hold),
    /// They are here, and showed that our database went back in time: another life of it has begun.
    Forked(String),
}

/// What binds our log and a peer's.
#[derive(Default)]
struct Bond {
    /// Life of the peer's database that both are counted in.
    life: Option<Incarnation>,
    /// Both begin anew and nobody knows yet what each lacks.
    anew: bool,
    /// What central put beside our position in its log.
    seal: Option<Seal>,
    /// Before this position of our log the peer may lack something.
    settled: u64,
    acknowledged: u64,
    /// How often both logs were begun anew.
    logs: u64,
}

impl Tx<'_> {
    /// Sums up documents: (id, heads, number of changes, sum of changes).
    fn sum(
        &self,
        statement: &mut rusqlite::CachedStatement<'_>,
        params: impl rusqlite::Params,
    ) -> Result<Fingerprint, StoreError> {
        let mut held = Fingerprint { heads: Some(0), ..Fingerprint::default() };
        let mut rows = statement.query(params)?;
        while let Some(row) = rows.next()? {
            held.add_heads(DocumentId(row.get(0)?), row.get_ref(1)?.as_blob().unwrap_or_default());
            held.changes = held.changes.wrapping_add(row.get::<_, i64>(2)?.unsigned_abs());
            held.sum = held.sum.wrapping_add(u128::from_be_bytes(row.get(3)?));
        }
        Ok(held)
    }

    /// Takes off what our log for `peer` says after `position`. Heads are those of the end only.
    fn at_position(&self, peer: Origin, held: Fingerprint, position: u64) -> Result<Fingerprint, StoreError> {
        let end = log::mark(self.sql, peer, None)?.unwrap_or_default();
        let at = log::mark(self.sql, peer, Some(position))?.unwrap_or_default();
        let changes = end.fingerprint.changes.wrapping_sub(at.fingerprint.changes);
        let sum = end.fingerprint.sum.wrapping_sub(at.fingerprint.sum);
        Ok(Fingerprint {
            changes: held.changes.wrapping_sub(changes),
            sum: held.sum.wrapping_sub(sum),
            heads: held.heads.filter(|_| position == end.cursor.position),
        })
    }
}
