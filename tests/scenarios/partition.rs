//! Both sides go on while the link is down, and meet again.

use std::{collections::BTreeMap, time::Duration};

use expect_test::expect;
use harness::world::World;
use site_agent::{boot::decide::decide, sight};
use store::{
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        report::{self, Report},
        site::{self, SettingsEdit},
        task::{self, NewTask},
        workflow::{self, NewVersion},
    },
    view::{JournalFilter, TaskRow},
};
use sync::{
    blob::Digest,
    document::workflow::Identity,
    id::{MacAddr, NodeId, Origin, ReportId, SiteId, WorkflowId},
    journal::Event,
    policy::{LinkState, NodeState, Strategy, TaskState},
};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const MINUTE: Duration = Duration::from_secs(60);

fn publish(world: &mut World) -> WorkflowId {
    publish_with(world, false)
}

pub(crate) fn publish_with(world: &mut World, needs_approval: bool) -> WorkflowId {
    let identity = Identity {
        name: "debian-12".into(),
        os_family: "debian".into(),
        arch: "x86_64".into(),
        boot_method: "kernel".into(),
    };
    let files = ["kernel", "initrd"]
        .map(|role| (role.to_string(), (Digest::of(role.as_bytes()), role.len() as u64)))
        .into();
    let version = NewVersion { files, kernel_args: "console=ttyS0".into(), needs_approval };
    world.run(Origin::Central, "ann", move |tx| workflow::create(tx, &identity, &version)).unwrap().id
}

pub(crate) fn order(
    world: &mut World,
    site: SiteId,
    mac: MacAddr,
    workflow: WorkflowId,
) -> (NodeId, TaskRow) {
    let node = world.run(Origin::Central, "ann", move |tx| node::create(tx, mac, site, "pos-1")).unwrap();
    let new = NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
    (node, world.run(Origin::Central, "ann", move |tx| task::create(tx, &new)).unwrap())
}

pub(crate) fn report(world: &mut World, site: SiteId, node: NodeId, task: &TaskRow, it: Report) -> String {
    let report = ReportId(world.random.bytes());
    let about = (task.id, 1);
    let answer =
        world.run(Origin::Site(site), "machine", move |tx| report::event(tx, site, report, node, about, &it));
    let answer = answer.unwrap();
    format!("{} {}", answer.status, answer.body)
}

