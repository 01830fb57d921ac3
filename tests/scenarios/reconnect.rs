//! What a reconnect costs when nothing has changed.

use std::time::Duration;

use harness::world::World;
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
    // A greeting and its answer, which says that both agree; then the first heartbeat each way.
    expect_test::expect!["4 frames, 275 bytes"]
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
