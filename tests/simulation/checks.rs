//! What must hold in every world, read from the databases themselves.
//!
//! [`Checks::after`] looks at what a replica took up since it was looked at last: documents that were
//! touched, journal entries, what was set aside. [`Checks::before`] sees every acknowledgement before it is
//! kept. [`Checks::all`] looks at everything, at checkpoints; [`Checks::at_rest`] when everybody should
//! hold the same.
//!
//! Databases that go back in time lose what nobody else had; whoever puts one back says so with
//! [`Checks::went_back`], and only what really is nowhere any more is forgiven. A site that was rolled back
//! and not told, or that sends forged frames, is not blamed for what that does to itself until both sides
//! hold the same again.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
};

use harness::{
    eye::{Eye, SetAside, StoredEntry},
    history::History,
    world::World,
};
use store::{
    command::boot::{MAX_CANDIDATES, MAX_UNREGISTERED},
    view::{NodeFilter, TaskFilter},
};
use sync::{
    document::{Document, Kind, contested, group, node, site},
    engine::Output,
    id::{DocumentId, GroupId, MacAddr, NodeId, Origin, ReportId, SiteId, TaskId},
    journal::{Entry, Event, chain},
    policy::{Liveness, Wanted, order},
    wire::Stub,
};

/// A text that stands in everything that is forged and in nothing else.
pub(crate) const FORGED: &str = "forged";

/// Why central does not take what a site may not decide any more, in the words of `ingress::authorize`.
const OVERRULED: [&str; 2] = ["needs autonomy", "it follows a change that was set aside"];

/// Something that must hold and did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// What must hold.
    pub(crate) check: &'static str,
    /// Where it did not.
    pub(crate) detail: String,
    /// What happened before.
    history: String,
}

/// Ends a run.
pub(crate) fn violated(check: &'static str, detail: impl Into<String>) -> ! {
    std::panic::resume_unwind(Box::new(Violation { check, detail: detail.into(), history: String::new() }))
}

impl Violation {
    /// What a run ended with: a check, or a panic anywhere in it.
    pub(crate) fn of(cause: &(dyn Any + Send)) -> Self {
        if let Some(violation) = cause.downcast_ref::<Violation>() {
            return violation.clone();
        }
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_string()));
        let detail = text.unwrap_or_else(|| "nothing was said".into());
        Violation { check: "nothing panics", detail, history: String::new() }
    }

    pub(crate) fn with(self, history: &History) -> Self {
        Violation { history: history.to_string(), ..self }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}violated: {}: {}", self.history, self.check, self.detail)
    }
}

/// A change by its hash, or a fact by what it says: a fact that is recorded once more is the same one.
type Thing = [u8; 32];

/// What of a replica was looked at, and what it holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    change: i64,
    entry: i64,
    item: i64,
    /// Newest entry of each chain, by stream and incarnation.
    chains: BTreeMap<(String, [u8; 16]), (u64, [u8; 32])>,
    entries: i64,
    held: BTreeSet<Thing>,
    /// It followed no order when it was copied.
    was_suspended: bool,
}

/// Something that was committed and answered for.
#[derive(Clone, Debug)]
struct Promise {
    writer: Origin,
    /// Who must have it in the end.
    holder: Origin,
    is_change: bool,
    what: String,
}

/// All checks of one world.
#[derive(Default)]
pub(crate) struct Checks {
    seen: BTreeMap<Origin, Seen>,
    /// What a document looks like, by its heads.
    bodies: BTreeMap<(DocumentId, Vec<u8>), String>,
    promised: BTreeMap<Thing, Promise>,
    /// Entries that say what became of a report.
    reports: BTreeMap<ReportId, Thing>,
    /// Who answered them.
    answered: BTreeMap<ReportId, SiteId>,
    /// Reports of before a database went back.
    old_reports: BTreeSet<ReportId>,
    /// Who consumed the order of an attempt, and the fact of it.
    consumed: BTreeMap<(TaskId, u64), (ReportId, Thing)>,
    /// Who was told to go ahead.
    goes: BTreeMap<(TaskId, u64), ReportId>,
    /// Addresses that the noisy host made up.
    noise: BTreeSet<MacAddr>,
    /// Entries about them, by site.
    noise_entries: BTreeMap<Origin, i64>,
    /// Sites that ever sent something forged.
    hostile: BTreeSet<SiteId>,
    /// Sites whose database, or central's, went back, until they agree again.
    excused: BTreeSet<SiteId>,
    /// Sites that were restored, until they agree again: what they did under settings that they had
    /// acknowledged, and have forgotten that central took back, becomes proposals.
    forgetful: BTreeSet<SiteId>,
    /// What was not taken of it, and of sites that nobody can blame: it has to be on the desk in the end.
    overruled: BTreeSet<Thing>,
    /// Replicas whose database ever went back.
    went_back: BTreeSet<Origin>,
    /// Replicas that must follow no order until somebody confirms.
    suspended: BTreeSet<Origin>,
    /// How often nothing was wrong.
    pub(crate) looked: u64,
}

