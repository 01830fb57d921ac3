//! UDP sockets that know by which interface a datagram came, and can answer from there.
//!
//! A [`Socket`] is one port, on one interface or on all. Broadcasts reach only sockets bound to 0.0.0.0,
//! which then do not know which of the machine's addresses was meant, nor where a broadcast should leave;
//! `IP_PKTINFO` (ip(7)) tells both. There is no raw socket: replies go to clients that answer ARP, to
//! relays, or to everybody.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
};

use nix::{
    libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
        sockopt::Ipv4PacketInfo,
    },
};
use tokio::{io::Interest, net::UdpSocket};

/// Longest datagram read, in bytes. DHCP messages end below an Ethernet frame; the rest is room for relays.
const MAX_DATAGRAM: usize = 2048;

/// A port could not be had.
#[derive(Debug, thiserror::Error)]
#[error("bind UDP port {address} on {}", interface.as_deref().unwrap_or("all interfaces"))]
pub struct BindError {
    /// Address and port asked for.
    pub address: SocketAddrV4,
    /// Interface asked for.
    pub interface: Option<String>,
    /// Mostly: another server has the port, or this one may not have it (`CAP_NET_BIND_SERVICE`).
    #[source]
    pub source: io::Error,
}

/// One UDP port.
#[derive(Debug)]
pub struct Socket {
    udp: UdpSocket,
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Content.
    pub bytes: Vec<u8>,
    /// Who sent it; 0.0.0.0:68 where it has no address yet.
    pub source: SocketAddrV4,
    /// By which way it came, to be answered by the same.
    pub path: Path,
}

/// A way between this machine and a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Address of this machine that the datagram was meant for: the one it was sent to, or, where that
    /// was a broadcast, the one by which that network knows this machine.
    pub local: Ipv4Addr,
    /// Index of the interface (netdevice(7)), never negative.
    pub interface: i32,
}

impl Socket {
    /// Binds `address`, on `interface` only where one is named (`SO_BINDTODEVICE`, socket(7)).
    ///
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the address is not this machine's, is taken, or needs a right that this process has not.
    pub fn bind(interface: Option<&str>, address: SocketAddrV4) -> Result<Self, BindError> {
        Self::open(interface, address).map_err(|source| BindError {
            address,
            interface: interface.map(str::to_owned),
            source,
        })
    }

    fn open(interface: Option<&str>, address: SocketAddrV4) -> io::Result<Self> {
        use socket2::{Domain, Protocol, Type};
        let socket =
            socket2::Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        // An address server may run on the same machine: both then get a copy of each broadcast.
        socket.set_reuse_address(true)?;
        socket.set_broadcast(true)?;
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
        if let Some(interface) = interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        socket.bind(&SocketAddr::V4(address).into())?;
        Ok(Self { udp: UdpSocket::from_std(socket.into())? })
    }

    /// Address and port it has, for those who asked for port 0.
    ///
    /// # Errors
    /// When the kernel does not tell; not seen.
    pub fn local_address(&self) -> io::Result<SocketAddrV4> {
        match self.udp.local_addr()? {
            SocketAddr::V4(address) => Ok(address),
            SocketAddr::V6(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Waits for the next datagram.
    ///
    /// # Errors
    /// Those of recvmsg(2); `InvalidData` for a datagram that is cut, or whose way is not told. The socket
    /// stays usable. Dropping the future loses nothing.
    pub async fn recv(&self) -> io::Result<Datagram> {
        self.udp.async_io(Interest::READABLE, || receive(&self.udp)).await
    }

    /// Sends `bytes` to `to`, from the address and, where `to` is a broadcast, by the interface of `path`.
    ///
    /// # Errors
    /// Those of sendmsg(2). The socket stays usable.
    pub async fn send(&self, bytes: &[u8], to: SocketAddrV4, path: Path) -> io::Result<()> {
        let info = libc::in_pktinfo {
            // Only a broadcast says nothing about where to: anything else may be routed.
            ipi_ifindex: if to.ip().is_broadcast() { path.interface } else { 0 },
            ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(path.local.octets()) },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let send = || {
            sendmsg(
                self.udp.as_raw_fd(),
                &[IoSlice::new(bytes)],
                &[ControlMessage::Ipv4PacketInfo(&info)],
                MsgFlags::empty(),
                Some(&SockaddrIn::from(to)),
            )
            .map_err(io::Error::from)
        };
        self.udp.async_io(Interest::WRITABLE, send).await.map(drop)
    }
}

#[cfg(test)]
impl Socket {
    /// Another handle of the same socket, by which a test can break it.
    pub(super) fn duplicate(&self) -> std::net::UdpSocket {
        use std::os::fd::AsFd;
        self.udp.as_fd().try_clone_to_owned().unwrap().into()
    }
}

fn receive(udp: &UdpSocket) -> io::Result<Datagram> {
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut control = nix::cmsg_space!(libc::in_pktinfo);
    let (length, source, path) = {
        let mut pieces = [IoSliceMut::new(&mut buffer)];
        let received =
            recvmsg::<SockaddrIn>(udp.as_raw_fd(), &mut pieces, Some(&mut control), MsgFlags::empty())?;
        let path = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(Path {
                local: Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()),
                interface: info.ipi_ifindex,
            }),
            _ => None,
        });
        let whole = !received.flags.contains(MsgFlags::MSG_TRUNC);
        (received.bytes, received.address.filter(|_| whole), path)
    };
    let (source, path) = source.zip(path).ok_or(io::ErrorKind::InvalidData)?;
    buffer.truncate(length);
    Ok(Datagram { bytes: buffer, source: SocketAddrV4::new(source.ip(), source.port()), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback(port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
    }

    #[tokio::test]
    async fn a_reply_leaves_from_the_address_that_was_asked() {
        // Both are on the loopback interface; a reply by the route alone would come from 127.0.0.1.
        let asked = Ipv4Addr::new(127, 0, 0, 5);
        let server = Socket::bind(None, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = server.local_address().unwrap().port();
        let client = UdpSocket::bind(loopback(0)).await.unwrap();
        client.send_to(b"question", (asked, port)).await.unwrap();

        let datagram = server.recv().await.unwrap();
        assert_eq!((datagram.bytes.as_slice(), datagram.path.local), (&b"question"[..], asked));
        server.send(b"answer", datagram.source, datagram.path).await.unwrap();

        let mut buffer = [0; 16];
        let (length, from) = client.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"answer"[..], SocketAddrV4::new(asked, port).into()));
    }

    #[tokio::test]
    async fn a_datagram_that_is_too_long_is_an_error_and_the_next_one_is_read() {
        let server = Socket::bind(None, loopback(0)).unwrap();
        let client = UdpSocket::bind(loopback(0)).await.unwrap();
        let to = server.local_address().unwrap();
        client.send_to(&[1; MAX_DATAGRAM + 1], to).await.unwrap();
        client.send_to(&[2; MAX_DATAGRAM], to).await.unwrap();
        assert_eq!(server.recv().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(server.recv().await.unwrap().bytes, [2; MAX_DATAGRAM]);
    }

    #[tokio::test]
    async fn a_port_that_cannot_be_had_is_named() {
        // TEST-NET-1, RFC 5737: no machine has it.
        let address = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 67);
        let error = Socket::bind(None, address).unwrap_err();
        expect_test::expect!["bind UDP port 192.0.2.1:67 on all interfaces"].assert_eq(&error.to_string());
    }
}
