//! How the replica's answers and news come to a running driver.
//!
//! Nothing in here grows without end: an answer is to a question that the engine asked, and it asks only a few
//! at a time; of what a log has grown to, and of what a site tells of itself, only the newest counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use crate::engine::Input;
use crate::id::Origin;
use crate::wire::Telemetry;

/// Hands inputs to a running driver, from any thread.
#[derive(Clone, Debug)]
pub struct Feed {
    answers: mpsc::UnboundedSender<Input>,
    news: Arc<News>,
}

/// The driver's end of a feed.
#[derive(Debug)]
pub struct Inputs {
    answers: mpsc::UnboundedReceiver<Input>,
    news: Arc<News>,
}

/// What is overwritten by what comes later.
#[derive(Debug, Default)]
struct News {
    latest: Mutex<Latest>,
    some: Notify,
}

#[derive(Debug, Default)]
struct Latest {
    grown: BTreeMap<Origin, u64>,
    telemetry: Option<Telemetry>,
}

/// Makes a feed and the end of it that [`run_site`](super::driver::run_site) or
/// [`run_central`](super::driver::run_central) takes.
pub fn feed() -> (Feed, Inputs) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let news = Arc::new(News::default());
    (Feed { answers: sender, news: Arc::clone(&news) }, Inputs { answers: receiver, news })
}

impl Feed {
    /// Hands in an input. A driver that has ended does not take it, which is nobody's fault.
    pub fn send(&self, input: Input) {
        match input {
            Input::Changed { peer, end } => {
                let mut latest = self.news.latest();
                let known = latest.grown.entry(peer).or_default();
                *known = end.max(*known);
            }
            Input::Telemetry(telemetry) => self.news.latest().telemetry = Some(telemetry),
            answer => {
                drop(self.answers.send(answer));
                return;
            }
        }
        self.news.some.notify_one();
    }
}

impl Inputs {
    /// The next input; nothing when every feed is gone. Answers and news take turns.
    pub async fn recv(&mut self) -> Option<Input> {
        loop {
            tokio::select! {
                answer = self.answers.recv() => return answer,
                () = self.news.some.notified() => {
                    if let Some(input) = self.news.take() {
                        // There may be more of it; the next call looks.
                        self.news.some.notify_one();
                        return Some(input);
                    }
                }
            }
        }
    }
}

impl News {
    fn latest(&self) -> MutexGuard<'_, Latest> {
        // Nothing in here can be half done.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Input> {
        let mut latest = self.latest();
        if let Some(telemetry) = latest.telemetry.take() {
            return Some(Input::Telemetry(telemetry));
        }
        latest.grown.pop_first().map(|(peer, end)| Input::Changed { peer, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Connection, id::SiteId};

    #[tokio::test]
    async fn of_a_log_that_grows_a_thousand_times_the_driver_hears_once() {
        let (feed, mut inputs) = feed();
        let peer = |number| Origin::Site(SiteId([number; 16]));
        for end in 1..=1_000 {
            feed.send(Input::Changed { peer: peer(1), end });
            feed.send(Input::Changed { peer: peer(2), end: 1_001 - end });
            feed.send(Input::Telemetry(Telemetry { uptime_s: end, ..Telemetry::default() }));
        }
        let answer = Input::Located { connection: Connection(1), cursor: None };
        feed.send(answer.clone());
        let mut heard = vec![];
        for _ in 0..4 {
            heard.push(inputs.recv().await.expect("an input"));
        }
        let telemetry = Input::Telemetry(Telemetry { uptime_s: 1_000, ..Telemetry::default() });
        let grown = |number| Input::Changed { peer: peer(number), end: 1_000 };
        for expected in [answer, telemetry, grown(1), grown(2)] {
            assert!(heard.contains(&expected), "{expected:?} in {heard:?}");
        }
        drop(feed);
        assert_eq!(inputs.recv().await, None, "that was all");
    }
}
