//! The fleet's own certificate authority.
//!
//! Made at the first start and kept in central's data folder as [`FILE`]: certificate and private key in
//! one, so that no crash leaves half an authority. Whoever reads that file can be central to every site, so
//! it has mode 0600 and belongs into every backup. All keys are ECDSA on P-256, which browsers accept too.
//!
//! An authority can have a successor ([`Authority::succeed`]): a new key with a certificate of its own and one that
//! the old authority signed, so that whoever pinned the old one believes the new one. Until it is retired, what the
//! old one signed is accepted. Its key is gone at once. All of this is in the one file, which is replaced whole.
//!
//! Deliberately absent: revocation lists (the store knows which certificates were revoked), and a second succession
//! before the first is over: one certificate between the leaf and what is pinned is what an authority permits.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use sync::{
    blob::Digest,
    id::{SiteId, hex},
    quic::{
        CENTRAL_NAME,
        tls::{
            Identity, TlsError,
            pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject},
            public_key, sign, site_uri, verify, verify_central_chain,
        },
    },
    time::Timestamp,
};

use super::certificate::KeyRequest;

/// Name of the file in central's data folder.
pub const FILE: &str = "authority.pem";

/// Validity of the authority. Replacing it visits every site, so it should outlive the hardware.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);

/// Validity of the certificates it issues.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 86_400);

/// Certificates are valid from this long before they are issued, for clocks that are slow.
pub const BACKDATED: Duration = Duration::from_secs(86_400);

/// The last second that a certificate can say: 9999-12-31T23:59:59Z (RFC 5280 §4.1.2.5).
const END_OF_TIME: Timestamp = Timestamp(253_402_300_799_000);

/// What signs the certificates of central and of all sites.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    predecessor: Option<Predecessor>,
    /// The certificates of the file as text, in its order.
    blocks: Vec<String>,
}

/// The authority before the present one, while sites may still depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Predecessor {
    certificate: CertificateDer<'static>,
    /// The present authority, certified by that one.
    cross: CertificateDer<'static>,
}

/// What the certificate of an authority says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Described {
    /// BLAKE3 digest of the certificate; stands in tokens.
    pub fingerprint: Digest,
    /// What it is called.
    pub name: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// End of its validity.
    pub not_after: Timestamp,
}

/// Why there is no authority, or no certificate from it.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file exists but cannot be read. Never replaced: sites trust what is in it.
    #[error("read the authority from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file does not hold an authority.
    #[error("{path} does not hold an authority ({reason}); restore it from a backup of central")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A new authority could not be stored.
    #[error("write the authority to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is a predecessor already, or none.
    #[error("{0}")]
    Refused(String),
    /// A key could not be made, or a certificate not signed.
    #[error("make {what}")]
    Sign {
        /// What was to be made.
        what: &'static str,
        /// What the library said.
        #[source]
        source: rcgen::Error,
    },
}

impl Authority {
    /// Opens the authority in `folder`, or makes and stores one when there is none. `serial`, random,
    /// becomes part of its name, so that no two authorities are ever called alike.
    ///
    /// # Errors
    /// When the file is there but unusable, or cannot be written.
    pub fn open_or_create(folder: &Path, serial: [u8; 16], now: Timestamp) -> Result<Self, CaError> {
        let path = folder.join(FILE);
        match fs::read_to_string(&path) {
            Ok(pem) => {
                warn_if_readable_by_others(&path);
                Self::from_pem(&pem).map_err(|reason| CaError::Content { path, reason })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (authority, pem) = Self::create(serial, now)?;
                write_secret(folder, &path, pem.as_bytes())
                    .map_err(|source| CaError::Write { path, source })?;
                Ok(authority)
            }
            Err(source) => Err(CaError::Read { path, source }),
        }
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// BLAKE3 digest of the certificate; stands in tokens.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// The certificate of the authority before this one, while it is accepted.
    pub fn predecessor(&self) -> Option<&CertificateDer<'static>> {
        self.predecessor.as_ref().map(|it| &it.certificate)
    }

    /// What site certificates may be signed by.
    pub fn accepted(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(self.predecessor()).cloned().collect()
    }

