//! Decisions that meet what already happened: whoever decides late is neither overruled in silence nor does a disk pay
//! for it.

use std::{collections::BTreeMap, time::Duration};

use harness::world::World;
use store::{
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        report::{self, Registration, Report},
        site::{self, SettingsEdit},
        task::{self, NewTask},
    },
    view::{ConflictFilter, NodeRow, TaskRow},
};
use sync::{
    id::{MacAddr, NodeId, Origin, ReportId, SiteId, WorkflowId},
    policy::{Autonomy, Liveness, NodeState, Phase, TaskState, Wanted, order},
};

use crate::partition::{order as give_order, publish_with, report as reports, states};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const MINUTE: Duration = Duration::from_secs(60);

/// Central, a `full` site that is connected, and a workflow.
fn office(seed: u64, needs_approval: bool) -> (World, SiteId, WorkflowId) {
    let mut world = World::new(seed);
    let lyon = world.add_site("lyon");
    let full = SettingsEdit { autonomy: Some(Autonomy::Full), ..SettingsEdit::default() };
    world.run(Origin::Central, "ann", move |tx| site::set(tx, lyon, &full, "")).unwrap();
    let workflow = publish_with(&mut world, needs_approval);
    (world, lyon, workflow)
}

fn meet(world: &mut World, site: SiteId) {
    world.set_link(site, true);
    world.until("both agree", 10 * MINUTE, |world| {
        let tasks = |origin| world.store(origin).read(|view| view.count_tasks()).unwrap();
        tasks(Origin::Central) == tasks(Origin::Site(site)) && world.in_agreement(site)
    });
}

fn ready(world: &mut World, site: SiteId) {
    world.run(Origin::Site(site), "cache", move |tx| task::mark_ready(tx, site, |_| true)).unwrap();
}

fn want(world: &mut World, origin: Origin, node: NodeId, wanted: Wanted) {
    let edit = NodeEdit { wanted: Some(wanted), ..NodeEdit::default() };
    world.run(origin, "ann", move |tx| node::edit(tx, node, &edit)).unwrap();
}

fn node_at(world: &World, origin: Origin, node: NodeId) -> NodeRow {
    world.store(origin).read(|view| view.node(node)).unwrap().unwrap()
}

/// What an order is worth at its site, in words.
fn worth(world: &World, site: SiteId, task: &TaskRow) -> String {
    let now = world.clock(Origin::Site(site));
    let found = world.store(Origin::Site(site)).read(|view| {
        let row = view.task(task.id)?.expect("the site has the task");
        let node = view.node(row.node)?.expect("and its machine");
        Ok(order::liveness(&view.circumstances(&row, &node, site, None, now)?))
    });
    match found.unwrap() {
        Liveness::Live => "live".into(),
        Liveness::Stale(why) => format!("stale: {why}"),
        Liveness::Held(why) => format!("held: {why}"),
        other => format!("{other:?}"),
    }
}

fn no_conflicts(world: &World) {
    let all = world.store(Origin::Central).read(|view| view.conflicts(&ConflictFilter::default())).unwrap();
    assert!(all.is_empty(), "facts and wishes are different registers: {all:?}");
}

#[test]
fn h3_p7_central_retires_what_the_site_is_installing() {
    let (mut world, lyon, workflow) = office(1, false);
    let (node, task) = give_order(&mut world, lyon, MAC, workflow);
    meet(&mut world, lyon);
    world.set_link(lyon, false);
    ready(&mut world, lyon);
    assert!(reports(&mut world, lyon, node, &task, Report::GoAhead).starts_with("200"));
    want(&mut world, Origin::Central, node, Wanted::Retired);
    meet(&mut world, lyon);
    for origin in [Origin::Central, Origin::Site(lyon)] {
        let row = node_at(&world, origin, node);
        assert_eq!((row.state, row.wanted), (NodeState::Installing, Wanted::Retired), "{origin}");
    }
    // Half a system is worse than a whole one: the attempt ends first, and then the machine is gone.
    assert_eq!(
        reports(&mut world, lyon, node, &task, Report::InstallComplete),
        r#"200 {"state":"installed"}"#
    );
    meet(&mut world, lyon);
    assert_eq!(states(&world, lyon, &task), [TaskState::Completed; 2]);
    let row = node_at(&world, Origin::Central, node);
    let phase = world.store(Origin::Central).read(|view| view.phase(&row)).unwrap();
    assert_eq!((row.state, phase), (NodeState::Installed, Phase::Retired));
    let new = NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
    let refused = world.run(Origin::Site(lyon), "bob", move |tx| task::create(tx, &new)).unwrap_err();
    assert_eq!(refused.to_string(), format!("node {node} is wanted `retired`"));
    no_conflicts(&world);
}

