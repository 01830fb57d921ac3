//! Proposals: what a site may not do itself and asks for, and how central ends it.
//!
//! A site makes a proposal of each change of people that central refused as not the site's to write. A person at
//! central applies or refuses it, once; what was refused takes with it what rests on it. Proposals that a site makes
//! before it writes, as its settings demand (`ask`), central answers by itself (`answer`), unless a person does before.

use std::collections::BTreeSet;

use sync::{
    document::{
        Author, Class, Document, Fields, Kind, contested,
        proposal::{self, Argument, Outcome, Wish},
    },
    id::{DocumentId, Origin, ProposalId},
    ingress::Write,
    journal::Stream,
    policy::Reason,
    time::Hlc,
};

use super::{answer, check_text, refused, register_set, unknown};
use crate::{
    StoreError, Tx,
    intent::{Intent, is_intent},
    view::{ProposalFilter, ProposalRow, ProposalState},
};

/// Longest path that can name an argument, as long as ingress takes keys.
const MAX_PATH: usize = 128;

/// At a site: proposes what a refused change of this site wanted, if it wanted anything and did not only
/// state facts.
pub(crate) fn propose(
    tx: &mut Tx<'_>,
    (kind, id): (Kind, DocumentId),
    writes: &[Write],
    at: Hlc,
) -> Result<Option<ProposalId>, StoreError> {
    let Origin::Site(site) = tx.origin() else { return Ok(None) };
    let wanted: Vec<&Write> = writes
        .iter()
        .filter(|write| write.schema.is_some_and(is_intent) && write.path().len() <= MAX_PATH)
        .collect();
    let Some(first) = wanted.first().filter(|_| kind != Kind::Proposal) else { return Ok(None) };
    let new: ProposalId = tx.new_id()?.into();
    let paths: BTreeSet<String> = wanted.iter().map(|write| write.path()).collect();
    let wish = Wish {
        action: proposal::WRITE.into(),
        about: Some(kind.to_string()),
        document: Some(id),
        journal_seq: tx.newest_entry(Stream::Site(site))?,
        after: under(tx, kind, id, &paths)?,
    };
    // Whoever wanted it stands in it, with his reason and his time.
    let present = tx.author()?.clone();
    let written = &first.written;
    let wisher = Author { by: written.by.clone(), at, policy_epoch: written.policy_epoch, ..present.clone() };
    tx.author = Some(wisher);
    let done = tx.write(proposal::KIND, new.into(), |edit| {
        edit.set(&proposal::wish(), &wish, &written.why);
        for write in &wanted {
            let typed = write.schema.and_then(|schema| (schema.typed)(&write.fields).ok());
            if let Some(fields) = typed {
                edit.set(&proposal::argument(&write.path()), &Argument(fields), &write.written.why);
            }
        }
    });
    let entropy = tx.author()?.entropy.clone();
    tx.author = Some(Author { entropy, ..present });
    done?;
    Ok(Some(new))
}

/// The newest open proposal that registers at `paths` of a document rest on: it writes one of them too, or it
/// makes what the document is.
fn under(
    tx: &Tx<'_>,
    kind: Kind,
    id: DocumentId,
    paths: &BTreeSet<String>,
) -> Result<Option<ProposalId>, StoreError> {
    let filter = ProposalFilter { state: Some(ProposalState::Open), ..ProposalFilter::default() };
    let founds = |path: &String| {
        let intent = Intent::at(kind, path, Fields::new());
        intent.is_some_and(|intent| intent.schema.class == Class::Immutable)
    };
    let rests = |row: &ProposalRow| {
        row.document == Some(id) && row.arguments.keys().any(|path| paths.contains(path) || founds(path))
    };
    Ok(tx.view().proposals(&filter)?.iter().rev().find(|row| rests(row)).map(|row| row.id))
}

