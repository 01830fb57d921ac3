//! Comparing: once nothing moves, both sides check by a fingerprint that they hold the same.
//!
//! Where they do not, their logs cannot tell in what: the session ends, and the next one joins.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Phase, Session};
use crate::{
    engine::{CloseCode, Moment, Output},
    id::Origin,
    wire::{Fingerprint, Message},
};

/// How long nothing must move before both sides compare what they hold.
pub(super) const QUIET: Duration = Duration::from_millis(500);

/// How often they compare anyway.
pub(super) const COMPARE_INTERVAL: Duration = Duration::from_secs(600);

impl Session {
    /// A site compares soon after something has moved.
    pub(super) fn touch(&mut self, now: Moment) {
        if self.peer == Origin::Central && self.phase == Phase::Up {
            self.compare_at = Some(now.elapsed + QUIET);
        }
    }

    fn is_quiet(&self) -> bool {
        self.acknowledged == self.end && self.received == self.committed && !self.reading
    }

    /// A site asks central whether both hold the same, once nothing has moved for a while.
    pub(super) fn compare_when_due(&mut self, now: Moment, outputs: &mut VecDeque<Output>) {
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

    pub(in crate::engine) fn handle_fingerprinted(
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

    /// Central's replica compares once at a time, whatever a site asks.
    pub(super) fn compare(&mut self, outputs: &mut VecDeque<Output>) {
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

    /// Central's replica has judged.
    pub(in crate::engine) fn handle_judged(
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

    pub(super) fn handle_compared(
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

    /// A site's database lived another life than central thinks, or holds something else.
    pub(super) fn fork(&self, life_ends: bool, reason: &str, outputs: &mut VecDeque<Output>) {
        if self.peer == Origin::Central {
            outputs.push_back(Output::Forked { peer: self.peer, reason: reason.to_string(), life_ends });
        }
    }

    /// Both hold something else at the same positions: a site joins anew. Where both have just joined, what
    /// they said since may still have to be answered, for example by a reset: then not before the next
    /// comparison.
    pub(super) fn differ(&mut self, outputs: &mut VecDeque<Output>) -> bool {
        if std::mem::take(&mut self.joined) {
            return false;
        }
        let reason = "central and this site hold something else; both find out what each lacks";
        self.fork(false, reason, outputs);
        self.close(CloseCode::Fork, reason, outputs);
        true
    }
}
