//! Cuts byte streams into frames, and carries blobs.
//!
//! A frame is its length, `u32` big-endian, at most [`MAX_FRAME`], and that many bytes. [`FrameReader`] and
//! [`FrameWriter`] work on any byte stream, so that the same frames can run over TLS on TCP where UDP is
//! blocked. A blob has a bidirectional QUIC stream of its own: one frame asks, one frame announces the size,
//! then the bytes follow raw until the stream ends. [`request_blob`] asks, [`BlobWriter`] answers. Both
//! directions have low priority, so documents never wait behind blobs.
//!
//! Deliberately absent: what is in a frame, compression, and verification of blobs against their digest.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use minicbor::{Decode, Encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{CloseCode, Connection, RecvStream, SendStream, connection_error};
use crate::wire::MAX_FRAME;

/// Largest chunk that [`BlobReader::next`] returns, in bytes.
pub const MAX_CHUNK: usize = 64 << 10;

/// Room made before each read, in bytes. A peer that announces a large frame and sends nothing costs us no
/// more than this.
const READ_AHEAD: usize = 8 << 10;

/// Frames or blobs that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced a frame larger than allowed. Nothing was allocated for it.
    #[error("{peer} sent a frame of {size} bytes, {max} are allowed")]
    TooLarge {
        /// The other side.
        peer: String,
        /// Announced size of the body.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// The stream ended within a frame or blob.
    #[error("{peer} ended the stream after {got} of {size} bytes")]
    Truncated {
        /// The other side.
        peer: String,
        /// Bytes that arrived.
        got: u64,
        /// Bytes announced.
        size: u64,
    },
    /// More bytes followed than were announced.
    #[error("{peer} sent more than the {size} bytes it announced")]
    TooLong {
        /// The other side.
        peer: String,
        /// Bytes announced.
        size: u64,
    },
    /// The frame does not decode as what it should be.
    #[error("{peer} sent {size} bytes that are no {what}")]
    Malformed {
        /// The other side.
        peer: String,
        /// What was expected.
        what: &'static str,
        /// Size of the frame.
        size: usize,
        /// What the decoder said.
        #[source]
        source: Box<minicbor::decode::Error>,
    },
    /// Own bytes do not fit: a mistake of the caller, nothing was sent.
    #[error("frame of {size} bytes for {peer} exceeds {max}")]
    OwnTooLarge {
        /// The other side.
        peer: String,
        /// Size of the body.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// The stream was reset, or the connection lost.
    #[error("stream with {peer} broke")]
    Broken {
        /// The other side.
        peer: String,
        /// What the transport said.
        #[source]
        source: io::Error,
    },
}

impl FrameError {
    /// Returns the code and reason when the peer closed the whole connection with one of ours.
    pub fn closed(&self) -> Option<(CloseCode, String)> {
        match self {
            Self::Broken { source, .. } => CloseCode::of(connection_error(source)?),
            _ => None,
        }
    }
}

/// Reads frames from a byte stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    peer: String,
    max: usize,
    /// What arrived and was not returned yet.
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames of at most [`MAX_FRAME`] bytes. `peer` names the other side in errors.
    pub fn new(stream: R, peer: impl Into<String>) -> Self {
        Self { stream, peer: peer.into(), max: MAX_FRAME, buffer: BytesMut::new() }
    }

    /// Lowers the largest body accepted, in bytes.
    pub fn with_max(mut self, max: usize) -> Self {
        self.max = max.min(MAX_FRAME);
        self
    }

    /// Returns the body of the next frame, or nothing when the stream ended between two frames.
    ///
    /// May be dropped while it waits, as in `select!`: the next call continues where this one was.
    ///
    /// # Errors
    /// When the frame is too large, the stream ends within it, or breaks. Nothing can be read afterwards.
    pub async fn read_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            let length = match self.buffer.first_chunk() {
                None => None,
                Some(header) => Some(self.body_length(*header)?),
            };
            if let Some(length) = length
                && self.buffer.len() >= 4 + length
            {
                self.buffer.advance(4);
                return Ok(Some(self.buffer.split_to(length).freeze()));
            }
            self.buffer.reserve(READ_AHEAD);
            let broken = |source| FrameError::Broken { peer: self.peer.clone(), source };
            if self.stream.read_buf(&mut self.buffer).await.map_err(broken)? == 0 {
                return self.end(length);
            }
        }
    }

    fn body_length(&self, header: [u8; 4]) -> Result<usize, FrameError> {
        let size = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
        if size > self.max {
            return Err(FrameError::TooLarge { peer: self.peer.clone(), size, max: self.max });
        }
        Ok(size)
    }

    fn end(&self, length: Option<usize>) -> Result<Option<Bytes>, FrameError> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        let (got, size) = match length {
            Some(length) => (self.buffer.len() - 4, length),
            None => (self.buffer.len(), 4),
        };
        Err(FrameError::Truncated { peer: self.peer.clone(), got: got as u64, size: size as u64 })
    }
}

