//! Keeps the site's certificate in force.
//!
//! [`due`] says when another one is needed: two thirds into its validity, when central says that it has
//! expired, or when central was met under a successor of its authority. [`Keeper::look`] then asks central for one, over the exchange of [`sync::quic::enrol`] and for a
//! key of its own, and shows it from the next connection on. [`run`] looks from time to time, and at once
//! when a session raises a [`Doubt`].
//!
//! The new pair is on disk before it is used, and until then the old one stays ([`crate::identity`]). What
//! does not work is tried again with growing pauses, for as long as it takes: an expired certificate can
//! still do this one thing. A site that was revoked looks at its own disk, where a person may have enrolled
//! it again.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use sync::{
    quic::{
        Endpoint,
        driver::resolve,
        enrol::{self, EnrolError, Enrolled, RefusalCode},
        tls::{self, Client, Protocol, SiteCertificate, TlsError, WallClock},
    },
    time::Timestamp,
};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::{
    agent::Agent,
    error::chain,
    identity::{Certificates, DataDir, Enrolment, IdentityError},
    link,
};

/// Pause between two looks at the clock. A renewal has months of time.
const LOOK: Duration = Duration::from_secs(60);

/// Pause after the first failure; it doubles up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_secs(10);

/// Longest pause after failures.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// How long the site's certificate is good, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Serial number, hexadecimal; what a revocation names.
    pub serial: String,
    /// End of its validity.
    pub not_after: Timestamp,
    /// When it is renewed.
    pub renew_at: Timestamp,
    /// Why the last try to renew it failed, if it did.
    pub trouble: Option<String>,
}

/// What a session says of our certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// Central says that it has expired.
    Expired,
    /// Central says that it was revoked.
    Revoked,
}

/// The newest doubt, and how many there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summons {
    count: u64,
    doubt: Option<Doubt>,
}

impl Summons {
    /// Notes a doubt.
    pub fn raise(&mut self, doubt: Doubt) {
        self.count += 1;
        self.doubt = Some(doubt);
    }
}

/// Why a certificate is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Two thirds of its validity are over.
    TwoThirds,
    /// It has expired.
    Expired,
    /// Central's authority has a successor, which is to be pinned.
    Successor,
}

/// Whether `certificate` is to be renewed at `now`, after a session has raised `doubt`. `succeeded`: central was met
/// under a successor of the authority that is pinned.
pub fn due(
    certificate: &SiteCertificate,
    now: Timestamp,
    doubt: Option<Doubt>,
    succeeded: bool,
) -> Option<Why> {
    match doubt {
        Some(Doubt::Expired) => Some(Why::Expired),
        Some(Doubt::Revoked) | None if certificate.is_expired(now) => Some(Why::Expired),
        Some(Doubt::Revoked) | None if now >= certificate.renew_at() => Some(Why::TwoThirds),
        Some(Doubt::Revoked) | None => succeeded.then_some(Why::Successor),
    }
}

