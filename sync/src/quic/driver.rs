//! Runs the replication engine over connections: the loop that the simulator runs over a wire in memory.
//!
//! The driver owns connections and the clock, the [`Host`] owns the replica. Outputs for the transport are
//! done here; everything else is handed to the host, which must not block and answers through a [`Feed`].
//! All frames of a session travel on one bidirectional stream that the site opens first; every further
//! stream that a site opens asks for content and is handed to central's host as it is.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};

use super::UdpPath;
use super::choice;
use super::connection::{Connection as Link, RecvStream, SendStream, Transport};
use super::endpoint;
pub use super::feed::{Feed, Inputs, feed};
use super::line::{self, Line};
use super::stream::{FrameReader, FrameWriter};
use super::tls;
use crate::engine::{CloseCode, Connection, Engine, Input, Moment, Output};
use crate::id::{Origin, SiteId};
use crate::time::Timestamp;

/// How long the first stream of a site may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Frames of all connections that wait for the engine; beyond, QUIC's flow control holds the peers.
const WAITING_FRAMES: usize = 256;

/// How long a session runs over TCP before UDP is tried again, unless somebody says otherwise.
pub const TRY_UDP_AFTER: Duration = Duration::from_secs(600);

/// What the loop cannot do itself.
pub trait Host: Send + 'static {
    /// Does what is not the transport's: answers the replica's questions through `feed`, notes notices.
    /// Must not block.
    fn perform(&mut self, output: Output, feed: &Feed);

    /// A session's connection is there, or gone. Content is fetched over it.
    fn connection(&mut self, peer: Origin, connection: Option<&Link>);

    /// A site opened another stream of its session: it asks for content. Only at central.
    fn stream(&mut self, site: SiteId, send: SendStream, receive: RecvStream);

    /// Called after every turn of the loop, with the engine as it stands.
    fn turned(&mut self, engine: &Engine, elapsed: Duration);

    /// A connection has ended because the peer turned us away, by one of the codes below the engine.
    fn turned_away(&mut self, peer: Origin, code: super::CloseCode, reason: &str) {
        tracing::info!(%peer, ?code, reason, "turned away");
    }

    /// Central could not be reached. Only at a site.
    fn unreachable(&mut self, error: &io::Error) {
        tracing::debug!(%error, "dial failed");
    }

    /// What the wall clock shows, for the peer.
    fn wall(&self) -> Timestamp {
        wall()
    }
}

/// Where and how a site dials.
#[derive(Clone)]
pub struct Dialer {
    /// The site's endpoint.
    pub endpoint: endpoint::Endpoint,
    /// Central as `host:port`, looked up anew at every dial.
    pub central: String,
    /// Pins central and shows the site's certificate; looked at anew at every dial, because certificates are
    /// renewed.
    pub tls: watch::Receiver<tls::Client>,
    /// How long a session may run over TCP before UDP is tried again.
    pub try_udp_after: Duration,
}

impl Dialer {
    /// A dialer that always shows the same certificate.
    pub fn fixed(endpoint: endpoint::Endpoint, central: String, tls: tls::Client) -> Self {
        let tls = watch::Sender::new(tls).subscribe();
        Dialer { endpoint, central, tls, try_udp_after: TRY_UDP_AFTER }
    }
}

/// Runs a site's engine until the feed ends.
pub async fn run_site(engine: Engine, dialer: Dialer, feed: (Feed, Inputs), host: impl Host) {
    Driver::new(engine, Some(dialer), feed.0, host).run(feed.1, None).await;
}

/// Runs central's engine over the sessions that arrive, until the feed or the sessions end.
pub async fn run_central(
    engine: Engine,
    sessions: mpsc::Receiver<(SiteId, Link)>,
    feed: (Feed, Inputs),
    host: impl Host,
) {
    Driver::new(engine, None, feed.0, host).run(feed.1, Some(sessions)).await;
}

/// What the tasks of the driver tell it.
enum Event {
    Dialed(io::Result<(Link, SendStream, RecvStream)>),
    Accepted { site: SiteId, link: Link, send: SendStream, receive: RecvStream },
    Frame { connection: Connection, bytes: Vec<u8> },
    Ended { connection: Connection, reason: String, code: Option<(super::CloseCode, String)> },
    Stream { site: SiteId, send: SendStream, receive: RecvStream },
}