/// Writes frames to a byte stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    peer: String,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `stream`. `peer` names the other side in errors.
    pub fn new(stream: W, peer: impl Into<String>) -> Self {
        Self { stream, peer: peer.into() }
    }

    /// Writes one frame and waits until the transport took it, which may be long before the peer has it.
    ///
    /// Must not be dropped while it waits: half a frame would stand in the stream.
    ///
    /// # Errors
    /// When `body` exceeds [`MAX_FRAME`] or the stream breaks.
    pub async fn write_frame(&mut self, body: &[u8]) -> Result<(), FrameError> {
        let header = self.header(body.len())?;
        let broken = |source| FrameError::Broken { peer: self.peer.clone(), source };
        self.stream.write_all(&header).await.map_err(broken)?;
        self.stream.write_all(body).await.map_err(broken)?;
        self.stream.flush().await.map_err(broken)
    }

    /// Gives the stream back, for example to finish it.
    pub fn into_inner(self) -> W {
        self.stream
    }

    fn header(&self, size: usize) -> Result<[u8; 4], FrameError> {
        match u32::try_from(size) {
            Ok(length) if size <= MAX_FRAME => Ok(length.to_be_bytes()),
            _ => Err(FrameError::OwnTooLarge { peer: self.peer.clone(), size, max: MAX_FRAME }),
        }
    }
}

/// First frame of the answer to a blob request.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct BlobHeader {
    /// Bytes that follow; absent when the peer does not hold what was asked for.
    #[n(0)]
    size: Option<u64>,
}

/// Asks for a blob on a stream of its own and waits for the announcement. `request` is the body of the
/// asking frame.
///
/// Returns nothing when the peer does not hold what was asked for.
///
/// # Errors
/// When the stream breaks or the answer is malformed.
pub async fn request_blob(
    connection: &Connection,
    request: &[u8],
    peer: &str,
) -> Result<Option<BlobReader>, FrameError> {
    let broken = |source| FrameError::Broken { peer: peer.to_owned(), source };
    let (send, receive) = connection.open_bi().await.map_err(|error| broken(error.into()))?;
    send.yield_to_others();
    let mut writer = FrameWriter::new(send, peer);
    writer.write_frame(request).await?;
    writer.into_inner().finish();

    let mut reader = FrameReader::new(receive, peer);
    let Some(frame) = reader.read_frame().await? else {
        return Err(FrameError::Truncated { peer: peer.to_owned(), got: 0, size: 4 });
    };
    let header: BlobHeader = minicbor::decode(&frame).map_err(|source| FrameError::Malformed {
        peer: peer.to_owned(),
        what: "blob header",
        size: frame.len(),
        source: Box::new(source),
    })?;
    Ok(header.size.map(|size| BlobReader {
        stream: reader.stream,
        peer: reader.peer,
        early: reader.buffer.freeze(),
        size,
        got: 0,
    }))
}

