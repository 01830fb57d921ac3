//! How much a site may put into the fleet, and when it may go on.
//!
//! A site that is beyond its quota is slowed, never refused: its log has one order, so what is over waits at
//! the site, on its disk, with everything behind it. Numbers are generous for honest work; they bound what a
//! broken or hostile site costs the others.
//!
//! Deliberately absent: where the counters are kept. They are in memory, so a restart of central forgives.

use std::time::Duration;

use super::Reason;
use crate::time::Timestamp;

/// What a site may put into the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Documents that it brought into being, ever.
    pub documents: u64,
    /// Log items per second in the long run: changes and journal entries.
    pub changes_s: u64,
    /// Bytes of log items per day.
    pub bytes_day: u64,
}

impl Quota {
    /// Documents: ten times the largest site that the benches know.
    pub const DOCUMENTS: u64 = 100_000;

    /// Items per second: a tenth of what central takes in on one core, so that one site alone never fills it.
    /// A site with 1,000 nodes writes one every few seconds.
    pub const CHANGES_S: u64 = 200;

    /// Bytes a day: a gibibyte, some three million changes.
    pub const BYTES_DAY: u64 = 1 << 30;

    /// Seconds of items that may come at once: a site that was cut off for a week brings its work at full
    /// speed, 20,000 items with the default.
    pub const BURST_S: u64 = 100;
}

impl Default for Quota {
    fn default() -> Self {
        Quota { documents: Self::DOCUMENTS, changes_s: Self::CHANGES_S, bytes_day: Self::BYTES_DAY }
    }
}

const DAY: Duration = Duration::from_secs(86_400);

/// A site that is held waits at least this long, so that it comes back with more than one item …
const WAIT_MIN: Duration = Duration::from_secs(1);

/// … and at most so long, because a person may have raised its quota meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What a site has used lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    changes: Bucket,
    bytes: Bucket,
}

/// Why a site is held, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Name of the setting.
    pub quota: &'static str,
    /// Its value.
    pub limit: u64,
    /// How long the site shall wait before it goes on.
    pub wait: Duration,
}

impl Hold {
    /// In words.
    pub fn reason(&self) -> Reason {
        Reason::new(match self.quota {
            "quota_documents" => format!(
                "this site has brought {} documents into being, as many as its quota allows (`quota_documents`)",
                self.limit
            ),
            "quota_changes_s" => format!(
                "this site sends more than {} changes a second, its quota (`quota_changes_s`)",
                self.limit
            ),
            _ => format!(
                "this site has sent more than {} bytes within a day, its quota (`quota_bytes_day`)",
                self.limit
            ),
        })
    }
}

/// A leaky bucket: the time at which everything that was taken will be forgotten, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket(u128);

impl Bucket {
    /// A clock that went back must not hold anybody for longer than a full bucket does.
    fn settle(&mut self, now: u128, burst: u128) {
        self.0 = self.0.min(now + burst);
    }

    /// Takes what costs so many microseconds, unless the bucket of `burst` microseconds overflows; then how
    /// long it is until it does not.
    fn take(&mut self, now: u128, burst: u128, cost: u128) -> Result<(), u128> {
        let level = self.0.max(now);
        if level + cost <= now + burst {
            self.0 = level + cost;
            return Ok(());
        }
        // A single thing above the whole burst would wait for ever.
        if level == now {
            self.0 = now + burst;
            return Ok(());
        }
        Err(level + cost - (now + burst))
    }
}

impl Usage {
    /// Takes items with these sizes in bytes, as many as the quota allows now: how many, and why not more.
    pub fn take(
        &mut self,
        now: Timestamp,
        quota: &Quota,
        sizes: impl IntoIterator<Item = usize>,
    ) -> (usize, Option<Hold>) {
        let now = u128::from(now.as_ms()) * 1_000;
        let second = Duration::from_secs(1).as_micros();
        let (changes_s, bytes_day) = (u128::from(quota.changes_s.max(1)), u128::from(quota.bytes_day.max(1)));
        let burst = second * u128::from(Quota::BURST_S);
        self.changes.settle(now, burst);
        self.bytes.settle(now, DAY.as_micros());
        let mut count = 0;
        for size in sizes {
            let before = self.changes;
            let hold = |quota, limit, wait_us| {
                let wait = Duration::from_micros(u64::try_from(wait_us).unwrap_or(u64::MAX));
                Hold { quota, limit, wait: wait.clamp(WAIT_MIN, WAIT_MAX) }
            };
            let one = second.div_ceil(changes_s);
            if let Err(wait) = self.changes.take(now, burst, one) {
                return (count, Some(hold("quota_changes_s", quota.changes_s, wait)));
            }
            let cost = DAY.as_micros() * u128::from(size as u64) / bytes_day;
            if let Err(wait) = self.bytes.take(now, DAY.as_micros(), cost) {
                self.changes = before;
                return (count, Some(hold("quota_bytes_day", quota.bytes_day, wait)));
            }
            count += 1;
        }
        (count, None)
    }
}

