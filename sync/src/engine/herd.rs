//! One central engine and many sites' over wires in memory: floods, herds, and who waits for whom.
//!
//! Replicas are counters: a site's log has so many items of one size, and central's writer takes one portion
//! after the other, each for as long as a test says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::{
    id::Incarnation,
    wire::{Cursor, Fingerprint, Rolling},
};

const HEARTBEAT: Duration = Duration::from_secs(30);
const ITEM: usize = 1_000;

/// A site, as far as replication is concerned.
struct Site {
    engine: Engine,
    connection: Option<Connection>,
    /// Items in its log, and what central has acknowledged.
    end: u64,
    acknowledged: u64,
    /// When central had its last item.
    done_at: Option<Duration>,
    notices: Vec<String>,
    dials: Vec<Duration>,
}

struct Fleet {
    central: Engine,
    sites: BTreeMap<SiteId, Site>,
    /// What central has of each log.
    taken: BTreeMap<SiteId, u64>,
    lines: BTreeMap<Connection, SiteId>,
    /// Frames under way, to central or to a site.
    wire: VecDeque<(Connection, bool, Vec<u8>)>,
    /// What waits for central's writer, in order, and what one portion costs it.
    writer: VecDeque<Output>,
    portion: Duration,
    /// What central's replica refuses to take for the time being: items beyond this, of this site.
    quota: Option<(SiteId, u64)>,
    now: Duration,
    next: u64,
    /// Sites whose engine may have something to do.
    touched: BTreeSet<SiteId>,
    jitter: u64,
    is_down: bool,
    /// Most portions at the writer, and most bytes in inboxes, at any time.
    most_at_writer: usize,
    most_waiting: usize,
    busy_said: u64,
}

fn site(number: u16) -> SiteId {
    let mut id = [0; 16];
    id[..2].copy_from_slice(&number.to_be_bytes());
    SiteId(id)
}

fn cursor(position: u64) -> Cursor {
    Cursor { position, rolling: Rolling::default() }
}

impl Fleet {
    fn new(sites: u16, items: u64, portion: Duration) -> Self {
        let one = |number| Site {
            engine: Engine::site(site(number), HEARTBEAT),
            connection: None,
            end: items,
            acknowledged: 0,
            done_at: None,
            notices: vec![],
            dials: vec![],
        };
        Fleet {
            central: Engine::central(HEARTBEAT),
            sites: (0..sites).map(|number| (site(number), one(number))).collect(),
            taken: BTreeMap::new(),
            lines: BTreeMap::new(),
            wire: VecDeque::new(),
            writer: VecDeque::new(),
            portion,
            quota: None,
            now: Duration::ZERO,
            next: 0,
            touched: BTreeSet::new(),
            jitter: 9,
            is_down: false,
            most_at_writer: 0,
            most_waiting: 0,
            busy_said: 0,
        }
    }

    fn moment(&self) -> Moment {
        let ms = u64::try_from(self.now.as_millis()).unwrap();
        Moment { elapsed: self.now, wall: Timestamp(1_795_000_000_000 + ms) }
    }

    fn jitter(&mut self) -> u16 {
        self.jitter =
            self.jitter.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u16::try_from(self.jitter >> 48).unwrap()
    }

    fn standing(&self, end: u64, pulled: u64, pushed: u64) -> Box<Standing> {
        Box::new(Standing {
            incarnation: Incarnation([9; 16]),
            policy_epoch: 0,
            pulled: cursor(pulled),
            pushed: Some(cursor(pushed)),
            end,
            fingerprint: Fingerprint::default(),
            agrees: None,
            central: Some(Incarnation([9; 16])),
            log: Some(0),
            seal: None,
            greeting: Greeting::Continue,
        })
    }

