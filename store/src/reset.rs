//! What becomes of a document of which central did not take everything.
//!
//! Central sets aside what is not sound and what the site may not write, and answers with a reset: its own
//! heads of the document, up to which position of the site's log nothing more of it will be taken, and what
//! it refused. The rest of the session goes on. The site takes its own changes beyond those heads out of
//! the document and writes what they said anew, register by register, under another actor: with their own
//! author, reason and time, in their own order. What it may not write is not written again but noted as
//! refused, and proposed to central if somebody wanted it. No byte that central did not take is ever sent a second time.

use std::collections::BTreeSet;

use automerge::{Change, ChangeHash};
use rusqlite::{OptionalExtension, params};
use sync::{
    document::{Author, Document, Kind, contested, task},
    id::{DocumentId, Incarnation, Origin},
    ingress::{self, Write},
    journal::Event,
    time::Hlc,
    wire::{Fingerprint, Item, Refusal, Reset},
};

use crate::{
    StoreError, Tx,
    command::proposal::propose,
    documents::joined,
    log::{Row, signed},
    view,
};

/// So often in a row a document is written anew; what is still refused then stays out of it.
const MAX_RESETS: i64 = 8;

/// What a log that told of a change says of it once the change is taken out.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    /// The peer does not take it, so it counts nowhere in the log any more.
    Uncounted,
    /// The peer has it until it hears that it is withdrawn.
    Counts,
}

