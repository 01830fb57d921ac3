//! What goes wrong: links, clocks, disks, programs and databases, and those who mean harm.

use std::{collections::BTreeMap, path::PathBuf, rc::Rc, time::Duration};

use harness::{
    disk,
    world::{Ending, World},
};
use store::{
    backup::{self, Place},
    command::node::{self, NodeEdit},
    view::NodeFilter,
};
use sync::{
    document::{
        Author, Kind, Value,
        node::{self as node_document, Home, Text, Wish},
        register::Entropy,
        site::{self as site_document, Effective, Identity},
    },
    id::{Incarnation, MacAddr, Origin, SiteId},
    ingress,
    policy::{Autonomy, Wanted},
    time::Hlc,
    wire::{self, Item, Message},
};

use crate::{
    checks::{FORGED, Seen},
    draw::{self, Fault},
    planted::{self, Bug},
    run::Run,
};

/// Copies of a database, of some time ago.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copies {
    /// Made with `backup`.
    backup: Option<(PathBuf, Seen)>,
    /// All files, as a virtual machine is copied.
    machine: Option<(PathBuf, Seen)>,
    made: u64,
}

/// A machine's disk has room for so many pages more, at most.
const SPARE_PAGES: u64 = 8;

/// Addresses that a noisy host makes up in one go.
const NOISE: u64 = 300;

impl Run {
    /// Somebody makes copies, and somebody puts right what is wrong.
    pub(crate) fn mend(&mut self) {
        for site in self.sites.clone() {
            if !self.world.link_is_up(site) && self.world.random.chance(self.draw.heals) {
                self.world.set_link(site, true);
            }
        }
        for origin in self.world.origins() {
            if !self.world.runs(origin) {
                if self.world.random.chance(30) {
                    self.world.start(origin);
                }
                continue;
            }
            if self.world.has_full_disk(origin) && self.world.random.chance(10) {
                self.world.set_disk(origin, None);
            }
            if self.world.clock(origin) != self.world.wall() && self.world.random.chance(4) {
                self.world.set_clock(origin, 0);
            }
            if self.has_restores() && self.world.random.chance(2) {
                self.copy(origin);
            }
        }
    }

    fn has_restores(&self) -> bool {
        let goes_back = |fault: &Fault| {
            matches!(fault, Fault::Restore | Fault::Rollback | Fault::RestoreCentral | Fault::RollbackCentral)
        };
        self.draw.faults.iter().any(|(fault, _)| goes_back(fault))
    }

    fn anybody(&mut self) -> Origin {
        let all = self.world.origins();
        self.one_of(&all).expect("there is central")
    }

    pub(crate) fn happen(&mut self, fault: Fault) {
        match fault {
            Fault::Cut => {
                let site = self.site();
                self.world.set_link(site, false);
                if self.world.random.chance(25) {
                    // Back before anybody notices.
                    self.world.pass(Duration::from_secs(5));
                    self.world.set_link(site, true);
                }
            }
            Fault::Weather => {
                let site = self.site();
                let weather = draw::weather(&mut self.world.random);
                self.world.set_weather(site, weather);
            }
            Fault::Reset => {
                let site = self.site();
                self.world.reset(site);
            }
            Fault::End => {
                let origin = self.anybody();
                let ending = self.ending();
                if self.world.runs(origin) {
                    let answers = 1 + self.world.random.below(12);
                    self.world.end_after(origin, answers, ending);
                }
            }
            Fault::EndInCommand => self.end_in_command(),
            Fault::FullDisk => {
                let origin = self.anybody();
                if self.world.runs(origin) && !self.world.has_full_disk(origin) {
                    let pages = self.world.random.below(SPARE_PAGES);
                    self.world.set_disk(origin, Some(pages));
                    self.world.count("disk full");
                }
            }
            Fault::Clock => self.set_a_clock(),
            Fault::StaleEpoch => {
                let site = self.site();
                if self.world.runs(Origin::Central) {
                    self.world.set_link(site, false);
                    self.set(site);
                    self.world.count("settings changed while cut off");
                }
            }
            Fault::Restore => {
                let site = Origin::Site(self.site());
                self.restore(site);
            }
            Fault::Rollback => {
                let site = Origin::Site(self.site());
                self.roll_back(site);
            }
            Fault::RestoreCentral => self.restore(Origin::Central),
            Fault::RollbackCentral => self.roll_back(Origin::Central),
            Fault::Noise => self.make_noise(),
            Fault::Hostility => self.turn_hostile(),
        }
    }

