//! Nodes, found by id, MAC address or home.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use sync::{
    document::{Document, contested::Registers, node},
    id::{GroupId, MacAddr, NodeId, Nonce, SiteId, TaskId, WorkflowId},
    policy::{NodeState, Phase, Wanted, lifecycle},
};

use super::{View, bodies, twins};
use crate::{StoreError, log::signed};

/// One node as it is in force here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRow {
    /// The node.
    pub id: NodeId,
    /// Its MAC addresses.
    pub macs: Vec<MacAddr>,
    /// Home site.
    pub home: Option<SiteId>,
    /// Number of moves.
    pub home_epoch: u64,
    /// Fact; `discovered` while nobody wrote one.
    pub state: NodeState,
    /// What made it so.
    pub cause: String,
    /// Task of the last attempt.
    pub task: Option<TaskId>,
    /// Number of the last attempt.
    pub attempt: Option<u64>,
    /// What went wrong.
    pub error: Option<String>,
    /// Changes with every consumed order.
    pub install_nonce: Option<Nonce>,
    /// Wish.
    pub wanted: Wanted,
    /// Hostname, empty if none.
    pub hostname: String,
    /// Address, empty if none.
    pub address: String,
    /// Notes, empty if none.
    pub notes: String,
    /// Group that it belongs to.
    pub group: Option<GroupId>,
    /// Workflow that it is meant to run.
    pub workflow: Option<WorkflowId>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// What its hardware says of itself.
    pub evidence: BTreeMap<String, String>,
    /// Logical processors.
    pub cpus: Option<u64>,
    /// Main memory.
    pub memory_bytes: Option<u64>,
    /// MAC address by interface name, as the machine reported.
    pub nics: BTreeMap<String, String>,
    /// The machine that this is another interface of.
    pub alias_of: Option<NodeId>,
    /// A person said that it is a machine of its own, whatever it has in common with another.
    pub is_its_own: bool,
    /// Sites that have seen it.
    pub observed_by: Vec<SiteId>,
    /// Contested registers.
    pub contested: Vec<String>,
}

/// Which nodes are wanted.
#[derive(Clone, Debug, Default)]
pub struct NodeFilter {
    /// Only those at home at this site.
    pub home: Option<SiteId>,
    /// Only those after this one, by id.
    pub after: Option<NodeId>,
    /// At most so many; 0: all.
    pub limit: u64,
}

