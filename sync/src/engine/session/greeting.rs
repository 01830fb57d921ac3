//! Greeting: the site says who it is and where both logs stand, central answers whether they go on or begin anew.
//!
//! A site sends on at once behind its greeting; central keeps that until its replica has said where it stands.
//! The site in turn checks where central says that it stands in the site's own log.

use std::collections::VecDeque;

use super::{
    BATCH, Phase, Session, WINDOW,
    comparing::{COMPARE_INTERVAL, QUIET},
    joining::Joining,
    waiting::TOO_MUCH,
};
use crate::{
    engine::{Claim, CloseCode, Greeting, Moment, Output, Standing, pressure::Room},
    id::Origin,
    wire::{Cursor, Message, message::refuse, version},
};

/// What a site is told that has to wait.
const TOO_MANY_GREETINGS: &str = "many sites connect at once";
const TOO_MANY_JOINS: &str = "many sites find out at once what they lack";

impl Session {
    pub(in crate::engine) fn handle_opened(
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
            log: standing.log,
        };
        self.send(&hello, outputs);
        if standing.central.is_none() && standing.fingerprint.changes > 0 {
            self.prepare_question(outputs);
        } else {
            self.joining = Joining::default();
        }
        self.pump(outputs);
    }

    /// A site greets: central asks its replica where it stands.
    pub(super) fn handle_hello(
        &mut self,
        now: Moment,
        hello: Message,
        room: Room,
        outputs: &mut VecDeque<Output>,
    ) {
        let Message::Hello {
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
            log,
        } = hello
        else {
            return;
        };
        self.peer_clock = Some(clock);
        self.plain = plain == Some(true);
        if site != self.site {
            let reason = format!("the certificate is for site {}, the greeting for {site}", self.site);
            self.refuse(refuse::IDENTITY, CloseCode::Identity, &reason, outputs);
        } else if versions.common(version::OURS).is_none() {
            let reason = format!("the site speaks {versions} of the protocol, central {}", version::OURS);
            self.refuse(refuse::VERSION, CloseCode::Version, &reason, outputs);
        } else if self.comes_early(now, outputs) {
            // It was told when.
        } else if !room.greeting {
            self.wants_to_wait = Some(TOO_MANY_GREETINGS);
        } else {
            let pushed = pushed.position;
            let claim = Claim { incarnation, central, log, pulled, seal, pushed, fingerprint, policy_epoch };
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

    fn answer_greeting(
        &mut self,
        now: Moment,
        standing: &Standing,
        room: Room,
        outputs: &mut VecDeque<Output>,
    ) {
        let Some(claim) = self.claimed else { return };
        self.own_life = standing.incarnation;
        self.log = standing.log.unwrap_or_default();
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
                self.joining = Joining::default();
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

    pub(super) fn accept_greeting(
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
            log: self.log,
        };
        self.send(&ok, outputs);
    }

    /// Central has answered the greeting.
    pub(super) fn handle_hello_ok(&mut self, ok: Message, outputs: &mut VecDeque<Output>) {
        let Message::HelloOk { version, pulled, agrees, clock, incarnation, join, log, .. } = ok else {
            return;
        };
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
                life: Some((incarnation, log)),
            });
            return;
        }
        self.joining = Joining::default();
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

    /// The site learns where its own log stands at `theirs`, what central says it has.
    pub(in crate::engine) fn handle_located(
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

    /// What a site sends before central knows where it stands is kept as far as there is room.
    pub(super) fn keep_early(
        &mut self,
        from: u64,
        items: Vec<minicbor::bytes::ByteVec>,
        room: Room,
        outputs: &mut VecDeque<Output>,
    ) {
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

    pub(super) fn forget_early(&mut self) {
        (self.early, self.early_bytes, self.early_was_dropped) = (Vec::new(), 0, false);
    }

    pub(super) fn rise(&mut self, now: Moment, outputs: &mut VecDeque<Output>) {
        self.phase = Phase::Up;
        self.up_since = Some(now.elapsed);
        self.deadline = now.elapsed + self.silence_max;
        // The first heartbeat goes out at once: it carries what the peer wants to show.
        self.heartbeat_at = now.elapsed;
        outputs.push_back(Output::Up { peer: self.peer, clock: self.peer_clock.unwrap_or_default() });
    }
}
