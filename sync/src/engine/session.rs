//! One connection: greeting, then one log in each direction, each acknowledged after it is committed.
//!
//! Positions in a log mean something only between the two lives of the databases that they were counted in.
//! Where one side lives in another database than before, or both hold something else at the same positions,
//! both *join*: they find out in which documents they differ, say what they hold of them, and begin both
//! logs anew with what the other lacks.

use std::collections::VecDeque;
use std::time::Duration;

use super::{
    Claim, CloseCode, Connection, Greeting, Moment, Output, Standing,
    pack::{self, UnpackError},
    pressure::{Batch, DEFIANCE_MAX, HEARD_MIN, Inbox, Load, Room, TOLERANCE, bytes_of},
    reconcile::{Comparison, Element, MAX_MESSAGE},
    vouch::Vouch,
};
use crate::{
    id::{DocumentId, Incarnation, Origin, SiteId},
    time::Timestamp,
    wire::{self, Cursor, Fingerprint, Holdings, Message, Seal, Telemetry, message::refuse, version},
};

/// Bytes of our log that may be under way without an acknowledgement.
pub(super) const WINDOW: usize = 1 << 20;

/// Bytes of log items read and sent at once; with its frame it stays below [`wire::MAX_FRAME`].
const BATCH: usize = 128 << 10;

/// Bytes of a reconciliation in one frame.
const PART: usize = 128 << 10;

/// Documents, journal heads and entries in one frame that says what is held.
const PART_ITEMS: usize = 1_000;

/// How many of them are taken in all.
const MAX_HOLDINGS: usize = 4 << 20;

/// How long nothing must move before both sides compare what they hold.
const QUIET: Duration = Duration::from_millis(500);

/// How often they compare anyway.
const COMPARE_INTERVAL: Duration = Duration::from_secs(600);

/// Greetings take longer than this only if the peer is no peer of ours.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// A site waits no longer than this, whatever it is asked.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Characters of a reason that a site keeps.
const REASON: usize = 256;

/// What a site is told that has to wait.
const TOO_MANY_GREETINGS: &str = "many sites connect at once";
const TOO_MANY_JOINS: &str = "many sites find out at once what they lack";
const TOO_MUCH: &str = "more arrives than central can write";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A site asks its replica where it stands.
    Opening,
    /// A site has greeted and sends already; central waits for the greeting or for its replica.
    Greeting,
    /// A site was asked to greet again later.
    Waiting,
    /// A site checks where central says that it stands in our log.
    Locating { theirs: Cursor },
    /// Both find out what each lacks, and begin their logs anew.
    Joining,
    /// Both have greeted.
    Up,
    /// We asked the transport to end it.
    Closing,
}

/// What is put together while both join.
#[derive(Debug, Default)]
struct Joining {
    comparison: Option<Comparison>,
    /// Parts of the message that is arriving.
    message: Vec<u8>,
    holdings: Holdings,
}

/// Until when a site was asked to wait, and how often it came all the same.
#[derive(Debug, Clone, Copy)]
struct PutOff {
    until: Duration,
    defied: u32,
}

#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    /// The site that this session is about: ourselves at a site, the peer at central.
    site: SiteId,
    peer: Origin,
    phase: Phase,
    /// Since when it is established; stays when it ends.
    up_since: Option<Duration>,

    /// The peer's log: handed to the replica up to here, committed up to there.
    received: u64,
    committed: u64,

    /// Our log: its end, what was read and sent, what the peer has.
    end: u64,
    sent: u64,
    acknowledged: u64,
    /// What the peer had when we greeted. Acknowledgements may overtake our own replica, which still looks for
    /// the position that the answer to the greeting names.
    greeted: u64,
    reading: bool,
    may_send: bool,
    under_way: VecDeque<(u64, usize)>,
    /// A site: what it has not acknowledged although it is committed.
    vouch: Vouch,

    /// What arrived before central knew where it stands.
    early: Vec<(u64, Vec<minicbor::bytes::ByteVec>)>,
    early_bytes: usize,
    /// There was no room for what came after it.
    early_was_dropped: bool,

    /// What was received and waits for the writer, and whether the writer has a portion.
    inbox: Inbox,
    at_writer: bool,
    /// Central: why the site is to be asked to come back, and the answer to that.
    wants_to_wait: Option<&'static str>,
    put_off: Option<PutOff>,
    /// A site: when it goes on, having been asked to wait.
    resumes_at: Option<Duration>,
    /// Central: over how long sites shall spread their return.
    spread: Duration,

    deadline: Duration,
    silence_max: Duration,
    heartbeat_at: Duration,
    compare_at: Option<Duration>,
    /// Central: whether the replica compares, and what it is asked next; a newer question takes its place.
    comparing: bool,
    compare_next: Option<(u64, u64, Fingerprint)>,
    heard_at: Option<Duration>,
    agreed_at_hello: Option<bool>,
    /// A site: life of central that its positions speak of. Central: what the site greeted with.
    known: Option<Incarnation>,
    claimed: Option<Claim>,
    /// Life of the peer's database, and of ours.
    life: Option<Incarnation>,
    own_life: Incarnation,
    joining: Joining,
    /// Both have joined in this session and have not compared since: doing so again at once would not help.
    joined: bool,
    peer_clock: Option<Timestamp>,
    /// Our log has grown since it was last read.
    grown: bool,
    /// The site cannot read a snapshot that central sent, so central sends none.
    plain: bool,
}

