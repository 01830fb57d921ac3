//! A world under one virtual clock: central, sites, and links in memory that delay, lose and cut.
//!
//! Stores and engines are the shipped ones; only time, randomness and the wire are played. One thread is
//! everybody, so the same seed gives the same world, and a replica can be dropped between any two of its
//! steps and opened again, as a crash does.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::Duration,
};

use store::{Given, Opening, Store, StoreError, Tx};
use sync::{
    engine::{Connection, Engine, Input, Moment, Output},
    id::{Origin, SiteId},
    time::Timestamp,
};

use crate::random::Random;

/// When every world begins: 2026-11-20T08:00:00Z.
pub const BEGIN: Timestamp = Timestamp(1_795_161_600_000);

/// Rare, because a world lives for days and every heartbeat is a commit on both sides.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// How long a frame is under way.
const DELAY: Duration = Duration::from_millis(40);

/// One replica: what a program would be, without its doors.
pub struct Replica {
    /// Whose it is.
    pub origin: Origin,
    /// Its store; absent between a crash and the next start.
    pub store: Option<Store>,
    engine: Engine,
    /// What happened that people would see, newest last.
    pub notices: Vec<String>,
    /// When the engine was made: it measures from there.
    since: Duration,
}

/// A frame or a close that is under way.
struct Flight {
    arrives: Duration,
    to: Origin,
    connection: Connection,
    freight: Freight,
}

enum Freight {
    Frame(Vec<u8>),
    Close(String),
}

/// The whole world.
pub struct World {
    /// Source of every choice.
    pub random: Random,
    folder: tempfile::TempDir,
    now: Duration,
    replicas: BTreeMap<Origin, Replica>,
    /// Links that are cut.
    cut: BTreeMap<SiteId, bool>,
    connections: BTreeMap<Connection, SiteId>,
    next_connection: u64,
    flights: VecDeque<Flight>,
    /// Frames that crossed a link.
    pub frames: u64,
    /// Bytes that crossed a link.
    pub bytes: u64,
}

impl World {
    /// A world with central and no site.
    pub fn new(seed: u64) -> Self {
        let mut world = World {
            random: Random::new(seed),
            folder: tempfile::tempdir().expect("a folder for the world"),
            now: Duration::ZERO,
            replicas: BTreeMap::new(),
            cut: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: 0,
            flights: VecDeque::new(),
            frames: 0,
            bytes: 0,
        };
        world.start(Origin::Central);
        world
    }

    /// Adds a site as central describes it, and starts its agent.
    pub fn add_site(&mut self, name: &str) -> SiteId {
        let name = name.to_string();
        let site = self
            .run(Origin::Central, "ann", move |tx| store::command::site::create(tx, &name, "", ""))
            .expect("central describes the site");
        self.start(Origin::Site(site));
        site
    }

    /// The virtual wall clock.
    pub fn wall(&self) -> Timestamp {
        BEGIN.after(self.now)
    }

    /// Where a replica keeps its files.
    pub fn path(&self, origin: Origin) -> PathBuf {
        self.folder.path().join(origin.to_string())
    }

    /// A replica.
    pub fn replica(&self, origin: Origin) -> &Replica {
        &self.replicas[&origin]
    }

    /// A replica's store.
    ///
    /// # Panics
    /// When the replica is down.
    pub fn store(&self, origin: Origin) -> &Store {
        self.replicas[&origin].store.as_ref().expect("the replica runs")
    }

    fn given(&mut self, by: &str) -> Given {
        Given { now: self.wall(), by: by.to_string(), entropy: self.random.bytes() }
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
        let given = self.given(by);
        let outcome = self.store(origin).run(given, command);
        self.announce(origin);
        outcome
    }

    /// Starts a replica, or starts it again after [`World::crash`].
    pub fn start(&mut self, origin: Origin) {
        let opening = Opening { folder: self.path(origin), origin, given: self.given("start") };
        let store = Store::open(&opening).expect("the store opens");
        let heartbeat = HEARTBEAT;
        let engine = match origin {
            Origin::Central => Engine::central(heartbeat),
            Origin::Site(site) => Engine::site(site, heartbeat),
        };
        let notices = self.replicas.remove(&origin).map(|replica| replica.notices).unwrap_or_default();
        let since = self.now;
        let replica = Replica { origin, store: Some(store), engine, notices, since };
        self.replicas.insert(origin, replica);
        let moment = self.moment(origin);
        self.replica_mut(origin).engine.handle(moment, Input::Timeout);
    }

    /// Ends a replica without any farewell: what is committed stays, everything else is gone.
    pub fn crash(&mut self, origin: Origin) {
        self.replica_mut(origin).store = None;
        let lost: Vec<Connection> = self
            .connections
            .iter()
            .filter(|(_, site)| origin == Origin::Central || origin == Origin::Site(**site))
            .map(|(connection, _)| *connection)
            .collect();
        for connection in lost {
            self.drop_connection(connection, "the peer is gone");
        }
    }

    /// Cuts or heals the link of a site.
    pub fn set_link(&mut self, site: SiteId, up: bool) {
        self.cut.insert(site, !up);
        if !up {
            let lost: Vec<Connection> =
                self.connections.iter().filter(|(_, end)| **end == site).map(|(line, _)| *line).collect();
            for connection in lost {
                self.drop_connection(connection, "the link was cut");
            }
        }
    }