impl Checks {
    /// What is known of a replica: it is kept beside a copy of its database.
    pub(crate) fn seen(&self, origin: Origin) -> Seen {
        let seen = self.seen.get(&origin).cloned().unwrap_or_default();
        Seen { was_suspended: self.suspended.contains(&origin), ..seen }
    }

    /// A site begins to send forged frames.
    pub(crate) fn turns_hostile(&mut self, site: SiteId) {
        self.hostile.insert(site);
    }

    pub(crate) fn nobody_is_hostile(&self) -> bool {
        self.hostile.is_empty()
    }

    /// Addresses that a host made up.
    pub(crate) fn is_noise(&mut self, mac: MacAddr) {
        self.noise.insert(mac);
    }

    /// A replica's database is as it was when `seen` was taken. `told`: the next start will know.
    pub(crate) fn went_back(&mut self, world: &World, origin: Origin, seen: Seen, told: bool) {
        self.noise_entries.remove(&origin);
        self.went_back.insert(origin);
        // What is looked at anew is held already; only what nobody holds is gone.
        // What was set aside was looked at when it was: whoever was to blame for it then may be blameless now.
        let was_suspended = seen.was_suspended;
        let fresh = Seen { held: seen.held, item: seen.item, ..Seen::default() };
        self.seen.insert(origin, fresh);
        let survivors: BTreeSet<Thing> =
            self.seen.values().flat_map(|seen| seen.held.iter().copied()).collect();
        // A site had it once and let go of it, when its document left the site's scope: then it is gone too.
        let eyes: Vec<Eye> =
            world.origins().into_iter().map(|origin| read(Eye::open(&world.path(origin)))).collect();
        self.promised.retain(|thing, promise| {
            survivors.contains(thing) && (!promise.is_change || eyes.iter().any(|eye| read(eye.holds(thing))))
        });
        self.old_reports.extend(self.reports.keys().copied());
        self.consumed.retain(|_, (_, fact)| survivors.contains(fact));
        let here = &self.seen[&origin].held;
        match origin {
            Origin::Site(site) => {
                // Nobody at the site knows yet what it has forgotten.
                let answered = &self.answered;
                let forgets = |report: &ReportId, fact: &Thing| {
                    !told && answered.get(report) == Some(&site) && !here.contains(fact)
                };
                self.consumed.retain(|_, (report, fact)| !forgets(report, fact));
                let consumed = &self.consumed;
                self.goes.retain(|about, _| consumed.contains_key(about));
                if told {
                    self.forgetful.insert(site);
                } else {
                    self.excused.insert(site);
                }
            }
            Origin::Central => self.excused.extend(world.sites()),
        }
        // Whoever is not told goes on as he was then.
        if told || was_suspended {
            self.suspended.insert(origin);
        } else {
            self.suspended.remove(&origin);
        }
    }

