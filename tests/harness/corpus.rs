//! What a played fleet says to each other: honest bytes of every sort that a peer takes in.
//!
//! [`Corpus::of_session`] lets two sites and central work for a few days, cut and healed, with a site that is
//! put back to an old copy of its database so that both sides also reconcile, and keeps every frame. Out of
//! the frames come the documents with their changes in an order in which each fits, and the journals.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    time::Duration,
};

use automerge::{Change, ChangeHash};
use store::{
    Tx,
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        report::{self, Registration, Report},
        site::{self, SettingsEdit},
        task::{self, NewTask},
        workflow::{self, NewVersion},
    },
};
use sync::{
    blob::Digest,
    document::{Document, Kind, workflow::Identity},
    engine::{brief, pack},
    id::{DocumentId, MacAddr, NodeId, Origin, ReportId, SiteId, WorkflowId},
    ingress,
    journal::{Stream, chain},
    policy::Autonomy,
    wire::{self, Item, Message},
};

use crate::{disk, random::Random, world::World};

/// Machines that central registers at each site.
const MACHINES: u8 = 8;

/// One honest change.
#[derive(Clone, Debug)]
pub struct Honest {
    /// Its bytes, as a peer sends them.
    pub bytes: Vec<u8>,
    /// Who wrote it, as its registers say.
    pub writer: Origin,
}

/// A document from its genesis on.
pub struct History {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: DocumentId,
    /// Its changes, each after those that it depends on.
    pub changes: Vec<Honest>,
    /// The document before each of them, and after the last.
    pub states: Vec<Document>,
}

/// A chain of journal entries of one life of a replica.
pub struct Chain {
    /// Whose facts.
    pub stream: Stream,
    /// Its entries, from the first.
    pub entries: Vec<Vec<u8>>,
}

/// The honest bytes of one session.
pub struct Corpus {
    /// The two sites.
    pub sites: [SiteId; 2],
    /// Every document that was spoken of.
    pub histories: Vec<History>,
    /// Every chain that was told from its first entry.
    pub chains: Vec<Chain>,
    /// Frames as they were sent, and by whom.
    pub frames: Vec<(Origin, Vec<u8>)>,
    /// Whose each actor is.
    pub actors: BTreeMap<Vec<u8>, Origin>,
    /// Where each change stands: number of its history and its place there.
    places: BTreeMap<Vec<u8>, (usize, usize)>,
}

impl Corpus {
    /// Plays the fleet and takes what it says.
    ///
    /// # Panics
    /// When the fleet does not come to an agreement, or is silent about something.
    pub fn of_session(seed: u64) -> (World, Corpus) {
        let mut world = World::new(seed);
        world.heard = Some(Vec::new());
        let sites = live(&mut world);
        let frames = world.heard.take().unwrap_or_default();
        let mut corpus = Corpus {
            sites,
            histories: vec![],
            chains: vec![],
            frames,
            actors: BTreeMap::new(),
            places: BTreeMap::new(),
        };
        corpus.read_frames();
        (world, corpus)
    }

    /// The frames that hold one sort of message, by its number on the wire.
    pub fn frames_of(&self, number: u32) -> Vec<&(Origin, Vec<u8>)> {
        let is_it = |frame: &Vec<u8>| wire::decode(frame).is_ok_and(|message| number_of(&message) == number);
        self.frames.iter().filter(|(_, frame)| is_it(frame)).collect()
    }

    /// How many frames there are of each sort of message.
    pub fn sorts(&self) -> BTreeMap<u32, usize> {
        let mut sorts = BTreeMap::new();
        for message in self.frames.iter().filter_map(|(_, frame)| wire::decode(frame).ok()) {
            *sorts.entry(number_of(&message)).or_default() += 1;
        }
        sorts
    }

