//! Moves records between the socket and the two pipes of a connection, until it ends.
//!
//! [`carry`] is one task: a reading half and a writing half side by side, so that signs of life go out while
//! nobody reads what came in, and the other way round. Nothing that the peer sends is held beyond a record and
//! a full pipe: then nothing more is read, and TCP's flow control holds the peer.
//!
//! Whoever closes says why in a last record, and then reads what is still coming before the socket is dropped:
//! a socket that is closed with unread bytes answers with a reset, which takes what we said with it.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use quinn::{ApplicationClose, ConnectionError, TransportErrorCode, VarInt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use super::{
    Lifeline, Shared,
    record::{MAX_BODY, Record},
    rustls_error, tls_failure, transport_error,
};
use crate::quic::{
    CloseCode,
    endpoint::{IDLE, KEEP_ALIVE},
};

/// How long the last words may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Room made before each read, in bytes.
const READ_AHEAD: usize = 8 << 10;

/// The ends that [`carry`] holds.
pub(super) struct Ends {
    /// What others write for the peer.
    pub(super) outgoing: DuplexStream,
    /// What others read from the peer.
    pub(super) incoming: DuplexStream,
    pub(super) shared: Arc<Shared>,
    /// Code and reason of a close; ends when nobody has the connection any more.
    pub(super) closing: mpsc::UnboundedReceiver<(u32, String)>,
    pub(super) lifeline: Lifeline,
}

/// How often an idle connection speaks, and after which silence it is lost.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) keep_alive: Duration,
    pub(super) idle: Duration,
}

impl Default for Pace {
    /// As over QUIC.
    fn default() -> Self {
        Pace { keep_alive: KEEP_ALIVE, idle: IDLE }
    }
}

/// How it ended, and what the peer is told of it.
struct Ending {
    how: ConnectionError,
    say: Option<(u32, String)>,
}

impl Ending {
    fn without_a_word(how: ConnectionError) -> Self {
        Ending { how, say: None }
    }
}

/// What the reading half has the writing half do.
enum Errand {
    /// Tell the peer that its end has arrived.
    ConfirmEnd,
    /// Tell the peer to send no more.
    SayStop,
    /// The peer wants no more.
    DropOutgoing,
    /// The peer has all.
    Delivered,
    /// Nobody has the connection: end it when everything is delivered.
    Finish,
}

/// Runs a connection over `stream` until it has ended on both sides.
pub(super) async fn carry<S: AsyncRead + AsyncWrite + Unpin>(stream: S, ends: Ends, pace: Pace) {
    let Ends { outgoing, incoming, shared, mut closing, mut lifeline } = ends;
    let (from_peer, to_peer) = tokio::io::split(stream);
    let (errands, waiting) = mpsc::unbounded_channel();
    let mut reader = Reader {
        socket: from_peer,
        arrived: BytesMut::new(),
        pipe: Some(incoming),
        shared: Arc::clone(&shared),
        errands: errands.clone(),
    };
    let mut writer =
        Writer { socket: to_peer, pending: BytesMut::new(), pipe: Some(outgoing), errands: waiting };
    let ending = {
        let (reading, writing) = (reader.run(pace.idle), writer.run(pace.keep_alive));
        tokio::pin!(reading, writing);
        let mut is_held = true;
        let stop = async {
            let stop = lifeline.wait_for(Option::is_some).await.ok().and_then(|stop| *stop);
            match stop {
                Some(stop) => stop,
                // Whoever could have stopped us is gone; the connection is not.
                None => std::future::pending().await,
            }
        };
        tokio::pin!(stop);
        loop {
            tokio::select! {
                // A close goes before the end of the stream that is dropped with it, or the peer takes it for that.
                biased;
                close = closing.recv(), if is_held => match close {
                    Some(say) => break Ending { how: ConnectionError::LocallyClosed, say: Some(say) },
                    None => {
                        is_held = false;
                        drop(errands.send(Errand::Finish));
                    }
                },
                (code, reason) = &mut stop => {
                    let say = Some((code.number(), reason.to_owned()));
                    break Ending { how: ConnectionError::LocallyClosed, say };
                }
                ending = &mut reading => break ending,
                ending = &mut writing => break ending,
            }
        }
    };
    // Before the pipes break, so that whoever finds them broken also finds why.
    shared.end(ending.how);
    (reader.pipe, writer.pipe) = (None, None);
    let goodbye = async {
        if let Some((code, reason)) = ending.say {
            writer.say(&Record::Close(code, reason)).await?;
            writer.socket.shutdown().await?;
            reader.drain().await
        } else {
            writer.socket.shutdown().await
        }
    };
    match timeout(LAST_WORDS, goodbye).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::trace!(%error, "the peer was gone before the goodbye"),
        Err(_) => tracing::trace!("the peer did not take the goodbye"),
    }
}

