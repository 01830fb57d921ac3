//! Where this replica stands towards its peers and its machines.

use rusqlite::OptionalExtension;
use serde::Serialize;
use sync::{
    id::{Incarnation, MacAddr, NodeId, Origin, TaskId},
    time::Timestamp,
    wire::Telemetry,
};

use super::View;
use crate::{StoreError, log};

/// Standing towards one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerRow {
    /// What is here of the peer's log.
    pub pulled: u64,
    /// End of our log for the peer.
    pub end: u64,
    /// What the peer has acknowledged of it.
    pub acknowledged: u64,
    /// When the peer was last heard, by our clock.
    pub heard_at: Option<Timestamp>,
    /// The peer's clock then.
    pub clock: Option<Timestamp>,
    /// What it told of itself.
    pub telemetry: Option<Telemetry>,
    /// Whether both hold the same; nothing if something moved since they compared. A difference stays
    /// until a comparison finds none.
    pub agrees: Option<bool>,
    /// When they last compared.
    pub compared_at: Option<Timestamp>,
    /// Why a session was refused, if the last one was.
    pub refused: Option<String>,
    /// Life of its database, if it has connected since ours began.
    pub life: Option<Incarnation>,
}

/// The newest boot answer to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootRow {
    /// Its boot interface.
    pub mac: MacAddr,
    /// The answer.
    pub answer: String,
    /// Why.
    pub reason: String,
    /// First given.
    pub first_at: Timestamp,
    /// Last given.
    pub last_at: Timestamp,
    /// How often in a row.
    pub count: u64,
}

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ProgressRow {
    /// The attempt.
    pub attempt: u64,
    /// `0..=100`.
    pub percent: u64,
    /// Network boots in which the consumed order was taken up again.
    pub boots: u64,
    /// When.
    pub at: Timestamp,
}

impl View<'_> {
    /// Standing towards `peer`; all zeros if nothing was ever exchanged.
    pub fn peer(&self, peer: Origin) -> Result<PeerRow, StoreError> {
        let number = |value: Option<i64>| value.map(|ms| Timestamp(ms.unsigned_abs()));
        let found = self
            .sql
            .prepare_cached(
                "SELECT pulled, acknowledged, heard_at, clock, telemetry, agrees, compared_at, refused,
                     life
                 FROM peers WHERE peer = ?1",
            )?
            .query_row([peer.to_string()], |row| {
                let telemetry: Option<Vec<u8>> = row.get(4)?;
                Ok(PeerRow {
                    pulled: row.get::<_, i64>(0)?.unsigned_abs(),
                    end: 0,
                    acknowledged: row.get::<_, i64>(1)?.unsigned_abs(),
                    heard_at: number(row.get(2)?),
                    clock: number(row.get(3)?),
                    telemetry: telemetry.and_then(|bytes| minicbor::decode(&bytes).ok()),
                    agrees: row.get(5)?,
                    compared_at: number(row.get(6)?),
                    refused: row.get(7)?,
                    life: row.get::<_, Option<[u8; 16]>>(8)?.map(Incarnation),
                })
            })
            .optional()?
            .unwrap_or_default();
        Ok(PeerRow { end: log::end(self.sql, peer)?, ..found })
    }

    /// The newest boot answers, the machine that was seen last first.
    pub fn boots(&self, limit: u64) -> Result<Vec<BootRow>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT mac, answer, reason, first_at, last_at, count FROM boots ORDER BY last_at DESC, mac LIMIT ?1",
        )?;
        let rows = statement.query_map([log::signed(limit)], boot_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The newest boot answer to one machine.
    pub fn boot(&self, mac: MacAddr) -> Result<Option<BootRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT mac, answer, reason, first_at, last_at, count FROM boots WHERE mac = ?1")?
            .query_row([mac.0], boot_row)
            .optional()?)
    }

    /// When a machine last reported something here that was answered, by our clock.
    pub fn last_report(&self, node: NodeId) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> = self
            .sql
            .prepare_cached("SELECT max(at) FROM reports WHERE node = ?1")?
            .query_row([node.as_bytes()], |row| row.get(0))?;
        Ok(at.map(|at| Timestamp(at.unsigned_abs())))
    }

    /// How far the attempt of a task has come, if it said so here.
    pub fn progress(&self, task: TaskId) -> Result<Option<ProgressRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT attempt, percent, boots, at FROM progress WHERE task = ?1")?
            .query_row([task.as_bytes()], |row| {
                Ok(ProgressRow {
                    attempt: row.get::<_, i64>(0)?.unsigned_abs(),
                    percent: row.get::<_, i64>(1)?.unsigned_abs(),
                    boots: row.get::<_, i64>(2)?.unsigned_abs(),
                    at: Timestamp(row.get::<_, i64>(3)?.unsigned_abs()),
                })
            })
            .optional()?)
    }
}

fn boot_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<BootRow> {
    let time = |ms: i64| Timestamp(ms.unsigned_abs());
    Ok(BootRow {
        mac: MacAddr(row.get(0)?),
        answer: row.get(1)?,
        reason: row.get(2)?,
        first_at: time(row.get(3)?),
        last_at: time(row.get(4)?),
        count: row.get::<_, i64>(5)?.unsigned_abs(),
    })
}
