//! Logs that both sides begin anew, and sites that never hear of it or go back to before it.

use std::{collections::BTreeMap, time::Duration};

use harness::{
    eye::SetAside,
    world::{Ending, World},
};
use store::{
    Given,
    command::{
        node::{self, NodeEdit},
        site::{self, SettingsEdit},
        task::{self, NewTask},
        workflow::{self, NewVersion},
    },
    view::{JournalFilter, ProposalFilter},
};
use sync::{
    blob::Digest,
    engine::Output,
    id::{MacAddr, NodeId, Origin, SiteId, WorkflowId},
    journal::Event,
    policy::Autonomy,
};

use crate::restore::{Back, adopt, create, keep, machines, order, publish, restore};

const MINUTE: Duration = Duration::from_secs(60);

fn agrees(lyon: SiteId) -> impl Fn(&World) -> bool {
    move |world| world.in_agreement(lyon)
}

/// What central noted of both differing, and of lives that began at either side.
pub(crate) fn alarms(world: &World) -> Vec<String> {
    let all = JournalFilter { limit: 10_000, ..JournalFilter::default() };
    let rows = world.store(Origin::Central).read(|view| view.journal(&all)).expect("it reads");
    let mut alarms: Vec<String> = rows
        .into_iter()
        .filter_map(|row| match row.event? {
            Event::ReplicaDiverged { .. } => Some("both differ".to_string()),
            Event::LifeBegun { reason, .. } => Some(format!("{}: {reason}", row.stream)),
            _ => None,
        })
        .collect();
    alarms.sort();
    alarms
}

#[test]
fn h5_p15_a_join_that_only_central_finished_begins_again() {
    // A restored site ends between any two steps of its join: before, in the middle of, and after what central
    // commits.
    for (answers, ending) in (1..=12).flat_map(|many| [(many, Ending::Killed), (many, Ending::Torn)]) {
        let mut world = World::new(answers);
        let lyon = world.add_site("lyon");
        let site = Origin::Site(lyon);
        adopt(&mut world, lyon, 1);
        world.until("both agree", MINUTE, agrees(lyon));
        keep(&mut world, site);
        adopt(&mut world, lyon, 2);
        world.until("both agree", MINUTE * 2, agrees(lyon));
        world.set_link(lyon, false);
        restore(&mut world, site, Back::Database);
        adopt(&mut world, lyon, 3);
        world.end_after(site, answers, ending);
        world.set_link(lyon, true);
        world.comes_to(MINUTE, |world| !world.runs(site));
        world.keep_running(site);
        if !world.runs(site) {
            world.start(site);
        }
        world.until("both agree again", MINUTE * 3, agrees(lyon));
        assert_eq!(machines(&world, Origin::Central).len(), 3, "{ending:?} after {answers}");
        assert_eq!(machines(&world, site), machines(&world, Origin::Central), "{ending:?} after {answers}");
        let lives = alarms(&world);
        let told = |line: &String| line.contains("the database is not the one that ran here last");
        assert!(lives.len() == 1 && lives.iter().all(told), "{ending:?} after {answers}: {lives:#?}");
    }
}

#[test]
fn h5_p15_a_site_that_goes_back_to_before_its_log_began_anew_does_not_make_central_think_that_it_went_back() {
    let mut world = World::new(3);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    for last in 1..=6 {
        adopt(&mut world, lyon, last);
    }
    world.until("both agree", MINUTE, agrees(lyon));
    keep(&mut world, site);
    world.until("both agree", MINUTE * 2, agrees(lyon));
    // As where a comparison says that both hold something else.
    let differs = Output::Forked { peer: Origin::Central, reason: "both differ".into(), life_ends: false };
    let given = Given { now: world.clock(site), by: String::new(), entropy: [7; 32] };
    harness::world::answer(world.store(site), given, differs);
    world.reset(lyon);
    world.until("both have another log", MINUTE * 2, agrees(lyon));
    let central = world.store(Origin::Central).incarnation();
    // Its positions speak of the log before, and central once sealed them.
    restore(&mut world, site, Back::Everything);
    adopt(&mut world, lyon, 7);
    world.until("both agree again", MINUTE * 3, |world| {
        world.in_agreement(lyon) && machines(world, Origin::Central).len() == 7
    });
    assert_eq!(machines(&world, site), machines(&world, Origin::Central));
    assert_eq!(world.store(Origin::Central).incarnation(), central, "{:#?}", alarms(&world));
    let suspended = world.store(site).read(|view| view.suspended()).expect("it reads");
    assert!(suspended.is_some_and(|why| why.contains("the site's database went back in time")));
}

fn tag(world: &mut World, at: Origin, node: NodeId, key: &str) {
    let edit = NodeEdit { tags: [(key.to_string(), Some("set".into()))].into(), ..NodeEdit::default() };
    world.run(at, "ann", move |tx| node::edit(tx, node, &edit)).expect("it is written");
}

fn tags(world: &World, at: Origin, node: NodeId) -> Vec<String> {
    let row = world.store(at).read(|view| view.node(node)).expect("it reads").expect("it is here");
    row.tags.into_keys().collect()
}