#[test]
fn p7_central_wants_a_machine_anew_while_the_site_reports_it_active() {
    let (mut world, lyon, workflow) = office(2, false);
    let (node, task) = give_order(&mut world, lyon, MAC, workflow);
    meet(&mut world, lyon);
    world.set_link(lyon, false);
    ready(&mut world, lyon);
    for it in [Report::GoAhead, Report::InstallComplete] {
        assert!(reports(&mut world, lyon, node, &task, it).starts_with("200"));
    }
    let disk = Answered {
        mac: MAC,
        answer: "local disk".into(),
        reason: "nothing is ordered for this machine".into(),
        adopt: false,
        booting: None,
        local_disk: true,
        claims: false,
    };
    world.run(Origin::Site(lyon), "boot", move |tx| boot::answered(tx, &disk)).unwrap();
    want(&mut world, Origin::Central, node, Wanted::Reprovision);
    meet(&mut world, lyon);
    for origin in [Origin::Central, Origin::Site(lyon)] {
        let row = node_at(&world, origin, node);
        let phase = world.store(origin).read(|view| view.phase(&row)).unwrap();
        assert_eq!(
            (row.state, row.wanted, phase),
            (NodeState::Active, Wanted::Reprovision, Phase::Reprovision)
        );
    }
    no_conflicts(&world);
}

#[test]
fn h3_an_order_of_central_arrives_stale_where_the_site_has_installed_by_its_own() {
    let (mut world, lyon, workflow) = office(3, false);
    let node = world.run(Origin::Central, "ann", move |tx| node::create(tx, MAC, lyon, "pos-1")).unwrap();
    // A task that was cancelled again brings the workflow to the site.
    let new = NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
    let first = new.clone();
    let first = world.run(Origin::Central, "ann", move |tx| task::create(tx, &first)).unwrap();
    world.run(Origin::Central, "ann", move |tx| task::cancel(tx, first.id, "not yet")).unwrap();
    meet(&mut world, lyon);
    world.set_link(lyon, false);
    let (by_central, by_site) = (new.clone(), new);
    let theirs = world.run(Origin::Central, "ann", move |tx| task::create(tx, &by_central)).unwrap();
    let ours = world.run(Origin::Site(lyon), "bob", move |tx| task::create(tx, &by_site)).unwrap();
    ready(&mut world, lyon);
    for it in [Report::GoAhead, Report::InstallComplete] {
        assert!(reports(&mut world, lyon, node, &ours, it).starts_with("200"));
    }
    meet(&mut world, lyon);
    assert_eq!(worth(&world, lyon, &theirs), "stale: the machine was installed since the order was given");
    ready(&mut world, lyon);
    let refused = reports(&mut world, lyon, node, &theirs, Report::GoAhead);
    assert!(refused.starts_with("409") && refused.contains("installed since"), "{refused}");
    assert_eq!(node_at(&world, Origin::Central, node).state, NodeState::Installed);
}

