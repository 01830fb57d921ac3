//! What is told to one peer: frames in order, in a queue that is bounded.
//!
//! The engine never waits for a peer, so what it says queues up here while the peer's credit is used up. A peer
//! that reads keeps the queue short, because the log has a window; one that does not read is sent away. Where all
//! queues together are long, that holds for whoever is told more while a frame's worth waits for it already.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use tokio::sync::mpsc;

use super::connection::{Connection as Link, SendStream};
use super::stream::FrameWriter;
use crate::{engine::CloseCode, wire::MAX_FRAME};

/// Bytes that may wait for a peer, beside what the transport holds: 2 MiB at central. A log has a megabyte under way, a
/// join a few more.
const WAITING: usize = 4 << 20;

/// Bytes that may wait for all peers together.
const ALL_WAITING: usize = 256 << 20;

/// Bytes that may wait for a peer also then: one frame.
const SHARE: usize = MAX_FRAME;

/// How long one frame may take: a full one over a link of 20 kbit/s.
const STALLED: Duration = Duration::from_secs(120);

/// How long the last frames before a close may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the writer of a connection is told.
enum Order {
    Frame(Waiting),
    Close(CloseCode, String),
}

/// How many bytes wait.
#[derive(Clone, Default)]
pub(super) struct Count(Arc<AtomicUsize>);

impl Count {
    /// Counts more, and returns how many there are then.
    fn add(&self, bytes: usize) -> usize {
        self.0.fetch_add(bytes, Ordering::Relaxed) + bytes
    }
}

/// A frame that waits. It is counted for its peer and for all until it is gone, whichever way it goes.
struct Waiting {
    bytes: Vec<u8>,
    counted: [Count; 2],
}

impl Drop for Waiting {
    fn drop(&mut self) {
        for Count(count) in &self.counted {
            count.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        }
    }
}

/// The way to a peer.
pub(super) struct Line {
    link: Link,
    orders: mpsc::UnboundedSender<Order>,
    waiting: Count,
    all: Count,
}

impl Line {
    /// Begins to write to a peer; `all` is what waits for all peers. Needs a tokio runtime.
    pub(super) fn open(link: Link, writer: FrameWriter<SendStream>, all: Count) -> Self {
        let (orders, received) = mpsc::unbounded_channel();
        tokio::spawn(write(link.clone(), writer, received));
        Line { link, orders, waiting: Count::default(), all }
    }

    /// Sends a frame after those before it. Ends the connection if the peer has left too much unread.
    pub(super) fn send(&self, bytes: Vec<u8>) {
        let (waiting, all) = (self.waiting.add(bytes.len()), self.all.add(bytes.len()));
        let frame = Waiting { bytes, counted: [self.waiting.clone(), self.all.clone()] };
        if is_too_much(waiting, all) {
            let reason = format!("{waiting} bytes wait to be read");
            self.link.close(CloseCode::Deaf.number(), &reason);
            return;
        }
        drop(self.orders.send(Order::Frame(frame)));
    }

    /// Ends the connection after what was sent before, or without it if that takes too long.
    pub(super) fn close(&self, code: CloseCode, reason: String) {
        let (link, words) = (self.link.clone(), reason.clone());
        drop(self.orders.send(Order::Close(code, reason)));
        tokio::spawn(async move {
            if tokio::time::timeout(2 * PATIENCE, link.closed()).await.is_err() {
                link.close(code.number(), &words);
            }
        });
    }
}

/// Whether too much waits for one peer, given what waits for all.
fn is_too_much(waiting: usize, all: usize) -> bool {
    waiting > WAITING || all > ALL_WAITING && waiting > SHARE
}

