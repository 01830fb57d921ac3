//! TFTP, for firmware that fetches its loader by name. Read-only.
//!
//! `loaders` has what is served; [`Service`] serves it. Nothing outside this folder knows the TFTP
//! library, async-tftp, of which these limits are known: it ignores the ERROR by which EDK2 ends its
//! question for a file's size, and goes on sending that answer until its retries are used up, which
//! [`RETRIES`] makes 18 s; while it does, it does not hear the same client *port* (EDK2 uses a new one
//! each time). It answers from the address that it is bound to, so bind the one that machines are told.

pub mod loaders;

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use async_tftp::{
    packet,
    server::{Handler, TftpServerBuilder},
};
use bytes::Bytes;
use futures_lite::io::{Cursor, Sink};
use tracing::{info, warn};

use self::loaders::Loaders;

/// Largest block, in bytes, whatever is asked: what fits an Ethernet frame, for boot ROMs that cannot put
/// fragments together. tftpd-hpa's manual gives the same figure.
const BLOCK: u16 = 1468;

/// Most blocks under way at once (RFC 7440). Asked for by EDK2, which wants 4.
const WINDOW: u16 = 16;

/// How often a block is sent again, each after 3 s unless the client asks for another time.
const RETRIES: u32 = 5;

/// Pause before a listener that failed is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// No port to serve at.
#[derive(Debug, thiserror::Error)]
#[error("bind TFTP at {address}")]
pub struct BindError {
    /// Address asked for.
    pub address: SocketAddr,
    /// Mostly: another server has the port, or this one may not have it (`CAP_NET_BIND_SERVICE`).
    #[source]
    pub source: io::Error,
}

/// A bound port and what is served there.
#[derive(Debug)]
pub struct Service {
    socket: UdpSocket,
    loaders: Loaders,
}

