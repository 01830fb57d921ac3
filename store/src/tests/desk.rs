//! What does not fit is set aside, the rest goes on, and a person decides.

use std::collections::BTreeMap;

use sync::journal::{Head, Stream, chain};

use super::*;
use crate::quarantine::{MAX_BYTES, MAX_ITEMS};

/// The facts of a site's stream in a replica, each with how often it stands there.
fn facts(store: &Store, site: SiteId) -> BTreeMap<String, usize> {
    let filter = JournalFilter { site: Some(site), ..JournalFilter::default() };
    let mut facts = BTreeMap::new();
    for row in store.read(|view| view.journal(&filter)).unwrap() {
        if let Some(Event::NodeDiscovered { mac, .. }) = row.event {
            *facts.entry(mac.to_string()).or_default() += 1;
        }
    }
    facts
}

fn events(store: &Store, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
    let rows = store.read(|view| view.journal(&JournalFilter::default())).unwrap();
    rows.into_iter().filter_map(|row| row.event).filter(|event| wanted(event)).collect()
}

fn machine(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

#[test]
fn h6_p15_a_chain_that_breaks_holds_nothing_up_and_its_facts_arrive_in_another_one() {
    let mut fleet = Fleet::new();
    let (lyon, central) = (fleet.sites[0].clone(), fleet.central.clone());
    fleet.adopt(0, machine(1));
    fleet.settle();
    for last in 2..=4 {
        fleet.adopt(0, machine(last));
    }
    // One entry is another one when it arrives: the next no longer follows it.
    let seen = std::cell::Cell::new(0);
    fleet.carry(&lyon.1, &central, |item| {
        if let Some(bytes) = &mut item.entry {
            seen.set(seen.get() + 1);
            if seen.get() == 1 {
                let mut entry = chain::decode(bytes).unwrap();
                entry.by = "eve".into();
                *bytes = minicbor::to_vec(&entry).unwrap();
            }
        }
    });
    assert_eq!(fleet.names(&central).len(), 4, "documents go on");
    let broken = |event: &Event| matches!(event, Event::ChainBroken { .. });
    assert_eq!(events(&central, broken).len(), 1, "noted once, whatever follows");
    let aside = central.read(|view| view.quarantine()).unwrap();
    assert!(aside.len() > 1 && aside.iter().all(|row| row.kind == "journal"), "{aside:?}");
    assert_eq!(aside[1].reason, "it is of a chain that broke before");

    // What the site notes before it hears of it is recorded again too.
    fleet.adopt(0, machine(5));
    fleet.settle();
    let begun = events(&lyon.1, |event| matches!(event, Event::ChainBegun { .. }));
    assert!(matches!(begun[..], [Event::ChainBegun { lost: 0, .. }]), "{begun:?}");
    let expected: Vec<String> = (1..=5).map(|last| machine(last).to_string()).collect();
    let arrived = facts(&central, lyon.0);
    assert_eq!(arrived.keys().cloned().collect::<Vec<_>>(), expected, "{arrived:?}");
    assert_eq!(events(&central, broken).len(), 1);
    assert_eq!(fleet.agrees(0), Some(true));
    // And it goes on, also after the next start.
    let id = lyon.0;
    drop((lyon, fleet.sites.remove(0)));
    fleet.sites.insert(0, (id, open(&fleet.folder.path().join("lyon"), Origin::Site(id), 99).unwrap()));
    let before = central.read(|view| view.quarantine()).unwrap().len();
    fleet.adopt(0, machine(6));
    fleet.settle();
    assert_eq!(facts(&central, id).get(&machine(6).to_string()), Some(&1));
    assert_eq!(central.read(|view| view.quarantine()).unwrap().len(), before);
}

#[test]
fn h6_an_item_or_an_entry_that_is_nothing_is_set_aside_and_the_next_ones_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (central, lyon, _) = central(folder.path());
    let peer = Origin::Site(lyon);
    let mut head = Head::new(Incarnation([7; 16]));
    let mut entry =
        |epoch| head.append(Stream::Site(lyon), Hlc::at(NOW), "ann", epoch, Event::EpochAdopted { epoch });
    let items = vec![
        Item::entry(entry(1)).to_bytes(),
        vec![0xff; 9],
        Item::entry(vec![0xff; 9]).to_bytes(),
        foreign_changes(lyon)[0].clone(),
    ];
    ingest(&central, 1, items, peer).unwrap();
    let rows = central.read(|view| view.quarantine()).unwrap();
    assert_eq!(rows.iter().map(|row| row.kind.as_str()).collect::<Vec<_>>(), ["item", "journal"]);
    let standing = central.read(|view| view.peer(peer)).unwrap();
    assert_eq!(standing.pulled, 4, "the session goes on");
    let node = central.read(|view| view.node_by_mac(MAC)).unwrap().unwrap();
    assert_eq!(node.contested, ["hostname"], "what the site called it came with the last item");
    // Which chain those bytes were of, nobody can say: the one that came last is closed.
    ingest(&central, 5, vec![Item::entry(entry(2)).to_bytes()], peer).unwrap();
    let rows = central.read(|view| view.quarantine()).unwrap();
    assert_eq!(rows.last().unwrap().reason, "it is of a chain that broke before");
}

#[test]
fn h6_nobody_fills_the_disk_of_central_with_what_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (central, lyon, _) = central(folder.path());
    let peer = Origin::Site(lyon);
    let mut from = 1;
    let mut send = |items: Vec<Vec<u8>>| {
        let count = items.len() as u64;
        ingest(&central, from, items, peer).unwrap();
        from += count;
    };
    // A chain of its own for every entry, and none that begins.
    let of = |number: u16| {
        let mut incarnation = [9; 16];
        incarnation[..2].copy_from_slice(&number.to_be_bytes());
        let mut head = Head { seq: 7, ..Head::new(Incarnation(incarnation)) };
        let event = Event::EpochAdopted { epoch: 1 };
        Item::entry(head.append(Stream::Site(lyon), Hlc::at(NOW), "eve", 1, event)).to_bytes()
    };
    send((0..2_000).map(of).collect());
    let broken = events(&central, |event| matches!(event, Event::ChainBroken { .. }));
    assert_eq!(broken.len(), 8, "one broken chain after the other is noise");

    send(vec![vec![0xff; 9]; usize::try_from(MAX_ITEMS).unwrap()]);
    let counted = || {
        let rows = central.read(|view| view.quarantine()).unwrap();
        (rows.len() as u64, rows.iter().map(|row| row.size).sum::<u64>())
    };
    assert_eq!(counted().0, MAX_ITEMS);
    let noted = || {
        let rows = central.read(|view| view.journal(&JournalFilter::default())).unwrap();
        let trimmed = rows.iter().filter(|row| matches!(row.event, Some(Event::QuarantineTrimmed { .. })));
        (rows.len(), trimmed.count())
    };
    let (entries, trimmed) = noted();
    assert_eq!(trimmed, 1);
    send(vec![vec![0xff; 9]; 3_000]);
    assert_eq!((counted().0, noted()), (MAX_ITEMS, (entries, 1)), "what comes now is only counted");
    // Bytes are bounded as items are.
    for _ in 0..20 {
        send(vec![vec![0xff; 200 << 10]; 8]);
    }
    let (items, bytes) = counted();
    assert!(bytes <= MAX_BYTES && items < MAX_ITEMS, "{items} items of {bytes} bytes");
    assert_eq!(noted(), (entries, 1));
}
