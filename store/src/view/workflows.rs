//! Workflows and their versions.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use sync::{
    blob::Digest,
    document::{Document, contested, workflow},
    id::WorkflowId,
};

use super::{TaskFilter, View, bodies};
use crate::StoreError;

/// One workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowRow {
    /// The workflow.
    pub id: WorkflowId,
    /// Its name.
    pub name: String,
    /// Family of the operating system.
    pub os_family: String,
    /// Processor architecture.
    pub arch: String,
    /// How it boots.
    pub boot_method: String,
    /// Versions by number.
    pub versions: BTreeMap<u64, VersionRow>,
}

/// One version of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRow {
    /// Digest by role.
    pub files: BTreeMap<String, Digest>,
    /// Size in bytes by role.
    pub sizes: BTreeMap<String, u64>,
    /// Added to the kernel command line.
    pub kernel_args: String,
    /// Whether a person approves the hardware before the first write.
    pub needs_approval: bool,
}

impl View<'_> {
    /// All workflows by name.
    pub fn workflows(&self) -> Result<Vec<WorkflowRow>, StoreError> {
        bodies(self.sql.prepare_cached("SELECT body FROM view_workflows ORDER BY name, id")?, [])
    }

    /// One workflow.
    pub fn workflow(&self, workflow: WorkflowId) -> Result<Option<WorkflowRow>, StoreError> {
        let statement = self.sql.prepare_cached("SELECT body FROM view_workflows WHERE id = ?1")?;
        Ok(bodies(statement, [workflow.as_bytes()])?.pop())
    }

    /// Content that the tasks of this replica need, each with its size, without what is here already
    /// according to `is_here`. Tasks in the order of their creation, so that what was ordered first can
    /// boot first.
    pub fn wanted_blobs(
        &self,
        is_here: impl Fn(Digest) -> bool,
    ) -> Result<Vec<(Digest, Option<u64>)>, StoreError> {
        let mut tasks = self.tasks(&TaskFilter::default())?;
        tasks.retain(|task| !task.state.is_final() && !task.cancelled);
        tasks.sort_by_key(|task| (task.created_at, task.id));
        let mut wanted = Vec::new();
        for task in tasks {
            let Some(workflow) = self.workflow(task.workflow)? else { continue };
            let Some(version) = workflow.versions.get(&task.version) else { continue };
            for (role, digest) in &version.files {
                let known = wanted.iter().any(|(wanted, _)| wanted == digest);
                if !known && !is_here(*digest) {
                    wanted.push((*digest, version.sizes.get(role).copied()));
                }
            }
        }
        Ok(wanted)
    }
}

pub(super) fn refresh(sql: &Connection, doc: i64, document: &Document) -> Result<(), StoreError> {
    let identity = contested::read(document, &workflow::identity());
    let Some(identity) = identity.newest().map(|side| side.value.clone()) else { return Ok(()) };
    let row = WorkflowRow {
        id: document.id().into(),
        name: identity.name,
        os_family: identity.os_family,
        arch: identity.arch,
        boot_method: identity.boot_method,
        versions: workflow::versions(document)
            .into_iter()
            .map(|(number, version)| {
                let workflow::Version { files, sizes, kernel_args, needs_approval } = version;
                (number, VersionRow { files, sizes, kernel_args, needs_approval })
            })
            .collect(),
    };
    sql.prepare_cached(
        "INSERT OR REPLACE INTO view_workflows (doc, id, name, body) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![doc, row.id.as_bytes(), row.name, serde_json::to_string(&row)?])?;
    Ok(())
}
