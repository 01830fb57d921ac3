//! The store through its door: what survives, what is refused, and what is never lost.

#![expect(clippy::disallowed_methods, reason = "tests look at the files that the store keeps")]

use std::{fs, path::Path, time::Duration};

use sync::{
    document::{
        Document,
        node::{self, Text},
        register::{Author, Entropy},
    },
    engine::{Connection, Input, Output},
    id::{Incarnation, MacAddr, Origin, SiteId},
    journal::Event,
    policy::Wanted,
    time::{Hlc, Timestamp},
    wire::Item,
};

mod desk;
mod domain;
mod moves;
mod watching;

use super::*;
use crate::{
    command::{
        boot::{Answered, answered as answered_boot},
        node::{NodeEdit, create as create_node, edit},
        site,
    },
    view::{JournalFilter, JournalRow, NodeFilter},
};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const NOW: Timestamp = Timestamp(1_795_161_600_000);

fn given(number: u8) -> Given {
    let now = NOW.after(Duration::from_secs(u64::from(number)));
    Given { now, by: "ann".into(), entropy: [number; 32] }
}

fn open(folder: &Path, origin: Origin, number: u8) -> Result<Store, StoreError> {
    Store::open(&Opening { folder: folder.to_path_buf(), origin, given: given(number) })
}

fn central(folder: &Path) -> (Store, SiteId, sync::id::NodeId) {
    let store = open(folder, Origin::Central, 1).unwrap();
    let lyon = store.run(given(2), |tx| site::create(tx, "lyon", "", "")).unwrap();
    let node = store.run(given(3), move |tx| create_node(tx, MAC, lyon, "pos-1")).unwrap();
    (store, lyon, node)
}

#[test]
fn p15_documents_touched_in_turn_stay_few_in_memory_also_within_one_commit() {
    const MANY: u16 = 3_000;
    let folder = tempfile::tempdir().unwrap();
    let (store, lyon, _) = central(folder.path());
    let mac = |number: u16| {
        let [high, low] = number.to_be_bytes();
        MacAddr([0x52, 0x54, 0, 1, high, low])
    };
    let seen = store.run(given(4), move |tx| {
        let mut seen = (0, 0);
        for number in 0..MANY {
            create_node(tx, mac(number), lyon, &format!("pos-{number}"))?;
            let (bytes, most) = tx.documents_open_bytes();
            assert!(bytes <= most, "{bytes} of {most} bytes");
            seen = (seen.0.max(tx.documents_open()), seen.1.max(bytes));
        }
        Ok((seen, tx.documents_open_bytes().1))
    });
    let ((most_documents, most_bytes), allowed) = seen.unwrap();
    assert!(most_bytes > allowed - 100_000 && most_documents < usize::from(MANY));
    // Whoever is asked for again is read from the disk, as the same commit left it there.
    let rename = move |tx: &mut Tx<'_>| {
        let before = tx.documents_loaded();
        for number in 0..MANY {
            let hostname = Some(format!("till-{number}"));
            let id = sync::id::NodeId::of(mac(number));
            edit(tx, id, &NodeEdit { hostname, ..NodeEdit::default() })?;
            edit(tx, id, &NodeEdit { wanted: Some(Wanted::Ignored), ..NodeEdit::default() })?;
            let (bytes, most) = tx.documents_open_bytes();
            assert!(bytes <= most, "{bytes} of {most} bytes");
        }
        Ok(tx.documents_loaded() - before)
    };
    let loaded = store.run(given(5), rename).unwrap();
    let never_open = u64::from(MANY) - most_documents as u64;
    assert!((never_open..=MANY.into()).contains(&loaded), "{loaded} of {MANY} were read");
    let rows = store.read(|view| view.nodes(&NodeFilter::default())).unwrap();
    let renamed =
        rows.iter().filter(|row| row.hostname.starts_with("till-") && row.wanted == Wanted::Ignored);
    assert_eq!(renamed.count(), usize::from(MANY));

    // What a command wrote before it failed is forgotten with it.
    let fails = store.run(given(6), move |tx| {
        for number in 0..600 {
            let id = sync::id::NodeId::of(mac(number));
            edit(tx, id, &NodeEdit { hostname: Some("lost".into()), ..NodeEdit::default() })?;
        }
        create_node(tx, MAC, lyon, "twice").map(drop)
    });
    assert!(fails.is_err());
    store.run(given(7), |tx| tx.rebuild_views()).unwrap();
    let after = store.read(|view| view.nodes(&NodeFilter::default())).unwrap();
    assert_eq!(after, rows);
}

