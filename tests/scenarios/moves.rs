//! What becomes of a machine, and of what was written of it, when it moves between sites that hear of it late.

use harness::{
    disk,
    world::{Ending, World},
};
use store::{
    command::{
        claim,
        node::{self, NodeEdit},
        proposal,
        site::SettingsEdit,
    },
    view::{ConflictFilter, ProposalFilter, ProposalState},
};
use sync::{
    document::site::UnknownMachines,
    id::{ClaimId, MacAddr, NodeId, Origin},
    journal::Event,
    policy::{ClaimState, MigrationPolicy, Strategy},
};

use crate::{
    place::{DAY, HOUR, MINUTE, Place, boots, events, read},
    restore::{Back, keep, restore},
};

#[test]
fn p9_two_sites_adopt_one_machine_while_both_are_cut_off_and_it_has_one_home() {
    let mut place = Place::new(41);
    let (lyon, bern) = (place.lyon, place.bern);
    let mac = MacAddr([0x52, 0x54, 0, 0, 3, 9]);
    let node = NodeId::of(mac);
    for site in [lyon, bern] {
        place
            .set(site, SettingsEdit { unknown_machines: Some(UnknownMachines::Adopt), ..Default::default() });
    }
    place.agree();
    for site in [lyon, bern] {
        place.world.set_link(site, false);
    }
    boots(&mut place.world, lyon, mac);
    place.world.pass(HOUR);
    boots(&mut place.world, bern, mac);
    // Whoever central hears of first has it: a home is never taken back by what arrives later.
    place.world.set_link(bern, true);
    place.world.until("bern has it", MINUTE * 20, |world| {
        read(world, Origin::Site(bern), |view| view.node(node)).is_some_and(|row| row.home == Some(bern))
    });
    place.world.set_link(lyon, true);
    let row = place.reach("lyon claims it", &[ClaimState::Open]);
    assert_eq!((row.node, row.from, row.to, row.opened_by), (node, bern, lyon, Origin::Central));
    place.agree();
    assert_eq!(read(&place.world, Origin::Site(lyon), |view| view.node(node)), None);
    assert_eq!(place.states(Origin::Site(lyon)), [ClaimState::Open], "lyon knows that it claims it");
    let id = row.id;
    place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "it stands there")).unwrap();
    place.world.until("lyon has it", MINUTE * 20, |world| {
        read(world, Origin::Site(lyon), |view| view.node(node)).is_some_and(|row| row.home == Some(lyon))
    });
    place.agree();
    assert_eq!(read(&place.world, Origin::Site(bern), |view| view.node(node)), None);
}

#[test]
fn p9_a_machine_moves_there_and_back_while_both_sites_are_cut_off_and_stays_at_home() {
    let mut place = Place::new(43);
    let (lyon, bern) = (place.lyon, place.bern);
    for site in [lyon, bern] {
        place.world.set_link(site, false);
    }
    place.boots(bern);
    place.world.pass(DAY);
    place.boots(lyon);
    for site in [bern, lyon] {
        place.world.set_link(site, true);
    }
    let row = place.reach("central has bern's claim", &[ClaimState::Open]);
    place.agree();
    assert_eq!(row.seen_at_home, None, "lyon did not know of the claim when the machine came back");
    // The next boot at home, where the claim is known, ends it.
    place.boots(lyon);
    let row = place.reach("the claim is withdrawn", &[ClaimState::Withdrawn]);
    assert_eq!(row.reason, "the machine booted at home again");
    assert_eq!(place.home(Origin::Central), Some((Some(lyon), 1)));
    place.agree();
    // And it may go once more.
    place.boots(bern);
    let row = place.reach("bern asks again", &[ClaimState::Open]);
    assert_eq!(row.round, 2);
}

