//! What central wrote after its database went back in time, where it contradicts what it had written before.
//!
//! A central whose database went back and that nobody told writes on under its former actor. A site then shows
//! another change of that actor under a number that central has used again, sealed by central itself. Both
//! cannot stand in one document, and the older one is with people, machines and sites. So central takes its
//! newer one out, with what it built on it, and writes what they said again under another actor, beside the
//! change that came back: register by register, with their own author, reason and time, as a site does after a
//! reset. The sites that had heard of them take them out too ([`Item::withdrawn`]).
//!
//! Deliberately absent: changes on which a site built. Those were acknowledged and stay; the change that
//! would come back is set aside then, and people see it.

use std::collections::BTreeSet;

use automerge::Change;
use rusqlite::params;
use sync::{
    document::{Document, Kind},
    id::{DocumentId, Origin},
    ingress,
    journal::Event,
    wire::{Fingerprint, Item, Seal},
};

use crate::{StoreError, Tx, log::Row, reset::Told};

/// Why a document was written again.
const WHY: &str = "central's database had gone back in time, and it had written this under numbers that it had \
                   used before";

impl Tx<'_> {
    /// At central: makes room for changes that it wrote before its database went back, where they come back
    /// with its seal and others stand under their numbers.
    pub(crate) fn give_way(
        &mut self,
        doc: i64,
        kind: Kind,
        id: DocumentId,
        batch: &[Vec<u8>],
        seals: &[Option<Seal>],
    ) -> Result<(), StoreError> {
        let mut numbers: BTreeSet<(Vec<u8>, u64)> = BTreeSet::new();
        for (bytes, seal) in batch.iter().zip(seals) {
            let (Some(seal), Ok(change)) = (seal, ingress::parse(bytes)) else { continue };
            if self.seal_change(id, &change.hash().0) == Some(*seal) && !self.has_change(&change.hash()) {
                let change = change.change();
                numbers.insert((change.actor_id().to_bytes().to_vec(), change.seq()));
            }
        }
        if numbers.is_empty() {
            return Ok(());
        }
        let Some(document) = self.with_document(kind, id, Document::clone)? else { return Ok(()) };
        let doubled =
            |change: &Change| numbers.contains(&(change.actor_id().to_bytes().to_vec(), change.seq()));
        let out = built_on(&document, doubled);
        if out.is_empty() {
            return Ok(());
        }
        if self.ours_among(&out)?.len() < out.len() {
            tracing::warn!(document = %id, "a site built on what central wrote after it went back; both stay apart");
            return Ok(());
        }
        let mut held = Fingerprint::default();
        for change in &out {
            held.remove(&change.hash().0);
            self.sql
                .prepare_cached("INSERT OR IGNORE INTO withdrawn (hash) VALUES (?1)")?
                .execute([change.hash().0])?;
        }
        let members: Vec<String> = {
            let mut statement = self
                .sql
                .prepare_cached("SELECT peer FROM scope WHERE doc = ?1 AND inside = 1 ORDER BY peer")?;
            let rows = statement.query_map([doc], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        let rest = self.take_out(doc, &document, &out, Told::Counts)?;
        let hashes = out.iter().flat_map(|change| change.hash().0).collect();
        let note = Item::withdrawn(kind.number(), id, hashes).to_bytes();
        for member in members {
            self.tell_with(member.parse()?, Row::Note(note.clone()), held)?;
        }
        self.write_on(doc, (kind, id), rest, &out)
    }

    /// At a site: central takes back changes of its own. What this site built on them is written again.
    pub(crate) fn take_withdrawn(
        &mut self,
        peer: Origin,
        kind: Kind,
        id: DocumentId,
        hashes: &[u8],
    ) -> Result<(), StoreError> {
        let hashes: BTreeSet<[u8; 32]> =
            hashes.chunks_exact(32).map(|hash| hash.try_into().expect("chunks of 32 bytes")).collect();
        for hash in &hashes {
            self.sql.prepare_cached("DELETE FROM parked WHERE hash = ?1")?.execute([hash])?;
            self.release_withdrawn(peer, hash)?;
        }
        let Some(doc) = self.find(id)? else { return Ok(()) };
        if self.kind_of(doc)? != kind {
            return Ok(());
        }
        let Some(document) = self.with_document(kind, id, Document::clone)? else { return Ok(()) };
        let out = built_on(&document, |change| hashes.contains(&change.hash().0));
        if out.is_empty() {
            return Ok(());
        }
        let ours = self.ours_among(&out)?;
        let rest = self.take_out(doc, &document, &out, Told::Uncounted)?;
        self.write_on(doc, (kind, id), rest, &ours)
    }

    /// What central itself took back need not be looked at by a person.
    fn release_withdrawn(&mut self, peer: Origin, hash: &[u8; 32]) -> Result<(), StoreError> {
        let items: Vec<(i64, i64)> = {
            let mut statement = self
                .sql
                .prepare_cached("SELECT item, length(bytes) FROM quarantine WHERE hash = ?1 AND peer = ?2")?;
            let rows =
                statement.query_map(params![hash, peer.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        for (item, size) in items {
            self.leave_quarantine(item.unsigned_abs(), peer, size.unsigned_abs())?;
        }
        Ok(())
    }

    /// Goes on with what is left of a document, and writes `again` into it under another actor.
    fn write_on(
        &mut self,
        doc: i64,
        (kind, id): (Kind, DocumentId),
        rest: Document,
        again: &[Change],
    ) -> Result<(), StoreError> {
        self.state.open.insert(doc, rest);
        self.touched.insert(doc);
        self.change_actor(doc)?;
        let mut written = 0;
        for change in again {
            let writes = self.writes_of(kind, id, change)?;
            written += u64::from(self.write_again(doc, kind, change, &writes)?);
        }
        self.show_rest(doc, kind)?;
        let kind = kind.to_string();
        self.journal(Event::DocumentReset {
            kind,
            document: id,
            again: written,
            refused: 0,
            reason: WHY.into(),
        })
    }

    /// Those that this replica wrote, in their order.
    pub(crate) fn ours_among(&self, changes: &[Change]) -> Result<Vec<Change>, StoreError> {
        let mut ours = Vec::new();
        for change in changes {
            if self.is_ours(change)? {
                ours.push(change.clone());
            }
        }
        Ok(ours)
    }

    /// Whether this replica wrote it.
    pub(crate) fn is_ours(&self, change: &Change) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT 1 FROM changes WHERE hash = ?1 AND source IS NULL")?
            .exists([change.hash().0])?)
    }
}

/// Changes of a document that are meant, and what follows from them, in order.
fn built_on(document: &Document, is_meant: impl Fn(&Change) -> bool) -> Vec<Change> {
    let mut names: BTreeSet<[u8; 32]> = BTreeSet::new();
    let mut found = Vec::new();
    for change in document.automerge().get_changes(&[]) {
        if is_meant(&change) || change.deps().iter().any(|dep| names.contains(&dep.0)) {
            names.insert(change.hash().0);
            found.push(change);
        }
    }
    found
}
