//! The domain of a site's directory: what a site is told of, and what is taken away again.

use std::collections::{BTreeMap, BTreeSet};

use sync::{
    id::{GroupId, NodeId},
    wire::Gone,
};

use super::*;
use crate::command::group::{self, GroupEdit};

/// Central and sites that stand in groups, and machines that stand at sites.
struct Land {
    folder: tempfile::TempDir,
    central: Store,
    sites: BTreeMap<&'static str, (SiteId, Store)>,
    number: u64,
}

impl Land {
    fn new(names: &[&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let central = open(&folder.path().join("central"), Origin::Central, 1).unwrap();
        let mut land = Land { folder, central, sites: BTreeMap::new(), number: 1 };
        for name in names {
            let id = land.at_central(|tx| site::create(tx, name, "", ""));
            let number = u8::try_from(land.sites.len()).unwrap() + 2;
            let store = open(&land.folder.path().join(name), Origin::Site(id), number).unwrap();
            land.sites.insert(name, (id, store));
        }
        land
    }

    fn given(&mut self) -> Given {
        self.number += 1;
        let now = NOW.after(Duration::from_secs(self.number));
        Given { now, by: "ann".into(), entropy: *blake3::hash(&self.number.to_be_bytes()).as_bytes() }
    }

    fn at_central<T: Send + 'static>(
        &mut self,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        let given = self.given();
        self.central.run(given, command).unwrap()
    }

    fn id(&self, name: &str) -> SiteId {
        self.sites[name].0
    }

    fn group(&mut self, name: &'static str, parent: Option<GroupId>) -> GroupId {
        self.at_central(move |tx| group::create(tx, name, "", parent)).id
    }

    fn place(&mut self, name: &str, group: Option<GroupId>) {
        let site = self.id(name);
        self.at_central(move |tx| group::place(tx, site, group, "").map(drop));
    }

    fn domain(&mut self, name: &str, group: Option<GroupId>) {
        let site = self.id(name);
        self.at_central(move |tx| group::set_domain(tx, site, group, "").map(drop));
    }

    fn machine(&mut self, last: u8, name: &str) -> NodeId {
        let home = self.id(name);
        self.at_central(move |tx| create_node(tx, mac(last), home, ""))
    }

    fn move_to(&mut self, node: NodeId, name: &str) {
        let home = self.id(name);
        self.at_central(move |tx| {
            let epoch = tx.view().node(node)?.map_or(0, |row| row.home_epoch);
            let moved = node::Home { home_site: Some(home), home_epoch: epoch + 1, claim: None };
            tx.write(node::KIND, node.into(), |edit| {
                edit.set(&node::home(), &moved, "moved");
            })
        });
    }

    fn rename(&mut self, at: &str, node: NodeId, hostname: &str) {
        let named = NodeEdit { hostname: Some(hostname.into()), ..NodeEdit::default() };
        let given = self.given();
        self.sites[at].1.run(given, move |tx| edit(tx, node, &named)).unwrap();
    }

