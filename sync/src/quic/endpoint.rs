//! The sockets, and the door behind them.
//!
//! Central opens a [`Listener`] on one port, UDP and TCP; each datagram flow or TCP connection that wants in
//! becomes a [`Newcomer`], and [`Newcomer::admit`] makes a [`Guest`] of it or says why not. A site opens one
//! [`Endpoint`] with [`client`] and [`dial`]s with it over what passes. [`Keys`] outlive the process: with them a
//! restarted program answers packets of connections it no longer knows by a stateless reset (RFC 9000 §10.3), so the
//! other side dials again at its next packet, at the latest after [`KEEP_ALIVE`], instead of waiting for [`IDLE`] to pass. A central that starts
//! [`knock`](Listener::knock)s where its sites were, and they send that packet at once.
//!
//! Deliberately absent: 0-RTT, and a key for connection ids. Ids are random and any id of the right length
//! may be reset, which the reset key alone suffices for; a reset is always smaller than its cause and they
//! are limited in number, so nobody gains by provoking them.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, ConnectError, ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig,
    Runtime, TransportConfig,
    crypto::{AeadKey, CryptoError, HandshakeTokenKey, HmacKey, rustls::HandshakeData},
};
use socket2::{Domain, Protocol as IpProtocol, Socket, Type};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::{debug, warn};

use super::{
    CloseCode, Connection, ENROLMENT, SESSION, UdpPath, choice,
    knock::{self, Ear},
    tcp::{
        CONTENT, Lifeline,
        door::{Caller, Door},
    },
    tls::{self, PeerError, SiteCertificate},
};
use crate::time::Timestamp;

/// An idle connection sends something this often, which also keeps NAT mappings open.
pub const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A connection that hears nothing for this long is lost.
pub const IDLE: Duration = Duration::from_secs(20);

/// A handshake that takes longer is abandoned. Twenty round trips of a bad satellite link.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// Size asked for the socket's buffers, in bytes. Linux gives 212,992 by default, fewer than a hundred full
/// packets of its accounting; a thousand sites that reconnect at once overrun that.
const SOCKET_BUFFER: usize = 4 << 20;

/// Credit of one stream, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;

/// Credit of one connection, in bytes: what a peer can make us hold at most. More than a few streams' worth,
/// so that blobs which nobody reads cannot stop the documents.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// The same at central for a site, which sends its log and asks for blobs: a thousand sites that send what
/// central does not get round to reading fill 1 GiB, not 8.
const SITE_STREAM_WINDOW: u32 = 256 << 10;
const SITE_WINDOW: u32 = 1 << 20;

/// What central keeps of what it has sent to one site until that has arrived, in bytes.
const SITE_SEND_WINDOW: u64 = 2 << 20;

/// Streams of each kind that a peer may have open at once: control, blobs, jobs and shells are
/// bidirectional, changes unidirectional.
const BIDIRECTIONAL_STREAMS: u32 = 32;
const UNIDIRECTIONAL_STREAMS: u32 = 8;

/// Length of our connection ids, in bytes. Both lives of a restarted program must agree on it.
const CONNECTION_ID_LENGTH: usize = 8;

/// At most one stateless reset per this interval: a thousand sites are reset within a second.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// Time between two knocks of central: what they bring is answered as fast as resets go out.
pub const KNOCK_INTERVAL: Duration = RESET_INTERVAL;

/// Secrets of an endpoint that must survive a restart. Made once from given entropy, kept in a file with
/// mode 0600.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    reset: [u8; 32],
    token: [u8; 32],
}

/// A file that does not hold [`Keys`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a file of endpoint keys: expected {} bytes that begin with `holdfast-quic-1`, got {length}",
    Keys::LENGTH
)]
pub struct ParseKeysError {
    /// Bytes given.
    pub length: usize,
}

impl Keys {
    const MAGIC: &[u8; 16] = b"holdfast-quic-1\n";
    const LENGTH: usize = 16 + 32 + 32;

