//! What a site may do by itself, what becomes a proposal, and what central makes of it.

use std::{collections::BTreeMap, time::Duration};

use harness::{link::Weather, world::World};
use store::{
    StoreError, View,
    command::{
        ask::{self, Ask, Done, What},
        boot::{self, Answered},
        node::{self, NodeEdit},
        proposal,
        report::{self, Report},
        site::{self, SettingsEdit},
        task::{self, NewTask},
        workflow::{self, NewVersion},
    },
    view::{NodeRow, ProposalFilter, ProposalRow, ProposalState, TaskFilter, TaskRow},
};
use sync::{
    blob::Digest,
    document::workflow::Identity,
    id::{MacAddr, NodeId, Origin, ReportId, SiteId, WorkflowId},
    journal::Event,
    policy::{Action, Autonomy, NodeState, TaskState, Wanted},
};

use crate::restore::{Back, create, end_recovery, events, keep, order, restore};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// A workflow whose machines are installed after somebody has approved, or at once.
fn publish(world: &mut World, name: &str, needs_approval: bool) -> WorkflowId {
    let identity = Identity {
        name: name.into(),
        os_family: "debian".into(),
        arch: "x86_64".into(),
        boot_method: "kernel".into(),
    };
    let files = ["kernel", "initrd"].map(|role| (role.to_string(), (Digest::of(role.as_bytes()), 6)));
    let version = NewVersion { files: files.into(), kernel_args: String::new(), needs_approval };
    world.run(Origin::Central, "ann", move |tx| workflow::create(tx, &identity, &version)).unwrap().id
}

fn set(world: &mut World, site: SiteId, autonomy: Autonomy) {
    let edit = SettingsEdit { autonomy: Some(autonomy), ..SettingsEdit::default() };
    world.run(Origin::Central, "ann", move |tx| site::set(tx, site, &edit, "")).unwrap();
}