/// Receives the bytes of a blob. Dropping it tells the peer to stop.
#[derive(Debug)]
pub struct BlobReader {
    stream: RecvStream,
    peer: String,
    /// Bytes that came along with the header.
    early: Bytes,
    size: u64,
    got: u64,
}

impl BlobReader {
    /// Bytes announced in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the next chunk in order, at most [`MAX_CHUNK`] bytes, or nothing after the last. The bytes
    /// are not verified.
    ///
    /// May be dropped while it waits.
    ///
    /// # Errors
    /// When the stream breaks, or carries fewer or more bytes than announced.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        let chunk = if self.early.is_empty() {
            let broken = |source| FrameError::Broken { peer: self.peer.clone(), source };
            self.stream.read_chunk(MAX_CHUNK).await.map_err(broken)?
        } else {
            Some(self.early.split_to(self.early.len().min(MAX_CHUNK)))
        };
        let peer = || self.peer.clone();
        let Some(chunk) = chunk else {
            return match self.got == self.size {
                true => Ok(None),
                false => Err(FrameError::Truncated { peer: peer(), got: self.got, size: self.size }),
            };
        };
        self.got += chunk.len() as u64;
        if self.got > self.size {
            return Err(FrameError::TooLong { peer: peer(), size: self.size });
        }
        Ok(Some(chunk))
    }
}

/// Sends the bytes of a blob.
#[derive(Debug)]
pub struct BlobWriter {
    stream: SendStream,
    peer: String,
    size: u64,
    sent: u64,
}

impl BlobWriter {
    /// Announces that `size` bytes follow. The request was read from the other half of `stream`.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn open(stream: SendStream, size: u64, peer: &str) -> Result<Self, FrameError> {
        let stream = answer(stream, Some(size), peer).await?;
        Ok(Self { stream, peer: peer.to_owned(), size, sent: 0 })
    }

    /// Answers that this side does not hold what was asked for.
    ///
    /// # Errors
    /// When the stream breaks.
    pub async fn refuse(stream: SendStream, peer: &str) -> Result<(), FrameError> {
        let mut stream = answer(stream, None, peer).await?;
        stream.finish();
        Ok(())
    }

    /// Sends the next bytes, waiting for the peer's credit.
    ///
    /// # Errors
    /// When the stream breaks, or more is sent than was announced.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), FrameError> {
        self.sent += chunk.len() as u64;
        if self.sent > self.size {
            // The peer must not take a blob with other bytes in it for complete.
            self.stream.reset(CloseCode::Protocol);
            let size = usize::try_from(self.sent).unwrap_or(usize::MAX);
            let max = usize::try_from(self.size).unwrap_or(usize::MAX);
            return Err(FrameError::OwnTooLarge { peer: self.peer.clone(), size, max });
        }
        let broken = |source| FrameError::Broken { peer: self.peer.clone(), source };
        self.stream.write_chunk(chunk).await.map_err(broken)
    }

    /// Ends the blob. Without it, or with bytes missing, the peer sees [`FrameError::Truncated`].
    pub fn finish(mut self) {
        self.stream.finish();
    }
}

