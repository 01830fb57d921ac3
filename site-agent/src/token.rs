//! The credential of a machine: good for one attempt of one task, and made again whenever it is needed.
//!
//! It is the BLAKE3 hash of (task, attempt) under this site's secret, so nothing is stored or replicated, and
//! it dies with the attempt because the attempt is what it is compared for.

use sync::id::TaskId;

/// Writes the token of an attempt: 64 hexadecimal digits.
pub fn machine_token(secret: &[u8; 32], task: TaskId, attempt: u64) -> String {
    hash(secret, task, attempt).to_hex().to_string()
}

/// Whether `shown` is the token of an attempt. Takes the same time for every wrong one.
pub fn is_machine_token(secret: &[u8; 32], task: TaskId, attempt: u64, shown: &str) -> bool {
    // `Hash` compares in constant time.
    blake3::Hash::from_hex(shown).is_ok_and(|shown| shown == hash(secret, task, attempt))
}

/// Whether two secrets are the same text, in a time that tells nothing about where they differ.
pub fn is_same_secret(ours: &str, shown: &str) -> bool {
    blake3::hash(ours.as_bytes()) == blake3::hash(shown.as_bytes())
}

fn hash(secret: &[u8; 32], task: TaskId, attempt: u64) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(b"holdfast/machine-token/v1");
    hasher.update(task.as_bytes());
    hasher.update(&attempt.to_be_bytes());
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_attempt_alone() {
        let (secret, task) = ([1; 32], TaskId([2; 16]));
        let token = machine_token(&secret, task, 1);
        assert!(is_machine_token(&secret, task, 1, &token));
        assert!(!is_machine_token(&secret, task, 2, &token));
        assert!(!is_machine_token(&secret, TaskId([3; 16]), 1, &token));
        assert!(!is_machine_token(&[9; 32], task, 1, &token));
        for wrong in ["", "x", &token[..63], &format!("{token}0"), "é"] {
            assert!(!is_machine_token(&secret, task, 1, wrong), "{wrong}");
        }
    }
}