#[test]
fn what_was_committed_is_there_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lyon, node) = central(folder.path());
    let before = store.read(|view| Ok((view.sites()?, view.nodes(&NodeFilter::default())?))).unwrap();
    let incarnation = store.incarnation();
    drop(store);
    let store = open(folder.path(), Origin::Central, 9).unwrap();
    let after = store.read(|view| Ok((view.sites()?, view.nodes(&NodeFilter::default())?))).unwrap();
    assert_eq!((before, incarnation), (after, store.incarnation()));
    assert_eq!(store.read(|view| view.site_by_name("lyon")).unwrap().unwrap().id, lyon);
    assert_eq!(store.read(|view| view.node_by_mac(MAC)).unwrap().unwrap().id, node);
}

#[test]
fn a_database_of_a_newer_program_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), Origin::Central, 1).unwrap());
    let database = folder.path().join("holdfast.db");
    rusqlite::Connection::open(&database).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let bytes = fs::read(&database).unwrap();
    let error = open(folder.path(), Origin::Central, 2).err().expect("refused");
    expect_test::expect![
        "the database has version 9, this program knows versions up to 1; it was not touched. Next: start the newer program again, or restore a backup that this one made"
    ]
    .assert_eq(&error.to_string());
    assert_eq!(fs::read(&database).unwrap(), bytes);
}

#[test]
fn h3_a_virtual_machine_of_another_generation_begins_another_life_and_an_unknown_one_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut at = 0;
    let mut start = |generation: Option<&str>| {
        at += 1;
        let folder = folder.path().to_path_buf();
        let opening = Opening { folder, origin: Origin::Central, given: given(at) };
        let store = Store::open_on(&opening, generation).unwrap();
        let why = store.read(|view| view.suspended()).unwrap();
        (store.incarnation(), why)
    };
    let (first, _) = start(None);
    for generation in [Some("1"), Some("1"), None, Some("1")] {
        assert_eq!(start(generation), (first, None), "{generation:?}");
    }
    let (second, why) = start(Some("2"));
    assert_ne!(second, first);
    assert!(why.is_some_and(|why| why.contains("another generation")));
    assert_eq!(start(Some("2")).0, second, "once");
}

#[test]
fn a_database_of_another_replica_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), Origin::Central, 1).unwrap());
    let error = open(folder.path(), Origin::Site(SiteId([1; 16])), 2).err().expect("refused");
    assert_eq!(error.to_string(), "the database belongs to central, not to 01010101010101010101010101010101");
}

#[test]
fn h3_a_database_that_was_copied_back_begins_another_life_and_follows_no_orders() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Origin::Central, 1).unwrap();
    let first = store.incarnation();
    assert_eq!(store.read(|view| view.suspended()).unwrap(), None);
    drop(store);
    fs::write(folder.path().join("incarnation"), "of a later life").unwrap();
    let store = open(folder.path(), Origin::Central, 2).unwrap();
    assert_ne!(store.incarnation(), first);
    let why = store.read(|view| view.suspended()).unwrap();
    assert_eq!(
        why.as_deref(),
        Some("the database is not the one that ran here last; it was restored or copied")
    );
    drop(store);
    let store = open(folder.path(), Origin::Central, 3).unwrap();
    assert!(store.read(|view| view.suspended()).unwrap().is_some(), "only a person ends it");
    store.run(given(4), |tx| tx.resume_orders()).unwrap();
    assert_eq!(store.read(|view| view.suspended()).unwrap(), None);
}