    /// Does what a site wants, at once.
    fn perform_at_site(&mut self, id: SiteId, output: Output) {
        let now = self.moment();
        let jitter = self.jitter();
        let answer = match output {
            Output::Dial => {
                let is_down = self.is_down;
                let site = self.sites.get_mut(&id).unwrap();
                site.dials.push(now.elapsed);
                if is_down {
                    return site.engine.handle(now, Input::DialFailed { jitter });
                }
                self.next += 1;
                let connection = Connection(self.next);
                self.lines.insert(connection, id);
                site.connection = Some(connection);
                site.engine.handle(now, Input::Dialed { connection });
                return self.central.handle(now, Input::Accepted { connection, site: id });
            }
            Output::Send { connection, bytes } => return self.wire.push_back((connection, true, bytes)),
            Output::Close { connection, reason, .. } => return self.close(connection, &reason),
            Output::Open { connection, .. } => {
                let site = &self.sites[&id];
                let standing = self.standing(site.end, 0, site.acknowledged);
                Some(Input::Opened { connection, standing })
            }
            Output::Locate { connection, position, .. } => {
                Some(Input::Located { connection, cursor: Some(cursor(position)) })
            }
            Output::Read { connection, from, max_bytes, .. } => {
                let count = (self.sites[&id].end + 1 - from).min((max_bytes / ITEM) as u64);
                let items = (0..count).map(|_| vec![7; ITEM]).collect();
                Some(Input::Read { connection, from, items, seal: None })
            }
            Output::TakeFingerprint { connection, pulled, pushed } => {
                Some(Input::Fingerprinted { connection, pulled, pushed, fingerprint: Fingerprint::default() })
            }
            Output::Acknowledged { position, .. } => {
                let site = self.sites.get_mut(&id).unwrap();
                site.acknowledged = site.acknowledged.max(position);
                if site.acknowledged == site.end {
                    site.done_at = site.done_at.or(Some(now.elapsed));
                }
                None
            }
            Output::Busy { until, reason, .. } => {
                let wait = until.since(now.wall);
                self.sites.get_mut(&id).unwrap().notices.push(format!("busy for {wait:?}: {reason}"));
                None
            }
            Output::Down { reason, .. } => {
                self.sites.get_mut(&id).unwrap().notices.push(format!("down: {reason}"));
                None
            }
            _ => None,
        };
        if let Some(answer) = answer {
            self.sites.get_mut(&id).unwrap().engine.handle(now, answer);
        }
    }

    fn perform_at_central(&mut self, output: Output) {
        match output {
            Output::Send { connection, bytes } => self.wire.push_back((connection, false, bytes)),
            Output::Close { connection, reason, .. } => self.close(connection, &reason),
            Output::Busy { .. } => self.busy_said += 1,
            output @ (Output::Open { .. } | Output::Ingest { .. } | Output::Compare { .. }) => {
                self.writer.push_back(output);
            }
            _ => {}
        }
    }

    /// The writer does one thing.
    fn write(&mut self) {
        let Some(output) = self.writer.pop_front() else { return };
        self.now += self.portion;
        let now = self.moment();
        let input = match output {
            Output::Open { connection, peer, .. } => {
                let pulled = self.taken.get(&peer.site().unwrap()).copied().unwrap_or(0);
                Input::Opened { connection, standing: self.standing(0, pulled, 0) }
            }
            Output::Ingest { connection, peer, from, items, .. } => {
                let id = peer.site().unwrap();
                let taken = self.taken.entry(id).or_default();
                assert_eq!(from, *taken + 1, "central's writer sees no gap");
                *taken += items.len() as u64;
                match self.quota {
                    Some((held, upto)) if held == id && *taken > upto => {
                        *taken = upto;
                        let wait = Duration::from_secs(5);
                        Input::HeldBack { connection, cursor: cursor(upto), wait, reason: "quota".into() }
                    }
                    _ => Input::Ingested { connection, cursor: cursor(*taken), end: 0 },
                }
            }
            Output::Compare { connection, pulled, .. } => {
                Input::Compared { connection, pulled, agrees: Some(true) }
            }
            other => panic!("{other:?}"),
        };
        self.central.handle(now, input);
    }

    fn close(&mut self, connection: Connection, reason: &str) {
        let now = self.moment();
        // What was sent before still arrives.
        self.deliver();
        let Some(id) = self.lines.remove(&connection) else { return };
        let jitter = self.jitter();
        let closed = Input::Closed { connection, reason: reason.to_string(), jitter };
        self.sites.get_mut(&id).unwrap().engine.handle(now, closed.clone());
        self.touched.insert(id);
        self.central.handle(now, closed);
    }

    /// Central is gone and another one is there: every connection breaks in the same instant.
    fn restart_central(&mut self) {
        let lost: Vec<Connection> = self.lines.keys().copied().collect();
        self.writer.clear();
        self.wire.clear();
        self.central = Engine::central(HEARTBEAT);
        for connection in lost {
            self.close(connection, "reset by the peer");
        }
    }

    fn deliver(&mut self) {
        while let Some((connection, to_central, bytes)) = self.wire.pop_front() {
            let Some(id) = self.lines.get(&connection) else { continue };
            self.touched.insert(*id);
            let now = self.moment();
            let engine =
                if to_central { &mut self.central } else { &mut self.sites.get_mut(id).unwrap().engine };
            engine.handle(now, Input::Frame { connection, bytes });
        }
    }

    /// Does everything that is to be done now but for the writer.
    fn settle(&mut self) {
        loop {
            let mut is_quiet = true;
            while let Some(output) = self.central.poll() {
                is_quiet = false;
                self.perform_at_central(output);
            }
            while let Some(id) = self.touched.pop_first() {
                while let Some(output) = self.sites.get_mut(&id).unwrap().engine.poll() {
                    is_quiet = false;
                    self.perform_at_site(id, output);
                }
            }
            if self.wire.is_empty() && is_quiet {
                return;
            }
            self.deliver();
        }
    }

