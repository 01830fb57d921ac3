//! What a peer's bytes must pass before Automerge keeps them.
//!
//! Automerge 0.12 trusts whom it talks to: a change that nobody honest would write makes it panic, loop,
//! or save what it cannot load. Every change from outside therefore passes, in this order:
//!
//! 1. [`lint`](lint()): the bytes alone, in bounded time and memory;
//! 2. [`parse`]: decoded under guard, and the same bytes again when encoded;
//! 3. [`check`]: against the document that it extends: history, schema, values;
//! 4. [`authorize`](authorize()): at central, whether the delivering site may write that;
//! 5. [`extend`] and [`verify`]: applied to a copy, saved, loaded, compared.
//!
//! [`admit`] walks a batch through all of it, and so does [`admit_into`] as long as nothing goes wrong. Peers send `Change::raw_bytes`, never `Change::bytes`, which
//! deflates. A whole document comes apart in [`snapshot`] and passes as changes. Deliberately absent: whatever
//! is kept, such as parked changes and quarantine; the reset of a document.
//!
//! Panics of foreign code end in a [`Rejection`], which needs `panic = "unwind"` in every profile. The
//! process's panic hook still runs and prints; programs that mind install a quiet one, this crate none.

pub(crate) mod lint;
mod semantic;
mod authorize;
mod verify;
pub mod snapshot;
#[cfg(test)]
mod steps;

use automerge::{Change, ChangeHash, ExpandedChange, LoadChangeError};

pub use authorize::{Delivery, Denied, Target, authorize};
pub use lint::{
    LintError, MAX_ACTORS, MAX_BYTES, MAX_DEPS, MAX_KEY, MAX_MESSAGE, MAX_OPERATIONS, MAX_PREDECESSORS,
    MAX_START_OP, lint,
};
pub use semantic::{SemanticError, Standing, UnknownKeys, Write, check, registers};
pub use verify::{extend, verify};

use crate::document::{Document, DocumentError};

