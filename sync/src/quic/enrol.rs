//! How a machine becomes a site, and how a site renews its certificate.
//!
//! A person at central makes a [`Token`] and types it at the branch. [`enrol`] dials central, believes it
//! only if its authority has the fingerprint in the token, sends the secret and a signing request over one
//! stream, and gets a certificate. [`renew`] does the same with the present certificate, expired or not, in
//! place of a secret. At central, [`serve`] answers one [`Applicant`]; whether it gets a certificate is up
//! to whoever implements [`Desk`].
//!
//! An answer can be lost on the way. Ask again with the same token and the same key: a desk gives a second
//! certificate to the key that spent the token, and to no other.
//!
//! Deliberately absent: where keys and certificates are kept, which tokens exist, and what a site is.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use minicbor::{Decode, Encode, bytes::ByteVec};
use quinn::ConnectionError;
use rustls::pki_types::CertificateDer;

use super::{
    CloseCode, connection_error,
    endpoint::{Applicant, DialError, Endpoint, dial},
    stream::{FrameError, FrameReader, FrameWriter},
    tls::{self, Identity, Presented, Protocol, SiteCertificate, SiteKey, WallClock},
};
use crate::{
    blob::Digest,
    id::{SiteId, hex, unhex},
    time::Timestamp,
};

/// Version of the exchange that this program speaks. Central answers every version up to its own.
pub const VERSION: u16 = 1;

/// Largest request or answer, in bytes. A request is below 1 KiB, an answer below 3 KiB.
const MAX_MESSAGE: usize = 16 << 10;

/// Longest name of a site, in bytes of UTF-8.
pub const MAX_NAME: usize = 128;

/// Longest signing request accepted, in bytes.
const MAX_REQUEST: usize = 4 << 10;

/// A peer that says nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(15);

/// Proves to central that somebody there invited this machine: 32 random bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a person carries from central to a branch: `hf1.<CA fingerprint>.<secret>`, both 64 lower-case
/// hexadecimal digits. `Display` shows the secret; `Debug` does not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Token {
    /// BLAKE3 digest of the certificate (DER) of central's authority.
    pub fingerprint: Digest,
    /// Good for one enrolment.
    pub secret: Secret,
}

/// Text that is not a [`Token`]. Never repeats the text, which may hold most of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    /// Nothing but white space.
    #[error("the token is empty; it looks like hf1.<64 digits>.<64 digits>")]
    Empty,
    /// The first part is not `hf1`.
    #[error("the token does not begin with `hf1.`; it looks like hf1.<64 digits>.<64 digits>")]
    Prefix,
    /// Too few or too many dots.
    #[error("the token has {found} parts separated by dots instead of 3; was it cut off?")]
    Parts {
        /// Parts found.
        found: usize,
    },
    /// A part is too short or too long.
    #[error("the {part} in the token has {found} digits instead of 64; was it copied whole?")]
    Length {
        /// `fingerprint` or `secret`.
        part: &'static str,
        /// Characters found.
        found: usize,
    },
    /// A part has a character that is not hexadecimal.
    #[error(
        "the {part} in the token has {character:?} at position {position}; only 0-9 and a-f may stand there"
    )]
    Digit {
        /// `fingerprint` or `secret`.
        part: &'static str,
        /// The first wrong character.
        character: char,
        /// Its place in the part, from 1.
        position: usize,
    },
}

impl Token {
    /// Reads the text form; white space around it and upper case are forgiven.
    ///
    /// # Errors
    /// Says which part is wrong in which way.
    pub fn parse(text: &str) -> Result<Self, ParseTokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ParseTokenError::Empty);
        }
        let parts: Vec<&str> = text.split('.').collect();
        if !parts[0].eq_ignore_ascii_case("hf1") {
            return Err(ParseTokenError::Prefix);
        }
        let [_, fingerprint, secret] = parts[..] else {
            return Err(ParseTokenError::Parts { found: parts.len() });
        };
        let fingerprint = Digest(digits("fingerprint", fingerprint)?);
        Ok(Self { fingerprint, secret: Secret(digits("secret", secret)?) })
    }
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        Self::parse(text)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf1.{}.{}", self.fingerprint, hex(&self.secret.0))
    }
}

fn digits(part: &'static str, text: &str) -> Result<[u8; 32], ParseTokenError> {
    if let Some((at, character)) = text.chars().enumerate().find(|(_, it)| !it.is_ascii_hexdigit()) {
        return Err(ParseTokenError::Digit { part, character, position: at + 1 });
    }
    unhex(text).ok_or(ParseTokenError::Length { part, found: text.len() })
}

/// What a machine gets when it is let in.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Who it is from now on.
    pub site: SiteId,
    /// Its certificate chain, leaf first; goes into [`SiteKey::identity`].
    pub chain: Vec<CertificateDer<'static>>,
    /// Central's authority, to be pinned from now on.
    pub authority: CertificateDer<'static>,
    /// Central's clock when it answered; the highest time seen so far.
    pub clock: Timestamp,
}

/// Why central did not let a machine in. The numbers are those of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalCode {
    /// 1: there is no such token.
    Wrong,
    /// 2: the token was used, with another key.
    Spent,
    /// 3: the token is too old.
    Expired,
    /// 4: central has no time now.
    Busy,
    /// 5: the request makes no sense to central.
    Malformed,
    /// 6: central does not know this version of the exchange.
    Version,
    /// 7: the site or its certificate was revoked, so it is not renewed.
    Revoked,
    /// 8: the token is for another site than the one that this machine is already.
    OtherSite,
    /// A number from a later version.
    Other(u8),
}

