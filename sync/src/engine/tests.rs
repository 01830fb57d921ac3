//! Two engines over a wire in memory, with replicas that are nothing but logs of opaque items.

use std::collections::BTreeSet;

use super::*;
use crate::{
    id::{DocumentId, Incarnation},
    wire::{Cursor, Fingerprint, Holding, Holdings, Rolling},
};

const SITE: SiteId = SiteId([1; 16]);
const HEARTBEAT: Duration = Duration::from_secs(30);

/// A replica that holds opaque items: its own log and what it has of the peer's.
#[derive(Default, Clone)]
struct Logs {
    own: Vec<Vec<u8>>,
    theirs: Vec<Vec<u8>>,
    acknowledged: u64,
    /// Everything that was ever written or taken over.
    held: BTreeSet<Vec<u8>>,
    /// Life of this replica, and of the peer's that the logs are counted in.
    life: u8,
    bond: Option<Incarnation>,
    anew: bool,
}

fn name_of_item(item: &[u8]) -> DocumentId {
    DocumentId(blake3::hash(item).as_bytes()[..16].try_into().unwrap())
}

impl Logs {
    fn life(&self) -> Incarnation {
        Incarnation([self.life; 16])
    }

    fn begin(&mut self) {
        (self.own, self.theirs, self.acknowledged) = (vec![], vec![], 0);
        (self.bond, self.anew) = (None, true);
    }

    fn elements(&self) -> Vec<reconcile::Element> {
        self.held.iter().map(|item| reconcile::element(name_of_item(item), item)).collect()
    }

    fn holding(&self, document: DocumentId) -> Holding {
        let kind = u8::from(self.held.iter().any(|item| name_of_item(item) == document));
        Holding { kind, document, heads: vec![], outside: None }
    }

    /// Puts what the peer lacks into the log, and returns what is held of what the peer named.
    fn join(&mut self, life: Incarnation, theirs: &Holdings) -> Holdings {
        let ours: Vec<Holding> = theirs.documents.iter().map(|it| self.holding(it.document)).collect();
        if theirs.nothing == Some(true) {
            self.own.extend(self.held.iter().cloned());
        }
        let lacking = theirs.documents.iter().filter(|it| it.kind == 0).map(|it| it.document);
        for document in lacking.collect::<Vec<_>>() {
            let item = self.held.iter().find(|item| name_of_item(item) == document);
            self.own.extend(item.cloned());
        }
        (self.bond, self.anew) = (Some(life), false);
        Holdings { documents: ours, ..Holdings::default() }
    }

    fn greeting(&mut self, claim: &Claim) -> Greeting {
        if self.bond.is_none() && !self.anew && claim.central.is_none() {
            self.bond = Some(claim.incarnation);
            return Greeting::Continue;
        }
        if self.anew || self.bond != Some(claim.incarnation) || claim.central != Some(self.life()) {
            self.begin();
            self.bond = Some(claim.incarnation);
            return Greeting::Join;
        }
        if Logs::cursor(&self.own, claim.pulled.position) == Some(claim.pulled) {
            return Greeting::Continue;
        }
        Greeting::Forked("the site is not where central knows it to be".into())
    }

    fn cursor(log: &[Vec<u8>], position: u64) -> Option<Cursor> {
        let upto = log.get(..usize::try_from(position).unwrap())?;
        Some(Cursor {
            position,
            rolling: upto.iter().fold(Rolling::default(), |rolling, item| rolling.over(item)),
        })
    }

    fn fingerprint(&self, pulled: u64, pushed: u64) -> Fingerprint {
        let mut fingerprint = Fingerprint::default();
        for item in &self.held {
            fingerprint.add(blake3::hash(item).as_bytes());
        }
        assert!(usize::try_from(pulled).unwrap() <= self.theirs.len());
        for item in &self.own[usize::try_from(pushed).unwrap()..] {
            fingerprint.remove(blake3::hash(item).as_bytes());
        }
        fingerprint
    }
}

