//! What the replica knows of a machine, made into the plain values that a boot decision takes.

use store::{
    StoreError,
    blobs::Blobs,
    command::boot::Answered,
    view::{ClaimFilter, NodeRow, ProposalState, TaskFilter, TaskRow},
};
use sync::{
    document::site::Effective,
    id::{ClaimId, MacAddr, NodeId, Origin, SiteId},
    policy::{ClaimState, LinkState, NodeState, Wanted, order},
    time::Timestamp,
};

use crate::boot::decide::Decision;
use crate::boot::view::{Adoption, Before, BootFiles, Claim, Files, Home, Machine, Site, Task, View};

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
        Some(node) => Some(machine(view, blobs, here, (mac, &node), now)?),
        None => stranger(view, here, mac)?,
    };
    let before =
        view.boot(mac)?.map(|boot| Before { answer: boot.answer, reason: boot.reason, count: boot.count });
    let adoption = match &machine {
        Some(_) => None,
        None => view.adoption(NodeId::of(mac))?.and_then(|row| match (row.state, row.outcome) {
            (ProposalState::Open, _) => Some(Adoption::Asked),
            (ProposalState::Refused, Some(end)) => Some(Adoption::Refused(end.reason)),
            // The machine is on its way here.
            (ProposalState::Applied | ProposalState::Refused, _) => None,
        }),
    };
    Ok(View { mac, site: site(view, here, link)?, machine, adoption, before })
}

fn site(view: &store::View<'_>, here: SiteId, link: LinkState) -> Result<Site, StoreError> {
    let row = view.site(here)?;
    let data_as_of = view.peer(Origin::Central)?.clock;
    let name = row.as_ref().map(|row| row.name.clone()).unwrap_or_default();
    let answers_boots = row.as_ref().map_or(Effective::default().pxe_enabled, |row| row.answers_boots());
    let settings = row.map_or_else(|| Effective::default().into(), |row| row.effective);
    Ok(Site {
        id: here,
        name,
        autonomy: settings.autonomy,
        unknown_machines: settings.unknown_machines,
        pxe_enabled: answers_boots,
        pending_boot: settings.pending_boot,
        link,
        data_as_of,
    })
}