    /// Sees an acknowledgement before it is kept: what is acknowledged is committed.
    pub(crate) fn before(&mut self, world: &mut World, origin: Origin, output: &Output) {
        let Output::Acknowledged { peer, position } = output else { return };
        let (peer, position) = (*peer, *position);
        if !world.runs(peer) || self.is_suspect(origin) || self.is_suspect(peer) {
            return;
        }
        let eye = world.eye(origin);
        let before = read(eye.standing(peer)).acknowledged;
        let told = read(eye.told(peer, before, position));
        let eye = world.eye(peer);
        for (hash, document) in told {
            let gone = |document: DocumentId| read(eye.heads_of(document)).is_none();
            let is_there = match peer {
                Origin::Central => self.is_forgetful(origin) && read(eye.was_set_aside(&hash)),
                Origin::Site(_) => document.is_some_and(gone),
            } || read(eye.holds(&hash));
            if !is_there {
                let (who, of) = (world.name(peer), world.name(origin));
                let what = document.map_or("a journal entry".into(), |id| format!("a change of {id}"));
                violated(
                    "what is acknowledged is committed",
                    format!("{who} acknowledged {position} of {of}, and {what} is not there"),
                );
            }
        }
        self.looked += 1;
    }

    /// Whether it is a site that was restored and may act under settings that central had taken back.
    fn is_forgetful(&self, origin: Origin) -> bool {
        origin.site().is_some_and(|site| self.forgetful.contains(&site))
    }

    /// Whether it is a central that went back, and writes again what contradicts what comes back.
    fn takes_back(&self, origin: Origin) -> bool {
        origin == Origin::Central && self.went_back.contains(&origin)
    }

    fn is_suspect(&self, origin: Origin) -> bool {
        origin.site().is_some_and(|site| self.hostile.contains(&site) || self.excused.contains(&site))
    }

    /// Looks at what a replica that runs took up since it was looked at last.
    pub(crate) fn after(&mut self, world: &mut World, origin: Origin) {
        let mut seen = self.seen.remove(&origin).unwrap_or_default();
        let name = world.name(origin);
        let eye = world.eye(origin);
        let last = read(eye.last_change());
        if last > seen.change {
            for doc in read(eye.touched_after(seen.change)) {
                self.document(eye, &name, origin, doc);
            }
            for (hash, document, is_own) in read(eye.changes_after(seen.change)) {
                seen.held.insert(hash);
                // What a suspect site wrote may be refused and written again.
                if is_own && !self.is_suspect(origin) {
                    let [a, b, c, d, ..] = hash;
                    let what =
                        format!("change {a:02x}{b:02x}{c:02x}{d:02x}… of {document}, which {name} wrote");
                    self.promised.entry(hash).or_insert(Promise {
                        writer: origin,
                        holder: Origin::Central,
                        is_change: true,
                        what,
                    });
                }
            }
        }
        // Rows are used again where the newest were taken out.
        seen.change = last;
        for stored in read(eye.entries_after(seen.entry)) {
            seen.entry = stored.row;
            seen.entries += 1;
            let entry = follow(&name, &mut seen, &stored);
            let fact = fact(&entry);
            seen.held.insert(fact);
            self.entry(&name, origin, &entry, fact);
        }
        let set_aside = read(eye.set_aside_after(seen.item));
        for SetAside { row, peer, reason, hash } in set_aside {
            seen.item = row;
            let from: Origin = peer.parse().expect("a peer");
            if self.is_forgetful(from) && OVERRULED.iter().any(|why| reason.contains(why)) {
                self.overruled.extend(hash);
                continue;
            }
            let (from, blamed) = match (origin, from) {
                (Origin::Central, site) => (world.name(site), site),
                (site, _) => ("central".into(), site),
            };
            if !self.is_suspect(blamed) {
                violated("honest work is not refused", format!("{name} refused {from}: {reason}"));
            }
            self.overruled.extend(hash);
        }
        self.seen.insert(origin, seen);
        self.looked += 1;
    }