/// At central: does what a site proposed, in the name of whoever wished it.
///
/// # Errors
/// `Unknown` proposal; `Refused` when it has ended, rests on one that was not applied, or wishes what central
/// does not do for anybody.
pub fn apply(tx: &mut Tx<'_>, id: ProposalId, why: &str) -> Result<ProposalRow, StoreError> {
    let row = open_one(tx, id, why)?;
    if let Some(why) = tx.view().suspended()?.filter(|_| row.action != proposal::WRITE) {
        return Err(StoreError::Recovering(Reason::new(why)));
    }
    if let Some(before) = row.rests_on {
        match tx.view().proposal(before)?.map(|row| row.state) {
            Some(ProposalState::Applied) => {}
            Some(ProposalState::Open | ProposalState::Refused) | None => {
                return refused(format!(
                    "it rests on proposal {before}, which is not applied; decide that first"
                ));
            }
        }
    }
    if row.action != proposal::WRITE {
        let made = answer::carry_out(tx, &row)?;
        let ended = end(tx, &row, true, &format!("{why}: {made}"))?;
        answer::due(tx, row.site)?;
        return Ok(ended);
    }
    let (Some(kind), Some(about)) =
        (row.kind.as_deref().and_then(|it| it.parse::<Kind>().ok()), row.document)
    else {
        return refused("it is about no document that is known to this program");
    };
    let arguments = tx.with_document(proposal::KIND, id.into(), arguments)?.unwrap_or_default();
    let mut intents = Vec::new();
    for (path, fields) in arguments {
        match Intent::at(kind, &path, fields) {
            Some(intent) => intents.push(intent),
            None => return refused(format!("`{path}` of a {kind} is not known to this program")),
        }
    }
    let name = tx.view().site(row.site)?.map_or_else(|| row.site.to_string(), |row| row.name);
    let said = if row.why.is_empty() { String::new() } else { format!("{}; ", row.why) };
    let reason = format!("{said}proposed at {name}, applied by {}: {why}", tx.by());
    tx.write_intents(row.site, (kind, about), &intents, &row.by, &reason)?;
    let ended = end(tx, &row, true, why)?;
    answer::due(tx, row.site)?;
    Ok(ended)
}

/// At central: does not do what a site proposed, nor what rests on it.
///
/// # Errors
/// `Unknown` proposal; `Refused` when it has ended.
pub fn refuse(tx: &mut Tx<'_>, id: ProposalId, why: &str) -> Result<ProposalRow, StoreError> {
    let row = open_one(tx, id, why)?;
    let ended = end(tx, &row, false, why)?;
    let mut refused = vec![id];
    while let Some(id) = refused.pop() {
        for row in tx.view().proposals_after(id)? {
            if row.state == ProposalState::Open {
                end(tx, &row, false, &rests_on_refused(id))?;
                refused.push(row.id);
            }
        }
    }
    Ok(ended)
}

/// At central: refuses a proposal at once that arrives after the one that it rests on was refused.
pub(crate) fn settle(tx: &mut Tx<'_>, id: ProposalId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central {
        return Ok(());
    }
    let Some(row) = tx.view().proposal(id)?.filter(|row| row.state == ProposalState::Open) else {
        return Ok(());
    };
    let Some(before) = row.rests_on else { return Ok(()) };
    if tx.view().proposal(before)?.is_some_and(|row| row.state == ProposalState::Refused) {
        end(tx, &row, false, &rests_on_refused(before))?;
    }
    Ok(())
}

fn rests_on_refused(id: ProposalId) -> String {
    format!("it rests on proposal {id}, which was refused")
}

fn open_one(tx: &Tx<'_>, id: ProposalId, why: &str) -> Result<ProposalRow, StoreError> {
    check_text("why", why)?;
    if tx.origin() != Origin::Central {
        return refused("central decides about proposals");
    }
    let row = tx.view().proposal(id)?.ok_or_else(|| unknown("proposal", id))?;
    match &row.outcome {
        None => Ok(row),
        Some(end) => refused(format!("proposal {id} ended at {}: {}", end.at, end.reason)),
    }
}

pub(super) fn end(
    tx: &mut Tx<'_>,
    row: &ProposalRow,
    applied: bool,
    why: &str,
) -> Result<ProposalRow, StoreError> {
    let outcome = Outcome { applied, reason: why.to_string() };
    tx.write(proposal::KIND, row.id.into(), |edit| {
        edit.set(&proposal::outcome(), &outcome, why);
    })?;
    let word = if applied { "applied" } else { "refused" };
    tx.journal_for(row.site, register_set(proposal::KIND, row.id, "outcome", format!("{word}: {why}")))?;
    tx.view().proposal(row.id)?.ok_or_else(|| unknown("proposal", row.id))
}

fn arguments(document: &Document) -> Vec<(String, Fields)> {
    let keys = contested::keys(document, proposal::ARGUMENTS);
    let arguments = keys.into_iter().filter_map(|path| {
        let argument = contested::read(document, &proposal::argument(&path));
        let fields = argument.newest()?.value.0.clone();
        Some((path, fields))
    });
    arguments.collect()
}