    fn measure(&mut self) {
        let portions = self.writer.iter().filter(|output| matches!(output, Output::Ingest { .. }));
        self.most_at_writer = self.most_at_writer.max(portions.count());
        let waiting = self.central.sessions.values().map(|session| session.load().bytes).sum();
        self.most_waiting = self.most_waiting.max(waiting);
    }

    fn run(&mut self, until: Duration) {
        loop {
            self.settle();
            self.measure();
            if !self.writer.is_empty() && self.now < until {
                self.write();
            } else {
                let sites = self.sites.values().filter_map(|site| site.engine.poll_timeout());
                match sites.chain(self.central.poll_timeout()).min().filter(|at| *at <= until) {
                    Some(at) => self.now = self.now.max(at),
                    None => {
                        self.now = self.now.max(until);
                        return;
                    }
                }
            }
            let now = self.moment();
            for (id, site) in &mut self.sites {
                if site.engine.poll_timeout().is_some_and(|at| at <= now.elapsed) {
                    site.engine.handle(now, Input::Timeout);
                    self.touched.insert(*id);
                }
            }
            if self.central.poll_timeout().is_some_and(|at| at <= now.elapsed) {
                self.central.handle(now, Input::Timeout);
            }
        }
    }

    fn send_as_central_hears(&mut self, id: SiteId, message: &Message) {
        let connection = self.sites[&id].connection.unwrap();
        let now = self.moment();
        self.central.handle(now, Input::Frame { connection, bytes: wire::encode(message) });
        self.settle();
    }

    fn is_up(&self, id: SiteId) -> bool {
        self.sites[&id].engine.is_up(Origin::Central)
    }
}

#[test]
fn h6_what_many_sites_send_at_once_is_bounded_and_nothing_of_it_is_lost() {
    // 60 sites with 1.5 MB each want in, and the writer needs 10 ms for 128 KiB.
    let mut fleet = Fleet::new(60, 1_500, Duration::from_millis(10));
    fleet.run(Duration::from_secs(120));
    assert!(fleet.most_at_writer <= 16, "{} portions at the writer", fleet.most_at_writer);
    assert!(fleet.most_waiting <= 33 << 20, "{} bytes wait", fleet.most_waiting);
    assert!(fleet.most_waiting > 16 << 20, "the flood was none: {}", fleet.most_waiting);
    assert!(fleet.busy_said > 0, "nobody was asked to wait");
    for (id, site) in &fleet.sites {
        assert_eq!((site.acknowledged, fleet.taken[id]), (1_500, 1_500), "{:?}", site.notices);
        assert!(site.notices.iter().all(|notice| notice.starts_with("busy")), "{:?}", site.notices);
    }
}

#[test]
fn h6_an_honest_site_does_not_wait_for_one_that_floods() {
    let mut fleet = Fleet::new(2, 0, Duration::from_millis(50));
    let (noisy, honest) = (site(0), site(1));
    fleet.run(Duration::from_secs(1));
    let change = |fleet: &mut Fleet, id: SiteId, more: u64| {
        let site = fleet.sites.get_mut(&id).unwrap();
        site.end += more;
        site.done_at = None;
        let (now, end) = (fleet.moment(), fleet.sites[&id].end);
        let site = fleet.sites.get_mut(&id).unwrap();
        site.engine.handle(now, Input::Changed { peer: Origin::Central, end });
        fleet.touched.insert(id);
    };
    change(&mut fleet, noisy, 100_000);
    fleet.run(fleet.now + Duration::from_secs(2));
    let begun = fleet.now;
    change(&mut fleet, honest, 1);
    fleet.run(begun + Duration::from_secs(2));
    let took = fleet.sites[&honest].done_at.expect("it was taken") - begun;
    assert!(took <= Duration::from_millis(150), "one portion of the noisy site, then its own: {took:?}");
    assert!(fleet.sites[&noisy].done_at.is_none(), "the flood was over too soon to show anything");
}

#[test]
fn p15_a_thousand_sites_greet_at_once_and_all_of_them_get_in() {
    let mut fleet = Fleet::new(1_000, 3, Duration::from_millis(3));
    fleet.run(Duration::from_secs(30));
    assert!(fleet.busy_said > 0, "all greetings were taken at once");
    for (id, site) in &fleet.sites {
        assert!(fleet.is_up(*id), "{:?}", site.notices);
        assert_eq!(site.acknowledged, 3);
        assert_eq!(site.dials.len(), 1, "who is asked to wait keeps its connection");
    }
}