    /// Makes keys from 64 random bytes.
    pub fn from_entropy(entropy: [u8; 64]) -> Self {
        let (reset, token) = entropy.split_at(32);
        let half = |bytes: &[u8]| bytes.try_into().expect("half of 64 bytes are 32");
        Self { reset: half(reset), token: half(token) }
    }

    /// Writes the form that [`from_bytes`](Self::from_bytes) reads: 80 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        [&Self::MAGIC[..], &self.reset, &self.token].concat()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// When the length or the first bytes are wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseKeysError> {
        bytes
            .strip_prefix(Self::MAGIC)
            .and_then(|entropy| entropy.try_into().ok())
            .map(Self::from_entropy)
            .ok_or(ParseKeysError { length: bytes.len() })
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(…)")
    }
}

/// How many strangers central deals with at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Handshakes in progress from which a newcomer must first prove its address (one more round trip).
    pub retry_above: usize,
    /// Handshakes in progress from which newcomers are refused.
    pub handshakes: usize,
    /// Enrolments and renewals in progress from which more are told to come back.
    pub enrolments: usize,
    /// Handshakes over TCP in progress from which newcomers are hung up on; those over UDP are counted apart.
    pub tcp_handshakes: usize,
    /// How many of them may come from one address. A branch with several sites has one, and so has a proxy.
    pub tcp_handshakes_per_address: usize,
}

impl Default for Limits {
    /// Enough for a thousand sites that come back together: those refused dial again with jitter.
    fn default() -> Self {
        Self {
            retry_above: 64,
            handshakes: 512,
            enrolments: 16,
            tcp_handshakes: 512,
            tcp_handshakes_per_address: 64,
        }
    }
}

/// How often another free port is tried, where the system chose one that TCP cannot have.
const PORTS: usize = 16;

/// Central's endpoint.
pub struct Listener {
    endpoint: quinn::Endpoint,
    /// The endpoint's own, beside it.
    socket: Arc<dyn AsyncUdpSocket>,
    door: Door,
    /// TLS over TCP for the next caller; QUIC's stands in its endpoint.
    tcp: Mutex<Arc<rustls::ServerConfig>>,
    lifeline: watch::Sender<Option<(CloseCode, &'static str)>>,
    keys: Keys,
    limits: Limits,
    handshakes: Arc<Semaphore>,
    enrolments: Arc<Semaphore>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Listener {
    /// Binds `address` (UDP and TCP, with the same port; an IPv6 address also serves IPv4) and answers there.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound, for one or the other.
    pub fn bind(address: SocketAddr, tls: tls::Server, keys: Keys, limits: Limits) -> io::Result<Self> {
        let (endpoint, socket, door) = bind_both(address, &tls, &keys, limits)?;
        let handshakes = Arc::new(Semaphore::new(limits.handshakes));
        let enrolments = Arc::new(Semaphore::new(limits.enrolments));
        let (tcp, lifeline) = (Mutex::new(tls.tcp), watch::Sender::default());
        Ok(Self { endpoint, socket, door, tcp, lifeline, keys, limits, handshakes, enrolments })
    }

    /// The address bound, UDP and TCP alike, with the port that the system chose if none was given.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Shows another certificate, or accepts other authorities, from the next connection on.
    pub fn set_tls(&self, tls: tls::Server) {
        *self.tcp.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&tls.tcp);
        self.endpoint.set_server_config(Some(server_config(&tls, &self.keys)));
    }

    /// Waits for the next peer worth a handshake; nothing once the listener was closed. Under load, peers
    /// that did not prove their address are asked to, and what is beyond the limit is refused.
    pub async fn accept(&self) -> Option<Newcomer> {
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming?,
                caller = self.door.accept() => return Some(self.newcomer(Via::Tcp {
                    caller,
                    config: Arc::clone(&self.tcp.lock().unwrap_or_else(PoisonError::into_inner)),
                    lifeline: self.lifeline.subscribe(),
                })),
            };
            let Ok(permit) = self.handshakes.clone().try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let others = self.limits.handshakes - self.handshakes.available_permits() - 1;
            if others >= self.limits.retry_above && incoming.may_retry() {
                // Only fails for a peer that may not be asked again, and that was the condition.
                let _ = incoming.retry();
                continue;
            }
            return Some(self.newcomer(Via::Quic { incoming: Box::new(incoming), _permit: permit }));
        }
    }

    fn newcomer(&self, via: Via) -> Newcomer {
        Newcomer { via, enrolments: self.enrolments.clone() }
    }

    /// Knocks at a site that had a session in an earlier life of this program, from the address that the site
    /// knows. If it has not noticed yet that central was restarted, it does so now. Leave [`KNOCK_INTERVAL`]
    /// between two.
    ///
    /// # Errors
    /// When the socket is gone.
    pub async fn knock(&self, at: &UdpPath) -> io::Result<()> {
        knock::send(&self.socket, at).await
    }

    /// Tells all peers that this program stops, and waits until they were told.
    pub async fn close(&self) {
        let (code, reason) = (CloseCode::Stopping, "central is stopping");
        self.lifeline.send_replace(Some((code, reason)));
        self.endpoint.close(code.code(), reason.as_bytes());
        tokio::join!(self.endpoint.wait_idle(), self.lifeline.closed());
    }
}