struct Driver<H> {
    engine: Engine,
    host: H,
    dialer: Option<Dialer>,
    feed: Feed,
    started: Instant,
    lines: BTreeMap<Connection, (Origin, Line)>,
    /// What waits for all peers.
    waiting: line::Count,
    next: u64,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
}

impl<H: Host> Driver<H> {
    fn new(engine: Engine, dialer: Option<Dialer>, feed: Feed, host: H) -> Self {
        let events = mpsc::channel(WAITING_FRAMES);
        Driver {
            engine,
            host,
            dialer,
            feed,
            started: now(),
            lines: BTreeMap::new(),
            waiting: line::Count::default(),
            next: 0,
            events,
        }
    }

    async fn run(mut self, mut inputs: Inputs, mut sessions: Option<mpsc::Receiver<(SiteId, Link)>>) {
        let ear = self.dialer.as_ref().map(|dialer| Arc::clone(&dialer.endpoint.ear));
        loop {
            while let Some(output) = self.engine.poll() {
                self.perform(output);
            }
            self.host.turned(&self.engine, self.elapsed());
            let wake = self
                .engine
                .poll_timeout()
                .map(|at| tokio::time::Instant::from_std(self.started + at.min(FAR)));
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let arrival = async {
                match &mut sessions {
                    Some(sessions) => sessions.recv().await,
                    None => std::future::pending().await,
                }
            };
            let knocked = async {
                match &ear {
                    Some(ear) => ear.knocked().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.handle(input),
                    None => return,
                },
                event = self.events.1.recv() => if let Some(event) = event {
                    self.handle_event(event);
                },
                session = arrival => match session {
                    Some((site, link)) => self.await_control(site, link),
                    None => return,
                },
                () = knocked => {
                    tracing::info!("central knocks: it was started anew");
                    self.handle(Input::Knocked);
                }
                () = sleep => self.handle(Input::Timeout),
            }
        }
    }

    fn elapsed(&self) -> Duration {
        now().saturating_duration_since(self.started)
    }

    fn handle(&mut self, input: Input) {
        let moment = Moment { elapsed: self.elapsed(), wall: self.host.wall() };
        self.engine.handle(moment, input);
    }

