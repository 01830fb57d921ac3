//! Groups and the domain of the directory, over links that are cut and databases that go back in time.

use std::{collections::BTreeMap, time::Duration};

use harness::world::{HEARTBEAT, World};
use store::{
    StoreError, Tx,
    command::{
        boot::{self, Answered},
        group, node,
        task::{self, NewTask},
        workflow::{self, NewVersion},
    },
};
use sync::{
    blob::Digest,
    document::workflow::Identity,
    id::{GroupId, MacAddr, NodeId, Origin, SiteId},
    wire::{self, Message},
};

use crate::{
    anew::alarms,
    restore::{Back, keep, restore},
};

const MINUTE: Duration = Duration::from_secs(60);

/// A sign of life, and what follows it.
const SOON: Duration = Duration::from_secs(2 * HEARTBEAT.as_secs() + 60);

fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 4, last])
}

fn central<T: Send + 'static>(
    world: &mut World,
    command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
) -> T {
    world.run(Origin::Central, "ann", command).expect("central does it")
}

fn make_group(world: &mut World, name: &'static str) -> GroupId {
    central(world, move |tx| group::create(tx, name, "", None)).id
}

fn adopt(world: &mut World, site: SiteId, last: u8) -> NodeId {
    let answered = Answered {
        mac: mac(last),
        answer: "local disk".into(),
        reason: "nothing is ordered for this machine".into(),
        adopt: true,
        booting: None,
        local_disk: true,
        claims: false,
    };
    let adopted = world.run(Origin::Site(site), "boot", move |tx| boot::answered(tx, &answered));
    adopted.expect("the boot is noted").expect("it is a node here")
}

fn knows(world: &World, site: SiteId, node: NodeId) -> bool {
    let row = world.store(Origin::Site(site)).read(|view| view.directory(node));
    row.expect("the store reads").is_some()
}

/// Names of the groups, and number of the documents of another kind, that a site holds.
fn holds(world: &World, site: SiteId, kind: &str) -> (Vec<String>, u64) {
    let read = world.store(Origin::Site(site)).read(|view| {
        let names = view.groups()?.into_iter().map(|row| row.name).collect();
        Ok((names, view.documents()?.get(kind).copied().unwrap_or(0)))
    });
    read.expect("the store reads")
}

#[test]
fn h5_p6_a_restored_site_forgets_groups_and_machines_that_are_not_its_own_to_know_any_more() {
    let mut world = World::new(31);
    let (bern, lyon) = (world.add_site("bern"), world.add_site("lyon"));
    let (alps, coast) = (make_group(&mut world, "alps"), make_group(&mut world, "coast"));
    central(&mut world, move |tx| group::place(tx, bern, Some(alps), ""));
    central(&mut world, move |tx| group::place(tx, lyon, Some(coast), ""));
    let far = central(&mut world, move |tx| node::create(tx, mac(1), lyon, ""));
    world.until("bern knows lyon's machine", SOON, |world| knows(world, bern, far));
    world.until("bern holds its group", SOON, |world| holds(world, bern, "group").0 == ["alps"]);
    keep(&mut world, Origin::Site(bern));

    // While bern is cut off it is told to mind its own business, under another name.
    let west = make_group(&mut world, "west");
    central(&mut world, move |tx| group::place(tx, bern, Some(west), ""));
    central(&mut world, move |tx| group::set_domain(tx, bern, Some(west), ""));
    world.until("bern forgets", SOON, |world| {
        !knows(world, bern, far) && holds(world, bern, "group") == (vec!["west".into()], 1)
    });
    world.set_link(bern, false);
    restore(&mut world, Origin::Site(bern), Back::Database);
    assert!(knows(&world, bern, far), "the old database knows it");
    assert_eq!(holds(&world, bern, "group").0, ["alps"]);
    world.set_link(bern, true);
    world.until("it is as before", SOON, |world| {
        !knows(world, bern, far)
            && holds(world, bern, "group") == (vec!["west".into()], 1)
            && world.in_agreement(bern)
    });
}