    /// Carries what one replica has for the other, and returns the items.
    fn carry(&mut self, from: &Store, to: &Store) -> Vec<Item> {
        let (source, target) = (from.origin(), to.origin());
        let mut carried = Vec::new();
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
            let position = begin + items.len() as u64 - 1;
            carried.extend(items.iter().map(|bytes| minicbor::decode::<Item>(bytes).unwrap()));
            let taken = Output::Ingest { connection, peer: source, from: begin, items, seal };
            to.answer_now(taken, self.given()).unwrap();
            from.answer_now(Output::Acknowledged { peer: target, position }, self.given()).unwrap();
            if target == Origin::Central {
                continue;
            }
            from.answer_now(Output::Known { peer: target, position }, self.given()).unwrap();
        }
    }

    /// Central hears what a site has to tell before the site hears anything.
    fn hear_from(&mut self, name: &str) {
        let (central, site) = (self.central.clone(), self.sites[name].1.clone());
        assert_ne!(self.carry(&site, &central), [], "it has something to tell");
    }

    /// A site is heard, both tell each other everything, and what central told is returned.
    fn hear(&mut self, name: &str) -> Vec<Item> {
        let (central, site) = (self.central.clone(), self.sites[name].1.clone());
        let heard = Output::Heard { peer: site.origin(), clock: NOW, telemetry: None };
        let mut told = Vec::new();
        loop {
            central.answer_now(heard.clone(), self.given()).unwrap();
            let down = self.carry(&central, &site);
            let up = self.carry(&site, &central);
            if down.is_empty() && up.is_empty() {
                return told;
            }
            told.extend(down);
        }
    }

    fn settle(&mut self) {
        for _ in 0..2 {
            for name in self.sites.keys().copied().collect::<Vec<_>>() {
                self.hear(name);
            }
        }
    }

    fn adopt(&mut self, name: &str, last: u8) -> NodeId {
        let answered = Answered {
            mac: mac(last),
            answer: "local disk".into(),
            reason: "unknown".into(),
            adopt: true,
            booting: None,
            local_disk: true,
            claims: false,
        };
        let given = self.given();
        self.sites[name].1.run(given, move |tx| answered_boot(tx, &answered)).unwrap().expect("adopted")
    }

    /// What the directory of a site says, by machine.
    fn knows(&self, name: &str) -> Vec<String> {
        let (_, store) = &self.sites[name];
        let named = |site: Option<SiteId>| {
            let name = self.sites.iter().find(|(_, (id, _))| Some(*id) == site).map(|(name, _)| *name);
            name.unwrap_or("nowhere")
        };
        let mut rows = Vec::new();
        for last in 0..=u8::MAX {
            let row = store.read(|view| view.directory(NodeId::of(mac(last)))).unwrap();
            rows.extend(row.map(|row| {
                let retired = if row.stub.retired { " retired" } else { "" };
                format!("{last} {}{retired}", named(row.stub.home))
            }));
        }
        rows
    }

    /// What it should say: what the documents at central say of the machines of its domain.
    fn should_know(&self, name: &str, visited: &BTreeSet<(&'static str, u8)>) -> Vec<String> {
        let id = self.id(name);
        let mut rows = Vec::new();
        for last in 0..=u8::MAX {
            let Some(row) = self.central.read(|view| view.node(NodeId::of(mac(last)))).unwrap() else {
                continue;
            };
            let domain = self.central.read(|view| view.domain_of(id)).unwrap();
            let at = self.sites.iter().find(|(_, (id, _))| Some(*id) == row.home).map(|(name, _)| *name);
            let inside = row.home.is_none_or(|home| domain.is_none_or(|domain| domain.contains(&home)));
            let is_visitor = visited.iter().any(|(site, seen)| (*site, *seen) == (name, last));
            if row.home != Some(id) && (inside || is_visitor) {
                let retired = if row.wanted == Wanted::Retired { " retired" } else { "" };
                rows.push(format!("{last} {}{retired}", at.unwrap_or("nowhere")));
            }
        }
        rows
    }

    fn restart(&mut self, name: &'static str) {
        let (id, store) = self.sites.remove(name).unwrap();
        drop(store);
        let number = u8::try_from(100 + self.number % 100).unwrap();
        let store = open(&self.folder.path().join(name), Origin::Site(id), number).unwrap();
        self.sites.insert(name, (id, store));
    }
}

fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 3, last])
}

fn of_directory(items: &[Item]) -> Vec<String> {
    let mut said = Vec::new();
    for item in items {
        said.extend(item.stubs.as_ref().map(|stubs| format!("{} machines", stubs.len())));
        if let Some(Gone { nodes, homes, anew }) = &item.gone {
            said.push(format!("gone: {} machines, {} homes, {anew:?}", nodes.len(), homes.len()));
        }
    }
    said
}