impl RefusalCode {
    fn number(self) -> u8 {
        match self {
            Self::Wrong => 1,
            Self::Spent => 2,
            Self::Expired => 3,
            Self::Busy => 4,
            Self::Malformed => 5,
            Self::Version => 6,
            Self::Revoked => 7,
            Self::OtherSite => 8,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Wrong,
            2 => Self::Spent,
            3 => Self::Expired,
            4 => Self::Busy,
            5 => Self::Malformed,
            6 => Self::Version,
            7 => Self::Revoked,
            8 => Self::OtherSite,
            other => Self::Other(other),
        }
    }
}

/// Central's no, as it travels.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For the program.
    pub code: RefusalCode,
    /// For the person at the branch: one sentence, no secrets.
    pub message: String,
}

impl Refusal {
    /// Makes a refusal.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What a desk gives to those it lets in.
#[derive(Debug, Clone)]
pub struct Issued {
    /// Who the machine is.
    pub site: SiteId,
    /// Its certificate chain, leaf first, in DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// The authority's certificate in DER.
    pub authority: CertificateDer<'static>,
    /// Central's clock.
    pub clock: Timestamp,
}

/// Decides at central who gets a certificate. The decision must be stored before it is returned.
pub trait Desk: Send + Sync {
    /// Redeems a token. `name` is what the machine calls itself, 1 to [`MAX_NAME`] bytes; `request` is its
    /// signing request (PKCS#10, DER, not looked at yet).
    ///
    /// The key that spent a token gets another certificate for it while it has not expired: the first
    /// answer may have been lost. A machine that is the site `again` already gets none for another site.
    ///
    /// # Errors
    /// A refusal for the machine.
    fn redeem(
        &self,
        secret: &Secret,
        name: &str,
        again: Option<SiteId>,
        request: &[u8],
    ) -> impl Future<Output = Result<Issued, Refusal>> + Send;

    /// Renews the certificate `peer`, verified but perhaps expired or revoked, for the key in `request`.
    ///
    /// # Errors
    /// A refusal for the site.
    fn renew(
        &self,
        peer: &SiteCertificate,
        request: &[u8],
    ) -> impl Future<Output = Result<Issued, Refusal>> + Send;
}

/// How the exchange with one applicant ended, for the journal.
#[derive(Debug)]
pub enum Served {
    /// It got a certificate, and the answer arrived.
    Issued(SiteId),
    /// It was refused.
    Refused(Refusal),
}

/// Answers one applicant: reads its request, asks `desk`, and waits until the answer arrived.
///
/// # Errors
/// When the applicant breaks off or sends no request. Where the desk issued a certificate first, it stays
/// issued; the machine will ask again.
pub async fn serve(applicant: Applicant, desk: &impl Desk) -> Result<Served, FrameError> {
    let connection = &applicant.connection;
    let peer = connection.remote_address().to_string();
    let broken = |error: std::io::Error| FrameError::Broken { peer: peer.clone(), source: error };
    let exchange = async {
        let (send, receive) = connection.accept_bi().await.map_err(|error| broken(error.into()))?;
        let frame = FrameReader::new(receive, &*peer).with_max(MAX_MESSAGE).read_frame().await?;
        let decision = match frame {
            Some(frame) => decide(&frame, applicant.peer.as_ref(), desk).await,
            None => Err(Refusal::new(RefusalCode::Malformed, "the request is missing")),
        };
        let mut writer = FrameWriter::new(send, &*peer);
        writer.write_frame(&encode(&Response::from(&decision))).await?;
        let mut send = writer.into_inner();
        send.finish();
        // Ends when everything was acknowledged, or the peer has read enough, or is gone.
        send.stopped().await;
        Ok(decision)
    };
    let outcome = match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(outcome) => outcome,
        Err(late) => Err(broken(late.into())),
    };
    match &outcome {
        Ok(_) => CloseCode::Done.close(connection, ""),
        Err(error) => CloseCode::Protocol.close(connection, &error.to_string()),
    }
    outcome.map(|decision| match decision {
        Ok(issued) => Served::Issued(issued.site),
        Err(refusal) => Served::Refused(refusal),
    })
}

async fn decide(frame: &[u8], peer: Option<&SiteCertificate>, desk: &impl Desk) -> Result<Issued, Refusal> {
    let malformed = |what: &str| Refusal::new(RefusalCode::Malformed, what);
    let request: Request = minicbor::decode(frame)
        .map_err(|error| malformed(&format!("the request does not decode: {error}")))?;
    if request.version == 0 || request.version > VERSION {
        let message = format!("version {} is asked for, central knows 1 to {VERSION}", request.version);
        return Err(Refusal::new(RefusalCode::Version, message));
    }
    if request.request.is_empty() || request.request.len() > MAX_REQUEST {
        return Err(malformed("the signing request is missing or too large"));
    }
    match (request.secret, peer) {
        (Some(secret), _) => {
            let secret =
                Secret(secret.as_slice().try_into().map_err(|_| malformed("the secret has not 32 bytes"))?);
            let name = request.name.unwrap_or_default();
            if name.trim().is_empty() || name.len() > MAX_NAME {
                return Err(malformed("the name of the site is missing or too long"));
            }
            desk.redeem(&secret, &name, request.again, &request.request).await
        }
        (None, Some(peer)) => desk.renew(peer, &request.request).await,
        (None, None) => Err(malformed("neither a secret nor a certificate was shown")),
    }
}

