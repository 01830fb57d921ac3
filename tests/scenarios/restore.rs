//! Databases that go back in time, with and without saying so, and what becomes of what was done since.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use expect_test::expect;
use harness::world::World;
use store::{
    Ended, Stage, StoreError,
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        report::{self, Report},
        site::{self, SettingsEdit},
        task::{self, NewTask},
        workflow::{self, NewVersion},
    },
    view::{JournalFilter, NodeFilter, TaskRow},
};
use sync::{
    blob::Digest,
    document::workflow::Identity,
    id::{MacAddr, NodeId, Origin, ReportId, SiteId, WorkflowId},
    journal::Event,
    policy::{Autonomy, TaskState},
};

const MINUTE: Duration = Duration::from_secs(60);

/// How a replica's folder comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Back {
    /// The database alone, as `restore` and most people do it.
    Database,
    /// All of it, as a virtual machine is rolled back: nothing in it tells.
    Everything,
}

fn copy(from: &Path, to: &Path, back: Back) {
    fs::create_dir_all(to).expect("a folder");
    for file in fs::read_dir(from).expect("a folder").flatten().filter(|file| file.path().is_file()) {
        let name = file.file_name();
        if back == Back::Everything || name.to_string_lossy().starts_with("holdfast.db") {
            fs::copy(file.path(), to.join(name)).expect("a copy");
        }
    }
}

/// Stops a replica, puts its folder aside and starts it again.
pub(crate) fn keep(world: &mut World, origin: Origin) {
    world.crash(origin);
    let now = world.path(origin);
    copy(&now, &now.with_extension("kept"), Back::Everything);
    world.start(origin);
}

pub(crate) fn restore(world: &mut World, origin: Origin, back: Back) {
    world.crash(origin);
    let now = world.path(origin);
    for file in fs::read_dir(&now).expect("a folder").flatten() {
        if file.file_name().to_string_lossy().starts_with("holdfast.db") {
            fs::remove_file(file.path()).expect("removed");
        }
    }
    copy(&now.with_extension("kept"), &now, back);
    world.start(origin);
}

/// A machine boots at a site for the first time and is adopted.
pub(crate) fn adopt(world: &mut World, site: SiteId, last: u8) {
    let answered = Answered {
        mac: MacAddr([0x52, 0x54, 0, 0, 0, last]),
        answer: "local disk".into(),
        reason: "nothing is ordered for this machine".into(),
        adopt: true,
        booting: None,
        local_disk: true,
        claims: false,
    };
    world
        .run(Origin::Site(site), "boot", move |tx| boot::answered(tx, &answered))
        .expect("the boot is noted");
}

/// Host names, MAC addresses and homes of all machines, as one side knows them.
pub(crate) fn machines(world: &World, origin: Origin) -> Vec<String> {
    let rows = world.store(origin).read(|view| view.nodes(&NodeFilter::default())).expect("the store reads");
    let mut lines: Vec<String> =
        rows.iter().map(|row| format!("{} {} {}", row.macs[0], row.hostname, row.home.is_some())).collect();
    lines.sort();
    lines
}

/// What a site recorded, by what it says.
fn facts(world: &World, origin: Origin, site: SiteId) -> Vec<String> {
    let filter = JournalFilter { site: Some(site), limit: 10_000, ..JournalFilter::default() };
    let rows = world.store(origin).read(|view| view.journal(&filter)).expect("the store reads");
    rows.iter()
        .filter_map(|row| match &row.event {
            Some(Event::NodeDiscovered { mac, .. }) => Some(format!("discovered {mac}")),
            _ => None,
        })
        .collect()
}

