//! Machines that have two documents, machines that share an identity, and machines that are gone for good.

use std::{collections::BTreeMap, time::Duration};

use expect_test::expect;
use harness::world::World;
use store::{
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        report::{self, Registration},
        site::{self, SettingsEdit},
        twin,
    },
    view::NodeFilter,
};
use sync::{
    document::site::UnknownMachines,
    id::{MacAddr, NodeId, Origin, ReportId, SiteId},
    policy::{Autonomy, Wanted},
};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

fn office(world: &mut World, name: &str) -> SiteId {
    let site = world.add_site(name);
    let edit = SettingsEdit {
        autonomy: Some(Autonomy::Full),
        unknown_machines: Some(UnknownMachines::Adopt),
        ..SettingsEdit::default()
    };
    world.run(Origin::Central, "ann", move |tx| site::set(tx, site, &edit, "")).unwrap();
    world.until("both agree", MINUTE, |world| {
        world.store(Origin::Site(site)).read(|view| view.policy_epoch()).unwrap() == 2
            && world.in_agreement(site)
    });
    site
}

fn meet(world: &mut World, site: SiteId) {
    world.set_link(site, true);
    world.until("both agree", 10 * MINUTE, |world| world.in_agreement(site));
    world.pass(10 * MINUTE);
    world.until("both agree", 10 * MINUTE, |world| world.in_agreement(site));
}

/// The machine boots by one of its interfaces and becomes a node where it is unknown.
fn boots(world: &mut World, site: SiteId, mac: MacAddr) -> Option<NodeId> {
    let answered = Answered {
        mac,
        answer: "local disk".into(),
        reason: "nothing is ordered for this machine".into(),
        adopt: true,
        booting: None,
        local_disk: true,
        claims: false,
    };
    world.run(Origin::Site(site), "boot", move |tx| boot::answered(tx, &answered)).unwrap()
}

/// It introduces itself with what its hardware says.
fn registers(world: &mut World, site: SiteId, mac: MacAddr, identity: (&str, &str), nics: &[MacAddr]) {
    let report = ReportId(world.random.bytes());
    let it = Registration {
        evidence: BTreeMap::from([
            ("serial".to_string(), identity.0.to_string()),
            ("system_uuid".to_string(), identity.1.to_string()),
        ]),
        nics: nics.iter().enumerate().map(|(at, mac)| (format!("eth{at}"), mac.to_string())).collect(),
        ..Registration::default()
    };
    world.run(Origin::Site(site), "machine", move |tx| report::register(tx, report, mac, true, &it)).unwrap();
}