/// Why a machine did not become a site, or a site did not renew. [`explain`](Self::explain) is for people.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Nobody answered, or not with our protocol.
    #[error("reach central at {address}")]
    Unreachable {
        /// Where it was looked for.
        address: SocketAddr,
        /// What the transport said.
        #[source]
        source: DialError,
    },
    /// Somebody answered who is not the central of the token.
    #[error("central at {address} has authority {found} instead of {expected}")]
    WrongCentral {
        /// Where it was looked for.
        address: SocketAddr,
        /// Fingerprint in the token.
        expected: Digest,
        /// Fingerprint that was shown.
        found: Digest,
    },
    /// Central said no.
    #[error("central at {address} refused")]
    Refused {
        /// Where central is.
        address: SocketAddr,
        /// Its words.
        #[source]
        source: Refusal,
    },
    /// The connection was lost between request and answer.
    #[error("talk to central at {address}")]
    Broken {
        /// Where central is.
        address: SocketAddr,
        /// What happened.
        #[source]
        source: FrameError,
    },
    /// Central's answer cannot be used.
    #[error("central at {address} gave an unusable answer: {reason}")]
    Unusable {
        /// Where central is.
        address: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
    /// The name is empty or longer than [`MAX_NAME`].
    #[error("the name has {length} bytes, 1 to {MAX_NAME} are allowed")]
    Name {
        /// Bytes of UTF-8.
        length: usize,
    },
    /// The own key or certificate cannot be used.
    #[error("prepare the request")]
    Own(#[source] tls::TlsError),
}

impl EnrolError {
    /// What happened, why, and what to do next: three lines for the person at the keyboard.
    pub fn explain(&self) -> String {
        let (what, why, next): (String, String, &str) = match self {
            Self::Unreachable { address, source } => {
                let what = format!("central at {address} could not be reached");
                let (why, next) = explain_dial(source);
                (what, why, next)
            }
            Self::WrongCentral { address, expected, found } => (
                format!("{address} is not the central that made the token"),
                format!("its authority has fingerprint {found}, the token says {expected}"),
                "check the address; if it is right, somebody may be in between: ask for the fingerprint over another way",
            ),
            Self::Refused { source, .. } => {
                (source_what(source.code).into(), source.message.clone(), source_next(source.code))
            }
            Self::Broken { address, source } => (
                format!("the connection to central at {address} broke before the answer"),
                broken_why(source),
                "run the same command again with the same token; nothing is lost",
            ),
            Self::Unusable { address, reason } => (
                format!("the answer of central at {address} cannot be used"),
                reason.clone(),
                "bring both programs to the same version and ask for a new token",
            ),
            Self::Name { length } => (
                "the site cannot have this name".into(),
                format!("it has {length} bytes, 1 to {MAX_NAME} are allowed"),
                "choose another --name",
            ),
            Self::Own(source) => (
                "the request could not be prepared".into(),
                chain(source),
                "check the key file of this site; without a certificate it may be deleted to make a new one",
            ),
        };
        format!("error: {what}\n  why: {why}\n  next: {next}")
    }
}

fn explain_dial(source: &DialError) -> (String, &'static str) {
    let text = source.to_string();
    match source {
        DialError::Nobody { .. } => (
            text,
            "check address and port, that central runs, and that no firewall drops both UDP and TCP between here and there",
        ),
        DialError::Handshake(ConnectionError::ConnectionClosed(close))
            if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
        {
            ("too many machines are connecting".into(), "wait a minute and run the same command again")
        }
        DialError::Handshake(ConnectionError::TransportError(error))
            if error.reason.contains("certificate") =>
        {
            (
                error.reason.clone(),
                "check the clock of this machine, and the name and validity of central's certificate",
            )
        }
        DialError::Start(_) | DialError::Handshake(_) => {
            (text, "check that address and port are those of Holdfast's central, and that versions match")
        }
    }
}

fn source_what(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::Wrong | RefusalCode::Spent | RefusalCode::Expired | RefusalCode::OtherSite => {
            "central does not accept the token"
        }
        RefusalCode::Busy => "central has no time now",
        RefusalCode::Malformed | RefusalCode::Version | RefusalCode::Other(_) => {
            "central does not understand us"
        }
        RefusalCode::Revoked => "central does not renew the certificate",
    }
}

fn source_next(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::Wrong => "check that the token was copied whole, or ask central for a new one",
        RefusalCode::Spent => "ask central for a new token; if nobody here used this one, say so there",
        RefusalCode::Expired => "ask central for a new token",
        RefusalCode::Busy => "wait a minute and run the same command again",
        RefusalCode::Malformed | RefusalCode::Version | RefusalCode::Other(_) => {
            "bring both programs to the same version"
        }
        RefusalCode::Revoked => "ask central whether this site should come back, and for a token if so",
        RefusalCode::OtherSite => {
            "ask central for a token for this site; to become the other one, give another --data-dir"
        }
    }
}

