//! A site that brings more than its quota: it waits, nothing is lost, and nobody else waits with it.

use std::time::Duration;

use harness::world::World;
use store::{
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        site::{self, SettingsEdit},
    },
    view::{JournalFilter, NodeFilter},
};
use sync::{
    id::{MacAddr, NodeId, Origin, SiteId},
    journal::Event,
};

const MINUTE: Duration = Duration::from_secs(60);

fn mac(site: u8, number: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, site, number])
}

fn settings(world: &mut World, of: SiteId, edit: SettingsEdit) {
    world.run(Origin::Central, "ann", move |tx| site::set(tx, of, &edit, "quota").map(drop)).unwrap();
    world.until("the site follows", MINUTE, |world| world.in_agreement(of));
}

fn adopt(world: &mut World, at: SiteId, mac: MacAddr) -> NodeId {
    let (answer, reason) = ("the local disk".into(), "not known".into());
    let boot = Answered { mac, answer, reason, adopt: true, booting: None, local_disk: true, claims: false };
    world.run(Origin::Site(at), "boot", move |tx| boot::answered(tx, &boot)).unwrap().expect("a node")
}

fn name(world: &mut World, at: SiteId, node: NodeId, hostname: String) {
    let edit = NodeEdit { hostname: Some(hostname), ..NodeEdit::default() };
    world.run(Origin::Site(at), "ann", move |tx| node::edit(tx, node, &edit).map(drop)).unwrap();
}

fn name_at_central(world: &World, node: NodeId) -> String {
    let row = world.store(Origin::Central).read(|view| view.node(node)).unwrap();
    row.map(|row| row.hostname).unwrap_or_default()
}

fn quotas_reached(world: &World) -> usize {
    let filter = JournalFilter::default();
    let rows = world.store(Origin::Central).read(|view| view.journal(&filter)).unwrap();
    rows.iter().filter(|row| matches!(row.event, Some(Event::QuotaReached { .. }))).count()
}

#[test]
fn h6_a_site_that_floods_is_slowed_and_the_honest_one_does_not_notice() {
    let mut world = World::new(21);
    let (noisy, honest) = (world.add_site("noisy"), world.add_site("honest"));
    world.until("both agree", MINUTE, |world| world.in_agreement(noisy) && world.in_agreement(honest));
    settings(&mut world, noisy, SettingsEdit { quota_changes_s: Some(1), ..SettingsEdit::default() });
    let (theirs, ours) = (adopt(&mut world, noisy, mac(1, 1)), adopt(&mut world, honest, mac(2, 1)));
    world.until("both agree", MINUTE, |world| world.in_agreement(noisy) && world.in_agreement(honest));

    // Each edit is a change and a journal entry; the burst of this quota is a hundred of both.
    for number in 0..150 {
        name(&mut world, noisy, theirs, format!("noise-{number}"));
    }
    for number in 0..5 {
        world.pass(Duration::from_secs(1));
        name(&mut world, honest, ours, format!("work-{number}"));
        world.until("the honest site is heard", Duration::from_secs(2), |world| {
            name_at_central(world, ours) == format!("work-{number}")
        });
    }
    let said = "this site sends more than 1 changes a second, its quota (`quota_changes_s`)";
    for replica in [Origin::Central, Origin::Site(noisy)] {
        let notices = &world.replica(replica).notices;
        assert!(notices.iter().any(|notice| notice.contains(said)), "{replica}: {notices:?}");
    }
    let seen = name_at_central(&world, theirs);
    assert!(seen.starts_with("noise-") && seen != "noise-149", "a part is there: {seen}");
    assert!(!world.replica(Origin::Site(noisy)).notices.iter().any(|notice| notice.starts_with("down")));
    assert_eq!(quotas_reached(&world), 1, "the journal says so once");
    let waiting = world.store(Origin::Site(noisy)).read(|view| view.peer(Origin::Central)).unwrap();
    assert!(waiting.acknowledged < waiting.end, "the rest waits at the site");

    // Slowly, but all of it comes: about two hundred items, one a second.
    world.until("everything is there", 10 * MINUTE, |world| world.in_agreement(noisy));
    assert_eq!(name_at_central(&world, theirs), "noise-149");
}

#[test]
fn h6_machines_beyond_the_quota_wait_at_their_site_until_a_person_raises_it() {
    let mut world = World::new(22);
    let lyon = world.add_site("lyon");
    world.until("both agree", MINUTE, |world| world.in_agreement(lyon));
    settings(&mut world, lyon, SettingsEdit { quota_documents: Some(5), ..SettingsEdit::default() });
    for number in 0..8 {
        adopt(&mut world, lyon, mac(1, number));
    }
    world.pass(5 * MINUTE);
    let known = |world: &World| {
        world.store(Origin::Central).read(|view| view.nodes(&NodeFilter::default())).unwrap().len()
    };
    assert_eq!(known(&world), 5);
    let here = world.store(Origin::Site(lyon)).read(|view| view.nodes(&NodeFilter::default())).unwrap();
    assert_eq!(here.len(), 8, "the site works with all of them");
    let notices = &world.replica(Origin::Site(lyon)).notices;
    assert!(notices.iter().any(|notice| notice.contains("`quota_documents`")), "{notices:?}");

    let raised = SettingsEdit { quota_documents: Some(8), ..SettingsEdit::default() };
    settings(&mut world, lyon, raised);
    assert_eq!(known(&world), 8);
}
