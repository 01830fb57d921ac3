//! What this replica and a peer have of each other.

use rusqlite::{OptionalExtension, params};
use sync::{
    document::Kind,
    id::{DocumentId, Origin},
    journal::{Event, Stream},
    time::Timestamp,
    wire::{Cursor, Fingerprint, Item, Rolling, Telemetry},
};

use crate::{
    StoreError, Tx,
    log::{self, signed},
};

pub use sync::engine::Standing;

impl Tx<'_> {
    fn ensure_peer(&self, peer: Origin) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("INSERT OR IGNORE INTO peers (peer) VALUES (?1)")?
            .execute([peer.to_string()])?;
        Ok(())
    }

    /// What is here of the peer's log, with the fingerprint over the changes in it.
    fn pulled(&self, peer: Origin) -> Result<(Cursor, Fingerprint), StoreError> {
        let found = self
            .sql
            .prepare_cached(
                "SELECT pulled, pulled_rolling, received, received_sum FROM peers WHERE peer = ?1",
            )?
            .query_row([peer.to_string()], |row| {
                Ok((
                    Cursor { position: row.get::<_, i64>(0)?.unsigned_abs(), rolling: Rolling(row.get(1)?) },
                    Fingerprint {
                        changes: row.get::<_, i64>(2)?.unsigned_abs(),
                        sum: u128::from_be_bytes(row.get(3)?),
                        heads: None,
                    },
                ))
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

    /// Where we stand towards `peer`. At central `claim` is what the site says: what it has of our log,
    /// what it knows us to have of its log, and what it holds.
    pub fn standing(
        &mut self,
        peer: Origin,
        claim: Option<(u64, u64, Fingerprint)>,
    ) -> Result<Standing, StoreError> {
        let (pulled, _) = self.pulled(peer)?;
        let policy_epoch = self.view().policy_epoch()?;
        let incarnation = self.state.incarnation;
        let end = log::end(self.sql, peer)?;
        Ok(match claim {
            None => {
                let acknowledged = self.acknowledged(peer)?;
                Standing {
                    incarnation,
                    policy_epoch,
                    pulled,
                    pushed: self.locate(peer, acknowledged)?,
                    end,
                    fingerprint: self.fingerprint(peer, acknowledged)?,
                    agrees: None,
                }
            }
            Some((had, had_pushed, found)) => Standing {
                incarnation,
                policy_epoch,
                pulled,
                pushed: self.locate(peer, had)?,
                end,
                fingerprint: Fingerprint::default(),
                agrees: self.compare(peer, had, had_pushed, &found)?,
            },
        })
    }

    /// Our log for `peer` at a position, if it reaches that far.
    pub fn locate(&self, peer: Origin, position: u64) -> Result<Option<Cursor>, StoreError> {
        Ok(log::mark(self.sql, peer, Some(position))?.map(|mark| mark.cursor))
    }

    /// Reads our log for `peer`.
    pub fn read_log_for(
        &mut self,
        peer: Origin,
        from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        self.read_log(peer, from, max_bytes)
    }

    /// Keeps that `peer` has everything of our log up to `position`.
    pub fn acknowledge(&mut self, peer: Origin, position: u64) -> Result<(), StoreError> {
        self.ensure_peer(peer)?;
        self.sql
            .prepare_cached("UPDATE peers SET acknowledged = max(acknowledged, ?2) WHERE peer = ?1")?
            .execute(params![peer.to_string(), signed(position)])?;
        Ok(())
    }

    /// Takes over items of the peer's log and returns what is here of it now.
    ///
    /// # Errors
    /// `Malformed` or `Chain` when an item is not what the protocol allows; then nothing is taken.
    pub fn ingest(&mut self, peer: Origin, from: u64, items: &[Vec<u8>]) -> Result<Cursor, StoreError> {
        self.ensure_peer(peer)?;
        let (mut cursor, mut received) = self.pulled(peer)?;
        if from != cursor.position + 1 {
            return Err(StoreError::Malformed {
                what: "batch of log items",
                why: format!("it begins at {from} and {} are here", cursor.position),
            });
        }
        let before = self.quarantined()?;
        let mut run: Option<(Kind, DocumentId, Vec<Vec<u8>>)> = None;
        for bytes in items {
            let item: Item = minicbor::decode(bytes)
                .map_err(|error| StoreError::Malformed { what: "log item", why: error.to_string() })?;
            cursor = Cursor { position: cursor.position + 1, rolling: cursor.rolling.over(bytes) };
            match (item.kind, item.document, item.change, item.entry) {
                (Some(kind), Some(document), Some(change), _) => {
                    let Some(kind) = Kind::from_number(kind) else {
                        // A kind of a newer program: kept aside, so that nothing is lost.
                        self.set_aside(kind, document, peer, &change)?;
                        continue;
                    };
                    match &mut run {
                        Some((same, id, batch)) if *same == kind && *id == document => batch.push(change),
                        Some(_) | None => {
                            self.take_run(run.take(), peer, &mut received)?;
                            run = Some((kind, document, vec![change]));
                        }
                    }
                }
                (_, _, _, Some(entry)) => {
                    self.take_run(run.take(), peer, &mut received)?;
                    let stream = match (self.state.origin, peer) {
                        (Origin::Central, Origin::Site(site)) => Stream::Site(site),
                        (Origin::Site(site), _) => Stream::Down(site),
                        (Origin::Central, Origin::Central) => Stream::Central,
                    };
                    self.take_entry(stream, &entry)?;
                }
                // An item of a newer program counts and says nothing to us.
                _ => {}
            }
        }
        self.take_run(run, peer, &mut received)?;
        self.outdate_agreement(peer)?;
        if self.quarantined()? > before {
            self.set_agreement(peer, false)?;
        }
        self.sql
            .prepare_cached(
                "UPDATE peers SET pulled = ?2, pulled_rolling = ?3, received = ?4, received_sum = ?5 WHERE peer = ?1",
            )?
            .execute(params![
                peer.to_string(),
                signed(cursor.position),
                cursor.rolling.0,
                signed(received.changes),
                received.sum.to_be_bytes()
            ])?;
        Ok(cursor)
    }

    fn take_run(
        &mut self,
        run: Option<(Kind, DocumentId, Vec<Vec<u8>>)>,
        peer: Origin,
        received: &mut Fingerprint,
    ) -> Result<(), StoreError> {
        let Some((kind, id, batch)) = run else { return Ok(()) };
        let newest: i64 =
            self.sql.query_row("SELECT ifnull(max(change), 0) FROM changes", [], |row| row.get(0))?;
        self.admit(kind, id, &batch, peer)?;
        let mut statement =
            self.sql.prepare_cached("SELECT hash FROM changes WHERE change > ?1 AND source IS ?2")?;
        let mut rows = statement.query(params![newest, peer.to_string()])?;
        while let Some(row) = rows.next()? {
            received.add(&row.get(0)?);
        }
        drop(rows);
        drop(statement);
        if kind == Kind::Node && self.state.origin == Origin::Central {
            crate::command::node::settle_home(self, id.into())?;
        }
        Ok(())
    }

    fn set_aside(&mut self, kind: u8, id: DocumentId, peer: Origin, bytes: &[u8]) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO quarantine (peer, kind, id, at, reason, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                peer.to_string(),
                kind,
                id.as_bytes(),
                signed(self.given.now.0),
                "documents of this kind are not known to this program",
                bytes
            ])?;
        Ok(())
    }

    fn quarantined(&self) -> Result<i64, StoreError> {
        Ok(self.sql.query_row("SELECT count(*) FROM quarantine", [], |row| row.get(0))?)
    }

    /// What is held here, less what `peer` has not acknowledged after `pushed`.
    pub fn fingerprint(&mut self, peer: Origin, pushed: u64) -> Result<Fingerprint, StoreError> {
        let mut held = Fingerprint::default();
        {
            let mut statement = self.sql.prepare_cached("SELECT hash FROM changes")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                held.add(&row.get(0)?);
            }
        }
        let end = log::mark(self.sql, peer, None)?.unwrap_or_default();
        let at = log::mark(self.sql, peer, Some(pushed))?.unwrap_or_default();
        let unknown = (
            end.fingerprint.changes.wrapping_sub(at.fingerprint.changes),
            end.fingerprint.sum.wrapping_sub(at.fingerprint.sum),
        );
        held.changes = held.changes.wrapping_sub(unknown.0);
        held.sum = held.sum.wrapping_sub(unknown.1);
        if pushed == end.cursor.position {
            held.heads = Some(0);
            let mut statement =
                self.sql.prepare_cached("SELECT id, heads FROM documents WHERE changes > 0")?;
            add_heads(&mut held, &mut statement, params![])?;
        }
        Ok(held)
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
        let (ours, received) = self.pulled(site)?;
        let Some(told) = log::mark(self.sql, site, Some(pulled))? else { return Ok(None) };
        if ours.position != pushed {
            return Ok(None);
        }
        let mut expected = told.fingerprint;
        expected.changes = expected.changes.wrapping_add(received.changes);
        expected.sum = expected.sum.wrapping_add(received.sum);
        if pulled == log::end(self.sql, site)? {
            expected.heads = Some(0);
            let mut statement = self.sql.prepare_cached(
                "SELECT id, heads FROM scope JOIN documents ON documents.doc = scope.doc
                 WHERE peer = ?1 AND changes > 0",
            )?;
            add_heads(&mut expected, &mut statement, params![site.to_string()])?;
        }
        let agrees = expected.agrees(found);
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
        if peer == Origin::Central {
            self.confirm_central_time(clock)?;
        }
        Ok(())
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

fn add_heads(
    sum: &mut Fingerprint,
    statement: &mut rusqlite::CachedStatement<'_>,
    params: impl rusqlite::Params,
) -> Result<(), StoreError> {
    let mut rows = statement.query(params)?;
    while let Some(row) = rows.next()? {
        let heads: Vec<u8> = row.get(1)?;
        sum.add_heads(DocumentId(row.get(0)?), &heads);
    }
    Ok(())
}
