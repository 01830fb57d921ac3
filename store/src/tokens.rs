//! Enrolment tokens at central, by the digest of their secret.

use rusqlite::{OptionalExtension, params};
use sync::{id::SiteId, time::Timestamp};

use crate::{StoreError, Tx, log::signed};

/// One token. The secret itself is nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Digest of the secret.
    pub hash: [u8; 32],
    /// Site that it enrols.
    pub site: SiteId,
    /// Name of the site.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// End of its life.
    pub expires_at: Timestamp,
    /// When it was used, if it was.
    pub spent_at: Option<Timestamp>,
    /// Digest of the key that used it: the same key may ask again for the answer it did not get.
    pub spent_by: Option<[u8; 32]>,
}

impl Tx<'_> {
    /// Keeps a new token.
    pub fn insert_token(&mut self, token: &TokenRow) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO tokens (hash, site, name, created_at, expires_at, spent_at, spent_by)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                token.hash,
                token.site.as_bytes(),
                token.name,
                signed(token.created_at.0),
                signed(token.expires_at.0),
                token.spent_at.map(|at| signed(at.0)),
                token.spent_by
            ])?;
        Ok(())
    }

    /// Finds a token.
    pub fn token(&self, hash: &[u8; 32]) -> Result<Option<TokenRow>, StoreError> {
        let time = |ms: i64| Timestamp(ms.unsigned_abs());
        Ok(self
            .sql
            .prepare_cached(
                "SELECT hash, site, name, created_at, expires_at, spent_at, spent_by FROM tokens WHERE hash = ?1",
            )?
            .query_row([hash], |row| {
                Ok(TokenRow {
                    hash: row.get(0)?,
                    site: SiteId(row.get(1)?),
                    name: row.get(2)?,
                    created_at: time(row.get(3)?),
                    expires_at: time(row.get(4)?),
                    spent_at: row.get::<_, Option<i64>>(5)?.map(time),
                    spent_by: row.get(6)?,
                })
            })
            .optional()?)
    }

    /// Ends the life of every token of `site` that is still good for something, spent or not, and returns how
    /// many those were.
    pub(crate) fn void_tokens(&mut self, site: SiteId) -> Result<usize, StoreError> {
        let before = signed(self.given.now.0).saturating_sub(1);
        Ok(self
            .sql
            .prepare_cached("UPDATE tokens SET expires_at = ?2 WHERE site = ?1 AND expires_at > ?2")?
            .execute(params![site.as_bytes(), before])?)
    }

    /// Marks a token as used now by a key.
    pub fn spend_token(&mut self, hash: &[u8; 32], key: [u8; 32]) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE tokens SET spent_at = ?2, spent_by = ?3 WHERE hash = ?1 AND spent_at IS NULL",
            )?
            .execute(params![hash, signed(self.given.now.0), key])?;
        Ok(())
    }
}
