//! A world under one virtual clock: central, sites, and links in memory that delay, lose, double and cut.
//!
//! Stores and engines are the shipped ones; only time, randomness, the wire and what becomes of the disk
//! are played. One thread is everybody, so the same seed gives the same world, and a replica can be ended
//! between any two of its steps, or in the middle of a commit, and opened again.
//!
//! `pass` lets time go by: datagrams arrive, engines act, stores answer. Whatever a suite does to the world
//! (`run` a command, `set_link`, `set_weather`, `set_clock`, `reset`, `end`, `end_after`, `set_disk`) it
//! does between two calls of it. `lib.rs` names the parts.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use store::{Given, Opening, Store, StoreError, Tx};
use sync::{
    engine::{Connection, Engine, Input, Moment, Output},
    id::{Origin, SiteId},
    time::Timestamp,
};

use crate::{
    disk,
    eye::Eye,
    history::History,
    hostile,
    link::{Arrival, Datagram, Inbox, Order, Outbox, Weather},
    random::Random,
};

/// When every world begins: 2026-11-20T08:00:00Z.
pub const BEGIN: Timestamp = Timestamp(1_795_161_600_000);

/// Rare, because a world lives for days and every heartbeat is a commit on both sides.
pub const HEARTBEAT: Duration = Duration::from_secs(300);

/// A connection that hears nothing for so long is gone, as `quic::endpoint` has it.
const IDLE: Duration = Duration::from_secs(20);

/// How long a dial into silence takes.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Wait before a lost datagram is sent again; doubles up to [`RESEND_MAX`].
const RESEND: Duration = Duration::from_millis(200);
const RESEND_MAX: Duration = Duration::from_secs(3);

/// So often something happens in a time that passes, and a little oftener where it is long, before the world
/// is taken for broken.
const MAX_TURNS: u64 = 20_000;

/// How a replica ends without saying so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its program closes the database.
    Stopped,
    /// Its program is killed: the write-ahead log stays as it is.
    Killed,
    /// The power goes in the middle of the last commit, which nobody has been told of.
    Torn,
}

/// Answers in place of a store: what a planted bug does. [`answer`] is what it is in the place of.
pub type Between = Box<dyn FnMut(&mut Random, Origin, &Store, Given, Output) -> Option<Input>>;

/// Looks at what a store is about to be asked: what a check does.
pub type Watch = Box<dyn FnMut(&mut World, Origin, &Output)>;

/// Puts another frame in the place of one that a replica sends: what a hostile site does.
pub type Meddle = Box<dyn FnMut(&mut World, Origin, Vec<u8>) -> Vec<u8>>;

/// One replica: what a program would be, without its doors.
pub struct Replica {
    /// Whose it is.
    pub origin: Origin,
    /// Its store; absent between an end and the next start.
    pub store: Option<Store>,
    /// What happened that people would see, newest last.
    pub notices: Vec<String>,
    engine: Engine,
    eye: Option<Eye>,
    /// When the engine was made: it measures from there.
    since: Duration,
    /// What its clock shows, less the true time, in milliseconds.
    clock_ms: i64,
    /// Ends of logs that have grown and that the engine was not told of.
    grown: Arc<Mutex<BTreeMap<Origin, u64>>>,
    /// Answers of the store until it ends, and how.
    ending: Option<(u64, Ending)>,
    has_full_disk: bool,
    heard_central: Timestamp,
}

/// What lies between a site and central.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    weather: Weather,
    cut_since: Option<Duration>,
    breaks_next: bool,
}

/// One connection. An end is absent when its replica does not have it any more.
#[derive(Default)]
struct Line {
    ends: BTreeMap<Origin, End>,
    site: Option<SiteId>,
}

#[derive(Default)]
struct End {
    outbox: Outbox,
    inbox: Inbox,
}

