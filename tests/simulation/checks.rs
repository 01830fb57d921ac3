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
    view::{NodeFilter, ProposalFilter, ProposalState},
};
use sync::{
    document::{Document, Kind, claim, contested, group, node, proposal, site},
    engine::Output,
    id::{DocumentId, MacAddr, NodeId, Origin, ReportId, SiteId, TaskId},
    ingress,
    journal::{Entry, Event, chain},
};

use crate::{
    directories, disagreements,
    epochs::Epochs,
    moves::{self, Moves},
    orders,
};

/// A text that stands in everything that is forged and in nothing else.
pub(crate) const FORGED: &str = "forged";

/// Why central does not take what a site may not decide any more, in the words of `ingress::authorize`.
const OVERRULED: [&str; 2] = ["needs autonomy", "it follows a change that was set aside"];

/// The same for what has left the site.
const LEFT: &str = "had acknowledged that this node is not its own";

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
pub(crate) type Thing = [u8; 32];

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
    /// Sites that were restored, until they agree again, with the changes that they had then: what they do since under
    /// settings that they had acknowledged, and have forgotten that central took back, becomes proposals. So does what
    /// they do with machines of which they have forgotten that they left.
    forgetful: BTreeMap<SiteId, BTreeSet<Thing>>,
    /// What was not taken of it, and of sites that nobody can blame: it has to be on the desk in the end.
    overruled: BTreeSet<Thing>,
    /// Replicas whose database ever went back.
    went_back: BTreeSet<Origin>,
    /// Replicas that must follow no order until somebody confirms.
    suspended: BTreeSet<Origin>,
    /// Machines that move.
    pub(crate) moves: Moves,
    /// What sites might decide.
    epochs: Epochs,
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
        self.moves.went_back(&survivors);
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
                    let eye = read(Eye::open(&world.path(origin)));
                    let had = read(eye.changes_after(0)).into_iter().map(|(hash, ..)| hash).collect();
                    self.forgetful.insert(site, had);
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
        let (who, of) = (world.name(peer), world.name(origin));
        let eye = world.eye(peer);
        for (hash, document) in told {
            let gone = |document: DocumentId| read(eye.heads_of(document)).is_none();
            // A central that went back counts on in a chain that the site knows otherwise: the facts come in another one.
            let went_back = self.went_back.contains(&Origin::Central);
            let follows_none = || went_back && read(eye.entry_was_set_aside(&hash));
            let is_there = match peer {
                Origin::Central => self.is_forgetful(origin) && read(eye.was_set_aside(&hash)),
                Origin::Site(_) => document.map_or_else(follows_none, gone),
            } || read(eye.holds(&hash));
            if !is_there {
                let what = document.map_or("a journal entry".into(), |id| format!("a change of {id}"));
                let aside = read(eye.set_aside_after(0)).into_iter().find(|it| it.hash == Some(hash));
                let why = aside.map(|it| format!(" ({})", it.reason)).unwrap_or_default();
                violated(
                    "what is acknowledged is committed",
                    format!("{who} acknowledged {position} of {of}, and {what} is not there{why}"),
                );
            }
        }
        self.looked += 1;
    }

    /// Whether it is a site that was restored and may act under settings that central had taken back.
    fn is_forgetful(&self, origin: Origin) -> bool {
        origin.site().is_some_and(|site| self.forgetful.contains_key(&site))
    }

    /// Whether a site wrote this since it was restored, about a machine that is at home elsewhere.
    fn has_forgotten_it(
        &self,
        world: &mut World,
        from: Origin,
        node: DocumentId,
        change: Option<Thing>,
    ) -> bool {
        let Some((site, had)) = from.site().and_then(|site| Some((site, self.forgetful.get(&site)?))) else {
            return false;
        };
        let is_elsewhere = moves::home_of(world, node).is_some_and(|home| home != site);
        is_elsewhere && change.is_some_and(|it| !had.contains(&it))
    }

    /// Whether it is a central that went back, and writes again what contradicts what comes back.
    fn takes_back(&self, origin: Origin) -> bool {
        origin == Origin::Central && self.went_back.contains(&origin)
    }

    fn is_suspect(&self, origin: Origin) -> bool {
        origin.site().is_some_and(|site| self.hostile.contains(&site) || self.excused.contains(&site))
    }

    /// Sites of which nobody knows what they have forgotten, or that may claim to have heard what they have not.
    fn unsure(&self) -> BTreeSet<SiteId> {
        self.hostile.iter().chain(&self.excused).chain(self.forgetful.keys()).copied().collect()
    }

    /// Looks at what a replica that runs took up since it was looked at last.
    pub(crate) fn after(&mut self, world: &mut World, origin: Origin) {
        let mut seen = self.seen.remove(&origin).unwrap_or_default();
        let name = world.name(origin);
        let names: BTreeMap<SiteId, String> =
            world.sites().into_iter().map(|site| (site, world.name(Origin::Site(site)))).collect();
        let eye = world.eye(origin);
        let last = read(eye.last_change());
        let mut claims_changed = false;
        if last > seen.change {
            for doc in read(eye.touched_after(seen.change)) {
                claims_changed |=
                    origin == Origin::Central && read(eye.stored(doc)).kind == Some(Kind::Claim);
                self.document(eye, &name, origin, doc);
            }
            // Whose database went back may tell what is older than it says.
            let went_back = |site: &SiteId| {
                [Origin::Central, Origin::Site(*site)].iter().any(|origin| self.went_back.contains(origin))
            };
            let judged = |site: SiteId| names.get(&site).filter(|_| !went_back(&site)).cloned();
            if origin == Origin::Central {
                for (hash, ..) in read(eye.changes_after(seen.change)) {
                    self.epochs.takes(eye, &hash, &judged);
                }
                self.epochs.note_parked(eye);
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
            if let (Origin::Central, sync::journal::Stream::Site(site), Some(Event::EpochAdopted { epoch })) =
                (origin, entry.stream, &entry.event)
            {
                self.epochs.adopts(site, *epoch);
            }
            self.entry(&name, origin, &entry, fact);
        }
        let set_aside = read(eye.set_aside_after(seen.item));
        for SetAside { row, peer, document, reason, hash } in set_aside {
            seen.item = row;
            let from: Origin = peer.parse().expect("a peer");
            let had_left = reason.contains(LEFT) && self.has_forgotten_it(world, from, document, hash);
            if self.is_forgetful(from) && (had_left || OVERRULED.iter().any(|why| reason.contains(why))) {
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
        if claims_changed {
            let unsure = self.unsure();
            self.moves.look(world, &unsure);
        }
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
        if kind == Kind::Node {
            disagreements::least_destructive_holds(&document, &body, name);
            disagreements::last_word_holds(&document, &body, name);
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
        if is_new {
            self.moves.hears(entry.stream, event, fact);
        }
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
    pub(crate) fn goes_ahead(
        &mut self,
        world: &World,
        site: SiteId,
        node: NodeId,
        about: (TaskId, u64),
        report: ReportId,
    ) {
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
        let eye = read(Eye::open(&world.path(Origin::Site(site))));
        // What a site that went back has forgotten it hears from central again: the document says it then.
        let consumed = || match self.consumed.get(&about) {
            None if self.went_back.contains(&Origin::Site(site)) => orders::consumed(&eye, task),
            book => book.map(|(consumer, _)| (attempt, *consumer)),
        };
        if consumed() != Some((attempt, report)) {
            let detail = format!("attempt {attempt} of task {task} at {name}");
            violated("whoever goes ahead has consumed the order", detail);
        }
        if let Some(detail) = orders::overtaken(&eye, task) {
            violated(orders::OVERTAKEN, format!("{detail} at {name}"));
        }
        if before.is_none() {
            self.moves.goes_ahead(world, site, node, &self.unsure());
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
        let unsure = self.unsure();
        self.moves.look(world, &unsure);
        for site in world.sites() {
            let is_excused = self.excused.contains(&site) || self.forgetful.contains_key(&site);
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
        // What has moved away is no stranger.
        let strangers = read(eye.candidates()).into_iter().filter(|mac| self.noise.contains(mac));
        let candidates = i64::try_from(strangers.count()).expect("few");
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
            orders::one_live_order(world, site);
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
            let mut held = read(world.eye(origin).held());
            // Where a machine is still being written it is kept until that has ended.
            held.retain(|it| told.contains(it) || !moves::is_kept(world.eye(origin), *site, it.0));
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
            directories::directory_of_domain(world, *site);
        }
        self.answered_once(world);
        // What came back to a central that had forgotten it, it hears of in another order.
        self.moves.at_rest(world, self.went_back.contains(&Origin::Central));
        for origin in world.origins() {
            disagreements::nobody_disagrees_unseen(world, origin);
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

    /// Everything that was asked of central was answered, and done once or not at all.
    fn answered_once(&self, world: &mut World) {
        let central = Origin::Central;
        let rows = world.store(central).read(|view| view.proposals(&ProposalFilter::default()));
        // What central took back from a site waits for a person.
        let asked: Vec<_> =
            rows.expect("it reads").into_iter().filter(|row| row.action != proposal::WRITE).collect();
        let waits = asked.iter().find(|row| row.state == ProposalState::Open);
        if let Some(row) = waits.filter(|_| self.hostile.is_empty()) {
            violated("in the end every proposal is answered", format!("{} {}", row.action, row.id));
        }
        let eye = world.eye(central);
        let mut done: BTreeMap<String, usize> = BTreeMap::new();
        for doc in read(eye.documents()) {
            let stored = read(eye.stored(doc));
            let Some(kind @ (Kind::Node | Kind::Task)) = stored.kind else { continue };
            let document = eye.document(doc, kind, stored.id).expect("it opens");
            for change in document.automerge().get_changes(&[]) {
                let writes = ingress::parse(change.raw_bytes())
                    .and_then(|parsed| ingress::registers(kind, stored.id, &parsed))
                    .unwrap_or_default();
                let why =
                    writes.iter().filter(|write| write.written.site == central).map(|it| &it.written.why);
                if let Some(why) = why.into_iter().find(|why| why.contains("asked for at")) {
                    *done.entry(why.clone()).or_default() += 1;
                }
            }
        }
        if let Some((why, times)) = done.iter().find(|(_, times)| **times > 1) {
            violated("what is asked of central is done once", format!("{times} times: {why}"));
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
        Kind::Claim => {
            let decision = contested::read(document, &claim::decision());
            writers.extend(decision.sides().iter().map(|side| side.written.site));
            let fence = contested::read(document, &claim::fence());
            writers.extend(fence.sides().iter().map(|side| side.written.site));
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

pub(crate) fn read<T>(result: Result<T, rusqlite::Error>) -> T {
    result.unwrap_or_else(|error| violated("the database can be read", error.to_string()))
}
