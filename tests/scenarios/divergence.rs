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

#[test]
fn p15_a_site_whose_folder_went_back_in_time_is_seen_on_both_sides() {
    let mut world = World::new(7);
    let lyon = world.add_site("lyon");
    let site = Origin::Site(lyon);
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    world.crash(site);
    let (now, before) = (world.path(site), world.path(site).with_extension("before"));
    std::fs::rename(&now, &before).expect("the folder is put aside");
    std::fs::create_dir(&now).expect("a folder for the copy");
    for file in std::fs::read_dir(&before).expect("a folder").flatten().filter(|file| file.path().is_file()) {
        std::fs::copy(file.path(), now.join(file.file_name())).expect("a copy");
    }
    world.start(site);
    world
        .run(site, "boot", |tx| {
            let answered = store::command::boot::Answered {
                mac: sync::id::MacAddr([0x52, 0x54, 0, 0, 0, 9]),
                answer: "local disk".into(),
                reason: "nothing is ordered for this machine".into(),
                adopt: true,
                booting: None,
                local_disk: true,
            };
            store::command::boot::answered(tx, &answered)
        })
        .expect("the boot is noted");
    world.until("central has heard of it", MINUTE, |world| world.in_agreement(lyon));
    world.crash(site);
    std::fs::remove_dir_all(&now).expect("the newer folder goes");
    std::fs::rename(&before, &now).expect("the older one is back");
    world.start(site);
    for (origin, peer) in [(Origin::Central, site), (site, Origin::Central)] {
        world.until("both sides show it", MINUTE, |world| {
            let peer = world.store(origin).read(|view| view.peer(peer)).expect("the store reads");
            peer.agrees == Some(false)
                && peer.refused.is_some_and(|why| why.contains("restored from a backup"))
        });
    }
}
