//! Anybody on the network can send anything to every port.
//!
//! 10,000 packets each for DHCP, the boot server, TFTP and QUIC, and as many connections to central's TCP port:
//! bytes without sense, captured packets with some bytes changed, and what looks like the beginning of something.
//! After each hundred of each a machine powers on through all of the site's ports and must be told what it was
//! told before.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use harness::{machine::Told, programs::Program, random::Random, rest};
use sync::id::MacAddr;

use crate::office::{self, Office, SOON, mac, machine};

const PACKETS: usize = 10_000;
const ROUND: usize = 100;

/// Packets that the system may hold for a program until it reads them: a socket's buffer is small.
const BURST: usize = 20;

/// Addresses that TFTP is asked from. Each may have one transfer under way, which ties up a socket for 18 s.
const TFTP_CLIENTS: usize = 128;

/// What a program may hold more of afterwards, in bytes: freed memory is not all given back.
const GROWTH: u64 = 48 << 20;

#[test]
fn h6_ten_thousand_packets_of_garbage_on_every_port_leave_both_programs_at_work() {
    let mut office = Office::open();
    let (workflow, _) = office.publish("debian-12", [60_000, 200_000]);
    // One that is there before, to be asked for again and again, and one whose order waits.
    let (mut watch, mut last) = (machine(3), machine(1));
    office.describe(watch.mac);
    office.order(last.mac, &workflow);
    office.wait_for_ready(1, SOON);
    office.settle(SOON);
    let captured = captured_packets();
    let initial = initial_packet(&office);
    let hello = client_hello(&office);
    let mut callers = Callers::default();
    let mut random = Random::new(0x6a7b);
    let senders: Vec<UdpSocket> =
        (0..TFTP_CLIENTS).map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port")).collect();
    let mut still_well = |office: &Office| {
        let told = watch.power_on(&office.site);
        assert_eq!((told, &watch.damaged), (Told::LocalDisk, &Vec::new()));
    };
    still_well(&office);

    let before = [&office.site.program, &office.central.program].map(Program::resident_bytes);
    let lost_before = lost_packets();
    let begun = Instant::now();
    for _ in 0..PACKETS / ROUND {
        let mut salvo = |to: SocketAddr, make: &mut dyn FnMut(&mut Random) -> Vec<u8>| {
            for nth in 0..ROUND {
                let sender = &senders[usize::try_from(random.below(TFTP_CLIENTS as u64)).expect("few")];
                let packet = make(&mut random);
                drop(sender.send_to(&packet, to));
                if nth % BURST == BURST - 1 {
                    drained(to);
                }
            }
        };
        let mut dhcp = |random: &mut Random| garbage(random, &captured);
        salvo(office.site.dhcp, &mut dhcp);
        salvo(office.site.pxe, &mut dhcp);
        salvo(office.site.tftp, &mut read_request);
        salvo(office.central.quic, &mut |random| stranger(random, &initial));
        for _ in 0..ROUND {
            callers.call(&mut random, office.central.quic, &hello);
        }
        still_well(&office);
    }
    println!(
        "4 × {PACKETS} packets in {:.1?}, {} of them lost by the system; answers: {}",
        begun.elapsed(),
        lost_packets() - lost_before,
        answers(&senders, &office)
    );
    println!("{PACKETS} connections to TCP: {:?}", callers.outcomes);
    assert!(callers.outcomes.len() >= 4, "every kind of end was seen");
    drop(callers);
    for to in [office.site.rest.address(), office.central.rest.address()] {
        let answers = throw_requests(&mut random, to);
        println!("{to} answered {answers}");
    }
    // Addresses that somebody makes up, each asking for its boot script.
    for _ in 0..1_000 {
        let made_up = MacAddr(random.bytes());
        let url = format!("http://{}/boot/{made_up}", office.site.rest.address());
        assert_eq!(rest::fetch(&url).map(|(status, _)| status), Ok(200));
    }
    still_well(&office);

    for (program, before) in [(&mut office.site.program, before[0]), (&mut office.central.program, before[1])]
    {
        assert!(program.runs());
        let after = program.resident_bytes();
        println!("resident: {} MiB before, {} MiB after", before >> 20, after >> 20);
        assert!(after < before + GROWTH, "{before} bytes have become {after}");
        assert!(!program.log().contains("panicked"), "{}", program.log());
    }
    // Strangers get in as before, nothing was lost, and a machine installs.
    let home = office.central.folder.join("oslo");
    office::enrol(&office.central, &office.wire, &home, "oslo");
    office::install(&mut last, (&office.site).into()).expect("its order waited");
    office.settle(SOON);
    office::assert_nothing_lost(&office.central, &office.site, &[last]);
    let journal = office.site.rest.list(&format!("/journal?site={}", office.site.id));
    println!("the journal of the site has {} entries", journal.len());
    assert!(journal.len() < 400, "who makes up addresses cannot fill the journal");
    assert_eq!(office.central.rest.list("/nodes").len(), 2, "nobody became a machine of the fleet");
}

