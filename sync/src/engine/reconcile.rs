//! Which documents differ: set reconciliation over (document, heads).
//!
//! One element per document that a side holds: its id and a digest of its heads. The site asks, central
//! answers, and after two or three rounds the site knows every document that only one side holds, or both
//! with other heads; the bytes grow with the difference, not with the fleet. The protocol is negentropy's,
//! without its own limit on frames, which would cost round trips; the session bounds what it takes.

use std::{
    collections::BTreeSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use negentropy::{Id, Negentropy, NegentropyStorageVector};

use crate::id::DocumentId;

/// Longest message that is taken, its parts put together.
pub(super) const MAX_MESSAGE: usize = 4 << 20;

/// A document as it is compared: its id, then 8 bytes of the digest of its heads, then zeros, which pack to
/// nothing. Two states of one document have to differ in them, not any two documents.
pub type Element = [u8; 32];

/// The element of a document with these sorted heads, 32 bytes each.
pub fn element(document: DocumentId, heads: &[u8]) -> Element {
    let mut hasher = blake3::Hasher::new_derive_key("holdfast/element/v1");
    hasher.update(heads);
    let mut element = [0; 32];
    element[..16].copy_from_slice(document.as_bytes());
    element[16..24].copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    element
}

/// A comparison under way.
pub(super) struct Comparison {
    negentropy: Negentropy<'static, NegentropyStorageVector>,
    differing: BTreeSet<DocumentId>,
}

impl Comparison {
    /// Begins with everything that this side holds.
    pub(super) fn new(elements: &[Element]) -> Result<Self, String> {
        guarded(|| {
            let mut storage = NegentropyStorageVector::with_capacity(elements.len());
            for element in elements {
                storage.insert(0, Id::from_byte_array(*element))?;
            }
            storage.seal()?;
            let negentropy = Negentropy::owned(storage, 0)?;
            Ok(Comparison { negentropy, differing: BTreeSet::new() })
        })
    }

    /// The first question.
    pub(super) fn ask(&mut self) -> Result<Vec<u8>, String> {
        guarded(|| self.negentropy.initiate())
    }

    /// The answer to a question.
    pub(super) fn answer(&mut self, question: &[u8]) -> Result<Vec<u8>, String> {
        guarded(|| self.negentropy.reconcile(question))
    }

    /// Takes an answer; the next question, or nothing once every difference is known.
    pub(super) fn learn(&mut self, answer: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let Comparison { negentropy, differing } = self;
        guarded(|| {
            let (mut have, mut need) = (Vec::new(), Vec::new());
            let next = negentropy.reconcile_with_ids(answer, &mut have, &mut need)?;
            for id in have.iter().chain(&need) {
                let bytes = id.as_bytes();
                differing.insert(DocumentId(bytes[..16].try_into().expect("16 of 32 bytes")));
            }
            Ok(next)
        })
    }

    /// The documents in which both sides differ, ascending.
    pub(super) fn into_differing(self) -> Vec<DocumentId> {
        self.differing.into_iter().collect()
    }
}

impl fmt::Debug for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Comparison({} differing)", self.differing.len())
    }
}

/// Runs foreign code on a peer's bytes.
fn guarded<T>(foreign: impl FnOnce() -> Result<T, negentropy::Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(foreign)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("the set reconciliation panicked".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(count: u16, differs: impl Fn(u16) -> bool) -> Comparison {
        let elements: Vec<Element> = (0..count)
            .map(|number| {
                let digest = blake3::hash(&number.to_be_bytes());
                let id = DocumentId(digest.as_bytes()[..16].try_into().unwrap());
                element(id, &[u8::from(differs(number)); 32])
            })
            .collect();
        Comparison::new(&elements).unwrap()
    }

    fn rounds(mut site: Comparison, mut central: Comparison) -> String {
        let (mut up, mut down, mut count) = (0, 0, 0);
        let mut question = Some(site.ask().unwrap());
        while let Some(bytes) = question {
            let answer = central.answer(&bytes).unwrap();
            (up, down, count) = (up + bytes.len(), down + answer.len(), count + 1);
            question = site.learn(&answer).unwrap();
        }
        let differing = site.into_differing().len();
        format!("{count} rounds, {up} + {down} bytes, {differing} documents differ")
    }

    #[test]
    fn h5_what_differs_is_found_in_bytes_that_follow_the_difference() {
        let found = [
            rounds(side(10_000, |_| false), side(10_000, |_| false)),
            rounds(side(10_000, |number| number < 10), side(10_000, |_| false)),
            rounds(side(0, |_| false), side(1_000, |_| false)),
        ];
        expect_test::expect![[r#"
            1 rounds, 336 + 1 bytes, 0 documents differ
            2 rounds, 3741 + 3680 bytes, 10 documents differ
            1 rounds, 5 + 32006 bytes, 1000 documents differ"#]]
        .assert_eq(&found.join("\n"));
    }

    #[test]
    fn h6_bytes_that_are_no_reconciliation_are_refused_in_words() {
        let mut central = side(10, |_| false);
        assert!(central.answer(&[]).is_err());
        assert!(central.answer(&[0x62]).is_ok_and(|answer| answer == [0x61]), "only its version is told");
        let mut state = 7_u64;
        for _ in 0..2_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bytes: Vec<u8> =
                blake3::hash(&state.to_be_bytes()).as_bytes()[..(state >> 60) as usize].to_vec();
            let mut bytes = [vec![0x61], bytes].concat();
            bytes.truncate(1 + (state >> 32) as usize % 16);
            drop(central.answer(&bytes));
        }
    }
}