/// A peer that wants in. Admit each in a task of its own: a slow peer must not hold up the others.
#[derive(Debug)]
pub struct Newcomer {
    via: Via,
    enrolments: Arc<Semaphore>,
}

#[derive(Debug)]
enum Via {
    Quic { incoming: Box<quinn::Incoming>, _permit: OwnedSemaphorePermit },
    Tcp { caller: Caller, config: Arc<rustls::ServerConfig>, lifeline: Lifeline },
}

/// Who came in.
#[derive(Debug)]
pub enum Guest {
    /// An enrolled site that speaks [`SESSION`].
    Session {
        /// Its connection.
        connection: Connection,
        /// Its certificate: verified, valid now. Whether it was revoked, the caller knows.
        peer: SiteCertificate,
    },
    /// A site whose session runs over TCP asks for content, on this connection's one stream.
    Content {
        /// The connection.
        connection: Connection,
        /// The site's certificate, as above.
        peer: SiteCertificate,
    },
    /// Somebody that speaks [`ENROLMENT`]; hand it to [`enrol::serve`](super::enrol::serve).
    Enrolment(Applicant),
}

/// Somebody who asks for a certificate, with a place among [`Limits::enrolments`].
#[derive(Debug)]
pub struct Applicant {
    pub(super) connection: Connection,
    /// The certificate shown, which may have expired, for renewal.
    pub(super) peer: Option<SiteCertificate>,
    _permit: OwnedSemaphorePermit,
}

/// Why nobody came in.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The handshake failed; also when a certificate was not signed by our authority.
    #[error("handshake with {peer} failed")]
    Handshake {
        /// Address of the peer.
        peer: SocketAddr,
        /// What went wrong.
        #[source]
        source: ConnectionError,
    },
    /// The handshake took too long.
    #[error("handshake with {peer} did not end within {} s", HANDSHAKE.as_secs())]
    TooSlow {
        /// Address of the peer.
        peer: SocketAddr,
    },
    /// The handshake succeeded but the certificate opens no session. The peer was told.
    #[error("{peer} was turned away")]
    Peer {
        /// Address of the peer.
        peer: SocketAddr,
        /// What is wrong with its certificate.
        #[source]
        source: PeerError,
    },
    /// The certificate of a site has expired. The peer was told to renew.
    #[error("{peer} was turned away: certificate of site {} expired at {}", .certificate.site, .certificate.not_after)]
    Expired {
        /// Address of the peer.
        peer: SocketAddr,
        /// What it showed.
        certificate: Box<SiteCertificate>,
    },
    /// Too many enrolments at a time. The peer was told to come back.
    #[error("{peer} was turned away: too many enrolments at a time")]
    Busy {
        /// Address of the peer.
        peer: SocketAddr,
    },
}

