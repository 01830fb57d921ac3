use std::{net::UdpSocket, sync::mpsc, thread, time::Instant};

use expect_test::expect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::quic::{
    CENTRAL_NAME,
    testing::{Authority, Central, NOW, SITE, clock_at, connect, keys, loopback},
    tls::Protocol,
};

#[test]
fn keys_survive_their_file() {
    let keys = Keys::from_entropy(std::array::from_fn(|at| at as u8));
    let bytes = keys.to_bytes();
    assert_eq!(bytes.len(), Keys::LENGTH);
    assert_eq!(Keys::from_bytes(&bytes), Ok(keys.clone()));
    expect!["Keys(…)"].assert_eq(&format!("{keys:?}"));
    for bad in [&bytes[1..], &bytes[..79], b"", &[bytes.as_slice(), b"\n"].concat()] {
        assert!(Keys::from_bytes(bad).is_err());
    }
    expect!["not a file of endpoint keys: expected 80 bytes that begin with `holdfast-quic-1`, got 79"]
        .assert_eq(&Keys::from_bytes(&bytes[..79]).unwrap_err().to_string());
}

#[test]
fn address_tokens_open_with_the_same_keys_in_the_next_life() {
    let sealed = |data: &[u8]| {
        let mut data = data.to_vec();
        TokenKey([1; 32]).aead_from_hkdf(&[9; 32]).seal(&mut data, b"more").unwrap();
        data
    };
    let mut token = sealed(b"192.0.2.7");
    assert_eq!(token.len(), 9 + 16);
    let mut wrong = token.clone();
    assert_eq!(TokenKey([1; 32]).aead_from_hkdf(&[9; 32]).open(&mut token, b"more").unwrap(), b"192.0.2.7");
    assert!(TokenKey([2; 32]).aead_from_hkdf(&[9; 32]).open(&mut wrong, b"more").is_err());
    assert!(TokenKey([1; 32]).aead_from_hkdf(&[8; 32]).open(&mut sealed(b"x"), b"more").is_err());
    assert!(TokenKey([1; 32]).aead_from_hkdf(&[9; 32]).open(&mut sealed(b"x"), b"less").is_err());
    assert!(TokenKey([1; 32]).aead_from_hkdf(&[9; 32]).open(&mut [], b"").is_err());
}

