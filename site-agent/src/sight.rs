//! What the replica knows of a machine, made into the plain values that a boot decision takes.

use store::{
    StoreError,
    blobs::Blobs,
    view::{NodeRow, TaskFilter, TaskRow},
};
use sync::{
    document::site::Effective,
    id::{MacAddr, NodeId, Origin, SiteId},
    policy::{LinkState, NodeState, Wanted, order},
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
        None => stranger(view, here, mac)?,
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

/// A machine that this site does not hold, as far as the directory knows it. Whatever is said of it says
/// how old that is.
fn stranger(view: &store::View<'_>, here: SiteId, mac: MacAddr) -> Result<Option<Machine>, StoreError> {
    let node = NodeId::of(mac);
    let Some(row) = view.directory(node)? else { return Ok(None) };
    let home = match row.stub.home {
        Some(home) if home == here => Home::Here,
        Some(home) => Home::Elsewhere(format!("{home} (directory as of {})", row.at)),
        None => Home::Nowhere,
    };
    let wanted = if row.stub.retired { Wanted::Retired } else { Wanted::Keep };
    if (&home, wanted) == (&Home::Nowhere, Wanted::Keep) {
        // Nobody's machine is unknown here all the same.
        return Ok(None);
    }
    Ok(Some(Machine { node, home, state: NodeState::Discovered, wanted, error: None, task: None }))
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
    let circumstances = view.circumstances(row, node, here, None, now)?;
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

#[cfg(test)]
mod tests {
    use store::{
        Opening, Store,
        command::{node, site},
    };
    use sync::engine::Output;

    use super::*;
    use crate::{event_loop::Edge, testing};

    #[test]
    fn p9_a_machine_of_another_site_is_known_by_the_directory_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let edge = Edge::start();
        let open = |name: &str, origin| {
            let given = edge.given("test");
            Store::open(&Opening { folder: folder.path().join(name), origin, given }).unwrap()
        };
        let central = open("central", Origin::Central);
        let create = |name: &'static str| {
            central.run(edge.given("test"), move |tx| site::create(tx, name, "", "")).unwrap()
        };
        let (lyon, bern) = (create("lyon"), create("bern"));
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        central.run(edge.given("test"), move |tx| node::create(tx, mac, bern, "pos-1")).unwrap();
        let here = open("lyon", Origin::Site(lyon));
        testing::replicate(&central, &here, edge);
        let seen = |store: &Store| {
            let now = Timestamp(1_795_000_000_000);
            let view =
                store.read(|view| of(view, store.blobs(), lyon, mac, LinkState::Offline, now)).unwrap();
            let decision = crate::boot::decide::decide(&view);
            let reason = decision.reason.to_string();
            reason.split(" (directory as of").next().unwrap().replace(&bern.to_string(), "BERN")
        };
        let heard = Output::Heard { peer: Origin::Site(lyon), clock: Timestamp(0), telemetry: None };
        let before = seen(&here);
        central.answer_now(heard, edge.given("test")).unwrap();
        testing::replicate(&central, &here, edge);
        expect_test::expect![[r#"
            the machine is unknown here; register it at central or let this site adopt
            this machine belongs to site BERN"#]]
        .assert_eq(&format!("{before}\n{}", seen(&here)));
    }
}