/// Something that happens by itself at its time.
enum Event {
    Datagram {
        to: Origin,
        connection: Connection,
        datagram: Datagram,
        is_lost: bool,
        tries: u32,
    },
    /// An end finds out that the other one is gone.
    Gone {
        to: Origin,
        connection: Connection,
    },
    /// A link has been cut for as long as connections live without hearing anything.
    Idle {
        site: SiteId,
        since: Duration,
    },
    DialFails {
        site: SiteId,
    },
}

/// The whole world.
pub struct World {
    /// Source of every choice.
    pub random: Random,
    /// What happened.
    pub history: History,
    /// How often links and endings did what, by name.
    pub counts: BTreeMap<&'static str, u64>,
    /// Stands between engines and stores.
    pub between: Option<Between>,
    /// Copies of every frame with who sent it, as long as somebody wants them.
    pub heard: Option<Vec<(Origin, Vec<u8>)>>,
    /// Sees what stores are asked.
    pub watch: Option<Watch>,
    /// Has its hands on what is sent.
    pub meddle: Option<Meddle>,
    /// Frames that were sent.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The same by who sent them.
    pub bytes_of: BTreeMap<Origin, u64>,
    heartbeat: Duration,
    folder: tempfile::TempDir,
    now: Duration,
    replicas: BTreeMap<Origin, Replica>,
    links: BTreeMap<SiteId, Link>,
    names: BTreeMap<SiteId, String>,
    /// Sites whose frames are tampered with, and how many of a hundred.
    hostile: BTreeMap<SiteId, u64>,
    lines: BTreeMap<Connection, Line>,
    next_connection: u64,
    events: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
}

impl World {
    /// A world with central and no site.
    pub fn new(seed: u64) -> Self {
        World::beating(seed, HEARTBEAT)
    }

    /// The same with another time between heartbeats.
    pub fn beating(seed: u64, heartbeat: Duration) -> Self {
        disk::watch_connections();
        let mut world = World {
            random: Random::new(seed),
            history: History::default(),
            counts: BTreeMap::new(),
            between: None,
            heard: None,
            watch: None,
            meddle: None,
            frames: 0,
            bytes: 0,
            bytes_of: BTreeMap::new(),
            heartbeat,
            folder: disk::folder(),
            now: Duration::ZERO,
            replicas: BTreeMap::new(),
            links: BTreeMap::new(),
            names: BTreeMap::new(),
            hostile: BTreeMap::new(),
            lines: BTreeMap::new(),
            next_connection: 0,
            events: BTreeMap::new(),
            next_event: 0,
        };
        world.start(Origin::Central);
        world
    }

    /// Adds a site as central describes it, and starts its agent.
    pub fn add_site(&mut self, name: &str) -> SiteId {
        let described = name.to_string();
        let site = self
            .run(Origin::Central, "ann", move |tx| store::command::site::create(tx, &described, "", ""))
            .expect("central describes the site");
        self.names.insert(site, name.to_string());
        self.links.insert(site, Link::default());
        self.start(Origin::Site(site));
        site
    }

    /// The true time.
    pub fn wall(&self) -> Timestamp {
        BEGIN.after(self.now)
    }

    /// What a replica's clock shows.
    pub fn clock(&self, origin: Origin) -> Timestamp {
        let skew = self.replicas.get(&origin).map_or(0, |replica| replica.clock_ms);
        Timestamp(self.wall().0.saturating_add_signed(skew))
    }

    /// Sets a replica's clock, as the difference from the true time in milliseconds. No clock shows a time
    /// before 1970.
    pub fn set_clock(&mut self, origin: Origin, skew_ms: i64) {
        self.replica_mut(origin).clock_ms = skew_ms;
        let shows = self.clock(origin);
        self.tell(origin, format!("its clock shows {shows}"));
    }

    /// Where a replica keeps its files.
    pub fn path(&self, origin: Origin) -> PathBuf {
        self.folder.path().join(origin.to_string())
    }

    /// Where a suite may keep copies of them.
    pub fn backup_path(&self, name: &str) -> PathBuf {
        self.folder.path().join("backups").join(name)
    }

    /// A replica.
    pub fn replica(&self, origin: Origin) -> &Replica {
        &self.replicas[&origin]
    }

