//! The same connection over TLS on TCP, for networks that let no UDP through.
//!
//! One TCP connection carries one stream: frames of a session, an exchange of enrolment, or one blob. A
//! further stream of a session is a TCP connection of its own that asks for [`CONTENT`], so documents never
//! wait behind blobs. What QUIC does beside the bytes is done by small [`record`]s: the end of a
//! stream and that it arrived, "send no more", a sign of life, and the code and reason of a close. [`carry`]
//! moves them between the socket and two pipes in memory, which are the stream that others see; [`door`] is
//! central's listening socket.
//!
//! How a connection ended is told in QUIC's words: silence as `TimedOut`, a socket that breaks as `Reset`, a
//! refused certificate as the TLS alert that it is.

mod record;

mod carry;

pub(super) mod door;

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use quinn::{ConnectionClose, ConnectionError, TransportErrorCode, VarInt};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    net::TcpStream,
    sync::{mpsc, watch},
};
use tokio_rustls::TlsConnector;

use super::{CENTRAL_NAME, CloseCode, tls};

/// ALPN of a connection that asks for one blob, beside a session over TCP.
pub(super) const CONTENT: &[u8] = b"holdfast-blob/1";

/// Bytes that wait in each direction for whoever reads the stream; beyond, TCP's flow control holds the peer.
const PIPE: usize = 64 << 10;

/// How long the TLS handshake of a further stream may take, with the connection below it.
const FURTHER: Duration = Duration::from_secs(10);

/// Held by every connection of an endpoint: says when the program ends, and lets the endpoint see that the
/// last of them has.
pub(super) type Lifeline = watch::Receiver<Option<(CloseCode, &'static str)>>;

/// A connection over TLS on TCP. Cheap to clone; it ends when the last clone and both halves of its stream
/// are gone.
#[derive(Clone, Debug)]
pub(super) struct Tcp(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    peer: SocketAddr,
    chain: Option<Vec<CertificateDer<'static>>>,
    shared: Arc<Shared>,
    /// How [`carry`] is told to end. It notices when this is gone.
    close: mpsc::UnboundedSender<(u32, String)>,
    /// The one stream, until somebody opens or accepts it: to the peer, from the peer.
    stream: Mutex<Option<(DuplexStream, DuplexStream)>>,
    /// At a site, how a further stream is opened.
    further: Option<Further>,
}

/// What the handles of a connection and the task behind it both know.
#[derive(Debug, Default)]
struct Shared {
    /// How the connection ended, once it has.
    ended: watch::Sender<Option<ConnectionError>>,
    /// Whether the peer has all that we sent, or wants no more.
    delivered: watch::Sender<bool>,
    /// Whether the peer has finished its half in order.
    finished: AtomicBool,
}

impl Shared {
    /// Notes how the connection ended. The first one says it.
    fn end(&self, how: ConnectionError) -> bool {
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            if is_first {
                *ended = Some(how);
            }
            is_first
        })
    }

    fn lost(&self) -> ConnectionError {
        self.ended.borrow().clone().unwrap_or(ConnectionError::Reset)
    }
}

#[derive(Clone)]
struct Further {
    config: Arc<rustls::ClientConfig>,
    lifeline: Lifeline,
}

impl std::fmt::Debug for Further {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Further(…)")
    }
}

/// Why there is no connection over TCP.
#[derive(Debug)]
pub(super) enum DialError {
    /// Nobody answers, or what answers breaks off: there may be no central here.
    Nobody(io::Error),
    /// Somebody answered, and TLS does not come about.
    Answered(ConnectionError),
}

/// Connects to central at `address`.
pub(super) async fn dial(
    address: SocketAddr,
    tls: &tls::Client,
    lifeline: Lifeline,
) -> Result<Tcp, DialError> {
    let further = tls.content.clone().map(|config| Further { config, lifeline: lifeline.clone() });
    connect(address, Arc::clone(&tls.tcp), further, lifeline).await
}

