//! Disagreements that this replica has seen: kept from when one shows in a document until a later value ends it, and at
//! central afterwards as history.
//!
//! Every change of a document comes by here, so it does not matter who ended one: the policy, a person at the review
//! desk, or somebody who simply wrote the register again. Central journals the end, with every side in full; so a site
//! has it in its journal, also of what was settled before the site heard of it.

use rusqlite::params;
use sync::{
    document::{Document, Kind, Side, contested, register::Untyped, settlement},
    id::{Origin, SiteId},
    journal::Event,
    policy::Accepted,
};

use crate::{
    StoreError, Tx,
    log::signed,
    view::{self, Body, ConflictRow, EndedRow, SideRow},
};

impl Tx<'_> {
    /// Brings the disagreements of a document to what it says. `quiet`: nobody disagrees in it now.
    pub(crate) fn note_conflicts(
        &mut self,
        kind: Kind,
        document: &Document,
        quiet: bool,
    ) -> Result<(), StoreError> {
        let open = "SELECT 1 FROM conflicts WHERE id = ?1 AND open = 1";
        if quiet && !self.sql.prepare_cached(open)?.exists([document.id().as_bytes()])? {
            return Ok(());
        }
        let disputed = if quiet { vec![] } else { contested::disputed(document) };
        let home = settlement::home(document);
        let mut known = self.view().open_conflicts(document.id())?;
        for one in &disputed {
            let path = one.path();
            let body = Body::of(one);
            match known.iter().position(|row| row.path == path) {
                Some(place) => {
                    let row = known.swap_remove(place);
                    if row.sides != body.sides || row.home != home {
                        self.sql
                            .prepare_cached(
                                "UPDATE conflicts SET home = ?2, body = ?3, reason = NULL WHERE conflict = ?1",
                            )?
                            .execute(params![
                                signed(row.conflict),
                                home.map(|site| site.0),
                                serde_json::to_string(&body)?
                            ])?;
                    }
                }
                None => {
                    self.sql
                        .prepare_cached(
                            "INSERT INTO conflicts (kind, id, path, home, opened_at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                        )?
                        .execute(params![
                            kind.number(),
                            document.id().as_bytes(),
                            path,
                            home.map(|site| site.0),
                            signed(self.given.now.0),
                            serde_json::to_string(&body)?
                        ])?;
                }
            }
        }
        for row in known {
            let now = contested::read_path(document, &row.path);
            self.end_conflict(row, now.as_ref().and_then(|read| read.settled()))?;
        }
        Ok(())
    }

    /// A document is not here any more: nobody here hears how its disagreements end.
    pub(crate) fn forget_conflicts(&mut self, id: sync::id::DocumentId) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("DELETE FROM conflicts WHERE id = ?1 AND open = 1")?
            .execute([id.as_bytes()])?;
        Ok(())
    }

    fn end_conflict(&mut self, row: ConflictRow, now: Option<&Side<Untyped>>) -> Result<(), StoreError> {
        if self.origin() != Origin::Central {
            let ended = "DELETE FROM conflicts WHERE conflict = ?1";
            self.sql.prepare_cached(ended)?.execute([signed(row.conflict)])?;
            return Ok(());
        }
        let value = now.map(|side| view::shown(&side.value.0)).unwrap_or_default();
        let by = now.map(|side| side.settled_by.as_ref().unwrap_or(&side.written));
        let resolution = now.map(|side| accepted(&row.sides, side, &value));
        let ended = EndedRow {
            at: self.given.now,
            resolution,
            value: value.clone(),
            nonce: now.map(Side::nonce),
            by: by.map(|written| written.by.clone()).unwrap_or_default(),
            why: by.map_or_else(|| "a side was taken back".into(), |written| written.why.clone()),
            reverted_by: None,
        };
        let event = Event::ConflictSettled {
            kind: row.kind.clone(),
            document: row.document,
            path: row.path.clone(),
            resolution: resolution.map_or("withdrawn", Accepted::as_str).to_string(),
            value: value.to_string(),
            sides: serde_json::to_string(&row.sides)?,
            why: ended.why.clone(),
        };
        self.journal_about(row.home, event)?;
        let body = Body { sides: row.sides, agreed: row.agreed, ended: Some(ended) };
        self.sql
            .prepare_cached("UPDATE conflicts SET open = 0, reason = NULL, body = ?2 WHERE conflict = ?1")?
            .execute(params![signed(row.conflict), serde_json::to_string(&body)?])?;
        Ok(())
    }

    /// Records a fact about something at home at a site, which is told, or nowhere.
    pub(crate) fn journal_about(&mut self, home: Option<SiteId>, event: Event) -> Result<(), StoreError> {
        match home {
            Some(home) => self.journal_for(home, event),
            None => self.journal(event),
        }
    }
}

/// Whose word a value is, among these sides.
fn accepted(sides: &[SideRow], now: &Side<Untyped>, value: &serde_json::Value) -> Accepted {
    let repeated = sides.iter().find(|side| side.nonce == now.written.nonce);
    let equal = |from_central: bool| {
        sides.iter().find(|side| side.value == *value && (side.site == Origin::Central) == from_central)
    };
    match repeated.or_else(|| equal(true)).or_else(|| equal(false)).map(|side| side.site) {
        Some(Origin::Central) => Accepted::Central,
        Some(Origin::Site(_)) => Accepted::Site,
        None => Accepted::Merged,
    }
}
