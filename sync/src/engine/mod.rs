//! The replication session as a state machine without I/O.
//!
//! `input` is what may happen to it, `output` what it wants done, `session` one connection with its two
//! logs, `reconcile` how two replicas find out in which documents they differ, `pack` what items of a log look like
//! on the wire, `brief` what a change does, `pressure` how much is taken in at once, `backoff` the wait before the next dial, `blobs` the queue
//! of wanted content. Whoever owns a
//! socket or a simulated wire runs the same loop: hand in an [`Input`], take [`Output`]s until there is
//! none, wait for the next input or [`Engine::poll_timeout`].
//!
//! No clock, no randomness, no store in here: what the replica holds is asked for by an output and
//! answered by an input. The same inputs give the same outputs byte for byte.

pub mod input;
pub mod output;
pub mod blobs;
pub mod reconcile;
pub mod pack;
pub mod brief;
mod backoff;
mod pressure;
mod vouch;
mod session;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub use input::{Connection, Greeting, Input, Moment, Standing};
pub use output::{Claim, CloseCode, Output};

use crate::{
    id::{Origin, SiteId},
    policy::{LinkState, link},
    time::Timestamp,
    wire::{self, Message, Telemetry},
};
use pressure::{Gate, Load, Room};
use session::Session;

/// Replicates one site with central, or central with all its sites.
#[derive(Debug)]
pub struct Engine {
    us: Origin,
    heartbeat: Duration,
    sessions: BTreeMap<Connection, Session>,
    telemetry: Telemetry,
    dial: Dial,
    /// A snapshot could not be read: central is asked for changes only.
    plain: bool,
    /// When each peer was last heard, in elapsed time; survives the session.
    heard: BTreeMap<Origin, Duration>,
    gate: Gate,
    /// Over how long sites shall spread their return, as central last said.
    spread: Duration,
    outputs: VecDeque<Output>,
}

/// Where the next dial stands; only a site dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    Never,
    Waiting { at: Duration, failures: u32 },
    Dialing { failures: u32 },
    Connected { failures: u32 },
}

impl Engine {
    /// The engine of a site. It dials central at once and again whenever the session has ended.
    pub fn site(site: SiteId, heartbeat: Duration) -> Self {
        Engine::new(Origin::Site(site), heartbeat, Dial::Waiting { at: Duration::ZERO, failures: 0 })
    }

    /// The engine of central. It waits for sites.
    pub fn central(heartbeat: Duration) -> Self {
        Engine::new(Origin::Central, heartbeat, Dial::Never)
    }

    fn new(us: Origin, heartbeat: Duration, dial: Dial) -> Self {
        Engine {
            us,
            heartbeat,
            sessions: BTreeMap::new(),
            telemetry: Telemetry::default(),
            dial,
            plain: false,
            heard: BTreeMap::new(),
            gate: Gate::default(),
            spread: Duration::ZERO,
            outputs: VecDeque::new(),
        }
    }

