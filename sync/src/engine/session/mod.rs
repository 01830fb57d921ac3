//! One connection: greeting, then one log in each direction, each acknowledged after it is committed.
//!
//! Positions in a log mean something only between the two lives of the databases that they were counted in.
//! Where one side lives in another database than before, or both hold something else at the same positions,
//! both *join*: they find out in which documents they differ, say what they hold of them, and begin both
//! logs anew with what the other lacks.
//!
//! This file holds what a session knows, and tells what arrives and what time it is to the file whose story it
//! is: `greeting`, `joining`, `flow` of the logs, `waiting` when asked to, `comparing` when nothing moves.

mod greeting;
mod joining;
mod flow;
mod waiting;
mod comparing;

use std::collections::VecDeque;
use std::time::Duration;

use joining::Joining;
use waiting::PutOff;

use super::{
    Claim, CloseCode, Connection, Moment, Output,
    pressure::{HEARD_MIN, Inbox, Load, Room},
    vouch::Vouch,
};
use crate::{
    id::{Incarnation, Origin, SiteId},
    time::Timestamp,
    wire::{self, Cursor, Fingerprint, Message, Telemetry, message::refuse},
};

/// Bytes of our log that may be under way without an acknowledgement.
pub(super) const WINDOW: usize = 1 << 20;

/// Bytes of log items read and sent at once; with its frame it stays below [`wire::MAX_FRAME`].
const BATCH: usize = 128 << 10;

/// Greetings take longer than this only if the peer is no peer of ours.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Central: which of the logs that were begun with the site this one is.
    log: u64,
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
            log: 0,
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
            self.beat(now, heartbeat, telemetry.cloned(), outputs);
        }
        self.compare_when_due(now, outputs);
    }

    /// A site beats at once. A central that knows the session answers as ever, and one that does not resets it.
    pub(super) fn handle_knocked(
        &mut self,
        now: Moment,
        heartbeat: Duration,
        telemetry: &Telemetry,
        outputs: &mut VecDeque<Output>,
    ) {
        if self.beats() && self.phase == Phase::Up {
            self.beat(now, heartbeat, Some(telemetry.clone()), outputs);
        }
    }

    fn beat(
        &mut self,
        now: Moment,
        heartbeat: Duration,
        telemetry: Option<Telemetry>,
        outputs: &mut VecDeque<Output>,
    ) {
        self.heartbeat_at = now.elapsed + heartbeat;
        self.send(&Message::Heartbeat { clock: now.wall, telemetry }, outputs);
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
            (Phase::Greeting, Origin::Site(_), hello @ Message::Hello { .. }) if self.claimed.is_none() => {
                self.handle_hello(now, hello, room, outputs);
            }
            (Phase::Greeting, Origin::Central, ok @ Message::HelloOk { .. }) => {
                self.handle_hello_ok(ok, outputs);
            }
            (Phase::Joining, _, Message::Differences { bytes, last }) => {
                self.handle_differences(bytes, last, outputs);
            }
            // What the site asked before it heard that it shall greet again, or that the logs go on.
            (Phase::Greeting, Origin::Site(_), Message::Differences { .. }) if self.put_off.is_some() => {}
            (Phase::Up, Origin::Site(_), Message::Differences { .. }) => {}
            (Phase::Greeting, Origin::Site(_), Message::Differences { bytes, last })
                if self.claimed.is_some() =>
            {
                self.keep_question(bytes, last, outputs);
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
                self.keep_early(from, items, room, outputs);
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
