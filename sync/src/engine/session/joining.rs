//! Joining: both find out in which documents they differ, say what they hold of them, and begin both logs anew.
//!
//! The site asks and central answers until the site knows every document in which they differ; then the site
//! says what it holds of these, central answers with the same, and each begins its log with what the other
//! lacks.
//!
//! A site that knows by itself that there is no common log sends its first question right behind the greeting, which
//! saves a round trip. It holds only if the site holds the same once central has answered; otherwise it asks anew.

use std::collections::VecDeque;

use super::{Phase, Session};
use crate::{
    engine::{
        CloseCode, Moment, Output,
        reconcile::{Comparison, Element, MAX_MESSAGE},
    },
    id::{DocumentId, Origin},
    wire::{Cursor, Holdings, Message},
};

/// Bytes of a reconciliation in one frame.
const PART: usize = 128 << 10;

/// Documents, journal heads and entries in one frame that says what is held.
const PART_ITEMS: usize = 1_000;

/// How many of them are taken in all.
const MAX_HOLDINGS: usize = 4 << 20;

/// Bytes of a first question: sixteen fingerprints, or fewer than 32 elements.
const MAX_QUESTION: usize = 4 << 10;

/// A site's first question, as it is sent before central has answered the greeting.
#[derive(Debug, Default)]
pub(super) enum Early {
    /// There is none.
    #[default]
    No,
    /// The replica is asked what is held.
    Asked,
    /// It is under way, and about these.
    Sent(Vec<Element>),
}

/// What is put together while both join.
#[derive(Debug, Default)]
pub(super) struct Joining {
    pub(super) early: Early,
    /// Central: the first question, until the replica has said what it holds. A site: the answer to it, until it is
    /// known whether the question still holds.
    kept: Option<Vec<u8>>,
    /// A site: the next answer is to a question that does not hold any more.
    is_stale: bool,
    comparison: Option<Comparison>,
    /// Parts of the message that is arriving.
    message: Vec<u8>,
    holdings: Holdings,
}

impl Session {
    /// A site greets without a common log and holds something: what would it ask?
    pub(super) fn prepare_question(&mut self, outputs: &mut VecDeque<Output>) {
        self.joining = Joining { early: Early::Asked, ..Joining::default() };
        outputs.push_back(Output::Elements { connection: self.connection, peer: self.peer, life: None });
    }

    fn ask_early(&mut self, elements: &[Element], outputs: &mut VecDeque<Output>) {
        // Whoever was answered or asked to wait meanwhile asks in his turn.
        if self.phase != Phase::Greeting || elements.is_empty() {
            return;
        }
        let asked = Comparison::new(elements).and_then(|mut it| it.ask().map(|question| (it, question)));
        match asked {
            Ok((comparison, question)) => {
                self.send_differences(&question, outputs);
                self.joining.comparison = Some(comparison);
                self.joining.early = Early::Sent(elements.to_vec());
            }
            Err(reason) => self.close(CloseCode::Replica, &reason, outputs),
        }
    }

    /// Central keeps the first question until it knows what it holds.
    pub(super) fn keep_question(&mut self, bytes: Vec<u8>, last: bool, outputs: &mut VecDeque<Output>) {
        if bytes.len() > MAX_QUESTION || !last || self.joining.kept.is_some() {
            let reason = "more than one question is asked before the greeting is answered";
            return self.close(CloseCode::Protocol, reason, outputs);
        }
        self.joining.kept = Some(bytes);
    }

    pub(in crate::engine) fn handle_elements(
        &mut self,
        now: Moment,
        elements: &[Element],
        outputs: &mut VecDeque<Output>,
    ) {
        let early = std::mem::take(&mut self.joining.early);
        if matches!(early, Early::Asked) {
            return self.ask_early(elements, outputs);
        }
        if self.phase != Phase::Joining {
            return;
        }
        self.deadline = now.elapsed + self.silence_max;
        if let Early::Sent(asked) = early {
            let answer = self.joining.kept.take();
            if asked == elements {
                self.end = 0;
                if let Some(answer) = answer {
                    self.go_on(&answer, outputs);
                }
                return;
            }
            self.joining.comparison = None;
            self.joining.is_stale = answer.is_none();
        }
        if self.peer == Origin::Central && elements.is_empty() {
            // Whoever holds nothing has nothing to compare, and central nothing to answer but all it has.
            self.end = 0;
            let (connection, peer) = (self.connection, self.peer);
            outputs.push_back(Output::Hold { connection, peer, documents: vec![] });
            return;
        }
        let mut comparison = match Comparison::new(elements) {
            Ok(comparison) => comparison,
            Err(reason) => return self.close(CloseCode::Replica, &reason, outputs),
        };
        match self.peer {
            Origin::Central => {
                // Whatever is in our log for central now is in the new one.
                self.end = 0;
                match comparison.ask() {
                    Ok(question) => self.send_differences(&question, outputs),
                    Err(reason) => return self.close(CloseCode::Replica, &reason, outputs),
                }
            }
            Origin::Site(_) => self.accept_greeting(now, Cursor::default(), None, true, outputs),
        }
        self.joining.comparison = Some(comparison);
        if self.peer != Origin::Central
            && let Some(question) = self.joining.kept.take()
        {
            self.go_on(&question, outputs);
        }
    }

