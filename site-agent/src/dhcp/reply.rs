//! Writes what a machine is told as the DHCP packet that its firmware understands, and addresses it.
//!
//! [`reply`] gives the bytes, [`destination`] where they go. What is written follows from how the client
//! reads it, which [`Style`] sums up: firmware differs in whether it takes a boot file from an offer and
//! in what option 43 makes of it. Menus, and the Raspberry Pi's misreading of 43, are absent.

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::{
    Encodable,
    error::EncodeError,
    v4::{
        CLIENT_PORT, DhcpOption, Flags, MIN_PACKET_SIZE, Message as Writer, MessageType, Opcode, SERVER_PORT,
    },
};

use super::{
    Door,
    option::{self, END, FILE_AT, PXE_BOOT_ITEM, PXE_DISCOVERY, SNAME_AT},
    parse::{Message, Packet},
};
use crate::boot::request::{BootFile, ClientArch, ClientClass, Request};

/// A reply that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The client or the network takes no packet of this size; a long URL, mostly.
    #[error("reply of {length} bytes is longer than the {room} that the client takes")]
    TooLong {
        /// Bytes of the reply.
        length: usize,
        /// Bytes that [`Packet::room`] allows.
        room: usize,
    },
    /// The encoder refused.
    #[error("encode reply")]
    Encode(#[source] EncodeError),
}

/// Writes the offer or acknowledgement that gives `file` to a client, from the server whose option 54 is
/// `server`. Gives no address: `yiaddr` stays zero, as a ProxyDHCP server's does (PXE 2.1 §2.2.2).
///
/// Padded to 300 bytes, below which old relays and ROMs drop (RFC 1542 §2.1); at most [`Packet::room`].
///
/// # Errors
/// `TooLong`, when it does not fit even without saying everything twice.
pub fn reply(
    packet: &Packet,
    request: &Request,
    file: &BootFile,
    server: Ipv4Addr,
) -> Result<Vec<u8>, ReplyError> {
    let room = packet.room();
    let mut length = 0;
    for twice in [true, false] {
        let reply = write(packet, request, file, server, twice);
        let mut bytes = encode(&reply, packet.options.get(option::RELAY)).map_err(ReplyError::Encode)?;
        length = bytes.len();
        if length <= room {
            bytes.resize(length.max(MIN_PACKET_SIZE), option::PAD);
            return Ok(bytes);
        }
    }
    Err(ReplyError::TooLong { length, room })
}

/// Returns where the reply to a packet goes, that came through `door` from `source`.
///
/// On port 67: to the relay, to the address that the client has, or to everybody on its network (RFC 2131
/// §4.1), never to the source, which is 0.0.0.0. On 4011, and where `dhcp_port` is an alternate one: back
/// to the source *port* also, since EDK2 asks from 4011 and iPXE from 68.
pub fn destination(packet: &Packet, door: Door, source: SocketAddrV4, dhcp_port: u16) -> SocketAddrV4 {
    let to_source = match door {
        Door::Boot => true,
        Door::Dhcp => dhcp_port != SERVER_PORT,
    };
    if to_source {
        let ip = if is_host(*source.ip()) { *source.ip() } else { Ipv4Addr::BROADCAST };
        SocketAddrV4::new(ip, source.port())
    } else if is_host(packet.giaddr) {
        SocketAddrV4::new(packet.giaddr, SERVER_PORT)
    } else if is_host(packet.ciaddr) {
        SocketAddrV4::new(packet.ciaddr, CLIENT_PORT)
    } else {
        SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT)
    }
}

/// Whether something can be sent to just one host by this address.
fn is_host(address: Ipv4Addr) -> bool {
    !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast()
}

/// What a client makes of a reply.
struct Style {
    /// Whether the boot file is in it.
    file: bool,
    /// Value of option 43, if there is to be one.
    vendor: Option<Vec<u8>>,
}

impl Style {
    fn of(packet: &Packet, request: &Request) -> Self {
        let offer = packet.message == Message::Discover;
        match (request.class, request.arch, request.ipxe) {
            // A BIOS ROM takes the file from the offer where bit 3 of the discovery control says so, and
            // else looks for boot servers by broadcast and multicast (PXE 2.1 table 2-1).
            (ClientClass::PxeClient, ClientArch::X86Bios, false) => {
                Self { file: true, vendor: Some(vendor(packet, &[PXE_DISCOVERY, 1, 0x08])) }
            }
            // iPXE takes the file from the offer and saves itself the question to 4011. UEFI HTTP boot
            // refuses an offer without URL, and never asks a second time.
            (ClientClass::PxeClient, _, true) | (ClientClass::HttpClient, _, _) => {
                Self { file: true, vendor: echo(packet) }
            }
            // EDK2 takes an offer without option 43 for one of BINL and asks 4011 in any case; with 43,
            // some of its descendants ignore the offer. This is what dnsmasq sends, byte for byte.
            (ClientClass::PxeClient, _, false) => Self { file: !offer, vendor: echo(packet) },
        }
    }
}

/// Option 43 that holds the given sub-options, and the menu item if the client named one.
fn vendor(packet: &Packet, sub_options: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    if let Some(item) = packet.boot_item() {
        value.extend_from_slice(&[PXE_BOOT_ITEM, 4]);
        value.extend_from_slice(&item);
    }
    value.extend_from_slice(sub_options);
    value.push(END);
    value
}