async fn write(link: Link, mut writer: FrameWriter<SendStream>, mut orders: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Frame(frame) => {
                match tokio::time::timeout(STALLED, writer.write_frame(&frame.bytes)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) => {
                        let reason = format!("nothing was read for {} s", STALLED.as_secs());
                        return link.close(CloseCode::Deaf.number(), &reason);
                    }
                }
            }
            Order::Close(code, reason) => {
                // What was said before the close should still arrive, a refusal above all.
                let mut stream = writer.into_inner();
                stream.finish();
                drop(tokio::time::timeout(PATIENCE, stream.stopped()).await);
                link.close(code.number(), &reason);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        engine::{Engine, Greeting, Input, Output, Standing},
        id::{Incarnation, Origin, SiteId},
        quic::{
            RecvStream,
            driver::{self, Feed, Host},
            endpoint::Guest,
            testing::{Authority, SITE, connect, serve},
        },
        wire::{self, Cursor, Fingerprint, Message, Rolling, version},
    };

    /// A central with an endless log of items of 100 kB.
    struct Endless(Arc<AtomicU64>);

    const LIFE: Incarnation = Incarnation([9; 16]);

    fn cursor(position: u64) -> Cursor {
        Cursor { position, rolling: Rolling::default() }
    }

    impl Host for Endless {
        fn perform(&mut self, output: Output, feed: &Feed) {
            match output {
                Output::Open { connection, .. } => {
                    let standing = Box::new(Standing {
                        incarnation: LIFE,
                        policy_epoch: 0,
                        pulled: cursor(0),
                        pushed: Some(cursor(0)),
                        end: u64::MAX,
                        fingerprint: Fingerprint::default(),
                        agrees: None,
                        central: Some(LIFE),
                        log: Some(0),
                        seal: None,
                        greeting: Greeting::Continue,
                    });
                    feed.send(Input::Opened { connection, standing });
                }
                Output::Read { connection, from, .. } => {
                    // Nothing that packs.
                    let mut item = vec![0; 100_000];
                    blake3::Hasher::new().update(&from.to_be_bytes()).finalize_xof().fill(&mut item);
                    feed.send(Input::Read { connection, from, items: vec![item], seal: None });
                    self.0.store(from, Ordering::SeqCst);
                }
                _ => {}
            }
        }

        fn connection(&mut self, _: Origin, _: Option<&Link>) {}
        fn stream(&mut self, _: SiteId, _: SendStream, _: RecvStream) {}
        fn turned(&mut self, _: &Engine, _: Duration) {}
    }

    #[test]
    fn h6_where_all_queues_are_long_together_a_frame_may_still_wait_for_each() {
        let (line, all) = (Count::default(), Count::default());
        let frame = |bytes: usize| {
            line.add(bytes);
            all.add(bytes);
            Waiting { bytes: vec![0; bytes], counted: [line.clone(), all.clone()] }
        };
        let waiting = [frame(10), frame(30)];
        assert_eq!((line.add(0), all.add(0)), (40, 40));
        drop(waiting);
        assert_eq!((line.add(0), all.add(0)), (0, 0));
        assert!(!is_too_much(WAITING, ALL_WAITING) && is_too_much(WAITING + 1, 0));
        assert!(!is_too_much(SHARE, ALL_WAITING + 1) && is_too_much(SHARE + 1, ALL_WAITING + 1));
    }

    #[tokio::test]
    async fn h6_a_peer_that_acknowledges_and_never_reads_is_sent_away() {
        let authority = Authority::new("central");
        let mut central = serve(&authority);
        let link = connect(&central, authority.site(SITE), &authority).await.unwrap();
        let Guest::Session { connection, .. } = central.next_guest().await else { panic!("a session") };
        let sent = Arc::new(AtomicU64::new(0));
        let (sessions, arriving) = mpsc::channel(1);
        sessions.send((SITE, connection)).await.unwrap();
        let engine = Engine::central(Duration::from_secs(30));
        tokio::spawn(driver::run_central(engine, arriving, driver::feed(), Endless(Arc::clone(&sent))));

        let (send, _unread) = link.open_bi().await.unwrap();
        let mut writer = FrameWriter::new(send, "central");
        let hello = Message::Hello {
            versions: version::OURS,
            site: SITE,
            incarnation: LIFE,
            policy_epoch: 0,
            pulled: cursor(0),
            pushed: cursor(0),
            fingerprint: Fingerprint::default(),
            clock: crate::time::Timestamp(1),
            central: Some(LIFE),
            seal: None,
            plain: None,
            log: Some(0),
        };
        writer.write_frame(&wire::encode(&hello)).await.unwrap();
        let lie = async {
            let mut said = 0;
            loop {
                // What a peer that does read would have to acknowledge by now.
                let position = sent.load(Ordering::SeqCst).saturating_sub(1);
                if position > said {
                    said = position;
                    let ack = wire::encode(&Message::Ack { position });
                    if writer.write_frame(&ack).await.is_err() {
                        return;
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        let closed = tokio::time::timeout(Duration::from_secs(60), async {
            tokio::select! {
                closed = link.closed() => closed,
                () = lie => link.closed().await,
            }
        });
        let closed = closed.await.expect("the connection ends").to_string();
        assert!(closed.contains("bytes wait to be read"), "{closed}");
        let told = sent.load(Ordering::SeqCst) * 100_000;
        assert!(told < 16 << 20, "{told} bytes were read from the log for it");
        drop(sessions);
    }
}
