//! How a central that starts finds its sites: it knocks where they were, and they send something at once.
//!
//! A stateless reset (RFC 9000 §10.3) answers a packet, and an idle site sends one after its keep-alive. [`KNOCK`] is
//! a datagram that makes a site send one now. It proves nothing and is not meant to: whoever forges it makes a site
//! send one packet of its session, at most once in a second, to the central that it talks to anyway. [`send`] is
//! central's half; the site's is [`Ear`], between quinn and the socket.
//!
//! Deliberately absent: where the sites were, which central keeps, and what a site sends, which the engine says.

use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::sync::Notify;

/// The datagram. Every QUIC packet has bit 0x40 set in its first byte (RFC 9000 §17.2, §17.3), as long as neither
/// side says that it greases it (RFC 9287), which [`endpoint`](super::endpoint) does not; the values from 4 to 15
/// belong to nobody who may share a port with QUIC (RFC 9443).
pub(super) const KNOCK: &[u8] = b"\x0fholdfast-knock-1";

/// A site answers at most one knock in this time.
const EVERY: Duration = Duration::from_secs(1);

/// The two ends of a connection over UDP, as this side sees them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpPath {
    /// Our address that the peer reached, where the system says so. Who is behind a NAT hears only that one.
    pub local: Option<IpAddr>,
    /// The peer's address.
    pub remote: SocketAddr,
}

/// Knocks at the far end of `path`. That it was sent says nothing about whether it arrives.
///
/// # Errors
/// When the socket is gone.
pub(super) async fn send(socket: &Arc<dyn AsyncUdpSocket>, path: &UdpPath) -> io::Result<()> {
    let knock = Transmit {
        destination: path.remote,
        ecn: None,
        contents: KNOCK,
        segment_size: None,
        src_ip: path.local,
    };
    transmit(socket, &knock).await
}

async fn transmit(socket: &Arc<dyn AsyncUdpSocket>, what: &Transmit<'_>) -> io::Result<()> {
    let mut poller = Arc::clone(socket).create_io_poller();
    loop {
        match socket.try_send(what) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| poller.as_mut().poll_writable(cx)).await?;
            }
            outcome => return outcome,
        }
    }
}

/// A site's socket as quinn sees it: without the knocks.
#[derive(Debug)]
pub(super) struct Ear {
    socket: Arc<dyn AsyncUdpSocket>,
    heard: Mutex<Heard>,
    knocked: Notify,
}

#[derive(Debug, Default)]
struct Heard {
    /// Who may knock.
    central: Option<SocketAddr>,
    /// When a knock last counted.
    at: Option<Instant>,
}

impl Ear {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        Self { socket, heard: Mutex::default(), knocked: Notify::new() }
    }

    /// From now on only `central` is heard; with `None` nobody is.
    pub(super) fn listen_to(&self, central: Option<SocketAddr>) {
        self.heard().central = central;
    }

    /// Waits for the next knock that counts. One that came while nobody waited is there.
    pub(super) async fn knocked(&self) {
        self.knocked.notified().await;
    }

    fn hear(&self, from: SocketAddr, now: Instant) {
        let mut heard = self.heard();
        let is_early = heard.at.is_some_and(|at| now.saturating_duration_since(at) < EVERY);
        if !is_early && heard.central.is_some_and(|central| is_same(central, from)) {
            heard.at = Some(now);
            self.knocked.notify_one();
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        // Nothing in here can be half done.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An IPv6 socket shows IPv4 peers as mapped addresses (RFC 4291 §2.5.5.2).
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip().to_canonical(), one.port()) == (other.ip().to_canonical(), other.port())
}

/// Takes the knocks out of a buffer, in which there may be several datagrams, and says whether there were any. The
/// others keep their bytes and their order.
fn take_out(buffer: &mut [u8], meta: &mut RecvMeta) -> bool {
    let (mut kept, mut found) = (0, false);
    for start in (0..meta.len).step_by(meta.stride.max(1)) {
        let end = meta.len.min(start + meta.stride.max(1));
        if buffer[start..end] == *KNOCK {
            found = true;
        } else {
            if kept < start {
                buffer.copy_within(start..end, kept);
            }
            kept += end - start;
        }
    }
    meta.len = kept;
    found
}

#[expect(clippy::disallowed_methods, reason = "how often a knock counts is measured where it arrives")]
fn now() -> Instant {
    Instant::now()
}