fn read<T>(world: &World, origin: Origin, read: impl FnOnce(&View<'_>) -> Result<T, StoreError>) -> T {
    world.store(origin).read(read).expect("the store reads")
}

fn node(world: &World, origin: Origin, node: NodeId) -> NodeRow {
    read(world, origin, |view| view.node(node)).expect("it is there")
}

fn task(world: &World, origin: Origin, task: &TaskRow) -> TaskRow {
    read(world, origin, |view| view.task(task.id)).expect("it is there")
}

fn proposals(world: &World, origin: Origin) -> Vec<ProposalRow> {
    read(world, origin, |view| view.proposals(&ProposalFilter::default()))
}

/// Bob asks for something at a site.
fn asks(world: &mut World, site: SiteId, what: What) -> Result<Done, StoreError> {
    let ask = Ask { what, why: "bob needs it".into() };
    world.run(Origin::Site(site), "bob", move |tx| ask::perform(tx, &ask))
}

fn queued(world: &mut World, site: SiteId, what: What) -> ProposalRow {
    match asks(world, site, what) {
        Ok(Done::Queued(row)) => *row,
        other => panic!("it should wait for central: {other:?}"),
    }
}

fn rename(node: NodeId, name: &str) -> What {
    What::EditNode { node, edit: NodeEdit { hostname: Some(name.into()), ..NodeEdit::default() } }
}

fn want(node: NodeId, wanted: Wanted) -> What {
    What::EditNode { node, edit: NodeEdit { wanted: Some(wanted), ..NodeEdit::default() } }
}

fn install(node: NodeId, workflow: WorkflowId) -> What {
    What::CreateTask(NewTask {
        node,
        workflow,
        version: None,
        parameters: BTreeMap::new(),
        tags: BTreeMap::new(),
    })
}

fn tells(world: &mut World, site: SiteId, row: &TaskRow, attempt: u64, it: Report) -> String {
    let (report, node, about) = (ReportId(world.random.bytes()), row.node, (row.id, attempt));
    let answer =
        world.run(Origin::Site(site), "machine", move |tx| report::event(tx, site, report, node, about, &it));
    let answer = answer.expect("a machine is answered");
    format!("{} {}", answer.status, answer.body)
}

fn makes_ready(world: &mut World, site: SiteId) {
    world.run(Origin::Site(site), "cache", move |tx| task::mark_ready(tx, site, |_| true)).unwrap();
}

fn boots(world: &mut World, site: SiteId, mac: MacAddr, booting: Option<&TaskRow>) {
    let answered = Answered {
        mac,
        answer: "as decided".into(),
        reason: "for a reason".into(),
        adopt: booting.is_none(),
        booting: booting.map(|row| row.id),
        local_disk: false,
        claims: false,
    };
    world.run(Origin::Site(site), "boot", move |tx| boot::answered(tx, &answered)).unwrap();
}

fn agree(world: &mut World, site: SiteId) {
    world.until("both hold the same", MINUTE * 3, |world| world.in_agreement(site));
}

/// A site of this autonomy with one machine for every action, prepared so that the action can be.
struct Office {
    world: World,
    lyon: SiteId,
    /// Machines by the action that they are for, with their tasks.
    machines: BTreeMap<&'static str, (NodeId, Option<TaskRow>)>,
    debian: WorkflowId,
}

impl Office {
    fn new(seed: u64, autonomy: Autonomy) -> Self {
        let mut world = World::new(seed);
        let lyon = world.add_site("lyon");
        let debian = publish(&mut world, "debian-12", false);
        let asked = publish(&mut world, "asked", true);
        let mut machines = BTreeMap::new();
        let names = [
            "cancel_task",
            "make_pending",
            "edit_node_details",
            "edit_workflow",
            "set_wanted",
            "create_task",
            "approve_task",
            "abort_attempt",
        ];
        for (number, name) in (1_u8..).zip(names) {
            let node = create(&mut world, lyon, number);
            let row = match name {
                "cancel_task" | "make_pending" | "abort_attempt" => {
                    Some(order(&mut world, node, debian).unwrap())
                }
                "approve_task" => Some(order(&mut world, node, asked).unwrap()),
                _ => None,
            };
            machines.insert(name, (node, row));
        }
        set(&mut world, lyon, autonomy);
        let mut office = Office { world, lyon, machines, debian };
        agree(&mut office.world, lyon);
        makes_ready(&mut office.world, lyon);
        for (name, failed) in [("make_pending", true), ("abort_attempt", false)] {
            let row = office.task(name);
            assert_eq!(tells(&mut office.world, lyon, &row, 1, Report::GoAhead), r#"200 {"answer":"go"}"#);
            if failed {
                tells(&mut office.world, lyon, &row, 1, Report::InstallFailed("no disk".into()));
            }
        }
        let row = office.task("approve_task");
        let mac = node(&office.world, Origin::Site(lyon), row.node).macs[0];
        boots(&mut office.world, lyon, mac, Some(&row));
        let report = ReportId(office.world.random.bytes());
        let it = report::Registration::default();
        let registered = office
            .world
            .run(Origin::Site(lyon), "machine", move |tx| report::register(tx, report, mac, false, &it));
        registered.expect("it registers");
        agree(&mut office.world, lyon);
        office
    }

    fn task(&self, name: &str) -> TaskRow {
        self.machines[name].1.clone().expect("the machine has a task")
    }

    /// What somebody asks for whose ask is this action.
    fn what(&self, action: Action) -> Option<What> {
        let node = |name: &str| self.machines[name].0;
        Some(match action {
            Action::CancelTask => What::CancelTask { task: self.task("cancel_task").id },
            Action::Adopt => What::AdoptMachine { mac: MacAddr([2, 0, 0, 0, 9, 9]) },
            Action::MakePending => What::RetryTask { task: self.task("make_pending").id },
            Action::EditNodeDetails => rename(node("edit_node_details"), "till-1"),
            Action::EditWorkflow => {
                let edit = NodeEdit { workflow: Some(Some(self.debian)), ..NodeEdit::default() };
                What::EditNode { node: node("edit_workflow"), edit }
            }
            Action::SetWanted => want(node("set_wanted"), Wanted::Reprovision),
            Action::CreateTask => install(node("create_task"), self.debian),
            Action::ApproveTask => What::JudgeTask { task: self.task("approve_task").id, approved: true },
            Action::AbortAttempt => What::AbortTask { task: self.task("abort_attempt").id },
            Action::LocalDhcp => What::SwitchPxe { enabled: Some(false) },
            // Not asked for by anybody: machines boot and report. Consents to claims stand in `migration`.
            Action::ServeKnown | Action::RecordFact | Action::ConsentToClaim => return None,
        })
    }
}

#[test]
fn p5_every_action_at_every_level_is_done_or_queued_as_the_table_says_whatever_the_link_is() {
    let table = include_str!("../../fixtures/policies/autonomy.txt");
    let mut rows = table.lines().filter(|line| !line.starts_with('#'));
    let levels: Vec<&str> = rows.next().expect("a header").split('|').skip(1).map(str::trim).collect();
    let expected: BTreeMap<&str, Vec<&str>> = rows
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .map(|cells| (cells[0], cells[1..].to_vec()))
        .collect();
    let mut cells = 0;
    for (column, level) in levels.iter().enumerate() {
        for (number, link) in ["connected", "degraded", "offline"].into_iter().enumerate() {
            let seed = 500 + 10 * column as u64 + number as u64;
            let mut office = Office::new(seed, level.parse().unwrap());
            let lyon = office.lyon;
            match link {
                "connected" => {}
                "degraded" => office.world.set_weather(lyon, Weather { lost: 900, ..Weather::default() }),
                _ => office.world.set_link(lyon, false),
            }
            for action in Action::ALL {
                let Some(what) = office.what(*action) else { continue };
                let found = match asks(&mut office.world, lyon, what) {
                    Ok(Done::Queued(_)) => "queue".to_string(),
                    Ok(Done::Node(_) | Done::Task(_) | Done::Site(_) | Done::Claim(_)) => "allow".to_string(),
                    Err(error) => format!("error: {error}"),
                };
                assert_eq!(found, expected[action.as_str()][column], "{action} at {level}, {link}");
                cells += 1;
            }
            office.world.set_weather(lyon, Weather::default());
            office.world.set_link(lyon, true);
            office.world.until(
                "central has answered all of it, and both hold the same",
                MINUTE * 10,
                |world| {
                    world.in_agreement(lyon)
                        && proposals(world, Origin::Site(lyon))
                            .iter()
                            .all(|row| row.state != ProposalState::Open)
                },
            );
            let refused: Vec<_> = proposals(&office.world, Origin::Central)
                .into_iter()
                .filter(|row| row.state != ProposalState::Applied)
                .collect();
            assert_eq!(refused, [], "{level}, {link}");
            office.check();
        }
    }
    assert_eq!(cells, 10 * 3 * 3);
}

impl Office {
    /// Whoever did it, it is done by now, the same at both sides.
    fn check(&self) {
        for origin in [Origin::Central, Origin::Site(self.lyon)] {
            let is = |name: &str| node(&self.world, origin, self.machines[name].0);
            let task = |name: &str| task(&self.world, origin, &self.task(name));
            assert_eq!(is("edit_node_details").hostname, "till-1");
            assert_eq!(is("edit_workflow").workflow, Some(self.debian));
            assert_eq!(is("set_wanted").wanted, Wanted::Reprovision);
            assert_eq!(task("cancel_task").state, TaskState::Cancelled);
            assert_eq!((task("make_pending").state, task("make_pending").attempt), (TaskState::Pending, 2));
            assert_eq!(task("approve_task").state, TaskState::Approved);
            assert_eq!(task("abort_attempt").state, TaskState::Failed);
            let failed = node(&self.world, origin, self.machines["abort_attempt"].0);
            assert_eq!(failed.state, NodeState::InstallFailed);
            let filter = TaskFilter { node: Some(self.machines["create_task"].0), ..TaskFilter::default() };
            let created = read(&self.world, origin, |view| view.tasks(&filter));
            assert_eq!(created.iter().map(|row| row.created_by.as_str()).collect::<Vec<_>>(), ["bob"]);
            let adopted = node(&self.world, origin, NodeId::of(MacAddr([2, 0, 0, 0, 9, 9])));
            assert_eq!(adopted.home, Some(self.lyon));
            let lyon = read(&self.world, origin, |view| view.site(self.lyon)).expect("it is there");
            assert!(!lyon.answers_boots(), "{lyon:?}");
        }
    }
}

#[test]
fn p5_what_waits_is_answered_in_order_in_the_name_of_who_asked_and_falls_with_what_it_rests_on() {
    let mut world = World::new(541);
    let (lyon, bern) = (world.add_site("lyon"), world.add_site("bern"));
    let debian = publish(&mut world, "debian-12", false);
    let till = create(&mut world, lyon, 1);
    let gone = MacAddr([2, 0, 0, 0, 9, 1]);
    set(&mut world, lyon, Autonomy::ReadOnly);
    agree(&mut world, lyon);
    agree(&mut world, bern);
    world.set_link(lyon, false);
    // Meanwhile the machine turns up at bern, and central hears of that first.
    world.run(Origin::Central, "ann", move |tx| node::create(tx, gone, bern, "")).unwrap();

    let first = queued(&mut world, lyon, rename(till, "till-1"));
    let adopt = queued(&mut world, lyon, What::AdoptMachine { mac: gone });
    let again = queued(&mut world, lyon, What::AdoptMachine { mac: gone });
    assert_eq!(adopt.id, again.id, "one machine is asked for once");
    let named = queued(&mut world, lyon, rename(NodeId::of(gone), "till-9"));
    let ordered = queued(&mut world, lyon, install(NodeId::of(gone), debian));
    let second = queued(&mut world, lyon, rename(till, "till-2"));
    assert_eq!((named.rests_on, ordered.rests_on), (Some(adopt.id), Some(adopt.id)));
    assert_eq!(node(&world, Origin::Site(lyon), till).hostname, "pos-1", "nothing is done before");
    // What cannot be at all is said at once.
    let wrong = asks(&mut world, lyon, rename(till, "no such name")).unwrap_err();
    assert_eq!(wrong.to_string(), "`no such name` is no host name (RFC 1123 §2.1)");

    world.set_link(lyon, true);
    world.until("lyon knows how all of it ended", MINUTE * 3, |world| {
        world.in_agreement(lyon)
            && proposals(world, Origin::Site(lyon)).iter().all(|row| row.state != ProposalState::Open)
    });
    let mut told = String::new();
    for id in [first.id, adopt.id, named.id, ordered.id, second.id] {
        let row = read(&world, Origin::Site(lyon), |view| view.proposal(id)).expect("it is there");
        let end = row.outcome.expect("it has ended");
        told += &format!("{} {:?} by {}: {}\n", row.action, row.state, end.by, end.reason);
    }
    let told = told.replace(&bern.to_string(), "BERN").replace(&adopt.id.to_string(), "ADOPT");
    let told = told.replace(&NodeId::of(gone).to_string(), "GONE");
    expect_test::expect![[r#"
        edit_node Applied by central: done by central
        adopt_machine Refused by central: machine 02:00:00:00:09:01 is node GONE, at home at site BERN
        edit_node Refused by central: it rests on proposal ADOPT, which was refused
        create_task Refused by central: it rests on proposal ADOPT, which was refused
        edit_node Applied by central: done by central
    "#]]
    .assert_eq(&told);
    assert_eq!(node(&world, Origin::Central, till).hostname, "till-2");
    let written = events(&world, Origin::Site(lyon));
    let ended = written.iter().filter(|event| {
        matches!(event, Event::RegisterSet { kind, path, .. } if kind == "proposal" && path == "outcome")
    });
    assert_eq!(ended.count(), 5, "each end is in the journal of the site");
}

#[test]
fn p5_h5_what_central_did_for_a_proposal_and_forgot_is_known_again_and_not_done_twice() {
    let mut world = World::new(542);
    let lyon = world.add_site("lyon");
    let debian = publish(&mut world, "debian-12", false);
    let (till, other) = (create(&mut world, lyon, 1), create(&mut world, lyon, 2));
    agree(&mut world, lyon);
    keep(&mut world, Origin::Central);
    agree(&mut world, lyon);
    let wanted = queued(&mut world, lyon, want(till, Wanted::Reprovision));
    let created = queued(&mut world, lyon, install(other, debian));
    world.until("both are answered", MINUTE, |world| {
        proposals(world, Origin::Site(lyon)).iter().all(|row| row.state == ProposalState::Applied)
    });
    agree(&mut world, lyon);
    // And then somebody decides otherwise.
    let keep_it = NodeEdit { wanted: Some(Wanted::Keep), ..NodeEdit::default() };
    world.run(Origin::Central, "ann", move |tx| node::edit(tx, till, &keep_it)).unwrap();
    agree(&mut world, lyon);
    restore(&mut world, Origin::Central, Back::Database);
    assert_eq!(proposals(&world, Origin::Central), [], "central has forgotten all of it");
    world.until("lyon has given back what it has", MINUTE * 3, |world| world.in_agreement(lyon));
    end_recovery(&mut world, true);
    agree(&mut world, lyon);
    for origin in [Origin::Central, Origin::Site(lyon)] {
        assert_eq!(node(&world, origin, till).wanted, Wanted::Keep, "{origin}: the later word stands");
        let filter = TaskFilter { node: Some(other), ..TaskFilter::default() };
        assert_eq!(read(&world, origin, |view| view.tasks(&filter)).len(), 1, "{origin}");
        let ended = proposals(&world, origin);
        assert!(ended.iter().all(|row| row.state == ProposalState::Applied), "{origin}: {ended:?}");
        assert_eq!(ended.len(), 2, "{wanted:?} {created:?}");
    }
}

#[test]
fn p5_h5_a_site_that_went_back_in_time_asks_for_nothing_twice() {
    let mut world = World::new(543);
    let lyon = world.add_site("lyon");
    let debian = publish(&mut world, "debian-12", false);
    let till = create(&mut world, lyon, 1);
    agree(&mut world, lyon);
    world.set_link(lyon, false);
    queued(&mut world, lyon, install(till, debian));
    keep(&mut world, Origin::Site(lyon));
    world.set_link(lyon, true);
    world.until("it is answered", MINUTE * 2, |world| {
        proposals(world, Origin::Site(lyon)).iter().all(|row| row.state == ProposalState::Applied)
    });
    agree(&mut world, lyon);
    restore(&mut world, Origin::Site(lyon), Back::Database);
    assert_eq!(proposals(&world, Origin::Site(lyon))[0].state, ProposalState::Open, "it has forgotten");
    agree(&mut world, lyon);
    for origin in [Origin::Central, Origin::Site(lyon)] {
        let ended = proposals(&world, origin);
        assert!(matches!(&ended[..], [row] if row.state == ProposalState::Applied), "{origin}: {ended:?}");
        let filter = TaskFilter { node: Some(till), ..TaskFilter::default() };
        assert_eq!(read(&world, origin, |view| view.tasks(&filter)).len(), 1, "{origin}");
    }
}

#[test]
fn p5_h5_while_central_recovers_proposals_wait_and_are_then_answered_in_order() {
    let mut world = World::new(544);
    let lyon = world.add_site("lyon");
    let till = create(&mut world, lyon, 1);
    agree(&mut world, lyon);
    keep(&mut world, Origin::Central);
    agree(&mut world, lyon);
    world.set_link(lyon, false);
    let rows =
        [want(till, Wanted::Reprovision), want(till, Wanted::Keep)].map(|it| queued(&mut world, lyon, it));
    restore(&mut world, Origin::Central, Back::Database);
    world.set_link(lyon, true);
    agree(&mut world, lyon);
    assert!(proposals(&world, Origin::Central).iter().all(|row| row.state == ProposalState::Open));
    let id = rows[0].id;
    let early = world.run(Origin::Central, "ann", move |tx| proposal::apply(tx, id, "now")).unwrap_err();
    assert!(matches!(early, StoreError::Recovering(_)), "{early}");
    end_recovery(&mut world, true);
    agree(&mut world, lyon);
    let ended = proposals(&world, Origin::Central);
    assert!(ended.iter().all(|row| row.state == ProposalState::Applied), "{ended:?}");
    assert_eq!(node(&world, Origin::Site(lyon), till).wanted, Wanted::Keep, "the later one came later");
}

#[test]
fn p5_h5_a_proposal_is_answered_although_both_databases_have_gone_back_to_before_its_entry() {
    let mut world = World::new(551);
    let lyon = world.add_site("lyon");
    let till = create(&mut world, lyon, 1);
    agree(&mut world, lyon);
    for origin in [Origin::Central, Origin::Site(lyon)] {
        keep(&mut world, origin);
    }
    agree(&mut world, lyon);
    restore(&mut world, Origin::Central, Back::Database);
    agree(&mut world, lyon);
    let asked = queued(&mut world, lyon, want(till, Wanted::Reprovision));
    agree(&mut world, lyon);
    // Lyon gets the proposal back from central, but not the entry of its own journal.
    restore(&mut world, Origin::Site(lyon), Back::Database);
    agree(&mut world, lyon);
    restore(&mut world, Origin::Central, Back::Database);
    agree(&mut world, lyon);
    end_recovery(&mut world, true);
    agree(&mut world, lyon);
    for origin in [Origin::Central, Origin::Site(lyon)] {
        let rows = proposals(&world, origin);
        assert_eq!(
            rows.iter().map(|row| (row.id, row.state)).collect::<Vec<_>>(),
            [(asked.id, ProposalState::Applied)]
        );
        assert_eq!(node(&world, origin, till).wanted, Wanted::Reprovision, "{origin}");
    }
}

#[test]
fn p5_h6_what_was_allowed_under_the_settings_of_then_is_taken_and_marked() {
    let mut world = World::new(545);
    let lyon = world.add_site("lyon");
    let till = create(&mut world, lyon, 1);
    set(&mut world, lyon, Autonomy::Full);
    agree(&mut world, lyon);
    world.set_link(lyon, false);
    set(&mut world, lyon, Autonomy::Limited);
    assert!(matches!(asks(&mut world, lyon, want(till, Wanted::Reprovision)), Ok(Done::Node(_))));
    assert!(matches!(asks(&mut world, lyon, rename(till, "till-1")), Ok(Done::Node(_))));
    world.set_link(lyon, true);
    agree(&mut world, lyon);
    assert_eq!(node(&world, Origin::Central, till).wanted, Wanted::Reprovision, "honest late work is taken");
    let marked: Vec<Event> = events(&world, Origin::Central)
        .into_iter()
        .filter(|event| matches!(event, Event::WorkUnderOlderEpoch { .. }))
        .collect();
    let [Event::WorkUnderOlderEpoch { site, document, paths, epoch, then, now, .. }] = &marked[..] else {
        panic!("one piece of work needed what the site has no more: {marked:?}");
    };
    assert_eq!((*site, *document, paths.as_slice()), (lyon, till.into(), &["wanted".to_string()][..]));
    assert_eq!((*epoch, then.as_str(), now.as_str()), (2, "full", "limited"));
    // It has heard of the newer settings: now the same is asked for.
    queued(&mut world, lyon, want(till, Wanted::Keep));
    agree(&mut world, lyon);
    assert_eq!(read(&world, Origin::Central, |view| view.quarantine()), []);
}

#[test]
fn h3_p5_a_failed_attempt_is_tried_again_under_a_new_order_and_no_more_than_so_often() {
    let mut world = World::new(546);
    let lyon = world.add_site("lyon");
    let debian = publish(&mut world, "debian-12", false);
    let till = create(&mut world, lyon, 1);
    let row = order(&mut world, till, debian).unwrap();
    agree(&mut world, lyon);
    world.set_link(lyon, false);
    makes_ready(&mut world, lyon);
    let what = What::RetryTask { task: row.id };
    let early = asks(&mut world, lyon, what.clone()).unwrap_err();
    assert!(early.to_string().ends_with("is ready, and only a failed one is tried again"), "{early}");
    for attempt in 1..=3 {
        assert_eq!(tells(&mut world, lyon, &row, attempt, Report::GoAhead), r#"200 {"answer":"go"}"#);
        let failed = Report::InstallFailed("no disk".into());
        assert_eq!(tells(&mut world, lyon, &row, attempt, failed), r#"200 {"state":"install_failed"}"#);
        let again = asks(&mut world, lyon, what.clone());
        if attempt == 3 {
            let why = again.unwrap_err().to_string();
            assert!(why.ends_with("had 3 of 3 attempts; look at why, and create another"), "{why}");
            break;
        }
        let Ok(Done::Task(again)) = again else { panic!("{again:?}") };
        assert_eq!((again.state, again.attempt), (TaskState::Pending, attempt + 1));
        // The machine of the attempt before says something late.
        let late = tells(&mut world, lyon, &row, attempt, Report::InstallComplete);
        assert!(late.starts_with("409") && late.contains("install_failed"), "{late}");
        makes_ready(&mut world, lyon);
    }
    world.set_link(lyon, true);
    agree(&mut world, lyon);
    let failed = task(&world, Origin::Central, &row);
    assert_eq!((failed.state, failed.attempt), (TaskState::Failed, 3));
    assert_eq!(read(&world, Origin::Central, |view| view.quarantine()), [], "a limited site may do so");
}

#[test]
fn h3_p5_an_attempt_that_central_gave_up_ends_at_the_site_and_its_machine_is_told() {
    let mut world = World::new(547);
    let lyon = world.add_site("lyon");
    let debian = publish(&mut world, "debian-12", false);
    let till = create(&mut world, lyon, 1);
    let row = order(&mut world, till, debian).unwrap();
    agree(&mut world, lyon);
    makes_ready(&mut world, lyon);
    tells(&mut world, lyon, &row, 1, Report::GoAhead);
    agree(&mut world, lyon);
    world.set_link(lyon, false);
    let id = row.id;
    world.run(Origin::Central, "ann", move |tx| task::abort(tx, id, "the rack burns")).unwrap();
    assert_eq!(task(&world, Origin::Central, &row).state, TaskState::Failed);
    let early = world.run(Origin::Central, "ann", move |tx| task::retry(tx, id, "at once")).unwrap_err();
    assert!(early.to_string().ends_with("has not said yet that attempt 1 has ended"), "{early}");
    // The site has not heard of it, and its machine goes on: what it finishes is finished.
    tells(&mut world, lyon, &row, 1, Report::InstallStarted);
    world.set_link(lyon, true);
    agree(&mut world, lyon);
    for origin in [Origin::Central, Origin::Site(lyon)] {
        assert_eq!(task(&world, origin, &row).state, TaskState::Failed);
        let till = node(&world, origin, till);
        let error = till.error.unwrap_or_default();
        assert_eq!(
            (till.state, error.as_str()),
            (NodeState::InstallFailed, "given up by ann: the rack burns")
        );
    }
    let late = tells(&mut world, lyon, &row, 1, Report::InstallStarted);
    assert!(late.starts_with("409"), "{late}");
}

#[test]
fn p5_a_readonly_site_asks_once_for_a_machine_that_boots_and_shows_what_became_of_it() {
    let mut world = World::new(548);
    let lyon = world.add_site("lyon");
    set(&mut world, lyon, Autonomy::ReadOnly);
    agree(&mut world, lyon);
    world.set_link(lyon, false);
    let mac = MacAddr([2, 0, 0, 0, 9, 3]);
    for _ in 0..3 {
        boots(&mut world, lyon, mac, None);
        world.pass(HOUR);
    }
    for noise in 0..200_u8 {
        boots(&mut world, lyon, MacAddr([6, 6, 6, 6, 6, noise]), None);
    }
    let asked = proposals(&world, Origin::Site(lyon));
    assert_eq!(asked.len(), 64, "one noisy host does not fill the desk");
    assert_eq!(asked[0].document, Some(NodeId::of(mac).into()));
    world.set_link(lyon, true);
    world.until("central has given it a home", MINUTE * 3, |world| {
        read(world, Origin::Site(lyon), |view| view.node_by_mac(mac))
            .is_some_and(|row| row.home == Some(lyon))
    });
}

#[test]
fn h3_p5_a_cut_off_readonly_site_completes_the_order_that_it_holds_and_installs_once() {
    let mut world = World::new(549);
    let lyon = world.add_site("lyon");
    let debian = publish(&mut world, "debian-12", false);
    let till = create(&mut world, lyon, 1);
    let row = order(&mut world, till, debian).unwrap();
    set(&mut world, lyon, Autonomy::ReadOnly);
    agree(&mut world, lyon);
    world.set_link(lyon, false);
    makes_ready(&mut world, lyon);
    assert_eq!(tells(&mut world, lyon, &row, 1, Report::GoAhead), r#"200 {"answer":"go"}"#);
    // It comes up from the network again in the middle, and before its last report went through.
    assert_eq!(tells(&mut world, lyon, &row, 1, Report::GoAhead), r#"200 {"answer":"resume"}"#);
    assert_eq!(tells(&mut world, lyon, &row, 1, Report::InstallComplete), r#"200 {"state":"installed"}"#);
    let once_more = tells(&mut world, lyon, &row, 1, Report::GoAhead);
    assert!(once_more.starts_with("409"), "the order is used up: {once_more}");
    assert_eq!(tells(&mut world, lyon, &row, 1, Report::InstallComplete), r#"200 {"state":"installed"}"#);
    queued(&mut world, lyon, install(till, debian));
    world.set_link(lyon, true);
    agree(&mut world, lyon);
    assert_eq!(task(&world, Origin::Central, &row).state, TaskState::Completed);
    assert_eq!(read(&world, Origin::Central, |view| view.quarantine()), []);
}

#[test]
fn h3_p5_silence_ends_an_attempt_where_the_machine_is_seen_and_a_cut_link_does_not() {
    let mut world = World::new(550);
    let lyon = world.add_site("lyon");
    let debian = publish(&mut world, "debian-12", false);
    let till = create(&mut world, lyon, 1);
    let row = order(&mut world, till, debian).unwrap();
    let short = SettingsEdit {
        install_timeout_s: Some(7_200),
        max_install_attempts: Some(1),
        ..SettingsEdit::default()
    };
    world.run(Origin::Central, "ann", move |tx| site::set(tx, lyon, &short, "")).unwrap();
    agree(&mut world, lyon);
    makes_ready(&mut world, lyon);
    tells(&mut world, lyon, &row, 1, Report::GoAhead);
    world.set_link(lyon, false);
    let ended = |world: &mut World, listened: Duration| {
        let ended = world.run(Origin::Site(lyon), "time-out", move |tx| task::end_silent(tx, lyon, listened));
        ended.expect("the site looks").len()
    };
    // Cut off for hours, and the machine goes on.
    for _ in 0..5 {
        world.pass(HOUR);
        tells(&mut world, lyon, &row, 1, Report::Progress(40));
        assert_eq!(ended(&mut world, HOUR * 9), 0);
    }
    world.pass(HOUR);
    assert_eq!(ended(&mut world, HOUR * 9), 0);
    world.pass(HOUR);
    assert_eq!(ended(&mut world, HOUR), 0, "the agent has not listened for so long");
    assert_eq!(ended(&mut world, HOUR * 9), 1);
    assert_eq!(ended(&mut world, HOUR * 9), 0, "once");
    let late = tells(&mut world, lyon, &row, 1, Report::InstallComplete);
    assert!(late.starts_with("409") && late.contains("has ended"), "{late}");
    let again = asks(&mut world, lyon, What::RetryTask { task: row.id }).unwrap_err();
    assert!(again.to_string().contains("had 1 of 1 attempts"), "{again}");
    world.set_link(lyon, true);
    agree(&mut world, lyon);
    let failed = node(&world, Origin::Central, till);
    assert_eq!(failed.state, NodeState::InstallFailed);
    assert!(failed.error.unwrap_or_default().starts_with("nothing was heard of the machine since"));
    assert_eq!(task(&world, Origin::Central, &row).state, TaskState::Failed);
}

#[test]
fn h3_p5_what_comes_late_twice_or_out_of_order_changes_nothing_and_hears_how_it_is() {
    let mut world = World::new(551);
    let lyon = world.add_site("lyon");
    let debian = publish(&mut world, "debian-12", false);
    let till = create(&mut world, lyon, 1);
    let row = order(&mut world, till, debian).unwrap();
    agree(&mut world, lyon);
    world.set_link(lyon, false);
    makes_ready(&mut world, lyon);
    tells(&mut world, lyon, &row, 1, Report::GoAhead);
    // The start was never reported; what follows from the end is written all the same.
    assert_eq!(tells(&mut world, lyon, &row, 1, Report::InstallComplete), r#"200 {"state":"installed"}"#);
    let entries = events(&world, Origin::Site(lyon)).len();
    let mac = node(&world, Origin::Site(lyon), till).macs[0];
    let late = tells(&mut world, lyon, &row, 1, Report::InstallStarted);
    assert!(late.starts_with("409") && late.contains(r#""state":"installed""#), "{late}");
    assert_eq!(tells(&mut world, lyon, &row, 1, Report::InstallComplete), r#"200 {"state":"installed"}"#);
    let answered = Answered {
        mac,
        answer: "local disk".into(),
        reason: "nothing is ordered for this machine".into(),
        adopt: false,
        booting: None,
        local_disk: true,
        claims: false,
    };
    world.run(Origin::Site(lyon), "boot", move |tx| boot::answered(tx, &answered)).unwrap();
    // The report of the end once more, after the machine has booted what was installed.
    assert_eq!(tells(&mut world, lyon, &row, 1, Report::InstallComplete), r#"200 {"state":"active"}"#);
    let other = tells(&mut world, lyon, &row, 2, Report::InstallStarted);
    assert!(other.starts_with("409") && other.contains(r#""state":"active""#), "{other}");
    assert_eq!(node(&world, Origin::Site(lyon), till).state, NodeState::Active);
    assert!(events(&world, Origin::Site(lyon)).len() > entries, "what was refused is in the journal");
}
