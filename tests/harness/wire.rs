//! The path between a site and central: a UDP relay that can be cut, in both directions or in one, and beside
//! it, where a test wants that, one for TCP on the same port, which never is.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

const OPEN: u8 = 0;
const CUT: u8 = 1;
const DEAF: u8 = 2;
const STOP: u8 = 3;

/// A relay in front of central.
pub struct Wire {
    address: SocketAddr,
    line: Arc<Line>,
}

#[derive(Default)]
struct Line {
    state: AtomicU8,
    carried: Carried,
}

/// What was carried so far, by direction.
#[derive(Default, Debug)]
pub struct Carried {
    /// Datagrams towards central.
    pub datagrams_up: AtomicU64,
    /// Their bytes.
    pub bytes_up: AtomicU64,
    /// Datagrams towards the site.
    pub datagrams_down: AtomicU64,
    /// Their bytes.
    pub bytes_down: AtomicU64,
    /// TCP connections.
    pub calls: AtomicU64,
    /// Bytes that they carried, in both directions.
    pub bytes_of_calls: AtomicU64,
}

impl Wire {
    /// Opens a relay to `central`.
    ///
    /// # Errors
    /// When loopback has no port left.
    pub fn to(central: SocketAddr) -> io::Result<Self> {
        Wire::between(UdpSocket::bind("127.0.0.1:0")?, central)
    }

    /// Opens a relay to `central` that carries TCP as well. With [`cut`](Self::cut) only that passes: so
    /// it is behind a firewall that drops UDP.
    ///
    /// # Errors
    /// When loopback has no port left.
    pub fn with_tcp(central: SocketAddr) -> io::Result<Self> {
        loop {
            let front = UdpSocket::bind("127.0.0.1:0")?;
            // The port is free for UDP; somebody else may have it for TCP.
            let Ok(calls) = TcpListener::bind(front.local_addr()?) else { continue };
            let wire = Wire::between(front, central)?;
            let seen = Arc::clone(&wire.line);
            std::thread::spawn(move || switch(&calls, central, &seen));
            return Ok(wire);
        }
    }

    fn between(front: UdpSocket, central: SocketAddr) -> io::Result<Self> {
        front.set_read_timeout(Some(Duration::from_millis(20)))?;
        let address = front.local_addr()?;
        let line = Arc::new(Line::default());
        let seen = Arc::clone(&line);
        std::thread::spawn(move || relay(&front, central, &seen));
        Ok(Wire { address, line })
    }

    /// Where the site dials.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops everything from now on.
    pub fn cut(&self) {
        self.line.state.store(CUT, Ordering::SeqCst);
    }

    /// Carries everything again.
    pub fn heal(&self) {
        self.line.state.store(OPEN, Ordering::SeqCst);
    }

    /// Drops what central says: acknowledgements are lost.
    pub fn swallow_answers(&self) {
        self.line.state.store(DEAF, Ordering::SeqCst);
    }

    /// What was carried so far.
    pub fn carried(&self) -> &Carried {
        &self.line.carried
    }

    /// Bytes of datagrams that were delivered to sites so far.
    pub fn delivered_bytes(&self) -> u64 {
        self.line.carried.bytes_down.load(Ordering::SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.line.state.store(STOP, Ordering::SeqCst);
        // Whoever waits for calls gets a last one; without TCP nobody is there.
        drop(TcpStream::connect(self.address));
    }
}

/// Carries every TCP connection to `central` until the wire is gone.
fn switch(calls: &TcpListener, central: SocketAddr, line: &Arc<Line>) {
    while let Ok((near, _)) = calls.accept() {
        if line.state.load(Ordering::SeqCst) == STOP {
            return;
        }
        // A central that is down refuses, and so do we.
        let Ok(far) = TcpStream::connect(central) else { continue };
        line.carried.calls.fetch_add(1, Ordering::SeqCst);
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { continue };
            let line = Arc::clone(line);
            std::thread::spawn(move || {
                let mut buffer = [0; 16 << 10];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    if to.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                    line.carried.bytes_of_calls.fetch_add(length as u64, Ordering::SeqCst);
                }
                // The other direction ends by itself, or by the reset that this half causes.
                drop(to.shutdown(Shutdown::Write));
            });
        }
    }
}

fn relay(front: &UdpSocket, central: SocketAddr, line: &Arc<Line>) {
    let mut backs: BTreeMap<SocketAddr, UdpSocket> = BTreeMap::new();
    let mut buffer = [0; 65_536];
    while line.state.load(Ordering::SeqCst) != STOP {
        let Ok((length, site)) = front.recv_from(&mut buffer) else { continue };
        if line.state.load(Ordering::SeqCst) == CUT {
            continue;
        }
        let back = match backs.entry(site) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => match back(front, site, central, line) {
                Ok(back) => new.insert(back),
                Err(_) => continue,
            },
        };
        line.carried.datagrams_up.fetch_add(1, Ordering::SeqCst);
        line.carried.bytes_up.fetch_add(length as u64, Ordering::SeqCst);
        drop(back.send(&buffer[..length]));
    }
}

/// A socket of its own towards central for each address of a site, so that answers find their way.
fn back(front: &UdpSocket, site: SocketAddr, central: SocketAddr, line: &Arc<Line>) -> io::Result<UdpSocket> {
    let back = UdpSocket::bind("127.0.0.1:0")?;
    back.connect(central)?;
    back.set_read_timeout(Some(Duration::from_millis(20)))?;
    let (answers, front, line) = (back.try_clone()?, front.try_clone()?, Arc::clone(line));
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        loop {
            let received = answers.recv(&mut buffer);
            match (line.state.load(Ordering::SeqCst), received) {
                (STOP, _) => return,
                (OPEN, Ok(length)) if front.send_to(&buffer[..length], site).is_ok() => {
                    line.carried.datagrams_down.fetch_add(1, Ordering::SeqCst);
                    line.carried.bytes_down.fetch_add(length as u64, Ordering::SeqCst);
                }
                _ => {}
            }
        }
    });
    Ok(back)
}
