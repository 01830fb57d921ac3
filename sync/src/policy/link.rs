//! What counts as cut off, in heartbeats.

use std::time::Duration;

use super::words;

words! {
    /// The link between a site and central, as either of them sees it.
    pub enum LinkState {
        /// A session is up and the peer was heard within two heartbeats.
        Connected = "connected",
        /// Heard two to five heartbeats ago.
        Degraded = "degraded",
        /// Not heard for more than five heartbeats, or never.
        Offline = "offline",
    }
}

/// Judges the link from how long ago the peer was heard; `None`: never in this run.
///
/// A peer whose session has just ended is not heard any more, so the same thresholds hold for a session
/// that makes no progress and for one that is gone.
pub fn link_state(silence: Option<Duration>, heartbeat: Duration) -> LinkState {
    match silence {
        Some(silence) if silence <= heartbeat * 2 => LinkState::Connected,
        Some(silence) if silence <= heartbeat * 5 => LinkState::Degraded,
        Some(_) | None => LinkState::Offline,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p3_p5_silence_becomes_degraded_after_two_heartbeats_and_offline_after_five() {
        let after = |s| link_state(Some(Duration::from_secs(s)), Duration::from_secs(30));
        assert_eq!([after(60), after(61), after(150), after(151)], {
            use LinkState::{Connected, Degraded, Offline};
            [Connected, Degraded, Degraded, Offline]
        });
        assert_eq!(link_state(None, Duration::from_secs(30)), LinkState::Offline);
    }
}