    /// Signs bytes with the authority's key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        sign(self.issuer.key(), message)
    }

    /// Opens the authority of a data folder, or of a backup of one, to verify with.
    ///
    /// # Errors
    /// When the file is not there or unusable.
    pub fn open(folder: &Path) -> Result<Self, CaError> {
        let path = folder.join(FILE);
        let pem = fs::read_to_string(&path);
        let pem = pem.map_err(|source| CaError::Read { path: path.clone(), source })?;
        Self::from_pem(&pem).map_err(|reason| CaError::Content { path, reason })
    }

    /// Whether the accepted authority with this fingerprint signed these bytes.
    ///
    /// # Errors
    /// In words, that it did not, or that there is none.
    pub fn verify(&self, fingerprint: &[u8], message: &[u8], signature: &[u8]) -> Result<(), String> {
        let accepted = self.accepted();
        let signer = accepted.iter().find(|it| Digest::of(it).as_bytes() == fingerprint);
        let signer =
            signer.ok_or("the authority that it names is neither the present one nor its predecessor")?;
        verify(&public_key(signer)?, message, signature)
    }

    /// What the certificate of this authority says.
    pub fn described(&self) -> Described {
        describe(&self.certificate).expect("it was read when the authority was opened")
    }

    /// What the certificate of its predecessor says, while that is accepted.
    pub fn predecessor_described(&self) -> Option<Described> {
        self.predecessor().map(|it| describe(it).expect("it was read when the authority was opened"))
    }

    /// Fingerprint of the accepted authority with this name, in DER.
    pub fn named(&self, issuer: &[u8]) -> Option<Digest> {
        let is_named = |it: &&CertificateDer<'static>| {
            x509_parser::parse_x509_certificate(it).is_ok_and(|(_, it)| it.subject().as_raw() == issuer)
        };
        std::iter::once(&self.certificate).chain(self.predecessor()).find(is_named).map(|it| Digest::of(it))
    }

    /// Makes a successor, which this authority certifies, and stores it in the place of this one. From then on
    /// the key of this one does not exist any more. `serials` are random.
    ///
    /// # Errors
    /// `Refused` while this one's own predecessor is not retired; `Sign`, `Write`. Then nothing has changed.
    pub fn succeed(&self, folder: &Path, serials: [[u8; 16]; 2], now: Timestamp) -> Result<Self, CaError> {
        if self.predecessor.is_some() {
            let why = "the authority before this one is not retired yet: a site that has pinned it would not \
                       believe the successor of its successor";
            return Err(CaError::Refused(why.into()));
        }
        let failed = |source| CaError::Sign { what: "a certificate between two authorities", source };
        let [own, between] = serials;
        let (mut params, key) = Self::params(own, now)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        params.serial_number = Some(positive(between));
        // Nothing but sites' and central's certificates may follow it.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        // What has pinned the old authority may have no clock: only what that one vouched for counts, and that
        // is a key and not a time.
        params.not_before =
            instant(Timestamp(self.described().made_at.as_ms() - BACKDATED.as_millis() as u64)).into();
        let cross = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let blocks = [certificate.pem(), cross.pem(), self.blocks[0].clone()];
        let next = Self::from_pem(&(blocks.concat() + &key.serialize_pem()))
            .map_err(|reason| CaError::Content { path: folder.join(FILE), reason })?;
        next.store(folder)?;
        Ok(next)
    }

    /// Ends the predecessor: what it signed, and whoever has pinned it, is turned away from now on.
    ///
    /// # Errors
    /// `Refused` where there is none; `Write`. Then nothing has changed.
    pub fn retire(&self, folder: &Path) -> Result<Self, CaError> {
        if self.predecessor.is_none() {
            return Err(CaError::Refused("the authority has no predecessor that could be retired".into()));
        }
        let next = Self::from_pem(&(self.blocks[0].clone() + &self.issuer.key().serialize_pem()))
            .map_err(|reason| CaError::Content { path: folder.join(FILE), reason })?;
        next.store(folder)?;
        Ok(next)
    }

    fn store(&self, folder: &Path) -> Result<(), CaError> {
        let path = folder.join(FILE);
        let pem = self.blocks.concat() + &self.issuer.key().serialize_pem();
        write_secret(folder, &path, pem.as_bytes()).map_err(|source| CaError::Write { path, source })
    }

    /// Makes a key and a certificate for central: valid for [`CENTRAL_NAME`], and for the names and
    /// addresses in `also`, under which browsers know it. Meant to be issued anew at every start.
    ///
    /// The chain goes on with what leads to a predecessor, and the authorities themselves, which enrolling
    /// machines compare with their token.
    ///
    /// # Errors
    /// When a name in `also` is not ASCII, or the system gives no randomness.
    pub fn issue_server(
        &self,
        also: &[String],
        serial: [u8; 16],
        now: Timestamp,
    ) -> Result<Identity, CaError> {
        let failed = |source| CaError::Sign { what: "central's certificate", source };
        let names: Vec<String> =
            std::iter::once(CENTRAL_NAME.to_owned()).chain(also.iter().cloned()).collect();
        let mut params = CertificateParams::new(names).map_err(failed)?;
        fill_in(&mut params, CENTRAL_NAME, serial, now, LEAF_LIFETIME);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.predecessor.as_ref().map(|it| it.cross.clone()));
        chain.extend(self.accepted());
        Ok(Identity { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() })
    }

    /// Certifies that the key in `request` is that of `site`, for [`LEAF_LIFETIME`]. `serial` is random.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue_site(
        &self,
        site: SiteId,
        request: &KeyRequest,
        serial: [u8; 16],
        now: Timestamp,
    ) -> Result<CertificateDer<'static>, CaError> {
        let failed = |source| CaError::Sign { what: "a site's certificate", source };
        let uri = site_uri(site);
        let mut params = CertificateParams::default();
        fill_in(&mut params, &uri, serial, now, LEAF_LIFETIME);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(failed)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&request.key, &self.issuer).map_err(failed)?;
        Ok(leaf.der().clone())
    }

    fn params(serial: [u8; 16], now: Timestamp) -> Result<(CertificateParams, KeyPair), CaError> {
        let failed = |source| CaError::Sign { what: "an authority", source };
        let mut params = CertificateParams::default();
        let name = format!("Holdfast fleet {}", &hex(&serial)[..8]);
        fill_in(&mut params, &name, serial, now, AUTHORITY_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok((params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?))
    }

    fn create(serial: [u8; 16], now: Timestamp) -> Result<(Self, String), CaError> {
        let failed = |source| CaError::Sign { what: "an authority", source };
        let (params, key) = Self::params(serial, now)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let pem = certificate.pem() + &key.serialize_pem();
        let certificate = certificate.der().clone();
        // Through the file's form, so that the first start and all later ones run the same code.
        let authority = Self::from_pem(&pem).expect("what was just made can be read");
        assert_eq!(authority.certificate, certificate, "the file holds the certificate that was made");
        Ok((authority, pem))
    }

    fn from_pem(pem: &str) -> Result<Self, String> {
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("no certificate: {error}"))?;
        let [certificate, others @ ..] = &certificates[..] else {
            return Err("no certificate: no items found".into());
        };
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("no private key: {error}"))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|error| format!("the private key is unusable: {error}"))?;
        let unreadable = |error: x509_parser::nom::Err<_>| format!("the certificate is unreadable: {error}");
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(unreadable)?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err("the private key belongs to another certificate".into());
        }
        if !parsed.is_ca() {
            return Err("the certificate is not one of an authority".into());
        }
        let predecessor = match others {
            [] => None,
            [cross, certificate] => {
                Some(Predecessor { certificate: certificate.clone(), cross: cross.clone() })
            }
            _ => return Err(format!("it holds {} certificates instead of 1 or 3", certificates.len())),
        };
        for certificate in predecessor.iter().flat_map(|it| [&it.certificate, &it.cross]) {
            describe(certificate)?;
        }
        let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(|error| error.to_string())?;
        let blocks = pem.split_inclusive("-----END CERTIFICATE-----\n").take(certificates.len());
        let blocks = blocks.map(str::to_owned).collect();
        let authority = Self { certificate: certificate.clone(), issuer, predecessor, blocks };
        if let Some(predecessor) = authority.predecessor() {
            let made = authority.described().made_at;
            let shown = authority.issue_server(&[], [1; 16], made).map_err(|error| error.to_string())?;
            verify_central_chain(&shown.chain, predecessor)
                .map_err(|error| format!("its predecessor did not certify it: {error}"))?;
        }
        Ok(authority)
    }
}