fn broken_why(source: &FrameError) -> String {
    match source.closed() {
        Some((CloseCode::Stopping, _)) => "central is being stopped".into(),
        Some((code, reason)) => format!("central closed the connection ({code:?}): {reason}"),
        None => match source {
            FrameError::Broken { source, .. } => {
                connection_error(source).map_or_else(|| source.to_string(), ToString::to_string)
            }
            other => other.to_string(),
        },
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Becomes the site that `token` invites. `endpoint` comes from [`client`](super::endpoint::client); `name`
/// is what the site will be called, 1 to [`MAX_NAME`] bytes. Store `key` before calling, and come back with
/// the same one if the answer is lost. A machine that is a site already says which in `again`: a token for
/// another one is then refused and stays good.
///
/// # Errors
/// See [`EnrolError::explain`].
pub async fn enrol(
    endpoint: &Endpoint,
    address: SocketAddr,
    token: &Token,
    name: &str,
    again: Option<SiteId>,
    key: &SiteKey,
    clock: WallClock,
) -> Result<Enrolled, EnrolError> {
    if name.trim().is_empty() || name.len() > MAX_NAME {
        return Err(EnrolError::Name { length: name.len() });
    }
    let (config, presented) = tls::enrol_client_config(token.fingerprint, clock).map_err(EnrolError::Own)?;
    let request = Request {
        version: VERSION,
        secret: Some(token.secret.0.to_vec().into()),
        name: Some(name.to_owned()),
        request: key.request(name).map_err(EnrolError::Own)?.into(),
        again,
    };
    let answer = ask(endpoint, address, config, &request).await;
    let enrolled = answer.map_err(|error| wrong_central(error, token.fingerprint, &presented))?;
    if !presented.certifies(&enrolled.authority) {
        let reason = "it names an authority that is neither the one of the token nor its successor".into();
        return Err(EnrolError::Unusable { address, reason });
    }
    check(enrolled, address, key)
}

/// Gets a new certificate for a site whose present one, expired or not, is in `identity`. `key` may be the
/// same or a new one. `authorities` are the pinned certificates of central's authority.
///
/// # Errors
/// See [`EnrolError::explain`].
pub async fn renew(
    endpoint: &Endpoint,
    address: SocketAddr,
    identity: Identity,
    authorities: &[CertificateDer<'static>],
    key: &SiteKey,
    clock: WallClock,
) -> Result<Enrolled, EnrolError> {
    let config =
        tls::client_config(identity, authorities, Protocol::Enrolment, clock).map_err(EnrolError::Own)?;
    let request = key.request("renewal").map_err(EnrolError::Own)?.into();
    let request = Request { version: VERSION, secret: None, name: None, request, again: None };
    check(ask(endpoint, address, config, &request).await?, address, key)
}

async fn ask(
    endpoint: &Endpoint,
    address: SocketAddr,
    config: tls::Client,
    request: &Request,
) -> Result<Enrolled, EnrolError> {
    let unreachable = |source| EnrolError::Unreachable { address, source };
    let connection = dial(endpoint, address, config).await.map_err(unreachable)?;
    let broken = |source: FrameError| match source.closed() {
        Some((CloseCode::Busy, reason)) => {
            EnrolError::Refused { address, source: Refusal::new(RefusalCode::Busy, reason) }
        }
        _ => EnrolError::Broken { address, source },
    };
    let lost = |error: std::io::Error| broken(FrameError::Broken { peer: "central".into(), source: error });
    let exchange = async {
        let (send, receive) = connection.open_bi().await.map_err(|error| lost(error.into()))?;
        let mut writer = FrameWriter::new(send, "central");
        writer.write_frame(&encode(request)).await.map_err(broken)?;
        writer.into_inner().finish();
        let mut reader = FrameReader::new(receive, "central").with_max(MAX_MESSAGE);
        reader.read_frame().await.map_err(broken)
    };
    let frame = match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(frame) => frame?,
        Err(late) => return Err(lost(late.into())),
    };
    CloseCode::Done.close(&connection, "");
    let unusable = |reason: String| EnrolError::Unusable { address, reason };
    let frame = frame.ok_or_else(|| unusable("it is empty".into()))?;
    let response: Response = minicbor::decode(&frame).map_err(|error| unusable(error.to_string()))?;
    match response {
        Response { issued: Some(issued), .. } => Ok(issued.into()),
        Response { refused: Some(refused), .. } => {
            let code = RefusalCode::from_number(refused.code);
            Err(EnrolError::Refused { address, source: Refusal::new(code, refused.message) })
        }
        Response { issued: None, refused: None } => Err(unusable("it says neither yes nor no".into())),
    }
}

/// Tells a handshake that failed because of another authority from one that failed for any other reason.
fn wrong_central(error: EnrolError, expected: Digest, presented: &Presented) -> EnrolError {
    match (error, presented.foreign()) {
        (EnrolError::Unreachable { address, .. }, Some(found)) => {
            EnrolError::WrongCentral { address, expected, found }
        }
        (error, _) => error,
    }
}

/// A certificate that we cannot use later is better found now.
fn check(enrolled: Enrolled, address: SocketAddr, key: &SiteKey) -> Result<Enrolled, EnrolError> {
    let unusable = |reason: String| EnrolError::Unusable { address, reason };
    let leaf = enrolled.chain.first().ok_or_else(|| unusable("it holds no certificate".into()))?;
    let certificate = SiteCertificate::read(leaf).map_err(|error| unusable(error.to_string()))?;
    if certificate.site != enrolled.site {
        return Err(unusable("the certificate names another site than the answer".into()));
    }
    if !key.matches(leaf) {
        return Err(unusable("the certificate is for another key than ours".into()));
    }
    tls::verify_site_chain(&enrolled.chain, &enrolled.authority).map_err(|error| {
        unusable(format!("the certificate is not signed by central's authority: {error}"))
    })?;
    Ok(enrolled)
}

/// Machine to central. Fields are never renumbered; unknown ones are ignored.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Request {
    #[n(0)]
    version: u16,
    /// Absent for a renewal, which the certificate of the connection entitles to.
    #[n(1)]
    secret: Option<ByteVec>,
    #[n(2)]
    name: Option<String>,
    /// PKCS#10 in DER.
    #[n(3)]
    request: ByteVec,
    /// With a secret: the site that this machine is already.
    #[n(4)]
    again: Option<SiteId>,
}

/// Central to machine: exactly one of the two.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Response {
    #[n(0)]
    issued: Option<WireIssued>,
    #[n(1)]
    refused: Option<WireRefusal>,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct WireIssued {
    #[n(0)]
    site: SiteId,
    #[n(1)]
    chain: Vec<ByteVec>,
    #[n(2)]
    authority: ByteVec,
    #[n(3)]
    clock: Timestamp,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct WireRefusal {
    #[n(0)]
    code: u8,
    #[n(1)]
    message: String,
}

impl From<&Result<Issued, Refusal>> for Response {
    fn from(decision: &Result<Issued, Refusal>) -> Self {
        match decision {
            Ok(issued) => {
                let issued = WireIssued {
                    site: issued.site,
                    chain: issued.chain.iter().map(|it| it.to_vec().into()).collect(),
                    authority: issued.authority.to_vec().into(),
                    clock: issued.clock,
                };
                Self { issued: Some(issued), refused: None }
            }
            Err(refusal) => {
                let refused = WireRefusal { code: refusal.code.number(), message: refusal.message.clone() };
                Self { issued: None, refused: Some(refused) }
            }
        }
    }
}

impl From<WireIssued> for Enrolled {
    fn from(wire: WireIssued) -> Self {
        let certificate = |bytes: ByteVec| CertificateDer::from(Vec::from(bytes));
        Self {
            site: wire.site,
            chain: wire.chain.into_iter().map(certificate).collect(),
            authority: certificate(wire.authority),
            clock: wire.clock,
        }
    }
}

fn encode<T: Encode<()>>(message: &T) -> Vec<u8> {
    minicbor::to_vec(message).expect("a vector takes all bytes")
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use expect_test::{Expect, expect};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::quic::{
        endpoint::{self, Guest, Limits, Listener},
        testing::{Authority, NOW, SITE, YEAR, clock_at, keys, loopback},
    };

    /// A desk that gives its one site to whoever has the right secret.
    struct TestDesk {
        authority: Authority,
        asked: Mutex<Vec<String>>,
    }

    const RIGHT: Secret = Secret([1; 32]);
    const WRONG: Secret = Secret([2; 32]);
    const SPENT: Secret = Secret([3; 32]);
    const EXPIRED: Secret = Secret([4; 32]);
    const BUSY: Secret = Secret([5; 32]);
    const STOLEN: Secret = Secret([6; 32]);

    impl TestDesk {
        fn new() -> Self {
            Self { authority: Authority::new("fleet"), asked: Mutex::default() }
        }

        fn issue(&self, request: &[u8]) -> Issued {
            Issued {
                site: SITE,
                chain: vec![self.authority.certify(request, SITE)],
                authority: self.authority.certificate(),
                clock: NOW,
            }
        }
    }

    impl Desk for TestDesk {
        async fn redeem(
            &self,
            secret: &Secret,
            name: &str,
            again: Option<SiteId>,
            request: &[u8],
        ) -> Result<Issued, Refusal> {
            if again.is_some_and(|site| site != SITE) {
                return Err(Refusal::new(RefusalCode::OtherSite, "it is for site lyon"));
            }
            self.asked.lock().unwrap().push(format!("redeem for {name}"));
            let refuse = |code, message| Err(Refusal::new(code, message));
            match *secret {
                RIGHT => Ok(self.issue(request)),
                WRONG => refuse(RefusalCode::Wrong, "there is no such token"),
                SPENT => refuse(RefusalCode::Spent, "the token was used at 2026-11-20T11:00:00.000Z"),
                EXPIRED => refuse(RefusalCode::Expired, "the token was good until 2026-11-19T12:00:00.000Z"),
                BUSY => refuse(RefusalCode::Busy, "200 sites are being enrolled"),
                // Answers with a certificate for somebody else's key.
                STOLEN => Ok(self.issue(&SiteKey::generate().unwrap().request("other").unwrap())),
                _ => panic!("no test sends {secret:?}"),
            }
        }

        async fn renew(&self, peer: &SiteCertificate, request: &[u8]) -> Result<Issued, Refusal> {
            self.asked.lock().unwrap().push(format!("renew {}", peer.not_after));
            if peer.site == SITE {
                return Ok(self.issue(request));
            }
            Err(Refusal::new(RefusalCode::Revoked, "the site was removed at 2026-11-01T00:00:00.000Z"))
        }
    }

    /// A listening central that serves applicants one after the other.
    struct Central {
        address: SocketAddr,
        desk: Arc<TestDesk>,
        served: tokio::sync::mpsc::UnboundedReceiver<String>,
    }

    impl Central {
        fn start(limits: Limits) -> Self {
            let desk = Arc::new(TestDesk::new());
            let identity = desk.authority.server(super::super::CENTRAL_NAME);
            let listener = desk.authority.listen(identity, loopback(), &keys(1), limits);
            let address = listener.local_address().unwrap();
            let (sender, served) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(Self::run(listener, desk.clone(), sender));
            Self { address, desk, served }
        }

        async fn run(
            listener: Listener,
            desk: Arc<TestDesk>,
            served: tokio::sync::mpsc::UnboundedSender<String>,
        ) {
            while let Some(newcomer) = listener.accept().await {
                let Ok(Guest::Enrolment(applicant)) = newcomer.admit(|| NOW).await else { continue };
                let outcome = serve(applicant, &*desk).await;
                let _ = served.send(match outcome {
                    Ok(Served::Issued(site)) => format!("issued {site}"),
                    Ok(Served::Refused(refusal)) => format!("refused {:?}: {refusal}", refusal.code),
                    Err(error) => format!("failed: {}", chain(&error)),
                });
            }
        }

        fn token(&self, secret: Secret) -> Token {
            Token { fingerprint: Digest::of(&self.desk.authority.certificate()), secret }
        }

        async fn enrol(&self, token: &Token) -> Result<Enrolled, EnrolError> {
            let key = SiteKey::generate().unwrap();
            enrol(&site(), self.address, token, "lyon", None, &key, clock_at(NOW)).await
        }

        async fn explain(&self, token: &Token) -> String {
            let error = self.enrol(token).await.unwrap_err();
            error.explain().replace(&self.address.to_string(), "<central>")
        }
    }

    fn site() -> Endpoint {
        endpoint::client(loopback(), &keys(2)).unwrap()
    }

    #[tokio::test]
    async fn t1_a_machine_with_the_right_token_becomes_the_site() {
        let mut central = Central::start(Limits::default());
        let key = SiteKey::generate().unwrap();
        let token = central.token(RIGHT);
        let site = site();
        let enrolled =
            enrol(&site, central.address, &token, "lyon", None, &key, clock_at(NOW)).await.unwrap();
        assert_eq!((enrolled.site, enrolled.clock), (SITE, NOW));
        assert_eq!(Digest::of(&enrolled.authority), token.fingerprint);
        assert_eq!(central.served.recv().await.unwrap(), format!("issued {SITE}"));

        // What it got is good for a renewal, and so is what comes of that.
        let identity = key.identity(enrolled.chain);
        let next = SiteKey::generate().unwrap();
        let authorities = [enrolled.authority];
        let renewed =
            renew(&site, central.address, identity, &authorities, &next, clock_at(NOW)).await.unwrap();
        assert!(next.matches(&renewed.chain[0]) && !key.matches(&renewed.chain[0]));
        let asked = central.desk.asked.lock().unwrap().join(", ");
        expect!["redeem for lyon, renew 2027-11-20T12:00:00.000Z"].assert_eq(&asked);
    }

    #[tokio::test]
    async fn a_machine_whose_clock_stands_at_1970_enrols() {
        let central = Central::start(Limits::default());
        let key = SiteKey::generate().unwrap();
        let clock = clock_at(Timestamp(0));
        enrol(&site(), central.address, &central.token(RIGHT), "lyon", None, &key, clock).await.unwrap();
    }

    #[tokio::test]
    async fn an_expired_certificate_renews_and_that_of_a_removed_site_does_not() {
        let mut central = Central::start(Limits::default());
        let authorities = [central.desk.authority.certificate()];
        let key = SiteKey::generate().unwrap();
        // Central's listener checks at `NOW`; the site's certificate ended two years before.
        let old = central.desk.authority.site_expired(SITE, 2 * YEAR);
        renew(&site(), central.address, old, &authorities, &key, clock_at(NOW)).await.unwrap();
        assert_eq!(central.served.recv().await.unwrap(), format!("issued {SITE}"));

        let removed = central.desk.authority.site(SiteId([9; 16]));
        let refused = renew(&site(), central.address, removed, &authorities, &key, clock_at(NOW)).await;
        expect![[r#"
            error: central does not renew the certificate
              why: the site was removed at 2026-11-01T00:00:00.000Z
              next: ask central whether this site should come back, and for a token if so"#]]
        .assert_eq(&refused.unwrap_err().explain());
    }

    async fn check(secret: Secret, at_site: Expect, at_central: Expect) {
        let mut central = Central::start(Limits::default());
        at_site.assert_eq(&central.explain(&central.token(secret)).await);
        at_central.assert_eq(&central.served.recv().await.unwrap());
    }

    #[tokio::test]
    async fn p3_a_wrong_token_is_refused() {
        check(
            WRONG,
            expect![[r#"
                error: central does not accept the token
                  why: there is no such token
                  next: check that the token was copied whole, or ask central for a new one"#]],
            expect!["refused Wrong: there is no such token"],
        )
        .await;
    }

    #[tokio::test]
    async fn p3_a_spent_token_is_refused() {
        check(
            SPENT,
            expect![[r#"
                error: central does not accept the token
                  why: the token was used at 2026-11-20T11:00:00.000Z
                  next: ask central for a new token; if nobody here used this one, say so there"#]],
            expect!["refused Spent: the token was used at 2026-11-20T11:00:00.000Z"],
        )
        .await;
    }

    #[tokio::test]
    async fn p3_an_expired_token_is_refused() {
        check(
            EXPIRED,
            expect![[r#"
                error: central does not accept the token
                  why: the token was good until 2026-11-19T12:00:00.000Z
                  next: ask central for a new token"#]],
            expect!["refused Expired: the token was good until 2026-11-19T12:00:00.000Z"],
        )
        .await;
    }

    #[tokio::test]
    async fn a_central_without_time_says_so() {
        check(
            BUSY,
            expect![[r#"
                error: central has no time now
                  why: 200 sites are being enrolled
                  next: wait a minute and run the same command again"#]],
            expect!["refused Busy: 200 sites are being enrolled"],
        )
        .await;

        let central = Central::start(Limits { enrolments: 0, ..Limits::default() });
        expect![[r#"
            error: central has no time now
              why: too many enrolments at a time
              next: wait a minute and run the same command again"#]]
        .assert_eq(&central.explain(&central.token(RIGHT)).await);
        assert!(central.desk.asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn p3_a_token_of_another_fleet_never_leaves_the_machine() {
        let central = Central::start(Limits::default());
        let token = Token { fingerprint: Digest([0xab; 32]), secret: RIGHT };
        let found = Digest::of(&central.desk.authority.certificate()).to_string();
        expect![[r#"
            error: <central> is not the central that made the token
              why: its authority has fingerprint <its fingerprint>, the token says abababababababababababababababababababababababababababababababab
              next: check the address; if it is right, somebody may be in between: ask for the fingerprint over another way"#]].assert_eq(&central.explain(&token).await.replace(&found, "<its fingerprint>"));
        assert!(central.desk.asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_leaf_for_another_name_is_not_central_even_under_the_right_authority() {
        let desk = Arc::new(TestDesk::new());
        let identity = desk.authority.server("lyon.example");
        let listener = desk.authority.listen(identity, loopback(), &keys(1), Limits::default());
        let address = listener.local_address().unwrap();
        let (sender, served) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(Central::run(listener, desk.clone(), sender));
        let central = Central { address, desk, served };
        let text = central.explain(&central.token(RIGHT)).await;
        assert!(text.contains("not valid for name \"central.holdfast\""), "{text}");
    }

    #[tokio::test]
    async fn an_answer_with_a_certificate_for_another_key_is_not_used() {
        let central = Central::start(Limits::default());
        expect![[r#"
            error: the answer of central at <central> cannot be used
              why: the certificate is for another key than ours
              next: bring both programs to the same version and ask for a new token"#]]
        .assert_eq(&central.explain(&central.token(STOLEN)).await);
    }

    #[tokio::test]
    async fn p3_a_token_for_another_site_is_refused_to_a_machine_that_is_one() {
        let central = Central::start(Limits::default());
        let (key, token) = (SiteKey::generate().unwrap(), central.token(RIGHT));
        let again = |site| enrol_again(&central, &token, &key, site);
        expect![[r#"
            error: central does not accept the token
              why: it is for site lyon
              next: ask central for a token for this site; to become the other one, give another --data-dir"#]]
        .assert_eq(&again(SiteId([9; 16])).await.unwrap_err().explain());
        assert!(central.desk.asked.lock().unwrap().is_empty(), "the token stays good");
        assert_eq!(again(SITE).await.unwrap().site, SITE);
    }

    async fn enrol_again(
        central: &Central,
        token: &Token,
        key: &SiteKey,
        site_id: SiteId,
    ) -> Result<Enrolled, EnrolError> {
        enrol(&site(), central.address, token, "lyon", Some(site_id), key, clock_at(NOW)).await
    }

    #[tokio::test]
    async fn a_name_must_be_one() {
        let key = SiteKey::generate().unwrap();
        let token = Token { fingerprint: Digest([0; 32]), secret: RIGHT };
        for name in ["", "  ", &"n".repeat(129)] {
            let nowhere = loopback();
            let error = enrol(&site(), nowhere, &token, name, None, &key, clock_at(NOW)).await.unwrap_err();
            assert!(matches!(error, EnrolError::Name { .. }));
        }
        expect![[r#"
            error: the site cannot have this name
              why: it has 129 bytes, 1 to 128 are allowed
              next: choose another --name"#]]
        .assert_eq(&EnrolError::Name { length: 129 }.explain());
    }

    #[test]
    fn silence_is_explained() {
        let address = SocketAddr::from(([192, 0, 2, 1], 7443));
        let explain = |source: DialError| EnrolError::Unreachable { address, source }.explain();
        expect![[r#"
            error: central at 192.0.2.1:7443 could not be reached
              why: nobody answers: no answer within 10 s over UDP, Connection refused (os error 111) over TCP
              next: check address and port, that central runs, and that no firewall drops both UDP and TCP between here and there"#]].assert_eq(&explain(DialError::Nobody { udp: "no answer within 10 s".into(), tcp: "Connection refused (os error 111)".into() }));
        expect![[r#"
            error: central at 192.0.2.1:7443 could not be reached
              why: invalid remote address: 192.0.2.1:7443
              next: check that address and port are those of Holdfast's central, and that versions match"#]]
        .assert_eq(&explain(quinn::ConnectError::InvalidRemoteAddress(address).into()));
    }

    /// What central answers to raw bytes on the stream, as central tells it.
    async fn raw(frame: &[u8]) -> String {
        let mut central = Central::start(Limits::default());
        let token = central.token(RIGHT);
        let (config, _) = tls::enrol_client_config(token.fingerprint, clock_at(NOW)).unwrap();
        let connection = dial(&site(), central.address, config).await.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(frame).await.unwrap();
        send.finish();
        let _ = receive.read_to_end(&mut Vec::new()).await;
        CloseCode::Done.close(&connection, "");
        let served = central.served.recv().await.unwrap();
        let peer = served.find("127.0.0.1:").map(|at| served[at..].split(' ').next().unwrap().to_owned());
        peer.map_or(served.clone(), |peer| served.replace(&peer, "<machine>"))
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap();
        [&length.to_be_bytes(), body].concat()
    }

    #[tokio::test]
    async fn bytes_that_are_no_request_are_refused() {
        expect!["refused Malformed: the request is missing"].assert_eq(&raw(b"").await);
        expect!["refused Malformed: the request does not decode: unexpected type bytes at position 0: expected map"].assert_eq(&raw(&framed(b"GET / HTTP/1.1")).await);
        expect!["failed: <machine> sent a frame of 4294967295 bytes, 16384 are allowed"]
            .assert_eq(&raw(&u32::MAX.to_be_bytes()).await);
        expect!["failed: <machine> ended the stream after 1 of 256 bytes"]
            .assert_eq(&raw(&[0, 0, 1, 0, 7]).await);
        let request = |version, secret: Option<&[u8]>, name: &str, size| {
            framed(&encode(&Request {
                version,
                secret: secret.map(|it| it.to_vec().into()),
                name: Some(name.to_owned()),
                request: vec![0; size].into(),
                again: None,
            }))
        };
        expect!["refused Version: version 2 is asked for, central knows 1 to 1"]
            .assert_eq(&raw(&request(2, None, "lyon", 9)).await);
        expect!["refused Malformed: neither a secret nor a certificate was shown"]
            .assert_eq(&raw(&request(1, None, "lyon", 9)).await);
        expect!["refused Malformed: the secret has not 32 bytes"]
            .assert_eq(&raw(&request(1, Some(&[1; 31]), "lyon", 9)).await);
        expect!["refused Malformed: the name of the site is missing or too long"]
            .assert_eq(&raw(&request(1, Some(&[1; 32]), "", 9)).await);
        expect!["refused Malformed: the signing request is missing or too large"]
            .assert_eq(&raw(&request(1, Some(&[1; 32]), "lyon", MAX_REQUEST + 1)).await);
    }

    #[test]
    fn later_versions_may_add_fields_and_codes() {
        let mut encoder = minicbor::Encoder::new(Vec::new());
        encoder.map(2).unwrap().u8(1).unwrap();
        encoder.map(3).unwrap().u8(0).unwrap().u8(77).unwrap().u8(1).unwrap().str("no").unwrap();
        encoder.u8(9).unwrap().array(1).unwrap().str("a new field").unwrap();
        encoder.u8(200).unwrap().map(0).unwrap();
        let response: Response = minicbor::decode(&encoder.into_writer()).unwrap();
        let refused = response.refused.unwrap();
        assert_eq!(RefusalCode::from_number(refused.code), RefusalCode::Other(77));
        assert!(response.issued.is_none());
        for number in 0..=255 {
            assert_eq!(RefusalCode::from_number(number).number(), number);
        }
    }

    #[test]
    fn a_request_looks_like_this_on_the_wire() {
        let request = Request {
            version: 1,
            secret: Some(vec![0xaa; 4].into()),
            name: Some("lyon".into()),
            request: vec![0xbb; 3].into(),
            again: None,
        };
        expect!["a400010144aaaaaaaa02646c796f6e0343bbbbbb"].assert_eq(&hex(&encode(&request)));
        let renewal = Request { secret: None, name: None, ..request };
        expect!["a200010343bbbbbb"].assert_eq(&hex(&encode(&renewal)));
    }

    #[test]
    fn t1_a_token_survives_being_copied_and_says_what_is_wrong_with_it() {
        let token = Token { fingerprint: Digest([0xc4; 32]), secret: Secret([0x5e; 32]) };
        let text = token.to_string();
        assert_eq!(text, format!("hf1.{}.{}", "c4".repeat(32), "5e".repeat(32)));
        assert_eq!(Token::parse(&text), Ok(token.clone()));
        assert_eq!(format!("  {}\n", text.to_uppercase()).parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("5e5e"), "the secret stays out of logs");

        let check = |text: &str, expected: Expect| {
            expected.assert_eq(&Token::parse(text).unwrap_err().to_string());
        };
        let whole = "5e".repeat(32);
        check(" ", expect!["the token is empty; it looks like hf1.<64 digits>.<64 digits>"]);
        check(
            "hunter2",
            expect!["the token does not begin with `hf1.`; it looks like hf1.<64 digits>.<64 digits>"],
        );
        check(
            "hf2.aa.bb",
            expect!["the token does not begin with `hf1.`; it looks like hf1.<64 digits>.<64 digits>"],
        );
        check("hf1", expect!["the token has 1 parts separated by dots instead of 3; was it cut off?"]);
        check(
            &format!("hf1.{whole}"),
            expect!["the token has 2 parts separated by dots instead of 3; was it cut off?"],
        );
        check(
            &format!("hf1.{whole}.{whole}.{whole}"),
            expect!["the token has 4 parts separated by dots instead of 3; was it cut off?"],
        );
        check(
            &format!("hf1.{whole}.5e5e"),
            expect!["the secret in the token has 4 digits instead of 64; was it copied whole?"],
        );
        check(
            &format!("hf1..{whole}"),
            expect!["the fingerprint in the token has 0 digits instead of 64; was it copied whole?"],
        );
        check(
            &format!("hf1.{}.{whole}", whole.replacen("5e", "5é", 1)),
            expect!["the fingerprint in the token has 'é' at position 2; only 0-9 and a-f may stand there"],
        );
        check(
            &format!("hf1.{whole}.{} {}", &whole[..10], &whole[11..]),
            expect!["the secret in the token has ' ' at position 11; only 0-9 and a-f may stand there"],
        );
    }
}
