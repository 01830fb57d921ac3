//! What an acknowledgement of a site says besides that something is committed.
//!
//! Central judges what a site writes by what the site knew when it wrote: work that is late is honest, and
//! who has acknowledged that a machine is no longer his writes there no longer. So an acknowledgement also
//! says: all that this site had written by then is with central, and whatever comes after was written knowing
//! it. A site keeps each acknowledgement back until central has its log as far as it reached in the commit.
//! A site that would lie can only leave acknowledgements out, which everybody sees.

use std::collections::VecDeque;

/// Acknowledgements of a site that wait until they are true.
#[derive(Debug, Default)]
pub(super) struct Vouch {
    /// A position of central's log, and where our own ended when it was committed.
    owed: VecDeque<(u64, u64)>,
    /// Whether one was said in this session: the greeting tells what is committed and says no more.
    said: bool,
}

impl Vouch {
    /// Begins with what was committed before the session; nothing waits where nothing of ours is under way.
    pub(super) fn greeting(&mut self, position: u64, end: u64, acknowledged: u64) {
        // Who knows nothing yet has nothing to vouch for.
        *self = Vouch { owed: VecDeque::new(), said: position == 0 };
        if end > acknowledged && position > 0 {
            self.owed.push_back((position, end));
        }
    }

    /// Central's log is committed up to `position`, and our own ends at `end` then.
    pub(super) fn committed(&mut self, position: u64, end: u64) {
        self.owed.push_back((position, end));
    }

    /// The position that may be acknowledged now that central has our log up to `acknowledged`.
    pub(super) fn due(&mut self, acknowledged: u64) -> Option<u64> {
        let mut due = None;
        while let Some((position, _)) = self.owed.pop_front_if(|(_, end)| *end <= acknowledged) {
            due = Some(position);
        }
        self.said |= due.is_some();
        due
    }

    /// Whether everything that is committed was acknowledged, as far as it concerns this session.
    pub(super) fn is_even(&self) -> bool {
        self.owed.is_empty()
    }

    /// Items up to `last` are about to be sent, the first ones of the session that nothing was said before.
    /// Tells whether `position` is to be acknowledged before them; `can_say`: central listens, and nothing of
    /// ours is under way.
    pub(super) fn before_sending(&mut self, position: u64, last: u64, can_say: bool) -> bool {
        if self.said || !self.is_even() {
            return false;
        }
        if can_say {
            self.said = true;
        } else {
            self.owed.push_back((position, last));
        }
        can_say
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p6_h6_an_acknowledgement_waits_until_central_has_what_was_written_before() {
        let mut vouch = Vouch::default();
        // Ten items of a month offline are under way when the session begins.
        vouch.greeting(4, 10, 0);
        assert!(!vouch.before_sending(4, 5, false), "they were written before, whatever the greeting says");
        vouch.committed(7, 11);
        vouch.committed(8, 11);
        assert_eq!((vouch.due(9), vouch.is_even()), (None, false));
        assert_eq!(vouch.due(10), Some(4));
        assert_eq!(vouch.due(12), Some(8));
        assert!(vouch.is_even());
        assert!(!vouch.before_sending(8, 13, true), "it was said in this session");
    }

    #[test]
    fn p6_h6_what_is_written_after_a_quiet_greeting_follows_an_acknowledgement() {
        let mut vouch = Vouch::default();
        vouch.greeting(4, 10, 10);
        assert!(vouch.is_even());
        assert!(vouch.before_sending(4, 11, true));
        assert!(!vouch.before_sending(4, 12, true));
        // Where central does not listen yet, they count as written before.
        vouch.greeting(4, 10, 10);
        assert!(!vouch.before_sending(4, 11, false));
        assert_eq!((vouch.due(10), vouch.due(11)), (None, Some(4)));
    }
}