impl View<'_> {
    /// Nodes in the order of their ids.
    pub fn nodes(&self, filter: &NodeFilter) -> Result<Vec<NodeRow>, StoreError> {
        let limit = if filter.limit == 0 { -1 } else { signed(filter.limit) };
        let statement = self.sql.prepare_cached(
            "SELECT body FROM view_nodes WHERE (?1 IS NULL OR home = ?1) AND (?2 IS NULL OR id > ?2)
             ORDER BY id LIMIT ?3",
        )?;
        bodies(statement, params![filter.home.map(|site| site.0), filter.after.map(|node| node.0), limit])
    }

    /// Number of nodes, of all or of one home.
    pub fn count_nodes(&self, home: Option<SiteId>) -> Result<u64, StoreError> {
        let count: i64 = self
            .sql
            .prepare_cached("SELECT count(*) FROM view_nodes WHERE ?1 IS NULL OR home = ?1")?
            .query_row([home.map(|site| site.0)], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// One node.
    pub fn node(&self, node: NodeId) -> Result<Option<NodeRow>, StoreError> {
        let statement = self.sql.prepare_cached("SELECT body FROM view_nodes WHERE id = ?1")?;
        Ok(bodies(statement, [node.as_bytes()])?.pop())
    }

    /// Whether the node is here and has no home.
    pub(crate) fn is_homeless(&self, node: NodeId) -> Result<bool, StoreError> {
        let mut statement =
            self.sql.prepare_cached("SELECT 1 FROM view_nodes WHERE id = ?1 AND home IS NULL")?;
        Ok(statement.exists([node.as_bytes()])?)
    }

    /// The node that has this MAC address; of another interface of a machine, the machine.
    pub fn node_by_mac(&self, mac: MacAddr) -> Result<Option<NodeRow>, StoreError> {
        let found = self.interface_by_mac(mac)?;
        let Some(of) = found.as_ref().and_then(|row| row.alias_of) else { return Ok(found) };
        // Who is not told of the machine knows the interface at least.
        Ok(self.node(of)?.or(found))
    }

    /// Other interfaces of a machine that have documents of their own.
    pub(crate) fn aliases_of(&self, node: NodeId) -> Result<Vec<NodeId>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT id FROM view_nodes WHERE json_extract(body, '$.alias_of') = ?1 ORDER BY id",
        )?;
        let rows = statement.query_map([node.to_string()], |row| Ok(NodeId(row.get(0)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn interface_by_mac(&self, mac: MacAddr) -> Result<Option<NodeRow>, StoreError> {
        let statement = self.sql.prepare_cached(
            "SELECT body FROM view_macs JOIN view_nodes ON view_nodes.doc = view_macs.doc WHERE mac = ?1",
        )?;
        Ok(bodies(statement, [mac.0])?.pop())
    }

    /// Name of the site where the machine is at home by now, if that is another one than `here`.
    pub(crate) fn moved_to(&self, node: &NodeRow, here: SiteId) -> Result<Option<String>, StoreError> {
        let Some(home) = self.elsewhere(node.id, Some(node), here)?.map(|away| away.home) else {
            return Ok(None);
        };
        Ok(Some(self.site(home)?.map_or_else(|| home.to_string(), |row| row.name)))
    }

    /// What people see of the node.
    pub fn phase(&self, node: &NodeRow) -> Result<Phase, StoreError> {
        let task = self.open_task(node.id, None)?.map(|task| task.state);
        Ok(lifecycle::phase(node.state, node.wanted, task, self.fence_closed(node.id)?.is_some()))
    }
}

/// The row of a node.
pub(crate) fn row(document: &Document) -> NodeRow {
    let registers = Registers::of(document);
    let found = node::InForce::among(&registers);
    let state = found.state;
    let mut evidence = BTreeMap::new();
    for name in node::EVIDENCE {
        if let Some(side) = registers.read(&node::evidence(name)).newest() {
            evidence.insert(name.to_string(), side.value.value.clone());
        }
    }
    let hardware = registers.read(&node::hardware());
    let hardware = hardware.newest().map(|side| &side.value);
    let alias = registers.read(&node::alias());
    let alias = alias.newest().map(|side| &side.value);
    NodeRow {
        id: document.id().into(),
        macs: found.macs,
        home: found.home,
        home_epoch: found.home_epoch,
        state: state.as_ref().map_or(NodeState::Discovered, |state| state.state),
        cause: state.as_ref().map(|state| state.cause.clone()).unwrap_or_default(),
        task: state.as_ref().and_then(|state| state.task),
        attempt: state.as_ref().and_then(|state| state.attempt),
        error: state.as_ref().and_then(|state| state.error.clone()),
        install_nonce: state.and_then(|state| state.install_nonce),
        wanted: found.wanted,
        hostname: found.hostname,
        address: found.address,
        notes: found.notes,
        group: found.group,
        workflow: found.workflow,
        tags: found.tags,
        evidence,
        cpus: hardware.and_then(|hardware| hardware.cpus),
        memory_bytes: hardware.and_then(|hardware| hardware.memory_bytes),
        nics: hardware.map(|hardware| hardware.nics.clone()).unwrap_or_default(),
        alias_of: alias.and_then(|alias| alias.node),
        is_its_own: alias.is_some_and(|alias| alias.node.is_none()),
        observed_by: registers.keys("observed").filter_map(|key| key.parse().ok()).collect(),
        contested: found.contested,
    }
}

/// Writes the row of a node.
pub(crate) fn write(sql: &Connection, doc: i64, row: &NodeRow) -> Result<(), StoreError> {
    // A row that is replaced in its place leaves the indexes alone.
    sql.prepare_cached(
        "INSERT INTO view_nodes (doc, id, home, body) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (doc) DO UPDATE SET home = excluded.home, body = excluded.body",
    )?
    .execute(params![
        doc,
        row.id.as_bytes(),
        row.home.map(|site| site.0),
        serde_json::to_string(row)?
    ])?;
    let answers: Vec<[u8; 6]> = {
        let mut statement = sql.prepare_cached("SELECT mac FROM view_macs WHERE doc = ?1 ORDER BY mac")?;
        statement.query_map([doc], |row| row.get(0))?.collect::<Result<_, _>>()?
    };
    twins::write(sql, doc, row)?;
    if row.macs.iter().map(|mac| mac.0).eq(answers) {
        return Ok(());
    }
    sql.prepare_cached("DELETE FROM view_macs WHERE doc = ?1")?.execute([doc])?;
    for mac in &row.macs {
        // Two documents that claim one address are told apart by people; the one that was made first
        // answers until then.
        sql.prepare_cached("INSERT OR IGNORE INTO view_macs (mac, doc) VALUES (?1, ?2)")?
            .execute(params![mac.0, doc])?;
    }
    Ok(())
}