#[test]
fn p6_a_site_is_told_of_the_machines_of_its_domain_and_forgets_those_that_leave_it() {
    let mut land = Land::new(&["bern", "lyon", "nice", "oslo"]);
    let europe = land.group("europe", None);
    let france = land.group("france", Some(europe));
    let north = land.group("north", None);
    land.place("lyon", Some(france));
    land.place("nice", Some(france));
    land.place("bern", Some(europe));
    land.place("oslo", Some(north));
    let first = land.machine(1, "lyon");
    for (last, name) in [(2, "lyon"), (3, "nice"), (4, "bern"), (5, "oslo")] {
        land.machine(last, name);
    }
    land.settle();
    assert_eq!(land.knows("lyon"), ["3 nice", "4 bern", "5 oslo"], "the whole fleet without its own");

    land.domain("lyon", Some(europe));
    assert_eq!(of_directory(&land.hear("lyon")), ["gone: 0 machines, 1 homes, None"], "one item for a site");
    assert_eq!(land.knows("lyon"), ["3 nice", "4 bern"]);
    land.domain("lyon", Some(france));
    land.hear("lyon");
    assert_eq!(land.knows("lyon"), ["3 nice"]);
    assert_eq!(of_directory(&land.hear("lyon")), [""; 0], "nothing changed");

    // A machine moves out of the domain, into it, and to where the site itself holds it.
    land.domain("nice", Some(france));
    land.settle();
    assert_eq!(land.knows("nice"), ["1 lyon", "2 lyon"]);
    land.move_to(first, "oslo");
    assert_eq!(of_directory(&land.hear("nice")), ["gone: 1 machines, 0 homes, None"]);
    assert_eq!(land.knows("nice"), ["2 lyon"]);
    land.settle();
    assert_eq!(land.knows("lyon"), ["3 nice"], "its former home does not know it any more either");
    assert_eq!(land.knows("bern"), ["1 oslo", "2 lyon", "3 nice", "5 oslo"]);
    land.move_to(first, "bern");
    assert_eq!(of_directory(&land.hear("nice")), [""; 0], "what moves outside is not its business");
    land.move_to(first, "lyon");
    land.hear("nice");
    assert_eq!(land.knows("nice"), ["1 lyon", "2 lyon"]);
    land.move_to(first, "nice");
    assert_eq!(
        of_directory(&land.hear("nice")),
        ["gone: 1 machines, 0 homes, None"],
        "it holds the document"
    );
    land.move_to(first, "lyon");
    land.settle();

    // A site, and then a group, moves in and out.
    land.place("bern", Some(france));
    land.hear("lyon");
    assert_eq!(land.knows("lyon"), ["3 nice", "4 bern"]);
    land.place("bern", None);
    land.hear("lyon");
    assert_eq!(land.knows("lyon"), ["3 nice"]);
    let edit = GroupEdit { parent: Some(Some(france)), ..GroupEdit::default() };
    land.at_central(move |tx| group::edit(tx, north, &edit, ""));
    assert_eq!(of_directory(&land.hear("lyon")), ["1 machines"]);
    assert_eq!(land.knows("lyon"), ["3 nice", "5 oslo"]);
    let edit = GroupEdit { parent: Some(None), ..GroupEdit::default() };
    land.at_central(move |tx| group::edit(tx, north, &edit, ""));
    land.hear("lyon");
    assert_eq!(land.knows("lyon"), ["3 nice"]);
    land.domain("lyon", None);
    assert_eq!(of_directory(&land.hear("lyon")), ["2 machines"], "only those that it was not told of");
    assert_eq!(land.knows("lyon"), ["3 nice", "4 bern", "5 oslo"]);
}