/// Pairs that wait for a person, with names for the nodes.
fn pairs(world: &World, names: &[(NodeId, &str)]) -> String {
    let rows = world.store(Origin::Central).read(|view| view.twins()).unwrap();
    let name = |id: NodeId| names.iter().find(|(known, _)| *known == id).map_or("?", |(_, name)| name);
    let line = |row: &store::view::TwinRow| {
        let mut both = row.nodes.map(name);
        both.sort_unstable();
        format!("{}: {}: {}", both.join(" and "), row.what, row.reason)
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn p9_one_machine_with_two_interfaces_is_one_machine_everywhere() {
    let mut world = World::new(1);
    let lyon = office(&mut world, "lyon");
    world.set_link(lyon, false);
    // It boots by one and by the other before it ever says what it is.
    let [first, second] = [1, 2].map(|last| boots(&mut world, lyon, mac(last)).expect("a node"));
    registers(&mut world, lyon, mac(1), ("S1", "U1"), &[mac(1), mac(2)]);
    meet(&mut world, lyon);
    for origin in [Origin::Central, Origin::Site(lyon)] {
        let read = |mac| world.store(origin).read(|view| view.node_by_mac(mac)).unwrap().unwrap().id;
        assert_eq!(read(mac(1)), read(mac(2)), "{origin}");
        let rows = world.store(origin).read(|view| view.nodes(&NodeFilter::default())).unwrap();
        let aliases: Vec<_> = rows.iter().filter_map(|row| row.alias_of).collect();
        assert_eq!(aliases, [read(mac(1))], "{origin}");
    }
    assert_eq!(pairs(&world, &[(first, "first"), (second, "second")]), "");
    // What boots by the second interface is the machine.
    let main = world.store(Origin::Central).read(|view| view.node_by_mac(mac(2))).unwrap().unwrap().id;
    assert_eq!(boots(&mut world, lyon, mac(2)), Some(main));
    let second = if main == first { second } else { first };
    let new = store::command::task::NewTask {
        node: second,
        workflow: sync::id::WorkflowId([1; 16]),
        version: None,
        parameters: BTreeMap::new(),
        tags: BTreeMap::new(),
    };
    let refused =
        world.run(Origin::Central, "ann", move |tx| store::command::task::create(tx, &new)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("node {second} is another interface of node {main}; name that one")
    );
}

#[test]
fn p9_copied_identities_wait_for_a_person_and_stay_apart_when_he_says_so() {
    let mut world = World::new(2);
    let lyon = office(&mut world, "lyon");
    let [first, second, third] = [1, 2, 3].map(|last| boots(&mut world, lyon, mac(last)).expect("a node"));
    for last in [1, 2] {
        registers(&mut world, lyon, mac(last), ("VMware-42", "U1"), &[mac(last)]);
    }
    for node in [second, third] {
        let edit = NodeEdit {
            hostname: Some("till-1".into()),
            address: Some("10.0.0.9".into()),
            ..NodeEdit::default()
        };
        world.run(Origin::Site(lyon), "bob", move |tx| node::edit(tx, node, &edit)).unwrap();
    }
    meet(&mut world, lyon);
    let names = [(first, "first"), (second, "second"), (third, "third")];
    expect![[r#"
        first and second: machine: serial number and system UUID are the same; vendors and hypervisors copy them
        second and third: address: both are called `10.0.0.9` at their site; give one of them another
        second and third: hostname: both are called `till-1` at their site; give one of them another"#]].assert_eq(&pairs(&world, &names));
    let say = |world: &mut World, node, of| {
        world.run(Origin::Central, "ann", move |tx| twin::say(tx, node, of, "looked at them").map(drop))
    };
    for (node, of) in [(first, Some(first)), (NodeId([9; 16]), None), (first, Some(NodeId([9; 16])))] {
        assert!(say(&mut world, node, of).is_err());
    }
    say(&mut world, second, None).unwrap();
    registers(&mut world, lyon, mac(2), ("VMware-42", "U1"), &[mac(2), mac(1)]);
    meet(&mut world, lyon);
    let row = world.store(Origin::Central).read(|view| view.node(second)).unwrap().unwrap();
    assert!(row.is_its_own && row.alias_of.is_none(), "a person has the last word");
    expect![[r#"
        second and third: address: both are called `10.0.0.9` at their site; give one of them another
        second and third: hostname: both are called `till-1` at their site; give one of them another"#]]
    .assert_eq(&pairs(&world, &names));
    let at_site = world.run(Origin::Site(lyon), "bob", move |tx| twin::say(tx, second, None, "").map(drop));
    assert_eq!(at_site.unwrap_err().to_string(), "central says which machines are one");
    // Somebody changes his mind.
    say(&mut world, second, Some(first)).unwrap();
    let chained = say(&mut world, third, Some(second)).unwrap_err().to_string();
    assert_eq!(chained, format!("node {second} is itself another interface of node {first}; name that one"));
}

#[test]
fn h3_p9_a_retired_machine_stays_retired_wherever_it_turns_up_and_however_late() {
    let mut world = World::new(3);
    let sites = ["lyon", "bern"].map(|name| office(&mut world, name));
    let [lyon, bern] = sites;
    let node = world.run(Origin::Central, "ann", move |tx| node::create(tx, mac(1), lyon, "pos-1")).unwrap();
    meet(&mut world, lyon);
    for site in sites {
        world.set_link(site, false);
    }
    let retire = NodeEdit { wanted: Some(Wanted::Retired), why: "sold".into(), ..NodeEdit::default() };
    world.run(Origin::Central, "ann", move |tx| node::edit(tx, node, &retire)).unwrap();
    // Its home goes on with it, and a site that never heard of it adopts it.
    let rename = NodeEdit { hostname: Some("kasse-1".into()), ..NodeEdit::default() };
    world.run(Origin::Site(lyon), "bob", move |tx| node::edit(tx, node, &rename)).unwrap();
    for site in sites {
        assert_eq!(boots(&mut world, site, mac(1)), Some(node));
    }
    world.pass(365 * DAY);
    for site in sites {
        meet(&mut world, site);
    }
    let row = world.store(Origin::Central).read(|view| view.node(node)).unwrap().unwrap();
    assert_eq!((row.wanted, row.home, row.hostname.as_str()), (Wanted::Retired, Some(lyon), "kasse-1"));
    let at_home = world.store(Origin::Site(lyon)).read(|view| view.node(node)).unwrap().unwrap();
    assert_eq!(at_home.wanted, Wanted::Retired);
    let stub = world.store(Origin::Site(bern)).read(|view| view.directory(node)).unwrap().unwrap().stub;
    assert!(stub.retired, "and elsewhere the directory says so");
    // Only a person at central takes it back.
    let keep = NodeEdit { wanted: Some(Wanted::Keep), ..NodeEdit::default() };
    let revive = keep.clone();
    let refused = world.run(Origin::Site(lyon), "bob", move |tx| node::edit(tx, node, &revive)).unwrap_err();
    assert_eq!(refused.to_string(), format!("node {node} is retired, and only central takes that back"));
    world.run(Origin::Central, "ann", move |tx| node::edit(tx, node, &keep)).unwrap();
    meet(&mut world, lyon);
    let at_home = world.store(Origin::Site(lyon)).read(|view| view.node(node)).unwrap().unwrap();
    assert_eq!(at_home.wanted, Wanted::Keep);
}
