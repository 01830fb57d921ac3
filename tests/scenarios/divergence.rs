//! A replica that is not what it should be is noticed and shown.

use std::time::Duration;

use harness::world::World;
use sync::id::Origin;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn h5_one_corrupted_head_shows_as_diverged() {
    let mut world = World::new(5);
    let lyon = world.add_site("lyon");
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    world.crash(Origin::Site(lyon));
    let database = world.path(Origin::Site(lyon)).join("holdfast.db");
    harness::damage::flip_a_head(&database).expect("a head is stored");
    world.start(Origin::Site(lyon));
    world.until("central notices", MINUTE, |world| {
        let peer = world.store(Origin::Central).read(|view| view.peer(Origin::Site(lyon))).unwrap();
        peer.agrees == Some(false)
    });
}
