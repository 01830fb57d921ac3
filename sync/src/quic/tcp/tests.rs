use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use expect_test::expect;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::{
    id::SiteId,
    quic::{
        Connection, Transport,
        choice::{dial as choose, udp_answers},
        endpoint::{self, Endpoint, Guest, Limits},
        enrol,
        stream::{BlobWriter, FrameReader, FrameWriter, MAX_CHUNK, request_blob},
        testing::{Authority, Central, NOW, SITE, YEAR, clock_at, keys, loopback, serve},
        tls::{Client, Identity, Protocol, client_config},
    },
    time::Timestamp,
};

/// Far longer than anything here takes.
const SOON: Duration = Duration::from_secs(20);

fn site_endpoint() -> Endpoint {
    endpoint::client(loopback(), &keys(2)).unwrap()
}

fn session_tls(authority: &Authority, identity: Identity, now: Timestamp) -> Client {
    client_config(identity, &[authority.certificate()], Protocol::Session, clock_at(now)).unwrap()
}

async fn over_tcp(endpoint: &Endpoint, address: SocketAddr, tls: &Client) -> Connection {
    Connection::over_tcp(dial(address, tls, endpoint.lifeline()).await.unwrap())
}

/// A session over TCP, both ends, and what must live as long.
async fn session() -> (Connection, Connection, Central, Endpoint) {
    let authority = Authority::new("fleet");
    let mut central = serve(&authority);
    let endpoint = site_endpoint();
    let tls = session_tls(&authority, authority.site(SITE), NOW);
    let site = over_tcp(&endpoint, central.address, &tls).await;
    let Guest::Session { connection, peer } = central.next_guest().await else { panic!("a session") };
    assert_eq!((peer.site, connection.transport()), (SITE, Transport::Tcp));
    (site, connection, central, endpoint)
}

