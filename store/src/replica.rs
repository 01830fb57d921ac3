//! Answers what the replication engine asks of the replica.
//!
//! Everything goes through the writer's queue, in the order asked: so an answer always speaks of what is
//! committed, and an acknowledgement can only leave after it.

use sync::{
    engine::{Input, Output},
    id::Origin,
    policy::Reason,
    wire::message::refuse,
};

use crate::{Given, Store, StoreError, Tx, join::Join, life, log, peers::Ingest};

impl Store {
    /// Does what `output` asks of the replica and hands the answer, if there is one, to `reply`.
    ///
    /// Outputs for the transport do nothing here; notices are kept where the status shows them.
    pub fn answer(&self, output: Output, given: Given, reply: impl FnOnce(Input) + Send + 'static) {
        if let Output::Dial | Output::Send { .. } | Output::Close { .. } | Output::Busy { .. } = output {
            return;
        }
        let asked = output.clone();
        self.inner.writer.submit_always(
            given,
            move |tx| perform(tx, output),
            move |outcome| match outcome {
                Ok(Some(input)) => reply(input),
                Ok(None) => {}
                Err(error) => {
                    let mut text = error.to_string();
                    let mut source = std::error::Error::source(&error);
                    while let Some(cause) = source {
                        text = format!("{text}: {cause}");
                        source = cause.source();
                    }
                    tracing::error!(error = %text, "the replica could not answer the session");
                    if let Output::Open { connection, .. }
                    | Output::Locate { connection, .. }
                    | Output::Read { connection, .. }
                    | Output::Ingest { connection, .. }
                    | Output::Elements { connection, .. }
                    | Output::Hold { connection, .. }
                    | Output::Join { connection, .. }
                    | Output::TakeFingerprint { connection, .. }
                    | Output::Compare { connection, .. } = asked
                    {
                        reply(Input::IngestFailed { connection, reason: text });
                    }
                }
            },
        );
    }
}

impl Store {
    /// Does the same and waits for it: for worlds in which one thread is everybody.
    ///
    /// # Errors
    /// What kept the replica from answering.
    pub fn answer_now(&self, output: Output, given: Given) -> Result<Option<Input>, StoreError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let done = move |outcome| drop(sender.send(outcome));
        self.inner.writer.submit_always(given, move |tx| perform(tx, output), done);
        receiver.recv().unwrap_or(Err(StoreError::Closed))
    }
}

fn perform(tx: &mut Tx<'_>, output: Output) -> Result<Option<Input>, StoreError> {
    Ok(match output {
        Output::Dial | Output::Send { .. } | Output::Close { .. } | Output::Busy { .. } => None,
        Output::Open { connection, peer, claim } => {
            let standing = Box::new(tx.standing(peer, claim)?);
            Some(Input::Opened { connection, standing })
        }
        Output::Locate { connection, peer, position } => {
            Some(Input::Located { connection, cursor: tx.locate(peer, position)? })
        }
        Output::Read { connection, peer, from, max_bytes } => {
            let items = tx.read_log(peer, from, max_bytes)?;
            let seal = match (from + items.len() as u64).checked_sub(1) {
                Some(last) if tx.origin() == Origin::Central => tx.seal_position(peer, last)?,
                Some(_) | None => None,
            };
            Some(Input::Read { connection, from, items, seal })
        }
        Output::Ingest { connection, peer, from, items, seal } => {
            let items = match tx.whole(peer, items)? {
                Ok(items) => items,
                Err(error) => return Ok(Some(Input::Unreadable { connection, reason: error.to_string() })),
            };
            match tx.ingest(peer, from, &items, seal)? {
                Ingest::Taken(cursor) => {
                    let end = log::end(tx.sql, peer)?;
                    Some(Input::Ingested { connection, cursor, end })
                }
                Ingest::HeldBack(cursor, hold) => {
                    let reason = hold.reason().to_string();
                    Some(Input::HeldBack { connection, cursor, wait: hold.wait, reason })
                }
                Ingest::Forked(reason) => Some(Input::LifeBegun { connection, reason }),
            }
        }
        Output::Settle { peer, life } => {
            tx.settle(peer, life)?;
            None
        }
        Output::Elements { connection, peer, life } => {
            Some(Input::Elements { connection, elements: tx.elements(peer, life)? })
        }
        Output::Hold { connection, peer, documents } => {
            Some(Input::Held { connection, holdings: tx.hold(peer, &documents)? })
        }
        Output::Join { connection, peer, life, holdings } => match tx.join(peer, life, &holdings)? {
            Join::Joined(end, holdings) => Some(Input::Joined { connection, end, holdings }),
            Join::Forked(reason) => Some(Input::IngestFailed { connection, reason }),
        },
        Output::Forked { peer, reason, life_ends } => {
            if life_ends {
                tx.begin_life(&Reason::new(reason))?;
            } else {
                life::begin_logs(tx.sql, peer)?;
            }
            None
        }
        Output::Acknowledged { peer, position } => {
            tx.acknowledge(peer, position)?;
            None
        }
        Output::Known { peer, position } => {
            tx.note_known(peer, position)?;
            None
        }
        Output::TakeFingerprint { connection, pulled, pushed } => Some(Input::Fingerprinted {
            connection,
            pulled,
            pushed,
            fingerprint: tx.fingerprint(Origin::Central, pushed)?,
        }),
        Output::Compare { connection, peer, pulled, pushed, fingerprint } => {
            let agrees = tx.compare(peer, pulled, pushed, &fingerprint)?;
            Some(Input::Compared { connection, pulled, agrees })
        }
        Output::Up { peer, clock } => {
            tx.heard(peer, clock, None)?;
            None
        }
        Output::Heard { peer, clock, telemetry } => {
            tx.heard(peer, clock, telemetry.as_ref())?;
            None
        }
        Output::Agreement { peer, agrees, .. } => {
            tx.set_agreement(peer, agrees)?;
            None
        }
        Output::Refused { peer, code, reason } => {
            tx.refused(peer, code == refuse::FORK, &reason)?;
            None
        }
        Output::Down { .. } => None,
    })
}