#[test]
fn p6_whatever_moves_the_directory_of_every_site_is_that_of_its_domain() {
    let names = ["bern", "lyon", "nice", "oslo"];
    for seed in 1..=6_u64 {
        let mut land = Land::new(&names);
        let mut state = seed;
        let mut below = move |most: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % most
        };
        let groups: Vec<GroupId> =
            ["a", "b", "c", "d"].into_iter().map(|name| land.group(name, None)).collect();
        let mut machines: Vec<NodeId> = (0..8).map(|last| land.machine(last, names[below(4)])).collect();
        let visited = BTreeSet::new();
        for step in 0..60 {
            let name = names[below(4)];
            let group = [None, Some(groups[below(4)])][below(2)];
            match below(10) {
                0 | 1 => land.place(name, group),
                2 | 3 => land.domain(name, group),
                4 => {
                    let (id, edit) =
                        (groups[below(4)], GroupEdit { parent: Some(group), ..GroupEdit::default() });
                    let given = land.given();
                    // One that would stand below itself is refused.
                    drop(land.central.run(given, move |tx| group::edit(tx, id, &edit, "")));
                }
                5 => machines.push(land.machine(u8::try_from(8 + step).unwrap(), name)),
                6 => land.restart(name),
                7 => {
                    let node = machines[below(machines.len())];
                    let wanted = Some([Wanted::Retired, Wanted::Keep][below(2)]);
                    let given = land.given();
                    let edit_node =
                        move |tx: &mut Tx<'_>| edit(tx, node, &NodeEdit { wanted, ..NodeEdit::default() });
                    drop(land.central.run(given, edit_node));
                }
                _ => land.move_to(machines[below(machines.len())], name),
            }
            if below(3) == 0 {
                let name = names[below(4)];
                land.hear(name);
                assert_eq!(
                    land.knows(name),
                    land.should_know(name, &visited),
                    "seed {seed}, step {step}, {name}"
                );
            }
        }
        land.settle();
        for name in names {
            assert_eq!(land.knows(name), land.should_know(name, &visited), "seed {seed}, {name}");
        }
        let left: i64 = land.at_central(|tx| {
            Ok(tx.sql.query_row("SELECT count(*) FROM directory_moves", [], |row| row.get(0))?)
        });
        assert!(left <= 1, "{left} moves are remembered that everybody heard of");
    }
}

#[test]
fn a_machine_whose_news_are_the_newest_is_told_again_when_they_change() {
    let mut land = Land::new(&["bern", "lyon"]);
    let node = land.machine(1, "lyon");
    land.settle();
    let retired = NodeEdit { wanted: Some(Wanted::Retired), ..NodeEdit::default() };
    land.at_central(move |tx| edit(tx, node, &retired));
    land.settle();
    assert_eq!(land.knows("bern"), ["1 lyon retired"]);
}

#[test]
fn p6_a_visitor_is_told_where_the_machine_belongs_also_outside_of_its_domain() {
    let mut land = Land::new(&["bern", "lyon"]);
    let (alps, coast) = (land.group("alps", None), land.group("coast", None));
    land.place("bern", Some(alps));
    land.place("lyon", Some(coast));
    land.domain("bern", Some(alps));
    let node = land.machine(1, "lyon");
    land.settle();
    assert_eq!(land.knows("bern"), [""; 0], "it is unknown there");

    // So bern takes it for a stranger.
    land.adopt("bern", 1);
    land.settle();
    let documents = land.sites["bern"].1.read(|view| view.documents()).unwrap();
    assert_eq!(documents.get("node"), None, "it does not hold the document");
    assert_eq!(land.knows("bern"), ["1 lyon"]);
    let row = land.central.read(|view| view.node(node)).unwrap().unwrap();
    assert_eq!((row.home, row.observed_by), (Some(land.id("lyon")), vec![land.id("bern")]));
    assert_eq!(land.central.read(|view| view.quarantine()).unwrap(), []);

    // It goes on to know, whatever becomes of the machine or of its domain.
    let retired = NodeEdit { wanted: Some(Wanted::Retired), ..NodeEdit::default() };
    land.at_central(move |tx| edit(tx, node, &retired));
    land.settle();
    assert_eq!(land.knows("bern"), ["1 lyon retired"]);
    land.domain("bern", None);
    land.settle();
    land.domain("bern", Some(alps));
    land.settle();
    assert_eq!(land.knows("bern"), ["1 lyon retired"]);
}