impl Session {
    /// A site's session, which begins by asking the replica where it stands.
    pub(super) fn dial(
        connection: Connection,
        us: SiteId,
        now: Moment,
        heartbeat: Duration,
        plain: bool,
        outputs: &mut VecDeque<Output>,
    ) -> Self {
        outputs.push_back(Output::Open { connection, peer: Origin::Central, claim: None });
        let session = Session::new(connection, us, Origin::Central, Phase::Opening, now, heartbeat);
        Session { plain, ..session }
    }

    /// Central's session, which begins by waiting for the site's greeting.
    pub(super) fn accept(connection: Connection, site: SiteId, now: Moment, heartbeat: Duration) -> Self {
        Session::new(connection, site, Origin::Site(site), Phase::Greeting, now, heartbeat)
    }

    fn new(
        connection: Connection,
        site: SiteId,
        peer: Origin,
        phase: Phase,
        now: Moment,
        heartbeat: Duration,
    ) -> Self {
        Session {
            connection,
            site,
            peer,
            phase,
            up_since: None,
            received: 0,
            committed: 0,
            end: 0,
            sent: 0,
            acknowledged: 0,
            greeted: 0,
            reading: false,
            may_send: false,
            under_way: VecDeque::new(),
            vouch: Vouch::default(),
            early: Vec::new(),
            early_bytes: 0,
            early_was_dropped: false,
            inbox: Inbox::default(),
            at_writer: false,
            wants_to_wait: None,
            put_off: None,
            resumes_at: None,
            spread: Duration::ZERO,
            deadline: now.elapsed + GREETING_TIMEOUT,
            silence_max: (heartbeat * 5).max(Duration::from_secs(60)),
            heartbeat_at: now.elapsed + heartbeat,
            compare_at: None,
            comparing: false,
            compare_next: None,
            heard_at: None,
            agreed_at_hello: None,
            known: None,
            claimed: None,
            life: None,
            own_life: Incarnation([0; 16]),
            joining: Joining::default(),
            joined: false,
            peer_clock: None,
            grown: false,
            plain: false,
        }
    }

    pub(super) fn peer(&self) -> Origin {
        self.peer
    }

    /// A site: whether central must send changes only.
    pub(super) fn wants_plain(&self) -> bool {
        self.peer == Origin::Central && self.plain
    }

    pub(super) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    pub(super) fn was_up(&self) -> bool {
        self.up_since.is_some()
    }

    /// Whether it has been established for so long.
    pub(super) fn has_lasted(&self, now: Moment, time: Duration) -> bool {
        self.up_since.is_some_and(|since| now.elapsed.saturating_sub(since) >= time)
    }

    pub(super) fn peer_clock(&self) -> Option<Timestamp> {
        self.peer_clock
    }

    /// A site beats at the rate of its settings and central answers each beat, so that each hears the
    /// other at the rate by which it judges the link.
    fn beats(&self) -> bool {
        self.peer == Origin::Central
    }

    pub(super) fn set_spread(&mut self, spread: Duration) {
        self.spread = spread;
    }

