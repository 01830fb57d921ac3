//! How much is taken in at once, and when a site is asked to come back.
//!
//! Everything that a session receives waits in its [`Inbox`] until the [`Gate`] lets one portion of it go to
//! the writer; portions of different sessions take turns, so a site that sends much waits for itself. What
//! central has no room for it does not keep: it says `Busy` with a time ([`Gate::ticket`]), and the site,
//! which has everything on disk, sends it again then. Quotas are the replica's to judge
//! (`policy::quota`); it answers a portion with [`super::Input::HeldBack`], and the same `Busy` follows.
//!
//! Deliberately absent: waiting greetings. A site that cannot be greeted now keeps its connection, because a
//! handshake costs more than the greeting, and greets again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::Connection;
use crate::wire::Seal;

/// Portions that lie at the writer at a time. The writer commits what waits together, up to 64 jobs; with
/// more of them than this the honest site behind the busy ones only waits longer.
const AT_WRITER: usize = 16;

/// Items that go to the writer at once. At 2,000 changes a second the next site's turn comes within an
/// eighth of a second.
const PORTION: usize = 256;

/// Bytes of items that go to the writer at once.
const PORTION_BYTES: usize = 128 << 10;

/// Bytes that wait for the writer in all inboxes of central together. A thousand sites may send a megabyte
/// each without an acknowledgement; what they send again costs the WAN less than memory costs central.
const WAITING: usize = 32 << 20;

/// Greetings that the replica is asked about at a time. Each is a few milliseconds of the writer, and a site
/// gives up after ten seconds.
const GREETINGS: usize = 256;

/// Joins at a time. Each holds an element per document and a few messages of megabytes in memory.
const JOINS: usize = 16;

/// Shortest wait that is asked for, …
const WAIT_MIN: Duration = Duration::from_millis(500);

/// … and the longest: below half a minute, as with every other wait.
const WAIT_MAX: Duration = Duration::from_secs(25);

/// Between two sites that come back: a handshake with certificates both ways, a greeting and the first
/// commit are a few milliseconds each on one core.
const SPACING: Duration = Duration::from_millis(10);

/// Over how long sites that lost central together spread their return at most.
const SPREAD_MAX: Duration = Duration::from_secs(20);

/// How often a peer may come before its time until its session ends. Once could be a clock that runs fast.
pub(super) const DEFIANCE_MAX: u32 = 8;

/// How much before its time is in time.
pub(super) const TOLERANCE: Duration = Duration::from_millis(100);

/// Signs of life that are passed on: not more than one in this time, whatever the peer does. Settings know no
/// heartbeat below a second.
pub(super) const HEARD_MIN: Duration = Duration::from_millis(250);

/// What may come in now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Bytes of log items.
    pub(super) bytes: usize,
    /// Whether one more greeting.
    pub(super) greeting: bool,
    /// Whether one more join.
    pub(super) join: bool,
}

impl Room {
    /// At a site there is one peer, and its window bounds it.
    pub(super) const ANY: Room = Room { bytes: usize::MAX, greeting: true, join: true };
}

/// Counts what is taken in, over all sessions.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Sessions with a portion at the writer.
    at_writer: BTreeSet<Connection>,
    /// Sessions whose turn comes, in order; each once.
    line: VecDeque<Connection>,
    /// Bytes in inboxes, by session.
    waiting: BTreeMap<Connection, usize>,
    waiting_bytes: usize,
    greeting: BTreeSet<Connection>,
    joining: BTreeSet<Connection>,
    /// Elapsed time of the next ticket.
    next: Duration,
}

/// How a session stands, for the counts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Bytes that wait.
    pub(super) bytes: usize,
    /// Whether there is something for the writer.
    pub(super) is_ready: bool,
    /// Whether it has a portion there.
    pub(super) at_writer: bool,
    /// Whether the replica is asked where it stands towards the site.
    pub(super) greeting: bool,
    /// Whether both find out what each lacks.
    pub(super) joining: bool,
}

impl Gate {
    /// What may come in now at central.
    pub(super) fn room(&self) -> Room {
        Room {
            bytes: WAITING.saturating_sub(self.waiting_bytes),
            greeting: self.greeting.len() < GREETINGS,
            join: self.joining.len() < JOINS,
        }
    }

    /// Takes note of how a session stands; all zeros for one that has ended.
    pub(super) fn note(&mut self, connection: Connection, load: Load) {
        let before = match load.bytes {
            0 => self.waiting.remove(&connection),
            bytes => self.waiting.insert(connection, bytes),
        };
        self.waiting_bytes = self.waiting_bytes + load.bytes - before.unwrap_or(0);
        put(&mut self.at_writer, connection, load.at_writer);
        put(&mut self.greeting, connection, load.greeting);
        put(&mut self.joining, connection, load.joining);
        if load.is_ready && !load.at_writer && !self.line.contains(&connection) {
            self.line.push_back(connection);
        }
    }

    /// The session whose portion goes to the writer next, if there is room there.
    pub(super) fn next(&mut self) -> Option<Connection> {
        if self.at_writer.len() < AT_WRITER { self.line.pop_front() } else { None }
    }

    /// How long the next one who is asked to come back shall wait. Everybody gets a time of his own, one
    /// after the other, which spreads a herd better than chance; those beyond the longest wait begin anew
    /// between the others.
    pub(super) fn ticket(&mut self, now: Duration) -> Duration {
        if self.next < now + WAIT_MIN || self.next > now + WAIT_MAX {
            self.next = now + WAIT_MIN;
        }
        let wait = self.next - now;
        self.next += SPACING;
        wait
    }
}

