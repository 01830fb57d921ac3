//! Reads a DHCP packet of a booting machine, or says why it is not for us.
//!
//! [`parse`] checks the fixed header and makes two things of the rest: the [`Request`] for the decision, and
//! the [`Packet`] that the reply echoes from. [`Packet::addressed_to`] then asks whether the client chose
//! us. Never panics; an option that it cannot read counts as not sent.

use std::net::Ipv4Addr;

use dhcproto::v4::{self, borrowed};
use sync::id::MacAddr;

use super::{
    Door,
    option::{self, Options},
};
use crate::boot::request::{ClientArch, ClientClass, Relay, Request, Step};

/// What the reply needs of the packet it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// What the client wants. Option 53.
    pub message: Message,
    /// Transaction, random per exchange; some clients send 0. `xid`, RFC 2131 §2.
    pub xid: u32,
    /// Bit 15: the client takes broadcasts only. RFC 2131 §2.
    pub flags: u16,
    /// Address that the client has and answers ARP for, or zeros.
    pub ciaddr: Ipv4Addr,
    /// Relay to answer through, or zeros.
    pub giaddr: Ipv4Addr,
    /// Hardware address, `chaddr`.
    pub mac: MacAddr,
    /// Everything that was sent after the header.
    pub options: Options,
}

/// The messages that ask a boot server something. Option 53, RFC 2132 §9.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// 1: asks all servers for an offer.
    Discover,
    /// 3: asks one server for what it offered, or for a boot file.
    Request,
    /// 8: has an address and asks for the rest.
    Inform,
}

/// Why a packet gets no answer, whatever the site thinks of the machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotForUs {
    /// Shorter than the fixed header and magic. RFC 2131 §3.
    #[error("{length} bytes are less than a DHCP header")]
    TooShort {
        /// Bytes received.
        length: usize,
    },
    /// A reply of a server, our own perhaps.
    #[error("op {op} is not a request")]
    NotARequest {
        /// First byte.
        op: u8,
    },
    /// Not Ethernet, or not six bytes of address. EDK2 can be built to send a GUID of 16.
    #[error("hardware type {htype} with {hlen} bytes of address is not Ethernet")]
    NotEthernet {
        /// Second byte.
        htype: u8,
        /// Third byte.
        hlen: u8,
    },
    /// Plain BOOTP.
    #[error("no DHCP magic")]
    NoMagic,
    /// No interface has this address: zeros, or with the group bit.
    #[error("{mac} is no address of an interface")]
    NoInterface {
        /// `chaddr`.
        mac: MacAddr,
    },
    /// No option 53 of one byte.
    #[error("no message type")]
    NoMessage,
    /// A message for address servers (decline, release) or from one.
    #[error("message type {number} does not ask what to boot")]
    OtherMessage {
        /// Option 53.
        number: u8,
    },
    /// No option 60: an operating system that wants an address.
    #[error("no vendor class")]
    NoClass,
    /// Option 60 of an operating system, an installer or a device.
    #[error("vendor class `{class}` does not ask what to boot")]
    OtherClass {
        /// Option 60, cut to 64 characters.
        class: String,
    },
    /// The client chose another server, and says so to all, so that nobody keeps an address for it.
    #[error("chose server {server}")]
    OtherServer {
        /// Option 54.
        server: Ipv4Addr,
    },
    /// The client confirms an address it had before (INIT-REBOOT, RFC 2131 §4.3.2).
    #[error("confirms its address {address}")]
    ConfirmsAddress {
        /// Option 50.
        address: Ipv4Addr,
    },
}

/// Reads one datagram.
///
/// # Errors
/// The reason why it is none of ours. Broken options are no such reason: what can be read counts.
pub fn parse(datagram: &[u8]) -> Result<(Packet, Request), NotForUs> {
    let too_short = || NotForUs::TooShort { length: datagram.len() };
    let header = borrowed::Message::new(datagram).map_err(|_| too_short())?;
    let (op, htype, hlen) = (datagram[0], datagram[1], datagram[2]);
    if op != 1 {
        return Err(NotForUs::NotARequest { op });
    }
    // This guard comes before `chaddr()`, which panics where a length byte points behind the packet.
    if (htype, hlen) != (1, 6) {
        return Err(NotForUs::NotEthernet { htype, hlen });
    }
    if datagram[option::FILE_AT.end..option::OPTIONS_AT] != v4::MAGIC {
        return Err(NotForUs::NoMagic);
    }
    let mac = MacAddr(header.chaddr().try_into().expect("hlen is 6"));
    if mac.0 == [0; 6] || mac.0[0] & 1 == 1 {
        return Err(NotForUs::NoInterface { mac });
    }
    let options = Options::read(datagram);
    let message = message(&options)?;
    let class = class(&options)?;
    let packet = Packet {
        message,
        xid: header.xid(),
        flags: header.flags().into(),
        ciaddr: header.ciaddr(),
        giaddr: header.giaddr(),
        mac,
        options,
    };
    let request = request(&packet, class);
    Ok((packet, request))
}