    /// A document as it is stored: it opens, its heads are its own, equal heads are an equal view, and
    /// nobody wrote what is not his.
    fn document(&mut self, eye: &Eye, name: &str, origin: Origin, doc: i64) {
        let stored = read(eye.stored(doc));
        let Some(kind) = stored.kind else { return };
        let id = stored.id;
        let document = eye.document(doc, kind, id).unwrap_or_else(|error| {
            violated("what is stored opens", format!("{kind} {id} at {name}: {error}"))
        });
        let heads: Vec<u8> = document.heads().iter().flat_map(|hash| hash.0).collect();
        if heads != stored.heads {
            violated("the heads are those of the document", format!("{kind} {id} at {name}"));
        }
        if let Some(site) = foreign_writer(&document) {
            violated("central alone writes what is central's", format!("{kind} {id} at {name}: {site}"));
        }
        let Some(body) = read(eye.body(doc, kind)) else { return };
        if body.contains(FORGED) && !origin.site().is_some_and(|site| self.hostile.contains(&site)) {
            violated("nothing forged is visible", format!("{kind} {id} at {name}: {body}"));
        }
        match self.bodies.get(&(id, heads.clone())) {
            None => drop(self.bodies.insert((id, heads), body)),
            Some(before) if *before == body => {}
            Some(before) => {
                let detail = format!("{kind} {id} is at {name}\n{body}\nand was elsewhere\n{before}");
                violated("equal heads are an equal view", detail);
            }
        }
    }

    /// A journal entry: what it says of its writer, and what it promises.
    fn entry(&mut self, name: &str, origin: Origin, entry: &Entry, fact: Thing) {
        let Some(event) = &entry.event else { return };
        let writer = match entry.stream {
            sync::journal::Stream::Site(site) => Origin::Site(site),
            sync::journal::Stream::Down(_) | sync::journal::Stream::Central => Origin::Central,
        };
        if writer != origin {
            return;
        }
        let holder = match entry.stream {
            sync::journal::Stream::Site(_) | sync::journal::Stream::Central => Origin::Central,
            sync::journal::Stream::Down(site) => Origin::Site(site),
        };
        let what = format!("{name}: {event:?}");
        let is_new = !self.promised.contains_key(&fact);
        self.promised.entry(fact).or_insert(Promise { writer, holder, is_change: false, what });
        match event {
            Event::ReportReceived { report, .. } | Event::ReportRefused { report, .. } => {
                self.answered.extend(origin.site().map(|site| (*report, site)));
                let before = self.reports.insert(*report, fact);
                if before.is_some_and(|before| before != fact) && !self.old_reports.contains(report) {
                    violated("a report counts once", format!("{name}: {event:?}"));
                }
            }
            Event::OrderConsumed { task, attempt, report, .. } => {
                let before = self.consumed.insert((*task, *attempt), (*report, fact));
                if before.is_some_and(|(before, _)| before != *report) {
                    violated("an order is consumed once", format!("{name}: {event:?}"));
                }
            }
            Event::BootAnswered { mac, .. } if self.noise.contains(mac) => {
                *self.noise_entries.entry(origin).or_default() += 1;
            }
            // Recorded once more it says nothing of today.
            Event::OrdersResumed { .. } if is_new => drop(self.suspended.remove(&origin)),
            Event::DocumentReset { .. } | Event::WriteRefused { .. }
                if !self.is_suspect(origin) && !self.is_forgetful(origin) && !self.takes_back(origin) =>
            {
                violated("honest work is not refused", format!("{name}: {event:?}"));
            }
            Event::LifeBegun { reason, .. } => {
                // A forged position can make central think that it went back only with its own seal.
                let has_cause = self.went_back.contains(&origin) || self.is_suspect(origin);
                if is_new && !has_cause {
                    violated("no life ends without a cause", format!("{name}: {reason}"));
                }
                if is_new {
                    self.suspended.insert(origin);
                }
            }
            Event::ReplicaDiverged { site, .. }
                if is_new
                    && !self.is_suspect(Origin::Site(*site))
                    && !self.is_forgetful(Origin::Site(*site)) =>
            {
                violated("nobody differs without a cause", format!("{name}: {event:?}"));
            }
            _ => {}
        }
    }

    /// A machine was told to go ahead and writes its disk.
    pub(crate) fn goes_ahead(&mut self, world: &World, site: SiteId, about: (TaskId, u64), report: ReportId) {
        let name = world.name(Origin::Site(site));
        let (task, attempt) = about;
        if self.suspended.contains(&Origin::Site(site)) {
            let detail = format!("{name} lets task {task} go ahead and nobody confirmed its orders");
            violated("a database that went back follows no order", detail);
        }
        let before = self.goes.insert(about, report);
        if before.is_some_and(|before| before != report) {
            let detail = format!("attempt {attempt} of task {task} at {name}");
            violated("there is one go-ahead for an attempt", detail);
        }
        if self.consumed.get(&about).is_none_or(|(consumer, _)| *consumer != report) {
            let detail = format!("attempt {attempt} of task {task} at {name}");
            violated("whoever goes ahead has consumed the order", detail);
        }
    }

