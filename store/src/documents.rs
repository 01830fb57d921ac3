//! Documents on disk: changes in the order of arrival, snapshots over them, heads beside them.

use std::{collections::BTreeSet, sync::Arc};

use automerge::{Change, ChangeHash};
use rusqlite::{OptionalExtension, params};
use sync::{
    document::{Author, Document, Kind, register::Edit},
    engine::brief::{self, BriefError, Name},
    id::{DocumentId, Incarnation, Origin},
    ingress::{self, Authority, Outcome, Spoilt, UnknownKeys, Write},
    time::Timestamp,
    wire::{Fingerprint, Refusal, Seal},
};

use crate::{
    StoreError, Tx,
    authority::{Judge, Marks, Position},
    log::signed,
    scope, view,
};

/// Changes of one document by one peer that wait for others at most.
const MAX_PARKED: i64 = 1_000;

/// A snapshot is taken when this many changes follow the last one: to open a document takes as long for five of
/// them as for all that the snapshot holds …
const TAIL_CHANGES: i64 = 8;

/// … or this many bytes.
const TAIL_BYTES: i64 = 8 << 10;

/// So many changes that a snapshot covers keep their bytes all the same: the newest, which peers are told next.
const KEPT_CHANGES: i64 = 24;

/// Of a row of `documents`: it is a machine at a site, with an attempt there that is past its first write.
const UNDER_WAY: &str = "EXISTS (SELECT 1 FROM view_tasks WHERE node = documents.id
     AND json_extract(view_tasks.body, '$.consumed_by') IS NOT NULL
     AND state NOT IN ('completed', 'failed', 'rejected', 'cancelled', 'stale'))";

/// A snapshot up to this size is kept as it is and opened sooner; a longer one is compressed. It is what one page of
/// the database takes.
const PLAIN_SNAPSHOT: usize = 4_000;

