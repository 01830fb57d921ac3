//! The documents that are in memory: few, and those that were used last.
//!
//! What is here is also in the database, written in the same transaction, so a document can be let go at any
//! time. Whoever works on one asks for it again after he has opened others.
//!
//! Deliberately absent: loading, which is `documents::load`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use sync::{document::Document, id::Origin};

/// What all open documents may take together at central: some 1,400 of a machine. The memory of the process grows by
/// about three times that, because of what stays free between them.
const AT_CENTRAL: usize = 24 << 20;

/// The same at a site: some 250 of a machine.
const AT_SITE: usize = 4 << 20;

/// Memory of a document besides its operations, and of each of those, in bytes. Measured with automerge 0.12: 13 KB with
/// 58 operations in one change, 30 KB with 358 in 101, 197 KB with 3,058 in 1,001.
const DOCUMENT: usize = 10 << 10;
const OPERATION: usize = 64;

/// Open documents by their row, with the order in which they were used.
pub(crate) struct Open {
    documents: BTreeMap<i64, Entry>,
    /// Row by the number of its last use, oldest first: one per open document.
    used: BTreeMap<u64, i64>,
    uses: u64,
    loaded: u64,
    /// What all of them take, and may take.
    bytes: usize,
    most: usize,
}

struct Entry {
    /// Number of its last use.
    used: u64,
    bytes: usize,
    document: Arc<Document>,
}

impl Open {
    /// None yet. Central has the documents of a whole fleet, a site those of one place.
    pub(crate) fn new(origin: Origin) -> Self {
        let most = match origin {
            Origin::Central => AT_CENTRAL,
            Origin::Site(_) => AT_SITE,
        };
        Open { documents: BTreeMap::new(), used: BTreeMap::new(), uses: 0, loaded: 0, bytes: 0, most }
    }

    /// A document, if it is open. It is the last one now that would be let go.
    pub(crate) fn get(&mut self, doc: i64) -> Option<&mut Document> {
        self.uses += 1;
        let entry = self.documents.get_mut(&doc)?;
        self.used.remove(&entry.used);
        entry.used = self.uses;
        self.used.insert(self.uses, doc);
        Some(Arc::make_mut(&mut entry.document))
    }

    /// The same to read it for as long as one likes, whatever becomes of it here: nothing is copied.
    pub(crate) fn share(&mut self, doc: i64) -> Option<Arc<Document>> {
        self.get(doc)?;
        self.documents.get(&doc).map(|entry| Arc::clone(&entry.document))
    }

    /// Keeps a document as it is now. Those that were not used for longest go where all together take too much;
    /// the one that came last stays, however large it is.
    pub(crate) fn insert(&mut self, doc: i64, document: Document) {
        self.remove(doc);
        self.uses += 1;
        let bytes = DOCUMENT + OPERATION * document.operations();
        self.bytes += bytes;
        self.documents.insert(doc, Entry { used: self.uses, bytes, document: Arc::new(document) });
        self.used.insert(self.uses, doc);
        while self.bytes > self.most
            && self.documents.len() > 1
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.remove(oldest);
        }
    }

    /// The same for one that was read from the disk.
    pub(crate) fn insert_loaded(&mut self, doc: i64, document: Document) {
        self.loaded += 1;
        self.insert(doc, document);
    }

    /// A document to work on as one's own: it is not open any more, until it is kept again.
    pub(crate) fn take(&mut self, doc: i64) -> Option<Document> {
        self.remove(doc).map(Arc::unwrap_or_clone)
    }

    pub(crate) fn remove(&mut self, doc: i64) -> Option<Arc<Document>> {
        let entry = self.documents.remove(&doc)?;
        self.used.remove(&entry.used);
        self.bytes -= entry.bytes;
        Some(entry.document)
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
        self.bytes = 0;
    }

    pub(crate) fn len(&self) -> usize {
        self.documents.len()
    }

    /// About how much memory those take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much they may take.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn loaded(&self) -> u64 {
        self.loaded
    }
}

#[cfg(test)]
mod tests {
    use sync::{
        document::Kind,
        id::{DocumentId, SiteId},
    };

    use super::*;

    const SITE: Origin = Origin::Site(SiteId([2; 16]));

    fn document(number: i64) -> Document {
        Document::new(Kind::Node, DocumentId([u8::try_from(number % 251).unwrap(); 16]))
    }

    #[test]
    fn p15_the_document_that_was_not_used_for_longest_is_let_go() {
        let mut open = Open::new(SITE);
        let each = DOCUMENT + OPERATION * document(1).operations();
        let most = AT_SITE / each;
        for doc in (1..).take(most) {
            open.insert(doc, document(doc));
        }
        assert_eq!((open.len(), open.bytes()), (most, most * each));
        assert!(open.get(1).is_some());
        open.insert(999, document(7));
        assert_eq!((open.len(), open.get(1).is_some(), open.get(2).is_some()), (most, true, false));

        // Also where thousands are used between two looks at one, nothing is kept for good.
        for doc in 1_000..12_000 {
            open.insert_loaded(doc, document(doc));
            assert_eq!(open.used.len(), open.documents.len());
            assert!(open.bytes() <= AT_SITE);
        }
        assert_eq!((open.len(), open.loaded(), open.get(1).is_some()), (most, 11_000, false));
        assert!(Open::new(Origin::Central).most() > AT_SITE);
    }

    #[test]
    fn p15_what_was_taken_back_is_not_kept() {
        let mut open = Open::new(SITE);
        for doc in 1..=3 {
            open.insert(doc, document(doc));
        }
        // Again in the place of itself is not twice.
        let bytes = open.bytes();
        open.insert(3, document(3));
        assert_eq!((open.len(), open.bytes()), (3, bytes));
        open.forget(&BTreeSet::from([2, 9]));
        assert_eq!((open.len(), open.get(2).is_some(), open.get(3).is_some()), (2, false, true));
        open.clear();
        assert_eq!((open.len(), open.used.len(), open.bytes()), (0, 0, 0));
    }
}
