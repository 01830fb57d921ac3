//! The flow of the logs: what the peer has not acknowledged is read and sent, what arrives goes to the writer in
//! portions, and only after the commit is it acknowledged.

use std::collections::VecDeque;

use super::{BATCH, Phase, Session, WINDOW, waiting::TOO_MUCH};
use crate::{
    engine::{
        CloseCode, Moment, Output,
        pack::{self, UnpackError},
        pressure::{Batch, Room, bytes_of},
    },
    id::Origin,
    wire::{Cursor, Message, Seal},
};

impl Session {
    pub(in crate::engine) fn handle_changed(
        &mut self,
        now: Moment,
        end: u64,
        outputs: &mut VecDeque<Output>,
    ) {
        self.end = self.end.max(end);
        self.grown = true;
        self.touch(now);
        self.pump(outputs);
    }

    /// Asks for the next items when there are some and the peer can take them.
    pub(super) fn pump(&mut self, outputs: &mut VecDeque<Output>) {
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

    pub(in crate::engine) fn handle_read(
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
            let short = self.peer != Origin::Central && !self.plain;
            let items = pack::pack(items, short).into_iter().map(Into::into).collect();
            self.send(&Message::Log { from, items, seal }, outputs);
        } else if from == self.sent + 1 && !self.grown {
            // The log began anew and is shorter than what we heard of it before.
            self.end = self.sent;
        }
        self.pump(outputs);
    }

    pub(super) fn handle_log(
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
                self.plain |= matches!(error, UnpackError::Snapshot { .. } | UnpackError::Brief(_));
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
    pub(in crate::engine) fn hand_over(&mut self, outputs: &mut VecDeque<Output>) {
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

    /// Only now, after the commit, is the acknowledgement said; by a site once it can vouch for it. `end` is
    /// where our own log ended in that commit.
    pub(in crate::engine) fn handle_ingested(
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

    pub(in crate::engine) fn handle_ingest_failed(&mut self, reason: &str, outputs: &mut VecDeque<Output>) {
        self.at_writer = false;
        self.close(CloseCode::Replica, reason, outputs);
    }

    /// Short forms did not come apart: the next session is asked to do without.
    pub(in crate::engine) fn handle_unreadable(&mut self, reason: &str, outputs: &mut VecDeque<Output>) {
        self.at_writer = false;
        self.plain = true;
        self.close(CloseCode::Protocol, reason, outputs);
    }

    pub(super) fn handle_ack(&mut self, now: Moment, position: u64, outputs: &mut VecDeque<Output>) {
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
}