    fn ending(&mut self) -> Ending {
        self.one_of(&[Ending::Stopped, Ending::Killed, Ending::Torn, Ending::Torn]).expect("there are some")
    }

    fn end_in_command(&mut self) {
        let origin = self.anybody();
        if !self.world.runs(origin) {
            return;
        }
        let nodes = self.read(origin, |view| view.nodes(&NodeFilter::default()));
        let Some(node) = self.one_of(&nodes) else { return };
        let edit = NodeEdit {
            notes: Some(format!("note {}", self.world.random.below(1_000))),
            ..NodeEdit::default()
        };
        let ending = self.ending();
        self.world.run_and_end(origin, "ann", move |tx| node::edit(tx, node.id, &edit), ending);
        self.world.count("ended in a command");
    }

    fn set_a_clock(&mut self) {
        let origin = self.anybody();
        let hour = 3_600_000;
        let skew = match (self.world.random.below(8), origin) {
            (0, Origin::Site(_)) => -i64::try_from(self.world.wall().0).expect("it fits"),
            (1, Origin::Site(_)) => 30 * 24 * hour,
            (0..4, _) => hour,
            (4..6, _) => -hour,
            _ => i64::try_from(self.world.random.below(240)).expect("small") * 1_000 - 120_000,
        };
        self.world.set_clock(origin, skew);
        self.world.count("clock set");
    }

    /// Makes one of both kinds of copies, or the other.
    fn copy(&mut self, origin: Origin) {
        let seen = self.checks.borrow().seen(origin);
        let folder = self.world.path(origin);
        let mut copies = self.copies.remove(&origin).unwrap_or_default();
        copies.made += 1;
        let to = self.world.backup_path(&format!("{origin}-{}", copies.made));
        if self.world.random.chance(50) {
            let place = Place { replica: &folder, home: &folder, keys: &[] };
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            backup::backup(&place, &to, self.world.wall(), &mut |_| {}).expect("the backup is made");
            if let Some((old, _)) = copies.backup.replace((to, seen)) {
                std::fs::remove_dir_all(old).expect("the old one goes");
            }
        } else {
            disk::save(&folder, &to).expect("the files are copied");
            if let Some((old, _)) = copies.machine.replace((to, seen)) {
                std::fs::remove_dir_all(old).expect("the old one goes");
            }
        }
        self.copies.insert(origin, copies);
    }

    /// Somebody restores the database from a backup.
    fn restore(&mut self, origin: Origin) {
        let Some((from, seen)) = self.copies.get(&origin).and_then(|copies| copies.backup.clone()) else {
            return;
        };
        self.world.end(origin, Ending::Stopped);
        let folder = self.world.path(origin);
        let place = Place { replica: &folder, home: &folder, keys: &[] };
        backup::restore(&place, origin, &from, self.world.wall(), &mut |_| {}).expect("it is restored");
        self.world.count(if origin == Origin::Central { "central restored" } else { "site restored" });
        self.world.tell(origin, "its database is restored from a backup");
        self.comes_back(origin, seen, true);
    }

