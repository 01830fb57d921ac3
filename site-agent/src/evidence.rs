//! Signs the head of this site's journal for central, verifies what central signed of its own, and lets go of what
//! both have had for long.
//!
//! When a session begins, and every ten minutes while it lasts, a head that has moved is signed with the key of the
//! present certificate. Central signs with the key of its authority, which is pinned. No replication waits for a
//! signature.

use std::{sync::Arc, time::Duration};

use store::{StoreError, Tx, marks::Unverified};
use sync::{blob::Digest, id::Origin, quic::tls};
use tokio::sync::watch;
use tracing::{error, info};

use crate::{agent::Agent, error::chain, identity::Certificates};

/// How often a head is signed that moves while a session lasts, and the age of the journal is looked at.
const EVERY: Duration = Duration::from_secs(600);

/// Signs, verifies and trims, until the future is dropped. `keep` is how long entries are kept after both sides
/// have them.
pub async fn run(
    agent: Arc<Agent>,
    certificates: watch::Receiver<Arc<Certificates>>,
    keep: Duration,
) -> std::convert::Infallible {
    let (mut link, mut changes) = (agent.link.subscribe(), agent.changes.subscribe());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_up = false;
    loop {
        let is_due = tokio::select! {
            _ = ticks.tick() => {
                match agent.submit("retention", move |tx| tx.trim_journal(keep)).await {
                    Ok(0) => {}
                    Ok(entries) => info!(entries, "journal entries that both sides have had for long were let go"),
                    Err(error) => error!(error = %chain(&error), "the journal could not be trimmed"),
                }
                true
            }
            // The agent lives as long as this.
            Ok(()) = link.changed() => false,
            Ok(()) = changes.changed() => false,
        };
        let is_up = link.borrow_and_update().up;
        let present = Arc::clone(&certificates.borrow());
        let signed = if is_up && (is_due || !was_up) { sign(&agent, &present).await } else { Ok(()) };
        was_up = is_up;
        if let Err(error) = signed.and(verify(&agent, &present).await) {
            error!(error = %chain(&error), "heads of the journal could not be signed or verified");
        }
    }
}

async fn sign(agent: &Arc<Agent>, present: &Certificates) -> Result<(), StoreError> {
    let head = agent.submit("link", |tx: &mut Tx<'_>| tx.head_to_sign(Origin::Central)).await?;
    let Some((stream, mark)) = head else { return Ok(()) };
    match present.identity.sign(&mark.statement(stream)) {
        Ok(signature) => {
            let mark = mark.signed(present.leaf.serial.clone(), signature);
            agent.submit("link", move |tx| tx.tell_head(Origin::Central, &mark)).await
        }
        Err(error) => {
            error!(error = %chain(&error), "the head of the journal could not be signed");
            Ok(())
        }
    }
}

async fn verify(agent: &Arc<Agent>, present: &Certificates) -> Result<(), StoreError> {
    let waiting = agent.read(|_, view| view.heads_to_verify()).await?;
    let pinned = Digest::of(&present.authority);
    // What a successor signed is verified when that is pinned.
    let known = |head: &Unverified| head.mark.signer.as_ref().is_some_and(|it| ***it == pinned.0);
    let known: Vec<Unverified> = waiting.into_iter().filter(known).collect();
    if known.is_empty() {
        return Ok(());
    }
    let key = tls::public_key(&present.authority);
    let judged = move |tx: &mut Tx<'_>| {
        known.iter().try_for_each(|head| {
            let signature = head.mark.signature.as_ref().map(|it| it.to_vec()).unwrap_or_default();
            let verdict =
                key.clone().and_then(|key| tls::verify(&key, &head.mark.statement(head.stream), &signature));
            tx.judge_head(head, &verdict)
        })
    };
    agent.submit("link", judged).await
}