fn check_site(back: Back, seed: u64) {
    let mut world = World::new(seed);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    let node = world
        .run(Origin::Central, "ann", move |tx| {
            node::create(tx, MacAddr([0x52, 0x54, 0, 0, 1, 1]), lyon, "pos-1")
        })
        .unwrap();
    adopt(&mut world, lyon, 1);
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    world.set_link(lyon, false);
    adopt(&mut world, lyon, 2);
    keep(&mut world, site);
    world.set_link(lyon, true);
    adopt(&mut world, lyon, 3);
    let rename = NodeEdit { hostname: Some("till-1".into()), ..NodeEdit::default() };
    world.run(Origin::Central, "ann", move |tx| node::edit(tx, node, &rename)).unwrap();
    world.until("both agree", MINUTE, |world| {
        world.in_agreement(lyon) && machines(world, Origin::Central).len() == 4
    });

    world.set_link(lyon, false);
    restore(&mut world, site, back);
    let before = world.store(site).incarnation();
    adopt(&mut world, lyon, 4);
    let rename = NodeEdit { hostname: Some("till-9".into()), ..NodeEdit::default() };
    world.run(Origin::Central, "ann", move |tx| node::edit(tx, node, &rename)).unwrap();
    world.set_link(lyon, true);
    world.until("both agree again", MINUTE * 3, |world| {
        machines(world, Origin::Central).len() == 5 && world.in_agreement(lyon)
    });
    assert_eq!(machines(&world, Origin::Central), machines(&world, site));
    assert!(machines(&world, site).iter().any(|line| line == "52:54:00:00:01:01 till-9 true"));
    // Each machine was discovered once, whatever happened to the site's database.
    let mut central = facts(&world, Origin::Central, lyon);
    central.sort();
    assert_eq!(central, [1, 2, 3, 4].map(|last| format!("discovered 52:54:00:00:00:0{last}")));
    // Another life, and no order is followed until somebody says so.
    assert_eq!(
        world.store(site).incarnation() == before,
        back == Back::Database,
        "told at the start, or found"
    );
    let why = world.store(site).read(|view| view.suspended()).unwrap();
    assert!(why.is_some_and(|why| why.contains("restored") || why.contains("went back in time")));
    world.run(site, "ann", |tx| tx.resume_orders()).unwrap();
    assert_eq!(world.store(site).read(|view| view.suspended()).unwrap(), None);
}

#[test]
fn h5_p15_a_restored_site_gets_back_what_it_had_told_and_keeps_what_it_did_since() {
    check_site(Back::Database, 7);
}

#[test]
fn h5_p15_a_site_that_was_rolled_back_without_being_told_is_found_out() {
    check_site(Back::Everything, 8);
}

#[test]
fn h5_p15_a_rolled_back_site_that_writes_the_same_document_again_keeps_both() {
    let mut world = World::new(12);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    let node = world
        .run(Origin::Central, "ann", move |tx| {
            node::create(tx, MacAddr([0x52, 0x54, 0, 0, 1, 1]), lyon, "pos-1")
        })
        .unwrap();
    let agrees = |world: &World| world.in_agreement(lyon);
    world.until("both agree", MINUTE, agrees);
    let tag = |world: &mut World, key: &str| {
        let edit = NodeEdit { tags: [(key.to_string(), Some("set".into()))].into(), ..NodeEdit::default() };
        world.run(site, "bob", move |tx| node::edit(tx, node, &edit)).unwrap();
    };
    keep(&mut world, site);
    tag(&mut world, "told");
    world.until("central has it", MINUTE, agrees);
    world.set_link(lyon, false);
    restore(&mut world, site, Back::Everything);
    // The same actor, the same number, another change; and one that follows it.
    tag(&mut world, "since");
    tag(&mut world, "later");
    world.set_link(lyon, true);
    world.until("both agree again", MINUTE * 30, agrees);
    let tags = |origin: Origin| {
        let row = world.store(origin).read(|view| view.node(node)).unwrap().unwrap();
        row.tags.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(tags(Origin::Central), ["later", "since", "told"]);
    assert_eq!(tags(Origin::Central), tags(site));
}

#[test]
fn p15_what_a_restored_central_records_before_its_sites_return_follows_what_they_lack() {
    let mut world = World::new(13);
    let lyon = world.add_site("lyon");
    let agrees = |world: &World| world.in_agreement(lyon);
    let create = |world: &mut World, last: u8| {
        let mac = MacAddr([0x52, 0x54, 0, 0, 1, last]);
        world.run(Origin::Central, "ann", move |tx| node::create(tx, mac, lyon, "")).unwrap()
    };
    world.until("both agree", MINUTE, agrees);
    // Told to nobody yet when the copy is made.
    world.set_link(lyon, false);
    create(&mut world, 1);
    keep(&mut world, Origin::Central);
    restore(&mut world, Origin::Central, Back::Database);
    create(&mut world, 2);
    world.set_link(lyon, true);
    world.until("both agree again", MINUTE * 3, agrees);
    assert_eq!(machines(&world, Origin::Central), machines(&world, Origin::Site(lyon)));
}

#[test]
fn h5_p15_a_site_that_was_rolled_back_while_central_was_restored_begins_another_life() {
    let mut world = World::new(14);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    let agrees = |world: &World| world.in_agreement(lyon);
    world.until("both agree", MINUTE, agrees);
    keep(&mut world, Origin::Central);
    keep(&mut world, site);
    world.until("both agree", MINUTE * 2, agrees);
    // Known machines boot: the journal grows, and no document.
    let boot = |world: &mut World, last: u8| {
        let answered = Answered {
            mac: MacAddr([0x52, 0x54, 0, 0, 0, last]),
            answer: "hold page".into(),
            reason: "the machine is unknown here".into(),
            adopt: false,
            booting: None,
            local_disk: false,
            claims: false,
        };
        world.run(site, "boot", move |tx| boot::answered(tx, &answered)).unwrap();
    };
    boot(&mut world, 1);
    boot(&mut world, 2);
    world.until("central has it", MINUTE, agrees);
    let before = world.store(site).incarnation();
    world.set_link(lyon, false);
    restore(&mut world, Origin::Central, Back::Database);
    world.set_link(lyon, true);
    world.until("both agree after the restore", MINUTE * 3, agrees);
    world.set_link(lyon, false);
    restore(&mut world, site, Back::Everything);
    boot(&mut world, 3);
    world.set_link(lyon, true);
    world.until("both agree again", MINUTE * 3, agrees);
    assert_ne!(world.store(site).incarnation(), before);
    let filter = JournalFilter { site: Some(lyon), ..JournalFilter::default() };
    let rows = world.store(Origin::Central).read(|view| view.journal(&filter)).unwrap();
    let boots = rows.iter().filter(|row| matches!(&row.event, Some(Event::BootAnswered { .. })));
    let mut seen: Vec<String> = boots.map(|row| format!("{:?}", row.event)).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "{seen:#?}");
}

