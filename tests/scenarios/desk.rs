//! What sites write that is not theirs, what becomes of it, and what is theirs no longer.

use std::time::Duration;

use harness::{
    eye::Eye,
    world::{Meddle, World},
};
use store::{
    StoreError, Tx, View,
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        proposal,
        site::{self, SettingsEdit},
    },
    view::{NodeFilter, ProposalFilter, ProposalRow, ProposalState},
};
use sync::{
    document::{Author, Kind, node as node_document, node::Wish, register::Entropy},
    id::{Incarnation, MacAddr, NodeId, Origin, SiteId},
    policy::{Autonomy, Wanted},
    time::Hlc,
    wire::{self, Item, Message},
};

use crate::restore::{Back, keep, restore};

const MINUTE: Duration = Duration::from_secs(60);

fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 2, last])
}

/// What a site does that takes a machine for its own, wherever it belongs.
fn take_for_its_own(tx: &mut Tx<'_>, mac: MacAddr) -> Result<NodeId, StoreError> {
    let answered = Answered {
        mac,
        answer: "local disk".into(),
        reason: "nothing is ordered for this machine".into(),
        adopt: true,
        booting: None,
        local_disk: true,
        claims: false,
    };
    Ok(boot::answered(tx, &answered)?.expect("it is a node here now"))
}