/// A central in a thread and a runtime of its own, which can die without a word.
struct Mortal {
    address: SocketAddr,
    kill: mpsc::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Mortal {
    #[expect(clippy::disallowed_methods, reason = "only the end of a thread ends a program without a word")]
    fn live(tls: tls::Server, at: SocketAddr, keys: Keys, knock_at: Option<UdpPath>) -> Self {
        let (born, address) = mpsc::channel();
        let (kill, killed) = mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.spawn(async move {
                let listener = Listener::bind(at, tls, keys, Limits::default()).unwrap();
                born.send(listener.local_address().unwrap()).unwrap();
                if let Some(site) = knock_at {
                    listener.knock(&site).await.unwrap();
                }
                let mut guests = Vec::new();
                while let Some(newcomer) = listener.accept().await {
                    guests.push(newcomer.admit(|| NOW).await);
                }
            });
            runtime
                .block_on(async { tokio::task::spawn_blocking(move || killed.recv()).await })
                .unwrap()
                .unwrap();
            // Dropping the runtime drops its tasks without running them: nobody says goodbye.
            drop(runtime);
        });
        Self { address: address.recv().unwrap(), kill, thread }
    }

    fn die(self) {
        self.kill.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

/// Connects a site, restarts central with `after` as its keys, and returns how the site's connection
/// ended and how long after the restart. Every restart has a `host` of its own, so that no other test gets the port
/// in between. With `knocks`, central knocks at the site when it is back.
#[expect(clippy::disallowed_methods, reason = "measures how long the site was in the dark")]
async fn restart(
    host: u8,
    after: Keys,
    keep_alive: Duration,
    idle: Duration,
    knocks: bool,
) -> (ConnectionError, Duration) {
    let authority = Authority::new("fleet");
    let own_host = SocketAddr::from(([127, 0, 0, host], 0));
    let certificates = [authority.certificate()];
    let server = tls::server_config(authority.server(CENTRAL_NAME), &certificates, clock_at(NOW)).unwrap();
    let tls = tls::client_config(authority.site(SITE), &certificates, Protocol::Session, clock_at(NOW));

    let central = Mortal::live(server.clone(), own_host, keys(1), None);
    let address = central.address;
    let mut config = quinn::ClientConfig::new(tls.unwrap().quic);
    config.transport_config(transport(keep_alive, idle));
    let site = client(loopback(), &keys(2)).unwrap();
    let connection = site.quic.connect_with(config, address, CENTRAL_NAME).unwrap().await.unwrap();
    // As the driver and the engine do it.
    site.ear.listen_to(Some(connection.remote_address()));
    let (ear, session) = (Arc::clone(&site.ear), connection.clone());
    tokio::spawn(async move {
        ear.knocked().await;
        let (mut stream, _answers) = session.open_bi().await.unwrap();
        stream.write_all(&[0; 64]).await.unwrap();
    });
    central.die();

    let path = UdpPath { local: Some(address.ip()), remote: site.quic.local_addr().unwrap() };
    let central = Mortal::live(server, address, after, knocks.then_some(path));
    let begun = Instant::now();
    let ended = connection.closed().await;
    let elapsed = begun.elapsed();
    central.die();
    (ended, elapsed)
}

#[tokio::test]
async fn t2_a_site_notices_at_its_next_packet_that_central_was_restarted() {
    let (ended, elapsed) = restart(77, keys(1), Duration::from_millis(20), IDLE, false).await;
    println!("connection ended {elapsed:?} after the restart: {ended}");
    assert_eq!(ended, ConnectionError::Reset);
    assert!(elapsed < IDLE / 4, "{elapsed:?}");

    let (ended, elapsed) =
        restart(78, keys(3), Duration::from_millis(20), Duration::from_millis(600), false).await;
    println!("with other keys it ended after {elapsed:?}: {ended}");
    assert_eq!(ended, ConnectionError::TimedOut, "only the persisted keys make the difference");
}

#[tokio::test]
async fn t2_an_idle_site_notices_a_restarted_central_that_knocks() {
    let (ended, elapsed) = restart(79, keys(1), KEEP_ALIVE, IDLE, true).await;
    println!("connection ended {elapsed:?} after the restart: {ended}");
    assert_eq!(ended, ConnectionError::Reset);
    assert!(elapsed < KEEP_ALIVE / 2, "{elapsed:?}");
}

#[tokio::test]
async fn under_load_newcomers_prove_their_address_first() {
    let authority = Authority::new("fleet");
    let limits = Limits { retry_above: 0, ..Limits::default() };
    let listener = authority.listen(authority.server(CENTRAL_NAME), loopback(), &keys(1), limits);
    let address = listener.local_address().unwrap();
    let validated = tokio::spawn(async move {
        let newcomer = listener.accept().await.unwrap();
        let Via::Quic { incoming, .. } = &newcomer.via else { panic!("UDP goes first") };
        let validated = incoming.remote_address_validated();
        (validated, newcomer.admit(|| NOW).await.unwrap())
    });
    let certificates = [authority.certificate()];
    let tls =
        tls::client_config(authority.site(SITE), &certificates, Protocol::Session, clock_at(NOW)).unwrap();
    dial(&client(loopback(), &keys(2)).unwrap(), address, tls).await.unwrap();
    let (validated, guest) = validated.await.unwrap();
    assert!(validated && matches!(guest, Guest::Session { .. }));
}

#[tokio::test]
async fn beyond_the_limit_newcomers_are_refused_at_once() {
    let authority = Authority::new("fleet");
    let limits = Limits { handshakes: 1, ..Limits::default() };
    let listener = authority.listen(authority.server(CENTRAL_NAME), loopback(), &keys(1), limits);
    let address = listener.local_address().unwrap();
    let certificates = [authority.certificate()];
    let dial_once = || async {
        let tls = tls::client_config(authority.site(SITE), &certificates, Protocol::Session, clock_at(NOW));
        dial(&client(loopback(), &keys(2)).unwrap(), address, tls.unwrap()).await
    };
    let (first, second) = tokio::join!(dial_once(), async {
        let newcomer = listener.accept().await.unwrap();
        let second = tokio::select! {
            _ = listener.accept() => panic!("nobody else gets as far as a handshake"),
            second = dial_once() => second,
        };
        newcomer.admit(|| NOW).await.unwrap();
        second
    });
    first.unwrap();
    expect!["aborted by peer: the server refused to accept a new connection"]
        .assert_eq(&second.unwrap_err().to_string());
}

#[tokio::test]
async fn a_listener_takes_another_certificate_and_says_when_it_stops() {
    let authority = Authority::new("fleet");
    let other = authority.server("lyon.example");
    let listener = authority.listen(other, loopback(), &keys(1), Limits::default());
    let address = listener.local_address().unwrap();
    let certificates = [authority.certificate()];
    let site = client(loopback(), &keys(2)).unwrap();
    let dial_once = || async {
        let tls = tls::client_config(authority.site(SITE), &certificates, Protocol::Session, clock_at(NOW));
        dial(&site, address, tls.unwrap()).await
    };
    let admit = || async { listener.accept().await.unwrap().admit(|| NOW).await };
    let (refused, guest) = tokio::join!(dial_once(), admit());
    assert!(refused.is_err() && guest.is_err(), "that certificate is for another name");

    let identity = authority.server(CENTRAL_NAME);
    listener.set_tls(tls::server_config(identity, &certificates, clock_at(NOW)).unwrap());
    let (session, guest) = tokio::join!(dial_once(), admit());
    assert!(guest.is_ok());
    let session = session.unwrap();
    let ((), ended) = tokio::join!(listener.close(), session.closed());
    assert_eq!(CloseCode::of(&ended), Some((CloseCode::Stopping, "central is stopping".into())));
    assert!(listener.accept().await.is_none());
}

/// The first datagram of a real handshake.
async fn initial_packet(authority: &Authority) -> Vec<u8> {
    let ear = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    let certificates = [authority.certificate()];
    let tls =
        tls::client_config(authority.site(SITE), &certificates, Protocol::Session, clock_at(NOW)).unwrap();
    let endpoint = client(loopback(), &keys(2)).unwrap();
    let address = ear.local_addr().unwrap();
    let mut datagram = vec![0; 2_000];
    let length = tokio::select! {
        result = dial(&endpoint, address, tls) => panic!("nobody answers, but {result:?}"),
        received = ear.recv(&mut datagram) => received.unwrap(),
    };
    datagram.truncate(length);
    datagram
}

/// A repeatable stream of numbers (xorshift64, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % sides
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.roll(256) as u8).collect()
    }

    fn upto(&mut self, length: usize) -> Vec<u8> {
        let length = self.roll(length);
        self.bytes(length)
    }

    fn garbage(&mut self, initial: &[u8]) -> Vec<u8> {
        let mut packet = initial.to_vec();
        match self.roll(10) {
            0 => packet = self.upto(1_472),
            // Looks like a packet of a connection that we do not know.
            1 => packet = [vec![0x40 | self.roll(64) as u8], self.upto(200)].concat(),
            2 => packet.truncate(self.roll(initial.len())),
            // Another version.
            3 => packet[1 + self.roll(4)] ^= 1 << self.roll(8),
            // Header: connection ids, token, lengths.
            4 => packet[5 + self.roll(40)] = self.roll(256) as u8,
            // Protected bytes: what decryption must notice.
            5 => {
                for _ in 0..=self.roll(16) {
                    let at = self.roll(packet.len());
                    packet[at] ^= 1 << self.roll(8);
                }
            }
            // A good packet with something behind it.
            6 => packet.extend(self.upto(200)),
            // Well encrypted, but no frames in it.
            7 => packet = self.sealed(&[]),
            // Well encrypted, a CRYPTO frame (RFC 9000 §19.6) with a ClientHello (RFC 8446 §4.1.2) of 996
            // bytes that are anything.
            8 => packet = self.sealed(&[0x06, 0, 0x43, 0xe8, 1, 0, 0x03, 0xe4, 3, 3]),
            // A replay.
            _ => {}
        }
        packet
    }

    /// A well encrypted Initial packet (RFC 9001 §5.2) with `frames` and random bytes in it.
    fn sealed(&mut self, frames: &[u8]) -> Vec<u8> {
        let id = self.bytes(8);
        let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
        let quic = suite.quic.unwrap();
        let keys =
            rustls::quic::Keys::initial(rustls::quic::Version::V1, suite, quic, &id, rustls::Side::Client);
        let mut payload = [frames, &self.bytes(1_200 - frames.len())].concat();
        // Four bytes of packet number, then payload and tag: 1,220 as a two-byte integer.
        let mut header = [&[0xc3, 0, 0, 0, 1, 8], &id[..], &[0, 0, 0x44, 0xc4], &[0; 4]].concat();
        let tag = keys.local.packet.encrypt_in_place(0, &header, &mut payload).unwrap();
        payload.extend_from_slice(tag.as_ref());
        let (first, rest) = header.split_at_mut(1);
        let number = rest.len() - 4;
        keys.local.header.encrypt_in_place(&payload[..16], &mut first[0], &mut rest[number..]).unwrap();
        [header, payload].concat()
    }
}