/// Why a replica follows no orders, if so.
fn suspended(world: &World, origin: Origin) -> Option<String> {
    world.store(origin).read(|view| view.suspended()).expect("the store reads")
}

#[test]
fn p15_central_confirms_that_a_restored_site_follows_orders_and_only_in_that_life() {
    let mut world = World::new(11);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    let resume = |world: &mut World| {
        world.run(Origin::Central, "ann", move |tx| site::resume(tx, lyon, "looked at it"))
    };
    let early = resume(&mut world).unwrap_err().to_string();
    assert!(early.starts_with("site lyon has not connected yet"), "{early}");
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    keep(&mut world, site);
    adopt(&mut world, lyon, 1);
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));

    // Confirmed while the site is away in a life that central has not heard of: that life is not meant.
    world.set_link(lyon, false);
    restore(&mut world, site, Back::Database);
    resume(&mut world).unwrap();
    world.set_link(lyon, true);
    world.until("both agree again", MINUTE * 3, |world| world.in_agreement(lyon));
    assert!(suspended(&world, site).is_some());
    let told = world.store(Origin::Central).read(|view| view.peer(site)).unwrap().life;
    assert_eq!(told, Some(world.store(site).incarnation()), "central knows the new one now");

    resume(&mut world).unwrap();
    world.until("the site follows orders", MINUTE, |world| suspended(world, site).is_none());
    let filter = JournalFilter { site: Some(lyon), limit: 10_000, ..JournalFilter::default() };
    world.until("central has the entry", MINUTE, |world| {
        let rows = world.store(Origin::Central).read(|view| view.journal(&filter)).unwrap();
        let resumed = rows.iter().filter(|row| {
            matches!(&row.event, Some(Event::OrdersResumed { incarnation })
                if *incarnation == world.store(site).incarnation() && row.by == "ann")
        });
        resumed.count() == 1
    });

    // It was said of that life: the next one waits again, although the register is still there.
    restore(&mut world, site, Back::Database);
    world.until("both agree again", MINUTE * 3, |world| world.in_agreement(lyon));
    assert!(suspended(&world, site).is_some());
}

fn check_central(back: Back, seed: u64) {
    let mut world = World::new(seed);
    let (lyon, bern) = (world.add_site("lyon"), world.add_site("bern"));
    let create = |world: &mut World, site: SiteId, last: u8, name: &'static str| {
        let mac = MacAddr([0x52, 0x54, 0, 0, 1, last]);
        world.run(Origin::Central, "ann", move |tx| node::create(tx, mac, site, name)).unwrap()
    };
    create(&mut world, lyon, 1, "pos-1");
    adopt(&mut world, lyon, 1);
    let agree = |world: &World| world.in_agreement(lyon) && world.in_agreement(bern);
    world.until("all agree", MINUTE, agree);
    keep(&mut world, Origin::Central);
    create(&mut world, lyon, 2, "pos-2");
    create(&mut world, bern, 3, "pos-3");
    adopt(&mut world, bern, 2);
    world.until("all agree", MINUTE * 2, |world| agree(world) && machines(world, Origin::Central).len() == 5);
    let known = machines(&world, Origin::Central);

    for site in [lyon, bern] {
        world.set_link(site, false);
    }
    restore(&mut world, Origin::Central, back);
    assert_ne!(machines(&world, Origin::Central), known);
    adopt(&mut world, lyon, 4);
    for site in [lyon, bern] {
        world.set_link(site, true);
    }
    world.until("central has everything again", MINUTE * 5, |world| {
        machines(world, Origin::Central).len() == 6 && agree(world)
    });
    let now = machines(&world, Origin::Central);
    assert!(known.iter().all(|line| now.contains(line)), "{known:#?} {now:#?}");
    let mut found: Vec<String> =
        [lyon, bern].iter().flat_map(|site| facts(&world, Origin::Central, *site)).collect();
    found.sort();
    assert_eq!(found, [1, 2, 4].map(|last| format!("discovered 52:54:00:00:00:0{last}")));
    let why = world.store(Origin::Central).read(|view| view.suspended()).unwrap();
    assert!(why.is_some_and(|why| why.contains("restored") || why.contains("went back in time")));
}