#[test]
fn p15_p6_what_a_recovering_central_has_forgotten_a_site_knows_until_the_recovery_is_over() {
    let mut world = World::new(32);
    let (bern, lyon) = (world.add_site("bern"), world.add_site("lyon"));
    world.until("they agree", SOON, |world| world.in_agreement(bern) && world.in_agreement(lyon));
    keep(&mut world, Origin::Central);
    let node = adopt(&mut world, bern, 1);
    world.until("lyon knows where it belongs", SOON, |world| knows(world, lyon, node));

    world.set_link(bern, false);
    restore(&mut world, Origin::Central, Back::Database);
    world.until("lyon has joined", SOON, |world| world.in_agreement(lyon));
    world.pass(2 * SOON);
    assert!(knows(&world, lyon, node), "central has lost it, and bern has it");
    central(&mut world, |tx| tx.end_recovery("bern burned down", true));
    world.until("it is unknown", SOON, |world| !knows(world, lyon, node));
    world.set_link(bern, true);
    world.until("bern is back with it", 2 * SOON, |world| knows(world, lyon, node));
    world.until("all agree", SOON, |world| world.in_agreement(bern) && world.in_agreement(lyon));
}

#[test]
fn h5_p6_a_machine_that_was_about_to_leave_stays_where_a_restored_central_has_forgotten_why() {
    let mut world = World::new(34);
    let (bern, lyon) = (world.add_site("bern"), world.add_site("lyon"));
    world.until("they agree", SOON, |world| world.in_agreement(bern) && world.in_agreement(lyon));
    keep(&mut world, Origin::Central);
    world.until("they agree", SOON, |world| world.in_agreement(bern) && world.in_agreement(lyon));
    world.set_link(lyon, false);
    adopt(&mut world, bern, 1);
    world.until("it is bern's", SOON, |world| world.in_agreement(bern));

    // Lyon adopts it too, is told that it is bern's, and never hears that central has its own work.
    let node = adopt(&mut world, lyon, 1);
    let sees = move |world: &World| {
        let row = world.store(Origin::Site(lyon)).read(|view| view.node(node));
        row.expect("the store reads").is_some()
    };
    world.meddle = Some(Box::new(|_, from, bytes| match wire::decode(&bytes) {
        Ok(Message::Ack { .. }) if from == Origin::Central => wire::encode(&Message::Ack { position: 0 }),
        _ => bytes,
    }));
    world.set_link(lyon, true);
    world.until("it leaves lyon", SOON, move |world| !sees(world));
    for site in [bern, lyon] {
        world.set_link(site, false);
    }
    world.meddle = None;
    restore(&mut world, Origin::Central, Back::Database);
    world.set_link(lyon, true);
    world.until("lyon has it again", SOON, move |world| world.in_agreement(lyon) && sees(world));
    assert!(!alarms(&world).iter().any(|alarm| alarm == "both differ"), "{:#?}", alarms(&world));
    world.set_link(bern, true);
    world.until("all agree", SOON, |world| world.in_agreement(bern) && world.in_agreement(lyon));
    world.until("it is bern's again", SOON, move |world| !sees(world));
}

#[test]
fn h5_p6_a_task_that_central_cannot_know_again_leaves_the_site_and_its_workflow_with_it() {
    let mut world = World::new(33);
    let lyon = world.add_site("lyon");
    let identity = Identity {
        name: "kiosk".into(),
        os_family: "debian".into(),
        arch: "x86_64".into(),
        boot_method: "kernel".into(),
    };
    let file = |role: &str| (role.to_string(), (Digest::of(role.as_bytes()), 1));
    let version = NewVersion {
        files: ["kernel", "initrd"].map(file).into(),
        kernel_args: String::new(),
        needs_approval: false,
    };
    let workflow = central(&mut world, move |tx| workflow::create(tx, &identity, &version)).id;
    let node = central(&mut world, move |tx| node::create(tx, mac(1), lyon, ""));
    world.until("they agree", SOON, |world| world.in_agreement(lyon));
    keep(&mut world, Origin::Central);
    let new = NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
    central(&mut world, move |tx| task::create(tx, &new));
    world.until("lyon holds the workflow", MINUTE * 2, |world| holds(world, lyon, "workflow").1 == 1);

    // Central is restored without its seal: it cannot know the task again, and takes it for the site's own.
    world.set_link(lyon, false);
    std::fs::remove_file(world.path(Origin::Central).join("seal")).expect("the seal is lost");
    restore(&mut world, Origin::Central, Back::Database);
    world.set_link(lyon, true);
    world.until("the workflow has left", 2 * SOON, |world| holds(world, lyon, "workflow").1 == 0);
    // The task is refused, and so a stranger's; the next join finds that lyon still holds it.
    world.until("the task has left too", 2 * SOON, |world| holds(world, lyon, "task").1 == 0);
    world.until("they agree", 2 * SOON, |world| world.in_agreement(lyon));
}