async fn connect(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    further: Option<Further>,
    lifeline: Lifeline,
) -> Result<Tcp, DialError> {
    let socket = TcpStream::connect(address).await.map_err(DialError::Nobody)?;
    socket.set_nodelay(true).map_err(DialError::Nobody)?;
    let name = ServerName::try_from(CENTRAL_NAME).expect("a name that is one");
    let stream =
        TlsConnector::from(config).connect(name, socket).await.map_err(|error| {
            match rustls_error(&error) {
                Some(refused) => DialError::Answered(tls_failure(refused)),
                None => DialError::Nobody(error),
            }
        })?;
    let session = stream.get_ref().1;
    if session.alpn_protocol().is_none() {
        return Err(DialError::Answered(no_protocol()));
    }
    let chain = owned(session.peer_certificates());
    Ok(Tcp::start(stream, address, chain, further, lifeline))
}

fn owned(chain: Option<&[CertificateDer<'_>]>) -> Option<Vec<CertificateDer<'static>>> {
    chain.map(|chain| chain.iter().map(|it| it.clone().into_owned()).collect())
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A failure of TLS as QUIC tells it (RFC 9001 §4.8): the alert that we sent, or that the peer did.
fn tls_failure(error: &rustls::Error) -> ConnectionError {
    let alert = match error {
        rustls::Error::AlertReceived(alert) => {
            return ConnectionError::ConnectionClosed(ConnectionClose {
                error_code: TransportErrorCode::crypto((*alert).into()),
                frame_type: None,
                reason: bytes::Bytes::new(),
            });
        }
        rustls::Error::InvalidCertificate(why) => why.clone().into(),
        rustls::Error::NoApplicationProtocol => rustls::AlertDescription::NoApplicationProtocol,
        rustls::Error::PeerIncompatible(_) => rustls::AlertDescription::HandshakeFailure,
        _ => rustls::AlertDescription::DecodeError,
    };
    transport_error(TransportErrorCode::crypto(alert.into()), error.to_string())
}

fn transport_error(code: TransportErrorCode, reason: String) -> ConnectionError {
    let mut error = ConnectionError::TransportError(code.into());
    if let ConnectionError::TransportError(inner) = &mut error {
        inner.reason = reason;
    }
    error
}

/// TLS on TCP does not demand ALPN as QUIC does (RFC 9001 §8.1); we do.
fn no_protocol() -> ConnectionError {
    tls_failure(&rustls::Error::NoApplicationProtocol)
}

impl Tcp {
    /// Runs a connection whose handshake is over.
    fn start<S: AsyncRead + AsyncWrite + std::marker::Send + Unpin + 'static>(
        stream: S,
        peer: SocketAddr,
        chain: Option<Vec<CertificateDer<'static>>>,
        further: Option<Further>,
        lifeline: Lifeline,
    ) -> Self {
        Self::start_at(stream, peer, chain, further, lifeline, carry::Pace::default())
    }

    fn start_at<S: AsyncRead + AsyncWrite + std::marker::Send + Unpin + 'static>(
        stream: S,
        peer: SocketAddr,
        chain: Option<Vec<CertificateDer<'static>>>,
        further: Option<Further>,
        lifeline: Lifeline,
        pace: carry::Pace,
    ) -> Self {
        let (send, outgoing) = duplex(PIPE);
        let (incoming, receive) = duplex(PIPE);
        let (close, closing) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::default());
        let ends = carry::Ends { outgoing, incoming, shared: Arc::clone(&shared), closing, lifeline };
        tokio::spawn(carry::carry(stream, ends, pace));
        let stream = Mutex::new(Some((send, receive)));
        Tcp(Arc::new(Handle { peer, chain, shared, close, stream, further }))
    }

    pub(super) fn remote_address(&self) -> SocketAddr {
        self.0.peer
    }

    pub(super) fn stable_id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    pub(super) fn peer_chain(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.0.chain.clone()
    }

    pub(super) fn close(&self, code: u32, reason: &str) {
        if self.0.shared.end(ConnectionError::LocallyClosed) {
            // Fails only when the task is gone, and then the socket is.
            drop(self.0.close.send((code, reason.to_owned())));
        }
    }

    pub(super) async fn closed(&self) -> ConnectionError {
        let mut ended = self.0.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(ConnectionError::Reset),
            Err(_) => unreachable!("we hold the sender"),
        }
    }

    pub(super) fn close_reason(&self) -> Option<ConnectionError> {
        self.0.shared.ended.borrow().clone()
    }

    /// The stream of this connection the first time; then one on a connection of its own, at a site.
    pub(super) async fn open(&self) -> Result<(Send, Receive), ConnectionError> {
        if let Some(ended) = self.close_reason() {
            return Err(ended);
        }
        if let Some(stream) = self.take_stream() {
            return Ok(stream);
        }
        let Some(Further { config, lifeline }) = self.0.further.clone() else {
            let reason = "over TCP only a site opens further streams";
            return Err(transport_error(TransportErrorCode::STREAM_LIMIT_ERROR, reason.into()));
        };
        let dialed = connect(self.0.peer, config, None, lifeline);
        let further = match tokio::time::timeout(FURTHER, dialed).await {
            Err(_) => return Err(ConnectionError::TimedOut),
            Ok(Err(DialError::Nobody(_))) => return Err(ConnectionError::Reset),
            Ok(Err(DialError::Answered(error))) => return Err(error),
            Ok(Ok(further)) => further,
        };
        Ok(further.take_stream().expect("a new connection has its stream"))
    }

    /// The stream of this connection; there will be no second one.
    pub(super) async fn accept(&self) -> Result<(Send, Receive), ConnectionError> {
        if let Some(ended) = self.close_reason() {
            return Err(ended);
        }
        match self.take_stream() {
            Some(stream) => Ok(stream),
            None => Err(self.closed().await),
        }
    }

    fn take_stream(&self) -> Option<(Send, Receive)> {
        // Nothing in here can be half done.
        let mut stream = self.0.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let (send, receive) = stream.take()?;
        Some((
            Send { pipe: Some(send), connection: self.clone() },
            Receive { pipe: receive, connection: self.clone() },
        ))
    }
}

