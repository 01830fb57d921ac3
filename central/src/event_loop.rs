//! The program's own time and chance, and how long it runs.
//!
//! The only file of this package that asks a clock or makes random bytes; everything else is given them
//! by an [`Edge`].

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use store::Given;
use sync::{quic::tls::WallClock, time::Timestamp};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    config::Config,
    failure::{Exit, Failure},
    server::Server,
};

/// Where instants and random bytes come from.
#[derive(Clone)]
pub struct Edge {
    clock: WallClock,
}

impl Edge {
    /// The clock and the randomness of this machine.
    pub fn of_this_machine() -> Self {
        Edge::with_clock(Arc::new(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
        }))
    }

    /// Another clock; the randomness of this machine.
    pub fn with_clock(clock: WallClock) -> Self {
        Edge { clock }
    }

    /// What the clock shows.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// The clock itself, for TLS.
    pub(crate) fn clock(&self) -> WallClock {
        Arc::clone(&self.clock)
    }

    /// Random bytes.
    pub(crate) fn entropy<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        getrandom::fill(&mut bytes).expect("a system that runs TLS gives randomness");
        bytes
    }

    /// What a command of the store is given when `by` acts now.
    pub(crate) fn given(&self, by: &str) -> Given {
        Given { now: self.now(), by: by.to_string(), entropy: self.entropy() }
    }
}

/// Runs a server until the program is asked to end by SIGTERM or SIGINT. `announce` is told the bound
/// addresses once everything listens.
///
/// # Errors
/// Those of [`Server::start`], and when the system delivers no signals.
pub async fn serve(config: &Config, announce: impl FnOnce(&Server)) -> Result<(), Failure> {
    let deaf = |error: std::io::Error| {
        Failure::new(
            Exit::Running,
            "this program could not be asked to end",
            error.to_string(),
            "this is not a fault of the configuration: report it with the system's version",
        )
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(deaf)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(deaf)?;
    let server = Server::start(config, Edge::of_this_machine()).await?;
    announce(&server);
    let ended_by = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = ended_by, "stopping");
    server.stop().await;
    tracing::info!("stopped");
    Ok(())
}
