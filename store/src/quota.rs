//! What central takes from a site at a time, by the quotas of its settings.
//!
//! What is over is not taken and not lost: the site is told when to send it again
//! (`sync::engine::Input::HeldBack`). `sync::policy::quota` decides; here stand the counters, which live as long
//! as the program, and the number of documents, which is in the database.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sync::{
    id::{DocumentId, Origin, SiteId},
    journal::Event,
    policy::quota::{self, Hold, Quota, Usage},
    time::Timestamp,
    wire::Item,
};

use crate::{StoreError, Tx};

/// How often the journal says of a site that it is beyond its quota.
const TOLD_EVERY: Duration = Duration::from_secs(3_600);

/// What sites have used.
#[derive(Debug, Default)]
pub(crate) struct Quotas(BTreeMap<SiteId, Used>);

#[derive(Debug, Default)]
struct Used {
    usage: Usage,
    told_at: Option<Timestamp>,
}

impl Tx<'_> {
    /// How many of these items of a peer's log are taken now, and why not more.
    pub(crate) fn within_quota(
        &mut self,
        peer: Origin,
        items: &[Vec<u8>],
        decoded: &[Result<Item, minicbor::decode::Error>],
    ) -> Result<(usize, Option<Hold>), StoreError> {
        let (Origin::Central, Origin::Site(site)) = (self.origin(), peer) else {
            return Ok((items.len(), None));
        };
        let quota = self.view().site(site)?.map_or_else(Quota::default, |row| row.effective.quota());
        let (allowed, too_many) = self.within_documents(peer, &quota, decoded)?;
        let now = self.now();
        let used = self.state.quotas.0.entry(site).or_default();
        let (taken, too_much) = used.usage.take(now, &quota, items[..allowed].iter().map(Vec::len));
        let Some(hold) = too_much.or(too_many) else { return Ok((taken, None)) };
        if used.told_at.is_none_or(|at| now.since(at) >= TOLD_EVERY) {
            used.told_at = Some(now);
            let quota = hold.quota.to_string();
            self.journal_for(site, Event::QuotaReached { site, quota, limit: hold.limit })?;
        }
        Ok((taken, Some(hold)))
    }

    /// How many items come before the one that would bring a document too many into being.
    fn within_documents(
        &self,
        peer: Origin,
        quota: &Quota,
        items: &[Result<Item, minicbor::decode::Error>],
    ) -> Result<(usize, Option<Hold>), StoreError> {
        let mut seen: BTreeSet<DocumentId> = BTreeSet::new();
        let mut firsts: Vec<usize> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            // What cannot be decoded is set aside later, in words.
            let Ok(Item { document: Some(id), change: Some(_), .. }) = item else { continue };
            if seen.insert(*id) && self.find(*id)?.is_none() {
                firsts.push(index);
            }
        }
        if firsts.is_empty() {
            return Ok((items.len(), None));
        }
        let made: i64 = self
            .sql
            .prepare_cached("SELECT count(*) FROM documents WHERE source = ?1")?
            .query_row([peer.to_string()], |row| row.get(0))?;
        let (allowed, hold) = quota::documents(quota, made.unsigned_abs(), firsts.len() as u64);
        let upto = firsts.get(usize::try_from(allowed).unwrap_or(usize::MAX)).copied();
        Ok((upto.unwrap_or(items.len()), hold))
    }
}
