//! Who is told that the journal has grown, and what is found after a position of it.

use std::sync::mpsc::{Receiver, channel};

use expect_test::expect;

use super::*;
use crate::view::{Follower, Step};

/// Numbers of the newest entry, as they could be read whenever the store said that there are more.
fn heard(store: &Store) -> Receiver<u64> {
    let (sender, receiver) = channel();
    let reader = store.clone();
    // The store is kept alive by this; the tests end before that matters.
    store.watch_journal(move || {
        sender
            .send(reader.read(|view| view.newest_entry()).expect("it can be read"))
            .expect("the test listens");
    });
    receiver
}

#[test]
fn p15_every_commit_with_entries_is_told_once_whoever_wrote_them_and_no_other() {
    let mut fleet = Fleet::new();
    let (central, lyon) = (fleet.central.clone(), fleet.sites[0].clone());
    fleet.settle();
    let (above, here) = (heard(&central), heard(&lyon.1));
    let before = here.try_iter().count() + above.try_iter().count();
    assert_eq!(before, 0);

    // At the site, in the transaction that its own people make.
    let name = |hostname: &str| NodeEdit { hostname: Some(hostname.into()), ..NodeEdit::default() };
    let given = fleet.given();
    let node = central.run(given, move |tx| create_node(tx, MAC, lyon.0, "pos-1")).unwrap();
    assert_eq!(above.try_iter().count(), 1, "central journalled what it did");
    fleet.settle();
    let newest = lyon.1.read(|view| view.newest_entry()).unwrap();
    assert_eq!(here.try_iter().last(), Some(newest), "what central told is in the site's journal");
    above.try_iter().for_each(drop);

    let given = fleet.given();
    lyon.1.run(given, move |tx| edit(tx, node, &name("till-1"))).unwrap();
    assert_eq!(here.try_iter().collect::<Vec<_>>(), [newest + 1]);
    assert_eq!(above.try_iter().count(), 0, "central has not heard of it");
    fleet.settle();
    let newest = central.read(|view| view.newest_entry()).unwrap();
    assert_eq!(above.try_iter().last(), Some(newest), "what the site brought is in central's journal");

    // Neither what is taken back nor what notes nothing.
    here.try_iter().for_each(drop);
    let given = fleet.given();
    let failed = lyon.1.run(given, move |tx| {
        edit(tx, node, &name("till-2"))?;
        Err::<(), _>(StoreError::Unknown("anything".into()))
    });
    assert!(failed.is_err());
    lyon.1.run(fleet.given(), |tx| tx.rebuild_views()).unwrap();
    assert_eq!(here.try_iter().count(), 0);
}

#[test]
fn p15_what_follows_a_position_comes_in_pages_that_neither_lose_nor_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let (store, lyon, node) = central(folder.path());
    for number in 0..5 {
        let new = NodeEdit { hostname: Some(format!("till-{number}")), ..NodeEdit::default() };
        store.run(given(10 + number), move |tx| edit(tx, node, &new)).unwrap();
    }
    let all = store.read(|view| view.journal(&JournalFilter::default())).unwrap();
    let hears = |follower: &mut Follower| {
        let (mut heard, mut upto) = (Vec::new(), 0);
        loop {
            match follower.step() {
                Step::Hear(at, row) => {
                    assert!(at >= upto, "nobody goes back");
                    upto = at;
                    heard.extend(row.map(|row| *row));
                }
                Step::Look(look) => follower.found(store.read(|view| look.at(view)).unwrap()),
                Step::Wait => return (heard, upto),
            }
        }
    };
    let told = |kinds: &[&'static str]| hears(&mut Follower::new(None, kinds.to_vec(), 0, 3)).0;
    assert_eq!(told(&[]), all);
    let kind = |row: &JournalRow| serde_json::to_value(row).unwrap()["event"].as_str().unwrap().to_owned();
    let names: Vec<String> = all.iter().map(kind).collect();
    for (row, name) in all.iter().zip(&names) {
        assert_eq!(row.event.as_ref().map(Event::kind), Some(name.as_str()), "the name that JSON has");
    }
    expect![[r#"
        site_created
        node_discovered
        register_set
        register_set
        register_set
        register_set
        register_set"#]]
    .assert_eq(&names.join("\n"));
    let some = ["site_created", "node_discovered"];
    let wanted: Vec<_> = all.iter().filter(|row| some.contains(&kind(row).as_str())).cloned().collect();
    assert_eq!(told(&some), wanted);

    // Whoever wants nothing of it hears how far it was looked, and of what comes next.
    let mut follower = Follower::new(None, vec!["task_created", "register_set"], 4, 3);
    assert_eq!(hears(&mut follower).0, all[4..]);
    let mut bored = Follower::new(None, vec!["task_created"], 0, 3);
    assert_eq!(hears(&mut bored), (vec![], all.len() as u64));
    let named = NodeEdit { hostname: Some("till-9".into()), ..NodeEdit::default() };
    store.run(given(20), move |tx| edit(tx, node, &named)).unwrap();
    assert_eq!(hears(&mut follower), (vec![], 0), "he waits until he is told that it has grown");
    follower.grown();
    assert_eq!(hears(&mut follower).0.len(), 1);
    assert_eq!(hears(&mut Follower::new(Some(lyon), vec![], 99, 3)), (vec![], 99));
}
