//! Machines that have something in common which only one machine should have.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, params};
use serde::Serialize;
use sync::{
    id::{MacAddr, NodeId},
    policy::{
        Wanted,
        twin::{self, Look, Twin},
    },
};

use super::{NodeRow, View, bodies};
use crate::StoreError;

/// Two machines that may be one, or share what no two machines of a site should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TwinRow {
    /// Both, the smaller id first.
    pub nodes: [NodeId; 2],
    /// What they have in common: `machine`, `address` or `hostname`.
    pub what: &'static str,
    /// Why a person decides.
    pub reason: String,
}

impl View<'_> {
    /// Pairs that wait for a person, in the order of their ids: machines that may be one, and those at home at one site that
    /// have the same address or host name.
    pub fn twins(&self) -> Result<Vec<TwinRow>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT DISTINCT a.doc, b.doc, substr(a.trait, 1, instr(a.trait, ' ') - 1) FROM view_traits a
             JOIN view_traits b ON b.trait = a.trait AND b.doc > a.doc",
        )?;
        let pairs: BTreeMap<(i64, i64), BTreeSet<String>> = {
            let rows =
                statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get::<_, String>(2)?)))?;
            let mut pairs: BTreeMap<(i64, i64), BTreeSet<String>> = BTreeMap::new();
            for row in rows {
                let (pair, what) = row?;
                pairs.entry(pair).or_default().insert(what);
            }
            pairs
        };
        let mut found = Vec::new();
        for ((a, b), common) in pairs {
            let (Some(a), Some(b)) = (self.node_of(a)?, self.node_of(b)?) else { continue };
            let mut nodes = [a.id, b.id];
            nodes.sort();
            if common.contains("mac") || common.contains("hardware") {
                if let Twin::Ask(reason) = twin::compare(&self.look(&a)?, &self.look(&b)?) {
                    found.push(TwinRow { nodes, what: "machine", reason: reason.to_string() });
                }
                continue;
            }
            for (what, value) in [("address", &a.address), ("hostname", &a.hostname)] {
                if common.contains(what) {
                    let reason = format!("both are called `{value}` at their site; give one of them another");
                    found.push(TwinRow { nodes, what, reason });
                }
            }
        }
        found.sort_by(|a, b| (a.nodes, a.what).cmp(&(b.nodes, b.what)));
        Ok(found)
    }

    /// Machines that may be the same as one.
    pub(crate) fn twins_of(&self, node: NodeId) -> Result<Vec<NodeRow>, StoreError> {
        let statement = self.sql.prepare_cached(
            "SELECT DISTINCT view_nodes.body FROM view_nodes AS one JOIN view_traits a ON a.doc = one.doc
             JOIN view_traits b ON b.trait = a.trait AND b.doc != a.doc JOIN view_nodes ON view_nodes.doc = b.doc
             WHERE one.id = ?1 AND (a.trait LIKE 'mac %' OR a.trait LIKE 'hardware %')",
        )?;
        bodies(statement, [node.as_bytes()])
    }

    /// What counts where two machines are compared.
    pub(crate) fn look(&self, row: &NodeRow) -> Result<Look, StoreError> {
        Ok(Look {
            home: row.home,
            macs: row.macs.iter().copied().collect(),
            nics: nics(row).collect(),
            hardware: hardware(row).map(|(serial, uuid)| (serial.to_string(), uuid.to_string())),
            has_task: self.open_task(row.id, None)?.is_some(),
            is_its_own: row.is_its_own,
        })
    }

    fn node_of(&self, doc: i64) -> Result<Option<NodeRow>, StoreError> {
        let statement = self.sql.prepare_cached("SELECT body FROM view_nodes WHERE doc = ?1")?;
        Ok(bodies(statement, [doc])?.pop())
    }
}

fn nics(row: &NodeRow) -> impl Iterator<Item = MacAddr> {
    row.nics.values().filter_map(|mac| mac.parse().ok())
}

fn hardware(row: &NodeRow) -> Option<(&str, &str)> {
    let of = |name: &str| row.evidence.get(name).map(String::as_str);
    Some((of("serial")?, of("system_uuid")?))
}

/// Keeps what a machine in service has that no other should have.
pub(super) fn write(sql: &Connection, doc: i64, row: &NodeRow) -> Result<(), StoreError> {
    let mut traits = BTreeSet::new();
    if row.wanted != Wanted::Retired && row.alias_of.is_none() {
        traits.extend(row.macs.iter().copied().chain(nics(row)).map(|mac| format!("mac {mac}")));
        traits.extend(hardware(row).map(|(serial, uuid)| format!("hardware {serial} {uuid}")));
        if let Some(home) = row.home {
            for (what, value) in [("address", &row.address), ("hostname", &row.hostname)] {
                if !value.is_empty() {
                    traits.insert(format!("{what} {home} {value}"));
                }
            }
        }
    }
    let before: BTreeSet<String> = {
        let mut statement = sql.prepare_cached("SELECT trait FROM view_traits WHERE doc = ?1")?;
        statement.query_map([doc], |row| row.get(0))?.collect::<Result<_, _>>()?
    };
    if before == traits {
        return Ok(());
    }
    for gone in before.difference(&traits) {
        sql.prepare_cached("DELETE FROM view_traits WHERE doc = ?1 AND trait = ?2")?
            .execute(params![doc, gone])?;
    }
    for new in traits.difference(&before) {
        sql.prepare_cached("INSERT INTO view_traits (doc, trait) VALUES (?1, ?2)")?
            .execute(params![doc, new])?;
    }
    Ok(())
}
