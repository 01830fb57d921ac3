//! The queue of content that a site wants and does not have.
//!
//! Orders before curiosity: what is wanted first is fetched first, a few at a time, only while the link
//! is up. A fetch that fails waits before it is tried again; one whose bytes were wrong waits longer,
//! because the source is at fault and will be again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::backoff;
use crate::blob::Digest;

/// Fetches that run at the same time.
const PARALLEL: usize = 2;

/// Wait after content arrived that was not what its name says.
const WRONG_BYTES: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    Idle { not_before: Duration, failures: u32 },
    Fetching { failures: u32 },
}

/// Decides which blob is fetched when.
#[derive(Debug, Default)]
pub struct Fetcher {
    wants: BTreeMap<Digest, Want>,
    /// Order in which they were wanted.
    order: Vec<Digest>,
    up: bool,
    outputs: VecDeque<Digest>,
}

/// How a fetch ended without its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The link, the source or the disk gave up; what arrived is kept.
    Interrupted,
    /// The bytes are not what the name says; they were dropped.
    WrongBytes,
}

impl Fetcher {
    /// Wants exactly these blobs, in this order, from now on.
    pub fn want(&mut self, digests: &[Digest], now: Duration) {
        self.wants.retain(|digest, _| digests.contains(digest));
        self.order = digests.to_vec();
        for digest in digests {
            self.wants.entry(*digest).or_insert(Want::Idle { not_before: Duration::ZERO, failures: 0 });
        }
        self.pump(now);
    }

    /// Number of blobs that are wanted and not here.
    pub fn wanted(&self) -> usize {
        self.wants.len()
    }

    /// The link came up or went down. What was failing is tried at once when it comes up.
    pub fn link(&mut self, up: bool, now: Duration) {
        self.up = up;
        if up {
            for want in self.wants.values_mut() {
                if let Want::Idle { not_before, .. } = want {
                    *not_before = Duration::ZERO;
                }
            }
        }
        self.pump(now);
    }

    /// The blob is here and verified.
    pub fn fetched(&mut self, digest: Digest, now: Duration) {
        self.wants.remove(&digest);
        self.order.retain(|wanted| *wanted != digest);
        self.pump(now);
    }

    /// A fetch ended without its blob; `jitter` spreads the next try.
    pub fn failed(&mut self, digest: Digest, failure: Failure, jitter: u16, now: Duration) {
        if let Some(want) = self.wants.get_mut(&digest) {
            let (Want::Fetching { failures } | Want::Idle { failures, .. }) = *want;
            let wait = match failure {
                Failure::Interrupted => backoff::delay(failures, jitter),
                Failure::WrongBytes => WRONG_BYTES + backoff::delay(failures, jitter),
            };
            *want = Want::Idle { not_before: now + wait, failures: failures.saturating_add(1) };
        }
        self.pump(now);
    }

    /// The next blob to fetch; answer with [`Fetcher::fetched`] or [`Fetcher::failed`].
    pub fn poll(&mut self, now: Duration) -> Option<Digest> {
        self.pump(now);
        self.outputs.pop_front()
    }

    /// When [`Fetcher::poll`] may have something new.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if !self.up || self.running() >= PARALLEL {
            return None;
        }
        self.wants
            .values()
            .filter_map(|want| match want {
                Want::Idle { not_before, .. } => Some(*not_before),
                Want::Fetching { .. } => None,
            })
            .min()
    }

    fn running(&self) -> usize {
        self.wants.values().filter(|want| matches!(want, Want::Fetching { .. })).count()
    }

    fn pump(&mut self, now: Duration) {
        let mut free = PARALLEL.saturating_sub(self.running());
        for digest in &self.order {
            if !self.up || free == 0 {
                return;
            }
            if let Some(want) = self.wants.get_mut(digest)
                && let Want::Idle { not_before, failures } = *want
                && not_before <= now
            {
                *want = Want::Fetching { failures };
                self.outputs.push_back(*digest);
                free -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest([number; 32])
    }

    fn started(fetcher: &mut Fetcher, now: u64) -> Vec<u8> {
        std::iter::from_fn(|| fetcher.poll(Duration::from_secs(now))).map(|digest| digest.0[0]).collect()
    }

    #[test]
    fn t6_wanted_content_is_fetched_in_order_two_at_a_time_while_the_link_is_up() {
        let mut fetcher = Fetcher::default();
        fetcher.want(&[digest(3), digest(1), digest(2)], Duration::ZERO);
        assert_eq!(started(&mut fetcher, 0), []);
        fetcher.link(true, Duration::ZERO);
        assert_eq!(started(&mut fetcher, 0), [3, 1]);
        fetcher.fetched(digest(1), Duration::ZERO);
        assert_eq!(started(&mut fetcher, 0), [2]);
        assert_eq!(fetcher.wanted(), 2);
    }

    #[test]
    fn t6_a_failed_fetch_waits_and_wrong_bytes_wait_longer() {
        let mut fetcher = Fetcher::default();
        fetcher.link(true, Duration::ZERO);
        fetcher.want(&[digest(1), digest(2)], Duration::ZERO);
        assert_eq!(started(&mut fetcher, 0), [1, 2]);
        fetcher.failed(digest(1), Failure::Interrupted, 0, Duration::ZERO);
        fetcher.failed(digest(2), Failure::WrongBytes, 0, Duration::ZERO);
        assert_eq!(started(&mut fetcher, 0), []);
        assert_eq!(started(&mut fetcher, 1), [1]);
        assert_eq!(started(&mut fetcher, 31), [2]);
    }

    #[test]
    fn t6_what_failed_is_tried_at_once_when_the_link_returns() {
        let mut fetcher = Fetcher::default();
        fetcher.link(true, Duration::ZERO);
        fetcher.want(&[digest(1)], Duration::ZERO);
        assert_eq!(started(&mut fetcher, 0), [1]);
        fetcher.failed(digest(1), Failure::Interrupted, u16::MAX, Duration::ZERO);
        fetcher.link(false, Duration::ZERO);
        assert_eq!(started(&mut fetcher, 60), []);
        fetcher.link(true, Duration::from_millis(1));
        assert_eq!(started(&mut fetcher, 0), [1]);
    }

    #[test]
    fn what_is_not_wanted_any_more_is_forgotten() {
        let mut fetcher = Fetcher::default();
        fetcher.want(&[digest(1), digest(2)], Duration::ZERO);
        fetcher.want(&[digest(2)], Duration::ZERO);
        fetcher.link(true, Duration::ZERO);
        assert_eq!(started(&mut fetcher, 0), [2]);
    }
}