impl Packet {
    /// Checks that a packet which came through `door` is a question to us, whose option 54 is `server`.
    ///
    /// On port 67 everybody hears everything, and a request names the server it is for, or none where the
    /// client confirms or renews an address, or broadcasts to boot servers (PXE 2.1 §2.2.3). On port 4011
    /// only we hear it, and what firmware writes into option 54 there varies.
    ///
    /// # Errors
    /// `OtherServer` and `ConfirmsAddress`.
    pub fn addressed_to(&self, server: Ipv4Addr, door: Door) -> Result<(), NotForUs> {
        let chosen = self.options.address(option::SERVER);
        let wanted = self.options.address(option::REQUESTED_ADDRESS);
        match (door, self.message, chosen, wanted) {
            (Door::Boot, _, _, _) | (Door::Dhcp, Message::Discover | Message::Inform, _, _) => Ok(()),
            (Door::Dhcp, Message::Request, Some(chosen), _) if chosen == server => Ok(()),
            (Door::Dhcp, Message::Request, Some(server), _) => Err(NotForUs::OtherServer { server }),
            (Door::Dhcp, Message::Request, None, Some(address)) => Err(NotForUs::ConfirmsAddress { address }),
            (Door::Dhcp, Message::Request, None, None) => Ok(()),
        }
    }

    /// Longest UDP payload that may be sent to this client, in bytes.
    ///
    /// Option 57 counts the whole datagram with its IP and UDP headers, 28 bytes; everybody takes 576 of
    /// these (RFC 2131 §2, §3.5). More than fits an Ethernet frame is never used: boot ROMs do not put
    /// fragments together.
    pub fn room(&self) -> usize {
        let datagram = self.options.array(option::MAX_MESSAGE).map_or(576, u16::from_be_bytes);
        usize::from(datagram.clamp(576, 1500)) - 28
    }

    /// Menu item the client chose, which its answer repeats: sub-option 71 of option 43, PXE 2.1 table 2-1.
    pub fn boot_item(&self) -> Option<[u8; 4]> {
        Options::within(self.options.get(option::VENDOR)?).array(option::PXE_BOOT_ITEM)
    }
}

fn message(options: &Options) -> Result<Message, NotForUs> {
    match options.array(option::MESSAGE) {
        Some([1]) => Ok(Message::Discover),
        Some([3]) => Ok(Message::Request),
        Some([8]) => Ok(Message::Inform),
        Some([number]) => Err(NotForUs::OtherMessage { number }),
        None => Err(NotForUs::NoMessage),
    }
}

fn class(options: &Options) -> Result<ClientClass, NotForUs> {
    let value = options.get(option::CLASS).ok_or(NotForUs::NoClass)?;
    [ClientClass::PxeClient, ClientClass::HttpClient]
        .into_iter()
        .find(|class| value.starts_with(class.name().as_bytes()))
        .ok_or_else(|| NotForUs::OtherClass { class: text(value) })
}

fn request(packet: &Packet, class: ClientClass) -> Request {
    let options = &packet.options;
    let user_class = options.get(option::USER_CLASS).map(user_class);
    Request {
        mac: packet.mac,
        step: match packet.message {
            Message::Discover => Step::Discover,
            Message::Request | Message::Inform => Step::Request,
        },
        class,
        arch: arch(options),
        ipxe: user_class.as_deref() == Some("iPXE") || options.get(option::IPXE).is_some(),
        user_class,
        system_uuid: options.get(option::MACHINE).and_then(system_uuid),
        address: (!packet.ciaddr.is_unspecified()).then_some(packet.ciaddr),
        relay: (!packet.giaddr.is_unspecified()).then(|| relay(packet)),
    }
}

/// The first architecture in option 93, else the one in the text of option 60, else a BIOS: that is what
/// sent neither before there was anything else.
fn arch(options: &Options) -> ClientArch {
    let listed = options.get(option::ARCH).and_then(<[u8]>::first_chunk).copied().map(u16::from_be_bytes);
    // "PXEClient:Arch:00007:UNDI:003000", RFC 4578 §2.1 and PXE 2.1 §2.2.
    let named = || {
        let class = text(options.get(option::CLASS)?);
        class.split(":Arch:").nth(1)?.get(..5)?.parse().ok()
    };
    ClientArch::from_number(listed.or_else(named).unwrap_or(0))
}