impl Service {
    /// Binds `address`: the site's boot address and port 69. Rights that this needs may be given up
    /// afterwards. Port 0 takes a free one.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn bind(address: SocketAddr, loaders: Loaders) -> Result<Self, BindError> {
        let socket = UdpSocket::bind(address).map_err(|source| BindError { address, source })?;
        Ok(Self { socket, loaders })
    }

    /// Where it is, for those who asked for port 0.
    ///
    /// # Errors
    /// When the kernel does not tell; not seen.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until the future is dropped. When the listener fails it is started again on the same socket;
    /// transfers under way are then cut, and firmware asks again.
    pub async fn run(self) -> std::convert::Infallible {
        loop {
            let Err(error) = self.serve().await;
            warn!(%error, "tftp listener failed");
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    async fn serve(&self) -> Result<std::convert::Infallible, async_tftp::Error> {
        TftpServerBuilder::with_handler(ReadOnly(self.loaders.clone()))
            .std_socket(self.socket.try_clone()?)?
            .block_size_limit(BLOCK)
            .window_size_limit(WINDOW)
            .max_send_retries(RETRIES)
            .build()
            .await?
            .serve()
            .await?;
        Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    }
}

struct ReadOnly(Loaders);

impl Handler for ReadOnly {
    type Reader = Cursor<Bytes>;
    type Writer = Sink;

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Self::Reader, Option<u64>), packet::Error> {
        // Firmware may ask for anything, and shim asks for files that nobody has; the log tells which.
        let asked = path.to_string_lossy();
        let Some(content) = self.0.get(&asked) else {
            info!(%client, file = %asked.escape_debug(), "tftp file not found");
            return Err(packet::Error::FileNotFound);
        };
        info!(%client, file = %asked.escape_debug(), bytes = content.len(), "tftp file opened");
        let size = u64::try_from(content.len()).ok();
        Ok((Cursor::new(content.clone()), size))
    }

    async fn write_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
        _size: Option<u64>,
    ) -> Result<Self::Writer, packet::Error> {
        info!(%client, file = %path.to_string_lossy().escape_debug(), "tftp write refused");
        Err(packet::Error::PermissionDenied)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use tokio::{task::AbortHandle, time::timeout};

    use super::*;

    /// A service on a free loopback port, with one loader.
    struct World {
        address: SocketAddr,
        content: Bytes,
        service: AbortHandle,
    }

    impl World {
        fn new(bytes: usize) -> Self {
            Self::with(bytes, |_| ())
        }

        fn with(bytes: usize, before: impl FnOnce(&UdpSocket)) -> Self {
            let content: Bytes = (0..bytes).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect();
            let mut loaders = Loaders::default();
            loaders.insert("snponly.efi", content.clone());
            let service = Service::bind("127.0.0.1:0".parse().unwrap(), loaders).unwrap();
            before(&service.socket);
            let address = service.local_address().unwrap();
            Self { address, content, service: tokio::spawn(service.run()).abort_handle() }
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.service.abort();
        }
    }

    /// A TFTP client, one per transfer.
    struct Client(tokio::net::UdpSocket);

    impl Client {
        async fn new() -> Self {
            Self(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap())
        }

        async fn receive(&self) -> (Vec<u8>, SocketAddr) {
            let mut buffer = vec![0; 65_536];
            let received = timeout(Duration::from_secs(20), self.0.recv_from(&mut buffer)).await;
            let (length, from) = received.expect("a packet in time").unwrap();
            buffer.truncate(length);
            (buffer, from)
        }

        /// Asks for a file, and returns the server's first packet as text, or the whole file with the
        /// options it was sent by. Loopback loses nothing, so there is no repeating.
        async fn fetch(
            &self,
            server: SocketAddr,
            request: &[u8],
            block: usize,
            window: usize,
        ) -> (String, Vec<u8>) {
            self.0.send_to(request, server).await.unwrap();
            let (mut packet, peer) = self.receive().await;
            let mut options = String::from("no options");
            match packet[1] {
                5 => return (format!("error {}: {}", packet[3], text(&packet[4..])), Vec::new()),
                6 => {
                    options = text(&packet[2..]);
                    self.0.send_to(&[0, 4, 0, 0], peer).await.unwrap();
                    packet = self.receive().await.0;
                }
                _ => {}
            }
            let (mut content, mut expected) = (Vec::new(), 1_u16);
            loop {
                assert_eq!((packet[1], u16::from_be_bytes([packet[2], packet[3]])), (3, expected));
                content.extend_from_slice(&packet[4..]);
                let last = packet.len() < 4 + block;
                if last || usize::from(expected) % window == 0 {
                    self.0.send_to(&[0, 4, packet[2], packet[3]], peer).await.unwrap();
                }
                if last {
                    return (options, content);
                }
                expected = expected.wrapping_add(1);
                packet = self.receive().await.0;
            }
        }
    }

    fn text(strings: &[u8]) -> String {
        String::from_utf8_lossy(strings).trim_end_matches('\0').replace('\0', " ")
    }

    #[tokio::test]
    async fn p4_a_loader_arrives_whole_in_the_blocks_that_were_asked_for() {
        let check = async |bytes: usize, options: &str, block: usize, window: usize, expected: Expect| {
            let world = World::new(bytes);
            let request = format!("\0\x01snponly.efi\0octet\0{}", options.replace(' ', "\0"));
            let (options, content) =
                Client::new().await.fetch(world.address, request.as_bytes(), block, window).await;
            assert_eq!(content, world.content);
            expected.assert_eq(&options);
        };
        check(200_000, "", 512, 1, expect!["no options"]).await;
        check(200_000, "tsize 0 blksize 1468 ", 1468, 1, expect!["blksize 1468 tsize 200000"]).await;
        check(200_000, "blksize 1432 tsize 0 ", 1432, 1, expect!["blksize 1432 tsize 200000"]).await;
        check(200_000, "blksize 65464 windowsize 64 ", 1468, 16, expect!["blksize 1468 windowsize 16"]).await;
        // A last block that is full is followed by an empty one; more than 65 535 blocks roll over.
        check(1468 * 3, "blksize 1468 ", 1468, 1, expect!["blksize 1468"]).await;
        check(8 * 66_000, "blksize 8 windowsize 16 ", 8, 16, expect!["blksize 8 windowsize 16"]).await;
        check(0, "tsize 0 ", 512, 1, expect!["tsize 0"]).await;
    }

    /// As captured from OVMF 2022.11: the size first, broken off, and the file from the next port.
    #[tokio::test]
    async fn p4_ovmf_gets_its_loader_after_asking_for_its_size() {
        let world = World::new(224_000);
        let first = Client::new().await;
        let request = b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0";
        first.0.send_to(request, world.address).await.unwrap();
        let (packet, peer) = first.receive().await;
        expect!["blksize 1468 tsize 224000 windowsize 4"].assert_eq(&text(&packet[2..]));
        first.0.send_to(b"\0\x05\0\x08User aborted the transfer\0", peer).await.unwrap();

        let request = b"\0\x01snponly.efi\0octet\0blksize\x001468\0windowsize\x004\0";
        let (options, content) = Client::new().await.fetch(world.address, request, 1468, 4).await;
        expect!["blksize 1468 windowsize 4"].assert_eq(&options);
        assert_eq!(content, world.content);
    }

    #[tokio::test]
    async fn what_is_not_served_is_refused_at_once() {
        let world = World::new(1);
        let check = async |request: &[u8], expected: Expect| {
            let (answer, _) = Client::new().await.fetch(world.address, request, 512, 1).await;
            expected.assert_eq(&answer);
        };
        check(b"\0\x01revocations_sku.efi\0octet\0blksize\x00512\0", expect!["error 1: File not found"])
            .await;
        check(b"\0\x01../../etc/passwd\0octet\0", expect!["error 1: File not found"]).await;
        check(b"\0\x01/etc/passwd\0octet\0", expect!["error 1: File not found"]).await;
        check(b"\0\x01\0octet\0", expect!["error 1: File not found"]).await;
        check(b"\0\x02snponly.efi\0octet\0", expect!["error 2: Permission denied"]).await;
    }

    #[tokio::test]
    async fn a_listener_that_fails_is_started_again() {
        let mut handle = None;
        let world = World::with(1_000, |socket| {
            // A UDP socket that is connected to a closed port fails its next receive: ECONNREFUSED.
            let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let twin = socket.try_clone().unwrap();
            twin.connect(nobody).unwrap();
            twin.send(b"x").unwrap();
            handle = Some(twin);
        });
        let client = Client::new().await;
        handle.unwrap().connect(client.0.local_addr().unwrap()).unwrap();
        let (_, content) = client.fetch(world.address, b"\0\x01snponly.efi\0octet\0", 512, 1).await;
        assert_eq!(content, world.content);
    }
}
