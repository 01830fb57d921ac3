//! Whether the journal is what was written: every chain is walked from its beginning, or from its checkpoint, and
//! compared with the heads that its writer signed.
//!
//! Reads the database beside a program that runs on it. Signatures are verified by whoever has the keys.

use std::{collections::BTreeMap, path::Path};

use rusqlite::params;
use serde::Serialize;
use sync::{
    blob::Digest,
    id::{Incarnation, Origin},
    journal::{Head, Mark, Stream, chain},
    time::Timestamp,
};

use crate::{
    StoreError, View,
    log::signed,
    marks::mark_of,
    retention::{self, Part},
    writer,
};

/// What was found of one chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// Its stream.
    pub stream: String,
    /// Life of the database that wrote it.
    pub incarnation: Incarnation,
    /// Entries that are here.
    pub entries: u64,
    /// Number of the newest.
    pub last: u64,
    /// Ranges that are not here: after the first number, up to the second; with the digest of the archive that has
    /// them, if one does.
    pub missing: Vec<(u64, u64, Option<Digest>)>,
    /// Number of the entry that a signed head proves, and when that was signed.
    pub signed: Option<(u64, Timestamp)>,
    /// The first thing that does not fit.
    pub fault: Option<String>,
}

/// Verifies a signature: the mark, its stream, and the key of the site's certificate if that is on record.
pub type Verify<'v> = &'v dyn Fn(&Mark, Stream, Option<&[u8]>) -> Result<(), String>;

