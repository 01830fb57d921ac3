//! The link to central: one QUIC session that comes and goes while the site works on.
//!
//! [`run`] keeps the replication engine running over `sync::quic`. Its [`Host`] half hands what the engine asks
//! of the replica to the store, and publishes where the link stands in [`Agent::link`]; content is fetched
//! over the same connection by `cache`. Nothing else waits for any of this.
//!
//! A heartbeat that central changes is followed from a new session on. What central says of our certificate
//! goes to `renewal`.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use sync::{
    document::site::Effective,
    engine::{Engine, Input, Output},
    id::{Origin, SiteId},
    policy::LinkState,
    quic::{
        CloseCode, Connection, RecvStream, SendStream, Transport,
        driver::{self, Dialer, Feed, Host},
    },
    time::Timestamp,
    wire::Telemetry,
};
use tracing::{debug, error, info, warn};

use crate::{agent::Agent, renewal::Doubt};

/// Longest pause between two looks at the link and two reports of our own figures.
const TICK: Duration = Duration::from_secs(10);

/// Where the link stands.
#[derive(Debug, Clone)]
pub struct Link {
    /// As people see it.
    pub state: LinkState,
    /// Whether a session is established.
    pub up: bool,
    /// The connection of the session, for content.
    pub connection: Option<Connection>,
    /// When it came about.
    pub since: Option<Timestamp>,
    /// Why there is no session, as far as it is known.
    pub last_end: Option<String>,
    /// That central is busy: when this site goes on, and why it waits.
    pub busy: Option<(Timestamp, String)>,
}

impl Default for Link {
    /// Before the first session.
    fn default() -> Self {
        Link {
            state: LinkState::Offline,
            up: false,
            connection: None,
            since: None,
            last_end: None,
            busy: None,
        }
    }
}

impl Link {
    /// The connection over which content can be fetched now.
    pub fn source(&self) -> Option<Connection> {
        self.connection.clone().filter(|_| self.up)
    }

    /// What carries the link now, and since when.
    pub fn transport(&self) -> Option<(Transport, Timestamp)> {
        let open = self.connection.as_ref().filter(|it| it.close_reason().is_none())?;
        Some((open.transport(), self.since?))
    }
}

/// Keeps a session with central, until the future is dropped.
pub async fn run(agent: Arc<Agent>, dialer: Dialer) -> std::convert::Infallible {
    loop {
        let heartbeat = heartbeat(&agent).await;
        let (feed, inputs) = driver::feed();
        let watcher = feed.clone();
        agent.store.watch(move |committed| {
            for (peer, end) in &committed.grown {
                watcher.send(Input::Changed { peer: *peer, end: *end });
            }
        });
        let host = SiteHost { agent: Arc::clone(&agent) };
        let engine = Engine::site(agent.site, heartbeat);
        tokio::select! {
            () = driver::run_site(engine, dialer.clone(), (feed.clone(), inputs), host) => {
                warn!("the driver of the session has ended");
            }
            () = report(&agent, &feed, heartbeat) => {}
            () = heartbeat_differs(&agent, heartbeat) => info!("another heartbeat is followed"),
        }
        disconnect(&agent, "the session begins anew");
    }
}

/// Ends the session, if there is one, and says why.
pub fn disconnect(agent: &Agent, why: &str) {
    agent.link.send_modify(|link| {
        if let Some(connection) = link.connection.take() {
            CloseCode::Stopping.close(&connection, why);
        }
        link.up = false;
    });
}

/// Seconds between heartbeats by the settings in force.
async fn heartbeat(agent: &Arc<Agent>) -> Duration {
    let found =
        agent.read(|agent, view| Ok(view.site(agent.site)?.map(|row| row.effective.heartbeat_s))).await;
    let seconds = match found {
        Ok(seconds) => seconds.unwrap_or(Effective::default().heartbeat_s),
        Err(error) => {
            error!(error = %crate::error::chain(&error), "settings cannot be read");
            Effective::default().heartbeat_s
        }
    };
    // A peer's number is not trusted with our timers.
    Duration::from_secs(seconds.clamp(1, 300))
}