    /// How it stands, for the gate.
    pub(super) fn load(&self) -> Load {
        let is_site = matches!(self.peer, Origin::Site(_));
        Load {
            bytes: self.inbox.bytes() + self.early_bytes,
            is_ready: !self.inbox.is_empty() && self.phase != Phase::Closing,
            at_writer: self.at_writer,
            greeting: is_site && self.phase == Phase::Greeting && self.claimed.is_some(),
            joining: is_site && self.phase == Phase::Joining,
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        match self.phase {
            Phase::Closing => Duration::MAX,
            Phase::Opening | Phase::Greeting | Phase::Waiting | Phase::Locating { .. } | Phase::Joining => {
                self.deadline.min(self.resumes_at.unwrap_or(Duration::MAX))
            }
            Phase::Up => {
                let beat = if self.beats() { self.heartbeat_at } else { self.deadline };
                let next = self.deadline.min(beat).min(self.resumes_at.unwrap_or(Duration::MAX));
                self.compare_at.map_or(next, |at| next.min(at))
            }
        }
    }

    pub(super) fn handle_timeout(
        &mut self,
        now: Moment,
        heartbeat: Duration,
        telemetry: Option<&Telemetry>,
        outputs: &mut VecDeque<Output>,
    ) {
        if self.phase == Phase::Closing {
            return;
        }
        if now.elapsed >= self.deadline {
            self.close(CloseCode::Silent, "the peer was silent for too long", outputs);
            return;
        }
        if self.resumes_at.is_some_and(|at| now.elapsed >= at) {
            self.resume(now, outputs);
        }
        if self.phase != Phase::Up {
            return;
        }
        if self.beats() && now.elapsed >= self.heartbeat_at {
            self.heartbeat_at = now.elapsed + heartbeat;
            self.send(&Message::Heartbeat { clock: now.wall, telemetry: telemetry.cloned() }, outputs);
        }
        if self.compare_at.is_some_and(|at| now.elapsed >= at) {
            self.compare_at = None;
            if self.is_quiet() {
                outputs.push_back(Output::TakeFingerprint {
                    connection: self.connection,
                    pulled: self.committed,
                    pushed: self.acknowledged,
                });
            }
            // Otherwise the acknowledgement that ends the movement asks again.
        }
    }

    pub(super) fn handle_opened(
        &mut self,
        now: Moment,
        standing: &Standing,
        room: Room,
        outputs: &mut VecDeque<Output>,
    ) {
        self.received = standing.pulled.position;
        self.committed = standing.pulled.position;
        self.end = self.end.max(standing.end);
        match self.peer {
            Origin::Central => self.greet(now, standing, outputs),
            Origin::Site(_) => self.answer_greeting(now, standing, room, outputs),
        }
    }

    /// A site greets and sends at once what central has not acknowledged: no round trip is waited for.
    fn greet(&mut self, now: Moment, standing: &Standing, outputs: &mut VecDeque<Output>) {
        let pushed = standing.pushed.unwrap_or_default();
        self.phase = Phase::Greeting;
        self.sent = pushed.position;
        self.acknowledged = pushed.position;
        self.vouch.greeting(standing.pulled.position, standing.end, pushed.position);
        self.under_way.clear();
        self.known = standing.central;
        // Without a common log central may want to begin another one.
        self.may_send = standing.central.is_some();
        let hello = Message::Hello {
            versions: version::OURS,
            site: self.site,
            incarnation: standing.incarnation,
            policy_epoch: standing.policy_epoch,
            pulled: standing.pulled,
            pushed,
            fingerprint: standing.fingerprint,
            clock: now.wall,
            central: standing.central,
            seal: standing.seal,
            plain: self.plain.then_some(true),
        };
        self.send(&hello, outputs);
        self.pump(outputs);
    }

    fn answer_greeting(
        &mut self,
        now: Moment,
        standing: &Standing,
        room: Room,
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(claim) = self.claimed else { return };
        self.own_life = standing.incarnation;
        match &standing.greeting {
            Greeting::Forked(reason) => self.refuse(refuse::FORK, CloseCode::Fork, reason, outputs),
            // The engine ends every session for this reason.
            Greeting::Restored(reason) => self.refuse(refuse::REPLICA, CloseCode::Fork, reason, outputs),
            Greeting::Join if !room.join => self.wants_to_wait = Some(TOO_MANY_JOINS),
            Greeting::Join => {
                self.phase = Phase::Joining;
                self.forget_early();
                outputs.push_back(Output::Elements {
                    connection: self.connection,
                    peer: self.peer,
                    life: None,
                });
            }
            Greeting::Continue => {
                let position = claim.pulled.position;
                self.sent = position;
                self.acknowledged = position;
                self.may_send = true;
                // The greeting says it too; the acknowledgement itself may have been lost with the connection.
                outputs.push_back(Output::Acknowledged { peer: self.peer, position });
                self.accept_greeting(now, standing.pulled, standing.agrees, false, outputs);
                self.rise(now, outputs);
                if let Some(agrees) = standing.agrees {
                    outputs.push_back(Output::Agreement { peer: self.peer, agrees, pulled: position });
                }
                // It was counted when it arrived.
                let room = Room { bytes: room.bytes + self.early_bytes, ..room };
                self.early_bytes = 0;
                for (from, items) in std::mem::take(&mut self.early) {
                    self.handle_log(now, (from, items), None, room, outputs);
                }
                if std::mem::take(&mut self.early_was_dropped) {
                    self.wants_to_wait = Some(TOO_MUCH);
                }
                self.pump(outputs);
            }
        }
    }

    fn accept_greeting(
        &mut self,
        now: Moment,
        pulled: Cursor,
        agrees: Option<bool>,
        join: bool,
        outputs: &mut VecDeque<Output>,
    ) {
        let ok = Message::HelloOk {
            version: version::OURS.newest,
            pulled,
            agrees,
            clock: now.wall,
            incarnation: self.own_life,
            join,
            spread_ms: u32::try_from(self.spread.as_millis()).unwrap_or(u32::MAX),
        };
        self.send(&ok, outputs);
    }

    pub(super) fn handle_message(
        &mut self,
        now: Moment,
        message: Message,
        room: Room,
        outputs: &mut VecDeque<Output>,
    ) {
        self.deadline = now.elapsed + self.silence_max;
        match (self.phase, self.peer, message) {
            (Phase::Closing, _, _) => {}
            (
                Phase::Greeting,
                Origin::Site(_),
                Message::Hello {
                    versions,
                    site,
                    incarnation,
                    pulled,
                    pushed,
                    fingerprint,
                    clock,
                    central,
                    seal,
                    policy_epoch,
                    plain,
                },
            ) if self.claimed.is_none() => {
                self.peer_clock = Some(clock);
                self.plain = plain == Some(true);
                if site != self.site {
                    let reason =
                        format!("the certificate is for site {}, the greeting for {site}", self.site);
                    self.refuse(refuse::IDENTITY, CloseCode::Identity, &reason, outputs);
                } else if versions.common(version::OURS).is_none() {
                    let reason =
                        format!("the site speaks {versions} of the protocol, central {}", version::OURS);
                    self.refuse(refuse::VERSION, CloseCode::Version, &reason, outputs);
                } else if self.comes_early(now, outputs) {
                    // It was told when.
                } else if !room.greeting {
                    self.wants_to_wait = Some(TOO_MANY_GREETINGS);
                } else {
                    let pushed = pushed.position;
                    let claim =
                        Claim { incarnation, central, pulled, seal, pushed, fingerprint, policy_epoch };
                    self.life = Some(incarnation);
                    self.put_off = None;
                    self.claimed = Some(claim);
                    outputs.push_back(Output::Open {
                        connection: self.connection,
                        peer: self.peer,
                        claim: Some(claim),
                    });
                }
            }
            (
                Phase::Greeting,
                Origin::Central,
                Message::HelloOk { version, pulled, agrees, clock, incarnation, join, .. },
            ) => {
                self.peer_clock = Some(clock);
                if version::OURS.common(version::Versions { oldest: version, newest: version }).is_none() {
                    let reason = format!("central speaks version {version}, this site {}", version::OURS);
                    self.close(CloseCode::Version, &reason, outputs);
                    return;
                }
                self.life = Some(incarnation);
                if join || self.known.is_some_and(|known| known != incarnation) {
                    self.phase = Phase::Joining;
                    self.may_send = false;
                    outputs.push_back(Output::Elements {
                        connection: self.connection,
                        peer: self.peer,
                        life: self.life,
                    });
                    return;
                }
                if self.known.is_none() {
                    outputs.push_back(Output::Settle { peer: self.peer, life: incarnation });
                    self.may_send = true;
                }
                self.agreed_at_hello = agrees;
                self.phase = Phase::Locating { theirs: pulled };
                outputs.push_back(Output::Locate {
                    connection: self.connection,
                    peer: self.peer,
                    position: pulled.position,
                });
            }
            (Phase::Joining, _, Message::Differences { bytes, last }) => {
                self.handle_differences(&bytes, last, outputs);
            }
            (Phase::Joining, _, Message::Holdings { part, last }) => {
                self.handle_holdings(part, last, outputs);
            }
            // What the site sent before it heard that the logs begin anew.
            (Phase::Joining, Origin::Site(_), Message::Log { .. } | Message::Ack { .. }) => {}
            (_, _, Message::Refuse { code, reason }) => {
                if code == refuse::FORK {
                    self.fork(true, &reason, outputs);
                }
                outputs.push_back(Output::Refused { peer: self.peer, code, reason: reason.clone() });
                self.close(CloseCode::Done, &reason, outputs);
            }
            (_, Origin::Central, Message::Busy { retry_after_ms, position, reason }) => {
                self.handle_busy(now, retry_after_ms, position, reason, outputs);
            }
            // Central's items may arrive while the site still checks the greeting.
            (Phase::Up | Phase::Locating { .. }, _, Message::Log { from, items, seal }) => {
                self.handle_log(now, (from, items), seal, room, outputs);
            }
            // What the site sent before it heard that it shall greet again.
            (Phase::Greeting, Origin::Site(_), Message::Log { .. }) if self.put_off.is_some() => {}
            // The site sends at once; central's replica is still being asked where it stands.
            (Phase::Greeting, Origin::Site(_), Message::Log { from, items, .. })
                if self.claimed.is_some() =>
            {
                let bytes = items.iter().map(|item| item.len().max(1)).sum::<usize>();
                if self.early_bytes + bytes > WINDOW + BATCH {
                    self.close(CloseCode::Protocol, "the site sends more than the window allows", outputs);
                } else if bytes <= room.bytes && !self.early_was_dropped {
                    self.early_bytes += bytes;
                    self.early.push((from, items));
                } else {
                    self.early_was_dropped = true;
                }
            }
            (Phase::Up | Phase::Locating { .. }, _, Message::Ack { position }) => {
                self.handle_ack(now, position, outputs);
            }
            (Phase::Up, Origin::Site(_), Message::Compare { pulled, pushed, fingerprint }) => {
                self.compare_next = Some((pulled, pushed, fingerprint));
                self.compare(outputs);
            }
            (Phase::Up, Origin::Central, Message::Compared { pulled, agrees }) => {
                self.handle_compared(now, pulled, agrees, outputs);
            }
            (Phase::Up | Phase::Locating { .. }, _, Message::Heartbeat { clock, telemetry }) => {
                self.peer_clock = Some(clock);
                // Each is a commit and an answer, so a peer that beats like mad is heard at a walking pace.
                if self.heard_at.is_some_and(|at| now.elapsed.saturating_sub(at) < HEARD_MIN) {
                    return;
                }
                self.heard_at = Some(now.elapsed);
                outputs.push_back(Output::Heard { peer: self.peer, clock, telemetry });
                if !self.beats() {
                    self.send(&Message::Heartbeat { clock: now.wall, telemetry: None }, outputs);
                }
            }
            (phase, _, message) => {
                let name = name_of(&message);
                let reason = format!("{name} is not expected while {}", phase_name(phase));
                self.close(CloseCode::Protocol, &reason, outputs);
            }
        }
    }

    /// The site learns where its own log stands at `theirs`, what central says it has.
    pub(super) fn handle_located(
        &mut self,
        now: Moment,
        ours: Option<Cursor>,
        outputs: &mut VecDeque<Output>,
    ) {
        let Phase::Locating { theirs } = self.phase else { return };
        if ours != Some(theirs) || theirs.position < self.greeted {
            let reason = format!(
                "central has {} items of this site's log, which are not the ones that were sent; \
                 the site's database went back in time",
                theirs.position
            );
            self.fork(true, &reason, outputs);
            self.refuse(refuse::FORK, CloseCode::Fork, &reason, outputs);
            return;
        }
        self.rise(now, outputs);
        if let Some(agrees) = self.agreed_at_hello {
            outputs.push_back(Output::Agreement { peer: self.peer, agrees, pulled: self.committed });
            if !agrees && self.differ(outputs) {
                return;
            }
        }
        if theirs.position > self.acknowledged {
            // The last acknowledgement was lost with the connection; this is it.
            self.sent = self.sent.max(theirs.position);
            self.handle_ack(now, theirs.position, outputs);
        }
        self.pump(outputs);
        self.compare_at = Some(match self.agreed_at_hello {
            Some(true) => now.elapsed + COMPARE_INTERVAL,
            Some(false) | None => now.elapsed + QUIET,
        });
    }

    /// A site's database lived another life than central thinks, or holds something else.
    fn fork(&self, life_ends: bool, reason: &str, outputs: &mut VecDeque<Output>) {
        if self.peer == Origin::Central {
            outputs.push_back(Output::Forked { peer: self.peer, reason: reason.to_string(), life_ends });
        }
    }

    /// Both hold something else at the same positions: a site joins anew. Where both have just joined, what
    /// they said since may still have to be answered, for example by a reset: then not before the next
    /// comparison.
    fn differ(&mut self, outputs: &mut VecDeque<Output>) -> bool {
        if std::mem::take(&mut self.joined) {
            return false;
        }
        let reason = "central and this site hold something else; both find out what each lacks";
        self.fork(false, reason, outputs);
        self.close(CloseCode::Fork, reason, outputs);
        true
    }

    pub(super) fn handle_elements(
        &mut self,
        now: Moment,
        elements: &[Element],
        outputs: &mut VecDeque<Output>,
    ) {
        if self.phase != Phase::Joining {
            return;
        }
        self.deadline = now.elapsed + self.silence_max;
        if self.peer == Origin::Central && elements.is_empty() {
            // Whoever holds nothing has nothing to compare, and central nothing to answer but all it has.
            self.end = 0;
            let (connection, peer) = (self.connection, self.peer);
            outputs.push_back(Output::Hold { connection, peer, documents: vec![] });
            return;
        }
        let mut comparison = match Comparison::new(elements) {
            Ok(comparison) => comparison,
            Err(reason) => return self.close(CloseCode::Replica, &reason, outputs),
        };
        match self.peer {
            Origin::Central => {
                // Whatever is in our log for central now is in the new one.
                self.end = 0;
                match comparison.ask() {
                    Ok(question) => self.send_differences(&question, outputs),
                    Err(reason) => return self.close(CloseCode::Replica, &reason, outputs),
                }
            }
            Origin::Site(_) => self.accept_greeting(now, Cursor::default(), None, true, outputs),
        }
        self.joining.comparison = Some(comparison);
    }

    fn handle_differences(&mut self, bytes: &[u8], last: bool, outputs: &mut VecDeque<Output>) {
        if self.joining.message.len() + bytes.len() > MAX_MESSAGE {
            let reason = format!("a message of the reconciliation is longer than {MAX_MESSAGE} bytes");
            return self.close(CloseCode::Protocol, &reason, outputs);
        }
        self.joining.message.extend_from_slice(bytes);
        if !last {
            return;
        }
        let message = std::mem::take(&mut self.joining.message);
        let Some(comparison) = &mut self.joining.comparison else {
            return self.close(CloseCode::Protocol, "differences are told before they were asked", outputs);
        };
        let next = match self.peer {
            Origin::Central => comparison.learn(&message),
            Origin::Site(_) => comparison.answer(&message).map(Some),
        };
        match next {
            Ok(Some(bytes)) => self.send_differences(&bytes, outputs),
            Ok(None) => {
                let comparison = self.joining.comparison.take();
                let documents: Vec<DocumentId> =
                    comparison.map(Comparison::into_differing).unwrap_or_default();
                outputs.push_back(Output::Hold { connection: self.connection, peer: self.peer, documents });
            }
            Err(reason) => self.close(CloseCode::Protocol, &reason, outputs),
        }
    }

    fn send_differences(&mut self, message: &[u8], outputs: &mut VecDeque<Output>) {
        let mut parts = message.chunks(PART).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            self.send(&Message::Differences { bytes: part.to_vec(), last }, outputs);
        }
    }

