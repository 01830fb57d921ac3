//! How two replicas meet that have no common log: each says what it holds, each puts into its new log what
//! the other lacks, and from there on the logs go on as ever.
//!
//! Documents are compared by their heads. The journals are compared by the newest entry that the other
//! holds of each life; entries of a life that went on differently at the other side (a database went back
//! in time and nobody noticed) are recorded once more in the present life, with their own time and author.

use std::collections::{BTreeMap, BTreeSet};

use automerge::ChangeHash;
use rusqlite::{OptionalExtension, params};
use sync::{
    document::{Kind, proposal},
    engine::reconcile::{Element, element},
    id::{DocumentId, Incarnation, Origin, ProposalId},
    journal::{Event, Mark, Stream, chain},
    policy::Reason,
    time::Hlc,
    wire::{Fingerprint, Holding, Holdings, Item, StreamHead},
};

use crate::{
    StoreError, Tx, documents, life,
    log::{self, Row, signed},
    marks::stream_between,
    retention, scope,
    view::{ProposalFilter, ProposalState},
};

/// Journal entries beyond those that the peer acknowledged, of which a site tells the hashes.
const MAX_ENTRIES: i64 = 100_000;

impl Tx<'_> {
    /// What is held here that `peer` should hold, one element per document. A site begins its log anew.
    pub(crate) fn elements(
        &mut self,
        peer: Origin,
        life: Option<(Incarnation, u64)>,
    ) -> Result<Vec<Element>, StoreError> {
        if let Some((_, log)) = life {
            life::begin_logs(self.sql, peer)?;
            self.sql
                .prepare_cached("UPDATE peers SET logs = ?2 WHERE peer = ?1")?
                .execute(params![peer.to_string(), signed(log)])?;
        }
        let mut statement = match self.state.origin {
            Origin::Central => self.sql.prepare_cached(
                "SELECT id, heads FROM scope JOIN documents ON documents.doc = scope.doc
                 WHERE peer = ?1 AND inside = 1 AND changes > 0",
            )?,
            Origin::Site(_) => self
                .sql
                .prepare_cached("SELECT id, heads FROM documents WHERE changes > 0 AND ?1 IS NOT NULL")?,
        };
        let rows = statement.query_map([peer.to_string()], |row| {
            Ok(element(DocumentId(row.get(0)?), &row.get::<_, Vec<u8>>(1)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// At a site: what is held of `documents`, and of the journals.
    pub(crate) fn hold(&mut self, peer: Origin, documents: &[DocumentId]) -> Result<Holdings, StoreError> {
        let documents = documents.iter().map(|id| self.holding(*id)).collect::<Result<_, _>>()?;
        let mut statement = self.sql.prepare_cached(
            "SELECT hash FROM journal WHERE stream = ?1 AND copied = 0
                 AND entry > ifnull((SELECT common_entry FROM peers WHERE peer = ?2), 0)
             ORDER BY entry LIMIT ?3",
        )?;
        let ours = stream_between(self.state.origin, peer).to_string();
        let rows = statement
            .query_map(params![ours, peer.to_string(), MAX_ENTRIES], |row| row.get::<_, [u8; 32]>(0))?;
        let entries = rows.map(|hash| hash.map(Into::into)).collect::<Result<_, _>>()?;
        Ok(Holdings {
            documents,
            streams: self.stream_heads(stream_between(peer, self.state.origin))?,
            entries,
            nothing: self.holds_nothing()?.then_some(true),
        })
    }

    fn holds_nothing(&self) -> Result<bool, StoreError> {
        Ok(!self.sql.prepare_cached("SELECT 1 FROM documents WHERE changes > 0")?.exists([])?)
    }

    /// Puts into the log for `peer` what it lacks, and keeps that both have a common log from here on.
    /// Central returns what it holds itself.
    ///
    /// A site of whose present life central has an entry that is not here went back in time, although no
    /// position showed it: central began another log meanwhile. Another life begins, and nothing is joined.
    pub(crate) fn join(
        &mut self,
        peer: Origin,
        life: Incarnation,
        theirs: &Holdings,
    ) -> Result<Join, StoreError> {
        let mut ours = Holdings::default();
        let stream = stream_between(self.state.origin, peer);
        // A chain that this site left because central could not follow it says nothing: there central rightly has
        // another entry.
        let chain = self.present_chain(stream)?;
        let present = theirs.streams.iter().find(|head| head.incarnation == chain);
        if let (Origin::Site(_), Some(head)) = (self.state.origin, present)
            && !self.has_entry(stream, head)?
        {
            let reason = "central has journal entries that this database wrote and does not hold: it went back \
                          in time";
            self.begin_life(&Reason::new(reason))?;
            return Ok(Join::Forked(reason.into()));
        }
        let known: BTreeSet<[u8; 32]> = theirs.entries.iter().map(|hash| **hash).collect();
        if self.state.origin == Origin::Central {
            for holding in &theirs.documents {
                ours.documents.push(self.holding_for(peer, holding)?);
                self.doubt_holding(peer, holding)?;
            }
            ours.streams = self.stream_heads(stream_between(peer, self.state.origin))?;
            for hash in &known {
                let found: Option<i64> = self
                    .sql
                    .prepare_cached("SELECT entry FROM journal WHERE stream = ?1 AND hash = ?2")?
                    .query_row(params![stream_between(peer, self.state.origin).to_string(), hash], |row| {
                        row.get(0)
                    })
                    .optional()?;
                if found.is_some() {
                    ours.entries.push((*hash).into());
                }
            }
        }
        if let Origin::Site(_) = self.state.origin {
            let outside = theirs.documents.iter().filter(|holding| holding.outside == Some(true));
            self.keep_dropped(&outside.map(|holding| holding.document).collect())?;
        }
        // What was recorded since the logs began anew follows what is told now, in the journal's own order.
        self.take_entries_off(peer)?;
        // Before the orders that it is about.
        self.tell_recovering(peer)?;
        let mut changes = 0;
        // Sites before all else: a central that was restored learns from them again what it had allowed,
        // before it judges what was done since.
        if (self.state.origin, theirs.nothing) == (Origin::Central, Some(true)) {
            changes += self.tell_everything(peer)?;
        }
        let (sites, others): (Vec<_>, Vec<_>) =
            theirs.documents.iter().partition(|holding| self.is_site(holding.document));
        for holding in sites.into_iter().chain(others) {
            changes += self.tell_beyond(peer, holding)?;
        }
        if let Origin::Site(site) = peer {
            self.tell_directory_anew(site)?;
            self.sql
                .prepare_cached("UPDATE epochs SET told = ?2 WHERE site = ?1 AND told IS NULL")?
                .execute(params![site.as_bytes(), signed(log::end(self.sql, peer)?)])?;
        }
        self.tell_broken_chains(peer, stream_between(peer, self.state.origin))?;
        let known = matches!(self.state.origin, Origin::Site(_)).then_some(&known);
        let entries = self.tell_entries(peer, &theirs.streams, known)?;
        let entries = entries + self.ask_again(peer)?;
        let site = peer.site().or(self.state.origin.site());
        if let Some(site) = site {
            let documents = theirs.documents.len() as u64;
            self.journal(Event::ReplicaJoined { site, documents, changes, entries })?;
        }
        let end = log::end(self.sql, peer)?;
        self.sql
            .prepare_cached("UPDATE peers SET life = ?2, anew = 0, settled = ?3 WHERE peer = ?1")?
            .execute(params![peer.to_string(), life.as_bytes(), signed(end)])?;
        Ok(Join::Joined(end, ours))
    }

    /// Makes our log for `peer`, of which nothing was said yet, once more without journal entries.
    fn take_entries_off(&mut self, peer: Origin) -> Result<(), StoreError> {
        let mut rows: Vec<(Row, Fingerprint)> = Vec::new();
        let mut before = Fingerprint::default();
        {
            let mut statement = self.sql.prepare_cached(
                "SELECT change, entry, note, changes, sum FROM log WHERE peer = ?1 ORDER BY position",
            )?;
            let mut found = statement.query([peer.to_string()])?;
            while let Some(row) = found.next()? {
                let at = Fingerprint {
                    changes: row.get::<_, i64>(3)?.cast_unsigned(),
                    sum: u128::from_be_bytes(row.get(4)?),
                    heads: None,
                };
                let adds = Fingerprint {
                    changes: at.changes.wrapping_sub(before.changes),
                    sum: at.sum.wrapping_sub(before.sum),
                    heads: None,
                };
                before = at;
                match (row.get(0)?, row.get::<_, Option<i64>>(1)?) {
                    (Some(change), _) => rows.push((Row::Change(change), adds)),
                    (None, Some(_)) => {}
                    (None, None) => rows.push((Row::Note(row.get(2)?), adds)),
                }
            }
        }
        self.sql.prepare_cached("DELETE FROM log WHERE peer = ?1")?.execute([peer.to_string()])?;
        rows.into_iter().try_for_each(|(row, adds)| self.tell_with(peer, row, adds))
    }

    /// The heads of one document, by what its changes say and not by what was noted of them.
    fn holding(&mut self, id: DocumentId) -> Result<Holding, StoreError> {
        let nothing = Holding { kind: 0, document: id, heads: vec![], outside: None };
        let Some(doc) = self.find(id)? else { return Ok(nothing) };
        let (number, noted): (u8, Vec<u8>) = self
            .sql
            .prepare_cached("SELECT kind, heads FROM documents WHERE doc = ?1")?
            .query_row([doc], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let Some(kind) = Kind::from_number(number) else { return Ok(nothing) };
        let Some(heads) = self.with_document(kind, id, |document| documents::joined(&document.heads()))?
        else {
            return Ok(nothing);
        };
        if heads != noted {
            tracing::warn!(document = %id, "the noted heads of a document were wrong and are mended");
            self.sql
                .prepare_cached("UPDATE documents SET heads = ?2 WHERE doc = ?1")?
                .execute(params![doc, heads])?;
        }
        Ok(Holding { kind: number, document: id, heads, outside: None })
    }

    /// What central tells a site of a document: all, if the site may have it or shows that it has some of it.
    ///
    /// Heads that the site does not know tell it nothing: it would give back all that it has. So what central
    /// has of the site's own heads is told, beside central's where that is not all of them.
    fn holding_for(&mut self, peer: Origin, theirs: &Holding) -> Result<Holding, StoreError> {
        let nothing = Holding { kind: 0, document: theirs.document, heads: vec![], outside: None };
        let Some(doc) = self.find(theirs.document)? else { return Ok(nothing) };
        let outside = (!self.is_in_scope(peer, doc)?).then_some(true);
        let stated = heads_of(theirs);
        let mut known: Vec<ChangeHash> =
            stated.iter().filter(|head| self.has_change(head)).copied().collect();
        let has_all = !stated.is_empty() && known.len() == stated.len();
        if !has_all && outside.is_some() {
            return Ok(Holding { outside, ..nothing });
        }
        let ours = Holding { outside, ..self.holding(theirs.document)? };
        if has_all {
            return Ok(Holding { heads: theirs.heads.clone(), ..ours });
        }
        known.extend(heads_of(&ours));
        known.sort();
        known.dedup();
        Ok(Holding { heads: documents::joined(&known), ..ours })
    }

    /// At central: a copy that the site holds and that is not in its scope leaves it once it has told all of it.
    fn doubt_holding(&self, peer: Origin, theirs: &Holding) -> Result<(), StoreError> {
        let Some(doc) = self.find(theirs.document)? else { return Ok(()) };
        if theirs.heads.is_empty() || self.is_in_scope(peer, doc)? {
            return Ok(());
        }
        scope::doubt(self, peer, doc)
    }

    fn is_site(&self, id: DocumentId) -> bool {
        let found = self.sql.prepare_cached("SELECT 1 FROM documents WHERE id = ?1 AND kind = ?2");
        let site = params![id.as_bytes(), Kind::Site.number()];
        found.is_ok_and(|mut statement| statement.exists(site).unwrap_or(false))
    }

    pub(crate) fn has_change(&self, hash: &ChangeHash) -> bool {
        let found = self.sql.prepare_cached("SELECT 1 FROM changes WHERE hash = ?1");
        found.is_ok_and(|mut statement| statement.exists([hash.0]).unwrap_or(false))
    }

    fn is_in_scope(&self, peer: Origin, doc: i64) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT 1 FROM scope WHERE peer = ?1 AND doc = ?2 AND inside = 1")?
            .exists(params![peer.to_string(), doc])?)
    }

    /// Tells the changes of a document that are beyond what the peer holds of it.
    fn tell_beyond(&mut self, peer: Origin, theirs: &Holding) -> Result<u64, StoreError> {
        let Some(doc) = self.find(theirs.document)? else { return Ok(0) };
        if self.state.origin == Origin::Central && !self.is_in_scope(peer, doc)? {
            return Ok(0);
        }
        let number: u8 = self
            .sql
            .prepare_cached("SELECT kind FROM documents WHERE doc = ?1")?
            .query_row([doc], |row| row.get(0))?;
        let Some(kind) = Kind::from_number(number) else { return Ok(0) };
        let heads = heads_of(theirs);
        let hashes: Vec<[u8; 32]> = self
            .with_document(kind, theirs.document, |document| {
                document.automerge().get_changes(&heads).iter().map(|change| change.hash().0).collect()
            })?
            .unwrap_or_default();
        let mut rows = Vec::new();
        for hash in hashes {
            // The genesis is computed everywhere and stored nowhere.
            let change: Option<i64> = self
                .sql
                .prepare_cached(
                    "SELECT change FROM changes WHERE hash = ?1 AND NOT EXISTS
                     (SELECT 1 FROM log WHERE log.change = changes.change AND peer = ?2)",
                )?
                .query_row(params![hash, peer.to_string()], |row| row.get(0))
                .optional()?;
            rows.extend(change.map(Row::Change));
        }
        let told = rows.len() as u64;
        self.tell_all(peer, rows)?;
        Ok(told)
    }

    /// Tells a site that holds nothing all that is in its scope, each document as a whole.
    fn tell_everything(&mut self, peer: Origin) -> Result<u64, StoreError> {
        let rows: Vec<Row> = {
            // Sites first, tasks after what they need: in the order of the kinds' numbers.
            let mut statement = self.sql.prepare_cached(
                "SELECT change FROM changes JOIN documents ON documents.doc = changes.doc
                     JOIN scope ON scope.doc = changes.doc
                 WHERE scope.peer = ?1 AND inside = 1
                     AND NOT EXISTS (SELECT 1 FROM log WHERE log.change = changes.change AND log.peer = ?1)
                 ORDER BY kind, changes.doc, change",
            )?;
            let rows = statement.query_map([peer.to_string()], |row| Ok(Row::Change(row.get(0)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        let told = rows.len() as u64;
        self.tell_all(peer, rows)?;
        Ok(told)
    }

    /// The newest entry of each life of a stream.
    fn stream_heads(&self, stream: Stream) -> Result<Vec<StreamHead>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT incarnation, max(seq), hash FROM
                 (SELECT incarnation, seq, hash FROM journal WHERE stream = ?1
                  UNION ALL SELECT incarnation, upto, hash FROM checkpoints WHERE stream = ?1)
             GROUP BY incarnation",
        )?;
        let rows = statement.query_map([stream.to_string()], |row| {
            Ok(StreamHead {
                incarnation: Incarnation(row.get(0)?),
                seq: row.get::<_, i64>(1)?.unsigned_abs(),
                hash: row.get(2)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Tells the entries of our stream that the peer lacks. `known` are hashes of entries that it has
    /// although they are beyond what it acknowledged, where that was asked.
    fn tell_entries(
        &mut self,
        peer: Origin,
        theirs: &[StreamHead],
        known: Option<&BTreeSet<[u8; 32]>>,
    ) -> Result<u64, StoreError> {
        let stream = stream_between(self.state.origin, peer);
        let theirs: BTreeMap<Incarnation, StreamHead> =
            theirs.iter().map(|head| (head.incarnation, *head)).collect();
        // Whether an entry is recorded once more, and the entry: what is recorded last goes last.
        let mut lacking: Vec<(bool, i64)> = Vec::new();
        let mut skipped: Vec<Mark> = Vec::new();
        for ours in self.stream_heads(stream)? {
            let theirs = theirs.get(&ours.incarnation);
            let mut after = theirs.map_or(0, |head| head.seq);
            // What the peer lacks of the beginning may not be here any more: then it goes on from where it is.
            let from = retention::last_checkpoint(self.sql, stream, ours.incarnation)?;
            let continues = match (theirs, from) {
                (_, Some(from)) if after < from.seq => {
                    after = from.seq;
                    skipped.push(Mark::trimmed(&from, self.given.now));
                    true
                }
                (None, _) => true,
                (Some(head), _) => self.has_entry(stream, head)?,
            };
            let mut statement = self.sql.prepare_cached(
                "SELECT entry, hash FROM journal
                 WHERE stream = ?1 AND incarnation = ?2 AND copied = 0 AND CASE WHEN ?3 THEN seq > ?4
                     ELSE entry > ifnull((SELECT common_entry FROM peers WHERE peer = ?5), 0) END
                     AND NOT EXISTS (SELECT 1 FROM log WHERE log.entry = journal.entry AND peer = ?5)
                 ORDER BY entry",
            )?;
            let rows = statement.query_map(
                params![
                    stream.to_string(),
                    ours.incarnation.as_bytes(),
                    continues,
                    signed(after),
                    peer.to_string()
                ],
                |row| Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?)),
            )?;
            for row in rows {
                let (entry, hash) = row?;
                if continues || !known.is_some_and(|known| known.contains(&hash)) {
                    lacking.push((!continues, entry));
                }
            }
        }
        for mark in skipped {
            self.tell(peer, Row::Note(Item::mark(mark).to_bytes()))?;
        }
        lacking.sort_unstable();
        let told = lacking.len() as u64;
        let mut rows = Vec::with_capacity(lacking.len());
        for (again, entry) in lacking {
            let row = if again { self.record_again(stream, entry)? } else { Some(entry) };
            rows.extend(row.map(Row::Entry));
        }
        self.tell_all(peer, rows)?;
        Ok(told)
    }

    /// At a site: records once more that it asked for what is not answered, where no entry of its journal says so: it was lost
    /// with a database that went back in time, and central goes by the journal. Returns how many that were.
    fn ask_again(&mut self, central: Origin) -> Result<u64, StoreError> {
        let Origin::Site(here) = self.state.origin else { return Ok(0) };
        let stream = Stream::Site(here);
        let open = ProposalFilter { state: Some(ProposalState::Open), ..ProposalFilter::default() };
        let mut lost = self.view().proposals(&open)?;
        // What central refused is answered by people, whatever the journal says.
        lost.retain(|row| row.action != proposal::WRITE);
        if lost.is_empty() {
            return Ok(0);
        }
        let asked = self.asked_in(stream)?;
        let mut rows = Vec::new();
        for row in lost.into_iter().filter(|row| !asked.contains(&row.id)) {
            let Some(document) = row.document else { continue };
            let event = Event::ProposalMade {
                proposal: row.id,
                action: row.action,
                document,
                reason: "the entry that said so was lost with a database that went back in time".into(),
            };
            let entry = self.append_as(stream, Hlc::at(row.at), &row.by, row.policy_epoch, event)?;
            rows.push(Row::Entry(entry));
        }
        let many = rows.len() as u64;
        self.tell_all(central, rows)?;
        Ok(many)
    }

    /// What the entries of a stream say was asked for.
    fn asked_in(&self, stream: Stream) -> Result<BTreeSet<ProposalId>, StoreError> {
        let mut statement = self.sql.prepare_cached("SELECT bytes FROM journal WHERE stream = ?1")?;
        let mut found = statement.query([stream.to_string()])?;
        let mut asked = BTreeSet::new();
        while let Some(row) = found.next()? {
            let bytes = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
            if let Ok(Some(Event::ProposalMade { proposal, .. })) = chain::decode(bytes).map(|it| it.event) {
                asked.insert(proposal);
            }
        }
        Ok(asked)
    }

    /// Whether an entry is here, or was once: what is not kept any more cannot be compared any more.
    pub(crate) fn has_entry(&self, stream: Stream, head: &StreamHead) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached(
                "SELECT 1 FROM journal WHERE stream = ?1 AND incarnation = ?2 AND seq = ?3 AND hash = ?4
                 UNION SELECT 1 FROM checkpoints WHERE stream = ?1 AND incarnation = ?2 AND
                     (upto = ?3 AND hash = ?4 OR after < ?3 AND ?3 < upto)",
            )?
            .exists(params![stream.to_string(), head.incarnation.as_bytes(), signed(head.seq), head.hash])?)
    }

    /// Records the fact of an entry once more, in the present chain; nothing if it cannot be read.
    pub(crate) fn record_again(&mut self, stream: Stream, entry: i64) -> Result<Option<i64>, StoreError> {
        let bytes: Vec<u8> = self
            .sql
            .prepare_cached("SELECT bytes FROM journal WHERE entry = ?1")?
            .query_row([entry], |row| row.get(0))?;
        self.sql.prepare_cached("UPDATE journal SET copied = 1 WHERE entry = ?1")?.execute([entry])?;
        let Ok(found) = chain::decode(&bytes) else {
            tracing::error!(entry, %stream, "an entry of our own journal cannot be read any more");
            return Ok(None);
        };
        // Whoever wrote it was this very program, so its event is known.
        let Some(event) = found.event else { return Ok(None) };
        self.append_as(stream, found.at, &found.by, found.policy_epoch, event).map(Some)
    }
}

/// What became of a join.
pub(crate) enum Join {
    /// Both have a common log: its end, and what central holds.
    Joined(u64, Holdings),
    /// What central holds showed that our database went back in time: another life of it has begun.
    Forked(String),
}

fn heads_of(holding: &Holding) -> Vec<ChangeHash> {
    holding
        .heads
        .chunks_exact(32)
        .map(|head| ChangeHash(head.try_into().expect("chunks of 32 bytes")))
        .collect()
}
