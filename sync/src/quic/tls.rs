//! Who may speak to whom: TLS 1.3 with certificates of one private authority.
//!
//! [`server_config`] is central's side, [`client_config`] a site's, [`enrol_client_config`] that of a machine
//! which knows nothing but the fingerprint in its token. [`SiteCertificate`] is what a site's certificate
//! says, [`SiteKey`] the private key behind it.
//!
//! Time is where a private fleet differs from the web, because a branch machine may have no battery clock:
//! - The authority signs nothing for the future, so the start of a validity is proof that this time has come.
//!   A site therefore checks central's certificate at the later of its own clock and that start.
//!   An authority that was replaced is its successor's root by a certificate between them, and what pins it goes
//!   on working even after its own validity: the pin is its key.
//! - An expired site certificate passes the handshake, because its holder may still do one thing: renew.
//!   Whether it opens a session is decided after the handshake, where the refusal can say why.
//!
//! Deliberately absent: TLS 1.2, 0-RTT and session tickets (a resumed session would skip the certificate),
//! revocation (checked by whoever owns the list, against [`SiteCertificate::serial`]) and files.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    time_provider::TimeProvider,
};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::{CENTRAL_NAME, Connection, ENROLMENT, SESSION, tcp::CONTENT};
use crate::{
    blob::Digest,
    id::{SiteId, hex},
    time::Timestamp,
};

pub use rustls::pki_types;

/// Tells the wall time. At central its own clock; at a site the later of its own clock and the highest time
/// it has seen from central.
pub type WallClock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Which protocol a client asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// A session between a site and central, [`SESSION`].
    Session,
    /// Enrolment or renewal, [`ENROLMENT`].
    Enrolment,
}

impl Protocol {
    /// The name negotiated by ALPN.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Session => SESSION,
            Self::Enrolment => ENROLMENT,
        }
    }
}

/// Keys or certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The TLS library refused a key, a certificate or their combination.
    #[error("set up TLS with the given keys and certificates")]
    Setup(#[source] rustls::Error),
    /// The authority's certificate cannot be a root of trust.
    #[error("use the given certificates as authority: {reason}")]
    Authority {
        /// What the verifier said.
        reason: String,
    },
    /// A private key could not be made, read, or used to sign.
    #[error("use the site's private key")]
    Key(#[source] rcgen::Error),
}

/// Reasons why no site can be read from a peer's certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer showed no certificate.
    #[error("no certificate was shown; a session needs the site certificate given at enrolment")]
    NoCertificate,
    /// The certificate cannot be read as X.509.
    #[error("the certificate cannot be read: {reason}")]
    Unreadable {
        /// What the parser said.
        reason: String,
    },
    /// The certificate names no site, or more than one.
    #[error("the certificate names {found} sites instead of one; it was not issued to a site")]
    NotASite {
        /// How many URI names `holdfast:site/<32 hexadecimal digits>` it has.
        found: usize,
    },
}

/// Prefix of the URI name (a SAN, RFC 5280 §4.2.1.6) that says which site a certificate belongs to.
const SITE_URI: &str = "holdfast:site/";

/// Returns the URI name of `site` in its certificate: `holdfast:site/<32 hexadecimal digits>`.
pub fn site_uri(site: SiteId) -> String {
    format!("{SITE_URI}{site}")
}

/// What the certificate of a site says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteCertificate {
    /// The site it was issued to.
    pub site: SiteId,
    /// Serial number, big-endian as in the certificate; what a revocation names.
    pub serial: Vec<u8>,
    /// First instant of validity. One day before it was issued, for clocks that are slow.
    pub not_before: Timestamp,
    /// Last instant of validity.
    pub not_after: Timestamp,
    /// The certified key: a point on P-256, uncompressed.
    pub public_key: Vec<u8>,
    /// Name of who signed it, in DER; no two authorities are called alike.
    pub issuer: Vec<u8>,
}