fn echo(packet: &Packet) -> Option<Vec<u8>> {
    packet.boot_item().map(|_| vendor(packet, &[]))
}

/// Puts a reply together. `twice` names server and file in the header *and* in options 66 and 67; else
/// only where they fit first.
fn write(packet: &Packet, request: &Request, file: &BootFile, server: Ipv4Addr, twice: bool) -> Writer {
    let style = Style::of(packet, request);
    let (message, ciaddr, flags) = match packet.message {
        // Broadcast, also by a relay: the client has no address to get it under.
        Message::Discover => {
            (MessageType::Offer, Ipv4Addr::UNSPECIFIED, Flags::from(packet.flags).set_broadcast())
        }
        Message::Request | Message::Inform => (MessageType::Ack, packet.ciaddr, Flags::from(packet.flags)),
    };
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut reply =
        Writer::new_with_id(packet.xid, ciaddr, zero, file.next_server, packet.giaddr, &packet.mac.0);
    reply.set_opcode(Opcode::BootReply).set_flags(flags);
    let mut options = vec![
        DhcpOption::MessageType(message),
        DhcpOption::ServerIdentifier(server),
        DhcpOption::ClassIdentifier(request.class.name().into()),
    ];
    options.extend(style.vendor.map(DhcpOption::VendorExtensions));
    if style.file {
        let (name, path) = (file.next_server.to_string(), file.file.as_str());
        // Both fields end in a zero.
        let fits = path.len() < FILE_AT.len();
        if name.len() < SNAME_AT.len() {
            reply.set_sname_str(&name);
        }
        if fits {
            reply.set_fname_str(path);
        }
        // Both options too, which dnsmasq does and firmware is used to; whoever reads by RFC 2132 §2
        // removes it.
        let terminated = |text: &str| [text.as_bytes(), b"\0"].concat();
        if twice {
            options.push(DhcpOption::TFTPServerName(terminated(&name)));
        }
        if twice || !fits {
            options.push(DhcpOption::BootfileName(terminated(path)));
        }
    }
    // Back as it came, since firmware may compare it.
    let machine = packet.options.get(option::MACHINE).map(<[u8]>::to_vec);
    options.extend(machine.map(DhcpOption::ClientMachineIdentifier));
    for option in options {
        reply.opts_mut().insert(option);
    }
    reply
}

/// Gives the bytes of a reply, without the padding. A relay gets its option 82 back exactly and last (RFC
/// 3046 §2.2), put in by hand: dhcproto forgets sub-options it does not know how to read, and writes an
/// option 82 of raw bytes twice.
fn encode(reply: &Writer, relay: Option<&[u8]>) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = reply.to_vec()?;
    let end = bytes.pop();
    assert_eq!(end, Some(END), "dhcproto ends its options");
    for piece in relay.unwrap_or_default().chunks(usize::from(u8::MAX)) {
        let length = u8::try_from(piece.len()).expect("pieces are at most 255 bytes");
        bytes.extend_from_slice(&[option::RELAY, length]);
        bytes.extend_from_slice(piece);
    }
    bytes.push(END);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::dhcp::option::Options;

    /// Where the reply to a request goes; empty text is an address of zeros.
    fn check(door: Door, source: &str, ciaddr: &str, giaddr: &str, dhcp_port: u16, expected: Expect) {
        let ip = |text: &str| if text.is_empty() { Ipv4Addr::UNSPECIFIED } else { text.parse().unwrap() };
        let packet = Packet {
            message: Message::Request,
            xid: 1,
            flags: 0,
            ciaddr: ip(ciaddr),
            giaddr: ip(giaddr),
            mac: sync::id::MacAddr([2, 0, 0, 0, 0, 1]),
            options: Options::default(),
        };
        let to = destination(&packet, door, source.parse().unwrap(), dhcp_port);
        expected.assert_eq(&to.to_string());
    }

    #[test]
    fn on_67_the_reply_goes_to_the_relay_else_to_the_address_else_to_all() {
        check(Door::Dhcp, "0.0.0.0:68", "", "", 67, expect!["255.255.255.255:68"]);
        check(Door::Dhcp, "10.0.0.9:68", "10.0.0.9", "", 67, expect!["10.0.0.9:68"]);
        check(Door::Dhcp, "10.1.0.1:67", "10.1.0.9", "10.1.0.1", 67, expect!["10.1.0.1:67"]);
        // What is no address of one host is not used as one.
        check(Door::Dhcp, "0.0.0.0:68", "224.0.0.1", "255.255.255.255", 67, expect!["255.255.255.255:68"]);
    }

    #[test]
    fn on_4011_and_on_an_alternate_port_the_reply_goes_back_to_the_source() {
        check(Door::Boot, "10.0.0.9:4011", "10.0.0.9", "", 67, expect!["10.0.0.9:4011"]);
        check(Door::Boot, "10.0.0.9:68", "10.0.0.9", "10.1.0.1", 67, expect!["10.0.0.9:68"]);
        check(Door::Boot, "0.0.0.0:4011", "", "", 67, expect!["255.255.255.255:4011"]);
        check(Door::Dhcp, "127.0.0.1:50000", "10.0.0.9", "10.1.0.1", 1067, expect!["127.0.0.1:50000"]);
    }
}
