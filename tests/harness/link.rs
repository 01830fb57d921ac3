//! A line in memory: a small reliable stream over datagrams that are lost, late, doubled and out of order.
//!
//! [`Weather`] is what a link does to datagrams. [`Outbox`] cuts frames into datagrams, [`Inbox`] puts the
//! stream together again: what is early waits, what came before is dropped. A frame on the stream is its
//! length as four bytes, most significant first, and its bytes, as on a QUIC stream.
//!
//! Deliberately absent: acknowledgements and congestion control. Whoever owns the line sees a datagram get
//! lost and sends it again after a while; QUIC finds out by itself, and has its own tests.

use std::{collections::BTreeMap, time::Duration};

/// Payload of a datagram: what fits the smallest path that QUIC accepts.
const DATAGRAM: usize = 1_200;

/// What a link does to datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// How long each is under way at least.
    pub delay: Duration,
    /// Up to so much longer: with it they arrive out of order.
    pub jitter: Duration,
    /// How many of a thousand are lost.
    pub lost: u64,
    /// How many of a thousand arrive twice.
    pub doubled: u64,
}

impl Default for Weather {
    /// A quiet WAN: 40 ms, nothing lost.
    fn default() -> Self {
        Weather { delay: Duration::from_millis(40), jitter: Duration::ZERO, lost: 0, doubled: 0 }
    }
}

/// A piece of the stream.
#[derive(Clone, Debug)]
pub struct Datagram {
    offset: u64,
    bytes: Vec<u8>,
    /// The stream ends here, for this reason.
    close: Option<String>,
}

/// The sending half of a line.
#[derive(Debug, Default)]
pub struct Outbox {
    sent: u64,
}

impl Outbox {
    /// Puts a frame on the stream.
    pub fn frame(&mut self, frame: &[u8]) -> Vec<Datagram> {
        let length = u32::try_from(frame.len()).expect("frames are short").to_be_bytes();
        let bytes: Vec<u8> = length.iter().chain(frame).copied().collect();
        let mut datagrams = Vec::new();
        for piece in bytes.chunks(DATAGRAM) {
            datagrams.push(Datagram { offset: self.sent, bytes: piece.to_vec(), close: None });
            self.sent += piece.len() as u64;
        }
        datagrams
    }

    /// Ends the stream after everything that was put on it.
    pub fn close(&mut self, reason: &str) -> Datagram {
        Datagram { offset: self.sent, bytes: Vec::new(), close: Some(reason.to_string()) }
    }
}

/// What came off the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A whole frame.
    Frame(Vec<u8>),
    /// The other end closed it.
    Close(String),
}

/// How a datagram came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It is the next one.
    Next,
    /// One before it is missing.
    Early,
    /// It was here already.
    Again,
}

/// The receiving half of a line.
#[derive(Debug, Default)]
pub struct Inbox {
    arrived: u64,
    early: BTreeMap<u64, Datagram>,
    partial: Vec<u8>,
}

impl Inbox {
    /// Takes a datagram and returns what is whole now.
    pub fn take(&mut self, datagram: Datagram) -> (Order, Vec<Arrival>) {
        let order = match datagram.offset.cmp(&self.arrived) {
            std::cmp::Ordering::Less => Order::Again,
            std::cmp::Ordering::Equal => Order::Next,
            std::cmp::Ordering::Greater if self.early.contains_key(&datagram.offset) => Order::Again,
            std::cmp::Ordering::Greater => Order::Early,
        };
        if order != Order::Again {
            self.early.insert(datagram.offset, datagram);
        }
        let mut arrivals = Vec::new();
        while let Some(next) = self.early.remove(&self.arrived) {
            self.arrived += next.bytes.len() as u64;
            self.partial.extend(next.bytes);
            self.whole_frames(&mut arrivals);
            if let Some(reason) = next.close {
                self.arrived += 1;
                arrivals.push(Arrival::Close(reason));
                break;
            }
        }
        (order, arrivals)
    }

    fn whole_frames(&mut self, arrivals: &mut Vec<Arrival>) {
        while let Some(length) = self.partial.first_chunk::<4>() {
            let end = 4 + u32::from_be_bytes(*length) as usize;
            if self.partial.len() < end {
                return;
            }
            arrivals.push(Arrival::Frame(self.partial[4..end].to_vec()));
            self.partial.drain(..end);
        }
    }

    /// Whether the beginning of a frame is here and its end is not.
    pub fn is_within_a_frame(&self) -> bool {
        !self.partial.is_empty()
    }
}

impl Datagram {
    /// The first half of it: what arrives of a datagram's worth of stream when the line breaks in it.
    #[must_use]
    pub fn half(&self) -> Datagram {
        Datagram { bytes: self.bytes[..self.bytes.len() / 2].to_vec(), close: None, offset: self.offset }
    }

    /// Whether there is anything to break.
    pub fn is_long(&self) -> bool {
        self.bytes.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn frames_come_out_whole_and_in_order_whatever_happens_to_their_datagrams() {
        let mut random = Random::new(1);
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        let frames: Vec<Vec<u8>> = [0, 1, 1_195, 1_196, 1_197, 5_000]
            .map(|size| vec![u8::try_from(size % 251).unwrap(); size])
            .into();
        let mut under_way: Vec<Datagram> = frames.iter().flat_map(|frame| outbox.frame(frame)).collect();
        under_way.push(outbox.close("done"));
        under_way.extend(under_way.clone());
        let mut arrivals = Vec::new();
        let mut orders = Vec::new();
        while !under_way.is_empty() {
            let index = usize::try_from(random.below(under_way.len() as u64)).unwrap();
            let (order, arrived) = inbox.take(under_way.swap_remove(index));
            orders.push(order);
            arrivals.extend(arrived);
        }
        let mut expected: Vec<Arrival> = frames.into_iter().map(Arrival::Frame).collect();
        expected.push(Arrival::Close("done".into()));
        assert_eq!(arrivals, expected);
        assert!(orders.contains(&Order::Early) && orders.contains(&Order::Again));
    }

    #[test]
    fn half_a_datagram_leaves_half_a_frame() {
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        let datagram = outbox.frame(&[7; 100]).remove(0);
        assert_eq!(inbox.take(datagram.half()), (Order::Next, vec![]));
        assert!(inbox.is_within_a_frame());
    }
}