/// DHCP packets of real firmware.
fn captured_packets() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/packets");
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("fixtures").flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|it| it == "bin"));
    // A folder has no order, and a seed should mean the same everywhere.
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a packet")).collect()
}

/// One of `packets` with some bytes changed, cut, or doubled; or bytes without any sense.
fn garbage(random: &mut Random, packets: &[Vec<u8>]) -> Vec<u8> {
    if packets.is_empty() || random.chance(15) {
        let length = random.below(1_400);
        return (0..length).map(|_| random.draw().to_le_bytes()[0]).collect();
    }
    let mut packet = packets[index(random, packets.len())].clone();
    for _ in 0..random.below(12) {
        let at = index(random, packet.len());
        packet[at] = match random.below(4) {
            0 => 0,
            1 => 255,
            2 => packet[at] ^ (1 << random.below(8)),
            _ => random.draw().to_le_bytes()[0],
        };
    }
    match random.below(10) {
        0 => packet.truncate(index(random, packet.len())),
        1 => {
            let tail = packet.split_off(index(random, packet.len()));
            packet.extend(tail.repeat(2));
        }
        _ => {}
    }
    packet
}

/// A TFTP request that is almost one.
fn read_request(random: &mut Random) -> Vec<u8> {
    const FILES: [&str; 6] =
        ["undionly.kpxe", "snponly.efi", "ipxe.efi", "../../../etc/passwd", "/etc/passwd", "%s%n\u{7f}"];
    const OPTIONS: [&str; 5] = ["blksize", "tsize", "windowsize", "timeout", "rollover"];
    const VALUES: [&str; 6] = ["0", "8", "1468", "65464", "99999999999999999999", "-1"];
    let mut request = vec![0, 1];
    let mut words = vec![FILES[index(random, FILES.len())], "octet"];
    for _ in 0..random.below(4) {
        words.extend([OPTIONS[index(random, OPTIONS.len())], VALUES[index(random, VALUES.len())]]);
    }
    for word in words {
        request.extend(word.as_bytes());
        request.push(0);
    }
    garbage(random, &[request])
}

/// What arrives at a QUIC port from those who want no good.
fn stranger(random: &mut Random, initial: &[u8]) -> Vec<u8> {
    match random.below(10) {
        // The beginning of a handshake that nobody continues.
        0 | 1 => initial.to_vec(),
        // The same to another connection id: it cannot be read, but might be meant.
        2 | 3 => {
            let mut packet = initial.to_vec();
            packet[6..14].copy_from_slice(&random.bytes::<8>());
            packet
        }
        // A long header with anything behind it, as long as an honest one.
        4 | 5 => {
            let mut packet = [
                &[0xc0 | random.bytes::<1>()[0], 0, 0, 0, 1, 8][..],
                &random.bytes::<8>(),
                &[0, 0, 0x44, 0xc4],
            ]
            .concat();
            packet.resize_with(1_200, || random.draw().to_le_bytes()[0]);
            packet
        }
        // A short header: a connection that central does not know.
        6 => [&[0x40 | random.bytes::<1>()[0] >> 2][..], &random.bytes::<48>()].concat(),
        _ => garbage(random, &[initial.to_vec()]),
    }
}

