//! Settings that descend from groups to sites, over links that are cut and a central that goes back in time.

use std::time::Duration;

use harness::world::{HEARTBEAT, World};
use store::{
    StoreError, Tx,
    command::{
        group::{self, GroupEdit},
        node::{self, NodeEdit},
        settings::SettingsEdit,
        site,
    },
    view::SiteRow,
};
use sync::{
    document::settings::Key,
    id::{GroupId, Origin, SiteId},
    policy::{Autonomy, Wanted},
};

use crate::restore::{Back, create, keep, restore};

/// A sign of life, and what follows it.
const SOON: Duration = Duration::from_secs(2 * HEARTBEAT.as_secs() + 60);

fn central<T: Send + 'static>(
    world: &mut World,
    command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
) -> T {
    world.run(Origin::Central, "ann", command).expect("central does it")
}

fn group(world: &mut World, name: &'static str, above: Option<GroupId>) -> GroupId {
    central(world, move |tx| group::create(tx, name, "", above)).id
}

fn says(world: &mut World, of: GroupId, autonomy: Autonomy) {
    let edit = SettingsEdit { autonomy: Some(autonomy), ..SettingsEdit::default() };
    central(world, move |tx| group::set(tx, of, &edit, "the links are bad there"));
}

fn row(world: &World, at: Origin, site: SiteId) -> SiteRow {
    world.store(at).read(|view| view.site(site)).expect("it reads").expect("the site is known")
}

/// What a site follows, as it knows itself: its autonomy, and where that comes from.
fn follows(world: &World, site: SiteId) -> (Autonomy, Option<String>) {
    let mut effective = row(world, Origin::Site(site), site).effective;
    (effective.autonomy, effective.origins.remove("autonomy"))
}

fn agree(world: &mut World, sites: &[SiteId]) {
    world.until("all agree", SOON, |world| sites.iter().all(|site| world.in_agreement(*site)));
}

/// Lyon in europe/france, bern in europe, oslo in no group.
fn fleet(seed: u64) -> (World, [SiteId; 3], [GroupId; 2]) {
    let mut world = World::new(seed);
    let sites = ["lyon", "bern", "oslo"].map(|name| world.add_site(name));
    let europe = group(&mut world, "europe", None);
    let france = group(&mut world, "france", Some(europe));
    let [lyon, bern, _] = sites;
    central(&mut world, move |tx| group::place(tx, lyon, Some(france), ""));
    central(&mut world, move |tx| group::place(tx, bern, Some(europe), ""));
    agree(&mut world, &sites);
    (world, sites, [europe, france])
}

#[test]
fn p1_h1_what_a_group_says_reaches_the_sites_below_it_and_one_that_was_away_later() {
    let (mut world, sites, [europe, france]) = fleet(41);
    let [lyon, bern, oslo] = sites;
    let epochs = |world: &World| sites.map(|site| row(world, Origin::Central, site).effective.epoch);
    assert_eq!(epochs(&world), [1, 1, 1], "to stand in a group that says nothing changes nothing");

    says(&mut world, europe, Autonomy::ReadOnly);
    agree(&mut world, &sites);
    let from = |group: GroupId| Some(group.to_string());
    assert_eq!(follows(&world, lyon), (Autonomy::ReadOnly, from(europe)));
    assert_eq!(follows(&world, bern), (Autonomy::ReadOnly, from(europe)));
    assert_eq!(follows(&world, oslo), (Autonomy::Limited, None));
    assert_eq!(epochs(&world), [2, 2, 1]);

    // Lyon hears of it when it is back, and of what it says itself as well.
    world.set_link(lyon, false);
    says(&mut world, france, Autonomy::Full);
    world.pass(SOON);
    assert_eq!(follows(&world, lyon), (Autonomy::ReadOnly, from(europe)));
    world.set_link(lyon, true);
    world.until("lyon hears of it", SOON, |world| follows(world, lyon) == (Autonomy::Full, from(france)));
    let own = SettingsEdit { autonomy: Some(Autonomy::Limited), ..SettingsEdit::default() };
    central(&mut world, move |tx| site::set(tx, lyon, &own, ""));
    agree(&mut world, &sites);
    assert_eq!(follows(&world, lyon), (Autonomy::Limited, Some("site".into())));
    let inherits = SettingsEdit { inherit: [Key::Autonomy].into(), ..SettingsEdit::default() };
    let again = inherits.clone();
    central(&mut world, move |tx| site::set(tx, lyon, &inherits, ""));
    let epoch = epochs(&world)[0];
    central(&mut world, move |tx| site::set(tx, lyon, &again, ""));
    assert_eq!(epochs(&world)[0], epoch, "what is so already makes no epoch");
    agree(&mut world, &sites);
    assert_eq!(follows(&world, lyon), (Autonomy::Full, from(france)));

    // A group takes its sites along.
    let none = SettingsEdit { inherit: [Key::Autonomy].into(), ..SettingsEdit::default() };
    central(&mut world, move |tx| group::set(tx, france, &none, ""));
    agree(&mut world, &sites);
    assert_eq!(follows(&world, lyon), (Autonomy::ReadOnly, from(europe)));
    let top = GroupEdit { parent: Some(None), ..GroupEdit::default() };
    central(&mut world, move |tx| group::edit(tx, france, &top, ""));
    central(&mut world, move |tx| group::place(tx, oslo, Some(europe), ""));
    agree(&mut world, &sites);
    assert_eq!(follows(&world, lyon), (Autonomy::Limited, None));
    assert_eq!(follows(&world, oslo), (Autonomy::ReadOnly, from(europe)));
}