#[test]
fn p6_h6_a_former_home_that_forgot_a_machine_meets_it_as_a_stranger() {
    let mut land = Land::new(&["bern", "lyon"]);
    let (alps, coast) = (land.group("alps", None), land.group("coast", None));
    land.place("bern", Some(alps));
    land.place("lyon", Some(coast));
    land.domain("bern", Some(alps));
    let node = land.machine(1, "bern");
    land.settle();
    land.move_to(node, "lyon");
    land.settle();
    assert_eq!(land.knows("bern"), [""; 0]);
    land.adopt("bern", 1);
    land.settle();
    assert_eq!(land.central.read(|view| view.quarantine()).unwrap(), [], "that is honest work");
    assert_eq!(land.knows("bern"), ["1 lyon"]);
    // From now on it knows, and is told so when it writes all the same.
    land.adopt("bern", 1);
    land.settle();
    let aside = land.central.read(|view| view.quarantine()).unwrap();
    assert!(aside.iter().any(|row| row.reason.contains("had acknowledged")), "{aside:?}");
}

#[test]
fn p6_a_former_home_that_wrote_too_late_is_no_visitor() {
    let mut land = Land::new(&["bern", "lyon"]);
    let (alps, coast) = (land.group("alps", None), land.group("coast", None));
    land.place("bern", Some(alps));
    land.place("lyon", Some(coast));
    land.domain("bern", Some(alps));
    let node = land.machine(1, "bern");
    land.settle();
    land.move_to(node, "lyon");
    land.rename("bern", node, "till-1");
    land.hear_from("bern");
    land.settle();
    let row = land.central.read(|view| view.node(node)).unwrap().unwrap();
    assert_eq!(row.hostname, "till-1", "it had not heard that the machine left");
    assert_eq!(land.knows("bern"), [""; 0], "and never saw it itself");
}

#[test]
fn p8_what_a_home_wrote_while_its_machine_left_and_came_back_unheard_stays_there() {
    let mut land = Land::new(&["bern", "lyon"]);
    let node = land.machine(1, "bern");
    land.settle();
    land.move_to(node, "lyon");
    land.move_to(node, "bern");
    land.rename("bern", node, "till-1");
    land.hear_from("bern");
    land.settle();
    for store in [&land.central, &land.sites["bern"].1] {
        let row = store.read(|view| view.node(node)).unwrap().unwrap();
        assert_eq!((row.hostname.as_str(), row.home_epoch), ("till-1", 3), "{}", store.origin());
    }
}

#[test]
fn h5_p8_a_site_that_lets_go_of_what_it_had_just_written_does_not_seem_to_hold_something_else() {
    for comes_back in [false, true] {
        let mut land = Land::new(&["bern", "lyon"]);
        let node = land.machine(1, "bern");
        land.settle();
        land.move_to(node, "lyon");
        if comes_back {
            land.move_to(node, "bern");
        }
        let (central, bern) = (land.central.clone(), land.sites["bern"].1.clone());
        // Both are on their way at the same time: what bern writes, and that the machine left it.
        land.rename("bern", node, "till-1");
        let begin = bern.read(|view| Ok(view.peer(Origin::Central)?.pulled)).unwrap() + 1;
        let (connection, peer) = (Connection(1), bern.origin());
        let read = Output::Read { connection, peer, from: begin, max_bytes: 1 << 16 };
        let Some(Input::Read { items, seal, .. }) = central.answer_now(read, land.given()).unwrap() else {
            panic!("a replica reads its log");
        };
        land.hear_from("bern");
        let pulled = begin + items.len() as u64 - 1;
        let taken = Output::Ingest { connection, peer: Origin::Central, from: begin, items, seal };
        bern.answer_now(taken, land.given()).unwrap();
        let pushed = central.read(|view| Ok(view.peer(peer)?.pulled)).unwrap();
        let acknowledged = Output::Acknowledged { peer: Origin::Central, position: pushed };
        bern.answer_now(acknowledged, land.given()).unwrap();
        let found = bern.run(land.given(), move |tx| tx.fingerprint(Origin::Central, pushed)).unwrap();
        let compared = central.run(land.given(), move |tx| tx.compare(peer, pulled, pushed, &found)).unwrap();
        assert_eq!(compared, None, "that can be said when bern has heard of everything");
        land.settle();
        let at = land.central.read(|view| Ok(view.peer(peer)?.acknowledged)).unwrap();
        let pushed = central.read(|view| Ok(view.peer(peer)?.pulled)).unwrap();
        let found = bern.run(land.given(), move |tx| tx.fingerprint(Origin::Central, pushed)).unwrap();
        let compared = central.run(land.given(), move |tx| tx.compare(peer, at, pushed, &found)).unwrap();
        assert_eq!(compared, Some(true), "comes back: {comes_back}");
    }
}