/// Throws `count` datagrams of garbage at a central, lets a site in after every hundred, and returns how
/// many of them looked like the beginning of a handshake and came to nothing.
async fn throw_garbage(limits: Limits, count: usize) -> usize {
    let authority = Authority::new("fleet");
    let listener = authority.listen(authority.server(CENTRAL_NAME), loopback(), &keys(1), limits);
    let mut central = Central::start(listener, NOW);
    let mut dice = Dice(0x0dd_ba11);
    for _ in 0..count / 100 {
        // Few at a time: the system would throw away what does not fit the socket's buffer.
        for _ in 0..5 {
            // Central keeps the id of a handshake for a while, so each lot begins with a fresh one.
            let initial = initial_packet(&authority).await;
            assert!(initial.len() >= 1_200, "a client pads its first datagram (RFC 9000 §14.1)");
            let source = UdpSocket::bind(loopback()).unwrap();
            for _ in 0..20 {
                source.send_to(&dice.garbage(&initial), central.address).unwrap();
            }
        }
        let site = connect(&central, authority.site(SITE), &authority).await.unwrap();
        let Guest::Session { connection, .. } = central.next_guest().await else {
            panic!("only the site has a certificate");
        };
        let (mut stream, _none) = connection.open_bi().await.unwrap();
        stream.write_all(b"welcome").await.unwrap();
        stream.finish();
        let (_none, mut greeting) = site.accept_bi().await.unwrap();
        let mut words = Vec::new();
        greeting.read_to_end(&mut words).await.unwrap();
        assert_eq!(words, b"welcome");
    }
    central.refused
}

#[tokio::test]
async fn ten_thousand_datagrams_of_garbage_leave_central_serving() {
    let guarded = throw_garbage(Limits::default(), 5_000).await;
    // Without limits nothing is turned away early, so more of it reaches the handshake.
    let limits = Limits { retry_above: 10_000, handshakes: 10_000, enrolments: 1, ..Limits::default() };
    let open = throw_garbage(limits, 5_000).await;
    println!("5,000 datagrams began {guarded} handshakes, without limits {open}");
    assert!(guarded > 100 && open > 500);
}