impl SiteCertificate {
    /// Reads a certificate in DER. Says nothing about who signed it.
    ///
    /// # Errors
    /// When it is no X.509 certificate or does not name exactly one site.
    pub fn read(der: &[u8]) -> Result<Self, PeerError> {
        let certificate = parse(der).map_err(|reason| PeerError::Unreadable { reason })?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| PeerError::Unreadable { reason: error.to_string() })?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let sites: Vec<SiteId> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => SiteId::from_str(uri.strip_prefix(SITE_URI)?).ok(),
                _ => None,
            })
            .collect();
        let [site] = sites[..] else {
            return Err(PeerError::NotASite { found: sites.len() });
        };
        let (not_before, not_after) = validity(&certificate);
        Ok(Self {
            site,
            serial: certificate.raw_serial().to_vec(),
            not_before,
            not_after,
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
        })
    }

    /// Whether the validity has ended.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now > self.not_after
    }

    /// The instant from which a site renews: two thirds into the validity.
    pub fn renew_at(&self) -> Timestamp {
        self.not_before.after(self.not_after.since(self.not_before) * 2 / 3)
    }

    /// Serial number as hexadecimal digits, for logs and lists.
    pub fn serial_hex(&self) -> String {
        hex(&self.serial)
    }
}

/// Returns what the verified certificate of the peer says. Ask only after the handshake.
///
/// # Errors
/// When the peer showed none or it does not name exactly one site.
pub fn peer_certificate(connection: &Connection) -> Result<SiteCertificate, PeerError> {
    let chain = connection.peer_chain().ok_or(PeerError::NoCertificate)?;
    SiteCertificate::read(chain.first().ok_or(PeerError::NoCertificate)?)
}

/// Returns the site that the verified certificate of the peer was issued to.
///
/// # Errors
/// Like [`peer_certificate`].
pub fn peer_site(connection: &Connection) -> Result<SiteId, PeerError> {
    peer_certificate(connection).map(|certificate| certificate.site)
}

/// Private key of a site, ECDSA on P-256. It never leaves the site; central sees a signing request.
///
/// P-256 and not Ed25519, because browsers accept no Ed25519 certificates and all keys of a fleet, central's
/// HTTPS listener included, hang from one authority.
pub struct SiteKey(KeyPair);

impl SiteKey {
    /// Makes a new key. The randomness comes from the TLS library: it gives keys from no other source.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Self, TlsError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self).map_err(TlsError::Key)
    }

    /// Reads PKCS#8 in PEM, as [`to_pem`](Self::to_pem) writes it.
    ///
    /// # Errors
    /// When the text is no private key on P-256.
    pub fn from_pem(pem: &str) -> Result<Self, TlsError> {
        KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256).map(Self).map_err(TlsError::Key)
    }

    /// Writes PKCS#8 in PEM. A secret: store it with mode 0600.
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Signs a request for a certificate (PKCS#10, DER), which proves that we hold the key. `name` is for
    /// people; who the site is, central decides.
    ///
    /// # Errors
    /// When signing fails.
    pub fn request(&self, name: &str) -> Result<Vec<u8>, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let request = params.serialize_request(&self.0).map_err(TlsError::Key)?;
        Ok(request.der().to_vec())
    }

    /// Joins the key with the chain that was issued for it (leaf first).
    pub fn identity(&self, chain: Vec<CertificateDer<'static>>) -> Identity {
        Identity { chain, key: PrivatePkcs8KeyDer::from(self.0.serialize_der()).into() }
    }

    /// Signs bytes: ECDSA on P-256 with SHA-256, ASN.1.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        sign(&self.0, message)
    }

    /// Whether `certificate` (DER) was issued for this key.
    pub fn matches(&self, certificate: &[u8]) -> bool {
        parse(certificate)
            .is_ok_and(|it| it.public_key().subject_public_key.data.as_ref() == self.0.public_key_raw())
    }
}

impl fmt::Debug for SiteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SiteKey(…)")
    }
}

/// A certificate chain, leaf first, and the private key of the leaf.
#[derive(Debug)]
pub struct Identity {
    /// Certificates that are shown to the peer.
    pub chain: Vec<CertificateDer<'static>>,
    /// Proves that the first of them is ours.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

/// Central's side of TLS, ready for the transport. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    pub(super) quic: Arc<QuicServerConfig>,
    pub(super) tcp: Arc<rustls::ServerConfig>,
}