impl AdmitError {
    /// Address of the one who did not get in.
    pub fn peer(&self) -> SocketAddr {
        match self {
            Self::Handshake { peer, .. }
            | Self::TooSlow { peer }
            | Self::Peer { peer, .. }
            | Self::Expired { peer, .. }
            | Self::Busy { peer } => *peer,
        }
    }
}

impl Newcomer {
    /// Address of the peer; proven only after [`admit`](Self::admit).
    pub fn remote_address(&self) -> SocketAddr {
        match &self.via {
            Via::Quic { incoming, .. } => incoming.remote_address(),
            Via::Tcp { caller, .. } => caller.address(),
        }
    }

    /// Goes through the handshake and checks what the peer showed. `now` is asked once, at its end.
    ///
    /// # Errors
    /// When the peer does not get in. It was told why by a [`CloseCode`], unless the handshake itself failed.
    pub async fn admit(self, now: impl Fn() -> Timestamp) -> Result<Guest, AdmitError> {
        let peer = self.remote_address();
        let failed = |source| AdmitError::Handshake { peer, source };
        let handshake = tokio::time::timeout(HANDSHAKE, self.via.handshake());
        let (connection, protocol) =
            handshake.await.map_err(|_| AdmitError::TooSlow { peer })?.map_err(failed)?;
        match protocol.as_slice() {
            SESSION => admit_site(connection, peer, now())
                .map(|(connection, peer)| Guest::Session { connection, peer }),
            CONTENT => admit_site(connection, peer, now())
                .map(|(connection, peer)| Guest::Content { connection, peer }),
            ENROLMENT => admit_applicant(connection, peer, &self.enrolments),
            other => unreachable!("TLS agreed on {other:?}, which is not among our protocols"),
        }
    }
}

impl Via {
    async fn handshake(self) -> Result<(Connection, Vec<u8>), ConnectionError> {
        match self {
            Via::Quic { incoming, _permit } => {
                let connection = incoming.accept()?.await?;
                let protocol = alpn(&connection);
                Ok((Connection::over_quic(connection), protocol))
            }
            Via::Tcp { caller, config, lifeline } => {
                let mut stop = lifeline.clone();
                let (connection, protocol) = tokio::select! {
                    through = caller.handshake(config, lifeline) => through?,
                    // A stranger who says nothing must not hold up the end.
                    _ = stop.wait_for(Option::is_some) => return Err(ConnectionError::LocallyClosed),
                };
                Ok((Connection::over_tcp(connection), protocol))
            }
        }
    }
}

/// A site's end: its UDP socket, its TCP connections, and what worked last. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(super) quic: quinn::Endpoint,
    pub(super) ear: Arc<Ear>,
    pub(super) memory: Arc<choice::Memory>,
    lifeline: Arc<watch::Sender<Option<(CloseCode, &'static str)>>>,
}

impl Endpoint {
    pub(super) fn lifeline(&self) -> Lifeline {
        self.lifeline.subscribe()
    }

    /// Waits until the peers of all connections that were closed have been told.
    pub async fn wait_idle(&self) {
        tokio::join!(self.quic.wait_idle(), self.lifeline.closed());
    }
}

/// Opens a site's endpoint. `bind`, for UDP, is usually the unspecified address with port 0. Needs a tokio runtime.
///
/// # Errors
/// When the address cannot be bound.
pub fn client(bind: SocketAddr, keys: &Keys) -> io::Result<Endpoint> {
    let ear = Arc::new(Ear::new(socket(bind)?));
    let quic = endpoint(Arc::clone(&ear) as Arc<dyn AsyncUdpSocket>, None, keys)?;
    Ok(Endpoint { quic, ear, memory: Arc::default(), lifeline: Arc::default() })
}

pub use choice::dial;