#[test]
fn h5_p15_what_a_central_that_went_back_wrote_again_under_old_numbers_stands_beside_what_comes_back() {
    let mut world = World::new(15);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    let mac = MacAddr([0x52, 0x54, 0, 0, 1, 1]);
    let node = world.run(Origin::Central, "ann", move |tx| node::create(tx, mac, lyon, "pos-1")).unwrap();
    world.until("both agree", MINUTE, agrees(lyon));
    keep(&mut world, Origin::Central);
    tag(&mut world, Origin::Central, node, "told");
    world.until("both agree", MINUTE * 2, agrees(lyon));
    world.set_link(lyon, false);
    tag(&mut world, site, node, "built-on-it");
    restore(&mut world, Origin::Central, Back::Everything);
    // The same actor, the same number, another change; and one that follows it.
    tag(&mut world, Origin::Central, node, "since");
    tag(&mut world, Origin::Central, node, "later");
    world.set_link(lyon, true);
    world.until("both agree again", MINUTE * 5, agrees(lyon));
    assert_eq!(tags(&world, Origin::Central, node), ["built-on-it", "later", "since", "told"]);
    assert_eq!(tags(&world, Origin::Central, node), tags(&world, site, node));
    for at in [site, Origin::Central] {
        assert_eq!(world.eye(at).set_aside_after(0).expect("it reads").len(), 0, "nobody has to look at it");
    }
}

#[test]
fn h6_p5_a_task_whose_beginning_is_refused_is_not_gone_on_with_and_becomes_a_proposal() {
    let mut world = World::new(17);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    let workflow = publish(&mut world);
    let (first, second) = (create(&mut world, lyon, 1), create(&mut world, lyon, 2));
    let may = |world: &mut World, autonomy: Autonomy| {
        let edit = SettingsEdit { autonomy: Some(autonomy), ..SettingsEdit::default() };
        world.run(Origin::Central, "ann", move |tx| site::set(tx, lyon, &edit, "").map(drop)).unwrap();
        world.until("both agree", MINUTE * 2, agrees(lyon));
    };
    may(&mut world, Autonomy::Full);
    // With it the workflow is at the site.
    order(&mut world, first, workflow).expect("it is ordered");
    world.until("both agree", MINUTE, agrees(lyon));
    keep(&mut world, site);
    may(&mut world, Autonomy::Limited);
    world.set_link(lyon, false);
    restore(&mut world, site, Back::Database);
    // It has forgotten that it may not, orders, and withdraws.
    let new =
        NewTask { node: second, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
    let begun = world.run(site, "bob", move |tx| task::create(tx, &new)).expect("the site allows it");
    world.run(site, "bob", move |tx| task::cancel(tx, begun.id, "not now").map(drop)).expect("so it does");
    world.set_link(lyon, true);
    world.until("both agree again", MINUTE * 10, agrees(lyon));
    let aside = world.eye(Origin::Central).set_aside_after(0).expect("it reads");
    assert!(aside.iter().any(|it| it.reason.contains("needs autonomy `full`")), "{aside:#?}");
    let gone_on = |it: &SetAside| it.reason.contains("is written before the task says");
    assert!(!aside.iter().any(gone_on), "{aside:#?}");
    for at in [site, Origin::Central] {
        let found = world.store(at).read(|view| view.task(begun.id)).expect("it reads");
        assert!(found.is_none_or(|task| task.node != second), "{at}");
    }
    let asked = world
        .store(Origin::Central)
        .read(|view| view.proposals(&ProposalFilter::default()))
        .expect("it reads");
    assert!(!asked.is_empty(), "somebody wanted it");
}

#[test]
fn h5_p15_a_site_that_heard_what_a_central_wrote_after_it_went_back_takes_it_back_too() {
    let mut world = World::new(16);
    let (lyon, oslo) = (world.add_site("lyon"), world.add_site("oslo"));
    let workflow = publish(&mut world);
    for (site, last) in [(lyon, 1), (oslo, 2)] {
        let node = create(&mut world, site, last);
        order(&mut world, node, workflow).expect("it is ordered");
    }
    let both = move |world: &World| world.in_agreement(lyon) && world.in_agreement(oslo);
    world.until("all agree", MINUTE, both);
    keep(&mut world, Origin::Central);
    world.until("all agree", MINUTE * 2, both);
    world.set_link(oslo, false);
    publish_with(&mut world, workflow, "told");
    world.until("lyon has it", MINUTE * 2, agrees(lyon));
    world.set_link(lyon, false);
    restore(&mut world, Origin::Central, Back::Everything);
    publish_with(&mut world, workflow, "since");
    world.set_link(oslo, true);
    world.until("oslo has it", MINUTE * 2, agrees(oslo));
    world.set_link(lyon, true);
    world.until("all agree again", MINUTE * 5, both);
    let versions = |at: Origin| {
        let row =
            world.store(at).read(|view| view.workflow(workflow)).expect("it reads").expect("it is here");
        format!("{:?}", row.versions)
    };
    // Both were version 2, and which of them counts is the same everywhere.
    for at in [Origin::Site(lyon), Origin::Site(oslo)] {
        assert_eq!(versions(at), versions(Origin::Central), "{at}");
    }
    for at in [Origin::Central, Origin::Site(lyon), Origin::Site(oslo)] {
        assert_eq!(
            world.eye(at).set_aside_after(0).expect("it reads").len(),
            0,
            "{at}: nobody has to look at it"
        );
    }
}

fn publish_with(world: &mut World, workflow: WorkflowId, kernel_args: &str) {
    let files = ["kernel", "initrd"].map(|role| (role.to_string(), (Digest::of(role.as_bytes()), 6)));
    let kernel_args = kernel_args.to_string();
    let version = NewVersion { files: files.into(), kernel_args, needs_approval: false };
    world
        .run(Origin::Central, "ann", move |tx| workflow::publish(tx, workflow, &version))
        .expect("it is published");
}