struct Pair {
    site: Engine,
    central: Engine,
    at_site: Logs,
    at_central: Logs,
    now: Duration,
    next: u64,
    /// Connection that is open, and frames under way with their direction.
    open: Option<Connection>,
    wire: VecDeque<(bool, Vec<u8>)>,
    cut: bool,
    /// The site's disk has no room.
    full: bool,
    frames: u64,
    bytes: u64,
    notices: Vec<String>,
    /// What the site said that it knows of central's log, and how much of its own log central had then.
    known: Vec<(u64, u64)>,
    /// Frames until the connection breaks, once.
    breaks_after: Option<u32>,
}

impl Pair {
    fn new() -> Self {
        Pair {
            site: Engine::site(SITE, HEARTBEAT),
            central: Engine::central(HEARTBEAT),
            at_site: Logs { life: 9, ..Logs::default() },
            at_central: Logs { life: 8, ..Logs::default() },
            now: Duration::ZERO,
            next: 0,
            open: None,
            wire: VecDeque::new(),
            cut: false,
            full: false,
            frames: 0,
            bytes: 0,
            notices: vec![],
            known: vec![],
            breaks_after: None,
        }
    }

    fn moment(&self) -> Moment {
        let ms = u64::try_from(self.now.as_millis()).unwrap();
        Moment { elapsed: self.now, wall: Timestamp(1_000_000 + ms) }
    }

