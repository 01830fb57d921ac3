//! Invitations: who may become which site, once, within a day.
//!
//! [`mint`] makes a token for a person to carry and a [`TokenRecord`] for the store; [`judge`] says what a
//! secret that comes back is worth. Central keeps a digest only: its database invites nobody.
//!
//! Deliberately absent: storage, and slowing down those who guess. A secret has 256 bits.

use std::time::Duration;

use sync::{
    blob::Digest,
    id::SiteId,
    quic::enrol::{Refusal, RefusalCode, Secret, Token},
    time::Timestamp,
};

use super::certificate::KeyDigest;

/// How long a token is good for. Long enough to travel to a branch, short enough to be lost.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// What central remembers of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Digest of the secret, see [`hash`]; the key to look a token up by.
    pub hash: [u8; 32],
    /// The site that its holder becomes.
    pub site: SiteId,
    /// What the site was called when it was invited.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Last instant at which it is accepted.
    pub expires_at: Timestamp,
    /// When it was first redeemed.
    pub spent_at: Option<Timestamp>,
    /// The key that redeemed it.
    pub spent_by: Option<KeyDigest>,
}

impl TokenRecord {
    /// Notes that `key` redeems the token. The first time stays.
    pub fn spend(&mut self, key: KeyDigest, now: Timestamp) {
        self.spent_at.get_or_insert(now);
        self.spent_by.get_or_insert(key);
    }
}

/// Makes a token from 32 random bytes, for `site` at the central with this authority.
pub fn mint(
    entropy: [u8; 32],
    fingerprint: Digest,
    site: SiteId,
    name: &str,
    now: Timestamp,
) -> (Token, TokenRecord) {
    let secret = Secret(entropy);
    let record = TokenRecord {
        hash: hash(&secret),
        site,
        name: name.to_owned(),
        created_at: now,
        expires_at: now.after(LIFETIME),
        spent_at: None,
        spent_by: None,
    };
    (Token { fingerprint, secret }, record)
}

/// Returns the digest under which a secret is stored (BLAKE3 in key derivation mode).
pub fn hash(secret: &Secret) -> [u8; 32] {
    blake3::derive_key("holdfast 2026-11-20 enrolment token secret", &secret.0)
}

/// What a secret is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redeem {
    /// Issue a certificate. Also when the token was spent by the very same key and has not expired: the
    /// first answer did not arrive.
    Ok,
    /// There is no such token.
    Wrong,
    /// It was redeemed at this time, by another key or a day ago.
    Spent {
        /// When.
        at: Timestamp,
    },
    /// It was never redeemed and is too old.
    Expired {
        /// The last instant it was good.
        at: Timestamp,
    },
}

impl Redeem {
    /// What the machine is told, unless it gets a certificate.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Ok => None,
            Self::Wrong => Some(Refusal::new(RefusalCode::Wrong, "central knows no such token")),
            Self::Spent { at } => Some(Refusal::new(
                RefusalCode::Spent,
                format!("it was used at {at} and is good for one machine"),
            )),
            Self::Expired { at } => {
                Some(Refusal::new(RefusalCode::Expired, format!("it was good until {at}, for one day")))
            }
        }
    }
}

/// Judges the secret whose record, if there is one, is `record`, shown by the machine with this key.
pub fn judge(record: Option<&TokenRecord>, key: KeyDigest, now: Timestamp) -> Redeem {
    let Some(record) = record else {
        return Redeem::Wrong;
    };
    let expired = now > record.expires_at;
    match (record.spent_at, expired) {
        (Some(_), false) if record.spent_by == Some(key) => Redeem::Ok,
        (Some(at), _) => Redeem::Spent { at },
        (None, true) => Redeem::Expired { at: record.expires_at },
        (None, false) => Redeem::Ok,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const MADE: Timestamp = Timestamp(1_795_176_000_000);
    const OURS: KeyDigest = KeyDigest([1; 32]);
    const THEIRS: KeyDigest = KeyDigest([2; 32]);

    fn minted() -> (Token, TokenRecord) {
        mint([5; 32], Digest([6; 32]), SiteId([7; 16]), "lyon", MADE)
    }

    fn check(record: Option<&TokenRecord>, key: KeyDigest, after: Duration, expected: Expect) {
        let verdict = judge(record, key, MADE.after(after));
        let refusal = verdict.refusal().map_or("certificate".into(), |it| format!("{:?}: {it}", it.code));
        expected.assert_eq(&refusal);
    }

    #[test]
    fn p3_a_token_is_good_for_one_key_within_a_day() {
        let hour = Duration::from_secs(3_600);
        let moment = Duration::from_millis(1);
        let (_, fresh) = minted();
        check(Some(&fresh), OURS, Duration::ZERO, expect!["certificate"]);
        check(Some(&fresh), OURS, LIFETIME, expect!["certificate"]);
        check(
            Some(&fresh),
            OURS,
            LIFETIME + moment,
            expect!["Expired: it was good until 2026-11-21T12:00:00.000Z, for one day"],
        );
        check(None, OURS, hour, expect!["Wrong: central knows no such token"]);

        let mut spent = fresh.clone();
        spent.spend(OURS, MADE.after(hour));
        check(Some(&spent), OURS, 2 * hour, expect!["certificate"]);
        check(
            Some(&spent),
            THEIRS,
            2 * hour,
            expect!["Spent: it was used at 2026-11-20T13:00:00.000Z and is good for one machine"],
        );
        check(
            Some(&spent),
            OURS,
            LIFETIME + moment,
            expect!["Spent: it was used at 2026-11-20T13:00:00.000Z and is good for one machine"],
        );

        let before = spent.clone();
        spent.spend(THEIRS, MADE.after(3 * hour));
        assert_eq!(spent, before, "the first one stays");
    }

    #[test]
    fn what_is_stored_is_not_the_secret_and_finds_it() {
        let (token, record) = minted();
        assert_eq!(record.hash, hash(&token.secret));
        assert_ne!(record.hash, token.secret.0);
        assert_ne!(record.hash, *Digest::of(&token.secret.0).as_bytes(), "a digest of its own kind");
        // Stored for as long as there are tokens: it must not change.
        expect!["3225ad9fa20f16f445dfec6744f3ed5c32c05490e63b87388281aafa5f1a27fd"]
            .assert_eq(&sync::id::hex(&record.hash));
    }
}