fn describe(certificate: &CertificateDer<'_>) -> Result<Described, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| format!("the certificate is unreadable: {error}"))?;
    let name = parsed.subject().iter_common_name().next().and_then(|it| it.as_str().ok());
    let at = |time: x509_parser::time::ASN1Time| {
        Timestamp(u64::try_from(time.timestamp()).unwrap_or(0).saturating_mul(1_000))
    };
    Ok(Described {
        fingerprint: Digest::of(certificate),
        name: name.unwrap_or_default().to_owned(),
        made_at: at(parsed.validity().not_before).after(BACKDATED),
        not_after: at(parsed.validity().not_after),
    })
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.fingerprint())
    }
}

fn fill_in(params: &mut CertificateParams, name: &str, serial: [u8; 16], now: Timestamp, lifetime: Duration) {
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(positive(serial));
    params.not_before = instant(Timestamp(now.as_ms().saturating_sub(BACKDATED.as_millis() as u64))).into();
    params.not_after = instant(now.after(lifetime)).into();
    params.use_authority_key_identifier_extension = true;
}

/// A serial number is a positive integer (RFC 5280 §4.1.2.2): the first bit must not be set, and the second
/// is, so that all have the same length.
fn positive(mut serial: [u8; 16]) -> SerialNumber {
    serial[0] = serial[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&serial)
}

