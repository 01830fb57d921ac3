//! One mutant of a change before one replica, and what must hold afterwards.
//!
//! Nothing but foreign code under guard panics; the document comes back from its own bytes with the same heads
//! and takes the next local change; what central alone writes is untouched; and honest changes are taken beside
//! the mutant and after it.

use std::{collections::BTreeMap, time::Duration};

use automerge::Change;
use sync::{
    document::{
        Author, Document, DocumentError, FieldError, Fields, Kind, Register, Value, Writers, claim,
        contested, node, proposal,
        register::{Edit, Entropy},
        site, task, workflow,
    },
    id::{Incarnation, Origin, SiteId},
    ingress::{Admission, Authority, Delivery, Denied, Outcome, UnknownKeys, Write, admit, authorize},
    policy::Autonomy,
    time::Hlc,
};

use super::{quietly, tally::End};
use crate::{
    corpus::{Corpus, Situation, pick},
    random::Random,
    world,
};

/// One mutant before one replica.
pub struct Trial<'a> {
    pub corpus: &'a Corpus,
    pub situation: Situation<'a>,
    pub seed: u64,
    /// Whether the replica is central; otherwise it is a site that trusts who sends.
    pub is_central: bool,
}

impl Trial<'_> {
    /// The site that brings the change: its writer, or any if that was central.
    pub fn deliverer(&self, random: &mut Random) -> SiteId {
        match self.situation.next.writer {
            Origin::Site(site) if random.chance(90) => site,
            _ => self.corpus.sites[pick(random, 2)],
        }
    }

    /// Lets the replica take the mutant and an honest change of somebody else in one batch, then the honest change
    /// that was mutated. Counts those in `honest`.
    ///
    /// # Panics
    /// When something does not hold that must.
    pub fn run(&self, random: &mut Random, site: SiteId, mutant: &[u8], honest: &mut u64) -> End {
        let Situation { document, next, .. } = self.situation;
        // Somebody else writes without having seen the mutant, and is told in the same batch.
        let witness = witness(document, random);
        let admission = self.admit(document, &[mutant, witness.raw_bytes()], site, Some(&witness));
        let [end, other] = &admission.outcomes[..] else { panic!("seed {}: two outcomes", self.seed) };
        assert!(matches!(other, Outcome::Accept(_)), "seed {}: {other:?} beside {end:?}", self.seed);
        let after = admission.document.as_ref().expect("the honest change is in it");
        self.survives(after, random);
        if self.is_central {
            self.nothing_forbidden(document, after, site, end);
        }
        *honest += 1;
        // The change that was mutated comes too. Only its own writer can have spoiled it, by a second history.
        let own = Change::try_from(&next.bytes[..]).expect("an honest change");
        let is_fork = matches!(end, Outcome::Accept(taken) if taken.change.actor_id() == own.actor_id()) && {
            let Outcome::Accept(taken) = end else { unreachable!("it was just matched") };
            taken.change.hash() != own.hash()
        };
        if !is_fork {
            let writer = match next.writer {
                Origin::Site(site) => site,
                Origin::Central => site,
            };
            let admission = self.admit(after, &[&next.bytes], writer, Some(&own));
            let found = &admission.outcomes[0];
            let fits = matches!(found, Outcome::Accept(_) | Outcome::Duplicate);
            assert!(fits, "seed {}: an honest change is refused: {found:?}", self.seed);
            *honest += 1;
        }
        end.into()
    }

    /// Admits a batch as the replica would; `honest` is known to be so and not judged again if central wrote it.
    pub fn admit(
        &self,
        document: &Document,
        batch: &[&[u8]],
        site: SiteId,
        honest: Option<&Change>,
    ) -> Admission {
        let judge = |document: &Document, change: &Change, writes: &[Write]| {
            let by_central = writes.iter().all(|write| write.written.site == Origin::Central);
            if honest.is_some_and(|honest| honest.hash() == change.hash()) && by_central {
                return Ok(());
            }
            self.judge(document, change, writes, site)
        };
        let run = || {
            if self.is_central {
                admit(document, batch, UnknownKeys::Refuse, Authority::Judged(&judge))
            } else {
                admit(document, batch, UnknownKeys::Keep, Authority::Trusted)
            }
        };
        quietly(run).unwrap_or_else(|_| panic!("seed {}: a panic escapes", self.seed))
    }

    fn judge(
        &self,
        document: &Document,
        change: &Change,
        writes: &[Write],
        site: SiteId,
    ) -> Result<(), Denied> {
        let owner = self.corpus.actors.get(change.actor_id().to_bytes());
        let delivery = Delivery {
            site,
            name: "the site".into(),
            actor_is_theirs: owner.is_none_or(|owner| *owner == Origin::Site(site)),
            autonomy: Autonomy::Full,
            released: false,
            beyond: false,
        };
        authorize(document, change, writes, &delivery)
    }

    /// The document comes back from its own bytes, also after somebody has written into it here.
    pub fn survives(&self, document: &Document, random: &mut Random) {
        // Saved as a store saves it, and not as ingress tried it.
        let loads = |document: &Document| -> Result<bool, DocumentError> {
            let loaded = Document::load(document.kind(), document.id(), &document.save())?;
            Ok(loaded.heads() == document.heads())
        };
        let sound = quietly(|| {
            let mut document = document.clone();
            let before = loads(&document)?;
            write(&mut document, Origin::Central, random);
            Ok::<bool, DocumentError>(before && loads(&document)?)
        });
        match sound {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => panic!("seed {}: the document comes back as another one", self.seed),
            Ok(Err(error)) => panic!("seed {}: the document does not survive: {error}", self.seed),
            Err(_) => panic!("seed {}: the document makes automerge panic", self.seed),
        }
    }

    /// What central alone writes is as it was, and what is new says that the site wrote it.
    fn nothing_forbidden(&self, before: &Document, after: &Document, site: SiteId, end: &Outcome) {
        let held = |document: &Document| centrals(document);
        let (before, after) = (held(before), held(after));
        for (path, value) in &before {
            let now = after.get(path).cloned().unwrap_or_default();
            assert!(now == *value, "seed {}: `{path}` was {value:?} and is {now:?} after {end:?}", self.seed);
        }
        if let Outcome::Accept(taken) = end {
            let strange = taken.writes.iter().find(|write| write.written.site != Origin::Site(site));
            assert!(strange.is_none(), "seed {}: {strange:?} is accepted from {site}", self.seed);
        }
    }
}

