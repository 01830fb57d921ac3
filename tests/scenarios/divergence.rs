//! A replica that is not what it should be is noticed, shown and mended.

use std::time::Duration;

use harness::world::World;
use store::view::{JournalFilter, JournalRow};
use sync::{id::Origin, journal::Event};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn h5_one_corrupted_head_shows_as_diverged_and_is_mended() {
    let mut world = World::new(5);
    let lyon = world.add_site("lyon");
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    world.crash(Origin::Site(lyon));
    let database = world.path(Origin::Site(lyon)).join("holdfast.db");
    harness::damage::flip_a_head(&database).expect("a head is stored");
    world.start(Origin::Site(lyon));
    world.until("both find out and mend it", MINUTE, |world| {
        let notices = &world.replica(Origin::Site(lyon)).notices;
        notices.iter().any(|notice| notice == "agrees: false")
            && notices.last().is_some_and(|notice| notice == "agrees: true")
            && world.in_agreement(lyon)
    });
    let all = JournalFilter { limit: 1_000, ..JournalFilter::default() };
    let entries = world.store(Origin::Central).read(|view| view.journal(&all)).unwrap();
    let diverged = |row: &JournalRow| matches!(row.event, Some(Event::ReplicaDiverged { .. }));
    assert!(entries.iter().any(diverged), "that they differed is a fact of central's journal");
}