    fn perform(&mut self, at_site: bool, output: Output) {
        let now = self.moment();
        let (engine, logs) = if at_site {
            (&mut self.site, &mut self.at_site)
        } else {
            (&mut self.central, &mut self.at_central)
        };
        let side = if at_site { "site" } else { "central" };
        match output {
            Output::Dial if self.cut => engine.handle(now, Input::DialFailed { jitter: 0 }),
            Output::Dial => {
                self.next += 1;
                let connection = Connection(self.next);
                self.open = Some(connection);
                self.site.handle(now, Input::Dialed { connection });
                self.central.handle(now, Input::Accepted { connection, site: SITE });
            }
            Output::Send { connection, bytes } => {
                if self.open == Some(connection) {
                    self.frames += 1;
                    self.bytes += bytes.len() as u64;
                    self.wire.push_back((at_site, bytes));
                }
            }
            Output::Close { connection, reason, .. } => {
                self.notices.push(format!("{side} closes: {reason}"));
                // What was sent before the close still arrives.
                self.deliver();
                self.drop_connection(connection, &reason);
            }
            Output::Open { connection, claim, .. } => {
                let greeting = claim.map_or(Greeting::Continue, |claim| logs.greeting(&claim));
                let (pulled, pushed) = (logs.theirs.len() as u64, logs.acknowledged);
                let standing = Standing {
                    incarnation: logs.life(),
                    policy_epoch: 0,
                    pulled: Logs::cursor(&logs.theirs, pulled).unwrap(),
                    pushed: Logs::cursor(&logs.own, pushed),
                    end: logs.own.len() as u64,
                    fingerprint: logs.fingerprint(pulled, pushed),
                    agrees: claim
                        .filter(|claim| claim.pushed == pulled && greeting == Greeting::Continue)
                        .map(|claim| {
                            logs.fingerprint(pulled, claim.pulled.position).agrees(&claim.fingerprint)
                        }),
                    central: logs.bond.filter(|_| !logs.anew),
                    log: Some(0),
                    seal: None,
                    greeting,
                };
                engine.handle(now, Input::Opened { connection, standing: Box::new(standing) });
            }
            Output::Settle { life, .. } => logs.bond = Some(life),
            Output::Elements { connection, life, .. } => {
                if life.is_some() {
                    logs.begin();
                }
                engine.handle(now, Input::Elements { connection, elements: logs.elements() });
            }
            Output::Hold { connection, documents, .. } => {
                let documents = documents.iter().map(|document| logs.holding(*document)).collect();
                let nothing = logs.held.is_empty().then_some(true);
                let holdings = Holdings { documents, nothing, ..Holdings::default() };
                engine.handle(now, Input::Held { connection, holdings });
            }
            Output::Join { connection, life, holdings, .. } => {
                let holdings = logs.join(life, &holdings);
                engine.handle(now, Input::Joined { connection, end: logs.own.len() as u64, holdings });
            }
            Output::Forked { life_ends, reason, .. } => {
                self.notices.push(format!("{side} forked, life ends: {life_ends}: {reason}"));
                logs.life += u8::from(life_ends);
                logs.begin();
            }
            Output::Locate { connection, position, .. } => {
                let cursor = Logs::cursor(&logs.own, position);
                engine.handle(now, Input::Located { connection, cursor });
            }
            Output::Read { connection, from, max_bytes, .. } => {
                let mut room = max_bytes;
                let items = logs
                    .own
                    .iter()
                    .skip(usize::try_from(from).unwrap() - 1)
                    .take_while(|item| {
                        let fits = room >= item.len();
                        room = room.saturating_sub(item.len());
                        fits
                    })
                    .cloned()
                    .collect();
                engine.handle(now, Input::Read { connection, from, items, seal: None });
            }
            Output::Ingest { connection, .. } if at_site && self.full => {
                engine.handle(now, Input::IngestFailed { connection, reason: "the disk is full".into() });
            }
            Output::Ingest { connection, from, items, .. } => {
                assert_eq!(from, logs.theirs.len() as u64 + 1, "{side} ingests without a gap");
                logs.held.extend(items.iter().cloned());
                logs.theirs.extend(items);
                let cursor = Logs::cursor(&logs.theirs, logs.theirs.len() as u64).unwrap();
                let end = logs.own.len() as u64;
                engine.handle(now, Input::Ingested { connection, cursor, end });
            }
            Output::Acknowledged { position, .. } => {
                // A site that went back in time greets with less.
                logs.acknowledged = position.max(logs.acknowledged);
            }
            Output::Known { position, .. } => self.known.push((position, logs.theirs.len() as u64)),
            Output::TakeFingerprint { connection, pulled, pushed } => {
                let fingerprint = logs.fingerprint(pulled, pushed);
                engine.handle(now, Input::Fingerprinted { connection, pulled, pushed, fingerprint });
            }
            Output::Compare { connection, pulled, pushed, fingerprint, .. } => {
                let agrees = (pushed == logs.theirs.len() as u64)
                    .then(|| logs.fingerprint(logs.theirs.len() as u64, pulled).agrees(&fingerprint));
                engine.handle(now, Input::Compared { connection, pulled, agrees });
            }
            Output::Up { .. } => self.notices.push(format!("{side} up")),
            Output::Down { reason, .. } => self.notices.push(format!("{side} down: {reason}")),
            Output::Heard { .. } => {}
            Output::Agreement { agrees, .. } => self.notices.push(format!("{side} agrees: {agrees}")),
            Output::Refused { reason, .. } => self.notices.push(format!("{side} refused: {reason}")),
            Output::Busy { reason, .. } => self.notices.push(format!("{side} busy: {reason}")),
        }
    }

    fn deliver(&mut self) {
        while let Some((from_site, bytes)) = self.wire.pop_front() {
            let Some(connection) = self.open else { continue };
            let now = self.moment();
            let receiver = if from_site { &mut self.central } else { &mut self.site };
            receiver.handle(now, Input::Frame { connection, bytes });
        }
    }

    fn drop_connection(&mut self, connection: Connection, reason: &str) {
        let now = self.moment();
        self.open = None;
        self.wire.clear();
        let closed = |jitter| Input::Closed { connection, reason: reason.to_string(), jitter };
        self.site.handle(now, closed(0));
        self.central.handle(now, closed(0));
    }