    fn read_frames(&mut self) {
        let mut waiting: BTreeMap<(u8, DocumentId), Vec<Vec<u8>>> = BTreeMap::new();
        let mut entries: BTreeMap<(Stream, [u8; 16]), BTreeMap<u64, Vec<u8>>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut hashes: BTreeMap<DocumentId, Vec<[u8; 32]>> = BTreeMap::new();
        for (_, frame) in &self.frames {
            let Ok(Message::Log { items, .. }) = wire::decode(frame) else { continue };
            // On the wire documents, changes and entries have a shorter form; what is judged is what comes out of it.
            let items = pack::unpack(items, true).expect("an honest frame");
            let named = |document: DocumentId, name: brief::Name| -> Result<_, Infallible> {
                let of = hashes.get(&document).into_iter().flatten();
                Ok(of.filter(|hash| hash.starts_with(&name)).copied().collect())
            };
            let Ok(items) = brief::lengthen(items, named);
            for bytes in items.expect("an honest frame") {
                let item: Item = minicbor::decode(&bytes).expect("an honest item");
                if let (Some(kind), Some(id), Some(change)) = (item.kind, item.document, item.change)
                    && seen.insert(change.clone())
                {
                    let parsed = Change::try_from(&change[..]).expect("an honest change");
                    hashes.entry(id).or_default().push(parsed.hash().0);
                    waiting.entry((kind, id)).or_default().push(change);
                }
                if let Some(bytes) = item.entry
                    && let Ok(entry) = chain::decode(&bytes)
                {
                    let of = entries.entry((entry.stream, entry.incarnation.0)).or_default();
                    of.insert(entry.seq, bytes);
                }
            }
        }
        for ((kind, id), changes) in waiting {
            let kind = Kind::from_number(kind).expect("a known kind");
            let history = History::of(kind, id, changes);
            for (at, change) in history.changes.iter().enumerate() {
                self.places.insert(change.bytes.clone(), (self.histories.len(), at));
                let parsed = Change::try_from(&change.bytes[..]).expect("an honest change");
                self.actors.insert(parsed.actor_id().to_bytes().to_vec(), change.writer);
            }
            self.histories.push(history);
        }
        for ((stream, _), entries) in entries {
            // One that was told from the middle on cannot be followed.
            if entries.keys().next() == Some(&1) {
                self.chains.push(Chain { stream, entries: entries.into_values().collect() });
            }
        }
    }
}

impl History {
    /// Puts changes in an order in which each fits; what fits nowhere is left out.
    fn of(kind: Kind, id: DocumentId, mut waiting: Vec<Vec<u8>>) -> Self {
        let mut document = Document::new(kind, id);
        let (mut changes, mut states) = (Vec::new(), vec![document.clone()]);
        loop {
            let before = waiting.len();
            waiting.retain(|bytes| {
                let change = Change::try_from(&bytes[..]).expect("an honest change");
                let has = |dep: &ChangeHash| document.has(dep);
                if document.has(&change.hash()) || !change.deps().iter().all(has) {
                    return !document.has(&change.hash());
                }
                let parsed = ingress::parse(bytes).expect("an honest change");
                let writes = ingress::registers(kind, id, &parsed).expect("an honest change");
                document.apply(change).expect("an honest change");
                changes.push(Honest { bytes: bytes.clone(), writer: writes[0].written.site });
                states.push(document.clone());
                false
            });
            if waiting.len() == before {
                return History { kind, id, changes, states };
            }
        }
    }
}

/// Number of a message on the wire: the key of the map that it is.
pub fn number_of(message: &Message) -> u32 {
    let bytes = minicbor::to_vec(message).expect("encoding into memory cannot fail");
    let mut decoder = minicbor::Decoder::new(&bytes);
    let first = decoder.array().and_then(|_| decoder.u32());
    first.expect("a message begins with its number")
}

