//! DHCP as a boot server speaks it, beside an address server that gives the addresses (ProxyDHCP).
//!
//! [`Service`] owns the two ports: 67, where machines ask everybody, and 4011, where those that found us ask
//! again. For each packet: `socket` receives, `parse` makes a question of it or says why it is none of
//! ours, the function given to [`Service::run`] decides, `reply` writes the answer, `socket` sends
//! it. `option` has the numbers. Nothing outside this folder knows dhcproto.
//!
//! No leases are given and no offers of other servers are watched, yet.

pub mod option;
pub mod parse;
pub mod reply;
pub mod socket;

#[cfg(test)]
mod replay;

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;
use tracing::{Instrument, debug, info, info_span, warn};

use self::{
    parse::Packet,
    socket::{BindError, Datagram, Path, Socket},
};
use crate::boot::request::{Answer, Request};

/// Questions that may wait for their decision at one time. A rack that is switched on is some dozens, and
/// each asks again after 4 s: what is beyond this is dropped and comes back.
const IN_FLIGHT: usize = 256;

/// Pause after a failed receive: where an interface is gone, the next one fails at once.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// Which of the two ports a packet came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// 67, where clients broadcast to everybody (RFC 2131 §4.1).
    Dhcp,
    /// 4011, where a client asks the boot server it found (PXE 2.1 §2.2.3).
    Boot,
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Door::Dhcp => "dhcp",
            Door::Boot => "boot",
        })
    }
}

/// Where the service listens and what it calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Interface to listen on; none: all. One per service where several networks need several answers.
    pub interface: Option<String>,
    /// Address to bind. 0.0.0.0, since broadcasts reach no other; a loopback address in tests.
    pub address: Ipv4Addr,
    /// Port where machines broadcast: 67. Any other is an *alternate port*: replies go back to the
    /// source address and port, as with dnsmasq's option of that name. 0 takes a free one.
    pub dhcp_port: u16,
    /// Port of the boot server: 4011. 0 takes a free one.
    pub boot_port: u16,
    /// Address the service names itself by, in option 54. Clients send their second question there.
    pub server: Ipv4Addr,
}

impl Config {
    /// Listens on all interfaces, at the ports that firmware knows.
    pub fn new(server: Ipv4Addr) -> Self {
        Self { interface: None, address: Ipv4Addr::UNSPECIFIED, dhcp_port: 67, boot_port: 4011, server }
    }
}

/// The two bound ports.
#[derive(Debug)]
pub struct Service {
    dhcp: Arc<Socket>,
    boot: Arc<Socket>,
    server: Ipv4Addr,
    dhcp_port: u16,
}

impl Service {
    /// Binds both ports. Rights that this needs may be given up afterwards. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// When one of the ports cannot be had; then neither is kept.
    pub fn bind(config: &Config) -> Result<Self, BindError> {
        let bind = |port| Socket::bind(config.interface.as_deref(), SocketAddrV4::new(config.address, port));
        Ok(Self {
            dhcp: Arc::new(bind(config.dhcp_port)?),
            boot: Arc::new(bind(config.boot_port)?),
            server: config.server,
            dhcp_port: config.dhcp_port,
        })
    }

    /// Where a door is, for those who asked for port 0.
    ///
    /// # Errors
    /// When the kernel does not tell; not seen.
    pub fn local_address(&self, door: Door) -> io::Result<SocketAddrV4> {
        self.socket(door).local_address()
    }

