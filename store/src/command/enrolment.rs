//! Enrolment at central: inviting a site, letting one machine in, and noting who was turned away.
//!
//! What a token is worth is judged by whoever knows tokens; here the judgement, the spending and the
//! journal entry become one transaction, so that of two machines with one token only one is let in.

use sync::{id::SiteId, journal::Event, time::Timestamp};

use super::{certificate, certificate::Certified, unknown};
use crate::{StoreError, Tx, tokens::TokenRow};

/// Keeps a token under the digest of its secret, to become `site` with until `expires_at`.
///
/// # Errors
/// `Unknown` site.
pub fn issue_token(
    tx: &mut Tx<'_>,
    hash: [u8; 32],
    site: SiteId,
    expires_at: Timestamp,
) -> Result<TokenRow, StoreError> {
    let name = tx.view().site(site)?.ok_or_else(|| unknown("site", site))?.name;
    let token =
        TokenRow { hash, site, name, created_at: tx.now(), expires_at, spent_at: None, spent_by: None };
    tx.insert_token(&token)?;
    tx.journal(Event::TokenIssued { site, name: token.name.clone(), expires_at })?;
    Ok(token)
}

/// Lets the machine with `key` use the token with this digest, if `judge`, who is shown the token and the
/// instant, says which site it becomes, and `certify` makes the certificate; otherwise returns what either
/// said, with nothing changed.
///
/// The first use spends the token and is journalled. A later one that `judge` allows is the same machine,
/// which did not get its answer: it gets another certificate.
///
/// # Errors
/// Only those of the database.
pub fn redeem<C, R>(
    tx: &mut Tx<'_>,
    hash: [u8; 32],
    key: [u8; 32],
    judge: impl FnOnce(Option<&TokenRow>, Timestamp) -> Result<SiteId, R>,
    certify: impl FnOnce(SiteId, Timestamp) -> Result<(C, Certified), R>,
) -> Result<Result<C, R>, StoreError> {
    let token = tx.token(&hash)?;
    let judged = judge(token.as_ref(), tx.now()).and_then(|site| Ok((site, certify(site, tx.now())?)));
    let (site, (issued, certified)) = match judged {
        Ok(certified) => certified,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if let Some(token) = token
        && token.spent_at.is_none()
    {
        tx.spend_token(&hash, key)?;
        tx.journal_for(token.site, Event::SiteEnrolled { site: token.site, name: token.name })?;
    }
    certificate::keep(tx, site, &certified, false)?;
    Ok(Ok(issued))
}

/// Notes that somebody who called itself `name` was refused.
///
/// # Errors
/// Only those of the database.
pub fn refuse(tx: &mut Tx<'_>, name: &str, reason: &str) -> Result<(), StoreError> {
    tx.journal(Event::EnrolmentRefused { name: name.to_string(), reason: reason.to_string() })
}