fn instant(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(at.min(END_OF_TIME).as_ms())
}

/// Writes a file that only its owner reads, whole or not at all.
fn write_secret(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    // What a crash left behind may have another mode.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    // The mode above passed the umask, which may have taken more away.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

fn warn_if_readable_by_others(path: &Path) {
    let mode = fs::metadata(path).map(|it| it.permissions().mode() & 0o777);
    if let Ok(mode) = mode
        && mode & 0o077 != 0
    {
        tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "others can read the authority's key: chmod 600");
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use sync::quic::tls::{SiteCertificate, SiteKey};
    use tempfile::TempDir;
    use x509_parser::parse_x509_certificate;

    use super::*;

    const NOON: Timestamp = Timestamp(1_795_176_000_000);

    fn open(folder: &TempDir) -> Result<Authority, CaError> {
        Authority::open_or_create(folder.path(), [0xab; 16], NOON)
    }

    fn describe(certificate: &CertificateDer<'_>) -> String {
        let (_, it) = parse_x509_certificate(certificate).unwrap();
        let names = it.subject_alternative_name().unwrap().map(|san| &san.value.general_names);
        let key_usage = it.key_usage().unwrap().unwrap().value.to_string();
        let purpose =
            it.extended_key_usage().unwrap().map(|eku| (eku.value.server_auth, eku.value.client_auth));
        format!(
            "{} by {}, serial {}\n{} to {}\nauthority {} {:?}; {key_usage}; server, client {purpose:?}\n{names:?}",
            it.subject(),
            it.issuer(),
            it.raw_serial_as_string(),
            it.validity().not_before,
            it.validity().not_after,
            it.is_ca(),
            it.basic_constraints().unwrap().and_then(|it| it.value.path_len_constraint),
        )
    }

    #[test]
    fn l6_the_authority_is_made_once_and_kept() {
        let folder = TempDir::new().unwrap();
        let first = open(&folder).unwrap();
        let mode = fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(files, [FILE], "no draft stays");
        let again = Authority::open_or_create(folder.path(), [0xcd; 16], NOON.after(LEAF_LIFETIME)).unwrap();
        assert_eq!(first.certificate(), again.certificate());
        assert_eq!(format!("{again:?}"), format!("Authority({})", first.fingerprint()));
        expect![[r#"
            CN=Holdfast fleet abababab by CN=Holdfast fleet abababab, serial 6b:ab:ab:ab:ab:ab:ab:ab:ab:ab:ab:ab:ab:ab:ab:ab
            Nov 19 12:00:00 2026 +00:00 to Nov 15 12:00:00 2046 +00:00
            authority true Some(1); Key Cert Sign, CRL Sign; server, client None
            None"#]].assert_eq(&describe(first.certificate()));
    }

    #[test]
    fn l6_a_successor_is_certified_by_the_authority_before_it_until_that_one_is_retired() {
        let folder = TempDir::new().unwrap();
        let first = open(&folder).unwrap();
        let later = NOON.after(19 * LEAF_LIFETIME);
        let second = first.succeed(folder.path(), [[0xcd; 16], [0xef; 16]], later).unwrap();
        assert_eq!(fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        let second_again = open(&folder).unwrap();
        assert_eq!(second_again.described(), second.described());
        assert_eq!(second_again.predecessor(), Some(first.certificate()));
        assert_eq!(second_again.accepted(), [second.certificate().clone(), first.certificate().clone()]);
        let shown = second.issue_server(&[], [0; 16], later).unwrap();
        expect![[r#"
            CN=Holdfast fleet cdcdcdcd by CN=Holdfast fleet abababab, serial 6f:ef:ef:ef:ef:ef:ef:ef:ef:ef:ef:ef:ef:ef:ef:ef
            Nov 19 12:00:00 2026 +00:00 to Nov 10 12:00:00 2065 +00:00
            authority true Some(0); Key Cert Sign, CRL Sign; server, client None
            None"#]]
        .assert_eq(&describe(&shown.chain[1]));
        for pinned in second.accepted() {
            verify_central_chain(&shown.chain, &pinned).unwrap();
        }
        let stranger = Authority::create([1; 16], NOON).unwrap().0;
        assert!(verify_central_chain(&shown.chain, stranger.certificate()).is_err());
        let error = second.succeed(folder.path(), [[1; 16], [2; 16]], later).unwrap_err().to_string();
        assert!(error.contains("not retired yet"), "{error}");

        let third = second.retire(folder.path()).unwrap();
        assert_eq!((third.fingerprint(), third.predecessor()), (second.fingerprint(), None));
        let shown = open(&folder).unwrap().issue_server(&[], [0; 16], later).unwrap();
        assert!(verify_central_chain(&shown.chain, first.certificate()).is_err());
        verify_central_chain(&shown.chain, second.certificate()).unwrap();
        assert!(matches!(third.retire(folder.path()), Err(CaError::Refused(_))));
        // The next one can be made now.
        third.succeed(folder.path(), [[1; 16], [2; 16]], later).unwrap();
    }

    #[test]
    fn a_draft_that_a_crash_left_behind_is_replaced() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("authority.new"), "half a ke").unwrap();
        open(&folder).unwrap();
        open(&folder).unwrap();
    }

    #[test]
    fn l6_certificates_say_who_and_for_how_long() {
        let folder = TempDir::new().unwrap();
        let authority = open(&folder).unwrap();
        let request = KeyRequest::parse(&SiteKey::generate().unwrap().request("lyon").unwrap()).unwrap();
        let site = authority.issue_site(SiteId([7; 16]), &request, [0xff; 16], NOON).unwrap();
        expect![[r#"
            CN=holdfast:site/07070707070707070707070707070707 by CN=Holdfast fleet abababab, serial 7f:ff:ff:ff:ff:ff:ff:ff:ff:ff:ff:ff:ff:ff:ff:ff
            Nov 19 12:00:00 2026 +00:00 to Nov 20 12:00:00 2027 +00:00
            authority false None; Digital Signature; server, client Some((false, true))
            Some([URI("holdfast:site/07070707070707070707070707070707")])"#]].assert_eq(&describe(&site));
        let read = SiteCertificate::read(&site).unwrap();
        assert_eq!((read.site, read.serial_hex()), (SiteId([7; 16]), format!("7f{}", "ff".repeat(15))));

        let also = ["boot.example".to_owned(), "192.0.2.1".to_owned()];
        let server = authority.issue_server(&also, [0; 16], NOON).unwrap();
        expect![[r#"
            CN=central.holdfast by CN=Holdfast fleet abababab, serial 40:00:00:00:00:00:00:00:00:00:00:00:00:00:00:00
            Nov 19 12:00:00 2026 +00:00 to Nov 20 12:00:00 2027 +00:00
            authority false None; Digital Signature; server, client Some((true, false))
            Some([DNSName("central.holdfast"), DNSName("boot.example"), IPAddress([192, 0, 2, 1])])"#]].assert_eq(&describe(&server.chain[0]));
        assert_eq!(server.chain[1..], [authority.certificate().clone()]);
        let error = authority.issue_server(&["zürich".into()], [0; 16], NOON).unwrap_err();
        expect!["make central's certificate"].assert_eq(&error.to_string());
    }

    #[test]
    fn a_clock_at_either_end_of_time_breaks_nothing() {
        let folder = TempDir::new().unwrap();
        let authority = open(&folder).unwrap();
        for now in [Timestamp(0), END_OF_TIME, Timestamp(u64::MAX)] {
            authority.issue_server(&[], [1; 16], now).unwrap();
        }
    }

    #[test]
    fn a_damaged_authority_is_reported_and_never_replaced() {
        fn check(damage: impl FnOnce(String) -> String, expected: Expect) {
            let folder = TempDir::new().unwrap();
            open(&folder).unwrap();
            let path = folder.path().join(FILE);
            let damaged = damage(fs::read_to_string(&path).unwrap());
            fs::write(&path, &damaged).unwrap();
            let error = open(&folder).unwrap_err().to_string();
            expected.assert_eq(&error.replace(&path.display().to_string(), "authority.pem"));
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
        }
        let key_of = |pem: &str| pem[pem.find("-----BEGIN PRIVATE").unwrap()..].to_owned();
        check(
            |_| String::new(),
            expect![
                "authority.pem does not hold an authority (no certificate: no items found); restore it from a backup of central"
            ],
        );
        check(
            |pem| pem.replace(&key_of(&pem), ""),
            expect![
                "authority.pem does not hold an authority (no private key: no items found); restore it from a backup of central"
            ],
        );
        check(
            |pem| key_of(&pem),
            expect![
                "authority.pem does not hold an authority (no certificate: no items found); restore it from a backup of central"
            ],
        );
        check(
            |pem| pem.replace(&key_of(&pem), &SiteKey::generate().unwrap().to_pem()),
            expect![
                "authority.pem does not hold an authority (the private key belongs to another certificate); restore it from a backup of central"
            ],
        );
        check(
            |_| {
                let key = KeyPair::generate().unwrap();
                CertificateParams::default().self_signed(&key).unwrap().pem() + &key.serialize_pem()
            },
            expect![
                "authority.pem does not hold an authority (the certificate is not one of an authority); restore it from a backup of central"
            ],
        );

        // The certificate between the two authorities is another one's.
        let folder = TempDir::new().unwrap();
        let next = open(&folder).unwrap().succeed(folder.path(), [[1; 16], [2; 16]], NOON).unwrap();
        let elsewhere = TempDir::new().unwrap();
        let other = open(&elsewhere).unwrap().succeed(elsewhere.path(), [[3; 16], [4; 16]], NOON).unwrap();
        let path = folder.path().join(FILE);
        let pem = fs::read_to_string(&path).unwrap().replace(&next.blocks[1], &other.blocks[1]);
        fs::write(&path, &pem).unwrap();
        let error = open(&folder).unwrap_err().to_string();
        assert!(error.contains("its predecessor did not certify it"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), pem);

        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join(FILE)).unwrap();
        assert!(matches!(open(&folder), Err(CaError::Read { .. })));
        assert!(matches!(
            Authority::open_or_create(&folder.path().join("nowhere"), [0; 16], NOON),
            Err(CaError::Write { .. })
        ));
    }
}