    fn jitter(&self) -> u16 {
        // The low bits of a nanosecond clock differ between machines that were cut off together.
        u16::try_from(self.elapsed().subsec_nanos() / 7 % 65_536).unwrap_or(0)
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Dial => self.dial(),
            Output::Send { connection, bytes } => {
                if let Some((_, line)) = self.lines.get(&connection) {
                    line.send(bytes);
                }
            }
            Output::Close { connection, code, reason } => {
                if let Some((_, line)) = self.lines.get(&connection) {
                    line.close(code, reason);
                }
            }
            other => self.host.perform(other, &self.feed),
        }
    }

    /// Only who is at the other end of the session may knock. Whoever runs over TCP needs none: the sockets of a
    /// central that dies are reset.
    fn listen_to(&self, path: Option<UdpPath>) {
        if let Some(dialer) = &self.dialer {
            dialer.endpoint.ear.listen_to(path.map(|path| path.remote));
        }
    }

    fn dial(&self) {
        let Some(dialer) = self.dialer.clone() else { return };
        let events = self.events.0.clone();
        tokio::spawn(async move {
            let outcome = dial(&dialer).await;
            drop(events.send(Event::Dialed(outcome)).await);
        });
    }

    /// A session over TCP ends as soon as UDP passes again; the engine then dials anew, and UDP goes first.
    #[expect(clippy::disallowed_methods, reason = "the driver owns the clock of the engine")]
    fn watch_for_udp(&self, link: &Link) {
        let Some(dialer) = self.dialer.clone().filter(|_| link.transport() == Transport::Tcp) else { return };
        let link = link.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = link.closed() => return,
                    () = tokio::time::sleep(dialer.try_udp_after) => {}
                }
                let tls = dialer.tls.borrow().clone();
                if choice::udp_answers(&dialer.endpoint, link.remote_address(), &tls).await {
                    tracing::info!("UDP passes again: the session moves");
                    link.close(CloseCode::Done.number(), "UDP passes again");
                    return;
                }
            }
        });
    }

    /// The first stream that a site opens carries the session.
    fn await_control(&self, site: SiteId, link: Link) {
        let events = self.events.0.clone();
        tokio::spawn(async move {
            if let Ok(Ok((send, receive))) = tokio::time::timeout(PATIENCE, link.accept_bi()).await {
                drop(events.send(Event::Accepted { site, link, send, receive }).await);
            } else {
                link.close(CloseCode::Silent.number(), "no stream was opened");
            }
        });
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Dialed(Ok((link, send, receive))) => {
                tracing::info!(central = %link.remote_address(), transport = %link.transport(), "connected");
                self.watch_for_udp(&link);
                self.listen_to(link.udp_path());
                let connection = self.open(Origin::Central, link, send, receive);
                self.handle(Input::Dialed { connection });
            }
            Event::Dialed(Err(error)) => {
                self.host.unreachable(&error);
                let jitter = self.jitter();
                self.handle(Input::DialFailed { jitter });
            }
            Event::Accepted { site, link, send, receive } => {
                let (address, transport) = (link.remote_address(), link.transport());
                tracing::info!(%site, %address, %transport, "site connected");
                self.spawn_streams(site, link.clone());
                let connection = self.open(Origin::Site(site), link, send, receive);
                self.handle(Input::Accepted { connection, site });
            }
            Event::Frame { connection, bytes } => self.handle(Input::Frame { connection, bytes }),
            Event::Ended { connection, reason, code } => {
                if let Some((peer, _)) = self.lines.remove(&connection) {
                    tracing::info!(%peer, %reason, "disconnected");
                    if let Some((code, words)) = code {
                        self.host.turned_away(peer, code, &words);
                    }
                    if !self.lines.values().any(|(other, _)| *other == peer) {
                        self.listen_to(None);
                        self.host.connection(peer, None);
                    }
                    let jitter = self.jitter();
                    self.handle(Input::Closed { connection, reason, jitter });
                }
            }
            Event::Stream { site, send, receive } => self.host.stream(site, send, receive),
        }
    }

    fn open(&mut self, peer: Origin, link: Link, send: SendStream, receive: RecvStream) -> Connection {
        self.next += 1;
        let connection = Connection(self.next);
        self.host.connection(peer, Some(&link));
        let name = link.remote_address().to_string();
        let line = Line::open(link.clone(), FrameWriter::new(send, name.clone()), self.waiting.clone());
        self.lines.insert(connection, (peer, line));
        let events = self.events.0.clone();
        tokio::spawn(async move {
            let reason = read(connection, FrameReader::new(receive, name), &events).await;
            let closed = link.close_reason();
            let code = closed.as_ref().and_then(super::CloseCode::of);
            let reason = match closed {
                Some(closed) => format!("{reason} ({closed})"),
                None => reason,
            };
            link.close(CloseCode::Done.number(), "the session has ended");
            drop(events.send(Event::Ended { connection, reason, code }).await);
        });
        connection
    }

    /// Central takes every further stream of the site as a request for content.
    fn spawn_streams(&self, site: SiteId, link: Link) {
        let events = self.events.0.clone();
        tokio::spawn(async move {
            while let Ok((send, receive)) = link.accept_bi().await {
                if events.send(Event::Stream { site, send, receive }).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Sleeping longer than this is the same as for ever.
const FAR: Duration = Duration::from_secs(365 * 86_400);

async fn dial(dialer: &Dialer) -> io::Result<(Link, SendStream, RecvStream)> {
    let address = resolve(&dialer.central).await?;
    let tls = dialer.tls.borrow().clone();
    let link = endpoint::dial(&dialer.endpoint, address, tls).await.map_err(io::Error::other)?;
    let (send, receive) = link.open_bi().await.map_err(io::Error::from)?;
    Ok((link, send, receive))
}

/// Looks `host:port` up.
///
/// # Errors
/// When it is no address and no name that resolves.
pub async fn resolve(central: &str) -> io::Result<SocketAddr> {
    tokio::net::lookup_host(central)
        .await?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{central} has no address")))
}

async fn read(
    connection: Connection,
    mut reader: FrameReader<RecvStream>,
    events: &mpsc::Sender<Event>,
) -> String {
    loop {
        match reader.read_frame().await {
            Ok(Some(bytes)) => {
                if events.send(Event::Frame { connection, bytes: bytes.to_vec() }).await.is_err() {
                    return "this program is stopping".into();
                }
            }
            Ok(None) => return "the peer ended the session".into(),
            Err(error) => return error.to_string(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the driver owns the clock of the engine")]
fn now() -> Instant {
    Instant::now()
}

/// What the wall clock shows.
#[expect(clippy::disallowed_methods, reason = "the driver owns the clock of the engine")]
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
