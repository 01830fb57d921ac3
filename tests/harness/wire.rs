//! The path between a site and central: a UDP relay that can be cut, in both directions or in one.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    net::{SocketAddr, UdpSocket},
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
}

impl Wire {
    /// Opens a relay to `central`.
    ///
    /// # Errors
    /// When loopback has no port left.
    pub fn to(central: SocketAddr) -> io::Result<Self> {
        let front = UdpSocket::bind("127.0.0.1:0")?;
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