    /// A site tells what it holds of the documents in which both differ.
    pub(super) fn handle_held(&mut self, holdings: Holdings, outputs: &mut VecDeque<Output>) {
        if self.phase == Phase::Joining {
            self.send_holdings(holdings, outputs);
        }
    }

    fn send_holdings(&mut self, mut rest: Holdings, outputs: &mut VecDeque<Output>) {
        fn cut<T>(from: &mut Vec<T>) -> Vec<T> {
            let rest = from.split_off(from.len().min(PART_ITEMS));
            std::mem::replace(from, rest)
        }
        loop {
            let part = Holdings {
                documents: cut(&mut rest.documents),
                streams: cut(&mut rest.streams),
                entries: cut(&mut rest.entries),
                nothing: rest.nothing.take(),
            };
            let last = rest == Holdings::default();
            self.send(&Message::Holdings { part, last }, outputs);
            if last {
                return;
            }
        }
    }

    fn handle_holdings(&mut self, part: Holdings, last: bool, outputs: &mut VecDeque<Output>) {
        let all = &mut self.joining.holdings;
        all.documents.extend(part.documents);
        all.streams.extend(part.streams);
        all.entries.extend(part.entries);
        all.nothing = all.nothing.or(part.nothing);
        if all.documents.len() + all.streams.len() + all.entries.len() > MAX_HOLDINGS {
            let reason = format!("the peer holds more than {MAX_HOLDINGS} things");
            return self.close(CloseCode::Protocol, &reason, outputs);
        }
        let (true, Some(life)) = (last, self.life) else { return };
        self.joining.comparison = None;
        outputs.push_back(Output::Join {
            connection: self.connection,
            peer: self.peer,
            life,
            holdings: std::mem::take(&mut self.joining.holdings),
        });
    }