#[test]
fn a_command_that_fails_takes_back_only_what_it_did_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _, node) = central(folder.path());
    let rename = |name: &str| NodeEdit { hostname: Some(name.into()), ..NodeEdit::default() };
    let (before, fails, after) = (rename("till-1"), rename("till-2"), rename("till-3"));
    let (sender, receiver) = std::sync::mpsc::channel();
    // Three commands that wait together share one commit.
    for (number, edit_with, fail) in [(10, before, false), (11, fails, true), (12, after.clone(), false)] {
        let sender = sender.clone();
        store.submit(
            given(number),
            move |tx| {
                edit(tx, node, &edit_with)?;
                if fail { Err(StoreError::Closed) } else { Ok(()) }
            },
            move |outcome| sender.send(outcome.is_ok()).expect("the test listens"),
        );
    }
    assert_eq!(receiver.iter().take(3).collect::<Vec<_>>(), [true, false, true]);
    let row = store.read(|view| view.node(node)).unwrap().unwrap();
    assert_eq!(row.hostname, "till-3");
    let names: Vec<String> = store
        .read(|view| view.journal(&JournalFilter::default()))
        .unwrap()
        .into_iter()
        .filter_map(|row| match row.event? {
            Event::RegisterSet { path, value, .. } if path == "hostname" => Some(value),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["till-1", "till-3"], "the journal does not know of what did not happen");
}

#[test]
fn a_full_disk_is_named_and_the_next_command_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _, node) = central(folder.path());
    let limit = |store: &Store, spare: i64| {
        store.run(given(9), move |tx| {
            let pages: i64 = tx.sql.pragma_query_value(None, "page_count", |row| row.get(0))?;
            tx.sql.pragma_update(None, "max_page_count", pages + spare)?;
            Ok(())
        })
    };
    limit(&store, 1).unwrap();
    let edit_with =
        |number: u8| NodeEdit { notes: Some(format!("{number}").repeat(1_300)), ..NodeEdit::default() };
    let (sender, receiver) = std::sync::mpsc::channel();
    // They may share a transaction: each is told what became of it, whichever page was the last.
    for number in 10..30 {
        let sender = sender.clone();
        let new = edit_with(number);
        store.submit(
            given(number),
            move |tx| edit(tx, node, &new),
            move |outcome| sender.send((number, outcome.map(drop))).expect("the test listens"),
        );
    }
    let mut kept = None;
    for (number, outcome) in receiver.iter().take(20) {
        match outcome {
            Ok(()) => kept = Some(number),
            Err(StoreError::Full) => {}
            Err(error) => panic!("{number} fails with {error:?}"),
        }
    }
    let said = |store: &Store| {
        let rows = store.read(|view| view.journal(&JournalFilter::default())).unwrap();
        let mut notes = rows.into_iter().filter_map(|row| match row.event? {
            Event::RegisterSet { path, value, .. } if path == "notes" => value[..2].parse::<u8>().ok(),
            _ => None,
        });
        notes.next_back()
    };
    assert_eq!(said(&store), kept, "what was answered is what is there");
    limit(&store, 1_000).unwrap();
    let new = edit_with(30);
    store.run(given(30), move |tx| edit(tx, node, &new)).unwrap();
    assert_eq!(said(&store), Some(30));
}

