//! What does not fit is set aside, the rest goes on, and a person decides.

use std::collections::BTreeMap;

use sync::journal::{Head, Stream, chain};

use super::*;
use crate::{
    quarantine::{MAX_BYTES, MAX_ITEMS},
    view::{ConflictFilter, ProposalFilter, ProposalState, QuarantineFilter},
};

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
fn h6_p15_what_a_site_cannot_follow_of_centrals_journal_arrives_in_another_chain_but_not_for_ever() {
    let mut fleet = Fleet::new();
    let (lyon, central) = (fleet.sites[0].clone(), fleet.central.clone());
    let node = fleet.adopt(0, machine(1));
    fleet.settle();
    let name = |fleet: &mut Fleet, name: &str| {
        let named = NodeEdit { hostname: Some(name.into()), ..NodeEdit::default() };
        let given = fleet.given();
        fleet.central.run(given, move |tx| edit(tx, node, &named)).unwrap();
    };
    let told = |store: &Store| {
        let rows =
            events(store, |event| matches!(event, Event::RegisterSet { path, .. } if path == "hostname"));
        rows.into_iter()
            .map(|event| match event {
                Event::RegisterSet { value, .. } => value,
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    let breaks = |fleet: &mut Fleet| {
        fleet.carry(&central, &lyon.1, |item| {
            if let Some(bytes) = &mut item.entry {
                let mut entry = chain::decode(bytes).unwrap();
                entry.by = "eve".into();
                *bytes = minicbor::to_vec(&entry).unwrap();
            }
        })
    };
    let mut expected = vec![];
    for number in 1..=10 {
        for letter in ["a", "b"] {
            expected.push(format!("pos-{number}{letter}"));
            name(&mut fleet, &format!("pos-{number}{letter}"));
        }
        breaks(&mut fleet);
        fleet.settle();
        if number == 1 {
            // The first of them arrived as somebody else's word, and only the next one showed it.
            assert_eq!(told(&lyon.1), ["pos-1a", "pos-1a", "pos-1b"]);
            let begun = events(&lyon.1, |event| matches!(event, Event::ChainBegun { .. }));
            assert!(matches!(begun[..], [Event::ChainBegun { lost: 0, .. }]), "{begun:?}");
        }
    }
    let begun = events(&central, |event| matches!(event, Event::ChainBegun { .. }));
    assert_eq!(begun.len(), 8, "anybody can say that he cannot follow");
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
    let settled = central.read(|view| view.conflicts(&ConflictFilter::default())).unwrap();
    assert_eq!(settled[0].path, "hostname", "what the site called it came with the last item");
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

/// Central, and the first site, which is `limited` and wrote what it may not.
fn with_refusals(write: &[(Wanted, &str)]) -> (Fleet, sync::id::NodeId) {
    let mut fleet = Fleet::new();
    let lyon = fleet.sites[0].clone();
    let given = fleet.given();
    let node = fleet.central.run(given, move |tx| create_node(tx, MAC, lyon.0, "pos-1")).unwrap();
    fleet.settle();
    for (wanted, why) in write {
        let (wish, why) = (node::Wish { wanted: *wanted }, why.to_string());
        let given = Given { by: "bob".into(), ..fleet.given() };
        let written = fleet.sites[0].1.run(given, move |tx| {
            tx.write(node::KIND, node.into(), |edit| {
                edit.set(&node::wanted(), &wish, &why);
            })
        });
        written.unwrap();
    }
    (fleet, node)
}

fn wanted(store: &Store, node: sync::id::NodeId) -> Wanted {
    store.read(|view| view.node(node)).unwrap().unwrap().wanted
}

#[test]
fn h6_what_was_set_aside_is_shown_and_released_as_an_intent_of_who_releases_it() {
    let (mut fleet, node) = with_refusals(&[(Wanted::Reprovision, "broken disk")]);
    fleet.settle();
    let central = fleet.central.clone();
    let lyon = fleet.sites[0].0;
    let filter =
        QuarantineFilter { peer: Some(Origin::Site(lyon)), denied: Some(true), ..Default::default() };
    let rows = central.read(|view| view.quarantined(&filter)).unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    let filters = [
        QuarantineFilter { peer: Some(Origin::Site(fleet.sites[1].0)), ..Default::default() },
        QuarantineFilter { denied: Some(false), ..Default::default() },
        QuarantineFilter { kind: Some("journal".into()), ..Default::default() },
        QuarantineFilter { after: row.item, ..Default::default() },
    ];
    for filter in filters {
        assert_eq!(central.read(|view| view.quarantined(&filter)).unwrap(), []);
    }
    let item = row.item;
    let detail = central.read(|view| view.quarantine_item(item)).unwrap().unwrap();
    let said = &detail.registers[0];
    assert_eq!((said.path.as_str(), said.by.as_str(), said.why.as_str()), ("wanted", "bob", "broken disk"));
    assert_eq!(said.value, serde_json::json!({ "wanted": "reprovision" }));
    let bytes = central.read(|view| view.quarantine_bytes(item)).unwrap().unwrap();
    assert_eq!(detail.digest, sync::blob::Digest::of(&bytes));
    assert_eq!(detail.change.unwrap().hash, sync::ingress::parse(&bytes).unwrap().hash().to_string());

    let given = fleet.given();
    central.run(given, move |tx| command::quarantine::release(tx, item, "it is broken")).unwrap();
    assert_eq!(wanted(&central, node), Wanted::Reprovision);
    fleet.settle();
    assert_eq!(wanted(&fleet.sites[0].1, node), Wanted::Reprovision);
    assert_eq!(fleet.agrees(0), Some(true));
    let written = central
        .run(fleet.given(), move |tx| {
            tx.with_document(node::KIND, node.into(), |document| {
                let wish = sync::document::contested::read(document, &node::wanted());
                wish.settled().map(|side| side.written.clone())
            })
        })
        .unwrap()
        .flatten()
        .unwrap();
    assert_eq!((written.by.as_str(), written.site), ("ann", Origin::Central));
    assert_eq!(written.why, "it is broken; written by bob at lyon (broken disk), and released");
    let decided = events(&central, |event| matches!(event, Event::QuarantineDecided { .. }));
    let [Event::QuarantineDecided { decision, author, why, digest, .. }] = &decided[..] else {
        panic!("{decided:?}")
    };
    assert_eq!((decision.as_str(), author.as_str(), why.as_str()), ("released", "bob", "it is broken"));
    assert_eq!(*digest, detail.digest);
    let error =
        central.run(fleet.given(), move |tx| command::quarantine::release(tx, item, "again")).unwrap_err();
    assert_eq!(error.to_string(), format!("quarantined item {item} is not known here"));
}

#[test]
fn h6_nobody_releases_a_fact_or_what_cannot_be_read_and_anything_can_be_dismissed() {
    let folder = tempfile::tempdir().unwrap();
    let (central, lyon, node) = central(folder.path());
    let mut document = central
        .run(given(50), move |tx| tx.with_document(node::KIND, node.into(), Document::clone))
        .unwrap()
        .unwrap();
    let bern = central.run(given(51), |tx| site::create(tx, "bern", "", "")).unwrap();
    let mut author = Author {
        incarnation: Incarnation([7; 16]),
        site: Origin::Site(bern),
        by: "eve".into(),
        at: Hlc::at(NOW),
        policy_epoch: 1,
        entropy: Entropy::new([7; 32]),
    };
    let mut change = |edit: &dyn Fn(&mut sync::document::register::Edit<'_>)| {
        let change = document.clone().write(&mut author, |it| edit(it)).unwrap();
        document.apply(change.clone()).unwrap();
        Item::change(node::KIND.number(), node.into(), change.raw_bytes().to_vec()).to_bytes()
    };
    let fact = change(&|edit| {
        edit.set(&node::evidence("serial"), &node::Evidence { value: "1".into() }, "");
    });
    let mine = change(&|edit| {
        edit.set(&node::home(), &node::Home { home_site: Some(bern), home_epoch: 9, claim: None }, "");
    });
    ingest(&central, 1, vec![fact, mine, vec![0xff; 3]], Origin::Site(bern)).unwrap();
    let rows = central.read(|view| view.quarantine()).unwrap();
    let mut said = String::new();
    for row in &rows {
        let item = row.item;
        let refused = central.run(given(60), move |tx| command::quarantine::release(tx, item, ""));
        said += &format!("{}\n", refused.unwrap_err());
        central.run(given(61), move |tx| command::quarantine::dismiss(tx, item, "junk")).unwrap();
    }
    expect_test::expect![[r#"
        item 1 is no change of a document that is known here; export it, or dismiss it
        `serial` is a fact: whoever saw it writes it, and nobody in his stead
        `home` is central's own to decide: use the command that is made for it
    "#]]
    .assert_eq(&said);
    assert_eq!(central.read(|view| view.quarantine()).unwrap(), []);
    assert_eq!(central.read(|view| view.node(node)).unwrap().unwrap().home, Some(lyon));
    let decided = events(&central, |event| matches!(event, Event::QuarantineDecided { .. }));
    assert_eq!(decided.len(), 3);
}

#[test]
fn p6_a_refused_wish_becomes_a_proposal_that_central_applies_in_the_name_of_who_wished_it() {
    let (mut fleet, node) = with_refusals(&[(Wanted::Reprovision, "broken disk")]);
    fleet.settle();
    let (central, lyon) = (fleet.central.clone(), fleet.sites[0].clone());
    let proposals = |store: &Store| store.read(|view| view.proposals(&ProposalFilter::default())).unwrap();
    let [row] = &proposals(&central)[..] else { panic!("{:?}", proposals(&central)) };
    assert_eq!((row.site, row.by.as_str(), row.why.as_str()), (lyon.0, "bob", "broken disk"));
    assert_eq!((row.kind.as_deref(), row.document), (Some("node"), Some(node.into())));
    assert_eq!(row.arguments["wanted"], serde_json::json!({ "wanted": "reprovision" }));
    assert_eq!(row.state, ProposalState::Open);
    let noted = lyon.1.read(|view| view.journal(&JournalFilter { site: Some(lyon.0), ..Default::default() }));
    let told = noted.unwrap().into_iter().find(|it| it.seq == row.journal_seq).and_then(|it| it.event);
    assert!(matches!(told, Some(Event::WriteRefused { .. })), "{told:?}");
    assert_eq!(wanted(&central, node), Wanted::Keep);

    let id = row.id;
    central.run(fleet.given(), move |tx| command::proposal::apply(tx, id, "seen")).unwrap();
    fleet.settle();
    assert_eq!((wanted(&central, node), wanted(&lyon.1, node)), (Wanted::Reprovision, Wanted::Reprovision));
    let [ended] = &proposals(&lyon.1)[..] else { panic!("the site sees how it ended") };
    assert_eq!(ended.state, ProposalState::Applied);
    assert_eq!(
        ended.outcome.as_ref().map(|end| (end.by.as_str(), end.reason.as_str())),
        Some(("ann", "seen"))
    );
    assert_eq!((fleet.agrees(0), fleet.agrees(1)), (Some(true), Some(true)));
    assert_eq!(proposals(&fleet.sites[1].1), [], "it is between that site and central");
    for again in [true, false] {
        let ended = central.run(fleet.given(), move |tx| match again {
            true => command::proposal::apply(tx, id, "again"),
            false => command::proposal::refuse(tx, id, "after all not"),
        });
        assert!(ended.unwrap_err().to_string().contains("ended at"), "a proposal ends once");
    }
    central.run(fleet.given(), |tx| tx.rebuild_views()).unwrap();
    assert_eq!(proposals(&central)[0].state, ProposalState::Applied);
}

#[test]
fn p6_what_rests_on_a_refused_proposal_is_refused_and_nothing_is_applied_before_it() {
    let (mut fleet, node) =
        with_refusals(&[(Wanted::Reprovision, "broken"), (Wanted::Retired, "older still")]);
    // Somebody asks for another thing besides.
    let given = fleet.given();
    let written = fleet.sites[0].1.run(given, move |tx| {
        tx.write(node::KIND, node.into(), |edit| {
            edit.set(&node::workflow(), &node::WorkflowRef { workflow: None }, "");
        })
    });
    written.unwrap();
    fleet.settle();
    let central = fleet.central.clone();
    let rows = central.read(|view| view.proposals(&ProposalFilter::default())).unwrap();
    let [first, second, other] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((second.rests_on, other.rests_on), (Some(first.id), None));
    let (first, second, other) = (first.id, second.id, other.id);
    let early = central.run(fleet.given(), move |tx| command::proposal::apply(tx, second, "")).unwrap_err();
    assert_eq!(
        early.to_string(),
        format!("it rests on proposal {first}, which is not applied; decide that first")
    );
    central.run(fleet.given(), move |tx| command::proposal::refuse(tx, first, "the disk is new")).unwrap();
    central.run(fleet.given(), move |tx| command::proposal::apply(tx, other, "why not")).unwrap();
    fleet.settle();
    let rows = fleet.sites[0].1.read(|view| view.proposals(&ProposalFilter::default())).unwrap();
    let mut told: Vec<_> =
        rows.iter().map(|row| (row.id, row.outcome.as_ref().unwrap().reason.clone())).collect();
    told.sort();
    let mut expected = vec![
        (first, "the disk is new".to_string()),
        (second, format!("it rests on proposal {first}, which was refused")),
        (other, "why not".to_string()),
    ];
    expected.sort();
    assert_eq!(told, expected);
    assert_eq!(wanted(&central, node), Wanted::Keep);
    assert_eq!(fleet.agrees(0), Some(true));
}