#[test]
fn p15_a_restored_central_takes_back_from_its_sites_what_it_has_lost() {
    check_central(Back::Database, 9);
}

#[test]
fn p15_a_central_that_was_rolled_back_without_being_told_is_found_out_by_its_own_seal() {
    check_central(Back::Everything, 10);
}

/// What a site sees of a machine that asks for its go-ahead.
fn go_ahead(world: &mut World, site: SiteId, task: &TaskRow) -> String {
    let report = ReportId(world.random.bytes());
    go_ahead_as(world, site, task, report)
}

/// The same under the id of a report, which may have been answered before.
fn go_ahead_as(world: &mut World, site: SiteId, task: &TaskRow, report: ReportId) -> String {
    let (node, about) = (task.node, (task.id, 1));
    let ask = move |tx: &mut store::Tx<'_>| report::event(tx, site, report, node, about, &Report::GoAhead);
    let answer = world.run(Origin::Site(site), "machine", ask).expect("the report is taken");
    let said = answer.body["why"].as_str().or(answer.body["answer"].as_str());
    format!("{} {}", answer.status, said.unwrap_or_default())
}

pub(crate) fn publish(world: &mut World) -> WorkflowId {
    let text = |word: &str| word.to_string();
    let identity = Identity {
        name: text("debian-12"),
        os_family: text("debian"),
        arch: text("x86_64"),
        boot_method: text("kernel"),
    };
    let files = ["kernel", "initrd"].map(|role| (role.to_string(), (Digest::of(role.as_bytes()), 6)));
    let version = NewVersion { files: files.into(), kernel_args: String::new(), needs_approval: false };
    world.run(Origin::Central, "ann", move |tx| workflow::create(tx, &identity, &version)).unwrap().id
}

pub(crate) fn create(world: &mut World, site: SiteId, last: u8) -> NodeId {
    let mac = MacAddr([0x52, 0x54, 0, 0, 1, last]);
    let name = format!("pos-{last}");
    world.run(Origin::Central, "ann", move |tx| node::create(tx, mac, site, &name)).unwrap()
}

pub(crate) fn order(world: &mut World, node: NodeId, workflow: WorkflowId) -> Result<TaskRow, StoreError> {
    let new = NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
    world.run(Origin::Central, "ann", move |tx| task::create(tx, &new))
}

/// The journal of one replica, as facts.
pub(crate) fn events(world: &World, origin: Origin) -> Vec<Event> {
    let rows = world.store(origin).read(|view| view.journal(&JournalFilter::default()));
    rows.expect("the store reads").into_iter().filter_map(|row| row.event).collect()
}

/// How far the sites are that a recovering central waits for.
fn stages(world: &World) -> Vec<(String, Stage)> {
    let recovery = world.store(Origin::Central).read(|view| view.recovery()).expect("central reads");
    recovery.map(|it| it.sites.into_iter().map(|site| (site.name, site.stage)).collect()).unwrap_or_default()
}

pub(crate) fn end_recovery(world: &mut World, anyway: bool) -> Ended {
    world.run(Origin::Central, "ann", move |tx| tx.end_recovery("looked at it", anyway)).unwrap()
}