    /// Both logs begin with what the other lacks.
    pub(super) fn handle_joined(
        &mut self,
        now: Moment,
        end: u64,
        holdings: Holdings,
        outputs: &mut VecDeque<Output>,
    ) {
        if self.phase != Phase::Joining {
            return;
        }
        (self.received, self.committed, self.sent, self.acknowledged) = (0, 0, 0, 0);
        self.under_way.clear();
        // Nothing is committed of the new log, and nothing of our own is with central.
        self.vouch.greeting(0, end, 0);
        self.inbox.clear();
        self.end = self.end.max(end);
        self.may_send = true;
        self.joined = true;
        if let Origin::Site(_) = self.peer {
            self.send_holdings(holdings, outputs);
        }
        self.rise(now, outputs);
        self.touch(now);
        self.pump(outputs);
    }

    fn rise(&mut self, now: Moment, outputs: &mut VecDeque<Output>) {
        self.phase = Phase::Up;
        self.up_since = Some(now.elapsed);
        self.deadline = now.elapsed + self.silence_max;
        // The first heartbeat goes out at once: it carries what the peer wants to show.
        self.heartbeat_at = now.elapsed;
        outputs.push_back(Output::Up { peer: self.peer, clock: self.peer_clock.unwrap_or_default() });
    }