#[test]
fn a_compacted_document_is_told_to_peers_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lyon, node) = central(folder.path());
    let peer = Origin::Site(lyon);
    let read = |store: &Store| store.run(given(200), move |tx| tx.read_log(peer, 1, 1 << 20)).unwrap();
    for number in 0..20 {
        let edit_with = NodeEdit { hostname: Some(format!("till-{number}")), ..NodeEdit::default() };
        store.run(given(20 + number), move |tx| edit(tx, node, &edit_with)).unwrap();
    }
    let before = read(&store);
    for number in 20..60 {
        let edit_with = NodeEdit { hostname: Some(format!("till-{number}")), ..NodeEdit::default() };
        store.run(given(20 + number), move |tx| edit(tx, node, &edit_with)).unwrap();
    }
    let compacted: i64 = rusqlite::Connection::open(store.database())
        .unwrap()
        .query_row("SELECT count(*) FROM changes WHERE bytes IS NULL", [], |row| row.get(0))
        .unwrap();
    assert!(compacted >= 32, "{compacted} changes are covered by a snapshot");
    let after = read(&store);
    assert_eq!(after[..before.len()], before, "the same bytes, now out of the snapshot");
    drop(store);
    let store = open(folder.path(), Origin::Central, 250).unwrap();
    assert_eq!(read(&store), after);
    assert_eq!(store.read(|view| view.node(node)).unwrap().unwrap().hostname, "till-59");
}

/// Items of a site's log as a peer would send them: two changes of one machine, the second on the first.
fn foreign_changes(site: SiteId) -> Vec<Vec<u8>> {
    let id = sync::id::NodeId::of(MAC).into();
    let mut document = Document::new(node::KIND, id);
    (1..=2)
        .map(|number| {
            let mut author = Author {
                incarnation: Incarnation([7; 16]),
                site: Origin::Site(site),
                by: "bob".into(),
                at: Hlc::at(NOW.after(Duration::from_secs(number))),
                policy_epoch: 1,
                entropy: Entropy::new([u8::try_from(number).unwrap(); 32]),
            };
            let value = Text { value: format!("kasse-{number}") };
            let change = document.write(&mut author, |edit| {
                edit.set(&node::hostname(), &value, "");
            });
            Item::change(node::KIND.number(), id, change.unwrap().raw_bytes().to_vec()).to_bytes()
        })
        .collect()
}

fn ingest(store: &Store, from: u64, items: Vec<Vec<u8>>, peer: Origin) -> Result<(), StoreError> {
    let output = Output::Ingest { connection: Connection(1), peer, from, items, seal: None };
    store.answer_now(output, given(100)).map(drop)
}

#[test]
fn what_arrives_before_its_cause_is_parked_in_the_same_commit_and_taken_later() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Origin::Central, 1).unwrap();
    let lyon = store.run(given(2), |tx| site::create(tx, "lyon", "", "")).unwrap();
    let items = foreign_changes(lyon);
    ingest(&store, 1, vec![items[1].clone()], Origin::Site(lyon)).unwrap();
    assert!(store.read(|view| view.node_by_mac(MAC)).unwrap().is_none());
    drop(store);
    let store = open(folder.path(), Origin::Central, 3).unwrap();
    ingest(&store, 2, vec![items[0].clone()], Origin::Site(lyon)).unwrap();
    let nodes = store.read(|view| view.nodes(&NodeFilter::default())).unwrap();
    assert_eq!(nodes[0].hostname, "kasse-2");
    assert_eq!(store.read(|view| view.peer(Origin::Site(lyon))).unwrap().pulled, 2);
}

#[test]
fn h6_a_damaged_change_is_set_aside_shown_and_takes_nothing_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Origin::Central, 1).unwrap();
    let lyon = store.run(given(2), |tx| site::create(tx, "lyon", "", "")).unwrap();
    let good = foreign_changes(lyon);
    let mut item: Item = minicbor::decode(&good[1]).unwrap();
    item.change.as_mut().unwrap()[60] ^= 1;
    ingest(&store, 1, vec![good[0].clone(), item.to_bytes()], Origin::Site(lyon)).unwrap();
    let (nodes, aside, peer) = store
        .read(|view| {
            Ok((view.nodes(&NodeFilter::default())?, view.quarantine()?, view.peer(Origin::Site(lyon))?))
        })
        .unwrap();
    assert_eq!(nodes[0].hostname, "kasse-1");
    assert_eq!((aside.len(), peer.agrees, peer.pulled), (1, Some(false), 2));
    let noted = store.read(|view| view.journal(&JournalFilter::default())).unwrap();
    assert!(noted.iter().any(|row| matches!(row.event, Some(Event::ChangeQuarantined { .. }))));
}