async fn answer(stream: SendStream, size: Option<u64>, peer: &str) -> Result<SendStream, FrameError> {
    stream.yield_to_others();
    let header = minicbor::to_vec(BlobHeader { size }).expect("a vector takes all bytes");
    let mut writer = FrameWriter::new(stream, peer);
    writer.write_frame(&header).await?;
    Ok(writer.into_inner())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;
    use tokio::io::duplex;

    use super::*;
    use crate::quic::{
        connection::BLOB_PRIORITY,
        endpoint::Guest,
        testing::{Authority, SITE, connect, serve},
    };

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent_and_the_end_is_clean() {
        let (near, far) = duplex(100);
        let bodies = [vec![], vec![1; 3], vec![2; MAX_FRAME], vec![3; 97]];
        let sent = bodies.clone();
        let writing = tokio::spawn(async move {
            let mut writer = FrameWriter::new(near, "central");
            for body in &sent {
                writer.write_frame(body).await.unwrap();
            }
        });
        let mut reader = FrameReader::new(far, "lyon");
        for body in &bodies {
            assert_eq!(reader.read_frame().await.unwrap().unwrap(), *body);
        }
        assert!(reader.read_frame().await.unwrap().is_none(), "the end, between frames");
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_frame_that_is_too_large_is_refused_without_allocation() {
        let (mut near, far) = duplex(100);
        near.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let mut reader = FrameReader::new(far, "lyon");
        expect!["lyon sent a frame of 4294967295 bytes, 262144 are allowed"]
            .assert_eq(&reader.read_frame().await.unwrap_err().to_string());
        assert!(reader.buffer.capacity() <= READ_AHEAD, "{} bytes", reader.buffer.capacity());

        let (mut near, far) = duplex(100);
        near.write_all(&101_u32.to_be_bytes()).await.unwrap();
        expect!["lyon sent a frame of 101 bytes, 100 are allowed"].assert_eq(
            &FrameReader::new(far, "lyon").with_max(100).read_frame().await.unwrap_err().to_string(),
        );

        let (near, _far) = duplex(100);
        expect!["frame of 262145 bytes for lyon exceeds 262144"].assert_eq(
            &FrameWriter::new(near, "lyon")
                .write_frame(&vec![0; MAX_FRAME + 1])
                .await
                .unwrap_err()
                .to_string(),
        );
    }

    #[tokio::test]
    async fn an_announced_frame_that_never_comes_costs_little() {
        let (mut near, far) = duplex(100);
        near.write_all(&262_144_u32.to_be_bytes()).await.unwrap();
        near.write_all(b"only this").await.unwrap();
        drop(near);
        let mut reader = FrameReader::new(far, "lyon");
        expect!["lyon ended the stream after 9 of 262144 bytes"]
            .assert_eq(&reader.read_frame().await.unwrap_err().to_string());
        assert!(reader.buffer.capacity() <= 2 * READ_AHEAD, "{} bytes", reader.buffer.capacity());
    }

    #[tokio::test]
    async fn reading_can_be_interrupted_anywhere() {
        let (mut near, far) = duplex(1_000);
        let mut reader = FrameReader::new(far, "lyon");
        let mut wire = 5_u32.to_be_bytes().to_vec();
        wire.extend_from_slice(b"hello");
        for byte in &wire[..wire.len() - 1] {
            near.write_all(&[*byte]).await.unwrap();
            let interrupted = tokio::select! {
                biased;
                frame = reader.read_frame() => panic!("{frame:?} is not complete"),
                () = tokio::task::yield_now() => true,
            };
            assert!(interrupted);
        }
        near.write_all(&wire[wire.len() - 1..]).await.unwrap();
        assert_eq!(reader.read_frame().await.unwrap().unwrap(), "hello");
    }

    /// A session between a site and central, both ends.
    async fn session() -> (Connection, Connection) {
        let authority = Authority::new("fleet");
        let mut central = serve(&authority);
        let site = connect(&central, authority.site(SITE), &authority).await.unwrap();
        let Some(Guest::Session { connection, .. }) = central.guest().await else {
            panic!("the site gets in");
        };
        (site, connection)
    }

    /// Answers one blob request at `connection` and returns what was asked.
    async fn answer_one(connection: Connection, announced: Option<u64>, chunks: Vec<Bytes>) -> Bytes {
        let (send, receive) = connection.accept_bi().await.unwrap();
        let asked = FrameReader::new(receive, "lyon").read_frame().await.unwrap().unwrap();
        let Some(size) = announced else {
            BlobWriter::refuse(send, "lyon").await.unwrap();
            return asked;
        };
        let mut writer = BlobWriter::open(send, size, "lyon").await.unwrap();
        assert_eq!(writer.stream.priority(), Some(BLOB_PRIORITY));
        for chunk in chunks {
            if writer.write(chunk).await.is_err() {
                return asked;
            }
        }
        writer.finish();
        asked
    }

    async fn fetch(announced: Option<u64>, chunks: Vec<Bytes>) -> Result<Option<Vec<u8>>, String> {
        let (site, central) = session().await;
        // The last handle of a connection closes it, so this one stays until the bytes are there.
        let answering = tokio::spawn(answer_one(central.clone(), announced, chunks));
        let mut bytes = Vec::new();
        let blob = request_blob(&site, b"ipxe.efi", "central").await.map_err(|error| error.to_string())?;
        assert_eq!(answering.await.unwrap(), "ipxe.efi");
        let Some(mut blob) = blob else { return Ok(None) };
        assert_eq!(Some(blob.size()), announced);
        while let Some(chunk) = blob.next().await.map_err(|error| error.to_string())? {
            assert!(!chunk.is_empty() && chunk.len() <= MAX_CHUNK);
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes))
    }

    #[tokio::test]
    async fn a_blob_arrives_whole_or_not_at_all() {
        let content: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let chunks: Vec<Bytes> = content.chunks(40_000).map(Bytes::copy_from_slice).collect();
        assert_eq!(fetch(Some(300_000), chunks.clone()).await, Ok(Some(content)));
        assert_eq!(fetch(Some(0), vec![]).await, Ok(Some(vec![])));
        assert_eq!(fetch(None, vec![]).await, Ok(None));
        let short = fetch(Some(300_001), chunks.clone()).await.unwrap_err();
        expect!["central ended the stream after 300000 of 300001 bytes"].assert_eq(&short);
        let long = fetch(Some(299_999), chunks).await.unwrap_err();
        expect!["stream with central broke"].assert_eq(&long);
    }

    #[tokio::test]
    async fn a_peer_that_sends_more_than_announced_is_caught() {
        let (site, central) = session().await;
        let answering = tokio::spawn(async move {
            let (send, _receive) = central.accept_bi().await.unwrap();
            let mut stream = answer(send, Some(3), "lyon").await.unwrap();
            stream.write_all(b"four").await.unwrap();
            stream.finish();
            stream.stopped().await
        });
        let mut blob = request_blob(&site, b"x", "central").await.unwrap().unwrap();
        let error = loop {
            match blob.next().await {
                Ok(chunk) => assert!(chunk.is_some(), "the end would hide the surplus"),
                Err(error) => break error,
            }
        };
        expect!["central sent more than the 3 bytes it announced"].assert_eq(&error.to_string());
        answering.await.unwrap();
    }

    #[tokio::test]
    async fn documents_do_not_wait_behind_a_blob_that_nobody_reads() {
        let (site, central) = session().await;
        let blobs = tokio::spawn({
            let central = central.clone();
            async move {
                let (send, _receive) = central.accept_bi().await.unwrap();
                let mut writer = BlobWriter::open(send, 64 << 20, "lyon").await.unwrap();
                while writer.write(Bytes::from(vec![0; MAX_CHUNK])).await.is_ok() {}
            }
        });
        let blob = request_blob(&site, b"big", "central").await.unwrap().unwrap();
        let (changes, _none) = central.open_bi().await.unwrap();
        FrameWriter::new(changes, "lyon").write_frame(b"change").await.unwrap();
        let (_none, receive) =
            tokio::time::timeout(Duration::from_secs(10), site.accept_bi()).await.unwrap().unwrap();
        let frame = FrameReader::new(receive, "central").read_frame().await.unwrap();
        assert_eq!(frame.unwrap(), "change");
        drop(blob);
        blobs.await.unwrap();
    }

    #[tokio::test]
    async fn a_closed_connection_says_why_through_the_stream() {
        let (site, central) = session().await;
        let (_send, receive) = site.open_bi().await.unwrap();
        CloseCode::Revoked.close(&central, "site lyon left the fleet");
        let error = FrameReader::new(receive, "central").read_frame().await.unwrap_err();
        expect!["stream with central broke"].assert_eq(&error.to_string());
        expect![[r#"Some((Revoked, "site lyon left the fleet"))"#]]
            .assert_eq(&format!("{:?}", error.closed()));
    }
}