/// The first packet of a machine that wants to enrol, as the shipped program sends it.
fn initial_packet(office: &Office) -> Vec<u8> {
    let nobody = UdpSocket::bind("127.0.0.1:0").expect("a port");
    nobody.set_read_timeout(Some(SOON)).expect("a socket");
    let to = nobody.local_addr().expect("an address").to_string();
    let token = office.central.token("bern");
    let home = office.central.folder.join("bern");
    let data = home.display().to_string();
    fs::create_dir_all(&home).expect("a folder");
    let arguments = ["enroll", "--data-dir", &data, "--central", &to, "--token", &token, "--name", "bern"];
    let mut program = Program::start("bern", "holdfast-site", &arguments, &home.join("enroll.log"));
    let mut buffer = [0; 2_048];
    let (length, _) = nobody.recv_from(&mut buffer).expect("it tries");
    program.kill();
    assert!(length >= 1_200, "a client pads its first datagram (RFC 9000 §14.1)");
    buffer[..length].to_vec()
}

/// The first bytes that the shipped program says over TCP, where nobody answers over UDP.
fn client_hello(office: &Office) -> Vec<u8> {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = nobody.local_addr().expect("an address").to_string();
    let token = office.central.token("genf");
    let home = office.central.folder.join("genf");
    let data = home.display().to_string();
    fs::create_dir_all(&home).expect("a folder");
    let arguments = ["enroll", "--data-dir", &data, "--central", &to, "--token", &token, "--name", "genf"];
    let mut program = Program::start("genf", "holdfast-site", &arguments, &home.join("enroll.log"));
    let (mut call, _) = nobody.accept().expect("it tries");
    call.set_read_timeout(Some(SOON)).expect("a socket");
    let mut buffer = [0; 4_096];
    let length = call.read(&mut buffer).expect("it speaks first");
    program.kill();
    assert_eq!(buffer[..2], [22, 3], "a handshake record of TLS");
    buffer[..length].to_vec()
}

/// Strangers at a TCP port.
#[derive(Default)]
struct Callers {
    /// Those who stay on the line and say no more.
    silent: std::collections::VecDeque<TcpStream>,
    /// How calls ended, and how often.
    outcomes: std::collections::BTreeMap<&'static str, usize>,
}

impl Callers {
    /// Fewer than there are places for one address, so that some of the others get one too.
    const SILENT: usize = 40;

    fn call(&mut self, random: &mut Random, to: SocketAddr, hello: &[u8]) {
        let words = match random.below(6) {
            // A handshake that nobody continues.
            0 => hello.to_vec(),
            1 => hello[..index(random, hello.len())].to_vec(),
            // An honest hello, and nonsense in place of what must follow.
            2 => [hello, &[23, 3, 3, 0, 32], &random.bytes::<32>()].concat(),
            3 => format!("GET / HTTP/1.1\r\nhost: {to}\r\n\r\n").into_bytes(),
            4 => Vec::new(),
            _ => garbage(random, &[hello.to_vec()]),
        };
        let mut stream = TcpStream::connect(to).expect("the port is open");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        // It may hang up before it has read everything.
        drop(stream.write_all(&words));
        let outcome = match random.below(4) {
            0 => {
                self.silent.push_back(stream);
                if self.silent.len() > Self::SILENT {
                    self.silent.pop_front();
                }
                "stayed on the line"
            }
            1 => "went at once",
            _ => {
                drop(stream.shutdown(std::net::Shutdown::Write));
                let mut answer = Vec::new();
                match stream.read_to_end(&mut answer) {
                    Ok(_) if answer.is_empty() => "heard nothing",
                    Ok(_) if answer[0] == 21 => "heard an alert",
                    Ok(_) => "heard a handshake",
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        panic!("left waiting for {SOON:?}")
                    }
                    Err(_) => "was reset",
                }
            }
        };
        *self.outcomes.entry(outcome).or_insert(0) += 1;
    }
}