    /// The site that answered a report, unless its database went back since.
    pub(crate) fn reported_at(&self, report: ReportId) -> Option<SiteId> {
        let site = *self.answered.get(&report)?;
        (!self.old_reports.contains(&report)).then_some(site)
    }

    /// Everything of every replica that runs.
    pub(crate) fn all(&mut self, world: &mut World) {
        for origin in world.origins() {
            if world.runs(origin) {
                self.after(world, origin);
                self.all_of(world, origin);
            }
        }
        for site in world.sites() {
            let is_excused = self.excused.contains(&site) || self.forgetful.contains(&site);
            if is_excused && world.in_agreement(site) {
                self.excused.remove(&site);
                self.forgetful.remove(&site);
            }
        }
    }

    fn all_of(&mut self, world: &mut World, origin: Origin) {
        let name = world.name(origin);
        let eye = world.eye(origin);
        for doc in read(eye.documents()) {
            self.document(eye, &name, origin, doc);
        }
        let seen = &self.seen[&origin];
        let entries = read(eye.entries_up_to(seen.entry));
        if entries != seen.entries {
            let detail = format!("{name} has {entries} of {} entries", seen.entries);
            violated("the journal only grows", detail);
        }
        let integrity = read(eye.integrity());
        if integrity != "ok" {
            violated("the database is whole", format!("{name}: {integrity}"));
        }
        let candidates = read(eye.candidates());
        let noise = self.noise_entries.get(&origin).copied().unwrap_or_default();
        if candidates > MAX_CANDIDATES || noise > MAX_CANDIDATES + MAX_UNREGISTERED {
            let detail = format!("{name} remembers {candidates} strangers and noted {noise}");
            violated("a noisy host fills nothing", detail);
        }
        let noisy: BTreeSet<NodeId> = self.noise.iter().map(|mac| NodeId::of(*mac)).collect();
        let nodes = world.store(origin).read(|view| view.nodes(&NodeFilter::default())).expect("it reads");
        let mut made_up: BTreeMap<SiteId, i64> = BTreeMap::new();
        for node in nodes.iter().filter(|node| noisy.contains(&node.id)) {
            for site in &node.observed_by {
                *made_up.entry(*site).or_default() += 1;
            }
        }
        if let Some((site, many)) = made_up.into_iter().find(|(_, many)| *many > MAX_UNREGISTERED) {
            let detail = format!("{name} has {many} machines that nobody has, seen at site {site}");
            violated("a noisy host fills nothing", detail);
        }
        if !world.has_full_disk(origin) {
            let before = read(world.eye(origin).derived());
            world.run(origin, "doctor", |tx| tx.rebuild_views()).expect("views are made again");
            if before != read(world.eye(origin).derived()) {
                violated("derived rows are what the documents say", name);
            }
        }
        if let Origin::Site(site) = origin {
            one_live_order(world, site);
        }
    }