#[test]
fn p15_a_recovering_central_gives_no_order_settles_nothing_and_says_whom_it_waits_for() {
    let mut world = World::new(21);
    let (lyon, bern) = (world.add_site("lyon"), world.add_site("bern"));
    let workflow = publish(&mut world);
    let till = create(&mut world, lyon, 1);
    let agree = |world: &World| world.in_agreement(lyon) && world.in_agreement(bern);
    world.until("all agree", MINUTE, agree);
    keep(&mut world, Origin::Central);
    // Oslo is opened, and Lyon gets another setting, in the time that will be gone.
    let oslo = world.add_site("oslo");
    create(&mut world, oslo, 3);
    let full = SettingsEdit { autonomy: Some(Autonomy::Full), ..SettingsEdit::default() };
    world.run(Origin::Central, "ann", move |tx| site::set(tx, lyon, &full, "")).unwrap();
    world.until("all agree", MINUTE * 2, |world| agree(world) && world.in_agreement(oslo));

    for site in [lyon, bern, oslo] {
        world.set_link(site, false);
    }
    restore(&mut world, Origin::Central, Back::Database);
    assert_eq!(stages(&world), [("bern", Stage::Away), ("lyon", Stage::Away)].map(|it| (it.0.into(), it.1)));
    let refused = order(&mut world, till, workflow).unwrap_err();
    assert!(matches!(refused, StoreError::Recovering(_)), "{refused}");
    assert!(refused.to_string().contains("the database is not the one that ran here last"), "{refused}");
    // Nobody knows yet that Lyon follows the epoch that is made here again.
    let slow = SettingsEdit { heartbeat_s: Some(60), ..SettingsEdit::default() };
    world.run(Origin::Central, "ann", move |tx| site::set(tx, lyon, &slow, "")).unwrap();
    adopt(&mut world, lyon, 4);

    world.set_link(lyon, true);
    world.set_link(oslo, true);
    world.until("lyon and oslo are back", MINUTE * 3, |world| {
        world.in_agreement(lyon) && world.in_agreement(oslo)
    });
    let expected = [("bern", Stage::Away), ("lyon", Stage::Returned), ("oslo", Stage::Returned)];
    assert_eq!(stages(&world), expected.map(|it| (it.0.into(), it.1)));
    assert!(world.store(Origin::Site(lyon)).read(|view| view.central_recovers()).unwrap());
    // The machine that Lyon found has no home yet: the one that it has may still come back.
    let found = NodeId::of(MacAddr([0x52, 0x54, 0, 0, 0, 4]));
    let home = |world: &World, node| {
        world.store(Origin::Central).read(|view| view.node(node)).unwrap().and_then(|row| row.home)
    };
    assert_eq!(home(&world, found), None);
    assert!(matches!(order(&mut world, till, workflow), Err(StoreError::Recovering(_))));

    let Ended::Waits(missing) = end_recovery(&mut world, false) else { panic!("bern is away") };
    assert_eq!(missing.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["bern"]);
    let Ended::Over(without) = end_recovery(&mut world, true) else { panic!("it was wanted anyway") };
    assert_eq!(without.len(), 1);
    assert_eq!(end_recovery(&mut world, false), Ended::WasNot);
    let noted = events(&world, Origin::Central).into_iter().find_map(|event| match event {
        Event::RecoveryEnded { why, without, .. } => Some((why, without)),
        _ => None,
    });
    assert_eq!(noted, Some(("looked at it".into(), vec![bern])));
    assert_eq!(home(&world, found), Some(lyon));
    let task = order(&mut world, till, workflow).expect("orders are given again");
    world.until("lyon and oslo agree", MINUTE * 2, |world| {
        world.in_agreement(lyon) && world.in_agreement(oslo)
    });
    // One epoch above both that two lives of central had made.
    let here = world.store(Origin::Site(lyon)).read(|view| view.site(lyon)).unwrap().unwrap();
    let there = world.store(Origin::Central).read(|view| view.site(lyon)).unwrap().unwrap();
    assert_eq!((here.effective.epoch, &here), (3, &there));
    let decided = (here.effective.autonomy, here.effective.heartbeat_s);
    assert_eq!(decided, (Autonomy::Full, 60), "what both lives decided holds");
    assert!(events(&world, Origin::Site(lyon)).contains(&Event::EpochAdopted { epoch: 3 }));
    assert_eq!(go_ahead(&mut world, lyon, &task), "200 go");

    // What comes after the end is taken all the same.
    world.set_link(bern, true);
    world.until("bern is back", MINUTE * 3, |world| world.in_agreement(bern));
    assert!(!world.store(Origin::Site(bern)).read(|view| view.central_recovers()).unwrap());
}

#[test]
fn h3_p15_a_go_ahead_that_was_given_before_a_restore_is_kept_back_until_somebody_confirms() {
    // The backup has the answer; or it is of before, and central tells that the order was consumed.
    for has_answer in [true, false] {
        let mut world = World::new(23);
        let lyon = world.add_site("lyon");
        let site = Origin::Site(lyon);
        let workflow = publish(&mut world);
        let node = create(&mut world, lyon, 1);
        let task = order(&mut world, node, workflow).unwrap();
        world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
        let report = ReportId([7; 16]);
        if !has_answer {
            keep(&mut world, site);
        }
        assert_eq!(go_ahead_as(&mut world, lyon, &task, report), "200 go");
        world.until("both agree", MINUTE * 2, |world| world.in_agreement(lyon));
        if has_answer {
            keep(&mut world, site);
        }
        restore(&mut world, site, Back::Database);
        world.until("both agree", MINUTE * 2, |world| world.in_agreement(lyon));
        // The machine never got its answer and asks again.
        let said = go_ahead_as(&mut world, lyon, &task, report);
        assert!(said.starts_with("202 this site follows no orders at the moment: "), "{has_answer}: {said}");
        world.run(site, "bob", |tx| tx.resume_orders()).expect("somebody confirms");
        assert_eq!(go_ahead_as(&mut world, lyon, &task, report), "200 go", "{has_answer}");
    }
}

