//! At central: whose actor is whose, and how much each site might decide when it wrote.
//!
//! An actor belongs to the site that delivers a change by it first; central's own lives are its own from
//! their start. A site says in its journal which settings epoch it follows from there on, and central
//! remembers what autonomy it gave under each, so that work that is late is judged by what held when it was
//! done. A register may name a newer epoch than the journal, because two replicas that join tell changes
//! before entries; it gains nothing by that but what central gave. Judging itself is
//! [`sync::ingress::authorize`].
//!
//! What a site knew is what it acknowledged before it wrote, in the order in which both arrive: it keeps an
//! acknowledgement back until central has all that it wrote before (`sync::engine::vouch`). So work that is
//! late is judged as it was done; and a site that has acknowledged newer settings follows them, and one that
//! has acknowledged that a document left it writes there as a visitor, whatever it says itself.
//!
//! What was allowed then and would not be under the newest settings is taken, and *marked*: central's journal says
//! what it was (`Mark`). That is only looked for where the autonomy of both differs.
//!
//! What carries central's seal was judged once, and is taken back from whoever brings it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use automerge::Change;
use rusqlite::{Connection, OptionalExtension, params};
use sync::{
    document::{Document, Kind, Value, site::Effective},
    id::{DocumentId, Origin, SiteId},
    ingress::{self, Delivery, Denied, Verified, Write},
    journal::Event,
    policy::Autonomy,
    wire::Seal,
};

use crate::{
    StoreError, Tx,
    command::claim,
    log::{self, signed},
    scope,
};

/// Epochs above this are nobody's: a person who changes a setting every second needs a century.
const MAX_SEEN: u64 = u32::MAX as u64;

/// Who delivers changes, and the settings epoch that held at that position of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) peer: Origin,
    pub(crate) epoch: u64,
    /// What the peer had acknowledged of our log when it wrote.
    pub(crate) known: u64,
    /// How much of the directory it had acknowledged.
    pub(crate) directory: u64,
}

/// What was found out of the peer whose items are taken over, and is not asked again for each of them. Whatever
/// changes any of it begins it anew.
#[derive(Debug, Default)]
pub(crate) struct Known {
    position: Option<Position>,
    /// What a site is called, the newest settings epoch that it had acknowledged at the position, and what it may
    /// decide under the newest one of all.
    site: Option<(Position, String, u64, Autonomy)>,
    /// Who an actor belongs to; that never changes.
    actor: Option<(Vec<u8>, Origin)>,
    /// An epoch that was seen of a site.
    epoch: Option<(SiteId, u64)>,
}

/// Judges the changes of one document that one site delivers.
pub(crate) struct Judge<'c> {
    sql: &'c Connection,
    site: SiteId,
    name: String,
    epoch: u64,
    /// What it may decide under the newest settings.
    present: Autonomy,
    /// The site had acknowledged that the document left it.
    released: bool,
    /// The machine is a stranger at the site by now.
    beyond: bool,
    /// Changes that central sealed, and what they stand on.
    sealed: BTreeSet<[u8; 32]>,
    /// What kept it from judging; then nothing of the batch counts.
    failure: RefCell<Option<StoreError>>,
    /// What it took that the newest settings do not allow, by the hash of the change.
    marks: RefCell<Marks>,
}

/// A change that was taken and would not be, under the newest settings.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    site: SiteId,
    paths: Vec<String>,
    epoch: u64,
    then: Autonomy,
    now: Autonomy,
}

/// Marks by the hash of the change.
pub(crate) type Marks = BTreeMap<[u8; 32], Mark>;