#[test]
fn a_batch_with_a_gap_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Origin::Central, 1).unwrap();
    let lyon = store.run(given(2), |tx| site::create(tx, "lyon", "", "")).unwrap();
    let error = ingest(&store, 5, foreign_changes(lyon), Origin::Site(lyon)).unwrap_err();
    assert_eq!(error.to_string(), "batch of log items: it begins at 5 and 0 are here");
    assert_eq!(store.read(|view| view.peer(Origin::Site(lyon))).unwrap().pulled, 0);
}

/// Central and the stores of two sites, and what is carried between them.
struct Fleet {
    folder: tempfile::TempDir,
    central: Store,
    sites: Vec<(SiteId, Store)>,
    number: u16,
}

impl Fleet {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let central = open(&folder.path().join("central"), Origin::Central, 1).unwrap();
        let mut fleet = Fleet { folder, central, sites: vec![], number: 1 };
        for name in ["lyon", "bern"] {
            let given = fleet.given();
            let id = fleet.central.run(given, move |tx| site::create(tx, name, "", "")).unwrap();
            let number = fleet.given().entropy[0];
            let store = open(&fleet.folder.path().join(name), Origin::Site(id), number).unwrap();
            fleet.sites.push((id, store));
        }
        fleet.settle();
        fleet
    }

    fn given(&mut self) -> Given {
        self.number += 1;
        let [high, low] = self.number.to_be_bytes();
        let mut entropy = [low; 32];
        entropy[31] = low.wrapping_add(high);
        Given { now: NOW.after(Duration::from_secs(u64::from(self.number))), by: "ann".into(), entropy }
    }

    /// Carries what one replica has for another; `tamper` may change an item on its way.
    fn carry(&mut self, from: &Store, to: &Store, tamper: impl Fn(&mut Item)) -> u64 {
        let (source, target) = (from.origin(), to.origin());
        let mut carried = 0;
        loop {
            let begin = to.read(|view| Ok(view.peer(source)?.pulled)).unwrap() + 1;
            let connection = Connection(1);
            let read = Output::Read { connection, peer: target, from: begin, max_bytes: 1 << 16 };
            let Some(Input::Read { items, seal, .. }) = from.answer_now(read, self.given()).unwrap() else {
                panic!("a replica reads its log");
            };
            if items.is_empty() {
                return carried;
            }
            carried += items.len() as u64;
            let position = begin + items.len() as u64 - 1;
            let items = items
                .iter()
                .map(|bytes| {
                    let mut item: Item = minicbor::decode(bytes).unwrap();
                    tamper(&mut item);
                    item.to_bytes()
                })
                .collect();
            let taken = Output::Ingest { connection, peer: source, from: begin, items, seal };
            to.answer_now(taken, self.given()).unwrap();
            from.answer_now(Output::Acknowledged { peer: target, position }, self.given()).unwrap();
        }
    }

    /// Carries everything both ways until nobody has anything to say.
    fn settle(&mut self) {
        loop {
            let mut carried = 0;
            for (_, site) in self.sites.clone() {
                let central = self.central.clone();
                let clock = NOW;
                let peer = site.origin();
                central.answer_now(Output::Heard { peer, clock, telemetry: None }, self.given()).unwrap();
                carried += self.carry(&central, &site, |_| {}) + self.carry(&site, &central, |_| {});
            }
            if carried == 0 {
                return;
            }
        }
    }

    /// Whether central finds that a site holds what it should.
    fn agrees(&mut self, index: usize) -> Option<bool> {
        let (id, site) = self.sites[index].clone();
        let peer = Origin::Site(id);
        let (pulled, pushed) = (
            site.read(|view| Ok(view.peer(Origin::Central)?.pulled)).unwrap(),
            self.central.read(|view| Ok(view.peer(peer)?.pulled)).unwrap(),
        );
        let connection = Connection(1);
        let take = Output::TakeFingerprint { connection, pulled, pushed };
        let Some(Input::Fingerprinted { fingerprint, .. }) = site.answer_now(take, self.given()).unwrap()
        else {
            panic!("a site sums up what it holds");
        };
        let compare = Output::Compare { connection, peer, pulled, pushed, fingerprint };
        let central = self.central.clone();
        match central.answer_now(compare, self.given()).unwrap() {
            Some(Input::Compared { agrees, .. }) => agrees,
            other => panic!("{other:?}"),
        }
    }

    /// A machine that nobody knows boots at a site, which adopts it.
    fn adopt(&mut self, index: usize, mac: MacAddr) -> sync::id::NodeId {
        let answered = Answered {
            mac,
            answer: "local disk".into(),
            reason: "unknown".into(),
            adopt: true,
            booting: None,
            local_disk: true,
            claims: false,
        };
        let given = self.given();
        let adopted = move |tx: &mut Tx<'_>| answered_boot(tx, &answered);
        self.sites[index].1.run(given, adopted).unwrap().expect("adopted")
    }

    fn names(&self, store: &Store) -> Vec<String> {
        let nodes = store.read(|view| view.nodes(&NodeFilter::default())).unwrap();
        nodes.iter().map(|row| format!("{} `{}`", row.macs[0], row.hostname)).collect()
    }
}