/// Why a connection to central did not come about.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// The attempt could not even begin, for example IPv6 from an IPv4 socket.
    #[error(transparent)]
    Start(#[from] ConnectError),
    /// Somebody answered, and the handshake failed.
    #[error(transparent)]
    Handshake(#[from] ConnectionError),
    /// Neither transport was answered.
    #[error("nobody answers: {udp} over UDP, {tcp} over TCP")]
    Nobody {
        /// What was seen over UDP.
        udp: String,
        /// What was seen over TCP.
        tcp: String,
    },
}

fn admit_site(
    connection: Connection,
    peer: SocketAddr,
    now: Timestamp,
) -> Result<(Connection, SiteCertificate), AdmitError> {
    match tls::peer_certificate(&connection) {
        Ok(certificate) if certificate.is_expired(now) => {
            let reason = format!("the site certificate expired at {}; renew it", certificate.not_after);
            CloseCode::CertificateExpired.close(&connection, &reason);
            Err(AdmitError::Expired { peer, certificate: Box::new(certificate) })
        }
        Ok(certificate) => Ok((connection, certificate)),
        Err(source) => {
            let code = match &source {
                PeerError::NoCertificate => CloseCode::NoCertificate,
                PeerError::Unreadable { .. } | PeerError::NotASite { .. } => CloseCode::NotASite,
            };
            code.close(&connection, &source.to_string());
            Err(AdmitError::Peer { peer, source })
        }
    }
}

fn admit_applicant(
    connection: Connection,
    peer: SocketAddr,
    enrolments: &Arc<Semaphore>,
) -> Result<Guest, AdmitError> {
    let Ok(permit) = enrolments.clone().try_acquire_owned() else {
        CloseCode::Busy.close(&connection, "too many enrolments at a time");
        return Err(AdmitError::Busy { peer });
    };
    let certificate = match tls::peer_certificate(&connection) {
        Ok(certificate) => Some(certificate),
        Err(PeerError::NoCertificate) => None,
        Err(source) => {
            CloseCode::NotASite.close(&connection, &source.to_string());
            return Err(AdmitError::Peer { peer, source });
        }
    };
    Ok(Guest::Enrolment(Applicant { connection, peer: certificate, _permit: permit }))
}

fn alpn(connection: &quinn::Connection) -> Vec<u8> {
    connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol)
        .expect("QUIC requires ALPN (RFC 9001 §8.1), so a finished handshake agreed on a protocol")
}

fn server_config(tls: &tls::Server, keys: &Keys) -> quinn::ServerConfig {
    let mut config = quinn::ServerConfig::new(tls.quic.clone(), Arc::new(TokenKey(keys.token)));
    let mut settings = settings(KEEP_ALIVE, IDLE);
    settings.stream_receive_window(SITE_STREAM_WINDOW.into());
    settings.receive_window(SITE_WINDOW.into());
    settings.send_window(SITE_SEND_WINDOW);
    config.transport_config(Arc::new(settings));
    config
}

pub(super) fn transport(keep_alive: Duration, idle: Duration) -> Arc<TransportConfig> {
    Arc::new(settings(keep_alive, idle))
}

fn settings(keep_alive: Duration, idle: Duration) -> TransportConfig {
    let mut config = TransportConfig::default();
    config.keep_alive_interval(Some(keep_alive));
    config.max_idle_timeout(Some(idle.try_into().expect("seconds fit a QUIC integer")));
    config.stream_receive_window(STREAM_WINDOW.into());
    config.receive_window(CONNECTION_WINDOW.into());
    config.send_window(CONNECTION_WINDOW.into());
    config.max_concurrent_bidi_streams(BIDIRECTIONAL_STREAMS.into());
    config.max_concurrent_uni_streams(UNIDIRECTIONAL_STREAMS.into());
    // Unreliable datagrams are not part of the protocol.
    config.datagram_receive_buffer_size(None);
    config
}

/// Binds UDP and TCP with the same port. Where the system chooses it, it chooses for UDP, and TCP may have
/// given that port away.
fn bind_both(
    address: SocketAddr,
    tls: &tls::Server,
    keys: &Keys,
    limits: Limits,
) -> io::Result<(quinn::Endpoint, Arc<dyn AsyncUdpSocket>, Door)> {
    let mut tries = if address.port() == 0 { PORTS } else { 1 };
    loop {
        tries -= 1;
        let socket = socket(address)?;
        let endpoint = endpoint(Arc::clone(&socket), Some(server_config(tls, keys)), keys)?;
        let bound = endpoint.local_addr()?;
        match Door::bind(bound, limits.tcp_handshakes, limits.tcp_handshakes_per_address) {
            Ok(door) => return Ok((endpoint, socket, door)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("TCP port {}: {error}", bound.port())));
            }
        }
    }
}