#[test]
fn p1_h1_what_a_site_did_under_what_its_group_said_then_is_taken_after_the_group_says_less() {
    let (mut world, sites, [_, france]) = fleet(42);
    let lyon = sites[0];
    let node = create(&mut world, lyon, 1);
    says(&mut world, france, Autonomy::Full);
    agree(&mut world, &sites);
    world.set_link(lyon, false);
    says(&mut world, france, Autonomy::ReadOnly);
    let again = NodeEdit { wanted: Some(Wanted::Reprovision), ..NodeEdit::default() };
    world.run(Origin::Site(lyon), "bob", move |tx| node::edit(tx, node, &again)).expect("lyon may");
    world.set_link(lyon, true);
    agree(&mut world, &sites);
    let wanted = world.store(Origin::Central).read(|view| view.node(node)).expect("it reads");
    assert_eq!(wanted.expect("it is known").wanted, Wanted::Reprovision);
    assert_eq!(world.eye(Origin::Central).set_aside_after(0).expect("it reads").len(), 0);
    let keep = NodeEdit { wanted: Some(Wanted::Keep), ..NodeEdit::default() };
    let refused = world.run(Origin::Site(lyon), "bob", move |tx| node::edit(tx, node, &keep));
    assert!(matches!(refused, Err(StoreError::Refused(_))), "now it may not: {refused:?}");
}

#[test]
fn p1_p15_a_restored_central_hears_of_its_sites_what_its_groups_said() {
    let (mut world, sites, [europe, france]) = fleet(43);
    let [lyon, bern, _] = sites;
    keep(&mut world, Origin::Central);
    agree(&mut world, &sites);
    says(&mut world, europe, Autonomy::ReadOnly);
    says(&mut world, france, Autonomy::Full);
    agree(&mut world, &sites);
    let before = row(&world, Origin::Site(bern), bern).effective.epoch;

    restore(&mut world, Origin::Central, Back::Database);
    agree(&mut world, &sites);
    central(&mut world, |tx| tx.end_recovery("all are back", false));
    agree(&mut world, &sites);
    assert_eq!(follows(&world, lyon), (Autonomy::Full, Some(france.to_string())));
    assert_eq!(follows(&world, bern), (Autonomy::ReadOnly, Some(europe.to_string())));
    let said = world.store(Origin::Central).read(|view| view.group(europe)).expect("it reads");
    assert_eq!(said.expect("it is known").own.get(&Key::Autonomy).map(String::as_str), Some("readonly"));
    // And goes on above what was.
    says(&mut world, europe, Autonomy::Limited);
    agree(&mut world, &sites);
    assert_eq!(follows(&world, bern), (Autonomy::Limited, Some(europe.to_string())));
    assert!(row(&world, Origin::Site(bern), bern).effective.epoch > before);
}