impl Tx<'_> {
    /// Writes registers of a document in one change; a document that is not here begins with its genesis.
    pub(crate) fn write(
        &mut self,
        kind: Kind,
        id: DocumentId,
        edit: impl FnOnce(&mut Edit<'_>),
    ) -> Result<(), StoreError> {
        let doc = self.ensure(kind, id, None)?;
        self.open(doc, kind, id)?;
        let mut author = self.author()?.clone();
        let incarnation = author.incarnation;
        if let Some(actor) = self.actor_of(doc)? {
            author.incarnation = actor;
        }
        let document = self.state.open.get(doc).expect("it was just opened");
        let change = document.write(&mut author, edit);
        self.author = Some(Author { incarnation, ..author });
        self.touched.insert(doc);
        if let Some(change) = change {
            let change = self.insert_change(doc, &change, None, None)?;
            self.finish(doc, kind, &[change])?;
        }
        Ok(())
    }

    /// Gives an open document to a reader, if it is here.
    pub(crate) fn with_document<T>(
        &mut self,
        kind: Kind,
        id: DocumentId,
        read: impl FnOnce(&Document) -> T,
    ) -> Result<Option<T>, StoreError> {
        let Some(doc) = self.find(id)? else { return Ok(None) };
        self.open(doc, kind, id)?;
        Ok(self.state.open.get(doc).map(|document| read(document)))
    }

    /// An open document, if it is here.
    pub(crate) fn shared(&mut self, kind: Kind, id: DocumentId) -> Result<Option<Arc<Document>>, StoreError> {
        let Some(doc) = self.find(id)? else { return Ok(None) };
        self.open(doc, kind, id)?;
        Ok(self.state.open.share(doc))
    }

    /// Takes a peer's changes of one document through ingress, in the order given. Returns how many
    /// became part of the document, were parked, or were set aside.
    pub(crate) fn admit(
        &mut self,
        kind: Kind,
        id: DocumentId,
        batch: &[Vec<u8>],
        seals: &[Option<Seal>],
        peer: Origin,
        upto: u64,
    ) -> Result<Admitted, StoreError> {
        let doc = self.ensure(kind, id, Some(peer))?;
        let known = match self.state.open.get(doc) {
            Some(document) => document.kind(),
            None => self.kind_of(doc)?,
        };
        if known != kind {
            for bytes in batch {
                self.quarantine(kind, id, peer, bytes, false, "the document is of another kind")?;
            }
            return Ok(Admitted::default());
        }
        if self.state.origin == Origin::Central {
            self.give_way(doc, kind, id, batch, seals)?;
        }
        let from = self.position(peer)?;
        let mut admitted = self.admit_once(doc, kind, id, batch, seals, from)?;
        let mut goes_on = admitted.accepted > 0;
        // What arrived may be what parked changes waited for, also those that somebody else delivered.
        while goes_on {
            goes_on = false;
            for (from, waiting) in self.take_parked(id)? {
                let (waiting, seals): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
                let again = self.admit_once(doc, kind, id, &waiting, &seals, from)?;
                goes_on |= again.accepted > 0;
                admitted.ours_came_back |= again.ours_came_back;
                admitted.accepted += again.accepted;
                admitted.refused.extend(again.refused);
            }
        }
        if self.state.origin == Origin::Central && !admitted.refused.is_empty() {
            let refused = std::mem::take(&mut admitted.refused);
            self.tell_reset(peer, kind, id, upto, refused)?;
        }
        Ok(admitted)
    }

    fn admit_once(
        &mut self,
        doc: i64,
        kind: Kind,
        id: DocumentId,
        batch: &[Vec<u8>],
        seals: &[Option<Seal>],
        from: Position,
    ) -> Result<Admitted, StoreError> {
        let peer = from.peer;
        self.open(doc, kind, id)?;
        self.touched.insert(doc);
        let judge = self.judge(from, id, batch, seals)?;
        let unknown = match self.state.origin {
            Origin::Central => UnknownKeys::Refuse,
            // Central may run a newer program; what it adds is kept although it is not understood here.
            Origin::Site(_) => UnknownKeys::Keep,
        };
        let document = self.state.open.take(doc).expect("it was just opened");
        let slices: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
        let ask = |document: &Document, change: &Change, writes: &[Write]| {
            judge.as_ref().map_or(Ok(()), |judge| judge.ask(document, change, writes))
        };
        let authority = if judge.is_some() { Authority::Judged(&ask) } else { Authority::Trusted };
        let (document, outcomes) = match ingress::admit_into(document, &slices, unknown, authority) {
            Ok(admitted) => admitted,
            Err(Spoilt) => {
                // As it was: all that became of it so far is in this transaction.
                let document = load(self.sql, doc, kind, id)?;
                let admission = ingress::admit(&document, &slices, unknown, authority);
                (admission.document.unwrap_or(document), admission.outcomes)
            }
        };
        let marks = judge.map_or_else(|| Ok(Marks::new()), Judge::end)?;
        self.state.open.insert(doc, document);
        // Whoever had let go of a document gets it anew with what it wrote itself, and writes it as somebody else since.
        let had_let_go = self.actor_of(doc)?.is_some();
        let mut admitted = Admitted::default();
        let mut fresh = Vec::new();
        for ((bytes, seal), outcome) in batch.iter().zip(seals).zip(outcomes) {
            match outcome {
                Outcome::Accept(verified) => {
                    let at = sync::time::Hlc(verified.change.timestamp());
                    let is_ahead = self.state.origin == Origin::Central && at.timestamp() > self.given.now;
                    let heard_at = is_ahead.then_some(self.given.now);
                    let change = self.insert_change(doc, &verified.change, Some(peer), heard_at)?;
                    self.keep_seal(change.row, *seal)?;
                    self.know_again((kind, id), &verified)?;
                    if let Some(mark) = marks.get(&change.hash) {
                        self.journal_mark(kind, id, mark)?;
                    }
                    fresh.push(change);
                    admitted.accepted += 1;
                    let is_ours = verified.change.actor_id().to_bytes() == self.state.incarnation.as_bytes();
                    admitted.ours_came_back |= is_ours && !had_let_go;
                    let confirmed = match self.state.origin {
                        Origin::Central => self.given.now,
                        Origin::Site(_) => self.view().central_time()?.max(self.given.now),
                    };
                    self.state.clock.merge(at, confirmed);
                }
                Outcome::Duplicate => {}
                Outcome::Park { .. } if self.parked_of(id, peer)? >= MAX_PARKED => {
                    let reason = format!("{MAX_PARKED} changes of the document wait already");
                    admitted.refuse(bytes, false, reason.clone());
                    self.quarantine(kind, id, peer, bytes, false, &reason)?;
                }
                Outcome::Park { missing } if self.waits_in_vain(&missing)? => {
                    self.quarantine(kind, id, peer, bytes, false, "it follows a change that was set aside")?;
                }
                Outcome::Park { .. } => {
                    self.park(kind, id, bytes, *seal, from)?;
                    admitted.parked += 1;
                }
                Outcome::Deny(denied) => {
                    admitted.refuse(bytes, true, denied.to_string());
                    self.quarantine(kind, id, peer, bytes, true, &denied.to_string())?;
                }
                Outcome::Reject(rejection) => {
                    admitted.refuse(bytes, false, rejection.to_string());
                    self.quarantine(kind, id, peer, bytes, false, &rejection.to_string())?;
                }
            }
        }
        if let Origin::Site(_) = self.state.origin {
            // Central tells of it again, so it is here to stay.
            self.sql
                .prepare_cached("UPDATE documents SET dropped = 0 WHERE doc = ?1 AND dropped = 1")?
                .execute([doc])?;
        }
        if !fresh.is_empty() {
            self.finish(doc, kind, &fresh)?;
        }
        Ok(admitted)
    }

    /// Finds the row of a document, or makes it.
    fn ensure(&mut self, kind: Kind, id: DocumentId, source: Option<Origin>) -> Result<i64, StoreError> {
        if let Some(doc) = self.find(id)? {
            return Ok(doc);
        }
        let document = Document::new(kind, id);
        self.sql
            .prepare_cached("INSERT INTO documents (id, kind, heads, source) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![
            id.as_bytes(),
            kind.number(),
            joined(&document.heads()),
            source.map(|peer| peer.to_string())
        ])?;
        let doc = self.sql.last_insert_rowid();
        if self.sql.prepare_cached("DELETE FROM evicted WHERE id = ?1")?.execute([id.as_bytes()])? > 0 {
            self.change_actor(doc)?;
        }
        self.state.open.insert(doc, document);
        self.touched.insert(doc);
        Ok(doc)
    }

    pub(crate) fn find(&self, id: DocumentId) -> Result<Option<i64>, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT doc FROM documents WHERE id = ?1")?
            .query_row([id.as_bytes()], |row| row.get(0))
            .optional()?)
    }

    pub(crate) fn kind_of(&self, doc: i64) -> Result<Kind, StoreError> {
        let number: u8 = self
            .sql
            .prepare_cached("SELECT kind FROM documents WHERE doc = ?1")?
            .query_row([doc], |row| row.get(0))?;
        Kind::from_number(number)
            .ok_or(StoreError::Malformed { what: "kind of a document", why: number.to_string() })
    }

    fn open(&mut self, doc: i64, kind: Kind, id: DocumentId) -> Result<(), StoreError> {
        if self.state.open.get(doc).is_none() {
            let document = load(self.sql, doc, kind, id)?;
            self.state.open.insert_loaded(doc, document);
        }
        Ok(())
    }

    /// Who writes the document, if it is not the incarnation.
    fn actor_of(&self, doc: i64) -> Result<Option<Incarnation>, StoreError> {
        let actor: Option<[u8; 16]> = self
            .sql
            .prepare_cached("SELECT actor FROM documents WHERE doc = ?1")?
            .query_row([doc], |row| row.get(0))?;
        Ok(actor.map(Incarnation))
    }

    /// From now on a new actor writes the document here: the old one has a history of it that is not here.
    pub(crate) fn change_actor(&mut self, doc: i64) -> Result<(), StoreError> {
        let actor: [u8; 16] = self.author()?.entropy.bytes();
        self.sql
            .prepare_cached("UPDATE documents SET actor = ?2 WHERE doc = ?1")?
            .execute(params![doc, actor])?;
        Ok(())
    }

    /// Central says that a document leaves this site: it goes as soon as nothing of ours is under way.
    pub(crate) fn drop_document(&mut self, peer: Origin, id: DocumentId) -> Result<(), StoreError> {
        let Some(doc) = self.find(id)? else { return Ok(()) };
        let kind = self.kind_of(doc)?;
        self.sql.prepare_cached("UPDATE documents SET dropped = 1 WHERE doc = ?1")?.execute([doc])?;
        if !self.is_under_way(doc)? {
            view::forget(self.sql, doc, kind)?;
        }
        self.forget_conflicts(id)?;
        tracing::debug!(%peer, document = %id, "the document leaves this site");
        self.evict_dropped()
    }

    /// At a site, where both join: what was about to leave it stays, but for the documents that central says are
    /// `outside` its scope. A central that was restored may not know any more why they left, and counts on them.
    pub(crate) fn keep_dropped(&mut self, outside: &BTreeSet<DocumentId>) -> Result<(), StoreError> {
        let dropped: Vec<(i64, u8, [u8; 16])> = {
            let mut statement =
                self.sql.prepare_cached("SELECT doc, kind, id FROM documents WHERE dropped = 1")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        for (doc, number, id) in dropped {
            let (Some(kind), id) = (Kind::from_number(number), DocumentId(id)) else { continue };
            if outside.contains(&id) {
                continue;
            }
            self.open(doc, kind, id)?;
            self.sql.prepare_cached("UPDATE documents SET dropped = 0 WHERE doc = ?1")?.execute([doc])?;
            let document = self.state.open.share(doc).expect("it was just opened");
            view::refresh(self.sql, doc, &document)?;
            self.note_conflicts(kind, &document, false)?;
        }
        Ok(())
    }

    /// Whether a document is of a machine that this site has let write its disk, and the attempt has not ended: its reports
    /// still come here.
    fn is_under_way(&self, doc: i64) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached(&format!("SELECT 1 FROM documents WHERE doc = ?1 AND {UNDER_WAY}"))?
            .exists([doc])?)
    }

    /// Forgets the documents that left this site, once all of ours in them is acknowledged and no attempt needs them.
    pub(crate) fn evict_dropped(&mut self) -> Result<(), StoreError> {
        let gone: Vec<(i64, u8, [u8; 16])> = {
            let mut statement = self.sql.prepare_cached(&format!(
                "SELECT doc, kind, id FROM documents WHERE dropped = 1 AND NOT EXISTS
                 (SELECT 1 FROM log JOIN changes ON changes.change = log.change
                  JOIN peers ON peers.peer = log.peer
                  WHERE changes.doc = documents.doc AND log.position > peers.acknowledged)
                 AND NOT {UNDER_WAY}",
            ))?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        for (doc, kind, id) in gone {
            if let Some(kind) = Kind::from_number(kind) {
                view::forget(self.sql, doc, kind)?;
            }
            // Positions that were acknowledged are kept with nothing to say.
            self.sql
                .prepare_cached(
                    "UPDATE log SET change = NULL, note = x'' WHERE change IN
                     (SELECT change FROM changes WHERE doc = ?1)",
                )?
                .execute([doc])?;
            for table in ["changes", "snapshots", "documents"] {
                self.sql.prepare_cached(&format!("DELETE FROM {table} WHERE doc = ?1"))?.execute([doc])?;
            }
            self.sql.prepare_cached("INSERT OR IGNORE INTO evicted (id) VALUES (?1)")?.execute([id])?;
            self.state.open.remove(doc);
        }
        Ok(())
    }

    pub(crate) fn insert_change(
        &self,
        doc: i64,
        change: &Change,
        source: Option<Origin>,
        heard_at: Option<Timestamp>,
    ) -> Result<Fresh, StoreError> {
        let hash = change.hash().0;
        let heard_at = heard_at.map(|at| signed(at.0));
        self.sql
            .prepare_cached(
                "INSERT INTO changes (doc, hash, source, bytes, heard_at) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![doc, hash, source.map(|peer| peer.to_string()), change.raw_bytes(), heard_at])?;
        Ok(Fresh { row: self.sql.last_insert_rowid(), hash, source })
    }

    /// Everything that follows from new changes of a document, in the same transaction: heads, derived
    /// rows, scope and logs, compaction.
    pub(crate) fn finish(&mut self, doc: i64, kind: Kind, changes: &[Fresh]) -> Result<(), StoreError> {
        let document = self.state.open.share(doc).expect("the document was written");
        let (mut held, is_dropped) = held_of(self.sql, doc)?;
        for change in changes {
            held.add(&change.hash);
        }
        self.sql
            .prepare_cached(
                "UPDATE documents SET heads = ?2, changes = ?3, sum = ?4, modified_at = ?5, modified_by = ?6
                 WHERE doc = ?1",
            )?
            .execute(params![
                doc,
                joined(&document.heads()),
                signed(held.changes),
                held.sum.to_be_bytes(),
                signed(self.given.now.0),
                self.given.by
            ])?;
        let node = (kind == Kind::Node).then(|| view::nodes::row(&document));
        match &node {
            _ if is_dropped => {}
            Some(row) => view::nodes::write(self.sql, doc, row)?,
            None => view::refresh(self.sql, doc, &document)?,
        }
        scope::spread(self, doc, kind, &document, node.as_ref(), changes)?;
        if !is_dropped {
            let quiet = node.as_ref().is_some_and(|row| row.contested.is_empty());
            self.note_conflicts(kind, &document, quiet)?;
        }
        self.compact(doc, &document)
    }

    fn compact(&self, doc: i64, document: &Document) -> Result<(), StoreError> {
        let (tail, bytes, last): (i64, i64, i64) = self
            .sql
            .prepare_cached(
                "SELECT count(*), ifnull(sum(length(bytes)), 0), ifnull(max(change), 0) FROM changes
                 WHERE doc = ?1 AND change > ifnull((SELECT upto FROM snapshots WHERE doc = ?1), 0)",
            )?
            .query_row([doc], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        if tail < TAIL_CHANGES && bytes < TAIL_BYTES {
            return Ok(());
        }
        self.keep_snapshot(doc, document, last)?;
        let kept = if bytes < TAIL_BYTES { KEPT_CHANGES } else { 0 };
        self.sql
            .prepare_cached(
                "UPDATE changes SET bytes = NULL WHERE doc = ?1 AND bytes IS NOT NULL AND change <=
                     (SELECT change FROM changes WHERE doc = ?1 AND change <= ?2 ORDER BY change DESC
                      LIMIT 1 OFFSET ?3)",
            )?
            .execute(params![doc, last, kept])?;
        Ok(())
    }

    /// Keeps the state of a document up to and including the change `upto`.
    pub(crate) fn keep_snapshot(&self, doc: i64, document: &Document, upto: i64) -> Result<(), StoreError> {
        let plain = document.snapshot();
        let bytes = if plain.len() > PLAIN_SNAPSHOT { document.save() } else { plain };
        self.sql
            .prepare_cached(
                "INSERT INTO snapshots (doc, upto, bytes) VALUES (?1, ?2, ?3)
                 ON CONFLICT (doc) DO UPDATE SET upto = excluded.upto, bytes = excluded.bytes",
            )?
            .execute(params![doc, upto, bytes])?;
        Ok(())
    }

    /// Keeps what central put beside a change; a site gives it back to a central that was restored.
    fn keep_seal(&self, change: i64, seal: Option<Seal>) -> Result<(), StoreError> {
        if let (Origin::Site(_), Some(seal)) = (self.state.origin, seal) {
            self.sql
                .prepare_cached("UPDATE changes SET seal = ?2 WHERE change = ?1")?
                .execute(params![change, seal.0])?;
        }
        Ok(())
    }

    /// Makes items of central's log whole that came in short form; another peer sends none.
    pub(crate) fn whole(
        &self,
        peer: Origin,
        items: Vec<Vec<u8>>,
    ) -> Result<Result<Vec<Vec<u8>>, BriefError>, StoreError> {
        match peer {
            Origin::Central => brief::lengthen(items, |document, name| self.named(document, name)),
            Origin::Site(_) => Ok(Ok(items)),
        }
    }

    /// Hashes of the changes of a document that are here, wait or were set aside, and begin with `name`.
    fn named(&self, document: DocumentId, name: Name) -> Result<Vec<[u8; 32]>, StoreError> {
        let mut last = [0xff; 32];
        last[..name.len()].copy_from_slice(&name);
        // The index over hashes finds at most one or two, the one over documents all changes of one.
        let mut statement = self.sql.prepare_cached(
            "SELECT hash FROM changes WHERE hash BETWEEN ?1 AND ?2
                 AND +doc = (SELECT doc FROM documents WHERE id = ?3)
             UNION SELECT hash FROM parked WHERE hash BETWEEN ?1 AND ?2 AND +id = ?3
             UNION SELECT hash FROM quarantine WHERE hash BETWEEN ?1 AND ?2 AND id = ?3",
        )?;
        let rows = statement.query_map(params![name, last, document.as_bytes()], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn park(
        &self,
        kind: Kind,
        id: DocumentId,
        bytes: &[u8],
        seal: Option<Seal>,
        from: Position,
    ) -> Result<(), StoreError> {
        let hash = ingress::parse(bytes).map(|parsed| parsed.hash()).map_err(|rejection| {
            StoreError::Malformed { what: "a change that was to be parked", why: rejection.to_string() }
        })?;
        self.sql
            .prepare_cached(
                "INSERT OR IGNORE INTO parked (id, kind, hash, source, epoch, bytes, seal, known, directory)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                id.as_bytes(),
                kind.number(),
                hash.0,
                from.peer.to_string(),
                signed(from.epoch),
                bytes,
                seal.map(|seal| seal.0),
                signed(from.known),
                signed(from.directory)
            ])?;
        Ok(())
    }

    /// Number of changes of a document by one peer that wait.
    fn parked_of(&self, id: DocumentId, peer: Origin) -> Result<i64, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT count(*) FROM parked WHERE id = ?1 AND source = ?2")?
            .query_row(params![id.as_bytes(), peer.to_string()], |row| row.get(0))?)
    }

    /// Whether one of these changes was set aside and will never be here.
    fn waits_in_vain(&self, missing: &[ChangeHash]) -> Result<bool, StoreError> {
        for hash in missing {
            let is_gone = self
                .sql
                .prepare_cached(
                    "SELECT 1 FROM quarantine WHERE hash = ?1 UNION SELECT 1 FROM withdrawn WHERE hash = ?1",
                )?
                .exists([hash.0])?;
            if is_gone {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes what waits for a document, in runs that were delivered at one position.
    fn take_parked(&self, id: DocumentId) -> Result<Vec<(Position, Vec<Sealed>)>, StoreError> {
        let mut runs: Vec<(Position, Vec<Sealed>)> = Vec::new();
        let mut statement = self.sql.prepare_cached(
            "SELECT source, epoch, bytes, seal, known, directory FROM parked WHERE id = ?1 ORDER BY rowid",
        )?;
        let mut rows = statement.query([id.as_bytes()])?;
        while let Some(row) = rows.next()? {
            let source: String = row.get(0)?;
            let from = Position {
                peer: source.parse()?,
                epoch: row.get::<_, i64>(1)?.unsigned_abs(),
                known: row.get::<_, i64>(4)?.unsigned_abs(),
                directory: row.get::<_, i64>(5)?.unsigned_abs(),
            };
            let sealed = (row.get(2)?, row.get::<_, Option<[u8; 16]>>(3)?.map(Seal));
            match runs.last_mut() {
                Some((last, batch)) if *last == from => batch.push(sealed),
                Some(_) | None => runs.push((from, vec![sealed])),
            }
        }
        drop(rows);
        drop(statement);
        if !runs.is_empty() {
            self.sql.prepare_cached("DELETE FROM parked WHERE id = ?1")?.execute([id.as_bytes()])?;
        }
        Ok(runs)
    }
}

/// A change that became part of a document just now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh {
    /// Its row.
    pub(crate) row: i64,
    pub(crate) hash: [u8; 32],
    /// The peer that delivered it.
    pub(crate) source: Option<Origin>,
}

/// A change as a peer brought it, with what central put beside it.
type Sealed = (Vec<u8>, Option<Seal>);

/// What became of a batch of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) accepted: usize,
    pub(crate) parked: usize,
    /// Those that were set aside because of themselves.
    pub(crate) refused: Vec<Refusal>,
    /// A change of our own actor that was not here.
    pub(crate) ours_came_back: bool,
}

impl Admitted {
    fn refuse(&mut self, bytes: &[u8], denied: bool, reason: String) {
        let change = ingress::parse(bytes).map(|parsed| parsed.hash().0.to_vec()).unwrap_or_default();
        self.refused.push(Refusal { change, denied, reason });
    }
}

/// Sorted heads as one value.
pub(crate) fn joined(heads: &[ChangeHash]) -> Vec<u8> {
    heads.iter().flat_map(|hash| hash.0).collect()
}

/// The fingerprint over the changes of one document, and whether it leaves this site.
fn held_of(sql: &rusqlite::Connection, doc: i64) -> Result<(Fingerprint, bool), StoreError> {
    let mut statement = sql.prepare_cached("SELECT changes, sum, dropped FROM documents WHERE doc = ?1")?;
    Ok(statement.query_row([doc], |row| {
        let held = Fingerprint {
            changes: row.get::<_, i64>(0)?.unsigned_abs(),
            sum: u128::from_be_bytes(row.get(1)?),
            heads: None,
        };
        Ok((held, row.get(2)?))
    })?)
}

/// Opens a stored document: its snapshot, or its genesis, and the changes that follow.
pub(crate) fn load(
    sql: &rusqlite::Connection,
    doc: i64,
    kind: Kind,
    id: DocumentId,
) -> Result<Document, StoreError> {
    let snapshot: Option<(i64, Vec<u8>)> = sql
        .prepare_cached("SELECT upto, bytes FROM snapshots WHERE doc = ?1")?
        .query_row([doc], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let upto = snapshot.as_ref().map_or(0, |(upto, _)| *upto);
    let mut tail =
        sql.prepare_cached("SELECT bytes FROM changes WHERE doc = ?1 AND change > ?2 ORDER BY change")?;
    let mut rows = tail.query(params![doc, upto])?;
    let mut changes = Vec::new();
    while let Some(row) = rows.next()? {
        let change = Change::try_from(row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?)
            .map_err(|error| StoreError::Malformed { what: "stored change", why: error.to_string() })?;
        changes.push(change);
    }
    let Some((_, bytes)) = snapshot else { return Ok(Document::of(kind, id, changes)?) };
    let mut document = Document::load(kind, id, &bytes)?;
    if !changes.is_empty() {
        // At once: one by one each costs as much as ten.
        document.apply_all(changes)?;
    }
    Ok(document)
}

/// Bytes of a stored change, from its document where a snapshot covers it.
pub(crate) fn change_bytes(tx: &mut Tx<'_>, change: i64) -> Result<(u8, DocumentId, Vec<u8>), StoreError> {
    let (doc, hash, bytes, kind, id): (i64, [u8; 32], Option<Vec<u8>>, u8, [u8; 16]) = tx
        .sql
        .prepare_cached(
            "SELECT changes.doc, hash, bytes, kind, id FROM changes
             JOIN documents ON documents.doc = changes.doc WHERE change = ?1",
        )?
        .query_row([change], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?;
    let id = DocumentId(id);
    if let Some(bytes) = bytes {
        return Ok((kind, id, bytes));
    }
    let malformed = |why: &str| StoreError::Malformed { what: "stored change", why: why.to_string() };
    let known = Kind::from_number(kind).ok_or_else(|| malformed("unknown kind"))?;
    tx.open(doc, known, id)?;
    let found =
        tx.state.open.get(doc).and_then(|document| {
            automerge::ReadDoc::get_change_by_hash(document.automerge(), &ChangeHash(hash))
        });
    match found {
        Some(change) => Ok((kind, id, change.raw_bytes().to_vec())),
        None => Err(malformed("the snapshot that covers it does not hold it")),
    }
}
