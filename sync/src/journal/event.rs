//! What a journal can say. Facts, in the past tense, complete without the log.
//!
//! Numbers are never used again. An entry of a newer program, whose event is unknown here, is kept and
//! passed on byte for byte; it is only not understood.

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::{
    blob::Digest,
    id::{
        ClaimId, DocumentId, GroupId, Incarnation, MacAddr, NodeId, ProposalId, ReportId, SiteId, TaskId,
        WorkflowId,
    },
    time::Timestamp,
};

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
#[cbor(map)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A machine was given an answer that differs from the one before.
    #[n(1)]
    BootAnswered {
        /// Its boot interface.
        #[n(0)]
        mac: MacAddr,
        /// The answer, for people.
        #[n(1)]
        answer: String,
        /// Why.
        #[n(2)]
        reason: String,
    },
    /// An unknown machine became a node.
    #[n(2)]
    NodeDiscovered {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// Its boot interface.
        #[n(1)]
        mac: MacAddr,
    },
    /// The facts about a machine changed.
    #[n(3)]
    NodeTransitioned {
        /// The node.
        #[n(0)]
        node: NodeId,
        /// State before.
        #[n(1)]
        from: String,
        /// State now.
        #[n(2)]
        to: String,
        /// What made it so.
        #[n(3)]
        cause: String,
        /// Whether no machine reported this step and a later report implies it.
        #[n(4)]
        implied: bool,
    },
    /// A machine reported, and the report was accepted.
    #[n(4)]
    ReportReceived {
        /// The machine's own id of the report.
        #[n(0)]
        report: ReportId,
        /// The node.
        #[n(1)]
        node: NodeId,
        /// Task that it speaks of.
        #[n(2)]
        task: Option<TaskId>,
        /// Attempt that it speaks of.
        #[n(3)]
        attempt: Option<u64>,
        /// Kind of report.
        #[n(4)]
        kind: String,
        /// What it said besides.
        #[n(5)]
        detail: String,
    },
    /// A machine reported something that cannot be.
    #[n(5)]
    ReportRefused {
        /// The machine's own id of the report.
        #[n(0)]
        report: ReportId,
        /// The node.
        #[n(1)]
        node: NodeId,
        /// Kind of report.
        #[n(2)]
        kind: String,
        /// Why not.
        #[n(3)]
        reason: String,
    },
    /// A task was created.
    #[n(6)]
    TaskCreated {
        /// The task.
        #[n(0)]
        task: TaskId,
        /// The machine.
        #[n(1)]
        node: NodeId,
        /// The site that does it.
        #[n(2)]
        for_site: SiteId,
        /// What is installed.
        #[n(3)]
        workflow: WorkflowId,
        /// Which version of it.
        #[n(4)]
        version: u64,
    },
    /// An order was issued.
    #[n(7)]
    OrderIssued {
        /// The task.
        #[n(0)]
        task: TaskId,
        /// The attempt.
        #[n(1)]
        attempt: u64,
        /// End of its life.
        #[n(2)]
        not_after: Timestamp,
    },
    /// An order was consumed: from now on the machine may write its disk.
    #[n(8)]
    OrderConsumed {
        /// The task.
        #[n(0)]
        task: TaskId,
        /// The attempt.
        #[n(1)]
        attempt: u64,
        /// The machine.
        #[n(2)]
        node: NodeId,
        /// The report that asked.
        #[n(3)]
        report: ReportId,
    },
    /// A task went on.
    #[n(9)]
    TaskTransitioned {
        /// The task.
        #[n(0)]
        task: TaskId,
        /// State before.
        #[n(1)]
        from: String,
        /// State now.
        #[n(2)]
        to: String,
        /// What made it so.
        #[n(3)]
        cause: String,
    },
    /// Somebody set a register of a document.
    #[n(10)]
    RegisterSet {
        /// Kind of the document.
        #[n(0)]
        kind: String,
        /// The document.
        #[n(1)]
        document: DocumentId,
        /// Path of the register.
        #[n(2)]
        path: String,
        /// Its new value, for people.
        #[n(3)]
        value: String,
    },
    /// A site enrolled with a token.
    #[n(11)]
    SiteEnrolled {
        /// The site.
        #[n(0)]
        site: SiteId,
        /// Its name.
        #[n(1)]
        name: String,
    },
    /// A token was made for a site.
    #[n(12)]
    TokenIssued {
        /// The site.
        #[n(0)]
        site: SiteId,
        /// Its name.
        #[n(1)]
        name: String,
        /// End of its life.
        #[n(2)]
        expires_at: Timestamp,
    },
    /// Somebody tried to enrol and was refused.
    #[n(13)]
    EnrolmentRefused {
        /// The name that was given.
        #[n(0)]
        name: String,
        /// Why.
        #[n(1)]
        reason: String,
    },
    /// A site was described.
    #[n(14)]
    SiteCreated {
        /// The site.
        #[n(0)]
        site: SiteId,
        /// Its name.
        #[n(1)]
        name: String,
    },
    /// A version of a workflow was published.
    #[n(15)]
    WorkflowPublished {
        /// The workflow.
        #[n(0)]
        workflow: WorkflowId,
        /// Its name.
        #[n(1)]
        name: String,
        /// The version.
        #[n(2)]
        version: u64,
    },
    /// A site follows new settings from here on.
    #[n(16)]
    EpochAdopted {
        /// The epoch.
        #[n(0)]
        epoch: u64,
    },
    /// Content arrived and was verified.
    #[n(17)]
    BlobArrived {
        /// Its name.
        #[n(0)]
        digest: Digest,
        /// Its size in bytes.
        #[n(1)]
        size: u64,
    },
    /// Content arrived that is not what its name says; it was dropped.
    #[n(18)]
    BlobRefused {
        /// The name.
        #[n(0)]
        digest: Digest,
        /// Why.
        #[n(1)]
        reason: String,
    },
    /// A peer's change did not pass ingress; its bytes were set aside.
    #[n(19)]
    ChangeQuarantined {
        /// Kind of the document.
        #[n(0)]
        kind: String,
        /// The document.
        #[n(1)]
        document: DocumentId,
        /// Why.
        #[n(2)]
        reason: String,
    },
    /// Two replicas that should hold the same changes do not.
    #[n(20)]
    ReplicaDiverged {
        /// The site whose replica differs from central's.
        #[n(0)]
        site: SiteId,
        /// Position of central's log that the site had.
        #[n(1)]
        pulled: u64,
        /// Position of the site's log that central had.
        #[n(2)]
        pushed: u64,
    },
    /// Another life of a database began: it was restored, copied, or went back in time.
    #[n(21)]
    LifeBegun {
        /// The new life.
        #[n(0)]
        incarnation: Incarnation,
        /// What showed it.
        #[n(1)]
        reason: String,
    },
    /// Orders are followed, or given, again.
    #[n(22)]
    OrdersResumed {
        /// The life in which they are.
        #[n(0)]
        incarnation: Incarnation,
    },
    /// Central and a site found out what each lacks and began their logs anew.
    #[n(23)]
    ReplicaJoined {
        /// The site.
        #[n(0)]
        site: SiteId,
        /// Documents in which both differed.
        #[n(1)]
        documents: u64,
        /// Changes that the writer of this entry put into its log for the other.
        #[n(2)]
        changes: u64,
        /// Journal entries likewise.
        #[n(3)]
        entries: u64,
    },
    /// Central did not take everything that this site wrote into a document.
    #[n(24)]
    DocumentReset {
        /// Kind of the document.
        #[n(0)]
        kind: String,
        /// The document.
        #[n(1)]
        document: DocumentId,
        /// Changes that were written anew.
        #[n(2)]
        again: u64,
        /// Changes that were not.
        #[n(3)]
        refused: u64,
        /// Why, for the first of them.
        #[n(4)]
        reason: String,
    },
    /// Somebody at this site wrote what the site may not write, and central took it back.
    #[n(25)]
    WriteRefused {
        /// Kind of the document.
        #[n(0)]
        kind: String,
        /// The document.
        #[n(1)]
        document: DocumentId,
        /// Path of the register.
        #[n(2)]
        path: String,
        /// Who wrote it.
        #[n(3)]
        by: String,
        /// Why not.
        #[n(4)]
        reason: String,
    },
    /// An entry of a peer's journal does not follow the ones before: from there on nothing of that chain is
    /// taken, and the peer records its facts again in another one.
    #[n(26)]
    ChainBroken {
        /// Stream that the chain is part of.
        #[n(0)]
        stream: String,
        /// The chain.
        #[n(1)]
        incarnation: Incarnation,
        /// Number of its newest entry here; 0 if none is.
        #[n(2)]
        seq: u64,
        /// What is wrong with the one that came next.
        #[n(3)]
        reason: String,
    },
    /// The journal goes on in another chain, because its reader could not follow the one before.
    #[n(27)]
    ChainBegun {
        /// The chain that is left.
        #[n(0)]
        left: Incarnation,
        /// Newest entry of it that the reader has; 0 if none.
        #[n(1)]
        seq: u64,
        /// Facts that were recorded again.
        #[n(2)]
        again: u64,
        /// Entries that cannot be read here any more.
        #[n(3)]
        lost: u64,
    },
    /// A person decided what becomes of bytes that were set aside.
    #[n(28)]
    QuarantineDecided {
        /// Number of the item in the quarantine.
        #[n(0)]
        item: u64,
        /// Who delivered it.
        #[n(1)]
        peer: String,
        /// Kind of the document, or what else it was.
        #[n(2)]
        kind: String,
        /// The document; of a journal entry its chain.
        #[n(3)]
        document: DocumentId,
        /// Digest of the bytes.
        #[n(4)]
        digest: Digest,
        /// `released`: what they say was written by that person; or `dismissed`.
        #[n(5)]
        decision: String,
        /// Who had written them, as they say of themselves; empty if that cannot be read.
        #[n(6)]
        author: String,
        /// Why.
        #[n(7)]
        why: String,
    },
    /// More is set aside of a peer than is kept: the oldest goes, and more that comes is only counted.
    #[n(29)]
    QuarantineTrimmed {
        /// Whose.
        #[n(0)]
        peer: String,
        /// Items that are kept.
        #[n(1)]
        items: u64,
        /// Their bytes.
        #[n(2)]
        bytes: u64,
    },
    /// Central's authority has a successor, which signs from now on.
    #[n(34)]
    AuthoritySucceeded {
        /// Digest of the certificate of the new one.
        #[n(0)]
        authority: Digest,
        /// Digest of the certificate of the old one.
        #[n(1)]
        predecessor: Digest,
        /// End of the validity of the new one.
        #[n(2)]
        not_after: Timestamp,
    },
    /// What an authority signed, and who trusts nothing but it, is turned away from now on.
    #[n(35)]
    AuthorityRetired {
        /// Digest of its certificate.
        #[n(0)]
        authority: Digest,
        /// Names of the sites that still depended on it.
        #[n(1)]
        locked_out: Vec<String>,
    },
    /// Somebody ended the recovery of central.
    #[n(30)]
    RecoveryEnded {
        /// The life in which it was.
        #[n(0)]
        incarnation: Incarnation,
        /// What had begun it.
        #[n(1)]
        reason: String,
        /// Why it was ended, in the words of whoever did.
        #[n(2)]
        why: String,
        /// Sites that had not given back what they have.
        #[n(3)]
        without: Vec<SiteId>,
    },
    /// Central is in recovery: orders that arrive from it wait.
    #[n(31)]
    CentralRecovering {
        /// Whether it is, or is no more.
        #[n(0)]
        is: bool,
    },
    /// A peer told a signed head of its journal that does not fit what it told before, or is not signed by it.
    #[n(36)]
    HeadRefused {
        /// The stream.
        #[n(0)]
        stream: String,
        /// Life of the database that it is said to be of.
        #[n(1)]
        incarnation: Incarnation,
        /// Number of the entry that it names.
        #[n(2)]
        seq: u64,
        /// What is wrong.
        #[n(3)]
        reason: String,
    },
    /// The beginning of a chain is not kept here any more; the next entry still proves to continue it.
    #[n(37)]
    JournalTrimmed {
        /// The stream.
        #[n(0)]
        stream: String,
        /// Life of the database that wrote it.
        #[n(1)]
        incarnation: Incarnation,
        /// The entries after this one,
        #[n(2)]
        after: u64,
        /// up to and including this one are not kept.
        #[n(3)]
        upto: u64,
        /// Hash of the last of them.
        #[n(4)]
        hash: Digest,
        /// Digest of the archive that has them, if one does.
        #[n(5)]
        archive: Option<Digest>,
    },
    /// Entries of a peer's journal are missing here for ever: it does not keep them any more.
    #[n(38)]
    JournalGap {
        /// The stream.
        #[n(0)]
        stream: String,
        /// Life of the database that wrote it.
        #[n(1)]
        incarnation: Incarnation,
        /// The entries after this one,
        #[n(2)]
        after: u64,
        /// up to and including this one are missing.
        #[n(3)]
        upto: u64,
    },
    /// A site is beyond its quota: central takes what is over later. Noted once in an hour.
    #[n(40)]
    QuotaReached {
        /// The site.
        #[n(0)]
        site: SiteId,
        /// Name of the setting.
        #[n(1)]
        quota: String,
        /// Its value.
        #[n(2)]
        limit: u64,
    },
    /// Central certified a key of a site.
    #[n(41)]
    CertificateIssued {
        /// The site.
        #[n(0)]
        site: SiteId,
        /// Serial number of the certificate, hexadecimal.
        #[n(1)]
        serial: String,
        /// End of its validity.
        #[n(2)]
        not_after: Timestamp,
        /// Whether it follows an older one, and not a token.
        #[n(3)]
        renewal: bool,
    },
    /// Everything that certified a site until now is void.
    #[n(42)]
    SiteRevoked {
        /// The site.
        #[n(0)]
        site: SiteId,
        /// Its name.
        #[n(1)]
        name: String,
        /// Why.
        #[n(2)]
        reason: String,
    },
    /// Writers disagree about a register, and it is not settled by itself.
    #[n(90)]
    ConflictFound {
        /// Kind of the document.
        #[n(0)]
        kind: String,
        /// The document.
        #[n(1)]
        document: DocumentId,
        /// Path of the register.
        #[n(2)]
        path: String,
        /// Why a person decides.
        #[n(3)]
        reason: String,
        /// All sides with who wrote them, when and why, as JSON.
        #[n(4)]
        sides: String,
    },
    /// A disagreement about a register ended.
    #[n(91)]
    ConflictSettled {
        /// Kind of the document.
        #[n(0)]
        kind: String,
        /// The document.
        #[n(1)]
        document: DocumentId,
        /// Path of the register.
        #[n(2)]
        path: String,
        /// Whose word counts: `accepted_central`, `accepted_site` or `merged`.
        #[n(3)]
        resolution: String,
        /// The value from here on, as JSON.
        #[n(4)]
        value: String,
        /// All sides with who wrote them, when and why, as JSON.
        #[n(5)]
        sides: String,
        /// Why so.
        #[n(6)]
        why: String,
    },
    /// A person took back how a disagreement had ended.
    #[n(92)]
    ConflictReverted {
        /// Kind of the document.
        #[n(0)]
        kind: String,
        /// The document.
        #[n(1)]
        document: DocumentId,
        /// Path of the register.
        #[n(2)]
        path: String,
        /// The value until here, as JSON.
        #[n(3)]
        from: String,
        /// The value from here on, as JSON.
        #[n(4)]
        to: String,
        /// Why.
        #[n(5)]
        why: String,
    },
    /// A group was made.
    #[n(45)]
    GroupCreated {
        /// The group.
        #[n(0)]
        group: GroupId,
        /// Its name.
        #[n(1)]
        name: String,
        /// The group above, if there is one.
        #[n(2)]
        parent: Option<GroupId>,
    },
    /// Somebody at this site asked for what the site may not do by itself, so central is asked.
    #[n(70)]
    ProposalMade {
        /// The proposal.
        #[n(0)]
        proposal: ProposalId,
        /// What is wished.
        #[n(1)]
        action: String,
        /// The document that it is about.
        #[n(2)]
        document: DocumentId,
        /// Why it was not done at once.
        #[n(3)]
        reason: String,
    },
    /// A site did what it might do under the settings that it had then, and may not do under the newest ones. It was
    /// taken.
    #[n(71)]
    WorkUnderOlderEpoch {
        /// The site.
        #[n(0)]
        site: SiteId,
        /// Kind of the document.
        #[n(1)]
        kind: String,
        /// The document.
        #[n(2)]
        document: DocumentId,
        /// Paths of the registers.
        #[n(3)]
        paths: Vec<String>,
        /// Settings epoch that the work was judged by.
        #[n(4)]
        epoch: u64,
        /// Autonomy under it.
        #[n(5)]
        then: String,
        /// Autonomy under the newest epoch.
        #[n(6)]
        now: String,
    },
    /// A machine boots at a site and is at home at another one: it was claimed.
    #[n(80)]
    ClaimOpened {
        /// The claim.
        #[n(0)]
        claim: ClaimId,
        /// The machine.
        #[n(1)]
        node: NodeId,
        /// Where it is at home.
        #[n(2)]
        from: SiteId,
        /// Where it boots.
        #[n(3)]
        to: SiteId,
        /// How often it had moved.
        #[n(4)]
        home_epoch: u64,
    },
    /// The machine booted there again after its claim had ended.
    #[n(81)]
    ClaimAskedAgain {
        /// The claim.
        #[n(0)]
        claim: ClaimId,
        /// The machine.
        #[n(1)]
        node: NodeId,
        /// The round that had ended.
        #[n(2)]
        round: u64,
    },
    /// A claimed machine booted at home, where the claim was known.
    #[n(82)]
    ClaimedSeenAtHome {
        /// The claim.
        #[n(0)]
        claim: ClaimId,
        /// The machine.
        #[n(1)]
        node: NodeId,
        /// The round that was open.
        #[n(2)]
        round: u64,
    },
    /// A person at one side of a claim gave his side's consent, or withheld it.
    #[n(83)]
    ClaimConsented {
        /// The claim.
        #[n(0)]
        claim: ClaimId,
        /// The machine.
        #[n(1)]
        node: NodeId,
        /// The side.
        #[n(2)]
        side: SiteId,
        /// Yes or no.
        #[n(3)]
        consents: bool,
        /// Why.
        #[n(4)]
        reason: String,
    },
    /// A claim was decided, or waits for a person.
    #[n(84)]
    ClaimDecided {
        /// The claim.
        #[n(0)]
        claim: ClaimId,
        /// The machine.
        #[n(1)]
        node: NodeId,
        /// Where it was at home.
        #[n(2)]
        from: SiteId,
        /// Where it boots.
        #[n(3)]
        to: SiteId,
        /// The state of the claim.
        #[n(4)]
        state: String,
        /// Which policies or consents approve it, or would.
        #[n(5)]
        policy_matched: Option<String>,
        /// The person who decided; none where a policy or time did.
        #[n(6)]
        decided_by: Option<String>,
        /// Why, or what it waits for.
        #[n(7)]
        reason: String,
    },
    /// A machine is at home at another site.
    #[n(85)]
    HomeMoved {
        /// The machine.
        #[n(0)]
        node: NodeId,
        /// Where it was at home.
        #[n(1)]
        from: SiteId,
        /// Where it is.
        #[n(2)]
        to: SiteId,
        /// How often it has moved.
        #[n(3)]
        home_epoch: u64,
        /// The claim that moved it.
        #[n(4)]
        claim: ClaimId,
    },
    /// The former home of a machine can hold no order any more: its new one may get orders.
    #[n(86)]
    FenceOpened {
        /// The claim that moved it.
        #[n(0)]
        claim: ClaimId,
        /// The machine.
        #[n(1)]
        node: NodeId,
        /// What opened it.
        #[n(2)]
        reason: String,
        /// The person who broke it.
        #[n(3)]
        broken_by: Option<String>,
    },
}
