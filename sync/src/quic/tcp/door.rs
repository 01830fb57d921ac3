//! Central's listening TCP socket, and how many strangers it deals with.
//!
//! A caller holds a place among those in their handshake, one of few from its own address, from the moment its
//! connection is accepted until TLS is through or has failed; who finds no place is hung up on. The places are
//! others than those of UDP, so a flood on one leaves the other open.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quinn::ConnectionError;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{Lifeline, Tcp, no_protocol, owned, rustls_error, tls_failure};

/// Callers that the system holds for us before we accept them.
const BACKLOG: i32 = 1024;

/// Pause after the system gave no connection, usually because this program has too many files open.
const BREATH: Duration = Duration::from_millis(100);

/// How long somebody whose handshake failed may take to read why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Central's listening socket.
#[derive(Debug)]
pub(in crate::quic) struct Door {
    socket: TcpListener,
    places: Arc<Semaphore>,
    callers: Arc<Mutex<Callers>>,
    per_address: usize,
}

/// How many are in their handshake from one address. IPv6 counts by its first 64 bits: that is one household.
type Callers = BTreeMap<IpAddr, usize>;

impl Door {
    /// Binds `address`. An IPv6 address also serves IPv4.
    pub(in crate::quic) fn bind(
        address: SocketAddr,
        handshakes: usize,
        per_address: usize,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6()
            && let Err(error) = socket.set_only_v6(false)
        {
            tracing::debug!(%error, "this system keeps IPv6 sockets to IPv6");
        }
        // A restarted program must not wait for what the last one left in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from_std(socket.into())?;
        let places = Arc::new(Semaphore::new(handshakes));
        Ok(Door { socket, places, callers: Arc::default(), per_address })
    }

    /// Waits for the next caller who finds a place.
    #[expect(clippy::disallowed_methods, reason = "a system without files has nothing to wait for but time")]
    pub(in crate::quic) async fn accept(&self) -> Caller {
        loop {
            let (socket, address) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a TCP connection could not be accepted");
                    sleep(BREATH).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else { continue };
            let Some(place) = Place::take(&self.callers, address.ip(), self.per_address, permit) else {
                tracing::debug!(%address, "too many handshakes from one address");
                continue;
            };
            return Caller { socket, address, place };
        }
    }
}

/// A place among the handshakes.
#[derive(Debug)]
struct Place {
    callers: Arc<Mutex<Callers>>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn take(
        callers: &Arc<Mutex<Callers>>,
        address: IpAddr,
        most: usize,
        permit: OwnedSemaphorePermit,
    ) -> Option<Self> {
        let address = household(address);
        let mut counts = lock(callers);
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Place { callers: Arc::clone(callers), address, _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.callers);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

fn lock(callers: &Mutex<Callers>) -> MutexGuard<'_, Callers> {
    // Nothing in here can be half done.
    callers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    }
}

/// Somebody whose TCP connection was accepted.
#[derive(Debug)]
pub(in crate::quic) struct Caller {
    socket: TcpStream,
    address: SocketAddr,
    place: Place,
}

impl Caller {
    pub(in crate::quic) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Goes through the handshake and returns the protocol that was agreed on as well. The caller of this
    /// bounds its time.
    ///
    /// # Errors
    /// When TLS fails; the peer was told by an alert.
    pub(in crate::quic) async fn handshake(
        self,
        config: Arc<rustls::ServerConfig>,
        lifeline: Lifeline,
    ) -> Result<(Tcp, Vec<u8>), ConnectionError> {
        let Caller { socket, address, place } = self;
        socket.set_nodelay(true).map_err(|_| ConnectionError::Reset)?;
        let accepted = TlsAcceptor::from(config).accept(socket).into_fallible().await;
        let stream = match accepted {
            Ok(stream) => stream,
            Err((error, socket)) => {
                hang_up(socket).await;
                return Err(rustls_error(&error).map_or(ConnectionError::Reset, tls_failure));
            }
        };
        drop(place);
        let session = stream.get_ref().1;
        let Some(protocol) = session.alpn_protocol().map(<[u8]>::to_vec) else { return Err(no_protocol()) };
        let chain = owned(session.peer_certificates());
        Ok((Tcp::start(stream, address, chain, None, lifeline), protocol))
    }
}

/// Ends a socket so that what was said last arrives: unread bytes would turn the close into a reset.
async fn hang_up(mut socket: TcpStream) {
    let ending = async {
        socket.shutdown().await?;
        let mut unread = [0; 1 << 10];
        while socket.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    if let Ok(Err(error)) = timeout(LAST_WORDS, ending).await {
        tracing::trace!(%error, "the peer was gone first");
    }
}