struct Reader<S> {
    socket: ReadHalf<S>,
    arrived: BytesMut,
    pipe: Option<DuplexStream>,
    shared: Arc<Shared>,
    errands: mpsc::UnboundedSender<Errand>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<S> {
    async fn run(&mut self, idle: Duration) -> Ending {
        loop {
            match Record::read(&mut self.arrived) {
                Ok(Some(record)) => {
                    if let Some(ending) = self.take(record).await {
                        return ending;
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => return violation(&error.to_string()),
            }
            self.arrived.reserve(READ_AHEAD);
            // Only waiting for the peer counts as silence, not waiting for whoever reads the pipe.
            match timeout(idle, self.socket.read_buf(&mut self.arrived)).await {
                Err(_) => return Ending::without_a_word(ConnectionError::TimedOut),
                Ok(Ok(0)) => return Ending::without_a_word(ConnectionError::Reset),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return broken(&error),
            }
        }
    }

    async fn take(&mut self, record: Record) -> Option<Ending> {
        match record {
            Record::Data(bytes) => {
                if self.shared.finished.load(Ordering::Acquire) {
                    return Some(violation("more of a stream that was at its end"));
                }
                if let Some(pipe) = &mut self.pipe
                    && pipe.write_all(&bytes).await.is_err()
                {
                    self.pipe = None;
                    self.send(Errand::SayStop);
                }
            }
            Record::End => {
                self.shared.finished.store(true, Ordering::Release);
                self.pipe = None;
                self.send(Errand::ConfirmEnd);
            }
            Record::Ended => {
                self.shared.delivered.send_replace(true);
                self.send(Errand::Delivered);
            }
            Record::Stop => {
                self.shared.delivered.send_replace(true);
                self.send(Errand::DropOutgoing);
            }
            Record::Ping => {}
            Record::Close(code, reason) => {
                let reason = Bytes::from(reason.into_bytes());
                let close = ApplicationClose { error_code: VarInt::from_u32(code), reason };
                return Some(Ending::without_a_word(ConnectionError::ApplicationClosed(close)));
            }
        }
        None
    }

    fn send(&self, errand: Errand) {
        // Fails only when the writing half has ended, and then so does the connection.
        drop(self.errands.send(errand));
    }

    /// Reads until the peer is gone too, and keeps nothing.
    async fn drain(&mut self) -> io::Result<()> {
        loop {
            self.arrived.clear();
            self.arrived.reserve(READ_AHEAD);
            if self.socket.read_buf(&mut self.arrived).await? == 0 {
                return Ok(());
            }
        }
    }
}

struct Writer<S> {
    socket: WriteHalf<S>,
    /// Whole records, of which the first may have gone in part: whoever interrupts [`push`](Self::push) goes
    /// on with it.
    pending: BytesMut,
    pipe: Option<DuplexStream>,
    errands: mpsc::UnboundedReceiver<Errand>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Writer<S> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a connection speaks by the clock, as QUIC's do by themselves"
    )]
    async fn run(&mut self, keep_alive: Duration) -> Ending {
        let mut signs = interval_at(Instant::now() + keep_alive, keep_alive);
        signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut chunk = vec![0; MAX_BODY];
        let (mut is_delivered, mut is_abandoned) = (false, false);
        loop {
            let more = async {
                match &mut self.pipe {
                    Some(pipe) => pipe.read(&mut chunk).await,
                    None => std::future::pending().await,
                }
            };
            let record = tokio::select! {
                Some(errand) = self.errands.recv() => match errand {
                    Errand::ConfirmEnd => Some(Record::Ended),
                    Errand::SayStop => Some(Record::Stop),
                    Errand::DropOutgoing => {
                        (self.pipe, is_delivered) = (None, true);
                        None
                    }
                    Errand::Delivered => {
                        is_delivered = true;
                        None
                    }
                    Errand::Finish => {
                        is_abandoned = true;
                        None
                    }
                },
                read = more => match read {
                    Ok(0) | Err(_) => {
                        self.pipe = None;
                        Some(Record::End)
                    }
                    Ok(length) => Some(Record::Data(Bytes::copy_from_slice(&chunk[..length]))),
                },
                _ = signs.tick() => Some(Record::Ping),
            };
            if let Some(record) = record
                && let Err(error) = self.say(&record).await
            {
                return broken(&error);
            }
            if is_abandoned && is_delivered {
                let say = Some((CloseCode::Done.number(), String::new()));
                return Ending { how: ConnectionError::LocallyClosed, say };
            }
        }
    }

    async fn say(&mut self, record: &Record) -> io::Result<()> {
        record.write(&mut self.pending);
        self.push().await
    }

    async fn push(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            self.socket.write_buf(&mut self.pending).await?;
        }
        self.socket.flush().await
    }
}

fn violation(what: &str) -> Ending {
    Ending {
        how: transport_error(TransportErrorCode::PROTOCOL_VIOLATION, what.to_owned()),
        say: Some((CloseCode::Protocol.number(), what.to_owned())),
    }
}

fn broken(error: &io::Error) -> Ending {
    Ending::without_a_word(match rustls_error(error) {
        Some(error) => tls_failure(error),
        None => ConnectionError::Reset,
    })
}
