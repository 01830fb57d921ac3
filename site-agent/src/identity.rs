//! Who this site is, and its secrets: small files in the data folder, mode 0600.
//!
//! ```text
//! site-key.pem      the private key; stored before it is first used, so that a lost answer can be asked again
//! next-key.pem      the private key of the next certificate, from before it is asked for until it is the first
//! enrolment.json    site id, name, central's address, certificates: written at enrolment and at each renewal
//! endpoint-keys     keys of the QUIC endpoint
//! site-secret       32 bytes that machines' tokens are made with
//! admin-token       the bearer token of operators, as text; replace it and start again to change it
//! http-address      where the running agent answers, for `status`
//! lock              held by the running agent
//! replica/          the store
//! ```
//! A file is written beside its place, synced and moved there, so a crash leaves the old one or the new one.
//! `enrolment.json` decides: the private key is whichever of the two fits its certificate. So a renewal that
//! is interrupted anywhere leaves a pair that works, the old one until the new certificate is in its place.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sync::{
    id::{SiteId, hex},
    quic::{
        endpoint::Keys,
        enrol::Enrolled,
        tls::{Identity, SiteCertificate, SiteKey, TlsError, pki_types::CertificateDer},
    },
    time::Timestamp,
};

/// The small files that a backup holds beside the database: with them another machine can be this site.
pub const KEPT: [&str; 5] = ["site-key.pem", "enrolment.json", "endpoint-keys", "site-secret", "admin-token"];

/// File of the present private key.
const KEY: &str = "site-key.pem";

/// File of the private key of the next certificate.
const NEXT_KEY: &str = "next-key.pem";

/// A file of the data folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk did not do what it should.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No key could be made or read.
    #[error("use the private key {path}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: TlsError,
    },
    /// This machine is no site yet.
    #[error("this machine is not enrolled: there is no {path}")]
    NotEnrolled {
        /// What is missing.
        path: PathBuf,
    },
    /// Another agent has the folder.
    #[error("another agent runs on {path}")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// This machine is a site already, and nobody said that it should enrol again.
    #[error("this machine is site {site} already")]
    AlreadyEnrolled {
        /// Which.
        site: SiteId,
    },
}

impl IdentityError {
    /// What a person does next.
    pub fn next(&self) -> &'static str {
        match self {
            IdentityError::File { .. } => {
                "check that the folder is there, has room, and belongs to this program's user"
            }
            IdentityError::Damaged { .. } | IdentityError::Key { .. } => {
                "restore the data folder from a backup, or move it away and enrol again with a new token"
            }
            IdentityError::NotEnrolled { .. } => {
                "ask central for a token and run `holdfast-site enroll --central HOST:PORT --token … --name …`"
            }
            IdentityError::InUse { .. } => "stop the other one, or give another --data-dir",
            IdentityError::AlreadyEnrolled { .. } => {
                "nothing is to be done; if central revoked it, enrol with `--again` and a new token; to become another \
                 site, give another --data-dir"
            }
        }
    }
}

/// What enrolment gave, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Who this site is.
    pub site: SiteId,
    /// What it called itself.
    pub name: String,
    /// Central as `host:port`.
    pub central: String,
    /// Certificate chain, leaf first, each in DER as hexadecimal digits.
    chain: Vec<String>,
    /// Central's authority in the same form.
    authority: String,
    /// Central's clock when it gave the certificate.
    #[serde(default)]
    pub clock: Timestamp,
}

impl Enrolment {
    /// The same with another address of central.
    pub fn at(self, central: &str) -> Self {
        Enrolment { central: central.to_owned(), ..self }
    }
}

/// What this site proves itself with.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The chain, leaf first, with its key.
    pub identity: Identity,
    /// What the leaf says.
    pub leaf: SiteCertificate,
    /// Central's authority.
    pub authority: CertificateDer<'static>,
}

