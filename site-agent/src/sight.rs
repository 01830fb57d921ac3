//! What the replica knows of a machine, made into the plain values that a boot decision takes.

use store::{
    StoreError,
    blobs::Blobs,
    view::{NodeRow, TaskFilter, TaskRow},
};
use sync::{
    document::site::Effective,
    id::{MacAddr, Origin, SiteId},
    policy::{LinkState, TaskState, order},
    time::Timestamp,
};

use crate::boot::view::{Before, BootFiles, Files, Home, Machine, Site, Task, View};

/// Reads everything that decides what the machine with this address is told.
///
/// # Errors
/// When the replica or the content store cannot be read.
pub fn of(
    view: &store::View<'_>,
    blobs: &Blobs,
    here: SiteId,
    mac: MacAddr,
    link: LinkState,
    now: Timestamp,
) -> Result<View, StoreError> {
    let machine = match view.node_by_mac(mac)? {
        Some(node) => Some(machine(view, blobs, here, &node, now)?),
        None => None,
    };
    let before =
        view.boot(mac)?.map(|boot| Before { answer: boot.answer, reason: boot.reason, count: boot.count });
    Ok(View { mac, site: site(view, here, link)?, machine, before })
}

fn site(view: &store::View<'_>, here: SiteId, link: LinkState) -> Result<Site, StoreError> {
    let row = view.site(here)?;
    let data_as_of = view.peer(Origin::Central)?.clock;
    let name = row.as_ref().map(|row| row.name.clone()).unwrap_or_default();
    let (autonomy, unknown_machines, pxe_enabled) = match row {
        Some(row) => (row.effective.autonomy, row.effective.unknown_machines, row.effective.pxe_enabled),
        None => {
            let default = Effective::default();
            (default.autonomy, default.unknown_machines, default.pxe_enabled)
        }
    };
    Ok(Site { id: here, name, autonomy, unknown_machines, pxe_enabled, link, data_as_of })
}

fn machine(
    view: &store::View<'_>,
    blobs: &Blobs,
    here: SiteId,
    node: &NodeRow,
    now: Timestamp,
) -> Result<Machine, StoreError> {
    let home = match node.home {
        None => Home::Nowhere,
        Some(home) if home == here => Home::Here,
        Some(home) => Home::Elsewhere(view.site(home)?.map_or_else(|| home.to_string(), |row| row.name)),
    };
    let task = match open_task(view, here, node)? {
        Some(row) => Some(task(view, blobs, here, node, &row, now)?),
        None => None,
    };
    Ok(Machine {
        node: node.id,
        home,
        state: node.state,
        wanted: node.wanted,
        error: node.error.clone(),
        task,
    })
}

/// The task that matters: one whose order was consumed before any other, because its disk is half written,
/// also when somebody who had not seen that cancelled it.
fn open_task(view: &store::View<'_>, here: SiteId, node: &NodeRow) -> Result<Option<TaskRow>, StoreError> {
    let filter = TaskFilter { node: Some(node.id), site: Some(here), ..TaskFilter::default() };
    let mut open = view.tasks(&filter)?;
    open.retain(|task| !task.state.is_final() && (!task.cancelled || task.consumed_by.is_some()));
    open.sort_by_key(|task| (task.consumed_by.is_none(), task.id));
    Ok(open.into_iter().next())
}

fn task(
    view: &store::View<'_>,
    blobs: &Blobs,
    here: SiteId,
    node: &NodeRow,
    row: &TaskRow,
    now: Timestamp,
) -> Result<Task, StoreError> {
    let mut circumstances = view.circumstances(row, node, here, None, now)?;
    // A person approves the hardware, which the machine can report only once it has booted. The go-ahead
    // to write asks again, without this exception.
    circumstances.approved |= row.approved.is_none()
        && matches!(row.state, TaskState::Pending | TaskState::Ready | TaskState::Booting);
    Ok(Task {
        id: row.id,
        attempt: row.order.as_ref().map_or(1, |order| order.attempt),
        state: row.state,
        order: order::liveness(&circumstances),
        boots: view.progress(row.id)?.map_or(0, |progress| progress.boots),
        files: files(view, blobs, row)?,
    })
}

fn files(view: &store::View<'_>, blobs: &Blobs, row: &TaskRow) -> Result<Files, StoreError> {
    let Some(workflow) = view.workflow(row.workflow)? else { return Ok(Files::Unknown) };
    let Some(version) = workflow.versions.get(&row.version) else { return Ok(Files::Unknown) };
    let (Some(kernel), Some(initrd)) = (version.files.get("kernel"), version.files.get("initrd")) else {
        return Ok(Files::Unknown);
    };
    let mut missing = false;
    let (mut have, mut of) = (0_u64, 0_u64);
    let mut partial = None;
    let mut seen = Vec::new();
    for (role, digest) in &version.files {
        // One blob may have two roles; it comes once.
        if seen.contains(digest) {
            continue;
        }
        seen.push(*digest);
        let announced = version.sizes.get(role).copied().unwrap_or(0);
        match blobs.size(*digest)? {
            Some(size) => {
                have = have.saturating_add(size);
                of = of.saturating_add(size);
            }
            None => {
                missing = true;
                if partial.is_none() {
                    partial = Some(blobs.unfinished()?);
                }
                let found = partial.iter().flatten().find(|(name, _)| name == digest);
                have = have.saturating_add(found.map_or(0, |(_, size)| *size));
                of = of.saturating_add(announced);
            }
        }
    }
    Ok(match missing {
        true => Files::Missing { have, of: of.max(have) },
        false => Files::Here(BootFiles {
            kernel: *kernel,
            initrd: *initrd,
            image: version.files.get("image").copied(),
            kernel_args: version.kernel_args.clone(),
        }),
    })
}
