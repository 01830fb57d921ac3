//! Tasks, found by id, node, site and state.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use sync::{
    document::{Document, contested, task},
    id::{NodeId, Nonce, ReportId, SiteId, TaskId, WorkflowId},
    policy::{
        TaskState,
        order::{Circumstances, Order},
    },
    time::Timestamp,
};

use super::{NodeRow, View, bodies};
use crate::{StoreError, log::signed};

/// One task as it is in force here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRow {
    /// The task.
    pub id: TaskId,
    /// The machine.
    pub node: NodeId,
    /// The site that does it.
    pub site: SiteId,
    /// What is installed.
    pub workflow: WorkflowId,
    /// Which version of it.
    pub version: u64,
    /// Values for templates.
    pub parameters: BTreeMap<String, String>,
    /// Free marks.
    pub tags: BTreeMap<String, String>,
    /// Who asked for it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Where it stands.
    pub state: TaskState,
    /// What made it so.
    pub cause: String,
    /// Attempt that the state speaks of.
    pub attempt: u64,
    /// The order, if issued.
    pub order: Option<OrderRow>,
    /// Whether a person approved, if asked.
    pub approved: Option<bool>,
    /// Whether withdrawn.
    pub cancelled: bool,
    /// The report that consumed the order of the current attempt.
    pub consumed_by: Option<ReportId>,
    /// How it ended.
    pub result: Option<String>,
    /// Whether the current attempt was given up by a person after its first write.
    #[serde(default)]
    pub aborted: bool,
    /// Contested registers.
    pub contested: Vec<String>,
}

/// The order of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderRow {
    /// Who gave it.
    pub issued_by: String,
    /// The attempt that it is for.
    pub attempt: u64,
    /// End of its life.
    pub not_after: Timestamp,
    /// The node's install nonce that the giver saw.
    pub based_on: Option<Nonce>,
}

/// Which tasks are wanted.
#[derive(Clone, Debug, Default)]
pub struct TaskFilter {
    /// Only those of this site.
    pub site: Option<SiteId>,
    /// Only those of this node.
    pub node: Option<NodeId>,
    /// Only those in this state.
    pub state: Option<TaskState>,
    /// Only those after this one, by id.
    pub after: Option<TaskId>,
    /// At most so many; 0: all.
    pub limit: u64,
}

impl View<'_> {
    /// Tasks in the order of their ids.
    pub fn tasks(&self, filter: &TaskFilter) -> Result<Vec<TaskRow>, StoreError> {
        let limit = if filter.limit == 0 { -1 } else { signed(filter.limit) };
        let statement = self.sql.prepare_cached(
            "SELECT body FROM view_tasks WHERE (?1 IS NULL OR site = ?1) AND (?2 IS NULL OR node = ?2)
             AND (?3 IS NULL OR state = ?3) AND (?4 IS NULL OR id > ?4) ORDER BY id LIMIT ?5",
        )?;
        bodies(
            statement,
            params![
                filter.site.map(|site| site.0),
                filter.node.map(|node| node.0),
                filter.state.map(TaskState::as_str),
                filter.after.map(|task| task.0),
                limit
            ],
        )
    }

    /// Number of tasks.
    pub fn count_tasks(&self) -> Result<u64, StoreError> {
        let count: i64 =
            self.sql.prepare_cached("SELECT count(*) FROM view_tasks")?.query_row([], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    /// One task.
    pub fn task(&self, task: TaskId) -> Result<Option<TaskRow>, StoreError> {
        let statement = self.sql.prepare_cached("SELECT body FROM view_tasks WHERE id = ?1")?;
        Ok(bodies(statement, [task.as_bytes()])?.pop())
    }

    /// The task of a node that has not ended, at one site or anywhere; the first by id if there are more.
    pub fn open_task(&self, node: NodeId, site: Option<SiteId>) -> Result<Option<TaskRow>, StoreError> {
        let filter = TaskFilter { node: Some(node), site, ..TaskFilter::default() };
        Ok(self.tasks(&filter)?.into_iter().find(|task| !task.state.is_final() && !task.cancelled))
    }

    /// Everything that decides whether the order of `task` is live at `here`.
    pub fn circumstances(
        &self,
        task: &TaskRow,
        node: &NodeRow,
        here: SiteId,
        asking: Option<ReportId>,
        now: Timestamp,
    ) -> Result<Circumstances, StoreError> {
        let filter = TaskFilter { node: Some(node.id), site: Some(here), ..TaskFilter::default() };
        let other_task = self
            .tasks(&filter)?
            .into_iter()
            .find(|other| other.id != task.id && !other.state.is_final() && !other.cancelled)
            .map(|other| other.id.to_string());
        let needs_approval = self
            .workflow(task.workflow)?
            .and_then(|workflow| workflow.versions.get(&task.version).map(|version| version.needs_approval))
            .unwrap_or(false);
        let mut disputed = Vec::new();
        for name in ["wanted", "workflow"] {
            if node.contested.iter().any(|path| path == name) {
                disputed.push(name);
            }
        }
        for name in ["cancel", "approval"] {
            if task.contested.iter().any(|path| path == name) {
                disputed.push(name);
            }
        }
        Ok(Circumstances {
            here,
            task_site: task.site,
            task_state: task.state,
            order: task
                .order
                .as_ref()
                .map(|order| Order { not_after: order.not_after, based_on: order.based_on }),
            consumed_by: task.consumed_by,
            asking,
            cancelled: task.cancelled,
            approved: task.approved.unwrap_or(!needs_approval),
            wanted: node.wanted,
            node_state: node.state,
            install_nonce: node.install_nonce,
            other_task,
            contested: disputed,
            fence_closed: self.fence_closed(node.id)?,
            moved_to: self.moved_to(node, here)?,
            suspended: self
                .suspended()?
                .map_or_else(|| self.awaits_recovery(task.id), |why| Ok(Some(why)))?,
            now,
            known_time: self.known_time(now)?,
        })
    }
}

pub(super) fn refresh(sql: &Connection, doc: i64, document: &Document) -> Result<(), StoreError> {
    let found = task::InForce::of(document);
    // Without its specification a task is nothing that anybody could do.
    let Some(spec) = found.spec else { return Ok(()) };
    let state = contested::read(document, &task::state());
    let cause = state.of_home(Some(spec.for_site)).map(|side| side.value.cause.clone()).unwrap_or_default();
    let order = found.order.map(|order| OrderRow {
        issued_by: order.issued_by,
        attempt: order.attempt,
        not_after: order.not_after,
        based_on: order.based_on,
    });
    let current = order.as_ref().map_or(1, |order| order.attempt);
    let row = TaskRow {
        id: document.id().into(),
        node: spec.node,
        site: spec.for_site,
        workflow: spec.workflow,
        version: spec.version,
        parameters: spec.parameters,
        tags: spec.tags,
        created_by: spec.created_by,
        created_at: spec.created_at,
        state: found.state,
        cause,
        attempt: found.attempt,
        order,
        approved: found.approved,
        cancelled: found.cancelled,
        consumed_by: found.consumed.filter(|used| used.attempt == current).map(|used| used.report),
        result: found.outcome.map(|outcome| outcome.detail),
        aborted: found.aborted,
        contested: found.contested,
    };
    sql.prepare_cached(
        "INSERT OR REPLACE INTO view_tasks (doc, id, node, site, state, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        doc,
        row.id.as_bytes(),
        row.node.as_bytes(),
        row.site.as_bytes(),
        row.state.as_str(),
        serde_json::to_string(&row)?
    ])?;
    Ok(())
}