fn machine(
    view: &store::View<'_>,
    blobs: &Blobs,
    here: SiteId,
    (mac, node): (MacAddr, &NodeRow),
    now: Timestamp,
) -> Result<Machine, StoreError> {
    let home = match (elsewhere(view, here, mac)?, node.home) {
        (Some(elsewhere), _) => elsewhere,
        (None, None) => Home::Nowhere,
        (None, Some(_)) => Home::Here,
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

/// What is noted of an answer.
pub fn noted(mac: MacAddr, decision: &Decision) -> Answered {
    let record = &decision.record;
    Answered {
        mac,
        answer: decision.answer.to_string(),
        reason: decision.reason.to_string(),
        adopt: record.adopt,
        booting: record.booting,
        local_disk: record.local_disk,
        claims: record.claims,
    }
}

/// A machine that this site does not hold, as far as the directory knows it. Whatever is said of it says
/// how old that is.
fn stranger(view: &store::View<'_>, here: SiteId, mac: MacAddr) -> Result<Option<Machine>, StoreError> {
    let node = NodeId::of(mac);
    let Some(row) = view.directory(node)? else { return Ok(None) };
    let home = match (elsewhere(view, here, mac)?, row.stub.home) {
        (Some(elsewhere), _) => elsewhere,
        (None, Some(_)) => Home::Here,
        (None, None) => Home::Nowhere,
    };
    let wanted = if row.stub.retired { Wanted::Retired } else { Wanted::Keep };
    if (&home, wanted) == (&Home::Nowhere, Wanted::Keep) {
        // Nobody's machine is unknown here all the same.
        return Ok(None);
    }
    Ok(Some(Machine { node, home, state: NodeState::Discovered, wanted, error: None, task: None }))
}

/// Where a machine is at home that is not at home here, and what became of this site's claim on it. Whatever rests on the
/// directory says how old that is.
fn elsewhere(view: &store::View<'_>, here: SiteId, mac: MacAddr) -> Result<Option<Home>, StoreError> {
    let Some(away) = view.away(mac, here)? else { return Ok(None) };
    let id = ClaimId::of(away.node, here, away.home_epoch);
    let row = view.claim(id)?;
    // A site does not hold what other sites are called, but central says so in each claim that it has heard of.
    let claims = view.claims(&ClaimFilter { node: Some(away.node), ..ClaimFilter::default() })?;
    let sides = claims.iter().flat_map(|row| [(row.to, &row.to_name), (row.from, &row.from_name)]);
    let mut said = sides.filter(|(site, name)| *site == away.home && !name.is_empty()).map(|(_, name)| name);
    let name = match (view.site(away.home)?, said.next_back()) {
        (Some(row), _) => row.name,
        (None, Some(name)) => name.clone(),
        (None, None) => away.home.to_string(),
    };
    let age = away.told_at.map(|at| format!(" (directory as of {at})")).unwrap_or_default();
    let state = row.map_or(ClaimState::Open, |row| row.state);
    Ok(Some(Home::Elsewhere(format!("{name}{age}"), Claim { id, state })))
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
        boots: view
            .progress(row.id)?
            .filter(|it| it.attempt == row.attempt)
            .map_or(0, |progress| progress.boots),
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
        command::{
            boot::{self, Answered},
            claim, node, site,
        },
    };
    use sync::engine::Output;

    use super::*;
    use crate::{event_loop::Edge, testing};

    fn open(folder: &tempfile::TempDir, edge: Edge, name: &str, origin: Origin) -> Store {
        let folder = folder.path().join(name);
        Store::open(&Opening { folder, origin, given: edge.given("test") }).unwrap()
    }

    /// Why a machine is given what it is given at a site.
    fn seen(store: &Store, here: SiteId, mac: MacAddr) -> String {
        let now = Timestamp(1_795_000_000_000);
        let view = store.read(|view| of(view, store.blobs(), here, mac, LinkState::Offline, now)).unwrap();
        let reason = crate::boot::decide::decide(&view).reason.to_string();
        reason.split(" (directory as of").next().unwrap().to_string()
    }

    #[test]
    fn p8_a_machine_that_moved_away_and_boots_here_again_reads_the_name_of_its_home() {
        let folder = tempfile::tempdir().unwrap();
        let edge = Edge::start();
        let central = open(&folder, edge, "central", Origin::Central);
        let create = |name: &'static str| {
            central.run(edge.given("test"), move |tx| site::create(tx, name, "", "")).unwrap()
        };
        let (lyon, bern) = (create("lyon"), create("bern"));
        let stores = [("lyon", lyon), ("bern", bern)]
            .map(|(name, site)| open(&folder, edge, name, Origin::Site(site)));
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let node = central.run(edge.given("test"), move |tx| node::create(tx, mac, lyon, "pos-1")).unwrap();
        let told = || {
            for store in &stores {
                let heard = Output::Heard { peer: store.origin(), clock: Timestamp(0), telemetry: None };
                central.answer_now(heard, edge.given("test")).unwrap();
                testing::replicate(&central, store, edge);
            }
        };
        told();
        let boots = Answered {
            mac,
            answer: "hold page".into(),
            reason: "it is at home elsewhere".into(),
            adopt: false,
            booting: None,
            local_disk: false,
            claims: true,
        };
        let [at_home, there] = &stores;
        there.run(edge.given("boot"), move |tx| boot::answered(tx, &boots)).unwrap();
        told();
        let id = ClaimId::of(node, bern, 1);
        central.run(edge.given("ann"), move |tx| claim::approve(tx, id, "it stands there")).unwrap();
        told();
        let said = seen(at_home, lyon, mac);
        assert!(said.starts_with("this machine is at home at site bern;"), "{said}");
    }

    #[test]
    fn p9_a_machine_of_another_site_is_known_by_the_directory_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let edge = Edge::start();
        let central = open(&folder, edge, "central", Origin::Central);
        let create = |name: &'static str| {
            central.run(edge.given("test"), move |tx| site::create(tx, name, "", "")).unwrap()
        };
        let (lyon, bern) = (create("lyon"), create("bern"));
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        central.run(edge.given("test"), move |tx| node::create(tx, mac, bern, "pos-1")).unwrap();
        let here = open(&folder, edge, "lyon", Origin::Site(lyon));
        testing::replicate(&central, &here, edge);
        let seen = |store: &Store| seen(store, lyon, mac).replace(&bern.to_string(), "BERN");
        let heard = Output::Heard { peer: Origin::Site(lyon), clock: Timestamp(0), telemetry: None };
        let before = seen(&here);
        central.answer_now(heard, edge.given("test")).unwrap();
        testing::replicate(&central, &here, edge);
        expect_test::expect![[r#"
            the machine is unknown here; register it at central or let this site adopt
            this machine is at home at site BERN"#]]
        .assert_eq(&format!("{before}\n{}", seen(&here)));
    }
}