#[test]
fn h3_two_tasks_that_meet_are_neither_live_until_one_is_cancelled() {
    let (mut world, lyon, workflow) = office(4, false);
    let node = world.run(Origin::Central, "ann", move |tx| node::create(tx, MAC, lyon, "pos-1")).unwrap();
    let new = NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
    let first = new.clone();
    let first = world.run(Origin::Central, "ann", move |tx| task::create(tx, &first)).unwrap();
    world.run(Origin::Central, "ann", move |tx| task::cancel(tx, first.id, "not yet")).unwrap();
    meet(&mut world, lyon);
    world.set_link(lyon, false);
    let (by_central, by_site) = (new.clone(), new);
    let theirs = world.run(Origin::Central, "ann", move |tx| task::create(tx, &by_central)).unwrap();
    let ours = world.run(Origin::Site(lyon), "bob", move |tx| task::create(tx, &by_site)).unwrap();
    assert_eq!(worth(&world, lyon, &ours), "live");
    meet(&mut world, lyon);
    ready(&mut world, lyon);
    for (one, other) in [(&ours, &theirs), (&theirs, &ours)] {
        let why = format!(
            "held: task {} of the same machine has not ended; one of them must be cancelled",
            other.id
        );
        assert_eq!(worth(&world, lyon, one), why);
        assert!(reports(&mut world, lyon, node, one, Report::GoAhead).starts_with("409"));
    }
    let id = theirs.id;
    world.run(Origin::Central, "ann", move |tx| task::cancel(tx, id, "they do it")).unwrap();
    meet(&mut world, lyon);
    assert_eq!(worth(&world, lyon, &ours), "live");
}

/// A machine that has shown its hardware and waits for somebody to approve, known to both.
fn waiting(seed: u64) -> (World, SiteId, NodeId, TaskRow) {
    let (mut world, lyon, workflow) = office(seed, true);
    let (node, task) = give_order(&mut world, lyon, MAC, workflow);
    meet(&mut world, lyon);
    ready(&mut world, lyon);
    let booting = Answered {
        mac: MAC,
        answer: "workflow".into(),
        reason: "waits for approval".into(),
        adopt: false,
        booting: Some(task.id),
        local_disk: false,
        claims: false,
    };
    world.run(Origin::Site(lyon), "boot", move |tx| boot::answered(tx, &booting)).unwrap();
    let (shown, it) = (ReportId(world.random.bytes()), Registration::default());
    world.run(Origin::Site(lyon), "machine", move |tx| report::register(tx, shown, MAC, false, &it)).unwrap();
    world.until("central sees that it waits", MINUTE, |world| {
        states(world, lyon, &task) == [TaskState::PendingApproval; 2]
    });
    world.set_link(lyon, false);
    (world, lyon, node, task)
}

fn judge(world: &mut World, origin: Origin, task: &TaskRow, approved: bool) {
    let id = task.id;
    world.run(origin, "ann", move |tx| task::judge(tx, id, approved, "looked at it")).unwrap();
}

#[test]
fn h3_p7_an_operator_at_the_cut_off_site_approves_what_central_rejects() {
    // Nobody has begun when they meet: the no counts.
    let (mut world, lyon, node, task) = waiting(5);
    judge(&mut world, Origin::Central, &task, false);
    judge(&mut world, Origin::Site(lyon), &task, true);
    assert_eq!(worth(&world, lyon, &task), "live");
    meet(&mut world, lyon);
    assert_eq!(states(&world, lyon, &task), [TaskState::Rejected; 2]);
    let answer = reports(&mut world, lyon, node, &task, Report::GoAhead);
    assert!(answer.starts_with("409"), "{answer}");
    let settled =
        world.store(Origin::Central).read(|view| view.conflicts(&ConflictFilter::default())).unwrap();
    let ended = settled[0].ended.as_ref().unwrap();
    assert_eq!((settled[0].path.as_str(), ended.why.as_str()), ("approval", "what stops wins"));

    // The machine had begun: the attempt ends by itself.
    let (mut world, lyon, node, task) = waiting(6);
    judge(&mut world, Origin::Central, &task, false);
    judge(&mut world, Origin::Site(lyon), &task, true);
    assert!(reports(&mut world, lyon, node, &task, Report::GoAhead).starts_with("200"));
    meet(&mut world, lyon);
    assert_eq!(states(&world, lyon, &task), [TaskState::Installing; 2]);
    assert!(reports(&mut world, lyon, node, &task, Report::InstallComplete).starts_with("200"));
    meet(&mut world, lyon);
    assert_eq!(states(&world, lyon, &task), [TaskState::Completed; 2]);
}