    /// Runs until nothing is to be done before `until`.
    fn run(&mut self, until: Duration) {
        loop {
            while let Some(output) = self.site.poll() {
                self.perform(true, output);
            }
            while let Some(output) = self.central.poll() {
                self.perform(false, output);
            }
            if !self.wire.is_empty() {
                let (from_site, bytes) = self.wire.pop_front().expect("not empty");
                let now = self.moment();
                if let Some(connection) = self.open {
                    match &mut self.breaks_after {
                        Some(0) => {
                            self.breaks_after = None;
                            self.drop_connection(connection, "the connection broke");
                            continue;
                        }
                        Some(frames) => *frames -= 1,
                        None => {}
                    }
                    let receiver = if from_site { &mut self.central } else { &mut self.site };
                    receiver.handle(now, Input::Frame { connection, bytes });
                }
                continue;
            }
            let next = [self.site.poll_timeout(), self.central.poll_timeout()].into_iter().flatten().min();
            match next {
                Some(at) if at <= until => {
                    self.now = self.now.max(at);
                    let now = self.moment();
                    self.site.handle(now, Input::Timeout);
                    self.central.handle(now, Input::Timeout);
                }
                Some(_) | None => {
                    let quiet = self.site.outputs.is_empty() && self.central.outputs.is_empty();
                    if quiet {
                        self.now = until;
                        return;
                    }
                }
            }
        }
    }

    fn write(&mut self, at_site: bool, text: &str) {
        let now = self.moment();
        let (engine, logs, peer) = if at_site {
            (&mut self.site, &mut self.at_site, Origin::Central)
        } else {
            (&mut self.central, &mut self.at_central, Origin::Site(SITE))
        };
        logs.own.push(text.as_bytes().to_vec());
        logs.held.insert(text.as_bytes().to_vec());
        engine.handle(now, Input::Changed { peer, end: logs.own.len() as u64 });
    }