#[test]
fn p15_a_thousand_sites_that_lose_central_together_do_not_return_in_the_same_second() {
    let mut fleet = Fleet::new(1_000, 0, Duration::ZERO);
    fleet.run(Duration::from_secs(40));
    for site in fleet.sites.values_mut() {
        site.dials.clear();
    }
    let begun = fleet.now;
    fleet.restart_central();
    fleet.run(begun + Duration::from_secs(30));
    let mut by_second: BTreeMap<u64, usize> = BTreeMap::new();
    for site in fleet.sites.values() {
        assert_eq!(site.dials.len(), 1, "{:?}", site.notices);
        *by_second.entry((site.dials[0] - begun).as_secs()).or_default() += 1;
    }
    assert!(fleet.sites.keys().all(|id| fleet.is_up(*id)));
    let most = by_second.values().max().unwrap();
    assert!(*most <= 150, "{by_second:?}");
    assert!(by_second.keys().max().unwrap() <= &11, "{by_second:?}");

    // A few sites have nothing to spread.
    let mut few = Fleet::new(3, 0, Duration::ZERO);
    few.run(Duration::from_secs(40));
    let begun = few.now;
    few.restart_central();
    few.run(begun + Duration::from_secs(1));
    assert!(few.sites.keys().all(|id| few.is_up(*id)));
}

#[test]
fn p15_a_thousand_sites_that_cannot_reach_central_dial_at_different_times() {
    let mut fleet = Fleet::new(1_000, 0, Duration::ZERO);
    fleet.is_down = true;
    fleet.run(Duration::from_secs(300));
    let since = Duration::from_secs(240);
    let mut by_second: BTreeMap<u64, usize> = BTreeMap::new();
    for dial in fleet.sites.values().flat_map(|site| &site.dials).filter(|dial| **dial >= since) {
        *by_second.entry(dial.as_secs()).or_default() += 1;
    }
    // 1,000 sites every 12.5 to 25 s are 53 in a second.
    assert!(by_second.values().all(|dials| (20..=110).contains(dials)), "{by_second:?}");
}

#[test]
fn h6_a_site_beyond_its_quota_waits_and_loses_nothing() {
    let mut fleet = Fleet::new(2, 1_000, Duration::from_millis(1));
    let (eager, other) = (site(0), site(1));
    fleet.quota = Some((eager, 300));
    fleet.run(Duration::from_secs(3));
    assert_eq!((fleet.taken[&eager], fleet.sites[&eager].acknowledged), (300, 300));
    assert_eq!(fleet.sites[&other].acknowledged, 1_000);
    assert!(fleet.sites[&eager].notices.contains(&"busy for 5s: quota".to_string()));
    assert!(fleet.is_up(eager), "the session goes on: {:?}", fleet.sites[&eager].notices);
    fleet.quota = None;
    fleet.run(Duration::from_secs(30));
    assert_eq!((fleet.taken[&eager], fleet.sites[&eager].acknowledged), (1_000, 1_000));
    assert!(fleet.is_up(eager), "{:?}", fleet.sites[&eager].notices);
}

#[test]
fn h6_a_site_that_does_not_wait_is_sent_away() {
    let mut fleet = Fleet::new(1, 1_000, Duration::from_millis(1));
    let id = site(0);
    fleet.quota = Some((id, 100));
    fleet.run(Duration::from_secs(1));
    let taken = fleet.taken[&id];
    for _ in 0..20 {
        let items = vec![vec![7; ITEM].into(); 3];
        fleet.send_as_central_hears(id, &Message::Log { from: taken + 1, items, seal: None });
    }
    let notices = fleet.sites[&id].notices.join("\n");
    assert!(notices.contains("was asked to wait and comes all the same"), "{notices}");
    assert_eq!(fleet.taken[&id], taken, "nothing of it came to the writer");
}

#[test]
fn h6_beats_and_questions_without_end_do_not_reach_the_writer() {
    let mut fleet = Fleet::new(1, 0, Duration::ZERO);
    let id = site(0);
    fleet.run(Duration::from_secs(5));
    let connection = fleet.sites[&id].connection.unwrap();
    let now = fleet.moment();
    let (mut asked, mut sent) = (0, 0);
    for number in 0..1_000 {
        let question = Message::Compare { pulled: 0, pushed: number, fingerprint: Fingerprint::default() };
        let beat = Message::Heartbeat { clock: now.wall, telemetry: None };
        for message in [question, beat] {
            fleet.central.handle(now, Input::Frame { connection, bytes: wire::encode(&message) });
        }
        while let Some(output) = fleet.central.poll() {
            match output {
                Output::Compare { .. } | Output::Heard { .. } => asked += 1,
                Output::Send { .. } => sent += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(asked <= 2 && sent <= 1, "{asked} questions, {sent} answers");
    // The newest question is asked when the one before is answered.
    fleet.central.handle(now, Input::Compared { connection, pulled: 0, agrees: None });
    let next = fleet.central.poll();
    assert!(matches!(next, Some(Output::Compare { pushed: 999, .. })), "{next:?}");
}