#[test]
fn h6_a_host_that_makes_up_addresses_becomes_no_more_than_so_many_machines() {
    use crate::command::boot::MAX_UNREGISTERED;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Origin::Site(SiteId([1; 16])), 1).unwrap();
    let mut known = Vec::new();
    for index in 0..MAX_UNREGISTERED + 4 {
        let [.., high, low] = index.to_be_bytes();
        let answered = Answered {
            mac: MacAddr([0x0e, 0x66, 0, 0, high, low]),
            answer: "hold page".into(),
            reason: "the machine was unknown and is adopted by this site".into(),
            adopt: true,
            booting: None,
            local_disk: false,
            claims: false,
        };
        known.extend(store.run(given(2), move |tx| answered_boot(tx, &answered)).unwrap());
    }
    let nodes = store.read(|view| view.count_nodes(None)).unwrap();
    assert_eq!((known.len() as i64, nodes as i64), (MAX_UNREGISTERED, MAX_UNREGISTERED));
}

#[test]
fn p9_a_site_that_only_saw_a_machine_keeps_its_place_in_the_directory_and_not_its_document() {
    let mut fleet = Fleet::new();
    let (lyon, bern) = (fleet.sites[0].clone(), fleet.sites[1].clone());
    let given = fleet.given();
    let node = fleet.central.run(given, move |tx| create_node(tx, MAC, lyon.0, "pos-1")).unwrap();
    // Before bern hears of it, the machine boots there.
    assert_eq!(fleet.adopt(1, MAC), node);
    fleet.settle();
    assert_eq!(fleet.names(&lyon.1), ["52:54:00:00:00:01 `pos-1`"]);
    assert_eq!(fleet.names(&bern.1), Vec::<String>::new());
    let row = bern.1.read(|view| view.directory(node)).unwrap().expect("it is in the directory");
    assert_eq!((row.stub.home, row.stub.retired), (Some(lyon.0), false));
    let documents = |store: &Store| store.read(|view| view.documents()).unwrap();
    assert_eq!(documents(&bern.1).get("node"), None, "the document is gone");
    let seen = fleet.central.read(|view| view.node(node)).unwrap().unwrap();
    assert_eq!(seen.observed_by, [bern.0], "that it was seen there is known");
    assert_eq!((fleet.agrees(0), fleet.agrees(1)), (Some(true), Some(true)));

    // It boots there once more: the document is written by another actor, and leaves again.
    fleet.adopt(1, MAC);
    fleet.settle();
    assert_eq!(documents(&bern.1).get("node"), None);
    assert_eq!((fleet.agrees(0), fleet.agrees(1)), (Some(true), Some(true)));

    // It moves: now bern holds it and lyon does not.
    let given = fleet.given();
    let moved = node::Home { home_site: Some(bern.0), home_epoch: 2, claim: None };
    let id = node.into();
    fleet
        .central
        .run(given, move |tx| {
            tx.write(node::KIND, id, |edit| {
                edit.set(&node::home(), &moved, "moved");
            })
        })
        .unwrap();
    fleet.settle();
    assert_eq!(fleet.names(&lyon.1), Vec::<String>::new());
    assert_eq!(fleet.names(&bern.1), ["52:54:00:00:00:01 `pos-1`"]);
    assert_eq!(documents(&lyon.1).get("node"), None);
    assert_eq!((fleet.agrees(0), fleet.agrees(1)), (Some(true), Some(true)));
}