#[test]
fn p8_a_machine_that_comes_home_again_brings_back_what_its_home_wrote_and_nobody_takes_that_for_a_rollback() {
    let mut place = Place::new(59);
    let (lyon, bern, node) = (place.lyon, place.bern, place.node);
    for (number, to) in [(1, bern), (2, lyon), (3, bern), (4, lyon)] {
        let from = if to == bern { lyon } else { bern };
        let edit = NodeEdit { notes: Some(format!("move {number}")), ..NodeEdit::default() };
        place.world.run(Origin::Site(from), "bob", move |tx| node::edit(tx, node, &edit)).unwrap();
        place.agree();
        place.boots(to);
        place.world.until("central has the claim", MINUTE * 20, |world| {
            read(world, Origin::Central, |view| view.claim(ClaimId::of(node, to, number))).is_some()
        });
        let id = ClaimId::of(node, to, number);
        place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "")).unwrap();
        place.world.until("it has moved", MINUTE * 20, |world| {
            let is_there = |site| read(world, Origin::Site(site), |view| view.node(node)).is_some();
            is_there(to) && !is_there(from)
        });
        place.agree();
    }
    for site in [lyon, bern] {
        let begun = events(&place.world, Origin::Site(site));
        let begun = begun.iter().find(|event| matches!(event, Event::LifeBegun { .. }));
        assert_eq!(begun, None);
    }
    let row = read(&place.world, Origin::Site(lyon), |view| view.node(node)).unwrap();
    assert_eq!((row.home_epoch, row.notes.as_str()), (5, "move 4"));
}

#[test]
fn p8_a_former_home_hears_of_a_move_that_central_had_forgotten() {
    let mut place = Place::new(63);
    let (lyon, bern, central) = (place.lyon, place.bern, Origin::Central);
    place.policy(bern, MigrationPolicy::AutoAccept);
    place.agree();
    place.world.set_link(lyon, false);
    let (folder, copy) = (place.world.path(central), place.world.backup_path("central"));
    place.world.end(central, Ending::Stopped);
    disk::save(&folder, &copy).unwrap();
    place.world.start(central);
    place.world.pass(MINUTE * 5);
    place.boots(bern);
    place.reach("bern has moved it to itself", &[ClaimState::Approved]);
    place.agree();
    place.world.end(central, Ending::Stopped);
    disk::restore(&copy, &folder).unwrap();
    place.world.forget_central(central);
    place.world.start(central);
    place.reach("bern gives back what central has forgotten", &[ClaimState::Approved]);
    place.agree();
    place.world.set_link(lyon, true);
    place.world.until("lyon has heard of everything", MINUTE * 20, |world| world.in_agreement(lyon));
    place.world.run(central, "ann", |tx| tx.end_recovery("looked at it", true)).unwrap();
    place.agree();
    assert_eq!(place.home(Origin::Site(lyon)), None);
    assert_eq!(place.states(Origin::Site(lyon)), [ClaimState::Approved]);
}

#[test]
fn p7_p8_what_is_contested_of_a_machine_that_moves_is_settled_as_its_new_home_has_it() {
    let mut place = Place::new(64);
    let (lyon, bern, node) = (place.lyon, place.bern, place.node);
    for (site, strategy) in [(lyon, Strategy::Manual), (bern, Strategy::LastWrite)] {
        place.set(site, SettingsEdit { conflict_resolution: Some(strategy), ..SettingsEdit::default() });
    }
    place.agree();
    place.world.set_link(lyon, false);
    for (origin, name) in [(Origin::Central, "till"), (Origin::Site(lyon), "kasse")] {
        let edit = NodeEdit { hostname: Some(name.into()), ..NodeEdit::default() };
        place.world.run(origin, "ann", move |tx| node::edit(tx, node, &edit)).unwrap();
        place.world.pass(MINUTE);
    }
    place.world.set_link(lyon, true);
    place.agree();
    let open = |place: &Place| {
        let filter = ConflictFilter { open: Some(true), ..ConflictFilter::default() };
        let rows = read(&place.world, Origin::Central, |view| view.conflicts(&filter));
        rows.into_iter().map(|row| (row.path, row.reason.unwrap_or_default())).collect::<Vec<_>>()
    };
    let left = open(&place);
    assert_eq!((left.len(), left[0].0.as_str()), (1, "hostname"), "{left:?}");
    place.boots(bern);
    let id = place.reach("bern claims it", &[ClaimState::Open]).id;
    place.world.run(Origin::Central, "ann", move |tx| claim::approve(tx, id, "it stands there")).unwrap();
    assert_eq!(open(&place), []);
    place.agree();
    let row = read(&place.world, Origin::Site(bern), |view| view.node(node)).unwrap();
    assert_eq!((row.hostname.as_str(), row.contested.len()), ("kasse", 0));
}