impl Judge<'_> {
    pub(crate) fn ask(&self, document: &Document, change: &Change, writes: &[Write]) -> Result<(), Denied> {
        if self.sealed.contains(&change.hash().0) {
            return Ok(());
        }
        let delivery = self.delivery(change, writes).unwrap_or_else(|error| {
            self.failure.replace(Some(error));
            self.stranger()
        });
        ingress::authorize(document, change, writes, &delivery)?;
        if delivery.autonomy != self.present {
            self.mark(document, change, writes, &delivery);
        }
        Ok(())
    }

    /// Notes which registers of a change that is taken the site might not write under the newest settings.
    fn mark(&self, document: &Document, change: &Change, writes: &[Write], delivery: &Delivery) {
        let now = Delivery { autonomy: self.present, ..delivery.clone() };
        let needs_more = |write: &&Write| {
            let alone = ingress::authorize(document, change, std::slice::from_ref(*write), &now);
            matches!(alone, Err(Denied::Autonomy { .. }))
        };
        let paths: Vec<String> = writes.iter().filter(needs_more).map(Write::path).collect();
        if !paths.is_empty() {
            let epoch = self.epoch.max(named(writes));
            let mark = Mark { site: self.site, paths, epoch, then: delivery.autonomy, now: self.present };
            self.marks.borrow_mut().insert(change.hash().0, mark);
        }
    }

    /// What it marked, if everything could be judged.
    ///
    /// # Errors
    /// What the database said.
    pub(crate) fn end(self) -> Result<Marks, StoreError> {
        let marks = self.marks.into_inner();
        self.failure.into_inner().map_or(Ok(marks), Err)
    }

    fn delivery(&self, change: &Change, writes: &[Write]) -> Result<Delivery, StoreError> {
        Ok(Delivery {
            actor_is_theirs: may_use(self.sql, change.actor_id().to_bytes(), self.site)?,
            autonomy: autonomy(self.sql, self.site, self.epoch.max(named(writes)))?,
            released: self.released,
            beyond: self.beyond,
            ..self.stranger()
        })
    }

    /// The site, if nothing were known of it.
    fn stranger(&self) -> Delivery {
        Delivery {
            site: self.site,
            name: self.name.clone(),
            actor_is_theirs: false,
            autonomy: Autonomy::ReadOnly,
            released: false,
            beyond: false,
        }
    }
}

/// The newest settings epoch that a change itself names.
fn named(writes: &[Write]) -> u64 {
    writes.iter().map(|write| write.written.policy_epoch).max().unwrap_or(0)
}

