//! At central: the authority that signs certificates has a successor, or its predecessor is retired.
//!
//! What signs is a file beside the database. So a change of it is journalled by comparing: what [`follow`] is shown
//! with what it was shown before, at every start and after every change. A crash between file and journal loses
//! nothing.

use rusqlite::{OptionalExtension, params};
use sync::{blob::Digest, journal::Event, time::Timestamp};

use super::refused;
use crate::{StoreError, Tx};

/// Key of the digests, present and predecessor, that were seen last.
const SEEN: &str = "authority";

/// Who signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Digest of the certificate of the authority.
    pub authority: Digest,
    /// When it was made.
    pub made_at: Timestamp,
    /// End of its validity.
    pub not_after: Timestamp,
    /// Digest of the certificate of the one before, while that is accepted.
    pub predecessor: Option<Digest>,
}

/// Journals what has changed since the last time; the first time nothing.
///
/// # Errors
/// Only those of the database.
pub fn follow(tx: &mut Tx<'_>, standing: &Standing) -> Result<(), StoreError> {
    let seen: Option<Vec<u8>> = tx
        .sql
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([SEEN], |row| row.get(0))
        .optional()?;
    let present = standing.authority.as_bytes().as_slice();
    let predecessor = standing.predecessor.as_ref().map(|it| it.as_bytes().as_slice()).unwrap_or_default();
    let now = [present, predecessor].concat();
    if seen.as_ref() == Some(&now) {
        return Ok(());
    }
    tx.sql
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![SEEN, now])?;
    let Some(seen) = seen else { return Ok(()) };
    let (before, before_that) = seen.split_at(32.min(seen.len()));
    if before != present
        && let Some(before) = Digest::from_slice(before)
    {
        let (authority, not_after) = (standing.authority, standing.not_after);
        tx.journal(Event::AuthoritySucceeded { authority, predecessor: before, not_after })?;
    }
    let retired =
        if before == present { Digest::from_slice(before_that) } else { Digest::from_slice(before) };
    if let (Some(authority), None) = (retired, standing.predecessor) {
        let locked_out = tx.view().sites_behind(authority)?.into_iter().map(|(_, name)| name).collect();
        tx.journal(Event::AuthorityRetired { authority, locked_out })?;
    }
    Ok(())
}

