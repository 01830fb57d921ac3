//! Replays packets of real firmware, and ruins of them, through `parse` and `reply`.
//!
//! Each `fixtures/packets/NAME.bin` has a text twin: above the line who sent it, below it what we read in
//! it and what we answer. `UPDATE_EXPECT=1` rewrites what is below.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
};

use dhcproto::{
    Decodable, Decoder,
    v4::{self, borrowed},
};
use expect_test::expect_file;

use super::{
    Door,
    option::{self, Options},
    parse::parse,
    reply::{destination, reply},
};
use crate::boot::{
    loader::{BootServer, choose},
    request::{BootFile, Request, uuid_text},
};

pub(super) const SERVER: BootServer = BootServer { address: Ipv4Addr::new(10, 78, 0, 2), http_port: 8080 };

/// A captured packet, and how it was sent.
pub(super) struct Fixture {
    pub(super) bytes: Vec<u8>,
    pub(super) source: SocketAddrV4,
    pub(super) door: Door,
}

impl Fixture {
    pub(super) fn load(name: &str) -> Self {
        let bytes = std::fs::read(path(name, "bin")).unwrap();
        let sent =
            head(name).lines().find_map(|line| line.strip_prefix("sent      ").map(str::to_owned)).unwrap();
        let (source, target) = sent.split_once(" to ").unwrap();
        let door = if target.ends_with(":4011") { Door::Boot } else { Door::Dhcp };
        Self { bytes, source: source.parse().unwrap(), door }
    }
}

fn path(name: &str, extension: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/packets").join(name).with_extension(extension)
}

/// What a person wrote about a fixture, down to the line.
fn head(name: &str) -> String {
    let twin = std::fs::read_to_string(path(name, "txt")).unwrap();
    let (head, _) = twin.split_once("---\n").unwrap();
    format!("{head}---\n")
}

