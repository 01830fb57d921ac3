//! Certificates of sites at central: keeping what was issued, renewing, and revoking.
//!
//! Who signs is given: `certify` makes the certificate inside the transaction, so that nothing is handed out
//! that a revocation does not find, and nothing is issued after one.

use rusqlite::params;
use sync::{
    blob::Digest,
    id::{SiteId, hex},
    journal::Event,
    time::Timestamp,
};

use super::{check_text, refused, unknown};
use crate::{
    StoreError, Tx,
    log::signed,
    view::{Entitlement, RevocationRow},
};

/// What the store keeps of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// Serial number, as in the certificate.
    pub serial: Vec<u8>,
    /// End of its validity.
    pub not_after: Timestamp,
    /// Digest of the certificate of the authority that signed it.
    pub authority: Digest,
    /// The certified public key.
    pub key: Vec<u8>,
}

/// Renews the certificate with this serial number and instant of issue. `certify` is shown the instant and
/// makes the next one; `refuse` says no to whom the present one certifies nothing.
///
/// # Errors
/// Only those of the database.
pub fn renew<C, R>(
    tx: &mut Tx<'_>,
    site: SiteId,
    serial: &[u8],
    issued_at: Timestamp,
    certify: impl FnOnce(Timestamp) -> Result<(C, Certified), R>,
    refuse: impl FnOnce(&Entitlement) -> R,
) -> Result<Result<C, R>, StoreError> {
    match tx.view().entitlement(site, serial, issued_at)? {
        Entitlement::Good => {}
        other @ (Entitlement::NoSuchSite | Entitlement::Revoked(_)) => return Ok(Err(refuse(&other))),
    }
    match certify(tx.now()) {
        Ok((issued, certified)) => {
            keep(tx, site, &certified, true)?;
            Ok(Ok(issued))
        }
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// Keeps that a certificate was issued to `site`.
pub(super) fn keep(
    tx: &mut Tx<'_>,
    site: SiteId,
    certified: &Certified,
    renewal: bool,
) -> Result<(), StoreError> {
    tx.sql
        .prepare_cached(
            "INSERT INTO certificates (serial, site, authority, key, issued_at, not_after)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            certified.serial,
            site.as_bytes(),
            certified.authority.as_bytes(),
            certified.key,
            signed(tx.now().0),
            signed(certified.not_after.0)
        ])?;
    let (serial, not_after) = (hex(&certified.serial), certified.not_after);
    tx.journal_for(site, Event::CertificateIssued { site, serial, not_after, renewal })
}

/// Keeps that a session was opened with a certificate of `site`, issued at `issued_at`: from now on what it
/// signs can be verified, and its site is known to have it. One that another life of this database issued is put
/// on record.
///
/// # Errors
/// Only those of the database.
pub fn used(
    tx: &mut Tx<'_>,
    site: SiteId,
    certified: &Certified,
    issued_at: Timestamp,
) -> Result<(), StoreError> {
    tx.sql
        .prepare_cached(
            "INSERT INTO certificates (serial, site, authority, key, issued_at, not_after, used_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (serial) DO UPDATE SET used_at = ifnull(used_at, ?7)",
        )?
        .execute(params![
            certified.serial,
            site.as_bytes(),
            certified.authority.as_bytes(),
            certified.key,
            signed(issued_at.0),
            signed(certified.not_after.0),
            signed(tx.now().0)
        ])?;
    Ok(())
}

/// Voids everything that certifies `site` or invites a machine to become it. Whoever holds its sessions ends
/// them when this is committed. A new token brings the site back.
///
/// # Errors
/// `Unknown` site; `Refused` when the reason is too long, or when nothing is left to revoke.
pub fn revoke(tx: &mut Tx<'_>, site: SiteId, reason: &str) -> Result<RevocationRow, StoreError> {
    let name = tx.view().site(site)?.ok_or_else(|| unknown("site", site))?.name;
    check_text("reason", reason)?;
    let voided = tx.void_tokens(site)?;
    if voided == 0
        && let Some(before) = tx.view().revoked(site)?
    {
        return refused(format!(
            "site {name} was revoked at {} already, and nothing was issued since",
            before.at
        ));
    }
    let revocation = RevocationRow { at: tx.now(), by: tx.by().to_owned(), reason: reason.to_owned() };
    tx.sql
        .prepare_cached("UPDATE certificates SET revoked_at = ?2 WHERE site = ?1 AND revoked_at IS NULL")?
        .execute(params![site.as_bytes(), signed(revocation.at.0)])?;
    tx.sql
        .prepare_cached(
            "INSERT INTO revocations (site, at, by, reason) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (site) DO UPDATE SET at = ?2, by = ?3, reason = ?4",
        )?
        .execute(params![site.as_bytes(), signed(revocation.at.0), revocation.by, revocation.reason])?;
    tx.journal_for(site, Event::SiteRevoked { site, name, reason: reason.to_owned() })?;
    Ok(revocation)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;
    use sync::id::Origin;

    use super::*;
    use crate::{
        Given, Opening, Store,
        command::{enrolment, site},
        view::JournalFilter,
    };

    const NOON: Timestamp = Timestamp(1_795_176_000_000);
    const CA: Digest = Digest([7; 32]);

    fn given(minute: u64) -> Given {
        let now = NOON.after(Duration::from_secs(60 * minute));
        Given { now, by: "ann".into(), entropy: [minute.to_le_bytes()[0]; 32] }
    }

    struct World {
        store: Store,
        lyon: SiteId,
        _folder: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let opening =
                Opening { folder: folder.path().to_path_buf(), origin: Origin::Central, given: given(0) };
            let store = Store::open(&opening).unwrap();
            let lyon = store.run(given(1), |tx| site::create(tx, "lyon", "", "")).unwrap();
            World { store, lyon, _folder: folder }
        }

        /// Redeems a token, new or not, and returns the serial number that it brought.
        fn enrol(&self, minute: u64, token: u8) -> Result<u8, String> {
            let (lyon, serial) = (self.lyon, minute.to_le_bytes()[0]);
            let outcome = self.store.run(given(minute), move |tx| {
                if tx.token(&[token; 32])?.is_none() {
                    enrolment::issue_token(
                        tx,
                        [token; 32],
                        lyon,
                        tx.now().after(Duration::from_secs(86_400)),
                    )?;
                }
                let judge = |row: Option<&crate::tokens::TokenRow>, now| match row {
                    Some(row) if now <= row.expires_at => Ok(row.site),
                    Some(_) => Err("the token is void".to_owned()),
                    None => Err("there is none".to_owned()),
                };
                enrolment::redeem(tx, [token; 32], [1; 32], judge, |_, now| {
                    Ok((serial, certified(serial, now)))
                })
            });
            outcome.unwrap()
        }

        fn renew(&self, minute: u64, present: u8, issued: u64) -> Result<u8, String> {
            let (lyon, next) = (self.lyon, minute.to_le_bytes()[0]);
            let issued_at = given(issued).now;
            let outcome = self.store.run(given(minute), move |tx| {
                let certify = |now| Ok((next, certified(next, now)));
                renew(tx, lyon, &[present], issued_at, certify, |why| format!("{why:?}"))
            });
            outcome.unwrap()
        }

        fn revoke(&self, minute: u64) -> Result<String, String> {
            let lyon = self.lyon;
            let outcome = self.store.run(given(minute), move |tx| revoke(tx, lyon, "stolen"));
            outcome.map(|row| row.words()).map_err(|error| error.to_string())
        }

        fn is_good(&self, serial: u8, issued: u64) -> bool {
            let found = self.store.read(|view| view.entitlement(self.lyon, &[serial], given(issued).now));
            found.unwrap() == Entitlement::Good
        }
    }

    fn certified(serial: u8, now: Timestamp) -> Certified {
        Certified {
            serial: vec![serial],
            not_after: now.after(Duration::from_secs(31_536_000)),
            authority: CA,
            key: vec![4; 65],
        }
    }

    #[test]
    fn p15_a_revocation_voids_every_certificate_and_token_and_a_new_token_brings_the_site_back() {
        let world = World::new();
        assert_eq!(world.enrol(2, 1), Ok(2));
        assert_eq!(world.renew(3, 2, 2), Ok(3));
        assert!(world.is_good(2, 2) && world.is_good(3, 3));
        expect!["central revoked this site at 2026-11-20T12:04:00.000Z: stolen"]
            .assert_eq(&world.revoke(4).unwrap());
        assert!(!world.is_good(2, 2) && !world.is_good(3, 3));
        assert_eq!(world.store.read(|view| view.revoked(world.lyon)).unwrap().unwrap().by, "ann");
        assert!(world.renew(5, 3, 3).unwrap_err().starts_with("Revoked("));
        // The key that spent the token may ask again for a lost answer, but not after this.
        assert_eq!(world.enrol(5, 1), Err("the token is void".into()));
        expect!["site lyon was revoked at 2026-11-20T12:04:00.000Z already, and nothing was issued since"]
            .assert_eq(&world.revoke(6).unwrap_err());

        assert_eq!(world.enrol(7, 2), Ok(7));
        assert!(world.is_good(7, 7) && !world.is_good(3, 3), "the old serial stays revoked");
        assert_eq!(world.store.read(|view| view.revoked(world.lyon)).unwrap(), None);
        assert_eq!(world.renew(8, 7, 7), Ok(8));
        let newest = world.store.read(|view| view.certificate(world.lyon)).unwrap().unwrap();
        assert_eq!((newest.serial.as_str(), newest.issued_at), ("08", given(8).now));
        assert_eq!(world.store.read(|view| view.count_sites_of(CA)).unwrap(), 1);

        let rows = world.store.read(|view| view.journal(&JournalFilter::default())).unwrap();
        let events: Vec<String> = rows
            .iter()
            .filter_map(|row| {
                let event = serde_json::to_value(row.event.as_ref()?).unwrap();
                let detail = event.get("serial").or(event.get("reason")).and_then(|it| it.as_str());
                Some(format!("{} {}", event["event"].as_str()?, detail.unwrap_or_default()))
            })
            .collect();
        expect![[r#"
            site_created 
            token_issued 
            site_enrolled 
            certificate_issued 02
            certificate_issued 03
            site_revoked stolen
            token_issued 
            site_enrolled 
            certificate_issued 07
            certificate_issued 08"#]]
        .assert_eq(&events.join("\n"));
    }

    #[test]
    fn p15_a_certificate_of_another_life_of_the_database_is_judged_by_its_age() {
        let world = World::new();
        assert!(world.is_good(99, 1), "nothing was ever revoked");
        world.revoke(10).unwrap();
        assert!(!world.is_good(99, 9) && !world.is_good(99, 10) && world.is_good(99, 11));
    }

    #[test]
    fn a_certificate_that_could_not_be_made_leaves_the_token_unspent() {
        let world = World::new();
        let lyon = world.lyon;
        let outcome = world.store.run(given(2), move |tx| {
            enrolment::issue_token(tx, [1; 32], lyon, given(99).now)?;
            let failed: Result<(u8, Certified), &str> = Err("no key");
            enrolment::redeem(tx, [1; 32], [1; 32], |_, _| Ok(lyon), |_, _| failed)
        });
        assert_eq!(outcome.unwrap(), Err("no key"));
        let token = world.store.run(given(3), |tx| tx.token(&[1; 32])).unwrap().unwrap();
        assert_eq!(token.spent_at, None);
    }
}