    /// All replicas, central first.
    pub fn origins(&self) -> Vec<Origin> {
        self.replicas.keys().copied().collect()
    }

    /// All sites.
    pub fn sites(&self) -> Vec<SiteId> {
        self.links.keys().copied().collect()
    }

    /// Whether a replica runs.
    pub fn runs(&self, origin: Origin) -> bool {
        self.replicas[&origin].store.is_some()
    }

    /// A replica's store.
    ///
    /// # Panics
    /// When the replica is down.
    pub fn store(&self, origin: Origin) -> &Store {
        self.replicas[&origin].store.as_ref().expect("the replica runs")
    }

    /// Looks into the database of a replica that runs.
    ///
    /// # Panics
    /// When the replica is down.
    pub fn eye(&mut self, origin: Origin) -> &Eye {
        let folder = self.path(origin);
        let replica = self.replica_mut(origin);
        assert!(replica.store.is_some(), "the replica runs");
        replica.eye.get_or_insert_with(|| Eye::open(&folder).expect("the database opens"))
    }

    /// The latest time that central told this replica and that it has committed.
    pub fn heard_central(&self, origin: Origin) -> Timestamp {
        self.replicas[&origin].heard_central
    }

    /// Name of a replica, for people.
    pub fn name(&self, origin: Origin) -> String {
        match origin {
            Origin::Central => "central".into(),
            Origin::Site(site) => self.names.get(&site).cloned().unwrap_or_else(|| site.to_string()),
        }
    }

    /// Adds a line about a replica to the history.
    pub fn tell(&self, origin: Origin, what: impl Into<String>) {
        self.history.note(self.wall(), &self.name(origin), what);
    }