/// A few days of two sites.
fn live(world: &mut World) -> [SiteId; 2] {
    let sites = [world.add_site("lyon"), world.add_site("oslo")];
    let workflow = publish(world);
    for (index, site) in sites.into_iter().enumerate() {
        let index = u8::try_from(index).expect("two");
        for number in 0..MACHINES {
            register(world, site, workflow, MacAddr([0x52, 0x54, 0, 0, index, number]));
        }
    }
    agree(world, sites);
    free(world, sites[0], Autonomy::Full);
    free(world, sites[1], Autonomy::Limited);
    agree(world, sites);
    for round in 0..3_u8 {
        let cut = round != 1;
        for site in sites.into_iter().filter(|_| cut) {
            world.set_link(site, false);
        }
        for (index, site) in sites.into_iter().enumerate() {
            work(world, site, u8::try_from(index).expect("two"), round);
        }
        edit(world, Origin::Central, round);
        world.pass(Duration::from_secs(7_200));
        for site in sites {
            world.set_link(site, true);
        }
        agree(world, sites);
    }
    go_back(world, sites[0]);
    agree(world, sites);
    sites
}

fn agree(world: &mut World, sites: [SiteId; 2]) {
    world.until("the fleet agrees", Duration::from_secs(3_600), |world| {
        sites.iter().all(|site| world.in_agreement(*site))
    });
}

fn run<T: Send + 'static>(
    world: &mut World,
    origin: Origin,
    by: &str,
    command: impl FnOnce(&mut Tx<'_>) -> Result<T, store::StoreError> + Send + 'static,
) -> T {
    world.run(origin, by, command).expect("the command is taken")
}

fn publish(world: &mut World) -> WorkflowId {
    let identity = Identity {
        name: "debian-13".into(),
        os_family: "debian".into(),
        arch: "x86_64".into(),
        boot_method: "kernel".into(),
    };
    let files = ["kernel", "initrd"].map(|role| (role.to_string(), (Digest::of(role.as_bytes()), 6))).into();
    let version = NewVersion { files, kernel_args: "console=ttyS0".into(), needs_approval: false };
    run(world, Origin::Central, "ann", move |tx| workflow::create(tx, &identity, &version)).id
}

fn register(world: &mut World, site: SiteId, workflow: WorkflowId, mac: MacAddr) {
    let name = format!("pos-{}", mac.0[5]);
    let node = run(world, Origin::Central, "ann", move |tx| node::create(tx, mac, site, &name));
    if mac.0[5].is_multiple_of(2) {
        let new =
            NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
        run(world, Origin::Central, "ann", move |tx| task::create(tx, &new));
    }
}

fn free(world: &mut World, site: SiteId, autonomy: Autonomy) {
    let edit = SettingsEdit { autonomy: Some(autonomy), ..SettingsEdit::default() };
    run(world, Origin::Central, "ann", move |tx| site::set(tx, site, &edit, "for the summer"));
}

/// What happens at a site in a shift: machines boot, install and are renamed, and strangers come by.
fn work(world: &mut World, site: SiteId, index: u8, round: u8) {
    let origin = Origin::Site(site);
    run(world, origin, "cache", move |tx| task::mark_ready(tx, site, |_| true));
    for number in 0..MACHINES {
        let mac = MacAddr([0x52, 0x54, 0, 0, index, number]);
        boot_and_report(world, site, mac, number % 4 == round);
    }
    // The first is seen at both sites while neither knows of the other.
    for stranger in [0, 1 + index] {
        boot_and_report(world, site, MacAddr([0x52, 0x54, 0, 1, round, stranger]), false);
    }
    edit(world, origin, round);
}

