//! Instants, and the hybrid logical clock that orders decisions without trusting anybody's clock.
//!
//! [`Timestamp`] is wall time as somebody's clock showed it. [`Hlc`] is what registers and changes carry:
//! wall time in the upper 48 bits, a counter in the lower 16, so that what is written after seeing a
//! stamp is stamped later, even where the writer's clock is behind. Nobody here asks what time it is.

use std::{fmt, time::Duration};

use minicbor::{Decode, Encode};

/// Wall time, whole milliseconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds since the epoch.
    pub fn as_ms(self) -> u64 {
        self.0
    }

    /// Returns the instant `duration` later, or the last one there is.
    pub fn after(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Timestamp(self.0.saturating_add(ms))
    }

    /// Returns how long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0 / 86_400_000, self.0 % 86_400_000);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second, ms) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = crate::id::ParseIdError;

    /// Reads exactly what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| crate::id::ParseIdError {
            what: "time",
            expected: "RFC 3339 in UTC with milliseconds, as in 2026-11-20T08:00:00.000Z",
            text: text.chars().take(64).collect(),
        })
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    let shape = b"0000-00-00T00:00:00.000Z";
    let fits = |(byte, shape): (&u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == shape };
    if bytes.len() != shape.len() || !bytes.iter().zip(shape).all(fits) {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let ms = ((number(11, 13)? * 60 + number(14, 16)?) * 60 + number(17, 19)?) * 1_000 + number(20, 23)?;
    let found = Timestamp(days_from_civil(year, month, day) * 86_400_000 + ms);
    // What does not print as it was read was no date: the 31st of June, the 25th hour.
    (found.to_string() == text).then_some(found)
}

fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Gregorian date of a day number since 1970-01-01, counted in 400-year eras that begin in March, so
/// that the leap day is the last of its year.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

/// Hybrid logical time: `unix ms << 16 | counter`, never negative.
///
/// Compared as a number. Two replicas can still give the same stamp, so a total order ends in the actor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Hlc(pub i64);

impl Hlc {
    /// The first stamp of a millisecond.
    pub fn at(instant: Timestamp) -> Self {
        // 47 bits of milliseconds reach the year 6429; a clock beyond that is cut, not wrapped.
        let ms = instant.0.min((1 << 47) - 1);
        Hlc(i64::try_from(ms << 16).expect("47 bits and 16 bits fit 63"))
    }

    /// The wall time in it.
    pub fn timestamp(self) -> Timestamp {
        Timestamp(u64::try_from(self.0 >> 16).unwrap_or(0))
    }

    /// Position among the stamps of the same millisecond, `0..65536`.
    pub fn counter(self) -> u16 {
        u16::try_from(self.0 & 0xffff).expect("16 bits are left")
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.timestamp(), self.counter())
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far ahead of a time that central confirmed a remote stamp may be and still pull the clock along.
pub const MAX_DRIFT: Duration = Duration::from_secs(5 * 60);

/// Gives stamps, each later than every stamp it gave or accepted before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    last: Hlc,
}

impl Clock {
    /// Continues after `last`, the highest stamp that this replica persisted.
    pub fn resume(last: Hlc) -> Self {
        Clock { last }
    }

    /// The highest stamp given or accepted.
    pub fn last(&self) -> Hlc {
        self.last
    }

    /// Returns the next stamp: `now`, or one more than the last where the clock stands or went back.
    pub fn tick(&mut self, now: Timestamp) -> Hlc {
        self.last = Hlc::at(now).max(Hlc(self.last.0.saturating_add(1)));
        self.last
    }

    /// Accepts a stamp from a peer, unless it is more than [`MAX_DRIFT`] ahead of `confirmed`, the
    /// highest time known from central (at central: its own clock). Returns whether it was accepted.
    ///
    /// A branch machine with a broken clock must not drag everyone into the future; its stamps are kept
    /// as written and judged by their effective time.
    pub fn merge(&mut self, remote: Hlc, confirmed: Timestamp) -> bool {
        let accepted = remote.timestamp() <= confirmed.after(MAX_DRIFT);
        if accepted {
            self.last = self.last.max(remote);
        }
        accepted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_while_the_clock_goes_back() {
        let mut clock = Clock::default();
        let first = clock.tick(Timestamp(1_000));
        let second = clock.tick(Timestamp(900));
        let third = clock.tick(Timestamp(1_001));
        assert!(first < second && second < third);
        assert_eq!((second.timestamp(), second.counter()), (Timestamp(1_000), 1));
        assert_eq!((third.timestamp(), third.counter()), (Timestamp(1_001), 0));
    }

    #[test]
    fn p15_a_stamp_from_the_far_future_does_not_move_the_clock() {
        let mut clock = Clock::default();
        let now = Timestamp(1_000_000);
        assert!(clock.merge(Hlc::at(now.after(MAX_DRIFT)), now));
        assert!(!clock.merge(Hlc::at(now.after(MAX_DRIFT + Duration::from_millis(1))), now));
        assert_eq!(clock.tick(now).timestamp(), now.after(MAX_DRIFT));
    }

    #[test]
    fn timestamps_print_as_rfc_3339() {
        let check = |ms, text: &str| {
            assert_eq!(Timestamp(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(ms)));
        };
        check(0, "1970-01-01T00:00:00.000Z");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z");
        check(1_795_219_199_999, "2026-11-20T23:59:59.999Z");
        check(4_107_542_400_000, "2100-03-01T00:00:00.000Z");
        for wrong in
            ["2026-06-31T00:00:00.000Z", "2026-06-30T24:00:00.000Z", "2026-06-30", "é026-06-30T00:00:00.000Z"]
        {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong}");
        }
    }
}
