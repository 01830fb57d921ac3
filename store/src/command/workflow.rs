//! Workflows: publishing a version.

use std::collections::BTreeMap;

use sync::{
    blob::Digest,
    document::workflow::{self, Identity, Version},
    id::WorkflowId,
    journal::Event,
};

use super::{check_text, refused, unknown};
use crate::{StoreError, Tx, view::WorkflowRow};

/// A version to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVersion {
    /// Digest and size by role; `kernel` and `initrd` must be there.
    pub files: BTreeMap<String, (Digest, u64)>,
    /// Added to the kernel command line.
    pub kernel_args: String,
    /// Whether a person approves the hardware before the first write.
    pub needs_approval: bool,
}

/// Roles that a file of a workflow can have.
pub const ROLES: [&str; 3] = ["kernel", "initrd", "image"];

/// Creates a workflow with its first version.
///
/// # Errors
/// `Refused` when the name is taken or the version is incomplete.
pub fn create(tx: &mut Tx<'_>, identity: &Identity, version: &NewVersion) -> Result<WorkflowRow, StoreError> {
    if identity.name.trim().is_empty() {
        return refused("a workflow needs a name");
    }
    let Identity { name, os_family, arch, boot_method } = identity;
    for (what, text) in
        [("name", name), ("os_family", os_family), ("arch", arch), ("boot_method", boot_method)]
    {
        check_text(what, text)?;
    }
    if let Some(other) = tx.view().workflows()?.into_iter().find(|other| other.name == identity.name) {
        return refused(format!("workflow {} is called `{}` already", other.id, identity.name));
    }
    let id: WorkflowId = tx.new_id()?.into();
    publish_version(tx, id, identity, Some(identity), 1, version)
}

/// Adds a version to a workflow.
///
/// # Errors
/// `Unknown` workflow; `Refused` when the version is incomplete.
pub fn publish(tx: &mut Tx<'_>, id: WorkflowId, version: &NewVersion) -> Result<WorkflowRow, StoreError> {
    let row = tx.view().workflow(id)?.ok_or_else(|| unknown("workflow", id))?;
    let number = row.versions.keys().next_back().map_or(1, |last| last + 1);
    let identity =
        Identity { name: row.name, os_family: row.os_family, arch: row.arch, boot_method: row.boot_method };
    publish_version(tx, id, &identity, None, number, version)
}

fn publish_version(
    tx: &mut Tx<'_>,
    id: WorkflowId,
    identity: &Identity,
    created: Option<&Identity>,
    number: u64,
    new: &NewVersion,
) -> Result<WorkflowRow, StoreError> {
    for role in ["kernel", "initrd"] {
        if !new.files.contains_key(role) {
            return refused(format!("a workflow that boots a kernel needs a file with the role `{role}`"));
        }
    }
    if let Some(role) = new.files.keys().find(|role| !ROLES.contains(&role.as_str())) {
        return refused(format!("`{role}` is no role of a file: use {}", ROLES.join(", ")));
    }
    if new.kernel_args.contains(['\n', '\r']) {
        return refused("kernel arguments stand on one line");
    }
    check_text("kernel_args", &new.kernel_args)?;
    let version = Version {
        files: new.files.iter().map(|(role, (digest, _))| (role.clone(), *digest)).collect(),
        sizes: new.files.iter().map(|(role, (_, size))| (role.clone(), *size)).collect(),
        kernel_args: new.kernel_args.clone(),
        needs_approval: new.needs_approval,
    };
    tx.write(workflow::KIND, id.into(), |edit| {
        if let Some(identity) = created {
            edit.set(&workflow::identity(), identity, "created");
        }
        edit.set(&workflow::version(number), &version, "published");
    })?;
    tx.journal(Event::WorkflowPublished { workflow: id, name: identity.name.clone(), version: number })?;
    tx.view().workflow(id)?.ok_or_else(|| unknown("workflow", id))
}