/// An honest change of central, by an actor of its own, that has seen the document as it is. Where it writes
/// what central alone writes, nobody has written there before.
fn witness(document: &Document, random: &mut Random) -> Change {
    write(&mut document.clone(), Origin::Central, random)
}

fn write(document: &mut Document, site: Origin, random: &mut Random) -> Change {
    let mut author = Author {
        incarnation: Incarnation(random.bytes()),
        site,
        by: "eve".into(),
        at: Hlc::at(world::BEGIN.after(Duration::from_secs(1_000_000))),
        policy_epoch: 1,
        entropy: Entropy::new(random.bytes()),
    };
    let kind = document.kind();
    let change = document.write(&mut author, |edit| decide(edit, kind));
    change.expect("a register is always written")
}

fn decide(edit: &mut Edit<'_>, kind: Kind) {
    match kind {
        Kind::Node => edit.set(&node::notes(), &node::Text { value: "seen".into() }, ""),
        Kind::Site | Kind::Group => {
            edit.set(&site::setting("note"), &site::Setting { value: Some("seen".into()) }, "")
        }
        Kind::Task => edit.set(&task::cancel(), &task::Cancel { cancelled: true }, "no longer"),
        Kind::Workflow => {
            let version = workflow::Version {
                files: BTreeMap::new(),
                sizes: BTreeMap::new(),
                kernel_args: "quiet".into(),
                needs_approval: false,
            };
            edit.set(&workflow::version(9), &version, "")
        }
        Kind::Proposal => {
            let outcome = proposal::Outcome { applied: false, reason: "seen".into() };
            edit.set(&proposal::outcome(), &outcome, "")
        }
        Kind::Claim => {
            let seen = claim::Evidence {
                macs: BTreeMap::new(),
                serial: Some("seen".into()),
                system_uuid: None,
                vendor: None,
                model: None,
                address: None,
            };
            edit.set(&claim::evidence(), &seen, "")
        }
    };
}

/// Everything in a document that no site writes, by path: every side with its fields.
fn centrals(document: &Document) -> BTreeMap<String, Vec<Fields>> {
    let schema = document.kind().schema();
    let central = |writers: Writers| writers == Writers::Central;
    let roots = schema.registers.iter().filter(|it| central(it.writers)).map(|it| Register::at_root(it.key));
    let inside = schema.containers.iter().filter(|it| central(it.writers)).flat_map(|container| {
        let keys = contested::keys(document, container.key);
        keys.into_iter().map(|key| Register::within(container.key, key))
    });
    roots
        .chain(inside)
        .map(|register: Register<All>| {
            let sides = contested::read(document, &register);
            (register.path(), sides.sides().iter().map(|side| side.value.0.clone()).collect())
        })
        .collect()
}

/// Whatever stands in a register.
#[derive(Clone)]
struct All(Fields);

impl Value for All {
    fn to_fields(&self) -> Fields {
        self.0.clone()
    }

    fn from_fields(fields: &Fields) -> Result<Self, FieldError> {
        Ok(All(fields.clone()))
    }
}