/// Sends requests that are none to an HTTP port, each on its own connection, and returns how often which class
/// of status was answered.
fn throw_requests(random: &mut Random, to: SocketAddr) -> String {
    let register = format!(
        r#"{{"mac":"{}","report":"00112233445566778899aabbccddeeff","hardware":{{"cpus":2,"disks":[{{"name":"vda","size_bytes":1}}]}}}}"#,
        mac(77)
    );
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let honest = [
        post("/api/v1/nodes/register", &register),
        post("/api/v1/nodes/00/event", "{\"kind\":\"go_ahead\",\"task\":\"00\",\"attempt\":1,\"report\":\"00\"}"),
        get("/boot/52:54:00:00:00:03"),
        get("/blobs/..%2f..%2f..%2fetc%2fpasswd"),
        get("/loaders/../site.toml"),
        get("/api/v1/nodes?limit=18446744073709551616&after=%00"),
        get(&format!("/{}", "a".repeat(9_000))),
        post("/api/v1/nodes/register", &"[".repeat(100_000)),
        post("/api/v1/tasks", &"{\"a\":".repeat(50_000)),
        "POST /api/v1/nodes/register HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n".into(),
        "PUT /api/v1/blobs HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999\r\n\r\nshort".into(),
        format!("GET /health HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(2_000)),
    ]
    .map(String::into_bytes);
    let mut classes = std::collections::BTreeMap::new();
    for nth in 0..600 {
        let request = if nth < honest.len() { honest[nth].clone() } else { garbage(random, &honest) };
        let mut stream = TcpStream::connect(to).expect("the port is open");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        // It may answer, and hang up, before it has read everything.
        drop(stream.write_all(&request));
        drop(stream.shutdown(std::net::Shutdown::Write));
        let mut answer = [0; 12];
        let class = match stream.read_exact(&mut answer) {
            Ok(()) => String::from_utf8_lossy(&answer[9..10]).into_owned() + "xx",
            Err(_) => "nothing".into(),
        };
        *classes.entry(class).or_insert(0) += 1;
    }
    assert!(!classes.contains_key("5xx"), "{classes:?}");
    format!("{classes:?}")
}

/// How many packets came back, and from which service; a sender's own buffer holds the first few hundred.
fn answers(senders: &[UdpSocket], office: &Office) -> String {
    let mut counts = std::collections::BTreeMap::new();
    let mut buffer = [0; 2_048];
    for sender in senders {
        sender.set_nonblocking(true).expect("a socket");
        while let Ok((_, from)) = sender.recv_from(&mut buffer) {
            let service = match from.port() {
                port if port == office.site.dhcp.port() => "DHCP",
                port if port == office.site.pxe.port() => "boot server",
                port if port == office.central.quic.port() => "QUIC",
                _ => "TFTP",
            };
            *counts.entry(service).or_insert(0) += 1;
        }
    }
    // Each service was reached: it found something in the garbage that deserved an answer.
    assert_eq!(counts.len(), 4, "{counts:?}");
    format!("{counts:?}")
}

/// Waits until a program has read everything that was sent to its port (proc_net(5): local address, `rx_queue`).
fn drained(to: SocketAddr) {
    let end = Instant::now() + SOON;
    let waits = || {
        let table = fs::read_to_string("/proc/net/udp").expect("Linux");
        let port = format!(":{:04X}", to.port());
        table.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, queues) = (fields.next(), fields.nth(2));
            local.is_some_and(|it| it.ends_with(&port)) && !queues.is_some_and(|it| it.ends_with(":00000000"))
        })
    };
    while waits() {
        assert!(Instant::now() < end, "nobody reads what was sent to {to}");
        std::thread::yield_now();
    }
}

/// Packets that the system threw away because a program did not read them in time.
fn lost_packets() -> u64 {
    let table = fs::read_to_string("/proc/net/udp").expect("Linux");
    table.lines().skip(1).filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
}

fn index(random: &mut Random, length: usize) -> usize {
    usize::try_from(random.below(length.max(1) as u64)).expect("below a length")
}