/// The half of the stream on which we speak.
#[derive(Debug)]
pub(super) struct Send {
    pipe: Option<DuplexStream>,
    connection: Tcp,
}

impl Send {
    /// The other end of the pipe sees the end and says so to the peer.
    pub(super) fn finish(&mut self) {
        self.pipe = None;
    }

    pub(super) async fn stopped(&mut self) {
        let shared = &self.connection.0.shared;
        let mut delivered = shared.delivered.subscribe();
        tokio::select! {
            _ = delivered.wait_for(|it| *it) => {}
            _ = self.connection.closed() => {}
        }
    }

    pub(super) fn reset(&mut self, code: CloseCode) {
        self.connection.close(code.number(), "the stream was broken off");
        self.pipe = None;
    }

    fn pipe(&mut self) -> io::Result<Pin<&mut DuplexStream>> {
        self.pipe.as_mut().map(Pin::new).ok_or_else(|| quinn::WriteError::ClosedStream.into())
    }

    /// What it means that nobody takes our bytes any more.
    fn explain(&self, error: io::Error) -> io::Error {
        match (error.kind(), self.connection.close_reason()) {
            (io::ErrorKind::BrokenPipe, Some(lost)) => quinn::WriteError::ConnectionLost(lost).into(),
            (io::ErrorKind::BrokenPipe, None) => quinn::WriteError::Stopped(VarInt::from_u32(0)).into(),
            _ => error,
        }
    }
}

impl AsyncWrite for Send {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = this.pipe()?.poll_write(cx, bytes);
        written.map_err(|error| this.explain(error))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is in the pipe is on its way, as with QUIC.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().finish();
        Poll::Ready(Ok(()))
    }
}

/// The half of the stream on which the peer speaks.
#[derive(Debug)]
pub(super) struct Receive {
    pipe: DuplexStream,
    connection: Tcp,
}

impl AsyncRead for Receive {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut this.pipe).poll_read(cx, buffer))?;
        let shared = &this.connection.0.shared;
        let is_end = buffer.filled().len() == before && buffer.remaining() > 0;
        if is_end && !shared.finished.load(Ordering::Acquire) {
            // The pipe broke: the connection ended before the stream did.
            return Poll::Ready(Err(quinn::ReadError::ConnectionLost(shared.lost()).into()));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