impl AsyncUdpSocket for Ear {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.socket.poll_recv(cx, buffers, metas))?;
        for (buffer, meta) in buffers.iter_mut().zip(&mut *metas).take(count) {
            if take_out(buffer, meta) {
                self.hear(meta.addr, now());
            }
        }
        // Where nothing is left quinn finds an empty buffer, which it passes over.
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use quinn::{Runtime, TokioRuntime};

    use super::*;
    use crate::quic::testing::loopback;

    type Datagrams<'a> = &'a [&'a [u8]];

    fn real_socket() -> Arc<dyn AsyncUdpSocket> {
        TokioRuntime.wrap_udp_socket(UdpSocket::bind(loopback()).unwrap()).unwrap()
    }

    #[test]
    fn no_quic_packet_begins_like_a_knock() {
        assert_eq!(KNOCK[0] & 0x40, 0, "the fixed bit");
        assert!((4..=15).contains(&KNOCK[0]), "STUN, ZRTP, DTLS, TURN and RTP have the others");
    }

    #[test]
    fn knocks_leave_a_buffer_and_the_other_datagrams_stay_as_they_are() {
        // Datagrams of one buffer have one length; only the last may be shorter.
        let (one, two, short) = ([1; KNOCK.len()], [2; KNOCK.len()], [3; 5]);
        let longer = [KNOCK, b"!"].concat();
        let cases: [(Datagrams<'_>, Datagrams<'_>); 9] = [
            (&[], &[]),
            (&[KNOCK], &[]),
            (&[&one], &[&one]),
            (&[&longer], &[&longer]),
            (&[&KNOCK[1..]], &[&KNOCK[1..]]),
            (&[KNOCK, &one, &short], &[&one, &short]),
            (&[&one, KNOCK, &two], &[&one, &two]),
            (&[&one, &two, KNOCK, KNOCK], &[&one, &two]),
            (&[KNOCK, KNOCK, KNOCK], &[]),
        ];
        for (datagrams, left) in cases {
            let mut buffer = [datagrams.concat(), vec![9; 20]].concat();
            let stride = datagrams.first().map_or(0, |first| first.len());
            let mut meta = RecvMeta { len: buffer.len() - 20, stride, ..RecvMeta::default() };
            assert_eq!(take_out(&mut buffer, &mut meta), datagrams != left, "{datagrams:?}");
            assert_eq!(buffer[..meta.len], left.concat(), "{datagrams:?}");
            assert_eq!(meta.stride, stride);
        }
        // The last datagram may be a knock that is shorter than the others.
        let mut buffer = [&[7; 30], KNOCK].concat();
        let mut meta = RecvMeta { len: buffer.len(), stride: 30, ..RecvMeta::default() };
        assert!(take_out(&mut buffer, &mut meta));
        assert_eq!((meta.len, &buffer[..30]), (30, &[7; 30][..]));
    }

    #[tokio::test]
    async fn quinn_gets_everything_from_a_socket_but_the_knocks() {
        let (ear, sender) = (Ear::new(real_socket()), real_socket());
        ear.listen_to(Some(sender.local_addr().unwrap()));
        let destination = ear.local_addr().unwrap();
        let send = async |contents: &[u8], segment_size| {
            let what = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
            transmit(&sender, &what).await.unwrap();
        };
        let mut buffers = vec![vec![0; 1_500 * ear.max_receive_segments()]; 8];
        let (mut sent, mut got): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
        let mut shared = 0;
        // Few at a time: the system throws away what does not fit the socket's buffer.
        for round in 0..200_u8 {
            // In one system call where the system can, which also delivers them in one buffer.
            let others = [[round; KNOCK.len()], [round ^ 0x40; KNOCK.len()]];
            if sender.max_transmit_segments() > 2 {
                send(&[&others[0], KNOCK, &others[1]].concat(), Some(KNOCK.len())).await;
            } else {
                for datagram in [&others[0], KNOCK, &others[1]] {
                    send(datagram, None).await;
                }
            }
            let garbage = vec![round; 1 + usize::from(round) * 5];
            send(&garbage, None).await;
            sent.extend(others.map(|other| other.to_vec()));
            sent.push(garbage);
            while got.len() < sent.len() {
                let mut metas = [RecvMeta::default(); 8];
                let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
                let count = poll_fn(|cx| ear.poll_recv(cx, &mut slices, &mut metas)).await.unwrap();
                for (buffer, meta) in slices.iter().zip(metas).take(count) {
                    let before = got.len();
                    got.extend(buffer[..meta.len].chunks(meta.stride.max(1)).map(<[u8]>::to_vec));
                    shared += usize::from(got.len() > before + 1);
                }
            }
        }
        println!("{} datagrams, {shared} buffers held several", got.len());
        assert_eq!(got, sent);
        ear.knocked().await;
    }

    #[tokio::test]
    async fn h6_only_central_is_heard_and_once_in_a_second() {
        let ear = Ear::new(real_socket());
        let central: SocketAddr = "192.0.2.7:7443".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:7443".parse().unwrap();
        let begun = now();
        let counts = |from, after_ms| {
            ear.hear(from, begun + Duration::from_millis(after_ms));
            let mut waiting = std::pin::pin!(ear.knocked());
            waiting.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
        };
        assert!(!counts(central, 0), "there is no session");
        ear.listen_to(Some(central));
        for stranger in ["192.0.2.7:7444", "192.0.2.8:7443", "[2001:db8::7]:7443"] {
            assert!(!counts(stranger.parse().unwrap(), 0), "{stranger}");
        }
        assert!(counts(mapped, 0), "strangers cost central nothing");
        assert!(!counts(central, 1) && !counts(mapped, 999));
        assert!(counts(central, 1_000));
        ear.listen_to(Some(mapped));
        assert!(!counts(central, 1_999) && counts(central, 2_000));
        ear.listen_to(None);
        assert!(!counts(central, 9_000));
    }
}
