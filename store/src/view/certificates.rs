//! At central: what certifies sites, and what does not any more.

use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use sync::{
    blob::Digest,
    id::{SiteId, hex},
    time::Timestamp,
};

use super::View;
use crate::{StoreError, log::signed};

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateRow {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Digest of the certificate of the authority that signed it.
    pub authority: Digest,
    /// When it was issued, by central's clock.
    pub issued_at: Timestamp,
    /// End of its validity.
    pub not_after: Timestamp,
    /// When a session was first opened with it; absent until then.
    pub used_at: Option<Timestamp>,
}

/// Why nothing that certified a site until then does so any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RevocationRow {
    /// When.
    pub at: Timestamp,
    /// Who did it.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
}

/// What a certificate that our authority signed is worth, apart from its validity in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entitlement {
    /// It stands for its site.
    Good,
    /// Its site is not in the fleet.
    NoSuchSite,
    /// It was revoked.
    Revoked(RevocationRow),
}

impl View<'_> {
    /// Judges the certificate of `site` with this serial number, issued at this instant.
    ///
    /// One that is not on record, because another life of this database issued it, counts as revoked if it
    /// is not younger than the site's newest revocation. In recovery a site is in the fleet although it is not
    /// known here: our authority certified it, in the life that is gone.
    pub fn entitlement(
        &self,
        site: SiteId,
        serial: &[u8],
        issued_at: Timestamp,
    ) -> Result<Entitlement, StoreError> {
        if self.site(site)?.is_none() && self.suspended()?.is_none() {
            return Ok(Entitlement::NoSuchSite);
        }
        let Some(revocation) = self.revocation(site)? else { return Ok(Entitlement::Good) };
        let revoked: Option<bool> = self
            .sql
            .prepare_cached(
                "SELECT revoked_at IS NOT NULL FROM certificates WHERE serial = ?1 AND site = ?2",
            )?
            .query_row(params![serial, site.as_bytes()], |row| row.get(0))
            .optional()?;
        Ok(match revoked.unwrap_or(issued_at <= revocation.at) {
            true => Entitlement::Revoked(revocation),
            false => Entitlement::Good,
        })
    }

    /// The certificate that was issued last to `site`, unless that one was revoked.
    pub fn certificate(&self, site: SiteId) -> Result<Option<CertificateRow>, StoreError> {
        let time = |ms: i64| Timestamp(ms.unsigned_abs());
        Ok(self
            .sql
            .prepare_cached(
                "SELECT serial, authority, issued_at, not_after, used_at FROM certificates
                 WHERE site = ?1 AND revoked_at IS NULL ORDER BY certificate DESC LIMIT 1",
            )?
            .query_row([site.as_bytes()], |row| {
                Ok(CertificateRow {
                    serial: hex(&row.get::<_, Vec<u8>>(0)?),
                    authority: Digest(row.get(1)?),
                    issued_at: time(row.get(2)?),
                    not_after: time(row.get(3)?),
                    used_at: row.get::<_, Option<i64>>(4)?.map(time),
                })
            })
            .optional()?)
    }

    /// The newest revocation of `site`, whether or not it was certified again since.
    pub fn revocation(&self, site: SiteId) -> Result<Option<RevocationRow>, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT at, by, reason FROM revocations WHERE site = ?1")?
            .query_row([site.as_bytes()], |row| {
                Ok(RevocationRow {
                    at: Timestamp(row.get::<_, i64>(0)?.unsigned_abs()),
                    by: row.get(1)?,
                    reason: row.get(2)?,
                })
            })
            .optional()?)
    }

    /// The revocation that holds, if one does: nothing certifies the site now.
    pub fn revoked(&self, site: SiteId) -> Result<Option<RevocationRow>, StoreError> {
        match self.certificate(site)? {
            Some(_) => Ok(None),
            None => self.revocation(site),
        }
    }

    /// Whether a session was opened with the certificate that has this serial number.
    pub fn is_used(&self, serial: &[u8]) -> Result<bool, StoreError> {
        let mut statement = self
            .sql
            .prepare_cached("SELECT 1 FROM certificates WHERE serial = ?1 AND used_at IS NOT NULL")?;
        Ok(statement.exists([serial])?)
    }

    /// The sites that a retired authority would lock out: it signed a certificate of theirs, and no session was
    /// opened yet with a later one of another authority. Ordered by name.
    pub fn sites_behind(&self, authority: Digest) -> Result<Vec<(SiteId, String)>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT DISTINCT site FROM certificates AS old WHERE authority = ?1 AND revoked_at IS NULL
             AND NOT EXISTS (SELECT 1 FROM certificates AS new
                 WHERE new.site = old.site AND new.certificate > old.certificate AND new.authority <> ?1
                 AND new.revoked_at IS NULL AND new.used_at IS NOT NULL)",
        )?;
        let sites = statement.query_map([authority.as_bytes()], |row| Ok(SiteId(row.get(0)?)))?;
        let mut found = Vec::new();
        for site in sites {
            let site = site?;
            if let Some(row) = self.site(site)? {
                found.push((site, row.name));
            }
        }
        found.sort_by(|a, b| a.1.cmp(&b.1));
        Ok(found)
    }

    /// Names of the sites with a token that was made before `since`, was not used, and is good at `now`. Ordered.
    /// Certificates know whole seconds only, so those of the same second count.
    pub fn invited_before(&self, since: Timestamp, now: Timestamp) -> Result<Vec<String>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT DISTINCT name FROM tokens
             WHERE created_at < ?1 + 1000 AND expires_at >= ?2 AND spent_at IS NULL ORDER BY name",
        )?;
        let names = statement.query_map(params![signed(since.0), signed(now.0)], |row| row.get(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    /// Number of sites whose newest certificate this authority signed.
    pub fn count_sites_of(&self, authority: Digest) -> Result<u64, StoreError> {
        let count: i64 = self
            .sql
            .prepare_cached(
                "SELECT count(*) FROM certificates WHERE authority = ?1 AND certificate IN
                 (SELECT max(certificate) FROM certificates WHERE revoked_at IS NULL GROUP BY site)",
            )?
            .query_row([authority.as_bytes()], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }
}

impl RevocationRow {
    /// What the site is told, on one line.
    pub fn words(&self) -> String {
        let why = if self.reason.is_empty() { "no reason was given" } else { &self.reason };
        format!("central revoked this site at {}: {why}", self.at)
    }
}