/// A site's side of TLS for one protocol, ready for the transport. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub(super) quic: Arc<QuicClientConfig>,
    pub(super) tcp: Arc<rustls::ClientConfig>,
    /// For a session over TCP: asks for a blob beside it.
    pub(super) content: Option<Arc<rustls::ClientConfig>>,
    succeeded: Arc<AtomicBool>,
}

impl Client {
    /// Whether central was met under an authority that follows the pinned one: it is time to renew, which
    /// brings a certificate of the new authority and pins it.
    pub fn is_succeeded(&self) -> bool {
        self.succeeded.load(Ordering::Relaxed)
    }
}

/// Central's side of both protocols.
///
/// `identity` is central's chain (leaf, then whatever leads from it to what sites have pinned, and the authorities
/// themselves, which enrolling machines compare with their token). `authorities` are the certificates that site
/// certificates may be signed by: the present one and its predecessor. A client certificate is optional here, because enrolment has none;
/// [`endpoint::Newcomer::admit`](super::endpoint::Newcomer::admit) turns away a session without.
///
/// # Errors
/// When the key does not fit the chain or an authority is unusable.
pub fn server_config(
    identity: Identity,
    authorities: &[CertificateDer<'static>],
    clock: WallClock,
) -> Result<Server, TlsError> {
    let verifier = SiteVerifier(client_verifier(authorities)?);
    let mut config = rustls::ServerConfig::builder_with_details(provider(), Arc::new(Wall(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(identity.chain, identity.key)
        .map_err(TlsError::Setup)?;
    config.alpn_protocols = vec![SESSION.to_vec(), ENROLMENT.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    let mut tcp = config.clone();
    tcp.alpn_protocols.push(CONTENT.to_vec());
    let quic = QuicServerConfig::try_from(config);
    Ok(Server {
        tcp: Arc::new(tcp),
        quic: Arc::new(quic.expect("the provider has the suite of QUIC's initial packets")),
    })
}

/// The side of a site that has a certificate. Central must be certified by one of `authorities` under the
/// name [`CENTRAL_NAME`](super::CENTRAL_NAME).
///
/// # Errors
/// When the key does not fit the chain or an authority is unusable.
pub fn client_config(
    identity: Identity,
    authorities: &[CertificateDer<'static>],
    protocol: Protocol,
    clock: WallClock,
) -> Result<Client, TlsError> {
    let succeeded = Arc::new(AtomicBool::new(false));
    let pin = Pin::Authorities { verifier: server_verifier(authorities)?, succeeded: Arc::clone(&succeeded) };
    let mut config = client_builder(pin, clock)?
        .with_client_auth_cert(identity.chain, identity.key)
        .map_err(TlsError::Setup)?;
    Ok(finish_client(&mut config, protocol, succeeded))
}

/// The side of a machine that enrols: it accepts the authority whose certificate has the BLAKE3 digest
/// `fingerprint` and remembers it in [`Presented`].
///
/// # Errors
/// When TLS cannot be set up at all.
pub fn enrol_client_config(
    fingerprint: Digest,
    clock: WallClock,
) -> Result<(Client, Arc<Presented>), TlsError> {
    let presented = Arc::new(Presented::default());
    let pin = Pin::Fingerprint { fingerprint, presented: presented.clone() };
    let mut config = client_builder(pin, clock)?.with_no_client_auth();
    Ok((finish_client(&mut config, Protocol::Enrolment, Arc::default()), presented))
}

/// What an enrolling machine saw of the authority at the other end.
#[derive(Debug, Default)]
pub struct Presented {
    authorities: OnceLock<Vec<CertificateDer<'static>>>,
    foreign: OnceLock<Digest>,
}

impl Presented {
    /// The certificate whose digest is the fingerprint; set when the handshake succeeded.
    pub fn authority(&self) -> Option<&CertificateDer<'static>> {
        self.authorities.get()?.first()
    }

    /// Whether central showed to be certified by `authority`: the one with the fingerprint, or its successor.
    pub fn certifies(&self, authority: &CertificateDer<'_>) -> bool {
        self.authorities.get().is_some_and(|shown| shown.contains(authority))
    }

    /// Digest of the authority that was shown instead; set when the handshake failed for that reason.
    pub fn foreign(&self) -> Option<Digest> {
        self.foreign.get().copied()
    }
}

/// Checks that `chain` (leaf first) is a site certificate signed by `authority`, at whatever time.
///
/// # Errors
/// The verifier's words.
pub(super) fn verify_site_chain(
    chain: &[CertificateDer<'_>],
    authority: &CertificateDer<'static>,
) -> Result<(), String> {
    let verifier =
        client_verifier(std::slice::from_ref(authority)).map(SiteVerifier).map_err(|error| match error {
            TlsError::Authority { reason } => reason,
            other => other.to_string(),
        })?;
    let (leaf, others) = chain.split_first().ok_or("the chain is empty")?;
    // The verifier clamps the time into the validity of the leaf, so any instant will do.
    let now = UnixTime::since_unix_epoch(Duration::ZERO);
    verifier.verify_client_cert(leaf, others, now).map(drop).map_err(|error| error.to_string())
}

/// Checks that `chain` (leaf first, then what leads from it to `authority`) is central's own, as a site sees it
/// that has pinned `authority` and has no clock.
///
/// # Errors
/// The verifier's words.
pub fn verify_central_chain(
    chain: &[CertificateDer<'_>],
    authority: &CertificateDer<'static>,
) -> Result<(), String> {
    let (leaf, others) = chain.split_first().ok_or("the chain is empty")?;
    let verifier = server_verifier(std::slice::from_ref(authority)).map_err(|error| match error {
        TlsError::Authority { reason } => reason,
        other => other.to_string(),
    })?;
    let verifier = CentralVerifier(Pin::Authorities { verifier, succeeded: Arc::default() });
    let name = ServerName::try_from(CENTRAL_NAME).expect("the name of central is one");
    let now = UnixTime::since_unix_epoch(Duration::ZERO);
    verifier.verify_server_cert(leaf, others, &name, &[], now).map(drop).map_err(|error| error.to_string())
}

/// Signs bytes with a key on P-256: ECDSA with SHA-256, ASN.1.
///
/// # Errors
/// When the system gives no randomness.
pub fn sign(key: &KeyPair, message: &[u8]) -> Result<Vec<u8>, TlsError> {
    key.sign(message).map_err(TlsError::Key)
}

impl Identity {
    /// Signs bytes with the key of the leaf, which is one on P-256.
    ///
    /// # Errors
    /// When it is none, or the system gives no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        let key =
            KeyPair::from_der_and_sign_algo(&self.key, &PKCS_ECDSA_P256_SHA256).map_err(TlsError::Key)?;
        sign(&key, message)
    }
}

/// Whether the holder of `public_key`, a point on P-256 as in a certificate, signed these bytes.
///
/// # Errors
/// In words, that it did not.
pub fn verify(public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), String> {
    let algorithms = provider().signature_verification_algorithms;
    let found =
        algorithms.mapping.iter().find(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256);
    let (_, known) = found.expect("the provider has the algorithm of all our keys");
    // One scheme may stand for several curves: P-256 is the first of them.
    let algorithm = known.first().expect("a scheme has an algorithm");
    algorithm
        .verify_signature(public_key, message, signature)
        .map_err(|_| "it is not that of the key that it names".to_owned())
}

/// The public key in the certificate of an authority, as [`verify`] takes it.
///
/// # Errors
/// The parser's words.
pub fn public_key(certificate: &[u8]) -> Result<Vec<u8>, String> {
    parse(certificate).map(|it| it.public_key().subject_public_key.data.to_vec())
}

/// The one provider of cryptography. Always named explicitly: the process-wide default panics where two are
/// compiled in.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

fn client_builder(
    pin: Pin,
    clock: WallClock,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    Ok(rustls::ClientConfig::builder_with_details(provider(), Arc::new(Wall(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(CentralVerifier(pin))))
}

fn finish_client(
    config: &mut rustls::ClientConfig,
    protocol: Protocol,
    succeeded: Arc<AtomicBool>,
) -> Client {
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    config.enable_early_data = false;
    config.resumption = Resumption::disabled();
    let content = (protocol == Protocol::Session).then(|| {
        let mut content = config.clone();
        content.alpn_protocols = vec![CONTENT.to_vec()];
        Arc::new(content)
    });
    let quic = QuicClientConfig::try_from(config.clone());
    let quic = Arc::new(quic.expect("the provider has the suite of QUIC's initial packets"));

    Client { quic, tcp: Arc::new(config.clone()), content, succeeded }
}

fn roots(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| TlsError::Authority { reason: error.to_string() })?;
    }
    Ok(Arc::new(roots))
}

fn client_verifier(authorities: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(roots(authorities)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::Authority { reason: error.to_string() })
}

fn server_verifier(authorities: &[CertificateDer<'static>]) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(roots(authorities)?, provider())
        .build()
        .map_err(|error| TlsError::Authority { reason: error.to_string() })
}

/// Verifies sites at central: chain and signature as usual, the time always within the leaf's validity.
#[derive(Debug)]
struct SiteVerifier(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for SiteVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let (not_before, not_after) = leaf_validity(leaf)?;
        // Not `clamp`, which panics when a hostile validity ends before it starts.
        self.0.verify_client_cert(leaf, others, now.max(not_before).min(not_after))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Verifies central at a site or at an enrolling machine.
#[derive(Debug)]
struct CentralVerifier(Pin);

#[derive(Debug)]
enum Pin {
    Authorities { verifier: Arc<WebPkiServerVerifier>, succeeded: Arc<AtomicBool> },
    Fingerprint { fingerprint: Digest, presented: Arc<Presented> },
}

impl ServerCertVerifier for CentralVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = now.max(leaf_validity(leaf)?.0);
        match &self.0 {
            Pin::Authorities { verifier, succeeded } => {
                let verified = verifier.verify_server_cert(leaf, others, name, ocsp, now)?;
                let directly = verifier.verify_server_cert(leaf, &[], name, ocsp, now);
                succeeded.store(directly.is_err(), Ordering::Relaxed);
                Ok(verified)
            }
            Pin::Fingerprint { fingerprint, presented } => {
                let Some(authority) = others.iter().find(|it| Digest::of(it) == *fingerprint) else {
                    // A chain is sent leaf first, so its last certificate is nearest to an authority.
                    let _ = presented.foreign.set(Digest::of(others.last().unwrap_or(leaf)));
                    return Err(CertificateError::UnknownIssuer.into());
                };
                let authority = authority.clone().into_owned();
                let verifier = server_verifier(std::slice::from_ref(&authority))
                    .map_err(|_| CertificateError::BadEncoding)?;
                let verified = verifier.verify_server_cert(leaf, others, name, ocsp, now)?;
                // The authority of the token may have a successor, which signed the leaf and is to be pinned.
                let signed = |other: &&CertificateDer<'_>| {
                    let verifier = server_verifier(&[(*other).clone().into_owned()]);
                    **other != authority
                        && verifier.is_ok_and(|it| it.verify_server_cert(leaf, &[], name, ocsp, now).is_ok())
                };
                let successors = others.iter().filter(signed).map(|other| other.clone().into_owned());
                let _ =
                    presented.authorities.set(std::iter::once(authority.clone()).chain(successors).collect());
                Ok(verified)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken".into())
}

/// Gives the caller's clock to rustls.
struct Wall(WallClock);

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wall(…)")
    }
}

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time((self.0)()))
    }
}

fn unix_time(instant: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(instant.as_ms()))
}

fn leaf_validity(der: &[u8]) -> Result<(UnixTime, UnixTime), rustls::Error> {
    let certificate = parse(der).map_err(|_| CertificateError::BadEncoding)?;
    let (not_before, not_after) = validity(&certificate);
    Ok((unix_time(not_before), unix_time(not_after)))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(format!("{} bytes follow the certificate", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    // Instants before 1970 become 1970.
    let instant =
        |time: ASN1Time| Timestamp(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1_000));
    let validity = certificate.validity();
    (instant(validity.not_before), instant(validity.not_after))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::quic::{
        CloseCode,
        endpoint::Guest,
        testing::{Authority, NOW, SITE, YEAR, clock_at, connect, connect_at, serve},
    };

    #[tokio::test]
    async fn t2_a_site_and_central_recognise_each_other_by_certificate() {
        let authority = Authority::new("fleet");
        let mut central = serve(&authority);
        let session = connect(&central, authority.site(SITE), &authority).await.unwrap();
        let Guest::Session { peer, connection } = central.guest().await.unwrap() else {
            panic!("a site certificate and the session protocol make a session");
        };
        assert_eq!(peer_site(&connection), Ok(SITE));
        assert_eq!(peer.site, SITE);
        expect![
            "2026-11-19T12:00:00.000Z to 2027-11-20T12:00:00.000Z, renewed from 2027-07-21T12:00:00.000Z"
        ]
        .assert_eq(&format!(
            "{} to {}, renewed from {}",
            peer.not_before,
            peer.not_after,
            peer.renew_at()
        ));
        expect!["Err(NotASite { found: 0 })"].assert_eq(&format!("{:?}", peer_site(&session)));
    }

    #[tokio::test]
    async fn p15_a_site_certificate_of_another_authority_is_refused() {
        let authority = Authority::new("fleet");
        let mut central = serve(&authority);
        let stranger = Authority::new("stranger").site(SITE);
        let session = connect(&central, stranger, &authority).await.unwrap();
        // TLS 1.3 lets the client finish first, so it learns of the refusal on its established connection.
        expect!["aborted by peer: the cryptographic handshake failed: error 48: invalid peer certificate: UnknownIssuer"]
            .assert_eq(&session.closed().await.to_string());
        expect!["handshake with <peer> failed: the cryptographic handshake failed: error 48: invalid peer certificate: UnknownIssuer"]
            .assert_eq(&central.refusal().await);
    }

    #[tokio::test]
    async fn p15_a_session_without_certificate_is_closed_with_its_own_code() {
        let authority = Authority::new("fleet");
        let mut central = serve(&authority);
        let mut config = client_builder(
            Pin::Authorities {
                verifier: server_verifier(&[authority.certificate()]).unwrap(),
                succeeded: Arc::default(),
            },
            clock_at(NOW),
        )
        .unwrap()
        .with_no_client_auth();
        let config = finish_client(&mut config, Protocol::Session, Arc::default());
        let session = central.dial(config).await.unwrap();
        let closed = CloseCode::of(&session.closed().await);
        expect![[r#"Some((NoCertificate, "no certificate was shown; a session needs the site certificate given at enrolment"))"#]]
            .assert_eq(&format!("{closed:?}"));
        expect!["<peer> was turned away: no certificate was shown; a session needs the site certificate given at enrolment"]
            .assert_eq(&central.refusal().await);
    }

    #[tokio::test]
    async fn a_certificate_that_names_no_site_is_closed_with_its_own_code() {
        let authority = Authority::new("fleet");
        let mut central = serve(&authority);
        let session = connect(&central, authority.client(&[]), &authority).await.unwrap();
        let closed = CloseCode::of(&session.closed().await);
        expect![[
            r#"Some((NotASite, "the certificate names 0 sites instead of one; it was not issued to a site"))"#
        ]]
        .assert_eq(&format!("{closed:?}"));
        central.refusal().await;

        let two = [site_uri(SITE), site_uri(SiteId([9; 16]))];
        let session = connect(&central, authority.client(&two), &authority).await.unwrap();
        assert!(matches!(CloseCode::of(&session.closed().await), Some((CloseCode::NotASite, _))));
    }

    #[tokio::test]
    async fn an_expired_certificate_opens_no_session_and_is_told_to_renew() {
        let authority = Authority::new("fleet");
        let later = NOW.after(YEAR + Duration::from_secs(3_600));
        let mut central = authority.serve_at(later);
        let session = connect_at(&central, authority.site(SITE), &authority, later).await.unwrap();
        let closed = CloseCode::of(&session.closed().await);
        expect![[r#"Some((CertificateExpired, "the site certificate expired at 2027-11-20T12:00:00.000Z; renew it"))"#]]
            .assert_eq(&format!("{closed:?}"));
        central.refusal().await;
    }

    #[tokio::test]
    async fn t2_a_site_without_a_battery_clock_gets_in() {
        let authority = Authority::new("fleet");
        let mut central = serve(&authority);
        connect_at(&central, authority.site(SITE), &authority, Timestamp(0)).await.unwrap();
        assert!(matches!(central.guest().await, Some(Guest::Session { .. })));
    }

    #[tokio::test]
    async fn t2_a_site_refuses_a_central_that_is_not_the_pinned_one() {
        let authority = Authority::new("fleet");
        let central = serve(&Authority::new("impostor"));
        let refused = connect(&central, authority.site(SITE), &authority).await.unwrap_err();
        expect!["the cryptographic handshake failed: error 48: invalid peer certificate: UnknownIssuer"]
            .assert_eq(&refused.to_string());

        // Signed by the right authority, but for another name: a site cannot play central.
        let central = authority.serve_as(authority.server("lyon.example"), NOW);
        let refused = connect(&central, authority.site(SITE), &authority).await.unwrap_err().to_string();
        assert!(refused.contains("not valid for name"), "{refused}");

        let later = NOW.after(2 * YEAR);
        let central = serve(&authority);
        let refused =
            connect_at(&central, authority.site(SITE), &authority, later).await.unwrap_err().to_string();
        assert!(refused.contains("certificate expired"), "{refused}");
    }

    #[test]
    fn a_site_key_survives_its_file_and_signs_for_itself_only() {
        let key = SiteKey::generate().unwrap();
        let same = SiteKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.0.public_key_raw(), same.0.public_key_raw());
        assert!(key.to_pem().starts_with("-----BEGIN PRIVATE KEY-----"), "PKCS#8");
        expect!["SiteKey(…)"].assert_eq(&format!("{key:?}"));
        expect!["use the site's private key"].assert_eq(&SiteKey::from_pem("lyon").unwrap_err().to_string());
    }

    #[test]
    fn p15_a_signature_is_of_one_key_and_one_message() {
        let [key, other] = [(); 2].map(|()| SiteKey::generate().unwrap());
        let signature = key.sign(b"lyon").unwrap();
        let public = |key: &SiteKey| key.0.public_key_raw().to_vec();
        assert_eq!(verify(&public(&key), b"lyon", &signature), Ok(()));
        assert!(verify(&public(&other), b"lyon", &signature).is_err());
        assert!(verify(&public(&key), b"oslo", &signature).is_err());
        assert!(verify(b"no point", b"lyon", &signature).is_err());
        for at in 0..signature.len() {
            let mut bad = signature.clone();
            bad[at] ^= 1;
            assert!(verify(&public(&key), b"lyon", &bad).is_err(), "byte {at}");
        }
        assert_eq!(verify(&public(&key), b"lyon", &key.identity(vec![]).sign(b"lyon").unwrap()), Ok(()));
        let authority = Authority::new("fleet");
        let certified = SiteCertificate::read(&authority.site(SITE).chain[0]).unwrap().public_key;
        assert_eq!(public_key(&authority.site(SITE).chain[0]).unwrap().len(), certified.len());
    }

    #[test]
    fn bytes_that_are_no_certificate_are_an_error() {
        let authority = Authority::new("fleet");
        let good = authority.site(SITE).chain[0].to_vec();
        for cut in 0..good.len() {
            assert!(matches!(SiteCertificate::read(&good[..cut]), Err(PeerError::Unreadable { .. })));
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            // Some bytes (those of the signature) mean nothing here; none may panic.
            let _ = SiteCertificate::read(&bad);
        }
        let mut long = good;
        long.push(0);
        expect!["the certificate cannot be read: 1 bytes follow the certificate"]
            .assert_eq(&SiteCertificate::read(&long).unwrap_err().to_string());
    }
}