#[test]
fn h3_p15_an_order_that_was_withdrawn_in_the_time_that_is_gone_is_not_live_again_before_somebody_says_so() {
    let mut world = World::new(22);
    let lyon = world.add_site("lyon");
    let workflow = publish(&mut world);
    let [first, second] = [1, 2].map(|last| create(&mut world, lyon, last));
    let held = order(&mut world, first, workflow).unwrap();
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    // The site is away when the second order is given, and when it is withdrawn.
    world.set_link(lyon, false);
    let withdrawn = order(&mut world, second, workflow).unwrap();
    keep(&mut world, Origin::Central);
    let id = withdrawn.id;
    world.run(Origin::Central, "ann", move |tx| task::cancel(tx, id, "a mistake")).unwrap();
    restore(&mut world, Origin::Central, Back::Database);
    world.set_link(lyon, true);
    world.until("both agree", MINUTE * 3, |world| world.in_agreement(lyon));

    let at_site = world.store(Origin::Site(lyon)).read(|view| view.task(id)).unwrap().expect("it is told");
    assert!(!at_site.cancelled, "nobody remembers that");
    let ready = world.run(Origin::Site(lyon), "cache", move |tx| task::mark_ready(tx, lyon, |_| true));
    assert_eq!(ready.unwrap().len(), 2);
    expect![[r#"409 this site follows no orders at the moment: central was restored, and this order arrived before anybody ended its recovery"#]]
        .assert_eq(&go_ahead(&mut world, lyon, &withdrawn));
    // What the site had before is followed: central's recovery is not the office's trouble.
    assert_eq!(go_ahead(&mut world, lyon, &held), "200 go");

    // Somebody looks at what central believes, withdraws it again, and ends the recovery.
    world.run(Origin::Central, "ann", move |tx| task::cancel(tx, id, "a mistake")).unwrap();
    assert_eq!(end_recovery(&mut world, false), Ended::Over(vec![]));
    world.until("the site knows", MINUTE, |world| {
        !world.store(Origin::Site(lyon)).read(|view| view.central_recovers()).unwrap()
    });
    assert_eq!(go_ahead(&mut world, lyon, &withdrawn), "409 the task was cancelled");
}

#[test]
fn h3_p15_a_site_whose_clock_starts_in_1970_follows_its_orders_and_revives_none_that_has_ended() {
    let mut world = World::new(23);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    let workflow = publish(&mut world);
    let short = SettingsEdit { order_max_s: Some(7_200), ..SettingsEdit::default() };
    world.run(Origin::Central, "ann", move |tx| site::set(tx, lyon, &short, "")).unwrap();
    let [first, second, third] = [1, 2, 3].map(|last| create(&mut world, lyon, last));
    let [first, second] = [first, second].map(|node| order(&mut world, node, workflow).unwrap());
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    let life = world.store(site).incarnation();

    // The power goes, with the link, and the machine has no battery.
    world.set_link(lyon, false);
    let to_1970 = |world: &World| -(i64::try_from(world.wall().as_ms()).expect("milliseconds"));
    for _ in 0..3 {
        world.crash(site);
        let skew = to_1970(&world);
        world.set_clock(site, skew);
        world.start(site);
        assert_eq!(suspended(&world, site), None, "a clock is no sign of an old database");
        world.pass(MINUTE);
    }
    assert_eq!(world.store(site).incarnation(), life);
    assert_eq!(go_ahead(&mut world, lyon, &first), "200 go");

    // The clock is set, and the second order ends while the office is still cut off.
    world.set_clock(site, 0);
    world.pass(MINUTE * 120);
    adopt(&mut world, lyon, 1);
    let ended = go_ahead(&mut world, lyon, &second);
    assert!(ended.starts_with("409 the order ends at"), "{ended}");
    // With the next power cut the clock is lost again, and what has ended has ended.
    world.crash(site);
    let skew = to_1970(&world);
    world.set_clock(site, skew);
    world.start(site);
    assert_eq!(go_ahead(&mut world, lyon, &second), ended);
    assert_eq!(suspended(&world, site), None);

    // A clock that ran ahead for a day spoils orders until central says what time it is.
    world.set_clock(site, 86_400_000);
    adopt(&mut world, lyon, 2);
    world.set_clock(site, 0);
    world.set_link(lyon, true);
    let third = order(&mut world, third, workflow).unwrap();
    world.until("both agree", MINUTE * 3, |world| world.in_agreement(lyon));
    assert_eq!(go_ahead(&mut world, lyon, &third), "200 go");
}

/// Takes the site, central, or both back in time, with or without telling, `times` in a row, cut off meanwhile
/// or not, and says what must hold in the end.
fn check_matrix(site_back: Option<Back>, central_back: Option<Back>, is_cut: bool, times: u8, seed: u64) {
    let label = format!("site {site_back:?}, central {central_back:?}, cut {is_cut}, {times} times");
    println!("{label}");
    let mut world = World::new(seed);
    let (lyon, bern) = (world.add_site("lyon"), world.add_site("bern"));
    let site = Origin::Site(lyon);
    let workflow = publish(&mut world);
    let agree = |world: &World| world.in_agreement(lyon) && world.in_agreement(bern);
    create(&mut world, lyon, 1);
    adopt(&mut world, lyon, 1);
    world.until("all agree", MINUTE, agree);
    // Yesterday, at the same moment everywhere.
    for origin in [site, Origin::Central] {
        world.crash(origin);
        let now = world.path(origin);
        copy(&now, &now.with_extension("kept"), Back::Everything);
    }
    for origin in [Origin::Central, site] {
        world.start(origin);
    }
    // Today.
    let installed = create(&mut world, lyon, 2);
    let task = order(&mut world, installed, workflow).unwrap();
    create(&mut world, bern, 3);
    adopt(&mut world, lyon, 2);
    adopt(&mut world, bern, 3);
    world.until("all agree", MINUTE * 2, |world| agree(world) && machines(world, Origin::Central).len() == 6);
    world.run(site, "cache", move |tx| task::mark_ready(tx, lyon, |_| true)).unwrap();
    assert_eq!(go_ahead(&mut world, lyon, &task), "200 go");
    world.until("all agree", MINUTE * 2, agree);
    let known = machines(&world, Origin::Central);
    let kept_by_bern = machines(&world, Origin::Site(bern));

    for round in 0..times {
        if is_cut {
            for site in [lyon, bern] {
                world.set_link(site, false);
            }
        }
        for (origin, back) in [(site, site_back), (Origin::Central, central_back)] {
            if let Some(back) = back {
                restore(&mut world, origin, back);
            }
        }
        adopt(&mut world, lyon, 10 + round);
        adopt(&mut world, bern, 20 + round);
        if is_cut {
            for site in [lyon, bern] {
                world.set_link(site, true);
            }
        }
        if !world.comes_to(MINUTE * 5, agree) {
            for origin in [Origin::Central, site, Origin::Site(bern)] {
                let notices = &world.replica(origin).notices;
                let last = notices.iter().skip(notices.len().saturating_sub(12));
                println!("{}: {:#?}", world.name(origin), last.collect::<Vec<_>>());
            }
            panic!("{label}: all agree again, round {round}");
        }
    }

    let told = |back: Option<Back>| back == Some(Back::Database);
    let now = machines(&world, Origin::Central);
    let (must, both) = match (site_back, central_back) {
        (Some(_), Some(_)) => (&kept_by_bern, true),
        _ => (&known, false),
    };
    // A machine that was adopted while central recovers has no home yet.
    let without_home = |lines: &[String]| -> Vec<String> {
        lines.iter().map(|line| line.rsplit_once(' ').expect("words").0.to_string()).collect()
    };
    let (now, must) = (without_home(&now), without_home(must));
    for line in &must {
        assert!(now.contains(line), "{label}: {line} is lost: {now:#?}");
    }
    // Nothing twice, nothing that one side only has.
    for (whose, expected) in [(lyon, 10), (bern, 20)] {
        let mut found = facts(&world, Origin::Central, whose);
        let all = found.len();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), all, "{label}: a machine was discovered twice");
        for round in 0..times {
            // What was done after one way back is lost by the next where both sides went.
            if !both || round + 1 == times || whose == bern {
                let mac = format!("discovered 52:54:00:00:00:{:02x}", expected + round);
                assert!(found.contains(&mac), "{label}: {mac} is lost: {found:#?}");
            }
        }
    }
    // The order that was used up stays used up, wherever somebody still knows of it.
    if !both {
        let shown = world.store(site).read(|view| view.task(task.id)).unwrap().expect("it is back");
        assert_eq!(shown.state, TaskState::Installing, "{label}");
        assert_ne!(go_ahead(&mut world, lyon, &task), "200 go", "{label}: given twice");
    }
    // Who was told, or found out, waits for a word. Two that went back together without being told look as if
    // nothing had happened: the site is where central believes it to be.
    assert_eq!(suspended(&world, site).is_some(), told(site_back) || site_back.is_some() && !both, "{label}");
    let recovers = suspended(&world, Origin::Central).is_some();
    assert_eq!(recovers, central_back.is_some(), "{label}");
    if recovers {
        assert!(
            matches!(end_recovery(&mut world, false), Ended::Over(missing) if missing.is_empty()),
            "{label}"
        );
    }
    world.run(Origin::Central, "ann", move |tx| site::resume(tx, lyon, "looked at it")).unwrap();
    world.until("the site follows orders", MINUTE * 2, |world| {
        suspended(world, site).is_none() && agree(world) && suspended(world, Origin::Central).is_none()
    });
    let fresh = create(&mut world, lyon, 9);
    // Both may have gone back, and with them the workflow that only Lyon was told of.
    let workflow = workflow_of(&world).unwrap_or(workflow);
    let task = order(&mut world, fresh, workflow).expect("orders are given");
    world.until("the order arrives", MINUTE, |world| {
        world.store(site).read(|view| view.task(task.id)).unwrap().is_some()
    });
    assert_eq!(go_ahead(&mut world, lyon, &task), "200 go", "{label}");
    assert!(
        world
            .store(Origin::Central)
            .read(|view| view.nodes(&NodeFilter::default()))
            .unwrap()
            .iter()
            .all(|row| row.home.is_some()),
        "{label}: homes are given when the recovery is over"
    );
}