fn names() -> BTreeSet<String> {
    let folder = std::fs::read_dir(path("x", "bin").parent().unwrap()).unwrap();
    folder
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn t4_every_captured_packet_is_read_and_answered_as_its_twin_says() {
    let names = names();
    assert!(names.len() > 20, "the fixtures are there");
    for name in names {
        let fixture = Fixture::load(&name);
        let twin = head(&name) + &render("packet", &fixture.bytes) + &exchange(&fixture);
        expect_file![path(&name, "txt")].assert_eq(&twin);
    }
}

/// What we make of a packet, for people.
fn exchange(fixture: &Fixture) -> String {
    let (packet, request) = match parse(&fixture.bytes) {
        Ok(parsed) => parsed,
        Err(reason) => return format!("not for us: {reason}\n"),
    };
    let mut text = format!("request   {request}\n{}", details(&request));
    if let Err(reason) = packet.addressed_to(SERVER.address, fixture.door) {
        return text + &format!("not for us: {reason}\n");
    }
    match choose(&request, SERVER) {
        Err(reason) => text += &format!("silent: {reason}\n"),
        Ok(file) => {
            let reply = reply(&packet, &request, &file, SERVER.address).unwrap();
            let to = destination(&packet, fixture.door, fixture.source, 67);
            text += &format!("decision  {file}\nanswer    to {to}\n{}", render("reply", &reply));
        }
    }
    text
}

fn details(request: &Request) -> String {
    let mut text = String::new();
    if let Some(class) = &request.user_class {
        text += &format!("          user class {class}\n");
    }
    if let Some(uuid) = &request.system_uuid {
        text += &format!("          uuid {}\n", uuid_text(uuid));
    }
    if let Some(address) = request.address {
        text += &format!("          address {address}\n");
    }
    text
}

/// Prints a packet field by field, by offset alone.
pub(super) fn render(what: &str, bytes: &[u8]) -> String {
    let hex = |from: usize, to: usize| sync::id::hex(&bytes[from..to]);
    let ip = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
    let name =
        |from: usize, to: usize| bytes[from..to].split(|&byte| byte == 0).next().unwrap().escape_ascii();
    let mut text = format!(
        "{what:<9} {} bytes, op {}, htype {}, hlen {}, hops {}, xid {}, secs {}, flags {}\n",
        bytes.len(),
        bytes[0],
        bytes[1],
        bytes[2],
        bytes[3],
        hex(4, 8),
        u16::from_be_bytes([bytes[8], bytes[9]]),
        hex(10, 12),
    );
    text += &format!(
        "          ciaddr {}, yiaddr {}, siaddr {}, giaddr {}, chaddr {}\n",
        ip(12),
        ip(16),
        ip(20),
        ip(24),
        hex(28, 34),
    );
    text += &format!(
        "          sname \"{}\", file \"{}\", magic {}\n",
        name(44, 108),
        name(108, 236),
        hex(236, 240)
    );
    let mut rest = &bytes[240..];
    loop {
        rest = match rest {
            [option::PAD, after @ ..] => after,
            [option::END, ..] | [] => break,
            [number, length, after @ ..] => {
                let (value, after) = after.split_at(usize::from(*length));
                text += &format!("   {number:>3}    {}\n", shown(value));
                after
            }
            [_] => unreachable!("captured packets are whole"),
        };
    }
    text
}

/// A value as text where it looks like one, else as digits.
fn shown(value: &[u8]) -> String {
    let text = value.strip_suffix(b"\0").unwrap_or(value);
    let is_text = text.len() > 2 && text.iter().all(|byte| (b' '..=b'~').contains(byte));
    if is_text { format!("\"{}\"", value.escape_ascii()) } else { sync::id::hex(value) }
}

/// In these exchanges dnsmasq was the boot server, and the machine booted.
#[test]
fn t4_we_answer_what_dnsmasq_answered_but_for_repeating_names_in_options() {
    let check = |asked: &str, answered: &str, file: &str| {
        let asked = Fixture::load(asked);
        let mut answered = Fixture::load(answered).bytes;
        let (packet, request) = parse(&asked.bytes).unwrap();
        let file = BootFile { next_server: SERVER.address, file: file.to_owned() };
        let ours = reply(&packet, &request, &file, SERVER.address).unwrap();
        // dnsmasq writes into the packet it received, and so gives `secs` back; RFC 2131 table 3 wants zero.
        answered[8..10].fill(0);
        let ours = without_names(&ours);
        assert_eq!(render("reply", &ours), render("reply", &answered));
        assert_eq!(ours, answered);
    };
    check("ovmf-pxe-discover", "dnsmasq-offer-to-ovmf-pxe", "snponly.efi");
    check("ovmf-pxe-request-4011", "dnsmasq-ack-to-ovmf-pxe-4011", "snponly.efi");
    check("snponly-request-4011", "dnsmasq-ack-to-snponly-4011", "http://10.78.0.2:8080/boot2.ipxe");
}

/// A reply without options 66 and 67, in which dnsmasq does not repeat what the header says.
fn without_names(reply: &[u8]) -> Vec<u8> {
    let (header, mut rest) = reply.split_at(option::OPTIONS_AT);
    let mut bytes = header.to_vec();
    while let [number, length, ..] = rest
        && *number != option::END
    {
        let (option, after) = rest.split_at(2 + usize::from(*length));
        if ![option::TFTP_SERVER, option::BOOT_FILE].contains(number) {
            bytes.extend_from_slice(option);
        }
        rest = after;
    }
    bytes.push(option::END);
    bytes.resize(bytes.len().max(300), option::PAD);
    bytes
}

#[test]
fn a_relayed_request_goes_back_through_its_relay_with_what_the_relay_added() {
    let mut fixture = Fixture::load("seabios-plainpxe-discover");
    fixture.bytes[24..28].copy_from_slice(&[10, 1, 0, 1]);
    let end = fixture.bytes.iter().rposition(|&byte| byte == option::END).unwrap();
    fixture.bytes.splice(end..end, *b"\x52\x09\x01\x03g/7\x02\x02sw");
    fixture.source = "10.1.0.1:67".parse().unwrap();
    let (answer, reply) =
        exchange(&fixture).split_once("reply ").map(|(a, r)| (a.to_owned(), r.to_owned())).unwrap();
    let telling = ["answer", "giaddr", "    82"];
    let shown: Vec<_> = answer
        .lines()
        .chain(reply.lines())
        .filter(|line| telling.iter().any(|what| line.contains(what)))
        .collect();
    expect_test::expect![[r#"
        answer    to 10.1.0.1:67
                  ciaddr 0.0.0.0, yiaddr 0.0.0.0, siaddr 10.78.0.2, giaddr 10.1.0.1, chaddr 525400000071
            82    0103672f3702027377"#]]
    .assert_eq(&shown.join("\n"));
}

#[test]
fn a_long_url_is_said_once_and_a_too_long_one_not_at_all() {
    let fixture = Fixture::load("ovmf-http-discover");
    let (packet, request) = parse(&fixture.bytes).unwrap();
    let reply = |length: usize| {
        let url = format!("http://{}", "a".repeat(length - 7));
        let file = BootFile { next_server: SERVER.address, file: url.clone() };
        reply(&packet, &request, &file, SERVER.address).map(|bytes| {
            let boot_file = Options::read(&bytes).get(option::BOOT_FILE).unwrap().to_vec();
            assert_eq!(boot_file, [url.as_bytes(), b"\0"].concat());
            (bytes.len(), bytes[option::FILE_AT.start] != 0)
        })
    };
    assert_eq!(reply(127).unwrap(), (423, true));
    assert_eq!(reply(128).unwrap(), (424, false));
    assert!(reply(1100).unwrap().0 <= packet.room());
    let error = reply(1300).unwrap_err();
    expect_test::expect!["reply of 1594 bytes is longer than the 1444 that the client takes"]
        .assert_eq(&error.to_string());
}

#[test]
fn nothing_that_comes_in_panics_or_makes_a_reply_that_cannot_be_read() {
    let fixtures: Vec<Vec<u8>> = names().iter().map(|name| Fixture::load(name).bytes).collect();
    let (mut answered_mutants, mut answered_random) = (0, 0);
    for seed in 0..10_000 {
        let _seed = Seed(seed);
        let mut random = SplitMix64(seed);
        answered_mutants += usize::from(survives(&mutant(&fixtures, &mut random)));
        answered_random += usize::from(survives(&noise(&mut random)));
    }
    // A test that never gets to the reply would prove little; noise with a whole header gets there, too.
    assert!(answered_mutants > 2_000, "{answered_mutants} mutants were answered");
    assert!(answered_random > 500, "{answered_random} random packets were answered");
}

/// Takes a packet through parse and reply, and returns whether there was one.
fn survives(bytes: &[u8]) -> bool {
    let Ok((packet, request)) = parse(bytes) else { return false };
    let _ = request.to_string();
    for door in [Door::Dhcp, Door::Boot] {
        let _ = packet.addressed_to(SERVER.address, door);
        let to = destination(&packet, door, SocketAddrV4::new(packet.ciaddr, 68), 67);
        assert!(!to.ip().is_unspecified() && !to.ip().is_multicast());
    }
    let Ok(file) = choose(&request, SERVER) else { return false };
    let Ok(bytes) = reply(&packet, &request, &file, SERVER.address) else { return false };

    assert!((300..=packet.room()).contains(&bytes.len()));
    let header = borrowed::Message::new(&bytes).unwrap();
    assert_eq!((header.opcode(), header.xid()), (v4::Opcode::BootReply, packet.xid));
    assert_eq!(header.chaddr(), packet.mac.0);
    let options = Options::read(&bytes);
    assert_eq!(options.address(option::SERVER), Some(SERVER.address));
    for number in [option::MACHINE, option::RELAY] {
        assert_eq!(options.get(number), packet.options.get(number).filter(|value| !value.is_empty()));
    }
    v4::Message::decode(&mut Decoder::new(&bytes)).unwrap();
    true
}

/// A captured packet with one to eight things wrong.
fn mutant(fixtures: &[Vec<u8>], random: &mut SplitMix64) -> Vec<u8> {
    let mut bytes = fixtures[random.below(fixtures.len())].clone();
    for _ in 0..=random.below(8) {
        // Mostly among the options, where the parsing is.
        let from = if random.below(4) == 0 { 0 } else { 240.min(bytes.len()) };
        let at = from + random.below(bytes.len() - from + 1);
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.byte()),
            2 => bytes.extend((0..random.below(300)).map(|_| random.byte())),
            3 => {
                let other = &fixtures[random.below(fixtures.len())];
                let piece = other[random.below(other.len())..].iter().take(random.below(64)).copied();
                bytes.splice(at..at, piece);
            }
            4 => {
                let header = [random.pick(&[43, 52, 53, 54, 57, 60, 77, 82, 93, 97, 175]), random.byte()];
                bytes.splice(at..at, header);
            }
            5 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.pick(&[0, 1, 2, 3, 4, 16, 17, 127, 128, 254, 255]);
                }
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    bytes
}

/// Random bytes of random length, of which most get a header that lets them in.
fn noise(random: &mut SplitMix64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..random.below(1_500)).map(|_| random.byte()).collect();
    if random.below(4) != 0 && bytes.len() >= 260 {
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[28] &= 0xfe;
        bytes[236..240].copy_from_slice(&v4::MAGIC);
        bytes[240..243].copy_from_slice(&[53, 1, random.pick(&[1, 3, 8])]);
        bytes[243..254].copy_from_slice(b"\x3c\x09PXEClient");
        if random.below(2) == 0 {
            bytes[254..258].copy_from_slice(&[93, 2, 0, random.pick(&[0, 7])]);
        }
    }
    bytes
}

/// Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn pick(&mut self, from: &[u8]) -> u8 {
        from[self.below(from.len())]
    }
}

/// Names the seed of a case that fails, wherever it panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}