    /// Counts one of something.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn given(&mut self, origin: Origin, by: &str) -> Given {
        Given { now: self.clock(origin), by: by.to_string(), entropy: self.random.bytes() }
    }

    /// Runs a command at a replica and lets its engine know.
    ///
    /// # Errors
    /// Those of the command.
    pub fn run<T: Send + 'static>(
        &mut self,
        origin: Origin,
        by: &str,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let given = self.given(origin, by);
        let outcome = self.store(origin).run(given, command);
        self.announce(origin);
        outcome
    }

    /// Runs a command at a replica that ends before anybody is answered. With [`Ending::Torn`] the command
    /// is as if it had never been, otherwise its commit stays.
    pub fn run_and_end<T: Send + 'static>(
        &mut self,
        origin: Origin,
        by: &str,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
        ending: Ending,
    ) {
        let given = self.given(origin, by);
        let before = disk::before(&self.path(origin));
        // The answer is lost with the replica, whatever it was.
        drop(self.store(origin).run(given, command));
        self.end_at(origin, ending, &before);
    }

    /// Starts a replica, or starts it again after it ended.
    pub fn start(&mut self, origin: Origin) {
        let opening = Opening { folder: self.path(origin), origin, given: self.given(origin, "start") };
        disk::forget(&self.path(origin).join("holdfast.db"));
        let store = Store::open(&opening).expect("the store opens");
        let grown = Arc::new(Mutex::new(BTreeMap::new()));
        let growing = Arc::clone(&grown);
        store.watch(move |committed| {
            let ends = committed.grown.iter().map(|(peer, end)| (*peer, *end));
            growing.lock().unwrap_or_else(PoisonError::into_inner).extend(ends);
        });
        let engine = match origin {
            Origin::Central => Engine::central(self.heartbeat),
            Origin::Site(site) => Engine::site(site, self.heartbeat),
        };
        let former = self.replicas.remove(&origin);
        let replica = Replica {
            origin,
            store: Some(store),
            engine,
            eye: None,
            since: self.now,
            grown,
            ending: None,
            has_full_disk: false,
            clock_ms: former.as_ref().map_or(0, |replica| replica.clock_ms),
            heard_central: former.as_ref().map_or(Timestamp(0), |replica| replica.heard_central),
            notices: former.map(|replica| replica.notices).unwrap_or_default(),
        };
        self.replicas.insert(origin, replica);
        self.tell(origin, "starts");
        let moment = self.moment(origin);
        self.replica_mut(origin).engine.handle(moment, Input::Timeout);
    }

    /// Ends a replica without any farewell: what is committed stays, everything else is gone. Its peers
    /// notice at once.
    pub fn crash(&mut self, origin: Origin) {
        self.lose_ends(origin, Duration::ZERO);
        self.end(origin, Ending::Stopped);
    }

    /// Ends a replica between two of its steps. Its peers notice at once or when they have heard nothing
    /// for a while. Between steps nothing is left to tear: [`Ending::Torn`] is [`Ending::Killed`] then.
    pub fn end(&mut self, origin: Origin, ending: Ending) {
        let before = disk::before(&self.path(origin));
        self.end_at(origin, ending, &before);
    }

    /// Ends a replica after so many more answers of its store, the last of which is lost with it.
    pub fn end_after(&mut self, origin: Origin, answers: u64, ending: Ending) {
        self.replica_mut(origin).ending = Some((answers, ending));
    }

    /// Forgets an end that was planned.
    pub fn keep_running(&mut self, origin: Origin) {
        self.replica_mut(origin).ending = None;
    }

    fn end_at(&mut self, origin: Origin, ending: Ending, before: &disk::Before) {
        let folder = self.path(origin);
        // Not drawn from the seed: nothing is made of it.
        let given = Given { now: self.clock(origin), by: "end".into(), entropy: [0; 32] };
        let replica = self.replica_mut(origin);
        replica.eye = None;
        replica.ending = None;
        let Some(store) = replica.store.take() else { return };
        let tearable = if ending == Ending::Torn { disk::torn(&folder, before) } else { None };
        let mut torn = None;
        match ending {
            Ending::Stopped => drop(store),
            Ending::Killed | Ending::Torn => {
                disk::kill(store, given).expect("the files stay as they are");
                if let Some((from, upto)) = tearable {
                    let length = from + self.random.below(upto - from);
                    disk::cut(&folder, length).expect("the log is cut");
                    torn = Some(upto - length);
                }
            }
        }
        disk::forget(&folder.join("holdfast.db"));
        self.count(match (ending, torn) {
            (Ending::Stopped, _) => "stopped",
            (_, Some(_)) => "power lost in a commit",
            (_, None) => "killed",
        });
        let how =
            torn.map_or(String::new(), |bytes| format!(", {bytes} bytes of its last commit are missing"));
        self.tell(origin, format!("ends ({ending:?}{how})"));
        let after = if self.random.chance(50) { Duration::ZERO } else { IDLE };
        self.lose_ends(origin, after);
    }

    /// Takes the ends of a replica off their lines; the other ends notice after a while.
    fn lose_ends(&mut self, origin: Origin, after: Duration) {
        let mut left = Vec::new();
        for (connection, line) in &mut self.lines {
            if line.ends.remove(&origin).is_some() {
                left.extend(line.ends.keys().map(|to| (*to, *connection)));
            }
        }
        self.lines.retain(|_, line| !line.ends.is_empty());
        if !after.is_zero() && !left.is_empty() {
            self.count("peer gone without a word");
        }
        for (to, connection) in left {
            self.plan(after, Event::Gone { to, connection });
        }
    }

    /// Cuts or heals the link of a site. Datagrams under way are lost; connections end when they have heard
    /// nothing for a while.
    pub fn set_link(&mut self, site: SiteId, up: bool) {
        let now = self.now;
        let link = self.links.get_mut(&site).expect("the site has a link");
        match (up, link.cut_since) {
            (true, Some(since)) => {
                link.cut_since = None;
                if now - since < IDLE {
                    self.count("link stalled");
                }
                self.tell(Origin::Site(site), "its link is up");
            }
            (false, None) => {
                link.cut_since = Some(now);
                self.plan(IDLE, Event::Idle { site, since: now });
                self.count("link cut");
                self.tell(Origin::Site(site), "its link is cut");
            }
            (true, None) | (false, Some(_)) => {}
        }
    }

    /// Whether the link of a site is up.
    pub fn link_is_up(&self, site: SiteId) -> bool {
        self.links[&site].cut_since.is_none()
    }

    /// Sets what the link of a site does to datagrams.
    pub fn set_weather(&mut self, site: SiteId, weather: Weather) {
        self.links.get_mut(&site).expect("the site has a link").weather = weather;
    }

    /// Breaks the connections of a site in the middle of the next frame.
    pub fn reset(&mut self, site: SiteId) {
        self.links.get_mut(&site).expect("the site has a link").breaks_next = true;
    }

    /// Tampers with so many of a hundred frames that a site sends.
    pub fn set_hostile(&mut self, site: SiteId, percent: u64) {
        self.hostile.insert(site, percent);
    }

    /// Leaves the disk of a replica room for so many pages, or for as many as it likes.
    pub fn set_disk(&mut self, origin: Origin, spare_pages: Option<u64>) {
        let given = self.given(origin, "disk");
        disk::limit(self.store(origin), given, spare_pages).expect("the limit is set");
        self.replica_mut(origin).has_full_disk = spare_pages.is_some();
        let words = spare_pages.map_or("as many as it likes".into(), |pages| format!("{pages}"));
        self.tell(origin, format!("its disk has room for pages: {words}"));
    }

    /// Whether the disk of a replica was limited since it started.
    pub fn has_full_disk(&self, origin: Origin) -> bool {
        self.replicas[&origin].has_full_disk
    }

    /// Forgets what a replica heard from central: its database is another one from here on.
    pub fn forget_central(&mut self, origin: Origin) {
        self.replica_mut(origin).heard_central = Timestamp(0);
    }

    /// Lets time pass.
    pub fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        let mut standing_still = 0;
        let mut turns = 0;
        loop {
            self.settle();
            turns += 1;
            assert!(turns < MAX_TURNS + 20 * duration.as_secs(), "the engines talk without end");
            let timeouts = self
                .replicas
                .values()
                .filter(|replica| replica.store.is_some())
                .filter_map(|replica| Some(replica.since.saturating_add(replica.engine.poll_timeout()?)));
            let happens = self.events.keys().next().map(|(at, _)| *at);
            let Some(next) = timeouts.chain(happens).min().filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            standing_still = if next <= self.now { standing_still + 1 } else { 0 };
            assert!(standing_still < 10_000, "an engine asks for the same time again and again");
            self.now = self.now.max(next);
            self.deliver();
            self.wake();
        }
    }

    /// Lets time pass until something holds, at most `patience`.
    ///
    /// # Panics
    /// When it does not come to hold.
    pub fn until(&mut self, what: &str, patience: Duration, holds: impl Fn(&World) -> bool) {
        assert!(self.comes_to(patience, holds), "within {patience:?} of virtual time: {what}");
    }

    /// Lets time pass until something holds, at most `patience`; returns whether it does.
    pub fn comes_to(&mut self, patience: Duration, holds: impl Fn(&World) -> bool) -> bool {
        let end = self.now + patience;
        while !holds(self) {
            if self.now >= end {
                return false;
            }
            self.pass(Duration::from_millis(250));
        }
        true
    }

    /// Whether a site and central hold the same and know it.
    pub fn in_agreement(&self, site: SiteId) -> bool {
        let peer = Origin::Site(site);
        if !self.runs(peer) || !self.runs(Origin::Central) {
            return false;
        }
        let at_central = self.store(Origin::Central).read(|view| view.peer(peer)).expect("central reads");
        let at_site = self.store(peer).read(|view| view.peer(Origin::Central)).expect("the site reads");
        at_central.agrees == Some(true)
            && at_site.agrees == Some(true)
            && at_central.acknowledged == at_central.end
            && at_site.acknowledged == at_site.end
            && (at_central.pulled, at_site.pulled) == (at_site.end, at_central.end)
    }

    fn moment(&self, origin: Origin) -> Moment {
        let since = self.replicas.get(&origin).map_or(self.now, |replica| replica.since);
        Moment { elapsed: self.now - since, wall: self.clock(origin) }
    }

    fn replica_mut(&mut self, origin: Origin) -> &mut Replica {
        self.replicas.get_mut(&origin).expect("the replica is in the world")
    }

    fn jitter(&mut self) -> u16 {
        u16::try_from(self.random.below(65_536)).expect("16 bits")
    }

    fn input(&mut self, origin: Origin, input: Input) {
        let moment = self.moment(origin);
        if let Some(replica) = self.replicas.get_mut(&origin)
            && replica.store.is_some()
        {
            replica.engine.handle(moment, input);
        }
    }

    /// Tells a replica's engine how far its logs have grown.
    fn announce(&mut self, origin: Origin) {
        let grown =
            std::mem::take(&mut *self.replicas[&origin].grown.lock().unwrap_or_else(PoisonError::into_inner));
        for (peer, end) in grown {
            self.input(origin, Input::Changed { peer, end });
        }
    }

    /// Tells the engines whose time has come.
    fn wake(&mut self) {
        let due: Vec<Origin> = self
            .replicas
            .values()
            .filter(|replica| {
                let at = replica.engine.poll_timeout();
                at.is_some_and(|at| replica.since.saturating_add(at) <= self.now)
            })
            .map(|replica| replica.origin)
            .collect();
        for origin in due {
            self.input(origin, Input::Timeout);
        }
    }

    /// Performs everything that the engines want done now.
    fn settle(&mut self) {
        let mut turns = 0;
        loop {
            let mut busy = false;
            let origins: Vec<Origin> = self.replicas.keys().copied().collect();
            for origin in origins {
                while let Some(output) = self
                    .replicas
                    .get_mut(&origin)
                    .filter(|replica| replica.store.is_some())
                    .and_then(|replica| replica.engine.poll())
                {
                    busy = true;
                    turns += 1;
                    assert!(turns < MAX_TURNS, "an engine asks for the same again and again: {output:?}");
                    self.perform(origin, output);
                }
            }
            if !busy {
                return;
            }
        }
    }

    fn perform(&mut self, origin: Origin, output: Output) {
        match output {
            Output::Dial => self.dial(origin),
            Output::Send { connection, bytes } => self.send(origin, connection, bytes),
            Output::Close { connection, reason, .. } => self.close(origin, connection, reason),
            other => self.ask(origin, other),
        }
    }

    /// Lets the store do what the engine wants, and hands the answer back unless the replica ends before.
    fn ask(&mut self, origin: Origin, output: Output) {
        self.note(origin, &output);
        if let Some(mut watch) = self.watch.take() {
            watch(self, origin, &output);
            self.watch = Some(watch);
        }
        let given = self.given(origin, "sync");
        let heard = match &output {
            Output::Up { peer: Origin::Central, clock }
            | Output::Heard { peer: Origin::Central, clock, .. } => Some(*clock),
            _ => None,
        };
        let ending = self.ending_now(origin).map(|ending| (ending, disk::before(&self.path(origin))));
        let store = self.store(origin).clone();
        let answered = match &mut self.between {
            Some(between) => between(&mut self.random, origin, &store, given, output),
            None => answer(&store, given, output),
        };
        drop(store);
        if let Some((ending, before)) = ending {
            self.count("ended between two steps");
            self.end_at(origin, ending, &before);
            return;
        }
        let replica = self.replica_mut(origin);
        if let Some(clock) = heard
            && !replica.has_full_disk
        {
            replica.heard_central = replica.heard_central.max(clock);
        }
        if let Some(Input::IngestFailed { reason, .. } | Input::LifeBegun { reason, .. }) = &answered {
            let reason = format!("cannot go on: {reason}");
            self.tell(origin, reason.clone());
            self.replica_mut(origin).notices.push(reason);
        }
        if let Some(input) = answered {
            self.input(origin, input);
        }
        self.announce(origin);
    }

    /// Counts an answer towards the end that was planned; returns it when it has come.
    fn ending_now(&mut self, origin: Origin) -> Option<Ending> {
        let (left, ending) = self.replica_mut(origin).ending.as_mut()?;
        *left = left.saturating_sub(1);
        (*left == 0).then_some(*ending)
    }

    fn note(&mut self, origin: Origin, output: &Output) {
        let notice = match output {
            Output::Up { peer, .. } => format!("up: {peer}"),
            Output::Down { peer, reason } => format!("down: {peer}: {reason}"),
            Output::Agreement { agrees, .. } => format!("agrees: {agrees}"),
            Output::Refused { reason, .. } => format!("refused: {reason}"),
            Output::Busy { until, reason, .. } => format!("busy until {until}: {reason}"),
            Output::Ingest { peer, from, items, .. } => {
                let (peer, last) = (self.name(*peer), from + items.len() as u64 - 1);
                return self.tell(origin, format!("takes {from} to {last} of {peer}"));
            }
            _ => return,
        };
        self.tell(origin, notice.clone());
        self.replica_mut(origin).notices.push(notice);
    }

    fn dial(&mut self, origin: Origin) {
        let Origin::Site(site) = origin else { return };
        if !self.link_is_up(site) {
            self.plan(DIAL_TIMEOUT, Event::DialFails { site });
            return;
        }
        if !self.runs(Origin::Central) {
            let jitter = self.jitter();
            self.input(origin, Input::DialFailed { jitter });
            return;
        }
        self.next_connection += 1;
        let connection = Connection(self.next_connection);
        let ends = [Origin::Central, origin].map(|end| (end, End::default())).into();
        self.lines.insert(connection, Line { ends, site: Some(site) });
        self.input(Origin::Central, Input::Accepted { connection, site });
        self.input(origin, Input::Dialed { connection });
    }

    fn send(&mut self, origin: Origin, connection: Connection, mut bytes: Vec<u8>) {
        self.frames += 1;
        self.bytes += bytes.len() as u64;
        *self.bytes_of.entry(origin).or_default() += bytes.len() as u64;
        if let Origin::Site(site) = origin
            && let Some(percent) = self.hostile.get(&site).copied()
            && self.random.chance(percent)
            && let Some((worse, what)) = hostile::tamper(&mut self.random, &bytes)
        {
            self.count(what);
            self.tell(origin, format!("sends {what}"));
            bytes = worse;
        }
        if let Some(mut meddle) = self.meddle.take() {
            bytes = meddle(self, origin, bytes);
            self.meddle = Some(meddle);
        }
        if let Some(heard) = &mut self.heard {
            heard.push((origin, bytes.clone()));
        }
        let Some(end) = self.lines.get_mut(&connection).and_then(|line| line.ends.get_mut(&origin)) else {
            return;
        };
        for datagram in end.outbox.frame(&bytes) {
            self.fly(origin, connection, datagram);
        }
    }

    /// Ends our end; the other one hears of it after everything that was sent before.
    fn close(&mut self, origin: Origin, connection: Connection, reason: String) {
        if reason == "the site has connected again" {
            self.count("connection replaced");
        }
        if let Some(line) = self.lines.get_mut(&connection)
            && let Some(mut end) = line.ends.remove(&origin)
        {
            let datagram = end.outbox.close(&reason);
            self.fly(origin, connection, datagram);
        }
        let jitter = self.jitter();
        self.input(origin, Input::Closed { connection, reason, jitter });
    }

    fn fly(&mut self, from: Origin, connection: Connection, datagram: Datagram) {
        let Some(site) = self.lines.get(&connection).and_then(|line| line.site) else { return };
        let weather = self.links[&site].weather;
        let to = if from == Origin::Central { Origin::Site(site) } else { Origin::Central };
        let copies = if self.random.below(1_000) < weather.doubled { 2 } else { 1 };
        for _ in 0..copies {
            let jitter = u64::try_from(weather.jitter.as_micros()).expect("short") + 1;
            let delay = weather.delay + Duration::from_micros(self.random.below(jitter));
            let is_lost = self.random.below(1_000) < weather.lost;
            let datagram = datagram.clone();
            self.plan(delay, Event::Datagram { to, connection, datagram, is_lost, tries: 0 });
        }
    }

    fn plan(&mut self, after: Duration, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + after, self.next_event), event);
    }

    /// Lets happen what is due.
    fn deliver(&mut self) {
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= self.now
        {
            match entry.remove() {
                Event::Datagram { to, connection, datagram, is_lost, tries } => {
                    self.arrive(to, connection, datagram, is_lost, tries);
                }
                Event::Gone { to, connection } => self.drop_end(to, connection, "the peer is gone"),
                Event::Idle { site, since } => {
                    if self.links[&site].cut_since == Some(since) {
                        self.drop_lines(site, "nothing was heard for too long");
                    }
                }
                Event::DialFails { site } => {
                    let jitter = self.jitter();
                    self.input(Origin::Site(site), Input::DialFailed { jitter });
                }
            }
            self.settle();
        }
    }

    fn arrive(&mut self, to: Origin, connection: Connection, datagram: Datagram, is_lost: bool, tries: u32) {
        let Some(line) = self.lines.get_mut(&connection) else { return };
        let Some(site) = line.site else { return };
        let Some(end) = line.ends.get_mut(&to) else { return };
        let link = self.links.get_mut(&site).expect("the site has a link");
        if is_lost || link.cut_since.is_some() {
            let wait = RESEND.saturating_mul(1 << tries.min(6)).min(RESEND_MAX);
            let lost_again = self.random.below(1_000) < link.weather.lost;
            if is_lost {
                self.count("datagram lost");
            }
            let tries = tries + 1;
            self.plan(wait, Event::Datagram { to, connection, datagram, is_lost: lost_again, tries });
            return;
        }
        if link.breaks_next && datagram.is_long() {
            let (order, _) = end.inbox.take(datagram.half());
            if order == Order::Next && end.inbox.is_within_a_frame() {
                link.breaks_next = false;
                self.count("reset in a frame");
                self.tell(Origin::Site(site), "its connections are reset");
                self.drop_lines(site, "the connection was reset");
            }
            return;
        }
        let (order, arrivals) = end.inbox.take(datagram);
        match order {
            Order::Next => {}
            Order::Early => self.count("datagram late"),
            Order::Again => self.count("datagram doubled"),
        }
        for arrival in arrivals {
            match arrival {
                Arrival::Frame(bytes) => {
                    self.input(to, Input::Frame { connection, bytes });
                    self.settle();
                }
                Arrival::Close(reason) => self.drop_end(to, connection, &reason),
            }
        }
    }

    fn drop_lines(&mut self, site: SiteId, reason: &str) {
        let lost: Vec<Connection> = self
            .lines
            .iter()
            .filter(|(_, line)| line.site == Some(site))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in lost {
            for origin in [Origin::Central, Origin::Site(site)] {
                self.drop_end(origin, connection, reason);
            }
        }
    }

    fn drop_end(&mut self, origin: Origin, connection: Connection, reason: &str) {
        let Some(line) = self.lines.get_mut(&connection) else { return };
        let had_it = line.ends.remove(&origin).is_some();
        if line.ends.is_empty() {
            self.lines.remove(&connection);
        }
        if had_it {
            let jitter = self.jitter();
            self.input(origin, Input::Closed { connection, reason: reason.to_string(), jitter });
        }
    }
}

/// Lets a store answer, as the programs do, and waits for it.
pub fn answer(store: &Store, given: Given, output: Output) -> Option<Input> {
    let (sender, receiver) = mpsc::sync_channel(1);
    store.answer(output, given, move |input| drop(sender.send(input)));
    // Where there is no answer, the sender is dropped after the commit.
    receiver.recv().ok()
}