/// Why a change is not taken, now or later. Its bytes belong in quarantine.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// The bytes are not one safe raw change.
    #[error(transparent)]
    Lint(#[from] LintError),
    /// Automerge cannot read the bytes.
    #[error("automerge cannot read the change")]
    Parse(#[source] LoadChangeError),
    /// Automerge panicked.
    #[error("automerge panicked when it was to {0}")]
    Panicked(&'static str),
    /// Written in a way that Automerge reads but would not write; such changes corrupt what it saves.
    #[error("change is not encoded as automerge encodes it")]
    NotCanonical,
    /// The bytes are no snapshot that could be taken apart.
    #[error(transparent)]
    Snapshot(#[from] snapshot::SnapshotError),
    /// Contradicts the history or the schema of its document.
    #[error(transparent)]
    Semantic(#[from] SemanticError),
    /// Automerge refuses to apply it.
    #[error("automerge does not apply the change")]
    Apply(#[source] Box<DocumentError>),
    /// The document could be saved with it, and never be opened again.
    #[error("document cannot be loaded once the change is in it")]
    Unloadable(#[source] Box<DocumentError>),
    /// The document would come back from disk as another one.
    #[error("document has other heads once it is saved and loaded")]
    HeadsDiffer,
}

/// A change that was decoded and is what Automerge itself would have written. It may still be nonsense.
#[derive(Clone, Debug)]
pub struct Parsed {
    change: Change,
    expanded: ExpandedChange,
}

impl Parsed {
    /// Name of the change.
    pub fn hash(&self) -> ChangeHash {
        self.change.hash()
    }

    /// Changes that must be in the document before it, ascending.
    pub fn deps(&self) -> &[ChangeHash] {
        self.change.deps()
    }

    /// The change; only [`admit`] says whether it may be applied.
    pub fn change(&self) -> &Change {
        &self.change
    }
}

/// One change that passed every check and is in the document that [`Admission`] holds.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The change.
    pub change: Change,
    /// The registers that it writes, in its own order.
    pub writes: Vec<Write>,
}

/// What became of one change.
#[derive(Debug)]
pub enum Outcome {
    /// It is in the new document.
    Accept(Box<Verified>),
    /// It was in the document already.
    Duplicate,
    /// It waits for these changes, which the document does not have. That one of them was refused shows
    /// only to who remembers it.
    Park {
        /// Dependencies that are not there, ascending.
        missing: Vec<ChangeHash>,
    },
    /// It is sound, and not for whoever delivered it to write.
    Deny(Denied),
    /// It is not taken.
    Reject(Rejection),
}

/// Says whether a change, with the registers that it writes, may be added to a document that has all of
/// its dependencies. The same change may be put before it more than once.
pub type Judge<'a> = dyn Fn(&Document, &Change, &[Write]) -> Result<(), Denied> + 'a;

/// Who answers for what is delivered.
#[derive(Clone, Copy)]
pub enum Authority<'a> {
    /// Whoever delivers speaks for the fleet: what central sends to a site.
    Trusted,
    /// Each change is judged on its own.
    Judged(&'a Judge<'a>),
}

impl Authority<'_> {
    fn judge(self, document: &Document, change: &Change, writes: &[Write]) -> Result<(), Denied> {
        match self {
            Authority::Trusted => Ok(()),
            Authority::Judged(judge) => judge(document, change, writes),
        }
    }
}

/// What became of a batch.
#[derive(Debug)]
pub struct Admission {
    /// One per change, in the order given.
    pub outcomes: Vec<Outcome>,
    /// The document with everything accepted; none when nothing was.
    pub document: Option<Document>,
}

/// Decodes one change that passes [`lint`](lint()).
///
/// # Errors
/// `Lint`, `Parse`, `Panicked` or `NotCanonical`. The document that it belongs to is not needed for any
/// of them.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Rejection> {
    lint(bytes)?;
    let decoded = verify::guard("decode a change", || {
        let change = Change::try_from(bytes)?;
        let expanded = change.decode();
        let again = Change::from(expanded.clone()).hash();
        Ok((change, expanded, again))
    })?;
    let (change, expanded, again) = decoded.map_err(Rejection::Parse)?;
    if again != change.hash() {
        return Err(Rejection::NotCanonical);
    }
    Ok(Parsed { change, expanded })
}

/// Admits a batch of raw changes of one document in the order given; `document` itself stays as it is.
///
/// A refused change takes none with it but those that depend on it, which are parked. The document is
/// saved and loaded once for the whole batch; where that fails, for halves of it, until the change that
/// spoils it stands alone.
pub fn admit(
    document: &Document,
    batch: &[&[u8]],
    unknown: UnknownKeys,
    authority: Authority<'_>,
) -> Admission {
    admit_with(document, batch, &Gates { unknown, authority, verify: &verify })
}

/// What the gates are told, the same for every change of a batch.
struct Gates<'a> {
    unknown: UnknownKeys,
    authority: Authority<'a>,
    verify: &'a dyn Fn(&Document) -> Result<(), Rejection>,
}

fn admit_with(document: &Document, batch: &[&[u8]], gates: &Gates<'_>) -> Admission {
    let (candidates, mut outcomes) = candidates(batch);
    let document = settle(document, &candidates, gates, &mut outcomes);
    let outcomes =
        outcomes.into_iter().map(|outcome| outcome.expect("settle decides every candidate")).collect();
    Admission { outcomes, document }
}

/// The document is gone with what was half done: [`admit`] decides on another copy of it, and says who spoilt it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoilt;

/// Admits a batch where nothing spoils the document, which is given back with everything accepted in it, and the
/// outcomes. All is decided as by [`admit`], and through the same gates; only the copy is the caller's own, so that
/// changes of honest replicas are applied once and nothing is copied for them.
///
/// # Errors
/// `Spoilt` when Automerge did not apply a change that had passed all gates before, or the document did not survive
/// the trial. Nothing is decided then.
pub fn admit_into(
    mut document: Document,
    batch: &[&[u8]],
    unknown: UnknownKeys,
    authority: Authority<'_>,
) -> Result<(Document, Vec<Outcome>), Spoilt> {
    let gates = Gates { unknown, authority, verify: &verify };
    let (candidates, mut outcomes) = candidates(batch);
    let mut is_extended = false;
    for (index, parsed) in &candidates {
        outcomes[*index] = Some(match check(&document, parsed, gates.unknown) {
            Err(rejection) => Outcome::Reject(rejection),
            Ok(Standing::Present) => Outcome::Duplicate,
            Ok(Standing::Waiting { missing }) => Outcome::Park { missing },
            Ok(Standing::Fits { writes }) => match judge(&document, parsed, &writes, &gates) {
                Err(outcome) => outcome,
                Ok(()) => {
                    verify::apply(&mut document, parsed.change()).map_err(|_| Spoilt)?;
                    is_extended = true;
                    Outcome::Accept(Box::new(Verified { change: parsed.change().clone(), writes }))
                }
            },
        });
    }
    if is_extended {
        (gates.verify)(&document).map_err(|_| Spoilt)?;
    }
    Ok((document, outcomes.into_iter().map(|outcome| outcome.expect("every candidate is decided")).collect()))
}

/// Changes that could be decoded, with their places in the batch, and what became of the others.
fn candidates(batch: &[&[u8]]) -> (Vec<(usize, Parsed)>, Vec<Option<Outcome>>) {
    let mut outcomes: Vec<Option<Outcome>> = Vec::new();
    let mut candidates: Vec<(usize, Parsed)> = Vec::new();
    for bytes in batch {
        outcomes.push(match parse(bytes) {
            Ok(parsed) => {
                candidates.push((outcomes.len(), parsed));
                None
            }
            Err(rejection) => Some(Outcome::Reject(rejection)),
        });
    }
    (candidates, outcomes)
}

/// Decides every candidate, the first before the second, and returns the document if one is accepted.
fn settle(
    document: &Document,
    candidates: &[(usize, Parsed)],
    gates: &Gates<'_>,
    outcomes: &mut [Option<Outcome>],
) -> Option<Document> {
    let mut extended: Option<Document> = None;
    for (index, parsed) in candidates {
        let base = extended.as_ref().unwrap_or(document);
        outcomes[*index] = Some(match check(base, parsed, gates.unknown) {
            Err(rejection) => Outcome::Reject(rejection),
            Ok(Standing::Present) => Outcome::Duplicate,
            Ok(Standing::Waiting { missing }) => Outcome::Park { missing },
            Ok(Standing::Fits { writes }) => match take(base, parsed, &writes, gates) {
                Ok(next) => {
                    extended = Some(next);
                    Outcome::Accept(Box::new(Verified { change: parsed.change().clone(), writes }))
                }
                Err(outcome) => outcome,
            },
        });
    }
    let Err(rejection) = (gates.verify)(extended.as_ref()?) else { return extended };
    if let [(index, _)] = candidates {
        outcomes[*index] = Some(Outcome::Reject(rejection));
        return None;
    }
    let (first, second) = candidates.split_at(candidates.len() / 2);
    let first = settle(document, first, gates, outcomes);
    let second = settle(first.as_ref().unwrap_or(document), second, gates, outcomes);
    second.or(first)
}

/// Takes a change that fits through the last two gates but one; returns the document with it.
fn take(base: &Document, parsed: &Parsed, writes: &[Write], gates: &Gates<'_>) -> Result<Document, Outcome> {
    judge(base, parsed, writes, gates)?;
    extend(base, parsed.change()).map_err(Outcome::Reject)
}

/// The fourth gate.
fn judge(base: &Document, parsed: &Parsed, writes: &[Write], gates: &Gates<'_>) -> Result<(), Outcome> {
    // Reading a document as it was asks Automerge about what a peer named.
    verify::guard("judge a change", || gates.authority.judge(base, parsed.change(), writes))
        .map_err(Outcome::Reject)?
        .map_err(Outcome::Deny)
}

/// What the tests of all gates share: replicas, chance, and changes that nobody honest writes.
#[cfg(test)]
mod testing {
    use std::{cell::Cell, error::Error, panic, sync::Once};

    use automerge::{Change, ExpandedChange};

    use crate::{
        document::{
            Author, Document, Kind, Register,
            register::{Edit, Entropy},
        },
        document::{Value, claim, group, node, proposal, site, task, workflow},
        id::{DocumentId, Incarnation, MacAddr, NodeId, Nonce, Origin, ReportId, SiteId},
        policy::{Autonomy, NodeState, TaskState, Wanted},
        time::{Hlc, Timestamp},
    };

    pub(super) const LYON: Origin = Origin::Site(SiteId([2; 16]));
    pub(super) const BERN: Origin = Origin::Site(SiteId([3; 16]));

    /// splitmix64: the same numbers for the same seed, for ever.
    pub(super) struct Random(pub(super) u64);

    impl Random {
        pub(super) fn number(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }

        /// A number below `end`.
        pub(super) fn below(&mut self, end: usize) -> usize {
            usize::try_from(self.number() % end as u64).expect("below a usize")
        }

        pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
            &from[self.below(from.len())]
        }

        fn byte(&mut self) -> u8 {
            u8::try_from(self.below(256)).expect("below 256")
        }

        fn perhaps<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
            (self.below(2) == 0).then(|| value(self))
        }
    }

    /// A replica with one incarnation, which writes at ever later stamps.
    pub(super) fn author(incarnation: u8, site: Origin, at: i64) -> Author {
        let mut seed = [incarnation; 32];
        seed[..8].copy_from_slice(&at.to_be_bytes());
        Author {
            incarnation: Incarnation([incarnation; 16]),
            site,
            by: "ann".into(),
            at: Hlc(at),
            policy_epoch: 1,
            entropy: Entropy::new(seed),
        }
    }

    pub(super) fn text(value: &str) -> node::Text {
        node::Text { value: value.into() }
    }

    /// Writes one register and returns the change.
    pub(super) fn write<V: Value>(
        document: &mut Document,
        mut author: Author,
        register: &Register<V>,
        value: &V,
    ) -> Change {
        let change = document.write(&mut author, |edit| {
            edit.set(register, value, "");
        });
        change.expect("a register is always written")
    }

    /// Writes one to three registers that a replica of `site` might write.
    pub(super) fn scribble(document: &mut Document, author: &mut Author, random: &mut Random) -> Change {
        let (kind, site) = (document.kind(), author.site);
        let change = document.write(author, |edit| {
            for _ in 0..=random.below(3) {
                match kind {
                    Kind::Node => scribble_node(edit, site, random),
                    Kind::Task => scribble_task(edit, random),
                    Kind::Workflow => scribble_workflow(edit, random),
                    Kind::Site => scribble_site(edit, random),
                    Kind::Group => scribble_group(edit, random),
                    Kind::Proposal => scribble_proposal(edit, random),
                    Kind::Claim => scribble_claim(edit, site, random),
                }
            }
        });
        change.expect("a register is always written")
    }

    fn scribble_node(edit: &mut Edit<'_>, site: Origin, random: &mut Random) {
        let word = format!("w{}", random.below(9));
        match (random.below(9), site) {
            (0, _) => edit.set(&node::hostname(), &text(&word), "asked for"),
            (1, _) => edit.set(&node::wanted(), &node::Wish { wanted: *random.pick(Wanted::ALL) }, ""),
            (2, _) => {
                let state = node::State {
                    state: *random.pick(NodeState::ALL),
                    cause: word,
                    task: random.perhaps(|random| crate::id::TaskId([random.byte(); 16])),
                    attempt: random.perhaps(|random| random.number()),
                    error: None,
                    install_nonce: random.perhaps(|random| Nonce([random.byte(); 8])),
                };
                edit.set(&node::state(), &state, "")
            }
            (3, _) => edit.set(&node::tag(&word), &node::Tag { value: None, removed: Some(true) }, ""),
            (4, _) => {
                let longest = random.below(8) == 0;
                let value = "é".repeat(if longest { 2_048 } else { random.below(9) });
                let tag = node::Tag { value: Some(value), removed: None };
                edit.set(&node::tag(&word), &tag, "")
            }
            (5, _) => edit.set(&node::mac(MacAddr([random.byte(); 6])), &node::Evidence { value: word }, ""),
            (6, _) => {
                let hardware = node::Hardware {
                    report: random.perhaps(|random| crate::blob::Digest::of(&[random.byte()])),
                    cpus: Some(random.number()),
                    memory_bytes: None,
                    disks: [("sda".to_string(), random.number())].into(),
                    nics: [("eth0".to_string(), word)].into(),
                };
                edit.set(&node::hardware(), &hardware, "")
            }
            (7, Origin::Site(site)) => {
                let seen = node::Observed { first_seen: Timestamp(random.number()), asked_again: None };
                edit.set(&node::observed(site), &seen, "")
            }
            (_, _) => edit.set(&node::evidence("serial"), &node::Evidence { value: word }, ""),
        };
    }

    fn scribble_claim(edit: &mut Edit<'_>, site: Origin, random: &mut Random) {
        let (round, booted_at) = (random.number(), Timestamp(random.number()));
        match (random.below(4), site) {
            (0, _) => {
                let opened = claim::Opened {
                    node: NodeId([random.byte(); 16]),
                    to_site: SiteId([random.byte(); 16]),
                    from_site: SiteId([random.byte(); 16]),
                    home_epoch: random.number(),
                    first_seen: booted_at,
                };
                edit.set(&claim::opened(), &opened, "")
            }
            (1, Origin::Site(site)) => {
                let consents = random.below(2) == 0;
                edit.set(&claim::consent(site), &claim::Consent { consents }, "a word")
            }
            (2, _) => edit.set(&claim::asked(), &claim::Asked { round, booted_at }, ""),
            (_, _) => edit.set(&claim::seen_at_home(), &claim::SeenAtHome { round, booted_at }, ""),
        };
    }

    fn scribble_proposal(edit: &mut Edit<'_>, random: &mut Random) {
        let wanted = node::Wish { wanted: *random.pick(Wanted::ALL) };
        match random.below(3) {
            0 => {
                let wish = proposal::Wish {
                    action: proposal::WRITE.into(),
                    about: Some("node".into()),
                    document: random.perhaps(|random| DocumentId([random.byte(); 16])),
                    journal_seq: random.number(),
                    after: random.perhaps(|random| crate::id::ProposalId([random.byte(); 16])),
                };
                edit.set(&proposal::wish(), &wish, "")
            }
            1 => edit.set(&proposal::argument("wanted"), &proposal::Argument(wanted.to_fields()), ""),
            _ => {
                let outcome = proposal::Outcome { applied: random.below(2) == 0, reason: "so".into() };
                edit.set(&proposal::outcome(), &outcome, "")
            }
        };
    }

    fn scribble_task(edit: &mut Edit<'_>, random: &mut Random) {
        match random.below(6) {
            0 => {
                let spec = task::Spec {
                    node: NodeId([random.byte(); 16]),
                    for_site: SiteId([2; 16]),
                    workflow: crate::id::WorkflowId([4; 16]),
                    version: random.number(),
                    parameters: [("user".to_string(), "root".to_string())].into(),
                    disk_layout: None,
                    network_config: Some(String::new()),
                    tags: [].into(),
                    created_by: "ann".into(),
                    created_at: Timestamp(1),
                    not_before: None,
                };
                edit.set(&task::spec(), &spec, "")
            }
            1 => {
                let state =
                    task::State { state: *random.pick(TaskState::ALL), cause: String::new(), attempt: 1 };
                edit.set(&task::state(), &state, "")
            }
            2 => edit.set(&task::approval(), &task::Approval { approved: random.below(2) == 0 }, ""),
            3 => {
                let order = task::OrderRegister {
                    issued_by: "central".into(),
                    attempt: 1,
                    not_after: Timestamp(random.number()),
                    based_on: random.perhaps(|random| Nonce([random.byte(); 8])),
                };
                edit.set(&task::order(), &order, "")
            }
            4 => {
                let consumed = task::Consumed {
                    attempt: 1,
                    report: ReportId([random.byte(); 16]),
                    install_nonce: Nonce([random.byte(); 8]),
                };
                edit.set(&task::consumed(), &consumed, "")
            }
            _ => edit.set(&task::cancel(), &task::Cancel { cancelled: true }, "wrong machine"),
        };
    }

    fn scribble_workflow(edit: &mut Edit<'_>, random: &mut Random) {
        let version = workflow::Version {
            files: [("kernel".to_string(), crate::blob::Digest::of(&[random.byte()]))].into(),
            sizes: [("kernel".to_string(), random.number())].into(),
            kernel_args: "quiet".into(),
            needs_approval: random.below(2) == 0,
        };
        edit.set(&workflow::version(1 + random.number() % 5), &version, "");
    }

    fn scribble_site(edit: &mut Edit<'_>, random: &mut Random) {
        match random.below(4) {
            0 => {
                let identity = site::Identity {
                    name: "lyon".into(),
                    description: String::new(),
                    location: "rue".into(),
                    console_url: String::new(),
                    network_segments: [(format!("vlan{}", random.below(9)), "10.0.0.0/8".to_string())].into(),
                };
                edit.set(&site::identity(), &identity, "")
            }
            1 => {
                let autonomy = *random.pick(Autonomy::ALL);
                edit.set(&site::effective(), &site::Effective { autonomy, ..site::Effective::default() }, "")
            }
            2 => {
                let group = random.perhaps(|random| crate::id::GroupId([random.byte(); 16]));
                edit.set(&site::directory_domain(), &site::DirectoryDomain { group }, "")
            }
            _ => edit.set(&site::setting("autonomy"), &site::Setting { value: Some("full".into()) }, ""),
        };
    }

    fn scribble_group(edit: &mut Edit<'_>, random: &mut Random) {
        match random.below(2) {
            0 => {
                let parent = random.perhaps(|random| crate::id::GroupId([random.byte(); 16]));
                edit.set(&group::parent(), &group::Parent { parent }, "")
            }
            _ => edit.set(&group::setting("order_max"), &site::Setting { value: Some("1".into()) }, ""),
        };
    }

    /// A machine that central named and tagged, on which Lyon then noted something.
    pub(super) fn machine() -> Document {
        let mut document = Document::new(Kind::Node, DocumentId([7; 16]));
        write(&mut document, author(1, Origin::Central, 10), &node::hostname(), &text("pos-1"));
        let tag = node::Tag { value: Some("r7".into()), removed: None };
        write(&mut document, author(1, Origin::Central, 11), &node::tag("rack"), &tag);
        write(&mut document, author(2, LYON, 12), &node::notes(), &text("under the till"));
        document
    }

    /// Bytes of a change that may be nonsense, encoded as Automerge encodes it.
    pub(super) fn encode(change: &ExpandedChange) -> Vec<u8> {
        Change::from(change.clone()).raw_bytes().to_vec()
    }

    /// An error and its causes.
    pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
        let causes = std::iter::successors(error.source(), |cause| (*cause).source());
        causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
    }

    /// Runs what is expected to make Automerge panic without its message in the output of the tests.
    /// Only this thread is quiet: a hook belongs to the process.
    pub(super) fn quietly<T>(run: impl FnOnce() -> T) -> T {
        thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let loud = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if !QUIET.get() {
                    loud(info);
                }
            }));
        });
        QUIET.set(true);
        let result = panic::catch_unwind(panic::AssertUnwindSafe(run));
        QUIET.set(false);
        result.unwrap_or_else(|cause| panic::resume_unwind(cause))
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeMap, env};

    use automerge::{
        ActorId, ObjType, ScalarValue,
        legacy::{ElementId, Key, ObjectId, OpId, OpType, SortedVec},
    };
    use expect_test::expect;

    use super::{
        lint::forge::repair,
        testing::{BERN, LYON, Random, author, chain, encode, machine, quietly, scribble, text, write},
        *,
    };
    use crate::{
        document::{Author, Document, Kind, genesis, node},
        id::{DocumentId, Origin, SiteId},
        policy::Autonomy,
    };

    /// The outcomes, one word per line and its reason.
    fn told(admission: &Admission) -> String {
        let mut told = String::new();
        for outcome in &admission.outcomes {
            told += &match outcome {
                Outcome::Accept(_) => "accept".to_string(),
                Outcome::Duplicate => "duplicate".to_string(),
                Outcome::Park { missing } => format!("park, {} missing", missing.len()),
                Outcome::Deny(denied) => format!("deny, {}", chain(denied)),
                Outcome::Reject(rejection) => format!("reject, {}", chain(rejection)),
            };
            told.push('\n');
        }
        told
    }

    /// Changes to the machine: three by Lyon in a row, one by Bern besides them.
    fn changes(document: &Document) -> ([Change; 3], Change) {
        let mut lyon = document.clone();
        let mut next = |at, name| write(&mut lyon, author(2, LYON, at), &node::hostname(), &text(name));
        let own = [next(20, "a"), next(21, "b"), next(22, "c")];
        (own, write(&mut document.clone(), author(3, BERN, 23), &node::hostname(), &text("d")))
    }

    fn raw(changes: &[&Change]) -> Vec<Vec<u8>> {
        changes.iter().map(|change| change.raw_bytes().to_vec()).collect()
    }

    fn slices(batch: &[Vec<u8>]) -> Vec<&[u8]> {
        batch.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn a_bad_change_takes_only_those_with_it_that_depend_on_it() {
        let document = machine();
        let ([first, second, third], other) = changes(&document);
        let mut bad = second.decode();
        bad.operations[0].key = Key::Map("colour".into());
        let mut batch = raw(&[&first, &second, &third, &other, &first]);
        batch[1] = encode(&bad);
        batch.push(b"noise".to_vec());

        let admission = admit(&document, &slices(&batch), UnknownKeys::Refuse, Authority::Trusted);
        expect![[r#"
            accept
            reject, `colour` is not a register of the schema
            park, 1 missing
            accept
            duplicate
            reject, bytes are no chunk of Automerge
        "#]]
        .assert_eq(&told(&admission));
        let accepted = admission.document.expect("two were accepted");
        let mut expected = vec![first.hash(), other.hash()];
        expected.sort();
        assert_eq!(accepted.heads(), expected);
        assert!(!document.has(&first.hash()), "the given document stays as it is");
    }

    #[test]
    fn a_batch_without_anything_new_leaves_no_document() {
        let document = machine();
        let known: Vec<_> =
            document.automerge().get_changes(&[]).iter().map(|change| change.raw_bytes().to_vec()).collect();
        let admission = admit(&document, &slices(&known), UnknownKeys::Refuse, Authority::Trusted);
        assert_eq!(told(&admission), "duplicate\n".repeat(known.len()));
        assert!(admission.document.is_none());
        assert!(admit(&document, &[], UnknownKeys::Refuse, Authority::Trusted).outcomes.is_empty());
    }

    #[test]
    fn a_document_is_saved_once_for_a_sound_batch_and_searched_for_what_spoils_another() {
        let document = machine();
        let ([first, second, third], other) = changes(&document);
        let batch = raw(&[&first, &second, &third, &other]);
        let verifications = Cell::new(0);
        let admit_unless = |poison: Option<ChangeHash>| {
            verifications.set(0);
            let verify = |document: &Document| {
                verifications.set(verifications.get() + 1);
                match poison {
                    Some(poison) if document.has(&poison) => Err(Rejection::HeadsDiffer),
                    Some(_) | None => verify(document),
                }
            };
            let gates =
                Gates { unknown: UnknownKeys::Refuse, authority: Authority::Trusted, verify: &verify };
            admit_with(&document, &slices(&batch), &gates)
        };

        assert_eq!(told(&admit_unless(None)), "accept\n".repeat(4));
        assert_eq!(verifications.get(), 1);

        // Nothing known gets this far, so the test says what spoils the document.
        let admission = admit_unless(Some(second.hash()));
        expect![[r#"
            accept
            reject, document has other heads once it is saved and loaded
            park, 1 missing
            accept
        "#]]
        .assert_eq(&told(&admission));
        let kept = admission.document.expect("two were accepted");
        assert!(kept.has(&first.hash()) && kept.has(&other.hash()) && !kept.has(&second.hash()));

        let admission = admit_unless(Some(first.hash()));
        expect![[r#"
            reject, document has other heads once it is saved and loaded
            park, 1 missing
            park, 1 missing
            accept
        "#]]
        .assert_eq(&told(&admission));
    }

    struct Replica {
        author: Author,
        document: Document,
        inbox: Vec<Vec<u8>>,
        parked: Vec<Vec<u8>>,
    }

    impl Replica {
        /// Admits `batch` after what was parked before; returns how many were accepted and parked.
        fn receive(&mut self, batch: Vec<Vec<u8>>, seed: u64) -> (usize, usize) {
            let batch = [std::mem::take(&mut self.parked), batch].concat();
            let unknown = match self.author.site {
                Origin::Central => UnknownKeys::Refuse,
                Origin::Site(_) => UnknownKeys::Keep,
            };
            let admission = admit(&self.document, &slices(&batch), unknown, Authority::Trusted);
            let mut accepted = 0;
            for (outcome, bytes) in admission.outcomes.into_iter().zip(batch) {
                match outcome {
                    Outcome::Accept(_) => accepted += 1,
                    Outcome::Duplicate => {}
                    Outcome::Park { .. } => self.parked.push(bytes),
                    Outcome::Deny(denied) => panic!("seed {seed}: {}", chain(&denied)),
                    Outcome::Reject(rejection) => panic!("seed {seed}: {}", chain(&rejection)),
                }
            }
            if let Some(document) = admission.document {
                self.document = document;
            }
            (accepted, self.parked.len())
        }
    }

    /// Three replicas that edit one document, while the network delivers late, in any order and twice.
    fn exchange(kind: Kind, seed: u64) -> (usize, usize) {
        let mut random = Random(seed);
        let document = Document::new(kind, DocumentId([7; 16]));
        let mut replicas: Vec<Replica> = [(1, Origin::Central), (2, LYON), (3, BERN)]
            .into_iter()
            .map(|(incarnation, site)| Replica {
                author: author(incarnation, site, 0),
                document: document.clone(),
                inbox: Vec::new(),
                parked: Vec::new(),
            })
            .collect();
        let (mut accepted, mut parked) = (0, 0);
        for step in 1..=60 {
            let turn = random.below(3);
            if random.below(3) > 0 {
                let Replica { author, document, .. } = &mut replicas[turn];
                author.at.0 = step;
                let change = scribble(document, author, &mut random).raw_bytes().to_vec();
                for (index, replica) in replicas.iter_mut().enumerate() {
                    let copies = if index == turn { 0 } else { 1 + usize::from(random.below(8) == 0) };
                    replica.inbox.extend(std::iter::repeat_n(change.clone(), copies));
                }
            } else {
                let replica = &mut replicas[turn];
                let mut batch = Vec::new();
                for _ in 0..random.below(6).min(replica.inbox.len()) {
                    let any = random.below(replica.inbox.len());
                    batch.push(replica.inbox.swap_remove(any));
                }
                let found = replica.receive(batch, seed);
                accepted += found.0;
                parked += found.1;
            }
        }
        for replica in &mut replicas {
            let rest = std::mem::take(&mut replica.inbox);
            accepted += replica.receive(rest, seed).0;
            while !replica.parked.is_empty() {
                let waiting = replica.parked.len();
                accepted += replica.receive(Vec::new(), seed).0;
                let left = replica.parked.len();
                assert!(left < waiting, "seed {seed}: {left} changes wait for nothing that is on its way");
            }
        }
        let heads = replicas[0].document.heads();
        assert!(
            replicas.iter().all(|replica| replica.document.heads() == heads),
            "seed {seed}: heads differ"
        );
        (accepted, parked)
    }

    #[test]
    fn no_honest_change_is_refused_in_whatever_order_it_comes() {
        let (mut accepted, mut parked) = (0, 0);
        for kind in Kind::ALL {
            for seed in 1..=6 {
                let found = exchange(*kind, seed);
                accepted += found.0;
                parked += found.1;
            }
        }
        println!("{accepted} accepted, {parked} parked on the way");
        assert!(accepted > 2_000, "{accepted} accepted");
        assert!(parked > 1_000, "{parked} parked");
    }

    /// A document with some history, and an honest change that may follow it.
    pub(super) fn situation(random: &mut Random) -> (Document, Change) {
        let mut document = Document::new(Kind::Node, DocumentId([7; 16]));
        let mut at = 0;
        let mut next = |document: &mut Document, incarnation: u8, site: Origin, random: &mut Random| {
            at += 1;
            scribble(document, &mut author(incarnation, site, at), random)
        };
        for _ in 0..=random.below(3) {
            next(&mut document, 1, Origin::Central, random);
        }
        let mut there = document.clone();
        let concurrent = next(&mut there, 2, LYON, random);
        if random.below(2) == 0 {
            next(&mut document, 1, Origin::Central, random);
        }
        if random.below(2) == 0 {
            document.apply(concurrent).unwrap();
        }
        let mut writer = document.clone();
        for _ in 0..random.below(2) {
            let change = next(&mut writer, 3, BERN, random);
            document.apply(change).unwrap();
        }
        if random.below(2) == 0 {
            next(&mut document, 1, Origin::Central, random);
        }
        let change = next(&mut writer, 3, BERN, random);
        (document, change)
    }

    /// Changes some bytes of the body, and the checksum with them.
    pub(super) fn mutate_bytes(change: &Change, random: &mut Random) -> Vec<u8> {
        let mut bytes = change.raw_bytes().to_vec();
        for _ in 0..=random.below(3) {
            let at = 10 + random.below(bytes.len() - 10);
            let byte = bytes[at];
            bytes[at] = match random.below(5) {
                0 => u8::try_from(random.below(256)).unwrap(),
                1 => byte ^ (1 << random.below(8)),
                2 => byte.wrapping_add(1),
                3 => byte.wrapping_sub(1),
                _ => *random.pick(&[0, 1, 0x7e, 0x7f, 0x80, 0xff]),
            };
        }
        repair(&mut bytes);
        bytes
    }

    /// Changes what the change means, and encodes it as Automerge would.
    pub(super) fn mutate_meaning(document: &Document, change: &Change, random: &mut Random) -> Vec<u8> {
        let mut change = change.decode();
        let hashes: Vec<ChangeHash> =
            document.automerge().get_changes_meta(&[]).iter().map(|meta| meta.hash).collect();
        let actor = |random: &mut Random| {
            let genesis = genesis::actor(Kind::Node, DocumentId([7; 16]));
            let of = |byte: u8| ActorId::from(&[byte; 16][..]);
            random.pick(&[genesis, of(1), of(2), of(3), of(0xee)]).clone()
        };
        let id = |random: &mut Random| OpId(random.below(80) as u64, actor(random));
        match random.below(14) {
            0 => change.seq = random.below(6) as u64,
            1 => change.start_op = (1 + random.below(120) as u64).try_into().unwrap(),
            2 => change.start_op = (u64::from(u32::MAX) - random.below(5) as u64).try_into().unwrap(),
            3 => drop(change.deps.pop()),
            4 => {
                change.deps = (0..=random.below(3)).map(|_| *random.pick(&hashes)).collect();
                change.deps.sort();
                change.deps.dedup();
            }
            5 => change.actor_id = actor(random),
            6 => change.extra_bytes = vec![1, 2, 65, 66],
            7 => change.time = random.number() as i64,
            8 => change.message = Some("m".repeat(random.below(300))),
            9 => {
                let at = random.below(change.operations.len());
                change.operations.remove(at);
            }
            10 => {
                let from = random.below(change.operations.len());
                let to = random.below(change.operations.len());
                change.operations.swap(from, to);
            }
            _ => {
                let at = random.below(change.operations.len());
                let operation = &mut change.operations[at];
                match random.below(9) {
                    0 => operation.pred = SortedVec::new(),
                    1 => operation.pred = vec![id(random)].into(),
                    2 => operation.obj = ObjectId::Id(id(random)),
                    3 => operation.obj = ObjectId::Root,
                    4 => {
                        let keys =
                            ["state", "hostname", "kind", "macs", "tags", "colour", "by", "at", "value"];
                        operation.key = Key::Map((*random.pick(&keys)).into());
                    }
                    5 => operation.key = Key::Seq(ElementId::Head),
                    6 => {
                        let types = [ObjType::Table, ObjType::List, ObjType::Text, ObjType::Map];
                        operation.action = OpType::Make(*random.pick(&types));
                    }
                    7 => operation.action = random.pick(&[OpType::Increment(3), OpType::Delete]).clone(),
                    _ => {
                        let values =
                            [ScalarValue::Null, ScalarValue::Uint(7), ScalarValue::counter(1), "x".into()];
                        operation.action = OpType::Put(random.pick(&values).clone());
                    }
                }
            }
        }
        encode(&change)
    }

    /// Whether a document comes back from its own bytes, also after the next local change.
    pub(super) fn survives(document: &Document, random: &mut Random) -> bool {
        let mut document = document.clone();
        let loads = |document: &Document| {
            let loaded = Document::load(document.kind(), document.id(), &document.save());
            loaded.is_ok_and(|loaded| loaded.heads() == document.heads())
        };
        loads(&document) && {
            scribble(&mut document, &mut author(4, Origin::Central, 99), random);
            loads(&document)
        }
    }

    /// What Automerge alone makes of bytes that passed the lint.
    fn unguarded(document: &Document, bytes: &[u8], random: &mut Random) -> &'static str {
        let attempt = quietly(|| {
            verify::guard("", || {
                let Ok(change) = Change::try_from(bytes) else { return "error" };
                let mut document = document.clone();
                match document.apply(change) {
                    Err(_) => "error",
                    Ok(()) if survives(&document, random) => "accepted",
                    Ok(()) => "saved but unloadable",
                }
            })
        });
        attempt.unwrap_or("panic")
    }

    fn number_from_environment(name: &str, default: u64) -> u64 {
        env::var(name).map_or(default, |text| text.parse().expect("a number"))
    }

    /// Mutant `n` is made from seed + n alone: to see one again, give its seed and a count of 1.
    #[test]
    fn no_mutant_panics_or_spoils_a_document() {
        let seed = number_from_environment("HOLDFAST_FUZZ_SEED", 1);
        let count = number_from_environment("HOLDFAST_FUZZ_COUNT", 3_000);
        let mut guarded: BTreeMap<String, u64> = BTreeMap::new();
        let mut alone: BTreeMap<&str, u64> = BTreeMap::new();
        // The judge is asked, for it must not panic either, and whatever he says is let through.
        let bern = Delivery {
            site: SiteId([3; 16]),
            name: "bern".into(),
            actor_is_theirs: true,
            autonomy: Autonomy::Full,
            released: false,
            beyond: false,
        };
        let asked = |document: &Document, change: &Change, writes: &[Write]| {
            drop(authorize(document, change, writes, &bern));
            Ok(())
        };
        for seed in (seed..).take(usize::try_from(count).expect("a count")) {
            let mut random = Random(seed);
            let (document, change) = situation(&mut random);
            let mutant = if seed % 2 == 0 {
                mutate_bytes(&change, &mut random)
            } else {
                mutate_meaning(&document, &change, &mut random)
            };
            let admission = quietly(|| {
                verify::guard("", || {
                    admit(&document, &[&mutant], UnknownKeys::Refuse, Authority::Judged(&asked))
                })
                .unwrap_or_else(|_| panic!("seed {seed}: a panic escapes"))
            });
            if let Some(extended) = &admission.document {
                let sound = verify::guard("", || survives(extended, &mut random));
                assert!(matches!(sound, Ok(true)), "seed {seed}: the document does not survive");
            }
            let outcome = match &admission.outcomes[..] {
                [Outcome::Accept(_)] => "accepted".to_string(),
                [Outcome::Duplicate] => "duplicate".to_string(),
                [Outcome::Park { .. }] => "parked".to_string(),
                [Outcome::Reject(Rejection::Panicked(purpose))] => format!("panicked: {purpose}"),
                [Outcome::Reject(Rejection::Lint(_))] => "rejected: lint".to_string(),
                [Outcome::Reject(Rejection::Semantic(_))] => "rejected: semantic".to_string(),
                [Outcome::Reject(rejection)] => format!("rejected: {rejection}"),
                other => panic!("seed {seed}: {other:?}"),
            };
            *guarded.entry(outcome).or_default() += 1;
            // A third, for comparison. What the lint refuses might never come back from Automerge alone.
            if seed % 3 == 0 && lint(&mutant).is_ok() {
                *alone.entry(unguarded(&document, &mutant, &mut random)).or_default() += 1;
            }
        }
        println!("{count} mutants from seed {seed}\nguarded: {guarded:#?}\nautomerge alone: {alone:#?}");
        // Without enemies the rest proves nothing.
        if count >= 3_000 {
            assert!(alone["panic"] > count / 50, "{alone:?}");
            assert!(alone["saved but unloadable"] > count / 100, "{alone:?}");
            assert!(guarded["accepted"] > count / 20, "{guarded:?}");
        }
    }
}