    /// Everybody has heard everything.
    pub(crate) fn at_rest(&mut self, world: &mut World) {
        self.all(world);
        for origin in world.origins() {
            // Where rows were taken out, others took their numbers unseen.
            let changes = read(world.eye(origin).changes_after(0));
            let seen = self.seen.get_mut(&origin).expect("it was looked at");
            seen.held.extend(changes.into_iter().map(|(hash, ..)| hash));
        }
        let sites = world.sites();
        for site in &sites {
            let (origin, name) = (Origin::Site(*site), world.name(Origin::Site(*site)));
            let told = read(world.eye(Origin::Central).scope(origin));
            let held = read(world.eye(origin).held());
            if told != held {
                let detail = format!(
                    "{name} holds {} documents, central says {}; not both: {}",
                    held.len(),
                    told.len(),
                    difference(&told, &held)
                );
                violated("in the end everybody holds the same", detail);
            }
        }
        for site in &sites {
            directory_of_domain(world, *site);
        }
        for origin in world.origins() {
            let parked = read(world.eye(origin).parked());
            if parked > 0 && self.hostile.is_empty() {
                let detail = format!("{parked} changes at {}", world.name(origin));
                violated("in the end nothing waits for anything", detail);
            }
        }
        for (thing, Promise { writer, holder, is_change, what }) in &self.promised {
            // Whoever tampers with what he says himself has nobody else to blame.
            let tampers = writer.site().is_some_and(|site| self.hostile.contains(&site));
            let eye = world.eye(*holder);
            let is_there = match is_change {
                true => read(eye.holds(thing)) || read(eye.was_withdrawn(thing)),
                false => self.seen[holder].held.contains(thing),
            };
            let is_there =
                is_there || self.overruled.contains(thing) && read(world.eye(*holder).was_set_aside(thing));
            if !tampers && !is_there {
                let detail = format!("{} does not have what was promised: {what}", world.name(*holder));
                violated("nothing that was committed is lost", detail);
            }
        }
    }

    /// In what a site and central differ, and what both refused of it.
    pub(crate) fn difference(&self, world: &mut World, site: SiteId) -> String {
        let (origin, name) = (Origin::Site(site), world.name(Origin::Site(site)));
        let told = read(world.eye(Origin::Central).scope(origin));
        let held = read(world.eye(origin).held());
        let at_central = read(world.eye(Origin::Central).set_aside_after(0));
        let at_site = read(world.eye(origin).set_aside_after(0));
        let aside = at_central.iter().chain(&at_site).map(|it| format!("of {}: {}", it.peer, it.reason));
        let aside: Vec<String> = aside.collect();
        let who = if self.hostile.contains(&site) { " (once hostile)" } else { "" };
        format!("{name}{who}: {}; set aside: {}", difference(&told, &held), aside.join(", "))
    }

    /// What everybody holds, as a digest.
    pub(crate) fn digest(&self) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        for (origin, seen) in &self.seen {
            hasher.update(origin.to_string().as_bytes());
            for thing in &seen.held {
                hasher.update(thing);
            }
        }
        hasher.finalize().as_bytes()[..8].to_vec()
    }
}

/// A site's directory has the machines of its domain, as central's documents say, and no others but those that
/// the site has seen. While central is in recovery a site may know more.
fn directory_of_domain(world: &mut World, site: SiteId) {
    let name = world.name(Origin::Site(site));
    let known = read(world.eye(Origin::Site(site)).directory());
    let (nodes, sites, groups, recovers) = world
        .store(Origin::Central)
        .read(|view| {
            let nodes = view.nodes(&NodeFilter::default())?;
            Ok((nodes, view.sites()?, view.groups()?, view.suspended()?.is_some()))
        })
        .expect("it reads");
    let above = |group: GroupId| groups.iter().find(|row| row.id == group).and_then(|row| row.parent);
    let domain = sites.iter().find(|row| row.id == site).and_then(|row| row.directory_domain);
    let is_inside = |home: SiteId| {
        let Some(domain) = domain else { return true };
        let stands = sites.iter().find(|row| row.id == home).and_then(|row| row.group);
        // Two lives of central may have moved groups into each other.
        std::iter::successors(stands, |group| above(*group)).take(groups.len() + 1).any(|it| it == domain)
    };
    for node in &nodes {
        let retired = node.wanted == Wanted::Retired;
        let is = Stub { node: node.id, home: node.home, home_epoch: node.home_epoch, retired };
        let must = node.home != Some(site) && node.home.is_none_or(is_inside);
        let may = must || node.home != Some(site) && node.observed_by.contains(&site);
        let wrong = match known.get(&node.id) {
            None => must,
            Some(told) => !may && !recovers || may && *told != is,
        };
        if wrong {
            let told = known.get(&node.id);
            let detail = format!("{name}: it is {is:?}, and the directory says {told:?}");
            violated("a directory is that of its domain", detail);
        }
    }
    if let Some(stranger) = known.keys().find(|id| !recovers && nodes.iter().all(|row| row.id != **id)) {
        violated("a directory is that of its domain", format!("{name} knows {stranger}, which is nowhere"));
    }
}

