//! The wait before the next dial.

use std::time::Duration;

/// Wait after the first failure.
const BASE: Duration = Duration::from_millis(500);

/// Longest wait: below 30 s, so that a link that is back is used within half a minute.
pub(super) const MAX: Duration = Duration::from_secs(25);

/// Returns the wait before dialing again after `failures` failures in a row.
///
/// Doubles from half a second to 25 s. `jitter` spreads the upper half of it, so that sites that were cut
/// off together do not all return in the same second.
pub(super) fn delay(failures: u32, jitter: u16) -> Duration {
    let full = BASE.saturating_mul(1 << failures.min(10)).min(MAX);
    full / 2 + share(full / 2, jitter)
}

/// The part of `full` that `jitter` draws.
pub(super) fn share(full: Duration, jitter: u16) -> Duration {
    full * u32::from(jitter) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_waits_double_up_to_a_bound_and_are_spread() {
        let ms = |failures, jitter| delay(failures, jitter).as_millis();
        assert_eq!([ms(0, 0), ms(0, u16::MAX), ms(3, 0), ms(3, u16::MAX)], [250, 500, 2_000, 4_000]);
        assert_eq!([ms(100, 0), ms(100, u16::MAX)], [12_500, 25_000]);
    }
}