/// Says no to the retirement of the predecessor while somebody depends on it.
///
/// # Errors
/// `Refused` with the names; those of the database.
pub fn permit_retirement(tx: &Tx<'_>, standing: &Standing) -> Result<(), StoreError> {
    let Some(predecessor) = standing.predecessor else {
        return refused("the authority has no predecessor that could be retired".to_owned());
    };
    let behind: Vec<String> =
        tx.view().sites_behind(predecessor)?.into_iter().map(|(_, name)| name).collect();
    let invited = tx.view().invited_before(standing.made_at, tx.now())?;
    let mut why = Vec::new();
    if !behind.is_empty() {
        why.push(format!(
            "these sites would be locked out, they have not renewed yet: {}",
            behind.join(", ")
        ));
    }
    if !invited.is_empty() {
        why.push(format!(
            "these sites have tokens that would not be accepted any more: {}",
            invited.join(", ")
        ));
    }
    if why.is_empty() { Ok(()) } else { refused(why.join("; ")) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;
    use sync::id::{Origin, SiteId};

    use super::*;
    use crate::{
        Given, Opening, Store,
        command::{certificate, certificate::Certified, enrolment, site},
        view::JournalFilter,
    };

    const OLD: Digest = Digest([1; 32]);
    const NEW: Digest = Digest([2; 32]);

    fn given(minute: u64) -> Given {
        let now = Timestamp(1_795_176_000_000).after(Duration::from_secs(60 * minute));
        Given { now, by: "ann".into(), entropy: [minute.to_le_bytes()[0]; 32] }
    }

    fn standing(authority: Digest, predecessor: Option<Digest>) -> Standing {
        Standing { authority, made_at: given(10).now, not_after: given(99_999).now, predecessor }
    }

    fn enrol(store: &Store, minute: u64, site: SiteId, serial: u8, authority: Digest) {
        let certified =
            Certified { serial: vec![serial], not_after: given(9_999).now, authority, key: vec![4; 65] };
        let enrolled = store.run(given(minute), move |tx| {
            let expires_at = tx.now().after(Duration::from_secs(86_400));
            enrolment::issue_token(tx, [serial; 32], site, expires_at)?;
            enrolment::redeem(tx, [serial; 32], [1; 32], |_, _| Ok::<_, ()>(site), |_, _| Ok(((), certified)))
        });
        enrolled.unwrap().unwrap();
    }

    #[test]
    fn l6_an_authority_is_retired_when_every_site_has_shown_a_certificate_of_its_successor() {
        let folder = tempfile::tempdir().unwrap();
        let opening =
            Opening { folder: folder.path().to_path_buf(), origin: Origin::Central, given: given(0) };
        let store = Store::open(&opening).unwrap();
        let [lyon, oslo] = [("lyon", 1), ("oslo", 2)]
            .map(|(name, at)| store.run(given(at), move |tx| site::create(tx, name, "", "")).unwrap());
        store.run(given(3), |tx| follow(tx, &standing(OLD, None))).unwrap();
        enrol(&store, 4, lyon, 1, OLD);
        enrol(&store, 5, oslo, 2, OLD);
        store
            .run(given(6), move |tx| enrolment::issue_token(tx, [9; 32], oslo, given(1_000).now).map(drop))
            .unwrap();
        let both = standing(NEW, Some(OLD));
        // Twice, as after a crash.
        store.run(given(10), move |tx| follow(tx, &both).and_then(|()| follow(tx, &both))).unwrap();
        let retire = |at| {
            let answer = store.run(given(at), move |tx| permit_retirement(tx, &both));
            answer.err().map(|error| error.to_string()).unwrap_or_default()
        };
        expect!["these sites would be locked out, they have not renewed yet: lyon, oslo; these sites have tokens that would not be accepted any more: oslo"].assert_eq(&retire(11));

        // A certificate that was issued may not have arrived; one that was shown has.
        let certified = |serial: u8| Certified {
            serial: vec![serial],
            not_after: given(9_999).now,
            authority: NEW,
            key: vec![4; 65],
        };
        let renew = |at, site, old: u8, new| {
            let certify = move |_| Ok::<_, ()>(((), certified(new)));
            let issued_at = given(4).now;
            store
                .run(given(at), move |tx| certificate::renew(tx, site, &[old], issued_at, certify, |_| ()))
                .unwrap()
                .unwrap();
        };
        renew(12, lyon, 1, 3);
        expect!["these sites would be locked out, they have not renewed yet: lyon, oslo"]
            .assert_eq(&retire(1_001));
        store.run(given(13), move |tx| certificate::used(tx, lyon, &certified(3), given(12).now)).unwrap();
        expect!["these sites would be locked out, they have not renewed yet: oslo"].assert_eq(&retire(1_001));
        // One that another life of the database issued counts from its first use.
        store.run(given(14), move |tx| certificate::used(tx, oslo, &certified(77), given(13).now)).unwrap();
        expect![""].assert_eq(&retire(1_001));
        expect!["these sites have tokens that would not be accepted any more: oslo"].assert_eq(&retire(15));

        store.run(given(16), |tx| follow(tx, &standing(NEW, None))).unwrap();
        store.run(given(17), |tx| follow(tx, &standing(NEW, None))).unwrap();
        let rows = store.read(|view| view.journal(&JournalFilter::default())).unwrap();
        let told: Vec<String> = rows
            .iter()
            .filter_map(|row| match row.event.as_ref()? {
                Event::AuthoritySucceeded { predecessor, .. } => {
                    Some(format!("succeeded {}", predecessor == &OLD))
                }
                Event::AuthorityRetired { locked_out, .. } => Some(format!("retired {locked_out:?}")),
                _ => None,
            })
            .collect();
        assert_eq!(told, ["succeeded true", "retired []"]);
    }
}
