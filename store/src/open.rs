//! The documents that are in memory: few, and those that were used last.
//!
//! What is here is also in the database, written in the same transaction, so a document can be let go at any
//! time. Whoever works on one asks for it again after he has opened others.
//!
//! Deliberately absent: loading, which is `documents::load`.

use std::collections::{BTreeMap, BTreeSet};

use sync::document::Document;

/// Documents that stay open, at about 17 KB each.
pub(crate) const OPEN_DOCUMENTS: usize = 256;

/// Open documents by their row, with the order in which they were used.
#[derive(Default)]
pub(crate) struct Open {
    documents: BTreeMap<i64, (u64, Document)>,
    /// Row by the number of its last use, oldest first: one per open document.
    used: BTreeMap<u64, i64>,
    uses: u64,
    loaded: u64,
}

impl Open {
    /// A document, if it is open. It is the last one now that would be let go.
    pub(crate) fn get(&mut self, doc: i64) -> Option<&mut Document> {
        self.uses += 1;
        let (at, document) = self.documents.get_mut(&doc)?;
        self.used.remove(at);
        *at = self.uses;
        self.used.insert(*at, doc);
        Some(document)
    }

    /// Keeps a document as it is now. The one that was not used for longest goes where there are too many.
    pub(crate) fn insert(&mut self, doc: i64, document: Document) {
        self.uses += 1;
        if let Some((before, _)) = self.documents.insert(doc, (self.uses, document)) {
            self.used.remove(&before);
        }
        self.used.insert(self.uses, doc);
        if self.documents.len() > OPEN_DOCUMENTS
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.documents.remove(&oldest);
        }
    }

    /// The same for one that was read from the disk.
    pub(crate) fn insert_loaded(&mut self, doc: i64, document: Document) {
        self.loaded += 1;
        self.insert(doc, document);
    }

    pub(crate) fn remove(&mut self, doc: i64) {
        if let Some((at, _)) = self.documents.remove(&doc) {
            self.used.remove(&at);
        }
    }

    /// Lets go of documents whose last writing is not in the database.
    pub(crate) fn forget(&mut self, docs: &BTreeSet<i64>) {
        for doc in docs {
            self.remove(*doc);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.documents.clear();
        self.used.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.documents.len()
    }

    pub(crate) fn loaded(&self) -> u64 {
        self.loaded
    }
}

#[cfg(test)]
mod tests {
    use sync::{document::Kind, id::DocumentId};

    use super::*;

    fn document(number: i64) -> Document {
        Document::new(Kind::Node, DocumentId([u8::try_from(number % 251).unwrap(); 16]))
    }

    #[test]
    fn p15_the_document_that_was_not_used_for_longest_is_let_go() {
        let mut open = Open::default();
        let most = i64::try_from(OPEN_DOCUMENTS).unwrap();
        for doc in 1..=most {
            open.insert(doc, document(doc));
        }
        assert!(open.get(1).is_some());
        open.insert(most + 1, document(7));
        assert_eq!((open.len(), open.get(1).is_some(), open.get(2).is_some()), (OPEN_DOCUMENTS, true, false));

        // Also where thousands are used between two looks at one, nothing is kept for good.
        for doc in 1_000..12_000 {
            open.insert_loaded(doc, document(doc));
            assert_eq!(open.used.len(), open.documents.len());
        }
        assert_eq!((open.len(), open.loaded(), open.get(1).is_some()), (OPEN_DOCUMENTS, 11_000, false));
    }

    #[test]
    fn p15_what_was_taken_back_is_not_kept() {
        let mut open = Open::default();
        for doc in 1..=3 {
            open.insert(doc, document(doc));
        }
        open.forget(&BTreeSet::from([2, 9]));
        assert_eq!((open.len(), open.get(2).is_some(), open.get(3).is_some()), (2, false, true));
        open.clear();
        assert_eq!((open.len(), open.used.len()), (0, 0));
    }
}