fn workflow_of(world: &World) -> Option<WorkflowId> {
    let rows = world.store(Origin::Central).read(|view| view.workflows()).expect("central reads");
    rows.first().map(|row| row.id)
}

fn check_all(site_back: Option<Back>, central_back: Option<Back>, seed: u64) {
    for (number, (is_cut, times)) in [(true, 1), (false, 1), (true, 2), (false, 2)].into_iter().enumerate() {
        check_matrix(site_back, central_back, is_cut, times, seed + number as u64);
    }
}

const TOLD: Option<Back> = Some(Back::Database);
const UNTOLD: Option<Back> = Some(Back::Everything);

#[test]
fn h5_p15_a_site_goes_back_told_or_not_cut_off_or_not_and_again() {
    check_all(TOLD, None, 100);
    check_all(UNTOLD, None, 110);
}

#[test]
fn p15_central_goes_back_told_or_not_cut_off_or_not_and_again() {
    check_all(None, TOLD, 120);
    check_all(None, UNTOLD, 130);
}

#[test]
fn p15_site_and_central_go_back_together() {
    check_all(TOLD, TOLD, 140);
    check_all(UNTOLD, TOLD, 150);
    check_all(TOLD, UNTOLD, 160);
    check_all(UNTOLD, UNTOLD, 170);
}