/// No two orders would wipe the same disk.
fn one_live_order(world: &World, site: SiteId) {
    let (origin, now) = (Origin::Site(site), world.clock(Origin::Site(site)));
    let live = world.store(origin).read(|view| {
        let mut live: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
        let here = TaskFilter { site: Some(site), ..TaskFilter::default() };
        for task in view.tasks(&here)?.iter().filter(|task| !task.state.is_final()) {
            let Some(node) = view.node(task.node)? else { continue };
            let it = view.circumstances(task, &node, site, None, now)?;
            if order::liveness(&it) == Liveness::Live {
                live.entry(node.id).or_default().push(task.id);
            }
        }
        Ok(live)
    });
    for (node, tasks) in live.expect("it reads") {
        if tasks.len() > 1 {
            let detail = format!("node {node} at {}: {tasks:?}", world.name(origin));
            violated("a machine has one live order", detail);
        }
    }
}

/// Who wrote a register that is central's, if somebody else did.
fn foreign_writer(document: &Document) -> Option<Origin> {
    let mut writers: Vec<Origin> = Vec::new();
    match document.kind() {
        Kind::Node => {
            writers.extend(contested::read(document, &node::home()).sides().iter().map(|it| it.written.site));
        }
        Kind::Site => {
            let effective = contested::read(document, &site::effective());
            writers.extend(effective.sides().iter().map(|side| side.written.site));
            let identity = contested::read(document, &site::identity());
            writers.extend(identity.sides().iter().map(|side| side.written.site));
            let group = contested::read(document, &site::membership());
            writers.extend(group.sides().iter().map(|side| side.written.site));
            let domain = contested::read(document, &site::directory_domain());
            writers.extend(domain.sides().iter().map(|side| side.written.site));
        }
        Kind::Group => {
            let parent = contested::read(document, &group::parent());
            writers.extend(parent.sides().iter().map(|side| side.written.site));
        }
        Kind::Workflow | Kind::Task | Kind::Proposal => {}
    }
    writers.into_iter().find(|writer| *writer != Origin::Central)
}

/// An entry continues its chain and is filed under what it says.
fn follow(name: &str, seen: &mut Seen, stored: &StoredEntry) -> Entry {
    let wrong = |why: &str| -> ! {
        violated("journal chains have no gap", format!("{name}: {} {}: {why}", stored.stream, stored.seq))
    };
    let Ok(entry) = chain::decode(&stored.bytes) else { wrong("it cannot be read") };
    if (&entry.stream.to_string(), entry.incarnation.as_bytes(), entry.seq)
        != (&stored.stream, &stored.incarnation, stored.seq)
    {
        wrong("it is filed under something else");
    }
    if chain::hash(&stored.bytes) != stored.hash {
        wrong("its hash is another one");
    }
    let chain = seen.chains.entry((stored.stream.clone(), stored.incarnation)).or_insert((0, [0; 32]));
    if (stored.seq, entry.previous) != (chain.0 + 1, chain.1) {
        wrong("it does not follow the one before");
    }
    *chain = (stored.seq, stored.hash);
    entry
}

fn fact(entry: &Entry) -> Thing {
    let mut hasher = blake3::Hasher::new();
    hasher.update(entry.stream.to_string().as_bytes());
    hasher.update(&entry.at.0.to_be_bytes());
    hasher.update(entry.by.as_bytes());
    hasher.update(&minicbor::to_vec(&entry.event).expect("encoding into memory cannot fail"));
    *hasher.finalize().as_bytes()
}

fn difference(told: &[(DocumentId, Vec<u8>)], held: &[(DocumentId, Vec<u8>)]) -> String {
    let one: Vec<String> =
        told.iter().filter(|it| !held.contains(it)).map(|(id, _)| format!("central's {id}")).collect();
    let other = held.iter().filter(|it| !told.contains(it)).map(|(id, _)| format!("the site's {id}"));
    one.into_iter().chain(other).take(6).collect::<Vec<_>>().join(", ")
}

fn read<T>(result: Result<T, rusqlite::Error>) -> T {
    result.unwrap_or_else(|error| violated("the database can be read", error.to_string()))
}
