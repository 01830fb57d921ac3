//! A connection and its streams, whatever carries them.
//!
//! [`Connection`] says who is at the other end, ends with a code and a reason, and opens streams; those who
//! use it ask for its [`Transport`] only to show it. How a connection ended is told in the words of QUIC.
//!
//! Deliberately absent: how a connection comes about, which is `endpoint`'s.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use quinn::{ConnectionError, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{
    knock::UdpPath,
    tcp::{self, Tcp},
};

/// Priority of blob streams; others have 0, and higher goes first.
pub(super) const BLOB_PRIORITY: i32 = -10;

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC over UDP.
    Quic,
    /// TLS on TCP.
    Tcp,
}

impl Transport {
    /// As it is shown: `quic` or `tcp`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// A connection after its handshake. Cheap to clone; all clones are the same connection.
#[derive(Clone, Debug)]
pub struct Connection(Carrier);

#[derive(Clone, Debug)]
enum Carrier {
    Quic(quinn::Connection),
    Tcp(Tcp),
}

impl Connection {
    pub(super) fn over_quic(connection: quinn::Connection) -> Self {
        Self(Carrier::Quic(connection))
    }

    pub(super) fn over_tcp(connection: Tcp) -> Self {
        Self(Carrier::Tcp(connection))
    }

    /// What carries it.
    pub fn transport(&self) -> Transport {
        match &self.0 {
            Carrier::Quic(_) => Transport::Quic,
            Carrier::Tcp(_) => Transport::Tcp,
        }
    }

    /// Address of the peer.
    pub fn remote_address(&self) -> SocketAddr {
        match &self.0 {
            Carrier::Quic(connection) => connection.remote_address(),
            Carrier::Tcp(connection) => connection.remote_address(),
        }
    }

    /// Both ends, where UDP carries it; the peer's may change while it lasts.
    pub fn udp_path(&self) -> Option<UdpPath> {
        match &self.0 {
            Carrier::Quic(connection) => {
                Some(UdpPath { local: connection.local_ip(), remote: connection.remote_address() })
            }
            Carrier::Tcp(_) => None,
        }
    }

    /// Tells this connection from the others of this program, as long as it lives.
    pub fn stable_id(&self) -> usize {
        match &self.0 {
            Carrier::Quic(connection) => connection.stable_id(),
            Carrier::Tcp(connection) => connection.stable_id(),
        }
    }

    /// The verified certificates of the peer, leaf first; nothing if it showed none.
    pub(super) fn peer_chain(&self) -> Option<Vec<CertificateDer<'static>>> {
        match &self.0 {
            Carrier::Quic(connection) => {
                let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>();
                Some(*chain.expect("a QUIC session with rustls identifies peers by a chain of certificates"))
            }
            Carrier::Tcp(connection) => connection.peer_chain(),
        }
    }

    /// Ends the connection at once. `code` is one of [`CloseCode`](super::CloseCode) or of the engine's;
    /// `reason` is for the log of the other side.
    pub fn close(&self, code: u32, reason: &str) {
        match &self.0 {
            Carrier::Quic(connection) => connection.close(VarInt::from_u32(code), reason.as_bytes()),
            Carrier::Tcp(connection) => connection.close(code, reason),
        }
    }

    /// Waits until the connection has ended and says how.
    pub async fn closed(&self) -> ConnectionError {
        match &self.0 {
            Carrier::Quic(connection) => connection.closed().await,
            Carrier::Tcp(connection) => connection.closed().await,
        }
    }

    /// How the connection ended, if it has.
    pub fn close_reason(&self) -> Option<ConnectionError> {
        match &self.0 {
            Carrier::Quic(connection) => connection.close_reason(),
            Carrier::Tcp(connection) => connection.close_reason(),
        }
    }

    /// Opens a stream. The peer hears of it with the first bytes.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn open_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        match &self.0 {
            Carrier::Quic(connection) => connection.open_bi().await.map(over_quic),
            Carrier::Tcp(connection) => connection.open().await.map(over_tcp),
        }
    }

    /// Waits for the next stream of the peer.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn accept_bi(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        match &self.0 {
            Carrier::Quic(connection) => connection.accept_bi().await.map(over_quic),
            Carrier::Tcp(connection) => connection.accept().await.map(over_tcp),
        }
    }
}