    pub(super) fn handle_changed(&mut self, now: Moment, end: u64, outputs: &mut VecDeque<Output>) {
        self.end = self.end.max(end);
        self.grown = true;
        self.touch(now);
        self.pump(outputs);
    }

    /// Asks for the next items when there are some and the peer can take them.
    fn pump(&mut self, outputs: &mut VecDeque<Output>) {
        let under_way: usize = self.under_way.iter().map(|(_, bytes)| bytes).sum();
        let may_send = self.may_send && self.resumes_at.is_none();
        if may_send && !self.reading && self.sent < self.end && under_way < WINDOW {
            self.reading = true;
            self.grown = false;
            outputs.push_back(Output::Read {
                connection: self.connection,
                peer: self.peer,
                from: self.sent + 1,
                max_bytes: BATCH,
            });
        }
    }

    pub(super) fn handle_read(
        &mut self,
        from: u64,
        items: Vec<Vec<u8>>,
        seal: Option<Seal>,
        outputs: &mut VecDeque<Output>,
    ) {
        self.reading = false;
        if let Phase::Closing | Phase::Joining | Phase::Waiting = self.phase {
            return;
        }
        if self.resumes_at.is_some() {
            return;
        }
        // A read that was under way when the greeting moved the position is asked again.
        if from == self.sent + 1 && !items.is_empty() {
            let bytes = items.iter().map(Vec::len).sum();
            let last = from + items.len() as u64 - 1;
            self.vouch_before(last, outputs);
            self.sent = last;
            self.under_way.push_back((self.sent, bytes));
            let with_snapshots = self.peer != Origin::Central && !self.plain;
            let items = pack::pack(items, with_snapshots).into_iter().map(Into::into).collect();
            self.send(&Message::Log { from, items, seal }, outputs);
        } else if from == self.sent + 1 && !self.grown {
            // The log began anew and is shorter than what we heard of it before.
            self.end = self.sent;
        }
        self.pump(outputs);
    }

    fn handle_log(
        &mut self,
        now: Moment,
        (from, items): (u64, Vec<minicbor::bytes::ByteVec>),
        seal: Option<Seal>,
        room: Room,
        outputs: &mut VecDeque<Output>,
    ) {
        if from > self.received + 1 && self.put_off.is_some() {
            // It was under way when the site was asked to wait; it will come again.
            return;
        }
        if from == 0 || from > self.received + 1 {
            let reason = format!("log items from {from} do not follow {}", self.received);
            self.close(CloseCode::Protocol, &reason, outputs);
            return;
        }
        let items = match pack::unpack(items, self.peer == Origin::Central) {
            Ok(items) => items,
            Err(error) => {
                // The next session is asked to do without; each change is then judged by itself.
                self.plain |= matches!(error, UnpackError::Snapshot { .. });
                return self.close(CloseCode::Protocol, &error.to_string(), outputs);
            }
        };
        let known = usize::try_from(self.received + 1 - from).unwrap_or(usize::MAX);
        let fresh: Vec<Vec<u8>> = items.into_iter().skip(known).collect();
        let bytes = bytes_of(&fresh);
        if fresh.is_empty() {
            // All of it is here already: the acknowledgement was lost, so it is said again, unless it waits.
            if self.vouch.is_even() {
                self.send(&Message::Ack { position: self.committed }, outputs);
            }
        } else if self.comes_early(now, outputs) {
            // It was told when.
        } else if bytes > room.bytes {
            self.wants_to_wait = Some(TOO_MUCH);
        } else if self.inbox.bytes() + bytes > WINDOW + BATCH {
            self.close(CloseCode::Protocol, "the peer sends more than the window allows", outputs);
        } else {
            self.put_off = None;
            let from = self.received + 1;
            self.received += fresh.len() as u64;
            self.inbox.push(Batch { from, items: fresh, seal });
        }
    }

    /// Gives the writer the next portion; the gate has let it through.
    pub(super) fn hand_over(&mut self, outputs: &mut VecDeque<Output>) {
        if self.phase == Phase::Closing || self.at_writer {
            return;
        }
        let next = match self.peer {
            Origin::Central => self.inbox.take_whole(),
            Origin::Site(_) => self.inbox.take_portion(),
        };
        if let Some(Batch { from, items, seal }) = next {
            self.at_writer = true;
            outputs.push_back(Output::Ingest {
                connection: self.connection,
                peer: self.peer,
                from,
                items,
                seal,
            });
        }
    }