fn rename(node: NodeId, name: &str) -> impl FnOnce(&mut Tx<'_>) -> Result<(), StoreError> + Send + 'static {
    let edit =
        NodeEdit { hostname: Some(name.into()), why: "the label says so".into(), ..NodeEdit::default() };
    move |tx| node::edit(tx, node, &edit).map(drop)
}

fn read<T>(world: &World, origin: Origin, read: impl FnOnce(&View<'_>) -> Result<T, StoreError>) -> T {
    world.store(origin).read(read).expect("the store reads")
}

fn proposals(world: &World, origin: Origin) -> Vec<ProposalRow> {
    read(world, origin, |view| view.proposals(&ProposalFilter::default()))
}

fn names(world: &World, origin: Origin) -> Vec<String> {
    let rows = read(world, origin, |view| view.nodes(&NodeFilter::default()));
    // A document whose beginning was refused may have no address for a while.
    let of = |macs: &[MacAddr]| macs.first().map_or_else(|| "-".into(), ToString::to_string);
    let mut lines: Vec<String> =
        rows.iter().map(|row| format!("{} {}", of(&row.macs), row.hostname)).collect();
    lines.sort();
    lines
}

#[test]
fn p6_h6_what_a_site_wrote_about_anothers_machine_is_asked_for_and_its_honest_work_goes_through() {
    let mut world = World::new(21);
    let (lyon, bern) = (world.add_site("lyon"), world.add_site("bern"));
    let sites = [Origin::Site(lyon), Origin::Site(bern)];
    let node = world
        .run(Origin::Central, "ann", move |tx| node::create(tx, mac(1), lyon, "pos-1"))
        .expect("a machine of lyon");
    let agree = |world: &World| world.in_agreement(lyon) && world.in_agreement(bern);
    world.until("bern knows where it belongs", MINUTE * 2, |world| {
        agree(world) && read(world, sites[1], |view| view.directory(node)).is_some()
    });
    world.pass(MINUTE);

    // Bern knows, and takes it for its own all the same; and it does its own work.
    world.set_link(bern, false);
    world.run(sites[1], "boot", |tx| take_for_its_own(tx, mac(1))).unwrap();
    world.run(sites[1], "bob", rename(node, "kasse-9")).unwrap();
    world.run(sites[1], "boot", |tx| take_for_its_own(tx, mac(2))).unwrap();
    world.set_link(bern, true);
    world.until("central has what is bern's, and a proposal", MINUTE * 3, |world| {
        names(world, Origin::Central).len() == 2 && proposals(world, Origin::Central).len() == 1
    });
    world.until("both hold the same", MINUTE * 3, |world| agree(world));
    assert_eq!(names(&world, Origin::Central)[0], "52:54:00:00:02:01 pos-1", "nothing of it happened");
    let aside = read(&world, Origin::Central, |view| view.quarantine());
    assert!(!aside.is_empty() && aside.iter().all(|row| row.peer == sites[1] && row.document == node.into()));
    let asked = proposals(&world, Origin::Central).remove(0);
    assert_eq!((asked.by.as_str(), asked.why.as_str()), ("bob", "the label says so"));
    assert_eq!(asked.arguments["hostname"], serde_json::json!({ "value": "kasse-9" }));

    world.run(Origin::Central, "ann", move |tx| proposal::apply(tx, asked.id, "bob is right")).unwrap();
    world.until("bern hears how it ended, and lyon its machine's name", MINUTE, |world| {
        let ended = proposals(world, sites[1]);
        ended.len() == 1
            && ended[0].state == ProposalState::Applied
            && names(world, sites[0]) == ["52:54:00:00:02:01 kasse-9"]
    });
    world.until("all agree", MINUTE * 2, agree);
    assert_eq!(names(&world, sites[1]), ["52:54:00:00:02:02 "], "it holds its own machine and no other");
}

#[test]
fn h5_p6_a_copy_that_came_back_with_an_old_database_leaves_the_site_again_and_nothing_of_its_own_is_lost() {
    let mut world = World::new(22);
    let (lyon, bern) = (world.add_site("lyon"), world.add_site("bern"));
    let site = Origin::Site(bern);
    let agree = |world: &World| world.in_agreement(lyon) && world.in_agreement(bern);
    world.until("all agree", MINUTE * 2, agree);
    // A machine of lyon's boots at bern before bern can have heard of it.
    world.set_link(bern, false);
    let node = world
        .run(Origin::Central, "ann", move |tx| node::create(tx, mac(1), lyon, "pos-1"))
        .expect("a machine of lyon");
    world.run(site, "boot", |tx| take_for_its_own(tx, mac(1))).unwrap();
    keep(&mut world, site);
    world.set_link(bern, true);
    let holds = |world: &World| read(world, site, |view| view.documents()).get("node").copied();
    world.until("bern holds it no longer", MINUTE * 2, |world| agree(world) && holds(world).is_none());
    let seen = read(&world, Origin::Central, |view| view.node(node)).expect("it is there");
    assert_eq!((seen.home, seen.observed_by), (Some(lyon), vec![bern]));

    world.set_link(bern, false);
    restore(&mut world, site, Back::Database);
    assert_eq!(holds(&world), Some(1), "the old database has it");
    world.run(site, "boot", |tx| take_for_its_own(tx, mac(2))).unwrap();
    world.set_link(bern, true);
    world.until("the copy has left again, and its own has arrived", MINUTE * 3, |world| {
        agree(world) && names(world, site) == ["52:54:00:00:02:02 "] && holds(world) == Some(1)
    });
    let own = read(&world, Origin::Central, |view| view.node_by_mac(mac(2))).expect("it has arrived");
    assert_eq!(own.home, Some(bern));
    assert_eq!(read(&world, Origin::Central, |view| view.quarantine()), [], "late work is honest work");
}

/// Puts into the next change of a site, in its place, that it wants a machine ignored and follows an epoch of old.
fn names_an_epoch(site: SiteId, node: NodeId, epoch: u64) -> Meddle {
    let mut is_done = false;
    Box::new(move |world, from, bytes| {
        if from != Origin::Site(site) || is_done {
            return bytes;
        }
        let Ok(Message::Log { from: position, mut items, seal }) = wire::decode(&bytes) else { return bytes };
        let is_change = |item: &[u8]| minicbor::decode::<Item>(item).is_ok_and(|item| item.change.is_some());
        let Some(place) = items.iter().position(|item| is_change(item)) else { return bytes };
        let mut author = Author {
            incarnation: Incarnation(world.random.bytes()),
            site: from,
            by: "mallory".into(),
            at: Hlc::at(world.wall()),
            policy_epoch: epoch,
            entropy: Entropy::new(world.random.bytes()),
        };
        let eye: &Eye = world.eye(Origin::Central);
        let doc = eye.row_of(node.into()).unwrap().expect("central has it");
        let mut document = eye.document(doc, Kind::Node, node.into()).unwrap();
        let wish = Wish { wanted: Wanted::Ignored };
        let change = document.write(&mut author, |edit| {
            edit.set(&node_document::wanted(), &wish, "as ever");
        });
        let change = change.expect("it says something new").raw_bytes().to_vec();
        items[place] = Item::change(Kind::Node.number(), node.into(), change).to_bytes().into();
        is_done = true;
        wire::encode(&Message::Log { from: position, items, seal })
    })
}

#[test]
fn p5_h6_a_site_that_keeps_naming_the_epoch_in_which_it_was_full_decides_nothing_by_it() {
    let mut world = World::new(23);
    let lyon = world.add_site("lyon");
    let node = world
        .run(Origin::Central, "ann", move |tx| node::create(tx, mac(1), lyon, "pos-1"))
        .expect("a machine of lyon");
    for autonomy in [Autonomy::Full, Autonomy::Limited] {
        let edit = SettingsEdit { autonomy: Some(autonomy), ..SettingsEdit::default() };
        world.run(Origin::Central, "ann", move |tx| site::set(tx, lyon, &edit, "")).unwrap();
        world.until("lyon follows it", MINUTE * 3, |world| world.in_agreement(lyon));
    }
    let full = 2;
    world.meddle = Some(names_an_epoch(lyon, node, full));
    world.run(Origin::Site(lyon), "bob", rename(node, "kasse-1")).unwrap();
    world.until("central has its word", MINUTE * 3, |world| {
        !read(world, Origin::Central, |view| view.quarantine()).is_empty()
    });
    world.until("both hold the same", MINUTE * 15, |world| {
        world.in_agreement(lyon) && names(world, Origin::Central) == ["52:54:00:00:02:01 kasse-1"]
    });
    let row = read(&world, Origin::Central, |view| view.node(node)).expect("it is there");
    assert_eq!(row.wanted, Wanted::Keep, "its honest work arrived, and that did not");
    let aside = read(&world, Origin::Central, |view| view.quarantine());
    assert!(aside.iter().any(|row| row.reason.contains("needs autonomy `full`")), "{aside:#?}");
    let row = read(&world, Origin::Site(lyon), |view| view.site(lyon)).expect("it knows itself");
    assert_eq!((row.effective.epoch, row.effective.autonomy), (full + 1, Autonomy::Limited));
}