    fn cut(&mut self) {
        self.cut = true;
        if let Some(connection) = self.open {
            self.drop_connection(connection, "the link was cut");
        }
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn both_logs_arrive_once_and_in_order_across_cuts() {
    let mut pair = Pair::new();
    for round in 0..20 {
        pair.write(true, &format!("site {round}"));
        pair.run(seconds(round * 100 + 10));
        pair.cut();
        pair.write(true, &format!("site alone {round}"));
        pair.write(false, &format!("central alone {round}"));
        pair.run(seconds(round * 100 + 50));
        pair.cut = false;
        pair.run(seconds(round * 100 + 99));
    }
    assert_eq!(pair.at_site.own, pair.at_central.theirs);
    assert_eq!(pair.at_central.own, pair.at_site.theirs);
    assert_eq!(pair.at_site.acknowledged, 40);
    assert_eq!(pair.notices.last().map(String::as_str), Some("site agrees: true"));
}

#[test]
fn p6_h6_what_a_site_knew_is_said_after_all_that_it_wrote_before_and_ahead_of_what_it_writes_then() {
    let mut pair = Pair::new();
    pair.write(false, "settings");
    pair.run(seconds(10));
    pair.cut();
    let alone: Vec<String> = (0..3_000).map(|number| format!("{number} {}", "work ".repeat(200))).collect();
    for text in &alone {
        pair.write(true, text);
    }
    pair.write(false, "a machine moves away");
    pair.known.clear();
    pair.cut = false;
    pair.run(seconds(60));
    assert_eq!(pair.at_central.theirs.len(), 3_000);
    assert!(!pair.known.is_empty());
    for (position, had) in std::mem::take(&mut pair.known) {
        assert_eq!(had, 3_000, "{position} was known only when all of the work alone was told");
    }
    // The acknowledgement is lost with the connection; the greeting does not say it.
    pair.write(false, "it moves again");
    pair.breaks_after = Some(1);
    pair.run(seconds(100));
    pair.cut();
    pair.cut = false;
    pair.run(seconds(140));
    pair.known.clear();
    pair.write(true, "seen");
    pair.run(seconds(180));
    assert_eq!(pair.at_central.theirs.len(), 3_001);
    let before = pair.known.iter().any(|(position, had)| (*position, *had) == (3, 3_000));
    assert!(before || pair.known.is_empty(), "{:?}", pair.known);
}

#[test]
fn central_learns_from_the_greeting_what_a_lost_acknowledgement_said() {
    let mut pair = Pair::new();
    pair.write(false, "from central");
    pair.run(seconds(5));
    // The site has it; central never heard so, and forgot its session.
    pair.at_central.acknowledged = 0;
    pair.cut();
    pair.cut = false;
    pair.run(seconds(40));
    assert_eq!(pair.at_central.acknowledged, 1);
}

#[test]
fn p15_a_session_that_breaks_as_soon_as_it_is_up_is_dialled_less_and_less() {
    let mut pair = Pair::new();
    pair.full = true;
    pair.write(false, "what the site cannot take");
    pair.run(seconds(3_600));
    let dialled = pair.next;
    assert!((144..=300).contains(&dialled), "{dialled} dials in an hour, at 12 to 25 s each");
    pair.full = false;
    pair.run(seconds(3_630));
    assert_eq!(pair.at_site.theirs.len(), 1, "with room it is there within half a minute");
    pair.run(seconds(3_700));
    pair.cut();
    pair.cut = false;
    pair.run(seconds(3_701));
    assert_eq!(pair.next, dialled + 2, "a session that has lasted is dialled again at once");
}

#[test]
fn h5_a_reconnect_with_nothing_changed_takes_one_round_trip() {
    let mut pair = Pair::new();
    for number in 0..1_000 {
        pair.write(number % 2 == 0, &format!("item {number}"));
    }
    pair.run(seconds(60));
    pair.cut();
    pair.run(seconds(120));
    (pair.frames, pair.bytes) = (0, 0);
    pair.notices.clear();
    pair.cut = false;
    pair.run(seconds(146));
    // Hello, HelloOk, and one heartbeat each way that carries the clock and the site's telemetry.
    expect_test::expect!["4 frames, 211 bytes, central up, central agrees: true, site up, site agrees: true"]
        .assert_eq(&format!("{} frames, {} bytes, {}", pair.frames, pair.bytes, pair.notices.join(", ")));
}

#[test]
fn h5_a_site_that_went_back_in_time_begins_another_life_and_both_join() {
    let mut pair = Pair::new();
    pair.write(false, "one");
    pair.write(true, "two");
    pair.run(seconds(60));
    pair.cut();
    let before = pair.at_site.clone();
    pair.cut = false;
    pair.write(false, "three");
    pair.write(true, "four");
    pair.run(seconds(120));
    pair.cut();
    pair.at_site = before;
    pair.write(true, "five");
    pair.write(false, "six");
    pair.cut = false;
    pair.notices.clear();
    pair.run(seconds(200));
    expect_test::expect![[r#"
        site down: the link was cut
        central down: the link was cut
        central up
        site forked, life ends: true: central has 2 items of this site's log, which are not the ones that were sent; the site's database went back in time
        site refused: central has 2 items of this site's log, which are not the ones that were sent; the site's database went back in time
        site closes: central has 2 items of this site's log, which are not the ones that were sent; the site's database went back in time
        central refused: central has 2 items of this site's log, which are not the ones that were sent; the site's database went back in time
        central closes: central has 2 items of this site's log, which are not the ones that were sent; the site's database went back in time
        central down: central has 2 items of this site's log, which are not the ones that were sent; the site's database went back in time
        central up
        site up
        central agrees: true
        site agrees: true"#]].assert_eq(&pair.notices.join("\n"));
    assert_eq!(pair.at_site.held, pair.at_central.held);
    assert_eq!(pair.at_site.held.len(), 6);
    assert_eq!(pair.at_site.life, 10);
}

#[test]
fn p15_a_central_that_was_restored_gets_back_what_the_site_has() {
    let mut pair = Pair::new();
    pair.write(true, "one");
    pair.write(false, "two");
    pair.run(seconds(60));
    pair.cut();
    pair.at_central = Logs { life: 7, anew: true, ..Logs::default() };
    pair.write(false, "three");
    pair.cut = false;
    pair.notices.clear();
    pair.run(seconds(120));
    assert_eq!(pair.at_site.held, pair.at_central.held);
    assert_eq!((pair.at_site.held.len(), pair.at_site.life), (3, 9));
    assert!(pair.site.is_up(Origin::Central));
}

#[test]
fn h5_what_differs_at_the_same_positions_is_found_and_both_join() {
    let mut pair = Pair::new();
    pair.write(false, "one");
    pair.write(false, "two");
    pair.run(seconds(60));
    pair.at_site.held.remove(b"one".as_slice());
    pair.notices.clear();
    pair.run(seconds(1_400));
    expect_test::expect![[r#"
        central agrees: false
        site agrees: false
        site forked, life ends: false: central and this site hold something else; both find out what each lacks
        site closes: central and this site hold something else; both find out what each lacks
        site down: central and this site hold something else; both find out what each lacks
        central down: central and this site hold something else; both find out what each lacks
        central up
        site up
        central agrees: true
        site agrees: true
        central agrees: true
        site agrees: true"#]].assert_eq(&pair.notices.join("\n"));
    assert_eq!(pair.at_site.held, pair.at_central.held);
}

#[test]
fn a_join_that_is_broken_off_anywhere_is_taken_up_again() {
    // The connection ends after so many more frames, at every frame of a join.
    for frames in 0..14 {
        let mut pair = Pair::new();
        pair.write(false, "one");
        pair.write(true, "two");
        pair.run(seconds(60));
        pair.cut();
        pair.at_site.life += 1;
        pair.at_site.begin();
        pair.write(true, "three");
        pair.write(false, "four");
        pair.cut = false;
        pair.breaks_after = Some(frames);
        pair.run(seconds(200));
        assert_eq!(pair.at_site.held, pair.at_central.held, "after {frames} frames");
        assert_eq!(pair.at_site.held.len(), 4);
    }
}

#[test]
fn p3_silence_turns_the_link_degraded_then_offline_and_back() {
    let mut pair = Pair::new();
    pair.run(seconds(40));
    assert_eq!(pair.site.link(Origin::Central, pair.now), LinkState::Connected);
    pair.cut();
    pair.run(seconds(120));
    assert_eq!(pair.central.link(Origin::Site(SITE), pair.now), LinkState::Degraded);
    pair.run(seconds(240));
    assert_eq!(pair.central.link(Origin::Site(SITE), pair.now), LinkState::Offline);
    pair.cut = false;
    pair.run(seconds(270));
    assert_eq!(pair.central.link(Origin::Site(SITE), pair.now), LinkState::Connected);
}

#[test]
fn t2_a_site_with_a_session_beats_when_it_is_knocked_at() {
    let mut pair = Pair::new();
    let telemetry = Telemetry { uptime_s: 7, ..Telemetry::default() };
    let knock = |pair: &mut Pair| {
        let now = pair.moment();
        pair.site.handle(now, Input::Telemetry(telemetry.clone()));
        pair.site.handle(now, Input::Knocked);
        pair.central.handle(now, Input::Knocked);
        let outputs = [&mut pair.site, &mut pair.central].map(|it| it.poll());
        (outputs, pair.site.poll_timeout())
    };
    let dials_at_once = Some(Duration::ZERO);
    assert_eq!(knock(&mut pair), ([None, None], dials_at_once), "there is no session yet");

    pair.run(seconds(10));
    let ([beat, none], next) = knock(&mut pair);
    let connection = pair.open.expect("a session");
    let bytes =
        wire::encode(&Message::Heartbeat { clock: pair.moment().wall, telemetry: Some(telemetry.clone()) });
    assert_eq!((beat, none), (Some(Output::Send { connection, bytes }), None), "central beats for nobody");
    assert_eq!(next, Some(pair.now + HEARTBEAT), "the rhythm goes on from there");

    pair.cut();
    pair.site.poll();
    pair.central.poll();
    let (outputs, dials_at) = knock(&mut pair);
    assert_eq!(outputs, [None, None]);
    assert!(dials_at > Some(pair.now), "nobody dials earlier because of a knock: {dials_at:?}");
}

#[test]
fn p15_an_acknowledgement_that_overtakes_the_own_replica_is_no_sign_of_a_fork() {
    let (connection, life) = (Connection(1), Incarnation([8; 16]));
    let now = Moment { elapsed: Duration::ZERO, wall: Timestamp(1) };
    let logs = Logs { life: 9, own: vec![b"one".to_vec()], bond: Some(life), ..Logs::default() };
    let mut site = Engine::site(SITE, HEARTBEAT);
    site.handle(now, Input::Timeout);
    site.handle(now, Input::Dialed { connection });
    let standing = Standing {
        incarnation: logs.life(),
        policy_epoch: 0,
        pulled: Cursor::default(),
        pushed: Logs::cursor(&logs.own, 0),
        end: 1,
        fingerprint: logs.fingerprint(0, 0),
        agrees: None,
        central: logs.bond,
        log: Some(0),
        seal: None,
        greeting: Greeting::Continue,
    };
    site.handle(now, Input::Opened { connection, standing: Box::new(standing) });
    // What the site has to say goes out behind its greeting; central takes it and answers both.
    site.handle(now, Input::Read { connection, from: 1, items: logs.own.clone(), seal: None });
    let clock = Timestamp(1);
    let (pulled, agrees) = (Cursor::default(), None);
    let ok = Message::HelloOk {
        version: 1,
        pulled,
        agrees,
        clock,
        incarnation: life,
        join: false,
        spread_ms: 0,
        log: 0,
    };
    for message in [ok, Message::Ack { position: 1 }] {
        site.handle(now, Input::Frame { connection, bytes: wire::encode(&message) });
    }
    // Only now has the replica looked where its log stands at the position of central's answer.
    site.handle(now, Input::Located { connection, cursor: Logs::cursor(&logs.own, 0) });
    let outputs: Vec<Output> = std::iter::from_fn(|| site.poll()).collect();
    assert!(!outputs.iter().any(|it| matches!(it, Output::Forked { .. })), "{outputs:#?}");
    assert!(outputs.contains(&Output::Acknowledged { peer: Origin::Central, position: 1 }), "{outputs:#?}");
    assert!(site.is_up(Origin::Central));
}

#[test]
fn p15_a_peer_that_breaks_the_protocol_is_closed_in_words() {
    let check = |bytes: Vec<u8>, expected: &str| {
        let mut central = Engine::central(HEARTBEAT);
        let now = Moment { elapsed: Duration::ZERO, wall: Timestamp(0) };
        let connection = Connection(1);
        central.handle(now, Input::Accepted { connection, site: SITE });
        central.handle(now, Input::Frame { connection, bytes });
        let said: Vec<String> = std::iter::from_fn(|| central.poll())
            .filter_map(|output| match output {
                Output::Close { code, reason, .. } => Some(format!("{code:?}: {reason}")),
                _ => None,
            })
            .collect();
        assert_eq!(said, [expected]);
    };
    check(vec![], "Protocol: frame is empty");
    check(
        wire::encode(&Message::Ack { position: 1 }),
        "Protocol: an acknowledgement is not expected while greeting",
    );
    let hello = |site, versions| {
        wire::encode(&Message::Hello {
            versions,
            site,
            incarnation: Incarnation([1; 16]),
            policy_epoch: 0,
            pulled: Cursor::default(),
            pushed: Cursor::default(),
            fingerprint: Fingerprint::default(),
            clock: Timestamp(0),
            central: None,
            seal: None,
            plain: None,
            log: Some(0),
        })
    };
    check(
        hello(SiteId([2; 16]), wire::version::OURS),
        "Identity: the certificate is for site 01010101010101010101010101010101, the greeting for 02020202020202020202020202020202",
    );
    check(
        hello(SITE, wire::Versions { oldest: 7, newest: 9 }),
        "Version: the site speaks versions 7 to 9 of the protocol, central version 1",
    );
}

#[test]
fn a_million_bytes_flow_in_bounded_frames() {
    let mut pair = Pair::new();
    let text = "x".repeat(5_000);
    for number in 0..600 {
        pair.write(true, &format!("{number} {text}"));
    }
    pair.run(seconds(30));
    assert_eq!(pair.at_central.theirs.len(), 600);
    assert_eq!(pair.at_site.acknowledged, 600);
}

/// What is in frames.
fn messages(wire: &VecDeque<(bool, Vec<u8>)>) -> Vec<Message> {
    wire.iter().map(|(_, bytes)| wire::decode(bytes).expect("a frame")).collect()
}

#[test]
fn h6_a_site_that_cannot_read_a_snapshot_asks_for_changes_and_goes_on() {
    let mut pair = Pair::new();
    pair.write(false, "c1");
    pair.write(false, "c2");
    pair.run(seconds(5));
    assert_eq!(pair.at_site.theirs.len(), 2);

    // Central sends something that only looks like a document.
    let connection = pair.open.expect("a session");
    let snapshot = wire::Snapshot { kind: 3, bytes: b"damaged".to_vec(), ..wire::Snapshot::default() };
    let item = wire::Item { snapshot: Some(snapshot), ..wire::Item::default() };
    let bytes = wire::encode(&Message::Log { from: 3, items: vec![item.to_bytes().into()], seal: None });
    let now = pair.moment();
    pair.site.handle(now, Input::Frame { connection, bytes });
    pair.run(seconds(6));
    let closed = pair.notices.iter().find(|notice| notice.contains("cannot be taken apart"));
    assert!(closed.is_some_and(|notice| notice.starts_with("site closes")), "{:?}", pair.notices);

    // The next greeting asks for changes only, and nothing else is different.
    pair.write(false, "c3");
    pair.run(seconds(60));
    assert_eq!(pair.at_site.theirs.len(), 3);
    assert_eq!(pair.next, 2, "it dialled once more: {:?}", pair.notices);
    let connection = Connection(99);
    let mut outputs = VecDeque::new();
    let now = pair.moment();
    pair.site.sessions.clear();
    pair.site.dial = Dial::Dialing { failures: 0 };
    pair.site.handle(now, Input::Dialed { connection });
    while let Some(output) = pair.site.poll() {
        if let Output::Open { claim: None, .. } = &output {
            let standing = Standing {
                incarnation: pair.at_site.life(),
                policy_epoch: 0,
                pulled: Cursor::default(),
                pushed: Some(Cursor::default()),
                end: 0,
                fingerprint: Fingerprint::default(),
                agrees: None,
                central: None,
                log: Some(0),
                seal: None,
                greeting: Greeting::Continue,
            };
            pair.site.handle(now, Input::Opened { connection, standing: Box::new(standing) });
        } else if let Output::Send { bytes, .. } = output {
            outputs.push_back((true, bytes));
        }
    }
    let asks = messages(&outputs);
    assert!(matches!(asks[..], [Message::Hello { plain: Some(true), .. }]), "{asks:?}");
}