    pub(super) fn handle_differences(&mut self, bytes: Vec<u8>, last: bool, outputs: &mut VecDeque<Output>) {
        if self.peer != Origin::Central && self.joining.comparison.is_none() {
            return self.keep_question(bytes, last, outputs);
        }
        if self.joining.message.len() + bytes.len() > MAX_MESSAGE {
            let reason = format!("a message of the reconciliation is longer than {MAX_MESSAGE} bytes");
            return self.close(CloseCode::Protocol, &reason, outputs);
        }
        self.joining.message.extend_from_slice(&bytes);
        if !last {
            return;
        }
        let message = std::mem::take(&mut self.joining.message);
        if let Early::Sent(_) = self.joining.early {
            self.joining.kept = Some(message);
        } else if !std::mem::take(&mut self.joining.is_stale) {
            self.go_on(&message, outputs);
        }
    }

    /// Goes on with a whole message of the reconciliation.
    fn go_on(&mut self, message: &[u8], outputs: &mut VecDeque<Output>) {
        let Some(comparison) = &mut self.joining.comparison else {
            return self.close(CloseCode::Protocol, "differences are told before they were asked", outputs);
        };
        let next = match self.peer {
            Origin::Central => comparison.learn(message),
            Origin::Site(_) => comparison.answer(message).map(Some),
        };
        match next {
            Ok(Some(bytes)) => self.send_differences(&bytes, outputs),
            Ok(None) => {
                let comparison = self.joining.comparison.take();
                let documents: Vec<DocumentId> =
                    comparison.map(Comparison::into_differing).unwrap_or_default();
                outputs.push_back(Output::Hold { connection: self.connection, peer: self.peer, documents });
            }
            Err(reason) => self.close(CloseCode::Protocol, &reason, outputs),
        }
    }

    fn send_differences(&mut self, message: &[u8], outputs: &mut VecDeque<Output>) {
        let mut parts = message.chunks(PART).peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            self.send(&Message::Differences { bytes: part.to_vec(), last }, outputs);
        }
    }

    /// A site tells what it holds of the documents in which both differ.
    pub(in crate::engine) fn handle_held(&mut self, holdings: Holdings, outputs: &mut VecDeque<Output>) {
        if self.phase == Phase::Joining {
            self.send_holdings(holdings, outputs);
        }
    }

    fn send_holdings(&mut self, mut rest: Holdings, outputs: &mut VecDeque<Output>) {
        fn cut<T>(from: &mut Vec<T>) -> Vec<T> {
            let rest = from.split_off(from.len().min(PART_ITEMS));
            std::mem::replace(from, rest)
        }
        loop {
            let part = Holdings {
                documents: cut(&mut rest.documents),
                streams: cut(&mut rest.streams),
                entries: cut(&mut rest.entries),
                nothing: rest.nothing.take(),
            };
            let last = rest == Holdings::default();
            self.send(&Message::Holdings { part, last }, outputs);
            if last {
                return;
            }
        }
    }

    pub(super) fn handle_holdings(&mut self, part: Holdings, last: bool, outputs: &mut VecDeque<Output>) {
        let all = &mut self.joining.holdings;
        all.documents.extend(part.documents);
        all.streams.extend(part.streams);
        all.entries.extend(part.entries);
        all.nothing = all.nothing.or(part.nothing);
        if all.documents.len() + all.streams.len() + all.entries.len() > MAX_HOLDINGS {
            let reason = format!("the peer holds more than {MAX_HOLDINGS} things");
            return self.close(CloseCode::Protocol, &reason, outputs);
        }
        let (true, Some(life)) = (last, self.life) else { return };
        self.joining.comparison = None;
        outputs.push_back(Output::Join {
            connection: self.connection,
            peer: self.peer,
            life,
            holdings: std::mem::take(&mut self.joining.holdings),
        });
    }

    /// Both logs begin with what the other lacks.
    pub(in crate::engine) fn handle_joined(
        &mut self,
        now: Moment,
        end: u64,
        holdings: Holdings,
        outputs: &mut VecDeque<Output>,
    ) {
        if self.phase != Phase::Joining {
            return;
        }
        (self.received, self.committed, self.sent, self.acknowledged) = (0, 0, 0, 0);
        self.under_way.clear();
        // Nothing is committed of the new log, and nothing of our own is with central.
        self.vouch.greeting(0, end, 0);
        self.inbox.clear();
        self.end = self.end.max(end);
        self.may_send = true;
        self.joined = true;
        if let Origin::Site(_) = self.peer {
            self.send_holdings(holdings, outputs);
        }
        self.rise(now, outputs);
        self.touch(now);
        self.pump(outputs);
    }
}
