//! The last gate: whether the document survives the change.
//!
//! What passed the earlier gates is not known to harm Automerge, but that was measured, not proven. So it
//! is tried on a copy, and the copy must come back from its own bytes, before anything is committed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::Change;

use super::Rejection;
use crate::document::Document;

/// Returns a copy of `document` with `change` in it.
///
/// # Errors
/// `Apply` or `Panicked`; the copy is gone with what was half done.
pub fn extend(document: &Document, change: &Change) -> Result<Document, Rejection> {
    let mut extended = document.clone();
    apply(&mut extended, change)?;
    Ok(extended)
}

/// Puts `change` into a document that nobody else has.
///
/// # Errors
/// `Apply` or `Panicked`; the document must not be used any more then.
pub(super) fn apply(document: &mut Document, change: &Change) -> Result<(), Rejection> {
    guard("apply a change", || {
        document.apply(change.clone()).map_err(|error| Rejection::Apply(Box::new(error)))
    })?
}

/// Saves `document`, loads it and compares heads; saved bytes are not canonical and say nothing.
///
/// It is saved without compression, which takes as long as everything else together and has no part in whether
/// the columns come back: what is inflated is what was deflated.
///
/// # Errors
/// `Unloadable`, `HeadsDiffer` or `Panicked`.
pub fn verify(document: &Document) -> Result<(), Rejection> {
    let loaded = guard("save and load the document", || {
        document.again().map_err(|error| Rejection::Unloadable(Box::new(error)))
    })??;
    if loaded.heads() == document.heads() { Ok(()) } else { Err(Rejection::HeadsDiffer) }
}

/// Runs foreign code on foreign data, for instance to "decode a change".
///
/// What it touched must not be used after a panic: every caller works on copies.
pub(super) fn guard<T>(purpose: &'static str, foreign: impl FnOnce() -> T) -> Result<T, Rejection> {
    catch_unwind(AssertUnwindSafe(foreign)).map_err(|_| Rejection::Panicked(purpose))
}

#[cfg(test)]
mod tests {
    use automerge::{ActorId, ExpandedChange, legacy::SortedVec};

    use super::{
        super::{
            Authority, Spoilt, UnknownKeys, admit, admit_into,
            testing::{LYON, Random, author, chain, encode, machine, quietly, text, write},
            tests::{mutate_bytes, mutate_meaning, situation},
        },
        *,
    };
    use crate::document::{contested, node};

    /// What becomes of a change that the earlier gates would not have let through.
    fn verdict(forge: impl FnOnce(&mut ExpandedChange)) -> String {
        let document = machine();
        let before = document.heads();
        let next = write(&mut document.clone(), author(2, LYON, 20), &node::hostname(), &text("kasse-1"));
        let mut change = next.decode();
        forge(&mut change);
        let change = Change::try_from(&encode(&change)[..]).expect("well encoded");
        let verdict = quietly(|| extend(&document, &change).and_then(|extended| verify(&extended)));
        assert_eq!(document.heads(), before);
        verdict.map_or_else(|error| chain(&error), |()| "survives".into())
    }

    #[test]
    fn an_honest_change_is_applied_to_a_copy_that_survives() {
        assert_eq!(verdict(|_| ()), "survives");
        let document = machine();
        let change = write(&mut document.clone(), author(2, LYON, 20), &node::hostname(), &text("kasse-1"));
        let extended = extend(&document, &change).unwrap();
        verify(&extended).unwrap();
        let name =
            |document| contested::read(document, &node::hostname()).settled().unwrap().value.value.clone();
        assert_eq!((name(&document).as_str(), name(&extended).as_str()), ("pos-1", "kasse-1"));
    }

    /// Where nothing is spoilt, a document of one's own becomes what a copy becomes, and everybody hears the same.
    #[test]
    fn h6_a_document_that_is_extended_where_it_lies_ends_as_a_copy_does() {
        let (mut taken, mut spoilt) = (0, 0);
        for seed in 1..=300 {
            let mut random = Random(seed);
            let (document, honest) = situation(&mut random);
            let mutant = if seed % 2 == 0 {
                mutate_bytes(&honest, &mut random)
            } else {
                mutate_meaning(&document, &honest, &mut random)
            };
            let batch = [&mutant[..], honest.raw_bytes(), honest.raw_bytes()];
            let copied = quietly(|| admit(&document, &batch, UnknownKeys::Refuse, Authority::Trusted));
            let own = document.clone();
            match quietly(|| admit_into(own, &batch, UnknownKeys::Refuse, Authority::Trusted)) {
                Ok((own, outcomes)) => {
                    assert_eq!(format!("{outcomes:?}"), format!("{:?}", copied.outcomes), "seed {seed}");
                    assert_eq!(own.heads(), copied.document.unwrap_or(document).heads(), "seed {seed}");
                    taken += 1;
                }
                Err(Spoilt) => spoilt += 1,
            }
        }
        println!("{taken} taken, {spoilt} spoilt");
        assert!(taken > 250, "{taken} taken");
    }

    #[test]
    fn a_panic_of_automerge_is_a_rejection() {
        assert_eq!(verdict(|change| change.seq = 7), "automerge panicked when it was to apply a change");
    }

    #[test]
    fn a_change_that_automerge_refuses_is_rejected_with_its_reason() {
        assert_eq!(
            verdict(|change| change.seq = 1),
            "automerge does not apply the change: apply stored change to node 07070707070707070707070707070707: \
             duplicate seq 1 found for actor 02020202020202020202020202020202"
        );
    }

    #[test]
    fn a_document_that_would_not_load_again_is_found_before_it_is_kept() {
        let found = verdict(|change| {
            let nobody = ActorId::from(&[2; 16][..]);
            change.operations[0].pred = SortedVec::from(vec![automerge::legacy::OpId(3, nobody)]);
        });
        let start = "document cannot be loaded once the change is in it: \
                     load snapshot of node 07070707070707070707070707070707";
        assert!(found.starts_with(start), "{found}");
    }
}