    /// The virtual machine of a replica is put back, or its database by somebody who knows no better.
    fn roll_back(&mut self, origin: Origin) {
        let Some((from, seen)) = self.copies.get(&origin).and_then(|copies| copies.machine.clone()) else {
            return;
        };
        self.world.end(origin, Ending::Stopped);
        let folder = self.world.path(origin);
        let all = self.world.random.chance(60);
        if all {
            disk::restore(&from, &folder).expect("the files are put back");
        } else {
            disk::restore_database(&from, &folder).expect("the files are put back");
        }
        self.world.count(if origin == Origin::Central { "central rolled back" } else { "site rolled back" });
        self.world
            .tell(origin, format!("goes back in time, {}", if all { "all of it" } else { "its database" }));
        let told = self.bug == Some(Bug::ReusedActor);
        self.comes_back(origin, seen, told);
    }

    fn comes_back(&mut self, origin: Origin, seen: Seen, told: bool) {
        self.checks.borrow_mut().went_back(&self.world, origin, seen, told);
        self.world.forget_central(origin);
        self.world.start(origin);
        planted::went_back(self.bug, &mut self.world, origin);
        self.checks.borrow_mut().after(&mut self.world, origin);
    }

    /// A host in the LAN makes up addresses and asks for their boot scripts.
    fn make_noise(&mut self) {
        let site = self.site();
        if !self.world.runs(Origin::Site(site)) {
            return;
        }
        for _ in 0..NOISE {
            let [a, b, c, d] = self.world.random.bytes();
            let mac = MacAddr([0x0e, 0x66, a, b, c, d]);
            self.checks.borrow_mut().is_noise(mac);
            self.boots(site, mac);
        }
        self.world.count("noisy host");
    }

    /// The last site begins to send what it should not, or ceases to.
    fn turn_hostile(&mut self) {
        let Some(site) = self.sites.last().copied().filter(|_| self.draw.has_hostile_site) else { return };
        let forges = self.forging.borrow().is_some();
        self.forging.replace((!forges).then_some(site));
        self.world.set_hostile(site, if forges { 0 } else { 10 });
        self.checks.borrow_mut().turns_hostile(site);
        self.world.tell(
            Origin::Site(site),
            if forges { "sends no forged frames any more" } else { "turns hostile" },
        );
    }

    /// Lets the hostile site put its own writing into what its honest program sends.
    pub(crate) fn forge(&mut self) {
        let (forging, bug) = (Rc::clone(&self.forging), self.bug);
        self.world.meddle = Some(Box::new(move |world, from, bytes| {
            let Some(site) = *forging.borrow() else { return bytes };
            if from != Origin::Site(site) || !world.random.chance(25) {
                return bytes;
            }
            let Ok(Message::Log { from: position, mut items, seal }) = wire::decode(&bytes) else {
                return bytes;
            };
            let index = usize::try_from(world.random.below(items.len() as u64)).expect("few");
            let is_change = minicbor::decode::<Item>(&items[index]).is_ok_and(|item| item.change.is_some());
            // Or as what it once was.
            let stale = (is_change && world.random.chance(80)).then(|| stale_item(world, site)).flatten();
            let names_old_epoch = stale.is_some();
            let forged = stale.or_else(|| is_change.then(|| forged_item(world, site)).flatten());
            let Some(forged) = forged else { return bytes };
            let sealed =
                (bug == Some(Bug::NoAuthorisation)).then(|| planted::sealed(world, &forged)).flatten();
            items[index] = sealed.unwrap_or(forged).into();
            world.count(if names_old_epoch { "write under an old epoch" } else { "forged write" });
            world.tell(from, "sends a forged write");
            wire::encode(&Message::Log { from: position, items, seal })
        }));
    }
}