/// Option 77 is a list of counted strings (RFC 3004 §4), of which the first is taken; iPXE and many others
/// send bare text. What adds up as a list is one: the first letter of a text is a length too long for it.
fn user_class(value: &[u8]) -> String {
    let mut rest = value;
    while let Some((&length, after)) = rest.split_first() {
        match after.split_at_checked(length.into()) {
            Some((entry, after)) if !entry.is_empty() => rest = after,
            Some(_) | None => return text(value),
        }
    }
    text(value.first().map_or(value, |&length| &value[1..=usize::from(length)]))
}

/// Turns option 97 into the order in which a UUID is printed: its first three groups are sent with the
/// lowest byte first, as SMBIOS stores them (DSP0134 §7.2.1). Measured with QEMU's `-uuid`.
fn system_uuid(value: &[u8]) -> Option<[u8; 16]> {
    let (0, uuid) = value.split_first().map(|(kind, uuid)| (*kind, uuid))? else { return None };
    let mut uuid: [u8; 16] = uuid.try_into().ok()?;
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    (uuid != [0; 16] && uuid != [0xff; 16]).then_some(uuid)
}

fn relay(packet: &Packet) -> Relay {
    let info = packet.options.get(option::RELAY).map(Options::within).unwrap_or_default();
    Relay {
        gateway: packet.giaddr,
        circuit_id: info.get(option::RELAY_CIRCUIT).map(<[u8]>::to_vec),
        remote_id: info.get(option::RELAY_REMOTE).map(<[u8]>::to_vec),
    }
}

