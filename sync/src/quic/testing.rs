//! A small fleet on loopback for the tests of this module: an authority, a listening central, sites.

use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::sync::mpsc;

use super::{
    CENTRAL_NAME, Connection,
    endpoint::{self, AdmitError, DialError, Guest, Keys, Limits, Listener},
    tls::{self, Identity, Protocol, WallClock, site_uri},
};
use crate::{id::SiteId, time::Timestamp};

/// 2026-11-20 at noon.
pub(super) const NOW: Timestamp = Timestamp(1_795_176_000_000);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
pub(super) const YEAR: Duration = Duration::from_secs(365 * 86_400);
pub(super) const SITE: SiteId = SiteId([7; 16]);

pub(super) fn clock_at(now: Timestamp) -> WallClock {
    Arc::new(move || now)
}

pub(super) fn keys(seed: u8) -> Keys {
    Keys::from_entropy([seed; 64])
}

pub(super) fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Something that signs certificates, as central's authority does.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = valid_at(NOW);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(super) fn site(&self, site: SiteId) -> Identity {
        self.client(&[site_uri(site)])
    }

    /// A site certificate that ended `ago`.
    pub(super) fn site_expired(&self, site: SiteId, ago: Duration) -> Identity {
        let issued = NOW.as_ms() - u64::try_from((ago + YEAR).as_millis()).unwrap();
        self.client_at(&[site_uri(site)], Timestamp(issued))
    }

    /// A client certificate with these URI names, whatever they say.
    pub(super) fn client(&self, uris: &[String]) -> Identity {
        self.client_at(uris, NOW)
    }

    fn client_at(&self, uris: &[String], now: Timestamp) -> Identity {
        let mut params = valid_at(now);
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// Signs the public key of a request, as central does at enrolment.
    pub(super) fn certify(&self, request: &[u8], site: SiteId) -> CertificateDer<'static> {
        let mut csr = rcgen::CertificateSigningRequestParams::from_der(&request.into()).unwrap();
        csr.params = valid_at(NOW);
        csr.params.subject_alt_names = vec![SanType::URI(site_uri(site).try_into().unwrap())];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        csr.signed_by(&self.0).unwrap().der().clone()
    }

    pub(super) fn server(&self, name: &str) -> Identity {
        self.server_at(name, NOW)
    }

    fn server_at(&self, name: &str, now: Timestamp) -> Identity {
        let mut params = valid_at(now);
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap().der().clone();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Identity { chain: vec![leaf, self.certificate()], key }
    }

    pub(super) fn serve_at(&self, now: Timestamp) -> Central {
        self.serve_as(self.server_at(CENTRAL_NAME, now), now)
    }

    pub(super) fn serve_as(&self, identity: Identity, now: Timestamp) -> Central {
        Central::start(self.listen(identity, loopback(), &keys(1), Limits::default()), now)
    }

    pub(super) fn listen(&self, identity: Identity, at: SocketAddr, keys: &Keys, limits: Limits) -> Listener {
        let tls = tls::server_config(identity, &[self.certificate()], clock_at(NOW)).unwrap();
        Listener::bind(at, tls, keys.clone(), limits).unwrap()
    }
}

fn valid_at(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    let instant = SystemTime::UNIX_EPOCH + Duration::from_millis(now.as_ms());
    params.not_before = (instant - DAY).into();
    params.not_after = (instant + YEAR).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params
}

/// A central that admits whoever comes and hands out what became of them, in order.
pub(super) struct Central {
    pub(super) address: SocketAddr,
    admitted: mpsc::UnboundedReceiver<Result<Guest, AdmitError>>,
    /// How many were refused before the guests that [`next_guest`](Self::next_guest) returned.
    pub(super) refused: usize,
}

impl Central {
    pub(super) fn start(listener: Listener, now: Timestamp) -> Self {
        let address = listener.local_address().unwrap();
        let (sender, admitted) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(newcomer) = listener.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    let _ = sender.send(newcomer.admit(|| now).await);
                });
            }
        });
        Self { address, admitted, refused: 0 }
    }

    /// Waits for the next one who came in; nothing if the next one did not.
    pub(super) async fn guest(&mut self) -> Option<Guest> {
        self.admitted.recv().await.expect("central runs").ok()
    }

    /// Waits for the next one who came in, whoever was refused before.
    pub(super) async fn next_guest(&mut self) -> Guest {
        loop {
            if let Some(guest) = self.guest().await {
                return guest;
            }
            self.refused += 1;
        }
    }

    /// Waits for the next one, who must have been refused, and returns the chain of reasons.
    pub(super) async fn refusal(&mut self) -> String {
        let error = self.admitted.recv().await.expect("central runs").expect_err("nobody gets in");
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text.replace(&error.peer().to_string(), "<peer>")
    }

    pub(super) async fn dial(&self, tls: tls::Client) -> Result<Connection, DialError> {
        endpoint::dial(&endpoint::client(loopback(), &keys(2)).unwrap(), self.address, tls).await
    }
}

pub(super) fn serve(authority: &Authority) -> Central {
    authority.serve_at(NOW)
}

pub(super) async fn connect(
    central: &Central,
    identity: Identity,
    pinned: &Authority,
) -> Result<Connection, DialError> {
    connect_at(central, identity, pinned, NOW).await
}

pub(super) async fn connect_at(
    central: &Central,
    identity: Identity,
    pinned: &Authority,
    now: Timestamp,
) -> Result<Connection, DialError> {
    let tls =
        tls::client_config(identity, &[pinned.certificate()], Protocol::Session, clock_at(now)).unwrap();
    central.dial(tls).await
}