fn put(set: &mut BTreeSet<Connection>, connection: Connection, is_in: bool) {
    if is_in {
        set.insert(connection);
    } else {
        set.remove(&connection);
    }
}

/// Over how long the sites of a fleet with so many sessions shall spread their return when they lose
/// central together. A few sites come back at once.
pub(super) fn spread(sessions: usize) -> Duration {
    SPACING.saturating_mul(u32::try_from(sessions).unwrap_or(u32::MAX)).min(SPREAD_MAX)
}

/// Items of a log, and what central put beside the last of them.
#[derive(Debug)]
pub(super) struct Batch {
    /// Position of the first.
    pub(super) from: u64,
    /// The items, in order.
    pub(super) items: Vec<Vec<u8>>,
    /// At a site.
    pub(super) seal: Option<Seal>,
}

/// What a session has received and not handed to the writer, without a gap.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    batches: VecDeque<Batch>,
    bytes: usize,
}

impl Inbox {
    pub(super) fn push(&mut self, batch: Batch) {
        self.bytes += bytes_of(&batch.items);
        self.batches.push_back(batch);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Inbox::default();
    }

    /// The next batch as it arrived: at a site a seal belongs to its end.
    pub(super) fn take_whole(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= bytes_of(&batch.items);
        Some(batch)
    }

    /// The next items, however they arrived: many small batches become one portion, a large one several.
    pub(super) fn take_portion(&mut self) -> Option<Batch> {
        let from = self.batches.front()?.from;
        let (mut items, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = self.batches.front_mut() {
            let fits = batch.items.iter().take(PORTION - items.len()).take_while(|item| {
                bytes += item.len();
                bytes <= PORTION_BYTES
            });
            // An item is never larger than a portion; if it were, it would still have to go.
            let count = fits.count().max(usize::from(items.is_empty()));
            if count == batch.items.len() {
                items.append(&mut batch.items);
                self.batches.pop_front();
            } else {
                let rest = batch.items.split_off(count);
                items.append(&mut batch.items);
                batch.from += count as u64;
                batch.items = rest;
                break;
            }
        }
        self.bytes -= bytes_of(&items);
        Some(Batch { from, items, seal: None })
    }
}

/// Bytes of items; also what an item without bytes costs.
pub(super) fn bytes_of(items: &[Vec<u8>]) -> usize {
    items.iter().map(|item| item.len().max(1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portion_is_neither_a_frame_nor_a_batch() {
        let mut inbox = Inbox::default();
        let item = |size: usize| vec![7_u8; size];
        inbox.push(Batch { from: 5, items: vec![item(10); 3], seal: None });
        inbox.push(Batch { from: 8, items: vec![item(10); 300], seal: None });
        inbox.push(Batch { from: 308, items: vec![item(60 << 10); 3], seal: None });
        let taken: Vec<(u64, usize)> =
            std::iter::from_fn(|| inbox.take_portion()).map(|it| (it.from, it.items.len())).collect();
        assert_eq!(taken, [(5, 256), (261, 49), (310, 1)]);
        assert_eq!((inbox.bytes(), inbox.is_empty()), (0, true));
    }

    #[test]
    fn everybody_gets_a_time_of_his_own() {
        let mut gate = Gate::default();
        let now = Duration::from_secs(100);
        let waits: Vec<Duration> = (0..1_000).map(|_| gate.ticket(now)).collect();
        assert_eq!((waits[0], waits[999]), (WAIT_MIN, WAIT_MIN + SPACING * 999));
        // Beyond the longest wait the next ones are put between the first.
        assert!((0..10_000).all(|_| (WAIT_MIN..=WAIT_MAX).contains(&gate.ticket(now))));
        // Nobody waits for tickets of the past.
        assert_eq!(gate.ticket(now + Duration::from_secs(60)), WAIT_MIN);
    }

    #[test]
    fn what_waits_is_counted_until_it_is_gone() {
        let mut gate = Gate::default();
        let load = |bytes| Load { bytes, is_ready: bytes > 0, ..Load::default() };
        for number in 0..20 {
            gate.note(Connection(number), load(2 << 20));
        }
        assert_eq!(gate.room().bytes, 0);
        for number in 0..20 {
            gate.note(Connection(number), load(0));
        }
        assert_eq!(gate.room().bytes, WAITING);
    }

    #[test]
    fn so_many_portions_are_at_the_writer_and_the_next_waits_for_its_turn() {
        let mut gate = Gate::default();
        for number in 0..40 {
            gate.note(Connection(number), Load { bytes: 1, is_ready: true, ..Load::default() });
        }
        let mut let_in = Vec::new();
        while let Some(connection) = gate.next() {
            gate.note(connection, Load { bytes: 0, at_writer: true, ..Load::default() });
            let_in.push(connection.0);
        }
        assert_eq!(let_in, (0..AT_WRITER as u64).collect::<Vec<_>>());
        // One is done and has more: it stands behind all others.
        gate.note(Connection(0), Load { bytes: 1, is_ready: true, ..Load::default() });
        assert_eq!(gate.next(), Some(Connection(AT_WRITER as u64)));
        assert_eq!(gate.line.back(), Some(&Connection(0)));
    }
}