#[test]
fn h6_what_central_could_not_take_is_written_anew_and_both_hold_the_same() {
    let mut fleet = Fleet::new();
    let lyon = fleet.sites[0].clone();
    let given = fleet.given();
    let node = fleet.central.run(given, move |tx| create_node(tx, MAC, lyon.0, "pos-1")).unwrap();
    fleet.settle();
    let rename = |fleet: &mut Fleet, name: &str| {
        let new = NodeEdit { hostname: Some(name.into()), ..NodeEdit::default() };
        let given = fleet.given();
        fleet.sites[0].1.run(given, move |tx| edit(tx, node, &new)).unwrap();
    };
    for name in ["till-1", "till-2", "till-3"] {
        rename(&mut fleet, name);
    }
    // The second of three arrives damaged.
    let (central, site) = (fleet.central.clone(), fleet.sites[0].1.clone());
    let seen = std::cell::Cell::new(0);
    fleet.carry(&site, &central, |item| {
        if let Some(change) = &mut item.change {
            seen.set(seen.get() + 1);
            if seen.get() == 2 {
                change[60] ^= 1;
            }
        }
    });
    assert_eq!(fleet.names(&central), ["52:54:00:00:00:01 `till-1`"]);
    rename(&mut fleet, "till-4");
    fleet.settle();
    assert_eq!(fleet.names(&central), ["52:54:00:00:00:01 `till-4`"]);
    assert_eq!(fleet.names(&site), ["52:54:00:00:00:01 `till-4`"]);
    assert_eq!(fleet.agrees(0), Some(true));
    let noted = site.read(|view| view.journal(&JournalFilter::default())).unwrap();
    let resets: Vec<_> = noted
        .iter()
        .filter_map(|row| match &row.event {
            Some(Event::DocumentReset { again, refused, .. }) => Some((*again, *refused)),
            _ => None,
        })
        .collect();
    assert_eq!(resets, [(3, 0)], "the damaged one and the two that follow it");
    // What is on the disk is what is in memory.
    let id = fleet.sites[0].0;
    drop((site, fleet.sites.remove(0)));
    let again = open(&fleet.folder.path().join("lyon"), Origin::Site(id), 98).unwrap();
    assert_eq!(fleet.names(&again), ["52:54:00:00:00:01 `till-4`"]);
    again.run(fleet.given(), |tx| tx.rebuild_views()).unwrap();
    assert_eq!(fleet.names(&again), ["52:54:00:00:00:01 `till-4`"]);
}