    /// The next thing to do, until there is nothing.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Elapsed time at which [`Input::Timeout`] is wanted at the latest, if at all.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let dial = match self.dial {
            Dial::Waiting { at, .. } => Some(at),
            Dial::Never | Dial::Dialing { .. } | Dial::Connected { .. } => None,
        };
        self.sessions.values().map(Session::timeout).chain(dial).min()
    }

    /// How the link to `peer` is judged at `elapsed`.
    pub fn link(&self, peer: Origin, elapsed: Duration) -> LinkState {
        let silence = self.heard.get(&peer).map(|heard| elapsed.saturating_sub(*heard));
        link::link_state(silence, self.heartbeat)
    }

    /// Whether a session with `peer` is established.
    pub fn is_up(&self, peer: Origin) -> bool {
        self.sessions.values().any(|session| session.peer() == peer && session.is_up())
    }

    /// Follows another heartbeat from now on.
    pub fn set_heartbeat(&mut self, heartbeat: Duration) {
        self.heartbeat = heartbeat;
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Moment, input: Input) {
        match input {
            Input::Timeout => self.handle_timeout(now),
            Input::Dialed { connection } => self.handle_dialed(now, connection),
            Input::DialFailed { jitter } => self.wait_to_dial(now, jitter, Duration::ZERO),
            Input::Accepted { connection, site } => {
                let session = Session::accept(connection, site, now, self.heartbeat);
                self.sessions.insert(connection, session);
            }
            Input::Frame { connection, bytes } => self.handle_frame(now, connection, &bytes),
            Input::Closed { connection, reason, jitter } => {
                self.handle_closed(now, connection, &reason, jitter)
            }
            Input::Changed { peer, end } => {
                for session in self.sessions.values_mut().filter(|session| session.peer() == peer) {
                    session.handle_changed(now, end, &mut self.outputs);
                }
            }
            Input::Knocked => {
                for session in self.sessions.values_mut() {
                    session.handle_knocked(now, self.heartbeat, &self.telemetry, &mut self.outputs);
                }
            }
            Input::Telemetry(telemetry) => self.telemetry = telemetry,
            Input::Opened { connection, standing } => {
                if let Greeting::Restored(reason) = &standing.greeting {
                    self.end_others(connection, reason);
                }
                let room = self.room();
                self.with(now, connection, |session, outputs| {
                    session.handle_opened(now, &standing, room, outputs);
                });
            }
            Input::Located { connection, cursor } => {
                self.with(now, connection, |session, outputs| session.handle_located(now, cursor, outputs));
            }
            Input::Read { connection, from, items, seal } => {
                self.with(now, connection, |session, outputs| {
                    session.handle_read(from, items, seal, outputs)
                });
            }
            Input::Elements { connection, elements } => {
                self.with(now, connection, |session, outputs| {
                    session.handle_elements(now, &elements, outputs)
                });
            }
            Input::Held { connection, holdings } => {
                self.with(now, connection, |session, outputs| session.handle_held(holdings, outputs));
            }
            Input::Joined { connection, end, holdings } => {
                self.with(now, connection, |session, outputs| {
                    session.handle_joined(now, end, holdings, outputs)
                });
            }
            Input::Ingested { connection, cursor, end } => {
                self.with(now, connection, |session, outputs| {
                    session.handle_ingested(now, cursor, end, outputs);
                });
            }
            Input::HeldBack { connection, cursor, wait, reason } => {
                self.with(now, connection, |session, outputs| {
                    session.handle_held_back(now, cursor, wait, &reason, outputs);
                });
            }
            Input::IngestFailed { connection, reason } => {
                self.with(now, connection, |session, outputs| session.handle_ingest_failed(&reason, outputs));
            }
            Input::Unreadable { connection, reason } => {
                self.with(now, connection, |session, outputs| session.handle_unreadable(&reason, outputs));
            }
            Input::LifeBegun { connection, reason } => {
                self.end_others(connection, &reason);
                self.with(now, connection, |session, outputs| {
                    session.close(CloseCode::Fork, &reason, outputs);
                });
            }
            Input::Fingerprinted { connection, pulled, pushed, fingerprint } => {
                self.with(now, connection, |session, outputs| {
                    session.handle_fingerprinted(pulled, pushed, fingerprint, outputs);
                });
            }
            Input::Compared { connection, pulled, agrees } => {
                self.with(now, connection, |session, outputs| session.handle_judged(pulled, agrees, outputs));
            }
        }
    }

    /// Our logs have begun anew: what the other sessions count is of another life.
    fn end_others(&mut self, connection: Connection, reason: &str) {
        for (other, session) in &mut self.sessions {
            if *other != connection {
                session.close(CloseCode::Fork, reason, &mut self.outputs);
            }
        }
    }

    fn with(
        &mut self,
        now: Moment,
        connection: Connection,
        act: impl FnOnce(&mut Session, &mut VecDeque<Output>),
    ) {
        // An answer of the replica may arrive after its session has ended; then nobody waits for it.
        if let Some(session) = self.sessions.get_mut(&connection) {
            act(session, &mut self.outputs);
            if let Some(reason) = session.wants_to_wait() {
                let wait = self.gate.ticket(now.elapsed);
                session.put_off(now, wait, reason, &mut self.outputs);
            }
            self.gate.note(connection, session.load());
            self.hand_over();
        }
    }

    /// Hands portions to the writer, one session after the other, as far as there is room.
    fn hand_over(&mut self) {
        while let Some(connection) = self.gate.next() {
            if let Some(session) = self.sessions.get_mut(&connection) {
                session.hand_over(&mut self.outputs);
                self.gate.note(connection, session.load());
            }
        }
    }

    fn room(&self) -> Room {
        match self.us {
            Origin::Central => self.gate.room(),
            Origin::Site(_) => Room::ANY,
        }
    }

    fn handle_timeout(&mut self, now: Moment) {
        if let Dial::Waiting { at, failures } = self.dial
            && at <= now.elapsed
        {
            self.dial = Dial::Dialing { failures };
            self.outputs.push_back(Output::Dial);
        }
        let telemetry = self.us.site().map(|_| self.telemetry.clone());
        for session in self.sessions.values_mut() {
            session.handle_timeout(now, self.heartbeat, telemetry.as_ref(), &mut self.outputs);
        }
    }

    fn handle_dialed(&mut self, now: Moment, connection: Connection) {
        let Origin::Site(us) = self.us else { return };
        let (Dial::Dialing { failures } | Dial::Waiting { failures, .. } | Dial::Connected { failures }) =
            self.dial
        else {
            return;
        };
        self.dial = Dial::Connected { failures };
        let session = Session::dial(connection, us, now, self.heartbeat, self.plain, &mut self.outputs);
        self.sessions.insert(connection, session);
    }

    fn wait_to_dial(&mut self, now: Moment, jitter: u16, spread: Duration) {
        let (Dial::Dialing { failures } | Dial::Connected { failures } | Dial::Waiting { failures, .. }) =
            self.dial
        else {
            return;
        };
        let at = now.elapsed + backoff::delay(failures, jitter) + backoff::share(spread, jitter);
        self.dial = Dial::Waiting { at, failures: failures.saturating_add(1) };
    }

    fn handle_frame(&mut self, now: Moment, connection: Connection, bytes: &[u8]) {
        let Some(session) = self.sessions.get_mut(&connection) else { return };
        let message = match wire::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                session.close(CloseCode::Protocol, &error.to_string(), &mut self.outputs);
                return;
            }
        };
        let peer = session.peer();
        self.heard.insert(peer, now.elapsed);
        let is_hello = matches!(message, Message::Hello { .. });
        if let (Message::HelloOk { spread_ms, .. }, Origin::Central) = (&message, peer) {
            self.spread = Duration::from_millis((*spread_ms).into()).min(pressure::spread(usize::MAX));
        }
        let (room, sessions) = (self.room(), self.sessions.len());
        self.with(now, connection, |session, outputs| {
            session.set_spread(pressure::spread(sessions));
            session.handle_message(now, message, room, outputs);
        });
        if is_hello {
            self.replace_older(connection, peer);
        }
    }

    /// A site that greets again has lost its older connection, whether or not we noticed.
    fn replace_older(&mut self, newest: Connection, peer: Origin) {
        for (connection, session) in &mut self.sessions {
            if *connection != newest && session.peer() == peer {
                session.close(CloseCode::Replaced, "the site has connected again", &mut self.outputs);
            }
        }
    }

    fn handle_closed(&mut self, now: Moment, connection: Connection, reason: &str, jitter: u16) {
        let Some(session) = self.sessions.remove(&connection) else { return };
        self.gate.note(connection, Load::default());
        self.hand_over();
        let peer = session.peer();
        self.plain |= session.wants_plain();
        if session.was_up() && !self.is_up(peer) {
            self.outputs.push_back(Output::Down { peer, reason: reason.to_string() });
        }
        if let Dial::Connected { failures } = &mut self.dial {
            // A session that breaks as soon as it is up, as with a full disk, is one more failure: else the
            // whole log would be sent again several times in a second, for as long as it lasts.
            if session.has_lasted(now, backoff::MAX) {
                *failures = 0;
            }
            // All sites of a central that restarts are here within the same second.
            let spread = if session.was_up() { self.spread } else { Duration::ZERO };
            self.wait_to_dial(now, jitter, spread);
        }
    }

    /// Wall time that central last confirmed to this site, if it did in this run.
    pub fn central_time(&self) -> Option<Timestamp> {
        self.sessions.values().filter_map(Session::peer_clock).max()
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod herd;
