//! Ends installations of which nothing is heard any more.
//!
//! The site that sees a machine judges its silence, whether central is in reach or not. What is too long stands in the
//! settings (`install_timeout_s`); how long the agent has listened is measured by a clock that nobody sets.

use std::{sync::Arc, time::Duration};

use store::command::task;
use tracing::{error, warn};

use crate::{agent::Agent, error::chain};

/// How often attempts are looked at. The shortest time-out is ten times as long.
const EVERY: Duration = Duration::from_secs(60);

/// Looks at the attempts under way now and then, until the future is dropped.
pub async fn run(agent: Arc<Agent>) -> std::convert::Infallible {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (here, listened) = (agent.site, agent.edge.elapsed());
        match agent.submit("time-out", move |tx| task::end_silent(tx, here, listened)).await {
            Ok(ended) => {
                for task in &ended {
                    warn!(%task, "an installation has failed: nothing was heard of its machine for too long");
                }
                if !ended.is_empty() {
                    agent.note_change();
                }
            }
            Err(error) => error!(error = %chain(&error), "attempts under way could not be looked at"),
        }
    }
}