    /// Answers, by what `decide` says, until the future is dropped.
    ///
    /// Questions are decided side by side, so that a slow decision holds up nobody else; a client that
    /// asks again meanwhile is decided again. No error of a socket ends it.
    pub async fn run<D, F>(self, decide: D) -> std::convert::Infallible
    where
        D: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let service = Arc::new(self);
        let decide = Arc::new(decide);
        let mut in_flight = JoinSet::new();
        loop {
            let (door, received) = tokio::select! {
                received = service.dhcp.recv() => (Door::Dhcp, received),
                received = service.boot.recv() => (Door::Boot, received),
                Some(ended) = in_flight.join_next() => {
                    if let Err(error) = ended {
                        warn!(%error, "boot decision failed");
                    }
                    continue;
                }
            };
            match received {
                Ok(datagram) if in_flight.len() < IN_FLIGHT => {
                    in_flight.spawn(Arc::clone(&service).transact(door, datagram, Arc::clone(&decide)));
                }
                Ok(datagram) => {
                    warn!(%door, source = %datagram.source, waiting = in_flight.len(), "dhcp packet dropped");
                }
                Err(error) => {
                    warn!(%door, %error, "dhcp receive failed");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    /// One packet, from its bytes to its answer or its silence, with a trace of either.
    async fn transact<D, F>(self: Arc<Self>, door: Door, datagram: Datagram, decide: Arc<D>)
    where
        D: Fn(Request) -> F,
        F: Future<Output = Answer>,
    {
        let Datagram { bytes, source, path } = datagram;
        let (packet, request) = match parse::parse(&bytes) {
            Ok(parsed) => parsed,
            Err(reason) => return debug!(%door, %source, %reason, "dhcp packet ignored"),
        };
        let Request { mac, step, class, arch, ipxe, .. } = request;
        // Whatever the decision logs stands in the same span.
        let span = info_span!("boot", %mac, %step, %class, %arch, ipxe, %door, %source);
        self.answer(door, source, path, packet, request, decide).instrument(span).await;
    }

    async fn answer<D, F>(
        &self,
        door: Door,
        source: SocketAddrV4,
        path: Path,
        packet: Packet,
        request: Request,
        decide: Arc<D>,
    ) where
        D: Fn(Request) -> F,
        F: Future<Output = Answer>,
    {
        if let Err(reason) = packet.addressed_to(self.server, door) {
            return debug!(%reason, "dhcp packet ignored");
        }
        let file = match decide(request.clone()).await {
            Answer::BootFile(file) => file,
            Answer::Silent(reason) => return info!(%reason, "boot request left alone"),
        };
        let to = reply::destination(&packet, door, source, self.dhcp_port);
        let sent = match reply::reply(&packet, &request, &file, self.server) {
            Ok(reply) => self.socket(door).send(&reply, to, path).await,
            Err(error) => return warn!(%file, error = %chain(&error), "boot reply not written"),
        };
        match sent {
            Ok(()) => info!(%file, %to, "boot request answered"),
            Err(error) => warn!(%file, %to, %error, "boot reply not sent"),
        }
    }

    fn socket(&self, door: Door) -> &Socket {
        match door {
            Door::Dhcp => &self.dhcp,
            Door::Boot => &self.boot,
        }
    }
}

/// Writes an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use expect_test::expect;
    use tokio::{net::UdpSocket, sync::Semaphore, task::AbortHandle, time::timeout};

    use super::{
        replay::{Fixture, SERVER, render},
        *,
    };
    use crate::boot::loader::choose;

    /// A service on free loopback ports, and a client that talks to it.
    struct World {
        dhcp: SocketAddrV4,
        boot: SocketAddrV4,
        client: UdpSocket,
        service: AbortHandle,
    }

    impl World {
        async fn new<D, F>(decide: D) -> Self
        where
            D: Fn(Request) -> F + Send + Sync + 'static,
            F: Future<Output = Answer> + Send + 'static,
        {
            Self::with(bind(), decide).await
        }

        async fn with<D, F>(service: Service, decide: D) -> Self
        where
            D: Fn(Request) -> F + Send + Sync + 'static,
            F: Future<Output = Answer> + Send + 'static,
        {
            let dhcp = service.local_address(Door::Dhcp).unwrap();
            let boot = service.local_address(Door::Boot).unwrap();
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let service = tokio::spawn(service.run(decide)).abort_handle();
            Self { dhcp, boot, client, service }
        }

        async fn send(&self, name: &str) {
            let Fixture { bytes, door, .. } = Fixture::load(name);
            let to = match door {
                Door::Dhcp => self.dhcp,
                Door::Boot => self.boot,
            };
            self.client.send_to(&bytes, to).await.unwrap();
        }

        async fn receive(&self) -> (Vec<u8>, SocketAddr) {
            let mut buffer = vec![0; 2048];
            let received = timeout(Duration::from_secs(20), self.client.recv_from(&mut buffer)).await;
            let (length, from) = received.expect("an answer in time").unwrap();
            buffer.truncate(length);
            (buffer, from)
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.service.abort();
        }
    }

    fn bind() -> Service {
        let config = Config {
            address: Ipv4Addr::LOCALHOST,
            dhcp_port: 0,
            boot_port: 0,
            ..Config::new(SERVER.address)
        };
        Service::bind(&config).unwrap()
    }

    async fn by_the_table(request: Request) -> Answer {
        choose(&request, SERVER).map_or_else(|reason| Answer::Silent(reason.to_string()), Answer::BootFile)
    }

    #[tokio::test]
    async fn t4_ovmf_is_offered_a_server_and_then_acknowledged_its_loader() {
        let world = World::new(by_the_table).await;

        world.send("ovmf-pxe-discover").await;
        let (offer, from) = world.receive().await;
        assert_eq!(from, world.dhcp.into());
        expect![[r#"
            reply     300 bytes, op 2, htype 1, hlen 6, hops 0, xid f65b0ff5, secs 0, flags 8000
                      ciaddr 0.0.0.0, yiaddr 0.0.0.0, siaddr 10.78.0.2, giaddr 0.0.0.0, chaddr 525400000031
                      sname "", file "", magic 63825363
                53    02
                54    0a4e0002
                60    "PXEClient"
                97    00443322116655887799aabbccddeeff00
        "#]]
        .assert_eq(&render("reply", &offer));

        world.send("ovmf-pxe-request-4011").await;
        let (ack, from) = world.receive().await;
        assert_eq!(from, world.boot.into());
        expect![[r#"
            reply     306 bytes, op 2, htype 1, hlen 6, hops 0, xid c9e06ea4, secs 0, flags 0000
                      ciaddr 10.78.0.83, yiaddr 0.0.0.0, siaddr 10.78.0.2, giaddr 0.0.0.0, chaddr 525400000031
                      sname "10.78.0.2", file "snponly.efi", magic 63825363
                53    05
                54    0a4e0002
                60    "PXEClient"
                66    "10.78.0.2\x00"
                67    "snponly.efi\x00"
                97    00443322116655887799aabbccddeeff00
        "#]]
        .assert_eq(&render("reply", &ack));
    }

    #[tokio::test]
    async fn only_what_is_for_us_and_decided_is_answered_and_all_of_it_is_traced() {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(Arc::new(trace.reopen().unwrap()))
            .with_max_level(tracing::Level::DEBUG)
            .without_time()
            .with_target(false)
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);

        let world = World::new(by_the_table).await;
        for unanswered in ["udhcpc-discover", "ovmf-pxe-request-other-server", "aavmf-pxe-discover"] {
            world.send(unanswered).await;
        }
        world.client.send_to(b"noise", world.dhcp).await.unwrap();
        world.send("snponly-discover").await;
        let (only, _) = world.receive().await;
        assert_eq!(
            only[4..8],
            Fixture::load("snponly-discover").bytes[4..8],
            "the first answer is to the last question"
        );

        let client = world.client.local_addr().unwrap().to_string();
        let trace = std::fs::read_to_string(trace.path()).unwrap().replace(&client, "CLIENT");
        expect![[r#"
            DEBUG dhcp packet ignored door=dhcp source=CLIENT reason=vendor class `udhcp 1.35.0` does not ask what to boot
            DEBUG boot{mac=52:54:00:00:00:31 step=request class=PXEClient arch=x64 UEFI ipxe=false door=dhcp source=CLIENT}: dhcp packet ignored reason=chose server 10.78.0.1
             INFO boot{mac=52:54:00:00:00:51 step=discover class=PXEClient arch=arm64 UEFI ipxe=false door=dhcp source=CLIENT}: boot request left alone reason=no loader for arm64 UEFI (option 93 = 11)
            DEBUG dhcp packet ignored door=dhcp source=CLIENT reason=5 bytes are less than a DHCP header
             INFO boot{mac=52:54:00:00:00:31 step=discover class=PXEClient arch=x64 UEFI ipxe=true door=dhcp source=CLIENT}: boot request answered file=http://10.78.0.2:8080/boot/52:54:00:00:00:31 to=CLIENT
        "#]].assert_eq(&trace);
    }

    #[tokio::test]
    async fn a_slow_decision_holds_up_nobody_else() {
        let gate = Arc::new(Semaphore::new(0));
        let slow = Fixture::load("ovmf-http-discover");
        let slow_mac = parse::parse(&slow.bytes).unwrap().0.mac;
        let decide = {
            let gate = Arc::clone(&gate);
            move |request: Request| {
                let gate = Arc::clone(&gate);
                async move {
                    if request.mac == slow_mac {
                        gate.acquire().await.unwrap().forget();
                    }
                    by_the_table(request).await
                }
            }
        };
        let world = World::new(decide).await;
        world.send("ovmf-http-discover").await;
        world.send("ovmf-pxe-discover").await;
        let (first, _) = world.receive().await;
        gate.add_permits(1);
        let (second, _) = world.receive().await;
        assert_eq!(first[28..34], Fixture::load("ovmf-pxe-discover").bytes[28..34]);
        assert_eq!(second[28..34], slow.bytes[28..34]);
    }

    #[tokio::test]
    async fn a_socket_that_fails_and_a_decision_that_panics_end_nothing() {
        let service = bind();
        // A UDP socket that is connected to a closed port fails its next receive: ECONNREFUSED.
        let twin = service.dhcp.duplicate();
        let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        twin.connect(nobody).unwrap();
        twin.send(b"x").unwrap();
        let failed = Arc::new(Semaphore::new(0));
        let decide = {
            let failed = Arc::clone(&failed);
            move |request: Request| {
                let first = failed.available_permits() == 0;
                failed.add_permits(1);
                async move {
                    assert!(!first, "this decision panics, as it should in this test");
                    by_the_table(request).await
                }
            }
        };
        let world = World::with(service, decide).await;
        twin.connect(world.client.local_addr().unwrap()).unwrap();
        world.send("ovmf-pxe-discover").await;
        timeout(Duration::from_secs(20), failed.acquire()).await.expect("a decision").unwrap().forget();
        failed.add_permits(1);
        world.send("ovmf-pxe-discover").await;
        assert_eq!(world.receive().await.0[0], 2);
    }
}
