//! The fleet's own certificate authority.
//!
//! Made at the first start and kept in central's data folder as [`FILE`]: certificate and private key in
//! one, so that no crash leaves half an authority. Whoever reads that file can be central to every site, so
//! it has mode 0600 and belongs into every backup. All keys are ECDSA on P-256, which browsers accept too.
//!
//! Deliberately absent: revocation lists (the store knows which certificates were revoked), and a successor: replacing the
//! authority needs one that is signed by this one, for which the path length leaves room.

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
            Identity,
            pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject},
            site_uri,
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

    /// Makes a key and a certificate for central: valid for [`CENTRAL_NAME`], and for the names and
    /// addresses in `also`, under which browsers know it. Meant to be issued anew at every start.
    ///
    /// The chain ends in the authority itself, which enrolling machines compare with their token.
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
        Ok(Identity {
            chain: vec![leaf.der().clone(), self.certificate.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
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

    fn create(serial: [u8; 16], now: Timestamp) -> Result<(Self, String), CaError> {
        let failed = |source| CaError::Sign { what: "an authority", source };
        let mut params = CertificateParams::default();
        let name = format!("Holdfast fleet {}", &hex(&serial)[..8]);
        fill_in(&mut params, &name, serial, now, AUTHORITY_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let pem = certificate.pem() + &key.serialize_pem();
        let certificate = certificate.der().clone();
        // Through the file's form, so that the first start and all later ones run the same code.
        let authority = Self::from_pem(&pem).expect("what was just made can be read");
        assert_eq!(authority.certificate, certificate, "the file holds the certificate that was made");
        Ok((authority, pem))
    }

    fn from_pem(pem: &str) -> Result<Self, String> {
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("no certificate: {error}"))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| format!("no private key: {error}"))?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256)
            .map_err(|error| format!("the private key is unusable: {error}"))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| format!("the certificate is unreadable: {error}"))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err("the private key belongs to another certificate".into());
        }
        if !parsed.is_ca() {
            return Err("the certificate is not one of an authority".into());
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| error.to_string())?;
        Ok(Self { certificate, issuer })
    }
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

        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join(FILE)).unwrap();
        assert!(matches!(open(&folder), Err(CaError::Read { .. })));
        assert!(matches!(
            Authority::open_or_create(&folder.path().join("nowhere"), [0; 16], NOON),
            Err(CaError::Write { .. })
        ));
    }
}