#[test]
fn h6_p5_what_a_site_may_not_write_is_taken_back_noted_and_the_rest_written_anew() {
    let mut fleet = Fleet::new();
    let lyon = fleet.sites[0].clone();
    let given = fleet.given();
    let node = fleet.central.run(given, move |tx| create_node(tx, MAC, lyon.0, "pos-1")).unwrap();
    fleet.settle();
    let write = |fleet: &mut Fleet, wish: Option<Wanted>, name: Option<&str>| {
        let name = name.map(|name| Text { value: name.into() });
        let given = fleet.given();
        let written = fleet.sites[0].1.run(given, move |tx| {
            tx.write(node::KIND, node.into(), |edit| {
                if let Some(wanted) = wish {
                    edit.set(&node::wanted(), &node::Wish { wanted }, "old");
                }
                if let Some(name) = &name {
                    edit.set(&node::hostname(), name, "better");
                }
            })
        });
        written.unwrap();
    };
    // The site is `limited`: it may name its machines and not retire them.
    write(&mut fleet, None, Some("till-1"));
    write(&mut fleet, Some(Wanted::Retired), None);
    write(&mut fleet, None, Some("till-2"));
    fleet.settle();
    let row = |store: &Store| store.read(|view| view.node(node)).unwrap().unwrap();
    for store in [&fleet.central, &fleet.sites[0].1] {
        assert_eq!((row(store).wanted, row(store).hostname.as_str()), (Wanted::Keep, "till-2"));
    }
    assert_eq!(fleet.agrees(0), Some(true));
    let noted = fleet.sites[0].1.read(|view| view.journal(&JournalFilter::default())).unwrap();
    let refusals: Vec<String> = noted
        .iter()
        .filter_map(|row| match &row.event {
            Some(Event::WriteRefused { path, by, reason, .. }) => Some(format!("{path} by {by}: {reason}")),
            _ => None,
        })
        .collect();
    let reason = format!("`wanted` of node {node} needs autonomy `full`; lyon has `limited`");
    assert_eq!(refusals, [format!("wanted by ann: {reason}")]);
    let aside = fleet.central.read(|view| view.quarantine()).unwrap();
    assert_eq!(aside[0].reason, reason);
    // The names that followed it are the site's own, under another actor, and told once.
    write(&mut fleet, None, Some("till-3"));
    fleet.settle();
    assert_eq!(row(&fleet.central).hostname, "till-3");
    assert_eq!(fleet.agrees(0), Some(true));
}

#[test]
fn h6_a_command_beyond_those_that_wait_is_told_so_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), Origin::Central, 1).unwrap();
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let (begins, begun) = std::sync::mpsc::channel();
    // The writer is in the middle of something.
    let slow = move |_: &mut Tx<'_>| {
        begins.send(()).expect("the test listens");
        held.recv().unwrap_or_default();
        Ok(())
    };
    store.submit(given(2), slow, drop);
    begun.recv().expect("the writer begins");
    let (sender, outcomes) = std::sync::mpsc::channel();
    for number in 0..1_100_u64 {
        let sender = sender.clone();
        store.submit(
            given(3),
            move |_| Ok(number),
            move |outcome| sender.send(outcome.map_err(|error| error.to_string())).expect("the test listens"),
        );
    }
    let refused: Vec<_> = outcomes.try_iter().collect();
    assert_eq!(refused.len(), 76, "1,024 wait, the others know");
    let words = "more is asked of the database than it can write now";
    assert!(refused.iter().all(|outcome| outcome == &Err(words.to_string())), "{refused:?}");
    // Sessions are bounded by the engine and never turned away here.
    let read = Output::Read { connection: Connection(1), peer: Origin::Central, from: 1, max_bytes: 1 };
    let (answers, answered) = std::sync::mpsc::channel();
    store.answer(read, given(4), move |input| answers.send(input).expect("the test listens"));
    drop(hold);
    let done: Vec<u64> = outcomes.iter().take(1_024).map(|outcome| outcome.expect("it was taken")).collect();
    assert_eq!(done, (0..1_024).collect::<Vec<_>>());
    assert!(matches!(answered.recv(), Ok(Input::Read { .. })));
}