fn boot_and_report(world: &mut World, site: SiteId, mac: MacAddr, installs: bool) {
    let origin = Origin::Site(site);
    let node = NodeId::of(mac);
    let open = world.store(origin).read(|view| view.open_task(node, Some(site))).expect("the store reads");
    let order = open.filter(|_| installs);
    let answered = Answered {
        mac,
        answer: if order.is_some() { "workflow".into() } else { "local disk".into() },
        reason: "it is so".into(),
        adopt: true,
        booting: order.as_ref().map(|task| task.id),
        local_disk: order.is_none(),
        claims: false,
    };
    run(world, origin, "boot", move |tx| boot::answered(tx, &answered));
    let registration = Registration {
        evidence: [("serial", "SN-4711"), ("vendor", "QEMU"), ("arch", "x86_64")]
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .into(),
        cpus: Some(4),
        memory_bytes: Some(8 << 30),
        disks: BTreeMap::from([("vda".to_string(), 64 << 30)]),
        nics: BTreeMap::from([("eth0".to_string(), mac.to_string())]),
    };
    let id = ReportId(world.random.bytes());
    run(world, origin, "machine", move |tx| report::register(tx, id, mac, false, &registration));
    let Some(task) = order else { return };
    for it in [Report::GoAhead, Report::InstallStarted, Report::Progress(50), Report::InstallComplete] {
        let id = ReportId(world.random.bytes());
        let (about, node) = ((task.id, 1), task.node);
        run(world, origin, "machine", move |tx| report::event(tx, site, id, node, about, &it));
    }
}

/// People rename and tag machines, at central and at the site at the same time.
fn edit(world: &mut World, origin: Origin, round: u8) {
    for number in 0..MACHINES {
        let index = match origin {
            Origin::Central => number % 2,
            Origin::Site(_) => u8::from(world.name(origin) == "oslo"),
        };
        let node = NodeId::of(MacAddr([0x52, 0x54, 0, 0, index, number]));
        let name = format!("till-{round}{number}");
        let edit = NodeEdit {
            hostname: (number % 3 == 0).then_some(name),
            tags: BTreeMap::from([("rack".to_string(), (number % 2 == 0).then(|| format!("r{number}")))]),
            ..NodeEdit::default()
        };
        // A site of limited autonomy is told that it may not, while it is cut off.
        drop(world.run(origin, "bob", move |tx| node::edit(tx, node, &edit)));
    }
}

/// A site's database goes back to an old copy of it: both sides join anew.
fn go_back(world: &mut World, site: SiteId) {
    let origin = Origin::Site(site);
    world.crash(origin);
    let (path, copy) = (world.path(origin), world.backup_path("lyon"));
    disk::save(&path, &copy).expect("a copy");
    world.start(origin);
    boot_and_report(world, site, MacAddr([0x52, 0x54, 0, 2, 0, 1]), false);
    world.until("central has it", Duration::from_secs(3_600), |world| world.in_agreement(site));
    world.crash(origin);
    disk::restore(&copy, &path).expect("the old database");
    world.forget_central(origin);
    world.start(origin);
    boot_and_report(world, site, MacAddr([0x52, 0x54, 0, 2, 0, 2]), false);
}

/// A document and one of its honest changes that follows it, drawn from all that there are.
pub struct Situation<'a> {
    /// The history that both are of.
    pub history: &'a History,
    /// The document.
    pub document: &'a Document,
    /// The change.
    pub next: &'a Honest,
}

impl Corpus {
    /// Draws a document at some moment of its life and the change that came next.
    ///
    /// # Panics
    /// When nobody said anything.
    pub fn situation(&self, random: &mut Random) -> Situation<'_> {
        let history = &self.histories[pick(random, self.histories.len())];
        let at = pick(random, history.changes.len());
        Situation { history, document: &history.states[at], next: &history.changes[at] }
    }

    /// The situation of an honest change, if these are its bytes.
    pub fn situation_of(&self, bytes: &[u8]) -> Option<Situation<'_>> {
        let (history, at) = *self.places.get(bytes)?;
        let history = &self.histories[history];
        Some(Situation { history, document: &history.states[at], next: &history.changes[at] })
    }

    /// Draws an honest change of any document.
    pub fn any_change(&self, random: &mut Random) -> &Honest {
        let history = &self.histories[pick(random, self.histories.len())];
        &history.changes[pick(random, history.changes.len())]
    }
}

/// A number below `end`.
pub fn pick(random: &mut Random, end: usize) -> usize {
    usize::try_from(random.below(end as u64)).expect("below a usize")
}
