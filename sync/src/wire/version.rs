//! Protocol versions: each side says its range, the highest common one is used.

use minicbor::{Decode, Encode};

/// Versions that a program speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Versions {
    /// Oldest.
    #[n(0)]
    pub oldest: u32,
    /// Newest.
    #[n(1)]
    pub newest: u32,
}

/// What this program speaks.
pub const OURS: Versions = Versions { oldest: 1, newest: 1 };

impl Versions {
    /// The highest version that both speak, if any.
    pub fn common(self, other: Versions) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.oldest == self.newest {
            write!(f, "version {}", self.newest)
        } else {
            write!(f, "versions {} to {}", self.oldest, self.newest)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_used_if_there_is_one() {
        let of = |oldest, newest| Versions { oldest, newest };
        assert_eq!(of(1, 3).common(of(2, 5)), Some(3));
        assert_eq!(of(4, 5).common(of(1, 4)), Some(4));
        assert_eq!(of(1, 1).common(of(2, 3)), None);
    }
}
