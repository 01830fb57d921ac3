//! What it costs two replicas to come together again, in bytes, round trips and documents read.

use std::time::Duration;

use harness::{
    fleet,
    world::{Ending, World},
};
use store::{
    command::node,
    view::{JournalFilter, JournalRow},
};
use sync::{
    id::{MacAddr, Origin},
    journal::Event,
};

#[test]
fn h5_a_thousand_documents_reconnect_in_one_round_trip() {
    let mut world = World::new(6);
    let lyon = world.add_site("lyon");
    for number in 0..1_000_u16 {
        let [high, low] = number.to_be_bytes();
        let mac = MacAddr([0x52, 0x54, 0, 9, high, low]);
        world
            .run(Origin::Central, "ann", move |tx| node::create(tx, mac, lyon, &format!("pos-{number}")))
            .expect("central registers a machine");
    }
    world.until("both agree", Duration::from_secs(120), |world| world.in_agreement(lyon));
    world.set_link(lyon, false);
    world.pass(Duration::from_secs(60));
    (world.frames, world.bytes) = (0, 0);
    world.set_link(lyon, true);
    let seen = world.replica(Origin::Site(lyon)).notices.len();
    world.until("the site knows that both agree", Duration::from_secs(60), |world| {
        world.replica(Origin::Site(lyon)).notices[seen..].iter().any(|notice| notice == "agrees: true")
    });
    world.pass(Duration::from_millis(200));
    // A greeting and its answer, which says that both agree; then the first heartbeat each way.
    expect_test::expect!["4 frames, 279 bytes"]
        .assert_eq(&format!("{} frames, {} bytes", world.frames, world.bytes));
}

#[test]
fn h5_a_site_whose_first_greeting_was_answered_in_vain_just_greets_again() {
    let mut world = World::new(6);
    let lyon = world.add_site("lyon");
    // The greeting arrives, the answer is under way when the link is cut, and is never heard.
    world.pass(Duration::from_millis(50));
    world.set_link(lyon, false);
    world.pass(Duration::from_secs(60));
    let known = |world: &World, us, peer| world.store(us).read(|view| view.peer(peer)).expect("reads");
    assert!(known(&world, Origin::Central, Origin::Site(lyon)).heard_at.is_some(), "central was greeted");
    assert_eq!(known(&world, Origin::Site(lyon), Origin::Central).heard_at, None, "nobody answered");
    world.set_link(lyon, true);
    world.until("both agree", Duration::from_secs(60), |world| world.in_agreement(lyon));
    let all = JournalFilter { limit: 1_000, ..JournalFilter::default() };
    let entries = world.store(Origin::Central).read(|view| view.journal(&all)).unwrap();
    let joined = |row: &JournalRow| matches!(row.event, Some(Event::ReplicaJoined { .. }));
    assert!(!entries.iter().any(joined), "nothing was to be found out");
}

#[test]
fn p6_h5_a_thousand_machines_come_back_in_few_bytes_and_round_trips() {
    let mut world = World::new(21);
    let lyon = world.add_site("lyon");
    let machines = fleet::machines(1_000);
    fleet::fill(&mut world, lyon, &machines);

    let (unchanged, loaded) = fleet::reconnect(&mut world, lyon);
    assert!(unchanged.up <= 256 && unchanged.down <= 256, "{unchanged}");
    assert!(unchanged.round_trips <= 1.0, "{unchanged}");
    assert_eq!(loaded, 0, "heads and counts stand beside the documents");

    let by_log = fleet::catch_up(&mut world, lyon, &machines, "1", false);
    assert!(by_log.up + by_log.down <= 1_500, "{by_log}");
    assert!(by_log.round_trips <= 1.0, "{by_log}");

    let reconciled = fleet::catch_up(&mut world, lyon, &machines, "2", true);
    assert!(reconciled.up + reconciled.down <= 12_000, "{reconciled}");
    // The greeting with the first question, the second question, what is held.
    assert!(reconciled.round_trips <= 3.0, "{reconciled}");
    expect_test::expect!["213 B up, 1154 B down, 1.0 round trips; 2350 B up, 5391 B down, 3.0 round trips"]
        .assert_eq(&format!("{by_log}; {reconciled}"));

    // The disk of the site is replaced: everything comes back, also what the site wrote itself.
    let before = heads(&mut world, Origin::Site(lyon));
    world.set_link(lyon, false);
    world.end(Origin::Site(lyon), Ending::Stopped);
    std::fs::remove_dir_all(world.path(Origin::Site(lyon))).expect("the old disk goes");
    world.start(Origin::Site(lyon));
    let first = fleet::heal(&mut world, lyon, |world| world.in_agreement(lyon));
    assert_eq!(heads(&mut world, Origin::Site(lyon)), before);
    // The bar is 300 bytes a machine.
    expect_test::expect!["509 B up, 270949 B down, 12.2 round trips"].assert_eq(&first.to_string());
}

fn heads(world: &mut World, origin: Origin) -> Vec<(sync::id::DocumentId, Vec<u8>)> {
    world.eye(origin).held().expect("a list of documents")
}