impl<'t> Tx<'t> {
    /// Where the log of `peer` stands, for changes that arrive next.
    pub(crate) fn position(&self, peer: Origin) -> Result<Position, StoreError> {
        let known = self.known(|known| known.position.filter(|position| position.peer == peer));
        if let Some(position) = known {
            return Ok(position);
        }
        let found: Option<[i64; 3]> = self
            .sql
            .prepare_cached("SELECT epoch, known, directory_known FROM peers WHERE peer = ?1")?
            .query_row([peer.to_string()], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?]))
            .optional()?;
        let [epoch, known, directory] = found.unwrap_or_default().map(i64::unsigned_abs);
        let position = Position { peer, epoch, known, directory };
        self.know(|known| known.position = Some(position));
        Ok(position)
    }

    fn known<T>(&self, read: impl FnOnce(&Known) -> Option<T>) -> Option<T> {
        self.known.borrow().as_ref().and_then(read)
    }

    fn know(&self, note: impl FnOnce(&mut Known)) {
        if let Some(known) = self.known.borrow_mut().as_mut() {
            note(known);
        }
    }

    /// What the site is called, for people, the newest settings epoch that it had acknowledged at `from`, and what it may
    /// decide under the newest one of all.
    fn described(&self, site: SiteId, from: Position) -> Result<(String, u64, Autonomy), StoreError> {
        let known = self.known(|known| {
            let (_, name, epoch, present) = known.site.as_ref().filter(|(position, ..)| *position == from)?;
            Some((name.clone(), *epoch, *present))
        });
        if let Some(described) = known {
            return Ok(described);
        }
        let name: Option<String> = self
            .sql
            .prepare_cached("SELECT name FROM view_sites WHERE id = ?1 AND name != ''")?
            .query_row([site.as_bytes()], |row| row.get(0))
            .optional()?;
        let name = name.unwrap_or_else(|| format!("site {site}"));
        let epoch = self.known_epoch(site, from)?;
        let present = autonomy(self.sql, site, MAX_SEEN)?;
        self.know(|known| known.site = Some((from, name.clone(), epoch, present)));
        Ok((name, epoch, present))
    }

    /// At central: what the site delivers from here on it wrote knowing our log up to `position`. It cannot know
    /// more than there is.
    pub(crate) fn note_known(&mut self, peer: Origin, position: u64) -> Result<(), StoreError> {
        let position = position.min(log::end(self.sql, peer)?);
        self.ensure_peer(peer)?;
        self.sql
            .prepare_cached(
                "UPDATE peers SET known = max(known, ?2), directory_known =
                     CASE WHEN directory_at BETWEEN 1 AND ?2 THEN directory ELSE directory_known END
                 WHERE peer = ?1",
            )?
            .execute(params![peer.to_string(), signed(position)])?;
        scope::end_doubt(self, peer, position)?;
        claim::tend(self, peer.site())
    }

    /// Whether the site has acknowledged, at `from`, that the document is not its own: because it was told that
    /// it left, or where the machine is at home.
    fn is_released(&self, from: Position, site: SiteId, id: DocumentId) -> Result<bool, StoreError> {
        let left = self
            .sql
            .prepare_cached(
                "SELECT 1 FROM scope JOIN documents ON documents.doc = scope.doc
                 WHERE peer = ?1 AND id = ?2 AND inside = 0 AND gone <= ?3",
            )?
            .exists(params![from.peer.to_string(), id.as_bytes(), signed(from.known)])?;
        Ok(left || self.had_told_elsewhere(from, site, id.into())?)
    }

    /// The newest settings epoch that the site has acknowledged at `from`.
    fn known_epoch(&self, site: SiteId, from: Position) -> Result<u64, StoreError> {
        let epoch: Option<i64> = self
            .sql
            .prepare_cached("SELECT max(epoch) FROM epochs WHERE site = ?1 AND told <= ?2")?
            .query_row(params![site.as_bytes(), signed(from.known)], |row| row.get(0))?;
        Ok(epoch.unwrap_or(0).unsigned_abs())
    }

    /// Whoever judges what was delivered at `from`; nobody does at a site.
    pub(crate) fn judge(
        &self,
        from: Position,
        id: DocumentId,
        batch: &[Vec<u8>],
        seals: &[Option<Seal>],
    ) -> Result<Option<Judge<'t>>, StoreError> {
        let (Origin::Central, Origin::Site(site)) = (self.state.origin, from.peer) else { return Ok(None) };
        let (name, acknowledged, present) = self.described(site, from)?;
        // What we told once was judged once, and so was what we wrote it upon.
        let mut sealed = BTreeSet::new();
        if seals.iter().any(Option::is_some) {
            for (bytes, seal) in batch.iter().zip(seals).rev() {
                let Ok(parsed) = ingress::parse(bytes) else { continue };
                let hash = parsed.hash().0;
                if seal.is_some() && *seal == self.seal_change(id, &hash) {
                    sealed.insert(hash);
                }
                if sealed.contains(&hash) {
                    sealed.extend(parsed.deps().iter().map(|dep| dep.0));
                }
            }
        }
        Ok(Some(Judge {
            sql: self.sql,
            site,
            name,
            epoch: from.epoch.max(acknowledged),
            present,
            released: self.is_released(from, site, id)?,
            beyond: self.is_beyond(site, id.into())?,
            sealed,
            failure: RefCell::new(None),
            marks: RefCell::default(),
        }))
    }

    /// At central: says in its journal that a change was taken which the newest settings would not allow.
    pub(crate) fn journal_mark(
        &mut self,
        kind: Kind,
        document: DocumentId,
        mark: &Mark,
    ) -> Result<(), StoreError> {
        self.journal(Event::WorkUnderOlderEpoch {
            site: mark.site,
            kind: kind.to_string(),
            document,
            paths: mark.paths.clone(),
            epoch: mark.epoch,
            then: mark.then.to_string(),
            now: mark.now.to_string(),
        })
    }

    /// At central: keeps what a change that was taken says of its actor, and, when it came back to a central
    /// that was restored, of what a site was allowed.
    pub(crate) fn know_again(
        &self,
        document: (Kind, DocumentId),
        verified: &Verified,
    ) -> Result<(), StoreError> {
        if self.state.origin != Origin::Central {
            return Ok(());
        }
        // Everybody who passed writes in his own name, also in what central told once.
        if let Some(first) = verified.writes.first() {
            let owned = (verified.change.actor_id().to_bytes(), first.written.site);
            let is_known = |known: &Known| {
                known.actor.as_ref().map(|(actor, owner)| (actor.as_slice(), *owner) == owned)
            };
            if self.known(is_known) != Some(true) {
                register(self.sql, owned.0, owned.1)?;
                self.know(|known| known.actor = Some((owned.0.to_vec(), owned.1)));
            }
            if let Origin::Site(site) = first.written.site {
                self.see_epoch(site, first.written.policy_epoch)?;
            }
        }
        if let (Kind::Site, id) = document {
            let effective = verified.writes.iter().filter(|write| write.path() == "effective");
            for effective in effective.filter_map(|write| Effective::from_fields(&write.fields).ok()) {
                self.mint_epoch(id.into(), &effective)?;
                self.see_epoch(id.into(), effective.epoch)?;
            }
        }
        Ok(())
    }

    /// Notes that a site follows an epoch from here on. An older one than before changes nothing: a site
    /// does not get back by itself what it was once allowed.
    pub(crate) fn note_epoch(&self, site: SiteId, epoch: u64) -> Result<(), StoreError> {
        self.see_epoch(site, epoch)?;
        self.sql
            .prepare_cached("UPDATE peers SET epoch = max(epoch, ?2) WHERE peer = ?1")?
            .execute(params![Origin::Site(site).to_string(), signed(epoch)])?;
        self.know(|known| *known = Known::default());
        Ok(())
    }

    /// Keeps that there is such an epoch of a site, because somebody told of it: central may have made it in a
    /// life that is gone, and never makes it again. What no central would have reached is not believed.
    pub(crate) fn see_epoch(&self, site: SiteId, epoch: u64) -> Result<(), StoreError> {
        let known = self.known(|known| known.epoch.filter(|(of, _)| *of == site));
        if epoch > MAX_SEEN || known.is_some_and(|(_, seen)| seen >= epoch) {
            return Ok(());
        }
        self.know(|known| known.epoch = Some((site, epoch)));
        let peer = Origin::Site(site).to_string();
        let seen = "SELECT 1 FROM peers WHERE peer = ?1 AND seen_epoch >= ?2";
        if self.sql.prepare_cached(seen)?.exists(params![peer, signed(epoch)])? {
            return Ok(());
        }
        self.sql.prepare_cached("INSERT OR IGNORE INTO peers (peer) VALUES (?1)")?.execute([&peer])?;
        self.sql
            .prepare_cached("UPDATE peers SET seen_epoch = ?2 WHERE peer = ?1 AND seen_epoch < ?2")?
            .execute(params![peer, signed(epoch)])?;
        Ok(())
    }

    /// The highest epoch of a site's settings that there is, as far as is known here.
    pub(crate) fn highest_epoch(&self, site: SiteId) -> Result<u64, StoreError> {
        let highest: i64 = self
            .sql
            .prepare_cached(
                "SELECT max(ifnull((SELECT max(epoch) FROM epochs WHERE site = ?1), 0),
                     ifnull((SELECT seen_epoch FROM peers WHERE peer = ?2), 0))",
            )?
            .query_row(params![site.as_bytes(), Origin::Site(site).to_string()], |row| row.get(0))?;
        Ok(highest.unsigned_abs())
    }

    /// Remembers what a site may decide under an epoch that central makes, and that its log says so by now.
    pub(crate) fn mint_epoch(&self, site: SiteId, effective: &Effective) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT OR REPLACE INTO epochs (site, epoch, autonomy, told) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                site.as_bytes(),
                signed(effective.epoch),
                effective.autonomy.as_str(),
                signed(log::end(self.sql, Origin::Site(site))?)
            ])?;
        self.know(|known| *known = Known::default());
        Ok(())
    }
}

