//! Waiting: central asks a site to come back when it has no room, and the site does so in its time.
//!
//! Nothing is lost by it: a site keeps what was not acknowledged, and goes on behind what central has taken.

use std::collections::VecDeque;
use std::time::Duration;

use super::{GREETING_TIMEOUT, Phase, Session, joining::Joining};
use crate::{
    engine::{
        CloseCode, Moment, Output,
        pressure::{DEFIANCE_MAX, TOLERANCE},
    },
    wire::{Cursor, Message},
};

/// A site waits no longer than this, whatever it is asked.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Characters of a reason that a site keeps.
const REASON: usize = 256;

/// What a site is told that has sent more than is taken at once.
pub(super) const TOO_MUCH: &str = "more arrives than central can write";

/// Until when a site was asked to wait, and how often it came all the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct PutOff {
    pub(super) until: Duration,
    pub(super) defied: u32,
}

impl Session {
    /// Why the site is to be asked to come back, if it is; whoever asks calls [`Session::put_off`].
    pub(in crate::engine) fn wants_to_wait(&self) -> Option<&'static str> {
        self.wants_to_wait
    }

    /// Central asks the site to come back after `wait`. What it has sent beyond what was taken is forgotten.
    pub(in crate::engine) fn put_off(
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
            self.joining = Joining::default();
        }
        self.put_off = Some(PutOff { until: now.elapsed + wait, defied: 0 });
        self.say_busy(now, wait, reason, outputs);
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
    pub(super) fn comes_early(&mut self, now: Moment, outputs: &mut VecDeque<Output>) -> bool {
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
    pub(in crate::engine) fn handle_held_back(
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
    pub(super) fn handle_busy(
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
    pub(super) fn resume(&mut self, now: Moment, outputs: &mut VecDeque<Output>) {
        self.resumes_at = None;
        if self.phase == Phase::Waiting {
            self.phase = Phase::Opening;
            self.deadline = now.elapsed + GREETING_TIMEOUT;
            outputs.push_back(Output::Open { connection: self.connection, peer: self.peer, claim: None });
        } else {
            self.pump(outputs);
        }
    }
}