impl Tx<'_> {
    /// Tells a site that not all of its changes of a document were taken, at central.
    pub(crate) fn tell_reset(
        &mut self,
        peer: Origin,
        kind: Kind,
        id: DocumentId,
        upto: u64,
        refused: Vec<Refusal>,
    ) -> Result<(), StoreError> {
        // What waits for a refused change waits in vain; the site writes it anew.
        self.sql
            .prepare_cached("DELETE FROM parked WHERE id = ?1 AND source = ?2")?
            .execute(params![id.as_bytes(), peer.to_string()])?;
        if self.is_noisy(peer)? {
            // Nor is the log filled with answers to what nobody keeps. Both hold something else, so a site
            // that is only unlucky hears of it when both join after a person has looked.
            return Ok(());
        }
        let heads = self.with_document(kind, id, |document| joined(&document.heads()))?.unwrap_or_default();
        let reset = Reset { heads, upto, refused };
        self.tell(peer, Row::Note(Item::reset(kind.number(), id, reset).to_bytes()))
    }

    /// Brings a document to what central took of it, and writes the rest anew, at a site.
    pub(crate) fn take_reset(
        &mut self,
        peer: Origin,
        kind: Kind,
        id: DocumentId,
        reset: &Reset,
    ) -> Result<(), StoreError> {
        let Some(doc) = self.find(id)? else { return Ok(()) };
        let Some(document) = self.with_document(kind, id, Document::clone)? else { return Ok(()) };
        let heads: Vec<ChangeHash> = reset
            .heads
            .chunks_exact(32)
            .map(|head| ChangeHash(head.try_into().expect("chunks of 32 bytes")))
            .collect();
        let beyond = if heads.iter().all(|head| document.has(head)) {
            self.ours_beyond(peer, &document, &heads, reset.upto)?
        } else {
            // Central has something of it that is not here, as of a machine of another site. What else of ours it
            // took cannot be seen from that; only what it names goes, and what follows from it.
            self.refused_here(&document, reset)?
        };
        if beyond.is_empty() {
            return Ok(());
        }
        let ours = self.ours_among(&beyond)?;
        let rewritten = self.take_out(doc, &document, &beyond, Told::Uncounted)?;
        self.sql.prepare_cached("UPDATE documents SET resets = resets + 1 WHERE doc = ?1")?.execute([doc])?;
        let resets: i64 = self
            .sql
            .prepare_cached("SELECT resets FROM documents WHERE doc = ?1")?
            .query_row([doc], |row| row.get(0))?;
        self.state.open.insert(doc, rewritten);
        self.touched.insert(doc);
        self.change_actor(doc)?;

        let (mut again, mut refused) = (0, 0);
        for change in &ours {
            let denial = reset
                .refused
                .iter()
                .find(|refusal| refusal.change == change.hash().0 && (refusal.denied || resets > MAX_RESETS));
            let writes = self.writes_of(kind, id, change)?;
            if let Some(denial) = denial {
                refused += 1;
                self.note_refusal(kind, id, &writes, &denial.reason)?;
                if denial.denied {
                    propose(self, (kind, id), &writes, Hlc(change.timestamp()))?;
                }
            } else if self.lacks_its_beginning(doc, kind, &writes) {
                refused += 1;
                self.note_refusal(kind, id, &writes, "the task that it belongs to was refused")?;
            } else if resets <= MAX_RESETS {
                again += u64::from(self.write_again(doc, kind, change, &writes)?);
            }
        }
        self.show_rest(doc, kind)?;
        let reason = reset.refused.first().map(|refusal| refusal.reason.clone()).unwrap_or_default();
        self.journal(Event::DocumentReset { kind: kind.to_string(), document: id, again, refused, reason })
    }

    /// Brings heads and derived rows to what is left of a document.
    pub(crate) fn show_rest(&mut self, doc: i64, kind: Kind) -> Result<(), StoreError> {
        let document = self.state.open.get(doc).expect("it was just put there").clone();
        self.sql
            .prepare_cached("UPDATE documents SET heads = ?2 WHERE doc = ?1")?
            .execute(params![doc, joined(&document.heads())])?;
        view::forget(self.sql, doc, kind)?;
        // What is left may be the genesis alone, or have left this site: nobody sees that.
        let is_seen = self
            .sql
            .prepare_cached("SELECT 1 FROM documents WHERE doc = ?1 AND changes > 0 AND dropped = 0")?
            .exists([doc])?;
        if is_seen {
            view::refresh(self.sql, doc, &document)?;
            self.note_conflicts(kind, &document, false)?;
        }
        Ok(())
    }

    /// Our changes beyond `heads` that central saw and did not take, and what follows from them, whoever wrote that, in
    /// order.
    fn ours_beyond(
        &self,
        peer: Origin,
        document: &Document,
        heads: &[ChangeHash],
        upto: u64,
    ) -> Result<Vec<Change>, StoreError> {
        let mut beyond: Vec<Change> = Vec::new();
        let mut names: BTreeSet<[u8; 32]> = BTreeSet::new();
        for change in document.automerge().get_changes(heads) {
            let hash = change.hash().0;
            let ours: Option<(bool, Option<i64>)> = self
                .sql
                .prepare_cached(
                    "SELECT source IS NULL, (SELECT position FROM log WHERE log.change = changes.change
                         AND log.peer = ?2) FROM changes WHERE hash = ?1",
                )?
                .query_row(params![hash, peer.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            // The genesis is stored nowhere.
            let Some((is_ours, position)) = ours else { continue };
            let is_seen = position.is_none_or(|position| position.unsigned_abs() <= upto);
            // What central told of stays, unless it stands on what goes: that was a central of a time that is gone.
            if is_ours && is_seen || change.deps().iter().any(|dep| names.contains(&dep.0)) {
                names.insert(hash);
                beyond.push(change);
            }
        }
        Ok(beyond)
    }

    /// Our changes that a reset names as refused, and what follows from them, whoever wrote that, in order.
    fn refused_here(&self, document: &Document, reset: &Reset) -> Result<Vec<Change>, StoreError> {
        let mut names: BTreeSet<[u8; 32]> = BTreeSet::new();
        let mut refused = Vec::new();
        for change in document.automerge().get_changes(&[]) {
            let hash = change.hash().0;
            let is_named = reset.refused.iter().any(|refusal| refusal.change == hash);
            let follows = change.deps().iter().any(|dep| names.contains(&dep.0));
            if is_named && self.is_ours(&change)? || follows {
                names.insert(hash);
                refused.push(change);
            }
        }
        Ok(refused)
    }

    /// Takes changes out of a stored document and returns what is left of it.
    pub(crate) fn take_out(
        &mut self,
        doc: i64,
        document: &Document,
        out: &[Change],
        told: Told,
    ) -> Result<Document, StoreError> {
        let names: BTreeSet<[u8; 32]> = out.iter().map(|change| change.hash().0).collect();
        let mut rest = Document::new(document.kind(), document.id());
        for change in document.automerge().get_changes(&rest.heads()) {
            if !names.contains(&change.hash().0) {
                rest.apply(change)?;
            }
        }
        for change in out {
            self.forget_change(doc, change, told)?;
        }
        // The bytes of what is left may be in a snapshot that also covers what is out.
        let last: i64 = self
            .sql
            .prepare_cached("SELECT ifnull(max(change), 0) FROM changes WHERE doc = ?1")?
            .query_row([doc], |row| row.get(0))?;
        self.keep_snapshot(doc, &rest, last)?;
        self.sql.prepare_cached("UPDATE changes SET bytes = NULL WHERE doc = ?1")?.execute([doc])?;
        Ok(rest)
    }

    /// Takes one change off the books. Where a log still has to say it, it goes on saying it byte for byte: the
    /// peer counts on its positions.
    fn forget_change(&mut self, doc: i64, change: &Change, told: Told) -> Result<(), StoreError> {
        let hash = change.hash().0;
        let row: i64 = self
            .sql
            .prepare_cached("SELECT change FROM changes WHERE hash = ?1")?
            .query_row([hash], |row| row.get(0))?;
        let rows: Vec<(String, i64)> = {
            let mut statement =
                self.sql.prepare_cached("SELECT peer, position FROM log WHERE change = ?1 ORDER BY peer")?;
            let rows = statement.query_map([row], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        for (peer, position) in rows {
            let bytes = self.item_bytes(&Row::Change(row))?;
            self.sql
                .prepare_cached("UPDATE log SET change = NULL, note = ?3 WHERE peer = ?1 AND position = ?2")?
                .execute(params![peer, position, bytes])?;
            match told {
                Told::Uncounted => self.uncount(&peer, position, &hash)?,
                Told::Counts => {}
            }
        }
        let mut held = Fingerprint::default();
        let (changes, sum): (i64, [u8; 16]) = self
            .sql
            .prepare_cached("SELECT changes, sum FROM documents WHERE doc = ?1")?
            .query_row([doc], |row| Ok((row.get(0)?, row.get(1)?)))?;
        (held.changes, held.sum) = (changes.unsigned_abs(), u128::from_be_bytes(sum));
        held.remove(&hash);
        self.sql
            .prepare_cached("UPDATE documents SET changes = ?2, sum = ?3 WHERE doc = ?1")?
            .execute(params![doc, signed(held.changes), held.sum.to_be_bytes()])?;
        self.sql.prepare_cached("DELETE FROM changes WHERE change = ?1")?.execute([row])?;
        Ok(())
    }

    /// Takes a change off the fingerprints of our log from a position on.
    fn uncount(&self, peer: &str, from: i64, hash: &[u8; 32]) -> Result<(), StoreError> {
        let rows: Vec<(i64, i64, [u8; 16])> = {
            let mut statement = self.sql.prepare_cached(
                "SELECT position, changes, sum FROM log WHERE peer = ?1 AND position >= ?2 ORDER BY position",
            )?;
            let rows = statement
                .query_map(params![peer, from], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        for (position, changes, sum) in rows {
            let mut at =
                Fingerprint { changes: changes.cast_unsigned(), sum: u128::from_be_bytes(sum), heads: None };
            at.remove(hash);
            self.sql
                .prepare_cached("UPDATE log SET changes = ?3, sum = ?4 WHERE peer = ?1 AND position = ?2")?
                .execute(params![peer, position, at.changes.cast_signed(), at.sum.to_be_bytes()])?;
        }
        Ok(())
    }

    /// Whether it would be written into a task of which nothing says any more what is to be done: what began the
    /// task was refused, and nobody may go on with it.
    fn lacks_its_beginning(&mut self, doc: i64, kind: Kind, writes: &[Write]) -> bool {
        let begins = |write: &Write| write.path() == task::spec().path();
        let has_begun = |document: &Document| !contested::read(document, &task::spec()).sides().is_empty();
        kind == Kind::Task
            && !writes.iter().any(begins)
            && !self.state.open.get(doc).is_some_and(|document| has_begun(document))
    }

    pub(crate) fn writes_of(
        &self,
        kind: Kind,
        id: DocumentId,
        change: &Change,
    ) -> Result<Vec<Write>, StoreError> {
        let malformed = |error: ingress::Rejection| StoreError::Malformed {
            what: "change of this very replica",
            why: error.to_string(),
        };
        let parsed = ingress::parse(change.raw_bytes()).map_err(malformed)?;
        ingress::registers(kind, id, &parsed).map_err(malformed)
    }

    /// Writes the registers of one change anew: same author, reason and time, another actor.
    pub(crate) fn write_again(
        &mut self,
        doc: i64,
        kind: Kind,
        change: &Change,
        writes: &[Write],
    ) -> Result<bool, StoreError> {
        let Some(first) = writes.first() else { return Ok(false) };
        let actor: [u8; 16] = self
            .sql
            .prepare_cached("SELECT actor FROM documents WHERE doc = ?1")?
            .query_row([doc], |row| row.get(0))?;
        let present = self.author()?.clone();
        let mut author = Author {
            incarnation: Incarnation(actor),
            by: first.written.by.clone(),
            at: Hlc(change.timestamp()),
            policy_epoch: first.written.policy_epoch,
            ..present.clone()
        };
        let document = self.state.open.get(doc).expect("it was just put there");
        let mut unreadable = None;
        let written = document.write(&mut author, |edit| {
            for write in writes {
                // A register of a newer program was not written here.
                let Some(schema) = write.schema else { continue };
                let why = &write.written.why;
                if let Err(error) = edit.restate(write.container, &write.key, schema, &write.fields, why) {
                    unreadable = Some(error);
                }
            }
        });
        self.author = Some(Author { entropy: author.entropy, ..present });
        if let Some(error) = unreadable {
            return Err(StoreError::Malformed {
                what: "register of this very replica",
                why: error.to_string(),
            });
        }
        let Some(written) = written else { return Ok(false) };
        let row = self.insert_change(doc, &written, None, None)?;
        self.finish(doc, kind, &[row])?;
        Ok(true)
    }

    /// Notes what central did not let this site write, so that people see it.
    fn note_refusal(
        &mut self,
        kind: Kind,
        id: DocumentId,
        writes: &[Write],
        reason: &str,
    ) -> Result<(), StoreError> {
        for write in writes {
            let path = write
                .container
                .map_or_else(|| write.key.clone(), |container| format!("{container}/{}", write.key));
            self.journal(Event::WriteRefused {
                kind: kind.to_string(),
                document: id,
                path,
                by: write.written.by.clone(),
                reason: reason.to_string(),
            })?;
        }
        Ok(())
    }
}