/// Registers an actor to its owner, unless it has one.
pub(crate) fn register(sql: &Connection, actor: &[u8], owner: Origin) -> Result<(), StoreError> {
    sql.prepare_cached("INSERT OR IGNORE INTO actors (actor, peer) VALUES (?1, ?2)")?
        .execute(params![actor, owner.to_string()])?;
    Ok(())
}

/// Whether an actor is the site's, or nobody's yet.
fn may_use(sql: &Connection, actor: &[u8], site: SiteId) -> Result<bool, StoreError> {
    let owner: Option<String> = sql
        .prepare_cached("SELECT peer FROM actors WHERE actor = ?1")?
        .query_row([actor], |row| row.get(0))
        .optional()?;
    Ok(owner.is_none_or(|owner| owner == Origin::Site(site).to_string()))
}

/// What a site might decide under an epoch: under the newest one up to it that central made. A site that
/// never heard of any settings follows the defaults, and so does this.
fn autonomy(sql: &Connection, site: SiteId, epoch: u64) -> Result<Autonomy, StoreError> {
    let word: Option<String> = sql
        .prepare_cached(
            "SELECT autonomy FROM epochs WHERE site = ?1 AND epoch <= ?2 ORDER BY epoch DESC LIMIT 1",
        )?
        .query_row(params![site.as_bytes(), signed(epoch)], |row| row.get(0))
        .optional()?;
    Ok(word.map_or(Ok(Effective::default().autonomy), |word| word.parse())?)
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use expect_test::expect;
    use sync::{
        document::{
            Author, Register,
            node::{self, Text},
            register::Entropy,
        },
        engine::{Connection, Output},
        id::{Incarnation, MacAddr, NodeId},
        journal::{Head, Stream},
        policy::Wanted,
        time::{Hlc, Timestamp},
        wire::Item,
    };

    use crate::{
        Given, Opening, Store,
        command::{
            node::create as create_node,
            site::{self, SettingsEdit},
        },
        view::{JournalFilter, NodeFilter},
    };

    use super::*;

    const NOW: Timestamp = Timestamp(1_795_161_600_000);

    fn given(number: u8) -> Given {
        let now = NOW.after(Duration::from_secs(u64::from(number)));
        Given { now, by: "ann".into(), entropy: [number; 32] }
    }

    fn mac(last: u8) -> MacAddr {
        MacAddr([0x52, 0x54, 0, 0, 0, last])
    }

    /// A central with two sites and a machine at home in the first, and what the sites deliver to it.
    struct Fleet {
        _folder: tempfile::TempDir,
        central: Store,
        sites: [SiteId; 2],
        node: NodeId,
        ends: BTreeMap<SiteId, u64>,
        at: u8,
    }

    impl Fleet {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let central = open(folder.path(), Origin::Central);
            let sites = [("lyon", 2), ("bern", 3)].map(|(name, number)| {
                central.run(given(number), |tx| site::create(tx, name, "", "")).unwrap()
            });
            let lyon = sites[0];
            let node = central.run(given(4), move |tx| create_node(tx, mac(1), lyon, "pos-1")).unwrap();
            Fleet { _folder: folder, central, sites, node, ends: BTreeMap::new(), at: 10 }
        }

        fn set(&mut self, site: SiteId, autonomy: Autonomy) {
            let edit = SettingsEdit { autonomy: Some(autonomy), ..SettingsEdit::default() };
            self.at += 1;
            self.central.run(given(self.at), move |tx| site::set(tx, site, &edit, "").map(drop)).unwrap();
        }

        /// The machine as central has it.
        fn machine(&self) -> Document {
            let id = self.node.into();
            let found =
                self.central.run(given(5), move |tx| tx.with_document(Kind::Node, id, Document::clone));
            found.unwrap().expect("it is there")
        }

        fn deliver(&mut self, site: SiteId, items: Vec<Vec<u8>>) {
            let end = self.ends.entry(site).or_default();
            let (from, peer) = (*end + 1, Origin::Site(site));
            *end += items.len() as u64;
            self.at += 1;
            let output = Output::Ingest { connection: Connection(1), peer, from, items, seal: None };
            self.central.answer_now(output, given(self.at)).unwrap();
        }

        /// What is set aside, one reason per line.
        fn aside(&self) -> String {
            let rows = self.central.read(|view| view.quarantine()).unwrap();
            rows.iter()
                .map(|row| {
                    format!("{} {}: {}\n", row.kind, if row.denied { "denied" } else { "broken" }, row.reason)
                })
                .collect()
        }

        fn hostname(&self) -> String {
            self.central.read(|view| view.node(self.node)).unwrap().unwrap().hostname
        }
    }

    fn open(folder: &Path, origin: Origin) -> Store {
        let given = given(if origin == Origin::Central { 1 } else { 6 });
        Store::open(&Opening { folder: folder.to_path_buf(), origin, given }).unwrap()
    }

    /// Somebody at a site, with one incarnation.
    struct Hand {
        incarnation: u8,
        site: SiteId,
        epoch: u64,
        at: u64,
    }

    impl Hand {
        fn of(site: SiteId, incarnation: u8) -> Self {
            Hand { incarnation, site, epoch: 1, at: u64::from(incarnation) * 1_000 }
        }

        fn write<V: Value>(&mut self, document: &mut Document, register: &Register<V>, value: &V) -> Vec<u8> {
            self.at += 1;
            let mut author = Author {
                incarnation: Incarnation([self.incarnation; 16]),
                site: Origin::Site(self.site),
                by: "bob".into(),
                at: Hlc::at(NOW.after(Duration::from_millis(self.at))),
                policy_epoch: self.epoch,
                entropy: Entropy::new([u8::try_from(self.at % 251).unwrap(); 32]),
            };
            let change = document.write(&mut author, |edit| {
                edit.set(register, value, "");
            });
            let bytes = change.expect("it writes").raw_bytes().to_vec();
            Item::change(document.kind().number(), document.id(), bytes).to_bytes()
        }
    }

    fn text(value: &str) -> Text {
        Text { value: value.into() }
    }

    #[test]
    fn h6_a_forged_write_to_another_sites_machine_is_set_aside_and_honest_work_goes_through() {
        let mut fleet = Fleet::new();
        let [_, bern] = fleet.sites;
        fleet.set(bern, Autonomy::Full);
        let mut hand = Hand { epoch: 2, ..Hand::of(bern, 7) };
        let forged =
            hand.write(&mut fleet.machine(), &node::wanted(), &node::Wish { wanted: Wanted::Retired });
        let mut own = Document::new(Kind::Node, NodeId::of(mac(9)).into());
        let seen = node::Observed { first_seen: NOW, asked_again: None };
        let honest = [
            hand.write(&mut own, &node::mac(mac(9)), &node::Evidence { value: mac(9).to_string() }),
            hand.write(&mut own, &node::observed(bern), &seen),
        ];
        fleet.deliver(bern, vec![honest[0].clone(), forged, honest[1].clone()]);

        let (node, lyon) = (fleet.node, fleet.sites[0]);
        let reason = format!(
            "node denied: `wanted` of node {node} is not bern's to write: the machine is at home at site {lyon}, and \
             only visited there\n"
        );
        assert_eq!(fleet.aside(), reason);
        let nodes = fleet.central.read(|view| view.nodes(&NodeFilter::default())).unwrap();
        let mut homes: Vec<_> = nodes.iter().map(|row| (row.wanted, row.home)).collect();
        homes.sort();
        let mut expected = vec![(Wanted::Keep, Some(lyon)), (Wanted::Keep, Some(bern))];
        expected.sort();
        assert_eq!(homes, expected, "the machine is kept, and Bern's own is at home there");
        let peer = fleet.central.read(|view| view.peer(Origin::Site(bern))).unwrap();
        assert_eq!((peer.pulled, peer.agrees), (3, Some(false)), "the session goes on");
        let noted = fleet.central.read(|view| view.journal(&JournalFilter::default())).unwrap();
        let quarantined = |event: &Option<Event>| matches!(event, Some(Event::ChangeQuarantined { .. }));
        assert_eq!(noted.iter().filter(|row| quarantined(&row.event)).count(), 1);
    }

    #[test]
    fn h6_an_actor_belongs_to_whoever_delivered_it_first_and_centrals_to_central() {
        let mut fleet = Fleet::new();
        let [lyon, bern] = fleet.sites;
        let mut machine = fleet.machine();
        let named = Hand::of(lyon, 7).write(&mut machine, &node::hostname(), &text("till-1"));
        fleet.deliver(lyon, vec![named]);
        assert_eq!(fleet.hostname(), "till-1");

        // Bern learned Lyon's actor, and central's, from documents that it was told.
        let mut own = Document::new(Kind::Node, NodeId::of(mac(9)).into());
        let evidence = node::Evidence { value: "1234".into() };
        let as_lyon = Hand::of(bern, 7).write(&mut own.clone(), &node::evidence("serial"), &evidence);
        let central = fleet.central.incarnation();
        let mut author = Author {
            incarnation: central,
            site: Origin::Site(bern),
            by: "eve".into(),
            at: Hlc::at(NOW),
            policy_epoch: 1,
            entropy: Entropy::new([9; 32]),
        };
        let as_central = own.write(&mut author, |edit| {
            edit.set(&node::evidence("serial"), &evidence, "");
        });
        let as_central = as_central.expect("it writes").raw_bytes().to_vec();
        let as_central = Item::change(Kind::Node.number(), own.id(), as_central).to_bytes();
        fleet.deliver(bern, vec![as_lyon, as_central]);
        let reasons = [Incarnation([7; 16]), central].map(|actor| {
            format!("node denied: the change is by replica {actor}, which is not one of bern's\n")
        });
        assert_eq!(fleet.aside(), reasons.concat());
    }

    #[test]
    fn p5_h6_late_work_is_judged_by_the_settings_that_held_when_it_was_done() {
        let mut fleet = Fleet::new();
        let [lyon, _] = fleet.sites;
        let mut machine = fleet.machine();
        let mut hand = Hand::of(lyon, 7);
        let before = hand.write(&mut machine, &node::hostname(), &text("till-1"));
        // Meanwhile central takes the right away, and hears of the work afterwards.
        fleet.set(lyon, Autonomy::ReadOnly);
        fleet.deliver(lyon, vec![before]);
        assert_eq!((fleet.hostname().as_str(), fleet.aside().as_str()), ("till-1", ""));

        let mut head = Head::new(Incarnation([7; 16]));
        let mut adopted = |epoch| {
            let event = Event::EpochAdopted { epoch };
            Item::entry(head.append(Stream::Site(lyon), Hlc::at(NOW), "sync", epoch, event)).to_bytes()
        };
        let after = hand.write(&mut machine.clone(), &node::hostname(), &text("till-2"));
        fleet.deliver(lyon, vec![adopted(2), after]);
        // An older epoch in the journal, or in the register, brings nothing back.
        let again = Hand::of(lyon, 8).write(&mut machine.clone(), &node::hostname(), &text("till-3"));
        fleet.deliver(lyon, vec![adopted(1), again]);
        let refusal = format!(
            "node denied: `hostname` of node {} needs autonomy `limited`; lyon has `readonly`\n",
            fleet.node
        );
        assert_eq!(fleet.aside(), refusal.repeat(2));
        assert_eq!(fleet.hostname(), "till-1");

        // Two replicas that join tell changes before entries: the register names what central gave by then.
        fleet.set(lyon, Autonomy::Limited);
        let mut newer = Hand { epoch: 3, ..Hand::of(lyon, 9) };
        let named = newer.write(&mut machine, &node::hostname(), &text("till-4"));
        let beyond = Hand { epoch: 99, ..newer }.write(
            &mut machine,
            &node::workflow(),
            &node::WorkflowRef { workflow: None },
        );
        fleet.deliver(lyon, vec![named, beyond]);
        assert_eq!(fleet.hostname(), "till-4");
        let aside = fleet.aside();
        let last = aside.lines().last().unwrap().replace(&fleet.node.to_string(), "the machine");
        expect!["node denied: `workflow` of node the machine needs autonomy `full`; lyon has `limited`"]
            .assert_eq(&last);
    }

    /// The end of the log for a site.
    fn end(fleet: &Fleet, site: SiteId) -> u64 {
        fleet.central.read(|view| view.peer(Origin::Site(site))).unwrap().end
    }

    fn acknowledge(fleet: &mut Fleet, site: SiteId, position: u64) {
        fleet.at += 1;
        let known = Output::Known { peer: Origin::Site(site), position };
        fleet.central.answer_now(known, given(fleet.at)).unwrap();
    }

    #[test]
    fn p6_h6_work_from_before_a_machine_left_is_taken_and_who_has_acknowledged_that_it_left_is_a_visitor() {
        let mut fleet = Fleet::new();
        let [lyon, bern] = fleet.sites;
        let mut machine = fleet.machine();
        let mut hand = Hand::of(lyon, 7);
        let before = end(&fleet, lyon);
        let (node, moved) = (fleet.node, node::Home { home_site: Some(bern), home_epoch: 2, claim: None });
        let moves = move |tx: &mut Tx<'_>| {
            tx.write(Kind::Node, node.into(), |edit| {
                edit.set(&node::home(), &moved, "moved");
            })
        };
        fleet.central.run(given(6), moves).unwrap();
        let left = end(&fleet, lyon);
        assert_eq!(left, before + 1, "lyon is told that it left");

        // Cut off, lyon goes on with what it knows; what it had acknowledged then is older.
        acknowledge(&mut fleet, lyon, before);
        let late = hand.write(&mut machine, &node::hostname(), &text("till-1"));
        fleet.deliver(lyon, vec![late]);
        assert_eq!((fleet.hostname().as_str(), fleet.aside().as_str()), ("till-1", ""));
        // What waits for something else is judged by when it was delivered.
        let missing = hand.write(&mut machine, &node::notes(), &text("under the till"));
        let waits = hand.write(&mut machine, &node::hostname(), &text("till-2"));
        fleet.deliver(lyon, vec![waits]);

        let told = end(&fleet, lyon);
        acknowledge(&mut fleet, lyon, told + 1_000);
        let known = fleet.central.run(given(7), move |tx| tx.position(Origin::Site(lyon))).unwrap().known;
        assert_eq!(known, told, "nobody knows more than he was told");
        // A copy that was kept says nothing of the move, and does not help.
        let after = hand.write(&mut machine, &node::hostname(), &text("till-3"));
        fleet.deliver(lyon, vec![missing, after]);
        let released = |path: &str| {
            format!(
                "node denied: `{path}` of node {node} was written after lyon had acknowledged that this node is \
                 not its own\n"
            )
        };
        let aside = fleet.aside();
        assert!(aside.starts_with(&released("notes")), "{aside}");
        assert_eq!(fleet.hostname(), "till-1");
        // That it was seen there is said wherever a machine is seen.
        let seen = node::Observed { first_seen: NOW, asked_again: None };
        let mut fresh = Document::new(Kind::Node, node.into());
        let observed = Hand::of(lyon, 9).write(&mut fresh, &node::observed(lyon), &seen);
        let lines = fleet.aside().lines().count();
        fleet.deliver(lyon, vec![observed]);
        assert_eq!(fleet.aside().lines().count(), lines);
    }

    #[test]
    fn p9_h6_who_was_told_where_a_machine_is_at_home_does_not_decide_about_it_as_if_he_had_never_heard() {
        let mut fleet = Fleet::new();
        let [_, bern] = fleet.sites;
        fleet.set(bern, Autonomy::Full);
        let mut unseen = Document::new(Kind::Node, fleet.node.into());
        let mut hand = Hand { epoch: 2, ..Hand::of(bern, 7) };
        // Before it heard of the machine it may have been the first to see it.
        let first = hand.write(&mut unseen, &node::notes(), &text("by the door"));
        fleet.deliver(bern, vec![first]);
        assert_eq!(fleet.aside(), "");
        let peer = Origin::Site(bern);
        fleet.central.answer_now(Output::Heard { peer, clock: NOW, telemetry: None }, given(8)).unwrap();
        let told = end(&fleet, bern);
        acknowledge(&mut fleet, bern, told);
        let wish = node::Wish { wanted: Wanted::Retired };
        let retired = hand.write(&mut unseen, &node::wanted(), &wish);
        fleet.deliver(bern, vec![retired]);
        let refusal = format!(
            "node denied: `wanted` of node {} was written after bern had acknowledged that this node is not its own\n",
            fleet.node
        );
        assert_eq!(fleet.aside(), refusal);
    }

    #[test]
    fn p6_h6_settings_that_a_site_has_acknowledged_hold_for_it_whatever_its_journal_says() {
        let mut fleet = Fleet::new();
        let [lyon, _] = fleet.sites;
        let mut machine = fleet.machine();
        let mut hand = Hand::of(lyon, 7);
        fleet.set(lyon, Autonomy::ReadOnly);
        let late = hand.write(&mut machine, &node::hostname(), &text("till-1"));
        fleet.deliver(lyon, vec![late]);
        assert_eq!((fleet.hostname().as_str(), fleet.aside().as_str()), ("till-1", ""));
        let told = end(&fleet, lyon);
        acknowledge(&mut fleet, lyon, told);
        // It keeps quiet about the epoch and names an older one.
        let after = hand.write(&mut machine, &node::hostname(), &text("till-2"));
        fleet.deliver(lyon, vec![after]);
        let refusal = format!(
            "node denied: `hostname` of node {} needs autonomy `limited`; lyon has `readonly`\n",
            fleet.node
        );
        assert_eq!((fleet.hostname().as_str(), fleet.aside()), ("till-1", refusal));
    }

    #[test]
    fn h6_what_waited_is_judged_as_whose_it_is_and_not_as_whoever_let_it_in() {
        let mut fleet = Fleet::new();
        let [lyon, bern] = fleet.sites;
        fleet.set(bern, Autonomy::Full);
        let mut seen = Document::new(Kind::Node, NodeId::of(mac(9)).into());
        let first = Hand { epoch: 2, ..Hand::of(bern, 8) }.write(
            &mut seen,
            &node::evidence("serial"),
            &node::Evidence { value: "1234".into() },
        );
        let wish = node::Wish { wanted: Wanted::Reprovision };
        let waits = Hand::of(lyon, 7).write(&mut seen, &node::wanted(), &wish);
        fleet.deliver(lyon, vec![waits]);
        assert_eq!(fleet.aside(), "");
        fleet.deliver(bern, vec![first]);
        let id = NodeId::of(mac(9));
        assert_eq!(
            fleet.aside(),
            format!("node denied: `wanted` of node {id} needs autonomy `full`; lyon has `limited`\n")
        );
        let rows = fleet.central.read(|view| view.quarantine()).unwrap();
        assert_eq!(rows[0].peer, Origin::Site(lyon));
    }

    #[test]
    fn p5_a_site_notes_an_epoch_in_the_commit_that_brings_it_and_once() {
        let mut fleet = Fleet::new();
        let [lyon, _] = fleet.sites;
        let folder = tempfile::tempdir().unwrap();
        let mut site = open(folder.path(), Origin::Site(lyon));
        let mut pulled = 0;
        let mut told = Vec::new();
        for autonomy in [Autonomy::ReadOnly, Autonomy::Full] {
            fleet.set(lyon, autonomy);
            let from = pulled + 1;
            let items = fleet
                .central
                .run(given(90), move |tx| tx.read_log(Origin::Site(lyon), from, 1 << 20))
                .unwrap();
            pulled += items.len() as u64;
            let output =
                Output::Ingest { connection: Connection(1), peer: Origin::Central, from, items, seal: None };
            site.answer_now(output, given(91)).unwrap();
            drop(site);
            site = open(folder.path(), Origin::Site(lyon));
            let rows = site
                .read(|view| view.journal(&JournalFilter { site: Some(lyon), ..JournalFilter::default() }));
            told = rows.unwrap().into_iter().filter_map(|row| row.event).collect();
        }
        assert_eq!(told, [Event::EpochAdopted { epoch: 2 }, Event::EpochAdopted { epoch: 3 }]);
    }
}