fn endpoint(
    socket: Arc<dyn AsyncUdpSocket>,
    server: Option<quinn::ServerConfig>,
    keys: &Keys,
) -> io::Result<quinn::Endpoint> {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(keys.reset)));
    config.cid_generator(|| Box::new(RandomIds));
    config.min_reset_interval(RESET_INTERVAL);
    // Peers may then clear the bit that tells a QUIC packet from anything else (RFC 9287).
    config.grease_quic_bit(false);
    quinn::Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(quinn::TokioRuntime))
}

fn socket(bind: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(IpProtocol::UDP))?;
    if bind.is_ipv6()
        && let Err(error) = socket.set_only_v6(false)
    {
        debug!(%error, "this system keeps IPv6 sockets to IPv6");
    }
    enlarge(&socket, "receive", Socket::set_recv_buffer_size, Socket::recv_buffer_size);
    enlarge(&socket, "send", Socket::set_send_buffer_size, Socket::send_buffer_size);
    socket.bind(&bind.into())?;
    quinn::TokioRuntime.wrap_udp_socket(socket.into())
}

/// Asks for larger buffers and says when the system gave less. Never an error: small buffers are only slow.
fn enlarge(
    socket: &Socket,
    direction: &str,
    set: fn(&Socket, usize) -> io::Result<()>,
    get: fn(&Socket) -> io::Result<usize>,
) {
    // Linux counts its own bookkeeping too and reports twice what it grants (socket(7)).
    let factor = if cfg!(target_os = "linux") { 2 } else { 1 };
    let granted = set(socket, SOCKET_BUFFER).and_then(|()| get(socket));
    match granted.map(|bytes| bytes / factor) {
        Ok(granted) if granted >= SOCKET_BUFFER => {}
        Ok(granted) => warn!(
            direction,
            granted,
            wanted = SOCKET_BUFFER,
            "small UDP buffer: raise net.core.rmem_max and net.core.wmem_max"
        ),
        Err(error) => warn!(direction, %error, "UDP buffer keeps its size"),
    }
}

/// Makes reset tokens: the same id gives the same token in every life of the program.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Comparing with a `blake3::Hash` takes constant time.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Seals the tokens by which a peer proves its address (RFC 9000 §8.1). AEAD of the TLS library, with a key
/// of its own per token, so the nonce may be constant.
struct TokenKey([u8; 32]);

impl HandshakeTokenKey for TokenKey {
    fn aead_from_hkdf(&self, random: &[u8]) -> Box<dyn AeadKey> {
        let key = *blake3::keyed_hash(&self.0, random).as_bytes();
        let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384;
        let quic =
            suite.tls13().and_then(|suite| suite.quic).expect("AES-256-GCM is a suite of TLS 1.3 and QUIC");
        Box::new(TokenSeal(quic.packet_key(key.into(), [0; 12].into())))
    }
}

struct TokenSeal(Box<dyn rustls::quic::PacketKey>);

impl AeadKey for TokenSeal {
    fn seal(&self, data: &mut Vec<u8>, additional: &[u8]) -> Result<(), CryptoError> {
        let tag = self.0.encrypt_in_place(0, additional, data).map_err(|_| CryptoError)?;
        data.extend_from_slice(tag.as_ref());
        Ok(())
    }

    fn open<'a>(&self, data: &'a mut [u8], additional: &[u8]) -> Result<&'a mut [u8], CryptoError> {
        let length = self.0.decrypt_in_place(0, additional, data).map_err(|_| CryptoError)?.len();
        Ok(&mut data[..length])
    }
}

/// Connection ids without meaning. They must be unpredictable and never the same in two lives of the
/// program, so they come from the system and not from the caller's entropy.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_LENGTH];
        tls::provider().secure_random.fill(&mut id).expect("a system that runs TLS gives randomness");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests;