/// Reads the database of central in `folder`, whether or not central runs.
///
/// # Errors
/// `Open` when there is none; those of `read`.
pub fn beside<T>(
    folder: &Path,
    read: impl FnOnce(&View<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let connection = writer::reader(&writer::database(folder))?;
    connection.execute_batch("BEGIN")?;
    read(&View::new(&connection, Origin::Central))
}

impl View<'_> {
    /// Walks every chain.
    ///
    /// # Errors
    /// Only those of the database: what does not fit is told in [`Chain::fault`].
    pub fn audit(&self, verify: Verify<'_>) -> Result<Vec<Chain>, StoreError> {
        let chains = retention::chains(self.sql)?;
        chains
            .into_iter()
            .map(|(stream, incarnation)| self.audit_chain(stream, incarnation, verify))
            .collect()
    }

    fn audit_chain(
        &self,
        stream: Stream,
        incarnation: Incarnation,
        verify: Verify<'_>,
    ) -> Result<Chain, StoreError> {
        let mut checkpoints = retention::checkpoints(self.sql, stream, incarnation)?.into_iter().peekable();
        let mut heads = self.signed_heads(stream, incarnation)?;
        let mut found = Chain {
            stream: stream.to_string(),
            incarnation,
            entries: 0,
            last: 0,
            missing: Vec::new(),
            signed: None,
            fault: None,
        };
        let mut last = Head::new(incarnation);
        // What was trimmed was verified before; a head within it counts where the checkpoint ends.
        let mut skip = |last: &mut Head, found: &mut Chain| {
            while let Some(gap) = checkpoints.next_if(|it| it.after == last.seq) {
                found.missing.push((gap.after, gap.upto, gap.archive));
                *last = Head { incarnation, seq: gap.upto, hash: gap.hash };
                found.last = gap.upto;
            }
        };
        let mut statement = self.sql.prepare_cached(
            "SELECT hash, bytes FROM journal WHERE stream = ?1 AND incarnation = ?2 ORDER BY seq",
        )?;
        let mut rows = statement.query(params![stream.to_string(), incarnation.as_bytes()])?;
        skip(&mut last, &mut found);
        while let Some(row) = rows.next()? {
            let bytes = row.get_ref(1)?.as_blob().unwrap_or_default();
            let next = last.seq + 1;
            let (_, head) = match chain::follow(stream, Some(&last), bytes) {
                Ok(followed) if followed.1.incarnation == incarnation => followed,
                Ok(_) => {
                    found.fault = Some(format!("entry {next}: it is of another life of the database"));
                    return Ok(found);
                }
                Err(error) => {
                    found.fault = Some(format!("entry {next}: {error}"));
                    return Ok(found);
                }
            };
            if row.get::<_, [u8; 32]>(0)? != head.hash {
                found.fault = Some(format!("entry {next}: it has another hash than when it was stored"));
                return Ok(found);
            }
            last = head;
            (found.entries, found.last) = (found.entries + 1, head.seq);
            if let Some((mark, key)) = heads.remove(&head.seq) {
                if mark.hash != head.hash {
                    found.fault =
                        Some(format!("entry {next}: its writer signed another one, at {}", mark.at));
                    return Ok(found);
                }
                if let Err(why) = verify(&mark, stream, key.as_deref()) {
                    found.fault = Some(format!("entry {next}: the signature of its writer: {why}"));
                    return Ok(found);
                }
                found.signed = Some((head.seq, mark.at));
            }
            skip(&mut last, &mut found);
        }
        let beyond = heads.into_iter().find(|(seq, _)| *seq > last.seq);
        if let Some((seq, (mark, _))) = beyond {
            found.fault = Some(format!(
                "entry {}: it is missing, the chain ends before it, and its writer signed up to {seq} at {}",
                last.seq + 1,
                mark.at
            ));
        }
        Ok(found)
    }

    /// Verified heads of a chain by the number of the entry, with the key that is on record for who signed.
    #[expect(clippy::type_complexity, reason = "it is taken apart where it is made")]
    fn signed_heads(
        &self,
        stream: Stream,
        incarnation: Incarnation,
    ) -> Result<BTreeMap<u64, (Mark, Option<Vec<u8>>)>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT incarnation, seq, hash, at, signer, signature,
                 (SELECT key FROM certificates WHERE serial = signer AND 'site/' || lower(hex(site)) = stream)
             FROM heads WHERE stream = ?1 AND incarnation = ?2 AND verified_at IS NOT NULL",
        )?;
        let mut rows = statement.query(params![stream.to_string(), incarnation.as_bytes()])?;
        let mut found = BTreeMap::new();
        while let Some(row) = rows.next()? {
            let mark = mark_of(row, 0)?;
            found.insert(mark.seq, (mark, row.get(6)?));
        }
        Ok(found)
    }

    /// Whether a part of the archive with this digest is what was taken out of this database, and what follows in
    /// the database continues it.
    ///
    /// # Errors
    /// Those of the database; inside, why it does not fit.
    pub fn joins(&self, part: &Part, archive: Digest) -> Result<Result<(), String>, StoreError> {
        let Part { stream, incarnation, after, after_hash, upto, hash } = *part;
        let checkpoints = retention::checkpoints(self.sql, stream, incarnation)?;
        let Some(found) = checkpoints.iter().find(|it| (it.after, it.upto) == (after, upto)) else {
            return Ok(Err(format!("{stream}: the database has no checkpoint after {after} up to {upto}")));
        };
        if (found.hash, found.archive) != (hash, Some(archive)) {
            return Ok(Err(format!("{stream}: the checkpoint at {upto} is that of another archive")));
        }
        let before = checkpoints.iter().find(|it| it.upto == after).map_or([0; 32], |it| it.hash);
        if before != after_hash {
            return Ok(Err(format!("{stream}: entry {} does not continue what was before", after + 1)));
        }
        let next: Option<Vec<u8>> = {
            let mut statement = self.sql.prepare_cached(
                "SELECT bytes FROM journal WHERE stream = ?1 AND incarnation = ?2 AND seq = ?3",
            )?;
            let mut rows =
                statement.query(params![stream.to_string(), incarnation.as_bytes(), signed(upto + 1)])?;
            rows.next()?.map(|row| row.get(0)).transpose()?
        };
        let last = Head { incarnation, seq: upto, hash };
        Ok(match next.map(|bytes| chain::follow(stream, Some(&last), &bytes)) {
            Some(Err(error)) => Err(format!("{stream}: entry {}: {error}", upto + 1)),
            Some(Ok(_)) => Ok(()),
            // Then another archive follows, which says so itself.
            None if checkpoints.iter().any(|it| it.after == upto) => Ok(()),
            None => Err(format!("{stream}: entry {} is missing in the database", upto + 1)),
        })
    }
}
