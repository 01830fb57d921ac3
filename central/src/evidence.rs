//! Signs the heads of central's journal for the sites, and verifies what they signed of theirs.
//!
//! When a session begins, and every ten minutes while it lasts, a head that has moved is signed with the authority's
//! key, which every site has pinned. What sites tell is verified with the key that their certificate certifies,
//! after it is acknowledged: no replication waits for a signature. The hub says what happens by [`Word`]s.

use std::{collections::BTreeSet, time::Duration};

use store::{Store, StoreError, Tx, marks::Unverified};
use sync::{
    id::Origin,
    journal::{Mark, Stream},
    quic::tls,
};
use tokio::sync::{mpsc, oneshot};

use crate::{content::off_runtime, enrolment::seat::Seat, event_loop::Edge, failure::chain};

/// How often a head is signed that moves while a session lasts.
const EVERY: Duration = Duration::from_secs(600);

/// What the hub tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// A session with a site is established.
    Up(Origin),
    /// It has ended.
    Down(Origin),
    /// A site told a head.
    Told,
}

/// Who signs and verifies.
pub(crate) struct Notary {
    pub(crate) store: Store,
    pub(crate) seat: Seat,
    pub(crate) edge: Edge,
}

/// Signs and verifies until nobody can tell anything any more.
pub(crate) async fn run(notary: Notary, mut words: mpsc::UnboundedReceiver<Word>) {
    let mut live = BTreeSet::new();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let outcome = tokio::select! {
            word = words.recv() => match word {
                Some(Word::Up(peer)) => {
                    live.insert(peer);
                    notary.sign(peer).await
                }
                Some(Word::Down(peer)) => {
                    live.remove(&peer);
                    Ok(())
                }
                Some(Word::Told) => notary.verify().await,
                None => return,
            },
            _ = ticks.tick() => {
                let mut outcome = notary.verify().await;
                for peer in &live {
                    outcome = outcome.and(notary.sign(*peer).await);
                }
                outcome
            }
        };
        if let Err(error) = outcome {
            tracing::error!(error = chain(&error), "heads of the journal could not be signed or verified");
        }
    }
}

impl Notary {
    async fn write<T: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        self.store.submit(self.edge.given("central"), command, move |outcome| drop(sender.send(outcome)));
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Signs the head of our stream for a site, if it has moved, and tells it.
    async fn sign(&self, peer: Origin) -> Result<(), StoreError> {
        let Some((stream, mark)) = self.write(move |tx| tx.head_to_sign(peer)).await? else { return Ok(()) };
        let authority = self.seat.present();
        match authority.sign(&mark.statement(stream)) {
            Ok(signature) => {
                let mark = mark.signed(authority.fingerprint().0.to_vec(), signature);
                self.write(move |tx| tx.tell_head(peer, &mark)).await
            }
            Err(error) => {
                tracing::error!(%peer, error = chain(&error), "a head of the journal could not be signed");
                Ok(())
            }
        }
    }

    async fn verify(&self) -> Result<(), StoreError> {
        let store = self.store.clone();
        let waiting = off_runtime(move || store.read(|view| view.heads_to_verify())).await?;
        if waiting.is_empty() {
            return Ok(());
        }
        self.write(move |tx| {
            waiting.iter().try_for_each(|head: &Unverified| {
                tx.judge_head(head, &verified(&head.mark, head.stream, head.key.as_deref()))
            })
        })
        .await
    }
}

/// Whether a site signed a head with the key of a certificate of its own.
pub(crate) fn verified(mark: &Mark, stream: Stream, key: Option<&[u8]>) -> Result<(), String> {
    let key = key.ok_or("the certificate that it names is not one that this site has shown")?;
    let signature = mark.signature.as_ref().ok_or("there is none")?;
    tls::verify(key, &mark.statement(stream), signature)
}
