//! At central: answers what people at sites asked for, in the order of each site's journal, each once.
//!
//! A proposal is due when the entry of the site's journal that tells of it is here, and those before it have ended
//! ([`due`]). It is done by the commands that anybody at central uses, in the transaction that brought it, in the name
//! of who asked; or it is refused, with the reason, and nothing of it stays. Its end is written in the same transaction.
//!
//! A central whose database went back in time may have done it and forgotten. Everything that is written for a
//! proposal takes its ids and nonces from the proposal's own id, so what was done before is known again
//! ([`was_done`]) wherever it came back from.

use sync::{
    document::{Document, Kind, claim, node, proposal, register::Entropy, site, task},
    id::{DocumentId, NodeId, Nonce, Origin, ProposalId, SiteId},
    ingress,
};

use super::{
    ask::{self, Ask, Done, What},
    paper, proposal as command, refused,
};
use crate::{
    StoreError, Tx,
    view::{ProposalRow, ProposalState},
};

/// Who stands in the end of a proposal that central answered by itself.
const CENTRAL: &str = "central";

/// Draws from the entropy of a proposal that one answer takes at most: an id, and a nonce for each document.
const DRAWS: usize = 8;

impl Tx<'_> {
    /// Notes that a site's journal tells of a proposal. The first time counts.
    pub(crate) fn note_asked(&mut self, site: SiteId, proposal: ProposalId) -> Result<(), StoreError> {
        self.was_asked = true;
        self.sql
            .prepare_cached("INSERT OR IGNORE INTO asked (site, proposal) VALUES (?1, ?2)")?
            .execute([site.as_bytes(), proposal.as_bytes()])?;
        Ok(())
    }

    /// Does something as somebody else, with ids and nonces from `seed` if there is one.
    fn acting<T>(
        &mut self,
        by: &str,
        seed: Option<[u8; 32]>,
        act: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let before = self.author()?.clone();
        let entropy = seed.map_or_else(|| before.entropy.clone(), Entropy::new);
        let present = before.by.clone();
        self.author = Some(sync::document::Author { by: by.to_string(), entropy, ..before.clone() });
        let given = std::mem::replace(&mut self.given.by, by.to_string());
        let done = act(self);
        self.given.by = given;
        // What was drawn from our own entropy is drawn.
        let entropy = if seed.is_some() { before.entropy.clone() } else { self.author()?.entropy.clone() };
        self.author = Some(sync::document::Author { by: present, entropy, ..before });
        done
    }
}

/// Answers the proposals of a site that are due. While central is in recovery they wait.
pub(crate) fn due(tx: &mut Tx<'_>, site: SiteId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    for id in tx.view().due_proposals(site)? {
        let Some(row) = tx.view().proposal(id)?.filter(|row| row.state == ProposalState::Open) else {
            continue;
        };
        if let Some(before) = row.rests_on {
            match tx.view().proposal(before)?.map(|row| row.state) {
                Some(ProposalState::Applied) => {}
                // It ended with the one that it rests on.
                Some(ProposalState::Refused) => {
                    tx.acting(CENTRAL, None, |tx| command::settle(tx, id))?;
                    continue;
                }
                // Whatever is after it in the journal waits too.
                Some(ProposalState::Open) | None => return Ok(()),
            }
        }
        match carry_out(tx, &row) {
            Ok(made) => {
                tx.acting(CENTRAL, None, |tx| command::end(tx, &row, true, &made))?;
            }
            Err(error) => {
                let Some(reason) = answer(&error) else { return Err(error) };
                tx.acting(CENTRAL, None, |tx| command::refuse(tx, id, &reason))?;
            }
        }
    }
    Ok(())
}

/// The answer to a person where it is one, and not a failure of the database.
fn answer(error: &StoreError) -> Option<String> {
    match error {
        StoreError::Refused(_) | StoreError::Unknown(_) | StoreError::Recovering(_) => {
            Some(error.to_string())
        }
        _ => None,
    }
}