#[test]
fn h5_p15_a_compacted_document_goes_back_to_a_restored_central_with_its_seals() {
    let mut world = World::new(77);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    let mac = MacAddr([0x52, 0x54, 0, 0, 1, 1]);
    let node =
        world.run(Origin::Central, "ann", move |tx| node::create(tx, mac, lyon, "pos-1")).expect("created");
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    keep(&mut world, Origin::Central);
    // More than follows a snapshot: both sides compact the document in the middle of it.
    for number in 0..100 {
        let rename = NodeEdit { hostname: Some(format!("till-{number}")), ..NodeEdit::default() };
        world.run(Origin::Central, "ann", move |tx| node::edit(tx, node, &rename)).expect("renamed");
    }
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    for origin in [Origin::Central, site] {
        let compacted = world.eye(origin).compacted(node.into()).expect("the database is read");
        assert!(compacted >= 64, "{compacted} changes at {origin} are in a snapshot");
    }

    world.set_link(lyon, false);
    restore(&mut world, Origin::Central, Back::Database);
    assert_eq!(machines(&world, Origin::Central), ["52:54:00:00:01:01 pos-1 true"]);
    world.set_link(lyon, true);
    world.until("both agree again", MINUTE * 3, |world| {
        world.in_agreement(lyon) && machines(world, Origin::Central) == machines(world, site)
    });
    // A site may not write what central wrote: only the seals let it through.
    assert_eq!(machines(&world, Origin::Central), ["52:54:00:00:01:01 till-99 true"]);
    assert_eq!(world.eye(Origin::Central).quarantined().expect("a number"), 0);
    // The derived tables are what the documents say, at both.
    for origin in [Origin::Central, site] {
        let before = world.eye(origin).derived().expect("derived rows");
        world.run(origin, "ann", |tx| tx.rebuild_views()).expect("rebuilt");
        assert_eq!(world.eye(origin).derived().expect("derived rows"), before);
    }
}