#[tokio::test]
async fn frames_go_both_ways_and_the_last_words_arrive_before_the_close() {
    let (site, central, _listens, _endpoint) = session().await;
    let (to_central, from_central) = site.open_bi().await.unwrap();
    let (to_site, from_site) = central.accept_bi().await.unwrap();
    let large: Vec<u8> = (0..200_000_u32).map(|it| (it % 251) as u8).collect();
    let mut writer = FrameWriter::new(to_central, "central");
    let mut reader = FrameReader::new(from_site, "lyon");
    let (written, read) = tokio::join!(writer.write_frame(&large), reader.read_frame());
    written.unwrap();
    assert_eq!(read.unwrap().unwrap(), large);

    // As the driver does it: the refusal, the end, then the close.
    let mut writer = FrameWriter::new(to_site, "lyon");
    writer.write_frame(b"we speak no common version").await.unwrap();
    let mut stream = writer.into_inner();
    stream.finish();
    timeout(SOON, stream.stopped()).await.expect("the site confirms the end");
    CloseCode::Revoked.close(&central, "site lyon left the fleet");
    let mut reader = FrameReader::new(from_central, "central");
    assert_eq!(reader.read_frame().await.unwrap().unwrap(), "we speak no common version");
    assert!(reader.read_frame().await.unwrap().is_none(), "the end came in order");
    let closed = timeout(SOON, site.closed()).await.unwrap();
    expect![[r#"Some((Revoked, "site lyon left the fleet"))"#]]
        .assert_eq(&format!("{:?}", CloseCode::of(&closed)));
    assert!(site.open_bi().await.is_err() && central.accept_bi().await.is_err(), "it is over");
}

#[tokio::test]
async fn a_close_is_heard_through_the_stream_and_by_nobody_else() {
    let (site, central, _listens, _endpoint) = session().await;
    let (_send, receive) = site.open_bi().await.unwrap();
    CloseCode::Stopping.close(&central, "central is stopping");
    let error = FrameReader::new(receive, "central").read_frame().await.unwrap_err();
    expect!["stream with central broke"].assert_eq(&error.to_string());
    expect![[r#"Some((Stopping, "central is stopping"))"#]].assert_eq(&format!("{:?}", error.closed()));
    assert_eq!(central.close_reason(), Some(ConnectionError::LocallyClosed));
}

#[tokio::test]
async fn p15_certificates_are_judged_over_tcp_as_over_quic() {
    let authority = Authority::new("fleet");
    let stranger = Authority::new("stranger");
    let mut central = serve(&authority);
    let later = NOW.after(YEAR + Duration::from_secs(3_600));
    let mut late = authority.serve_at(later);
    let endpoint = site_endpoint();
    let told = async |central: &mut Central, tls: Client| {
        let site = over_tcp(&endpoint, central.address, &tls).await;
        let told = timeout(SOON, site.closed()).await.expect("it is turned away").to_string();
        format!("{told}\n{}", central.refusal().await)
    };

    expect![[r#"
        aborted by peer: the cryptographic handshake failed: error 48
        handshake with <peer> failed: the cryptographic handshake failed: error 48: invalid peer certificate: UnknownIssuer"#]]
    .assert_eq(&told(&mut central, session_tls(&authority, stranger.site(SITE), NOW)).await);
    expect![[r#"
        closed by peer: the certificate names 0 sites instead of one; it was not issued to a site (code 258)
        <peer> was turned away: the certificate names 0 sites instead of one; it was not issued to a site"#]]
    .assert_eq(&told(&mut central, session_tls(&authority, authority.client(&[]), NOW)).await);
    let told = told(&mut late, session_tls(&authority, authority.site(SITE), later)).await;
    let first = told.lines().next().unwrap();
    expect!["closed by peer: the site certificate expired at 2027-11-20T12:00:00.000Z; renew it (code 259)"]
        .assert_eq(first);

    // And central by the site.
    let wrong = session_tls(&stranger, authority.site(SITE), NOW);
    let Err(DialError::Answered(refused)) = dial(central.address, &wrong, endpoint.lifeline()).await else {
        panic!("it is not the pinned one");
    };
    expect!["the cryptographic handshake failed: error 48: invalid peer certificate: UnknownIssuer"]
        .assert_eq(&refused.to_string());
}

#[tokio::test]
async fn a_blob_comes_over_a_connection_of_its_own_and_documents_do_not_wait_behind_it() {
    let (site, central, mut listens, _endpoint) = session().await;
    let (_to_central, from_central) = site.open_bi().await.unwrap();
    let (to_site, _from_site) = central.accept_bi().await.unwrap();
    let asking = tokio::spawn({
        let site = site.clone();
        async move { request_blob(&site, b"big", "central").await.unwrap().unwrap() }
    });
    let Guest::Content { connection, peer } = listens.next_guest().await else { panic!("content") };
    assert_eq!(peer.site, SITE);
    let (send, receive) = connection.accept_bi().await.unwrap();
    let asked = FrameReader::new(receive, "lyon").read_frame().await.unwrap().unwrap();
    assert_eq!(asked, "big");
    let piece = Bytes::from(vec![7; MAX_CHUNK]);
    let size = 64 * MAX_CHUNK as u64;
    let sending = tokio::spawn(async move {
        let mut writer = BlobWriter::open(send, size, "lyon").await.unwrap();
        for _ in 0..64 {
            writer.write(piece.clone()).await.unwrap();
        }
        writer.finish();
    });
    let mut blob = asking.await.unwrap();
    // Nobody reads the blob now, and central cannot send more of it.
    FrameWriter::new(to_site, "lyon").write_frame(b"change").await.unwrap();
    let frame = timeout(SOON, FrameReader::new(from_central, "central").read_frame()).await.unwrap();
    assert_eq!(frame.unwrap().unwrap(), "change");
    let mut got = 0;
    while let Some(piece) = blob.next().await.unwrap() {
        assert!(piece.iter().all(|byte| *byte == 7));
        got += piece.len() as u64;
    }
    assert_eq!((blob.size(), got), (size, size));
    sending.await.unwrap();
    drop(blob);
    let closed = timeout(SOON, connection.closed()).await.expect("nobody holds the other end any more");
    assert!(matches!(CloseCode::of(&closed), Some((CloseCode::Done, _))), "{closed}");
    assert!(site.close_reason().is_none(), "the session goes on");
}

#[tokio::test]
async fn whoever_wants_no_more_of_a_blob_stops_it_at_its_source() {
    let (site, central, mut listens, _endpoint) = session().await;
    let (_control, _from_site) = (site.open_bi().await.unwrap(), central.accept_bi().await.unwrap());
    let asking = tokio::spawn({
        let site = site.clone();
        async move { request_blob(&site, b"big", "central").await.unwrap().unwrap() }
    });
    let Guest::Content { connection, .. } = listens.next_guest().await else { panic!("content") };
    let (send, _receive) = connection.accept_bi().await.unwrap();
    let mut writer = BlobWriter::open(send, u64::MAX, "lyon").await.unwrap();
    drop(asking.await.unwrap());
    let stopped = async { while writer.write(Bytes::from(vec![0; MAX_CHUNK])).await.is_ok() {} };
    timeout(SOON, stopped).await.expect("it does not go on for ever");
}

#[tokio::test]
async fn a_silent_peer_is_lost_after_the_idle_time_and_a_quiet_one_is_not() {
    let pace = carry::Pace { keep_alive: Duration::from_millis(20), idle: Duration::from_millis(200) };
    let (_stop, lifeline) = watch::channel(None);
    let run = |stream, pace| Tcp::start_at(stream, loopback(), None, None, lifeline.clone(), pace);

    // Nobody says a word on the far end of this wire.
    let (near, _far) = duplex(1 << 10);
    let lost = timeout(SOON, run(near, pace).closed()).await.expect("the silence is noticed");
    assert_eq!(lost, ConnectionError::TimedOut);

    // Two connections of which one has much less patience than the other, and neither anything to say.
    let (near, far) = duplex(1 << 10);
    let (one, other) = (run(near, pace), run(far, carry::Pace { idle: SOON, ..pace }));
    let idle = timeout(4 * pace.idle, one.closed()).await;
    assert!(idle.is_err(), "signs of life keep it: {idle:?}");
    other.close(CloseCode::Done.number(), "enough");
    assert!(matches!(one.closed().await, ConnectionError::ApplicationClosed(_)));
}

#[tokio::test]
async fn what_is_no_record_ends_the_connection_with_its_own_code() {
    let (near, mut far) = duplex(1 << 10);
    let (_stop, lifeline) = watch::channel(None);
    let victim = Tcp::start(near, loopback(), None, None, lifeline);
    far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let ended = timeout(SOON, victim.closed()).await.unwrap().to_string();
    assert!(ended.contains("a record of kind 71"), "{ended}");
    let mut said = bytes::BytesMut::new();
    let said = loop {
        assert!(far.read_buf(&mut said).await.unwrap() > 0, "it says why");
        if let Some(record) = record::Record::read(&mut said).unwrap() {
            break record;
        }
    };
    assert!(matches!(&said, record::Record::Close(261, why) if why.contains("kind 71")), "{said:?}");
}

#[tokio::test]
async fn a_listener_that_stops_says_so_over_tcp_and_waits_until_it_was_heard() {
    let authority = Authority::new("fleet");
    let identity = authority.server(CENTRAL_NAME);
    let listener = authority.listen(identity, loopback(), &keys(1), Limits::default());
    let endpoint = site_endpoint();
    let tls = session_tls(&authority, authority.site(SITE), NOW);
    let address = listener.local_address().unwrap();
    let (site, guest) = tokio::join!(over_tcp(&endpoint, address, &tls), async {
        listener.accept().await.unwrap().admit(|| NOW).await.unwrap()
    });
    // Somebody whose handshake is under way does not hold it up.
    let _stranger = TcpStream::connect(address).await.unwrap();
    let newcomer = listener.accept().await.unwrap();
    let admitting = tokio::spawn(async move { newcomer.admit(|| NOW).await.map(drop) });
    let ((), ended) =
        timeout(Duration::from_secs(4), async { tokio::join!(listener.close(), site.closed()) })
            .await
            .unwrap();
    admitting.await.unwrap().unwrap_err();
    assert_eq!(CloseCode::of(&ended), Some((CloseCode::Stopping, "central is stopping".into())));
    let Guest::Session { connection, .. } = guest else { panic!("a session") };
    assert_eq!(connection.close_reason(), Some(ConnectionError::LocallyClosed));
}

#[tokio::test]
async fn strangers_who_say_nothing_take_only_the_places_of_their_own_address() {
    let authority = Authority::new("fleet");
    let limits = Limits { tcp_handshakes_per_address: 2, ..Limits::default() };
    let identity = authority.server(CENTRAL_NAME);
    let listener = authority.listen(identity, loopback(), &keys(1), limits);
    let mut central = Central::start(listener, NOW);
    let first = TcpStream::connect(central.address).await.unwrap();
    let _second = TcpStream::connect(central.address).await.unwrap();
    let mut third = TcpStream::connect(central.address).await.unwrap();
    let hung_up = timeout(SOON, third.read(&mut [0])).await.expect("it is hung up on");
    assert!(matches!(hung_up, Ok(0) | Err(_)), "{hung_up:?}");

    // Another address has its own places, and so has UDP.
    let elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
    elsewhere.bind(([127, 0, 0, 9], 0).into()).unwrap();
    let mut elsewhere = elsewhere.connect(central.address).await.unwrap();
    let waiting = timeout(Duration::from_millis(100), elsewhere.read(&mut [0])).await;
    assert!(waiting.is_err(), "it is waited for: {waiting:?}");
    let tls = session_tls(&authority, authority.site(SITE), NOW);
    central.dial(tls.clone()).await.unwrap();
    assert!(matches!(central.next_guest().await, Guest::Session { .. }));

    drop(first);
    assert!(central.guest().await.is_none(), "the first one has gone");
    let endpoint = site_endpoint();
    over_tcp(&endpoint, central.address, &tls).await;
    assert!(matches!(central.next_guest().await, Guest::Session { .. }), "its place is free again");
}

/// A TCP port that leads to `to`, at an address where nothing answers over UDP. Tells how many came.
async fn tcp_only(to: SocketAddr) -> (SocketAddr, watch::Receiver<usize>) {
    let front = TcpListener::bind(loopback()).await.unwrap();
    let (address, (came, count)) = (front.local_addr().unwrap(), watch::channel(0));
    tokio::spawn(async move {
        while let Ok((mut near, _)) = front.accept().await {
            came.send_modify(|it| *it += 1);
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn h5_where_udp_is_not_answered_tcp_is_and_it_is_remembered() {
    let authority = Authority::new("fleet");
    let mut central = serve(&authority);
    let (address, came) = tcp_only(central.address).await;
    let endpoint = site_endpoint();
    let tls = session_tls(&authority, authority.site(SITE), NOW);
    let first = timeout(SOON, choose(&endpoint, address, tls.clone())).await.unwrap().unwrap();
    assert_eq!(first.transport(), Transport::Tcp);
    assert!(matches!(central.next_guest().await, Guest::Session { .. }));
    assert!(!udp_answers_soon(&endpoint, address, &tls).await, "nothing answers there");
    // The head start of UDP is short now: well below that of a first dial.
    let again = timeout(Duration::from_secs(3), choose(&endpoint, address, tls.clone())).await;
    assert_eq!(again.unwrap().unwrap().transport(), Transport::Tcp);
    assert_eq!(*came.borrow(), 2);

    // UDP is preferred wherever it answers, and found out about without a session.
    assert!(udp_answers(&endpoint, central.address, &tls).await);
    let there = choose(&endpoint, central.address, tls).await.unwrap();
    assert_eq!(there.transport(), Transport::Quic);
}

async fn udp_answers_soon(endpoint: &Endpoint, address: SocketAddr, tls: &Client) -> bool {
    timeout(Duration::from_millis(100), udp_answers(endpoint, address, tls)).await.unwrap_or(false)
}

#[tokio::test]
async fn p15_a_refusal_over_one_transport_is_not_hidden_by_the_other() {
    let authority = Authority::new("fleet");
    let impostor = serve(&Authority::new("impostor"));
    let endpoint = site_endpoint();
    let tls = session_tls(&authority, authority.site(SITE), NOW);
    let refused = choose(&endpoint, impostor.address, tls.clone()).await.unwrap_err();
    expect!["the cryptographic handshake failed: error 48: invalid peer certificate: UnknownIssuer"]
        .assert_eq(&refused.to_string());

    let (address, came) = tcp_only(impostor.address).await;
    let refused = timeout(Duration::from_secs(8), choose(&endpoint, address, tls)).await;
    expect!["the cryptographic handshake failed: error 48: invalid peer certificate: UnknownIssuer"]
        .assert_eq(&refused.expect("it does not wait for UDP").unwrap_err().to_string());
    assert_eq!(*came.borrow(), 1);
}

#[tokio::test]
async fn nobody_over_either_transport_is_told_with_both_reasons() {
    let nobody = TcpListener::bind(loopback()).await.unwrap().local_addr().unwrap();
    let authority = Authority::new("fleet");
    let tls = session_tls(&authority, authority.site(SITE), NOW);
    let error = choose(&site_endpoint(), nobody, tls).await.unwrap_err();
    expect!["nobody answers: no answer within 10 s over UDP, Connection refused (os error 111) over TCP"]
        .assert_eq(&error.to_string());
}

/// A desk that gives out whatever is asked for.
struct Generous(Authority);

impl enrol::Desk for Generous {
    async fn redeem(
        &self,
        _: &enrol::Secret,
        _: &str,
        _: Option<SiteId>,
        request: &[u8],
    ) -> Result<enrol::Issued, enrol::Refusal> {
        Ok(enrol::Issued {
            site: SITE,
            chain: vec![self.0.certify(request, SITE)],
            authority: self.0.certificate(),
            clock: NOW,
        })
    }

    async fn renew(&self, _: &tls::SiteCertificate, request: &[u8]) -> Result<enrol::Issued, enrol::Refusal> {
        self.redeem(&enrol::Secret([0; 32]), "", None, request).await
    }
}

#[tokio::test]
async fn t1_a_machine_enrols_and_renews_where_udp_is_blocked() {
    let desk = Generous(Authority::new("fleet"));
    let mut central = serve(&desk.0);
    let (address, _) = tcp_only(central.address).await;
    let authority = desk.0.certificate();
    let token =
        enrol::Token { fingerprint: crate::blob::Digest::of(&authority), secret: enrol::Secret([1; 32]) };
    let serving = tokio::spawn(async move {
        let mut served = Vec::new();
        for _ in 0..2 {
            let Guest::Enrolment(applicant) = central.next_guest().await else { panic!("an applicant") };
            let outcome = enrol::serve(applicant, &desk).await.unwrap();
            served.push(matches!(outcome, enrol::Served::Issued(SITE)));
        }
        served
    });
    let (site, key) = (site_endpoint(), tls::SiteKey::generate().unwrap());
    let enrolled = enrol::enrol(&site, address, &token, "lyon", None, &key, clock_at(NOW)).await.unwrap();
    let identity = key.identity(enrolled.chain);
    let next = tls::SiteKey::generate().unwrap();
    let renewed = enrol::renew(&site, address, identity, &[authority], &next, clock_at(NOW)).await.unwrap();
    assert!(next.matches(&renewed.chain[0]));
    assert_eq!(serving.await.unwrap(), [true, true]);
}