/// Does what a proposal asks for, or nothing of it; returns what came of it, in words.
///
/// # Errors
/// `Refused`, `Unknown` or `Recovering` as the answer.
pub(super) fn carry_out(tx: &mut Tx<'_>, row: &ProposalRow) -> Result<String, StoreError> {
    let read = tx.with_document(proposal::KIND, row.id.into(), paper::read)?;
    let mut ask = match read {
        Some(Ok(ask)) => ask,
        Some(Err(why)) => return refused(why),
        None => return refused("it is not here any more"),
    };
    let seed = seed(row.id);
    let (kind, document) = target(&ask.what, row.site, seed);
    if tx.with_document(kind, document, |document| was_done(document, seed))? == Some(true) {
        return Ok("it had been done before central's database went back in time".into());
    }
    let name = tx.view().site(row.site)?.map_or_else(|| row.site.to_string(), |row| row.name);
    let said = if ask.why.is_empty() { String::new() } else { format!("{}; ", ask.why) };
    ask.why = crate::intent::cut(&format!("{said}asked for at {name}")).to_string();
    tx.sql.execute_batch("SAVEPOINT answer")?;
    let grown = tx.grown.clone();
    let done = tx.acting(&row.by, Some(seed), |tx| {
        ask::check(tx, &ask.what, row.site)?;
        ask::act(tx, &ask, Some(row.site))
    });
    match &done {
        // A full disk takes back the whole transaction by itself.
        Err(_) if tx.sql.is_autocommit() => {}
        Err(_) => {
            tx.sql.execute_batch("ROLLBACK TO answer; RELEASE answer")?;
            tx.state.open.forget(&tx.touched);
            tx.grown = grown;
        }
        Ok(_) => tx.sql.execute_batch("RELEASE answer")?,
    }
    done.map(|done| told(&ask, &done))
}

/// What central did, for whoever asked.
fn told(ask: &Ask, done: &Done) -> String {
    match (&ask.what, done) {
        (What::CreateTask(_), Done::Task(row)) => format!("task {} was created", row.id),
        (What::RetryTask { .. }, Done::Task(row)) => {
            format!("task {} has attempt {} now", row.id, row.attempt)
        }
        (What::AdoptMachine { .. }, Done::Node(row)) => format!("node {} is at home there now", row.id),
        (What::ConsentToClaim { .. }, Done::Claim(row)) => format!("it is noted; the claim is {}", row.state),
        (_, _) => "done by central".into(),
    }
}

/// Where everything comes from that is drawn for a proposal.
fn seed(id: ProposalId) -> [u8; 32] {
    blake3::derive_key("holdfast/proposal/v1", id.as_bytes())
}

/// The document that tells whether it was done.
fn target(what: &What, site: SiteId, seed: [u8; 32]) -> (Kind, DocumentId) {
    match what {
        What::EditNode { node, .. } => (node::KIND, (*node).into()),
        What::AdoptMachine { mac } => (node::KIND, NodeId::of(*mac).into()),
        // Its id is the first that is drawn.
        What::CreateTask(_) => (task::KIND, Entropy::new(seed).document_id()),
        What::JudgeTask { task, .. }
        | What::CancelTask { task }
        | What::RetryTask { task }
        | What::AbortTask { task } => (task::KIND, (*task).into()),
        What::SwitchPxe { .. } => (site::KIND, site.into()),
        What::ConsentToClaim { claim, .. } => (claim::KIND, (*claim).into()),
    }
}

/// Whether a document holds what central wrote there for a proposal, now or once.
fn was_done(document: &Document, seed: [u8; 32]) -> bool {
    let mut entropy = Entropy::new(seed);
    let nonces: Vec<Nonce> = (0..DRAWS).map(|_| entropy.nonce()).collect();
    let ours = |write: &ingress::Write| {
        write.written.site == Origin::Central && nonces.contains(&write.written.nonce)
    };
    document.automerge().get_changes(&[]).iter().any(|change| {
        let parsed = ingress::parse(change.raw_bytes());
        let writes = parsed.and_then(|parsed| ingress::registers(document.kind(), document.id(), &parsed));
        writes.is_ok_and(|writes| writes.iter().any(ours))
    })
}