/// The data folder.
#[derive(Debug, Clone)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// Opens the folder and makes it, for its owner alone, if it is not there.
    ///
    /// # Errors
    /// `File`.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| IdentityError::File { action: "make folder", path: path.to_owned(), source })?;
        Ok(DataDir(path.to_owned()))
    }

    /// The folder, or a backup of one, to be read only: it is not made.
    pub fn at(path: &Path) -> Self {
        DataDir(path.to_owned())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Folder of the store.
    pub fn replica(&self) -> PathBuf {
        self.0.join("replica")
    }

    /// Takes the folder for this process as long as the file that is returned is open: two agents over one
    /// replica would fork it. A crash lets go of it.
    ///
    /// # Errors
    /// `InUse` or `File`.
    pub fn lock(&self) -> Result<File, IdentityError> {
        let path = self.0.join("lock");
        let failed = |source| IdentityError::File { action: "lock", path: path.clone(), source };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => Err(IdentityError::InUse { path: self.0.clone() }),
            Err(fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// The private key for a first enrolment; made and stored first if there is none.
    ///
    /// # Errors
    /// `File` or `Key`.
    pub fn key(&self) -> Result<SiteKey, IdentityError> {
        self.key_in(KEY)
    }

    /// The private key for the next certificate; made and stored first if there is none.
    ///
    /// # Errors
    /// `File` or `Key`.
    pub fn next_key(&self) -> Result<SiteKey, IdentityError> {
        self.key_in(NEXT_KEY)
    }

    fn key_in(&self, name: &str) -> Result<SiteKey, IdentityError> {
        if let Some(key) = self.known_key(name)? {
            return Ok(key);
        }
        let key =
            SiteKey::generate().map_err(|source| IdentityError::Key { path: self.0.join(name), source })?;
        self.write(name, key.to_pem().as_bytes())?;
        Ok(key)
    }

    fn known_key(&self, name: &str) -> Result<Option<SiteKey>, IdentityError> {
        let Some(pem) = self.read(name)? else { return Ok(None) };
        SiteKey::from_pem(&String::from_utf8_lossy(&pem))
            .map(Some)
            .map_err(|source| IdentityError::Key { path: self.0.join(name), source })
    }

    /// Keeps what enrolment gave.
    ///
    /// # Errors
    /// `File`.
    pub fn keep(&self, enrolled: &Enrolled, name: &str, central: &str) -> Result<(), IdentityError> {
        let enrolment = Enrolment {
            site: enrolled.site,
            name: name.to_owned(),
            central: central.to_owned(),
            chain: enrolled.chain.iter().map(|it| hex(it)).collect(),
            authority: hex(&enrolled.authority),
            clock: enrolled.clock,
        };
        self.keep_enrolment(&enrolment)
    }

    /// Keeps another certificate of this site, for the key that [`next_key`](Self::next_key) gave. From the
    /// moment that this is on disk the new pair is the site's.
    ///
    /// # Errors
    /// `File`. Whatever was reached, a pair that works is on disk.
    pub fn keep_next(&self, before: &Enrolment, enrolled: &Enrolled) -> Result<Enrolment, IdentityError> {
        let enrolment = Enrolment {
            chain: enrolled.chain.iter().map(|it| hex(it)).collect(),
            authority: hex(&enrolled.authority),
            clock: enrolled.clock.max(before.clock),
            ..before.clone()
        };
        self.keep_enrolment(&enrolment)?;
        self.promote_key()?;
        Ok(enrolment)
    }

    fn keep_enrolment(&self, enrolment: &Enrolment) -> Result<(), IdentityError> {
        let text = serde_json::to_vec_pretty(enrolment).expect("texts and ids are JSON");
        self.write("enrolment.json", &text)
    }

    /// Makes the next key the present one.
    fn promote_key(&self) -> Result<(), IdentityError> {
        let path = self.0.join(KEY);
        let promote = || {
            fs::rename(self.0.join(NEXT_KEY), &path)?;
            File::open(&self.0)?.sync_all()
        };
        promote().map_err(|source| IdentityError::File { action: "write", path: path.clone(), source })
    }

    /// What enrolment gave.
    ///
    /// # Errors
    /// `NotEnrolled`, `Damaged` or `File`.
    pub fn enrolment(&self) -> Result<Enrolment, IdentityError> {
        let path = self.0.join("enrolment.json");
        let bytes = self.read("enrolment.json")?.ok_or(IdentityError::NotEnrolled { path: path.clone() })?;
        serde_json::from_slice(&bytes)
            .map_err(|error| IdentityError::Damaged { path, why: error.to_string() })
    }

    /// What this site proves itself with. Also ends a renewal that was interrupted.
    ///
    /// # Errors
    /// `Damaged`, `Key` or `File`.
    pub fn certificates(&self, enrolment: &Enrolment) -> Result<Certificates, IdentityError> {
        let der = |text: &String| unhex(text).map(CertificateDer::from);
        let damaged =
            |why: &str| IdentityError::Damaged { path: self.0.join("enrolment.json"), why: why.into() };
        let no_digits = || damaged("a certificate is not in hexadecimal digits");
        let chain = enrolment.chain.iter().map(der).collect::<Option<Vec<_>>>().ok_or_else(no_digits)?;
        let authority = der(&enrolment.authority).ok_or_else(no_digits)?;
        let leaf = chain.first().ok_or_else(|| damaged("it holds no certificate"))?;
        let read = SiteCertificate::read(leaf).map_err(|error| damaged(&error.to_string()))?;
        if read.site != enrolment.site {
            return Err(damaged("its certificate is that of another site"));
        }
        let present = self.known_key(KEY);
        let key = match present {
            Ok(Some(key)) if key.matches(leaf) => key,
            Ok(_) | Err(_) => match self.known_key(NEXT_KEY)? {
                Some(key) if key.matches(leaf) => {
                    self.promote_key()?;
                    key
                }
                Some(_) | None => {
                    present?;
                    return Err(damaged("no private key here fits its certificate"));
                }
            },
        };
        Ok(Certificates { identity: key.identity(chain), leaf: read, authority })
    }

    /// Keys of the QUIC endpoint; made of `entropy` if there are none.
    ///
    /// # Errors
    /// `Damaged` or `File`.
    pub fn endpoint_keys(&self, entropy: [u8; 64]) -> Result<Keys, IdentityError> {
        let bytes = self.read_or_make("endpoint-keys", || Keys::from_entropy(entropy).to_bytes())?;
        let damaged = |error: sync::quic::endpoint::ParseKeysError| IdentityError::Damaged {
            path: self.0.join("endpoint-keys"),
            why: error.to_string(),
        };
        Keys::from_bytes(&bytes).map_err(damaged)
    }

    /// What machines' tokens are made with; `entropy` if there is none.
    ///
    /// # Errors
    /// `Damaged` or `File`.
    pub fn site_secret(&self, entropy: [u8; 32]) -> Result<[u8; 32], IdentityError> {
        let bytes = self.read_or_make("site-secret", || entropy.to_vec())?;
        let why = || format!("it has {} bytes instead of 32", bytes.len());
        bytes
            .as_slice()
            .try_into()
            .map_err(|_| IdentityError::Damaged { path: self.0.join("site-secret"), why: why() })
    }

    /// The operators' token; made of `entropy` if there is none.
    ///
    /// # Errors
    /// `Damaged` when it has less than 16 characters; `File`.
    pub fn admin_token(&self, entropy: [u8; 32]) -> Result<String, IdentityError> {
        let bytes = self.read_or_make("admin-token", || format!("{}\n", hex(&entropy)).into_bytes())?;
        let token = String::from_utf8_lossy(&bytes).trim().to_owned();
        match token.len() {
            0..16 => Err(IdentityError::Damaged {
                path: self.0.join("admin-token"),
                why: "a token has 16 characters at least".into(),
            }),
            _ => Ok(token),
        }
    }

    /// The operators' token, if one was made.
    ///
    /// # Errors
    /// `File`.
    pub fn known_admin_token(&self) -> Result<Option<String>, IdentityError> {
        Ok(self.read("admin-token")?.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
    }

    /// Keeps where the agent answers.
    ///
    /// # Errors
    /// `File`.
    pub fn keep_http_address(&self, address: SocketAddr) -> Result<(), IdentityError> {
        self.write("http-address", format!("{address}\n").as_bytes())
    }

    /// Where the agent that runs, or ran last, answers.
    ///
    /// # Errors
    /// `File`.
    pub fn http_address(&self) -> Result<Option<SocketAddr>, IdentityError> {
        let text = self.read("http-address")?;
        Ok(text.and_then(|text| String::from_utf8_lossy(&text).trim().parse().ok()))
    }

    fn read_or_make(&self, name: &str, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, IdentityError> {
        if let Some(bytes) = self.read(name)? {
            return Ok(bytes);
        }
        let bytes = make();
        self.write(name, &bytes)?;
        Ok(bytes)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, IdentityError> {
        let path = self.0.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::File { action: "read", path, source }),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
        let path = self.0.join(name);
        let beside = self.0.join(format!("{name}.new"));
        let write = || {
            // What a crash left beside may be read by others; a new file has our mode.
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().map_err(|source| IdentityError::File { action: "write", path: path.clone(), source })
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| sync::id::unhex::<1>(std::str::from_utf8(pair).ok()?).map(|[byte]| byte)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn secrets_are_made_once_and_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(&folder.path().join("data")).unwrap();
        let first = data.site_secret([1; 32]).unwrap();
        assert_eq!((first, data.site_secret([2; 32]).unwrap()), ([1; 32], [1; 32]));
        assert_eq!(data.admin_token([3; 32]).unwrap(), data.admin_token([4; 32]).unwrap());
        assert_eq!(data.endpoint_keys([5; 64]).unwrap(), data.endpoint_keys([6; 64]).unwrap());
        let key = data.key().unwrap().to_pem();
        assert_eq!(data.key().unwrap().to_pem(), key);
        let enrolled = Enrolled {
            site: SiteId([7; 16]),
            chain: vec![],
            authority: CertificateDer::from(vec![1]),
            clock: Timestamp(0),
        };
        data.keep(&enrolled, "lyon", "central:7443").unwrap();
        let mut names = Vec::new();
        for file in fs::read_dir(folder.path().join("data")).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{:?}", file.path());
            names.push(file.file_name().into_string().unwrap());
        }
        let mut kept = KEPT.map(String::from);
        names.sort();
        kept.sort();
        assert_eq!(names, kept, "a backup has all of them");
    }

    #[test]
    fn one_agent_at_a_time_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let held = data.lock().unwrap();
        assert!(matches!(data.lock(), Err(IdentityError::InUse { .. })));
        drop(held);
        data.lock().unwrap();
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        assert!(matches!(data.enrolment(), Err(IdentityError::NotEnrolled { .. })));
        for (file, text) in [("enrolment.json", "{"), ("site-secret", "short"), ("admin-token", "short")] {
            fs::write(folder.path().join(file), text).unwrap();
        }
        assert!(matches!(data.enrolment(), Err(IdentityError::Damaged { .. })));
        assert!(matches!(data.site_secret([0; 32]), Err(IdentityError::Damaged { .. })));
        assert!(matches!(data.admin_token([0; 32]), Err(IdentityError::Damaged { .. })));
    }
}