/// How many of the documents that a site wants to bring into being it may, having made `made`.
pub fn documents(quota: &Quota, made: u64, wanted: u64) -> (u64, Option<Hold>) {
    let allowed = quota.documents.saturating_sub(made);
    let hold = Hold { quota: "quota_documents", limit: quota.documents, wait: WAIT_MAX };
    (wanted.min(allowed), (wanted > allowed).then_some(hold))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_795_161_600_000);

    fn take(usage: &mut Usage, quota: &Quota, at_s: u64, items: usize, size: usize) -> (usize, String) {
        let now = START.after(Duration::from_secs(at_s));
        let (count, hold) = usage.take(now, quota, std::iter::repeat_n(size, items));
        (count, hold.map_or("goes on".into(), |hold| format!("{} for {:?}", hold.quota, hold.wait)))
    }

    #[test]
    fn h6_a_site_brings_its_backlog_at_once_and_then_so_many_a_second() {
        let (mut usage, quota) = (Usage::default(), Quota { changes_s: 10, ..Quota::default() });
        let mut check = |at_s, items, count, words: &str| {
            assert_eq!(take(&mut usage, &quota, at_s, items, 100), (count, words.to_string()));
        };
        check(0, 990, 990, "goes on");
        check(0, 100, 10, "quota_changes_s for 1s");
        check(1, 100, 10, "quota_changes_s for 1s");
        check(31, 1_000, 300, "quota_changes_s for 1s");
        // Nobody saves up more than the burst.
        check(100_000, 5_000, 1_000, "quota_changes_s for 1s");
    }

    #[test]
    fn h6_bytes_are_counted_over_a_day() {
        let (mut usage, quota) = (Usage::default(), Quota { bytes_day: 1 << 20, ..Quota::default() });
        let mut check = |at_s, items, count, words: &str| {
            assert_eq!(take(&mut usage, &quota, at_s, items, 16 << 10), (count, words.to_string()));
        };
        check(0, 100, 64, "quota_bytes_day for 60s");
        check(60, 1, 0, "quota_bytes_day for 60s");
        check(86_400, 100, 64, "quota_bytes_day for 60s");
    }

    #[test]
    fn h6_neither_a_clock_that_goes_back_nor_one_huge_thing_holds_a_site_for_ever() {
        let (mut usage, quota) =
            (Usage::default(), Quota { changes_s: 1, bytes_day: 1_000, ..Quota::default() });
        assert_eq!(take(&mut usage, &quota, 0, 1, 5_000), (1, "goes on".into()));
        assert_eq!(take(&mut usage, &quota, 1, 1, 5_000).0, 0);
        assert_eq!(take(&mut usage, &quota, 90_000, 1, 5_000), (1, "goes on".into()));
        let mut usage = Usage::default();
        let far = START.after(DAY * 3_650);
        assert_eq!(usage.take(far, &quota, [1; 200]).0, 100);
        // Ten years earlier the bucket is full, no more.
        assert_eq!(take(&mut usage, &quota, 0, 1, 1).0, 0);
        assert_eq!(take(&mut usage, &quota, 86_400, 1, 1).0, 1);
    }

    #[test]
    fn h6_documents_are_counted_for_ever() {
        let quota = Quota { documents: 10, ..Quota::default() };
        assert_eq!(documents(&quota, 7, 3), (3, None));
        let (allowed, hold) = documents(&quota, 7, 4);
        assert_eq!((allowed, hold.map(|hold| hold.limit)), (3, Some(10)));
        // A quota that was lowered takes nothing away.
        assert_eq!(documents(&quota, 70, 4).0, 0);
    }
}