#[test]
fn p5_h1_a_cut_off_site_installs_and_central_hears_of_it_in_order() {
    let mut world = World::new(1);
    let lyon = world.add_site("lyon");
    let workflow = publish(&mut world);
    let (node, task) = order(&mut world, lyon, MAC, workflow);
    world.until("the site has the task", MINUTE, |world| {
        world.store(Origin::Site(lyon)).read(|view| view.task(task.id)).unwrap().is_some()
    });
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));

    world.set_link(lyon, false);
    let ready = world.run(Origin::Site(lyon), "cache", move |tx| task::mark_ready(tx, lyon, |_| true));
    assert_eq!(ready.unwrap(), [task.id]);
    assert_eq!(report(&mut world, lyon, node, &task, Report::GoAhead), r#"200 {"answer":"go"}"#);
    assert_eq!(
        report(&mut world, lyon, node, &task, Report::InstallStarted),
        r#"200 {"state":"installing"}"#
    );
    assert_eq!(report(&mut world, lyon, node, &task, Report::Progress(50)), r#"200 {"state":"installing"}"#);
    assert_eq!(
        report(&mut world, lyon, node, &task, Report::InstallComplete),
        r#"200 {"state":"installed"}"#
    );

    // Meanwhile, at central: another name and a tag.
    let edit = NodeEdit {
        hostname: Some("till-1".into()),
        tags: BTreeMap::from([("rack".to_string(), Some("r7".to_string()))]),
        ..NodeEdit::default()
    };
    world.run(Origin::Central, "ann", move |tx| node::edit(tx, node, &edit)).unwrap();
    world.pass(Duration::from_secs(3 * 86_400));
    let central_knows = world.store(Origin::Central).read(|view| view.node(node)).unwrap().unwrap();
    assert_eq!(central_knows.state, NodeState::Discovered);

    world.set_link(lyon, true);
    world.until("both agree again", MINUTE, |world| world.in_agreement(lyon));
    for origin in [Origin::Central, Origin::Site(lyon)] {
        let row = world.store(origin).read(|view| view.node(node)).unwrap().unwrap();
        assert_eq!((row.state, row.hostname.as_str()), (NodeState::Installed, "till-1"), "{origin}");
        assert_eq!(row.tags["rack"], "r7", "{origin}");
        let row = world.store(origin).read(|view| view.task(task.id)).unwrap().unwrap();
        assert_eq!(row.state, TaskState::Completed, "{origin}");
    }
    let filter = JournalFilter { site: Some(lyon), ..JournalFilter::default() };
    let entries = |origin| world.store(origin).read(|view| view.journal(&filter)).unwrap();
    let (here, there) = (entries(Origin::Site(lyon)), entries(Origin::Central));
    let chain = |rows: &[store::view::JournalRow]| {
        rows.iter().map(|row| (row.seq, row.event.clone())).collect::<Vec<_>>()
    };
    assert_eq!(chain(&here), chain(&there), "central has the site's journal, in order");
    assert!(here.iter().map(|row| row.seq).eq(1..=here.len() as u64), "without gaps");
}

/// The states of a task at central and at the site.
pub(crate) fn states(world: &World, site: SiteId, task: &TaskRow) -> [TaskState; 2] {
    [Origin::Central, Origin::Site(site)]
        .map(|origin| world.store(origin).read(|view| view.task(task.id)).unwrap().unwrap().state)
}

#[test]
fn l2_l11_a_machine_waits_for_approval_and_a_rejected_or_withdrawn_one_never_begins() {
    let mut world = World::new(3);
    let lyon = world.add_site("lyon");
    let workflow = publish_with(&mut world, true);
    let mut machines = Vec::new();
    for last in 1..=3 {
        let mac = MacAddr([0x52, 0x54, 0, 0, 0, last]);
        let (node, task) = order(&mut world, lyon, mac, workflow);
        machines.push((mac, node, task));
    }
    world.until("both agree", MINUTE, |world| {
        let tasks = world.store(Origin::Site(lyon)).read(|view| view.count_tasks()).unwrap();
        tasks == 3 && world.in_agreement(lyon)
    });
    let early = machines[0].2.id;
    let refused = world.run(Origin::Central, "ann", move |tx| task::judge(tx, early, true, "unseen"));
    let said = format!("task {early} is pending, so there is nothing to approve or reject");
    assert_eq!(refused.unwrap_err().to_string(), said);

    world.run(Origin::Site(lyon), "cache", move |tx| task::mark_ready(tx, lyon, |_| true)).unwrap();
    for (mac, _, task) in &machines {
        let (shown, answered) = (
            ReportId(world.random.bytes()),
            Answered {
                mac: *mac,
                answer: "workflow".into(),
                reason: "waits for approval".into(),
                adopt: false,
                booting: Some(task.id),
                local_disk: false,
                claims: false,
            },
        );
        world.run(Origin::Site(lyon), "boot", move |tx| boot::answered(tx, &answered)).unwrap();
        let (mac, it) = (*mac, report::Registration { cpus: Some(4), ..report::Registration::default() });
        world
            .run(Origin::Site(lyon), "machine", move |tx| report::register(tx, shown, mac, false, &it))
            .unwrap();
    }
    for (_, node, task) in &machines {
        world.until("central sees that the machine waits", MINUTE, |world| {
            states(world, lyon, task) == [TaskState::PendingApproval; 2]
        });
        assert_eq!(
            report(&mut world, lyon, *node, task, Report::GoAhead),
            r#"202 {"answer":"wait","why":"the task waits for approval"}"#
        );
    }

    // Decided while the site is cut off, and known there when the link is back.
    world.set_link(lyon, false);
    let [yes, no, withdrawn] = [0, 1, 2].map(|index| machines[index].2.id);
    world.run(Origin::Central, "ann", move |tx| task::judge(tx, yes, true, "4 cores are enough")).unwrap();
    world.run(Origin::Central, "ann", move |tx| task::judge(tx, no, false, "wrong rack")).unwrap();
    world.run(Origin::Central, "ann", move |tx| task::cancel(tx, withdrawn, "not needed")).unwrap();
    let again = world.run(Origin::Central, "ann", move |tx| task::judge(tx, no, true, "after all"));
    let said = format!("task {no} is rejected, so there is nothing to approve or reject");
    assert_eq!(again.unwrap_err().to_string(), said);
    world.set_link(lyon, true);
    let ends = [TaskState::Approved, TaskState::Rejected, TaskState::Cancelled];
    for ((_, node, task), end) in machines.iter().zip(ends) {
        world.until("both know the decision", MINUTE, |world| states(world, lyon, task) == [end; 2]);
        let answer = report(&mut world, lyon, *node, task, Report::GoAhead);
        let wanted = if end == TaskState::Approved { "200 " } else { "409 " };
        assert!(answer.starts_with(wanted), "{end}: {answer}");
    }
    let filter = JournalFilter { site: Some(lyon), ..JournalFilter::default() };
    let entries = world.store(Origin::Site(lyon)).read(|view| view.journal(&filter)).unwrap();
    let consumed = |row: &&store::view::JournalRow| matches!(row.event, Some(Event::OrderConsumed { .. }));
    assert_eq!(entries.iter().filter(consumed).count(), 1);
}

#[test]
fn h3_a_repeated_go_ahead_is_the_same_answer_and_another_boot_only_resumes() {
    let mut world = World::new(2);
    let lyon = world.add_site("lyon");
    let workflow = publish(&mut world);
    let (node, task) = order(&mut world, lyon, MAC, workflow);
    world.until("both agree", MINUTE, |world| {
        world.in_agreement(lyon)
            && world.store(Origin::Site(lyon)).read(|view| view.task(task.id)).unwrap().is_some()
    });
    world.set_link(lyon, false);
    let id = task.id;
    let first = ReportId([1; 16]);
    let ask = |world: &mut World, report: ReportId| {
        world
            .run(Origin::Site(lyon), "machine", move |tx| {
                report::event(tx, lyon, report, node, (id, 1), &Report::GoAhead)
            })
            .unwrap()
            .body
            .to_string()
    };
    assert_eq!(ask(&mut world, first), r#"{"answer":"go"}"#);
    world.crash(Origin::Site(lyon));
    world.start(Origin::Site(lyon));
    assert_eq!(ask(&mut world, first), r#"{"answer":"go"}"#, "the answer was lost in the crash");
    assert_eq!(ask(&mut world, ReportId([2; 16])), r#"{"answer":"resume"}"#);
    assert_eq!(ask(&mut world, ReportId([3; 16])), r#"{"answer":"resume"}"#);
    assert_eq!(
        ask(&mut world, ReportId([4; 16])),
        r#"{"answer":"stop","why":"the attempt was booted 3 times and did not end"}"#
    );
    let consumed = world
        .store(Origin::Site(lyon))
        .read(|view| view.journal(&JournalFilter::default()))
        .unwrap()
        .iter()
        .filter(|row| matches!(row.event, Some(Event::OrderConsumed { .. })))
        .count();
    assert_eq!(consumed, 1);
}

#[test]
fn p7_h2_both_sides_name_one_machine_and_both_names_are_kept() {
    let mut world = World::new(3);
    let lyon = world.add_site("lyon");
    let manual = SettingsEdit { conflict_resolution: Some(Strategy::Manual), ..SettingsEdit::default() };
    world.run(Origin::Central, "ann", move |tx| site::set(tx, lyon, &manual, "")).unwrap();
    let workflow = publish(&mut world);
    let (node, _) = order(&mut world, lyon, MAC, workflow);
    world.until("both agree", MINUTE, |world| {
        world.in_agreement(lyon)
            && world.store(Origin::Site(lyon)).read(|view| view.node(node)).unwrap().is_some()
    });
    world.set_link(lyon, false);
    for (origin, name) in [(Origin::Central, "till-1"), (Origin::Site(lyon), "kasse-1")] {
        let edit = NodeEdit { hostname: Some(name.into()), ..NodeEdit::default() };
        world.run(origin, "ann", move |tx| node::edit(tx, node, &edit)).unwrap();
    }
    world.set_link(lyon, true);
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    for origin in [Origin::Central, Origin::Site(lyon)] {
        let row = world.store(origin).read(|view| view.node(node)).unwrap().unwrap();
        assert_eq!(
            (row.hostname.as_str(), row.contested),
            ("pos-1", vec!["hostname".to_string()]),
            "{origin}"
        );
    }
}

#[test]
fn p9_a_machine_adopted_while_cut_off_gets_its_home_when_central_hears_of_it() {
    let mut world = World::new(4);
    let lyon = world.add_site("lyon");
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    world.set_link(lyon, false);
    let answered = Answered {
        mac: MAC,
        answer: "local disk".into(),
        reason: "nothing is planned".into(),
        adopt: true,
        booting: None,
        local_disk: true,
        claims: false,
    };
    let node = world
        .run(Origin::Site(lyon), "boot", move |tx| boot::answered(tx, &answered))
        .unwrap()
        .expect("it was adopted");
    world.set_link(lyon, true);
    world.until("it is at home", MINUTE, |world| {
        let row = world.store(Origin::Site(lyon)).read(|view| view.node(node)).unwrap();
        row.is_some_and(|row| row.home == Some(lyon))
    });
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
}

/// What a cut-off site gives a machine that boots from the network, and why, as its agent does.
fn boots(world: &mut World, site: SiteId, mac: MacAddr) -> String {
    let origin = Origin::Site(site);
    let (now, store) = (world.clock(origin), world.store(origin).clone());
    let view = store.read(|view| sight::of(view, store.blobs(), site, mac, LinkState::Offline, now)).unwrap();
    let decision = decide(&view);
    let answered = sight::noted(mac, &decision);
    world.run(origin, "boot", move |tx| boot::answered(tx, &answered)).unwrap();
    format!("{}: {}", decision.answer, decision.reason)
}

#[test]
fn h3_the_last_report_is_lost_and_the_firmware_boots_from_the_network_first() {
    let mut world = World::new(5);
    let lyon = world.add_site("lyon");
    let workflow = publish(&mut world);
    let (node, task) = order(&mut world, lyon, MAC, workflow);
    for content in ["kernel", "initrd"] {
        world.store(Origin::Site(lyon)).blobs().put_bytes(content.as_bytes()).unwrap();
    }
    world.until("the site has the task", MINUTE, |world| {
        world.store(Origin::Site(lyon)).read(|view| view.task(task.id)).unwrap().is_some()
    });
    world.set_link(lyon, false);
    world.run(Origin::Site(lyon), "cache", move |tx| task::mark_ready(tx, lyon, |_| true)).unwrap();
    let mut told = vec![boots(&mut world, lyon, MAC)];
    told.push(report(&mut world, lyon, node, &task, Report::GoAhead));
    told.push(report(&mut world, lyon, node, &task, Report::InstallStarted));
    // The disk is written to its end. That it says so is lost, and it starts anew.
    told.push(boots(&mut world, lyon, MAC));
    told.push(report(&mut world, lyon, node, &task, Report::GoAhead));
    told.push(report(&mut world, lyon, node, &task, Report::InstallComplete));
    told.push(boots(&mut world, lyon, MAC));
    told.push(boots(&mut world, lyon, MAC));
    let told = told.join("\n").replace(&task.id.to_string(), "TASK");
    expect![[r#"
        workflow: attempt 1 of task TASK is ordered
        200 {"answer":"go"}
        200 {"state":"installing"}
        workflow: attempt 1 of task TASK is under way and goes on
        200 {"answer":"resume"}
        200 {"state":"installed"}
        local disk: nothing is ordered for this machine
        local disk: nothing is ordered for this machine"#]]
    .assert_eq(&told);
    world.set_link(lyon, true);
    world.until("both agree again", MINUTE, |world| world.in_agreement(lyon));
    assert_eq!(states(&world, lyon, &task), [TaskState::Completed; 2]);
    let rows = world.store(Origin::Central).read(|view| view.journal(&JournalFilter::default())).unwrap();
    let used = rows.iter().filter(|row| matches!(row.event, Some(Event::OrderConsumed { .. })));
    assert_eq!(used.count(), 1, "it is installed once");
}