/// A change to a machine of the site's own that it might have decided in an epoch in which it was `full`, and may not any
/// more: the site keeps naming that one.
fn stale_item(world: &mut World, site: SiteId) -> Option<Vec<u8>> {
    if !world.runs(Origin::Central) {
        return None;
    }
    let mut author = Author {
        incarnation: Incarnation(world.random.bytes()),
        site: Origin::Site(site),
        by: "mallory".into(),
        at: Hlc::at(world.wall()),
        policy_epoch: 0,
        entropy: Entropy::new(world.random.bytes()),
    };
    let pick = world.random.draw();
    let eye = world.eye(Origin::Central);
    let follows = eye.follows(site).ok()?.unsigned_abs();
    let mut given = BTreeMap::new();
    let settings = eye.document(eye.row_of(site.into()).ok()??, Kind::Site, site.into()).ok()?;
    for change in settings.automerge().get_changes(&[]) {
        let writes = ingress::parse(change.raw_bytes())
            .and_then(|parsed| ingress::registers(Kind::Site, site.into(), &parsed))
            .unwrap_or_default();
        for write in writes {
            if write.path() == "effective"
                && let Ok(it) = Effective::from_fields(&write.fields)
            {
                given.insert(it.epoch, it.autonomy);
            }
        }
    }
    if given.range(follows..).any(|(_, autonomy)| *autonomy == Autonomy::Full) {
        return None;
    }
    author.policy_epoch =
        given.range(..follows).rev().find(|(_, autonomy)| **autonomy == Autonomy::Full).map(|it| *it.0)?;
    let mut own = Vec::new();
    for doc in eye.documents_of(Kind::Node).ok()? {
        let document = eye.document(doc, Kind::Node, eye.stored(doc).ok()?.id).ok()?;
        if node_document::InForce::of(&document).home == Some(site) {
            own.push(document);
        }
    }
    let index = usize::try_from(pick % own.len().max(1) as u64).expect("few");
    let mut document = own.into_iter().nth(index)?;
    let change = document.write(&mut author, |edit| {
        edit.set(&node_document::wanted(), &Wish { wanted: Wanted::Ignored }, FORGED);
    });
    Some(Item::change(Kind::Node.number(), document.id(), change?.raw_bytes().to_vec()).to_bytes())
}

/// A well-formed change of something that is not the site's to write, by a fresh actor, on top of everything
/// that central has.
pub(crate) fn forged_item(world: &mut World, site: SiteId) -> Option<Vec<u8>> {
    if !world.runs(Origin::Central) {
        return None;
    }
    let (pick, what) = (world.random.draw(), world.random.below(4));
    let mut author = Author {
        incarnation: Incarnation(world.random.bytes()),
        site: Origin::Site(site),
        by: "mallory".into(),
        at: Hlc::at(world.wall()),
        policy_epoch: 1,
        entropy: Entropy::new(world.random.bytes()),
    };
    let eye = world.eye(Origin::Central);
    let mut foreign = Vec::new();
    for doc in eye.documents().ok()? {
        let stored = eye.stored(doc).ok()?;
        let Some(kind) = stored.kind else { continue };
        match kind {
            Kind::Node => {
                let document = eye.document(doc, kind, stored.id).ok()?;
                if node_document::InForce::of(&document).home.is_some_and(|home| home != site) {
                    foreign.push(document);
                }
            }
            Kind::Site => foreign.push(eye.document(doc, kind, stored.id).ok()?),
            Kind::Group | Kind::Workflow | Kind::Task | Kind::Proposal | Kind::Claim => {}
        }
    }
    let index = usize::try_from(pick % foreign.len().max(1) as u64).expect("few");
    let mut document = foreign.into_iter().nth(index)?;
    let change = match document.kind() {
        Kind::Site => document.write(&mut author, |edit| {
            let identity = Identity {
                name: FORGED.into(),
                description: String::new(),
                location: String::new(),
                console_url: String::new(),
                network_segments: Default::default(),
            };
            edit.set(&site_document::identity(), &identity, "");
        }),
        _ => document.write(&mut author, |edit| {
            edit.set(&node_document::hostname(), &Text { value: FORGED.into() }, "");
            if what == 0 {
                edit.set(&node_document::wanted(), &Wish { wanted: Wanted::Retired }, FORGED);
            } else if what == 1 {
                let home = Home { home_site: Some(site), home_epoch: 99, claim: None };
                edit.set(&node_document::home(), &home, FORGED);
            }
        }),
    };
    Some(Item::change(document.kind().number(), document.id(), change?.raw_bytes().to_vec()).to_bytes())
}