#[test]
fn groups_stand_in_a_tree_and_a_site_holds_those_that_concern_it() {
    let mut land = Land::new(&["bern", "lyon"]);
    let europe = land.group("europe", None);
    let france = land.group("france", Some(europe));
    let rhone = land.group("rhone", Some(france));
    land.place("lyon", Some(rhone));
    land.settle();
    let paths = |land: &Land, name: &str| -> Vec<String> {
        let store = &land.sites[name].1;
        let read = |view: &View<'_>| view.groups()?.iter().map(|row| view.group_path(row.id)).collect();
        let mut paths: Vec<String> = store.read(read).unwrap();
        paths.sort();
        paths
    };
    assert_eq!(paths(&land, "lyon"), ["europe", "europe/france", "europe/france/rhone"]);
    assert_eq!(paths(&land, "bern"), [""; 0]);
    // It moves below another one, with what stands there.
    let alps = land.group("alps", None);
    let edit = GroupEdit { parent: Some(Some(alps)), ..GroupEdit::default() };
    land.at_central(move |tx| group::edit(tx, rhone, &edit, "a reform"));
    land.settle();
    assert_eq!(paths(&land, "lyon"), ["alps", "alps/rhone"]);
    land.domain("lyon", Some(europe));
    land.settle();
    assert_eq!(paths(&land, "lyon"), ["alps", "alps/rhone", "europe"]);
    let found = land.central.read(|view| view.group_at("alps/rhone")).unwrap().unwrap();
    assert_eq!(found.id, rhone);

    let refused = |land: &mut Land, edit: GroupEdit| {
        let given = land.given();
        land.central.run(given, move |tx| group::edit(tx, europe, &edit, "")).unwrap_err().to_string()
    };
    let below = |parent| GroupEdit { parent: Some(Some(parent)), ..GroupEdit::default() };
    let taken = GroupEdit { name: Some("alps".into()), ..GroupEdit::default() };
    let itself = refused(&mut land, below(europe));
    let cycle = refused(&mut land, below(france));
    let orphan = refused(&mut land, below(GroupId([9; 16])));
    let twice = refused(&mut land, taken);
    let named = refused(&mut land, GroupEdit { name: Some("Alps/1".into()), ..GroupEdit::default() });
    let refusals = [itself, cycle, orphan, twice.replace(&alps.to_string(), "ALPS"), named].join("\n") + "\n";
    expect_test::expect![[r#"
        group `europe` cannot stand below itself; name another
        group `europe` cannot stand below `europe/france`, which stands below it; move `europe/france` elsewhere first
        group 09090909090909090909090909090909 is not known here
        there is a group `alps` already (ALPS); choose another name or another place
        `Alps/1` is no name for a group: use 1 to 63 of the letters a-z, digits and hyphens
    "#]]
    .assert_eq(&refusals);
}