fn over_quic((send, receive): (quinn::SendStream, quinn::RecvStream)) -> (SendStream, RecvStream) {
    (SendStream(Sending::Quic(send)), RecvStream(Receiving::Quic(receive)))
}

fn over_tcp((send, receive): (tcp::Send, tcp::Receive)) -> (SendStream, RecvStream) {
    (SendStream(Sending::Tcp(send)), RecvStream(Receiving::Tcp(receive)))
}

/// The half of a stream on which we speak. Dropping it finishes it.
#[derive(Debug)]
pub struct SendStream(Sending);

#[derive(Debug)]
enum Sending {
    Quic(quinn::SendStream),
    Tcp(tcp::Send),
}

impl SendStream {
    /// Says that nothing more comes. Twice is as good as once.
    pub fn finish(&mut self) {
        match &mut self.0 {
            // Fails only for a stream that is finished already, or that the peer no longer wants.
            Sending::Quic(stream) => drop(stream.finish()),
            Sending::Tcp(stream) => stream.finish(),
        }
    }

    /// Waits until the peer has everything that was sent before [`finish`](Self::finish), wants no more of it,
    /// or is gone.
    pub async fn stopped(&mut self) {
        match &mut self.0 {
            Sending::Quic(stream) => drop(stream.stopped().await),
            Sending::Tcp(stream) => stream.stopped().await,
        }
    }

    /// Breaks the stream off: the peer must not take what came of it for complete.
    pub fn reset(&mut self, code: super::CloseCode) {
        match &mut self.0 {
            // Fails only for a stream that has ended already.
            Sending::Quic(stream) => drop(stream.reset(code.code())),
            Sending::Tcp(stream) => stream.reset(code),
        }
    }

    /// Lets everything else on the connection go first.
    pub(super) fn yield_to_others(&self) {
        match &self.0 {
            // Fails only for a stream that is finished already, whose priority matters to nobody.
            Sending::Quic(stream) => drop(stream.set_priority(BLOB_PRIORITY)),
            // It has a connection to itself, and the network shares between those.
            Sending::Tcp(_) => {}
        }
    }

    /// The stream's priority, where the transport has such a thing and the stream has not ended.
    #[cfg(test)]
    pub(super) fn priority(&self) -> Option<i32> {
        match &self.0 {
            Sending::Quic(stream) => stream.priority().ok(),
            Sending::Tcp(_) => None,
        }
    }

    /// Sends `chunk`, waiting for the peer's credit.
    ///
    /// # Errors
    /// When the stream breaks.
    pub(super) async fn write_chunk(&mut self, chunk: Bytes) -> io::Result<()> {
        match &mut self.0 {
            Sending::Quic(stream) => stream.write_chunk(chunk).await.map_err(io::Error::from),
            Sending::Tcp(stream) => stream.write_all(&chunk).await,
        }
    }
}

impl AsyncWrite for SendStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Sending::Quic(stream) => AsyncWrite::poll_write(Pin::new(stream), cx, bytes),
            Sending::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Sending::Quic(stream) => Pin::new(stream).poll_flush(cx),
            Sending::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Sending::Quic(stream) => Pin::new(stream).poll_shutdown(cx),
            Sending::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// The half of a stream on which the peer speaks. Dropping it tells the peer to stop.
#[derive(Debug)]
pub struct RecvStream(Receiving);

#[derive(Debug)]
enum Receiving {
    Quic(quinn::RecvStream),
    Tcp(tcp::Receive),
}

impl RecvStream {
    /// Returns the next bytes in order, at most `most` of them, or nothing at the end. May be dropped while
    /// it waits.
    ///
    /// # Errors
    /// When the stream breaks.
    pub(super) async fn read_chunk(&mut self, most: usize) -> io::Result<Option<Bytes>> {
        match &mut self.0 {
            Receiving::Quic(stream) => {
                let chunk = stream.read_chunk(most, true).await.map_err(io::Error::from)?;
                Ok(chunk.map(|chunk| chunk.bytes))
            }
            Receiving::Tcp(stream) => {
                let mut chunk = BytesMut::with_capacity(most);
                let length = stream.read_buf(&mut chunk).await?;
                Ok((length > 0).then(|| chunk.freeze()))
            }
        }
    }
}

impl AsyncRead for RecvStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Receiving::Quic(stream) => AsyncRead::poll_read(Pin::new(stream), cx, buffer),
            Receiving::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}