#[test]
fn p5_p8_h5_what_a_restored_site_does_with_a_machine_that_had_left_becomes_a_proposal() {
    let mut place = Place::new(67);
    let (lyon, bern, node) = (place.lyon, place.bern, place.node);
    let site = Origin::Site(lyon);
    keep(&mut place.world, site);
    place.policy(bern, MigrationPolicy::AutoAccept);
    place.agree();
    place.boots(bern);
    place.reach("it is bern's", &[ClaimState::Approved]);
    let is_gone = move |world: &World| {
        world.in_agreement(lyon) && read(world, Origin::Site(lyon), |view| view.node(node)).is_none()
    };
    place.world.until("lyon has let go of it", MINUTE * 20, is_gone);
    place.world.set_link(lyon, false);
    restore(&mut place.world, site, Back::Database);
    // It has forgotten that the machine left, and nobody can tell it.
    let edit = NodeEdit { notes: Some("the lid is broken".into()), ..NodeEdit::default() };
    place.world.run(site, "bob", move |tx| node::edit(tx, node, &edit)).unwrap();
    place.world.set_link(lyon, true);
    place.world.until("lyon has let go of it again", MINUTE * 20, is_gone);
    place.agree();
    let notes = |place: &Place| read(&place.world, Origin::Site(bern), |view| view.node(node)).unwrap().notes;
    assert_eq!(notes(&place), "", "it is bern's now");
    let asked = read(&place.world, Origin::Central, |view| view.proposals(&ProposalFilter::default()));
    let [row] = &asked[..] else { panic!("one change was asked for: {asked:#?}") };
    assert_eq!((row.site, row.document, row.state), (lyon, Some(node.into()), ProposalState::Open));
    let id = row.id;
    place.world.run(Origin::Central, "ann", move |tx| proposal::apply(tx, id, "bob has seen it")).unwrap();
    place.agree();
    assert_eq!(notes(&place), "the lid is broken");
    let there = read(&place.world, site, |view| view.proposals(&ProposalFilter::default()));
    assert_eq!(there.iter().map(|row| row.state).collect::<Vec<_>>(), [ProposalState::Applied]);
}

#[test]
fn p9_p15_two_homes_of_two_lives_of_central_become_one_and_the_other_site_claims_the_machine() {
    let mut place = Place::new(68);
    let (lyon, bern) = (place.lyon, place.bern);
    let central = Origin::Central;
    let mac = MacAddr([0x52, 0x54, 0, 0, 3, 9]);
    let node = NodeId::of(mac);
    place.world.set_link(bern, false);
    keep(&mut place.world, central);
    boots(&mut place.world, lyon, mac);
    let is_lyons = move |world: &World| {
        read(world, Origin::Site(lyon), |view| view.node(node)).is_some_and(|row| row.home == Some(lyon))
    };
    place.world.until("it is lyon's", MINUTE * 20, is_lyons);
    place.agree();
    place.world.set_link(lyon, false);
    restore(&mut place.world, central, Back::Database);
    place.world.run(central, "ann", |tx| tx.end_recovery("lyon burned down", true)).unwrap();
    place.world.set_link(bern, true);
    boots(&mut place.world, bern, mac);
    place.world.until("it is bern's", MINUTE * 20, |world| {
        read(world, Origin::Site(bern), |view| view.node(node)).is_some_and(|row| row.home == Some(bern))
    });
    place.world.set_link(lyon, true);
    place.agree();
    let row = place.claims(central).remove(0);
    assert_eq!((row.from, row.to, row.home_epoch, row.state), (lyon, bern, 1, ClaimState::Approved));
    assert_eq!(row.reason, "central had forgotten that it was at home elsewhere when it gave it this home");
    for (at, knows) in [(central, true), (Origin::Site(bern), true), (Origin::Site(lyon), false)] {
        let home = read(&place.world, at, |view| view.node(node)).map(|row| (row.home, row.home_epoch));
        assert_eq!(home, knows.then_some((Some(bern), 2)), "{at}");
        assert_eq!(place.states(at), [ClaimState::Approved], "{at}");
    }
    // Lyon had told all it did, and claims it like any other.
    assert!(place.claims(central)[0].fence.as_ref().is_some_and(|fence| !fence.closed));
    boots(&mut place.world, lyon, mac);
    place.world.until("lyon claims it", MINUTE * 20, |world| {
        read(world, central, |view| view.claim(ClaimId::of(node, lyon, 2))).is_some()
    });
}