/// Why a renewal did not come about.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("find central")]
    Find(#[source] std::io::Error),
    #[error(transparent)]
    Ask(#[from] EnrolError),
    #[error("central gave the certificate of another site")]
    OtherSite,
    #[error(transparent)]
    Keep(#[from] IdentityError),
    #[error(transparent)]
    Use(#[from] TlsError),
}

/// The site's certificate, and what is needed to get the next.
pub struct Keeper {
    agent: Arc<Agent>,
    data: DataDir,
    endpoint: Endpoint,
    clock: WallClock,
    enrolment: Enrolment,
    present: Certificates,
    shown: watch::Sender<Arc<Certificates>>,
    tls: watch::Sender<Client>,
    doubt: Option<Doubt>,
    failures: u32,
    /// Time since the start of the program before which nothing is tried again.
    pause_until: Duration,
}

impl Keeper {
    /// Takes over what enrolment or the last renewal left. `clock` is what certificates are judged by.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub fn new(
        agent: Arc<Agent>,
        data: DataDir,
        endpoint: Endpoint,
        clock: WallClock,
        enrolment: Enrolment,
        present: Certificates,
    ) -> Result<Self, TlsError> {
        let tls = watch::Sender::new(session_tls(&present, &clock)?);
        let shown = watch::Sender::new(Arc::new(present.clone()));
        let (doubt, failures, pause_until) = (None, 0, Duration::ZERO);
        let keeper = Keeper {
            agent,
            data,
            endpoint,
            clock,
            enrolment,
            present,
            shown,
            tls,
            doubt,
            failures,
            pause_until,
        };
        keeper.publish(None);
        Ok(keeper)
    }

    /// What sessions are opened with; changes when the certificate does.
    pub fn tls(&self) -> watch::Receiver<Client> {
        self.tls.subscribe()
    }

    /// What this site proves itself with; changes when the certificate does.
    pub fn certificates(&self) -> watch::Receiver<Arc<Certificates>> {
        self.shown.subscribe()
    }

    /// Renews the certificate if it is time, and says why it did; nothing if there was nothing to do, or a
    /// pause after a failure is not over.
    pub async fn look(&mut self) -> Option<Result<Why, String>> {
        if self.doubt == Some(Doubt::Revoked) {
            self.take_up_what_is_on_disk();
        }
        let succeeded = self.tls.borrow().is_succeeded();
        let why = due(&self.present.leaf, self.agent.latest_time(), self.doubt, succeeded)?;
        let now = self.agent.edge.elapsed();
        if now < self.pause_until {
            return None;
        }
        // Whatever comes of it, the next try waits: a clock that runs years ahead would renew for ever.
        self.failures = self.failures.saturating_add(1);
        self.pause_until = now + pause(self.failures, self.agent.edge.jitter());
        match self.renew().await {
            Ok(()) => {
                info!(?why, not_after = %self.present.leaf.not_after, "certificate renewed");
                (self.doubt, self.failures) = (None, 0);
                self.publish(None);
                if why == Why::Successor {
                    // Central retires an authority when every site has shown what the next one signed.
                    link::disconnect(&self.agent, "another certificate is shown from now on");
                }
                Some(Ok(why))
            }
            Err(error) => {
                let text = chain(&error);
                if let RenewError::Ask(EnrolError::Refused { source, .. }) = &error
                    && source.code == RefusalCode::Revoked
                {
                    error!(error = %text, "central does not renew the certificate");
                    self.doubt = Some(Doubt::Revoked);
                } else {
                    warn!(error = %text, "the certificate could not be renewed");
                }
                self.publish(Some(format!("not renewed: {text}")));
                Some(Err(text))
            }
        }
    }

    async fn renew(&mut self) -> Result<(), RenewError> {
        let address = resolve(&self.agent.central).await.map_err(RenewError::Find)?;
        let data = self.data.clone();
        // Stored before it is used, like the first one.
        let key = off_runtime(move || data.next_key()).await?;
        let Certificates { identity, authority, .. } = self.present.clone();
        let clock = Arc::clone(&self.clock);
        let renewed = enrol::renew(&self.endpoint, address, identity, &[authority], &key, clock).await?;
        if renewed.site != self.agent.site {
            return Err(RenewError::OtherSite);
        }
        self.keep(renewed).await
    }

    async fn keep(&mut self, renewed: Enrolled) -> Result<(), RenewError> {
        let (data, before, seen) = (self.data.clone(), self.enrolment.clone(), renewed.clock);
        let kept = off_runtime(move || {
            let enrolment = data.keep_next(&before, &renewed)?;
            let certificates = data.certificates(&enrolment)?;
            Ok::<_, IdentityError>((enrolment, certificates))
        });
        let (enrolment, certificates) = kept.await?;
        self.tls.send_replace(session_tls(&certificates, &self.clock)?);
        (self.enrolment, self.present) = (enrolment, certificates);
        if let Err(error) = self.agent.submit("renewal", move |tx| tx.confirm_central_time(seen)).await {
            error!(error = %chain(&error), "central's time could not be kept");
        }
        Ok(())
    }

    /// After a revocation: a person may have enrolled this site again while it runs.
    fn take_up_what_is_on_disk(&mut self) {
        let found = self.data.enrolment().and_then(|it| Ok((self.data.certificates(&it)?, it)));
        let (certificates, enrolment) = match found {
            Ok(found) => found,
            Err(error) => return error!(error = %chain(&error), "the certificate cannot be read"),
        };
        if certificates.leaf == self.present.leaf || enrolment.site != self.agent.site {
            return;
        }
        match session_tls(&certificates, &self.clock) {
            Ok(tls) => {
                info!(not_after = %certificates.leaf.not_after, "this site was enrolled again");
                self.tls.send_replace(tls);
                (self.enrolment, self.present) = (enrolment, certificates);
                (self.doubt, self.failures, self.pause_until) = (None, 0, Duration::ZERO);
                self.publish(None);
            }
            Err(error) => error!(error = %chain(&error), "the certificate cannot be used"),
        }
    }

    fn publish(&self, trouble: Option<String>) {
        self.shown.send_replace(Arc::new(self.present.clone()));
        let leaf = &self.present.leaf;
        self.agent.certificate.send_replace(Some(Certificate {
            serial: leaf.serial_hex(),
            not_after: leaf.not_after,
            renew_at: leaf.renew_at(),
            trouble,
        }));
    }
}

/// Keeps the certificate in force, until the future is dropped.
pub async fn run(mut keeper: Keeper) -> std::convert::Infallible {
    let mut summons = keeper.agent.summons.subscribe();
    loop {
        // What became of it is logged and published.
        drop(keeper.look().await);
        let wait = match keeper.pause_until.checked_sub(keeper.agent.edge.elapsed()) {
            Some(left) if keeper.doubt.is_some() => left.clamp(Duration::from_secs(1), LOOK),
            Some(_) | None => LOOK,
        };
        tokio::select! {
            Ok(()) = summons.changed() => keeper.doubt = summons.borrow_and_update().doubt,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn session_tls(certificates: &Certificates, clock: &WallClock) -> Result<Client, TlsError> {
    let authorities = std::slice::from_ref(&certificates.authority);
    tls::client_config(certificates.identity.clone(), authorities, Protocol::Session, Arc::clone(clock))
}

/// The pause after so many failures. `jitter` spreads its upper half, so that a fleet does not ask together.
fn pause(failures: u32, jitter: u16) -> Duration {
    let whole = LONGEST.min(SHORTEST * 2_u32.saturating_pow(failures.saturating_sub(1).min(10)));
    whole / 2 + whole / 2 * u32::from(jitter) / u32::from(u16::MAX)
}

async fn off_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Such work is only cancelled when the runtime ends, and then so does whoever waits for it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests;