    /// Lets time pass.
    pub fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            self.settle();
            let timeouts =
                self.replicas.values().filter(|replica| replica.store.is_some()).filter_map(|replica| {
                    replica.engine.poll_timeout().map(|at| replica.since.saturating_add(at))
                });
            let arrivals = self.flights.iter().map(|flight| flight.arrives);
            let Some(next) = timeouts.chain(arrivals).min().filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            self.arrive();
            let origins: Vec<Origin> = self.replicas.keys().copied().collect();
            for origin in origins {
                self.input(origin, Input::Timeout);
            }
        }
    }

    /// Lets time pass until something holds, at most `patience`.
    ///
    /// # Panics
    /// When it does not come to hold.
    pub fn until(&mut self, what: &str, patience: Duration, holds: impl Fn(&World) -> bool) {
        let end = self.now + patience;
        while !holds(self) {
            assert!(self.now < end, "within {patience:?} of virtual time: {what}");
            self.pass(Duration::from_millis(250));
        }
    }

    /// Whether a site and central hold the same and know it.
    pub fn in_agreement(&self, site: SiteId) -> bool {
        let peer = Origin::Site(site);
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
        Moment { elapsed: self.now - since, wall: self.wall() }
    }

    fn replica_mut(&mut self, origin: Origin) -> &mut Replica {
        self.replicas.get_mut(&origin).expect("the replica is in the world")
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
        let peers: Vec<Origin> = match origin {
            Origin::Central => {
                self.replicas.keys().copied().filter(|peer| *peer != Origin::Central).collect()
            }
            Origin::Site(_) => vec![Origin::Central],
        };
        for peer in peers {
            let end = self.store(origin).read(|view| view.peer(peer)).expect("the store reads").end;
            self.input(origin, Input::Changed { peer, end });
        }
    }

    /// Performs everything that the engines want done now.
    fn settle(&mut self) {
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
            Output::Send { connection, bytes } => {
                self.frames += 1;
                self.bytes += bytes.len() as u64;
                self.fly(origin, connection, Freight::Frame(bytes));
            }
            Output::Close { connection, reason, .. } => {
                self.fly(origin, connection, Freight::Close(reason.clone()));
                let jitter = u16::try_from(self.random.below(65_536)).expect("16 bits");
                self.input(origin, Input::Closed { connection, reason, jitter });
            }
            other => {
                match &other {
                    Output::Up { peer, .. } => self.note(origin, format!("up: {peer}")),
                    Output::Down { peer, reason } => self.note(origin, format!("down: {peer}: {reason}")),
                    Output::Agreement { agrees, .. } => self.note(origin, format!("agrees: {agrees}")),
                    Output::Refused { reason, .. } => self.note(origin, format!("refused: {reason}")),
                    _ => {}
                }
                let grows =
                    matches!(other, Output::Ingest { .. } | Output::Join { .. } | Output::Heard { .. });
                let given = self.given("sync");
                let answer = self.store(origin).answer_now(other, given).expect("the replica answers");
                if let Some(input) = answer {
                    self.input(origin, input);
                }
                if grows {
                    self.announce(origin);
                }
            }
        }
    }

    fn note(&mut self, origin: Origin, notice: String) {
        self.replica_mut(origin).notices.push(notice);
    }

    fn dial(&mut self, origin: Origin) {
        let Origin::Site(site) = origin else { return };
        let central_runs = self.replicas[&Origin::Central].store.is_some();
        if self.cut.get(&site).copied().unwrap_or(false) || !central_runs {
            let jitter = u16::try_from(self.random.below(65_536)).expect("16 bits");
            self.input(origin, Input::DialFailed { jitter });
            return;
        }
        self.next_connection += 1;
        let connection = Connection(self.next_connection);
        self.connections.insert(connection, site);
        self.input(Origin::Central, Input::Accepted { connection, site });
        self.input(origin, Input::Dialed { connection });
    }

    fn fly(&mut self, from: Origin, connection: Connection, freight: Freight) {
        let Some(site) = self.connections.get(&connection) else { return };
        let to = if from == Origin::Central { Origin::Site(*site) } else { Origin::Central };
        // Frames of one stream arrive in order: each leaves after the one before it.
        let arrives = self.now + DELAY;
        self.flights.push_back(Flight { arrives, to, connection, freight });
    }

    fn arrive(&mut self) {
        while self.flights.front().is_some_and(|flight| flight.arrives <= self.now) {
            let Some(Flight { to, connection, freight, .. }) = self.flights.pop_front() else { return };
            if !self.connections.contains_key(&connection) {
                continue;
            }
            match freight {
                Freight::Frame(bytes) => self.input(to, Input::Frame { connection, bytes }),
                Freight::Close(reason) => {
                    self.connections.remove(&connection);
                    let jitter = u16::try_from(self.random.below(65_536)).expect("16 bits");
                    self.input(to, Input::Closed { connection, reason, jitter });
                }
            }
            self.settle();
        }
    }

    fn drop_connection(&mut self, connection: Connection, reason: &str) {
        if let Some(site) = self.connections.remove(&connection) {
            for origin in [Origin::Central, Origin::Site(site)] {
                let jitter = u16::try_from(self.random.below(65_536)).expect("16 bits");
                self.input(origin, Input::Closed { connection, reason: reason.to_string(), jitter });
            }
        }
    }
}