/// Reads text that ends up in logs and on pages: at most 64 characters, none of them a control character.
fn text(value: &[u8]) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    String::from_utf8_lossy(value).trim_end_matches('\0').chars().take(64).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// A packet with these options and the header of a plain client.
    fn packet(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; option::OPTIONS_AT];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 1]);
        bytes[236..240].copy_from_slice(&v4::MAGIC);
        bytes.extend_from_slice(options);
        bytes
    }

    const DISCOVER: &[u8] = b"\x35\x01\x01";
    const PXE: &[u8] = b"\x3c\x09PXEClient";

    fn check(bytes: &[u8], expected: Expect) {
        let seen = match parse(bytes) {
            Ok((_, request)) => request.to_string(),
            Err(reason) => reason.to_string(),
        };
        expected.assert_eq(&seen);
    }

    #[test]
    fn what_is_no_boot_request_is_refused_by_name() {
        let whole = packet(&[DISCOVER, PXE].concat());
        let with = |at: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            bytes
        };
        check(&whole, expect!["52:54:00:00:00:01 PXEClient x86 BIOS, discover"]);
        check(&[], expect!["0 bytes are less than a DHCP header"]);
        check(&whole[..239], expect!["239 bytes are less than a DHCP header"]);
        check(&whole[..240], expect!["no message type"]);
        check(&with(0, 2), expect!["op 2 is not a request"]);
        check(&with(1, 6), expect!["hardware type 6 with 6 bytes of address is not Ethernet"]);
        check(&with(2, 255), expect!["hardware type 1 with 255 bytes of address is not Ethernet"]);
        check(&with(28, 0x53), expect!["53:54:00:00:00:01 is no address of an interface"]);
        check(&with(239, 0), expect!["no DHCP magic"]);
        check(&packet(&[b"\x35\x02\x01\x01", PXE].concat()), expect!["no message type"]);
        check(&packet(&[b"\x35\x01\x07", PXE].concat()), expect!["message type 7 does not ask what to boot"]);
        check(&packet(DISCOVER), expect!["no vendor class"]);
        check(
            &packet(&[DISCOVER, b"\x3c\x08MSFT\n5.0"].concat()),
            expect!["vendor class `MSFT�5.0` does not ask what to boot"],
        );
    }

    #[test]
    fn architecture_comes_from_93_else_from_60_else_is_bios() {
        let check =
            |options: &[u8], expected: Expect| check(&packet(&[DISCOVER, options].concat()), expected);
        let named = b"\x3c\x20PXEClient:Arch:00011:UNDI:003000";
        check(
            &[&named[..], b"\x5d\x02\0\x07"].concat(),
            expect!["52:54:00:00:00:01 PXEClient x64 UEFI, discover"],
        );
        check(
            &[&named[..], b"\x5d\x04\0\x09\0\x10"].concat(),
            expect!["52:54:00:00:00:01 PXEClient x64 UEFI, discover"],
        );
        check(
            &[&named[..], b"\x5d\x01\0"].concat(),
            expect!["52:54:00:00:00:01 PXEClient arm64 UEFI, discover"],
        );
        check(named, expect!["52:54:00:00:00:01 PXEClient arm64 UEFI, discover"]);
        check(b"\x3c\x14PXEClient:Arch:x:\xff\xff", expect!["no vendor class"]);
        check(
            b"\x3c\x13PXEClient:Arch:x:\xff\xff",
            expect!["52:54:00:00:00:01 PXEClient x86 BIOS, discover"],
        );
    }

    #[test]
    fn ipxe_is_known_by_77_bare_or_counted_and_by_175() {
        let check = |options: &[u8], expected: Expect| {
            let request = parse(&packet(&[DISCOVER, PXE, options].concat())).unwrap().1;
            expected.assert_eq(&format!("{} {:?}", request.ipxe, request.user_class));
        };
        check(b"", expect!["false None"]);
        check(b"\x4d\x04iPXE", expect![[r#"true Some("iPXE")"#]]);
        check(b"\x4d\x05\x04iPXE", expect![[r#"true Some("iPXE")"#]]);
        check(b"\x4d\x08\x04iPXE\x02ab", expect![[r#"true Some("iPXE")"#]]);
        check(b"\x4d\x00", expect![[r#"false Some("")"#]]);
        check(b"\x4d\x02\x00a", expect![[r#"false Some("�a")"#]]);
        check(b"\x4d\x03lab\xaf\x03\xb1\x01\x00", expect![[r#"true Some("lab")"#]]);
    }

    #[test]
    fn uuid_is_turned_round_and_left_out_where_it_was_never_set() {
        let check = |value: &[u8], expected: Expect| {
            let uuid = system_uuid(value).as_ref().map(crate::boot::request::uuid_text);
            expected.assert_eq(uuid.as_deref().unwrap_or("none"));
        };
        let sent = b"\0\x44\x33\x22\x11\x66\x55\x88\x77\x99\xaa\xbb\xcc\xdd\xee\xff\0";
        check(sent, expect!["11223344-5566-7788-99aa-bbccddeeff00"]);
        check(&[&[1], &sent[1..]].concat(), expect!["none"]);
        check(&sent[..16], expect!["none"]);
        check(&[0; 17], expect!["none"]);
        check(&[&[0], &[0xff; 16][..]].concat(), expect!["none"]);
        check(&[], expect!["none"]);
    }

    #[test]
    fn relay_is_read_with_its_port() {
        let mut bytes = packet(&[DISCOVER, PXE, b"\x52\x09\x01\x03g/7\x02\x02sw"].concat());
        bytes[24..28].copy_from_slice(&[10, 1, 0, 1]);
        let relay = parse(&bytes).unwrap().1.relay.unwrap();
        assert_eq!(relay.gateway, Ipv4Addr::new(10, 1, 0, 1));
        assert_eq!(relay.circuit_id.as_deref(), Some(&b"g/7"[..]));
        assert_eq!(relay.remote_id.as_deref(), Some(&b"sw"[..]));
    }

    #[test]
    fn a_request_on_67_is_ours_only_where_it_is_not_for_an_address_server() {
        let us = Ipv4Addr::new(10, 0, 0, 2);
        let check = |message: u8, options: &[u8], door, expected: Expect| {
            let bytes = packet(&[&[53, 1, message], PXE, options].concat());
            let (packet, _) = parse(&bytes).unwrap();
            let verdict = packet.addressed_to(us, door);
            expected.assert_eq(&verdict.map_or_else(|reason| reason.to_string(), |()| "ours".to_owned()));
        };
        check(1, b"", Door::Dhcp, expect!["ours"]);
        check(3, b"\x36\x04\x0a\0\0\x01", Door::Dhcp, expect!["chose server 10.0.0.1"]);
        check(3, b"\x36\x04\x0a\0\0\x02", Door::Dhcp, expect!["ours"]);
        check(3, b"\x36\x04\x0a\0\0\x01", Door::Boot, expect!["ours"]);
        check(3, b"\x32\x04\x0a\0\0\x63", Door::Dhcp, expect!["confirms its address 10.0.0.99"]);
        check(3, b"", Door::Dhcp, expect!["ours"]);
        check(8, b"", Door::Dhcp, expect!["ours"]);
    }

    #[test]
    fn room_follows_option_57_within_reason() {
        let room = |options: &[u8]| parse(&packet(&[DISCOVER, PXE, options].concat())).unwrap().0.room();
        assert_eq!(room(b""), 548);
        assert_eq!(room(b"\x39\x02\x05\xc0"), 1444);
        assert_eq!(room(b"\x39\x02\0\x01"), 548);
        assert_eq!(room(b"\x39\x02\xff\xff"), 1472);
        assert_eq!(room(b"\x39\x01\xff"), 548);
    }
}
