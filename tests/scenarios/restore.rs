//! Databases that go back in time, with and without saying so, and what becomes of what was done since.

use std::{fs, path::Path, time::Duration};

use harness::world::World;
use store::{
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        site,
    },
    view::{JournalFilter, NodeFilter},
};
use sync::id::{MacAddr, Origin, SiteId};

const MINUTE: Duration = Duration::from_secs(60);

/// How a replica's folder comes back.
#[derive(Clone, Copy, PartialEq)]
enum Back {
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
fn keep(world: &mut World, origin: Origin) {
    world.crash(origin);
    let now = world.path(origin);
    copy(&now, &now.with_extension("kept"), Back::Everything);
    world.start(origin);
}

fn restore(world: &mut World, origin: Origin, back: Back) {
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
fn adopt(world: &mut World, site: SiteId, last: u8) {
    let answered = Answered {
        mac: MacAddr([0x52, 0x54, 0, 0, 0, last]),
        answer: "local disk".into(),
        reason: "nothing is ordered for this machine".into(),
        adopt: true,
        booting: None,
        local_disk: true,
    };
    world
        .run(Origin::Site(site), "boot", move |tx| boot::answered(tx, &answered))
        .expect("the boot is noted");
}

/// Host names, MAC addresses and homes of all machines, as one side knows them.
fn machines(world: &World, origin: Origin) -> Vec<String> {
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
            Some(sync::journal::Event::NodeDiscovered { mac, .. }) => Some(format!("discovered {mac}")),
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
            matches!(&row.event, Some(sync::journal::Event::OrdersResumed { incarnation })
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