async fn heartbeat_differs(agent: &Arc<Agent>, followed: Duration) {
    let mut changes = agent.changes.subscribe();
    while heartbeat(agent).await == followed {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the engine our figures, which also makes it look at the link again.
async fn report(agent: &Arc<Agent>, feed: &Feed, heartbeat: Duration) {
    let mut ticks = tokio::time::interval(TICK.min(heartbeat));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let wanted = agent.content.borrow().wanted.len();
        let figures = agent.read(move |agent, view| {
            let peer = view.peer(Origin::Central)?;
            Ok(Telemetry {
                version: env!("CARGO_PKG_VERSION").into(),
                uptime_s: agent.edge.elapsed().as_secs(),
                unacknowledged: peer.end.saturating_sub(peer.acknowledged),
                blobs_wanted: u64::try_from(wanted).unwrap_or(u64::MAX),
                boots_seen: agent.boots_seen.load(Ordering::Relaxed),
                blob_bytes: agent.store.blobs().total_bytes()?,
                suspended: view.suspended()?,
            })
        });
        match figures.await {
            Ok(telemetry) => feed.send(Input::Telemetry(telemetry)),
            Err(error) => error!(error = %crate::error::chain(&error), "own figures cannot be read"),
        }
    }
}

struct SiteHost {
    agent: Arc<Agent>,
}

impl Host for SiteHost {
    fn perform(&mut self, output: Output, feed: &Feed) {
        match &output {
            Output::Up { .. } => {
                info!("session with central established");
                self.agent.link.send_modify(|link| {
                    link.up = true;
                    link.busy = None;
                    link.last_end = None;
                });
            }
            Output::Busy { until, reason, .. } => {
                warn!(%until, %reason, "central is busy");
                self.agent.link.send_modify(|link| link.busy = Some((*until, reason.clone())));
            }
            // Something of ours was taken.
            Output::Acknowledged { .. } => {
                self.agent.link.send_if_modified(|link| link.busy.take().is_some());
            }
            Output::Down { reason, .. } => {
                info!(%reason, "session with central has ended");
                self.agent.link.send_modify(|link| {
                    link.up = false;
                    link.busy = None;
                    link.last_end = Some(reason.clone());
                });
            }
            Output::Refused { reason, code, .. } => {
                error!(%reason, code, "session with central refused");
                self.agent.link.send_modify(|link| link.last_end = Some(reason.clone()));
            }
            Output::Agreement { agrees: false, .. } => {
                error!("central and this site hold different documents");
            }
            other => debug!(output = ?std::mem::discriminant(other), "asked of the replica"),
        }
        let (agent, feed) = (Arc::clone(&self.agent), feed.clone());
        let reply = move |input: Input| {
            if matches!(input, Input::Ingested { .. }) {
                agent.note_change();
            }
            feed.send(input);
        };
        self.agent.store.answer(output, self.agent.edge.given("link"), reply);
    }

    fn connection(&mut self, _peer: Origin, connection: Option<&Connection>) {
        let now = self.agent.edge.now();
        self.agent.link.send_modify(|link| {
            link.connection = connection.cloned();
            link.since = connection.map(|_| now);
            link.up &= connection.is_some();
            link.busy = link.busy.take().filter(|_| connection.is_some());
        });
    }

    /// Central opens no streams; one that comes nevertheless is dropped, which tells it to stop.
    fn stream(&mut self, _site: SiteId, _send: SendStream, _receive: RecvStream) {}

    fn turned_away(&mut self, _peer: Origin, code: CloseCode, reason: &str) {
        match code {
            CloseCode::Revoked => {
                error!(reason, "central does not let this site in");
                self.agent.summons.send_modify(|summons| summons.raise(Doubt::Revoked));
                let words = reason.to_owned();
                // Shown until a session is established again, also after the next start.
                let keep = move |tx: &mut store::Tx<'_>| tx.refused(Origin::Central, false, &words);
                self.agent.store.submit(self.agent.edge.given("link"), keep, |kept| {
                    if let Err(error) = kept {
                        error!(error = %crate::error::chain(&error), "the refusal could not be kept");
                    }
                });
            }
            CloseCode::CertificateExpired => {
                warn!(reason, "central wants a renewed certificate");
                self.agent.summons.send_modify(|summons| summons.raise(Doubt::Expired));
            }
            other => info!(code = ?other, reason, "central has closed the connection"),
        }
        self.agent.link.send_modify(|link| link.last_end = Some(reason.to_owned()));
    }

    fn unreachable(&mut self, error: &std::io::Error) {
        debug!(%error, "central cannot be reached");
        let why = format!("central cannot be reached: {error}");
        self.agent.link.send_if_modified(|link| {
            let is_new = link.last_end.as_ref() != Some(&why);
            link.last_end = Some(why);
            is_new
        });
    }

    fn wall(&self) -> Timestamp {
        self.agent.edge.now()
    }

    fn turned(&mut self, engine: &Engine, elapsed: Duration) {
        let state = engine.link(Origin::Central, elapsed);
        self.agent.link.send_if_modified(|link| {
            let is_new = link.state != state;
            if is_new {
                info!(from = %link.state, to = %state, "link");
                link.state = state;
            }
            is_new
        });
    }
}
