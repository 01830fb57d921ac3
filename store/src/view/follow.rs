//! The journal, as somebody reads along who has a position and nothing else.

use std::vec;

use sync::{id::SiteId, journal::Event};

use super::{JournalFilter, JournalRow, View};
use crate::StoreError;

/// Somebody who reads along: how far he has come, and what was found after that and not told yet. He costs one page,
/// however slowly he reads.
#[derive(Debug)]
pub struct Follower {
    look: Look,
    found: vec::IntoIter<JournalRow>,
    /// Nothing followed when it was looked last.
    is_end: bool,
    /// He has heard nothing of the position that was come to.
    is_unsaid: bool,
}

/// What a follower does next.
#[derive(Debug)]
pub enum Step {
    /// Hears that it was looked up to an entry, and of that one if it is wanted.
    Hear(u64, Option<Box<JournalRow>>),
    /// Looks on, and is given what was [found](Follower::found).
    Look(Look),
    /// Waits until the journal has [grown](Follower::grown).
    Wait,
}

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Look {
    filter: JournalFilter,
    kinds: Vec<&'static str>,
}

/// What came after a position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tail {
    rows: Vec<JournalRow>,
    upto: u64,
    is_end: bool,
}

impl Follower {
    /// Reads what comes after an entry, of one site or all and of these kinds or any, in pages of so many entries. He
    /// hears the position first: whoever is cut before the first entry comes goes on from there.
    pub fn new(site: Option<SiteId>, kinds: Vec<&'static str>, after: u64, page: u64) -> Self {
        let look = Look { filter: JournalFilter { site, after, limit: page }, kinds };
        Follower { look, found: vec![].into_iter(), is_end: false, is_unsaid: true }
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        if let Some(row) = self.found.next() {
            return Step::Hear(row.entry, Some(Box::new(row)));
        }
        if std::mem::take(&mut self.is_unsaid) {
            return Step::Hear(self.look.filter.after, None);
        }
        if self.is_end { Step::Wait } else { Step::Look(self.look.clone()) }
    }

    /// The journal has grown.
    pub fn grown(&mut self) {
        self.is_end = false;
    }

    /// This was found.
    pub fn found(&mut self, tail: Tail) {
        // Where nothing of it is wanted, it need not be looked through again after a cut.
        self.is_unsaid = tail.rows.is_empty() && tail.upto > self.look.filter.after;
        self.look.filter.after = tail.upto;
        self.is_end = tail.is_end;
        self.found = tail.rows.into_iter();
    }
}

impl Look {
    /// Looks at the next page.
    ///
    /// # Errors
    /// Those of the database.
    pub fn at(&self, view: &View<'_>) -> Result<Tail, StoreError> {
        let mut rows = view.journal(&self.filter)?;
        let is_end = (rows.len() as u64) < self.filter.limit;
        let upto = rows.last().map_or(self.filter.after, |row| row.entry);
        let is_wanted = |event: &Event| self.kinds.contains(&event.kind());
        rows.retain(|row| self.kinds.is_empty() || row.event.as_ref().is_some_and(is_wanted));
        Ok(Tail { rows, upto, is_end })
    }
}
