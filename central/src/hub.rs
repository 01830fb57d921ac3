//! The hub: lets sites in, replicates with them, hands them content, and enrols machines.
//!
//! [`accept`] is the door. A site with a certificate gets a session, which `sync::quic::driver` runs over
//! [`Replica`]; a machine without one goes to the [`Registrar`]. Each peer is let in by a task of its own, so
//! a slow one holds up nobody.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use store::{
    Store, StoreError,
    command::{self, certificate::Certified},
    view::Entitlement,
};
use sync::{
    blob::Digest,
    engine::{Engine, Output},
    id::{Origin, SiteId},
    quic::{
        CloseCode, Connection, RecvStream, SendStream,
        driver::{Feed, Host},
        endpoint::{AdmitError, Guest, Listener, Newcomer},
        enrol::{self, Desk, Issued, Refusal, RefusalCode, Secret, Served},
        stream::{BlobWriter, FrameReader},
        tls::SiteCertificate,
    },
    time::Timestamp,
    wire::Item,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::{
    content::{Pieces, off_runtime},
    enrolment::{
        ca::{Authority, BACKDATED},
        certificate::{KeyDigest, KeyRequest},
        seat::Seat,
        token::{self, TokenRecord},
    },
    event_loop::Edge,
    evidence::Word,
    failure::chain,
    sessions::{Sessions, Waiting},
};

/// Who the journal names for what central does by itself.
const BY: &str = "central";

/// A site that opened a stream and asks for nothing is given up after this.
const PATIENCE: Duration = Duration::from_secs(15);

/// Connections that a site may have at once: a session, what is left of earlier ones, and the content that it
/// fetches over TCP. Each is an open file there, of which central has enough for all sites and not for one alone.
const MOST_CONNECTIONS: usize = 40;

/// Sessions that were let in and that the driver has not taken yet.
pub(crate) const WAITING_SESSIONS: usize = 64;

/// Lets peers in until the listener is closed.
pub(crate) async fn accept(
    listener: Arc<Listener>,
    registrar: Arc<Registrar>,
    sessions: mpsc::Sender<(SiteId, Connection)>,
    tasks: TaskTracker,
) {
    while let Some(newcomer) = listener.accept().await {
        tasks.spawn(admit(newcomer, Arc::clone(&registrar), sessions.clone()));
    }
}

async fn admit(newcomer: Newcomer, registrar: Arc<Registrar>, sessions: mpsc::Sender<(SiteId, Connection)>) {
    let address = newcomer.remote_address();
    match newcomer.admit(|| registrar.edge.now()).await {
        Ok(Guest::Session { connection, peer }) => {
            let since = Some(registrar.edge.now());
            if registrar.lets_in(&connection, &peer, since).await {
                // Fails only when the driver has ended, and then the listener is closing too.
                drop(sessions.send((peer.site, connection)).await);
            }
        }
        Ok(Guest::Content { connection, peer }) => {
            let site = peer.site;
            if registrar.lets_in(&connection, &peer, None).await
                && let Ok(Ok((send, receive))) = tokio::time::timeout(PATIENCE, connection.accept_bi()).await
                && let Err(error) = hand_out(&registrar.store, site, send, receive).await
            {
                tracing::debug!(%site, error = chain(&*error), "content was not handed out");
            }
        }
        Ok(Guest::Enrolment(applicant)) => match enrol::serve(applicant, &*registrar).await {
            Ok(Served::Issued(site)) => tracing::info!(%site, %address, "certificate issued"),
            Ok(Served::Refused(refusal)) => tracing::warn!(%address, %refusal, "no certificate was issued"),
            Err(error) => tracing::warn!(%address, error = chain(&error), "an enrolment broke off"),
        },
        // Anybody on the network can cause these.
        Err(error @ (AdmitError::Handshake { .. } | AdmitError::TooSlow { .. })) => {
            tracing::debug!(error = chain(&error), "not let in");
        }
        Err(error) => tracing::info!(error = chain(&error), "not let in"),
    }
}

/// Central's replica, as the driver sees it.
pub(crate) struct Replica {
    pub(crate) store: Store,
    pub(crate) edge: Edge,
    pub(crate) tasks: TaskTracker,
    /// What is to be signed and verified.
    pub(crate) words: mpsc::UnboundedSender<Word>,
    pub(crate) sessions: Sessions,
}

impl Host for Replica {
    fn perform(&mut self, output: Output, feed: &Feed) {
        match &output {
            Output::Busy { peer: Origin::Site(site), until, reason } => {
                tracing::warn!(%site, %until, reason, "asked to wait");
                let waiting = Waiting { until: *until, why: reason.clone() };
                self.sessions.note_waiting(*site, Some(waiting));
            }
            Output::Ingest { peer: Origin::Site(site), .. } => self.sessions.note_waiting(*site, None),
            _ => {}
        }
        let feed = feed.clone();
        // Nobody listens any more when central ends; then nothing is signed either.
        let (words, mut after) = (self.words.clone(), None);
        match &output {
            Output::Up { peer, .. } => drop(words.send(Word::Up(*peer))),
            Output::Down { peer, .. } => drop(words.send(Word::Down(*peer))),
            Output::Ingest { items, .. } if items.iter().any(|it| Item::is_mark(it)) => {
                after = Some(Word::Told);
            }
            _ => {}
        }
        self.store.answer(output, self.edge.given(BY), move |input| {
            feed.send(input);
            if let Some(word) = after {
                drop(words.send(word));
            }
        });
    }

    fn connection(&mut self, peer: Origin, connection: Option<&Connection>) {
        tracing::debug!(%peer, connected = connection.is_some(), "connection");
    }

    fn stream(&mut self, site: SiteId, send: SendStream, receive: RecvStream) {
        let store = self.store.clone();
        self.tasks.spawn(async move {
            if let Err(error) = hand_out(&store, site, send, receive).await {
                tracing::debug!(%site, error = chain(&*error), "content was not handed out");
            }
        });
    }

    fn turned(&mut self, _: &Engine, _: Duration) {}
}

/// A site's request for content: 32 bytes of digest and the first byte wanted, `u64` big-endian.
fn parse_request(frame: &[u8]) -> Option<(Digest, u64)> {
    let (digest, offset) = frame.split_at_checked(32)?;
    Some((Digest::from_slice(digest)?, u64::from_be_bytes(offset.try_into().ok()?)))
}

/// Answers one request for content: as many bytes as follow the wanted offset, or that it is not here.
async fn hand_out(
    store: &Store,
    site: SiteId,
    send: SendStream,
    receive: RecvStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let peer = format!("site {site}");
    let mut requests = FrameReader::new(receive, &*peer).with_max(64);
    let Some(frame) = tokio::time::timeout(PATIENCE, requests.read_frame()).await?? else {
        return Ok(());
    };
    let Some((digest, offset)) = parse_request(&frame) else {
        BlobWriter::refuse(send, &peer).await?;
        return Err(format!("{} bytes are no request for content", frame.len()).into());
    };
    let blobs = store.blobs().clone();
    let found = off_runtime(move || blobs.reader(digest)).await;
    let reader = match found {
        Ok(Some(reader)) if offset <= reader.len() => reader,
        Ok(_) => {
            tracing::info!(%site, %digest, offset, "content that is not here was asked for");
            return Ok(BlobWriter::refuse(send, &peer).await?);
        }
        Err(error) => {
            tracing::error!(%site, %digest, error = chain(&error), "content could not be opened");
            return Ok(BlobWriter::refuse(send, &peer).await?);
        }
    };
    let size = reader.len();
    let mut writer = BlobWriter::open(send, size - offset, &peer).await?;
    let mut pieces = Pieces::new(reader, offset..size);
    while let Some(piece) = pieces.next().await? {
        writer.write(piece).await?;
    }
    writer.finish();
    Ok(())
}

/// Decides who gets a certificate, by the tokens and sites in the store.
pub(crate) struct Registrar {
    store: Store,
    seat: Seat,
    edge: Edge,
    sessions: Sessions,
    /// What the journal may still be told of those who were refused.
    refusals: Mutex<Allowance>,
}

impl Registrar {
    pub(crate) fn new(store: Store, seat: Seat, edge: Edge, sessions: Sessions) -> Self {
        Registrar { store, seat, edge, sessions, refusals: Mutex::new(Allowance::default()) }
    }

    /// Lists the connection of a site and judges its certificate; a site that does not get in is told why.
    async fn lets_in(
        &self,
        connection: &Connection,
        peer: &SiteCertificate,
        session_since: Option<Timestamp>,
    ) -> bool {
        let site = peer.site;
        if self.sessions.add(site, connection, session_since) > MOST_CONNECTIONS {
            tracing::warn!(%site, "too many connections of one site");
            CloseCode::Busy.close(connection, "too many connections of one site");
            return false;
        }
        match self.entitlement(peer).await {
            Ok(Entitlement::Good) => true,
            Ok(other) => {
                let (reason, address) = (words(site, &other), connection.remote_address());
                tracing::warn!(%site, %address, serial = peer.serial_hex(), reason, "turned away");
                CloseCode::Revoked.close(connection, &reason);
                false
            }
            Err(error) => {
                tracing::error!(%site, error = chain(&error), "the site could not be looked up");
                CloseCode::Busy.close(connection, "central cannot read its database");
                false
            }
        }
    }

    /// What the certificate of a peer is worth now. The first use of a good one is kept.
    async fn entitlement(&self, peer: &SiteCertificate) -> Result<Entitlement, StoreError> {
        let (store, of) = (self.store.clone(), peer.clone());
        let judge = move || {
            store.read(|view| {
                let worth = view.entitlement(of.site, &of.serial, issued_at(&of))?;
                Ok((worth, view.is_used(&of.serial)?))
            })
        };
        let (worth, is_used) = off_runtime(judge).await?;
        if worth == Entitlement::Good
            && !is_used
            && let Some(authority) = self.seat.present().named(&peer.issuer)
        {
            let SiteCertificate { site, not_after, .. } = *peer;
            let (serial, key) = (peer.serial.clone(), peer.public_key.clone());
            let certified = Certified { serial, not_after, authority, key };
            let issued_at = issued_at(peer);
            self.write(move |tx| command::certificate::used(tx, site, &certified, issued_at)).await?;
        }
        Ok(worth)
    }

    async fn write<T: Send + 'static>(
        &self,
        command: impl FnOnce(&mut store::Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        self.store.submit(self.edge.given(BY), command, move |outcome| drop(sender.send(outcome)));
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Notes a refusal in the journal, unless somebody is filling it.
    async fn note_refusal(&self, name: &str, refusal: &Refusal) {
        let allowed = match self.refusals.lock() {
            Ok(mut allowance) => allowance.take(self.edge.now()),
            Err(_) => false,
        };
        if !allowed {
            tracing::warn!(name, %refusal, "refused, and not journalled: too many in a short time");
            return;
        }
        let (name, reason) = (name.to_string(), refusal.message.clone());
        if let Err(error) = self.write(move |tx| command::enrolment::refuse(tx, &name, &reason)).await {
            tracing::error!(error = chain(&error), "a refused enrolment could not be journalled");
        }
    }

    /// What makes a certificate for the key in `request` inside a transaction of the store.
    fn seal(&self, request: KeyRequest) -> Seal {
        Seal { authority: self.seat.present(), request, serial: self.edge.entropy() }
    }

    async fn judge(&self, secret: &Secret, again: Option<SiteId>, request: &[u8]) -> Result<Issued, Refusal> {
        let request = parse_key(request)?;
        let (hash, key) = (token::hash(secret), request.digest());
        let seal = self.seal(request);
        let judged = self
            .write(move |tx| {
                let judge = |row: Option<&store::tokens::TokenRow>, now| {
                    let record = row.map(record_of);
                    if let Some(refusal) = token::judge(record.as_ref(), key, now).refusal() {
                        return Err(refusal);
                    }
                    let record = record.expect("only a token that exists is accepted");
                    match again {
                        Some(other) if other != record.site => Err(Refusal::new(
                            RefusalCode::OtherSite,
                            format!("it is for site {}, this machine is site {other}", record.name),
                        )),
                        _ => Ok(record.site),
                    }
                };
                command::enrolment::redeem(tx, hash, key.0, judge, |site, now| seal.certify(site, now))
            })
            .await;
        judged.unwrap_or_else(|error| {
            tracing::error!(error = chain(&error), "a token could not be judged");
            Err(Refusal::new(RefusalCode::Busy, "central cannot use its database now"))
        })
    }
}

/// Everything that a certificate needs but its site and instant.
struct Seal {
    authority: Arc<Authority>,
    request: KeyRequest,
    serial: [u8; 16],
}

impl Seal {
    fn certify(self, site: SiteId, now: Timestamp) -> Result<(Issued, Certified), Refusal> {
        let failed = |error: &dyn std::error::Error| {
            tracing::error!(%site, error = chain(error), "a certificate could not be made");
            Refusal::new(RefusalCode::Busy, "central cannot make certificates now")
        };
        let leaf = self
            .authority
            .issue_site(site, &self.request, self.serial, now)
            .map_err(|error| failed(&error))?;
        // As those will read it who check it later.
        let read = SiteCertificate::read(&leaf).map_err(|error| failed(&error))?;
        let authority = self.authority.fingerprint();
        let certified =
            Certified { serial: read.serial, not_after: read.not_after, authority, key: read.public_key };
        let authority = self.authority.certificate().clone();
        Ok((Issued { site, chain: vec![leaf], authority, clock: now }, certified))
    }
}

/// When central issued a certificate: it was dated back by then.
fn issued_at(certificate: &SiteCertificate) -> Timestamp {
    certificate.not_before.after(BACKDATED)
}

/// What a site is told that is not let in.
fn words(site: SiteId, entitlement: &Entitlement) -> String {
    match entitlement {
        Entitlement::Good => "nothing is wrong".into(),
        Entitlement::NoSuchSite => format!("central knows no site {site}"),
        Entitlement::Revoked(revocation) => revocation.words(),
    }
}

impl Desk for Registrar {
    async fn redeem(
        &self,
        secret: &Secret,
        name: &str,
        again: Option<SiteId>,
        request: &[u8],
    ) -> Result<Issued, Refusal> {
        match self.judge(secret, again, request).await {
            Ok(issued) => {
                tracing::info!(site = %issued.site, called = name, "token accepted");
                Ok(issued)
            }
            Err(refusal) => {
                self.note_refusal(name, &refusal).await;
                Err(refusal)
            }
        }
    }

    async fn renew(&self, peer: &SiteCertificate, request: &[u8]) -> Result<Issued, Refusal> {
        let (seal, site) = (self.seal(parse_key(request)?), peer.site);
        let (serial, issued_at) = (peer.serial.clone(), issued_at(peer));
        let renewed = self
            .write(move |tx| {
                let certify = |now| seal.certify(site, now);
                let refuse = |why: &Entitlement| Refusal::new(RefusalCode::Revoked, words(site, why));
                command::certificate::renew(tx, site, &serial, issued_at, certify, refuse)
            })
            .await;
        match renewed {
            Ok(Ok(issued)) => Ok(issued),
            Ok(Err(refusal)) => {
                self.note_refusal(&site.to_string(), &refusal).await;
                Err(refusal)
            }
            Err(error) => {
                tracing::error!(%site, error = chain(&error), "a certificate could not be renewed");
                Err(Refusal::new(RefusalCode::Busy, "central cannot use its database now"))
            }
        }
    }
}

fn parse_key(request: &[u8]) -> Result<KeyRequest, Refusal> {
    KeyRequest::parse(request).map_err(|error| Refusal::new(RefusalCode::Malformed, error.to_string()))
}

fn record_of(row: &store::tokens::TokenRow) -> TokenRecord {
    TokenRecord {
        hash: row.hash,
        site: row.site,
        name: row.name.clone(),
        created_at: row.created_at,
        expires_at: row.expires_at,
        spent_at: row.spent_at,
        spent_by: row.spent_by.map(KeyDigest),
    }
}

/// How many refusals the journal takes: it never forgets, and anybody can ask.
#[derive(Debug, Default)]
struct Allowance {
    used: u32,
    since: Timestamp,
}

impl Allowance {
    /// Refusals that are journalled at once.
    const BURST: u32 = 20;
    /// One more after each of these.
    const EVERY: Duration = Duration::from_secs(60);

    fn take(&mut self, now: Timestamp) -> bool {
        let regained = now.since(self.since).as_secs() / Self::EVERY.as_secs();
        if regained > 0 {
            self.used = self.used.saturating_sub(u32::try_from(regained).unwrap_or(u32::MAX));
            self.since = now;
        }
        let allowed = self.used < Self::BURST;
        self.used += u32::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_takes_twenty_refusals_at_once_and_then_one_a_minute() {
        let mut allowance = Allowance::default();
        let start = Timestamp(1_795_176_000_000);
        let at = |s| start.after(Duration::from_secs(s));
        let taken = |allowance: &mut Allowance, s| (0..100).filter(|_| allowance.take(at(s))).count();
        assert_eq!(taken(&mut allowance, 0), 20);
        assert_eq!(taken(&mut allowance, 59), 0);
        assert_eq!(taken(&mut allowance, 60), 1);
        assert_eq!(taken(&mut allowance, 240), 3);
        assert_eq!(taken(&mut allowance, 86_400), 20);
        // A clock that is set back gives nothing away.
        assert_eq!(taken(&mut allowance, 1), 0);
    }

    #[test]
    fn a_request_for_content_is_a_digest_and_an_offset() {
        let digest = Digest([7; 32]);
        let frame = [&digest.0[..], &300_u64.to_be_bytes()].concat();
        assert_eq!(parse_request(&frame), Some((digest, 300)));
        assert_eq!(parse_request(&frame[..39]), None);
        assert_eq!(parse_request(&[&frame[..], &[0]].concat()), None);
        assert_eq!(parse_request(&[]), None);
    }
}