    /// Why the site is to be asked to come back, if it is; whoever asks calls [`Session::put_off`].
    pub(super) fn wants_to_wait(&self) -> Option<&'static str> {
        self.wants_to_wait
    }

    /// Central asks the site to come back after `wait`. What it has sent beyond what was taken is forgotten.
    pub(super) fn put_off(
        &mut self,
        now: Moment,
        wait: Duration,
        reason: &str,
        outputs: &mut VecDeque<Output>,
    ) {
        self.wants_to_wait = None;
        if self.phase == Phase::Closing {
            return;
        }
        if self.phase == Phase::Greeting {
            self.claimed = None;
            self.forget_early();
        }
        self.put_off = Some(PutOff { until: now.elapsed + wait, defied: 0 });
        self.say_busy(now, wait, reason, outputs);
    }

    fn forget_early(&mut self) {
        (self.early, self.early_bytes, self.early_was_dropped) = (Vec::new(), 0, false);
    }

    fn say_busy(&mut self, now: Moment, wait: Duration, reason: &str, outputs: &mut VecDeque<Output>) {
        let busy = Message::Busy {
            retry_after_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            position: self.received,
            reason: reason.to_string(),
        };
        self.send(&busy, outputs);
        let until = now.wall.after(wait);
        outputs.push_back(Output::Busy { peer: self.peer, until, reason: reason.to_string() });
    }

    /// Whether the site was asked to wait and comes before its time. It hears so a few times.
    fn comes_early(&mut self, now: Moment, outputs: &mut VecDeque<Output>) -> bool {
        let Some(put_off) = &mut self.put_off else { return false };
        let left = put_off.until.saturating_sub(now.elapsed);
        if left <= TOLERANCE {
            return false;
        }
        put_off.defied += 1;
        if put_off.defied > DEFIANCE_MAX {
            let reason = "the site was asked to wait and comes all the same";
            self.close(CloseCode::Busy, reason, outputs);
        } else {
            self.say_busy(now, left, "the time to come back has not come", outputs);
        }
        true
    }

    /// The replica has taken a part only: the rest is beyond the site's quota.
    pub(super) fn handle_held_back(
        &mut self,
        now: Moment,
        cursor: Cursor,
        wait: Duration,
        reason: &str,
        outputs: &mut VecDeque<Output>,
    ) {
        // What lies in the inbox follows the part that was not taken.
        self.inbox.clear();
        self.received = cursor.position;
        self.handle_ingested(now, cursor, self.end, outputs);
        self.put_off(now, wait.clamp(TOLERANCE * 2, PAUSE_MAX), reason, outputs);
    }

    /// A site is asked to wait: it keeps what it has, and goes on with what central has not taken.
    fn handle_busy(
        &mut self,
        now: Moment,
        retry_after_ms: u32,
        position: u64,
        reason: String,
        outputs: &mut VecDeque<Output>,
    ) {
        let wait = Duration::from_millis(retry_after_ms.into()).min(PAUSE_MAX);
        match self.phase {
            Phase::Greeting | Phase::Waiting => {
                self.phase = Phase::Waiting;
                self.deadline = now.elapsed + wait + GREETING_TIMEOUT;
            }
            Phase::Up | Phase::Locating { .. } if (self.acknowledged..=self.sent).contains(&position) => {
                self.sent = position;
                while self.under_way.back().is_some_and(|(last, _)| *last > position) {
                    self.under_way.pop_back();
                }
            }
            Phase::Opening | Phase::Joining | Phase::Up | Phase::Locating { .. } | Phase::Closing => {
                let reason = format!("a request to wait after {position} is not expected now");
                self.close(CloseCode::Protocol, &reason, outputs);
                return;
            }
        }
        self.resumes_at = Some(now.elapsed + wait);
        let reason = reason.chars().take(REASON).collect();
        outputs.push_back(Output::Busy { peer: self.peer, until: now.wall.after(wait), reason });
    }

    /// The time has come: a site greets again, or sends on.
    fn resume(&mut self, now: Moment, outputs: &mut VecDeque<Output>) {
        self.resumes_at = None;
        if self.phase == Phase::Waiting {
            self.phase = Phase::Opening;
            self.deadline = now.elapsed + GREETING_TIMEOUT;
            outputs.push_back(Output::Open { connection: self.connection, peer: self.peer, claim: None });
        } else {
            self.pump(outputs);
        }
    }

    /// Central's replica compares once at a time, whatever a site asks.
    fn compare(&mut self, outputs: &mut VecDeque<Output>) {
        if let Some((pulled, pushed, fingerprint)) = self.compare_next.take_if(|_| !self.comparing) {
            self.comparing = true;
            outputs.push_back(Output::Compare {
                connection: self.connection,
                peer: self.peer,
                pulled,
                pushed,
                fingerprint,
            });
        }
    }

    /// Only now, after the commit, is the acknowledgement said; by a site once it can vouch for it. `end` is
    /// where our own log ended in that commit.
    pub(super) fn handle_ingested(
        &mut self,
        now: Moment,
        cursor: Cursor,
        end: u64,
        outputs: &mut VecDeque<Output>,
    ) {
        self.at_writer = false;
        self.committed = self.committed.max(cursor.position);
        self.touch(now);
        match (self.phase, self.peer) {
            (Phase::Closing, _) => {}
            (_, Origin::Site(_)) => self.send(&Message::Ack { position: self.committed }, outputs),
            (_, Origin::Central) => {
                self.vouch.committed(self.committed, end);
                self.say_what_is_due(outputs);
            }
        }
    }

    /// A site acknowledges what it can vouch for.
    fn say_what_is_due(&mut self, outputs: &mut VecDeque<Output>) {
        if let Some(position) = self.vouch.due(self.acknowledged) {
            self.send(&Message::Ack { position }, outputs);
        }
    }

    /// A site says what it knows before the first items that it wrote knowing it.
    fn vouch_before(&mut self, last: u64, outputs: &mut VecDeque<Output>) {
        if self.peer != Origin::Central {
            return;
        }
        let listens = matches!(self.phase, Phase::Up | Phase::Locating { .. });
        if self.vouch.before_sending(self.committed, last, listens && self.sent == self.acknowledged) {
            self.send(&Message::Ack { position: self.committed }, outputs);
        }
    }

    pub(super) fn handle_ingest_failed(&mut self, reason: &str, outputs: &mut VecDeque<Output>) {
        self.at_writer = false;
        self.close(CloseCode::Replica, reason, outputs);
    }

    fn handle_ack(&mut self, now: Moment, position: u64, outputs: &mut VecDeque<Output>) {
        if position > self.sent {
            let reason = format!("item {position} was acknowledged, {} were sent", self.sent);
            self.close(CloseCode::Protocol, &reason, outputs);
            return;
        }
        if let Origin::Site(_) = self.peer {
            outputs.push_back(Output::Known { peer: self.peer, position });
        }
        if position <= self.acknowledged {
            return;
        }
        self.acknowledged = position;
        while self.under_way.front().is_some_and(|(last, _)| *last <= position) {
            self.under_way.pop_front();
        }
        outputs.push_back(Output::Acknowledged { peer: self.peer, position });
        if self.peer == Origin::Central {
            self.say_what_is_due(outputs);
        }
        self.touch(now);
        self.pump(outputs);
    }

    /// A site compares soon after something has moved.
    fn touch(&mut self, now: Moment) {
        if self.peer == Origin::Central && self.phase == Phase::Up {
            self.compare_at = Some(now.elapsed + QUIET);
        }
    }

    fn is_quiet(&self) -> bool {
        self.acknowledged == self.end && self.received == self.committed && !self.reading
    }

    pub(super) fn handle_fingerprinted(
        &mut self,
        pulled: u64,
        pushed: u64,
        fingerprint: Fingerprint,
        outputs: &mut VecDeque<Output>,
    ) {
        if self.phase == Phase::Up && (pulled, pushed) == (self.committed, self.acknowledged) {
            self.send(&Message::Compare { pulled, pushed, fingerprint }, outputs);
        }
    }

    /// Central's replica has judged.
    pub(super) fn handle_judged(
        &mut self,
        pulled: u64,
        agrees: Option<bool>,
        outputs: &mut VecDeque<Output>,
    ) {
        self.comparing = false;
        if self.phase != Phase::Up {
            return;
        }
        self.compare(outputs);
        self.send(&Message::Compared { pulled, agrees }, outputs);
        if let Some(agrees) = agrees {
            outputs.push_back(Output::Agreement { peer: self.peer, agrees, pulled });
        }
    }

    fn handle_compared(
        &mut self,
        now: Moment,
        pulled: u64,
        agrees: Option<bool>,
        outputs: &mut VecDeque<Output>,
    ) {
        let wait = match agrees {
            Some(agrees) => {
                outputs.push_back(Output::Agreement { peer: self.peer, agrees, pulled });
                if !agrees && self.differ(outputs) {
                    return;
                }
                COMPARE_INTERVAL
            }
            // Central's log had grown meanwhile: what follows will ask again, and if not, so do we.
            None => QUIET * 10,
        };
        if self.compare_at.is_none() {
            self.compare_at = Some(now.elapsed + wait);
        }
    }

    fn send(&mut self, message: &Message, outputs: &mut VecDeque<Output>) {
        outputs.push_back(Output::Send { connection: self.connection, bytes: wire::encode(message) });
    }

    fn refuse(&mut self, code: u32, close: CloseCode, reason: &str, outputs: &mut VecDeque<Output>) {
        self.send(&Message::Refuse { code, reason: reason.to_string() }, outputs);
        outputs.push_back(Output::Refused { peer: self.peer, code, reason: reason.to_string() });
        self.close(close, reason, outputs);
    }

    pub(super) fn close(&mut self, code: CloseCode, reason: &str, outputs: &mut VecDeque<Output>) {
        if self.phase != Phase::Closing {
            self.phase = Phase::Closing;
            outputs.push_back(Output::Close {
                connection: self.connection,
                code,
                reason: reason.to_string(),
            });
        }
    }
}

fn name_of(message: &Message) -> &'static str {
    match message {
        Message::Hello { .. } => "a greeting",
        Message::HelloOk { .. } => "an answer to a greeting",
        Message::Refuse { .. } => "a refusal",
        Message::Log { .. } => "a batch of log items",
        Message::Ack { .. } => "an acknowledgement",
        Message::Compare { .. } => "a comparison",
        Message::Compared { .. } => "an answer to a comparison",
        Message::Heartbeat { .. } => "a heartbeat",
        Message::Differences { .. } => "a part of a reconciliation",
        Message::Holdings { .. } => "a part of what is held",
        Message::Busy { .. } => "a request to wait",
    }
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Opening => "opening",
        Phase::Greeting => "greeting",
        Phase::Waiting => "waiting",
        Phase::Locating { .. } => "locating",
        Phase::Joining => "joining",
        Phase::Up => "up",
        Phase::Closing => "closing",
    }
}
